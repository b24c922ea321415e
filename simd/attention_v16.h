/*
 * attention_v16: one head over blocks of keys; attention.c defines the results, and these are its bits.
 * SPDX-License-Identifier: MIT
 *
 * Many queries: keys and values of a block are made dense float32, keys transposed, for up to 192 queries at a time:
 *
 *   kt   [block / STRIP][head_dim][STRIP]   keys, so that STRIP scores grow side by side
 *   vd   [n][width]                         values; width: head_dim up to STRIP
 *   q    [head_dim][ld]                     queries
 *   out  [n][width]                         what is summed up so far, not yet divided
 *
 * Where queries and outputs come from and go to, their rows lie a multiple of 4 KiB apart, all in one set of L1. Scores
 * and outputs are then small matrix products with tiles of ROWS queries by STRIP keys or outputs; the scores of a tile
 * go through a small buffer.
 *
 * Few queries: keys and values are read once, as they lie.
 *
 * Who includes this has defined v16 (x86/v16_avx2.h), ROWS, COLS, the vectors of a tile's row, and
 *
 *   multiply(x, x_step, x_row, y, ldy, n, acc, rows, cols)
 *       acc[r] += x[i * x_step + r * x_row] * y[i * ldy .. + 16 * cols - 1], i < n; x_row is 1 or x_step is
 */
#include "simd/exp_v16.h"
#include "simd/internal.h"

enum {
    QUERIES = 192,
    MOST_DIM = 256,
    MOST_KEYS = 64,
    DENSE = 32 * MOST_DIM, /* floats of kt and of vd */
    PACKED = 96 * 128      /* and of q and of out: fewer queries at a time when heads are wide */
};

/* A block of n keys from j0. */
typedef struct block {
    const sq_attn *a;
    uint32_t j0, n, width;
    float kt[DENSE] __attribute__((aligned(64))), vd[DENSE] __attribute__((aligned(64)));
} block;

/* n queries of a call from query i0, and what is known of their softmax. */
typedef struct queries {
    uint32_t i0, n, ld;
    float max[QUERIES], sum[QUERIES]; /* of exp(score - max) */
    float q[PACKED] __attribute__((aligned(64))), out[PACKED] __attribute__((aligned(64)));
} queries;

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* weight() of attention.c; NaN stays NaN. */
SQ_INLINE v16 weight16(v16 below)
{
    const v16 least = v_all(SQ_ATTN_LEAST_SCORE);
    return v_if_less(below, least, v_all(0.0f), v_exp_within(v_max(least, below)));
}

SQ_INLINE float weight1(float below) { return below < SQ_ATTN_LEAST_SCORE ? 0.0f : sq_exp(below); }

/* ---- A block ----------------------------------------------------------------------------- */

/* Row j of keys or values. */
SQ_INLINE const void *kv_row(const sq_attn *a, const void *x, uint32_t j, sq_kv_type type)
{
    return (const uint8_t *)x + j * a->ldkv * sq_kv_unit_bytes(type);
}

/* Elements d .. d + 15 of a row of blocks, d a multiple of 16. */
SQ_INLINE v16 load_q8(const sq_block_q8_0 *row, uint32_t d)
{
    const sq_block_q8_0 *b = row + d / SQ_BLOCK;
    return v_mul(v_all_f16(b->d), v_load_i8(b->q + d % SQ_BLOCK));
}

/* Elements d .. d + 15 of a row, of which n exist; the others are 0. */
SQ_INLINE v16 load_kv(const void *row, uint32_t d, uint32_t n, sq_kv_type type)
{
    if (type == SQ_KV_F32) return v_load_first((const float *)row + d, n);
    if (type == SQ_KV_Q8) return load_q8(row, d);
    const uint16_t *from = (const uint16_t *)row + d;
    if (n >= 16) return v_load_f16(from);
    uint16_t half[16] = {0};
    memcpy(half, from, n * sizeof *half);
    return v_load_f16(half);
}

