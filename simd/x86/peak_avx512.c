/*
 * peak_avx512: the arithmetic of gemm_avx512.c alone.
 * SPDX-License-Identifier: MIT
 */
#include "simd/peak.h"
#include "simd/x86/avx512.h"

enum { SUMS = 24 };

double sq_peak_avx512vnni(uint64_t n_rounds)
{
    __m512i sum[SUMS] = {0}, w = _mm512_set1_epi8(3), a = _mm512_set1_epi8(5);
    for (uint64_t n = 0; n < n_rounds; n++) {
        SQ_UNROLL
        for (int i = 0; i < SUMS; i++)
            dot512(&sum[i], w, a);
    }
    SQ_UNROLL
    for (int i = 0; i < SUMS; i++)
        __asm__ volatile("" : : "v"(sum[i]));
    return (double)n_rounds * SUMS * 64;
}

double sq_peak_f32_avx512(uint64_t n_rounds)
{
    __m512 sum[SUMS] = {0}, x = _mm512_set1_ps(3), y = _mm512_set1_ps(5);
    for (uint64_t n = 0; n < n_rounds; n++) {
        SQ_UNROLL
        for (int i = 0; i < SUMS; i++) {
            __asm__("" : "+v"(x)); /* or one product would serve all */
            sum[i] = _mm512_fmadd_ps(x, y, sum[i]);
        }
    }
    SQ_UNROLL
    for (int i = 0; i < SUMS; i++)
        __asm__ volatile("" : : "v"(sum[i]));
    return (double)n_rounds * SUMS * 16;
}
