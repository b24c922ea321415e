/*
 * bench_gemm: speed of the matrix products, next to the peak of their own instructions and to oneDNN in the same run.
 * SPDX-License-Identifier: MIT
 *
 * Rounds of peak, oneDNN and product alternate, so that all see the same clock and the same neighbours on the core; the
 * best of each counts. Each table gets a process of its own, in which oneDNN is limited to the table's instructions. A
 * table that is too slow for a whole product computes only its first channels.
 */
#include "bench/common.h"
#include "bench/onednn.h"
#include "runtime/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SLOW_MS = 400 };

static const char program[] = "bench_gemm";

typedef struct options {
    uint32_t m, n, k, group, rounds, threads; /* m, n, k: 0 for the usual shapes */
    const char *isa, *type;
    bool json;
} options;

typedef struct bench {
    const options *o;
    const sq_kernels *kernels;
    sq_pool *pool;
    bool onednn; /* its limit is in force */
    onednn_server *server;
} bench;

/* 10^9 multiply-adds a second; 0: not known */
typedef struct rates {
    double ours, peak, onednn, onednn_best;
    char onednn_name[64];
} rates;

/* ---- One product ------------------------------------------------------------------------- */

typedef struct product {
    sq_panels w;
    sq_acts a;
    uint8_t *weights;
    float *x, *c, *scratch;
    const sq_kernels *kernels;
    uint32_t panels, per_chunk; /* how many are multiplied */
} product;

static void take_buffers(product *p, uint32_t m)
{
    const uint32_t k = p->w.k, n = p->w.n;
    sq_acts *const a = &p->a;
    *a = (sq_acts){.m = m, .k = k, .group = sq_panels_act_group(&p->w), .mr = p->kernels->mr};
    const size_t tiles = sq_acts_tiles(a), scales = tiles * sq_acts_groups(a) * a->mr;
    p->weights = bench_take(sq_panels_bytes(&p->w));
    bench_fill(p->weights, sq_panels_bytes(&p->w));
    p->w.data = p->weights;
    p->x = bench_take((size_t)m * k * sizeof(float));
    bench_fill_floats(p->x, (size_t)m * k);
    p->c = bench_take((size_t)m * n * sizeof(float));
    memset(p->c, 0, (size_t)m * n * sizeof(float));
    p->scratch = bench_take(k * sizeof(float));
    a->q = bench_take(tiles * sq_acts_k_pad(a) * a->mr);
    a->scale = bench_take(scales * sizeof(float));
    a->sum = bench_take(scales * sizeof(int32_t));
    const sq_rows_in in = {.x = p->x, .ldx = k, .k = k, .op = SQ_ROW_COPY};
    p->kernels->rows_pack(&in, a, 0, (uint32_t)tiles, p->scratch);
}

static void free_buffers(product *p)
{
    free(p->weights);
    free(p->x);
    free(p->c);
    free(p->scratch);
    free(p->a.q);
    free(p->a.scale);
    free(p->a.sum);
}

static void product_chunk(void *ctx, unsigned chunk, unsigned worker)
{
    (void)worker;
    const product *const p = ctx;
    const uint32_t first = chunk * p->per_chunk, left = p->panels - first;
    const sq_gemm_out out = {.c = p->c, .ldc = p->w.n};
    sq_kernels_gemm(p->kernels, &p->w)(&p->w, first, left < p->per_chunk ? left : p->per_chunk, &p->a, &out);
}

/* Milliseconds of the product with the first `panels` panels, in chunks as sq_project() makes them. */
static double time_product(product *p, sq_pool *pool, uint32_t panels)
{
    const unsigned threads = sq_pool_threads(pool);
    p->panels = panels;
    p->per_chunk = sq_panels_per_chunk(panels, threads);
    const double start = bench_ms(threads);
    sq_pool_run(pool, (panels + p->per_chunk - 1) / p->per_chunk, product_chunk, p);
    return bench_ms(threads) - start;
}

static double time_onednn(onednn *o, unsigned threads)
{
    const double start = bench_ms(threads);
    onednn_run(o);
    return bench_ms(threads) - start;
}

static rates measure(const bench *b, const sq_panels *w, uint32_t m)
{
    const uint32_t threads = b->o->threads, all = (uint32_t)sq_panel_count(w);
    const onednn_shape shape = {m, w->n, w->k, threads};
    const bench_peaks *const peaks = bench_peaks_of(b->kernels->isa);
    const double macs = (double)m * w->n * w->k;
    product p = {.w = *w, .kernels = b->kernels};
    rates r = {0};
    take_buffers(&p, m);
    onednn *const theirs = b->onednn ? onednn_open(&shape) : NULL;
    if (theirs) snprintf(r.onednn_name, sizeof r.onednn_name, "%s", onednn_name(theirs));
    const double whole_ms = time_product(&p, b->pool, 1) * all;
    const uint32_t panels = whole_ms > 4 * SLOW_MS ? (uint32_t)(1 + all * (SLOW_MS / whole_ms)) : all;
    const double part = panels == all ? 1 : (double)panels * SQ_PANEL_N / w->n;
    for (uint32_t i = 0; i < b->o->rounds; i++) {
        bench_peak_round(&r.peak, w->type == SQ_PANEL_I4 ? peaks->i4 : peaks->i8, b->pool);
        if (theirs) bench_keep_best(&r.onednn, macs, time_onednn(theirs, threads));
        bench_keep_best(&r.ours, macs * part, time_product(&p, b->pool, panels));
        const double best_ms = theirs ? onednn_server_time(b->server, &shape) : 0;
        if (best_ms > 0) bench_keep_best(&r.onednn_best, macs, best_ms);
    }
    onednn_close(theirs);
    free_buffers(&p);
    return r;
}

