/*
 * common: what the benchmarks share. Options, clocks, memory, threads, the peaks of the instruction sets, reports.
 * SPDX-License-Identifier: MIT
 *
 * A benchmark that can't go on says so and ends: status 1, or 2 when its command line is wrong.
 */
#ifndef SQ_BENCH_COMMON_H
#define SQ_BENCH_COMMON_H

#include "runtime/base.h"
#include "simd/peak.h"
#include "simd/simd.h"

/* ---- Command line ------------------------------------------------------------------------ */

/* One of number, text and flag is set. */
typedef struct bench_option {
    const char *name; /* NULL ends a list */
    const char *help;
    uint32_t *number; /* takes a number from least to most */
    uint32_t least, most;
    const char **text; /* takes a text */
    bool *flag;        /* takes nothing */
} bench_option;

/** Ends the program: "PROGRAM: --OPTION: "VALUE" is not WANTED". */
_Noreturn void bench_misuse(const char *program, const char *option, const char *value, const char *wanted);
/** Reads the command line into what the options point at; --help prints them. */
void bench_parse(const char *program, const bench_option *options, int argc, char **argv);
/** Ends the program unless isa is NULL or a table that this CPU runs. */
void bench_check_isa(const char *program, const char *isa);
/** Ends the program unless the option is NULL, "int8" or "int4". */
void bench_check_type(const char *program, const char *option);
/** Is this the type that the option names? NULL names all. */
bool bench_wants_type(const char *option, sq_panel_type type);

/* ---- Clock, memory, threads -------------------------------------------------------------- */

/** Milliseconds. One thread: processor time, so that the work of others does not count. More: the wall's. */
double bench_ms(unsigned threads);
/** 64-byte aligned, for the caller to free(). */
void *bench_take(size_t bytes);
/** The same bytes for the same count; small numbers, so that no scale made of them is a NaN. */
void bench_fill(void *to, size_t bytes);
/** Uniform in [-1, 1), the same for the same count. */
void bench_fill_floats(float *x, size_t n);
sq_pool *bench_pool(unsigned threads);
/** *best = max(*best, work / ms / 10^6): 10^9 multiply-adds or bytes a second. */
void bench_keep_best(double *best, double work, double ms);

/* ---- Peaks ------------------------------------------------------------------------------- */

/* The fastest that a core runs the instructions of a table's kernels; NULL where no loop measures them. */
typedef struct bench_peaks {
    const char *isa;
    sq_peak_fn *i8, *i4, *f32;
} bench_peaks;

const bench_peaks *bench_peaks_of(const char *isa);
/** One round of a few milliseconds on all threads of the pool, into *best as bench_keep_best() does; nothing for NULL.
 */
void bench_peak_round(double *best, sq_peak_fn *peak, sq_pool *pool);

/* ---- Reading ----------------------------------------------------------------------------- */

/** Reads the whole 256 KiB of `bytes` at `memory` with all threads of the pool, and does nothing else; by the wall's
 *  clock, into *best as bench_keep_best() does. */
void bench_read_round(double *best, const uint8_t *memory, size_t bytes, sq_pool *pool);

/* ---- Report ------------------------------------------------------------------------------ */

/** "int8", "int4-g128": for a column. Returns name. */
const char *bench_type_name(const sq_panels *w, char name[16]);

enum { BENCH_TEXT = -1 };

typedef struct bench_column {
    const char *name; /* heading, and key in JSON */
    int width;        /* in the table; 0: only in JSON */
    int decimals;     /* or BENCH_TEXT */
} bench_column;

typedef struct bench_cell {
    const char *text;
    double number; /* NAN: not known */
} bench_cell;

/** Headings; nothing in JSON. */
void bench_head(const bench_column *columns, size_t n, bool json);
/** One line of the table, or one JSON object. */
void bench_row(const bench_column *columns, const bench_cell *cells, size_t n, bool json);
/** number / of, NAN unless both are above 0. */
double bench_ratio(double number, double of);
/** NAN for 0: a rate that was not measured. */
double bench_known(double rate);

#endif
