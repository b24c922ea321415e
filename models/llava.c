/*
 * The LLaVA family: reading its shapes and weights from a file, and its place in the engine's table.
 * SPDX-License-Identifier: MIT
 */
#include "models/llava.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_CTX = 1 << 20, MAX_HEAD_DIM = 256 };

static bool matches(const sq_gguf *g)
{
    sq_str arch;
    const sq_gguf_kv *const kv = sq_gguf_find_key(g, "general.architecture");
    return kv && kv->type == SQ_GGUF_STRING && !sq_gguf_get_str(g, "general.architecture", true, &arch, NULL) &&
           sq_str_eq(arch, "llama");
}

/* ---- shapes ---- */

static squint_err out_of_range(const squint_model *m, const char *key, uint32_t value, const char *need,
                               squint_msg *msg)
{
    return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: key %s: %u is not %s", sq_gguf_path(m->file), key, value, need);
}

squint_err sq_llava_read_u32(const squint_model *m, const char *key, bool required, uint32_t lowest, uint32_t highest,
                             uint32_t *out, squint_msg *msg)
{
    const squint_err err = sq_gguf_get_u32(m->file, key, required, out, msg);
    if (err) return err;
    if (*out >= lowest && *out <= highest) return SQUINT_OK;
    return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: key %s: %u is not from %u to %u", sq_gguf_path(m->file), key, *out,
                   lowest, highest);
}

static squint_err read_heads(squint_model *m, sq_decoder *net, squint_msg *msg)
{
    squint_err err;
    if ((err = sq_llava_read_u32(m, "llama.attention.head_count", true, 1, SQ_MAX_K, &net->n_heads, msg))) return err;
    net->n_kv_heads = net->n_heads;
    if ((err = sq_llava_read_u32(m, "llama.attention.head_count_kv", false, 1, net->n_heads, &net->n_kv_heads, msg)))
        return err;
    if (net->n_heads % net->n_kv_heads)
        return out_of_range(m, "llama.attention.head_count_kv", net->n_kv_heads,
                            "a divisor of llama.attention.head_count", msg);
    net->head_dim = net->d / net->n_heads;
    if ((err = sq_llava_read_u32(m, "llama.rope.dimension_count", false, 2, MAX_HEAD_DIM, &net->head_dim, msg)))
        return err;
    if (net->head_dim < 2 || net->head_dim % 2 || net->head_dim > MAX_HEAD_DIM ||
        (uint64_t)net->head_dim * net->n_heads > SQ_MAX_K)
        return out_of_range(m, "llama.rope.dimension_count", net->head_dim, "an even number of at most 256", msg);
    return SQUINT_OK;
}

static squint_err read_rope(squint_model *m, sq_decoder *net, squint_msg *msg)
{
    sq_str layout = {"interleaved", 11}, scaling = {"none", 4};
    squint_err err;
    net->rope_base = 10000.0f;
    if ((err = sq_gguf_get_f32(m->file, "llama.rope.freq_base", false, &net->rope_base, msg))) return err;
    if (!(net->rope_base > 0) || !isfinite(net->rope_base))
        return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: key llama.rope.freq_base is not positive", sq_gguf_path(m->file));
    if ((err = sq_gguf_get_str(m->file, "llama.rope.scaling.type", false, &scaling, msg))) return err;
    if (!sq_str_eq(scaling, "none"))
        return sq_fail(msg, SQUINT_ERR_UNSUPPORTED, "%s: key llama.rope.scaling.type: only \"none\" is known",
                       sq_gguf_path(m->file));
    if ((err = sq_gguf_get_str(m->file, "squint.rope_layout", false, &layout, msg))) return err;
    net->rope_half = sq_str_eq(layout, "half");
    if (net->rope_half || sq_str_eq(layout, "interleaved")) return SQUINT_OK;
    return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: key squint.rope_layout: not \"half\" or \"interleaved\"",
                   sq_gguf_path(m->file));
}

