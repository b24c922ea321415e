/*
 * peak_dotprod: the arithmetic of gemm_dotprod.c alone.
 * SPDX-License-Identifier: MIT
 */
#include "simd/arm/neon.h"
#include "simd/peak.h"

enum { SUMS = 24 };

double sq_peak_dotprod(uint64_t n_rounds)
{
    int32x4_t sum[SUMS] = {0};
    int8x16_t w = vdupq_n_s8(3), a = vdupq_n_s8(5);
    for (uint64_t n = 0; n < n_rounds; n++) {
        __asm__("" : "+w"(w), "+w"(a)); /* or the compiler would multiply once */
        for (int i = 0; i < SUMS; i++)
            sum[i] = vdotq_s32(sum[i], w, a);
    }
    for (int i = 0; i < SUMS; i++)
        __asm__ volatile("" : : "w"(sum[i]));
    return (double)n_rounds * SUMS * 16;
}
