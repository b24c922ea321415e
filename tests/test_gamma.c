/*
 * gamma-MoD's modes and MoDification's: goldens of gamma-MoD's own classes (PyTorch, float32) and, for the modes that
 * have no code of theirs, of the re-implementation that agrees with these classes; and the rules one by one.
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

enum { MAX_N = 3072, N_LAYERS = 7, D = 16, P1_N = 12, N_DECODED = 4 };

#define V SQ_IMAGE_TOKEN

/* Goldens have five decimals; the engine and PyTorch add in different orders: 2e-5, and half a unit of the fifth. */
static const double LOGIT_BOUND = 2.5e-5;
static const double SUM_BOUND = 1e-3;
static const double P_BOUND = 6e-5; /* four decimals */

static const uint32_t p1_ids[P1_N] = {1, 7, V, V, V, V, V, V, V, V, 3, 9};
static const uint32_t decoded[N_DECODED] = {5, 8, 11, 14};
static const bool three_layers[N_LAYERS] = {0, 0, 0, 1, 1, 1, 0};
static const bool all_layers[N_LAYERS] = {1, 1, 1, 1, 1, 1, 1};

/* ---- sessions and what they show ---- */

typedef struct layer_record {
    uint32_t n_scores, n_kept;
    float z[MAX_N], w[MAX_N];
    uint32_t kept[MAX_N];
    double sum;
    float last[D]; /* the last row after the layer */
} layer_record;

typedef struct record {
    float embedded[D]; /* the last row */
    layer_record layers[N_LAYERS];
} record;

typedef struct running {
    squint_model *m;
    squint_session *s;
    record *r;
} running;

static double abs_sum(const float *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += fabs((double)x[i]);
    return sum;
}

static void note(void *user, sq_trace_what what, int layer, const void *data, uint32_t rows, uint32_t cols)
{
    record *const r = user;
    layer_record *const l = layer < 0 ? NULL : &r->layers[layer];
    if (what == SQ_TRACE_EMBEDDED) memcpy(r->embedded, (const float *)data + (size_t)(rows - 1) * D, sizeof l->last);
    if (!l) return;
    if (what == SQ_TRACE_LAYER) {
        l->sum = abs_sum(data, (size_t)rows * cols);
        memcpy(l->last, (const float *)data + (size_t)(rows - 1) * D, sizeof l->last);
    } else if (what == SQ_TRACE_SCORES) {
        l->n_scores = cols;
        memcpy(l->z, data, cols * sizeof(float));
    } else if (what == SQ_TRACE_WEIGHTS) {
        memcpy(l->w, data, cols * sizeof(float));
    } else if (what == SQ_TRACE_KEPT) {
        l->n_kept = cols;
        if (cols) memcpy(l->kept, data, cols * sizeof(uint32_t));
    }
}

static const sq_limits roomy = {.max_rows = 40, .max_tokens = 60, .max_logits = 40, .max_vision = 24, .kv = SQ_KV_F32};

static running start_as(const fixture *f, const squint_model_options *options, const sq_limits *limits)
{
    running run = {.r = calloc(1, sizeof *run.r)};
    squint_msg msg;
    if (fixture_open(&run.m, f, options, &msg)) fail_msg("%s", msg.text);
    if (sq_session_open_limits(&run.s, run.m, &(squint_session_options){.threads = 2}, limits, &msg))
        fail_msg("%s", msg.text);
    fixture_values(run.s->vision, (size_t)limits->max_vision * D, 2000, 0, 1);
    run.s->trace = note;
    run.s->trace_user = run.r;
    return run;
}

static running start(const fixture *f, const char *isa, const sq_limits *limits)
{
    return start_as(f, &(squint_model_options){.isa = isa}, limits);
}

static void stop(running *run)
{
    squint_session_close(&run->s);
    squint_model_close(&run->m);
    free(run->r);
}

static void forward(const running *run, const uint32_t *ids, uint32_t n, uint32_t n_logits)
{
    squint_msg msg;
    if (sq_session_forward(run->s, ids, n, n_logits, &msg)) fail_msg("%s", msg.text);
}

static void decode(const running *run, uint32_t id) { forward(run, &id, 1, 1); }

static void rewind_to(const running *run, uint32_t n_past)
{
    squint_msg msg;
    if (sq_session_rewind(run->s, n_past, &msg)) fail_msg("%s", msg.text);
}

static void assert_near(double got, double expected, double bound, const char *what)
{
    if (!(fabs(got - expected) <= bound)) fail_msg("%s: %.7g, not %.7g (bound %g)", what, got, expected, bound);
}

static void assert_all_near(const float *got, const double *expected, size_t n, double bound, const char *what)
{
    for (size_t i = 0; i < n; i++)
        assert_near((double)got[i], expected[i], bound, what);
}

static uint32_t kv_length(const running *run, uint32_t layer) { return sq_llava_state_of(run->s)->kv[layer].n; }

/* Dense layers hold what the routed ones 3, 4, 5 may not. */
static void assert_kv(const running *run, uint32_t dense, const uint32_t *routed)
{
    for (uint32_t l = 0; l < N_LAYERS; l++)
        assert_int_equal(kv_length(run, l), three_layers[l] ? routed[l - 3] : dense);
}

static void assert_kept(const running *run, uint32_t layer, const uint32_t *expected, uint32_t n)
{
    const layer_record *const l = &run->r->layers[layer];
    assert_int_equal(l->n_kept, n);
    assert_memory_equal(l->kept, expected, n * sizeof *expected);
}

static const float *logits_of(const running *run, uint32_t row) { return run->s->logits + (size_t)row * FIXTURE_VOCAB; }

static uint32_t argmax(const float *logits)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < FIXTURE_IDS; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

static double logit_sum(const running *run, uint32_t rows)
{
    double sum = 0;
    for (uint32_t i = 0; i < rows; i++)
        sum += abs_sum(logits_of(run, i), FIXTURE_IDS);
    return sum;
}

/* Seven layers, of which these are routed, as this mode's file has them. */
static fixture *gated(const char *mode, const bool *is_mod)
{
    fixture *f = fixture_decoder(N_LAYERS);
    fixture_gates(f, mode, is_mod);
    return f;
}

/* ---- G1: gamma-released ---- */

