/*
 * rows_avx2: simd/rows.c defines the results. Norms and quantisation are equal to the last bit (lane i of a sum
 * is its partial sum i, and nothing is fused); gates differ by the rounding of exp and erf.
 * SPDX-License-Identifier: MIT
 */
#include "simd/x86/avx2.h"

SQ_INLINE __m256 load_n(const float *x, int64_t n) { return _mm256_maskload_ps(x, first_lanes(n)); }

SQ_INLINE void store_n(float *y, int64_t n, __m256 v)
{
    if (n >= 8) {
        _mm256_storeu_ps(y, v);
    } else {
        _mm256_maskstore_ps(y, first_lanes(n), v);
    }
}

static float sum_of(const float *x, uint32_t k)
{
    __m256 sum = _mm256_setzero_ps();
    uint32_t i = 0;
    for (; i + 8 <= k; i += 8)
        sum = _mm256_add_ps(sum, _mm256_loadu_ps(x + i));
    return sum8(_mm256_add_ps(sum, load_n(x + i, k - i)));
}

static float sum_of_squares(const float *x, float mean, uint32_t k)
{
    const __m256 m = _mm256_set1_ps(mean);
    __m256 sum = _mm256_setzero_ps();
    uint32_t i = 0;
    for (; i + 8 <= k; i += 8) {
        const __m256 d = _mm256_sub_ps(_mm256_loadu_ps(x + i), m);
        sum = _mm256_add_ps(sum, _mm256_mul_ps(d, d));
    }
    const __m256 d = _mm256_and_ps(_mm256_sub_ps(load_n(x + i, k - i), m), _mm256_castsi256_ps(first_lanes(k - i)));
    return sum8(_mm256_add_ps(sum, _mm256_mul_ps(d, d)));
}

static void rms_norm(const sq_rows_in *in, const float *x, float *y)
{
    const __m256 r = _mm256_set1_ps(1.0f / sqrtf(sum_of_squares(x, 0.0f, in->k) / (float)in->k + in->eps));
    for (uint32_t i = 0; i < in->k; i += 8) {
        const int64_t n = in->k - i;
        store_n(y + i, n, _mm256_mul_ps(_mm256_mul_ps(load_n(x + i, n), r), load_n(in->weight + i, n)));
    }
}

static void layer_norm(const sq_rows_in *in, const float *x, float *y)
{
    const float mean = sum_of(x, in->k) / (float)in->k;
    const __m256 m = _mm256_set1_ps(mean);
    const __m256 r = _mm256_set1_ps(1.0f / sqrtf(sum_of_squares(x, mean, in->k) / (float)in->k + in->eps));
    for (uint32_t i = 0; i < in->k; i += 8) {
        const int64_t n = in->k - i;
        const __m256 d = _mm256_mul_ps(_mm256_sub_ps(load_n(x + i, n), m), r);
        store_n(y + i, n, _mm256_add_ps(_mm256_mul_ps(d, load_n(in->weight + i, n)), load_n(in->bias + i, n)));
    }
}

/* x * sigmoid(s * x) */
SQ_INLINE __m256 gate(__m256 x, float s)
{
    const __m256 e = exp8(_mm256_xor_ps(_mm256_mul_ps(_mm256_set1_ps(s), x), _mm256_set1_ps(-0.0f)));
    return _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0f), e));
}

SQ_INLINE __m256 gelu(__m256 x)
{
    const __m256 e = erf8(_mm256_mul_ps(x, _mm256_set1_ps(0.70710678f)));
    return _mm256_mul_ps(_mm256_mul_ps(_mm256_set1_ps(0.5f), x), _mm256_add_ps(_mm256_set1_ps(1.0f), e));
}

static void activate(const sq_rows_in *in, const float *x, float *y)
{
    for (uint32_t i = 0; i < in->k; i += 8) {
        const int64_t n = in->k - i;
        const __m256 v = load_n(x + i, n);
        if (in->op == SQ_ROW_SWIGLU) {
            store_n(y + i, n, _mm256_mul_ps(gate(v, 1.0f), load_n(x + in->k + i, n)));
        } else {
            store_n(y + i, n, in->op == SQ_ROW_GELU ? gelu(v) : gate(v, 1.702f));
        }
    }
}

