/*
 * quant: number formats. Half floats, llama.cpp's blocks of 32, and squint's own weight panels.
 * SPDX-License-Identifier: MIT
 *
 * Nothing here knows of files, threads or instruction sets: a format is a layout, a quantiser and
 * the arithmetic that both must agree on.
 */
#ifndef SQ_QUANT_H
#define SQ_QUANT_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- IEEE binary16 ---------------------------------------------------------------------- */

float sq_f16_to_f32(uint16_t h);
uint16_t sq_f32_to_f16(float f); /* nearest, ties to even; overflow gives infinity */

/* ---- GGUF blocks of 32 weights along the input dimension -------------------------------- */

enum { SQ_BLOCK = 32 };

typedef struct sq_block_q8_0 {
    uint16_t d;         /* binary16 scale */
    int8_t q[SQ_BLOCK]; /* weight = q * d */
} sq_block_q8_0;

typedef struct sq_block_q4_0 {
    uint16_t d;              /* binary16 scale, may be negative */
    uint8_t q[SQ_BLOCK / 2]; /* byte j: low nibble weight j, high nibble weight j+16; (nibble-8)*d */
} sq_block_q4_0;

static_assert(sizeof(sq_block_q8_0) == 34, "Q8_0 is 34 bytes a block in every GGUF file");
static_assert(sizeof(sq_block_q4_0) == 18, "Q4_0 is 18 bytes a block in every GGUF file");

/* Equal, byte for byte, to ggml's reference quantisers. n_blocks blocks of 32 floats. */
void sq_quantise_q8_0(const float *x, sq_block_q8_0 *out, size_t n_blocks);
void sq_quantise_q4_0(const float *x, sq_block_q4_0 *out, size_t n_blocks);
void sq_dequantise_q8_0(const sq_block_q8_0 *b, float *out, size_t n_blocks);
void sq_dequantise_q4_0(const sq_block_q4_0 *b, float *out, size_t n_blocks);

/* ---- Types of other programs' files that are only read ---------------------------------- */

/*
 * Layouts are told in quant/foreign.c. Blocks of 32 weights, superblocks of 256; at any address. Equal, to the bit, to
 * the floats that the gguf Python package makes of them.
 */
enum {
    SQ_SUPERBLOCK = 256,
    SQ_Q4_1_BYTES = 2 + 2 + 16,
    SQ_Q5_0_BYTES = 2 + 4 + 16,
    SQ_Q5_1_BYTES = 2 + 2 + 4 + 16,
    SQ_Q4_K_BYTES = 2 + 2 + 12 + 128,
    SQ_Q5_K_BYTES = 2 + 2 + 12 + 32 + 128,
    SQ_Q6_K_BYTES = 128 + 64 + 16 + 2,
};

void sq_dequantise_q4_1(const void *blocks, float *out, size_t n_blocks);
void sq_dequantise_q5_0(const void *blocks, float *out, size_t n_blocks);
void sq_dequantise_q5_1(const void *blocks, float *out, size_t n_blocks);
void sq_dequantise_q4_k(const void *blocks, float *out, size_t n_blocks);
void sq_dequantise_q5_k(const void *blocks, float *out, size_t n_blocks);
void sq_dequantise_q6_k(const void *blocks, float *out, size_t n_blocks);
/** The integers of a block: weight = q * d, and d is the block's first two bytes. */
void sq_unpack_q5_0(const uint8_t block[SQ_Q5_0_BYTES], int8_t out[SQ_BLOCK]);
/** n bfloat16 values. */
void sq_dequantise_bf16(const void *values, float *out, size_t n);

/* ---- Weight panels ---------------------------------------------------------------------- */

/*
 * A matrix W[n][k] (n output channels, k inputs) is cut into panels of 16 output channels. A panel
 * holds all of k, and one step of every kernel reads one 64-byte line of it:
 *
 *   int8   for k in steps of 4:  16 channels x 4 bytes; byte j of a channel is weight k+j
 *   int4   for k in steps of 8:  16 channels x 4 bytes; byte j of a channel holds weight k+j in
 *                                its low nibble and weight k+4+j in its high nibble
 *
 * Weights are stored unsigned, u = q + zero (zero = 128 or 8), so that x86's unsigned-by-signed
 * dot instructions read them as they lie; ARM flips the sign bit with one XOR. The offset is
 * taken out with the sum S of the activations:  sum(a*q) = sum(a*u) - zero * S.
 *
 * After the weights of a panel come its scales, one row of 16 for each group of `group` inputs:
 *
 *   group == 0   one float32 scale a channel
 *   group  > 0   ceil(k / group) rows of 16 binary16 scales; group is a multiple of 32
 *
 * k is padded to a multiple of 32 and n to a multiple of 16 with weights q = 0 and scale 0; a
 * panel's size is rounded up to 64 bytes. The first panel starts at a 64-byte boundary, and so
 * does every other. The same bytes serve every instruction set, so a file is mapped and used.
 */
