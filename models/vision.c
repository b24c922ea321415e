/*
 * From a picture to vision tokens: which front end a file has, what it does, and the simplest of them.
 * SPDX-License-Identifier: MIT
 */
#include "models/llava.h"

/* ---- one square ---- */

static size_t square_floats(const squint_model *m) { return 3 * (size_t)m->image_rule.size * m->image_rule.size; }

squint_grid sq_vision_square(const squint_model *m, uint32_t w, uint32_t h, uint32_t first)
{
    const uint32_t side = ((const sq_llava *)m->net)->vit.patch.side;
    squint_grid g = {.first = first, .columns = side, .rows = side, .row_tokens = side, .picture_w = w, .picture_h = h};
    sq_image_view(&m->image_rule, w, h, &g.x, &g.y, &g.w, &g.h);
    return g;
}

static void clip_describe(squint_model *m)
{
    m->n_vision = m->n_vision_base = ((const sq_llava *)m->net)->vit.n_patches;
    m->pixel_floats = square_floats(m);
}

static squint_err clip_picture(squint_session *s, const uint8_t *rgb, uint32_t w, uint32_t h, size_t stride,
                               squint_msg *msg)
{
    s->n_vision = s->n_vision_base = s->model->n_vision;
    s->n_grids = 1;
    s->grids[0] = sq_vision_square(s->model, w, h, 0);
    return sq_image_prepare(rgb, w, h, stride, &s->model->image_rule, s->pixels, &s->alloc, msg);
}

static uint32_t clip_steps(const squint_session *s) { return sq_llava_of(s)->vit.n_layers; }

static squint_err clip_encode(squint_session *s, squint_msg *msg)
{
    const squint_err err = sq_vit_forward(s, s->pixels, msg);
    if (!err) sq_projector_forward(s, sq_vit_patches(s), NULL, s->n_vision, s->vision, NULL);
    return err;
}

static double clip_macs(const squint_session *s)
{
    const sq_llava *const net = sq_llava_of(s);
    return sq_vit_macs(&net->vit) + sq_projector_macs(&net->projector, s->n_vision);
}

static const sq_front clip = {.describe = clip_describe,
                              .picture = clip_picture,
                              .plan = sq_vit_plan,
                              .steps = clip_steps,
                              .encode = clip_encode,
                              .macs = clip_macs};

/* ---- all of them ---- */

static const sq_front *const fronts[] = {[SQ_VISION_CLIP] = &clip,
                                         [SQ_VISION_ANYRES] = &sq_front_anyres,
                                         [SQ_VISION_HR] = &sq_front_hr,
                                         [SQ_VISION_MGM] = &sq_front_mgm};

static const sq_front *front_of(const squint_session *s) { return fronts[sq_llava_of(s)->vision_kind]; }

/* A file of llama.cpp's has LLaVA's words for it, or none. */
static squint_err foreign_type(const squint_model *m, sq_str *type, squint_msg *msg)
{
    const bool tiled = sq_gguf_find_key(m->file, SQ_PINPOINTS_KEY) != NULL;
    sq_str aspect = tiled ? (sq_str){"anyres", 6} : (sq_str){"pad", 3};
    const squint_err err = sq_gguf_get_str(m->file, "clip.vision.image_aspect_ratio", false, &aspect, msg);
    if (err) return err;
    *type = sq_str_eq(aspect, "square") ? (sq_str){"clip_crop", 9} : (sq_str){"clip_pad", 8};
    if (!sq_str_eq(aspect, "anyres")) return SQUINT_OK;
    *type = (sq_str){"clip_anyres", 11};
    return sq_anyres_check_merge(m, msg);
}

