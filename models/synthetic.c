/*
 * Models of random weights, for measuring at the shapes of models that one does not have.
 * SPDX-License-Identifier: MIT
 */
#include "models/llava.h"

#include <math.h>
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
    return sq_mat_suit(m, out) ? SQUINT_OK : sq_fail(msg, SQUINT_ERR_NOMEM, "no memory for %u x %u floats", n, k);
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

/* ---- the tower ---- */

typedef struct tower_maker {
    squint_model *m;
    const sq_synthetic_tower *shape;
    uint64_t state;
    squint_msg *msg;
} tower_maker;

/* Four uniforms of 16 bits make a normal: at most 3.5 deviations, as far as some thousand weights of a row go. */
static void fill_normal(float *out, size_t n, float deviation, uint64_t *state)
{
    const float scale = deviation * 0x1p-16f * 1.7320508f; /* their sum has the variance 1/3 */
    for (size_t i = 0; i < n; i++) {
        const uint64_t r = next_random(state);
        const int32_t sum =
            (int32_t)(r & 0xFFFF) + (int32_t)(r >> 16 & 0xFFFF) + (int32_t)(r >> 32 & 0xFFFF) + (int32_t)(r >> 48);
        out[i] = (float)(sum - 2 * 0xFFFF) * scale;
    }
}

static squint_err no_memory(const tower_maker *t) { return sq_fail(t->msg, SQUINT_ERR_NOMEM, "no memory for a tower"); }

static squint_err make_floats(tower_maker *t, uint32_t n, uint32_t k, float deviation, sq_mat *out)
{
    float *const w = sq_model_take(t->m, n, k * sizeof *w);
    if (!w) return no_memory(t);
    fill_normal(w, (size_t)n * k, deviation, &t->state);
    *out = (sq_mat){.n = n, .k = k, .f32 = w};
    return SQUINT_OK;
}

/* A panel at a time: nobody needs all of the floats at once. */
static squint_err make_quantised(tower_maker *t, uint32_t n, uint32_t k, float deviation, sq_mat *out)
{
    *out = (sq_mat){.n = n, .k = k, .panels = {.n = n, .k = k, .type = SQ_PANEL_I8}};
    const size_t panel_bytes = sq_panel_bytes(&out->panels), float_bytes = (size_t)SQ_PANEL_N * k * sizeof(float);
    uint8_t *const panels = sq_model_take(t->m, sq_panels_bytes(&out->panels), 1);
    float *const rows = sq_alloc(&t->m->alloc, float_bytes);
    for (uint32_t row = 0; panels && rows && row < n; row += SQ_PANEL_N) {
        sq_panels one = out->panels;
        one.n = n - row < SQ_PANEL_N ? n - row : SQ_PANEL_N;
        fill_normal(rows, (size_t)one.n * k, deviation, &t->state);
        sq_panels_quantise(&one, rows, panels + row / SQ_PANEL_N * panel_bytes);
    }
    sq_free(&t->m->alloc, rows, float_bytes);
    out->panels.data = panels;
    return panels && rows && sq_mat_suit(t->m, out) ? SQUINT_OK : no_memory(t);
}

/* @param gain  of a product's output over inputs of variance 1 */
static squint_err make_weights(tower_maker *t, uint32_t n, uint32_t k, float gain, sq_mat *out)
{
    const float deviation = gain / sqrtf((float)k);
    return t->shape->f32 ? make_floats(t, n, k, deviation, out) : make_quantised(t, n, k, deviation, out);
}

static const float *make_bias(tower_maker *t, uint32_t n) { return make_vec(t->m, n, 0.0f, 0.1f, &t->state); }

static sq_affine make_affine(tower_maker *t, uint32_t n)
{
    return (sq_affine){make_vec(t->m, n, 1.0f, 0.1f, &t->state), make_bias(t, n)};
}

/* Gains that keep the residual stream within twice its first size through 24 layers, and spread the scores of attention
 * by 1.5: some ten keys of hundreds matter to a query. */
static squint_err make_tower_layer(tower_maker *t, sq_vit_layer *w)
{
    const uint32_t d = t->shape->d, f = t->shape->f;
    squint_err err;
    w->ln1 = make_affine(t, d);
    w->ln2 = make_affine(t, d);
    if ((err = make_weights(t, d, d, 1.25f, &w->q))) return err;
    if ((err = make_weights(t, d, d, 1.25f, &w->k))) return err;
    if ((err = make_weights(t, d, d, 1.0f, &w->v))) return err;
    if ((err = make_weights(t, d, d, 1.0f, &w->out))) return err;
    if ((err = make_weights(t, f, d, 1.0f, &w->fc1))) return err;
    if ((err = make_weights(t, d, f, 0.5f, &w->fc2))) return err;
    const float **const biases[] = {&w->q_b, &w->k_b, &w->v_b, &w->out_b, &w->fc1_b, &w->fc2_b};
    for (size_t i = 0; i < SQ_COUNT(biases); i++)
        if (!(*biases[i] = make_bias(t, i == 4 ? f : d))) return no_memory(t);
    return w->ln1.weight && w->ln1.bias && w->ln2.weight && w->ln2.bias ? SQUINT_OK : no_memory(t);
}

