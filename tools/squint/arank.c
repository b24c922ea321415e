/*
 * squint arank: which layers of a dense model attend so simply that they may skip tokens (gamma-MoD, arXiv 2410.13859).
 * SPDX-License-Identifier: MIT
 *
 * Each sample is a picture and a prompt, run dense. As soon as a layer has its queries and keys, a thread takes a head,
 * makes its attention map and counts the singular values: never more than a map a thread is in memory.
 */
#include "tools/squint/arank.h"

#include "runtime/engine.h"
#include "tools/squint/asked.h"
#include "tools/squint/cli.h"
#include "tools/squint/rank.h"

#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static const float PAPERS_SHARE = 0.1f; /* a rank of 110 for some 1,100 tokens */

/* A prompt's tokens, one in the image's place. */
typedef struct prompt {
    char *text; /* NULL: the model's own */
    uint32_t *ids;
    uint32_t n;
} prompt;

typedef struct sample {
    const char *image;
    const prompt *prompt;
    double *ranks;     /* [n_layers] means over heads */
    uint32_t n_tokens; /* of prompt and image */
    bool done;
} sample;

typedef struct arank_job {
    /* What was asked for. */
    const char *model_path, *prompts_path, *plot_path;
    char **images;
    size_t n_images;
    float threshold, percentile; /* negative: not given */
    bool json, quiet;
    /* What it takes. */
    squint_model *model;
    squint_session *session;
    prompt *prompts;
    size_t n_prompts;
    sample *samples;
    size_t n_samples, n_done;
    rank_memory *memory; /* [threads] */
    /* The sample at hand. */
    size_t at;
    uint32_t *ids; /* its tokens */
    float *qkv;    /* [n_rows][all heads] of a layer, as far as it is traced */
    uint32_t n_rows;
    int *ranks;        /* [n_heads] of a layer */
    int bad_layer;     /* one whose map had no rank; -1: none */
    double started_ms; /* of all samples */
} arank_job;

/* ---- Prompts ------------------------------------------------------------------------------- */

static squint_err tokenize_prompt(const arank_job *job, prompt *p, squint_msg *msg)
{
    return asked_prompt(job->model, p->text, &p->ids, &p->n, msg);
}

static squint_err tokenize_prompts(arank_job *job, squint_msg *msg)
{
    const squint_model *m = job->model;
    for (size_t i = 0; i < job->n_prompts; i++) {
        const squint_err err = tokenize_prompt(job, &job->prompts[i], msg);
        if (err) return err;
        const uint32_t least = job->prompts[i].n - 1 + m->n_vision_base;
        if (least > asked_limit(m))
            return sq_fail(msg, SQUINT_ERR_LIMIT, "prompt %zu has %u tokens with the image's; the model takes %u",
                           i + 1, least, asked_limit(m));
    }
    return SQUINT_OK;
}

static char *copy_text(const char *text, size_t bytes)
{
    char *copy = cli_alloc(bytes + 1, 1);
    memcpy(copy, text, bytes);
    return copy;
}

/* A prompt a line; lines of nothing are left out. */
static bool read_lines(arank_job *job, FILE *f)
{
    char *line = NULL;
    size_t capacity = 0, n;
    bool failed;
    while (cli_read_line(f, job->prompts_path, &line, &capacity, &n, &failed)) {
        if (n && line[n - 1] == '\r') n--;
        if (!n) continue;
        job->prompts = cli_grow(job->prompts, job->n_prompts + 1, sizeof *job->prompts);
        job->prompts[job->n_prompts++] = (prompt){.text = copy_text(line, n)};
    }
    free(line);
    if (!failed && !job->n_prompts) cli_say("%s: has no prompts; one a line", job->prompts_path);
    return !failed && job->n_prompts;
}

static bool read_prompts(arank_job *job)
{
    if (!job->prompts_path) {
        job->prompts = cli_alloc(job->n_prompts = 1, sizeof *job->prompts);
        return true;
    }
    FILE *f = fopen(job->prompts_path, "r");
    if (!f) return cli_say("%s: %s", job->prompts_path, strerror(errno)), false;
    const bool read = read_lines(job, f);
    fclose(f);
    return read;
}

