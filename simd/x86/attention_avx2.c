/*
 * attention_avx2: one head, softmax with a running maximum. simd/attention.c defines the results; here
 * products are fused, sums are in another order and exp is SLEEF's.
 * SPDX-License-Identifier: MIT
 *
 * Many queries: a block of keys is brought into two dense buffers, which QUERIES queries then share:
 *
 *   kt  [n / 16][head_dim][16]   keys transposed, so that 16 scores grow side by side
 *   vd  [n][head_dim up to 16]   values as float32
 *
 * Both products then are the same loop: 6 rows by 16 columns, 12 sums in registers, two loads and six
 * broadcasts for 12 multiply-adds. Scores of 6 queries go through a small buffer; the running output is
 * kept, not yet divided, in the output rows themselves.
 *
 * Few queries: keys and values are read once, as they lie.
 */
#include "simd/x86/avx2.h"

enum {
    ROWS = 6,
    FEW = 4,         /* fewer queries than this do not pay for the dense buffers */
    QUERIES = 96,    /* that share a dense block */
    KEYS = 64,       /* of a block, half as many when heads are wider than 128 */
    DENSE = 64 * 128 /* floats of kt and of vd */
};

typedef struct running {
    float max[QUERIES], sum[QUERIES]; /* of exp(score - max) */
} running;

/* ---- Reading keys and values ------------------------------------------------------------- */

/* 8 elements from element `at`. */
SQ_INLINE __m256 load8(const void *x, size_t at, sq_kv_type type)
{
    if (type == SQ_KV_F16) return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)((const uint16_t *)x + at)));
    return _mm256_loadu_ps((const float *)x + at);
}

/* The last n < 8 elements of a row, then zeros. */
SQ_INLINE __m256 load_tail(const void *x, size_t at, uint32_t n, sq_kv_type type)
{
    if (type == SQ_KV_F32) return _mm256_maskload_ps((const float *)x + at, first_lanes(n));
    uint16_t h[8] = {0};
    memcpy(h, (const uint16_t *)x + at, n * sizeof *h);
    return load8(h, 0, type);
}

SQ_INLINE __m256 load_up_to_8(const sq_attn *a, const void *x, uint32_t j, uint32_t d, sq_kv_type type)
{
    const size_t at = (size_t)j * a->ldkv + d;
    const uint32_t n = a->head_dim - d;
    return n >= 8 ? load8(x, at, type) : load_tail(x, at, n, type);
}

SQ_INLINE void transpose8(__m256 r[8])
{
    __m256 t[8], u[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
        r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
    }
}

/* Keys j0 .. j0 + n - 1, and zeros up to a multiple of 16. */
SQ_INLINE void fill_keys(const sq_attn *a, uint32_t j0, uint32_t n, float *kt, sq_kv_type type)
{
    for (uint32_t j = 0; j < sq_round_up(n, 16); j += 8) {
        float *strip = kt + (size_t)(j / 16) * a->head_dim * 16 + j % 16;
        for (uint32_t d = 0; d < a->head_dim; d += 8) {
            __m256 r[8];
            for (uint32_t i = 0; i < 8; i++) {
                r[i] = j + i < n ? load_up_to_8(a, a->k, j0 + j + i, d, type) : _mm256_setzero_ps();
            }
            transpose8(r);
            for (uint32_t i = 0; i < 8 && d + i < a->head_dim; i++)
                _mm256_store_ps(strip + (d + i) * 16, r[i]);
        }
    }
}

SQ_INLINE void fill_values(const sq_attn *a, uint32_t j0, uint32_t n, float *vd, sq_kv_type type)
{
    const uint32_t width = sq_round_up(a->head_dim, 16);
    for (uint32_t j = 0; j < n; j++, vd += width) {
        _mm256_store_ps(vd + width - 8, _mm256_setzero_ps()); /* never stored, but left-over denormals are slow */
        for (uint32_t d = 0; d < a->head_dim; d += 8) {
            _mm256_store_ps(vd + d, load_up_to_8(a, a->v, j0 + j, d, type));
        }
    }
}

static void fill(const sq_attn *a, uint32_t j0, uint32_t n, float *kt, float *vd)
{
    if (a->kv_type == SQ_KV_F16) {
        fill_keys(a, j0, n, kt, SQ_KV_F16);
        fill_values(a, j0, n, vd, SQ_KV_F16);
    } else {
        fill_keys(a, j0, n, kt, SQ_KV_F32);
        fill_values(a, j0, n, vd, SQ_KV_F32);
    }
}

