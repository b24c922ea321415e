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

/* One dot product a routable token, on the residual stream in float32. */
static void route(const sq_pass *p, const sq_decoder_layer *w)
{
    sq_llava_state *const state = p->state;
    const sq_decoder *const net = p->net;
    for (uint32_t i = 0; i < p->n_targets; i++) {
        const float *const x = state->x + (size_t)state->targets[i] * net->d;
        state->scores[i] = p->s->model->kernels->dot(w->router_w, x, net->d) + w->router_b;
    }
    sq_route_weights(net->norm, net->norm_scale, net->norm_bias, state->scores, state->weights, p->n_targets);
}

/*
 * The k best vision tokens join the text, in sequence order. Rows that are neither are skipped, which
 * costs them one multiplication.
 */
static squint_err select(const sq_pass *p, const sq_decoder_layer *w, sq_run *run, uint32_t *n_vision, squint_msg *msg)
{
    sq_llava_state *const state = p->state;
    const uint32_t k = sq_route_count(p->n_targets, w->ratio);
    const sq_kernels *const kernels = p->s->model->kernels;
    const squint_err err = sq_route_top_k(kernels, state->scores, p->n_targets, k, state->keys, state->chosen, msg);
    if (err) return err;
    uint32_t m = 0, target = 0, chosen = 0;
    for (uint32_t row = 0; row < p->n; row++) {
        const bool is_target = target < p->n_targets && state->targets[target] == row;
        const bool is_chosen = is_target && chosen < k && state->chosen[chosen] == target;
        if (is_target && !is_chosen) {
            kernels->scale(state->x + (size_t)row * p->net->d, state->weights[target], p->net->d);
        } else {
            state->kept_weight[m] = is_target ? state->weights[target] : 1.0f;
            state->kept[m++] = row;
        }
        target += is_target;
        chosen += is_chosen;
    }
    *run = (sq_run){.m = m, .rows = state->kept, .mlp_weight = state->kept_weight};
    *n_vision = k;
    return SQUINT_OK;
}

squint_err sq_mod_layer_run(const sq_pass *p, uint32_t layer, squint_msg *msg)
{
    const sq_decoder_layer *const w = &p->net->layers[layer];
    sq_run run;
    uint32_t n_vision;
    route(p, w);
    sq_trace(p->s, SQ_TRACE_SCORES, (int)layer, p->state->scores, 1, p->n_targets);
    sq_trace(p->s, SQ_TRACE_WEIGHTS, (int)layer, p->state->weights, 1, p->n_targets);
    const squint_err err = select(p, w, &run, &n_vision, msg);
    if (err) return err;
    sq_trace(p->s, SQ_TRACE_KEPT, (int)layer, run.rows, 1, run.m);
    p->s->kept[layer] += n_vision;
    sq_decoder_layer_run(p, layer, &run); /* gathers these rows and scatters into them */
    return SQUINT_OK;
}
