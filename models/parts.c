/*
 * What the towers load alike: norms, linear layers, convolutions; and how much room their products need.
 * SPDX-License-Identifier: MIT
 */
#include "models/llava.h"

#include <stdio.h>
#include <string.h>

squint_err sq_vision_bad_key(const squint_model *m, const char *key, uint32_t value, const char *need, squint_msg *msg)
{
    return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: key %s: %u is not %s", sq_vision_path(m), key, value, need);
}

squint_err sq_load_affine(squint_model *m, const char *name, uint32_t d, bool required, sq_affine *out, squint_msg *msg)
{
    char tensor[64];
    snprintf(tensor, sizeof tensor, "%s.weight", name);
    const squint_err err = sq_load_vec(m, tensor, d, required, &out->weight, msg);
    if (err || !out->weight) return err;
    snprintf(tensor, sizeof tensor, "%s.bias", name);
    return sq_load_vec(m, tensor, d, true, &out->bias, msg);
}

squint_err sq_load_linear(squint_model *m, const char *name, uint32_t n, uint32_t k, sq_linear *out, squint_msg *msg)
{
    char tensor[64];
    snprintf(tensor, sizeof tensor, "%s.weight", name);
    const squint_err err = sq_load_mat(m, tensor, n, k, &out->w, msg);
    if (err) return err;
    snprintf(tensor, sizeof tensor, "%s.bias", name);
    return sq_load_vec(m, tensor, n, true, &out->bias, msg);
}

/* ---- convolutions ---- */

/* [channels][7][7] as PyTorch stores it becomes [7][7][channels]. NULL: no memory. */
static const float *reorder_taps(squint_model *m, const float *src, uint32_t channels)
{
    float *const weights = sq_model_take(m, (size_t)SQ_DEPTHWISE_TAPS * channels, sizeof *weights);
    for (size_t c = 0; weights && c < channels; c++)
        for (size_t tap = 0; tap < SQ_DEPTHWISE_TAPS; tap++)
            weights[tap * channels + c] = src[c * SQ_DEPTHWISE_TAPS + tap];
    return weights;
}

squint_err sq_load_conv(squint_model *m, const char *name, uint32_t out, sq_conv *conv, squint_msg *msg)
{
    char tensor[64];
    snprintf(tensor, sizeof tensor, "%s.weight", name);
    const squint_err err = sq_load_ordered(m, tensor, out, conv->in, conv->kernel * conv->kernel, &conv->w, msg);
    if (err) return err;
    snprintf(tensor, sizeof tensor, "%s.bias", name);
    return sq_load_vec(m, tensor, out, false, &conv->bias, msg);
}

squint_err sq_load_depthwise(squint_model *m, const char *name, uint32_t channels, sq_affine *out, squint_msg *msg)
{
    char tensor[64];
    const float *src;
    snprintf(tensor, sizeof tensor, "%s.weight", name);
    const squint_err err = sq_load_vec(m, tensor, (size_t)SQ_DEPTHWISE_TAPS * channels, true, &src, msg);
    if (err) return err;
    out->weight = reorder_taps(m, src, channels);
    if (!out->weight) return sq_tensor_no_memory(m, tensor, msg);
    snprintf(tensor, sizeof tensor, "%s.bias", name);
    return sq_load_vec(m, tensor, channels, true, &out->bias, msg);
}

/* ---- products ---- */

sq_rows_in sq_norm_rows(const sq_affine *norm, const float *x, uint32_t d, float eps)
{
    return (sq_rows_in){
        .x = x, .ldx = d, .k = d, .op = SQ_ROW_LAYERNORM, .weight = norm->weight, .bias = norm->bias, .eps = eps};
}

void sq_run_linear(squint_session *s, const sq_linear *l, const sq_rows_in *in, uint32_t m, float *out, bool add)
{
    const sq_gemm_out store = {.c = out, .ldc = l->w.n, .bias = l->bias, .add = add};
    sq_project(&s->compute, in, m, (const sq_mat *const[]){&l->w}, &store, 1);
}

double sq_linear_macs(const sq_linear *l, double rows) { return rows * l->w.n * l->w.k; }

void sq_need(sq_needs *needs, const sq_mat *w, uint32_t rows)
{
    if (!w->n) return;
    needs->max_m = rows > needs->max_m ? rows : needs->max_m;
    needs->max_k = w->k > needs->max_k ? w->k : needs->max_k;
    needs->any_f32 |= w->f32 != NULL;
    if (w->f32) return;
    const uint32_t group = sq_panels_act_group(&w->panels);
    needs->min_group = group < needs->min_group ? group : needs->min_group;
}

/* ---- traces ---- */

void sq_trace_floats(squint_session *s, sq_trace_what what, int layer, const float *data, uint32_t rows, uint32_t cols)
{
    const size_t bytes = (size_t)rows * cols * sizeof *data;
    if (!sq_traces(s, what)) return;
    if (!s->compute.ops) {
        sq_trace(s, what, layer, data, rows, cols);
        return;
    }
    float *const copy = sq_alloc(&s->alloc, bytes);
    if (!copy) { /* told when the pass ends */
        s->compute.no_trace = true;
        return;
    }
    sq_read(&s->compute, copy, data, bytes);
    sq_trace(s, what, layer, copy, rows, cols);
    sq_free(&s->alloc, copy, bytes);
}
