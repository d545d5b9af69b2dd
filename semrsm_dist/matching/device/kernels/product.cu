// The affinities of all pairs of tokens of two panels, in float32.
//
// Both panels are packed as for the CPU: the same channel of 16 tokens lies together,
// `packed[(group * n_channels + channel) * 16 + token]`. A block of 256 threads makes 128 x 64 affinities, each thread
// 8 x 4. Channels are summed in slices: a chain of at most SLICE fused multiply-adds, then one addition for the slice.
// That order is the same at every place, so the numbers depend on nothing but the two tokens, and the chain is short
// enough for a tight rounding bound (`rounding_of_product`).

constexpr int GROUP = 16;
constexpr int SLICE = 32;
constexpr int TILE_ROWS = 128, TILE_COLUMNS = 64, PRODUCT_THREADS = 256;
constexpr int THREAD_ROWS = 8, THREAD_COLUMNS = 4;

// One slice of both factors. A row is longer than its tokens so that storing it meets every bank of the memory once.
struct Slices {
    float left[SLICE][TILE_ROWS + GROUP];
    float right[SLICE][TILE_COLUMNS + GROUP];
};
static_assert(sizeof(Slices) == 4 * SLICE * (TILE_ROWS + TILE_COLUMNS + 2 * GROUP), "as `source.py` has it");

// Copies the slice from `channel` on of the tokens from `token` on; what the panel lacks is zero.
template <int TOKENS>
DEVICE void copy_slice(const float* packed, int n_tokens, int n_channels, int token, int channel,
                       float (&slice)[SLICE][TOKENS + GROUP]) {
    for (int part = threadIdx.x; part < SLICE * TOKENS / 4; part += PRODUCT_THREADS) {
        const int group = part / (SLICE * GROUP / 4);
        const int c = part / (GROUP / 4) % SLICE;
        const int t = group * GROUP + part % (GROUP / 4) * 4;
        Pack<float, 4> four = {};
        if (token + t < n_tokens && channel + c < n_channels) {
            const long long first = (token / GROUP + group) * static_cast<long long>(n_channels) + channel + c;
            four = load<4>(packed + first * GROUP + t % GROUP);
        }
        store(&slice[c][t], four);
    }
}

// Writes panel[i * n_right + j], the affinity of token i of `left` and j of `right`; both numbers are multiples of 16.
KERNEL __launch_bounds__(PRODUCT_THREADS)
multiply_panels(const float* left, const float* right, int n_left, int n_right, int n_channels, float* panel) {
    extern __shared__ __align__(16) unsigned char memory[];
    Slices& slices = *reinterpret_cast<Slices*>(memory);
    const int first_row = blockIdx.y * TILE_ROWS, first_column = blockIdx.x * TILE_COLUMNS;
    const int y = threadIdx.x / (TILE_COLUMNS / THREAD_COLUMNS) * THREAD_ROWS;
    const int x = threadIdx.x % (TILE_COLUMNS / THREAD_COLUMNS) * THREAD_COLUMNS;
    float total[THREAD_ROWS][THREAD_COLUMNS] = {};
    for (int channel = 0; channel < n_channels; channel += SLICE) {
        copy_slice<TILE_ROWS>(left, n_left, n_channels, first_row, channel, slices.left);
        copy_slice<TILE_COLUMNS>(right, n_right, n_channels, first_column, channel, slices.right);
        __syncthreads();
        float sum[THREAD_ROWS][THREAD_COLUMNS] = {};
#pragma unroll 8
        for (int c = 0; c < SLICE; c++) {
            const Pack<float, 4> a = load<4>(&slices.left[c][y]), more = load<4>(&slices.left[c][y + 4]);
            const Pack<float, 4> b = load<4>(&slices.right[c][x]);
#pragma unroll
            for (int i = 0; i < THREAD_ROWS; i++)
#pragma unroll
                for (int j = 0; j < THREAD_COLUMNS; j++)
                    sum[i][j] = fmaf(i < 4 ? a.of[i] : more.of[i - 4], b.of[j], sum[i][j]);
        }
#pragma unroll
        for (int i = 0; i < THREAD_ROWS; i++)
#pragma unroll
            for (int j = 0; j < THREAD_COLUMNS; j++) total[i][j] += sum[i][j];
        __syncthreads();  // before the next slice is copied over this one
    }
#pragma unroll
    for (int i = 0; i < THREAD_ROWS; i++) {
        const int row = first_row + y + i, column = first_column + x;
        if (row < n_left && column < n_right) {
            const Pack<float, 4> four = {{total[i][0], total[i][1], total[i][2], total[i][3]}};
            store(panel + static_cast<long long>(row) * n_right + column, four);
        }
    }
}
