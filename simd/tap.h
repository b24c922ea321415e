/*
 * tap: bilinear resampling within networks, as PyTorch's interpolate() does it: no antialiasing. The same bits on the
 * CPU and on devices.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQ_SIMD_TAP_H
#define SQ_SIMD_TAP_H

#include "simd/exp.h" /* SQ_EXP_FN */

#include <stdbool.h>

/* Where one coordinate of the result comes from. */
typedef struct sq_tap {
    uint32_t low, high;
    float high_share;
} sq_tap;

/* Coordinate `at` of `out`, of `in`. corners: the outermost places stay where they are, else their outer edges. */
SQ_EXP_FN sq_tap sq_bilinear_tap(uint32_t at, uint32_t in, uint32_t out, bool corners)
{
    float from;
    if (corners)
        from = out > 1 ? (float)(in - 1) / (float)(out - 1) * (float)at : 0.0f;
    else
        from = (float)in / (float)out * ((float)at + 0.5f) - 0.5f;
    if (!(from > 0.0f)) from = 0.0f;
    uint32_t low = (uint32_t)from;
    if (low > in - 1) low = in - 1;
    const sq_tap tap = {low, low + 1 < in ? low + 1 : low, from - (float)low};
    return tap;
}

/* Between upper left, upper right, lower left and lower right. */
SQ_EXP_FN float sq_lerp(sq_tap x, sq_tap y, float a, float b, float c, float d)
{
    const float right = x.high_share, left = 1.0f - right, below = y.high_share, above = 1.0f - below;
    return above * (left * a + right * b) + below * (left * c + right * d);
}

#endif
