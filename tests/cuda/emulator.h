/*
 * A GPU for tests, in the CPU: kernels as squint has them for nvcc, compiled by g++ and run thread by thread.
 * SPDX-License-Identifier: MIT
 *
 * What a real GPU would do to a wrong kernel by chance, this one does always, or it says what is wrong and aborts:
 *
 *   Threads     of a block run one after another, each up to where it must wait for the others, and blocks one after
 *               another; in rising, falling or shuffled order. What hangs by an order that CUDA does not promise has
 *               other bits in another one.
 *   Barriers    that not all threads reach, and warp collectives that lanes reach apart, abort.
 *   Memory      of the device is a range of its own that nobody can read or write while no kernel and no copy runs.
 *               Fresh memory is NaN, as are __shared__ arrays when a block begins. Allocations have gaps, in which a
 *               kernel may change nothing; ASan, where it is built in, also sees what is read there. A kernel's
 * argument must hold no pointer into the program's memory. Streams     do nothing until somebody waits for them.
 *   Failures    come on demand.
 *
 * Variables of the environment, for whole programs:
 *
 *   SQ_EMULATOR_ORDER   forward, reverse, or shuffled:SEED
 *   SQ_EMULATOR_GPUS    0: none
 *   SQ_EMULATOR_MEMORY  bytes of it; 8 GiB if not said
 *   SQ_EMULATOR_FAIL    malloc:N, pinned:N, stream:N, blas:N, launch:N - the Nth call of this kind fails; after a
 * launch all calls fail, as CUDA's do
 */
#ifndef SQ_EMULATOR_H
#define SQ_EMULATOR_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum emulator_order { EMULATOR_FORWARD, EMULATOR_REVERSE, EMULATOR_SHUFFLED } emulator_order;
void emulator_set_order(emulator_order order, uint64_t seed);

typedef enum emulator_failure {
    EMULATOR_FAIL_MALLOC,
    EMULATOR_FAIL_PINNED,
    EMULATOR_FAIL_STREAM,
    EMULATOR_FAIL_BLAS,
    EMULATOR_FAIL_LAUNCH,
    EMULATOR_FAILURES
} emulator_failure;
/** The nth call of this kind from now on fails, counted from 1; 0: none does. Ends the failure of a launch. */
void emulator_fail(emulator_failure what, unsigned nth);

void emulator_set_gpus(int n);
/** Bytes and pieces of memory in use, a device's and pinned ones. */
size_t emulator_used_bytes(void);
unsigned emulator_used_pieces(void);
/** Kernels that have run. */
uint64_t emulator_launches(void);

#ifdef __cplusplus
}
#endif

#endif
