/*
 * The vision tower: CLIP's ViT (arXiv 2103.00020), with or without a class token, and with or without a stem of
 * 3x3 convolutions before the patches (arXiv 2106.14881).
 * SPDX-License-Identifier: MIT
 */
#include "models/llava.h"

#include <math.h>
#include <stdio.h>

enum { MAX_SIDE = 4096, MAX_LAYERS = 512, MAX_CHANNELS = 4096, STEM_KERNEL = 3 };

/* ---- loading ---- */

typedef struct vit_keys {
    uint32_t image, patch, layers, layers_run;
    uint32_t strides[SQ_MAX_STEM], stem_stride; /* stem_stride: product of the strides */
    bool use_gelu, post_ln;
} vit_keys;

static squint_err read_stem(squint_model *m, sq_vit *vit, vit_keys *keys, squint_msg *msg)
{
    static const char name[] = "squint.vision.stem.strides";
    const sq_gguf_kv *const kv = sq_gguf_find_key(m->file, name);
    keys->stem_stride = 1;
    if (!kv) return SQUINT_OK;
    if (kv->count > SQ_MAX_STEM) return sq_vision_bad_key(m, name, (uint32_t)kv->count, "at most 4 strides", msg);
    vit->n_stem = (uint32_t)kv->count;
    const squint_err err = sq_gguf_get_u32s(m->file, name, true, keys->strides, vit->n_stem, msg);
    if (err) return err;
    for (uint32_t i = 0; i < vit->n_stem; i++) {
        if (keys->strides[i] < 1 || keys->strides[i] > 4)
            return sq_vision_bad_key(m, name, keys->strides[i], "from 1 to 4", msg);
        keys->stem_stride *= keys->strides[i];
    }
    return SQUINT_OK;
}

/*
 * LLaVA takes hidden_states[-2], what comes after 23 of CLIP-L's 24 blocks. squint's files say it; those that
 * llama.cpp's converters wrote may name the state as their only feature layer, count 23 whether they store 24 or not,
 * or count all.
 */
squint_err sq_vit_layers_run(const sq_gguf *g, uint32_t counted, uint32_t *out, squint_msg *msg)
{
    static const char ours[] = "squint.vision.layers_run", theirs[] = "clip.vision.feature_layer";
    enum { CLIP_L = 24 };
    const bool is_ours = sq_gguf_find_key(g, "squint.vision.type");
    *out = counted == CLIP_L && !is_ours ? CLIP_L - 1 : counted;
    if (sq_gguf_find_key(g, ours)) return sq_gguf_get_u32(g, ours, true, out, msg);
    if (!sq_gguf_find_key(g, theirs)) return SQUINT_OK;
    return sq_gguf_get_u32s(g, theirs, true, out, 1, msg);
}

static void note_foreign(const squint_model *m, const sq_vit *vit)
{
    char name[32];
    uint32_t stored = 0;
    const bool is_ours = sq_gguf_find_key(m->file, "squint.vision.type");
    if (is_ours || !sq_gguf_vision(m->file)) return;
    do {
        snprintf(name, sizeof name, "v.blk.%u.ln1.weight", stored);
    } while (sq_gguf_find(m->file, name) && ++stored);
    sq_note(m, "%s: %u of %u blocks run; pictures are prepared as LLaVA does it, not as llama.cpp", sq_vision_path(m),
            vit->n_layers, stored);
}

