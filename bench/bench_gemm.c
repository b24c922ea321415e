/*
 * bench_gemm: speed of the matrix products, next to the peak of their own instructions in the same run.
 * SPDX-License-Identifier: MIT
 *
 * One thread, in processor time: on a busy machine the time of others does not count. Rounds of peak and product
 * alternate, so that both see the same clock and the same neighbours on the core; the best of each counts. A table that
 * is too slow for a whole product computes only its first channels.
 */
#include "config.h"
#include "simd/peak.h"
#include "simd/simd.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SLOW_MS = 400, PEAK_ROUNDS = 1 << 19 };

typedef struct bench_case {
    const sq_kernels *kernels;
    sq_panels w;
    uint32_t m;
    double gmacs, peak_gmacs; /* 10^9 multiply-adds a second; peak 0: none known */
} bench_case;

typedef struct options {
    uint32_t m, n, k, group, rounds; /* m, n, k: 0 for the usual shapes */
    const char *isa;
    bool json;
} options;

/* ---- Peaks ------------------------------------------------------------------------------- */

static const struct {
    const char *isa;
    sq_peak_fn *i8, *i4;
} peaks[] = {
#if SQ_ARCH_X86_64
    {"avx2", sq_peak_i8_avx2, sq_peak_i4_avx2},
#endif
    {"scalar", NULL, NULL}, /* whatever the compiler made of it */
};

static sq_peak_fn *peak_of(const bench_case *c)
{
    for (size_t i = 0; i < sizeof peaks / sizeof *peaks; i++) {
        if (!strcmp(peaks[i].isa, c->kernels->isa)) return c->w.type == SQ_PANEL_I4 ? peaks[i].i4 : peaks[i].i8;
    }
    return NULL;
}

/* ---- One product ------------------------------------------------------------------------- */

typedef struct buffers {
    uint8_t *weights;
    float *x, *c, *scratch;
    sq_acts a;
} buffers;

static void *take(size_t bytes)
{
    void *p = NULL;
    if (posix_memalign(&p, SQ_PANEL_ALIGN, bytes + 1)) {
        fprintf(stderr, "bench_gemm: no memory for %zu bytes\n", bytes);
        exit(1);
    }
    return p;
}

static buffers take_buffers(const bench_case *c)
{
    const sq_panels *w = &c->w;
    buffers b = {.a = {.m = c->m, .k = w->k, .group = sq_panels_act_group(w), .mr = c->kernels->mr}};
    const size_t tiles = sq_acts_tiles(&b.a), scales = tiles * sq_acts_groups(&b.a) * b.a.mr;
    const size_t weight_bytes = sq_panels_bytes(w);
    uint64_t random = 1;
    b.weights = take(weight_bytes);
    for (size_t i = 0; i < weight_bytes; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        b.weights[i] = (uint8_t)(random >> 58 | 1); /* small, so that no scale is a NaN */
    }
    b.x = take((size_t)c->m * w->k * sizeof(float));
    for (size_t i = 0; i < (size_t)c->m * w->k; i++)
        b.x[i] = (float)(i % 251) - 125.0f;
    b.c = take((size_t)c->m * w->n * sizeof(float));
    memset(b.c, 0, (size_t)c->m * w->n * sizeof(float));
    b.scratch = take(w->k * sizeof(float));
    b.a.q = take(tiles * sq_acts_k_pad(&b.a) * b.a.mr);
    b.a.scale = take(scales * sizeof(float));
    b.a.sum = take(scales * sizeof(int32_t));
    const sq_rows_in in = {.x = b.x, .ldx = w->k, .k = w->k, .op = SQ_ROW_COPY};
    c->kernels->rows_pack(&in, &b.a, 0, (uint32_t)tiles, b.scratch);
    return b;
}

static void free_buffers(buffers *b)
{
    free(b->weights);
    free(b->x);
    free(b->c);
    free(b->scratch);
    free(b->a.q);
    free(b->a.scale);
    free(b->a.sum);
}

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

/* The product with the first `panels` panels, in milliseconds. */
static double time_product(const bench_case *c, const buffers *b, uint32_t panels)
{
    sq_panels w = c->w;
    w.data = b->weights;
    const sq_gemm_out out = {.c = b->c, .ldc = w.n};
    const double start = now_ms();
    sq_kernels_gemm(c->kernels, &w)(&w, 0, panels, &b->a, &out);
    return now_ms() - start;
}

static void keep_best(double *best, double macs, double ms)
{
    const double gmacs = macs * 1e-6 / ms;
    if (gmacs > *best) *best = gmacs;
}

static void run_case(bench_case *c, uint32_t rounds)
{
    buffers b = take_buffers(c);
    const uint32_t all = (uint32_t)sq_panel_count(&c->w);
    const double whole_ms = time_product(c, &b, 1) * all;
    const uint32_t panels = whole_ms > 4 * SLOW_MS ? (uint32_t)(1 + all * (SLOW_MS / whole_ms)) : all;
    const double channels = panels == all ? c->w.n : (double)panels * SQ_PANEL_N;
    for (uint32_t i = 0; i < rounds; i++) {
        if (peak_of(c)) {
            const double start = now_ms(), macs = peak_of(c)(PEAK_ROUNDS);
            keep_best(&c->peak_gmacs, macs, now_ms() - start);
        }
        keep_best(&c->gmacs, channels * c->m * c->w.k, time_product(c, &b, panels));
    }
    free_buffers(&b);
}

/* ---- Report ------------------------------------------------------------------------------ */

