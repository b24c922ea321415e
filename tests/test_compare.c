/*
 * squint compare: what it says of a stored dump of PyTorch's (tests/golden/make_checkpoints.py), and of dumps with one
 * thing changed. SPDX-License-Identifier: MIT
 */
#include "tests/command.h"
#include "tests/fixture.h"
#include "tests/support.h"
#include "tools/squint/stages.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char model[1024], dump[1024], changed[1024];

static void assert_contains(const char *text, const char *part)
{
    if (!strstr(text, part)) fail_msg("\"%s\" is not in \"%s\"", part, text);
}

/* ---- dumps with something changed ---- */

/* A tensor in the writing. */
typedef struct copied {
    char name[80];
    uint32_t n_dims, type;
    uint64_t ne[SQ_GGUF_MAX_DIMS];
    uint8_t *data;
    size_t bytes;
    bool dropped;
} copied;

typedef struct change {
    const char *tensor;
    void (*apply)(copied *t, double by);
    double by;
} change;

static float *floats(copied *t) { return (float *)(void *)t->data; }
static int32_t *ints(copied *t) { return (int32_t *)(void *)t->data; }

static void add(copied *t, double by) { floats(t)[t->bytes / 8] += (float)by; }
static void scale(copied *t, double by)
{
    for (size_t i = 0; i < t->bytes / 4; i++)
        floats(t)[i] *= (float)by;
}
static void set_last(copied *t, double to) { ints(t)[t->bytes / 4 - 1] = (int32_t)to; }
static void set_first(copied *t, double to) { ints(t)[0] = (int32_t)to; }
static void set_at(copied *t, double to) { ints(t)[(int)to / 10000] = (int)to % 10000; }
static void set_nan(copied *t, double by) { floats(t)[t->bytes / 8] = (float)(NAN * by); }
static void drop(copied *t, double by) { t->dropped = by > 0; }
static void retype(copied *t, double to) { t->type = (uint32_t)to; }
static void shorten(copied *t, double rows)
{
    const size_t row = t->bytes / t->ne[t->n_dims - 1];
    t->ne[t->n_dims - 1] -= (uint64_t)rows;
    t->bytes -= row * (size_t)rows;
}
static void flatten(copied *t, double by)
{
    for (uint32_t i = 1; i < t->n_dims; i++) {
        t->ne[0] *= t->ne[i];
        t->ne[i] = 1;
    }
    t->n_dims = (uint32_t)by;
}
static void rename_it(copied *t, double to) { snprintf(t->name, sizeof t->name, "blk.%d", (int)to); }

static void copy_tensors(sq_gguf_writer *w, const sq_gguf *g, const change *changes, size_t n_changes)
{
    const size_t n = sq_gguf_n_tensors(g);
    copied *const all = calloc(n, sizeof *all);
    for (size_t i = 0; i < n; i++) {
        const sq_gguf_tensor *const t = sq_gguf_tensor_at(g, i);
        copied *const c = &all[i];
        *c = (copied){.n_dims = t->n_dims, .type = t->type, .data = malloc(t->bytes + 1), .bytes = t->bytes};
        snprintf(c->name, sizeof c->name, "%.*s", (int)t->name.len, t->name.s);
        memcpy(c->ne, t->ne, sizeof c->ne);
        memcpy(c->data, t->data, t->bytes);
        for (size_t j = 0; j < n_changes; j++)
            if (!strcmp(c->name, changes[j].tensor)) changes[j].apply(c, changes[j].by);
        const sq_str name = {c->name, strlen(c->name)};
        if (!c->dropped) sq_gguf_put_tensor(w, name, c->n_dims, c->ne, c->type);
    }
    for (size_t i = 0; i < n; i++) {
        if (!all[i].dropped) sq_gguf_put_data(w, all[i].data, all[i].bytes);
        free(all[i].data);
    }
    free(all);
}

