/*
 * Pictures in tiles (LLaVA-NeXT's anyres): what tokens they become, against the same tower run on each image by itself
 * and the rules applied to its rows one by one; and files and pictures of every unlikely kind.
 * SPDX-License-Identifier: MIT
 */
#include "models/llava.h"
#include "tests/fixture.h"
#include "tests/support.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum {
    D = 16,
    SIDE = 12, /* of a tile, pixels */
    UNIT = 3,  /* and in patches */
    BASE = UNIT * UNIT,
    IMAGE = 3 * SIDE * SIDE,
    MOST_IMAGES = 5,
    MOST = BASE + 6 * 7, /* 2 x 2 tiles, nothing cut off */
    N_LAYERS = 4,
};

static const uint32_t pinpoints[] = {12, 24, 24, 12, 24, 24, 36, 12, 12, 36};

/* The same products, of rows in another order: a tower's values of about 1 in binary32. */
static const double BOUND = 2e-6;

/* ---- models, pictures ---- */

static void make_anyres(fixture *f)
{
    fixture_str(f, "squint.vision.type", "clip_anyres");
    fixture_u32s(f, "clip.vision.image_grid_pinpoints", pinpoints, SQ_COUNT(pinpoints));
    fixture_weights(f, "model.image_newline", D, 0, 7000, 0, 1);
}

static fixture *routed_fixture(void)
{
    fixture *f = fixture_decoder(N_LAYERS);
    fixture_routing(f, (const bool[]){false, true, false, true}, (const float[]){1, 0.5f, 1, 0.3f});
    fixture_tower(f);
    return f;
}

static fixture *anyres_fixture(void)
{
    fixture *f = routed_fixture();
    make_anyres(f);
    return f;
}

static squint_session *open_session(const squint_model *m)
{
    squint_session *s;
    squint_msg msg;
    const squint_session_options options = {.threads = 2, .max_tokens = 4, .routes = true};
    if (squint_session_open(&s, m, &options, &msg)) fail_msg("%s", msg.text);
    return s;
}

typedef struct scene {
    squint_model *m;
    squint_session *s;
} scene;

static scene open_scene(fixture *f)
{
    scene c = {.m = fixture_model(f, NULL)};
    c.s = open_session(c.m);
    fixture_free(f);
    return c;
}

static void close_scene(scene *c)
{
    squint_session_close(&c->s);
    squint_model_close(&c->m);
}

static uint8_t *make_picture(uint32_t w, uint32_t h)
{
    uint8_t *const rgb = malloc(3 * (size_t)w * h);
    uint64_t seed = w * 40000u + h;
    for (size_t i = 0; i < 3 * (size_t)w * h; i++)
        rgb[i] = (uint8_t)random_u64(&seed);
    return rgb;
}

static void show(squint_session *s, uint32_t w, uint32_t h)
{
    squint_msg msg;
    uint8_t *const rgb = make_picture(w, h);
    if (sq_session_picture(s, rgb, w, h, 3 * (size_t)w, &msg)) fail_msg("%u x %u: %s", w, h, msg.text);
    if (sq_session_encode(s, &msg)) fail_msg("%u x %u: %s", w, h, msg.text);
    free(rgb);
}

static void assert_row(const float *got, const double *want, const char *what, uint32_t row)
{
    for (int i = 0; i < D; i++)
        if (!(fabs((double)got[i] - want[i]) <= BOUND))
            fail_msg("%s, token %u, %d: %.8g, not %.8g", what, row, i, (double)got[i], want[i]);
}

/* ---- tokens ---- */

/* Each image's rows, from a model of one square. */
static void encode_images(const float *pixels, unsigned n, double rows[MOST_IMAGES][BASE][D])
{
    scene c = open_scene(routed_fixture());
    for (unsigned i = 0; i < n; i++) {
        memcpy(c.s->pixels, pixels + (size_t)i * IMAGE, IMAGE * sizeof *pixels);
        assert_int_equal(sq_session_encode(c.s, NULL), SQUINT_OK);
        for (int row = 0; row < BASE; row++)
            for (int j = 0; j < D; j++)
                rows[i][row][j] = (double)c.s->vision[row * D + j];
    }
    close_scene(&c);
}

