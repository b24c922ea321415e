/*
 * peak: how fast a core runs the instructions of a matrix product when nothing else is in the way. For
 * benchmarks only; not in the library.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQ_SIMD_PEAK_H
#define SQ_SIMD_PEAK_H

#include <stdint.h>

/* Repeats the set's own multiply and add on 12 registers, without loads; returns the multiply-adds done. int4 of AVX2 adds
 * in int16 and so widens its sums as often as the products must. */
typedef double sq_peak_fn(uint64_t n_rounds);

sq_peak_fn sq_peak_i8_avx2, sq_peak_i4_avx2, sq_peak_f32_avx2;
sq_peak_fn sq_peak_avxvnni;    /* int8 and int4 use the same instruction */
sq_peak_fn sq_peak_avx512vnni; /* on 24 registers */
sq_peak_fn sq_peak_f32_avx512;
sq_peak_fn sq_peak_i8_neon, sq_peak_i4_neon;
sq_peak_fn sq_peak_dotprod, sq_peak_i8mm; /* as with AVX-512 */

#endif
