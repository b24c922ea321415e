/*
 * attention: sq_attend() and sq_store_kv() on a device, to the bits of simd/attention.c, whose order of additions these
 * kernels keep.
 * SPDX-License-Identifier: MIT
 *
 * Many queries: a block of 128 threads takes 16, 32 or 64 queries of a head and goes through the keys as the C code
 * does. Keys and values come as dense float32 into shared memory, 32 of them by 64 dimensions at a time. A warp has its
 * queries to itself from scores to outputs: lane 8 g + s has every fourth of them from g on, of keys every eighth from
 * s on, of outputs every eighth four from 4 s on, all in registers. So each number read from shared memory serves
 * several multiply-adds, and only weights pass from lane to lane.
 *
 * Few queries, those of a token that is made: all scores first, by as many blocks as there are keys for, with the
 * largest of each block of keys, which is all that one must know of those before it. Then a warp adds up 32 outputs,
 * key after key, as the order asks, while seven others fetch values and compute weights for it.
 */
#include "simd/cuda/cuda.cuh"

/* Four floats that are read and written at once. */
struct alignas(16) quad {
    float f[4];
};

/* One head of keys or values. */
struct head_rows {
    const void *x;
    size_t ld; /* units */
};

/* Element d of row j, of type sq_kv_type. */
template <int TYPE> SQ_DEVICE float element(const head_rows &rows, uint32_t j, uint32_t d)
{
    const size_t row = (size_t)j * rows.ld;
    if (TYPE == SQ_KV_F32) return ((const float *)rows.x)[row + d];
    if (TYPE == SQ_KV_F16) return sq_half_to_float(((const uint16_t *)rows.x)[row + d]);
    const sq_block_q8_0 *const b = (const sq_block_q8_0 *)rows.x + row + d / SQ_BLOCK;
    return sq_half_to_float(b->d) * (float)b->q[d % SQ_BLOCK];
}

SQ_DEVICE head_rows rows_of(const sq_heads &heads, const void *x, uint32_t head)
{
    const uint32_t kv = (uint32_t)((uint64_t)head * heads.n_kv_heads / heads.n_heads);
    return {(const uint8_t *)x + kv * heads.kv_head_bytes, heads.attn.ldkv};
}

/* sq_attn_limit(): keys that query i attends. */
SQ_DEVICE uint32_t attended(const sq_attn &a, uint32_t i)
{
    const uint64_t seen = (uint64_t)a.first_kv + i + 1;
    return a.causal && seen < a.n_kv ? (uint32_t)seen : a.n_kv;
}

/* exp(below), where below <= 0 is a score's distance to the largest */
SQ_DEVICE float weight(float below) { return below < SQ_ATTN_LEAST_SCORE ? 0.0f : sq_exp(below); }

SQ_DEVICE float larger(float x, float y) { return y > x ? y : x; }
SQ_DEVICE uint32_t at_most(uint32_t n, uint32_t limit) { return n < limit ? n : limit; }

/* ---- Many queries ------------------------------------------------------------------------ */

enum {
    LANES = 8, /* of a warp that share a query */
    THREADS = 128,
    KEYS = 32, /* of keys or values in shared memory, */
    DIMS = 64, /* and what of their rows */
    KEYS_LANE = KEYS / LANES,
    ROW_STEP = SQ_WARP / LANES, /* from one query of a lane to its next */
};

/* Where rows begin in the same bank of shared memory, lanes that read one column of successive rows would wait for each
 * other: columns change places within eight. `width` in quads. */
SQ_DEVICE uint32_t place(uint32_t row, uint32_t column, uint32_t width) { return row * width + (column ^ (row & 7)); }

struct many_args {
    sq_heads heads;
    uint32_t n; /* queries, from the first on */
};

/* stage[KEYS][DIMS]: rows from j0 to end - 1, and of each the elements from d0 on; zeros where there are none. */
template <int TYPE>
SQ_DEVICE void stage_rows(quad *stage, const head_rows &rows, uint32_t j0, uint32_t end, uint32_t d0, uint32_t head_dim)
{
    const uint32_t d = threadIdx.x % DIMS, key0 = threadIdx.x / DIMS;
    SQ_UNROLL
    for (uint32_t i = 0; i < KEYS * DIMS / THREADS; i++) {
        const uint32_t key = key0 + i * (THREADS / DIMS);
        const bool exists = j0 + key < end && d0 + d < head_dim;
        stage[place(key, d / 4, DIMS / 4)].f[d % 4] = exists ? element<TYPE>(rows, j0 + key, d0 + d) : 0.0f;
    }
}

