/*
 * test_blocks: block types of llama.cpp against the floats that the gguf Python package makes of them.
 * SPDX-License-Identifier: MIT
 *
 * The floats are in golden/blocks.gguf, made by golden/make_blocks.py.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/gguf.h"
#include "tests/support.h"

static const struct {
    const char *name;
    uint32_t type, block, bytes;
} types[] = {
    {"BF16", SQ_TENSOR_BF16, 1, 2},     {"Q4_1", SQ_TENSOR_Q4_1, 32, 20},   {"Q5_0", SQ_TENSOR_Q5_0, 32, 22},
    {"Q5_1", SQ_TENSOR_Q5_1, 32, 24},   {"Q4_K", SQ_TENSOR_Q4_K, 256, 144}, {"Q5_K", SQ_TENSOR_Q5_K, 256, 176},
    {"Q6_K", SQ_TENSOR_Q6_K, 256, 210},
};

static sq_gguf *golden;

static const sq_gguf_tensor *tensor(const char *name, const char *suffix)
{
    char full[32];
    snprintf(full, sizeof full, "%s%s", name, suffix);
    const sq_gguf_tensor *t = sq_gguf_find(golden, full);
    assert_non_null(t);
    return t;
}

static uint32_t bits_of(const uint8_t *floats, size_t i)
{
    uint32_t bits;
    memcpy(&bits, floats + 4 * i, sizeof bits);
    return bits;
}

/* The blocks lie right before a page that cannot be read, or `shift` bytes before it; the floats right before one. */
static void assert_equal_floats(size_t type, unsigned shift)
{
    const sq_gguf_tensor *const blocks = tensor(types[type].name, ""), *const floats = tensor(types[type].name, ".f32");
    const size_t n = floats->bytes / sizeof(float);
    assert_int_equal(blocks->type, types[type].type);
    assert_int_equal(blocks->bytes / types[type].bytes * types[type].block, n);
    uint8_t *const in = guarded_alloc(blocks->bytes + shift, 1);
    float *const out = guarded_alloc(n * sizeof *out, sizeof *out);
    memcpy(in, blocks->data, blocks->bytes);
    sq_tensor_floats(blocks->type, in, out, n);
    for (size_t i = 0; i < n; i++)
        if (bits_of((const uint8_t *)out, i) != bits_of(floats->data, i))
            fail_msg("%s, weight %zu: %08x, not %08x", types[type].name, i, (unsigned)bits_of((const uint8_t *)out, i),
                     (unsigned)bits_of(floats->data, i));
    guarded_free(in);
    guarded_free(out);
}

static void floats_are_those_of_gguf(void **state)
{
    (void)state;
    for (size_t i = 0; i < SQ_COUNT(types); i++) {
        assert_equal_floats(i, 0);
        assert_equal_floats(i, 1); /* odd where the other is even */
    }
}

/* Blocks that could pass one type off as another would be read past their end. */
static void sizes_are_those_of_gguf(void **state)
{
    (void)state;
    for (size_t i = 0; i < SQ_COUNT(types); i++) {
        const uint32_t type = types[i].type, block = types[i].block;
        uint64_t ne[SQ_GGUF_MAX_DIMS] = {3 * block, 5, 1, 1};
        size_t bytes;
        assert_true(sq_tensor_bytes(type, ne, &bytes));
        assert_int_equal(bytes, 15 * types[i].bytes);
        assert_string_equal(sq_tensor_type_name(type), types[i].name);
        assert_true(sq_tensor_is_weights(type));
        for (uint32_t more = 1; more < block; more++) {
            ne[0] = 3 * block + more;
            assert_false(sq_tensor_bytes(type, ne, &bytes));
        }
        ne[0] = (uint64_t)1 << 32; /* a multiple of every block */
        ne[1] = ne[2] = (uint64_t)1 << 31;
        assert_false(sq_tensor_bytes(type, ne, &bytes));
    }
    assert_false(sq_tensor_is_weights(SQ_TENSOR_I8));
    assert_false(sq_tensor_is_weights(SQ_TENSOR_I32));
    assert_false(sq_tensor_is_weights(10)); /* Q2_K */
}

static int set_up(void **state)
{
    (void)state;
    return sq_gguf_open(&golden, test_path("golden/blocks.gguf"), NULL, NULL);
}

static int tear_down(void **state)
{
    (void)state;
    sq_gguf_close(&golden);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(floats_are_those_of_gguf),
        cmocka_unit_test(sizes_are_those_of_gguf),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
