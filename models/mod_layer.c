/*
 * A Mixture-of-Depths layer as p-MoD trains it (arXiv 2412.04449; its released code where the paper's
 * figure differs).
 * SPDX-License-Identifier: MIT
 *
 * The layer scores its vision tokens, runs the best and the text, and skips the rest:
 *
 *   kept text      x + attention, then + MLP
 *   kept vision    x + attention, then + w * MLP
 *   skipped        w * x
 *
 * Kept tokens attend only kept tokens and keep their positions in the sequence.
 *
 * Most rows are skipped, by layer after layer, and all that these need of them is a score each. So a skipped row stays
 * in memory as it is and only its factor changes (sq_lag): the score is router . (factor * x) = factor * (router . x),
 * and the products with the routers of SQ_DOTS layers are taken in one reading of the row. It is multiplied by its
 * factor when a layer runs it.
 */
#include "models/llava.h"

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

/* ---- scores ---- */

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

/* A score a routable token, on the residual stream in float32. */
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

/* The k chosen vision tokens join the text, in sequence order. */
static sq_run keep_rows(const sq_pass *p, uint32_t k)
{
    sq_llava_state *const state = p->state;
    row_job job = {.p = p};
    uint32_t m = 0, target = 0, chosen = 0;
    for (uint32_t row = 0; row < p->n; row++) {
        const bool is_target = target < p->n_targets && state->targets[target] == row;
        const bool is_chosen = is_target && chosen < k && state->chosen[chosen] == target;
        if (is_target && !is_chosen) {
            state->lag[target].factor *= state->weights[target];
        } else {
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
    return (sq_run){.m = m, .rows = state->kept, .mlp_weight = state->kept_weight};
}

squint_err sq_mod_layer_run(const sq_pass *p, uint32_t layer, squint_msg *msg)
{
    sq_llava_state *const state = p->state;
    route(p, layer);
    sq_trace(p->s, SQ_TRACE_SCORES, (int)layer, state->scores, 1, p->n_targets);
    sq_trace(p->s, SQ_TRACE_WEIGHTS, (int)layer, state->weights, 1, p->n_targets);
    const uint32_t k = sq_route_count(p->n_targets, p->net->layers[layer].ratio);
    const squint_err err =
        sq_route_top_k(p->s->model->kernels, state->scores, p->n_targets, k, state->keys, state->chosen, msg);
    if (err) return err;
    const sq_run run = keep_rows(p, k);
    sq_trace(p->s, SQ_TRACE_KEPT, (int)layer, run.rows, 1, run.m);
    p->s->kept[layer] += k;
    sq_decoder_layer_run(p, layer, &run); /* gathers these rows and scatters into them */
    return SQUINT_OK;
}
