/*
 * The command as people use and misuse it: exit status, what goes to which stream, every subcommand on a tiny model.
 * SPDX-License-Identifier: MIT
 */
#define _DEFAULT_SOURCE /* syscall() */

#include "config.h"
#include "tests/command.h"
#include "tests/fixture.h"
#include "tests/support.h"
#include "tools/squint/rank.h"

#include <cjson/cJSON.h>
#include <dirent.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

static char model[1024]; /* tests/golden/tiny-pmod.gguf */
static char cat[1024], dog[1024];

/* ---- Helpers ------------------------------------------------------------------------------- */

/* A colourful PPM; equal seeds give equal pictures. */
static void write_picture(const char *path, unsigned w, unsigned h, uint64_t seed)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fprintf(f, "P6\n%u %u\n255\n", w, h);
    for (unsigned i = 0; i < w * h * 3; i++)
        putc((int)(random_u64(&seed) & 255), f);
    assert_int_equal(fclose(f), 0);
}

static void write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

static void assert_contains(const char *text, const char *part)
{
    if (!strstr(text, part)) fail_msg("\"%s\" is not in \"%s\"", part, text);
}

/* One message, and nothing else. */
static void assert_failed(const command_result *r, int status, const char *part)
{
    if (r->status != status || count_lines(r->err) != 1)
        fail_msg("exit %d, not %d; it said: %s", r->status, status, r->err);
    assert_int_equal(strncmp(r->err, "squint: ", 8), 0);
    assert_contains(r->err, part);
}

static void assert_done(const command_result *r)
{
    if (r->status) fail_msg("exit %d; it said: %s", r->status, r->err);
}

static cJSON *parse(const char *text)
{
    cJSON *json = cJSON_Parse(text);
    if (!json) fail_msg("not JSON: %s", text);
    return json;
}

static double number(const cJSON *object, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    if (!cJSON_IsNumber(item)) fail_msg("no number \"%s\"", key);
    return item->valuedouble;
}

static int array_size(const cJSON *object, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    if (!cJSON_IsArray(item)) fail_msg("no array \"%s\"", key);
    return cJSON_GetArraySize(item);
}

/* ---- Help and misuse ----------------------------------------------------------------------- */

/* Options begin a line: "  -m, --model FILE", "  --mmproj FILE". */
static void check_options_once(const char *command, const char *help)
{
    char names[64][32];
    size_t n = 0;
    for (const char *line = strchr(help, '\n'); line; line = strchr(line + 1, '\n')) {
        if (strncmp(line, "\n  -", 4)) continue;
        const char *const name = line + (line[4] == '-' ? 5 : 9);
        snprintf(names[n], sizeof names[n], "%.*s", (int)strcspn(name, " \n"), name);
        for (size_t i = 0; i < n; i++)
            if (!strcmp(names[i], names[n])) fail_msg("squint %s --help tells of --%s twice", command, names[n]);
        assert_in_range(++n, 1, 63);
    }
    assert_in_range(n, 1, 63); /* --help at least */
}

static void help_goes_to_stdout(void **state)
{
    (void)state;
    static const char *const commands[] = {"caption", "info",    "quantize", "tokenize", "eval",       "arank", "bench",
                                           "look",    "compare", "merge",    "parity",   "perplexity", "synth"};
    command_result r = RUN("--help");
    assert_done(&r);
    assert_string_equal(r.err, "");
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        char usage[64];
        command_result of_command = RUN(commands[i], "--help");
        snprintf(usage, sizeof usage, "usage: squint %s", commands[i]);
        assert_done(&of_command);
        assert_string_equal(of_command.err, "");
        assert_int_equal(strncmp(of_command.out, usage, strlen(usage)), 0);
        assert_contains(r.out, commands[i]);
        check_options_once(commands[i], of_command.out);
        command_result_free(&of_command);
    }
    command_result_free(&r);
    r = RUN("--version");
    assert_done(&r);
    assert_int_equal(strncmp(r.out, "squint ", 7), 0);
    command_result_free(&r);
}

static void misuse_is_told_in_a_line(void **state)
{
    (void)state;
    static const struct {
        const char *args[8], *says;
    } cases[] = {
        {{NULL}, "which command"},
        {{"captoin"}, "unknown command \"captoin\""},
        {{"caption"}, "which image"},
        {{"caption", "--colour", "x.jpg"}, "unknown option \"--colour\""},
        {{"caption", "-z", "x.jpg"}, "unknown option \"-z\""},
        {{"caption", "x.jpg", "--prompt"}, "--prompt needs a value"},
        {{"caption", "--json=yes", "x.jpg"}, "--json takes no value"},
        {{"caption", "--threads", "four", "x.jpg"},
         "--threads: \"four\" is not a number from 0 to 256 (0: one per core)"},
        {{"caption", "--threads", "257", "x.jpg"}, "\"257\" is not a number"},
        {{"caption", "--threads", "-1", "x.jpg"}, "\"-1\" is not a number"},
        {{"caption", "--threads", "2 ", "x.jpg"}, "\"2 \" is not a number"},
        {{"caption", "--threads", "", "x.jpg"}, "\"\" is not a number"},
        {{"caption", "--seed", "18446744073709551616", "x.jpg"}, "is not a number from 0 to 18446744073709551615"},
        {{"caption", "--temp", "nan", "x.jpg"}, "--temp: \"nan\" is not a number from 0 to 10"},
        {{"caption", "--temp", "0x1p3", "x.jpg"}, "--temp"},
        {{"caption", "--top-p", "1.5", "x.jpg"}, "--top-p: \"1.5\" is not a number from 0 to 1"},
        {{"caption", "--keep", "0", "x.jpg"},
         "--keep: \"0\" is not a number from 0.001 to 1000 (--schedule const:0 keeps none)"},
        {{"caption", "--budget", "", "x.jpg"}, "--budget: \"\" is not a time like 900ms or 1.5s"},
        {{"caption", "--budget", "900", "x.jpg"}, "--budget: \"900\" is not a time like 900ms or 1.5s"},
        {{"caption", "--budget", "0ms", "x.jpg"}, "--budget: \"0ms\" is not a time like 900ms or 1.5s"},
        {{"caption", "--budget", "-5ms", "x.jpg"}, "--budget: \"-5ms\" is not a time like 900ms or 1.5s"},
        {{"caption", "--budget", "5", "x.jpg"}, "--budget: \"5\" is not a time like 900ms or 1.5s"},
        {{"caption", "--budget", "ms", "x.jpg"}, "--budget: \"ms\" is not a time like 900ms or 1.5s"},
        {{"caption", "--budget", "1m", "x.jpg"}, "--budget: \"1m\" is not a time like 900ms or 1.5s"},
        {{"caption", "--budget", "1.5.0s", "x.jpg"}, "--budget: \"1.5.0s\" is not a time like 900ms or 1.5s"},
        {{"caption", "--budget", "1e400ms", "x.jpg"}, "--budget: \"1e400ms\" is not a time like 900ms or 1.5s"},
        {{"caption", "--budget", " 5ms", "x.jpg"}, "--budget: \" 5ms\" is not a time like 900ms or 1.5s"},
        {{"caption", "--budget", "5ms ", "x.jpg"}, "--budget: \"5ms \" is not a time like 900ms or 1.5s"},
        {{"caption", "--budget", "5mss", "x.jpg"}, "--budget: \"5mss\" is not a time like 900ms or 1.5s"},
        {{"caption", "--budget", "100000s", "x.jpg"}, "--budget: \"100000s\" is not a time like 900ms or 1.5s"},
        {{"bench", "--budget", "1s", "x.jpg"}, "--budget is for --synthetic"},
        {{"caption", "--keep", "half", "x.jpg"}, "--keep: \"half\" is not a number"},
        {{"bench", "--synthetic", "tiny", "--schedule", "cos:1"}, "schedule: \"cos:1\" is not cos:MAX:MIN"},
        {{"caption", "--kv", "f8", "x.jpg"}, "--kv: \"f8\" is none of: auto, f16, f32, q8"},
        {{"caption", "--isa", "mmx", "x.jpg"}, "\"mmx\""},
        {{"info", "a", "b"}, "one model"},
        {{"quantize", "a", "b"}, "--type"},
        {{"quantize", "--type", "q3", "a", "b"}, "--type: \"q3\" is none of: q8, q4"},
        {{"quantize", "--type", "q4", "--group", "48", "a", "b"}, "--group"},
        {{"quantize", "--type", "q4", "--vision", "f64", "a", "b"}, "--vision"},
        {{"quantize", "--type", "q4", "a"}, "name the model"},
        {{"eval"}, "--data"},
        {{"eval", "--data", "x", "y"}, "\"y\""},
        {{"bench"}, "image"},
        {{"bench", "--synthetic", "70b"}, "--synthetic"},
        {{"bench", "--synthetic", "tiny", "x.jpg"}, "no image"},
        {{"bench", "--mode", "all", "x.jpg"}, "--mode all is for --synthetic"},
        {{"bench", "--synthetic", "tiny", "--mode", "alpha"}, "--mode: \"alpha\" is none of: pmod, gamma-released"},
    };
    setenv("SQUINT_MODEL", model, 1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        command_result r = run_squint(NULL, cases[i].args);
        assert_failed(&r, 2, cases[i].says);
        assert_string_equal(r.out, "");
        command_result_free(&r);
    }
    unsetenv("SQUINT_MODEL");
}