static squint_err read_sizes(squint_model *m, sq_vit *vit, vit_keys *keys, squint_msg *msg)
{
    const sq_gguf *const g = m->file;
    squint_err err;
    if ((err = sq_gguf_get_u32(g, "clip.vision.image_size", true, &keys->image, msg))) return err;
    if ((err = sq_gguf_get_u32(g, "clip.vision.patch_size", true, &keys->patch, msg))) return err;
    if ((err = sq_gguf_get_u32(g, "clip.vision.embedding_length", true, &vit->d, msg))) return err;
    if ((err = sq_gguf_get_u32(g, "clip.vision.feed_forward_length", true, &vit->f, msg))) return err;
    if ((err = sq_gguf_get_u32(g, "clip.vision.block_count", true, &keys->layers, msg))) return err;
    if ((err = sq_gguf_get_u32(g, "clip.vision.attention.head_count", true, &vit->n_heads, msg))) return err;
    if ((err = sq_gguf_get_f32(g, "clip.vision.attention.layer_norm_epsilon", true, &vit->eps, msg))) return err;
    if ((err = sq_gguf_get_bool(g, "clip.use_gelu", false, &keys->use_gelu, msg))) return err;
    if ((err = sq_gguf_get_bool(g, "squint.vision.post_ln", false, &keys->post_ln, msg))) return err;
    if ((err = sq_vit_layers_run(g, keys->layers, &keys->layers_run, msg))) return err;
    return read_stem(m, vit, keys, msg);
}

static squint_err check_sizes(const squint_model *m, const sq_vit *vit, const vit_keys *keys, squint_msg *msg)
{
    if (keys->image < 1 || keys->image > MAX_SIDE)
        return sq_vision_bad_key(m, "clip.vision.image_size", keys->image, "from 1 to 4096", msg);
    if (keys->patch < 1 || keys->patch > keys->image || keys->image % keys->patch)
        return sq_vision_bad_key(m, "clip.vision.patch_size", keys->patch, "a divisor of clip.vision.image_size", msg);
    if (keys->patch % keys->stem_stride)
        return sq_vision_bad_key(m, "squint.vision.stem.strides", keys->stem_stride,
                                 "a product that divides clip.vision.patch_size", msg);
    if (vit->d < 1 || vit->d > SQ_MAX_K)
        return sq_vision_bad_key(m, "clip.vision.embedding_length", vit->d, "from 1 to 65536", msg);
    if (vit->f < 1 || vit->f > SQ_MAX_K)
        return sq_vision_bad_key(m, "clip.vision.feed_forward_length", vit->f, "from 1 to 65536", msg);
    if (vit->n_heads < 1 || vit->d % vit->n_heads || vit->d / vit->n_heads > 256)
        return sq_vision_bad_key(m, "clip.vision.attention.head_count", vit->n_heads,
                                 "a divisor of clip.vision.embedding_length with heads of at most 256", msg);
    if (keys->layers_run < 1 || keys->layers_run > MAX_LAYERS)
        return sq_vision_bad_key(m, "squint.vision.layers_run", keys->layers_run, "from 1 to 512", msg);
    if (!(vit->eps > 0 && vit->eps < 1))
        return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: key clip.vision.attention.layer_norm_epsilon is not from 0 to 1",
                       sq_vision_path(m));
    return SQUINT_OK;
}

/* Output channels of a stem convolution are known from its tensor alone. */
static squint_err stem_channels(const squint_model *m, uint32_t i, uint32_t *out, squint_msg *msg)
{
    char name[32];
    snprintf(name, sizeof name, "v.stem.%u.weight", i);
    const sq_gguf_tensor *const t = sq_gguf_find(m->file, name);
    if (!t || t->n_dims != 4 || t->ne[3] > MAX_CHANNELS)
        return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: tensor %s: missing, or not [3, 3, in, out] with out up to %d",
                       sq_vision_path(m), name, MAX_CHANNELS);
    *out = (uint32_t)t->ne[3];
    return SQUINT_OK;
}

static squint_err load_convs(squint_model *m, sq_vit *vit, const vit_keys *keys, squint_msg *msg)
{
    uint32_t side = keys->image, channels = 3;
    for (uint32_t i = 0; i < vit->n_stem; i++) {
        sq_conv *const conv = &vit->stem[i];
        uint32_t out = 0;
        char name[32];
        squint_err err = stem_channels(m, i, &out, msg);
        if (err) return err;
        *conv = (sq_conv){.in = channels, .kernel = STEM_KERNEL, .stride = keys->strides[i], .pad = 1};
        conv->side = side = (side + 2 * conv->pad - conv->kernel) / conv->stride + 1;
        channels = out;
        snprintf(name, sizeof name, "v.stem.%u", i);
        if ((err = sq_load_conv(m, name, out, conv, msg))) return err;
    }
    const uint32_t kernel = keys->patch / keys->stem_stride;
    if (side < kernel) return sq_vision_bad_key(m, "clip.vision.patch_size", keys->patch, "within the image", msg);
    vit->patch = (sq_conv){.in = channels, .kernel = kernel, .stride = kernel, .side = (side - kernel) / kernel + 1};
    return sq_load_conv(m, "v.patch_embd", vit->d, &vit->patch, msg);
}

