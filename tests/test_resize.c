/*
 * Resizing and fitting: equal to Pillow, NumPy and PyTorch to the last bit, in memory that does not grow with borders.
 * SPDX-License-Identifier: MIT
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "runtime/image.h"
#include "runtime/resize.h"
#include "tests/counting.h"
#include "tests/support.h"

#include <stdlib.h>
#include <string.h>

enum { WAVES, NOISE, CAT };         /* sources */
enum { PLAIN, STRETCH, PAD, CROP }; /* fits */
enum { CAT_W = 96, CAT_H = 64 };

static const float mean[3] = {0.48145466f, 0.4578275f, 0.40821073f};
static const float deviation[3] = {0.26862954f, 0.26130258f, 0.27577711f};

static uint8_t pixel(unsigned kind, const uint8_t *cat, uint32_t x, uint32_t y, uint32_t c)
{
    if (kind == WAVES) return (uint8_t)(37 * x + 91 * y + 53 * c + 11 * x * y);
    if (kind == NOISE) return (uint8_t)((((x * 73856093u) ^ (y * 19349663u) ^ (c * 83492791u)) * 2654435761u) >> 24);
    return cat[3 * (y * CAT_W + x) + c];
}

/* Rows `stride` apart, the last one ending at a guard page. */
static uint8_t *make_source(unsigned kind, const uint8_t *cat, uint32_t w, uint32_t h, size_t stride)
{
    const size_t size = stride * (h - 1) + 3 * (size_t)w;
    uint8_t *rgb = guarded_alloc(size, 1);
    memset(rgb, 0xEE, size);
    for (uint32_t y = 0; y < h; y++)
        for (uint32_t x = 0; x < w; x++)
            for (uint32_t c = 0; c < 3; c++)
                rgb[y * stride + 3 * x + c] = pixel(kind, cat, x, y, c);
    return rgb;
}

static uint64_t fnv(const void *data, size_t n)
{
    const uint8_t *p = data;
    uint64_t hash = 0xCBF29CE484222325u;
    for (size_t i = 0; i < n; i++)
        hash = (hash ^ p[i]) * 0x100000001B3u;
    return hash;
}

static squint_err resize(const uint8_t *src, uint32_t w, uint32_t h, size_t stride, uint8_t *dst, uint32_t dw,
                         uint32_t dh)
{
    counting books = {0};
    const squint_allocator a = counting_allocator(&books);
    squint_msg msg;
    const squint_err err = sq_resize_bicubic(src, w, h, stride, dst, dw, dh, &a, &msg);
    assert_int_equal(books.live, 0);
    return err;
}

/* ---- The table of golden-cases.md, F-values ----------------------------------------------------- */

static uint32_t sum_of(const uint8_t *p, size_t n)
{
    uint32_t sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += p[i];
    return sum;
}

static void small_picture_has_the_published_values(void **state)
{
    (void)state;
    static const uint8_t red_4x4[16] = {28, 106, 132, 185, 160, 158, 121, 97, 111, 139, 131, 136, 116, 94, 115, 67};
    static const uint8_t red_7x3[21] = {40, 81,  122, 163, 97,  138, 179, 128, 187, 107, 166,
                                        99, 167, 78,  68,  145, 72,  150, 120, 48,  125};
    static const uint8_t red_10x8[20] = {0,   10,  38,  64, 88, 121, 159, 185, 212, 231,
                                         109, 170, 161, 7,  44, 131, 183, 29,  19,  80};
    uint8_t *src = make_source(WAVES, NULL, 7, 5, 21), out[3 * 80];
    assert_int_equal(resize(src, 7, 5, 21, out, 4, 4), SQUINT_OK);
    for (size_t i = 0; i < 16; i++)
        assert_int_equal(out[3 * i], red_4x4[i]);
    assert_int_equal(sum_of(out, 3 * 16), 6103);
    assert_int_equal(resize(src, 7, 5, 21, out, 7, 3), SQUINT_OK);
    for (size_t i = 0; i < 21; i++)
        assert_int_equal(out[3 * i], red_7x3[i]);
    assert_int_equal(sum_of(out, 3 * 21), 8001);
    assert_int_equal(resize(src, 7, 5, 21, out, 10, 8), SQUINT_OK);
    for (size_t i = 0; i < 10; i++) {
        assert_int_equal(out[3 * i], red_10x8[i]);
        assert_int_equal(out[3 * (70 + i)], red_10x8[10 + i]);
    }
    assert_int_equal(sum_of(out, 3 * 80), 30426);
    guarded_free(src);
}