SQ_INLINE void fill_keys(block *b, sq_kv_type type)
{
    const sq_attn *a = b->a;
    for (uint32_t j = 0; j < sq_round_up(b->n, STRIP); j += 16) {
        float *strip = b->kt + (size_t)(j / STRIP) * a->head_dim * STRIP + j % STRIP;
        for (uint32_t d = 0; d < a->head_dim; d += 16) {
            v16 r[16];
            for (uint32_t i = 0; i < 16; i++) {
                const void *row = kv_row(a, a->k, b->j0 + (j + i < b->n ? j + i : 0), type);
                r[i] = j + i < b->n ? load_kv(row, d, a->head_dim - d, type) : v_all(0.0f);
            }
            v_transpose(r);
            for (uint32_t i = 0; i < 16 && d + i < a->head_dim; i++)
                v_store(strip + (size_t)(d + i) * STRIP, r[i]);
        }
    }
}

SQ_INLINE void fill_values(block *b, sq_kv_type type)
{
    const uint32_t head_dim = b->a->head_dim;
    for (uint32_t j = 0; j < b->n; j++) {
        const void *row = kv_row(b->a, b->a->v, b->j0 + j, type);
        for (uint32_t d = 0; d < b->width; d += 16) {
            const bool any = d < head_dim; /* left-over denormals would be slow */
            v_store(b->vd + (size_t)j * b->width + d, any ? load_kv(row, d, head_dim - d, type) : v_all(0.0f));
        }
    }
}

static void fill(block *b)
{
    switch (b->a->kv_type) {
    case SQ_KV_F32:
        fill_keys(b, SQ_KV_F32);
        fill_values(b, SQ_KV_F32);
        break;
    case SQ_KV_F16:
        fill_keys(b, SQ_KV_F16);
        fill_values(b, SQ_KV_F16);
        break;
    case SQ_KV_Q8:
        fill_keys(b, SQ_KV_Q8);
        fill_values(b, SQ_KV_Q8);
        break;
    }
}

/* ---- A tile: up to ROWS queries and a block of keys -------------------------------------- */

/* Scores of keys j .. j + 16 * cols - 1 of the block. */
SQ_INLINE void score_strip(const block *b, uint32_t j, const float *q, uint32_t ldq, float s[][MOST_KEYS],
                           uint32_t rows, uint32_t cols)
{
    const v16 scale = v_all(b->a->scale);
    v16 acc[ROWS][COLS];
    SQ_UNROLL
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t c = 0; c < cols; c++)
            acc[r][c] = v_all(0.0f);
    }
    multiply(q, ldq, 1, b->kt + (size_t)j * b->a->head_dim, STRIP, b->a->head_dim, acc, rows, cols);
    SQ_UNROLL
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t c = 0; c < cols; c++)
            v_store(s[r] + j + 16 * c, v_mul(scale, acc[r][c]));
    }
}

SQ_INLINE void scores(const block *b, uint32_t n_keys, const float *q, uint32_t ldq, float s[][MOST_KEYS],
                      uint32_t rows)
{
    uint32_t j = 0;
    for (; j + 16 < n_keys; j += STRIP)
        score_strip(b, j, q, ldq, s, rows, COLS);
    if (j < n_keys) score_strip(b, j, q, ldq, s, rows, 1); /* as of 577 keys, CLIP's, the last */
}

/* Scores of keys that the row does not attend become -inf; n is a multiple of 16. Returns the largest of each lane. */
SQ_INLINE v16 hide_and_max(float *s, uint32_t n, int64_t attended)
{
    const v16 hidden = v_all(-INFINITY);
    v16 max = hidden;
    for (uint32_t j = 0; j < n; j += 16) {
        v16 v = v_load(s + j);
        if (attended < j + 16) {
            v = v_first(v, attended - j, hidden);
            v_store(s + j, v);
        }
        max = v_max(v, max);
    }
    return max;
}

