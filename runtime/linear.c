/*
 * Matrix products of a session: int8 activations against panels, or floats against floats.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/engine.h"

#include "config.h"

#include <string.h>

#if SQ_HAVE_OPENBLAS
#include <cblas.h>
#endif

enum {
    MAX_MATS = 4,
    F32_ROWS = 320, /* a chunk of a float product: rows x output channels; OpenBLAS copies both for each call */
    F32_COLS = 256,
    ORDERED_ROWS = 96,
    TILE_ROWS = 256, /* and what of it waits in the worker's scratch to be scattered: small enough for L2 */
    TILE_COLS = 64,
};

static uint32_t ceil_div(uint32_t a, uint32_t b) { return (a + b - 1) / b; }
static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }
static size_t max_size(size_t a, size_t b) { return a > b ? a : b; }

void sq_compute_plan(sq_compute *c, sq_arena *arena, unsigned n_threads, uint32_t max_m, uint32_t max_k,
                     uint32_t min_group, bool any_f32)
{
    const uint32_t mr = c->kernels->mr;
    const size_t rows = (size_t)ceil_div(max_m, mr) * mr;
    const size_t groups = ceil_div(max_k, min_group);
    c->acts = (sq_acts){.mr = mr};
    c->acts.q = sq_take_unset(arena, rows, sq_round_up(max_k, SQ_PANEL_K));
    c->acts.scale = sq_take_unset(arena, rows, groups * sizeof(float));
    c->acts.sum = sq_take_unset(arena, rows, groups * sizeof(int32_t));
    c->rows_f32 = any_f32 ? sq_take_unset(arena, max_m, max_k * sizeof(float)) : NULL;
    c->scratch_floats = max_size(max_k, any_f32 ? TILE_ROWS * TILE_COLS : 0);
    c->scratch_floats = (c->scratch_floats + 15) / 16 * 16; /* workers never share a cache line */
    c->scratch = sq_take(arena, n_threads, c->scratch_floats * sizeof(float));
}

/* The matrices of one call that read the same activations. */
typedef struct product {
    sq_compute *c;
    const sq_rows_in *in;
    uint32_t m;
    unsigned n_mats;
    const sq_mat *w[MAX_MATS];
    const sq_gemm_out *out[MAX_MATS];
    uint32_t per_chunk;           /* panels, or rows of tiles */
    uint32_t end_chunk[MAX_MATS]; /* one past the last chunk of each matrix */
    const float *x;               /* [m][k] of a float product */
} product;

static float *worker_scratch(const sq_compute *c, unsigned worker) { return c->scratch + worker * c->scratch_floats; }

static unsigned mat_of_chunk(const product *p, uint32_t *chunk)
{
    unsigned i = 0;
    while (*chunk >= p->end_chunk[i])
        i++;
    if (i) *chunk -= p->end_chunk[i - 1];
    return i;
}

/* ---- int8 ---- */

static void pack_chunk(void *ctx, unsigned chunk, unsigned worker)
{
    const product *const p = ctx;
    p->c->kernels->rows_pack(p->in, &p->c->acts, chunk, 1, worker_scratch(p->c, worker));
}

static void gemm_chunk(void *ctx, unsigned chunk_index, unsigned worker)
{
    (void)worker;
    const product *const p = ctx;
    uint32_t chunk = chunk_index;
    const unsigned i = mat_of_chunk(p, &chunk);
    const sq_panels *const w = &p->w[i]->panels;
    const uint32_t first = chunk * p->per_chunk;
    const uint32_t n = min_u32(p->per_chunk, (uint32_t)sq_panel_count(w) - first);
    sq_kernels_gemm(p->c->kernels, w)(w, first, n, &p->c->acts, p->out[i]);
}

uint32_t sq_panels_per_chunk(uint32_t panels, unsigned threads)
{
    uint32_t per = 8;
    while (per > 1 && per * threads * 8 > panels)
        per /= 2;
    return per;
}

static void run_panels(product *p)
{
    sq_compute *const c = p->c;
    c->acts.m = p->m;
    c->acts.k = p->in->k;
    c->acts.group = sq_panels_act_group(&p->w[0]->panels);
    sq_pool_run(c->pool, sq_acts_tiles(&c->acts), pack_chunk, p);

    uint32_t panels = 0, chunks = 0;
    for (unsigned i = 0; i < p->n_mats; i++)
        panels += (uint32_t)sq_panel_count(&p->w[i]->panels);
    p->per_chunk = sq_panels_per_chunk(panels, sq_pool_threads(c->pool));
    for (unsigned i = 0; i < p->n_mats; i++) {
        chunks += ceil_div((uint32_t)sq_panel_count(&p->w[i]->panels), p->per_chunk);
        p->end_chunk[i] = chunks;
    }
    sq_pool_run(c->pool, chunks, gemm_chunk, p);
}

