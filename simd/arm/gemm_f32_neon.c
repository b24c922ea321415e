/*
 * gemm_f32_neon: gemm_f32_v16.h for NEON: 24 of 32 registers for sums.
 * SPDX-License-Identifier: MIT
 */
#include "simd/arm/v16_neon.h"

enum { ROWS = 6, PANELS = 1 };

#include "simd/gemm_f32_v16.h"

void sq_gemm_f32_neon(const sq_mat *w, uint32_t panel0, uint32_t n_panels, const sq_float_rows *x,
                      const sq_gemm_out *out)
{
    gemm_f32(w, panel0, n_panels, x, out);
}
