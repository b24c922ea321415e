/*
 * What a session tells of its passes (sq_trace_what), as stages with names, and who competes for the places of a layer.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQUINT_TRACED_H
#define SQUINT_TRACED_H

#include "runtime/engine.h"
#include "tools/squint/stages.h"

/* Images of the front end so far. Clear it before a picture. */
typedef struct traced_images {
    unsigned seen, mined;
} traced_images;

/** Names a stage as dumps have it, "tower.0.blk.3"; squint compare lists them. false: nothing that is compared. */
bool traced_name(traced_images *images, sq_trace_what what, int layer, char name[STAGE_NAME]);

/**
 * Scores of a layer by position in the sequence; NaN for what is run in any case.
 * @param z    [n_scores] of those that have one, as SQ_TRACE_SCORES tells them
 * @param ids  [n] the sequence
 * @param out  [n]
 */
void traced_scores(const squint_session *s, const uint32_t *ids, uint32_t n, const float *z, uint32_t n_scores,
                   double *out);
stage_contest traced_contest(const squint_session *s, uint32_t n, const double *scores);

#endif
