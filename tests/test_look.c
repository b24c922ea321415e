/*
 * What was looked at: as the engine has it, as PyTorch has it, in traces and in pictures.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/engine.h"
#include "tests/command.h"
#include "tests/fixture.h"
#include "tests/support.h"
#include "tools/squint/cli.h"
#include "tools/squint/sight.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

enum { N_LAYERS = 4, N_VISION = 9, MAX_PLACES = 256, TINY_LAYERS = 16 };

static const char picture[] = "golden/images/baseline-420.jpg";

/* ---- The engine's own words ---------------------------------------------------------------- */

/* What the trace told of each place of the sequence. */
typedef struct heard {
    squint_session *s;
    bool runs[N_LAYERS][MAX_PLACES];
    float scores[N_LAYERS][MAX_PLACES], weights[N_LAYERS][MAX_PLACES];
    bool all_scored; /* gamma: every token has a score; else the vision tokens, from place 1 on */
} heard;

static void hear(void *user, sq_trace_what what, int layer, const void *data, uint32_t rows, uint32_t cols)
{
    heard *const h = user;
    const uint32_t first = h->s->n_past;
    (void)rows;
    for (uint32_t i = 0; i < cols && what == SQ_TRACE_KEPT; i++)
        h->runs[layer][first + ((const uint32_t *)data)[i]] = true;
    if (what != SQ_TRACE_SCORES && what != SQ_TRACE_WEIGHTS) return;
    float *const to = what == SQ_TRACE_SCORES ? h->scores[layer] : h->weights[layer];
    memcpy(to + first + (h->all_scored ? 0 : 1), data, cols * sizeof *to);
}

static heard *new_heard(squint_session *s, bool all_scored)
{
    heard *const h = calloc(1, sizeof *h);
    h->s = s;
    h->all_scored = all_scored;
    for (int l = 0; l < N_LAYERS; l++)
        for (int i = 0; i < MAX_PLACES; i++)
            h->scores[l][i] = h->weights[l][i] = NAN;
    s->trace = hear;
    s->trace_user = h;
    return h;
}

static bool same_float(float a, float b) { return a == b || (isnan(a) && isnan(b)); }

static void assert_route(const heard *h, const squint_result *r, unsigned layer, bool chooses)
{
    squint_route route;
    squint_msg msg;
    bool runs[MAX_PLACES] = {0};
    if (squint_session_route(h->s, layer, &route, &msg)) fail_msg("%s", msg.text);
    assert_int_equal(route.chooses, chooses);
    assert_int_equal(route.n_tokens, h->s->n_past);
    unsigned in_prompt = 0;
    for (unsigned i = 0; i < route.n_kept; i++) {
        if (i) assert_true(route.kept[i] > route.kept[i - 1]);
        runs[route.kept[i]] = true;
        in_prompt += route.kept[i] < r->n_prompt_tokens;
    }
    assert_int_equal(route.n_kept_prompt, in_prompt);
    unsigned vision = 0;
    for (unsigned i = 0; i < route.n_tokens; i++) {
        vision += runs[i] && r->prompt[i < r->n_prompt_tokens ? i : 0] == UINT32_MAX;
        /* p-MoD's passes of text alone are dense, and nobody is told of kept rows then */
        const bool told = chooses && (h->all_scored || i < r->n_prompt_tokens);
        assert_int_equal(runs[i], told ? h->runs[layer][i] : true);
        if (!chooses) continue;
        assert_true(same_float(route.scores[i], h->scores[layer][i]));
        assert_true(same_float(route.weights[i], h->weights[layer][i]));
    }
    assert_int_equal(vision, r->kept[layer]);
    if (!chooses) assert_null(route.scores);
}

/* The sight has the same: patches in the image's place, words in theirs. */
static void assert_sight(const heard *h, const sight *s, const bool *chooses)
{
    for (unsigned l = 0; l < s->n_layers; l++) {
        const sight_layer *const layer = &s->layers[l];
        assert_int_equal(layer->chooses, chooses[l]);
        for (unsigned i = 0; i < s->n_vision && chooses[l]; i++) {
            assert_int_equal(layer->kept[i], h->runs[l][1 + i]);
            assert_true(same_float(layer->scores[i], h->scores[l][1 + i]));
            assert_true(same_float(layer->weights[i], h->weights[l][1 + i]));
        }
        for (unsigned i = 0; i < s->n_words; i++) {
            const sight_word *const w = &s->words[i];
            const bool may_skip = chooses[l] && h->all_scored && w->ran;
            assert_int_equal(w->skipped[l], may_skip && !h->runs[l][w->place]);
            assert_true(same_float(w->scores[l], chooses[l] && w->ran ? h->scores[l][w->place] : NAN));
        }
    }
}

static squint_session *open_session(const squint_model *m, bool routes)
{
    squint_session *s;
    squint_msg msg;
    const squint_session_options o = {.threads = 2, .max_tokens = 24, .routes = routes};
    if (squint_session_open(&s, m, &o, &msg)) fail_msg("%s", msg.text);
    return s;
}

static squint_result caption(squint_session *s, const squint_caption_options *o)
{
    squint_result r;
    squint_msg msg;
    if (squint_caption_file(s, test_path(picture), o, &r, &msg)) fail_msg("%s", msg.text);
    return r;
}

static const bool second_and_last[N_LAYERS] = {false, true, false, true};

static fixture *small_fixture(const char *mode)
{
    fixture *const f = fixture_decoder(N_LAYERS);
    if (strcmp(mode, "pmod"))
        fixture_gates(f, mode, second_and_last);
    else
        fixture_routing(f, second_and_last, (const float[]){1, 0.5f, 1, 0.5f});
    fixture_tower(f);
    float *const end = fixture_floats(f, "output.weight") + (size_t)2 * 16;
    for (int i = 0; i < 16; i++)
        end[i] = 0;
    return f;
}