/* ---- resize.bin --------------------------------------------------------------------------------- */

typedef struct golden {
    uint32_t source, fit, w, h, dw, dh, pad, n;
    uint64_t hash;
    const uint8_t *pixels; /* [n] */
} golden;

static uint64_t read_le(const uint8_t *p, int bytes)
{
    uint64_t v = 0;
    for (int i = bytes; i--;)
        v = v << 8 | p[i];
    return v;
}

static golden read_golden(const uint8_t *p)
{
    uint32_t u[8];
    for (size_t i = 0; i < SQ_COUNT(u); i++)
        u[i] = (uint32_t)read_le(p + 4 * i, 4);
    return (golden){u[0], u[1], u[2], u[3], u[4], u[5], u[6], u[7], read_le(p + 40, 8), p + 48};
}

static void describe_difference(const golden *g, const uint8_t *got)
{
    for (uint32_t i = 0; i < g->n; i++)
        if (got[i] != g->pixels[i])
            fail_msg("source %u, fit %u, %ux%u to %ux%u: byte %u is %u, not %u", g->source, g->fit, g->w, g->h, g->dw,
                     g->dh, i, got[i], g->pixels[i]);
}

static void check_plain(const golden *g, const uint8_t *src, size_t stride)
{
    const size_t n = 3 * (size_t)g->dw * g->dh;
    uint8_t *got = guarded_alloc(n, 1);
    assert_int_equal(resize(src, g->w, g->h, stride, got, g->dw, g->dh), SQUINT_OK);
    describe_difference(g, got);
    if (fnv(got, n) != g->hash) fail_msg("%ux%u to %ux%u differs", g->w, g->h, g->dw, g->dh);
    guarded_free(got);
}

static sq_image_rule make_rule(sq_fit fit, uint32_t size, uint32_t pad)
{
    sq_image_rule rule = {.fit = fit, .size = size};
    for (int c = 0; c < 3; c++)
        rule.pad_color[c] = (uint8_t)(pad >> 8 * c);
    memcpy(rule.mean, mean, sizeof mean);
    memcpy(rule.std, deviation, sizeof deviation);
    return rule;
}

static squint_err prepare(const uint8_t *src, uint32_t w, uint32_t h, size_t stride, const sq_image_rule *rule,
                          float *out, size_t *peak)
{
    counting books = {0};
    const squint_allocator a = counting_allocator(&books);
    squint_msg msg;
    const squint_err err = sq_image_prepare(src, w, h, stride, rule, out, &a, &msg);
    assert_int_equal(books.live, 0);
    if (peak) *peak = books.peak;
    return err;
}

/* Back from floats: by far close enough to be the byte it was. */
static void check_bytes(const golden *g, const float *got)
{
    const size_t n = (size_t)g->dw * g->dh;
    uint8_t *bytes = malloc(3 * n);
    for (size_t i = 0; i < 3 * n; i++)
        bytes[i] = (uint8_t)((got[i % 3 * n + i / 3] * deviation[i % 3] + mean[i % 3]) * 255.0f + 0.5f);
    describe_difference(g, bytes);
    free(bytes);
}

static void check_fit(const golden *g, const uint8_t *src, size_t stride)
{
    static const sq_fit fits[] = {[STRETCH] = SQ_FIT_STRETCH, [PAD] = SQ_FIT_PAD, [CROP] = SQ_FIT_CROP};
    const sq_image_rule rule = make_rule(fits[g->fit], g->dw, g->pad);
    const size_t bytes = 3 * sizeof(float) * g->dw * g->dh;
    float *got = guarded_alloc(bytes, sizeof(float));
    assert_int_equal(prepare(src, g->w, g->h, stride, &rule, got, NULL), SQUINT_OK);
    check_bytes(g, got);
    if (fnv(got, bytes) != g->hash) fail_msg("fit %u of %ux%u to %u differs", g->fit, g->w, g->h, g->dw);
    guarded_free(got);
}