/* The map of all tiles at row y, column x. */
static const double *cell(double rows[MOST_IMAGES][BASE][D], unsigned columns, unsigned y, unsigned x)
{
    return rows[1 + y / UNIT * columns + x / UNIT][y % UNIT * UNIT + x % UNIT];
}

/* A value of a map that is kept from row `top`, column `left` on, between its cells. */
static double between(double rows[MOST_IMAGES][BASE][D], const sq_tiles *t, sq_kept_map k, double y, double x, int i)
{
    const unsigned y0 = (unsigned)y, x0 = (unsigned)x, y1 = y0 + (y0 + 1 < k.rows), x1 = x0 + (x0 + 1 < k.columns);
    const double low = y - y0, right = x - x0;
    const double top = (1 - right) * cell(rows, t->columns, k.y + y0, k.x + x0)[i] +
                       right * cell(rows, t->columns, k.y + y0, k.x + x1)[i];
    const double bottom = (1 - right) * cell(rows, t->columns, k.y + y1, k.x + x0)[i] +
                          right * cell(rows, t->columns, k.y + y1, k.x + x1)[i];
    return (1 - low) * top + low * bottom;
}

static double place(unsigned o, unsigned in, unsigned out) { return fmax((o + 0.5) * in / out - 0.5, 0); }

/* The rules of vision.md 4.3, a token at a time. */
static void check_tokens(const squint_session *s, const float newline[D])
{
    static double rows[MOST_IMAGES][BASE][D];
    const sq_llava_state *const state = sq_llava_state_of(s);
    const sq_tiles *const t = &state->tiles;
    const sq_kept_map kept = state->kept_map;
    const unsigned w = state->tile_tokens.w, h = state->tile_tokens.h;
    double want[D];
    encode_images(s->pixels, 1 + t->columns * t->rows, rows);
    for (uint32_t i = 0; i < BASE; i++)
        assert_row(s->vision + i * D, rows[0][i], "base", i);
    for (uint32_t y = 0; y < h; y++)
        for (uint32_t x = 0; x <= w; x++) {
            const uint32_t token = BASE + y * (w + 1) + x;
            for (int i = 0; i < D; i++)
                want[i] = x == w ? (double)newline[i]
                                 : between(rows, t, kept, place(y, kept.rows, h), place(x, kept.columns, w), i);
            assert_row(s->vision + token * D, want, "tiles", token);
        }
    assert_int_equal(s->n_vision, BASE + h * (w + 1));
    assert_int_equal(s->n_vision_base, BASE);
}

static void tokens_follow_the_rules(void **state)
{
    (void)state;
    static const struct {
        uint32_t w, h, tokens; /* tokens of the rules, by hand */
    } pictures[] = {
        {24, 24, BASE + 6 * 7},  /* 2 x 2 tiles, all of it kept */
        {12, 12, BASE + 4 * 4},  /* 1 x 2: 3 of 6 rows show it; (6 - 3) / 2 = 1 is cut off twice, 4 remain */
        {64, 48, BASE + 4 * 7},  /* 2 x 2: int(48 * 6 / 64) = 4 rows */
        {48, 64, BASE + 6 * 5},  /* 4 columns */
        {50, 10, BASE + 1 * 10}, /* 3 x 1: int(10 * 9 / 50) = 1 row */
        {10, 50, BASE + 9 * 2},  {192, 108, BASE + 4 * 7}, /* int(3.375) = 3 rows, and one more */
    };
    float newline[D];
    fixture_values(newline, D, 7000, 0, 1);
    scene c = open_scene(anyres_fixture());
    assert_int_equal(c.m->n_vision, MOST);
    assert_int_equal(c.m->n_vision_base, BASE);
    for (size_t i = 0; i < SQ_COUNT(pictures); i++) {
        show(c.s, pictures[i].w, pictures[i].h);
        if (c.s->n_vision != pictures[i].tokens)
            fail_msg("%u x %u: %u tokens, not %u", pictures[i].w, pictures[i].h, c.s->n_vision, pictures[i].tokens);
        check_tokens(c.s, newline);
    }
    close_scene(&c);
}

