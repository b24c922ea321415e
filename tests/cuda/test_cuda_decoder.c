/*
 * A device's attention, caches and routing against the CPU's, to the last bit.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/engine.h"
#include "tests/cuda/emulator.h"
#include "tests/support.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static uint64_t seed = 20261122;
static sq_device *device;
static sq_compute cpu, gpu;

static uint32_t below(uint32_t n) { return (uint32_t)(random_u64(&seed) % n); }
static float random_float(float size) { return size * random_f32(&seed); }

/* ---- Memory that the CPU has and the device ---- */

enum { MOST_MIRRORS = 16 };
static struct mirror {
    void *host, *device;
    size_t bytes;
} mirrors[MOST_MIRRORS];
static unsigned n_mirrors;

static void *mirror(size_t bytes)
{
    assert_true(n_mirrors < MOST_MIRRORS);
    struct mirror *const m = &mirrors[n_mirrors++];
    *m = (struct mirror){guarded_alloc(bytes, 1), gpu.ops->alloc(device, bytes), bytes};
    assert_non_null(m->device);
    memset(m->host, 0, bytes);
    return m->host;
}

static float *mirror_floats(size_t n, float size)
{
    float *const x = mirror(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = random_float(size);
    return x;
}

static const struct mirror *mirror_at(const void *host)
{
    for (unsigned i = 0; i < n_mirrors; i++)
        if (mirrors[i].host == host) return &mirrors[i];
    fail_msg("this memory has no mirror");
    return NULL;
}

static void *on_device(const void *host) { return host ? mirror_at(host)->device : NULL; }

/* What the CPU has of it. */
static void push(const void *host)
{
    const struct mirror *const m = mirror_at(host);
    sq_write(&gpu, m->device, m->host, m->bytes);
}

/* And then threads run in another order than last time. */
static void push_all(void)
{
    emulator_set_order((emulator_order)below(EMULATOR_SHUFFLED + 1), random_u64(&seed));
    for (unsigned i = 0; i < n_mirrors; i++)
        push(mirrors[i].host);
}

static void assert_finished(void)
{
    squint_msg msg;
    if (sq_finish(&gpu, &msg)) fail_msg("%s", msg.text);
}

static void same_bytes(const void *host, const char *what)
{
    const struct mirror *const m = mirror_at(host);
    uint8_t *const got = malloc(m->bytes);
    sq_read(&gpu, got, m->device, m->bytes);
    assert_finished();
    for (size_t i = 0; i < m->bytes; i++)
        if (got[i] != ((const uint8_t *)host)[i]) fail_msg("%s: byte %zu of %zu is another", what, i, m->bytes);
    free(got);
}

/* Floats are equal; a NaN equals any. */
static void same(const void *host, const char *what)
{
    const struct mirror *const m = mirror_at(host);
    uint8_t *const got = malloc(m->bytes);
    sq_read(&gpu, got, m->device, m->bytes);
    assert_finished();
    for (size_t i = 0; i < m->bytes && memcmp(got, host, m->bytes); i += sizeof(float)) {
        float a, b;
        const size_t n = m->bytes - i < sizeof a ? m->bytes - i : sizeof a;
        const bool equal = !memcmp(got + i, (const uint8_t *)host + i, n);
        memcpy(&a, got + i, n);
        memcpy(&b, (const uint8_t *)host + i, n);
        if (!equal && !(n == sizeof a && isnan(a) && isnan(b)))
            fail_msg("%s: word %zu is %.9g (%a), not %.9g (%a)", what, i / sizeof a, (double)a, (double)a, (double)b,
                     (double)b);
    }
    free(got);
}

static void forget(void)
{
    for (unsigned i = 0; i < n_mirrors; i++) {
        gpu.ops->free(device, mirrors[i].device);
        guarded_free(mirrors[i].host);
    }
    n_mirrors = 0;
}

/* ---- Attention --------------------------------------------------------------------------- */

typedef struct shape {
    uint32_t n_heads, n_kv_heads, head_dim, n_q, n_kv;
    bool causal;
    sq_kv_type type;
} shape;

static void random_rows(sq_kv_type type, uint8_t *to, size_t n, uint32_t head_dim, float size)
{
    const size_t row = sq_kv_units(type, head_dim) * sq_kv_unit_bytes(type);
    float x[256];
    for (size_t i = 0; i < n; i++, to += row) {
        for (uint32_t d = 0; d < head_dim; d++)
            x[d] = random_float(size);
        if (type == SQ_KV_F32) memcpy(to, x, row);
        if (type == SQ_KV_F16) cpu.kernels->to_f16(x, (uint16_t *)(void *)to, head_dim);
        if (type == SQ_KV_Q8) cpu.kernels->to_q8(x, (sq_block_q8_0 *)(void *)to, head_dim);
    }
}

/* Memory of a call, as the decoder has it: q and out with something beside the heads. */
static sq_heads random_heads(const shape *s, float size)
{
    const size_t ldq = s->n_heads * s->head_dim + below(5), ldo = s->n_heads * s->head_dim + below(5);
    const uint32_t capacity = s->n_kv + below(4);
    const size_t row = sq_kv_units(s->type, s->head_dim) * sq_kv_unit_bytes(s->type);
    const sq_heads heads = {.attn = {.q = mirror_floats(s->n_q * ldq, size),
                                     .ldq = ldq,
                                     .k = mirror(s->n_kv_heads * capacity * row),
                                     .v = mirror(s->n_kv_heads * capacity * row),
                                     .ldkv = sq_kv_units(s->type, s->head_dim),
                                     .kv_type = s->type,
                                     .n_q = s->n_q,
                                     .n_kv = s->n_kv,
                                     .head_dim = s->head_dim,
                                     .causal = s->causal,
                                     .first_kv = s->n_kv > s->n_q ? s->n_kv - s->n_q : 0,
                                     .scale = 1.0f / sqrtf((float)s->head_dim),
                                     .out = mirror_floats(s->n_q * ldo, 1.0f),
                                     .ldo = ldo},
                            .n_heads = s->n_heads,
                            .n_kv_heads = s->n_kv_heads,
                            .kv_head_bytes = capacity * row};
    random_rows(s->type, (uint8_t *)heads.attn.k, (size_t)s->n_kv_heads * capacity, s->head_dim, size);
    random_rows(s->type, (uint8_t *)heads.attn.v, (size_t)s->n_kv_heads * capacity, s->head_dim, 1.0f);
    return heads;
}

static void attend_alike(const sq_heads *heads)
{
    sq_heads theirs = *heads;
    theirs.attn.q = on_device(heads->attn.q);
    theirs.attn.k = on_device(heads->attn.k);
    theirs.attn.v = on_device(heads->attn.v);
    theirs.attn.out = on_device(heads->attn.out);
    push_all();
    sq_attend(&gpu, &theirs);
    sq_attend(&cpu, heads);
    same(heads->attn.out, "attention");
    forget();
}

static void check_shape(const shape *s)
{
    const sq_heads heads = random_heads(s, 2.0f);
    attend_alike(&heads);
}

static void attention_of_every_shape(void **state)
{
    (void)state;
    static const uint32_t dims[] = {1, 7, 16, 64, 65, 80, 128, 200, 256};
    static const uint32_t n_qs[] = {1, 2, 3, 4, 17, 64, 97};
    static const uint32_t n_kvs[] = {1, 15, 32, 33, 63, 64, 65, 127, 128, 129, 260};
    static const uint32_t heads[][2] = {{1, 1}, {2, 2}, {4, 2}, {3, 1}};
    for (size_t d = 0; d < SQ_COUNT(dims); d++)
        for (size_t q = 0; q < SQ_COUNT(n_qs); q++)
            for (uint32_t type = SQ_KV_F32; type <= SQ_KV_Q8; type++) {
                const uint32_t *const h = heads[below(SQ_COUNT(heads))];
                check_shape(&(shape){.n_heads = h[0],
                                     .n_kv_heads = h[1],
                                     .head_dim = dims[d],
                                     .n_q = n_qs[q],
                                     .n_kv = n_kvs[below(SQ_COUNT(n_kvs))],
                                     .causal = (d + q + type) % 2,
                                     .type = (sq_kv_type)type});
            }
}

/* Calls that are cut into several of the CPU's, and blocks of 64 queries. */
static void attention_of_many_queries(void **state)
{
    (void)state;
    static const shape shapes[] = {{1, 1, 16, 700, 700, true, SQ_KV_F16},   {1, 1, 64, 1100, 65, false, SQ_KV_F32},
                                   {1, 1, 32, 1030, 1100, true, SQ_KV_F32}, {1, 1, 128, 1090, 33, false, SQ_KV_Q8},
                                   {1, 1, 72, 1024, 1024, true, SQ_KV_F32}, {1, 1, 256, 1025, 40, false, SQ_KV_F16}};
    for (size_t i = 0; i < SQ_COUNT(shapes); i++)
        check_shape(&shapes[i]);
}

/* The CPU sums up a last call of up to three queries in another way. */
static void attention_of_a_few_that_are_left(void **state)
{
    (void)state;
    unsigned n = 0;
    for (uint32_t n_q = 193; n < 3; n_q++) {
        const uint32_t left = (n_q - 1) % sq_heads_rows(n_q) + 1;
        if (left > 3) continue;
        check_shape(&(shape){1, 1, 24, n_q, 40, false, SQ_KV_F32});
        check_shape(&(shape){1, 1, 24, n_q, 50, true, SQ_KV_F16});
        n_q += 100;
        n++;
    }
}

/* Scores rise by hundreds, so that every block moves the maximum and early keys vanish; or only one counts. */
static void attention_moves_its_maximum(void **state)
{
    (void)state;
    for (uint32_t n_q = 1; n_q <= 9; n_q += 4)
        for (uint32_t head_dim = 32; head_dim <= 128; head_dim += 96)
            for (int rising = 0; rising < 2; rising++) {
                const shape s = {1, 1, head_dim, n_q, 300, false, SQ_KV_F32};
                const sq_heads heads = random_heads(&s, 1.0f);
                float *const q = (float *)heads.attn.q, *const k = (float *)heads.attn.k;
                for (size_t i = 0; i < n_q * heads.attn.ldq; i++)
                    q[i] = 2.0f + random_float(0.1f);
                for (uint32_t j = 0; j < 300; j++)
                    for (uint32_t d = 0; d < head_dim; d++)
                        k[j * head_dim + d] = rising ? 0.05f * (float)j : j == 77 ? 2.0f : 0.0f;
                attend_alike(&heads);
            }
}

/* Infinite and undefined inputs; keys that a query must not see, and whose values would show. */
static void attention_of_any_number(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY, FLT_MAX, -0.0f};
    for (uint32_t n_q = 2; n_q <= 70; n_q += 17)
        for (uint32_t head_dim = 16; head_dim <= 80; head_dim += 64)
            for (size_t i = 0; i < SQ_COUNT(bad); i++) {
                const shape s = {1, 1, head_dim, n_q, 90, true, SQ_KV_F32};
                const sq_heads heads = random_heads(&s, 1.0f);
                float *const k = (float *)heads.attn.k, *const v = (float *)heads.attn.v;
                k[(89 - n_q / 2) * head_dim + 3] = bad[i];
                v[(89 - n_q / 3) * head_dim + 5] = bad[i];
                v[89 * head_dim + 6] = bad[i];
                attend_alike(&heads);
            }
    check_shape(&(shape){2, 1, 16, 5, 0, false, SQ_KV_F32});
    check_shape(&(shape){2, 1, 16, 2, 0, false, SQ_KV_F16});
    const sq_heads none = {.attn = {.head_dim = 8}, .n_heads = 1, .n_kv_heads = 1};
    sq_attend(&gpu, &none);
    assert_finished();
}

