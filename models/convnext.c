/*
 * ConvNeXt (arXiv 2201.03545): four stages of convolutional blocks, each with half the side of the one before. The slow
 * tower of LLaVA-HR and the auxiliary one of Mini-Gemini.
 * SPDX-License-Identifier: MIT
 *
 * Maps are [side][side][channels]: a place is a row of a matrix product. A block changes its map in place, a band of
 * rows at a time, so that the hidden map, four times as wide, never exists as a whole:
 *
 *     rows    saved 3 | band | still as the block found them
 *
 * The depthwise convolution reads 3 rows above the band, which have changed: they were saved before they did.
 */
#include "models/llava.h"

#include <stdio.h>

enum {
    STEM = SQ_SLOW_STEM, /* side and stride of the stem's convolution */
    DOWN = 2,            /* and of those between stages */
    WIDER = 4,           /* a block's hidden map has so many times its channels */
    REACH = SQ_DEPTHWISE_SIDE / 2,
    MAX_DEPTH = 256,
    MAX_SIDE = 4096,               /* of the picture */
    BAND_PLACES = 512,             /* of a band: enough for products to be fast */
    BAND_FLOATS = 2 * 1024 * 1024, /* of a band of the hidden map */
    /* A device needs more to be busy. */
    DEVICE_PLACES = 65536,
    DEVICE_FLOATS = 32 * 1024 * 1024
};

/* ---- loading ---- */

/* A convolution whose stride is its side. */
static squint_err load_conv(squint_model *m, const char *name, uint32_t in, uint32_t side, sq_conv *conv,
                            uint32_t channels, squint_msg *msg)
{
    *conv = (sq_conv){.in = in, .kernel = side, .stride = side};
    const squint_err err = sq_load_conv(m, name, channels, conv, msg);
    if (err || conv->bias) return err;
    return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: tensor %s.bias is missing", sq_vision_path(m), name);
}

static squint_err load_block(squint_model *m, uint32_t stage, uint32_t i, uint32_t c, sq_convnext_block *b,
                             squint_msg *msg)
{
    char at[40], name[64];
    squint_err err;
    snprintf(at, sizeof at, "v.slow.stg.%u.blk.%u", stage, i);
    snprintf(name, sizeof name, "%s.gamma", at);
    if (sq_gguf_find(m->file, name))
        return sq_fail(msg, SQUINT_ERR_UNSUPPORTED,
                       "%s: tensor %s: layer scale is to be multiplied into pw2 when the file is made",
                       sq_vision_path(m), name);
    snprintf(name, sizeof name, "%s.dw", at);
    if ((err = sq_load_depthwise(m, name, c, &b->dw, msg))) return err;
    snprintf(name, sizeof name, "%s.norm", at);
    if ((err = sq_load_affine(m, name, c, true, &b->norm, msg))) return err;
    snprintf(name, sizeof name, "%s.pw1", at);
    if ((err = sq_load_linear(m, name, WIDER * c, c, &b->pw1, msg))) return err;
    snprintf(name, sizeof name, "%s.pw2", at);
    return sq_load_linear(m, name, c, WIDER * c, &b->pw2, msg);
}

/* What makes a stage's map of the one before, or of the picture. */
static squint_err load_entry(squint_model *m, const sq_convnext *net, uint32_t i, sq_convnext_stage *stage,
                             squint_msg *msg)
{
    char norm[40] = "v.slow.stem.norm", conv[40] = "v.slow.stem.conv";
    if (i) {
        snprintf(norm, sizeof norm, "v.slow.stg.%u.down.norm", i);
        snprintf(conv, sizeof conv, "v.slow.stg.%u.down.conv", i);
    }
    const uint32_t in = i ? net->stages[i - 1].channels : 3;
    const squint_err err = load_conv(m, conv, in, i ? DOWN : STEM, &stage->conv, stage->channels, msg);
    if (err) return err;
    stage->conv.side = stage->side;
    return sq_load_affine(m, norm, i ? in : stage->channels, true, &stage->norm, msg);
}

static squint_err load_stage(squint_model *m, const sq_convnext *net, uint32_t i, sq_convnext_stage *stage,
                             squint_msg *msg)
{
    squint_err err = load_entry(m, net, i, stage, msg);
    if (err) return err;
    stage->blocks = sq_model_take(m, stage->depth, sizeof *stage->blocks);
    if (!stage->blocks)
        return sq_fail(msg, SQUINT_ERR_NOMEM, "%s: no memory for %u blocks", sq_vision_path(m), stage->depth);
    for (uint32_t b = 0; b < stage->depth; b++)
        if ((err = load_block(m, i, b, stage->channels, &stage->blocks[b], msg))) return err;
    return SQUINT_OK;
}

