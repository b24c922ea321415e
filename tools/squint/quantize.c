/*
 * squint quantize: a model file with smaller weights.
 * SPDX-License-Identifier: MIT
 *
 * Goes tensor by tensor: memory is bounded by the largest one. The file appears under its name only when it is
 * whole (sq_gguf_write_end).
 */
#include "runtime/gguf.h"
#include "tools/squint/cli.h"
#include "tools/squint/policy.h"
#include "tools/squint/tensors.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- Groups ---------------------------------------------------------------------------------- */

static const char *const group_words[] = {"32", "64", "128", "256", NULL};
static const uint32_t groups[] = {32, 64, 128, 256};

/* ---- One tensor ---------------------------------------------------------------------------- */

typedef struct class_sum {
    size_t n, bytes_in, bytes_out;
    double error, weight; /* sums of squares: of the differences, of the weights */
} class_sum;

typedef struct quantize_job {
    const sq_gguf *in;
    sq_gguf_writer *out;
    size_t policy, vision; /* of all else; of the tower and the projector */
    uint32_t group;
    bool to_half; /* rows of W_q and W_k go from llama.cpp's order to rotate-half */
    uint32_t n_heads, n_kv_heads;
    class_sum sums[CLASS_COUNT];
} quantize_job;

/* Where a tensor is going. */
typedef struct plan {
    const sq_gguf_tensor *tensor;
    tensor_class class;
    stored_tensor to; /* in the new file */
} plan;

static squint_err fail_tensor(const quantize_job *job, const sq_gguf_tensor *t, const char *what, squint_msg *msg)
{
    return sq_fail(msg, SQUINT_ERR_UNSUPPORTED, "%s: tensor %.*s: %s", sq_gguf_path(job->in), (int)t->name.len,
                   t->name.s, what);
}

static squint_err make_plan(const quantize_job *job, const sq_gguf_tensor *t, plan *p, squint_msg *msg)
{
    *p = (plan){.tensor = t, .class = tensor_class_of(t->name, t->n_dims)};
    if (sq_tensor_is_panels(t))
        return fail_tensor(job, t, "is quantised to panels; begin with the f32, f16, q8_0 or q4_0 model", msg);
    if (!sq_tensor_is_weights(t->type)) return fail_tensor(job, t, "holds integers, not weights", msg);
    const size_t policy = p->class == CLASS_TOWER ? job->vision : job->policy;
    if (stored_plan(&p->to, weight_policies[policy].of[p->class], t->ne, job->group)) return SQUINT_OK;
    return fail_tensor(job, t, stored_is_panels(&p->to) ? "is too large for panels" : "is too large", msg);
}

/* Within each head, llama.cpp's row 2i + j is rotate-half's row j * head_dim / 2 + i. */
static void rows_to_half(float *w, uint64_t n, uint64_t k, uint32_t n_heads)
{
    const uint64_t head_dim = n / n_heads, half = head_dim / 2;
    float *head = cli_alloc(head_dim * k, sizeof *head);
    for (uint32_t h = 0; h < n_heads; h++, w += head_dim * k) {
        memcpy(head, w, head_dim * k * sizeof *w);
        for (uint64_t i = 0; i < half; i++)
            for (uint64_t j = 0; j < 2; j++)
                memcpy(w + (j * half + i) * k, head + (2 * i + j) * k, k * sizeof *w);
    }
    free(head);
}

static squint_err reorder_rows(const quantize_job *job, const plan *p, float *w, squint_msg *msg)
{
    const bool q = name_matches(p->tensor->name, "blk.*.attn_q.weight");
    if (!job->to_half || (!q && !name_matches(p->tensor->name, "blk.*.attn_k.weight"))) return SQUINT_OK;
    const uint32_t n_heads = q ? job->n_heads : job->n_kv_heads;
    if (!n_heads || p->to.n % (2 * (uint64_t)n_heads))
        return fail_tensor(job, p->tensor, "its rows are not a pair for each head and frequency", msg);
    rows_to_half(w, p->to.n, p->to.k, n_heads);
    return SQUINT_OK;
}

