/*
 * Mini-Gemini (arXiv 2403.18814): CLIP on a small picture, or on the parts of one and the whole, and a ConvNeXt on a
 * large one, in whose map each of CLIP's tokens looks for detail: patch info mining.
 * SPDX-License-Identifier: MIT
 *
 * The map that is mined joins the channels of all four stages, each enlarged to the first one's size: 1.7 GB for
 * Mini-Gemini-HD. It never exists. Token q attends the m x m places a_j of its own block, which are made when they are
 * needed, each normed without weights to z_j:
 *
 *     score_j = Q . (W_k (w_k z_j + b_k) + c_k) = (w_k W_k^T Q) . z_j + Q . (W_k b_k + c_k),  Q = W_q norm(q) + c_q
 *     sum_j alpha_j (W_v (w_v z_j + b_v) + c_v) = W_v (w_v sum_j alpha_j z_j + b_v) + c_v     as sum_j alpha_j = 1
 *
 * so that W_k and W_v multiply one row a token instead of m * m.
 */
#include "models/llava.h"
#include "models/resample.h"

#include <string.h>

enum { MAX_GRID = 2 };
static_assert((int)SQ_MINE_MAPS == (int)SQ_SLOW_STAGES, "a map of each stage is mined");

static const float MINE_EPS = 1e-5f; /* PyTorch's default */

/* ---- loading ---- */

/* W_k^T with the norm's weights in its rows, as floats for products in one order, and what W_k adds to every key:
 * W_k b_k + c_k. */
static squint_err fold_keys(squint_model *m, const sq_affine *norm, const sq_linear *k, sq_mgm *mgm, squint_msg *msg)
{
    const uint32_t d = k->w.n, d_aux = k->w.k;
    float *const keys = sq_model_take(m, sq_round_up(d_aux, SQ_PANEL_N), d * sizeof *keys);
    float *const offset = sq_model_take(m, d, sizeof *offset), *const row = sq_model_take(m, d_aux, sizeof *row);
    if (!keys || !offset || !row) return sq_tensor_no_memory(m, "mm.uni.k.proj.weight", msg);
    for (uint32_t i = 0; i < d; i++) {
        double sum = (double)k->bias[i];
        sq_mat_row(&k->w, i, row);
        for (uint32_t c = 0; c < d_aux; c++) {
            keys[((size_t)(c / SQ_PANEL_N) * d + i) * SQ_PANEL_N + c % SQ_PANEL_N] = row[c] * norm->weight[c];
            sum += (double)row[c] * (double)norm->bias[c];
        }
        offset[i] = (float)sum;
    }
    mgm->keys = (sq_mat){.n = d_aux, .k = d, .ordered = keys};
    mgm->key_offset = offset;
    return SQUINT_OK;
}

static squint_err load_mining(squint_model *m, uint32_t d, uint32_t d_aux, sq_mgm *mgm, squint_msg *msg)
{
    sq_affine k_norm;
    sq_linear k;
    squint_err err;
    if ((err = sq_load_affine(m, "mm.uni.q.norm", d, true, &mgm->q_norm, msg))) return err;
    if ((err = sq_load_linear(m, "mm.uni.q.proj", d, d, &mgm->q, msg))) return err;
    if ((err = sq_load_affine(m, "mm.uni.k.norm", d_aux, true, &k_norm, msg))) return err;
    if ((err = sq_load_linear(m, "mm.uni.k.proj", d, d_aux, &k, msg))) return err;
    if ((err = sq_load_affine(m, "mm.uni.v.norm", d_aux, true, &mgm->v_norm, msg))) return err;
    if ((err = sq_load_linear(m, "mm.uni.v.proj", d, d_aux, &mgm->v, msg))) return err;
    if ((err = fold_keys(m, &k_norm, &k, mgm, msg))) return err;
    float *const ones = sq_model_take(m, d_aux, sizeof *ones), *const zeros = sq_model_take(m, d_aux, sizeof *zeros);
    if (!ones || !zeros) return sq_tensor_no_memory(m, "mm.uni.k.norm.weight", msg);
    for (uint32_t c = 0; c < d_aux; c++)
        ones[c] = 1.0f;
    mgm->plain = (sq_affine){ones, zeros};
    return SQUINT_OK;
}

