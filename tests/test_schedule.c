/*
 * What layers keep by a caller's schedule and factor: ratios and counts of PyTorch, what is refused, and what runs.
 * SPDX-License-Identifier: MIT
 */
#include "models/llava.h"
#include "runtime/schedule.h"
#include "tests/fixture.h"
#include "tests/support.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { D = 16 };

#define V SQ_IMAGE_TOKEN

static const bool all[] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                           1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

static fixture *routed(uint32_t n_layers, const bool *is_mod)
{
    float ratio[64];
    for (uint32_t l = 0; l < n_layers; l++)
        ratio[l] = is_mod[l] ? 0.5f : 1;
    fixture *f = fixture_decoder(n_layers);
    fixture_routing(f, is_mod, ratio);
    return f;
}

static squint_session *open_session(const squint_model *m, const char *schedule, float keep, const sq_limits *limits)
{
    const squint_session_options options = {.threads = 1, .schedule = schedule, .keep = keep};
    squint_session *s;
    squint_msg msg;
    if (sq_session_open_limits(&s, m, &options, limits, &msg)) fail_msg("%s", msg.text);
    return s;
}

static sq_limits limits_for(uint32_t vision, uint32_t text)
{
    return (sq_limits){
        .max_rows = vision + text, .max_tokens = vision + text, .max_logits = 1, .max_vision = vision, .kv = SQ_KV_F16};
}

/* ---- goldens ---- */

