// The affinities of all pairs of tokens of two panels on tensor cores, from numbers that are split into two halves.
//
// A token is multiplied by a power of two, so that its largest number lies in [2^14, 2^15). Every number x is then
// high + low + rest: high is x rounded to half precision, low is x - high rounded to half precision, and halves below
// 2^-14, the smallest that is normal, are 0. An affinity is the sum of high * high + (high * low + low * high) over the
// channels, in float32. `certificate.py` bounds what this drops and what it rounds.
//
// Each STEP of channels is summed on its own, first the small products, then the large ones on top of them, and an
// ordinary addition adds it to the total: how tensor cores round sums is not documented, so those sums are short. The
// order is the same at every place, so the numbers depend on nothing but the two tokens.

constexpr int STEP = 16;  // channels that one instruction of a tensor core sums
// Channels that are copied to shared memory at once, and the words that a token has of them: first their high halves,
// two to a word, then their low halves.
constexpr int COPIED = 32;
constexpr int HALVES_PITCH = COPIED + 4;  // words of a token in shared memory: a warp's loads meet every bank once
constexpr int HEADER = 4;                 // words of a token before its halves; the first is its unit, a float
constexpr int SPLIT_THREADS = 128;
constexpr int HALVES_TILE = 128;                  // rows and columns of a block
constexpr int WARP_ROWS = 64, WARP_COLUMNS = 32;  // of a warp: four pieces of 16 rows, four of 8 columns
constexpr int TOP_EXPONENT = 14;          // of a token's largest number when it is split
constexpr int LEAST_EXPONENT = -100;      // of a token's largest number; what is smaller is far below every allowance

#ifdef __CUDACC__  // these are instructions of a GPU, which a CPU has to put together

// The half nearest to x, in 16 bits.
DEVICE unsigned half_of(float x) {
    unsigned short half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
    return half;
}

DEVICE float value_of(unsigned half) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(static_cast<unsigned short>(half)));
    return value;
}

// Adds the products of 16 rows and 8 columns, of STEP halves each. Lane 4 y + x has the halves 2x, 2x + 1 of row y and of
// row y + 8, then 2x + 8, 2x + 9 of either; the same four of column y; and the sums of rows y and y + 8 with columns 2x
// and 2x + 1.
DEVICE void add_products(float (&sums)[4], const unsigned (&rows)[4], const unsigned (&columns)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(rows[0]), "r"(rows[1]), "r"(rows[2]), "r"(rows[3]), "r"(columns[0]), "r"(columns[1]));
}

// Begins to copy four words to shared memory, or four zeros, while the thread goes on.
DEVICE void begin_copy(unsigned* to, const unsigned* from, bool zeros) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(static_cast<unsigned>(__cvta_generic_to_shared(to))), "l"(from), "r"(zeros ? 0 : 16)
                 : "memory");
}

// Makes the copies that the thread began since the last call one group.
DEVICE void close_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for the thread's copies, but for the last GROUPS groups.
template <int GROUPS>
DEVICE void await_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}

#endif

// The words of a token's halves.
DEVICE int words_of(int n_channels) { return (n_channels + COPIED - 1) / COPIED * COPIED; }

// Splits x: returns the high half, and takes it off x.
DEVICE unsigned take_half(float& x) {
    const unsigned half = half_of(x);
    if ((half & 0x7c00) == 0) return 0;  // not normal
    x -= value_of(half);                 // exact
    return half;
}

// Writes the tokens of a packed panel (see product.cu) as `multiply_halves` reads them, a warp for each group of 16.
KERNEL __launch_bounds__(SPLIT_THREADS)
split_panel(const float* packed, int n_groups, int n_channels, unsigned* halves) {
    const int lane = threadIdx.x % LANES;
    const int group = (blockIdx.x * SPLIT_THREADS + threadIdx.x) / LANES;
    if (group >= n_groups) return;
    const int token = lane % GROUP, first = lane / GROUP;
    const float* numbers = packed + static_cast<long long>(group) * n_channels * GROUP + token;
    float largest = 0.0f;
    for (int c = first; c < n_channels; c += LANES / GROUP) largest = fmaxf(largest, fabsf(numbers[c * GROUP]));
    largest = fmaxf(largest, __shfl_xor_sync(ALL, largest, GROUP));
    const int exponent = max((__float_as_int(largest) >> 23) - 127, LEAST_EXPONENT);
    const float factor = __int_as_float((TOP_EXPONENT - exponent + 127) << 23);
    const int n_words = words_of(n_channels);
    unsigned* to = halves + (static_cast<long long>(group) * GROUP + token) * (HEADER + n_words);
    if (first == 0) to[0] = (exponent - TOP_EXPONENT + 127) << 23;  // the bits of a power of two
    for (int w = first; w < n_words / 2; w += LANES / GROUP) {
        unsigned high = 0, low = 0;
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const int c = 2 * w + k;
            float x = c < n_channels ? numbers[c * GROUP] * factor : 0.0f;
            high |= take_half(x) << 16 * k;
            low |= take_half(x) << 16 * k;
        }
        unsigned* words = to + HEADER + w / (COPIED / 2) * COPIED + w % (COPIED / 2);
        words[0] = high;
        words[COPIED / 2] = low;
    }
}

// What a block has copied.
struct Halves {
    unsigned left[HALVES_TILE][HALVES_PITCH];
    unsigned right[HALVES_TILE][HALVES_PITCH];
};
static_assert(2 * sizeof(Halves) == 16 * HALVES_PITCH * HALVES_TILE, "as `source.py` has it");