/* The weights in the new type at `out`, of p->to.bytes. */
static void encode(const plan *p, const float *w, uint8_t *out)
{
    const size_t n = (size_t)(p->to.n * p->to.k);
    uint16_t half;
    switch (p->to.type) {
    case WEIGHT_F32:
        memcpy(out, w, n * sizeof *w);
        break;
    case WEIGHT_F16:
        for (size_t i = 0; i < n; i++) {
            half = sq_f32_to_f16(w[i]);
            memcpy(out + i * sizeof half, &half, sizeof half);
        }
        break;
    case WEIGHT_Q8_0:
        sq_quantise_q8_0(w, (sq_block_q8_0 *)(void *)out, n / SQ_BLOCK);
        break;
    case WEIGHT_Q4_0:
        sq_quantise_q4_0(w, (sq_block_q4_0 *)(void *)out, n / SQ_BLOCK);
        break;
    case WEIGHT_I8:
    case WEIGHT_I4:
        stored_put_header(&p->to, out);
        sq_panels_quantise(&p->to.panels, w, out + sizeof(sq_panel_header));
        break;
    }
}

/* Row `row` of what encode() wrote, as floats. */
static void decode_row(const plan *p, const uint8_t *encoded, uint32_t row, float *out)
{
    size_t row_bytes = 0;
    const uint64_t ne[SQ_GGUF_MAX_DIMS] = {p->to.k, 1, 1, 1};
    if (stored_is_panels(&p->to)) {
        sq_panels panels = p->to.panels;
        panels.data = encoded + sizeof(sq_panel_header);
        sq_panels_row(&panels, row, out);
    } else if (sq_tensor_bytes(stored_gguf_type(&p->to), ne, &row_bytes)) {
        sq_tensor_floats(stored_gguf_type(&p->to), encoded + row * row_bytes, out, p->to.k);
    }
}

static void measure(quantize_job *job, const plan *p, const float *w, const uint8_t *encoded)
{
    class_sum *sum = &job->sums[p->class];
    float *row = cli_alloc(p->to.k, sizeof *row);
    for (uint64_t i = 0; i < p->to.n; i++, w += p->to.k) {
        decode_row(p, encoded, (uint32_t)i, row);
        for (uint64_t j = 0; j < p->to.k; j++) {
            const double difference = (double)row[j] - w[j];
            sum->error += difference * difference;
            sum->weight += (double)w[j] * w[j];
        }
    }
    free(row);
    sum->n++;
    sum->bytes_in += p->tensor->bytes;
    sum->bytes_out += p->to.bytes;
}

static squint_err check_floats(const quantize_job *job, const plan *p, const float *w, squint_msg *msg)
{
    const float limit = p->to.type == WEIGHT_F32 ? INFINITY : 65504.0f; /* binary16, of weights or of scales */
    for (uint64_t i = 0; i < p->to.n * p->to.k; i++)
        if (!(fabsf(w[i]) <= limit) || isinf(w[i]))
            return fail_tensor(job, p->tensor, "holds NaN, infinity or what F16 cannot hold", msg);
    return SQUINT_OK;
}

static squint_err convert(quantize_job *job, const plan *p, squint_msg *msg)
{
    const size_t bytes = (p->to.bytes + SQ_PANEL_ALIGN - 1) / SQ_PANEL_ALIGN * SQ_PANEL_ALIGN;
    float *w = cli_alloc((size_t)(p->to.n * p->to.k), sizeof *w);
    uint8_t *encoded = aligned_alloc(SQ_PANEL_ALIGN, bytes);
    squint_err err = encoded ? SQUINT_OK : SQUINT_ERR_NOMEM;
    if (err) sq_fail(msg, err, "no memory for tensor %.*s", (int)p->tensor->name.len, p->tensor->name.s);
    if (!err) sq_tensor_floats(p->tensor->type, p->tensor->data, w, (size_t)(p->to.n * p->to.k));
    if (!err) err = check_floats(job, p, w, msg);
    if (!err) err = reorder_rows(job, p, w, msg);
    if (!err) {
        encode(p, w, encoded);
        measure(job, p, w, encoded);
        sq_gguf_put_data(job->out, encoded, p->to.bytes);
    }
    free(w);
    free(encoded);
    return err;
}

