/*
 * The command on an emulated GPU: what its users see of a device. The captions are the CPU's, in any order of threads.
 * SPDX-License-Identifier: MIT
 */
#include "tests/command.h"
#include "tests/support.h"

#include <cjson/cJSON.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char model[1024], list[1024], pictures[3][1024];

static cJSON *object(command_result *r)
{
    if (r->status) fail_msg("exit %d: %s", r->status, r->err);
    cJSON *const json = cJSON_Parse(r->out);
    if (!json) fail_msg("no JSON: %s", r->out);
    command_result_free(r);
    return json;
}

static cJSON *captioned(const char *device, const char *picture)
{
    command_result r = RUN("caption", "-m", model, "--device", device, "-n", "12", "--json", picture);
    return object(&r);
}

static void assert_same_member(const cJSON *a, const cJSON *b, const char *name)
{
    const cJSON *const x = cJSON_GetObjectItem(a, name), *const y = cJSON_GetObjectItem(b, name);
    assert_non_null(x);
    if (!cJSON_Compare(x, y, true)) fail_msg("%s: %s, not %s", name, cJSON_Print(x), cJSON_Print(y));
}

static void captions_are_the_same(void **state)
{
    (void)state;
    static const char *const orders[] = {"forward", "reverse", "shuffled:5"};
    for (int i = 0; i < 3; i++) {
        setenv("SQ_EMULATOR_ORDER", orders[i], 1);
        cJSON *const want = captioned("cpu", pictures[i]), *const got = captioned("cuda", pictures[i]);
        assert_same_member(got, want, "caption");
        assert_string_equal(cJSON_GetObjectItem(got, "device")->valuestring, "cuda (emulated GPU)");
        cJSON_Delete(want);
        cJSON_Delete(got);
    }
    unsetenv("SQ_EMULATOR_ORDER");
}

/* Several sessions share a device and its copies of the weights. */
static void evaluations_are_the_same(void **state)
{
    (void)state;
    command_result cpu = RUN("eval", "-m", model, "-d", list, "-n", "6", "--json"),
                   cuda = RUN("eval", "-m", model, "-d", list, "-n", "6", "--json", "--device", "cuda", "-j", "3");
    cJSON *const want = object(&cpu), *const got = object(&cuda);
    assert_same_member(got, want, "nll_token");
    assert_same_member(got, want, "cider");
    assert_same_member(got, want, "tokens_written");
    assert_same_member(got, want, "kv_bytes");
    cJSON_Delete(want);
    cJSON_Delete(got);
}

static cJSON *benched(const char *device)
{
    command_result r = RUN("bench", "--synthetic", "tiny", "--type", "q8", "--mode", "gamma-released", "--layers", "3",
                           "--vision", "24", "--text", "4", "-r", "1", "--json", "--device", device);
    return object(&r);
}

/* Random scores decide what a made model's layers keep of random vision tokens. */
static void made_models_are_the_same(void **state)
{
    (void)state;
    cJSON *const want = benched("cpu"), *const got = benched("cuda");
    const cJSON *const a = cJSON_GetObjectItem(want, "results")->child, *const b =
                                                                            cJSON_GetObjectItem(got, "results")->child;
    assert_same_member(b, a, "kv_bytes");
    assert_same_member(b, a, "mac_ratio");
    assert_true(cJSON_GetObjectItem(b, "mac_ratio")->valuedouble < 1);
    assert_string_equal(cJSON_GetObjectItem(got, "device")->valuestring, "cuda (emulated GPU)");
    cJSON_Delete(want);
    cJSON_Delete(got);
}

/* What works on the device lies there, and no more of it in the program's memory than it reads back. */
static void memory_is_told(void **state)
{
    (void)state;
    static const char *const devices[] = {"cpu", "cuda"};
    double here[2], there[2];
    for (int i = 0; i < 2; i++) {
        command_result r = RUN("info", "--json", "--device", devices[i], model);
        cJSON *const json = object(&r);
        here[i] = cJSON_GetNumberValue(cJSON_GetObjectItem(json, "session_bytes"));
        there[i] = cJSON_GetNumberValue(cJSON_GetObjectItem(json, "session_device_bytes"));
        cJSON_Delete(json);
    }
    assert_true(there[0] == 0 && there[1] > 10000 && here[1] > 10000);
    assert_true(here[1] < here[0]);
}

static void parity_finds_no_difference(void **state)
{
    (void)state;
    command_result r = RUN("parity", "-m", model, "--devices", "cpu,cuda,cuda:f32,cpu:f32", pictures[0], pictures[1]);
    if (r.status) fail_msg("exit %d: %s%s", r.status, r.out, r.err);
    command_result_free(&r);
}

static void no_gpu_is_told(void **state)
{
    (void)state;
    setenv("SQ_EMULATOR_GPUS", "0", 1);
    check_refused(1, "device cuda: no GPU was found", RUN("caption", "-m", model, "--device", "cuda", pictures[0]));
    unsetenv("SQ_EMULATOR_GPUS");
}

static void no_memory_is_told(void **state)
{
    (void)state;
    setenv("SQ_EMULATOR_MEMORY", "300000", 1);
    check_refused(1, "device cuda: ", RUN("caption", "-m", model, "--device", "cuda", pictures[0]));
    unsetenv("SQ_EMULATOR_MEMORY");
}

static void broken_gpus_are_told(void **state)
{
    (void)state;
    setenv("SQ_EMULATOR_FAIL", "launch:77", 1);
    check_refused(1, "unspecified launch failure", RUN("caption", "-m", model, "--device", "cuda", pictures[0]));
    unsetenv("SQ_EMULATOR_FAIL");
}

static int set_up(void **state)
{
    (void)state;
    static const char *const names[] = {"golden/images/baseline-420.jpg", "golden/images/exif-turned.jpg",
                                        "golden/images/grey16.png"};
    snprintf(model, sizeof model, "%s", temp_path(".gguf"));
    snprintf(list, sizeof list, "%s", temp_path(".jsonl"));
    command_result r = RUN("quantize", "--type", "q8", test_path("golden/tiny-pmod.gguf"), model);
    const int status = r.status;
    command_result_free(&r);
    FILE *const f = fopen(list, "w");
    if (status || !f) return 1;
    for (int i = 0; i < 3; i++) {
        snprintf(pictures[i], sizeof pictures[i], "%s", test_path(names[i]));
        for (int j = 0; j < 2; j++)
            fprintf(f, "{\"file\": \"%s\", \"captions\": [\"a dog %d\", \"cat\"]}\n", pictures[i], j);
    }
    return fclose(f);
}

static int tear_down(void **state)
{
    (void)state;
    unlink(model);
    unlink(list);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(captions_are_the_same),      cmocka_unit_test(evaluations_are_the_same),
        cmocka_unit_test(made_models_are_the_same),   cmocka_unit_test(memory_is_told),
        cmocka_unit_test(parity_finds_no_difference), cmocka_unit_test(no_gpu_is_told),
        cmocka_unit_test(no_memory_is_told),          cmocka_unit_test(broken_gpus_are_told),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
