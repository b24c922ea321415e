/*
 * common: what the benchmarks share.
 * SPDX-License-Identifier: MIT
 */
#include "bench/common.h"

#include "config.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- Command line ------------------------------------------------------------------------ */

enum { MAX_OPTIONS = 24 };

void bench_misuse(const char *program, const char *option, const char *value, const char *wanted)
{
    fprintf(stderr, "%s: --%s: \"%s\" is not %s\n", program, option, value, wanted);
    exit(2);
}

static void print_usage(FILE *to, const char *program, const bench_option *options)
{
    fprintf(to, "usage: %s [OPTIONS]\n", program);
    for (const bench_option *o = options; o->name; o++)
        fprintf(to, "  --%-9s %-4s  %s\n", o->name, o->number ? "N" : o->text ? "NAME" : "", o->help);
}

static uint32_t parse_number(const char *program, const bench_option *o, const char *value)
{
    char *end, wanted[64];
    errno = 0;
    const unsigned long v = strtoul(value, &end, 10);
    if (errno || *end || end == value || *value == '-' || v < o->least || v > o->most) {
        snprintf(wanted, sizeof wanted, "a number from %u to %u", o->least, o->most);
        bench_misuse(program, o->name, value, wanted);
    }
    return (uint32_t)v;
}

void bench_parse(const char *program, const bench_option *options, int argc, char **argv)
{
    struct option table[MAX_OPTIONS + 2] = {{0}};
    int n = 0;
    for (; options[n].name; n++)
        table[n] = (struct option){options[n].name, options[n].flag ? no_argument : required_argument, NULL, 0};
    table[n] = (struct option){"help", no_argument, NULL, 0};
    for (int c, at; (c = getopt_long(argc, argv, "", table, &at)) != -1;) {
        if (c || at == n) {
            print_usage(c ? stderr : stdout, program, options);
            exit(c ? 2 : 0);
        }
        const bench_option *o = &options[at];
        if (o->number) *o->number = parse_number(program, o, optarg);
        if (o->text) *o->text = optarg;
        if (o->flag) *o->flag = true;
    }
    if (optind == argc) return;
    fprintf(stderr, "%s: takes no \"%s\"\n", program, argv[optind]);
    exit(2);
}

void bench_check_isa(const char *program, const char *isa)
{
    if (isa && !sq_kernels_get(isa)) bench_misuse(program, "isa", isa, "a table that this CPU runs");
}

void bench_check_type(const char *program, const char *option)
{
    if (bench_wants_type(option, SQ_PANEL_I8) || bench_wants_type(option, SQ_PANEL_I4)) return;
    bench_misuse(program, "type", option, "int8 or int4");
}

bool bench_wants_type(const char *option, sq_panel_type type)
{
    return !option || !strcmp(option, type == SQ_PANEL_I4 ? "int4" : "int8");
}

/* ---- Clock, memory, threads -------------------------------------------------------------- */

