/*
 * test_perplexity: squint perplexity against numpy's numbers, and what it makes of files that are not what they say.
 * SPDX-License-Identifier: MIT
 *
 * The numbers are in golden/perplexity.json, made by golden/make_perplexity.py.
 */
#include "tests/command.h"
#include "tests/fixture.h"
#include "tests/support.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

enum { HEADER = 64, ROW_HEAD = 20, VOCAB = 320, ROW = ROW_HEAD + 2 * VOCAB };

/* Logits in binary32 differ from numpy's by 1e-6 of values of a few units, and so does each -log p; the mean and its
 * exponential keep that. */
static const double RELATIVE_BOUND = 1e-5;
/* A divergence is a difference of such values, summed with p; the file adds 6e-9 (logprobs.h). */
static const double DIVERGENCE_BOUND = 3e-6;

static char model[1024], text[1024], other[256], saved[256];
static cJSON *golden;

static double number(const cJSON *json, const char *key)
{
    const cJSON *const item = cJSON_GetObjectItemCaseSensitive(json, key);
    if (!cJSON_IsNumber(item)) fail_msg("no number \"%s\"", key);
    return item->valuedouble;
}

static cJSON *json_of(command_result r)
{
    if (r.status || *r.err) fail_msg("exit %d; it said: %s", r.status, r.err);
    cJSON *const json = cJSON_Parse(r.out);
    assert_non_null(json);
    command_result_free(&r);
    return json;
}

static void assert_near(const cJSON *got, const char *key, double expected, double bound)
{
    const double v = number(got, key);
    if (!(fabs(v - expected) <= bound)) fail_msg("%s: %.9g, not %.9g (bound %g)", key, v, expected, bound);
}

static int set_up(void **state)
{
    (void)state;
    size_t size;
    snprintf(model, sizeof model, "%s", test_path("golden/tiny-pmod.gguf"));
    snprintf(text, sizeof text, "%s", test_path("golden/perplexity.txt"));
    snprintf(other, sizeof other, "%s", temp_path("-other.gguf"));
    snprintf(saved, sizeof saved, "%s", temp_path(".lp"));
    uint8_t *const json = read_test_file("golden/perplexity.json", &size);
    golden = cJSON_ParseWithLength((const char *)json, size);
    free(json);
    fixture *const f = fixture_read(model);
    fixture_encode_decoder(f, (fixture_type){SQ_TENSOR_Q4_0, 0, 0}, true);
    fixture_write(f, other);
    fixture_free(f);
    cJSON_Delete(json_of(RUN("perplexity", "--json", "-c", "64", "-m", model, "--save-logits", saved, text)));
    return golden == NULL;
}

static int tear_down(void **state)
{
    (void)state;
    cJSON_Delete(golden);
    return unlink(other) || unlink(saved);
}

/* ---- Numbers --------------------------------------------------------------------------------- */

static void perplexity_is_numpys(void **state)
{
    (void)state;
    const struct {
        const char *model, *perplexity, *error;
    } cases[] = {{model, "perplexity", "perplexity_error"}, {other, "other_perplexity", "other_error"}};
    for (size_t i = 0; i < 2; i++) {
        cJSON *const got = json_of(RUN("perplexity", "--json", "-c", "64", "-m", cases[i].model, text));
        const double p = number(golden, cases[i].perplexity), error = number(golden, cases[i].error);
        assert_near(got, "tokens", number(golden, "tokens"), 0);
        assert_near(got, "perplexity", p, p * RELATIVE_BOUND);
        assert_near(got, "perplexity_error", error, error * 1e-4);
        assert_null(cJSON_GetObjectItem(got, "kl"));
        cJSON_Delete(got);
    }
}

static void assert_divergence(const cJSON *got)
{
    static const char *const shares[] = {"0.05", "0.5", "0.95", "0.99", "0.999"};
    static const char *const exact[] = {"kl", "kl_error", "kl_max", "log_ratio", "log_ratio_error"};
    const double p = number(golden, "perplexity");
    for (size_t i = 0; i < sizeof exact / sizeof *exact; i++)
        assert_near(got, exact[i], number(golden, exact[i]), DIVERGENCE_BOUND);
    assert_near(got, "reference_perplexity", p, p * RELATIVE_BOUND);
    assert_near(got, "same_top", number(golden, "same_top"), 1e-6); /* rounded to six digits */
    const cJSON *const quantiles = cJSON_GetObjectItem(got, "kl_quantiles");
    const cJSON *const expected = cJSON_GetObjectItem(golden, "kl_quantiles");
    for (int i = 0; i < 5; i++)
        assert_near(quantiles, shares[i], cJSON_GetArrayItem(expected, i)->valuedouble, DIVERGENCE_BOUND);
}