/* ---- Caches ------------------------------------------------------------------------------ */

static void check_store(uint32_t m, uint32_t n_heads, uint32_t n_kv_heads, uint32_t head_dim, sq_kv_type type)
{
    const uint32_t width = (n_heads + 2 * n_kv_heads) * head_dim, n = below(4), positions = 4 * m + 8;
    const size_t row = sq_kv_units(type, head_dim) * sq_kv_unit_bytes(type);
    sq_kv_store store = {.ld = width + below(3),
                         .m = m,
                         .n_heads = n_heads,
                         .n_kv_heads = n_kv_heads,
                         .head_dim = head_dim,
                         .rope_half = below(2),
                         .first = below(4),
                         .position = below(5),
                         .compressed = below(2),
                         .kv_type = type,
                         .n = n,
                         .capacity = n + m + below(3)};
    const size_t cache = n_kv_heads * store.capacity * row;
    store.qkv = mirror_floats(m * store.ld, 3.0f);
    store.rope = mirror_floats((size_t)positions * head_dim, 1.0f);
    store.k = mirror(cache);
    store.v = mirror(cache);
    uint32_t *const rows = below(2) ? mirror(m * sizeof *rows) : NULL;
    for (uint32_t i = 0; rows && i < m; i++)
        rows[i] = 3 * i + below(3);
    store.rows = rows;
    store.qkv[below(m) * store.ld + below(width)] = below(2) ? -INFINITY : INFINITY;
    store.qkv[below(m) * store.ld + below(width)] = below(2) ? -FLT_MAX : FLT_MAX;
    memset(store.qkv + below(m) * store.ld + (width - head_dim), 0, head_dim * sizeof(float));
    push_all();
    sq_kv_store theirs = store;
    theirs.qkv = on_device(store.qkv);
    theirs.rope = on_device(store.rope);
    theirs.k = on_device(store.k);
    theirs.v = on_device(store.v);
    theirs.rows = on_device(store.rows);
    sq_store_kv(&gpu, &theirs);
    sq_store_kv(&cpu, &store);
    same_bytes(store.k, "keys");
    same_bytes(store.v, "values");
    same(store.qkv, "queries and keys");
    forget();
}

