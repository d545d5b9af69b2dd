// Nearly optimal permutations with prices that prove how near: the auction of `assignment/bidding.py`, a warp a pair.
//
// The algorithm, its names and its constants are those of the CPU; read its description first. What differs:
//
// - Several rows bid at the same prices, AT_ONCE where as many wait. Of bids for one column the highest counts, of equal
//   ones the first. The others bid again.
// - A bid compares keys: the residual minus the rise, in units, shifted by BITS, plus the column. One maximum of
//   integers over the lanes gives the best column with its worth; a second gives the runner-up.
// - The bound rounds every operation up, so that it needs no allowance for rounding.
//
// Nothing depends on timing: the lanes of a warp exchange values, and each pair has a warp to itself. So the same
// numbers come out again, whichever warp takes a pair.

constexpr int LANE_COLUMNS = CAPACITY / LANES < 8 ? CAPACITY / LANES : 8;  // neighbours, which a lane loads at once
constexpr int CHUNKS = CAPACITY / (LANES * LANE_COLUMNS);
template <int N> constexpr int BITS_OF = 1 + BITS_OF<N / 2>;
template <> constexpr int BITS_OF<1> = 0;
constexpr int BITS = BITS_OF<CAPACITY>;
constexpr bool TILE_IS_SHARED = CAPACITY <= 64;  // the residuals of a pair, which are in global memory otherwise
constexpr int AT_ONCE = 4;

constexpr unsigned short FREE = 0xffff;  // no row
constexpr int CLIPPED = -32767;          // the smallest residual
constexpr int MOST_LEAD = 1 << 13;       // units by which a bid can exceed eps; every smaller rise is a good bid too
constexpr int ABSENT = -(1 << 30);       // the key of a column that the pair lacks, below all others

constexpr int BIDS_PER_TOKEN = 400;      // more, and it is a price war
constexpr float FIRST_GAP = 0.1f;        // S eps of the first phase, relative to the norms
constexpr float MOST_SHRINK = 14.0f;     // of eps, from one phase to the next
constexpr float EXPECTED_GAP = 0.3f;     // proven gap of a finished phase, relative to S eps
constexpr float RETRY_SHRINK = 2.0f;     // where it was more
constexpr float LEAST_RETRY = 1e-3f;     // of the eps that should have sufficed
constexpr float FEWEST_UNITS = 4.0f, MOST_UNITS = 64.0f;  // units of an eps

// Keys stay above ABSENT and fit into 32 bits: a row bids only where residual - rise > CLIPPED, so no rise exceeds
// -CLIPPED + MOST_LEAD + MOST_UNITS, and no residual lies below CLIPPED.
static_assert((2ll * CLIPPED - MOST_LEAD - 64) * CAPACITY > ABSENT, "keys of columns that exist must be larger");

// The state of an auction, in shared memory.
struct Market {
    float prices[CAPACITY];          // of the columns, at which residuals were rounded; infinite where there is none
    int keys[CAPACITY];              // column - rise * CAPACITY, with the rise since then in units
    int bests[CAPACITY];             // of each row: the largest residual - rise when the rises were lowered
    union {
        int rise;
        float price;
    } lowered[CAPACITY];
    unsigned short owners[CAPACITY];   // of each column, or FREE
    unsigned short waiting[CAPACITY];  // rows without a column, of which the last bid next
};
static_assert(sizeof(Market) == 20 * CAPACITY, "as `source.py` has it");

// A pair and its memory, as every lane sees it.
struct Auction {
    Market& market;
    short* tile;            // residuals of the affinities, in rows of `width`
    const float* affinity;  // in rows of `pitch`
    long long pitch;
    int width;              // columns of the tile: the tokens of an image in the panel, a multiple of 16
    int n;                  // rows and columns
    int lane;
    int n_waiting;
    int n_bids;
    float unit;             // of the residuals; 0 if nothing is rounded yet
};

struct Proof {
    double bound;
    double value;
};

DEVICE float infinity() { return __int_as_float(0x7f800000); }

DEVICE int rise_of(const Auction& a, int column) { return (column - a.market.keys[column]) >> BITS; }

// The largest float of all lanes: as integers of the same order, of which the hardware finds the maximum.
DEVICE float largest_of_lanes(float x) {
    const int bits = __float_as_int(x);
    const int most = __reduce_max_sync(ALL, bits ^ ((bits >> 31) & 0x7fffffff));
    return __int_as_float(most ^ ((most >> 31) & 0x7fffffff));
}

