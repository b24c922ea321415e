/*
 * route: a Mixture-of-Depths layer's choice on a device, to the bits of runtime/route.c, simd/vector.c and
 * simd/select.c. SPDX-License-Identifier: MIT
 *
 * Three kernels: dots of rows and routers, a warp a row; scores, choice and the list of kept rows, by one block of
 * threads; and the multiplication of rows by their factors, a block a row.
 */
#include "simd/cuda/cuda.cuh"

#include <float.h>

/* ---- Dots -------------------------------------------------------------------------------- */

enum {
    DOT_SUMS = 8, /* partial sums of a dot: a warp's lanes are those of SQ_DOTS dots */
    DOT_ROWS = 4, /* targets of a block of threads, a warp each */
    DOT_THREADS = DOT_ROWS * SQ_WARP,
    DOT_PART = 1024, /* floats of a row in shared memory */
};
static_assert(DOT_SUMS * SQ_DOTS == SQ_WARP, "a lane a partial sum");

struct dots_args {
    const float *x, *routers[SQ_DOTS];
    uint32_t d, n_targets;
    const uint32_t *targets;
    sq_lag *lag;
    uint32_t layer, end;
    bool by_rms;
    float eps;
};

/* Of the targets that have none for this layer. */
static __global__ void __launch_bounds__(DOT_THREADS) take_dots(const dots_args args)
{
    /* Routers DOT_SUMS floats apart, so that the four groups of lanes read different banks. */
    __shared__ float x[DOT_ROWS][DOT_PART], y[SQ_DOTS][DOT_PART + DOT_SUMS];
    const uint32_t warp = threadIdx.x / SQ_WARP, lane = threadIdx.x % SQ_WARP;
    const uint32_t router = lane / DOT_SUMS, sum = lane % DOT_SUMS, target = blockIdx.x * DOT_ROWS + warp;
    const bool asked = target < args.n_targets && args.lag[target].scored <= args.layer;
    const float *const row = args.x + (asked ? (size_t)args.targets[target] * args.d : 0);
    float dot = 0.0f, square = 0.0f;

    const uint32_t d = __syncthreads_count(asked) ? args.d : 0;
    for (uint32_t d0 = 0; d0 < d; d0 += DOT_PART) {
        const uint32_t left = d - d0, n = left < DOT_PART ? left : (uint32_t)DOT_PART;
        SQ_UNROLL
        for (uint32_t j = 0; j < SQ_DOTS; j++)
            SQ_UNROLL_BY(4)
        for (uint32_t i = threadIdx.x; i < n; i += DOT_THREADS)
            y[j][i] = args.routers[j][d0 + i];
        SQ_UNROLL_BY(16)
        for (uint32_t i = lane; i < n; i += SQ_WARP)
            x[warp][i] = asked ? row[d0 + i] : 0.0f;
        __syncthreads();
        SQ_UNROLL_BY(8)
        for (uint32_t i = sum; i < n; i += DOT_SUMS) {
            const float v = x[warp][i];
            dot += v * y[router][i];
            square += v * v;
        }
        __syncthreads();
    }
    for (int apart = DOT_SUMS / 2; apart; apart /= 2) {
        dot += __shfl_xor_sync(SQ_ALL_LANES, dot, apart);
        square += __shfl_xor_sync(SQ_ALL_LANES, square, apart);
    }
    if (args.by_rms) dot *= 1.0f / sqrtf(square / (float)args.d + args.eps);
    if (asked && !sum) args.lag[target].dots[router] = dot;
    if (asked && !lane) args.lag[target].scored = args.end;
}

/* ---- Choice ------------------------------------------------------------------------------ */

enum {
    CHOICE_THREADS = 1024,
    CHOICE_WARPS = CHOICE_THREADS / SQ_WARP,
    LEAST_KEY = -2139095041, /* of -inf */
    INF_KEY = 0x7f800000,
};

/* What route() reads back. */
struct outcome {
    uint32_t n_kept, nan;
};

