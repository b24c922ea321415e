/*
 * cuda: what the files of this folder share: a device and its streams, how a kernel is started, how a failure is kept,
 * and the few instructions that C++ has no name for. The contract is simd/device.h.
 * SPDX-License-Identifier: MIT
 *
 * A verb is a host function (sq_cuda_NAME) that starts kernels on the stream and returns. Kernels take one plain struct
 * by value, whose pointers are all device pointers. Between them no failure needs a look: after the first one of a
 * stream SQ_LAUNCH starts nothing, and what sq_cuda_weights() and sq_cuda_scratch() give is not read.
 *
 * The same sources are compiled for the CPU by tests/cuda/, with headers of CUDA's names.
 */
#ifndef SQ_CUDA_CUH
#define SQ_CUDA_CUH

#include <assert.h>
#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cublas_v2.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define SQ_EXP_FN static inline __host__ __device__
#include "simd/exp.h"

extern "C" {
#include "simd/device.h"
#include "simd/internal.h" /* constants of the CPU's kernels */
}

/* Before a loop whose arrays must be registers. */
#undef SQ_UNROLL
#ifdef __CUDACC__
#define SQ_PRAGMA(words)    _Pragma(#words)
#define SQ_UNROLL           SQ_PRAGMA(unroll)
#define SQ_UNROLL_BY(times) SQ_PRAGMA(unroll times)
#else
#define SQ_UNROLL
#define SQ_UNROLL_BY(times)
#endif

/* For small functions of kernels. */
#define SQ_DEVICE static inline __device__

enum { SQ_WARP = 32 };
#define SQ_ALL_LANES 0xffffffffu

/* ---- Devices and streams ----------------------------------------------------------------- */

/* What a copy of weights is in the device's memory. */
typedef enum sq_form {
    SQ_FORM_BYTES, /* as they lie in the program's */
    SQ_FORM_TILES, /* panels as gemm.cu reads them */
    SQ_FORM_F32,   /* float [n][k] */
    SQ_FORM_F16,   /* binary16 [n][k] */
} sq_form;

/* A copy of weights, known by its first three. */
typedef struct sq_upload {
    const void *host; /* NULL: a free place of the table */
    sq_form form;
    size_t bytes; /* of the copy */
    void *copy;
} sq_upload;

struct sq_device {
    sq_precision precision;
    int id;          /* CUDA's number of it */
    uint32_t n_sms;  /* multiprocessors */
    char label[256]; /* cudaDeviceProp.name */

    pthread_mutex_t lock; /* of all that follows */
    sq_upload *uploads;   /* [n_places] open addressing; at most half of them are taken */
    size_t n_uploads, n_places;
    sq_stream *uploader; /* copies are made on it; it has nothing to do while nobody holds the lock */
};

/* Memory of a stream that verbs use and forget: one slot a use, so that no verb's scratch is another's input. */
typedef enum sq_slot {
    SQ_SLOT_ACTS,   /* quantised rows of project() */
    SQ_SLOT_ROWS,   /* its rows as floats or halves */
    SQ_SLOT_SUMS,   /* its products before they are stored */
    SQ_SLOT_BLAS,   /* cuBLAS's workspace */
    SQ_SLOT_PANELS, /* of the uploader: weights on their way into another form */
    SQ_SLOT_ATTEND,
    SQ_SLOT_ROUTE,
    SQ_SLOT_TOWER,
    SQ_SLOT_COUNT
} sq_slot;

enum { SQ_STAGE_BYTES = 1 << 20 };

struct sq_stream {
    sq_device *device;
    cudaStream_t stream;
    cublasHandle_t blas; /* NULL until a float product */
    void *scratch[SQ_SLOT_COUNT];
    size_t scratch_bytes[SQ_SLOT_COUNT];
    uint8_t *stage; /* [SQ_STAGE_BYTES] pinned, NULL until it is needed: what write() was given, on its way */
    size_t staged;
    bool failed, no_memory; /* once it has failed it does nothing more */
    char why[256];
};

/* ---- Failures ---------------------------------------------------------------------------- */

/** The stream has not failed, and its device is this thread's: CUDA may be called. */
bool sq_cuda_ready(sq_stream *s);
/** Keeps the first failure. @return true when e is none. */
bool sq_cuda_check(sq_stream *s, cudaError_t e, const char *what);
/** The same for a failure that is not CUDA's. */
void sq_cuda_fail(sq_stream *s, bool no_memory, const char *why);

/* ---- Memory ------------------------------------------------------------------------------ */

/** The device's copy of `bytes` of weights at `host`, made when it is first asked for; NULL: the stream has failed. */
const void *sq_cuda_weights(sq_stream *s, const void *host, size_t bytes);
/** Makes `copy` of what `ctx` tells by verbs of the uploader, whose failures are looked at later. */
typedef void sq_fill_fn(sq_stream *uploader, const void *ctx, void *copy);
/** The same for copies in another form; fill(uploader, ctx, copy) makes one, under the device's lock. */
const void *sq_cuda_upload(sq_stream *s, const void *host, sq_form form, size_t bytes, sq_fill_fn *fill,
                           const void *ctx);