/* squint.vision.max_num_patches: a map is shrunk to some so many tiles' worth. */
static void large_maps_are_shrunk(void **state)
{
    (void)state;
    static const struct {
        uint32_t most, w, h, columns, rows;
    } cases[] = {
        {1, 24, 24, 3, 3}, /* 6 / sqrt(36 / 9) */
        {1, 64, 48, 3, 2}, /* sqrt(24 / 9) = 1.63: 6 and 4 */
        {1, 50, 10, 9, 1}, /* as many cells as one tile has */
        {2, 24, 24, 4, 4}, /* 4.24 */
        {3, 48, 64, 4, 6}, /* 24 cells of 27 */
        {4, 24, 24, 6, 6},
    };
    float newline[D];
    fixture_values(newline, D, 7000, 0, 1);
    for (size_t i = 0; i < SQ_COUNT(cases); i++) {
        fixture *f = anyres_fixture();
        fixture_u32(f, "squint.vision.max_num_patches", cases[i].most);
        scene c = open_scene(f);
        show(c.s, cases[i].w, cases[i].h);
        assert_int_equal(sq_llava_state_of(c.s)->tile_tokens.w, cases[i].columns);
        assert_int_equal(sq_llava_state_of(c.s)->tile_tokens.h, cases[i].rows);
        assert_true(c.s->n_vision <= c.m->n_vision);
        check_tokens(c.s, newline);
        close_scene(&c);
    }
}

/* The most that a file's pictures can have, by trying them. */
static void no_picture_has_more_tokens_than_the_most(void **state)
{
    (void)state;
    for (uint32_t most = 0; most <= 4; most++) {
        fixture *f = anyres_fixture();
        fixture_u32(f, "squint.vision.max_num_patches", most);
        scene c = open_scene(f);
        uint32_t seen = 0;
        for (uint32_t w = 1; w < 40; w++)
            for (uint32_t h = 1; h < 40; h++) {
                uint8_t *const rgb = make_picture(w, h);
                assert_int_equal(sq_session_picture(c.s, rgb, w, h, 3 * (size_t)w, NULL), SQUINT_OK);
                seen = c.s->n_vision > seen ? c.s->n_vision : seen;
                assert_true(c.s->n_vision <= c.m->n_vision);
                free(rgb);
            }
        assert_int_equal(seen, c.m->n_vision);
        close_scene(&c);
    }
}

/* What is all length has no rows left, or rows of nothing but their ends. */
static void extreme_shapes(void **state)
{
    (void)state;
    static const struct {
        uint32_t w, h, columns, rows;
    } cases[] = {{1000, 1, 6, 0}, {1, 1000, 0, 6},     {30000, 1, 6, 0},
                 {1, 1, 6, 6},    {32768, 9000, 6, 2}, {8999, 1500, 6, 2}};
    float newline[D];
    fixture_values(newline, D, 7000, 0, 1);
    fixture *f = anyres_fixture();
    fixture_u32s(f, "clip.vision.image_grid_pinpoints", (const uint32_t[]){24, 24}, 2);
    scene c = open_scene(f);
    for (size_t i = 0; i < SQ_COUNT(cases); i++) {
        show(c.s, cases[i].w, cases[i].h);
        const sq_size tokens = sq_llava_state_of(c.s)->tile_tokens;
        if (tokens.w != cases[i].columns || tokens.h != cases[i].rows)
            fail_msg("%u x %u: %u x %u", cases[i].w, cases[i].h, tokens.w, tokens.h);
        check_tokens(c.s, newline);
    }
    close_scene(&c);
}

/* ---- what the engine makes of it ---- */

static squint_result caption(squint_session *s, uint32_t w, uint32_t h, const squint_caption_options *options)
{
    squint_result r;
    squint_msg msg;
    uint8_t *const rgb = make_picture(w, h);
    if (squint_caption_rgb(s, rgb, w, h, 3 * (size_t)w, options, &r, &msg)) fail_msg("%s", msg.text);
    free(rgb);
    return r;
}

