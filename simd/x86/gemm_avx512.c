/*
 * gemm_avx512: gemm_vnni.h with vectors of 16 channels: 12 rows by two panels, 24 of 32 registers for sums.
 * SPDX-License-Identifier: MIT
 */
#include "simd/x86/avx512.h"

enum { MR = SQ_MR_AVX512, LANES = 16, ROWS_A_WORD = 4 };

typedef __m512i ivec;
typedef __m512 fvec;

SQ_INLINE ivec load_i(const void *p) { return _mm512_load_si512(p); }
SQ_INLINE void store_i(void *p, ivec v) { _mm512_store_si512(p, v); }
SQ_INLINE ivec all_i32(int32_t v) { return _mm512_set1_epi32(v); }
SQ_INLINE ivec low_nibbles(ivec v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
SQ_INLINE ivec shift_right_4(ivec v) { return _mm512_srli_epi16(v, 4); }
SQ_INLINE void dot(ivec *sum, ivec u, ivec a) { dot512(sum, u, a); }
/* The same with four bytes in memory for all lanes: one instruction less to decode, which counts where two threads
 * share a core. But only two loads a cycle go with two dots, so one row in ROWS_A_WORD has its bytes in a register. */
SQ_INLINE void dot_memory(ivec *sum, ivec u, const int8_t *q)
{
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(*sum) : "v"(u), "m"(*(const int8_t(*)[4])q));
}

SQ_INLINE fvec to_float(ivec v) { return _mm512_cvtepi32_ps(v); }

SQ_INLINE fvec all_f32(float v) { return _mm512_set1_ps(v); }
SQ_INLINE fvec load_f(const float *p) { return _mm512_load_ps(p); }
SQ_INLINE void store_f(float *p, fvec v) { _mm512_store_ps(p, v); }
SQ_INLINE fvec load_halves(const void *p) { return _mm512_cvtph_ps(_mm256_load_si256(p)); }
SQ_INLINE fvec add(fvec a, fvec b) { return _mm512_add_ps(a, b); }
SQ_INLINE fvec multiply(fvec a, fvec b) { return _mm512_mul_ps(a, b); }
SQ_INLINE fvec multiply_add(fvec a, fvec b, fvec c) { return _mm512_fmadd_ps(a, b, c); }

SQ_INLINE __mmask16 first(uint32_t n) { return (__mmask16)((1u << n) - 1); }
SQ_INLINE fvec load_first(const float *p, uint32_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
SQ_INLINE void store_first(float *p, uint32_t n, fvec v) { _mm512_mask_storeu_ps(p, first(n), v); }

#include "simd/x86/gemm_vnni.h"

#define TILES_OF(type, is_i4, vecs)                                                                                    \
    TILE(type, is_i4, 1, vecs)                                                                                         \
    TILE(type, is_i4, 2, vecs)                                                                                         \
    TILE(type, is_i4, 4, vecs)                                                                                         \
    TILE(type, is_i4, 6, vecs)                                                                                         \
    TILE(type, is_i4, 8, vecs)                                                                                         \
    TILE(type, is_i4, 10, vecs)                                                                                        \
    TILE(type, is_i4, 12, vecs)

TILES_OF(i8, false, 1)
TILES_OF(i8, false, 2)
TILES_OF(i4, true, 1)
TILES_OF(i4, true, 2)

#define ROWS_OF(type, is_i4)                                                                                           \
    ROW(type, is_i4, 1)                                                                                                \
    ROW(type, is_i4, 2)                                                                                                \
    ROW(type, is_i4, 4)                                                                                                \
    ROW(type, is_i4, 8)

ROWS_OF(i8, false)
ROWS_OF(i4, true)

#define NAMES_OF(type, vecs)                                                                                           \
    {                                                                                                                  \
        type##_1x##vecs, type##_2x##vecs, type##_4x##vecs, type##_6x##vecs, type##_8x##vecs, type##_10x##vecs,         \
            type##_12x##vecs                                                                                           \
    }

static const kernels kernels_i8 = {NAMES_OF(i8, 1), NAMES_OF(i8, 2)};
static const kernels kernels_i4 = {NAMES_OF(i4, 1), NAMES_OF(i4, 2)};

static row_fn *const rows_i8[] = {i8_row_8, i8_row_4, i8_row_2, i8_row_1};
static row_fn *const rows_i4[] = {i4_row_8, i4_row_4, i4_row_2, i4_row_1};

void sq_gemm_i8_avx512(const sq_panels *w, uint32_t panel0, uint32_t n_panels, const sq_acts *a, const sq_gemm_out *out)
{
    static const method how = {&kernels_i8, &kernels_i8, rows_i8, 128, NR};
    gemm(&how, w, panel0, n_panels, a, out);
}

void sq_gemm_i4_avx512(const sq_panels *w, uint32_t panel0, uint32_t n_panels, const sq_acts *a, const sq_gemm_out *out)
{
    static const method how = {&kernels_i4, &kernels_i8, rows_i4, 8, NR / 2};
    gemm(&how, w, panel0, n_panels, a, out);
}
