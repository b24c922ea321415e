/*
 * squint parity: one model on several devices, every stage next to the first device's.
 * SPDX-License-Identifier: MIT
 *
 * The first device runs some pictures and its stages go to a temporary file; then each other device runs the same
 * pictures, and what it does is compared with the file as it comes. So one model and one session are open at a time:
 * two in step would need the memory of both (of a 7B model 1.5 GB of keys and values each, and 27 GB of weights as
 * floats), and one of them a thread of its own. A picture of 2,944 tokens leaves 1.5 GB in the file, which the machine
 * keeps in memory where there is room.
 *
 * Decoding is compared with the tokens that the first device chose. Up to the first place where another would have
 * chosen otherwise, that is what it would do alone.
 */
#include "tools/squint/parity.h"
#include "tools/squint/asked.h"
#include "tools/squint/cli.h"
#include "tools/squint/spool.h"
#include "tools/squint/traced.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { DEFAULT_TOKENS = 32, DEFAULT_SPOOL_MIB = 4096, RUNNER = 160 };

/* A stage of the reference, in the temporary file. */
typedef struct table {
    char name[STAGE_NAME];
    parity_group group;
    stage_kind kind;
    uint32_t type, rows, cols; /* F32 or I32 */
    uint64_t at;
} table;

/* What the reference did of a picture. */
typedef struct picture {
    const char *path;
    table *tables; /* [n_tables] */
    size_t n_tables;
    parity_text text;
} picture;

typedef struct parity_job {
    /* What was asked for. */
    const char *model_path, *devices_text, *prompt;
    squint_model_options model_options;
    squint_session_options session_options;
    stage_budgets budgets;
    unsigned max_tokens, spool_mib;
    bool json, all_stages, judge; /* judge: also what would only be told */
    named_device *devices;
    size_t n_devices;
    picture *pictures;
    size_t n_pictures;
    /* What it takes. */
    spool spool;
    parity_numbers numbers;  /* of the reference */
    parity_rule *rules;      /* [n_devices] */
    parity_sum *sums;        /* [n_devices] */
    char (*runners)[RUNNER]; /* [n_devices] kernels and threads, or the device's own name */
    size_t n_done;           /* runs of a picture on a device */
} parity_job;

/* A device's turn. */
typedef struct turn {
    parity_job *job;
    size_t device;
    squint_model *model;
    squint_session *session;
    uint32_t *prompt, n_prompt; /* with the picture's mark */
    uint32_t *ids, n_ids;       /* of this picture, and room for the most */
    double *scores;             /* [n_ids] the reference's, of the layer at hand */
    /* The picture at hand */
    size_t at;
    traced_images images;
    bool decoding;
    stage *stages; /* [n_tables] next to the reference's; NULL for the reference itself */
    size_t next;   /* table that is likely to come */
    const stage *tied;
    void *buffer; /* [buffer_bytes] a table of the reference's */
    size_t buffer_bytes;
} turn;

/* ---- Stages -------------------------------------------------------------------------------- */

static parity_group group_of(sq_trace_what what)
{
    switch (what) {
    case SQ_TRACE_PIXELS:
        return PARITY_PIXELS;
    case SQ_TRACE_PATCHES:
        return PARITY_PATCHES;
    case SQ_TRACE_TOWER_LAYER:
        return PARITY_TOWER_LAYERS;
    case SQ_TRACE_TOWER:
        return PARITY_TOWER;
    case SQ_TRACE_SLOW:
        return PARITY_SLOW;
    case SQ_TRACE_ADAPTER:
        return PARITY_ADAPTERS;
    case SQ_TRACE_MINED:
        return PARITY_MINED;
    case SQ_TRACE_PROJECTED:
        return PARITY_PROJECTED;
    case SQ_TRACE_EMBEDDED:
        return PARITY_EMBEDDED;
    case SQ_TRACE_SCORES:
        return PARITY_SCORES;
    case SQ_TRACE_WEIGHTS:
        return PARITY_WEIGHTS;
    case SQ_TRACE_KEPT:
        return PARITY_KEPT;
    case SQ_TRACE_LOGITS:
        return PARITY_LOGITS;
    default:
        return PARITY_LAYERS;
    }
}

