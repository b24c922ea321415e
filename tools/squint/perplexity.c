/*
 * squint perplexity: how well a model foretells a text, and how far its predictions are from another's.
 * SPDX-License-Identifier: MIT
 *
 * A text is cut into passages: chunks of tokens, or captions of pictures. The model runs a passage, whose last tokens
 * are scored; what it is compared with, a file or another model, goes along row by row. Nothing of a passage is kept.
 */
#include "runtime/engine.h"
#include "tools/squint/asked.h"
#include "tools/squint/cli.h"
#include "tools/squint/dataset.h"
#include "tools/squint/logprobs.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { DEFAULT_CTX = 512, TEXT_CAP = 1 << 28 };

/* Tokens of which the last n_scored are foretold: a chunk of text, or a caption after the prompt with its picture. */
typedef struct passage {
    const char *picture; /* NULL: text */
    uint32_t *ids;       /* [n] */
    uint32_t n, n_scored;
} passage;

/* A model at work. */
typedef struct scorer {
    const char *path;
    squint_model *model;
    squint_session *session;
    passage *passages; /* [job.n] */
    uint32_t *words, *prompt;
    uint32_t n_words;
    float *first; /* [n_vocab] logits after a prompt with a picture */
} scorer;

typedef struct perplexity_job {
    const char *mmproj_path, *text_path, *picture, *data_path, *split, *save_path, *against_path;
    unsigned ctx, chunks, limit;
    bool json;
    char *text;
    size_t text_bytes;
    dataset data;
    scorer model, reference; /* reference.path NULL: none */
    size_t n;                /* passages */
    uint64_t n_rows;
    logprobs_writer *save;
    logprobs_reader *against;
    logprobs p, q; /* of the reference; of the model */
    divergence apart;
    double nll, squares;
    size_t n_scored;
} perplexity_job;

static bool compares(const perplexity_job *job) { return job->against_path || job->reference.path; }

/* ---- Passages ------------------------------------------------------------------------------ */

/* The text's ids, with BOS in front if the model has it so. */
static uint32_t *tokenize_text(const sq_tokenizer *t, const char *text, size_t bytes, bool with_bos, size_t *n)
{
    void *const scratch = cli_alloc(sq_tokenizer_scratch(bytes), 1);
    uint32_t *const ids = cli_alloc(bytes + 4, sizeof *ids);
    const bool bos = with_bos && sq_tokenizer_add_bos(t);
    if (bos) ids[0] = sq_tokenizer_bos(t);
    *n = bos + sq_tokenize(t, text, bytes, true, scratch, ids + bos, bytes + 3); /* room that is always enough */
    free(scratch);
    return ids;
}

/* Chunks of ctx tokens; a rest of less is left out. The second half of each is scored but for its first token, and BOS
 * takes the place of the chunk's first. */
static squint_err cut_text(const perplexity_job *job, scorer *s, size_t *n_passages, squint_msg *msg)
{
    const sq_tokenizer *const t = s->model->tokenizer;
    size_t n;
    uint32_t *const ids = tokenize_text(t, job->text, job->text_bytes, true, &n);
    size_t chunks = n / job->ctx;
    if (job->chunks && chunks > job->chunks) chunks = job->chunks;
    s->passages = cli_alloc(chunks, sizeof *s->passages);
    for (size_t i = 0; i < chunks; i++) {
        passage *const p = &s->passages[i];
        *p = (passage){.ids = cli_alloc(job->ctx, sizeof *p->ids), .n = job->ctx};
        memcpy(p->ids, ids + i * job->ctx, job->ctx * sizeof *p->ids);
        p->n_scored = job->ctx - job->ctx / 2 - 1;
        if (sq_tokenizer_add_bos(t)) p->ids[0] = sq_tokenizer_bos(t);
    }
    free(ids);
    *n_passages = chunks;
    if (chunks) return SQUINT_OK;
    return sq_fail(msg, SQUINT_ERR_ARGUMENT, "%s: %zu tokens, which is less than a chunk of %u (--ctx)", job->text_path,
                   n, job->ctx);
}