double bench_ms(unsigned threads)
{
    struct timespec t;
    clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

void *bench_take(size_t bytes)
{
    void *p = NULL;
    if (!posix_memalign(&p, SQ_PANEL_ALIGN, bytes + 1)) return p;
    fprintf(stderr, "no memory for %zu bytes\n", bytes);
    exit(1);
}

static uint64_t next_random(uint64_t *state) { return *state = *state * 6364136223846793005u + 1442695040888963407u; }

void bench_fill(void *to, size_t bytes)
{
    uint8_t *const out = to;
    uint64_t state = 1;
    for (size_t i = 0; i < bytes; i++)
        out[i] = (uint8_t)(next_random(&state) >> 58 | 1);
}

void bench_fill_floats(float *x, size_t n)
{
    uint64_t state = 1;
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(next_random(&state) >> 40) * 0x1p-23f - 1.0f;
}

sq_pool *bench_pool(unsigned threads)
{
    const squint_allocator alloc = sq_allocator_or_default(NULL);
    sq_pool *pool;
    squint_msg msg;
    if (!sq_pool_open(&pool, threads, &alloc, &msg)) return pool;
    fprintf(stderr, "%s\n", msg.text);
    exit(1);
}

void bench_keep_best(double *best, double work, double ms) { *best = fmax(*best, work * 1e-6 / ms); }

/* ---- Peaks ------------------------------------------------------------------------------- */

enum {
    PEAK_ROUNDS = 1 << 19,
    PEAK_CHUNKS = 4, /* a thread, so that threads end together */
    PEAK_TURNS = 4,  /* a round: on a busy machine some have all cores */
};

const bench_peaks *bench_peaks_of(const char *isa)
{
    static const bench_peaks peaks[] = {
#if SQ_ARCH_X86_64
        {"avxvnni", sq_peak_avxvnni, sq_peak_avxvnni, sq_peak_f32_avx2},
        {"avx512", sq_peak_avx512vnni, sq_peak_avx512vnni, sq_peak_f32_avx512},
        {"avx2", sq_peak_i8_avx2, sq_peak_i4_avx2, sq_peak_f32_avx2},
#elif SQ_ARCH_AARCH64
        {"i8mm", sq_peak_i8mm, sq_peak_i8mm, NULL},
        {"dotprod", sq_peak_dotprod, sq_peak_dotprod, NULL},
        {"neon", sq_peak_i8_neon, sq_peak_i4_neon, NULL},
#endif
        {0}, /* plain C is whatever the compiler made of it */
    };
    const bench_peaks *p = peaks;
    while (p->isa && strcmp(p->isa, isa))
        p++;
    return p;
}

typedef struct peak_job {
    sq_peak_fn *peak;
    double macs; /* of one chunk: all are the same */
} peak_job;

static void peak_chunk(void *ctx, unsigned chunk, unsigned worker)
{
    (void)worker;
    peak_job *const job = ctx;
    const double macs = job->peak(PEAK_ROUNDS / PEAK_CHUNKS);
    if (!chunk) job->macs = macs;
}

void bench_peak_round(double *best, sq_peak_fn *peak, sq_pool *pool)
{
    if (!peak) return;
    const unsigned threads = sq_pool_threads(pool);
    peak_job job = {.peak = peak};
    for (int turn = 0; turn < PEAK_TURNS; turn++) {
        const double start = bench_ms(threads);
        sq_pool_run(pool, PEAK_CHUNKS * threads, peak_chunk, &job);
        bench_keep_best(best, job.macs * PEAK_CHUNKS * threads, bench_ms(threads) - start);
    }
}

/* ---- Reading ----------------------------------------------------------------------------- */

enum {
    READ_CHUNK = 1 << 18,
    READ_STREAMS = 4, /* a core follows several at once: half as much again as one gives */
    READ_AHEAD = 1024,
};

typedef struct read_job {
    const uint8_t *memory;
    _Atomic uint64_t sum; /* of all that was read, so that no read can be left out */
} read_job;

static void read_line(const uint8_t *line, uint64_t sum[8])
{
    const uint64_t *const words = (const void *)line;
    __builtin_prefetch(line + READ_AHEAD);
    for (size_t i = 0; i < 8; i++)
        sum[i] += words[i];
}

static void read_chunk(void *ctx, unsigned chunk, unsigned worker)
{
    (void)worker;
    read_job *const job = ctx;
    const uint8_t *const from = job->memory + (size_t)chunk * READ_CHUNK;
    uint64_t sum[8] = {0}, total = 0;
    for (size_t at = 0; at < READ_CHUNK / READ_STREAMS; at += 64) {
        for (size_t stream = 0; stream < READ_STREAMS; stream++)
            read_line(from + stream * (READ_CHUNK / READ_STREAMS) + at, sum);
    }
    for (size_t i = 0; i < 8; i++)
        total += sum[i];
    job->sum += total;
}

void bench_read_round(double *best, const uint8_t *memory, size_t bytes, sq_pool *pool)
{
    const unsigned chunks = (unsigned)(bytes / READ_CHUNK);
    read_job job = {.memory = memory};
    const double start = sq_now_ms();
    sq_pool_run(pool, chunks, read_chunk, &job);
    bench_keep_best(best, (double)chunks * READ_CHUNK, sq_now_ms() - start);
}

/* ---- Report ------------------------------------------------------------------------------ */

const char *bench_type_name(const sq_panels *w, char name[16])
{
    snprintf(name, 16, w->group ? "%s-g%u" : "%s", w->type == SQ_PANEL_I4 ? "int4" : "int8", w->group);
    return name;
}

static void print_text_cell(const bench_column *column, const bench_cell *cell)
{
    if (column->decimals == BENCH_TEXT)
        printf("%-*s", column->width, cell->text);
    else if (isnan(cell->number))
        printf("%*s", column->width, "-");
    else
        printf("%*.*f", column->width, column->decimals, cell->number);
}

static void print_json_cell(const bench_column *column, const bench_cell *cell)
{
    printf("\"%s\": ", column->name);
    if (column->decimals != BENCH_TEXT && isnan(cell->number))
        printf("null");
    else if (column->decimals != BENCH_TEXT)
        printf("%.*f", column->decimals, cell->number);
    else if (cell->text)
        printf("\"%s\"", cell->text);
    else
        printf("null");
}

void bench_head(const bench_column *columns, size_t n, bool json)
{
    if (json) return;
    for (size_t i = 0; i < n; i++) {
        const int width = columns[i].decimals == BENCH_TEXT ? -columns[i].width : columns[i].width;
        if (width) printf("%*s ", width, columns[i].name);
    }
    putchar('\n');
}

void bench_row(const bench_column *columns, const bench_cell *cells, size_t n, bool json)
{
    for (size_t i = 0; i < n; i++) {
        if (json) {
            fputs(i ? ", " : "{", stdout);
            print_json_cell(&columns[i], &cells[i]);
        } else if (columns[i].width) {
            print_text_cell(&columns[i], &cells[i]);
            putchar(' ');
        }
    }
    puts(json ? "}" : "");
    fflush(stdout);
}

double bench_ratio(double number, double of) { return number > 0 && of > 0 ? number / of : (double)NAN; }
double bench_known(double rate) { return rate > 0 ? rate : (double)NAN; }
