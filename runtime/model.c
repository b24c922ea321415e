/*
 * Opening and closing models, and reading weights.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/engine.h"

#include "config.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *squint_version(void) { return SQ_VERSION; }

const char *squint_model_isa(const squint_model *model) { return model->kernels->isa; }

const char *squint_model_device(const squint_model *model) { return model->device_name; }

const char *squint_model_mode(const squint_model *model) { return model->mode; }

const char *squint_model_own_mode(const squint_model *model) { return model->own_mode; }

size_t squint_model_token(const squint_model *model, uint32_t id, char *out, size_t size)
{
    return model->tokenizer ? sq_detokenize(model->tokenizer, id, out, size) : 0;
}

/* ---- memory that lives as long as the model ---- */

struct sq_owned {
    sq_owned *next;
    size_t bytes; /* of the whole allocation */
};

enum { ALIGN = 64 };

static void *take(squint_model *m, size_t n, size_t size, bool cleared)
{
    size_t bytes;
    if (!sq_mul(n, size, &bytes) || !sq_add(bytes, sizeof(sq_owned) + ALIGN, &bytes)) return NULL;
    sq_owned *const block = sq_alloc(&m->alloc, bytes);
    if (!block) return NULL;
    if (cleared) memset(block, 0, bytes);
    *block = (sq_owned){m->owned, bytes};
    m->owned = block;
    const uintptr_t start = (uintptr_t)(block + 1);
    return (uint8_t *)(block + 1) + (ALIGN - start % ALIGN) % ALIGN;
}

void *sq_model_take(squint_model *m, size_t n, size_t size) { return take(m, n, size, true); }

static void free_owned(squint_model *m)
{
    while (m->owned) {
        sq_owned *const block = m->owned;
        m->owned = block->next;
        sq_free(&m->alloc, block, block->bytes);
    }
}

/* ---- what is told while a model loads ---- */

enum { MAX_TYPE = 32 };

struct sq_loading {
    void (*on_note)(void *user, const char *text);
    void *note_user;
    sq_pool *pool; /* NULL until it is worth having */
    struct {
        size_t tensors, bytes_in, bytes_out;
    } requantised[MAX_TYPE]; /* by sq_tensor_type */
};

void sq_note(const squint_model *m, const char *format, ...)
{
    char text[sizeof(squint_msg)];
    squint_msg msg;
    va_list args;
    if (!m->loading || !m->loading->on_note) return;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    sq_fail(&msg, SQUINT_OK, "%s", text);
    m->loading->on_note(m->loading->note_user, msg.text);
}

static void note_requantised(const squint_model *m)
{
    for (uint32_t type = 0; type < MAX_TYPE; type++) {
        const size_t n = m->loading->requantised[type].tensors;
        if (!n) continue;
        const double in = (double)m->loading->requantised[type].bytes_in / (1 << 20),
                     out = (double)m->loading->requantised[type].bytes_out / (1 << 20);
        sq_note(m, "%zu %s of %s, %.1f MiB, requantised to int8 with a scale for each 32 inputs: %.1f MiB", n,
                n > 1 ? "tensors" : "tensor", sq_tensor_type_name(type), in, out);
    }
}

/* ---- opening ---- */

static squint_err choose_kernels(squint_model *m, const char *isa, squint_msg *msg)
{
    const char *const from_env = getenv("SQUINT_ISA");
    if (!isa && from_env && *from_env) isa = from_env;
    m->kernels = sq_kernels_get(isa);
    if (m->kernels) return SQUINT_OK;
    char names[128] = "auto";
    for (const char *const *name = sq_kernels_names(); *name; name++) {
        const size_t used = strlen(names);
        if (used + strlen(*name) + 3 > sizeof names) break;
        strcat(strcat(names, ", "), *name);
    }
    return sq_fail(msg, SQUINT_ERR_ARGUMENT, "instruction set \"%s\" is not one that runs here (%s)", isa, names);
}

