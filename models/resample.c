/*
 * Pictures and maps of other sides within networks.
 * SPDX-License-Identifier: MIT
 */
#include "models/resample.h"
#include "simd/tap.h"

/* ---- planes ---- */

typedef struct plane_job {
    const float *in;
    float *out;
    uint32_t side_in, side_out;
    bool align_corners;
} plane_job;

/* A row of one of the three planes. */
static void resample_plane_row(void *ctx, unsigned chunk, unsigned worker)
{
    (void)worker;
    const plane_job *const j = ctx;
    const sq_tap y = sq_bilinear_tap(chunk % j->side_out, j->side_in, j->side_out, j->align_corners);
    const float *const plane = j->in + (size_t)(chunk / j->side_out) * j->side_in * j->side_in;
    const float *const above = plane + (size_t)y.low * j->side_in, *const below = plane + (size_t)y.high * j->side_in;
    float *const out = j->out + (size_t)chunk * j->side_out;
    for (uint32_t at = 0; at < j->side_out; at++) {
        const sq_tap x = sq_bilinear_tap(at, j->side_in, j->side_out, j->align_corners);
        out[at] = sq_lerp(x, y, above[x.low], above[x.high], below[x.low], below[x.high]);
    }
}

void sq_resample_picture(sq_pool *pool, const float *in, uint32_t side_in, float *out, uint32_t side_out,
                         bool align_corners)
{
    plane_job job = {in, out, side_in, side_out, align_corners};
    sq_pool_run(pool, 3 * side_out, resample_plane_row, &job);
}

/* ---- tokens ---- */

const float *sq_match_tokens(sq_compute *c, const float *in, uint32_t side_in, float *out, uint32_t side_out,
                             uint32_t d)
{
    const sq_resize_map r = {.by = side_in < side_out ? SQ_RESIZE_CORNERS : SQ_RESIZE_MEANS,
                             .map = in,
                             .width = side_in,
                             .height = side_in,
                             .channels = d,
                             .out_width = side_out,
                             .out_height = side_out,
                             .out_row = side_out,
                             .out = out};
    if (side_in == side_out) return in;
    sq_resize(c, &r);
    return out;
}
