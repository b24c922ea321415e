/*
 * The ways in which a Mixture-of-Depths decoder runs, as a table of their differences, and the keys and router tensors
 * of a file: p-MoD (arXiv 2412.04449), gamma-MoD (arXiv 2410.13859) as released, as trained and as its paper has it,
 * MoDification (arXiv 2410.14268).
 * SPDX-License-Identifier: MIT
 *
 * A file's mod.type says which routers it holds, mod.mode how it is to run. The keys that spell a mode out (mod.target,
 * mod.position, ...) may be left out, and must not contradict it. Only these differ from file to file:
 *
 *   mod.prefill.threshold, mod.decode.threshold   a probability; the table has the released ones
 *   mod.decode.position                           of gamma-released-mgm: "local" or "global"
 *   mod.target                                    of pmod: "vision_all", or "vision_hr", the tokens of tiles alone
 *   mod.weight.apply                              of pmod: "mlp+skip", or "mlp": trained without weights on what is
 *                                                 skipped (STRing)
 *   mod.capacity.skip_ratio, mod.capacity.region  gamma-train and gamma-paper, which have no default for them
 */
#include "models/llava.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MOD_VERSION = 1 };

static const sq_mode modes[] = {
    {.name = "pmod",
     .score = SQ_SCORE_HIDDEN,
     .target = SQ_TARGET_VISION,
     .select = SQ_SELECT_TOP_K,
     .weight = SQ_WEIGHT_MLP_SKIP,
     .any_skip_weight = true,
     .any_vision = true,
     .position = SQ_POSITION_ORIGINAL,
     .decode = SQ_DECODE_DENSE,
     .decode_position = SQ_DECODE_GLOBAL},
    {.name = "gamma-released",
     .score = SQ_SCORE_ATTN_NORM,
     .target = SQ_TARGET_ALL,
     .select = SQ_SELECT_THRESHOLD,
     .weight = SQ_WEIGHT_MLP,
     .position = SQ_POSITION_COMPRESSED,
     .decode = SQ_DECODE_THRESHOLD,
     .decode_position = SQ_DECODE_LOCAL,
     .prefill_threshold = 0.005f,
     .decode_threshold = 0.5f},
    {.name = "gamma-released-mgm",
     .score = SQ_SCORE_ATTN_NORM,
     .target = SQ_TARGET_ALL,
     .select = SQ_SELECT_THRESHOLD,
     .weight = SQ_WEIGHT_MLP,
     .position = SQ_POSITION_COMPRESSED,
     .decode = SQ_DECODE_ALWAYS,
     .decode_position = SQ_DECODE_LOCAL,
     .any_decode_position = true,
     .prefill_threshold = 0.005f},
    {.name = "gamma-train",
     .score = SQ_SCORE_ATTN_NORM,
     .target = SQ_TARGET_ALL,
     .select = SQ_SELECT_CAPACITY,
     .weight = SQ_WEIGHT_MLP,
     .position = SQ_POSITION_COMPRESSED,
     .decode = SQ_DECODE_THRESHOLD,
     .decode_position = SQ_DECODE_LOCAL,
     .decode_threshold = 0.5f},
    {.name = "gamma-paper",
     .score = SQ_SCORE_ATTN_NORM,
     .target = SQ_TARGET_VISION,
     .select = SQ_SELECT_CAPACITY,
     .weight = SQ_WEIGHT_MLP,
     .position = SQ_POSITION_COMPRESSED,
     .decode = SQ_DECODE_ALWAYS,
     .decode_position = SQ_DECODE_LOCAL},
    {.name = "threshold",
     .score = SQ_SCORE_ATTN_NORM,
     .target = SQ_TARGET_ALL,
     .select = SQ_SELECT_THRESHOLD,
     .at_threshold = true,
     .weight = SQ_WEIGHT_ATTN_MLP,
     .position = SQ_POSITION_ORIGINAL,
     .decode = SQ_DECODE_THRESHOLD,
     .decode_position = SQ_DECODE_GLOBAL,
     .prefill_threshold = 0.5f,
     .decode_threshold = 0.5f},
    {.name = "dense", .score = SQ_SCORE_NONE},
};