static passage caption_passage(const scorer *s, const char *picture, const char *text, size_t bytes)
{
    size_t n;
    uint32_t *const ids = tokenize_text(s->model->tokenizer, text, bytes, false, &n);
    ids[n++] = sq_tokenizer_eos(s->model->tokenizer);
    return (passage){.picture = picture, .ids = ids, .n = (uint32_t)n, .n_scored = (uint32_t)n};
}

static void list_captions(const perplexity_job *job, scorer *s, size_t *n_passages)
{
    size_t n = 0;
    for (size_t i = 0; i < job->data.n; i++)
        n += job->data.samples[i].n_captions;
    s->passages = cli_alloc(n, sizeof *s->passages);
    n = 0;
    for (size_t i = 0; i < job->data.n; i++)
        for (size_t c = 0; c < job->data.samples[i].n_captions; c++) {
            const char *const text = job->data.samples[i].captions[c];
            s->passages[n++] = caption_passage(s, job->data.samples[i].path, text, strlen(text));
        }
    *n_passages = n;
}

static squint_err make_passages(const perplexity_job *job, scorer *s, size_t *n, squint_msg *msg)
{
    if (!job->picture && !job->data_path) return cut_text(job, s, n, msg);
    if (!s->model->n_vision) return sq_fail(msg, SQUINT_ERR_UNSUPPORTED, "%s: has no vision tower", s->path);
    if (job->data_path) {
        list_captions(job, s, n);
        return SQUINT_OK;
    }
    s->passages = cli_alloc(*n = 1, sizeof *s->passages);
    s->passages[0] = caption_passage(s, job->picture, job->text, job->text_bytes);
    return SQUINT_OK;
}

/* Rows are compared place by place: the tokens must be the same. */
static squint_err check_same_tokens(const perplexity_job *job, size_t n, squint_msg *msg)
{
    const scorer *const a = &job->model, *const b = &job->reference;
    bool same = a->model->n_vocab == b->model->n_vocab && n == job->n;
    for (size_t i = 0; same && i < n; i++) {
        const passage *const x = &a->passages[i], *const y = &b->passages[i];
        same = x->n == y->n && !memcmp(x->ids, y->ids, x->n * sizeof *x->ids);
    }
    if (same) return SQUINT_OK;
    return sq_fail(msg, SQUINT_ERR_ARGUMENT, "--versus: %s has another tokenizer than %s", b->path, a->path);
}

/* ---- A model at work ----------------------------------------------------------------------- */

static squint_err make_prompt(scorer *s, squint_msg *msg)
{
    const squint_err err = asked_prompt(s->model, NULL, &s->words, &s->n_words, msg);
    s->prompt = cli_alloc((size_t)s->n_words + s->model->n_vision, sizeof *s->prompt);
    return err;
}

static squint_err open_session(const perplexity_job *job, scorer *s, const squint_session_options *options,
                               squint_msg *msg)
{
    const squint_model *const m = s->model;
    const bool pictures = s->passages[0].picture != NULL;
    uint32_t longest = 0, most_scored = 0;
    for (size_t i = 0; i < job->n; i++) {
        const passage *const p = &s->passages[i];
        longest = p->n > longest ? p->n : longest;
        most_scored = p->n_scored > most_scored ? p->n_scored : most_scored;
    }
    if (pictures) {
        const squint_err err = make_prompt(s, msg);
        if (err) return err;
    }
    const uint32_t vision = pictures ? m->n_vision : 0, total = longest + (pictures ? s->n_words - 1 + vision : 0);
    if (total > m->n_ctx)
        return sq_fail(msg, SQUINT_ERR_LIMIT, "%s: a passage of %u tokens; the model's context is %u", s->path, total,
                       m->n_ctx);
    const sq_limits limits = {.max_rows = total,
                              .max_tokens = total,
                              .max_logits = most_scored,
                              .max_vision = vision,
                              .kv = sq_kv_of(m, options->kv)};
    s->first = cli_alloc(m->n_vocab, sizeof *s->first);
    return sq_session_open_limits(&s->session, m, options, &limits, msg);
}