static void equals_pillow_to_the_last_bit(void **state)
{
    (void)state;
    size_t size, cat_size, n = 0;
    uint8_t *file = read_test_file("golden/resize.bin", &size), *cat = read_test_file("golden/cat.rgb", &cat_size);
    assert_int_equal(cat_size, 3 * CAT_W * CAT_H);
    for (size_t at = 0; at < size; n++) {
        const golden g = read_golden(file + at);
        const size_t stride = 3 * (size_t)g.w + n % 3 * 5;
        uint8_t *src = make_source(g.source, cat, g.w, g.h, stride);
        if (g.fit == PLAIN)
            check_plain(&g, src, stride);
        else
            check_fit(&g, src, stride);
        guarded_free(src);
        at += 48 + g.n;
    }
    assert_true(n > 80);
    free(file);
    free(cat);
}

/* ---- Borders and crops against pictures that have them ------------------------------------------ */

static sq_axis random_axis(uint64_t *seed)
{
    sq_axis a;
    a.in = 1 + (uint32_t)(random_u64(seed) % 60);
    a.out = random_u64(seed) % 8 ? 1 + (uint32_t)(random_u64(seed) % 60) : a.in;
    a.border = (uint32_t)(random_u64(seed) % a.in);
    a.pixels = 1 + (uint32_t)(random_u64(seed) % (a.in - a.border));
    a.first = (uint32_t)(random_u64(seed) % a.out);
    a.n = 1 + (uint32_t)(random_u64(seed) % (a.out - a.first));
    return a;
}

static void parts_equal_the_whole(void **state)
{
    (void)state;
    uint64_t seed = 5;
    for (int round = 0; round < 400; round++) {
        const sq_axis x = random_axis(&seed), y = random_axis(&seed);
        const uint64_t r = random_u64(&seed);
        const uint8_t border[3] = {(uint8_t)r, (uint8_t)(r >> 8), (uint8_t)(r >> 16)};
        uint8_t *src = make_source(NOISE, NULL, x.pixels, y.pixels, 3 * x.pixels);
        static uint8_t canvas[60 * 60 * 3], whole[60 * 60 * 3], part[60 * 60 * 3];
        for (size_t i = 0; i < (size_t)x.in * y.in; i++)
            memcpy(canvas + 3 * i, border, 3);
        for (uint32_t row = 0; row < y.pixels; row++)
            memcpy(canvas + 3 * ((y.border + row) * x.in + x.border), src + 3 * row * x.pixels, 3 * x.pixels);
        assert_int_equal(resize(canvas, x.in, y.in, 3 * x.in, whole, x.out, y.out), SQUINT_OK);

        counting books = {0};
        const squint_allocator a = counting_allocator(&books);
        assert_int_equal(sq_resample(src, 3 * x.pixels, &x, &y, border, part, &a, NULL), SQUINT_OK);
        assert_int_equal(books.live, 0);
        for (uint32_t row = 0; row < y.n; row++)
            assert_memory_equal(part + 3 * row * x.n, whole + 3 * ((y.first + row) * x.out + x.first), 3 * x.n);
        guarded_free(src);
    }
}

/* A square canvas for these would take 1.2 GB, and the whole resize of the crop 1.2 GB too. */
static void long_pictures_take_little_memory(void **state)
{
    (void)state;
    static const uint32_t sides[][2] = {{1, 20000}, {20000, 1}, {32768, 3}, {2, 32768}};
    static float out[3 * 144 * 144];
    for (size_t i = 0; i < SQ_COUNT(sides); i++) {
        const uint32_t w = sides[i][0], h = sides[i][1];
        uint8_t *src = make_source(NOISE, NULL, w, h, 3 * (size_t)w);
        for (sq_fit fit = SQ_FIT_STRETCH; fit <= SQ_FIT_CROP; fit++) {
            const sq_image_rule rule = make_rule(fit, 144, 0x68747A);
            size_t peak;
            assert_int_equal(prepare(src, w, h, 3 * (size_t)w, &rule, out, &peak), SQUINT_OK);
            /* Weights of both axes: 144 windows of 4 * 32768 / 144 each, 0.6 MB; a window of rows: 0.4 MB. */
            assert_true(peak < 2 << 20);
        }
        guarded_free(src);
    }
}