/* ---- Ranks --------------------------------------------------------------------------------- */

typedef struct layer_job {
    arank_job *job;
    const float *qkv; /* [n][cols] */
    uint32_t n, cols;
    int layer;
    atomic_uint heads_done;
} layer_job;

static void show_progress(const layer_job *l)
{
    const arank_job *job = l->job;
    const double layers = job->model->n_layers, heads = (double)atomic_load(&l->heads_done) / job->model->n_heads;
    char label[96];
    snprintf(label, sizeof label, "sample %zu of %zu, layer %d of %.0f", job->at + 1, job->n_samples, l->layer + 1,
             layers);
    cli_bar(label, ((double)job->at + (l->layer + heads) / layers) / (double)job->n_samples);
}

static void rank_head_of(void *ctx, unsigned head, unsigned worker)
{
    layer_job *const l = ctx;
    arank_job *const job = l->job;
    const squint_model *m = job->model;
    const uint32_t kv_head = head * m->n_kv_heads / m->n_heads;
    const rank_head h = {.q = l->qkv + head * m->head_dim,
                         .k = l->qkv + (m->n_heads + kv_head) * m->head_dim,
                         .ld = l->cols,
                         .n = l->n,
                         .head_dim = m->head_dim,
                         .dot = m->kernels->dot};
    if (cli_interrupted()) return;
    rank_map(&h, &job->memory[worker]);
    job->ranks[head] = rank_of(&job->memory[worker], l->n);
    atomic_fetch_add(&l->heads_done, 1);
    if (!worker) show_progress(l);
}

static void rank_layer(arank_job *job, int layer, uint32_t cols)
{
    layer_job l = {.job = job, .qkv = job->qkv, .n = job->n_rows, .cols = cols, .layer = layer};
    double sum = 0;
    sq_pool_run(job->session->pool, job->model->n_heads, rank_head_of, &l);
    for (uint32_t h = 0; h < job->model->n_heads; h++) {
        sum += job->ranks[h];
        if (job->ranks[h] < 0) job->bad_layer = layer;
    }
    job->samples[job->at].ranks[layer] = sum / job->model->n_heads;
}

/* A dense layer runs all rows, a block at a time. */
static void on_trace(void *user, sq_trace_what what, int layer, const void *data, uint32_t rows, uint32_t cols)
{
    arank_job *job = user;
    (void)what;
    memcpy(job->qkv + (size_t)job->n_rows * cols, data, (size_t)rows * cols * sizeof *job->qkv);
    job->n_rows += rows;
    if (job->n_rows < job->samples[job->at].n_tokens) return;
    rank_layer(job, layer, cols);
    job->n_rows = 0;
}

/* ---- Samples ------------------------------------------------------------------------------- */

static squint_err build_sample(arank_job *job, sample *s, squint_msg *msg)
{
    const uint32_t n_vision = job->session->n_vision, most = job->session->limits.max_rows;
    s->n_tokens = s->prompt->n - 1 + n_vision;
    if (s->n_tokens > most)
        return sq_fail(msg, SQUINT_ERR_LIMIT, "%s: %u tokens with the prompt's; the model takes %u", s->image,
                       s->n_tokens, most);
    memcpy(job->ids, s->prompt->ids, s->prompt->n * sizeof *job->ids);
    sq_prompt_expand(job->ids, s->prompt->n, n_vision);
    return SQUINT_OK;
}

static squint_err measure(arank_job *job, squint_msg *msg)
{
    sample *const s = &job->samples[job->at];
    squint_err err = asked_picture(job->session, s->image, msg);
    if (!err) err = build_sample(job, s, msg);
    if (!err) err = sq_session_encode(job->session, msg);
    if (err) return err;
    s->ranks = cli_alloc(job->model->n_layers, sizeof *s->ranks);
    job->bad_layer = -1;
    job->n_rows = 0;
    sq_session_reset(job->session);
    err = sq_session_forward(job->session, job->ids, s->n_tokens, 1, msg);
    if (!err && job->bad_layer >= 0)
        err = sq_fail(msg, SQUINT_ERR_NUMERIC, "%s: attention in layer %d is not finite", s->image, job->bad_layer);
    s->done = !err;
    job->n_done += !err;
    return err;
}

