/*
 * What a prefill will cost on this machine, with these threads and kernels: measured on a few of the model's layers.
 * SPDX-License-Identifier: MIT
 *
 * A layer over m rows takes layer_ms b + row_ms m + pair_ms m (m + 1) / 2: matrices, which cost something before the
 * first row of each of b blocks, and attention. Runs of a layer over one row, some and more give the first two,
 * attention on its own the third. Each run takes another layer, whose weights no cache holds, as in a prefill. What is
 * left out (embedding, routing) is below a hundredth of a large model's time. It is more of a small one's, which
 * threads that wake up cost something too: a short prefill is run, and corrects the sum.
 */
#include "models/llava.h"

#include <math.h>

enum {
    SMALL_ROWS = 24,
    LARGE_ROWS = 128, /* more tell no more */
    QUERIES = 64,
    RUNS = 2, /* of each; the faster counts */
};

static const double RUN_MS = 100;  /* the longest, unless SMALL_ROWS take longer */
static const double WHOLE_MS = 50; /* of a prefill that is run */

typedef struct measuring {
    sq_pass p;
    uint32_t layer; /* the next to run */
} measuring;

/* No particular values: of ordinary size, and no two rows alike. */
static void fill(sq_compute *c, float *x /* @device */, size_t n)
{
    enum { PART = 1024 };
    float part[PART];
    uint32_t state = 1;
    for (size_t i = 0; i < n; i += PART) {
        const size_t here = n - i < PART ? n - i : PART;
        for (size_t j = 0; j < here; j++) {
            state = state * 1664525u + 1013904223u;
            part[j] = (float)(state >> 8) * 0x1p-23f - 1.0f;
        }
        sq_write(c, x + i, part, here * sizeof *part);
    }
}

/* The clock, when all is done. A failure is told by the pass that follows. */
static double now_ms(sq_compute *c)
{
    (void)sq_finish(c, NULL);
    return sq_now_ms();
}

/* The most rows that a layer has a cache for; *layer: the next that has one for `rows`, or the one that has the most.
 */
static uint32_t find_layer(const measuring *m, uint32_t rows, uint32_t *layer)
{
    const uint32_t n_layers = m->p.net->n_layers;
    const sq_kv_layer *const kv = m->p.state->kv;
    uint32_t best = m->layer % n_layers;
    for (uint32_t i = 0; i < n_layers && kv[best].capacity < rows; i++) {
        const uint32_t l = (m->layer + i) % n_layers;
        if (kv[l].capacity > kv[best].capacity) best = l;
    }
    *layer = best;
    return kv[best].capacity < rows ? kv[best].capacity : rows;
}

static double time_rows(measuring *m, uint32_t rows)
{
    uint32_t layer;
    rows = find_layer(m, rows, &layer);
    m->layer = layer + 1;
    m->p.n = rows;
    m->p.state->kv[layer].n = 0;
    sq_compute *const c = &m->p.s->compute;
    fill(c, m->p.state->x, (size_t)rows * m->p.net->d);
    const double start = now_ms(c);
    sq_decoder_layer_run(&m->p, layer, &(sq_run){.m = rows});
    const double ms = now_ms(c) - start;
    m->p.state->kv[layer].n = 0;
    return ms;
}

/* Milliseconds of a query and a key, all heads. The queries and keys are what earlier passes left. */
static double time_pair(const measuring *m, uint32_t rows)
{
    uint32_t layer;
    const uint32_t keys = find_layer(m, m->p.s->limits.max_tokens, &layer);
    const uint32_t queries = rows < keys ? rows : keys;
    sq_kv_layer past = m->p.state->kv[layer];
    past.n = keys - queries;
    sq_compute *const c = &m->p.s->compute;
    const double start = now_ms(c);
    sq_decoder_attend(&m->p, &past, queries);
    return (now_ms(c) - start) / (queries * (past.n + (queries + 1) / 2.0));
}

static double time_logits(const measuring *m)
{
    const double start = sq_now_ms();
    sq_pass p = m->p;
    p.n = 1;
    sq_decoder_logits(&p, 1);
    return sq_now_ms() - start;
}

/* As many rows as a run has time for, in steps that suit all kernels. */
static uint32_t rows_in_time(double small_ms, uint32_t small)
{
    enum { STEP = 8 };
    const double rows = RUN_MS / small_ms * small;
    if (!(rows > small)) return small;
    return rows < LARGE_ROWS ? (uint32_t)rows / STEP * STEP : LARGE_ROWS;
}

