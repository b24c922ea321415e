/*
 * peak_avxvnni: the arithmetic of gemm_avxvnni.c alone.
 * SPDX-License-Identifier: MIT
 */
#include "simd/peak.h"
#include "simd/x86/avx2.h"

enum { SUMS = 12 };

double sq_peak_avxvnni(uint64_t n_rounds)
{
    __m256i sum[SUMS] = {0}, w = _mm256_set1_epi8(3), a = _mm256_set1_epi8(5);
    for (uint64_t n = 0; n < n_rounds; n++) {
        SQ_UNROLL
        for (int i = 0; i < SUMS; i++)
            __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum[i]) : "x"(w), "x"(a));
    }
    SQ_UNROLL
    for (int i = 0; i < SUMS; i++)
        __asm__ volatile("" : : "x"(sum[i]));
    return (double)n_rounds * SUMS * 32;
}