static void keep(turn *t, const table *named, const void *data)
{
    picture *const p = &t->job->pictures[t->at];
    p->tables = cli_grow(p->tables, p->n_tables + 1, sizeof *p->tables);
    table *const kept = &p->tables[p->n_tables++];
    *kept = *named;
    kept->at = spool_put(&t->job->spool, data, (size_t)named->rows * named->cols * sizeof(float));
    if (t->job->spool.failed) squint_session_cancel(t->session);
}

/* SIZE_MAX: the reference has none of this name. */
static size_t find_table(turn *t, const char *name)
{
    const picture *const p = &t->job->pictures[t->at];
    for (size_t i = 0; i < p->n_tables; i++) {
        const size_t at = (t->next + i) % p->n_tables;
        if (strcmp(p->tables[at].name, name)) continue;
        t->next = at + 1;
        return at;
    }
    return SIZE_MAX;
}

static bool load_table(turn *t, const table *w)
{
    const size_t bytes = (size_t)w->rows * w->cols * sizeof(float);
    if (bytes > t->buffer_bytes) t->buffer = cli_grow(t->buffer, t->buffer_bytes = bytes, 1);
    return spool_get(&t->job->spool, w->at, t->buffer, bytes);
}

static void compare(turn *t, const table *named, const void *data)
{
    parity_job *const job = t->job;
    const size_t at = find_table(t, named->name);
    if (at == SIZE_MAX) return;
    const table *const w = &job->pictures[t->at].tables[at];
    const stage_budgets budgets = parity_budgets(job->rules[t->device], &job->budgets);
    stage *const s = &t->stages[at];
    if (!load_table(t, w)) {
        squint_session_cancel(t->session);
        return;
    }
    const bool set = w->kind == STAGE_SET;
    const sq_gguf_tensor tensor = {.n_dims = set ? 1 : 2,
                                   .ne = {w->cols, w->rows, 1, 1},
                                   .type = w->type,
                                   .data = t->buffer,
                                   .bytes = (size_t)w->rows * w->cols * sizeof(float)};
    s->tensor = &tensor;
    if (set) {
        const stage_contest contest = traced_contest(t->session, t->n_ids, t->scores);
        stage_compare_sets(s, data, named->cols, &contest, &budgets);
    } else if (w->type == SQ_TENSOR_I32) {
        stage_compare_ints(s, data, named->rows, named->cols);
    } else {
        stage_compare_floats(s, data, named->rows, named->cols, &budgets);
    }
    s->tensor = NULL;
    if (w->group == PARITY_SCORES) traced_scores(t->session, t->ids, t->n_ids, t->buffer, w->cols, t->scores);
    stage_settle(s, &t->tied, job->rules[t->device] != PARITY_TOLD);
}

static void hear(turn *t, const table *named, const void *data)
{
    if (t->stages)
        compare(t, named, data);
    else
        keep(t, named, data);
}

/* The program's own pixels are to be the same; what a tower resampled is of its device. */
static bool is_own(const squint_session *s, const void *data)
{
    const float *const pixels = data;
    return pixels >= s->pixels && pixels < s->pixels + s->model->pixel_floats;
}

static stage_kind kind_of(const turn *t, sq_trace_what what, const void *data)
{
    if (what == SQ_TRACE_PIXELS && is_own(t->session, data)) return STAGE_EXACT;
    if (what == SQ_TRACE_KEPT) return STAGE_SET;
    return what == SQ_TRACE_LOGITS ? STAGE_LOGITS : STAGE_FLOATS;
}

static void on_trace(void *user, sq_trace_what what, int layer, const void *data, uint32_t rows, uint32_t cols)
{
    turn *const t = user;
    table named = {.group = group_of(what),
                   .kind = kind_of(t, what, data),
                   .type = what == SQ_TRACE_KEPT ? SQ_TENSOR_I32 : SQ_TENSOR_F32,
                   .rows = rows,
                   .cols = cols};
    if (!t->decoding && traced_name(&t->images, what, layer, named.name)) hear(t, &named, data);
}

/* ---- A picture on a device ----------------------------------------------------------------- */