static squint_err see(scorer *s, const char *path, squint_msg *msg)
{
    squint_err err = asked_picture(s->session, path, msg);
    if (!err) err = sq_session_encode(s->session, msg);
    if (err) return err;
    const uint32_t n = s->n_words - 1 + s->session->n_vision;
    memcpy(s->prompt, s->words, s->n_words * sizeof *s->prompt);
    sq_prompt_expand(s->prompt, s->n_words, s->session->n_vision);
    err = sq_session_forward(s->session, s->prompt, n, 1, msg);
    if (!err) memcpy(s->first, s->session->logits, s->model->n_vocab * sizeof *s->first);
    return err;
}

/* The last token is foretold, and foretells nothing: it is not run. Captions of one picture come one after another. */
static squint_err run_passage(scorer *s, size_t i, squint_msg *msg)
{
    const passage *const p = &s->passages[i];
    const char *const before = i ? s->passages[i - 1].picture : NULL;
    squint_session *const session = s->session;
    squint_err err = SQUINT_OK;
    if (!p->picture || !before || strcmp(p->picture, before)) {
        sq_session_reset(session);
        if (p->picture) err = see(s, p->picture, msg);
    } else {
        err = sq_session_rewind(session, s->n_words - 1 + session->n_vision, msg);
    }
    const uint32_t n_logits = p->n_scored - (p->picture != NULL);
    if (!err && p->n > 1) err = sq_session_forward(session, p->ids, p->n - 1, n_logits, msg);
    return err;
}

/* Logits that foretell the passage's scored token i. */
static const float *logits_of(const scorer *s, const passage *p, uint32_t i)
{
    if (!p->picture) return s->session->logits + (size_t)i * s->model->n_vocab;
    return i ? s->session->logits + (size_t)(i - 1) * s->model->n_vocab : s->first;
}

/* ---- All passages -------------------------------------------------------------------------- */

static bool add_row(perplexity_job *job, const passage *p, uint32_t i, size_t number)
{
    const uint32_t token = p->ids[p->n - p->n_scored + i];
    logprobs_of_logits(&job->q, logits_of(&job->model, p, i), token);
    job->nll += job->q.nll;
    job->squares += job->q.nll * job->q.nll;
    job->n_scored++;
    if (job->save) logprobs_put(job->save, &job->q);
    if (job->against && !logprobs_get(job->against, token, &job->p)) return false;
    if (job->reference.path)
        logprobs_of_logits(&job->p, logits_of(&job->reference, &job->reference.passages[number], i), token);
    if (compares(job)) divergence_add(&job->apart, &job->p, &job->q);
    return true;
}

static squint_err score_passage(perplexity_job *job, size_t number, bool *told, squint_msg *msg)
{
    const passage *const p = &job->model.passages[number];
    squint_err err = run_passage(&job->model, number, msg);
    if (!err && job->reference.path) err = run_passage(&job->reference, number, msg);
    for (uint32_t i = 0; !err && !*told && i < p->n_scored; i++)
        *told = !add_row(job, p, i, number);
    return err;
}

/* @param told  set when something failed that has been told */
static squint_err score_all(perplexity_job *job, bool *told, squint_msg *msg)
{
    squint_err err = SQUINT_OK;
    for (size_t i = 0; !err && !*told && i < job->n; i++) {
        char label[80];
        snprintf(label, sizeof label, "%zu of %zu, perplexity %.4g", i, job->n,
                 job->n_scored ? exp(job->nll / (double)job->n_scored) : NAN);
        cli_bar(i ? label : "the first", (double)i / (double)job->n);
        err = cli_interrupted() ? SQUINT_ERR_CANCELLED : score_passage(job, i, told, msg);
    }
    cli_bar_clear();
    return err;
}

/* ---- Report -------------------------------------------------------------------------------- */

typedef struct report {
    double perplexity, error; /* of the perplexity */
    double reference;         /* perplexity */
    double change, change_error;
    double mean, mean_error, most, same_top; /* of the divergences */
    double quantiles[DIVERGENCE_QUANTILES];
} report;

