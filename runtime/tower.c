/*
 * Verbs of the towers, on the CPU or a device.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/engine.h"
#include "simd/exp.h"
#include "simd/tap.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { CHUNK_FLOATS = 16 * 1024, CHUNK_COLUMNS = 64 };

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* A verb's work and what it works with. */
typedef struct tower_job {
    const sq_compute *c;
    const void *work;
} tower_job;

static void run(sq_compute *c, unsigned n_chunks, sq_job_fn *fn, const void *work)
{
    sq_pool_run(c->pool, n_chunks, fn, &(tower_job){c, work});
}

const float *sq_upload(sq_compute *c, float *to, const float *from, size_t n)
{
    if (!c->ops) return from;
    c->ops->write(c->stream, to, from, n * sizeof *from);
    return to;
}

/* ---- convolutions ---- */

static void gather_place(const tower_job *job, uint32_t y, uint32_t x, float *out)
{
    const sq_patches *const p = job->work;
    const size_t at = (size_t)y * p->side + x, plane = (size_t)p->side * p->side;
    if (p->planar)
        for (size_t c = 0; c < p->channels; c++)
            out[c] = p->map[c * plane + at];
    else if (p->norm)
        job->c->kernels->row(p->norm, p->map + at * p->channels, out);
    else
        memcpy(out, p->map + at * p->channels, p->channels * sizeof *out);
}

static void gather_row(void *ctx, unsigned row, unsigned worker)
{
    (void)worker;
    const tower_job *const job = ctx;
    const sq_patches *const p = job->work;
    const uint32_t kernel = p->kernel, top = (p->y0 + row) * p->stride - p->pad;
    float *out = p->out + (size_t)row * p->out_side * kernel * kernel * p->channels;
    for (uint32_t out_x = 0; out_x < p->out_side; out_x++)
        for (uint32_t ky = 0; ky < kernel; ky++)
            for (uint32_t kx = 0; kx < kernel; kx++, out += p->channels) {
                /* Above and left of the map the unsigned difference wraps far past its side. */
                const uint32_t y = top + ky, x = out_x * p->stride + kx - p->pad;
                if (y < p->side && x < p->side)
                    gather_place(job, y, x, out);
                else
                    memset(out, 0, p->channels * sizeof *out);
            }
}

void sq_gather_patches(sq_compute *c, const sq_patches *p)
{
    assert(!p->planar || !p->norm);
    if (c->ops)
        c->ops->patches(c->stream, p);
    else
        run(c, p->n_rows, gather_row, p);
}

static const float *row_before(const sq_depthwise_map *d, int64_t y)
{
    const size_t row = (size_t)d->side * d->channels;
    if (y < 0 || y >= d->side) return NULL;
    return y < d->y0 ? d->before + (size_t)y % (SQ_DEPTHWISE_SIDE / 2) * row : d->map + (size_t)y * row;
}

static void convolve_row(void *ctx, unsigned row, unsigned worker)
{
    (void)worker;
    const tower_job *const job = ctx;
    const sq_depthwise_map *const map = job->work;
    sq_depthwise d = {.w = map->w,
                      .bias = map->bias,
                      .width = map->side,
                      .channels = map->channels,
                      .out = map->out + (size_t)row * map->side * map->channels};
    for (int ky = 0; ky < SQ_DEPTHWISE_SIDE; ky++)
        d.rows[ky] = row_before(map, (int64_t)map->y0 + row + ky - SQ_DEPTHWISE_SIDE / 2);
    job->c->kernels->depthwise(&d);
}

void sq_convolve_depthwise(sq_compute *c, const sq_depthwise_map *d)
{
    if (c->ops)
        c->ops->depthwise(c->stream, d);
    else
        run(c, d->n_rows, convolve_row, d);
}

/* ---- maps of another size ---- */

/* out[i] between from[0][i] (upper left), [1] (upper right), [2] (lower left) and [3], n of them. */
static void lerp_rows(const float *const from[4], sq_tap x, sq_tap y, uint32_t n, float *restrict out)
{
    const float *const a = from[0], *const b = from[1], *const c = from[2], *const d = from[3];
    for (uint32_t i = 0; i < n; i++)
        out[i] = sq_lerp(x, y, a[i], b[i], c[i], d[i]);
}

/* A place of a map [*][width][n] between four. */
static void lerp_place(const float *map, size_t width, sq_tap x, sq_tap y, uint32_t n, float *out)
{
    const float *const above = map + y.low * width * n, *const below = map + y.high * width * n;
    const float *const from[] = {above + (size_t)x.low * n, above + (size_t)x.high * n, below + (size_t)x.low * n,
                                 below + (size_t)x.high * n};
    lerp_rows(from, x, y, n, out);
}