/* By all threads, when all have read what was there; and then all may read it. */
SQ_DEVICE void restage(quad *stage, const sq_attn &a, const head_rows &rows, uint32_t j0, uint32_t end, uint32_t d0)
{
    __syncthreads();
    if (a.kv_type == SQ_KV_F32)
        stage_rows<SQ_KV_F32>(stage, rows, j0, end, d0, a.head_dim);
    else if (a.kv_type == SQ_KV_F16)
        stage_rows<SQ_KV_F16>(stage, rows, j0, end, d0, a.head_dim);
    else
        stage_rows<SQ_KV_Q8>(stage, rows, j0, end, d0, a.head_dim);
    __syncthreads();
}

/* z[r][..] += products of n quads of queries and keys. */
template <int ROWS, int DIM>
SQ_DEVICE void add_products(const quad *q, const quad *stage, uint32_t row0, uint32_t q0, uint32_t n,
                            float (*z)[KEYS_LANE])
{
    const uint32_t s = threadIdx.x % LANES;
    SQ_UNROLL_BY(1)
    for (uint32_t d = 0; d < n; d++) {
        quad x[ROWS], y[KEYS_LANE];
        SQ_UNROLL
        for (uint32_t r = 0; r < ROWS; r++)
            x[r] = q[place(row0 + ROW_STEP * r, q0 + d, DIM / 4)];
        SQ_UNROLL
        for (uint32_t c = 0; c < KEYS_LANE; c++)
            y[c] = stage[place(s + LANES * c, d, DIMS / 4)];
        SQ_UNROLL
        for (uint32_t i = 0; i < 4 * ROWS * KEYS_LANE; i++) {
            const uint32_t e = i / (ROWS * KEYS_LANE), r = i / KEYS_LANE % ROWS, c = i % KEYS_LANE;
            z[r][c] = fmaf(x[r].f[e], y[c].f[e], z[r][c]);
        }
    }
}

/* acc[r] += weights of row r, of which it attends the first n[r], times values: KEYS of them from key0 on. */
template <int ROWS, int BLOCK, bool ALL>
SQ_DEVICE void add_values(const quad *p, const quad *stage, uint32_t row0, uint32_t key0, const uint32_t *n,
                          quad (*acc)[2])
{
    const uint32_t s = threadIdx.x % LANES;
    SQ_UNROLL_BY(1)
    for (uint32_t j = 0; j < KEYS; j += 4) {
        quad w[ROWS];
        SQ_UNROLL
        for (uint32_t r = 0; r < ROWS; r++)
            w[r] = p[place(row0 + ROW_STEP * r, (key0 + j) / 4, BLOCK / 4)];
        SQ_UNROLL
        for (uint32_t e = 0; e < 4; e++) {
            const quad v[2] = {stage[place(j + e, s, DIMS / 4)], stage[place(j + e, s + LANES, DIMS / 4)]};
            SQ_UNROLL
            for (uint32_t i = 0; i < 8 * ROWS; i++) {
                const uint32_t r = i / 8, c = i / 4 % 2;
                float &sum = acc[r][c].f[i % 4];
                sum = ALL || key0 + j + e < n[r] ? fmaf(w[r].f[e], v[c].f[i % 4], sum) : sum;
            }
        }
    }
}

