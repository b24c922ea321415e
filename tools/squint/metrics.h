/*
 * How captions are scored against people's: exact match, BLEU, CIDEr-D.
 * SPDX-License-Identifier: MIT
 *
 * Words are what white space parts, in lower case (ASCII); punctuation is not taken off, as the data
 * has none. With the same words the figures equal those of coco-caption's scorers (pycocoevalcap).
 */
#ifndef SQUINT_METRICS_H
#define SQUINT_METRICS_H

#include <stddef.h>

enum { METRICS_ORDERS = 4 }; /* n-grams of 1 to 4 words */

typedef struct metrics metrics;

typedef struct metrics_scores {
    size_t n_images;
    double exact;                /* share of captions equal, word for word, to one of their references */
    double bleu[METRICS_ORDERS]; /* BLEU-1 to BLEU-4 over the corpus, brevity against the closest reference;
                                    Papineni et al. 2002 */
    double cider;                /* CIDEr-D, sigma 6, times 10; document frequencies from the references at hand;
                                    Vedantam et al., arXiv 1411.5726 */
} metrics_scores;

/* Memory running out ends the program with a message (cli_alloc). */
metrics *metrics_new(void);
void metrics_free(metrics *m);
/** One image: its caption and n references; all are copied. */
void metrics_add(metrics *m, const char *caption, const char *const *references, size_t n);
/** The scores of all images so far; all zero when there are none. */
metrics_scores metrics_compute(const metrics *m);
/** Number of words. */
size_t metrics_count_words(const char *text);

#endif
