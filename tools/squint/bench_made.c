/*
 * squint bench --synthetic: what routing saves of a made model's prefill, in each mode.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/budget.h"
#include "tools/squint/bench.h"
#include "tools/squint/cli.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

/* The vocabulary is kept small: only prefill is measured, and it never multiplies by all of it. */
typedef struct made_shape {
    const char *name;
    uint32_t d, f, n_heads, n_vocab, n_vision;
} made_shape;

static const made_shape shapes[] = {
    {"7b", 4096, 11008, 32, 512, 576},    /* LLaVA-1.5-7B */
    {"next", 4096, 11008, 32, 512, 2880}, /* LLaVA-NeXT-7B */
    {"tiny", 256, 688, 8, 512, 576},
};
const char *const bench_shape_words[] = {"7b", "next", "tiny", NULL};

typedef struct made_type {
    const char *name;
    sq_panel_type type;
    uint32_t group;
} made_type;

static const made_type types[] = {{"int8", SQ_PANEL_I8, 0}, {"int4", SQ_PANEL_I4, 128}};
const char *const bench_type_words[] = {"q8", "q4", "both", NULL};

const char *const bench_mode_words[] = {
    "pmod", "gamma-released", "gamma-released-mgm", "gamma-train", "gamma-paper", "threshold", "dense", "all", NULL};
static_assert(SQ_COUNT(shapes) == BENCH_SHAPES && SQ_COUNT(types) == BENCH_TYPES, "bench.h counts them");
static_assert(SQ_COUNT(bench_mode_words) == BENCH_MODES + 2, "bench.h counts them");

static const float SKIP_RATIO = 0.5f; /* of the modes that have one for all layers, as gamma-MoD's larger models */

typedef struct made_result {
    double dense_ms, mode_ms, macs, macs_dense;
    size_t kv_bytes, kv_bytes_dense;
} made_result;

typedef struct made_bench {
    const bench_options *o;
    const made_shape *shape;
    unsigned n_layers, n_vision, n_text;
    float ratio[BENCH_MAX_LAYERS];
    bool is_mod[BENCH_MAX_LAYERS];
    unsigned first_type, last_type, first_mode, last_mode;
    made_result results[BENCH_TYPES][BENCH_MODES];
    char runner[160]; /* cli_runner() */
    cJSON *json;      /* results, the runner first */
} made_bench;

/* ---- Models -------------------------------------------------------------------------------- */

/* p-MoD-LLaVA-7B routes layers 8 to 31 of 32; layer l keeps max(cos(pi l / 31) / 2 + 0.5, 0.15). Fewer layers take
 * theirs at even steps from the first to the last of these. */
static void choose_ratios(made_bench *b)
{
    const double pi = 3.14159265358979323846, first = b->n_layers < 32 ? 8 : 0, last = 31;
    for (unsigned i = 0; i < b->n_layers; i++) {
        const double step = b->n_layers > 1 ? (double)i / (b->n_layers - 1) : 0.5;
        const double layer = round(first + step * (last - first)), s = cos(pi * layer / last) / 2 + 0.5;
        b->is_mod[i] = s <= 0.85;
        b->ratio[i] = b->is_mod[i] ? (float)fmax(s, 0.15) : 1.0f;
    }
}

static squint_err open_made(const made_bench *b, unsigned type, squint_model **model, squint_msg *msg)
{
    const made_shape *shape = b->shape;
    const sq_synthetic made = {.n_layers = b->n_layers,
                               .d = shape->d,
                               .f = shape->f,
                               .n_heads = shape->n_heads,
                               .n_kv_heads = shape->n_heads,
                               .n_vocab = shape->n_vocab,
                               .n_ctx = b->n_vision + b->n_text,
                               .type = types[type].type,
                               .group = types[type].group,
                               .layer_is_mod = b->is_mod,
                               .layer_ratio = b->ratio};
    cli_bar("making weights", 0);
    return sq_synthetic_open(model, &made, &b->o->model, msg);
}

/* A session in a mode, its vision tokens random. */
typedef struct made_run {
    squint_model *model;
    squint_session *session;
} made_run;

static void fill_random(float *x, size_t n, uint64_t *state)
{
    for (size_t i = 0; i < n; i++) { /* xorshift64*; uniform in [-1, 1) */
        *state ^= *state >> 12;
        *state ^= *state << 25;
        *state ^= *state >> 27;
        x[i] = (float)((*state * 0x2545F4914F6CDD1Du) >> 40) * 0x1p-23f - 1.0f;
    }
}

static void make_vision(squint_session *s, uint32_t n)
{
    const size_t d = s->model->d;
    uint64_t state = 1;
    float *const row = cli_alloc(d, sizeof *row);
    for (uint32_t i = 0; i < n; i++) {
        fill_random(row, d, &state);
        sq_write(&s->compute, s->vision + i * d, row, d * sizeof *row);
    }
    free(row);
}