static squint_err read_shape(squint_model *m, const sq_llava *net, sq_mgm *mgm, uint32_t side, squint_msg *msg)
{
    static const char grid_key[] = "squint.vision.grid";
    bool global = false;
    squint_err err;
    mgm->grid = 1;
    if ((err = sq_llava_read_u32(m, grid_key, false, 1, MAX_GRID, &mgm->grid, msg))) return err;
    if ((err = sq_gguf_get_bool(m->file, "squint.vision.global", false, &global, msg))) return err;
    mgm->global = global && mgm->grid > 1; /* the one image of a grid of 1 shows the whole */
    mgm->n_images = mgm->grid * mgm->grid + mgm->global;
    const uint32_t places = side / SQ_SLOW_STEM, tokens = mgm->grid * net->vit.patch.side;
    mgm->m = places / tokens;
    if (mgm->m && mgm->m <= SQ_MINE_BLOCK && places % tokens == 0) return SQUINT_OK;
    return sq_fail(
        msg, SQUINT_ERR_FORMAT,
        "%s: key squint.vision.input_size: a map of %ux%u places is not %ux%u tokens' blocks of equal size, up "
        "to %dx%d",
        sq_vision_path(m), places, places, tokens, tokens, SQ_MINE_BLOCK, SQ_MINE_BLOCK);
}

static squint_err load(squint_model *m, sq_llava *net, squint_msg *msg)
{
    uint32_t side = 0;
    squint_err err;
    if ((err = sq_gguf_get_u32(m->file, "squint.vision.input_size", true, &side, msg))) return err;
    if ((err = sq_convnext_load(m, side, &net->slow, msg))) return err;
    if ((err = read_shape(m, net, &net->mgm, side, msg))) return err;
    m->image_rule.size = side;
    uint32_t d_aux = 0;
    for (uint32_t i = 0; i < SQ_SLOW_STAGES; i++)
        d_aux += net->slow.stages[i].channels;
    if (d_aux <= SQ_MAX_K) return load_mining(m, net->vit.d, d_aux, &net->mgm, msg);
    return sq_fail(msg, SQUINT_ERR_UNSUPPORTED, "%s: key squint.vision.slow.dims: more than %d channels in all",
                   sq_vision_path(m), SQ_MAX_K);
}

static void describe(squint_model *m)
{
    const sq_llava *const net = m->net;
    m->n_vision = m->n_vision_base = net->mgm.n_images * net->vit.n_patches;
    m->pixel_floats = 3 * (size_t)net->slow.side * net->slow.side;
}

/* ---- planning ---- */

static void needs(const sq_llava *net, sq_needs *n)
{
    sq_convnext_needs(&net->slow, n);
    sq_need(n, &net->mgm.q.w, net->vit.n_patches);
    sq_need(n, &net->mgm.v.w, net->vit.n_patches);
}

static void plan_mining(squint_session *s, const sq_llava *net, sq_mgm_state *mgm, sq_memory *memory)
{
    sq_arena *const arena = &memory->device;
    const size_t n = net->vit.n_patches;
    mgm->queries = sq_take_unset(arena, n, net->vit.d * sizeof(float));
    mgm->asked = sq_take_unset(arena, n, net->mgm.keys.n * sizeof(float));
    if (memory->device.remote) return;
    const size_t scratch = sq_mine_scratch(net->mgm.m, net->mgm.keys.n);
    mgm->scratch = sq_take_unset(arena, s->options.threads, scratch * sizeof(float));
}

static void keep_most(sq_arena *arena, size_t *most)
{
    if (arena->used > *most) *most = arena->used;
}

