/*
 * Decoders of random weights, for measuring speed at the shapes of models that one does not have.
 * SPDX-License-Identifier: MIT
 */
#include "models/llava.h"

#include <string.h>

static const float INITIAL_SCALE = 0.02f; /* of weights, about what trained models have */

static uint64_t next_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* Odd weights only: 1, 3 .. 15 have the zero point 8 as their mean, 1 .. 255 have 128. A mean beside it would grow
 * from layer to layer, as no trained model's does. */
static void fill_weights(uint8_t *out, size_t bytes, uint64_t *state)
{
    for (size_t i = 0; i + 8 <= bytes; i += 8) {
        const uint64_t r = next_random(state) | 0x1111111111111111u;
        memcpy(out + i, &r, sizeof r);
    }
}

/* One panel: random weights, and one scale for all that gives them the size of trained ones. */
static void fill_panel(const sq_panels *w, uint8_t *panel, uint64_t *state)
{
    const size_t weights = sq_panel_weight_bytes(w);
    const float scale = INITIAL_SCALE / (w->type == SQ_PANEL_I4 ? 4 : 64);
    const size_t n_scales = SQ_PANEL_N * (w->group ? (w->k + w->group - 1) / w->group : 1);
    fill_weights(panel, weights, state);
    for (size_t i = 0; i < n_scales; i++) {
        if (w->group)
            ((uint16_t *)(void *)(panel + weights))[i] = sq_f32_to_f16(scale);
        else
            ((float *)(void *)(panel + weights))[i] = scale;
    }
}

static squint_err make_mat(squint_model *m, const sq_synthetic *shape, uint32_t n, uint32_t k, uint64_t *state,
                           sq_mat *out, squint_msg *msg)
{
    *out = (sq_mat){.n = n, .k = k, .panels = {.n = n, .k = k, .type = shape->type, .group = shape->group}};
    if (!sq_panels_valid(&out->panels))
        return sq_fail(msg, SQUINT_ERR_ARGUMENT, "a matrix of %u x %u with groups of %u is not one for panels", n, k,
                       shape->group);
    uint8_t *const panels = sq_model_take(m, sq_panels_bytes(&out->panels), 1);
    if (!panels) return sq_fail(msg, SQUINT_ERR_NOMEM, "no memory for a matrix of %u x %u", n, k);
    for (size_t p = 0; p < sq_panel_count(&out->panels); p++)
        fill_panel(&out->panels, panels + p * sq_panel_bytes(&out->panels), state);
    out->panels.data = panels;
    return SQUINT_OK;
}

static const float *make_vec(squint_model *m, uint32_t n, float base, float scale, uint64_t *state)
{
    float *const v = sq_model_take(m, n, sizeof *v);
    for (uint32_t i = 0; v && i < n; i++)
        v[i] = base + scale * ((float)(next_random(state) >> 40) * 0x1p-23f - 1.0f);
    return v;
}

static squint_err make_layer(squint_model *m, const sq_synthetic *shape, uint32_t l, uint64_t *state, sq_decoder *net,
                             squint_msg *msg)
{
    sq_decoder_layer *const w = &net->layers[l];
    const uint32_t d = net->d, kv = net->n_kv_heads * net->head_dim;
    squint_err err;
    if ((err = make_mat(m, shape, d, d, state, &w->q, msg))) return err;
    if ((err = make_mat(m, shape, kv, d, state, &w->k, msg))) return err;
    if ((err = make_mat(m, shape, kv, d, state, &w->v, msg))) return err;
    if ((err = make_mat(m, shape, d, d, state, &w->o, msg))) return err;
    if ((err = make_mat(m, shape, net->f, d, state, &w->gate, msg))) return err;
    if ((err = make_mat(m, shape, net->f, d, state, &w->up, msg))) return err;
    if ((err = make_mat(m, shape, d, net->f, state, &w->down, msg))) return err;
    w->attn_norm = make_vec(m, d, 1.0f, 0.0f, state);
    w->ffn_norm = make_vec(m, d, 1.0f, 0.0f, state);
    w->router_w = make_vec(m, d, 0.0f, INITIAL_SCALE, state);
    w->is_mod = shape->layer_is_mod && shape->layer_is_mod[l];
    w->ratio = w->is_mod ? shape->layer_ratio[l] : 1.0f;
    if (!w->attn_norm || !w->ffn_norm || !w->router_w)
        return sq_fail(msg, SQUINT_ERR_NOMEM, "no memory for layer %u", l);
    return SQUINT_OK;
}

static squint_err make_net(squint_model *m, const sq_synthetic *shape, squint_msg *msg)
{
    uint64_t state = 1;
    squint_err err;
    sq_llava *const net = m->net = sq_model_take(m, 1, sizeof *net);
    if (!net) return sq_fail(msg, SQUINT_ERR_NOMEM, "no memory for a network");
    sq_decoder *const dec = &net->decoder;
    *dec = (sq_decoder){.n_layers = shape->n_layers,
                        .d = shape->d,
                        .f = shape->f,
                        .n_heads = shape->n_heads,
                        .n_kv_heads = shape->n_kv_heads,
                        .head_dim = shape->d / shape->n_heads,
                        .n_vocab = shape->n_vocab,
                        .eps = 1e-5f,
                        .rope_base = 10000.0f,
                        .rope_half = true,
                        .routed = shape->layer_is_mod != NULL,
                        .norm = SQ_NORM_TANH,
                        .norm_scale = 0.2f,
                        .norm_bias = 1.0f};
    dec->layers = sq_model_take(m, dec->n_layers, sizeof *dec->layers);
    dec->output_norm = make_vec(m, dec->d, 1.0f, 0.0f, &state);
    if (!dec->layers || !dec->output_norm) return sq_fail(msg, SQUINT_ERR_NOMEM, "no memory for a network");
    if ((err = make_mat(m, shape, dec->n_vocab, dec->d, &state, &dec->token_embd, msg))) return err;
    dec->output = dec->token_embd;
    for (uint32_t l = 0; l < dec->n_layers; l++)
        if ((err = make_layer(m, shape, l, &state, dec, msg))) return err;
    m->family = &sq_family_llava;
    m->n_ctx = shape->n_ctx;
    sq_llava_describe(m);
    return SQUINT_OK;
}

squint_err sq_synthetic_open(squint_model **out, const sq_synthetic *shape, const squint_model_options *options,
                             squint_msg *msg)
{
    *out = NULL;
    const squint_allocator alloc = sq_allocator_or_default(options ? &options->allocator : NULL);
    squint_model *m = sq_alloc(&alloc, sizeof *m);
    if (!m) return sq_fail(msg, SQUINT_ERR_NOMEM, "no memory for a model");
    *m = (squint_model){.alloc = alloc, .kernels = sq_kernels_get(options ? options->isa : NULL)};
    squint_err err = SQUINT_OK;
    if (!m->kernels) err = sq_fail(msg, SQUINT_ERR_ARGUMENT, "instruction set \"%s\" does not run here", options->isa);
    if (!err) err = make_net(m, shape, msg);
    if (err)
        squint_model_close(&m);
    else
        *out = m;
    return err;
}
