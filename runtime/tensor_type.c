/*
 * Types of tensors: names, sizes, and their weights as floats.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/gguf.h"

#include <string.h>

/* Blocks of a type that is read through its struct, which must be aligned: one after the other through a copy. */
#define READ_COPIES(type)                                                                                              \
    static void read_##type(const void *blocks, float *out, size_t n_blocks)                                           \
    {                                                                                                                  \
        const uint8_t *at = blocks;                                                                                    \
        sq_block_##type block;                                                                                         \
        for (size_t i = 0; i < n_blocks; i++, at += sizeof block, out += SQ_BLOCK) {                                   \
            memcpy(&block, at, sizeof block);                                                                          \
            sq_dequantise_##type(&block, out, 1);                                                                      \
        }                                                                                                              \
    }
READ_COPIES(q8_0)
READ_COPIES(q4_0)

static void read_f32(const void *values, float *out, size_t n) { memcpy(out, values, n * sizeof *out); }

static void read_f16(const void *values, float *out, size_t n)
{
    const uint8_t *at = values;
    for (size_t i = 0; i < n; i++, at += sizeof(uint16_t)) {
        uint16_t half;
        memcpy(&half, at, sizeof half);
        out[i] = sq_f16_to_f32(half);
    }
}

typedef struct tensor_type {
    uint32_t type;
    const char *name;
    uint32_t block;                                                /* weights in a block */
    uint32_t bytes;                                                /* of a block */
    void (*read)(const void *blocks, float *out, size_t n_blocks); /* NULL: these are no weights */
} tensor_type;

static const tensor_type tensor_types[] = {
    {SQ_TENSOR_F32, "F32", 1, 4, read_f32},
    {SQ_TENSOR_F16, "F16", 1, 2, read_f16},
    {SQ_TENSOR_BF16, "BF16", 1, 2, sq_dequantise_bf16},
    {SQ_TENSOR_Q4_0, "Q4_0", SQ_BLOCK, sizeof(sq_block_q4_0), read_q4_0},
    {SQ_TENSOR_Q4_1, "Q4_1", SQ_BLOCK, SQ_Q4_1_BYTES, sq_dequantise_q4_1},
    {SQ_TENSOR_Q5_0, "Q5_0", SQ_BLOCK, SQ_Q5_0_BYTES, sq_dequantise_q5_0},
    {SQ_TENSOR_Q5_1, "Q5_1", SQ_BLOCK, SQ_Q5_1_BYTES, sq_dequantise_q5_1},
    {SQ_TENSOR_Q8_0, "Q8_0", SQ_BLOCK, sizeof(sq_block_q8_0), read_q8_0},
    {SQ_TENSOR_Q4_K, "Q4_K", SQ_SUPERBLOCK, SQ_Q4_K_BYTES, sq_dequantise_q4_k},
    {SQ_TENSOR_Q5_K, "Q5_K", SQ_SUPERBLOCK, SQ_Q5_K_BYTES, sq_dequantise_q5_k},
    {SQ_TENSOR_Q6_K, "Q6_K", SQ_SUPERBLOCK, SQ_Q6_K_BYTES, sq_dequantise_q6_k},
    {SQ_TENSOR_I8, "I8", 1, 1, NULL},
    {SQ_TENSOR_I32, "I32", 1, 4, NULL},
};

static const tensor_type *find(uint32_t type)
{
    for (size_t i = 0; i < SQ_COUNT(tensor_types); i++)
        if (tensor_types[i].type == type) return &tensor_types[i];
    return NULL;
}

bool sq_tensor_type_known(uint32_t type) { return find(type) != NULL; }

const char *sq_tensor_type_name(uint32_t type)
{
    const tensor_type *t = find(type);
    return t ? t->name : "unknown";
}

bool sq_tensor_bytes(uint32_t type, const uint64_t ne[SQ_GGUF_MAX_DIMS], size_t *bytes)
{
    const tensor_type *t = find(type);
    if (!t || ne[0] % t->block) return false;
    size_t total = t->bytes;
    for (unsigned i = 0; i < SQ_GGUF_MAX_DIMS; i++) {
        const uint64_t n = i ? ne[i] : ne[0] / t->block;
        if (n > SIZE_MAX || !sq_mul(total, (size_t)n, &total)) return false;
    }
    *bytes = total;
    return true;
}

bool sq_tensor_is_weights(uint32_t type)
{
    const tensor_type *t = find(type);
    return t && t->read;
}

bool sq_tensor_is_floats(uint32_t type)
{
    const tensor_type *t = find(type);
    return t && t->read && t->block == 1;
}

void sq_tensor_floats(uint32_t type, const void *data, float *out, size_t n)
{
    const tensor_type *t = find(type);
    assert(t && t->read && n % t->block == 0);
    t->read(data, out, n / t->block);
}