/* The vocabulary's size is the embedding's: a file need not say it. */
static squint_err read_vocab(squint_model *m, sq_decoder *net, squint_msg *msg)
{
    const sq_gguf_kv *const tokens = sq_gguf_find_key(m->file, "tokenizer.ggml.tokens");
    if (tokens && tokens->type == SQ_GGUF_ARRAY && tokens->count <= SQ_MAX_DIM) net->n_vocab = (uint32_t)tokens->count;
    return sq_llava_read_u32(m, "llama.vocab_size", false, 1, SQ_MAX_DIM, &net->n_vocab, msg);
}

static squint_err read_shape(squint_model *m, sq_decoder *net, squint_msg *msg)
{
    squint_err err;
    if ((err = sq_llava_read_u32(m, "llama.block_count", true, 1, SQ_MAX_LAYERS, &net->n_layers, msg))) return err;
    if ((err = sq_llava_read_u32(m, "llama.embedding_length", true, 1, SQ_MAX_K, &net->d, msg))) return err;
    if ((err = sq_llava_read_u32(m, "llama.feed_forward_length", true, 1, SQ_MAX_K, &net->f, msg))) return err;
    if ((err = sq_llava_read_u32(m, "llama.context_length", true, 2, MAX_CTX, &m->n_ctx, msg))) return err;
    if ((err = sq_gguf_get_f32(m->file, "llama.attention.layer_norm_rms_epsilon", true, &net->eps, msg))) return err;
    if (!(net->eps > 0 && net->eps < 1))
        return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: key llama.attention.layer_norm_rms_epsilon is not from 0 to 1",
                       sq_gguf_path(m->file));
    if ((err = sq_gguf_get_u32(m->file, "squint.max_expanded_length", false, &m->max_expanded, msg))) return err;
    if ((err = read_heads(m, net, msg))) return err;
    if ((err = read_rope(m, net, msg))) return err;
    return read_vocab(m, net, msg);
}

/* ---- weights ---- */

static squint_err load_mat(squint_model *m, uint32_t layer, const char *name, uint32_t n, uint32_t k, sq_mat *out,
                           squint_msg *msg)
{
    char tensor[64];
    snprintf(tensor, sizeof tensor, "blk.%u.%s.weight", layer, name);
    return sq_load_mat(m, tensor, n, k, out, msg);
}

static squint_err load_vec(squint_model *m, uint32_t layer, const char *name, uint32_t n, const float **out,
                           squint_msg *msg)
{
    char tensor[64];
    snprintf(tensor, sizeof tensor, "blk.%u.%s", layer, name);
    return sq_load_vec(m, tensor, n, true, out, msg);
}

static squint_err load_layer(squint_model *m, const sq_decoder *net, uint32_t l, sq_decoder_layer *w, squint_msg *msg)
{
    const uint32_t d = net->d, q = net->n_heads * net->head_dim, kv = net->n_kv_heads * net->head_dim;
    squint_err err;
    if ((err = load_vec(m, l, "attn_norm.weight", d, &w->attn_norm, msg))) return err;
    if ((err = load_mat(m, l, "attn_q", q, d, &w->q, msg))) return err;
    if ((err = load_mat(m, l, "attn_k", kv, d, &w->k, msg))) return err;
    if ((err = load_mat(m, l, "attn_v", kv, d, &w->v, msg))) return err;
    if ((err = load_mat(m, l, "attn_output", d, q, &w->o, msg))) return err;
    if ((err = load_vec(m, l, "ffn_norm.weight", d, &w->ffn_norm, msg))) return err;
    if ((err = load_mat(m, l, "ffn_gate", net->f, d, &w->gate, msg))) return err;
    if ((err = load_mat(m, l, "ffn_up", net->f, d, &w->up, msg))) return err;
    return load_mat(m, l, "ffn_down", d, net->f, &w->down, msg);
}

