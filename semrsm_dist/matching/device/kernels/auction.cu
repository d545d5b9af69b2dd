// Nearly optimal permutations with prices that prove how near: the auction of `assignment/bidding.py`, a block a pair.
//
// The algorithm, its names and its constants are those of the CPU; read its description first. What differs:
//
// - Several rows bid at the same prices, AT_ONCE where as many wait. Of bids for one column the highest counts, of equal
//   ones the first. The others bid again.
// - A bid compares keys: the residual minus the rise, in units, shifted by BITS, plus the column. One maximum of
//   integers over the threads gives the best column with its worth; a second gives the runner-up.
// - The bound rounds every operation up, so that it needs no allowance for rounding.
//
// Set when compiling (see `forms.py`):
//
// - CAPACITY, the most tokens of an image, a power of two from 64 to 4096.
// - WARPS of a block. Together they look through a row for a bid, each at some of its columns. What passes over all rows
//   is shared out by rows. Whatever else there is to decide, each warp decides for itself, all alike, and the first one
//   writes it down.
// - SHARED_ROWS of the tile of residuals that are in shared memory.
//
// Nothing depends on timing: threads exchange values at barriers, and warps meet in one memory cell only by maxima of
// integers. Sums are of 32 parts, whatever WARPS is. So the same numbers come out again, in every form.

constexpr int THREADS = LANES * WARPS;
// Neighbouring columns that a lane loads at once where its warp looks through a row, and where its block does.
constexpr int LANE_COLUMNS = CAPACITY / LANES < 8 ? CAPACITY / LANES : 8;
constexpr int SCAN_COLUMNS = CAPACITY / THREADS < 8 ? CAPACITY / THREADS : 8;
static_assert(SCAN_COLUMNS >= 2, "with more warps, threads would have nothing to do");
template <int N> constexpr int BITS_OF = 1 + BITS_OF<N / 2>;
template <> constexpr int BITS_OF<1> = 0;
constexpr int BITS = BITS_OF<CAPACITY>;
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
    int bests[CAPACITY];             // of each row: the largest residual - rise when the rises were lowered; in `prove`,
                                     // the bits of a float
    int lowered[CAPACITY];           // rises, or prices as `in_order` has them
    unsigned short owners[CAPACITY];   // of each column, or FREE
    unsigned short waiting[CAPACITY];  // rows without a column, of which the last bid next
};

// What warps tell each other.
struct Exchange {
    int most[WARPS][AT_ONCE];  // of the columns of each warp: the largest keys for the rows that bid
    int next[WARPS][AT_ONCE];  // and the second largest
    int pair;
    int unused[3];
};

// The shared memory of a block; the shared rows of the tile follow.
struct Shared {
    Market market;
    Exchange exchange;
};
static_assert(sizeof(Shared) == 20 * CAPACITY + 32 * WARPS + 16, "as `source.py` has it");

// A pair and its memory, as every thread sees it.
struct Auction {
    Market& market;
    Exchange& exchange;
    short* shared_tile;     // residuals of the affinities, in rows of `width`: the first SHARED_ROWS
    short* tile;            // the others
    const float* affinity;  // in rows of `pitch`
    long long pitch;
    int width;              // columns of the tile: the tokens of an image in the panel, a multiple of 16
    int n;                  // rows and columns
    int thread;
    int lane;
    int warp;
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

// Until all threads are here, and see what the others have written.
DEVICE void meet() {
    if constexpr (WARPS == 1) {
        __syncwarp();
    } else {
        __syncthreads();
    }
}

DEVICE short* row_of_tile(const Auction& a, int row) {
    if constexpr (SHARED_ROWS == 0) {
        return a.tile + row * a.width;
    } else if constexpr (SHARED_ROWS == CAPACITY) {
        return a.shared_tile + row * a.width;
    } else {
        return row < SHARED_ROWS ? a.shared_tile + row * a.width : a.tile + (row - SHARED_ROWS) * a.width;
    }
}

// Floats as integers of the same order, of which the hardware finds maxima; and back.
DEVICE int in_order(float x) {
    const int bits = __float_as_int(x);
    return bits ^ ((bits >> 31) & 0x7fffffff);
}
DEVICE float out_of_order(int x) { return __int_as_float(x ^ ((x >> 31) & 0x7fffffff)); }

DEVICE float largest_of_lanes(float x) { return out_of_order(__reduce_max_sync(ALL, in_order(x))); }

// Raises a number in shared memory, which other warps may raise, too.
DEVICE void raise_to(int& number, int least) {
    if constexpr (WARPS == 1) {
        number = max(number, least);
    } else {
        atomicMax(&number, least);
    }
}

// Calls `visit` with the first of each COLUMNS columns that belong to a member of a team of so many.
template <int TEAM, int COLUMNS, typename Visit>
DEVICE void each_chunk_of(int member, int width, Visit visit) {
#pragma unroll
    for (int chunk = 0; chunk < CAPACITY / (TEAM * COLUMNS); chunk++) {
        const int first = (chunk * TEAM + member) * COLUMNS;
        if (first < width) visit(first);
    }
}

// The same for a lane and its LANE_COLUMNS, where each warp has rows of its own.
template <typename Visit>
DEVICE void each_chunk(const Auction& a, Visit visit) {
    each_chunk_of<LANES, LANE_COLUMNS>(a.lane, a.width, visit);
}

// Lets the rows of the lanes that want it wait, in the order of the lanes; first, all threads meet.
DEVICE void push(Auction& a, bool wanted, int row) {
    const unsigned who = __ballot_sync(ALL, wanted);
    meet();
    if (wanted && a.warp == 0) a.market.waiting[a.n_waiting + __popc(who & ((1u << a.lane) - 1))] = row;
    a.n_waiting += __popc(who);
}

// Begins with prices of zero and all rows without a column.
DEVICE void open_market(Auction& a) {
    for (int j = a.thread; j < CAPACITY; j += THREADS) {
        a.market.prices[j] = j < a.n ? 0.0f : infinity();
        a.market.keys[j] = j < a.n ? j : ABSENT;
        a.market.owners[j] = FREE;
        a.market.waiting[j] = j;
    }
    a.n_waiting = a.n;
    meet();
}

// Rounds what is left of the affinities at the present prices.
DEVICE void round_residuals(Auction& a) {
    const float per_unit = 1.0f / a.unit;
    for (int i = a.warp; i < a.n; i += WARPS) {
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
            store(row_of_tile(a, i) + first, rounded);
        });
        if (a.lane == 0) a.market.bests[i] = 0;
    }
    meet();
}

