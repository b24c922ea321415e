/*
 * gemm_i8mm: the inner loop with SMMLA (Armv8.6, Neoverse V1 and later). simd/arm/gemm.c says what surrounds it.
 * SPDX-License-Identifier: MIT
 *
 * SMMLA multiplies 2 channels by 2 rows over 8 inputs. 12 rows by half a panel: 24 registers hold sums of 2 by 2, 4
 * the weights of 8 channels, 1 the activations of two rows. 10 loads and no other instruction for 24 SMMLA. An odd
 * last row is multiplied together with the zeros after it.
 */
#include "simd/arm/gemm.h"

#if !defined(__ARM_FEATURE_MATMUL_INT8)
#error "needs +i8mm: see simd_sets in simd/meson.build"
#endif

enum { MR = SQ_MR_I8MM, NR = SQ_PANEL_N, TILES = 4, PANELS = 4 };

static_assert(MR * TILES * PANELS <= SQ_ARM_SLOTS && MR * TILES <= SQ_ARM_PAIRED && MR % 4 == 0, "sums of a batch");

SQ_INLINE int64x2_t as_64(int32x4_t v) { return vreinterpretq_s64_s32(v); }
SQ_INLINE int32x4_t as_32(int64x2_t v) { return vreinterpretq_s32_s64(v); }

/* Two rows of 4 channels to and from two sums, whose order is [row][channel] and [row][next channels]. */
SQ_INLINE void load_pair(const int32_t *sum, int32x4_t acc[2])
{
    const int64x2_t r0 = as_64(vld1q_s32(sum)), r1 = as_64(vld1q_s32(sum + NR));
    acc[0] = as_32(vzip1q_s64(r0, r1));
    acc[1] = as_32(vzip2q_s64(r0, r1));
}

SQ_INLINE void store_pair(int32_t *sum, const int32x4_t acc[2])
{
    vst1q_s32(sum, as_32(vzip1q_s64(as_64(acc[0]), as_64(acc[1]))));
    vst1q_s32(sum + NR, as_32(vzip2q_s64(as_64(acc[0]), as_64(acc[1]))));
}

SQ_INLINE void half_tile(const int8_t *a, const int8_t *w, uint32_t k, bool first, int32_t *sum, uint32_t pairs)
{
    int32x4_t acc[MR / 2][4];
    for (uint32_t r = 0; r < pairs; r++) {
        for (int c = 0; c < 4; c++)
            acc[r][c] = vdupq_n_s32(0);
        for (int c = 0; c < 4 && !first; c += 2)
            load_pair(sum + r * 2 * NR + c * 2, acc[r] + c);
    }
    for (; k; k -= 8, a += 8 * MR, w += 64) {
        const int8x16_t w0 = vld1q_s8(w), w1 = vld1q_s8(w + 16), w2 = vld1q_s8(w + 32), w3 = vld1q_s8(w + 48);
        for (uint32_t r = 0; r < pairs; r++) {
            const int8x16_t b = vld1q_s8(a + r * 16);
            acc[r][0] = vmmlaq_s32(acc[r][0], b, w0);
            acc[r][1] = vmmlaq_s32(acc[r][1], b, w1);
            acc[r][2] = vmmlaq_s32(acc[r][2], b, w2);
            acc[r][3] = vmmlaq_s32(acc[r][3], b, w3);
        }
    }
    for (uint32_t r = 0; r < pairs; r++) {
        for (int c = 0; c < 4; c += 2)
            store_pair(sum + r * 2 * NR + c * 2, acc[r] + c);
    }
}

SQ_INLINE void tile(const int8_t *a, const int8_t *w, uint32_t k, bool first, int32_t *sum, uint32_t pairs)
{
    for (int h = 0; h < 2; h++)
        half_tile(a, w + h * SQ_ARM_HALF, k, first, sum + h * 8, pairs);
}

#define TILE(pairs)                                                                                                    \
    static void tile_##pairs(const int8_t *a, const int8_t *w, uint32_t k, bool first, int32_t *sum)                   \
    {                                                                                                                  \
        tile(a, w, k, first, sum, pairs);                                                                              \
    }
TILE(1)
TILE(2)
TILE(3)
TILE(4)
TILE(5)
TILE(6)

static sq_arm_tile_fn *const tiles[MR + 1] = {NULL,   tile_1, tile_1, tile_2, tile_2, tile_3, tile_3,
                                              tile_4, tile_4, tile_5, tile_5, tile_6, tile_6};

static const sq_arm_gemm set = {
    .order = SQ_ARM_PAIRS, .mr = MR, .tiles = TILES, .panels = PANELS, .i8 = tiles, .i4 = tiles};

void sq_gemm_i8mm(const sq_panels *w, uint32_t panel0, uint32_t n_panels, const sq_acts *a, const sq_gemm_out *out)
{
    sq_arm_gemm_run(&set, w, panel0, n_panels, a, out);
}