/* ---- The file ------------------------------------------------------------------------------ */

static void put_keys(const quantize_job *job)
{
    for (size_t i = 0; i < sq_gguf_n_keys(job->in); i++) {
        const sq_gguf_kv *kv = sq_gguf_key(job->in, i);
        const bool ours = sq_str_eq(kv->key, "general.file_type") || sq_str_eq(kv->key, "squint.weights") ||
                          (job->to_half && sq_str_eq(kv->key, "squint.rope_layout"));
        if (!ours) sq_gguf_put_kv(job->out, kv);
    }
    const int file_type = job->vision == job->policy ? weight_policies[job->policy].file_type : NO_FILE_TYPE;
    const char *name = weight_policies[job->policy].name;
    if (file_type != NO_FILE_TYPE) sq_gguf_put_u32(job->out, "general.file_type", (uint32_t)file_type);
    sq_gguf_put_str(job->out, "squint.weights", (sq_str){name, strlen(name)});
    if (job->to_half) sq_gguf_put_str(job->out, "squint.rope_layout", (sq_str){"half", 4});
}

static squint_err put_tensors(quantize_job *job, squint_msg *msg)
{
    const size_t n = sq_gguf_n_tensors(job->in);
    plan *plans = cli_alloc(n, sizeof *plans);
    squint_err err = SQUINT_OK;
    for (size_t i = 0; !err && i < n; i++)
        err = make_plan(job, sq_gguf_tensor_at(job->in, i), &plans[i], msg);
    for (size_t i = 0; !err && i < n; i++)
        stored_declare(&plans[i].to, job->out, plans[i].tensor->name, plans[i].tensor->n_dims, plans[i].tensor->ne);
    for (size_t i = 0; !err && i < n; i++) {
        cli_bar("quantising", (double)i / (double)n);
        err = cli_interrupted() ? SQUINT_ERR_CANCELLED : convert(job, &plans[i], msg);
    }
    cli_bar_clear();
    free(plans);
    return err;
}

/* Panels are stored with rows as the kernels rotate them, so that the file is used as it lies. */
static squint_err plan_rope(quantize_job *job, squint_msg *msg)
{
    sq_str layout = {"interleaved", 11};
    squint_err err = sq_gguf_get_str(job->in, "squint.rope_layout", false, &layout, msg);
    if (err) return err;
    job->to_half = weight_is_panels(weight_policies[job->policy].of[CLASS_DECODER]) && sq_str_eq(layout, "interleaved");
    if (!job->to_half) return SQUINT_OK;
    if ((err = sq_gguf_get_u32(job->in, "llama.attention.head_count", true, &job->n_heads, msg))) return err;
    job->n_kv_heads = job->n_heads;
    return sq_gguf_get_u32(job->in, "llama.attention.head_count_kv", false, &job->n_kv_heads, msg);
}

static squint_err quantize(quantize_job *job, const char *out_path, squint_msg *msg)
{
    squint_err err = plan_rope(job, msg);
    if (!err) err = sq_gguf_write_begin(&job->out, out_path, SQ_PANEL_ALIGN, NULL, msg);
    if (err) return err;
    put_keys(job);
    err = put_tensors(job, msg);
    if (!err) return sq_gguf_write_end(&job->out, msg);
    sq_gguf_write_abort(&job->out);
    return err;
}

/* ---- The command --------------------------------------------------------------------------- */