static void mean_place(const sq_resize_map *r, uint32_t y, uint32_t x, float *out)
{
    const uint32_t n = r->channels, ratio = r->width / r->out_width;
    const float share = 1.0f / (float)(ratio * ratio);
    const float *const first = r->map + ((size_t)y * ratio * r->width + (size_t)x * ratio) * n;
    for (uint32_t i = 0; i < n; i++) {
        float sum = 0.0f;
        for (uint32_t t = 0; t < ratio * ratio; t++)
            sum += first[((size_t)(t / ratio) * r->width + t % ratio) * n + i];
        out[i] = sum * share;
    }
}

static void resize_row(void *ctx, unsigned row, unsigned worker)
{
    (void)worker;
    const sq_resize_map *const r = ((const tower_job *)ctx)->work;
    const bool corners = r->by == SQ_RESIZE_CORNERS;
    const sq_tap y = sq_bilinear_tap(row, r->height, r->out_height, corners);
    float *out = r->out + (size_t)row * r->out_row * r->channels;
    for (uint32_t x = 0; x < r->out_width; x++, out += r->channels)
        if (r->by == SQ_RESIZE_MEANS)
            mean_place(r, row, x, out);
        else
            lerp_place(r->map, r->width, sq_bilinear_tap(x, r->width, r->out_width, corners), y, r->channels, out);
}

void sq_resize(sq_compute *c, const sq_resize_map *r)
{
    if (c->ops)
        c->ops->resize(c->stream, r);
    else
        run(c, r->out_height, resize_row, r);
}

/* ---- vectors ---- */

typedef struct vector_work {
    float *x;
    const float *y;
    float scale;
    size_t n;
} vector_work;

static size_t vector_part(const vector_work *v, unsigned chunk, size_t *end)
{
    const size_t first = (size_t)chunk * CHUNK_FLOATS;
    *end = v->n - first < CHUNK_FLOATS ? v->n : first + CHUNK_FLOATS;
    return first;
}

static unsigned vector_chunks(size_t n) { return (unsigned)((n + CHUNK_FLOATS - 1) / CHUNK_FLOATS); }

static void relu_chunk(void *ctx, unsigned chunk, unsigned worker)
{
    (void)worker;
    const vector_work *const v = ((const tower_job *)ctx)->work;
    size_t end;
    for (size_t i = vector_part(v, chunk, &end); i < end; i++)
        v->x[i] = v->x[i] > 0 ? v->x[i] : 0;
}

void sq_relu(sq_compute *c, float *x, size_t n)
{
    if (c->ops)
        c->ops->relu(c->stream, x, n);
    else
        run(c, vector_chunks(n), relu_chunk, &(vector_work){.x = x, .n = n});
}

static void add_chunk(void *ctx, unsigned chunk, unsigned worker)
{
    (void)worker;
    const vector_work *const v = ((const tower_job *)ctx)->work;
    size_t end;
    for (size_t i = vector_part(v, chunk, &end); i < end; i++)
        v->x[i] += v->scale * v->y[i];
}

void sq_add_scaled(sq_compute *c, float *x, const float *y, float scale, size_t n)
{
    if (c->ops)
        c->ops->add(c->stream, x, y, scale, n);
    else
        run(c, vector_chunks(n), add_chunk, &(vector_work){x, y, scale, n});
}

void sq_add_weights(sq_compute *c, float *x, const float *w, size_t n)
{
    if (c->ops)
        c->ops->add_weights(c->stream, x, w, n);
    else
        sq_add_scaled(c, x, w, 1.0f, n);
}

typedef struct means_work {
    const float *x;
    uint32_t n, d;
    float *out;
} means_work;

static void means_chunk(void *ctx, unsigned chunk, unsigned worker)
{
    (void)worker;
    const means_work *const w = ((const tower_job *)ctx)->work;
    const uint32_t first = chunk * CHUNK_COLUMNS, columns = min_u32(CHUNK_COLUMNS, w->d - first);
    double sum[CHUNK_COLUMNS] = {0};
    for (uint32_t i = 0; i < w->n; i++)
        for (uint32_t j = 0; j < columns; j++)
            sum[j] += (double)w->x[(size_t)i * w->d + first + j];
    for (uint32_t j = 0; j < columns; j++)
        w->out[first + j] = (float)(sum[j] / w->n);
}

void sq_column_means(sq_compute *c, const float *x, uint32_t n, uint32_t d, float *out)
{
    if (c->ops)
        c->ops->means(c->stream, x, n, d, out);
    else
        run(c, (d + CHUNK_COLUMNS - 1) / CHUNK_COLUMNS, means_chunk, &(means_work){x, n, d, out});
}

/* ---- mining ---- */

