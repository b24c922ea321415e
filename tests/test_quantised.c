/*
 * Weights of every type through the whole decoder: each against the float run of the values that it keeps, so that what
 * is left is the rounding of activations to eight bits.
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

#define V SQ_IMAGE_TOKEN

enum { D = 64, F = 96, N_LAYERS = 3, N = 14, N_IMAGE = 9, N_LOGITS = N * FIXTURE_VOCAB };

/*
 * An activation is rounded to 1/127 of its group's largest, which is about 3 times the root mean square: an error of
 * 3/127/sqrt(12), 0.7 %, and so of a product. Errors of different products are independent; between an embedding and
 * its logit lie four in each of three layers, and the output: 0.7 % * sqrt(13) = 2.5 %, and a margin for attention,
 * whose exponential enlarges them. A wrong scale, sum or choice of tokens is off by tens of percent.
 */
static const double ACTIVATION_BOUND = 0.035;

/* Kernels differ in the order of additions, 1e-7; an activation next to a half may round to the other side, which
 * moves one of some thousand activations by 1/127: far below this, and far below any wrong term. */
static const double KERNEL_BOUND = 2e-3;

static const uint32_t ids[N] = {1, 7, V, V, V, V, V, V, V, V, V, 3, 9, 4};

static const fixture_type types[] = {{SQ_TENSOR_F16, 0, 0},
                                     {SQ_TENSOR_Q8_0, 0, 0},
                                     {SQ_TENSOR_Q4_0, 0, 0},
                                     {SQ_TENSOR_I8, SQ_PANEL_I8, 0},
                                     {SQ_TENSOR_I8, SQ_PANEL_I8, 32},
                                     {SQ_TENSOR_I8, SQ_PANEL_I8, 64},
                                     {SQ_TENSOR_I8, SQ_PANEL_I8, 128},
                                     {SQ_TENSOR_I8, SQ_PANEL_I4, 0},
                                     {SQ_TENSOR_I8, SQ_PANEL_I4, 32},
                                     {SQ_TENSOR_I8, SQ_PANEL_I4, 64},
                                     {SQ_TENSOR_I8, SQ_PANEL_I4, 128}};

/* Layers 1 and 2 keep 4 of 9 vision tokens, by their first value, in which fill_vision() sets them far apart:
 * no rounding changes what is kept. */
static fixture *quantised_fixture(void)
{
    fixture *f = fixture_decoder_of(&(fixture_shape){N_LAYERS, D, F, 4, 2});
    fixture_routing(f, (const bool[]){false, true, true}, (const float[]){1, 0.5f, 0.5f});
    for (int l = 1; l < N_LAYERS; l++) {
        char name[32];
        snprintf(name, sizeof name, "blk.%d.mod_router.weight", l);
        memset(fixture_floats(f, name), 0, D * sizeof(float));
        fixture_floats(f, name)[0] = 0.05f;
    }
    return f;
}

static void fill_vision(float *vision)
{
    static const float order[N_IMAGE] = {4, -3, 1, -1, 3, 0, -4, 2, -2};
    fixture_values(vision, N_IMAGE * D, 2000, 0, 1);
    for (int i = 0; i < N_IMAGE; i++)
        vision[i * D] = 3 * order[i];
}

static squint_session *open_session(const squint_model *m, unsigned threads)
{
    static const sq_limits limits = {
        .max_rows = N, .max_tokens = N + 4, .max_logits = N, .max_vision = N_IMAGE, .kv = SQ_KV_F32};
    squint_session *s;
    squint_msg msg;
    if (sq_session_open_limits(&s, m, &(squint_session_options){.threads = threads}, &limits, &msg))
        fail_msg("%s", msg.text);
    fill_vision(s->vision);
    return s;
}

