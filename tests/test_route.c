/*
 * Routing: how many tokens a layer keeps, with what weights, and which. Goldens come from p-MoD's own classes.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/route.h"
#include "tests/support.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_N = 600 };

/* Printed with seven decimals: half a unit of the last, and three roundings of binary32 at 1. */
static const double WEIGHT_BOUND = 2.5e-7;

static void test_count(void **state)
{
    (void)state;
    static const uint32_t n[] = {0, 1, 6, 7, 13, 14, 20, 40, 60, 100, 180, 576, 1152, 2928};
    static const uint32_t k[] = {0, 0, 0, 1, 1, 2, 3, 6, 9, 15, 27, 86, 172, 439};
    for (size_t i = 0; i < SQ_COUNT(n); i++)
        assert_int_equal(sq_route_count(n[i], 0.15f), k[i]);
    assert_int_equal(sq_route_count(1, 0.85f), 0);
}

/* gamma's thresholds: 0.005 is the score -5.293304824724492, between these two neighbours; 0.5 is the score 0. */
static void test_threshold(void **state)
{
    (void)state;
    static const float z[] = {-5.2933044f, -5.2933054f, 0, -0.0f, 1e-7f, -1e-7f, 90, -90, INFINITY, -INFINITY};
    static const struct {
        float threshold;
        bool at;
        uint32_t n, kept[10];
    } cases[] = {{0.005f, false, 7, {0, 2, 3, 4, 5, 6, 8}},
                 {0.005f, true, 7, {0, 2, 3, 4, 5, 6, 8}},
                 {0.5f, false, 3, {4, 6, 8}},
                 {0.5f, true, 5, {2, 3, 4, 6, 8}}};
    for (size_t i = 0; i < SQ_COUNT(cases); i++) {
        uint32_t kept[SQ_COUNT(z)], n;
        const double logit = sq_route_logit(cases[i].threshold);
        assert_int_equal(sq_route_threshold(z, SQ_COUNT(z), logit, cases[i].at, kept, &n, NULL), 0);
        assert_int_equal(n, cases[i].n);
        assert_memory_equal(kept, cases[i].kept, n * sizeof *kept);
    }
    uint32_t kept[2], n;
    squint_msg msg;
    assert_int_equal(sq_route_threshold((const float[]){1, NAN}, 2, 0, true, kept, &n, &msg), SQUINT_ERR_NUMERIC);
    assert_non_null(strstr(msg.text, "token 1 is NaN"));
}

/* The ratio of a layer under shiftedcos_decay_0.85_0.15, as a file rounds it. */
static float schedule(int layer) { return (float)fmax(cos(3.14159265358979323846 * layer / 31) / 2 + 0.5, 0.15); }

/* Products that binary32 rounds up to a whole number and binary64 does not. */
static void test_count_is_binary32(void **state)
{
    (void)state;
    assert_int_equal(sq_route_count(100, 0.29f), 29);
    assert_int_equal((int)(100 * 0.29), 28);
    assert_int_equal(sq_route_count(2365, schedule(10)), 1808);
    assert_int_equal(sq_route_count(4730, schedule(10)), 3616);
    assert_int_equal(sq_route_count(5584, schedule(9)), 4501);
}

static void test_count_of_the_schedule(void **state)
{
    (void)state;
    static const int layers[] = {8, 15, 16, 23, 24};
    static const uint32_t k[] = {486, 302, 273, 89, 86};
    for (size_t i = 0; i < SQ_COUNT(layers); i++)
        assert_int_equal(sq_route_count(576, schedule(layers[i])), k[i]);
    assert_int_equal(sq_route_count(1152, 0.15f), 172); /* two images share one number */
}

static void test_count_is_clamped(void **state)
{
    (void)state;
    assert_int_equal(sq_route_count(10, 1.0f), 10);
    assert_int_equal(sq_route_count(10, 1.5f), 10);
    assert_int_equal(sq_route_count(10, INFINITY), 10);
    assert_int_equal(sq_route_count(10, 0.0f), 0);
    assert_int_equal(sq_route_count(10, -1.0f), 0);
    assert_int_equal(sq_route_count(10, NAN), 0);
    assert_int_equal(sq_route_count(0, INFINITY), 0);
    assert_int_equal(sq_route_count(UINT32_MAX, 1.0f), UINT32_MAX);
}

