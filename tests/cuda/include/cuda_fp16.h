/*
 * cuda_fp16: conversions of CUDA's header of this name, for g++ and the CPU.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQ_EMULATED_CUDA_FP16_H
#define SQ_EMULATED_CUDA_FP16_H

#include <stdint.h>

extern "C" {
float sq_f16_to_f32(uint16_t h);
uint16_t sq_f32_to_f16(float f);
}

struct __half {
    uint16_t bits;
};
typedef __half half;

static inline __half __ushort_as_half(unsigned short v) { return __half{v}; }
static inline unsigned short __half_as_ushort(__half h) { return h.bits; }
static inline float __half2float(__half h) { return sq_f16_to_f32(h.bits); }
static inline __half __float2half_rn(float f) { return __half{f == f ? sq_f32_to_f16(f) : (uint16_t)0x7fff}; }
static inline __half __float2half(float f) { return __float2half_rn(f); }

#endif