struct choice_args {
    sq_route route; /* without routers */
    outcome *result;
    uint32_t *kept;   /* [n] a second list, behind the result */
    int32_t *keys;    /* [n_targets] */
    uint32_t *chosen; /* [n_targets] 1 or 0 */
    uint32_t *fate;   /* [n] of rows: a target's index, or these */
};
static const uint32_t NO_TARGET = 0xffffffff, SKIPPED = 0xfffffffe;

/* Of simd/select.c: an integer of the same order; 0 for -0. */
SQ_DEVICE int32_t key_of(float z)
{
    const int32_t bits = (int32_t)sq_bits_of_float(z + 0.0f);
    return bits ^ (bits >> 31 & INT32_MAX);
}

SQ_DEVICE float squash(sq_norm_type type, float z)
{
    return type == SQ_NORM_TANH ? sq_tanh(z) : type == SQ_NORM_SIGMOID ? sq_sigmoid(z) : z;
}

/* weights = softmax(scores); `shared` holds CHOICE_WARPS + 1 floats. */
SQ_DEVICE void softmax(const float *z, float *p, uint32_t n, float *shared)
{
    const uint32_t t = threadIdx.x, lane = t % SQ_WARP;
    float top = -INFINITY;
    for (uint32_t i = t; i < n; i += CHOICE_THREADS)
        top = z[i] > top ? z[i] : top;
    top = sq_warp_max(top);
    if (!lane) shared[t / SQ_WARP] = top;
    __syncthreads();
    for (uint32_t i = 0; i < CHOICE_WARPS; i++)
        top = shared[i] > top ? shared[i] : top;
    for (uint32_t i = t; i < n; i += CHOICE_THREADS)
        p[i] = sq_exp(z[i] - top);
    __syncthreads();
    if (t < SQ_WARP) {
        float sum = 0.0f;
        for (uint32_t i = lane; i < n; i += SQ_WARP)
            sum += p[i];
        sum = sq_warp_sum(sum);
        if (!lane) shared[CHOICE_WARPS] = sum;
    }
    __syncthreads();
    for (uint32_t i = t; i < n; i += CHOICE_THREADS)
        p[i] /= shared[CHOICE_WARPS];
}

/* Scores, weights and keys. Returns the first NaN's index, or n_targets. */
SQ_DEVICE uint32_t weigh(const choice_args &args, float *shared)
{
    __shared__ uint32_t from_end; /* of the first NaN: n_targets - its index */
    const sq_route &r = args.route;
    if (!threadIdx.x) from_end = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < r.n_targets; i += CHOICE_THREADS) {
        const float z = r.lag[i].factor * r.lag[i].dots[r.layer % SQ_DOTS] + r.bias;
        const float rank = !r.competes ? z : !r.competes[i] ? INFINITY : z > FLT_MAX ? FLT_MAX : z;
        r.scores[i] = z;
        args.keys[i] = key_of(rank);
        if (z != z) atomicMax(&from_end, r.n_targets - i);
    }
    if (r.norm == SQ_NORM_SOFTMAX) softmax(r.scores, r.weights, r.n_targets, shared);
    for (uint32_t i = threadIdx.x; i < r.n_targets; i += CHOICE_THREADS) {
        const float w = r.norm == SQ_NORM_SOFTMAX ? r.weights[i] : squash(r.norm, r.scores[i]);
        r.weights[i] = r.norm_scale * w + r.norm_bias;
    }
    __syncthreads();
    return r.n_targets - from_end;
}

SQ_DEVICE uint32_t count_from(const int32_t *keys, uint32_t n, int32_t least)
{
    uint32_t count = 0;
    for (uint32_t i0 = 0; i0 < n; i0 += CHOICE_THREADS)
        count += __syncthreads_count(i0 + threadIdx.x < n && keys[i0 + threadIdx.x] >= least);
    return count;
}

/* threshold() of simd/select.c, by all threads alike. */
SQ_DEVICE int32_t threshold(const int32_t *keys, uint32_t n, uint32_t k, uint32_t *ties)
{
    int64_t low = LEAST_KEY, high = (int64_t)INF_KEY + 1; /* k keys or more are >= low, fewer are >= high */
    uint32_t above = 0;                                   /* keys >= high */
    *ties = n;
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        const uint32_t count = count_from(keys, n, (int32_t)middle);
        if (count == k) return (int32_t)middle;
        if (count > k) {
            low = middle;
        } else {
            high = middle;
            above = count;
        }
    }
    *ties = k - above;
    return (int32_t)low;
}

