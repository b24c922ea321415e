/*
 * LLaVA-HR (arXiv 2403.03003): CLIP sees a small picture, a ConvNeXt a large one, and adapters between groups of CLIP's
 * blocks let in what a gate asks for of the large one's map.
 * SPDX-License-Identifier: MIT
 */
#include "models/llava.h"
#include "models/resample.h"
#include "simd/exp.h"

#include <stdio.h>
#include <string.h>

/* ---- loading ---- */

static squint_err read_groups(squint_model *m, const sq_vit *vit, sq_hr *hr, squint_msg *msg)
{
    static const char key[] = "squint.vision.slow.groups";
    uint32_t groups[SQ_HR_GROUPS], end = 0;
    const squint_err err = sq_gguf_get_u32s(m->file, key, true, groups, SQ_HR_GROUPS, msg);
    if (err) return err;
    for (uint32_t g = 0; g < SQ_HR_GROUPS; g++) {
        if (!groups[g] || groups[g] > vit->n_layers - end)
            return sq_vision_bad_key(m, key, groups[g], "from 1 on, all four together squint.vision.layers_run", msg);
        hr->ends[g] = end += groups[g];
    }
    if (end != vit->n_layers) return sq_vision_bad_key(m, key, end, "in all squint.vision.layers_run", msg);
    return SQUINT_OK;
}

/* Tokens of one tower must become as many as the other's. */
static squint_err check_sides(const squint_model *m, const sq_llava *net, squint_msg *msg)
{
    const uint32_t fast = net->vit.patch.side, slow = net->slow.stages[SQ_SLOW_STAGES - 1].side;
    if (fast >= slow || slow % fast == 0) return SQUINT_OK;
    return sq_fail(msg, SQUINT_ERR_FORMAT,
                   "%s: key squint.vision.input_size: a map of %ux%u places cannot become CLIP's %ux%u patches",
                   sq_vision_path(m), slow, slow, fast, fast);
}

static squint_err check_tower(const squint_model *m, const sq_vit *vit, squint_msg *msg)
{
    sq_str drop = {"before_pre_ln", 13};
    const squint_err err = sq_gguf_get_str(m->file, "squint.vision.drop_class", false, &drop, msg);
    if (err) return err;
    if (!sq_str_eq(drop, "before_pre_ln"))
        return sq_fail(msg, SQUINT_ERR_FORMAT,
                       "%s: key squint.vision.drop_class: \"%.*s\"; llava_hr drops it \"before_pre_ln\"",
                       sq_vision_path(m), (int)(drop.len < 64 ? drop.len : 64), drop.s);
    if (vit->class_embd)
        return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: tensor v.class_embd: llava_hr has none", sq_vision_path(m));
    if (vit->post_ln.weight)
        return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: key squint.vision.post_ln: llava_hr has none", sq_vision_path(m));
    return SQUINT_OK;
}

/* The gate's inner width is known from its tensor alone. */
static squint_err load_gate(squint_model *m, const char *at, uint32_t d, sq_hr_adapter *a, squint_msg *msg)
{
    char name[64], tensor[80];
    snprintf(name, sizeof name, "%s.gate.0", at);
    snprintf(tensor, sizeof tensor, "%s.weight", name);
    const sq_gguf_tensor *const t = sq_gguf_find(m->file, tensor);
    if (!t || t->n_dims != 2 || t->ne[1] < 1 || t->ne[1] > SQ_MAX_K)
        return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: tensor %s: missing, or not [%u, n] with n up to %d",
                       sq_vision_path(m), tensor, 2 * d, SQ_MAX_K);
    const uint32_t inner = (uint32_t)t->ne[1];
    const bool any_floats = m->any_floats;
    squint_err err = sq_load_linear(m, name, inner, 2 * d, &a->gate0, msg);
    if (err) return err;
    snprintf(name, sizeof name, "%s.gate.2", at);
    if ((err = sq_load_linear(m, name, 1, inner, &a->gate2, msg))) return err;
    m->any_floats = any_floats; /* gates are sums of the program's own, whatever runs the rest */
    if (a->gate0.w.f32 && a->gate2.w.f32) return SQUINT_OK;
    return sq_fail(msg, SQUINT_ERR_UNSUPPORTED, "%s: tensor %s.gate.%d.weight: gates are F32 or F16", sq_vision_path(m),
                   at, a->gate0.w.f32 ? 2 : 0);
}

