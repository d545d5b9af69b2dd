// CUDA on a CPU, for tests: kernels compile as C++, and run thread by thread as they are.
//
// Each thread of a block is a fiber. It runs until it must wait for others, at a barrier or to exchange values. Who goes
// on next changes all the time, so that results which depend on the order, for want of a barrier, differ from run to run.
// Threads that wait at different places, or for one that has ended, are an error.
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cfenv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(n)
using std::max;
using std::min;

struct Index {
    int x, y;
};
static Index threadIdx, blockIdx;
alignas(128) unsigned char memory[1 << 18];  // what a block shares

namespace emulator {

enum Place { NOWHERE, BARRIER, WARP, EXCHANGE };

struct Fiber {
    ucontext_t start;
    jmp_buf place;
    std::vector<char> stack = std::vector<char>(1 << 16);
    bool started, ended;
    int turn;  // which of two slots the next exchange takes
};

struct Meeting {
    int arrived, generation;
    Place place;
};

static std::vector<Fiber> fibers;
static Meeting block;
static Meeting warps[32];
static unsigned long long slots[32][2][32];
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
static bool run_block() {
    block = {};
    for (Meeting& warp : warps) warp = {};
    memset(memory, 0xcd, sizeof memory);
    failed = false;
    for (int t = 0; t < n_threads; t++) {
        Fiber& fiber = fibers[t];
        fiber.started = fiber.ended = false;
        fiber.turn = 0;
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = fiber.stack.data();
        fiber.start.uc_stack.ss_size = fiber.stack.size();
        makecontext(&fiber.start, enter, 0);
    }
    for (left = n_threads; left > 0 && !failed;) {
        n_met = 0;
        seed = seed * 1664525u + 1013904223u;
        for (step = 0; step < n_threads && !failed; step++) {
            const int thread = (step * (2 * (seed >> 20) + 1) + (seed >> 8)) % n_threads;  // n_threads: a power of two
            if (!fibers[thread].ended) resume(thread);
        }
        if (n_met == 0) failed = true;
    }
    return !failed;
}

template <typename T>
static T* exchange(T value) {
    const int warp = current / 32, lane = current % 32;
    const int turn = fibers[current].turn ^= 1;
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
static int launch(void (*kernel)(A...), int blocks_x, int blocks_y, int threads, void** arguments) {
    n_threads = threads;
    if (static_cast<int>(fibers.size()) < threads) fibers.resize(threads);
    body = [=] { call(kernel, arguments, std::index_sequence_for<A...>()); };
    seed = 12345u + 2 * n_sweeps++;
    for (blockIdx.y = 0; blockIdx.y < blocks_y; blockIdx.y++)
        for (blockIdx.x = 0; blockIdx.x < blocks_x; blockIdx.x++)
            if (!run_block()) return 1;
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

static int __popc(unsigned x) { return __builtin_popcount(x); }
static int atomicAdd(int* to, int value) {
    const int old = *to;
    *to += value;
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