/* @param reference  what the modes are compared with: nothing else is asked of it than its mode */
static squint_err open_run(const made_bench *b, const squint_model *made, const char *mode, bool reference,
                           made_run *run, squint_msg *msg)
{
    const uint32_t rows = b->n_vision + b->n_text;
    squint_session_options options = b->o->session;
    const sq_synthetic_mode routing = {.name = mode, .skip_ratio = SKIP_RATIO, .region = b->n_vision};
    sq_limits limits = {.max_rows = rows, .max_tokens = rows, .max_logits = 1, .max_vision = b->n_vision};
    squint_err err = sq_synthetic_variant(&run->model, made, &routing, msg);
    if (err) return err;
    limits.kv = sq_kv_of(run->model, options.kv);
    if (reference) {
        options.schedule = NULL;
        options.keep = 0;
    }
    err = sq_session_open_limits(&run->session, run->model, &options, &limits, msg);
    if (!err) make_vision(run->session, b->n_vision);
    return err;
}

static void close_run(made_run *run)
{
    squint_session_close(&run->session);
    squint_model_close(&run->model);
}

/* ---- Times --------------------------------------------------------------------------------- */

/*
 * Milliseconds of a prefill's layers, and of what follows them: the fastest of each. A disturbance thus costs a layer's
 * time rather than a whole run's, and long runs are no worse off than short ones. On a device only the whole counts:
 * to wait for each layer would take the most of what has the fewest rows, and of dense layers, which need not wait.
 */
typedef struct prefill_times {
    double best[BENCH_MAX_LAYERS + 1], since;
    bool whole;
} prefill_times;

static bool on_layer(void *user, squint_stage stage, unsigned done, unsigned total)
{
    prefill_times *t = user;
    const double now = sq_now_ms();
    if (t->whole) return !cli_interrupted();
    if (stage == SQUINT_STAGE_PREFILL && done <= total && total <= BENCH_MAX_LAYERS)
        t->best[done - 1] = fmin(t->best[done - 1], now - t->since);
    t->since = now;
    return !cli_interrupted();
}

static double sum_of(const prefill_times *t, unsigned n_layers)
{
    double sum = 0;
    for (unsigned i = t->whole ? n_layers : 0; i <= n_layers; i++)
        sum += t->best[i];
    return sum;
}

static squint_err time_prefill(squint_session *s, const uint32_t *ids, uint32_t n, prefill_times *t, squint_msg *msg)
{
    sq_session_reset(s);
    t->whole = s->model->device_ops != NULL;
    s->on_progress = on_layer;
    s->progress_user = t;
    t->since = sq_now_ms();
    const squint_err err = sq_session_forward(s, ids, n, 1, msg);
    double *rest = &t->best[s->model->n_layers];
    *rest = fmin(*rest, sq_now_ms() - t->since);
    s->on_progress = NULL;
    return err;
}

/* The image comes first, as in gamma-MoD's training. */
static uint32_t *make_ids(const made_bench *b)
{
    const uint32_t n = b->n_vision + b->n_text;
    uint32_t *ids = cli_alloc(n, sizeof *ids);
    for (uint32_t i = 0; i < n; i++)
        ids[i] = i < b->n_vision ? SQ_IMAGE_TOKEN : i % b->shape->n_vocab;
    return ids;
}

static squint_err time_mode(const made_bench *b, squint_session *dense, squint_session *s, made_result *r,
                            squint_msg *msg)
{
    const uint32_t n = b->n_vision + b->n_text;
    uint32_t *ids = make_ids(b);
    prefill_times dense_times, mode_times;
    squint_err err = SQUINT_OK;
    for (unsigned i = 0; i <= b->n_layers; i++)
        dense_times.best[i] = mode_times.best[i] = INFINITY;
    for (unsigned rep = 0; !err && rep < b->o->reps; rep++) {
        cli_bar(s->model->mode, (double)rep / b->o->reps);
        err = time_prefill(dense, ids, n, &dense_times, msg);
        if (!err) err = time_prefill(s, ids, n, &mode_times, msg);
    }
    *r = (made_result){.dense_ms = sum_of(&dense_times, b->n_layers),
                       .mode_ms = sum_of(&mode_times, b->n_layers),
                       .macs = s->macs,
                       .macs_dense = s->macs_dense,
                       .kv_bytes = sq_session_kv_bytes(s),
                       .kv_bytes_dense = sq_session_kv_bytes_dense(s)};
    free(ids);
    return err;
}

