/*
 * squint compare: every stage of a model next to a reference's dump (tools/dump_reference.py).
 * SPDX-License-Identifier: MIT
 *
 * A dump is a GGUF file: squint.dump.version 1, .source, .prompt, and any of these tensors, F32 where nothing is said,
 * in numpy's order of dimensions, in the order of the network:
 *
 *   picture I8 [h][w][3]    bytes of RGB             ids I32 [n]             the prompt, -200 in the picture's place
 *   pixels                  the prepared square, where CLIP sees others      pixels.I [3][S][S]      CLIP's image I
 *   tower.I.embd, tower.I.blk.L [positions][d]       tower.I.out [patches][d]
 *   slow.stage.S [h*w][C]   adapter.K [tokens][d]    mined.I [tokens][d]     projected [n_vision][d]
 *   embd, blk.L [N][d]      blk.L.scores [n]         blk.L.kept I32 [k]      logits [last rows of the prompt][V]
 *   decode.ids I32 [T]      tokens to feed           decode.logits [T][V]    decode.kv I32 [T][layers]
 */
#include "models/llava.h"
#include "tools/squint/asked.h"
#include "tools/squint/cli.h"
#include "tools/squint/stages.h"
#include "tools/squint/traced.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { DUMP_VERSION = 1, IMAGE_MARK = -200, MOST_IDS = 1 << 20 };

typedef struct compare_job {
    /* What was asked for. */
    const char *model_path, *dump_path;
    stage_budgets budgets;
    bool json;
    /* The dump. */
    sq_gguf *dump;
    stage *stages; /* [n_stages] one a tensor, but for `picture` */
    size_t n_stages;
    uint32_t *ids; /* [n_ids] SQ_IMAGE_TOKEN once where there is a picture; room for all of its tokens */
    size_t n_ids, image_at;
    /* What it takes. */
    squint_model *model;
    squint_session *session;
    bool judge, decoding; /* judge: or a stage past its budget is only told */
    traced_images images;
    double *scores;    /* [n] of a layer, as the reference has them, else as squint has */
    const stage *tied; /* sets differ by ties: what follows cannot be judged */
} compare_job;

/* ---- The dump ------------------------------------------------------------------------------ */

static bool begins(sq_str s, const char *prefix)
{
    const size_t n = strlen(prefix);
    return s.len >= n && !memcmp(s.s, prefix, n);
}

static bool ends(sq_str s, const char *suffix)
{
    const size_t n = strlen(suffix);
    return s.len >= n && !memcmp(s.s + s.len - n, suffix, n);
}

static stage_kind kind_of(sq_str name)
{
    if (begins(name, "pixels") || sq_str_eq(name, "ids") || begins(name, "decode.ids") || begins(name, "decode.kv"))
        return STAGE_EXACT;
    if (ends(name, "logits")) return STAGE_LOGITS;
    return ends(name, ".kept") ? STAGE_SET : STAGE_FLOATS;
}

/* The picture is an input, and so are tokens to feed. */
static bool is_input(sq_str name) { return sq_str_eq(name, "picture") || sq_str_eq(name, "decode.ids"); }

static squint_err list_stages(compare_job *job, squint_msg *msg)
{
    const size_t n = sq_gguf_n_tensors(job->dump);
    job->stages = cli_alloc(n, sizeof *job->stages);
    for (size_t i = 0; i < n; i++) {
        const sq_gguf_tensor *const t = sq_gguf_tensor_at(job->dump, i);
        if (t->name.len >= STAGE_NAME)
            return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: tensor %zu: a stage's name has fewer than %d bytes",
                           job->dump_path, i, STAGE_NAME);
        if (is_input(t->name)) continue;
        stage *const s = &job->stages[job->n_stages++];
        *s = (stage){.tensor = t, .kind = kind_of(t->name), .cosine = NAN};
        memcpy(s->name, t->name.s, t->name.len);
    }
    if (job->n_stages) return SQUINT_OK;
    return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: has no stages; tools/dump_reference.py writes dumps", job->dump_path);
}

