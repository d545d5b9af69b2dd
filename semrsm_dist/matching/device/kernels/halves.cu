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
constexpr int WARP_SIZE = 32;             // rows and columns of a warp: two pieces of 16 rows, four of 8 columns
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
    unsigned left[TILE_ROWS][HALVES_PITCH];
    unsigned right[TILE_COLUMNS][HALVES_PITCH];
};
static_assert(sizeof(Halves) == 4 * HALVES_PITCH * (TILE_ROWS + TILE_COLUMNS), "as `source.py` has it");

// Copies the words from `word` on of the tokens from `first` on; tokens that the panel lacks are zero.
template <int TOKENS>
DEVICE void copy_halves(const unsigned* halves, int n_tokens, int token_words, int first, int word,
                        unsigned (&to)[TOKENS][HALVES_PITCH]) {
    for (int part = threadIdx.x; part < TOKENS * COPIED / 4; part += PRODUCT_THREADS) {
        const int token = part / (COPIED / 4), w = part % (COPIED / 4) * 4;
        Pack<unsigned, 4> four = {};
        if (first + token < n_tokens)
            four = load<4>(halves + static_cast<long long>(first + token) * token_words + HEADER + word + w);
        store(&to[token][w], four);
    }
}

// Writes panel[i * n_right + j], as `multiply_panels` does: the same tiles, of which each warp has 32 x 32.
KERNEL __launch_bounds__(PRODUCT_THREADS)
multiply_halves(const unsigned* left, const unsigned* right, int n_left, int n_right, int n_channels, float* panel) {
    extern __shared__ __align__(16) unsigned char memory[];
    Halves& halves = *reinterpret_cast<Halves*>(memory);
    const int first_row = blockIdx.y * TILE_ROWS, first_column = blockIdx.x * TILE_COLUMNS;
    const int warp = threadIdx.x / LANES, y = threadIdx.x % LANES / 4, x = threadIdx.x % 4;
    const int warp_row = warp / (TILE_COLUMNS / WARP_SIZE) * WARP_SIZE;
    const int warp_column = warp % (TILE_COLUMNS / WARP_SIZE) * WARP_SIZE;
    const int n_words = words_of(n_channels);
    float total[2][4][4] = {};
    for (int word = 0; word < n_words; word += COPIED) {
        copy_halves(left, n_left, HEADER + n_words, first_row, word, halves.left);
        copy_halves(right, n_right, HEADER + n_words, first_column, word, halves.right);
        __syncthreads();
#pragma unroll
        for (int step = 0; step < COPIED / STEP; step++) {
            unsigned rows[2][2][4], columns[2][4][2];  // of high and low halves
#pragma unroll
            for (int low = 0; low < 2; low++) {
                const int w = low * COPIED / 2 + step * STEP / 2 + x;
#pragma unroll
                for (int i = 0; i < 2; i++)
#pragma unroll
                    for (int k = 0; k < 4; k++)
                        rows[low][i][k] = halves.left[warp_row + i * 16 + k % 2 * 8 + y][w + k / 2 * 4];
#pragma unroll
                for (int j = 0; j < 4; j++)
#pragma unroll
                    for (int k = 0; k < 2; k++)
                        columns[low][j][k] = halves.right[warp_column + j * 8 + y][w + k * 4];
            }
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    float sums[4] = {};
                    add_products(sums, rows[0][i], columns[1][j]);
                    add_products(sums, rows[1][i], columns[0][j]);
                    add_products(sums, rows[0][i], columns[0][j]);
#pragma unroll
                    for (int k = 0; k < 4; k++) total[i][j][k] += sums[k];
                }
        }
        __syncthreads();  // before the next words are copied over these
    }
    const auto unit_of = [&](const unsigned* from, int token) {
        return __int_as_float(from[static_cast<long long>(token) * (HEADER + n_words)]);
    };
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = first_row + warp_row + i * 8 + y;
        if (row >= n_left) continue;
        const float unit = unit_of(left, row);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int column = first_column + warp_column + j * 8 + 2 * x;
            if (column >= n_right) continue;
            const float(&sums)[4] = total[i / 2][j];
            const Pack<float, 2> two = {{sums[i % 2 * 2] * unit * unit_of(right, column),
                                         sums[i % 2 * 2 + 1] * unit * unit_of(right, column + 1)}};
            store(panel + static_cast<long long>(row) * n_right + column, two);
        }
    }
}
