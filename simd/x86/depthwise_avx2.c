/*
 * depthwise_avx2: depthwise_v16.h for AVX2: 12 of 16 registers for sums.
 * SPDX-License-Identifier: MIT
 */
#include "simd/x86/v16_avx2.h"

enum { PIXELS = 6, VECTORS = 4 };

#include "simd/depthwise_v16.h"

void sq_depthwise_avx2(const sq_depthwise *d) { depthwise(d); }
