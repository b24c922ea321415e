/*
 * attention_avx512: one head over blocks of keys, softmax with a running maximum (arXiv 2205.14135). Defined by
 * simd/attention.c; products are fused, sums are in another order and exp is its own.
 * SPDX-License-Identifier: MIT
 *
 * Keys and values of a block are made dense float32, keys transposed, for 96 queries at a time; both stay in L1 for
 * heads of up to 128. Scores and outputs are then small matrix products with tiles of 12 queries by two vectors. The
 * queries are copied too, 12 side by side: in place their rows lie a multiple of 4 KiB apart, all in one set of L1.
 * Calls of few queries are bound by memory and left to AVX2.
 */
#include "simd/x86/avx512.h"

#include <math.h>

enum {
    ROWS = 12,
    FEW = 4, /* fewer queries than this do not pay for the dense buffers */
    QUERIES = 96,
    WIDE = 128, /* wider heads take half as many queries at a time */
    MOST_DIM = 256,
    MOST_KEYS = 64,
    KEYS_STEP = 32,
    DENSE = 32 * MOST_DIM /* floats of kt and of vd */
};

/* A block of n keys from j0. kt: [head_dim][n_keys], zero from n on; vd: [n][width]. */
typedef struct block {
    const sq_attn *a;
    uint32_t j0, n, n_keys, width;
    float kt[DENSE] __attribute__((aligned(64))), vd[DENSE] __attribute__((aligned(64)));
} block;

/* The queries of a call and what is known of their softmax. q: [tiles][head_dim][ROWS]. */
typedef struct queries {
    uint32_t i0, n;
    float max[QUERIES], sum[QUERIES]; /* of exp(score - max) */
    float q[QUERIES * WIDE] __attribute__((aligned(64)));
} queries;

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

SQ_INLINE __mmask16 first(uint32_t n) { return (__mmask16)(n < 16 ? (1u << n) - 1 : 0xffff); }

/*
 * exp(x) for -60 <= x <= 0, NaN for NaN: 2^n exp(r), |r| <= ln(2) / 2, exp(r) = 1 + r + r^2 q(r). q, of degree 4, was
 * fitted to the least largest relative error, 3.1e-9; the roundings of r, of the polynomial and of the sum come to 1.01
 * ULP (every seventh float of the range against binary64's exp). SLEEF's is a call, which keeps no vector register.
 */
SQ_INLINE __m512 exp16(__m512 x)
{
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(0x1.715476p+0f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.63p-1f), x); /* ln(2), its upper part .. */
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-0x1.bd0106p-13f), r);  /* .. and the rest */
    __m512 q = _mm512_set1_ps(0x1.6a23d2p-10f);
    q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(0x1.123a20p-7f));
    q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(0x1.5558f2p-5f));
    q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(0x1.555492p-3f));
    q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(0x1.fffffcp-2f));
    const __m512 tail = _mm512_fmadd_ps(_mm512_mul_ps(r, r), q, r);
    return _mm512_scalef_ps(_mm512_add_ps(tail, _mm512_set1_ps(1.0f)), n);
}

/* weight() of simd/attention.c */
SQ_INLINE __m512 weight16(__m512 below)
{
    const __m512 least = _mm512_set1_ps(SQ_ATTN_LEAST_SCORE);
    const __mmask16 counts = _mm512_cmp_ps_mask(below, least, _CMP_NLT_UQ);
    return _mm512_maskz_mov_ps(counts, exp16(_mm512_max_ps(least, below))); /* NaN stays NaN */
}

/* ---- A block ----------------------------------------------------------------------------- */

/* Up to 16 elements of row j from d on, then zeros. */
SQ_INLINE __m512 load16(const sq_attn *a, const void *x, uint32_t j, uint32_t d, sq_kv_type type)
{
    const size_t at = (size_t)j * a->ldkv + d;
    const __mmask16 mask = first(a->head_dim - d);
    if (type == SQ_KV_F32) return _mm512_maskz_loadu_ps(mask, (const float *)x + at);
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, (const uint16_t *)x + at));
}

