/*
 * GGUF v3: reading from a mapping or from memory, and writing.
 * SPDX-License-Identifier: MIT
 *
 * Every file is hostile. sq_gguf_open() checks all of it before anything is handed out: every length
 * against what is left of the file, every product for overflow, names unique, offsets aligned and
 * data inside the file, in the order of the tensors and not overlapping. What it hands out afterwards points into
 * the file. A file that another program shortens while it is mapped cannot be guarded against: reading past its new
 * end is a SIGBUS, as with any mapping.
 */
#ifndef SQ_GGUF_H
#define SQ_GGUF_H

#include "quant/quant.h"
#include "runtime/base.h"

typedef enum sq_gguf_type {
    SQ_GGUF_U8, SQ_GGUF_I8, SQ_GGUF_U16, SQ_GGUF_I16, SQ_GGUF_U32, SQ_GGUF_I32, SQ_GGUF_F32, SQ_GGUF_BOOL,
    SQ_GGUF_STRING, SQ_GGUF_ARRAY, SQ_GGUF_U64, SQ_GGUF_I64, SQ_GGUF_F64,
    SQ_GGUF_TYPE_COUNT
} sq_gguf_type;

/* Tensor types, as GGUF numbers them. I8 tensors may hold panels (quant.h). */
typedef enum sq_tensor_type {
    SQ_TENSOR_F32 = 0,
    SQ_TENSOR_F16 = 1,
    SQ_TENSOR_Q4_0 = 2,
    SQ_TENSOR_Q4_1 = 3,
    SQ_TENSOR_Q5_0 = 6,
    SQ_TENSOR_Q5_1 = 7,
    SQ_TENSOR_Q8_0 = 8,
    SQ_TENSOR_Q4_K = 12,
    SQ_TENSOR_Q5_K = 13,
    SQ_TENSOR_Q6_K = 14,
    SQ_TENSOR_I8 = 24,
    SQ_TENSOR_I32 = 26,
    SQ_TENSOR_BF16 = 30,
} sq_tensor_type;

typedef struct sq_str {
    const char *s; /* not terminated */
    size_t len;
} sq_str;

/* One key. Scalars are read with the getters below. */
typedef struct sq_gguf_kv {
    sq_str key;
    sq_gguf_type type;
    sq_gguf_type elem_type; /* arrays */
    uint64_t count;         /* arrays: elements; else 1 */
    const uint8_t *data;    /* unaligned, little-endian; strings: length, then bytes */
    size_t file_pos;        /* of the key, for messages */
} sq_gguf_kv;

enum { SQ_GGUF_MAX_DIMS = 4 };

typedef struct sq_gguf_tensor {
    sq_str name;
    uint32_t n_dims;
    uint64_t ne[SQ_GGUF_MAX_DIMS]; /* fastest dimension first; 1 past n_dims */
    uint32_t type;                 /* sq_tensor_type */
    const uint8_t *data;           /* aligned to general.alignment within the file */
    size_t bytes;
    size_t file_pos;               /* of the data, for messages */
} sq_gguf_tensor;

typedef struct sq_gguf sq_gguf;

/** Opens and checks. `path` is used in messages; for memory it may be any name. */
squint_err sq_gguf_open(sq_gguf **out, const char *path, const squint_allocator *a, squint_msg *msg);
squint_err sq_gguf_open_memory(sq_gguf **out, const char *name, const void *data, size_t size,
                               const squint_allocator *a, squint_msg *msg);
void sq_gguf_close(sq_gguf **g);

/* Two files of one model, as llama.cpp has them: keys clip.* and squint.vision.*, tensors v.*, mm.* and
 * model.image_newline come from the second. */
bool sq_gguf_is_vision(sq_str name);
/** Makes g the pair: its keys and tensors are then those of the first file that are not of vision, and after them those
 *  of the second that are. On success g closes *vision, which becomes NULL; else nothing changes. */
squint_err sq_gguf_join(sq_gguf *g, sq_gguf **vision, squint_msg *msg);
/** The second file of a pair; NULL for a file alone. */
const sq_gguf *sq_gguf_vision(const sq_gguf *g);
/** Opens the file at `mmproj`, checks that it and g are halves of one model, and joins them (mmproj.c). */
squint_err sq_gguf_add_mmproj(sq_gguf *g, const char *mmproj, const squint_allocator *a, squint_msg *msg);
/** sq_gguf_open(), and sq_gguf_add_mmproj() unless mmproj is NULL. */
squint_err sq_gguf_open_pair(sq_gguf **out, const char *path, const char *mmproj, const squint_allocator *a,
                             squint_msg *msg);

const char *sq_gguf_path(const sq_gguf *g);
/** Of the file that has, or would have, a key or tensor of this name: not the same in a pair. */
const char *sq_gguf_path_of(const sq_gguf *g, const char *name);
size_t sq_gguf_size(const sq_gguf *g); /* of the file, bytes */
size_t sq_gguf_n_keys(const sq_gguf *g);
const sq_gguf_kv *sq_gguf_key(const sq_gguf *g, size_t i);
const sq_gguf_kv *sq_gguf_find_key(const sq_gguf *g, const char *key); /* NULL when absent */
size_t sq_gguf_n_tensors(const sq_gguf *g);
const sq_gguf_tensor *sq_gguf_tensor_at(const sq_gguf *g, size_t i);
const sq_gguf_tensor *sq_gguf_find(const sq_gguf *g, const char *name); /* NULL when absent */

