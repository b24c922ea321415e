/*
 * A Mixture-of-Depths layer: scores its tokens, runs some and skips the rest. What sq_mode tells apart is decided here:
 * who has a score, who stays, where the weight goes. models/modes.c has the table of modes.
 * SPDX-License-Identifier: MIT
 *
 * p-MoD (arXiv 2412.04449; its released code where the paper's figure differs) keeps the best vision tokens and the
 * text; gamma-MoD (arXiv 2410.13859) decides for every token:
 *
 *                  p-MoD                              gamma-MoD
 *   kept text      x + attention, then + MLP          x + attention, then + w * MLP
 *   kept vision    x + attention, then + w * MLP      the same
 *   skipped        w * x                              x
 *
 * Kept tokens attend only kept tokens.
 *
 * Most rows are skipped, by layer after layer, and all that these need of them is a score each. So a skipped row stays
 * in memory as it is and only its factor changes (sq_lag): the score is router . (factor * x) = factor * (router . x),
 * and the products with the routers of SQ_DOTS layers are taken in one reading of the row. It is multiplied by its
 * factor when a layer runs it. gamma's factors stay 1; its scores are divided by the row's rms, the weights of the norm
 * being in the routers.
 */
#include "models/llava.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { CHUNK_ROWS = 16 }; /* 256 KiB at 7B shape */

/* Rows to visit: those of the first n listed targets. */
typedef struct row_job {
    const sq_pass *p;
    uint32_t n;
    uint32_t end;                  /* scoring: the first layer without a score */
    const float *routers[SQ_DOTS]; /* scoring: of layer l at l % SQ_DOTS */
} row_job;

static float *row_of(const sq_pass *p, uint32_t target)
{
    return p->state->x + (size_t)p->state->targets[target] * p->net->d;
}

static const uint32_t *chunk_of(const row_job *job, unsigned chunk, uint32_t *n)
{
    const uint32_t first = chunk * CHUNK_ROWS;
    *n = job->n - first < CHUNK_ROWS ? job->n - first : CHUNK_ROWS;
    return job->p->state->listed + first;
}

static void visit_rows(const row_job *job, sq_job_fn *fn)
{
    sq_pool_run(job->p->s->pool, (job->n + CHUNK_ROWS - 1) / CHUNK_ROWS, fn, (void *)job);
}

/* What generation does: a token of text alone. */
static bool is_decode(const sq_pass *p) { return p->n == 1 && !p->n_vision; }

/* ---- who has a score ---- */

uint32_t sq_max_targets(const sq_limits *limits, const sq_decoder *net)
{
    return net->mode.score == SQ_SCORE_ATTN_NORM ? limits->max_rows : limits->max_vision;
}

/* In gamma's training the first tokens of a sequence, as many as the system's words and the image take, compete for
 * what there is room for; a prompt that is no longer has no image. What is appended later is past them. */
static bool has_region(const sq_pass *p)
{
    const sq_mode *const mode = &p->net->mode;
    return mode->select == SQ_SELECT_CAPACITY && mode->target == SQ_TARGET_ALL && !p->s->n_past && p->n > mode->region;
}

/* A rewound sequence must not be one whose layers had chosen otherwise; and all vision tokens come in one pass. */
static uint32_t pooled_rows(const sq_pass *p)
{
    uint32_t rows = p->n;
    while (rows && p->ids[rows - 1] != SQ_IMAGE_TOKEN)
        rows--;
    return has_region(p) && rows < p->net->mode.region ? p->net->mode.region : rows;
}

/* The first vision tokens of a pass that are spared all routing: as many in every picture. */
static uint32_t spared(const squint_session *s, const sq_mode *mode, uint32_t n_vision)
{
    const uint32_t base = s->model->n_vision_base;
    if (mode->target != SQ_TARGET_VISION_HR) return 0;
    return base < n_vision ? base : n_vision;
}

void sq_mod_begin(sq_pass *p)
{
    sq_llava_state *const state = p->state;
    const sq_mode *const mode = &p->net->mode;
    uint32_t spare = spared(p->s, mode, p->n_vision);
    for (uint32_t i = 0; i < p->n && mode->score; i++) {
        const bool is_vision = p->ids[i] == SQ_IMAGE_TOKEN;
        if (mode->score == SQ_SCORE_ATTN_NORM || (is_vision && !spare)) state->targets[p->n_targets++] = i;
        spare -= is_vision && spare;
    }
    for (uint32_t i = 0; i < p->n_targets; i++)
        state->lag[i] = (sq_lag){.factor = 1.0f};
    const uint32_t pooled = pooled_rows(p);
    if (pooled) state->pooled_end = p->s->n_past + pooled;
}

/* ---- scores ---- */

/* 1 / rms, as the norm before attention has it. */
static float inverse_rms(const sq_pass *p, const float *x)
{
    const uint32_t d = p->net->d;
    return 1.0f / sqrtf(p->s->model->kernels->dot(x, x, d) / (float)d + p->net->eps);
}