/* A picture that fails gets a message, the others go on. */
static int measure_all(arank_job *job)
{
    int status = CLI_DONE;
    cli_watch_interrupts(job->session);
    job->started_ms = sq_now_ms();
    for (job->at = 0; job->at < job->n_samples && !cli_interrupted(); job->at++) {
        squint_msg msg;
        const squint_err err = measure(job, &msg);
        if (!err || cli_interrupted()) continue;
        const int came_of_it = cli_fail(err, &msg);
        if (came_of_it > status) status = came_of_it;
    }
    cli_bar_clear();
    cli_unwatch_interrupts();
    return cli_interrupted() ? CLI_INTERRUPTED : status;
}

/* ---- Scores -------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Between the two nearest values, as numpy.percentile has it. */
static double percentile_of(const arank_layer *layers, uint32_t n, double percent)
{
    double *sorted = cli_alloc(n, sizeof *sorted);
    for (uint32_t l = 0; l < n; l++)
        sorted[l] = layers[l].rank;
    qsort(sorted, n, sizeof *sorted, by_value);
    const double place = percent / 100 * (n - 1);
    const uint32_t below = (uint32_t)place, above = below + 1 < n ? below + 1 : below;
    const double value = sorted[below] + (place - below) * (sorted[above] - sorted[below]);
    free(sorted);
    return value;
}

static void add_sample(arank_result *r, const sample *s)
{
    r->tokens += s->n_tokens;
    for (uint32_t l = 0; l < r->n_layers; l++) {
        arank_layer *layer = &r->layers[l];
        layer->rank += s->ranks[l];
        if (!r->n_samples || s->ranks[l] < layer->lowest) layer->lowest = s->ranks[l];
        if (!r->n_samples || s->ranks[l] > layer->highest) layer->highest = s->ranks[l];
    }
    r->n_samples++;
}

static void decide(const arank_job *job, arank_result *r)
{
    const double share = (double)(job->threshold < 0 ? PAPERS_SHARE : job->threshold);
    r->threshold = share * r->tokens;
    snprintf(r->rule, sizeof r->rule, "%.4g of the tokens", share);
    if (job->percentile >= 0) {
        r->threshold = percentile_of(r->layers, r->n_layers, (double)job->percentile);
        snprintf(r->rule, sizeof r->rule, "percentile %.4g of the layers", (double)job->percentile);
    }
    for (uint32_t l = 1; l + 1 < r->n_layers; l++)
        r->layers[l].mod = r->layers[l].rank < r->threshold;
}

static arank_result summarise(const arank_job *job)
{
    const char *slash = strrchr(job->model_path, '/');
    arank_result r = {.model = slash ? slash + 1 : job->model_path,
                      .n_layers = job->model->n_layers,
                      .n_heads = job->model->n_heads,
                      .layers = cli_alloc(job->model->n_layers, sizeof *r.layers)};
    for (size_t i = 0; i < job->n_samples; i++)
        if (job->samples[i].done) add_sample(&r, &job->samples[i]);
    r.tokens /= (double)r.n_samples;
    for (uint32_t l = 0; l < r.n_layers; l++)
        r.layers[l].rank /= (double)r.n_samples;
    decide(job, &r);
    return r;
}

/* ---- Report -------------------------------------------------------------------------------- */

static void print_bar(const arank_result *r, double rank)
{
    enum { CELLS = 40 };
    const int cells = (int)lround(CELLS * rank / r->tokens), mark = (int)lround(CELLS * r->threshold / r->tokens);
    for (int i = 0; i < CELLS; i++)
        putchar(i == mark ? '|' : i < cells ? '#' : '.');
}