SQ_INLINE void transpose16(__m512 r[16])
{
    __m512 t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) { /* quarters: column i, i + 4, i + 8, i + 12 of four rows each */
        t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
        r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
        r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

SQ_INLINE void fill_keys(block *b, sq_kv_type type)
{
    const sq_attn *a = b->a;
    for (uint32_t j = 0; j < sq_round_up(b->n, KEYS_STEP); j += 16) {
        for (uint32_t d = 0; d < a->head_dim; d += 16) {
            __m512 r[16];
            for (uint32_t i = 0; i < 16; i++)
                r[i] = j + i < b->n ? load16(a, a->k, b->j0 + j + i, d, type) : _mm512_setzero_ps();
            transpose16(r);
            for (uint32_t i = 0; i < 16 && d + i < a->head_dim; i++)
                _mm512_store_ps(b->kt + (size_t)(d + i) * b->n_keys + j, r[i]);
        }
    }
}

SQ_INLINE void fill_values(block *b, sq_kv_type type)
{
    for (uint32_t j = 0; j < b->n; j++) {
        for (uint32_t d = 0; d < b->width; d += 16) {
            const bool any = d < b->a->head_dim; /* left-over denormals would be slow */
            const __m512 v = any ? load16(b->a, b->a->v, b->j0 + j, d, type) : _mm512_setzero_ps();
            _mm512_store_ps(b->vd + (size_t)j * b->width + d, v);
        }
    }
}

static void fill(block *b)
{
    if (b->a->kv_type == SQ_KV_F16) {
        fill_keys(b, SQ_KV_F16);
        fill_values(b, SQ_KV_F16);
    } else {
        fill_keys(b, SQ_KV_F32);
        fill_values(b, SQ_KV_F32);
    }
}

/* ---- A tile: up to 12 queries and a block of keys ---------------------------------------- */

/* acc[r] += x[i * x_step + r * x_row] * y[i * ldy ..+31], i < n */
SQ_INLINE void multiply(const float *x, size_t x_step, size_t x_row, const float *y, size_t ldy, uint32_t n,
                        __m512 acc[][2], uint32_t rows)
{
    for (; n; n--, x += x_step, y += ldy) {
        const __m512 y0 = _mm512_load_ps(y), y1 = _mm512_load_ps(y + 16);
        SQ_UNROLL
        for (uint32_t r = 0; r < rows; r++) {
            const __m512 b = _mm512_set1_ps(x[r * x_row]);
            acc[r][0] = _mm512_fmadd_ps(b, y0, acc[r][0]);
            acc[r][1] = _mm512_fmadd_ps(b, y1, acc[r][1]);
        }
    }
}

SQ_INLINE void scores(const block *b, uint32_t n_keys, const float *q, float s[][MOST_KEYS], uint32_t rows)
{
    const __m512 scale = _mm512_set1_ps(b->a->scale);
    for (uint32_t j = 0; j < n_keys; j += KEYS_STEP) {
        __m512 acc[ROWS][2];
        SQ_UNROLL
        for (uint32_t r = 0; r < rows; r++)
            acc[r][0] = acc[r][1] = _mm512_setzero_ps();
        multiply(q, ROWS, 1, b->kt + j, b->n_keys, b->a->head_dim, acc, rows);
        SQ_UNROLL
        for (uint32_t r = 0; r < rows; r++) {
            _mm512_store_ps(s[r] + j, _mm512_mul_ps(acc[r][0], scale));
            _mm512_store_ps(s[r] + j + 16, _mm512_mul_ps(acc[r][1], scale));
        }
    }
}

/* Scores of keys that the row does not attend become -inf; n is a multiple of 32. Returns the largest of each lane. */
SQ_INLINE __m512 hide_and_max(float *s, uint32_t n, uint32_t attended)
{
    const __m512 hidden = _mm512_set1_ps(-INFINITY);
    __m512 max = hidden;
    for (uint32_t j = 0; j < n; j += 16) {
        const __mmask16 seen = first(attended > j ? attended - j : 0);
        const __m512 v = _mm512_mask_mov_ps(hidden, seen, _mm512_load_ps(s + j));
        _mm512_store_ps(s + j, v);
        max = _mm512_max_ps(max, v);
    }
    return max;
}

/* s = weight(s - max), n a multiple of 32; returns the sums of the lanes. */
SQ_INLINE __m512 weigh(float *s, uint32_t n, float max)
{
    const __m512 most = _mm512_set1_ps(max);
    __m512 sum = _mm512_setzero_ps();
    for (uint32_t j = 0; j < n; j += 32) {
        const __m512 e0 = weight16(_mm512_sub_ps(_mm512_load_ps(s + j), most));
        const __m512 e1 = weight16(_mm512_sub_ps(_mm512_load_ps(s + j + 16), most));
        _mm512_store_ps(s + j, e0);
        _mm512_store_ps(s + j + 16, e1);
        sum = _mm512_add_ps(sum, _mm512_add_ps(e0, e1));
    }
    return sum;
}

/* Scores of queries t .. t + rows - 1 of the call to weights; shrink[r]: what their earlier sums are worth now. */
static void softmax(const block *b, uint32_t n_keys, queries *q, uint32_t t, uint32_t rows, float s[][MOST_KEYS],
                    float shrink[16])
{
    const uint32_t n = sq_round_up(n_keys, KEYS_STEP);
    float most[16] __attribute__((aligned(64)));
    const __mmask16 mask = first(rows);
    for (uint32_t r = 0; r < rows; r++) {
        const uint32_t limit = sq_attn_limit(b->a, q->i0 + t + r);
        const uint32_t attended = limit > b->j0 ? min_u32(limit - b->j0, n_keys) : 0;
        most[r] = _mm512_reduce_max_ps(hide_and_max(s[r], n, attended));
    }
    const __m512 before = _mm512_maskz_loadu_ps(mask, q->max + t);
    const __m512 max = _mm512_max_ps(_mm512_maskz_loadu_ps(mask, most), before);
    const __m512 by = weight16(_mm512_sub_ps(before, max));
    _mm512_mask_storeu_ps(q->max + t, mask, max);
    _mm512_store_ps(shrink, by);
    for (uint32_t r = 0; r < rows; r++)
        most[r] = _mm512_reduce_add_ps(weigh(s[r], n, q->max[t + r]));
    const __m512 sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, q->sum + t), by, _mm512_maskz_loadu_ps(mask, most));
    _mm512_mask_storeu_ps(q->sum + t, mask, sum);
}