static void check_g1_prefill(const running *run)
{
    static const double sums[] = {101.9348, 107.0116, 110.1239, 114.2694, 120.578, 131.5114, 129.8231};
    static const double p[3][P1_N] = {
        {.8854, .8324, .0024, .0683, .0212, .0013, .9858, .2481, .0199, .8144, .9944, .4318},
        {.3757, .2156, .0020, .0230, .0083, .0013, .9780, .3256, .0207, .7307, .9974, .7845},
        {.3142, .1626, .0021, .0099, .0103, .0012, .7962, .1795, .0172, .5754, .9962, .5109}};
    static const double last[] = {0.42905,  0.67048,  0.34553, 0.49424, 0.55258, -1.01566, -0.68208, -0.88759,
                                  -0.20274, -0.20024, 0.37718, 1.20466, 0.2449,  0.03846,  -0.51647, 0.21346};
    static const double second[] = {0.20271, -0.72352, -0.82454, 0.07922};
    for (int l = 0; l < N_LAYERS; l++)
        assert_near(run->r->layers[l].sum, sums[l], SUM_BOUND, "a layer's sum");
    for (int l = 3; l < 6; l++) {
        assert_int_equal(run->r->layers[l].n_scores, P1_N);
        assert_all_near(run->r->layers[l].w, p[l - 3], P1_N, P_BOUND, "p");
        assert_kept(run, l, (const uint32_t[]){0, 1, 3, 4, 6, 7, 8, 9, 10, 11}, 10);
    }
    assert_kv(run, 12, (const uint32_t[]){10, 10, 10});
    assert_all_near(logits_of(run, 11), last, 16, LOGIT_BOUND, "logits[11]");
    assert_all_near(logits_of(run, 2), second, 4, LOGIT_BOUND, "logits[2]");
    assert_near(logit_sum(run, P1_N), 93.4333, SUM_BOUND, "logits");
}

/* One token is processed, three leave nothing in the routed layers. */
static void check_g1_decode(const running *run, int from)
{
    static const double p[N_DECODED][3] = {
        {.0012, .0009, .0009}, {.5530, .6663, .8251}, {.0022, .0017, .0023}, {.0008, .0004, .0003}};
    static const double logits[N_DECODED][4] = {{0.12555, 0.2918, -0.14094, 0.66544},
                                                {0.32273, -0.34358, 0.36898, 0.02164},
                                                {-0.23819, -0.63433, 0.59692, 0.71504},
                                                {-0.34925, -0.34241, 0.34003, 0.27781}};
    static const uint32_t best[] = {11, 12, 7, 11}, kv[] = {10, 11, 11, 11};
    for (int i = from; i < N_DECODED; i++) {
        decode(run, decoded[i]);
        for (int l = 3; l < 6; l++)
            assert_near((double)run->r->layers[l].w[0], p[i][l - 3], P_BOUND, "p of a generated token");
        assert_all_near(run->s->logits, logits[i], 4, LOGIT_BOUND, "decode");
        assert_int_equal(argmax(run->s->logits), best[i]);
        assert_kv(run, 13 + (uint32_t)i, (const uint32_t[]){kv[i], kv[i], kv[i]});
    }
}

static void check_g1_text(const running *run)
{
    static const uint32_t all[] = {1, 7, 3, 9}, some[] = {1, 5, 14, 11};
    static const double all_last[] = {0.37299,  0.78901,  0.55182, 0.31063, 0.15305, -1.10277, -0.76767, -0.88013,
                                      -0.44438, -0.49242, 0.78087, 1.06741, 0.60989, 0.06384,  -0.18211, 0.25907};
    static const double some_last[] = {0.45472, 0.30258,  0.6194,   0.78972, 0.16299, -0.17528, -0.61977, 0.18638,
                                       0.06473, -0.07457, -0.59616, 0.33505, 0.02191, 0.03413,  -1.01669, -0.81039};
    sq_session_reset(run->s);
    forward(run, all, 4, 1);
    assert_all_near(run->s->logits, all_last, 16, LOGIT_BOUND, "text of which nothing is skipped");
    assert_kv(run, 4, (const uint32_t[]){4, 4, 4});
    sq_session_reset(run->s);
    forward(run, some, 4, 1);
    assert_all_near(run->s->logits, some_last, 16, LOGIT_BOUND, "text of which half is skipped");
    assert_kv(run, 4, (const uint32_t[]){2, 2, 2});
    for (uint32_t l = 3; l < 6; l++)
        assert_kept(run, l, (const uint32_t[]){0, 3}, 2);
}

static void check_g1(const fixture *f, const char *isa)
{
    running run = start(f, isa, &roomy);
    forward(&run, p1_ids, P1_N, P1_N);
    check_g1_prefill(&run);
    check_g1_decode(&run, 0);
    check_g1_text(&run);
    stop(&run);
}

static void test_g1(void **state)
{
    (void)state;
    fixture *f = gated("gamma-released", three_layers);
    for (const char *const *isa = sq_kernels_names(); *isa; isa++)
        check_g1(f, *isa);
    fixture_interleave(f);
    check_g1(f, NULL);
    fixture_free(f);
}

/* ---- G2 to G5 ---- */

typedef struct golden {
    const char *mode, *position; /* position NULL: the mode's */
    float share;                 /* skip_ratio, or 0 */
    uint32_t region;             /* or 0 */
    uint32_t n_kept[3], kept[3][P1_N];
    double last[4], sum;
    uint32_t kv[N_DECODED][3];
    double decoded[N_DECODED][4];
} golden;