static void print_sums(const quantize_job *job)
{
    printf("%-10s %8s %14s %14s %14s\n", "class", "tensors", "bytes before", "bytes after", "relative RMS");
    for (int c = 0; c < CLASS_COUNT; c++) {
        const class_sum *s = &job->sums[c];
        if (s->n)
            printf("%-10s %8zu %14zu %14zu %14.6f\n", tensor_class_names[c], s->n, s->bytes_in, s->bytes_out,
                   s->weight > 0 ? sqrt(s->error / s->weight) : 0);
    }
}

static int quantize_file(quantize_job *job, const char *in_path, const char *mmproj, const char *out_path)
{
    sq_gguf *in = NULL;
    squint_msg msg = {""};
    squint_err err = sq_gguf_open_pair(&in, in_path, mmproj, NULL, &msg);
    job->in = in;
    cli_bar_enable();
    cli_watch_interrupts(NULL);
    if (!err) err = quantize(job, out_path, &msg);
    cli_unwatch_interrupts();
    sq_gguf_close(&in);
    if (err) return cli_fail(err, &msg);
    print_sums(job);
    return cli_flush() ? CLI_DONE : CLI_FAILED;
}

static int run(const cli_command *self, int argc, char **argv)
{
    enum { NO_TYPE = WEIGHT_POLICIES };
    unsigned type = NO_TYPE, vision = NO_TYPE, group = 1;
    const char *mmproj = NULL;
    const cli_option options[] = {
        CLI_ROW_MMPROJ(&mmproj),
        CLI_ROW_CHOICE('t', "type", &type, weight_policy_words, "TYPE",
                       "q8, q4 (squint's own), q8_0, q4_0, f16 or f32"),
        CLI_ROW_CHOICE(0, "vision", &vision, weight_policy_words, "TYPE",
                       "tower and projector as this type has them (default: as --type)"),
        CLI_ROW_CHOICE('g', "group", &group, group_words, "N",
                       "weights that share a scale in q4: 32, 64, 128, 256 (default: 64)"),
        CLI_ROW_END,
    };
    int first, status;
    if (!cli_parse(self, options, argc, argv, &first, &status)) return status;
    if (argc - first != 2) return cli_misuse(self, "quantize: name the model to read and the one to write");
    if (type == NO_TYPE) return cli_misuse(self, "quantize: --type says what to quantise to");
    const char *in = argv[first], *out = argv[first + 1];
    if (cli_same_file(in, out)) return cli_misuse(self, "quantize: %s would overwrite itself", in);
    if (!cli_spares("quantize", out, "the vision half", &mmproj, 1)) return CLI_MISUSED;
    quantize_job job = {.policy = type, .vision = vision == NO_TYPE ? type : vision, .group = groups[group]};
    return quantize_file(&job, in, mmproj, out);
}

const cli_command quantize_command = {
    .name = "quantize",
    .operands = "--type TYPE IN OUT",
    .summary = "write a model file with smaller weights",
    .details =
        "Reads a model of any weights but squint's own (F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K,\n"
        "Q5_K, Q6_K) and writes another:\n\n"
        "  type   decoder         embedding, output   vision    rest\n"
        "  q8     int8, channels  int8, channels      as left   F32\n"
        "  q4     int4, groups    int8, channels      as left   F32\n"
        "  q8_0   Q8_0            Q8_0                Q8_0      F32\n"
        "  q4_0   Q4_0            Q8_0                Q8_0      F32\n"
        "  f16    F16             F16                 F16       F32\n"
        "  f32    F32             F32                 F32       F32\n\n"
        "\"vision\" is the tower and the projector; --vision f32 or f16 keeps them in float.\n"
        "With --mmproj OUT is one file of both halves. The rest is norms, biases, routers, convolutions and position embeddings. Files of q8 and q4 are\n"
        "used where they lie; the others are repacked on loading, and other programs read them too.",
    .run = run,
};
