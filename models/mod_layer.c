/*
 * A Mixture-of-Depths layer: scores its tokens, runs some and skips the rest. What sq_mode tells apart is decided here:
 * who has a score, who stays, where the weight goes. models/modes.c has the table of modes, runtime/route.c what is
 * done to the rows. SPDX-License-Identifier: MIT
 *
 * p-MoD (arXiv 2412.04449; its released code where the paper's figure differs) keeps the best vision tokens and the
 * text; gamma-MoD (arXiv 2410.13859) decides for every token:
 *
 *                  p-MoD                              gamma-MoD
 *   kept text      x + attention, then + MLP          x + attention, then + w * MLP
 *   kept vision    x + attention, then + w * MLP      the same
 *   skipped        w * x                              x
 *
 * Kept tokens attend only kept tokens. gamma's scores are divided by the row's rms, the weights of the norm being in
 * the routers, and the factors of its skipped rows stay 1.
 */
#include "models/llava.h"

#include <string.h>

/* What generation does: a token of text alone. */
static bool is_decode(const sq_pass *p) { return p->n == 1 && !p->n_vision; }

/* ---- who has a score ---- */

uint32_t sq_max_targets(const sq_limits *limits, const sq_decoder *net)
{
    return net->mode.score == SQ_SCORE_ATTN_NORM ? limits->max_rows : limits->max_vision;
}