/* clang-format off */
static const golden goldens[] = {
    {"gamma-released-mgm", NULL, 0, 0, {10, 10, 10},
     {{0, 1, 3, 4, 6, 7, 8, 9, 10, 11}, {0, 1, 3, 4, 6, 7, 8, 9, 10, 11}, {0, 1, 3, 4, 6, 7, 8, 9, 10, 11}},
     {0.42905, 0.67048, 0.34553, 0.49424}, 93.4333,
     {{11, 11, 11}, {12, 12, 12}, {13, 13, 13}, {14, 14, 14}},
     {{0.23188, 0.4849, -0.52052, 0.51114}, {0.27084, -0.3309, 0.34878, 0.04561},
      {-0.23403, -0.51161, 0.39964, 0.78669}, {-0.44192, -0.2491, -0.02892, 0.20731}}},
    {"gamma-released-mgm", "global", 0, 0, {10, 10, 10},
     {{0, 1, 3, 4, 6, 7, 8, 9, 10, 11}, {0, 1, 3, 4, 6, 7, 8, 9, 10, 11}, {0, 1, 3, 4, 6, 7, 8, 9, 10, 11}},
     {0.42905, 0.67048, 0.34553, 0.49424}, 93.4333,
     {{11, 11, 11}, {12, 12, 12}, {13, 13, 13}, {14, 14, 14}},
     {{0.24243, 0.45881, -0.54885, 0.50876}, {0.35675, -0.27807, 0.35943, 0.04807},
      {-0.22696, -0.53679, 0.39747, 0.78229}, {-0.26206, -0.093, 0.02892, 0.13857}}},
    {"gamma-paper", NULL, 0.5f, 0, {8, 8, 8},
     {{0, 1, 3, 6, 7, 9, 10, 11}, {0, 1, 6, 7, 8, 9, 10, 11}, {0, 1, 3, 6, 7, 9, 10, 11}},
     {0.41728, 0.68148, 0.32175, 0.50882}, 93.1751,
     {{9, 9, 9}, {10, 10, 10}, {11, 11, 11}, {12, 12, 12}},
     {{0.21873, 0.48136, -0.49588, 0.58006}, {0.37187, -0.27258, 0.34489, 0.04794},
      {-0.23114, -0.52985, 0.40322, 0.85452}, {-0.44925, -0.24677, 0.01519, 0.30599}}},
    {"gamma-train", NULL, 0.34f, 10, {9, 9, 9},
     {{0, 1, 3, 4, 6, 7, 9, 10, 11}, {0, 1, 3, 6, 7, 8, 9, 10, 11}, {0, 1, 3, 6, 7, 8, 9, 10, 11}},
     {0.46789, 0.72059, 0.39517, 0.50514}, 94.3098,
     {{9, 9, 9}, {10, 10, 10}, {10, 10, 10}, {10, 10, 10}},
     {{0.13091, 0.29519, -0.12254, 0.66907}, {0.40399, -0.30865, 0.38644, 0.06602},
      {-0.23276, -0.63134, 0.60618, 0.71758}, {-0.34773, -0.34733, 0.345, 0.28226}}},
    {"threshold", NULL, 0, 0, {5, 3, 3},
     {{0, 1, 6, 9, 10}, {6, 9, 10}, {0, 6, 10}},
     {0.21575, 0.4295, 0.81548, 0.76303}, 89.5865,
     {{5, 3, 3}, {6, 4, 4}, {6, 4, 4}, {6, 4, 4}},
     {{0.1127, 0.28088, -0.04706, 0.65284}, {0.45078, -0.29672, 0.48566, -0.01442},
      {-0.22758, -0.62684, 0.686, 0.70492}, {-0.34375, -0.33324, 0.38232, 0.25119}}},
};
/* clang-format on */

static fixture *golden_fixture(const golden *g, const bool *is_mod)
{
    fixture *f = gated(g->mode, is_mod);
    if (g->position) fixture_str(f, "mod.decode.position", g->position);
    if (g->share > 0) fixture_f32(f, "mod.capacity.skip_ratio", g->share);
    if (g->region) fixture_u32(f, "mod.capacity.region", g->region);
    return f;
}

static void check_golden(const golden *g, const fixture *f, const squint_model_options *options)
{
    running run = start_as(f, options, &roomy);
    assert_string_equal(squint_model_mode(run.m), g->mode);
    forward(&run, p1_ids, P1_N, P1_N);
    for (uint32_t l = 3; l < 6; l++)
        assert_kept(&run, l, g->kept[l - 3], g->n_kept[l - 3]);
    assert_kv(&run, 12, g->n_kept);
    assert_all_near(logits_of(&run, 11), g->last, 4, LOGIT_BOUND, g->mode);
    assert_near(logit_sum(&run, P1_N), g->sum, SUM_BOUND, g->mode);
    for (uint32_t i = 0; i < N_DECODED; i++) {
        decode(&run, decoded[i]);
        assert_all_near(run.s->logits, g->decoded[i], 4, LOGIT_BOUND, g->mode);
        assert_kv(&run, 13 + i, g->kv[i]);
    }
    stop(&run);
}

static void test_other_modes(void **state)
{
    (void)state;
    for (size_t i = 0; i < SQ_COUNT(goldens); i++) {
        fixture *f = golden_fixture(&goldens[i], three_layers);
        for (const char *const *isa = sq_kernels_names(); *isa; isa++)
            check_golden(&goldens[i], f, &(squint_model_options){.isa = *isa});
        fixture_free(f);
    }
}

/* ---- rules ---- */

/* Both outputs alike: every score is 0, every p exactly 0.5. */
static fixture *undecided(const char *mode, const bool *is_mod)
{
    fixture *f = gated(mode, is_mod);
    float *const router = fixture_floats(f, "mod_router.weight");
    memcpy(router, router + D, D * sizeof *router);
    return f;
}

/* A probability equal to the threshold: skipped by gamma's prefill, processed by its decode, which has other words for
 * it; MoDification has one rule. What a layer skips does not change by a bit. */
static void test_at_the_threshold(void **state)
{
    (void)state;
    fixture *f = undecided("gamma-released", three_layers);
    fixture_f32(f, "mod.prefill.threshold", 0.5f);
    running run = start(f, NULL, &roomy);
    forward(&run, p1_ids, P1_N, 1);
    assert_kv(&run, 12, (const uint32_t[]){0, 0, 0});
    assert_memory_equal(run.r->layers[5].last, run.r->layers[2].last, sizeof run.r->layers[2].last);
    assert_int_equal(run.s->kept[3], 0);
    decode(&run, 5);
    assert_kv(&run, 13, (const uint32_t[]){1, 1, 1});
    assert_memory_not_equal(run.r->layers[3].last, run.r->layers[2].last, sizeof run.r->layers[2].last);
    stop(&run);
    fixture_free(f);

    f = undecided("threshold", three_layers);
    run = start(f, NULL, &roomy);
    forward(&run, p1_ids, P1_N, 1);
    decode(&run, 5);
    assert_kv(&run, 13, (const uint32_t[]){13, 13, 13});
    stop(&run);
    fixture_free(f);
}

/* Nothing of the prompt is in any layer, the first and the last among them: the first generated token has position 0
 * there and only itself to attend, as if there had been no prompt. */
