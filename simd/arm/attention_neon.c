/*
 * attention_neon: one head, softmax with a running maximum. simd/attention.c defines the results; here products are
 * fused, sums are in another order and exp is SLEEF's.
 * SPDX-License-Identifier: MIT
 *
 * Many queries: a block of keys is brought into two dense buffers, which QUERIES queries then share:
 *
 *   kt  [n / 16][head_dim][16]   keys transposed, so that 16 scores grow side by side
 *   vd  [n][head_dim up to 16]   values as float32
 *
 * Both products then are the same loop: 4 rows by 16 columns, 16 sums in registers, FMLA by lane, five loads for 16
 * of them. Scores of 4 queries go through a small buffer; the running output is kept, not yet divided, in the output
 * rows themselves.
 *
 * Few queries: keys and values are read once, as they lie.
 */
#include "simd/arm/neon.h"

enum {
    ROWS = 4,
    FEW = 4,         /* fewer queries than this do not pay for the dense buffers */
    QUERIES = 96,    /* that share a dense block */
    KEYS = 64,       /* of a block, half as many when heads are wider than 128 */
    DENSE = 64 * 128 /* floats of kt and of vd */
};

typedef struct running {
    float max[QUERIES], sum[QUERIES]; /* of exp(score - max) */
} running;

/* ---- Reading keys and values ------------------------------------------------------------- */

SQ_INLINE float32x4_t widen(uint16x4_t h) { return vcvt_f32_f16(vreinterpret_f16_u16(h)); }

/* The first n of 4 elements from element `at`, then zeros. */
SQ_INLINE float32x4_t load4(const void *x, size_t at, uint32_t n, sq_kv_type type)
{
    if (type == SQ_KV_F32) return load_first((const float *)x + at, n);
    const uint16_t *from = (const uint16_t *)x + at;
    if (n >= 4) return widen(vld1_u16(from));
    uint16_t h[4] = {0};
    memcpy(h, from, n * sizeof *h);
    return widen(vld1_u16(h));
}

/* Rows of a 4 by 4 matrix become its columns. */
SQ_INLINE void transpose4(float32x4_t r[4])
{
    const float32x4_t t0 = vtrn1q_f32(r[0], r[1]), t1 = vtrn2q_f32(r[0], r[1]);
    const float32x4_t t2 = vtrn1q_f32(r[2], r[3]), t3 = vtrn2q_f32(r[2], r[3]);
    r[0] = vcombine_f32(vget_low_f32(t0), vget_low_f32(t2));
    r[1] = vcombine_f32(vget_low_f32(t1), vget_low_f32(t3));
    r[2] = vcombine_f32(vget_high_f32(t0), vget_high_f32(t2));
    r[3] = vcombine_f32(vget_high_f32(t1), vget_high_f32(t3));
}

/* Keys j0 .. j0 + n - 1, and zeros up to a multiple of 16. */
SQ_INLINE void fill_keys(const sq_attn *a, uint32_t j0, uint32_t n, float *kt, sq_kv_type type)
{
    for (uint32_t j = 0; j < sq_round_up(n, 16); j += 4) {
        float *strip = kt + (size_t)(j / 16) * a->head_dim * 16 + j % 16;
        for (uint32_t d = 0; d < a->head_dim; d += 4) {
            float32x4_t r[4];
            for (uint32_t i = 0; i < 4; i++) {
                const size_t at = (size_t)(j0 + j + i) * a->ldkv + d;
                r[i] = j + i < n ? load4(a->k, at, a->head_dim - d, type) : vdupq_n_f32(0.0f);
            }
            transpose4(r);
            for (uint32_t i = 0; i < 4 && d + i < a->head_dim; i++)
                vst1q_f32(strip + (d + i) * 16, r[i]);
        }
    }
}

