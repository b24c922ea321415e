/*
 * panels: squint's own weight layout (drawn in quant.h): sizes, quantisers, repacking, reading back.
 * SPDX-License-Identifier: MIT
 *
 * Everything that writes a panel goes through put() and put_scale(), and everything that reads one
 * through get() and get_scale(): the layout is told there and nowhere else in this room.
 */
#include "quant/quant.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { LINE = 64, ZERO_I8 = 128, ZERO_I4 = 8 };

/* ---- Sizes ------------------------------------------------------------------------------- */

bool sq_panels_valid(const sq_panels *w)
{
    return (w->type == SQ_PANEL_I8 || w->type == SQ_PANEL_I4) && w->n >= 1 && w->n <= SQ_MAX_DIM && w->k >= 1 &&
           w->k <= SQ_MAX_K && w->group % SQ_PANEL_K == 0 && w->group <= SQ_MAX_K;
}

static uint32_t scale_rows(const sq_panels *w) { return w->group ? (w->k + w->group - 1) / w->group : 1; }

static size_t scale_bytes(const sq_panels *w)
{
    return (size_t)scale_rows(w) * SQ_PANEL_N * (w->group ? sizeof(uint16_t) : sizeof(float));
}

size_t sq_panel_weight_bytes(const sq_panels *w)
{
    const size_t bytes = (size_t)sq_round_up(w->k, SQ_PANEL_K) * SQ_PANEL_N;
    return w->type == SQ_PANEL_I4 ? bytes / 2 : bytes;
}

size_t sq_panel_bytes(const sq_panels *w)
{
    const size_t bytes = sq_panel_weight_bytes(w) + scale_bytes(w);
    return (bytes + SQ_PANEL_ALIGN - 1) / SQ_PANEL_ALIGN * SQ_PANEL_ALIGN;
}

size_t sq_panel_count(const sq_panels *w) { return ((size_t)w->n + SQ_PANEL_N - 1) / SQ_PANEL_N; }

size_t sq_panels_bytes(const sq_panels *w) { return sq_panel_count(w) * sq_panel_bytes(w); }

/* ---- One weight, one scale --------------------------------------------------------------- */

/* Weight k of channel c (of 16). The panel was cleared to q = 0 before. */
static void put(const sq_panels *w, uint8_t *panel, uint32_t k, uint32_t c, int q)
{
    if (w->type == SQ_PANEL_I8) {
        panel[(size_t)(k / 4) * LINE + c * 4 + k % 4] = (uint8_t)(q + ZERO_I8);
        return;
    }
    uint8_t *byte = &panel[(size_t)(k / 8) * LINE + c * 4 + k % 4];
    const unsigned shift = k & 4;
    *byte = (uint8_t)((*byte & ~(15u << shift)) | (unsigned)(q + ZERO_I4) << shift);
}

static int get(const sq_panels *w, const uint8_t *panel, uint32_t k, uint32_t c)
{
    if (w->type == SQ_PANEL_I8) return panel[(size_t)(k / 4) * LINE + c * 4 + k % 4] - ZERO_I8;
    return (panel[(size_t)(k / 8) * LINE + c * 4 + k % 4] >> (k & 4) & 15) - ZERO_I4;
}

static void put_scale_bits(const sq_panels *w, uint8_t *panel, uint32_t g, uint32_t c, uint16_t bits)
{
    memcpy(panel + sq_panel_weight_bytes(w) + ((size_t)g * SQ_PANEL_N + c) * sizeof bits, &bits, sizeof bits);
}

static void put_scale(const sq_panels *w, uint8_t *panel, uint32_t g, uint32_t c, float scale)
{
    if (w->group) {
        put_scale_bits(w, panel, g, c, sq_f32_to_f16(scale));
        return;
    }
    memcpy(panel + sq_panel_weight_bytes(w) + c * sizeof scale, &scale, sizeof scale);
}

