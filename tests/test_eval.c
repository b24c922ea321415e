/*
 * test_eval: what squint eval makes of a list does not depend on how many sessions share it.
 * SPDX-License-Identifier: MIT
 *
 * SQUINT_TEST_DEVICE names a device for the sessions, in a command that has it: what comes of a model of whole numbers
 * is then the CPU's to the bit.
 */
#include "tests/command.h"
#include "tests/fixture.h"
#include "tests/support.h"

#include <cjson/cJSON.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { PICTURES = 5, LINES = 25 };

static const char *device = "cpu";
static char model[1024], pictures[PICTURES][256];

/* ---- Helpers ------------------------------------------------------------------------------- */

/* The first is by far the largest, so that those after it are done before it. */
static void write_picture(const char *path, unsigned index)
{
    const unsigned w = index ? 20 + 9 * index : 1600, h = index ? 90 - 7 * index : 1200;
    uint64_t seed = index + 1;
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fprintf(f, "P6\n%u %u\n255\n", w, h);
    for (unsigned i = 0; i < w * h * 3; i++)
        putc((int)(random_u64(&seed) & 255), f);
    assert_int_equal(fclose(f), 0);
}

/* What is no picture in the place of a line's. */
typedef struct bad_line {
    unsigned line; /* from 0 */
    const char *path;
} bad_line;

/* Pictures in turn, but for n_bad of them. */
static void write_list(const char *path, unsigned n, const bad_line *bad, unsigned n_bad)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    for (unsigned i = 0; i < n; i++) {
        const char *picture = pictures[i % PICTURES];
        for (unsigned b = 0; b < n_bad; b++)
            if (bad[b].line == i) picture = bad[b].path;
        fprintf(f, "{\"file\": \"%s\", \"captions\": [\"a dog %u\"%s]}\n", picture, i, i % 3 ? ", \"some cat\"" : "");
    }
    assert_int_equal(fclose(f), 0);
}

static char *text_of(const char *path, size_t *size)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    assert_int_equal(fseek(f, 0, SEEK_END), 0);
    *size = (size_t)ftell(f);
    rewind(f);
    char *const text = calloc(*size + 1, 1);
    assert_non_null(text);
    assert_int_equal(fread(text, 1, *size, f), *size);
    fclose(f);
    return text;
}

static bool same_files(const char *a, const char *b)
{
    size_t n, m;
    char *const x = text_of(a, &n), *const y = text_of(b, &m);
    const bool same = n && n == m && !memcmp(x, y, n);
    free(x);
    free(y);
    return same;
}

/* What is said of the results, without what is said of the work. */
static char *results_of(command_result r)
{
    static const char *const of_work[] = {"ms", "images_per_second", "jobs", "device", "threads"};
    if (r.status || *r.err) fail_msg("exit %d; it said: %s", r.status, r.err);
    cJSON *const json = cJSON_Parse(r.out);
    for (size_t i = 0; i < SQ_COUNT(of_work); i++) {
        assert_non_null(cJSON_GetObjectItem(json, of_work[i]));
        cJSON_DeleteItemFromObject(json, of_work[i]);
    }
    char *const text = cJSON_Print(json);
    cJSON_Delete(json);
    command_result_free(&r);
    return text;
}

/* ---- Several sessions ---------------------------------------------------------------------- */

/* A device may be emulated, and take a second for a picture. */
static bool on_device(void) { return strcmp(device, "cpu") != 0; }
static unsigned n_lines(void) { return on_device() ? 5 : LINES; }

/* Results of the list, captions and dump. */
typedef struct outputs {
    char *results, *dumped, captions[256], dump[256];
} outputs;

static outputs run_jobs(const char *list, const char *on, const char *jobs)
{
    outputs r;
    snprintf(r.captions, sizeof r.captions, "%s", temp_path(".jsonl"));
    snprintf(r.dump, sizeof r.dump, "%s", temp_path(".bin"));
    r.results = results_of(RUN("eval", "-m", model, "-d", list, "-n", "4", "--json", "--shuffle", "--device", on, "-j",
                               jobs, "--captions", r.captions));
    r.dumped = results_of(
        RUN("eval", "-m", model, "-d", list, "--nll", "--json", "--device", on, "-j", jobs, "--dump-logits", r.dump));
    return r;
}

static void end_run(outputs *r)
{
    assert_true(!unlink(r->captions) && !unlink(r->dump));
    free(r->results);
    free(r->dumped);
}

static void jobs_change_nothing(void **state)
{
    (void)state;
    static const char *const jobs[] = {"1", "64", "3"};
    char list[256];
    snprintf(list, sizeof list, "%s", temp_path(".jsonl"));
    write_list(list, n_lines(), NULL, 0);
    outputs first = run_jobs(list, "cpu", "1");
    for (size_t i = on_device() ? SQ_COUNT(jobs) - 1 : 0; i < SQ_COUNT(jobs); i++) {
        outputs r = run_jobs(list, device, jobs[i]);
        assert_string_equal(r.results, first.results);
        assert_string_equal(r.dumped, first.dumped);
        assert_true(same_files(r.captions, first.captions));
        assert_true(same_files(r.dump, first.dump));
        end_run(&r);
    }
    end_run(&first);
    unlink(list);
}