static squint_err choose_family(squint_model *m, squint_msg *msg)
{
    for (const sq_family *const *f = sq_families; *f; f++)
        if ((*f)->matches(m->file)) {
            m->family = *f;
            return SQUINT_OK;
        }
    sq_str arch = {"(none)", 6};
    if (sq_gguf_get_str(m->file, "general.architecture", false, &arch, msg)) return SQUINT_ERR_FORMAT;
    return sq_fail(msg, SQUINT_ERR_UNSUPPORTED,
                   "%s: key general.architecture: \"%.*s\" is not a kind of model that squint runs (llama)",
                   sq_gguf_path(m->file), (int)(arch.len < 64 ? arch.len : 64), arch.s);
}

static squint_err read_template(squint_model *m, squint_msg *msg)
{
    m->template_name = (sq_str){"vicuna_v1", 9};
    const squint_err err = sq_gguf_get_str(m->file, "squint.chat.template", false, &m->template_name, msg);
    if (err) return err;
    if (sq_prompt_known(m->template_name)) return SQUINT_OK;
    return sq_fail(msg, SQUINT_ERR_UNSUPPORTED,
                   "%s: key squint.chat.template: \"%.*s\" is not a template that squint knows", sq_gguf_path(m->file),
                   (int)(m->template_name.len < 64 ? m->template_name.len : 64), m->template_name.s);
}

static squint_err load(squint_model *m, squint_msg *msg)
{
    squint_err err;
    if ((err = choose_family(m, msg))) return err;
    if ((err = m->family->load(m, msg))) return err;
    if ((err = sq_tokenizer_open(&m->tokenizer, m->file, &m->alloc, msg))) return err;
    if (sq_tokenizer_size(m->tokenizer) != m->n_vocab)
        return sq_fail(msg, SQUINT_ERR_FORMAT,
                       "%s: key tokenizer.ggml.tokens: %u pieces for %u rows of token_embd.weight",
                       sq_gguf_path(m->file), sq_tokenizer_size(m->tokenizer), m->n_vocab);
    return read_template(m, msg);
}

static squint_err open_model(squint_model **out, const char *path, const void *data, size_t size,
                             const squint_model_options *options, squint_msg *msg)
{
    static const squint_model_options defaults;
    if (!options) options = &defaults;
    *out = NULL;
    const squint_allocator alloc = sq_allocator_or_default(&options->allocator);
    squint_model *m = sq_alloc(&alloc, sizeof *m);
    if (!m) return sq_fail(msg, SQUINT_ERR_NOMEM, "no memory for a model");
    sq_loading loading = {.on_note = options->on_note, .note_user = options->note_user};
    *m = (squint_model){.alloc = alloc, .asked_mode = options->mode, .loading = &loading};

    squint_err err = choose_kernels(m, options->isa, msg);
    if (!err) err = sq_device_choose(m, options->device, msg);
    if (!err)
        err = data ? sq_gguf_open_memory(&m->file, path, data, size, &m->alloc, msg)
                   : sq_gguf_open(&m->file, path, &m->alloc, msg);
    if (!err && options->mmproj) err = sq_gguf_add_mmproj(m->file, options->mmproj, &m->alloc, msg);
    if (!err) err = load(m, msg);
    if (!err) note_requantised(m);
    sq_pool_close(&loading.pool);
    m->loading = NULL;
    m->asked_mode = NULL; /* the caller's memory */
    if (err)
        squint_model_close(&m);
    else
        *out = m;
    return err;
}

squint_err squint_model_open(squint_model **out, const char *path, const squint_model_options *options, squint_msg *msg)
{
    *out = NULL;
    if (!path) return sq_fail(msg, SQUINT_ERR_ARGUMENT, "no model: its path is NULL");
    return open_model(out, path, NULL, 0, options, msg);
}

