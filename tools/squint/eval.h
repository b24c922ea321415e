/*
 * What the parts of squint eval share: what is asked of every picture, and what came of it.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQUINT_EVAL_H
#define SQUINT_EVAL_H

#include "runtime/engine.h"

#include <stdio.h>

/* A reference as the model writes it; the end token is not among the ids. */
typedef struct reference {
    uint32_t *ids;
    size_t n_ids, n_words;
} reference;

/* What is done with every picture. Sessions only read it. */
typedef struct eval_task {
    const squint_model *model;
    const char *model_path;
    bool nll_only;        /* no captions are written */
    bool dumps;           /* logits */
    unsigned max_tokens;  /* of a caption */
    size_t longest;       /* reference, in tokens */
    uint32_t *words;      /* [n_words] the prompt, a token in the image's place */
    uint32_t n_words;     /* and as many more as a picture has vision tokens: */
    uint32_t most_prompt; /* with the most of them */
} eval_task;

/* Of one picture, or of all. */
typedef struct eval_sums {
    size_t images, captions, tokens, words, written; /* tokens: of references, each end included */
    double nll;                                      /* nats */
    double ms[SQUINT_STAGE_COUNT], kv_bytes, kv_bytes_dense, macs, macs_dense;
} eval_sums;

void eval_sums_add(eval_sums *all, const eval_sums *one);

/* ---- A session (eval_session.c) -------------------------------------------------------------- */

/* What looks at one picture after another. */
typedef struct eval_session {
    const eval_task *task;
    squint_session *session;
    uint32_t *prompt; /* [n_prompt] with the picture's vision tokens; room for most_prompt */
    uint32_t n_prompt;
    float *first;      /* [n_vocab] logits after the prompt */
    char *piece;       /* of one token */
    char *text;        /* the picture's caption */
    uint32_t *ids;     /* [n_dumped] tokens of a dumped pass; room for most_prompt + longest */
    uint32_t n_dumped; /* 0: none */
    uint32_t **kept;   /* [n_layers][n_kept] their positions that a layer ran */
    uint32_t *n_kept;  /* [n_layers] */
} eval_session;

/** On failure too what there is must be closed. */
squint_err eval_session_open(eval_session *e, const eval_task *task, const squint_session_options *options,
                             squint_msg *msg);
void eval_session_close(eval_session *e);
/** Looks at a picture, writes its caption and scores n references.
 *  @param sums  of this picture alone
 *  @return also _CANCELLED: by squint_session_cancel(), or Ctrl-C */
squint_err eval_session_run(eval_session *e, const char *path, const reference *references, size_t n, eval_sums *sums,
                            squint_msg *msg);
/** Writes the record of the picture's first reference: positions that layers ran, and logits. */
void eval_session_dump(const eval_session *e, FILE *f);

#endif
