/*
 * squint synth: what a made-up model of a family consists of.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQUINT_SYNTH_H
#define SQUINT_SYNTH_H

#include "runtime/gguf.h"

typedef enum synth_family {
    SYNTH_LLAVA15,
    SYNTH_LLAVANEXT,
    SYNTH_PMOD15,
    SYNTH_PMODNEXT,
    SYNTH_GAMMA_HR,
    SYNTH_LLAVA_HR_X,
    SYNTH_GAMMA_MGM,
    SYNTH_FAMILIES,
} synth_family;

typedef enum synth_shape { SYNTH_7B, SYNTH_13B, SYNTH_TINY, SYNTH_SHAPES } synth_shape;

extern const char *const synth_family_words[], *const synth_shape_words[]; /* NULL at the end */

/* Weights of mean 0 and this deviation, or around `mean`. */
typedef struct synth_tensor {
    char name[64];
    uint32_t n_dims;
    uint64_t ne[SQ_GGUF_MAX_DIMS]; /* fastest first */
    float mean, deviation;
    bool marks;   /* the first element of each row is `mark`: a matrix's column, a vector's first */
    bool signs;   /* either sign, at random */
    bool opposed; /* but -mark in every second row */
    bool silent;  /* all of the first row is 0 */
    float mark;
} synth_tensor;

/** All tensors in the order of a converted checkpoint's; *n of them, to be freed. */
synth_tensor *synth_tensors(synth_family family, synth_shape shape, size_t *n);
/** The keys of the model; those that tell of the weights' type are the caller's. */
void synth_put_keys(sq_gguf_writer *w, synth_family family, synth_shape shape, uint64_t seed);

#endif