squint_err squint_model_open_memory(squint_model **out, const void *data, size_t size,
                                    const squint_model_options *options, squint_msg *msg)
{
    *out = NULL;
    if (!data) return sq_fail(msg, SQUINT_ERR_ARGUMENT, "no model: its memory is NULL");
    return open_model(out, "model in memory", data, size, options, msg);
}

void squint_model_close(squint_model **model)
{
    squint_model *const m = *model;
    if (!m) return;
    sq_tokenizer_close(&m->tokenizer);
    sq_device_release(m);
    free_owned(m);
    sq_gguf_close(&m->file);
    const squint_allocator a = m->alloc;
    sq_free(&a, m, sizeof *m);
    *model = NULL;
}

/* ---- weights ---- */

squint_err sq_tensor_no_memory(const squint_model *m, const char *name, squint_msg *msg)
{
    return sq_fail(msg, SQUINT_ERR_NOMEM, "%s: no memory for tensor %s", sq_gguf_path_of(m->file, name), name);
}

static squint_err bad_shape(const squint_model *m, const sq_gguf_tensor *t, const char *name, uint32_t n, uint32_t k,
                            squint_msg *msg)
{
    return sq_fail(msg, SQUINT_ERR_FORMAT,
                   "%s: tensor %s at byte %zu: shape [%llu, %llu, %llu, %llu] where [%u, %u] is needed",
                   sq_gguf_path_of(m->file, name), name, t->file_pos, (unsigned long long)t->ne[0],
                   (unsigned long long)t->ne[1], (unsigned long long)t->ne[2], (unsigned long long)t->ne[3], k, n);
}

/* Are the first dimensions k together, and the others n? */
static bool splits_into(const sq_gguf_tensor *t, uint32_t n, uint32_t k)
{
    uint64_t inner = 1, outer = 1;
    unsigned i = 0;
    while (i < SQ_GGUF_MAX_DIMS && inner < k)
        inner *= t->ne[i++]; /* dimensions are below 2^32, and so is inner before the product */
    while (i < SQ_GGUF_MAX_DIMS && outer <= n)
        outer *= t->ne[i++];
    return i == SQ_GGUF_MAX_DIMS && inner == k && outer == n;
}

static squint_err find_tensor(const squint_model *m, const char *name, const sq_gguf_tensor **out, squint_msg *msg)
{
    *out = sq_gguf_find(m->file, name);
    if (*out) return SQUINT_OK;
    return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: tensor %s is missing", sq_gguf_path_of(m->file, name), name);
}

static bool is_aligned(const void *p, size_t align) { return (uintptr_t)p % align == 0; }

/* count floats: in place where possible, else a copy. */
static const float *floats(squint_model *m, const sq_gguf_tensor *t, size_t count)
{
    if (t->type == SQ_TENSOR_F32 && is_aligned(t->data, sizeof(float))) return (const float *)(const void *)t->data;
    float *const copy = take(m, count, sizeof *copy, false);
    if (!copy) return NULL;
    sq_tensor_floats(t->type, t->data, copy, count);
    sq_gguf_forget(m->file, t);
    return copy;
}

static squint_err load_panels(squint_model *m, const sq_gguf_tensor *t, const char *name, uint32_t n, uint32_t k,
                              sq_mat *out, squint_msg *msg)
{
    const squint_err err = sq_tensor_panels(m->file, t, &out->panels, msg);
    if (err) return err;
    if (out->panels.n != n || out->panels.k != k)
        return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: tensor %s at byte %zu: panels of [%u, %u] where [%u, %u] is needed",
                       sq_gguf_path_of(m->file, name), name, t->file_pos, out->panels.k, out->panels.n, k, n);
    if (is_aligned(out->panels.data, SQ_PANEL_ALIGN)) return SQUINT_OK;
    const size_t bytes = sq_panels_bytes(&out->panels);
    uint8_t *const copy = sq_model_take(m, bytes, 1);
    if (!copy) return sq_tensor_no_memory(m, name, msg);
    out->panels.data = memcpy(copy, out->panels.data, bytes);
    return SQUINT_OK;
}

