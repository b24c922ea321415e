/*
 * Verbs of small work, on the CPU or a device, and the choice of that.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/engine.h"

#include <stdio.h>
#include <string.h>

enum { MAX_NAME = 16, MAX_WHY = 256 };

/* ---- choice ---- */

static squint_err unknown(const char *name, squint_msg *msg)
{
    return sq_fail(msg, SQUINT_ERR_ARGUMENT, "device: \"%.64s\" is not cpu, cpu:f32, cuda, cuda:f32 or cuda:f16", name);
}

static squint_err open_device(squint_model *m, const sq_device_ops *ops, squint_msg *msg)
{
    char why[MAX_WHY] = "";
    if (!ops->open(&m->device, m->precision, why, sizeof why))
        return sq_fail(msg, SQUINT_ERR_DEVICE, "device %s: %s", ops->name, why);
    m->device_ops = ops;
    const size_t used = strlen(m->device_name);
    snprintf(m->device_name + used, sizeof m->device_name - used, " (%s)", ops->label(m->device));
    return SQUINT_OK;
}

squint_err sq_device_choose(squint_model *m, const char *asked, squint_msg *msg)
{
    static const char *const precisions[] = {
        [SQ_PRECISION_FILE] = "", [SQ_PRECISION_F32] = ":f32", [SQ_PRECISION_F16] = ":f16"};
    const char *const text = asked ? asked : "cpu";
    const size_t n = strcspn(text, ":");
    char name[MAX_NAME];
    unsigned i = 0;
    if (n >= sizeof name) return unknown(text, msg);
    memcpy(name, text, n);
    name[n] = 0;
    while (i < SQ_COUNT(precisions) && strcmp(text + n, precisions[i]))
        i++;
    if (i == SQ_COUNT(precisions)) return unknown(text, msg);
    m->precision = (sq_precision)i;
    snprintf(m->device_name, sizeof m->device_name, "%s", text);
    if (!strcmp(name, "cpu")) return m->precision == SQ_PRECISION_F16 ? unknown(text, msg) : SQUINT_OK;
    bool known;
    const sq_device_ops *const ops = sq_device_named(name, &known);
    if (!known) return unknown(text, msg);
    if (!ops)
        return sq_fail(msg, SQUINT_ERR_DEVICE,
                       "device: %s is not in this build of squint; configure it with -D%s=enabled", name, name);
    return open_device(m, ops, msg);
}

void sq_device_share(squint_model *m, const squint_model *other)
{
    m->device_ops = other->device_ops;
    m->device = other->device;
    m->shares_device = true;
    m->precision = other->precision;
    memcpy(m->device_name, other->device_name, sizeof m->device_name);
}

void sq_device_release(squint_model *m)
{
    if (m->device_ops && !m->shares_device) m->device_ops->close(m->device);
    m->device_ops = NULL;
}

squint_err sq_compute_open(sq_compute *c, const squint_model *m, squint_msg *msg)
{
    char why[MAX_WHY] = "";
    if (!m->device_ops) return SQUINT_OK;
    if (!m->device_ops->stream_open(&c->stream, m->device, why, sizeof why))
        return sq_fail(msg, SQUINT_ERR_DEVICE, "device %s: %s", m->device_ops->name, why);
    c->ops = m->device_ops;
    return SQUINT_OK;
}

void sq_compute_close(sq_compute *c)
{
    if (c->ops) c->ops->stream_close(c->stream);
    c->ops = NULL;
}

/* ---- memory ---- */

void sq_write(sq_compute *c, void *to, const void *from, size_t bytes)
{
    if (c->ops && bytes)
        c->ops->write(c->stream, to, from, bytes);
    else if (to != from && bytes)
        memcpy(to, from, bytes);
}

void sq_read(sq_compute *c, void *to, const void *from, size_t bytes)
{
    if (c->ops && bytes)
        c->ops->read(c->stream, to, from, bytes);
    else if (to != from && bytes)
        memcpy(to, from, bytes);
}