/* s = weight(s - max), n a multiple of 16; returns the sums of the lanes. */
SQ_INLINE v16 weigh(float *s, uint32_t n, float max)
{
    const v16 most = v_all(max);
    v16 sum = v_all(0.0f);
    for (uint32_t j = 0; j < n; j += 16) {
        const v16 e = weight16(v_sub(v_load(s + j), most));
        v_store(s + j, e);
        sum = v_add(sum, e);
    }
    return sum;
}

/* Scores of queries t .. t + rows - 1 of the call to weights; shrink[r]: what their earlier sums are worth now. */
static void softmax(const block *b, uint32_t n_keys, queries *q, uint32_t t, uint32_t rows, float s[][MOST_KEYS],
                    float shrink[16])
{
    const uint32_t n = sq_round_up(n_keys, 16);
    float most[16], sum[16];
    v16 lanes[4];
    for (uint32_t r = 0; r < rows; r += 4) {
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t row = min_u32(r + i, rows - 1);
            const int64_t attended = (int64_t)sq_attn_limit(b->a, q->i0 + t + row) - b->j0;
            lanes[i] = hide_and_max(s[row], n, attended < n_keys ? attended : n_keys);
        }
        v_mosts(lanes[0], lanes[1], lanes[2], lanes[3], most + r);
    }
    const v16 before = v_load_first(q->max + t, rows);
    const v16 max = v_max(v_load_first(most, rows), before);
    const v16 by = weight16(v_sub(before, max));
    v_store_first(q->max + t, rows, max);
    v_store(shrink, by);
    for (uint32_t r = 0; r < rows; r += 4) {
        for (uint32_t i = 0; i < 4; i++)
            lanes[i] = r + i < rows ? weigh(s[r + i], n, q->max[t + r + i]) : v_all(0.0f);
        v_sums(lanes[0], lanes[1], lanes[2], lanes[3], sum + r);
    }
    v_store_first(q->sum + t, rows, v_fma(v_load_first(q->sum + t, rows), by, v_load_first(sum, rows)));
}

/* out = out * shrink + weights * values; rows past the last query have room, and numbers that nobody reads. */
SQ_INLINE void add_values(const block *b, uint32_t n_keys, float *out, float s[][MOST_KEYS], const float *shrink,
                          uint32_t rows)
{
    for (uint32_t d = 0; d < b->width; d += STRIP) {
        v16 acc[ROWS][COLS];
        SQ_UNROLL
        for (uint32_t r = 0; r < rows; r++) {
            for (uint32_t c = 0; c < COLS; c++)
                acc[r][c] = v_mul(v_load(out + (size_t)r * b->width + d + 16 * c), v_all(shrink[r]));
        }
        multiply(s[0], 1, MOST_KEYS, b->vd + d, b->width, n_keys, acc, rows, COLS);
        SQ_UNROLL
        for (uint32_t r = 0; r < rows; r++) {
            for (uint32_t c = 0; c < COLS; c++)
                v_store(out + (size_t)r * b->width + d + 16 * c, acc[r][c]);
        }
    }
}

/* Queries t .. t + n - 1 of the call, n <= rows; the last of them attends a key of the block. */
SQ_INLINE void run_tile(const block *b, queries *q, uint32_t t, uint32_t n, uint32_t rows)
{
    float s[ROWS][MOST_KEYS] __attribute__((aligned(64))), shrink[16] __attribute__((aligned(64)));
    const uint32_t n_keys = min_u32(b->n, sq_attn_limit(b->a, q->i0 + t + n - 1) - b->j0);
    scores(b, n_keys, q->q + t, q->ld, s, rows);
    softmax(b, n_keys, q, t, n, s, shrink);
    add_values(b, n_keys, q->out + (size_t)t * b->width, s, shrink, rows);
}

typedef void tile_fn(const block *b, queries *q, uint32_t t, uint32_t n);

#define TILE(rows)                                                                                                     \
    static void tile_##rows(const block *b, queries *q, uint32_t t, uint32_t n) { run_tile(b, q, t, n, rows); }

/* The smallest tile that holds n queries; who includes this defines it, from TILE()s. */
static tile_fn *tile_for(uint32_t n);