const sq_mode *sq_mode_named(sq_str name)
{
    for (size_t i = 0; i < SQ_COUNT(modes); i++)
        if (sq_str_eq(name, modes[i].name)) return &modes[i];
    return NULL;
}

/* ---- the mode of a file ---- */

static const char *path_of(const squint_model *m) { return sq_gguf_path(m->file); }

static int shown(sq_str s) { return (int)(s.len < 64 ? s.len : 64); }

/* What each kind of file runs when it does not say. */
static squint_err read_type(const squint_model *m, bool *gated, sq_str *mode, squint_msg *msg)
{
    static const struct {
        const char *type, *mode;
        bool gated;
    } types[] = {{"pmod", "pmod", false}, {"gamma", "gamma-released", true}, {"threshold", "threshold", true}};
    sq_str type;
    const squint_err err = sq_gguf_get_str(m->file, "mod.type", true, &type, msg);
    if (err) return err;
    for (size_t i = 0; i < SQ_COUNT(types); i++)
        if (sq_str_eq(type, types[i].type)) {
            *gated = types[i].gated;
            *mode = (sq_str){types[i].mode, strlen(types[i].mode)};
            return SQUINT_OK;
        }
    return sq_fail(msg, SQUINT_ERR_UNSUPPORTED, "%s: key mod.type: \"%.*s\" is not pmod, gamma or threshold",
                   path_of(m), shown(type), type.s);
}

#define MODES "pmod, gamma-released, gamma-released-mgm, gamma-train, gamma-paper, threshold or dense"

static bool suits(const sq_mode *mode, bool gated)
{
    return mode->score == SQ_SCORE_NONE || gated == (mode->score == SQ_SCORE_ATTN_NORM);
}

static squint_err find_mode(const squint_model *m, sq_decoder *net, bool *gated, squint_msg *msg)
{
    sq_str name = {"", 0};
    squint_err err;
    if ((err = read_type(m, gated, &name, msg))) return err;
    if ((err = sq_gguf_get_str(m->file, "mod.mode", false, &name, msg))) return err;
    const sq_mode *const mode = sq_mode_named(name);
    if (!mode)
        return sq_fail(msg, SQUINT_ERR_UNSUPPORTED, "%s: key mod.mode: \"%.*s\" is not a mode: " MODES, path_of(m),
                       shown(name), name.s);
    net->mode = *mode;
    if (suits(mode, *gated)) return SQUINT_OK;
    return sq_fail(msg, SQUINT_ERR_UNSUPPORTED, "%s: key mod.mode: %s does not run the routers that mod.type names",
                   path_of(m), mode->name);
}

/* What the caller asks for replaces the file's mode, if the routers can serve it. */
static squint_err replace_mode(const squint_model *m, bool gated, sq_decoder *net, squint_msg *msg)
{
    const sq_mode *const mode = sq_mode_named((sq_str){m->asked_mode, strlen(m->asked_mode)});
    if (!mode) return sq_fail(msg, SQUINT_ERR_ARGUMENT, "mode: \"%.64s\" is not one: " MODES, m->asked_mode);
    if (!suits(mode, gated))
        return sq_fail(msg, SQUINT_ERR_ARGUMENT, "mode: %s needs other routers than those of %s, which run %s",
                       mode->name, path_of(m), net->mode.name);
    net->mode = *mode;
    return SQUINT_OK;
}

/* A key that spells out what the mode does: absent, or the mode's word for it. */
static squint_err check_word(const squint_model *m, const sq_mode *mode, const char *key, const char *word,
                             squint_msg *msg)
{
    sq_str s = {word, strlen(word)};
    const squint_err err = sq_gguf_get_str(m->file, key, false, &s, msg);
    if (err || sq_str_eq(s, word)) return err;
    return sq_fail(msg, SQUINT_ERR_UNSUPPORTED, "%s: key %s: \"%.*s\" is not \"%s\", which is mode %s's", path_of(m),
                   key, shown(s), s.s, word, mode->name);
}