static squint_err load_decoder(squint_model *m, sq_decoder *net, squint_msg *msg)
{
    squint_err err;
    if ((err = sq_load_mat(m, "token_embd.weight", net->n_vocab, net->d, &net->token_embd, msg))) return err;
    net->output = net->token_embd; /* tied, unless the file has an output of its own */
    if (sq_gguf_find(m->file, "output.weight") &&
        (err = sq_load_mat(m, "output.weight", net->n_vocab, net->d, &net->output, msg)))
        return err;
    if ((err = sq_load_vec(m, "output_norm.weight", net->d, true, &net->output_norm, msg))) return err;
    for (uint32_t l = 0; l < net->n_layers; l++)
        if ((err = load_layer(m, net, l, &net->layers[l], msg))) return err;
    return SQUINT_OK;
}

/* ---- the family ---- */

void sq_llava_describe(squint_model *m)
{
    const sq_llava *const net = m->net;
    m->n_layers = net->decoder.n_layers;
    m->n_vocab = net->decoder.n_vocab;
    m->d = net->decoder.d;
    m->n_heads = net->decoder.n_heads;
    m->n_kv_heads = net->decoder.n_kv_heads;
    m->head_dim = net->decoder.head_dim;
    m->mode = net->decoder.mode.name;
    m->float_decoder = net->decoder.layers[0].q.f32 || m->precision == SQ_PRECISION_F32;
}

static squint_err load(squint_model *m, squint_msg *msg)
{
    sq_llava *const net = m->net = sq_model_take(m, 1, sizeof *net);
    if (!net) return sq_fail(msg, SQUINT_ERR_NOMEM, "%s: no memory for the network", sq_gguf_path(m->file));
    squint_err err = read_shape(m, &net->decoder, msg);
    if (err) return err;
    net->decoder.layers = sq_model_take(m, net->decoder.n_layers, sizeof *net->decoder.layers);
    if (!net->decoder.layers)
        return sq_fail(msg, SQUINT_ERR_NOMEM, "%s: no memory for %u layers", sq_gguf_path(m->file),
                       net->decoder.n_layers);
    if ((err = load_decoder(m, &net->decoder, msg))) return err;
    if ((err = sq_modes_load(m, &net->decoder, msg))) return err;
    sq_llava_describe(m);
    if ((err = sq_vision_load(m, net, msg))) return err;
    if (m->n_vision >= m->n_ctx)
        return out_of_range(m, "llama.context_length", m->n_ctx, "more than the vision tokens of an image", msg);
    return SQUINT_OK;
}

static sq_needs needs_of(const sq_llava *net)
{
    sq_needs n = {.max_k = 1, .min_group = SQ_ACT_GROUP};
    const sq_decoder *const dec = &net->decoder;
    sq_need(&n, &dec->output, 0);
    for (uint32_t l = 0; l < dec->n_layers; l++) {
        const sq_decoder_layer *const w = &dec->layers[l];
        const sq_mat *const mats[] = {&w->q, &w->k, &w->v, &w->o, &w->gate, &w->up, &w->down};
        for (size_t i = 0; i < SQ_COUNT(mats); i++)
            sq_need(&n, mats[i], 0);
    }
    for (uint32_t l = 0; l < net->vit.n_layers; l++) {
        const sq_vit_layer *const w = &net->vit.layers[l];
        const sq_mat *const mats[] = {&w->q, &w->k, &w->v, &w->out, &w->fc1, &w->fc2};
        for (size_t i = 0; i < SQ_COUNT(mats); i++)
            sq_need(&n, mats[i], 0);
    }
    sq_need(&n, &net->projector.w0, 0);
    sq_need(&n, &net->projector.w2, 0);
    sq_vision_needs(net, &n);
    return n; /* the first convolution is float, but reads its rows as they lie */
}

static uint32_t max_u32(uint32_t a, uint32_t b) { return a > b ? a : b; }