/* From a file and from the model itself. */
static void divergence_is_numpys(void **state)
{
    (void)state;
    cJSON *got = json_of(RUN("perplexity", "--json", "-c", "64", "-m", other, "--against", saved, text));
    assert_divergence(got);
    cJSON_Delete(got);
    got = json_of(RUN("perplexity", "--json", "-c", "64", "-m", other, "--versus", model, text));
    assert_divergence(got);
    cJSON_Delete(got);
}

static void no_divergence_from_oneself(void **state)
{
    (void)state;
    cJSON *const got = json_of(RUN("perplexity", "--json", "-c", "64", "-m", model, "--against", saved, text));
    assert_near(got, "kl", 0, 1e-7);
    assert_near(got, "kl_max", 0, 1e-6);
    assert_near(got, "log_ratio", 0, 1e-7);
    assert_near(got, "same_top", 1, 0);
    cJSON_Delete(got);
    struct stat st;
    assert_int_equal(stat(saved, &st), 0);
    assert_int_equal(st.st_size, HEADER + (size_t)number(golden, "tokens") * ROW);
}

/* Fewer chunks are the first of them. */
static void chunks_are_counted(void **state)
{
    (void)state;
    cJSON *const got = json_of(RUN("perplexity", "--json", "-c", "64", "--chunks", "2", "-m", model, text));
    assert_near(got, "passages", 2, 0);
    assert_near(got, "tokens", 62, 0);
    cJSON_Delete(got);
}

/* ---- Pictures -------------------------------------------------------------------------------- */

static void write_text(const char *path, const char *words)
{
    FILE *const f = fopen(path, "wb");
    assert_non_null(f);
    assert_true(fputs(words, f) >= 0 && !fclose(f));
}

/* squint eval counts the same tokens: its NLL is the logarithm. */
static void captions_are_those_of_eval(void **state)
{
    (void)state;
    char list[256], caption[256], line[4096];
    snprintf(list, sizeof list, "%s", temp_path(".jsonl"));
    snprintf(caption, sizeof caption, "%s", temp_path(".txt"));
    snprintf(line, sizeof line,
             "{\"file\": \"%s\", \"captions\": [\"a red square\", \"two blue circles\"]}\n"
             "{\"file\": \"%s\", \"captions\": [\"a cat\"]}\n",
             test_path("golden/images/baseline-420.jpg"), test_path("golden/images/baseline-444.jpg"));
    write_text(list, line);
    cJSON *const eval = json_of(RUN("eval", "--nll", "--json", "-m", model, "-d", list));
    cJSON *const all = json_of(RUN("perplexity", "--json", "-m", model, "-d", list, "--save-logits", caption));
    assert_near(all, "tokens", number(eval, "tokens"), 0);
    const double expected = exp(number(eval, "nll_token"));
    assert_near(all, "perplexity", expected, expected * 1e-6);
    cJSON *const apart = json_of(RUN("perplexity", "--json", "-m", model, "-d", list, "--against", caption));
    assert_near(apart, "kl", 0, 1e-7);
    cJSON *const twice = json_of(RUN("perplexity", "--json", "-m", model, "-d", list, "--versus", model));
    assert_near(twice, "kl", 0, 1e-7);

    snprintf(line, sizeof line, "{\"file\": \"%s\", \"captions\": [\"a red square\"]}\n",
             test_path("golden/images/baseline-420.jpg"));
    write_text(list, line);
    write_text(caption, "a red square\n");
    cJSON *const one = json_of(RUN("eval", "--nll", "--json", "-m", model, "-d", list));
    cJSON *const got = json_of(
        RUN("perplexity", "--json", "-m", model, "--picture", test_path("golden/images/baseline-420.jpg"), caption));
    const double of_one = exp(number(one, "nll_token"));
    assert_near(got, "perplexity", of_one, of_one * 1e-6);
    cJSON *const parts[] = {eval, all, apart, twice, one, got};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        cJSON_Delete(parts[i]);
    unlink(list);
    unlink(caption);
}