static void caches_of_every_type(void **state)
{
    (void)state;
    static const uint32_t dims[] = {2, 7, 16, 33, 64, 80, 128, 256};
    for (size_t d = 0; d < SQ_COUNT(dims); d++)
        for (uint32_t type = SQ_KV_F32; type <= SQ_KV_Q8; type++)
            for (int i = 0; i < 4; i++) {
                const uint32_t n_kv_heads = 1 + below(3);
                check_store(1 + below(9), n_kv_heads * (1 + below(3)), n_kv_heads, dims[d], (sq_kv_type)type);
            }
}

/* ---- Routing ----------------------------------------------------------------------------- */

enum { LAYERS = 7 };

/* A pass whose layers all route. */
typedef struct pass {
    uint32_t n, d, n_targets;
    bool protects, weigh_skipped, by_rms, by_threshold;
    sq_norm_type norm;
    float keep;       /* share of the targets, or the score to pass */
    float row_spread; /* 0: all rows are alike */
} pass;

static float routers[LAYERS][4096];

static sq_route plan_pass(const pass *p)
{
    sq_route r = {.n = p->n,
                  .d = p->d,
                  .n_targets = p->n_targets,
                  .by_rms = p->by_rms,
                  .eps = 1e-5f,
                  .norm = p->norm,
                  .norm_scale = 0.7f,
                  .norm_bias = 1.0f,
                  .by_threshold = p->by_threshold,
                  .logit = (double)p->keep,
                  .at_logit = below(2),
                  .weigh_skipped = p->weigh_skipped};
    r.x = mirror_floats((size_t)p->n * p->d, p->row_spread);
    r.lag = mirror(p->n_targets * sizeof *r.lag);
    r.scores = mirror(p->n_targets * sizeof *r.scores);
    r.weights = mirror(p->n_targets * sizeof *r.weights);
    r.kept = mirror(p->n * sizeof *r.kept);
    r.kept_weight = mirror(p->n * sizeof *r.kept_weight);
    uint32_t *const targets = mirror(p->n_targets * sizeof *targets);
    uint8_t *const competes = p->protects ? mirror(p->n_targets) : NULL;
    for (uint32_t row = 0, i = 0; i < p->n_targets; row++)
        if (below(p->n - row) < p->n_targets - i) targets[i++] = row;
    for (uint32_t i = 0; i < p->n_targets; i++) {
        r.lag[i] = (sq_lag){.factor = 1.0f};
        if (competes) competes[i] = below(3) > 0;
    }
    r.targets = targets;
    r.competes = competes;
    for (uint32_t i = 0; !p->row_spread && i < p->n; i++)
        for (uint32_t j = 0; j < p->d; j++)
            r.x[(size_t)i * p->d + j] = i % 3 ? 0.25f : -0.5f;
    for (int l = 0; l < LAYERS; l++)
        for (uint32_t j = 0; j < p->d; j++)
            routers[l][j] = random_float(2.0f / sqrtf((float)p->d));
    return r;
}

