/*
 * gemm_f32_avx512: gemm_f32_v16.h for AVX-512: 16 of 32 registers for sums: more rows than 8 would need more
 * registers for their addresses than there are.
 * SPDX-License-Identifier: MIT
 */
#include "simd/x86/v16_avx512.h"

enum { ROWS = 8, PANELS = 2 };

#include "simd/gemm_f32_v16.h"

void sq_gemm_f32_avx512(const sq_mat *w, uint32_t panel0, uint32_t n_panels, const sq_float_rows *x,
                        const sq_gemm_out *out)
{
    gemm_f32(w, panel0, n_panels, x, out);
}
