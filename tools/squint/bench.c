/*
 * squint bench: milliseconds of a model's stages; bench_made.c has what routing saves of a made model's prefill.
 * SPDX-License-Identifier: MIT
 *
 * Only ratios between runs of one call mean something: what is to be compared takes turns, and the fastest of each
 * stage or layer counts.
 */
#include "tools/squint/bench.h"
#include "runtime/engine.h"
#include "tools/squint/cli.h"

#include <math.h>

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
    char runner[160];
    cJSON *json = o->json ? cJSON_CreateObject() : NULL;
    if (!json) printf("%s, best of %u\n", cli_runner(session, session->model, runner), o->reps);
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
    cli_json_runner(json, session, session->model);
    cli_json_line(stdout, json);
}

static int bench_model(const bench_options *o, const char *path, const char *image)
{
    squint_model *model = NULL;
    squint_session *session = NULL;
    stage_times times = {0};
    squint_msg msg;
    squint_err err = squint_model_open(&model, path, &o->model, &msg);
    if (!err) err = squint_session_open(&session, model, &o->session, &msg);
    if (!err) err = time_stages(o, session, image, &times, &msg);
    cli_bar_clear();
    if (!err) print_stages(o, session, &times);
    squint_session_close(&session);
    squint_model_close(&model);
    if (err) return cli_fail(err, &msg);
    return cli_flush() ? CLI_DONE : CLI_FAILED;
}

/* ---- The command --------------------------------------------------------------------------- */

static int run(const cli_command *self, int argc, char **argv)
{
    enum { NO_MODE = BENCH_MODES + 1 };
    const char *model = NULL;
    unsigned mode = NO_MODE, kv = SQUINT_KV_AUTO;
    bench_made_options made = {.shape = BENCH_SHAPES, .type = BENCH_TYPES, .n_layers = 4, .n_text = 64};
    bench_options o = {.reps = 5, .model = {.on_note = cli_note}};
    const cli_option options[] = {
        CLI_ROW_MODEL(&model),
        CLI_ROW_MMPROJ(&o.model.mmproj),
        CLI_ROW_CHOICE('s', "synthetic", &made.shape, bench_shape_words, "SHAPE",
                       "random weights of this shape: 7b, next, tiny"),
        CLI_ROW_NUMBER(0, "layers", &made.n_layers, 1, BENCH_MAX_LAYERS, NULL, "N", "layers of it (default: 4)"),
        CLI_ROW_NUMBER(0, "vision", &made.n_vision, 1, 16384, NULL, "N", "vision tokens (default: 576; of next 2880)"),
        CLI_ROW_NUMBER(0, "text", &made.n_text, 1, 16384, NULL, "N", "text tokens (default: 64)"),
        CLI_ROW_CHOICE('t', "type", &made.type, bench_type_words, "TYPE", "weights: q8, q4 or both (default: both)"),
        CLI_ROW_CHOICE(0, "mode", &mode, bench_mode_words, "NAME",
                       "how layers choose tokens, as for caption; or all (default: pmod, of IMAGE its model's)"),
        CLI_ROW_SCHEDULE(&o.session.schedule),
        CLI_ROW_KEEP(&o.session.keep),
        CLI_ROW_BUDGET(&o.budget_ms,
                       "with --synthetic: what a prefill may take; prints prediction and outcome of each run"),
        CLI_ROW_NUMBER('r', "reps", &o.reps, 1, 10000, NULL, "N", "runs; the fastest counts (default: 5)"),
        CLI_ROW_FLAG(0, "json", &o.json, "one JSON object instead"),
        CLI_ROW_DEVICE(&o.model.device),
        CLI_ROW_THREADS(&o.session.threads),
        CLI_ROW_ISA(&o.model.isa),
        CLI_ROW_KV(&kv),
        CLI_ROW_END,
    };
    int first, status;
    if (!cli_parse(self, options, argc, argv, &first, &status)) return status;
    o.session.kv = (squint_kv)kv;
    cli_bar_enable();
    if (made.shape == BENCH_SHAPES) {
        if (argc - first != 1) return cli_misuse(self, "bench: give an image, or --synthetic SHAPE");
        if (o.budget_ms > 0) return cli_misuse(self, "bench: --budget is for --synthetic; caption has one too");
        if (mode == BENCH_MODES) return cli_misuse(self, "bench: --mode all is for --synthetic");
        if (mode != NO_MODE) o.model.mode = bench_mode_words[mode];
        model = cli_model_path(model);
        return model ? bench_model(&o, model, argv[first]) : CLI_MISUSED;
    }
    if (first < argc) return cli_misuse(self, "bench: --synthetic takes no image");
    made.mode = mode == NO_MODE ? 0 : mode;
    return bench_made(&made, &o);
}

const cli_command bench_command = {
    .name = "bench",
    .operands = "[IMAGE]",
    .summary = "measure a model's stages, or what routing saves",
    .details = "With IMAGE: milliseconds of each stage of a caption. With --synthetic: prefill of random weights,\n"
               "dense and in a mode of routing; ratios of times, of multiply-adds and of bytes in the KV cache.\n"
               "p-MoD has the ratios of p-MoD-LLaVA-7B's layers: all 32, or fewer at even steps from layer 8 to\n"
               "31. The others skip about half: gamma-train and gamma-paper by rule, those with a threshold what\n"
               "lies below the middle of their random scores. Runs take turns, and the fastest of each layer's\n"
               "counts, so that what else the machine does meets both alike; on a device, which has a prefill to\n"
               "itself and only waits where it must, the fastest run's.\n\n"
               "With --budget each run measures the machine anew, foresees its time, and runs.",
    .run = run,
};