static void plan(squint_session *s, sq_memory *memory)
{
    sq_arena *const arena = &memory->device;
    const sq_llava *const net = s->model->net;
    const sq_needs n = needs_of(net);
    sq_llava_state planning = {0}, *state = sq_take(&memory->host, 1, sizeof *state);
    s->state = state;
    if (!state) state = &planning;
    *state = planning;
    const uint32_t block = sq_decoder_block_rows(s->limits.max_rows), tower = max_u32(net->vit.n_positions, n.max_m);
    const uint32_t rows = max_u32(max_u32(block, s->limits.max_logits), tower);
    if (!arena->remote)
        sq_compute_plan(&s->compute, &memory->host, s->options.threads, rows, n.max_k, n.min_group, n.any_f32);

    sq_decoder_plan_lasting(s, &net->decoder, state, memory);

    /* The towers are done when the decoder begins a sequence: what they need lies where its caches will. */
    const size_t start = arena->used;
    sq_vision_plan(s, net, state, memory);
    const size_t tower_end = arena->used;
    sq_arena_overlay(arena, start);
    sq_decoder_plan(s, &net->decoder, state, memory);
    if (arena->used < tower_end) arena->used = tower_end;
}

static void reset(squint_session *s)
{
    const sq_decoder *const net = &sq_llava_of(s)->decoder;
    sq_llava_state *const state = sq_llava_state_of(s);
    for (uint32_t l = 0; l < net->n_layers; l++)
        state->kv[l].n = 0;
    state->pooled_end = 0;
}

/* What a layer skipped left no entry there: each cache loses those of the places that are taken off. */
static squint_err rewind_to(squint_session *s, uint32_t n_past, squint_msg *msg)
{
    sq_llava_state *const state = sq_llava_state_of(s);
    if (n_past < state->pooled_end)
        return sq_fail(msg, SQUINT_ERR_ARGUMENT, "cannot rewind to token %u: those up to %u are routed together",
                       n_past, state->pooled_end);
    for (uint32_t l = 0; l < s->model->n_layers; l++) {
        sq_kv_layer *const kv = &state->kv[l];
        while (kv->n && kv->at[kv->n - 1] >= n_past)
            kv->n--;
    }
    return SQUINT_OK;
}

size_t sq_llava_kv_bytes(const squint_session *s)
{
    const sq_kv_type type = s->limits.kv;
    return sq_kv_units(type, sq_llava_of(s)->decoder.head_dim) * sq_kv_unit_bytes(type);
}

static bool chooses(const squint_model *m, uint32_t layer)
{
    return ((const sq_llava *)m->net)->decoder.layers[layer].is_mod;
}

static const uint32_t *kv_places(const squint_session *s, uint32_t layer, uint32_t *n)
{
    const sq_kv_layer *const kv = &sq_llava_state_of(s)->kv[layer];
    *n = kv->n;
    return kv->at;
}

static size_t kv_entry_bytes(const squint_session *s)
{
    return 2 * sq_llava_of(s)->decoder.n_kv_heads * sq_llava_kv_bytes(s);
}

static double layer_macs(const squint_model *m, double rows, double n_past)
{
    return sq_decoder_layer_macs(&((const sq_llava *)m->net)->decoder, rows, n_past);
}

const sq_family sq_family_llava = {
    .name = "llava",
    .matches = matches,
    .load = load,
    .schedule = sq_keep_schedule,
    .measure = sq_cost_measure,
    .predict_ms = sq_cost_predict_ms,
    .plan = plan,
    .prepare = sq_decoder_prepare,
    .reset = reset,
    .picture = sq_vision_picture,
    .encode = sq_vision_encode,
    .forward = sq_decoder_forward,
    .rewind = rewind_to,
    .chooses = chooses,
    .kv_places = kv_places,
    .kv_entry_bytes = kv_entry_bytes,
    .layer_macs = layer_macs,
    .tower_macs = sq_vision_macs,
};
