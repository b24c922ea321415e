/*
 * Files that nobody should have: pictures and models that are broken, cut short, damaged, or of absurd size. The answer
 * is exit 1 or 2 and one line, or a caption; never more.
 * SPDX-License-Identifier: MIT
 */
#include "tests/command.h"
#include "tests/support.h"

#include "runtime/gguf.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { PLACES = 200 };

static char model[1024];

/* ---- Pictures ------------------------------------------------------------------------------ */

static void write_bytes(const char *path, const void *data, size_t size)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
}

static void put_be32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (24 - 8 * i));
}

static void put_le32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

/* Headers alone: what is asked for must be refused before its pixels are looked for. */
static size_t png_header(uint8_t *out, uint32_t w, uint32_t h)
{
    static const uint8_t begin[] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n', 0, 0, 0, 13, 'I', 'H', 'D', 'R'};
    static const uint8_t end[] = {8, 2, 0, 0, 0, 0, 0, 0, 0}; /* 8 bits, RGB; CRC 0 */
    memcpy(out, begin, 16);
    put_be32(out + 16, w);
    put_be32(out + 20, h);
    memcpy(out + 24, end, 9);
    return 33;
}

static size_t bmp_header(uint8_t *out, uint32_t w, uint32_t h)
{
    memset(out, 0, 54);
    out[0] = 'B';
    out[1] = 'M';
    put_le32(out + 10, 54);
    put_le32(out + 14, 40);
    put_le32(out + 18, w);
    put_le32(out + 22, h);
    out[26] = 1;  /* plane */
    out[28] = 24; /* bits */
    return 54;
}

static size_t pnm_header(uint8_t *out, uint32_t w, uint32_t h)
{
    return (size_t)snprintf((char *)out, 64, "P6\n%u %u\n255\n", w, h);
}

/* SOI and a baseline frame of this size. */
static size_t jpeg_header(uint8_t *out, uint32_t w, uint32_t h)
{
    const uint8_t frame[] = {
        0xFF, 0xD8, 0xFF, 0xC0, 0, 17,   8, (uint8_t)(h >> 8), (uint8_t)h, (uint8_t)(w >> 8), (uint8_t)w, 3, 1, 0x11,
        0,    2,    0x11, 0,    3, 0x11, 0};
    memcpy(out, frame, sizeof frame);
    return sizeof frame;
}

static void assert_refused(const char *path)
{
    command_result r = RUN("caption", "-q", "-m", model, path);
    if (r.status != 1 || count_lines(r.err) != 1 || strncmp(r.err, "squint: ", 8) || !strstr(r.err, path))
        fail_msg("%s: exit %d; it said: %s", path, r.status, r.err);
    assert_string_equal(r.out, "");
    command_result_free(&r);
}

static void headers_of_absurd_size(void **state)
{
    (void)state;
    static size_t (*const headers[])(uint8_t *, uint32_t, uint32_t) = {png_header, bmp_header, pnm_header, jpeg_header};
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
        uint8_t bytes[128];
        const char *path = temp_path(".jpg");
        write_bytes(path, bytes, headers[i](bytes, 30000, 30000));
        assert_refused(path);
        write_bytes(path, bytes, headers[i](bytes, 60, 40)); /* nor does a sane header make pixels */
        assert_refused(path);
        unlink(path);
    }
}

static void what_is_no_picture(void **state)
{
    (void)state;
    const char *path = temp_path(".jpg");
    write_bytes(path, "", 0);
    assert_refused(path);
    write_bytes(path, "It was a dark and stormy night.\n", 32);
    assert_refused(path);
    write_bytes(path, "\x89PNG\r\n\x1A\n", 8);
    assert_refused(path);
    unlink(path);
    assert_refused(path);
    assert_refused("/tmp");
    assert_refused(test_path("golden"));
}

static void jpeg_cut_short(void **state)
{
    (void)state;
    size_t size;
    uint8_t *jpeg = read_test_file("golden/images/baseline-444.jpg", &size);
    const char *path = temp_path(".jpg");
    for (size_t length = 1; length + 3 < size; length += size / 12) { /* all but the end mark */
        write_bytes(path, jpeg, length);
        assert_refused(path);
    }
    unlink(path);
    free(jpeg);
}

/* Odd, but pictures: they get a caption. */
static void extreme_shapes(void **state)
{
    (void)state;
    static const unsigned sizes[][2] = {{1, 1}, {1, 20000}, {20000, 1}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const size_t bytes = (size_t)sizes[i][0] * sizes[i][1] * 3;
        uint8_t *ppm = calloc(bytes + 64, 1);
        const size_t head = pnm_header(ppm, sizes[i][0], sizes[i][1]);
        const char *path = temp_path(".ppm");
        write_bytes(path, ppm, head + bytes);
        command_result r = RUN("caption", "-q", "-m", model, path);
        if (r.status) fail_msg("%u x %u: exit %d; it said: %s", sizes[i][0], sizes[i][1], r.status, r.err);
        assert_string_equal(r.err, "");
        assert_int_equal(count_lines(r.out), 1);
        command_result_free(&r);
        unlink(path);
        free(ppm);
    }
}

/* ---- Models -------------------------------------------------------------------------------- */

