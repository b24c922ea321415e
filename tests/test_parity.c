/*
 * squint parity: words for devices, how pairs of them are judged, and what is said of devices that do the same and of
 * such that do not: whole numbers next to floats.
 * SPDX-License-Identifier: MIT
 */
#include "config.h"
#include "simd/simd.h"
#include "tests/command.h"
#include "tests/fixture.h"
#include "tests/support.h"
#include "tools/squint/parity.h"
#include "tools/squint/spool.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char floats[1024], whole[1024], cat[1024], wide[1024], drawn[1024], all_tables[256];

static void assert_contains(const char *text, const char *part)
{
    if (!strstr(text, part)) fail_msg("\"%s\" is not in \"%s\"", part, text);
}

/* ---- devices ---- */

static void assert_device(const char *text, const char *isa, const char *word, sq_precision precision)
{
    named_device *d;
    char why[256];
    assert_int_equal(devices_read(&d, text, why), 1);
    assert_string_equal(d->name, text);
    if (isa)
        assert_string_equal(d->isa, isa);
    else
        assert_null(d->isa);
    assert_string_equal(d->word, word);
    assert_int_equal(d->precision, precision);
    assert_int_equal(d->cuda, !strncmp(word, "cuda", 4));
    free(d);
}

static void words_are_read(void **state)
{
    (void)state;
    assert_device("cpu", NULL, "cpu", SQ_PRECISION_FILE);
    assert_device("cpu:f32", NULL, "cpu:f32", SQ_PRECISION_F32);
    assert_device("cpu:avx2:f32", "avx2", "cpu:f32", SQ_PRECISION_F32);
    assert_device("cpu:avx512", "avx512", "cpu", SQ_PRECISION_FILE);
    assert_device("cpu:avx512vnni", "avx512", "cpu", SQ_PRECISION_FILE);
    assert_device("cpu:avx512vnni:f32", "avx512", "cpu:f32", SQ_PRECISION_F32);
    assert_device("cpu:i8mm", "i8mm", "cpu", SQ_PRECISION_FILE);
    assert_device("cuda", NULL, "cuda", SQ_PRECISION_FILE);
    assert_device("cuda:f32", NULL, "cuda:f32", SQ_PRECISION_F32);
    assert_device("cuda:f16", NULL, "cuda:f16", SQ_PRECISION_F16);
    named_device *d;
    char why[256];
    assert_int_equal(devices_read(&d, "cpu:scalar,cuda,cpu", why), 3);
    assert_string_equal(d[0].name, "cpu:scalar");
    assert_string_equal(d[1].name, "cuda");
    assert_string_equal(d[2].name, "cpu");
    free(d);
}

static void other_words_are_refused(void **state)
{
    (void)state;
    static const char *const lists[] = {"",           "gpu",         "cpu,",    ",cpu",         "cpu,,cuda",
                                        "cpu:",       "cpu:mmx",     "cpu:f16", "cpu:f32:avx2", "cpu:avx2:avx512",
                                        "cpu:avx2:",  "cpu:avx2f32", "cpuavx2", "cpu :avx2",    "cuda:avx2",
                                        "cuda:f32:1", "cuda:",       "CPU",     "cpu:avx",      "cpu:auto",
                                        "cpu, cuda",  "cpu:f32:f32", "avx2",    "cpu:avx2,cpux"};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
        named_device *d;
        char why[256] = "";
        if (devices_read(&d, lists[i], why)) fail_msg("\"%s\" was read", lists[i]);
        assert_null(d);
        assert_contains(why, "is no device: cpu[:ISA][:f32] or cuda[:f32|:f16]");
    }
    named_device *d;
    char why[256], *const text = malloc(5001);
    memset(text, 'c', 5000);
    text[5000] = 0;
    assert_int_equal(devices_read(&d, text, why), 0);
    free(text);
}

static void what_is_not_here_is_told(void **state)
{
    (void)state;
    static const char *const isas[] = {"scalar", "avx2", "avxvnni", "avx512", "neon", "dotprod", "i8mm"};
    size_t n_here = 0, n_missing = 0;
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
        named_device d = {.isa = isas[i], .word = "cpu"};
        squint_msg msg = {""};
        bool here = false;
        for (const char *const *name = sq_kernels_names(); *name; name++)
            here = here || !strcmp(*name, isas[i]);
        snprintf(d.name, sizeof d.name, "cpu:%s", isas[i]);
        assert_int_equal(device_runs(&d, &msg), here ? SQUINT_OK : SQUINT_ERR_UNSUPPORTED);
        n_here += here;
        n_missing += !here;
        if (here) continue;
        char said[64];
        snprintf(said, sizeof said, "cpu:%s: this CPU has no %s; it runs scalar", isas[i], isas[i]);
        assert_contains(msg.text, said);
        check_refused(2, "Name two", RUN("parity", "-m", floats, "--devices", d.name, cat));
        char list[80];
        snprintf(list, sizeof list, "cpu,%s", d.name);
        check_refused(1, said, RUN("parity", "-m", floats, "--devices", list, cat));
    }
    assert_true(n_here >= 1 && n_missing >= 3); /* x86 or ARM */
    command_result r = RUN("parity", "-m", floats, "--devices", "cpu:scalar,cuda:f32", cat);