/* Keys but for `without`; `version`, if not 0, instead of the dump's. */
static void write_changed(const change *changes, size_t n, const char *without, uint32_t version)
{
    sq_gguf *g;
    sq_gguf_writer *w;
    squint_msg msg = {""};
    if (sq_gguf_open(&g, dump, NULL, &msg)) fail_msg("%s", msg.text);
    if (sq_gguf_write_begin(&w, changed, 32, NULL, &msg)) fail_msg("%s", msg.text);
    for (size_t i = 0; i < sq_gguf_n_keys(g); i++) {
        const sq_gguf_kv *const kv = sq_gguf_key(g, i);
        if (without && sq_str_eq(kv->key, without)) continue;
        if (version && sq_str_eq(kv->key, "squint.dump.version"))
            sq_gguf_put_u32(w, "squint.dump.version", version);
        else
            sq_gguf_put_kv(w, kv);
    }
    copy_tensors(w, g, changes, n);
    if (sq_gguf_write_end(&w, &msg)) fail_msg("%s", msg.text);
    sq_gguf_close(&g);
}

static void write_change(const char *tensor, void (*apply)(copied *t, double by), double by)
{
    write_changed(&(change){tensor, apply, by}, 1, NULL, 0);
}

/* ---- what is said ---- */

/* The verdict: the last of the JSON lines. */
static char *first_of(const command_result *r)
{
    const char *last = r->out;
    for (const char *c = r->out; *c; c++)
        if (*c == '\n' && c[1]) last = c + 1;
    cJSON *const json = cJSON_Parse(last);
    const cJSON *const first = cJSON_GetObjectItemCaseSensitive(json, "first");
    if (!first) fail_msg("no verdict in %s%s", r->out, r->err);
    char *const name = strdup(cJSON_IsString(first) ? first->valuestring : "");
    cJSON_Delete(json);
    return name;
}

/* The changed dump's first stage past its budget is `first`, "" for none; `said` is said somewhere. */
static void assert_first(const char *first, const char *said, const char *option, const char *value)
{
    command_result r =
        RUN("compare", "-m", model, "--ref", changed, "--json", option ? option : "--threads", option ? value : "2");
    char *const name = first_of(&r);
    if (strcmp(name, first) || r.status != (*first != 0))
        fail_msg("exit %d, first \"%s\", not \"%s\": %s", r.status, name, first, r.out);
    if (said) assert_contains(r.out, said);
    free(name);
    command_result_free(&r);
}

static void assert_refused(int status, const char *said)
{
    command_result r = RUN("compare", "-m", model, "-r", changed);
    if (r.status != status || count_lines(r.err) != 1 || *r.out)
        fail_msg("exit %d, not %d, or not one line: %s%s", r.status, status, r.err, r.out);
    assert_int_equal(strncmp(r.err, "squint: ", 8), 0);
    assert_contains(r.err, said);
    command_result_free(&r);
}

/* ---- tests ---- */

static void a_table_and_a_verdict(void **state)
{
    (void)state;
    command_result r = RUN("compare", "-m", model, "--ref", dump);
    if (r.status) fail_msg("exit %d: %s%s", r.status, r.err, r.out);
    assert_string_equal(r.err, "");
    assert_contains(r.out, "tower.0.blk.2");
    assert_contains(r.out, "blk.8.kept            177 of 177    the same\n");
    assert_contains(r.out, "decode.kv                  6 x 12 the same\n");
    assert_contains(r.out, "stages within their budgets\n");
    command_result_free(&r);
    r = RUN("compare", "-m", model, "--ref", dump, "--json");
    const char *line = r.out;
    size_t n = 0;
    for (const char *end; (end = strchr(line, '\n')); line = end + 1, n++) {
        cJSON *const json = cJSON_ParseWithLength(line, (size_t)(end - line));
        assert_non_null(json);
        if (end[1]) assert_string_equal(cJSON_GetObjectItem(json, "state")->valuestring, "within");
        cJSON_Delete(json);
    }
    assert_true(n > 15);
    command_result_free(&r);
}