/*
 * Blocks become panels, a panel of 16 rows at a time, on all cores where there is enough to do.
 *
 * Types with a minimum, or with scales for each 16 weights, have no panels of their own; the finest that there are,
 * int8 with a scale for each 32 inputs, take them. A weight then moves by at most 1/254 of the largest of its 32, and
 * of normally distributed ones by 0.53 % of their RMS (0.59 % in groups of 64, 0.70 % in channels of 256). llama.cpp's
 * types moved them by 1.8 (Q6_K) to 7.8 % (Q4_1) before: of Q4_K's 7.14 % become 7.16, of Q5_K's 3.62 3.66, of Q6_K's
 * 1.77 1.86. Groups of 32 also share their activations with the Q8_0 and Q4_0 that such files mix with them.
 */
typedef struct repack {
    const sq_gguf_tensor *t;
    size_t row_bytes;
    sq_panels w;
    uint8_t *out;
    const uint8_t *blocks;
    atomic_bool unfit; /* NaN, or too large */
} repack;

/* Inputs k0 to k0 + PART of all rows come one after another: what they fill of the panel stays in L1. */
static void requantise_rows(repack *job, const sq_panels *w, const uint8_t *blocks, uint8_t *out)
{
    enum { PART = SQ_SUPERBLOCK };
    float x[PART];
    sq_panels_clear(w, out);
    for (uint32_t k0 = 0; k0 < w->k; k0 += PART) {
        const uint32_t n = w->k - k0 < PART ? w->k - k0 : PART;
        const uint8_t *part = blocks + job->row_bytes * k0 / w->k;
        for (uint32_t row = 0; row < w->n; row++, part += job->row_bytes) {
            sq_tensor_floats(job->t->type, part, x, n);
            if (!sq_panels_quantise_part(w, row, k0, n, x, out))
                atomic_store_explicit(&job->unfit, true, memory_order_relaxed);
        }
    }
}

static void repack_panel(void *ctx, unsigned panel, unsigned worker)
{
    (void)worker;
    repack *const job = ctx;
    const uint32_t first = panel * SQ_PANEL_N, left = job->w.n - first;
    const uint8_t *const blocks = job->blocks + first * job->row_bytes;
    uint8_t *const out = job->out + panel * sq_panel_bytes(&job->w);
    sq_panels w = job->w;
    w.n = left < SQ_PANEL_N ? left : SQ_PANEL_N;
    switch (job->t->type) {
    case SQ_TENSOR_Q8_0:
        sq_panels_from_q8_0(&w, (const void *)blocks, out);
        break;
    case SQ_TENSOR_Q4_0:
        sq_panels_from_q4_0(&w, (const void *)blocks, out);
        break;
    case SQ_TENSOR_Q5_0:
        sq_panels_from_q5_0(&w, blocks, out);
        break;
    default:
        requantise_rows(job, &w, blocks, out);
    }
}

/* Threads are started when the first large matrix comes; without them it takes longer. */
static sq_pool *pool_for(const squint_model *m, const repack *job)
{
    enum { WORTH_IT = 1 << 20, MAX_THREADS = 64 };
    if ((uint64_t)job->w.n * job->w.k < WORTH_IT) return NULL;
    sq_loading *const loading = m->loading;
    const unsigned cores = sq_cpu_count(), threads = cores < MAX_THREADS ? cores : MAX_THREADS;
    if (!loading->pool && sq_pool_open(&loading->pool, threads, &m->alloc, NULL)) loading->pool = NULL;
    return loading->pool;
}

static bool is_requantised(uint32_t type)
{
    return type != SQ_TENSOR_Q8_0 && type != SQ_TENSOR_Q4_0 && type != SQ_TENSOR_Q5_0;
}