static float from_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* A line of golden/schedule.txt. The cosine's last bit is the library's: binary32 hides it here. */
static void check_golden(char *line)
{
    char *rest;
    const char *const schedule = strtok_r(line, " ", &rest);
    const float factor = strtof(strtok_r(NULL, " ", &rest), NULL), keep = strtof(strtok_r(NULL, " ", &rest), NULL);
    const uint32_t n_layers = (uint32_t)atoi(strtok_r(NULL, " ", &rest));
    const uint32_t n_vision = (uint32_t)atoi(strtok_r(NULL, " ", &rest));
    const sq_limits limits = limits_for(n_vision, 3);
    fixture *f = routed(n_layers, all);
    fixture_f32(f, "mod.schedule.factor", factor);
    squint_model *m = fixture_model(f, NULL);
    squint_session *s = open_session(m, schedule, keep, &limits);
    for (uint32_t l = 0; l < n_layers; l++) {
        const float ratio = from_bits((uint32_t)strtoul(strtok_r(NULL, " ", &rest), NULL, 16));
        const uint32_t kept = (uint32_t)atoi(strtok_r(NULL, " ", &rest));
        if (s->ratio[l] != ratio)
            fail_msg("%s: layer %u: %.9g, not %.9g", schedule, l, (double)s->ratio[l], (double)ratio);
        assert_int_equal(sq_llava_state_of(s)->kv[l].capacity, kept + 3);
    }
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

static void test_goldens(void **state)
{
    (void)state;
    size_t size;
    int n = 0;
    char *text = (char *)read_test_file("golden/schedule.txt", &size), *rest = text;
    while (rest < text + size) {
        char *const end = memchr(rest, '\n', (size_t)(text + size - rest));
        assert_non_null(end);
        *end = 0;
        check_golden(rest);
        rest = end + 1;
        n++;
    }
    assert_int_equal(n, 17);
    free(text);
}

/* ---- refused ---- */

static void assert_refused(const squint_model *m, const squint_session_options *options, const char *says)
{
    squint_session *s;
    squint_msg msg;
    assert_int_equal(squint_session_open(&s, m, options, &msg), SQUINT_ERR_ARGUMENT);
    assert_null(s);
    if (!strstr(msg.text, says)) fail_msg("\"%s\" is not in \"%s\"", says, msg.text);
    assert_int_equal(squint_session_bytes(m, options), 0);
}

static void test_bad_schedules(void **state)
{
    (void)state;
    static const char *const bad[] = {"",
                                      "cos",
                                      "cos:",
                                      "cos:0.85",
                                      "cos:0.85:",
                                      "cos:0.85:0.15:",
                                      "cos:0.85:0.15:1",
                                      "cos:0.85,0.15",
                                      "Cos:0.85:0.15",
                                      "cosine:0.85:0.15",
                                      "sin:0.85:0.15",
                                      "linear:1.01:0",
                                      "linear:1:-0.1",
                                      "linear: 1:0",
                                      "linear:1:0 ",
                                      "linear:nan:0",
                                      "linear:1e0:0",
                                      "linear:0x1:0",
                                      "linear:1..0:0",
                                      "linear:.:0",
                                      "linear:0.1234567890123456:0",
                                      "const:",
                                      "const:0.5:0.5",
                                      "const:2",
                                      "list:",
                                      "list:1,0.5,",
                                      "list:1,,0.5",
                                      "list:1:0.5:0.5",
                                      "list:1,0.5,1.5",
                                      "0.5"};
    fixture *f = routed(3, all);
    squint_model *m = fixture_model(f, NULL);
    for (size_t i = 0; i < SQ_COUNT(bad); i++) {
        char says[128];
        snprintf(says, sizeof says, "schedule: \"%s\" is not cos:MAX:MIN, linear:MAX:MIN, const:R or list:", bad[i]);
        assert_refused(m, &(squint_session_options){.schedule = bad[i]}, says);
    }
    assert_refused(m, &(squint_session_options){.schedule = "cos:0.15:0.85"}, "its lowest ratio is above its highest");
    assert_refused(m, &(squint_session_options){.schedule = "list:1,0.5"}, "a list of 2 ratios, but the model has 3");
    assert_refused(m, &(squint_session_options){.schedule = "list:1,1,1,1"}, "a list of 4 ratios, but the model has 3");
    squint_model_close(&m);
    fixture_free(f);
}

static void test_bad_keep(void **state)
{
    (void)state;
    static const float bad[] = {-0.5f, NAN, INFINITY, 1001};
    fixture *f = routed(3, all);
    squint_model *m = fixture_model(f, NULL);
    for (size_t i = 0; i < SQ_COUNT(bad); i++)
        assert_refused(m, &(squint_session_options){.keep = bad[i]}, "keep: ");
    squint_model_close(&m);
    fixture_free(f);
}

static void test_bad_factor(void **state)
{
    (void)state;
    squint_msg msg;
    squint_session *s;
    fixture *f = routed(3, all);
    fixture_f32(f, "mod.schedule.factor", NAN);
    squint_model *m = fixture_model(f, NULL);
    const squint_session_options options = {.schedule = "cos:0.85:0.15"};
    assert_int_equal(squint_session_open(&s, m, &options, &msg), SQUINT_ERR_FORMAT);
    assert_non_null(strstr(msg.text, "mod.schedule.factor"));
    squint_model_close(&m);
    fixture_free(f);
}

/* A layer without a router has none to choose with. A formula passes it over; a list must not say otherwise. */
static void test_layers_without_routers(void **state)
{
    (void)state;
    const sq_limits limits = limits_for(100, 3);
    fixture *f = routed(4, (const bool[]){false, true, false, true});
    squint_model *m = fixture_model(f, NULL);
    assert_refused(m, &(squint_session_options){.schedule = "list:1,0.5,0.25,0.5"},
                   "schedule: layer 2 has no router and keeps all: 1, not 0.25");
    static const char *const schedules[] = {"list:1,0.25,1,0", "const:0.25"};
    static const uint32_t capacity[][4] = {{103, 28, 103, 3}, {103, 28, 103, 28}};
    for (size_t i = 0; i < SQ_COUNT(schedules); i++) {
        squint_session *s = open_session(m, schedules[i], 0, &limits);
        for (uint32_t l = 0; l < 4; l++)
            assert_int_equal(sq_llava_state_of(s)->kv[l].capacity, capacity[i][l]);
        squint_session_close(&s);
    }
    squint_model_close(&m);
    fixture_free(f);
}

static void test_modes_without_ratios(void **state)
{
    (void)state;
    static const struct {
        const char *mode, *says;
    } cases[] = {{"gamma-released", "in mode gamma-released a threshold decides for each token"},
                 {"gamma-released-mgm", "in mode gamma-released-mgm a threshold"},
                 {"threshold", "in mode threshold a threshold"},
                 {"dense", "no layer skips a token in mode dense"}};
    for (size_t i = 0; i < SQ_COUNT(cases); i++) {
        squint_model *m;
        squint_session *s;
        squint_msg msg;
        char says[128];
        fixture *f = fixture_decoder(3);
        fixture_gates(f, strcmp(cases[i].mode, "dense") ? cases[i].mode : "gamma-released", all);
        const squint_model_options options = {.mode = cases[i].mode};
        if (fixture_open(&m, f, &options, &msg)) fail_msg("%s", msg.text);
        snprintf(says, sizeof says, "keep: %s", cases[i].says);
        assert_refused(m, &(squint_session_options){.keep = 0.5f}, says);
        snprintf(says, sizeof says, "schedule: %s", cases[i].says);
        assert_refused(m, &(squint_session_options){.schedule = "const:0.5"}, says);
        assert_int_equal(squint_session_open(&s, m, &(squint_session_options){.keep = 1}, &msg), SQUINT_OK);
        squint_session_close(&s);
        squint_model_close(&m);
        fixture_free(f);
    }
}

/* ---- what runs ---- */

/* Entries of the layers' caches after the image and 4 tokens of text. */
static void check_lengths(const fixture *f, const char *schedule, float keep, uint32_t n_vision, const uint32_t *kept)
{
    enum { TEXT = 4 };
    const sq_limits limits = limits_for(n_vision, TEXT);
    uint32_t ids[64];
    squint_msg msg;
    squint_model *m = fixture_model(f, NULL);
    squint_session *s = open_session(m, schedule, keep, &limits);
    for (uint32_t i = 0; i < n_vision + TEXT; i++)
        ids[i] = i < n_vision ? V : 3 + i;
    fixture_values(s->vision, (size_t)n_vision * D, 2000, 0, 1);
    if (sq_session_forward(s, ids, n_vision + TEXT, 1, &msg)) fail_msg("%s", msg.text);
    for (uint32_t l = 0; l < m->n_layers; l++) {
        assert_int_equal(sq_llava_state_of(s)->kv[l].n, kept[l] + TEXT);
        assert_true(sq_llava_state_of(s)->kv[l].capacity >= kept[l] + TEXT);
    }
    squint_session_close(&s);
    squint_model_close(&m);
}

static void test_lengths_of_pmod(void **state)
{
    (void)state;
    fixture *f = routed(3, (const bool[]){false, true, true}); /* a half each */
    check_lengths(f, NULL, 0, 41, (const uint32_t[]){41, 20, 20});
    check_lengths(f, NULL, 0.25f, 41, (const uint32_t[]){41, 5, 5});
    check_lengths(f, NULL, 1.5f, 41, (const uint32_t[]){41, 30, 30});
    check_lengths(f, NULL, 5, 41, (const uint32_t[]){41, 41, 41});
    check_lengths(f, "list:1,0,0.75", 0, 41, (const uint32_t[]){41, 0, 30});
    check_lengths(f, "list:1,0,0.75", 0.5f, 41, (const uint32_t[]){41, 0, 15});
    fixture_free(f);
}

/* n - floor(n * (1 - ratio)). Without either knob the share is the file's: in binary32 1 - (1 - 0.4) is less than 0.4,
 * and 15 of 40 would be skipped, not 16. */
static void test_lengths_of_gamma(void **state)
{
    (void)state;
    static const char *const modes[] = {"gamma-paper", "gamma-train"};
    for (size_t i = 0; i < SQ_COUNT(modes); i++) {
        fixture *f = fixture_decoder(3);
        fixture_gates(f, modes[i], (const bool[]){false, true, true});
        fixture_f32(f, "mod.capacity.skip_ratio", 0.4f);
        fixture_u32(f, "mod.capacity.region", 40);
        check_lengths(f, NULL, 0, 40, (const uint32_t[]){40, 24, 24});
        check_lengths(f, NULL, 1, 40, (const uint32_t[]){40, 24, 24});
        check_lengths(f, NULL, 0.5f, 40, (const uint32_t[]){40, 12, 12});
        check_lengths(f, NULL, 5, 40, (const uint32_t[]){40, 40, 40});
        check_lengths(f, "const:0.8", 0, 40, (const uint32_t[]){40, 32, 32});
        check_lengths(f, "list:1,0,0.75", 0, 40, (const uint32_t[]){40, 0, 30});
        check_lengths(f, "const:1", 0.25f, 40, (const uint32_t[]){40, 10, 10});
        fixture_free(f);
    }
}

/* A session takes memory for what it can come to hold. */
static void test_memory(void **state)
{
    (void)state;
    fixture *f = routed(8, all);
    fixture_tower(f);
    squint_model *m = fixture_model(f, NULL);
    const size_t own = squint_session_bytes(m, &(squint_session_options){.threads = 1});
    const size_t half = squint_session_bytes(m, &(squint_session_options){.threads = 1, .keep = 0.5f});
    const size_t none = squint_session_bytes(m, &(squint_session_options){.threads = 1, .schedule = "const:0"});
    assert_true(none < half && half < own);
    squint_model_close(&m);
    fixture_free(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goldens),
        cmocka_unit_test(test_bad_schedules),
        cmocka_unit_test(test_bad_keep),
        cmocka_unit_test(test_bad_factor),
        cmocka_unit_test(test_layers_without_routers),
        cmocka_unit_test(test_modes_without_ratios),
        cmocka_unit_test(test_lengths_of_pmod),
        cmocka_unit_test(test_lengths_of_gamma),
        cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
