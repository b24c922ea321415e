/*
 * depthwise_v16: depthwise.c, 16 channels at a time and with its bits.
 * SPDX-License-Identifier: MIT
 *
 * A tile is PIXELS outputs side by side, whose taps all lie within the map, of 16 channels: a load of weights serves
 * PIXELS products. Next to the borders, and where fewer than PIXELS are left, a tile is one output of 16 * VECTORS
 * channels. Channels come last, so that what a row of tiles reads lies in few pages, and nearly all of it in L2.
 *
 * Who includes this has defined v16 (x86/v16_avx2.h), PIXELS and VECTORS: as many sums as there are registers for.
 */
#include "simd/internal.h"

enum { REACH = SQ_DEPTHWISE_SIDE / 2 };

/* Outputs x .. x + PIXELS - 1 of n channels from c. */
SQ_INLINE void many_pixels(const sq_depthwise *d, uint32_t x, uint32_t c, int64_t n)
{
    const size_t step = d->channels;
    const float *w = d->w + c;
    v16 sum[PIXELS];
    sum[0] = v_load_first(d->bias + c, n);
    SQ_UNROLL
    for (int p = 1; p < PIXELS; p++)
        sum[p] = sum[0];
    for (int ky = 0; ky < SQ_DEPTHWISE_SIDE; ky++, w += SQ_DEPTHWISE_SIDE * step) {
        if (!d->rows[ky]) continue;
        const float *from = d->rows[ky] + (x - REACH) * step + c;
        for (int kx = 0; kx < SQ_DEPTHWISE_SIDE; kx++, from += step) {
            const v16 by = v_load_first(w + (size_t)kx * step, n);
            SQ_UNROLL
            for (int p = 0; p < PIXELS; p++)
                sum[p] = v_fma(by, v_load_first(from + (size_t)p * step, n), sum[p]);
        }
    }
    SQ_UNROLL
    for (int p = 0; p < PIXELS; p++)
        v_store_first(d->out + (x + (uint32_t)p) * step + c, n, sum[p]);
}

/* Output x of `vectors` times 16 channels from c, of which n exist. */
SQ_INLINE void one_pixel(const sq_depthwise *d, uint32_t x, uint32_t c, int64_t n, int vectors)
{
    const size_t step = d->channels;
    const uint32_t left = x < REACH ? REACH - x : 0;
    const uint32_t right = d->width - x > REACH ? SQ_DEPTHWISE_SIDE : d->width - x + REACH;
    v16 sum[VECTORS];
    SQ_UNROLL
    for (int v = 0; v < vectors; v++)
        sum[v] = v_load_first(d->bias + c + 16 * v, n - 16 * v);
    for (uint32_t ky = 0; ky < SQ_DEPTHWISE_SIDE; ky++) {
        if (!d->rows[ky]) continue;
        for (uint32_t kx = left; kx < right; kx++) {
            const float *const w = d->w + (ky * SQ_DEPTHWISE_SIDE + kx) * step + c;
            const float *const from = d->rows[ky] + (x + kx - REACH) * step + c;
            SQ_UNROLL
            for (int v = 0; v < vectors; v++)
                sum[v] = v_fma(v_load_first(w + 16 * v, n - 16 * v), v_load_first(from + 16 * v, n - 16 * v), sum[v]);
        }
    }
    SQ_UNROLL
    for (int v = 0; v < vectors; v++)
        v_store_first(d->out + x * step + c + 16 * v, n - 16 * v, sum[v]);
}

static void tile_of_pixels(const sq_depthwise *d, uint32_t x)
{
    uint32_t c = 0;
    for (; c + 16 <= d->channels; c += 16)
        many_pixels(d, x, c, 16);
    if (c < d->channels) many_pixels(d, x, c, d->channels - c);
}

static void pixel(const sq_depthwise *d, uint32_t x)
{
    uint32_t c = 0;
    for (; c + 16 * VECTORS <= d->channels; c += 16 * VECTORS)
        one_pixel(d, x, c, 16 * VECTORS, VECTORS);
    for (; c < d->channels; c += 16)
        one_pixel(d, x, c, d->channels - c, 1);
}

static void depthwise(const sq_depthwise *d)
{
    uint32_t x = 0;
    while (x < d->width) {
        const bool within = x >= REACH && (uint64_t)x + PIXELS + REACH <= d->width;
        if (within)
            tile_of_pixels(d, x);
        else
            pixel(d, x);
        x += within ? PIXELS : 1;
    }
}
