/*
 * Small models whose every weight follows from a formula, as GGUF files: right ones, and ones with a defect.
 * SPDX-License-Identifier: MIT
 *
 * The weights are those that the golden logits of p-MoD and of the tower were computed with (PyTorch, the method's own
 * classes): see fixture_values().
 */
#ifndef SQ_TEST_FIXTURE_H
#define SQ_TEST_FIXTURE_H

#include "runtime/engine.h"

enum {
    FIXTURE_IDS = 16,    /* pieces that the golden logits know */
    FIXTURE_VOCAB = 272, /* these, and the 256 bytes that a tokenizer must have */
};

typedef struct fixture_shape {
    uint32_t n_layers, d, f, n_heads, n_kv_heads;
} fixture_shape;

/* A model file in the making: keys and tensors, to be added, replaced and left out by name. */
typedef struct fixture fixture;

/** Element m of tensor `id` is base + scale * u(id, m) with u in [-1, 1): a hash of both, in binary32. */
void fixture_values(float *out, size_t n, uint32_t id, double base, double scale);

/** A dense decoder of `n_layers` layers with d = 16, f = 24, 4 heads, 2 KV heads, rope_layout "half", F32. */
fixture *fixture_decoder(uint32_t n_layers);
fixture *fixture_decoder_of(const fixture_shape *shape);
/** Makes it p-MoD with tanh_0.2_1. @param is_mod, ratio  [n_layers] */
void fixture_routing(fixture *f, const bool *is_mod, const float *ratio);
/** Gives it gamma-MoD's router, one for all layers, and the keys of a file for this mode.  @param is_mod  [n_layers] */
void fixture_gates(fixture *f, const char *mode, const bool *is_mod);
/** Adds a CLIP tower of 3 layers, width 16, 12 x 12 pixels, 9 patches, of which 2 layers run, and a projector. */
void fixture_tower(fixture *f);
/** Takes keys and tensors of vision out of f and gives them as a file of their own, with the keys that llama.cpp's
 *  converter writes. */
fixture *fixture_split(fixture *f);
/** Reorders the rows of W_q and W_k as llama.cpp's files have them, and says so in squint.rope_layout. */
void fixture_interleave(fixture *f);
/** Keys and tensors of a model file, matrices of F16 as F32. Of its shape, layers and width are known. Fails the test
 *  when it cannot be read. */
fixture *fixture_read(const char *path);
/** Adds what another file holds under names that begin with this prefix, without the prefix. */
void fixture_add(fixture *f, const sq_gguf *g, const char *prefix);
fixture *fixture_copy(const fixture *f);
void fixture_free(fixture *f);

/* ---- Changes: what there is under the name is replaced ----------------------------------------- */

void fixture_u32(fixture *f, const char *key, uint32_t v);
void fixture_f32(fixture *f, const char *key, float v);
void fixture_bool(fixture *f, const char *key, bool v);
void fixture_str(fixture *f, const char *key, const char *v);
void fixture_u32s(fixture *f, const char *key, const uint32_t *v, size_t n);
void fixture_f32s(fixture *f, const char *key, const float *v, size_t n);
void fixture_bools(fixture *f, const char *key, const bool *v, size_t n);
void fixture_tensor(fixture *f, const char *name, uint32_t n_dims, const uint64_t *ne, uint32_t type, const void *data,
                    size_t bytes);
/** An F32 tensor of formula weights; n_out 0 makes a vector of n_in. */
void fixture_weights(fixture *f, const char *name, uint32_t n_in, uint32_t n_out, uint32_t id, double base,
                     double scale);
void fixture_rename(fixture *f, const char *from, const char *to); /* a tensor */
void fixture_rename_key(fixture *f, const char *from, const char *to);
void fixture_duplicate(fixture *f, const char *from, const char *to); /* a tensor */
/** Gives two ids each other's weights, so that one is written where the other was. */
void fixture_swap_ids(fixture *f, uint32_t a, uint32_t b);
/** Leaves out a key or a tensor, which must be there. */
void fixture_drop(fixture *f, const char *name);

/* How a matrix is kept. */
typedef struct fixture_type {
    uint32_t tensor;      /* F32, F16, Q8_0, Q4_0, or I8: panels */
    sq_panel_type panels; /* I8 only */
    uint32_t group;
} fixture_type;

/** Turns an F32 matrix into another type. With `back` it stays F32 and takes the values that this type would keep. */
void fixture_encode(fixture *f, const char *name, fixture_type type, bool back);
/** All matrices of the decoder: W_q ... W_down of each layer, embedding and, unless it is tied, output. */
void fixture_encode_decoder(fixture *f, fixture_type type, bool back);

/* ---- Use --------------------------------------------------------------------------------------- */

/** Values of an F32 tensor; they belong to the fixture. Fails the test when there is none. */
float *fixture_floats(const fixture *f, const char *name);
bool fixture_has(const fixture *f, const char *name);
const fixture_shape *fixture_shape_of(const fixture *f);
bool fixture_is_mod(const fixture *f, uint32_t layer);
float fixture_ratio(const fixture *f, uint32_t layer);

/** Writes the file; fails the test when it cannot. */
void fixture_write(const fixture *f, const char *path);
/** Opens the model from a file that is gone again when this returns; its mapping is not. */
squint_err fixture_open(squint_model **out, const fixture *f, const squint_model_options *options, squint_msg *msg);
/** The same, failing the test when it does not open. isa NULL: the best. */
squint_model *fixture_model(const fixture *f, const char *isa);
/** The file's bytes, malloc'ed. */
uint8_t *fixture_bytes(const fixture *f, size_t *size);

#endif
