/*
 * What one session of squint eval makes of a picture.
 * SPDX-License-Identifier: MIT
 *
 * Each picture is run once: image, tower, prefill. Then captions are tried on that prefix: the model's own, token by
 * token, and each reference in one pass, its tokens taken off again afterwards (sq_session_rewind).
 */
#include "runtime/text.h"
#include "tools/squint/asked.h"
#include "tools/squint/cli.h"
#include "tools/squint/eval.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { DUMP_MAGIC = 0x53514C47 };

void eval_sums_add(eval_sums *all, const eval_sums *one)
{
    all->images += one->images;
    all->captions += one->captions;
    all->tokens += one->tokens;
    all->words += one->words;
    all->written += one->written;
    all->nll += one->nll;
    for (int i = 0; i < SQUINT_STAGE_COUNT; i++)
        all->ms[i] += one->ms[i];
    all->kv_bytes += one->kv_bytes;
    all->kv_bytes_dense += one->kv_bytes_dense;
    all->macs += one->macs;
    all->macs_dense += one->macs_dense;
}

/* ---- Opening ------------------------------------------------------------------------------- */

/* Between layers: a handler can cancel one session, and there may be several. */
static bool go_on(void *user, squint_stage stage, unsigned done, unsigned total)
{
    (void)user, (void)stage, (void)done, (void)total;
    return !cli_interrupted();
}

static void plan_dump(eval_session *e, uint32_t rows)
{
    const uint32_t n_layers = e->task->model->n_layers;
    e->ids = cli_alloc(rows, sizeof *e->ids);
    e->kept = cli_alloc(n_layers, sizeof *e->kept);
    e->n_kept = cli_alloc(n_layers, sizeof *e->n_kept);
    for (uint32_t l = 0; l < n_layers; l++)
        e->kept[l] = cli_alloc(rows, sizeof **e->kept);
}

squint_err eval_session_open(eval_session *e, const eval_task *task, const squint_session_options *options,
                             squint_msg *msg)
{
    const squint_model *const m = task->model;
    const size_t after = task->longest > task->max_tokens ? task->longest : task->max_tokens;
    const size_t total = task->most_prompt + after, max_piece = sq_tokenizer_max_piece(m->tokenizer);
    *e = (eval_session){.task = task};
    if (total > m->n_ctx)
        return sq_fail(msg, SQUINT_ERR_LIMIT, "%s: %u tokens of prompt and %zu of caption; the model's context is %u",
                       task->model_path, task->most_prompt, after, m->n_ctx);
    const uint32_t rows = task->most_prompt + (uint32_t)task->longest;
    const sq_limits limits = {.max_rows = rows,
                              .max_tokens = (uint32_t)total,
                              .max_logits = task->dumps ? rows : (uint32_t)task->longest + 1,
                              .max_vision = m->n_vision,
                              .kv = sq_kv_of(m, options->kv)};
    e->prompt = cli_alloc(task->most_prompt, sizeof *e->prompt);
    e->first = cli_alloc(m->n_vocab, sizeof *e->first);
    e->piece = cli_alloc(max_piece, 1);
    e->text = cli_alloc((size_t)task->max_tokens + 1, 3 * max_piece);
    if (task->dumps) plan_dump(e, rows);
    const squint_err err = sq_session_open_limits(&e->session, m, options, &limits, msg);
    if (!err) e->session->on_progress = go_on;
    return err;
}

void eval_session_close(eval_session *e)
{
    for (uint32_t l = 0; e->kept && l < e->task->model->n_layers; l++)
        free(e->kept[l]);
    void *const parts[] = {e->prompt, e->first, e->piece, e->text, e->ids, e->kept, e->n_kept};
    for (size_t i = 0; i < SQ_COUNT(parts); i++)
        free(parts[i]);
    squint_session_close(&e->session);
}

/* ---- One picture --------------------------------------------------------------------------- */

