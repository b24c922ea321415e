/*
 * Bicubic resampling of a part of a picture that may have a border of one colour.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQ_RESIZE_H
#define SQ_RESIZE_H

#include "runtime/base.h"

/*
 * One axis of a resize. A border needs no memory and a crop costs only what is kept, yet each output is what
 * Pillow computes on the whole bordered picture.
 *
 *     |  border  |  pixels  |   rest is border too   |     in positions
 *          |  0 ... first ... first + n ... |              out positions
 */
typedef struct sq_axis {
    uint32_t in, out;        /* lengths before and after, each at least 1 */
    uint32_t border, pixels; /* of `in`, [border, border + pixels) are given */
    uint32_t first, n;       /* of `out`, [first, first + n) are wanted */
} sq_axis;

/**
 * Bicubic, antialiased, equal to Pillow's resize of RGB to the last bit.
 * @param src     the pixels given, [y.pixels][x.pixels][3], stride bytes a row
 * @param border  colour of all other positions
 * @param dst     [y.n][x.n][3]
 * @return SQUINT_OK, _NOMEM
 */
squint_err sq_resample(const uint8_t *src, size_t stride, const sq_axis *x, const sq_axis *y, const uint8_t border[3],
                       uint8_t *dst, const squint_allocator *a, squint_msg *msg);

#endif
