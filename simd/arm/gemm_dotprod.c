/*
 * gemm_dotprod: the inner loop with SDOT (Armv8.2, Cortex-A76 and later). simd/arm/gemm.c says what surrounds it.
 * SPDX-License-Identifier: MIT
 *
 * 12 rows by half a panel: 24 registers hold sums of 4 channels each, 2 the weights of 8 channels, 3 the activations of
 * 12 rows, whose words SDOT picks by lane. 5 loads and no other instruction for 24 SDOT.
 */
#include "simd/arm/gemm.h"

#if !defined(__ARM_FEATURE_DOTPROD)
#error "needs +dotprod: see simd_sets in simd/meson.build"
#endif

enum { MR = SQ_MR_DOTPROD, NR = SQ_PANEL_N, TILES = 8 };

static_assert(MR * TILES <= SQ_ARM_SLOTS, "sums of a batch");

/* Row r by 8 channels; the lane must be a constant. */
#define ROW(r)                                                                                                         \
    if (r < rows) {                                                                                                    \
        acc[r][0] = vdotq_laneq_s32(acc[r][0], w0, b[r / 4], r % 4);                                                   \
        acc[r][1] = vdotq_laneq_s32(acc[r][1], w1, b[r / 4], r % 4);                                                   \
    }

SQ_INLINE void half_tile(const int8_t *a, const int8_t *w, uint32_t k, bool first, int32_t *sum, uint32_t rows)
{
    int32x4_t acc[MR][2];
    for (uint32_t r = 0; r < rows; r++) {
        acc[r][0] = first ? vdupq_n_s32(0) : vld1q_s32(sum + r * NR);
        acc[r][1] = first ? vdupq_n_s32(0) : vld1q_s32(sum + r * NR + 4);
    }
    for (; k; k -= 4, a += 4 * MR, w += 32) {
        const int8x16_t w0 = vld1q_s8(w), w1 = vld1q_s8(w + 16);
        int8x16_t b[3];
        for (uint32_t i = 0; i < 3 && i * 4 < rows; i++)
            b[i] = vld1q_s8(a + i * 16);
        ROW(0) ROW(1) ROW(2) ROW(3) ROW(4) ROW(5) ROW(6) ROW(7) ROW(8) ROW(9) ROW(10) ROW(11)
    }
    for (uint32_t r = 0; r < rows; r++) {
        vst1q_s32(sum + r * NR, acc[r][0]);
        vst1q_s32(sum + r * NR + 4, acc[r][1]);
    }
}

SQ_INLINE void tile(const int8_t *a, const int8_t *w, uint32_t k, bool first, int32_t *sum, uint32_t rows)
{
    for (int h = 0; h < 2; h++)
        half_tile(a, w + h * SQ_ARM_HALF, k, first, sum + h * 8, rows);
}

#define TILE(rows)                                                                                                     \
    static void tile_##rows(const int8_t *a, const int8_t *w, uint32_t k, bool first, int32_t *sum)                    \
    {                                                                                                                  \
        tile(a, w, k, first, sum, rows);                                                                               \
    }
TILE(1)
TILE(2)
TILE(3)
TILE(4)
TILE(5)
TILE(6)
TILE(7)
TILE(8)
TILE(9)
TILE(10)
TILE(11)
TILE(12)

static sq_arm_tile_fn *const tiles[MR + 1] = {NULL,   tile_1, tile_2, tile_3,  tile_4,  tile_5, tile_6,
                                              tile_7, tile_8, tile_9, tile_10, tile_11, tile_12};

static const sq_arm_gemm set = {.order = SQ_ARM_WORDS, .mr = MR, .tiles = TILES, .panels = 1, .i8 = tiles, .i4 = tiles};

void sq_gemm_dotprod(const sq_panels *w, uint32_t panel0, uint32_t n_panels, const sq_acts *a, const sq_gemm_out *out)
{
    sq_arm_gemm_run(&set, w, panel0, n_panels, a, out);
}