// Calls `visit` with the first of each LANE_COLUMNS columns that belong to this lane.
template <typename Visit>
DEVICE void each_chunk(const Auction& a, Visit visit) {
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
        const int first = (chunk * LANES + a.lane) * LANE_COLUMNS;
        if (first < a.width) visit(first);
    }
}

// Lets the rows of the lanes that want it wait, in the order of the lanes.
DEVICE void push(Auction& a, bool wanted, int row) {
    const unsigned who = __ballot_sync(ALL, wanted);
    if (wanted) a.market.waiting[a.n_waiting + __popc(who & ((1u << a.lane) - 1))] = row;
    a.n_waiting += __popc(who);
    __syncwarp();
}

// Begins with prices of zero and all rows without a column.
DEVICE void open_market(Auction& a) {
    for (int j = a.lane; j < CAPACITY; j += LANES) {
        a.market.prices[j] = j < a.n ? 0.0f : infinity();
        a.market.keys[j] = j < a.n ? j : ABSENT;
        a.market.owners[j] = FREE;
        a.market.waiting[j] = j;
    }
    a.n_waiting = a.n;
    __syncwarp();
}

// Rounds what is left of the affinities at the present prices.
DEVICE void round_residuals(Auction& a) {
    const float per_unit = 1.0f / a.unit;
    for (int i = 0; i < a.n; i++) {
        const float* row = a.affinity + i * a.pitch;
        float best = -infinity();
        each_chunk(a, [&](int first) {
            const auto affinity = load<LANE_COLUMNS>(row + first);
            const auto price = load<LANE_COLUMNS>(a.market.prices + first);
#pragma unroll
            for (int e = 0; e < LANE_COLUMNS; e++) best = fmaxf(best, affinity.of[e] - price.of[e]);
        });
        best = largest_of_lanes(best);
        each_chunk(a, [&](int first) {
            const auto affinity = load<LANE_COLUMNS>(row + first);
            const auto price = load<LANE_COLUMNS>(a.market.prices + first);
            Pack<short, LANE_COLUMNS> rounded;
#pragma unroll
            for (int e = 0; e < LANE_COLUMNS; e++) {
                const float units = (affinity.of[e] - price.of[e] - best) * per_unit;
                rounded.of[e] = static_cast<short>(__float2int_rn(fmaxf(units, CLIPPED)));
            }
            store(a.tile + i * a.width + first, rounded);
        });
        if (a.lane == 0) a.market.bests[i] = 0;
    }
    __syncwarp();
}

// Adds to the prices what they rose by since the residuals were rounded.
DEVICE void take_rises(Auction& a) {
    for (int j = a.lane; j < a.n; j += LANES) {
        a.market.prices[j] += rise_of(a, j) * a.unit;
        a.market.keys[j] = j;
    }
    __syncwarp();
}

// Takes their columns from rows that could do better by more than `kept` units.
DEVICE void release_rows(Auction& a, int kept) {
    for (int start = 0; start < a.n; start += LANES) {
        const int j = start + a.lane;
        const int i = j < a.n ? a.market.owners[j] : FREE;
        const bool leaves = i != FREE && a.tile[i * a.width + j] - rise_of(a, j) < a.market.bests[i] - kept;
        if (leaves) a.market.owners[j] = FREE;
        push(a, leaves, i);
    }
}

// The two largest keys of this lane's columns, for several rows.
template <int ROWS>
DEVICE void scan_rows(const Auction& a, const int (&rows)[ROWS], int (&most)[ROWS], int (&next)[ROWS]) {
#pragma unroll
    for (int k = 0; k < ROWS; k++) most[k] = next[k] = -0x7fffffff - 1;
    each_chunk(a, [&](int first) {
        const auto key = load<LANE_COLUMNS>(a.market.keys + first);
        Pack<short, LANE_COLUMNS> residual[ROWS];
#pragma unroll
        for (int k = 0; k < ROWS; k++) residual[k] = load<LANE_COLUMNS>(a.tile + rows[k] * a.width + first);
#pragma unroll
        for (int k = 0; k < ROWS; k++)
#pragma unroll
            for (int e = 0; e < LANE_COLUMNS; e++) {
                const int found = residual[k].of[e] * CAPACITY + key.of[e];
                next[k] = max(next[k], min(most[k], found));
                most[k] = max(most[k], found);
            }
    });
}