/* All logits of a prompt and of one token after it. */
static void run_model(const squint_model *m, unsigned threads, float *logits)
{
    squint_msg msg;
    squint_session *s = open_session(m, threads);
    if (sq_session_forward(s, ids, N, N, &msg)) fail_msg("%s", msg.text);
    memcpy(logits, s->logits, N_LOGITS * sizeof *logits);
    if (sq_session_forward(s, (const uint32_t[]){5}, 1, 1, &msg)) fail_msg("%s", msg.text);
    memcpy(logits + N_LOGITS, s->logits, FIXTURE_VOCAB * sizeof *logits);
    assert_int_equal(s->kept[0], N_IMAGE);
    assert_int_equal(s->kept[1], 4);
    squint_session_close(&s);
}

enum { N_ALL = N_LOGITS + FIXTURE_VOCAB };

static void run(const fixture *f, const char *isa, float *logits)
{
    squint_model *m = fixture_model(f, isa);
    run_model(m, 1, logits);
    squint_model_close(&m);
}

static void assert_close(const float *got, const float *expected, size_t n, double bound, const char *what)
{
    const double error = sq_relative_rms(expected, got, n);
    if (!(error <= bound)) fail_msg("%s: relative error %g, bound %g", what, error, bound);
}

static const char *type_name(fixture_type t)
{
    static char name[32];
    snprintf(name, sizeof name, "%s %d group %u", sq_tensor_type_name(t.tensor), (int)t.panels, t.group);
    return name;
}

static float *logits_buffer(void)
{
    float *const p = malloc(N_ALL * sizeof *p);
    assert_non_null(p);
    return p;
}

static void check_type(fixture_type t)
{
    float *expected = logits_buffer(), *got = logits_buffer(), *other = logits_buffer();
    fixture *kept = quantised_fixture(), *f = quantised_fixture();
    fixture_encode_decoder(kept, t, true);
    fixture_encode_decoder(f, t, false);
    run(kept, "scalar", expected);
    run(f, "scalar", got);
    if (t.tensor == SQ_TENSOR_F16) {
        assert_memory_equal(got, expected, N_ALL * sizeof *got); /* expanded on loading */
    } else {
        assert_close(got, expected, N_ALL, ACTIVATION_BOUND, type_name(t));
        assert_true(sq_relative_rms(expected, got, N_ALL) > 1e-4); /* the int8 path did run */
    }
    for (const char *const *isa = sq_kernels_names(); *isa; isa++) {
        run(f, *isa, other);
        assert_close(other, got, N_ALL, KERNEL_BOUND, *isa);
    }
    fixture_free(kept);
    fixture_free(f);
    free(expected);
    free(got);
    free(other);
}

static void test_types(void **state)
{
    (void)state;
    for (size_t i = 0; i < SQ_COUNT(types); i++)
        check_type(types[i]);
}

/* W_q int4, W_k int8 a channel, W_v float: three kinds of activations for one set of rows. */
static void test_mixed_layer(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        fixture_type type;
    } mats[] = {{"attn_q", {SQ_TENSOR_I8, SQ_PANEL_I4, 32}},
                {"attn_k", {SQ_TENSOR_I8, SQ_PANEL_I8, 0}},
                {"ffn_gate", {SQ_TENSOR_Q8_0, 0, 0}},
                {"ffn_up", {SQ_TENSOR_I8, SQ_PANEL_I4, 128}},
                {"ffn_down", {SQ_TENSOR_I8, SQ_PANEL_I8, 64}}};
    float *expected = logits_buffer(), *got = logits_buffer();
    fixture *kept = quantised_fixture(), *f = quantised_fixture();
    for (int l = 0; l < N_LAYERS; l++)
        for (size_t i = 0; i < SQ_COUNT(mats); i++) {
            char name[32];
            snprintf(name, sizeof name, "blk.%d.%s.weight", l, mats[i].name);
            fixture_encode(kept, name, mats[i].type, true);
            fixture_encode(f, name, mats[i].type, false);
        }
    for (const char *const *isa = sq_kernels_names(); *isa; isa++) {
        run(kept, *isa, expected);
        run(f, *isa, got);
        assert_close(got, expected, N_ALL, ACTIVATION_BOUND, *isa);
    }
    fixture_free(kept);
    fixture_free(f);
    free(expected);
    free(got);
}

static fixture *int4_fixture(void)
{
    fixture *f = quantised_fixture();
    fixture_encode_decoder(f, (fixture_type){SQ_TENSOR_I8, SQ_PANEL_I4, 32}, false);
    return f;
}