/* ---- Report ------------------------------------------------------------------------------ */

static const bench_column columns[] = {
    {"type", 10, BENCH_TEXT},
    {"isa", 8, BENCH_TEXT},
    {"m", 5, 0},
    {"n", 6, 0},
    {"k", 6, 0},
    {"threads", 7, 0},
    {"gmacs", 9, 3},
    {"peak_gmacs", 10, 3},
    {"of_peak", 8, 3},
    {"onednn_gmacs", 12, 3},
    {"of_onednn", 9, 3},
    {"onednn_best_gmacs", 17, 3},
    {"onednn_code", 0, BENCH_TEXT},
};

static void print(const bench *b, const sq_panels *w, uint32_t m, const rates *r)
{
    char type[16];
    const bench_cell cells[] = {
        {.text = bench_type_name(w, type)},
        {.text = b->kernels->isa},
        {.number = m},
        {.number = w->n},
        {.number = w->k},
        {.number = b->o->threads},
        {.number = r->ours},
        {.number = bench_known(r->peak)},
        {.number = bench_ratio(r->ours, r->peak)},
        {.number = bench_known(r->onednn)},
        {.number = bench_ratio(r->ours, r->onednn)},
        {.number = bench_known(r->onednn_best)},
        {.text = *r->onednn_name ? r->onednn_name : NULL},
    };
    static_assert(SQ_COUNT(cells) == SQ_COUNT(columns), "a cell a column");
    bench_row(columns, cells, SQ_COUNT(columns), b->o->json);
}

/* ---- All products of a table ------------------------------------------------------------- */

static void run_shape(const bench *b, uint32_t m, uint32_t n, uint32_t k)
{
    const options *const o = b->o;
    for (int type = SQ_PANEL_I8; type <= SQ_PANEL_I4; type++) {
        if (!bench_wants_type(o->type, (sq_panel_type)type)) continue;
        const sq_panels w = {.n = n, .k = k, .type = (sq_panel_type)type, .group = type == SQ_PANEL_I4 ? o->group : 0};
        const rates r = measure(b, &w, m);
        print(b, &w, m, &r);
    }
}

/* The decoder's shapes at the row counts of its dense and its routed layers. */
static void run_table(const options *o, const char *isa)
{
    static const uint32_t ms[] = {64, 350, 640}, nks[][2] = {{4096, 4096}, {11008, 4096}, {4096, 11008}};
    bench b = {.o = o, .kernels = sq_kernels_get(isa), .server = onednn_server_start()};
    b.onednn = onednn_limit(isa);
    b.pool = bench_pool(o->threads);
    for (size_t s = 0; s < (o->n || o->k ? 1 : SQ_COUNT(nks)); s++) {
        for (size_t i = 0; i < (o->m ? 1 : SQ_COUNT(ms)); i++)
            run_shape(&b, o->m ? o->m : ms[i], o->n ? o->n : nks[s][0], o->k ? o->k : nks[s][1]);
    }
    sq_pool_close(&b.pool);
    onednn_server_stop(b.server);
}

static int run_in_process(const options *o, const char *isa)
{
    int status = 1;
    fflush(stdout);
    const pid_t pid = fork();
    if (!pid) {
        run_table(o, isa);
        exit(0);
    }
    if (pid < 0 || waitpid(pid, &status, 0) < 0) perror(program);
    return status ? 1 : 0;
}

static options parse(int argc, char **argv)
{
    options o = {.group = 128, .rounds = 7, .threads = 1};
    const bench_option table[] = {
        {"m", "rows (default: 64, 350 and 640)", .number = &o.m, .least = 1, .most = 1 << 16},
        {"n", "output channels (default: the shapes of a 7B decoder)", .number = &o.n, .least = 1, .most = 1 << 20},
        {"k", "inputs", .number = &o.k, .least = 1, .most = SQ_MAX_K},
        {"type", "int8 or int4 (default: both)", .text = &o.type},
        {"group", "inputs that share a scale in int4, 0: a scale a channel (128)", .number = &o.group,
         .most = SQ_MAX_K},
        {"isa", "one table only (default: all that this CPU runs)", .text = &o.isa},
        {"threads", "threads (1)", .number = &o.threads, .least = 1, .most = 1024},
        {"rounds", "the best of so many counts (7)", .number = &o.rounds, .least = 1, .most = 1000},
        {"json", "one JSON object a row", .flag = &o.json},
        {0},
    };
    bench_parse(program, table, argc, argv);
    bench_check_isa(program, o.isa);
    if (o.group % SQ_PANEL_K) bench_misuse(program, "group", "of int4", "a multiple of 32");
    bench_check_type(program, o.type);
    return o;
}

int main(int argc, char **argv)
{
    const options o = parse(argc, argv);
    onednn_prepare(argv, o.threads);
    bench_head(columns, SQ_COUNT(columns), o.json);
    int failed = 0;
    for (const char *const *name = sq_kernels_names(); *name; name++) {
        if (!o.isa || !strcmp(sq_kernels_get(o.isa)->isa, *name)) failed |= run_in_process(&o, *name);
    }
    return failed;
}