static void unknown_devices_are_misuse(void **state)
{
    (void)state;
    static const char *const names[] = {"gpu", "", "cuda:", "cuda:f8", "cpu:f16", "cuda (NVIDIA H200)", "Cuda"};
    for (size_t i = 0; i < SQ_COUNT(names); i++) {
        char says[128];
        snprintf(says, sizeof says, "device: \"%s\" is not cpu, cpu:f32, cuda, cuda:f32 or cuda:f16", names[i]);
        check_refused(2, says, RUN("caption", "-m", model, "--device", names[i], cat));
    }
}

/* What every command that runs a model says of a device that is not to be had. */
static void a_device_may_be_missing(void **state)
{
    (void)state;
    const char *const list = temp_path(".jsonl"), *const dump = test_path("golden/checkpoints/llava15.dump.gguf");
    char text[2048];
    snprintf(text, sizeof text, "{\"file\": \"%s\", \"captions\": [\"a\"]}\n", cat);
    write_text(list, text);
    const char *const commands[][8] = {{"caption", "-m", model, cat},
                                       {"bench", "-m", model, cat},
                                       {"bench", "--synthetic", "tiny"},
                                       {"eval", "-m", model, "-d", list},
                                       {"perplexity", "-m", model, "-d", list},
                                       {"compare", "-m", model, "--ref", dump},
                                       {"info", model},
                                       {"arank", "-m", model, cat}};
    for (size_t i = 0; i < SQ_COUNT(commands); i++) {
        const char *args[12];
        size_t n = 0;
        for (; commands[i][n]; n++)
            args[n] = commands[i][n];
        args[n] = "--device";
        args[n + 1] = "cuda:f32";
        args[n + 2] = NULL;
        if (!strcmp(args[0], "arank") && !rank_available()) continue;
        command_result r = run_squint(NULL, args);
        if (SQ_HAVE_CUDA && !r.status) {
            print_message("there is a GPU: skipped\n");
            skip();
        }
        assert_failed(&r, 1, SQ_HAVE_CUDA ? "device cuda: " : "device: cuda is not in this build of squint; configure");
        assert_string_equal(r.out, "");
        command_result_free(&r);
    }
    unlink(list);
}

/* In words and in JSON. */
static void the_device_is_told(void **state)
{
    (void)state;
    static const char *const names[] = {"cpu", "cpu:f32"};
    for (size_t i = 0; i < SQ_COUNT(names); i++) {
        command_result r = RUN("caption", "-m", model, "--device", names[i], "--threads", "1", "--json", cat);
        assert_done(&r);
        cJSON *const json = parse(r.out);
        assert_string_equal(cJSON_GetObjectItem(json, "device")->valuestring, names[i]);
        assert_int_equal(!strncmp(r.err, "squint: cpu:f32, ", 17), i);
        assert_contains(r.err, ", 1 thread: image ");
        cJSON_Delete(json);
        command_result_free(&r);
    }
}

static void a_missing_default_model_is_told(void **state)
{
    (void)state;
    command_result r = RUN("caption", "-m", "/nowhere/model.gguf", cat);
    assert_failed(&r, 1, "/nowhere/model.gguf");
    command_result_free(&r);
}

/* ---- caption ------------------------------------------------------------------------------- */

static void a_caption_alone_on_stdout(void **state)
{
    (void)state;
    command_result r = RUN("caption", "-m", model, cat), quiet = RUN("caption", "-q", "-m", model, cat);
    assert_done(&r);
    assert_int_equal(count_lines(r.out), 1);
    assert_int_equal(count_lines(r.err), 1); /* no bar: stderr is no terminal */
    assert_contains(r.err, " tok/s)");
    assert_done(&quiet);
    assert_string_equal(quiet.err, "");
    assert_string_equal(quiet.out, r.out);
    command_result_free(&r);
    command_result_free(&quiet);
}