/** What a tensor's data takes of memory may go: somebody has a copy. Read again, it comes back from the file. Data that the
 *  caller gave stays. */
void sq_gguf_forget(const sq_gguf *g, const sq_gguf_tensor *t);

/* Getters. A missing key leaves *out alone (set the default before) when `required` is false, else fails
 * with a message that names the key; so does a wrong type. Integers of any width are accepted where they fit, as
 * numbers and, when 0 or 1, as bools; NaN and infinities are not. On failure *out may be partly written. */
squint_err sq_gguf_get_u32(const sq_gguf *g, const char *key, bool required, uint32_t *out, squint_msg *msg);
squint_err sq_gguf_get_f32(const sq_gguf *g, const char *key, bool required, float *out, squint_msg *msg);
squint_err sq_gguf_get_bool(const sq_gguf *g, const char *key, bool required, bool *out, squint_msg *msg);
squint_err sq_gguf_get_str(const sq_gguf *g, const char *key, bool required, sq_str *out, squint_msg *msg);
/** An array of exactly n numbers or bools, converted to float or uint32. */
squint_err sq_gguf_get_f32s(const sq_gguf *g, const char *key, bool required, float *out, size_t n, squint_msg *msg);
squint_err sq_gguf_get_u32s(const sq_gguf *g, const char *key, bool required, uint32_t *out, size_t n,
                            squint_msg *msg);
squint_err sq_gguf_get_bools(const sq_gguf *g, const char *key, bool required, bool *out, size_t n, squint_msg *msg);

/** String i of a string array, walking from *cursor (start at kv->data); the file was checked on opening. */
sq_str sq_gguf_next_str(const uint8_t **cursor);

bool sq_str_eq(sq_str a, const char *b);
/** Bytes of one value of this type; 0 for strings and arrays. */
size_t sq_gguf_type_bytes(sq_gguf_type type);
bool sq_tensor_type_known(uint32_t type);
const char *sq_tensor_type_name(uint32_t type); /* "F32", ...; "unknown" */
/** Bytes of a tensor of this type and shape; false on overflow, unknown type, or rows that are not whole blocks. */
bool sq_tensor_bytes(uint32_t type, const uint64_t ne[SQ_GGUF_MAX_DIMS], size_t *bytes);
/** Does the type hold weights, which sq_tensor_floats() reads? I8 and I32 do not. */
bool sq_tensor_is_weights(uint32_t type);
/** And are they floats of their own, F32, F16 or BF16? */
bool sq_tensor_is_floats(uint32_t type);
/** n weights, whole blocks of them, as floats; data may lie at any address. */
void sq_tensor_floats(uint32_t type, const void *data, float *out, size_t n);
/** Does this tensor say that it is a panel matrix (I8, one dimension, the header's magic)? */
bool sq_tensor_is_panels(const sq_gguf_tensor *t);
/** Checks a panel matrix's header, size and place in the file; on success w points into the file. Where the file lies in
 *  memory is the caller's affair: kernels need panels at a multiple of 64. */
squint_err sq_tensor_panels(const sq_gguf *g, const sq_gguf_tensor *t, sq_panels *w, squint_msg *msg);

/* ---- Writing ------------------------------------------------------------------------------ */

/*
 * Keys, then tensor infos, then data, in the order of the calls. Data is streamed: declare every tensor
 * first, then write each one's bytes in the same order. The file appears under its name only when
 * sq_gguf_write_end() succeeds (temporary name, fsync, rename): nothing half-written replaces a good file. Before
 * that it is read back by the checks above, so a key put twice fails then. After a failure all calls do nothing.
 */
typedef struct sq_gguf_writer sq_gguf_writer;

/** @param alignment  of tensor data, a power of two from 8 to 65536; files with panels need 64 */
squint_err sq_gguf_write_begin(sq_gguf_writer **out, const char *path, uint32_t alignment,
                               const squint_allocator *a, squint_msg *msg);
void sq_gguf_put_u32(sq_gguf_writer *w, const char *key, uint32_t v);
void sq_gguf_put_f32(sq_gguf_writer *w, const char *key, float v);
void sq_gguf_put_bool(sq_gguf_writer *w, const char *key, bool v);
void sq_gguf_put_str(sq_gguf_writer *w, const char *key, sq_str v);
void sq_gguf_put_f32s(sq_gguf_writer *w, const char *key, const float *v, size_t n);
void sq_gguf_put_bools(sq_gguf_writer *w, const char *key, const bool *v, size_t n);
void sq_gguf_put_strs(sq_gguf_writer *w, const char *key, const sq_str *v, size_t n);
/** Copies a key of an open file as it is; general.alignment is passed over, as begin() writes its own. */
void sq_gguf_put_kv(sq_gguf_writer *w, const sq_gguf_kv *kv);
void sq_gguf_put_tensor(sq_gguf_writer *w, sq_str name, uint32_t n_dims, const uint64_t *ne, uint32_t type);
/** Data of the next declared tensor; bytes must be its size. */
void sq_gguf_put_data(sq_gguf_writer *w, const void *data, size_t bytes);
/** Failures of all calls since begin are told here. The writer is released in any case; without success
 *  the file at path is as it was. */
squint_err sq_gguf_write_end(sq_gguf_writer **w, squint_msg *msg);
/** Gives up and releases; the file at path is as it was. */
void sq_gguf_write_abort(sq_gguf_writer **w);

#endif
