/*
 * rows: what sq_row_op makes of a row, an element at a time, to the bits of simd/rows.c.
 * SPDX-License-Identifier: MIT
 *
 * `in` is all @device here. A norm needs figures of the whole row first: one warp takes them, whose 32 lanes are the 32
 * partial sums of the C version.
 */
#ifndef SQ_CUDA_ROWS_CUH
#define SQ_CUDA_ROWS_CUH

#include "simd/cuda/cuda.cuh"

/** `in` with the device's copies of weight and bias. */
sq_rows_in sq_cuda_rows_in(sq_stream *s, const sq_rows_in *in);

static inline __host__ __device__ bool sq_row_is_norm(sq_row_op op)
{
    return op == SQ_ROW_RMSNORM || op == SQ_ROW_LAYERNORM;
}

/* Of a row that is normed: y = (x - mean) * r * weight, + bias. */
typedef struct sq_row_figures {
    float mean, r;
} sq_row_figures;

SQ_DEVICE const float *sq_row_source(const sq_rows_in *in, uint32_t i)
{
    return in->x + (size_t)(in->rows ? in->rows[i] : i) * in->ldx;
}

SQ_DEVICE float sq_row_sum(const float *x, uint32_t k)
{
    float sum = 0.0f;
    for (uint32_t i = threadIdx.x % SQ_WARP; i < k; i += SQ_WARP)
        sum += x[i];
    return sq_warp_sum(sum);
}

SQ_DEVICE float sq_row_sum_of_squares(const float *x, float mean, uint32_t k)
{
    float sum = 0.0f;
    for (uint32_t i = threadIdx.x % SQ_WARP; i < k; i += SQ_WARP)
        sum += (x[i] - mean) * (x[i] - mean);
    return sq_warp_sum(sum);
}

/* For norms; by all lanes of a warp, which all get it. */
SQ_DEVICE sq_row_figures sq_row_figures_of(const sq_rows_in *in, const float *x)
{
    sq_row_figures f;
    f.mean = in->op == SQ_ROW_LAYERNORM ? sq_row_sum(x, in->k) / (float)in->k : 0.0f;
    f.r = 1.0f / sqrtf(sq_row_sum_of_squares(x, f.mean, in->k) / (float)in->k + in->eps);
    return f;
}

/* x * sigmoid(s * x) */
SQ_DEVICE float sq_row_gate(float x, float s) { return x / (1.0f + sq_exp(-s * x)); }

/* Element i of the result. */
SQ_DEVICE float sq_row_value(const sq_rows_in *in, sq_row_figures f, const float *x, uint32_t i)
{
    switch (in->op) {
    case SQ_ROW_COPY:
        break;
    case SQ_ROW_RMSNORM:
        return x[i] * f.r * in->weight[i];
    case SQ_ROW_LAYERNORM:
        return (x[i] - f.mean) * f.r * in->weight[i] + in->bias[i];
    case SQ_ROW_SWIGLU:
        return sq_row_gate(x[i], 1.0f) * x[in->k + i];
    case SQ_ROW_QUICKGELU:
        return sq_row_gate(x[i], 1.702f);
    case SQ_ROW_GELU:
        return 0.5f * x[i] * (1.0f + sq_erf(x[i] * SQ_SQRT_HALF));
    }
    return x[i];
}

#endif
