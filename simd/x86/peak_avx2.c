/*
 * peak_avx2: the arithmetic of gemm_avx2.c alone.
 * SPDX-License-Identifier: MIT
 */
#include "simd/peak.h"
#include "simd/x86/avx2.h"

enum {
    SUMS = 12,
    I4_STEPS = 8, /* of 4 inputs, whose sums fit int16 */
};

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

/* The products of a block of 32 inputs, which fill int16 sums, and their widening to int32, without which no product of
 * that length is right: 96 vpmaddubsw, 84 vpaddw (the first of 8 steps needs none), 12 vpmaddwd and 12 vpaddd. Not in
 * it: loads, the unpacking of nibbles, and the scales of groups. */
double sq_peak_i4_avx2(uint64_t n_rounds)
{
    __m256i sum[SUMS], total = _mm256_setzero_si256(), w = _mm256_set1_epi8(3), a = _mm256_set1_epi8(5);
    for (uint64_t n = 0; n < n_rounds; n++) {
        SQ_UNROLL
        for (int step = 0; step < I4_STEPS; step++) {
            SQ_UNROLL
            for (int i = 0; i < SUMS; i++) {
                OPAQUE(w);
                if (step)
                    add_i16(&sum[i], _mm256_maddubs_epi16(w, a));
                else
                    sum[i] = _mm256_maddubs_epi16(w, a);
                OPAQUE(sum[i]); /* in this order, or GCC needs more registers than there are */
            }
        }
        SQ_UNROLL
        for (int i = 0; i < SUMS; i++)
            add_i32(&total, _mm256_madd_epi16(sum[i], w));
    }
    __asm__ volatile("" : : "x"(total));
    return (double)n_rounds * I4_STEPS * SUMS * 32;
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
