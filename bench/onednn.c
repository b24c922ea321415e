/*
 * onednn: oneDNN's matrix product, to compare with.
 * SPDX-License-Identifier: MIT
 */
#include "bench/onednn.h"
#include "bench/common.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#if SQ_HAVE_DNNL

#include <oneapi/dnnl/dnnl.h>

void onednn_prepare(char **argv, uint32_t threads)
{
    char wanted[16];
    snprintf(wanted, sizeof wanted, "%u", threads);
    const char *const set = getenv("OMP_NUM_THREADS"), *const policy = getenv("OMP_WAIT_POLICY");
    if (set && !strcmp(set, wanted) && policy && !strcmp(policy, "passive")) return;
    setenv("OMP_NUM_THREADS", wanted, 1);
    setenv("OMP_WAIT_POLICY", "passive", 1); /* its threads must not spin while ours run */
    execv("/proc/self/exe", argv);
    perror("/proc/self/exe");
    exit(1);
}

bool onednn_limit(const char *isa)
{
    static const struct {
        const char *isa;
        dnnl_cpu_isa_t limit;
    } limits[] = {
        {"avx2", dnnl_cpu_isa_avx2},
        {"avxvnni", dnnl_cpu_isa_avx2_vnni},
        {"avx512", dnnl_cpu_isa_avx512_core_vnni},
    };
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
        if (!strcmp(isa, limits[i].isa)) return dnnl_set_max_cpu_isa(limits[i].limit) == dnnl_success;
    return false;
}

/* ---- One product ------------------------------------------------------------------------- */

enum { SRC, WEIGHTS, DST, ROLES };

struct onednn {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_t product;
    dnnl_memory_t memory[ROLES];
    void *bytes[ROLES];
};

static const int arg_of[ROLES] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST};

static bool ok(dnnl_status_t status) { return status == dnnl_success; }

static dnnl_memory_desc_t matrix(uint32_t rows, uint32_t cols, dnnl_data_type_t type, dnnl_format_tag_t tag)
{
    const dnnl_dims_t dims = {rows, cols};
    dnnl_memory_desc_t desc;
    if (!ok(dnnl_memory_desc_init_by_tag(&desc, 2, dims, type, tag))) memset(&desc, 0, sizeof desc);
    return desc;
}

static bool take_memory(onednn *o, int role, const dnnl_memory_desc_t *desc)
{
    const size_t bytes = dnnl_memory_desc_get_size(desc);
    o->bytes[role] = bench_take(bytes);
    bench_fill(o->bytes[role], bytes);
    return ok(dnnl_memory_create(&o->memory[role], desc, o->engine, o->bytes[role]));
}

static bool run(onednn *o, dnnl_primitive_t primitive, const dnnl_exec_arg_t *args, int n)
{
    return ok(dnnl_primitive_execute(primitive, o->stream, n, args)) && ok(dnnl_stream_wait(o->stream));
}

/* Blocked weights may have padding and sums that only the library knows how to make, so it makes them. */
static bool reorder_weights(onednn *o, const onednn_shape *s)
{
    const dnnl_memory_desc_t *blocked;
    dnnl_memory_desc_t plain = matrix(s->k, s->n, dnnl_s8, dnnl_ab);
    dnnl_primitive_desc_t desc = NULL;
    dnnl_primitive_t reorder = NULL;
    dnnl_memory_t from = NULL;
    const size_t bytes = dnnl_memory_desc_get_size(&plain);
    void *weights = bench_take(bytes);
    bench_fill(weights, bytes);
    bool done = ok(dnnl_memory_get_memory_desc(o->memory[WEIGHTS], &blocked)) &&
                ok(dnnl_memory_create(&from, &plain, o->engine, weights)) &&
                ok(dnnl_reorder_primitive_desc_create(&desc, &plain, o->engine, blocked, o->engine, NULL)) &&
                ok(dnnl_primitive_create(&reorder, desc));
    const dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, o->memory[WEIGHTS]}};
    done = done && run(o, reorder, args, 2);
    dnnl_primitive_destroy(reorder);
    dnnl_primitive_desc_destroy(desc);
    dnnl_memory_destroy(from);
    free(weights);
    return done;
}