static report make_report(perplexity_job *job)
{
    report r = {.perplexity = exp(job->nll / (double)job->n_scored)};
    r.error = r.perplexity * mean_error(job->nll, job->squares, job->n_scored);
    divergence *const d = &job->apart;
    const double n = (double)d->n;
    if (!d->n) return r;
    r.reference = exp(d->reference_nll / n);
    r.change = d->change_sum / n;
    r.change_error = mean_error(d->change_sum, d->change_squares, d->n);
    r.mean = d->kl_sum / n;
    r.mean_error = mean_error(d->kl_sum, d->kl_squares, d->n);
    r.same_top = (double)d->n_same_top / n;
    divergence_quantiles(d, r.quantiles);
    r.most = (double)d->kl[d->n - 1];
    return r;
}

static void print_text(const perplexity_job *job, const report *r)
{
    printf("passages           %zu, %zu tokens scored\n", job->n, job->n_scored);
    printf("perplexity         %.4f +- %.4f\n", r->perplexity, r->error);
    if (!compares(job)) return;
    printf("reference          %.4f\n", r->reference);
    printf("log of the ratio   %.6f +- %.6f\n", r->change, r->change_error);
    printf("KL divergence      %.6f +- %.6f, at most %.6f\n", r->mean, r->mean_error, r->most);
    printf("  quantiles       ");
    for (int i = 0; i < DIVERGENCE_QUANTILES; i++)
        printf(" %g %%: %.6f%s", 100 * divergence_shares[i], r->quantiles[i],
               i + 1 < DIVERGENCE_QUANTILES ? "," : "\n");
    printf("same likeliest     %.2f %%\n", 100 * r->same_top);
}

static void print_json(const perplexity_job *job, const report *r)
{
    cJSON *const json = cJSON_CreateObject();
    cJSON_AddItemToObject(json, "model", cli_json_text(job->model.path, strlen(job->model.path)));
    cJSON_AddNumberToObject(json, "passages", (double)job->n);
    cJSON_AddNumberToObject(json, "tokens", (double)job->n_scored);
    cli_json_number(json, "perplexity", r->perplexity, 6);
    cli_json_number(json, "perplexity_error", r->error, 6);
    if (compares(job)) {
        cli_json_number(json, "reference_perplexity", r->reference, 6);
        cli_json_number(json, "log_ratio", r->change, 8);
        cli_json_number(json, "log_ratio_error", r->change_error, 8);
        cli_json_number(json, "kl", r->mean, 8);
        cli_json_number(json, "kl_error", r->mean_error, 8);
        cli_json_number(json, "kl_max", r->most, 8);
        cJSON *const quantiles = cJSON_AddObjectToObject(json, "kl_quantiles");
        for (int i = 0; i < DIVERGENCE_QUANTILES; i++) {
            char share[16];
            snprintf(share, sizeof share, "%g", divergence_shares[i]);
            cli_json_number(quantiles, share, r->quantiles[i], 8);
        }
        cli_json_number(json, "same_top", r->same_top, 6);
    }
    cli_json_runner(json, job->model.session, job->model.model);
    cli_json_line(stdout, json);
}

/* ---- The command --------------------------------------------------------------------------- */

static squint_err open_scorer(perplexity_job *job, scorer *s, const squint_model_options *options, size_t *n,
                              squint_msg *msg)
{
    const squint_err err = squint_model_open(&s->model, s->path, options, msg);
    if (err) return err;
    cli_tell_mode(s->model);
    if (s == &job->model && !job->ctx) job->ctx = s->model->n_ctx < DEFAULT_CTX ? s->model->n_ctx : DEFAULT_CTX;
    return make_passages(job, s, n, msg);
}

static squint_err open_all(perplexity_job *job, const squint_model_options *model_options,
                           const squint_session_options *options, squint_msg *msg)
{
    size_t n = 0;
    squint_err err = open_scorer(job, &job->model, model_options, &job->n, msg);
    if (!err) err = open_session(job, &job->model, options, msg);
    if (!err && job->reference.path) {
        err = open_scorer(job, &job->reference, model_options, &n, msg);
        if (!err) err = check_same_tokens(job, n, msg);
        if (!err) err = open_session(job, &job->reference, options, msg);
    }
    for (size_t i = 0; !err && i < job->n; i++)
        job->n_rows += job->model.passages[i].n_scored;
    return err;
}

