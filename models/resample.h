/*
 * Pictures and maps of other sides within networks. All are squares.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQ_RESAMPLE_H
#define SQ_RESAMPLE_H

#include "runtime/engine.h"

/** [3][side_in][side_in] to [3][side_out][side_out] */
void sq_resample_picture(sq_pool *pool, const float *in, uint32_t side_in, float *out, uint32_t side_out,
                         bool align_corners);

/**
 * side_in^2 tokens @device of d floats, row by row, as side_out^2: fewer become more by bilinear interpolation between
 * corners that stay, more become fewer by means of blocks; side_out must then divide side_in.
 * @return out, or `in` when there is nothing to do
 */
const float *sq_match_tokens(sq_compute *c, const float *in, uint32_t side_in, float *out, uint32_t side_out,
                             uint32_t d);

#endif