static squint_err see(turn *t, squint_msg *msg)
{
    const char *const path = t->job->pictures[t->at].path;
    squint_session *const s = t->session;
    squint_err err = asked_picture(s, path, msg);
    if (err) return err;
    t->n_ids = t->n_prompt - 1 + s->n_vision;
    if (t->n_ids > s->limits.max_rows)
        return sq_fail(msg, SQUINT_ERR_LIMIT, "%s: %u tokens with the prompt's; the model takes %u", path, t->n_ids,
                       s->limits.max_rows);
    memcpy(t->ids, t->prompt, t->n_prompt * sizeof *t->ids);
    sq_prompt_expand(t->ids, t->n_prompt, s->n_vision);
    const table pixels = {.name = "pixels",
                          .group = PARITY_PIXELS,
                          .kind = STAGE_EXACT,
                          .type = SQ_TENSOR_F32,
                          .rows = 1,
                          .cols = (uint32_t)s->model->pixel_floats};
    hear(t, &pixels, s->pixels);
    err = sq_session_encode(s, msg);
    return err ? err : sq_session_forward(s, t->ids, t->n_ids, 1, msg);
}

static bool is_over(const turn *t, size_t n_fed, uint32_t id)
{
    const squint_session *const s = t->session;
    return id == sq_tokenizer_eos(t->model->tokenizer) || n_fed + 1 >= t->job->max_tokens ||
           s->n_past == s->limits.max_tokens;
}

/* The reference goes on until its text ends, the others as long as it did. */
static squint_err decode(turn *t, parity_text *said, squint_msg *msg)
{
    const parity_text *const theirs = t->stages ? &t->job->pictures[t->at].text : NULL;
    const uint32_t n_vocab = t->model->n_vocab, n_layers = t->model->n_layers;
    float *logits = NULL;
    int32_t *kv = NULL;
    squint_err err = SQUINT_OK;
    uint32_t n = 0;
    t->decoding = true;
    parity_say(said, t->session->logits, n_vocab);
    while (!err && !(theirs ? n + 1 == theirs->n : is_over(t, n, said->id[n]))) {
        logits = cli_grow(logits, (n + 1) * (size_t)n_vocab, sizeof *logits);
        kv = cli_grow(kv, (n + 1) * (size_t)n_layers, sizeof *kv);
        float *const row = logits + n * (size_t)n_vocab;
        err = asked_token(t->session, theirs ? theirs->id[n] : said->id[n], row, kv + n * (size_t)n_layers, msg);
        if (!err) parity_say(said, row, n_vocab);
        n++;
    }
    const table rows = {.name = "decode.logits",
                        .group = PARITY_DECODED,
                        .kind = STAGE_LOGITS,
                        .type = SQ_TENSOR_F32,
                        .rows = n,
                        .cols = n_vocab};
    const table counts = {.name = "decode.kv",
                          .group = PARITY_COUNTS,
                          .kind = STAGE_COUNTS,
                          .type = SQ_TENSOR_I32,
                          .rows = n,
                          .cols = n_layers};
    if (!err && n) hear(t, &rows, logits);
    if (!err && n) hear(t, &counts, kv);
    free(logits);
    free(kv);
    return err;
}

/* ---- Telling ------------------------------------------------------------------------------- */

static void piece_of(const turn *t, uint32_t id, char out[PARITY_PIECE])
{
    char text[PARITY_PIECE / 3];
    const bool end = id == sq_tokenizer_eos(t->model->tokenizer);
    const size_t n = squint_model_token(t->model, id, text, sizeof text);
    snprintf(out, PARITY_PIECE, "the end");
    if (!end) cli_clean_text(text, n, out);
    for (char *c = out; *c; c++)
        if (iscntrl((unsigned char)*c)) *c = '?';
}

static cJSON *new_line(const turn *t)
{
    const parity_job *const job = t->job;
    const char *const path = job->pictures[t->at].path;
    cJSON *const json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "device", job->devices[t->device].name);
    cJSON_AddItemToObject(json, "picture", cli_json_text(path, strlen(path)));
    return json;
}

static void tell_stage(const turn *t, const stage *s)
{
    if (t->job->json) {
        cJSON *const json = stage_json(s);
        const picture *const p = &t->job->pictures[t->at];
        cJSON_AddStringToObject(json, "device", t->job->devices[t->device].name);
        cJSON_AddItemToObject(json, "picture", cli_json_text(p->path, strlen(p->path)));
        cli_json_line(stdout, json);
    } else if (t->job->all_stages) {
        const bool why = *s->why && t->job->rules[t->device] != PARITY_TOLD;
        stage_print(s);
        printf("%s%s\n", why ? "\n  " : "", why ? s->why : "");
    }
}