#if SQ_HAVE_CUDA
    if (r.status)
        check_refused(1, "device cuda: ", r);
    else
        command_result_free(&r);
#else
    check_refused(1, "cuda is not in this build of squint; configure it with -Dcuda=enabled", r);
#endif
}

/* ---- rules ---- */

static parity_rule rule(const char *reference, const char *device, bool panels, bool weights)
{
    named_device *a, *b;
    char why[256];
    assert_int_equal(devices_read(&a, reference, why), 1);
    assert_int_equal(devices_read(&b, device, why), 1);
    const parity_numbers x = parity_numbers_of(a, panels, weights), y = parity_numbers_of(b, panels, weights);
    const parity_rule one = parity_rule_of(&x, &y);
    assert_int_equal(one, parity_rule_of(&y, &x));
    free(a);
    free(b);
    return one;
}

static void pairs_are_judged(void **state)
{
    (void)state;
    static const struct {
        const char *a, *b;
        parity_rule panels, mixed, floats; /* files of such matrices */
    } cases[] = {
        {"cpu:scalar", "cpu:avx2", PARITY_BITS, PARITY_BITS, PARITY_BITS},
        {"cpu:f32", "cpu:avx2:f32", PARITY_BITS, PARITY_BITS, PARITY_BITS},
        {"cpu", "cpu:f32", PARITY_TOLD, PARITY_TOLD, PARITY_BITS},
        {"cpu", "cuda", PARITY_BITS, PARITY_TOLD, PARITY_NEAR},
        {"cpu", "cuda:f32", PARITY_TOLD, PARITY_TOLD, PARITY_NEAR},
        {"cpu:f32", "cuda:f32", PARITY_NEAR, PARITY_NEAR, PARITY_NEAR},
        {"cpu:f32", "cuda", PARITY_TOLD, PARITY_TOLD, PARITY_NEAR},
        {"cpu", "cuda:f16", PARITY_TOLD, PARITY_TOLD, PARITY_TOLD},
        {"cpu:f32", "cuda:f16", PARITY_TOLD, PARITY_TOLD, PARITY_TOLD},
        {"cuda", "cuda", PARITY_BITS, PARITY_BITS, PARITY_BITS},
        {"cuda:f32", "cuda:f16", PARITY_TOLD, PARITY_TOLD, PARITY_TOLD},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (rule(cases[i].a, cases[i].b, true, false) != cases[i].panels ||
            rule(cases[i].a, cases[i].b, true, true) != cases[i].mixed ||
            rule(cases[i].a, cases[i].b, false, true) != cases[i].floats)
            fail_msg("%s next to %s", cases[i].a, cases[i].b);
    }
}

static void assert_kinds(const char *path, bool panels, bool weights)
{
    squint_model *m;
    squint_msg msg = {""};
    if (squint_model_open(&m, path, NULL, &msg)) fail_msg("%s", msg.text);
    if (m->any_panels != panels || m->any_floats != weights) fail_msg("%s: %d %d", path, m->any_panels, m->any_floats);
    squint_model_close(&m);
}

/* Convolutions and LLaVA-HR's gates stay floats in files of whole numbers, and have one order everywhere. */
static void kinds_of_products_are_known(void **state)
{
    (void)state;
    static const char *const names[] = {"pmod15", "gamma-hr", "gamma-mgm"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char name[64], path[1024], out[1024];
        snprintf(name, sizeof name, "golden/checkpoints/%s.gguf", names[i]);
        snprintf(path, sizeof path, "%s", test_path(name));
        snprintf(out, sizeof out, "%s", temp_path(".gguf"));
        assert_kinds(path, false, true);
        static const struct {
            const char *type, *vision;
            bool panels, floats;
        } kinds[] = {{"q8", "q8", true, false}, {"q4", "f32", true, true}};
        for (size_t j = 0; j < 2; j++) {
            command_result r = RUN("quantize", "--type", kinds[j].type, "--vision", kinds[j].vision, path, out);
            if (r.status) fail_msg("%s", r.err);
            command_result_free(&r);
            assert_kinds(out, kinds[j].panels, kinds[j].floats);
        }
        unlink(out);
    }
}