static double lap(double *since)
{
    const double now = sq_now_ms(), ms = now - *since;
    *since = now;
    return ms;
}

static void expand_prompt(eval_session *e)
{
    const eval_task *const task = e->task;
    memcpy(e->prompt, task->words, task->n_words * sizeof *e->prompt);
    sq_prompt_expand(e->prompt, task->n_words, e->session->n_vision);
    e->n_prompt = task->n_words - 1 + e->session->n_vision;
}

static squint_err see(eval_session *e, const char *path, eval_sums *sums, squint_msg *msg)
{
    squint_session *const s = e->session;
    double clock = sq_now_ms();
    squint_err err = asked_picture(s, path, msg);
    if (err) return err;
    expand_prompt(e);
    sums->ms[SQUINT_STAGE_IMAGE] = lap(&clock);
    sq_session_reset(s);
    if ((err = sq_session_encode(s, msg))) return err;
    sums->ms[SQUINT_STAGE_TOWER] = lap(&clock);
    if ((err = sq_session_forward(s, e->prompt, e->n_prompt, 1, msg))) return err;
    sums->ms[SQUINT_STAGE_PREFILL] = lap(&clock);
    memcpy(e->first, s->logits, s->model->n_vocab * sizeof *e->first);
    sums->kv_bytes = (double)sq_session_kv_bytes(s);
    sums->kv_bytes_dense = (double)sq_session_kv_bytes_dense(s);
    sums->macs = s->macs;
    sums->macs_dense = s->macs_dense;
    return SQUINT_OK;
}

static squint_err check_interrupt(squint_msg *msg)
{
    return cli_interrupted() ? sq_fail(msg, SQUINT_ERR_CANCELLED, "cancelled") : SQUINT_OK;
}

/* The model's own words, greedily; they end as those of squint_caption_file(). */
static squint_err write_caption(eval_session *e, eval_sums *sums, squint_msg *msg)
{
    squint_session *const s = e->session;
    const squint_model *const m = s->model;
    const uint32_t eos = sq_tokenizer_eos(m->tokenizer);
    const size_t max_piece = sq_tokenizer_max_piece(m->tokenizer);
    sq_text text = {.text = e->text, .stop = sq_prompt_stop(m->template_name)};
    sq_sampler greedy = {0};
    double clock = sq_now_ms();
    squint_err err = SQUINT_OK;
    uint32_t id = sq_sample(&greedy, e->first, m->n_vocab, NULL);
    while (!err && id != eos) {
        sq_text_append(&text, e->piece, sq_detokenize(m->tokenizer, id, e->piece, max_piece));
        if (++sums->written == e->task->max_tokens || text.ended) break;
        err = check_interrupt(msg);
        if (!err) err = sq_session_forward(s, &id, 1, 1, msg);
        if (!err) id = sq_sample(&greedy, s->logits, m->n_vocab, NULL);
    }
    sq_text_finish(&text);
    sums->ms[SQUINT_STAGE_DECODE] = lap(&clock);
    return err ? err : sq_session_rewind(s, e->n_prompt, msg);
}

/* -log softmax(logits)[id] */
static double surprise(const float *logits, uint32_t n, uint32_t id)
{
    float most = logits[0];
    double sum = 0;
    for (uint32_t i = 1; i < n; i++)
        most = logits[i] > most ? logits[i] : most;
    for (uint32_t i = 0; i < n; i++)
        sum += exp((double)logits[i] - (double)most);
    return log(sum) + (double)most - (double)logits[id];
}

