// What the kernels share: the start of each program that is compiled (see `source.py`).

#define KERNEL extern "C" __global__ void
#define DEVICE __device__ __forceinline__

constexpr int LANES = 32;
constexpr unsigned ALL = 0xffffffffu;

// N neighbours in memory, which one or two instructions load.
template <typename T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
    T of[N];
};

template <int N, typename T>
DEVICE Pack<T, N> load(const T* from) {
    return *reinterpret_cast<const Pack<T, N>*>(from);
}

template <int N, typename T>
DEVICE void store(T* to, const Pack<T, N>& pack) {
    *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

// A pair of images, and what its auction is to reach. `certificate.py` derives size and target.
struct Task {
    int row;       // the place of either image in its panel
    int column;
    int n_tokens;  // of the larger image
    float size;    // product of the norms of the two centred, scaled images
    float target;  // gap to prove; infinite if the pair needs no auction
};

// What an auction found.
struct Outcome {
    double dual;   // no permutation has a larger sum of the affinities in the panel
    int finished;  // whether a gap within the target was proven
    int n_bids;
};

static_assert(sizeof(Task) == 20 && sizeof(Outcome) == 16, "as `source.py` has it");
