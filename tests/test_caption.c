/*
 * The public interface on a small model with a tower: random weights, so the text is nonsense, but always the same.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/engine.h"
#include "tests/counting.h"
#include "tests/fixture.h"
#include "tests/support.h"

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { N_VISION = 9, N_PROMPT = 1 + N_VISION + 2, N_LAYERS = 4, MAX_TEXT = 4096 }; /* BOS, image, space, newline */

static const char picture[] = "golden/images/baseline-420.jpg";

/* ---- models, sessions, captions ---- */

/* Layers 1 and 3 keep half of the vision tokens. The end token has no weight, so that captions are long. */
static fixture *caption_fixture(void)
{
    fixture *f = fixture_decoder(N_LAYERS);
    fixture_routing(f, (const bool[]){false, true, false, true}, (const float[]){1, 0.5f, 1, 0.5f});
    fixture_tower(f);
    float *const end = fixture_floats(f, "output.weight") + (size_t)2 * 16;
    for (int i = 0; i < 16; i++)
        end[i] = 0;
    return f;
}

static squint_model *caption_model(void)
{
    fixture *f = caption_fixture();
    squint_model *m = fixture_model(f, NULL);
    fixture_free(f);
    return m;
}

static squint_session *open_session(const squint_model *m, const squint_session_options *options)
{
    squint_session *s;
    squint_msg msg;
    if (squint_session_open(&s, m, options, &msg)) fail_msg("%s", msg.text);
    return s;
}

static squint_result caption(squint_session *s, const squint_caption_options *options)
{
    squint_result r;
    squint_msg msg;
    if (squint_caption_file(s, test_path(picture), options, &r, &msg)) fail_msg("%s", msg.text);
    return r;
}

static const squint_session_options one_thread = {.threads = 1, .max_tokens = 24};

/* A model, a session of it, and the text of its picture. */
typedef struct scene {
    squint_model *m;
    squint_session *s;
    char text[MAX_TEXT];
} scene;

static void open_scene(scene *c)
{
    c->m = caption_model();
    c->s = open_session(c->m, &one_thread);
    snprintf(c->text, sizeof c->text, "%s", caption(c->s, NULL).text);
    assert_true(*c->text);
}

static void close_scene(scene *c)
{
    squint_session_close(&c->s);
    squint_model_close(&c->m);
    assert_null(c->s);
    assert_null(c->m);
}

/* The session still works, and writes what it wrote first. */
static void assert_works(scene *c) { assert_string_equal(caption(c->s, NULL).text, c->text); }

/* ---- results ---- */

static void test_result(void **state)
{
    (void)state;
    scene c;
    open_scene(&c);
    const squint_result r = caption(c.s, NULL);
    assert_string_equal(r.text, c.text);
    assert_int_equal(r.n_tokens, 24);
    assert_int_equal(r.finish, SQUINT_FINISH_LENGTH);
    assert_int_equal(r.n_vision_tokens, N_VISION);
    assert_int_equal(r.n_prompt_tokens, N_PROMPT);
    assert_int_equal(r.n_layers, N_LAYERS);
    for (int l = 0; l < N_LAYERS; l++)
        assert_int_equal(r.kept[l], l % 2 ? 4 : 9);
    assert_true(fabs(r.kept_share - (9 + 4 + 9 + 4) / 36.0) < 1e-12);
    /* Routed layers are 5 entries short; 23 generated tokens; 2 heads of 4 floats, key and value. */
    assert_int_equal(r.kv_bytes, (4 * N_PROMPT - 2 * 5 + 4 * 23) * 2 * 2 * 4 * sizeof(float));
    assert_true(r.prefill_macs > 0 && r.prefill_macs < r.prefill_macs_dense);
    for (int i = 0; i < SQUINT_STAGE_COUNT; i++)
        assert_true(r.stage_ms[i] >= 0 && r.stage_ms[i] < 60000);
    for (unsigned i = 0; i < r.n_tokens; i++)
        assert_true(r.tokens[i] < FIXTURE_VOCAB && r.tokens[i] != 2);
    close_scene(&c);
}

typedef struct forecasts {
    unsigned n;
    squint_forecast last;
} forecasts;

static void note_forecast(void *user, const squint_forecast *forecast)
{
    forecasts *const f = user;
    f->n++;
    f->last = *forecast;
}

/* A day is enough, a microsecond is not; what one caption keeps is nothing to the next. */
static void test_budgets(void **state)
{
    (void)state;
    scene c;
    forecasts f = {0};
    open_scene(&c);
    squint_caption_options options = {.budget_ms = 86400e3, .on_forecast = note_forecast, .user = &f};
    squint_result r = caption(c.s, &options);
    assert_int_equal(f.n, 1);
    assert_int_equal(f.last.outcome, SQUINT_BUDGET_AMPLE);
    assert_memory_equal(&f.last, &r.forecast, sizeof f.last);
    assert_true(r.forecast.keep == 1.0f && r.forecast.predicted_ms > 0);
    assert_true(r.forecast.spent_ms == r.stage_ms[SQUINT_STAGE_IMAGE] + r.stage_ms[SQUINT_STAGE_TOWER]);
    assert_string_equal(r.text, c.text);
    options.budget_ms = 1e-3; /* which image and tower have spent, however short the prefill */
    c.s->cost = (sq_cost){.row_ms = 1e-9, .scale = 1};
    r = caption(c.s, &options);
    assert_int_equal(f.n, 2);
    assert_int_equal(r.forecast.outcome, SQUINT_BUDGET_TOO_SMALL);
    assert_true(r.forecast.keep == 0.0f);
    for (int l = 0; l < N_LAYERS; l++)
        assert_int_equal(r.kept[l], l % 2 ? 0 : 9);
    r = caption(c.s, NULL);
    assert_int_equal(f.n, 2);
    assert_int_equal(r.forecast.outcome, SQUINT_BUDGET_NONE);
    assert_string_equal(r.text, c.text);
    close_scene(&c);
}

