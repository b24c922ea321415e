/*
 * Sessions: their memory, their sequence, and the verbs that move it on.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/engine.h"

#include <math.h>
#include <string.h>

enum {
    DEFAULT_MAX_TOKENS = 64,
    DEFAULT_MAX_PROMPT = 256,
    LARGEST_MAX_TOKENS = 1 << 16,
    LARGEST_MAX_PROMPT = 1 << 20,
    MAX_THREADS = 256,
    LARGEST_KEEP = 1000,
    ALIGN = 64,
};

/* ---- limits ---- */

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

static squint_err check_options(const squint_session_options *in, squint_session_options *out, squint_msg *msg)
{
    *out = in ? *in : (squint_session_options){0};
    if (out->threads > MAX_THREADS)
        return sq_fail(msg, SQUINT_ERR_ARGUMENT, "threads: %u is not from 0 to %d", out->threads, MAX_THREADS);
    if (out->max_tokens > LARGEST_MAX_TOKENS)
        return sq_fail(msg, SQUINT_ERR_ARGUMENT, "max_tokens: %u is not from 0 to %d", out->max_tokens,
                       LARGEST_MAX_TOKENS);
    if (out->max_prompt > LARGEST_MAX_PROMPT)
        return sq_fail(msg, SQUINT_ERR_ARGUMENT, "max_prompt: %u is not from 0 to %d", out->max_prompt,
                       LARGEST_MAX_PROMPT);
    if (out->kv < SQUINT_KV_AUTO || out->kv > SQUINT_KV_Q8)
        return sq_fail(msg, SQUINT_ERR_ARGUMENT, "kv: %d is not a kind of KV cache", (int)out->kv);
    if (!(out->keep >= 0 && out->keep <= LARGEST_KEEP))
        return sq_fail(msg, SQUINT_ERR_ARGUMENT, "keep: %g is not from 0 to %d", (double)out->keep, LARGEST_KEEP);
    if (out->keep == 0) out->keep = 1.0f;
    if (!out->threads) out->threads = min_u32(sq_cpu_count(), MAX_THREADS);
    if (!out->max_tokens) out->max_tokens = DEFAULT_MAX_TOKENS;
    if (!out->max_prompt) out->max_prompt = DEFAULT_MAX_PROMPT;
    return SQUINT_OK;
}

sq_kv_type sq_kv_of(const squint_model *m, squint_kv asked)
{
    switch (asked) {
    case SQUINT_KV_AUTO:
        return m->float_decoder ? SQ_KV_F32 : SQ_KV_F16;
    case SQUINT_KV_F16:
        return SQ_KV_F16;
    case SQUINT_KV_F32:
        return SQ_KV_F32;
    case SQUINT_KV_Q8:
        return SQ_KV_Q8;
    }
    return SQ_KV_F16; /* not reached: options are checked */
}

static sq_limits limits_of(const squint_model *m, const squint_session_options *o)
{
    const size_t prompt = sq_prompt_max_ids(o->max_prompt) + m->n_vision;
    const uint32_t rows = (uint32_t)(prompt < m->n_ctx ? prompt : m->n_ctx);
    return (sq_limits){
        .max_rows = rows,
        .max_tokens = min_u32(rows + o->max_tokens, m->n_ctx),
        .max_logits = 1,
        .max_vision = m->n_vision,
        .kv = sq_kv_of(m, o->kv),
    };
}

/* ---- memory ---- */

static void plan_caption(squint_session *s, sq_arena *arena)
{
    const squint_model *const m = s->model;
    if (!m->tokenizer) return; /* a synthetic model writes no text */
    s->ids = sq_take(arena, s->limits.max_rows, sizeof *s->ids);
    s->tokens = sq_take(arena, s->options.max_tokens, sizeof *s->tokens);
    s->piece_bytes = sq_tokenizer_max_piece(m->tokenizer);
    s->piece = sq_take(arena, s->piece_bytes, 1);
    /* An invalid byte becomes U+FFFD, three bytes. */
    s->text = sq_take(arena, (size_t)s->options.max_tokens + 1, 3 * s->piece_bytes);
    s->token_scratch_bytes = sq_prompt_scratch(s->options.max_prompt);
    s->token_scratch = sq_take(arena, s->token_scratch_bytes, 1);
    s->candidates = sq_take(arena, m->n_vocab, sizeof *s->candidates);
}

static void plan_routes(squint_session *s, sq_arena *arena)
{
    s->scores = sq_take(arena, s->model->n_layers, s->limits.max_tokens * sizeof *s->scores);
    s->weights = sq_take(arena, s->model->n_layers, s->limits.max_tokens * sizeof *s->weights);
}

