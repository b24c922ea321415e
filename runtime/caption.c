/*
 * Captions: a picture in, text out.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/budget.h"
#include "runtime/engine.h"
#include "runtime/text.h"

#include <math.h>
#include <string.h>

/* ---- stages ---- */

static squint_err check_caption_options(const squint_caption_options *o, squint_msg *msg)
{
    if (!(o->temperature >= 0) || isinf(o->temperature))
        return sq_fail(msg, SQUINT_ERR_ARGUMENT, "temperature: %g is not 0 or more", (double)o->temperature);
    if (!(o->top_p >= 0 && o->top_p <= 1))
        return sq_fail(msg, SQUINT_ERR_ARGUMENT, "top_p: %g is not from 0 to 1", (double)o->top_p);
    if (!(o->min_p >= 0 && o->min_p <= 1))
        return sq_fail(msg, SQUINT_ERR_ARGUMENT, "min_p: %g is not from 0 to 1", (double)o->min_p);
    if (!(o->budget_ms >= 0) || isinf(o->budget_ms))
        return sq_fail(msg, SQUINT_ERR_ARGUMENT, "budget_ms: %g is not 0 or more", o->budget_ms);
    if (o->chat_template && !sq_prompt_known((sq_str){o->chat_template, strlen(o->chat_template)}))
        return sq_fail(msg, SQUINT_ERR_ARGUMENT, "chat_template: \"%.64s\" is not one of " SQ_PROMPT_TEMPLATES,
                       o->chat_template);
    return SQUINT_OK;
}

static sq_str template_of(const squint_session *s, const squint_caption_options *o)
{
    return o->chat_template ? (sq_str){o->chat_template, strlen(o->chat_template)} : s->model->template_name;
}

/* LLaVA cuts off what is too long, questions and answers first; nobody wants that. */
static squint_err check_expanded(const squint_session *s, size_t n, squint_msg *msg)
{
    const squint_model *const m = s->model;
    if (m->max_expanded && n > m->max_expanded)
        return sq_fail(msg, SQUINT_ERR_LIMIT,
                       "the prompt has %zu tokens, %u of them the image's; key squint.max_expanded_length allows %u", n,
                       s->n_vision, m->max_expanded);
    if (n <= s->limits.max_rows) return SQUINT_OK;
    return sq_fail(msg, SQUINT_ERR_LIMIT, "the prompt has %zu tokens, %u of them the image's; the model takes %u", n,
                   s->n_vision, s->limits.max_rows);
}

/* Ids of the prompt, the image's place filled with as many image tokens as there are vision tokens. */
static squint_err build_prompt(squint_session *s, const squint_caption_options *o, uint32_t *n_ids, squint_msg *msg)
{
    const squint_model *const m = s->model;
    const char *const prompt = o->prompt;
    if (prompt && strlen(prompt) > s->options.max_prompt)
        return sq_fail(msg, SQUINT_ERR_LIMIT, "the prompt has %zu bytes; this session takes %u", strlen(prompt),
                       s->options.max_prompt);
    size_t n = 0;
    squint_err err = sq_prompt_ids(m->tokenizer, template_of(s, o), prompt, s->token_scratch, s->token_scratch_bytes,
                                   s->ids, s->limits.max_rows, &n, msg);
    if (err) return err;
    const size_t expanded = n - 1 + s->n_vision;
    if ((err = check_expanded(s, expanded, msg))) return err;
    const size_t image = sq_prompt_expand(s->ids, n, s->n_vision);
    for (unsigned i = 0; i < s->n_grids; i++)
        s->grids[i].first += (unsigned)image;
    *n_ids = (uint32_t)expanded;
    return SQUINT_OK;
}

static void append_token(squint_session *s, sq_text *t, uint32_t id)
{
    sq_text_append(t, s->piece, sq_detokenize(s->model->tokenizer, id, s->piece, s->piece_bytes));
}

