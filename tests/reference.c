/* SPDX-License-Identifier: MIT */
#include "tests/reference.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct net {
    const fixture *f;
    uint32_t d, ff, heads, kv_heads, head_dim, n;
} net;

static double *zeros(size_t n)
{
    double *p = calloc(n, sizeof *p);
    if (!p) abort();
    return p;
}

static const float *layer_tensor(const net *t, uint32_t l, const char *name)
{
    char full[64];
    snprintf(full, sizeof full, "blk.%u.%s", l, name);
    return fixture_floats(t->f, full);
}

static void rms_norm(const double *x, const float *w, uint32_t d, double *y)
{
    double sum = 0;
    for (uint32_t i = 0; i < d; i++)
        sum += x[i] * x[i];
    for (uint32_t i = 0; i < d; i++)
        y[i] = w[i] * x[i] / sqrt(sum / d + 1e-5);
}

static void multiply(const float *w, const double *x, uint32_t n, uint32_t k, double *y)
{
    for (uint32_t i = 0; i < n; i++) {
        y[i] = 0;
        for (uint32_t j = 0; j < k; j++)
            y[i] += (double)w[(size_t)i * k + j] * x[j];
    }
}

static void rotate(double *head, uint32_t head_dim, uint32_t position)
{
    const uint32_t half = head_dim / 2;
    for (uint32_t i = 0; i < half; i++) {
        const double angle = position * pow(10000, -2.0 * i / head_dim), a = head[i], b = head[i + half];
        head[i] = a * cos(angle) - b * sin(angle);
        head[i + half] = b * cos(angle) + a * sin(angle);
    }
}

/* Rotated queries and keys, and values, of the tokens that run. */
static void project_all(const net *t, uint32_t l, const bool *runs, const double *x, double *q, double *k, double *v)
{
    const uint32_t kv = t->kv_heads * t->head_dim;
    double *u = zeros(t->d);
    for (uint32_t i = 0; i < t->n; i++) {
        if (!runs[i]) continue;
        rms_norm(x + (size_t)i * t->d, layer_tensor(t, l, "attn_norm.weight"), t->d, u);
        multiply(layer_tensor(t, l, "attn_q.weight"), u, t->d, t->d, q + (size_t)i * t->d);
        multiply(layer_tensor(t, l, "attn_k.weight"), u, kv, t->d, k + (size_t)i * kv);
        multiply(layer_tensor(t, l, "attn_v.weight"), u, kv, t->d, v + (size_t)i * kv);
        for (uint32_t h = 0; h < t->heads; h++)
            rotate(q + (size_t)i * t->d + h * t->head_dim, t->head_dim, i);
        for (uint32_t h = 0; h < t->kv_heads; h++)
            rotate(k + (size_t)i * kv + h * t->head_dim, t->head_dim, i);
    }
    free(u);
}