SQ_INLINE void fill_values(const sq_attn *a, uint32_t j0, uint32_t n, float *vd, sq_kv_type type)
{
    const uint32_t width = sq_round_up(a->head_dim, 16);
    for (uint32_t j = 0; j < n; j++, vd += width) {
        for (uint32_t d = 0; d < width; d += 4) {
            const size_t at = (size_t)(j0 + j) * a->ldkv + d;
            vst1q_f32(vd + d, d < a->head_dim ? load4(a->v, at, a->head_dim - d, type) : vdupq_n_f32(0.0f));
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

/* acc[r] += x[r][lane] * y[0 .. 15]; the lane must be a constant. */
#define STEP(lane)                                                                                                     \
    do {                                                                                                               \
        const float32x4_t y0 = vld1q_f32(y), y1 = vld1q_f32(y + 4), y2 = vld1q_f32(y + 8), y3 = vld1q_f32(y + 12);     \
        for (uint32_t r = 0; r < rows; r++) {                                                                          \
            acc[r][0] = vfmaq_laneq_f32(acc[r][0], y0, b[r], lane);                                                    \
            acc[r][1] = vfmaq_laneq_f32(acc[r][1], y1, b[r], lane);                                                    \
            acc[r][2] = vfmaq_laneq_f32(acc[r][2], y2, b[r], lane);                                                    \
            acc[r][3] = vfmaq_laneq_f32(acc[r][3], y3, b[r], lane);                                                    \
        }                                                                                                              \
        y += ldy;                                                                                                      \
    } while (0)

/* acc[r] += x[r * ldx + i] * y[i * ldy ..+15], i < n */
SQ_INLINE void multiply(const float *x, size_t ldx, const float *y, size_t ldy, uint32_t n, float32x4_t acc[][4],
                        uint32_t rows)
{
    float32x4_t b[ROWS];
    for (; n >= 4; n -= 4, x += 4) {
        for (uint32_t r = 0; r < rows; r++)
            b[r] = vld1q_f32(x + r * ldx);
        STEP(0);
        STEP(1);
        STEP(2);
        STEP(3);
    }
    for (; n; n--, x++) {
        for (uint32_t r = 0; r < rows; r++)
            b[r] = vdupq_n_f32(x[r * ldx]);
        STEP(0);
    }
}

SQ_INLINE void scores(const tile *t, float s[][KEYS], uint32_t rows)
{
    const sq_attn *a = t->a;
    for (uint32_t j = 0; j < t->n; j += 16) {
        float32x4_t acc[ROWS][4];
        for (uint32_t r = 0; r < rows; r++)
            acc[r][0] = acc[r][1] = acc[r][2] = acc[r][3] = vdupq_n_f32(0.0f);
        multiply(a->q + t->i0 * a->ldq, a->ldq, t->kt + (size_t)j * a->head_dim, 16, a->head_dim, acc, rows);
        for (uint32_t r = 0; r < rows; r++) {
            for (int i = 0; i < 4; i++)
                vst1q_f32(s[r] + j + i * 4, vmulq_n_f32(acc[r][i], a->scale));
        }
    }
}

/* Scores of keys that a row does not attend become -inf; n is a multiple of 4. Returns the largest. */
static float hide_and_max(float *s, uint32_t n, int64_t attended)
{
    float32x4_t max = vdupq_n_f32(-INFINITY);
    for (int64_t j = attended < 0 ? 0 : attended; j < n; j++)
        s[j] = -INFINITY;
    for (uint32_t j = 0; j < n; j += 4)
        max = vmaxq_f32(max, vld1q_f32(s + j));
    return vmaxvq_f32(max);
}

/* weight() of simd/attention.c; exp4 never sees what it would turn into a denormal number. */
SQ_INLINE float32x4_t weight4(float32x4_t below)
{
    const float32x4_t least = vdupq_n_f32(SQ_ATTN_LEAST_SCORE);
    const uint32x4_t e = vreinterpretq_u32_f32(exp4(vmaxq_f32(least, below))); /* NaN stays NaN */
    return vreinterpretq_f32_u32(vbicq_u32(e, vcltq_f32(below, least)));
}

/* s = weight(s - max); returns the sum. */
static float exp_and_sum(float *s, uint32_t n, float max)
{
    float32x4_t sum = vdupq_n_f32(0.0f);
    for (uint32_t j = 0; j < n; j += 4) {
        const float32x4_t e = weight4(vsubq_f32(vld1q_f32(s + j), vdupq_n_f32(max)));
        vst1q_f32(s + j, e);
        sum = vaddq_f32(sum, e);
    }
    return vaddvq_f32(sum);
}

/* Scores to weights; shrink[r] is what the row's earlier sums are worth now. */
static void softmax(const tile *t, running *state, float s[][KEYS], float shrink[ROWS], uint32_t rows)
{
    const uint32_t n = sq_round_up(t->n, 16);
    float *max = state->max + t->t;
    for (uint32_t r = 0; r < rows; r++) {
        const float most = hide_and_max(s[r], n, (int64_t)sq_attn_limit(t->a, t->i0 + r) - t->j0);
        shrink[r] = max[r];
        max[r] = most > max[r] ? most : max[r];
        shrink[r] -= max[r];
    }
    vst1q_f32(shrink, weight4(vld1q_f32(shrink)));
    for (uint32_t r = 0; r < rows; r++) {
        state->sum[t->t + r] = state->sum[t->t + r] * shrink[r] + exp_and_sum(s[r], n, max[r]);
    }
}

/* out = out * shrink + weights * values */
SQ_INLINE void add_values(const tile *t, float s[][KEYS], const float shrink[ROWS], uint32_t rows)
{
    const sq_attn *a = t->a;
    const uint32_t width = sq_round_up(a->head_dim, 16);
    float *out = a->out + t->i0 * a->ldo;
    for (uint32_t d = 0; d < a->head_dim; d += 16) {
        const int64_t left = (int64_t)a->head_dim - d;
        float32x4_t acc[ROWS][4];
        for (uint32_t r = 0; r < rows; r++) {
            for (int i = 0; i < 4; i++)
                acc[r][i] = vmulq_n_f32(load_first(out + r * a->ldo + d + i * 4, left - i * 4), shrink[r]);
        }
        multiply(s[0], KEYS, t->vd + d, width, t->n, acc, rows);
        for (uint32_t r = 0; r < rows; r++) {
            for (int i = 0; i < 4; i++)
                store_first(out + r * a->ldo + d + i * 4, left - i * 4, acc[r][i]);
        }
    }
}

SQ_INLINE void run_tile(const tile *t, running *state, uint32_t rows)
{
    float s[ROWS][KEYS], shrink[ROWS] = {0};
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

static tile_fn *const tiles[ROWS + 1] = {NULL, tile_1, tile_2, tile_3, tile_4};

static void start_rows(const sq_attn *a, uint32_t i0, uint32_t n)
{
    for (uint32_t i = i0; i < i0 + n; i++)
        memset(a->out + i * a->ldo, 0, a->head_dim * sizeof(float));
}

static void finish_row(const sq_attn *a, uint32_t i, float sum)
{
    sq_scale_neon(a->out + i * a->ldo, sum > 0.0f ? 1.0f / sum : 0.0f, a->head_dim);
}

static void many_queries(const sq_attn *a, uint32_t i0, uint32_t n_q)
{
    float kt[DENSE], vd[DENSE];
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
    float32x4_t acc[4];
    for (uint32_t i = 0; i < 4; i++) {
        at[i] = (size_t)(j + (i < n ? i : 0)) * a->ldkv;
        acc[i] = vdupq_n_f32(0.0f);
    }
    uint32_t d = 0;
    for (; d + 4 <= a->head_dim; d += 4) {
        const float32x4_t x = vld1q_f32(q + d);
        for (int i = 0; i < 4; i++)
            acc[i] = vfmaq_f32(acc[i], x, load4(a->k, at[i] + d, 4, type));
    }
    if (d < a->head_dim) {
        const uint32_t left = a->head_dim - d;
        const float32x4_t x = load_first(q + d, left);
        for (int i = 0; i < 4; i++)
            acc[i] = vfmaq_f32(acc[i], x, load4(a->k, at[i] + d, left, type));
    }
    transpose4(acc);
    const float32x4_t sum = vaddq_f32(vaddq_f32(acc[0], acc[1]), vaddq_f32(acc[2], acc[3]));
    vst1q_f32(s, vmulq_n_f32(sum, a->scale));
}

/* out = out * shrink + p * values, for outputs d .. d + 4 * w - 1; of a single four some may be past the last */
SQ_INLINE void add_values_1(const sq_attn *a, uint32_t d, uint32_t w, uint32_t j0, uint32_t n, const float *p,
                            float shrink, float *out, sq_kv_type type)
{
    const uint32_t left = w > 1 ? 4 * w : a->head_dim - d;
    size_t at = (size_t)j0 * a->ldkv + d;
    float32x4_t acc[16];
    for (uint32_t i = 0; i < w; i++)
        acc[i] = vmulq_n_f32(load_first(out + d + i * 4, left - i * 4), shrink);
    for (uint32_t j = 0; j < n; j++, at += a->ldkv) {
        for (uint32_t i = 0; i < w; i++)
            acc[i] = vfmaq_n_f32(acc[i], load4(a->v, at + i * 4, left - i * 4, type), p[j]);
    }
    for (uint32_t i = 0; i < w; i++)
        store_first(out + d + i * 4, left - i * 4, acc[i]);
}

SQ_INLINE void one_query(const sq_attn *a, uint32_t i, sq_kv_type type)
{
    const uint32_t limit = sq_attn_limit(a, i);
    const float *q = a->q + i * a->ldq;
    float *out = a->out + i * a->ldo, max = -INFINITY, sum = 0.0f;
    start_rows(a, i, 1);
    for (uint32_t j = 0; j < limit; j += KEYS) {
        const uint32_t n = limit - j < KEYS ? limit - j : KEYS, padded = sq_round_up(n, 4);
        float p[KEYS];
        for (uint32_t k = 0; k < n; k += 4)
            scores4(a, q, j + k, n - k, p + k, type);
        const float most = hide_and_max(p, padded, n), before = max;
        max = most > max ? most : max;
        const float shrink = before - max < SQ_ATTN_LEAST_SCORE ? 0.0f : expf(before - max);
        sum = sum * shrink + exp_and_sum(p, padded, max);
        uint32_t d = 0;
        for (; d + 64 <= a->head_dim; d += 64)
            add_values_1(a, d, 16, j, n, p, shrink, out, type);
        for (; d < a->head_dim; d += 4)
            add_values_1(a, d, 1, j, n, p, shrink, out, type);
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

void sq_attention_neon(const sq_attn *a)
{
    if (a->n_q < FEW) {
        few_queries(a);
        return;
    }
    for (uint32_t i = 0; i < a->n_q; i += QUERIES)
        many_queries(a, i, a->n_q - i < QUERIES ? a->n_q - i : QUERIES);
}