static squint_err read_kind(squint_model *m, sq_vision_kind *kind, squint_msg *msg)
{
    static const struct {
        const char *name;
        sq_vision_kind kind;
        sq_fit fit; /* of the square that shows the whole picture */
    } types[] = {{"clip_stretch", SQ_VISION_CLIP, SQ_FIT_STRETCH}, {"clip_pad", SQ_VISION_CLIP, SQ_FIT_PAD},
                 {"clip_crop", SQ_VISION_CLIP, SQ_FIT_CROP},       {"clip_anyres", SQ_VISION_ANYRES, SQ_FIT_STRETCH},
                 {"llava_hr", SQ_VISION_HR, SQ_FIT_PAD},           {"mgm", SQ_VISION_MGM, SQ_FIT_PAD}};
    sq_str type = {"", 0};
    squint_err err = sq_gguf_get_str(m->file, "squint.vision.type", false, &type, msg);
    if (!err && !sq_gguf_find_key(m->file, "squint.vision.type")) err = foreign_type(m, &type, msg);
    if (err) return err;
    for (size_t i = 0; i < SQ_COUNT(types); i++)
        if (sq_str_eq(type, types[i].name)) {
            m->image_rule.fit = types[i].fit;
            *kind = types[i].kind;
            return SQUINT_OK;
        }
    return sq_fail(
        msg, SQUINT_ERR_UNSUPPORTED,
        "%s: key squint.vision.type: \"%.*s\" is not clip_stretch, clip_pad, clip_crop, clip_anyres, llava_hr "
        "or mgm",
        sq_vision_path(m), (int)(type.len < 64 ? type.len : 64), type.s);
}

squint_err sq_vision_load(squint_model *m, sq_llava *net, squint_msg *msg)
{
    bool has_tower = false;
    squint_err err = sq_gguf_get_bool(m->file, "clip.has_vision_encoder", false, &has_tower, msg);
    if (err || !has_tower) return err;
    if ((err = read_kind(m, &net->vision_kind, msg))) return err;
    if ((err = sq_vit_load(m, &net->vit, msg))) return err;
    const sq_front *const front = fronts[net->vision_kind];
    if (front->load && (err = front->load(m, net, msg))) return err;
    if (net->vision_kind != SQ_VISION_ANYRES && net->decoder.mode.target == SQ_TARGET_VISION_HR)
        net->decoder.mode.target = SQ_TARGET_VISION; /* p-MoD's rule: without tiles each vision token is one of those */
    sq_vision_describe(m);
    return sq_projector_load(m, net->vit.d, net->decoder.d, &net->projector, msg);
}

void sq_vision_describe(squint_model *m) { fronts[((const sq_llava *)m->net)->vision_kind]->describe(m); }

void sq_vision_needs(const sq_llava *net, sq_needs *needs)
{
    if (net->vision_kind == SQ_VISION_NONE) return;
    const sq_front *const front = fronts[net->vision_kind];
    if (front->needs) front->needs(net, needs);
}

void sq_vision_plan(squint_session *s, const sq_llava *net, sq_llava_state *state, sq_memory *memory)
{
    if (net->vision_kind == SQ_VISION_NONE) return;
    fronts[net->vision_kind]->plan(s, net, state, memory);
}

squint_err sq_vision_picture(squint_session *s, const uint8_t *rgb, uint32_t w, uint32_t h, size_t stride,
                             squint_msg *msg)
{
    return front_of(s)->picture(s, rgb, w, h, stride, msg);
}

squint_err sq_vision_step(squint_session *s, squint_msg *msg)
{
    sq_llava_state *const state = sq_llava_state_of(s);
    if (!sq_session_stopped(s, SQUINT_STAGE_TOWER, ++state->step, state->n_steps)) return SQUINT_OK;
    return sq_fail(msg, SQUINT_ERR_CANCELLED, "cancelled");
}

squint_err sq_vision_encode(squint_session *s, squint_msg *msg)
{
    if (!s->model->n_vision) return sq_fail(msg, SQUINT_ERR_UNSUPPORTED, "this model has no vision tower");
    sq_llava_state *const state = sq_llava_state_of(s);
    state->step = 0;
    state->n_steps = front_of(s)->steps(s);
    const squint_err err = front_of(s)->encode(s, msg);
    if (!err) sq_trace_floats(s, SQ_TRACE_PROJECTED, -1, s->vision, s->n_vision, s->model->d);
    return err;
}

double sq_vision_macs(const squint_session *s) { return s->model->n_vision ? front_of(s)->macs(s) : 0; }
