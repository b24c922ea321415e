/*
 * rows_v16: rows.c, 16 floats at a time and with its bits. Who includes this has defined v16 (x86/v16_avx2.h).
 * SPDX-License-Identifier: MIT
 */
#include "simd/exp_v16.h"
#include "simd/internal.h"

/* Two vectors of partial sums: element i is in sum i % 32. */
typedef struct sums {
    v16 even, odd;
} sums;

SQ_INLINE float sum_of_sums(sums s) { return v_sum(v_add(s.even, s.odd)); }

static float sum_of(const float *x, uint32_t k)
{
    sums s = {v_all(0.0f), v_all(0.0f)};
    for (uint32_t i = 0; i < k; i += 32) {
        const int64_t left = (int64_t)k - i;
        s.even = v_add(s.even, v_load_first(x + i, left));
        if (left > 16) s.odd = v_add(s.odd, v_load_first(x + i + 16, left - 16));
    }
    return sum_of_sums(s);
}

/* The first n of (x - mean)^2, then zeros. */
SQ_INLINE v16 squares(const float *x, int64_t n, v16 mean)
{
    const v16 d = v_sub(v_load_first(x, n), mean);
    const v16 square = v_mul(d, d);
    return n >= 16 ? square : v_first(square, n, v_all(0.0f));
}

static float sum_of_squares(const float *x, float mean, uint32_t k)
{
    const v16 m = v_all(mean);
    sums s = {v_all(0.0f), v_all(0.0f)};
    for (uint32_t i = 0; i < k; i += 32) {
        const int64_t left = (int64_t)k - i;
        s.even = v_add(s.even, squares(x + i, left, m));
        if (left > 16) s.odd = v_add(s.odd, squares(x + i + 16, left - 16, m));
    }
    return sum_of_sums(s);
}

static void rms_norm(const sq_rows_in *in, const float *x, float *y)
{
    const v16 r = v_all(1.0f / sqrtf(sum_of_squares(x, 0.0f, in->k) / (float)in->k + in->eps));
    for (uint32_t i = 0; i < in->k; i += 16) {
        const int64_t n = (int64_t)in->k - i;
        v_store_first(y + i, n, v_mul(v_mul(v_load_first(x + i, n), r), v_load_first(in->weight + i, n)));
    }
}

static void layer_norm(const sq_rows_in *in, const float *x, float *y)
{
    const float mean = sum_of(x, in->k) / (float)in->k;
    const v16 m = v_all(mean);
    const v16 r = v_all(1.0f / sqrtf(sum_of_squares(x, mean, in->k) / (float)in->k + in->eps));
    for (uint32_t i = 0; i < in->k; i += 16) {
        const int64_t n = (int64_t)in->k - i;
        const v16 d = v_mul(v_sub(v_load_first(x + i, n), m), r);
        v_store_first(y + i, n, v_add(v_mul(d, v_load_first(in->weight + i, n)), v_load_first(in->bias + i, n)));
    }
}

/* x * sigmoid(s * x) */
SQ_INLINE v16 gate(v16 x, float s) { return v_div(x, v_add(v_all(1.0f), v_exp(v_mul(v_all(-s), x)))); }

SQ_INLINE v16 gelu(v16 x)
{
    const v16 e = v_erf(v_mul(x, v_all(SQ_SQRT_HALF)));
    return v_mul(v_mul(v_all(0.5f), x), v_add(v_all(1.0f), e));
}

static void activate(const sq_rows_in *in, const float *x, float *y)
{
    for (uint32_t i = 0; i < in->k; i += 16) {
        const int64_t n = (int64_t)in->k - i;
        const v16 v = v_load_first(x + i, n);
        if (in->op == SQ_ROW_SWIGLU) {
            v_store_first(y + i, n, v_mul(gate(v, 1.0f), v_load_first(x + in->k + i, n)));
        } else {
            v_store_first(y + i, n, in->op == SQ_ROW_GELU ? gelu(v) : gate(v, 1.702f));
        }
    }
}

static void one_row(const sq_rows_in *in, const float *x, float *y)
{
    switch (in->op) {
    case SQ_ROW_COPY:
        memcpy(y, x, in->k * sizeof *y);
        break;
    case SQ_ROW_RMSNORM:
        rms_norm(in, x, y);
        break;
    case SQ_ROW_LAYERNORM:
        layer_norm(in, x, y);
        break;
    case SQ_ROW_SWIGLU:
    case SQ_ROW_QUICKGELU:
    case SQ_ROW_GELU:
        activate(in, x, y);
        break;
    }
}

/* ---- Quantise and pack ------------------------------------------------------------------- */

/* A NaN loses against the number beside it. */
static float largest_magnitude(const float *y, uint32_t n)
{
    v16 most = v_all(0.0f);
    for (uint32_t i = 0; i < n; i += 16)
        most = v_max(v_abs(v_load_first(y + i, (int64_t)n - i)), most);
    return v_most(most);
}

/* The first n of 16 activations as int32 in [-127, 127], then zeros; max with the number second also turns a NaN into
 * one. */
SQ_INLINE v16i quantise16(const float *y, int64_t n, v16 inv)
{
    const v16 v = v_max(v_mul(v_load_first(y, n), inv), v_all(-127.0f));
    return v_to_i(v_min(v, v_all(127.0f)));
}

static void quantise_row(const float *y, sq_acts *out, uint32_t tile, uint32_t r)
{
    const uint32_t k = out->k, k_pad = sq_acts_k_pad(out), n_groups = sq_acts_groups(out), mr = out->mr;
    int8_t *q = out->q + ((size_t)tile * k_pad * mr + r * 4);
    for (uint32_t g = 0; g < n_groups; g++) {
        const uint32_t k0 = g * out->group, end = k - k0 < out->group ? k : k0 + out->group;
        const float most = largest_magnitude(y + k0, end - k0);
        const float inv = most >= SQ_ACT_LEAST ? 127.0f / most : 0.0f;
        const size_t at = ((size_t)tile * n_groups + g) * mr + r;
        const v16 by = v_all(inv);
        v16i sum = v_zero_i();
        for (uint32_t i = k0; i < end; i += 32) {
            const int64_t n = (int64_t)end - i;
            const v16i a = quantise16(y + i, n, by), b = quantise16(y + i + (n > 16 ? 16 : 0), n - 16, by);
            v_store_words(a, b, q + (size_t)i * mr, (size_t)mr * 4);
            sum = v_add_i(sum, v_add_i(a, b));
        }
        out->scale[at] = inv > 0.0f ? most / 127.0f : 0.0f;
        out->sum[at] = v_sum_i(sum);
    }
}

static void to_q8(const float *src, sq_block_q8_0 *dst, size_t n)
{
    for (size_t i = 0; i < n; i += SQ_BLOCK, dst++) {
        const uint32_t here = n - i < SQ_BLOCK ? (uint32_t)(n - i) : SQ_BLOCK;
        dst->d = sq_q8_scale(largest_magnitude(src + i, here));
        const float d = sq_f16_to_f32(dst->d);
        const v16 inv = v_all(d > 0.0f ? 1.0f / d : 0.0f);
        v_store_i8(dst->q, quantise16(src + i, here, inv));
        v_store_i8(dst->q + 16, quantise16(src + i + (here > 16 ? 16 : 0), (int64_t)here - 16, inv));
    }
}

static void rows_pack(const sq_rows_in *in, sq_acts *out, uint32_t tile0, uint32_t n_tiles, float *scratch)
{
    sq_rows_pack_with(in, out, tile0, n_tiles, scratch, one_row, quantise_row);
}
