/*
 * A tiny p-MoD captioner against PyTorch, from the picture to the words (tools/train/golden.py).
 * SPDX-License-Identifier: MIT
 *
 * Both sides compute in float32 and differ in the order of their sums and in exp and tanh. A sum of K products moves
 * by some sqrt(K) u of its terms' size (u = 2^-24, K up to 128), 1e-6 of values up to 17; 40 such steps, carried on by
 * residuals, add up to some 1e-5 when they fall at random (measured: 1.1e-5 in scores, less in logits), and to 5e-4 if
 * all fell one way. The bound lies between; a wrong weight, position or kept token moves logits by 1e-2 and more.
 */
#include "models/llava.h"
#include "tests/support.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_LAYERS = 16, MAX_ROWS = 128, N_GREEDY = 12, N_GREEDY_LOGITS = 3 };

static const double BOUND = 1e-4;

static sq_gguf *golden; /* what PyTorch found */
static const char *isa; /* the kernels under test */

/* ---- golden values ---- */

static const sq_gguf_tensor *find(const char *name)
{
    const sq_gguf_tensor *t = sq_gguf_find(golden, name);
    if (!t) fail_msg("the golden file has no tensor %s", name);
    return t;
}

static size_t count(const sq_gguf_tensor *t) { return (size_t)(t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3]); }
static const float *floats(const char *name) { return (const float *)(const void *)find(name)->data; }
static const uint32_t *ints(const char *name) { return (const uint32_t *)(const void *)find(name)->data; }

/* Prefix and layer: "layer.3.kept". */
static const char *of_layer(uint32_t layer, const char *suffix)
{
    static char name[64];
    snprintf(name, sizeof name, "layer.%u%s", layer, suffix);
    return name;
}

static void assert_close(const float *got, const float *want, size_t n, double bound, const char *what)
{
    for (size_t i = 0; i < n; i++)
        if (!(fabs((double)got[i] - (double)want[i]) <= bound))
            fail_msg("%s: %s: element %zu is %.7g, not %.7g", isa, what, i, (double)got[i], (double)want[i]);
}

static void assert_tensor(const float *got, size_t n, const char *name)
{
    assert_int_equal(n, count(find(name)));
    assert_close(got, floats(name), n, BOUND, name);
}

/* ---- a session on the tiny model ---- */

typedef struct tiny {
    squint_model *model;
    squint_session *s;
} tiny;

static tiny open_tiny(void)
{
    tiny t;
    squint_msg msg = {""};
    const squint_model_options options = {.isa = isa};
    const squint_session_options two_threads = {.threads = 2};
    if (squint_model_open(&t.model, test_path("golden/tiny-pmod.gguf"), &options, &msg)) fail_msg("%s", msg.text);
    const sq_limits limits = {.max_rows = MAX_ROWS,
                              .max_tokens = MAX_ROWS,
                              .max_logits = MAX_ROWS,
                              .max_vision = t.model->n_vision,
                              .kv = SQ_KV_F32};
    if (sq_session_open_limits(&t.s, t.model, &two_threads, &limits, &msg)) fail_msg("%s", msg.text);
    return t;
}

static void close_tiny(tiny *t)
{
    squint_session_close(&t->s);
    squint_model_close(&t->model);
}

static void forward(tiny *t, const uint32_t *ids, uint32_t n, uint32_t n_logits)
{
    squint_msg msg = {""};
    if (sq_session_forward(t->s, ids, n, n_logits, &msg)) fail_msg("%s: %s", isa, msg.text);
}

static void see(tiny *t)
{
    const sq_gguf_tensor *const picture = find("picture");
    const uint32_t w = (uint32_t)picture->ne[1], h = (uint32_t)picture->ne[2];
    assert_int_equal(sq_session_picture(t->s, picture->data, w, h, 3 * (size_t)w, NULL), SQUINT_OK);
    assert_int_equal(sq_session_encode(t->s, NULL), SQUINT_OK);
}

static uint32_t n_prompt(const tiny *t) /* BOS, image, line break */ { return 1 + t->model->n_vision + 2; }

static void assert_kv(const tiny *t, const char *name)
{
    const uint32_t *const want = ints(name);
    for (uint32_t l = 0; l < t->model->n_layers; l++)
        assert_int_equal(sq_llava_state_of(t->s)->kv[l].n, want[l]);
}

static uint32_t best(const float *logits, uint32_t n)
{
    uint32_t top = 0;
    for (uint32_t i = 1; i < n; i++)
        if (logits[i] > logits[top]) top = i;
    return top;
}

/* ---- traces ---- */

typedef struct seen {
    unsigned n_layers, n_scores, n_kept, n_tower, n_projected;
} seen;

