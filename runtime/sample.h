/*
 * Choosing the next token from logits.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQ_SAMPLE_H
#define SQ_SAMPLE_H

#include "runtime/base.h"

typedef struct sq_sampler {
    float temperature; /* 0: greedy, the rest is ignored */
    uint32_t top_k;    /* 0: off */
    float top_p;       /* 0: off */
    float min_p;       /* 0: off */
    uint64_t state[4]; /* xoshiro256**, seeded by sq_sampler_seed() */
} sq_sampler;

/** Any seed, 0 included, gives a sequence of its own (splitmix64). */
void sq_sampler_seed(sq_sampler *s, uint64_t seed);

typedef struct sq_candidate {
    float p; /* logit, then probability */
    uint32_t id;
} sq_candidate;

/**
 * Temperature, then top-k, then top-p (smallest set whose probability reaches top_p, over the rest
 * renormalised), then min-p (at least min_p times the best), then one draw. Greedy takes the largest
 * logit, lowest id on ties. NaN is never chosen unless there is nothing else (then id 0), -infinity only when all
 * else is NaN; a +infinity is chosen without a draw. n >= 1, O(n) and O(log n) for each token kept.
 *
 * @param scratch  n candidates; not used when greedy
 */
uint32_t sq_sample(sq_sampler *s, const float *logits, uint32_t n, sq_candidate *scratch);

#endif
