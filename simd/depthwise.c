/*
 * depthwise: a 7x7 convolution of each channel by itself, in plain C. Defines the result of all versions.
 * SPDX-License-Identifier: MIT
 */
#include "simd/internal.h"

#include <math.h>

static float output(const sq_depthwise *d, uint32_t x, uint32_t c)
{
    float sum = d->bias[c];
    for (uint32_t ky = 0; ky < SQ_DEPTHWISE_SIDE; ky++)
        for (uint32_t kx = 0; kx < SQ_DEPTHWISE_SIDE && d->rows[ky]; kx++) {
            const uint32_t at = x + kx - SQ_DEPTHWISE_SIDE / 2; /* left of the map it wraps far past the width */
            if (at >= d->width) continue;
            const float w = d->w[(size_t)(ky * SQ_DEPTHWISE_SIDE + kx) * d->channels + c];
            sum = fmaf(w, d->rows[ky][(size_t)at * d->channels + c], sum);
        }
    return sum;
}

void sq_depthwise_c(const sq_depthwise *d)
{
    for (uint32_t x = 0; x < d->width; x++)
        for (uint32_t c = 0; c < d->channels; c++)
            d->out[(size_t)x * d->channels + c] = output(d, x, c);
}
