/*
 * onednn: oneDNN's matrix product of uint8 activations and int8 weights, to compare with. Only benchmarks use it.
 * SPDX-License-Identifier: MIT
 *
 * Weights are in the blocked order that oneDNN asks for, results are int32: its fastest case. oneDNN takes a limit of
 * its instruction set once in a process; a product without limit is therefore another process's, the server. Built
 * without oneDNN, all rates are 0.
 */
#ifndef SQ_BENCH_ONEDNN_H
#define SQ_BENCH_ONEDNN_H

#include <stdbool.h>
#include <stdint.h>

typedef struct onednn_shape {
    uint32_t m, n, k, threads;
} onednn_shape;

/** First of all, before threads: its OpenMP reads the environment when it is loaded, so this may start the program
 *  anew with `threads` in it. */
void onednn_prepare(char **argv, uint32_t threads);

/* The other process. */
typedef struct onednn_server onednn_server;

/** Before onednn_limit(). NULL when there is none. */
onednn_server *onednn_server_start(void);
/** Runs the product once there. Milliseconds as bench_ms() counts them, or 0. */
double onednn_server_time(onednn_server *server, const onednn_shape *shape);
void onednn_server_stop(onednn_server *server);

/** Limits this process to the instructions of our table; false when they have no counterpart. Once. */
bool onednn_limit(const char *isa);

/* One product in this process. */
typedef struct onednn onednn;

/** NULL when oneDNN can't. */
onednn *onednn_open(const onednn_shape *shape);
void onednn_run(onednn *o);
/** The name that oneDNN gives to the code that it chose. */
const char *onednn_name(const onednn *o);
void onednn_close(onednn *o);

#endif