/* Opens the model from memory that ends at a guard page and captions a small picture. */
static squint_err try_model(const uint8_t *data, size_t size, squint_msg *msg)
{
    uint8_t rgb[8 * 8 * 3];
    squint_model *m = NULL;
    squint_session *s = NULL;
    squint_result r;
    const squint_session_options one_thread = {.threads = 1, .max_tokens = 4};
    for (size_t i = 0; i < sizeof rgb; i++)
        rgb[i] = (uint8_t)(i * 7);
    uint8_t *copy = guarded_alloc(size, 64);
    memcpy(copy, data, size);
    msg->text[0] = 0;
    squint_err err = squint_model_open_memory(&m, copy, size, NULL, msg);
    if (!err) err = squint_session_open(&s, m, &one_thread, msg);
    if (!err) err = squint_caption_rgb(s, rgb, 8, 8, 24, NULL, &r, msg);
    squint_session_close(&s);
    squint_model_close(&m);
    guarded_free(copy);
    return err;
}

/* A failure has its line. */
static void assert_told(squint_err err, const squint_msg *msg)
{
    assert_true(!err || (msg->text[0] && !strchr(msg->text, '\n')));
}

/* Where the last tensor's data ends; padding may follow. */
static size_t data_end(const uint8_t *data, size_t size)
{
    sq_gguf *g;
    size_t end = 0;
    assert_int_equal(sq_gguf_open_memory(&g, "model", data, size, NULL, NULL), SQUINT_OK);
    for (size_t i = 0; i < sq_gguf_n_tensors(g); i++) {
        const sq_gguf_tensor *t = sq_gguf_tensor_at(g, i);
        if (t->file_pos + t->bytes > end) end = t->file_pos + t->bytes;
    }
    sq_gguf_close(&g);
    return end;
}

static void truncated_models(void **state)
{
    (void)state;
    size_t size;
    squint_msg msg;
    uint8_t *data = read_test_file("golden/tiny-pmod.gguf", &size);
    assert_int_equal(try_model(data, size, &msg), SQUINT_OK);
    const size_t end = data_end(data, size);
    for (size_t i = 0; i < PLACES; i++) {
        const squint_err err = try_model(data, i * (end - 1) / (PLACES - 1), &msg);
        assert_true(err == SQUINT_ERR_FORMAT || err == SQUINT_ERR_IO);
        assert_told(err, &msg);
    }
    free(data);
}

/* Half of the places among keys and names, where a bit means most; the others anywhere. A flipped weight is a weight:
 * nothing can tell, and a caption comes. */
static void flipped_models(void **state)
{
    (void)state;
    size_t size, failed = 0;
    squint_msg msg;
    uint64_t seed = 1;
    uint8_t *data = read_test_file("golden/tiny-pmod.gguf", &size);
    sq_gguf *g;
    assert_int_equal(sq_gguf_open_memory(&g, "model", data, size, NULL, NULL), SQUINT_OK);
    const size_t head = sq_gguf_tensor_at(g, 0)->file_pos;
    sq_gguf_close(&g);
    for (size_t i = 0; i < PLACES; i++) {
        const size_t at = random_u64(&seed) % (i & 1 ? size : head);
        const uint8_t bit = (uint8_t)(1u << (random_u64(&seed) & 7));
        data[at] ^= bit;
        const squint_err err = try_model(data, size, &msg);
        assert_told(err, &msg);
        failed += err != SQUINT_OK;
        data[at] ^= bit;
    }
    assert_true(failed > 0 && failed < PLACES);
    free(data);
}

static void bad_models_by_name(void **state)
{
    (void)state;
    size_t size;
    uint8_t *data = read_test_file("golden/tiny-pmod.gguf", &size);
    const char *path = temp_path(".gguf"), *picture = test_path("golden/images/baseline-444.jpg");
    const struct {
        size_t length, flip; /* flip: 0 for none */
    } cases[] = {{0, 0}, {3, 0}, {24, 0}, {size / 20, 0}, {size / 2, 0}, {size, 1}, {size, 9}, {size, 17}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        data[cases[i].flip] ^= cases[i].flip ? 0x40 : 0;
        write_bytes(path, data, cases[i].length);
        data[cases[i].flip] ^= cases[i].flip ? 0x40 : 0;
        command_result r = RUN("caption", "-m", path, picture);
        if (r.status != 1 || count_lines(r.err) != 1 || !strstr(r.err, path))
            fail_msg("case %zu: exit %d; it said: %s", i, r.status, r.err);
        assert_string_equal(r.out, "");
        command_result_free(&r);
        r = RUN("info", path);
        assert_int_equal(r.status, 1);
        assert_int_equal(count_lines(r.err), 1);
        command_result_free(&r);
    }
    unlink(path);
    free(data);
}

static int set_up(void **state)
{
    (void)state;
    snprintf(model, sizeof model, "%s", test_path("golden/tiny-pmod.gguf"));
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(headers_of_absurd_size), cmocka_unit_test(what_is_no_picture),
        cmocka_unit_test(jpeg_cut_short),         cmocka_unit_test(extreme_shapes),
        cmocka_unit_test(truncated_models),       cmocka_unit_test(flipped_models),
        cmocka_unit_test(bad_models_by_name),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
