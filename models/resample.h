/*
 * Bilinear resampling within networks, as PyTorch's interpolate() does it: no antialiasing. All maps are squares.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQ_RESAMPLE_H
#define SQ_RESAMPLE_H

#include "runtime/base.h"

/* Where one coordinate of the result comes from. */
typedef struct sq_tap {
    uint32_t low, high;
    float high_share;
} sq_tap;

sq_tap sq_bilinear_tap(uint32_t at, uint32_t in, uint32_t out, bool align_corners);

/** out[i] between from[0][i] (upper left), [1] (upper right), [2] (lower left) and [3], n of them. */
void sq_lerp_rows(const float *const from[4], sq_tap x, sq_tap y, uint32_t n, float *restrict out);

/** [3][side_in][side_in] to [3][side_out][side_out] */
void sq_resample_picture(sq_pool *pool, const float *in, uint32_t side_in, float *out, uint32_t side_out,
                         bool align_corners);

/**
 * side_in^2 tokens of d floats, row by row, as side_out^2: fewer become more by bilinear interpolation between corners
 * that stay, more become fewer by means of blocks; side_out must then divide side_in.
 * @return out, or `in` when there is nothing to do
 */
const float *sq_match_tokens(sq_pool *pool, const float *in, uint32_t side_in, float *out, uint32_t side_out,
                             uint32_t d);

#endif
