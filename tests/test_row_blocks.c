/*
 * A decoder layer in blocks of rows: the same bits as the same rows in any other parts, listed or not.
 * SPDX-License-Identifier: MIT
 */
#include "models/llava.h"
#include "tests/support.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { D = 64, F = 160, HEADS = 2, KV_HEADS = 1, LAYERS = 2, MOST = 2100, PART = 60 };

/* Weighted, of the rows that are not left out. */
typedef struct listed {
    uint32_t rows[MOST];
    float mlp[MOST], attn[MOST];
} listed;

static listed lists;

static void make_lists(void)
{
    uint64_t seed = 3;
    for (uint32_t i = 0; i < MOST; i++) {
        lists.rows[i] = i + i / 7; /* an eighth is skipped */
        lists.mlp[i] = 1 + 0.5f * random_f32(&seed);
        lists.attn[i] = 1 + 0.5f * random_f32(&seed);
    }
}

static uint32_t rows_of(uint32_t m) { return lists.rows[m - 1] + 1; }

typedef struct bed {
    squint_model *model;
    squint_session *session;
    sq_pass pass;
    sq_llava_state *state;
} bed;

static void open_bed(bed *b, sq_panel_type type, unsigned threads, const char *isa)
{
    squint_msg msg = {""};
    const sq_synthetic shape = {.n_layers = LAYERS,
                                .d = D,
                                .f = F,
                                .n_heads = HEADS,
                                .n_kv_heads = KV_HEADS,
                                .n_vocab = 64,
                                .n_ctx = 2 * MOST,
                                .type = type,
                                .group = type == SQ_PANEL_I4 ? 32 : 0};
    const sq_limits limits = {.max_rows = 2 * MOST, .max_tokens = 2 * MOST, .max_logits = 1, .kv = SQ_KV_F16};
    const squint_session_options options = {.threads = threads};
    if (sq_synthetic_open(&b->model, &shape, &(squint_model_options){.isa = isa}, &msg)) fail_msg("%s", msg.text);
    if (sq_session_open_limits(&b->session, b->model, &options, &limits, &msg)) fail_msg("%s", msg.text);
    b->state = sq_llava_state_of(b->session);
    b->pass = (sq_pass){.s = b->session, .net = &sq_llava_of(b->session)->decoder, .state = b->state};
}

static void close_bed(bed *b)
{
    squint_session_close(&b->session);
    squint_model_close(&b->model);
}

static void fill(float *x, size_t n)
{
    uint64_t seed = 5;
    for (size_t i = 0; i < n; i++)
        x[i] = random_f32(&seed);
}

/* What a layer made of rows. */
typedef struct outcome {
    float x[2 * MOST * D];
    uint16_t k[MOST * D], v[MOST * D];
    uint32_t at[MOST], n;
} outcome;

/* All m rows through layer 1, at most `part` a call. */
static void run_rows(bed *b, sq_run run, uint32_t part, outcome *out)
{
    const uint32_t m = run.m, end = run.rows ? rows_of(m) : m;
    const size_t head_bytes = sq_llava_kv_bytes(b->session);
    sq_kv_layer *const kv = &b->state->kv[1];
    kv->n = 0;
    b->pass.n = end;
    fill(b->state->x, (size_t)end * D);
    for (uint32_t first = 0; first < m; first += run.m) {
        run.m = m - first < part + 4 ? m - first : part; /* fewer than 4 add up otherwise */
        sq_run now = run;
        now.first = run.rows ? 0 : first;
        now.rows = run.rows ? run.rows + first : NULL;
        now.host_rows = now.rows;
        now.mlp_weight = run.mlp_weight ? run.mlp_weight + first : NULL;
        now.attn_weight = run.attn_weight ? run.attn_weight + first : NULL;
        sq_decoder_layer_run(&b->pass, 1, &now);
    }
    memcpy(out->x, b->state->x, (size_t)end * D * sizeof *out->x);
    memcpy(out->k, kv->k, m * head_bytes);
    memcpy(out->v, kv->v, m * head_bytes);
    memcpy(out->at, kv->at, m * sizeof *out->at);
    out->n = kv->n;
}

static void assert_same(const outcome *got, const outcome *want, uint32_t m, uint32_t rows)
{
    assert_int_equal(got->n, m);
    assert_int_equal(want->n, m);
    assert_memory_equal(got->at, want->at, m * sizeof *got->at);
    assert_memory_equal(got->k, want->k, (size_t)m * D / HEADS * KV_HEADS * sizeof *got->k);
    assert_memory_equal(got->v, want->v, (size_t)m * D / HEADS * KV_HEADS * sizeof *got->v);
    assert_memory_equal(got->x, want->x, (size_t)rows * D * sizeof *got->x);
}