static void several_images_go_on_after_a_failure(void **state)
{
    (void)state;
    command_result r = RUN("caption", "-q", "-m", model, cat, "/nowhere/x.jpg", dog);
    assert_failed(&r, 1, "/nowhere/x.jpg");
    assert_int_equal(count_lines(r.out), 2);
    assert_int_equal(strncmp(r.out, cat, strlen(cat)), 0);
    assert_contains(strchr(r.out, '\n') + 1, dog);
    command_result alone = RUN("caption", "-q", "-m", model, cat);
    assert_int_equal(strncmp(r.out + strlen(cat) + 2, alone.out, strlen(alone.out)), 0);
    command_result_free(&r);
    command_result_free(&alone);
}

static void standard_input_is_an_image(void **state)
{
    (void)state;
    const char *const args[] = {"caption", "-q", "-m", model, "-", NULL};
    command_result r = run_squint(cat, args), by_name = RUN("caption", "-q", "-m", model, cat);
    assert_done(&r);
    assert_string_equal(r.out, by_name.out);
    command_result_free(&r);
    r = run_squint(NULL, args); /* nothing there */
    assert_failed(&r, 1, "standard input");
    command_result_free(&r);
    command_result_free(&by_name);
}

static void json_is_a_line_an_image(void **state)
{
    (void)state;
    command_result r = RUN("caption", "-q", "--json", "--threads", "1", "-m", model, cat, "/nowhere/\xFF.jpg", dog);
    assert_failed(&r, 1, "/nowhere/");
    assert_int_equal(count_lines(r.out), 3);
    char *second = strchr(r.out, '\n'), *third = strchr(second + 1, '\n');
    *second++ = *third++ = 0;
    cJSON *first = parse(r.out), *bad = parse(second), *last = parse(third);
    assert_string_equal(cJSON_GetObjectItem(first, "file")->valuestring, cat);
    assert_true(cJSON_IsString(cJSON_GetObjectItem(first, "caption")));
    assert_true(number(first, "n_tokens") == array_size(first, "tokens"));
    assert_true(array_size(first, "kept") > 0);
    assert_true(number(first, "prompt_tokens") > number(first, "vision_tokens"));
    assert_true(number(first, "macs") > 0 && number(first, "macs") < number(first, "macs_dense"));
    assert_true(number(first, "kv_bytes") > 0);
    assert_true(number(first, "threads") == 1);
    assert_true(number(cJSON_GetObjectItem(first, "ms"), "prefill") > 0);
    assert_string_equal(cJSON_GetObjectItem(bad, "file")->valuestring, "/nowhere/\xEF\xBF\xBD.jpg");
    assert_true(cJSON_IsString(cJSON_GetObjectItem(bad, "error")));
    assert_string_equal(cJSON_GetObjectItem(last, "file")->valuestring, dog);
    cJSON_Delete(first);
    cJSON_Delete(bad);
    cJSON_Delete(last);
    command_result_free(&r);
}

static void a_seed_repeats_a_sample(void **state)
{
    (void)state;
    command_result a = RUN("caption", "-q", "-m", model, "--temp", "5", "--seed", "7", cat);
    command_result b = RUN("caption", "-q", "-m", model, "--temp", "5", "--seed", "7", cat);
    command_result c = RUN("caption", "-q", "-m", model, "--temp", "5", "--seed", "8", cat);
    assert_done(&a);
    assert_string_equal(a.out, b.out);
    assert_string_not_equal(a.out, c.out);
    command_result_free(&a);
    command_result_free(&b);
    command_result_free(&c);
}

/* Ctrl-C while it waits for the second image; the first one's line shows that it is that far. */
/* A thread that is not the process's first. */
static pid_t other_thread(pid_t pid)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
    DIR *tasks = opendir(path);
    assert_non_null(tasks);
    pid_t other = 0;
    for (const struct dirent *d; (d = readdir(tasks));) {
        const pid_t tid = (pid_t)atoi(d->d_name);
        if (tid && tid != pid) other = tid;
    }
    closedir(tasks);
    assert_true(other > 0);
    return other;
}

/* While it reads standard input, or is about to; whichever thread the system has handle it. */
static void ctrl_c_ends_with_130(void **state)
{
    (void)state;
    for (int to_worker = 0; to_worker < 2; to_worker++) {
        int in, out;
        char c = 0;
        const pid_t pid = start_squint(
            (const char *const[]){"caption", "-q", "-m", model, "--threads", "2", cat, "-", NULL}, &in, &out);
        while (c != '\n' && read(out, &c, 1) == 1)
            continue;
        assert_int_equal(syscall(SYS_tgkill, pid, to_worker ? other_thread(pid) : pid, SIGINT), 0);
        assert_int_equal(wait_squint(pid), 130);
        close(in);
        close(out);
    }
}

static void a_full_disk_is_told(void **state)
{
    (void)state;
    if (access("/dev/full", W_OK)) skip();
    command_result r = run_squint_to("/dev/full", (const char *const[]){"caption", "-q", "-m", model, cat, NULL});
    assert_failed(&r, 1, "standard output");
    command_result_free(&r);
}

/* ---- info, quantize, tokenize -------------------------------------------------------------- */

/* A model of floats: 4 and 2 bytes a weight, but for an embedding of which no product is made. */
static void check_weights(const cJSON *info, bool tied)
{
    const cJSON *const bytes = cJSON_GetObjectItem(info, "weight_bytes"), *part;
    double weights = tied ? 0 : -number(info, "pieces") * number(info, "width");
    cJSON_ArrayForEach(part, cJSON_GetObjectItem(info, "parameters")) weights += part->valuedouble;
    assert_true(number(bytes, "file") == 4 * weights && number(bytes, "f32") == 4 * weights);
    assert_true(number(bytes, "f16") == 2 * weights);
}

static void info_tells_what_is_there(void **state)
{
    (void)state;
    command_result r = RUN("info", model), json = RUN("info", "--json", "--tensors", "--device", "cpu:f32", model);
    assert_done(&r);
    assert_contains(r.out, "vision tokens");
    assert_null(strstr(r.out, "a session takes"));
    assert_contains(r.out, "multiply-adds");
    assert_done(&json);
    cJSON *info = parse(json.out);
    assert_true(array_size(info, "layer") == (int)number(info, "layers"));
    assert_true(array_size(info, "tensors") > 10);
    assert_true(number(info, "mac_share") > 0 && number(info, "mac_share") < 1);
    check_weights(info, true);
    assert_string_equal(cJSON_GetObjectItem(info, "device")->valuestring, "cpu:f32");
    assert_true(number(info, "session_bytes") > 10000 && number(info, "session_device_bytes") == 0);
    cJSON_Delete(info);
    command_result_free(&r);
    command_result_free(&json);
}

