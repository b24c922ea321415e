/*
 * depthwise_neon: depthwise_v16.h for NEON: 20 of 32 registers for sums.
 * SPDX-License-Identifier: MIT
 */
#include "simd/arm/v16_neon.h"

enum { PIXELS = 5, VECTORS = 4 };

#include "simd/depthwise_v16.h"

void sq_depthwise_neon(const sq_depthwise *d) { depthwise(d); }