static void the_same_bits_have_no_budget(void **state)
{
    (void)state;
    const stage_budgets given = {.tolerance = 0.5f, .drift = 0.25f, .ties = 0.125f};
    const stage_budgets bits = parity_budgets(PARITY_BITS, &given), near = parity_budgets(PARITY_NEAR, &given);
    assert_true(bits.tolerance == 0 && bits.drift == 0 && bits.ties < 0);
    assert_true(near.tolerance == 0.5f && near.drift == 0.25f && near.ties == 0.125f);
    /* Any difference is past them, and so is another set where scores are equal. */
    const float want[] = {1, 0}, got[] = {1, 1e-38f};
    const int32_t theirs[] = {0};
    const uint32_t ours[] = {1};
    const stage_contest contest = {.n = 2, .score = (const double[]){1, 1}, .threshold = (double)NAN};
    const sq_gguf_tensor table = {.n_dims = 1, .ne = {2, 1, 1, 1}, .data = (const uint8_t *)want},
                         set = {
                             .n_dims = 1, .ne = {1, 1, 1, 1}, .type = SQ_TENSOR_I32, .data = (const uint8_t *)theirs};
    for (stage_kind kind = STAGE_EXACT; kind <= STAGE_LOGITS; kind++) {
        stage s = {.tensor = &table, .kind = kind}, same = s;
        stage_compare_floats(&s, got, 1, 2, &bits);
        assert_int_equal(s.state, STAGE_PAST);
        stage_compare_floats(&same, want, 1, 2, &bits);
        assert_int_equal(same.state, STAGE_WITHIN);
    }
    stage s = {.tensor = &set, .kind = STAGE_SET}, near_set = s;
    stage_compare_sets(&s, ours, 1, &contest, &bits);
    assert_int_equal(s.state, STAGE_PAST);
    stage_compare_sets(&near_set, ours, 1, &contest, &near);
    assert_int_equal(near_set.state, STAGE_WITHIN);
}

/* ---- texts ---- */

static void the_best_and_its_lead(void **state)
{
    (void)state;
    static const struct {
        float logits[4];
        uint32_t id;
        double lead;
    } cases[] = {
        {{4, 1, 2, 3}, 0, 1},     {{1, 4, 2, 3.5f}, 1, 0.5}, {{1, 2, 3, 4}, 3, 1},
        {{4, 3, 2, 1}, 0, 1},     {{1, 4, 4, 0}, 1, 0},      {{4, 4, 4, 4}, 0, 0},
        {{-3, -1, -2, -9}, 1, 1}, {{3, 2, 4, 1}, 2, 1},      {{-5, -7, -9, -8}, 0, 2},
    };
    parity_text t = {.n = 0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        parity_say(&t, cases[i].logits, 4);
        assert_int_equal(t.n, i + 1);
        if (t.id[i] != cases[i].id || t.lead[i] != cases[i].lead) fail_msg("case %zu: %u by %g", i, t.id[i], t.lead[i]);
    }
    parity_text_free(&t);
}

static void texts_part_at_a_place(void **state)
{
    (void)state;
    uint32_t a[] = {5, 6, 7}, b[] = {5, 6, 8}, c[] = {4, 6, 7};
    assert_int_equal(parity_text_same(&(parity_text){.id = a, .n = 3}, &(parity_text){.id = a, .n = 3}), 3);
    assert_int_equal(parity_text_same(&(parity_text){.id = a, .n = 3}, &(parity_text){.id = b, .n = 3}), 2);
    assert_int_equal(parity_text_same(&(parity_text){.id = a, .n = 3}, &(parity_text){.id = c, .n = 3}), 0);
    assert_int_equal(parity_text_same(&(parity_text){.id = a, .n = 3}, &(parity_text){.id = a, .n = 2}), 2);
    assert_int_equal(parity_text_same(&(parity_text){.id = a, .n = 1}, &(parity_text){.id = a, .n = 2}), 1);
}

/* ---- sums ---- */

static stage floats_stage(const char *name, stage_state state, double size)
{
    stage s = {.kind = STAGE_FLOATS, .state = state, .largest = size, .relative = 2 * size, .worst = 3 * size};
    s.cosine = 1 - size;
    snprintf(s.name, sizeof s.name, "%s", name);
    return s;
}

static void the_worst_of_a_group_counts(void **state)
{
    (void)state;
    parity_sum sum = {0};
    const parity_worst *const w = &sum.groups[PARITY_LAYERS];
    const stage stages[] = {floats_stage("a", STAGE_WITHIN, 0), floats_stage("b", STAGE_WITHIN, 0.25),
                            floats_stage("c", STAGE_PAST, 0.5), floats_stage("d", STAGE_PAST, 0.125)};
    for (size_t i = 0; i < 4; i++)
        parity_add(&sum, PARITY_LAYERS, &stages[i], i);
    assert_int_equal(w->n, 4);
    assert_int_equal(w->n_same, 1);
    assert_true(w->largest == 0.5 && w->relative == 1 && w->row == 1.5 && w->cosine == 0.5);
    assert_string_equal(w->at.name, "c");
    assert_int_equal(w->picture, 2);
    assert_string_equal(sum.first.name, "c");
    assert_int_equal(sum.first_picture, 2);
    assert_int_equal(sum.n_stages, 4);
    stage nan = floats_stage("e", STAGE_PAST, 0.0625);
    nan.largest = nan.relative = nan.worst = nan.cosine = (double)NAN;
    parity_add(&sum, PARITY_LAYERS, &nan, 4);
    parity_add(&sum, PARITY_LAYERS, &stages[2], 5);
    assert_true(isnan(w->largest) && isnan(w->relative) && isnan(w->row));
    assert_string_equal(w->at.name, "e");
    assert_int_equal(sum.groups[PARITY_TOWER].n, 0);
    assert_string_equal(sum.first.name, "c");
}

