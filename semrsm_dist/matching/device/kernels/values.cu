// The value of each permutation, and of the identity, from the representations as given, in float64.
//
// A warp takes a pair. A lane adds up every 32nd channel of a token, then tokens, then lanes are added: at most C / 32
// + S + 5 roundings in a chain. Both sums take their terms in the same order, so they are equal where the permutation
// changes nothing.

constexpr int VALUE_THREADS = 128;

DEVICE double sum_of_lanes(double x) {
    for (int distance = LANES / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(ALL, x, distance);
    return x;
}

// `left` and `right` are panels of (images, room, n_channels); a partner beyond an image's tokens is a zero token.
template <typename Real>
DEVICE void sum_values(const Real* left, const Real* right, int room, int n_channels, const Task* tasks, int n_tasks,
                       const unsigned short* permutations, int width, double* values) {
    const int lane = threadIdx.x % LANES;
    const int pair = (blockIdx.x * VALUE_THREADS + threadIdx.x) / LANES;
    if (pair >= n_tasks) return;
    const Task task = tasks[pair];
    const long long image = static_cast<long long>(room) * n_channels;
    const Real* z_i = left + task.row * image;
    const Real* z_j = right + task.column * image;
    const unsigned short* partners = permutations + static_cast<long long>(pair) * width;
    double identity = 0.0, matched = 0.0;
    for (int s = 0; s < task.n_tokens; s++) {
        const Real* token = z_i + static_cast<long long>(s) * n_channels;
        const Real* same = z_j + static_cast<long long>(s) * n_channels;
        const Real* partner = z_j + static_cast<long long>(partners[s]) * n_channels;
        double here = 0.0, there = 0.0;
        for (int c = lane; c < n_channels; c += LANES) {
            const double x = token[c];
            here = fma(x, static_cast<double>(same[c]), here);
            there = fma(x, static_cast<double>(partner[c]), there);
        }
        identity += here;
        matched += there;
    }
    identity = sum_of_lanes(identity);
    matched = sum_of_lanes(matched);
    if (lane == 0) {
        values[2 * pair] = identity;
        values[2 * pair + 1] = matched;
    }
}

KERNEL __launch_bounds__(VALUE_THREADS)
sum_values_of_float32(const float* left, const float* right, int room, int n_channels, const Task* tasks, int n_tasks,
                      const unsigned short* permutations, int width, double* values) {
    sum_values(left, right, room, n_channels, tasks, n_tasks, permutations, width, values);
}

KERNEL __launch_bounds__(VALUE_THREADS)
sum_values_of_float64(const double* left, const double* right, int room, int n_channels, const Task* tasks,
                      int n_tasks, const unsigned short* permutations, int width, double* values) {
    sum_values(left, right, room, n_channels, tasks, n_tasks, permutations, width, values);
}
