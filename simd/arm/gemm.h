/*
 * gemm: what the matrix products of the ARM sets share. gemm.c walks the panels; a set gives the inner loop.
 * SPDX-License-Identifier: MIT
 *
 * ARM's dot instructions read weights as signed bytes. A chunk of at most SQ_ARM_CHUNK inputs of a panel is unpacked
 * into signed bytes q in a buffer of two halves, 8 channels each, and several tiles of rows are multiplied with it
 * before the next: int4 costs a tile no more than int8. There is no zero point to take out.
 */
#ifndef SQ_SIMD_ARM_GEMM_H
#define SQ_SIMD_ARM_GEMM_H

#include "simd/arm/neon.h"

enum {
    SQ_ARM_CHUNK = 256,             /* inputs unpacked at a time */
    SQ_ARM_HALF = SQ_ARM_CHUNK * 8, /* bytes of a half panel, 8 channels, in the buffer */
    SQ_ARM_SLOTS = 192,             /* rows times panels whose sums are kept at a time */
    SQ_ARM_PAIRED = 48,             /* rows whose activations are kept in pairs */
};

/* Order of the bytes in the buffers. */
typedef enum sq_arm_order {
    SQ_ARM_WORDS, /* weights [k / 4][8 channels][4], activations as they lie */
    SQ_ARM_PAIRS, /* weights [k / 8][8 channels][8], activations [k / 8][mr][8] */
} sq_arm_order;

/**
 * sum[r][c] += a * w over k inputs, a multiple of 32; sum is [rows][16] and set instead of added to when `first`.
 * @param a  the tile's activations from the first input on
 * @param w  weights from the first input on; the second half is SQ_ARM_HALF bytes further
 */
typedef void sq_arm_tile_fn(const int8_t *a, const int8_t *w, uint32_t k, bool first, int32_t *sum);

typedef struct sq_arm_gemm {
    sq_arm_order order;
    uint32_t mr;
    /* Worked on at a time: mr * tiles * panels <= SQ_ARM_SLOTS; of pairs, mr * tiles <= SQ_ARM_PAIRED. */
    uint32_t tiles, panels;
    sq_arm_tile_fn *const *i8, *const *i4; /* one for each number of rows, from 1 on */
} sq_arm_gemm;

void sq_arm_gemm_run(const sq_arm_gemm *set, const sq_panels *w, uint32_t panel0, uint32_t n_panels, const sq_acts *a,
                     const sq_gemm_out *out);

#endif