/* ---- Many queries ------------------------------------------------------------------------ */

/* Queries side by side; those past n, up to a multiple of 16, are zero. */
static void start(const sq_attn *a, queries *q, uint32_t width)
{
    memset(q->out, 0, (size_t)sq_round_up(q->n, 16) * width * sizeof *q->out);
    for (uint32_t t = 0; t < q->n; t += 16) {
        for (uint32_t d = 0; d < a->head_dim; d += 16) {
            v16 r[16];
            for (uint32_t i = 0; i < 16; i++) {
                const float *row = a->q + (q->i0 + (t + i < q->n ? t + i : 0)) * a->ldq + d;
                r[i] = t + i < q->n ? v_load_first(row, (int64_t)a->head_dim - d) : v_all(0.0f);
            }
            v_transpose(r);
            for (uint32_t i = 0; i < 16 && d + i < a->head_dim; i++)
                v_store(q->q + (size_t)(d + i) * q->ld + t, r[i]);
        }
    }
    for (uint32_t t = 0; t < q->n; t++) {
        q->max[t] = -INFINITY;
        q->sum[t] = 0.0f;
    }
}

static void add_block(const block *b, queries *q)
{
    for (uint32_t t = 0; t < q->n; t += ROWS) {
        const uint32_t n = min_u32(ROWS, q->n - t);
        if (sq_attn_limit(b->a, q->i0 + t + n - 1) > b->j0) tile_for(n)(b, q, t, n);
    }
}

/* out = x / sum */
static void finish_row(const float *x, float *out, uint32_t n, float sum)
{
    const v16 inv = v_all(sum > 0.0f ? 1.0f / sum : 0.0f);
    for (uint32_t d = 0; d < n; d += 16)
        v_store_first(out + d, (int64_t)n - d, v_mul(v_load_first(x + d, (int64_t)n - d), inv));
}

static void many_queries(const sq_attn *a, uint32_t i0, uint32_t n, uint32_t ld)
{
    block b;
    queries q;
    const uint32_t limit = sq_attn_limit(a, i0 + n - 1), step = sq_attn_block(a->head_dim);
    b.a = a;
    b.width = sq_round_up(a->head_dim, STRIP);
    q.i0 = i0;
    q.n = n;
    q.ld = ld;
    start(a, &q, b.width);
    for (b.j0 = 0; b.j0 < limit; b.j0 += step) {
        b.n = min_u32(step, limit - b.j0);
        fill(&b);
        add_block(&b, &q);
    }
    for (uint32_t t = 0; t < n; t++)
        finish_row(q.out + (size_t)t * b.width, a->out + (i0 + t) * a->ldo, a->head_dim, q.sum[t]);
}

/* ---- Few queries ------------------------------------------------------------------------- */

enum { AT_ONCE = 4 }; /* keys, or vectors of outputs */

SQ_INLINE void add_products(const float *q, const void *const row[AT_ONCE], uint32_t d, uint32_t n, v16 acc[AT_ONCE],
                            sq_kv_type type)
{
    const v16 x = v_load_first(q + d, n);
    SQ_UNROLL
    for (uint32_t i = 0; i < AT_ONCE; i++)
        acc[i] = v_fma(x, load_kv(row[i], d, n, type), acc[i]);
}

/* Scores of 4 keys from j, of which n exist. */
SQ_INLINE void scores4(const sq_attn *a, const float *q, uint32_t j, uint32_t n, float *s, sq_kv_type type)
{
    const void *row[AT_ONCE];
    v16 acc[AT_ONCE];
    SQ_UNROLL
    for (uint32_t i = 0; i < AT_ONCE; i++) {
        row[i] = kv_row(a, a->k, j + (i < n ? i : 0), type);
        acc[i] = v_all(0.0f);
    }
    uint32_t d = 0;
    for (; d + 16 <= a->head_dim; d += 16)
        add_products(q, row, d, 16, acc, type);
    if (d < a->head_dim) add_products(q, row, d, a->head_dim - d, acc, type);
    v_sums(acc[0], acc[1], acc[2], acc[3], s);
    for (uint32_t i = 0; i < AT_ONCE; i++)
        s[i] *= a->scale;
}

