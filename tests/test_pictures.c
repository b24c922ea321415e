/*
 * What the CLIP front ends make of pictures of all shapes, to the last bit as Pillow and LLaVA's code make it, and the
 * grids of anyres: tests/golden/make_pictures.py.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/tiles.h"
#include "tests/support.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { SIZE = 336, UNIT = 24, MAX_LINE = 256 };

static const sq_size pinpoints[] = {{336, 672}, {672, 336}, {672, 672}, {1008, 336}, {336, 1008}};

static const sq_image_rule rule = {.size = SIZE,
                                   .pad_color = {122, 116, 104},
                                   .mean = {0.48145466f, 0.4578275f, 0.40821073f},
                                   .std = {0.26862954f, 0.26130258f, 0.27577711f}};

static uint64_t fnv(const float *floats, size_t n)
{
    uint64_t hash = 0xCBF29CE484222325u;
    for (size_t i = 0; i < n; i++) {
        uint32_t word;
        memcpy(&word, &floats[i], sizeof word);
        hash = (hash ^ word) * 0x100000001B3u;
    }
    return hash;
}

/* A slope and a fine pattern. */
static uint8_t *make_picture(uint32_t w, uint32_t h)
{
    uint8_t *const rgb = malloc(3 * (size_t)w * h), *out = rgb;
    assert_non_null(rgb);
    for (uint32_t y = 0; y < h; y++)
        for (uint32_t x = 0; x < w; x++)
            for (uint32_t c = 0; c < 3; c++)
                *out++ = (uint8_t)(x * 80 / w + y * 47 / h + (((37 * x + 91 * y + 53 * c + 11 * x * y) & 255) >> 1));
    return rgb;
}

/* ---- Pixels -------------------------------------------------------------------------------- */

static sq_tiles lay(uint32_t w, uint32_t h)
{
    return sq_tiles_lay(pinpoints[sq_tiles_choose(pinpoints, SQ_COUNT(pinpoints), w, h)], SIZE, w, h);
}

/* The images of a kind, as many as *n; malloc'ed. */
static float *prepare(const char *kind, uint32_t w, uint32_t h, unsigned *n)
{
    const squint_allocator a = sq_allocator_or_default(NULL);
    const char *const fits[] = {[SQ_FIT_STRETCH] = "stretch", [SQ_FIT_PAD] = "pad", [SQ_FIT_CROP] = "crop"};
    const bool tiled = !strcmp(kind, "anyres");
    const sq_tiles tiles = lay(w, h);
    uint8_t *const rgb = make_picture(w, h);
    *n = tiled ? 1 + tiles.rows * tiles.columns : 1;
    float *const out = malloc((size_t)*n * 3 * SIZE * SIZE * sizeof *out);
    if (tiled) assert_int_equal(sq_tiles_prepare(rgb, w, h, 3 * (size_t)w, &rule, &tiles, out, &a, NULL), SQUINT_OK);
    for (unsigned fit = 0; fit < SQ_COUNT(fits); fit++) {
        sq_image_rule fitted = rule;
        fitted.fit = (sq_fit)fit;
        if (!strcmp(kind, fits[fit]))
            assert_int_equal(sq_image_prepare(rgb, w, h, 3 * (size_t)w, &fitted, out, &a, NULL), SQUINT_OK);
    }
    free(rgb);
    return out;
}

static void check_pixels(const char *line)
{
    char kind[16];
    uint32_t w, h;
    unsigned n_golden, n;
    unsigned long long hash;
    float some[4];
    assert_int_equal(sscanf(line, "%15s %u %u %u %llx %f %f %f %f", kind, &w, &h, &n_golden, &hash, &some[0], &some[1],
                            &some[2], &some[3]),
                     9);
    float *const pixels = prepare(kind, w, h, &n);
    if (n != n_golden) fail_msg("%s of %u x %u: %u images, not %u", kind, w, h, n, n_golden);
    const size_t floats = (size_t)n * 3 * SIZE * SIZE;
    for (size_t i = 0; i < 4; i++)
        if (pixels[i * (floats - 1) / 3] != some[i])
            fail_msg("%s of %u x %u: float %zu is %.9g, not %.9g", kind, w, h, i * (floats - 1) / 3,
                     (double)pixels[i * (floats - 1) / 3], (double)some[i]);
    if (fnv(pixels, floats) != hash) fail_msg("%s of %u x %u: other pixels than Pillow's", kind, w, h);
    free(pixels);
}

/* Calls `check` for each line of a golden file but its first. */
static unsigned each_line(const char *name, void (*check)(const char *line))
{
    char line[MAX_LINE];
    unsigned n = 0;
    FILE *const f = fopen(test_path(name), "r");
    assert_non_null(f);
    assert_non_null(fgets(line, sizeof line, f));
    for (; fgets(line, sizeof line, f); n++)
        check(line);
    fclose(f);
    return n;
}

static void pixels_are_pillows(void **state)
{
    (void)state;
    assert_int_equal(each_line("golden/pictures.txt", check_pixels), 85);
}

/* ---- Grids --------------------------------------------------------------------------------- */

