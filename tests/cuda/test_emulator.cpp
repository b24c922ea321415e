/*
 * The emulator itself: what right kernels give, in all orders, and what is said of wrong ones.
 * SPDX-License-Identifier: MIT
 */
#include "cublas_v2.h"
#include "tests/cuda/emulator.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

extern "C" {
#include <cmocka.h>
}

namespace
{

cudaStream_t stream;

#define LAUNCH(kernel, grid, block, args)                                                                              \
    do {                                                                                                               \
        void *all[] = {(void *)&(args)};                                                                               \
        assert_int_equal(cudaLaunchKernel(kernel, grid, block, all, 0, stream), cudaSuccess);                          \
    } while (0)

template <class T> T *device_array(size_t n)
{
    T *p = nullptr;
    assert_int_equal(cudaMalloc(&p, n * sizeof(T)), cudaSuccess);
    return p;
}

template <class T> T fetched(const T *p)
{
    T v;
    cudaMemcpyAsync(&v, p, sizeof v, cudaMemcpyDeviceToHost, stream);
    return v;
}

/* ---- Right kernels ------------------------------------------------------------------------ */

struct array {
    float *x;
    unsigned n;
};

static __global__ void reverse(const array a)
{
    __shared__ float tile[256];
    const unsigned i = blockIdx.x * 256 + threadIdx.x;
    tile[255 - threadIdx.x] = i < a.n ? a.x[i] : 0.0f;
    __syncthreads();
    if (i < a.n) a.x[i] = tile[threadIdx.x];
}

static __global__ void warp_sums(const array a)
{
    float v = a.x[threadIdx.x];
    for (int apart = 16; apart; apart /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, apart);
    const unsigned odd = __ballot_sync(0xffffffffu, threadIdx.x & 1);
    const int large = __syncthreads_count(threadIdx.x >= 40);
    a.x[threadIdx.x] = v + (float)__popc(odd) / 64 + (float)large / 1024;
}

struct atomics {
    int *n;
};
static __global__ void counts(const atomics a)
{
    atomicAdd(a.n, 1);
    atomicMax(a.n + 1, (int)(blockIdx.x * blockDim.x + threadIdx.x));
}

void right_kernels(void **)
{
    float host[600];
    for (int i = 0; i < 600; i++)
        host[i] = (float)i;
    float *const x = device_array<float>(600);
    cudaMemcpyAsync(x, host, sizeof host, cudaMemcpyHostToDevice, stream);
    const array a = {x, 512};
    LAUNCH(reverse, 3, 256, a);
    cudaMemcpyAsync(host, x, sizeof host, cudaMemcpyDeviceToHost, stream);
    for (int i = 0; i < 600; i++)
        assert_int_equal((int)host[i], i < 512 ? i / 256 * 256 + 255 - i % 256 : i);
    cudaMemsetAsync(x, 0, sizeof host, stream);
    const float one = 1.0f;
    cudaMemcpyAsync(x + 5, &one, sizeof one, cudaMemcpyHostToDevice, stream);
    LAUNCH(warp_sums, 1, 64, a);
    assert_true(fetched(x + 3) == 1.0f + 16.0f / 64 + 24.0f / 1024);
    assert_true(fetched(x + 63) == 16.0f / 64 + 24.0f / 1024);
    int *const n = device_array<int>(2);
    cudaMemsetAsync(n, 0, 2 * sizeof *n, stream);
    const atomics c = {n};
    LAUNCH(counts, dim3(7, 3), dim3(10, 2), c);
    assert_int_equal(fetched(n), 420);
    assert_int_equal(fetched(n + 1), 69);
    cudaFree(n);
    cudaFree(x);
}

struct matrices {
    const int8_t *a, *b; /* [16][32] and [8][32] */
    int *c;              /* [16][8] */
};

/* The lanes' places by the table of the PTX manual. */
static __global__ void multiply(const matrices m)
{
    const unsigned lane = threadIdx.x, group = lane >> 2, t = lane & 3;
    uint32_t a[4], b[2];
    int c[4];
    for (unsigned i = 0; i < 16; i++) {
        const unsigned row = i < 4 || (i >= 8 && i < 12) ? group : group + 8;
        const unsigned column = t * 4 + (i & 3) + (i < 8 ? 0 : 16);
        ((int8_t *)a)[i] = m.a[row * 32 + column];
    }
    for (unsigned i = 0; i < 8; i++)
        ((int8_t *)b)[i] = m.b[group * 32 + t * 4 + (i & 3) + (i < 4 ? 0 : 16)];
    for (unsigned i = 0; i < 4; i++)
        c[i] = m.c[(i < 2 ? group : group + 8) * 8 + t * 2 + (i & 1)];
    sq_mma_s8(c, a, b);
    for (unsigned i = 0; i < 4; i++)
        m.c[(i < 2 ? group : group + 8) * 8 + t * 2 + (i & 1)] = c[i];
}

void matrices_multiply(void **)
{
    int8_t a[16][32], b[8][32];
    int c[16][8], got[16][8];
    uint32_t r = 1;
    for (int i = 0; i < 16 * 32; i++)
        a[i / 32][i % 32] = (int8_t)((r = r * 1664525 + 1013904223) >> 24);
    for (int i = 0; i < 8 * 32; i++)
        b[i / 32][i % 32] = (int8_t)((r = r * 1664525 + 1013904223) >> 24);
    for (int i = 0; i < 16 * 8; i++)
        c[i / 8][i % 8] = i * 1000;
    int8_t *const da = device_array<int8_t>(sizeof a), *const db = device_array<int8_t>(sizeof b);
    int *const dc = device_array<int>(16 * 8);
    cudaMemcpyAsync(da, a, sizeof a, cudaMemcpyDefault, stream);
    cudaMemcpyAsync(db, b, sizeof b, cudaMemcpyDefault, stream);
    cudaMemcpyAsync(dc, c, sizeof c, cudaMemcpyDefault, stream);
    const matrices m = {da, db, dc};
    LAUNCH(multiply, 1, 32, m);
    cudaMemcpyAsync(got, dc, sizeof got, cudaMemcpyDefault, stream);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            for (int k = 0; k < 32; k++)
                c[i][j] += a[i][k] * b[j][k];
            assert_int_equal(got[i][j], c[i][j]);
        }
    cudaFree(da);
    cudaFree(db);
    cudaFree(dc);
}