static void the_first_stage_is_named(void **state)
{
    (void)state;
    static const struct {
        change change;
        const char *said;
    } cases[] = {
        {{"ids", set_last, 7}, "1 of 165 differ; the first is number 164"},
        {{"pixels.0", add, 1e-6}, "it is to be the same"},
        {{"tower.0.embd", add, 0.01}, "of its length, budget 5e-05"},
        {{"tower.0.blk.1", scale, 1.001}, "a row differs by 0.000999 of its length"},
        {{"tower.0.out", set_nan, 1}, "a row differs by nan"},
        {{"projected", add, 0.01}, "of its length"},
        {{"blk.0", shorten, 1}, "squint has 180 x 16, the reference 179 x 16"},
        {{"blk.8.scores", add, 0.01}, "of its length"},
        {{"blk.8.scores", shorten, 1}, "squint has 1 x 16, the reference 15"},
        {{"blk.11", flatten, 1}, "squint has 180 x 16, the reference 2880"},
        {{"blk.11", rename_it, 77}, "squint has no such stage"},
        {{"blk.10.kept", set_last, 180}, "position 180 in a sequence of 180"},
        {{"blk.10.kept", set_last, -1}, "position -1 in a sequence of 180"},
        {{"blk.10.kept", retype, SQ_TENSOR_F32}, "not a list of up to 180 I32 positions"},
        {{"logits", add, 0.002}, "differs by 0.002, budget 0.001"},
        {{"logits", retype, SQ_TENSOR_I32}, "the reference's type is I32, not F32"},
        {{"decode.logits", shorten, 1}, "squint has 6 x 320, the reference 5 x 320"},
        {{"decode.kv", set_last, 3}, "1 of 72 differ"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_changed(&cases[i].change, 1, NULL, 0);
        const bool renamed = cases[i].change.apply == rename_it;
        assert_first(renamed ? "blk.77" : cases[i].change.tensor, cases[i].said, NULL, NULL);
    }
    const change both[] = {{"logits", add, 1}, {"tower.0.blk.2", add, 1}};
    write_changed(both, 2, NULL, 0);
    assert_first("tower.0.blk.2", NULL, NULL, NULL);
    write_change("decode.ids", drop, 1); /* nothing is fed, so there is nothing to compare with */
    assert_first("decode.logits", "squint has no such stage", NULL, NULL);
}

static void budgets_can_be_set(void **state)
{
    (void)state;
    write_change("logits", add, 0.002);
    assert_first("", NULL, "--tolerance", "0.01");
    write_change("tower.0.blk.1", scale, 1.001);
    assert_first("", NULL, "--drift", "0.01");
    write_change("tower.0.blk.1", scale, 1.00001);
    assert_first("", NULL, NULL, NULL);
    assert_first("tower.0.embd", NULL, "--drift", "1e-9");
}

/* Layer 8 runs 13 of the vision tokens. The reference's set with the worst of these left out for the best of the
 * others: wrong, unless scores may differ by as much as that. Then what follows is not judged. */
static void ties_are_forgiven(void **state)
{
    (void)state;
    sq_gguf *g;
    squint_msg msg = {""};
    if (sq_gguf_open(&g, dump, NULL, &msg)) fail_msg("%s", msg.text);
    const float *const z = (const float *)(const void *)sq_gguf_find(g, "blk.8.scores")->data;
    const sq_gguf_tensor *const t = sq_gguf_find(g, "blk.8.kept");
    const int32_t *const kept = (const int32_t *)(const void *)t->data;
    int32_t first = 0, worst = -1, best = -1, at[16];
    const int32_t *const ids = (const int32_t *)(const void *)sq_gguf_find(g, "ids")->data;
    while (ids[first] != -200)
        first++;
    for (int32_t i = 0; i < 16; i++) {
        at[i] = -1;
        for (uint64_t j = 0; j < t->ne[0]; j++)
            if (kept[j] == first + i) at[i] = (int32_t)j;
        if (at[i] >= 0 && (worst < 0 || z[i] < z[worst])) worst = i;
        if (at[i] < 0 && (best < 0 || z[i] > z[best])) best = i;
    }
    const double gap = (double)(z[worst] - z[best]);
    const change changes[] = {{"blk.8.kept", set_at, at[worst] * 10000 + first + best}, {"blk.11", add, 1}};
    char too_few[32], enough[32];
    snprintf(too_few, sizeof too_few, "%g", 0.99 * gap);
    snprintf(enough, sizeof enough, "%g", 1.01 * gap);
    sq_gguf_close(&g);
    assert_true(gap > 0.1);
    write_changed(changes, 2, NULL, 0);
    assert_first("blk.8.kept", "2 positions differ, 0 of them by ties of up to 0.0001", NULL, NULL);
    assert_first("blk.8.kept", "2 positions differ, 0 of them", "--ties", too_few);
    assert_first("", "not judged: ties made blk.8.kept another set", "--ties", enough);
}

/* Of ten positions 2 to 8 compete; the reference runs 0, 1, 9 and those it says. */
static void assert_sets(double threshold, const int32_t *theirs, uint32_t n_theirs, const uint32_t *ours,
                        uint32_t n_ours, uint32_t n_others, uint32_t n_ties)
{
    static const double score[] = {NAN, NAN, 0.5, 0.25, 0.125, 0.1249, -1, -2, 3, NAN};
    const stage_contest contest = {.n = 10, .score = score, .threshold = threshold};
    const stage_budgets budgets = {.ties = 0.001f};
    const sq_gguf_tensor t = {
        .n_dims = 1, .ne = {n_theirs, 1, 1, 1}, .type = SQ_TENSOR_I32, .data = (const uint8_t *)theirs};
    stage s = {.tensor = &t, .kind = STAGE_SET};
    stage_compare_sets(&s, ours, n_ours, &contest, &budgets);
    assert_int_equal(s.n_others, n_others);
    assert_int_equal(s.n_ties, n_ties);
    assert_int_equal(s.state, n_others > n_ties ? STAGE_PAST : STAGE_WITHIN);
}

static void a_tie_is_a_score_near_the_cut(void **state)
{
    (void)state;
    const int32_t theirs[] = {0, 1, 2, 3, 4, 8, 9}, fewer[] = {0, 1, 2, 3, 8, 9};
    assert_sets(NAN, theirs, 7, (const uint32_t[]){0, 1, 2, 3, 4, 8, 9}, 7, 0, 0);
    assert_sets(NAN, theirs, 7, (const uint32_t[]){0, 1, 2, 3, 5, 8, 9}, 7, 2, 2); /* 4 for 5 */
    assert_sets(NAN, theirs, 7, (const uint32_t[]){0, 1, 2, 4, 5, 8, 9}, 7, 2, 1); /* 3 for 5: 3 was safe */
    assert_sets(NAN, theirs, 7, (const uint32_t[]){0, 1, 2, 3, 6, 8, 9}, 7, 2, 1); /* 4 for 6 */
    assert_sets(NAN, theirs, 7, (const uint32_t[]){0, 2, 3, 4, 8, 9}, 6, 1, 0);    /* no token without a score */
    assert_sets(0.1255, fewer, 6, (const uint32_t[]){0, 1, 2, 3, 4, 8, 9}, 7, 1, 1);
    assert_sets(0.1255, fewer, 6, (const uint32_t[]){0, 1, 2, 3, 4, 5, 8, 9}, 8, 2, 2);
    assert_sets(0.2, fewer, 6, (const uint32_t[]){0, 1, 2, 3, 4, 8, 9}, 7, 1, 0);
    assert_sets(0.2505, fewer, 6, (const uint32_t[]){0, 1, 2, 8, 9}, 5, 1, 1);
}

/* ---- numbers ---- */

static stage table(const float *want, uint64_t rows, uint64_t cols, const float *got, stage_kind kind)
{
    static const stage_budgets budgets = {.tolerance = 1e-3f, .drift = 1e-4f};
    const sq_gguf_tensor t = {
        .n_dims = 2, .ne = {cols, rows, 1, 1}, .type = SQ_TENSOR_F32, .data = (const uint8_t *)want};
    stage s = {.tensor = &t, .kind = kind};
    stage_compare_floats(&s, got, (uint32_t)rows, (uint32_t)cols, &budgets);
    s.tensor = NULL;
    return s;
}

static void assert_near(double got, double want)
{
    if (!(fabs(got - want) <= 1e-6 * fabs(want))) fail_msg("%.9g, not %.9g", got, want);
}

static void tables_are_measured(void **state)
{
    (void)state;
    const float want[] = {3, 4, 0, 0.5f}, got[] = {3, 4.5f, 0, 0.25f};
    const stage s = table(want, 2, 2, got, STAGE_FLOATS);
    assert_near(s.largest, 0.5);
    assert_near(s.mean, 0.75 / 4);
    assert_near(s.relative, sqrt((0.25 + 0.0625) / 25.25));
    assert_near(s.worst, 0.5);
    assert_near(s.cosine, (9 + 18 + 0.125) / sqrt(25.25 * (9 + 20.25 + 0.0625)));
    assert_int_equal(s.state, STAGE_PAST);
    /* A row that is small counts as much as one that is large. */
    const float large[] = {1e4f, 0, 1, 0}, off[] = {1e4f, 0, 1.001f, 0};
    assert_int_equal(table(large, 2, 2, off, STAGE_FLOATS).state, STAGE_PAST);
    assert_int_equal(table(large, 2, 2, large, STAGE_FLOATS).state, STAGE_WITHIN);
    const float zeros[] = {0, 0}, some[] = {0, 1e-30f}, nothing[] = {NAN, 0};
    assert_int_equal(table(zeros, 1, 2, zeros, STAGE_FLOATS).state, STAGE_WITHIN);
    assert_int_equal(table(zeros, 1, 2, some, STAGE_FLOATS).state, STAGE_PAST);
    assert_int_equal(table(zeros, 1, 2, some, STAGE_LOGITS).state, STAGE_WITHIN);
    assert_int_equal(table(zeros, 1, 2, some, STAGE_EXACT).state, STAGE_PAST);
    for (stage_kind kind = STAGE_EXACT; kind <= STAGE_LOGITS; kind++) {
        assert_int_equal(table(nothing, 1, 2, zeros, kind).state, STAGE_PAST);
        assert_int_equal(table(zeros, 1, 2, nothing, kind).state, STAGE_PAST);
    }
}

/* ---- models with something changed ---- */

static void fewer_blocks(fixture *f) { fixture_u32(f, "squint.vision.layers_run", 2); }
static void a_gelu(fixture *f) { fixture_bool(f, "clip.use_gelu", true); }
static void another_fit(fixture *f) { fixture_str(f, "squint.vision.type", "clip_crop"); }
static void another_mean(fixture *f)
{
    fixture_f32s(f, "clip.vision.image_mean", (const float[]){0.48f, 0.46f, 0.41f}, 3);
}
static void another_template(fixture *f) { fixture_str(f, "squint.chat.template", "llava_v1"); }
static void halved_heads(fixture *f) { fixture_str(f, "squint.rope_layout", "half"); }
static void slower_turns(fixture *f) { fixture_f32(f, "llama.rope.freq_base", 10500); }
static void a_larger_epsilon(fixture *f) { fixture_f32(f, "llama.attention.layer_norm_rms_epsilon", 1e-3f); }
static void heavier_tokens(fixture *f) { fixture_f32(f, "mod.norm.scale", 0.21f); }
static void unweighted_skipped(fixture *f) { fixture_str(f, "mod.weight.apply", "mlp"); }
static void another_router(fixture *f) { fixture_floats(f, "blk.9.mod_router.weight")[3] += 0.01f; }
static void one_token_fewer(fixture *f)
{
    float ratio[12];
    for (int l = 0; l < 12; l++)
        ratio[l] = l < 8 ? 1 : 0.7f;
    fixture_f32s(f, "mod.layer_ratio", ratio, 12);
}
static void another_projector(fixture *f) { fixture_floats(f, "mm.2.bias")[0] += 0.01f; }
static void another_head(fixture *f) { fixture_floats(f, "output_norm.weight")[0] *= 1.01f; }
static void swapped_branches(fixture *f)
{
    fixture_rename(f, "blk.3.ffn_gate.weight", "aside");
    fixture_rename(f, "blk.3.ffn_up.weight", "blk.3.ffn_gate.weight");
    fixture_rename(f, "aside", "blk.3.ffn_up.weight");
}

/* What is wrong with a model shows first where it goes wrong. Of the decoder's layers the dump has 0 and 11, and the
 * scores and sets of 8 to 11. */
static void wrong_models_are_found_out(void **state)
{
    (void)state;
    static const struct {
        void (*apply)(fixture *f);
        const char *first, *said;
    } cases[] = {
        {another_template, "ids", NULL},
        {another_fit, "pixels.0", NULL},
        {another_mean, "pixels.0", NULL},
        {a_gelu, "tower.0.blk.0", NULL},
        {fewer_blocks, "tower.0.blk.2", "squint has no such stage"},
        {another_projector, "projected", NULL},
        {halved_heads, "blk.0", NULL},
        {slower_turns, "blk.0", NULL},
        {a_larger_epsilon, "blk.0", NULL},
        {swapped_branches, "blk.8.scores", NULL},
        {heavier_tokens, "blk.9.scores", NULL}, /* those of layer 8 do not depend on it */
        {unweighted_skipped, "blk.9.scores", NULL},
        {another_router, "blk.9.scores", NULL},
        {one_token_fewer, "blk.8.kept", NULL},
        {another_head, "logits", NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fixture *const f = fixture_read(model);
        cases[i].apply(f);
        fixture_write(f, changed);
        command_result r = RUN("compare", "-m", changed, "--ref", dump, "--json");
        char *const first = first_of(&r);
        if (r.status != 1 || strcmp(first, cases[i].first))
            fail_msg("case %zu: exit %d, first \"%s\", not \"%s\"", i, r.status, first, cases[i].first);
        if (cases[i].said) assert_contains(r.out, cases[i].said);
        free(first);
        command_result_free(&r);
        fixture_free(f);
    }
}

/* ---- what else there is ---- */

static void prompts_may_be_absent(void **state)
{
    (void)state;
    write_changed(&(change){"ids", set_last, 7}, 1, "squint.dump.prompt", 0);
    assert_first("blk.0", NULL, NULL, NULL); /* these are the ids then; stages are those of others */
    write_changed(NULL, 0, "squint.dump.prompt", 0);
    assert_first("", NULL, NULL, NULL);
    write_change("ids", drop, 1);
    assert_first("", NULL, NULL, NULL);
    write_changed(&(change){"ids", drop, 1}, 1, "squint.dump.prompt", 0);
    assert_refused(1, "has neither tensor ids nor key squint.dump.prompt");
}

static void rounded_weights_are_not_judged(void **state)
{
    (void)state;
    char rounded[1024];
    snprintf(rounded, sizeof rounded, "%s", temp_path(".gguf"));
    command_result r = RUN("quantize", "--type", "q8", model, rounded);
    if (r.status) fail_msg("%s", r.err);
    command_result_free(&r);
    r = RUN("compare", "-m", rounded, "-r", dump);
    assert_int_equal(r.status, 0);
    assert_contains(r.out, "stages told; the model's weights are rounded: --tolerance judges them");
    command_result_free(&r);
    r = RUN("compare", "-m", rounded, "-r", dump, "--tolerance", "1e-3");
    assert_int_equal(r.status, 1);
    assert_contains(r.out, "first past its budget: tower.0.blk.0: a row differs by");
    command_result_free(&r);
    write_change("blk.11", rename_it, 77); /* is wrong of any weights */
    r = RUN("compare", "-m", rounded, "-r", changed);
    assert_int_equal(r.status, 1);
    assert_contains(r.out, "first past its budget: blk.77: squint has no such stage");
    command_result_free(&r);
    unlink(rounded);
}

static void misuse_is_told(void **state)
{
    (void)state;
    static const struct {
        const char *args[5];
        int status;
        const char *said;
    } cases[] = {
        {{"compare"}, 2, "compare: --ref says what to compare with"},
        {{"compare", "-r", dump, "more"}, 2, "what is \"more\" for?"},
        {{"compare", "-r", dump, "--ties", "x"}, 2, "--ties: \"x\" is not a number"},
        {{"compare", "-m", "/nowhere.gguf", "-r", dump}, 1, "/nowhere.gguf"},
        {{"compare", "-m", model, "-r", "/nowhere.gguf"}, 1, "/nowhere.gguf"},
        {{"compare", "-m", model, "-r", model}, 1, "no key squint.dump.version: not a dump"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *args[6] = {NULL};
        memcpy(args, cases[i].args, sizeof cases[i].args);
        command_result r = run_squint(NULL, args);
        if (r.status != cases[i].status || count_lines(r.err) != 1) fail_msg("exit %d: %s", r.status, r.err);
        assert_contains(r.err, cases[i].said);
        command_result_free(&r);
    }
}

static void broken_dumps_are_refused(void **state)
{
    (void)state;
    static const struct {
        change change;
        const char *said;
    } cases[] = {
        {{"ids", set_last, 320}, "tensor ids: id 320 is not in the model's vocabulary of 320"},
        {{"ids", set_last, -1}, "tensor ids: id -1 is not in"},
        {{"ids", set_first, -200}, "tensor ids: 2 pictures; squint takes one a prompt"},
        {{"ids", retype, SQ_TENSOR_F32}, "tensor ids: not a list"},
        {{"picture", drop, 1}, "has no tensor picture for its prompt"},
        {{"picture", flatten, 2}, "tensor picture: not I8 height x width x 3"},
        {{"decode.ids", set_first, -200}, "tensor decode.ids: a picture among them"},
        {{"decode.ids", set_first, 9999}, "tensor decode.ids: id 9999"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_changed(&cases[i].change, 1, NULL, 0);
        assert_refused(1, cases[i].said);
    }
    write_changed(NULL, 0, NULL, 2);
    assert_refused(1, "key squint.dump.version: 2; this squint reads 1");
    write_changed(NULL, 0, "squint.dump.version", 0);
    assert_refused(1, "no key squint.dump.version");
}

static void cut_off_dumps_are_refused(void **state)
{
    (void)state;
    FILE *f = fopen(dump, "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    const long size = ftell(f);
    uint8_t *const data = malloc((size_t)size);
    rewind(f);
    assert_int_equal(fread(data, 1, (size_t)size, f), (size_t)size);
    fclose(f);
    for (long n = 0; n < size; n += size / 23) {
        f = fopen(changed, "wb");
        assert_int_equal(fwrite(data, 1, (size_t)n, f), (size_t)n);
        fclose(f);
        assert_refused(1, changed);
    }
    free(data);
}

static int set_up(void **state)
{
    (void)state;
    snprintf(model, sizeof model, "%s", test_path("golden/checkpoints/pmod15.gguf"));
    snprintf(dump, sizeof dump, "%s", test_path("golden/checkpoints/pmod15.dump.gguf"));
    snprintf(changed, sizeof changed, "%s", temp_path(".gguf"));
    unsetenv("SQUINT_ISA");
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    unlink(changed);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_table_and_a_verdict),
        cmocka_unit_test(the_first_stage_is_named),
        cmocka_unit_test(budgets_can_be_set),
        cmocka_unit_test(ties_are_forgiven),
        cmocka_unit_test(a_tie_is_a_score_near_the_cut),
        cmocka_unit_test(tables_are_measured),
        cmocka_unit_test(wrong_models_are_found_out),
        cmocka_unit_test(prompts_may_be_absent),
        cmocka_unit_test(rounded_weights_are_not_judged),
        cmocka_unit_test(misuse_is_told),
        cmocka_unit_test(broken_dumps_are_refused),
        cmocka_unit_test(cut_off_dumps_are_refused),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
