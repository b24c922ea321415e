/*
 * avx512: what the AVX-512 files share.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQ_SIMD_X86_AVX512_H
#define SQ_SIMD_X86_AVX512_H

#if !defined(__AVX512VNNI__) || !defined(__AVX512BW__) || !defined(__AVX512DQ__) || !defined(__AVX512VL__)
#error "needs AVX-512 F, BW, DQ, VL, VNNI: see simd_sets in simd/meson.build"
#endif

#include "simd/internal.h"

#include <immintrin.h>
#include <string.h>

/* sum += four unsigned bytes of u times four signed ones of a, in each of 16 lanes. In place: GCC 12 would otherwise
 * copy every sum to another register and back. */
SQ_INLINE void dot512(__m512i *sum, __m512i u, __m512i a)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(u), "v"(a));
}

#endif