typedef struct mine_work {
    const sq_mine *m;
    float *scratch;
} mine_work;

/* A place of the joined map. */
static void join_place(const sq_mine *m, uint32_t y, uint32_t x, float *out)
{
    memcpy(out, m->maps[0] + ((size_t)y * m->sides[0] + x) * m->channels[0], m->channels[0] * sizeof *out);
    for (uint32_t i = 1; i < SQ_MINE_MAPS; i++) {
        const sq_tap ty = sq_bilinear_tap(y, m->sides[i], m->sides[0], false);
        const sq_tap tx = sq_bilinear_tap(x, m->sides[i], m->sides[0], false);
        out += m->channels[i - 1];
        lerp_place(m->maps[i], m->sides[i], tx, ty, m->channels[i], out);
    }
}

/* @param part  scratch for one place */
static void mean_of_places(const sq_mine *m, uint32_t y, uint32_t x, float *out, float *part)
{
    const uint32_t n = m->shrink, d = m->norm->k;
    const float share = 1.0f / (float)(n * n);
    memset(out, 0, d * sizeof *out);
    for (uint32_t i = 0; i < n * n; i++) {
        join_place(m, y * n + i / n, x * n + i % n, part);
        for (uint32_t c = 0; c < d; c++)
            out[c] += share * part[c];
    }
}

/* Normed places of a token's block, [m * m][d]. @param place  scratch for two */
static void make_block(const sq_mine *m, const sq_kernels *kernels, uint32_t token, float *z, float *place)
{
    const uint32_t d = m->norm->k, y0 = m->y + token / m->tokens * m->m, x0 = m->x + token % m->tokens * m->m;
    for (uint32_t i = 0; i < m->m * m->m; i++) {
        const uint32_t y = y0 + i / m->m, x = x0 + i % m->m;
        if (m->shrink > 1)
            mean_of_places(m, y, x, place, place + d);
        else
            join_place(m, y, x, place);
        kernels->row(m->norm, place, z + (size_t)i * d);
    }
}

/* torch.nan_to_num() */
static float finite(float v) { return isnan(v) ? 0.0f : v > FLT_MAX ? FLT_MAX : v < -FLT_MAX ? -FLT_MAX : v; }

static void softmax(float *v, uint32_t n)
{
    float most = v[0], sum = 0.0f;
    for (uint32_t i = 1; i < n; i++)
        most = v[i] > most ? v[i] : most;
    for (uint32_t i = 0; i < n; i++)
        sum += v[i] = sq_exp(v[i] - most);
    for (uint32_t i = 0; i < n; i++)
        v[i] /= sum;
}

void sq_mine_look(const sq_mine *m, const sq_kernels *kernels, const float *query, const float *z, uint32_t n,
                  float *asked)
{
    const uint32_t d_aux = m->norm->k, d = m->d;
    const float scale = 1.0f / sqrtf((float)d), offset = kernels->dot(query, m->key_offset, d);
    float scores[SQ_MINE_BLOCK * SQ_MINE_BLOCK];
    for (uint32_t i = 0; i < n; i++)
        scores[i] = finite((kernels->dot(asked, z + (size_t)i * d_aux, d_aux) + offset) * scale);
    softmax(scores, n);
    memset(asked, 0, d_aux * sizeof *asked);
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t c = 0; c < d_aux; c++)
            asked[c] += scores[i] * z[(size_t)i * d_aux + c];
    for (uint32_t c = 0; c < d_aux; c++)
        asked[c] = asked[c] * m->weight[c] + m->bias[c];
}

size_t sq_mine_scratch(uint32_t m, uint32_t d)
{
    const size_t line = SQ_ARENA_ALIGN / sizeof(float); /* workers never share one */
    return (((size_t)m * m + 2) * d + line - 1) / line * line;
}

static void mine_token(void *ctx, unsigned token, unsigned worker)
{
    const tower_job *const job = ctx;
    const mine_work *const work = job->work;
    const sq_mine *const m = work->m;
    const size_t n = (size_t)m->m * m->m, d_aux = m->norm->k;
    float *const z = work->scratch + worker * sq_mine_scratch(m->m, m->norm->k);
    make_block(m, job->c->kernels, token, z, z + n * d_aux);
    sq_mine_look(m, job->c->kernels, m->queries + (size_t)token * m->d, z, (uint32_t)n, m->asked + token * d_aux);
}

void sq_mine_tokens(sq_compute *c, const sq_mine *m, float *scratch)
{
    assert(m->m <= SQ_MINE_BLOCK);
    if (c->ops)
        c->ops->mine(c->stream, m);
    else
        run(c, m->tokens * m->tokens, mine_token, &(mine_work){m, scratch});
}