void products_of_blas(void **)
{
    cublasHandle_t blas;
    assert_int_equal(cublasCreate(&blas), CUBLAS_STATUS_SUCCESS);
    cublasSetStream(blas, stream);
    const float a[] = {1, 2, 3, 4, 5, 6}, b[] = {1, 0, 2, 0, 1, 1}, one = 1, none = 0;
    float *const x = device_array<float>(6), *const y = device_array<float>(6), *const z = device_array<float>(4);
    cudaMemcpyAsync(x, a, sizeof a, cudaMemcpyDefault, stream);
    cudaMemcpyAsync(y, b, sizeof b, cudaMemcpyDefault, stream);
    /* Rows a [2][3] and b [2][3]: c[i][j] = a[i] . b[j], by rows, is b^T' a by columns. */
    cublasSgemm(blas, CUBLAS_OP_T, CUBLAS_OP_N, 2, 2, 3, &one, y, 3, x, 3, &none, z, 2);
    const float want[] = {7, 5, 16, 11};
    for (int i = 0; i < 4; i++)
        assert_true(fetched(z + i) == want[i]);
    cublasDestroy(blas);
    cudaFree(x);
    cudaFree(y);
    cudaFree(z);
}

/* Copies from pinned memory take what is there when the stream comes to them. */
void streams_run_late(void **)
{
    float *pinned = nullptr, *const x = device_array<float>(1);
    assert_int_equal(cudaMallocHost(&pinned, sizeof *pinned), cudaSuccess);
    *pinned = 1.0f;
    cudaMemcpyAsync(x, pinned, sizeof *x, cudaMemcpyHostToDevice, stream);
    *pinned = 2.0f;
    assert_true(fetched(x) == 2.0f);
    cudaMemcpyAsync(pinned, x, sizeof *x, cudaMemcpyDeviceToHost, stream);
    *pinned = 3.0f;
    cudaStreamSynchronize(stream);
    assert_true(*pinned == 2.0f);
    cudaFreeHost(pinned);
    cudaFree(x);
}