static squint_err open_dump(compare_job *job, squint_msg *msg)
{
    uint32_t version = 0;
    squint_err err = sq_gguf_open(&job->dump, job->dump_path, NULL, msg);
    if (!err && !sq_gguf_find_key(job->dump, "squint.dump.version"))
        err = sq_fail(msg, SQUINT_ERR_FORMAT, "%s: no key squint.dump.version: not a dump of tools/dump_reference.py",
                      job->dump_path);
    if (!err) err = sq_gguf_get_u32(job->dump, "squint.dump.version", true, &version, msg);
    if (!err && version != DUMP_VERSION)
        err = sq_fail(msg, SQUINT_ERR_UNSUPPORTED, "%s: key squint.dump.version: %u; this squint reads %d",
                      job->dump_path, version, DUMP_VERSION);
    return err ? err : list_stages(job, msg);
}

/* NULL where the dump does not have it. */
static stage *find_stage(compare_job *job, const char *name)
{
    for (size_t i = 0; i < job->n_stages; i++)
        if (!strcmp(job->stages[i].name, name)) return &job->stages[i];
    return NULL;
}

/* An I32 list of ids, the picture's mark turned into SQ_IMAGE_TOKEN. NULL, n 0: there is none. */
static squint_err read_ids(const compare_job *job, const char *name, uint32_t **out, size_t *n, squint_msg *msg)
{
    const sq_gguf_tensor *const t = sq_gguf_find(job->dump, name);
    *out = NULL;
    *n = 0;
    if (!t) return SQUINT_OK;
    if (t->type != SQ_TENSOR_I32 || t->n_dims > 1 || t->ne[0] < 1 || t->ne[0] > MOST_IDS)
        return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: tensor %s: not a list of 1 to %d I32 ids", job->dump_path, name,
                       MOST_IDS);
    const int32_t *const ids = (const int32_t *)(const void *)t->data;
    *n = (size_t)t->ne[0];
    *out = cli_alloc(*n, sizeof **out);
    for (size_t i = 0; i < *n; i++) {
        const bool mark = ids[i] == IMAGE_MARK;
        if (!mark && (ids[i] < 0 || (uint32_t)ids[i] >= job->model->n_vocab))
            return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: tensor %s: id %d is not in the model's vocabulary of %u",
                           job->dump_path, name, ids[i], job->model->n_vocab);
        (*out)[i] = mark ? SQ_IMAGE_TOKEN : (uint32_t)ids[i];
    }
    return SQUINT_OK;
}

/* ---- The prompt ---------------------------------------------------------------------------- */

/* The dump's prompt as squint would make ids of it. */
static squint_err own_ids(const compare_job *job, sq_str prompt, uint32_t **out, size_t *n, squint_msg *msg)
{
    char *const text = cli_alloc(prompt.len + 1, 1);
    uint32_t count = 0;
    memcpy(text, prompt.s, prompt.len);
    const squint_err err = asked_prompt(job->model, text, out, &count, msg);
    *n = count;
    free(text);
    return err;
}

static void compare_ids(stage *s, const uint32_t *own, size_t n)
{
    int32_t *const marked = cli_alloc(n, sizeof *marked);
    for (size_t i = 0; i < n; i++)
        marked[i] = own[i] == SQ_IMAGE_TOKEN ? IMAGE_MARK : (int32_t)own[i];
    stage_compare_ints(s, marked, 1, (uint32_t)n);
    free(marked);
}

static squint_err check_ids(compare_job *job, squint_msg *msg)
{
    size_t images = 0;
    for (size_t i = 0; i < job->n_ids; i++)
        if (job->ids[i] == SQ_IMAGE_TOKEN) {
            job->image_at = i;
            images++;
        }
    if (images > 1)
        return sq_fail(msg, SQUINT_ERR_UNSUPPORTED, "%s: tensor ids: %zu pictures; squint takes one a prompt",
                       job->dump_path, images);
    if (!images) job->image_at = SIZE_MAX;
    if (images && !sq_gguf_find(job->dump, "picture"))
        return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: has no tensor picture for its prompt", job->dump_path);
    return SQUINT_OK;
}