static const char *const weights[] = {
    [SQ_WEIGHT_MLP_SKIP] = "mlp+skip", [SQ_WEIGHT_MLP] = "mlp", [SQ_WEIGHT_ATTN_MLP] = "attn+mlp"};
static const char *const decode_positions[] = {[SQ_DECODE_GLOBAL] = "global", [SQ_DECODE_LOCAL] = "local"};

static const char *const targets[] = {
    [SQ_TARGET_VISION] = "vision_all", [SQ_TARGET_VISION_HR] = "vision_hr", [SQ_TARGET_ALL] = "all"};

static squint_err check_words(const squint_model *m, const sq_mode *mode, squint_msg *msg)
{
    static const char *const scores[] = {[SQ_SCORE_HIDDEN] = "hidden", [SQ_SCORE_ATTN_NORM] = "attn_norm"};
    static const char *const selects[] = {
        [SQ_SELECT_TOP_K] = "topk", [SQ_SELECT_THRESHOLD] = "threshold", [SQ_SELECT_CAPACITY] = "capacity"};
    static const char *const positions[] = {
        [SQ_POSITION_ORIGINAL] = "original", [SQ_POSITION_COMPRESSED] = "compressed"};
    static const char *const decodes[] = {
        [SQ_DECODE_DENSE] = "dense", [SQ_DECODE_THRESHOLD] = "threshold", [SQ_DECODE_ALWAYS] = "always"};
    const struct {
        const char *key, *word;
    } words[] = {{"mod.router.input", scores[mode->score]},
                 {"mod.target", targets[mode->target]},
                 {"mod.prefill.select", selects[mode->select]},
                 {"mod.weight.apply", weights[mode->weight]},
                 {"mod.position", positions[mode->position]},
                 {"mod.decode.rule", decodes[mode->decode]},
                 {"mod.decode.position", decode_positions[mode->decode_position]}};
    for (size_t i = 0; i < SQ_COUNT(words); i++) {
        const squint_err err = check_word(m, mode, words[i].key, words[i].word, msg);
        if (err) return err;
    }
    return SQUINT_OK;
}

/* ---- what differs from file to file ---- */

static squint_err read_decode_position(const squint_model *m, sq_mode *mode, squint_msg *msg)
{
    sq_str word = {"", 0};
    const squint_err err = sq_gguf_get_str(m->file, "mod.decode.position", false, &word, msg);
    if (err || !mode->any_decode_position) return err;
    for (int i = 0; i < (int)SQ_COUNT(decode_positions); i++)
        if (sq_str_eq(word, decode_positions[i])) mode->decode_position = (sq_decode_position)i;
    return SQUINT_OK;
}

static squint_err read_skip_weight(const squint_model *m, sq_mode *mode, squint_msg *msg)
{
    sq_str word = {"", 0};
    const squint_err err = sq_gguf_get_str(m->file, "mod.weight.apply", false, &word, msg);
    if (mode->any_skip_weight && sq_str_eq(word, weights[SQ_WEIGHT_MLP])) mode->weight = SQ_WEIGHT_MLP;
    return err;
}

static squint_err read_target(const squint_model *m, sq_mode *mode, squint_msg *msg)
{
    sq_str word = {"", 0};
    const squint_err err = sq_gguf_get_str(m->file, "mod.target", false, &word, msg);
    if (mode->any_vision && sq_str_eq(word, targets[SQ_TARGET_VISION_HR])) mode->target = SQ_TARGET_VISION_HR;
    return err;
}

