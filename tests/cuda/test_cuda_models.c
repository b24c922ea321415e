/*
 * Whole models on an emulated GPU against the same on the CPU: all that a session tells on its way, to the last bit,
 * where the file's weights are panels; near it, with weights as floats. And what happens when the GPU fails.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/engine.h"
#include "tests/command.h"
#include "tests/cuda/emulator.h"
#include "tests/fixture.h"
#include "tests/support.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { MAX_ROWS = 1024, N_LOGITS = 3, N_DECODED = 3, N_WHATS = SQ_TRACE_LOGITS + 1 };

static uint64_t seed = 20261122;

/* ---- what a session tells ---- */

/* All that was told of one thing in one layer, in the order of telling: rows may come in blocks of any size. */
typedef struct told {
    uint8_t *data;
    size_t bytes, room;
    unsigned turn; /* counted from 1 in the order of first tellings */
} told;

typedef struct record {
    told all[N_WHATS][SQ_MAX_LAYERS + 1]; /* layer + 1 */
    unsigned n_told;
    uint32_t n_kept; /* sum over layers and passes */
    squint_err err;
    squint_msg msg;
} record;

static void keep(void *user, sq_trace_what what, int layer, const void *data, uint32_t rows, uint32_t cols)
{
    record *const r = user;
    told *const t = &r->all[what][layer + 1];
    const size_t n = (size_t)rows * cols * sizeof(float);
    if (!t->turn) t->turn = ++r->n_told;
    if (t->bytes + n > t->room) {
        t->room = 2 * (t->bytes + n);
        t->data = realloc(t->data, t->room);
        assert_non_null(t->data);
    }
    if (n) memcpy(t->data + t->bytes, data, n);
    t->bytes += n;
    if (what == SQ_TRACE_KEPT) r->n_kept += cols;
}

static void free_record(record *r)
{
    for (unsigned w = 0; w < N_WHATS; w++)
        for (unsigned l = 0; l <= SQ_MAX_LAYERS; l++)
            free(r->all[w][l].data);
    free(r);
}

/* The first number that is another one; n: none. */
static size_t first_other(const told *a, const told *b)
{
    const size_t n = (a->bytes < b->bytes ? a->bytes : b->bytes) / sizeof(float);
    size_t i = 0;
    while (i < n && !memcmp(a->data + i * sizeof(float), b->data + i * sizeof(float), sizeof(float)))
        i++;
    return i;
}

/* What the run did not come to, because it failed, is no difference. */
static void assert_told_same(const record *got, const told *a, const told *b, unsigned what, int layer, const char *run)
{
    const size_t i = first_other(a, b), n = b->bytes / sizeof(float);
    float x = NAN, y = NAN;
    if (i * sizeof x == a->bytes && (i == n || got->err)) return;
    if (i * sizeof x < a->bytes) memcpy(&x, a->data + i * sizeof x, sizeof x);
    if (i < n) memcpy(&y, b->data + i * sizeof y, sizeof y);
    fail_msg("%s: trace %u of layer %d: of %zu numbers, not %zu, number %zu is %a, not %a", run, what, layer,
             a->bytes / sizeof x, n, i, (double)x, (double)y);
}

/* What went wrong first is told. */
static void assert_same(const record *got, const record *want, const char *run)
{
    for (unsigned turn = 1; turn <= want->n_told; turn++)
        for (unsigned w = 0; w < N_WHATS; w++)
            for (unsigned l = 0; l <= SQ_MAX_LAYERS; l++)
                if (want->all[w][l].turn == turn)
                    assert_told_same(got, &got->all[w][l], &want->all[w][l], w, (int)l - 1, run);
    if (got->err) fail_msg("%s: %s", run, got->msg.text);
    assert_int_equal(got->n_told, want->n_told);
    assert_int_equal(want->err, SQUINT_OK);
}

/* ---- a model's run ---- */

typedef struct run {
    const char *path, *device, *mode;
    squint_kv kv;
    float keep;
    uint32_t width, height; /* of the picture; none without a tower */
} run;

/* The first pass has the picture between two tokens; then comes text, once several tokens and then one at a time, and a
 * part of it once more. */
static squint_err pass_all(squint_session *s, const run *r, squint_msg *msg)
{
    uint32_t ids[MAX_ROWS], n = 0;
    squint_err err = SQUINT_OK;
    ids[n++] = 1;
    if (s->model->n_vision) {
        uint8_t *const rgb = malloc((size_t)r->width * r->height * 3);
        uint64_t pixels = 7;
        for (size_t i = 0; i < (size_t)r->width * r->height * 3; i++)
            rgb[i] = (uint8_t)random_u64(&pixels);
        err = sq_session_picture(s, rgb, r->width, r->height, (size_t)r->width * 3, msg);
        free(rgb);
        if (!err) err = sq_session_encode(s, msg);
        assert_true(s->n_vision + 8 < MAX_ROWS);
        for (uint32_t i = 0; !err && i < s->n_vision; i++)
            ids[n++] = SQ_IMAGE_TOKEN;
    }
    for (uint32_t i = 0; i < 5; i++)
        ids[n++] = 3 + i;
    if (!err) err = sq_session_forward(s, ids, n, N_LOGITS, msg);
    const uint32_t past = s->n_past;
    if (!err) err = sq_session_forward(s, (const uint32_t[]){9, 8, 7, 6, 5}, 5, 1, msg);
    if (!err) err = sq_session_rewind(s, past + 2, msg);
    for (uint32_t i = 0; !err && i < N_DECODED; i++)
        err = sq_session_forward(s, &(uint32_t){4 + i}, 1, 1, msg);
    return err;
}