static void tell_text(const turn *t, const parity_text *said, size_t same)
{
    const parity_text *const theirs = &t->job->pictures[t->at].text;
    cJSON *const json = new_line(t);
    char piece[PARITY_PIECE];
    cJSON_AddItemToObject(json, "tokens", cli_json_ids(said->id, said->n));
    if (t->stages && same < said->n) {
        cJSON_AddNumberToObject(json, "first_other", (double)same);
        piece_of(t, said->id[same], piece);
        cJSON_AddItemToObject(json, "piece", cli_json_text(piece, strlen(piece)));
        cJSON_AddNumberToObject(json, "lead", said->lead[same]);
        piece_of(t, theirs->id[same], piece);
        cJSON_AddItemToObject(json, "reference_piece", cli_json_text(piece, strlen(piece)));
        cJSON_AddNumberToObject(json, "reference_lead", theirs->lead[same]);
    } else if (t->stages) {
        cJSON_AddNullToObject(json, "first_other");
    }
    cli_json_line(stdout, json);
}

static void add_text(turn *t, const parity_text *said)
{
    const parity_text *const theirs = &t->job->pictures[t->at].text;
    parity_sum *const sum = &t->job->sums[t->device];
    const size_t same = parity_text_same(said, theirs);
    sum->n_pictures++;
    sum->n_tokens += said->n;
    if (same == said->n) {
        sum->n_same_texts++;
    } else if (sum->n_pictures == sum->n_same_texts + 1) {
        sum->text_picture = t->at;
        sum->text_at = same;
        piece_of(t, theirs->id[same], sum->pieces[0]);
        piece_of(t, said->id[same], sum->pieces[1]);
        sum->leads[0] = theirs->lead[same];
        sum->leads[1] = said->lead[same];
    }
    if (t->job->json) tell_text(t, said, same);
}

static void sum_up(turn *t, const parity_text *said)
{
    const parity_job *const job = t->job;
    const picture *const p = &job->pictures[t->at];
    if (!job->json && job->all_stages) {
        printf("%s next to %s: %s\n", job->devices[t->device].name, job->devices[0].name, p->path);
        stage_print_head();
    }
    for (size_t i = 0; i < p->n_tables; i++) {
        stage *const s = &t->stages[i];
        if (s->state == STAGE_UNSEEN) stage_refuse(s, "this device has no such stage");
        parity_add(&t->job->sums[t->device], p->tables[i].group, s, t->at);
        tell_stage(t, s);
    }
    add_text(t, said);
}

/* ---- Turns --------------------------------------------------------------------------------- */

static void begin_picture(turn *t, size_t at)
{
    const picture *const p = &t->job->pictures[at];
    t->at = at;
    t->images = (traced_images){0};
    t->decoding = false;
    t->next = 0;
    t->tied = NULL;
    if (!t->device) return;
    t->stages = cli_alloc(p->n_tables, sizeof *t->stages);
    for (size_t i = 0; i < p->n_tables; i++) {
        t->stages[i] = (stage){.kind = p->tables[i].kind, .cosine = (double)NAN};
        memcpy(t->stages[i].name, p->tables[i].name, STAGE_NAME);
    }
}

static squint_err run_picture(turn *t, size_t at, squint_msg *msg)
{
    parity_job *const job = t->job;
    parity_text said = {.n = 0};
    char label[96];
    snprintf(label, sizeof label, "%s, picture %zu of %zu", job->devices[t->device].name, at + 1, job->n_pictures);
    cli_bar(label, (double)job->n_done++ / (double)(job->n_pictures * job->n_devices));
    begin_picture(t, at);
    squint_err err = see(t, msg);
    if (!err) err = decode(t, &said, msg);
    cli_bar_clear();
    if (!err && job->spool.failed) err = SQUINT_ERR_CANCELLED;
    if (!err && t->stages) {
        sum_up(t, &said);
    } else if (!err) {
        job->pictures[at].text = said;
        said = (parity_text){.n = 0};
        if (job->json) tell_text(t, &job->pictures[at].text, 0);
    }
    parity_text_free(&said);
    free(t->stages);
    t->stages = NULL;
    return err;
}