/* CLIP, then ConvNeXt, then mining, then the projector: what each hands on lies below what the next one uses. */
static void plan(squint_session *s, const sq_llava *net, sq_llava_state *state, sq_memory *memory)
{
    sq_arena *const arena = &memory->device;
    sq_mgm_state *const mgm = &state->mgm;
    const size_t side = net->vit.side, large = side * net->mgm.grid;
    size_t most = 0;
    mgm->tokens = sq_take_unset(arena, net->mgm.n_images, (size_t)net->vit.n_patches * net->vit.d * sizeof(float));
    const size_t start = arena->used;
    mgm->large = sq_take_unset(sq_beside(memory), 3 * large, large * sizeof(float));
    mgm->image = sq_take_unset(sq_beside(memory), 3 * side, side * sizeof(float));
    sq_vit_plan(s, net, state, memory);
    keep_most(arena, &most);

    sq_arena_overlay(arena, start);
    for (uint32_t i = 0; i < SQ_SLOW_STAGES; i++)
        mgm->maps[i] = sq_take_unset(arena, sq_convnext_map_floats(&net->slow, i), sizeof(float));
    const size_t maps_end = arena->used;
    sq_convnext_plan(&net->slow, &state->slow, memory);
    keep_most(arena, &most);

    sq_arena_overlay(arena, maps_end);
    plan_mining(s, net, mgm, memory);
    keep_most(arena, &most);
    arena->used = most;
}

static double macs(const squint_session *s)
{
    const sq_llava *const net = sq_llava_of(s);
    const sq_mgm *const mgm = &net->mgm;
    const double n = (double)net->vit.n_patches * mgm->n_images, d = net->vit.d, d_aux = mgm->keys.n;
    const double mining = n * (d * d + 2 * d * d_aux + 2.0 * mgm->m * mgm->m * d_aux);
    return mgm->n_images * sq_vit_macs(&net->vit) + sq_convnext_macs(&net->slow) + mining +
           sq_projector_macs(&net->projector, n);
}

/* ---- pictures ---- */

/* The part of the square that image i shows, of all. */
static squint_grid part_grid(const squint_session *s, squint_grid whole, uint32_t i, uint32_t first)
{
    const sq_mgm *const mgm = &sq_llava_of(s)->mgm;
    whole.first = first;
    if (i == mgm->grid * mgm->grid) return whole;
    whole.w /= mgm->grid;
    whole.h /= mgm->grid;
    whole.x += i % mgm->grid * whole.w;
    whole.y += i / mgm->grid * whole.h;
    return whole;
}

/* Images in the order of their tokens: the whole picture first, where there is one. */
static uint32_t image_at(const sq_mgm *mgm, uint32_t place)
{
    if (!mgm->global) return place;
    return place ? place - 1 : mgm->n_images - 1;
}

static squint_err picture(squint_session *s, const uint8_t *rgb, uint32_t w, uint32_t h, size_t stride, squint_msg *msg)
{
    const sq_llava *const net = sq_llava_of(s);
    const squint_grid whole = sq_vision_square(s->model, w, h, 0);
    s->n_vision = s->n_vision_base = s->model->n_vision;
    s->n_grids = net->mgm.n_images;
    for (uint32_t i = 0; i < net->mgm.n_images; i++)
        s->grids[i] = part_grid(s, whole, image_at(&net->mgm, i), i * net->vit.n_patches);
    return sq_image_prepare(rgb, w, h, stride, &s->model->image_rule, s->pixels, &s->alloc, msg);
}

static uint32_t steps(const squint_session *s)
{
    const sq_llava *const net = sq_llava_of(s);
    return sq_convnext_steps(&net->slow) + net->mgm.n_images * (net->vit.n_layers + 1);
}

/* Image i of the enlarged or reduced square. */
static void cut_image(squint_session *s, uint32_t i)
{
    const sq_llava *const net = sq_llava_of(s);
    const sq_mgm_state *const state = &sq_llava_state_of(s)->mgm;
    const size_t side = net->vit.side, grid = net->mgm.grid, large = side * grid;
    if (i == grid * grid) {
        sq_resample_picture(s->pool, state->large, (uint32_t)large, state->image, (uint32_t)side, false);
        return;
    }
    const float *const corner = state->large + i / grid * side * large + i % grid * side;
    for (size_t c = 0; c < 3; c++)
        for (size_t y = 0; y < side; y++)
            memcpy(state->image + (c * side + y) * side, corner + (c * large + y) * large, side * sizeof(float));
}

static squint_err encode_images(squint_session *s, squint_msg *msg)
{
    const sq_llava *const net = sq_llava_of(s);
    const sq_llava_state *const state = sq_llava_state_of(s);
    const size_t floats = (size_t)net->vit.n_patches * net->vit.d;
    sq_resample_picture(s->pool, s->pixels, net->slow.side, state->mgm.large, net->vit.side * net->mgm.grid, false);
    for (uint32_t i = 0; i < net->mgm.n_images; i++) {
        cut_image(s, i);
        const squint_err err = sq_vit_forward(s, state->mgm.image, msg);
        if (err) return err;
        sq_copy(&s->compute, state->mgm.tokens + i * floats, sq_vit_patches(s), floats * sizeof(float));
    }
    return SQUINT_OK;
}

