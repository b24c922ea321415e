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
    XCR0_YMM = 1 << 1 | 1 << 2, /* xmm and the upper halves of ymm */
};

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
#else
bool sq_cpu_avx2(void) { return false; }
#endif