static squint_err load_linear(squint_model *m, uint32_t layer, const char *name, uint32_t n, uint32_t k, sq_mat *w,
                              const float **bias, squint_msg *msg)
{
    char tensor[64];
    snprintf(tensor, sizeof tensor, "v.blk.%u.%s.weight", layer, name);
    const squint_err err = sq_load_mat(m, tensor, n, k, w, msg);
    if (err) return err;
    snprintf(tensor, sizeof tensor, "v.blk.%u.%s.bias", layer, name);
    return sq_load_vec(m, tensor, n, true, bias, msg);
}

/* llama.cpp's converter calls fc1 "ffn_down" and fc2 "ffn_up"; some files have it the other way round. */
static bool fc1_is_called_down(const squint_model *m, uint32_t layer, uint32_t d)
{
    char tensor[64];
    snprintf(tensor, sizeof tensor, "v.blk.%u.ffn_down.weight", layer);
    const sq_gguf_tensor *const t = sq_gguf_find(m->file, tensor);
    sq_panels panels;
    if (!t) return true;
    if (!sq_tensor_is_panels(t)) return t->ne[0] == d;
    return sq_tensor_panels(m->file, t, &panels, NULL) == SQUINT_OK && panels.k == d;
}

static squint_err load_layer(squint_model *m, const sq_vit *vit, uint32_t l, sq_vit_layer *w, squint_msg *msg)
{
    const uint32_t d = vit->d, f = vit->f;
    const bool down_first = fc1_is_called_down(m, l, d);
    char name[32];
    squint_err err;
    snprintf(name, sizeof name, "v.blk.%u.ln1", l);
    if ((err = sq_load_affine(m, name, d, true, &w->ln1, msg))) return err;
    snprintf(name, sizeof name, "v.blk.%u.ln2", l);
    if ((err = sq_load_affine(m, name, d, true, &w->ln2, msg))) return err;
    if ((err = load_linear(m, l, "attn_q", d, d, &w->q, &w->q_b, msg))) return err;
    if ((err = load_linear(m, l, "attn_k", d, d, &w->k, &w->k_b, msg))) return err;
    if ((err = load_linear(m, l, "attn_v", d, d, &w->v, &w->v_b, msg))) return err;
    if ((err = load_linear(m, l, "attn_out", d, d, &w->out, &w->out_b, msg))) return err;
    if ((err = load_linear(m, l, down_first ? "ffn_down" : "ffn_up", f, d, &w->fc1, &w->fc1_b, msg))) return err;
    return load_linear(m, l, down_first ? "ffn_up" : "ffn_down", d, f, &w->fc2, &w->fc2_b, msg);
}

static squint_err read_image_rule(squint_model *m, uint32_t size, squint_msg *msg)
{
    sq_image_rule *const rule = &m->image_rule;
    uint32_t color[3] = {122, 116, 104};
    squint_err err;
    rule->size = size;
    if ((err = sq_gguf_get_f32s(m->file, "clip.vision.image_mean", true, rule->mean, 3, msg))) return err;
    if ((err = sq_gguf_get_f32s(m->file, "clip.vision.image_std", true, rule->std, 3, msg))) return err;
    if ((err = sq_gguf_get_u32s(m->file, "squint.vision.pad_color", false, color, 3, msg))) return err;
    for (int c = 0; c < 3; c++) {
        if (!(rule->std[c] > 0) || !isfinite(rule->mean[c]) || !isfinite(rule->std[c]))
            return sq_fail(msg, SQUINT_ERR_FORMAT,
                           "%s: key clip.vision.image_std or image_mean is not positive and finite", sq_vision_path(m));
        if (color[c] > 255) return sq_vision_bad_key(m, "squint.vision.pad_color", color[c], "from 0 to 255", msg);
        rule->pad_color[c] = (uint8_t)color[c];
    }
    return SQUINT_OK;
}

