/*
 * What commands ask a model that they run themselves: its prompt, a picture, a token.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQUINT_ASKED_H
#define SQUINT_ASKED_H

#include "runtime/engine.h"

/** Ids of the model's prompt with this text, or with its own when text is NULL: SQ_IMAGE_TOKEN once, in the picture's
 *  place.  @param ids  malloc'ed, to be freed after failures too */
squint_err asked_prompt(const squint_model *m, const char *text, uint32_t **ids, uint32_t *n, squint_msg *msg);
/** Tokens that a prompt may have, a picture's with them. */
uint32_t asked_limit(const squint_model *m);
/** Reads the picture into the session's pixels. */
squint_err asked_picture(squint_session *s, const char *path, squint_msg *msg);
/** Feeds a token: the logits of what comes next [n_vocab], and entries of each layer's cache [n_layers]. */
squint_err asked_token(squint_session *s, uint32_t id, float *logits, int32_t *kv, squint_msg *msg);

#endif
