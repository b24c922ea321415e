/*
 * The emulator's controls where tests run on a real GPU, in builds with CUDA: it does as it likes, and what it would
 * have to be made to do is skipped. Without a GPU the program is. SPDX-License-Identifier: MIT
 */
#include "simd/device.h"
#include "tests/cuda/emulator.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

enum { SKIPPED = 77 }; /* as Meson knows it */

__attribute__((constructor)) static void need_a_gpu(void)
{
    sq_device *d;
    char why[256] = "";
    if (sq_cuda_ops.open(&d, SQ_PRECISION_FILE, why, sizeof why)) {
        sq_cuda_ops.close(d);
        return;
    }
    printf("skipped: %s\n", why);
    exit(SKIPPED);
}

void emulator_set_order(emulator_order order, uint64_t seed)
{
    (void)order;
    (void)seed;
}

void emulator_fail(emulator_failure what, unsigned nth)
{
    (void)what;
    if (nth) skip();
}

void emulator_set_gpus(int n)
{
    if (!n) skip();
}

size_t emulator_used_bytes(void) { return 0; }
unsigned emulator_used_pieces(void) { return 0; }

uint64_t emulator_launches(void)
{
    static uint64_t n;
    return ++n;
}