static squint_err open_session(turn *t, squint_msg *msg)
{
    const parity_job *const job = t->job;
    const squint_model *const m = t->model;
    squint_err err = asked_prompt(m, job->prompt, &t->prompt, &t->n_prompt, msg);
    if (err) return err;
    const uint32_t most = asked_limit(m), least = t->n_prompt - 1 + m->n_vision_base;
    const uint32_t rows = t->n_prompt - 1 + m->n_vision < most ? t->n_prompt - 1 + m->n_vision : most;
    if (least > most)
        return sq_fail(msg, SQUINT_ERR_LIMIT, "the prompt has %u tokens with the image's; the model takes %u", least,
                       most);
    const sq_limits limits = {.max_rows = rows,
                              .max_tokens = m->n_ctx - rows < job->max_tokens ? m->n_ctx : rows + job->max_tokens,
                              .max_logits = 1,
                              .max_vision = m->n_vision,
                              .kv = sq_kv_of(m, job->session_options.kv)};
    t->ids = cli_alloc(rows, sizeof *t->ids);
    t->scores = cli_alloc(rows, sizeof *t->scores);
    err = sq_session_open_limits(&t->session, m, &job->session_options, &limits, msg);
    if (err) return err;
    cli_runner(t->session, m, job->runners[t->device]);
    t->session->trace = on_trace;
    t->session->trace_user = t;
    t->session->trace_mute = 1u << SQ_TRACE_QKV;
    return SQUINT_OK;
}

static squint_err open_turn(turn *t, squint_msg *msg)
{
    parity_job *const job = t->job;
    const named_device *const d = &job->devices[t->device];
    squint_model_options options = job->model_options;
    options.isa = d->isa;
    options.device = d->word;
    options.on_note = job->n_done ? NULL : cli_note;
    squint_err err = squint_model_open(&t->model, job->model_path, &options, msg);
    if (err) return err;
    if (!t->model->n_vision) return sq_fail(msg, SQUINT_ERR_UNSUPPORTED, "%s: takes no pictures", job->model_path);
    if (!job->n_done) cli_tell_mode(t->model);
    const parity_numbers numbers = parity_numbers_of(d, t->model->any_panels, t->model->any_floats);
    if (!t->device) job->numbers = numbers;
    const parity_rule rule = parity_rule_of(&job->numbers, &numbers);
    job->rules[t->device] = rule == PARITY_TOLD && job->judge ? PARITY_NEAR : rule;
    return open_session(t, msg);
}

static void close_turn(turn *t)
{
    squint_session_close(&t->session);
    squint_model_close(&t->model);
    free(t->prompt);
    free(t->ids);
    free(t->scores);
    free(t->buffer);
}

static int tell_failure(const parity_job *job, size_t device, squint_err err, const squint_msg *msg)
{
    if (job->spool.failed) return CLI_FAILED; /* told already */
    if (err == SQUINT_ERR_CANCELLED) return CLI_INTERRUPTED;
    cli_say("%s: %s", job->devices[device].name, msg->text);
    return err == SQUINT_ERR_ARGUMENT ? CLI_MISUSED : CLI_FAILED;
}

/* Pictures from `first` on. The reference stops when the file is full, and says where; others go on to *end. */
static int take_turn(parity_job *job, size_t device, size_t first, size_t *end)
{
    turn t = {.job = job, .device = device};
    squint_msg msg = {""};
    squint_err err = open_turn(&t, &msg);
    if (!err) cli_watch_interrupts(t.session);
    for (size_t i = first; !err && i < *end; i++) {
        err = run_picture(&t, i, &msg);
        if (!device && job->spool.bytes >> 20 >= job->spool_mib) *end = i + 1;
    }
    cli_unwatch_interrupts();
    close_turn(&t);
    return err ? tell_failure(job, device, err, &msg) : CLI_DONE;
}

static void forget(picture *p)
{
    free(p->tables);
    p->tables = NULL;
    p->n_tables = 0;
    parity_text_free(&p->text);
}

static int take_turns(parity_job *job)
{
    int status = CLI_DONE;
    for (size_t first = 0, end; !status && first < job->n_pictures; first = end) {
        end = job->n_pictures;
        for (size_t d = 0; !status && d < job->n_devices; d++)
            status = take_turn(job, d, first, &end);
        for (size_t i = first; i < end; i++)
            forget(&job->pictures[i]);
        spool_clear(&job->spool);
    }
    return status;
}

/* ---- Report -------------------------------------------------------------------------------- */

