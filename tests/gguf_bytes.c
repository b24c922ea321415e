/* SPDX-License-Identifier: MIT */
#include "tests/gguf_bytes.h"

#include "tests/support.h"

#include <stdlib.h>
#include <string.h>

void blob_free(blob *b)
{
    free(b->data);
    *b = (blob){0};
}

void put(blob *b, const void *data, size_t n)
{
    if (b->n + n > b->room) {
        b->room = 2 * (b->n + n);
        b->data = realloc(b->data, b->room);
        if (!b->data) abort();
    }
    if (n) memcpy(b->data + b->n, data, n);
    b->n += n;
}

void put_u8(blob *b, uint8_t v) { put(b, &v, sizeof v); }
void put_u32(blob *b, uint32_t v) { put(b, &v, sizeof v); }
void put_u64(blob *b, uint64_t v) { put(b, &v, sizeof v); }
void put_f32(blob *b, float v) { put(b, &v, sizeof v); }

void put_str(blob *b, const char *s)
{
    put_u64(b, strlen(s));
    put(b, s, strlen(s));
}

void put_zeros(blob *b, size_t n)
{
    while (n--)
        put_u8(b, 0);
}

void put_padding(blob *b, size_t alignment) { put_zeros(b, (alignment - b->n % alignment) % alignment); }

void put_header(blob *b, uint64_t n_tensors, uint64_t n_keys)
{
    put(b, "GGUF", 4);
    put_u32(b, 3);
    put_u64(b, n_tensors);
    put_u64(b, n_keys);
}

void put_key(blob *b, const char *key, uint32_t type)
{
    put_str(b, key);
    put_u32(b, type);
}

void put_array(blob *b, const char *key, uint32_t type, uint64_t count)
{
    put_key(b, key, SQ_GGUF_ARRAY);
    put_u32(b, type);
    put_u64(b, count);
}

void put_tensor(blob *b, const char *name, uint32_t n_dims, const uint64_t *ne, uint32_t type, uint64_t offset)
{
    put_str(b, name);
    put_u32(b, n_dims);
    for (uint32_t i = 0; i < n_dims; i++)
        put_u64(b, ne[i]);
    put_u32(b, type);
    put_u64(b, offset);
}

squint_err open_guarded(sq_gguf **g, const blob *b, void **copy, squint_msg *msg)
{
    *copy = guarded_alloc(b->n, b->n % 64 ? 1 : 64);
    if (b->n) memcpy(*copy, b->data, b->n);
    return sq_gguf_open_memory(g, "test.gguf", *copy, b->n, NULL, msg);
}
