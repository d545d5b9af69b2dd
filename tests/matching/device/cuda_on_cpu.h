// CUDA on a CPU, for tests: kernels compile as C++, and run thread by thread as they are.
//
// Each thread of a block is a fiber. It runs until it must wait for others, at a barrier or to exchange values. Who goes
// on next changes all the time, and in half of the blocks one warp only goes on where no other can, so that results which
// depend on the order, for want of a barrier, differ from run to run.
// Threads that wait at different places, or for one that has ended, are an error, and so is writing beyond the shared
// memory of a launch. What a thread copies while it goes on arrives at once, or no sooner than the thread waits for it.
//
// Sums of tensor cores are rounded as badly as the certificate takes for possible; `round_tensor_sums` says how.
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cfenv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
using std::max;
using std::min;

struct Index {
    int x, y;
};
static Index threadIdx, blockIdx;
alignas(128) unsigned char memory[1 << 18];  // what a block shares

namespace emulator {

enum Place { NOWHERE, BARRIER, WARP, EXCHANGE };
constexpr unsigned char UNTOUCHED = 0xcd;

// Words on their way to shared memory; `from` is null for zeros.
struct Copy {
    unsigned* to;
    const unsigned* from;
};

struct Fiber {
    ucontext_t start;
    jmp_buf place;
    std::vector<char> stack = std::vector<char>(1 << 16);
    bool started, ended;
    int turn;  // which of two slots the next exchange takes
    std::vector<Copy> begun;
    std::deque<std::vector<Copy>> groups;  // of copies, the oldest first
};

struct Meeting {
    int arrived, generation;
    Place place;
};

static std::vector<Fiber> fibers;
static Meeting block;
static Meeting warps[32];
alignas(16) static unsigned char slots[32][2][32 * 32];
static int current, n_threads, left, n_met, step, n_sweeps;
static unsigned seed;
static bool failed;
static jmp_buf scheduler;
static std::function<void()> body;

static void yield() {
    const int self = current;
    if (_setjmp(fibers[self].place) == 0) _longjmp(scheduler, 1);
    current = self;
    threadIdx.x = self;
}

static void meet(Meeting& meeting, int size, Place place) {
    if (meeting.arrived > 0 && meeting.place != place) failed = true;
    meeting.place = place;
    const int generation = meeting.generation;
    if (++meeting.arrived == size) {
        meeting.arrived = 0;
        meeting.generation++;
        n_met++;
    } else {
        while (meeting.generation == generation || failed) yield();
    }
}

static void enter() {
    body();
    fibers[current].ended = true;
    left--;
    n_met++;
    _longjmp(scheduler, 1);
}

static void resume(int thread) {
    Fiber& fiber = fibers[thread];
    current = threadIdx.x = thread;
    if (_setjmp(scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    setcontext(&fiber.start);
}

// Runs the block's threads in an order that changes from sweep to sweep. Returns whether all came to their end.
//
// A warp that lags, if any, is left out until a sweep gets no other on.
static bool run_block() {
    block = {};
    for (Meeting& warp : warps) warp = {};
    memset(memory, UNTOUCHED, sizeof memory);
    failed = false;
    for (int t = 0; t < n_threads; t++) {
        Fiber& fiber = fibers[t];
        fiber.started = fiber.ended = false;
        fiber.turn = 0;
        fiber.begun.clear();
        fiber.groups.clear();
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = fiber.stack.data();
        fiber.start.uc_stack.ss_size = fiber.stack.size();
        makecontext(&fiber.start, enter, 0);
    }
    const int lagging = seed >> 12 & 1 ? static_cast<int>((seed >> 24) % (n_threads / 32)) : -1;
    bool all = true;
    for (left = n_threads; left > 0 && !failed;) {
        n_met = 0;
        seed = seed * 1664525u + 1013904223u;
        for (step = 0; step < n_threads && !failed; step++) {
            const int thread = (step * (2 * (seed >> 20) + 1) + (seed >> 8)) % n_threads;  // n_threads: a power of two
            if (!fibers[thread].ended && (all || thread / 32 != lagging)) resume(thread);
        }
        if (n_met == 0 && all) failed = true;
        all = lagging < 0 || n_met == 0;
    }
    return !failed;
}

static void carry_out(const Copy& copy) {
    for (int k = 0; k < 4; k++) copy.to[k] = copy.from ? copy.from[k] : 0;
}

template <typename T>
static T* exchange(T value) {
    const int warp = current / 32, lane = current % 32;
    const int turn = fibers[current].turn ^= 1;
    static_assert(sizeof(T) <= 32, "there is no room for more");
    T* values = reinterpret_cast<T*>(slots[warp][turn]);
    values[lane] = value;
    meet(warps[warp], 32, EXCHANGE);
    return values;
}

template <typename... A, size_t... I>
static void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<A>*>(arguments[I])...);
}

// Runs a kernel as cuLaunchKernel does: block by block, the arguments by their addresses.
template <typename... A>
static int launch(void (*kernel)(A...), int blocks_x, int blocks_y, int threads, int shared_bytes, void** arguments) {
    n_threads = threads;
    if (static_cast<int>(fibers.size()) < threads) fibers.resize(threads);
    body = [=] { call(kernel, arguments, std::index_sequence_for<A...>()); };
    seed = 12345u + 2 * n_sweeps++;
    for (blockIdx.y = 0; blockIdx.y < blocks_y; blockIdx.y++)
        for (blockIdx.x = 0; blockIdx.x < blocks_x; blockIdx.x++) {
            if (!run_block()) return 1;
            const auto untouched = [](unsigned char byte) { return byte == UNTOUCHED; };
            if (!std::all_of(memory + shared_bytes, memory + sizeof memory, untouched)) return 3;
        }
    return 0;
}

template <typename T>
static T rounded_up(T (*operation)(T, T), T a, T b) {
    volatile T x = a, y = b;
    fesetround(FE_UPWARD);
    volatile T result = operation(x, y);
    fesetround(FE_TONEAREST);
    return result;
}

// How sums on tensor cores are rounded: so many products at once, which are aligned to the largest of them, and in what
// direction.
enum Direction { TO_ZERO, DOWN, UP };
static int products_at_once = 8, rounding_direction = TO_ZERO;
static bool last_first = false;

// The exponent of a number that is not 0, and a power of two.
static int exponent_of(double x) {
    unsigned long long bits;
    memcpy(&bits, &x, sizeof bits);
    return static_cast<int>(bits >> 52 & 0x7ff) - 1023;
}
static double power_of_two(int exponent) {
    const unsigned long long bits = static_cast<unsigned long long>(exponent + 1023) << 52;
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

// A number of units, as an integer.
static long long aligned(double x, double per_unit) {
    const double units = x * per_unit;
    const long long whole = static_cast<long long>(units);
    if (rounding_direction == DOWN && static_cast<double>(whole) > units) return whole - 1;
    if (rounding_direction == UP && static_cast<double>(whole) < units) return whole + 1;
    return whole;
}

// The sum with 24 bits of precision, after aligning each number with 24 bits to the largest.
static float tensor_sum(float sum, const double* products, int n) {
    double largest = fabs(sum);
    for (int k = 0; k < n; k++) largest = max(largest, fabs(products[k]));
    if (largest == 0.0) return 0.0f;
    const int exponent = exponent_of(largest);
    const double unit = power_of_two(exponent - 23), per_unit = power_of_two(23 - exponent);
    long long units = aligned(sum, per_unit);
    for (int k = 0; k < n; k++) units += aligned(products[k], per_unit);
    if (units == 0) return 0.0f;
    const double exact = units * unit;  // of fewer than 30 bits
    const int excess = max(exponent_of(static_cast<double>(llabs(units))) - 23, 0);
    return static_cast<float>(aligned(exact, per_unit * power_of_two(-excess)) * (unit * power_of_two(excess)));
}

static float half_value(unsigned half) {
    _Float16 value;
    const unsigned short bits = half;
    memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace emulator

static void __syncthreads() { emulator::meet(emulator::block, emulator::n_threads, emulator::BARRIER); }
static void __syncwarp() { emulator::meet(emulator::warps[emulator::current / 32], 32, emulator::WARP); }

template <typename T>
static T __shfl_sync(unsigned, T value, int lane) {
    return emulator::exchange(value)[lane];
}
template <typename T>
static T __shfl_xor_sync(unsigned, T value, int distance) {
    const int lane = emulator::current % 32;
    return emulator::exchange(value)[lane ^ distance];
}
static int __reduce_max_sync(unsigned, int value) {
    const int* values = emulator::exchange(value);
    return *std::max_element(values, values + 32);
}
static unsigned __ballot_sync(unsigned, bool value) {
    const int* values = emulator::exchange(static_cast<int>(value));
    unsigned who = 0;
    for (int lane = 0; lane < 32; lane++) who |= (values[lane] ? 1u : 0u) << lane;
    return who;
}
static bool __any_sync(unsigned all, bool value) { return __ballot_sync(all, value) != 0; }

static unsigned half_of(float x) {
    const _Float16 half = x;
    unsigned short bits;
    memcpy(&bits, &half, sizeof bits);
    return bits;
}
static const std::vector<float> values_of_halves = [] {
    std::vector<float> all(1 << 16);
    for (unsigned k = 0; k < all.size(); k++) all[k] = emulator::half_value(k);
    return all;
}();
static float value_of(unsigned half) { return values_of_halves[half]; }

// As documented for `mma.m16n8k16`; see `halves.cu`.
static void add_products(float (&sums)[4], const unsigned (&rows)[4], const unsigned (&columns)[2]) {
    struct Words {
        unsigned rows[4], columns[2];
    } mine;
    std::copy(rows, rows + 4, mine.rows);
    std::copy(columns, columns + 2, mine.columns);
    const Words* of = emulator::exchange(mine);
    const int lane = emulator::current % 32, y = lane / 4, x = lane % 4;
    double left[2][16], right[2][16];  // of the two rows and the two columns of this lane's sums
    bool is_zero[4] = {true, true, true, true};
    const auto read = [](unsigned word, int k, double& value, bool& zero) {
        const unsigned half = word >> 16 * (k % 2) & 0xffff;
        value = value_of(half);
        zero &= (half & 0x7fff) == 0;
    };
    for (int r = 0; r < 2; r++)
        for (int k = 0; k < 16; k++) {
            read(of[4 * y + k % 8 / 2].rows[r + k / 8 * 2], k, left[r][k], is_zero[r]);
            read(of[4 * (2 * x + r) + k % 8 / 2].columns[k / 8], k, right[r][k], is_zero[2 + r]);
        }
    for (int r = 0; r < 2; r++)
        for (int c = 0; c < 2; c++) {
            if (is_zero[r] || is_zero[2 + c]) continue;
            double products[16];
            for (int k = 0; k < 16; k++) products[k] = left[r][k] * right[c][k];
            if (emulator::last_first) std::reverse(products, products + 16);
            float& sum = sums[2 * r + c];
            for (int k = 0; k < 16; k += emulator::products_at_once)
                sum = emulator::tensor_sum(sum, products + k, emulator::products_at_once);
        }
}

static void begin_copy(unsigned* to, const unsigned* from, bool zeros) {
    const emulator::Copy copy = {to, zeros ? nullptr : from};
    if (emulator::seed >> 16 & 1)
        emulator::carry_out(copy);
    else
        emulator::fibers[emulator::current].begun.push_back(copy);
}
static void close_group() {
    emulator::Fiber& fiber = emulator::fibers[emulator::current];
    fiber.groups.push_back(std::move(fiber.begun));
    fiber.begun.clear();
}
template <int GROUPS>
static void await_copies() {
    auto& groups = emulator::fibers[emulator::current].groups;
    for (; groups.size() > GROUPS; groups.pop_front())
        for (const emulator::Copy& copy : groups.front()) emulator::carry_out(copy);
}

static int __popc(unsigned x) { return __builtin_popcount(x); }
static int atomicAdd(int* to, int value) {
    const int old = *to;
    *to += value;
    return old;
}
static int atomicMax(int* to, int value) {
    const int old = *to;
    *to = std::max(old, value);
    return old;
}
static int __float_as_int(float x) {
    int bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
static float __int_as_float(int bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static int __float2int_rn(float x) { return static_cast<int>(lrintf(x)); }
__attribute__((noinline)) static float minus(float a, float b) { return a - b; }
__attribute__((noinline)) static double plus(double a, double b) { return a + b; }
static float __fsub_ru(float a, float b) { return emulator::rounded_up<float>(minus, a, b); }
static double __dadd_ru(double a, double b) { return emulator::rounded_up<double>(plus, a, b); }