static void print_case(const bench_case *c, bool json)
{
    char type[16];
    snprintf(type, sizeof type, c->w.group ? "%s-g%u" : "%s", c->w.type == SQ_PANEL_I4 ? "int4" : "int8", c->w.group);
    if (json) {
        printf("{\"type\": \"%s\", \"isa\": \"%s\", \"m\": %u, \"n\": %u, \"k\": %u, \"threads\": 1, \"gmacs\": %.3f, ",
               type, c->kernels->isa, c->m, c->w.n, c->w.k, c->gmacs);
        printf(c->peak_gmacs > 0 ? "\"peak_gmacs\": %.3f}\n" : "\"peak_gmacs\": null}\n", c->peak_gmacs);
    } else {
        printf("%-10s %-8s %5u %6u %6u %9.2f", type, c->kernels->isa, c->m, c->w.n, c->w.k, c->gmacs);
        if (c->peak_gmacs > 0) printf(" %9.2f %5.0f %%", c->peak_gmacs, 100 * c->gmacs / c->peak_gmacs);
        putchar('\n');
    }
    fflush(stdout);
}

static void run_shape(const options *o, uint32_t m, uint32_t n, uint32_t k)
{
    for (int type = SQ_PANEL_I8; type <= SQ_PANEL_I4; type++) {
        for (const char *const *name = sq_kernels_names(); *name; name++) {
            if (o->isa && strcmp(o->isa, *name)) continue;
            bench_case c = {
                .kernels = sq_kernels_get(*name),
                .m = m,
                .w = {.n = n, .k = k, .type = (sq_panel_type)type, .group = type == SQ_PANEL_I4 ? o->group : 0}};
            run_case(&c, o->rounds);
            print_case(&c, o->json);
        }
    }
}

/* The decoder's shapes at the row counts of its dense and its routed layers. */
static void run_all(const options *o)
{
    static const uint32_t ms[] = {64, 350, 640}, nks[][2] = {{4096, 4096}, {11008, 4096}, {4096, 11008}};
    if (!o->json) printf("%-10s %-8s %5s %6s %6s %9s %9s\n", "weights", "isa", "m", "n", "k", "GMAC/s", "peak");
    for (size_t s = 0; s < (o->n || o->k ? 1 : sizeof nks / sizeof *nks); s++) {
        for (size_t i = 0; i < (o->m ? 1 : sizeof ms / sizeof *ms); i++) {
            run_shape(o, o->m ? o->m : ms[i], o->n ? o->n : nks[s][0], o->k ? o->k : nks[s][1]);
        }
    }
}

/* ---- Command line ------------------------------------------------------------------------ */

static const char usage[] = "usage: bench_gemm [--m N] [--n N] [--k N] [--group N] [--isa NAME] [--rounds N] [--json]\n"
                            "  --m, --n, --k  rows, output channels and inputs of one shape (default: the decoder's)\n"
                            "  --group        inputs that share a scale in int4, 0: a scale a channel (128)\n"
                            "  --isa          one table only (default: all that this CPU runs)\n"
                            "  --rounds       the best of so many counts (5)\n"
                            "  --json         one JSON object a row\n";

static void misuse(const char *option, const char *value, const char *wanted)
{
    fprintf(stderr, "bench_gemm: --%s: \"%s\" is not %s\n", option, value, wanted);
    exit(2);
}

static uint32_t number(const char *option, const char *value, uint32_t least, uint32_t most)
{
    char *end, wanted[64];
    errno = 0;
    const unsigned long v = strtoul(value, &end, 10);
    if (errno || *end || end == value || *value == '-' || v < least || v > most) {
        snprintf(wanted, sizeof wanted, "a number from %u to %u", least, most);
        misuse(option, value, wanted);
    }
    return (uint32_t)v;
}

static options parse(int argc, char **argv)
{
    static const struct option table[] = {
        {"m", required_argument, NULL, 'm'},
        {"n", required_argument, NULL, 'n'},
        {"k", required_argument, NULL, 'k'},
        {"group", required_argument, NULL, 'g'},
        {"isa", required_argument, NULL, 'i'},
        {"rounds", required_argument, NULL, 'r'},
        {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    options o = {.group = 128, .rounds = 5};
    for (int c; (c = getopt_long(argc, argv, "h", table, NULL)) != -1;) {
        switch (c) {
        case 'm':
            o.m = number("m", optarg, 1, 1 << 16);
            break;
        case 'n':
            o.n = number("n", optarg, 1, 1 << 20);
            break;
        case 'k':
            o.k = number("k", optarg, 1, SQ_MAX_K);
            break;
        case 'g':
            o.group = number("group", optarg, 0, SQ_MAX_K);
            if (o.group % SQ_PANEL_K) misuse("group", optarg, "a multiple of 32");
            break;
        case 'r':
            o.rounds = number("rounds", optarg, 1, 1000);
            break;
        case 'j':
            o.json = true;
            break;
        case 'i':
            o.isa = optarg;
            break;
        case 'h':
            fputs(usage, stdout);
            exit(0);
        default:
            fputs(usage, stderr);
            exit(2);
        }
    }
    if (optind < argc) {
        fprintf(stderr, "bench_gemm: takes no \"%s\"\n%s", argv[optind], usage);
        exit(2);
    }
    if (o.isa && !sq_kernels_get(o.isa)) misuse("isa", o.isa, "a table that this CPU runs");
    return o;
}

int main(int argc, char **argv)
{
    const options o = parse(argc, argv);
    run_all(&o);
    return 0;
}
