/*
 * What a session's layers keep: the model's own ratios, or a schedule's, multiplied by a factor.
 * SPDX-License-Identifier: MIT
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

/* What a ratio keeps becomes no more than all. By a factor of 1 it is what it was to the bit, which 1 - (1 - ratio) is
 * not; by a smaller one no more than it was, as a product with less than 1 is rounded to less. */
static float multiplied(const sq_mode *mode, float ratio, float keep)
{
    if (keep == 1.0f) return ratio;
    if (mode->select == SQ_SELECT_CAPACITY) return 1.0f - fminf(1.0f, (1.0f - ratio) * keep);
    return fminf(1.0f, ratio * keep);
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

static squint_err apply_schedule(squint_session *s, const sq_decoder *net, squint_msg *msg)
{
    const char *const text = s->options.schedule;
    double ratio[SQ_MAX_LAYERS];
    float factor = 0.5f;
    squint_err err = SQUINT_OK;
    if (s->model->file) err = sq_gguf_get_f32(s->model->file, "mod.schedule.factor", false, &factor, msg);
    if (!err) err = sq_schedule_ratios(text, (double)factor, net->n_layers, ratio, msg);
    if (err) return err;
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
