/*
 * v16_neon: 16 floats as four registers; x86/v16_avx2.h tells what each function does.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQ_SIMD_ARM_V16_NEON_H
#define SQ_SIMD_ARM_V16_NEON_H

#include "simd/arm/neon.h"

/* Members, not an array: GCC keeps only those in registers. */
typedef struct v16 {
    float32x4_t a, b, c, d;
} v16;
typedef struct v16i {
    int32x4_t a, b, c, d;
} v16i;

/* The same for each of the four registers. */
#define V16_1(f, x)                                                                                                    \
    (v16) { f((x).a), f((x).b), f((x).c), f((x).d) }
#define V16_2(f, x, y)                                                                                                 \
    (v16) { f((x).a, (y).a), f((x).b, (y).b), f((x).c, (y).c), f((x).d, (y).d) }
#define V16_3(f, x, y, z)                                                                                              \
    (v16) { f((x).a, (y).a, (z).a), f((x).b, (y).b, (z).b), f((x).c, (y).c, (z).c), f((x).d, (y).d, (z).d) }

SQ_INLINE v16 v_all(float x)
{
    const float32x4_t v = vdupq_n_f32(x);
    return (v16){v, v, v, v};
}

SQ_INLINE v16 v_load(const float *p)
{
    return (v16){vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)};
}

SQ_INLINE void v_store(float *p, v16 v)
{
    vst1q_f32(p, v.a);
    vst1q_f32(p + 4, v.b);
    vst1q_f32(p + 8, v.c);
    vst1q_f32(p + 12, v.d);
}

SQ_INLINE v16 v_load_first(const float *p, int64_t n)
{
    if (n >= 16) return v_load(p);
    float all[16] = {0};
    if (n > 0) memcpy(all, p, (size_t)n * sizeof *p);
    return v_load(all);
}

SQ_INLINE void v_store_first(float *p, int64_t n, v16 v)
{
    if (n >= 16) {
        v_store(p, v);
        return;
    }
    float all[16];
    v_store(all, v);
    if (n > 0) memcpy(p, all, (size_t)n * sizeof *p);
}

SQ_INLINE float32x4_t widen(uint16x4_t h) { return vcvt_f32_f16(vreinterpret_f16_u16(h)); }
SQ_INLINE v16 v_load_f16(const uint16_t *p)
{
    return (v16){widen(vld1_u16(p)), widen(vld1_u16(p + 4)), widen(vld1_u16(p + 8)), widen(vld1_u16(p + 12))};
}

SQ_INLINE v16 v_all_f16(uint16_t h)
{
    const float32x4_t v = widen(vdup_n_u16(h));
    return (v16){v, v, v, v};
}

SQ_INLINE v16 v_load_i8(const int8_t *p)
{
    const int8x16_t v = vld1q_s8(p);
    const int16x8_t low = vmovl_s8(vget_low_s8(v)), high = vmovl_s8(vget_high_s8(v));
    return (v16){vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
                 vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))};
}

SQ_INLINE float32x4_t max4(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
SQ_INLINE float32x4_t min4(float32x4_t a, float32x4_t b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
SQ_INLINE float32x4_t fma4(float32x4_t a, float32x4_t b, float32x4_t c) { return vfmaq_f32(c, a, b); }
SQ_INLINE float32x4_t fnma4(float32x4_t a, float32x4_t b, float32x4_t c) { return vfmsq_f32(c, a, b); }

SQ_INLINE v16 v_add(v16 a, v16 b) { return V16_2(vaddq_f32, a, b); }
SQ_INLINE v16 v_sub(v16 a, v16 b) { return V16_2(vsubq_f32, a, b); }
SQ_INLINE v16 v_mul(v16 a, v16 b) { return V16_2(vmulq_f32, a, b); }
SQ_INLINE v16 v_div(v16 a, v16 b) { return V16_2(vdivq_f32, a, b); }
SQ_INLINE v16 v_max(v16 a, v16 b) { return V16_2(max4, a, b); }
SQ_INLINE v16 v_min(v16 a, v16 b) { return V16_2(min4, a, b); }
SQ_INLINE v16 v_fma(v16 a, v16 b, v16 c) { return V16_3(fma4, a, b, c); }
SQ_INLINE v16 v_fnma(v16 a, v16 b, v16 c) { return V16_3(fnma4, a, b, c); }
SQ_INLINE v16 v_abs(v16 v) { return V16_1(vabsq_f32, v); }
SQ_INLINE v16 v_round(v16 v) { return V16_1(vrndnq_f32, v); }

SQ_INLINE float32x4_t copysign4(float32x4_t size, float32x4_t x) { return vbslq_f32(vdupq_n_u32(1u << 31), x, size); }
SQ_INLINE v16 v_copysign(v16 size, v16 x) { return V16_2(copysign4, size, x); }

SQ_INLINE float32x4_t pow2_4(float32x4_t n)
{
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23));
}
SQ_INLINE v16 v_mul_pow2(v16 v, v16 n) { return v_mul(v, V16_1(pow2_4, n)); }

SQ_INLINE v16 v_if_less(v16 a, v16 b, v16 x, v16 y)
{
    return (v16){vbslq_f32(vcltq_f32(a.a, b.a), x.a, y.a), vbslq_f32(vcltq_f32(a.b, b.b), x.b, y.b),
                 vbslq_f32(vcltq_f32(a.c, b.c), x.c, y.c), vbslq_f32(vcltq_f32(a.d, b.d), x.d, y.d)};
}