static outcome whole, parts;

/* Below, at, above one and more blocks; six blocks of 336 leave 2,017 to 2,019 a rest of rows so few that attention
 * would go another way. */
static const uint32_t counts[] = {4, 336, 337, 500, 673, 2017, 2019};

static void check_counts(bed *b)
{
    for (size_t i = 0; i < SQ_COUNT(counts); i++) {
        const uint32_t m = counts[i];
        const sq_run all = {.m = m};
        const sq_run some = {
            .m = m, .rows = lists.rows, .host_rows = lists.rows, .mlp_weight = lists.mlp, .attn_weight = lists.attn};
        const sq_run packed = {
            .m = m, .rows = lists.rows, .host_rows = lists.rows, .mlp_weight = lists.mlp, .compressed = true};
        const sq_run runs[] = {all, some, packed};
        for (size_t j = 0; j < SQ_COUNT(runs); j++) {
            run_rows(b, runs[j], m, &whole);
            run_rows(b, runs[j], PART, &parts);
            assert_same(&whole, &parts, m, runs[j].rows ? rows_of(m) : m);
        }
    }
}

static void blocks_change_no_bit(void **state)
{
    (void)state;
    bed b;
    open_bed(&b, SQ_PANEL_I8, 1, NULL);
    check_counts(&b);
    close_bed(&b);
    open_bed(&b, SQ_PANEL_I4, 2, NULL);
    check_counts(&b);
    close_bed(&b);
}

/* What is skipped stays, what is weighted is: blocks could agree with parts on a mistake of both. */
static void listed_rows_alone_change(void **state)
{
    (void)state;
    static float before[2 * MOST * D];
    bed b;
    open_bed(&b, SQ_PANEL_I8, 1, NULL);
    fill(before, (size_t)2 * MOST * D);
    run_rows(
        &b,
        (sq_run){
            .m = 700, .rows = lists.rows, .host_rows = lists.rows, .mlp_weight = lists.mlp, .attn_weight = lists.attn},
        700, &whole);
    for (uint32_t row = 0, i = 0; row < rows_of(700); row++) {
        const bool is_listed = i < 700 && lists.rows[i] == row;
        const bool changed = memcmp(before + (size_t)row * D, whole.x + (size_t)row * D, D * sizeof(float)) != 0;
        assert_int_equal(changed, is_listed);
        if (is_listed) assert_int_equal(whole.at[i], row);
        i += is_listed;
    }
    static float zero[MOST];
    run_rows(&b,
             (sq_run){.m = 700, .rows = lists.rows, .host_rows = lists.rows, .mlp_weight = zero, .attn_weight = zero},
             700, &whole);
    assert_memory_equal(before, whole.x, (size_t)rows_of(700) * D * sizeof(float));
    close_bed(&b);
}

/* Every set of kernels, against plain C. */
static void sets_agree(void **state)
{
    (void)state;
    const char *const *const names = sq_kernels_names();
    bed b;
    for (unsigned i = 0; names[i]; i++) {
        open_bed(&b, SQ_PANEL_I4, 2, names[i]);
        run_rows(&b, (sq_run){.m = 341}, 341, i ? &parts : &whole);
        if (i) assert_same(&parts, &whole, 341, 341);
        close_bed(&b);
    }
}

/* ---- A session's memory -------------------------------------------------------------------- */

/* Rows that a session holds cost the residual stream and the cache, not a layer's inner values. */
static void rows_cost_no_inner_values(void **state)
{
    (void)state;
    bed b;
    const sq_decoder *net;
    size_t bytes[2];
    open_bed(&b, SQ_PANEL_I4, 1, NULL);
    net = b.pass.net;
    for (uint32_t i = 0; i < 2; i++) {
        squint_session *s;
        const uint32_t rows = 1000 * (i + 1);
        const sq_limits limits = {.max_rows = rows, .max_tokens = rows, .max_logits = 1, .kv = SQ_KV_F16};
        assert_int_equal(sq_session_open_limits(&s, b.model, NULL, &limits, NULL), SQUINT_OK);
        bytes[i] = s->block_bytes;
        squint_session_close(&s);
    }
    const size_t kv = LAYERS * (2 * D / HEADS * KV_HEADS * sizeof(uint16_t) + sizeof(uint32_t));
    const size_t row = net->d * sizeof(float) + net->head_dim * sizeof(float) + kv;
    assert_true(bytes[1] - bytes[0] < 1000 * (row + 32)); /* a list of what is kept, its weights */
    close_bed(&b);
}

int main(void)
{
    make_lists();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_change_no_bit),
        cmocka_unit_test(listed_rows_alone_change),
        cmocka_unit_test(sets_agree),
        cmocka_unit_test(rows_cost_no_inner_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
