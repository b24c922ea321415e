/*
 * neon: what the ARM files share: loads and stores of a few lanes, sums.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQ_SIMD_ARM_NEON_H
#define SQ_SIMD_ARM_NEON_H

#if !defined(__aarch64__) || !defined(__ARM_NEON)
#error "needs 64-bit ARM: see simd_sets in simd/meson.build"
#endif

#include "simd/internal.h"

#include <arm_neon.h>
#include <math.h>
#include <string.h>

/* The first n floats at x, then zeros; n <= 0: four zeros, and x is not read. */
SQ_INLINE float32x4_t load_first(const float *x, int64_t n)
{
    if (n >= 4) return vld1q_f32(x);
    float v[4] = {0};
    for (int64_t i = 0; i < n; i++)
        v[i] = x[i];
    return vld1q_f32(v);
}

SQ_INLINE void store_first(float *y, int64_t n, float32x4_t v)
{
    if (n >= 4) {
        vst1q_f32(y, v);
        return;
    }
    float all[4];
    vst1q_f32(all, v);
    for (int64_t i = 0; i < n; i++)
        y[i] = all[i];
}

/* Partial sums 0-3 and 4-7, in the order of sq_sum8(). */
SQ_INLINE float sum8(float32x4_t low, float32x4_t high)
{
    const float32x4_t four = vaddq_f32(low, high);
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

#endif
