/*
 * rows_neon: simd/rows.c defines the results. Norms and quantisation are equal to the last bit (lane i of the two sums
 * is partial sum i, and nothing is fused); gates differ by the rounding of exp and erf.
 * SPDX-License-Identifier: MIT
 */
#include "simd/arm/neon.h"

static float sum_of(const float *x, uint32_t k)
{
    float32x4_t low = vdupq_n_f32(0.0f), high = low;
    uint32_t i = 0;
    for (; i + 8 <= k; i += 8) {
        low = vaddq_f32(low, vld1q_f32(x + i));
        high = vaddq_f32(high, vld1q_f32(x + i + 4));
    }
    const int64_t left = k - i;
    low = vaddq_f32(low, load_first(x + i, left));
    if (left > 4) high = vaddq_f32(high, load_first(x + i + 4, left - 4));
    return sum8(low, high);
}

/* (x - mean)^2 of the first n of 4 */
SQ_INLINE float32x4_t squares(const float *x, int64_t n, float mean)
{
    float d[4] = {0};
    for (int64_t i = 0; i < n && i < 4; i++)
        d[i] = x[i] - mean;
    const float32x4_t v = vld1q_f32(d);
    return vmulq_f32(v, v);
}

static float sum_of_squares(const float *x, float mean, uint32_t k)
{
    const float32x4_t m = vdupq_n_f32(mean);
    float32x4_t low = vdupq_n_f32(0.0f), high = low;
    uint32_t i = 0;
    for (; i + 8 <= k; i += 8) {
        const float32x4_t d0 = vsubq_f32(vld1q_f32(x + i), m), d1 = vsubq_f32(vld1q_f32(x + i + 4), m);
        low = vaddq_f32(low, vmulq_f32(d0, d0));
        high = vaddq_f32(high, vmulq_f32(d1, d1));
    }
    const int64_t left = k - i;
    low = vaddq_f32(low, squares(x + i, left, mean));
    if (left > 4) high = vaddq_f32(high, squares(x + i + 4, left - 4, mean));
    return sum8(low, high);
}

static void rms_norm(const sq_rows_in *in, const float *x, float *y)
{
    const float r = 1.0f / sqrtf(sum_of_squares(x, 0.0f, in->k) / (float)in->k + in->eps);
    for (uint32_t i = 0; i < in->k; i += 4) {
        const int64_t n = in->k - i;
        store_first(y + i, n, vmulq_f32(vmulq_n_f32(load_first(x + i, n), r), load_first(in->weight + i, n)));
    }
}

static void layer_norm(const sq_rows_in *in, const float *x, float *y)
{
    const float mean = sum_of(x, in->k) / (float)in->k;
    const float r = 1.0f / sqrtf(sum_of_squares(x, mean, in->k) / (float)in->k + in->eps);
    for (uint32_t i = 0; i < in->k; i += 4) {
        const int64_t n = in->k - i;
        const float32x4_t d = vmulq_n_f32(vsubq_f32(load_first(x + i, n), vdupq_n_f32(mean)), r);
        const float32x4_t t = vmulq_f32(d, load_first(in->weight + i, n));
        store_first(y + i, n, vaddq_f32(t, load_first(in->bias + i, n)));
    }
}

/* x * sigmoid(s * x) */
SQ_INLINE float32x4_t gate(float32x4_t x, float s)
{
    return vdivq_f32(x, vaddq_f32(vdupq_n_f32(1.0f), exp4(vnegq_f32(vmulq_n_f32(x, s)))));
}

SQ_INLINE float32x4_t gelu(float32x4_t x)
{
    const float32x4_t e = erf4(vmulq_n_f32(x, 0.70710678f));
    return vmulq_f32(vmulq_n_f32(x, 0.5f), vaddq_f32(vdupq_n_f32(1.0f), e));
}

static void activate(const sq_rows_in *in, const float *x, float *y)
{
    for (uint32_t i = 0; i < in->k; i += 4) {
        const int64_t n = in->k - i;
        const float32x4_t v = load_first(x + i, n);
        if (in->op == SQ_ROW_SWIGLU) {
            store_first(y + i, n, vmulq_f32(gate(v, 1.0f), load_first(x + in->k + i, n)));
        } else {
            store_first(y + i, n, in->op == SQ_ROW_GELU ? gelu(v) : gate(v, 1.702f));
        }
    }
}

void sq_row_neon(const sq_rows_in *in, const float *x, float *y)
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

/* A NaN is larger than nothing. */
static float largest_magnitude(const float *y, uint32_t n)
{
    float32x4_t most = vdupq_n_f32(0.0f);
    for (uint32_t i = 0; i < n; i += 4) {
        const float32x4_t v = vabsq_f32(load_first(y + i, n - i));
        most = vbslq_f32(vcgtq_f32(v, most), v, most);
    }
    return vmaxvq_f32(most);
}

/* 4 activations as int32 in [-127, 127], nearest, ties to even; maxnm also turns a NaN into a number. */
SQ_INLINE int32x4_t quantise4(float32x4_t y, float inv)
{
    const float32x4_t v = vmaxnmq_f32(vmulq_n_f32(y, inv), vdupq_n_f32(-127.0f));
    return vcvtnq_s32_f32(vminq_f32(v, vdupq_n_f32(127.0f)));
}

/* Inputs [i, i + 16) of one row: 4 words, `step` bytes apart in the tile. Past `end` zeros. */
SQ_INLINE int32x4_t pack16(const float *y, uint32_t i, uint32_t end, float inv, int8_t *q, size_t step)
{
    int32x4_t v[4];
    for (uint32_t j = 0; j < 4; j++) {
        const int64_t n = (int64_t)end - i - 4 * j;
        v[j] = n > 0 ? quantise4(load_first(y + i + 4 * j, n), inv) : vdupq_n_s32(0);
        if (n > 0 && n < 4) { /* 0 times an infinite inv is not 0 */
            const int32x4_t lane = {0, 1, 2, 3};
            v[j] = vandq_s32(v[j], vreinterpretq_s32_u32(vcltq_s32(lane, vdupq_n_s32((int32_t)n))));
        }
    }
    const int16x8_t low = vcombine_s16(vmovn_s32(v[0]), vmovn_s32(v[1]));
    const int16x8_t high = vcombine_s16(vmovn_s32(v[2]), vmovn_s32(v[3]));
    const uint32x4_t words = vreinterpretq_u32_s8(vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
    vst1q_lane_u32((uint32_t *)q, words, 0);
    vst1q_lane_u32((uint32_t *)(q + step), words, 1);
    vst1q_lane_u32((uint32_t *)(q + 2 * step), words, 2);
    vst1q_lane_u32((uint32_t *)(q + 3 * step), words, 3);
    return vaddq_s32(vaddq_s32(v[0], v[1]), vaddq_s32(v[2], v[3]));
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
        int32x4_t sum = vdupq_n_s32(0);
        for (uint32_t i = k0; i < sq_round_up(end, SQ_PANEL_K); i += 16) {
            sum = vaddq_s32(sum, pack16(y, i, end, inv, q + (size_t)i * mr, (size_t)mr * 4));
        }
        out->scale[at] = inv > 0.0f ? most / 127.0f : 0.0f;
        out->sum[at] = vaddvq_s32(sum);
    }
}

void sq_rows_pack_neon(const sq_rows_in *in, sq_acts *out, uint32_t tile0, uint32_t n_tiles, float *scratch)
{
    sq_rows_pack_with(in, out, tile0, n_tiles, scratch, sq_row_neon, quantise_row);
}
