/*
 * The thread pool, and the clock.
 * SPDX-License-Identifier: MIT
 *
 * A job is one 64-bit word: its number of chunks in the high half, the next chunk to take in the low half.
 * A worker that takes a chunk from the word knows from the same word whether the chunk exists, and a job
 * with a chunk outstanding cannot end; so a worker that comes late, or wakes in the middle of a later job,
 * never runs a chunk that is not there, and nobody waits for a worker that has taken none.
 */
#include "runtime/base.h"

#include <pthread.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

enum {
    SPINS = 4000,           /* about 20 us before a waiting worker sleeps: longer than the gap between two products */
    WORKER_STACK = 1 << 20, /* bytes */
};

typedef struct worker {
    struct sq_pool *pool;
    pthread_t thread;
    unsigned index;
} worker;

struct sq_pool {
    squint_allocator alloc;
    size_t bytes;
    unsigned n_threads, n_started;
    _Atomic uint64_t job; /* n_chunks << 32 | next chunk */
    atomic_uint done;     /* chunks of the job that are finished */
    sq_job_fn *fn;        /* fn and ctx are published by the store of `job` */
    void *ctx;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    unsigned sleeping; /* under the lock */
    atomic_bool quit;
    worker workers[];
};

static void pause_cpu(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static bool has_chunk(uint64_t job) { return (uint32_t)job < (uint32_t)(job >> 32); }

static void run_chunks(sq_pool *pool, unsigned index)
{
    while (has_chunk(atomic_load_explicit(&pool->job, memory_order_relaxed))) {
        const uint64_t job = atomic_fetch_add_explicit(&pool->job, 1, memory_order_acq_rel);
        if (!has_chunk(job)) return;
        pool->fn(pool->ctx, (unsigned)(uint32_t)job, index);
        atomic_fetch_add_explicit(&pool->done, 1, memory_order_release);
    }
}

static bool work_waits(sq_pool *pool)
{
    return has_chunk(atomic_load_explicit(&pool->job, memory_order_relaxed)) ||
           atomic_load_explicit(&pool->quit, memory_order_relaxed);
}

static void wait_for_work(sq_pool *pool)
{
    for (int i = 0; i < SPINS; i++) {
        if (work_waits(pool)) return;
        pause_cpu();
    }
    pthread_mutex_lock(&pool->lock);
    pool->sleeping++;
    while (!work_waits(pool))
        pthread_cond_wait(&pool->wake, &pool->lock);
    pool->sleeping--;
    pthread_mutex_unlock(&pool->lock);
}

static void *worker_main(void *arg)
{
    worker *const w = arg;
    while (!atomic_load(&w->pool->quit)) {
        run_chunks(w->pool, w->index);
        wait_for_work(w->pool);
    }
    return NULL;
}

static void wake_sleepers(sq_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    if (pool->sleeping) pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
}

void sq_pool_run(sq_pool *pool, unsigned n_chunks, sq_job_fn *fn, void *ctx)
{
    if (pool->n_threads == 1 || n_chunks <= 1) {
        for (unsigned i = 0; i < n_chunks; i++)
            fn(ctx, i, 0);
        return;
    }
    pool->fn = fn;
    pool->ctx = ctx;
    atomic_store_explicit(&pool->done, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->job, (uint64_t)n_chunks << 32, memory_order_release);
    wake_sleepers(pool);
    run_chunks(pool, 0);
    for (int i = 0; atomic_load_explicit(&pool->done, memory_order_acquire) < n_chunks; i++) {
        pause_cpu();
        if (i > SPINS) sched_yield(); /* the worker we wait for may need this core */
    }
}

size_t sq_pool_bytes(unsigned n_threads) { return sizeof(sq_pool) + n_threads * sizeof(worker); }

/* A stack that holds the kernels' buffers, whatever a system's default is (musl: 128 KiB). */
static int start_worker(worker *w)
{
    pthread_attr_t attr;
    int err = pthread_attr_init(&attr);
    if (err) return err;
    err = pthread_attr_setstacksize(&attr, WORKER_STACK);
    if (!err) err = pthread_create(&w->thread, &attr, worker_main, w);
    pthread_attr_destroy(&attr);
    return err;
}

squint_err sq_pool_open(sq_pool **out, unsigned n_threads, const squint_allocator *a, squint_msg *msg)
{
    *out = NULL;
    const size_t bytes = sq_pool_bytes(n_threads);
    sq_pool *pool = sq_alloc(a, bytes);
    if (!pool) return sq_fail(msg, SQUINT_ERR_NOMEM, "no memory for %u threads", n_threads);
    *pool = (sq_pool){.alloc = *a, .bytes = bytes, .n_threads = n_threads, .n_started = 1};
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    for (; pool->n_started < n_threads; pool->n_started++) {
        worker *const w = &pool->workers[pool->n_started];
        *w = (worker){.pool = pool, .index = pool->n_started};
        if (start_worker(w)) {
            const unsigned got = pool->n_started;
            sq_pool_close(&pool);
            return sq_fail(msg, SQUINT_ERR_NOMEM, "the system gives %u of %u threads; ask for fewer", got, n_threads);
        }
    }
    *out = pool;
    return SQUINT_OK;
}

void sq_pool_close(sq_pool **pool)
{
    sq_pool *const p = *pool;
    if (!p) return;
    atomic_store(&p->quit, true);
    wake_sleepers(p);
    for (unsigned i = 1; i < p->n_started; i++)
        pthread_join(p->workers[i].thread, NULL);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    const squint_allocator a = p->alloc;
    sq_free(&a, p, p->bytes);
    *pool = NULL;
}

unsigned sq_pool_threads(const sq_pool *pool) { return pool->n_threads; }

double sq_now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}
