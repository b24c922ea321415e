/*
 * Lists of devices: "cpu:scalar,cpu:avx2:f32,cuda:f16".
 * SPDX-License-Identifier: MIT
 */
#ifndef SQUINT_DEVICES_H
#define SQUINT_DEVICES_H

#include "runtime/base.h"
#include "simd/device.h"

typedef struct named_device {
    char name[32];    /* as it was given, for messages */
    bool cuda;        /* or the CPU */
    const char *isa;  /* of the CPU: one of squint's words, static storage; NULL: as always */
    const char *word; /* for squint_model_options.device: "cpu", "cuda:f16"; static storage */
    sq_precision precision;
} named_device;

/**
 * Reads a list of cpu[:ISA][:f32] and cuda[:f32|:f16]; "avx512vnni" is another word for avx512.
 * @param out  malloc'ed
 * @return how many; 0: it is none, and `why` tells what is wrong in it
 */
size_t devices_read(named_device **out, const char *list, char why[256]);
/** SQUINT_OK, or what this build or this machine lacks for it, in words. */
squint_err device_runs(const named_device *d, squint_msg *msg);

#endif
