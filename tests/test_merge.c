/*
 * test_merge: the command with models in two files, and what makes one of them.
 * SPDX-License-Identifier: MIT
 */
#include "tests/command.h"
#include "tests/fixture.h"
#include "tests/support.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char whole[1024], model[256], vision[256], picture[1024];

static int set_up(void **state)
{
    (void)state;
    snprintf(whole, sizeof whole, "%s", test_path("golden/tiny-pmod.gguf"));
    snprintf(picture, sizeof picture, "%s", test_path("golden/images/baseline-420.jpg"));
    snprintf(model, sizeof model, "%s", temp_path("-model.gguf"));
    snprintf(vision, sizeof vision, "%s", temp_path("-mmproj.gguf"));
    fixture *const first = fixture_read(whole), *const second = fixture_split(first);
    fixture_write(first, model);
    fixture_write(second, vision);
    fixture_free(first);
    fixture_free(second);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    return unlink(model) || unlink(vision);
}

static char *out_of(command_result r)
{
    if (r.status || *r.err) fail_msg("exit %d; it said: %s", r.status, r.err);
    free(r.err);
    return r.out;
}

static uint8_t *bytes_of(const char *path, size_t *size)
{
    FILE *const f = fopen(path, "rb");
    assert_non_null(f);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    *size = (size_t)st.st_size;
    uint8_t *const bytes = malloc(*size);
    assert_int_equal(fread(bytes, 1, *size, f), *size);
    fclose(f);
    return bytes;
}

static void assert_same_files(const char *a, const char *b)
{
    size_t n, m;
    uint8_t *const first = bytes_of(a, &n), *const second = bytes_of(b, &m);
    assert_int_equal(n, m);
    assert_memory_equal(first, second, n);
    free(first);
    free(second);
}

static void assert_same(char *got, char *expected)
{
    assert_string_equal(got, expected);
    free(got);
    free(expected);
}

static void one_file_of_two(void **state)
{
    (void)state;
    char merged[256];
    snprintf(merged, sizeof merged, "%s", temp_path("-merged.gguf"));
    free(out_of(RUN("merge", model, vision, merged)));
    char *expected = out_of(RUN("caption", "-q", "-m", whole, picture));
    char *pair = out_of(RUN("caption", "-q", "-m", model, "--mmproj", vision, picture));
    assert_true(strlen(expected) > 2);
    assert_string_equal(pair, expected);
    assert_same(out_of(RUN("caption", "-q", "-m", merged, picture)), expected);
    free(pair);

    char *const info = out_of(RUN("info", "--mmproj", vision, model));
    assert_non_null(strstr(info, "tower "));
    assert_non_null(strstr(info, "mmproj "));
    assert_non_null(strstr(info, vision));
    free(info);
    /* the same parts in the same sizes: "parameters" and all after it */
    char *const two = out_of(RUN("info", "--mmproj", vision, model)), *const one = out_of(RUN("info", merged));
    assert_string_equal(strstr(two, "decoder "), strstr(one, "decoder "));
    free(two);
    free(one);
    unlink(merged);
}

/* Quantising the pair is quantising what it merges to. */
static void quantised_pair(void **state)
{
    (void)state;
    char merged[256], of_pair[256], of_merged[256];
    snprintf(merged, sizeof merged, "%s", temp_path("-merged.gguf"));
    snprintf(of_pair, sizeof of_pair, "%s", temp_path("-a.gguf"));
    snprintf(of_merged, sizeof of_merged, "%s", temp_path("-b.gguf"));
    free(out_of(RUN("merge", model, vision, merged)));
    free(out_of(RUN("quantize", "-t", "q8", "--mmproj", vision, model, of_pair)));
    free(out_of(RUN("quantize", "-t", "q8", merged, of_merged)));
    assert_same_files(of_pair, of_merged);
    unlink(merged);
    unlink(of_pair);
    unlink(of_merged);
}

/* Neither half, under any name, and no file where something failed. */
static void nothing_is_destroyed(void **state)
{
    (void)state;
    char link_path[256], out[256];
    size_t n, m;
    uint8_t *const model_before = bytes_of(model, &n), *const vision_before = bytes_of(vision, &m);
    snprintf(link_path, sizeof link_path, "%s", temp_path("-link.gguf"));
    snprintf(out, sizeof out, "%s", temp_path("-out.gguf"));
    assert_int_equal(symlink(vision, link_path), 0);
    check_refused(2, "would be overwritten", RUN("merge", model, vision, model));
    check_refused(2, "would be overwritten", RUN("merge", model, vision, vision));
    check_refused(2, "would be overwritten", RUN("merge", model, vision, link_path));
    check_refused(2, "would be overwritten", RUN("quantize", "-t", "q8", "--mmproj", vision, model, link_path));
    check_refused(2, "would be overwritten",
                  RUN("caption", "-q", "-m", model, "--mmproj", vision, "--trace", link_path, picture));
    check_refused(2, "the other way round", RUN("merge", vision, model, out));
    check_refused(2, "where \"clip\" is needed", RUN("merge", model, whole, out));
    check_refused(2, "has a tower of its own", RUN("merge", whole, vision, out));
    check_refused(2, "name the model", RUN("merge", model, vision));
    check_refused(1, "no vision tower", RUN("caption", "-q", "-m", model, picture));
    assert_int_equal(access(out, F_OK), -1);
    size_t size;
    uint8_t *const model_after = bytes_of(model, &size);
    assert_int_equal(size, n);
    assert_memory_equal(model_after, model_before, n);
    uint8_t *const vision_after = bytes_of(vision, &size);
    assert_int_equal(size, m);
    assert_memory_equal(vision_after, vision_before, m);
    free(model_before);
    free(vision_before);
    free(model_after);
    free(vision_after);
    unlink(link_path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_file_of_two),
        cmocka_unit_test(quantised_pair),
        cmocka_unit_test(nothing_is_destroyed),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