/* One session, pictures of all sizes: each caption is what a session of its own writes. */
static void captions_of_all_sizes(void **state)
{
    (void)state;
    static const uint32_t sizes[][2] = {{24, 24}, {1000, 1}, {64, 48}, {12, 12}, {24, 24}};
    scene c = open_scene(anyres_fixture());
    for (size_t i = 0; i < SQ_COUNT(sizes); i++) {
        const squint_result r = caption(c.s, sizes[i][0], sizes[i][1], NULL);
        squint_session *fresh = open_session(c.m);
        const squint_result own = caption(fresh, sizes[i][0], sizes[i][1], NULL);
        assert_string_equal(r.text, own.text);
        assert_int_equal(r.n_vision_tokens, own.n_vision_tokens);
        assert_int_equal(r.n_prompt_tokens, 1 + r.n_vision_tokens + 2);
        assert_memory_equal(r.prompt, own.prompt, r.n_prompt_tokens * sizeof *r.prompt);
        for (unsigned t = 0; t < r.n_vision_tokens; t++)
            assert_int_equal(r.prompt[1 + t], UINT32_MAX);
        assert_true(r.prompt[1 + r.n_vision_tokens] != UINT32_MAX);
        assert_true(r.kept[0] == r.n_vision_tokens && r.kept[1] == r.n_vision_tokens / 2);
        squint_session_close(&fresh);
    }
    close_scene(&c);
}

static void assert_rectangle(const squint_grid *g, double x, double y, double w, double h)
{
    assert_true(fabs(g->x - x) < 1e-9 && fabs(g->y - y) < 1e-9);
    assert_true(fabs(g->w - w) < 1e-9 && fabs(g->h - h) < 1e-9);
}

static void grids_lie_on_the_picture(void **state)
{
    (void)state;
    scene c = open_scene(anyres_fixture());
    squint_result r = caption(c.s, 64, 48, NULL);
    assert_int_equal(r.n_grids, 2);
    assert_memory_equal(&r.grid, r.grids, sizeof r.grid);
    assert_int_equal(r.grids[0].first, 1);
    assert_int_equal(r.grids[0].columns, 3);
    assert_int_equal(r.grids[0].rows, 3);
    assert_int_equal(r.grids[0].row_tokens, 3);
    assert_rectangle(&r.grids[0], 0, 0, 64, 48);
    assert_int_equal(r.grids[1].first, 1 + BASE);
    assert_int_equal(r.grids[1].columns, 6);
    assert_int_equal(r.grids[1].rows, 4);
    assert_int_equal(r.grids[1].row_tokens, 7);
    assert_int_equal(r.grids[1].picture_w, 64);
    assert_int_equal(r.grids[1].picture_h, 48);
    /* 24 x 18 of 24 x 24 pixels, 3 down; rows 1 to 4 of 4 pixels each begin at 4: a pixel, or 64/24 of the picture's.
     */
    assert_rectangle(&r.grids[1], 0, 64.0 / 24, 64, 16 * 48.0 / 18);
    r = caption(c.s, 30000, 1, NULL);
    assert_int_equal(r.n_grids, 2);
    assert_int_equal(r.grids[1].rows, 0);
    assert_true(r.tower_macs < 2 * (9 * 48 * 16 + 2 * (10 * 16 * (4 * 16 + 2 * 32) + 2 * 100 * 16))); /* one image */
    assert_int_equal(r.n_vision_tokens, BASE);
    close_scene(&c);
}

typedef struct told {
    unsigned n_pixels, n_towers, n_projected, rows, last_done, last_total, stop_at;
    const float *pixels;
} told;

static void note(void *user, sq_trace_what what, int layer, const void *data, uint32_t rows, uint32_t cols)
{
    told *const t = user;
    (void)layer;
    if (what == SQ_TRACE_PIXELS) {
        assert_ptr_equal(data, t->pixels + (size_t)t->n_pixels++ * IMAGE);
        assert_int_equal(cols, IMAGE);
    }
    t->n_towers += what == SQ_TRACE_TOWER;
    t->n_projected += what == SQ_TRACE_PROJECTED;
    if (what == SQ_TRACE_PROJECTED) t->rows = rows;
}

static bool count_steps(void *user, squint_stage stage, unsigned done, unsigned total)
{
    told *const t = user;
    if (stage != SQUINT_STAGE_TOWER) return true;
    assert_int_equal(done, t->last_done + 1);
    t->last_done = done;
    t->last_total = total;
    return done != t->stop_at;
}

static void images_are_traced_in_order(void **state)
{
    (void)state;
    scene c = open_scene(anyres_fixture());
    told t = {.pixels = c.s->pixels};
    c.s->trace = note;
    c.s->trace_user = &t;
    const squint_result r = caption(c.s, 64, 48, &(squint_caption_options){.on_progress = count_steps, .user = &t});
    assert_int_equal(t.n_pixels, 5);
    assert_int_equal(t.n_towers, 5);
    assert_int_equal(t.n_projected, 1);
    assert_int_equal(t.rows, r.n_vision_tokens);
    assert_int_equal(t.last_done, 10); /* two layers run of each */
    assert_int_equal(t.last_total, 10);
    const double image = 9 * 48 * 16 + 2 * (10 * 16 * (4 * 16 + 2 * 32) + 2 * 100 * 16);
    assert_true(r.tower_macs == 5 * image + (BASE + 24) * 2 * 16 * 16);
    close_scene(&c);
}