/* Where scores decide how much a layer does, info says so, and what it does at most. */
static void info_of_gates(void **state)
{
    (void)state;
    const char *path = temp_path(".gguf");
    fixture *f = fixture_decoder(4);
    fixture_gates(f, "gamma-released-mgm", (const bool[]){0, 1, 1, 0});
    fixture_tower(f);
    fixture_write(f, path);
    command_result r = RUN("info", path), json = RUN("info", "--json", path);
    assert_done(&r);
    assert_contains(r.out, "gamma-released-mgm, 2 of 4 layers; the scores decide");
    assert_contains(r.out, "at most ");
    cJSON *info = parse(json.out);
    assert_string_equal(cJSON_GetObjectItem(info, "mod_mode")->valuestring, "gamma-released-mgm");
    assert_null(cJSON_GetObjectItem(info, "mac_share"));
    assert_null(cJSON_GetObjectItem(info, "device"));
    check_weights(info, false);
    cJSON_Delete(info);
    command_result_free(&r);
    command_result_free(&json);
    r = RUN("caption", "-m", path, "--json", "-n", "8", cat);
    assert_done(&r);
    command_result_free(&r);
    unlink(path);
    fixture_free(f);
}

/* The model's ratios of layers 2 to 7 are a cosine's, 0.81 to 0.15 of 36 tokens. */
static void layers_keep_what_is_asked(void **state)
{
    (void)state;
    static const struct {
        const char *option, *value;
        int kept[8];
    } cases[] = {{"--schedule", "cos:0.85:0.15", {36, 36, 29, 22, 13, 6, 5, 5}},
                 {"--keep", "0.5", {36, 36, 14, 11, 6, 3, 2, 2}},
                 {"--schedule", "const:0", {36, 36, 0, 0, 0, 0, 0, 0}},
                 {"--schedule", "list:1,1,1,0.5,0.25,0.125,0,1", {36, 36, 36, 18, 9, 4, 0, 36}}};
    for (size_t i = 0; i < SQ_COUNT(cases); i++) {
        command_result r = RUN("caption", "-q", "-n", "1", "--json", "-m", model, cases[i].option, cases[i].value, cat);
        assert_done(&r);
        cJSON *caption = parse(r.out);
        int sum = 0;
        for (int l = 0; l < 8; sum += cases[i].kept[l++])
            assert_int_equal(cJSON_GetArrayItem(cJSON_GetObjectItem(caption, "kept"), l)->valuedouble,
                             cases[i].kept[l]);
        assert_true(number(caption, "kept_share") - sum / 288.0 < 1e-6 &&
                    number(caption, "kept_share") - sum / 288.0 > -1e-6);
        cJSON_Delete(caption);
        command_result_free(&r);
    }
    command_result r = RUN("caption", "-q", "-m", model, "--schedule", "list:1,1", cat);
    assert_failed(&r, 2, "schedule: a list of 2 ratios, but the model has 8 layers");
    command_result_free(&r);
}

/* What is foreseen, and then what came of it: of a budget that is plenty, and of one that nothing could meet. */
static void budgets_are_told(void **state)
{
    (void)state;
    static const struct {
        const char *budget, *foreseen, *outcome;
        double keep;
    } cases[] = {{"10000s", "nothing to cut\n", "ample", 1}, {"0.001ms", "cannot be met: ", "too small", 0}};
    for (size_t i = 0; i < SQ_COUNT(cases); i++) {
        command_result r = RUN("caption", "--budget", cases[i].budget, "--json", "-m", model, cat);
        assert_done(&r);
        const char *const foreseen = strstr(r.err, cases[i].foreseen), *const came = strstr(r.err, "the prefill took ");
        assert_true(foreseen && came && foreseen < came);
        cJSON *caption = parse(r.out);
        const cJSON *const budget = cJSON_GetObjectItem(caption, "budget");
        assert_string_equal(cJSON_GetObjectItem(budget, "outcome")->valuestring, cases[i].outcome);
        assert_true(number(budget, "keep") == cases[i].keep && number(budget, "predicted_prefill_ms") > 0);
        assert_true(number(budget, "first_token_ms") > number(budget, "spent_ms"));
        cJSON_Delete(caption);
        command_result_free(&r);
    }
    command_result r = RUN("caption", "--budget", "1s", "-q", "-m", model, cat);
    assert_done(&r);
    assert_string_equal(r.err, "");
    command_result_free(&r);
    r = RUN("caption", "--budget", "1s", "--mode", "dense", "-q", "-m", model, cat);
    assert_failed(&r, 2, "budget: no layer skips a token in mode dense");
    command_result_free(&r);
}

/* A mode that is not the model's own runs, and is told; one that does not fit is refused. */
static void modes_are_told(void **state)
{
    (void)state;
    command_result r = RUN("caption", "--mode", "dense", "--json", "-m", model, cat);
    assert_done(&r);
    assert_contains(r.err, "squint: runs in mode dense, as asked; the model's own is pmod\n");
    cJSON *caption = parse(r.out);
    assert_true(number(caption, "macs") == number(caption, "macs_dense"));
    assert_string_equal(cJSON_GetObjectItem(caption, "mode")->valuestring, "dense");
    cJSON_Delete(caption);
    command_result_free(&r);
    r = RUN("caption", "--mode", "pmod", "-m", model, cat);
    assert_done(&r);
    assert_null(strstr(r.err, "as asked"));
    command_result_free(&r);
    r = RUN("caption", "--mode", "gamma-released", "-m", model, cat);
    assert_true(r.status != 0);
    assert_contains(r.err, "other routers");
    command_result_free(&r);
}

static void a_template_can_be_asked_for(void **state)
{
    (void)state;
    command_result r = RUN("caption", "-q", "--template", "plain", "-m", model, cat);
    assert_done(&r);
    command_result_free(&r);
    r = RUN("caption", "-q", "--template", "llava_v0", "-m", model, cat); /* a chat, of bytes for the most part */
    assert_contains(r.err, "the prompt is longer than 128 tokens");
    command_result_free(&r);
    r = RUN("caption", "--template", "alpaca", "-m", model, cat);
    assert_int_equal(r.status, 2);
    assert_contains(r.err, "--template: \"alpaca\" is none of: vicuna_v1, llava_v1, llava_v0, plain");
    command_result_free(&r);
}

static bool equal(double a, double b) { return a - b < 1e-5 && b - a < 1e-5; }

static double sum_of(const cJSON *layers, const char *key)
{
    const cJSON *layer;
    double sum = 0;
    cJSON_ArrayForEach(layer, layers) sum += number(layer, key);
    return sum;
}

