/*
 * How devices are judged next to one another, and what comes of it over pictures and stages.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQUINT_PARITY_H
#define SQUINT_PARITY_H

#include "tools/squint/devices.h"
#include "tools/squint/stages.h"

#include <stdbool.h>

/* ---- Rules ----------------------------------------------------------------------------------- */

typedef enum parity_rule {
    PARITY_BITS, /* one order of all float operations on both sides: no difference */
    PARITY_NEAR, /* float32 on both sides, by different libraries: within budgets */
    PARITY_TOLD, /* what is rounded otherwise on both sides: not judged */
} parity_rule;

/* What a model's matrices are multiplied as on a device. */
typedef struct parity_numbers {
    bool cuda, whole, f32, f16; /* whole numbers, floats */
} parity_numbers;

/** @param panels, floats  does the file have matrices of whole numbers, of floats? */
parity_numbers parity_numbers_of(const named_device *d, bool panels, bool floats);
/**
 * Whole numbers have the same bits on all devices, and so has everything between the tables of one. Products of floats
 * do not, next to another device; in a file of both kinds the last bit of such a product decides how a later input is
 * rounded to a whole number: a convolution's weights off by one in the last place made of that 0.1 of a logit. That is
 * told. The towers' convolutions are of neither kind: they are floats in an order of their own (sq_load_ordered()).
 */
parity_rule parity_rule_of(const parity_numbers *reference, const parity_numbers *device);
/** What a rule allows, `given` having been asked for. */
stage_budgets parity_budgets(parity_rule rule, const stage_budgets *given);

/* ---- Greedy texts ---------------------------------------------------------------------------- */

/* What a device would say at each place, the reference's tokens before it. Up to the first place where both differ this
 * is the text that it says alone. */
typedef struct parity_text {
    uint32_t *id; /* [n] of the largest logit, the first of equals */
    double *lead; /* [n] of it over the next */
    size_t n;
} parity_text;

void parity_say(parity_text *t, const float *logits, uint32_t n_vocab);
void parity_text_free(parity_text *t);
/** The first place where they differ, or their length. */
size_t parity_text_same(const parity_text *a, const parity_text *b);

enum { PARITY_PIECE = 40 }; /* bytes of a token's text, in words, terminated */

/* ---- Sums ------------------------------------------------------------------------------------ */

typedef enum parity_group {
    PARITY_PIXELS,
    PARITY_PATCHES,
    PARITY_TOWER_LAYERS,
    PARITY_TOWER,
    PARITY_SLOW,
    PARITY_ADAPTERS,
    PARITY_MINED,
    PARITY_PROJECTED,
    PARITY_EMBEDDED,
    PARITY_LAYERS,
    PARITY_SCORES,
    PARITY_WEIGHTS,
    PARITY_KEPT,
    PARITY_LOGITS,
    PARITY_DECODED,
    PARITY_COUNTS,
    PARITY_GROUPS
} parity_group;

/* The worst of some stages. */
typedef struct parity_worst {
    size_t n, n_same; /* stages; those without a difference */
    double largest, relative, row, cosine;
    uint64_t n_both, n_either, n_others, n_ties; /* of sets */
    double farthest;
    stage at; /* where a row, or a set, is worst */
    size_t picture;
} parity_worst;

typedef struct parity_sum {
    parity_worst groups[PARITY_GROUPS];
    size_t n_stages, n_pictures;
    stage first; /* past its budget; STAGE_UNSEEN: none is */
    size_t first_picture;
    size_t n_tokens, n_same_texts;
    /* Of the first text that differs */
    size_t text_picture, text_at;
    char pieces[2][PARITY_PIECE]; /* the reference's, the device's */
    double leads[2];
} parity_sum;

void parity_add(parity_sum *sum, parity_group group, const stage *s, size_t picture);
/** The table, within 100 columns. */
void parity_print(const parity_sum *sum);

#endif
