/*
 * cuda_runtime: what squint uses of CUDA's header of this name, for g++ and the CPU (tests/cuda/emulator.h). Only names
 * and meanings are CUDA's.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQ_EMULATED_CUDA_RUNTIME_H
#define SQ_EMULATED_CUDA_RUNTIME_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>

#define __host__
#define __device__
#define __global__
#define __constant__
#define __forceinline__        inline __attribute__((always_inline))
#define __launch_bounds__(...) /* ptxas judges it */
/* One block runs at a time, so that there is one of each. */
#define __shared__ static __attribute__((section("sq_shared")))

/* ---- Types -------------------------------------------------------------------------------- */

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

#define SQ_VECTOR_TYPES(T, name, align2, align4)                                                                       \
    struct alignas(align2) name##2 { T x, y; };                                                                        \
    struct alignas(align4) name##4 { T x, y, z, w; };                                                                  \
    static inline name##2 make_##name##2(T x, T y) { return name##2 {x, y}; }                                          \
    static inline name##4 make_##name##4(T x, T y, T z, T w) { return name##4 {x, y, z, w}; }
SQ_VECTOR_TYPES(signed char, char, 2, 4)
SQ_VECTOR_TYPES(unsigned char, uchar, 2, 4)
SQ_VECTOR_TYPES(int, int, 8, 16)
SQ_VECTOR_TYPES(unsigned, uint, 8, 16)
SQ_VECTOR_TYPES(float, float, 8, 16)

/* ---- What a thread sees ------------------------------------------------------------------- */

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
enum { warpSize = 32 };

/* Where a collective is called; all threads that take part must be there. */
#define SQ_HERE          const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define SQ_FULL_WARP     0xffffffffu
#define SQ_LANE_MAX_WORD 32 /* bytes that a lane gives to a collective */

struct emulator_slot {
    alignas(16) unsigned char bytes[SQ_LANE_MAX_WORD];
};
/** Waits for the 32 lanes, with what each of them gave. */
const emulator_slot *emulator_warp(const char *name, unsigned mask, const void *in, size_t bytes, const char *file,
                                   int line);
unsigned emulator_lane();
/** Waits for the block; the number of threads that gave true. */
int emulator_block(const char *name, bool given, const char *file, int line);

static inline void __syncthreads(SQ_HERE) { emulator_block("__syncthreads", false, file, line); }
static inline int __syncthreads_count(int given, SQ_HERE)
{
    return emulator_block("__syncthreads_count", given != 0, file, line);
}
static inline int __syncthreads_or(int given, SQ_HERE)
{
    return emulator_block("__syncthreads_or", given != 0, file, line) > 0;
}
static inline int __syncthreads_and(int given, SQ_HERE)
{
    return emulator_block("__syncthreads_and", given == 0, file, line) == 0;
}
static inline void __syncwarp(unsigned mask = SQ_FULL_WARP, SQ_HERE)
{
    emulator_warp("__syncwarp", mask, NULL, 0, file, line);
}
static inline void __threadfence() {}
static inline void __threadfence_block() {}

template <class T> static inline T emulator_lane_word(const emulator_slot *slots, unsigned lane)
{
    T v;
    memcpy(&v, slots[lane].bytes, sizeof v);
    return v;
}

template <class T> static inline T __shfl_sync(unsigned mask, T v, int from, int width = 32, SQ_HERE)
{
    const emulator_slot *const all = emulator_warp("__shfl_sync", mask, &v, sizeof v, file, line);
    const unsigned w = (unsigned)width;
    return emulator_lane_word<T>(all, (emulator_lane() & ~(w - 1)) | ((unsigned)from & (w - 1)));
}
template <class T> static inline T __shfl_xor_sync(unsigned mask, T v, int other, int width = 32, SQ_HERE)
{
    const emulator_slot *const all = emulator_warp("__shfl_xor_sync", mask, &v, sizeof v, file, line);
    const unsigned lane = emulator_lane(), w = (unsigned)width, from = lane ^ (unsigned)other;
    return emulator_lane_word<T>(all, from < (lane & ~(w - 1)) + w ? from : lane);
}
template <class T> static inline T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32, SQ_HERE)
{
    const emulator_slot *const all = emulator_warp("__shfl_down_sync", mask, &v, sizeof v, file, line);
    const unsigned lane = emulator_lane(), w = (unsigned)width;
    return emulator_lane_word<T>(all, (lane & (w - 1)) + by < w ? lane + by : lane);
}
template <class T> static inline T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32, SQ_HERE)
{
    const emulator_slot *const all = emulator_warp("__shfl_up_sync", mask, &v, sizeof v, file, line);
    const unsigned lane = emulator_lane(), w = (unsigned)width;
    return emulator_lane_word<T>(all, (lane & (w - 1)) >= by ? lane - by : lane);
}
static inline unsigned __ballot_sync(unsigned mask, int given, SQ_HERE)
{
    const emulator_slot *const all = emulator_warp("__ballot_sync", mask, &given, sizeof given, file, line);
    unsigned bits = 0;
    for (unsigned lane = 0; lane < 32; lane++)
        bits |= (unsigned)(emulator_lane_word<int>(all, lane) != 0) << lane;
    return bits;
}
static inline int __any_sync(unsigned mask, int given, SQ_HERE) { return __ballot_sync(mask, given, file, line) != 0; }
static inline int __all_sync(unsigned mask, int given, SQ_HERE) { return __ballot_sync(mask, !given, file, line) == 0; }