static bool make_product(onednn *o, const onednn_shape *s)
{
    const dnnl_memory_desc_t src = matrix(s->m, s->k, dnnl_u8, dnnl_ab);
    const dnnl_memory_desc_t weights = matrix(s->k, s->n, dnnl_s8, dnnl_format_tag_any);
    const dnnl_memory_desc_t dst = matrix(s->m, s->n, dnnl_s32, dnnl_ab);
    dnnl_matmul_desc_t desc;
    dnnl_primitive_desc_t chosen = NULL;
    const bool done = ok(dnnl_matmul_desc_init(&desc, &src, &weights, NULL, &dst)) &&
                      ok(dnnl_primitive_desc_create(&chosen, &desc, NULL, o->engine, NULL)) &&
                      ok(dnnl_primitive_create(&o->product, chosen)) && take_memory(o, SRC, &src) &&
                      take_memory(o, WEIGHTS, dnnl_primitive_desc_query_md(chosen, dnnl_query_weights_md, 0)) &&
                      take_memory(o, DST, &dst);
    dnnl_primitive_desc_destroy(chosen);
    return done && reorder_weights(o, s);
}

onednn *onednn_open(const onednn_shape *shape)
{
    onednn *o = calloc(1, sizeof *o);
    if (o && ok(dnnl_engine_create(&o->engine, dnnl_cpu, 0)) &&
        ok(dnnl_stream_create(&o->stream, o->engine, dnnl_stream_default_flags)) && make_product(o, shape))
        return o;
    onednn_close(o);
    return NULL;
}

void onednn_run(onednn *o)
{
    dnnl_exec_arg_t args[ROLES];
    for (int i = 0; i < ROLES; i++)
        args[i] = (dnnl_exec_arg_t){arg_of[i], o->memory[i]};
    if (run(o, o->product, args, ROLES)) return;
    fprintf(stderr, "oneDNN fails on a product that it has made\n");
    exit(1);
}

const char *onednn_name(const onednn *o)
{
    const_dnnl_primitive_desc_t desc;
    const char *name = NULL;
    if (ok(dnnl_primitive_get_primitive_desc(o->product, &desc)))
        dnnl_primitive_desc_query(desc, dnnl_query_impl_info_str, 0, &name);
    return name;
}

void onednn_close(onednn *o)
{
    if (!o) return;
    for (int i = 0; i < ROLES; i++) {
        dnnl_memory_destroy(o->memory[i]);
        free(o->bytes[i]);
    }
    dnnl_primitive_destroy(o->product);
    dnnl_stream_destroy(o->stream);
    dnnl_engine_destroy(o->engine);
    free(o);
}

/* ---- The other process ------------------------------------------------------------------- */

struct onednn_server {
    int ask, answer;
    pid_t pid;
};

static double time_once(onednn *o, uint32_t threads)
{
    const double start = bench_ms(threads);
    onednn_run(o);
    return bench_ms(threads) - start;
}

/* Answers until the other end closes; keeps the product of the last shape. */
static void serve(int ask, int answer)
{
    onednn_shape now = {0}, wanted;
    onednn *o = NULL;
    while (read(ask, &wanted, sizeof wanted) == sizeof wanted) {
        if (memcmp(&now, &wanted, sizeof now)) {
            onednn_close(o);
            now = wanted;
            o = onednn_open(&now);
        }
        const double ms = o ? time_once(o, now.threads) : 0;
        if (write(answer, &ms, sizeof ms) != sizeof ms) break;
    }
    onednn_close(o);
}

onednn_server *onednn_server_start(void)
{
    int ask[2], answer[2];
    onednn_server *s = calloc(1, sizeof *s);
    if (!s || pipe(ask) || pipe(answer)) return NULL;
    fflush(stdout);
    *s = (onednn_server){ask[1], answer[0], fork()};
    if (!s->pid) {
        close(ask[1]);
        close(answer[0]);
        serve(ask[0], answer[1]);
        _exit(0);
    }
    close(ask[0]);
    close(answer[1]);
    return s;
}

double onednn_server_time(onednn_server *s, const onednn_shape *shape)
{
    double ms;
    if (!s || write(s->ask, shape, sizeof *shape) != sizeof *shape) return 0;
    return read(s->answer, &ms, sizeof ms) == sizeof ms ? ms : 0;
}

void onednn_server_stop(onednn_server *s)
{
    if (!s) return;
    close(s->ask);
    close(s->answer);
    if (s->pid > 0) waitpid(s->pid, NULL, 0);
    free(s);
}

#else

void onednn_prepare(char **argv, uint32_t threads) { (void)argv, (void)threads; }
onednn_server *onednn_server_start(void) { return NULL; }
double onednn_server_time(onednn_server *s, const onednn_shape *shape) { return (void)s, (void)shape, 0; }
void onednn_server_stop(onednn_server *s) { (void)s; }
bool onednn_limit(const char *isa) { return (void)isa, false; }
onednn *onednn_open(const onednn_shape *shape) { return (void)shape, NULL; }
void onednn_run(onednn *o) { (void)o; }
const char *onednn_name(const onednn *o) { return (void)o, NULL; }
void onednn_close(onednn *o) { (void)o; }

#endif