static squint_err generate(squint_session *s, sq_text *t, sq_sampler *sampler, unsigned max_tokens, squint_result *r,
                           squint_msg *msg)
{
    const squint_model *const m = s->model;
    const uint32_t eos = sq_tokenizer_eos(m->tokenizer);
    r->finish = SQUINT_FINISH_LENGTH;
    while (r->n_tokens < max_tokens) {
        const uint32_t id = sq_sample(sampler, s->logits, m->n_vocab, s->candidates);
        if (id == eos) {
            r->finish = SQUINT_FINISH_STOP;
            return SQUINT_OK;
        }
        s->tokens[r->n_tokens++] = id;
        append_token(s, t, id);
        if (sq_session_stopped(s, SQUINT_STAGE_DECODE, r->n_tokens, max_tokens) || t->stopped)
            return sq_fail(msg, SQUINT_ERR_CANCELLED, "cancelled");
        if (t->ended) {
            r->finish = SQUINT_FINISH_STOP;
            return SQUINT_OK;
        }
        if (r->n_tokens == max_tokens || s->n_past == s->limits.max_tokens) return SQUINT_OK;
        const squint_err err = sq_session_forward(s, &id, 1, 1, msg);
        if (err) return err;
    }
    return SQUINT_OK;
}

static double lap(double *since)
{
    const double now = sq_now_ms(), ms = now - *since;
    *since = now;
    return ms;
}

static void fill_result(const squint_session *s, squint_result *r)
{
    r->prompt = s->ids;
    r->grid = s->grids[0];
    r->grids = s->grids;
    r->n_grids = s->n_grids;
    r->text = s->text;
    r->tokens = s->tokens;
    r->n_layers = s->model->n_layers;
    r->n_vision_tokens = s->n_vision;
    r->kept = s->kept;
    r->kv_bytes = sq_session_kv_bytes(s);
    r->kv_bytes_dense = sq_session_kv_bytes_dense(s);
    r->tower_macs = s->model->family->tower_macs(s);
    r->decode_macs = s->macs - r->prefill_macs;
    r->decode_macs_dense = s->macs_dense - r->prefill_macs_dense;
    for (uint32_t l = 0; l < r->n_layers; l++)
        r->kept_share += (double)s->kept[l] / ((double)r->n_layers * r->n_vision_tokens);
}

static void heed_budget(squint_session *s, const squint_caption_options *o, uint32_t n_ids, squint_result *r)
{
    const double spent = r->stage_ms[SQUINT_STAGE_IMAGE] + r->stage_ms[SQUINT_STAGE_TOWER];
    const sq_plan plan = sq_budget_choose(s, n_ids, s->n_vision, o->budget_ms - spent);
    s->keep = plan.keep;
    r->forecast = (squint_forecast){plan.outcome, plan.keep, spent, plan.predicted_ms};
    if (o->on_forecast) o->on_forecast(o->user, &r->forecast);
}

/* The next prediction takes half of what this one was off, and no more than a factor of 2: a page that the first
 * prefill reads from a disk is there in the second. */
static void learn(squint_session *s, const squint_result *r)
{
    const double off = r->stage_ms[SQUINT_STAGE_PREFILL] / r->forecast.predicted_ms;
    s->cost.scale *= sqrt(fmin(fmax(off, 0.25), 4));
}

static squint_err caption(squint_session *s, const squint_caption_options *o, squint_result *r, squint_msg *msg)
{
    double clock = sq_now_ms();
    squint_err err;
    uint32_t n_ids = 0;
    sq_text text = {.text = s->text, .stop = sq_prompt_stop(template_of(s, o)), .on_text = o->on_text, .user = o->user};
    sq_sampler sampler = {.temperature = o->temperature, .top_k = o->top_k, .top_p = o->top_p, .min_p = o->min_p};
    sq_sampler_seed(&sampler, o->seed);
    unsigned max_tokens = o->max_tokens ? o->max_tokens : s->options.max_tokens;
    if (max_tokens > s->options.max_tokens) max_tokens = s->options.max_tokens;

    sq_session_reset(s);
    s->text[0] = '\0';
    if ((err = build_prompt(s, o, &n_ids, msg))) return err;
    r->n_prompt_tokens = n_ids;
    if ((err = sq_session_encode(s, msg))) return err;
    r->stage_ms[SQUINT_STAGE_TOWER] = lap(&clock);
    if (o->budget_ms > 0) heed_budget(s, o, n_ids, r);
    if ((err = sq_session_forward(s, s->ids, n_ids, 1, msg))) return err;
    r->stage_ms[SQUINT_STAGE_PREFILL] = lap(&clock);
    s->n_ids = n_ids;
    if (r->forecast.outcome) learn(s, r);
    r->prefill_macs = s->macs;
    r->prefill_macs_dense = s->macs_dense;
    err = generate(s, &text, &sampler, max_tokens, r, msg);
    r->stage_ms[SQUINT_STAGE_DECODE] = lap(&clock);
    sq_text_finish(&text);
    fill_result(s, r);
    return err;
}