static squint_err load_adapter(squint_model *m, uint32_t i, uint32_t d, uint32_t d_slow, sq_hr_adapter *a,
                               squint_msg *msg)
{
    char at[32], name[64];
    squint_err err;
    snprintf(at, sizeof at, "v.hr.%u", i);
    snprintf(name, sizeof name, "%s.slow_conv", at);
    if ((err = sq_load_linear(m, name, d_slow, d_slow, &a->slow_conv, msg))) return err;
    snprintf(name, sizeof name, "%s.slow_proj", at);
    if ((err = sq_load_linear(m, name, d, d_slow, &a->slow_proj, msg))) return err;
    snprintf(name, sizeof name, "%s.fast_conv", at);
    if ((err = sq_load_depthwise(m, name, d, &a->fast_conv, msg))) return err;
    snprintf(name, sizeof name, "%s.fast_proj", at);
    if ((err = sq_load_linear(m, name, d, d, &a->fast_proj, msg))) return err;
    return load_gate(m, at, d, a, msg);
}

static bool has_adapters(const sq_gguf *g)
{
    static const char prefix[] = "v.hr.";
    for (size_t i = 0; i < sq_gguf_n_tensors(g); i++) {
        const sq_str name = sq_gguf_tensor_at(g, i)->name;
        const size_t n = sizeof prefix - 1;
        if (name.len > n && !memcmp(name.s, prefix, n) && name.s[n] >= '0' && name.s[n] <= '9') return true;
    }
    return false;
}

static squint_err load(squint_model *m, sq_llava *net, squint_msg *msg)
{
    sq_hr *const hr = &net->hr;
    const uint32_t d = net->vit.d;
    uint32_t side = 0;
    squint_err err;
    if ((err = sq_gguf_get_u32(m->file, "squint.vision.input_size", true, &side, msg))) return err;
    if ((err = check_tower(m, &net->vit, msg))) return err;
    if ((err = read_groups(m, &net->vit, hr, msg))) return err;
    if ((err = sq_convnext_load(m, side, &net->slow, msg))) return err;
    if ((err = check_sides(m, net, msg))) return err;
    m->image_rule.size = side;
    const uint32_t d_slow = net->slow.stages[SQ_SLOW_STAGES - 1].channels;
    hr->has_adapters = has_adapters(m->file); /* towers that were not trained have none */
    for (uint32_t i = 0; hr->has_adapters && i < SQ_HR_GROUPS - 1; i++)
        if ((err = load_adapter(m, i, d, d_slow, &hr->adapters[i], msg))) return err;
    if ((err = sq_load_linear(m, "v.hr.out.fast", d, d, &hr->out_fast, msg))) return err;
    return sq_load_linear(m, "v.hr.out.slow", d, d_slow, &hr->out_slow, msg);
}

static void describe(squint_model *m)
{
    const sq_llava *const net = m->net;
    m->n_vision = m->n_vision_base = net->vit.n_patches;
    m->pixel_floats = 3 * (size_t)net->slow.side * net->slow.side;
}

/* ---- planning ---- */

static uint32_t slow_places(const sq_llava *net)
{
    const uint32_t side = net->slow.stages[SQ_SLOW_STAGES - 1].side;
    return side * side;
}

static void needs(const sq_llava *net, sq_needs *n)
{
    const sq_hr *const hr = &net->hr;
    sq_convnext_needs(&net->slow, n);
    for (uint32_t i = 0; hr->has_adapters && i < SQ_HR_GROUPS - 1; i++) {
        const sq_hr_adapter *const a = &hr->adapters[i];
        sq_need(n, &a->slow_conv.w, slow_places(net));
        sq_need(n, &a->slow_proj.w, slow_places(net));
        sq_need(n, &a->fast_proj.w, net->vit.n_patches);
    }
    sq_need(n, &hr->out_fast.w, net->vit.n_patches);
    sq_need(n, &hr->out_slow.w, slow_places(net));
}

static uint32_t gate_width(const sq_hr *hr)
{
    uint32_t most = 1;
    for (uint32_t i = 0; i < SQ_HR_GROUPS - 1; i++)
        most = hr->adapters[i].gate0.w.n > most ? hr->adapters[i].gate0.w.n : most;
    return most;
}

static size_t most_map_floats(const sq_convnext *slow)
{
    size_t most = 0;
    for (uint32_t i = 0; i < SQ_SLOW_STAGES; i++) {
        const size_t floats = sq_convnext_map_floats(slow, i);
        most = floats > most ? floats : most;
    }
    return most;
}

