/*
 * Budgets with costs that are given: what is foreseen, and what is chosen by it. And that measuring real ones leaves no
 * trace. Nothing here waits for a clock.
 * SPDX-License-Identifier: MIT
 */
#include "models/llava.h"
#include "runtime/budget.h"
#include "tests/fixture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { D = 16, VISION = 40, TEXT = 5, N = VISION + TEXT, N_LAYERS = 4 };

#define V SQ_IMAGE_TOKEN

static const bool is_mod[N_LAYERS] = {false, true, true, false};
static const sq_limits limits = {
    .max_rows = N, .max_tokens = N, .max_logits = 1, .max_vision = VISION, .kv = SQ_KV_F32};

typedef struct scene {
    fixture *f;
    squint_model *m;
    squint_session *s;
} scene;

static void open_session(scene *c)
{
    squint_msg msg;
    c->m = fixture_model(c->f, NULL);
    if (sq_session_open_limits(&c->s, c->m, &(squint_session_options){.threads = 2}, &limits, &msg))
        fail_msg("%s", msg.text);
}

static scene open_pmod(void)
{
    scene c = {.f = fixture_decoder(N_LAYERS)};
    fixture_routing(c.f, is_mod, (const float[]){1, 0.5f, 0.25f, 1});
    open_session(&c);
    return c;
}

static scene open_gamma(const char *mode)
{
    scene c = {.f = fixture_decoder(N_LAYERS)};
    fixture_gates(c.f, mode, is_mod);
    fixture_f32(c.f, "mod.capacity.skip_ratio", 0.4f);
    fixture_u32(c.f, "mod.capacity.region", VISION + 2);
    open_session(&c);
    return c;
}

static void close_scene(scene *c)
{
    squint_session_close(&c->s);
    squint_model_close(&c->m);
    fixture_free(c->f);
}

/* The image first, then text. */
static void run(squint_session *s, float keep)
{
    uint32_t ids[N];
    squint_msg msg;
    for (uint32_t i = 0; i < N; i++)
        ids[i] = i < VISION ? V : 3 + i % 7;
    sq_session_reset(s);
    s->keep = keep;
    fixture_values(s->vision, (size_t)VISION * D, 2000, 0, 1);
    if (sq_session_forward(s, ids, N, 1, &msg)) fail_msg("%s", msg.text);
}

/* ---- what is foreseen ---- */

static void check_rows(scene c)
{
    for (int i = 0; i <= 20; i++) {
        const float keep = (float)i / 20;
        run(c.s, keep);
        for (uint32_t l = 0; l < N_LAYERS; l++)
            assert_int_equal(sq_mod_rows(c.s, l, N, VISION, keep), sq_llava_state_of(c.s)->kv[l].n);
    }
    close_scene(&c);
}

static void test_rows(void **state)
{
    (void)state;
    check_rows(open_pmod());
    check_rows(open_gamma("gamma-paper"));
    check_rows(open_gamma("gamma-train"));
}

/* A prompt that is no longer than its region has no image, and loses nothing. */
static void test_rows_of_text(void **state)
{
    (void)state;
    scene c = open_gamma("gamma-train");
    assert_int_equal(sq_mod_rows(c.s, 1, VISION + 2, 0, 0.5f), VISION + 2);
    assert_int_equal(sq_mod_rows(c.s, 1, VISION + 3, 0, 0), 1);
    close_scene(&c);
    c = open_pmod();
    assert_int_equal(sq_mod_rows(c.s, 1, TEXT, 0, 0), TEXT);
    close_scene(&c);
}

/* In binary32 1 - (1 - 0.4) is less than 0.4: 15 of 40 skipped, and one more kept than all of the ratio keeps. */
static void test_less_is_not_more(void **state)
{
    (void)state;
    scene c = open_gamma("gamma-paper");
    assert_int_equal(sq_mod_rows(c.s, 1, N, VISION, 1), TEXT + 24);
    assert_int_equal(sq_mod_rows(c.s, 1, N, VISION, nextafterf(1, 0)), TEXT + 24);
    close_scene(&c);
}

static void test_a_reset_keeps_all_again(void **state)
{
    (void)state;
    scene c = open_pmod();
    run(c.s, 0.5f);
    sq_session_reset(c.s);
    assert_true(c.s->keep == 1.0f);
    close_scene(&c);
}