static void check_shrunk(sq_kept_map kept, double most, const uint32_t golden[3])
{
    const sq_size size = sq_tiles_shrink(kept.columns, kept.rows, most * UNIT * UNIT);
    assert_int_equal(size.w, golden[0]);
    assert_int_equal(size.h, golden[1]);
    assert_int_equal(UNIT * UNIT + size.h * (size.w + 1), golden[2]);
}

static void check_grid(const char *line)
{
    uint32_t w, h, g[11];
    assert_int_equal(sscanf(line, "%u %u %u %u %u %u %u %u %u %u %u %u %u", &w, &h, g, g + 1, g + 2, g + 3, g + 4,
                            g + 5, g + 6, g + 7, g + 8, g + 9, g + 10),
                     13);
    const sq_size canvas = pinpoints[sq_tiles_choose(pinpoints, SQ_COUNT(pinpoints), w, h)];
    if (canvas.w != g[0] || canvas.h != g[1])
        fail_msg("%u x %u lies on %u x %u, not %u x %u", w, h, canvas.w, canvas.h, g[0], g[1]);
    const sq_kept_map kept = sq_tiles_unpad(canvas.w / SIZE * UNIT, canvas.h / SIZE * UNIT, w, h);
    if (kept.columns != g[2] || kept.rows != g[3])
        fail_msg("%u x %u keeps %u x %u patches, not %u x %u", w, h, kept.columns, kept.rows, g[2], g[3]);
    assert_int_equal(kept.x * 2 + kept.columns, canvas.w / SIZE * UNIT);
    assert_int_equal(kept.y * 2 + kept.rows, canvas.h / SIZE * UNIT);
    assert_int_equal(UNIT * UNIT + kept.rows * (kept.columns + 1), g[4]);
    check_shrunk(kept, 1, g + 5);
    check_shrunk(kept, 3, g + 8);
}

static void grids_are_llavas(void **state)
{
    (void)state;
    assert_int_equal(each_line("golden/grids.txt", check_grid), 200);
}

/* A picture never sticks out of its canvas, and what is kept of the map shows all of it but the rounding of a cell. */
static void every_picture_lies_on_its_canvas(void **state)
{
    (void)state;
    uint64_t seed = 5;
    for (int i = 0; i < 20000; i++) {
        const uint32_t w = 1 + (uint32_t)(random_u64(&seed) % SQ_IMAGE_MAX_SIDE) % (1u << i % 16);
        const uint32_t h = 1 + (uint32_t)(random_u64(&seed) % SQ_IMAGE_MAX_SIDE) % (1u << i / 16 % 16);
        const sq_tiles t = lay(w, h);
        const uint32_t canvas_w = t.columns * SIZE, canvas_h = t.rows * SIZE;
        assert_true(t.fit.w >= 1 && t.fit.h >= 1 && (t.fit.w == canvas_w || t.fit.h == canvas_h));
        assert_true(t.x + t.fit.w <= canvas_w && t.y + t.fit.h <= canvas_h);
        const sq_kept_map kept = sq_tiles_unpad(t.columns * UNIT, t.rows * UNIT, w, h);
        assert_true(kept.columns <= t.columns * UNIT && kept.rows <= t.rows * UNIT);
        assert_true((double)kept.columns * SIZE / UNIT > t.fit.w - 2.0 * SIZE / UNIT);
        assert_true((double)kept.rows * SIZE / UNIT > t.fit.h - 2.0 * SIZE / UNIT);
    }
}

/* Of a row of many maps that shrink, none vanishes. */
static void nothing_shrinks_to_nothing(void **state)
{
    (void)state;
    const sq_size size = sq_tiles_shrink(1536, 1, 576);
    assert_int_equal(size.h, 1);
    assert_int_equal(size.w, 940); /* 1536 / sqrt(1536 / 576) = 940.6 */
}

/* ---- Memory -------------------------------------------------------------------------------- */

typedef struct meter {
    int left; /* allocations until one fails */
    size_t in_use;
} meter;

static void *metered_alloc(void *user, size_t size)
{
    meter *const m = user;
    if (!m->left--) return NULL;
    m->in_use += size;
    return malloc(size);
}

static void metered_free(void *user, void *memory, size_t size)
{
    ((meter *)user)->in_use -= size;
    free(memory);
}

static void no_memory_is_told(void **state)
{
    (void)state;
    const sq_tiles tiles = lay(50, 40);
    uint8_t *const rgb = make_picture(50, 40);
    float *const out = malloc(5 * (size_t)3 * SIZE * SIZE * sizeof *out);
    int failures = 0;
    for (;; failures++) {
        meter m = {.left = failures};
        const squint_allocator a = {.alloc = metered_alloc, .free = metered_free, .user = &m};
        squint_msg msg;
        const squint_err err = sq_tiles_prepare(rgb, 50, 40, 150, &rule, &tiles, out, &a, &msg);
        assert_int_equal(m.in_use, 0);
        if (!err) break;
        assert_int_equal(err, SQUINT_ERR_NOMEM);
        assert_non_null(strstr(msg.text, "memory"));
    }
    assert_true(failures >= 3); /* two resizes and what they write to */
    free(out);
    free(rgb);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pixels_are_pillows),
        cmocka_unit_test(grids_are_llavas),
        cmocka_unit_test(every_picture_lies_on_its_canvas),
        cmocka_unit_test(nothing_shrinks_to_nothing),
        cmocka_unit_test(no_memory_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