/* ---- float ---- */

static const float *source_row(const sq_rows_in *in, uint32_t i)
{
    return in->x + (in->rows ? in->rows[i] : i) * in->ldx;
}

static void row_chunk(void *ctx, unsigned chunk, unsigned worker)
{
    (void)worker;
    const product *const p = ctx;
    const uint32_t k = p->in->k;
    p->c->kernels->row(p->in, source_row(p->in, chunk), p->c->rows_f32 + (size_t)chunk * k);
}

/* A part of one product: m rows from row0, n output channels from col0. */
typedef struct f32_part {
    const product *p;
    const sq_mat *w;
    const sq_gemm_out *out;
    uint32_t row0, m, col0, n;
} f32_part;

/* y[m][ldy] = x W^T, or += */
static void multiply_f32(const f32_part *t, float *y, size_t ldy, bool add)
{
    const uint32_t k = t->w->k;
    const float *const x = t->p->x + (size_t)t->row0 * k, *const w = t->w->f32 + (size_t)t->col0 * k;
#if SQ_HAVE_OPENBLAS
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)t->m, (int)t->n, (int)k, 1.0f, x, (int)k, w, (int)k,
                add ? 1.0f : 0.0f, y, (int)ldy);
#else
    for (uint32_t i = 0; i < t->m; i++)
        for (uint32_t j = 0; j < t->n; j++) {
            const float v = t->p->c->kernels->dot(x + (size_t)i * k, w + (size_t)j * k, k);
            y[i * ldy + j] = add ? y[i * ldy + j] + v : v;
        }
#endif
}

/* The product is added to what lies in c: the residual, the bias or both. */
static void multiply_in_place(const f32_part *t)
{
    const sq_gemm_out *const out = t->out;
    float *const c = out->c + t->row0 * out->ldc + t->col0;
    for (uint32_t i = 0; out->bias && i < t->m; i++) {
        float *const row = c + i * out->ldc;
        for (uint32_t j = 0; j < t->n; j++)
            row[j] = (out->add ? row[j] : 0.0f) + out->bias[t->col0 + j];
    }
    multiply_f32(t, c, out->ldc, out->add || out->bias);
}

static void store_f32(const f32_part *t, const float *y)
{
    const sq_gemm_out *const out = t->out;
    for (uint32_t i = t->row0; i < t->row0 + t->m; i++, y += TILE_COLS) {
        const uint32_t row = out->rows ? out->rows[i] : i;
        const float weight = out->row_weight ? out->row_weight[i] : 1.0f;
        float *const c = out->c + row * out->ldc + t->col0;
        for (uint32_t j = 0; j < t->n; j++) {
            const float v = weight * (y[j] + (out->bias ? out->bias[t->col0 + j] : 0.0f));
            c[j] = out->add ? c[j] + v : v;
        }
    }
}

static void multiply_and_scatter(const f32_part *t, float *scratch)
{
    for (uint32_t i = 0; i < t->m; i += TILE_ROWS)
        for (uint32_t j = 0; j < t->n; j += TILE_COLS) {
            f32_part tile = *t;
            tile.row0 += i;
            tile.col0 += j;
            tile.m = min_u32(TILE_ROWS, t->m - i);
            tile.n = min_u32(TILE_COLS, t->n - j);
            multiply_f32(&tile, scratch, TILE_COLS, false);
            store_f32(&tile, scratch);
        }
}

/* Output channels of a chunk: a small matrix is shared out too. */
static uint32_t f32_cols(const sq_mat *w) { return w->n >= 4 * F32_COLS ? F32_COLS : TILE_COLS; }

/* Rows of a chunk: our own kernel copies nothing. */
static uint32_t f32_rows(const sq_mat *w) { return w->ordered ? ORDERED_ROWS : F32_ROWS; }

static void multiply_ordered(const f32_part *t)
{
    const sq_float_rows rows = {.x = t->p->x, .ldx = t->w->k, .row0 = t->row0, .m = t->m};
    t->p->c->kernels->gemm_f32(t->w, t->col0 / SQ_PANEL_N, ceil_div(t->n, SQ_PANEL_N), &rows, t->out);
}

