/*
 * The thread pool: every chunk once, scratch of one's own, short jobs in a row, sleep and waking. How many threads.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/base.h"
#include "runtime/cpus.h"
#include "tests/counting.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include <cmocka.h>

enum { MAX_THREADS = 8, MAX_CHUNKS = 1000 };

static sq_pool *open_pool(unsigned threads)
{
    const squint_allocator a = sq_allocator_or_default(NULL);
    sq_pool *pool;
    squint_msg msg;
    if (sq_pool_open(&pool, threads, &a, &msg)) fail_msg("%s", msg.text);
    assert_int_equal(sq_pool_threads(pool), threads);
    return pool;
}

static void sleep_ms(long ms)
{
    const struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&t, NULL);
}

/* A worker's own memory, on a cache line of its own. Not atomic: two threads with one index are a race that a
 * thread sanitizer sees, and lose counts. */
typedef struct own {
    _Alignas(64) unsigned long count;
} own;

typedef struct job {
    unsigned n_threads;
    atomic_uint runs[MAX_CHUNKS];
    own own[MAX_THREADS];
    atomic_bool bad_worker;
    unsigned long input[MAX_CHUNKS], output[MAX_CHUNKS]; /* plain memory, published by the pool */
} job;

static void count_chunk(void *ctx, unsigned chunk, unsigned worker)
{
    job *const j = ctx;
    atomic_fetch_add(&j->runs[chunk], 1);
    if (worker >= j->n_threads) {
        atomic_store(&j->bad_worker, true);
        return;
    }
    j->own[worker].count++;
    j->output[chunk] = j->input[chunk] + 1;
}

static void run_and_check(sq_pool *pool, job *j, unsigned chunks, unsigned long round)
{
    unsigned long total = 0;
    memset(j->own, 0, sizeof j->own);
    for (unsigned i = 0; i < chunks; i++) {
        atomic_store_explicit(&j->runs[i], 0, memory_order_relaxed);
        j->input[i] = round + i;
    }
    sq_pool_run(pool, chunks, count_chunk, j);
    for (unsigned i = 0; i < chunks; i++) {
        assert_int_equal(atomic_load_explicit(&j->runs[i], memory_order_relaxed), 1);
        assert_int_equal(j->output[i], round + i + 1);
    }
    for (unsigned i = 0; i < MAX_THREADS; i++)
        total += j->own[i].count;
    assert_int_equal(total, chunks);
    assert_false(atomic_load(&j->bad_worker));
}

static void test_every_chunk_once(void **state)
{
    (void)state;
    static const unsigned chunks[] = {0, 1, 2, 3, 7, 64, MAX_CHUNKS};
    job *j = aligned_alloc(64, sizeof *j);
    for (unsigned threads = 1; threads <= MAX_THREADS; threads++) {
        sq_pool *pool = open_pool(threads);
        *j = (job){.n_threads = threads};
        for (size_t i = 0; i < SQ_COUNT(chunks); i++)
            run_and_check(pool, j, chunks[i], i);
        sq_pool_close(&pool);
        assert_null(pool);
    }
    free(j);
}

/* A worker that is late for one job must not run a chunk of the next one that is not there. */
static void test_short_jobs_in_a_row(void **state)
{
    (void)state;
    job *j = aligned_alloc(64, sizeof *j);
    sq_pool *pool = open_pool(4);
    *j = (job){.n_threads = 4};
    for (unsigned long i = 0; i < 10000; i++)
        run_and_check(pool, j, 2 + (unsigned)(i % 5), i);
    sq_pool_close(&pool);
    free(j);
}

/* Workers sleep after a few thousand spins, much less than 20 ms. */
static void test_sleep_and_waking(void **state)
{
    (void)state;
    job *j = aligned_alloc(64, sizeof *j);
    sq_pool *pool = open_pool(3);
    *j = (job){.n_threads = 3};
    for (unsigned i = 0; i < 10; i++) {
        sleep_ms(20);
        run_and_check(pool, j, 50, i);
        run_and_check(pool, j, 50, i);
    }
    sleep_ms(20);
    sq_pool_close(&pool); /* while all sleep */
    pool = open_pool(3);
    sq_pool_close(&pool); /* while they start */
    free(j);
}

typedef struct meeting {
    atomic_uint arrived;
    unsigned expected;
    pthread_t who[MAX_THREADS];
} meeting;

/* Returns only when as many threads as there are chunks are here at once. */
static void meet(void *ctx, unsigned chunk, unsigned worker)
{
    meeting *const m = ctx;
    (void)worker;
    m->who[chunk] = pthread_self();
    atomic_fetch_add(&m->arrived, 1);
    while (atomic_load(&m->arrived) < m->expected)
        sleep_ms(1);
}

/* All threads of a pool work at the same time, woken from sleep too; one of them is the caller. */
static void test_all_threads_work(void **state)
{
    (void)state;
    sq_pool *pool = open_pool(4);
    for (int round = 0; round < 3; round++) {
        meeting m = {.expected = 4};
        bool caller = false;
        sq_pool_run(pool, 4, meet, &m);
        for (int i = 0; i < 4; i++) {
            caller |= pthread_equal(m.who[i], pthread_self()) != 0;
            for (int k = 0; k < i; k++)
                assert_false(pthread_equal(m.who[i], m.who[k]));
        }
        assert_true(caller);
        sleep_ms(20);
    }
    sq_pool_close(&pool);
}