void sq_row_avx2(const sq_rows_in *in, const float *x, float *y)
{
    switch (in->op) {
    case SQ_ROW_COPY:
        sq_row_c(in, x, y);
        break;
    case SQ_ROW_RMSNORM:
        rms_norm(in, x, y);
        break;
    case SQ_ROW_LAYERNORM:
        layer_norm(in, x, y);
        break;
    case SQ_ROW_SWIGLU:
    case SQ_ROW_QUICKGELU:
    case SQ_ROW_GELU:
        activate(in, x, y);
        break;
    }
}

/* ---- Quantise and pack ------------------------------------------------------------------- */

/* A NaN loses against the number beside it. */
static float largest_magnitude(const float *y, uint32_t n)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 most = _mm256_setzero_ps();
    for (uint32_t i = 0; i < n; i += 8)
        most = _mm256_max_ps(_mm256_andnot_ps(sign, load_n(y + i, n - i)), most);
    return max8(most);
}

/* 8 activations as int32 in [-127, 127]; max with the number second also turns a NaN into one. */
SQ_INLINE __m256i quantise8(__m256 y, __m256 inv)
{
    const __m256 v = _mm256_max_ps(_mm256_mul_ps(y, inv), _mm256_set1_ps(-127.0f));
    return _mm256_cvtps_epi32(_mm256_min_ps(v, _mm256_set1_ps(127.0f)));
}

SQ_INLINE int32_t sum8_i32(__m256i v)
{
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}

/* Inputs [i, i + 32) of one row: 8 words of 4 bytes, one in every word-row of the tile. Past `end` zeros. */
SQ_INLINE __m256i pack32(const float *y, uint32_t i, uint32_t end, __m256 inv, int8_t *q, size_t step)
{
    __m256i v[4];
    for (uint32_t j = 0; j < 4; j++) {
        const int64_t n = (int64_t)end - i - 8 * j;
        const float *from = n > 0 ? y + i + 8 * j : y; /* never a pointer past the row */
        v[j] = _mm256_and_si256(quantise8(load_n(from, n), inv), first_lanes(n));
    }
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
    /* The packs worked within 128-bit halves: words 0 2 4 6 | 1 3 5 7. */
    uint32_t words[8];
    _mm256_storeu_si256((__m256i *)words, bytes);
    for (uint32_t j = 0; j < 4; j++) {
        memcpy(q + (2 * j) * step, &words[j], 4);
        memcpy(q + (2 * j + 1) * step, &words[4 + j], 4);
    }
    return _mm256_add_epi32(_mm256_add_epi32(v[0], v[1]), _mm256_add_epi32(v[2], v[3]));
}

static void quantise_row(const float *y, sq_acts *out, uint32_t tile, uint32_t r)
{
    const uint32_t k = out->k, k_pad = sq_acts_k_pad(out), n_groups = sq_acts_groups(out), mr = out->mr;
    int8_t *q = out->q + ((size_t)tile * k_pad * mr + r * 4);
    for (uint32_t g = 0; g < n_groups; g++) {
        const uint32_t k0 = g * out->group, end = k - k0 < out->group ? k : k0 + out->group;
        const float most = largest_magnitude(y + k0, end - k0);
        const float inv = most >= SQ_ACT_LEAST ? 127.0f / most : 0.0f;
        const size_t at = ((size_t)tile * n_groups + g) * mr + r;
        __m256i sum = _mm256_setzero_si256();
        for (uint32_t i = k0; i < end; i += 32) {
            sum = _mm256_add_epi32(sum, pack32(y, i, end, _mm256_set1_ps(inv), q + (size_t)i * mr, (size_t)mr * 4));
        }
        out->scale[at] = inv > 0.0f ? most / 127.0f : 0.0f;
        out->sum[at] = sum8_i32(sum);
    }
}

void sq_rows_pack_avx2(const sq_rows_in *in, sq_acts *out, uint32_t tile0, uint32_t n_tiles, float *scratch)
{
    sq_rows_pack_with(in, out, tile0, n_tiles, scratch, sq_row_avx2, quantise_row);
}
