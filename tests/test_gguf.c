/* GGUF: files broken in every way we could name, and what the writer makes of all types.
 * SPDX-License-Identifier: MIT */
#include "runtime/gguf.h"
#include "runtime/index.h"
#include "tests/counting.h"
#include "tests/gguf_bytes.h"
#include "tests/support.h"

#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static sq_str str(const char *s) { return (sq_str){s, strlen(s)}; }

static void put_key_u32(blob *b, const char *key, uint32_t v)
{
    put_key(b, key, SQ_GGUF_U32);
    put_u32(b, v);
}

static const uint64_t four[] = {4, 1, 1, 1};

static void put_panel_header(blob *b, const sq_panel_header *h) { put(b, h, sizeof *h); }

static sq_panel_header good_panel(void)
{
    return (sq_panel_header){.magic = "SQPN", .version = 1, .type = SQ_PANEL_I4, .n = 20, .k = 40, .group = 32};
}

static sq_panels panels_of(const sq_panel_header *h)
{
    return (sq_panels){.n = h->n, .k = h->k, .type = (sq_panel_type)h->type, .group = h->group};
}

/* ---- A right file ------------------------------------------------------------------------- */

static void put_all_scalars(blob *b)
{
    static const uint8_t ones[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    for (uint32_t type = 0; type < SQ_GGUF_TYPE_COUNT; type++) {
        char key[16];
        snprintf(key, sizeof key, "scalar.%u", type);
        if (type == SQ_GGUF_ARRAY) continue;
        put_key(b, key, type);
        if (type == SQ_GGUF_STRING)
            put_str(b, "text \xC3\xA9");
        else
            put(b, ones, sq_gguf_type_bytes((sq_gguf_type)type));
    }
}

static void put_all_arrays(blob *b)
{
    for (uint32_t type = 0; type < SQ_GGUF_TYPE_COUNT; type++) {
        char key[16];
        snprintf(key, sizeof key, "array.%u", type);
        if (type == SQ_GGUF_ARRAY) continue;
        put_array(b, key, type, 3);
        for (uint8_t i = 0; i < 3; i++) {
            uint8_t value[8] = {i & 1};
            if (type == SQ_GGUF_STRING)
                put_str(b, i ? "piece" : "");
            else
                put(b, value, sq_gguf_type_bytes((sq_gguf_type)type));
        }
    }
}

enum { GOOD_KEYS = 2 * (SQ_GGUF_TYPE_COUNT - 1) + 3, GOOD_TENSORS = 7 };

/* Every value type alone and in an array, every tensor type; ends with the last tensor's last byte. */
static void put_good_file(blob *b)
{
    static const struct {
        const char *name;
        uint32_t n_dims;
        uint64_t ne[4];
        uint32_t type;
    } tensors[] = {
        {"f32", 4, {3, 1, 2, 5}, SQ_TENSOR_F32},
        {"f16", 2, {7, 3}, SQ_TENSOR_F16},
        {"q4_0", 2, {64, 3}, SQ_TENSOR_Q4_0},
        {"q8_0", 3, {32, 2, 2}, SQ_TENSOR_Q8_0},
        {"i8", 1, {5}, SQ_TENSOR_I8},
        {"i32", 1, {5}, SQ_TENSOR_I32},
    };
    const sq_panel_header h = good_panel();
    const sq_panels panels = panels_of(&h);
    const uint64_t panel_bytes = sizeof h + sq_panels_bytes(&panels);

    put_header(b, GOOD_TENSORS, GOOD_KEYS);
    put_all_scalars(b);
    put_key_u32(b, "general.alignment", 64);
    put_all_arrays(b);
    put_array(b, "array.empty", SQ_GGUF_STRING, 0);
    put_key(b, "string.empty", SQ_GGUF_STRING);
    put_str(b, "");
    uint64_t offset = 0;
    for (size_t i = 0; i < SQ_COUNT(tensors); i++) {
        uint64_t ne[4] = {1, 1, 1, 1};
        size_t size;
        memcpy(ne, tensors[i].ne, tensors[i].n_dims * sizeof *ne);
        put_tensor(b, tensors[i].name, tensors[i].n_dims, ne, tensors[i].type, offset);
        assert_true(sq_tensor_bytes(tensors[i].type, ne, &size));
        offset += (size + 63) / 64 * 64;
    }
    put_tensor(b, "panels", 1, &panel_bytes, SQ_TENSOR_I8, offset);
    put_padding(b, 64);
    for (uint64_t i = 0; i < offset; i++)
        put_u8(b, (uint8_t)i);
    put_panel_header(b, &h);
    put_zeros(b, panel_bytes - sizeof h);
}

/* Reads everything that can be read, as far as the checks allow it. Returns a sum, so that nothing is left out. */
static uint64_t walk(const sq_gguf *g)
{
    uint64_t sum = sq_gguf_size(g);
    squint_msg msg;
    for (size_t i = 0; i < sq_gguf_n_keys(g); i++) {
        const sq_gguf_kv *kv = sq_gguf_key(g, i);
        char key[64];
        snprintf(key, sizeof key, "%.*s", (int)(kv->key.len < 63 ? kv->key.len : 63), kv->key.s);
        uint32_t u[3] = {0};
        float f[3] = {0};
        bool b[3] = {0};
        sq_str s = {0};
        sum += (uint64_t)sq_gguf_get_u32(g, key, true, u, &msg) + sq_gguf_get_f32(g, key, true, f, &msg);
        sum += (uint64_t)sq_gguf_get_bool(g, key, true, b, &msg) + sq_gguf_get_str(g, key, true, &s, &msg);
        sum += (uint64_t)sq_gguf_get_u32s(g, key, true, u, 3, &msg) + sq_gguf_get_f32s(g, key, true, f, 3, &msg);
        sum += (uint64_t)sq_gguf_get_bools(g, key, true, b, 3, &msg) + u[0] + b[0] + s.len;
        const uint8_t *at = kv->data;
        for (uint64_t j = 0; kv->elem_type == SQ_GGUF_STRING && j < kv->count; j++) {
            s = sq_gguf_next_str(&at);
            for (size_t c = 0; c < s.len; c++)
                sum += (uint8_t)s.s[c];
        }
        for (uint64_t j = 0; j < kv->count * sq_gguf_type_bytes(kv->elem_type); j++)
            sum += kv->data[j];
    }
    for (size_t i = 0; i < sq_gguf_n_tensors(g); i++) {
        const sq_gguf_tensor *t = sq_gguf_tensor_at(g, i);
        sq_panels w = {0};
        if (sq_tensor_panels(g, t, &w, &msg) == SQUINT_OK) sum += w.data[sq_panels_bytes(&w) - 1];
        for (size_t j = 0; j < t->bytes; j++)
            sum += t->data[j];
    }
    return sum;
}

/* ---- Broken files ------------------------------------------------------------------------- */

static void bad_magic(blob *b)
{
    put_header(b, 0, 0);
    b->data[3] = 'f';
}

static void set_version(blob *b, uint32_t version)
{
    put_header(b, 0, 0);
    memcpy(b->data + 4, &version, 4);
}

static void version_0(blob *b) { set_version(b, 0); }
static void version_1(blob *b) { set_version(b, 1); }
static void version_4(blob *b) { set_version(b, 4); }
static void big_endian(blob *b) { set_version(b, 0x03000000); }
static void key_count_huge(blob *b) { put_header(b, 0, UINT64_MAX); }
static void tensor_count_huge(blob *b) { put_header(b, UINT64_MAX / 2, 0); }

static void key_count_too_large(blob *b)
{
    put_header(b, 0, 3);
    put_key_u32(b, "only.one", 1);
}

static void tensor_count_too_large(blob *b)
{
    put_header(b, 2, 0);
    put_tensor(b, "only.one", 1, four, SQ_TENSOR_F32, 0);
    put_padding(b, 32);
    put_zeros(b, 64);
}

static void key_name_huge(blob *b)
{
    put_header(b, 0, 1);
    put_u64(b, UINT64_MAX - 7);
    put_zeros(b, 32);
}

static void key_name_too_long(blob *b)
{
    put_header(b, 0, 1);
    put_u64(b, 65536);
    for (int i = 0; i < 65536; i++)
        put_u8(b, 'k');
    put_u32(b, SQ_GGUF_U8);
    put_u8(b, 0);
}

static void key_name_empty(blob *b)
{
    put_header(b, 0, 1);
    put_key_u32(b, "", 1);
    put_zeros(b, 8);
}

static void key_name_with_zero(blob *b)
{
    put_header(b, 0, 1);
    put_u64(b, 3);
    put(b, "a\0b", 3);
    put_u32(b, SQ_GGUF_U32);
    put_u32(b, 1);
}

static void key_twice(blob *b)
{
    put_header(b, 0, 3);
    put_key_u32(b, "some.key", 1);
    put_key_u32(b, "other.key", 1);
    put_key_u32(b, "some.key", 1);
}

static void key_twice_in_colour(blob *b)
{
    put_header(b, 0, 2);
    put_key_u32(b, "\x1B[31m\nkey", 1);
    put_key_u32(b, "\x1B[31m\nkey", 1);
}

static void value_type_unknown(blob *b)
{
    put_header(b, 0, 1);
    put_key(b, "some.key", SQ_GGUF_TYPE_COUNT);
    put_zeros(b, 16);
}

static void bool_of_two(blob *b)
{
    put_header(b, 0, 1);
    put_key(b, "some.key", SQ_GGUF_BOOL);
    put_u8(b, 2);
}

static void bool_of_two_in_array(blob *b)
{
    put_header(b, 0, 1);
    put_array(b, "some.key", SQ_GGUF_BOOL, 3);
    put(b, "\1\0\xFF", 3);
}

static void string_too_long(blob *b)
{
    put_header(b, 0, 1);
    put_key(b, "some.key", SQ_GGUF_STRING);
    put_u64(b, 5);
    put(b, "four", 4);
}

static void string_huge(blob *b)
{
    put_header(b, 0, 1);
    put_key(b, "some.key", SQ_GGUF_STRING);
    put_u64(b, UINT64_MAX);
    put_zeros(b, 8);
}

static void array_of_arrays(blob *b)
{
    put_header(b, 0, 1);
    put_array(b, "some.key", SQ_GGUF_ARRAY, 1);
    put_u32(b, SQ_GGUF_U8);
    put_u64(b, 0);
}

static void array_type_unknown(blob *b)
{
    put_header(b, 0, 1);
    put_array(b, "some.key", 77, 1);
    put_zeros(b, 16);
}

static void array_too_long(blob *b)
{
    put_header(b, 0, 1);
    put_array(b, "some.key", SQ_GGUF_U32, 4);
    put_zeros(b, 15);
}

/* 2^61 + 1 elements of 8 bytes are 8 bytes, modulo 2^64 */
static void array_size_wraps(blob *b)
{
    put_header(b, 0, 1);
    put_array(b, "some.key", SQ_GGUF_F64, (UINT64_C(1) << 61) + 1);
    put_zeros(b, 64);
}

static void strings_too_many(blob *b)
{
    put_header(b, 0, 1);
    put_array(b, "some.key", SQ_GGUF_STRING, UINT64_MAX);
    put_str(b, "one");
}

static void put_alignment_file(blob *b, uint32_t alignment)
{
    put_header(b, 0, 1);
    put_key_u32(b, "general.alignment", alignment);
}

static void alignment_0(blob *b) { put_alignment_file(b, 0); }
static void alignment_4(blob *b) { put_alignment_file(b, 4); }
static void alignment_48(blob *b) { put_alignment_file(b, 48); }
static void alignment_huge(blob *b) { put_alignment_file(b, 1u << 31); }

static void alignment_no_number(blob *b)
{
    put_header(b, 0, 1);
    put_key(b, "general.alignment", SQ_GGUF_STRING);
    put_str(b, "64");
}

/* One tensor of this shape at this offset, and 1024 bytes of data. */
static void put_one_tensor(blob *b, const char *name, uint32_t n_dims, const uint64_t *ne, uint32_t type,
                           uint64_t offset)
{
    put_header(b, 1, 0);
    put_tensor(b, name, n_dims, ne, type, offset);
    put_padding(b, 32);
    put_zeros(b, 1024);
}

static void tensor_name_empty(blob *b) { put_one_tensor(b, "", 1, four, SQ_TENSOR_F32, 0); }

static void tensor_name_too_long(blob *b)
{
    char name[130];
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    put_one_tensor(b, name, 1, four, SQ_TENSOR_F32, 0);
}

static void tensor_name_huge(blob *b)
{
    put_header(b, 1, 0);
    put_u64(b, UINT64_MAX / 2);
    put_zeros(b, 64);
}

static void tensor_without_dimensions(blob *b) { put_one_tensor(b, "the.tensor", 0, four, SQ_TENSOR_F32, 0); }
static void tensor_of_5_dimensions(blob *b)
{
    put_one_tensor(b, "the.tensor", 5, (const uint64_t[]){1, 1, 1, 1, 1}, SQ_TENSOR_F32, 0);
}
static void dimension_0(blob *b) { put_one_tensor(b, "the.tensor", 2, (const uint64_t[]){4, 0}, SQ_TENSOR_F32, 0); }
static void dimension_huge(blob *b)
{
    put_one_tensor(b, "the.tensor", 1, (const uint64_t[]){UINT64_C(1) << 32}, SQ_TENSOR_F32, 0);
}
/* 2^31 squared, times 4 bytes: 2^64 */
static void product_wraps(blob *b)
{
    put_one_tensor(b, "the.tensor", 2, (const uint64_t[]){1u << 31, 1u << 31}, SQ_TENSOR_F32, 0);
}
static void product_too_large(blob *b)
{
    put_one_tensor(b, "the.tensor", 4, (const uint64_t[]){1u << 31, 1u << 31, 1u << 31, 1u << 31}, SQ_TENSOR_I8, 0);
}
static void rows_of_half_blocks(blob *b)
{
    put_one_tensor(b, "the.tensor", 2, (const uint64_t[]){48, 2}, SQ_TENSOR_Q8_0, 0);
}
static void rows_of_half_superblocks(blob *b)
{
    put_one_tensor(b, "the.tensor", 2, (const uint64_t[]){128, 2}, SQ_TENSOR_Q4_K, 0);
}
static void superblocks_too_short(blob *b)
{
    put_one_tensor(b, "the.tensor", 2, (const uint64_t[]){1280, 1}, SQ_TENSOR_Q6_K, 0); /* 1050 of 1024 bytes */
}
static void type_iq2(blob *b) { put_one_tensor(b, "the.tensor", 1, four, 16, 0); }
static void type_huge(blob *b) { put_one_tensor(b, "the.tensor", 1, four, UINT32_MAX, 0); }
static void offset_outside(blob *b) { put_one_tensor(b, "the.tensor", 1, four, SQ_TENSOR_F32, 1024); }
static void offset_huge(blob *b) { put_one_tensor(b, "the.tensor", 1, four, SQ_TENSOR_F32, UINT64_MAX - 31); }
static void offset_unaligned(blob *b) { put_one_tensor(b, "the.tensor", 1, four, SQ_TENSOR_F32, 16); }
static void data_too_short(blob *b) { put_one_tensor(b, "the.tensor", 1, (const uint64_t[]){257}, SQ_TENSOR_F32, 0); }

static void no_data_section(blob *b)
{
    put_header(b, 1, 0);
    put_tensor(b, "the.tensor", 1, four, SQ_TENSOR_F32, 0);
}

static void tensor_twice(blob *b)
{
    put_header(b, 2, 0);
    put_tensor(b, "the.tensor", 1, four, SQ_TENSOR_F32, 0);
    put_tensor(b, "the.tensor", 1, four, SQ_TENSOR_F32, 32);
    put_padding(b, 32);
    put_zeros(b, 64);
}

static void put_two_tensors(blob *b, uint64_t n, uint64_t first, uint64_t second)
{
    put_header(b, 2, 0);
    put_tensor(b, "a.tensor", 1, &n, SQ_TENSOR_F32, first);
    put_tensor(b, "the.tensor", 1, &n, SQ_TENSOR_F32, second);
    put_padding(b, 32);
    put_zeros(b, 256);
}

static void tensors_in_one_place(blob *b) { put_two_tensors(b, 4, 0, 0); }
static void tensors_overlap(blob *b) { put_two_tensors(b, 9, 0, 32); }
static void tensors_out_of_order(blob *b) { put_two_tensors(b, 4, 32, 0); }

static void broken_files_are_refused(void **state)
{
    (void)state;
    enum { FORMAT = SQUINT_ERR_FORMAT, UNSUPPORTED = SQUINT_ERR_UNSUPPORTED };
#define CASE(f, err, said)                                                                                             \
    {                                                                                                                  \
#f, f, err, said                                                                                               \
    }
    static const struct {
        const char *name;
        void (*build)(blob *b);
        int err;
        const char *said;
    } cases[] = {
        CASE(bad_magic, FORMAT, "byte 0: not a GGUF file"),
        CASE(version_0, UNSUPPORTED, "version 0"),
        CASE(version_1, UNSUPPORTED, "version 1; squint reads version 3"),
        CASE(version_4, UNSUPPORTED, "version 4"),
        CASE(big_endian, UNSUPPORTED, "big-endian"),
        CASE(key_count_huge, FORMAT, "18446744073709551615 keys"),
        CASE(tensor_count_huge, FORMAT, "tensors"),
        CASE(key_count_too_large, FORMAT, "3 keys"),
        CASE(tensor_count_too_large, FORMAT, "tensor 1"),
        CASE(key_name_huge, FORMAT, "name of key 0"),
        CASE(key_name_too_long, FORMAT, "name of key 0"),
        CASE(key_name_empty, FORMAT, "name of key 0"),
        CASE(key_name_with_zero, FORMAT, "name of key 0"),
        CASE(key_twice, FORMAT, "byte 73: key \"some.key\" is there twice"),
        CASE(key_twice_in_colour, FORMAT, "key \"?[31m?key\" is there twice"),
        CASE(value_type_unknown, FORMAT, "key \"some.key\": unknown value type 13"),
        CASE(bool_of_two, FORMAT, "key \"some.key\": a bool"),
        CASE(bool_of_two_in_array, FORMAT, "key \"some.key\": a bool"),
        CASE(string_too_long, FORMAT, "key \"some.key\""),
        CASE(string_huge, FORMAT, "key \"some.key\""),
        CASE(array_of_arrays, UNSUPPORTED, "key \"some.key\": an array of arrays"),
        CASE(array_type_unknown, FORMAT, "key \"some.key\": unknown element type 77"),
        CASE(array_too_long, FORMAT, "key \"some.key\": its value (u32, 4 long)"),
        CASE(array_size_wraps, FORMAT, "key \"some.key\""),
        CASE(strings_too_many, FORMAT, "key \"some.key\""),
        CASE(alignment_0, FORMAT, "general.alignment"),
        CASE(alignment_4, FORMAT, "general.alignment"),
        CASE(alignment_48, FORMAT, "general.alignment"),
        CASE(alignment_huge, FORMAT, "general.alignment"),
        CASE(alignment_no_number, FORMAT, "general.alignment"),
        CASE(tensor_name_empty, FORMAT, "name of tensor 0"),
        CASE(tensor_name_too_long, FORMAT, "name of tensor 0"),
        CASE(tensor_name_huge, FORMAT, "name of tensor 0"),
        CASE(tensor_without_dimensions, FORMAT, "\"the.tensor\": 0 dimensions"),
        CASE(tensor_of_5_dimensions, FORMAT, "\"the.tensor\": 5 dimensions"),
        CASE(dimension_0, FORMAT, "\"the.tensor\": dimension 1 is 0"),
        CASE(dimension_huge, FORMAT, "\"the.tensor\": dimension 0"),
        CASE(product_wraps, FORMAT, "\"the.tensor\""),
        CASE(product_too_large, FORMAT, "\"the.tensor\""),
        CASE(rows_of_half_blocks, FORMAT, "\"the.tensor\": no Q8_0 tensor"),
        CASE(rows_of_half_superblocks, FORMAT, "\"the.tensor\": no Q4_K tensor"),
        CASE(superblocks_too_short, FORMAT, "\"the.tensor\": its 1050 bytes"),
        CASE(type_iq2, UNSUPPORTED, "\"the.tensor\": type 16 is unknown here; take a file of F16"),
        CASE(type_huge, UNSUPPORTED, "\"the.tensor\": type 4294967295"),
        CASE(offset_outside, FORMAT, "\"the.tensor\""),
        CASE(offset_huge, FORMAT, "\"the.tensor\""),
        CASE(offset_unaligned, FORMAT, "\"the.tensor\": offset 16 is not a multiple of 32"),
        CASE(data_too_short, FORMAT, "\"the.tensor\": its 1028 bytes"),
        CASE(no_data_section, FORMAT, "ends before its tensor data"),
        CASE(tensor_twice, FORMAT, "tensor \"the.tensor\" is there twice"),
        CASE(tensors_in_one_place, FORMAT, "\"the.tensor\": its data begins inside"),
        CASE(tensors_overlap, FORMAT, "\"the.tensor\": its data begins inside"),
        CASE(tensors_out_of_order, FORMAT, "\"the.tensor\": its data begins inside"),
    };
    for (size_t i = 0; i < SQ_COUNT(cases); i++) {
        blob b = {0};
        sq_gguf *g;
        void *copy;
        squint_msg msg = {""};
        cases[i].build(&b);
        const squint_err err = open_guarded(&g, &b, &copy, &msg);
        if ((int)err != cases[i].err || !strstr(msg.text, cases[i].said) || strncmp(msg.text, "test.gguf: ", 11))
            fail_msg("%s: %d, \"%s\"", cases[i].name, (int)err, msg.text);
        assert_null(g);
        guarded_free(copy);
        blob_free(&b);
    }
}

static void cut_files_are_refused(void **state)
{
    (void)state;
    blob whole = {0};
    put_good_file(&whole);
    for (size_t n = 0; n < whole.n; n++) {
        const blob cut = {whole.data, n, n};
        sq_gguf *g;
        void *copy;
        squint_msg msg;
        assert_int_equal(open_guarded(&g, &cut, &copy, &msg), SQUINT_ERR_FORMAT);
        guarded_free(copy);
    }
    blob_free(&whole);
}

static void flipped_bits_do_no_harm(void **state)
{
    (void)state;
    blob good = {0};
    put_good_file(&good);
    uint64_t seed = 11, sum = 0;
    size_t opened = 0;
    for (int round = 0; round < 1000; round++) {
        blob b = {0};
        sq_gguf *g;
        void *copy;
        squint_msg msg;
        put(&b, good.data, good.n);
        for (uint64_t flips = 1 + random_u64(&seed) % 3; flips; flips--) {
            const uint64_t bit = random_u64(&seed) % (8 * b.n);
            b.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        }
        if (open_guarded(&g, &b, &copy, &msg) == SQUINT_OK) {
            sum += walk(g);
            opened++;
            sq_gguf_close(&g);
        }
        guarded_free(copy);
        blob_free(&b);
    }
    blob_free(&good);
    assert_true(sum > 0);
    assert_in_range(opened, 100, 999); /* flips in data are not seen, flips in sizes are */
}

/* ---- Right files -------------------------------------------------------------------------- */

typedef struct fixture {
    blob b;
    sq_gguf *g;
    void *copy;
} fixture;

static int open_good(void **state)
{
    static fixture f;
    squint_msg msg = {""};
    f = (fixture){0};
    *state = &f;
    put_good_file(&f.b);
    if (open_guarded(&f.g, &f.b, &f.copy, &msg) == SQUINT_OK) return 0;
    fprintf(stderr, "%s\n", msg.text);
    return 1;
}

static int close_good(void **state)
{
    fixture *f = *state;
    sq_gguf_close(&f->g);
    guarded_free(f->copy);
    blob_free(&f->b);
    return 0;
}

static void everything_is_found(void **state)
{
    const fixture *f = *state;
    assert_string_equal(sq_gguf_path(f->g), "test.gguf");
    assert_int_equal(sq_gguf_size(f->g), f->b.n);
    assert_int_equal(sq_gguf_n_keys(f->g), GOOD_KEYS);
    assert_int_equal(sq_gguf_n_tensors(f->g), GOOD_TENSORS);
    for (size_t i = 0; i < GOOD_KEYS; i++) {
        const sq_gguf_kv *kv = sq_gguf_key(f->g, i);
        char key[32];
        snprintf(key, sizeof key, "%.*s", (int)kv->key.len, kv->key.s);
        assert_ptr_equal(sq_gguf_find_key(f->g, key), kv);
        key[strlen(key) - 1] = '~';
        assert_null(sq_gguf_find_key(f->g, key));
    }
    assert_null(sq_gguf_find_key(f->g, ""));
    const sq_gguf_tensor *t = sq_gguf_find(f->g, "q8_0");
    assert_ptr_equal(t, sq_gguf_tensor_at(f->g, 3));
    assert_int_equal(t->n_dims, 3);
    assert_int_equal(t->ne[0], 32);
    assert_int_equal(t->ne[3], 1);
    assert_int_equal(t->bytes, 4 * 34);
    assert_int_equal(t->type, SQ_TENSOR_Q8_0);
    assert_ptr_equal(t->data, (uint8_t *)f->copy + t->file_pos);
    assert_int_equal(t->file_pos % 64, 0);
    assert_null(sq_gguf_find(f->g, "q8_1"));
    assert_null(sq_gguf_find(f->g, "q8_"));
}

static void arrays_have_their_elements(void **state)
{
    const fixture *f = *state;
    const sq_gguf_kv *strings = sq_gguf_find_key(f->g, "array.8");
    assert_int_equal(strings->count, 3);
    const uint8_t *at = strings->data;
    assert_true(sq_str_eq(sq_gguf_next_str(&at), ""));
    assert_true(sq_str_eq(sq_gguf_next_str(&at), "piece"));
    assert_true(sq_str_eq(sq_gguf_next_str(&at), "piece"));
    uint32_t u[3];
    bool bools[3];
    squint_msg msg;
    assert_int_equal(sq_gguf_get_u32s(f->g, "array.4", true, u, 3, &msg), SQUINT_OK);
    assert_int_equal(u[0] * 100 + u[1] * 10 + u[2], 10);
    assert_int_equal(sq_gguf_get_bools(f->g, "array.7", true, bools, 3, &msg), SQUINT_OK);
    assert_true(!bools[0] && bools[1] && !bools[2]);
    assert_int_equal(sq_gguf_get_u32s(f->g, "array.4", true, u, 2, &msg), SQUINT_ERR_FORMAT);
    assert_non_null(strstr(msg.text, "\"array.4\" is an array of 3 where an array of 2"));
    assert_int_equal(sq_gguf_get_u32s(f->g, "scalar.4", true, u, 1, &msg), SQUINT_ERR_FORMAT);
    assert_int_equal(sq_gguf_get_u32s(f->g, "array.8", true, u, 3, &msg), SQUINT_ERR_FORMAT);
    assert_int_equal(sq_gguf_get_f32s(f->g, "missing", true, NULL, 3, &msg), SQUINT_ERR_FORMAT);
    assert_int_equal(sq_gguf_get_f32s(f->g, "missing", false, NULL, 3, &msg), SQUINT_OK);
}

static void wrong_types_are_told(void **state)
{
    const fixture *f = *state;
    squint_msg msg;
    uint32_t u = 77;
    float x = 7;
    bool b = true;
    sq_str s = {"x", 1};
    assert_int_equal(sq_gguf_get_u32(f->g, "missing", false, &u, &msg), SQUINT_OK);
    assert_int_equal(sq_gguf_get_f32(f->g, "missing", false, &x, &msg), SQUINT_OK);
    assert_int_equal(sq_gguf_get_bool(f->g, "missing", false, &b, &msg), SQUINT_OK);
    assert_int_equal(sq_gguf_get_str(f->g, "missing", false, &s, &msg), SQUINT_OK);
    assert_true(u == 77 && x == 7 && b && s.len == 1);
    assert_int_equal(sq_gguf_get_u32(f->g, "missing", true, &u, &msg), SQUINT_ERR_FORMAT);
    assert_string_equal(msg.text, "test.gguf: key \"missing\" is missing");
    assert_int_equal(sq_gguf_get_u32(f->g, "scalar.8", true, &u, &msg), SQUINT_ERR_FORMAT);
    assert_non_null(strstr(msg.text, "key \"scalar.8\" holds string where an integer"));
    assert_int_equal(sq_gguf_get_f32(f->g, "array.6", true, &x, &msg), SQUINT_ERR_FORMAT);
    assert_non_null(strstr(msg.text, "key \"array.6\" holds an array of f32 where"));
    assert_int_equal(sq_gguf_get_str(f->g, "scalar.4", true, &s, &msg), SQUINT_ERR_FORMAT);
    assert_int_equal(sq_gguf_get_bool(f->g, "scalar.4", true, &b, &msg), SQUINT_ERR_FORMAT); /* 0x01010101 */
    assert_int_equal(sq_gguf_get_str(f->g, "scalar.8", true, &s, NULL), SQUINT_OK);
    assert_true(sq_str_eq(s, "text \xC3\xA9"));
}

/* One key "v" of this type with the value's low bytes. */
static squint_err get_one(uint32_t type, uint64_t value, uint32_t *u, float *f, bool *b, squint_err *f_err,
                          squint_err *b_err)
{
    blob bytes = {0};
    sq_gguf *g;
    void *copy;
    squint_msg msg;
    put_header(&bytes, 0, 1);
    put_key(&bytes, "v", type);
    put(&bytes, &value, sq_gguf_type_bytes((sq_gguf_type)type));
    assert_int_equal(open_guarded(&g, &bytes, &copy, &msg), SQUINT_OK);
    const squint_err err = sq_gguf_get_u32(g, "v", true, u, &msg);
    *f_err = sq_gguf_get_f32(g, "v", true, f, &msg);
    *b_err = sq_gguf_get_bool(g, "v", true, b, &msg);
    sq_gguf_close(&g);
    guarded_free(copy);
    blob_free(&bytes);
    return err;
}

static uint64_t f32_bits(float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

static uint64_t f64_bits(double v)
{
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

static void numbers_convert_where_they_fit(void **state)
{
    (void)state;
    const struct {
        uint32_t type;
        uint64_t bits;
        double number; /* as f32; NAN: refused */
        bool is_u32, is_bool;
    } cases[] = {
        {SQ_GGUF_U8, 255, 255, true, false},
        {SQ_GGUF_I8, 127, 127, true, false},
        {SQ_GGUF_I8, 0x80, -128, false, false},
        {SQ_GGUF_U16, 65535, 65535, true, false},
        {SQ_GGUF_I16, 0xFFFF, -1, false, false},
        {SQ_GGUF_U32, 0xFFFFFFFF, 4294967295.0, true, false},
        {SQ_GGUF_I32, 0x80000000, -2147483648.0, false, false},
        {SQ_GGUF_I32, 1, 1, true, true},
        {SQ_GGUF_U64, 0xFFFFFFFF, 4294967295.0, true, false},
        {SQ_GGUF_U64, UINT64_C(1) << 32, 4294967296.0, false, false},
        {SQ_GGUF_U64, UINT64_MAX, 18446744073709551615.0, false, false},
        {SQ_GGUF_I64, UINT64_MAX, -1, false, false},
        {SQ_GGUF_I64, UINT64_C(1) << 63, -9223372036854775808.0, false, false},
        {SQ_GGUF_I64, 0, 0, true, true},
        {SQ_GGUF_BOOL, 1, NAN, false, true},
        {SQ_GGUF_F32, f32_bits(1), 1, false, false},
        {SQ_GGUF_F32, f32_bits(-2.5e-30f), -2.5e-30, false, false},
        {SQ_GGUF_F32, f32_bits(INFINITY), NAN, false, false},
        {SQ_GGUF_F32, f32_bits(NAN), NAN, false, false},
        {SQ_GGUF_F64, f64_bits(1e-5), 1e-5, false, false},
        {SQ_GGUF_F64, f64_bits(1e300), NAN, false, false},
        {SQ_GGUF_F64, f64_bits(-NAN), NAN, false, false},
    };
    for (size_t i = 0; i < SQ_COUNT(cases); i++) {
        uint32_t u = 0;
        float f = 0;
        bool b = false;
        squint_err f_err, b_err;
        const squint_err err = get_one(cases[i].type, cases[i].bits, &u, &f, &b, &f_err, &b_err);
        assert_int_equal(err, cases[i].is_u32 ? SQUINT_OK : SQUINT_ERR_FORMAT);
        if (!err) assert_true(u == (uint32_t)cases[i].bits);
        assert_int_equal(b_err, cases[i].is_bool ? SQUINT_OK : SQUINT_ERR_FORMAT);
        if (!b_err) assert_int_equal(b, cases[i].bits);
        assert_int_equal(f_err, isnan(cases[i].number) ? SQUINT_ERR_FORMAT : SQUINT_OK);
        if (!f_err) assert_true(f == (float)cases[i].number);
    }
}

static void alignment_may_come_last(void **state)
{
    (void)state;
    blob b = {0};
    sq_gguf *g;
    void *copy;
    squint_msg msg;
    put_header(&b, 1, 2);
    put_key_u32(&b, "z", 1);
    put_key_u32(&b, "general.alignment", 256);
    put_tensor(&b, "t", 1, four, SQ_TENSOR_F32, 256);
    put_padding(&b, 256);
    put_zeros(&b, 256 + 16);
    assert_int_equal(open_guarded(&g, &b, &copy, &msg), SQUINT_OK);
    assert_int_equal(sq_gguf_find(g, "t")->file_pos, b.n - 16);
    sq_gguf_close(&g);
    guarded_free(copy);
    blob_free(&b);
}

static void version_2_is_read(void **state)
{
    (void)state;
    blob b = {0};
    sq_gguf *g;
    void *copy;
    set_version(&b, 2);
    assert_int_equal(open_guarded(&g, &b, &copy, NULL), SQUINT_OK);
    assert_int_equal(sq_gguf_n_keys(g) + sq_gguf_n_tensors(g), 0);
    sq_gguf_close(&g);
    guarded_free(copy);
    blob_free(&b);
}

static void what_is_no_file_is_refused(void **state)
{
    (void)state;
    sq_gguf *g;
    squint_msg msg;
    assert_int_equal(sq_gguf_open(&g, "/nonexistent/model.gguf", NULL, &msg), SQUINT_ERR_IO);
    assert_string_equal(msg.text, "/nonexistent/model.gguf: No such file or directory");
    assert_int_equal(sq_gguf_open(&g, "/", NULL, &msg), SQUINT_ERR_IO);
    assert_string_equal(msg.text, "/: not a regular file");
    const char *path = temp_path(".gguf");
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(sq_gguf_open(&g, path, NULL, &msg), SQUINT_ERR_IO); /* and does not wait */
    unlink(path);
    FILE *f = fopen(path, "wb");
    assert_int_equal(fclose(f), 0);
    assert_int_equal(sq_gguf_open(&g, path, NULL, &msg), SQUINT_ERR_FORMAT);
    assert_non_null(strstr(msg.text, "is empty"));
    unlink(path);
    assert_int_equal(sq_gguf_open_memory(&g, "none", NULL, 0, NULL, &msg), SQUINT_ERR_FORMAT);
    assert_null(g);
    sq_gguf_close(&g);
}

static void every_failed_allocation_is_told(void **state)
{
    const fixture *f = *state;
    squint_err err = SQUINT_ERR_NOMEM;
    size_t attempts = 0;
    while (err == SQUINT_ERR_NOMEM) {
        counting c = {.fail_at = ++attempts};
        const squint_allocator a = counting_allocator(&c);
        sq_gguf *g;
        squint_msg msg = {""};
        err = sq_gguf_open_memory(&g, "test.gguf", f->copy, f->b.n, &a, &msg);
        assert_int_equal(err, g ? SQUINT_OK : SQUINT_ERR_NOMEM);
        if (err) assert_non_null(strstr(msg.text, "test.gguf: out of memory"));
        sq_gguf_close(&g);
        assert_int_equal(c.live, 0);
    }
    assert_int_equal(err, SQUINT_OK);
    assert_true(attempts > 8);
}

/* ---- The index ---------------------------------------------------------------------------- */

static void index_finds_every_name(void **state)
{
    (void)state;
    enum { N = 3000 };
    static char names[N][32];
    static sq_str items[N];
    const squint_allocator a = sq_allocator_or_default(NULL);
    for (size_t n = 0; n <= N; n = n < 20 ? n + 1 : n * 2 + 1) {
        for (size_t i = 0; i < n; i++) {
            snprintf(names[i], sizeof names[i], "%.*s%zu", (int)(i % 13), "blk.attn_norm", (i * 7919) % N);
            items[i] = str(names[i]);
        }
        sq_index index;
        assert_true(sq_index_build(&index, items, sizeof *items, n, &a));
        for (size_t i = 0; i < n; i++)
            assert_int_equal(sq_index_find(&index, items[i]), i);
        assert_int_equal(sq_index_duplicate(&index), SIZE_MAX);
        assert_int_equal(sq_index_find(&index, str("blk.")), SIZE_MAX);
        assert_int_equal(sq_index_find(&index, str("zzz")), SIZE_MAX);
        sq_index_free(&index, &a);
    }
}

static void index_tells_names_apart(void **state)
{
    (void)state;
    const squint_allocator a = sq_allocator_or_default(NULL);
    const sq_str items[] = {{"a\0", 2},       {"a", 1},    {"", 0},        {"abcdefgh", 8}, {"abcdefgh\0", 9},
                            {"abcdefghi", 9}, {"\xFF", 1}, {"abcdefg", 7}, {"a", 1},        {"abcdefghi", 9}};
    sq_index index;
    assert_true(sq_index_build(&index, items, sizeof *items, SQ_COUNT(items), &a));
    for (size_t i = 0; i < 8; i++)
        assert_int_equal(sq_index_find(&index, items[i]), i);
    assert_int_equal(sq_index_find(&index, items[8]), 1);
    assert_int_equal(sq_index_duplicate(&index), 8);
    sq_index_free(&index, &a);
}

/* ---- Panels ------------------------------------------------------------------------------- */

static void panels_point_into_the_file(void **state)
{
    const fixture *f = *state;
    const sq_gguf_tensor *t = sq_gguf_find(f->g, "panels");
    sq_panels w;
    squint_msg msg;
    assert_true(sq_tensor_is_panels(t));
    assert_false(sq_tensor_is_panels(sq_gguf_find(f->g, "i8")));
    assert_int_equal(sq_tensor_panels(f->g, t, &w, &msg), SQUINT_OK);
    assert_ptr_equal(w.data, t->data + 64);
    assert_true(w.n == 20 && w.k == 40 && w.group == 32 && w.type == SQ_PANEL_I4);
}

/* A panel tensor of this many bytes; with an alignment of 32 it lies between the lines of 64. */
static void put_panel_file(blob *b, const sq_panel_header *h, uint64_t bytes, uint32_t alignment)
{
    enum { INFO = 8 + sizeof "the.panels" - 1 + 4 + 8 + 4 + 8 };
    put_header(b, 1, 1);
    put_key_u32(b, "general.alignment", alignment);
    const size_t start = (b->n + INFO + alignment - 1) / alignment * alignment;
    const size_t offset = alignment == 32 && start % 64 == 0 ? 32 : 0;
    put_tensor(b, "the.panels", 1, &bytes, SQ_TENSOR_I8, offset);
    put_zeros(b, start + offset - b->n);
    put_panel_header(b, h);
    put_zeros(b, bytes - sizeof *h);
}

static void bad_panels_are_refused(void **state)
{
    (void)state;
    const sq_panel_header good = good_panel();
    const sq_panels panels = panels_of(&good);
    const struct {
        sq_panel_header h;
        int64_t more; /* bytes of data */
        uint32_t alignment;
        squint_err err;
        const char *said;
    } cases[] = {
        {good, 0, 64, SQUINT_OK, ""},
        {{"SQPM", 1, 2, 20, 40, 32, {0}}, 0, 64, SQUINT_ERR_FORMAT, "does not hold panels"},
        {{"SQPN", 2, 2, 20, 40, 32, {0}}, 0, 64, SQUINT_ERR_UNSUPPORTED, "another version"},
        {{"SQPN", 1, 0, 20, 40, 32, {0}}, 0, 64, SQUINT_ERR_FORMAT, "unknown type"},
        {{"SQPN", 1, 3, 20, 40, 32, {0}}, 0, 64, SQUINT_ERR_FORMAT, "unknown type"},
        {{"SQPN", 1, 2, 20, 40, 32, {[9] = 1}}, 0, 64, SQUINT_ERR_FORMAT, "must be zero"},
        {{"SQPN", 1, 1, 20, 40, 32, {0}}, 0, 64, SQUINT_ERR_FORMAT, "20 x 40 in groups of 32"},
        {{"SQPN", 1, 2, 33, 40, 32, {0}}, 0, 64, SQUINT_ERR_FORMAT, "33 x 40"},
        {{"SQPN", 1, 2, 0, 40, 32, {0}}, 0, 64, SQUINT_ERR_FORMAT, "0 x 40"},
        {{"SQPN", 1, 2, 20, 65, 32, {0}}, 0, 64, SQUINT_ERR_FORMAT, "20 x 65"},
        {{"SQPN", 1, 2, 20, 0, 32, {0}}, 0, 64, SQUINT_ERR_FORMAT, "20 x 0"},
        {{"SQPN", 1, 2, 20, 40, 31, {0}}, 0, 64, SQUINT_ERR_FORMAT, "groups of 31"},
        {{"SQPN", 1, 2, UINT32_MAX, UINT32_MAX, 0, {0}}, 0, 64, SQUINT_ERR_FORMAT, "4294967295 x 4294967295"},
        {{"SQPN", 1, 2, 1u << 24, 1u << 16, 0, {0}}, 0, 64, SQUINT_ERR_FORMAT, "16777216 x 65536"},
        {good, -1, 64, SQUINT_ERR_FORMAT, "does not make panels"},
        {good, 64, 64, SQUINT_ERR_FORMAT, "does not make panels"},
        {good, 0, 32, SQUINT_ERR_FORMAT, "\"general.alignment\" 64"},
    };
    for (size_t i = 0; i < SQ_COUNT(cases); i++) {
        blob b = {0};
        sq_gguf *g;
        squint_msg msg = {""};
        const uint64_t bytes = (uint64_t)((int64_t)(sizeof good + sq_panels_bytes(&panels)) + cases[i].more);
        put_panel_file(&b, &cases[i].h, bytes, cases[i].alignment);
        uint8_t *copy = guarded_alloc(b.n, 64);
        memcpy(copy, b.data, b.n);
        assert_int_equal(sq_gguf_open_memory(&g, "test.gguf", copy, b.n, NULL, &msg), SQUINT_OK);
        sq_panels w;
        const squint_err err = sq_tensor_panels(g, sq_gguf_find(g, "the.panels"), &w, &msg);
        if (err != cases[i].err || (err && (!strstr(msg.text, cases[i].said) || !strstr(msg.text, "\"the.panels\""))))
            fail_msg("case %zu: %d, \"%s\"", i, (int)err, msg.text);
        sq_gguf_close(&g);
        guarded_free(copy);
        blob_free(&b);
    }
}

/* ---- Writing ------------------------------------------------------------------------------ */

static blob read_whole(const char *path)
{
    blob b = {0};
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    for (int c; (c = fgetc(f)) != EOF;)
        put_u8(&b, (uint8_t)c);
    fclose(f);
    return b;
}

static void writer_makes_these_bytes(void **state)
{
    (void)state;
    const char *path = temp_path(".gguf");
    const float numbers[] = {1.5f, -2};
    const bool bools[] = {true, false, true};
    const sq_str strings[] = {{"a", 1}, {"", 0}};
    sq_gguf_writer *w;
    squint_msg msg = {""};
    assert_int_equal(sq_gguf_write_begin(&w, path, 64, NULL, &msg), SQUINT_OK);
    sq_gguf_put_u32(w, "u", 7);
    sq_gguf_put_f32(w, "f", 0.25f);
    sq_gguf_put_bool(w, "b", true);
    sq_gguf_put_str(w, "s", str("text"));
    sq_gguf_put_f32s(w, "fs", numbers, 2);
    sq_gguf_put_bools(w, "bs", bools, 3);
    sq_gguf_put_strs(w, "ss", strings, 2);
    sq_gguf_put_tensor(w, str("one"), 2, (const uint64_t[]){5, 1}, SQ_TENSOR_I8);
    sq_gguf_put_tensor(w, str("two"), 1, (const uint64_t[]){2}, SQ_TENSOR_F32);
    sq_gguf_put_data(w, "12345", 5);
    sq_gguf_put_data(w, numbers, 8);
    assert_int_equal(sq_gguf_write_end(&w, &msg), SQUINT_OK);
    assert_null(w);

    blob expected = {0};
    put_header(&expected, 2, 8);
    put_key_u32(&expected, "general.alignment", 64);
    put_key_u32(&expected, "u", 7);
    put_key(&expected, "f", SQ_GGUF_F32);
    put_f32(&expected, 0.25f);
    put_key(&expected, "b", SQ_GGUF_BOOL);
    put_u8(&expected, 1);
    put_key(&expected, "s", SQ_GGUF_STRING);
    put_str(&expected, "text");
    put_array(&expected, "fs", SQ_GGUF_F32, 2);
    put(&expected, numbers, 8);
    put_array(&expected, "bs", SQ_GGUF_BOOL, 3);
    put(&expected, "\1\0\1", 3);
    put_array(&expected, "ss", SQ_GGUF_STRING, 2);
    put_str(&expected, "a");
    put_str(&expected, "");
    put_tensor(&expected, "one", 2, (const uint64_t[]){5, 1}, SQ_TENSOR_I8, 0);
    put_tensor(&expected, "two", 1, (const uint64_t[]){2}, SQ_TENSOR_F32, 64);
    put_padding(&expected, 64);
    put(&expected, "12345", 5);
    put_padding(&expected, 64);
    put(&expected, numbers, 8);
    put_padding(&expected, 64);

    blob written = read_whole(path);
    assert_int_equal(written.n, expected.n);
    assert_memory_equal(written.data, expected.data, expected.n);
    struct stat st;
    const mode_t mask = umask(0);
    umask(mask);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0666 & ~mask);
    blob_free(&written);
    blob_free(&expected);
    unlink(path);
}

static void copy_all(sq_gguf_writer *w, const sq_gguf *g)
{
    for (size_t i = 0; i < sq_gguf_n_keys(g); i++)
        sq_gguf_put_kv(w, sq_gguf_key(g, i));
    for (size_t i = 0; i < sq_gguf_n_tensors(g); i++) {
        const sq_gguf_tensor *t = sq_gguf_tensor_at(g, i);
        sq_gguf_put_tensor(w, t->name, t->n_dims, t->ne, t->type);
    }
    for (size_t i = 0; i < sq_gguf_n_tensors(g); i++)
        sq_gguf_put_data(w, sq_gguf_tensor_at(g, i)->data, sq_gguf_tensor_at(g, i)->bytes);
}

static void all_types_survive_a_copy(void **state)
{
    const fixture *f = *state;
    const char *path = temp_path(".gguf");
    sq_gguf_writer *w;
    sq_gguf *g;
    squint_msg msg = {""};
    assert_int_equal(sq_gguf_write_begin(&w, path, 64, NULL, &msg), SQUINT_OK);
    copy_all(w, f->g);
    assert_int_equal(sq_gguf_write_end(&w, &msg), SQUINT_OK);
    assert_int_equal(sq_gguf_open(&g, path, NULL, &msg), SQUINT_OK);
    assert_int_equal(sq_gguf_n_keys(g), GOOD_KEYS);
    assert_int_equal(sq_gguf_n_tensors(g), GOOD_TENSORS);
    for (size_t i = 0, at = 1; i < GOOD_KEYS; i++) {
        const sq_gguf_kv *a = sq_gguf_key(f->g, i), *b = sq_gguf_key(g, at);
        if (sq_str_eq(a->key, "general.alignment")) continue; /* the writer's own is the first */
        assert_int_equal(a->key.len, b->key.len);
        assert_memory_equal(a->key.s, b->key.s, a->key.len);
        assert_true(a->type == b->type && a->elem_type == b->elem_type && a->count == b->count);
        assert_memory_equal(a->data, b->data, sq_gguf_type_bytes(a->elem_type) * a->count);
        at++;
    }
    for (size_t i = 0; i < GOOD_TENSORS; i++) {
        const sq_gguf_tensor *a = sq_gguf_tensor_at(f->g, i), *b = sq_gguf_tensor_at(g, i);
        assert_true(a->type == b->type && a->n_dims == b->n_dims && a->bytes == b->bytes);
        assert_memory_equal(a->ne, b->ne, sizeof a->ne);
        assert_memory_equal(a->data, b->data, a->bytes);
        assert_int_equal((uintptr_t)b->data % 64, 0);
    }
    sq_gguf_close(&g);
    unlink(path);
}

static size_t entries(const char *directory)
{
    size_t n = 0;
    DIR *d = opendir(directory);
    assert_non_null(d);
    while (readdir(d))
        n++;
    closedir(d);
    return n - 2;
}

typedef struct sandbox {
    char directory[256], path[300];
} sandbox;

/* A directory with one good file of these bytes in it. */
static sandbox make_sandbox(const char *content)
{
    sandbox s;
    snprintf(s.directory, sizeof s.directory, "%s", temp_path(".d"));
    assert_int_equal(mkdir(s.directory, 0700), 0);
    snprintf(s.path, sizeof s.path, "%s/model.gguf", s.directory);
    FILE *f = fopen(s.path, "wb");
    fputs(content, f);
    fclose(f);
    return s;
}

/* The file is as it was and has no company. */
static void check_untouched(const sandbox *s, const char *content)
{
    blob b = read_whole(s->path);
    assert_int_equal(b.n, strlen(content));
    assert_memory_equal(b.data, content, b.n);
    blob_free(&b);
    assert_int_equal(entries(s->directory), 1);
}

static void remove_sandbox(const sandbox *s)
{
    unlink(s->path);
    assert_int_equal(rmdir(s->directory), 0);
}

static void key_put_twice(sq_gguf_writer *w)
{
    sq_gguf_put_u32(w, "some.key", 1);
    sq_gguf_put_u32(w, "some.key", 2);
}
static void key_after_data(sq_gguf_writer *w)
{
    sq_gguf_put_tensor(w, str("t"), 1, four, SQ_TENSOR_I8);
    sq_gguf_put_data(w, "1234", 4);
    sq_gguf_put_u32(w, "some.key", 2);
}
static void tensor_after_data(sq_gguf_writer *w)
{
    sq_gguf_put_tensor(w, str("t"), 1, four, SQ_TENSOR_I8);
    sq_gguf_put_data(w, "1234", 4);
    sq_gguf_put_tensor(w, str("u"), 1, four, SQ_TENSOR_I8);
}
static void tensor_put_twice(sq_gguf_writer *w)
{
    sq_gguf_put_tensor(w, str("t"), 1, four, SQ_TENSOR_I8);
    sq_gguf_put_tensor(w, str("t"), 1, four, SQ_TENSOR_I8);
    sq_gguf_put_data(w, "1234", 4);
    sq_gguf_put_data(w, "1234", 4);
}
static void tensor_of_odd_rows(sq_gguf_writer *w) { sq_gguf_put_tensor(w, str("t"), 1, four, SQ_TENSOR_Q4_0); }
/* What comes after a failure neither helps nor is told. */
static void tensor_of_no_dimensions(sq_gguf_writer *w)
{
    sq_gguf_put_tensor(w, str("t"), 0, four, SQ_TENSOR_I8);
    sq_gguf_put_tensor(w, str("u"), 9, four, SQ_TENSOR_I8);
    sq_gguf_put_u32(w, "some.key", 1);
    sq_gguf_put_data(w, "12345", 5);
}
static void data_of_wrong_size(sq_gguf_writer *w)
{
    sq_gguf_put_tensor(w, str("t"), 1, four, SQ_TENSOR_I8);
    sq_gguf_put_data(w, "12345", 5);
}
static void data_missing(sq_gguf_writer *w) { sq_gguf_put_tensor(w, str("t"), 1, four, SQ_TENSOR_I8); }
static void data_undeclared(sq_gguf_writer *w) { sq_gguf_put_data(w, "1234", 4); }

static void failed_writes_leave_the_file(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        void (*put)(sq_gguf_writer *w);
        squint_err err;
        const char *said;
    } cases[] = {
        CASE(key_put_twice, SQUINT_ERR_FORMAT, "key \"some.key\" is there twice"),
        CASE(key_after_data, SQUINT_ERR_ARGUMENT, "key \"some.key\" comes after"),
        CASE(tensor_after_data, SQUINT_ERR_ARGUMENT, "tensor \"u\" comes after"),
        CASE(tensor_put_twice, SQUINT_ERR_FORMAT, "tensor \"t\" is there twice"),
        CASE(tensor_of_odd_rows, SQUINT_ERR_ARGUMENT, "tensor \"t\": no Q4_0 tensor"),
        CASE(tensor_of_no_dimensions, SQUINT_ERR_ARGUMENT, "tensor \"t\""),
        CASE(data_of_wrong_size, SQUINT_ERR_ARGUMENT, "5 bytes of data for tensor 0, which has 4"),
        CASE(data_missing, SQUINT_ERR_ARGUMENT, "data for 0 of 1 tensors"),
        CASE(data_undeclared, SQUINT_ERR_ARGUMENT, "more than the 0 tensors"),
    };
    const sandbox s = make_sandbox("old");
    for (size_t i = 0; i < SQ_COUNT(cases); i++) {
        sq_gguf_writer *w;
        squint_msg msg = {""};
        assert_int_equal(sq_gguf_write_begin(&w, s.path, 32, NULL, &msg), SQUINT_OK);
        cases[i].put(w);
        const squint_err err = sq_gguf_write_end(&w, &msg);
        if (err != cases[i].err || !strstr(msg.text, cases[i].said) || !strstr(msg.text, "model.gguf: "))
            fail_msg("%s: %d, \"%s\"", cases[i].name, (int)err, msg.text);
        assert_null(w);
        check_untouched(&s, "old");
    }
    sq_gguf_writer *w;
    assert_int_equal(sq_gguf_write_begin(&w, s.path, 32, NULL, NULL), SQUINT_OK);
    sq_gguf_put_u32(w, "some.key", 1);
    sq_gguf_write_abort(&w);
    assert_null(w);
    sq_gguf_write_abort(&w);
    check_untouched(&s, "old");
    remove_sandbox(&s);
}

static void bad_places_are_refused(void **state)
{
    (void)state;
    sq_gguf_writer *w;
    squint_msg msg;
    assert_int_equal(sq_gguf_write_begin(&w, "/nonexistent/model.gguf", 32, NULL, &msg), SQUINT_ERR_IO);
    assert_string_equal(msg.text, "/nonexistent/model.gguf: cannot be written: No such file or directory");
    assert_null(w);
    assert_int_equal(sq_gguf_write_begin(&w, "/dev/null", 32, NULL, &msg), SQUINT_ERR_IO);
    assert_non_null(strstr(msg.text, "not a regular file"));
    static const uint32_t alignments[] = {0, 4, 24, 33, 1u << 17};
    for (size_t i = 0; i < SQ_COUNT(alignments); i++)
        assert_int_equal(sq_gguf_write_begin(&w, "x.gguf", alignments[i], NULL, &msg), SQUINT_ERR_ARGUMENT);
}

static void full_disk_is_told(void **state)
{
    (void)state;
    const sandbox s = make_sandbox("old");
    static uint8_t data[100000];
    const uint64_t ne = sizeof data;
    struct rlimit limit, before;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    limit = before;
    limit.rlim_cur = 65536;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    sq_gguf_writer *w;
    squint_msg msg;
    const squint_err began = sq_gguf_write_begin(&w, s.path, 32, NULL, &msg);
    sq_gguf_put_tensor(w, str("t"), 1, &ne, SQ_TENSOR_I8);
    sq_gguf_put_data(w, data, sizeof data);
    const squint_err err = sq_gguf_write_end(&w, &msg);
    setrlimit(RLIMIT_FSIZE, &before);
    signal(SIGXFSZ, SIG_DFL);
    assert_int_equal(began, SQUINT_OK);
    assert_int_equal(err, SQUINT_ERR_IO);
    assert_non_null(strstr(msg.text, "model.gguf: cannot be written: File too large"));
    check_untouched(&s, "old");
    remove_sandbox(&s);
}

static void writer_tells_failed_allocations(void **state)
{
    const fixture *f = *state;
    const sandbox s = make_sandbox("old");
    squint_err err = SQUINT_ERR_NOMEM;
    size_t attempts = 0;
    while (err == SQUINT_ERR_NOMEM) {
        counting c = {.fail_at = ++attempts};
        const squint_allocator a = counting_allocator(&c);
        sq_gguf_writer *w;
        squint_msg msg;
        check_untouched(&s, "old");
        err = sq_gguf_write_begin(&w, s.path, 64, &a, &msg);
        if (!err) {
            copy_all(w, f->g);
            err = sq_gguf_write_end(&w, &msg);
        }
        assert_int_equal(c.live, 0);
    }
    assert_int_equal(err, SQUINT_OK);
    assert_true(attempts > 12);
    remove_sandbox(&s);
}

/* What of a mapped file is in memory, KiB; -1 where the system does not tell. */
static long resident_kib(const char *path)
{
    char line[4096];
    long kib = -1;
    bool in_file = false;
    FILE *const f = fopen("/proc/self/smaps", "r");
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = '\0';
        const size_t n = strlen(line), m = strlen(path);
        if (n >= m && !strcmp(line + n - m, path)) in_file = true;
        if (in_file && sscanf(line, "Rss: %ld kB", &kib) == 1) break;
    }
    if (f) fclose(f);
    return kib;
}