static void score_chunk(void *ctx, unsigned chunk, unsigned worker)
{
    (void)worker;
    const row_job *const job = ctx;
    uint32_t n;
    const uint32_t *const targets = chunk_of(job, chunk, &n);
    const float *x[CHUNK_ROWS] = {0};
    float dots[CHUNK_ROWS][SQ_DOTS];
    for (uint32_t i = 0; i < n; i++)
        x[i] = row_of(job->p, targets[i]);
    job->p->s->model->kernels->dots(x, n, job->routers, job->p->net->d, dots);
    for (uint32_t i = 0; i < n; i++) {
        sq_lag *const lag = &job->p->state->lag[targets[i]];
        memcpy(lag->dots, dots[i], sizeof lag->dots);
        if (job->p->net->mode.score == SQ_SCORE_ATTN_NORM) {
            const float inverse = inverse_rms(job->p, x[i]);
            for (int j = 0; j < SQ_DOTS; j++)
                lag->dots[j] *= inverse;
        }
        lag->scored = job->end;
    }
}

/* The layers from this one on whose routers see a row unchanged if they skip it. */
static row_job score_job(const sq_pass *p, uint32_t layer)
{
    const sq_decoder *const net = p->net;
    row_job job = {.p = p, .end = layer};
    for (int j = 0; j < SQ_DOTS; j++)
        job.routers[j] = net->layers[layer].router_w;
    for (; job.end < net->n_layers && job.end < layer + SQ_DOTS && net->layers[job.end].is_mod; job.end++)
        job.routers[job.end % SQ_DOTS] = net->layers[job.end].router_w;
    return job;
}

/* A score a target, on the residual stream in float32. */
static void route(const sq_pass *p, uint32_t layer)
{
    const sq_decoder *const net = p->net;
    sq_llava_state *const state = p->state;
    row_job job = score_job(p, layer);
    for (uint32_t i = 0; i < p->n_targets; i++)
        if (state->lag[i].scored <= layer) state->listed[job.n++] = i;
    visit_rows(&job, score_chunk);
    for (uint32_t i = 0; i < p->n_targets; i++)
        state->scores[i] = state->lag[i].factor * state->lag[i].dots[layer % SQ_DOTS] + net->layers[layer].router_b;
    sq_route_weights(net->norm, net->norm_scale, net->norm_bias, state->scores, state->weights, p->n_targets);
}

/* What squint_session_route() tells. */
static void note_scores(const sq_pass *p, uint32_t layer)
{
    squint_session *const s = p->s;
    const sq_llava_state *const state = p->state;
    const size_t first = (size_t)layer * s->limits.max_tokens + s->n_past;
    for (uint32_t i = 0; s->scores && i < p->n_targets; i++) {
        s->scores[first + state->targets[i]] = state->scores[i];
        s->weights[first + state->targets[i]] = state->weights[i];
    }
}

/* ---- rows ---- */

static void settle_chunk(void *ctx, unsigned chunk, unsigned worker)
{
    (void)worker;
    const row_job *const job = ctx;
    uint32_t n;
    const uint32_t *const targets = chunk_of(job, chunk, &n);
    for (uint32_t i = 0; i < n; i++) {
        sq_lag *const lag = &job->p->state->lag[targets[i]];
        job->p->s->model->kernels->scale(row_of(job->p, targets[i]), lag->factor, job->p->net->d);
        *lag = (sq_lag){.factor = 1.0f};
    }
}

void sq_mod_settle(const sq_pass *p, uint32_t first_row)
{
    row_job job = {.p = p};
    for (uint32_t i = 0; i < p->n_targets; i++)
        if (p->state->targets[i] >= first_row && p->state->lag[i].factor != 1.0f) p->state->listed[job.n++] = i;
    visit_rows(&job, settle_chunk);
}

/* ---- who stays ---- */

uint32_t sq_mod_capacity(const squint_session *s, const sq_decoder *net, uint32_t layer)
{
    const sq_limits *const limits = &s->limits;
    const uint32_t text = limits->max_tokens - limits->max_vision, vision = limits->max_vision;
    const sq_mode *const mode = &net->mode;
    if (!net->layers[layer].is_mod) return limits->max_tokens;
    const uint32_t spare = spared(s, mode, vision), counted = sq_route_count(vision - spare, s->ratio[layer]);
    if (mode->select == SQ_SELECT_TOP_K) return text + spare + counted;
    if (mode->select == SQ_SELECT_CAPACITY && mode->target == SQ_TARGET_VISION)
        return text + vision - counted + (counted > 0); /* fewer may keep one more */
    return limits->max_tokens;                          /* data decides, or a prompt too short for skipping */
}

uint32_t sq_mod_rows(const squint_session *s, uint32_t layer, uint32_t n, uint32_t n_vision, float keep)
{
    const sq_decoder *const net = &sq_llava_of(s)->decoder;
    const sq_mode *const mode = &net->mode;
    const float ratio = sq_keep_ratio(s, layer, keep);
    if (!net->layers[layer].is_mod) return n;
    const uint32_t routed = n_vision - spared(s, mode, n_vision);
    if (mode->select == SQ_SELECT_TOP_K) return n - routed + sq_route_count(routed, ratio);
    return n - sq_route_count(mode->target == SQ_TARGET_VISION ? n_vision : n > mode->region ? mode->region : 0, ratio);
}

