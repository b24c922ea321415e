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

squint_err sq_route_top_k(const sq_kernels *kernels, const float *z, uint32_t n, uint32_t k, int32_t *keys,
                          uint32_t *kept, squint_msg *msg)
{
    const uint32_t nan = kernels->select(z, n, k, keys, kept);
    if (nan == n) return SQUINT_OK;
    return sq_fail(msg, SQUINT_ERR_NUMERIC, "the router's score of routable token %u is NaN", nan);
}

squint_err sq_route_threshold(const float *z, uint32_t n, float threshold, bool at_threshold, uint32_t *kept,
                              uint32_t *n_kept, squint_msg *msg)
{
    const double logit = log((double)threshold / (1.0 - (double)threshold));
    *n_kept = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (isnan(z[i])) return sq_fail(msg, SQUINT_ERR_NUMERIC, "the router's score of routable token %u is NaN", i);
        if ((double)z[i] > logit || (at_threshold && (double)z[i] == logit)) kept[(*n_kept)++] = i;
    }
    return SQUINT_OK;
}