/* What layers did is what is told of them all, and with what they skipped it is a dense model's work. */
static void assert_work_adds_up(const cJSON *caption)
{
    const cJSON *work = cJSON_GetObjectItem(caption, "work"), *layers = cJSON_GetObjectItem(work, "layer"), *layer;
    const cJSON *kept = cJSON_GetObjectItem(caption, "kept")->child;
    assert_int_equal(cJSON_GetArraySize(layers), array_size(caption, "kept"));
    cJSON_ArrayForEach(layer, layers)
    {
        assert_true(number(layer, "vision_tokens") == kept->valuedouble);
        assert_true(number(layer, "prompt_tokens") >= number(layer, "vision_tokens"));
        assert_true(number(layer, "generated_tokens") < number(caption, "n_tokens"));
        kept = kept->next;
    }
    assert_true(number(work, "tower_macs") > 0);
    assert_true(number(work, "prefill_macs") == sum_of(layers, "prefill_macs"));
    assert_true(number(work, "decode_macs") == sum_of(layers, "decode_macs"));
    assert_true(number(work, "kv_bytes") == sum_of(layers, "kv_bytes"));
    assert_true(number(work, "prefill_macs") == number(caption, "macs"));
    assert_true(number(work, "prefill_macs") + number(work, "prefill_macs_skipped") == number(caption, "macs_dense"));
    assert_true(number(work, "decode_macs") > 0 && number(work, "decode_macs_skipped") >= 0);
    assert_true(number(work, "kv_bytes") == number(caption, "kv_bytes"));
    assert_true(number(work, "kv_bytes") + number(work, "kv_bytes_skipped") == number(caption, "kv_bytes_dense"));
}

/* Both of one picture and no words; a caption of one token has run nothing but the prompt. */
static void assert_foreseen(const cJSON *info, const cJSON *caption)
{
    const cJSON *work = cJSON_GetObjectItem(caption, "work");
    const cJSON *layer = cJSON_GetObjectItem(info, "layer")->child, *done;
    assert_true(number(info, "tower_macs") == number(work, "tower_macs"));
    assert_true(number(info, "macs") == number(caption, "macs"));
    assert_true(number(info, "macs_dense") == number(caption, "macs_dense"));
    assert_true(number(info, "kv_bytes") == number(caption, "kv_bytes"));
    assert_true(number(info, "kv_bytes_dense") == number(caption, "kv_bytes_dense"));
    assert_true(equal(number(info, "mac_share"), number(caption, "macs") / number(caption, "macs_dense")));
    assert_true(equal(number(info, "kv_share"), number(caption, "kv_bytes") / number(caption, "kv_bytes_dense")));
    assert_true(equal(number(info, "vision_share"), number(caption, "kept_share")));
    cJSON_ArrayForEach(done, cJSON_GetObjectItem(work, "layer"))
    {
        assert_true(number(layer, "vision_tokens") == number(done, "vision_tokens"));
        assert_true(number(layer, "macs") == number(done, "prefill_macs"));
        assert_true(number(layer, "kv_bytes") == number(done, "kv_bytes"));
        layer = layer->next;
    }
}

static cJSON *run_json(const char *const *args)
{
    command_result r = run_squint(NULL, args);
    assert_done(&r);
    cJSON *json = parse(r.out);
    command_result_free(&r);
    return json;
}

#define JSON(...) run_json((const char *const[]){__VA_ARGS__, NULL})

static void assert_told_and_done(const char *path)
{
    cJSON *info = JSON("info", "--json", path), *prompt = JSON("caption", "-q", "--json", "-n", "1", "-m", path, cat);
    cJSON *caption = JSON("caption", "-q", "--json", "-n", "8", "-m", path, cat);
    assert_foreseen(info, prompt);
    assert_work_adds_up(caption);
    cJSON_Delete(info);
    cJSON_Delete(prompt);
    cJSON_Delete(caption);
}

/* What info foresees is what a caption does; quantised, keys and values take half as much. */
static void info_and_caption_agree(void **state)
{
    (void)state;
    const char *path = temp_path(".gguf");
    assert_told_and_done(model);
    command_result r = RUN("quantize", "--type", "q4", "--group", "32", model, path);
    assert_done(&r);
    command_result_free(&r);
    assert_told_and_done(path);
    unlink(path);
}

/* Of the gammas' modes the paper's counts, the released one lets scores decide, in generation too. */
static void work_of_gates(void **state)
{
    (void)state;
    const char *path = temp_path(".gguf");
    fixture *f = fixture_decoder(4);
    fixture_gates(f, "gamma-paper", (const bool[]){0, 1, 1, 0});
    fixture_f32(f, "mod.capacity.skip_ratio", 0.4f);
    fixture_tower(f);
    fixture_write(f, path);
    assert_told_and_done(path);
    fixture_str(f, "mod.mode", "gamma-released");
    fixture_drop(f, "mod.capacity.skip_ratio");
    fixture_write(f, path);
    cJSON *info = JSON("info", "--json", path), *caption = JSON("caption", "-q", "--json", "-n", "8", "-m", path, cat);
    const cJSON *layers = cJSON_GetObjectItem(cJSON_GetObjectItem(caption, "work"), "layer");
    assert_work_adds_up(caption);
    assert_null(cJSON_GetObjectItem(info, "macs"));
    assert_true(number(info, "macs_dense") == number(caption, "macs_dense"));
    assert_true(number(cJSON_GetArrayItem(layers, 0), "generated_tokens") == number(caption, "n_tokens") - 1);
    assert_true(sum_of(layers, "generated_tokens") < 4 * (number(caption, "n_tokens") - 1));
    cJSON_Delete(info);
    cJSON_Delete(caption);
    command_result r = RUN("info", path);
    assert_contains(r.out, "prefill                at most ");
    command_result_free(&r);
    unlink(path);
    fixture_free(f);
}

/* A caption on stdout, its account on stderr: stages, layers, keys and values, for each picture. */
static void verbose_tells_what_was_done(void **state)
{
    (void)state;
    command_result r = RUN("caption", "-q", "-v", "-n", "4", "-m", model, cat, dog);
    assert_done(&r);
    assert_int_equal(count_lines(r.out), 2);
    assert_int_equal(count_lines(r.err), 2 * (1 + 5 + 9 + 1));
    assert_contains(r.err, cat);
    assert_contains(r.err, dog);
    assert_contains(r.err, ": 36 vision and 3 text tokens, 4 tokens written\n");
    assert_contains(r.err, "\n      0  ####################      36      39          3 ");
    assert_contains(r.err, "\n      7  ####................       5       8          3 ");
    /* 2 * (39 + 3) + 32 + 25 + 16 + 9 + 8 + 8 + 6 * 3 entries of 2 * 2 * 8 floats, of 8 * 42 */
    assert_contains(r.err, "keys and values: 25.0 KiB of a dense model's 42.0 KiB, 59.5 %\n");
    command_result_free(&r);
}