static void any_step_can_be_the_last(void **state)
{
    (void)state;
    scene c = open_scene(anyres_fixture());
    uint8_t *const rgb = make_picture(64, 48);
    for (unsigned step = 1; step <= 10; step++) {
        told t = {.stop_at = step};
        squint_result r;
        const squint_caption_options options = {.on_progress = count_steps, .user = &t};
        assert_int_equal(squint_caption_rgb(c.s, rgb, 64, 48, 192, &options, &r, NULL), SQUINT_ERR_CANCELLED);
        assert_int_equal(t.last_done, step);
    }
    free(rgb);
    close_scene(&c);
}

static void a_picture_must_fit_the_session(void **state)
{
    (void)state;
    scene c = open_scene(anyres_fixture());
    squint_session *s;
    squint_msg msg;
    const sq_limits limits = {.max_rows = 40, .max_tokens = 40, .max_logits = 1, .max_vision = 36};
    uint8_t *const rgb = make_picture(64, 48);
    assert_int_equal(sq_session_open_limits(&s, c.m, NULL, &limits, NULL), SQUINT_OK);
    assert_int_equal(sq_session_picture(s, rgb, 64, 48, 192, &msg), SQUINT_ERR_LIMIT);
    assert_string_equal(msg.text, "the picture has 37 vision tokens; this session holds 36");
    assert_int_equal(sq_session_picture(s, rgb, 12, 12, 36, &msg), SQUINT_OK);
    squint_session_close(&s);
    free(rgb);
    close_scene(&c);
}

/* ---- mod.target ---- */

static fixture *spared_fixture(bool tiled)
{
    fixture *f = tiled ? anyres_fixture() : routed_fixture();
    fixture_str(f, "mod.target", "vision_hr");
    return f;
}

/* The base tokens have no score and are run by every layer; of the others the layers keep their ratio. */
static void base_tokens_can_be_spared(void **state)
{
    (void)state;
    static const float ratios[N_LAYERS] = {1, 0.5f, 1, 0.3f};
    scene c = open_scene(spared_fixture(true));
    const squint_result r = caption(c.s, 64, 48, NULL);
    const unsigned fine = r.n_vision_tokens - BASE;
    assert_int_equal(fine, 28);
    for (unsigned l = 0; l < N_LAYERS; l++) {
        squint_route route;
        assert_int_equal(squint_session_route(c.s, l, &route, NULL), SQUINT_OK);
        const unsigned kept = (unsigned)((float)fine * ratios[l]);
        assert_int_equal(r.kept[l], BASE + kept);
        assert_int_equal(route.n_kept_prompt, r.n_prompt_tokens - fine + kept);
        for (unsigned i = 0; i < 1 + BASE; i++)
            assert_int_equal(route.kept[i], i);
        for (unsigned i = 0; route.scores && i < r.n_prompt_tokens; i++)
            assert_int_equal(!isnan(route.scores[i]), i >= 1 + BASE && i < 1 + BASE + fine);
    }
    close_scene(&c);
}

/* Without tiles all are targets, and a picture without rows of tiles is one that nothing is skipped of. */
static void what_there_is_none_of_is_not_spared(void **state)
{
    (void)state;
    scene plain = open_scene(spared_fixture(false)), tiled = open_scene(spared_fixture(true));
    squint_result r = caption(plain.s, 64, 48, NULL);
    assert_int_equal(r.kept[1], 4);
    r = caption(tiled.s, 30000, 1, NULL);
    assert_int_equal(r.n_vision_tokens, BASE);
    for (unsigned l = 0; l < N_LAYERS; l++)
        assert_int_equal(r.kept[l], BASE);
    close_scene(&plain);
    close_scene(&tiled);
}