/* Row i of a reference's pass foretells token i + 1; the prompt's last row foretold token 0. */
static squint_err score_reference(eval_session *e, const reference *r, eval_sums *sums, squint_msg *msg)
{
    squint_session *const s = e->session;
    const uint32_t n_vocab = s->model->n_vocab, n = (uint32_t)r->n_ids, eos = sq_tokenizer_eos(s->model->tokenizer);
    squint_err err = check_interrupt(msg);
    if (!err && n) err = sq_session_forward(s, r->ids, n, n, msg);
    if (err) return err;
    double nll = surprise(e->first, n_vocab, n ? r->ids[0] : eos);
    for (uint32_t i = 0; i < n; i++)
        nll += surprise(s->logits + (size_t)i * n_vocab, n_vocab, i + 1 < n ? r->ids[i + 1] : eos);
    sums->nll += nll;
    sums->tokens += r->n_ids + 1;
    sums->words += r->n_words;
    sums->captions++;
    return sq_session_rewind(s, e->n_prompt, msg);
}

/* ---- Logits for comparison with another program -------------------------------------------- */

static void on_trace(void *user, sq_trace_what what, int layer, const void *data, uint32_t rows, uint32_t cols)
{
    eval_session *const e = user;
    if (what != SQ_TRACE_KEPT || layer < 0 || (uint32_t)layer >= e->task->model->n_layers) return;
    const size_t n = (size_t)rows * cols;
    memcpy(e->kept[layer], data, n * sizeof **e->kept);
    e->n_kept[layer] = (uint32_t)n;
}

/* Prompt and first reference in one pass; the picture's vision tokens are those that see() left. Layers that no trace
 * speaks of are dense. */
static squint_err run_dumped(eval_session *e, const reference *r, squint_msg *msg)
{
    squint_session *const s = e->session;
    const uint32_t n = e->n_dumped = e->n_prompt + (uint32_t)r->n_ids;
    memcpy(e->ids, e->prompt, e->n_prompt * sizeof *e->ids);
    memcpy(e->ids + e->n_prompt, r->ids, r->n_ids * sizeof *e->ids);
    for (uint32_t l = 0; l < s->model->n_layers; l++) {
        e->n_kept[l] = n;
        for (uint32_t i = 0; i < n; i++)
            e->kept[l][i] = i;
    }
    s->trace = on_trace;
    s->trace_user = e;
    s->trace_mute = ~(1u << SQ_TRACE_KEPT);
    sq_session_reset(s);
    const squint_err err = sq_session_forward(s, e->ids, n, n, msg);
    s->trace = NULL;
    return err;
}

static void put_u32(FILE *f, uint32_t v)
{
    const uint8_t bytes[] = {(uint8_t)v, (uint8_t)(v >> 8), (uint8_t)(v >> 16), (uint8_t)(v >> 24)};
    fwrite(bytes, sizeof bytes, 1, f);
}

static void put_f32(FILE *f, float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    put_u32(f, bits);
}

void eval_session_dump(const eval_session *e, FILE *f)
{
    const squint_model *const m = e->task->model;
    put_u32(f, DUMP_MAGIC);
    put_u32(f, e->n_dumped);
    put_u32(f, m->n_vocab);
    put_u32(f, m->n_layers);
    for (uint32_t l = 0; l < m->n_layers; l++) {
        put_u32(f, e->n_kept[l]);
        for (uint32_t i = 0; i < e->n_kept[l]; i++)
            put_u32(f, e->kept[l][i]);
    }
    for (size_t i = 0; i < (size_t)e->n_dumped * m->n_vocab; i++)
        put_f32(f, e->session->logits[i]);
}

/* ---- All of it ----------------------------------------------------------------------------- */

squint_err eval_session_run(eval_session *e, const char *path, const reference *references, size_t n, eval_sums *sums,
                            squint_msg *msg)
{
    *sums = (eval_sums){.images = 1};
    squint_err err = see(e, path, sums, msg);
    if (!err && !e->task->nll_only) err = write_caption(e, sums, msg);
    for (size_t i = 0; !err && i < n; i++)
        err = score_reference(e, &references[i], sums, msg);
    return !err && e->task->dumps ? run_dumped(e, &references[0], msg) : err;
}