static void quantised_models_caption(void **state)
{
    (void)state;
    static const char *const types[] = {"f32", "f16", "q8_0", "q4_0", "q8", "q4"};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        const char *path = temp_path(".gguf");
        command_result r = RUN("quantize", "--type", types[i], "--group", "32", model, path);
        assert_done(&r);
        assert_string_equal(r.err, "");
        assert_contains(r.out, "decoder");
        command_result_free(&r);
        r = RUN("caption", "-q", "-m", path, cat);
        assert_done(&r);
        command_result_free(&r);
        r = RUN("info", path);
        assert_done(&r);
        assert_contains(r.out, types[i][0] == 'q' && !types[i][2] ? "panels" : "F32");
        command_result_free(&r);
        unlink(path);
    }
}

/* The row of a class in what quantize prints: its bytes after. */
static double class_bytes(const command_result *r, const char *class)
{
    char name[32];
    unsigned n;
    double before, after;
    const char *line = strstr(r->out, class);
    assert_non_null(line);
    assert_int_equal(sscanf(line, "%31s %u %lf %lf", name, &n, &before, &after), 4);
    return after;
}

/* A tower in float beside a decoder in int4, and the other way round. */
static void vision_of_another_type(void **state)
{
    (void)state;
    static const struct {
        const char *type, *vision;
    } cases[] = {{"q4", "f32"}, {"f32", "q8"}, {"q4_0", "f16"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *path = temp_path(".gguf"), *other = temp_path(".gguf");
        command_result mixed = RUN("quantize", "--type", cases[i].type, "--vision", cases[i].vision, model, path);
        command_result all = RUN("quantize", "--type", cases[i].type, model, other);
        command_result vision = RUN("quantize", "--type", cases[i].vision, model, other);
        assert_done(&mixed);
        assert_true(class_bytes(&mixed, "decoder") == class_bytes(&all, "decoder"));
        assert_true(class_bytes(&mixed, "embedding") == class_bytes(&all, "embedding"));
        assert_true(class_bytes(&mixed, "vision") == class_bytes(&vision, "vision"));
        assert_true(class_bytes(&mixed, "vision") != class_bytes(&all, "vision"));
        command_result caption = RUN("caption", "-q", "-m", path, cat);
        assert_done(&caption);
        command_result_free(&caption);
        command_result_free(&vision);
        command_result_free(&all);
        command_result_free(&mixed);
        unlink(path);
        unlink(other);
    }
}

/* Writing every weight as F32 changes no caption and no logit. */
static void f32_is_lossless(void **state)
{
    (void)state;
    const char *path = temp_path(".gguf");
    command_result r = RUN("quantize", "--type", "f32", model, path);
    assert_done(&r);
    command_result_free(&r);
    command_result a = RUN("caption", "-q", "--temp", "5", "-m", model, cat);
    command_result b = RUN("caption", "-q", "--temp", "5", "-m", path, cat);
    assert_string_equal(a.out, b.out);
    command_result_free(&a);
    command_result_free(&b);
    unlink(path);
}

static void quantize_keeps_its_input(void **state)
{
    (void)state;
    command_result r = RUN("quantize", "--type", "q8", model, model);
    assert_failed(&r, 2, "overwrite");
    command_result_free(&r);
    const char *panels = temp_path(".gguf"), *again = temp_path(".gguf");
    r = RUN("quantize", "--type", "q8", model, panels);
    assert_done(&r);
    command_result_free(&r);
    r = RUN("quantize", "--type", "q4", panels, again);
    assert_failed(&r, 1, "panels");
    assert_int_equal(access(again, F_OK), -1); /* nothing half-written */
    command_result_free(&r);
    unlink(panels);
}

static void tokens_go_there_and_back(void **state)
{
    (void)state;
    command_result r = RUN("tokenize", "-m", model, "a", "red", "circle");
    assert_done(&r);
    r.out[strlen(r.out) - 1] = 0;
    command_result back = RUN("tokenize", "-m", model, "--decode", r.out);
    assert_string_equal(back.out, "a red circle\n");
    command_result_free(&back);
    back = RUN("tokenize", "-m", model, "--decode", "1 2 zwei");
    assert_failed(&back, 1, "\"zwei\"");
    command_result_free(&back);
    back = RUN("tokenize", "-m", model, "--json", "a red circle");
    cJSON *json = parse(back.out);
    assert_int_equal(array_size(json, "ids"), array_size(json, "pieces"));
    cJSON_Delete(json);
    command_result_free(&back);
    command_result_free(&r);
}

/* ---- eval ---------------------------------------------------------------------------------- */

static void add_line(FILE *f, const char *file, const char *first, const char *second, const char *split)
{
    cJSON *line = cJSON_CreateObject(), *captions = cJSON_AddArrayToObject(line, "captions");
    cJSON_AddStringToObject(line, "file", file);
    cJSON_AddItemToArray(captions, cJSON_CreateString(first));
    if (second) cJSON_AddItemToArray(captions, cJSON_CreateString(second));
    if (split) cJSON_AddStringToObject(line, "split", split);
    char *text = cJSON_PrintUnformatted(line);
    fprintf(f, "%s\n\n", text);
    cJSON_free(text);
    cJSON_Delete(line);
}

/* Three pictures, four captions. */
static void write_list(const char *path, const char *cat_says, const char *dog_says)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    add_line(f, cat, "a cat", cat_says, NULL);
    add_line(f, dog, dog_says, NULL, "val");
    add_line(f, cat, "no such words", NULL, NULL);
    assert_int_equal(fclose(f), 0);
}

/* In few tokens: what a model of random weights says takes many more as a reference. */
static char *caption_of(const char *path)
{
    command_result r = RUN("caption", "-q", "-m", model, "--json", "-n", "8", path);
    cJSON *json = parse(r.out);
    char *text = strdup(cJSON_GetObjectItem(json, "caption")->valuestring);
    cJSON_Delete(json);
    command_result_free(&r);
    return text;
}

static void eval_scores_captions(void **state)
{
    (void)state;
    char *cat_says = caption_of(cat), *dog_says = caption_of(dog);
    const char *list = temp_path(".jsonl"), *captions = temp_path(".jsonl");
    write_list(list, cat_says, dog_says);
    command_result r = RUN("eval", "-m", model, "--data", list, "-n", "8", "--json", "--captions", captions);
    assert_done(&r);
    cJSON *json = parse(r.out);
    assert_true(number(json, "images") == 3 && number(json, "captions") == 4);
    assert_true(number(json, "nll_token") > 0 && number(json, "nll_word") > number(json, "nll_token"));
    if (!(number(json, "exact") > 0.66 && number(json, "exact") < 0.67)) fail_msg("exact match: %s", r.out);
    assert_true(number(json, "mac_ratio") > 0 && number(json, "mac_ratio") < 1);
    assert_true(number(json, "kv_bytes") < number(json, "kv_bytes_dense"));
    cJSON_Delete(json);
    command_result_free(&r);
    r = RUN("eval", "-m", model, "--data", list, "-n", "8", "--split", "val");
    assert_done(&r);
    assert_contains(r.out, "exact match    100.00 %");
    command_result_free(&r);
    r = RUN("eval", "-m", model, "--data", list, "--shuffle", "--nll", "--limit", "2");
    assert_done(&r);
    assert_contains(r.out, "shuffled");
    command_result_free(&r);
    unlink(list);
    unlink(captions);
    free(cat_says);
    free(dog_says);
}

