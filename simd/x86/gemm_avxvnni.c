/*
 * gemm_avxvnni: gemm_vnni.h with vectors of 8 channels (VEX encoding): 6 rows by one panel, 12 of 16 registers for
 * sums. SPDX-License-Identifier: MIT
 */
#include "simd/x86/avx2.h"

#if !defined(__AVXVNNI__)
#error "needs -mavxvnni: see simd_sets in simd/meson.build"
#endif

enum { MR = SQ_MR_AVXVNNI, LANES = 8, ROWS_A_WORD = 1 };

typedef __m256i ivec;
typedef __m256 fvec;

SQ_INLINE ivec load_i(const void *p) { return _mm256_load_si256(p); }
SQ_INLINE void store_i(void *p, ivec v) { _mm256_store_si256(p, v); }
SQ_INLINE ivec all_i32(int32_t v) { return _mm256_set1_epi32(v); }
SQ_INLINE ivec low_nibbles(ivec v) { return low_nibbles8(v); }
SQ_INLINE ivec shift_right_4(ivec v) { return _mm256_srli_epi16(v, 4); }
SQ_INLINE fvec to_float(ivec v) { return _mm256_cvtepi32_ps(v); }

/* In place: GCC 12 would otherwise copy every sum to another register and back. */
SQ_INLINE void dot(ivec *sum, ivec u, ivec a) { __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(*sum) : "x"(u), "x"(a)); }

/* The same with four bytes in memory for all lanes. */
SQ_INLINE void dot_memory(ivec *sum, ivec u, const int8_t *q)
{
    int32_t four;
    memcpy(&four, q, sizeof four);
    dot(sum, u, all_i32(four));
}

SQ_INLINE fvec all_f32(float v) { return _mm256_set1_ps(v); }
SQ_INLINE fvec load_f(const float *p) { return _mm256_load_ps(p); }
SQ_INLINE void store_f(float *p, fvec v) { _mm256_store_ps(p, v); }
SQ_INLINE fvec load_halves(const void *p) { return _mm256_cvtph_ps(_mm_load_si128(p)); }
SQ_INLINE fvec add(fvec a, fvec b) { return _mm256_add_ps(a, b); }
SQ_INLINE fvec multiply(fvec a, fvec b) { return _mm256_mul_ps(a, b); }
SQ_INLINE fvec multiply_add(fvec a, fvec b, fvec c) { return _mm256_fmadd_ps(a, b, c); }
SQ_INLINE fvec load_first(const float *p, uint32_t n) { return _mm256_maskload_ps(p, first_lanes(n)); }
SQ_INLINE void store_first(float *p, uint32_t n, fvec v) { _mm256_maskstore_ps(p, first_lanes(n), v); }

#include "simd/x86/gemm_vnni.h"

#define TILES_OF(type, is_i4)                                                                                          \
    TILE(type, is_i4, 1, 2)                                                                                            \
    TILE(type, is_i4, 2, 2)                                                                                            \
    TILE(type, is_i4, 4, 2)                                                                                            \
    TILE(type, is_i4, 6, 2)

TILES_OF(i8, false)
TILES_OF(i4, true)

#define ROWS_OF(type, is_i4)                                                                                           \
    ROW(type, is_i4, 2)                                                                                                \
    ROW(type, is_i4, 4)                                                                                                \
    ROW(type, is_i4, 8)

ROWS_OF(i8, false)
ROWS_OF(i4, true)

/* A panel is always two vectors. */
static const kernels kernels_i8 = {{NULL}, {i8_1x2, i8_2x2, i8_4x2, i8_6x2}};
static const kernels kernels_i4 = {{NULL}, {i4_1x2, i4_2x2, i4_4x2, i4_6x2}};

static row_fn *const rows_i8[] = {i8_row_8, i8_row_4, i8_row_2};
static row_fn *const rows_i4[] = {i4_row_8, i4_row_4, i4_row_2};

void sq_gemm_i8_avxvnni(const sq_panels *w, uint32_t panel0, uint32_t n_panels, const sq_acts *a,
                        const sq_gemm_out *out)
{
    static const method how = {&kernels_i8, &kernels_i8, rows_i8, 128, NR};
    gemm(&how, w, panel0, n_panels, a, out);
}

void sq_gemm_i4_avxvnni(const sq_panels *w, uint32_t panel0, uint32_t n_panels, const sq_acts *a,
                        const sq_gemm_out *out)
{
    static const method how = {&kernels_i4, &kernels_i8, rows_i4, 8, NR / 2};
    gemm(&how, w, panel0, n_panels, a, out);
}
