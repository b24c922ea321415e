/*
 * f16: IEEE 754 binary16 to and from binary32, for machines and files without the hardware's help.
 * SPDX-License-Identifier: MIT
 *
 *     binary16   s eeeee mmmmmmmmmm             bias 15,  subnormals in steps of 2^-24
 *     binary32   s eeeeeeee mmm...m (23)        bias 127
 */
#include "quant/quant.h"

#include <string.h>

static float from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static uint32_t to_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

float sq_f16_to_f32(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3ff;
    if (exponent == 0) {
        const float f = (float)mantissa * 0x1p-24f;
        return sign ? -f : f;
    }
    if (exponent < 31) return from_bits(sign | (exponent + 127 - 15) << 23 | mantissa << 13);
    /* The hardware makes every NaN quiet. */
    return from_bits(sign | 0x7f800000 | (mantissa ? 0x400000 | mantissa << 13 : 0));
}

uint16_t sq_f32_to_f16(float f)
{
    const uint32_t bits = to_bits(f), sign = (bits >> 16) & 0x8000, u = bits & 0x7fffffff;
    if (u > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (u >> 13 & 0x3ff));
    if (u >= to_bits(65520.0f)) return (uint16_t)(sign | 0x7c00);
    if (u < to_bits(0x1p-14f)) {
        /* In [0.5, 1) a float's last bit is 2^-24, the step of the subnormals: the addition rounds. */
        return (uint16_t)(sign | (to_bits(from_bits(u) + 0.5f) - to_bits(0.5f)));
    }
    /* Half a step less a bit, plus the bit that makes ties go to even; a carry may reach the exponent. */
    const uint32_t rounded = u + 0xfff + (u >> 13 & 1);
    return (uint16_t)(sign | ((rounded - ((127u - 15u) << 23)) >> 13));
}