static squint_err read_share(const squint_model *m, const char *key, bool required, bool open, float *out,
                             squint_msg *msg)
{
    const squint_err err = sq_gguf_get_f32(m->file, key, required, out, msg);
    if (err || (open ? *out > 0 && *out < 1 : *out >= 0 && *out <= 1)) return err;
    return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: key %s: %g is not %s 0 %s 1", path_of(m), key, (double)*out,
                   open ? "between" : "from", open ? "and" : "to");
}

static squint_err read_thresholds(const squint_model *m, sq_mode *mode, squint_msg *msg)
{
    squint_err err = SQUINT_OK;
    if (mode->select == SQ_SELECT_THRESHOLD) {
        err = read_share(m, "mod.prefill.threshold", false, true, &mode->prefill_threshold, msg);
        if (mode->at_threshold) mode->decode_threshold = mode->prefill_threshold; /* one test for both */
    }
    if (!err && mode->decode == SQ_DECODE_THRESHOLD)
        err = read_share(m, "mod.decode.threshold", false, true, &mode->decode_threshold, msg);
    return err;
}

/* @param own  the file's mode: gamma's thresholds are none of MoDification's, whose gates were trained otherwise */
static squint_err read_parameters(const squint_model *m, const sq_mode *own, sq_mode *mode, squint_msg *msg)
{
    squint_err err = SQUINT_OK;
    if (own->at_threshold == mode->at_threshold) err = read_thresholds(m, mode, msg);
    if (!err && mode->select == SQ_SELECT_CAPACITY)
        err = read_share(m, "mod.capacity.skip_ratio", true, false, &mode->skip_ratio, msg);
    if (!err && mode->select == SQ_SELECT_CAPACITY && mode->target == SQ_TARGET_ALL)
        err = sq_llava_read_u32(m, "mod.capacity.region", true, 1, UINT32_MAX, &mode->region, msg);
    return err;
}

static squint_err read_norm(const squint_model *m, sq_decoder *net, squint_msg *msg)
{
    static const char *const names[] = {
        [SQ_NORM_TANH] = "tanh", [SQ_NORM_SIGMOID] = "sigmoid", [SQ_NORM_SOFTMAX] = "softmax", [SQ_NORM_NONE] = "none"};
    sq_str type;
    squint_err err;
    if ((err = sq_gguf_get_str(m->file, "mod.norm.type", true, &type, msg))) return err;
    if ((err = sq_gguf_get_f32(m->file, "mod.norm.scale", true, &net->norm_scale, msg))) return err;
    if ((err = sq_gguf_get_f32(m->file, "mod.norm.bias", true, &net->norm_bias, msg))) return err;
    if (!isfinite(net->norm_scale) || !isfinite(net->norm_bias))
        return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: keys mod.norm.scale and mod.norm.bias must be finite", path_of(m));
    for (unsigned i = 0; i < SQ_COUNT(names); i++)
        if (sq_str_eq(type, names[i])) {
            net->norm = (sq_norm_type)i;
            return SQUINT_OK;
        }
    return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: key mod.norm.type: not tanh, sigmoid, softmax or none", path_of(m));
}

static squint_err check_ratio(const squint_model *m, const sq_decoder *net, float ratio, uint32_t l, squint_msg *msg)
{
    if (!(ratio >= 0 && ratio <= 1))
        return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: key mod.layer_ratio: %g of layer %u is not from 0 to 1", path_of(m),
                       (double)ratio, l);
    if (net->mode.select == SQ_SELECT_TOP_K || ratio == 1.0f) return SQUINT_OK;
    return sq_fail(msg, SQUINT_ERR_UNSUPPORTED, "%s: key mod.layer_ratio: %g of layer %u, but %s has no ratio a layer",
                   path_of(m), (double)ratio, l, net->mode.name);
}

