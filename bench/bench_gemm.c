/*
 * bench_gemm: speed of the matrix products, next to the peak of their own instructions and to oneDNN in the same run.
 * SPDX-License-Identifier: MIT
 *
 * Rounds of peaks, oneDNN and the products of all weight types alternate, so that all see the same clock and the same
 * neighbours on the core; the best of each counts. With several threads all of ours is also run with one. Each table
 * gets a process of its own, in which oneDNN is limited to the table's instructions. A table that is too slow for a
 * whole product computes only its first channels.
 */
#include "bench/common.h"
#include "bench/onednn.h"
#include "runtime/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SLOW_MS = 400, MAX_TYPES = 4 };

static const char program[] = "bench_gemm";

typedef struct options {
    uint32_t m, n, k, group, rounds, threads; /* m, n, k: 0 for the usual shapes */
    const char *isa, *type;
    bool json;
} options;

typedef struct bench {
    const options *o;
    const sq_kernels *kernels;
    const bench_peaks *peaks;
    sq_pool *pool, *one; /* one: a single thread, NULL when pool is that */
    bool onednn;         /* its limit is in force */
    onednn_server *server;
} bench;

/* 10^9 multiply-adds a second with the pool, and with one thread; 0: not known */
typedef struct rate {
    double all, one;
} rate;

/* ---- One product ------------------------------------------------------------------------- */