static void print_list(const arank_result *r)
{
    const char *before = "";
    for (uint32_t l = 0; l < r->n_layers; l++)
        if (r->layers[l].mod) {
            printf("%s%u", before, l);
            before = ",";
        }
    puts(*before ? "" : "none");
}

static void print_text(const arank_result *r)
{
    printf("%zu sample%s of %.*f tokens, %u layers of %u heads; | is the threshold, %.1f: %s\n\n", r->n_samples,
           r->n_samples == 1 ? "" : "s", r->tokens == floor(r->tokens) ? 0 : 1, r->tokens, r->n_layers, r->n_heads,
           r->threshold, r->rule);
    printf("layer    rank  lowest highest  of all tokens\n");
    for (uint32_t l = 0; l < r->n_layers; l++) {
        const arank_layer *layer = &r->layers[l];
        printf("%5u  %6.1f  %6.1f  %6.1f  %3.0f %% ", l, layer->rank, layer->lowest, layer->highest,
               100 * layer->rank / r->tokens);
        print_bar(r, layer->rank);
        puts(layer->mod ? "  MoD" : l && l + 1 < r->n_layers ? "  dense" : "  dense, always");
    }
    printf("\nMoD layers: ");
    print_list(r);
}

static cJSON *numbers_json(const double *values, uint32_t n)
{
    cJSON *array = cJSON_CreateArray();
    for (uint32_t i = 0; i < n; i++)
        cJSON_AddItemToArray(array, cJSON_CreateNumber(round(values[i] * 1e4) / 1e4));
    return array;
}

static cJSON *sample_json(const sample *s, uint32_t n_layers)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddItemToObject(json, "file", cli_json_text(s->image, strlen(s->image)));
    if (s->prompt->text) cJSON_AddItemToObject(json, "prompt", cli_json_text(s->prompt->text, strlen(s->prompt->text)));
    cJSON_AddNumberToObject(json, "tokens", s->n_tokens);
    cJSON_AddItemToObject(json, "rank", numbers_json(s->ranks, n_layers));
    return json;
}

static cJSON *layer_json(const arank_result *r, const arank_layer *layer)
{
    cJSON *json = cJSON_CreateObject();
    cli_json_number(json, "rank", layer->rank, 4);
    cli_json_number(json, "lowest", layer->lowest, 4);
    cli_json_number(json, "highest", layer->highest, 4);
    cli_json_number(json, "share", layer->rank / r->tokens, 6);
    cJSON_AddBoolToObject(json, "mod", layer->mod);
    return json;
}

static void print_json(const arank_job *job, const arank_result *r)
{
    cJSON *json = cJSON_CreateObject(), *samples = cJSON_CreateArray(), *layers = cJSON_CreateArray();
    cJSON *mod = cJSON_CreateArray();
    for (size_t i = 0; i < job->n_samples; i++)
        if (job->samples[i].done) cJSON_AddItemToArray(samples, sample_json(&job->samples[i], r->n_layers));
    for (uint32_t l = 0; l < r->n_layers; l++) {
        cJSON_AddItemToArray(layers, layer_json(r, &r->layers[l]));
        if (r->layers[l].mod) cJSON_AddItemToArray(mod, cJSON_CreateNumber(l));
    }
    cJSON_AddItemToObject(json, "model", cli_json_text(r->model, strlen(r->model)));
    cJSON_AddNumberToObject(json, "heads", r->n_heads);
    cli_json_number(json, "tokens", r->tokens, 4);
    cli_json_number(json, "threshold", r->threshold, 4);
    cJSON_AddStringToObject(json, "rule", r->rule);
    cJSON_AddItemToObject(json, "mod_layers", mod);
    cJSON_AddItemToObject(json, "layer", layers);
    cJSON_AddItemToObject(json, "sample", samples);
    cli_json_line(stdout, json);
}