/* 45, 25, 15 and 45 rows; half as much: 15 and 10. */
static void test_prediction(void **state)
{
    (void)state;
    scene c = open_pmod();
    c.s->cost = (sq_cost){.pass_ms = 1000, .layer_ms = 100, .row_ms = 1, .pair_ms = 0.5, .scale = 2};
    const double dense = 2 * (100 + 45 + 0.5 * 45 * 46 / 2);
    const double all = 1000 + dense + (100 + 25 + 0.5 * 25 * 26 / 2) + (100 + 15 + 0.5 * 15 * 16 / 2);
    const double half = 1000 + dense + (100 + 15 + 0.5 * 15 * 16 / 2) + (100 + 10 + 0.5 * 10 * 11 / 2);
    const double none = 1000 + dense + 2 * (100 + 5 + 0.5 * 5 * 6 / 2);
    assert_true(fabs(sq_cost_predict_ms(c.s, N, VISION, 1) - 2 * all) < 1e-9);
    assert_true(fabs(sq_cost_predict_ms(c.s, N, VISION, 0.5f) - 2 * half) < 1e-9);
    assert_true(fabs(sq_cost_predict_ms(c.s, N, VISION, 0) - 2 * none) < 1e-9);
    /* Without text a layer that keeps nothing does not run. */
    assert_true(fabs(sq_cost_predict_ms(c.s, VISION, VISION, 0) - 2 * (1000 + 2 * (140 + 0.5 * 40 * 41 / 2))) < 1e-9);
    close_scene(&c);
}

/* ---- what is chosen ---- */

/* Only rows cost: from 90 + 10 to 90 + 25 + 15 of them. A twentieth of a budget stays unused. */
static const sq_cost a_row = {.row_ms = 1, .scale = 1};

static void check_choice(const scene *c, double budget_ms, squint_budget outcome, double predicted_ms)
{
    const sq_plan plan = sq_budget_choose(c->s, N, VISION, budget_ms);
    assert_int_equal(plan.outcome, outcome);
    assert_true(fabs(plan.predicted_ms - predicted_ms) < 1e-9);
    assert_true(fabs(sq_cost_predict_ms(c->s, N, VISION, plan.keep) - plan.predicted_ms) < 1e-9);
    assert_true(outcome != SQUINT_BUDGET_AMPLE || plan.keep == 1.0f);
    assert_true(outcome != SQUINT_BUDGET_TOO_SMALL || plan.keep == 0.0f);
}

static void test_choice(void **state)
{
    (void)state;
    scene c = open_pmod();
    c.s->cost = a_row;
    check_choice(&c, 1e9, SQUINT_BUDGET_AMPLE, 130);
    check_choice(&c, 130 / 0.95 + 1e-6, SQUINT_BUDGET_AMPLE, 130);
    check_choice(&c, 130 / 0.95 - 1e-6, SQUINT_BUDGET_CUT, 128); /* the next are 19 and 9 of 20 and 10 */
    check_choice(&c, 115 / 0.95 + 1e-6, SQUINT_BUDGET_CUT, 115);
    check_choice(&c, 100 / 0.95 + 1e-6, SQUINT_BUDGET_CUT, 100);
    check_choice(&c, 100 / 0.95 - 1e-6, SQUINT_BUDGET_TOO_SMALL, 100);
    check_choice(&c, 0, SQUINT_BUDGET_TOO_SMALL, 100);
    check_choice(&c, -50, SQUINT_BUDGET_TOO_SMALL, 100); /* the tower took too long */
    close_scene(&c);
}

static void check_monotone(scene c)
{
    sq_plan last = {.outcome = SQUINT_BUDGET_TOO_SMALL};
    unsigned outcomes = 0;
    c.s->cost = (sq_cost){.pass_ms = 3, .layer_ms = 7, .row_ms = 1, .pair_ms = 0.25, .scale = 0.75};
    const double most = sq_cost_predict_ms(c.s, N, VISION, 1);
    for (int i = 0; i <= 1000; i++) {
        const double budget = most * 1.2 * i / 1000;
        const sq_plan plan = sq_budget_choose(c.s, N, VISION, budget);
        assert_true(plan.keep >= last.keep && plan.predicted_ms >= last.predicted_ms);
        assert_true(plan.outcome == SQUINT_BUDGET_TOO_SMALL || plan.predicted_ms <= budget);
        if (plan.outcome == SQUINT_BUDGET_CUT) /* no more would fit */
            assert_true(sq_cost_predict_ms(c.s, N, VISION, plan.keep + 2e-6f) > 0.95 * budget);
        outcomes |= 1u << plan.outcome;
        last = plan;
    }
    assert_int_equal(outcomes, 1u << SQUINT_BUDGET_AMPLE | 1u << SQUINT_BUDGET_CUT | 1u << SQUINT_BUDGET_TOO_SMALL);
    close_scene(&c);
}

