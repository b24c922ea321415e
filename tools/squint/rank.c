/*
 * Attention maps, and their ranks by LAPACK.
 * SPDX-License-Identifier: MIT
 */
#include "tools/squint/rank.h"

#include "config.h"
#include "tools/squint/cli.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

#if SQ_HAVE_LAPACK
#include <cblas.h>

/* Singular values alone when jobz is "N"; the last argument is that text's length, as Fortran passes it. */
void sgesdd_(const char *jobz, const blasint *m, const blasint *n, float *a, const blasint *lda, float *s, float *u,
             const blasint *ldu, float *vt, const blasint *ldvt, float *work, const blasint *lwork, blasint *iwork,
             blasint *info, size_t jobz_length);

static_assert(sizeof(blasint) == sizeof(int), "OpenBLAS with 64-bit indices");

bool rank_available(void) { return true; }

/* Returns LAPACK's info. n_work -1: only asks for room, work[0] gets its size. */
static int singular_values(float *a, int n, float *values, float *work, int n_work, int *counters)
{
    float none = 0;
    int info = 0;
    const int one = 1;
    sgesdd_("N", &n, &n, a, &n, values, &none, &one, &none, &one, work, &n_work, counters, &info, 1);
    return info;
}
#else
bool rank_available(void) { return false; }

static int singular_values(float *a, int n, float *values, float *work, int n_work, int *counters)
{
    (void)a, (void)n, (void)values, (void)n_work, (void)counters;
    work[0] = 1;
    return -1;
}
#endif

void rank_memory_open(rank_memory *m, uint32_t max_n)
{
    float n_work = 1;
    m->map = cli_alloc((size_t)max_n * max_n, sizeof *m->map);
    m->row = cli_alloc(max_n, sizeof *m->row);
    m->counters = cli_alloc(max_n, 8 * sizeof *m->counters);
    singular_values(m->map, (int)max_n, m->row, &n_work, -1, m->counters);
    m->n_work = (int)n_work;
    m->work = cli_alloc((size_t)m->n_work, sizeof *m->work);
#if SQ_HAVE_LAPACK
    openblas_set_num_threads(1); /* one map a thread instead */
#endif
}

void rank_memory_close(rank_memory *m)
{
    free(m->map);
    free(m->row);
    free(m->work);
    free(m->counters);
    *m = (rank_memory){0};
}

/* exp(scores - their maximum), and the sum of these. */
static float exponentials(float *scores, uint32_t n)
{
    float most = scores[0], sum = 0;
    for (uint32_t j = 1; j < n; j++)
        most = scores[j] > most ? scores[j] : most;
    for (uint32_t j = 0; j < n; j++)
        sum += scores[j] = expf(scores[j] - most);
    return sum;
}

void rank_map(const rank_head *h, rank_memory *m)
{
    const float scale = 1.0f / sqrtf((float)h->head_dim);
    for (uint32_t i = 0; i < h->n; i++) {
        for (uint32_t j = 0; j <= i; j++)
            m->row[j] = scale * h->dot(h->q + i * h->ld, h->k + j * h->ld, h->head_dim);
        const float sum = exponentials(m->row, i + 1);
        for (uint32_t j = 0; j < h->n; j++)
            m->map[(size_t)j * h->n + i] = j < i ? m->row[j] / sum : 0;
    }
}

int rank_of(rank_memory *m, uint32_t n)
{
    if (singular_values(m->map, (int)n, m->row, m->work, m->n_work, m->counters)) return -1;
    const float least = m->row[0] * (float)n * FLT_EPSILON;
    int rank = 0;
    while (rank < (int)n && m->row[rank] > least) /* the largest come first */
        rank++;
    return rank;
}
