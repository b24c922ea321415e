/* Choosing tokens. SPDX-License-Identifier: MIT */
#include "runtime/sample.h"
#include "tests/support.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_IDS = 65536 };

static uint32_t greedy(const float *logits, uint32_t n)
{
    sq_sampler s = {0};
    return sq_sample(&s, logits, n, NULL);
}

static void greedy_takes_the_largest(void **state)
{
    (void)state;
    assert_int_equal(greedy((float[]){3}, 1), 0);
    assert_int_equal(greedy((float[]){-1, 2, 5, 4}, 4), 2);
    assert_int_equal(greedy((float[]){1, 7, 7, 7}, 4), 1);
    assert_int_equal(greedy((float[]){-INFINITY, -5, -INFINITY}, 3), 1);
    assert_int_equal(greedy((float[]){1, INFINITY, INFINITY}, 3), 1);
    assert_int_equal(greedy((float[]){-0.0f, 0.0f}, 2), 0);
}

static void nan_is_never_chosen(void **state)
{
    (void)state;
    static const struct {
        float logits[4];
        uint32_t id;
    } cases[] = {
        {{NAN, 1, NAN, 2}, 3},
        {{NAN, NAN, -INFINITY, NAN}, 2},
        {{NAN, NAN, NAN, NAN}, 0},
        {{-INFINITY, -INFINITY, -INFINITY, -INFINITY}, 0},
        {{NAN, INFINITY, 3, INFINITY}, 1},
    };
    for (size_t i = 0; i < SQ_COUNT(cases); i++)
        for (int mode = 0; mode < 4; mode++) {
            sq_candidate scratch[4];
            sq_sampler s = {.temperature = mode ? 0.01f : 0, .top_k = mode == 2 ? 3 : 0, .top_p = mode == 3 ? 0.9f : 0};
            sq_sampler_seed(&s, i);
            for (int draw = 0; draw < 50; draw++)
                assert_int_equal(sq_sample(&s, cases[i].logits, 4, scratch), cases[i].id);
        }
}

/* Ids that come up in 2000 draws, as bits. A token of probability 0.02 stays away with 0.98^2000 < 1e-17. */
static unsigned drawn(sq_sampler s, const float *logits, uint32_t n)
{
    unsigned ids = 0;
    sq_candidate *scratch = guarded_alloc(n * sizeof *scratch, _Alignof(sq_candidate));
    sq_sampler_seed(&s, 42);
    for (int i = 0; i < 2000; i++)
        ids |= 1u << sq_sample(&s, logits, n, scratch);
    guarded_free(scratch);
    return ids;
}

/* Probabilities 0.10 0.40 0.05 0.25 0.20 */
static const float five[] = {-2.302585f, -0.916291f, -2.995732f, -1.386294f, -1.609438f};

static void cuts_keep_the_right_tokens(void **state)
{
    (void)state;
    enum { A = 1, B = 2, C = 4, D = 8, E = 16 };
    static const struct {
        sq_sampler s;
        unsigned ids;
    } cases[] = {
        {{.temperature = 1}, A | B | C | D | E},
        {{.temperature = 1, .top_k = 1}, B},
        {{.temperature = 1, .top_k = 3}, B | D | E},
        {{.temperature = 1, .top_k = 5}, A | B | C | D | E},
        {{.temperature = 1, .top_k = 99}, A | B | C | D | E},
        {{.temperature = 1, .top_p = 0.39f}, B},
        {{.temperature = 1, .top_p = 0.41f}, B | D},
        {{.temperature = 1, .top_p = 0.86f}, A | B | D | E},
        {{.temperature = 1, .top_p = 1}, A | B | C | D | E},
        {{.temperature = 1, .min_p = 0.49f}, B | D | E},
        {{.temperature = 1, .min_p = 0.51f}, B | D},
        {{.temperature = 1, .min_p = 1}, B},
        /* 0.40 0.25 of 0.65 are 0.615 and 0.385: top-p counts over what top-k left */
        {{.temperature = 1, .top_k = 2, .top_p = 0.6f}, B},
        {{.temperature = 1, .top_k = 2, .top_p = 0.63f}, B | D},
        {{.temperature = 1, .top_k = 4, .min_p = 0.3f}, B | D | E},
        {{.temperature = 1, .top_k = 4, .top_p = 0.99f, .min_p = 0.6f}, B | D},
        /* at half the temperature 0.25 / 0.40 becomes its square, 0.39 */
        {{.temperature = 0.5f, .min_p = 0.4f}, B},
        {{.temperature = 0.5f, .min_p = 0.38f}, B | D},
    };
    for (size_t i = 0; i < SQ_COUNT(cases); i++)
        assert_int_equal(drawn(cases[i].s, five, 5), cases[i].ids);
}

static void equal_logits_are_cut_by_id(void **state)
{
    (void)state;
    static const float same[8] = {0};
    assert_int_equal(drawn((sq_sampler){.temperature = 1, .top_k = 3}, same, 8), 1 | 2 | 4);
    assert_int_equal(drawn((sq_sampler){.temperature = 1, .top_p = 0.3f}, same, 8), 1 | 2 | 4);
}

/* At a temperature this high all weights round to 1 or just below; the order must still be that of the logits. */
static void high_temperature_keeps_the_order(void **state)
{
    (void)state;
    const float logits[] = {0.0f, 1e-6f, 2e-6f, -1e-6f};
    assert_int_equal(drawn((sq_sampler){.temperature = 1000, .top_k = 2}, logits, 4), 2 | 4);
}