/* Of the block's threads that say yes: how many come before this one, and how many there are. */
SQ_DEVICE uint32_t yes_before(bool yes, uint32_t *all, uint32_t *shared)
{
    const uint32_t warp = threadIdx.x / SQ_WARP, lane = threadIdx.x % SQ_WARP;
    const uint32_t ballot = __ballot_sync(SQ_ALL_LANES, yes);
    uint32_t before = __popc(ballot & ((1u << lane) - 1));
    if (!lane) shared[warp] = __popc(ballot);
    __syncthreads();
    *all = 0;
    for (uint32_t i = 0; i < CHOICE_WARPS; i++) {
        before += i < warp ? shared[i] : 0;
        *all += shared[i];
    }
    __syncthreads();
    return before;
}

/* chosen[i]: of the k largest, lower index first on ties. */
SQ_DEVICE void choose_best(const choice_args &args, uint32_t *shared)
{
    const uint32_t n = args.route.n_targets, k = args.route.best;
    uint32_t ties = k ? n : 0, seen = 0;
    const int32_t least = k && k < n ? threshold(args.keys, n, k, &ties) : k ? LEAST_KEY : INT32_MAX;
    for (uint32_t i0 = 0; i0 < n; i0 += CHOICE_THREADS) {
        const uint32_t i = i0 + threadIdx.x;
        const int32_t key = i < n ? args.keys[i] : 0;
        uint32_t equal;
        const uint32_t before = seen + yes_before(i < n && key == least, &equal, shared);
        if (i < n) args.chosen[i] = key > least || (key == least && before < ties);
        seen += equal;
    }
}

SQ_DEVICE void choose_above(const choice_args &args)
{
    const sq_route &r = args.route;
    for (uint32_t i = threadIdx.x; i < r.n_targets; i += CHOICE_THREADS) {
        const double z = r.scores[i];
        args.chosen[i] = z > r.logit || (r.at_logit && z == r.logit);
    }
}

/* Lists the rows that stay. Returns how many. */
SQ_DEVICE uint32_t keep(const choice_args &args, uint32_t *shared)
{
    const sq_route &r = args.route;
    for (uint32_t row = threadIdx.x; row < r.n; row += CHOICE_THREADS)
        args.fate[row] = NO_TARGET;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < r.n_targets; i += CHOICE_THREADS) {
        args.fate[r.targets[i]] = args.chosen[i] ? i : SKIPPED;
        if (args.chosen[i])
            r.lag[i].scored = 0;
        else if (r.weigh_skipped)
            r.lag[i].factor *= r.weights[i];
    }
    __syncthreads();
    uint32_t m = 0;
    for (uint32_t row0 = 0; row0 < r.n; row0 += CHOICE_THREADS) {
        const uint32_t row = row0 + threadIdx.x, fate = row < r.n ? args.fate[row] : SKIPPED;
        uint32_t stay;
        const uint32_t at = m + yes_before(fate != SKIPPED, &stay, shared);
        if (fate != SKIPPED) {
            r.kept[at] = args.kept[at] = row;
            r.kept_weight[at] = fate == NO_TARGET ? 1.0f : r.weights[fate];
        }
        m += stay;
    }
    return m;
}

static __global__ void __launch_bounds__(CHOICE_THREADS) choose(const choice_args args)
{
    __shared__ uint32_t counts[CHOICE_WARPS];
    __shared__ float floats[CHOICE_WARPS + 1];
    const uint32_t n = args.route.n_targets, nan = weigh(args, floats);
    uint32_t n_kept = 0;
    if (nan < n) { /* for all threads alike */
        for (uint32_t i = threadIdx.x; i < n; i += CHOICE_THREADS)
            args.chosen[i] = 0;
    } else {
        if (args.route.by_threshold)
            choose_above(args);
        else
            choose_best(args, counts);
        __syncthreads();
        n_kept = keep(args, counts);
    }
    if (!threadIdx.x) *args.result = {n_kept, nan};
}

