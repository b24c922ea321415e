/*
 * squint eval: a model against people's captions.
 * SPDX-License-Identifier: MIT
 *
 * Each picture is run once: image, tower, prefill. Then captions are tried on that prefix: the model's own, token by
 * token, and each reference in one pass, its tokens taken off again afterwards (sq_session_rewind).
 */
#include "runtime/engine.h"
#include "tools/squint/asked.h"
#include "tools/squint/cli.h"
#include "tools/squint/dataset.h"
#include "tools/squint/metrics.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { DUMP_MAGIC = 0x53514C47, STAGES = SQUINT_STAGE_COUNT };

/* A reference as the model writes it; the end token is not among the ids. */
typedef struct reference {
    uint32_t *ids;
    size_t n_ids, n_words;
} reference;

typedef struct totals {
    size_t images, captions, tokens, words, written; /* tokens: of references, each end included */
    double nll;                                      /* nats */
    double ms[STAGES], kv_bytes, kv_bytes_dense, macs, macs_dense;
} totals;

typedef struct eval_job {
    /* What was asked for. */
    const char *model_path, *mmproj_path, *data_path, *split, *dump_path, *captions_path;
    unsigned limit, max_tokens;
    bool shuffle, nll_only, json;
    uint64_t seed;
    /* What it takes. */
    squint_model *model;
    squint_session *session;
    dataset data;
    size_t *picture_of;     /* [data.n] whose picture a sample is shown */
    reference **references; /* [data.n][n_captions] */
    size_t longest;         /* reference, in tokens */
    uint32_t *words;        /* [n_words] the prompt, a token in the image's place */
    uint32_t *prompt;       /* [n_prompt] with the picture's vision tokens; room for most_prompt */
    uint32_t n_words, n_prompt, most_prompt;
    uint32_t *ids;    /* [most_prompt + longest] of a dumped pass */
    float *first;     /* [n_vocab] logits after the prompt */
    uint32_t **kept;  /* [n_layers][n_kept] positions of a dumped pass */
    uint32_t *n_kept; /* [n_layers] */
    char *raw, *text; /* the model's caption: bytes of its tokens; as UTF-8, trimmed */
    metrics *metrics;
    FILE *dump, *captions;
    totals totals;
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
            if (r.n_ids > job->longest) job->longest = r.n_ids;
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

/* ---- Session ------------------------------------------------------------------------------- */

static squint_err make_prompt(eval_job *job, squint_msg *msg)
{
    const squint_err err = asked_prompt(job->model, NULL, &job->words, &job->n_words, msg);
    if (err) return err;
    job->most_prompt = job->n_words - 1 + job->model->n_vision;
    job->prompt = cli_alloc(job->most_prompt, sizeof *job->prompt);
    return SQUINT_OK;
}

static void expand_prompt(eval_job *job)
{
    memcpy(job->prompt, job->words, job->n_words * sizeof *job->prompt);
    sq_prompt_expand(job->prompt, job->n_words, job->session->n_vision);
    job->n_prompt = job->n_words - 1 + job->session->n_vision;
}

static squint_err open_session(eval_job *job, const squint_session_options *options, squint_msg *msg)
{
    const squint_model *m = job->model;
    const size_t after = job->longest > job->max_tokens ? job->longest : job->max_tokens;
    const size_t total = job->most_prompt + after;
    if (total > m->n_ctx)
        return sq_fail(msg, SQUINT_ERR_LIMIT, "%s: %u tokens of prompt and %zu of caption; the model's context is %u",
                       job->model_path, job->most_prompt, after, m->n_ctx);
    const uint32_t rows = job->most_prompt + (uint32_t)job->longest;
    const sq_limits limits = {.max_rows = rows,
                              .max_tokens = (uint32_t)total,
                              .max_logits = job->dump ? rows : (uint32_t)job->longest + 1,
                              .max_vision = m->n_vision,
                              .kv = sq_kv_of(m, options->kv)};
    job->ids = cli_alloc(rows, sizeof *job->ids);
    job->first = cli_alloc(m->n_vocab, sizeof *job->first);
    job->raw = cli_alloc((size_t)job->max_tokens + 1, sq_tokenizer_max_piece(m->tokenizer));
    job->text = cli_alloc((size_t)job->max_tokens + 1, 3 * sq_tokenizer_max_piece(m->tokenizer));
    return sq_session_open_limits(&job->session, m, options, &limits, msg);
}

/* ---- One picture --------------------------------------------------------------------------- */

static double lap(double *since)
{
    const double now = sq_now_ms(), ms = now - *since;
    *since = now;
    return ms;
}

static squint_err see(eval_job *job, const char *path, squint_msg *msg)
{
    squint_session *s = job->session;
    totals *t = &job->totals;
    double clock = sq_now_ms();
    squint_err err = asked_picture(s, path, msg);
    if (err) return err;
    expand_prompt(job);
    t->ms[SQUINT_STAGE_IMAGE] += lap(&clock);
    sq_session_reset(s);
    if ((err = sq_session_encode(s, msg))) return err;
    t->ms[SQUINT_STAGE_TOWER] += lap(&clock);
    if ((err = sq_session_forward(s, job->prompt, job->n_prompt, 1, msg))) return err;
    t->ms[SQUINT_STAGE_PREFILL] += lap(&clock);
    memcpy(job->first, s->logits, job->model->n_vocab * sizeof *job->first);
    t->kv_bytes += (double)sq_session_kv_bytes(s);
    t->kv_bytes_dense += (double)sq_session_kv_bytes_dense(s);
    t->macs += s->macs;
    t->macs_dense += s->macs_dense;
    return SQUINT_OK;
}

/* job->raw to job->text. */
static void finish_text(eval_job *job, size_t bytes)
{
    static const char space[] = " \t\n\v\f\r";
    char *text = job->raw;
    text[bytes] = 0;
    const size_t skip = strspn(text, space);
    while (bytes > skip && text[bytes - 1] && strchr(space, text[bytes - 1]))
        bytes--;
    cli_clean_text(text + skip, bytes - skip, job->text);
}

/* The model's own words, greedily. */
static squint_err write_caption(eval_job *job, squint_msg *msg)
{
    squint_session *s = job->session;
    const sq_tokenizer *t = job->model->tokenizer;
    const size_t max_piece = sq_tokenizer_max_piece(t);
    sq_sampler greedy = {0};
    double clock = sq_now_ms();
    size_t used = 0;
    squint_err err = SQUINT_OK;
    uint32_t id = sq_sample(&greedy, job->first, job->model->n_vocab, NULL);
    for (unsigned n = 0; !err && id != sq_tokenizer_eos(t) && n < job->max_tokens; n++) {
        used += sq_detokenize(t, id, job->raw + used, max_piece);
        job->totals.written++;
        if (n + 1 == job->max_tokens) break;
        err = sq_session_forward(s, &id, 1, 1, msg);
        if (!err) id = sq_sample(&greedy, s->logits, job->model->n_vocab, NULL);
    }
    finish_text(job, used);
    job->totals.ms[SQUINT_STAGE_DECODE] += lap(&clock);
    return err ? err : sq_session_rewind(s, job->n_prompt, msg);
}

/* -log softmax(logits)[id] */
static double surprise(const float *logits, uint32_t n, uint32_t id)
{
    float most = logits[0];
    double sum = 0;
    for (uint32_t i = 1; i < n; i++)
        most = logits[i] > most ? logits[i] : most;
    for (uint32_t i = 0; i < n; i++)
        sum += exp((double)logits[i] - (double)most);
    return log(sum) + (double)most - (double)logits[id];
}

/* Row i of a reference's pass foretells token i + 1; the prompt's last row foretold token 0. */
static squint_err score_reference(eval_job *job, const reference *r, squint_msg *msg)
{
    squint_session *s = job->session;
    totals *t = &job->totals;
    const uint32_t n_vocab = job->model->n_vocab, n = (uint32_t)r->n_ids, eos = sq_tokenizer_eos(job->model->tokenizer);
    squint_err err = n ? sq_session_forward(s, r->ids, n, n, msg) : SQUINT_OK;
    if (err) return err;
    double nll = surprise(job->first, n_vocab, n ? r->ids[0] : eos);
    for (uint32_t i = 0; i < n; i++)
        nll += surprise(s->logits + (size_t)i * n_vocab, n_vocab, i + 1 < n ? r->ids[i + 1] : eos);
    t->nll += nll;
    t->tokens += r->n_ids + 1;
    t->words += r->n_words;
    t->captions++;
    return sq_session_rewind(s, job->n_prompt, msg);
}

static void print_caption(const eval_job *job, const sample *s, const sample *shown)
{
    cJSON *json = cJSON_CreateObject(), *references = cJSON_CreateArray();
    cJSON_AddItemToObject(json, "file", cli_json_text(shown->file, strlen(shown->file)));
    cJSON_AddItemToObject(json, "caption", cli_json_text(job->text, strlen(job->text)));
    for (size_t i = 0; i < s->n_captions; i++)
        cJSON_AddItemToArray(references, cli_json_text(s->captions[i], strlen(s->captions[i])));
    cJSON_AddItemToObject(json, "references", references);
    cli_json_line(job->captions, json);
}

/* ---- Logits for comparison with another program -------------------------------------------- */

static void on_trace(void *user, sq_trace_what what, int layer, const void *data, uint32_t rows, uint32_t cols)
{
    eval_job *job = user;
    if (what != SQ_TRACE_KEPT || layer < 0 || (uint32_t)layer >= job->model->n_layers) return;
    const size_t n = (size_t)rows * cols;
    memcpy(job->kept[layer], data, n * sizeof **job->kept);
    job->n_kept[layer] = (uint32_t)n;
}

static void put_u32(FILE *f, uint32_t v)
{
    const uint8_t bytes[] = {(uint8_t)v, (uint8_t)(v >> 8), (uint8_t)(v >> 16), (uint8_t)(v >> 24)};
    fwrite(bytes, sizeof bytes, 1, f);
}

static void put_f32(FILE *f, float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    put_u32(f, bits);
}

static void put_record(const eval_job *job, uint32_t n)
{
    const squint_model *m = job->model;
    put_u32(job->dump, DUMP_MAGIC);
    put_u32(job->dump, n);
    put_u32(job->dump, m->n_vocab);
    put_u32(job->dump, m->n_layers);
    for (uint32_t l = 0; l < m->n_layers; l++) {
        put_u32(job->dump, job->n_kept[l]);
        for (uint32_t i = 0; i < job->n_kept[l]; i++)
            put_u32(job->dump, job->kept[l][i]);
    }
    for (size_t i = 0; i < (size_t)n * m->n_vocab; i++)
        put_f32(job->dump, job->session->logits[i]);
}

/* Prompt and first reference in one pass; the picture's vision tokens are those that see() left. Layers that no trace
 * speaks of are dense. */
static squint_err dump_logits(eval_job *job, const reference *r, squint_msg *msg)
{
    squint_session *s = job->session;
    const uint32_t n = job->n_prompt + (uint32_t)r->n_ids;
    memcpy(job->ids, job->prompt, job->n_prompt * sizeof *job->ids);
    memcpy(job->ids + job->n_prompt, r->ids, r->n_ids * sizeof *job->ids);
    for (uint32_t l = 0; l < job->model->n_layers; l++) {
        job->n_kept[l] = n;
        for (uint32_t i = 0; i < n; i++)
            job->kept[l][i] = i;
    }
    s->trace = on_trace;
    s->trace_user = job;
    sq_session_reset(s);
    const squint_err err = sq_session_forward(s, job->ids, n, n, msg);
    s->trace = NULL;
    if (!err) put_record(job, n);
    return err;
}

static void plan_dump(eval_job *job)
{
    job->kept = cli_alloc(job->model->n_layers, sizeof *job->kept);
    job->n_kept = cli_alloc(job->model->n_layers, sizeof *job->n_kept);
    for (uint32_t l = 0; l < job->model->n_layers; l++)
        job->kept[l] = cli_alloc(job->most_prompt + job->longest, sizeof **job->kept);
}

/* ---- All pictures -------------------------------------------------------------------------- */

static squint_err eval_sample(eval_job *job, size_t i, squint_msg *msg)
{
    const sample *s = &job->data.samples[i], *shown = &job->data.samples[job->picture_of[i]];
    squint_err err = see(job, shown->path, msg);
    if (!err && !job->nll_only) {
        if ((err = write_caption(job, msg))) return err;
        metrics_add(job->metrics, job->text, (const char *const *)s->captions, s->n_captions);
        if (job->captions) print_caption(job, s, shown);
    }
    for (size_t c = 0; !err && c < s->n_captions; c++)
        err = score_reference(job, &job->references[i][c], msg);
    if (!err && job->dump) err = dump_logits(job, &job->references[i][0], msg);
    job->totals.images++;
    return err;
}

static squint_err eval_samples(eval_job *job, squint_msg *msg)
{
    squint_err err = SQUINT_OK;
    for (size_t i = 0; !err && i < job->data.n; i++) {
        char label[64];
        snprintf(label, sizeof label, "%zu of %zu", i, job->data.n);
        cli_bar(label, (double)i / (double)job->data.n);
        err = cli_interrupted() ? SQUINT_ERR_CANCELLED : eval_sample(job, i, msg);
    }
    cli_bar_clear();
    return err;
}

/* ---- Report -------------------------------------------------------------------------------- */

static double ratio(double a, double b) { return b > 0 ? a / b : 0; }

static void print_text(const eval_job *job, const metrics_scores *scores)
{
    const totals *t = &job->totals;
    const double n = (double)t->images;
    printf("pictures       %zu%s, %zu captions\n", t->images, job->shuffle ? ", shuffled" : "", t->captions);
    printf("NLL            %.4f a token, %.4f a word (%zu tokens, %zu words)\n", ratio(t->nll, (double)t->tokens),
           ratio(t->nll, (double)t->words), t->tokens, t->words);
    if (!job->nll_only)
        printf("exact match    %.2f %%\nBLEU-4         %.4f (1 to 3: %.4f %.4f %.4f)\nCIDEr-D        %.4f\n",
               100 * scores->exact, scores->bleu[3], scores->bleu[0], scores->bleu[1], scores->bleu[2], scores->cider);
    printf("KV cache       %.0f bytes after the prompt, %.2f %% of dense\n", t->kv_bytes / n,
           100 * ratio(t->kv_bytes, t->kv_bytes_dense));
    printf("multiply-adds  %.4g a prefill, %.2f %% of dense\n", t->macs / n, 100 * ratio(t->macs, t->macs_dense));
    printf("milliseconds   image %.2f, tower %.2f, prefill %.2f, decode %.2f (%.1f tokens)\n",
           t->ms[SQUINT_STAGE_IMAGE] / n, t->ms[SQUINT_STAGE_TOWER] / n, t->ms[SQUINT_STAGE_PREFILL] / n,
           t->ms[SQUINT_STAGE_DECODE] / n, (double)t->written / n);
    printf("with           %s, %u threads\n", squint_model_isa(job->model), squint_session_threads(job->session));
}

static cJSON *stages_json(const totals *t)
{
    static const char *const names[STAGES] = {"image", "tower", "prefill", "decode"};
    cJSON *json = cJSON_CreateObject();
    for (int i = 0; i < STAGES; i++)
        cli_json_number(json, names[i], t->ms[i] / (double)t->images, 3);
    return json;
}

static void print_json(const eval_job *job, const metrics_scores *scores)
{
    const totals *t = &job->totals;
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
    if (!job->nll_only) {
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
    cJSON_AddStringToObject(json, "isa", squint_model_isa(job->model));
    cJSON_AddNumberToObject(json, "threads", squint_session_threads(job->session));
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

static squint_err prepare(eval_job *job, const squint_model_options *model_options,
                          const squint_session_options *options, squint_msg *msg)
{
    squint_err err = squint_model_open(&job->model, job->model_path, model_options, msg);
    if (err) return err;
    cli_tell_mode(job->model);
    if (!job->model->n_vision) return sq_fail(msg, SQUINT_ERR_UNSUPPORTED, "%s: has no vision tower", job->model_path);
    tokenize_references(job);
    choose_pictures(job);
    if ((err = make_prompt(job, msg))) return err;
    if (job->dump) plan_dump(job);
    return open_session(job, options, msg);
}

static void release(eval_job *job)
{
    for (size_t i = 0; job->references && i < job->data.n; i++) {
        for (size_t c = 0; c < job->data.samples[i].n_captions; c++)
            free(job->references[i][c].ids);
        free(job->references[i]);
    }
    for (uint32_t l = 0; job->kept && l < job->model->n_layers; l++)
        free(job->kept[l]);
    void *const parts[] = {job->references, job->kept, job->n_kept, job->picture_of, job->words,
                           job->prompt,     job->ids,  job->first,  job->raw,        job->text};
    for (size_t i = 0; i < SQ_COUNT(parts); i++)
        free(parts[i]);
    metrics_free(job->metrics);
    squint_session_close(&job->session);
    squint_model_close(&job->model);
    dataset_free(&job->data);
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
        cli_watch_interrupts(job->session);
        if (!err) err = eval_samples(job, &msg);
        cli_unwatch_interrupts();
        if (!err) report(job);
        status = err ? cli_fail(err, &msg) : cli_flush() ? CLI_DONE : CLI_FAILED;
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
    eval_job job = {.max_tokens = 64, .seed = 1};
    const cli_option options[] = {
        CLI_ROW_MODEL(&job.model_path),
        CLI_ROW_MMPROJ(&model_options.mmproj),
        CLI_ROW_TEXT('d', "data", &job.data_path, "PATH", "folder with a captions.jsonl, or such a list"),
        CLI_ROW_TEXT(0, "split", &job.split, "NAME", "only lines whose \"split\" is NAME (default: all)"),
        CLI_ROW_NUMBER(0, "limit", &job.limit, 0, 1 << 30, "0: all", "N", "only the first N lines (default: 0, all)"),
        CLI_ROW_FLAG(0, "nll", &job.nll_only, "NLL only: write no captions"),
        CLI_ROW_FLAG(0, "shuffle", &job.shuffle, "show each caption's picture to another: what seeing is worth"),
        CLI_ROW_SEED(0, "seed", &job.seed, "of --shuffle (default: 1)"),
        CLI_ROW_NUMBER('n', "max-tokens", &job.max_tokens, 1, 4096, NULL, "N",
                       "longest caption to write, in tokens (default: 64)"),
        CLI_ROW_TEXT(0, "captions", &job.captions_path, "FILE", "write the captions there, a JSON object a line"),
        CLI_ROW_TEXT(0, "dump-logits", &job.dump_path, "FILE",
                     "write logits and kept positions of each picture with its first caption there"),
        CLI_ROW_FLAG(0, "json", &job.json, "one JSON object instead"),
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
               "  cost         KV bytes and multiply-adds of the prefill against a dense model's, milliseconds\n\n"
               "--dump-logits writes little-endian records: u32 0x53514C47, positions, vocabulary, layers; for each\n"
               "layer u32 count and positions that it ran; then f32 logits [positions][vocabulary].",
    .run = run,
};
