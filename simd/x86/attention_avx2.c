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

static __m256 load_half_tail(const uint16_t *x, uint32_t n)
{
    uint16_t h[8] = {0};
    memcpy(h, x, n * sizeof *h);
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)h));
}

/* Elements d .. d + 7 of row j, zeros past head_dim. */
SQ_INLINE __m256 load_kv(const sq_attn *a, const void *x, uint32_t j, uint32_t d)
{
    const size_t at = (size_t)j * a->ldkv + d;
    const uint32_t n = a->head_dim - d;
    if (a->kv_type == SQ_KV_F16) {
        const uint16_t *h = (const uint16_t *)x + at;
        return n >= 8 ? _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)h)) : load_half_tail(h, n);
    }
    const float *f = (const float *)x + at;
    return n >= 8 ? _mm256_loadu_ps(f) : _mm256_maskload_ps(f, first_lanes(n));
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
static void fill_keys(const sq_attn *a, uint32_t j0, uint32_t n, float *kt)
{
    for (uint32_t j = 0; j < sq_round_up(n, 16); j += 8) {
        float *strip = kt + (size_t)(j / 16) * a->head_dim * 16 + j % 16;
        for (uint32_t d = 0; d < a->head_dim; d += 8) {
            __m256 r[8];
            for (uint32_t i = 0; i < 8; i++)
                r[i] = j + i < n ? load_kv(a, a->k, j0 + j + i, d) : _mm256_setzero_ps();
            transpose8(r);
            for (uint32_t i = 0; i < 8 && d + i < a->head_dim; i++)
                _mm256_store_ps(strip + (d + i) * 16, r[i]);
        }
    }
}

static void fill_values(const sq_attn *a, uint32_t j0, uint32_t n, float *vd)
{
    const uint32_t width = sq_round_up(a->head_dim, 16);
    for (uint32_t j = 0; j < n; j++, vd += width) {
        _mm256_store_ps(vd + width - 8, _mm256_setzero_ps());
        for (uint32_t d = 0; d < a->head_dim; d += 8)
            _mm256_store_ps(vd + d, load_kv(a, a->v, j0 + j, d));
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

/* Scores of keys that a row does not attend become -inf; n is a multiple of 16. Returns the largest. */
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

/* s = exp(s - max); returns the sum. */
static float exp_and_sum(float *s, uint32_t n, float max)
{
    __m256 sum = _mm256_setzero_ps();
    for (uint32_t j = 0; j < n; j += 8) {
        const __m256 e = exp8(_mm256_sub_ps(_mm256_load_ps(s + j), _mm256_set1_ps(max)));
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
    _mm256_store_ps(shrink, exp8(_mm256_load_ps(shrink)));
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
        fill_keys(a, j, n, kt);
        fill_values(a, j, n, vd);
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
SQ_INLINE void scores4(const sq_attn *a, const float *q, uint32_t j, uint32_t n, float *s)
{
    __m256 acc[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    for (uint32_t d = 0; d < a->head_dim; d += 8) {
        const __m256 x = _mm256_maskload_ps(q + d, first_lanes((int64_t)a->head_dim - d));
        for (uint32_t i = 0; i < 4; i++) {
            acc[i] = _mm256_fmadd_ps(x, load_kv(a, a->k, j + (i < n ? i : 0), d), acc[i]);
        }
    }
    for (uint32_t i = 0; i < 4; i++)
        s[i] = a->scale * sum8(acc[i]);
}

/* out = out * shrink + p * values, 8 * w outputs from d */
SQ_INLINE void add_values_1(const sq_attn *a, uint32_t d, uint32_t w, uint32_t j0, uint32_t n, const float *p,
                            float shrink, float *out)
{
    __m256 acc[8];
    for (uint32_t i = 0; i < w; i++) {
        const __m256i m = first_lanes((int64_t)a->head_dim - d - i * 8);
        acc[i] = _mm256_mul_ps(_mm256_maskload_ps(out + d + i * 8, m), _mm256_set1_ps(shrink));
    }
    for (uint32_t j = 0; j < n; j++) {
        const __m256 b = _mm256_broadcast_ss(p + j);
        for (uint32_t i = 0; i < w; i++)
            acc[i] = _mm256_fmadd_ps(b, load_kv(a, a->v, j0 + j, d + i * 8), acc[i]);
    }
    for (uint32_t i = 0; i < w; i++) {
        _mm256_maskstore_ps(out + d + i * 8, first_lanes((int64_t)a->head_dim - d - i * 8), acc[i]);
    }
}

static void one_query(const sq_attn *a, uint32_t i)
{
    const uint32_t limit = sq_attn_limit(a, i);
    const float *q = a->q + i * a->ldq;
    float *out = a->out + i * a->ldo, max = -INFINITY, sum = 0.0f;
    start_rows(a, i, 1);
    for (uint32_t j = 0; j < limit; j += KEYS) {
        const uint32_t n = limit - j < KEYS ? limit - j : KEYS, padded = sq_round_up(n, 16);
        float p[KEYS] __attribute__((aligned(32))) = {0};
        for (uint32_t k = 0; k < n; k += 4)
            scores4(a, q, j + k, n - k, p + k);
        const float most = hide_and_max(p, padded, n), before = max;
        max = most > max ? most : max;
        const float shrink = expf(before - max);
        sum = sum * shrink + exp_and_sum(p, padded, max);
        uint32_t d = 0;
        for (; d + 64 <= a->head_dim; d += 64)
            add_values_1(a, d, 8, j, n, p, shrink, out);
        for (; d < a->head_dim; d += 8)
            add_values_1(a, d, 1, j, n, p, shrink, out);
    }
    finish_row(a, i, sum);
}

void sq_attention_avx2(const sq_attn *a)
{
    if (a->n_q < FEW) {
        for (uint32_t i = 0; i < a->n_q; i++)
            one_query(a, i);
        return;
    }
    for (uint32_t i = 0; i < a->n_q; i += QUERIES)
        many_queries(a, i, a->n_q - i < QUERIES ? a->n_q - i : QUERIES);
}