SQ_INLINE float32x4_t first4(float32x4_t v, int32_t n, float32x4_t w)
{
    const int32x4_t lane = {0, 1, 2, 3};
    return vbslq_f32(vcltq_s32(lane, vdupq_n_s32(n)), v, w);
}
SQ_INLINE v16 v_first(v16 v, int64_t n, v16 w)
{
    const int32_t k = (int32_t)(n < 0 ? 0 : n < 16 ? n : 16);
    return (v16){first4(v.a, k, w.a), first4(v.b, k - 4, w.b), first4(v.c, k - 8, w.c), first4(v.d, k - 12, w.d)};
}

SQ_INLINE float v_sum(v16 v) { return sum8(vaddq_f32(v.a, v.c), vaddq_f32(v.b, v.d)); }
/* One instruction each; GCC makes several of vcombine(). */
SQ_INLINE float32x4_t low_halves(float32x4_t a, float32x4_t b)
{
    return vreinterpretq_f32_f64(vtrn1q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
}
SQ_INLINE float32x4_t high_halves(float32x4_t a, float32x4_t b)
{
    return vreinterpretq_f32_f64(vtrn2q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
}

/* Rows of a 4 by 4 matrix become its columns. */
SQ_INLINE void transpose4(float32x4_t *r0, float32x4_t *r1, float32x4_t *r2, float32x4_t *r3)
{
    const float32x4_t t0 = vtrn1q_f32(*r0, *r1), t1 = vtrn2q_f32(*r0, *r1);
    const float32x4_t t2 = vtrn1q_f32(*r2, *r3), t3 = vtrn2q_f32(*r2, *r3);
    *r0 = low_halves(t0, t2);
    *r1 = low_halves(t1, t3);
    *r2 = high_halves(t0, t2);
    *r3 = high_halves(t1, t3);
}

SQ_INLINE float32x4_t fold4(v16 v) { return vaddq_f32(vaddq_f32(v.a, v.c), vaddq_f32(v.b, v.d)); }
SQ_INLINE void v_sums(v16 a, v16 b, v16 c, v16 d, float *sums)
{
    float32x4_t s0 = fold4(a), s1 = fold4(b), s2 = fold4(c), s3 = fold4(d);
    transpose4(&s0, &s1, &s2, &s3);
    vst1q_f32(sums, vaddq_f32(vaddq_f32(s0, s2), vaddq_f32(s1, s3)));
}
SQ_INLINE float v_most(v16 v) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(v.a, v.b), vmaxq_f32(v.c, v.d))); }
SQ_INLINE void v_mosts(v16 a, v16 b, v16 c, v16 d, float *most)
{
    most[0] = v_most(a);
    most[1] = v_most(b);
    most[2] = v_most(c);
    most[3] = v_most(d);
}

SQ_INLINE v16i v_zero_i(void)
{
    const int32x4_t zero = vdupq_n_s32(0);
    return (v16i){zero, zero, zero, zero};
}
SQ_INLINE v16i v_add_i(v16i a, v16i b)
{
    return (v16i){vaddq_s32(a.a, b.a), vaddq_s32(a.b, b.b), vaddq_s32(a.c, b.c), vaddq_s32(a.d, b.d)};
}
SQ_INLINE v16i v_to_i(v16 v)
{
    return (v16i){vcvtnq_s32_f32(v.a), vcvtnq_s32_f32(v.b), vcvtnq_s32_f32(v.c), vcvtnq_s32_f32(v.d)};
}
SQ_INLINE int32_t v_sum_i(v16i v) { return vaddvq_s32(vaddq_s32(vaddq_s32(v.a, v.b), vaddq_s32(v.c, v.d))); }

SQ_INLINE int8x16_t narrow(v16i v)
{
    const int16x8_t low = vcombine_s16(vmovn_s32(v.a), vmovn_s32(v.b));
    const int16x8_t high = vcombine_s16(vmovn_s32(v.c), vmovn_s32(v.d));
    return vcombine_s8(vmovn_s16(low), vmovn_s16(high));
}
SQ_INLINE void v_store_i8(int8_t *p, v16i v) { vst1q_s8(p, narrow(v)); }

SQ_INLINE void store_words4(v16i v, int8_t *q, size_t step)
{
    const uint32x4_t words = vreinterpretq_u32_s8(narrow(v));
    vst1q_lane_u32((uint32_t *)(void *)q, words, 0);
    vst1q_lane_u32((uint32_t *)(void *)(q + step), words, 1);
    vst1q_lane_u32((uint32_t *)(void *)(q + 2 * step), words, 2);
    vst1q_lane_u32((uint32_t *)(void *)(q + 3 * step), words, 3);
}

SQ_INLINE void v_store_words(v16i a, v16i b, int8_t *q, size_t step)
{
    store_words4(a, q, step);
    store_words4(b, q + 4 * step, step);
}

SQ_INLINE void v_transpose(v16 r[16])
{
    for (int i = 0; i < 16; i += 4) {
        transpose4(&r[i].a, &r[i + 1].a, &r[i + 2].a, &r[i + 3].a);
        transpose4(&r[i].b, &r[i + 1].b, &r[i + 2].b, &r[i + 3].b);
        transpose4(&r[i].c, &r[i + 1].c, &r[i + 2].c, &r[i + 3].c);
        transpose4(&r[i].d, &r[i + 1].d, &r[i + 2].d, &r[i + 3].d);
    }
    for (int i = 0; i < 4; i++) { /* the quarters change places */
        const v16 r0 = r[i], r1 = r[4 + i], r2 = r[8 + i], r3 = r[12 + i];
        r[i] = (v16){r0.a, r1.a, r2.a, r3.a};
        r[4 + i] = (v16){r0.b, r1.b, r2.b, r3.b};
        r[8 + i] = (v16){r0.c, r1.c, r2.c, r3.c};
        r[12 + i] = (v16){r0.d, r1.d, r2.d, r3.d};
    }
}

#endif