static uint32_t u32_at(const uint8_t *p) { return p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24; }

static void dumped_logits_have_their_form(void **state)
{
    (void)state;
    const char *list = temp_path(".jsonl"), *dump = temp_path(".bin");
    write_list(list, "a cat", "a dog");
    command_result r = RUN("eval", "-m", model, "--data", list, "--nll", "--dump-logits", dump);
    assert_done(&r);
    command_result_free(&r);
    FILE *f = fopen(dump, "rb");
    assert_non_null(f);
    uint8_t head[16], word[4];
    unsigned records = 0;
    while (fread(head, 1, sizeof head, f) == sizeof head) {
        const uint32_t n = u32_at(head + 4), n_vocab = u32_at(head + 8), n_layers = u32_at(head + 12);
        assert_int_equal(u32_at(head), 0x53514C47);
        for (uint32_t l = 0; l < n_layers; l++) {
            assert_int_equal(fread(word, 1, 4, f), 4);
            const uint32_t kept = u32_at(word);
            int64_t last = -1;
            assert_in_range(kept, 1, n);
            for (uint32_t i = 0; i < kept; i++) {
                assert_int_equal(fread(word, 1, 4, f), 4);
                assert_true(u32_at(word) > last && u32_at(word) < n);
                last = u32_at(word);
            }
        }
        assert_int_equal(fseek(f, (long)n * n_vocab * 4, SEEK_CUR), 0);
        records++;
    }
    assert_int_equal(records, 3);
    assert_true(feof(f));
    fclose(f);
    unlink(dump);
    unlink(list);
}

static void bad_lists_are_told_by_line(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"", "no pictures"},
        {"\n\n", "no pictures"},
        {"{\"file\": \"x.jpg\", \"captions\": [\"a\"]}\nnonsense\n", ":2: not a JSON object"},
        {"[1]", ":1: not a JSON object"},
        {"{\"captions\": [\"a\"]}", ":1: no string \"file\""},
        {"{\"file\": 7, \"captions\": [\"a\"]}", ":1: no string \"file\""},
        {"{\"file\": \"x.jpg\"}", ":1: no array \"captions\""},
        {"{\"file\": \"x.jpg\", \"captions\": \"a\"}", ":1: no array"},
        {"\n{\"file\": \"x.jpg\", \"captions\": []}", ":2: \"captions\" is empty"},
        {"{\"file\": \"x.jpg\", \"captions\": [\"a\", null]}", ":1: \"captions\" holds"},
        {"{\"file\": \"x.jpg\", \"captions\": [\"a\"]}", "x.jpg"}, /* a good list, a missing picture */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *list = temp_path(".jsonl");
        write_text(list, cases[i].text);
        command_result r = RUN("eval", "-m", model, "--data", list);
        assert_failed(&r, 1, cases[i].says);
        command_result_free(&r);
        unlink(list);
    }
    command_result r = RUN("eval", "-m", model, "--data", "/nowhere");
    assert_failed(&r, 1, "/nowhere");
    command_result_free(&r);
}

static off_t bytes_of(const char *path)
{
    struct stat st;
    return stat(path, &st) ? -1 : st.st_size;
}

/* What is read, or mapped, is never opened for writing. */
static void outputs_spare_inputs(void **state)
{
    (void)state;
    char own[1024], list[1024], text[1200];
    snprintf(own, sizeof own, "%s", temp_path(".gguf"));
    snprintf(list, sizeof list, "%s", temp_path(".jsonl"));
    size_t size;
    uint8_t *const bytes = read_test_file("golden/tiny-pmod.gguf", &size);
    FILE *f = fopen(own, "wb");
    assert_true(f && fwrite(bytes, 1, size, f) == size && !fclose(f));
    snprintf(text, sizeof text, "{\"file\": \"%s\", \"captions\": [\"a\"]}\n", strrchr(cat, '/') + 1);
    write_text(list, text);
    const off_t cat_bytes = bytes_of(cat), list_bytes = bytes_of(list);
    const struct {
        const char *args[9], *says;
    } cases[] = {
        {{"caption", "-m", own, "--trace", own, cat}, "the model"},
        {{"caption", "-m", own, "--trace", cat, dog, cat}, "one of the pictures"},
        {{"arank", "-m", own, "--plot", own, cat}, "the model"},
        {{"arank", "-m", own, "--plot", cat, cat}, "one of the pictures"},
        {{"arank", "-m", own, "--plot", list, "--prompts", list, cat}, "the list of prompts"},
        {{"eval", "-m", own, "--data", list, "--captions", list}, "the list"},
        {{"eval", "-m", own, "--data", list, "--captions", cat}, "one of the pictures"},
        {{"eval", "-m", own, "--data", list, "--dump-logits", own}, "the model"},
    };
    for (size_t i = 0; i < SQ_COUNT(cases); i++) {
        if (!strcmp(cases[i].args[0], "arank") && !rank_available()) continue;
        command_result r = run_squint(NULL, cases[i].args);
        assert_failed(&r, 2, "would be overwritten");
        assert_contains(r.err, cases[i].says);
        command_result_free(&r);
        assert_true(bytes_of(own) == (off_t)size && bytes_of(cat) == cat_bytes && bytes_of(list) == list_bytes);
    }
    free(bytes);
    unlink(own);
    unlink(list);
}

/* ---- bench --------------------------------------------------------------------------------- */

static void bench_prints_ratios(void **state)
{
    (void)state;
    command_result r = RUN("bench", "--synthetic", "tiny", "--layers", "3", "--vision", "60", "--text", "8", "--reps",
                           "2", "--threads", "1", "--json");
    assert_done(&r);
    cJSON *json = parse(r.out), *result;
    assert_int_equal(array_size(json, "results"), 2);
    cJSON_ArrayForEach(result, cJSON_GetObjectItem(json, "results"))
    {
        /* layers 8, 20 and 31 keep 50, 16 and 9 of 60 tokens */
        assert_true(number(result, "mac_ratio") > 0.45 && number(result, "mac_ratio") < 0.5);
        assert_true(number(result, "time_ratio") > 0);
    }
    assert_string_equal(cJSON_GetObjectItem(json, "device")->valuestring, "cpu");
    assert_true(number(json, "threads") == 1);
    cJSON_Delete(json);
    command_result_free(&r);
}