/* Multiply-adds of a layer over m tokens, one after another: d = 16, f = 24, keys and values of 8. */
static double macs_of(double m) { return m * 16 * (2 * 16 + 2 * 8 + 3 * 24) + m * (m + 1) * 16; }

/* What was done, layer by layer, is what is told of the whole; and both are the formula's. */
static void test_work(void **state)
{
    (void)state;
    scene c;
    open_scene(&c);
    const squint_result r = caption(c.s, NULL);
    double prefill = 0, decode = 0;
    size_t kv_bytes = 0;
    for (unsigned l = 0; l < N_LAYERS; l++) {
        squint_route route;
        const double m = N_PROMPT - (l % 2 ? 5 : 0);
        assert_int_equal(squint_session_route(c.s, l, &route, NULL), SQUINT_OK);
        assert_true(route.prefill_macs == macs_of(m));
        assert_true(route.decode_macs == macs_of(m + 23) - macs_of(m));
        assert_int_equal(route.kv_bytes, (m + 23) * 2 * 2 * 4 * sizeof(float));
        prefill += route.prefill_macs;
        decode += route.decode_macs;
        kv_bytes += route.kv_bytes;
    }
    assert_true(r.prefill_macs == prefill && r.decode_macs == decode && r.kv_bytes == kv_bytes);
    assert_true(r.prefill_macs_dense == N_LAYERS * macs_of(N_PROMPT));
    assert_true(r.decode_macs_dense == N_LAYERS * (macs_of(N_PROMPT + 23) - macs_of(N_PROMPT)));
    assert_int_equal(r.kv_bytes_dense, N_LAYERS * (N_PROMPT + 23) * 2 * 2 * 4 * sizeof(float));
    /* 9 patches of 4 x 4 x 3; 2 layers of width 16 and inner 32 over 10 positions; 2 matrices of 16 x 16 for each patch
     */
    assert_true(r.tower_macs == 9 * 48 * 16 + 2 * (10 * 16 * (4 * 16 + 2 * 32) + 2 * 100 * 16) + 9 * 2 * 16 * 16);
    close_scene(&c);
}

/* A prediction that was off moves the next one half the way, and by no more than a factor of 2. */
static void test_predictions_learn(void **state)
{
    (void)state;
    scene c;
    open_scene(&c);
    const squint_caption_options options = {.budget_ms = 1e15};
    c.s->cost = (sq_cost){.row_ms = 1e9, .scale = 1};
    caption(c.s, &options);
    assert_true(c.s->cost.scale == 0.5);
    caption(c.s, &options);
    assert_true(c.s->cost.scale == 0.25);
    c.s->cost = (sq_cost){.row_ms = 1e-9, .scale = 1};
    const squint_result r = caption(c.s, &options);
    assert_true(c.s->cost.scale == 2);
    const double as_it_was = r.stage_ms[SQUINT_STAGE_PREFILL] / r.forecast.predicted_ms;
    c.s->cost = (sq_cost){.row_ms = 1e-9 * as_it_was, .scale = 1}; /* near enough to be no matter of limits */
    const squint_result near = caption(c.s, &options);
    const double off = near.stage_ms[SQUINT_STAGE_PREFILL] / near.forecast.predicted_ms;
    if (off > 0.25 && off < 4) assert_true(fabs(c.s->cost.scale * c.s->cost.scale - off) < 1e-9);
    caption(c.s, NULL);
    close_scene(&c);
}

/* A file, its bytes, its pixels, and pixels with gaps between the rows are one picture. */
static void test_ways_to_give_a_picture(void **state)
{
    (void)state;
    scene c;
    squint_result r;
    squint_msg msg;
    size_t size;
    sq_image image;
    const squint_allocator a = sq_allocator_or_default(NULL);
    open_scene(&c);
    uint8_t *file = read_test_file(picture, &size);
    assert_int_equal(squint_caption_memory(c.s, file, size, NULL, &r, &msg), SQUINT_OK);
    assert_string_equal(r.text, c.text);
    assert_int_equal(sq_image_decode(&image, "test", file, size, &a, &msg), SQUINT_OK);
    assert_int_equal(squint_caption_rgb(c.s, image.rgb, image.w, image.h, (size_t)image.w * 3, NULL, &r, &msg),
                     SQUINT_OK);
    assert_string_equal(r.text, c.text);
    const size_t stride = (size_t)image.w * 3 + 5;
    uint8_t *wide = guarded_alloc(stride * (image.h - 1) + (size_t)image.w * 3, 1);
    memset(wide, 0xA5, stride * (image.h - 1) + (size_t)image.w * 3);
    for (uint32_t y = 0; y < image.h; y++)
        memcpy(wide + y * stride, image.rgb + (size_t)y * image.w * 3, (size_t)image.w * 3);
    assert_int_equal(squint_caption_rgb(c.s, wide, image.w, image.h, stride, NULL, &r, &msg), SQUINT_OK);
    assert_string_equal(r.text, c.text);
    guarded_free(wide);
    sq_image_free(&image, &a);
    free(file);
    close_scene(&c);
}