static squint_err open_run(const run *r, squint_model **m, squint_session **s, squint_msg *msg)
{
    const squint_model_options options = {.device = r->device, .mode = r->mode};
    const squint_session_options session = {.threads = 2, .kv = r->kv, .keep = r->keep};
    *s = NULL;
    squint_err err = squint_model_open(m, r->path, &options, msg);
    if (err) return err;
    const sq_limits limits = {.max_rows = MAX_ROWS,
                              .max_tokens = MAX_ROWS,
                              .max_logits = N_LOGITS,
                              .max_vision = (*m)->n_vision,
                              .kv = sq_kv_of(*m, r->kv)};
    return sq_session_open_limits(s, *m, &session, &limits, msg);
}

static squint_err try_run(const run *r, record *out, squint_msg *msg)
{
    squint_model *m = NULL;
    squint_session *s = NULL;
    squint_err err = open_run(r, &m, &s, msg);
    if (!err) {
        if (out) s->trace = keep;
        s->trace_user = out;
        err = pass_all(s, r, msg);
    }
    if (s) squint_session_close(&s);
    if (m) squint_model_close(&m);
    return err;
}

static record *recorded(run r, const char *device)
{
    record *const out = calloc(1, sizeof *out);
    assert_non_null(out);
    r.device = device;
    out->err = try_run(&r, out, &out->msg);
    assert_int_equal(emulator_used_pieces(), 0);
    return out;
}

/* ---- the same bits ---- */

static void check_bits(const run *r)
{
    static const emulator_order orders[] = {EMULATOR_FORWARD, EMULATOR_REVERSE, EMULATOR_SHUFFLED};
    static unsigned turn;
    char what[1200];
    record *const want = recorded(*r, "cpu");
    emulator_set_order(orders[turn++ % 3], random_u64(&seed));
    const uint64_t before = emulator_launches();
    record *const got = recorded(*r, "cuda");
    assert_true(emulator_launches() > before);
    snprintf(what, sizeof what, "%s, mode %s, kv %d, keep %g, picture %ux%u", r->path, r->mode ? r->mode : "own", r->kv,
             (double)r->keep, r->width, r->height);
    assert_same(got, want, what);
    free_record(want);
    free_record(got);
}

/* As `squint quantize` makes it of one of the goldens. */
static const char *quantised(const char *name, const char *type, const char *group)
{
    static char path[1024];
    snprintf(path, sizeof path, "%s", temp_path(".gguf"));
    command_result r = RUN("quantize", "--type", type, test_path(name), path, group ? "--group" : NULL, group);
    if (r.status) fail_msg("%s: %s", name, r.err);
    command_result_free(&r);
    return path;
}

static void check_model(const char *name, const char *type, const char *group)
{
    const char *const path = quantised(name, type, group);
    run r = {.path = path, .width = 40, .height = 30};
    check_bits(&r);
    r.width = 21;
    r.height = 64;
    r.kv = SQUINT_KV_Q8;
    check_bits(&r);
    r.mode = "dense";
    r.kv = SQUINT_KV_F32;
    check_bits(&r);
    unlink(path);
}

static void every_family_has_the_same_bits(void **state)
{
    (void)state;
    static const char *const names[] = {"gamma-hr",   "gamma-mgm",    "llava-hr-x", "llava15",
                                        "llava15-hf", "llavanext-hf", "pmod15",     "pmodnext"};
    char file[64];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(file, sizeof file, "golden/checkpoints/%s.gguf", names[i]);
        check_model(file, i % 2 ? "q8" : "q4", i % 2 ? NULL : "32");
    }
}

static void tiny_models_have_the_same_bits(void **state)
{
    (void)state;
    check_model("golden/tiny-pmod.gguf", "q8", NULL);
    check_model("golden/tiny-pmod.gguf", "q4", "64");
    check_model("golden/tiny-pmod.gguf", "q8_0", NULL);
    check_model("golden/tiny-pmod.gguf", "q4_0", NULL);
}

static void fewer_tokens_have_the_same_bits(void **state)
{
    (void)state;
    const char *const path = quantised("golden/tiny-pmod.gguf", "q8", NULL);
    for (float k = 0.25f; k < 2; k *= 2) {
        const run r = {.path = path, .width = 50, .height = 50, .keep = k};
        check_bits(&r);
    }
    unlink(path);
}

/* ---- near ---- */