static squint_err make_embedding(tower_maker *t, sq_vit *vit)
{
    const uint32_t patch = t->shape->patch, side = t->shape->image / patch;
    vit->side = t->shape->image;
    vit->patch = (sq_conv){.in = 3, .kernel = patch, .stride = patch, .side = side};
    const squint_err err =
        make_floats(t, vit->d, patch * patch * 3, 1 / sqrtf((float)(patch * patch * 3)), &vit->patch.w);
    if (err) return err;
    vit->n_patches = side * side;
    vit->n_positions = vit->n_patches + 1;
    vit->class_embd = make_vec(t->m, vit->d, 0.0f, 1.0f, &t->state);
    vit->position_embd = make_vec(t->m, vit->n_positions * vit->d, 0.0f, 1.0f, &t->state);
    vit->pre_ln = make_affine(t, vit->d);
    return vit->class_embd && vit->position_embd && vit->pre_ln.weight && vit->pre_ln.bias ? SQUINT_OK : no_memory(t);
}

static squint_err make_projector(tower_maker *t, uint32_t d_out, sq_projector *p)
{
    squint_err err;
    p->hidden = d_out;
    if ((err = make_weights(t, d_out, t->shape->d, 1.0f, &p->w0))) return err;
    if ((err = make_weights(t, d_out, d_out, 1.0f, &p->w2))) return err;
    p->b0 = make_bias(t, d_out);
    p->b2 = make_bias(t, d_out);
    return p->b0 && p->b2 ? SQUINT_OK : no_memory(t);
}

static squint_err make_tower(squint_model *m, const sq_synthetic_tower *shape, sq_llava *net, squint_msg *msg)
{
    tower_maker t = {m, shape, 2, msg};
    sq_vit *const vit = &net->vit;
    *vit = (sq_vit){.d = shape->d,
                    .f = shape->f,
                    .n_heads = shape->n_heads,
                    .n_layers = shape->n_layers,
                    .eps = 1e-5f,
                    .activation = SQ_ROW_QUICKGELU};
    squint_err err = make_embedding(&t, vit);
    if (err) return err;
    vit->layers = sq_model_take(m, vit->n_layers, sizeof *vit->layers);
    if (!vit->layers) return no_memory(&t);
    for (uint32_t l = 0; l < vit->n_layers; l++)
        if ((err = make_tower_layer(&t, &vit->layers[l]))) return err;
    m->image_rule = (sq_image_rule){.fit = SQ_FIT_PAD,
                                    .size = shape->image,
                                    .pad_color = {122, 116, 104},
                                    .mean = {0.48145466f, 0.4578275f, 0.40821073f},
                                    .std = {0.26862954f, 0.26130258f, 0.27577711f}};
    net->vision_kind = SQ_VISION_CLIP;
    sq_vision_describe(m);
    return make_projector(&t, net->decoder.d, &net->projector);
}

/* ---- the model ---- */

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
                        .mode = *sq_mode_named((sq_str){"pmod", 4}),
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
    m->own_mode = m->mode;
    return shape->tower ? make_tower(m, shape->tower, net, msg) : SQUINT_OK;
}

/* ---- other modes ---- */

static squint_err make_variant(squint_model *m, const sq_decoder *made, const sq_synthetic_mode *mode, squint_msg *msg)
{
    const sq_mode *const named = sq_mode_named((sq_str){mode->name, strlen(mode->name)});
    if (!named) return sq_fail(msg, SQUINT_ERR_ARGUMENT, "mode: \"%s\" is not one", mode->name);
    sq_llava *const net = m->net = sq_model_take(m, 1, sizeof *net);
    sq_decoder_layer *const layers = sq_model_take(m, made->n_layers, sizeof *layers);
    if (!net || !layers) return sq_fail(msg, SQUINT_ERR_NOMEM, "no memory for a network");
    memcpy(layers, made->layers, made->n_layers * sizeof *layers);
    sq_decoder *const dec = &net->decoder;
    *dec = *made;
    dec->layers = layers;
    dec->mode = *named;
    dec->mode.skip_ratio = mode->skip_ratio;
    dec->mode.region = mode->region;
    if (named->score == SQ_SCORE_ATTN_NORM) {
        dec->norm = SQ_NORM_SIGMOID;
        dec->norm_scale = 1.0f;
        dec->norm_bias = 0.0f;
    }
    const double threshold = (double)named->prefill_threshold;
    for (uint32_t l = 0; l < dec->n_layers; l++) {
        layers[l].is_mod &= named->score != SQ_SCORE_NONE;
        if (named->select == SQ_SELECT_THRESHOLD) layers[l].router_b = (float)log(threshold / (1 - threshold));
    }
    m->family = &sq_family_llava;
    sq_llava_describe(m);
    return SQUINT_OK;
}

squint_err sq_synthetic_variant(squint_model **out, const squint_model *made, const sq_synthetic_mode *mode,
                                squint_msg *msg)
{
    *out = NULL;
    squint_model *m = sq_alloc(&made->alloc, sizeof *m);
    if (!m) return sq_fail(msg, SQUINT_ERR_NOMEM, "no memory for a model");
    *m = (squint_model){.alloc = made->alloc, .kernels = made->kernels, .n_ctx = made->n_ctx};
    sq_device_share(m, made);
    const sq_llava *const net = made->net;
    const squint_err err = make_variant(m, &net->decoder, mode, msg);
    m->own_mode = m->mode;
    if (err)
        squint_model_close(&m);
    else
        *out = m;
    return err;
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
    if (!err) err = sq_device_choose(m, options ? options->device : NULL, msg);
    if (!err) err = make_net(m, shape, msg);
    if (err)
        squint_model_close(&m);
    else
        *out = m;
    return err;
}