/* ---- Refusals -------------------------------------------------------------------------------- */

static void what_cannot_be(void **state)
{
    (void)state;
    char link_path[256];
    snprintf(link_path, sizeof link_path, "%s", temp_path(".link"));
    assert_int_equal(symlink(saved, link_path), 0);
    check_refused(2, "name one file of text", RUN("perplexity", "-m", model));
    check_refused(2, "name one file of text", RUN("perplexity", "-m", model, text, text));
    check_refused(2, "the captions are the text", RUN("perplexity", "-m", model, "-d", text, text));
    check_refused(2, "not both", RUN("perplexity", "-m", model, "-d", text, "--picture", text));
    check_refused(2, "not both", RUN("perplexity", "-m", model, "--against", saved, "--versus", other, text));
    check_refused(2, "at least 4", RUN("perplexity", "-m", model, "-c", "3", text));
    check_refused(1, "the model's context is 128", RUN("perplexity", "-m", model, "-c", "129", text));
    check_refused(2, "631 tokens, which is less than", RUN("perplexity", "-m", model, "-c", "632", text));
    check_refused(1, "No such file", RUN("perplexity", "-m", model, "/no/such/text"));
    check_refused(1, "/tmp: ", RUN("perplexity", "-m", model, "/tmp"));
    check_refused(2, "would be overwritten", RUN("perplexity", "-m", model, "--save-logits", model, text));
    check_refused(2, "would be overwritten", RUN("perplexity", "-m", model, "--save-logits", text, text));
    check_refused(2, "would be overwritten",
                  RUN("perplexity", "-m", model, "--against", saved, "--save-logits", link_path, text));
    check_refused(2, "would be overwritten",
                  RUN("perplexity", "-m", model, "--versus", other, "--save-logits", other, text));
    check_refused(1, "not a regular file", RUN("perplexity", "-m", model, "--save-logits", "/dev/null", text));
    check_refused(1, "No such file", RUN("perplexity", "-m", model, "--save-logits", "/no/such/folder/x", text));
    check_refused(1, "another --ctx", RUN("perplexity", "-m", model, "-c", "32", "--against", saved, text));
    check_refused(1, "another number of rows",
                  RUN("perplexity", "-m", model, "-c", "64", "--chunks", "3", "--against", saved, text));
    check_refused(1, "--save-logits wrote", RUN("perplexity", "-m", model, "-c", "64", "--against", text, text));
    check_refused(1, "--save-logits wrote", RUN("perplexity", "-m", model, "-c", "64", "--against", "/tmp", text));
    unlink(link_path);
}

/* A text of as many tokens, but others. */
static void another_text(void **state)
{
    (void)state;
    size_t size;
    char path[256], from[256];
    uint8_t *const words = read_test_file("golden/perplexity.txt", &size);
    snprintf(path, sizeof path, "%s", temp_path(".txt"));
    snprintf(from, sizeof from, "%s", temp_path(".lp"));
    for (size_t i = 0; i < size; i++)
        if (words[i] >= '0' && words[i] <= '9') words[i] = (uint8_t)('0' + (words[i] - '0' + 1) % 10);
    FILE *const f = fopen(path, "wb");
    assert_int_equal(fwrite(words, 1, size, f), size);
    fclose(f);
    check_refused(1, "is of another token",
                  RUN("perplexity", "-m", model, "-c", "64", "--against", saved, "--save-logits", from, path));
    assert_int_equal(access(from, F_OK), -1); /* what failed leaves no file */
    unlink(path);
    free(words);
}

/* ---- Hostile files --------------------------------------------------------------------------- */

static uint8_t *saved_bytes(size_t *size)
{
    FILE *const f = fopen(saved, "rb");
    struct stat st;
    assert_int_equal(stat(saved, &st), 0);
    *size = (size_t)st.st_size;
    uint8_t *const bytes = malloc(*size);
    assert_int_equal(fread(bytes, 1, *size, f), *size);
    fclose(f);
    return bytes;
}

