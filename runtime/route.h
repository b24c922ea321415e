/*
 * Routing of a Mixture-of-Depths layer: weights of scores, choice of rows. p-MoD, arXiv 2412.04449; gamma-MoD, arXiv
 * 2410.13859.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQ_ROUTE_H
#define SQ_ROUTE_H

#include "runtime/base.h"
#include "simd/device.h"

/** k = trunc(float32(n) * float32(ratio)), clamped to n; the product is taken in binary32. */
uint32_t sq_route_count(uint32_t n, float ratio);

/** w[i] = scale * g(z[i]) + bias for n routable tokens; softmax runs over these n. */
void sq_route_weights(sq_norm_type type, float scale, float bias, const float *z, float *w, uint32_t n);

/** The choice of sq_select_fn. Fails on NaN and says where. */
squint_err sq_route_top_k(const sq_kernels *kernels, const float *z, uint32_t n, uint32_t k, int32_t *keys,
                          uint32_t *kept, squint_msg *msg);

/** The score whose sigmoid is `threshold`. Scores are compared, in binary64, not probabilities: these are 0 or 1 long
 *  before scores stop to differ. */
double sq_route_logit(float threshold);

/**
 * The rows whose score is above `logit`, or at it, as indices in rising order.
 * @param kept  [n] out, the first *n_kept of it
 * @return as sq_route_top_k()
 */
squint_err sq_route_threshold(const float *z, uint32_t n, double logit, bool at_logit, uint32_t *kept, uint32_t *n_kept,
                              squint_msg *msg);

#endif