void sq_mod_plan(squint_session *s, const sq_decoder *net, sq_llava_state *state, sq_memory *memory)
{
    sq_arena *const host = &memory->host;
    sq_route *const r = &state->route;
    const size_t rows = s->limits.max_rows, max = sq_max_targets(&s->limits, net);
    state->targets = sq_take(host, max, sizeof *state->targets);
    state->competes = sq_take(host, max, sizeof *state->competes);
    state->scores = sq_take(host, max, sizeof *state->scores);
    state->weights = sq_take(host, max, sizeof *state->weights);
    state->lag = sq_take(host, max, sizeof *state->lag);
    state->host = (sq_route_host){.kept = sq_take(host, rows, sizeof(uint32_t)),
                                  .listed = sq_take(host, max, sizeof(uint32_t)),
                                  .chosen = sq_take(host, max, sizeof(uint32_t)),
                                  .keys = sq_take(host, max, sizeof(int32_t)),
                                  .ranks = sq_take(host, max, sizeof(float))};
    *r = (sq_route){.x = state->x,
                    .targets = sq_take_mirror(memory, state->targets, max, sizeof *r->targets),
                    .competes = sq_take_mirror(memory, state->competes, max, sizeof *r->competes),
                    .lag = sq_take_mirror(memory, state->lag, max, sizeof *r->lag),
                    .scores = sq_take_mirror(memory, state->scores, max, sizeof *r->scores),
                    .weights = sq_take_mirror(memory, state->weights, max, sizeof *r->weights),
                    .kept = sq_take_mirror(memory, state->host.kept, rows, sizeof *r->kept),
                    .kept_weight = sq_take_unset(&memory->device, rows, sizeof *r->kept_weight)};
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

/* What is spared, or is past the region, loses to nobody. */
static bool competes(const sq_pass *p, uint32_t row)
{
    const sq_mode *const mode = &p->net->mode;
    return mode->target == SQ_TARGET_VISION ? p->ids[row] == SQ_IMAGE_TOKEN : row < mode->region;
}

static void list_targets(sq_pass *p)
{
    sq_llava_state *const state = p->state;
    const sq_mode *const mode = &p->net->mode;
    uint32_t spare = spared(p->s, mode, p->n_vision);
    for (uint32_t i = 0; i < p->n && mode->score; i++) {
        const bool is_vision = p->ids[i] == SQ_IMAGE_TOKEN;
        if (mode->score == SQ_SCORE_ATTN_NORM || (is_vision && !spare)) state->targets[p->n_targets++] = i;
        spare -= is_vision && spare;
    }
    for (uint32_t i = 0; i < p->n_targets; i++) {
        state->lag[i] = (sq_lag){.factor = 1.0f};
        state->competes[i] = competes(p, state->targets[i]);
    }
}

void sq_mod_begin(sq_pass *p)
{
    sq_llava_state *const state = p->state;
    sq_compute *const c = &p->s->compute;
    sq_route *const r = &state->route;
    list_targets(p);
    r->n = p->n;
    r->d = p->net->d;
    r->n_targets = p->n_targets;
    sq_write(c, (void *)r->targets, state->targets, p->n_targets * sizeof *r->targets);
    sq_write(c, (void *)r->competes, state->competes, p->n_targets * sizeof *r->competes);
    sq_write(c, r->lag, state->lag, p->n_targets * sizeof *r->lag);
    const uint32_t pooled = pooled_rows(p);
    if (pooled) state->pooled_end = p->s->n_past + pooled;
}

/* ---- scores ---- */

/* The layers from this one on whose routers see a row unchanged if they skip it. */
static void ask_routers(const sq_decoder *net, uint32_t layer, sq_route *r)
{
    r->layer = r->end = layer;
    for (int j = 0; j < SQ_DOTS; j++)
        r->routers[j] = net->layers[layer].router_w;
    for (; r->end < net->n_layers && r->end < layer + SQ_DOTS && net->layers[r->end].is_mod; r->end++)
        r->routers[r->end % SQ_DOTS] = net->layers[r->end].router_w;
    r->bias = net->layers[layer].router_b;
    r->by_rms = net->mode.score == SQ_SCORE_ATTN_NORM;
    r->eps = net->eps;
    r->norm = net->norm;
    r->norm_scale = net->norm_scale;
    r->norm_bias = net->norm_bias;
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

void sq_mod_settle(const sq_pass *p, uint32_t first_row)
{
    if (!p->n_targets) return; /* state->route may be another pass's */
    sq_route_settle(&p->s->compute, &p->state->route, &p->state->host, first_row);
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

static void choose_best(sq_route *r, uint32_t n, bool all_compete)
{
    r->best = n;
    if (all_compete) r->competes = NULL;
}

static void choose_above(sq_route *r, float threshold, bool at)
{
    r->by_threshold = true;
    r->logit = sq_route_logit(threshold);
    r->at_logit = at;
}

/* Which targets the layer runs. */
static void choose(const sq_pass *p, uint32_t layer, sq_route *r)
{
    const sq_mode *const mode = &p->net->mode;
    const float ratio = sq_keep_ratio(p->s, layer, p->s->keep);
    if (is_decode(p) && mode->decode == SQ_DECODE_ALWAYS) {
        choose_best(r, 1, true);
        return;
    }
    if (is_decode(p) && mode->decode == SQ_DECODE_THRESHOLD) {
        choose_above(r, mode->decode_threshold, true);
        return;
    }
    const uint32_t competing = mode->target == SQ_TARGET_VISION ? p->n_vision : has_region(p) ? mode->region : 0;
    switch (mode->select) {
    case SQ_SELECT_TOP_K:
        choose_best(r, sq_route_count(p->n_targets, ratio), true);
        break;
    case SQ_SELECT_THRESHOLD:
        choose_above(r, mode->prefill_threshold, mode->at_threshold);
        break;
    case SQ_SELECT_CAPACITY:
        choose_best(r, p->n_targets - sq_route_count(competing, ratio), false);
        break;
    }
}

static sq_run run_of(const sq_pass *p, const sq_route *r, uint32_t m)
{
    const sq_mode *const mode = &p->net->mode;
    return (sq_run){.m = m,
                    .rows = r->kept,
                    .host_rows = p->state->host.kept,
                    .mlp_weight = r->kept_weight,
                    .attn_weight = mode->weight == SQ_WEIGHT_ATTN_MLP ? r->kept_weight : NULL,
                    .compressed = is_decode(p) ? mode->decode_position == SQ_DECODE_LOCAL
                                               : mode->position == SQ_POSITION_COMPRESSED};
}

/* Scores and weights, where somebody asks for them. */
static void tell_scores(const sq_pass *p, uint32_t layer, const sq_route *r)
{
    squint_session *const s = p->s;
    sq_llava_state *const state = p->state;
    if (!s->scores && !sq_traces(s, SQ_TRACE_SCORES) && !sq_traces(s, SQ_TRACE_WEIGHTS)) return;
    sq_read(&s->compute, state->scores, r->scores, p->n_targets * sizeof *r->scores);
    sq_read(&s->compute, state->weights, r->weights, p->n_targets * sizeof *r->weights);
    note_scores(p, layer);
    sq_trace(s, SQ_TRACE_SCORES, (int)layer, state->scores, 1, p->n_targets);
    sq_trace(s, SQ_TRACE_WEIGHTS, (int)layer, state->weights, 1, p->n_targets);
}

squint_err sq_mod_layer_run(const sq_pass *p, uint32_t layer, squint_msg *msg)
{
    sq_llava_state *const state = p->state;
    sq_route r = state->route;
    uint32_t m = 0;
    ask_routers(p->net, layer, &r);
    choose(p, layer, &r);
    r.weigh_skipped = p->net->mode.weight == SQ_WEIGHT_MLP_SKIP;
    const squint_err err = sq_route_layer(&p->s->compute, &r, &state->host, &m, msg);
    tell_scores(p, layer, &r);
    if (err) return err;
    for (uint32_t i = 0; i < m; i++)
        p->s->kept[layer] += p->ids[state->host.kept[i]] == SQ_IMAGE_TOKEN;
    const sq_run run = run_of(p, &r, m);
    sq_trace(p->s, SQ_TRACE_KEPT, (int)layer, run.host_rows, 1, run.m);
    sq_decoder_layer_run(p, layer, &run); /* gathers these rows and scatters into them */
    return SQUINT_OK;
}