static void f32_chunk(void *ctx, unsigned chunk_index, unsigned worker)
{
    const product *const p = ctx;
    uint32_t chunk = chunk_index;
    const unsigned i = mat_of_chunk(p, &chunk);
    const uint32_t cols = f32_cols(p->w[i]);
    f32_part t = {.p = p, .w = p->w[i], .out = p->out[i]};
    t.row0 = chunk % p->per_chunk * f32_rows(t.w);
    t.col0 = chunk / p->per_chunk * cols;
    t.m = min_u32(f32_rows(t.w), p->m - t.row0);
    t.n = min_u32(cols, t.w->n - t.col0);
    if (t.w->ordered)
        multiply_ordered(&t);
    else if (t.out->rows || t.out->row_weight)
        multiply_and_scatter(&t, worker_scratch(p->c, worker));
    else
        multiply_in_place(&t);
}

static void run_f32(product *p)
{
#if SQ_HAVE_OPENBLAS
    openblas_set_num_threads(1); /* the pool is the only source of threads */
#endif
    const sq_rows_in *const in = p->in;
    const bool as_it_lies = in->op == SQ_ROW_COPY && !in->rows && in->ldx == in->k;
    p->x = as_it_lies ? in->x : p->c->rows_f32;
    if (!as_it_lies) sq_pool_run(p->c->pool, p->m, row_chunk, p);
    p->per_chunk = ceil_div(p->m, f32_rows(p->w[0]));
    uint32_t chunks = 0;
    for (unsigned i = 0; i < p->n_mats; i++)
        p->end_chunk[i] = chunks += p->per_chunk * ceil_div(p->w[i]->n, f32_cols(p->w[i]));
    sq_pool_run(p->c->pool, chunks, f32_chunk, p);
}

static bool same_activations(const sq_mat *a, const sq_mat *b)
{
    if (a->ordered || b->ordered) return a->ordered && b->ordered;
    if (a->f32 || b->f32) return a->f32 && b->f32;
    return sq_panels_act_group(&a->panels) == sq_panels_act_group(&b->panels);
}

void sq_project(sq_compute *c, const sq_rows_in *in, uint32_t m, const sq_mat *const *w, const sq_gemm_out *out,
                unsigned n_mats)
{
    assert(n_mats <= MAX_MATS);
    bool done[MAX_MATS] = {false};
    if (!m) return;
    if (c->ops) {
        c->ops->project(c->stream, in, m, w, out, n_mats);
        return;
    }
    for (unsigned i = 0; i < n_mats; i++) {
        if (done[i]) continue;
        product p = {.c = c, .in = in, .m = m};
        for (unsigned j = i; j < n_mats; j++) {
            if (done[j] || !same_activations(w[i], w[j])) continue;
            p.w[p.n_mats] = w[j];
            p.out[p.n_mats++] = &out[j];
            done[j] = true;
        }
        if (w[i]->f32 || w[i]->ordered)
            run_f32(&p);
        else
            run_panels(&p);
    }
}

/* ---- attention ---- */

typedef struct attend_job {
    const sq_compute *c;
    const sq_heads *heads;
    uint32_t n_blocks, rows; /* of a block */
} attend_job;

static void attend_chunk(void *ctx, unsigned chunk, unsigned worker)
{
    (void)worker;
    const attend_job *const job = ctx;
    const sq_heads *const heads = job->heads;
    /* Head after head, whose keys and values stay in L2. Late query rows see the most keys: they go first, so that no
     * thread ends with the longest. */
    const uint32_t head = chunk / job->n_blocks, block = job->n_blocks - 1 - chunk % job->n_blocks;
    const size_t kv = (size_t)(head * heads->n_kv_heads / heads->n_heads) * heads->kv_head_bytes;
    const uint32_t row0 = block * job->rows;
    sq_attn a = heads->attn;
    a.q += row0 * a.ldq + (size_t)head * a.head_dim;
    a.out += row0 * a.ldo + (size_t)head * a.head_dim;
    a.k = (const uint8_t *)a.k + kv;
    a.v = (const uint8_t *)a.v + kv;
    a.n_q = min_u32(job->rows, a.n_q - row0);
    if (a.causal) a.first_kv += row0;
    job->c->kernels->attention(&a);
}

void sq_attend(sq_compute *c, const sq_heads *heads)
{
    if (c->ops) {
        c->ops->attend(c->stream, heads);
        return;
    }
    const uint32_t n_q = heads->attn.n_q, rows = sq_heads_rows(n_q);
    attend_job job = {c, heads, ceil_div(n_q, rows), rows};
    sq_pool_run(c->pool, job.n_blocks * heads->n_heads, attend_chunk, &job);
}