/* The same for all types. */
static void note_runner(made_bench *b, const made_run *run)
{
    if (*b->runner) return;
    cli_runner(run->session, run->model, b->runner);
    cli_json_runner(b->json, run->session, run->model);
}

static squint_err bench_modes(made_bench *b, const squint_model *made, unsigned type, squint_msg *msg)
{
    made_run dense = {0};
    squint_err err = open_run(b, made, "dense", true, &dense, msg);
    for (unsigned i = b->first_mode; !err && i <= b->last_mode; i++) {
        made_run run = {0};
        err = open_run(b, made, bench_mode_words[i], false, &run, msg);
        if (!err) err = time_mode(b, dense.session, run.session, &b->results[type][i], msg);
        close_run(&run);
    }
    if (!err) note_runner(b, &dense);
    close_run(&dense);
    return err;
}

/* ---- Budgets ------------------------------------------------------------------------------- */

typedef struct budget_run {
    sq_plan plan;
    double measuring_ms, ms;
    const char *type, *mode;
} budget_run;

static const char *const budget_words[] = {
    [SQUINT_BUDGET_AMPLE] = "ample", [SQUINT_BUDGET_CUT] = "cut", [SQUINT_BUDGET_TOO_SMALL] = "too small"};

/* Off by so much of what it took. */
static double error_of(const budget_run *r) { return r->plan.predicted_ms / r->ms - 1; }

static squint_err run_budget(const made_bench *b, squint_session *s, const uint32_t *ids, budget_run *r,
                             squint_msg *msg)
{
    const uint32_t n = b->n_vision + b->n_text;
    const double start = sq_now_ms();
    squint_err err = squint_session_measure(s, msg);
    r->measuring_ms = sq_now_ms() - start;
    if (err) return err;
    r->plan = sq_budget_choose(s, n, b->n_vision, b->o->budget_ms);
    s->keep = r->plan.keep;
    const double started = sq_now_ms();
    err = sq_session_forward(s, ids, n, 1, msg);
    r->ms = sq_now_ms() - started;
    return err;
}

static void print_budget(const made_bench *b, const budget_run *r)
{
    if (!b->o->json) {
        printf("%-5s %-18s %-10s %7.4f %12.1f %12.1f %12.1f %+7.1f %%\n", r->type, r->mode,
               budget_words[r->plan.outcome], (double)r->plan.keep, r->measuring_ms, r->plan.predicted_ms, r->ms,
               100 * error_of(r));
        return;
    }
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "shape", b->shape->name);
    cJSON_AddStringToObject(json, "type", r->type);
    cJSON_AddStringToObject(json, "mode", r->mode);
    cli_json_number(json, "budget_ms", b->o->budget_ms, 3);
    cJSON_AddStringToObject(json, "outcome", budget_words[r->plan.outcome]);
    cli_json_number(json, "keep", (double)r->plan.keep, 6);
    cli_json_number(json, "measuring_ms", r->measuring_ms, 3);
    cli_json_number(json, "predicted_ms", r->plan.predicted_ms, 3);
    cli_json_number(json, "ms", r->ms, 3);
    cli_json_number(json, "error", error_of(r), 6);
    cli_json_line(stdout, json);
}

static squint_err bench_budget(const made_bench *b, const squint_model *made, unsigned type, unsigned mode,
                               squint_msg *msg)
{
    made_run run = {0};
    budget_run r = {.type = types[type].name, .mode = bench_mode_words[mode]};
    uint32_t *ids = make_ids(b);
    squint_err err = open_run(b, made, r.mode, false, &run, msg);
    for (unsigned rep = 0; !err && rep < b->o->reps && !cli_interrupted(); rep++) {
        cli_bar(r.mode, (double)rep / b->o->reps);
        err = run_budget(b, run.session, ids, &r, msg);
        cli_bar_clear();
        if (!err) print_budget(b, &r);
    }
    close_run(&run);
    free(ids);
    return err;
}

static squint_err bench_budgets(const made_bench *b, const squint_model *made, unsigned type, squint_msg *msg)
{
    squint_err err = SQUINT_OK;
    if (!b->o->json && type == b->first_type)
        printf("%s shape, %u layers, %u vision and %u text tokens, %s, %s, a prefill in %.1f ms\n\n%-5s %-18s %-10s "
               "%7s %12s %12s %12s %9s\n",
               b->shape->name, b->n_layers, b->n_vision, b->n_text, squint_model_device(made), squint_model_isa(made),
               b->o->budget_ms, "type", "mode", "outcome", "keep", "measuring ms", "predicted ms", "took ms", "error");
    for (unsigned i = b->first_mode; !err && i <= b->last_mode; i++)
        err = bench_budget(b, made, type, i, msg);
    return err;
}