static void sets_are_counted(void **state)
{
    (void)state;
    parity_sum sum = {0};
    const parity_worst *const w = &sum.groups[PARITY_KEPT];
    stage s = {.name = "x", .kind = STAGE_SET, .state = STAGE_WITHIN, .n_both = 7, .n_either = 7};
    parity_add(&sum, PARITY_KEPT, &s, 0);
    s = (stage){.name = "y", .kind = STAGE_SET, .state = STAGE_OPEN, .n_both = 5, .n_either = 9, .n_others = 4};
    s.n_ties = 1;
    s.farthest = 0.5;
    parity_add(&sum, PARITY_KEPT, &s, 1);
    s = (stage){.name = "z", .kind = STAGE_SET, .state = STAGE_WITHIN, .n_both = 5, .n_either = 7, .n_others = 2};
    s.n_ties = 2;
    s.farthest = 0.25;
    parity_add(&sum, PARITY_KEPT, &s, 2);
    s = (stage){.name = "w", .kind = STAGE_SET, .state = STAGE_OPEN, .n_others = 4};
    parity_add(&sum, PARITY_KEPT, &s, 3);
    assert_int_equal(w->n, 4);
    assert_int_equal(w->n_same, 1);
    assert_int_equal(w->n_both, 17);
    assert_int_equal(w->n_either, 23);
    assert_int_equal(w->n_others, 10);
    assert_int_equal(w->n_ties, 3);
    assert_true(w->farthest == 0.5);
    assert_string_equal(w->at.name, "y");
    assert_int_equal(sum.first.state, STAGE_UNSEEN);
}

/* A stage of another shape, or that a device lacks, has no difference, and is not the same. */
static void what_was_not_compared_is_not_the_same(void **state)
{
    (void)state;
    parity_sum sum = {0};
    stage s = {.name = "x", .kind = STAGE_FLOATS, .cosine = (double)NAN};
    stage_refuse(&s, "missing");
    parity_add(&sum, PARITY_TOWER, &s, 0);
    assert_int_equal(sum.groups[PARITY_TOWER].n_same, 0);
    assert_string_equal(sum.first.why, "missing");
}

/* ---- the temporary file ---- */

static void tables_come_back(void **state)
{
    (void)state;
    spool s;
    char got[8];
    assert_true(spool_open(&s));
    assert_int_equal(spool_put(&s, "abcd", 4), 0);
    assert_int_equal(spool_put(&s, "", 0), 4);
    assert_int_equal(spool_put(&s, "efghijkl", 8), 4);
    assert_int_equal(s.bytes, 12);
    assert_true(spool_get(&s, 4, got, 8));
    assert_memory_equal(got, "efghijkl", 8);
    assert_true(spool_get(&s, 2, got, 3));
    assert_memory_equal(got, "cde", 3);
    spool_clear(&s);
    assert_int_equal(spool_put(&s, "mn", 2), 0);
    assert_true(spool_get(&s, 0, got, 2));
    assert_memory_equal(got, "mn", 2);
    assert_false(s.failed);
    assert_false(spool_get(&s, 0, got, 3)); /* beyond its end */
    assert_true(s.failed);
    spool_close(&s);
}

static void a_file_that_cannot_be_is_told(void **state)
{
    (void)state;
    setenv("TMPDIR", "/nowhere", 1);
    check_refused(1, "temporary file: No such file or directory (TMPDIR names its folder)",
                  RUN("parity", "-m", floats, "--devices", "cpu,cpu:scalar", cat));
    unsetenv("TMPDIR");
}

static command_result run_limited(rlim_t bytes, const char *const *args)
{
    struct rlimit limit, small;
    getrlimit(RLIMIT_FSIZE, &limit);
    small = limit;
    small.rlim_cur = bytes;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    const command_result r = run_squint(NULL, args);
    setrlimit(RLIMIT_FSIZE, &limit);
    signal(SIGXFSZ, SIG_DFL);
    return r;
}

/* A picture leaves 237 kB of pmod15's stages behind. */
static void the_file_is_as_large_as_its_pictures(void **state)
{
    (void)state;
    enum { ONE = 250000 };
    const char *const together[] = {"parity", "-m", floats, "-d", "cpu,cpu:scalar", "-n", "2", cat, wide, NULL};
    const char *const each[] = {"parity",  "-m", floats, "-d", "cpu,cpu:scalar", "-n", "2", cat,
                                "--spool", "0",  wide,   NULL};
    check_refused(1, "temporary file: File too large", run_limited(10000, each));
    check_refused(1, "temporary file: File too large", run_limited(ONE, together));
    command_result r = run_limited(ONE, each);
    if (r.status) fail_msg("exit %d: %s", r.status, r.err);
    command_result_free(&r);
}

