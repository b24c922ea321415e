/*
 * What is drawn is where it should be, and comes back from the PNG.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/image.h"
#include "tests/support.h"
#include "tools/squint/canvas.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { W = 40, H = 30 };

static canvas_colour at(const canvas *c, int x, int y)
{
    const uint8_t *p = c->rgb + 3 * (y * c->w + x);
    return (canvas_colour)p[0] << 16 | (canvas_colour)p[1] << 8 | p[2];
}

/* Ink on white, in pixels: the sum of how dark each is. */
static double ink(const canvas *c, int left, int right)
{
    double sum = 0;
    for (int y = 0; y < c->h; y++)
        for (int x = left; x < right; x++)
            sum += (255 - (at(c, x, y) & 0xFF)) / 255.0;
    return sum;
}

static void rectangles_are_cut_and_mixed(void **state)
{
    (void)state;
    canvas c;
    canvas_open(&c, W, H, 0x102030FF);
    canvas_fill(&c, 38, -5, 10, 7, 0xFFFFFFFF);
    canvas_fill(&c, -3, 28, 5, 100, 0x203040FF);
    canvas_fill(&c, 10, 10, 2, 2, 0xFF000080);
    canvas_fill(&c, 20, 20, 5, 5, 0xFFFFFF00);
    canvas_fill(&c, 5, 5, -3, 4, 0xFFFFFFFF);
    for (int y = 0; y < H; y++)
        for (int x = 0; x < W; x++) {
            canvas_colour want = 0x102030;
            if (x >= 38 && y < 2) want = 0xFFFFFF;
            if (x < 2 && y >= 28) want = 0x203040;
            /* 0x10 + 128 / 255 * (0xFF - 0x10) = 135.97, and half of the others */
            if (x >= 10 && x < 12 && y >= 10 && y < 12) want = 0x881018;
            assert_int_equal(at(&c, x, y), want);
        }
    canvas_close(&c);
    assert_null(c.rgb);
}

/* A band of 2 x 10 pixels has 20 pixels of ink, wherever it lies. */
static void lines_have_their_width(void **state)
{
    (void)state;
    const struct {
        double x0, y0, x1, y1, error;
    } lines[] = {{5, 10, 15, 10, 1e-9}, {20.25, 8, 20.25, 18, 1.0}, {10, 20, 18, 14, 0.6}, {30, 8, 22, 2, 0.6}};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        canvas c;
        canvas_open(&c, W, H, 0xFFFFFFFF);
        canvas_line(&c, lines[i].x0, lines[i].y0, lines[i].x1, lines[i].y1, 2, 0x000000FF);
        assert_true(ink(&c, 0, W) >= 20 - lines[i].error && ink(&c, 0, W) <= 20 + lines[i].error);
        canvas_close(&c);
    }
    canvas c;
    canvas_open(&c, W, H, 0xFFFFFFFF);
    canvas_line(&c, 5, 10, 15, 10, 2, 0x000000FF);
    assert_int_equal(at(&c, 5, 9), 0);
    assert_int_equal(at(&c, 14, 10), 0);
    assert_int_equal(at(&c, 4, 9), 0xFFFFFF);
    assert_int_equal(at(&c, 5, 11), 0xFFFFFF);
    canvas_line(&c, -1e3, 15, 1e3, 15, 1, 0x000000FF); /* cut at the edges */
    assert_int_equal(at(&c, 0, 14) & 0xFF, 128);
    assert_int_equal(at(&c, W - 1, 15) & 0xFF, 128);
    canvas_line(&c, 0, 20.5, 9, 20.5, 0.5, 0x000000FF); /* thinner than a pixel: paler */
    assert_int_equal(at(&c, 4, 20) & 0xFF, 128);
    canvas_close(&c);
}

static void draw_letter(uint8_t *dots, char letter)
{
    const char text[] = {letter, 0};
    canvas c;
    canvas_open(&c, 7, 11, 0xFFFFFFFF);
    canvas_text(&c, 1, 1, 1, 0x000000FF, text);
    assert_true(letter == ' ' ? ink(&c, 0, 7) == 0 : ink(&c, 1, 6) >= 3);
    for (int y = 0; y < c.h; y++) /* none leaves its cell but for half a diagonal */
        assert_true((at(&c, 0, y) & 0xFF) > 0xA0 && (at(&c, 6, y) & 0xFF) > 0xA0);
    memcpy(dots, c.rgb, 7 * 11 * 3);
    canvas_close(&c);
}

static void every_letter_is_another(void **state)
{
    (void)state;
    static uint8_t dots[128][7 * 11 * 3];
    for (int a = ' '; a <= 127; a++) {
        draw_letter(dots[a], (char)a);
        for (int b = ' '; b < a; b++)
            assert_memory_not_equal(dots[a], dots[b], sizeof dots[a]);
    }
}

static void text_has_its_place_and_width(void **state)
{
    (void)state;
    canvas c;
    canvas_open(&c, 100, 40, 0xFFFFFFFF);
    assert_int_equal(canvas_text_width(3, ""), 0);
    assert_int_equal(canvas_text_width(3, "HI"), 33);
    canvas_text(&c, 10, 5, 3, 0x000000FF, "HH");
    assert_true(ink(&c, 0, 10) == 0 && ink(&c, 10 + canvas_text_width(3, "HH"), 100) == 0);
    /* an H of 7 + 3 + 7 dots of 9 pixels, straight: no smoothing */
    assert_true(ink(&c, 10, 25) == 17 * 9 && ink(&c, 28, 43) == 17 * 9);
    assert_int_equal(at(&c, 10, 5), 0);
    assert_int_equal(at(&c, 10, 5 + 3 * CANVAS_CAP - 1), 0);
    assert_int_equal(at(&c, 10, 5 + 3 * CANVAS_CAP), 0xFFFFFF);
    canvas_text(&c, -200, 5, 3, 0x000000FF, "H"); /* out of sight */
    canvas_text(&c, 95, 38, 3, 0x000000FF, "gH"); /* half out */
    canvas_close(&c);
    assert_int_equal(canvas_text_width(1, "\xC3\xA9\xE2\x82\xAC"), 11); /* two characters, two boxes */
}

static void a_png_comes_back(void **state)
{
    (void)state;
    const squint_allocator a = sq_allocator_or_default(NULL);
    const char *path = temp_path(".png");
    uint64_t seed = 7;
    canvas c;
    canvas_open(&c, 123, 45, 0);
    for (int i = 0; i < 123 * 45 * 3; i++)
        c.rgb[i] = (uint8_t)random_u64(&seed);
    assert_true(canvas_save_png(&c, path));
    sq_image image = {0};
    squint_msg msg;
    assert_int_equal(sq_image_read(&image, path, &a, &msg), SQUINT_OK);
    assert_int_equal(image.w, 123);
    assert_int_equal(image.h, 45);
    assert_memory_equal(image.rgb, c.rgb, 123 * 45 * 3);
    sq_image_free(&image, &a);
    remove(path);
    assert_false(canvas_save_png(&c, "/nowhere/at/all.png"));
    assert_false(canvas_save_png(&c, "/dev/full"));
    canvas_close(&c);
    canvas_open(&c, 2, 2, 0); /* fits into a buffer, so that closing the file fails */
    assert_false(canvas_save_png(&c, "/dev/full"));
    canvas_close(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rectangles_are_cut_and_mixed),
        cmocka_unit_test(lines_have_their_width),
        cmocka_unit_test(every_letter_is_another),
        cmocka_unit_test(text_has_its_place_and_width),
        cmocka_unit_test(a_png_comes_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
