/*
 * LLaVA-NeXT's front end (arXiv 2310.03744 and its 1.6): the whole picture through CLIP as one square, then tiles of
 * it, each on its own. The tiles' patches become one map, which loses the padding around the picture and gets a token
 * at each row's end:
 *
 *     base tokens, then rows of the map, each w tokens and model.image_newline
 * SPDX-License-Identifier: MIT
 */
#include "models/llava.h"

static const char pinpoints_key[] = SQ_PINPOINTS_KEY;

static uint32_t unit_of(const sq_llava *net) { return net->vit.patch.side; } /* patches along a tile */

/* ---- Loading -------------------------------------------------------------------------------- */

squint_err sq_anyres_check_merge(const squint_model *m, squint_msg *msg)
{
    sq_str merge = {"spatial_unpad", 13};
    const squint_err err = sq_gguf_get_str(m->file, "clip.vision.mm_patch_merge_type", false, &merge, msg);
    if (err || sq_str_eq(merge, "spatial_unpad")) return err;
    return sq_fail(
        msg, SQUINT_ERR_UNSUPPORTED,
        "%s: key clip.vision.mm_patch_merge_type: not \"spatial_unpad\", the only way to join tiles that is known",
        sq_vision_path(m));
}

static squint_err bad_pinpoint(const squint_model *m, sq_size canvas, const char *need, squint_msg *msg)
{
    return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: key %s: %u x %u is not %s", sq_vision_path(m), pinpoints_key, canvas.w,
                   canvas.h, need);
}

static squint_err check_pinpoint(const squint_model *m, sq_size canvas, squint_msg *msg)
{
    const uint32_t side = m->image_rule.size;
    if (!canvas.w || !canvas.h || canvas.w % side || canvas.h % side)
        return bad_pinpoint(m, canvas, "a multiple of clip.vision.image_size", msg);
    if ((uint64_t)(canvas.w / side) * (canvas.h / side) > SQ_MAX_TILES)
        return bad_pinpoint(m, canvas, "a canvas of at most 64 tiles", msg);
    if (canvas.w > SQ_IMAGE_MAX_SIDE || canvas.h > SQ_IMAGE_MAX_SIDE)
        return bad_pinpoint(m, canvas, "a canvas with sides of at most 32768", msg);
    return SQUINT_OK;
}

static squint_err read_pinpoints(squint_model *m, sq_anyres *anyres, squint_msg *msg)
{
    uint32_t sides[2 * SQ_MAX_PINPOINTS];
    const sq_gguf_kv *const kv = sq_gguf_find_key(m->file, pinpoints_key);
    const uint64_t n = kv && kv->type == SQ_GGUF_ARRAY ? kv->count : 0;
    if (!n || n % 2 || n > SQ_COUNT(sides))
        return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: key %s: missing, or not an array of 1 to %d widths and heights",
                       sq_vision_path(m), pinpoints_key, SQ_MAX_PINPOINTS);
    squint_err err = sq_gguf_get_u32s(m->file, pinpoints_key, true, sides, n, msg);
    anyres->n_pinpoints = (uint32_t)n / 2;
    for (uint32_t i = 0; !err && i < anyres->n_pinpoints; i++) {
        anyres->pinpoints[i] = (sq_size){sides[2 * i], sides[2 * i + 1]};
        err = check_pinpoint(m, anyres->pinpoints[i], msg);
    }
    return err;
}

static squint_err load(squint_model *m, sq_llava *net, squint_msg *msg)
{
    sq_anyres *const anyres = &net->anyres;
    squint_err err = read_pinpoints(m, anyres, msg);
    if (!err)
        err = sq_llava_read_u32(m, "squint.vision.max_num_patches", false, 0, SQ_MAX_TILES, &anyres->max_num_patches,
                                msg);
    if (!err) err = sq_load_vec(m, "model.image_newline", net->decoder.d, true, &anyres->newline, msg);
    return err;
}

/* ---- How many tokens ------------------------------------------------------------------------ */

/* That a map is to have; 0: any. */
static double most_cells(const sq_llava *net)
{
    return (double)net->anyres.max_num_patches * unit_of(net) * unit_of(net);
}

/* What a map of columns x rows becomes. */
static sq_size shrunk(const sq_llava *net, uint32_t columns, uint32_t rows)
{
    return sq_tiles_shrink(columns, rows, most_cells(net));
}

static uint32_t tokens_of(sq_size map) { return map.h * (map.w + 1); }

