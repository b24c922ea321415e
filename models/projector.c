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

void sq_projector_forward(squint_session *s)
{
    const sq_llava *const net = sq_llava_of(s);
    const sq_projector *const p = &net->projector;
    sq_llava_state *const state = sq_llava_state_of(s);
    const uint32_t n = net->vit.n_patches, d = net->vit.d, first = net->vit.n_positions - n;
    const sq_rows_in tower = {.x = state->vit_x + (size_t)first * d, .ldx = d, .k = d, .op = SQ_ROW_COPY};
    const sq_gemm_out hidden = {.c = state->vit_mlp, .ldc = p->hidden, .bias = p->b0};
    sq_project(&s->compute, &tower, n, (const sq_mat *const[]){&p->w0}, &hidden, 1);

    const sq_rows_in activated = {.x = state->vit_mlp, .ldx = p->hidden, .k = p->hidden, .op = SQ_ROW_GELU};
    const sq_gemm_out out = {.c = s->vision, .ldc = p->w2.n, .bias = p->b2};
    sq_project(&s->compute, &activated, n, (const sq_mat *const[]){&p->w2}, &out, 1);
    sq_trace(s, SQ_TRACE_PROJECTED, -1, s->vision, n, p->w2.n);
}
