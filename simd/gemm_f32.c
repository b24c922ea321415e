/*
 * gemm_f32: floats times floats in one order, in plain C. Defines the result of all versions.
 * SPDX-License-Identifier: MIT
 *
 *     v[i][j] = 0; for k rising: v[i][j] = fma(x[i][k], w[k][j], v[i][j])
 *
 * A library for matrix products adds up in an order of its own for each CPU. What follows a convolution is rounded to
 * int8, and there a last bit becomes a whole step: convolutions are multiplied here.
 */
#include "simd/internal.h"

#include <math.h>

enum { NR = SQ_PANEL_N };

void sq_gemm_f32_c(const sq_mat *w, uint32_t panel0, uint32_t n_panels, const sq_float_rows *x, const sq_gemm_out *out)
{
    for (uint32_t j = panel0 * NR; j < (panel0 + n_panels) * NR && j < w->n; j++) {
        const float *const column = w->ordered + (size_t)(j / NR) * w->k * NR + j % NR;
        for (uint32_t i = x->row0; i < x->row0 + x->m; i++) {
            float v = 0.0f, *const c = out->c + (out->rows ? out->rows[i] : i) * out->ldc + j;
            for (uint32_t k = 0; k < w->k; k++)
                v = fmaf(x->x[i * x->ldx + k], column[(size_t)k * NR], v);
            if (out->bias) v += out->bias[j];
            if (out->row_weight) v *= out->row_weight[i];
            *c = out->add ? *c + v : v;
        }
    }
}