static squint_err read_shape(squint_model *m, sq_convnext *net, squint_msg *msg)
{
    static const char dims_key[] = "squint.vision.slow.dims", depths_key[] = "squint.vision.slow.depths";
    static const char eps_key[] = "squint.vision.slow.ln_eps";
    uint32_t dims[SQ_SLOW_STAGES], depths[SQ_SLOW_STAGES], most = SQ_MAX_K / WIDER;
    squint_err err;
    if ((err = sq_gguf_get_u32s(m->file, dims_key, true, dims, SQ_SLOW_STAGES, msg))) return err;
    if ((err = sq_gguf_get_u32s(m->file, depths_key, true, depths, SQ_SLOW_STAGES, msg))) return err;
    if ((err = sq_gguf_get_f32(m->file, eps_key, true, &net->eps, msg))) return err;
    if (!(net->eps > 0 && net->eps < 1))
        return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: key %s is not from 0 to 1", sq_vision_path(m), eps_key);
    for (uint32_t i = 0; i < SQ_SLOW_STAGES; i++) {
        /* A stage's map lies where the one before it lay, from its start: it must stay behind what is still read. */
        if (!dims[i] || dims[i] > most)
            return sq_vision_bad_key(m, dims_key, dims[i], "from 1 to 16384, and at most 4 times the stage before",
                                     msg);
        if (!depths[i] || depths[i] > MAX_DEPTH)
            return sq_vision_bad_key(m, depths_key, depths[i], "from 1 to 256", msg);
        most = DOWN * DOWN * dims[i] < SQ_MAX_K / WIDER ? DOWN * DOWN * dims[i] : SQ_MAX_K / WIDER;
        net->stages[i].channels = dims[i];
        net->stages[i].depth = depths[i];
    }
    return SQUINT_OK;
}

squint_err sq_convnext_load(squint_model *m, uint32_t side, sq_convnext *net, squint_msg *msg)
{
    squint_err err = read_shape(m, net, msg);
    if (err) return err;
    net->side = side;
    net->band_places = m->device_ops ? DEVICE_PLACES : BAND_PLACES;
    net->band_floats = m->device_ops ? DEVICE_FLOATS : BAND_FLOATS;
    if (!side || side > MAX_SIDE || side % SQ_SLOW_STRIDE)
        return sq_vision_bad_key(m, "squint.vision.input_size", side, "a multiple of 32 up to 4096", msg);
    for (uint32_t i = 0; i < SQ_SLOW_STAGES; i++) {
        net->stages[i].side = side / STEM >> i;
        if ((err = load_stage(m, net, i, &net->stages[i], msg))) return err;
    }
    return SQUINT_OK;
}

/* ---- planning ---- */

static double places(const sq_convnext_stage *s) { return (double)s->side * s->side; }

double sq_convnext_macs(const sq_convnext *net)
{
    double macs = 0;
    for (uint32_t i = 0; i < SQ_SLOW_STAGES; i++) {
        const sq_convnext_stage *const s = &net->stages[i];
        const double c = s->channels, block = c * (SQ_DEPTHWISE_TAPS + 2.0 * WIDER * c);
        macs += places(s) * (c * s->conv.w.k + s->depth * block);
    }
    return macs;
}

uint32_t sq_convnext_steps(const sq_convnext *net)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < SQ_SLOW_STAGES; i++)
        n += net->stages[i].depth;
    return n;
}

static uint32_t band_rows(const sq_convnext *net, const sq_convnext_stage *s)
{
    const uint32_t wide = net->band_floats / (WIDER * s->channels);
    const uint32_t most = wide < net->band_places ? wide : net->band_places;
    const uint32_t rows = most / s->side;
    return rows < 1 ? 1 : rows < s->side ? rows : s->side;
}

void sq_convnext_needs(const sq_convnext *net, sq_needs *needs)
{
    for (uint32_t i = 0; i < SQ_SLOW_STAGES; i++) {
        const sq_convnext_stage *const s = &net->stages[i];
        const uint32_t m = band_rows(net, s) * s->side;
        for (uint32_t b = 0; b < s->depth; b++) {
            sq_need(needs, &s->blocks[b].pw1.w, m);
            sq_need(needs, &s->blocks[b].pw2.w, m);
        }
    }
}

static size_t max_size(size_t a, size_t b) { return a > b ? a : b; }

size_t sq_convnext_map_floats(const sq_convnext *net, uint32_t stage)
{
    const sq_convnext_stage *const s = &net->stages[stage];
    return (size_t)s->side * s->side * s->channels;
}

void sq_convnext_plan(const sq_convnext *net, sq_convnext_state *state, sq_memory *memory)
{
    sq_arena *const arena = &memory->device;
    size_t rows = 0, hidden = 0, saved = 0;
    for (uint32_t i = 0; i < SQ_SLOW_STAGES; i++) {
        const sq_convnext_stage *const s = &net->stages[i];
        const size_t row = (size_t)s->side * s->channels, band = band_rows(net, s);
        rows = max_size(rows, band * row);
        hidden = max_size(hidden, band * max_size(WIDER * row, (size_t)s->side * s->conv.w.k));
        saved = max_size(saved, REACH * row);
    }
    state->picture = sq_take_mirror(memory, NULL, 3 * (size_t)net->side, net->side * sizeof(float));
    state->rows = sq_take_unset(arena, rows, sizeof(float));
    state->hidden = sq_take_unset(arena, hidden, sizeof(float));
    state->saved = sq_take_unset(arena, saved, sizeof(float));
}

/* ---- running ---- */

