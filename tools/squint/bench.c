/*
 * squint bench: milliseconds of a model's stages, and what routing saves of a made model's prefill.
 * SPDX-License-Identifier: MIT
 *
 * Only ratios between runs of one call mean something: what is to be compared takes turns, and the fastest of each
 * stage or layer counts.
 */
#include "runtime/engine.h"
#include "tools/squint/cli.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct bench_options {
    squint_session_options session;
    const char *isa;
    unsigned reps;
    bool json;
} bench_options;

/* ---- Stages of a real model ---------------------------------------------------------------- */

static const char *const stage_names[SQUINT_STAGE_COUNT] = {"image", "tower", "prefill", "decode"};

typedef struct stage_times {
    double ms[SQUINT_STAGE_COUNT]; /* the fastest of each */
    unsigned n_tokens, n_prompt;
    double mac_ratio;
} stage_times;

static squint_err time_stages(const bench_options *o, squint_session *session, const char *image, stage_times *best,
                              squint_msg *msg)
{
    for (int i = 0; i < SQUINT_STAGE_COUNT; i++)
        best->ms[i] = INFINITY;
    for (unsigned rep = 0; rep < o->reps; rep++) {
        squint_result r;
        cli_bar(image, (double)rep / o->reps);
        const squint_err err = squint_caption_file(session, image, NULL, &r, msg);
        if (err) return err;
        for (int i = 0; i < SQUINT_STAGE_COUNT; i++)
            best->ms[i] = fmin(best->ms[i], r.stage_ms[i]);
        best->n_tokens = r.n_tokens;
        best->n_prompt = r.n_prompt_tokens;
        best->mac_ratio = r.prefill_macs / r.prefill_macs_dense;
    }
    return SQUINT_OK;
}

static void print_stages(const bench_options *o, const squint_session *session, const stage_times *t)
{
    const char *isa = squint_model_isa(session->model);
    const unsigned threads = squint_session_threads(session);
    cJSON *json = o->json ? cJSON_CreateObject() : NULL;
    if (!json) printf("%s, %u threads, best of %u\n", isa, threads, o->reps);
    for (int i = 0; i < SQUINT_STAGE_COUNT; i++) {
        const unsigned tokens = i == SQUINT_STAGE_PREFILL ? t->n_prompt : i == SQUINT_STAGE_DECODE ? t->n_tokens : 0;
        if (json)
            cli_json_number(json, stage_names[i], t->ms[i], 3);
        else if (tokens)
            printf("%-8s %10.3f ms  %u tokens, %.1f a second\n", stage_names[i], t->ms[i], tokens,
                   1000 * tokens / t->ms[i]);
        else
            printf("%-8s %10.3f ms\n", stage_names[i], t->ms[i]);
    }
    if (!json) return;
    cJSON_AddNumberToObject(json, "n_prompt", t->n_prompt);
    cJSON_AddNumberToObject(json, "n_tokens", t->n_tokens);
    cli_json_number(json, "mac_ratio", t->mac_ratio, 6);
    cJSON_AddStringToObject(json, "isa", isa);
    cJSON_AddNumberToObject(json, "threads", threads);
    cli_json_line(stdout, json);
}

static int bench_model(const bench_options *o, const char *path, const char *image)
{
    const squint_model_options model_options = {.isa = o->isa};
    squint_model *model = NULL;
    squint_session *session = NULL;
    stage_times times = {0};
    squint_msg msg;
    squint_err err = squint_model_open(&model, path, &model_options, &msg);
    if (!err) err = squint_session_open(&session, model, &o->session, &msg);
    if (!err) err = time_stages(o, session, image, &times, &msg);
    cli_bar_clear();
    if (!err) print_stages(o, session, &times);
    squint_session_close(&session);
    squint_model_close(&model);
    if (err) return cli_fail(err, &msg);
    return cli_flush() ? CLI_DONE : CLI_FAILED;
}

/* ---- A made model's prefill ---------------------------------------------------------------- */

/* The vocabulary is kept small: only prefill is measured, and it never multiplies by all of it. */
typedef struct made_shape {
    const char *name;
    uint32_t d, f, n_heads, n_vocab;
} made_shape;

static const made_shape shapes[] = {
    {"7b", 4096, 11008, 32, 512}, /* Vicuna-7B */
    {"tiny", 256, 688, 8, 512},
};
static const char *const shape_words[] = {"7b", "tiny", NULL};