/*
 * mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 as the PTX manual lays out its fragments. Lane l has, with g = l / 4
 * and t = l % 4, of A[16][32] the words k = 4 t.. of rows g and g + 8 and then the same at k + 16; of B[32][8] column
 * g's words k = 4 t.. and at k + 16; of C[16][8] columns 2 t and 2 t + 1 of rows g and g + 8.
 */
static inline void sq_mma_s8(int c[4], const uint32_t a[4], const uint32_t b[2], SQ_HERE)
{
    uint32_t mine[6];
    memcpy(mine, a, 4 * sizeof *a);
    memcpy(mine + 4, b, 2 * sizeof *b);
    const emulator_slot *const all = emulator_warp("mma", SQ_FULL_WARP, mine, sizeof mine, file, line);
    const unsigned g = emulator_lane() / 4, t = emulator_lane() % 4;
    for (unsigned i = 0; i < 4; i++) {
        const unsigned row_word = i / 2, column = 2 * t + i % 2;
        uint32_t sum = (uint32_t)c[i];
        for (unsigned k = 0; k < 32; k++) {
            const unsigned lane = k % 16 / 4, half = k / 16, byte = k % 4;
            const int8_t x = (int8_t)all[g * 4 + lane].bytes[(row_word + 2 * half) * 4 + byte];
            const int8_t y = (int8_t)all[column * 4 + lane].bytes[(4 + half) * 4 + byte];
            sum += (uint32_t)(x * y);
        }
        c[i] = (int)sum;
    }
}

/* ---- Arithmetic --------------------------------------------------------------------------- */

static inline int __dp4a(int a, int b, int c)
{
    uint32_t sum = (uint32_t)c;
    for (int i = 0; i < 4; i++)
        sum += (uint32_t)((int8_t)((uint32_t)a >> 8 * i) * (int8_t)((uint32_t)b >> 8 * i));
    return (int)sum;
}
static inline int __popc(unsigned v) { return __builtin_popcount(v); }
static inline int __clz(int v) { return v ? __builtin_clz((unsigned)v) : 32; }
static inline int __ffs(int v) { return __builtin_ffs(v); }
template <class T> static inline T __ldg(const T *p) { return *p; }

template <class To, class From> static inline To emulator_bits(From v)
{
    static_assert(sizeof(To) == sizeof(From), "the bits of another type");
    To to;
    memcpy(&to, &v, sizeof to);
    return to;
}
static inline int __float_as_int(float v) { return emulator_bits<int>(v); }
static inline float __int_as_float(int v) { return emulator_bits<float>(v); }
static inline unsigned __float_as_uint(float v) { return emulator_bits<unsigned>(v); }
static inline float __uint_as_float(unsigned v) { return emulator_bits<float>(v); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }

#define SQ_MIN_MAX(T)                                                                                                  \
    static inline T min(T a, T b) { return a < b ? a : b; }                                                            \
    static inline T max(T a, T b) { return a > b ? a : b; }
SQ_MIN_MAX(int)
SQ_MIN_MAX(unsigned)
SQ_MIN_MAX(long)
SQ_MIN_MAX(unsigned long)
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }

