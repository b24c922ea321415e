/*
 * squint synth: made-up models of every family load, tell what they are, and write the same caption however they run.
 * SPDX-License-Identifier: MIT
 */
#include "tests/command.h"
#include "tests/support.h"

#include "simd/simd.h"

#include <cjson/cJSON.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

typedef struct family {
    const char *name, *mode;
    int n_vision; /* of the picture */
    bool routes;
} family;

/* CLIP's 4 x 4 patches; LLaVA-HR's 8 x 8; Mini-Gemini's 5 images. Of a landscape of 3:2, tiles of 2 x 2 fit best: their
 * 8 x 8 patches, of which 8 x 5.3 show it and (8 - 5) / 2 rows above and below go, each row with a newline. */
static const family families[] = {
    {"llava15", "dense", 16, false},
    {"llavanext", "dense", 16 + 6 * 9, false},
    {"pmod15", "pmod", 16, true},
    {"pmodnext", "pmod", 16 + 6 * 9, true},
    {"gamma-hr", "gamma-released", 64, true},
    {"llava-hr-x", "dense", 64, false},
    {"gamma-mgm", "gamma-released-mgm", 80, true},
};

static char picture[1024];

enum { MOST_PATHS = 8 };

/* Paths that outlive the commands of a test; released by forget_files(). */
static char paths[MOST_PATHS][256];
static size_t n_paths;

static const char *new_path(void)
{
    assert_true(n_paths < MOST_PATHS);
    snprintf(paths[n_paths], sizeof *paths, "%s", temp_path(".gguf"));
    return paths[n_paths++];
}

static void forget_files(void)
{
    while (n_paths)
        unlink(paths[--n_paths]);
}

static const char *make(const char *name, const char *type, const char *seed)
{
    const char *const path = new_path();
    command_result r = RUN("synth", "--family", name, "--shape", "tiny", "--type", type, "--seed", seed, path);
    if (r.status) fail_msg("%s %s: %s", name, type, r.err);
    assert_string_equal(r.out, "");
    command_result_free(&r);
    return path;
}

static cJSON *caption(const char *model, const char *threads, const char *isa)
{
    command_result r =
        RUN("caption", "-q", "-m", model, "--json", "-n", "12", "--threads", threads, "--isa", isa, picture);
    if (r.status) fail_msg("%s: %s", model, r.err);
    cJSON *const json = cJSON_Parse(r.out);
    assert_non_null(json);
    command_result_free(&r);
    return json;
}

static const cJSON *get(const cJSON *json, const char *key)
{
    const cJSON *const item = cJSON_GetObjectItemCaseSensitive(json, key);
    if (!item) fail_msg("no \"%s\"", key);
    return item;
}

/* Tokens and what layers kept: all that does not depend on the clock. */
static void assert_same(const cJSON *a, const cJSON *b)
{
    static const char *const keys[] = {"tokens", "kept", "kv_bytes", "macs"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        assert_true(cJSON_Compare(get(a, keys[i]), get(b, keys[i]), true));
}

static void check_info(const family *f, const char *path)
{
    char name[64];
    command_result r = RUN("info", "--json", path);
    assert_int_equal(r.status, 0);
    cJSON *const json = cJSON_Parse(r.out);
    snprintf(name, sizeof name, "%s-tiny-random", f->name);
    assert_string_equal(get(json, "name")->valuestring, name);
    assert_int_equal(get(json, "layers")->valueint, 8);
    if (f->routes) assert_string_equal(get(json, "mod_mode")->valuestring, f->mode);
    cJSON_Delete(json);
    command_result_free(&r);
}

/* A gamma layer lets some tokens pass on average, neither all nor none; p-MoD's shares are in its file. */
static void check_kept(const family *f, const cJSON *json)
{
    const double share = get(json, "kept_share")->valuedouble;
    if (f->routes)
        assert_true(share > 0.35 && share < 0.75);
    else
        assert_true(share == 1);
}

static void families_write_captions(void **state)
{
    (void)state;
    const char *const *const isas = sq_kernels_names();
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        const family *const f = &families[i];
        const char *const path = make(f->name, "q4", "1");
        cJSON *const one = caption(path, "1", "auto");
        check_info(f, path);
        assert_int_equal(get(one, "vision_tokens")->valueint, f->n_vision);
        assert_int_equal(get(one, "n_tokens")->valueint, 12);
        assert_string_equal(get(one, "mode")->valuestring, f->mode);
        check_kept(f, one);
        for (size_t j = 0; isas[j]; j++) {
            cJSON *const two = caption(path, "2", isas[j]);
            assert_same(one, two);
            cJSON_Delete(two);
        }
        cJSON_Delete(one);
        forget_files();
    }
}

