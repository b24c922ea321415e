/*
 * v16_avx2: 16 floats as two ymm. What is written in terms of v16 (simd/NAME_v16.h) is compiled once for each
 * instruction set and gives the same bits in all: lanes are independent, sums over lanes have one order.
 * SPDX-License-Identifier: MIT
 *
 *   v16, v16i          16 floats, 16 int32
 *   v_max(a, b)        a > b ? a : b; v_min(a, b): a < b ? a : b. A NaN thus gives b.
 *   v_fma(a, b, c)     a * b + c, rounded once; v_fnma: c - a * b
 *   v_first(v, n, w)   lanes 0 .. n-1 of v, the others of w; any n
 *   v_*_first(p, n)    touches no float from p + n on; the others are 0
 *   v_sum, v_most      over all lanes; the sum in the order of sq_sum16()
 *   v_sums(a .. d, p), v_mosts: of four vectors at once
 */
#ifndef SQ_SIMD_X86_V16_AVX2_H
#define SQ_SIMD_X86_V16_AVX2_H

#include "simd/x86/avx2.h"

typedef struct v16 {
    __m256 lo, hi;
} v16;
typedef struct v16i {
    __m256i lo, hi;
} v16i;

#define V16(l, h)                                                                                                      \
    (v16) { (l), (h) }

SQ_INLINE v16 v_all(float x) { return V16(_mm256_set1_ps(x), _mm256_set1_ps(x)); }
SQ_INLINE v16 v_load(const float *p) { return V16(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)); }
SQ_INLINE void v_store(float *p, v16 v)
{
    _mm256_storeu_ps(p, v.lo);
    _mm256_storeu_ps(p + 8, v.hi);
}

SQ_INLINE v16 v_load_first(const float *p, int64_t n)
{
    if (n >= 16) return v_load(p);
    const __m256i m0 = first_lanes(n), m1 = first_lanes(n - 8);
    return V16(_mm256_maskload_ps(p, m0), _mm256_maskload_ps(p + (n > 8 ? 8 : 0), m1));
}

SQ_INLINE void v_store_first(float *p, int64_t n, v16 v)
{
    if (n >= 16) {
        v_store(p, v);
        return;
    }
    _mm256_maskstore_ps(p, first_lanes(n), v.lo);
    _mm256_maskstore_ps(p + (n > 8 ? 8 : 0), first_lanes(n - 8), v.hi);
}

SQ_INLINE v16 v_load_f16(const uint16_t *p)
{
    return V16(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
               _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8))));
}

/* One binary16 in all lanes. */
SQ_INLINE v16 v_all_f16(uint16_t h)
{
    const __m256 v = _mm256_cvtph_ps(_mm_set1_epi16((short)h));
    return V16(v, v);
}

SQ_INLINE v16 v_load_i8(const int8_t *p)
{
    const __m128i v = _mm_loadu_si128((const __m128i *)p);
    return V16(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v)),
               _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(v, 8))));
}

SQ_INLINE v16 v_add(v16 a, v16 b) { return V16(_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)); }
SQ_INLINE v16 v_sub(v16 a, v16 b) { return V16(_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)); }
SQ_INLINE v16 v_mul(v16 a, v16 b) { return V16(_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)); }
SQ_INLINE v16 v_div(v16 a, v16 b) { return V16(_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)); }
SQ_INLINE v16 v_max(v16 a, v16 b) { return V16(_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)); }
SQ_INLINE v16 v_min(v16 a, v16 b) { return V16(_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)); }
SQ_INLINE v16 v_fma(v16 a, v16 b, v16 c)
{
    return V16(_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi));
}
SQ_INLINE v16 v_fnma(v16 a, v16 b, v16 c)
{
    return V16(_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi));
}

SQ_INLINE v16 v_abs(v16 v)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return V16(_mm256_andnot_ps(sign, v.lo), _mm256_andnot_ps(sign, v.hi));
}

/* size >= 0 with the sign of x */
SQ_INLINE v16 v_copysign(v16 size, v16 x)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return V16(_mm256_or_ps(size.lo, _mm256_and_ps(sign, x.lo)), _mm256_or_ps(size.hi, _mm256_and_ps(sign, x.hi)));
}

/* To the nearest integer, ties to even. */
SQ_INLINE v16 v_round(v16 v)
{
    enum { NEAREST = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC };
    return V16(_mm256_round_ps(v.lo, NEAREST), _mm256_round_ps(v.hi, NEAREST));
}

SQ_INLINE __m256 pow2_8(__m256 n)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}

/* v * 2^n for integers n from -126 to 127 */
SQ_INLINE v16 v_mul_pow2(v16 v, v16 n) { return v_mul(v, V16(pow2_8(n.lo), pow2_8(n.hi))); }

/* a < b ? x : y */
SQ_INLINE v16 v_if_less(v16 a, v16 b, v16 x, v16 y)
{
    return V16(_mm256_blendv_ps(y.lo, x.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ)),
               _mm256_blendv_ps(y.hi, x.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ)));
}