/* In the middle of a border of one colour, and of a picture of one colour, nothing but that colour comes out. */
static void flat_stays_flat(void **state)
{
    (void)state;
    static uint8_t flat[64 * 3];
    static float out[3 * 48 * 48];
    for (unsigned v = 0; v < 256; v++) {
        memset(flat, (int)v, sizeof flat);
        const sq_image_rule rule = make_rule(SQ_FIT_PAD, 48, v * 0x010101);
        assert_int_equal(prepare(flat, 64, 1, sizeof flat, &rule, out, NULL), SQUINT_OK);
        for (size_t i = 0; i < SQ_COUNT(out); i++) {
            const size_t c = i / (48 * 48);
            assert_true(out[i] == ((float)v / 255.0f - mean[c]) / deviation[c]);
        }
    }
}

/* ---- Failures ----------------------------------------------------------------------------------- */

static void no_memory_is_an_error_and_no_leak(void **state)
{
    (void)state;
    const uint8_t src[3 * 6 * 4] = {0};
    static float out[3 * 8 * 8];
    const sq_image_rule rule = make_rule(SQ_FIT_PAD, 8, 0);
    for (size_t at = 1;; at++) {
        counting books = {.fail_at = at};
        const squint_allocator a = counting_allocator(&books);
        squint_msg msg;
        const squint_err err = sq_image_prepare(src, 6, 4, 18, &rule, out, &a, &msg);
        assert_int_equal(books.live, 0);
        if (!err) {
            assert_true(at > 2); /* the square and its resize */
            break;
        }
        assert_int_equal(err, SQUINT_ERR_NOMEM);
        assert_non_null(strstr(msg.text, "no memory"));
    }
}

static void impossible_arguments_are_refused(void **state)
{
    (void)state;
    static const uint32_t sides[][4] = {{0, 1, 1, 1},     {1, 0, 1, 1},     {1, 1, 0, 1},          {1, 1, 1, 0},
                                        {32769, 1, 1, 1}, {1, 32769, 1, 1}, {1, 1, 0xFFFFFFFF, 1}, {1, 1, 1, 32769}};
    const uint8_t src[3] = {0};
    uint8_t dst[3];
    float out[3];
    for (size_t i = 0; i < SQ_COUNT(sides); i++) {
        const uint32_t *s = sides[i];
        assert_int_equal(resize(src, s[0], s[1], SIZE_MAX, dst, s[2], s[3]), SQUINT_ERR_ARGUMENT);
        if (s[2] == 1 && s[3] == 1) {
            const sq_image_rule rule = make_rule(SQ_FIT_STRETCH, 1, 0);
            assert_int_equal(prepare(src, s[0], s[1], SIZE_MAX, &rule, out, NULL), SQUINT_ERR_ARGUMENT);
        }
    }
    assert_int_equal(resize(src, 1, 1, 2, dst, 1, 1), SQUINT_ERR_ARGUMENT);

    sq_image_rule rule = make_rule(SQ_FIT_STRETCH, 1, 0);
    assert_int_equal(prepare(src, 1, 1, 3, &rule, out, NULL), SQUINT_OK);
    assert_int_equal(prepare(src, 1, 1, 2, &rule, out, NULL), SQUINT_ERR_ARGUMENT);
    rule.size = 0;
    assert_int_equal(prepare(src, 1, 1, 3, &rule, out, NULL), SQUINT_ERR_ARGUMENT);
    rule.size = 32769;
    assert_int_equal(prepare(src, 1, 1, 3, &rule, out, NULL), SQUINT_ERR_ARGUMENT);
    rule = make_rule(SQ_FIT_STRETCH, 1, 0);
    rule.std[2] = 0.0f;
    assert_int_equal(prepare(src, 1, 1, 3, &rule, out, NULL), SQUINT_ERR_ARGUMENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_picture_has_the_published_values),
        cmocka_unit_test(equals_pillow_to_the_last_bit),
        cmocka_unit_test(parts_equal_the_whole),
        cmocka_unit_test(long_pictures_take_little_memory),
        cmocka_unit_test(flat_stays_flat),
        cmocka_unit_test(no_memory_is_an_error_and_no_leak),
        cmocka_unit_test(impossible_arguments_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