/* ---- Many queries ------------------------------------------------------------------------ */

/* A tile: `rows` queries from query i0 of the call (row t of `state`) and n keys from j0. */
typedef struct tile {
    const sq_attn *a;
    uint32_t i0, t, j0, n;
    const float *kt, *vd;
} tile;

/* acc[r] += x[r * ldx + i] * y[i * ldy ..+15], i < n */
SQ_INLINE void multiply(const float *x, size_t ldx, const float *y, size_t ldy, uint32_t n, __m256 acc[][2],
                        uint32_t rows)
{
    for (uint32_t i = 0; i < n; i++, y += ldy) {
        const __m256 y0 = _mm256_load_ps(y), y1 = _mm256_load_ps(y + 8);
        for (uint32_t r = 0; r < rows; r++) {
            const __m256 b = _mm256_broadcast_ss(x + r * ldx + i);
            acc[r][0] = _mm256_fmadd_ps(b, y0, acc[r][0]);
            acc[r][1] = _mm256_fmadd_ps(b, y1, acc[r][1]);
        }
    }
}

SQ_INLINE void scores(const tile *t, float s[][KEYS], uint32_t rows)
{
    const sq_attn *a = t->a;
    const __m256 scale = _mm256_set1_ps(a->scale);
    for (uint32_t j = 0; j < t->n; j += 16) {
        __m256 acc[ROWS][2];
        for (uint32_t r = 0; r < rows; r++)
            acc[r][0] = acc[r][1] = _mm256_setzero_ps();
        multiply(a->q + t->i0 * a->ldq, a->ldq, t->kt + (size_t)j * a->head_dim, 16, a->head_dim, acc, rows);
        for (uint32_t r = 0; r < rows; r++) {
            _mm256_store_ps(s[r] + j, _mm256_mul_ps(acc[r][0], scale));
            _mm256_store_ps(s[r] + j + 8, _mm256_mul_ps(acc[r][1], scale));
        }
    }
}

/* Scores of keys that a row does not attend become -inf; n is a multiple of 8. Returns the largest. */
static float hide_and_max(float *s, uint32_t n, int64_t attended)
{
    const __m256 hidden = _mm256_set1_ps(-INFINITY);
    __m256 max = hidden;
    for (uint32_t j = 0; j < n; j += 8) {
        const __m256 seen = _mm256_castsi256_ps(first_lanes(attended - j));
        const __m256 v = _mm256_blendv_ps(hidden, _mm256_load_ps(s + j), seen);
        _mm256_store_ps(s + j, v);
        max = _mm256_max_ps(max, v);
    }
    return max8(max);
}

/* weight() of simd/attention.c; exp8 never sees what it would turn into a denormal number. */
SQ_INLINE __m256 weight8(__m256 below)
{
    const __m256 least = _mm256_set1_ps(SQ_ATTN_LEAST_SCORE);
    const __m256 e = exp8(_mm256_max_ps(least, below)); /* NaN stays NaN */
    return _mm256_andnot_ps(_mm256_cmp_ps(below, least, _CMP_LT_OQ), e);
}

/* s = weight(s - max); returns the sum. */
static float exp_and_sum(float *s, uint32_t n, float max)
{
    __m256 sum = _mm256_setzero_ps();
    for (uint32_t j = 0; j < n; j += 8) {
        const __m256 e = weight8(_mm256_sub_ps(_mm256_load_ps(s + j), _mm256_set1_ps(max)));
        _mm256_store_ps(s + j, e);
        sum = _mm256_add_ps(sum, e);
    }
    return sum8(sum);
}

/* Scores to weights; shrink[r] is what the row's earlier sums are worth now. */
static void softmax(const tile *t, running *state, float s[][KEYS], float shrink[8], uint32_t rows)
{
    const uint32_t n = sq_round_up(t->n, 16);
    float *max = state->max + t->t;
    for (uint32_t r = 0; r < rows; r++) {
        const float most = hide_and_max(s[r], n, (int64_t)sq_attn_limit(t->a, t->i0 + r) - t->j0);
        shrink[r] = max[r];
        max[r] = most > max[r] ? most : max[r];
        shrink[r] -= max[r];
    }
    _mm256_store_ps(shrink, weight8(_mm256_load_ps(shrink)));
    for (uint32_t r = 0; r < rows; r++) {
        state->sum[t->t + r] = state->sum[t->t + r] * shrink[r] + exp_and_sum(s[r], n, max[r]);
    }
}