static void plan(squint_session *s)
{
    const squint_model *const m = s->model;
    sq_memory *const memory = &s->memory;
    sq_arena *const host = &memory->host;
    const size_t n_logits = s->limits.max_logits, logit_bytes = m->n_vocab * sizeof *s->logits;
    s->pixels = sq_take_unset(host, m->pixel_floats, sizeof *s->pixels);
    s->vision = sq_take_unset(&memory->device, s->limits.max_vision, m->d * sizeof *s->vision);
    s->logits = sq_take(host, n_logits, logit_bytes);
    s->device_logits = sq_take_mirror(memory, s->logits, n_logits, logit_bytes);
    s->kept = sq_take(host, m->n_layers, sizeof *s->kept);
    if (s->options.routes) plan_routes(s, host);
    plan_caption(s, host);
    s->compute.kernels = m->kernels;
    m->family->plan(s, memory);
}

/* Both arenas' sizes; false when they are too large to count. */
static bool count_memory(squint_session *s)
{
    s->memory = (sq_memory){.device = {.remote = s->model->device_ops != NULL}};
    plan(s);
    return !s->memory.host.full && !s->memory.device.full;
}

/* Of the allocator: the host's arena, and behind it the other, unless a device has it. */
static bool block_bytes(const squint_session *s, size_t *out)
{
    const sq_memory *const memory = &s->memory;
    *out = memory->host.used;
    return (memory->device.remote || sq_add(*out, memory->device.used, out)) && sq_add(*out, ALIGN, out);
}

/* false: the options are not valid. */
static bool foresee(squint_session *s, const squint_model *model, const squint_session_options *options)
{
    *s = (squint_session){.model = model};
    if (check_options(options, &s->options, NULL) || model->family->schedule(s, NULL)) return false;
    s->limits = limits_of(model, &s->options);
    return true;
}

size_t squint_session_bytes(const squint_model *model, const squint_session_options *options)
{
    squint_session s;
    if (!foresee(&s, model, options)) return 0;
    size_t bytes;
    const size_t rest = sizeof s + sq_pool_bytes(s.options.threads);
    return count_memory(&s) && block_bytes(&s, &bytes) && sq_add(bytes, rest, &bytes) ? bytes : SIZE_MAX;
}

size_t squint_session_device_bytes(const squint_model *model, const squint_session_options *options)
{
    squint_session s;
    if (!model->device_ops || !foresee(&s, model, options)) return 0;
    return count_memory(&s) ? s.memory.device.used : SIZE_MAX;
}

static squint_err take_device_memory(squint_session *s, size_t need, squint_msg *msg)
{
    const squint_model *const m = s->model;
    s->device_block = m->device_ops->alloc(m->device, need ? need : 1);
    if (s->device_block) return SQUINT_OK;
    return sq_fail(msg, SQUINT_ERR_NOMEM, "device %s: no memory for a session: %zu MiB", m->device_ops->name,
                   need >> 20);
}

static squint_err take_memory(squint_session *s, squint_msg *msg)
{
    const bool counted = count_memory(s), remote = s->memory.device.remote;
    const size_t host = s->memory.host.used, device = s->memory.device.used;
    if (counted && block_bytes(s, &s->block_bytes)) s->block = sq_alloc(&s->alloc, s->block_bytes);
    if (!s->block)
        return sq_fail(msg, SQUINT_ERR_NOMEM, "no memory for a session: %zu MiB; ask for a shorter prompt or caption",
                       (host + (remote ? 0 : device)) >> 20);
    if (remote) {
        const squint_err err = take_device_memory(s, device, msg);
        if (err) return err;
    }
    uint8_t *const block = s->block, *const start = block + (ALIGN - (uintptr_t)block % ALIGN) % ALIGN;
    s->memory.host = (sq_arena){.base = start, .size = host};
    s->memory.device = (sq_arena){.base = remote ? s->device_block : start + host, .size = device, .remote = remote};
    plan(s);
    assert(!s->memory.host.full && s->memory.host.used == host);
    assert(!s->memory.device.full && s->memory.device.used == device);
    return SQUINT_OK;
}