/* out = out * shrink + weights * values */
SQ_INLINE void add_values(const block *b, uint32_t n_keys, uint32_t i0, float s[][MOST_KEYS], const float *shrink,
                          uint32_t n, uint32_t rows)
{
    const sq_attn *a = b->a;
    float *out = a->out + i0 * a->ldo;
    for (uint32_t d = 0; d < a->head_dim; d += 32) {
        const uint32_t left = a->head_dim - d;
        const __mmask16 m0 = first(left), m1 = first(left > 16 ? left - 16 : 0);
        __m512 acc[ROWS][2];
        SQ_UNROLL
        for (uint32_t r = 0; r < rows; r++) {
            const float *o = out + (r < n ? r : 0) * a->ldo + d; /* rows past n are computed and not stored */
            const __m512 by = _mm512_set1_ps(shrink[r]);
            acc[r][0] = _mm512_mul_ps(_mm512_maskz_loadu_ps(m0, o), by);
            acc[r][1] = _mm512_mul_ps(_mm512_maskz_loadu_ps(m1, o + 16), by);
        }
        multiply(s[0], 1, MOST_KEYS, b->vd + d, b->width, n_keys, acc, rows);
        SQ_UNROLL
        for (uint32_t r = 0; r < rows; r++) {
            if (r >= n) break;
            _mm512_mask_storeu_ps(out + r * a->ldo + d, m0, acc[r][0]);
            _mm512_mask_storeu_ps(out + r * a->ldo + d + 16, m1, acc[r][1]);
        }
    }
}

