/*
 * Bilinear resampling within networks, as PyTorch's interpolate() does it: no antialiasing.
 * SPDX-License-Identifier: MIT
 */
#include "models/resample.h"

sq_tap sq_bilinear_tap(uint32_t at, uint32_t in, uint32_t out, bool align_corners)
{
    float src;
    if (align_corners)
        src = out > 1 ? (float)(in - 1) / (float)(out - 1) * (float)at : 0.0f;
    else
        src = (float)in / (float)out * ((float)at + 0.5f) - 0.5f;
    if (!(src > 0.0f)) src = 0.0f;
    uint32_t low = (uint32_t)src;
    if (low > in - 1) low = in - 1;
    const uint32_t high = low + 1 < in ? low + 1 : low;
    return (sq_tap){low, high, src - (float)low};
}

void sq_lerp_rows(const float *const from[4], sq_tap x, sq_tap y, uint32_t n, float *restrict out)
{
    const float right = x.high_share, left = 1.0f - right, below = y.high_share, above = 1.0f - below;
    const float *const a = from[0], *const b = from[1], *const c = from[2], *const d = from[3];
    for (uint32_t i = 0; i < n; i++)
        out[i] = above * (left * a[i] + right * b[i]) + below * (left * c[i] + right * d[i]);
}

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
        const float *const from[] = {above + x.low, above + x.high, below + x.low, below + x.high};
        sq_lerp_rows(from, x, y, 1, out + at);
    }
}

void sq_resample_picture(sq_pool *pool, const float *in, uint32_t side_in, float *out, uint32_t side_out,
                         bool align_corners)
{
    plane_job job = {in, out, side_in, side_out, align_corners};
    sq_pool_run(pool, 3 * side_out, resample_plane_row, &job);
}

/* ---- tokens ---- */

typedef struct token_job {
    const float *in;
    float *out;
    uint32_t side_in, side_out, d;
} token_job;

static const float *token(const token_job *j, uint32_t y, uint32_t x)
{
    return j->in + ((size_t)y * j->side_in + x) * j->d;
}

static void spread_row(void *ctx, unsigned row, unsigned worker)
{
    (void)worker;
    const token_job *const j = ctx;
    const sq_tap y = sq_bilinear_tap(row, j->side_in, j->side_out, true);
    float *out = j->out + (size_t)row * j->side_out * j->d;
    for (uint32_t at = 0; at < j->side_out; at++, out += j->d) {
        const sq_tap x = sq_bilinear_tap(at, j->side_in, j->side_out, true);
        const float *const from[] = {token(j, y.low, x.low), token(j, y.low, x.high), token(j, y.high, x.low),
                                     token(j, y.high, x.high)};
        sq_lerp_rows(from, x, y, j->d, out);
    }
}

static void pool_row(void *ctx, unsigned row, unsigned worker)
{
    (void)worker;
    const token_job *const j = ctx;
    const uint32_t ratio = j->side_in / j->side_out;
    const float share = 1.0f / (float)(ratio * ratio);
    float *out = j->out + (size_t)row * j->side_out * j->d;
    for (uint32_t x = 0; x < j->side_out; x++, out += j->d)
        for (uint32_t i = 0; i < j->d; i++) {
            float sum = 0.0f;
            for (uint32_t t = 0; t < ratio * ratio; t++)
                sum += token(j, row * ratio + t / ratio, x * ratio + t % ratio)[i];
            out[i] = sum * share;
        }
}

const float *sq_match_tokens(sq_pool *pool, const float *in, uint32_t side_in, float *out, uint32_t side_out,
                             uint32_t d)
{
    token_job job = {in, out, side_in, side_out, d};
    if (side_in == side_out) return in;
    sq_pool_run(pool, side_out, side_in < side_out ? spread_row : pool_row, &job);
    return out;
}