/* A row of weights of a block, its sum, and what earlier sums are worth now. n: keys that the row attends. */
template <int BLOCK>
SQ_DEVICE float weigh(const float *z, float scale, uint32_t n, uint32_t row, quad *p, float *most, float *sum)
{
    const uint32_t s = threadIdx.x % LANES;
    float y[BLOCK / LANES], top = *most;
    SQ_UNROLL
    for (uint32_t c = 0; c < BLOCK / LANES; c++) {
        y[c] = scale * (z[c] + 0.0f); /* the other 15 partial sums of the C code are 0 */
        if (s + LANES * c < n) top = larger(top, y[c]);
    }
    SQ_UNROLL
    for (int apart = LANES / 2; apart; apart /= 2)
        top = larger(top, __shfl_xor_sync(SQ_ALL_LANES, top, apart));

    float added[2] = {0.0f, 0.0f}; /* partial sums s and s + 8: key j adds to sum j % 16 */
    SQ_UNROLL
    for (uint32_t c = 0; c < BLOCK / LANES; c++) {
        const uint32_t key = s + LANES * c;
        const float w = key < n ? weight(y[c] - top) : 0.0f;
        added[c % 2] += w;
        p[place(row, key / 4, BLOCK / 4)].f[key % 4] = w;
    }
    float total = added[0] + added[1];
    SQ_UNROLL
    for (int apart = LANES / 2; apart; apart /= 2)
        total += __shfl_xor_sync(SQ_ALL_LANES, total, apart);

    const float shrink = n ? weight(*most - top) : 1.0f;
    *most = top;
    *sum = fmaf(*sum, shrink, total);
    return shrink;
}

/*
 * ROWS queries a lane, 16 * ROWS a block; heads of up to DIM dimensions; BLOCK keys between two looks at the maximum.
 * Shared memory: 48 KiB at most, with 4, 128 and 32.
 */
template <int ROWS, int DIM, int BLOCK> SQ_DEVICE void attend_many(const many_args &args)
{
    enum { QUERIES = 16 * ROWS, PARTS = DIM / DIMS, STAGES = BLOCK / KEYS };
    __shared__ quad q[QUERIES * DIM / 4], p[QUERIES * BLOCK / 4], stage[KEYS * DIMS / 4];
    const sq_attn &a = args.heads.attn;
    const uint32_t s = threadIdx.x % LANES;
    const uint32_t row0 = threadIdx.x / SQ_WARP * (ROW_STEP * ROWS) + threadIdx.x % SQ_WARP / LANES;
    /* Late queries see the most keys: they go first, so that no multiprocessor ends with the longest. */
    const uint32_t tiles = gridDim.x / args.heads.n_heads, head = blockIdx.x % args.heads.n_heads;
    const uint32_t i0 = (tiles - 1 - blockIdx.x / args.heads.n_heads) * QUERIES;
    const head_rows keys = rows_of(args.heads, a.k, head), values = rows_of(args.heads, a.v, head);
    const float *const queries = a.q + (size_t)head * a.head_dim;

    for (uint32_t t = threadIdx.x; t < QUERIES * DIM; t += THREADS) {
        const uint32_t row = t / DIM, d = t % DIM;
        const bool exists = i0 + row < args.n && d < a.head_dim;
        q[place(row, d / 4, DIM / 4)].f[d % 4] = exists ? queries[(i0 + row) * a.ldq + d] : 0.0f;
    }

    /* Rows past the last do as it does, and are not stored. */
    const uint32_t last = args.n - 1, end = attended(a, at_most(i0 + QUERIES - 1, last));
    uint32_t limit[ROWS];
    float most[ROWS], sum[ROWS];
    quad acc[PARTS][ROWS][2];
    SQ_UNROLL
    for (uint32_t r = 0; r < ROWS; r++) {
        const uint32_t i = i0 + row0 + ROW_STEP * r;
        limit[r] = attended(a, at_most(i, last));
        most[r] = -INFINITY;
        sum[r] = 0.0f;
        SQ_UNROLL
        for (uint32_t c = 0; c < PARTS * 8; c++)
            acc[c / 8][r][c / 4 % 2].f[c % 4] = 0.0f;
    }

    for (uint32_t j0 = 0; j0 < end; j0 += BLOCK) {
        float z[STAGES][ROWS][KEYS_LANE];
        SQ_UNROLL
        for (uint32_t h = 0; h < STAGES; h++) {
            SQ_UNROLL
            for (uint32_t i = 0; i < ROWS * KEYS_LANE; i++)
                z[h][i / KEYS_LANE][i % KEYS_LANE] = 0.0f;
            if (j0 + h * KEYS >= end) continue;
            SQ_UNROLL_BY(1)
            for (uint32_t d0 = 0; d0 < a.head_dim; d0 += DIMS) {
                restage(stage, a, keys, j0 + h * KEYS, end, d0);
                add_products<ROWS, DIM>(q, stage, row0, d0 / 4, (at_most(a.head_dim - d0, DIMS) + 3) / 4, z[h]);
            }
        }

        uint32_t n[ROWS]; /* keys of the block, and more if there are */
        SQ_UNROLL
        for (uint32_t r = 0; r < ROWS; r++) {
            float scores[BLOCK / LANES];
            SQ_UNROLL
            for (uint32_t c = 0; c < BLOCK / LANES; c++)
                scores[c] = z[c / KEYS_LANE][r][c % KEYS_LANE];
            n[r] = limit[r] > j0 ? limit[r] - j0 : 0;
            const float shrink = weigh<BLOCK>(scores, a.scale, n[r], row0 + ROW_STEP * r, p, &most[r], &sum[r]);
            SQ_UNROLL
            for (uint32_t c = 0; c < PARTS * 8; c++)
                acc[c / 8][r][c / 4 % 2].f[c % 4] *= shrink;
        }

        const bool all = j0 + BLOCK <= attended(a, i0);
        SQ_UNROLL
        for (uint32_t h = 0; h < STAGES; h++) {
            if (j0 + h * KEYS >= end) continue;
            SQ_UNROLL
            for (uint32_t part = 0; part < PARTS; part++) {
                if (part * DIMS >= a.head_dim) continue;
                restage(stage, a, values, j0 + h * KEYS, end, part * DIMS);
                if (all)
                    add_values<ROWS, BLOCK, true>(p, stage, row0, h * KEYS, n, acc[part]);
                else
                    add_values<ROWS, BLOCK, false>(p, stage, row0, h * KEYS, n, acc[part]);
            }
        }
    }

    SQ_UNROLL
    for (uint32_t r = 0; r < ROWS; r++) {
        const uint32_t i = i0 + row0 + ROW_STEP * r;
        float *const out = a.out + i * a.ldo + (size_t)head * a.head_dim;
        const float inverse = sum[r] > 0.0f ? 1.0f / sum[r] : 0.0f;
        SQ_UNROLL
        for (uint32_t c = 0; c < PARTS * 8; c++) {
            const uint32_t d = c / 8 * DIMS + c / 4 % 2 * (4 * LANES) + 4 * s + c % 4;
            if (i <= last && d < a.head_dim) out[d] = acc[c / 8][r][c / 4 % 2].f[c % 4] * inverse;
        }
    }
}

