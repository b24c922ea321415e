/*
 * rows: what happens to a row on its way into a matrix product, and its quantisation. The bits are simd/rows.c's.
 * SPDX-License-Identifier: MIT
 *
 * A block of threads has one row. The figures of a norm are one warp's work by definition; all else is independent from
 * element to element, and from group to group in quantising, so that other rows are shared out among several blocks.
 */
#include "simd/cuda/gemm.cuh"
#include "simd/cuda/rows.cuh"

#include <limits.h>

enum {
    THREADS = 256,
    WARPS = THREADS / SQ_WARP,
    ELEMENTS = 4 * THREADS,     /* of a row for a block of threads, when it may have several */
    WORDS = 2,                  /* words of four numbers that a lane quantises at a time, */
    PART = WORDS * 4 * SQ_WARP, /* and elements that a warp does */
};

sq_rows_in sq_cuda_rows_in(sq_stream *s, const sq_rows_in *in)
{
    sq_rows_in there = *in;
    const size_t bytes = in->k * sizeof(float);
    there.weight = sq_row_is_norm(in->op) ? (const float *)sq_cuda_weights(s, in->weight, bytes) : NULL;
    there.bias = in->op == SQ_ROW_LAYERNORM ? (const float *)sq_cuda_weights(s, in->bias, bytes) : NULL;
    return there;
}

/* ---- Rows as floats ---------------------------------------------------------------------- */

struct rows_args {
    sq_rows_in in;
    void *out; /* float, or binary16 */
    size_t ldo;
};

template <bool HALF> static __global__ void __launch_bounds__(THREADS) rows_kernel(const rows_args a)
{
    __shared__ sq_row_figures shared;
    const uint32_t row = blockIdx.x;
    const float *const x = sq_row_source(&a.in, row);
    sq_row_figures figures = {0.0f, 0.0f};
    if (sq_row_is_norm(a.in.op)) {
        if (threadIdx.x < SQ_WARP) {
            figures = sq_row_figures_of(&a.in, x);
            if (threadIdx.x == 0) shared = figures;
        }
        __syncthreads(); /* nobody writes before the row has been read: out may be x */
        figures = shared;
    }
    for (uint32_t i = blockIdx.y * THREADS + threadIdx.x; i < a.in.k; i += gridDim.y * THREADS) {
        const float y = sq_row_value(&a.in, figures, x, i);
        if (HALF)
            ((uint16_t *)a.out)[row * a.ldo + i] = sq_float_to_half(y);
        else
            ((float *)a.out)[row * a.ldo + i] = y;
    }
}

/* The second dimension of the grid is at most SQ_MAX_DIM / ELEMENTS, 16384. */
static void rows_to(sq_stream *s, const sq_rows_in *in, uint32_t m, void *out, size_t ldo, bool half)
{
    const rows_args args = {sq_cuda_rows_in(s, in), out, ldo};
    if (!m || !in->k) return;
    const dim3 grid(m, sq_row_is_norm(in->op) ? 1 : sq_ceil_div(in->k, ELEMENTS));
    if (half)
        SQ_LAUNCH(s, rows_kernel<true>, grid, THREADS, args);
    else
        SQ_LAUNCH(s, rows_kernel<false>, grid, THREADS, args);
}

void sq_cuda_rows(sq_stream *s, const sq_rows_in *in, uint32_t m, float *out, size_t ldo)
{
    rows_to(s, in, m, out, ldo, false);
}

bool sq_cuda_rows_floats(sq_stream *s, const sq_rows_in *in, uint32_t m, bool half, sq_cuda_floats_in *out)
{
    *out = {in->x, in->ldx, in->k};
    if (!half && in->op == SQ_ROW_COPY && !in->rows && in->ldx <= INT_MAX) return true; /* cuBLAS counts in int */
    void *const x = sq_cuda_scratch(s, SQ_SLOT_ROWS, (size_t)m * in->k * (half ? sizeof(uint16_t) : sizeof(float)));
    if (!x) return false;
    *out = {x, in->k, in->k};
    rows_to(s, in, m, x, in->k, half);
    return !s->failed;
}

/* ---- Quantise and pack ------------------------------------------------------------------- */

struct pack_args {
    sq_rows_in in;
    sq_cuda_acts acts;
    uint32_t n_pairs, n_groups;
    uint32_t n_units; /* of a warp's work: parts or groups */
};

/* Nearest, ties to even; the clamp also turns a NaN into a number. */
SQ_DEVICE uint32_t quantise(float v)
{
    v = v > -127.0f ? v : -127.0f;
    v = v < 127.0f ? v : 127.0f;
    return (uint32_t)(int)rintf(v) & 255u;
}

/* The first element of a lane's word w of the PART from k0 on. */
SQ_DEVICE uint32_t word_start(uint32_t k0, int w) { return k0 + (w * SQ_WARP + threadIdx.x % SQ_WARP) * 4; }

/* A lane's words of the PART from k0 on; 0 past `end`. */
SQ_DEVICE void values_of(const pack_args *a, sq_row_figures f, const float *x, uint32_t k0, uint32_t end,
                         float y[WORDS][4])
{
    SQ_UNROLL
    for (int w = 0; w < WORDS; w++)
        SQ_UNROLL
    for (int j = 0; j < 4; j++) {
        const uint32_t k = word_start(k0, w) + j;
        y[w][j] = k < end ? sq_row_value(&a->in, f, x, k) : 0.0f;
    }
}