static void run_repack(const squint_model *m, repack *job)
{
    sq_pool *const pool = pool_for(m, job);
    const unsigned panels = (unsigned)sq_panel_count(&job->w);
    if (pool) sq_pool_run(pool, panels, repack_panel, job);
    for (unsigned panel = 0; !pool && panel < panels; panel++)
        repack_panel(job, panel, 0);
}

/* Those that are read through their structs must lie at even addresses, which only memory that the caller gave may not
 * have. */
static const uint8_t *even_blocks(squint_model *m, const sq_gguf_tensor *t)
{
    if (is_aligned(t->data, sizeof(uint16_t)) || (t->type != SQ_TENSOR_Q8_0 && t->type != SQ_TENSOR_Q4_0))
        return t->data;
    void *const copy = take(m, t->bytes, 1, false);
    return copy ? memcpy(copy, t->data, t->bytes) : NULL;
}

static void count_requantised(squint_model *m, const repack *job)
{
    const uint32_t type = job->t->type;
    if (!is_requantised(type)) return;
    m->loading->requantised[type].tensors++;
    m->loading->requantised[type].bytes_in += job->t->bytes;
    m->loading->requantised[type].bytes_out += sq_panels_bytes(&job->w);
}

static squint_err repack_blocks(squint_model *m, const sq_gguf_tensor *t, const char *name, sq_mat *out,
                                squint_msg *msg)
{
    const sq_panel_type type = t->type == SQ_TENSOR_Q4_0 ? SQ_PANEL_I4 : SQ_PANEL_I8;
    repack job = {.t = t, .row_bytes = t->bytes / out->n, .w = {NULL, out->n, out->k, type, SQ_BLOCK}};
    job.out = take(m, sq_panels_bytes(&job.w), 1, false);
    job.blocks = even_blocks(m, t);
    if (!job.out || !job.blocks) return sq_tensor_no_memory(m, name, msg);
    run_repack(m, &job);
    if (job.unfit)
        return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: tensor %s at byte %zu: holds NaN, infinity or weights past 8e6",
                       sq_gguf_path_of(m->file, name), name, t->file_pos);
    count_requantised(m, &job);
    sq_gguf_forget(m->file, t);
    out->panels = job.w;
    out->panels.data = job.out;
    return SQUINT_OK;
}

static squint_err load_stored(squint_model *m, const char *name, const sq_gguf_tensor *t, uint32_t n, uint32_t k,
                              sq_mat *out, squint_msg *msg)
{
    if (t->type == SQ_TENSOR_I8) return load_panels(m, t, name, n, k, out, msg);
    if (!splits_into(t, n, k)) return bad_shape(m, t, name, n, k, msg);
    if (!sq_tensor_is_weights(t->type))
        return sq_fail(msg, SQUINT_ERR_UNSUPPORTED, "%s: tensor %s at byte %zu: type %s is not one for weights",
                       sq_gguf_path_of(m->file, name), name, t->file_pos, sq_tensor_type_name(t->type));
    if (!sq_tensor_is_floats(t->type)) return repack_blocks(m, t, name, out, msg);
    out->f32 = floats(m, t, (size_t)n * k);
    return out->f32 ? SQUINT_OK : sq_tensor_no_memory(m, name, msg);
}

bool sq_mat_suit(squint_model *m, sq_mat *w)
{
    if (w->f32 || m->device_ops || m->precision != SQ_PRECISION_F32) return true;
    float *const rows = take(m, w->n, w->k * sizeof *rows, false);
    for (uint32_t row = 0; rows && row < w->n; row++)
        sq_mat_row(w, row, rows + (size_t)row * w->k);
    w->f32 = rows;
    return rows != NULL;
}

static squint_err find_mat(const squint_model *m, const char *name, uint32_t n, uint64_t k, const sq_gguf_tensor **t,
                           squint_msg *msg)
{
    const squint_err err = find_tensor(m, name, t, msg);
    if (err || (k <= SQ_MAX_K && n <= SQ_MAX_DIM)) return err;
    return sq_fail(msg, SQUINT_ERR_UNSUPPORTED, "%s: tensor %s: %llu inputs, %u outputs; the limits are %d and %d",
                   sq_gguf_path_of(m->file, name), name, (unsigned long long)k, n, SQ_MAX_K, SQ_MAX_DIM);
}