static double dot(const double *a, const double *b, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* One head of one token over the tokens that run at or before it. */
static void attend_head(const net *t, uint32_t token, uint32_t h, const bool *runs, const double *q, const double *k,
                        const double *v, double *out)
{
    const uint32_t kv = t->kv_heads * t->head_dim, from = h * t->kv_heads / t->heads * t->head_dim;
    double total = 0;
    for (uint32_t j = 0; j <= token; j++) {
        if (!runs[j]) continue;
        const double score = dot(q + (size_t)token * t->d + h * t->head_dim, k + (size_t)j * kv + from, t->head_dim);
        const double p = exp(score / sqrt(t->head_dim)); /* scores of these weights are far from overflow */
        total += p;
        for (uint32_t i = 0; i < t->head_dim; i++)
            out[i] += p * v[(size_t)j * kv + from + i];
    }
    for (uint32_t i = 0; i < t->head_dim; i++)
        out[i] /= total;
}

static void run_mlp(const net *t, uint32_t l, double weight, double *x)
{
    double *g = zeros(t->d), *gate = zeros(t->ff), *up = zeros(t->ff);
    rms_norm(x, layer_tensor(t, l, "ffn_norm.weight"), t->d, g);
    multiply(layer_tensor(t, l, "ffn_gate.weight"), g, t->ff, t->d, gate);
    multiply(layer_tensor(t, l, "ffn_up.weight"), g, t->ff, t->d, up);
    for (uint32_t i = 0; i < t->ff; i++)
        gate[i] *= up[i] / (1 + exp(-gate[i]));
    multiply(layer_tensor(t, l, "ffn_down.weight"), gate, t->d, t->ff, g);
    for (uint32_t i = 0; i < t->d; i++)
        x[i] += weight * g[i];
    free(g);
    free(gate);
    free(up);
}

static void run_layer(const net *t, uint32_t l, const bool *runs, const double *weight, double *x)
{
    const uint32_t kv = t->kv_heads * t->head_dim;
    double *q = zeros((size_t)t->n * t->d), *k = zeros((size_t)t->n * kv), *v = zeros((size_t)t->n * kv);
    double *heads = zeros(t->d), *o = zeros(t->d);
    project_all(t, l, runs, x, q, k, v);
    for (uint32_t i = 0; i < t->n; i++) {
        if (!runs[i]) continue;
        memset(heads, 0, t->d * sizeof *heads);
        for (uint32_t h = 0; h < t->heads; h++)
            attend_head(t, i, h, runs, q, k, v, heads + h * t->head_dim);
        multiply(layer_tensor(t, l, "attn_output.weight"), heads, t->d, t->d, o);
        for (uint32_t j = 0; j < t->d; j++)
            x[(size_t)i * t->d + j] += o[j];
        run_mlp(t, l, weight[i], x + (size_t)i * t->d);
    }
    free(q);
    free(k);
    free(v);
    free(heads);
    free(o);
}

/* Which tokens run, and the weights of all; skipped ones are scaled here. */
static void route(const net *t, uint32_t l, const uint32_t *ids, double *x, bool *runs, double *weight)
{
    const float *w = layer_tensor(t, l, "mod_router.weight");
    const double b = *layer_tensor(t, l, "mod_router.bias");
    double z[REFERENCE_MAX_TOKENS];
    uint32_t n_targets = 0;
    for (uint32_t i = 0; i < t->n; i++) {
        if (ids[i] != SQ_IMAGE_TOKEN) continue;
        multiply(w, x + (size_t)i * t->d, 1, t->d, &z[i]);
        z[i] += b;
        weight[i] = 0.2 * tanh(z[i]) + 1;
        n_targets++;
    }
    const uint32_t k = (uint32_t)((float)n_targets * fixture_ratio(t->f, l));
    for (uint32_t i = 0; i < t->n; i++) {
        if (ids[i] != SQ_IMAGE_TOKEN) continue;
        uint32_t better = 0;
        for (uint32_t j = 0; j < t->n; j++)
            better += ids[j] == SQ_IMAGE_TOKEN && (z[j] > z[i] || (z[j] == z[i] && j < i));
        runs[i] = better < k;
        for (uint32_t j = 0; j < t->d && !runs[i]; j++)
            x[(size_t)i * t->d + j] *= weight[i];
    }
}

void reference_run(reference *r, const fixture *f, const uint32_t *ids, uint32_t n, const float *vision)
{
    const fixture_shape *s = fixture_shape_of(f);
    const net t = {f, s->d, s->f, s->n_heads, s->n_kv_heads, s->d / s->n_heads, n};
    const float *embd = fixture_floats(f, "token_embd.weight");
    bool has_image = false;
    *r = (reference){.x = zeros((size_t)n * s->d), .logits = zeros((size_t)n * FIXTURE_VOCAB)};
    for (uint32_t i = 0; i < n; i++) {
        const bool image = ids[i] == SQ_IMAGE_TOKEN;
        const float *row = image ? vision : embd + (size_t)ids[i] * s->d;
        for (uint32_t j = 0; j < s->d; j++)
            r->x[(size_t)i * s->d + j] = row[j];
        if (image) vision += s->d;
        has_image |= image;
    }
    for (uint32_t l = 0; l < s->n_layers; l++) {
        double weight[REFERENCE_MAX_TOKENS];
        for (uint32_t i = 0; i < n; i++) {
            r->runs[l][i] = true;
            weight[i] = 1;
        }
        if (has_image && fixture_is_mod(f, l)) route(&t, l, ids, r->x, r->runs[l], weight);
        run_layer(&t, l, r->runs[l], weight, r->x);
        for (uint32_t i = 0; i < n; i++)
            r->n_kv[l] += r->runs[l][i];
    }
    double *u = zeros(s->d);
    for (uint32_t i = 0; i < n; i++) {
        rms_norm(r->x + (size_t)i * s->d, fixture_floats(f, "output_norm.weight"), s->d, u);
        multiply(fixture_floats(f, "output.weight"), u, FIXTURE_VOCAB, s->d, r->logits + (size_t)i * FIXTURE_VOCAB);
    }
    free(u);
}

void reference_free(reference *r)
{
    free(r->x);
    free(r->logits);
}
