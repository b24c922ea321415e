/*
 * What every subcommand shares: options and their help, messages, numbers, the default model, JSON lines.
 * SPDX-License-Identifier: MIT
 *
 * The contract of the command line: results on stdout and nothing else there; messages, progress and
 * timings on stderr; exit 0 done, 1 failed, 2 misused, 130 interrupted.
 */
#ifndef SQUINT_CLI_H
#define SQUINT_CLI_H

#include "runtime/squint.h"

#include <cjson/cJSON.h>
#include <stdio.h>

enum { CLI_DONE = 0, CLI_FAILED = 1, CLI_MISUSED = 2, CLI_INTERRUPTED = 130 };

#if defined(__GNUC__)
#define CLI_PRINTF(f, a) __attribute__((format(printf, f, a)))
#else
#define CLI_PRINTF(f, a)
#endif

/* ---- Options ------------------------------------------------------------------------------- */

typedef enum cli_kind {
    CLI_FLAG,   /* bool, set by its presence */
    CLI_TEXT,   /* const char * */
    CLI_NUMBER, /* unsigned, in [min, max] */
    CLI_SEED,   /* uint64_t, any */
    CLI_REAL,   /* float, in [min, max] */
    CLI_CHOICE, /* unsigned, index into words */
    CLI_TIME,   /* double, milliseconds above 0 */
} cli_kind;

/* One row of a command's table; `out` holds the default beforehand. */
typedef struct cli_option {
    char letter;      /* 0: none */
    const char *name; /* long, without dashes; NULL ends the table */
    cli_kind kind;
    void *out;
    const char *value; /* what the help calls its value */
    const char *help;  /* says the default */
    double min, max;
    const char *note;         /* of a number: said with its range, "0: one per core" */
    const char *const *words; /* of a choice, NULL at the end */
} cli_option;

typedef struct cli_command {
    const char *name;
    const char *operands; /* "IMAGE..." */
    const char *summary;  /* half a line, for the list of commands */
    const char *details;  /* paragraphs of the command's own help */
    int (*run)(const struct cli_command *self, int argc, char **argv);
} cli_command;

extern const cli_command caption_command, info_command, quantize_command, tokenize_command, eval_command, bench_command,
    arank_command, look_command, compare_command, merge_command, parity_command, perplexity_command, synth_command;

/**
 * Reads the options of a command. Options and operands may come in any order; "--" ends options.
 *
 * @param argv     argv[0] is the command's name; operands are moved to its end
 * @param first    index of the first operand
 * @param status   what to exit with when the answer is false: help was printed, or an option is wrong
 */
bool cli_parse(const cli_command *command, const cli_option *options, int argc, char **argv, int *first, int *status);

/** The whole string as a number in [min, max]; no sign, no spaces, no suffix. */
bool cli_number(const char *text, uint64_t min, uint64_t max, uint64_t *out);
bool cli_real(const char *text, double min, double max, double *out);
/** "900ms" or "1.5s", above 0 and at most a day, as milliseconds. */
bool cli_time(const char *text, double *ms);

/* Rows of the table. */
#define CLI_ROW_FLAG(l, n, o, h)                                                                                       \
    {                                                                                                                  \
        .letter = l, .name = n, .kind = CLI_FLAG, .out = o, .help = h                                                  \
    }
#define CLI_ROW_TEXT(l, n, o, v, h)                                                                                    \
    {                                                                                                                  \
        .letter = l, .name = n, .kind = CLI_TEXT, .out = o, .value = v, .help = h                                      \
    }
#define CLI_ROW_SEED(l, n, o, h)                                                                                       \
    {                                                                                                                  \
        .letter = l, .name = n, .kind = CLI_SEED, .out = o, .value = "N", .help = h                                    \
    }
#define CLI_ROW_CHOICE(l, n, o, w, v, h)                                                                               \
    {                                                                                                                  \
        .letter = l, .name = n, .kind = CLI_CHOICE, .out = o, .value = v, .help = h, .words = w                        \
    }