static void the_file_has_no_name(void **state)
{
    (void)state;
    char folder[1024];
    snprintf(folder, sizeof folder, "%s", temp_path(""));
    assert_int_equal(mkdir(folder, 0700), 0);
    setenv("TMPDIR", folder, 1);
    spool s;
    assert_true(spool_open(&s));
    unsetenv("TMPDIR");
    assert_int_equal(rmdir(folder), 0); /* while it is open */
    spool_put(&s, "ab", 2);
    assert_false(s.failed);
    spool_close(&s);
}

/* ---- the command ---- */

static void assert_columns(const char *text)
{
    for (const char *line = text, *end; (end = strchr(line, '\n')); line = end + 1)
        if (end - line > 100) fail_msg("%d columns: %.*s", (int)(end - line), (int)(end - line), line);
}

static void all_tables_do_the_same(void **state)
{
    (void)state;
    size_t n = 1;
    for (const char *c = all_tables; *c; c++)
        n += *c == ',';
    if (n < 2) skip();
    const char *const models[] = {floats, whole};
    for (size_t i = 0; i < 2; i++) {
        command_result r = RUN("parity", "-m", models[i], "-d", all_tables, "-n", "6", cat, wide);
        if (r.status) fail_msg("exit %d: %s%s", r.status, r.err, r.out);
        assert_string_equal(r.err, "");
        size_t same = 0;
        for (const char *at = r.out; (at = strstr(at, "72 stages: the same bits\n")); at++)
            same++;
        assert_int_equal(same, n - 1);
        assert_contains(r.out, " next to cpu:scalar, 2 pictures\n");
        assert_contains(r.out, "tower layers       6      6         0         0         0  1.0000000\n");
        assert_contains(r.out, "layers            24     24         0         0         0  1.0000000\n");
        assert_contains(r.out, "texts              2      2 12 tokens\n");
        assert_columns(r.out);
        command_result_free(&r);
    }
}

/* Line `n` from the end of JSON lines, 0 the last. */
static cJSON *line_from_end(const command_result *r, size_t n)
{
    const char *at = r->out + strlen(r->out);
    for (size_t newlines = 0; at > r->out; at--)
        if (at[-1] == '\n' && newlines++ == n + 1) break;
    cJSON *const json = cJSON_Parse(at);
    if (!json) fail_msg("not JSON: %s%s", at, r->err);
    return json;
}

static const char *text_of(const cJSON *json, const char *key)
{
    const cJSON *const item = cJSON_GetObjectItemCaseSensitive(json, key);
    return cJSON_IsString(item) ? item->valuestring : cJSON_IsNull(item) ? "null" : "absent";
}

static double number_of(const cJSON *json, const char *key)
{
    const cJSON *const item = cJSON_GetObjectItemCaseSensitive(json, key);
    if (!cJSON_IsNumber(item)) fail_msg("no number %s", key);
    return item->valuedouble;
}

static void every_stage_is_a_line(void **state)
{
    (void)state;
    command_result r = RUN("parity", "-m", whole, "-d", "cpu,cpu:f32", "-n", "5", "--json", cat, wide);
    assert_int_equal(r.status, 0);
    assert_string_equal(r.err, "");
    size_t n_stages = 0, n_texts = 0, n_lines = count_lines(r.out), n_sets = 0;
    for (size_t i = 1; i < n_lines; i++) {
        cJSON *const json = line_from_end(&r, i);
        const bool is_stage = cJSON_HasObjectItem(json, "stage");
        n_stages += is_stage;
        n_texts += cJSON_HasObjectItem(json, "tokens");
        n_sets += cJSON_HasObjectItem(json, "farthest");
        if (is_stage) assert_string_equal(text_of(json, "device"), "cpu:f32");
        assert_string_not_equal(text_of(json, "stage"), "pixels.1"); /* each picture begins anew */
        assert_true(!strcmp(text_of(json, "picture"), cat) || !strcmp(text_of(json, "picture"), wide));
        cJSON_Delete(json);
    }
    cJSON *const verdict = line_from_end(&r, 0);
    assert_string_equal(text_of(verdict, "device"), "cpu:f32");
    assert_string_equal(text_of(verdict, "reference"), "cpu");
    assert_contains(text_of(verdict, "runner"), "cpu:f32, ");
    assert_contains(text_of(verdict, "runner"), text_of(verdict, "reference_runner"));
    assert_string_equal(text_of(verdict, "judged"), "told");
    assert_string_equal(text_of(verdict, "first"), "null");
    assert_true(number_of(verdict, "stages") == (double)n_stages);
    assert_int_equal(n_stages, 72);
    assert_int_equal(n_sets, 8);
    assert_int_equal(n_texts, 4); /* of both devices */
    assert_int_equal(n_lines, 77);
    cJSON_Delete(verdict);
    command_result_free(&r);
}

