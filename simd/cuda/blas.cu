/*
 * blas: matrix products in floats: cuBLAS, and what a product does with its values. Their last bits are cuBLAS's own.
 * SPDX-License-Identifier: MIT
 */
#include "simd/cuda/gemm.cuh"

#include <limits.h>

enum { THREADS = 256, STORE_COLUMNS = 4 * THREADS };

static const size_t WORKSPACE = 32 << 20; /* what cuBLAS asks for on the largest GPUs */
static const size_t SUMS = 64 << 20;      /* bytes of products that wait to be stored, about */

/* ---- cuBLAS ------------------------------------------------------------------------------ */

static bool check(sq_stream *s, cublasStatus_t status, const char *what)
{
    char why[sizeof s->why];
    if (status == CUBLAS_STATUS_SUCCESS) return true;
    (void)cudaGetLastError();
    snprintf(why, sizeof why, "%s: cuBLAS says %s", what, cublasGetStatusString(status));
    sq_cuda_fail(s, status == CUBLAS_STATUS_ALLOC_FAILED, why);
    return false;
}

/* Its own workspace makes a stream's products the same whatever other streams do. */
static bool ready(sq_stream *s)
{
    if (!sq_cuda_ready(s) || s->blas) return !s->failed;
    void *const workspace = sq_cuda_scratch(s, SQ_SLOT_BLAS, WORKSPACE);
    const cublasMath_t math = s->device->precision == SQ_PRECISION_F16
                                  ? CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION
                                  : CUBLAS_PEDANTIC_MATH; /* never TF32 */
    return workspace && check(s, cublasCreate(&s->blas), "opening cuBLAS") &&
           check(s, cublasSetStream(s->blas, s->stream), "choosing a stream") &&
           check(s, cublasSetWorkspace(s->blas, workspace, WORKSPACE), "giving memory to cuBLAS") &&
           check(s, cublasSetMathMode(s->blas, math), "choosing a precision");
}

/* y[m][ldy] = rows W^T, or +=. cuBLAS's matrices lie in columns, and so it makes y^T = W rows^T of them. */
static void multiply(sq_stream *s, const sq_cuda_floats_in *rows, uint32_t row0, uint32_t m, const void *w, uint32_t n,
                     float *y, size_t ldy, bool add)
{
    const float one = 1.0f, beta = add ? 1.0f : 0.0f;
    const int k = (int)rows->k, ldx = (int)rows->ldx;
    if (!ready(s)) return;
    if (s->device->precision == SQ_PRECISION_F16) {
        const uint16_t *const x = (const uint16_t *)rows->x + row0 * rows->ldx;
        check(s,
              cublasGemmEx(s->blas, CUBLAS_OP_T, CUBLAS_OP_N, (int)n, (int)m, k, &one, w, CUDA_R_16F, k, x, CUDA_R_16F,
                           ldx, &beta, y, CUDA_R_32F, (int)ldy, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
              "a product of halves");
    } else {
        const float *const x = (const float *)rows->x + row0 * rows->ldx;
        check(s,
              cublasSgemm(s->blas, CUBLAS_OP_T, CUBLAS_OP_N, (int)n, (int)m, k, &one, (const float *)w, k, x, ldx,
                          &beta, y, (int)ldy),
              "a product of floats");
    }
}

/* ---- Store ------------------------------------------------------------------------------- */

struct store_args {
    const float *y; /* [rows][n], from row row0 on */
    uint32_t row0, n;
    sq_gemm_out out;
};

static __global__ void __launch_bounds__(THREADS) store_kernel(const store_args a)
{
    const float *const y = a.y + (size_t)blockIdx.x * a.n;
    for (uint32_t j = blockIdx.y * THREADS + threadIdx.x; j < a.n; j += gridDim.y * THREADS)
        sq_store(&a.out, a.row0 + blockIdx.x, j, y[j]);
}

static void multiply_and_store(sq_stream *s, const sq_cuda_floats_in *rows, uint32_t m, const void *w, uint32_t n,
                               const sq_gemm_out *out)
{
    size_t each = SUMS / sizeof(float) / n;
    each = each < 1 ? 1 : each < m ? each : m;
    float *const y = (float *)sq_cuda_scratch(s, SQ_SLOT_SUMS, each * n * sizeof(float));
    if (!y) return;
    for (uint32_t row0 = 0; row0 < m; row0 += (uint32_t)each) {
        const uint32_t here = m - row0 < each ? m - row0 : (uint32_t)each;
        multiply(s, rows, row0, here, w, n, y, n, false);
        const store_args args = {y, row0, n, *out};
        /* The second dimension is at most SQ_MAX_DIM / STORE_COLUMNS, 16384. */
        SQ_LAUNCH(s, store_kernel, dim3(here, sq_ceil_div(n, STORE_COLUMNS)), THREADS, args);
    }
}

/* ---- Products ---------------------------------------------------------------------------- */

void sq_cuda_project_floats(sq_stream *s, const sq_rows_in *in, uint32_t m, const sq_products *p)
{
    const bool half = s->device->precision == SQ_PRECISION_F16;
    sq_cuda_floats_in rows;
    if (!sq_cuda_rows_floats(s, in, m, half, &rows)) return;
    for (unsigned i = 0; i < p->n; i++) {
        const sq_gemm_out *const out = &p->out[i];
        const uint32_t n = p->w[i]->n;
        const void *const w = sq_cuda_floats(s, p->w[i], half ? SQ_FORM_F16 : SQ_FORM_F32);
        if (!w) return;
        if (out->rows || out->row_weight || out->bias || out->ldc > INT_MAX || m > INT_MAX)
            multiply_and_store(s, &rows, m, w, n, out);
        else
            multiply(s, &rows, 0, m, w, n, out->c, out->ldc, out->add);
    }
}
