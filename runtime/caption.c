/*
 * Captions: a picture in, text out.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/budget.h"
#include "runtime/engine.h"

#include <math.h>
#include <string.h>

/* ---- text as it grows ---- */

/*
 * Tokens give bytes; a reader gets whole characters. s->text holds the finished text, then bytes whose
 * character or whose right to stay is open: an unfinished UTF-8 sequence, or white space that only counts when
 * something follows it.
 */
typedef struct text_out {
    squint_session *s;
    const squint_caption_options *options;
    size_t len;   /* bytes in s->text */
    size_t sent;  /* bytes given to on_text */
    char open[4]; /* bytes of an unfinished sequence */
    unsigned n_open;
    bool stopped; /* on_text returned false */
} text_out;

static bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

static void append(text_out *t, const char *bytes, size_t n)
{
    if (!t->len)
        while (n && is_space(*bytes)) {
            bytes++;
            n--;
        }
    memcpy(t->s->text + t->len, bytes, n);
    t->len += n;
}

static void append_replacement(text_out *t)
{
    append(t, "\xEF\xBF\xBD", 3);
    t->n_open = 0;
}

/* A NUL would end the text: it is replaced too. */
static void append_byte(text_out *t, char c)
{
    t->open[t->n_open++] = c;
    const int length = c ? sq_utf8_next(t->open, t->n_open) : 0;
    if (length > 0) {
        append(t, t->open, (size_t)length);
        t->n_open = 0;
    } else if (length == 0) {
        const bool alone = t->n_open == 1;
        append_replacement(t);
        if (!alone) append_byte(t, c); /* it broke a sequence off, and may begin another */
    }
}

/* Everything up to the last character that is not white space. */
static void send(text_out *t)
{
    size_t end = t->len;
    while (end > t->sent && is_space(t->s->text[end - 1]))
        end--;
    if (end == t->sent) return;
    if (!t->stopped && t->options->on_text)
        t->stopped = !t->options->on_text(t->options->user, t->s->text + t->sent, end - t->sent);
    t->sent = end;
}

static void append_token(text_out *t, uint32_t id)
{
    const size_t n = sq_detokenize(t->s->model->tokenizer, id, t->s->piece, t->s->piece_bytes);
    for (size_t i = 0; i < n; i++)
        append_byte(t, t->s->piece[i]);
    send(t);
}

static void finish_text(text_out *t)
{
    if (t->n_open) append_replacement(t);
    send(t);
    t->len = t->sent;
    t->s->text[t->len] = '\0';
}

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
    return SQUINT_OK;
}

/* Ids of the prompt, the image's place filled with as many image tokens as there are vision tokens. */
static squint_err build_prompt(squint_session *s, const char *prompt, uint32_t *n_ids, squint_msg *msg)
{
    const squint_model *const m = s->model;
    if (prompt && strlen(prompt) > s->options.max_prompt)
        return sq_fail(msg, SQUINT_ERR_LIMIT, "the prompt has %zu bytes; this session takes %u", strlen(prompt),
                       s->options.max_prompt);
    size_t n = 0;
    const squint_err err = sq_prompt_ids(m->tokenizer, m->template_name, prompt, s->token_scratch,
                                         s->token_scratch_bytes, s->ids, s->limits.max_rows, &n, msg);
    if (err) return err;
    const size_t expanded = n - 1 + s->n_vision;
    const uint32_t limit =
        m->max_expanded && m->max_expanded < s->limits.max_rows ? m->max_expanded : s->limits.max_rows;
    if (expanded > limit)
        return sq_fail(msg, SQUINT_ERR_LIMIT, "the prompt has %zu tokens with the image's; the model takes %u",
                       expanded, limit);
    const size_t image = sq_prompt_expand(s->ids, n, s->n_vision);
    for (unsigned i = 0; i < s->n_grids; i++)
        s->grids[i].first += (unsigned)image;
    *n_ids = (uint32_t)expanded;
    return SQUINT_OK;
}

static squint_err generate(squint_session *s, text_out *t, sq_sampler *sampler, unsigned max_tokens, squint_result *r,
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
        append_token(t, id);
        if (sq_session_stopped(s, SQUINT_STAGE_DECODE, r->n_tokens, max_tokens) || t->stopped)
            return sq_fail(msg, SQUINT_ERR_CANCELLED, "cancelled");
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
    text_out text = {.s = s, .options = o};
    sq_sampler sampler = {.temperature = o->temperature, .top_k = o->top_k, .top_p = o->top_p, .min_p = o->min_p};
    sq_sampler_seed(&sampler, o->seed);
    unsigned max_tokens = o->max_tokens ? o->max_tokens : s->options.max_tokens;
    if (max_tokens > s->options.max_tokens) max_tokens = s->options.max_tokens;

    sq_session_reset(s);
    s->text[0] = '\0';
    if ((err = build_prompt(s, o->prompt, &n_ids, msg))) return err;
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
    finish_text(&text);
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
