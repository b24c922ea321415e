/*
 * squint synth: a model file of random weights, in the layout of a released one.
 * SPDX-License-Identifier: MIT
 *
 * A tensor at a time, made as it lies in the file: nothing is quantised.
 */
#include "tools/squint/synth.h"

#include "tools/squint/cli.h"
#include "tools/squint/policy.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SAMPLES = 4096 };

/* Weights of blocks and panels are odd numbers, all alike likely, around a mean of exactly 0: a mean beside it would
 * grow from layer to layer. */
static const float RMS_8 = 73.9f; /* of -127, -125 .. 127 */
static const float RMS_4 = 4.583f;

typedef struct maker {
    uint64_t state;
    float samples[SAMPLES]; /* of a normal distribution, each with its negative */
} maker;

static uint64_t next_random(maker *m) /* splitmix64 */
{
    uint64_t z = (m->state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* Twelve uniforms make a normal, whose square is 1 on average. */
static void make_samples(maker *m)
{
    for (int i = 0; i < SAMPLES; i += 2) {
        float sum = -6;
        for (int j = 0; j < 12; j++)
            sum += (float)(next_random(m) >> 40) * 0x1p-24f;
        m->samples[i] = sum;
        m->samples[i + 1] = -sum;
    }
}

/* ---- Floats -------------------------------------------------------------------------------- */

static float mark_of(const synth_tensor *t, uint64_t row) { return t->opposed && row % 2 ? -t->mark : t->mark; }

static void make_f32(maker *m, const synth_tensor *t, const stored_tensor *s, float *out)
{
    const size_t n = (size_t)(s->n * s->k);
    for (size_t i = 0; i < n; i += 4) {
        uint64_t r = next_random(m);
        for (size_t j = i; j < i + 4 && j < n; j++, r >>= 16)
            out[j] = t->mean + t->deviation * m->samples[r % SAMPLES];
    }
    for (size_t i = 0; t->signs && i < n; i++)
        if (next_random(m) >> 63) out[i] = -out[i];
    if (t->silent) memset(out, 0, (size_t)s->k * sizeof *out);
    for (uint64_t row = 0; t->marks && row < s->n; row++)
        out[row * s->k] = mark_of(t, row);
}

static void make_f16(maker *m, const synth_tensor *t, const stored_tensor *s, uint16_t *out)
{
    const size_t n = (size_t)(s->n * s->k);
    uint16_t halves[SAMPLES];
    for (size_t i = 0; i < SAMPLES; i++)
        halves[i] = sq_f32_to_f16(t->mean + t->deviation * m->samples[i]);
    for (size_t i = 0; i < n; i += 4) {
        uint64_t r = next_random(m);
        for (size_t j = i; j < i + 4 && j < n; j++, r >>= 16)
            out[j] = halves[r % SAMPLES];
    }
    if (t->silent) memset(out, 0, (size_t)s->k * sizeof *out);
    for (uint64_t row = 0; t->marks && row < s->n; row++)
        out[row * s->k] = sq_f32_to_f16(mark_of(t, row));
}

/* ---- Blocks and panels --------------------------------------------------------------------- */

/* @param odd  the bits that make each weight odd */
static void make_bytes(maker *m, uint8_t *out, size_t bytes, uint64_t odd)
{
    for (size_t i = 0; i < bytes; i += sizeof odd) {
        const uint64_t r = next_random(m) | odd;
        memcpy(out + i, &r, bytes - i < sizeof r ? bytes - i : sizeof r);
    }
}

static const uint64_t ODD_8 = 0x0101010101010101u, ODD_4 = 0x1111111111111111u;

static int quantised(float v, float scale) { return (int)fmaxf(-127, fminf(127, roundf(v / scale))); }

static void make_q8_0(maker *m, const synth_tensor *t, const stored_tensor *s, sq_block_q8_0 *out)
{
    const uint64_t per_row = s->k / SQ_BLOCK;
    const float scale = t->deviation / RMS_8;
    for (uint64_t i = 0; i < s->n * per_row; i++) {
        out[i].d = t->silent && i < per_row ? 0 : sq_f32_to_f16(scale);
        make_bytes(m, (uint8_t *)out[i].q, sizeof out[i].q, ODD_8);
        if (t->marks && i % per_row == 0) out[i].q[0] = (int8_t)quantised(mark_of(t, i / per_row), scale);
    }
}

static void make_q4_0(maker *m, const synth_tensor *t, const stored_tensor *s, sq_block_q4_0 *out)
{
    const uint64_t per_row = s->k / SQ_BLOCK;
    for (uint64_t i = 0; i < s->n * per_row; i++) {
        out[i].d = t->silent && i < per_row ? 0 : sq_f32_to_f16(t->deviation / RMS_4);
        make_bytes(m, out[i].q, sizeof out[i].q, ODD_4);
    }
}

static void put_scales(const sq_panels *w, float scale, bool silent, uint8_t *out)
{
    const size_t n = SQ_PANEL_N * (w->group ? (w->k + w->group - 1) / w->group : 1);
    for (size_t i = 0; i < n; i++) {
        const float v = silent && i % SQ_PANEL_N == 0 ? 0 : scale;
        if (w->group)
            ((uint16_t *)(void *)out)[i] = sq_f32_to_f16(v);
        else
            ((float *)(void *)out)[i] = v;
    }
}

/* Shapes are whole panels. A mark is a weight of int8, the first of each channel's four in a panel's first line. */
static void make_panels(maker *m, const synth_tensor *t, const stored_tensor *s, uint8_t *out)
{
    const sq_panels *const w = &s->panels;
    const bool i4 = w->type == SQ_PANEL_I4;
    const float scale = t->deviation / (i4 ? RMS_4 : RMS_8);
    const size_t weights = sq_panel_weight_bytes(w);
    for (size_t p = 0; p < sq_panel_count(w); p++, out += sq_panel_bytes(w)) {
        make_bytes(m, out, weights, i4 ? ODD_4 : ODD_8);
        put_scales(w, scale, t->silent && !p, out + weights);
        for (size_t c = 0; t->marks && c < SQ_PANEL_N; c++)
            out[4 * c] = (uint8_t)(128 + quantised(mark_of(t, c), scale));
    }
}

static void make_tensor(maker *m, const synth_tensor *t, const stored_tensor *s, uint8_t *out)
{
    switch (s->type) {
    case WEIGHT_F32:
        make_f32(m, t, s, (float *)(void *)out);
        break;
    case WEIGHT_F16:
        make_f16(m, t, s, (uint16_t *)(void *)out);
        break;
    case WEIGHT_Q8_0:
        make_q8_0(m, t, s, (sq_block_q8_0 *)(void *)out);
        break;
    case WEIGHT_Q4_0:
        make_q4_0(m, t, s, (sq_block_q4_0 *)(void *)out);
        break;
    case WEIGHT_I8:
    case WEIGHT_I4:
        stored_put_header(s, out);
        make_panels(m, t, s, out + sizeof(sq_panel_header));
        break;
    }
}

/* ---- The file ------------------------------------------------------------------------------ */

typedef struct synth_job {
    synth_family family;
    synth_shape shape;
    const weight_policy *policy;
    uint32_t group;
    uint64_t seed;
    synth_tensor *tensors;
    stored_tensor *stored;
    size_t n, largest; /* bytes of a tensor */
    maker maker;
} synth_job;

static sq_str name_of(const synth_tensor *t) { return (sq_str){t->name, strlen(t->name)}; }

static squint_err plan_tensors(synth_job *job, squint_msg *msg)
{
    job->stored = cli_alloc(job->n, sizeof *job->stored);
    for (size_t i = 0; i < job->n; i++) {
        const synth_tensor *const t = &job->tensors[i];
        const weight_type type = job->policy->of[tensor_class_of(name_of(t), t->n_dims)];
        if (!stored_plan(&job->stored[i], type, t->ne, job->group))
            return sq_fail(msg, SQUINT_ERR_UNSUPPORTED, "tensor %s is too large", t->name);
        if (job->stored[i].bytes > job->largest) job->largest = job->stored[i].bytes;
    }
    return SQUINT_OK;
}

static void put_keys(const synth_job *job, sq_gguf_writer *w)
{
    const weight_policy *const policy = job->policy;
    synth_put_keys(w, job->family, job->shape, job->seed);
    if (policy->file_type != NO_FILE_TYPE) sq_gguf_put_u32(w, "general.file_type", (uint32_t)policy->file_type);
    sq_gguf_put_str(w, "squint.weights", (sq_str){policy->name, strlen(policy->name)});
    if (weight_is_panels(policy->of[CLASS_DECODER])) sq_gguf_put_str(w, "squint.rope_layout", (sq_str){"half", 4});
}

static squint_err put_tensors(synth_job *job, sq_gguf_writer *w, squint_msg *msg)
{
    uint8_t *const data = aligned_alloc(SQ_PANEL_ALIGN, (job->largest | (SQ_PANEL_ALIGN - 1)) + 1);
    if (!data) return sq_fail(msg, SQUINT_ERR_NOMEM, "no memory for a tensor of %zu MiB", job->largest >> 20);
    squint_err err = SQUINT_OK;
    for (size_t i = 0; !err && i < job->n; i++) {
        const stored_tensor *const s = &job->stored[i];
        cli_bar("making weights", (double)i / (double)job->n);
        memset(data, 0, s->bytes);
        make_tensor(&job->maker, &job->tensors[i], s, data);
        sq_gguf_put_data(w, data, s->bytes);
        if (cli_interrupted()) err = SQUINT_ERR_CANCELLED;
    }
    cli_bar_clear();
    free(data);
    return err;
}

static squint_err write_model(synth_job *job, const char *path, squint_msg *msg)
{
    sq_gguf_writer *w = NULL;
    squint_err err = plan_tensors(job, msg);
    if (!err) err = sq_gguf_write_begin(&w, path, SQ_PANEL_ALIGN, NULL, msg);
    if (err) return err;
    put_keys(job, w);
    for (size_t i = 0; i < job->n; i++)
        stored_declare(&job->stored[i], w, name_of(&job->tensors[i]), job->tensors[i].n_dims, job->tensors[i].ne);
    err = put_tensors(job, w, msg);
    if (!err) return sq_gguf_write_end(&w, msg);
    sq_gguf_write_abort(&w);
    return err;
}

/* ---- The command --------------------------------------------------------------------------- */

static int run_job(synth_job *job, const char *path)
{
    squint_msg msg = {""};
    job->tensors = synth_tensors(job->family, job->shape, &job->n);
    job->maker.state = job->seed;
    make_samples(&job->maker);
    cli_bar_enable();
    cli_watch_interrupts(NULL);
    const squint_err err = write_model(job, path, &msg);
    cli_unwatch_interrupts();
    free(job->tensors);
    free(job->stored);
    if (err) return cli_fail(err, &msg);
    return CLI_DONE;
}

static int run(const cli_command *self, int argc, char **argv)
{
    static const char *const group_words[] = {"32", "64", "128", "256", NULL};
    static const uint32_t groups[] = {32, 64, 128, 256};
    unsigned family = SYNTH_FAMILIES, shape = SYNTH_7B, type = WEIGHT_POLICIES, group = 1;
    synth_job job = {.seed = 1};
    const cli_option options[] = {
        CLI_ROW_CHOICE('f', "family", &family, synth_family_words, "NAME",
                       "llava15, llavanext, pmod15, pmodnext, gamma-hr, llava-hr-x, gamma-mgm"),
        CLI_ROW_CHOICE('s', "shape", &shape, synth_shape_words, "SHAPE", "7b, 13b or tiny (default: 7b)"),
        CLI_ROW_CHOICE('t', "type", &type, weight_policy_words, "TYPE", "q8, q4, q8_0, q4_0, f16 or f32, as quantize"),
        CLI_ROW_CHOICE('g', "group", &group, group_words, "N",
                       "weights that share a scale in q4: 32, 64, 128, 256 (default: 64)"),
        CLI_ROW_SEED(0, "seed", &job.seed, "of the weights (default: 1)"),
        CLI_ROW_END,
    };
    int first, status;
    if (!cli_parse(self, options, argc, argv, &first, &status)) return status;
    if (argc - first != 1) return cli_misuse(self, "synth: name the model file to write");
    if (family == SYNTH_FAMILIES) return cli_misuse(self, "synth: --family says what to make");
    if (type == WEIGHT_POLICIES) return cli_misuse(self, "synth: --type says of what weights");
    job.family = (synth_family)family;
    job.shape = (synth_shape)shape;
    job.policy = &weight_policies[type];
    job.group = groups[group];
    return run_job(&job, argv[first]);
}

const cli_command synth_command = {
    .name = "synth",
    .operands = "--family NAME --type TYPE OUT",
    .summary = "write a model file of random weights",
    .details =
        "A file in the layout of a released model, for measuring a machine before downloading one. What it says\n"
        "of pictures is nonsense in made-up words. Values that flow through it are of the size of a trained\n"
        "model's, scores of routers differ, and gamma-MoD's gates let about half of the tokens pass, so that\n"
        "times and memory are those of the real one.\n\n"
        "  llava15     LLaVA-1.5: CLIP, a picture of 576 tokens\n"
        "  llavanext   LLaVA-NeXT: CLIP on tiles, up to 2,928 tokens\n"
        "  pmod15      p-MoD on LLaVA-1.5\n"
        "  pmodnext    p-MoD on LLaVA-NeXT\n"
        "  gamma-hr    gamma-MoD on LLaVA-HR: CLIP and ConvNeXt, 1,024 tokens\n"
        "  llava-hr-x  LLaVA-HR-X, dense, with the largest ConvNeXt\n"
        "  gamma-mgm   gamma-MoD on Mini-Gemini-HD: 5 CLIP images, mined ConvNeXt, 2,880 tokens\n\n"
        "7b and 13b are Vicuna's shapes; tiny is for tests. A q4 file of 7b takes 4 GB.",
    .run = run,
};
