/*
 * The two files that llama.cpp makes of a model that sees: the language model, and an "mmproj" with tower and projector.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/gguf.h"

#include <string.h>

static const char projector_key[] = "clip.projector_type", vision_projector_key[] = "clip.vision.projector_type";

#define SHOW(str) (int)((str).len < 64 ? (str).len : 64), (str).s

static squint_err architecture(const sq_gguf *g, sq_str *out, squint_msg *msg)
{
    return sq_gguf_get_str(g, "general.architecture", true, out, msg);
}

static squint_err check_architectures(const sq_gguf *g, const sq_gguf *vision, squint_msg *msg)
{
    const char *const model = sq_gguf_path(g), *const mmproj = sq_gguf_path(vision);
    sq_str first, second;
    squint_err err = architecture(g, &first, msg);
    if (!err) err = architecture(vision, &second, msg);
    if (err) return err;
    const bool first_sees = sq_str_eq(first, "clip"), second_sees = sq_str_eq(second, "clip");
    if (first_sees && !second_sees)
        return sq_fail(msg, SQUINT_ERR_ARGUMENT,
                       "mmproj: %s holds the language model and %s the vision half: name them the other way round",
                       mmproj, model);
    if (first_sees)
        return sq_fail(msg, SQUINT_ERR_ARGUMENT, "mmproj: %s and %s are both vision halves; which is the model?", model,
                       mmproj);
    if (!second_sees)
        return sq_fail(msg, SQUINT_ERR_ARGUMENT,
                       "mmproj: %s: key general.architecture: \"%.*s\" where \"clip\" is needed: it is no vision half",
                       mmproj, SHOW(second));
    if (!sq_str_eq(first, "llama"))
        return sq_fail(msg, SQUINT_ERR_UNSUPPORTED,
                       "%s: key general.architecture: \"%.*s\" is not one that squint runs with a vision half (llama)",
                       model, SHOW(first));
    return SQUINT_OK;
}

static squint_err check_first(const sq_gguf *g, const sq_gguf *vision, squint_msg *msg)
{
    for (size_t i = 0; i < sq_gguf_n_tensors(g); i++) {
        const sq_str name = sq_gguf_tensor_at(g, i)->name;
        if (sq_gguf_is_vision(name))
            return sq_fail(msg, SQUINT_ERR_ARGUMENT, "mmproj: %s has a tower of its own (tensor %.*s); leave out %s",
                           sq_gguf_path(g), SHOW(name), sq_gguf_path(vision));
    }
    return SQUINT_OK;
}

/* Files older than the key have the only projector that there was, an MLP. */
static squint_err check_projector(const sq_gguf *vision, squint_msg *msg)
{
    sq_str type = {"mlp", 3};
    const char *const key = sq_gguf_find_key(vision, vision_projector_key) ? vision_projector_key : projector_key;
    const squint_err err = sq_gguf_get_str(vision, key, false, &type, msg);
    if (err) return err;
    if (!sq_str_eq(type, "mlp"))
        return sq_fail(msg, SQUINT_ERR_UNSUPPORTED,
                       "%s: key %s: \"%.*s\" is not the projector that squint runs (\"mlp\", LLaVA's)",
                       sq_gguf_path(vision), key, SHOW(type));
    if (sq_gguf_find(vision, "mm.3.weight")) /* how llama.cpp knows them */
        return sq_fail(msg, SQUINT_ERR_UNSUPPORTED,
                       "%s: tensor mm.3.weight: a projector with norms, which is not LLaVA's", sq_gguf_path(vision));
    return SQUINT_OK;
}

static squint_err check_tower(const sq_gguf *vision, squint_msg *msg)
{
    bool has_tower = false, use_silu = false;
    squint_err err = sq_gguf_get_bool(vision, "clip.has_vision_encoder", false, &has_tower, msg);
    if (!err) err = sq_gguf_get_bool(vision, "clip.use_silu", false, &use_silu, msg);
    if (err) return err;
    if (!has_tower)
        return sq_fail(msg, SQUINT_ERR_UNSUPPORTED, "%s: key clip.has_vision_encoder is not true: it has no tower",
                       sq_gguf_path(vision));
    if (use_silu)
        return sq_fail(msg, SQUINT_ERR_UNSUPPORTED, "%s: key clip.use_silu: only GELU and QuickGELU are known",
                       sq_gguf_path(vision));
    return check_projector(vision, msg);
}

/* Outputs of a matrix. */
static uint64_t rows_of(const sq_gguf *g, const sq_gguf_tensor *t)
{
    sq_panels panels;
    if (!sq_tensor_is_panels(t)) return t->ne[1];
    return sq_tensor_panels(g, t, &panels, NULL) ? 0 : panels.n;
}

static squint_err check_widths(const sq_gguf *g, const sq_gguf *vision, squint_msg *msg)
{
    static const char name[] = "mm.2.weight";
    const sq_gguf_tensor *const last = sq_gguf_find(vision, name);
    uint32_t d = 0;
    const squint_err err = sq_gguf_get_u32(g, "llama.embedding_length", true, &d, msg);
    if (err) return err;
    if (!last) return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: tensor %s is missing", sq_gguf_path(vision), name);
    const uint64_t made = rows_of(vision, last);
    if (made == d) return SQUINT_OK;
    return sq_fail(
        msg, SQUINT_ERR_ARGUMENT,
        "mmproj: %s makes vision tokens of %llu values (tensor %s), and the decoder of %s takes %u: they are "
        "not of one model",
        sq_gguf_path(vision), (unsigned long long)made, name, sq_gguf_path(g), d);
}

static squint_err check_halves(const sq_gguf *g, const sq_gguf *vision, squint_msg *msg)
{
    squint_err err;
    if ((err = check_architectures(g, vision, msg))) return err;
    if ((err = check_first(g, vision, msg))) return err;
    if ((err = check_tower(vision, msg))) return err;
    return check_widths(g, vision, msg);
}

squint_err sq_gguf_add_mmproj(sq_gguf *g, const char *mmproj, const squint_allocator *a, squint_msg *msg)
{
    sq_gguf *vision;
    squint_err err = sq_gguf_open(&vision, mmproj, a, msg);
    if (err) return err;
    err = check_halves(g, vision, msg);
    if (!err) err = sq_gguf_join(g, &vision, msg);
    sq_gguf_close(&vision);
    return err;
}

squint_err sq_gguf_open_pair(sq_gguf **out, const char *path, const char *mmproj, const squint_allocator *a,
                             squint_msg *msg)
{
    squint_err err = sq_gguf_open(out, path, a, msg);
    if (!err && mmproj) err = sq_gguf_add_mmproj(*out, mmproj, a, msg);
    if (err) sq_gguf_close(out);
    return err;
}