typedef struct product {
    sq_panels w;
    sq_acts a;
    uint8_t *weights;
    float *x, *c, *scratch;
    const sq_kernels *kernels;
    uint32_t panels, per_chunk; /* how many are multiplied */
    double macs;                /* in those panels */
    rate ours;
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

/* The wall's clock where one thread and several are compared. */
static double now_ms(const bench *b) { return bench_ms(b->one ? b->o->threads : 1); }

static double time_product(const bench *b, product *p, sq_pool *pool)
{
    p->per_chunk = sq_panels_per_chunk(p->panels, sq_pool_threads(pool));
    const double start = now_ms(b);
    sq_pool_run(pool, (p->panels + p->per_chunk - 1) / p->per_chunk, product_chunk, p);
    return now_ms(b) - start;
}

/* As many panels as a round has time for. */
static void choose_panels(const bench *b, product *p)
{
    const uint32_t all = (uint32_t)sq_panel_count(&p->w), channels = p->w.n;
    p->panels = 1;
    const double whole_ms = time_product(b, p, b->pool) * all;
    p->panels = whole_ms > 4 * SLOW_MS ? (uint32_t)(1 + all * (SLOW_MS / whole_ms)) : all;
    p->macs = (double)p->a.m * p->w.k * (p->panels == all ? channels : p->panels * SQ_PANEL_N);
}

/* ---- All types of a shape ---------------------------------------------------------------- */

typedef struct comparison {
    product p[MAX_TYPES];
    unsigned n;
    onednn_shape shape;
    onednn *theirs;
    rate peak_i8, peak_i4;
    double onednn, onednn_best;
} comparison;

static void add_type(const bench *b, comparison *c, sq_panel_type type, uint32_t group)
{
    if (!bench_wants_type(b->o->type, type)) return;
    product *const p = &c->p[c->n++];
    *p = (product){.w = {.n = c->shape.n, .k = c->shape.k, .type = type, .group = group}, .kernels = b->kernels};
    take_buffers(p, c->shape.m);
    choose_panels(b, p);
}

static void peak_round(const bench *b, rate *peak, sq_peak_fn *loop)
{
    bench_peak_round(&peak->all, loop, b->pool);
    if (b->one) bench_peak_round(&peak->one, loop, b->one);
}

static void round_of(const bench *b, comparison *c)
{
    peak_round(b, &c->peak_i8, b->peaks->i8);
    peak_round(b, &c->peak_i4, b->peaks->i4);
    for (unsigned i = 0; i < c->n; i++) {
        product *const p = &c->p[i];
        bench_keep_best(&p->ours.all, p->macs, time_product(b, p, b->pool));
        if (b->one) bench_keep_best(&p->ours.one, p->macs, time_product(b, p, b->one));
    }
    if (!c->theirs) return;
    const double start = now_ms(b), macs = (double)c->shape.m * c->shape.n * c->shape.k;
    onednn_run(c->theirs);
    bench_keep_best(&c->onednn, macs, now_ms(b) - start);
    const double best_ms = onednn_server_time(b->server, &c->shape);
    if (best_ms > 0) bench_keep_best(&c->onednn_best, macs, best_ms);
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
    {"of_int8", 7, 3},
    {"peak_gmacs", 10, 3},
    {"of_peak", 8, 3},
    {"onednn_gmacs", 12, 3},
    {"of_onednn", 9, 3},
    {"onednn_best_gmacs", 17, 3},
    {"of_one", 7, 3},
    {"peak_of_one", 11, 3},
    {"onednn_code", 0, BENCH_TEXT},
};

static void print(const bench *b, const comparison *c, const product *p)
{
    char type[16];
    const rate peak = p->w.type == SQ_PANEL_I4 ? c->peak_i4 : c->peak_i8;
    const bool has_int8 = c->p[0].w.type == SQ_PANEL_I8;
    const bench_cell cells[] = {
        {.text = bench_type_name(&p->w, type)},
        {.text = b->kernels->isa},
        {.number = p->a.m},
        {.number = p->w.n},
        {.number = p->w.k},
        {.number = b->o->threads},
        {.number = p->ours.all},
        {.number = has_int8 ? bench_ratio(p->ours.all, c->p[0].ours.all) : bench_known(0)},
        {.number = bench_known(peak.all)},
        {.number = bench_ratio(p->ours.all, peak.all)},
        {.number = bench_known(c->onednn)},
        {.number = bench_ratio(p->ours.all, c->onednn)},
        {.number = bench_known(c->onednn_best)},
        {.number = bench_ratio(p->ours.all, p->ours.one)},
        {.number = bench_ratio(peak.all, peak.one)},
        {.text = c->theirs ? onednn_name(c->theirs) : NULL},
    };
    static_assert(SQ_COUNT(cells) == SQ_COUNT(columns), "a cell a column");
    bench_row(columns, cells, SQ_COUNT(columns), b->o->json);
}

static void run_shape(const bench *b, uint32_t m, uint32_t n, uint32_t k)
{
    comparison c = {.shape = {m, n, k, b->o->threads}};
    if (b->onednn) c.theirs = onednn_open(&c.shape);
    add_type(b, &c, SQ_PANEL_I8, 0);
    add_type(b, &c, SQ_PANEL_I8, SQ_BLOCK);
    add_type(b, &c, SQ_PANEL_I4, b->o->group);
    if (b->o->group != SQ_BLOCK) add_type(b, &c, SQ_PANEL_I4, SQ_BLOCK);
    for (uint32_t i = 0; i < b->o->rounds; i++)
        round_of(b, &c);
    for (unsigned i = 0; i < c.n; i++) {
        print(b, &c, &c.p[i]);
        free_buffers(&c.p[i]);
    }
    onednn_close(c.theirs);
}

/* ---- All products of a table ------------------------------------------------------------- */

/* The decoder's shapes at the row counts of its dense and its routed layers. */
static void run_table(const options *o, const char *isa)
{
    static const uint32_t ms[] = {64, 350, 640}, nks[][2] = {{4096, 4096}, {11008, 4096}, {4096, 11008}};
    bench b = {.o = o, .kernels = sq_kernels_get(isa), .peaks = bench_peaks_of(isa), .server = onednn_server_start()};
    b.onednn = onednn_limit(isa);
    b.pool = bench_pool(o->threads);
    b.one = o->threads > 1 ? bench_pool(1) : NULL;
    for (size_t s = 0; s < (o->n || o->k ? 1 : SQ_COUNT(nks)); s++) {
        for (size_t i = 0; i < (o->m ? 1 : SQ_COUNT(ms)); i++)
            run_shape(&b, o->m ? o->m : ms[i], o->n ? o->n : nks[s][0], o->k ? o->k : nks[s][1]);
    }
    sq_pool_close(&b.pool);
    sq_pool_close(&b.one);
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