/* Scores among which protected tokens come first. */
static const float *rank(const sq_pass *p)
{
    const sq_mode *const mode = &p->net->mode;
    float *const ranks = p->state->ranks;
    for (uint32_t i = 0; i < p->n_targets; i++) {
        const uint32_t row = p->state->targets[i];
        const float z = p->state->scores[i];
        const bool competes = mode->target == SQ_TARGET_VISION ? p->ids[row] == SQ_IMAGE_TOKEN : row < mode->region;
        ranks[i] = isnan(z) ? z : !competes ? INFINITY : z > FLT_MAX ? FLT_MAX : z;
    }
    return ranks;
}

static squint_err choose_best(const sq_pass *p, const float *z, uint32_t k, uint32_t *n_chosen, squint_msg *msg)
{
    *n_chosen = k;
    return sq_route_top_k(p->s->model->kernels, z, p->n_targets, k, p->state->keys, p->state->chosen, msg);
}

static squint_err choose_above(const sq_pass *p, float threshold, bool at, uint32_t *n_chosen, squint_msg *msg)
{
    return sq_route_threshold(p->state->scores, p->n_targets, threshold, at, p->state->chosen, n_chosen, msg);
}

/* state->chosen: the targets that the layer runs. */
static squint_err choose(const sq_pass *p, uint32_t layer, uint32_t *n_chosen, squint_msg *msg)
{
    const sq_mode *const mode = &p->net->mode;
    const float *const z = p->state->scores;
    const float ratio = sq_keep_ratio(p->s, layer, p->s->keep);
    if (is_decode(p) && mode->decode == SQ_DECODE_ALWAYS) return choose_best(p, z, 1, n_chosen, msg);
    if (is_decode(p) && mode->decode == SQ_DECODE_THRESHOLD)
        return choose_above(p, mode->decode_threshold, true, n_chosen, msg);
    switch (mode->select) {
    case SQ_SELECT_TOP_K:
        return choose_best(p, z, sq_route_count(p->n_targets, ratio), n_chosen, msg);
    case SQ_SELECT_THRESHOLD:
        return choose_above(p, mode->prefill_threshold, mode->at_threshold, n_chosen, msg);
    case SQ_SELECT_CAPACITY:
        break;
    }
    const uint32_t competing = mode->target == SQ_TARGET_VISION ? p->n_vision : has_region(p) ? mode->region : 0;
    return choose_best(p, rank(p), p->n_targets - sq_route_count(competing, ratio), n_chosen, msg);
}

/* The chosen targets join the rows without a score, in sequence order. */
static sq_run keep_rows(const sq_pass *p, uint32_t layer, uint32_t n_chosen)
{
    const sq_mode *const mode = &p->net->mode;
    sq_llava_state *const state = p->state;
    row_job job = {.p = p};
    uint32_t m = 0, target = 0, chosen = 0;
    for (uint32_t row = 0; row < p->n; row++) {
        const bool is_target = target < p->n_targets && state->targets[target] == row;
        const bool is_chosen = is_target && chosen < n_chosen && state->chosen[chosen] == target;
        if (is_target && !is_chosen) {
            if (mode->weight == SQ_WEIGHT_MLP_SKIP) state->lag[target].factor *= state->weights[target];
        } else {
            p->s->kept[layer] += p->ids[row] == SQ_IMAGE_TOKEN;
            state->kept_weight[m] = is_target ? state->weights[target] : 1.0f;
            state->kept[m++] = row;
        }
        if (is_chosen) {
            state->lag[target].scored = 0;
            if (state->lag[target].factor != 1.0f) state->listed[job.n++] = target;
        }
        target += is_target;
        chosen += is_chosen;
    }
    visit_rows(&job, settle_chunk);
    return (sq_run){.m = m,
                    .rows = state->kept,
                    .mlp_weight = state->kept_weight,
                    .attn_weight = mode->weight == SQ_WEIGHT_ATTN_MLP ? state->kept_weight : NULL,
                    .compressed = is_decode(p) ? mode->decode_position == SQ_DECODE_LOCAL
                                               : mode->position == SQ_POSITION_COMPRESSED};
}

squint_err sq_mod_layer_run(const sq_pass *p, uint32_t layer, squint_msg *msg)
{
    sq_llava_state *const state = p->state;
    uint32_t n_chosen;
    route(p, layer);
    note_scores(p, layer);
    sq_trace(p->s, SQ_TRACE_SCORES, (int)layer, state->scores, 1, p->n_targets);
    sq_trace(p->s, SQ_TRACE_WEIGHTS, (int)layer, state->weights, 1, p->n_targets);
    const squint_err err = choose(p, layer, &n_chosen, msg);
    if (err) return err;
    const sq_run run = keep_rows(p, layer, n_chosen);
    sq_trace(p->s, SQ_TRACE_KEPT, (int)layer, run.rows, 1, run.m);
    sq_decoder_layer_run(p, layer, &run); /* gathers these rows and scatters into them */
    return SQUINT_OK;
}
