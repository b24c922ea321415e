/*
 * What precision the tensors of a model file have: what --type means, and how a tensor of it lies in a file.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQUINT_POLICY_H
#define SQUINT_POLICY_H

#include "runtime/gguf.h"

/* What a tensor is, as far as its precision goes. */
typedef enum tensor_class {
    CLASS_DECODER,   /* matrices of the decoder's layers */
    CLASS_EMBEDDING, /* token embedding and output */
    CLASS_TOWER,     /* matrices of the tower and the projector */
    CLASS_EXACT,     /* all else */
    CLASS_COUNT,
} tensor_class;

extern const char *const tensor_class_names[CLASS_COUNT];
tensor_class tensor_class_of(sq_str name, uint32_t n_dims);

typedef enum weight_type {
    WEIGHT_F32,
    WEIGHT_F16,
    WEIGHT_Q8_0,
    WEIGHT_Q4_0,
    WEIGHT_I8, /* panels, one scale a channel */
    WEIGHT_I4, /* panels, one scale a group */
} weight_type;

enum { WEIGHT_POLICIES = 6, NO_FILE_TYPE = -1 };

/* What --type makes of each class. */
typedef struct weight_policy {
    const char *name;
    weight_type of[CLASS_COUNT];
    int file_type; /* general.file_type; GGUF has no number for panels */
} weight_policy;

extern const weight_policy weight_policies[WEIGHT_POLICIES];
extern const char *const weight_policy_words[]; /* their names, NULL at the end */

/* A tensor as it lies in a file. */
typedef struct stored_tensor {
    weight_type type;
    uint64_t n, k; /* as a matrix: rows, inputs */
    sq_panels panels;
    size_t bytes;
} stored_tensor;

/** Blocks become F16 where rows are not whole ones. `group` is that of int4 panels. False when it is too large. */
bool stored_plan(stored_tensor *s, weight_type wanted, const uint64_t ne[SQ_GGUF_MAX_DIMS], uint32_t group);
void stored_declare(const stored_tensor *s, sq_gguf_writer *w, sq_str name, uint32_t n_dims, const uint64_t *ne);
/** sizeof(sq_panel_header) bytes before the panels. */
void stored_put_header(const stored_tensor *s, uint8_t *out);
bool weight_is_panels(weight_type type);
bool stored_is_panels(const stored_tensor *s);
uint32_t stored_gguf_type(const stored_tensor *s);

#endif
