/*
 * Routing of a Mixture-of-Depths layer: scores, choice, and the rows that stay. On the CPU; a device has a verb for it.
 * SPDX-License-Identifier: MIT
 *
 * Most rows are skipped, by layer after layer, and all that these need of them is a score each. So a skipped row stays
 * in memory as it is and only its factor changes (sq_lag): the score is router . (factor * x) = factor * (router . x),
 * and the products with the routers of SQ_DOTS layers are taken in one reading of the row. It is multiplied by its
 * factor when a layer runs it.
 */
#include "runtime/engine.h"
#include "simd/exp.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { CHUNK_ROWS = 16 }; /* 256 KiB at 7B shape */

uint32_t sq_route_count(uint32_t n, float ratio)
{
    const float product = (float)n * ratio;
    if (!(product > 0)) return 0;
    return product >= (float)n ? n : (uint32_t)product;
}

/* ---- weights ---- */

/* Summed in 32 partial sums, element i in sum i % 32, which are added upper half to lower: as a device's 32 lanes do.
 */
static void softmax(const float *z, float *p, uint32_t n)
{
    float top = -INFINITY, sum[32] = {0};
    for (uint32_t i = 0; i < n; i++)
        top = z[i] > top ? z[i] : top;
    for (uint32_t i = 0; i < n; i++)
        sum[i % 32] += p[i] = sq_exp(z[i] - top);
    for (uint32_t half = 16; half; half /= 2)
        for (uint32_t i = 0; i < half; i++)
            sum[i] += sum[i + half];
    for (uint32_t i = 0; i < n; i++)
        p[i] /= sum[0];
}

static float squash(sq_norm_type type, float z)
{
    switch (type) {
    case SQ_NORM_TANH:
        return sq_tanh(z);
    case SQ_NORM_SIGMOID:
        return sq_sigmoid(z);
    case SQ_NORM_SOFTMAX:
    case SQ_NORM_NONE:
        break;
    }
    return z;
}

void sq_route_weights(sq_norm_type type, float scale, float bias, const float *z, float *w, uint32_t n)
{
    if (type == SQ_NORM_SOFTMAX) softmax(z, w, n);
    for (uint32_t i = 0; i < n; i++)
        w[i] = scale * (type == SQ_NORM_SOFTMAX ? w[i] : squash(type, z[i])) + bias;
}

/* ---- choice ---- */

static squint_err refuse_nan(uint32_t i, squint_msg *msg)
{
    return sq_fail(msg, SQUINT_ERR_NUMERIC, "the router's score of routable token %u is NaN", i);
}

squint_err sq_route_top_k(const sq_kernels *kernels, const float *z, uint32_t n, uint32_t k, int32_t *keys,
                          uint32_t *kept, squint_msg *msg)
{
    const uint32_t nan = kernels->select(z, n, k, keys, kept);
    return nan == n ? SQUINT_OK : refuse_nan(nan, msg);
}

double sq_route_logit(float threshold) { return log((double)threshold / (1.0 - (double)threshold)); }

squint_err sq_route_threshold(const float *z, uint32_t n, double logit, bool at_logit, uint32_t *kept, uint32_t *n_kept,
                              squint_msg *msg)
{
    *n_kept = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (isnan(z[i])) return refuse_nan(i, msg);
        if ((double)z[i] > logit || (at_logit && (double)z[i] == logit)) kept[(*n_kept)++] = i;
    }
    return SQUINT_OK;
}

/* ---- rows to visit ---- */

/* Those of the first n listed targets. */
typedef struct row_job {
    const sq_compute *c;
    const sq_route *r;
    const sq_route_host *host;
    uint32_t n;
} row_job;

static float *row_of(const sq_route *r, uint32_t target) { return r->x + (size_t)r->targets[target] * r->d; }

static const uint32_t *chunk_of(const row_job *job, unsigned chunk, uint32_t *n)
{
    const uint32_t first = chunk * CHUNK_ROWS;
    *n = job->n - first < CHUNK_ROWS ? job->n - first : CHUNK_ROWS;
    return job->host->listed + first;
}

static void visit_rows(const row_job *job, sq_job_fn *fn)
{
    sq_pool_run(job->c->pool, (job->n + CHUNK_ROWS - 1) / CHUNK_ROWS, fn, (void *)job);
}

/* ---- scores ---- */

/* 1 / rms, as the norm before attention has it. */
static float inverse_rms(const row_job *job, const float *x)
{
    const uint32_t d = job->r->d;
    return 1.0f / sqrtf(job->c->kernels->dot(x, x, d) / (float)d + job->r->eps);
}

