/*
 * internal: what the files of this room share. A table's functions live in the files of its instruction
 * set and are declared here, once, with the types of simd.h.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQ_SIMD_INTERNAL_H
#define SQ_SIMD_INTERNAL_H

#include "simd/simd.h"

/* For kernels: their small functions must not become calls. */
#define SQ_INLINE static inline __attribute__((always_inline))

/* Before a loop over registers, which must be gone before GCC decides which arrays can be registers. */
#ifdef __clang__
#define SQ_UNROLL _Pragma("clang loop unroll(full)")
#else
#define SQ_UNROLL _Pragma("GCC unroll 24")
#endif

/* ---- What the CPU and its operating system allow ----------------------------------------- */

bool sq_cpu_avx2(void);    /* AVX2, FMA and F16C, and ymm registers that survive a task switch */
bool sq_cpu_avxvnni(void); /* all that, and VNNI in its VEX encoding */
bool sq_cpu_avx512(void);  /* AVX2's, and AVX-512 F, DQ, BW, VL, VNNI with zmm registers */
bool sq_cpu_dotprod(void); /* SDOT */
bool sq_cpu_i8mm(void);    /* SDOT and SMMLA */

/* ---- Shared by all versions -------------------------------------------------------------- */

/* Amounts below this count as zero: 127 / x must stay finite. */
#define SQ_ACT_LEAST 0x1p-100f

/* Quantises one row y[out->k] into row r of a tile: its q, scale and sum, padding included. */
typedef void sq_quantise_row_fn(const float *y, sq_acts *out, uint32_t tile, uint32_t r);

/* The loop of every rows_pack: picks the rows, applies the op, zeroes rows past m. */
void sq_rows_pack_with(const sq_rows_in *in, sq_acts *out, uint32_t tile0, uint32_t n_tiles, float *scratch,
                       sq_row_fn *row, sq_quantise_row_fn *quantise);

/* Add partial sums in the order that every version keeps: the upper half of them to the lower, and so on. */
static inline float sq_sum8(const float s[8])
{
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

static inline float sq_sum16(const float s[16])
{
    float half[8];
    for (int i = 0; i < 8; i++)
        half[i] = s[i] + s[i + 8];
    return sq_sum8(half);
}

static inline float sq_sum32(const float s[32])
{
    float half[16];
    for (int i = 0; i < 16; i++)
        half[i] = s[i] + s[i + 16];
    return sq_sum16(half);
}

/* The scale of a block of a Q8 cache whose largest magnitude is `most`, as binary16. */
static inline uint16_t sq_q8_scale(float most)
{
    const float d = most / 127.0f;
    return sq_f32_to_f16(d < 65504.0f ? d : 65504.0f);
}

/* A key whose score is this far below the largest gets no weight: next to a weight of 1 it cannot change a float, but
 * from 87 on it would be a denormal number, which costs a CPU some 100 cycles a multiply-add. */
#define SQ_ATTN_LEAST_SCORE (-60.0f)

/* erf's argument in GELU is x times this. */
#define SQ_SQRT_HALF 0.70710678f

/* Calls of fewer queries read keys and values as they lie. */
enum { SQ_ATTN_FEW = 4 };

/* Keys of a block: what fits L1 beside as many values. */
static inline uint32_t sq_attn_block(uint32_t head_dim) { return head_dim > 64 ? 32 : 64; }

/* Keys that query i of a call attends. */
static inline uint32_t sq_attn_limit(const sq_attn *a, uint32_t i)
{
    const uint64_t seen = (uint64_t)a->first_kv + i + 1;
    return a->causal && seen < a->n_kv ? (uint32_t)seen : a->n_kv;
}

/* ---- Plain C: defines the results -------------------------------------------------------- */

enum { SQ_MR_C = 4 };
sq_gemm_fn sq_gemm_i8_c, sq_gemm_i4_c;
sq_gemm_f32_fn sq_gemm_f32_c;
sq_rows_pack_fn sq_rows_pack_c;
sq_row_fn sq_row_c;
sq_attn_fn sq_attention_c;
sq_depthwise_fn sq_depthwise_c;
sq_dot_fn sq_dot_c;
sq_dots_fn sq_dots_c;
sq_scale_fn sq_scale_c;
sq_to_f16_fn sq_to_f16_c;
sq_to_q8_fn sq_to_q8_c;
sq_rope_fn sq_rope_c;
sq_select_fn sq_select_c;

/* ---- AVX2 -------------------------------------------------------------------------------- */

enum { SQ_MR_AVX2 = 6 };
sq_gemm_fn sq_gemm_i8_avx2, sq_gemm_i4_avx2;
sq_gemm_f32_fn sq_gemm_f32_avx2;
sq_rows_pack_fn sq_rows_pack_avx2;
sq_row_fn sq_row_avx2;
sq_attn_fn sq_attention_avx2;
sq_depthwise_fn sq_depthwise_avx2;
sq_dot_fn sq_dot_avx2;
sq_dots_fn sq_dots_avx2;
sq_scale_fn sq_scale_avx2;
sq_to_f16_fn sq_to_f16_avx2;
sq_to_q8_fn sq_to_q8_avx2;
sq_rope_fn sq_rope_avx2;

/* ---- AVX2 with VNNI ---------------------------------------------------------------------- */

enum { SQ_MR_AVXVNNI = 6 };
sq_gemm_fn sq_gemm_i8_avxvnni, sq_gemm_i4_avxvnni;

/* ---- AVX-512 with VNNI ------------------------------------------------------------------- */

enum { SQ_MR_AVX512 = 12 };
sq_gemm_fn sq_gemm_i8_avx512, sq_gemm_i4_avx512;
sq_gemm_f32_fn sq_gemm_f32_avx512;
sq_rows_pack_fn sq_rows_pack_avx512;
sq_row_fn sq_row_avx512;
sq_to_q8_fn sq_to_q8_avx512;
sq_attn_fn sq_attention_avx512;
sq_depthwise_fn sq_depthwise_avx512;

/* ---- NEON; the sets differ in their matrix products alone -------------------------------- */

enum { SQ_MR_NEON = 4, SQ_MR_DOTPROD = 12, SQ_MR_I8MM = 12 };
sq_gemm_fn sq_gemm_neon, sq_gemm_dotprod, sq_gemm_i8mm; /* int8 and int4 */
sq_gemm_f32_fn sq_gemm_f32_neon;
sq_rows_pack_fn sq_rows_pack_neon;
sq_row_fn sq_row_neon;
sq_attn_fn sq_attention_neon;
sq_depthwise_fn sq_depthwise_neon;
sq_dot_fn sq_dot_neon;
sq_dots_fn sq_dots_neon;
sq_scale_fn sq_scale_neon;
sq_to_f16_fn sq_to_f16_neon;
sq_to_q8_fn sq_to_q8_neon;
sq_rope_fn sq_rope_neon;

#endif
