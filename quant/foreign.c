/*
 * foreign: block types of llama.cpp's files that squint reads and never writes.
 * SPDX-License-Identifier: MIT
 *
 * Each is defined by the floats that the gguf Python package makes of it, to the bit: products and sums are taken in
 * its order, in binary32. Blocks may lie at any address. Loops have fixed bounds, so that compilers make vectors of
 * them: a model of seven billion weights goes through here while somebody waits.
 */
#include "quant/quant.h"

#include <string.h>

enum { HALF_BLOCK = SQ_BLOCK / 2, GROUPS = SQ_SUPERBLOCK / SQ_BLOCK, PACKED_SCALES = 12 };

static float read_half(const uint8_t *at)
{
    uint16_t bits;
    memcpy(&bits, at, sizeof bits);
    return sq_f16_to_f32(bits);
}

/* ---- Blocks of 32 ------------------------------------------------------------------------ */

/* q[32]: byte j has weight j in its low nibble and weight j + 16 in its high one. */
static void unpack_nibbles(const uint8_t *nibbles, uint8_t *q)
{
    for (int j = 0; j < HALF_BLOCK; j++) {
        q[j] = nibbles[j] & 15;
        q[j + HALF_BLOCK] = nibbles[j] >> 4;
    }
}

/* Bit j of 32 is the fifth of weight j. */
static void add_fifth_bits(const uint8_t *bits, uint8_t *q)
{
    uint32_t high;
    memcpy(&high, bits, sizeof high);
    for (int j = 0; j < SQ_BLOCK; j++)
        q[j] = (uint8_t)(q[j] | (high >> j & 1) << 4);
}

/* d, m, 16 bytes of nibbles: d * q + m */
void sq_dequantise_q4_1(const void *blocks, float *out, size_t n_blocks)
{
    const uint8_t *b = blocks;
    uint8_t q[SQ_BLOCK];
    for (size_t i = 0; i < n_blocks; i++, b += SQ_Q4_1_BYTES, out += SQ_BLOCK) {
        const float d = read_half(b), m = read_half(b + 2);
        unpack_nibbles(b + 4, q);
        for (int j = 0; j < SQ_BLOCK; j++)
            out[j] = d * (float)q[j] + m;
    }
}

/* d, 4 bytes of fifth bits, nibbles: d * (q - 16) */
void sq_unpack_q5_0(const uint8_t block[SQ_Q5_0_BYTES], int8_t out[SQ_BLOCK])
{
    uint8_t q[SQ_BLOCK];
    unpack_nibbles(block + 6, q);
    add_fifth_bits(block + 2, q);
    for (int j = 0; j < SQ_BLOCK; j++)
        out[j] = (int8_t)(q[j] - 16);
}

void sq_dequantise_q5_0(const void *blocks, float *out, size_t n_blocks)
{
    const uint8_t *b = blocks;
    int8_t q[SQ_BLOCK];
    for (size_t i = 0; i < n_blocks; i++, b += SQ_Q5_0_BYTES, out += SQ_BLOCK) {
        const float d = read_half(b);
        sq_unpack_q5_0(b, q);
        for (int j = 0; j < SQ_BLOCK; j++)
            out[j] = d * (float)q[j];
    }
}

/* d, m, 4 bytes of fifth bits, nibbles: d * q + m */
void sq_dequantise_q5_1(const void *blocks, float *out, size_t n_blocks)
{
    const uint8_t *b = blocks;
    uint8_t q[SQ_BLOCK];
    for (size_t i = 0; i < n_blocks; i++, b += SQ_Q5_1_BYTES, out += SQ_BLOCK) {
        const float d = read_half(b), m = read_half(b + 2);
        unpack_nibbles(b + 8, q);
        add_fifth_bits(b + 4, q);
        for (int j = 0; j < SQ_BLOCK; j++)
            out[j] = d * (float)q[j] + m;
    }
}

/* ---- Superblocks of 256 ------------------------------------------------------------------ */

/* Eight scales and eight minima of 6 bits in 12 bytes. Those of groups 0 to 3 are the low bits of bytes 0 to 3 and 4 to
 * 7; of groups 4 to 7 the nibbles are in bytes 8 to 11, and the two highest bits on top of bytes 0 to 7. */
static void unpack_scales(const uint8_t *s, uint8_t *scale, uint8_t *min)
{
    for (int g = 0; g < GROUPS / 2; g++) {
        scale[g] = s[g] & 63;
        min[g] = s[g + 4] & 63;
        scale[g + 4] = (uint8_t)((s[g + 8] & 15) | (s[g] >> 6) << 4);
        min[g + 4] = (uint8_t)(s[g + 8] >> 4 | (s[g + 4] >> 6) << 4);
    }
}