static void score_chunk(void *ctx, unsigned chunk, unsigned worker)
{
    (void)worker;
    const row_job *const job = ctx;
    uint32_t n;
    const uint32_t *const targets = chunk_of(job, chunk, &n);
    const float *x[CHUNK_ROWS] = {0};
    float dots[CHUNK_ROWS][SQ_DOTS];
    for (uint32_t i = 0; i < n; i++)
        x[i] = row_of(job->r, targets[i]);
    job->c->kernels->dots(x, n, job->r->routers, job->r->d, dots);
    for (uint32_t i = 0; i < n; i++) {
        sq_lag *const lag = &job->r->lag[targets[i]];
        memcpy(lag->dots, dots[i], sizeof lag->dots);
        if (job->r->by_rms) {
            const float inverse = inverse_rms(job, x[i]);
            for (int j = 0; j < SQ_DOTS; j++)
                lag->dots[j] *= inverse;
        }
        lag->scored = job->r->end;
    }
}

static void score(row_job job)
{
    const sq_route *const r = job.r;
    job.n = 0;
    for (uint32_t i = 0; i < r->n_targets; i++)
        if (r->lag[i].scored <= r->layer) job.host->listed[job.n++] = i;
    visit_rows(&job, score_chunk);
    for (uint32_t i = 0; i < r->n_targets; i++)
        r->scores[i] = r->lag[i].factor * r->lag[i].dots[r->layer % SQ_DOTS] + r->bias;
    sq_route_weights(r->norm, r->norm_scale, r->norm_bias, r->scores, r->weights, r->n_targets);
}

/* ---- who stays ---- */

/* Scores among which those that do not compete come first. */
static const float *rank(const sq_route *r, float *ranks)
{
    if (!r->competes) return r->scores;
    for (uint32_t i = 0; i < r->n_targets; i++) {
        const float z = r->scores[i];
        ranks[i] = isnan(z) ? z : !r->competes[i] ? INFINITY : z > FLT_MAX ? FLT_MAX : z;
    }
    return ranks;
}

static squint_err choose(const row_job *job, uint32_t *n_chosen, squint_msg *msg)
{
    const sq_route *const r = job->r;
    if (r->by_threshold)
        return sq_route_threshold(r->scores, r->n_targets, r->logit, r->at_logit, job->host->chosen, n_chosen, msg);
    *n_chosen = r->best;
    return sq_route_top_k(job->c->kernels, rank(r, job->host->ranks), r->n_targets, r->best, job->host->keys,
                          job->host->chosen, msg);
}

static void settle_chunk(void *ctx, unsigned chunk, unsigned worker)
{
    (void)worker;
    const row_job *const job = ctx;
    uint32_t n;
    const uint32_t *const targets = chunk_of(job, chunk, &n);
    for (uint32_t i = 0; i < n; i++) {
        sq_lag *const lag = &job->r->lag[targets[i]];
        job->c->kernels->scale(row_of(job->r, targets[i]), lag->factor, job->r->d);
        *lag = (sq_lag){.factor = 1.0f};
    }
}

/* The chosen targets join the rows without a score, in sequence order. */
static uint32_t keep(row_job job, uint32_t n_chosen)
{
    const sq_route *const r = job.r;
    uint32_t m = 0, target = 0, chosen = 0;
    job.n = 0;
    for (uint32_t row = 0; row < r->n; row++) {
        const bool is_target = target < r->n_targets && r->targets[target] == row;
        const bool is_chosen = is_target && chosen < n_chosen && job.host->chosen[chosen] == target;
        if (is_target && !is_chosen) {
            if (r->weigh_skipped) r->lag[target].factor *= r->weights[target];
        } else {
            r->kept_weight[m] = is_target ? r->weights[target] : 1.0f;
            r->kept[m++] = row;
        }
        if (is_chosen) {
            r->lag[target].scored = 0;
            if (r->lag[target].factor != 1.0f) job.host->listed[job.n++] = target;
        }
        target += is_target;
        chosen += is_chosen;
    }
    visit_rows(&job, settle_chunk);
    return m;
}

/* ---- a layer ---- */

squint_err sq_route_layer(sq_compute *c, const sq_route *r, const sq_route_host *host, uint32_t *n_kept,
                          squint_msg *msg)
{
    const row_job job = {.c = c, .r = r, .host = host};
    uint32_t n_chosen, nan = r->n_targets;
    if (c->ops) {
        *n_kept = c->ops->route(c->stream, r, host->kept, &nan);
        return nan < r->n_targets ? refuse_nan(nan, msg) : SQUINT_OK;
    }
    score(job);
    const squint_err err = choose(&job, &n_chosen, msg);
    if (!err) *n_kept = keep(job, n_chosen);
    return err;
}

void sq_route_settle(sq_compute *c, const sq_route *r, const sq_route_host *host, uint32_t first_row)
{
    row_job job = {.c = c, .r = r, .host = host};
    if (c->ops) {
        if (r->n_targets) c->ops->settle(c->stream, r, first_row);
        return;
    }
    for (uint32_t i = 0; i < r->n_targets; i++)
        if (r->targets[i] >= first_row && r->lag[i].factor != 1.0f) host->listed[job.n++] = i;
    visit_rows(&job, settle_chunk);
}
