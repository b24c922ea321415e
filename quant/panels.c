/*
 * panels: squint's own weight layout (drawn in quant.h): sizes, quantisers, repacking, reading back.
 * SPDX-License-Identifier: MIT
 *
 * Everything that writes a panel goes through put_i4(), put_line() and put_scale(), and everything that reads one
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

/* Weight k of channel c (of 16) in int4. The panel was cleared to q = 0 before. */
static void put_i4(uint8_t *panel, uint32_t k, uint32_t c, int q)
{
    uint8_t *byte = &panel[(size_t)(k / 8) * LINE + c * 4 + k % 4];
    const unsigned shift = k & 4;
    *byte = (uint8_t)((*byte & ~(15u << shift)) | (unsigned)(q + ZERO_I4) << shift);
}

/* The four bytes of channel c in a line: int8 weights from 4 * line on, or int4 ones from 8 * line on. */
static void put_line(uint8_t *panel, uint32_t line, uint32_t c, uint32_t bytes)
{
    memcpy(panel + (size_t)line * LINE + c * sizeof bytes, &bytes, sizeof bytes);
}

static uint32_t load_u32(const void *at)
{
    uint32_t v;
    memcpy(&v, at, sizeof v);
    return v;
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

void sq_panels_clear(const sq_panels *w, uint8_t *out)
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

static int32_t bits_of(float f)
{
    int32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static float from_bits(int32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* Magnitudes are ordered as their bits are, and comparing integers makes vectors: here nobody asks about NaN. */
static int32_t magnitude(float f) { return bits_of(f) & INT32_MAX; }

static float largest_magnitude(const float *x, uint32_t n)
{
    int32_t most = 0;
    for (uint32_t i = 0; i < n; i++) {
        const int32_t m = magnitude(x[i]);
        most = m > most ? m : most;
    }
    return from_bits(most);
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

/*
 * The nearest of -127 to 127, halves away from zero as roundf() has them, plus 128. Adding almost a half and cutting
 * does that: with a whole half, the float below 0.5 would become 1. Nothing branches, so that loops become vectors.
 */
static uint8_t byte_of(float v)
{
    const int32_t most = 0x42fe0000 /* 127.0f */, sign = bits_of(v) >> 31, m = magnitude(v);
    const int32_t q = (int32_t)(from_bits(m < most ? m : most) + 0x1.fffffep-2f);
    return (uint8_t)((q ^ sign) - sign + ZERO_I8);
}

/* 32 weights, or fewer of the last ones; the rest is zero. */
static void round_i8(const float *x, uint32_t n, float inv, uint8_t out[SQ_PANEL_K])
{
    if (n < SQ_PANEL_K) memset(out, ZERO_I8, SQ_PANEL_K);
    for (uint32_t i = 0; i < n; i++)
        out[i] = byte_of(x[i] * inv);
}

static void quantise_i8(const float *x, uint32_t k0, uint32_t n, float inv, uint32_t c, uint8_t *panel)
{
    uint8_t bytes[SQ_PANEL_K];
    for (uint32_t i = 0; i < n; i += SQ_PANEL_K) {
        if (n - i >= SQ_PANEL_K)
            round_i8(x + i, SQ_PANEL_K, inv, bytes);
        else
            round_i8(x + i, n - i, inv, bytes);
        for (uint32_t j = 0; j < SQ_PANEL_K; j += 4)
            put_line(panel, (k0 + i + j) / 4, c, load_u32(bytes + j));
    }
}

/* False when a weight is NaN or so large that no scale reaches it. */
static bool quantise_group(const sq_panels *w, const float *x, uint32_t k0, uint32_t n, uint32_t c, uint8_t *panel)
{
    const bool i4 = w->type == SQ_PANEL_I4;
    const float most = largest_magnitude(x, n), most_scale = w->group ? 65504.0f : FLT_MAX / 127.0f;
    const float scale = i4 ? best_scale_i4(w, x, n) : stored_scale(w, most / 127.0f);
    const float inv = inverse(scale);
    put_scale(w, panel, w->group ? k0 / w->group : 0, c, inv != 0.0f ? scale : 0.0f);
    if (!i4) quantise_i8(x, k0, n, inv, c, panel);
    for (uint32_t i = 0; i4 && i < n; i++)
        put_i4(panel, k0 + i, c, (int)round_i4(x[i] * inv));
    return most <= (i4 ? 8.0f : 127.0f) * most_scale;
}

bool sq_panels_quantise_part(const sq_panels *w, uint32_t row, uint32_t k0, uint32_t n, const float *x, uint8_t *out)
{
    bool fit = true;
    uint8_t *panel = out + row / SQ_PANEL_N * sq_panel_bytes(w);
    const uint32_t group = w->group ? w->group : w->k, end = k0 + n;
    assert(k0 % group == 0 && (end % group == 0 || end == w->k));
    for (; k0 < end; k0 += group, x += group) {
        const uint32_t left = end - k0 < group ? end - k0 : group;
        fit &= quantise_group(w, x, k0, left, row % SQ_PANEL_N, panel);
    }
    return fit;
}

void sq_panels_quantise(const sq_panels *w, const float *src, uint8_t *out)
{
    sq_panels_clear(w, out);
    for (uint32_t row = 0; row < w->n; row++)
        sq_panels_quantise_part(w, row, 0, w->k, src + (size_t)row * w->k, out);
}

/* ---- Repacking --------------------------------------------------------------------------- */

/* A signed byte and the unsigned one that a panel has for it differ in the highest bit. */
static void put_signed(uint8_t *panel, uint32_t k0, uint32_t c, const int8_t q[SQ_BLOCK])
{
    for (uint32_t j = 0; j < SQ_BLOCK; j += 4)
        put_line(panel, (k0 + j) / 4, c, load_u32(q + j) ^ 0x80808080u);
}

void sq_panels_from_q8_0(const sq_panels *w, const sq_block_q8_0 *src, uint8_t *out)
{
    const size_t bytes = sq_panel_bytes(w);
    assert(w->type == SQ_PANEL_I8 && w->group == SQ_BLOCK && w->k % SQ_BLOCK == 0);
    sq_panels_clear(w, out);
    for (uint32_t row = 0; row < w->n; row++) {
        uint8_t *panel = out + row / SQ_PANEL_N * bytes;
        const uint32_t c = row % SQ_PANEL_N;
        for (uint32_t g = 0; g < w->k / SQ_BLOCK; g++, src++) {
            put_scale_bits(w, panel, g, c, src->d);
            put_signed(panel, g * SQ_BLOCK, c, src->q);
        }
    }
}

void sq_panels_from_q5_0(const sq_panels *w, const void *blocks, uint8_t *out)
{
    const uint8_t *src = blocks;
    const size_t bytes = sq_panel_bytes(w);
    assert(w->type == SQ_PANEL_I8 && w->group == SQ_BLOCK && w->k % SQ_BLOCK == 0);
    sq_panels_clear(w, out);
    for (uint32_t row = 0; row < w->n; row++) {
        uint8_t *panel = out + row / SQ_PANEL_N * bytes;
        const uint32_t c = row % SQ_PANEL_N;
        for (uint32_t g = 0; g < w->k / SQ_BLOCK; g++, src += SQ_Q5_0_BYTES) {
            uint16_t scale;
            int8_t q[SQ_BLOCK];
            memcpy(&scale, src, sizeof scale);
            sq_unpack_q5_0(src, q);
            put_scale_bits(w, panel, g, c, scale);
            put_signed(panel, g * SQ_BLOCK, c, q);
        }
    }
}

/* Of 8 weights in a row: the first four become the low nibbles of four bytes, the others the high ones. The block has
 * its first 16 weights in the low nibbles of 16 bytes. */
static uint32_t line_of_q4_0(const uint8_t q[SQ_BLOCK / 2], uint32_t step)
{
    const uint32_t first = load_u32(q + step % 2 * 8), second = load_u32(q + step % 2 * 8 + 4);
    if (step < 2) return (first & 0x0f0f0f0fu) | (second & 0x0f0f0f0fu) << 4;
    return (first >> 4 & 0x0f0f0f0fu) | (second & 0xf0f0f0f0u);
}

void sq_panels_from_q4_0(const sq_panels *w, const sq_block_q4_0 *src, uint8_t *out)
{
    const size_t bytes = sq_panel_bytes(w);
    assert(w->type == SQ_PANEL_I4 && w->group == SQ_BLOCK && w->k % SQ_BLOCK == 0);
    sq_panels_clear(w, out);
    for (uint32_t row = 0; row < w->n; row++) {
        uint8_t *panel = out + row / SQ_PANEL_N * bytes;
        const uint32_t c = row % SQ_PANEL_N;
        for (uint32_t g = 0; g < w->k / SQ_BLOCK; g++, src++) {
            put_scale_bits(w, panel, g, c, src->d);
            for (uint32_t step = 0; step < SQ_BLOCK / 8; step++)
                put_line(panel, g * SQ_BLOCK / 8 + step, c, line_of_q4_0(src->q, step));
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