#define CLI_ROW_RANGE(k, l, n, o, low, high, nt, v, h)                                                                 \
    {                                                                                                                  \
        .letter = l, .name = n, .kind = k, .out = o, .value = v, .help = h, .min = low, .max = high, .note = nt        \
    }
#define CLI_ROW_NUMBER(...) CLI_ROW_RANGE(CLI_NUMBER, __VA_ARGS__)
#define CLI_ROW_REAL(...)   CLI_ROW_RANGE(CLI_REAL, __VA_ARGS__)
#define CLI_ROW_END                                                                                                    \
    {                                                                                                                  \
        .name = NULL                                                                                                   \
    }

/* Rows that several commands have. */
#define CLI_ROW_MODEL(path)                                                                                            \
    CLI_ROW_TEXT('m', "model", path, "FILE",                                                                           \
                 "model to use (default: $SQUINT_MODEL, else the one that came with squint)")
#define CLI_ROW_MMPROJ(path)                                                                                           \
    CLI_ROW_TEXT(0, "mmproj", path, "FILE", "its vision half, where the model is in two files, as llama.cpp has them")
#define CLI_ROW_THREADS(n)                                                                                             \
    CLI_ROW_NUMBER(0, "threads", n, 0, 256, "0: one per core", "N", "threads to work with (default: 0, one per core)")
#define CLI_ROW_ISA(isa)                                                                                               \
    CLI_ROW_TEXT(                                                                                                      \
        0, "isa", isa, "NAME",                                                                                         \
        "kernels to use: scalar, avx2, avxvnni, avx512, neon, dotprod, i8mm (default: $SQUINT_ISA, else the best here)")
#define CLI_ROW_DEVICE(device)                                                                                         \
    CLI_ROW_TEXT(                                                                                                      \
        0, "device", device, "NAME",                                                                                   \
        "what runs the model: cpu, cuda (a GPU of NVIDIA's); with weights of 4 or 2 bytes cpu:f32, cuda:f32, "         \
        "cuda:f16 (default: cpu)")
#define CLI_ROW_MODE(mode)                                                                                             \
    CLI_ROW_TEXT(0, "mode", mode, "NAME",                                                                              \
                 "how layers choose tokens: pmod, gamma-released, gamma-released-mgm, gamma-train, gamma-paper, "      \
                 "threshold, dense (default: as the model's file says)")
#define CLI_ROW_KV(kv)                                                                                                 \
    CLI_ROW_CHOICE(0, "kv", kv, cli_kv_words, "TYPE",                                                                  \
                   "keys and values as f16, q8 or f32 (default: auto, f32 for models of f32 weights, else f16)")
#define CLI_ROW_SCHEDULE(schedule)                                                                                     \
    CLI_ROW_TEXT(0, "schedule", schedule, "S",                                                                         \
                 "share of the vision tokens that routed layers keep: cos:MAX:MIN, linear:MAX:MIN, const:R, or "       \
                 "list:R,R,... with one for each layer (default: the model's)")
#define CLI_ROW_KEEP(keep)                                                                                             \
    CLI_ROW_REAL(0, "keep", keep, 0.001, 1000, "--schedule const:0 keeps none", "R",                                   \
                 "multiply these shares by R, none to more than 1 (default: 1)")
#define CLI_ROW_BUDGET(ms, h)                                                                                          \
    {                                                                                                                  \
        .name = "budget", .kind = CLI_TIME, .out = ms, .value = "TIME", .help = h                                      \
    }

extern const char *const cli_kv_words[]; /* indexed by squint_kv */

/* ---- Messages ------------------------------------------------------------------------------ */

