/*
 * mlp2x_gelu: Linear, GELU, Linear, from the tower's width to the decoder's (LLaVA-1.5, arXiv 2310.03744).
 * SPDX-License-Identifier: MIT
 */
#include "models/llava.h"

squint_err sq_projector_load(squint_model *m, uint32_t d_in, uint32_t d_out, sq_projector *p, squint_msg *msg)
{
    squint_err err;
    p->hidden = d_out;
    if ((err = sq_load_mat(m, "mm.0.weight", p->hidden, d_in, &p->w0, msg))) return err;
    if ((err = sq_load_vec(m, "mm.0.bias", p->hidden, true, &p->b0, msg))) return err;
    if ((err = sq_load_mat(m, "mm.2.weight", d_out, p->hidden, &p->w2, msg))) return err;
    return sq_load_vec(m, "mm.2.bias", d_out, true, &p->b2, msg);
}

void sq_projector_forward(squint_session *s, const float *x, const uint32_t *from, uint32_t n, float *out,
                          const uint32_t *to)
{
    const sq_projector *const p = &sq_llava_of(s)->projector;
    float *const middle = sq_llava_state_of(s)->vit_mlp;
    const sq_rows_in rows = {.x = x, .ldx = p->w0.k, .rows = from, .k = p->w0.k, .op = SQ_ROW_COPY};
    const sq_gemm_out hidden = {.c = middle, .ldc = p->hidden, .bias = p->b0};
    sq_project(&s->compute, &rows, n, (const sq_mat *const[]){&p->w0}, &hidden, 1);

    const sq_rows_in activated = {.x = middle, .ldx = p->hidden, .k = p->hidden, .op = SQ_ROW_GELU};
    const sq_gemm_out tokens = {.c = out, .ldc = p->w2.n, .rows = to, .bias = p->b2};
    sq_project(&s->compute, &activated, n, (const sq_mat *const[]){&p->w2}, &tokens, 1);
}

double sq_projector_macs(const sq_projector *p, double rows)
{
    return rows * ((double)p->w0.n * p->w0.k + (double)p->w2.n * p->w2.k);
}