static void test_nothing_kept(void **state)
{
    (void)state;
    float logits[3][FIXTURE_VOCAB];
    fixture *f = undecided("gamma-released", all_layers);
    fixture_f32(f, "mod.prefill.threshold", 0.5f);
    running run = start(f, NULL, &roomy);
    forward(&run, p1_ids, P1_N, 1);
    assert_int_equal(sq_session_kv_bytes(run.s), 0);
    assert_true(run.s->macs == 0);
    assert_memory_equal(run.r->layers[6].last, run.r->embedded, sizeof run.r->embedded);
    for (int i = 0; i < 3; i++) {
        decode(&run, decoded[i]);
        memcpy(logits[i], run.s->logits, sizeof *logits);
    }
    sq_session_reset(run.s);
    for (int i = 0; i < 3; i++) {
        decode(&run, decoded[i]);
        assert_memory_equal(logits[i], run.s->logits, sizeof *logits);
    }
    stop(&run);
    fixture_free(f);
}

/* Generated tokens that every layer skips are nowhere: those after them have the logits, to the last bit, that they
 * would have had without. */
static void test_skipped_by_all(void **state)
{
    (void)state;
    float logits[FIXTURE_VOCAB];
    uint32_t kv[N_LAYERS], skipped = 0;
    fixture *f = gated("gamma-released", all_layers);
    running run = start(f, NULL, &roomy);
    forward(&run, p1_ids, P1_N, 1);
    decode(&run, 8);
    memcpy(logits, run.s->logits, sizeof logits);
    rewind_to(&run, P1_N);
    for (uint32_t l = 0; l < N_LAYERS; l++)
        kv[l] = kv_length(&run, l);
    for (uint32_t id = 16; id < FIXTURE_VOCAB && skipped < 5; id++) {
        bool any = false;
        decode(&run, id);
        for (uint32_t l = 0; l < N_LAYERS; l++)
            any |= kv_length(&run, l) != kv[l];
        if (any) {
            rewind_to(&run, run.s->n_past - 1);
            continue;
        }
        skipped++;
        assert_memory_equal(run.r->layers[N_LAYERS - 1].last, run.r->embedded, sizeof run.r->embedded);
    }
    assert_int_equal(skipped, 5);
    assert_int_equal(run.s->n_past, P1_N + 5);
    decode(&run, 8);
    assert_memory_equal(logits, run.s->logits, sizeof logits);
    stop(&run);
    fixture_free(f);
}

/* A prompt of one token follows the rule of generation: 0.5, where a longer prompt has 0.005. */
static void test_prompt_of_one_token(void **state)
{
    (void)state;
    fixture *f = gated("gamma-released", all_layers);
    running run = start(f, NULL, &roomy);
    uint32_t between = 0, processed = 0;
    for (uint32_t id = 0; id < FIXTURE_IDS; id++) {
        sq_session_reset(run.s);
        decode(&run, id);
        for (uint32_t l = 0; l < N_LAYERS; l++) {
            const float z = run.r->layers[l].z[0];
            assert_int_equal(kv_length(&run, l), z >= 0);
            between += z > -5.2f && z < 0;
            processed += z >= 0;
        }
    }
    assert_true(between > 0 && processed > 0);
    stop(&run);
    fixture_free(f);
}

/* The first token, which is BOS in a prompt, has no privilege. */
static void test_first_token_may_be_skipped(void **state)
{
    (void)state;
    uint32_t skipped = 0;
    fixture *f = gated("gamma-released", three_layers);
    running run = start(f, NULL, &roomy);
    for (uint32_t id = 0; id < 64; id++) {
        sq_session_reset(run.s);
        forward(&run, (const uint32_t[]){id, 7, 3, 9}, 4, 1);
        const bool kept = (double)run.r->layers[3].z[0] > -5.293304824724492;
        assert_int_equal(run.r->layers[3].kept[0] == 0, kept);
        skipped += !kept;
    }
    assert_true(skipped > 0);
    stop(&run);
    fixture_free(f);
}

/* A pass of several tokens on caches that are not empty has the prefill's threshold and goes on where each layer is:
 * the same as one pass. */
static void test_prefill_in_parts(void **state)
{
    (void)state;
    static const uint32_t cuts[][2] = {{2, 10}, {2, 12}, {10, 12}};
    fixture *f = gated("gamma-released", three_layers);
    running run = start(f, NULL, &roomy);
    for (size_t i = 0; i < SQ_COUNT(cuts); i++) {
        static const double last[] = {0.42905, 0.67048, 0.34553, 0.49424};
        sq_session_reset(run.s);
        forward(&run, p1_ids, cuts[i][0], 0);
        forward(&run, p1_ids + cuts[i][0], cuts[i][1] - cuts[i][0], 1);
        if (cuts[i][1] < P1_N) forward(&run, p1_ids + cuts[i][1], P1_N - cuts[i][1], 1);
        assert_all_near(run.s->logits, last, 4, LOGIT_BOUND, "a prompt in parts");
        assert_kv(&run, 12, (const uint32_t[]){10, 10, 10});
        check_g1_decode(&run, 0);
    }
    stop(&run);
    fixture_free(f);
}

/* All layers routed: what is kept is what the scores say, and generation goes on for long. */
static void test_all_layers_routed(void **state)
{
    (void)state;
    uint32_t kv[N_LAYERS] = {0}, skipped = 0, processed = 0;
    fixture *f = gated("gamma-released", all_layers);
    running run = start(f, NULL, &roomy);
    forward(&run, p1_ids, P1_N, 1);
    for (uint32_t l = 0; l < N_LAYERS; l++)
        for (uint32_t i = 0; i < P1_N; i++)
            kv[l] += (double)run.r->layers[l].z[i] > -5.293304824724492;
    for (uint32_t i = 0; i < 20; i++) {
        for (uint32_t l = 0; l < N_LAYERS; l++)
            assert_int_equal(kv_length(&run, l), kv[l]);
        decode(&run, (i * 5 + 1) % FIXTURE_IDS);
        for (uint32_t l = 0; l < N_LAYERS; l++) {
            const bool runs = run.r->layers[l].z[0] >= 0;
            kv[l] += runs;
            processed += runs;
            skipped += !runs;
        }
    }
    assert_true(skipped > 10 && processed > 10);
    stop(&run);
    fixture_free(f);
}