static void forgotten_data_comes_back(void **state)
{
    (void)state;
    enum { FIRST = 1 << 20, SECOND = 3 << 20 };
    const char *const path = temp_path(".gguf");
    uint8_t *const bytes = malloc(SECOND);
    sq_gguf_writer *w;
    sq_gguf *g;
    squint_msg msg = {""};
    uint64_t sum = 0;
    assert_non_null(bytes);
    memset(bytes, 3, SECOND);
    assert_int_equal(sq_gguf_write_begin(&w, path, 64, NULL, &msg), SQUINT_OK);
    sq_gguf_put_tensor(w, str("first"), 1, (const uint64_t[]){FIRST}, SQ_TENSOR_I8);
    sq_gguf_put_tensor(w, str("second"), 1, (const uint64_t[]){SECOND}, SQ_TENSOR_I8);
    sq_gguf_put_data(w, bytes, FIRST);
    sq_gguf_put_data(w, bytes, SECOND);
    assert_int_equal(sq_gguf_write_end(&w, &msg), SQUINT_OK);
    assert_int_equal(sq_gguf_open(&g, path, NULL, &msg), SQUINT_OK);
    const sq_gguf_tensor *const first = sq_gguf_find(g, "first"), *const second = sq_gguf_find(g, "second");
    for (size_t i = 0; i < FIRST; i++)
        sum += first->data[i];
    for (size_t i = 0; i < SECOND; i++)
        sum += second->data[i];
    assert_int_equal(sum, 3 * (FIRST + SECOND));
    const long before = resident_kib(path);
    sq_gguf_forget(g, second);
    const long after = resident_kib(path);
    if (before >= 4096) { /* under an emulator these may be another's */
        assert_in_range(after, 1024, 1024 + 64);
    }
    for (size_t i = 0; i < SECOND; i++)
        sum -= second->data[i];
    assert_int_equal(sum, 3 * FIRST);
    sq_gguf_close(&g);

    /* Data that is not a file's must not be lost. */
    FILE *const f = fopen(path, "rb");
    void *const copy = malloc(FIRST + SECOND + 4096);
    assert_non_null(copy);
    const size_t size = f ? fread(copy, 1, FIRST + SECOND + 4096, f) : 0;
    assert_int_equal(sq_gguf_open_memory(&g, "memory", copy, size, NULL, &msg), SQUINT_OK);
    sq_gguf_forget(g, sq_gguf_find(g, "second"));
    assert_memory_equal(sq_gguf_find(g, "second")->data, bytes, SECOND);
    sq_gguf_close(&g);
    if (f) fclose(f);
    free(copy);
    free(bytes);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(broken_files_are_refused),
        cmocka_unit_test(cut_files_are_refused),
        cmocka_unit_test(flipped_bits_do_no_harm),
        cmocka_unit_test_setup_teardown(everything_is_found, open_good, close_good),
        cmocka_unit_test_setup_teardown(arrays_have_their_elements, open_good, close_good),
        cmocka_unit_test_setup_teardown(wrong_types_are_told, open_good, close_good),
        cmocka_unit_test(numbers_convert_where_they_fit),
        cmocka_unit_test(alignment_may_come_last),
        cmocka_unit_test(version_2_is_read),
        cmocka_unit_test(what_is_no_file_is_refused),
        cmocka_unit_test_setup_teardown(every_failed_allocation_is_told, open_good, close_good),
        cmocka_unit_test(index_finds_every_name),
        cmocka_unit_test(index_tells_names_apart),
        cmocka_unit_test_setup_teardown(panels_point_into_the_file, open_good, close_good),
        cmocka_unit_test(bad_panels_are_refused),
        cmocka_unit_test(writer_makes_these_bytes),
        cmocka_unit_test_setup_teardown(all_types_survive_a_copy, open_good, close_good),
        cmocka_unit_test(failed_writes_leave_the_file),
        cmocka_unit_test(bad_places_are_refused),
        cmocka_unit_test(full_disk_is_told),
        cmocka_unit_test(forgotten_data_comes_back),
        cmocka_unit_test_setup_teardown(writer_tells_failed_allocations, open_good, close_good),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
