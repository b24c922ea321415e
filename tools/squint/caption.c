/*
 * squint caption: pictures in, one line of text each. Uses the public interface, and for --look what reads pictures.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/image.h"
#include "runtime/tokenizer.h"
#include "tools/squint/cli.h"
#include "tools/squint/sight.h"
#include "tools/squint/work.h"

#include <stdlib.h>
#include <string.h>

enum { STDIN_CAP = 256 << 20 };

typedef struct caption_job {
    squint_model *model;
    squint_session *session;
    squint_caption_options options;
    const char *path; /* of the picture at hand */
    bool json, quiet, verbose;
    bool several;                         /* more than one picture: each line begins with its path */
    bool began;                           /* something of this picture's line is on stdout */
    const char *model_path, *mmproj_path; /* NULL: one file */
    const char *look, *trace;             /* files to write, or NULL */
    int look_what;
    unsigned look_width;
    char **look_names; /* of each picture */
    trace_file traces;
    unsigned n_done;
    squint_result last, sum; /* of the pictures done; sum: numbers only */
} caption_job;

/* ---- Text ---------------------------------------------------------------------------------- */

/* A caption is one line, whatever a model writes: control characters become spaces. */
static void put_text(const char *text, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        putchar((unsigned char)text[i] < 0x20 || text[i] == 0x7F ? ' ' : text[i]);
}

static void begin_line(caption_job *job)
{
    if (job->began) return;
    cli_bar_clear();
    job->began = true;
    if (job->several) printf("%s: ", job->path);
}

static bool on_text(void *user, const char *text, size_t bytes)
{
    caption_job *job = user;
    if (job->json) return !cli_interrupted();
    begin_line(job);
    put_text(text, bytes);
    return cli_flush() && !cli_interrupted();
}

/* Tower and prefill share the bar in halves; decode shows itself. */
static bool on_progress(void *user, squint_stage stage, unsigned done, unsigned total)
{
    static const char *const labels[] = {"reading the image", "looking at it", "thinking", ""};
    static const double start[] = {0, 0, 0.5, 1}, span[] = {0, 0.5, 0.5, 0};
    (void)user;
    if (stage < SQUINT_STAGE_DECODE) cli_bar(labels[stage], start[stage] + span[stage] * done / (total ? total : 1));
    return !cli_interrupted();
}

/* ---- Budgets ------------------------------------------------------------------------------- */

static const char *const budget_words[] = {
    [SQUINT_BUDGET_AMPLE] = "ample", [SQUINT_BUDGET_CUT] = "cut", [SQUINT_BUDGET_TOO_SMALL] = "too small"};

static void on_forecast(void *user, const squint_forecast *f)
{
    const caption_job *job = user;
    const double total = f->spent_ms + f->predicted_ms, budget = job->options.budget_ms;
    if (job->quiet) return;
    switch (f->outcome) {
    case SQUINT_BUDGET_AMPLE:
        cli_say("budget %.0f ms: image and vision took %.1f ms, the prefill should take %.1f: nothing to cut", budget,
                f->spent_ms, f->predicted_ms);
        break;
    case SQUINT_BUDGET_CUT:
        cli_say("budget %.0f ms: image and vision took %.1f ms, the prefill should take %.1f with %.3f of what "
                "layers would keep",
                budget, f->spent_ms, f->predicted_ms, (double)f->keep);
        break;
    default:
        cli_say(
            "budget %.0f ms: cannot be met: image and vision took %.1f ms, and the prefill should take %.1f with no "
            "vision token kept, %.1f together",
            budget, f->spent_ms, f->predicted_ms, total);
    }
}

static double first_token_ms(const squint_result *r)
{
    return r->stage_ms[SQUINT_STAGE_IMAGE] + r->stage_ms[SQUINT_STAGE_TOWER] + r->stage_ms[SQUINT_STAGE_PREFILL];
}

static void print_outcome(const caption_job *job, const squint_result *r)
{
    if (job->quiet || !r->forecast.outcome) return;
    cli_say("budget %.0f ms: the prefill took %.1f ms, the first token came after %.1f", job->options.budget_ms,
            r->stage_ms[SQUINT_STAGE_PREFILL], first_token_ms(r));
}