static command_result against(const char *path, const uint8_t *bytes, size_t size)
{
    FILE *const f = fopen(path, "wb");
    assert_int_equal(fwrite(bytes, 1, size, f), size);
    fclose(f);
    return RUN("perplexity", "-m", model, "-c", "64", "--json", "--against", path, text);
}

static void damaged_files(void **state)
{
    (void)state;
    static const float nan_value = NAN, huge = 1e30f, negative = -1;
    static const uint32_t many = UINT32_MAX, one = 1;
    static const uint16_t low = 0;
    static const struct {
        size_t at, n;
        const void *bytes;
        const char *said;
    } cases[] = {
        {0, 4, "SQLQ", "--save-logits wrote"},
        {4, 4, &many, "another version"},
        {8, 4, &many, "another vocabulary"},
        {8, 4, &one, "another vocabulary"},
        {12, 4, &one, "another --ctx"},
        {16, 4, &many, "another number of rows"},
        {20, 4, &one, "another number of rows"},
        {HEADER + 3 * ROW, 4, &many, "row 3 is of another token"},
        {HEADER + 4, 4, &many, "row 0 is damaged"},
        {HEADER + 8, 4, &nan_value, "row 0 is damaged"},
        {HEADER + 8, 4, &negative, "row 0 is damaged"},
        {HEADER + 12, 4, &nan_value, "row 0 is damaged"},
        {HEADER + 12, 4, &huge, "row 0 is damaged"},
        {HEADER + 16, 4, &nan_value, "row 0 is damaged"},
        {HEADER + 16, 4, &huge, "row 0 is damaged"},
        {HEADER + 16, 4, &negative, "row 0 is damaged"},
        {HEADER + 12, 4, &negative, "row 0 is damaged: its probabilities"},
    };
    size_t size;
    uint8_t *const bytes = saved_bytes(&size);
    const char *const path = temp_path("-bad.lp");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint8_t kept[4];
        memcpy(kept, bytes + cases[i].at, cases[i].n);
        memcpy(bytes + cases[i].at, cases[i].bytes, cases[i].n);
        check_refused(1, cases[i].said, against(path, bytes, size));
        memcpy(bytes + cases[i].at, kept, cases[i].n);
    }
    for (size_t i = 0; i < VOCAB; i++) /* everything as likely as the likeliest */
        memcpy(bytes + HEADER + ROW_HEAD + 2 * i, &low, sizeof low);
    check_refused(1, "do not add up to 1", against(path, bytes, size));
    unlink(path);
    free(bytes);
}

static void truncated_files(void **state)
{
    (void)state;
    size_t size;
    uint8_t *const bytes = saved_bytes(&size);
    const char *const path = temp_path("-bad.lp");
    const size_t lengths[] = {0, 3, HEADER - 1, HEADER, HEADER + 1, HEADER + ROW, size / 2, size - ROW, size - 1};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
        check_refused(1, path, against(path, bytes, lengths[i]));
    unlink(path);
    free(bytes);
}

/* A flipped bit is told, or changes some probability a little: never more. */
static void flipped_files(void **state)
{
    (void)state;
    size_t size, failed = 0;
    uint64_t seed = 1;
    uint8_t *const bytes = saved_bytes(&size);
    const char *const path = temp_path("-bad.lp");
    for (size_t i = 0; i < 40; i++) {
        const size_t at = random_u64(&seed) % (i & 1 ? size : HEADER + ROW_HEAD);
        const uint8_t bit = (uint8_t)(1u << (random_u64(&seed) & 7));
        bytes[at] ^= bit;
        command_result r = against(path, bytes, size);
        assert_true(r.status == 0 || (r.status == 1 && count_lines(r.err) == 1));
        assert_true(r.status || !strstr(r.out, "nan"));
        failed += r.status != 0;
        command_result_free(&r);
        bytes[at] ^= bit;
    }
    assert_true(failed > 0 && failed < 40);
    unlink(path);
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(perplexity_is_numpys),
        cmocka_unit_test(divergence_is_numpys),
        cmocka_unit_test(no_divergence_from_oneself),
        cmocka_unit_test(chunks_are_counted),
        cmocka_unit_test(captions_are_those_of_eval),
        cmocka_unit_test(what_cannot_be),
        cmocka_unit_test(another_text),
        cmocka_unit_test(damaged_files),
        cmocka_unit_test(truncated_files),
        cmocka_unit_test(flipped_files),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