/* Rows [y, y + n) of a stage's map. */
typedef struct band {
    const sq_convnext *net;
    const sq_convnext_stage *stage;
    const sq_convnext_state *state;
    const sq_convnext_block *block;
    const float *from; /* the picture, or the map of the stage before */
    float *map;
    uint32_t y, n;
} band;

static size_t row_floats(const sq_convnext_stage *s) { return (size_t)s->side * s->channels; }

/* The map of a stage before its blocks. It may lie where `from` does: what a band writes was read by it or before.
 * @param norm  of the map before; NULL: `from` is the picture  */
static void enter_band(squint_session *s, const band *b, const sq_rows_in *norm, float *out)
{
    const sq_conv *const conv = &b->stage->conv;
    const sq_patches gather = {.map = b->from,
                               .planar = !norm,
                               .side = b->stage->side * conv->stride,
                               .channels = conv->in,
                               .kernel = conv->kernel,
                               .stride = conv->stride,
                               .out_side = b->stage->side,
                               .y0 = b->y,
                               .n_rows = b->n,
                               .norm = norm,
                               .out = b->state->hidden};
    sq_gather_patches(&s->compute, &gather);
    const sq_rows_in in = {.x = b->state->hidden, .ldx = conv->w.k, .k = conv->w.k, .op = SQ_ROW_COPY};
    const sq_gemm_out store = {.c = out, .ldc = b->stage->channels, .bias = conv->bias};
    sq_project(&s->compute, &in, b->n * b->stage->side, (const sq_mat *const[]){&conv->w}, &store, 1);
}

static void stem_band(squint_session *s, const band *b)
{
    const uint32_t c = b->stage->channels;
    enter_band(s, b, NULL, b->state->rows);
    const sq_rows_in in = sq_norm_rows(&b->stage->norm, b->state->rows, c, b->net->eps);
    sq_rows(&s->compute, &in, b->n * b->stage->side, b->map + b->y * row_floats(b->stage), c);
}

static void down_band(squint_session *s, const band *b)
{
    const sq_rows_in norm = sq_norm_rows(&b->stage->norm, b->from, b->stage->conv.in, b->net->eps);
    enter_band(s, b, &norm, b->map + b->y * row_floats(b->stage));
}

/* The band's last rows as the block found them; where it has fewer than 3, those before it stay. */
static void save_rows(squint_session *s, const band *b)
{
    const size_t row = row_floats(b->stage), end = (size_t)b->y + b->n;
    for (size_t y = b->n < REACH ? b->y : end - REACH; y < end; y++)
        sq_copy(&s->compute, b->state->saved + y % REACH * row, b->map + y * row, row * sizeof(float));
}

static void block_band(squint_session *s, const band *b)
{
    const sq_convnext_block *const w = b->block;
    const uint32_t c = b->stage->channels, m = b->n * b->stage->side;
    const sq_depthwise_map convolved = {.map = b->map,
                                        .before = b->state->saved,
                                        .side = b->stage->side,
                                        .channels = c,
                                        .w = w->dw.weight,
                                        .bias = w->dw.bias,
                                        .y0 = b->y,
                                        .n_rows = b->n,
                                        .out = b->state->rows};
    sq_convolve_depthwise(&s->compute, &convolved);
    save_rows(s, b);
    const sq_rows_in in = sq_norm_rows(&w->norm, b->state->rows, c, b->net->eps);
    sq_run_linear(s, &w->pw1, &in, m, b->state->hidden, false);
    const sq_rows_in activated = {.x = b->state->hidden, .ldx = WIDER * c, .k = WIDER * c, .op = SQ_ROW_GELU};
    sq_run_linear(s, &w->pw2, &activated, m, b->map + b->y * row_floats(b->stage), true);
}

typedef void band_fn(squint_session *s, const band *b);

static void each_band(squint_session *s, band b, band_fn *fn)
{
    const uint32_t rows = band_rows(b.net, b.stage), side = b.stage->side;
    for (b.y = 0; b.y < side; b.y += rows) {
        b.n = rows < side - b.y ? rows : side - b.y;
        fn(s, &b);
    }
}

squint_err sq_convnext_forward(squint_session *s, const sq_convnext *net, const sq_convnext_state *state,
                               const float *pixels, float *const maps[SQ_SLOW_STAGES], squint_msg *msg)
{
    band b = {.net = net, .state = state};
    b.from = sq_upload(&s->compute, state->picture, pixels, 3 * (size_t)net->side * net->side);
    for (uint32_t i = 0; i < SQ_SLOW_STAGES; i++, b.from = b.map) {
        const sq_convnext_stage *const stage = b.stage = &net->stages[i];
        b.map = maps[i];
        each_band(s, b, i ? down_band : stem_band);
        for (uint32_t l = 0; l < stage->depth; l++) {
            b.block = &stage->blocks[l];
            each_band(s, b, block_band);
            const squint_err err = sq_vision_step(s, msg);
            if (err) return err;
        }
        sq_trace_floats(s, SQ_TRACE_SLOW, (int)i, b.map, stage->side * stage->side, stage->channels);
    }
    return SQUINT_OK;
}