static double jobs_of(const char *out)
{
    cJSON *const json = cJSON_Parse(out);
    const double n = cJSON_GetNumberValue(cJSON_GetObjectItem(json, "jobs"));
    cJSON_Delete(json);
    return n;
}

static void sessions_are_told(void **state)
{
    (void)state;
    char list[256];
    snprintf(list, sizeof list, "%s", temp_path(".jsonl"));
    write_list(list, 2, NULL, 0);
    command_result r = RUN("eval", "-m", model, "-d", list, "--nll", "-j", "7", "--threads", "3");
    assert_int_equal(r.status, 0);
    assert_non_null(strstr(r.out, "3 threads; 2 sessions side by side\n")); /* there are two pictures */
    assert_non_null(strstr(r.out, " pictures a second\n"));
    command_result_free(&r);
    r = RUN("eval", "-m", model, "-d", list, "--nll", "--json");
    assert_int_equal(r.status, 0);
    assert_true(jobs_of(r.out) == 1);
    command_result_free(&r);
    check_refused(2, "--jobs: \"65\" is not a number from 0 to 64", RUN("eval", "-d", list, "--jobs", "65"));
    unlink(list);
}

/* A file that takes long to be refused: its bytes are all zero. */
static void write_slow(const char *path)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(truncate(path, 128 << 20), 0);
}

/* Of several that fail; what was before it is told, whoever was ahead or failed sooner. */
static void the_first_failure_is_named(void **state)
{
    (void)state;
    static const char missing[] = "/nowhere/1.ppm", other[] = "/nowhere/2.ppm";
    char list[256], captions[256], slow[256];
    snprintf(list, sizeof list, "%s", temp_path(".jsonl"));
    snprintf(captions, sizeof captions, "%s", temp_path(".jsonl"));
    snprintf(slow, sizeof slow, "%s", temp_path(".ppm"));
    write_slow(slow);
    const struct {
        const char *jobs;
        bad_line bad[2];
    } cases[] = {{"1", {{5, missing}, {7, other}}}, {"2", {{5, missing}, {7, other}}},
                 {"5", {{6, slow}, {7, other}}},    {"64", {{1, slow}, {2, other}}},
                 {"4", {{0, missing}, {3, slow}}},  {"3", {{15, missing}, {24, other}}}};
    for (size_t i = 0; i < SQ_COUNT(cases); i++) {
        if (cases[i].bad[1].line >= n_lines()) continue;
        write_list(list, n_lines(), cases[i].bad, 2);
        check_refused(1, cases[i].bad[0].path,
                      RUN("eval", "-m", model, "-d", list, "-n", "4", "--device", device, "-j", cases[i].jobs,
                          "--captions", captions));
        size_t size;
        char *const text = text_of(captions, &size);
        assert_int_equal(count_lines(text), cases[i].bad[0].line);
        free(text);
    }
    unlink(list);
    unlink(captions);
    unlink(slow);
}

static void want_of_memory_is_told(void **state)
{
    (void)state;
    char list[256];
    command_result r = RUN("info", "--device", device, model);
    const bool emulated = strstr(r.out, "emulated") != NULL;
    command_result_free(&r);
    if (!emulated) skip(); /* a device of whose memory the test decides */
    snprintf(list, sizeof list, "%s", temp_path(".jsonl"));
    write_list(list, 3, NULL, 0);
    setenv("SQ_EMULATOR_MEMORY", "500000", 1);
    r = RUN("eval", "-m", model, "-d", list, "--device", device, "-j", "3");
    unsetenv("SQ_EMULATOR_MEMORY");
    check_refused(1, "(--jobs asks for fewer pictures at a time than ", r); /* 3, or 2 where sessions have gaps */
    unlink(list);
}

static void ctrl_c_ends_all_sessions(void **state)
{
    (void)state;
    static const char *const jobs[] = {"1", "3"};
    char list[256], text[4096];
    snprintf(list, sizeof list, "%s", temp_path(".jsonl"));
    write_list(list, 100 * LINES, NULL, 0);
    for (size_t i = 0; i < SQ_COUNT(jobs); i++) {
        int in, out;
        ssize_t n;
        bool reported = false;
        const pid_t pid = start_squint((const char *const[]){"eval", "-m", model, "-d", list, "--device", device, "-j",
                                                             jobs[i], "--captions", "/dev/stdout", NULL},
                                       &in, &out);
        assert_true(read(out, text, 1) == 1);
        assert_int_equal(kill(pid, SIGINT), 0);
        while ((n = read(out, text, sizeof text - 1)) > 0) {
            text[n] = 0;
            reported = reported || strstr(text, "BLEU");
        }
        assert_int_equal(wait_squint(pid), 130);
        assert_false(reported);
        close(in);
        close(out);
    }
    unlink(list);
}

