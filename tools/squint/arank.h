/*
 * What squint arank finds out, and its plot.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQUINT_ARANK_H
#define SQUINT_ARANK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct arank_layer {
    double rank;            /* mean over heads and samples */
    double lowest, highest; /* sample, each the mean over its heads */
    bool mod;               /* suggested */
} arank_layer;

typedef struct arank_result {
    const char *model; /* file name */
    size_t n_samples;
    double tokens; /* mean over samples */
    uint32_t n_layers, n_heads;
    double threshold;    /* rank from which a layer stays dense */
    char rule[64];       /* where it comes from, "0.1 of the tokens" */
    arank_layer *layers; /* [n_layers] */
} arank_result;

/** Draws ranks by layer as a PNG; false, with a message, when it cannot be written. */
bool arank_plot(const arank_result *r, const char *path);

#endif