/* The decoder sees the picture: another one gives other logits, the same one the same bits. */
static void test_picture_matters(void **state)
{
    (void)state;
    scene c;
    squint_result r;
    squint_msg msg;
    float logits[3][FIXTURE_VOCAB];
    static const squint_caption_options one = {.max_tokens = 1};
    static const char *const pictures[] = {picture, "golden/images/grey8.png", picture};
    open_scene(&c);
    for (int i = 0; i < 3; i++) {
        if (squint_caption_file(c.s, test_path(pictures[i]), &one, &r, &msg)) fail_msg("%s", msg.text);
        memcpy(logits[i], c.s->logits, sizeof logits[i]);
    }
    assert_memory_equal(logits[0], logits[2], sizeof logits[0]);
    assert_memory_not_equal(logits[0], logits[1], sizeof logits[0]);
    close_scene(&c);
}

static void test_lengths(void **state)
{
    (void)state;
    squint_model *m = caption_model();
    squint_session *s = open_session(m, &(squint_session_options){.threads = 1, .max_tokens = 5});
    assert_int_equal(caption(s, NULL).n_tokens, 5);
    assert_int_equal(caption(s, &(squint_caption_options){.max_tokens = 3}).n_tokens, 3);
    assert_int_equal(caption(s, &(squint_caption_options){.max_tokens = 1}).n_tokens, 1);
    assert_int_equal(caption(s, &(squint_caption_options){.max_tokens = 100}).n_tokens, 5);
    squint_session_close(&s);
    squint_model_close(&m);
}

/* Four positions more than the prompt has: four tokens are fed back, and a fifth comes out. */
static void test_context_is_used_up(void **state)
{
    (void)state;
    fixture *f = caption_fixture();
    fixture_u32(f, "llama.context_length", N_PROMPT + 4);
    squint_model *m = fixture_model(f, NULL);
    squint_session *s = open_session(m, &one_thread);
    const squint_result r = caption(s, NULL);
    assert_int_equal(r.n_tokens, 5);
    assert_int_equal(r.finish, SQUINT_FINISH_LENGTH);
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

/* An end token that beats all others ends the caption before its first word. */
static void test_end_token(void **state)
{
    (void)state;
    fixture *f = caption_fixture();
    squint_model *m = fixture_model(f, NULL);
    squint_session *s = open_session(m, &one_thread);
    const uint32_t second = caption(s, NULL).tokens[1];
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_u32(f, "tokenizer.ggml.eos_token_id", second);
    m = fixture_model(f, NULL);
    s = open_session(m, &one_thread);
    const squint_result r = caption(s, NULL);
    assert_int_equal(r.finish, SQUINT_FINISH_STOP);
    assert_true(r.n_tokens <= 1);
    for (unsigned i = 0; i < r.n_tokens; i++)
        assert_int_not_equal(r.tokens[i], second);
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

/* ---- callbacks ---- */

typedef struct listener {
    char text[MAX_TEXT];
    size_t n;
    squint_stage stage;
    unsigned done, total, calls, texts;
    unsigned stop_at_call, stop_at_text; /* 0: never */
    bool stopped;
    squint_session *cancel; /* cancelled from another thread when the prefill begins */
} listener;

static bool hear(void *user, const char *text, size_t bytes)
{
    listener *const l = user;
    assert_false(l->stopped); /* nothing comes after "stop" */
    assert_true(bytes && l->n + bytes < sizeof l->text);
    for (size_t i = 0; i < bytes;) { /* whole characters */
        const int n = sq_utf8_next(text + i, bytes - i);
        assert_true(n > 0);
        i += (size_t)n;
    }
    memcpy(l->text + l->n, text, bytes);
    l->n += bytes;
    l->text[l->n] = '\0';
    l->stopped = ++l->texts == l->stop_at_text;
    return !l->stopped;
}

static void *cancel_session(void *session)
{
    squint_session_cancel(session);
    return NULL;
}

static bool watch(void *user, squint_stage stage, unsigned done, unsigned total)
{
    listener *const l = user;
    assert_false(l->stopped);
    assert_true(done >= 1 && done <= total);
    if (l->calls && stage == l->stage) {
        assert_int_equal(done, l->done + 1);
        assert_int_equal(total, l->total);
    } else {
        assert_int_equal(stage, l->calls ? l->stage + 1 : SQUINT_STAGE_IMAGE);
        if (l->calls) assert_int_equal(l->done, l->total);
        assert_int_equal(done, 1);
    }
    if (l->cancel && stage == SQUINT_STAGE_PREFILL) {
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, cancel_session, l->cancel), 0);
        pthread_join(thread, NULL);
    }
    l->stage = stage;
    l->done = done;
    l->total = total;
    l->stopped = ++l->calls == l->stop_at_call;
    return !l->stopped;
}

static bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

/* Many texts, with bytes that are no UTF-8: the pieces are the text, and the text has no white space at its ends. */
static void test_pieces_are_the_text(void **state)
{
    (void)state;
    scene c;
    open_scene(&c);
    unsigned replaced = 0;
    for (uint64_t seed = 0; seed < 60; seed++) {
        listener l = {0};
        const squint_caption_options o = {
            .temperature = 3, .seed = seed, .on_text = hear, .on_progress = watch, .user = &l};
        const squint_result r = caption(c.s, &o);
        assert_string_equal(l.text, r.text);
        const size_t n = strlen(r.text);
        if (n) assert_false(is_space(r.text[0]) || is_space(r.text[n - 1]));
        replaced += strstr(r.text, "\xEF\xBF\xBD") != NULL;
        assert_int_equal(l.stage, SQUINT_STAGE_DECODE);
        assert_int_equal(l.calls, 1 + 2 + N_LAYERS + r.n_tokens);
        char *const first = strdup(r.text);
        const squint_caption_options again = {.temperature = 3, .seed = seed}; /* the seed decides */
        assert_string_equal(caption(c.s, &again).text, first);
        free(first);
    }
    assert_true(replaced > 10);
    close_scene(&c);
}

