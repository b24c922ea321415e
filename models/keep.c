/*
 * What a session's layers keep: the model's own ratios, or those of a schedule, multiplied by
 * squint_session_options.keep. SPDX-License-Identifier: MIT
 */
#include "models/llava.h"
#include "runtime/schedule.h"

#include <math.h>
#include <string.h>

/* The ratio that a mode goes by, of one that counts what is kept. */
static float ratio_of(const sq_mode *mode, double kept)
{
    return (float)(mode->select == SQ_SELECT_CAPACITY ? 1.0 - kept : kept);
}

/* What a ratio keeps becomes no more than all, and by a factor of less than 1 no more than it was. */
static float multiplied(const sq_mode *mode, float ratio, float keep)
{
    if (keep == 1.0f) return ratio;
    if (mode->select != SQ_SELECT_CAPACITY) return fminf(1.0f, ratio * keep);
    const float skipped = 1.0f - fminf(1.0f, (1.0f - ratio) * keep);
    return keep < 1.0f ? fmaxf(ratio, skipped) : skipped;
}

float sq_keep_ratio(const squint_session *s, uint32_t layer, float keep)
{
    return multiplied(&sq_llava_of(s)->decoder.mode, s->ratio[layer], keep);
}

squint_err sq_keep_check(const squint_model *m, const char *option, squint_msg *msg)
{
    const sq_mode *const mode = &((const sq_llava *)m->net)->decoder.mode;
    if (mode->score == SQ_SCORE_NONE)
        return sq_fail(msg, SQUINT_ERR_ARGUMENT, "%s: no layer skips a token in mode dense", option);
    if (mode->select != SQ_SELECT_THRESHOLD) return SQUINT_OK;
    return sq_fail(msg, SQUINT_ERR_ARGUMENT, "%s: in mode %s a threshold decides for each token, not a ratio", option,
                   mode->name);
}

static squint_err read_factor(const squint_model *m, double *factor, squint_msg *msg)
{
    float value = 0.5f;
    const squint_err err = m->file ? sq_gguf_get_f32(m->file, "mod.schedule.factor", false, &value, msg) : SQUINT_OK;
    *factor = (double)value;
    if (err || isfinite(value)) return err;
    return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: key mod.schedule.factor is not finite", sq_gguf_path(m->file));
}

static squint_err apply_schedule(squint_session *s, const sq_decoder *net, squint_msg *msg)
{
    const char *const text = s->options.schedule;
    double ratio[SQ_MAX_LAYERS], factor;
    squint_err err;
    if ((err = read_factor(s->model, &factor, msg))) return err;
    if ((err = sq_schedule_ratios(text, factor, net->n_layers, ratio, msg))) return err;
    for (uint32_t l = 0; l < net->n_layers; l++) {
        if (net->layers[l].is_mod)
            s->ratio[l] = ratio_of(&net->mode, ratio[l]);
        else if (!strncmp(text, "list:", 5) && ratio[l] != 1.0)
            return sq_fail(msg, SQUINT_ERR_ARGUMENT, "schedule: layer %u has no router and keeps all: 1, not %g", l,
                           ratio[l]);
    }
    return SQUINT_OK;
}

squint_err sq_keep_schedule(squint_session *s, squint_msg *msg)
{
    const sq_decoder *const net = &sq_llava_of(s)->decoder;
    const sq_mode *const mode = &net->mode;
    const float keep = s->options.keep;
    for (uint32_t l = 0; l < net->n_layers; l++)
        s->ratio[l] = mode->select == SQ_SELECT_CAPACITY ? mode->skip_ratio : net->layers[l].ratio;
    if (!s->options.schedule && keep == 1.0f) return SQUINT_OK;
    squint_err err = sq_keep_check(s->model, s->options.schedule ? "schedule" : "keep", msg);
    if (!err && s->options.schedule) err = apply_schedule(s, net, msg);
    for (uint32_t l = 0; !err && l < net->n_layers; l++)
        if (net->layers[l].is_mod) s->ratio[l] = multiplied(mode, s->ratio[l], keep);
    return err;
}