static void kernels_are_those_asked_for(void **state)
{
    (void)state;
    command_result r = RUN("parity", "-m", floats, "-d", "cpu,cpu:scalar", "-n", "1", "--threads", "1", "--json", cat);
    cJSON *const verdict = line_from_end(&r, 0);
    size_t best = 0;
    while (sq_kernels_names()[best + 1])
        best++;
    char runner[64];
    snprintf(runner, sizeof runner, "%s, 1 thread", sq_kernels_names()[best]);
    assert_string_equal(text_of(verdict, "runner"), "scalar, 1 thread");
    assert_string_equal(text_of(verdict, "reference_runner"), runner);
    cJSON_Delete(verdict);
    command_result_free(&r);
    r = RUN("parity", "-m", floats, "-d", "cpu,cpu:scalar", "-n", "1", "--threads", "1", cat);
    char said[160];
    snprintf(said, sizeof said, "cpu:scalar next to cpu, 1 picture\nscalar, 1 thread next to %s\ngroup ", runner);
    assert_contains(r.out, said);
    command_result_free(&r);
}

/* Float weights are floats either way. */
static void a_file_of_floats_expands_to_itself(void **state)
{
    (void)state;
    command_result r = RUN("parity", "-m", floats, "-d", "cpu,cpu:f32,cpu:scalar:f32", "-n", "4", cat);
    assert_int_equal(r.status, 0);
    const char *const first = strstr(r.out, "36 stages: the same bits\n");
    assert_non_null(first);
    assert_non_null(strstr(first + 1, "36 stages: the same bits\n"));
    command_result_free(&r);
}

/* The verdict's first stage past its budget, "null" for none. */
static void assert_first(const char *first, int status, const char *const *options)
{
    const char *args[COMMAND_MAX_ARGS] = {"parity", "-m", whole, "-d", "cpu,cpu:f32", "--json", cat};
    for (size_t i = 0; options[i]; i++)
        args[7 + i] = options[i];
    command_result r = run_squint(NULL, args);
    cJSON *const verdict = line_from_end(&r, 0);
    if (strcmp(text_of(verdict, "first"), first) || r.status != status)
        fail_msg("exit %d, first %s, not %s", r.status, text_of(verdict, "first"), first);
    assert_string_equal(text_of(verdict, "judged"), "budgets");
    cJSON_Delete(verdict);
    command_result_free(&r);
}
#define OPTIONS(...) ((const char *const[]){__VA_ARGS__, NULL})

/* int8 rows of the tower are off by a hundredth, logits by a tenth; the sets of layer 11 differ by a hundredth of a
 * score. */
static void budgets_name_the_first(void **state)
{
    (void)state;
    assert_first("tower.0.blk.0", 1, OPTIONS("--tolerance", "1e-3"));
    assert_first("logits", 1, OPTIONS("--tolerance", "1e-3", "--drift", "10", "--mode", "dense"));
    assert_first("decode.logits", 1, OPTIONS("--tolerance", "0.25", "--drift", "10", "--mode", "dense"));
    assert_first("blk.11.kept", 1, OPTIONS("--tolerance", "10", "--drift", "10"));
    assert_first("null", 0, OPTIONS("--tolerance", "10", "--drift", "10", "--ties", "1"));
    command_result r = RUN("parity", "-m", whole, "-d", "cpu,cpu:f32", "--tolerance", "1e-3", cat);
    assert_int_equal(r.status, 1);
    assert_contains(r.out, "first past its budget: tower.0.blk.0: a row differs by ");
    assert_columns(r.out);
    command_result_free(&r);
    r = RUN("parity", "-m", whole, "-d", "cpu,cpu:f32,cpu", "--tolerance", "1e-3", cat, wide);
    assert_int_equal(r.status, 1);
    assert_contains(r.out, "first past its budget: tower.0.blk.0 of #1: a row differs by ");
    command_result_free(&r);
}

static void sets_that_differ_are_told(void **state)
{
    (void)state;
    command_result r = RUN("parity", "-m", whole, "-d", "cpu,cpu:f32", "--stages", cat);
    assert_int_equal(r.status, 0);
    assert_contains(r.out, "cpu:f32 next to cpu: ");
    assert_contains(r.out, "blk.10.kept           176 of 176    the same\n");
    assert_contains(r.out, "blk.11.kept           174 of 176    differ: -127 (0.0097) +138 (0.0097)\n");
    assert_contains(r.out,
                    "    2 in one alone, 0 of them by ties, the farthest 0.0097 from the cut; most in blk.11.kept");
    assert_contains(r.out, "stages: told; they are rounded otherwise: --tolerance judges them\n");
    assert_null(strstr(r.out, "budget"));
    assert_columns(r.out);
    command_result_free(&r);
    r = RUN("parity", "-m", whole, "-d", "cpu,cpu:f32", "--stages", "--ties", "1", "--tolerance", "1e9", "--drift", "1",
            cat);
    assert_int_equal(r.status, 0);
    assert_contains(r.out, "    2 in one alone, 2 of them by ties, ");
    assert_contains(r.out, "36 stages: within the budgets\n");
    command_result_free(&r);
    r = RUN("parity", "-m", whole, "-d", "cpu,cpu:f32", "--stages", "--ties", "1", "--tolerance", "1e-9", "--drift",
            "1", cat);
    assert_int_equal(r.status, 0);
    assert_contains(r.out, "\n  not judged: ties made blk.11.kept another set\n");
    command_result_free(&r);
    /* The next picture is judged again. */
    r = RUN("parity", "-m", whole, "-d", "cpu,cpu:f32", "--ties", "1", "--tolerance", "1e-9", "--drift", "1", cat,
            drawn);
    assert_int_equal(r.status, 1);
    assert_contains(r.out, "first past its budget: logits of #2: ");
    command_result_free(&r);
}