/* The largest magnitude, or `most`; never NaN. */
SQ_DEVICE float largest(const float y[4], float most)
{
    SQ_UNROLL
    for (int j = 0; j < 4; j++)
        most = fabsf(y[j]) > most ? fabsf(y[j]) : most;
    return most;
}

SQ_DEVICE float inverse_of(float most) { return most >= SQ_ACT_LEAST ? 127.0f / most : 0.0f; }

SQ_DEVICE void store_word(const pack_args *a, uint32_t row, uint32_t k, const float y[4], float inv)
{
    uint32_t word = 0;
    SQ_UNROLL
    for (int j = 0; j < 4; j++)
        word |= quantise(y[j] * inv) << (8 * j);
    a->acts.q[sq_word_at(row, k, a->n_pairs)] = word;
}

SQ_DEVICE void store_scale(const pack_args *a, uint32_t row, uint32_t g, float most)
{
    if (g < a->n_groups)
        a->acts.scale[sq_scale_at(row, g, a->n_groups)] = inverse_of(most) > 0.0f ? most / 127.0f : 0.0f;
}

/* A PART of groups of 32, 64 or 128, by a warp: group / 4 lanes have the same group in a word. */
SQ_DEVICE void pack_part(const pack_args *a, sq_row_figures f, const float *x, uint32_t row, uint32_t k0)
{
    const uint32_t group = a->acts.group;
    float y[WORDS][4];
    values_of(a, f, x, k0, x ? a->in.k : 0, y);
    SQ_UNROLL
    for (int w = 0; w < WORDS; w++) {
        const uint32_t k = word_start(k0, w);
        float most = largest(y[w], 0.0f);
        for (uint32_t apart = group / 8; apart; apart /= 2) {
            const float other = __shfl_xor_sync(SQ_ALL_LANES, most, apart);
            most = other > most ? other : most;
        }
        if (k % group == 0) store_scale(a, row, k / group, most);
        if (k < a->n_pairs * SQ_PAIR) store_word(a, row, k, y[w], inverse_of(most));
    }
}

/* A group of any size, by a warp. The last one has the inputs past k, too. */
SQ_DEVICE void pack_group(const pack_args *a, sq_row_figures f, const float *x, uint32_t row, uint32_t g)
{
    const uint32_t group = a->acts.group, k = a->in.k, k0 = g * group;
    const uint32_t padded = g + 1 == a->n_groups ? a->n_pairs * SQ_PAIR : k0 + group;
    const uint32_t end = !x ? 0 : k - k0 < group ? k : k0 + group;
    float y[WORDS][4], most = 0.0f;
    for (uint32_t i = k0; i < padded; i += PART) {
        values_of(a, f, x, i, end, y);
        SQ_UNROLL
        for (int w = 0; w < WORDS; w++)
            most = largest(y[w], most);
    }
    most = sq_warp_max(most);
    if (threadIdx.x % SQ_WARP == 0) store_scale(a, row, g, most);
    for (uint32_t i = k0; i < padded; i += PART) {
        if (padded - k0 > PART) values_of(a, f, x, i, end, y); /* else they are still there */
        SQ_UNROLL
        for (int w = 0; w < WORDS; w++)
            if (word_start(i, w) < padded) store_word(a, row, word_start(i, w), y[w], inverse_of(most));
    }
}

static __global__ void __launch_bounds__(THREADS) pack_kernel(const pack_args a)
{
    __shared__ sq_row_figures shared;
    const uint32_t row = blockIdx.x;
    const float *const x = row < a.acts.m ? sq_row_source(&a.in, row) : NULL;
    sq_row_figures figures = {0.0f, 0.0f};
    if (x && sq_row_is_norm(a.in.op)) {
        if (threadIdx.x < SQ_WARP) {
            figures = sq_row_figures_of(&a.in, x);
            if (threadIdx.x == 0) shared = figures;
        }
        __syncthreads();
        figures = shared;
    }
    for (uint32_t i = blockIdx.y * WARPS + threadIdx.x / SQ_WARP; i < a.n_units; i += gridDim.y * WARPS) {
        if (PART / 2 % a.acts.group == 0)
            pack_part(&a, figures, x, row, i * PART);
        else
            pack_group(&a, figures, x, row, i);
    }
}

bool sq_cuda_rows_pack(sq_stream *s, const sq_rows_in *in, uint32_t m, uint32_t group, sq_cuda_acts *out)
{
    const uint32_t n_pairs = sq_pairs(in->k), n_groups = sq_groups(in->k, group);
    const uint32_t rows = sq_round_up(m, SQ_ROW_BLOCK);
    const size_t q_bytes = (size_t)rows * n_pairs * SQ_PAIR; /* a multiple of 512 */
    uint8_t *const memory =
        (uint8_t *)sq_cuda_scratch(s, SQ_SLOT_ACTS, q_bytes + (size_t)rows * n_groups * sizeof(float));
    if (!memory) return false;
    out->q = (uint32_t *)memory;
    out->scale = (float *)(memory + q_bytes);
    out->m = m;
    out->k = in->k;
    out->group = group;
    const uint32_t n_units = PART / 2 % group == 0 ? sq_ceil_div(in->k, PART) : n_groups;
    const pack_args args = {sq_cuda_rows_in(s, in), *out, n_pairs, n_groups, n_units};
    /* k is SQ_MAX_K at most, and so there are 2^8 parts or 2^11 groups */
    const dim3 grid(rows, sq_row_is_norm(in->op) ? 1 : sq_ceil_div(n_units, WARPS));
    SQ_LAUNCH(s, pack_kernel, grid, THREADS, args);
    return !s->failed;
}