/** A line "squint: ..." on stderr, control characters replaced; takes the progress bar away first. */
void cli_say(const char *format, ...) CLI_PRINTF(1, 2);
/** The same for misuse, with where to find help. Returns CLI_MISUSED. */
int cli_misuse(const cli_command *command, const char *format, ...) CLI_PRINTF(2, 3);
/** Tells a failure of the library; returns the exit status that it means. */
int cli_fail(squint_err err, const squint_msg *msg);
/** squint_model_options.on_note: tells it on stderr. */
void cli_note(void *unused, const char *text);
/** What runs a model: "avx512, 2 threads", "cpu:f32, avx512, 2 threads", "cuda (NVIDIA H200)". Returns out. */
const char *cli_runner(const squint_session *session, const squint_model *model, char out[160]);
/** Tells on stderr that a model does not run as its file says. */
void cli_tell_mode(const squint_model *model);
/** "812", "5.30 k", "2.91 M", "6.74 G"; and "812 bytes", "5.3 KiB", ... Return out. */
const char *cli_short_count(double n, char out[32]);
const char *cli_short_bytes(double n, char out[32]);
/** Flushes stdout; false, with a message, when it cannot be written. A reader that went away gets no message. */
bool cli_flush(void);
/** calloc() that ends the program with a message when there is no memory; never NULL. */
void *cli_alloc(size_t n, size_t size);
/** realloc() of n elements of the same kind. */
void *cli_grow(void *memory, size_t n, size_t size);

/* ---- Ctrl-C -------------------------------------------------------------------------------- */

/** Ctrl-C from now on: cli_interrupted() turns true and the session, if any, is cancelled. A second one ends the
 *  program. */
void cli_watch_interrupts(squint_session *session);
/** Back to the default; to be called before the session is closed. */
void cli_unwatch_interrupts(void);
bool cli_interrupted(void);

/* ---- Progress ------------------------------------------------------------------------------ */

/** Allows the bar if stderr is a terminal; before this call, and elsewhere, it is never drawn. */
void cli_bar_enable(void);
/** A bar with a label at `fraction` of its length, on one line rewritten in place. */
void cli_bar(const char *label, double fraction);
/** Takes the bar away, if there is one. */
void cli_bar_clear(void);

/* ---- Files --------------------------------------------------------------------------------- */

/** Tells where this program lies, for cli_model_path(). */
void cli_set_program(const char *argv0);
/** `given`, or the default model's path; NULL, with a message, when there is none. */
const char *cli_model_path(const char *given);
/** Do two names lead to one file? */
bool cli_same_file(const char *a, const char *b);
/**
 * To be asked before `output` is opened for writing, which would destroy a file that is read, or mapped.
 *
 * @param option  for messages
 * @param output  NULL: nothing is written
 * @param what    that the files are: "one of the pictures"
 * @param inputs  [n]; NULL entries are passed over
 * @return false, with a message, when output is one of them
 */
bool cli_spares(const char *option, const char *output, const char *what, const char *const *inputs, size_t n);
/** Standard input to its end, at most `cap` bytes; malloc'ed. SQUINT_OK or _IO. */
squint_err cli_read_stdin(size_t cap, uint8_t **data, size_t *size, squint_msg *msg);
/** One line without its newline into *line (grown as needed, freed by the caller); false at the end of the file
 *  or on a failure, which *failed tells (with a message). Lines over 16 MiB are failures. */
bool cli_read_line(FILE *f, const char *name, char **line, size_t *capacity, size_t *length, bool *failed);

/* ---- JSON ---------------------------------------------------------------------------------- */

/** Text of any bytes as UTF-8: what is none, and NUL, becomes U+FFFD, one for each broken-off character, as the
 *  library does it. `out` has room for 3 * bytes + 1. Returns its length. */
size_t cli_clean_text(const char *text, size_t bytes, char *out);
/** The same as a JSON string. */
cJSON *cli_json_text(const char *text, size_t bytes);
/** Adds a number rounded to `digits` places, so that 0.1 is printed as 0.1. */
void cli_json_number(cJSON *object, const char *key, double value, int digits);
cJSON *cli_json_ids(const uint32_t *ids, size_t n);
/** The same of a model that runs: "device", "isa", "threads". */
void cli_json_runner(cJSON *object, const squint_session *session, const squint_model *model);
/** Prints on one line and deletes. */
void cli_json_line(FILE *f, cJSON *json);

#endif
