/*
 * blocks: llama.cpp's Q8_0 and Q4_0, blocks of 32 weights with one binary16 scale.
 * SPDX-License-Identifier: MIT
 *
 * Weights are rounded with the scale as it was before its own rounding to binary16: ggml does so,
 * and files must be equal to its files. Comparisons are written so that a NaN falls to the lower bound.
 */
#include "quant/quant.h"

#include <math.h>

static float clamp(float v, float lo, float hi) { return v > lo ? (v < hi ? v : hi) : lo; }

static float inverse(float d) { return d != 0.0f ? 1.0f / d : 0.0f; }

static float largest_magnitude(const float *x)
{
    float most = 0.0f;
    for (int j = 0; j < SQ_BLOCK; j++)
        most = fabsf(x[j]) > most ? fabsf(x[j]) : most;
    return most;
}

/* The element of largest magnitude, with its sign; the first of equals. */
static float largest_element(const float *x)
{
    float m = 0.0f;
    for (int j = 0; j < SQ_BLOCK; j++) {
        if (fabsf(x[j]) > fabsf(m)) m = x[j];
    }
    return m;
}

void sq_quantise_q8_0(const float *x, sq_block_q8_0 *out, size_t n_blocks)
{
    for (size_t b = 0; b < n_blocks; b++, x += SQ_BLOCK, out++) {
        const float d = largest_magnitude(x) / 127.0f, id = inverse(d);
        out->d = sq_f32_to_f16(d);
        for (int j = 0; j < SQ_BLOCK; j++)
            out->q[j] = (int8_t)clamp(roundf(x[j] * id), -127.0f, 127.0f);
    }
}

static unsigned nibble(float x, float id) { return (unsigned)clamp(x * id + 8.5f, 0.0f, 15.0f); }

void sq_quantise_q4_0(const float *x, sq_block_q4_0 *out, size_t n_blocks)
{
    for (size_t b = 0; b < n_blocks; b++, x += SQ_BLOCK, out++) {
        const float d = largest_element(x) / -8.0f, id = inverse(d);
        out->d = sq_f32_to_f16(d);
        for (int j = 0; j < SQ_BLOCK / 2; j++) {
            out->q[j] = (uint8_t)(nibble(x[j], id) | nibble(x[j + SQ_BLOCK / 2], id) << 4);
        }
    }
}

void sq_dequantise_q8_0(const sq_block_q8_0 *b, float *out, size_t n_blocks)
{
    for (size_t i = 0; i < n_blocks; i++, b++, out += SQ_BLOCK) {
        const float d = sq_f16_to_f32(b->d);
        for (int j = 0; j < SQ_BLOCK; j++)
            out[j] = (float)b->q[j] * d;
    }
}

void sq_dequantise_q4_0(const sq_block_q4_0 *b, float *out, size_t n_blocks)
{
    for (size_t i = 0; i < n_blocks; i++, b++, out += SQ_BLOCK) {
        const float d = sq_f16_to_f32(b->d);
        for (int j = 0; j < SQ_BLOCK / 2; j++) {
            out[j] = (float)((b->q[j] & 15) - 8) * d;
            out[j + SQ_BLOCK / 2] = (float)((b->q[j] >> 4) - 8) * d;
        }
    }
}