/* Queries t .. t + n - 1 of the call, n <= rows; the last of them attends a key of the block. */
SQ_INLINE void run_tile(const block *b, queries *q, uint32_t t, uint32_t n, uint32_t rows)
{
    float s[ROWS][MOST_KEYS] __attribute__((aligned(64))), shrink[16] __attribute__((aligned(64)));
    const uint32_t n_keys = min_u32(b->n, sq_attn_limit(b->a, q->i0 + t + n - 1) - b->j0);
    scores(b, n_keys, q->q + (size_t)t * b->a->head_dim, s, rows);
    softmax(b, n_keys, q, t, n, s, shrink);
    add_values(b, n_keys, q->i0 + t, s, shrink, n, rows);
}

static void tile_4(const block *b, queries *q, uint32_t t, uint32_t n) { run_tile(b, q, t, n, 4); }
static void tile_8(const block *b, queries *q, uint32_t t, uint32_t n) { run_tile(b, q, t, n, 8); }
static void tile_12(const block *b, queries *q, uint32_t t, uint32_t n) { run_tile(b, q, t, n, 12); }

/* ---- A call ------------------------------------------------------------------------------ */

/* Copies queries 12 side by side; those past n are zero. */
static void start(const sq_attn *a, queries *q)
{
    for (uint32_t t = 0; t < sq_round_up(q->n, ROWS); t++) {
        float *to = q->q + (size_t)(t / ROWS) * ROWS * a->head_dim + t % ROWS;
        const float *from = a->q + (q->i0 + t) * a->ldq;
        for (uint32_t d = 0; d < a->head_dim; d++)
            to[(size_t)d * ROWS] = t < q->n ? from[d] : 0.0f;
    }
    for (uint32_t t = 0; t < q->n; t++) {
        q->max[t] = -INFINITY;
        q->sum[t] = 0.0f;
        memset(a->out + (q->i0 + t) * a->ldo, 0, a->head_dim * sizeof(float));
    }
}

static void add_block(const block *b, queries *q)
{
    for (uint32_t t = 0; t < q->n; t += ROWS) {
        const uint32_t n = min_u32(ROWS, q->n - t);
        if (sq_attn_limit(b->a, q->i0 + t + n - 1) <= b->j0) continue;
        (n > 8 ? tile_12 : n > 4 ? tile_8 : tile_4)(b, q, t, n);
    }
}

static void finish(const sq_attn *a, const queries *q)
{
    for (uint32_t t = 0; t < q->n; t++)
        sq_scale_avx2(a->out + (q->i0 + t) * a->ldo, q->sum[t] > 0.0f ? 1.0f / q->sum[t] : 0.0f, a->head_dim);
}

static void many_queries(const sq_attn *a, uint32_t i0, uint32_t n)
{
    block b;
    queries q;
    const uint32_t limit = sq_attn_limit(a, i0 + n - 1);
    q.i0 = i0;
    q.n = n;
    start(a, &q);
    b.a = a;
    b.n_keys = a->head_dim > 64 ? KEYS_STEP : MOST_KEYS;
    b.width = sq_round_up(a->head_dim, 32);
    for (b.j0 = 0; b.j0 < limit; b.j0 += b.n_keys) {
        b.n = min_u32(b.n_keys, limit - b.j0);
        fill(&b);
        add_block(&b, &q);
    }
    finish(a, &q);
}

void sq_attention_avx512(const sq_attn *a)
{
    if (a->n_q < FEW) {
        sq_attention_avx2(a);
        return;
    }
    const uint32_t step = a->head_dim > WIDE ? QUERIES / 2 : QUERIES;
    for (uint32_t i = 0; i < a->n_q; i += step)
        many_queries(a, i, min_u32(step, a->n_q - i));
}