static void types_write_captions(void **state)
{
    (void)state;
    static const char *const types[] = {"q8", "q8_0", "q4_0", "f16", "f32"};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        const char *const path = make("gamma-mgm", types[i], "1");
        cJSON *const json = caption(path, "2", "auto");
        assert_int_equal(get(json, "n_tokens")->valueint, 12);
        check_kept(&families[6], json);
        cJSON_Delete(json);
        forget_files();
    }
}

static uint8_t *bytes_of(const char *path, size_t *size)
{
    struct stat st;
    FILE *const f = fopen(path, "rb");
    assert_non_null(f);
    assert_int_equal(stat(path, &st), 0);
    uint8_t *const data = malloc((size_t)st.st_size);
    assert_int_equal(fread(data, 1, (size_t)st.st_size, f), st.st_size);
    fclose(f);
    *size = (size_t)st.st_size;
    return data;
}

static bool same_bytes(const char *a, const char *b)
{
    size_t n, m;
    uint8_t *const x = bytes_of(a, &n), *const y = bytes_of(b, &m);
    const bool same = n == m && !memcmp(x, y, n);
    free(x);
    free(y);
    return same;
}

static void seeds_make_files(void **state)
{
    (void)state;
    const char *const first = make("pmod15", "q4", "7"), *const again = make("pmod15", "q4", "7");
    const char *const other = make("pmod15", "q4", "8");
    assert_true(same_bytes(first, again));
    assert_false(same_bytes(first, other));
    forget_files();
}

/* What quantize makes of the floats has the same tensors, of the same sizes. */
static void layout_is_quantizes(void **state)
{
    (void)state;
    static const char *const types[] = {"q8", "q4", "q8_0", "q4_0", "f16"};
    const char *const floats = make("gamma-hr", "f32", "1"), *const quantised = new_path();
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        const char *const made = make("gamma-hr", types[i], "1");
        command_result r = RUN("quantize", "--type", types[i], floats, quantised);
        assert_int_equal(r.status, 0);
        command_result_free(&r);
        struct stat a, b;
        assert_int_equal(stat(made, &a), 0);
        assert_int_equal(stat(quantised, &b), 0);
        assert_int_equal(a.st_size, b.st_size);
        unlink(made);
        n_paths--;
    }
    forget_files();
}

static void prompts_are_words(void **state)
{
    (void)state;
    const char *const path = make("llava15", "q4", "1");
    command_result r =
        RUN("tokenize", "-m", path, "A chat between a curious user and an artificial intelligence assistant.");
    unsigned n = 1;
    for (const char *c = r.out; *c; c++)
        n += *c == ' ';
    assert_int_equal(n, 12); /* eleven words and the full stop */
    command_result_free(&r);
    forget_files();
}

static void misuse_is_told(void **state)
{
    (void)state;
    command_result r = RUN("synth", "--type", "q4", "/nowhere/x.gguf");
    assert_int_equal(r.status, 2);
    assert_non_null(strstr(r.err, "--family"));
    command_result_free(&r);
    r = RUN("synth", "--family", "llava15", "/nowhere/x.gguf");
    assert_int_equal(r.status, 2);
    assert_non_null(strstr(r.err, "--type"));
    command_result_free(&r);
    r = RUN("synth", "--family", "llava15", "--type", "q4");
    assert_int_equal(r.status, 2);
    command_result_free(&r);
    r = RUN("synth", "--family", "llava15", "--shape", "tiny", "--type", "q4", "/nowhere/x.gguf");
    assert_int_equal(r.status, 1);
    assert_non_null(strstr(r.err, "/nowhere/x.gguf"));
    command_result_free(&r);
}

int main(void)
{
    snprintf(picture, sizeof picture, "%s", test_path("../samples/cat.jpg"));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(families_write_captions), cmocka_unit_test(types_write_captions),
        cmocka_unit_test(seeds_make_files),        cmocka_unit_test(layout_is_quantizes),
        cmocka_unit_test(prompts_are_words),       cmocka_unit_test(misuse_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