static void check_weights(sq_norm_type type, float scale, float bias, const float *z, const double *expected,
                          uint32_t n)
{
    float w[8];
    sq_route_weights(type, scale, bias, z, w, n);
    for (uint32_t i = 0; i < n; i++)
        if (!(fabs((double)w[i] - expected[i]) <= WEIGHT_BOUND))
            fail_msg("w[%u] is %.9g, not %.9g", i, (double)w[i], expected[i]);
}

static void test_weights(void **state)
{
    (void)state;
    static const float z[] = {-3, -0.4f, 0, 0.3f, 2};
    static const double tanh_02[] = {0.8009890, 0.9240102, 1, 1.0582626, 1.1928055};
    static const double sigmoid[] = {0.2737129, 0.4506562, 0.5, 0.5372213, 0.6903985};
    static const double none[] = {0.7, 0.96, 1, 1.03, 1.2};
    static const double tanh_1[] = {0.0049452, 0.6200510, 1, 1.2913127, 1.9640276};
    static const double ones[] = {1, 1, 1, 1, 1};
    check_weights(SQ_NORM_TANH, 0.2f, 1, z, tanh_02, 5);
    check_weights(SQ_NORM_SIGMOID, 0.5f, 0.25f, z, sigmoid, 5);
    check_weights(SQ_NORM_NONE, 0.1f, 1, z, none, 5);
    check_weights(SQ_NORM_TANH, 1, 1, z, tanh_1, 5);
    check_weights(SQ_NORM_TANH, 0, 1, z, ones, 5);
}

static void test_softmax_weights(void **state)
{
    (void)state;
    static const float z[] = {-1, 0, 1, 2}, shifted[] = {999, 1000, 1001, 1002}, lowest[] = {-INFINITY, 0};
    static const double expected[] = {-0.4358828, -0.3257114, -0.0262343, 0.7878286};
    static const double one[] = {1}, edge[] = {0, 1};
    check_weights(SQ_NORM_SOFTMAX, 2, -0.5f, z, expected, 4);
    check_weights(SQ_NORM_SOFTMAX, 2, -0.5f, shifted, expected, 4); /* exp(1002) alone would overflow */
    check_weights(SQ_NORM_SOFTMAX, 1, 0, z, one, 1);
    check_weights(SQ_NORM_SOFTMAX, 1, 0, lowest, edge, 2);
    sq_route_weights(SQ_NORM_SOFTMAX, 1, 0, NULL, NULL, 0);
}

/* ---- which ---- */

static void check_top(const float *z, uint32_t n, uint32_t k, const uint32_t *expected)
{
    int32_t keys[MAX_N];
    uint32_t kept[MAX_N + 1];
    kept[k] = 12345; /* nothing is written past the k-th */
    assert_int_equal(sq_route_top_k(sq_kernels_get(NULL), z, n, k, keys, kept, NULL), SQUINT_OK);
    for (uint32_t i = 0; i < k; i++)
        assert_int_equal(kept[i], expected[i]);
    assert_int_equal(kept[k], 12345);
}

/* Weights of the first three are all exactly 0.8: tanh is saturated. Scores still tell them apart. */
static void test_saturated_weights(void **state)
{
    (void)state;
    static const float z[] = {-20, -30, -25, -0.4f};
    float w[4];
    sq_route_weights(SQ_NORM_TANH, 0.2f, 1, z, w, 4);
    assert_true(w[0] == 0.8f && w[1] == 0.8f && w[2] == 0.8f);
    assert_true(fabs((double)w[3] - 0.9240102) <= WEIGHT_BOUND);
    check_top(z, 4, 2, (const uint32_t[]){0, 3});
    check_top(z, 4, 3, (const uint32_t[]){0, 2, 3});
    check_top(z, 4, 0, NULL);
    check_top(z, 4, 4, (const uint32_t[]){0, 1, 2, 3});
}