#define ATTEND(rows, dim, block)                                                                                       \
    static __global__ void __launch_bounds__(THREADS) attend_##rows##_##dim(const many_args args)                      \
    {                                                                                                                  \
        attend_many<rows, dim, block>(args);                                                                           \
    }
ATTEND(1, 64, 64)
ATTEND(2, 64, 64)
ATTEND(4, 64, 64)
ATTEND(1, 128, 32)
ATTEND(2, 128, 32)
ATTEND(4, 128, 32)
ATTEND(1, 256, 32)
ATTEND(2, 256, 32)

/* A block's queries: many, for what they share; but not so many that most multiprocessors have none. */
enum { NARROW = 64, WIDE = 1024 };

static void attend_to_many(sq_stream *s, const sq_heads *heads, uint32_t n)
{
    const many_args args = {*heads, n};
    const uint32_t head_dim = heads->attn.head_dim, rows = n <= NARROW ? 1 : n < WIDE || head_dim > 128 ? 2 : 4;
    const uint32_t grid = sq_ceil_div(n, 16 * rows) * heads->n_heads;
    if (head_dim <= 64 && rows == 1)
        SQ_LAUNCH(s, attend_1_64, grid, THREADS, args);
    else if (head_dim <= 64 && rows == 2)
        SQ_LAUNCH(s, attend_2_64, grid, THREADS, args);
    else if (head_dim <= 64)
        SQ_LAUNCH(s, attend_4_64, grid, THREADS, args);
    else if (head_dim <= 128 && rows == 1)
        SQ_LAUNCH(s, attend_1_128, grid, THREADS, args);
    else if (head_dim <= 128 && rows == 2)
        SQ_LAUNCH(s, attend_2_128, grid, THREADS, args);
    else if (head_dim <= 128)
        SQ_LAUNCH(s, attend_4_128, grid, THREADS, args);
    else if (rows == 1)
        SQ_LAUNCH(s, attend_1_256, grid, THREADS, args);
    else
        SQ_LAUNCH(s, attend_2_256, grid, THREADS, args);
}

/* ---- Few queries ------------------------------------------------------------------------- */

