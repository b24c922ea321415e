/*
 * bench_gemv: decoding. Bytes of weights that a product with one row reads a second, next to a loop that only reads.
 * SPDX-License-Identifier: MIT
 *
 * Matrices of one shape follow one another, so many that none is in a cache when it comes again. A turn is some of
 * them, as a decoder's layer is; the reading loop takes turns with the products, the same bytes each, with all threads
 * that the machine has; the best turn of each counts. A turn lasts a few milliseconds by the wall's clock: on a busy
 * machine some turns have all cores.
 */
#include "bench/common.h"
#include "runtime/engine.h"

#include <stdio.h>
#include <stdlib.h>

enum { TURN_BYTES = 1 << 26 }; /* and half of the memory at most */

static const char program[] = "bench_gemv";

typedef struct options {
    uint32_t n, k, mib, rounds, threads; /* n, k: 0 for the usual shapes; threads: 0 for all */
    const char *isa, *type;
    bool json;
} options;

typedef struct bench {
    const options *o;
    const sq_kernels *kernels;
    sq_pool *pool, *all; /* of the products, of the reading loop */
    uint8_t *memory;
    size_t bytes;
} bench;

typedef struct rates {
    double gmacs, bytes, read_bytes; /* 10^9 a second */
} rates;

/* ---- Products ---------------------------------------------------------------------------- */

static void *plan(sq_compute *compute, const bench *b, const sq_panels *w)
{
    sq_arena arena = {0};
    sq_compute_plan(compute, &arena, sq_pool_threads(b->pool), 1, w->k, sq_panels_act_group(w), false);
    arena = (sq_arena){.base = bench_take(arena.used), .size = arena.used};
    sq_compute_plan(compute, &arena, sq_pool_threads(b->pool), 1, w->k, sq_panels_act_group(w), false);
    return arena.base;
}

/* One row times each of n matrices, in milliseconds. */
static double time_products(sq_compute *compute, sq_panels w, size_t n, const float *x, float *y)
{
    const sq_rows_in in = {.x = x, .ldx = w.k, .k = w.k, .op = SQ_ROW_COPY};
    const sq_gemm_out out = {.c = y, .ldc = w.n};
    const double start = sq_now_ms();
    for (; n; n--, w.data += sq_panels_bytes(&w)) {
        const sq_mat mat = {.n = w.n, .k = w.k, .panels = w}, *const mats[] = {&mat};
        sq_project(compute, &in, 1, mats, &out, 1);
    }
    return sq_now_ms() - start;
}

static rates measure(const bench *b, sq_panels w)
{
    const size_t bytes = sq_panels_bytes(&w), half = b->bytes / 2 / bytes;
    const size_t fit = TURN_BYTES / bytes, n = fit < 1 ? 1 : fit < half ? fit : half; /* matrices a turn */
    const size_t n_turns = b->bytes / (n * bytes);
    float *const x = bench_take(w.k * sizeof *x), *const y = bench_take(w.n * sizeof *y);
    sq_compute compute = {.kernels = b->kernels, .pool = b->pool};
    void *const arena = plan(&compute, b, &w);
    rates r = {0};
    bench_fill_floats(x, w.k);
    for (size_t i = 0; i < b->o->rounds * n_turns; i++) {
        bench_read_round(&r.read_bytes, b->memory + i % n_turns * n * bytes, n * bytes, b->all);
        w.data = b->memory + (i + n_turns / 2) % n_turns * n * bytes;
        const double ms = time_products(&compute, w, n, x, y);
        bench_keep_best(&r.bytes, (double)n * (double)bytes, ms);
        bench_keep_best(&r.gmacs, (double)n * w.n * w.k, ms);
    }
    free(arena);
    free(y);
    free(x);
    return r;
}

/* ---- Report ------------------------------------------------------------------------------ */

static const bench_column columns[] = {
    {"type", 10, BENCH_TEXT}, {"isa", 8, BENCH_TEXT}, {"m", 5, 0},    {"n", 6, 0},         {"k", 6, 0},
    {"threads", 7, 0},        {"gmacs", 9, 3},        {"gb_s", 8, 2}, {"read_gb_s", 9, 2}, {"of_read", 8, 3},
};