static void test_stopping_by_callback(void **state)
{
    (void)state;
    scene c;
    open_scene(&c);
    for (unsigned at = 1; at <= 1 + 2 + N_LAYERS + 24; at++) {
        listener l = {.stop_at_call = at};
        squint_result r;
        squint_msg msg;
        const squint_caption_options o = {.on_progress = watch, .user = &l};
        assert_int_equal(squint_caption_file(c.s, test_path(picture), &o, &r, &msg), SQUINT_ERR_CANCELLED);
        assert_int_equal(l.calls, at);
        assert_string_equal(msg.text, "cancelled");
        assert_memory_equal(r.text, c.text, strlen(r.text)); /* what there is: the beginning */
        assert_int_equal(r.n_tokens, at > 3 + N_LAYERS ? at - 3 - N_LAYERS : 0);
    }
    assert_works(&c);
    for (unsigned at = 1; at <= 3; at++) {
        listener l = {.stop_at_text = at};
        squint_result r;
        const squint_caption_options o = {.temperature = 3, .seed = 5, .on_text = hear, .user = &l};
        assert_int_equal(squint_caption_file(c.s, test_path(picture), &o, &r, NULL), SQUINT_ERR_CANCELLED);
        assert_memory_equal(r.text, l.text, l.n);
    }
    assert_works(&c);
    close_scene(&c);
}

/* A stop in the middle of a character: its bytes are told of in the text, not to who said stop. */
static void test_stop_inside_a_character(void **state)
{
    (void)state;
    scene c;
    open_scene(&c);
    for (uint64_t seed = 0; seed < 60; seed++) {
        listener l = {.stop_at_text = 1 + (unsigned)(seed % 8)};
        squint_result r;
        const squint_caption_options o = {.temperature = 3, .seed = seed, .on_text = hear, .user = &l};
        const squint_err err = squint_caption_file(c.s, test_path(picture), &o, &r, NULL);
        assert_true(err == SQUINT_ERR_CANCELLED || err == SQUINT_OK);
    }
    close_scene(&c);
}

static void test_cancel_from_another_thread(void **state)
{
    (void)state;
    scene c;
    open_scene(&c);
    listener l = {.cancel = c.s};
    squint_result r;
    const squint_caption_options o = {.on_progress = watch, .user = &l};
    assert_int_equal(squint_caption_file(c.s, test_path(picture), &o, &r, NULL), SQUINT_ERR_CANCELLED);
    assert_int_equal(l.stage, SQUINT_STAGE_PREFILL);
    assert_int_equal(l.done, 1);
    squint_session_cancel(c.s); /* between captions: nothing is in the making */
    assert_works(&c);
    close_scene(&c);
}

/* ---- arguments ---- */

static void assert_caption_fails(scene *c, const squint_caption_options *o, squint_err err, const char *word)
{
    squint_result r;
    squint_msg msg;
    assert_int_equal(squint_caption_file(c->s, test_path(picture), o, &r, &msg), err);
    if (!strstr(msg.text, word)) fail_msg("\"%s\" does not say %s", msg.text, word);
    assert_string_equal(r.text, "");
    assert_int_equal(squint_caption_file(c->s, test_path(picture), o, &r, NULL), err);
}

static void test_caption_options(void **state)
{
    (void)state;
    scene c;
    char prompt[300];
    open_scene(&c);
    memset(prompt, 'a', sizeof prompt);
    prompt[257] = '\0';
    assert_caption_fails(&c, &(squint_caption_options){.temperature = -1}, SQUINT_ERR_ARGUMENT, "temperature");
    assert_caption_fails(&c, &(squint_caption_options){.top_p = 1.5f}, SQUINT_ERR_ARGUMENT, "top_p");
    assert_caption_fails(&c, &(squint_caption_options){.min_p = -0.5f}, SQUINT_ERR_ARGUMENT, "min_p");
    assert_caption_fails(&c, &(squint_caption_options){.budget_ms = -1}, SQUINT_ERR_ARGUMENT, "budget_ms");
    assert_caption_fails(&c, &(squint_caption_options){.budget_ms = NAN}, SQUINT_ERR_ARGUMENT, "budget_ms");
    assert_caption_fails(&c, &(squint_caption_options){.budget_ms = INFINITY}, SQUINT_ERR_ARGUMENT, "budget_ms");
    assert_caption_fails(&c, &(squint_caption_options){.prompt = prompt}, SQUINT_ERR_LIMIT, "257");
    assert_caption_fails(&c, &(squint_caption_options){.prompt = "an <image>"}, SQUINT_ERR_ARGUMENT, "image");
    assert_works(&c);
    prompt[256] = '\0';
    assert_int_equal(caption(c.s, &(squint_caption_options){.prompt = prompt}).n_tokens, 24);
    assert_works(&c);
    close_scene(&c);
}

