/*
 * bench_attention: speed of attention, next to the peak of float multiply-adds in the same run.
 * SPDX-License-Identifier: MIT
 *
 * Prefill: as many causal queries as keys. Decode: one query. Only multiply-adds that causality asks for are counted,
 * two products of head_dim each a query and key. Rounds of peak and attention alternate; the best of each counts.
 */
#include "bench/common.h"
#include "runtime/engine.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double ENOUGH_MACS = 1e7; /* some milliseconds */
static const char program[] = "bench_attention";
static const char *const kv_names[] = {"f32", "f16", "q8"}; /* by sq_kv_type */

typedef struct options {
    uint32_t n_kv, head_dim, heads, rounds, threads; /* n_kv, head_dim: 0 for the usual ones */
    const char *isa;
    bool json;
} options;

typedef struct bench {
    const options *o;
    const sq_kernels *kernels;
    sq_pool *pool;
} bench;

typedef struct shape {
    uint32_t n_q, n_kv, head_dim;
    sq_kv_type kv;
} shape;

typedef struct rates {
    double gmacs, peak, kv_bytes; /* 10^9 a second */
} rates;

/* ---- One attention ----------------------------------------------------------------------- */

static void store_row(const sq_kernels *kernels, sq_kv_type type, const float *row, uint32_t n, void *to)
{
    switch (type) {
    case SQ_KV_F32:
        memcpy(to, row, n * sizeof *row);
        break;
    case SQ_KV_F16:
        kernels->to_f16(row, to, n);
        break;
    case SQ_KV_Q8:
        kernels->to_q8(row, to, n);
        break;
    }
}

/* A head's keys and values lie together, as in a session's cache; queries of all heads share a row. */
static sq_heads take_heads(const bench *b, const shape *s)
{
    const uint32_t heads = b->o->heads;
    const size_t ld = (size_t)heads * s->head_dim, units = sq_kv_units(s->kv, s->head_dim);
    const size_t row_bytes = units * sq_kv_unit_bytes(s->kv), head_bytes = s->n_kv * row_bytes;
    float *const q = bench_take(s->n_q * ld * sizeof *q), *const out = bench_take(s->n_q * ld * sizeof *out);
    float *const row = bench_take(s->head_dim * sizeof *row);
    uint8_t *const k = bench_take(heads * head_bytes), *const v = bench_take(heads * head_bytes);
    bench_fill_floats(q, s->n_q * ld);
    bench_fill_floats(row, s->head_dim);
    for (size_t i = 0; i < (size_t)heads * s->n_kv; i++) {
        store_row(b->kernels, s->kv, row, s->head_dim, k + i * row_bytes);
        store_row(b->kernels, s->kv, row, s->head_dim, v + i * row_bytes);
    }
    free(row);
    return (sq_heads){.n_heads = heads,
                      .n_kv_heads = heads,
                      .kv_head_bytes = head_bytes,
                      .attn = {.q = q,
                               .ldq = ld,
                               .k = k,
                               .v = v,
                               .ldkv = units,
                               .kv_type = s->kv,
                               .n_q = s->n_q,
                               .n_kv = s->n_kv,
                               .head_dim = s->head_dim,
                               .causal = true,
                               .first_kv = s->n_kv - s->n_q,
                               .scale = 1 / sqrtf((float)s->head_dim),
                               .out = out,
                               .ldo = ld}};
}

static void free_heads(const sq_heads *heads)
{
    free((void *)heads->attn.q);
    free((void *)heads->attn.k);
    free((void *)heads->attn.v);
    free(heads->attn.out);
}

static double count_macs(const bench *b, const shape *s)
{
    const double first = s->n_kv - s->n_q + 1, keys = s->n_q * (first + s->n_kv) / 2;
    return 2 * keys * s->head_dim * b->o->heads;
}

/* Milliseconds of one attention; short ones are repeated until the clock is good enough for them. */
static double time_attention(sq_compute *compute, const sq_heads *heads, double macs)
{
    const unsigned threads = sq_pool_threads(compute->pool);
    const uint32_t repeats = 1 + (uint32_t)(ENOUGH_MACS / macs);
    const double start = bench_ms(threads);
    for (uint32_t i = 0; i < repeats; i++)
        sq_attend(compute, heads);
    return (bench_ms(threads) - start) / repeats;
}