static void test_threads_give_the_same_bits(void **state)
{
    (void)state;
    float *one = logits_buffer(), *more = logits_buffer();
    fixture *f = int4_fixture();
    squint_model *m = fixture_model(f, NULL);
    run_model(m, 1, one);
    for (unsigned threads = 2; threads <= 3; threads++) {
        run_model(m, threads, more);
        assert_memory_equal(one, more, N_ALL * sizeof *one);
    }
    squint_model_close(&m);
    fixture_free(f);
    free(one);
    free(more);
}

/* ---- what is multiplied ---- */

/* Rows times panels, and query rows, that went through the kernels. */
static struct {
    const sq_kernels *kernels;
    unsigned long rows, queries;
} seen;

static void counting_gemm(const sq_panels *w, uint32_t panel0, uint32_t n_panels, const sq_acts *a,
                          const sq_gemm_out *out)
{
    seen.rows += (unsigned long)a->m * n_panels;
    sq_kernels_gemm(seen.kernels, w)(w, panel0, n_panels, a, out);
}

static void counting_attention(const sq_attn *a)
{
    seen.queries += a->n_q;
    seen.kernels->attention(a);
}

/* A skipped row meets no weight: what goes through the products is what the layers keep, row for row. */
static void test_skipped_rows_are_not_multiplied(void **state)
{
    (void)state;
    fixture *f = int4_fixture();
    squint_model *m = fixture_model(f, NULL);
    sq_kernels counting = *m->kernels;
    counting.gemm_i8 = counting.gemm_i4 = counting_gemm;
    counting.attention = counting_attention;
    seen.kernels = m->kernels;
    m->kernels = &counting;
    squint_session *s = open_session(m, 1);
    assert_int_equal(sq_session_forward(s, ids, N, 1, NULL), SQUINT_OK);
    const unsigned long panels = 4 + 2 + 2 + 4 + 6 + 6 + 4; /* of q, k, v, o, gate, up, down, 16 channels each */
    const unsigned long kept = N + 2 * (N - 5);             /* layer 0 is dense; 5 of 9 are skipped by the others */
    assert_int_equal(seen.rows, kept * panels + FIXTURE_VOCAB / 16);
    assert_int_equal(seen.queries, kept * 4);
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

/* ---- files ---- */

/* Panels, blocks and floats at any address: copied where they cannot be used in place. */
static void test_any_address(void **state)
{
    (void)state;
    static const fixture_type kinds[] = {
        {SQ_TENSOR_I8, SQ_PANEL_I4, 32}, {SQ_TENSOR_Q8_0, 0, 0}, {SQ_TENSOR_F16, 0, 0}};
    float *expected = logits_buffer(), *got = logits_buffer();
    for (size_t i = 0; i < SQ_COUNT(kinds); i++) {
        size_t size;
        squint_msg msg;
        fixture *f = quantised_fixture();
        fixture_encode_decoder(f, kinds[i], false);
        run(f, NULL, expected);
        uint8_t *bytes = fixture_bytes(f, &size);
        for (size_t offset = 0; offset < 64; offset = 2 * offset + 1) {
            uint8_t *at = guarded_alloc(size + 64, 64);
            squint_model *m;
            memcpy(at + offset, bytes, size);
            if (squint_model_open_memory(&m, at + offset, size, NULL, &msg)) fail_msg("%s", msg.text);
            run_model(m, 1, got);
            assert_memory_equal(got, expected, N_ALL * sizeof *got);
            squint_model_close(&m);
            guarded_free(at);
        }
        free(bytes);
        fixture_free(f);
    }
    free(expected);
    free(got);
}

/* A cache in binary16 for weights that are rounded anyway, in binary32 for those that are not. */
static void test_cache_of_a_kind(void **state)
{
    (void)state;
    static const struct {
        squint_kv asked;
        sq_kv_type of_int4, of_f32;
    } cases[] = {{SQUINT_KV_AUTO, SQ_KV_F16, SQ_KV_F32},
                 {SQUINT_KV_F16, SQ_KV_F16, SQ_KV_F16},
                 {SQUINT_KV_F32, SQ_KV_F32, SQ_KV_F32},
                 {SQUINT_KV_Q8, SQ_KV_Q8, SQ_KV_Q8}};
    fixture *f[] = {int4_fixture(), quantised_fixture()};
    for (int i = 0; i < 2; i++) {
        squint_model *m = fixture_model(f[i], NULL);
        for (size_t c = 0; c < SQ_COUNT(cases); c++) {
            squint_session *s;
            assert_int_equal(
                squint_session_open(&s, m, &(squint_session_options){.threads = 1, .kv = cases[c].asked}, NULL),
                SQUINT_OK);
            assert_int_equal(s->limits.kv, i ? cases[c].of_f32 : cases[c].of_int4);
            squint_session_close(&s);
        }
        squint_model_close(&m);
        fixture_free(f[i]);
    }
}

static void assert_refused(const fixture *f, squint_err err, const char *name)
{
    squint_model *m;
    squint_msg msg;
    assert_int_equal(fixture_open(&m, f, NULL, &msg), err);
    if (!strstr(msg.text, name)) fail_msg("\"%s\" does not name %s", msg.text, name);
}

static void test_wrong_tensors(void **state)
{
    (void)state;
    static const char name[] = "blk.1.attn_k.weight";
    static const int8_t bytes[32 * D] = {0};
    fixture *f = quantised_fixture();
    fixture_weights(f, name, D, 48, 1, 0, 0.25); /* of another shape, then in panels */
    fixture_encode(f, name, (fixture_type){SQ_TENSOR_I8, SQ_PANEL_I8, 0}, false);
    assert_refused(f, SQUINT_ERR_FORMAT, name);
    fixture_weights(f, name, D, 48, 1, 0, 0.25);
    fixture_encode(f, name, (fixture_type){SQ_TENSOR_Q8_0, 0, 0}, false);
    assert_refused(f, SQUINT_ERR_FORMAT, name);
    fixture_tensor(f, name, 1, (const uint64_t[]){sizeof bytes}, SQ_TENSOR_I8, bytes, sizeof bytes); /* no panels */
    assert_refused(f, SQUINT_ERR_FORMAT, name);
    fixture_tensor(f, name, 2, (const uint64_t[]){D, 8}, SQ_TENSOR_I32, bytes, sizeof bytes);
    assert_refused(f, SQUINT_ERR_FORMAT, name);
    fixture_free(f);
    f = quantised_fixture();
    fixture_tensor(f, "blk.1.attn_norm.weight", 1, (const uint64_t[]){D}, SQ_TENSOR_I8, bytes, D);
    assert_refused(f, SQUINT_ERR_FORMAT, "blk.1.attn_norm.weight");
    fixture_free(f);
}

/* ---- the tower ---- */

enum { TOWER_FLOATS = 9 * 16 };

static void run_tower(const fixture *f, const char *isa, float *out)
{
    squint_msg msg;
    squint_session *s;
    squint_model *m = fixture_model(f, isa);
    assert_int_equal(squint_session_open(&s, m, &(squint_session_options){.threads = 1}, NULL), SQUINT_OK);
    fixture_values(s->pixels, 3 * 12 * 12, 5000, 0, 1);
    if (sq_session_encode(s, &msg)) fail_msg("%s", msg.text);
    memcpy(out, s->vision, TOWER_FLOATS * sizeof *out);
    squint_session_close(&s);
    squint_model_close(&m);
}

static void encode_tower(fixture *f, fixture_type t, bool back)
{
    static const char *const names[] = {"attn_q", "attn_k", "attn_v", "attn_out", "ffn_down", "ffn_up"};
    for (int l = 0; l < 3; l++)
        for (size_t i = 0; i < SQ_COUNT(names); i++) {
            char name[32];
            snprintf(name, sizeof name, "v.blk.%d.%s.weight", l, names[i]);
            fixture_encode(f, name, t, back);
        }
    fixture_encode(f, "mm.0.weight", t, back);
    fixture_encode(f, "mm.2.weight", t, back);
}

/* Widths of 16 and 32: panels are padded. Which of ffn_up and ffn_down comes first is told by the panels' header. */
static void test_tower(void **state)
{
    (void)state;
    static const fixture_type kinds[] = {{SQ_TENSOR_I8, SQ_PANEL_I8, 0}, {SQ_TENSOR_I8, SQ_PANEL_I4, 32}};
    for (size_t i = 0; i < SQ_COUNT(kinds); i++) {
        float expected[TOWER_FLOATS], got[TOWER_FLOATS];
        fixture *kept = fixture_decoder(1), *f = fixture_decoder(1);
        fixture_tower(kept);
        fixture_tower(f);
        encode_tower(kept, kinds[i], true);
        encode_tower(f, kinds[i], false);
        for (const char *const *isa = sq_kernels_names(); *isa; isa++) {
            run_tower(kept, *isa, expected);
            run_tower(f, *isa, got);
            assert_close(got, expected, TOWER_FLOATS, ACTIVATION_BOUND, type_name(kinds[i]));
        }
        fixture_free(kept);
        fixture_free(f);
    }
}

/* ---- products in float ---- */

enum { FM = 323, FN = 1050, FK = 24, FLD = FN + 3 }; /* past a chunk of rows and of output channels, and past a tile */

typedef struct f32_case {
    bool bias, rows, weight, add;
    uint32_t n;
} f32_case;

static float *random_floats(size_t n, uint32_t id)
{
    float *const p = malloc(n * sizeof *p);
    assert_non_null(p);
    fixture_values(p, n, id, 0, 1);
    return p;
}

static void check_f32(sq_compute *compute, const f32_case *f)
{
    float *const x = random_floats(FM * FK, 1), *const w = random_floats(FN * FK, 2),
                 *const bias = random_floats(FN, 3);
    float *const weight = random_floats(FM, 4), *const c = random_floats(2 * FM * FLD, 5);
    float *const before = random_floats(2 * FM * FLD, 5);
    uint32_t rows[FM];
    for (uint32_t i = 0; i < FM; i++)
        rows[i] = 2 * i;
    const sq_mat mat = {.n = f->n, .k = FK, .f32 = w}, *const mats[] = {&mat};
    const sq_rows_in in = {.x = x, .ldx = FK, .k = FK, .op = SQ_ROW_COPY};
    const sq_gemm_out out = {.c = c,
                             .ldc = FLD,
                             .bias = f->bias ? bias : NULL,
                             .rows = f->rows ? rows : NULL,
                             .row_weight = f->weight ? weight : NULL,
                             .add = f->add};
    sq_project(compute, &in, FM, mats, &out, 1);
    for (size_t i = 0; i < FM; i++)
        for (size_t j = 0; j < f->n; j++) {
            const size_t at = (f->rows ? rows[i] : i) * FLD + j;
            double v = f->bias ? (double)bias[j] : 0;
            for (size_t l = 0; l < FK; l++)
                v += (double)x[i * FK + l] * w[j * FK + l];
            v = (f->add ? (double)before[at] : 0) + v * (f->weight ? (double)weight[i] : 1);
            /* 26 terms below 1 whose sum stays below 16: half a unit of 8 each. */
            if (!(fabs(c[at] - v) <= 26 * 0x1p-21)) fail_msg("row %zu, channel %zu: %g, not %g", i, j, c[at], v);
            c[at] = before[at];
        }
    assert_memory_equal(c, before, 2 * FM * FLD * sizeof *c); /* and nothing else was written */
    free(x);
    free(w);
    free(bias);
    free(weight);
    free(c);
    free(before);
}

static void test_f32_products(void **state)
{
    (void)state;
    static const f32_case cases[] = {
        {false, false, false, false, FN}, {true, false, false, false, FN}, {false, false, false, true, FN},
        {true, false, false, true, FN},   {true, true, false, true, FN},   {true, false, true, false, FN},
        {true, true, true, true, FN},     {true, false, false, true, 70},  {true, true, true, true, 70},
    };
    const squint_allocator alloc = sq_allocator_or_default(NULL);
    for (unsigned threads = 1; threads <= 2; threads++) {
        sq_compute compute = {.kernels = sq_kernels_get(NULL)};
        sq_arena arena = {0};
        assert_int_equal(sq_pool_open(&compute.pool, threads, &alloc, NULL), SQUINT_OK);
        sq_compute_plan(&compute, &arena, threads, FM, FK, SQ_ACT_GROUP, true);
        arena = (sq_arena){.base = guarded_alloc(arena.used, 64), .size = arena.used};
        sq_compute_plan(&compute, &arena, threads, FM, FK, SQ_ACT_GROUP, true);
        for (size_t i = 0; i < SQ_COUNT(cases); i++)
            check_f32(&compute, &cases[i]);
        sq_pool_close(&compute.pool);
        guarded_free(arena.base);
    }
}

/* ---- a tower of random weights, quantised, next to its own floats ---- */

/* What a tower in int8 must keep: the cosine of each token to the float one's. An activation's 0.7 % (see above), a
 * weight's as much, through two products a branch and two branches a layer, on a stream that each branch changes by
 * less than a half: 1 % * sqrt(12) at most, whose cosine is 1 - 0.035^2 / 2 = 0.9994. */
static const double TOWER_COSINE = 0.999;

enum { MADE_D = 128, MADE_PATCHES = 64 };

static const sq_synthetic_tower made_tower = {
    .image = 112, .patch = 14, .n_layers = 6, .d = MADE_D, .f = 4 * MADE_D, .n_heads = 2};

static squint_model *make_model(const squint_model_options *options, bool f32)
{
    sq_synthetic_tower tower = made_tower;
    tower.f32 = f32;
    const sq_synthetic shape = {.n_layers = 1,
                                .d = 32,
                                .f = 32,
                                .n_heads = 1,
                                .n_kv_heads = 1,
                                .n_vocab = 16,
                                .n_ctx = MADE_PATCHES + 8,
                                .type = SQ_PANEL_I8,
                                .tower = &tower};
    squint_model *m;
    squint_msg msg;
    if (sq_synthetic_open(&m, &shape, options, &msg)) fail_msg("%s", msg.text);
    return m;
}

static squint_session *open_made(const char *isa, bool f32, squint_model **m)
{
    const sq_limits limits = {
        .max_rows = 1, .max_tokens = MADE_PATCHES + 8, .max_logits = 1, .max_vision = MADE_PATCHES, .kv = SQ_KV_F32};
    squint_session *s;
    squint_msg msg;
    *m = make_model(&(squint_model_options){.isa = isa}, f32);
    if (sq_session_open_limits(&s, *m, &(squint_session_options){.threads = 1}, &limits, &msg))
        fail_msg("%s", msg.text);
    return s;
}

static void keep_tower(void *user, sq_trace_what what, int layer, const void *data, uint32_t rows, uint32_t cols)
{
    (void)layer;
    if (what == SQ_TRACE_TOWER) memcpy(user, data, (size_t)rows * cols * sizeof(float));
}

/* @param picture  a file below the tests, or NULL for noise */
static void encode_made(squint_session *s, const char *picture, float *out)
{
    const uint32_t side = made_tower.image;
    squint_msg msg;
    s->trace = keep_tower;
    s->trace_user = out;
    if (picture) {
        sq_image image;
        if (sq_image_read(&image, test_path(picture), &s->alloc, &msg)) fail_msg("%s", msg.text);
        if (sq_session_picture(s, image.rgb, image.w, image.h, (size_t)image.w * 3, &msg)) fail_msg("%s", msg.text);
        sq_image_free(&image, &s->alloc);
    } else {
        fixture_values(s->pixels, (size_t)3 * side * side, 5000, 0, 2);
    }
    if (sq_session_encode(s, &msg)) fail_msg("%s", msg.text);
}

static double cosine(const float *a, const float *b, size_t n)
{
    double ab = 0, aa = 0, bb = 0;
    for (size_t i = 0; i < n; i++) {
        ab += (double)a[i] * b[i];
        aa += (double)a[i] * a[i];
        bb += (double)b[i] * b[i];
    }
    return ab / sqrt(aa * bb);
}

static void test_tower_next_to_float(void **state)
{
    (void)state;
    static const char *const pictures[] = {NULL, "../samples/cat.jpg", "../samples/coffee.jpg",
                                           "../samples/astronaut.jpg"};
    static float exact[MADE_PATCHES * MADE_D], got[MADE_PATCHES * MADE_D];
    squint_model *f32, *i8;
    squint_session *reference = open_made(NULL, true, &f32);
    for (const char *const *isa = sq_kernels_names(); *isa; isa++) {
        squint_session *s = open_made(*isa, false, &i8);
        for (size_t p = 0; p < SQ_COUNT(pictures); p++) {
            encode_made(reference, pictures[p], exact);
            encode_made(s, pictures[p], got);
            for (size_t i = 0; i < MADE_PATCHES; i++) {
                const double c = cosine(exact + i * MADE_D, got + i * MADE_D, MADE_D);
                if (!(c >= TOWER_COSINE)) fail_msg("%s, picture %zu, token %zu: cosine %.6f", *isa, p, i, c);
            }
            assert_true(sq_relative_rms(exact, got, SQ_COUNT(got)) > 1e-3); /* the int8 path did run */
        }
        squint_session_close(&s);
        squint_model_close(&i8);
    }
    squint_session_close(&reference);
    squint_model_close(&f32);
}

static void check_expanded(const sq_mat *panels, const sq_mat *expanded)
{
    float want[4 * MADE_D];
    assert_true(!panels->f32 && expanded->f32 && panels->k <= SQ_COUNT(want));
    for (uint32_t row = 0; row < panels->n; row++) {
        sq_mat_row(panels, row, want);
        assert_memory_equal(expanded->f32 + (size_t)row * panels->k, want, panels->k * sizeof *want);
    }
}

/* "cpu:f32" multiplies floats, which are the panels' values; and so do variants of the model. */
static void test_made_weights_expand(void **state)
{
    (void)state;
    squint_model *panels = make_model(NULL, false), *expanded, *variant;
    expanded = make_model(&(squint_model_options){.device = "cpu:f32"}, false);
    const sq_llava *const a = panels->net, *const b = expanded->net;
    assert_string_equal(squint_model_device(panels), "cpu");
    assert_string_equal(squint_model_device(expanded), "cpu:f32");
    check_expanded(&a->decoder.layers[0].down, &b->decoder.layers[0].down);
    check_expanded(&a->vit.layers[0].fc2, &b->vit.layers[0].fc2);
    squint_msg msg;
    if (sq_synthetic_variant(&variant, expanded, &(sq_synthetic_mode){.name = "dense"}, &msg)) fail_msg("%s", msg.text);
    assert_string_equal(squint_model_device(variant), "cpu:f32");
    assert_int_equal(sq_kv_of(variant, SQUINT_KV_AUTO), SQ_KV_F32);
    squint_model_close(&variant);
    squint_model_close(&expanded);
    squint_model_close(&panels);
}

/* Convolutions run in float: of another type they are refused by name. */
static void test_quantised_convolution(void **state)
{
    (void)state;
    fixture *f = fixture_decoder(1);
    fixture_tower(f);
    fixture_weights(f, "v.patch_embd.weight", 48, 16, 5002, 0, 0.25);
    fixture_encode(f, "v.patch_embd.weight", (fixture_type){SQ_TENSOR_I8, SQ_PANEL_I8, 0}, false);
    assert_refused(f, SQUINT_ERR_UNSUPPORTED, "v.patch_embd.weight");
    fixture_free(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_types),
        cmocka_unit_test(test_mixed_layer),
        cmocka_unit_test(test_threads_give_the_same_bits),
        cmocka_unit_test(test_skipped_rows_are_not_multiplied),
        cmocka_unit_test(test_any_address),
        cmocka_unit_test(test_cache_of_a_kind),
        cmocka_unit_test(test_wrong_tensors),
        cmocka_unit_test(test_tower),
        cmocka_unit_test(test_tower_next_to_float),
        cmocka_unit_test(test_made_weights_expand),
        cmocka_unit_test(test_f32_products),
        cmocka_unit_test(test_quantised_convolution),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