/* Two images are one pool; the text between them stays. */
static void test_two_images(void **state)
{
    (void)state;
    static const uint32_t ids[] = {1, 7, 4, V, V, V, V, V, V, V, V, V, V, V, V, 3, V, V, V, V, V, V, V, V, 9, 2};
    fixture *f = gated("gamma-paper", all_layers);
    fixture_f32(f, "mod.capacity.skip_ratio", 0.34f);
    running run = start(f, NULL, &roomy);
    forward(&run, ids, SQ_COUNT(ids), 1);
    for (uint32_t l = 0; l < N_LAYERS; l++) {
        const layer_record *const r = &run.r->layers[l];
        uint32_t better, text = 0, at = 0;
        for (uint32_t i = 0; i < SQ_COUNT(ids); i++) {
            better = 0;
            for (uint32_t j = 0; j < SQ_COUNT(ids); j++)
                better += ids[j] == V && (r->z[j] > r->z[i] || (r->z[j] == r->z[i] && j < i));
            const bool kept = ids[i] != V || better < 14; /* 20 - floor(6.8) */
            text += ids[i] != V;
            if (kept) assert_int_equal(r->kept[at++], i);
        }
        assert_int_equal(r->n_kept, 14 + text);
        assert_int_equal(kv_length(&run, l), 14 + text);
        assert_int_equal(run.s->kept[l], 14);
    }
    stop(&run);
    fixture_free(f);
}

/* ---- capacities at the sizes of the released models ---- */

/* Rows that a routed layer runs of n tokens, of which the first n_vision are vision. Who of the first `region` rows is
 * skipped scores no more than who is kept there. */
static uint32_t kept_of(const fixture *f, uint32_t n, uint32_t n_vision, uint32_t region)
{
    const sq_limits limits = {.max_rows = n,
                              .max_tokens = n + !n_vision,
                              .max_logits = 1,
                              .max_vision = n_vision + !n_vision,
                              .kv = SQ_KV_F16};
    uint32_t *ids = calloc(n, sizeof *ids), at = 0;
    float best_skipped = -INFINITY, worst_kept = INFINITY;
    running run = start(f, NULL, &limits);
    for (uint32_t i = 0; i < n; i++)
        ids[i] = i < n_vision ? V : 3 + i * 7 % 269;
    run.s->trace_mute = 1u << SQ_TRACE_LAYER;
    forward(&run, ids, n, 1);
    const layer_record *const r = &run.r->layers[0];
    for (uint32_t i = 0; i < n; i++) {
        const bool kept = at < r->n_kept && r->kept[at] == i;
        at += kept;
        assert_true(kept || i < region);
        if (!kept) best_skipped = fmaxf(best_skipped, r->z[i]);
        if (kept && i < region) worst_kept = fminf(worst_kept, r->z[i]);
    }
    assert_true(best_skipped <= worst_kept);
    assert_int_equal(r->n_kept, kv_length(&run, 0));
    assert_true(kv_length(&run, 0) <= sq_llava_state_of(run.s)->kv[0].capacity);
    stop(&run);
    free(ids);
    return at;
}

static void test_capacity_of_training(void **state)
{
    (void)state;
    static const struct {
        uint32_t region, n;
        float share;
        uint32_t kept;
    } cases[] = {{1059, 1500, 0.5f, 971}, {1059, 1500, 0.34f, 1140}, {1059, 800, 0.5f, 800},   {1059, 1059, 0.5f, 1059},
                 {1059, 1060, 0.5f, 531}, {2880, 3000, 0.5f, 1560},  {2880, 3000, 0.34f, 2021}};
    for (size_t i = 0; i < SQ_COUNT(cases); i++) {
        fixture *f = fixture_decoder(1);
        fixture_gates(f, "gamma-train", all_layers);
        fixture_u32(f, "mod.capacity.region", cases[i].region);
        fixture_f32(f, "mod.capacity.skip_ratio", cases[i].share);
        assert_int_equal(kept_of(f, cases[i].n, 0, cases[i].region), cases[i].kept);
        fixture_free(f);
    }
}

static void test_capacity_of_the_paper(void **state)
{
    (void)state;
    static const struct {
        uint32_t vision, text;
        float share;
        uint32_t kept;
    } cases[] = {{1024, 20, 0.34f, 676}, {1024, 0, 1, 0}, {7, 5, 0, 7}, {1, 3, 0.9f, 1}, {1, 3, 1, 0}};
    for (size_t i = 0; i < SQ_COUNT(cases); i++) {
        fixture *f = fixture_decoder(1);
        fixture_gates(f, "gamma-paper", all_layers);
        fixture_f32(f, "mod.capacity.skip_ratio", cases[i].share);
        assert_int_equal(kept_of(f, cases[i].vision + cases[i].text, cases[i].vision, cases[i].vision),
                         cases[i].kept + cases[i].text);
        fixture_free(f);
    }
}

/* What a cache has room for: all tokens where data decides; no more than the share leaves, and one that rounding may
 * bring, where it does not. */
static void test_cache_capacity(void **state)
{
    (void)state;
    for (size_t i = 0; i < SQ_COUNT(goldens); i++) {
        fixture *f = golden_fixture(&goldens[i], three_layers);
        running run = start(f, NULL, &roomy);
        const bool paper = !strcmp(goldens[i].mode, "gamma-paper");
        for (uint32_t l = 0; l < N_LAYERS; l++)
            assert_int_equal(sq_llava_state_of(run.s)->kv[l].capacity, paper && three_layers[l] ? 36 + 12 + 1 : 60);
        stop(&run);
        fixture_free(f);
    }
}

/* A lone vision token is no generated one: with a share of 1 it is skipped, and the cache has no place for it. */
static void test_lone_vision_token(void **state)
{
    (void)state;
    static const sq_limits tight = {.max_rows = 4, .max_tokens = 5, .max_logits = 1, .max_vision = 1, .kv = SQ_KV_F32};
    fixture *f = gated("gamma-paper", all_layers);
    fixture_f32(f, "mod.capacity.skip_ratio", 1);
    running run = start(f, NULL, &tight);
    forward(&run, (const uint32_t[]){V}, 1, 1);
    assert_int_equal(sq_session_kv_bytes(run.s), 0);
    forward(&run, (const uint32_t[]){1, 3, 4, 5}, 4, 1);
    assert_int_equal(kv_length(&run, 0), 4);
    stop(&run);
    fixture_free(f);
}

/* ---- rewinding, counting ---- */

/* Text that some layers skipped is taken off those that ran it, and only these. */
static void test_rewind(void **state)
{
    (void)state;
    fixture *f = gated("gamma-released", three_layers);
    running run = start(f, NULL, &roomy);
    squint_msg msg;
    forward(&run, p1_ids, P1_N, P1_N);
    check_g1_decode(&run, 0);
    for (uint32_t i = N_DECODED; i-- > 0;) {
        rewind_to(&run, P1_N + i);
        const uint32_t kv = i < 2 ? 10 : 11;
        assert_kv(&run, P1_N + i, (const uint32_t[]){kv, kv, kv});
        check_g1_decode(&run, (int)i);
    }
    forward(&run, (const uint32_t[]){4, 5, 14, 6}, 4, 1); /* in one pass, as references are scored */
    rewind_to(&run, P1_N);
    check_g1_decode(&run, 0);
    assert_int_equal(sq_session_rewind(run.s, 9, &msg), SQUINT_ERR_ARGUMENT);
    rewind_to(&run, 10);
    forward(&run, p1_ids + 10, 2, 1);
    check_g1_decode(&run, 0);
    stop(&run);
    fixture_free(f);
}