/* Two pools at once, each used by a thread of its own. */
static void *use_a_pool(void *arg)
{
    job *const j = arg;
    sq_pool *pool = open_pool(2);
    *j = (job){.n_threads = 2};
    for (unsigned long i = 0; i < 500; i++)
        run_and_check(pool, j, 10, i);
    sq_pool_close(&pool);
    return NULL;
}

static void test_two_pools(void **state)
{
    (void)state;
    pthread_t threads[2];
    job *j[2];
    for (int i = 0; i < 2; i++) {
        j[i] = aligned_alloc(64, sizeof *j[i]);
        assert_int_equal(pthread_create(&threads[i], NULL, use_a_pool, j[i]), 0);
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        free(j[i]);
    }
}

static void test_memory(void **state)
{
    (void)state;
    counting c = {0};
    const squint_allocator a = counting_allocator(&c);
    sq_pool *pool;
    squint_msg msg;
    assert_int_equal(sq_pool_open(&pool, 3, &a, &msg), SQUINT_OK);
    assert_int_equal(c.live, 1);
    sq_pool_close(&pool);
    assert_int_equal(c.live, 0);
    sq_pool_close(&pool); /* NULL is fine */
    c = (counting){.fail_at = 1};
    assert_int_equal(sq_pool_open(&pool, 3, &a, &msg), SQUINT_ERR_NOMEM);
    assert_null(pool);
    assert_non_null(strstr(msg.text, "3 threads"));
}

static void test_clock_and_cores(void **state)
{
    (void)state;
    const double before = sq_now_ms();
    sleep_ms(5);
    const double passed = sq_now_ms() - before;
    assert_true(passed >= 5 && passed < 60000);
    assert_true(sq_cpu_count() >= 1);
}

static void put(const char *folder, const char *name, const char *text)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    for (char *p = path + strlen(folder) + 1; (p = strchr(p, '/')); *p++ = '/') {
        *p = 0;
        mkdir(path, 0700);
    }
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    fclose(f);
}

static void remove_folder(const char *folder)
{
    char command[300];
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    assert_int_equal(system(command), 0);
}

/* Hardware threads 0 and 4, and 1, 5 and 7 share cores; of 2 and 3 nothing is told; 6 is alone. */
static void test_cores_of_threads(void **state)
{
    (void)state;
    char folder[] = "/tmp/squint-cpus-XXXXXX";
    static const struct {
        const char *name, *list;
    } cpus[] = {{"cpu0/topology/thread_siblings_list", "0,4\n"}, {"cpu4/topology/thread_siblings_list", "0,4\n"},
                {"cpu1/topology/thread_siblings_list", "1,5,7"}, {"cpu5/topology/thread_siblings_list", "1,5,7"},
                {"cpu7/topology/thread_siblings_list", "1,5,7"}, {"cpu6/topology/thread_siblings_list", "6-6\n"},
                {"cpu3/topology/thread_siblings_list", "what?"}};
    static const struct {
        unsigned n, allowed[8], cores;
    } cases[] = {{7, {0, 1, 2, 3, 4, 5, 6}, 5},
                 {2, {0, 4}, 1},
                 {1, {4}, 1},
                 {2, {4, 5}, 2},
                 {2, {5, 7}, 1},
                 {2, {2, 3}, 2},
                 {1, {6}, 1},
                 {1, {1023}, 1},
                 {0, {0}, 0}};
    assert_non_null(mkdtemp(folder));
    for (size_t i = 0; i < SQ_COUNT(cpus); i++)
        put(folder, cpus[i].name, cpus[i].list);
    for (size_t c = 0; c < SQ_COUNT(cases); c++) {
        bool allowed[SQ_MAX_CPUS] = {false};
        for (unsigned i = 0; i < cases[c].n; i++)
            allowed[cases[c].allowed[i]] = true;
        assert_int_equal(sq_count_cores(allowed, folder), cases[c].cores);
    }
    remove_folder(folder);
}

static void test_quota_of_a_container(void **state)
{
    (void)state;
    static const struct {
        const char *max; /* of version 2 */
        const char *quota, *period;
        unsigned cpus;
    } cases[] = {{"max 100000\n", NULL, NULL, 0},
                 {"200000 100000\n", NULL, NULL, 2},
                 {"250000 100000\n", NULL, NULL, 3},
                 {"50000 100000\n", NULL, NULL, 1},
                 {"5", NULL, NULL, 0},
                 {"-1 5", NULL, NULL, 0},
                 {"1e30 1", NULL, NULL, 0},
                 {"", NULL, NULL, 0},
                 {NULL, "150000\n", "100000\n", 2},
                 {NULL, "-1\n", "100000\n", 0},
                 {NULL, "100000\n", NULL, 0},
                 {NULL, NULL, NULL, 0}};
    for (size_t c = 0; c < SQ_COUNT(cases); c++) {
        char folder[] = "/tmp/squint-quota-XXXXXX";
        assert_non_null(mkdtemp(folder));
        if (cases[c].max) put(folder, "cpu.max", cases[c].max);
        if (cases[c].quota) put(folder, "cpu/cpu.cfs_quota_us", cases[c].quota);
        if (cases[c].period) put(folder, "cpu/cpu.cfs_period_us", cases[c].period);
        assert_int_equal(sq_cpu_quota(folder), cases[c].cpus);
        remove_folder(folder);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_chunk_once),
        cmocka_unit_test(test_short_jobs_in_a_row),
        cmocka_unit_test(test_sleep_and_waking),
        cmocka_unit_test(test_all_threads_work),
        cmocka_unit_test(test_two_pools),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_clock_and_cores),
        cmocka_unit_test(test_cores_of_threads),
        cmocka_unit_test(test_quota_of_a_container),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