static sq_route theirs_of(const sq_route *r)
{
    sq_route theirs = *r;
    theirs.x = on_device(r->x);
    theirs.targets = on_device(r->targets);
    theirs.competes = on_device(r->competes);
    theirs.lag = on_device(r->lag);
    theirs.scores = on_device(r->scores);
    theirs.weights = on_device(r->weights);
    theirs.kept = on_device(r->kept);
    theirs.kept_weight = on_device(r->kept_weight);
    return theirs;
}

static sq_route_host host_of(const pass *p)
{
    return (sq_route_host){.kept = malloc(p->n * sizeof(uint32_t)),
                           .listed = malloc((p->n_targets + 1) * sizeof(uint32_t)),
                           .chosen = malloc((p->n_targets + 1) * sizeof(uint32_t)),
                           .keys = malloc((p->n_targets + 1) * sizeof(int32_t)),
                           .ranks = malloc((p->n_targets + 1) * sizeof(float))};
}

static void host_free(sq_route_host *h)
{
    free(h->kept);
    free(h->listed);
    free(h->chosen);
    free(h->keys);
    free(h->ranks);
}

static void ask(sq_route *r, uint32_t layer)
{
    r->layer = layer;
    r->end = layer + SQ_DOTS < LAYERS ? layer + SQ_DOTS : LAYERS;
    for (int j = 0; j < SQ_DOTS; j++)
        r->routers[j] = routers[layer];
    for (uint32_t l = layer; l < r->end; l++)
        r->routers[l % SQ_DOTS] = routers[l];
}

