/*
 * peak_neon: the arithmetic of gemm_neon.c alone.
 * SPDX-License-Identifier: MIT
 */
#include "simd/arm/neon.h"
#include "simd/peak.h"

enum { SUMS = 16 };

/* The compiler may not know that these never change, or it would multiply once. */
#define OPAQUE(v) __asm__("" : "+w"(v))

double sq_peak_i8_neon(uint64_t n_rounds)
{
    int32x4_t sum[SUMS] = {0};
    int8x16_t w = vdupq_n_s8(3), a = vdupq_n_s8(5);
    for (uint64_t n = 0; n < n_rounds; n++) {
        for (int i = 0; i < SUMS; i += 2) {
            OPAQUE(w);
            const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(a)), high = vmull_high_s8(w, a);
            sum[i] = vpadalq_s16(sum[i], vmlal_s8(low, vget_low_s8(w), vget_low_s8(a)));
            sum[i + 1] = vpadalq_s16(sum[i + 1], vmlal_high_s8(high, w, a));
        }
    }
    for (int i = 0; i < SUMS; i++)
        __asm__ volatile("" : : "w"(sum[i]));
    return (double)n_rounds * SUMS * 16;
}

double sq_peak_i4_neon(uint64_t n_rounds)
{
    int16x8_t sum[SUMS] = {0};
    int8x16_t w = vdupq_n_s8(3), a = vdupq_n_s8(5);
    for (uint64_t n = 0; n < n_rounds; n++) {
        for (int i = 0; i < SUMS; i += 2) {
            OPAQUE(w);
            sum[i] = vmlal_s8(sum[i], vget_low_s8(w), vget_low_s8(a));
            sum[i + 1] = vmlal_high_s8(sum[i + 1], w, a);
        }
    }
    for (int i = 0; i < SUMS; i++)
        __asm__ volatile("" : : "w"(sum[i]));
    return (double)n_rounds * SUMS * 8;
}
