/*
 * devices: which processors other than the CPU this build knows.
 * SPDX-License-Identifier: MIT
 */
#include "config.h"
#include "simd/device.h"

#include <string.h>

const sq_device_ops *sq_device_named(const char *name, bool *known)
{
    *known = !strcmp(name, "cuda");
#if SQ_HAVE_CUDA
    if (*known) return &sq_cuda_ops;
#endif
    return NULL;
}
