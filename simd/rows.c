/*
 * rows: what happens to a row on its way into a matrix product, in plain C. Defines the result of all versions.
 * SPDX-License-Identifier: MIT
 *
 * Sums are kept in 32 partial sums, element i in sum i % 32, so that vector versions can be equal to the last bit.
 */
#include "simd/exp.h"
#include "simd/internal.h"

#include <math.h>
#include <string.h>

static float sum_of_squares(const float *x, float mean, uint32_t k)
{
    float sum[32] = {0};
    for (uint32_t i = 0; i < k; i++)
        sum[i % 32] += (x[i] - mean) * (x[i] - mean);
    return sq_sum32(sum);
}

static float sum_of(const float *x, uint32_t k)
{
    float sum[32] = {0};
    for (uint32_t i = 0; i < k; i++)
        sum[i % 32] += x[i];
    return sq_sum32(sum);
}

static void rms_norm(const sq_rows_in *in, const float *x, float *y)
{
    const float r = 1.0f / sqrtf(sum_of_squares(x, 0.0f, in->k) / (float)in->k + in->eps);
    for (uint32_t i = 0; i < in->k; i++)
        y[i] = x[i] * r * in->weight[i];
}

static void layer_norm(const sq_rows_in *in, const float *x, float *y)
{
    const float mean = sum_of(x, in->k) / (float)in->k;
    const float r = 1.0f / sqrtf(sum_of_squares(x, mean, in->k) / (float)in->k + in->eps);
    for (uint32_t i = 0; i < in->k; i++)
        y[i] = (x[i] - mean) * r * in->weight[i] + in->bias[i];
}

/* x * sigmoid(s * x) */
static float gate(float x, float s) { return x / (1.0f + sq_exp(-s * x)); }

void sq_row_c(const sq_rows_in *in, const float *x, float *y)
{
    switch (in->op) {
    case SQ_ROW_COPY:
        memcpy(y, x, in->k * sizeof *y);
        break;
    case SQ_ROW_RMSNORM:
        rms_norm(in, x, y);
        break;
    case SQ_ROW_LAYERNORM:
        layer_norm(in, x, y);
        break;
    case SQ_ROW_SWIGLU:
        for (uint32_t i = 0; i < in->k; i++)
            y[i] = gate(x[i], 1.0f) * x[in->k + i];
        break;
    case SQ_ROW_QUICKGELU:
        for (uint32_t i = 0; i < in->k; i++)
            y[i] = gate(x[i], 1.702f);
        break;
    case SQ_ROW_GELU:
        for (uint32_t i = 0; i < in->k; i++)
            y[i] = 0.5f * x[i] * (1.0f + sq_erf(x[i] * SQ_SQRT_HALF));
        break;
    }
}

/* ---- Quantise and pack ------------------------------------------------------------------- */

static float largest_magnitude(const float *y, uint32_t n)
{
    float most = 0.0f;
    for (uint32_t i = 0; i < n; i++)
        most = fabsf(y[i]) > most ? fabsf(y[i]) : most;
    return most;
}

/* Nearest, ties to even; the clamp also turns a NaN into a number. */
static int8_t quantise(float v)
{
    v = v > -127.0f ? v : -127.0f;
    v = v < 127.0f ? v : 127.0f;
    return (int8_t)lrintf(v);
}

static void quantise_row(const float *y, sq_acts *out, uint32_t tile, uint32_t r)
{
    const uint32_t k = out->k, k_pad = sq_acts_k_pad(out), n_groups = sq_acts_groups(out), mr = out->mr;
    int8_t *q = out->q + ((size_t)tile * k_pad * mr + r * 4);
    for (uint32_t g = 0, i = 0; g < n_groups; g++) {
        const uint32_t end = k - i < out->group ? k : i + out->group;
        const float most = largest_magnitude(y + i, end - i);
        const float inv = most >= SQ_ACT_LEAST ? 127.0f / most : 0.0f;
        const size_t at = ((size_t)tile * n_groups + g) * mr + r;
        int32_t sum = 0;
        for (; i < end; i++) {
            const int8_t v = quantise(y[i] * inv);
            q[(size_t)(i / 4) * mr * 4 + i % 4] = v;
            sum += v;
        }
        out->scale[at] = inv > 0.0f ? most / 127.0f : 0.0f;
        out->sum[at] = sum;
    }
    for (uint32_t i = k; i < k_pad; i++)
        q[(size_t)(i / 4) * mr * 4 + i % 4] = 0;
}

void sq_to_q8_c(const float *src, sq_block_q8_0 *dst, size_t n)
{
    for (size_t i = 0; i < n; i += SQ_BLOCK, dst++) {
        const uint32_t here = n - i < SQ_BLOCK ? (uint32_t)(n - i) : SQ_BLOCK;
        dst->d = sq_q8_scale(largest_magnitude(src + i, here));
        const float d = sq_f16_to_f32(dst->d), inv = d > 0.0f ? 1.0f / d : 0.0f;
        for (uint32_t j = 0; j < SQ_BLOCK; j++)
            dst->q[j] = j < here ? quantise(src[i + j] * inv) : 0;
    }
}

static void clear_row(sq_acts *out, uint32_t tile, uint32_t r)
{
    const uint32_t k_pad = sq_acts_k_pad(out), n_groups = sq_acts_groups(out), mr = out->mr;
    int8_t *q = out->q + ((size_t)tile * k_pad * mr + r * 4);
    for (uint32_t i = 0; i < k_pad; i += 4)
        memset(q + (size_t)i * mr, 0, 4);
    for (uint32_t g = 0; g < n_groups; g++) {
        out->scale[((size_t)tile * n_groups + g) * mr + r] = 0.0f;
        out->sum[((size_t)tile * n_groups + g) * mr + r] = 0;
    }
}

void sq_rows_pack_with(const sq_rows_in *in, sq_acts *out, uint32_t tile0, uint32_t n_tiles, float *scratch,
                       sq_row_fn *row, sq_quantise_row_fn *quantise_one)
{
    assert(in->k == out->k);
    for (uint32_t tile = tile0; tile < tile0 + n_tiles; tile++) {
        for (uint32_t r = 0; r < out->mr; r++) {
            const uint32_t i = tile * out->mr + r;
            if (i >= out->m) {
                clear_row(out, tile, r);
                continue;
            }
            const float *x = in->x + (in->rows ? in->rows[i] : i) * in->ldx;
            if (in->op != SQ_ROW_COPY) row(in, x, scratch);
            quantise_one(in->op == SQ_ROW_COPY ? x : scratch, out, tile, r);
        }
    }
}

void sq_rows_pack_c(const sq_rows_in *in, sq_acts *out, uint32_t tile0, uint32_t n_tiles, float *scratch)
{
    sq_rows_pack_with(in, out, tile0, n_tiles, scratch, sq_row_c, quantise_row);
}