static void test_larger_budgets_never_keep_less(void **state)
{
    (void)state;
    check_monotone(open_pmod());
    check_monotone(open_gamma("gamma-paper"));
    check_monotone(open_gamma("gamma-train"));
}

/* ---- measuring ---- */

static void check_measuring(scene c)
{
    float logits[FIXTURE_VOCAB];
    squint_msg msg;
    run(c.s, 1);
    memcpy(logits, c.s->logits, sizeof logits);
    if (squint_session_measure(c.s, &msg)) fail_msg("%s", msg.text);
    const sq_cost *const cost = &c.s->cost;
    assert_true(cost->row_ms > 0 && cost->layer_ms >= 0 && cost->pair_ms >= 0 && cost->pass_ms >= 0 && cost->scale > 0);
    assert_int_equal(c.s->n_past, 0);
    assert_true(c.s->macs == 0);
    assert_int_equal(sq_session_kv_bytes(c.s), 0);
    run(c.s, 1);
    assert_memory_equal(logits, c.s->logits, sizeof logits);
    close_scene(&c);
}

static void test_measuring_leaves_no_trace(void **state)
{
    (void)state;
    check_measuring(open_pmod());
    check_measuring(open_gamma("gamma-paper"));
}

/* A pass of one row, caches with room for a few entries or none, no image: what there is is measured. */
static void test_measuring_small_sessions(void **state)
{
    (void)state;
    static const sq_limits small[] = {
        {.max_rows = 1, .max_tokens = 2, .max_logits = 1, .max_vision = 1, .kv = SQ_KV_F32},
        {.max_rows = 7, .max_tokens = 7, .max_logits = 1, .max_vision = 7, .kv = SQ_KV_F32},
        {.max_rows = 7, .max_tokens = 7, .max_logits = 1, .max_vision = 7, .kv = SQ_KV_F32},
        {.max_rows = 9, .max_tokens = 9, .max_logits = 1, .max_vision = 0, .kv = SQ_KV_F32}};
    static const float ratios[][2] = {{0.5f, 0.5f}, {0.5f, 0}, {0, 0}, {0.5f, 0.5f}};
    for (size_t i = 0; i < SQ_COUNT(small); i++) {
        scene c = {.f = fixture_decoder(2)};
        fixture_routing(c.f, (const bool[]){true, true}, ratios[i]);
        squint_msg msg;
        c.m = fixture_model(c.f, NULL);
        if (sq_session_open_limits(&c.s, c.m, &(squint_session_options){.threads = 1}, &small[i], &msg))
            fail_msg("%s", msg.text);
        if (squint_session_measure(c.s, &msg)) fail_msg("%s", msg.text);
        assert_true(isfinite(sq_cost_predict_ms(c.s, 1, 0, 1)));
        close_scene(&c);
    }
}

static void test_nothing_to_choose(void **state)
{
    (void)state;
    squint_msg msg;
    scene c = open_gamma("gamma-released");
    assert_int_equal(squint_session_measure(c.s, &msg), SQUINT_ERR_ARGUMENT);
    assert_string_equal(msg.text, "budget: in mode gamma-released a threshold decides for each token, not a ratio");
    close_scene(&c);
    c = (scene){.f = fixture_decoder(1)};
    open_session(&c);
    assert_int_equal(squint_session_measure(c.s, &msg), SQUINT_ERR_ARGUMENT);
    assert_string_equal(msg.text, "budget: no layer skips a token in mode dense");
    close_scene(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_rows_of_text),
        cmocka_unit_test(test_less_is_not_more),
        cmocka_unit_test(test_a_reset_keeps_all_again),
        cmocka_unit_test(test_prediction),
        cmocka_unit_test(test_choice),
        cmocka_unit_test(test_larger_budgets_never_keep_less),
        cmocka_unit_test(test_measuring_leaves_no_trace),
        cmocka_unit_test(test_measuring_small_sessions),
        cmocka_unit_test(test_nothing_to_choose),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