static void test_pictures_that_are_none(void **state)
{
    (void)state;
    scene c;
    squint_result r;
    squint_msg msg;
    const uint8_t rgb[12] = {0};
    open_scene(&c);
    assert_int_equal(squint_caption_file(c.s, "/nowhere/picture.jpg", NULL, &r, &msg), SQUINT_ERR_IO);
    assert_non_null(strstr(msg.text, "/nowhere/picture.jpg"));
    assert_int_equal(squint_caption_memory(c.s, "GIF89a", 6, NULL, &r, &msg), SQUINT_ERR_UNSUPPORTED);
    assert_int_equal(squint_caption_file(c.s, NULL, NULL, &r, &msg), SQUINT_ERR_ARGUMENT);
    assert_int_equal(squint_caption_memory(c.s, NULL, 0, NULL, &r, &msg), SQUINT_ERR_ARGUMENT);
    assert_int_equal(squint_caption_memory(c.s, "", 0, NULL, &r, &msg), SQUINT_ERR_IMAGE);
    assert_int_equal(squint_caption_rgb(c.s, NULL, 2, 2, 6, NULL, &r, &msg), SQUINT_ERR_ARGUMENT);
    assert_int_equal(squint_caption_rgb(c.s, rgb, 0, 2, 6, NULL, &r, &msg), SQUINT_ERR_ARGUMENT);
    assert_int_equal(squint_caption_rgb(c.s, rgb, 2, 0, 6, NULL, &r, &msg), SQUINT_ERR_ARGUMENT);
    assert_int_equal(squint_caption_rgb(c.s, rgb, 2, 2, 5, NULL, &r, &msg), SQUINT_ERR_ARGUMENT);
    assert_int_equal(squint_caption_rgb(c.s, rgb, 40000, 1, 120000, NULL, &r, &msg), SQUINT_ERR_ARGUMENT);
    assert_works(&c);
    close_scene(&c);
}

/* The prompt with the image in it, over what the model was trained with. */
static void test_longest_expanded_prompt(void **state)
{
    (void)state;
    fixture *f = caption_fixture();
    for (uint32_t limit = N_PROMPT; limit <= N_PROMPT + 3; limit++) {
        squint_result r;
        squint_msg msg;
        fixture_u32(f, "squint.max_expanded_length", limit);
        squint_model *m = fixture_model(f, NULL);
        squint_session *s = open_session(m, &one_thread);
        /* Two pieces, each with its space. */
        const squint_caption_options o = {.prompt = "a b"};
        const squint_err err = squint_caption_file(s, test_path(picture), &o, &r, &msg);
        assert_int_equal(err, limit < N_PROMPT + 2 ? SQUINT_ERR_LIMIT : SQUINT_OK);
        if (err)
            assert_string_equal(msg.text + strlen("the prompt has 14 tokens, 9 of them the image's; key "),
                                limit == N_PROMPT ? "squint.max_expanded_length allows 12"
                                                  : "squint.max_expanded_length allows 13");
        else
            assert_int_equal(r.n_prompt_tokens, N_PROMPT + 2);
        squint_session_close(&s);
        squint_model_close(&m);
    }
    fixture_free(f);
}

/* A model that writes the words of its end token ends its caption, whatever it would have written next. */
static void test_stop_text(void **state)
{
    (void)state;
    static const char stop[] = "</s>";
    fixture *f = caption_fixture();
    squint_model *m = fixture_model(f, NULL);
    squint_session *s = open_session(m, &one_thread);
    squint_result r = caption(s, NULL);
    unsigned first = 1;
    /* Four ids that the caption has for the first time, in a row: they become those of four bytes. */
    for (unsigned i = 0, run = 0; i < r.n_tokens && run < 4; i++) {
        unsigned before = 0;
        while (before < i && r.tokens[before] != r.tokens[i])
            before++;
        run = before == i ? run + 1 : 0;
        first = i + 1 - run;
        assert_true(i + 1 < r.n_tokens);
    }
    const char *const text = r.text;
    uint32_t ids[4];
    memcpy(ids, r.tokens + first, sizeof ids);
    assert_true(strlen(text) > 4);
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++)
            assert_true(ids[j] != FIXTURE_IDS + (uint32_t)(uint8_t)stop[i]);
    for (int i = 0; i < 4; i++)
        fixture_swap_ids(f, ids[i], FIXTURE_IDS + (uint32_t)(uint8_t)stop[i]);
    squint_session_close(&s);
    squint_model_close(&m);
    m = fixture_model(f, NULL);
    s = open_session(m, &one_thread);
    r = caption(s, NULL);
    assert_int_equal(r.finish, SQUINT_FINISH_STOP);
    assert_int_equal(r.n_tokens, first + 4);
    assert_null(strchr(r.text, '<'));
    r = caption(s, &(squint_caption_options){.max_tokens = first + 3});
    assert_int_equal(r.finish, SQUINT_FINISH_LENGTH);
    assert_string_equal(r.text + strlen(r.text) - 3, "</s");
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

/* The caller's template replaces the file's. */
static void test_asked_template(void **state)
{
    (void)state;
    static const char *const names[] = {"vicuna_v1", "v1", "llava_v1", "llava_v0", "plain"};
    fixture *f = caption_fixture();
    uint32_t ids[1024];
    scene plain;
    open_scene(&plain);
    for (size_t i = 0; i < SQ_COUNT(names); i++) {
        fixture_str(f, "squint.chat.template", names[i]);
        squint_model *m = fixture_model(f, NULL);
        squint_session *s = open_session(m, &one_thread);
        const squint_result own = caption(s, NULL);
        const unsigned n = own.n_prompt_tokens;
        assert_true(n <= SQ_COUNT(ids));
        memcpy(ids, own.prompt, n * sizeof *ids);
        const squint_result asked = caption(plain.s, &(squint_caption_options){.chat_template = names[i]});
        assert_int_equal(asked.n_prompt_tokens, n);
        assert_memory_equal(asked.prompt, ids, n * sizeof *ids);
        squint_session_close(&s);
        squint_model_close(&m);
    }
    squint_result r;
    squint_msg msg;
    const squint_caption_options wrong = {.chat_template = "alpaca"};
    assert_int_equal(squint_caption_file(plain.s, test_path(picture), &wrong, &r, &msg), SQUINT_ERR_ARGUMENT);
    assert_string_equal(msg.text, "chat_template: \"alpaca\" is not one of vicuna_v1, llava_v1, llava_v0, plain");
    assert_works(&plain);
    close_scene(&plain);
    fixture_free(f);
}