/* The dump's ids go on, even where squint's own are others: so later stages still tell something. */
static squint_err take_prompt(compare_job *job, squint_msg *msg)
{
    sq_str prompt = {NULL, 0};
    uint32_t *own = NULL;
    size_t n_own = 0;
    squint_err err = sq_gguf_get_str(job->dump, "squint.dump.prompt", false, &prompt, msg);
    if (!err) err = read_ids(job, "ids", &job->ids, &job->n_ids, msg);
    if (!err && prompt.s && prompt.len > MOST_IDS)
        err =
            sq_fail(msg, SQUINT_ERR_FORMAT, "%s: key squint.dump.prompt: more than %d bytes", job->dump_path, MOST_IDS);
    if (!err && prompt.s && job->model->tokenizer) err = own_ids(job, prompt, &own, &n_own, msg);
    if (!err && own && job->ids) compare_ids(find_stage(job, "ids"), own, n_own);
    if (!err && !own && job->ids) find_stage(job, "ids")->state = STAGE_OPEN;
    if (!err && !own && !job->ids)
        err = sq_fail(msg, SQUINT_ERR_FORMAT, "%s: has neither tensor ids nor key squint.dump.prompt", job->dump_path);
    if (!job->ids) {
        job->ids = own;
        job->n_ids = n_own;
        own = NULL;
    }
    free(own);
    return err ? err : check_ids(job, msg);
}

/* ---- What a session tells ------------------------------------------------------------------ */

static void hear_floats(compare_job *job, const char *name, const float *data, uint32_t rows, uint32_t cols)
{
    stage *const s = find_stage(job, name);
    if (!s) return;
    stage_compare_floats(s, data, rows, cols, &job->budgets);
    stage_settle(s, &job->tied, job->judge);
}

/* What CLIP sees is Pillow's picture, to the last bit, or was resampled in floats. */
static void hear_pixels(compare_job *job, const char *name, const float *data, uint32_t n)
{
    const squint_session *const session = job->session;
    const size_t pixels = session->model->pixel_floats;
    stage *const s = find_stage(job, name);
    if (s && (data < session->pixels || data >= session->pixels + pixels)) s->kind = STAGE_FLOATS;
    hear_floats(job, name, data, 1, n);
}

/* The reference's scores, if it has them, say how near it was to choosing otherwise. */
static void hear_scores(compare_job *job, const char *name, const float *z, uint32_t n)
{
    const stage *const s = find_stage(job, name);
    hear_floats(job, name, z, 1, n);
    const bool have = s && s->tensor->type == SQ_TENSOR_F32 && s->state != STAGE_UNSEEN && s->cols == n &&
                      s->tensor->bytes == n * sizeof(float);
    const float *const theirs = have ? (const float *)(const void *)s->tensor->data : z;
    traced_scores(job->session, job->ids, (uint32_t)job->n_ids, theirs, n, job->scores);
}

static void hear_kept(compare_job *job, const char *name, const uint32_t *kept, uint32_t n)
{
    stage *const s = find_stage(job, name);
    if (!s) return;
    const stage_contest contest = traced_contest(job->session, (uint32_t)job->n_ids, job->scores);
    stage_compare_sets(s, kept, n, &contest, &job->budgets);
    stage_settle(s, &job->tied, job->judge);
}

static void on_trace(void *user, sq_trace_what what, int layer, const void *data, uint32_t rows, uint32_t cols)
{
    compare_job *const job = user;
    char name[STAGE_NAME];
    if (job->decoding || !traced_name(&job->images, what, layer, name)) return;
    if (what == SQ_TRACE_PIXELS)
        hear_pixels(job, name, data, cols);
    else if (what == SQ_TRACE_SCORES)
        hear_scores(job, name, data, cols);
    else if (what == SQ_TRACE_KEPT)
        hear_kept(job, name, data, cols);
    else
        hear_floats(job, name, data, rows, cols);
}

/* ---- Running ------------------------------------------------------------------------------- */