static void print(const bench *b, const sq_panels *w, const rates *r)
{
    char type[16];
    const bench_cell cells[] = {
        {.text = bench_type_name(w, type)},
        {.text = b->kernels->isa},
        {.number = 1},
        {.number = w->n},
        {.number = w->k},
        {.number = sq_pool_threads(b->pool)},
        {.number = r->gmacs},
        {.number = r->bytes},
        {.number = r->read_bytes},
        {.number = bench_ratio(r->bytes, r->read_bytes)},
    };
    static_assert(SQ_COUNT(cells) == SQ_COUNT(columns), "a cell a column");
    bench_row(columns, cells, SQ_COUNT(columns), b->o->json);
}

/* ---- All products ------------------------------------------------------------------------ */

static void run_shape(const bench *b, uint32_t n, uint32_t k)
{
    static const struct {
        sq_panel_type type;
        uint32_t group;
    } types[] = {{SQ_PANEL_I8, 0}, {SQ_PANEL_I8, 32}, {SQ_PANEL_I4, 128}, {SQ_PANEL_I4, 64}, {SQ_PANEL_I4, 32}};
    for (size_t i = 0; i < SQ_COUNT(types); i++) {
        if (!bench_wants_type(b->o->type, types[i].type)) continue;
        const sq_panels w = {.n = n, .k = k, .type = types[i].type, .group = types[i].group};
        if (2 * sq_panels_bytes(&w) > b->bytes) {
            fprintf(stderr, "%s: two matrices of %u x %u don't fit --mib %u\n", program, n, k, b->o->mib);
            exit(2);
        }
        const rates r = measure(b, w);
        print(b, &w, &r);
    }
}

static void run_table(bench *b)
{
    static const uint32_t nks[][2] = {{4096, 4096}, {11008, 4096}, {4096, 11008}};
    for (size_t s = 0; s < (b->o->n || b->o->k ? 1 : SQ_COUNT(nks)); s++)
        run_shape(b, b->o->n ? b->o->n : nks[s][0], b->o->k ? b->o->k : nks[s][1]);
}

static options parse(int argc, char **argv)
{
    options o = {.mib = 768, .rounds = 7};
    const bench_option table[] = {
        {"n", "output channels (default: the shapes of a 7B decoder)", .number = &o.n, .least = 1, .most = 1 << 20},
        {"k", "inputs", .number = &o.k, .least = 1, .most = SQ_MAX_K},
        {"mib", "MiB of matrices in turn: many times the last cache (768)", .number = &o.mib, .least = 1,
         .most = 1 << 16},
        {"type", "int8 or int4 (default: both)", .text = &o.type},
        {"isa", "one table only (default: the best)", .text = &o.isa},
        {"threads", "threads of the products (default: all, as the reading loop)", .number = &o.threads, .most = 1024},
        {"rounds", "the best of so many counts (7)", .number = &o.rounds, .least = 1, .most = 1000},
        {"json", "one JSON object a row", .flag = &o.json},
        {0},
    };
    bench_parse(program, table, argc, argv);
    bench_check_isa(program, o.isa);
    bench_check_type(program, o.type);
    return o;
}

int main(int argc, char **argv)
{
    const options o = parse(argc, argv);
    bench b = {.o = &o, .kernels = sq_kernels_get(o.isa), .bytes = (size_t)o.mib << 20};
    b.all = bench_pool(sq_cpu_count());
    /* Threads of a second pool would be woken each turn, and spin beside the first one's. */
    const bool all = !o.threads || o.threads == sq_cpu_count();
    b.pool = all ? b.all : bench_pool(o.threads);
    b.memory = bench_take(b.bytes);
    bench_fill(b.memory, b.bytes);
    bench_head(columns, SQ_COUNT(columns), o.json);
    run_table(&b);
    free(b.memory);
    if (!all) sq_pool_close(&b.pool);
    sq_pool_close(&b.all);
    return 0;
}