static cJSON *budget_json(const caption_job *job, const squint_result *r)
{
    cJSON *json = cJSON_CreateObject();
    cli_json_number(json, "ms", job->options.budget_ms, 3);
    cJSON_AddStringToObject(json, "outcome", budget_words[r->forecast.outcome]);
    cli_json_number(json, "keep", (double)r->forecast.keep, 6);
    cli_json_number(json, "spent_ms", r->forecast.spent_ms, 3);
    cli_json_number(json, "predicted_prefill_ms", r->forecast.predicted_ms, 3);
    cli_json_number(json, "first_token_ms", first_token_ms(r), 3);
    return json;
}

/* ---- Results ------------------------------------------------------------------------------- */

static cJSON *stages_json(const double *ms)
{
    static const char *const names[SQUINT_STAGE_COUNT] = {"image", "tower", "prefill", "decode"};
    cJSON *json = cJSON_CreateObject();
    for (int i = 0; i < SQUINT_STAGE_COUNT; i++)
        cli_json_number(json, names[i], ms[i], 3);
    return json;
}

static void print_json(const caption_job *job, const squint_result *r)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddItemToObject(json, "file", cli_json_text(job->path, strlen(job->path)));
    cJSON_AddItemToObject(json, "caption", cli_json_text(r->text, strlen(r->text)));
    cJSON_AddItemToObject(json, "tokens", cli_json_ids(r->tokens, r->n_tokens));
    cJSON_AddNumberToObject(json, "n_tokens", r->n_tokens);
    cJSON_AddStringToObject(json, "finish", r->finish == SQUINT_FINISH_STOP ? "stop" : "length");
    cJSON_AddItemToObject(json, "kept", cli_json_ids(r->kept, r->n_layers));
    cli_json_number(json, "kept_share", r->kept_share, 6);
    cJSON_AddNumberToObject(json, "vision_tokens", r->n_vision_tokens);
    cJSON_AddNumberToObject(json, "prompt_tokens", r->n_prompt_tokens);
    cJSON_AddItemToObject(json, "ms", stages_json(r->stage_ms));
    cJSON_AddNumberToObject(json, "kv_bytes", (double)r->kv_bytes);
    cJSON_AddNumberToObject(json, "kv_bytes_dense", (double)r->kv_bytes_dense);
    cJSON_AddNumberToObject(json, "macs", r->prefill_macs);
    cJSON_AddNumberToObject(json, "macs_dense", r->prefill_macs_dense);
    if (r->forecast.outcome) cJSON_AddItemToObject(json, "budget", budget_json(job, r));
    cJSON_AddItemToObject(json, "work", work_json(job->session, r));
    cJSON_AddStringToObject(json, "mode", squint_model_mode(job->model));
    cli_json_runner(json, job->session, job->model);
    cli_json_line(stdout, json);
}

static void print_json_error(const caption_job *job, const char *text)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddItemToObject(json, "file", cli_json_text(job->path, strlen(job->path)));
    cJSON_AddItemToObject(json, "error", cli_json_text(text, strlen(text)));
    cli_json_line(stdout, json);
}

/* "3.2" below ten, "32" above: as many digits as mean something. */
static const char *format_ms(double ms, char out[32])
{
    snprintf(out, 32, ms < 10 ? "%.1f" : "%.0f", ms);
    return out;
}

/* The closing line: sums over the pictures, shapes of the last one. */
static void print_timings(const caption_job *job)
{
    const squint_result *r = &job->last, *sum = &job->sum;
    char text[SQUINT_STAGE_COUNT][32], images[32] = "", share[48] = "", speed[48] = "", runner[160];
    for (int i = 0; i < SQUINT_STAGE_COUNT; i++)
        format_ms(sum->stage_ms[i], text[i]);
    if (job->several) snprintf(images, sizeof images, "%u images: ", job->n_done);
    if (r->prefill_macs < r->prefill_macs_dense)
        snprintf(share, sizeof share, ", %.0f %% of dense", 100 * r->prefill_macs / r->prefill_macs_dense);
    if (sum->n_tokens && sum->stage_ms[SQUINT_STAGE_DECODE] > 0)
        snprintf(speed, sizeof speed, " (%.0f tok/s)", 1000 * sum->n_tokens / sum->stage_ms[SQUINT_STAGE_DECODE]);
    cli_say("%s: %simage %s ms, vision %s ms, prefill %s ms (%u+%u tokens%s), %u tokens in %s ms%s",
            cli_runner(job->session, job->model, runner), images, text[SQUINT_STAGE_IMAGE], text[SQUINT_STAGE_TOWER],
            text[SQUINT_STAGE_PREFILL], r->n_vision_tokens, r->n_prompt_tokens - r->n_vision_tokens, share,
            sum->n_tokens, text[SQUINT_STAGE_DECODE], speed);
}

