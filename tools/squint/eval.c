/*
 * squint eval: a model against people's captions.
 * SPDX-License-Identifier: MIT
 *
 * Several sessions look at pictures side by side, each at the next that nobody has. What comes of them is told in the
 * list's order: sums, captions and dumps are the same to the last digit, however many sessions there are.
 */
#include "tools/squint/eval.h"
#include "tools/squint/asked.h"
#include "tools/squint/cli.h"
#include "tools/squint/dataset.h"
#include "tools/squint/metrics.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_JOBS = 64, DEVICE_JOBS = 16, AHEAD = 4 };

/* What came of a picture, until its turn. */
typedef struct outcome {
    bool there;
    squint_err err;
    squint_msg msg;
    eval_sums sums;
    char *caption;
} outcome;

/* A session and the picture that it is at. */
typedef struct worker {
    eval_session eval;
    size_t at;
} worker;

typedef struct eval_job {
    /* What was asked for. */
    const char *model_path, *mmproj_path, *data_path, *split, *dump_path, *captions_path;
    unsigned limit, n_jobs;
    bool shuffle, json;
    uint64_t seed;
    eval_task task;
    /* What it takes. */
    squint_model *model;
    dataset data;
    size_t *picture_of;     /* [data.n] whose picture a sample is shown */
    reference **references; /* [data.n][n_captions] */
    worker *workers;        /* [n_jobs] */
    FILE *dump, *captions;
    /* Pictures under way, which `lock` guards: those before n_told are told, those from `end` on are of no interest. */
    pthread_mutex_t lock;
    pthread_cond_t moved; /* n_told or end */
    size_t n_told, end;
    outcome *window; /* [n_window] of picture i at i % n_window */
    size_t n_window;
    squint_err err; /* of the first picture that failed */
    squint_msg msg;
    /* What came of all. */
    metrics *metrics;
    eval_sums sums;
    double ms; /* from the first picture to the last */
} eval_job;

/* ---- References ---------------------------------------------------------------------------- */

static reference tokenize_reference(const sq_tokenizer *t, const char *text)
{
    const size_t bytes = strlen(text);
    void *scratch = cli_alloc(sq_tokenizer_scratch(bytes), 1);
    reference r = {.ids = cli_alloc(bytes + 4, sizeof *r.ids), .n_words = metrics_count_words(text)};
    r.n_ids = sq_tokenize(t, text, bytes, true, scratch, r.ids, bytes + 4); /* room that is always enough */
    free(scratch);
    return r;
}

static void tokenize_references(eval_job *job)
{
    job->references = cli_alloc(job->data.n, sizeof *job->references);
    for (size_t i = 0; i < job->data.n; i++) {
        const sample *s = &job->data.samples[i];
        job->references[i] = cli_alloc(s->n_captions, sizeof **job->references);
        for (size_t c = 0; c < s->n_captions; c++) {
            const reference r = tokenize_reference(job->model->tokenizer, s->captions[c]);
            job->references[i][c] = r;
            if (r.n_ids > job->task.longest) job->task.longest = r.n_ids;
        }
    }
}