// Adds to the prices what they rose by since the residuals were rounded.
DEVICE void take_rises(Auction& a) {
    for (int j = a.thread; j < a.n; j += THREADS) {
        a.market.prices[j] = fmaf(rise_of(a, j), a.unit, a.market.prices[j]);  // rounded once in every form
        a.market.keys[j] = j;
    }
    meet();
}

// Takes their columns from rows that could do better by more than `kept` units.
DEVICE void release_rows(Auction& a, int kept) {
    for (int start = 0; start < a.n; start += LANES) {
        const int j = start + a.lane;
        const int i = j < a.n ? a.market.owners[j] : FREE;
        const bool leaves = i != FREE && row_of_tile(a, i)[j] - rise_of(a, j) < a.market.bests[i] - kept;
        push(a, leaves, i);
        if (leaves && a.warp == 0) a.market.owners[j] = FREE;
    }
    meet();
}

// The two largest keys of this thread's columns, for several rows.
template <int ROWS>
DEVICE void scan_rows(const Auction& a, const int (&rows)[ROWS], int (&most)[ROWS], int (&next)[ROWS]) {
#pragma unroll
    for (int k = 0; k < ROWS; k++) most[k] = next[k] = -0x7fffffff - 1;
    each_chunk_of<THREADS, SCAN_COLUMNS>(a.thread, a.width, [&](int first) {
        const auto key = load<SCAN_COLUMNS>(a.market.keys + first);
        Pack<short, SCAN_COLUMNS> residual[ROWS];
#pragma unroll
        for (int k = 0; k < ROWS; k++) residual[k] = load<SCAN_COLUMNS>(row_of_tile(a, rows[k]) + first);
#pragma unroll
        for (int k = 0; k < ROWS; k++)
#pragma unroll
            for (int e = 0; e < SCAN_COLUMNS; e++) {
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
    int row = 0, best = 0, second = 0;  // lane k of each warp makes the bid of row k
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
    if constexpr (WARPS > 1) {
        if (bids) {
            a.exchange.most[a.warp][a.lane] = best;
            a.exchange.next[a.warp][a.lane] = second;
        }
        meet();
        if (bids) {
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                if (w == a.warp) continue;
                const int first = a.exchange.most[w][a.lane];
                second = max(max(second, a.exchange.next[w][a.lane]), min(best, first));
                best = max(best, first);
            }
        }
    }
    const int column = best & (CAPACITY - 1), worth = best >> BITS;
    const int old_rise = rise_of(a, column);
    const int rise = old_rise + min(worth - (second >> BITS), MOST_LEAD) + eps;
    if (__any_sync(ALL, bids && (worth <= CLIPPED || worth + old_rise <= CLIPPED))) {
        meet();  // before any thread changes what others have yet to read
        return false;
    }
    bool wins = bids;
#pragma unroll
    for (int k = 0; k < ROWS; k++) {
        const int their_column = __shfl_sync(ALL, column, k), their_rise = __shfl_sync(ALL, rise, k);
        if (their_column == column && (their_rise > rise || (their_rise == rise && k < a.lane))) wins = false;
    }
    const int waits = wins ? market.owners[column] : row;
    a.n_waiting -= ROWS;
    a.n_bids += ROWS;
    push(a, bids && waits != FREE, waits);
    if (wins && a.warp == 0) {
        market.owners[column] = row;
        market.keys[column] = column - rise * CAPACITY;
    }
    meet();
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
    for (int j = a.thread; j < CAPACITY; j += THREADS) market.lowered[j] = ABSENT;
    meet();
    for (int i = a.warp; i < a.n; i += WARPS) {
        const short* row = row_of_tile(a, i);
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
            for (int e = 0; e < LANE_COLUMNS; e++) raise_to(market.lowered[first + e], residual.of[e] - best);
        });
    }
    meet();
    for (int j = a.thread; j < a.n; j += THREADS) market.keys[j] = j - market.lowered[j] * CAPACITY;
    meet();
}