static squint_err open_session(compare_job *job, const squint_session_options *options, size_t n_decode,
                               squint_msg *msg)
{
    const squint_model *const m = job->model;
    const stage *const logits = find_stage(job, "logits");
    const size_t vision = job->image_at == SIZE_MAX ? 0 : m->n_vision, rows = job->n_ids + (vision ? vision - 1 : 0);
    if (rows + n_decode > m->n_ctx)
        return sq_fail(msg, SQUINT_ERR_LIMIT, "%s: %zu tokens; the model's context is %u", job->dump_path,
                       rows + n_decode, m->n_ctx);
    const uint64_t asked = logits && logits->tensor->n_dims == 2 ? logits->tensor->ne[1] : 1;
    const sq_limits limits = {.max_rows = (uint32_t)rows,
                              .max_tokens = (uint32_t)(rows + n_decode),
                              .max_logits = asked <= job->n_ids ? (uint32_t)asked : 1,
                              .max_vision = (uint32_t)vision,
                              .kv = sq_kv_of(m, options->kv)};
    job->ids = cli_grow(job->ids, rows, sizeof *job->ids);
    job->scores = cli_alloc(rows, sizeof *job->scores);
    return sq_session_open_limits(&job->session, m, options, &limits, msg);
}

static squint_err see(compare_job *job, squint_msg *msg)
{
    const sq_gguf_tensor *const t = sq_gguf_find(job->dump, "picture");
    squint_session *const s = job->session;
    if (job->image_at == SIZE_MAX) return SQUINT_OK;
    if (t->type != SQ_TENSOR_I8 || t->n_dims != 3 || t->ne[0] != 3 || !t->bytes || t->ne[1] > SQ_IMAGE_MAX_SIDE ||
        t->ne[2] > SQ_IMAGE_MAX_SIDE || t->ne[1] * t->ne[2] > SQ_IMAGE_MAX_PIXELS)
        return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: tensor picture: not I8 height x width x 3, of up to %d megapixels",
                       job->dump_path, SQ_IMAGE_MAX_PIXELS >> 20);
    const uint32_t w = (uint32_t)t->ne[1], h = (uint32_t)t->ne[2];
    squint_err err = sq_session_picture(s, t->data, w, h, 3 * (size_t)w, msg);
    if (err) return err;
    if (find_stage(job, "pixels")) hear_pixels(job, "pixels", s->pixels, (uint32_t)s->model->pixel_floats);
    sq_prompt_expand(job->ids, job->n_ids, s->n_vision);
    job->n_ids += s->n_vision;
    job->n_ids--;
    return sq_session_encode(s, msg);
}

/* The tokens of the reference, whatever squint would have said. */
static squint_err decode(compare_job *job, const uint32_t *ids, size_t n, squint_msg *msg)
{
    squint_session *const s = job->session;
    const uint32_t n_vocab = job->model->n_vocab, n_layers = job->model->n_layers;
    float *const logits = cli_alloc(n * n_vocab, sizeof *logits);
    int32_t *const kv = cli_alloc(n * n_layers, sizeof *kv);
    squint_err err = SQUINT_OK;
    job->decoding = true;
    for (size_t i = 0; !err && i < n; i++)
        err = asked_token(s, ids[i], logits + i * n_vocab, kv + i * n_layers, msg);
    if (!err) hear_floats(job, "decode.logits", logits, (uint32_t)n, n_vocab);
    stage *const lengths = find_stage(job, "decode.kv");
    if (!err && lengths) {
        stage_compare_ints(lengths, kv, (uint32_t)n, n_layers);
        stage_settle(lengths, &job->tied, job->judge);
    }
    free(logits);
    free(kv);
    return err;
}

/* The reference runs tiles of a picture that is all length, and then takes none of their tokens. */
static bool is_idle_tile(const compare_job *job, const stage *s)
{
    const sq_llava_state *const state = sq_llava_state_of(job->session);
    unsigned image = 0;
    if (sq_llava_of(job->session)->vision_kind != SQ_VISION_ANYRES) return false;
    if (state->kept_map.columns && state->kept_map.rows) return false;
    return (sscanf(s->name, "pixels.%u", &image) == 1 || sscanf(s->name, "tower.%u.", &image) == 1) && image > 0;
}