static void tell_time(const arank_job *job)
{
    char runner[160];
    const double s = (sq_now_ms() - job->started_ms) / 1000, maps = (double)job->n_done * job->model->n_layers;
    cli_say("%s: %.0f attention maps in %.1f s", cli_runner(job->session, job->model, runner),
            maps * job->model->n_heads, s);
}

static int report(const arank_job *job, int status)
{
    if (!job->n_done || status == CLI_INTERRUPTED) return status;
    arank_result r = summarise(job);
    if (job->json)
        print_json(job, &r);
    else
        print_text(&r);
    if (!cli_flush()) status = CLI_FAILED;
    if (job->plot_path && !arank_plot(&r, job->plot_path)) status = CLI_FAILED;
    if (!job->quiet) tell_time(job);
    free(r.layers);
    return status;
}

/* ---- The command --------------------------------------------------------------------------- */

static void list_samples(arank_job *job)
{
    job->n_samples = job->n_images > job->n_prompts ? job->n_images : job->n_prompts;
    job->samples = cli_alloc(job->n_samples, sizeof *job->samples);
    for (size_t i = 0; i < job->n_samples; i++)
        job->samples[i] =
            (sample){.image = job->images[i % job->n_images], .prompt = &job->prompts[i % job->n_prompts]};
}

static squint_err open_session(arank_job *job, const squint_session_options *options, squint_msg *msg)
{
    uint32_t longest = 0;
    for (size_t i = 0; i < job->n_prompts; i++)
        longest = job->prompts[i].n > longest ? job->prompts[i].n : longest;
    longest += job->model->n_vision - 1;
    if (longest > asked_limit(job->model)) longest = asked_limit(job->model);
    const sq_limits limits = {.max_rows = longest,
                              .max_tokens = longest,
                              .max_logits = 1,
                              .max_vision = job->model->n_vision,
                              .kv = sq_kv_of(job->model, options->kv)};
    const squint_err err = sq_session_open_limits(&job->session, job->model, options, &limits, msg);
    if (err) return err;
    job->session->trace = on_trace;
    job->session->trace_user = job;
    job->session->trace_mute = ~(1u << SQ_TRACE_QKV);
    job->ids = cli_alloc(longest, sizeof *job->ids);
    job->ranks = cli_alloc(job->model->n_heads, sizeof *job->ranks);
    job->qkv = cli_alloc((size_t)longest * (job->model->n_heads + 2 * job->model->n_kv_heads),
                         job->model->head_dim * sizeof *job->qkv);
    job->memory = cli_alloc(squint_session_threads(job->session), sizeof *job->memory);
    for (unsigned i = 0; i < squint_session_threads(job->session); i++)
        rank_memory_open(&job->memory[i], longest);
    return SQUINT_OK;
}

static squint_err prepare(arank_job *job, const squint_model_options *model_options,
                          const squint_session_options *options, squint_msg *msg)
{
    squint_err err = squint_model_open(&job->model, job->model_path, model_options, msg);
    if (err) return err;
    if (!job->model->n_vision) return sq_fail(msg, SQUINT_ERR_UNSUPPORTED, "%s: has no vision tower", job->model_path);
    if (!job->quiet && strcmp(squint_model_own_mode(job->model), "dense"))
        cli_say("runs dense, as ARank asks for; trained for %s, it may attend otherwise than a dense model",
                squint_model_own_mode(job->model));
    if ((err = tokenize_prompts(job, msg))) return err;
    list_samples(job);
    return open_session(job, options, msg);
}

static void release(arank_job *job)
{
    for (unsigned i = 0; job->memory && i < squint_session_threads(job->session); i++)
        rank_memory_close(&job->memory[i]);
    for (size_t i = 0; i < job->n_samples; i++)
        free(job->samples[i].ranks);
    for (size_t i = 0; i < job->n_prompts; i++) {
        free(job->prompts[i].text);
        free(job->prompts[i].ids);
    }
    free(job->memory);
    free(job->samples);
    free(job->prompts);
    free(job->ids);
    free(job->ranks);
    free(job->qkv);
    squint_session_close(&job->session);
    squint_model_close(&job->model);
}