/* What a session may not do twice at once is set up here and taken down again. */
static squint_err caption_pixels(squint_session *s, const sq_image *image, size_t stride, double started,
                                 const squint_caption_options *options, squint_result *r, squint_msg *msg)
{
    static const squint_caption_options defaults;
    if (!options) options = &defaults;
    s->on_progress = options->on_progress;
    s->progress_user = options->user;
    squint_err err = check_caption_options(options, msg);
    if (!err) err = sq_session_picture(s, image->rgb, image->w, image->h, stride, msg);
    if (!err && sq_session_stopped(s, SQUINT_STAGE_IMAGE, 1, 1)) err = sq_fail(msg, SQUINT_ERR_CANCELLED, "cancelled");
    r->stage_ms[SQUINT_STAGE_IMAGE] = sq_now_ms() - started;
    if (!err) err = caption(s, options, r, msg);
    s->on_progress = NULL;
    return err;
}

/* A cancellation counts from here on, the caption's time only afterwards. */
static squint_err begin(squint_session *s, const void *picture, const squint_caption_options *options, squint_result *r,
                        squint_msg *msg)
{
    *r = (squint_result){.text = ""};
    atomic_store(&s->cancel, false);
    if (!picture) return sq_fail(msg, SQUINT_ERR_ARGUMENT, "no picture: its path or memory is NULL");
    if (!s->model->tokenizer) return sq_fail(msg, SQUINT_ERR_UNSUPPORTED, "this model has no tokenizer");
    return options && options->budget_ms > 0 && !s->cost.scale ? squint_session_measure(s, msg) : SQUINT_OK;
}

squint_err squint_caption_rgb(squint_session *session, const uint8_t *rgb, unsigned width, unsigned height,
                              size_t stride, const squint_caption_options *options, squint_result *result,
                              squint_msg *msg)
{
    squint_err err = begin(session, rgb, options, result, msg);
    if (err) return err;
    if (!width || !height || width > SQ_IMAGE_MAX_SIDE || height > SQ_IMAGE_MAX_SIDE || stride / 3 < width)
        return sq_fail(msg, SQUINT_ERR_ARGUMENT, "%u x %u pixels, %zu bytes a row: not a picture", width, height,
                       stride);
    /* Pixels are only read; sq_image owns them in the other two entries. */
    const sq_image image = {.rgb = (uint8_t *)(uintptr_t)rgb, .w = width, .h = height};
    return caption_pixels(session, &image, stride, sq_now_ms(), options, result, msg);
}

squint_err squint_caption_memory(squint_session *session, const void *data, size_t size,
                                 const squint_caption_options *options, squint_result *result, squint_msg *msg)
{
    sq_image image;
    squint_err err = begin(session, data, options, result, msg);
    const double started = sq_now_ms();
    if (!err) err = sq_image_decode(&image, "image in memory", data, size, &session->alloc, msg);
    if (err) return err;
    err = caption_pixels(session, &image, (size_t)image.w * 3, started, options, result, msg);
    sq_image_free(&image, &session->alloc);
    return err;
}

squint_err squint_caption_file(squint_session *session, const char *path, const squint_caption_options *options,
                               squint_result *result, squint_msg *msg)
{
    sq_image image;
    squint_err err = begin(session, path, options, result, msg);
    const double started = sq_now_ms();
    if (!err) err = sq_image_read(&image, path, &session->alloc, msg);
    if (err) return err;
    err = caption_pixels(session, &image, (size_t)image.w * 3, started, options, result, msg);
    sq_image_free(&image, &session->alloc);
    return err;
}