void sq_copy(sq_compute *c, void *to, const void *from, size_t bytes)
{
    if (c->ops && bytes)
        c->ops->copy(c->stream, to, from, bytes);
    else if (to != from && bytes)
        memcpy(to, from, bytes);
}

squint_err sq_finish(sq_compute *c, squint_msg *msg)
{
    char why[MAX_WHY] = "";
    bool no_memory = false;
    if (!c->ops) return SQUINT_OK;
    if (!c->ops->finish(c->stream, &no_memory, why, sizeof why))
        return sq_fail(msg, no_memory ? SQUINT_ERR_NOMEM : SQUINT_ERR_DEVICE, "device %s: %s", c->ops->name, why);
    if (!c->no_trace) return SQUINT_OK;
    c->no_trace = false;
    return sq_fail(msg, SQUINT_ERR_NOMEM, "no memory to trace what is on the device");
}

/* ---- rows ---- */

typedef struct rows_job {
    const sq_compute *c;
    const sq_rows_in *in;
    float *out;
    size_t ldo;
} rows_job;

/* A norm reads all of its row before it writes: the row may be changed in place. */
static void row_chunk(void *ctx, unsigned i, unsigned worker)
{
    (void)worker;
    const rows_job *const job = ctx;
    const sq_rows_in *const in = job->in;
    job->c->kernels->row(in, in->x + (in->rows ? in->rows[i] : i) * in->ldx, job->out + i * job->ldo);
}

void sq_rows(sq_compute *c, const sq_rows_in *in, uint32_t m, float *out, size_t ldo)
{
    rows_job job = {c, in, out, ldo};
    if (c->ops)
        c->ops->rows(c->stream, in, m, out, ldo);
    else
        sq_pool_run(c->pool, m, row_chunk, &job);
}

/* ---- keys and values ---- */

typedef struct kv_job {
    const sq_compute *c;
    const sq_kv_store *store;
} kv_job;

static void store_head(const kv_job *job, const float *src, void *heads, size_t entry)
{
    const uint32_t head_dim = job->store->head_dim;
    const sq_kv_type type = job->store->kv_type;
    void *const dst = (uint8_t *)heads + entry * sq_kv_units(type, head_dim) * sq_kv_unit_bytes(type);
    switch (type) {
    case SQ_KV_F32:
        memcpy(dst, src, head_dim * sizeof(float));
        break;
    case SQ_KV_F16:
        job->c->kernels->to_f16(src, dst, head_dim);
        break;
    case SQ_KV_Q8:
        job->c->kernels->to_q8(src, dst, head_dim);
        break;
    }
}

static void store_row(void *ctx, unsigned i, unsigned worker)
{
    (void)worker;
    const kv_job *const job = ctx;
    const sq_kv_store *const s = job->store;
    const sq_kernels *const kernels = job->c->kernels;
    const uint32_t position = s->position + (s->compressed ? i : s->rows ? s->rows[i] : s->first + i);
    const float *const rope = s->rope + (size_t)position * s->head_dim;
    float *const q = s->qkv + i * s->ld, *const k = q + (size_t)s->n_heads * s->head_dim;
    const float *const v = k + (size_t)s->n_kv_heads * s->head_dim;
    for (uint32_t h = 0; h < s->n_heads; h++)
        kernels->rope(q + h * s->head_dim, rope, s->head_dim, s->rope_half);
    for (uint32_t h = 0; h < s->n_kv_heads; h++) {
        const size_t entry = (size_t)h * s->capacity + s->n + i;
        kernels->rope(k + h * s->head_dim, rope, s->head_dim, s->rope_half);
        store_head(job, k + h * s->head_dim, s->k, entry);
        store_head(job, v + h * s->head_dim, s->v, entry);
    }
}

void sq_store_kv(sq_compute *c, const sq_kv_store *store)
{
    kv_job job = {c, store};
    if (c->ops)
        c->ops->store_kv(c->stream, store);
    else
        sq_pool_run(c->pool, store->m, store_row, &job);
}