/* ---- The end of a caption ------------------------------------------------------------------ */

/* The model's captions by either command, of the first pictures. */
static void assert_same_captions(const char *path, const char *list, const char *captions)
{
    command_result r = RUN("eval", "-m", path, "-d", list, "-n", "24", "--captions", captions);
    assert_int_equal(r.status, 0);
    command_result_free(&r);
    FILE *f = fopen(captions, "rb");
    assert_non_null(f);
    for (int i = 0; i < 2; i++) {
        char line[4096];
        assert_non_null(fgets(line, sizeof line, f));
        cJSON *const of_eval = cJSON_Parse(line);
        r = RUN("caption", "-q", "-m", path, "-n", "24", "--json", pictures[i]);
        cJSON *const of_caption = cJSON_Parse(r.out);
        assert_string_equal(cJSON_GetObjectItem(of_eval, "caption")->valuestring,
                            cJSON_GetObjectItem(of_caption, "caption")->valuestring);
        cJSON_Delete(of_eval);
        cJSON_Delete(of_caption);
        command_result_free(&r);
    }
    fclose(f);
}

/* Ids that the first picture's caption has for the first time, `n` in a row; where they begin. */
static unsigned find_run(const char *path, uint32_t *ids, unsigned n)
{
    command_result r = RUN("caption", "-q", "-m", path, "-n", "24", "--json", pictures[0]);
    cJSON *const json = cJSON_Parse(r.out), *const tokens = cJSON_GetObjectItem(json, "tokens");
    const int size = cJSON_GetArraySize(tokens);
    int all[24];
    unsigned run = 0, end = 0;
    assert_in_range(size, 1, 24);
    for (; run < n && end < (unsigned)size; end++) {
        unsigned before = 0;
        all[end] = cJSON_GetArrayItem(tokens, (int)end)->valueint;
        while (all[before] != all[end])
            before++;
        run = before == end ? run + 1 : 0;
    }
    assert_int_equal(run, n);
    for (unsigned i = 0; i < n; i++)
        ids[i] = (uint32_t)all[end - n + i];
    cJSON_Delete(json);
    command_result_free(&r);
    return end - n;
}

static void a_stop_text_ends_a_caption(void **state)
{
    (void)state;
    static const char stop[] = "</s>";
    char path[256], list[256], captions[256];
    uint32_t ids[4];
    snprintf(path, sizeof path, "%s", temp_path(".gguf"));
    snprintf(list, sizeof list, "%s", temp_path(".jsonl"));
    snprintf(captions, sizeof captions, "%s", temp_path(".jsonl"));
    write_list(list, 2, NULL, 0);
    fixture *f = fixture_decoder(4);
    fixture_routing(f, (const bool[]){false, true, false, true}, (const float[]){1, 0.5f, 1, 0.5f});
    fixture_tower(f);
    float *const end = fixture_floats(f, "output.weight") + (size_t)2 * 16;
    for (int i = 0; i < 16; i++)
        end[i] = 0; /* no end token */
    fixture_write(f, path);
    find_run(path, ids, 4);
    for (int i = 0; i < 4; i++)
        fixture_swap_ids(f, ids[i], FIXTURE_IDS + (uint32_t)(uint8_t)stop[i]);
    fixture_write(f, path);
    assert_same_captions(path, list, captions);
    size_t size;
    char *const text = text_of(captions, &size);
    text[strcspn(text, "\n")] = 0; /* the first picture's, which it ended */
    assert_null(strchr(text, '<'));
    free(text);
    fixture_free(f);
    unlink(path);
    unlink(list);
    unlink(captions);
}

static int set_up(void **state)
{
    (void)state;
    snprintf(model, sizeof model, "%s", test_path("golden/tiny-pmod.gguf"));
    for (unsigned i = 0; i < PICTURES; i++) {
        snprintf(pictures[i], sizeof pictures[i], "%s", temp_path(".ppm"));
        write_picture(pictures[i], i);
    }
    unsetenv("SQUINT_MODEL");
    unsetenv("SQUINT_ISA");
    if (!getenv("SQUINT_TEST_DEVICE")) return 0;
    device = getenv("SQUINT_TEST_DEVICE");
    char floats[sizeof model];
    memcpy(floats, model, sizeof floats);
    snprintf(model, sizeof model, "%s", temp_path(".gguf"));
    command_result r = RUN("quantize", "--type", "q8", floats, model);
    const int status = r.status;
    command_result_free(&r);
    return status;
}

static int tear_down(void **state)
{
    (void)state;
    for (unsigned i = 0; i < PICTURES; i++)
        unlink(pictures[i]);
    return getenv("SQUINT_TEST_DEVICE") ? unlink(model) : 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(jobs_change_nothing),        cmocka_unit_test(sessions_are_told),
        cmocka_unit_test(the_first_failure_is_named), cmocka_unit_test(want_of_memory_is_told),
        cmocka_unit_test(ctrl_c_ends_all_sessions),   cmocka_unit_test(a_stop_text_ends_a_caption),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