static void add_result(caption_job *job, const squint_result *r)
{
    job->n_done++;
    job->last = *r;
    job->sum.n_tokens += r->n_tokens;
    for (int i = 0; i < SQUINT_STAGE_COUNT; i++)
        job->sum.stage_ms[i] += r->stage_ms[i];
}

/* ---- The work ------------------------------------------------------------------------------ */

/* The library does not know that the bytes are standard input's; its word for them is replaced. */
static void name_stdin(squint_msg *msg)
{
    static const char prefix[] = "image in memory: ";
    char text[sizeof msg->text];
    memcpy(text, msg->text, sizeof text);
    const size_t skip = strncmp(text, prefix, sizeof prefix - 1) ? 0 : sizeof prefix - 1;
    snprintf(msg->text, sizeof msg->text, "standard input: %.480s", text + skip);
}

static squint_err caption_stdin(caption_job *job, uint8_t **data, size_t *size, squint_result *result, squint_msg *msg)
{
    squint_err err = cli_read_stdin(STDIN_CAP, data, size, msg);
    if (err) return cli_interrupted() ? SQUINT_ERR_CANCELLED : err;
    err = squint_caption_memory(job->session, *data, *size, &job->options, result, msg);
    if (err) name_stdin(msg);
    return err;
}

/* ---- What was looked at -------------------------------------------------------------------- */