/* Budgets and schedules count what is routed. */
static void predictions_know_what_is_spared(void **state)
{
    (void)state;
    scene spared = open_scene(spared_fixture(true)), all = open_scene(anyres_fixture());
    assert_int_equal(sq_mod_rows(spared.s, 1, MOST + 3, MOST, 1), 3 + BASE + 21);
    assert_int_equal(sq_mod_rows(spared.s, 1, MOST + 3, MOST, 0), 3 + BASE);
    assert_int_equal(sq_mod_rows(all.s, 1, MOST + 3, MOST, 1), 3 + 25);
    const sq_decoder *const net = &sq_llava_of(spared.s)->decoder;
    const uint32_t text = spared.s->limits.max_tokens - MOST;
    assert_int_equal(sq_mod_capacity(spared.s, net, 1), text + BASE + 21);
    assert_int_equal(squint_session_measure(spared.s, NULL), SQUINT_OK);
    const squint_result r = caption(spared.s, 24, 24, &(squint_caption_options){.budget_ms = 1e-3});
    assert_int_equal(r.forecast.outcome, SQUINT_BUDGET_TOO_SMALL);
    assert_int_equal(r.kept[1], BASE);
    close_scene(&spared);
    close_scene(&all);
}

/* ---- files ---- */

static void assert_refused(fixture *f, squint_err err, const char *words)
{
    squint_model *m;
    squint_msg msg = {""};
    const squint_err got = fixture_open(&m, f, NULL, &msg);
    if (got != err || !strstr(msg.text, words)) fail_msg("%d, \"%s\", not \"%s\"", (int)got, msg.text, words);
    assert_null(m);
    fixture_free(f);
}

static fixture *with_pinpoints(const uint32_t *sides, size_t n)
{
    fixture *f = anyres_fixture();
    fixture_u32s(f, "clip.vision.image_grid_pinpoints", sides, n);
    return f;
}

static void hostile_pinpoints(void **state)
{
    (void)state;
    static const char not_array[] = "key clip.vision.image_grid_pinpoints: missing, or not an array of 1 to 64";
    static const struct {
        uint32_t sides[2];
        const char *words;
    } pairs[] = {
        {{13, 24}, "13 x 24 is not a multiple of clip.vision.image_size"},
        {{24, 13}, "24 x 13 is not a multiple of clip.vision.image_size"},
        {{0, 24}, "0 x 24 is not a multiple"},
        {{24, 0}, "24 x 0 is not a multiple"},
        {{12 * 65, 12}, "780 x 12 is not a canvas of at most 64 tiles"},
        {{4294967292u, 4294967292u}, "4294967292 x 4294967292 is not a canvas of at most 64 tiles"},
        {{12, 4294967292u}, "is not a canvas of at most 64 tiles"},
    };
    for (size_t i = 0; i < SQ_COUNT(pairs); i++)
        assert_refused(with_pinpoints(pairs[i].sides, 2), SQUINT_ERR_FORMAT, pairs[i].words);
    uint32_t many[130];
    for (size_t i = 0; i < SQ_COUNT(many); i++)
        many[i] = 24;
    assert_refused(with_pinpoints(many, 130), SQUINT_ERR_FORMAT, not_array);
    assert_refused(with_pinpoints(many, 3), SQUINT_ERR_FORMAT, not_array);
    assert_refused(with_pinpoints(many, 0), SQUINT_ERR_FORMAT, not_array);
    fixture *f = anyres_fixture();
    fixture_drop(f, "clip.vision.image_grid_pinpoints");
    assert_refused(f, SQUINT_ERR_FORMAT, not_array);
    f = anyres_fixture();
    fixture_u32(f, "clip.vision.image_grid_pinpoints", 24);
    assert_refused(f, SQUINT_ERR_FORMAT, not_array);
    f = with_pinpoints(many, 2);
    fixture_f32s(f, "clip.vision.image_grid_pinpoints", (const float[]){24, 24}, 2);
    assert_refused(f, SQUINT_ERR_FORMAT, "image_grid_pinpoints");
    fixture *most = with_pinpoints(many, 128); /* as many as may be */
    scene c = open_scene(most);
    close_scene(&c);
}