/* Every template, in bytes for the most part: a chat prompt does not fit 100 positions, and that is told. */
static void test_templates(void **state)
{
    (void)state;
    static const char *const names[] = {"vicuna_v1", "llava_v1", "llava_v0", "plain"};
    fixture *f = caption_fixture();
    for (size_t i = 0; i < SQ_COUNT(names); i++) {
        fixture_str(f, "squint.chat.template", names[i]);
        squint_model *m = fixture_model(f, NULL);
        squint_session *s = open_session(m, &one_thread);
        const squint_result r = caption(s, NULL);
        assert_true(i == 3 ? r.n_prompt_tokens == N_PROMPT : r.n_prompt_tokens > 100);
        squint_session_close(&s);
        squint_model_close(&m);
    }
    fixture_str(f, "squint.chat.template", names[0]);
    fixture_u32(f, "llama.context_length", 100);
    squint_model *m = fixture_model(f, NULL);
    squint_session *s = open_session(m, &one_thread);
    squint_result r;
    squint_msg msg;
    assert_int_equal(squint_caption_file(s, test_path(picture), NULL, &r, &msg), SQUINT_ERR_LIMIT);
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

static void test_session_options(void **state)
{
    (void)state;
    static const struct {
        squint_session_options o;
        const char *word;
    } wrong[] = {{{.threads = 257}, "threads"},
                 {{.max_tokens = 65537}, "max_tokens"},
                 {{.max_prompt = 1048577}, "max_prompt"},
                 {{.kv = (squint_kv)4}, "kv"}};
    squint_model *m = caption_model();
    squint_session *s;
    squint_msg msg;
    for (size_t i = 0; i < SQ_COUNT(wrong); i++) {
        assert_int_equal(squint_session_open(&s, m, &wrong[i].o, &msg), SQUINT_ERR_ARGUMENT);
        assert_null(s);
        assert_non_null(strstr(msg.text, wrong[i].word));
        assert_int_equal(squint_session_bytes(m, &wrong[i].o), 0);
    }
    s = open_session(m, NULL);
    assert_int_equal(squint_session_threads(s), sq_cpu_count());
    squint_session_close(&s);
    squint_session_close(&s);
    s = open_session(m, &(squint_session_options){.threads = 3});
    assert_int_equal(squint_session_threads(s), 3);
    squint_session_close(&s);
    squint_model_close(&m);
    squint_model_close(&m);
}

static void test_kernels_by_name(void **state)
{
    (void)state;
    fixture *f = caption_fixture();
    squint_model *m;
    squint_msg msg;
    for (const char *const *isa = sq_kernels_names(); *isa; isa++) {
        m = fixture_model(f, *isa);
        assert_string_equal(squint_model_isa(m), *isa);
        squint_model_close(&m);
        setenv("SQUINT_ISA", *isa, 1);
        m = fixture_model(f, NULL);
        assert_string_equal(squint_model_isa(m), *isa);
        squint_model_close(&m);
    }
    setenv("SQUINT_ISA", "mmx", 1);
    assert_int_equal(fixture_open(&m, f, NULL, &msg), SQUINT_ERR_ARGUMENT);
    assert_non_null(strstr(msg.text, "\"mmx\""));
    assert_non_null(strstr(msg.text, "scalar"));
    m = fixture_model(f, "scalar"); /* the caller's choice goes before the environment's */
    squint_model_close(&m);
    unsetenv("SQUINT_ISA");
    fixture_free(f);
}

/* Kernels and threads change how fast a caption is written. */
static void test_same_text_by_all_kernels(void **state)
{
    (void)state;
    scene c;
    fixture *f = caption_fixture();
    open_scene(&c);
    for (const char *const *isa = sq_kernels_names(); *isa; isa++)
        for (unsigned threads = 1; threads <= 3; threads++) {
            squint_model *m = fixture_model(f, *isa);
            squint_session *s = open_session(m, &(squint_session_options){.threads = threads, .max_tokens = 24});
            assert_string_equal(caption(s, NULL).text, c.text);
            squint_session_close(&s);
            squint_model_close(&m);
        }
    fixture_free(f);
    close_scene(&c);
}

/* ---- models in memory ---- */

/* At any address, and ending at a page that cannot be read. */
static void test_model_in_memory(void **state)
{
    (void)state;
    static const size_t offsets[] = {0, 1, 2, 4, 8, 32, 63};
    scene c;
    size_t size;
    squint_msg msg;
    open_scene(&c);
    fixture *f = caption_fixture();
    uint8_t *bytes = fixture_bytes(f, &size);
    for (size_t i = 0; i < SQ_COUNT(offsets); i++) {
        uint8_t *at = guarded_alloc(size + 64, 64);
        squint_model *m;
        memcpy(at + offsets[i], bytes, size);
        if (squint_model_open_memory(&m, at + offsets[i], size, NULL, &msg)) fail_msg("%s", msg.text);
        squint_session *s = open_session(m, &one_thread);
        assert_string_equal(caption(s, NULL).text, c.text);
        squint_session_close(&s);
        squint_model_close(&m);
        guarded_free(at);
    }
    squint_model *m;
    assert_int_equal(squint_model_open_memory(&m, bytes, size / 2, NULL, &msg), SQUINT_ERR_FORMAT);
    assert_null(m);
    assert_int_equal(squint_model_open_memory(&m, bytes, 0, NULL, &msg), SQUINT_ERR_FORMAT);
    assert_int_equal(squint_model_open_memory(&m, NULL, 0, NULL, &msg), SQUINT_ERR_ARGUMENT);
    assert_int_equal(squint_model_open(&m, NULL, NULL, &msg), SQUINT_ERR_ARGUMENT);
    assert_int_equal(squint_model_open(&m, "/nowhere/model.gguf", NULL, &msg), SQUINT_ERR_IO);
    assert_non_null(strstr(msg.text, "/nowhere/model.gguf"));
    free(bytes);
    fixture_free(f);
    close_scene(&c);
}

/* ---- memory ---- */

static void test_session_bytes(void **state)
{
    (void)state;
    static const squint_session_options options[] = {
        {.threads = 1},
        {.threads = 3},
        {.threads = 1, .routes = true},
        {.threads = 2, .max_tokens = 500, .max_prompt = 1000, .kv = SQUINT_KV_F16}};
    counting c = {0};
    fixture *f = caption_fixture();
    squint_model *m;
    assert_int_equal(fixture_open(&m, f, &(squint_model_options){.allocator = counting_allocator(&c)}, NULL),
                     SQUINT_OK);
    for (size_t i = 0; i < SQ_COUNT(options); i++) {
        const size_t before = c.bytes, calls = c.calls, told = squint_session_bytes(m, &options[i]);
        assert_int_equal(c.calls, calls); /* asking takes nothing */
        squint_session *s = open_session(m, &options[i]);
        assert_int_equal(c.bytes - before, told);
        squint_session_close(&s);
        assert_int_equal(c.bytes, before);
    }
    squint_model_close(&m);
    assert_int_equal(c.live, 0);
    fixture_free(f);
}

typedef struct bookkeeper {
    const counting *c;
    size_t calls, live; /* at the first call of the token loop */
    unsigned seen;
} bookkeeper;

static void check_books(bookkeeper *b)
{
    if (!b->seen++) {
        b->calls = b->c->calls;
        b->live = b->c->live;
    }
    assert_int_equal(b->c->calls, b->calls); /* no alloc; and so, with as many blocks, no free */
    assert_int_equal(b->c->live, b->live);
}

static bool check_at_text(void *user, const char *text, size_t bytes)
{
    (void)text;
    (void)bytes;
    check_books(user);
    return true;
}

static bool check_at_progress(void *user, squint_stage stage, unsigned done, unsigned total)
{
    (void)done;
    (void)total;
    if (stage >= SQUINT_STAGE_TOWER) check_books(user);
    return true;
}

/* From the first layer of the tower to the last token nothing is allocated and nothing released. */
static void test_no_allocation_while_writing(void **state)
{
    (void)state;
    counting c = {0};
    bookkeeper b = {.c = &c};
    fixture *f = caption_fixture();
    squint_model *m;
    assert_int_equal(fixture_open(&m, f, &(squint_model_options){.allocator = counting_allocator(&c)}, NULL),
                     SQUINT_OK);
    squint_session *s = open_session(m, &(squint_session_options){.threads = 2, .max_tokens = 24, .routes = true});
    caption(s, &(squint_caption_options){.temperature = 2,
                                         .top_k = 100,
                                         .top_p = 0.9f,
                                         .on_text = check_at_text,
                                         .on_progress = check_at_progress,
                                         .user = &b});
    assert_true(b.seen > 24 + N_LAYERS);
    squint_session_close(&s);
    squint_model_close(&m);
    assert_int_equal(c.live, 0);
    fixture_free(f);
}

/* Memory ends at the first, second, third ... allocation of loading: told so, nothing left behind. */
static void test_no_memory_for_a_model(void **state)
{
    (void)state;
    fixture *f = caption_fixture();
    fixture_encode(f, "v.blk.0.attn_q.weight", (fixture_type){.tensor = SQ_TENSOR_F16},
                   false); /* one that is expanded */
    size_t size;
    uint8_t *bytes = fixture_bytes(f, &size);
    squint_err err = SQUINT_ERR_NOMEM;
    size_t at = 0;
    while (err) {
        counting c = {.fail_at = ++at};
        const squint_model_options o = {.allocator = counting_allocator(&c)};
        squint_model *m;
        squint_msg msg;
        err = squint_model_open_memory(&m, bytes, size, &o, &msg);
        if (err) {
            if (err != SQUINT_ERR_NOMEM) fail_msg("allocation %zu: error %d: %s", at, err, msg.text);
            assert_null(m);
        }
        squint_model_close(&m);
        assert_int_equal(c.live, 0);
    }
    assert_true(at > 10);
    free(bytes);
    fixture_free(f);
}

static void test_no_memory_for_a_session(void **state)
{
    (void)state;
    fixture *f = caption_fixture();
    counting c = {0};
    squint_model *m;
    assert_int_equal(fixture_open(&m, f, &(squint_model_options){.allocator = counting_allocator(&c)}, NULL),
                     SQUINT_OK);
    const size_t live = c.live;
    squint_session *s = NULL;
    unsigned failures = 0;
    for (; !s; failures++) {
        squint_msg msg;
        c.fail_at = c.calls + 1 + failures;
        const squint_err err = squint_session_open(&s, m, &(squint_session_options){.threads = 2}, &msg);
        assert_true(err == SQUINT_OK || err == SQUINT_ERR_NOMEM);
        assert_true(!s == (err != SQUINT_OK));
        if (err) assert_int_equal(c.live, live);
    }
    assert_int_equal(failures, 4); /* session, buffers, threads; then it opens */
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

static void test_no_memory_for_a_caption(void **state)
{
    (void)state;
    fixture *f = caption_fixture();
    counting c = {0};
    squint_model *m;
    assert_int_equal(fixture_open(&m, f, &(squint_model_options){.allocator = counting_allocator(&c)}, NULL),
                     SQUINT_OK);
    squint_session *s = open_session(m, &one_thread);
    const size_t live = c.live;
    squint_err err = SQUINT_ERR_NOMEM;
    unsigned at = 0;
    squint_result r;
    while (err) {
        squint_msg msg;
        c.fail_at = c.calls + ++at;
        err = squint_caption_file(s, test_path(picture), NULL, &r, &msg);
        if (err && err != SQUINT_ERR_NOMEM) fail_msg("allocation %u: error %d: %s", at, err, msg.text);
        assert_int_equal(c.live, live);
    }
    assert_true(at > 3);
    assert_int_equal(r.n_tokens, 24);
    squint_session_close(&s);
    squint_model_close(&m);
    assert_int_equal(c.live, 0);
    fixture_free(f);
}

/* An allocator that cancels a session once, with its first allocation: what comes while the picture is read is not
 * lost. */
static void *cancelling_alloc(void *user, size_t size)
{
    squint_session **const s = user;
    if (*s) squint_session_cancel(*s);
    *s = NULL;
    return malloc(size);
}

static void plain_free(void *user, void *memory, size_t size)
{
    (void)user;
    (void)size;
    free(memory);
}

static void test_cancel_while_the_picture_is_read(void **state)
{
    (void)state;
    squint_session *cancelled = NULL;
    fixture *f = caption_fixture();
    squint_model *m;
    squint_result r;
    const squint_model_options o = {.allocator = {cancelling_alloc, plain_free, &cancelled}};
    assert_int_equal(fixture_open(&m, f, &o, NULL), SQUINT_OK);
    squint_session *s = open_session(m, &one_thread);
    cancelled = s;
    assert_int_equal(squint_caption_file(s, test_path(picture), NULL, &r, NULL), SQUINT_ERR_CANCELLED);
    assert_int_equal(caption(s, NULL).n_tokens, 24);
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

/* ---- sessions side by side ---- */

typedef struct writer {
    const squint_model *m;
    const char *expected;
    unsigned wrong;
} writer;

static void *write_captions(void *arg)
{
    writer *const w = arg;
    squint_session *s;
    squint_result r;
    w->wrong =
        squint_session_open(&s, w->m, &(squint_session_options){.threads = 2, .max_tokens = 24}, NULL) != SQUINT_OK;
    for (int i = 0; i < 5 && !w->wrong; i++)
        w->wrong += squint_caption_file(s, test_path(picture), NULL, &r, NULL) || strcmp(r.text, w->expected) != 0;
    squint_session_close(&s);
    return NULL;
}

static void test_two_sessions_at_once(void **state)
{
    (void)state;
    scene c;
    pthread_t threads[2];
    open_scene(&c);
    writer w[2] = {{c.m, c.text, 0}, {c.m, c.text, 0}};
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, write_captions, &w[i]), 0);
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(w[i].wrong, 0);
    }
    assert_works(&c);
    close_scene(&c);
}

