/*
 * attention_avx2: attention_v16.h for AVX2: tiles of 6 queries by one vector of two ymm, 12 of 16 registers for sums.
 * SPDX-License-Identifier: MIT
 */
#include "simd/x86/v16_avx2.h"

enum { ROWS = 6, COLS = 1, STRIP = 16 * COLS };

SQ_INLINE void multiply(const float *x, size_t x_step, size_t x_row, const float *y, size_t ldy, uint32_t n,
                        v16 acc[][COLS], uint32_t rows, uint32_t cols)
{
    assert(cols == COLS);
    (void)cols;
    for (; n; n--, x += x_step, y += ldy) {
        const __m256 y0 = _mm256_load_ps(y), y1 = _mm256_load_ps(y + 8);
        SQ_UNROLL
        for (uint32_t r = 0; r < rows; r++) {
            const __m256 b = _mm256_broadcast_ss(x + r * x_row);
            acc[r][0].lo = _mm256_fmadd_ps(b, y0, acc[r][0].lo);
            acc[r][0].hi = _mm256_fmadd_ps(b, y1, acc[r][0].hi);
        }
    }
}

#include "simd/attention_v16.h"

TILE(2)
TILE(4)
TILE(6)

static tile_fn *tile_for(uint32_t n) { return n > 4 ? tile_6 : n > 2 ? tile_4 : tile_2; }

void sq_attention_avx2(const sq_attn *a) { attention(a); }
