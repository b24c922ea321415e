/*
 * vector_avx2: simd/vector.c defines the results, and these are equal to the last bit.
 * SPDX-License-Identifier: MIT
 */
#include "simd/x86/avx2.h"

float sq_dot_avx2(const float *x, const float *y, size_t n)
{
    __m256 sum = _mm256_setzero_ps();
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        sum = _mm256_add_ps(sum, _mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i)));
    }
    const __m256i mask = first_lanes((int64_t)(n - i));
    return sum8(_mm256_add_ps(sum, _mm256_mul_ps(_mm256_maskload_ps(x + i, mask), _mm256_maskload_ps(y + i, mask))));
}

/*
 * Two rows at once: their 8 sums are more than an addition takes cycles, and each load of y serves both. Rows come from
 * memory, and the hardware stops fetching ahead at the end of a page, after 1,024 floats: `next` is where the two rows
 * after these begin.
 */
SQ_INLINE void dots_of_two(const float *const x[2], const float *const next[2], const float *const y[SQ_DOTS], size_t n,
                           float *const out[2])
{
    __m256 sum[2][SQ_DOTS];
    for (int j = 0; j < SQ_DOTS; j++)
        sum[0][j] = sum[1][j] = _mm256_setzero_ps();
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256 x0 = _mm256_loadu_ps(x[0] + i), x1 = _mm256_loadu_ps(x[1] + i);
        _mm_prefetch(next[0] + i, _MM_HINT_T0);
        _mm_prefetch(next[1] + i, _MM_HINT_T0);
        for (int j = 0; j < SQ_DOTS; j++) {
            const __m256 v = _mm256_loadu_ps(y[j] + i);
            sum[0][j] = _mm256_add_ps(sum[0][j], _mm256_mul_ps(x0, v));
            sum[1][j] = _mm256_add_ps(sum[1][j], _mm256_mul_ps(x1, v));
        }
    }
    const __m256i mask = first_lanes((int64_t)(n - i));
    const __m256 x0 = _mm256_maskload_ps(x[0] + i, mask), x1 = _mm256_maskload_ps(x[1] + i, mask);
    for (int j = 0; j < SQ_DOTS; j++) {
        const __m256 v = _mm256_maskload_ps(y[j] + i, mask);
        out[0][j] = sum8(_mm256_add_ps(sum[0][j], _mm256_mul_ps(x0, v)));
        out[1][j] = sum8(_mm256_add_ps(sum[1][j], _mm256_mul_ps(x1, v)));
    }
}

void sq_dots_avx2(const float *const *x, uint32_t n_x, const float *const y[SQ_DOTS], size_t n, float (*out)[SQ_DOTS])
{
    for (uint32_t i = 0; i < n_x; i += 2) {
        const uint32_t other = i + 1 < n_x ? i + 1 : i, then = i + 2 < n_x ? i + 2 : i,
                       last = i + 3 < n_x ? i + 3 : then;
        dots_of_two((const float *const[]){x[i], x[other]}, (const float *const[]){x[then], x[last]}, y, n,
                    (float *const[]){out[i], out[other]});
    }
}

void sq_scale_avx2(float *x, float s, size_t n)
{
    const __m256 by = _mm256_set1_ps(s);
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(x + i, _mm256_mul_ps(_mm256_loadu_ps(x + i), by));
    for (; i < n; i++)
        x[i] *= s;
}

void sq_to_f16_avx2(const float *src, uint16_t *dst, size_t n)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        _mm_storeu_si128((__m128i *)(dst + i), _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT));
    }
    for (; i < n; i++)
        dst[i] = (uint16_t)_cvtss_sh(src[i], _MM_FROUND_TO_NEAREST_INT);
}

static void rope_half(float *x, const float *cos_sin, uint32_t pairs)
{
    for (uint32_t i = 0; i < pairs; i += 8) {
        const __m256 c = _mm256_loadu_ps(cos_sin + i), s = _mm256_loadu_ps(cos_sin + pairs + i);
        const __m256 u = _mm256_loadu_ps(x + i), v = _mm256_loadu_ps(x + pairs + i);
        _mm256_storeu_ps(x + i, _mm256_sub_ps(_mm256_mul_ps(u, c), _mm256_mul_ps(v, s)));
        _mm256_storeu_ps(x + pairs + i, _mm256_add_ps(_mm256_mul_ps(u, s), _mm256_mul_ps(v, c)));
    }
}

/* 4 pairs u0 v0 .. u3 v3: c doubled times x, then s doubled times v0 u0 .. v3 u3, taken off from even lanes
 * and added to odd ones. */
static void rope_adjacent(float *x, const float *cos_sin, uint32_t pairs)
{
    const __m256i twice = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    for (uint32_t i = 0; i < pairs; i += 4) {
        const __m256 c4 = _mm256_castps128_ps256(_mm_loadu_ps(cos_sin + i));
        const __m256 s4 = _mm256_castps128_ps256(_mm_loadu_ps(cos_sin + pairs + i));
        const __m256 c = _mm256_permutevar8x32_ps(c4, twice), s = _mm256_permutevar8x32_ps(s4, twice);
        const __m256 uv = _mm256_loadu_ps(x + 2 * i), vu = _mm256_permute_ps(uv, 0xb1);
        _mm256_storeu_ps(x + 2 * i, _mm256_addsub_ps(_mm256_mul_ps(uv, c), _mm256_mul_ps(vu, s)));
    }
}

void sq_rope_avx2(float *x, const float *cos_sin, uint32_t head_dim, bool half)
{
    const uint32_t pairs = head_dim / 2;
    if (half && pairs % 8 == 0) {
        rope_half(x, cos_sin, pairs);
    } else if (!half && pairs % 4 == 0) {
        rope_adjacent(x, cos_sin, pairs);
    } else {
        sq_rope_c(x, cos_sin, head_dim, half);
    }
}