static void judge_unseen(compare_job *job)
{
    for (stage *s = job->stages; s < job->stages + job->n_stages; s++) {
        if (s->state != STAGE_UNSEEN) continue;
        stage_refuse(s, "squint has no such stage");
        if (!is_idle_tile(job, s)) continue;
        s->state = STAGE_OPEN;
        snprintf(s->why, sizeof s->why, "not run: nothing of the tiles is kept");
    }
}

static squint_err run_all(compare_job *job, const squint_session_options *options, squint_msg *msg)
{
    uint32_t *tokens = NULL;
    size_t n_tokens = 0;
    squint_err err = take_prompt(job, msg);
    if (!err) err = read_ids(job, "decode.ids", &tokens, &n_tokens, msg);
    for (size_t i = 0; !err && i < n_tokens; i++)
        if (tokens[i] == SQ_IMAGE_TOKEN)
            err = sq_fail(msg, SQUINT_ERR_FORMAT, "%s: tensor decode.ids: a picture among them", job->dump_path);
    if (!err) err = open_session(job, options, n_tokens, msg);
    if (!err) {
        cli_watch_interrupts(job->session);
        job->session->trace = on_trace;
        job->session->trace_user = job;
        job->session->trace_mute = 1u << SQ_TRACE_QKV | 1u << SQ_TRACE_WEIGHTS;
        err = see(job, msg);
        if (!err)
            err =
                sq_session_forward(job->session, job->ids, (uint32_t)job->n_ids, job->session->limits.max_logits, msg);
        if (!err && n_tokens) err = decode(job, tokens, n_tokens, msg);
        cli_unwatch_interrupts();
    }
    free(tokens);
    if (!err) judge_unseen(job);
    return err;
}

/* ---- Report -------------------------------------------------------------------------------- */

static void print_verdict(const compare_job *job, const stage *first)
{
    sq_str source = {"", 0};
    sq_gguf_get_str(job->dump, "squint.dump.source", false, &source, NULL);
    if (job->json) {
        cJSON *const json = cJSON_CreateObject();
        cJSON_AddItemToObject(json, "model", cli_json_text(job->model_path, strlen(job->model_path)));
        cJSON_AddItemToObject(json, "reference", cli_json_text(source.s, source.len));
        cJSON_AddNumberToObject(json, "stages", (double)job->n_stages);
        cJSON_AddBoolToObject(json, "judged", job->judge);
        if (first)
            cJSON_AddItemToObject(json, "first", cli_json_text(first->name, strlen(first->name)));
        else
            cJSON_AddNullToObject(json, "first");
        cli_json_runner(json, job->session, job->model);
        cli_json_line(stdout, json);
    } else if (first) {
        printf("first past its budget: %s: %s\n", first->name, first->why);
    } else {
        printf("%zu stages %s\n", job->n_stages,
               job->judge ? "within their budgets" : "told; the model's weights are rounded: --tolerance judges them");
    }
}

static void print_stage(const stage *s)
{
    stage_print(s);
    printf("%s%s\n", *s->why ? "  " : "", s->why);
}

/* The first stage past its budget, NULL: none is. */
static const stage *report(const compare_job *job)
{
    const stage *first = NULL;
    if (!job->json) stage_print_head();
    for (size_t i = 0; i < job->n_stages; i++) {
        const stage *const s = &job->stages[i];
        if (job->json)
            cli_json_line(stdout, stage_json(s));
        else
            print_stage(s);
        if (!first && s->state == STAGE_PAST) first = s;
    }
    print_verdict(job, first);
    return first;
}

/* ---- The command --------------------------------------------------------------------------- */

/* Are all weights binary32, and keys and values, and are products made of them as they are? */
static bool is_rounded(const squint_model *m, squint_kv kv)
{
    for (size_t i = 0; m->file && i < sq_gguf_n_tensors(m->file); i++)
        if (sq_gguf_tensor_at(m->file, i)->type != SQ_TENSOR_F32) return true;
    return m->precision == SQ_PRECISION_F16 || sq_kv_of(m, kv) != SQ_KV_F32;
}

