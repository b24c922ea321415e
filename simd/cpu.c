/*
 * cpu: what this processor and its operating system let us execute.
 * SPDX-License-Identifier: MIT
 */
#include "config.h"
#include "simd/internal.h"

#if SQ_ARCH_X86_64
#include <cpuid.h>

enum {
    LEAF1_ECX_FMA = 1 << 12,
    LEAF1_ECX_OSXSAVE = 1 << 27,
    LEAF1_ECX_AVX = 1 << 28,
    LEAF1_ECX_F16C = 1 << 29,
    LEAF7_EBX_AVX2 = 1 << 5,
    LEAF7_EBX_AVX512F = 1 << 16,
    LEAF7_EBX_AVX512DQ = 1 << 17,
    LEAF7_EBX_AVX512BW = 1 << 30,
    LEAF7_ECX_AVX512VNNI = 1 << 11,
    LEAF7_1_EAX_AVXVNNI = 1 << 4,
    XCR0_YMM = 1 << 1 | 1 << 2,          /* xmm and the upper halves of ymm */
    XCR0_ZMM = 1 << 5 | 1 << 6 | 1 << 7, /* masks, the upper halves of zmm, zmm 16 to 31 */
};
static const uint32_t LEAF7_EBX_AVX512VL = 1u << 31;

/* XCR0: the registers that the operating system saves. CPUID alone tells only what the core could do. */
static uint32_t saved_registers(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

bool sq_cpu_avx2(void)
{
    const unsigned leaf1 = LEAF1_ECX_FMA | LEAF1_ECX_OSXSAVE | LEAF1_ECX_AVX | LEAF1_ECX_F16C;
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & leaf1) != leaf1) return false;
    if ((saved_registers() & XCR0_YMM) != XCR0_YMM) return false;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & LEAF7_EBX_AVX2);
}

bool sq_cpu_avxvnni(void)
{
    unsigned a, b, c, d;
    return sq_cpu_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & LEAF7_1_EAX_AVXVNNI);
}

bool sq_cpu_avx512(void)
{
    const uint32_t leaf7 = LEAF7_EBX_AVX512F | LEAF7_EBX_AVX512DQ | LEAF7_EBX_AVX512BW | LEAF7_EBX_AVX512VL;
    unsigned a, b, c, d;
    if (!sq_cpu_avx2() || (saved_registers() & XCR0_ZMM) != XCR0_ZMM) return false;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & leaf7) == leaf7 && (c & LEAF7_ECX_AVX512VNNI);
}
#elif SQ_ARCH_AARCH64
#include <sys/auxv.h>

/* Linux's numbers, which older headers lack. */
static const unsigned long HWCAP_SDOT = 1ul << 20, HWCAP2_SMMLA = 1ul << 13;

bool sq_cpu_dotprod(void) { return getauxval(AT_HWCAP) & HWCAP_SDOT; }
bool sq_cpu_i8mm(void) { return sq_cpu_dotprod() && (getauxval(AT_HWCAP2) & HWCAP2_SMMLA); }
#endif

#if !SQ_ARCH_X86_64
bool sq_cpu_avx2(void) { return false; }
bool sq_cpu_avxvnni(void) { return false; }
bool sq_cpu_avx512(void) { return false; }
#endif
