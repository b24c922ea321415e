/*
 * vector_neon: simd/vector.c defines the results, and these are equal to the last bit.
 * SPDX-License-Identifier: MIT
 */
#include "simd/arm/neon.h"

float sq_dot_neon(const float *x, const float *y, size_t n)
{
    float32x4_t low = vdupq_n_f32(0.0f), high = low;
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        low = vaddq_f32(low, vmulq_f32(vld1q_f32(x + i), vld1q_f32(y + i)));
        high = vaddq_f32(high, vmulq_f32(vld1q_f32(x + i + 4), vld1q_f32(y + i + 4)));
    }
    const int64_t left = (int64_t)(n - i);
    low = vaddq_f32(low, vmulq_f32(load_first(x + i, left), load_first(y + i, left)));
    if (left > 4) high = vaddq_f32(high, vmulq_f32(load_first(x + i + 4, left - 4), load_first(y + i + 4, left - 4)));
    return sum8(low, high);
}

typedef struct sums {
    float32x4_t low, high;
} sums;

SQ_INLINE void add_products(sums *s, const float32x4_t x[2], const float32x4_t y[2])
{
    s->low = vaddq_f32(s->low, vmulq_f32(x[0], y[0]));
    s->high = vaddq_f32(s->high, vmulq_f32(x[1], y[1]));
}

/* Two rows at once: each load of y serves both. */
SQ_INLINE void dots_of_two(const float *const x[2], const float *const y[SQ_DOTS], size_t n, float *const out[2])
{
    sums sum[2][SQ_DOTS];
    for (int j = 0; j < SQ_DOTS; j++)
        sum[0][j].low = sum[0][j].high = sum[1][j].low = sum[1][j].high = vdupq_n_f32(0.0f);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const float32x4_t x0[2] = {vld1q_f32(x[0] + i), vld1q_f32(x[0] + i + 4)};
        const float32x4_t x1[2] = {vld1q_f32(x[1] + i), vld1q_f32(x[1] + i + 4)};
        SQ_UNROLL
        for (int j = 0; j < SQ_DOTS; j++) {
            const float32x4_t v[2] = {vld1q_f32(y[j] + i), vld1q_f32(y[j] + i + 4)};
            add_products(&sum[0][j], x0, v);
            add_products(&sum[1][j], x1, v);
        }
    }
    const int64_t left = (int64_t)(n - i);
    for (int r = 0; r < 2; r++) {
        const float32x4_t rest[2] = {load_first(x[r] + i, left), load_first(x[r] + i + 4, left - 4)};
        for (int j = 0; j < SQ_DOTS; j++) {
            add_products(&sum[r][j], rest,
                         (const float32x4_t[]){load_first(y[j] + i, left), load_first(y[j] + i + 4, left - 4)});
            out[r][j] = sum8(sum[r][j].low, sum[r][j].high);
        }
    }
}

void sq_dots_neon(const float *const *x, uint32_t n_x, const float *const y[SQ_DOTS], size_t n, float (*out)[SQ_DOTS])
{
    for (uint32_t i = 0; i < n_x; i += 2) {
        const uint32_t other = i + 1 < n_x ? i + 1 : i;
        dots_of_two((const float *const[]){x[i], x[other]}, y, n, (float *const[]){out[i], out[other]});
    }
}

void sq_scale_neon(float *x, float s, size_t n)
{
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        vst1q_f32(x + i, vmulq_n_f32(vld1q_f32(x + i), s));
    for (; i < n; i++)
        x[i] *= s;
}

void sq_to_f16_neon(const float *src, uint16_t *dst, size_t n)
{
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        vst1_u16(dst + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(src + i))));
    for (; i < n; i++)
        dst[i] = sq_f32_to_f16(src[i]);
}

static void rope_half(float *x, const float *cos_sin, uint32_t pairs)
{
    for (uint32_t i = 0; i < pairs; i += 4) {
        const float32x4_t c = vld1q_f32(cos_sin + i), s = vld1q_f32(cos_sin + pairs + i);
        const float32x4_t u = vld1q_f32(x + i), v = vld1q_f32(x + pairs + i);
        vst1q_f32(x + i, vsubq_f32(vmulq_f32(u, c), vmulq_f32(v, s)));
        vst1q_f32(x + pairs + i, vaddq_f32(vmulq_f32(u, s), vmulq_f32(v, c)));
    }
}

static void rope_adjacent(float *x, const float *cos_sin, uint32_t pairs)
{
    for (uint32_t i = 0; i < pairs; i += 4) {
        const float32x4_t c = vld1q_f32(cos_sin + i), s = vld1q_f32(cos_sin + pairs + i);
        const float32x4x2_t uv = vld2q_f32(x + 2 * i);
        float32x4x2_t turned;
        turned.val[0] = vsubq_f32(vmulq_f32(uv.val[0], c), vmulq_f32(uv.val[1], s));
        turned.val[1] = vaddq_f32(vmulq_f32(uv.val[0], s), vmulq_f32(uv.val[1], c));
        vst2q_f32(x + 2 * i, turned);
    }
}

void sq_rope_neon(float *x, const float *cos_sin, uint32_t head_dim, bool half)
{
    const uint32_t pairs = head_dim / 2;
    if (pairs % 4) {
        sq_rope_c(x, cos_sin, head_dim, half);
    } else if (half) {
        rope_half(x, cos_sin, pairs);
    } else {
        rope_adjacent(x, cos_sin, pairs);
    }
}
