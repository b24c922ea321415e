/*
 * exp_v16: exp and erf of 16 floats: the steps of exp.h, so the same bits. Who includes this has defined v16
 * (x86/v16_avx2.h tells what that is).
 * SPDX-License-Identifier: MIT
 */
#ifndef SQ_SIMD_EXP_V16_H
#define SQ_SIMD_EXP_V16_H

#include "simd/exp.h"

SQ_INLINE v16 v_horner(v16 x, const float *coefficient, int n)
{
    v16 y = v_all(coefficient[0]);
    SQ_UNROLL
    for (int i = 1; i < n; i++)
        y = v_fma(y, x, v_all(coefficient[i]));
    return y;
}

/* exp(x) for SQ_EXP_LEAST <= x <= SQ_EXP_MOST, NaN for NaN. */
SQ_INLINE v16 v_exp_within(v16 x)
{
    static const float coefficients[] = SQ_EXP_COEFFICIENTS;
    const v16 n = v_round(v_mul(x, v_all(SQ_EXP_LOG2E)));
    const v16 r = v_fnma(n, v_all(SQ_EXP_LN2_LOW), v_fnma(n, v_all(SQ_EXP_LN2_HIGH), x));
    const v16 tail = v_fma(v_mul(r, r), v_horner(r, coefficients, 5), r);
    return v_mul_pow2(v_add(tail, v_all(1.0f)), n);
}

SQ_INLINE v16 v_exp(v16 x)
{
    return v_exp_within(v_min(v_all(SQ_EXP_MOST), v_max(v_all(SQ_EXP_LEAST), x))); /* NaN stays NaN */
}

SQ_INLINE v16 v_erf(v16 x)
{
    static const float small[] = SQ_ERF_SMALL_COEFFICIENTS, large[] = SQ_ERF_LARGE_COEFFICIENTS;
    const v16 size = v_min(v_all(SQ_ERF_ONE), v_abs(x));
    const v16 near = v_fma(x, v_horner(v_mul(x, x), small, 7), x);
    const v16 far = v_copysign(v_sub(v_all(1.0f), v_exp(v_horner(size, large, 7))), x);
    return v_if_less(size, v_all(SQ_ERF_SMALL), near, far);
}

#endif