static void hostile_keys(void **state)
{
    (void)state;
    fixture *f = anyres_fixture();
    fixture_u32(f, "squint.vision.max_num_patches", 65);
    assert_refused(f, SQUINT_ERR_FORMAT, "key squint.vision.max_num_patches: 65 is not from 0 to 64");
    f = anyres_fixture();
    fixture_drop(f, "model.image_newline");
    assert_refused(f, SQUINT_ERR_FORMAT, "tensor model.image_newline is missing");
    f = anyres_fixture();
    fixture_weights(f, "model.image_newline", D + 1, 0, 7000, 0, 1);
    assert_refused(f, SQUINT_ERR_FORMAT, "tensor model.image_newline");
    f = anyres_fixture();
    fixture_u32(f, "llama.context_length", MOST);
    assert_refused(f, SQUINT_ERR_FORMAT, "key llama.context_length: 51 is not more than the vision tokens of an image");
    f = anyres_fixture();
    fixture_str(f, "squint.vision.type", "clip_anyres2");
    assert_refused(f, SQUINT_ERR_UNSUPPORTED, "\"clip_anyres2\" is not clip_stretch, clip_pad, clip_crop");
}

/* Files of llama.cpp's converter say it with the keys of LLaVA's configuration. */
static void foreign_files_are_tiled_too(void **state)
{
    (void)state;
    static const struct {
        const char *aspect, *merge; /* NULL: no key */
        bool has_pinpoints, tiled;
    } cases[] = {
        {NULL, NULL, true, true},     {"anyres", "spatial_unpad", true, true},
        {"anyres", NULL, true, true}, {NULL, "spatial_unpad", true, true},
        {"pad", "flat", true, false}, {"pad", NULL, false, false},
        {NULL, NULL, false, false},   {NULL, "flat", false, false},
    };
    for (size_t i = 0; i < SQ_COUNT(cases); i++) {
        fixture *f = anyres_fixture();
        fixture_drop(f, "squint.vision.type");
        if (!cases[i].has_pinpoints) fixture_drop(f, "clip.vision.image_grid_pinpoints");
        if (cases[i].aspect) fixture_str(f, "clip.vision.image_aspect_ratio", cases[i].aspect);
        if (cases[i].merge) fixture_str(f, "clip.vision.mm_patch_merge_type", cases[i].merge);
        scene c = open_scene(f);
        if (c.m->n_vision != (cases[i].tiled ? MOST : BASE)) fail_msg("case %zu: %u tokens", i, c.m->n_vision);
        assert_int_equal(c.m->image_rule.fit, cases[i].tiled ? SQ_FIT_STRETCH : SQ_FIT_PAD);
        close_scene(&c);
    }
    static const char *const merges[] = {"flat", "spatial", ""};
    for (size_t i = 0; i < SQ_COUNT(merges); i++) {
        fixture *f = anyres_fixture();
        fixture_drop(f, "squint.vision.type");
        fixture_str(f, "clip.vision.mm_patch_merge_type", merges[i]);
        assert_refused(f, SQUINT_ERR_UNSUPPORTED, "key clip.vision.mm_patch_merge_type: not \"spatial_unpad\"");
    }
    fixture *f = anyres_fixture();
    fixture_drop(f, "squint.vision.type");
    fixture_drop(f, "clip.vision.image_grid_pinpoints");
    fixture_str(f, "clip.vision.image_aspect_ratio", "anyres");
    assert_refused(f, SQUINT_ERR_FORMAT, "key clip.vision.image_grid_pinpoints: missing");
    f = routed_fixture();
    fixture_str(f, "clip.vision.image_aspect_ratio", "square"); /* CLIP's own rule */
    scene c = open_scene(f);
    assert_int_equal(c.m->image_rule.fit, SQ_FIT_CROP);
    close_scene(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokens_follow_the_rules),
        cmocka_unit_test(large_maps_are_shrunk),
        cmocka_unit_test(no_picture_has_more_tokens_than_the_most),
        cmocka_unit_test(extreme_shapes),
        cmocka_unit_test(captions_of_all_sizes),
        cmocka_unit_test(grids_lie_on_the_picture),
        cmocka_unit_test(images_are_traced_in_order),
        cmocka_unit_test(any_step_can_be_the_last),
        cmocka_unit_test(a_picture_must_fit_the_session),
        cmocka_unit_test(base_tokens_can_be_spared),
        cmocka_unit_test(what_there_is_none_of_is_not_spared),
        cmocka_unit_test(predictions_know_what_is_spared),
        cmocka_unit_test(hostile_pinpoints),
        cmocka_unit_test(hostile_keys),
        cmocka_unit_test(foreign_files_are_tiled_too),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