static squint_err read_layers(const squint_model *m, sq_decoder *net, squint_msg *msg)
{
    bool is_mod[SQ_MAX_LAYERS];
    float ratio[SQ_MAX_LAYERS];
    squint_err err;
    for (uint32_t l = 0; l < net->n_layers; l++)
        ratio[l] = 1.0f;
    const bool need_ratios = net->mode.select == SQ_SELECT_TOP_K;
    if ((err = sq_gguf_get_bools(m->file, "mod.layer_is_mod", true, is_mod, net->n_layers, msg))) return err;
    if ((err = sq_gguf_get_f32s(m->file, "mod.layer_ratio", need_ratios, ratio, net->n_layers, msg))) return err;
    for (uint32_t l = 0; l < net->n_layers; l++) {
        if ((err = check_ratio(m, net, ratio[l], l, msg))) return err;
        net->layers[l].is_mod = is_mod[l];
        net->layers[l].ratio = ratio[l];
    }
    return SQUINT_OK;
}

/* ---- routers ---- */

static const char shared_name[] = "mod_router.weight";

static bool has(const squint_model *m, const char *tensor) { return sq_gguf_find(m->file, tensor) != NULL; }

/* A router of n outputs, or a bias of n; a missing one is NULL unless required. */
static squint_err load_f32(squint_model *m, const char *name, uint32_t k, uint32_t n, bool required, const float **out,
                           squint_msg *msg)
{
    const sq_gguf_tensor *const t = sq_gguf_find(m->file, name);
    if (t && t->type != SQ_TENSOR_F32)
        return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: tensor %s: routers are F32; a rounded score keeps other tokens",
                       path_of(m), name);
    if (t && n > 1 && (t->ne[0] != k || t->ne[1] != n))
        return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: tensor %s: not [%u, %u]", path_of(m), name, k, n);
    return sq_load_vec(m, name, (size_t)k * n, required, out, msg);
}

static squint_err refuse_router(const squint_model *m, const char *name, uint32_t l, squint_msg *msg)
{
    return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: tensor %s: a router, but layer %u is not one of mod.layer_is_mod",
                   path_of(m), name, l);
}

/* sigmoid(w1 . u - w0 . u) of the normed row u = attn_norm * x / rms(x): the score of x / rms(x) under one vector. */
static squint_err fold_gate(squint_model *m, const sq_decoder *net, const float *router, sq_decoder_layer *w,
                            squint_msg *msg)
{
    float *const folded = sq_model_take(m, net->d, sizeof *folded);
    if (!folded) return sq_fail(msg, SQUINT_ERR_NOMEM, "%s: no memory for a router", path_of(m));
    for (uint32_t i = 0; i < net->d; i++)
        folded[i] = w->attn_norm[i] * (router[net->d + i] - router[i]);
    w->router_w = folded;
    return SQUINT_OK;
}

static squint_err load_gate(squint_model *m, const sq_decoder *net, const char *name, sq_decoder_layer *w,
                            squint_msg *msg)
{
    const float *router;
    const squint_err err = load_f32(m, name, net->d, 2, true, &router, msg);
    return err ? err : fold_gate(m, net, router, w, msg);
}

static squint_err load_router(squint_model *m, const sq_decoder *net, bool shared, uint32_t l, squint_msg *msg)
{
    sq_decoder_layer *const w = &net->layers[l];
    const bool gated = net->mode.score == SQ_SCORE_ATTN_NORM;
    char weight[64], bias[64];
    const float *b;
    squint_err err;
    snprintf(weight, sizeof weight, "blk.%u.mod_router.weight", l);
    snprintf(bias, sizeof bias, "blk.%u.mod_router.bias", l);
    if (!w->is_mod && (has(m, weight) || has(m, bias))) return refuse_router(m, weight, l, msg);
    if (!w->is_mod) return SQUINT_OK;
    if (gated && (has(m, bias) || (shared && has(m, weight))))
        return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: tensor %s: a gate has no bias, and a shared one no copies",
                       path_of(m), has(m, bias) ? bias : weight);
    if (gated) return load_gate(m, net, shared ? shared_name : weight, w, msg);
    if ((err = load_f32(m, weight, net->d, 1, true, &w->router_w, msg))) return err;
    if ((err = load_f32(m, bias, 1, 1, false, &b, msg))) return err;
    w->router_b = b ? *b : 0.0f;
    return SQUINT_OK;
}