static double distance(const told *got, const told *want)
{
    double most = 0;
    assert_int_equal(got->bytes, want->bytes);
    assert_true(got->bytes > 0);
    for (size_t i = 0; i < got->bytes; i += sizeof(float)) {
        float x, y;
        memcpy(&x, got->data + i, sizeof x);
        memcpy(&y, want->data + i, sizeof y);
        const double d = fabs((double)x - (double)y) / (1 + fabs((double)y));
        if (!(d <= most)) most = d;
    }
    return most;
}

/* float32 sums in another order: tests/test_tiny.c has why 1e-4. Halves have 13 bits less in each weight and input:
 * 8192 times that would be past any use, if errors did not cancel; they are some 1e-2 of logits. */
static void floats_are_near(void **state)
{
    (void)state;
    static const struct {
        const char *name, *device;
        double bound;
    } cases[] = {{"tiny-pmod", "cuda", 1e-4},
                 {"tiny-pmod", "cuda:f32", 1e-4},
                 {"checkpoints/llava15", "cuda", 1e-4},
                 {"checkpoints/pmodnext", "cuda:f32", 1e-4},
                 {"checkpoints/llava15", "cuda:f16", 5e-2}};
    char file[64];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        snprintf(file, sizeof file, "golden/%s.gguf", cases[i].name);
        const run r = {.path = test_path(file), .width = 40, .height = 30};
        record *const want = recorded(r, "cpu:f32"), *const got = recorded(r, cases[i].device);
        assert_int_equal(want->err, SQUINT_OK);
        if (got->err) fail_msg("%s on %s: %s", file, cases[i].device, got->msg.text);
        const double d = distance(&got->all[SQ_TRACE_LOGITS][0], &want->all[SQ_TRACE_LOGITS][0]);
        if (!(d <= cases[i].bound)) fail_msg("%s on %s: logits differ by %g", file, cases[i].device, d);
        assert_int_equal(got->n_kept, want->n_kept);
        free_record(want);
        free_record(got);
    }
}

/* Rounded weights expanded are the same weights. */
static void expanded_weights_are_near(void **state)
{
    (void)state;
    const char *const path = quantised("golden/tiny-pmod.gguf", "q4", "32");
    const run r = {.path = path, .width = 40, .height = 30};
    record *const want = recorded(r, "cpu:f32"), *const got = recorded(r, "cuda:f32");
    assert_int_equal(want->err, SQUINT_OK);
    assert_int_equal(got->err, SQUINT_OK);
    assert_true(distance(&got->all[SQ_TRACE_LOGITS][0], &want->all[SQ_TRACE_LOGITS][0]) <= 1e-4);
    free_record(want);
    free_record(got);
    unlink(path);
}

/* ---- failures ---- */

/* The nth call fails, for every n (of launches, of some), until the run does not come to it; nothing is left behind. */
static void check_failures(const run *r, emulator_failure what, unsigned step)
{
    squint_err err = SQUINT_ERR_DEVICE;
    unsigned n_failed = 0;
    for (unsigned n = 1; err; n += n < 4 ? 1 : step, n_failed++) {
        squint_msg msg = {""};
        emulator_fail(what, n);
        err = try_run(r, NULL, &msg);
        emulator_fail(what, 0);
        if (err && err != SQUINT_ERR_DEVICE && err != SQUINT_ERR_NOMEM)
            fail_msg("failure %d of call %u: error %d: %s", what, n, err, msg.text);
        if (err && strncmp(msg.text, "device cuda: ", 13)) fail_msg("failure %d of call %u: %s", what, n, msg.text);
        if (emulator_used_pieces()) fail_msg("failure %d of call %u left something", what, n);
    }
    assert_true(n_failed > 1);
}

static void failures_are_told(void **state)
{
    (void)state;
    const char *const path = quantised("golden/tiny-pmod.gguf", "q8", NULL);
    const run panels = {.path = path, .device = "cuda", .width = 40, .height = 30};
    const run floats = {
        .path = test_path("golden/checkpoints/llava15.gguf"), .device = "cuda", .width = 9, .height = 9};
    emulator_set_order(EMULATOR_FORWARD, 1);
    check_failures(&panels, EMULATOR_FAIL_MALLOC, 7);
    check_failures(&panels, EMULATOR_FAIL_PINNED, 1);
    check_failures(&panels, EMULATOR_FAIL_STREAM, 1);
    check_failures(&panels, EMULATOR_FAIL_LAUNCH, 61);
    check_failures(&floats, EMULATOR_FAIL_BLAS, 1);
    unlink(path);
}

static void no_gpu_is_told(void **state)
{
    (void)state;
    squint_msg msg = {""};
    const run r = {.path = test_path("golden/tiny-pmod.gguf"), .device = "cuda"};
    emulator_set_gpus(0);
    assert_int_equal(try_run(&r, NULL, &msg), SQUINT_ERR_DEVICE);
    assert_string_equal(msg.text, "device cuda: no GPU was found");
    emulator_set_gpus(1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tiny_models_have_the_same_bits),
        cmocka_unit_test(fewer_tokens_have_the_same_bits),
        cmocka_unit_test(every_family_has_the_same_bits),
        cmocka_unit_test(floats_are_near),
        cmocka_unit_test(expanded_weights_are_near),
        cmocka_unit_test(failures_are_told),
        cmocka_unit_test(no_gpu_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