static int compare(compare_job *job, const squint_model_options *model_options, const squint_session_options *options)
{
    squint_msg msg = {""};
    squint_err err = open_dump(job, &msg);
    if (!err) err = squint_model_open(&job->model, job->model_path, model_options, &msg);
    if (err) return cli_fail(err, &msg) == CLI_MISUSED ? CLI_MISUSED : CLI_FAILED;
    cli_tell_mode(job->model);
    job->judge = job->judge || !is_rounded(job->model, options->kv);
    if ((err = run_all(job, options, &msg))) return cli_fail(err, &msg);
    const bool within = !report(job);
    return cli_flush() && within ? CLI_DONE : CLI_FAILED;
}

static void release(compare_job *job)
{
    squint_session_close(&job->session);
    squint_model_close(&job->model);
    sq_gguf_close(&job->dump);
    free(job->stages);
    free(job->ids);
    free(job->scores);
}

static int run(const cli_command *self, int argc, char **argv)
{
    squint_model_options model_options = {.on_note = cli_note};
    squint_session_options session = {0};
    unsigned kv = SQUINT_KV_AUTO;
    compare_job job = {.budgets = {.tolerance = -1, .drift = 5e-5f, .ties = 1e-4f}};
    const cli_option options[] = {
        CLI_ROW_MODEL(&job.model_path),
        CLI_ROW_MMPROJ(&model_options.mmproj),
        CLI_ROW_TEXT('r', "ref", &job.dump_path, "DUMP", "the reference's stages, of tools/dump_reference.py"),
        CLI_ROW_REAL(0, "tolerance", &job.budgets.tolerance, 0, 1e9, NULL, "X",
                     "budget of logits, largest difference (default: 1e-3; files of rounded weights are not judged)"),
        CLI_ROW_REAL(0, "drift", &job.budgets.drift, 0, 1e9, NULL, "X",
                     "budget of other stages, a row's difference in parts of its length (default: 5e-5)"),
        CLI_ROW_REAL(0, "ties", &job.budgets.ties, 0, 1e9, NULL, "X",
                     "scores so near the cut may be chosen either way (default: 1e-4)"),
        CLI_ROW_FLAG(0, "json", &job.json, "a JSON object a stage, and one for the verdict"),
        CLI_ROW_DEVICE(&model_options.device),
        CLI_ROW_THREADS(&session.threads),
        CLI_ROW_MODE(&model_options.mode),
        CLI_ROW_ISA(&model_options.isa),
        CLI_ROW_KV(&kv),
        CLI_ROW_END,
    };
    int first, status;
    if (!cli_parse(self, options, argc, argv, &first, &status)) return status;
    if (first < argc) return cli_misuse(self, "compare: what is \"%s\" for? The dump is named by --ref", argv[first]);
    if (!job.dump_path) return cli_misuse(self, "compare: --ref says what to compare with");
    if (!(job.model_path = cli_model_path(job.model_path))) return CLI_MISUSED;
    session.kv = (squint_kv)kv;
    job.judge = job.budgets.tolerance >= 0;
    if (!job.judge) job.budgets.tolerance = 1e-3f;
    status = compare(&job, &model_options, &session);
    release(&job);
    return status;
}

const cli_command compare_command = {
    .name = "compare",
    .operands = "--ref DUMP",
    .summary = "every stage of a model next to a reference's",
    .details =
        "Runs the picture and the prompt of a dump, and its tokens after them, and prints for each stage of the\n"
        "network that the dump has: largest and mean difference, the difference's length in parts of the stage's,\n"
        "the same of the worst row, cosine; for sets of tokens how many are in both, and which are in one alone\n"
        "(+ squint's, - the reference's, with their score's distance from the cut).\n\n"
        "Budgets are for weights, keys and values in f32. Pixels, ids and lengths of caches are to be the same.\n"
        "In f32 rows differ from PyTorch's by 1.4e-6 of their length (twelve blocks of CLIP's width, six layers of\n"
        "2048) to 1.4e-5 (small models), and by up to 9e-5 where what is added to a row nearly cancels it; the\n"
        "approximate GELU for the exact one makes 1.3e-4, most other mistakes 1e-3 and more. Exits with 1 when a\n"
        "stage is past its budget, missing, or of another shape, and names the first.",
    .run = run,
};