squint_err sq_vit_load(squint_model *m, sq_vit *vit, squint_msg *msg)
{
    vit_keys keys = {0};
    squint_err err;
    if ((err = read_sizes(m, vit, &keys, msg))) return err;
    if ((err = check_sizes(m, vit, &keys, msg))) return err;
    if ((err = read_image_rule(m, keys.image, msg))) return err;
    if ((err = load_convs(m, vit, &keys, msg))) return err;
    vit->activation = keys.use_gelu ? SQ_ROW_GELU : SQ_ROW_QUICKGELU;
    vit->side = keys.image;
    vit->n_layers = keys.layers_run;
    vit->n_patches = vit->patch.side * vit->patch.side;
    if ((err = sq_load_vec(m, "v.class_embd", vit->d, false, &vit->class_embd, msg))) return err;
    vit->n_positions = vit->n_patches + (vit->class_embd ? 1 : 0);
    if ((err = sq_load_vec(m, "v.position_embd.weight", (size_t)vit->n_positions * vit->d, true, &vit->position_embd,
                           msg)))
        return err;
    if ((err = sq_load_affine(m, "v.pre_ln", vit->d, false, &vit->pre_ln, msg))) return err;
    if (keys.post_ln && (err = sq_load_affine(m, "v.post_ln", vit->d, true, &vit->post_ln, msg))) return err;
    vit->layers = sq_model_take(m, vit->n_layers, sizeof *vit->layers);
    if (!vit->layers) return sq_fail(msg, SQUINT_ERR_NOMEM, "%s: no memory for the tower", sq_vision_path(m));
    for (uint32_t l = 0; l < vit->n_layers; l++)
        if ((err = load_layer(m, vit, l, &vit->layers[l], msg))) return err;
    note_foreign(m, vit);
    return SQUINT_OK;
}

/* ---- planning ---- */

static double conv_macs(const sq_conv *c) { return (double)c->side * c->side * c->w.n * c->w.k; }

double sq_vit_macs(const sq_vit *vit)
{
    const double n = vit->n_positions, d = vit->d;
    double macs = conv_macs(&vit->patch) + vit->n_layers * (n * d * (4 * d + 2.0 * vit->f) + 2 * n * n * d);
    for (uint32_t i = 0; i < vit->n_stem; i++)
        macs += conv_macs(&vit->stem[i]);
    return macs;
}

static size_t map_floats(const sq_conv *conv) { return (size_t)conv->side * conv->side * conv->w.n; }
static size_t patch_floats(const sq_conv *conv) { return (size_t)conv->side * conv->side * conv->w.k; }
static size_t max_size(size_t a, size_t b) { return a > b ? a : b; }

/* From one row of queries, keys and values to the next: an odd number of cache lines. At 12 KiB, CLIP's 3 * 1024
 * floats, a head's keys and values would share so few sets of L2 that they drive each other out. */
static size_t qkv_floats(const sq_vit *vit) { return ((3 * (size_t)vit->d + 15) / 16 | 1) * 16; }

void sq_vit_plan(squint_session *s, const sq_llava *net, sq_llava_state *state, sq_memory *memory)
{
    sq_arena *const arena = &memory->device;
    const sq_vit *const vit = &net->vit;
    (void)s;
    size_t map = 0, patches = patch_floats(&vit->patch);
    for (uint32_t i = 0; i < vit->n_stem; i++) {
        map = max_size(map, map_floats(&vit->stem[i]));
        patches = max_size(patches, patch_floats(&vit->stem[i]));
    }
    state->image = sq_take_mirror(memory, NULL, 3 * (size_t)vit->side, vit->side * sizeof(float));
    state->map[0] = sq_take_unset(arena, map, sizeof(float));
    state->map[1] = sq_take_unset(arena, map, sizeof(float));
    state->patches = sq_take_unset(arena, patches, sizeof(float));
    state->vit_x = sq_take_unset(arena, vit->n_positions, vit->d * sizeof(float));
    state->vit_qkv = sq_take_unset(arena, vit->n_positions, qkv_floats(vit) * sizeof(float));
    state->vit_attn = sq_take_unset(arena, vit->n_positions, vit->d * sizeof(float));
    state->vit_mlp = sq_take_unset(arena, vit->n_positions, max_size(vit->f, net->projector.hidden) * sizeof(float));
}

