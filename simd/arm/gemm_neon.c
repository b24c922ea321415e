/*
 * gemm_neon: the inner loops of plain Armv8 (Cortex-A53, A72). simd/arm/gemm.c says what surrounds them.
 * SPDX-License-Identifier: MIT
 *
 * 4 rows by half a panel. SMULL and SMLAL multiply 8 bytes by 8 into int16, 2 channels of 4 inputs:
 *
 *   int8   two products fit: 2 * 128 * 127 = 32512. SADALP then adds neighbours to int32, two sums a channel; 6
 *          instructions for 32 multiply-adds
 *   int4   32 products fit: 32 * 8 * 127 = 32512. 128 inputs are added in int16; 2 instructions for 16
 */
#include "simd/arm/gemm.h"

enum { MR = SQ_MR_NEON, NR = SQ_PANEL_N, TILES = 24, BLOCK_I4 = 128 };

static_assert(MR * TILES <= SQ_ARM_SLOTS, "sums of a batch");

/* A row's word, lane `r` of the words of all rows, to all channels; r must be a constant. */
#define WORD(words, r) vreinterpretq_s8_s32(vdupq_laneq_s32(words, r))

SQ_INLINE int32x4_t words_of(const int8_t *a) { return vreinterpretq_s32_s8(vld1q_s8(a)); }

/* sum[0..7] = or += the two sums of each of 8 channels */
SQ_INLINE void store8(int32_t *sum, const int32x4_t acc[4], bool first)
{
    const int32x4_t low = vpaddq_s32(acc[0], acc[1]), high = vpaddq_s32(acc[2], acc[3]);
    vst1q_s32(sum, first ? low : vaddq_s32(vld1q_s32(sum), low));
    vst1q_s32(sum + 4, first ? high : vaddq_s32(vld1q_s32(sum + 4), high));
}

/* ---- int8 -------------------------------------------------------------------------------- */

/* acc += 8 channels of 8 inputs: w[0], w[1] with b0, w[2], w[3] with b1. In fours, for cores that wait in order. */
SQ_INLINE void add_i8(int32x4_t acc[4], const int8x16_t w[4], int8x16_t b0, int8x16_t b1)
{
    int16x8_t p[4];
    for (int i = 0; i < 2; i++) {
        p[2 * i] = vmull_s8(vget_low_s8(w[i]), vget_low_s8(b0));
        p[2 * i + 1] = vmull_high_s8(w[i], b0);
    }
    for (int i = 0; i < 2; i++) {
        p[2 * i] = vmlal_s8(p[2 * i], vget_low_s8(w[2 + i]), vget_low_s8(b1));
        p[2 * i + 1] = vmlal_high_s8(p[2 * i + 1], w[2 + i], b1);
    }
    for (int i = 0; i < 4; i++)
        acc[i] = vpadalq_s16(acc[i], p[i]);
}

SQ_INLINE void half_i8(const int8_t *a, const int8_t *w, uint32_t k, bool first, int32_t *sum, uint32_t rows)
{
    int32x4_t acc[MR][4];
    for (uint32_t r = 0; r < rows; r++) {
        for (int i = 0; i < 4; i++)
            acc[r][i] = vdupq_n_s32(0);
    }
    for (; k; k -= 8, a += 8 * MR, w += 64) {
        const int8x16_t v[4] = {vld1q_s8(w), vld1q_s8(w + 16), vld1q_s8(w + 32), vld1q_s8(w + 48)};
        const int32x4_t b0 = words_of(a), b1 = words_of(a + 4 * MR);
        add_i8(acc[0], v, WORD(b0, 0), WORD(b1, 0));
        if (rows > 1) add_i8(acc[1], v, WORD(b0, 1), WORD(b1, 1));
        if (rows > 2) add_i8(acc[2], v, WORD(b0, 2), WORD(b1, 2));
        if (rows > 3) add_i8(acc[3], v, WORD(b0, 3), WORD(b1, 3));
    }
    for (uint32_t r = 0; r < rows; r++)
        store8(sum + r * NR, acc[r], first);
}

/* ---- int4 -------------------------------------------------------------------------------- */

/* acc += 8 channels of 4 inputs */
SQ_INLINE void add_i4(int16x8_t acc[4], int8x16_t w0, int8x16_t w1, int8x16_t b)
{
    acc[0] = vmlal_s8(acc[0], vget_low_s8(w0), vget_low_s8(b));
    acc[1] = vmlal_high_s8(acc[1], w0, b);
    acc[2] = vmlal_s8(acc[2], vget_low_s8(w1), vget_low_s8(b));
    acc[3] = vmlal_high_s8(acc[3], w1, b);
}

/* k <= BLOCK_I4 */
SQ_INLINE void block_i4(const int8_t *a, const int8_t *w, uint32_t k, bool first, int32_t *sum, uint32_t rows)
{
    int16x8_t acc[MR][4];
    for (uint32_t r = 0; r < rows; r++) {
        for (int i = 0; i < 4; i++)
            acc[r][i] = vdupq_n_s16(0);
    }
    for (; k; k -= 4, a += 4 * MR, w += 32) {
        const int8x16_t w0 = vld1q_s8(w), w1 = vld1q_s8(w + 16);
        const int32x4_t b = words_of(a);
        add_i4(acc[0], w0, w1, WORD(b, 0));
        if (rows > 1) add_i4(acc[1], w0, w1, WORD(b, 1));
        if (rows > 2) add_i4(acc[2], w0, w1, WORD(b, 2));
        if (rows > 3) add_i4(acc[3], w0, w1, WORD(b, 3));
    }
    for (uint32_t r = 0; r < rows; r++) {
        int32x4_t wide[4];
        for (int i = 0; i < 4; i++)
            wide[i] = vpaddlq_s16(acc[r][i]);
        store8(sum + r * NR, wide, first);
    }
}

SQ_INLINE void half_i4(const int8_t *a, const int8_t *w, uint32_t k, bool first, int32_t *sum, uint32_t rows)
{
    for (uint32_t at = 0, step; at < k; at += step) {
        step = k - at < BLOCK_I4 ? k - at : BLOCK_I4;
        block_i4(a + at * MR, w + at * 8, step, first && at == 0, sum, rows);
    }
}

/* ---- One function for each number of rows ------------------------------------------------ */

#define TILE(type, rows)                                                                                               \
    static void tile_##type##_##rows(const int8_t *a, const int8_t *w, uint32_t k, bool first, int32_t *sum)           \
    {                                                                                                                  \
        half_##type(a, w, k, first, sum, rows);                                                                        \
        half_##type(a, w + SQ_ARM_HALF, k, first, sum + 8, rows);                                                      \
    }
TILE(i8, 1)
TILE(i8, 2)
TILE(i8, 3)
TILE(i8, 4)
TILE(i4, 1)
TILE(i4, 2)
TILE(i4, 3)
TILE(i4, 4)

static sq_arm_tile_fn *const tiles_i8[MR + 1] = {NULL, tile_i8_1, tile_i8_2, tile_i8_3, tile_i8_4};
static sq_arm_tile_fn *const tiles_i4[MR + 1] = {NULL, tile_i4_1, tile_i4_2, tile_i4_3, tile_i4_4};

static const sq_arm_gemm set = {
    .order = SQ_ARM_WORDS, .mr = MR, .tiles = TILES, .panels = 1, .i8 = tiles_i8, .i4 = tiles_i4};

void sq_gemm_neon(const sq_panels *w, uint32_t panel0, uint32_t n_panels, const sq_acts *a, const sq_gemm_out *out)
{
    sq_arm_gemm_run(&set, w, panel0, n_panels, a, out);
}
