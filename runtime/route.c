/*
 * Routing of a Mixture-of-Depths layer.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/route.h"

#include <math.h>

uint32_t sq_route_count(uint32_t n, float ratio)
{
    const float product = (float)n * ratio;
    if (!(product > 0)) return 0;
    return product >= (float)n ? n : (uint32_t)product;
}

static void softmax(const float *z, float *p, uint32_t n)
{
    float top = -INFINITY, sum = 0;
    for (uint32_t i = 0; i < n; i++)
        top = fmaxf(top, z[i]);
    for (uint32_t i = 0; i < n; i++)
        sum += p[i] = expf(z[i] - top);
    for (uint32_t i = 0; i < n; i++)
        p[i] /= sum;
}

static float squash(sq_norm_type type, float z)
{
    switch (type) {
    case SQ_NORM_TANH:
        return tanhf(z);
    case SQ_NORM_SIGMOID:
        return 1.0f / (1.0f + expf(-z));
    case SQ_NORM_SOFTMAX:
    case SQ_NORM_NONE:
        break;
    }
    return z;
}

void sq_route_weights(sq_norm_type type, float scale, float bias, const float *z, float *w, uint32_t n)
{
    if (type == SQ_NORM_SOFTMAX) softmax(z, w, n);
    for (uint32_t i = 0; i < n; i++)
        w[i] = scale * (type == SQ_NORM_SOFTMAX ? w[i] : squash(type, z[i])) + bias;
}

/* Is a chosen before b? A total order, so the choice never depends on how it is made. */
static bool before(const float *z, uint32_t a, uint32_t b) { return z[a] > z[b] || (z[a] == z[b] && a < b); }

static void swap(uint32_t *a, uint32_t *b)
{
    const uint32_t t = *a;
    *a = *b;
    *b = t;
}

/* Quickselect: afterwards the first k of order[0..n) are the first k in the order of before(). */
static void partition_first(const float *z, uint32_t *order, uint32_t n, uint32_t k)
{
    uint32_t lo = 0, hi = n; /* the boundary lies in [lo, hi) */
    while (hi - lo > 1) {
        const uint32_t pivot = order[lo + (hi - lo) / 2];
        uint32_t i = lo, j = hi - 1;
        for (;;) {
            while (before(z, order[i], pivot))
                i++;
            while (before(z, pivot, order[j]))
                j--;
            if (i >= j) break;
            swap(&order[i], &order[j]);
        }
        /* i == j: the pivot is in its final place */
        if (k == i || k == i + 1) return;
        if (k < i)
            hi = i;
        else
            lo = i + 1;
    }
}

squint_err sq_route_top_k(const float *z, uint32_t n, uint32_t k, uint32_t *scratch, uint32_t *kept, squint_msg *msg)
{
    for (uint32_t i = 0; i < n; i++) {
        if (isnan(z[i])) return sq_fail(msg, SQUINT_ERR_NUMERIC, "the router's score of vision token %u is NaN", i);
        scratch[i] = i;
    }
    if (!n || !k) return SQUINT_OK;
    if (k < n) partition_first(z, scratch, n, k);
    uint32_t worst = scratch[0];
    for (uint32_t i = 1; i < k; i++)
        if (before(z, worst, scratch[i])) worst = scratch[i];
    for (uint32_t i = 0, n_kept = 0; i < n && n_kept < k; i++)
        if (!before(z, worst, i)) kept[n_kept++] = i;
    return SQUINT_OK;
}
