/*
 * dispatch: the tables of kernels, and which of them this CPU runs.
 * SPDX-License-Identifier: MIT
 */
#include "config.h"
#include "simd/internal.h"

#include <string.h>

static const sq_kernels scalar = {
    .isa = "scalar",
    .mr = SQ_MR_C,
    .gemm_i8 = sq_gemm_i8_c,
    .gemm_i4 = sq_gemm_i4_c,
    .gemm_f32 = sq_gemm_f32_c,
    .rows_pack = sq_rows_pack_c,
    .row = sq_row_c,
    .attention = sq_attention_c,
    .depthwise = sq_depthwise_c,
    .dot = sq_dot_c,
    .dots = sq_dots_c,
    .scale = sq_scale_c,
    .to_f16 = sq_to_f16_c,
    .to_q8 = sq_to_q8_c,
    .rope = sq_rope_c,
    .select = sq_select_c,
};
static const char *const scalar_names[] = {"scalar", NULL};

#if SQ_ARCH_X86_64
/* Each set has products of its own, and rows and attention of AVX2 or AVX-512; the rest is AVX2's. */
#define X86_TABLE(set, tile_rows, width)                                                                               \
    {                                                                                                                  \
        .isa = #set, .mr = tile_rows, .gemm_i8 = sq_gemm_i8_##set, .gemm_i4 = sq_gemm_i4_##set,                        \
        .gemm_f32 = sq_gemm_f32_##width, .rows_pack = sq_rows_pack_##width, .row = sq_row_##width,                     \
        .attention = sq_attention_##width, .depthwise = sq_depthwise_##width, .dot = sq_dot_avx2,                      \
        .dots = sq_dots_avx2, .scale = sq_scale_avx2, .to_f16 = sq_to_f16_avx2, .to_q8 = sq_to_q8_##width,             \
        .rope = sq_rope_avx2, .select = sq_select_c,                                                                   \
    }
static const sq_kernels avx2 = X86_TABLE(avx2, SQ_MR_AVX2, avx2);
static const sq_kernels avxvnni = X86_TABLE(avxvnni, SQ_MR_AVXVNNI, avx2);
static const sq_kernels avx512 = X86_TABLE(avx512, SQ_MR_AVX512, avx512);
static const char *const avx2_names[] = {"scalar", "avx2", NULL};
static const char *const avxvnni_names[] = {"scalar", "avx2", "avxvnni", NULL};
static const char *const avx512_names[] = {"scalar", "avx2", "avx512", NULL};
static const char *const avx512_avxvnni_names[] = {"scalar", "avx2", "avxvnni", "avx512", NULL};

static bool avx512_and_avxvnni(void) { return sq_cpu_avx512() && sq_cpu_avxvnni(); }
#endif

#if SQ_ARCH_AARCH64
#define NEON_TABLE(name, rows, gemm)                                                                                   \
    {                                                                                                                  \
        .isa = name, .mr = rows, .gemm_i8 = gemm, .gemm_i4 = gemm, .gemm_f32 = sq_gemm_f32_neon,                       \
        .rows_pack = sq_rows_pack_neon, .row = sq_row_neon, .attention = sq_attention_neon,                            \
        .depthwise = sq_depthwise_neon, .dot = sq_dot_neon, .dots = sq_dots_neon, .scale = sq_scale_neon,              \
        .to_f16 = sq_to_f16_neon, .to_q8 = sq_to_q8_neon, .rope = sq_rope_neon, .select = sq_select_c,                 \
    }
static const sq_kernels neon = NEON_TABLE("neon", SQ_MR_NEON, sq_gemm_neon);
static const sq_kernels dotprod = NEON_TABLE("dotprod", SQ_MR_DOTPROD, sq_gemm_dotprod);
static const sq_kernels i8mm = NEON_TABLE("i8mm", SQ_MR_I8MM, sq_gemm_i8mm);
static const char *const neon_names[] = {"scalar", "neon", NULL};
static const char *const dotprod_names[] = {"scalar", "neon", "dotprod", NULL};
static const char *const i8mm_names[] = {"scalar", "neon", "dotprod", "i8mm", NULL};
#endif

static bool always(void) { return true; }

/* Best first. `names`: the tables that every CPU with this one runs, worst first, itself last. */
static const struct {
    const sq_kernels *kernels;
    bool (*runs)(void);
    const char *const *names;
} sets[] = {
#if SQ_ARCH_X86_64
    {&avx512, avx512_and_avxvnni, avx512_avxvnni_names},
    {&avx512, sq_cpu_avx512, avx512_names},
    {&avxvnni, sq_cpu_avxvnni, avxvnni_names},
    {&avx2, sq_cpu_avx2, avx2_names},
#endif
#if SQ_ARCH_AARCH64
    {&i8mm, sq_cpu_i8mm, i8mm_names},
    {&dotprod, sq_cpu_dotprod, dotprod_names},
    {&neon, always, neon_names},
#endif
    {&scalar, always, scalar_names},
};

const sq_kernels *sq_kernels_get(const char *isa)
{
    const bool best = !isa || !strcmp(isa, "auto");
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) {
        if ((best || !strcmp(isa, sets[i].kernels->isa)) && sets[i].runs()) return sets[i].kernels;
    }
    return NULL;
}

const char *const *sq_kernels_names(void)
{
    size_t i = 0;
    while (!sets[i].runs())
        i++; /* plain C always does */
    return sets[i].names;
}