static float get_scale(const sq_panels *w, const uint8_t *panel, uint32_t g, uint32_t c)
{
    const uint8_t *scales = panel + sq_panel_weight_bytes(w);
    if (!w->group) {
        float scale;
        memcpy(&scale, scales + c * sizeof scale, sizeof scale);
        return scale;
    }
    uint16_t bits;
    memcpy(&bits, scales + ((size_t)g * SQ_PANEL_N + c) * sizeof bits, sizeof bits);
    return sq_f16_to_f32(bits);
}

static void clear_panels(const sq_panels *w, uint8_t *out)
{
    const size_t weights = sq_panel_weight_bytes(w), all = sq_panel_bytes(w);
    for (size_t p = 0; p < sq_panel_count(w); p++, out += all) {
        memset(out, w->type == SQ_PANEL_I8 ? ZERO_I8 : ZERO_I4 * 0x11, weights);
        memset(out + weights, 0, all - weights);
    }
}

/* ---- Quantisers -------------------------------------------------------------------------- */

static float clamp(float v, float lo, float hi) { return v > lo ? (v < hi ? v : hi) : lo; }

/* The scale as the file will hold it: weights are rounded with that one. */
static float stored_scale(const sq_panels *w, float scale)
{
    return w->group ? sq_f16_to_f32(sq_f32_to_f16(clamp(scale, -65504.0f, 65504.0f))) : scale;
}

/* Too small a scale has no finite inverse; its weights are as good as zero. */
static float inverse(float scale) { return fabsf(scale) >= FLT_MIN ? 1.0f / scale : 0.0f; }

static float largest_magnitude(const float *x, uint32_t n)
{
    float most = 0.0f;
    for (uint32_t i = 0; i < n; i++)
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    return most;
}

/* Nearest int4, ties to even. Adding and taking away 1.5 * 2^23 leaves no bits behind the point. */
static float round_i4(float v)
{
    const float magic = 12582912.0f;
    return (clamp(v, -8.0f, 7.0f) + magic) - magic;
}

/* Squared error of a group under a scale; 8 partial sums, so that compilers can use vectors. */
static float error_i4(const float *x, uint32_t n, float scale)
{
    const float inv = inverse(scale);
    float sum[8] = {0};
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8) {
        for (uint32_t j = 0; j < 8; j++) {
            const float d = x[i + j] - round_i4(x[i + j] * inv) * scale;
            sum[j] += d * d;
        }
    }
    for (; i < n; i++) {
        const float d = x[i] - round_i4(x[i] * inv) * scale;
        sum[i % 8] += d * d;
    }
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

/* The scale that fits best in the sense of least squares, once the weights are rounded with `scale`. */
static float refit_i4(const float *x, uint32_t n, float scale)
{
    const float inv = inverse(scale);
    float xq = 0.0f, qq = 0.0f;
    for (uint32_t i = 0; i < n; i++) {
        const float q = round_i4(x[i] * inv);
        xq += x[i] * q;
        qq += q * q;
    }
    return qq > 0.0f ? xq / qq : scale;
}

/*
 * -8 has no counterpart at +8, so the sign of the scale matters: the largest weight may take either
 * end. Cutting it off a little (divisors below 7 or 8) often pays for itself in all the others.
 */
static float best_scale_i4(const sq_panels *w, const float *x, uint32_t n)
{
    const float most = largest_magnitude(x, n);
    float best = 0.0f, least = INFINITY;
    for (int i = 0; i < 24; i++) {
        const float divisor = 5.75f + 0.25f * (float)(i / 2);
        const float scale = stored_scale(w, (i & 1 ? most : -most) / divisor), error = error_i4(x, n, scale);
        if (error < least) {
            best = scale;
            least = error;
        }
    }
    const float refit = stored_scale(w, refit_i4(x, n, best));
    return error_i4(x, n, refit) < least ? refit : best;
}

