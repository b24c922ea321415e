/*
 * What the two halves of squint bench share.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQUINT_BENCH_H
#define SQUINT_BENCH_H

#include "runtime/squint.h"

#include <stdbool.h>

typedef struct bench_options {
    squint_model_options model;
    squint_session_options session;
    unsigned reps;
    bool json;
    double budget_ms; /* of a made model's prefill; 0: none */
} bench_options;

enum { BENCH_SHAPES = 3, BENCH_TYPES = 2, BENCH_MODES = 7, BENCH_MAX_LAYERS = 32 };

/* What is asked of a made model: indices into the lists below. One past its types and modes means all of them. */
typedef struct bench_made_options {
    unsigned shape, type, mode;
    unsigned n_layers, n_vision, n_text; /* n_vision 0: the shape's own */
} bench_made_options;

/* NULL at the end; "both" types and "all" modes before it. */
extern const char *const bench_shape_words[], *const bench_type_words[], *const bench_mode_words[];

/** Prefill of a made model, dense and in the mode asked for. Returns the exit status. */
int bench_made(const bench_made_options *made, const bench_options *o);

#endif
