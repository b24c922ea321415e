/*
 * depthwise_avx512: depthwise_v16.h for AVX-512: enough sums to hide what a product takes, and few outputs left over.
 * SPDX-License-Identifier: MIT
 */
#include "simd/x86/v16_avx512.h"

enum { PIXELS = 8, VECTORS = 4 };

#include "simd/depthwise_v16.h"

void sq_depthwise_avx512(const sq_depthwise *d) { depthwise(d); }
