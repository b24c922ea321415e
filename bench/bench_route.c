/*
 * bench_route: what choosing costs. Scoring, selection and reweighting of a Mixture-of-Depths layer, next to the layer.
 * SPDX-License-Identifier: MIT
 *
 * The pieces alone: one dot product a token, those of SQ_DOTS layers' routers in one reading, the choice of the best,
 * one scaled row for each of the others. And all that a made decoder of 7B shape does of them, from its traces, as a
 * share of its layers' time. A skipped row is read once in SQ_DOTS layers, so as many layers in a row count: their
 * mean, and the layer with the largest share, which may be the first, where all rows are new.
 *
 * Scattering rows is part of the last matrix product and gathering them of the first: no time of their own.
 * The best round counts.
 */
#include "bench/common.h"
#include "runtime/engine.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_LAYERS = 1 + SQ_DOTS, N_TEXT = 64, HEAD_DIM = 128, N_VOCAB = 512 };

static const char program[] = "bench_route";

typedef struct options {
    uint32_t vision, percent, d, f, rounds, threads;
    const char *isa, *type;
    bool json;
} options;

/* Milliseconds: the best of all rounds. */
typedef struct times {
    double score, ahead, select, scale;        /* alone, one thread */
    double routing[N_LAYERS], layer[N_LAYERS]; /* of a pass */
} times;

static void keep_least(double *best, double ms) { *best = fmin(*best, ms); }

/* ---- The pieces alone -------------------------------------------------------------------- */

typedef struct pieces {
    const sq_kernels *kernels;
    uint32_t n, k, d;
    float *x, *router, *scores; /* [n][d], [d], [n] */
    const float **rows;         /* [n] */
    float (*ahead)[SQ_DOTS];    /* [n] */
    int32_t *keys;              /* [n] */
    uint32_t *kept;             /* [k] */
} pieces;

static pieces take_pieces(const options *o, uint32_t k)
{
    const uint32_t n = o->vision, d = o->d;
    pieces p = {.kernels = sq_kernels_get(o->isa), .n = n, .k = k, .d = d};
    p.x = bench_take((size_t)n * d * sizeof *p.x);
    p.router = bench_take(d * sizeof *p.router);
    p.scores = bench_take(n * sizeof *p.scores);
    p.rows = bench_take(n * sizeof *p.rows);
    p.ahead = bench_take(n * sizeof *p.ahead);
    p.keys = bench_take(n * sizeof *p.keys);
    p.kept = bench_take(k * sizeof *p.kept);
    bench_fill_floats(p.x, (size_t)n * d);
    bench_fill_floats(p.router, d);
    for (uint32_t i = 0; i < n; i++)
        p.rows[i] = p.x + (size_t)i * d;
    return p;
}

static void free_pieces(pieces *p)
{
    free(p->x);
    free(p->router);
    free(p->scores);
    free(p->rows);
    free(p->ahead);
    free(p->keys);
    free(p->kept);
}

static void score(pieces *p)
{
    for (uint32_t i = 0; i < p->n; i++)
        p->scores[i] = p->kernels->dot(p->router, p->rows[i], p->d);
}

static void score_ahead(pieces *p)
{
    const float *const routers[SQ_DOTS] = {p->router, p->router, p->router, p->router};
    p->kernels->dots(p->rows, p->n, routers, p->d, p->ahead);
}

static void choose(pieces *p) { p->kernels->select(p->scores, p->n, p->k, p->keys, p->kept); }

/* By 1: rows scaled again and again must not vanish. */
static void scale_skipped(pieces *p)
{
    for (uint32_t i = 0, at = 0; i < p->n; i++) {
        if (at < p->k && p->kept[at] == i)
            at++;
        else
            p->kernels->scale(p->x + (size_t)i * p->d, 1.0f, p->d);
    }
}

static double time_piece(pieces *p, void piece(pieces *), uint32_t repeats)
{
    const double start = bench_ms(1);
    for (uint32_t i = 0; i < repeats; i++)
        piece(p);
    return (bench_ms(1) - start) / repeats;
}