static squint_err bench_type(made_bench *b, unsigned type, squint_msg *msg)
{
    squint_model *made = NULL;
    squint_err err = open_made(b, type, &made, msg);
    if (!err) err = b->o->budget_ms > 0 ? bench_budgets(b, made, type, msg) : bench_modes(b, made, type, msg);
    squint_model_close(&made);
    return err;
}

/* ---- Results ------------------------------------------------------------------------------- */

static void print_text(const made_bench *b)
{
    printf("%s shape, %u layers, %u vision and %u text tokens, %s, best of %u\np-MoD's ratios", b->shape->name,
           b->n_layers, b->n_vision, b->n_text, b->runner, b->o->reps);
    for (unsigned i = 0; i < b->n_layers; i++)
        printf(" %.4f", (double)b->ratio[i]);
    printf("\n\n%-5s %-18s %10s %10s %11s %10s %9s\n", "type", "mode", "dense ms", "mode ms", "time ratio", "MAC ratio",
           "KV ratio");
    for (unsigned t = b->first_type; t <= b->last_type; t++)
        for (unsigned m = b->first_mode; m <= b->last_mode; m++) {
            const made_result *r = &b->results[t][m];
            printf("%-5s %-18s %10.1f %10.1f %11.4f %10.4f %9.4f\n", types[t].name, bench_mode_words[m], r->dense_ms,
                   r->mode_ms, r->mode_ms / r->dense_ms, r->macs / r->macs_dense,
                   (double)r->kv_bytes / (double)r->kv_bytes_dense);
        }
}

static cJSON *result_json(const made_bench *b, unsigned type, unsigned mode)
{
    const made_result *r = &b->results[type][mode];
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "type", types[type].name);
    cJSON_AddStringToObject(json, "mode", bench_mode_words[mode]);
    cli_json_number(json, "dense_ms", r->dense_ms, 3);
    cli_json_number(json, "mode_ms", r->mode_ms, 3);
    cli_json_number(json, "time_ratio", r->mode_ms / r->dense_ms, 6);
    cli_json_number(json, "mac_ratio", r->macs / r->macs_dense, 6);
    cJSON_AddNumberToObject(json, "kv_bytes", (double)r->kv_bytes);
    cJSON_AddNumberToObject(json, "kv_bytes_dense", (double)r->kv_bytes_dense);
    return json;
}

static void print_json(made_bench *b)
{
    cJSON *const json = b->json;
    cJSON_AddStringToObject(json, "shape", b->shape->name);
    cJSON_AddNumberToObject(json, "layers", b->n_layers);
    cJSON_AddNumberToObject(json, "vision", b->n_vision);
    cJSON_AddNumberToObject(json, "text", b->n_text);
    cJSON *ratios = cJSON_AddArrayToObject(json, "ratios"), *results = cJSON_AddArrayToObject(json, "results");
    for (unsigned i = 0; i < b->n_layers; i++)
        cJSON_AddItemToArray(ratios, cJSON_CreateNumber(round((double)b->ratio[i] * 1e6) / 1e6));
    for (unsigned t = b->first_type; t <= b->last_type; t++)
        for (unsigned m = b->first_mode; m <= b->last_mode; m++)
            cJSON_AddItemToArray(results, result_json(b, t, m));
    cJSON_AddNumberToObject(json, "reps", b->o->reps);
    cli_json_line(stdout, json);
    b->json = NULL;
}

int bench_made(const bench_made_options *asked, const bench_options *o)
{
    const bool all_types = asked->type == BENCH_TYPES, all_modes = asked->mode == BENCH_MODES;
    made_bench b = {.o = o,
                    .json = cJSON_CreateObject(),
                    .shape = &shapes[asked->shape],
                    .n_layers = asked->n_layers,
                    .n_vision = asked->n_vision ? asked->n_vision : shapes[asked->shape].n_vision,
                    .n_text = asked->n_text,
                    .first_type = all_types ? 0 : asked->type,
                    .last_type = all_types ? BENCH_TYPES - 1 : asked->type,
                    .first_mode = all_modes ? 0 : asked->mode,
                    .last_mode = all_modes ? BENCH_MODES - 1 : asked->mode};
    squint_msg msg;
    squint_err err = SQUINT_OK;
    choose_ratios(&b);
    cli_watch_interrupts(NULL);
    for (unsigned i = b.first_type; !err && i <= b.last_type; i++)
        err = bench_type(&b, i, &msg);
    cli_unwatch_interrupts();
    cli_bar_clear();
    const bool told = err || o->budget_ms > 0; /* each run of a budget is printed when it is done */
    if (!told && o->json)
        print_json(&b);
    else if (!told)
        print_text(&b);
    cJSON_Delete(b.json);
    if (err) return cli_fail(err, &msg);
    return cli_flush() ? CLI_DONE : CLI_FAILED;
}