static void compare(void *user, sq_trace_what what, int layer, const void *data, uint32_t rows, uint32_t cols)
{
    seen *const s = user;
    const size_t n = (size_t)rows * cols;
    switch (what) {
    case SQ_TRACE_TOWER:
        s->n_tower++, assert_tensor(data, n, "tower");
        break;
    case SQ_TRACE_PROJECTED:
        s->n_projected++, assert_tensor(data, n, "projected");
        break;
    case SQ_TRACE_LAYER:
        s->n_layers++, assert_tensor(data, n, of_layer((uint32_t)layer, ""));
        break;
    case SQ_TRACE_SCORES:
        s->n_scores++, assert_tensor(data, n, of_layer((uint32_t)layer, ".scores"));
        break;
    case SQ_TRACE_KEPT: {
        const char *const name = of_layer((uint32_t)layer, ".kept");
        s->n_kept++;
        assert_int_equal(n, count(find(name)));
        assert_memory_equal(data, ints(name), n * sizeof(uint32_t));
        break;
    }
    default:
        break;
    }
}

static void count_scores(void *user, sq_trace_what what, int layer, const void *data, uint32_t rows, uint32_t cols)
{
    (void)layer, (void)data, (void)rows, (void)cols;
    ((seen *)user)->n_scores += what == SQ_TRACE_SCORES;
}

/* ---- the tests, each run with all kernels ---- */

static void pixels_are_pillows(void)
{
    tiny t = open_tiny();
    see(&t);
    assert_close(t.s->pixels, floats("pixels"), count(find("pixels")), 1e-6, "pixels"); /* two roundings */
    close_tiny(&t);
}

static void every_layer_agrees(void)
{
    tiny t = open_tiny();
    seen s = {0};
    t.s->trace = compare;
    t.s->trace_user = &s;
    see(&t);
    const uint32_t n = (uint32_t)count(find("ids")), n_text = n - 1 - t.model->n_vision;
    forward(&t, ints("ids"), n, n_text);
    assert_tensor(t.s->logits, (size_t)n_text * t.model->n_vocab, "logits");
    assert_int_equal(s.n_tower, 1);
    assert_int_equal(s.n_projected, 1);
    assert_int_equal(s.n_layers, t.model->n_layers);
    assert_int_equal(s.n_scores, t.model->n_layers - 2); /* the schedule leaves two dense */
    assert_int_equal(s.n_kept, s.n_scores);
    for (uint32_t l = 2; l < t.model->n_layers; l++)
        assert_int_equal(sq_llava_state_of(t.s)->kv[l].n, count(find(of_layer(l, ".kept"))));
    close_tiny(&t);
}

static void prompt_and_caption_give_the_ids(void)
{
    tiny t = open_tiny();
    uint32_t ids[MAX_ROWS];
    size_t n = 0;
    sq_str caption;
    squint_msg msg = {""};
    assert_int_equal(sq_gguf_get_str(golden, "caption", true, &caption, &msg), SQUINT_OK);
    char text[256];
    snprintf(text, sizeof text, "%.*s", (int)caption.len, caption.s);
    const size_t bytes = sq_prompt_scratch(caption.len);
    void *const scratch = malloc(bytes);
    if (sq_prompt_ids(t.model->tokenizer, t.model->template_name, text, scratch, bytes, ids, MAX_ROWS, &n, &msg))
        fail_msg("%s", msg.text);
    free(scratch);
    /* one id stands for the whole picture */
    const uint32_t *const want = ints("ids");
    assert_int_equal(n + t.model->n_vision - 1, count(find("ids")));
    assert_memory_equal(ids, want, 2 * sizeof *ids);
    assert_memory_equal(ids + 2, want + 1 + t.model->n_vision, (n - 2) * sizeof *ids);
    close_tiny(&t);
}

static void greedy_words_agree(void)
{
    tiny t = open_tiny();
    const uint32_t *const ids = ints("ids"), *const words = ints("greedy.ids");
    const uint32_t n_vocab = t.model->n_vocab;
    see(&t);
    forward(&t, ids, n_prompt(&t), 1);
    assert_tensor(t.s->logits, n_vocab, "prompt.logits");
    assert_kv(&t, "prompt.kv");
    for (uint32_t i = 0; i < N_GREEDY; i++) {
        const uint32_t id = best(t.s->logits, n_vocab);
        assert_int_equal(id, words[i]);
        forward(&t, &id, 1, 1);
        if (i < N_GREEDY_LOGITS)
            assert_close(t.s->logits, floats("greedy.logits") + (size_t)i * n_vocab, n_vocab, BOUND, "greedy.logits");
    }
    assert_kv(&t, "greedy.kv");
    close_tiny(&t);
}

