/*
 * attention_avx512: attention_v16.h for AVX-512: tiles of 12 queries by two vectors, 24 of 32 registers for sums.
 * SPDX-License-Identifier: MIT
 */
#include "simd/x86/v16_avx512.h"

enum { ROWS = 12, COLS = 2, STRIP = 16 * COLS, ROWS_A_WORD = 2 };

/* sum += y * *x, the instruction sending *x to all lanes: one less to decode, a load more. */
SQ_INLINE void add_product(__m512 *sum, __m512 y, const float *x)
{
    __asm__("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(*sum) : "v"(y), "m"(*x));
}

SQ_INLINE void multiply(const float *x, size_t x_step, size_t x_row, const float *y, size_t ldy, uint32_t n,
                        v16 acc[][COLS], uint32_t rows, uint32_t cols)
{
    for (; n; n--, x += x_step, y += ldy) {
        __m512 v[COLS];
        for (uint32_t c = 0; c < cols; c++)
            v[c] = _mm512_load_ps(y + 16 * c);
        SQ_UNROLL
        for (uint32_t r = 0; r < rows; r++) {
            const __m512 b = _mm512_set1_ps(x[r * x_row]);
            for (uint32_t c = 0; c < cols; c++) {
                if (r % ROWS_A_WORD)
                    add_product(&acc[r][c], v[c], x + r * x_row);
                else
                    acc[r][c] = _mm512_fmadd_ps(b, v[c], acc[r][c]);
            }
        }
    }
}

#include "simd/attention_v16.h"

TILE(4)
TILE(8)
TILE(12)

static tile_fn *tile_for(uint32_t n) { return n > 8 ? tile_12 : n > 4 ? tile_8 : tile_4; }

void sq_attention_avx512(const sq_attn *a) { attention(a); }