// Lets the last ROWS rows that wait bid. Returns false, with nothing done, if a residual that matters is clipped.
template <int ROWS>
DEVICE bool bid(Auction& a, int eps) {
    Market& market = a.market;
    int rows[ROWS], most[ROWS], next[ROWS];
#pragma unroll
    for (int k = 0; k < ROWS; k++) rows[k] = market.waiting[a.n_waiting - 1 - k];
    scan_rows(a, rows, most, next);
    int row = 0, best = 0, second = 0;  // lane k makes the bid of row k
#pragma unroll
    for (int k = 0; k < ROWS; k++) {
        const int first = __reduce_max_sync(ALL, most[k]);
        const int other = __reduce_max_sync(ALL, most[k] == first ? next[k] : most[k]);
        if (a.lane == k) {
            row = rows[k];
            best = first;
            second = other;
        }
    }
    const bool bids = a.lane < ROWS;
    const int column = best & (CAPACITY - 1), worth = best >> BITS;
    const int old_rise = rise_of(a, column);
    const int rise = old_rise + min(worth - (second >> BITS), MOST_LEAD) + eps;
    if (__any_sync(ALL, bids && (worth <= CLIPPED || worth + old_rise <= CLIPPED))) return false;
    bool wins = bids;
#pragma unroll
    for (int k = 0; k < ROWS; k++) {
        const int their_column = __shfl_sync(ALL, column, k), their_rise = __shfl_sync(ALL, rise, k);
        if (their_column == column && (their_rise > rise || (their_rise == rise && k < a.lane))) wins = false;
    }
    __syncwarp();  // all have read what is now written
    int waits = row;
    if (wins) {
        waits = market.owners[column];
        market.owners[column] = row;
        market.keys[column] = column - rise * CAPACITY;
    }
    a.n_waiting -= ROWS;
    a.n_bids += ROWS;
    push(a, bids && waits != FREE, waits);
    return true;
}

// Lets rows bid until every one holds a column; returns false if the bids allowed were not enough.
DEVICE bool run_phase(Auction& a, int eps) {
    while (a.n_waiting > 0) {
        if (a.n_bids > BIDS_PER_TOKEN * a.n) return false;
        const bool done = a.n_waiting >= AT_ONCE ? bid<AT_ONCE>(a, eps) : bid<1>(a, eps);
        if (!done) {  // 16 bits do not reach further; at new residuals, every row's best is 0
            take_rises(a);
            round_residuals(a);
            a.n_bids++;  // so that this ends whatever happens
        }
    }
    return true;
}

// Lowers the rises as far as they prove the same: `prove` in units.
DEVICE void lower_rises(Auction& a) {
    Market& market = a.market;
    for (int j = a.lane; j < CAPACITY; j += LANES) market.lowered[j].rise = ABSENT;
    __syncwarp();
    for (int i = 0; i < a.n; i++) {
        const short* row = a.tile + i * a.width;
        int most = -0x7fffffff - 1;
        each_chunk(a, [&](int first) {
            const auto residual = load<LANE_COLUMNS>(row + first);
            const auto key = load<LANE_COLUMNS>(market.keys + first);
#pragma unroll
            for (int e = 0; e < LANE_COLUMNS; e++) most = max(most, residual.of[e] * CAPACITY + key.of[e]);
        });
        const int best = __reduce_max_sync(ALL, most) >> BITS;
        if (a.lane == 0) market.bests[i] = best;
        each_chunk(a, [&](int first) {
            const auto residual = load<LANE_COLUMNS>(row + first);
#pragma unroll
            for (int e = 0; e < LANE_COLUMNS; e++) {
                int& rise = market.lowered[first + e].rise;
                rise = max(rise, residual.of[e] - best);
            }
        });
    }
    __syncwarp();
    for (int j = a.lane; j < a.n; j += LANES) market.keys[j] = j - market.lowered[j].rise * CAPACITY;
    __syncwarp();
}

// Lowers the prices to the smallest that prove the same bound, and returns it with the value of the permutation.
//
// With u_i = max_j (A_ij - p_j) and q_j = max_i (A_ij - u_i), both rounded up, A_ij <= u_i + q_j holds exactly for the
// affinities in the panel. So sum_i u_i + sum_j q_j, rounded up again, bounds the value of every permutation.
DEVICE Proof prove(Auction& a) {
    Market& market = a.market;
    for (int j = a.lane; j < CAPACITY; j += LANES) market.lowered[j].price = -infinity();
    __syncwarp();
    double bound = 0.0;  // the same in every lane
    for (int i = 0; i < a.n; i++) {
        const float* row = a.affinity + i * a.pitch;
        float best = -infinity();
        each_chunk(a, [&](int first) {
            const auto affinity = load<LANE_COLUMNS>(row + first);
            const auto price = load<LANE_COLUMNS>(market.prices + first);
#pragma unroll
            for (int e = 0; e < LANE_COLUMNS; e++) best = fmaxf(best, __fsub_ru(affinity.of[e], price.of[e]));
        });
        best = largest_of_lanes(best);
        bound = __dadd_ru(bound, best);
        each_chunk(a, [&](int first) {
            const auto affinity = load<LANE_COLUMNS>(row + first);
#pragma unroll
            for (int e = 0; e < LANE_COLUMNS; e++) {
                float& price = market.lowered[first + e].price;
                price = fmaxf(price, __fsub_ru(affinity.of[e], best));
            }
        });
    }
    __syncwarp();
    double prices = 0.0, value = 0.0;  // of this lane's columns
    for (int j = a.lane; j < a.n; j += LANES) {
        const float price = market.lowered[j].price;
        market.prices[j] = price;
        prices = __dadd_ru(prices, price);
        value += a.affinity[market.owners[j] * a.pitch + j];
    }
    for (int distance = LANES / 2; distance > 0; distance /= 2) {
        prices = __dadd_ru(prices, __shfl_xor_sync(ALL, prices, distance));
        value += __shfl_xor_sync(ALL, value, distance);
    }
    __syncwarp();
    return {__dadd_ru(bound, prices), value};
}

