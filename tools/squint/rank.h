/*
 * Ranks of attention maps, as ARank has them (gamma-MoD, arXiv 2410.13859), by LAPACK.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQUINT_RANK_H
#define SQUINT_RANK_H

#include "simd/simd.h"

/** Was LAPACK there when this was built? If not, rank_of() must not be called. */
bool rank_available(void);

/* One head's queries and keys, rotated to their positions. */
typedef struct rank_head {
    const float *q, *k; /* [n][head_dim] */
    size_t ld;          /* from one row to the next, in floats */
    uint32_t n, head_dim;
    sq_dot_fn *dot;
} rank_head;

/* What a thread needs for maps of up to max_n tokens. */
typedef struct rank_memory {
    float *map; /* [max_n][max_n] */
    float *row; /* [max_n] scores, then singular values */
    float *work;
    int *counters; /* [8 max_n] */
    int n_work;
} rank_memory;

void rank_memory_open(rank_memory *m, uint32_t max_n);
void rank_memory_close(rank_memory *m);

/** m->map[j * n + i] = what token i takes from token j: the causal softmax of q[i] . k[j] / sqrt(head_dim) in float32,
 *  with 0 in place of the diagonal. Column after column, as LAPACK reads matrices. */
void rank_map(const rank_head *h, rank_memory *m);

/** Rank of the n x n matrix m->map, which is overwritten: singular values above FLT_EPSILON * n * the largest, all in
 *  float32, as numpy.linalg.matrix_rank and torch.linalg.matrix_rank have it. -1: LAPACK finds no singular values, as
 *  the matrix is not finite. */
int rank_of(rank_memory *m, uint32_t n);

#endif