static bool open_files(perplexity_job *job)
{
    const uint32_t n_vocab = job->model.model->n_vocab, ctx = job->model.passages[0].picture ? 0 : job->ctx;
    logprobs_init(&job->p, n_vocab);
    logprobs_init(&job->q, n_vocab);
    if (job->against_path && !(job->against = logprobs_open(job->against_path, n_vocab, ctx, job->n_rows)))
        return false;
    return !job->save_path || (job->save = logprobs_create(job->save_path, n_vocab, ctx));
}

static int score(perplexity_job *job, const squint_model_options *model_options, const squint_session_options *options)
{
    squint_msg msg = {""};
    bool told = false;
    squint_err err = open_all(job, model_options, options, &msg);
    if (!err && !open_files(job)) return CLI_FAILED;
    cli_watch_interrupts(job->model.session);
    if (!err) err = score_all(job, &told, &msg);
    cli_unwatch_interrupts();
    const bool whole = !err && !told, saved = logprobs_close_writer(job->save, whole);
    if (err) return cli_fail(err, &msg);
    if (told || !saved) return CLI_FAILED;
    const report r = make_report(job);
    if (job->json)
        print_json(job, &r);
    else
        print_text(job, &r);
    return cli_flush() ? CLI_DONE : CLI_FAILED;
}

static void free_scorer(const perplexity_job *job, scorer *s)
{
    for (size_t i = 0; s->passages && i < job->n; i++)
        free(s->passages[i].ids);
    free(s->passages);
    free(s->words);
    free(s->prompt);
    free(s->first);
    squint_session_close(&s->session);
    squint_model_close(&s->model);
}

static void release(perplexity_job *job)
{
    free_scorer(job, &job->model);
    free_scorer(job, &job->reference);
    logprobs_close_reader(job->against);
    logprobs_free(&job->p);
    logprobs_free(&job->q);
    divergence_free(&job->apart);
    dataset_free(&job->data);
    free(job->text);
}

static bool read_text(perplexity_job *job)
{
    FILE *const f = fopen(job->text_path, "rb");
    size_t room = 1 << 16, got = 0;
    bool good = f != NULL;
    job->text = cli_alloc(room, 1);
    while (good && (got = fread(job->text + job->text_bytes, 1, room - job->text_bytes, f)) > 0) {
        job->text_bytes += got;
        if (job->text_bytes == room) job->text = cli_grow(job->text, room *= 2, 1);
        if (job->text_bytes > TEXT_CAP) break;
    }
    if (!good || ferror(f)) cli_say("%s: %s", job->text_path, strerror(errno)), good = false;
    if (f) fclose(f);
    if (good && job->text_bytes > TEXT_CAP)
        cli_say("%s: more than %d MiB of text; take a part of it", job->text_path, TEXT_CAP >> 20), good = false;
    /* A caption's file ends with a newline, which is not part of it. */
    if (job->picture && job->text_bytes && job->text[job->text_bytes - 1] == '\n') job->text_bytes--;
    return good;
}

static bool spares_inputs(const perplexity_job *job)
{
    const char *const inputs[] = {job->model.path, job->mmproj_path, job->reference.path, job->text_path,
                                  job->picture,    job->data.list,   job->against_path};
    bool spared = cli_spares("--save-logits", job->save_path, "one of the files to read", inputs, SQ_COUNT(inputs));
    for (size_t i = 0; spared && i < job->data.n; i++)
        spared = cli_spares("--save-logits", job->save_path, "one of the pictures",
                            (const char *const *)&job->data.samples[i].path, 1);
    return spared;
}

static int check_operands(const cli_command *self, perplexity_job *job, int n, char **operands)
{
    if (job->data_path && job->picture) return cli_misuse(self, "perplexity: --data or --picture, not both");
    if (job->data_path && n) return cli_misuse(self, "perplexity: with --data the captions are the text");
    if (!job->data_path && n != 1) return cli_misuse(self, "perplexity: name one file of text, or --data");
    if (job->against_path && job->reference.path)
        return cli_misuse(self, "perplexity: --against or --versus, not both");
    if (n) job->text_path = operands[0];
    return CLI_DONE;
}

