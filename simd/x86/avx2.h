/*
 * avx2: what the AVX2 files share: tail masks, sums and maxima over lanes.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQ_SIMD_X86_AVX2_H
#define SQ_SIMD_X86_AVX2_H

#if !defined(__AVX2__) || !defined(__FMA__) || !defined(__F16C__)
#error "needs -mavx2 -mfma -mf16c: see simd_sets in simd/meson.build"
#endif

#include "simd/internal.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

/* Lanes 0 .. n-1 for masked loads and stores, which never touch the memory of the others; any n. */
SQ_INLINE __m256i first_lanes(int64_t n)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(n < 0 ? 0 : n < 8 ? n : 8)), lane);
}

/* In place and in this order: GCC 12 would regroup the sums, make all products first and spill them. */
SQ_INLINE void add_i16(__m256i *sum, __m256i v) { __asm__("vpaddw %1, %0, %0" : "+x"(*sum) : "x"(v)); }
SQ_INLINE void add_i32(__m256i *sum, __m256i v) { __asm__("vpaddd %1, %0, %0" : "+x"(*sum) : "x"(v)); }

/* v & 15 in each byte. The mask is a memory operand: in a register it would cost the products a spilled sum. */
SQ_INLINE __m256i low_nibbles8(__m256i v)
{
    static const uint64_t nibbles[4]
        __attribute__((aligned(32))) = {0x0f0f0f0f0f0f0f0f, 0x0f0f0f0f0f0f0f0f, 0x0f0f0f0f0f0f0f0f, 0x0f0f0f0f0f0f0f0f};
    __asm__("vpand %1, %0, %0" : "+x"(v) : "m"(nibbles));
    return v;
}
/* In the order of sq_sum8(). */
SQ_INLINE float sum8(__m256 v)
{
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

SQ_INLINE float max8(__m256 v)
{
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

#endif