/* ---- Factors ----------------------------------------------------------------------------- */

enum { SETTLE_THREADS = 256 };

struct settle_args {
    float *x;
    uint32_t d;
    const uint32_t *targets;
    sq_lag *lag;
    const uint32_t *chosen; /* NULL: all targets */
    uint32_t first_row;
};

/* A row, which is a target's, by its factor. */
static __global__ void __launch_bounds__(SETTLE_THREADS) settle(const settle_args args)
{
    sq_lag *const lag = &args.lag[blockIdx.x];
    const uint32_t row = args.targets[blockIdx.x];
    const float factor = lag->factor;
    const bool due = row >= args.first_row && (!args.chosen || args.chosen[blockIdx.x]) && factor != 1.0f;
    float *const x = args.x + (size_t)row * args.d;
    for (uint32_t i = threadIdx.x; due && i < args.d; i += SETTLE_THREADS)
        x[i] *= factor;
    __syncthreads(); /* all have read the factor */
    if (due && !threadIdx.x) *lag = {1.0f, {0.0f, 0.0f, 0.0f, 0.0f}, 0};
}

static void settle_rows(sq_stream *s, const sq_route *r, const uint32_t *chosen, uint32_t first_row)
{
    const settle_args args = {r->x, r->d, r->targets, r->lag, chosen, first_row};
    if (r->n_targets) SQ_LAUNCH(s, settle, r->n_targets, SETTLE_THREADS, args);
}

/* ---- Verbs ------------------------------------------------------------------------------- */

static void score(sq_stream *s, const sq_route *r)
{
    dots_args args = {};
    args.x = r->x;
    args.d = r->d;
    args.n_targets = r->n_targets;
    args.targets = r->targets;
    args.lag = r->lag;
    args.layer = r->layer;
    args.end = r->end;
    args.by_rms = r->by_rms;
    args.eps = r->eps;
    for (uint32_t j = 0; j < SQ_DOTS; j++) {
        args.routers[j] = (const float *)sq_cuda_weights(s, r->routers[j], r->d * sizeof(float));
        if (!args.routers[j]) return;
    }
    if (r->n_targets) SQ_LAUNCH(s, take_dots, sq_ceil_div(r->n_targets, DOT_ROWS), DOT_THREADS, args);
}

uint32_t sq_cuda_route(sq_stream *s, const sq_route *r, uint32_t *kept, uint32_t *nan)
{
    struct {
        outcome result;
        uint32_t kept[4094];
    } back;
    const uint32_t room = sizeof back.kept / sizeof *back.kept, n_back = r->n < room ? r->n : room;
    const size_t words = sizeof(outcome) / sizeof(uint32_t) + 2 * (size_t)r->n + 2 * (size_t)r->n_targets;
    *nan = r->n_targets;
    score(s, r);
    uint8_t *const scratch = (uint8_t *)sq_cuda_scratch(s, SQ_SLOT_ROUTE, words * sizeof(uint32_t));
    if (!scratch) return 0;

    choice_args args = {};
    args.route = *r;
    memset(args.route.routers, 0, sizeof args.route.routers);
    args.result = (outcome *)scratch;
    args.kept = (uint32_t *)(args.result + 1);
    args.fate = args.kept + r->n;
    args.chosen = args.fate + r->n;
    args.keys = (int32_t *)(args.chosen + r->n_targets);
    SQ_LAUNCH(s, choose, 1, CHOICE_THREADS, args);
    settle_rows(s, r, args.chosen, 0);

    /* One trip back does for all but very long sequences. */
    sq_cuda_read(s, &back, scratch, sizeof back.result + n_back * sizeof *kept);
    if (s->failed) return 0;
    const uint32_t n = back.result.n_kept, n_here = n < room ? n : room;
    *nan = back.result.nan;
    memcpy(kept, back.kept, n_here * sizeof *kept);
    if (n > room) sq_cuda_read(s, kept + room, args.kept + room, (n - room) * sizeof *kept);
    return n;
}

void sq_cuda_settle(sq_stream *s, const sq_route *r, uint32_t first_row) { settle_rows(s, r, NULL, first_row); }