static sq_size in_tiles(const squint_model *m, sq_size canvas)
{
    return (sq_size){canvas.w / m->image_rule.size, canvas.h / m->image_rule.size};
}

static uint32_t most_tiles(const squint_model *m)
{
    const sq_anyres *const anyres = &((const sq_llava *)m->net)->anyres;
    uint32_t most = 0;
    for (uint32_t i = 0; i < anyres->n_pinpoints; i++) {
        const sq_size size = in_tiles(m, anyres->pinpoints[i]);
        if (size.w * size.h > most) most = size.w * size.h;
    }
    return most;
}

static uint32_t most_tokens(const squint_model *m)
{
    const sq_llava *const net = m->net;
    sq_size canvases[SQ_MAX_PINPOINTS];
    for (uint32_t i = 0; i < net->anyres.n_pinpoints; i++)
        canvases[i] = in_tiles(m, net->anyres.pinpoints[i]);
    return sq_tiles_most_tokens(canvases, net->anyres.n_pinpoints, unit_of(net), most_cells(net));
}

static size_t image_floats(const squint_model *m) { return 3 * (size_t)m->image_rule.size * m->image_rule.size; }

static void describe(squint_model *m)
{
    const sq_llava *const net = m->net;
    m->n_vision_base = net->vit.n_patches;
    m->n_vision = m->n_vision_base + most_tokens(m);
    m->pixel_floats = (1 + (size_t)most_tiles(m)) * image_floats(m);
}

/* ---- A picture ------------------------------------------------------------------------------ */

/* Where the high-resolution tokens lie: their map is tiles of patches, which may reach beyond the picture. */
static squint_grid fine_grid(const squint_session *s, uint32_t w, uint32_t h)
{
    const sq_llava_state *const state = sq_llava_state_of(s);
    const double cell = (double)s->model->image_rule.size / unit_of(sq_llava_of(s));
    const double across = (double)w / state->tiles.fit.w, down = (double)h / state->tiles.fit.h;
    const sq_kept_map kept = state->kept_map;
    return (squint_grid){.first = s->n_vision_base,
                         .columns = state->tile_tokens.w,
                         .rows = state->tile_tokens.h,
                         .row_tokens = state->tile_tokens.w + 1,
                         .picture_w = w,
                         .picture_h = h,
                         .x = (kept.x * cell - state->tiles.x) * across,
                         .y = (kept.y * cell - state->tiles.y) * down,
                         .w = kept.columns * cell * across,
                         .h = kept.rows * cell * down};
}

static squint_err picture(squint_session *s, const uint8_t *rgb, uint32_t w, uint32_t h, size_t stride, squint_msg *msg)
{
    const squint_model *const m = s->model;
    const sq_llava *const net = m->net;
    const sq_anyres *const anyres = &net->anyres;
    sq_llava_state *const state = sq_llava_state_of(s);
    const sq_size canvas = anyres->pinpoints[sq_tiles_choose(anyres->pinpoints, anyres->n_pinpoints, w, h)];
    const uint32_t unit = unit_of(net);
    state->tiles = sq_tiles_lay(canvas, m->image_rule.size, w, h);
    state->kept_map = sq_tiles_unpad(state->tiles.columns * unit, state->tiles.rows * unit, w, h);
    state->tile_tokens = shrunk(net, state->kept_map.columns, state->kept_map.rows);
    s->n_vision_base = m->n_vision_base;
    s->n_vision = s->n_vision_base + tokens_of(state->tile_tokens);
    s->n_grids = 2;
    s->grids[0] = sq_vision_square(m, w, h, 0);
    s->grids[1] = fine_grid(s, w, h);
    return sq_tiles_prepare(rgb, w, h, stride, &m->image_rule, &state->tiles, s->pixels, &s->alloc, msg);
}

/* ---- Encoding ------------------------------------------------------------------------------- */

static bool shrinks(const sq_llava_state *state)
{
    return state->tile_tokens.w != state->kept_map.columns || state->tile_tokens.h != state->kept_map.rows;
}

static void plan(squint_session *s, const sq_llava *net, sq_llava_state *state, sq_memory *memory)
{
    sq_vit_plan(s, net, state, memory);
    const size_t n = net->vit.n_patches;
    state->from = sq_take(sq_beside(memory), n, sizeof *state->from);
    state->to = sq_take(sq_beside(memory), n, sizeof *state->to);
    state->device_from = sq_take_mirror(memory, state->from, n, sizeof *state->from);
    state->device_to = sq_take_mirror(memory, state->to, n, sizeof *state->to);
    if (!net->anyres.max_num_patches) return;
    const size_t patches = most_tiles(s->model) * n;
    state->tile_map = sq_take_unset(&memory->device, patches, net->decoder.d * sizeof(float));
}