static void same_rows(const sq_route *r)
{
    same(r->x, "rows");
    same(r->lag, "lags");
}

/* The list of what stays is the same here, there, and where the device says it to the program. */
static void same_lists(sq_route *r, uint32_t n, const uint32_t *told)
{
    uint32_t *const kept = malloc(r->n * sizeof *kept);
    float *const weights = malloc(r->n * sizeof *weights);
    assert_memory_equal(told, r->kept, n * sizeof *told);
    sq_read(&gpu, kept, on_device(r->kept), n * sizeof *kept);
    sq_read(&gpu, weights, on_device(r->kept_weight), n * sizeof *weights);
    assert_memory_equal(kept, r->kept, n * sizeof *kept);
    assert_memory_equal(weights, r->kept_weight, n * sizeof *weights);
    free(kept);
    free(weights);
}

static void open_device(void)
{
    char why[256];
    assert_true(sq_cuda_ops.open(&device, SQ_PRECISION_FILE, why, sizeof why));
    assert_true(sq_cuda_ops.stream_open(&gpu.stream, device, why, sizeof why));
    gpu.ops = &sq_cuda_ops;
}

static void close_device(void)
{
    sq_cuda_ops.stream_close(gpu.stream);
    sq_cuda_ops.close(device);
}

/* Weights are known by their address: each pass, which has others, has a device of its own. */
static void reopen_device(void)
{
    close_device();
    open_device();
}