enum {
    FEW_THREADS = 256,
    FEW_WARPS = FEW_THREADS / SQ_WARP,
    CHUNK = 128,    /* keys that a block of threads has at a time, a multiple of attention's blocks */
    DOT_LANES = 16, /* that share a score: its partial sums */
    DOT_KEYS = CHUNK / (FEW_THREADS / DOT_LANES),
    SLICE = SQ_WARP, /* outputs of a block of threads */
    SUM_WARP = FEW_WARPS - 1,
};

struct few_args {
    sq_heads heads;
    uint32_t i0;             /* the first query */
    uint32_t block;          /* sq_attn_block() */
    uint32_t chunks, slices; /* of keys, of outputs */
    float *scores;           /* [n][n_heads][n_kv] */
    float *tops;             /* [n][n_heads][chunks][CHUNK / block] the largest of each block */
};

/* What a block of threads is about, of gridDim.x = n * n_heads * parts. */
struct few_part {
    uint32_t part, head, i;
    uint32_t limit;
    float *scores, *tops;
};

SQ_DEVICE few_part few_part_of(const few_args &args, uint32_t parts)
{
    const uint32_t which = blockIdx.x / parts, head = which % args.heads.n_heads;
    const uint32_t i = args.i0 + which / args.heads.n_heads;
    return {blockIdx.x % parts,
            head,
            i,
            attended(args.heads.attn, i),
            args.scores + (size_t)which * args.heads.attn.n_kv,
            args.tops + (size_t)which * args.chunks * (CHUNK / args.block)};
}

/* The scores of keys j[u], in partial sum threadIdx.x % 16. */
template <int TYPE, int STEPS>
SQ_DEVICE void partial_dots(const head_rows &keys, const float *q, uint32_t head_dim, const uint32_t *j, float *sum)
{
    const uint32_t lane = threadIdx.x % DOT_LANES;
    SQ_UNROLL
    for (uint32_t t = 0; t < STEPS; t++) {
        const uint32_t d = lane + DOT_LANES * t;
        SQ_UNROLL
        for (uint32_t u = 0; u < DOT_KEYS; u++)
            if (d < head_dim) sum[u] = fmaf(q[t], element<TYPE>(keys, j[u], d), sum[u]);
    }
}

/* Heads of up to 16 * STEPS dimensions. */
template <int STEPS> SQ_DEVICE void score_few(const few_args &args)
{
    __shared__ float score[CHUNK];
    const sq_attn &a = args.heads.attn;
    const few_part part = few_part_of(args, args.chunks);
    const head_rows keys = rows_of(args.heads, a.k, part.head);
    const float *const from = a.q + part.i * a.ldq + (size_t)part.head * a.head_dim;
    const uint32_t lane = threadIdx.x % DOT_LANES, first = part.part * CHUNK;
    const uint32_t n = part.limit > first ? at_most(part.limit - first, CHUNK) : 0;

    if (n) { /* for all threads of the block alike */
        float q[STEPS], sum[DOT_KEYS];
        uint32_t j[DOT_KEYS];
        SQ_UNROLL
        for (uint32_t t = 0; t < STEPS; t++)
            q[t] = lane + DOT_LANES * t < a.head_dim ? from[lane + DOT_LANES * t] : 0.0f;
        SQ_UNROLL
        for (uint32_t u = 0; u < DOT_KEYS; u++) {
            const uint32_t key = threadIdx.x / DOT_LANES + u * (FEW_THREADS / DOT_LANES);
            j[u] = first + at_most(key, n - 1);
            sum[u] = 0.0f;
        }
        if (a.kv_type == SQ_KV_F32)
            partial_dots<SQ_KV_F32, STEPS>(keys, q, a.head_dim, j, sum);
        else if (a.kv_type == SQ_KV_F16)
            partial_dots<SQ_KV_F16, STEPS>(keys, q, a.head_dim, j, sum);
        else
            partial_dots<SQ_KV_Q8, STEPS>(keys, q, a.head_dim, j, sum);
        SQ_UNROLL
        for (uint32_t u = 0; u < DOT_KEYS; u++) {
            float total = sum[u];
            for (int apart = DOT_LANES / 2; apart; apart /= 2)
                total += __shfl_xor_sync(SQ_ALL_LANES, total, apart);
            if (!lane) score[threadIdx.x / DOT_LANES + u * (FEW_THREADS / DOT_LANES)] = a.scale * total;
        }
    }
    __syncthreads();
    if (threadIdx.x < n) part.scores[first + threadIdx.x] = score[threadIdx.x];

    const uint32_t warp = threadIdx.x / SQ_WARP;
    float top = -INFINITY;
    for (uint32_t key = threadIdx.x % SQ_WARP; warp < CHUNK / args.block && key < args.block; key += SQ_WARP)
        if (warp * args.block + key < n) top = larger(top, score[warp * args.block + key]);
    top = sq_warp_max(top);
    if (warp < CHUNK / args.block && threadIdx.x % SQ_WARP == 0)
        part.tops[part.part * (CHUNK / args.block) + warp] = top;
}