SQ_INLINE v16 v_first(v16 v, int64_t n, v16 w)
{
    return V16(_mm256_blendv_ps(w.lo, v.lo, _mm256_castsi256_ps(first_lanes(n))),
               _mm256_blendv_ps(w.hi, v.hi, _mm256_castsi256_ps(first_lanes(n - 8))));
}

SQ_INLINE float v_sum(v16 v) { return sum8(_mm256_add_ps(v.lo, v.hi)); }
SQ_INLINE void v_sums(v16 a, v16 b, v16 c, v16 d, float *sums)
{
    const __m256 a8 = _mm256_add_ps(a.lo, a.hi), b8 = _mm256_add_ps(b.lo, b.hi);
    const __m256 c8 = _mm256_add_ps(c.lo, c.hi), d8 = _mm256_add_ps(d.lo, d.hi);
    const __m256 ab = _mm256_add_ps(_mm256_permute2f128_ps(a8, b8, 0x20), _mm256_permute2f128_ps(a8, b8, 0x31));
    const __m256 cd = _mm256_add_ps(_mm256_permute2f128_ps(c8, d8, 0x20), _mm256_permute2f128_ps(c8, d8, 0x31));
    const __m256 two = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
    const __m256 one = _mm256_add_ps(_mm256_shuffle_ps(two, two, 0x88), _mm256_shuffle_ps(two, two, 0xdd));
    const __m128 ac = _mm256_castps256_ps128(one), bd = _mm256_extractf128_ps(one, 1);
    _mm_storeu_ps(sums, _mm_unpacklo_ps(ac, bd));
}
SQ_INLINE void v_mosts(v16 a, v16 b, v16 c, v16 d, float *most)
{
    const __m256 a8 = _mm256_max_ps(a.lo, a.hi), b8 = _mm256_max_ps(b.lo, b.hi);
    const __m256 c8 = _mm256_max_ps(c.lo, c.hi), d8 = _mm256_max_ps(d.lo, d.hi);
    const __m256 ab = _mm256_max_ps(_mm256_permute2f128_ps(a8, b8, 0x20), _mm256_permute2f128_ps(a8, b8, 0x31));
    const __m256 cd = _mm256_max_ps(_mm256_permute2f128_ps(c8, d8, 0x20), _mm256_permute2f128_ps(c8, d8, 0x31));
    const __m256 two = _mm256_max_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
    const __m256 one = _mm256_max_ps(_mm256_shuffle_ps(two, two, 0x88), _mm256_shuffle_ps(two, two, 0xdd));
    const __m128 ac = _mm256_castps256_ps128(one), bd = _mm256_extractf128_ps(one, 1);
    _mm_storeu_ps(most, _mm_unpacklo_ps(ac, bd));
}
SQ_INLINE float v_most(v16 v) { return max8(_mm256_max_ps(v.lo, v.hi)); }

SQ_INLINE v16i v_zero_i(void) { return (v16i){_mm256_setzero_si256(), _mm256_setzero_si256()}; }
SQ_INLINE v16i v_add_i(v16i a, v16i b) { return (v16i){_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
/* Nearest, ties to even; |v| < 2^31 */
SQ_INLINE v16i v_to_i(v16 v) { return (v16i){_mm256_cvtps_epi32(v.lo), _mm256_cvtps_epi32(v.hi)}; }

SQ_INLINE int32_t v_sum_i(v16i v)
{
    const __m256i eight = _mm256_add_epi32(v.lo, v.hi);
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}

/* Integers of [-128, 127] as bytes. */
SQ_INLINE void v_store_i8(int8_t *p, v16i v)
{
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(v.lo, v.hi), 0xd8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128((__m128i *)p, bytes);
}

/* 32 integers of [-128, 127] as 8 words of 4 bytes, `step` bytes apart. */
SQ_INLINE void v_store_words(v16i a, v16i b, int8_t *q, size_t step)
{
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(a.lo, a.hi), _mm256_packs_epi32(b.lo, b.hi));
    uint32_t words[8]; /* the packs worked within 128-bit halves: words 0 2 4 6 | 1 3 5 7 */
    _mm256_storeu_si256((__m256i *)words, bytes);
    for (size_t j = 0; j < 4; j++) {
        memcpy(q + (2 * j) * step, &words[j], 4);
        memcpy(q + (2 * j + 1) * step, &words[4 + j], 4);
    }
}

SQ_INLINE void transpose8(__m256 r[8])
{
    __m256 t[8], u[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
        r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
    }
}

/* Rows of a 16 by 16 matrix become its columns. */
SQ_INLINE void v_transpose(v16 r[16])
{
    __m256 q[2][2][8]; /* [half of the rows][half of the columns] */
    for (int h = 0; h < 2; h++) {
        for (int i = 0; i < 8; i++) {
            q[h][0][i] = r[8 * h + i].lo;
            q[h][1][i] = r[8 * h + i].hi;
        }
        transpose8(q[h][0]);
        transpose8(q[h][1]);
    }
    for (int h = 0; h < 2; h++) {
        for (int i = 0; i < 8; i++)
            r[8 * h + i] = V16(q[0][h][i], q[1][h][i]);
    }
}

#endif
