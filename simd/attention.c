/*
 * attention: one head, softmax with a running maximum (arXiv 2205.14135), in plain C. Defines the result
 * of all versions.
 * SPDX-License-Identifier: MIT
 *
 * Keys come in blocks. With m the largest score so far and l, o the sums of exp(s - m) and exp(s - m) v,
 * a block that raises m to m' first multiplies l and o by exp(m - m'). At the end out = o / l.
 */
#include "simd/internal.h"

#include <math.h>
#include <string.h>

enum { BLOCK = 64 };

static float element(const sq_attn *a, const void *x, uint32_t j, uint32_t d)
{
    const size_t i = (size_t)j * a->ldkv + d;
    return a->kv_type == SQ_KV_F16 ? sq_f16_to_f32(((const uint16_t *)x)[i]) : ((const float *)x)[i];
}

static float score(const sq_attn *a, const float *q, uint32_t j)
{
    float sum[8] = {0};
    for (uint32_t d = 0; d < a->head_dim; d++)
        sum[d % 8] += q[d] * element(a, a->k, j, d);
    return a->scale * sq_sum8(sum);
}

/* exp(below), where below <= 0 is a score's distance to the largest */
static float weight(float below) { return below < SQ_ATTN_LEAST_SCORE ? 0.0f : expf(below); }

typedef struct running {
    float max, sum;
} running;

static void one_block(const sq_attn *a, const float *q, uint32_t j0, uint32_t n, running *s, float *out)
{
    float p[BLOCK], max = s->max;
    for (uint32_t j = 0; j < n; j++) {
        p[j] = score(a, q, j0 + j);
        max = p[j] > max ? p[j] : max;
    }
    const float shrink = weight(s->max - max);
    s->max = max;
    s->sum *= shrink;
    for (uint32_t d = 0; d < a->head_dim; d++)
        out[d] *= shrink;
    for (uint32_t j = 0; j < n; j++) {
        const float e = weight(p[j] - max);
        s->sum += e;
        for (uint32_t d = 0; d < a->head_dim; d++)
            out[d] += e * element(a, a->v, j0 + j, d);
    }
}

void sq_attention_c(const sq_attn *a)
{
    for (uint32_t i = 0; i < a->n_q; i++) {
        const uint32_t limit = sq_attn_limit(a, i);
        float *out = a->out + i * a->ldo;
        running s = {-INFINITY, 0.0f};
        memset(out, 0, a->head_dim * sizeof *out);
        for (uint32_t j = 0; j < limit; j += BLOCK) {
            one_block(a, a->q + i * a->ldq, j, limit - j < BLOCK ? limit - j : BLOCK, &s, out);
        }
        const float inv = s.sum > 0.0f ? 1.0f / s.sum : 0.0f;
        for (uint32_t d = 0; d < a->head_dim; d++)
            out[d] *= inv;
    }
}