/* Threads change places only where they wait. */
template <class T> static inline T emulator_exchange(T *p, T v)
{
    const T old = *p;
    *p = v;
    return old;
}
static inline int atomicAdd(int *p, int v) { return emulator_exchange(p, (int)((unsigned)*p + (unsigned)v)); }
static inline unsigned atomicAdd(unsigned *p, unsigned v) { return emulator_exchange(p, *p + v); }
static inline int atomicMax(int *p, int v) { return emulator_exchange(p, max(*p, v)); }
static inline unsigned atomicMax(unsigned *p, unsigned v) { return emulator_exchange(p, max(*p, v)); }
static inline int atomicMin(int *p, int v) { return emulator_exchange(p, min(*p, v)); }
static inline unsigned atomicMin(unsigned *p, unsigned v) { return emulator_exchange(p, min(*p, v)); }
static inline unsigned atomicOr(unsigned *p, unsigned v) { return emulator_exchange(p, *p | v); }
static inline int atomicExch(int *p, int v) { return emulator_exchange(p, v); }
static inline unsigned atomicExch(unsigned *p, unsigned v) { return emulator_exchange(p, v); }
static inline unsigned atomicCAS(unsigned *p, unsigned old, unsigned v)
{
    return emulator_exchange(p, *p == old ? v : *p);
}

/* ---- The runtime -------------------------------------------------------------------------- */

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorNotReady = 600,
    cudaErrorLaunchFailure = 719,
};
const char *cudaGetErrorString(cudaError_t e);
const char *cudaGetErrorName(cudaError_t e);
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();

struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem, sharedMemPerBlock;
    int major, minor, multiProcessorCount, maxThreadsPerBlock, l2CacheSize;
};
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
};
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaGetDeviceCount(int *n);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int *device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device);
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr a, int device);
cudaError_t cudaMemGetInfo(size_t *left, size_t *total);
cudaError_t cudaDeviceSynchronize();

cudaError_t cudaMalloc(void **p, size_t bytes);
template <class T> static inline cudaError_t cudaMalloc(T **p, size_t bytes)
{
    void *v;
    const cudaError_t e = cudaMalloc(&v, bytes);
    if (e == cudaSuccess) *p = (T *)v;
    return e;
}
cudaError_t cudaFree(void *p);
enum { cudaHostAllocDefault = 0, cudaHostAllocPortable = 1 };
cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned flags);
cudaError_t cudaMallocHost(void **p, size_t bytes);
template <class T> static inline cudaError_t cudaMallocHost(T **p, size_t bytes)
{
    void *v;
    const cudaError_t e = cudaMallocHost(&v, bytes);
    if (e == cudaSuccess) *p = (T *)v;
    return e;
}
cudaError_t cudaFreeHost(void *p);

typedef struct emulator_stream *cudaStream_t;
typedef struct emulator_event *cudaEvent_t;
enum { cudaStreamDefault = 0, cudaStreamNonBlocking = 1 };
enum { cudaEventDefault = 0, cudaEventBlockingSync = 1, cudaEventDisableTiming = 2 };
cudaError_t cudaStreamCreate(cudaStream_t *s);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t s);
cudaError_t cudaStreamSynchronize(cudaStream_t s);
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags = 0);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags);
cudaError_t cudaEventCreate(cudaEvent_t *e);
cudaError_t cudaEventDestroy(cudaEvent_t e);
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s = 0);
cudaError_t cudaEventSynchronize(cudaEvent_t e);

enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault
};
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t s = 0);
cudaError_t cudaMemset(void *to, int value, size_t bytes);
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t s = 0);

/* A kernel takes one plain struct, whose type is told by the kernel. */
typedef void emulator_call(void (*kernel)(), const void *argument);
cudaError_t emulator_launch(const char *name, void (*kernel)(), emulator_call *call, dim3 grid, dim3 block,
                            const void *argument, const void *without_padding, size_t bytes, size_t shared_bytes,
                            cudaStream_t s);
template <class T>
static inline cudaError_t emulator_launch_kernel(const char *name, void (*kernel)(T), dim3 grid, dim3 block,
                                                 void **arguments, size_t shared_bytes = 0, cudaStream_t s = 0)
{
    static_assert(std::is_trivially_copyable<T>::value, "a kernel takes a plain struct");
    /* Padding may hold what looks like a pointer. Only for looking at: GCC 12 also clears parts of members. */
    T without_padding = *static_cast<const T *>(arguments[0]);
#if __has_builtin(__builtin_clear_padding)
    __builtin_clear_padding(&without_padding);
#endif
    return emulator_launch(
        name, reinterpret_cast<void (*)()>(kernel),
        [](void (*k)(), const void *taken) { reinterpret_cast<void (*)(T)>(k)(*static_cast<const T *>(taken)); }, grid,
        block, arguments[0], &without_padding, sizeof(T), shared_bytes, s);
}
#define cudaLaunchKernel(kernel, ...) emulator_launch_kernel(#kernel, kernel, __VA_ARGS__)

#endif
