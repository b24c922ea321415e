/*
 * GGUF files built by hand, byte for byte, right and wrong ones.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQ_TEST_GGUF_BYTES_H
#define SQ_TEST_GGUF_BYTES_H

#include "runtime/gguf.h"

typedef struct blob {
    uint8_t *data; /* malloc'ed */
    size_t n, room;
} blob;

void blob_free(blob *b);
void put(blob *b, const void *data, size_t n);
void put_u8(blob *b, uint8_t v);
void put_u32(blob *b, uint32_t v);
void put_u64(blob *b, uint64_t v);
void put_f32(blob *b, float v);
void put_str(blob *b, const char *s);
void put_zeros(blob *b, size_t n);
/** Zeros up to a multiple of `alignment`. */
void put_padding(blob *b, size_t alignment);

/** Magic, version 3 and the counts. */
void put_header(blob *b, uint64_t n_tensors, uint64_t n_keys);
void put_key(blob *b, const char *key, uint32_t type);
void put_array(blob *b, const char *key, uint32_t type, uint64_t count);
void put_tensor(blob *b, const char *name, uint32_t n_dims, const uint64_t *ne, uint32_t type, uint64_t offset);

/** Opens a copy that ends at a guard page and starts 64-byte aligned where the size allows (see guarded_alloc()). */
squint_err open_guarded(sq_gguf **g, const blob *b, void **copy, squint_msg *msg);

#endif
