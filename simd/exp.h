/*
 * exp: exp, erf, tanh and the sigmoid of the kernels, for one float. Every instruction set computes them by the same
 * steps with fused multiply-adds (exp_v16.h), so that a model's activations are the same bits on all machines; a libm
 * gives each machine its own. SPDX-License-Identifier: MIT
 *
 * exp(x) = 2^n exp(r), |r| <= ln(2) / 2, exp(r) = 1 + r + r^2 q(r). q was fitted to the least largest relative error,
 * 3.1e-9; with all roundings exp is within 1.01 ULP (every seventh float of [-60, 0] against binary64's exp).
 *
 * erf(x) = x + x p(x^2) for |x| < 0.9, fitted to 3e-10; beyond, 1 - exp(q(|x|)), to 2e-9, and 1 from 3.93 on, where
 * that is the nearest float. With all roundings within 1.25 ULP (likewise, all x).
 *
 * tanh(x) = x + x^3 p(x^2) for |x| < 0.625, fitted to 4.4e-9; beyond, 1 - 2 / (1 + exp(2 |x|)). Within 1.33 ULP, the
 * sigmoid 1 / (1 + exp(-x)) within 2.47 (likewise).
 */
#ifndef SQ_SIMD_EXP_H
#define SQ_SIMD_EXP_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Outside, the next of these stands for x: exp(x) stays a normal number, and 1 + exp(x) is what it would be. */
#define SQ_EXP_LEAST (-87.0f)
#define SQ_EXP_MOST  88.0f

#define SQ_EXP_LOG2E    0x1.715476p+0f
#define SQ_EXP_LN2_HIGH 0x1.63p-1f /* so few bits that its product with n is exact */
#define SQ_EXP_LN2_LOW  (-0x1.bd0106p-13f)
/* Highest power first, as Horner's rule takes them. */
#define SQ_EXP_COEFFICIENTS                                                                                            \
    {                                                                                                                  \
        0x1.6a23d2p-10f, 0x1.123a20p-7f, 0x1.5558f2p-5f, 0x1.555492p-3f, 0x1.fffffcp-2f                                \
    }

/* What these functions are; a device's compiler has words of its own for it. */
#ifndef SQ_EXP_FN
#define SQ_EXP_FN static inline
#endif

#define SQ_ERF_SMALL 0.9f
#define SQ_ERF_ONE   3.93f
#define SQ_ERF_SMALL_COEFFICIENTS                                                                                      \
    {                                                                                                                  \
        0x1.6510bep-14f, -0x1.aca392p-11f, 0x1.550a44p-8f, -0x1.b81524p-6f, 0x1.ce2e54p-4f, -0x1.812744p-2f,           \
            0x1.06eba8p-3f                                                                                             \
    }
#define SQ_ERF_LARGE_COEFFICIENTS                                                                                      \
    {                                                                                                                  \
        0x1.9fb2e8p-13f, -0x1.91cd18p-9f, 0x1.6d9ceep-6f, -0x1.aa732cp-4f, -0x1.4621b8p-1f, -0x1.20b752p+0f,           \
            -0x1.5d0c7cp-13f                                                                                           \
    }

SQ_EXP_FN float sq_horner(float x, const float *coefficient, int n)
{
    float y = coefficient[0];
    for (int i = 1; i < n; i++)
        y = fmaf(y, x, coefficient[i]);
    return y;
}

/* exp(x); NaN for NaN. */
SQ_EXP_FN float sq_exp(float x)
{
    const float coefficients[] = SQ_EXP_COEFFICIENTS;
    x = SQ_EXP_LEAST > x ? SQ_EXP_LEAST : x;
    x = SQ_EXP_MOST < x ? SQ_EXP_MOST : x;
    const float n = rintf(x * SQ_EXP_LOG2E);
    const float r = fmaf(-n, SQ_EXP_LN2_LOW, fmaf(-n, SQ_EXP_LN2_HIGH, x));
    const float tail = fmaf(r * r, sq_horner(r, coefficients, 5), r);
    const uint32_t bits = ((uint32_t)lrintf(n) + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return (tail + 1.0f) * power;
}

/* erf(x); NaN for NaN. */
SQ_EXP_FN float sq_erf(float x)
{
    const float small[] = SQ_ERF_SMALL_COEFFICIENTS, large[] = SQ_ERF_LARGE_COEFFICIENTS;
    const float size = SQ_ERF_ONE < fabsf(x) ? SQ_ERF_ONE : fabsf(x);
    if (size < SQ_ERF_SMALL) return fmaf(x, sq_horner(x * x, small, 7), x);
    return copysignf(1.0f - sq_exp(sq_horner(size, large, 7)), x);
}

#define SQ_TANH_SMALL 0.625f
#define SQ_TANH_COEFFICIENTS                                                                                           \
    {                                                                                                                  \
        -0x1.75e1cap-8f, 0x1.52269ap-6f, -0x1.b83c5ap-5f, 0x1.110726p-3f, -0x1.555532p-2f                              \
    }

/* tanh(x); NaN for NaN. */
SQ_EXP_FN float sq_tanh(float x)
{
    const float coefficients[] = SQ_TANH_COEFFICIENTS;
    const float size = fabsf(x), square = x * x;
    if (size < SQ_TANH_SMALL) return fmaf(x, square * sq_horner(square, coefficients, 5), x);
    return copysignf(1.0f - 2.0f / (1.0f + sq_exp(2.0f * size)), x);
}

/* 1 / (1 + exp(-x)); NaN for NaN. */
SQ_EXP_FN float sq_sigmoid(float x) { return 1.0f / (1.0f + sq_exp(-x)); }

#endif