/* 3 layers over 60 + 8 tokens, 32-channel heads, f16: a token has 2 * 8 * 32 * 2 bytes a layer. */
static void bench_runs_every_mode(void **state)
{
    (void)state;
    static const struct {
        const char *mode;
        int kept; /* of 68 by each layer; 0: data decides */
    } cases[] = {{"gamma-released", 0}, {"gamma-released-mgm", 0}, {"gamma-train", 38},
                 {"gamma-paper", 38},   {"threshold", 0},          {"dense", 68}};
    command_result r = RUN("bench", "--synthetic", "tiny", "--layers", "3", "--vision", "60", "--text", "8", "--reps",
                           "1", "--threads", "1", "--mode", "all", "--type", "q8", "--json");
    assert_done(&r);
    cJSON *json = parse(r.out);
    const cJSON *const results = cJSON_GetObjectItem(json, "results");
    assert_int_equal(cJSON_GetArraySize(results), 7);
    assert_int_equal(number(cJSON_GetArrayItem(results, 0), "kv_bytes"), 1024 * (3 * 8 + 50 + 16 + 9));
    for (int i = 0; i < 6; i++) {
        const cJSON *const result = cJSON_GetArrayItem(results, i + 1);
        const double kv = number(result, "kv_bytes"), share = number(result, "mac_ratio");
        assert_string_equal(cJSON_GetObjectItem(result, "mode")->valuestring, cases[i].mode);
        assert_int_equal(number(result, "kv_bytes_dense"), 1024 * 3 * 68);
        if (cases[i].kept)
            assert_int_equal(kv, 1024 * 3 * cases[i].kept);
        else
            assert_true(share > 0.25 && share < 0.75); /* the middle of random scores */
    }
    cJSON_Delete(json);
    command_result_free(&r);
}

static void bench_foresees(void **state)
{
    (void)state;
    command_result r = RUN("bench", "--synthetic", "tiny", "--layers", "2", "--vision", "60", "--text", "8", "--reps",
                           "1", "--type", "q4", "--mode", "gamma-paper", "--budget", "1000s", "--json");
    assert_done(&r);
    cJSON *json = parse(r.out);
    assert_true(number(json, "keep") == 1 && number(json, "budget_ms") == 1e6);
    assert_true(number(json, "predicted_ms") > 0 && number(json, "ms") > 0 && number(json, "measuring_ms") > 0);
    cJSON_Delete(json);
    command_result_free(&r);
    r = RUN("bench", "--synthetic", "tiny", "--mode", "threshold", "--type", "q4", "--budget", "1s", "--json");
    assert_failed(&r, 2, "budget: in mode threshold a threshold decides");
    command_result_free(&r);
}

static void bench_times_stages(void **state)
{
    (void)state;
    command_result r = RUN("bench", "-m", model, "--reps", "2", "--json", cat);
    assert_done(&r);
    cJSON *json = parse(r.out);
    assert_true(number(json, "tower") > 0 && number(json, "prefill") > 0);
    cJSON_Delete(json);
    command_result_free(&r);
}

/* ---- The default model on the samples ------------------------------------------------------ */

static void same_text_everywhere(void **state)
{
    (void)state;
    static const char *const names[] = {"../samples/cat.jpg", "../samples/coffee.jpg", "../samples/astronaut.jpg"};
    char shipped[1024];
    snprintf(shipped, sizeof shipped, "%s", test_path("../models/squint-caption-pmod-q4.gguf"));
    if (access(shipped, R_OK)) {
        print_message("no default model yet: skipped\n");
        skip();
    }
    char sample[3][1024];
    for (int i = 0; i < 3; i++)
        snprintf(sample[i], sizeof sample[i], "%s", test_path(names[i]));
    command_result first = {0};
    for (int run = 0; run < 4; run++) {
        command_result r = RUN("caption", "-q", "-m", shipped, "--isa", run & 1 ? "avx2" : "scalar", "--threads",
                               run & 2 ? "2" : "1", sample[0], sample[1], sample[2]);
        if (r.status == 2 && strstr(r.err, "avx2")) { /* not on this CPU */
            command_result_free(&r);
            continue;
        }
        assert_done(&r);
        assert_int_equal(count_lines(r.out), 3);
        if (!run) {
            first = r;
            continue;
        }
        assert_string_equal(r.out, first.out);
        command_result_free(&r);
    }
    command_result_free(&first);
}

static int set_up(void **state)
{
    (void)state;
    snprintf(model, sizeof model, "%s", test_path("golden/tiny-pmod.gguf"));
    snprintf(cat, sizeof cat, "%s", temp_path(".ppm"));
    snprintf(dog, sizeof dog, "%s", temp_path(".ppm"));
    write_picture(cat, 64, 48, 1);
    write_picture(dog, 40, 90, 2);
    unsetenv("SQUINT_MODEL");
    unsetenv("SQUINT_ISA");
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    unlink(cat);
    unlink(dog);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(help_goes_to_stdout),
        cmocka_unit_test(misuse_is_told_in_a_line),
        cmocka_unit_test(unknown_devices_are_misuse),
        cmocka_unit_test(a_device_may_be_missing),
        cmocka_unit_test(the_device_is_told),
        cmocka_unit_test(a_missing_default_model_is_told),
        cmocka_unit_test(a_caption_alone_on_stdout),
        cmocka_unit_test(several_images_go_on_after_a_failure),
        cmocka_unit_test(standard_input_is_an_image),
        cmocka_unit_test(json_is_a_line_an_image),
        cmocka_unit_test(a_seed_repeats_a_sample),
        cmocka_unit_test(ctrl_c_ends_with_130),
        cmocka_unit_test(a_full_disk_is_told),
        cmocka_unit_test(info_tells_what_is_there),
        cmocka_unit_test(info_of_gates),
        cmocka_unit_test(layers_keep_what_is_asked),
        cmocka_unit_test(budgets_are_told),
        cmocka_unit_test(modes_are_told),
        cmocka_unit_test(a_template_can_be_asked_for),
        cmocka_unit_test(info_and_caption_agree),
        cmocka_unit_test(work_of_gates),
        cmocka_unit_test(verbose_tells_what_was_done),
        cmocka_unit_test(quantised_models_caption),
        cmocka_unit_test(f32_is_lossless),
        cmocka_unit_test(vision_of_another_type),
        cmocka_unit_test(quantize_keeps_its_input),
        cmocka_unit_test(tokens_go_there_and_back),
        cmocka_unit_test(eval_scores_captions),
        cmocka_unit_test(dumped_logits_have_their_form),
        cmocka_unit_test(bad_lists_are_told_by_line),
        cmocka_unit_test(outputs_spare_inputs),
        cmocka_unit_test(bench_prints_ratios),
        cmocka_unit_test(bench_runs_every_mode),
        cmocka_unit_test(bench_foresees),
        cmocka_unit_test(bench_times_stages),
        cmocka_unit_test(same_text_everywhere),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