static void print_verdict_json(const parity_job *job, size_t device)
{
    static const char *const rules[] = {[PARITY_BITS] = "bits", [PARITY_NEAR] = "budgets", [PARITY_TOLD] = "told"};
    const parity_sum *const sum = &job->sums[device];
    const bool past = sum->first.state == STAGE_PAST;
    cJSON *const json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "device", job->devices[device].name);
    cJSON_AddStringToObject(json, "runner", job->runners[device]);
    cJSON_AddStringToObject(json, "reference", job->devices[0].name);
    cJSON_AddStringToObject(json, "reference_runner", job->runners[0]);
    cJSON_AddItemToObject(json, "model", cli_json_text(job->model_path, strlen(job->model_path)));
    cJSON_AddStringToObject(json, "judged", rules[job->rules[device]]);
    cJSON_AddNumberToObject(json, "pictures", (double)sum->n_pictures);
    cJSON_AddNumberToObject(json, "stages", (double)sum->n_stages);
    cJSON_AddNumberToObject(json, "same_texts", (double)sum->n_same_texts);
    if (past) {
        const char *const path = job->pictures[sum->first_picture].path;
        cJSON_AddItemToObject(json, "first", cli_json_text(sum->first.name, strlen(sum->first.name)));
        cJSON_AddItemToObject(json, "first_picture", cli_json_text(path, strlen(path)));
    } else {
        cJSON_AddNullToObject(json, "first");
    }
    cli_json_line(stdout, json);
}

static void print_verdict(const parity_job *job, size_t device)
{
    static const char *const good[] = {[PARITY_BITS] = "the same bits",
                                       [PARITY_NEAR] = "within the budgets",
                                       [PARITY_TOLD] = "told; they are rounded otherwise: --tolerance judges them"};
    const parity_sum *const sum = &job->sums[device];
    char of[32] = "";
    if (sum->n_pictures > 1) snprintf(of, sizeof of, " of #%zu", sum->first_picture + 1);
    if (sum->first.state == STAGE_PAST)
        printf("first past its budget: %s%s: %s\n", sum->first.name, of, sum->first.why);
    else
        printf("%zu stages: %s\n", sum->n_stages, good[job->rules[device]]);
}

/* true: no device is past a budget. */
static bool report(const parity_job *job)
{
    bool good = true;
    for (size_t d = 1; d < job->n_devices; d++) {
        good = good && job->sums[d].first.state != STAGE_PAST;
        if (job->json) {
            print_verdict_json(job, d);
            continue;
        }
        printf("%s%s next to %s, %zu %s\n", d > 1 || job->all_stages ? "\n" : "", job->devices[d].name,
               job->devices[0].name, job->n_pictures, job->n_pictures > 1 ? "pictures" : "picture");
        printf("%s next to %s\n", job->runners[d], job->runners[0]);
        parity_print(&job->sums[d]);
        print_verdict(job, d);
    }
    return good;
}

/* ---- The command --------------------------------------------------------------------------- */

static int check_devices(const cli_command *self, parity_job *job)
{
    char why[256];
    if (!job->devices_text) return cli_misuse(self, "parity: --devices says which: cpu:scalar,cpu:avx2,cuda");
    job->n_devices = devices_read(&job->devices, job->devices_text, why);
    if (!job->n_devices) return cli_misuse(self, "--devices: %s", why);
    if (job->n_devices < 2) return cli_misuse(self, "--devices: %s next to what? Name two", job->devices[0].name);
    for (size_t d = 0; d < job->n_devices; d++) {
        squint_msg msg;
        const squint_err err = device_runs(&job->devices[d], &msg);
        if (err) return cli_fail(err, &msg);
    }
    return CLI_DONE;
}

static int compare_devices(parity_job *job)
{
    job->rules = cli_alloc(job->n_devices, sizeof *job->rules);
    job->sums = cli_alloc(job->n_devices, sizeof *job->sums);
    job->runners = cli_alloc(job->n_devices, sizeof *job->runners);
    if (!spool_open(&job->spool)) return CLI_FAILED;
    const int status = take_turns(job);
    spool_close(&job->spool);
    if (status) return status;
    const bool good = report(job);
    return cli_flush() && good ? CLI_DONE : CLI_FAILED;
}

static void release(parity_job *job)
{
    for (size_t i = 0; i < job->n_pictures; i++)
        forget(&job->pictures[i]);
    free(job->pictures);
    free(job->devices);
    free(job->rules);
    free(job->sums);
    free(job->runners);
}