squint_err sq_session_open_limits(squint_session **out, const squint_model *model,
                                  const squint_session_options *options, const sq_limits *limits, squint_msg *msg)
{
    *out = NULL;
    squint_session_options checked;
    squint_err err = check_options(options, &checked, msg);
    if (err) return err;
    squint_session *s = sq_alloc(&model->alloc, sizeof *s);
    if (!s) return sq_fail(msg, SQUINT_ERR_NOMEM, "no memory for a session");
    *s = (squint_session){.model = model, .alloc = model->alloc, .options = checked};
    s->limits = limits ? *limits : limits_of(model, &checked);
    s->n_vision = s->n_vision_base = model->n_vision_base;

    if ((err = model->family->schedule(s, msg))) goto fail;
    s->options.schedule = NULL; /* the caller's, which may be gone tomorrow */
    if ((err = take_memory(s, msg))) goto fail;
    if ((err = sq_compute_open(&s->compute, model, msg))) goto fail;
    if ((err = sq_pool_open(&s->pool, checked.threads, &s->alloc, msg))) goto fail;
    s->compute.pool = s->pool;
    if ((err = model->family->prepare(s, msg))) goto fail;
    sq_session_reset(s);
    *out = s;
    return SQUINT_OK;
fail:
    squint_session_close(&s);
    return err;
}

squint_err squint_session_open(squint_session **out, const squint_model *model, const squint_session_options *options,
                               squint_msg *msg)
{
    return sq_session_open_limits(out, model, options, NULL, msg);
}

void squint_session_close(squint_session **session)
{
    squint_session *const s = *session;
    if (!s) return;
    sq_pool_close(&s->pool);
    sq_compute_close(&s->compute);
    if (s->device_block) s->model->device_ops->free(s->model->device, s->device_block);
    const squint_allocator a = s->alloc;
    sq_free(&a, s->block, s->block_bytes);
    sq_free(&a, s, sizeof *s);
    *session = NULL;
}

unsigned squint_session_threads(const squint_session *session) { return session->options.threads; }

/* ---- the sequence ---- */

void squint_session_cancel(squint_session *session) { atomic_store(&session->cancel, true); }

bool sq_session_stopped(squint_session *s, squint_stage stage, unsigned done, unsigned total)
{
    if (s->on_progress && !s->on_progress(s->progress_user, stage, done, total)) atomic_store(&s->cancel, true);
    return atomic_load_explicit(&s->cancel, memory_order_relaxed);
}

static void forget_scores(squint_session *s)
{
    const size_t n = s->scores ? (size_t)s->model->n_layers * s->limits.max_tokens : 0;
    for (size_t i = 0; i < n; i++)
        s->scores[i] = s->weights[i] = NAN;
}

void sq_session_reset(squint_session *s)
{
    s->n_past = 0;
    s->n_routed = 0;
    s->broken = false;
    s->macs = s->macs_dense = 0;
    s->n_ids = 0;
    forget_scores(s);
    s->keep = 1.0f;
    for (uint32_t l = 0; l < s->model->n_layers; l++)
        s->kept[l] = 0;
    s->model->family->reset(s);
}

squint_err squint_session_measure(squint_session *session, squint_msg *msg)
{
    sq_session_reset(session);
    const squint_err err = session->model->family->measure(session, msg);
    sq_session_reset(session);
    return err;
}

squint_err sq_session_picture(squint_session *s, const uint8_t *rgb, uint32_t w, uint32_t h, size_t stride,
                              squint_msg *msg)
{
    if (!s->model->n_vision)
        return sq_fail(msg, SQUINT_ERR_UNSUPPORTED,
                       "this model has no vision tower; name its other file too (mmproj), or take one that has all");
    if (w < 1 || h < 1 || w > SQ_IMAGE_MAX_SIDE || h > SQ_IMAGE_MAX_SIDE || stride / 3 < w)
        return sq_fail(msg, SQUINT_ERR_ARGUMENT, "%u x %u pixels, %zu bytes a row: not a picture", w, h, stride);
    const squint_err err = s->model->family->picture(s, rgb, w, h, stride, msg);
    if (err || s->n_vision <= s->limits.max_vision) return err;
    return sq_fail(msg, SQUINT_ERR_LIMIT, "the picture has %u vision tokens; this session holds %u", s->n_vision,
                   s->limits.max_vision);
}

squint_err sq_session_encode(squint_session *s, squint_msg *msg)
{
    sq_session_reset(s);
    const squint_err err = s->model->family->encode(s, msg), device_err = sq_finish(&s->compute, err ? NULL : msg);
    return err ? err : device_err;
}