static void check_pass(const pass *p)
{
    reopen_device();
    sq_route r = plan_pass(p);
    sq_route_host host = host_of(p), told = host_of(p);
    push_all();
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        squint_msg msg;
        uint32_t n = 0, n_theirs = 0;
        ask(&r, layer);
        r.bias = random_float(0.1f);
        r.best = layer == 2 ? 0 : layer == 4 ? p->n_targets : (uint32_t)(p->keep * (float)p->n_targets);
        const sq_route theirs = theirs_of(&r);
        assert_int_equal(sq_route_layer(&cpu, &r, &host, &n, &msg), SQUINT_OK);
        assert_int_equal(sq_route_layer(&gpu, &theirs, &told, &n_theirs, &msg), SQUINT_OK);
        assert_int_equal(n_theirs, n);
        same(r.scores, "scores");
        same(r.weights, "weights");
        same_lists(&r, n, told.kept);
        same_rows(&r);
        for (uint32_t i = 0; i < n; i++)
            for (uint32_t j = 0; p->row_spread && j < p->d; j++)
                r.x[(size_t)r.kept[i] * p->d + j] += random_float(0.2f);
        push(r.x);
    }
    const sq_route theirs = theirs_of(&r);
    for (uint32_t parts = 2; parts; parts--) {
        sq_route_settle(&cpu, &r, &host, (parts - 1) * p->n / 2);
        sq_route_settle(&gpu, &theirs, &told, (parts - 1) * p->n / 2);
        same_rows(&r);
    }
    host_free(&host);
    host_free(&told);
    forget();
}

static void routes_of_every_kind(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 21; i++) {
        const uint32_t n = 1 + below(i % 4 ? 90 : 1300);
        check_pass(&(pass){.n = n,
                           .d = 1 + below(70),
                           .n_targets = 1 + below(n),
                           .protects = i % 3 == 2,
                           .weigh_skipped = i % 5 < 3,
                           .by_rms = i % 2,
                           .by_threshold = i % 7 == 6,
                           .norm = (sq_norm_type)(i % 4),
                           .keep = i % 7 == 6 ? random_float(0.3f) : 0.5f + random_float(0.5f),
                           .row_spread = i % 6 == 5 ? 0.0f : 1.0f});
    }
}

static void routes_of_long_rows_and_sequences(void **state)
{
    (void)state;
    check_pass(&(pass){.n = 30, .d = 4096, .n_targets = 21, .weigh_skipped = true, .keep = 0.4f, .row_spread = 1.0f});
    check_pass(&(pass){.n = 9, .d = 1027, .n_targets = 9, .by_rms = true, .keep = 0.7f, .row_spread = 1.0f});
    check_pass(&(pass){.n = 2300, .d = 2, .n_targets = 2200, .keep = 0.6f});
    check_pass(
        &(pass){.n = 4300, .d = 3, .n_targets = 4200, .norm = SQ_NORM_SOFTMAX, .keep = 0.95f, .row_spread = 1.0f});
}

/* Scores that choices hang by: equal ones, both zeros, infinite ones, with k in the middle of them; and a threshold
 * that one of them is. Of rows of one number and a router of 1 the score is that number. */
static void routes_of_ties(void **state)
{
    (void)state;
    static const float scores[] = {0.0f, -0.0f,     1.0f,     1.0f,   -1.0f, INFINITY, FLT_MAX,
                                   3.0f, -INFINITY, -FLT_MAX, 1e-45f, 1.0f,  INFINITY, -0.0f};
    enum { N = sizeof scores / sizeof *scores };
    for (uint32_t best = 0; best <= N; best++)
        for (int kind = 0; kind < 4; kind++) {
            const pass p = {.n = N, .d = 1, .n_targets = N, .protects = kind == 1, .by_threshold = kind > 1};
            reopen_device();
            sq_route r = plan_pass(&p);
            sq_route_host host = host_of(&p), told = host_of(&p);
            squint_msg msg;
            uint32_t n = 0, n_theirs = 0;
            memcpy(r.x, scores, sizeof scores);
            r.lag[0].factor = r.lag[13].factor = -1.0f; /* to -0; dots are never that */
            r.bias = -0.0f;
            routers[0][0] = 1.0f;
            ask(&r, 0);
            r.norm = SQ_NORM_NONE;
            r.best = best;
            r.logit = (double)scores[best % N];
            r.at_logit = kind == 3;
            push_all();
            const sq_route theirs = theirs_of(&r);
            assert_int_equal(sq_route_layer(&cpu, &r, &host, &n, &msg), SQUINT_OK);
            assert_int_equal(sq_route_layer(&gpu, &theirs, &told, &n_theirs, &msg), SQUINT_OK);
            assert_int_equal(n_theirs, n);
            same_lists(&r, n, told.kept);
            host_free(&host);
            host_free(&told);
            forget();
        }
}