static void plan(squint_session *s, const sq_llava *net, sq_llava_state *state, sq_memory *memory)
{
    sq_arena *const arena = &memory->device;
    const size_t n = net->vit.n_patches, d = net->vit.d, slow = slow_places(net);
    const size_t d_slow = net->slow.stages[SQ_SLOW_STAGES - 1].channels, side = net->vit.side, start = arena->used;
    sq_hr_state *const hr = &state->hr;
    hr->map = sq_take_unset(arena, most_map_floats(&net->slow), sizeof(float));
    sq_convnext_plan(&net->slow, &state->slow, memory);
    const size_t slow_end = arena->used;

    /* Of the slow tower's memory its last map alone outlives it. */
    sq_arena_overlay(arena,
                     start + (slow * d_slow * sizeof(float) + SQ_ARENA_ALIGN - 1) / SQ_ARENA_ALIGN * SQ_ARENA_ALIGN);
    sq_vit_plan(s, net, state, memory);
    hr->small = sq_take_unset(sq_beside(memory), 3 * side, side * sizeof(float));
    hr->inner = sq_take_unset(arena, slow, d_slow * sizeof(float));
    hr->tokens = sq_take_unset(arena, slow, d * sizeof(float));
    hr->matched = sq_take_unset(arena, n, d * sizeof(float));
    hr->means = sq_take_unset(sq_beside(memory), 2 * d, sizeof *hr->means);
    hr->device_means = sq_take_mirror(memory, hr->means, 2 * d, sizeof *hr->means);
    hr->gate = sq_take_unset(sq_beside(memory), 2, gate_width(&net->hr) * sizeof *hr->gate);
    if (arena->used < slow_end) arena->used = slow_end;
}

static double adapter_macs(const sq_llava *net, const sq_hr_adapter *a)
{
    const double n = net->vit.n_patches, slow = slow_places(net);
    return sq_linear_macs(&a->slow_conv, slow) + sq_linear_macs(&a->slow_proj, slow) +
           n * SQ_DEPTHWISE_TAPS * net->vit.d + sq_linear_macs(&a->fast_proj, n) + sq_linear_macs(&a->gate0, 1) +
           sq_linear_macs(&a->gate2, 1);
}

static double macs(const squint_session *s)
{
    const sq_llava *const net = sq_llava_of(s);
    const sq_hr *const hr = &net->hr;
    const double n = net->vit.n_patches;
    double sum = sq_convnext_macs(&net->slow) + sq_vit_macs(&net->vit) + sq_linear_macs(&hr->out_fast, n) +
                 sq_linear_macs(&hr->out_slow, slow_places(net)) + sq_projector_macs(&net->projector, n);
    for (uint32_t i = 0; hr->has_adapters && i < SQ_HR_GROUPS - 1; i++)
        sum += adapter_macs(net, &hr->adapters[i]);
    return sum;
}

/* ---- running ---- */

static squint_err picture(squint_session *s, const uint8_t *rgb, uint32_t w, uint32_t h, size_t stride, squint_msg *msg)
{
    s->n_vision = s->n_vision_base = s->model->n_vision;
    s->n_grids = 1;
    s->grids[0] = sq_vision_square(s->model, w, h, 0);
    return sq_image_prepare(rgb, w, h, stride, &s->model->image_rule, s->pixels, &s->alloc, msg);
}

static uint32_t steps(const squint_session *s)
{
    const sq_llava *const net = sq_llava_of(s);
    return sq_convnext_steps(&net->slow) + net->vit.n_layers;
}

/* One layer over the slow map's places, as many tokens as CLIP has. */
static const float *slow_tokens(squint_session *s, const sq_linear *l, const sq_rows_in *in)
{
    const sq_llava *const net = sq_llava_of(s);
    const sq_hr_state *const hr = &sq_llava_state_of(s)->hr;
    sq_run_linear(s, l, in, slow_places(net), hr->tokens, false);
    return sq_match_tokens(&s->compute, hr->tokens, net->slow.stages[SQ_SLOW_STAGES - 1].side, hr->matched,
                           net->vit.patch.side, net->vit.d);
}

static sq_rows_in rows_of(const float *x, uint32_t k, sq_row_op op)
{
    return (sq_rows_in){.x = x, .ldx = k, .k = k, .op = op};
}

/* y += fast_proj(GELU(fast_conv(y))) */
static void refine_fast(squint_session *s, const sq_hr_adapter *a)
{
    const sq_vit *const vit = &sq_llava_of(s)->vit;
    const sq_llava_state *const state = sq_llava_state_of(s);
    const sq_depthwise_map convolved = {.map = state->vit_x,
                                        .side = vit->patch.side,
                                        .channels = vit->d,
                                        .w = a->fast_conv.weight,
                                        .bias = a->fast_conv.bias,
                                        .n_rows = vit->patch.side,
                                        .out = state->vit_attn};
    sq_convolve_depthwise(&s->compute, &convolved);
    const sq_rows_in in = rows_of(state->vit_attn, vit->d, SQ_ROW_GELU);
    sq_run_linear(s, &a->fast_proj, &in, vit->n_patches, state->vit_x, true);
}