void failures_come_when_asked(void **)
{
    void *p, *q;
    emulator_fail(EMULATOR_FAIL_MALLOC, 2);
    assert_int_equal(cudaMalloc(&p, 4), cudaSuccess);
    assert_int_equal(cudaMalloc(&q, 4), cudaErrorMemoryAllocation);
    assert_int_equal(cudaGetLastError(), cudaErrorMemoryAllocation);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    assert_int_equal(cudaMalloc(&q, (size_t)1 << 50), cudaErrorMemoryAllocation);
    cudaFree(p);
    emulator_fail(EMULATOR_FAIL_LAUNCH, 1);
    const array a = {nullptr, 0};
    LAUNCH(reverse, 1, 256, a);
    assert_int_equal(cudaStreamSynchronize(stream), cudaErrorLaunchFailure);
    assert_int_equal(cudaMalloc(&p, 4), cudaErrorLaunchFailure);
    emulator_fail(EMULATOR_FAIL_LAUNCH, 0);
    assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
    emulator_set_gpus(0);
    int n;
    assert_int_equal(cudaGetDeviceCount(&n), cudaErrorNoDevice);
    emulator_set_gpus(1);
    cudaGetLastError();
}

/* ---- Kernels whose threads race ------------------------------------------------------------ */

static __global__ void races(const array a)
{
    __shared__ float last;
    last = (float)threadIdx.x;
    __syncthreads();
    if (threadIdx.x == 0) a.x[blockIdx.x] = last;
}

static __global__ void races_by_warp(const array a)
{
    __shared__ float cell[64];
    cell[threadIdx.x] = 1.0f;
    __syncwarp();
    a.x[threadIdx.x] = cell[63 - threadIdx.x]; /* of the other warp */
}

void races_hang_by_the_order(void **)
{
    float *const x = device_array<float>(64);
    const array a = {x, 64};
    float last[2], first[2];
    for (int order = EMULATOR_FORWARD; order <= EMULATOR_REVERSE; order++) {
        emulator_set_order((emulator_order)order, 1);
        LAUNCH(races, 1, 64, a);
        last[order] = fetched(x);
        LAUNCH(races_by_warp, 1, 64, a);
        first[order] = fetched(x);
    }
    emulator_set_order(EMULATOR_FORWARD, 1);
    assert_true(last[0] == 63.0f && last[1] == 0.0f);
    assert_true(isnan(first[0]) && first[1] == 1.0f);
    cudaFree(x);
}

/* ---- Wrong kernels and programs ------------------------------------------------------------ */

static __global__ void one_warp_stays_away(const array)
{
    if (threadIdx.x < 32) __syncthreads();
}
static __global__ void two_barriers(const array)
{
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
}
static __global__ void some_lanes_vote(const array)
{
    if (threadIdx.x < 31) __ballot_sync(0xffffffffu, 1);
}
static __global__ void lanes_wait_apart(const array)
{
    if (threadIdx.x < 16)
        __syncwarp();
    else
        __shfl_sync(0xffffffffu, 1, 0);
}
static __global__ void half_a_warp(const array) { __syncwarp(); }
static __global__ void writes_past(const array a) { a.x[a.n] = 1.0f; }
static __global__ void writes_before(const array a) { a.x[-1] = 1.0f; }
static __global__ void reads_past(const array a) { a.x[0] = a.x[a.n]; }
static __global__ void shared_past(const array a)
{
    __shared__ float cell[30];
    float *past = cell;
    __asm__("" : "+r"(past)); /* what UBSan cannot see through */
    past[a.n + 29] = 1.0f;
    a.x[0] = cell[0];
}
static __global__ void nothing(const array) {}

