/*
 * The captions' scores against coco-caption's (tests/golden/make_metrics.py), and their edges.
 * SPDX-License-Identifier: MIT
 */
#include "tests/support.h"
#include "tools/squint/cli.h"
#include "tools/squint/metrics.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static double number(const cJSON *object, const char *key)
{
    return cJSON_GetObjectItemCaseSensitive(object, key)->valuedouble;
}

static void add_image(metrics *m, const cJSON *image)
{
    const char *references[8];
    size_t n = 0;
    const cJSON *r;
    cJSON_ArrayForEach(r, cJSON_GetObjectItemCaseSensitive(image, "references")) references[n++] = r->valuestring;
    metrics_add(m, cJSON_GetObjectItemCaseSensitive(image, "caption")->valuestring, references, n);
}

/* The reference adds 1e-15 to every count of matches and 1e-9 to every total, which moves a score by less than 1e-8
 * of itself, and leaves about 1e-4 of a BLEU that has no match at all, so those are asked to be 0 here. */
static void assert_score(double ours, double theirs)
{
    if (theirs < 1e-3)
        assert_true(ours <= theirs);
    else
        assert_true(fabs(ours - theirs) <= 1e-8 * theirs);
}

static void scores_equal_the_reference(void **state)
{
    (void)state;
    size_t size;
    uint8_t *text = read_test_file("golden/metrics.json", &size);
    cJSON *cases = cJSON_ParseWithLength((const char *)text, size);
    assert_int_equal(cJSON_GetArraySize(cases), 5);
    const cJSON *c, *image;
    cJSON_ArrayForEach(c, cases)
    {
        metrics *m = metrics_new();
        cJSON_ArrayForEach(image, cJSON_GetObjectItemCaseSensitive(c, "images")) add_image(m, image);
        const metrics_scores s = metrics_compute(m);
        assert_true(s.exact == number(c, "exact"));
        for (int n = 0; n < METRICS_ORDERS; n++)
            assert_score(s.bleu[n], cJSON_GetArrayItem(cJSON_GetObjectItemCaseSensitive(c, "bleu"), n)->valuedouble);
        assert_true(fabs(s.cider - number(c, "cider")) < 1e-9);
        metrics_free(m);
    }
    cJSON_Delete(cases);
    free(text);
}

static void case_and_space_do_not_matter(void **state)
{
    (void)state;
    metrics *m = metrics_new();
    metrics_add(m, "  A cat\tSITS on the mat \n", (const char *[]){"x", "a  cat sits on the mat"}, 2);
    metrics_add(m, "a dog", (const char *[]){"the dog runs"}, 1);
    const metrics_scores s = metrics_compute(m);
    assert_int_equal(s.n_images, 2);
    assert_true(s.exact == 0.5);
    assert_int_equal(metrics_count_words("  A cat\tSITS on the mat \n"), 6);
    metrics_free(m);
}

/* References one word shorter and one longer are as close: the shorter counts, and no brevity penalty is due. */
static void ties_go_to_the_shorter_reference(void **state)
{
    (void)state;
    metrics *m = metrics_new();
    metrics_add(m, "a b c", (const char *[]){"a b c d", "a b"}, 2);
    assert_true(fabs(metrics_compute(m).bleu[0] - 1) < 1e-12);
    metrics_free(m);
}

static void empty_captions_score_nothing(void **state)
{
    (void)state;
    metrics *m = metrics_new();
    assert_int_equal(metrics_compute(m).n_images, 0);
    metrics_add(m, "", (const char *[]){"a cat", ""}, 2);
    metrics_add(m, " ", (const char *[]){"a dog"}, 1);
    const metrics_scores s = metrics_compute(m);
    assert_true(s.exact == 0.5); /* the first has an empty reference */
    for (int n = 0; n < METRICS_ORDERS; n++)
        assert_true(s.bleu[n] == 0);
    assert_true(s.cider == 0);
    metrics_free(m);
}

/* Tables grow many times over, and every word is found again. */
static void many_words(void **state)
{
    (void)state;
    enum { N = 5000 };
    metrics *m = metrics_new();
    for (int i = 0; i < N; i++) {
        char text[64];
        snprintf(text, sizeof text, "w%d x%d y%d z%d", i, i, i, i);
        metrics_add(m, text, (const char *[]){text}, 1);
    }
    const metrics_scores s = metrics_compute(m);
    assert_true(s.exact == 1 && fabs(s.bleu[3] - 1) < 1e-12);
    assert_true(fabs(s.cider - 10) < 1e-9); /* every n-gram is of one image: all cosines are 1 */
    metrics_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scores_equal_the_reference),
        cmocka_unit_test(case_and_space_do_not_matter),
        cmocka_unit_test(ties_go_to_the_shorter_reference),
        cmocka_unit_test(empty_captions_score_nothing),
        cmocka_unit_test(many_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
