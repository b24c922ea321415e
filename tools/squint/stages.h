/*
 * Stages of a network next to a reference's: how far apart two tables of numbers, or two sets of positions, are, and
 * whether that is more than rounding explains.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQUINT_STAGES_H
#define SQUINT_STAGES_H

#include "runtime/gguf.h"

#include <cjson/cJSON.h>

enum { STAGE_NAME = 64, STAGE_SHOWN = 8 };

/* What decides whether a stage is right. */
typedef enum stage_kind {
    STAGE_EXACT,  /* whole numbers, and pixels as Pillow makes them: no difference */
    STAGE_FLOATS, /* rows of a network: each row's difference in parts of the row */
    STAGE_LOGITS, /* the largest difference */
    STAGE_SET,    /* positions that a layer runs: the same, ties aside */
    STAGE_COUNTS, /* how many they are: the same, where sets are judged */
} stage_kind;

typedef struct stage_budgets {
    float tolerance; /* logits: largest difference */
    float drift;     /* floats: Euclidean length of a row's difference over that of the row */
    float ties;      /* sets: scores that are no farther from the cut may fall on either side */
} stage_budgets;

typedef enum stage_state {
    STAGE_UNSEEN, /* squint has not made it */
    STAGE_WITHIN,
    STAGE_PAST, /* its budget */
    STAGE_OPEN, /* not judged */
} stage_state;

/* A position in one set alone. */
typedef struct stage_other {
    uint32_t at;
    bool theirs; /* in the reference's set */
    double gap;  /* of its score to the cut; infinity: unknown, or of no choice */
} stage_other;

typedef struct stage {
    char name[STAGE_NAME];
    const sq_gguf_tensor *tensor; /* the reference's */
    stage_kind kind;
    stage_state state;
    char why[160];       /* STAGE_PAST, STAGE_OPEN: what is wrong */
    uint32_t rows, cols; /* as squint has it */
    /* Tables. `worst` is the drift of the row of which it is largest. */
    double largest, mean, relative, worst, cosine;
    /* Sets */
    uint32_t n_both, n_either, n_others, n_ties;
    double widest, farthest; /* largest gap of a tie, of any position in one set alone */
    stage_other others[STAGE_SHOWN];
} stage;

/* Who competed for a layer's places, and by what. */
typedef struct stage_contest {
    uint32_t n;          /* positions in the sequence */
    const double *score; /* [n] NaN: none; the position is run in any case */
    double threshold;    /* score from which a position is run; NaN: the best are */
} stage_contest;

/** Fills in the differences of floats [rows][cols] from the reference's tensor, and whether they are within budget.
 *  A shape that is not the reference's is past it. */
void stage_compare_floats(stage *s, const float *got, uint32_t rows, uint32_t cols, const stage_budgets *budgets);
/** The same of whole numbers. */
void stage_compare_ints(stage *s, const int32_t *got, uint32_t rows, uint32_t cols);
/** Of positions, rising. */
void stage_compare_sets(stage *s, const uint32_t *got, uint32_t n, const stage_contest *contest,
                        const stage_budgets *budgets);
/** STAGE_PAST for a reason of its own. */
void stage_refuse(stage *s, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 2, 3)))
#endif
    ;
/** What is past its budget is not judged (STAGE_OPEN) after sets that differ by ties, and, but for what must be exact,
 *  where nobody asked to.  @param tied  the first such set, NULL before one */
void stage_settle(stage *s, const stage **tied, bool judge);

/** A table's head, and a row of it without its newline and s->why. */
void stage_print_head(void);
void stage_print(const stage *s);
cJSON *stage_json(const stage *s);

#endif