/* out = out * shrink + weights * values */
SQ_INLINE void add_values(const tile *t, float s[][KEYS], const float shrink[8], uint32_t rows)
{
    const sq_attn *a = t->a;
    const uint32_t width = sq_round_up(a->head_dim, 16);
    float *out = a->out + t->i0 * a->ldo;
    for (uint32_t d = 0; d < a->head_dim; d += 16) {
        const __m256i m0 = first_lanes((int64_t)a->head_dim - d), m1 = first_lanes((int64_t)a->head_dim - d - 8);
        __m256 acc[ROWS][2];
        for (uint32_t r = 0; r < rows; r++) {
            const __m256 by = _mm256_broadcast_ss(shrink + r);
            acc[r][0] = _mm256_mul_ps(_mm256_maskload_ps(out + r * a->ldo + d, m0), by);
            acc[r][1] = _mm256_mul_ps(_mm256_maskload_ps(out + r * a->ldo + d + 8, m1), by);
        }
        multiply(s[0], KEYS, t->vd + d, width, t->n, acc, rows);
        for (uint32_t r = 0; r < rows; r++) {
            _mm256_maskstore_ps(out + r * a->ldo + d, m0, acc[r][0]);
            _mm256_maskstore_ps(out + r * a->ldo + d + 8, m1, acc[r][1]);
        }
    }
}

SQ_INLINE void run_tile(const tile *t, running *state, uint32_t rows)
{
    float s[ROWS][KEYS] __attribute__((aligned(32))), shrink[8] __attribute__((aligned(32))) = {0};
    scores(t, s, rows);
    softmax(t, state, s, shrink, rows);
    add_values(t, s, shrink, rows);
}

typedef void tile_fn(const tile *t, running *state);

#define TILE(rows)                                                                                                     \
    static void tile_##rows(const tile *t, running *state) { run_tile(t, state, rows); }
TILE(1)
TILE(2)
TILE(3)
TILE(4)
TILE(5)
TILE(6)

static tile_fn *const tiles[ROWS + 1] = {NULL, tile_1, tile_2, tile_3, tile_4, tile_5, tile_6};

static void start_rows(const sq_attn *a, uint32_t i0, uint32_t n)
{
    for (uint32_t i = i0; i < i0 + n; i++)
        memset(a->out + i * a->ldo, 0, a->head_dim * sizeof(float));
}

static void finish_row(const sq_attn *a, uint32_t i, float sum)
{
    sq_scale_avx2(a->out + i * a->ldo, sum > 0.0f ? 1.0f / sum : 0.0f, a->head_dim);
}

static void many_queries(const sq_attn *a, uint32_t i0, uint32_t n_q)
{
    float kt[DENSE] __attribute__((aligned(64))), vd[DENSE] __attribute__((aligned(64)));
    const uint32_t limit = sq_attn_limit(a, i0 + n_q - 1), step = a->head_dim > DENSE / KEYS ? KEYS / 2 : KEYS;
    running state;
    for (uint32_t i = 0; i < n_q; i++) {
        state.max[i] = -INFINITY;
        state.sum[i] = 0.0f;
    }
    start_rows(a, i0, n_q);
    for (uint32_t j = 0; j < limit; j += step) {
        const uint32_t n = limit - j < step ? limit - j : step;
        fill(a, j, n, kt, vd);
        for (uint32_t i = 0; i < n_q; i += ROWS) {
            const uint32_t rows = n_q - i < ROWS ? n_q - i : ROWS, seen = sq_attn_limit(a, i0 + i + rows - 1);
            if (seen <= j) continue;
            const tile t = {a, i0 + i, i, j, seen - j < n ? seen - j : n, kt, vd};
            tiles[rows](&t, &state);
        }
    }
    for (uint32_t i = 0; i < n_q; i++)
        finish_row(a, i0 + i, state.sum[i]);
}

/* ---- Few queries ------------------------------------------------------------------------- */