/* ---- running ---- */

/* @param planar  map is [in][side][side] */
static void convolve(squint_session *s, const sq_conv *conv, const float *map, bool planar, uint32_t side, float *out)
{
    float *const patches = sq_llava_state_of(s)->patches;
    const sq_patches gather = {.map = map,
                               .planar = planar,
                               .side = side,
                               .channels = conv->in,
                               .kernel = conv->kernel,
                               .stride = conv->stride,
                               .pad = conv->pad,
                               .out_side = conv->side,
                               .n_rows = conv->side,
                               .out = patches};
    sq_gather_patches(&s->compute, &gather);
    const sq_rows_in in = {.x = patches, .ldx = conv->w.k, .k = conv->w.k, .op = SQ_ROW_COPY};
    const sq_gemm_out store = {.c = out, .ldc = conv->w.n, .bias = conv->bias};
    sq_project(&s->compute, &in, conv->side * conv->side, (const sq_mat *const[]){&conv->w}, &store, 1);
}

static void normalise_rows(squint_session *s, const sq_vit *vit, const sq_affine *ln, float *rows)
{
    const sq_rows_in in = sq_norm_rows(ln, rows, vit->d, vit->eps);
    sq_rows(&s->compute, &in, vit->n_positions, rows, vit->d);
}

float *sq_vit_patches(const squint_session *s)
{
    const sq_vit *const vit = &sq_llava_of(s)->vit;
    return sq_llava_state_of(s)->vit_x + (size_t)(vit->n_positions - vit->n_patches) * vit->d;
}

void sq_vit_embed(squint_session *s, const float *pixels)
{
    const sq_vit *const vit = &sq_llava_of(s)->vit;
    const sq_llava_state *const state = sq_llava_state_of(s);
    sq_compute *const compute = &s->compute;
    float *const x = state->vit_x;
    uint32_t side = vit->side;
    sq_trace(s, SQ_TRACE_PIXELS, -1, pixels, 1, 3 * side * side);
    const float *map = sq_upload(compute, state->image, pixels, 3 * (size_t)side * side);
    for (uint32_t i = 0; i < vit->n_stem; i++) {
        float *const out = state->map[i % 2];
        convolve(s, &vit->stem[i], map, !i, side, out);
        sq_relu(compute, out, map_floats(&vit->stem[i]));
        map = out;
        side = vit->stem[i].side;
    }
    if (vit->class_embd) sq_write(compute, x, vit->class_embd, vit->d * sizeof *x);
    convolve(s, &vit->patch, map, !vit->n_stem, side, sq_vit_patches(s));
    sq_add_weights(compute, x, vit->position_embd, (size_t)vit->n_positions * vit->d);
    if (vit->pre_ln.weight) normalise_rows(s, vit, &vit->pre_ln, x);
    sq_trace_floats(s, SQ_TRACE_PATCHES, -1, x, vit->n_positions, vit->d);
}