/* Tokens that competed for the same room stay together, also when none of them is an image's. */
static void test_rewind_of_a_region(void **state)
{
    (void)state;
    static const uint32_t text[] = {1, 7, 3, 9, 4, 5, 6, 8, 10, 11, 12, 13};
    fixture *f = golden_fixture(&goldens[3], three_layers);
    running run = start(f, NULL, &roomy);
    squint_msg msg;
    forward(&run, text, 12, 1);
    assert_int_equal(kv_length(&run, 3), 9);
    assert_int_equal(sq_session_rewind(run.s, 9, &msg), SQUINT_ERR_ARGUMENT);
    assert_non_null(strstr(msg.text, "10"));
    rewind_to(&run, 10);
    assert_int_equal(kv_length(&run, 3), 7);
    forward(&run, text, 12, 1); /* what follows is past the region, however long */
    assert_int_equal(kv_length(&run, 3), 7 + 12);
    rewind_to(&run, 11);
    sq_session_reset(run.s);
    forward(&run, text, 10, 1); /* as long as the region: all stay, none for another's sake */
    assert_int_equal(kv_length(&run, 3), 10);
    rewind_to(&run, 3);
    assert_int_equal(kv_length(&run, 3), 3);
    stop(&run);
    fixture_free(f);
}

/* Multiply-adds, entries and vision tokens that layers ran: 6 of 8 in the routed ones, whose decode did nothing. */
static void test_counts(void **state)
{
    (void)state;
    fixture *f = gated("gamma-released", three_layers);
    running run = start(f, NULL, &roomy);
    forward(&run, p1_ids, P1_N, 1);
    decode(&run, 5);
    const double row = 16.0 * 16 * 2 + 16.0 * 8 * 2 + 3.0 * 16 * 24;
    const double dense = 12 * row + 32.0 * (12 * 13 / 2), mod = 10 * row + 32.0 * (10 * 11 / 2);
    const double next = row + 32.0 * 13;
    assert_true(run.s->macs_dense == N_LAYERS * (dense + next));
    assert_true(run.s->macs == 4 * (dense + next) + 3 * mod);
    assert_int_equal(sq_session_kv_bytes(run.s), (4 * 13 + 3 * 10) * 2 * 2 * 4 * sizeof(float));
    assert_int_equal(sq_session_kv_bytes_dense(run.s), N_LAYERS * 13 * 2 * 2 * 4 * sizeof(float));
    for (uint32_t l = 0; l < N_LAYERS; l++)
        assert_int_equal(run.s->kept[l], three_layers[l] ? 6 : 8);
    stop(&run);
    fixture_free(f);
}

/* Of a vision token, and of text that no capacity rule would skip: 9 stands at the end. */
static void test_nan_is_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < 2 * SQ_COUNT(goldens); i++) {
        fixture *f = golden_fixture(&goldens[i / 2], three_layers);
        if (i % 2) fixture_floats(f, "token_embd.weight")[9 * D + 5] = NAN;
        running run = start(f, "scalar", &roomy);
        squint_msg msg;
        if (!(i % 2)) run.s->vision[3 * D + 5] = NAN;
        assert_int_equal(sq_session_forward(run.s, p1_ids, P1_N, 1, &msg), SQUINT_ERR_NUMERIC);
        assert_non_null(strstr(msg.text, "is NaN"));
        stop(&run);
        fixture_free(f);
    }
}

/* ---- files ---- */

static void logits_of_file(const fixture *f, float *out)
{
    running run = start(f, NULL, &roomy);
    forward(&run, p1_ids, P1_N, 1);
    decode(&run, 8);
    memcpy(out, run.s->logits, FIXTURE_VOCAB * sizeof *out);
    stop(&run);
}

/* No routed layer, or a file that asks for it: the bits of a dense model. */
static void test_dense(void **state)
{
    (void)state;
    static const bool none[N_LAYERS] = {0};
    float logits[3][FIXTURE_VOCAB];
    fixture *f[] = {fixture_decoder(N_LAYERS), gated("gamma-released", none), gated("dense", three_layers)};
    for (int i = 0; i < 3; i++) {
        logits_of_file(f[i], logits[i]);
        assert_memory_equal(logits[0], logits[i], sizeof *logits);
        fixture_free(f[i]);
    }
    fixture *pmod = fixture_decoder(N_LAYERS);
    fixture_routing(pmod, three_layers, (const float[]){1, 1, 1, 0.5f, 0.5f, 0.5f, 1});
    fixture_str(pmod, "mod.mode", "dense");
    logits_of_file(pmod, logits[1]);
    assert_memory_equal(logits[0], logits[1], sizeof *logits);
    fixture_free(pmod);
}

/* A caller may have another mode than the file's, and gets what a file of that mode gives. Thresholds that the file has
 * for gamma's prefill are not MoDification's. */
static void test_asked_modes(void **state)
{
    (void)state;
    static const char *const own[] = {"gamma-released", "dense"};
    for (size_t i = 0; i < SQ_COUNT(goldens); i++) {
        const golden *const g = &goldens[i];
        fixture *f = gated(own[i % 2], three_layers);
        fixture_str(f, "mod.type", "gamma");
        fixture_f32(f, "mod.prefill.threshold", 0.005f);
        fixture_f32(f, "mod.decode.threshold", 0.5f);
        fixture_f32(f, "mod.capacity.skip_ratio", g->share);
        fixture_u32(f, "mod.capacity.region", g->region + !g->region);
        if (!g->position) check_golden(g, f, &(squint_model_options){.mode = g->mode});
        running run = start_as(f, &(squint_model_options){.mode = g->mode}, &roomy);
        assert_string_equal(squint_model_own_mode(run.m), own[i % 2]);
        stop(&run);
        fixture_free(f);
    }
}

