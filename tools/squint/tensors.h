/*
 * What the tensors of a model file are for, and what they hold.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQUINT_TENSORS_H
#define SQUINT_TENSORS_H

#include "runtime/gguf.h"

/* The parts of a model. */
typedef enum model_part {
    PART_TOWER,
    PART_PROJECTOR,
    PART_DECODER,
    PART_ROUTERS,
    PART_COUNT,
} model_part;

extern const char *const part_names[PART_COUNT];
model_part tensor_part(sq_str name);

/* A tensor as what it means: panels are the matrix that they hold. */
typedef struct tensor_view {
    const sq_gguf_tensor *tensor;
    bool is_panels;
    sq_panels panels;
    uint32_t n_dims;
    uint64_t ne[SQ_GGUF_MAX_DIMS]; /* fastest first */
    uint64_t elements;
} tensor_view;

squint_err tensor_view_open(tensor_view *v, const sq_gguf *g, const sq_gguf_tensor *t, squint_msg *msg);
/** "F32", "int4 panels, group 64", ... */
void tensor_type_text(const tensor_view *v, char *out, size_t size);
/** "[256, 1024]" */
void tensor_shape_text(const tensor_view *v, char *out, size_t size);

/** Does `name` match the shell pattern? */
bool name_matches(sq_str name, const char *pattern);

#endif
