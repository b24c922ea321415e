/*
 * What every file of the engine uses: failures in words, memory, the arena, the thread pool.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQ_BASE_H
#define SQ_BASE_H

#include "runtime/squint.h"

#include <stdatomic.h>

#if defined(__GNUC__)
#define SQ_PRINTF(f, a) __attribute__((format(printf, f, a)))
#else
#define SQ_PRINTF(f, a)
#endif

#define SQ_COUNT(array) (sizeof(array) / sizeof *(array))

/* ---- Failures ---------------------------------------------------------------------------- */

/** Writes the sentence (truncated to fit, made valid UTF-8, control characters replaced) when msg is not
 *  NULL, and returns err. Names from files go through here safely. */
squint_err sq_fail(squint_msg *msg, squint_err err, const char *format, ...) SQ_PRINTF(3, 4);

/** What errno means ("No such file or directory"), in a buffer of the caller's. Returns text. */
const char *sq_errno_text(int number, char *text, size_t size);

/* ---- UTF-8 --------------------------------------------------------------------------------- */

/** Bytes of the character at s, 1 to 4; 0 when its first byte starts no valid character; -1 when these n
 *  bytes are the beginning of one, but not all of it. n >= 1. */
int sq_utf8_next(const char *s, size_t n);

/* ---- Memory ------------------------------------------------------------------------------- */

/** The caller's allocator; malloc and free unless it has both functions. */
squint_allocator sq_allocator_or_default(const squint_allocator *a);
void *sq_alloc(const squint_allocator *a, size_t size);             /* size 0 gives a valid pointer */
void sq_free(const squint_allocator *a, void *memory, size_t size); /* NULL is fine */
/** a * b, or false when it does not fit. */
bool sq_mul(size_t a, size_t b, size_t *out);
bool sq_add(size_t a, size_t b, size_t *out);

/*
 * One block of memory, handed out in 64-byte aligned parts by code that runs twice: first with base
 * NULL, when sizes only add up in `used`, then on a block of that size. After the second run `full` must
 * be false; overflow in either run sets it. Built with ASan the parts have poisoned gaps between them.
 */
enum { SQ_ARENA_ALIGN = 64 };
typedef struct sq_arena {
    uint8_t *base; /* 64-byte aligned, or NULL while planning */
    size_t size;   /* bytes at base */
    size_t used;
    bool full;
    bool remote; /* base is in the memory of a device (simd/device.h): parts of it are never filled */
} sq_arena;

/* What a session has: what the program reads and writes, and the floats that its verbs work on, which may be a
 * device's. On the CPU both are of one kind. */
typedef struct sq_memory {
    sq_arena host, device;
} sq_memory;

/** n * size bytes, 64-byte aligned, zeroed; NULL while planning or when full. Not of a remote arena. */
void *sq_take(sq_arena *arena, size_t n, size_t size);
/** The same with anything in it, for what is written before it is read: pages that are never needed are never touched.
 *  Built with ASan it is full of NaN. */
void *sq_take_unset(sq_arena *arena, size_t n, size_t size);
/** `part` of host memory again in the device's, with anything in it; on the CPU it is the same. */
void *sq_take_mirror(sq_memory *memory, void *part, size_t n, size_t size);
/** Where memory of the program's own is taken that is needed no longer than the device's that is taken beside it: on
 * the CPU it lies among that, so that sq_arena_overlay() spares it too. */
sq_arena *sq_beside(sq_memory *memory);
/** Goes back to where the arena was when it had `used` bytes: what is taken next shares memory with what was taken
 * since then, for parts that are never in use at the same time. Built with ASan it does nothing, as the gaps of some
 * parts would lie within others. */
void sq_arena_overlay(sq_arena *arena, size_t used);

/* ---- Threads ------------------------------------------------------------------------------ */

/*
 * Persistent workers that take chunks of a job from one atomic counter, so that fast and slow cores
 * finish together. Waiting workers spin briefly, then sleep. The calling thread works too.
 */
typedef struct sq_pool sq_pool;

/* chunk in [0, n_chunks); worker in [0, n_threads), for scratch of its own. */
typedef void sq_job_fn(void *ctx, unsigned chunk, unsigned worker);

squint_err sq_pool_open(sq_pool **out, unsigned n_threads, const squint_allocator *a, squint_msg *msg);
void sq_pool_close(sq_pool **pool);
/** Bytes that a pool takes from the allocator. */
size_t sq_pool_bytes(unsigned n_threads);
unsigned sq_pool_threads(const sq_pool *pool);
/** Runs fn for every chunk and returns when all are done. A pool of one thread makes no system call. */
void sq_pool_run(sq_pool *pool, unsigned n_chunks, sq_job_fn *fn, void *ctx);
/** Cores of this machine that this process may use, at most as many as its control group has time for. */
unsigned sq_cpu_count(void);

/** Monotonic clock, in milliseconds. */
double sq_now_ms(void);

#endif