/* Scores of 4 keys from j, of which n exist. */
SQ_INLINE void scores4(const sq_attn *a, const float *q, uint32_t j, uint32_t n, float *s, sq_kv_type type)
{
    size_t at[4];
    __m256 acc[4];
    for (uint32_t i = 0; i < 4; i++) {
        at[i] = (size_t)(j + (i < n ? i : 0)) * a->ldkv;
        acc[i] = _mm256_setzero_ps();
    }
    uint32_t d = 0;
    for (; d + 8 <= a->head_dim; d += 8) {
        const __m256 x = _mm256_loadu_ps(q + d);
        for (int i = 0; i < 4; i++)
            acc[i] = _mm256_fmadd_ps(x, load8(a->k, at[i] + d, type), acc[i]);
    }
    if (d < a->head_dim) {
        const uint32_t left = a->head_dim - d;
        const __m256 x = _mm256_maskload_ps(q + d, first_lanes(left));
        for (int i = 0; i < 4; i++)
            acc[i] = _mm256_fmadd_ps(x, load_tail(a->k, at[i] + d, left, type), acc[i]);
    }
    for (int i = 0; i < 4; i++)
        s[i] = a->scale * sum8(acc[i]);
}

/* out = out * shrink + p * values, for outputs d .. d + 8 * w - 1 */
SQ_INLINE void add_values_1(const sq_attn *a, uint32_t d, uint32_t w, uint32_t j0, uint32_t n, const float *p,
                            float shrink, float *out, sq_kv_type type)
{
    size_t at = (size_t)j0 * a->ldkv + d;
    __m256 acc[8];
    for (uint32_t i = 0; i < w; i++)
        acc[i] = _mm256_mul_ps(_mm256_loadu_ps(out + d + i * 8), _mm256_set1_ps(shrink));
    for (uint32_t j = 0; j < n; j++, at += a->ldkv) {
        const __m256 b = _mm256_broadcast_ss(p + j);
        for (uint32_t i = 0; i < w; i++)
            acc[i] = _mm256_fmadd_ps(b, load8(a->v, at + i * 8, type), acc[i]);
    }
    for (uint32_t i = 0; i < w; i++)
        _mm256_storeu_ps(out + d + i * 8, acc[i]);
}

/* The same for the last head_dim % 8 outputs. */
SQ_INLINE void add_values_tail(const sq_attn *a, uint32_t d, uint32_t j0, uint32_t n, const float *p, float shrink,
                               float *out, sq_kv_type type)
{
    const uint32_t left = a->head_dim - d;
    const __m256i mask = first_lanes(left);
    __m256 acc = _mm256_mul_ps(_mm256_maskload_ps(out + d, mask), _mm256_set1_ps(shrink));
    for (uint32_t j = 0; j < n; j++) {
        const __m256 v = load_tail(a->v, (size_t)(j0 + j) * a->ldkv + d, left, type);
        acc = _mm256_fmadd_ps(_mm256_broadcast_ss(p + j), v, acc);
    }
    _mm256_maskstore_ps(out + d, mask, acc);
}

SQ_INLINE void one_query(const sq_attn *a, uint32_t i, sq_kv_type type)
{
    const uint32_t limit = sq_attn_limit(a, i);
    const float *q = a->q + i * a->ldq;
    float *out = a->out + i * a->ldo, max = -INFINITY, sum = 0.0f;
    start_rows(a, i, 1);
    for (uint32_t j = 0; j < limit; j += KEYS) {
        const uint32_t n = limit - j < KEYS ? limit - j : KEYS, padded = sq_round_up(n, 8);
        float p[KEYS] __attribute__((aligned(32))) = {0};
        for (uint32_t k = 0; k < n; k += 4)
            scores4(a, q, j + k, n - k, p + k, type);
        const float most = hide_and_max(p, padded, n), before = max;
        max = most > max ? most : max;
        const float shrink = before - max < SQ_ATTN_LEAST_SCORE ? 0.0f : expf(before - max);
        sum = sum * shrink + exp_and_sum(p, padded, max);
        uint32_t d = 0;
        for (; d + 64 <= a->head_dim; d += 64)
            add_values_1(a, d, 8, j, n, p, shrink, out, type);
        for (; d + 8 <= a->head_dim; d += 8)
            add_values_1(a, d, 1, j, n, p, shrink, out, type);
        if (d < a->head_dim) add_values_tail(a, d, j, n, p, shrink, out, type);
    }
    finish_row(a, i, sum);
}

static void few_queries(const sq_attn *a)
{
    for (uint32_t i = 0; i < a->n_q; i++) {
        if (a->kv_type == SQ_KV_F16) {
            one_query(a, i, SQ_KV_F16);
        } else {
            one_query(a, i, SQ_KV_F32);
        }
    }
}

void sq_attention_avx2(const sq_attn *a)
{
    if (a->n_q < FEW) {
        few_queries(a);
        return;
    }
    for (uint32_t i = 0; i < a->n_q; i += QUERIES)
        many_queries(a, i, a->n_q - i < QUERIES ? a->n_q - i : QUERIES);
}