/* Of a picture that is all length nothing may be kept, or nothing but the ends of rows. */
static uint32_t tiles_run(const sq_llava_state *state)
{
    const bool any = state->kept_map.columns && state->kept_map.rows;
    return any ? state->tiles.columns * state->tiles.rows : 0;
}

static uint32_t steps(const squint_session *s)
{
    return (1 + tiles_run(sq_llava_state_of(s))) * sq_llava_of(s)->vit.n_layers;
}

/* The tile's patches that are kept become rows of `out`, of which a row of the map has row_tokens. */
static void project_tile(squint_session *s, uint32_t tile, float *out, uint32_t row_tokens)
{
    sq_llava_state *const state = sq_llava_state_of(s);
    const uint32_t unit = unit_of(sq_llava_of(s));
    const sq_kept_map kept = state->kept_map;
    uint32_t n = 0;
    for (uint32_t i = 0; i < unit * unit; i++) {
        /* Outside of what is kept the unsigned differences wrap far past it. */
        const uint32_t x = tile % state->tiles.columns * unit + i % unit - kept.x;
        const uint32_t y = tile / state->tiles.columns * unit + i / unit - kept.y;
        if (x >= kept.columns || y >= kept.rows) continue;
        state->from[n] = i;
        state->to[n++] = y * row_tokens + x;
    }
    sq_write(&s->compute, state->device_from, state->from, n * sizeof *state->from);
    sq_write(&s->compute, state->device_to, state->to, n * sizeof *state->to);
    if (n) sq_projector_forward(s, sq_vit_patches(s), state->device_from, n, out, state->device_to);
}

static void shrink_map(squint_session *s)
{
    const sq_llava_state *const state = sq_llava_state_of(s);
    const uint32_t d = s->model->d;
    const sq_resize_map shrink = {.by = SQ_RESIZE_EDGES,
                                  .map = state->tile_map,
                                  .width = state->kept_map.columns,
                                  .height = state->kept_map.rows,
                                  .channels = d,
                                  .out_width = state->tile_tokens.w,
                                  .out_height = state->tile_tokens.h,
                                  .out_row = state->tile_tokens.w + 1,
                                  .out = s->vision + (size_t)s->n_vision_base * d};
    sq_resize(&s->compute, &shrink);
}

static void end_rows(squint_session *s)
{
    const sq_size size = sq_llava_state_of(s)->tile_tokens;
    const size_t d = s->model->d;
    float *row = s->vision + s->n_vision_base * d;
    for (uint32_t y = 0; y < size.h; y++, row += (size.w + 1) * d)
        sq_write(&s->compute, row + size.w * d, sq_llava_of(s)->anyres.newline, d * sizeof *row);
}

static squint_err encode(squint_session *s, squint_msg *msg)
{
    sq_llava_state *const state = sq_llava_state_of(s);
    const bool shrink = shrinks(state);
    float *const fine = shrink ? state->tile_map : s->vision + (size_t)s->n_vision_base * s->model->d;
    const float *pixels = s->pixels;
    squint_err err = sq_vit_forward(s, pixels, msg);
    if (err) return err;
    sq_projector_forward(s, sq_vit_patches(s), NULL, s->n_vision_base, s->vision, NULL);
    for (uint32_t i = 0; i < tiles_run(state); i++) {
        pixels += image_floats(s->model);
        if ((err = sq_vit_forward(s, pixels, msg))) return err;
        project_tile(s, i, fine, shrink ? state->kept_map.columns : state->tile_tokens.w + 1);
    }
    if (shrink) shrink_map(s);
    end_rows(s);
    return SQUINT_OK;
}

/* What is padding is not projected. */
static double macs(const squint_session *s)
{
    const sq_llava *const net = sq_llava_of(s);
    const sq_llava_state *const state = sq_llava_state_of(s);
    const uint32_t tiles = tiles_run(state);
    const double kept = tiles ? (double)state->kept_map.columns * state->kept_map.rows : 0;
    return (1 + tiles) * sq_vit_macs(&net->vit) + sq_projector_macs(&net->projector, s->n_vision_base + kept);
}

const sq_front sq_front_anyres = {.load = load,
                                  .describe = describe,
                                  .picture = picture,
                                  .plan = plan,
                                  .steps = steps,
                                  .encode = encode,
                                  .macs = macs};