/* out = out * shrink + p * values, for outputs d .. d + left - 1 in `vecs` vectors */
SQ_INLINE void add_values_1(const sq_attn *a, uint32_t d, uint32_t left, uint32_t vecs, uint32_t j0, uint32_t n,
                            const float *p, float shrink, float *out, sq_kv_type type)
{
    v16 acc[AT_ONCE];
    SQ_UNROLL
    for (uint32_t i = 0; i < vecs; i++)
        acc[i] = v_mul(v_load_first(out + d + 16 * i, (int64_t)left - 16 * i), v_all(shrink));
    for (uint32_t j = 0; j < n; j++) {
        const void *row = kv_row(a, a->v, j0 + j, type);
        const v16 by = v_all(p[j]);
        SQ_UNROLL
        for (uint32_t i = 0; i < vecs; i++)
            acc[i] = v_fma(by, load_kv(row, d + 16 * i, left - 16 * i, type), acc[i]);
    }
    SQ_UNROLL
    for (uint32_t i = 0; i < vecs; i++)
        v_store_first(out + d + 16 * i, (int64_t)left - 16 * i, acc[i]);
}

SQ_INLINE void one_query(const sq_attn *a, uint32_t i, sq_kv_type type)
{
    const uint32_t limit = sq_attn_limit(a, i), step = sq_attn_block(a->head_dim);
    const float *q = a->q + i * a->ldq;
    float *out = a->out + i * a->ldo, max = -INFINITY, sum = 0.0f;
    memset(out, 0, a->head_dim * sizeof *out);
    for (uint32_t j = 0; j < limit; j += step) {
        const uint32_t n = min_u32(step, limit - j), padded = sq_round_up(n, 16);
        float p[MOST_KEYS] __attribute__((aligned(64))) = {0};
        for (uint32_t k = 0; k < n; k += AT_ONCE)
            scores4(a, q, j + k, n - k, p + k, type);
        const float most = v_most(hide_and_max(p, padded, n)), before = max;
        max = most > max ? most : max;
        const float shrink = weight1(before - max);
        sum = fmaf(sum, shrink, v_sum(weigh(p, padded, max)));
        uint32_t d = 0;
        for (; d + 16 * AT_ONCE <= a->head_dim; d += 16 * AT_ONCE)
            add_values_1(a, d, 16 * AT_ONCE, AT_ONCE, j, n, p, shrink, out, type);
        for (; d + 16 <= a->head_dim; d += 16)
            add_values_1(a, d, 16, 1, j, n, p, shrink, out, type);
        if (d < a->head_dim) add_values_1(a, d, a->head_dim - d, 1, j, n, p, shrink, out, type);
    }
    finish_row(out, out, a->head_dim, sum);
}

static void few_queries(const sq_attn *a)
{
    for (uint32_t i = 0; i < a->n_q; i++) {
        switch (a->kv_type) {
        case SQ_KV_F32:
            one_query(a, i, SQ_KV_F32);
            break;
        case SQ_KV_F16:
            one_query(a, i, SQ_KV_F16);
            break;
        case SQ_KV_Q8:
            one_query(a, i, SQ_KV_Q8);
            break;
        }
    }
}

/* Queries taken at a time: a multiple of 48, which is one of ROWS and of 16. */
static uint32_t queries_at_a_time(uint32_t head_dim)
{
    return min_u32(QUERIES, PACKED / sq_round_up(head_dim, STRIP) / 48 * 48);
}

static void attention(const sq_attn *a)
{
    const uint32_t step = queries_at_a_time(a->head_dim);
    if (a->n_q < SQ_ATTN_FEW) {
        few_queries(a);
        return;
    }
    for (uint32_t i = 0; i < a->n_q; i += step)
        many_queries(a, i, min_u32(step, a->n_q - i), step);
}