/* How much of the slow tokens a picture's fast ones take in. Both means decide, in so few sums that the program makes
 * them itself. */
static float gate(squint_session *s, const sq_hr_adapter *a, const float *fast, const float *slow)
{
    const sq_vit *const vit = &sq_llava_of(s)->vit;
    const sq_hr_state *const hr = &sq_llava_state_of(s)->hr;
    const sq_kernels *const kernels = s->model->kernels;
    const uint32_t d = vit->d, inner = a->gate0.w.n;
    float *const before = hr->gate, *const after = hr->gate + inner;
    sq_column_means(&s->compute, fast, vit->n_patches, d, hr->device_means);
    sq_column_means(&s->compute, slow, vit->n_patches, d, hr->device_means + d);
    sq_read(&s->compute, hr->means, hr->device_means, 2 * (size_t)d * sizeof *hr->means);
    for (uint32_t i = 0; i < inner; i++)
        before[i] = kernels->dot(a->gate0.w.f32 + (size_t)i * 2 * d, hr->means, 2 * (size_t)d) + a->gate0.bias[i];
    const sq_rows_in gelu = rows_of(before, inner, SQ_ROW_GELU);
    kernels->row(&gelu, before, after);
    return sq_tanh(kernels->dot(a->gate2.w.f32, after, inner) + a->gate2.bias[0]);
}

void sq_hr_adapt(squint_session *s, uint32_t i)
{
    const sq_llava *const net = sq_llava_of(s);
    const sq_hr_adapter *const a = &net->hr.adapters[i];
    const sq_llava_state *const state = sq_llava_state_of(s);
    const uint32_t d_slow = a->slow_conv.w.k;
    const sq_rows_in map = rows_of(state->hr.map, d_slow, SQ_ROW_COPY);
    sq_run_linear(s, &a->slow_conv, &map, slow_places(net), state->hr.inner, false);
    const sq_rows_in inner = rows_of(state->hr.inner, d_slow, SQ_ROW_GELU);
    const float *const slow = slow_tokens(s, &a->slow_proj, &inner);
    refine_fast(s, a);
    const float g = gate(s, a, state->vit_x, slow);
    sq_add_scaled(&s->compute, state->vit_x, slow, g, (size_t)net->vit.n_patches * net->vit.d);
    sq_trace_floats(s, SQ_TRACE_ADAPTER, (int)i, state->vit_x, net->vit.n_patches, net->vit.d);
}

const float *sq_hr_align(squint_session *s)
{
    const sq_llava *const net = sq_llava_of(s);
    const sq_llava_state *const state = sq_llava_state_of(s);
    const uint32_t n = net->vit.n_patches, d = net->vit.d;
    float *const out = state->vit_attn;
    const sq_rows_in map = rows_of(state->hr.map, net->hr.out_slow.w.k, SQ_ROW_COPY);
    const sq_rows_in fast = rows_of(state->vit_x, d, SQ_ROW_COPY);
    const float *const slow = slow_tokens(s, &net->hr.out_slow, &map);
    sq_run_linear(s, &net->hr.out_fast, &fast, n, out, false);
    sq_add_scaled(&s->compute, out, slow, 1.0f, (size_t)n * d);
    sq_trace_floats(s, SQ_TRACE_TOWER, -1, out, n, d);
    return out;
}

static squint_err encode(squint_session *s, squint_msg *msg)
{
    const sq_llava *const net = sq_llava_of(s);
    const sq_llava_state *const state = sq_llava_state_of(s);
    float *const maps[SQ_SLOW_STAGES] = {state->hr.map, state->hr.map, state->hr.map, state->hr.map};
    squint_err err = sq_convnext_forward(s, &net->slow, &state->slow, s->pixels, maps, msg);
    if (err) return err;
    sq_resample_picture(s->pool, s->pixels, net->slow.side, state->hr.small, net->vit.side, true);
    sq_vit_embed(s, state->hr.small);
    for (uint32_t g = 0, first = 0; g < SQ_HR_GROUPS; first = net->hr.ends[g++]) {
        if ((err = sq_vit_blocks(s, first, net->hr.ends[g], msg))) return err;
        if (net->hr.has_adapters && g + 1 < SQ_HR_GROUPS) sq_hr_adapt(s, g);
    }
    sq_projector_forward(s, sq_hr_align(s), NULL, s->n_vision, s->vision, NULL);
    return SQUINT_OK;
}

const sq_front sq_front_hr = {.load = load,
                              .describe = describe,
                              .picture = picture,
                              .needs = needs,
                              .plan = plan,
                              .steps = steps,
                              .encode = encode,
                              .macs = macs};
