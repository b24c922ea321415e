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

/* The word of a row to all channels. */
SQ_INLINE int8x16_t word(const int8_t *a)
{
    int32_t bits;
    memcpy(&bits, a, sizeof bits);
    return vreinterpretq_s8_s32(vdupq_n_s32(bits));
}

/* sum[0..7] = or += the two sums of each of 8 channels */
SQ_INLINE void store8(int32_t *sum, const int32x4_t acc[4], bool first)
{
    const int32x4_t low = vpaddq_s32(acc[0], acc[1]), high = vpaddq_s32(acc[2], acc[3]);
    vst1q_s32(sum, first ? low : vaddq_s32(vld1q_s32(sum), low));
    vst1q_s32(sum + 4, first ? high : vaddq_s32(vld1q_s32(sum + 4), high));
}

/* ---- int8 -------------------------------------------------------------------------------- */

/* acc += 4 channels of 8 inputs */
SQ_INLINE void add_i8(int32x4_t acc[2], int8x16_t w0, int8x16_t w1, int8x16_t b0, int8x16_t b1)
{
    const int16x8_t low = vmull_s8(vget_low_s8(w0), vget_low_s8(b0)), high = vmull_high_s8(w0, b0);
    acc[0] = vpadalq_s16(acc[0], vmlal_s8(low, vget_low_s8(w1), vget_low_s8(b1)));
    acc[1] = vpadalq_s16(acc[1], vmlal_high_s8(high, w1, b1));
}

SQ_INLINE void half_i8(const int8_t *a, const int8_t *w, uint32_t k, bool first, int32_t *sum, uint32_t rows)
{
    int32x4_t acc[MR][4];
    for (uint32_t r = 0; r < rows; r++) {
        for (int i = 0; i < 4; i++)
            acc[r][i] = vdupq_n_s32(0);
    }
    for (; k; k -= 8, a += 8 * MR, w += 64) {
        const int8x16_t w0 = vld1q_s8(w), w1 = vld1q_s8(w + 16), w2 = vld1q_s8(w + 32), w3 = vld1q_s8(w + 48);
        for (uint32_t r = 0; r < rows; r++) {
            const int8x16_t b0 = word(a + r * 4), b1 = word(a + 4 * MR + r * 4);
            add_i8(acc[r], w0, w2, b0, b1);
            add_i8(acc[r] + 2, w1, w3, b0, b1);
        }
    }
    for (uint32_t r = 0; r < rows; r++)
        store8(sum + r * NR, acc[r], first);
}

/* ---- int4 -------------------------------------------------------------------------------- */

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
        for (uint32_t r = 0; r < rows; r++) {
            const int8x16_t b = word(a + r * 4);
            acc[r][0] = vmlal_s8(acc[r][0], vget_low_s8(w0), vget_low_s8(b));
            acc[r][1] = vmlal_high_s8(acc[r][1], w0, b);
            acc[r][2] = vmlal_s8(acc[r][2], vget_low_s8(w1), vget_low_s8(b));
            acc[r][3] = vmlal_high_s8(acc[r][3], w1, b);
        }
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