static int run_job(arank_job *job, const squint_model_options *model_options, const squint_session_options *options)
{
    squint_msg msg;
    if (!read_prompts(job)) return CLI_FAILED;
    const squint_err err = prepare(job, model_options, options, &msg);
    return err ? cli_fail(err, &msg) : report(job, measure_all(job));
}

static int run(const cli_command *self, int argc, char **argv)
{
    squint_model_options model_options = {.mode = "dense", .on_note = cli_note};
    squint_session_options session = {0};
    unsigned kv = SQUINT_KV_AUTO;
    arank_job job = {.threshold = -1, .percentile = -1};
    const cli_option options[] = {
        CLI_ROW_MODEL(&job.model_path),
        CLI_ROW_MMPROJ(&model_options.mmproj),
        CLI_ROW_TEXT(0, "prompts", &job.prompts_path, "FILE",
                     "prompts, one a line (default: the model's own for each image)"),
        CLI_ROW_REAL(0, "threshold", &job.threshold, 0, 1, NULL, "R",
                     "suggest layers whose rank is below R times the tokens (default: 0.1)"),
        CLI_ROW_REAL(0, "percentile", &job.percentile, 0, 100, NULL, "P",
                     "suggest layers whose rank is below the P-th percentile of all layers' instead"),
        CLI_ROW_TEXT(0, "plot", &job.plot_path, "FILE", "draw ranks by layer, a PNG"),
        CLI_ROW_FLAG(0, "json", &job.json, "one JSON object instead, with the ranks of each sample"),
        CLI_ROW_DEVICE(&model_options.device),
        CLI_ROW_THREADS(&session.threads),
        CLI_ROW_ISA(&model_options.isa),
        CLI_ROW_KV(&kv),
        CLI_ROW_FLAG('q', "quiet", &job.quiet, "no progress, no timings"),
        CLI_ROW_END,
    };
    int first, status;
    if (!cli_parse(self, options, argc, argv, &first, &status)) return status;
    if (first == argc) return cli_misuse(self, "arank: which images?");
    if (job.threshold >= 0 && job.percentile >= 0)
        return cli_misuse(self, "arank: --threshold or --percentile, not both");
    if (!rank_available()) {
        cli_say("arank: this build has no LAPACK, which comes with OpenBLAS: build squint with -Dopenblas=enabled");
        return CLI_FAILED;
    }
    if (!(job.model_path = cli_model_path(job.model_path))) return CLI_MISUSED;
    job.images = argv + first;
    job.n_images = (size_t)(argc - first);
    if (!cli_spares("--plot", job.plot_path, "one of the pictures", (const char *const *)job.images, job.n_images) ||
        !cli_spares("--plot", job.plot_path, "the model", (const char *const[]){job.model_path, model_options.mmproj},
                    2) ||
        !cli_spares("--plot", job.plot_path, "the list of prompts", &job.prompts_path, 1))
        return CLI_MISUSED;
    session.kv = (squint_kv)kv;
    if (!job.quiet) cli_bar_enable();
    status = run_job(&job, &model_options, &session);
    release(&job);
    return status;
}

const cli_command arank_command = {
    .name = "arank",
    .operands = "IMAGE...",
    .summary = "find the layers of a dense model that may skip tokens",
    .details = "ARank (gamma-MoD, arXiv 2410.13859): the rank of a layer's attention maps, lower triangle without the\n"
               "diagonal, in float32, mean over heads and samples. A layer of low rank may become a\n"
               "Mixture-of-Depths layer; the first and the last one stay dense. The model runs dense, whatever\n"
               "its file says, and should be one that was trained so.\n\n"
               "A sample is an image with a prompt. There are as many as images or prompts, whichever are more:\n"
               "sample i has image i and prompt i, and the shorter list begins again at its end. 50 to 100 samples\n"
               "are usual. A map of N tokens takes N^3 operations: at 1,100 tokens 0.3 s of a core, and a model of\n"
               "32 layers x 32 heads has 1,024 of them a sample.",
    .run = run,
};