static int run(const cli_command *self, int argc, char **argv)
{
    parity_job job = {.budgets = {.tolerance = -1, .drift = 2e-4f, .ties = 1e-4f},
                      .max_tokens = DEFAULT_TOKENS,
                      .spool_mib = DEFAULT_SPOOL_MIB};
    unsigned kv = SQUINT_KV_AUTO;
    const cli_option options[] = {
        CLI_ROW_MODEL(&job.model_path),
        CLI_ROW_MMPROJ(&job.model_options.mmproj),
        CLI_ROW_TEXT('d', "devices", &job.devices_text, "LIST",
                     "cpu[:ISA][:f32] and cuda[:f32|:f16], the reference first: cpu:scalar,cpu:avx2,cuda"),
        CLI_ROW_TEXT('p', "prompt", &job.prompt, "TEXT", "ask this (default: the model's own prompt)"),
        CLI_ROW_NUMBER('n', "max-tokens", &job.max_tokens, 1, 65536, NULL, "N",
                       "tokens to decode at most (default: 32)"),
        CLI_ROW_REAL(0, "tolerance", &job.budgets.tolerance, 0, 1e9, NULL, "X",
                     "budget of logits, largest difference (default: 1e-3; what is rounded otherwise is told)"),
        CLI_ROW_REAL(0, "drift", &job.budgets.drift, 0, 1e9, NULL, "X",
                     "budget of other stages, a row's difference in parts of its length (default: 2e-4)"),
        CLI_ROW_REAL(0, "ties", &job.budgets.ties, 0, 1e9, NULL, "X",
                     "scores so near the cut may be chosen either way (default: 1e-4)"),
        CLI_ROW_NUMBER(0, "spool", &job.spool_mib, 0, 1 << 20, "0: of one picture", "MIB",
                       "stages to keep in $TMPDIR before the other devices' turn (default: 4096)"),
        CLI_ROW_FLAG(0, "stages", &job.all_stages, "every stage of every picture as well"),
        CLI_ROW_FLAG(0, "json", &job.json, "a JSON object a stage, a text and a device instead"),
        CLI_ROW_THREADS(&job.session_options.threads),
        CLI_ROW_MODE(&job.model_options.mode),
        CLI_ROW_KV(&kv),
        CLI_ROW_END,
    };
    int first, status;
    if (!cli_parse(self, options, argc, argv, &first, &status)) return status;
    if (first == argc) return cli_misuse(self, "parity: which image?");
    if ((status = check_devices(self, &job)) == CLI_DONE && !(job.model_path = cli_model_path(job.model_path)))
        status = CLI_MISUSED;
    job.session_options.kv = (squint_kv)kv;
    job.judge = job.budgets.tolerance >= 0;
    if (!job.judge) job.budgets.tolerance = 1e-3f;
    job.n_pictures = (size_t)(argc - first);
    job.pictures = cli_alloc(job.n_pictures, sizeof *job.pictures);
    for (size_t i = 0; i < job.n_pictures; i++)
        job.pictures[i].path = argv[first + (int)i];
    cli_bar_enable();
    if (!status) status = compare_devices(&job);
    release(&job);
    return status;
}

const cli_command parity_command = {
    .name = "parity",
    .operands = "--devices LIST IMAGE...",
    .summary = "every stage of a model on several devices",
    .details =
        "Runs the pictures on each device of the list and compares all that the network makes on the first with what it\n"
        "makes on the others. Of each group of stages, over all pictures: how many there are and how many have no\n"
        "difference, the largest difference, the longest one in parts of its stage and of its row, the lowest cosine,\n"
        "and where a row is worst (#2 is the second picture). Of the sets of tokens that layers keep: how many positions\n"
        "are in both, how many of the others are so near the cut that rounding decides (--ties), how far from it the\n"
        "farthest is. Decoding goes on with the first device's greedy tokens: up to the first place where another would\n"
        "say something else, that is its own text. Of this place: both pieces, and how far each is before the next.\n\n"
        "Tables of the CPU are to do the same to the bit, and so is cuda where all matrices are whole numbers (q4, q8).\n"
        "Floats on both sides, of the file or by :f32, have budgets, as in squint compare. All other pairs are rounded\n"
        "otherwise: they are told, and judged with --tolerance alone. Exits with 1 when a stage is past its budget, and\n"
        "names the first. ISA is a word of caption's --isa.",
    .run = run,
};