static uint32_t least_of(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* What is left of a run's time without its attention. */
static double without_pairs(double ms, double pair_ms, double rows)
{
    return fmax(0, ms - pair_ms * rows * (rows + 1) / 2);
}

/* Through both times, but with no more for the layer itself than a single row takes, and something for its rows: a
 * disturbance of the shorter run must not turn what rows cost into what they do not. */
static void fit(sq_cost *cost, uint32_t small, double small_ms, uint32_t large, double large_ms, double single_ms)
{
    const double slope = large > small ? (large_ms - small_ms) / (large - small) : 0;
    cost->layer_ms = fmin(fmax(large_ms - slope * large, 0), fmin(single_ms, 0.9 * large_ms));
    cost->row_ms = (large_ms - cost->layer_ms) / large;
}

static void measure_layers(squint_session *s)
{
    measuring m = {.p = {.s = s, .net = &sq_llava_of(s)->decoder, .state = sq_llava_state_of(s)}};
    uint32_t layer;
    const uint32_t most = find_layer(&m, s->limits.max_rows, &layer), small = least_of(SMALL_ROWS, most);
    s->cost = (sq_cost){.scale = 1};
    if (!most) return; /* no cache holds anything */
    double single_ms = time_rows(&m, 1), small_ms = time_rows(&m, small), large_ms = INFINITY, pair_ms = INFINITY;
    const uint32_t large = least_of(rows_in_time(small_ms, small), most);
    for (int i = 0; i < RUNS; i++) {
        large_ms = fmin(large_ms, time_rows(&m, large));
        pair_ms = fmin(pair_ms, time_pair(&m, least_of(QUERIES, most)));
        small_ms = fmin(small_ms, time_rows(&m, small));
        single_ms = fmin(single_ms, time_rows(&m, 1));
    }
    pair_ms = fmin(pair_ms, large_ms / (large * (large + 1.0))); /* at most half of a run of so few rows */
    s->cost.pass_ms = time_logits(&m);
    s->cost.pair_ms = pair_ms;
    fit(&s->cost, small, without_pairs(small_ms, pair_ms, small), large, without_pairs(large_ms, pair_ms, large),
        single_ms);
}

/* An image and a token of text, as often as the layers were run. */
static squint_err time_whole(squint_session *s, const uint32_t *ids, uint32_t n, double *ms, squint_msg *msg)
{
    *ms = INFINITY;
    for (int i = 0; i < RUNS; i++) {
        sq_session_reset(s);
        const double start = sq_now_ms();
        const squint_err err = sq_session_forward(s, ids, n, 1, msg);
        if (err) return err;
        *ms = fmin(*ms, sq_now_ms() - start);
    }
    return SQUINT_OK;
}

static squint_err correct(squint_session *s, squint_msg *msg)
{
    const uint32_t n_vision = s->limits.max_vision, n = n_vision + 1;
    if (n > s->limits.max_rows || n > s->limits.max_tokens) return SQUINT_OK;
    const double predicted = sq_cost_predict_ms(s, n, n_vision, 1.0f);
    if (!(predicted > 0 && predicted <= WHOLE_MS)) return SQUINT_OK;
    uint32_t *const ids = sq_alloc(&s->alloc, n * sizeof *ids);
    if (!ids) return sq_fail(msg, SQUINT_ERR_NOMEM, "no memory for a prefill's tokens");
    for (uint32_t i = 0; i < n; i++)
        ids[i] = i < n_vision ? SQ_IMAGE_TOKEN : 0;
    fill(&s->compute, s->vision, (size_t)n_vision * s->model->d);
    double ms;
    const squint_err err = time_whole(s, ids, n, &ms, msg);
    if (!err) s->cost.scale = ms / predicted;
    sq_free(&s->alloc, ids, n * sizeof *ids);
    return err;
}

squint_err sq_cost_measure(squint_session *s, squint_msg *msg)
{
    squint_err err = sq_keep_check(s->model, "budget", msg);
    if (err) return err;
    sq_trace_fn *const trace = s->trace;
    s->trace = NULL;
    measure_layers(s);
    err = correct(s, msg);
    s->trace = trace;
    return err;
}

double sq_cost_predict_ms(const squint_session *s, uint32_t n, uint32_t n_vision, float keep)
{
    const sq_cost *const cost = &s->cost;
    double ms = cost->pass_ms;
    for (uint32_t l = 0; l < s->model->n_layers; l++) {
        const uint32_t m = sq_mod_rows(s, l, n, n_vision, keep);
        const double rows = m;
        ms += cost->layer_ms * sq_decoder_blocks(m) + cost->row_ms * rows + cost->pair_ms * rows * (rows + 1) / 2;
    }
    return ms * cost->scale;
}
