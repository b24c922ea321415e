/*
 * p-MoD's decoder in double precision, written from its formulas: one token after another, no gather, no cache.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQ_TEST_REFERENCE_H
#define SQ_TEST_REFERENCE_H

#include "tests/fixture.h"

enum { REFERENCE_MAX_TOKENS = 64, REFERENCE_MAX_LAYERS = 32 };

/* What came of a sequence whose vision tokens are all routed together. */
typedef struct reference {
    double *x;                                             /* [n][d] after the last layer */
    double *logits;                                        /* [n][FIXTURE_VOCAB] */
    uint32_t n_kv[REFERENCE_MAX_LAYERS];                   /* tokens that each layer runs */
    bool runs[REFERENCE_MAX_LAYERS][REFERENCE_MAX_TOKENS]; /* which ones */
} reference;

/** @param vision  rows of d for the SQ_IMAGE_TOKENs in ids */
void reference_run(reference *r, const fixture *f, const uint32_t *ids, uint32_t n, const float *vision);
void reference_free(reference *r);

#endif