/* Any model runs dense when asked, with the bits of a dense one. */
static void test_asked_dense(void **state)
{
    (void)state;
    fixture *f[] = {fixture_decoder(N_LAYERS), gated("gamma-released", three_layers), fixture_decoder(N_LAYERS)};
    float logits[3][FIXTURE_VOCAB];
    fixture_routing(f[2], three_layers, (const float[]){1, 1, 1, 0.5f, 0.5f, 0.5f, 1});
    for (int i = 0; i < 3; i++) {
        running run = start_as(f[i], &(squint_model_options){.mode = "dense"}, &roomy);
        assert_string_equal(squint_model_mode(run.m), "dense");
        forward(&run, p1_ids, P1_N, 1);
        memcpy(logits[i], run.s->logits, sizeof *logits);
        assert_memory_equal(logits[0], logits[i], sizeof *logits);
        assert_kv(&run, 12, (const uint32_t[]){12, 12, 12});
        stop(&run);
        fixture_free(f[i]);
    }
}

static void test_asked_modes_that_do_not_fit(void **state)
{
    (void)state;
    const struct {
        const char *mode, *word;
        squint_err err;
        fixture *f;
    } cases[] = {{"pmod", "gamma-released", SQUINT_ERR_ARGUMENT, gated("gamma-released", three_layers)},
                 {"gamma", "gamma-released-mgm", SQUINT_ERR_ARGUMENT, gated("gamma-released", three_layers)},
                 {"gamma-paper", "mod.capacity.skip_ratio", SQUINT_ERR_FORMAT, gated("gamma-released", three_layers)},
                 {"threshold", "has none", SQUINT_ERR_ARGUMENT, fixture_decoder(N_LAYERS)}};
    for (size_t i = 0; i < SQ_COUNT(cases); i++) {
        squint_model *m;
        squint_msg msg;
        assert_int_equal(fixture_open(&m, cases[i].f, &(squint_model_options){.mode = cases[i].mode}, &msg),
                         cases[i].err);
        assert_non_null(strstr(msg.text, cases[i].word));
        fixture_free(cases[i].f);
    }
    fixture *f = gated("gamma-released", three_layers); /* a wrong file is wrong in any mode */
    fixture_str(f, "mod.position", "original");
    squint_model *m;
    assert_int_equal(fixture_open(&m, f, &(squint_model_options){.mode = "dense"}, NULL), SQUINT_ERR_UNSUPPORTED);
    fixture_free(f);
}

/* A router in each layer, all the same, is the shared one. */
static void test_router_copies(void **state)
{
    (void)state;
    float shared[FIXTURE_VOCAB], copies[FIXTURE_VOCAB];
    fixture *f = gated("gamma-released", three_layers);
    logits_of_file(f, shared);
    for (int l = 3; l < 6; l++) {
        char name[32];
        snprintf(name, sizeof name, "blk.%d.mod_router.weight", l);
        fixture_weights(f, name, D, 2, 1003, 0, 2);
    }
    fixture_drop(f, "mod_router.weight");
    fixture_bool(f, "mod.router.shared", false);
    logits_of_file(f, copies);
    assert_memory_equal(shared, copies, sizeof shared);
    fixture_free(f);
}

/* The keys of a converted LLaVA-HR; and those that may be left out. */
static void test_keys_of_released_files(void **state)
{
    (void)state;
    static const struct {
        const char *key, *value;
    } words[] = {{"mod.target", "all"},
                 {"mod.weight.apply", "mlp"},
                 {"mod.position", "compressed"},
                 {"mod.prefill.select", "threshold"},
                 {"mod.decode.rule", "threshold"},
                 {"mod.decode.position", "local"}};
    static const char *const optional[] = {"mod.mode",          "mod.layer_ratio",       "mod.router.input",
                                           "mod.router.shared", "mod.prefill.threshold", "mod.decode.threshold",
                                           "mod.router.outputs"};
    fixture *f = gated("gamma-released", three_layers);
    for (size_t i = 0; i < SQ_COUNT(words); i++)
        fixture_str(f, words[i].key, words[i].value);
    fixture_f32(f, "mod.prefill.threshold", 0.005f);
    fixture_f32(f, "mod.decode.threshold", 0.5f);
    fixture_f32(f, "mod.capacity.skip_ratio", 0.34f);
    fixture_u32(f, "mod.capacity.region", 1059);
    check_g1(f, NULL);
    for (size_t i = 0; i < SQ_COUNT(optional); i++)
        fixture_drop(f, optional[i]);
    check_g1(f, NULL);
    fixture_free(f);
}

/* What a file says of thresholds is what holds. */
static void test_thresholds_of_files(void **state)
{
    (void)state;
    fixture *f = gated("gamma-released", three_layers);
    running run = start(f, NULL, &roomy);
    const sq_mode *const mode = &sq_llava_of(run.s)->decoder.mode;
    assert_true(mode->prefill_threshold == 0.005f && mode->decode_threshold == 0.5f);
    stop(&run);
    fixture_f32(f, "mod.prefill.threshold", 0.05f);
    fixture_f32(f, "mod.decode.threshold", 0.001f);
    run = start(f, NULL, &roomy);
    forward(&run, p1_ids, P1_N, 1);
    assert_kept(&run, 3, (const uint32_t[]){0, 1, 3, 6, 7, 9, 10, 11}, 8);
    const uint32_t before = kv_length(&run, 3);
    decode(&run, 5); /* p is 0.0012 */
    assert_int_equal(kv_length(&run, 3), before + 1);
    stop(&run);
    fixture_free(f);

    f = gated("threshold", three_layers);
    fixture_f32(f, "mod.prefill.threshold", 0.001f); /* and of generated tokens */
    run = start(f, NULL, &roomy);
    forward(&run, p1_ids, P1_N, 1);
    decode(&run, 5);
    assert_int_equal(kv_length(&run, 3), 13);
    stop(&run);
    fixture_free(f);
}

static void assert_refused(const fixture *f, squint_err err, const char *word)
{
    squint_model *m;
    squint_msg msg;
    const squint_err got = fixture_open(&m, f, NULL, &msg);
    if (got != err) fail_msg("%s: error %d, not %d (%s)", word, got, err, got ? msg.text : "it opened");
    assert_null(m);
    if (!strstr(msg.text, word) || !strstr(msg.text, ".gguf") || strchr(msg.text, '\n'))
        fail_msg("\"%s\" does not name %s and the file in a line", msg.text, word);
}