static void time_pieces(pieces *p, times *t)
{
    keep_least(&t->score, time_piece(p, score, 1));
    keep_least(&t->ahead, time_piece(p, score_ahead, 1));
    keep_least(&t->select, time_piece(p, choose, 20));
    keep_least(&t->scale, time_piece(p, scale_skipped, 1));
}

/* ---- The layers -------------------------------------------------------------------------- */

/* The end of layer l - 1 at l, and when layer l had chosen its rows and reweighted them. */
typedef struct layer_clock {
    unsigned threads;
    double end[N_LAYERS + 1], routed[N_LAYERS];
} layer_clock;

static void on_trace(void *user, sq_trace_what what, int layer, const void *data, uint32_t rows, uint32_t cols)
{
    (void)data, (void)rows, (void)cols;
    layer_clock *const clock = user;
    if (what == SQ_TRACE_EMBEDDED) clock->end[0] = bench_ms(clock->threads);
    if (what == SQ_TRACE_KEPT) clock->routed[layer] = bench_ms(clock->threads);
}

static bool on_progress(void *user, squint_stage stage, unsigned done, unsigned total)
{
    (void)total;
    layer_clock *const clock = user;
    if (stage == SQUINT_STAGE_PREFILL) clock->end[done] = bench_ms(clock->threads);
    return true;
}

static void check(squint_err err, const squint_msg *msg)
{
    if (!err) return;
    fprintf(stderr, "%s: %s\n", program, msg->text);
    exit(1);
}

static squint_session *open_layers(const options *o, sq_panel_type type, float ratio, squint_model **model)
{
    const uint32_t n = o->vision + N_TEXT;
    bool is_mod[N_LAYERS];
    float ratios[N_LAYERS];
    for (int l = 0; l < N_LAYERS; l++) {
        is_mod[l] = true;
        ratios[l] = ratio;
    }
    const sq_synthetic made = {.n_layers = N_LAYERS,
                               .d = o->d,
                               .f = o->f,
                               .n_heads = o->d / HEAD_DIM,
                               .n_kv_heads = o->d / HEAD_DIM,
                               .n_vocab = N_VOCAB,
                               .n_ctx = n,
                               .type = type,
                               .group = type == SQ_PANEL_I4 ? 128 : 0,
                               .layer_is_mod = is_mod,
                               .layer_ratio = ratios};
    const sq_limits limits = {
        .max_rows = n, .max_tokens = n, .max_logits = 1, .max_vision = o->vision, .kv = SQ_KV_F16};
    const squint_model_options model_options = {.isa = o->isa};
    const squint_session_options session_options = {.threads = o->threads};
    squint_session *session;
    squint_msg msg;
    check(sq_synthetic_open(model, &made, &model_options, &msg), &msg);
    check(sq_session_open_limits(&session, *model, &session_options, &limits, &msg), &msg);
    bench_fill_floats(session->vision, (size_t)o->vision * o->d);
    return session;
}

static void time_layers(squint_session *s, const uint32_t *ids, uint32_t n, times *t)
{
    layer_clock clock = {.threads = squint_session_threads(s)};
    squint_msg msg;
    sq_session_reset(s);
    s->trace = on_trace;
    s->trace_mute = 1u << SQ_TRACE_LAYER; /* it copies all rows */
    s->on_progress = on_progress;
    s->trace_user = s->progress_user = &clock;
    check(sq_session_forward(s, ids, n, 1, &msg), &msg);
    for (int l = 0; l < N_LAYERS; l++) {
        keep_least(&t->routing[l], clock.routed[l] - clock.end[l]);
        keep_least(&t->layer[l], clock.end[l + 1] - clock.end[l]);
    }
}

static times measure(const options *o, sq_panel_type type, float ratio)
{
    const uint32_t n = o->vision + N_TEXT;
    squint_model *model;
    squint_session *session = open_layers(o, type, ratio, &model);
    pieces p = take_pieces(o, sq_route_count(o->vision, ratio));
    uint32_t *const ids = bench_take(n * sizeof *ids);
    times t = {INFINITY, INFINITY, INFINITY, INFINITY, {0}, {0}};
    for (int l = 0; l < N_LAYERS; l++)
        t.routing[l] = t.layer[l] = INFINITY;
    for (uint32_t i = 0; i < n; i++)
        ids[i] = i < o->vision ? SQ_IMAGE_TOKEN : i % N_VOCAB;
    for (uint32_t i = 0; i < o->rounds; i++) {
        time_pieces(&p, &t);
        time_layers(session, ids, n, &t);
    }
    free(ids);
    free_pieces(&p);
    squint_session_close(&session);
    squint_model_close(&model);
    return t;
}