typedef enum sq_panel_type {
    SQ_PANEL_I8 = 1,
    SQ_PANEL_I4 = 2,
} sq_panel_type;

enum {
    SQ_PANEL_N = 16,      /* output channels a panel */
    SQ_PANEL_K = 32,      /* k is padded to a multiple of this */
    SQ_PANEL_ALIGN = 64,  /* bytes */
    SQ_ACT_GROUP = 256,   /* inputs that share one activation scale when the weights have no groups */
    SQ_MAX_DIM = 1 << 24, /* of n and of k; larger shapes are refused */
    SQ_MAX_K = 1 << 16,   /* 255 * 127 * k must fit in int32 */
};

typedef struct sq_panels {
    const uint8_t *data; /* panel 0, 64-byte aligned */
    uint32_t n, k;       /* logical shape */
    sq_panel_type type;
    uint32_t group; /* 0: one scale a channel */
} sq_panels;

static inline uint32_t sq_round_up(uint32_t v, uint32_t step) { return (v + step - 1) / step * step; }

/* Inputs that share one activation scale with these weights. */
static inline uint32_t sq_panels_act_group(const sq_panels *w) { return w->group ? w->group : (uint32_t)SQ_ACT_GROUP; }

/** Is this a shape that panels can hold? (1 <= n <= SQ_MAX_DIM, 1 <= k <= SQ_MAX_K, group as above) */
bool sq_panels_valid(const sq_panels *w);
/** Bytes of the weights part of one panel; its scales start there. */
size_t sq_panel_weight_bytes(const sq_panels *w);
/** Bytes from one panel to the next. */
size_t sq_panel_bytes(const sq_panels *w);
/** Number of panels: ceil(n / 16). */
size_t sq_panel_count(const sq_panels *w);
/** Bytes of the whole matrix, without a header. */
size_t sq_panels_bytes(const sq_panels *w);

/**
 * Quantises rows of W into panels. Symmetric. int8: scale = max|x| / 127 over the channel or group,
 * round half away from zero. int4: the scale of each group is chosen among candidates near
 * max|x| / 8 to make the squared error least.
 *
 * @param w    type, n, k and group set; w->data is ignored
 * @param src  [n][k] row-major
 * @param out  sq_panels_bytes(w) bytes, 64-byte aligned
 */
void sq_panels_quantise(const sq_panels *w, const float *src, uint8_t *out);
/** The same in parts: all weights and scales zero, then inputs k0 to k0 + n of a row, which are whole groups. False
 * when one of these is NaN or so large that no scale reaches it; they are cut off. */
void sq_panels_clear(const sq_panels *w, uint8_t *out);
bool sq_panels_quantise_part(const sq_panels *w, uint32_t row, uint32_t k0, uint32_t n, const float *x, uint8_t *out);

/** Lossless repack of n rows of k/32 blocks (k a multiple of 32) into panels of group 32. */
void sq_panels_from_q8_0(const sq_panels *w, const sq_block_q8_0 *src, uint8_t *out);
void sq_panels_from_q4_0(const sq_panels *w, const sq_block_q4_0 *src, uint8_t *out);
void sq_panels_from_q5_0(const sq_panels *w, const void *blocks, uint8_t *out); /* int8 panels */

/** Row `row` of the matrix as floats: out[k]. Serves embedding look-ups and tests. */
void sq_panels_row(const sq_panels *w, uint32_t row, float *out);

/*
 * In a file a panel matrix is an I8 tensor of one dimension, so that other GGUF tools list it: 64
 * bytes of header, then the panels. All fields little-endian.
 */
typedef struct sq_panel_header {
    char magic[4];    /* "SQPN" */
    uint32_t version; /* 1 */
    uint32_t type;    /* sq_panel_type */
    uint32_t n, k, group;
    uint32_t zero[10];
} sq_panel_header;

static_assert(sizeof(sq_panel_header) == SQ_PANEL_ALIGN, "panels must start on their own line");

/* ---- Error measure ---------------------------------------------------------------------- */

/** sqrt(sum (a-b)^2 / sum a^2); 0 when both are all zero. */
double sq_relative_rms(const float *a, const float *b, size_t n);

#endif