/* d, dmin, scales, 128 bytes: groups 2i and 2i + 1 are the low and high nibbles of bytes 32i to 32i + 31.
 * (d * scale) * q - dmin * min */
void sq_dequantise_q4_k(const void *blocks, float *out, size_t n_blocks)
{
    const uint8_t *b = blocks;
    uint8_t scale[GROUPS], min[GROUPS];
    for (size_t i = 0; i < n_blocks; i++, b += SQ_Q4_K_BYTES) {
        const float d = read_half(b), dmin = read_half(b + 2);
        const uint8_t *q = b + 4 + PACKED_SCALES;
        unpack_scales(b + 4, scale, min);
        for (int g = 0; g < GROUPS; g += 2, q += SQ_BLOCK, out += 2 * SQ_BLOCK) {
            const float d0 = d * scale[g], m0 = dmin * min[g], d1 = d * scale[g + 1], m1 = dmin * min[g + 1];
            for (int j = 0; j < SQ_BLOCK; j++)
                out[j] = d0 * (float)(q[j] & 15) - m0;
            for (int j = 0; j < SQ_BLOCK; j++)
                out[j + SQ_BLOCK] = d1 * (float)(q[j] >> 4) - m1;
        }
    }
}

/* As Q4_K, with 32 bytes of fifth bits before the nibbles: bit g of byte j is that of weight j of group g. */
void sq_dequantise_q5_k(const void *blocks, float *out, size_t n_blocks)
{
    const uint8_t *b = blocks;
    uint8_t scale[GROUPS], min[GROUPS];
    for (size_t i = 0; i < n_blocks; i++, b += SQ_Q5_K_BYTES) {
        const float d = read_half(b), dmin = read_half(b + 2);
        const uint8_t *const high = b + 4 + PACKED_SCALES, *q = high + SQ_BLOCK;
        unpack_scales(b + 4, scale, min);
        for (int g = 0; g < GROUPS; g += 2, q += SQ_BLOCK, out += 2 * SQ_BLOCK) {
            const float d0 = d * scale[g], m0 = dmin * min[g], d1 = d * scale[g + 1], m1 = dmin * min[g + 1];
            for (int j = 0; j < SQ_BLOCK; j++)
                out[j] = d0 * (float)((q[j] & 15) | (high[j] >> g & 1) << 4) - m0;
            for (int j = 0; j < SQ_BLOCK; j++)
                out[j + SQ_BLOCK] = d1 * (float)(q[j] >> 4 | (high[j] >> (g + 1) & 1) << 4) - m1;
        }
    }
}

/*
 * 128 bytes of low nibbles, 64 of high bit pairs, 16 signed scales, d. Each half of a superblock, 128 weights, has 64
 * and 32 of these bytes:
 *
 *   weights       0..31           32..63          64..95          96..127
 *   low nibble    low,  0..31     low,  32..63    high, 0..31     high, 32..63
 *   high pair     bits 0 and 1    2 and 3         4 and 5         6 and 7       of bytes 0..31
 *
 * A scale serves 16 weights: (d * scale) * (q - 32).
 */
void sq_dequantise_q6_k(const void *blocks, float *out, size_t n_blocks)
{
    const uint8_t *b = blocks;
    for (size_t i = 0; i < n_blocks; i++, b += SQ_Q6_K_BYTES) {
        const uint8_t *const scales = b + 192;
        const float d = read_half(b + 208);
        for (int part = 0; part < GROUPS; part++, out += SQ_BLOCK) {
            const uint8_t *const low = b + part / 4 * 64 + part % 2 * 32, *const high = b + 128 + part / 4 * 32;
            const int low_shift = part % 4 / 2 * 4, high_shift = part % 4 * 2;
            const float d0 = d * (float)(int8_t)scales[2 * part], d1 = d * (float)(int8_t)scales[2 * part + 1];
            for (int j = 0; j < SQ_BLOCK; j++) {
                const int q = (low[j] >> low_shift & 15) | (high[j] >> high_shift & 3) << 4;
                out[j] = (j < SQ_BLOCK / 2 ? d0 : d1) * (float)(q - 32);
            }
        }
    }
}

/* ---- Halves of another kind --------------------------------------------------------------- */

/* The upper half of a binary32. */
void sq_dequantise_bf16(const void *values, float *out, size_t n)
{
    const uint8_t *at = values;
    for (size_t i = 0; i < n; i++, at += sizeof(uint16_t)) {
        uint16_t half;
        memcpy(&half, at, sizeof half);
        const uint32_t bits = (uint32_t)half << 16;
        memcpy(&out[i], &bits, sizeof bits);
    }
}