static uint64_t next_random(uint64_t *state) /* splitmix64 */
{
    uint64_t z = (*state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* A cycle through all samples (Sattolo's algorithm): none keeps its own picture. */
static void choose_pictures(eval_job *job)
{
    uint64_t state = job->seed;
    job->picture_of = cli_alloc(job->data.n, sizeof *job->picture_of);
    for (size_t i = 0; i < job->data.n; i++)
        job->picture_of[i] = i;
    for (size_t i = job->data.n - 1; job->shuffle && i > 0; i--) {
        const size_t j = next_random(&state) % i, other = job->picture_of[j];
        job->picture_of[j] = job->picture_of[i];
        job->picture_of[i] = other;
    }
}

/* ---- Pictures, in order -------------------------------------------------------------------- */

static void print_caption(const eval_job *job, const sample *s, const sample *shown, const char *caption)
{
    cJSON *json = cJSON_CreateObject(), *references = cJSON_CreateArray();
    cJSON_AddItemToObject(json, "file", cli_json_text(shown->file, strlen(shown->file)));
    cJSON_AddItemToObject(json, "caption", cli_json_text(caption, strlen(caption)));
    for (size_t i = 0; i < s->n_captions; i++)
        cJSON_AddItemToArray(references, cli_json_text(s->captions[i], strlen(s->captions[i])));
    cJSON_AddItemToObject(json, "references", references);
    cli_json_line(job->captions, json);
    fflush(job->captions); /* whoever waits for them has them as they come */
}

static void show_progress(const eval_job *job)
{
    char label[64];
    snprintf(label, sizeof label, "%zu of %zu", job->n_told, job->data.n);
    cli_bar(label, (double)job->n_told / (double)job->data.n);
}

/* The outcome whose turn it is. */
static void tell(eval_job *job, outcome *o)
{
    const sample *const s = &job->data.samples[job->n_told];
    if (o->err) {
        job->err = o->err;
        job->msg = o->msg;
    } else {
        eval_sums_add(&job->sums, &o->sums);
    }
    if (!o->err && o->caption) {
        metrics_add(job->metrics, o->caption, (const char *const *)s->captions, s->n_captions);
        if (job->captions) print_caption(job, s, &job->data.samples[job->picture_of[job->n_told]], o->caption);
    }
    free(o->caption);
    *o = (outcome){0};
    job->n_told++;
    show_progress(job);
}

/* Nothing after the first picture that fails is of interest; those before it are. */
static void end_with(eval_job *job, size_t i)
{
    job->end = i + 1;
    for (unsigned w = 0; w < job->n_jobs; w++)
        if (job->workers[w].at > i) squint_session_cancel(job->workers[w].eval.session);
}

/* Waits until few enough are ahead of the list, and of a picture that has been run, until it is its turn. */
static bool await(eval_job *job, worker *w, size_t i, size_t ahead)
{
    pthread_mutex_lock(&job->lock);
    while (i >= job->n_told + ahead && i < job->end)
        pthread_cond_wait(&job->moved, &job->lock);
    const bool wanted = i < job->end;
    w->at = i;
    pthread_mutex_unlock(&job->lock);
    return wanted;
}

static void hand_in(eval_job *job, size_t i, const outcome *o)
{
    pthread_mutex_lock(&job->lock);
    if (i < job->end) {
        job->window[i % job->n_window] = *o;
        if (o->err) end_with(job, i);
    } else {
        free(o->caption);
    }
    while (job->n_told < job->end && job->window[job->n_told % job->n_window].there)
        tell(job, &job->window[job->n_told % job->n_window]);
    pthread_cond_broadcast(&job->moved);
    pthread_mutex_unlock(&job->lock);
}

static char *copy_text(const char *text)
{
    const size_t bytes = strlen(text) + 1;
    return memcpy(cli_alloc(bytes, 1), text, bytes);
}

static void eval_sample(void *ctx, unsigned i, unsigned index)
{
    eval_job *const job = ctx;
    worker *const w = &job->workers[index];
    const sample *const shown = &job->data.samples[job->picture_of[i]];
    outcome o = {.there = true};
    if (!await(job, w, i, job->n_window)) return;
    o.err = cli_interrupted() ? SQUINT_ERR_CANCELLED
                              : eval_session_run(&w->eval, shown->path, job->references[i],
                                                 job->data.samples[i].n_captions, &o.sums, &o.msg);
    if (!o.err && !job->task.nll_only) o.caption = copy_text(w->eval.text);
    /* A dump's logits are too large to be kept: the session that has them waits. */
    if (!o.err && job->dump && await(job, w, i, 1)) eval_session_dump(&w->eval, job->dump);
    hand_in(job, i, &o);
}

static squint_err eval_samples(eval_job *job, squint_msg *msg)
{
    const squint_allocator a = sq_allocator_or_default(NULL);
    sq_pool *pool = NULL;
    const squint_err err = sq_pool_open(&pool, job->n_jobs, &a, msg);
    if (err) return err;
    pthread_mutex_init(&job->lock, NULL);
    pthread_cond_init(&job->moved, NULL);
    job->end = job->data.n;
    job->n_window = (size_t)job->n_jobs * AHEAD;
    job->window = cli_alloc(job->n_window, sizeof *job->window);
    show_progress(job);
    const double start = sq_now_ms();
    sq_pool_run(pool, (unsigned)job->data.n, eval_sample, job);
    job->ms = sq_now_ms() - start;
    sq_pool_close(&pool);
    pthread_cond_destroy(&job->moved);
    pthread_mutex_destroy(&job->lock);
    cli_bar_clear();
    *msg = job->msg;
    return job->err;
}

/* ---- Report -------------------------------------------------------------------------------- */

static double ratio(double a, double b) { return b > 0 ? a / b : 0; }

static void print_text(const eval_job *job, const metrics_scores *scores)
{
    const eval_sums *t = &job->sums;
    const double n = (double)t->images;
    char runner[160];
    printf("pictures       %zu%s, %zu captions\n", t->images, job->shuffle ? ", shuffled" : "", t->captions);
    printf("NLL            %.4f a token, %.4f a word (%zu tokens, %zu words)\n", ratio(t->nll, (double)t->tokens),
           ratio(t->nll, (double)t->words), t->tokens, t->words);
    if (!job->task.nll_only)
        printf("exact match    %.2f %%\nBLEU-4         %.4f (1 to 3: %.4f %.4f %.4f)\nCIDEr-D        %.4f\n",
               100 * scores->exact, scores->bleu[3], scores->bleu[0], scores->bleu[1], scores->bleu[2], scores->cider);
    printf("KV cache       %.0f bytes after the prompt, %.2f %% of dense\n", t->kv_bytes / n,
           100 * ratio(t->kv_bytes, t->kv_bytes_dense));
    printf("multiply-adds  %.4g a prefill, %.2f %% of dense\n", t->macs / n, 100 * ratio(t->macs, t->macs_dense));
    printf("milliseconds   image %.2f, tower %.2f, prefill %.2f, decode %.2f (%.1f tokens)\n",
           t->ms[SQUINT_STAGE_IMAGE] / n, t->ms[SQUINT_STAGE_TOWER] / n, t->ms[SQUINT_STAGE_PREFILL] / n,
           t->ms[SQUINT_STAGE_DECODE] / n, (double)t->written / n);
    printf("speed          %.2f pictures a second\n", 1000 * ratio(n, job->ms));
    printf("with           %s", cli_runner(job->workers->eval.session, job->model, runner));
    if (job->n_jobs > 1) printf("; %u sessions side by side", job->n_jobs);
    putchar('\n');
}

static cJSON *stages_json(const eval_sums *t)
{
    static const char *const names[SQUINT_STAGE_COUNT] = {"image", "tower", "prefill", "decode"};
    cJSON *json = cJSON_CreateObject();
    for (int i = 0; i < SQUINT_STAGE_COUNT; i++)
        cli_json_number(json, names[i], t->ms[i] / (double)t->images, 3);
    return json;
}

static void print_json(const eval_job *job, const metrics_scores *scores)
{
    const eval_sums *t = &job->sums;
    const double n = (double)t->images;
    cJSON *json = cJSON_CreateObject();
    cJSON_AddItemToObject(json, "model", cli_json_text(job->model_path, strlen(job->model_path)));
    cJSON_AddItemToObject(json, "data", cli_json_text(job->data_path, strlen(job->data_path)));
    cJSON_AddNumberToObject(json, "images", n);
    cJSON_AddNumberToObject(json, "captions", (double)t->captions);
    cJSON_AddBoolToObject(json, "shuffled", job->shuffle);
    cJSON_AddNumberToObject(json, "tokens", (double)t->tokens);
    cJSON_AddNumberToObject(json, "words", (double)t->words);
    cli_json_number(json, "nll_token", ratio(t->nll, (double)t->tokens), 6);
    cli_json_number(json, "nll_word", ratio(t->nll, (double)t->words), 6);
    if (!job->task.nll_only) {
        cJSON *bleu = cJSON_AddArrayToObject(json, "bleu");
        for (int i = 0; i < METRICS_ORDERS; i++)
            cJSON_AddItemToArray(bleu, cJSON_CreateNumber(round(scores->bleu[i] * 1e6) / 1e6));
        cli_json_number(json, "exact", scores->exact, 6);
        cli_json_number(json, "bleu4", scores->bleu[3], 6);
        cli_json_number(json, "cider", scores->cider, 6);
    }
    cli_json_number(json, "kv_bytes", t->kv_bytes / n, 1);
    cli_json_number(json, "kv_bytes_dense", t->kv_bytes_dense / n, 1);
    cli_json_number(json, "macs", t->macs / n, 0);
    cli_json_number(json, "macs_dense", t->macs_dense / n, 0);
    cli_json_number(json, "mac_ratio", ratio(t->macs, t->macs_dense), 6);
    cJSON_AddItemToObject(json, "ms", stages_json(t));
    cli_json_number(json, "tokens_written", (double)t->written / n, 3);
    cJSON_AddStringToObject(json, "mode", squint_model_mode(job->model));
    cli_json_number(json, "images_per_second", 1000 * ratio(n, job->ms), 4);
    cJSON_AddNumberToObject(json, "jobs", job->n_jobs);
    cli_json_runner(json, job->workers->eval.session, job->model);
    cli_json_line(stdout, json);
}

static void report(const eval_job *job)
{
    const metrics_scores scores = metrics_compute(job->metrics);
    if (job->json)
        print_json(job, &scores);
    else
        print_text(job, &scores);
}

/* ---- The command --------------------------------------------------------------------------- */

static bool spares_inputs(const eval_job *job, const char *option, const char *path)
{
    const char *const inputs[] = {job->model_path, job->mmproj_path, job->data.list};
    bool spared =
        cli_spares(option, path, "the model", inputs, 2) && cli_spares(option, path, "the list", inputs + 2, 1);
    for (size_t i = 0; spared && path && i < job->data.n; i++)
        spared = cli_spares(option, path, "one of the pictures", (const char *const *)&job->data.samples[i].path, 1);
    return spared;
}

static bool open_output(FILE **f, const char *path)
{
    if (!path || (*f = fopen(path, "wb"))) return true;
    cli_say("%s: %s", path, strerror(errno));
    return false;
}

static bool close_output(FILE *f, const char *path)
{
    if (!f) return true;
    const bool failed = ferror(f);
    if (!fclose(f) && !failed) return true;
    cli_say("%s: cannot be written", path);
    return false;
}

static unsigned least_of(unsigned a, unsigned b) { return a < b ? a : b; }

/* On the CPU a session keeps all cores busy by itself; on a device it has to wait for it. */
static unsigned choose_jobs(const eval_job *job)
{
    const unsigned usual = job->model->device_ops ? least_of(sq_cpu_count(), DEVICE_JOBS) : 1;
    const unsigned asked = job->n_jobs ? job->n_jobs : usual;
    return job->data.n < asked ? (unsigned)job->data.n : asked;
}

static squint_err open_sessions(eval_job *job, squint_session_options options, squint_msg *msg)
{
    const unsigned n = choose_jobs(job), cores = sq_cpu_count();
    squint_err err = SQUINT_OK;
    if (n > 1 && !options.threads) options.threads = cores > n ? cores / n : 1;
    job->workers = cli_alloc(n, sizeof *job->workers);
    for (job->n_jobs = 0; !err && job->n_jobs < n; job->n_jobs++)
        err = eval_session_open(&job->workers[job->n_jobs].eval, &job->task, &options, msg);
    return err;
}

static squint_err prepare(eval_job *job, const squint_model_options *model_options,
                          const squint_session_options *options, squint_msg *msg)
{
    squint_err err = squint_model_open(&job->model, job->model_path, model_options, msg);
    if (err) return err;
    cli_tell_mode(job->model);
    if (!job->model->n_vision) return sq_fail(msg, SQUINT_ERR_UNSUPPORTED, "%s: has no vision tower", job->model_path);
    tokenize_references(job);
    choose_pictures(job);
    eval_task *const task = &job->task;
    task->model = job->model;
    task->model_path = job->model_path;
    task->dumps = job->dump != NULL;
    if ((err = asked_prompt(job->model, NULL, &task->words, &task->n_words, msg))) return err;
    task->most_prompt = task->n_words - 1 + job->model->n_vision;
    return open_sessions(job, *options, msg);
}

static void release(eval_job *job)
{
    for (size_t i = 0; job->references && i < job->data.n; i++) {
        for (size_t c = 0; c < job->data.samples[i].n_captions; c++)
            free(job->references[i][c].ids);
        free(job->references[i]);
    }
    for (size_t i = 0; job->window && i < job->n_window; i++)
        free(job->window[i].caption);
    for (unsigned i = 0; i < job->n_jobs && job->workers; i++)
        eval_session_close(&job->workers[i].eval);
    void *const parts[] = {job->references, job->picture_of, job->task.words, job->window, job->workers};
    for (size_t i = 0; i < SQ_COUNT(parts); i++)
        free(parts[i]);
    metrics_free(job->metrics);
    squint_model_close(&job->model);
    dataset_free(&job->data);
}

static int fail(const eval_job *job, squint_err err, const squint_msg *msg)
{
    squint_msg longer;
    if (err != SQUINT_ERR_NOMEM || job->n_jobs < 2) return cli_fail(err, msg);
    sq_fail(&longer, err, "%.400s (--jobs asks for fewer pictures at a time than %u)", msg->text, job->n_jobs);
    return cli_fail(err, &longer);
}

static int evaluate(eval_job *job, const squint_model_options *model_options, const squint_session_options *options)
{
    squint_msg msg = {""};
    int status = CLI_DONE;
    if (!open_output(&job->dump, job->dump_path) || !open_output(&job->captions, job->captions_path)) {
        status = CLI_FAILED;
    } else {
        job->metrics = metrics_new();
        squint_err err = prepare(job, model_options, options, &msg);
        cli_watch_interrupts(NULL);
        if (!err) err = eval_samples(job, &msg);
        cli_unwatch_interrupts();
        if (!err) report(job);
        status = err ? fail(job, err, &msg) : cli_flush() ? CLI_DONE : CLI_FAILED;
    }
    if (!close_output(job->dump, job->dump_path)) status = CLI_FAILED;
    if (!close_output(job->captions, job->captions_path)) status = CLI_FAILED;
    return status;
}

static int run(const cli_command *self, int argc, char **argv)
{
    squint_model_options model_options = {.on_note = cli_note};
    unsigned kv = SQUINT_KV_AUTO;
    squint_session_options session = {0};
    eval_job job = {.task.max_tokens = 64, .seed = 1};
    const cli_option options[] = {
        CLI_ROW_MODEL(&job.model_path),
        CLI_ROW_MMPROJ(&model_options.mmproj),
        CLI_ROW_TEXT('d', "data", &job.data_path, "PATH", "folder with a captions.jsonl, or such a list"),
        CLI_ROW_TEXT(0, "split", &job.split, "NAME", "only lines whose \"split\" is NAME (default: all)"),
        CLI_ROW_NUMBER(0, "limit", &job.limit, 0, 1 << 30, "0: all", "N", "only the first N lines (default: 0, all)"),
        CLI_ROW_FLAG(0, "nll", &job.task.nll_only, "NLL only: write no captions"),
        CLI_ROW_FLAG(0, "shuffle", &job.shuffle, "show each caption's picture to another: what seeing is worth"),
        CLI_ROW_SEED(0, "seed", &job.seed, "of --shuffle (default: 1)"),
        CLI_ROW_NUMBER('n', "max-tokens", &job.task.max_tokens, 1, 4096, NULL, "N",
                       "longest caption to write, in tokens (default: 64)"),
        CLI_ROW_TEXT(0, "captions", &job.captions_path, "FILE", "write the captions there, a JSON object a line"),
        CLI_ROW_TEXT(0, "dump-logits", &job.dump_path, "FILE",
                     "write logits and kept positions of each picture with its first caption there"),
        CLI_ROW_FLAG(0, "json", &job.json, "one JSON object instead"),
        CLI_ROW_DEVICE(&model_options.device),
        CLI_ROW_NUMBER('j', "jobs", &job.n_jobs, 0, MOST_JOBS, "0: 1, on a device one per core and at most 16", "N",
                       "pictures at a time, each with --threads, or its share of the cores (default: 0, 1 on the CPU)"),
        CLI_ROW_THREADS(&session.threads),
        CLI_ROW_MODE(&model_options.mode),
        CLI_ROW_SCHEDULE(&session.schedule),
        CLI_ROW_KEEP(&session.keep),
        CLI_ROW_ISA(&model_options.isa),
        CLI_ROW_KV(&kv),
        CLI_ROW_END,
    };
    int first, status;
    if (!cli_parse(self, options, argc, argv, &first, &status)) return status;
    if (first < argc) return cli_misuse(self, "eval: what is \"%s\" for? Data is named by --data", argv[first]);
    if (!job.data_path) return cli_misuse(self, "eval: --data says where pictures and captions are");
    if (!(job.model_path = cli_model_path(job.model_path))) return CLI_MISUSED;
    job.mmproj_path = model_options.mmproj;
    session.kv = (squint_kv)kv;
    cli_bar_enable();
    if (!dataset_read(&job.data, job.data_path, job.split, job.limit)) return CLI_FAILED;
    if (job.shuffle && job.data.n < 2) {
        dataset_free(&job.data);
        return cli_misuse(self, "eval: --shuffle needs two pictures");
    }
    const bool spared =
        spares_inputs(&job, "--dump-logits", job.dump_path) && spares_inputs(&job, "--captions", job.captions_path);
    status = spared ? evaluate(&job, &model_options, &session) : CLI_MISUSED;
    release(&job);
    return status;
}

const cli_command eval_command = {
    .name = "eval",
    .operands = "--data PATH",
    .summary = "score a model against people's captions",
    .details = "Reads a list of {\"file\": ..., \"captions\": [...]} lines and prints, over all pictures:\n"
               "  NLL          nats a token of the references, teacher-forced, end token included; and a word\n"
               "  exact match  greedy captions equal to a reference; BLEU and CIDEr-D as coco-caption has them,\n"
               "               on lower-case words between white space\n"
               "  cost         KV bytes and multiply-adds of the prefill against a dense model's, milliseconds of\n"
               "               a picture, and pictures a second, which --jobs makes more of\n\n"
               "--jobs changes nothing but the times: results are in the list's order, and equal to the last digit.\n"
               "Each has a session's memory (squint info tells it), and on a device the same again there.\n\n"
               "--dump-logits writes little-endian records: u32 0x53514C47, positions, vocabulary, layers; for each\n"
               "layer u32 count and positions that it ran; then f32 logits [positions][vocabulary].",
    .run = run,
};