static void a_score_that_is_nan_is_told(void **state)
{
    (void)state;
    const pass p = {.n = 40, .d = 5, .n_targets = 30, .weigh_skipped = true, .keep = 0.5f, .row_spread = 1.0f};
    for (int by_threshold = 0; by_threshold < 2; by_threshold++) {
        reopen_device();
        sq_route r = plan_pass(&p);
        sq_route_host host = host_of(&p);
        squint_msg msg;
        uint32_t n = 0;
        r.x[(size_t)r.targets[17] * p.d + 2] = NAN;
        r.x[(size_t)r.targets[23] * p.d + 2] = NAN;
        for (uint32_t i = 0; i < p.n_targets; i++)
            r.lag[i].factor = 0.5f;
        ask(&r, 0);
        r.best = 15;
        r.by_threshold = by_threshold;
        push_all();
        const sq_route theirs = theirs_of(&r);
        assert_int_equal(sq_route_layer(&gpu, &theirs, &host, &n, &msg), SQUINT_ERR_NUMERIC);
        assert_non_null(strstr(msg.text, "token 17 is NaN"));
        same(r.x, "rows");
        host_free(&host);
        forget();
    }
}

/* A stream that has failed is not a score that is NaN. */
static void a_failure_is_told_as_one(void **state)
{
    (void)state;
    const pass p = {.n = 40, .d = 5, .n_targets = 30, .keep = 0.5f, .row_spread = 1.0f};
    for (unsigned nth = 1; nth <= 3; nth++) {
        reopen_device();
        sq_route r = plan_pass(&p);
        sq_route_host host = host_of(&p);
        squint_msg msg;
        uint32_t n = 7;
        ask(&r, 0);
        r.best = 15;
        push_all();
        assert_finished();
        const sq_route theirs = theirs_of(&r);
        emulator_fail(EMULATOR_FAIL_LAUNCH, nth);
        assert_int_equal(sq_route_layer(&gpu, &theirs, &host, &n, &msg), SQUINT_OK);
        assert_int_equal(n, 0);
        assert_int_equal(sq_finish(&gpu, &msg), SQUINT_ERR_DEVICE);
        emulator_fail(EMULATOR_FAIL_LAUNCH, 0);
        host_free(&host);
        forget();
    }
}

/* ---- */

static int open_all(void **state)
{
    (void)state;
    const squint_allocator alloc = sq_allocator_or_default(NULL);
    cpu.kernels = sq_kernels_get("scalar");
    gpu.kernels = cpu.kernels;
    open_device();
    return sq_pool_open(&cpu.pool, 1, &alloc, NULL);
}

static int close_all(void **state)
{
    (void)state;
    close_device();
    sq_pool_close(&cpu.pool);
    return emulator_used_pieces() != 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_of_every_shape),
        cmocka_unit_test(attention_of_many_queries),
        cmocka_unit_test(attention_of_a_few_that_are_left),
        cmocka_unit_test(attention_moves_its_maximum),
        cmocka_unit_test(attention_of_any_number),
        cmocka_unit_test(caches_of_every_type),
        cmocka_unit_test(routes_of_every_kind),
        cmocka_unit_test(routes_of_long_rows_and_sequences),
        cmocka_unit_test(routes_of_ties),
        cmocka_unit_test(a_score_that_is_nan_is_told),
        cmocka_unit_test(a_failure_is_told_as_one),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
