/*
 * attention: one head, softmax with a running maximum (arXiv 2205.14135), in plain C. Defines the result of all
 * versions, to the last bit.
 * SPDX-License-Identifier: MIT
 *
 * Keys come in blocks of sq_attn_block(). With m the largest score so far and l, o the sums of exp(s - m) and
 * exp(s - m) v, a block that raises m to m' first multiplies l and o by exp(m - m'). At the end out = o / l.
 *
 * Products are fused with the additions that follow. The score of one of few queries is kept in 16 partial sums,
 * element d in sum d % 16; of many, in one sum. So are the weights of a block: key j in sum j % 16.
 */
#include "simd/exp.h"
#include "simd/internal.h"

enum { MOST_KEYS = 64 };

/* Element d of row j of the keys or the values. */
static float element(const sq_attn *a, const void *x, uint32_t j, uint32_t d)
{
    const size_t row = (size_t)j * a->ldkv;
    if (a->kv_type == SQ_KV_F32) return ((const float *)x)[row + d];
    if (a->kv_type == SQ_KV_F16) return sq_f16_to_f32(((const uint16_t *)x)[row + d]);
    const sq_block_q8_0 *b = (const sq_block_q8_0 *)x + row + d / SQ_BLOCK;
    return sq_f16_to_f32(b->d) * (float)b->q[d % SQ_BLOCK]; /* 11 bits by 7: exact */
}

static float score(const sq_attn *a, const float *q, uint32_t j)
{
    const uint32_t n_sums = a->n_q < SQ_ATTN_FEW ? 16 : 1;
    float sum[16] = {0};
    for (uint32_t d = 0; d < a->head_dim; d++)
        sum[d % n_sums] = fmaf(q[d], element(a, a->k, j, d), sum[d % n_sums]);
    return a->scale * sq_sum16(sum);
}

/* exp(below), where below <= 0 is a score's distance to the largest */
static float weight(float below) { return below < SQ_ATTN_LEAST_SCORE ? 0.0f : sq_exp(below); }

typedef struct running {
    float max, sum;
} running;

static void one_block(const sq_attn *a, const float *q, uint32_t j0, uint32_t n, running *s, float *out)
{
    float p[MOST_KEYS], max = s->max, sum[16] = {0};
    for (uint32_t j = 0; j < n; j++) {
        p[j] = score(a, q, j0 + j);
        max = p[j] > max ? p[j] : max;
    }
    const float shrink = weight(s->max - max);
    for (uint32_t j = 0; j < n; j++) {
        p[j] = weight(p[j] - max);
        sum[j % 16] += p[j];
    }
    s->max = max;
    s->sum = fmaf(s->sum, shrink, sq_sum16(sum));
    for (uint32_t d = 0; d < a->head_dim; d++) {
        out[d] *= shrink;
        for (uint32_t j = 0; j < n; j++)
            out[d] = fmaf(p[j], element(a, a->v, j0 + j, d), out[d]);
    }
}

void sq_attention_c(const sq_attn *a)
{
    const uint32_t step = sq_attn_block(a->head_dim);
    for (uint32_t i = 0; i < a->n_q; i++) {
        const uint32_t limit = sq_attn_limit(a, i);
        float *out = a->out + i * a->ldo;
        running s = {-INFINITY, 0.0f};
        memset(out, 0, a->head_dim * sizeof *out);
        for (uint32_t j = 0; j < limit; j += step) {
            one_block(a, a->q + i * a->ldq, j, limit - j < step ? limit - j : step, &s, out);
        }
        const float inv = s.sum > 0.0f ? 1.0f / s.sum : 0.0f;
        for (uint32_t d = 0; d < a->head_dim; d++)
            out[d] *= inv;
    }
}