static void tiny_temperature_is_greedy(void **state)
{
    (void)state;
    assert_int_equal(drawn((sq_sampler){.temperature = 1e-30f}, five, 5), 2);
    assert_int_equal(drawn((sq_sampler){.temperature = 1e-30f, .top_p = 0.5f, .top_k = 4}, five, 5), 2);
}

/*
 * Chi-square over 5 tokens and 100000 draws. With 4 degrees of freedom it exceeds 23.5 once in 10000 seeds; this
 * seed is fixed. A probability off by 0.01 adds at least (1000)^2 / 40000 = 25.
 */
static void frequencies_follow_probabilities(void **state)
{
    (void)state;
    enum { DRAWS = 100000 };
    static const double p[] = {0.10, 0.40, 0.05, 0.25, 0.20};
    sq_candidate scratch[5];
    for (int sorted = 0; sorted < 2; sorted++) {
        sq_sampler s = {.temperature = 1, .top_k = sorted ? 5 : 0};
        sq_sampler_seed(&s, 3);
        double count[5] = {0}, chi_square = 0;
        for (int i = 0; i < DRAWS; i++)
            count[sq_sample(&s, five, 5, scratch)]++;
        for (int i = 0; i < 5; i++)
            chi_square += (count[i] - DRAWS * p[i]) * (count[i] - DRAWS * p[i]) / (DRAWS * p[i]);
        assert_true(chi_square < 23.5);
    }
}

/*
 * With 65536 equal logits the token is the top 16 bits of each random number. Expected: the first outputs of
 * xoshiro256** from the state 1 2 3 4, as its authors' code gives them.
 */
static void generator_is_xoshiro256(void **state)
{
    (void)state;
    static const uint64_t expected[] = {11520,
                                        0,
                                        1509978240,
                                        1215971899390074240,
                                        1216172134540287360,
                                        607988272756665600,
                                        16172922978634559625u,
                                        8476171486693032832,
                                        10595114339597558777u,
                                        2904607092377533576};
    float *logits = calloc(MAX_IDS, sizeof *logits);
    sq_candidate *scratch = malloc(MAX_IDS * sizeof *scratch);
    sq_sampler s = {.temperature = 1, .state = {1, 2, 3, 4}};
    for (size_t i = 0; i < SQ_COUNT(expected); i++)
        assert_int_equal(sq_sample(&s, logits, MAX_IDS, scratch), expected[i] >> 48);
    free(logits);
    free(scratch);
}

static void seed_is_splitmix64(void **state)
{
    (void)state;
    static const uint64_t expected[] = {6457827717110365317, 3203168211198807973, 9817491932198370423u,
                                        4593380528125082431};
    sq_sampler s;
    sq_sampler_seed(&s, 1234567);
    assert_memory_equal(s.state, expected, sizeof expected);
}

/*
 * Without a cut the candidates keep their weights. Our exp and libm's are both within 1e-15, so they round to
 * different floats only next to the middle between two; none of these 4001 lies there.
 */
static void weights_are_exponentials(void **state)
{
    (void)state;
    enum { N = 4001 };
    static float logits[N];
    static sq_candidate scratch[N];
    for (int i = 0; i < N; i++)
        logits[i] = -0.02625f * (float)i; /* to -105, where floats end */
    sq_sampler s = {.temperature = 1};
    sq_sampler_seed(&s, 1);
    sq_sample(&s, logits, N, scratch);
    for (int i = 0; i < N; i++) {
        const double x = (double)logits[i];
        assert_int_equal(scratch[i].id, i);
        assert_true(scratch[i].p == (x < -104 ? 0.0f : (float)exp(x)));
    }
}

/* golden/make_sample.py draws the same in Python. */
static void draws_match_the_reference(void **state)
{
    (void)state;
    size_t size, n_cases = 0;
    char *text = (char *)read_test_file("golden/sample.txt", &size);
    float *logits = malloc(MAX_IDS * sizeof *logits);
    sq_candidate *scratch = malloc(MAX_IDS * sizeof *scratch);
    char *line = text, *end = text + size;
    while (line < end) {
        sq_sampler s;
        const uint64_t seed = strtoull(line, &line, 10);
        s.temperature = strtof(line, &line);
        s.top_k = (uint32_t)strtoul(line, &line, 10);
        s.top_p = strtof(line, &line);
        s.min_p = strtof(line, &line);
        const uint32_t n = (uint32_t)strtoul(line, &line, 10);
        assert_in_range(n, 1, MAX_IDS);
        for (uint32_t i = 0; i < n; i++)
            logits[i] = (float)(i * 2654435761u / 4294967296.0 * 12 - 6);
        sq_sampler_seed(&s, seed);
        do
            assert_int_equal(sq_sample(&s, logits, n, scratch), strtoul(line + 1, &line, 10));
        while (*line == ',');
        line++;
        n_cases++;
    }
    assert_int_equal(n_cases, 11);
    free(scratch);
    free(logits);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_takes_the_largest),
        cmocka_unit_test(nan_is_never_chosen),
        cmocka_unit_test(cuts_keep_the_right_tokens),
        cmocka_unit_test(equal_logits_are_cut_by_id),
        cmocka_unit_test(high_temperature_keeps_the_order),
        cmocka_unit_test(tiny_temperature_is_greedy),
        cmocka_unit_test(frequencies_follow_probabilities),
        cmocka_unit_test(generator_is_xoshiro256),
        cmocka_unit_test(seed_is_splitmix64),
        cmocka_unit_test(weights_are_exponentials),
        cmocka_unit_test(draws_match_the_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
