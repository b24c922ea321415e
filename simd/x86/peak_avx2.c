/*
 * peak_avx2: the arithmetic of gemm_avx2.c alone.
 * SPDX-License-Identifier: MIT
 */
#include "simd/peak.h"
#include "simd/x86/avx2.h"

enum { SUMS = 12 };

/* The compiler may not know that these never change, or it would keep one product and add that. */
#define OPAQUE(v) __asm__("" : "+x"(v))

static void use(const __m256i *sum)
{
    SQ_UNROLL
    for (int i = 0; i < SUMS; i++)
        __asm__ volatile("" : : "x"(sum[i]));
}

double sq_peak_i8_avx2(uint64_t n_rounds)
{
    __m256i sum[SUMS] = {0}, w = _mm256_set1_epi16(3), a = _mm256_set1_epi16(5);
    for (uint64_t n = 0; n < n_rounds; n++) {
        SQ_UNROLL
        for (int i = 0; i < SUMS; i++) {
            OPAQUE(w);
            add_i32(&sum[i], _mm256_madd_epi16(w, a));
        }
    }
    use(sum);
    return (double)n_rounds * SUMS * 16;
}

double sq_peak_i4_avx2(uint64_t n_rounds)
{
    __m256i sum[SUMS] = {0}, w = _mm256_set1_epi8(3), a = _mm256_set1_epi8(5);
    for (uint64_t n = 0; n < n_rounds; n++) {
        SQ_UNROLL
        for (int i = 0; i < SUMS; i++) {
            OPAQUE(w);
            add_i16(&sum[i], _mm256_maddubs_epi16(w, a));
        }
    }
    use(sum);
    return (double)n_rounds * SUMS * 32;
}

double sq_peak_f32_avx2(uint64_t n_rounds)
{
    __m256 sum[SUMS] = {0}, x = _mm256_set1_ps(3), y = _mm256_set1_ps(5);
    for (uint64_t n = 0; n < n_rounds; n++) {
        SQ_UNROLL
        for (int i = 0; i < SUMS; i++) {
            OPAQUE(x);
            sum[i] = _mm256_fmadd_ps(x, y, sum[i]);
        }
    }
    SQ_UNROLL
    for (int i = 0; i < SUMS; i++)
        __asm__ volatile("" : : "x"(sum[i]));
    return (double)n_rounds * SUMS * 8;
}