static void test_version(void **state)
{
    (void)state;
    char expected[32];
    snprintf(expected, sizeof expected, "%d.%d.%d", SQUINT_VERSION_MAJOR, SQUINT_VERSION_MINOR, SQUINT_VERSION_PATCH);
    assert_string_equal(squint_version(), expected);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_result),
        cmocka_unit_test(test_budgets),
        cmocka_unit_test(test_predictions_learn),
        cmocka_unit_test(test_work),
        cmocka_unit_test(test_ways_to_give_a_picture),
        cmocka_unit_test(test_picture_matters),
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_context_is_used_up),
        cmocka_unit_test(test_end_token),
        cmocka_unit_test(test_pieces_are_the_text),
        cmocka_unit_test(test_stopping_by_callback),
        cmocka_unit_test(test_stop_inside_a_character),
        cmocka_unit_test(test_cancel_from_another_thread),
        cmocka_unit_test(test_caption_options),
        cmocka_unit_test(test_pictures_that_are_none),
        cmocka_unit_test(test_longest_expanded_prompt),
        cmocka_unit_test(test_stop_text),
        cmocka_unit_test(test_asked_template),
        cmocka_unit_test(test_templates),
        cmocka_unit_test(test_session_options),
        cmocka_unit_test(test_kernels_by_name),
        cmocka_unit_test(test_same_text_by_all_kernels),
        cmocka_unit_test(test_model_in_memory),
        cmocka_unit_test(test_session_bytes),
        cmocka_unit_test(test_no_allocation_while_writing),
        cmocka_unit_test(test_no_memory_for_a_model),
        cmocka_unit_test(test_no_memory_for_a_session),
        cmocka_unit_test(test_no_memory_for_a_caption),
        cmocka_unit_test(test_cancel_while_the_picture_is_read),
        cmocka_unit_test(test_two_sessions_at_once),
        cmocka_unit_test(test_version),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