/* Rows of logits stay near one another, whatever a device would have said: 0.05 of their length, where those of other
 * tokens are 1 and more apart. */
static void check_forced(const char *lines)
{
    const char *const line = strstr(lines, "{\"stage\":\"decode.logits\"");
    assert_non_null(line);
    cJSON *const json = cJSON_ParseWithLength(line, strcspn(line, "\n"));
    assert_true(number_of(json, "worst_row") < 0.2);
    assert_true(number_of(json, "rows") == 47);
    cJSON_Delete(json);
}

/* Where a device says something else than the reference, it is what it says alone; and the other way round. */
static void the_first_other_token_is_found(void **state)
{
    (void)state;
    cJSON *text[2][2]; /* [turn][reference, device] */
    const char *const lists[] = {"cpu,cpu:f32", "cpu:f32,cpu"};
    for (size_t i = 0; i < 2; i++) {
        command_result r = RUN("parity", "-m", whole, "-d", lists[i], "-n", "48", "--json", wide);
        assert_int_equal(r.status, 0);
        text[i][1] = line_from_end(&r, 1);
        char *const second = strchr(r.out, '\n');
        *second = 0;
        text[i][0] = cJSON_Parse(r.out); /* the reference's comes first */
        check_forced(second + 1);
        assert_non_null(text[i][0]);
        command_result_free(&r);
    }
    const int at = (int)number_of(text[0][1], "first_other");
    assert_int_equal((int)number_of(text[1][1], "first_other"), at);
    assert_in_range(at, 0, 47);
    for (size_t i = 0; i < 2; i++) {
        const cJSON *const reference = cJSON_GetObjectItem(text[i][0], "tokens"),
                           *const device = cJSON_GetObjectItem(text[i][1], "tokens"),
                           *const alone = cJSON_GetObjectItem(text[!i][0], "tokens");
        for (int j = 0; j <= at; j++) {
            const int theirs = cJSON_GetArrayItem(reference, j)->valueint,
                      ours = cJSON_GetArrayItem(device, j)->valueint;
            assert_int_equal(theirs == ours, j < at);
            assert_int_equal(ours, cJSON_GetArrayItem(alone, j)->valueint);
        }
        assert_string_equal(text_of(text[i][1], "piece"), text_of(text[!i][1], "reference_piece"));
        assert_true(number_of(text[i][1], "lead") == number_of(text[!i][1], "reference_lead"));
        assert_true(number_of(text[i][1], "lead") >= 0);
    }
    char said[256];
    snprintf(said, sizeof said,
             "\n    #1 differs from token %d on: \"%s\", %.2g before the next, not \"%s\", %.2g before it\n", at,
             text_of(text[0][1], "piece"), number_of(text[0][1], "lead"), text_of(text[0][1], "reference_piece"),
             number_of(text[0][1], "reference_lead"));
    for (size_t i = 0; i < 4; i++)
        cJSON_Delete(text[i / 2][i % 2]);
    command_result r = RUN("parity", "-m", whole, "-d", "cpu,cpu:f32", "-n", "48", wide);
    assert_contains(r.out, said);
    assert_contains(r.out, "texts              1      0 48 tokens\n");
    assert_columns(r.out);
    command_result_free(&r);
}

/* In however many turns the pictures are run. */
static void turns_change_nothing(void **state)
{
    (void)state;
    command_result all = RUN("parity", "-m", whole, "-d", "cpu,cpu:f32,cpu", "-n", "4", cat, wide, cat),
                   each =
                       RUN("parity", "-m", whole, "-d", "cpu,cpu:f32,cpu", "-n", "4", "--spool", "0", cat, wide, cat);
    assert_int_equal(all.status, 0);
    assert_string_equal(all.out, each.out);
    assert_string_equal(all.err, each.err);
    assert_contains(all.out, "cpu:f32 next to cpu, 3 pictures\n");
    command_result_free(&all);
    command_result_free(&each);
    each = RUN("parity", "-m", whole, "-d", "cpu,cpu:f32", "-n", "1", "--spool", "0", "--json", cat, wide);
    const char *const between = strstr(each.out, "\"stage\"");
    assert_non_null(between);
    assert_non_null(strstr(between, "{\"device\":\"cpu\"")); /* the second picture's */
    command_result_free(&each);
}