void does_wrong(const char *what)
{
    float *const x = device_array<float>(1), on_stack = 0;
    const array good = {x, 1}, foreign = {&on_stack, 1}, inside = {x + 70, 1};
    const std::string w = what;
    if (w == "away") LAUNCH(one_warp_stays_away, 1, 64, good);
    if (w == "two") LAUNCH(two_barriers, 1, 64, good);
    if (w == "some") LAUNCH(some_lanes_vote, 1, 32, good);
    if (w == "apart") LAUNCH(lanes_wait_apart, 1, 32, good);
    if (w == "half") LAUNCH(half_a_warp, 1, 48, good);
    if (w == "past") LAUNCH(writes_past, 1, 1, good);
    if (w == "before") LAUNCH(writes_before, 1, 1, good);
    if (w == "reads") LAUNCH(reads_past, 1, 1, good);
    if (w == "shared") LAUNCH(shared_past, 1, 1, good);
    if (w == "foreign") LAUNCH(nothing, 1, 1, foreign);
    if (w == "inside") LAUNCH(nothing, 1, 1, inside);
    if (w == "threads") LAUNCH(nothing, 1, 1025, good);
    if (w == "empty") LAUNCH(nothing, 0, 1, good);
    if (w == "y") LAUNCH(nothing, dim3(1, 65536), 1, good);
    if (w == "host") *(volatile float *)x = 1.0f;
    if (w == "copy") cudaMemcpyAsync(x, &on_stack, 5, cudaMemcpyHostToDevice, stream);
    if (w == "kind") cudaMemcpyAsync(&on_stack, x, 4, cudaMemcpyHostToDevice, stream);
    if (w == "freed") {
        cudaFree(x);
        LAUNCH(nothing, 1, 1, good);
    }
    if (w == "twice") {
        cudaFree(x);
        cudaFree(x);
    }
    cudaStreamSynchronize(stream);
}

/* What a child says that does this; it must not end well. */
void assert_dies(const char *what, const char *said)
{
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    const pid_t child = fork();
    if (!child) {
        dup2(ends[1], STDERR_FILENO);
        signal(SIGSEGV, SIG_DFL); /* CMocka's would tell its test's failure and go on */
        does_wrong(what);
        _exit(0);
    }
    close(ends[1]);
    std::string text;
    char part[512];
    for (ssize_t n; (n = read(ends[0], part, sizeof part)) > 0;)
        text.append(part, (size_t)n);
    close(ends[0]);
    int status;
    waitpid(child, &status, 0);
    if (status == 0 || text.find(said) == std::string::npos)
        fail_msg("%s: status %d, said \"%s\", not \"%s\"", what, status, text.c_str(), said);
}

void wrong_kernels_are_told(void **)
{
#if defined(__SANITIZE_ADDRESS__)
    const bool asan = true;
#else
    const bool asan = false;
#endif
    assert_dies("away",
                "kernel one_warp_stays_away, block (0, 0, 0): a barrier is not reached by all threads: thread (0, "
                "0, 0) is at __syncthreads in ");
    assert_dies("two", "threads are at different barriers");
    assert_dies("some", "lanes of a warp went apart: thread (0, 0, 0) is at __ballot_sync in ");
    assert_dies("some", "thread (31, 0, 0) has ended");
    assert_dies("apart", "lanes of a warp are at different places");
    assert_dies("half", "__syncwarp without all 32 lanes");
    assert_dies("past", asan ? "use-after-poison" : "kernel writes_past wrote to byte 4 of an allocation of 4");
    assert_dies("before", asan ? "use-after-poison" : "kernel writes_before wrote to byte -1 of");
    if (asan) assert_dies("reads", "use-after-poison");
    if (asan) assert_dies("shared", "global-buffer-overflow");
    assert_dies("foreign", "kernel nothing: byte 0 of its argument points into the program's memory");
    assert_dies("inside", "kernel nothing: byte 0 of its argument points to no allocation");
    assert_dies("freed", "points to no allocation");
    assert_dies("threads", "kernel nothing: a block of (1025, 1, 1) threads");
    assert_dies("empty", "kernel nothing: a grid of (0, 1, 1) blocks");
    assert_dies("y", "a grid of (1, 65536, 1) blocks");
    assert_dies("host", "");
    assert_dies("copy", "a copy's target: 5 bytes from 0 on, in an allocation of 4");
    assert_dies("kind", "a copy that is none from host to device");
    assert_dies("twice", "cudaFree() of what is no allocation");
}

int set_up(void **) { return cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess; }

int tear_down(void **)
{
    cudaStreamDestroy(stream);
    return emulator_used_pieces() != 0;
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test(right_kernels),           cmocka_unit_test(matrices_multiply),
        cmocka_unit_test(products_of_blas),        cmocka_unit_test(streams_run_late),
        cmocka_unit_test(races_hang_by_the_order), cmocka_unit_test(failures_come_when_asked),
        cmocka_unit_test(wrong_kernels_are_told),
    };
    int failed = 0;
    for (int order = EMULATOR_FORWARD; order <= EMULATOR_SHUFFLED; order++) {
        emulator_set_order((emulator_order)order, 7);
        failed += cmocka_run_group_tests(tests, set_up, tear_down);
    }
    return failed;
}
