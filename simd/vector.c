/*
 * vector: small operations on vectors, in plain C. Defines the result of all versions.
 * SPDX-License-Identifier: MIT
 *
 * No version fuses a multiplication with an addition here: scores decide about routes, and should not
 * depend on the machine more than they must.
 */
#include "simd/internal.h"

float sq_dot_c(const float *x, const float *y, size_t n)
{
    float sum[8] = {0};
    for (size_t i = 0; i < n; i++)
        sum[i % 8] += x[i] * y[i];
    return sq_sum8(sum);
}

void sq_dots_c(const float *const *x, uint32_t n_x, const float *const y[SQ_DOTS], size_t n, float (*out)[SQ_DOTS])
{
    for (uint32_t i = 0; i < n_x; i++)
        for (int j = 0; j < SQ_DOTS; j++)
            out[i][j] = sq_dot_c(x[i], y[j], n);
}

void sq_scale_c(float *x, float s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] *= s;
}

void sq_to_f16_c(const float *src, uint16_t *dst, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = sq_f32_to_f16(src[i]);
}

void sq_rope_c(float *x, const float *cos_sin, uint32_t head_dim, bool half)
{
    const uint32_t pairs = head_dim / 2, step = half ? 1 : 2, apart = half ? pairs : 1;
    for (uint32_t i = 0; i < pairs; i++) {
        float *a = x + (size_t)i * step, *b = a + apart;
        const float c = cos_sin[i], s = cos_sin[pairs + i], u = *a, v = *b;
        *a = u * c - v * s;
        *b = u * s + v * c;
    }
}