// Lowers the prices to the smallest that prove the same bound, and returns it with the value of the permutation.
//
// With u_i = max_j (A_ij - p_j) and q_j = max_i (A_ij - u_i), both rounded up, A_ij <= u_i + q_j holds exactly for the
// affinities in the panel. So sum_i u_i + sum_j q_j, rounded up again, bounds the value of every permutation.
DEVICE Proof prove(Auction& a) {
    Market& market = a.market;
    for (int j = a.thread; j < CAPACITY; j += THREADS) market.lowered[j] = in_order(-infinity());
    meet();
    for (int i = a.warp; i < a.n; i += WARPS) {
        const float* row = a.affinity + i * a.pitch;
        float best = -infinity();
        each_chunk(a, [&](int first) {
            const auto affinity = load<LANE_COLUMNS>(row + first);
            const auto price = load<LANE_COLUMNS>(market.prices + first);
#pragma unroll
            for (int e = 0; e < LANE_COLUMNS; e++) best = fmaxf(best, __fsub_ru(affinity.of[e], price.of[e]));
        });
        best = largest_of_lanes(best);
        if (a.lane == 0) market.bests[i] = __float_as_int(best);
        each_chunk(a, [&](int first) {
            const auto affinity = load<LANE_COLUMNS>(row + first);
#pragma unroll
            for (int e = 0; e < LANE_COLUMNS; e++)
                raise_to(market.lowered[first + e], in_order(__fsub_ru(affinity.of[e], best)));
        });
    }
    meet();
    double bound = 0.0, value = 0.0;  // of this lane's rows and columns
    for (int j = a.lane; j < a.n; j += LANES) {
        const float price = out_of_order(market.lowered[j]);
        if (a.warp == 0) market.prices[j] = price;
        bound = __dadd_ru(__dadd_ru(bound, __int_as_float(market.bests[j])), price);
        value += a.affinity[market.owners[j] * a.pitch + j];
    }
    for (int distance = LANES / 2; distance > 0; distance /= 2) {
        bound = __dadd_ru(bound, __shfl_xor_sync(ALL, bound, distance));
        value += __shfl_xor_sync(ALL, value, distance);
    }
    meet();
    return {bound, value};
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

// Matches the pairs of `tasks`: block by block the next. Row s of an image goes with `permutations[s]`, the identity if
// the auction did not finish. `scratch` holds the rows of residuals of each block that are not shared.
KERNEL __launch_bounds__(THREADS)
match_pairs(const float* panel, long long pitch, int width, const Task* tasks, int n_tasks, short* scratch,
            int* next_task, unsigned short* permutations, Outcome* outcomes) {
    extern __shared__ __align__(16) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    short* shared_tile = reinterpret_cast<short*>(memory + sizeof(Shared));
    short* tile = scratch + static_cast<long long>(blockIdx.x) * max(width - SHARED_ROWS, 0) * width;
    const int thread = threadIdx.x;
    for (;;) {
        if (thread == 0) shared.exchange.pair = atomicAdd(next_task, 1);
        meet();
        const int pair = shared.exchange.pair;
        if (pair >= n_tasks) return;
        const Task task = tasks[pair];
        const float* affinity = panel + task.row * pitch * width + static_cast<long long>(task.column) * width;
        Auction a = {shared.market, shared.exchange, shared_tile, tile, affinity, pitch, width, task.n_tokens,
                     thread, thread % LANES, thread / LANES, 0, 0, 0.0f};
        Outcome outcome = {infinity(), 0, 0};
        if (task.target < infinity()) outcome = run_auction(a, task);
        unsigned short* permutation = permutations + static_cast<long long>(pair) * width;
        for (int j = thread; j < task.n_tokens; j += THREADS)
            permutation[outcome.finished ? shared.market.owners[j] : j] = j;
        if (thread == 0) outcomes[pair] = outcome;
        meet();  // before the memory serves the next pair
    }
}