static void quantise_group(const sq_panels *w, const float *x, uint32_t k0, uint32_t n, uint32_t c, uint8_t *panel)
{
    const bool i4 = w->type == SQ_PANEL_I4;
    const float scale = i4 ? best_scale_i4(w, x, n) : stored_scale(w, largest_magnitude(x, n) / 127.0f);
    const float inv = inverse(scale);
    put_scale(w, panel, w->group ? k0 / w->group : 0, c, inv != 0.0f ? scale : 0.0f);
    for (uint32_t i = 0; i < n; i++) {
        const float v = x[i] * inv;
        put(w, panel, k0 + i, c, (int)(i4 ? round_i4(v) : roundf(clamp(v, -127.0f, 127.0f))));
    }
}

void sq_panels_quantise(const sq_panels *w, const float *src, uint8_t *out)
{
    const size_t bytes = sq_panel_bytes(w);
    const uint32_t group = w->group ? w->group : w->k;
    clear_panels(w, out);
    for (uint32_t row = 0; row < w->n; row++, src += w->k) {
        uint8_t *panel = out + row / SQ_PANEL_N * bytes;
        for (uint32_t k0 = 0; k0 < w->k; k0 += group) {
            const uint32_t n = w->k - k0 < group ? w->k - k0 : group;
            quantise_group(w, src + k0, k0, n, row % SQ_PANEL_N, panel);
        }
    }
}

/* ---- Repacking --------------------------------------------------------------------------- */

void sq_panels_from_q8_0(const sq_panels *w, const sq_block_q8_0 *src, uint8_t *out)
{
    const size_t bytes = sq_panel_bytes(w);
    assert(w->type == SQ_PANEL_I8 && w->group == SQ_BLOCK && w->k % SQ_BLOCK == 0);
    clear_panels(w, out);
    for (uint32_t row = 0; row < w->n; row++) {
        uint8_t *panel = out + row / SQ_PANEL_N * bytes;
        const uint32_t c = row % SQ_PANEL_N;
        for (uint32_t g = 0; g < w->k / SQ_BLOCK; g++, src++) {
            put_scale_bits(w, panel, g, c, src->d);
            for (uint32_t j = 0; j < SQ_BLOCK; j++)
                put(w, panel, g * SQ_BLOCK + j, c, src->q[j]);
        }
    }
}

void sq_panels_from_q4_0(const sq_panels *w, const sq_block_q4_0 *src, uint8_t *out)
{
    const size_t bytes = sq_panel_bytes(w);
    assert(w->type == SQ_PANEL_I4 && w->group == SQ_BLOCK && w->k % SQ_BLOCK == 0);
    clear_panels(w, out);
    for (uint32_t row = 0; row < w->n; row++) {
        uint8_t *panel = out + row / SQ_PANEL_N * bytes;
        const uint32_t c = row % SQ_PANEL_N;
        for (uint32_t g = 0; g < w->k / SQ_BLOCK; g++, src++) {
            put_scale_bits(w, panel, g, c, src->d);
            for (uint32_t j = 0; j < SQ_BLOCK / 2; j++) {
                put(w, panel, g * SQ_BLOCK + j, c, (src->q[j] & 15) - ZERO_I4);
                put(w, panel, g * SQ_BLOCK + SQ_BLOCK / 2 + j, c, (src->q[j] >> 4) - ZERO_I4);
            }
        }
    }
}

void sq_panels_row(const sq_panels *w, uint32_t row, float *out)
{
    const uint8_t *panel = w->data + row / SQ_PANEL_N * sq_panel_bytes(w);
    const uint32_t c = row % SQ_PANEL_N, group = w->group ? w->group : w->k;
    for (uint32_t k0 = 0; k0 < w->k; k0 += group) {
        const uint32_t end = w->k - k0 < group ? w->k : k0 + group;
        const float scale = get_scale(w, panel, k0 / group, c);
        for (uint32_t k = k0; k < end; k++)
            out[k] = (float)get(w, panel, k, c) * scale;
    }
}

/* ---- Error measure ----------------------------------------------------------------------- */

double sq_relative_rms(const float *a, const float *b, size_t n)
{
    double error = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        const double d = (double)a[i] - b[i];
        error += d * d;
        size += (double)a[i] * a[i];
    }
    return size > 0 ? sqrt(error / size) : error > 0 ? INFINITY : 0.0;
}