static squint_err check_pass(const squint_session *s, const uint32_t *ids, uint32_t n, uint32_t n_logits,
                             uint32_t *n_image, squint_msg *msg)
{
    *n_image = 0;
    if (s->broken) return sq_fail(msg, SQUINT_ERR_ARGUMENT, "the last pass failed; reset the session");
    for (uint32_t i = 0; i < n; i++) {
        if (ids[i] == SQ_IMAGE_TOKEN)
            ++*n_image;
        else if (ids[i] >= s->model->n_vocab)
            return sq_fail(msg, SQUINT_ERR_ARGUMENT, "token %u is not in a vocabulary of %u", ids[i],
                           s->model->n_vocab);
    }
    const sq_limits *const limits = &s->limits;
    const uint32_t text = s->n_past - s->n_routed + n - *n_image;
    if (!n || n > limits->max_rows || n_logits > n || n_logits > limits->max_logits || *n_image > limits->max_vision ||
        n > limits->max_tokens - s->n_past || text > limits->max_tokens - limits->max_vision)
        return sq_fail(msg, SQUINT_ERR_LIMIT,
                       "%u tokens after %u: this session holds %u in all, %u of them vision, %u a pass", n, s->n_past,
                       limits->max_tokens, limits->max_vision, limits->max_rows);
    if (*n_image && s->n_routed)
        return sq_fail(msg, SQUINT_ERR_ARGUMENT,
                       "all vision tokens of a sequence are routed together: give them in one pass");
    return SQUINT_OK;
}

squint_err sq_session_forward(squint_session *s, const uint32_t *ids, uint32_t n, uint32_t n_logits, squint_msg *msg)
{
    uint32_t n_image;
    squint_err err = check_pass(s, ids, n, n_logits, &n_image, msg);
    if (err) return err;
    s->broken = true; /* until all layers have run, their caches disagree */
    err = s->model->family->forward(s, ids, n, n_logits, msg);
    const squint_err device_err = sq_finish(&s->compute, err ? NULL : msg);
    if (err || device_err) return err ? err : device_err;
    s->n_past += n;
    s->n_routed += n_image;
    const size_t count = (size_t)n_logits * s->model->n_vocab;
    for (size_t i = 0; i < count; i++)
        if (!isfinite(s->logits[i]))
            return sq_fail(msg, SQUINT_ERR_NUMERIC, "the model's logits are not finite; its file may be damaged");
    s->broken = false;
    return SQUINT_OK;
}

squint_err sq_session_rewind(squint_session *s, uint32_t n_past, squint_msg *msg)
{
    if (s->broken) return sq_fail(msg, SQUINT_ERR_ARGUMENT, "the last pass failed; reset the session");
    if (n_past > s->n_past)
        return sq_fail(msg, SQUINT_ERR_ARGUMENT, "cannot rewind from %u tokens to %u", s->n_past, n_past);
    const squint_err err = s->model->family->rewind(s, n_past, msg);
    if (!err) s->n_past = n_past;
    return err;
}

size_t sq_session_kv_bytes(const squint_session *s)
{
    size_t entries = 0;
    for (uint32_t l = 0; l < s->model->n_layers; l++) {
        uint32_t n;
        s->model->family->kv_places(s, l, &n);
        entries += n;
    }
    return entries * s->model->family->kv_entry_bytes(s);
}

size_t sq_session_kv_bytes_dense(const squint_session *s)
{
    return (size_t)s->model->n_layers * s->n_past * s->model->family->kv_entry_bytes(s);
}

/* ---- what layers did with it ---- */

static uint32_t count_below(const uint32_t *places, uint32_t n, uint32_t end)
{
    uint32_t count = 0;
    while (count < n && places[count] < end)
        count++;
    return count;
}

squint_err squint_session_route(const squint_session *session, unsigned layer, squint_route *out, squint_msg *msg)
{
    const squint_session *const s = session;
    const sq_family *const family = s->model->family;
    *out = (squint_route){0};
    if (layer >= s->model->n_layers)
        return sq_fail(msg, SQUINT_ERR_ARGUMENT, "layer %u: the model has %u, counted from 0", layer,
                       s->model->n_layers);
    if (!s->n_ids || s->broken) return sq_fail(msg, SQUINT_ERR_ARGUMENT, "the session has no caption to tell of");
    uint32_t n;
    out->kept = family->kv_places(s, layer, &n);
    out->n_kept = n;
    out->n_kept_prompt = count_below(out->kept, n, s->n_ids);
    out->prefill_macs = family->layer_macs(s->model, out->n_kept_prompt, 0);
    out->decode_macs = family->layer_macs(s->model, n - out->n_kept_prompt, out->n_kept_prompt);
    out->kv_bytes = n * family->kv_entry_bytes(s);
    out->n_tokens = s->n_past;
    out->chooses = family->chooses(s->model, layer);
    if (!out->chooses || !s->scores) return SQUINT_OK;
    out->scores = s->scores + (size_t)layer * s->limits.max_tokens;
    out->weights = s->weights + (size_t)layer * s->limits.max_tokens;
    return SQUINT_OK;
}