/** At least `bytes`, 256-byte aligned, holding anything; stays as it is until the slot is asked for again. NULL: the
 *  stream has failed. */
void *sq_cuda_scratch(sq_stream *s, sq_slot slot, size_t bytes);

/* ---- Kernels ----------------------------------------------------------------------------- */

/* Kernels are static and take one struct. `grid` and `block` are dim3 or numbers, none of them 0; a kernel with
 * template arguments stands in parentheses. The pointer is there to have the type of args checked. */
#define SQ_LAUNCH(s, kernel, grid, block, args)                                                                        \
    do {                                                                                                               \
        void (*const launch_kernel_)(__typeof__(args)) = kernel;                                                       \
        void *launch_args_[] = {(void *)&(args)};                                                                      \
        (void)launch_kernel_;                                                                                          \
        if (sq_cuda_ready(s))                                                                                          \
            sq_cuda_check(s, cudaLaunchKernel(kernel, grid, block, launch_args_, 0, (s)->stream), #kernel);            \
    } while (0)

SQ_DEVICE float sq_float_of_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}
SQ_DEVICE uint32_t sq_bits_of_float(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

/* binary16 by its bits, as quant/quant.h has it. */
SQ_DEVICE float sq_half_to_float(uint16_t h) { return __half2float(__ushort_as_half(h)); }
SQ_DEVICE uint16_t sq_float_to_half(float f) { return __half_as_ushort(__float2half_rn(f)); }

/* The sum of a warp's 32 partial sums, in the order of sq_sum32() (simd/internal.h): the upper half to the lower, and
 * so on. All lanes get it. */
SQ_DEVICE float sq_warp_sum(float v)
{
    for (int apart = 16; apart; apart /= 2)
        v += __shfl_xor_sync(SQ_ALL_LANES, v, apart);
    return v;
}

/* Of numbers that are not NaN. */
SQ_DEVICE float sq_warp_max(float v)
{
    for (int apart = 16; apart; apart /= 2) {
        const float other = __shfl_xor_sync(SQ_ALL_LANES, v, apart);
        v = other > v ? other : v;
    }
    return v;
}

/* Has the line of memory that this is in brought to L2. */
SQ_DEVICE void sq_prefetch(const void *p)
{
#ifdef __CUDACC__
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
#else
    (void)p;
#endif
}

/*
 * c[16][8] += a[16][32] b[8][32]^T, int8 into int32, by a whole warp. Lane l = 4 * r + t has
 *   a[0], a[1]  inputs 4t to 4t + 3 of rows r and r + 8; a[2], a[3] the same 16 inputs on
 *   b[0], b[1]  inputs 4t to 4t + 3 of channel r; and 16 inputs on
 *   c[0..1], c[2..3]  channels 2t and 2t + 1 of rows r and r + 8
 */
#ifdef __CUDACC__ /* the emulator has its own */
SQ_DEVICE void sq_mma_s8(int c[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

static inline uint32_t sq_ceil_div(size_t a, size_t b) { return (uint32_t)((a + b - 1) / b); }

/* ---- Verbs ------------------------------------------------------------------------------- */

extern "C" {
extern const sq_device_ops sq_cuda_ops;
}

/* gemm.cu */
void sq_cuda_project(sq_stream *s, const sq_rows_in *in, uint32_t m, const sq_mat *const *w, const sq_gemm_out *out,
                     unsigned n_mats);
/* rows.cu */
void sq_cuda_rows(sq_stream *s, const sq_rows_in *in, uint32_t m, float *out, size_t ldo);
/* attention.cu */
void sq_cuda_attend(sq_stream *s, const sq_heads *heads);
void sq_cuda_store_kv(sq_stream *s, const sq_kv_store *store);
/* route.cu */
uint32_t sq_cuda_route(sq_stream *s, const sq_route *r, uint32_t *kept, uint32_t *nan);
void sq_cuda_settle(sq_stream *s, const sq_route *r, uint32_t first_row);
/* tower.cu */
void sq_cuda_patches(sq_stream *s, const sq_patches *p);
void sq_cuda_depthwise(sq_stream *s, const sq_depthwise_map *d);
void sq_cuda_resize(sq_stream *s, const sq_resize_map *r);
void sq_cuda_mine(sq_stream *s, const sq_mine *m);
void sq_cuda_means(sq_stream *s, const float *x, uint32_t n, uint32_t d, float *out);
void sq_cuda_relu(sq_stream *s, float *x, size_t n);
void sq_cuda_add(sq_stream *s, float *x, const float *y, float scale, size_t n);
void sq_cuda_add_weights(sq_stream *s, float *x, const float *w, size_t n);

/* context.cu: of the table, and for verbs that need them */
void sq_cuda_write(sq_stream *s, void *to, const void *from, size_t bytes);
void sq_cuda_read(sq_stream *s, void *to, const void *from, size_t bytes);
void sq_cuda_copy(sq_stream *s, void *to, const void *from, size_t bytes);

#endif