/* ---- Report ------------------------------------------------------------------------------ */

static const bench_column columns[] = {
    {"type", 10, BENCH_TEXT}, {"isa", 8, BENCH_TEXT},     {"vision", 6, 0},      {"kept", 5, 0},
    {"threads", 7, 0},        {"score_ms", 8, 3},         {"ahead_ms", 8, 3},    {"select_ms", 9, 4},
    {"scale_ms", 8, 3},       {"select_of_score", 15, 4}, {"routing_ms", 10, 3}, {"layer_ms", 9, 1},
    {"of_layer", 8, 4},       {"largest", 8, 4},
};

/* Of layers 1 to SQ_DOTS. */
static double mean(const double ms[N_LAYERS])
{
    double sum = 0;
    for (int l = 1; l < N_LAYERS; l++)
        sum += ms[l];
    return sum / SQ_DOTS;
}

static double largest_share(const times *t)
{
    double share = 0;
    for (int l = 0; l < N_LAYERS; l++)
        share = fmax(share, t->routing[l] / t->layer[l]);
    return share;
}

static void run_type(const options *o, sq_panel_type type)
{
    const float ratio = (float)o->percent / 100;
    const times t = measure(o, type, ratio);
    const bench_cell cells[] = {
        {.text = type == SQ_PANEL_I4 ? "int4-g128" : "int8"},
        {.text = sq_kernels_get(o->isa)->isa},
        {.number = o->vision},
        {.number = sq_route_count(o->vision, ratio)},
        {.number = o->threads},
        {.number = t.score},
        {.number = t.ahead},
        {.number = t.select},
        {.number = t.scale},
        {.number = bench_ratio(t.select, t.score)},
        {.number = mean(t.routing)},
        {.number = mean(t.layer)},
        {.number = bench_ratio(mean(t.routing), mean(t.layer))},
        {.number = largest_share(&t)},
    };
    static_assert(SQ_COUNT(cells) == SQ_COUNT(columns), "a cell a column");
    bench_row(columns, cells, SQ_COUNT(columns), o->json);
}

static options parse(int argc, char **argv)
{
    options o = {.vision = 2880, .percent = 15, .d = 4096, .f = 11008, .rounds = 3, .threads = 1};
    const bench_option table[] = {
        {"vision", "vision tokens (2880)", .number = &o.vision, .least = 1, .most = 16384},
        {"percent", "how many of them a layer keeps (15)", .number = &o.percent, .least = 1, .most = 100},
        {"d", "width of the residual stream (4096)", .number = &o.d, .least = HEAD_DIM, .most = 16384},
        {"f", "inner width of the MLP (11008)", .number = &o.f, .least = 32, .most = 65536},
        {"type", "weights of the layers, int8 or int4 (default: both)", .text = &o.type},
        {"isa", "one table only (default: the best)", .text = &o.isa},
        {"threads", "threads of the layers (1)", .number = &o.threads, .least = 1, .most = 1024},
        {"rounds", "the best of so many counts (3)", .number = &o.rounds, .least = 1, .most = 1000},
        {"json", "one JSON object a row", .flag = &o.json},
        {0},
    };
    bench_parse(program, table, argc, argv);
    bench_check_isa(program, o.isa);
    bench_check_type(program, o.type);
    if (o.d % HEAD_DIM) {
        char d[16];
        snprintf(d, sizeof d, "%u", o.d);
        bench_misuse(program, "d", d, "a multiple of 128");
    }
    return o;
}

int main(int argc, char **argv)
{
    const options o = parse(argc, argv);
    bench_head(columns, SQ_COUNT(columns), o.json);
    for (int type = SQ_PANEL_I8; type <= SQ_PANEL_I4; type++) {
        if (bench_wants_type(o.type, (sq_panel_type)type)) run_type(&o, (sq_panel_type)type);
    }
    return 0;
}