static void check_mode(const char *mode, bool all_scored, bool *anyone_skipped)
{
    fixture *const f = small_fixture(mode);
    squint_model *m = fixture_model(f, NULL);
    squint_session *s = open_session(m, true);
    for (uint64_t seed = 0; seed < 4; seed++) { /* captions of their own; nothing stays of the one before */
        heard *const h = new_heard(s, all_scored);
        const squint_result r = caption(s, &(squint_caption_options){.temperature = 3, .seed = seed});
        assert_int_equal(s->n_past, r.n_prompt_tokens + r.n_tokens - (r.finish == SQUINT_FINISH_LENGTH));
        for (unsigned l = 0; l < N_LAYERS; l++) {
            assert_route(h, &r, l, second_and_last[l]);
            for (unsigned i = r.n_prompt_tokens; i < s->n_past && second_and_last[l]; i++)
                *anyone_skipped |= !h->runs[l][i];
        }
        sight seen;
        sight_of_caption(&seen, m, s, &r, "", "");
        assert_int_equal(seen.n_words, r.n_prompt_tokens - N_VISION + r.n_tokens);
        assert_sight(h, &seen, second_and_last);
        sight_free(&seen);
        free(h);
    }
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

static void routes_are_the_engines(void **state)
{
    (void)state;
    bool skipped = false;
    check_mode("pmod", false, &skipped);
    check_mode("gamma-released-mgm", true, &skipped);
    check_mode("threshold", true, &skipped);
    skipped = false;
    check_mode("gamma-released", true, &skipped);
    assert_true(skipped); /* generated tokens, by gamma's rule */
}

static void dense_layers_keep_all(void **state)
{
    (void)state;
    fixture *const f = small_fixture("pmod");
    squint_model *m;
    assert_int_equal(fixture_open(&m, f, &(squint_model_options){.mode = "dense"}, NULL), SQUINT_OK);
    squint_session *s = open_session(m, true);
    caption(s, NULL);
    for (unsigned l = 0; l < N_LAYERS; l++) {
        squint_route route;
        assert_int_equal(squint_session_route(s, l, &route, NULL), SQUINT_OK);
        assert_false(route.chooses);
        assert_null(route.scores);
        assert_int_equal(route.n_kept, s->n_past);
    }
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

/* Without being asked nothing is kept but what the caches know; and before a caption there is nothing to tell. */
static void routes_cost_only_who_asks(void **state)
{
    (void)state;
    fixture *const f = small_fixture("pmod");
    squint_model *m = fixture_model(f, NULL);
    const squint_session_options without = {.threads = 1}, with = {.threads = 1, .routes = true};
    assert_true(squint_session_bytes(m, &without) < squint_session_bytes(m, &with));
    squint_session *s = open_session(m, false);
    squint_route route;
    squint_msg msg;
    assert_int_equal(squint_session_route(s, 0, &route, &msg), SQUINT_ERR_ARGUMENT);
    assert_non_null(strstr(msg.text, "no caption"));
    caption(s, NULL);
    assert_int_equal(squint_session_route(s, 1, &route, &msg), SQUINT_OK);
    assert_true(route.chooses && route.n_kept_prompt == 3 + 4);
    assert_null(route.scores);
    assert_null(route.weights);
    assert_int_equal(squint_session_route(s, N_LAYERS, &route, &msg), SQUINT_ERR_ARGUMENT);
    assert_non_null(strstr(msg.text, "layer 4"));
    assert_null(route.kept);
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

static void tokens_have_their_text(void **state)
{
    (void)state;
    fixture *const f = small_fixture("pmod");
    squint_model *m = fixture_model(f, NULL);
    squint_session *s = open_session(m, false);
    const squint_result r = caption(s, NULL);
    char text[4096] = "";
    size_t n = 0;
    for (unsigned i = 0; i < r.n_tokens; i++)
        n += squint_model_token(m, r.tokens[i], text + n, sizeof text - 1 - n);
    const char *start = text + strspn(text, " ");
    size_t shared = 0;
    while (r.text[shared] && (unsigned char)r.text[shared] < 0x80 && r.text[shared] == start[shared])
        shared++;
    assert_true(shared > 3 || !r.text[shared]);                                 /* as far as it is ASCII */
    assert_int_equal(squint_model_token(m, r.prompt[0], text, sizeof text), 0); /* BOS */
    assert_int_equal(squint_model_token(m, UINT32_MAX, text, sizeof text), 0);
    assert_int_equal(squint_model_token(m, r.tokens[0], text, 0), 0);
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

/* ---- PyTorch's words ----------------------------------------------------------------------- */

static const sq_gguf_tensor *golden_tensor(const sq_gguf *g, const char *format, unsigned layer)
{
    char name[64];
    snprintf(name, sizeof name, format, layer);
    const sq_gguf_tensor *const t = sq_gguf_find(g, name);
    if (!t) fail_msg("the golden file has no tensor %s", name);
    return t;
}

/* Vision tokens are chosen before any word of the caption is read, so the golden pass over prompt and caption has the
 * same choice. Scores agree as tests/test_tiny.c says. */
static void kept_as_in_pytorch(void **state)
{
    (void)state;
    sq_gguf *g;
    squint_model *m;
    squint_result r;
    squint_msg msg;
    assert_int_equal(sq_gguf_open(&g, test_path("golden/tiny-pmod.golden.gguf"), NULL, NULL), SQUINT_OK);
    assert_int_equal(squint_model_open(&m, test_path("golden/tiny-pmod.gguf"), NULL, &msg), SQUINT_OK);
    squint_session *s = open_session(m, true);
    const sq_gguf_tensor *const rgb = golden_tensor(g, "picture", 0);
    const unsigned w = (unsigned)rgb->ne[1], h = (unsigned)rgb->ne[2];
    assert_int_equal(squint_caption_rgb(s, rgb->data, w, h, 3 * (size_t)w, NULL, &r, &msg), SQUINT_OK);
    assert_int_equal(r.grid.columns * r.grid.rows, r.n_vision_tokens);
    assert_int_equal(r.grid.first, 1);
    sight seen;
    sight_of_caption(&seen, m, s, &r, "picture", "tiny");
    unsigned n_choosing = 0;
    for (unsigned l = 0; l < r.n_layers; l++) {
        if (!seen.layers[l].chooses) continue;
        const sq_gguf_tensor *const kept = golden_tensor(g, "layer.%u.kept", l);
        const float *const scores = (const float *)(const void *)golden_tensor(g, "layer.%u.scores", l)->data;
        bool want[MAX_PLACES] = {0};
        for (uint64_t i = 0; i < kept->ne[0]; i++)
            want[((const uint32_t *)(const void *)kept->data)[i]] = true;
        for (unsigned i = 0; i < r.n_vision_tokens; i++) {
            assert_int_equal(seen.layers[l].kept[i], want[1 + i]);
            assert_true(fabsf(seen.layers[l].scores[i] - scores[i]) <= 1e-4f);
        }
        assert_int_equal(seen.layers[l].kv_prompt, 3 + seen.layers[l].n_kept);
        n_choosing++;
    }
    assert_int_equal(n_choosing, r.n_layers - 2);
    sight_free(&seen);
    squint_session_close(&s);
    squint_model_close(&m);
    sq_gguf_close(&g);
}

/* ---- Where patches lie --------------------------------------------------------------------- */

static void views_undo_the_fit(void **state)
{
    (void)state;
    static const struct {
        sq_fit fit;
        uint32_t size, w, h;
        double x, y, view_w, view_h;
    } cases[] = {
        {SQ_FIT_STRETCH, 144, 451, 300, 0, 0, 451, 300},
        {SQ_FIT_PAD, 336, 300, 200, 0, -50, 300, 300}, /* centred: (300 - 200) / 2 */
        {SQ_FIT_PAD, 336, 201, 300, -49, 0, 300, 300}, /* (300 - 201) / 2 is rounded down */
        {SQ_FIT_CROP, 100, 300, 200, 50, 0, 200, 200}, /* 150 x 100, of which columns 25 to 125 */
        {SQ_FIT_CROP, 100, 200, 300, 0, 50, 200, 200},
        {SQ_FIT_CROP, 100, 200, 200, 0, 0, 200, 200},
    };
    for (size_t i = 0; i < SQ_COUNT(cases); i++) {
        const sq_image_rule rule = {.fit = cases[i].fit, .size = cases[i].size};
        double x, y, w, h;
        sq_image_view(&rule, cases[i].w, cases[i].h, &x, &y, &w, &h);
        assert_true(fabs(x - cases[i].x) < 1e-9 && fabs(y - cases[i].y) < 1e-9);
        assert_true(fabs(w - cases[i].view_w) < 1e-9 && fabs(h - cases[i].view_h) < 1e-9);
    }
    /* 7 * 334 / 100 = 23.38 becomes 23 columns, of which 8 to 15: (23 - 7) / 2 */
    const sq_image_rule crop = {.fit = SQ_FIT_CROP, .size = 7};
    double x, y, w, h;
    sq_image_view(&crop, 334, 100, &x, &y, &w, &h);
    assert_true(fabs(x - 8 * 334.0 / 23) < 1e-9 && fabs(w - 7 * 334.0 / 23) < 1e-9 && y == 0 && h == 100);
}

static void patches_lie_in_their_grid(void **state)
{
    (void)state;
    const squint_grid g = {.columns = 4, .rows = 2, .x = -10, .y = 20, .w = 80, .h = 30};
    assert_int_equal(look_patch_at(&g, -10, 20), 0);
    assert_int_equal(look_patch_at(&g, 9.99, 34.99), 0);
    assert_int_equal(look_patch_at(&g, 10.01, 34.99), 1);
    assert_int_equal(look_patch_at(&g, 69.99, 35.01), 7);
    assert_int_equal(look_patch_at(&g, 70, 36), -1);
    assert_int_equal(look_patch_at(&g, -10.01, 36), -1);
    assert_int_equal(look_patch_at(&g, 0, 19.99), -1);
    assert_int_equal(look_patch_at(&g, 0, 50), -1);
}

/* ---- Pictures ------------------------------------------------------------------------------ */

enum { GRID_W = 4, GRID_H = 3, CELLS = GRID_W * GRID_H, PICTURE_W = 120, PICTURE_H = 60, WIDTH = 400, GAP = 8 };

static const uint8_t flat[3] = {200, 80, 120};

/* Patch i is kept by the first i % 4 of three layers that choose: 1, 2 and 3 of 4. */
static sight made_sight(double x, double y, double w, double h)
{
    sight s = {.file = strdup("made.png"),
               .caption = strdup("a flat picture"),
               .model = strdup("no model"),
               .mode = strdup("pmod"),
               .device = strdup("cuda (NVIDIA H200)"),
               .grid = {.columns = GRID_W,
                        .rows = GRID_H,
                        .picture_w = PICTURE_W,
                        .picture_h = PICTURE_H,
                        .x = x,
                        .y = y,
                        .w = w,
                        .h = h},
               .n_vision = CELLS,
               .n_layers = 4,
               .n_prompt = CELLS,
               .n_sequence = CELLS};
    s.layers = calloc(4, sizeof *s.layers);
    s.layers[0].n_kept = CELLS;
    for (int l = 1; l < 4; l++) {
        sight_layer *const layer = &s.layers[l];
        *layer = (sight_layer){.chooses = true,
                               .kept = calloc(CELLS, sizeof(bool)),
                               .scores = calloc(CELLS, sizeof(float)),
                               .weights = calloc(CELLS, sizeof(float))};
        for (int i = 0; i < CELLS; i++)
            layer->n_kept += layer->kept[i] = i % 4 >= l;
    }
    return s;
}

enum { TILED = CELLS + 6 };

/* And four patches over the left half, with a token at each row's end; layer 2 keeps the first of each row. */
static sight tiled_sight(void)
{
    sight s = made_sight(0, 0, PICTURE_W, PICTURE_H);
    s.more[s.n_more++] = (squint_grid){.first = CELLS,
                                       .columns = 2,
                                       .rows = 2,
                                       .row_tokens = 3,
                                       .picture_w = PICTURE_W,
                                       .picture_h = PICTURE_H,
                                       .w = PICTURE_W / 2.0,
                                       .h = PICTURE_H};
    s.n_vision = s.n_prompt = s.n_sequence = TILED;
    s.layers[0].n_kept = TILED;
    for (int l = 1; l < 4; l++) {
        sight_layer *const layer = &s.layers[l];
        layer->kept = realloc(layer->kept, TILED * sizeof *layer->kept);
        layer->scores = realloc(layer->scores, TILED * sizeof *layer->scores);
        layer->weights = realloc(layer->weights, TILED * sizeof *layer->weights);
        for (int i = CELLS; i < TILED; i++) {
            layer->scores[i] = layer->weights[i] = 0;
            layer->n_kept += layer->kept[i] = l == 2 && i % 3 == CELLS % 3;
        }
    }
    return s;
}

static canvas painted(const sight *s, int what)
{
    canvas c;
    uint8_t *const rgb = malloc((size_t)PICTURE_W * PICTURE_H * 3);
    for (int i = 0; i < PICTURE_W * PICTURE_H; i++)
        memcpy(rgb + 3 * i, flat, 3);
    look_paint(&c, s, rgb, what, WIDTH);
    free(rgb);
    return c;
}

static const uint8_t *at(const canvas *c, double x, double y)
{
    return c->rgb + 3 * ((size_t)y * (size_t)c->w + (size_t)x);
}

/* Panels lie between the gaps; the first pixel that is not white is a panel's or a letter's, and letters are no panel's
 * whole row. */
static int panel_top(const canvas *c)
{
    for (int y = 0; y < c->h; y++) {
        int coloured = 0;
        for (int x = GAP; x < c->w - GAP; x++)
            coloured += at(c, x, y)[1] < 250;
        if (coloured == c->w - 2 * GAP) return y;
    }
    fail_msg("no panel");
    return 0;
}

/* Rounded to 64 levels. */
static bool is_colour(const uint8_t *p, double r, double g, double b)
{
    return fabs(p[0] - r) <= 4 && fabs(p[1] - g) <= 4 && fabs(p[2] - b) <= 4;
}

static void a_layer_is_painted_patch_by_patch(void **state)
{
    (void)state;
    const sight s = made_sight(0, 0, PICTURE_W, PICTURE_H);
    const canvas c = painted(&s, 2);
    assert_int_equal(c.w, WIDTH);
    const double top = panel_top(&c), w = (WIDTH - 2.0 * GAP) / GRID_W, h = (WIDTH - 2.0 * GAP) / 2 / GRID_H;
    for (int i = 0; i < CELLS; i++)
        for (int corner = 0; corner < 4; corner++) { /* a pixel and a half inside each corner */
            const double x = GAP + (i % GRID_W + corner % 2) * w + (corner % 2 ? -2 : 1);
            const double y = top + (int)(i / GRID_W + corner / 2) * h + (corner / 2 ? -2 : 1);
            const double light = i % 4 >= 2 ? 1 : 0.2;
            if (!is_colour(at(&c, x, y), flat[0] * light, flat[1] * light, flat[2] * light))
                fail_msg("patch %d is not %s", i, i % 4 >= 2 ? "bright" : "dark");
        }
    free(c.rgb);
    sight rest = s;
    sight_free(&rest);
}

/* Two of them kept: bright; one of two: between; the right half has one alone. */
static void patches_over_patches_are_mixed(void **state)
{
    (void)state;
    static const double lights[GRID_W] = {0.6, 0.2, 1, 1};
    sight s = tiled_sight();
    const canvas c = painted(&s, 2);
    const double top = panel_top(&c), w = (WIDTH - 2.0 * GAP) / GRID_W, h = (WIDTH - 2.0 * GAP) / 2 / GRID_H;
    for (int i = 0; i < CELLS; i++) {
        const double x = GAP + (i % GRID_W + 0.5) * w, y = top + ((int)(i / GRID_W) + 0.5) * h;
        const double light = lights[i % GRID_W];
        if (!is_colour(at(&c, x, y), flat[0] * light, flat[1] * light, flat[2] * light))
            fail_msg("patch %d has not %g of the light", i, light);
    }
    free(c.rgb);
    sight_free(&s);
}

/* The legend's swatches are below the panel: the colour of a patch is that of its count. */
static void a_sum_has_the_legends_colours(void **state)
{
    (void)state;
    sight s = made_sight(0, 0, PICTURE_W, PICTURE_H);
    const canvas c = painted(&s, LOOK_SUM);
    const double w = WIDTH - 2.0 * GAP, h = w / 2;
    const int top = panel_top(&c);
    const double swatch = w / 4;
    int legend = top + (int)h + 1;
    const double middle = GAP + swatch / 2;
    while (legend < c.h && !is_colour(at(&c, GAP + 3 * swatch + 2, legend), 252, 240, 120))
        legend++;
    assert_true(legend < c.h);
    double before = -1;
    for (int count = 0; count < 4; count++) {
        const uint8_t *const key = at(&c, middle + count * swatch, legend + 2);
        const double light = 0.3 * key[0] + 0.6 * key[1] + 0.1 * key[2];
        assert_true(light > before + 15); /* brighter is more */
        before = light;
        for (int i = count; i < CELLS; i += 4) {
            const double x = GAP + (i % GRID_W + 0.5) * w / GRID_W, y = top + (int)(i / GRID_W) * h / GRID_H + h / 6;
            assert_true(is_colour(at(&c, x, y), key[0], key[1], key[2]));
        }
    }
    free(c.rgb);
    sight_free(&s);
}

/* A crop of the middle third: what the tower did not see is grey on both sides. */
static void what_was_cropped_is_grey(void **state)
{
    (void)state;
    sight s = made_sight(40, 0, 40, PICTURE_H);
    const canvas c = painted(&s, 1);
    const double w = WIDTH - 2.0 * GAP, h = w / 2, y = panel_top(&c) + 0.1 * h;
    for (int i = 0; i < 20; i++) {
        const double x = GAP + (i + 0.5) * w / 20;
        const uint8_t *const p = at(&c, x, y);
        const bool seen = (i + 0.5) / 20 > 1 / 3.0 && (i + 0.5) / 20 < 2 / 3.0;
        assert_int_equal(seen, !(p[0] == p[1] && p[1] == p[2]));
        if (!seen) continue;
        const int column = (int)(((i + 0.5) / 20 * 3 - 1) * GRID_W);
        const double light = column >= 1 ? 1 : 0.2;
        assert_true(is_colour(p, flat[0] * light, flat[1] * light, flat[2] * light));
    }
    free(c.rgb);
    sight_free(&s);
}

/* Padded above and below to a square: the panel is the square, the borders are grey patches, bright or dark. */
static void padding_is_part_of_the_map(void **state)
{
    (void)state;
    sight s = made_sight(0, -30, PICTURE_W, PICTURE_W);
    const canvas c = painted(&s, 1);
    const double w = WIDTH - 2.0 * GAP;
    const int top = panel_top(&c);
    for (int i = 0; i < CELLS; i++) {
        const double x = GAP + (i % GRID_W + 0.5) * w / GRID_W, y = top + (int)(i / GRID_W) * w / GRID_H + 4;
        const double light = i % 4 >= 1 ? 1 : 0.2, share = (y - top) / w;
        const uint8_t grey[3] = {128, 128, 128}, *const base = share > 0.25 && share < 0.75 ? flat : grey;
        assert_true(is_colour(at(&c, x, y), base[0] * light, base[1] * light, base[2] * light));
    }
    free(c.rgb);
    sight_free(&s);
}

static void odd_shapes_are_painted(void **state)
{
    (void)state;
    static const unsigned sizes[][2] = {{1, 1}, {1, 4000}, {4000, 1}, {3, 2}};
    for (size_t i = 0; i < SQ_COUNT(sizes); i++)
        for (int what = LOOK_ALL; what < 4; what += what == LOOK_SUM ? 2 : 1) {
            sight s = made_sight(0, 0, sizes[i][0], sizes[i][1]);
            s.grid.picture_w = sizes[i][0];
            s.grid.picture_h = sizes[i][1];
            uint8_t *const rgb = calloc((size_t)sizes[i][0] * sizes[i][1], 3);
            canvas c;
            free(s.caption);
            s.caption = malloc(3001);
            memset(s.caption, 'w', 3000);
            s.caption[3000] = 0;
            look_paint(&c, &s, rgb, what, LOOK_MIN_WIDTH);
            assert_true(c.h > 40 && c.h < 1500);
            canvas_close(&c);
            free(rgb);
            sight_free(&s);
        }
}

/* ---- Names --------------------------------------------------------------------------------- */

static char folder[64];

static void assert_names(const char *given, char *const *paths, int n, const char *const *want)
{
    char **const names = output_names("--look", given, paths, n);
    if (!want) {
        assert_null(names);
        return;
    }
    assert_non_null(names);
    for (int i = 0; i < n; i++)
        assert_string_equal(names[i], want[i]);
    output_names_free(names, n);
}

static void no_file_is_written_twice(void **state)
{
    (void)state;
    static char a[] = "x/cat.jpg", b[] = "y/cat.png", c[] = "-", d[] = "cat-2.gif", e[] = ".jpg";
    char *const paths[] = {a, b, c, d, e};
    char in_folder[2][96];
    snprintf(in_folder[0], 96, "%s/cat-look.png", folder);
    snprintf(in_folder[1], 96, "%s/cat-2-look.png", folder);
    assert_names("out.PNG", paths, 1, (const char *const[]){"out.PNG"});
    assert_names("%s.png", paths, 5,
                 (const char *const[]){"cat.png", "cat-2.png", "stdin.png", "cat-2-2.png", ".jpg.png"});
    assert_names("%s/%s%d.png", paths, 2, (const char *const[]){"cat/cat%d.png", "cat-2/cat-2%d.png"});
    assert_names(folder, paths, 2, (const char *const[]){in_folder[0], in_folder[1]});
    assert_names("out.png", paths, 2, NULL);
    assert_names("out.jpg", paths, 1, NULL);
    assert_names("nowhere/", paths, 1, NULL);
}

static void no_picture_is_overwritten(void **state)
{
    (void)state;
    char path[96], also[96];
    snprintf(path, sizeof path, "%s/a.png", folder);
    snprintf(also, sizeof also, "%s/../%s/a.png", folder, strrchr(folder, '/') + 1);
    FILE *const f = fopen(path, "wb");
    assert_non_null(f);
    fclose(f);
    assert_names(also, (char *const[]){path}, 1, NULL);
    assert_names(path, (char *const[]){also}, 1, NULL);
    assert_names("b.png", (char *const[]){path}, 1, (const char *const[]){"b.png"});
    unlink(path);
}

/* ---- The command --------------------------------------------------------------------------- */

static char model[1024];

static void assert_one_line(const command_result *r, int status, const char *says)
{
    if (r->status != status || count_lines(r->err) != 1 || !strstr(r->err, says))
        fail_msg("exit %d, not %d with \"%s\"; it said: %s", r->status, status, says, r->err);
}

static const cJSON *member(const cJSON *object, const char *key)
{
    const cJSON *const item = cJSON_GetObjectItemCaseSensitive(object, key);
    if (!item) fail_msg("no \"%s\"", key);
    return item;
}

static void assert_trace_floats(const cJSON *array, const float *want, unsigned n)
{
    assert_int_equal(cJSON_GetArraySize(array), n);
    for (unsigned i = 0; i < n; i++) {
        const cJSON *const item = cJSON_GetArrayItem(array, (int)i);
        assert_true(cJSON_IsNull(item) ? isnan(want[i]) : (float)item->valuedouble == want[i]); /* to the last bit */
    }
}

static cJSON *read_json(const char *path)
{
    char text[1 << 16] = "";
    FILE *const f = fopen(path, "rb");
    assert_non_null(f);
    const size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    unlink(path);
    text[n] = 0;
    cJSON *const json = cJSON_Parse(text);
    if (!json) fail_msg("not JSON: %s", text);
    return json;
}

static void assert_traced(const cJSON *image, const sight *s)
{
    assert_string_equal(member(image, "mode")->valuestring, s->mode);
    assert_string_equal(member(image, "device")->valuestring, s->device);
    assert_string_equal(member(image, "caption")->valuestring, s->caption);
    assert_int_equal(cJSON_GetArraySize(member(image, "layers")), s->n_layers);
    assert_true(member(image, "sequence")->valuedouble == s->n_sequence);
    for (unsigned l = 0; l < s->n_layers; l++) {
        const cJSON *const layer = cJSON_GetArrayItem(member(image, "layers"), (int)l);
        const sight_layer *const want = &s->layers[l];
        assert_int_equal(cJSON_IsTrue(member(layer, "chooses")), want->chooses);
        assert_true(member(layer, "n")->valuedouble == s->n_vision);
        assert_true(member(layer, "n_kept")->valuedouble == want->n_kept);
        assert_true(member(layer, "kv_prompt")->valuedouble == want->kv_prompt);
        assert_true(member(layer, "kv_end")->valuedouble == want->kv_end);
        if (!want->chooses) continue;
        const cJSON *item = member(layer, "kept")->child;
        for (unsigned i = 0; i < s->n_vision; i++) {
            if (!want->kept[i]) continue;
            assert_non_null(item);
            assert_true(item->valuedouble == i);
            item = item->next;
        }
        assert_null(item);
        assert_trace_floats(member(layer, "scores"), want->scores, s->n_vision);
        assert_trace_floats(member(layer, "weights"), want->weights, s->n_vision);
    }
    const cJSON *prompt = member(image, "prompt")->child, *token = member(image, "tokens")->child;
    for (unsigned i = 0; i < s->n_words; i++) {
        const sight_word *const w = &s->words[i];
        const cJSON **const next = w->generated ? &token : &prompt, *const word = *next;
        assert_true(member(word, "id")->valuedouble == w->id);
        assert_string_equal(member(word, "text")->valuestring, w->text);
        assert_int_equal(cJSON_IsNull(member(word, "place")), !w->ran);
        if (w->ran) assert_true(member(word, "place")->valuedouble == w->place);
        const cJSON *skipped = member(word, "skipped")->child;
        for (unsigned l = 0; l < s->n_layers; l++) {
            if (!w->skipped[l]) continue;
            assert_true(skipped && skipped->valuedouble == l);
            skipped = skipped->next;
        }
        assert_null(skipped);
        *next = word->next;
    }
    assert_null(prompt);
    assert_null(token);
}

/* The command's trace is what the library says of the same caption, in every mode. */
static void traces_are_what_the_library_says(void **state)
{
    (void)state;
    static const char *const modes[] = {"pmod", "gamma-released", "threshold", "dense"};
    char file[96], trace[96];
    snprintf(file, sizeof file, "%s/model.gguf", folder);
    snprintf(trace, sizeof trace, "%s/trace.json", folder);
    for (size_t i = 0; i < SQ_COUNT(modes); i++) {
        fixture *const f = small_fixture(i == 3 ? "pmod" : modes[i]);
        fixture_write(f, file);
        fixture_free(f);
        command_result r = RUN("caption", "-q", "-m", file, "--mode", modes[i], "--threads", "2", "-n", "24", "--trace",
                               trace, test_path(picture), "/nowhere/x.jpg", test_path(picture));
        assert_one_line(&r, 1, "/nowhere/x.jpg");
        command_result_free(&r);
        cJSON *const json = read_json(trace);
        assert_int_equal(cJSON_GetArraySize(member(json, "images")), 2);
        squint_model *m;
        squint_msg msg;
        if (squint_model_open(&m, file, &(squint_model_options){.mode = modes[i]}, &msg)) fail_msg("%s", msg.text);
        squint_session *s = open_session(m, true);
        const squint_result result = caption(s, NULL);
        sight seen;
        sight_of_caption(&seen, m, s, &result, "x", "y");
        assert_traced(member(json, "images")->child, &seen);
        assert_traced(member(json, "images")->child->next, &seen);
        sight_free(&seen);
        cJSON_Delete(json);
        squint_session_close(&s);
        squint_model_close(&m);
    }
    unlink(file);
}

static void a_picture_comes_out(void **state)
{
    (void)state;
    const squint_allocator a = sq_allocator_or_default(NULL);
    char png[96];
    snprintf(png, sizeof png, "%s/baseline-420-look.png", folder);
    command_result r = RUN("caption", "-q", "-m", model, "--look", folder, "--look-width", "500", test_path(picture));
    assert_int_equal(r.status, 0);
    assert_string_equal(r.err, "");
    command_result_free(&r);
    sq_image image;
    assert_int_equal(sq_image_read(&image, png, &a, NULL), SQUINT_OK);
    assert_int_equal(image.w, 500);
    assert_true(image.h > 300);
    sq_image_free(&image, &a);
    const char *const from_stdin[] = {"caption", "-q", "-m", model, "--look", png, "--look-layer", "sum", "-", NULL};
    r = run_squint(test_path(picture), from_stdin);
    assert_int_equal(r.status, 0);
    command_result_free(&r);
    assert_int_equal(sq_image_read(&image, png, &a, NULL), SQUINT_OK);
    assert_int_equal(image.w, LOOK_WIDTH);
    sq_image_free(&image, &a);
    unlink(png);
}

static void what_cannot_be_painted_is_told(void **state)
{
    (void)state;
    const char *const p = test_path(picture);
    char png[96];
    snprintf(png, sizeof png, "%s/out.png", folder);
    const struct {
        const char *args[8], *says;
        int status;
    } cases[] = {
        {{"--mode", "dense", "--look", png, p}, "nothing to paint", 2},
        {{"--look", png, p, p}, "2 pictures and one file", 2},
        {{"--look", "out.jpg", p}, "neither a folder nor a name that ends in .png", 2},
        {{"--look", "/nowhere/out.png", p}, "/nowhere/out.png: cannot be written: No such file", 1},
        {{"--look", png, "--look-layer", "0", p}, "layer 0 does not choose", 1},
        {{"--look", png, "--look-layer", "99", p}, "no layer 99", 1},
        {{"--look", png, "--look-layer", "first", p}, "\"first\" is none of: all, sum", 2},
        {{"--look", png, "--look-width", "100", p}, "--look-width", 2},
        {{"--trace", "/nowhere/t.json", p}, "/nowhere/t.json cannot be written: No such file", 1},
        {{"--trace", "/dev/full", p}, "/dev/full cannot be written: No space", 1},
    };
    for (size_t i = 0; i < SQ_COUNT(cases); i++) {
        const char *args[12] = {"caption", "-q", "-m", model};
        memcpy(args + 4, cases[i].args, sizeof cases[i].args);
        command_result r = run_squint(NULL, args);
        assert_one_line(&r, cases[i].status, cases[i].says);
        assert_int_equal(access(png, F_OK), -1);
        command_result_free(&r);
    }
}

/* ---- Traces read back ---------------------------------------------------------------------- */

static void assert_same_floats(const float *a, const float *b, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        assert_true(same_float(a[i], b[i]));
}

static void assert_same_sight(const sight *a, const sight *b)
{
    assert_string_equal(a->file, b->file);
    assert_string_equal(a->caption, b->caption);
    assert_string_equal(a->model, b->model);
    assert_string_equal(a->mode, b->mode);
    assert_string_equal(a->device, b->device);
    assert_memory_equal(&a->grid, &b->grid, sizeof a->grid);
    assert_int_equal(a->n_more, b->n_more);
    assert_memory_equal(a->more, b->more, a->n_more * sizeof *a->more);
    assert_int_equal(a->n_vision, b->n_vision);
    assert_int_equal(a->n_layers, b->n_layers);
    assert_int_equal(a->n_words, b->n_words);
    assert_int_equal(a->n_prompt, b->n_prompt);
    assert_int_equal(a->n_sequence, b->n_sequence);
    for (unsigned l = 0; l < a->n_layers; l++) {
        const sight_layer *const x = &a->layers[l], *const y = &b->layers[l];
        assert_int_equal(x->chooses, y->chooses);
        assert_int_equal(x->n_kept, y->n_kept);
        assert_int_equal(x->kv_prompt, y->kv_prompt);
        assert_int_equal(x->kv_end, y->kv_end);
        if (!x->chooses) continue;
        assert_memory_equal(x->kept, y->kept, a->n_vision * sizeof *x->kept);
        assert_same_floats(x->scores, y->scores, a->n_vision);
        assert_same_floats(x->weights, y->weights, a->n_vision);
    }
    for (unsigned i = 0; i < a->n_words; i++) {
        const sight_word *const x = &a->words[i], *const y = &b->words[i];
        assert_string_equal(x->text, y->text);
        assert_int_equal(x->id, y->id);
        assert_int_equal(x->generated, y->generated);
        assert_int_equal(x->ran, y->ran);
        if (x->ran) assert_int_equal(x->place, y->place);
        assert_memory_equal(x->skipped, y->skipped, a->n_layers * sizeof *x->skipped);
        assert_same_floats(x->scores, y->scores, a->n_layers);
    }
}

static void make_anyres(fixture *f)
{
    fixture_str(f, "squint.vision.type", "clip_anyres");
    fixture_u32s(f, "clip.vision.image_grid_pinpoints", (const uint32_t[]){24, 24}, 2);
    fixture_weights(f, "model.image_newline", 16, 0, 7000, 0, 1);
}

static void check_trace(fixture *f, unsigned n_more)
{
    char path[96];
    snprintf(path, sizeof path, "%s/trace.json", folder);
    squint_model *m = fixture_model(f, NULL);
    squint_session *s = open_session(m, true);
    trace_file t;
    sight written[2], *read;
    size_t n;
    assert_true(trace_open(&t, path));
    for (int i = 0; i < 2; i++) {
        const squint_result r = caption(s, &(squint_caption_options){.temperature = 3, .seed = (uint64_t)i});
        sight_of_caption(&written[i], m, s, &r, i ? "odd \"name\"\n\xFF.jpg" : "x.jpg", "<model> & co");
        trace_add(&t, &written[i]);
        assert_int_equal(written[i].n_more, n_more);
    }
    assert_true(trace_close(&t));
    assert_true(trace_read(path, &read, &n));
    assert_int_equal(n, 2);
    for (int i = 0; i < 2; i++) {
        assert_same_sight(&written[i], &read[i]);
        sight_free(&written[i]);
    }
    trace_free(read, n);
    unlink(path);
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

static void a_trace_is_lossless(void **state)
{
    (void)state;
    check_trace(small_fixture("gamma-released"), 0);
    fixture *const f = small_fixture("pmod");
    make_anyres(f);
    check_trace(f, 1);
}

static char *text_of(const char *path)
{
    FILE *const f = fopen(path, "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    const long n = ftell(f);
    rewind(f);
    char *const text = calloc((size_t)n + 1, 1);
    assert_int_equal(fread(text, 1, (size_t)n, f), n);
    fclose(f);
    return text;
}

static void write_bytes(const char *path, const void *data, size_t n)
{
    FILE *const f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    fclose(f);
}

/* Patches of three layers, with a word that the last one skipped. */
static sight sight_with_words(void)
{
    sight s = made_sight(0, 0, PICTURE_W, PICTURE_H);
    s.n_sequence = CELLS + 1;
    s.words = calloc(1, sizeof *s.words);
    s.n_words = 1;
    s.words[0] = (sight_word){.text = strdup("word"),
                              .id = 7,
                              .generated = true,
                              .ran = true,
                              .place = CELLS,
                              .skipped = calloc(4, sizeof(bool)),
                              .scores = calloc(4, sizeof(float))};
    s.words[0].skipped[3] = true;
    return s;
}

static void write_trace(const char *path, const sight *s)
{
    trace_file t;
    assert_true(trace_open(&t, path));
    trace_add(&t, s);
    assert_true(trace_close(&t));
}

typedef struct damage {
    const char *from, *to, *says;
} damage;

static void check_damages(sight *s, const damage *cases, size_t n)
{
    char path[96];
    snprintf(path, sizeof path, "%s/trace.json", folder);
    write_trace(path, s);
    char *const good = text_of(path);
    for (size_t i = 0; i < n; i++) {
        const char *const where = strstr(good, cases[i].from);
        if (!where) fail_msg("the trace has no %s", cases[i].from);
        char *const bad = calloc(strlen(good) + strlen(cases[i].to) + 1, 1);
        if (!bad) abort();
        const int before = (int)(where - good);
        sprintf(bad, "%.*s%s%s", before, good, cases[i].to, where + strlen(cases[i].from));
        write_bytes(path, bad, strlen(bad));
        command_result r = RUN("look", path, "--html", "--no-picture");
        assert_one_line(&r, 1, cases[i].says);
        assert_non_null(strstr(r.err, path));
        command_result_free(&r);
        free(bad);
    }
    free(good);
    unlink(path);
    sight_free(s);
}

static void hostile_grids_are_refused(void **state)
{
    (void)state;
    static const damage cases[] = {
        {"\"first\":12,\"row_tokens\":3", "\"first\":13,\"row_tokens\":3", "grids[1].first: its 6 tokens are more"},
        {"\"first\":12", "\"first\":-1", "grids[1].first is not a whole number from 0 to 18"},
        {"\"row_tokens\":3", "\"row_tokens\":1", "grids[1].row_tokens is not a whole number from 2 to 3"},
        {"\"row_tokens\":3", "\"row_tokens\":4", "grids[1].row_tokens"},
        {"\"columns\":2,\"rows\":2", "\"columns\":2,\"rows\":256", "grids[1].first: its 768 tokens are more"},
        {"\"columns\":2", "\"columns\":0", "grids[1].columns is not a whole number from 1 to 256"},
        {"\"width\":60", "\"width\":0", "grids[1].width is not a number"},
        {"\"grids\":[", "\"grids\":[],\"x\":[", "grids is not a list of 1 to 17 entries"},
        {"\"grids\":[", "\"grids\":7,\"x\":[", "grids is not a list"},
        {"\"vision_tokens\":18", "\"vision_tokens\":11", "vision_tokens is not a whole number from 12"},
        {"\"vision_tokens\":18", "\"vision_tokens\":16777217", "vision_tokens"},
    };
    sight s = tiled_sight();
    check_damages(&s, cases, SQ_COUNT(cases));
}

static void hostile_traces_are_refused(void **state)
{
    (void)state;
    static const damage cases[] = {
        {"{\"squint_trace\":1", "{\"squint_trace\":2", "not a trace of this squint"},
        {"\"images\":[", "\"images\":[],\"x\":[", "no picture"},
        {"\"images\":[", "\"images\":[7,", "picture 1: file is missing"},
        {"\"caption\":\"a flat picture\"", "\"caption\":7", "caption is not a text"},
        {"\"device\":\"cuda (NVIDIA H200)\"", "\"device\":7", "device is not a text"},
        {"\"width\":120", "\"width\":0", "picture.width is not a whole number from 1 to 32768"},
        {"\"width\":120", "\"width\":1e300", "picture.width"},
        {"\"width\":120", "\"width\":1.5", "picture.width"},
        {"{\"width\":120,\"height\":60}", "{\"width\":9000,\"height\":9000}", "more than 64 megapixels"},
        {"\"columns\":4", "\"columns\":100000", "grid.columns is not a whole number from 1 to 256"},
        {"\"columns\":4", "\"columns\":5", "vision_tokens"},
        {"\"x\":0", "\"x\":-1e9", "grid.x is not a number"},
        {"\"rows\":3", "\"rows\":null", "grid.rows"},
        {"\"first_vision\":0", "\"first_vision\":1", "first_vision"},
        {"\"prompt_tokens\":12", "\"prompt_tokens\":99999999999", "prompt_tokens"},
        {"\"sequence\":13", "\"sequence\":11", "sequence is not a whole number from 12"},
        {"\"layers\":[", "\"layers\":[],\"x\":[", "layers is not a list of 1 to 512 entries"},
        {"\"layer\":2", "\"layer\":1", "layers[2].layer"},
        {"\"chooses\":true", "\"chooses\":1", "layers[1].chooses is neither true nor false"},
        {"\"chooses\":true", "\"chooses\":false", "layers[1].n_kept: a layer that does not choose keeps all"},
        {"\"n_kept\":9", "\"n_kept\":13", "layers[1].n_kept is not a whole number from 0 to 12"},
        {"\"n_kept\":9", "\"n_kept\":8", "layers[1].kept has 9 entries, n_kept is 8"},
        {"\"kept\":[1,2,3", "\"kept\":[1,1,3", "layers[1].kept[1] is not a whole number from 2 to 11"},
        {"\"kept\":[1,2,3", "\"kept\":[-1,2,3", "layers[1].kept[0]"},
        {"10,11],\"scores\"", "10,12],\"scores\"", "layers[1].kept[8]"},
        {"10,11],\"scores\"", "10,1e99],\"scores\"", "layers[1].kept[8]"},
        {"\"scores\":[0,0,", "\"scores\":[0,", "layers[1].scores is not a list of 12 to 12 entries"},
        {"\"scores\":[0,0,", "\"scores\":[0,1e39,", "layers[1].scores[1] is neither a number of 32 bits nor null"},
        {"\"scores\":[0,0,", "\"scores\":[0,\"0\",", "layers[1].scores[1]"},
        {"\"kv_end\":0", "\"kv_end\":99", "layers[0].kv_end"},
        {"\"text\":\"word\"", "\"text\":[]", "tokens[0].text is not a text"},
        {"\"skipped\":[3]", "\"skipped\":[4]", "tokens[0].skipped[0] is not a whole number from 0 to 3"},
        {"\"place\":12", "\"place\":13", "tokens[0].place is not a whole number from 0 to 12"},
        {"\"id\":7", "\"id\":-7", "tokens[0].id"},
        {"]}\n]}", "", "is not JSON"},
    };
    sight s = sight_with_words();
    check_damages(&s, cases, SQ_COUNT(cases));
}

/* Cut anywhere, or with any byte another: refused or read, and then it can be painted. */
static void damaged_traces_do_no_harm(void **state)
{
    (void)state;
    char path[96];
    snprintf(path, sizeof path, "%s/trace.json", folder);
    sight s = sight_with_words();
    write_trace(path, &s);
    char *const text = text_of(path);
    const size_t size = strlen(text);
    uint64_t seed = 3;
    unsigned n_read = 0;
    const int err = dup(STDERR_FILENO);
    assert_non_null(freopen("/dev/null", "wb", stderr));
    for (unsigned i = 0; i < 1500; i++) {
        sight *all;
        size_t n;
        const size_t at = random_u64(&seed) % size;
        const char was = text[at];
        if (i % 3) text[at] = "0123456789-.e,:[]{}\"\\n"[random_u64(&seed) % 21];
        write_bytes(path, text, i % 3 ? size : at);
        text[at] = was;
        if (!trace_read(path, &all, &n)) continue;
        n_read++;
        uint8_t *const rgb = calloc((size_t)all->grid.picture_w * all->grid.picture_h, 3);
        canvas c;
        if (sight_choosing(all) && all->grid.picture_w * all->grid.picture_h < 100000) {
            look_paint(&c, all, rgb, LOOK_ALL, LOOK_MIN_WIDTH);
            canvas_close(&c);
        }
        free(rgb);
        trace_free(all, n);
    }
    fflush(stderr);
    dup2(err, STDERR_FILENO);
    close(err);
    assert_true(n_read > 50 && n_read < 1450);
    free(text);
    unlink(path);
    sight_free(&s);
}

/* A list of five bytes an entry can ask for much more: the sum of it is limited. */
static void short_traces_do_not_take_all_memory(void **state)
{
    (void)state;
    enum { N_LAYERS_ASKED = 512, N_WORDS = 200000 };
    char path[96];
    snprintf(path, sizeof path, "%s/trace.json", folder);
    FILE *const f = fopen(path, "wb");
    assert_non_null(f);
    fputs("{\"squint_trace\":1,\"images\":[{\"file\":\"\",\"model\":\"\",\"mode\":\"\",\"caption\":\"\","
          "\"picture\":{\"width\":1,\"height\":1},"
          "\"grid\":{\"columns\":1,\"rows\":1,\"x\":0,\"y\":0,\"width\":1,\"height\":1},"
          "\"vision_tokens\":1,\"first_vision\":0,\"prompt_tokens\":1,\"sequence\":1,\"layers\":[",
          f);
    for (int l = 0; l < N_LAYERS_ASKED; l++)
        fprintf(f, "%s{\"layer\":%d,\"chooses\":false,\"n_kept\":1,\"kv_prompt\":1,\"kv_end\":1}", l ? "," : "", l);
    fputs("],\"prompt\":[],\"tokens\":[", f);
    for (int i = 0; i < N_WORDS; i++)
        fprintf(f, "%s{\"id\":1,\"text\":\"\",\"place\":0,\"skipped\":[]}", i ? "," : "");
    fputs("]}]}", f);
    fclose(f);
    command_result r = RUN("look", path, "--html", "--no-picture");
    assert_one_line(&r, 1, "takes more than 256 MiB");
    command_result_free(&r);
    unlink(path);
}

/* ---- Pages --------------------------------------------------------------------------------- */

static unsigned count_of(const char *text, const char *part)
{
    unsigned n = 0;
    for (; (text = strstr(text, part)); text += strlen(part))
        n++;
    return n;
}

static void replace_text(char **text, const char *with)
{
    free(*text);
    *text = strdup(with);
}

static uint8_t *from_base64(const char *text, size_t *n)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const size_t length = strspn(text, digits);
    uint8_t *const out = calloc(length + 1, 1);
    unsigned bits = 0, held = 0;
    *n = 0;
    for (size_t i = 0; i < length; i++) {
        bits = bits << 6 | (unsigned)(strchr(digits, text[i]) - digits);
        held += 6;
        if (held < 8) continue;
        held -= 8;
        out[(*n)++] = (uint8_t)(bits >> held);
    }
    return out;
}

/* The page of a sight whose every text wants to be markup. */
static void pages_hold_hostile_text(void **state)
{
    (void)state;
    static const char evil[] = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&amp;\"'\xE2\x80\xA8";
    char path[96], file[256];
    uint8_t rgb[PICTURE_W * PICTURE_H * 3];
    snprintf(path, sizeof path, "%s/page.html", folder);
    snprintf(file, sizeof file, "/home/somebody/%s.png", evil + 9);
    for (int i = 0; i < PICTURE_W * PICTURE_H; i++)
        memcpy(rgb + 3 * i, flat, 3);
    sight s = sight_with_words();
    replace_text(&s.caption, evil);
    replace_text(&s.file, file);
    replace_text(&s.model, evil);
    replace_text(&s.mode, evil);
    replace_text(&s.words[0].text, evil);
    assert_true(page_write(path, &s, (const uint8_t *const[]){rgb}, 1));
    char *const page = text_of(path);
    assert_int_equal(count_of(page, "<script"), 2); /* the data and the code */
    assert_int_equal(count_of(page, "</script"), 2);
    assert_int_equal(count_of(page, "<img"), 0);
    assert_int_equal(count_of(page, "somebody"), 0);
    assert_int_equal(count_of(page, "http"), 2); /* http-equiv, and the name of SVG */
    const char *const start = strstr(page, "id=\"data\">"), *const end = start ? strstr(start, "</script>") : NULL;
    assert_non_null(end);
    cJSON *const json = cJSON_ParseWithLength(start + 10, (size_t)(end - start - 10));
    assert_non_null(json);
    const cJSON *const seen = member(cJSON_GetArrayItem(json, 0), "sight");
    assert_string_equal(member(seen, "caption")->valuestring, evil);
    assert_string_equal(member(cJSON_GetArrayItem(member(seen, "tokens"), 0), "text")->valuestring, evil);
    const char *const src = member(cJSON_GetArrayItem(json, 0), "src")->valuestring;
    static const char prefix[] = "data:image/jpeg;base64,";
    assert_int_equal(strncmp(src, prefix, sizeof prefix - 1), 0);
    size_t size;
    uint8_t *const jpeg = from_base64(src + sizeof prefix - 1, &size);
    const squint_allocator a = sq_allocator_or_default(NULL);
    sq_image image;
    assert_int_equal(sq_image_decode(&image, "jpeg", jpeg, size, &a, NULL), SQUINT_OK);
    assert_true(image.w == PICTURE_W && image.h == PICTURE_H);
    assert_true(is_colour(image.rgb + 3000, flat[0], flat[1], flat[2]));
    sq_image_free(&image, &a);
    free(jpeg);
    cJSON_Delete(json);
    free(page);
    unlink(path);
    sight_free(&s);
}

static void large_pictures_are_made_smaller(void **state)
{
    (void)state;
    char path[96];
    snprintf(path, sizeof path, "%s/page.html", folder);
    sight s = made_sight(0, 0, 2000, 10);
    s.grid.picture_w = 2000;
    s.grid.picture_h = 10;
    uint8_t *const rgb = calloc(2000 * 10, 3);
    assert_true(page_write(path, &s, (const uint8_t *const[]){rgb}, 1));
    char *const page = text_of(path);
    size_t size;
    uint8_t *const jpeg = from_base64(strstr(page, "base64,") + 7, &size);
    const squint_allocator a = sq_allocator_or_default(NULL);
    sq_image image;
    assert_int_equal(sq_image_decode(&image, "jpeg", jpeg, size, &a, NULL), SQUINT_OK);
    assert_true(image.w == 960 && image.h == 4);
    sq_image_free(&image, &a);
    free(jpeg);
    free(page);
    free(rgb);
    unlink(path);
    sight_free(&s);
}

static void a_trace_becomes_page_and_picture(void **state)
{
    (void)state;
    const squint_allocator a = sq_allocator_or_default(NULL);
    char trace[96], html[96], png[96], one[96], two[96];
    snprintf(trace, sizeof trace, "%s/trace.json", folder);
    snprintf(html, sizeof html, "%s/trace.html", folder);
    snprintf(png, sizeof png, "%s/trace.png", folder);
    snprintf(one, sizeof one, "%s/baseline-420-look.png", folder);
    snprintf(two, sizeof two, "%s/baseline-420-2-look.png", folder);
    command_result r = RUN("caption", "-q", "-m", model, "--trace", trace, "--look", png, test_path(picture));
    assert_int_equal(r.status, 0);
    command_result_free(&r);
    sq_image first, second;
    assert_int_equal(sq_image_read(&first, png, &a, NULL), SQUINT_OK);
    unlink(png);
    r = RUN("look", trace, "--html", "--png");
    assert_int_equal(r.status, 0);
    assert_string_equal(r.err, "");
    command_result_free(&r);
    assert_int_equal(sq_image_read(&second, png, &a, NULL), SQUINT_OK);
    assert_true(first.w == second.w && first.h == second.h);
    assert_memory_equal(first.rgb, second.rgb, (size_t)3 * first.w * first.h); /* the trace says all that is painted */
    sq_image_free(&first, &a);
    sq_image_free(&second, &a);
    char *const page = text_of(html);
    assert_non_null(strstr(page, "data:image/jpeg;base64,"));
    free(page);
    unlink(html);
    unlink(png);
    r = RUN("caption", "-q", "-m", model, "--trace", trace, test_path(picture), test_path(picture));
    command_result_free(&r);
    r = RUN("look", trace, html, folder, "--layer", "sum");
    assert_int_equal(r.status, 0);
    command_result_free(&r);
    assert_int_equal(unlink(html) | unlink(one) | unlink(two) | unlink(trace), 0);
}

static void what_cannot_be_looked_at_is_told(void **state)
{
    (void)state;
    char trace[96], two[96], small[96], html[96];
    snprintf(trace, sizeof trace, "%s/trace.json", folder);
    snprintf(two, sizeof two, "%s/two.json", folder);
    snprintf(small, sizeof small, "%s/small.ppm", folder);
    snprintf(html, sizeof html, "%s/trace.html", folder);
    sight s = made_sight(0, 0, PICTURE_W, PICTURE_H);
    write_trace(trace, &s);
    trace_file t;
    assert_true(trace_open(&t, two));
    trace_add(&t, &s);
    replace_text(&s.file, "-");
    trace_add(&t, &s);
    assert_true(trace_close(&t));
    write_bytes(small, "P6\n1 1\n255\nabc", 14);
    const struct {
        const char *args[6], *says;
        int status;
    } cases[] = {
        {{NULL}, "which trace", 2},
        {{trace}, "what to write? --html, --png", 2},
        {{trace, "a.html", "b.html"}, "one file of a kind", 2},
        {{trace, "--html", "--layer", "top"}, "\"top\" is none of", 2},
        {{html, html}, "would be overwritten", 2},
        {{"/nowhere/t.json", "--html"}, "/nowhere/t.json cannot be read: No such file", 1},
        {{folder, "--html"}, "cannot be read: Is a directory", 1},
        {{trace, "--html"}, "made.png cannot be opened: No such file", 1},
        {{trace, "--html", "--picture", small}, "has 1 x 1 pixels, the picture of", 1},
        {{two, "--html", "--picture", small}, "--picture: one file, but", 1},
        {{two, "--html"}, "made.png cannot be opened", 1},
        {{trace, "--no-picture", "/nowhere/x.html"}, "/nowhere/x.html cannot be written: No such file", 1},
        {{trace, "--no-picture", "/nowhere/x.png"}, "/nowhere/x.png: cannot be written: No such file", 1},
        {{trace, "--no-picture", "--png", "--layer", "0"}, "layer 0 does not choose", 1},
        {{two, "--no-picture", "--png"}, "2 pictures and one file", 2},
    };
    for (size_t i = 0; i < SQ_COUNT(cases); i++) {
        const char *args[8] = {"look"};
        memcpy(args + 1, cases[i].args, sizeof cases[i].args);
        command_result r = run_squint(NULL, args);
        assert_one_line(&r, cases[i].status, cases[i].says);
        command_result_free(&r);
    }
    assert_int_equal(access(html, F_OK), -1);
    assert_int_equal(unlink(trace) | unlink(two) | unlink(small), 0);
    sight_free(&s);
}

static int set_up(void **state)
{
    (void)state;
    snprintf(model, sizeof model, "%s", test_path("golden/tiny-pmod.gguf"));
    snprintf(folder, sizeof folder, "/tmp/squint-look-XXXXXX");
    unsetenv("SQUINT_MODEL");
    unsetenv("SQUINT_ISA");
    return mkdtemp(folder) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    return rmdir(folder); /* every test takes its files away */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(routes_are_the_engines),
        cmocka_unit_test(dense_layers_keep_all),
        cmocka_unit_test(routes_cost_only_who_asks),
        cmocka_unit_test(tokens_have_their_text),
        cmocka_unit_test(kept_as_in_pytorch),
        cmocka_unit_test(views_undo_the_fit),
        cmocka_unit_test(patches_lie_in_their_grid),
        cmocka_unit_test(a_layer_is_painted_patch_by_patch),
        cmocka_unit_test(patches_over_patches_are_mixed),
        cmocka_unit_test(a_sum_has_the_legends_colours),
        cmocka_unit_test(what_was_cropped_is_grey),
        cmocka_unit_test(padding_is_part_of_the_map),
        cmocka_unit_test(odd_shapes_are_painted),
        cmocka_unit_test(no_file_is_written_twice),
        cmocka_unit_test(no_picture_is_overwritten),
        cmocka_unit_test(traces_are_what_the_library_says),
        cmocka_unit_test(a_picture_comes_out),
        cmocka_unit_test(what_cannot_be_painted_is_told),
        cmocka_unit_test(a_trace_is_lossless),
        cmocka_unit_test(hostile_traces_are_refused),
        cmocka_unit_test(hostile_grids_are_refused),
        cmocka_unit_test(damaged_traces_do_no_harm),
        cmocka_unit_test(short_traces_do_not_take_all_memory),
        cmocka_unit_test(pages_hold_hostile_text),
        cmocka_unit_test(large_pictures_are_made_smaller),
        cmocka_unit_test(a_trace_becomes_page_and_picture),
        cmocka_unit_test(what_cannot_be_looked_at_is_told),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
