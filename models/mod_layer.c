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
 */
#include "models/llava.h"

enum { CHUNK_ROWS = 16 }; /* 256 KiB at 7B shape */

/* Routable rows to reweight, to score, or both while they are in the cache. */
typedef struct row_job {
    const sq_pass *p;
    uint32_t n;
    const uint32_t *which; /* [n] indices into targets, or NULL for all n */
    bool reweight;
    const sq_decoder_layer *router; /* whose scores; NULL: none */
} row_job;

static void row_chunk(void *ctx, unsigned chunk, unsigned worker)
{
    (void)worker;
    const row_job *const job = ctx;
    const sq_kernels *const kernels = job->p->s->model->kernels;
    const sq_llava_state *const state = job->p->state;
    const size_t d = job->p->net->d;
    for (uint32_t i = chunk * CHUNK_ROWS; i < job->n && i < (chunk + 1) * CHUNK_ROWS; i++) {
        const uint32_t target = job->which ? job->which[i] : i;
        float *const x = state->x + state->targets[target] * d;
        if (job->reweight) kernels->scale(x, state->weights[target], d);
        if (job->router) state->scores[target] = kernels->dot(job->router->router_w, x, d) + job->router->router_b;
    }
}

static void visit_rows(const row_job *job)
{
    sq_pool_run(job->p->s->pool, (job->n + CHUNK_ROWS - 1) / CHUNK_ROWS, row_chunk, (void *)job);
}

/*
 * One dot product a routable token, on the residual stream in float32. A routed layer before this one has scored the
 * rows that it skipped: those that it ran are left.
 */
static void route(const sq_pass *p, uint32_t layer)
{
    const sq_decoder *const net = p->net;
    const sq_decoder_layer *const w = &net->layers[layer];
    row_job job = {.p = p, .n = p->n_targets, .router = w};
    if (layer > 0 && w[-1].is_mod) {
        job.n = sq_route_count(p->n_targets, w[-1].ratio);
        job.which = p->state->chosen;
    }
    visit_rows(&job);
    sq_route_weights(net->norm, net->norm_scale, net->norm_bias, p->state->scores, p->state->weights, p->n_targets);
}

/* The k chosen vision tokens join the text, in sequence order. */
static sq_run keep_rows(const sq_pass *p, uint32_t k)
{
    sq_llava_state *const state = p->state;
    uint32_t m = 0, target = 0, chosen = 0;
    for (uint32_t row = 0; row < p->n; row++) {
        const bool is_target = target < p->n_targets && state->targets[target] == row;
        const bool is_chosen = is_target && chosen < k && state->chosen[chosen] == target;
        if (is_target && !is_chosen) {
            state->skipped[target - chosen] = target;
        } else {
            state->kept_weight[m] = is_target ? state->weights[target] : 1.0f;
            state->kept[m++] = row;
        }
        target += is_target;
        chosen += is_chosen;
    }
    return (sq_run){.m = m, .rows = state->kept, .mlp_weight = state->kept_weight};
}

/* Skipped rows cost one multiplication, and the score of the next layer. */
static void skip_rows(const sq_pass *p, uint32_t layer, uint32_t n_skipped)
{
    const sq_decoder *const net = p->net;
    const bool next_routes = layer + 1 < net->n_layers && net->layers[layer + 1].is_mod;
    visit_rows(&(row_job){.p = p,
                          .n = n_skipped,
                          .which = p->state->skipped,
                          .reweight = true,
                          .router = next_routes ? &net->layers[layer + 1] : NULL});
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
    skip_rows(p, layer, p->n_targets - k);
    sq_trace(p->s, SQ_TRACE_KEPT, (int)layer, run.rows, 1, run.m);
    p->s->kept[layer] += k;
    sq_decoder_layer_run(p, layer, &run); /* gathers these rows and scatters into them */
    return SQUINT_OK;
}