static void test_ties(void **state)
{
    (void)state;
    static const float equal[6] = {0}, zeros[] = {-0.0f, 0.0f, -0.0f, 0.0f}, cut[] = {1, 3, 2, 2, 2, 0};
    check_top(equal, 6, 3, (const uint32_t[]){0, 1, 2});
    check_top(zeros, 4, 2, (const uint32_t[]){0, 1}); /* -0 is not below 0 */
    check_top(cut, 6, 2, (const uint32_t[]){1, 2});
    check_top(cut, 6, 3, (const uint32_t[]){1, 2, 3});
}

/* Scores that binary16 cannot tell apart. */
static void test_close_scores(void **state)
{
    (void)state;
    static const float z[] = {0.50001f, 0.50003f, 0.50002f, 0.5f};
    check_top(z, 4, 1, (const uint32_t[]){1});
    check_top(z, 4, 2, (const uint32_t[]){1, 2});
    check_top(z, 4, 3, (const uint32_t[]){0, 1, 2});
}

static void test_infinities(void **state)
{
    (void)state;
    static const float z[] = {-INFINITY, 1, INFINITY, -INFINITY, 2};
    check_top(z, 5, 2, (const uint32_t[]){2, 4});
    check_top(z, 5, 4, (const uint32_t[]){0, 1, 2, 4});
}

static void test_nan_is_refused(void **state)
{
    (void)state;
    for (uint32_t at = 0; at < 5; at++) {
        float z[] = {1, 2, 3, 4, 5};
        int32_t keys[5];
        uint32_t kept[5];
        squint_msg msg;
        const char name[] = {(char)('0' + at), ' ', 'i', 's', '\0'};
        z[at] = at % 2 ? -NAN : NAN;
        for (uint32_t k = 0; k <= 5; k++) {
            assert_int_equal(sq_route_top_k(sq_kernels_get(NULL), z, 5, k, keys, kept, &msg), SQUINT_ERR_NUMERIC);
            assert_non_null(strstr(msg.text, name));
        }
    }
}

/* ---- against a sort ---- */

static const float *sort_scores;

static int by_score(const void *a, const void *b)
{
    const uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    if (sort_scores[i] != sort_scores[j]) return sort_scores[i] > sort_scores[j] ? -1 : 1;
    return i < j ? -1 : 1;
}

static int by_index(const void *a, const void *b)
{
    const uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    return (i > j) - (i < j);
}

static void check_against_sort(const float *z, uint32_t n, uint32_t k)
{
    uint32_t order[MAX_N];
    for (uint32_t i = 0; i < n; i++)
        order[i] = i;
    sort_scores = z;
    qsort(order, n, sizeof *order, by_score);
    qsort(order, k, sizeof *order, by_index);
    check_top(z, n, k, order);
}

/* Every k of short inputs with few different scores, then rising, falling and random long ones. */
static void test_against_a_sort(void **state)
{
    (void)state;
    uint64_t seed = 7;
    float z[MAX_N];
    for (int round = 0; round < 200; round++) {
        const uint32_t n = 1 + (uint32_t)(random_u64(&seed) % 40), values = 1 + (uint32_t)(random_u64(&seed) % 5);
        for (uint32_t i = 0; i < n; i++)
            z[i] = (float)(random_u64(&seed) % values);
        for (uint32_t k = 0; k <= n; k++)
            check_against_sort(z, n, k);
    }
    for (int shape = 0; shape < 4; shape++) {
        for (uint32_t i = 0; i < 576; i++) {
            const float rising = (float)i;
            z[i] = shape == 0 ? rising : shape == 1 ? -rising : shape == 2 ? random_f32(&seed) : (float)(i % 7);
        }
        for (uint32_t k = 0; k <= 576; k += 23)
            check_against_sort(z, 576, k);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_count),
        cmocka_unit_test(test_count_is_binary32),
        cmocka_unit_test(test_count_of_the_schedule),
        cmocka_unit_test(test_count_is_clamped),
        cmocka_unit_test(test_threshold),
        cmocka_unit_test(test_weights),
        cmocka_unit_test(test_softmax_weights),
        cmocka_unit_test(test_saturated_weights),
        cmocka_unit_test(test_ties),
        cmocka_unit_test(test_close_scores),
        cmocka_unit_test(test_infinities),
        cmocka_unit_test(test_nan_is_refused),
        cmocka_unit_test(test_against_a_sort),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