static void attention_branch(squint_session *s, const sq_vit *vit, const sq_vit_layer *w)
{
    sq_llava_state *const state = sq_llava_state_of(s);
    const uint32_t n = vit->n_positions, d = vit->d, head_dim = d / vit->n_heads;
    const size_t ld = qkv_floats(vit);
    float *const qkv = state->vit_qkv;
    const sq_rows_in in = {.x = state->vit_x,
                           .ldx = d,
                           .k = d,
                           .op = SQ_ROW_LAYERNORM,
                           .weight = w->ln1.weight,
                           .bias = w->ln1.bias,
                           .eps = vit->eps};
    const sq_gemm_out out[] = {{.c = qkv, .ldc = ld, .bias = w->q_b},
                               {.c = qkv + d, .ldc = ld, .bias = w->k_b},
                               {.c = qkv + 2 * (size_t)d, .ldc = ld, .bias = w->v_b}};
    sq_project(&s->compute, &in, n, (const sq_mat *const[]){&w->q, &w->k, &w->v}, out, 3);

    const sq_heads heads = {
        .attn = {.q = qkv,
                 .ldq = ld,
                 .k = qkv + d,
                 .v = qkv + 2 * (size_t)d,
                 .ldkv = ld,
                 .kv_type = SQ_KV_F32,
                 .n_q = n,
                 .n_kv = n,
                 .head_dim = head_dim,
                 .scale = 1.0f / sqrtf((float)head_dim),
                 .out = state->vit_attn,
                 .ldo = d},
        .n_heads = vit->n_heads,
        .n_kv_heads = vit->n_heads,
        .kv_head_bytes = head_dim * sizeof(float),
    };
    sq_attend(&s->compute, &heads);

    const sq_rows_in attended = {.x = state->vit_attn, .ldx = d, .k = d, .op = SQ_ROW_COPY};
    const sq_gemm_out residual = {.c = state->vit_x, .ldc = d, .bias = w->out_b, .add = true};
    sq_project(&s->compute, &attended, n, (const sq_mat *const[]){&w->out}, &residual, 1);
}

static void mlp_branch(squint_session *s, const sq_vit *vit, const sq_vit_layer *w)
{
    sq_llava_state *const state = sq_llava_state_of(s);
    const uint32_t n = vit->n_positions, d = vit->d;
    const sq_rows_in in = {.x = state->vit_x,
                           .ldx = d,
                           .k = d,
                           .op = SQ_ROW_LAYERNORM,
                           .weight = w->ln2.weight,
                           .bias = w->ln2.bias,
                           .eps = vit->eps};
    const sq_gemm_out hidden = {.c = state->vit_mlp, .ldc = vit->f, .bias = w->fc1_b};
    sq_project(&s->compute, &in, n, (const sq_mat *const[]){&w->fc1}, &hidden, 1);

    const sq_rows_in activated = {.x = state->vit_mlp, .ldx = vit->f, .k = vit->f, .op = vit->activation};
    const sq_gemm_out residual = {.c = state->vit_x, .ldc = d, .bias = w->fc2_b, .add = true};
    sq_project(&s->compute, &activated, n, (const sq_mat *const[]){&w->fc2}, &residual, 1);
}

squint_err sq_vit_blocks(squint_session *s, uint32_t first, uint32_t end, squint_msg *msg)
{
    const sq_vit *const vit = &sq_llava_of(s)->vit;
    for (uint32_t l = first; l < end; l++) {
        attention_branch(s, vit, &vit->layers[l]);
        mlp_branch(s, vit, &vit->layers[l]);
        sq_trace_floats(s, SQ_TRACE_TOWER_LAYER, (int)l, sq_llava_state_of(s)->vit_x, vit->n_positions, vit->d);
        const squint_err err = sq_vision_step(s, msg);
        if (err) return err;
    }
    return SQUINT_OK;
}

void sq_vit_finish(squint_session *s)
{
    const sq_vit *const vit = &sq_llava_of(s)->vit;
    if (vit->post_ln.weight) normalise_rows(s, vit, &vit->post_ln, sq_llava_state_of(s)->vit_x);
    sq_trace_floats(s, SQ_TRACE_TOWER, -1, sq_vit_patches(s), vit->n_patches, vit->d);
}

squint_err sq_vit_forward(squint_session *s, const float *pixels, squint_msg *msg)
{
    sq_vit_embed(s, pixels);
    const squint_err err = sq_vit_blocks(s, 0, sq_llava_of(s)->vit.n_layers, msg);
    if (!err) sq_vit_finish(s);
    return err;
}