typedef struct made_type {
    const char *name;
    sq_panel_type type;
    uint32_t group;
} made_type;

static const made_type made_types[] = {{"int8", SQ_PANEL_I8, 0}, {"int4", SQ_PANEL_I4, 128}};
static const char *const type_words[] = {"q8", "q4", "both", NULL};

enum { MADE_TYPES = SQ_COUNT(made_types), BOTH = MADE_TYPES, MAX_MADE_LAYERS = 32 };

typedef struct made_times {
    double dense_ms, pmod_ms, macs, macs_dense;
} made_times;

typedef struct made_bench {
    const made_shape *shape;
    unsigned n_layers, n_vision, n_text;
    float ratio[MAX_MADE_LAYERS];
    bool is_mod[MAX_MADE_LAYERS];
    made_times times[MADE_TYPES];
    unsigned first_type, last_type;
    unsigned threads;
    const char *isa;
} made_bench;

/* p-MoD-LLaVA-7B routes layers 8 to 31 of 32; layer l keeps max(cos(pi l / 31) / 2 + 0.5, 0.15). Ours take theirs at
 * even steps from the first to the last. */
static void choose_ratios(made_bench *b)
{
    const double pi = 3.14159265358979323846, first = 8, last = 31;
    for (unsigned i = 0; i < b->n_layers; i++) {
        const double step = b->n_layers > 1 ? (double)i / (b->n_layers - 1) : 0.5;
        const double layer = round(first + step * (last - first));
        b->ratio[i] = (float)fmax(cos(pi * layer / last) / 2 + 0.5, 0.15);
        b->is_mod[i] = true;
    }
}

static void fill_random(float *x, size_t n)
{
    uint64_t state = 1;
    for (size_t i = 0; i < n; i++) { /* xorshift64*; uniform in [-1, 1) */
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        x[i] = (float)((state * 0x2545F4914F6CDD1Du) >> 40) * 0x1p-23f - 1.0f;
    }
}

/* Milliseconds of a prefill's layers, and of what follows them: the fastest of each. A disturbance thus costs a layer's
 * time rather than a whole run's, and long runs are no worse off than short ones. */
typedef struct prefill_times {
    double best[MAX_MADE_LAYERS + 1], since;
} prefill_times;

static bool on_layer(void *user, squint_stage stage, unsigned done, unsigned total)
{
    prefill_times *t = user;
    const double now = sq_now_ms();
    if (stage == SQUINT_STAGE_PREFILL && done <= total && total <= MAX_MADE_LAYERS)
        t->best[done - 1] = fmin(t->best[done - 1], now - t->since);
    t->since = now;
    return !cli_interrupted();
}

static double sum_of(const prefill_times *t, unsigned n_layers)
{
    double sum = 0;
    for (unsigned i = 0; i <= n_layers; i++)
        sum += t->best[i];
    return sum;
}

static squint_err time_prefill(squint_session *s, const uint32_t *ids, uint32_t n, prefill_times *t, squint_msg *msg)
{
    sq_session_reset(s);
    s->on_progress = on_layer;
    s->progress_user = t;
    t->since = sq_now_ms();
    const squint_err err = sq_session_forward(s, ids, n, 1, msg);
    double *rest = &t->best[s->model->n_layers];
    *rest = fmin(*rest, sq_now_ms() - t->since);
    s->on_progress = NULL;
    return err;
}

/*
 * The dense runs use the same model: without vision tokens a pass routes nothing, so as many text tokens take the
 * dense path through the same weights.
 */
static squint_err time_made(const made_bench *b, const bench_options *o, squint_session *s, made_times *t,
                            squint_msg *msg)
{
    const uint32_t n = b->n_vision + b->n_text;
    uint32_t *dense = cli_alloc(n, sizeof *dense), *routed = cli_alloc(n, sizeof *routed);
    prefill_times dense_times, pmod_times;
    squint_err err = SQUINT_OK;
    for (uint32_t i = 0; i < n; i++) {
        dense[i] = i % b->shape->n_vocab;
        routed[i] = i < b->n_vision ? SQ_IMAGE_TOKEN : dense[i];
    }
    for (unsigned i = 0; i <= b->n_layers; i++)
        dense_times.best[i] = pmod_times.best[i] = INFINITY;
    fill_random(s->vision, (size_t)b->n_vision * b->shape->d);
    for (unsigned rep = 0; !err && rep < o->reps; rep++) {
        cli_bar("measuring", (double)rep / o->reps);
        err = time_prefill(s, dense, n, &dense_times, msg);
        if (!err) err = time_prefill(s, routed, n, &pmod_times, msg);
    }
    *t = (made_times){sum_of(&dense_times, b->n_layers), sum_of(&pmod_times, b->n_layers), s->macs, s->macs_dense};
    free(dense);
    free(routed);
    return err;
}