static const char *name_of(const char *path)
{
    const char *const slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* @param data  the picture's file, or NULL when it is where its path says */
static bool paint(const caption_job *job, const sight *s, const void *data, size_t size, const char *name)
{
    const squint_allocator a = sq_allocator_or_default(NULL);
    sq_image image;
    squint_msg msg;
    canvas c;
    if (!look_check(s, job->look_what, "--look")) return false;
    const squint_err err = data ? sq_image_decode(&image, "standard input", data, size, &a, &msg)
                                : sq_image_read(&image, job->path, &a, &msg);
    if (err) return cli_fail(err, &msg), false;
    const bool same = image.w == s->grid.picture_w && image.h == s->grid.picture_h;
    if (same) look_paint(&c, s, image.rgb, job->look_what, job->look_width);
    sq_image_free(&image, &a);
    if (!same) return cli_say("%s changed while it was captioned", job->path), false;
    const bool saved = canvas_save_png(&c, name);
    canvas_close(&c);
    return saved;
}

static bool keep_sight(caption_job *job, const squint_result *r, int index, const void *data, size_t size)
{
    sight s;
    if (!job->look && !job->trace) return true;
    sight_of_caption(&s, job->model, job->session, r, job->path, name_of(job->model_path));
    if (job->trace) trace_add(&job->traces, &s);
    const bool painted = !job->look || paint(job, &s, data, size, job->look_names[index]);
    sight_free(&s);
    return painted;
}

static int caption_image(caption_job *job, int index)
{
    squint_result result;
    squint_msg msg = {""};
    uint8_t *data = NULL; /* standard input */
    size_t size = 0;
    job->began = false;
    const squint_err err = strcmp(job->path, "-")
                               ? squint_caption_file(job->session, job->path, &job->options, &result, &msg)
                               : caption_stdin(job, &data, &size, &result, &msg);
    cli_bar_clear();
    if (!err && !job->json) begin_line(job);
    if (job->began) putchar('\n');
    const bool kept = err || keep_sight(job, &result, index, data, size);
    free(data);
    if (err) {
        if (job->json && err != SQUINT_ERR_CANCELLED) print_json_error(job, msg.text);
        return cli_flush() ? cli_fail(err, &msg) : CLI_FAILED;
    }
    if (job->json) print_json(job, &result);
    print_outcome(job, &result);
    if (job->verbose && cli_flush()) work_print(job->session, &result, job->path);
    add_result(job, &result);
    return cli_flush() && kept ? CLI_DONE : CLI_FAILED;
}

static int caption_images(caption_job *job, char **paths, int n)
{
    int status = CLI_DONE;
    cli_watch_interrupts(job->session);
    for (int i = 0; i < n && !cli_interrupted() && !ferror(stdout); i++) {
        job->path = paths[i];
        const int came_of_it = caption_image(job, i);
        if (came_of_it > status) status = came_of_it;
    }
    cli_unwatch_interrupts();
    if (cli_interrupted()) return CLI_INTERRUPTED;
    if (!job->quiet && job->n_done && !ferror(stdout)) print_timings(job);
    return status;
}

static bool spares_model(const caption_job *job, const char *option, const char *output)
{
    return cli_spares(option, output, "the model", (const char *const[]){job->model_path, job->mmproj_path}, 2);
}

/* Files are named, and a trace begun, before any work is done for them. */
static int prepare_sights(caption_job *job, char **paths, int n)
{
    if (job->look && !strcmp(squint_model_mode(job->model), "dense")) {
        cli_say("--look: in mode dense every layer looks at the whole picture: there is nothing to paint");
        return CLI_MISUSED;
    }
    if (job->look && !(job->look_names = output_names("--look", job->look, paths, n))) return CLI_MISUSED;
    for (int i = 0; job->look && i < n; i++)
        if (!spares_model(job, "--look", job->look_names[i])) return CLI_MISUSED;
    if (!cli_spares("--trace", job->trace, "one of the pictures", (const char *const *)paths, (size_t)n) ||
        !spares_model(job, "--trace", job->trace))
        return CLI_MISUSED;
    return job->trace && !trace_open(&job->traces, job->trace) ? CLI_FAILED : CLI_DONE;
}

static int caption_and_look(caption_job *job, char **paths, int n)
{
    int status = prepare_sights(job, paths, n);
    if (!status) status = caption_images(job, paths, n);
    if (!trace_close(&job->traces) && !status) status = CLI_FAILED;
    output_names_free(job->look_names, n);
    return status;
}

static int open_and_caption(caption_job *job, const char *model, const squint_model_options *model_options,
                            const squint_session_options *session, char **paths, int n)
{
    squint_msg msg;
    squint_err err = squint_model_open(&job->model, model, model_options, &msg);
    if (!err && !job->quiet) cli_tell_mode(job->model);
    if (!err) err = squint_session_open(&job->session, job->model, session, &msg);
    if (!err && job->options.budget_ms > 0) err = squint_session_measure(job->session, &msg);
    const int status = err ? cli_fail(err, &msg) : caption_and_look(job, paths, n);
    squint_session_close(&job->session);
    squint_model_close(&job->model);
    return status;
}

static int run(const cli_command *self, int argc, char **argv)
{
    const char *model = NULL, *look_layer = "all";
    squint_model_options model_options = {0};
    caption_job job = {.options = {.on_text = on_text, .on_progress = on_progress, .on_forecast = on_forecast},
                       .look_width = LOOK_WIDTH};
    squint_caption_options *o = &job.options;
    squint_session_options session = {0};
    unsigned kv = SQUINT_KV_AUTO;
    const cli_option options[] = {
        CLI_ROW_MODEL(&model),
        CLI_ROW_MMPROJ(&model_options.mmproj),
        CLI_ROW_TEXT('p', "prompt", &o->prompt, "TEXT", "what to ask, or how a caption begins (default: the model's)"),
        CLI_ROW_TEXT(0, "template", &o->chat_template, "NAME",
                     "how to ask: " SQ_PROMPT_TEMPLATES " (default: as the model was trained)"),
        CLI_ROW_FLAG(0, "json", &job.json, "a JSON object a line for each image: caption, tokens, kept tokens, times"),
        CLI_ROW_REAL(0, "temp", &o->temperature, 0, 10, "0: greedy", "T",
                     "temperature of sampling (default: 0, greedy)"),
        CLI_ROW_NUMBER(0, "top-k", &o->top_k, 0, 1 << 20, "0: all", "K",
                       "sample of the K best tokens (default: 0, all)"),
        CLI_ROW_REAL(0, "top-p", &o->top_p, 0, 1, "0: off", "P",
                     "sample of the best that add up to P (default: 0, off)"),
        CLI_ROW_REAL(0, "min-p", &o->min_p, 0, 1, "0: off", "P",
                     "sample of those at least P times as likely as the best (default: 0, off)"),
        CLI_ROW_SEED(0, "seed", &o->seed, "seed of sampling; the same gives the same text (default: 0)"),
        CLI_ROW_NUMBER('n', "max-tokens", &session.max_tokens, 0, 65536, "0: 64", "N",
                       "longest caption, in tokens (default: 0, 64)"),
        CLI_ROW_DEVICE(&model_options.device),
        CLI_ROW_THREADS(&session.threads),
        CLI_ROW_MODE(&model_options.mode),
        CLI_ROW_SCHEDULE(&session.schedule),
        CLI_ROW_KEEP(&session.keep),
        CLI_ROW_BUDGET(&o->budget_ms, "keep less where the first token would come later than TIME, like 900ms or 1.5s"),
        CLI_ROW_ISA(&model_options.isa),
        CLI_ROW_KV(&kv),
        CLI_ROW_TEXT(0, "look", &job.look, "FILE",
                     "paint what the model looked at over the picture: a PNG file, or a folder for NAME-look.png"),
        CLI_ROW_TEXT(0, "look-layer", &look_layer, "L",
                     "of --look: all, sum, or one layer's number (default: all, the sum and each layer)"),
        CLI_ROW_NUMBER(0, "look-width", &job.look_width, LOOK_MIN_WIDTH, LOOK_MAX_WIDTH, NULL, "N",
                       "of --look: width in pixels (default: 960)"),
        CLI_ROW_TEXT(0, "trace", &job.trace, "FILE",
                     "write what each layer kept, with scores and weights, as JSON for squint look"),
        CLI_ROW_FLAG('v', "verbose", &job.verbose,
                     "after each caption, on standard error: what stages and layers ran, and what skipping saved"),
        CLI_ROW_FLAG('q', "quiet", &job.quiet, "no progress, no timings"),
        CLI_ROW_END,
    };
    int first, status;
    if (!cli_parse(self, options, argc, argv, &first, &status)) return status;
    if (first == argc) return cli_misuse(self, "caption: which image?");
    if (o->prompt && strlen(o->prompt) > 256) session.max_prompt = (unsigned)strlen(o->prompt);
    if (o->chat_template && !sq_prompt_known((sq_str){o->chat_template, strlen(o->chat_template)}))
        return cli_misuse(self, "--template: \"%.64s\" is none of: " SQ_PROMPT_TEMPLATES, o->chat_template);
    if (!(model = cli_model_path(model))) return CLI_MISUSED;
    if (!look_parse(look_layer, &job.look_what))
        return cli_misuse(self, "--look-layer: \"%s\" is none of: all, sum, a layer's number", look_layer);
    session.kv = (squint_kv)kv;
    session.routes = job.look || job.trace;
    job.model_path = model;
    job.mmproj_path = model_options.mmproj;
    if (!job.quiet) model_options.on_note = cli_note;
    job.several = argc - first > 1;
    job.options.user = &job;
    if (!job.quiet) cli_bar_enable();
    return open_and_caption(&job, model, &model_options, &session, argv + first, argc - first);
}

const cli_command caption_command = {
    .name = "caption",
    .operands = "IMAGE...",
    .summary = "say in a sentence what is on a picture",
    .details = "Prints a caption for each image (JPEG, PNG, BMP or PNM; \"-\" reads one from standard input).\n"
               "One image: the caption alone. Several: a line \"IMAGE: CAPTION\" each; one that fails gets a\n"
               "message, the others go on. Times go to standard error.\n\n"
               "--look with several images: %s in FILE stands for the picture's name (look-%s.png), or\n"
               "FILE is a folder. --trace is one JSON document with all pictures; squint look reads it.",
    .run = run,
};