// Begins to copy the words from `word` on of the tokens from `first` on; tokens that the panel lacks are zero.
DEVICE void copy_halves(const unsigned* halves, int n_tokens, int token_words, int first, int word,
                        unsigned (&to)[HALVES_TILE][HALVES_PITCH]) {
    constexpr int AT_ONCE = PRODUCT_THREADS / (COPIED / 4);  // tokens
    const int token = threadIdx.x / (COPIED / 4), w = threadIdx.x % (COPIED / 4) * 4;
    const unsigned* const from = halves + static_cast<long long>(first + token) * token_words + HEADER + word + w;
#pragma unroll
    for (int t = 0; t < HALVES_TILE; t += AT_ONCE) {
        const bool lacks = first + token + t >= n_tokens;
        begin_copy(&to[token + t][w], lacks ? halves : from + t * token_words, lacks);
    }
}

// Adds the products of STEP channels to a warp's sums; `rows` and `columns` are its lane's first words of them.
DEVICE void add_step(const unsigned (*rows)[HALVES_PITCH], const unsigned (*columns)[HALVES_PITCH],
                     float (&total)[WARP_ROWS / 16][WARP_COLUMNS / 8][4]) {
    constexpr int LOW = COPIED / 2;  // words from a high half to its low one
    unsigned high[WARP_COLUMNS / 8][2], low[WARP_COLUMNS / 8][2];
#pragma unroll
    for (int j = 0; j < WARP_COLUMNS / 8; j++)
#pragma unroll
        for (int k = 0; k < 2; k++) {
            high[j][k] = columns[j * 8][k * 4];
            low[j][k] = columns[j * 8][LOW + k * 4];
        }
#pragma unroll
    for (int i = 0; i < WARP_ROWS / 16; i++) {
        unsigned row_high[4], row_low[4];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            row_high[k] = rows[i * 16 + k % 2 * 8][k / 2 * 4];
            row_low[k] = rows[i * 16 + k % 2 * 8][LOW + k / 2 * 4];
        }
#pragma unroll
        for (int j = 0; j < WARP_COLUMNS / 8; j++) {
            float sums[4] = {};
            add_products(sums, row_high, low[j]);
            add_products(sums, row_low, high[j]);
            add_products(sums, row_high, high[j]);
#pragma unroll
            for (int k = 0; k < 4; k++) total[i][j][k] += sums[k];
        }
    }
}

// Writes panel[i * n_right + j], as `multiply_panels` does, a block 128 x 128 affinities. While it multiplies the words
// of one half of its memory, the next ones arrive in the other.
KERNEL __launch_bounds__(PRODUCT_THREADS, 2)
multiply_halves(const unsigned* left, const unsigned* right, int n_left, int n_right, int n_channels, float* panel) {
    extern __shared__ __align__(16) unsigned char memory[];
    Halves* const copied = reinterpret_cast<Halves*>(memory);
    const int first_row = blockIdx.y * HALVES_TILE, first_column = blockIdx.x * HALVES_TILE;
    const int warp = threadIdx.x / LANES, y = threadIdx.x % LANES / 4, x = threadIdx.x % 4;
    const int warp_row = warp / (HALVES_TILE / WARP_COLUMNS) * WARP_ROWS;
    const int warp_column = warp % (HALVES_TILE / WARP_COLUMNS) * WARP_COLUMNS;
    const int n_words = words_of(n_channels);
    const auto copy = [&](int word) {
        Halves& to = copied[word / COPIED % 2];
        if (word < n_words) {
            copy_halves(left, n_left, HEADER + n_words, first_row, word, to.left);
            copy_halves(right, n_right, HEADER + n_words, first_column, word, to.right);
        }
        close_group();  // an empty one at the end, so that the last words are waited for as all others are
    };
    float total[WARP_ROWS / 16][WARP_COLUMNS / 8][4] = {};
    copy(0);
    for (int word = 0; word < n_words; word += COPIED) {
        copy(word + COPIED);
        await_copies<1>();
        __syncthreads();  // what other threads have copied is there, too
        const Halves& now = copied[word / COPIED % 2];
#pragma unroll 1  // both steps at once would need more registers than there are
        for (int w = x; w < COPIED / 2; w += STEP / 2) {
            const auto rows = [&](const unsigned(*of)[HALVES_PITCH], int first) {
                return reinterpret_cast<const unsigned(*)[HALVES_PITCH]>(&of[first + y][w]);
            };
            add_step(rows(now.left, warp_row), rows(now.right, warp_column), total);
        }
        __syncthreads();  // before words are copied over these
    }
    const auto unit_of = [&](const unsigned* from, int token) {
        return __int_as_float(from[static_cast<long long>(token) * (HEADER + n_words)]);
    };
    const int column = first_column + warp_column + 2 * x;
    float units[WARP_COLUMNS / 8][2];
#pragma unroll
    for (int j = 0; j < WARP_COLUMNS / 8; j++)
#pragma unroll
        for (int k = 0; k < 2; k++) units[j][k] = column + j * 8 < n_right ? unit_of(right, column + j * 8 + k) : 0.0f;
#pragma unroll
    for (int i = 0; i < WARP_ROWS / 8; i++) {
        const int row = first_row + warp_row + i * 8 + y;
        if (row >= n_left) return;
        const float unit = unit_of(left, row);
        float* const to = panel + static_cast<long long>(row) * n_right + column;
#pragma unroll
        for (int j = 0; j < WARP_COLUMNS / 8; j++) {
            const float(&sums)[4] = total[i / 2][j];
            const Pack<float, 2> two = {
                {sums[i % 2 * 2] * unit * units[j][0], sums[i % 2 * 2 + 1] * unit * units[j][1]}};
            if (column + j * 8 < n_right) store(to + j * 8, two);
        }
    }
}