static __global__ void __launch_bounds__(FEW_THREADS) score_few_64(const few_args args) { score_few<4>(args); }
static __global__ void __launch_bounds__(FEW_THREADS) score_few_128(const few_args args) { score_few<8>(args); }
static __global__ void __launch_bounds__(FEW_THREADS) score_few_256(const few_args args) { score_few<16>(args); }

/* What is known of a chunk before its values are added up. */
struct chunk {
    quad p[CHUNK / 4];
    float shrink[CHUNK / 32];
    float v[CHUNK][SLICE];
};

/* Values of a chunk of n keys, by all warps but the first. */
template <int TYPE>
SQ_DEVICE void fetch_values(chunk *c, const head_rows &values, uint32_t first, uint32_t n, uint32_t d,
                            uint32_t head_dim)
{
    enum { FETCHERS = FEW_WARPS - 1, EACH = (CHUNK + FETCHERS - 1) / FETCHERS };
    const uint32_t lane = threadIdx.x % SQ_WARP, warp = threadIdx.x / SQ_WARP - 1;
    SQ_UNROLL
    for (uint32_t i = 0; i < EACH; i++) {
        const uint32_t key = warp + i * FETCHERS;
        if (key < n && d < head_dim) c->v[key][lane] = element<TYPE>(values, first + key, d);
    }
}

/* The same warps make the weights of chunk number `at`; `most` is the largest score before it, and then after it. */
SQ_DEVICE void prepare(chunk *c, const few_args &args, const few_part &part, uint32_t at, float *most)
{
    const sq_attn &a = args.heads.attn;
    const head_rows values = rows_of(args.heads, a.v, part.head);
    const uint32_t first = at * CHUNK, n = at_most(part.limit - first, CHUNK);
    const uint32_t d = part.part * SLICE + threadIdx.x % SQ_WARP, blocks = CHUNK / args.block;
    const uint32_t key = threadIdx.x - SQ_WARP; /* of threads that have a weight to make */
    const float score = key < n ? part.scores[first + key] : 0.0f;
    if (a.kv_type == SQ_KV_F32)
        fetch_values<SQ_KV_F32>(c, values, first, n, d, a.head_dim);
    else if (a.kv_type == SQ_KV_F16)
        fetch_values<SQ_KV_F16>(c, values, first, n, d, a.head_dim);
    else
        fetch_values<SQ_KV_Q8>(c, values, first, n, d, a.head_dim);
    for (uint32_t b = 0; b < blocks; b++) {
        const float top = larger(*most, part.tops[at * blocks + b]);
        if (key < n && key / args.block == b) {
            ((float *)c->p)[key] = weight(score - top);
            if (key % args.block == 0) c->shrink[b] = weight(*most - top);
        }
        *most = top;
    }
}

/* sum += weights of a chunk of n keys, by one warp; all its lanes get it. */
SQ_DEVICE float add_weights(const chunk *c, uint32_t block, uint32_t n, float sum)
{
    const float *const p = (const float *)c->p;
    for (uint32_t b = 0; b * block < n; b++) {
        const uint32_t end = at_most((b + 1) * block, n);
        float total = 0.0f;
        for (uint32_t key = b * block + threadIdx.x % DOT_LANES; key < end; key += DOT_LANES)
            total += p[key];
        for (int apart = DOT_LANES / 2; apart; apart /= 2)
            total += __shfl_xor_sync(SQ_ALL_LANES, total, apart);
        sum = fmaf(sum, c->shrink[b], total);
    }
    return sum;
}