/* The caption in one pass after the prompt, or token by token: as if all had been one pass. */
static void appended_text_equals_one_pass(void)
{
    tiny t = open_tiny();
    const uint32_t *const ids = ints("ids"), n = (uint32_t)count(find("ids")), prompt = n_prompt(&t);
    const uint32_t n_vocab = t.model->n_vocab, n_words = n - prompt;
    const float *const want = floats("logits") + 2 * (size_t)n_vocab; /* after the line break's two rows */
    see(&t);
    forward(&t, ids, prompt, 0);
    forward(&t, ids + prompt, n_words, n_words);
    assert_close(t.s->logits, want, (size_t)n_words * n_vocab, BOUND, "appended");
    const size_t kv_bytes = sq_session_kv_bytes(t.s);

    sq_session_reset(t.s);
    forward(&t, ids, prompt, 0);
    for (uint32_t i = 0; i < n_words; i++) {
        forward(&t, ids + prompt + i, 1, 1);
        assert_close(t.s->logits, want + (size_t)i * n_vocab, n_vocab, BOUND, "decoded");
    }
    assert_int_equal(sq_session_kv_bytes(t.s), kv_bytes);
    close_tiny(&t);
}

/* Taking text off and putting it on again repeats the same sums over the same numbers: to the bit. */
static void rewound_text_can_be_run_again(void)
{
    tiny t = open_tiny();
    const uint32_t *const ids = ints("ids"), n = (uint32_t)count(find("ids")), prompt = n_prompt(&t);
    const uint32_t n_words = n - prompt, other = ints("greedy.ids")[0];
    const size_t bytes = (size_t)n_words * t.model->n_vocab * sizeof(float);
    float *const before = malloc(bytes);
    see(&t);
    forward(&t, ids, prompt, 0);
    forward(&t, ids + prompt, n_words, n_words);
    memcpy(before, t.s->logits, bytes);
    assert_int_equal(sq_session_rewind(t.s, prompt, NULL), SQUINT_OK);
    assert_kv(&t, "prompt.kv");
    forward(&t, &other, 1, 1);
    assert_int_equal(sq_session_rewind(t.s, prompt, NULL), SQUINT_OK);
    forward(&t, ids + prompt, n_words, n_words);
    assert_memory_equal(t.s->logits, before, bytes);
    assert_int_equal(sq_session_rewind(t.s, t.model->n_vision, NULL), SQUINT_ERR_ARGUMENT); /* in the picture */
    free(before);
    close_tiny(&t);
}

static void text_alone_is_never_routed(void)
{
    tiny t = open_tiny();
    seen s = {0};
    t.s->trace = count_scores;
    t.s->trace_user = &s;
    const uint32_t n = (uint32_t)count(find("text.ids"));
    forward(&t, ints("text.ids"), n, n - 1);
    assert_tensor(t.s->logits, (size_t)(n - 1) * t.model->n_vocab, "text.logits");
    assert_int_equal(s.n_scores, 0);
    for (uint32_t l = 0; l < t.model->n_layers; l++)
        assert_int_equal(sq_llava_state_of(t.s)->kv[l].n, n);
    close_tiny(&t);
}

/* ---- with each kind of kernels ---- */

static void with_all_kernels(void (*test)(void))
{
    static const char *const names[] = {"scalar", "avx2", "avx512", "neon", "dotprod", "i8mm"};
    for (size_t i = 0; i < SQ_COUNT(names); i++)
        if (sq_kernels_get(names[i])) {
            isa = names[i];
            test();
        }
}

#define TEST(name)                                                                                                     \
    static void test_##name(void **state)                                                                              \
    {                                                                                                                  \
        (void)state;                                                                                                   \
        with_all_kernels(name);                                                                                        \
    }

TEST(pixels_are_pillows)
TEST(every_layer_agrees)
TEST(prompt_and_caption_give_the_ids)
TEST(greedy_words_agree)
TEST(appended_text_equals_one_pass)
TEST(rewound_text_can_be_run_again)
TEST(text_alone_is_never_routed)

static int open_golden(void **state)
{
    (void)state;
    return (int)sq_gguf_open(&golden, test_path("golden/tiny-pmod.golden.gguf"), NULL, NULL);
}

static int close_golden(void **state)
{
    (void)state;
    sq_gguf_close(&golden);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pixels_are_pillows),
        cmocka_unit_test(test_every_layer_agrees),
        cmocka_unit_test(test_prompt_and_caption_give_the_ids),
        cmocka_unit_test(test_greedy_words_agree),
        cmocka_unit_test(test_appended_text_equals_one_pass),
        cmocka_unit_test(test_rewound_text_can_be_run_again),
        cmocka_unit_test(test_text_alone_is_never_routed),
    };
    return cmocka_run_group_tests(tests, open_golden, close_golden);
}