// Runs phases of shrinking eps until the gap is within the task's target. Returns whether it is, and the last bound.
DEVICE Outcome run_auction(Auction& a, const Task& task) {
    const float last = task.target / EXPECTED_GAP;
    float gap = fmaxf(FIRST_GAP * task.size, last);
    const float n_steps = ceilf(logf(gap / last) / logf(MOST_SHRINK));
    const float shrink = n_steps > 0.0f ? powf(gap / last, 1.0f / n_steps) : RETRY_SHRINK;
    float kept = 0.5f;  // rows whose column is at most this share of eps worse than the best need not bid again
    double bound = infinity();
    open_market(a);
    for (bool first = true;; first = false) {
        const float eps = gap / a.n;
        if (a.unit == 0.0f || eps < FEWEST_UNITS * a.unit) {
            take_rises(a);
            a.unit = fmaxf(eps / MOST_UNITS, fminf(eps, last / a.n) / FEWEST_UNITS);
            round_residuals(a);
        }
        const int steps = max(1, __float2int_rn(eps / a.unit));
        if (!first) {
            release_rows(a, static_cast<int>(kept * steps));
            if (a.n_waiting == 0 && kept == 0.0f) break;  // optimal up to rounding: float32 cannot prove more
        }
        if (!run_phase(a, steps)) break;
        if (gap > 1.01f * last) {
            lower_rises(a);
            gap = fmaxf(gap / shrink, last);
            continue;
        }
        take_rises(a);
        const Proof proof = prove(a);
        bound = proof.bound;
        if (bound - proof.value <= task.target) return {bound, 1, a.n_bids};
        gap /= RETRY_SHRINK;
        if (gap < LEAST_RETRY * last) break;
        a.unit = 0.0f;  // round anew, at the lowered prices
        kept = 0.0f;
    }
    return {bound, 0, a.n_bids};
}

// Matches the pairs of `tasks`: block by block the next, a warp each. Row s of an image goes with `permutations[s]`,
// the identity if the auction did not finish. `scratch` holds width * width residuals a block unless they are shared.
KERNEL __launch_bounds__(LANES)
match_pairs(const float* panel, long long pitch, int width, const Task* tasks, int n_tasks, short* scratch,
            int* next_task, unsigned short* permutations, Outcome* outcomes) {
    extern __shared__ __align__(16) unsigned char memory[];
    Market& market = *reinterpret_cast<Market*>(memory);
    short* tile = TILE_IS_SHARED ? reinterpret_cast<short*>(memory + sizeof(Market))
                                 : scratch + static_cast<long long>(blockIdx.x) * width * width;
    const int lane = threadIdx.x;
    for (;;) {
        int pair = lane == 0 ? atomicAdd(next_task, 1) : 0;
        pair = __shfl_sync(ALL, pair, 0);
        if (pair >= n_tasks) return;
        const Task task = tasks[pair];
        const float* affinity = panel + task.row * pitch * width + static_cast<long long>(task.column) * width;
        Auction a = {market, tile, affinity, pitch, width, task.n_tokens, lane, 0, 0, 0.0f};
        Outcome outcome = {infinity(), 0, 0};
        if (task.target < infinity()) outcome = run_auction(a, task);
        unsigned short* permutation = permutations + static_cast<long long>(pair) * width;
        for (int j = lane; j < task.n_tokens; j += LANES)
            permutation[outcome.finished ? market.owners[j] : j] = j;
        if (lane == 0) outcomes[pair] = outcome;
        __syncwarp();  // before the market serves the next pair
    }
}