static int run(const cli_command *self, int argc, char **argv)
{
    squint_model_options model_options = {.on_note = cli_note};
    squint_session_options session = {0};
    unsigned kv = SQUINT_KV_AUTO;
    perplexity_job job = {.ctx = 0};
    const cli_option options[] = {
        CLI_ROW_MODEL(&job.model.path),
        CLI_ROW_MMPROJ(&model_options.mmproj),
        CLI_ROW_NUMBER('c', "ctx", &job.ctx, 0, 1 << 20, "0: 512, or the model's context if that is less", "N",
                       "tokens of a chunk of text, at least 4 (default: 0, 512)"),
        CLI_ROW_NUMBER(0, "chunks", &job.chunks, 0, 1 << 30, "0: all", "N",
                       "only the first N chunks (default: 0, all)"),
        CLI_ROW_TEXT(0, "picture", &job.picture, "FILE", "the text is a caption of this picture"),
        CLI_ROW_TEXT('d', "data", &job.data_path, "PATH", "pictures and captions, as for squint eval"),
        CLI_ROW_TEXT(0, "split", &job.split, "NAME", "of --data: only lines whose \"split\" is NAME (default: all)"),
        CLI_ROW_NUMBER(0, "limit", &job.limit, 0, 1 << 30, "0: all", "N",
                       "of --data: only the first N lines (default: 0, all)"),
        CLI_ROW_TEXT(0, "save-logits", &job.save_path, "FILE", "write what the model thinks of every token there"),
        CLI_ROW_TEXT(0, "against", &job.against_path, "FILE", "compare with what --save-logits wrote"),
        CLI_ROW_TEXT(0, "versus", &job.reference.path, "MODEL", "compare with another file of the model"),
        CLI_ROW_FLAG(0, "json", &job.json, "one JSON object instead"),
        CLI_ROW_DEVICE(&model_options.device),
        CLI_ROW_THREADS(&session.threads),
        CLI_ROW_MODE(&model_options.mode),
        CLI_ROW_ISA(&model_options.isa),
        CLI_ROW_KV(&kv),
        CLI_ROW_END,
    };
    int first, status;
    if (!cli_parse(self, options, argc, argv, &first, &status)) return status;
    if ((status = check_operands(self, &job, argc - first, argv + first))) return status;
    if (job.ctx && job.ctx < 4) return cli_misuse(self, "--ctx: a chunk has at least 4 tokens");
    if (!(job.model.path = cli_model_path(job.model.path))) return CLI_MISUSED;
    job.mmproj_path = model_options.mmproj;
    session.kv = (squint_kv)kv;
    cli_bar_enable();
    if (job.data_path && !dataset_read(&job.data, job.data_path, job.split, job.limit)) return CLI_FAILED;
    status = !spares_inputs(&job)                ? CLI_MISUSED
             : job.text_path && !read_text(&job) ? CLI_FAILED
                                                 : score(&job, &model_options, &session);
    release(&job);
    return status;
}

const cli_command perplexity_command = {
    .name = "perplexity",
    .operands = "[FILE]",
    .summary = "how well a model foretells a text, or two models agree",
    .details =
        "Text: FILE's tokens, BOS in front, are cut into chunks of --ctx tokens, of which the first is replaced by\n"
        "BOS; what is less than a chunk is left out. A chunk runs in one pass, and its tokens from number\n"
        "ctx / 2 + 1 on, counted from 0, are scored: ctx - ctx / 2 - 1 a chunk. This is what llama.cpp's tool counts.\n"
        "Pictures: every token of the caption and the end token after it, given the picture and the model's prompt.\n"
        "Perplexity is exp of the mean of -log p; its error is the standard error of that mean, times perplexity.\n\n"
        "--against and --versus: the KL divergence of each place, sum p log(p / q) over the vocabulary, p of the\n"
        "file or the other model, q of this; its mean, largest value and quantiles; how often both have the same\n"
        "likeliest token; and the log of the ratio of both perplexities. --mmproj is for both models.\n\n"
        "--save-logits: 2 bytes for each piece of the vocabulary and place; tools/squint/logprobs.h tells the format.",
    .run = run,
};
