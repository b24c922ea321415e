/*
 * attention_neon: attention_v16.h for NEON: tiles of 4 queries by one vector of four registers, 16 of 32 for sums.
 * SPDX-License-Identifier: MIT
 */
#include "simd/arm/v16_neon.h"

enum { ROWS = 4, COLS = 1, STRIP = 16 * COLS };

/* sum += y * b[lane]; the lane must be a constant. */
#define ADD_LANE(sum, y, b, lane)                                                                                      \
    do {                                                                                                               \
        (sum).a = vfmaq_laneq_f32((sum).a, (y).a, b, lane);                                                            \
        (sum).b = vfmaq_laneq_f32((sum).b, (y).b, b, lane);                                                            \
        (sum).c = vfmaq_laneq_f32((sum).c, (y).c, b, lane);                                                            \
        (sum).d = vfmaq_laneq_f32((sum).d, (y).d, b, lane);                                                            \
    } while (0)

/* One step: b has the x of the four rows. */
SQ_INLINE void add_step(v16 acc[][COLS], float32x4_t b, const float *y)
{
    const v16 v = v_load(y);
    ADD_LANE(acc[0][0], v, b, 0);
    ADD_LANE(acc[1][0], v, b, 1);
    ADD_LANE(acc[2][0], v, b, 2);
    ADD_LANE(acc[3][0], v, b, 3);
}

SQ_INLINE void multiply(const float *x, size_t x_step, size_t x_row, const float *y, size_t ldy, uint32_t n,
                        v16 acc[][COLS], uint32_t rows, uint32_t cols)
{
    assert(rows == ROWS && cols == COLS);
    (void)rows, (void)cols;
    if (x_row == 1) {
        for (; n; n--, x += x_step, y += ldy)
            add_step(acc, vld1q_f32(x), y);
        return;
    }
    for (; n >= 4; n -= 4, x += 4) {
        float32x4_t b0 = vld1q_f32(x), b1 = vld1q_f32(x + x_row), b2 = vld1q_f32(x + 2 * x_row);
        float32x4_t b3 = vld1q_f32(x + 3 * x_row);
        transpose4(&b0, &b1, &b2, &b3);
        add_step(acc, b0, y);
        add_step(acc, b1, y + ldy);
        add_step(acc, b2, y + 2 * ldy);
        add_step(acc, b3, y + 3 * ldy);
        y += 4 * ldy;
    }
    for (; n; n--, x++, y += ldy) {
        const float32x4_t b = {x[0], x[x_row], x[2 * x_row], x[3 * x_row]};
        add_step(acc, b, y);
    }
}

#include "simd/attention_v16.h"

TILE(4)

static tile_fn *tile_for(uint32_t n)
{
    (void)n;
    return tile_4;
}

void sq_attention_neon(const sq_attn *a) { attention(a); }