static void test_words_of_other_modes(void **state)
{
    (void)state;
    static const struct {
        const char *key, *value;
    } words[] = {{"mod.type", "mod"},
                 {"mod.type", "pmod"},
                 {"mod.mode", "pmod"},
                 {"mod.mode", "gamma"},
                 {"mod.mode", ""},
                 {"mod.router.input", "hidden"},
                 {"mod.target", "vision_all"},
                 {"mod.weight.apply", "attn+mlp"},
                 {"mod.position", "original"},
                 {"mod.prefill.select", "topk"},
                 {"mod.decode.rule", "always"},
                 {"mod.decode.position", "global"}};
    for (size_t i = 0; i < SQ_COUNT(words); i++) {
        fixture *f = gated("gamma-released", three_layers);
        fixture_str(f, words[i].key, words[i].value);
        assert_refused(f, SQUINT_ERR_UNSUPPORTED,
                       !strcmp(words[i].value, "pmod") ? "mod.mode" : words[i].key); /* type and mode disagree */
        fixture_free(f);
    }
    fixture *f = gated("gamma-released-mgm", three_layers);
    fixture_str(f, "mod.decode.position", "here");
    assert_refused(f, SQUINT_ERR_UNSUPPORTED, "mod.decode.position");
    fixture_free(f);
}

static void test_values_out_of_range(void **state)
{
    (void)state;
    static const struct {
        const char *mode, *key;
        float value;
    } cases[] = {{"gamma-released", "mod.prefill.threshold", 0},   {"gamma-released", "mod.prefill.threshold", 1},
                 {"gamma-released", "mod.decode.threshold", NAN},  {"threshold", "mod.prefill.threshold", -1},
                 {"gamma-paper", "mod.capacity.skip_ratio", 1.5f}, {"gamma-paper", "mod.capacity.skip_ratio", -0.5f},
                 {"gamma-paper", "mod.capacity.skip_ratio", NAN}};
    for (size_t i = 0; i < SQ_COUNT(cases); i++) {
        fixture *f = gated(cases[i].mode, three_layers);
        fixture_f32(f, cases[i].key, cases[i].value);
        assert_refused(f, SQUINT_ERR_FORMAT, cases[i].key);
        fixture_free(f);
    }
    fixture *f = gated("gamma-paper", three_layers);
    assert_refused(f, SQUINT_ERR_FORMAT, "mod.capacity.skip_ratio");
    fixture_free(f);
    f = gated("gamma-train", three_layers);
    fixture_f32(f, "mod.capacity.skip_ratio", 0.5f);
    assert_refused(f, SQUINT_ERR_FORMAT, "mod.capacity.region");
    fixture_u32(f, "mod.capacity.region", 0);
    assert_refused(f, SQUINT_ERR_FORMAT, "mod.capacity.region");
    fixture_free(f);
    f = gated("gamma-released", three_layers);
    fixture_f32s(f, "mod.layer_ratio", (const float[]){1, 1, 1, 0.5f, 1, 1, 1}, N_LAYERS);
    assert_refused(f, SQUINT_ERR_UNSUPPORTED, "mod.layer_ratio");
    fixture_free(f);
}

static void test_routers_of_files(void **state)
{
    (void)state;
    uint16_t half[2 * D] = {0};
    static const char shared[] = "mod_router.weight", own[] = "blk.3.mod_router.weight";
    fixture *f = gated("gamma-released", three_layers);
    fixture_tensor(f, shared, 2, (const uint64_t[]){D, 2}, SQ_TENSOR_F16, half, sizeof half);
    assert_refused(f, SQUINT_ERR_FORMAT, shared);
    fixture_weights(f, shared, 2, D, 1003, 0, 2); /* lying */
    assert_refused(f, SQUINT_ERR_FORMAT, shared);
    fixture_weights(f, shared, D, 1, 1003, 0, 2);
    assert_refused(f, SQUINT_ERR_FORMAT, shared);
    fixture_weights(f, shared, D, 2, 1003, 0, 2);
    fixture_weights(f, own, D, 2, 1003, 0, 2); /* one too many */
    assert_refused(f, SQUINT_ERR_FORMAT, own);
    fixture_drop(f, shared);
    assert_refused(f, SQUINT_ERR_FORMAT, own); /* the file says shared */
    fixture_bool(f, "mod.router.shared", false);
    assert_refused(f, SQUINT_ERR_FORMAT, "blk.4.mod_router.weight"); /* which is missing */
    fixture_weights(f, shared, D, 2, 1003, 0, 2);
    assert_refused(f, SQUINT_ERR_FORMAT, "mod.router.shared");
    fixture_free(f);

    f = gated("gamma-released", three_layers);
    fixture_drop(f, shared);
    assert_refused(f, SQUINT_ERR_FORMAT, shared);
    fixture_free(f);
    f = gated("gamma-released", three_layers);
    fixture_weights(f, "blk.3.mod_router.bias", 1, 0, 42, 0, 0.1);
    assert_refused(f, SQUINT_ERR_FORMAT, "blk.3.mod_router.bias");
    fixture_free(f);
    f = gated("gamma-released", three_layers);
    fixture_weights(f, "blk.2.mod_router.weight", D, 2, 1003, 0, 2); /* layer 2 is dense */
    assert_refused(f, SQUINT_ERR_FORMAT, "blk.2.mod_router.weight");
    fixture_free(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_g1),
        cmocka_unit_test(test_other_modes),
        cmocka_unit_test(test_at_the_threshold),
        cmocka_unit_test(test_nothing_kept),
        cmocka_unit_test(test_skipped_by_all),
        cmocka_unit_test(test_prompt_of_one_token),
        cmocka_unit_test(test_first_token_may_be_skipped),
        cmocka_unit_test(test_prefill_in_parts),
        cmocka_unit_test(test_all_layers_routed),
        cmocka_unit_test(test_two_images),
        cmocka_unit_test(test_capacity_of_training),
        cmocka_unit_test(test_capacity_of_the_paper),
        cmocka_unit_test(test_cache_capacity),
        cmocka_unit_test(test_lone_vision_token),
        cmocka_unit_test(test_rewind),
        cmocka_unit_test(test_rewind_of_a_region),
        cmocka_unit_test(test_counts),
        cmocka_unit_test(test_nan_is_refused),
        cmocka_unit_test(test_dense),
        cmocka_unit_test(test_asked_modes),
        cmocka_unit_test(test_asked_dense),
        cmocka_unit_test(test_asked_modes_that_do_not_fit),
        cmocka_unit_test(test_router_copies),
        cmocka_unit_test(test_keys_of_released_files),
        cmocka_unit_test(test_thresholds_of_files),
        cmocka_unit_test(test_words_of_other_modes),
        cmocka_unit_test(test_values_out_of_range),
        cmocka_unit_test(test_routers_of_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
