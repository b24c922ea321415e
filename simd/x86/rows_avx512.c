/*
 * rows_avx512: rows_v16.h for AVX-512.
 * SPDX-License-Identifier: MIT
 */
#include "simd/x86/v16_avx512.h"

#include "simd/rows_v16.h"

void sq_row_avx512(const sq_rows_in *in, const float *x, float *y) { one_row(in, x, y); }

void sq_rows_pack_avx512(const sq_rows_in *in, sq_acts *out, uint32_t tile0, uint32_t n_tiles, float *scratch)
{
    rows_pack(in, out, tile0, n_tiles, scratch);
}

void sq_to_q8_avx512(const float *src, sq_block_q8_0 *dst, size_t n) { to_q8(src, dst, n); }
