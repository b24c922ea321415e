/*
 * v16_avx512: 16 floats as one zmm; v16_avx2.h tells what each function does.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQ_SIMD_X86_V16_AVX512_H
#define SQ_SIMD_X86_V16_AVX512_H

#include "simd/x86/avx2.h"
#include "simd/x86/avx512.h"

typedef __m512 v16;
typedef __m512i v16i;

SQ_INLINE __mmask16 v_mask(int64_t n) { return (__mmask16)(n <= 0 ? 0u : n < 16 ? (1u << n) - 1 : 0xffffu); }

SQ_INLINE v16 v_all(float x) { return _mm512_set1_ps(x); }
SQ_INLINE v16 v_load(const float *p) { return _mm512_loadu_ps(p); }
SQ_INLINE void v_store(float *p, v16 v) { _mm512_storeu_ps(p, v); }
SQ_INLINE v16 v_load_first(const float *p, int64_t n)
{
    return n >= 16 ? v_load(p) : _mm512_maskz_loadu_ps(v_mask(n), p); /* a mask costs more than a branch */
}
SQ_INLINE void v_store_first(float *p, int64_t n, v16 v)
{
    if (n >= 16)
        v_store(p, v);
    else
        _mm512_mask_storeu_ps(p, v_mask(n), v);
}
SQ_INLINE v16 v_load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
SQ_INLINE v16 v_all_f16(uint16_t h) { return _mm512_cvtph_ps(_mm256_set1_epi16((short)h)); }
SQ_INLINE v16 v_load_i8(const int8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

SQ_INLINE v16 v_add(v16 a, v16 b) { return _mm512_add_ps(a, b); }
SQ_INLINE v16 v_sub(v16 a, v16 b) { return _mm512_sub_ps(a, b); }
SQ_INLINE v16 v_mul(v16 a, v16 b) { return _mm512_mul_ps(a, b); }
SQ_INLINE v16 v_div(v16 a, v16 b) { return _mm512_div_ps(a, b); }
SQ_INLINE v16 v_max(v16 a, v16 b) { return _mm512_max_ps(a, b); }
SQ_INLINE v16 v_min(v16 a, v16 b) { return _mm512_min_ps(a, b); }
SQ_INLINE v16 v_fma(v16 a, v16 b, v16 c) { return _mm512_fmadd_ps(a, b, c); }
SQ_INLINE v16 v_fnma(v16 a, v16 b, v16 c) { return _mm512_fnmadd_ps(a, b, c); }
SQ_INLINE v16 v_abs(v16 v) { return _mm512_abs_ps(v); }
SQ_INLINE v16 v_copysign(v16 size, v16 x) { return _mm512_or_ps(size, _mm512_and_ps(x, _mm512_set1_ps(-0.0f))); }
SQ_INLINE v16 v_round(v16 v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
SQ_INLINE v16 v_mul_pow2(v16 v, v16 n) { return _mm512_scalef_ps(v, n); }
SQ_INLINE v16 v_if_less(v16 a, v16 b, v16 x, v16 y)
{
    return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), x);
}
SQ_INLINE v16 v_first(v16 v, int64_t n, v16 w) { return _mm512_mask_mov_ps(w, v_mask(n), v); }

SQ_INLINE float v_sum(v16 v) { return sum8(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1))); }
SQ_INLINE void v_sums(v16 a, v16 b, v16 c, v16 d, float *sums)
{
    const __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    const __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
    const __m512 four = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    const __m512 two = _mm512_add_ps(four, _mm512_permute_ps(four, 0x4e));
    const __m512 one = _mm512_add_ps(two, _mm512_permute_ps(two, 0xb1));
    _mm_storeu_ps(sums, _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, one)));
}
SQ_INLINE void v_mosts(v16 a, v16 b, v16 c, v16 d, float *most)
{
    const __m512 ab = _mm512_max_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    const __m512 cd = _mm512_max_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
    const __m512 four = _mm512_max_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    const __m512 two = _mm512_max_ps(four, _mm512_permute_ps(four, 0x4e));
    const __m512 one = _mm512_max_ps(two, _mm512_permute_ps(two, 0xb1));
    _mm_storeu_ps(most, _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, one)));
}
SQ_INLINE float v_most(v16 v) { return _mm512_reduce_max_ps(v); }

SQ_INLINE v16i v_zero_i(void) { return _mm512_setzero_si512(); }
SQ_INLINE v16i v_add_i(v16i a, v16i b) { return _mm512_add_epi32(a, b); }
SQ_INLINE v16i v_to_i(v16 v) { return _mm512_cvtps_epi32(v); }
SQ_INLINE int32_t v_sum_i(v16i v) { return _mm512_reduce_add_epi32(v); }

SQ_INLINE void v_store_i8(int8_t *p, v16i v) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(v)); }
SQ_INLINE void v_store_words(v16i a, v16i b, int8_t *q, size_t step)
{
    uint32_t words[8];
    _mm_storeu_si128((__m128i *)words, _mm512_cvtepi32_epi8(a));
    _mm_storeu_si128((__m128i *)(words + 4), _mm512_cvtepi32_epi8(b));
    for (size_t j = 0; j < 8; j++)
        memcpy(q + j * step, &words[j], 4);
}

SQ_INLINE void v_transpose(v16 r[16])
{
    __m512 t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) { /* quarters: column i, i + 4, i + 8, i + 12 of four rows each */
        t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
        r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
        r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

#endif