/* 16 vision tokens are few; of pictures in tiles the number depends on the shape, and gates decide in decoding too. */
static void families_run(void **state)
{
    (void)state;
    static const char *const names[] = {"pmodnext", "gamma-hr", "gamma-mgm", "llava15"};
    static const char *const stages[] = {"weights ", "slow tower ", "mined ", "projected "};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char name[128], path[1024];
        snprintf(name, sizeof name, "golden/checkpoints/%s.gguf", names[i]);
        snprintf(path, sizeof path, "%s", test_path(name));
        command_result r = RUN("parity", "-m", path, "-d", "cpu:scalar,cpu", "-n", "3", cat, wide);
        if (r.status) fail_msg("%s: exit %d: %s%s", names[i], r.status, r.err, r.out);
        assert_contains(r.out, "stages: the same bits\n");
        assert_contains(r.out, stages[i]);
        command_result_free(&r);
    }
}

static void misuse_is_told(void **state)
{
    (void)state;
    static const struct {
        const char *args[8];
        int status;
        const char *said;
    } cases[] = {
        {{"parity", "-d", "cpu,cpu"}, 2, "parity: which image?"},
        {{"parity", cat}, 2, "parity: --devices says which"},
        {{"parity", "-d", "cpu", cat}, 2, "--devices: cpu next to what? Name two"},
        {{"parity", "-d", "cpu,tpu", cat}, 2, "--devices: \"tpu\" is no device: cpu[:ISA][:f32] or cuda[:f32|:f16]"},
        {{"parity", "-d", "cpu,cpu", "-n", "0", cat}, 2, "--max-tokens: \"0\" is not a number from 1"},
        {{"parity", "-d", "cpu,cpu", "-m", "/nowhere.gguf", cat}, 1, "cpu: /nowhere.gguf"},
        {{"parity", "-d", "cpu,cpu", "-m", floats, "/nowhere.jpg"}, 1, "cpu: /nowhere.jpg"},
        {{"parity", "-d", "cpu,cpu", "-m", floats, "--mode", "x", cat}, 2, "cpu: "},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *args[9] = {NULL};
        memcpy(args, cases[i].args, sizeof cases[i].args);
        check_refused(cases[i].status, cases[i].said, run_squint(NULL, args));
    }
    char *const blind = strdup(temp_path(".gguf"));
    fixture *const f = fixture_decoder(2);
    fixture_write(f, blind);
    fixture_free(f);
    check_refused(1, "takes no pictures", RUN("parity", "-d", "cpu,cpu", "-m", blind, cat));
    unlink(blind);
    free(blind);
    char text[2000];
    memset(text, 'a', sizeof text - 1);
    text[sizeof text - 1] = 0;
    check_refused(1, "tokens with the image's; the model takes",
                  RUN("parity", "-d", "cpu,cpu", "-m", floats, "-p", text, cat));
}

static int set_up(void **state)
{
    (void)state;
    snprintf(floats, sizeof floats, "%s", test_path("golden/checkpoints/pmod15.gguf"));
    snprintf(cat, sizeof cat, "%s", test_path("../samples/cat.jpg"));
    snprintf(wide, sizeof wide, "%s", test_path("../samples/coffee.jpg"));
    snprintf(drawn, sizeof drawn, "%s", test_path("../samples/drawn-1.png"));
    snprintf(whole, sizeof whole, "%s", temp_path(".gguf"));
    for (const char *const *name = sq_kernels_names(); *name; name++) {
        const size_t used = strlen(all_tables);
        snprintf(all_tables + used, sizeof all_tables - used, "%scpu:%s", used ? "," : "", *name);
    }
    unsetenv("SQUINT_ISA");
    unsetenv("TMPDIR");
    command_result r = RUN("quantize", "--type", "q4", floats, whole);
    if (r.status) fail_msg("%s", r.err);
    command_result_free(&r);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    unlink(whole);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(words_are_read),
        cmocka_unit_test(other_words_are_refused),
        cmocka_unit_test(what_is_not_here_is_told),
        cmocka_unit_test(pairs_are_judged),
        cmocka_unit_test(kinds_of_products_are_known),
        cmocka_unit_test(the_same_bits_have_no_budget),
        cmocka_unit_test(the_best_and_its_lead),
        cmocka_unit_test(texts_part_at_a_place),
        cmocka_unit_test(the_worst_of_a_group_counts),
        cmocka_unit_test(sets_are_counted),
        cmocka_unit_test(what_was_not_compared_is_not_the_same),
        cmocka_unit_test(tables_come_back),
        cmocka_unit_test(the_file_has_no_name),
        cmocka_unit_test(a_file_that_cannot_be_is_told),
        cmocka_unit_test(the_file_is_as_large_as_its_pictures),
        cmocka_unit_test(all_tables_do_the_same),
        cmocka_unit_test(every_stage_is_a_line),
        cmocka_unit_test(a_file_of_floats_expands_to_itself),
        cmocka_unit_test(kernels_are_those_asked_for),
        cmocka_unit_test(budgets_name_the_first),
        cmocka_unit_test(sets_that_differ_are_told),
        cmocka_unit_test(the_first_other_token_is_found),
        cmocka_unit_test(turns_change_nothing),
        cmocka_unit_test(families_run),
        cmocka_unit_test(misuse_is_told),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
