/*
 * Names of stages, and contests.
 * SPDX-License-Identifier: MIT
 */
#include "tools/squint/traced.h"

#include "models/llava.h"

#include <math.h>
#include <stdio.h>

static unsigned last(unsigned count) { return count ? count - 1 : 0; }

bool traced_name(traced_images *images, sq_trace_what what, int layer, char name[STAGE_NAME])
{
    if (what == SQ_TRACE_PIXELS) images->seen++;
    if (what == SQ_TRACE_MINED) images->mined++;
    const unsigned image = last(images->seen);
    int n = 0;
    switch (what) {
    case SQ_TRACE_PIXELS:
        n = snprintf(name, STAGE_NAME, "pixels.%u", image);
        break;
    case SQ_TRACE_PATCHES:
        n = snprintf(name, STAGE_NAME, "tower.%u.embd", image);
        break;
    case SQ_TRACE_TOWER_LAYER:
        n = snprintf(name, STAGE_NAME, "tower.%u.blk.%d", image, layer);
        break;
    case SQ_TRACE_TOWER:
        n = snprintf(name, STAGE_NAME, "tower.%u.out", image);
        break;
    case SQ_TRACE_SLOW:
        n = snprintf(name, STAGE_NAME, "slow.stage.%d", layer);
        break;
    case SQ_TRACE_ADAPTER:
        n = snprintf(name, STAGE_NAME, "adapter.%d", layer);
        break;
    case SQ_TRACE_MINED:
        n = snprintf(name, STAGE_NAME, "mined.%u", last(images->mined));
        break;
    case SQ_TRACE_PROJECTED:
        n = snprintf(name, STAGE_NAME, "projected");
        break;
    case SQ_TRACE_EMBEDDED:
        n = snprintf(name, STAGE_NAME, "embd");
        break;
    case SQ_TRACE_LAYER:
        n = snprintf(name, STAGE_NAME, "blk.%d", layer);
        break;
    case SQ_TRACE_SCORES:
        n = snprintf(name, STAGE_NAME, "blk.%d.scores", layer);
        break;
    case SQ_TRACE_WEIGHTS:
        n = snprintf(name, STAGE_NAME, "blk.%d.weights", layer);
        break;
    case SQ_TRACE_KEPT:
        n = snprintf(name, STAGE_NAME, "blk.%d.kept", layer);
        break;
    case SQ_TRACE_LOGITS:
        n = snprintf(name, STAGE_NAME, "logits");
        break;
    case SQ_TRACE_QKV:
        break;
    }
    return n > 0;
}

/* Places of the n rows that have scores: all, the vision tokens, or those of high resolution. */
static void place(const squint_session *s, const uint32_t *ids, uint32_t total, const float *z, uint32_t n, double *out)
{
    uint32_t image_at = 0;
    while (image_at < total && ids[image_at] != SQ_IMAGE_TOKEN)
        image_at++;
    const uint32_t vision = image_at < total ? s->n_vision : 0;
    const uint32_t first = n == total ? 0 : image_at + vision - n;
    for (uint32_t i = 0; i < total; i++)
        out[i] = (double)NAN;
    for (uint32_t i = 0; i < n && (n == total || n <= vision); i++)
        out[first + i] = (double)z[i];
}

void traced_scores(const squint_session *s, const uint32_t *ids, uint32_t n, const float *z, uint32_t n_scores,
                   double *out)
{
    const sq_mode *const mode = &sq_llava_of(s)->decoder.mode;
    place(s, ids, n, z, n_scores, out);
    for (uint32_t i = 0; i < n && mode->select == SQ_SELECT_CAPACITY; i++)
        if (mode->target == SQ_TARGET_VISION ? ids[i] != SQ_IMAGE_TOKEN : i >= mode->region) out[i] = (double)NAN;
}

stage_contest traced_contest(const squint_session *s, uint32_t n, const double *scores)
{
    const sq_mode *const mode = &sq_llava_of(s)->decoder.mode;
    const double p = (double)mode->prefill_threshold;
    return (stage_contest){
        .n = n, .score = scores, .threshold = mode->select == SQ_SELECT_THRESHOLD ? log(p / (1 - p)) : (double)NAN};
}
