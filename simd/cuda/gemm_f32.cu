/*
 * gemm_f32: floats times floats in one order, to the bits of simd/gemm_f32.c: the k products of an element are added in
 * rising order by the one thread that has it.
 * SPDX-License-Identifier: MIT
 *
 * A block of threads makes a tile of 64 rows and 64 channels, each thread four of both; 16 inputs of them at a time lie
 * in shared memory.
 */
#include "simd/cuda/gemm.cuh"

enum {
    THREADS = 256,
    TILE = 64,
    PART = 16,
    EACH = 4,
    WIDE = TILE + 4 /* for fewer bank conflicts, and still aligned */
};
static_assert(THREADS == (TILE / EACH) * (TILE / EACH) && THREADS * EACH == TILE * PART, "a thread's share");

struct ordered_args {
    const float *x;
    size_t ldx;
    const float *w; /* [ceil(n / 16)][k][16] */
    uint32_t m, n, k, m_tiles;
    sq_gemm_out out;
};

static __global__ void __launch_bounds__(THREADS) ordered_kernel(const ordered_args a)
{
    __shared__ float4 shared_x[PART][WIDE / EACH], shared_w[PART][TILE / EACH];
    const uint32_t t = threadIdx.x, row0 = blockIdx.x % a.m_tiles * TILE, channel0 = blockIdx.x / a.m_tiles * TILE;
    const uint32_t my_row = t / (TILE / EACH), my_channel = t % (TILE / EACH); /* in fours */
    /* What it brings to shared memory: four inputs of a row, four channels of an input. */
    const uint32_t row = row0 + t / EACH, x_k = t % EACH * EACH;
    const uint32_t w_k = t / (TILE / EACH), channel = channel0 + t % (TILE / EACH) * EACH;
    const float *const w = a.w + (size_t)(channel / SQ_PANEL_N) * a.k * SQ_PANEL_N + channel % SQ_PANEL_N;
    float v[EACH][EACH];
    SQ_UNROLL
    for (int i = 0; i < EACH * EACH; i++)
        v[i / EACH][i % EACH] = 0.0f;
    for (uint32_t k0 = 0; k0 < a.k; k0 += PART) {
        for (uint32_t j = 0; j < EACH; j++) {
            const uint32_t k = k0 + x_k + j;
            ((float *)shared_x[x_k + j])[t / EACH] = row < a.m && k < a.k ? a.x[row * a.ldx + k] : 0.0f;
        }
        shared_w[w_k][t % (TILE / EACH)] = channel < a.n && k0 + w_k < a.k
                                               ? *(const float4 *)(w + (size_t)(k0 + w_k) * SQ_PANEL_N)
                                               : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        __syncthreads();
        SQ_UNROLL
        for (int k = 0; k < PART; k++) {
            if (k0 + k >= a.k) continue; /* a product of zeros would make +0 of -0 */
            const float4 x4 = shared_x[k][my_row], w4 = shared_w[k][my_channel];
            const float xs[EACH] = {x4.x, x4.y, x4.z, x4.w}, ws[EACH] = {w4.x, w4.y, w4.z, w4.w};
            SQ_UNROLL
            for (int i = 0; i < EACH * EACH; i++)
                v[i / EACH][i % EACH] = fmaf(xs[i / EACH], ws[i % EACH], v[i / EACH][i % EACH]);
        }
        __syncthreads();
    }
    SQ_UNROLL
    for (int i = 0; i < EACH * EACH; i++) {
        const uint32_t to_row = row0 + my_row * EACH + i / EACH, to_channel = channel0 + my_channel * EACH + i % EACH;
        if (to_row < a.m && to_channel < a.n) sq_store(&a.out, to_row, to_channel, v[i / EACH][i % EACH]);
    }
}

void sq_cuda_project_ordered(sq_stream *s, const sq_rows_in *in, uint32_t m, const sq_products *p)
{
    sq_cuda_floats_in rows;
    if (!sq_cuda_rows_floats(s, in, m, false, &rows)) return;
    for (unsigned i = 0; i < p->n; i++) {
        const sq_mat *const w = p->w[i];
        const size_t bytes = (size_t)sq_round_up(w->n, SQ_PANEL_N) * w->k * sizeof(float);
        const float *const there = (const float *)sq_cuda_weights(s, w->ordered, bytes);
        const ordered_args args = {(const float *)rows.x, rows.ldx, there, m, w->n, w->k,
                                   sq_ceil_div(m, TILE),  p->out[i]};
        const uint64_t blocks = (uint64_t)args.m_tiles * sq_ceil_div(w->n, TILE);
        if (blocks > INT32_MAX) sq_cuda_fail(s, false, "a product has too many tiles");
        SQ_LAUNCH(s, ordered_kernel, (uint32_t)blocks, THREADS, args);
    }
}