static squint_err load_routers(squint_model *m, const sq_decoder *net, squint_msg *msg)
{
    bool shared = has(m, shared_name);
    squint_err err = sq_gguf_get_bool(m->file, "mod.router.shared", false, &shared, msg);
    if (err) return err;
    if (shared && net->mode.score != SQ_SCORE_ATTN_NORM)
        return sq_fail(msg, SQUINT_ERR_UNSUPPORTED,
                       "%s: key mod.router.shared, or tensor %s: without gamma's routers, layers have their own",
                       path_of(m), shared_name);
    if (!shared && has(m, shared_name))
        return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: tensor %s: a shared router, but mod.router.shared is false",
                       path_of(m), shared_name);
    for (uint32_t l = 0; l < net->n_layers; l++)
        if ((err = load_router(m, net, shared, l, msg))) return err;
    return SQUINT_OK;
}

/* ---- all of it ---- */

/* The file's mode, whose keys must be right whatever runs, then the one that runs. */
static squint_err read_modes(squint_model *m, sq_decoder *net, sq_mode *own, squint_msg *msg)
{
    squint_err err;
    bool gated = false;
    uint32_t version = MOD_VERSION;
    if ((err = sq_llava_read_u32(m, "mod.version", true, 1, MOD_VERSION, &version, msg))) return err;
    if ((err = find_mode(m, net, &gated, msg))) return err;
    if (net->mode.score != SQ_SCORE_NONE) {
        if ((err = read_decode_position(m, &net->mode, msg))) return err;
        if ((err = read_skip_weight(m, &net->mode, msg))) return err;
        if ((err = read_target(m, &net->mode, msg))) return err;
        if ((err = check_words(m, &net->mode, msg))) return err;
    }
    *own = net->mode;
    m->own_mode = own->name;
    return m->asked_mode && strcmp(m->asked_mode, own->name) ? replace_mode(m, gated, net, msg) : SQUINT_OK;
}

static squint_err read_mode(squint_model *m, sq_decoder *net, squint_msg *msg)
{
    sq_mode own;
    squint_err err;
    if ((err = read_modes(m, net, &own, msg)) || net->mode.score == SQ_SCORE_NONE) return err;
    const bool gated = net->mode.score == SQ_SCORE_ATTN_NORM;
    uint32_t outputs = gated ? 2 : 1;
    if ((err = sq_llava_read_u32(m, "mod.router.outputs", false, outputs, outputs, &outputs, msg))) return err;
    if ((err = read_parameters(m, &own, &net->mode, msg))) return err;
    net->norm = SQ_NORM_SIGMOID;
    net->norm_scale = 1.0f;
    net->norm_bias = 0.0f;
    if (!gated && (err = read_norm(m, net, msg))) return err;
    return read_layers(m, net, msg);
}

static squint_err without_routers(squint_model *m, sq_decoder *net, squint_msg *msg)
{
    net->mode = *sq_mode_named((sq_str){"dense", 5});
    m->own_mode = net->mode.name;
    if (!m->asked_mode || !strcmp(m->asked_mode, "dense")) return load_routers(m, net, msg);
    return sq_fail(msg, SQUINT_ERR_ARGUMENT, "mode: \"%.64s\" needs routers, and %s has none", m->asked_mode,
                   path_of(m));
}

squint_err sq_modes_load(squint_model *m, sq_decoder *net, squint_msg *msg)
{
    if (!sq_gguf_find_key(m->file, "mod.type")) return without_routers(m, net, msg);
    const squint_err err = read_mode(m, net, msg);
    /* A file that holds routers may be run without them. */
    return err || net->mode.score == SQ_SCORE_NONE ? err : load_routers(m, net, msg);
}
