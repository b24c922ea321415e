/*
 * Matrix products of cuBLAS, summed in binary64: nearer to the true value than any order of binary32.
 * SPDX-License-Identifier: MIT
 */
#include "cublas_v2.h"
#include "cuda_fp16.h"
#include "tests/cuda/machine.h"

struct emulator_blas {
    cudaStream_t stream;
};

namespace
{

/* A matrix by columns, of rows x columns as it lies. */
struct matrix {
    const void *p;
    cudaDataType type;
    size_t ld;
    bool turned;

    double at(size_t i, size_t j) const
    {
        const size_t k = turned ? i * ld + j : j * ld + i;
        if (type == CUDA_R_32F) return (double)((const float *)p)[k];
        return (double)__half2float(((const __half *)p)[k]);
    }
};

size_t size_of(cudaDataType type)
{
    if (type != CUDA_R_32F && type != CUDA_R_16F) emulator_die("cuBLAS: type %d", type);
    return type == CUDA_R_32F ? sizeof(float) : sizeof(__half);
}

void check_matrix(const char *what, const void *p, cudaDataType type, int rows, int columns, int ld)
{
    if (ld < rows || ld < 1) emulator_die("cuBLAS: %s has %d rows and a stride of %d", what, rows, ld);
    if ((uintptr_t)p % size_of(type)) emulator_die("cuBLAS: %s is not aligned", what);
    emulator_check_range(what, p, ((size_t)ld * (size_t)(columns - 1) + (size_t)rows) * size_of(type));
}

cublasStatus_t product(cublasHandle_t h, const matrix &a, const matrix &b, int m, int n, int k, float alpha, float beta,
                       float *c, int ldc)
{
    emulator_queue(h->stream, "a product of cuBLAS", [=] {
        const emulator_opened o;
        for (size_t j = 0; j < (size_t)n; j++)
            for (size_t i = 0; i < (size_t)m; i++) {
                double sum = 0;
                for (size_t l = 0; l < (size_t)k; l++)
                    sum += a.at(i, l) * b.at(l, j);
                float *const out = c + j * (size_t)ldc + i;
                const double before = beta == 0.0f ? 0 : (double)beta * (double)*out;
                *out = (float)((double)alpha * sum + before);
            }
    });
    return CUBLAS_STATUS_SUCCESS;
}

} // namespace

cublasStatus_t cublasCreate(cublasHandle_t *h)
{
    if (emulator_fails(EMULATOR_FAIL_BLAS)) return CUBLAS_STATUS_ALLOC_FAILED;
    *h = new emulator_blas();
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDestroy(cublasHandle_t h)
{
    delete h;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetStream(cublasHandle_t h, cudaStream_t s)
{
    h->stream = s;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetMathMode(cublasHandle_t h, cublasMath_t mode)
{
    (void)h;
    if (mode == CUBLAS_TF32_TENSOR_OP_MATH) emulator_die("cuBLAS: TF32");
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetWorkspace(cublasHandle_t h, void *workspace, size_t bytes)
{
    (void)h;
    emulator_check_range("cublasSetWorkspace()", workspace, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

const char *cublasGetStatusString(cublasStatus_t s)
{
    return s == CUBLAS_STATUS_SUCCESS ? "CUBLAS_STATUS_SUCCESS" : "CUBLAS_STATUS_ALLOC_FAILED";
}

cublasStatus_t cublasSgemm(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k,
                           const float *alpha, const float *a, int lda, const float *b, int ldb, const float *beta,
                           float *c, int ldc)
{
    return cublasGemmEx(h, ta, tb, m, n, k, alpha, a, CUDA_R_32F, lda, b, CUDA_R_32F, ldb, beta, c, CUDA_R_32F, ldc,
                        CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
}

cublasStatus_t cublasGemmEx(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k,
                            const void *alpha, const void *a, cudaDataType_t a_type, int lda, const void *b,
                            cudaDataType_t b_type, int ldb, const void *beta, void *c, cudaDataType_t c_type, int ldc,
                            cublasComputeType_t compute, cublasGemmAlgo_t algo)
{
    (void)algo;
    if (compute == CUBLAS_COMPUTE_32F_FAST_TF32) emulator_die("cuBLAS: TF32");
    if (c_type != CUDA_R_32F || a_type != b_type) emulator_die("cuBLAS: these types are not emulated");
    if (m < 0 || n < 0 || k < 0) return CUBLAS_STATUS_INVALID_VALUE;
    if (!m || !n) return CUBLAS_STATUS_SUCCESS;
    if (k) {
        check_matrix("cuBLAS: A", a, a_type, ta ? k : m, ta ? m : k, lda);
        check_matrix("cuBLAS: B", b, b_type, tb ? n : k, tb ? k : n, ldb);
    }
    check_matrix("cuBLAS: C", c, c_type, m, n, ldc);
    return product(h, matrix{a, a_type, (size_t)lda, ta != CUBLAS_OP_N},
                   matrix{b, b_type, (size_t)ldb, tb != CUBLAS_OP_N}, m, n, k, *(const float *)alpha,
                   *(const float *)beta, (float *)c, ldc);
}