static rates measure(const bench *b, const shape *s)
{
    const sq_heads heads = take_heads(b, s);
    const double macs = count_macs(b, s), bytes = 2.0 * (double)heads.kv_head_bytes * heads.n_heads;
    sq_compute compute = {.kernels = b->kernels, .pool = b->pool};
    rates r = {0};
    for (uint32_t i = 0; i < b->o->rounds; i++) {
        bench_peak_round(&r.peak, bench_peaks_of(b->kernels->isa)->f32, b->pool);
        const double ms = time_attention(&compute, &heads, macs);
        bench_keep_best(&r.gmacs, macs, ms);
        bench_keep_best(&r.kv_bytes, bytes, ms);
    }
    free_heads(&heads);
    return r;
}

/* ---- Report ------------------------------------------------------------------------------ */

static const bench_column columns[] = {
    {"type", 4, BENCH_TEXT}, {"isa", 8, BENCH_TEXT}, {"n_q", 5, 0},     {"n_kv", 5, 0},
    {"head_dim", 8, 0},      {"heads", 5, 0},        {"threads", 7, 0}, {"gmacs", 9, 3},
    {"peak_gmacs", 10, 3},   {"of_peak", 8, 3},      {"kv_gb_s", 8, 2},
};

static void run_shape(const bench *b, const shape *s)
{
    const rates r = measure(b, s);
    const bench_cell cells[] = {
        {.text = kv_names[s->kv]},
        {.text = b->kernels->isa},
        {.number = s->n_q},
        {.number = s->n_kv},
        {.number = s->head_dim},
        {.number = b->o->heads},
        {.number = b->o->threads},
        {.number = r.gmacs},
        {.number = bench_known(r.peak)},
        {.number = bench_ratio(r.gmacs, r.peak)},
        {.number = r.kv_bytes},
    };
    static_assert(SQ_COUNT(cells) == SQ_COUNT(columns), "a cell a column");
    bench_row(columns, cells, SQ_COUNT(columns), b->o->json);
}

/* ---- All of a table ---------------------------------------------------------------------- */

static void run_table(const bench *b)
{
    static const uint32_t lengths[] = {100, 350, 640, 3000}, dims[] = {64, 128};
    const options *const o = b->o;
    for (size_t d = 0; d < (o->head_dim ? 1 : SQ_COUNT(dims)); d++) {
        for (size_t i = 0; i < (o->n_kv ? 1 : SQ_COUNT(lengths)); i++) {
            for (int type = SQ_KV_F32; type <= SQ_KV_Q8; type++) {
                shape s = {.n_kv = o->n_kv ? o->n_kv : lengths[i],
                           .head_dim = o->head_dim ? o->head_dim : dims[d],
                           .kv = (sq_kv_type)type};
                s.n_q = s.n_kv;
                run_shape(b, &s);
                s.n_q = 1;
                run_shape(b, &s);
            }
        }
    }
}

static options parse(int argc, char **argv)
{
    options o = {.heads = 2, .rounds = 7, .threads = 1};
    const bench_option table[] = {
        {"n-kv", "keys (default: 100, 350, 640 and 3000)", .number = &o.n_kv, .least = 1, .most = 1 << 16},
        {"head-dim", "(default: 64 and 128)", .number = &o.head_dim, .least = 1, .most = 256},
        {"heads", "heads, each with keys of its own (2)", .number = &o.heads, .least = 1, .most = 256},
        {"isa", "one table only (default: the best)", .text = &o.isa},
        {"threads", "threads (1)", .number = &o.threads, .least = 1, .most = 1024},
        {"rounds", "the best of so many counts (7)", .number = &o.rounds, .least = 1, .most = 1000},
        {"json", "one JSON object a row", .flag = &o.json},
        {0},
    };
    bench_parse(program, table, argc, argv);
    bench_check_isa(program, o.isa);
    return o;
}

int main(int argc, char **argv)
{
    const options o = parse(argc, argv);
    bench b = {.o = &o, .kernels = sq_kernels_get(o.isa), .pool = bench_pool(o.threads)};
    bench_head(columns, SQ_COUNT(columns), o.json);
    run_table(&b);
    sq_pool_close(&b.pool);
    return 0;
}