/* ---- mining ---- */

/* The whole picture's map is the joined one, grid x grid places made one. */
static void mine_places(squint_session *s, uint32_t image)
{
    const sq_llava *const net = sq_llava_of(s);
    const sq_mgm *const mgm = &net->mgm;
    const sq_mgm_state *const state = &sq_llava_state_of(s)->mgm;
    const uint32_t grid = mgm->grid, tokens = net->vit.patch.side;
    const bool whole = image == grid * grid;
    const sq_rows_in norm = sq_norm_rows(&mgm->plain, NULL, mgm->keys.n, MINE_EPS);
    sq_mine mine = {.shrink = whole ? grid : 1,
                    .x = whole ? 0 : image % grid * tokens * mgm->m,
                    .y = whole ? 0 : image / grid * tokens * mgm->m,
                    .tokens = tokens,
                    .m = mgm->m,
                    .norm = &norm,
                    .d = mgm->keys.k,
                    .queries = state->queries,
                    .key_offset = mgm->key_offset,
                    .weight = mgm->v_norm.weight,
                    .bias = mgm->v_norm.bias,
                    .asked = state->asked};
    for (uint32_t i = 0; i < SQ_SLOW_STAGES; i++) {
        mine.maps[i] = state->maps[i];
        mine.sides[i] = net->slow.stages[i].side;
        mine.channels[i] = net->slow.stages[i].channels;
    }
    sq_mine_tokens(&s->compute, &mine, state->scratch);
}

/* An image's tokens, [n_patches][d], and what they found. */
static squint_err mine(squint_session *s, uint32_t image, float *tokens, squint_msg *msg)
{
    const sq_llava *const net = sq_llava_of(s);
    const sq_mgm *const mgm = &net->mgm;
    const sq_mgm_state *const state = &sq_llava_state_of(s)->mgm;
    const uint32_t n = net->vit.n_patches, d = net->vit.d, d_aux = mgm->keys.n;
    const sq_rows_in in = sq_norm_rows(&mgm->q_norm, tokens, d, MINE_EPS);
    sq_run_linear(s, &mgm->q, &in, n, state->queries, false);
    const sq_rows_in queries = {.x = state->queries, .ldx = d, .k = d, .op = SQ_ROW_COPY};
    sq_run_linear(s, &(sq_linear){.w = mgm->keys}, &queries, n, state->asked, false);
    mine_places(s, image);
    const sq_rows_in found = {.x = state->asked, .ldx = d_aux, .k = d_aux, .op = SQ_ROW_COPY};
    sq_run_linear(s, &mgm->v, &found, n, tokens, true);
    sq_trace_floats(s, SQ_TRACE_MINED, -1, tokens, n, d);
    return sq_vision_step(s, msg);
}

static squint_err encode(squint_session *s, squint_msg *msg)
{
    const sq_llava *const net = sq_llava_of(s);
    const sq_llava_state *const state = sq_llava_state_of(s);
    const size_t n = net->vit.n_patches, floats = n * net->vit.d;
    squint_err err = encode_images(s, msg);
    if (!err) err = sq_convnext_forward(s, &net->slow, &state->slow, s->pixels, state->mgm.maps, msg);
    for (uint32_t i = 0; !err && i < net->mgm.n_images; i++)
        err = mine(s, i, state->mgm.tokens + i * floats, msg);
    if (err) return err;
    for (uint32_t i = 0; i < net->mgm.n_images; i++)
        sq_projector_forward(s, state->mgm.tokens + image_at(&net->mgm, i) * floats, NULL, (uint32_t)n,
                             s->vision + i * n * s->model->d, NULL);
    return SQUINT_OK;
}

const sq_front sq_front_mgm = {.load = load,
                               .describe = describe,
                               .picture = picture,
                               .needs = needs,
                               .plan = plan,
                               .steps = steps,
                               .encode = encode,
                               .macs = macs};
