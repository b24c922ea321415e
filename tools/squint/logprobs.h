/*
 * What a model thinks of every token that could come next: in memory, in a file, and how far two models are apart.
 * SPDX-License-Identifier: MIT
 *
 * The file, all little-endian:
 *
 *   header, 64 bytes   "SQLP", u32 version 1, u32 vocabulary, u32 context of a chunk (0: captions of pictures), u64
 * rows, zeros row                u32 token that came, u32 likeliest token, f32 -log p of the token that came, f32
 * largest log p, f32 step; u16 [vocabulary]: (largest - log p) / step, rounded; zeros up to a multiple of 4 bytes
 *
 * The step is 1/65535 of the row's range, cut off 24 nats below the largest. A log p is off by up to half a step,
 * 1.8e-4, at random; rows are normalised again when they are read, which leaves the square of that in a divergence:
 * 6e-9 between a model and itself. What is cut off had less than vocabulary * e^-24 of the probability, 1e-6 of 32,000.
 */
#ifndef SQUINT_LOGPROBS_H
#define SQUINT_LOGPROBS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One place of a text. */
typedef struct logprobs {
    uint32_t n_vocab;
    uint32_t token, top; /* that came; that was likeliest, the first of equals */
    double nll;          /* -log p of the token that came, in nats */
    float *log_p;        /* [n_vocab] */
} logprobs;

void logprobs_init(logprobs *p, uint32_t n_vocab);
void logprobs_free(logprobs *p);
/** log softmax, summed in double. */
void logprobs_of_logits(logprobs *p, const float *logits, uint32_t token);

/* ---- Files ----------------------------------------------------------------------------------- */

typedef struct logprobs_writer logprobs_writer;

/** NULL, with a message, when it cannot be written. The file appears under its name when it is closed well. */
logprobs_writer *logprobs_create(const char *path, uint32_t n_vocab, uint32_t ctx);
void logprobs_put(logprobs_writer *w, const logprobs *p);
/** @param keep  false: give up; the file at path is as it was.  @return false, with a message, when it failed */
bool logprobs_close_writer(logprobs_writer *w, bool keep);

typedef struct logprobs_reader logprobs_reader;

/** NULL, with a message, when it is not such a file, or not one of this vocabulary, context and number of rows. */
logprobs_reader *logprobs_open(const char *path, uint32_t n_vocab, uint32_t ctx, uint64_t n_rows);
/** The next row; false, with a message, when it cannot be read, is no distribution, or is of another token. */
bool logprobs_get(logprobs_reader *r, uint32_t token, logprobs *p);
void logprobs_close_reader(logprobs_reader *r);

/* ---- Divergence ------------------------------------------------------------------------------- */

enum { DIVERGENCE_QUANTILES = 5 };
extern const double divergence_shares[DIVERGENCE_QUANTILES]; /* of the quantiles: 0.05, 0.5, 0.95, 0.99, 0.999 */

/* Of each row: sum p log(p / q) over the vocabulary, p of the reference, q of the model. */
typedef struct divergence {
    float *kl; /* [n] */
    size_t n, room, n_same_top;
    double kl_sum, kl_squares;
    double change_sum, change_squares; /* of nll: model minus reference */
    double reference_nll;
} divergence;

void divergence_add(divergence *d, const logprobs *reference, const logprobs *model);
/** Sorts d->kl. Linear between the two nearest, as numpy has it. */
void divergence_quantiles(divergence *d, double out[DIVERGENCE_QUANTILES]);
void divergence_free(divergence *d);

/** Standard error of a mean of n values with these sums; 0 for less than two. */
double mean_error(double sum, double squares, size_t n);

#endif