static squint_err bench_type(made_bench *b, const bench_options *o, unsigned type, squint_msg *msg)
{
    const made_shape *shape = b->shape;
    const uint32_t rows = b->n_vision + b->n_text;
    const uint32_t max_tokens = rows + b->n_vision; /* the dense runs' tokens are all text */
    const sq_synthetic made = {.n_layers = b->n_layers,
                               .d = shape->d,
                               .f = shape->f,
                               .n_heads = shape->n_heads,
                               .n_kv_heads = shape->n_heads,
                               .n_vocab = shape->n_vocab,
                               .n_ctx = max_tokens,
                               .type = made_types[type].type,
                               .group = made_types[type].group,
                               .layer_is_mod = b->is_mod,
                               .layer_ratio = b->ratio};
    sq_limits limits = {.max_rows = rows, .max_tokens = max_tokens, .max_logits = 1, .max_vision = b->n_vision};
    const squint_model_options model_options = {.isa = o->isa};
    squint_model *model = NULL;
    squint_session *session = NULL;
    cli_bar("making weights", 0);
    squint_err err = sq_synthetic_open(&model, &made, &model_options, msg);
    if (!err) {
        limits.kv = sq_kv_of(model, o->session.kv);
        err = sq_session_open_limits(&session, model, &o->session, &limits, msg);
    }
    if (!err) err = time_made(b, o, session, &b->times[type], msg);
    if (!err) {
        b->isa = squint_model_isa(model);
        b->threads = squint_session_threads(session);
    }
    squint_session_close(&session);
    squint_model_close(&model);
    return err;
}

static void print_made(const made_bench *b, unsigned reps)
{
    printf("%s shape, %u layers, %u vision and %u text tokens, %s, %u threads, best of %u\nratios", b->shape->name,
           b->n_layers, b->n_vision, b->n_text, b->isa, b->threads, reps);
    for (unsigned i = 0; i < b->n_layers; i++)
        printf(" %.4f", (double)b->ratio[i]);
    printf("\n\n%-6s %12s %12s %12s %12s\n", "type", "dense ms", "p-MoD ms", "time ratio", "MAC ratio");
    for (unsigned i = b->first_type; i <= b->last_type; i++) {
        const made_times *t = &b->times[i];
        printf("%-6s %12.1f %12.1f %12.4f %12.4f\n", made_types[i].name, t->dense_ms, t->pmod_ms,
               t->pmod_ms / t->dense_ms, t->macs / t->macs_dense);
    }
}

static void add_ratios(cJSON *json, const made_times *t)
{
    cli_json_number(json, "dense_ms", t->dense_ms, 3);
    cli_json_number(json, "pmod_ms", t->pmod_ms, 3);
    cli_json_number(json, "time_ratio", t->pmod_ms / t->dense_ms, 6);
    cli_json_number(json, "mac_ratio", t->macs / t->macs_dense, 6);
}

static void print_made_json(const made_bench *b, unsigned reps)
{
    cJSON *json = cJSON_CreateObject();
    made_times all = {0};
    cJSON_AddStringToObject(json, "shape", b->shape->name);
    cJSON_AddNumberToObject(json, "layers", b->n_layers);
    cJSON_AddNumberToObject(json, "vision", b->n_vision);
    cJSON_AddNumberToObject(json, "text", b->n_text);
    cJSON *ratios = cJSON_AddArrayToObject(json, "ratios"), *results = cJSON_AddArrayToObject(json, "results");
    for (unsigned i = 0; i < b->n_layers; i++)
        cJSON_AddItemToArray(ratios, cJSON_CreateNumber(round((double)b->ratio[i] * 1e6) / 1e6));
    for (unsigned i = b->first_type; i <= b->last_type; i++) {
        const made_times *t = &b->times[i];
        cJSON *result = cJSON_CreateObject();
        cJSON_AddStringToObject(result, "type", made_types[i].name);
        add_ratios(result, t);
        cJSON_AddItemToArray(results, result);
        all.dense_ms += t->dense_ms;
        all.pmod_ms += t->pmod_ms;
        all.macs += t->macs;
        all.macs_dense += t->macs_dense;
    }
    add_ratios(json, &all); /* of the types together */
    cJSON_AddStringToObject(json, "isa", b->isa);
    cJSON_AddNumberToObject(json, "threads", b->threads);
    cJSON_AddNumberToObject(json, "reps", reps);
    cli_json_line(stdout, json);
}

