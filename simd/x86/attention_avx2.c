/*
 * attention_avx2: simd/attention.c defines the results.
 * SPDX-License-Identifier: MIT
 */
#include "simd/x86/avx2.h"

void sq_attention_avx2(const sq_attn *a) { sq_attention_c(a); }