/* acc += weights times values of a chunk of n keys; an output a lane of one warp. */
SQ_DEVICE float add_chunk(const chunk *c, uint32_t block, uint32_t n, float acc)
{
    const uint32_t lane = threadIdx.x % SQ_WARP;
    for (uint32_t b = 0; b * block < n; b++) {
        const uint32_t end = at_most((b + 1) * block, n);
        uint32_t key = b * block;
        acc *= c->shrink[b];
        SQ_UNROLL_BY(4)
        for (; key + 4 <= end; key += 4) {
            const quad w = c->p[key / 4];
            SQ_UNROLL
            for (uint32_t e = 0; e < 4; e++)
                acc = fmaf(w.f[e], c->v[key + e][lane], acc);
        }
        for (; key < end; key++)
            acc = fmaf(((const float *)c->p)[key], c->v[key][lane], acc);
    }
    return acc;
}

static __global__ void __launch_bounds__(FEW_THREADS) value_few(const few_args args)
{
    __shared__ chunk chunks[2];
    __shared__ float sum_of_weights;
    const few_part part = few_part_of(args, args.slices);
    const uint32_t warp = threadIdx.x / SQ_WARP, n = (part.limit + CHUNK - 1) / CHUNK;
    float most = -INFINITY, sum = 0.0f, acc = 0.0f;

    if (warp && n) prepare(&chunks[0], args, part, 0, &most);
    __syncthreads();
    for (uint32_t at = 0; at < n; at++) {
        const chunk *const now = &chunks[at % 2];
        const uint32_t keys = at_most(part.limit - at * CHUNK, CHUNK);
        if (!warp) acc = add_chunk(now, args.block, keys, acc);
        if (warp && at + 1 < n) prepare(&chunks[(at + 1) % 2], args, part, at + 1, &most);
        if (warp == SUM_WARP) sum = add_weights(now, args.block, keys, sum);
        __syncthreads();
    }
    if (threadIdx.x == SUM_WARP * SQ_WARP) sum_of_weights = sum;
    __syncthreads();

    const sq_attn &a = args.heads.attn;
    const uint32_t d = part.part * SLICE + threadIdx.x;
    const float total = sum_of_weights, inverse = total > 0.0f ? 1.0f / total : 0.0f;
    if (!warp && d < a.head_dim) a.out[part.i * a.ldo + (size_t)part.head * a.head_dim + d] = acc * inverse;
}

/* Queries i0 to i0 + n - 1. */
static void attend_to_few(sq_stream *s, const sq_heads *heads, uint32_t i0, uint32_t n)
{
    const sq_attn *const a = &heads->attn;
    few_args args = {};
    args.heads = *heads;
    args.i0 = i0;
    args.block = sq_attn_block(a->head_dim);
    args.chunks = a->n_kv ? sq_ceil_div(a->n_kv, CHUNK) : 1;
    args.slices = sq_ceil_div(a->head_dim, SLICE);
    const size_t all = (size_t)n * heads->n_heads, tops = (size_t)args.chunks * (CHUNK / args.block);
    args.scores = (float *)sq_cuda_scratch(s, SQ_SLOT_ATTEND, all * (a->n_kv + tops) * sizeof(float));
    if (!args.scores) return;
    args.tops = args.scores + all * a->n_kv;
    const uint32_t grid = n * heads->n_heads * args.chunks;
    if (a->head_dim <= 64)
        SQ_LAUNCH(s, score_few_64, grid, FEW_THREADS, args);
    else if (a->head_dim <= 128)
        SQ_LAUNCH(s, score_few_128, grid, FEW_THREADS, args);
    else
        SQ_LAUNCH(s, score_few_256, grid, FEW_THREADS, args);
    SQ_LAUNCH(s, value_few, n * heads->n_heads * args.slices, FEW_THREADS, args);
}

void sq_cuda_attend(sq_stream *s, const sq_heads *heads)
{
    const uint32_t n = heads->attn.n_q, rows = sq_heads_rows(n);
    if (!n) return;
    assert(heads->attn.head_dim && heads->attn.head_dim <= 256);
    const uint32_t last = (n - 1) % rows + 1, few = last < SQ_ATTN_FEW ? last : 0;
    if (n > few) attend_to_many(s, heads, n - few);
    if (few) attend_to_few(s, heads, n - few, few);
}