squint_err sq_load_mat(squint_model *m, const char *name, uint32_t n, uint32_t k, sq_mat *out, squint_msg *msg)
{
    const sq_gguf_tensor *t;
    squint_err err = find_mat(m, name, n, k, &t, msg);
    if (err) return err;
    *out = (sq_mat){.n = n, .k = k};
    err = load_stored(m, name, t, n, k, out, msg);
    *(out->f32 ? &m->any_floats : &m->any_panels) = true; /* as it is stored */
    return !err && !sq_mat_suit(m, out) ? sq_tensor_no_memory(m, name, msg) : err;
}

squint_err sq_load_ordered(squint_model *m, const char *name, uint32_t n, uint32_t channels, uint32_t taps, sq_mat *out,
                           squint_msg *msg)
{
    const sq_gguf_tensor *t;
    const squint_err err = find_mat(m, name, n, (uint64_t)channels * taps, &t, msg);
    if (err) return err;
    const uint32_t k = channels * taps;
    if (!sq_tensor_is_floats(t->type))
        return sq_fail(msg, SQUINT_ERR_UNSUPPORTED, "%s: tensor %s: convolutions are F32 or F16",
                       sq_gguf_path_of(m->file, name), name);
    if (!splits_into(t, n, k)) return bad_shape(m, t, name, n, k, msg);
    float *const ordered = sq_model_take(m, sq_round_up(n, SQ_PANEL_N), k * sizeof *ordered);
    float *const row = sq_alloc(&m->alloc, k * sizeof *row);
    for (size_t o = 0; ordered && row && o < n; o++) {
        float *const channel = ordered + o / SQ_PANEL_N * k * SQ_PANEL_N + o % SQ_PANEL_N;
        sq_tensor_floats(t->type, t->data + o * (t->bytes / n), row, k);
        for (size_t c = 0; c < channels; c++)
            for (size_t tap = 0; tap < taps; tap++)
                channel[(tap * channels + c) * SQ_PANEL_N] = row[c * taps + tap];
    }
    sq_free(&m->alloc, row, k * sizeof *row);
    if (!ordered || !row) return sq_tensor_no_memory(m, name, msg);
    sq_gguf_forget(m->file, t);
    *out = (sq_mat){.n = n, .k = k, .ordered = ordered};
    return SQUINT_OK;
}

/* Cannot overflow: the tensor's bytes are in the file, and no type has as many as two weights a byte. */
static uint64_t elements(const sq_gguf_tensor *t) { return t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3]; }

squint_err sq_load_vec(squint_model *m, const char *name, size_t n, bool required, const float **out, squint_msg *msg)
{
    *out = NULL;
    const sq_gguf_tensor *t = sq_gguf_find(m->file, name);
    if (!t) return required ? find_tensor(m, name, &t, msg) : SQUINT_OK;
    if (!sq_tensor_is_weights(t->type))
        return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: tensor %s at byte %zu: type %s where F32 or F16 is needed",
                       sq_gguf_path_of(m->file, name), name, t->file_pos, sq_tensor_type_name(t->type));
    if (elements(t) != n)
        return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: tensor %s at byte %zu: %llu elements where %zu are needed",
                       sq_gguf_path_of(m->file, name), name, t->file_pos, (unsigned long long)elements(t), n);
    *out = floats(m, t, n);
    return *out ? SQUINT_OK : sq_tensor_no_memory(m, name, msg);
}

void sq_mat_row(const sq_mat *m, uint32_t row, float *out)
{
    if (m->f32)
        memcpy(out, m->f32 + (size_t)row * m->k, m->k * sizeof *out);
    else
        sq_panels_row(&m->panels, row, out);
}