static int bench_made(made_bench *b, const bench_options *o)
{
    squint_msg msg;
    squint_err err = SQUINT_OK;
    choose_ratios(b);
    cli_watch_interrupts(NULL);
    for (unsigned i = b->first_type; !err && i <= b->last_type; i++)
        err = bench_type(b, o, i, &msg);
    cli_unwatch_interrupts();
    cli_bar_clear();
    if (err) return cli_fail(err, &msg);
    if (o->json)
        print_made_json(b, o->reps);
    else
        print_made(b, o->reps);
    return cli_flush() ? CLI_DONE : CLI_FAILED;
}

/* ---- The command --------------------------------------------------------------------------- */

static int run(const cli_command *self, int argc, char **argv)
{
    enum { NO_SHAPE = SQ_COUNT(shapes) };
    const char *model = NULL;
    unsigned shape = NO_SHAPE, type = BOTH, kv = SQUINT_KV_AUTO;
    made_bench made = {.n_layers = 4, .n_vision = 576, .n_text = 64};
    bench_options o = {.reps = 5};
    const cli_option options[] = {
        CLI_ROW_MODEL(&model),
        CLI_ROW_CHOICE('s', "synthetic", &shape, shape_words, "SHAPE", "random weights of this shape: 7b, tiny"),
        CLI_ROW_NUMBER(0, "layers", &made.n_layers, 1, MAX_MADE_LAYERS, NULL, "N", "layers of it (default: 4)"),
        CLI_ROW_NUMBER(0, "vision", &made.n_vision, 1, 16384, NULL, "N", "vision tokens (default: 576)"),
        CLI_ROW_NUMBER(0, "text", &made.n_text, 1, 16384, NULL, "N", "text tokens (default: 64)"),
        CLI_ROW_CHOICE('t', "type", &type, type_words, "TYPE", "weights: q8, q4 or both (default: both)"),
        CLI_ROW_NUMBER('r', "reps", &o.reps, 1, 10000, NULL, "N", "runs; the fastest counts (default: 5)"),
        CLI_ROW_FLAG(0, "json", &o.json, "one JSON object instead"),
        CLI_ROW_THREADS(&o.session.threads),
        CLI_ROW_ISA(&o.isa),
        CLI_ROW_KV(&kv),
        CLI_ROW_END,
    };
    int first, status;
    if (!cli_parse(self, options, argc, argv, &first, &status)) return status;
    o.session.kv = (squint_kv)kv;
    cli_bar_enable();
    if (shape == NO_SHAPE) {
        if (argc - first != 1) return cli_misuse(self, "bench: give an image, or --synthetic SHAPE");
        model = cli_model_path(model);
        return model ? bench_model(&o, model, argv[first]) : CLI_MISUSED;
    }
    if (first < argc) return cli_misuse(self, "bench: --synthetic takes no image");
    made.shape = &shapes[shape];
    made.first_type = type == BOTH ? 0 : type;
    made.last_type = type == BOTH ? MADE_TYPES - 1 : type;
    return bench_made(&made, &o);
}

const cli_command bench_command = {
    .name = "bench",
    .operands = "[IMAGE]",
    .summary = "measure a model's stages, or what routing saves",
    .details = "With IMAGE: milliseconds of each stage of a caption. With --synthetic: prefill of random weights,\n"
               "dense and with the ratios of p-MoD-LLaVA-7B's layers 8 to 31 spread over the layers; ratio of\n"
               "times and of multiply-adds. Runs take turns, and the fastest of each layer's counts, so that what\n"
               "else the machine does meets both alike.",
    .run = run,
};