/* ---- Storing keys and values ------------------------------------------------------------- */

struct store_args {
    sq_kv_store store;
    size_t row_bytes; /* of a row of the cache */
};

/* sq_rope() of one head, by a warp. */
SQ_DEVICE void rotate(float *x, const float *cos_sin, uint32_t head_dim, bool half)
{
    const uint32_t pairs = head_dim / 2, step = half ? 1 : 2, apart = half ? pairs : 1;
    for (uint32_t i = threadIdx.x % SQ_WARP; i < pairs; i += SQ_WARP) {
        float *const a = x + (size_t)i * step, *const b = a + apart;
        const float c = cos_sin[i], s = cos_sin[pairs + i], u = *a, v = *b;
        *a = u * c - v * s;
        *b = u * s + v * c;
    }
    __syncwarp();
}

/* sq_to_q8() of a block of n <= 32 elements, by a warp. */
SQ_DEVICE void store_q8(const float *x, uint32_t n, sq_block_q8_0 *to)
{
    const uint32_t lane = threadIdx.x % SQ_WARP;
    const float v = lane < n ? x[lane] : 0.0f;
    const float scale = sq_warp_max(larger(0.0f, fabsf(v))) / 127.0f; /* larger() takes no NaN */
    const uint16_t bits = sq_float_to_half(scale < 65504.0f ? scale : 65504.0f);
    const float d = sq_half_to_float(bits), inverse = d > 0.0f ? 1.0f / d : 0.0f;
    float y = v * inverse;
    y = y > -127.0f ? y : -127.0f;
    y = y < 127.0f ? y : 127.0f;
    to->q[lane] = lane < n ? (int8_t)lrintf(y) : 0;
    if (!lane) to->d = bits;
}

SQ_DEVICE void store_row(const float *x, uint32_t head_dim, sq_kv_type type, void *to)
{
    const uint32_t lane = threadIdx.x % SQ_WARP;
    if (type == SQ_KV_Q8) {
        for (uint32_t d = 0; d < head_dim; d += SQ_BLOCK)
            store_q8(x + d, at_most(head_dim - d, SQ_BLOCK), (sq_block_q8_0 *)to + d / SQ_BLOCK);
        return;
    }
    for (uint32_t d = lane; d < head_dim; d += SQ_WARP) {
        if (type == SQ_KV_F32)
            ((float *)to)[d] = x[d];
        else
            ((uint16_t *)to)[d] = sq_float_to_half(x[d]);
    }
}

/* A warp takes a head of a row: queries, then keys, then values. */
static __global__ void __launch_bounds__(THREADS) store_heads(const store_args args)
{
    const sq_kv_store &s = args.store;
    const uint32_t heads = s.n_heads + 2 * s.n_kv_heads;
    const size_t at = (size_t)blockIdx.x * (THREADS / SQ_WARP) + threadIdx.x / SQ_WARP;
    if (at < (size_t)s.m * heads) { /* for all lanes of a warp alike */
        const uint32_t i = (uint32_t)(at / heads), head = (uint32_t)(at % heads);
        const uint32_t row = s.rows ? s.rows[i] : s.first + i, position = s.position + (s.compressed ? i : row);
        float *const x = s.qkv + i * s.ld + (size_t)head * s.head_dim;
        const bool is_value = head >= s.n_heads + s.n_kv_heads;
        if (!is_value) rotate(x, s.rope + (size_t)position * s.head_dim, s.head_dim, s.rope_half);
        if (head >= s.n_heads) {
            const uint32_t kv = (head - s.n_heads) % s.n_kv_heads;
            const size_t entry = (size_t)kv * s.capacity + s.n + i;
            store_row(x, s.head_dim, s.kv_type, (uint8_t *)(is_value ? s.v : s.k) + entry * args.row_bytes);
        }
    }
}

void sq_cuda_store_kv(sq_stream *s, const sq_kv_store *store)
{
    const store_args args = {*store, sq_kv_units(store->kv_type, store->head_dim) * sq_kv_unit_bytes(store->kv_type)};
    const size_t heads = (size_t)store->m * (store->n_heads + 2 * store->n_kv_heads);
    if (heads) SQ_LAUNCH(s, store_heads, sq_ceil_div(heads, THREADS / SQ_WARP), THREADS, args);
}
