/*
 * test_foreign: files of llama.cpp's types, requantised on loading, through the whole decoder.
 * SPDX-License-Identifier: MIT
 *
 * Blocks are random bytes with sane scales: what floats they stand for is test_blocks.c's affair.
 */
#include "models/llava.h"
#include "tests/fixture.h"
#include "tests/support.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { D = 256, F = 512, N_LAYERS = 2, N = 12 };

typedef struct block_type {
    uint32_t type;
    uint32_t scale, min; /* where a block has its scale and its minimum, in bytes; min 0: none */
    float d, m;          /* for weights of about 0.05 */
    bool exact;          /* panels hold the same values */
} block_type;

static const block_type types[] = {
    {SQ_TENSOR_Q4_1, 0, 2, 0.01f, -0.08f, false},  {SQ_TENSOR_Q5_0, 0, 0, 0.006f, 0, true},
    {SQ_TENSOR_Q5_1, 0, 2, 0.006f, -0.09f, false}, {SQ_TENSOR_Q4_K, 0, 2, 4e-4f, 2.5e-3f, false},
    {SQ_TENSOR_Q5_K, 0, 2, 2e-4f, 2.5e-3f, false}, {SQ_TENSOR_Q6_K, 208, 0, 3e-5f, 0, false},
    {SQ_TENSOR_Q8_0, 0, 0, 1e-3f, 0, true},        {SQ_TENSOR_Q4_0, 0, 0, 0.012f, 0, true},
};

/*
 * int8 with a scale for each 32 inputs. A weight is off by up to half a step, evenly spread: step / sqrt(12), and the
 * step is the group's largest weight / 127. Here that largest is at most 2.5 times the root mean square (evenly spread
 * nibbles: 1.7; Q6_K, where another 16 weights set the step, more): 2.5 / 127 / sqrt(12) = 0.57 %.
 */
static const double WEIGHT_BOUND = 0.0057;

/* Activations are rounded as in test_quantised.c, in nine products here: 0.7 % * sqrt(9) = 2.1 %, and a margin for
 * attention. */
static const double LOGIT_BOUND = 0.03;

static const uint32_t ids[N] = {1, 7, 3, 9, 4, 11, 5, 5, 14, 8, 12, 6};

static void put_half(uint8_t *at, float v)
{
    const uint16_t half = sq_f32_to_f16(v);
    memcpy(at, &half, sizeof half);
}

static size_t block_bytes(const block_type *t)
{
    const uint64_t ne[SQ_GGUF_MAX_DIMS] = {SQ_SUPERBLOCK, 1, 1, 1};
    size_t bytes;
    assert_true(sq_tensor_bytes(t->type, ne, &bytes));
    return t->type >= SQ_TENSOR_Q4_K ? bytes : bytes / (SQ_SUPERBLOCK / SQ_BLOCK);
}

/* Blocks for n weights; malloc'ed. */
static uint8_t *random_blocks(const block_type *t, size_t n, uint64_t seed, size_t *size)
{
    const uint64_t ne[SQ_GGUF_MAX_DIMS] = {F, 1, 1, 1};
    size_t row;
    assert_true(sq_tensor_bytes(t->type, ne, &row));
    *size = n / F * row;
    uint8_t *const blocks = malloc(*size);
    for (size_t i = 0; i < *size; i++)
        blocks[i] = (uint8_t)random_u64(&seed);
    const size_t block = block_bytes(t);
    for (size_t i = 0; i < *size; i += block) {
        put_half(blocks + i + t->scale, t->d * (1 + 0.3f * random_f32(&seed)));
        if (t->min) put_half(blocks + i + t->min, t->m * (1 + 0.3f * random_f32(&seed)));
    }
    return blocks;
}

static void encode(fixture *blocks, fixture *floats, const char *name, uint32_t n, uint32_t k, const block_type *t)
{
    size_t size;
    static uint64_t seed;
    uint8_t *const b = random_blocks(t, (size_t)n * k, ++seed, &size);
    float *const f = malloc((size_t)n * k * sizeof *f);
    sq_tensor_floats(t->type, b, f, (size_t)n * k);
    fixture_tensor(blocks, name, 2, (const uint64_t[]){k, n}, t->type, b, size);
    fixture_tensor(floats, name, 2, (const uint64_t[]){k, n}, SQ_TENSOR_F32, f, (size_t)n * k * sizeof *f);
    free(b);
    free(f);
}

/* The same weights in blocks and as floats. */
static void make_twins(const block_type *t, fixture **blocks, fixture **floats)
{
    static const struct {
        const char *name;
        uint32_t n, k;
    } mats[] = {{"attn_q", D, D},   {"attn_k", D / 2, D}, {"attn_v", D / 2, D}, {"attn_output", D, D},
                {"ffn_gate", F, D}, {"ffn_up", F, D},     {"ffn_down", D, F}};
    char name[64];
    *blocks = fixture_decoder_of(&(fixture_shape){N_LAYERS, D, F, 4, 2});
    *floats = fixture_copy(*blocks);
    encode(*blocks, *floats, "token_embd.weight", FIXTURE_VOCAB, D, t);
    encode(*blocks, *floats, "output.weight", FIXTURE_VOCAB, D, t);
    for (unsigned l = 0; l < N_LAYERS; l++)
        for (size_t i = 0; i < SQ_COUNT(mats); i++) {
            snprintf(name, sizeof name, "blk.%u.%s.weight", l, mats[i].name);
            encode(*blocks, *floats, name, mats[i].n, mats[i].k, t);
        }
}

static float *logits_of(const squint_model *m)
{
    static const sq_limits limits = {.max_rows = N, .max_tokens = N, .max_logits = N, .kv = SQ_KV_F32};
    float *const logits = malloc(sizeof(float) * N * FIXTURE_VOCAB);
    squint_session *s;
    squint_msg msg;
    if (sq_session_open_limits(&s, m, &(squint_session_options){.threads = 1}, &limits, &msg)) fail_msg("%s", msg.text);
    if (sq_session_forward(s, ids, N, N, &msg)) fail_msg("%s", msg.text);
    memcpy(logits, s->logits, sizeof(float) * N * FIXTURE_VOCAB);
    squint_session_close(&s);
    return logits;
}

/* ---- Matrices ------------------------------------------------------------------------------ */

static void assert_close_rows(const sq_mat *got, const sq_mat *expected, const block_type *t)
{
    const char *const name = sq_tensor_type_name(t->type);
    float *const a = malloc(sizeof(float) * got->n * got->k);
    assert_null(got->f32);
    for (uint32_t row = 0; row < got->n; row++)
        sq_mat_row(got, row, a + (size_t)row * got->k);
    const double error = sq_relative_rms(expected->f32, a, (size_t)got->n * got->k);
    if (t->exact ? error != 0 : !(error > 1e-4 && error < WEIGHT_BOUND))
        fail_msg("%s: relative error of the weights %g", name, error);
    free(a);
}

static void weights_are_close_and_logits_too(void **state)
{
    (void)state;
    for (size_t i = 0; i < SQ_COUNT(types); i++) {
        fixture *blocks, *floats;
        make_twins(&types[i], &blocks, &floats);
        squint_model *m = fixture_model(blocks, NULL), *f = fixture_model(floats, NULL);
        const sq_decoder *const got = &((const sq_llava *)m->net)->decoder, *const expected =
                                                                                &((sq_llava *)f->net)->decoder;
        assert_close_rows(&got->token_embd, &expected->token_embd, &types[i]);
        assert_close_rows(&got->layers[1].v, &expected->layers[1].v, &types[i]);
        assert_close_rows(&got->layers[0].down, &expected->layers[0].down, &types[i]);
        float *const a = logits_of(m), *const b = logits_of(f);
        const double error = sq_relative_rms(b, a, (size_t)N * FIXTURE_VOCAB);
        if (!(error > 1e-4 && error < LOGIT_BOUND))
            fail_msg("%s: relative error of the logits %g", sq_tensor_type_name(types[i].type), error);
        free(a);
        free(b);
        squint_model_close(&m);
        squint_model_close(&f);
        fixture_free(blocks);
        fixture_free(floats);
    }
}

/* A matrix large enough for threads becomes what the same rows become one by one. */
static void threads_requantise_alike(void **state)
{
    (void)state;
    enum { ROWS = 4128 }; /* times 256: past what threads are started for, and no multiple of what they take */
    fixture *const f = fixture_decoder_of(&(fixture_shape){1, D, F, 4, 2});
    fixture_u32(f, "llama.feed_forward_length", ROWS);
    const block_type *const t = &types[3];
    size_t size;
    uint8_t *const b = random_blocks(t, (size_t)ROWS * D, 77, &size);
    float *const floats = malloc(sizeof *floats * ROWS * D), *const row = malloc(sizeof *row * D);
    sq_tensor_floats(t->type, b, floats, (size_t)ROWS * D);
    fixture_tensor(f, "blk.0.ffn_gate.weight", 2, (const uint64_t[]){D, ROWS}, t->type, b, size);
    fixture_weights(f, "blk.0.ffn_up.weight", D, ROWS, 7, 0, 0.1);
    fixture_weights(f, "blk.0.ffn_down.weight", ROWS, D, 8, 0, 0.1);
    squint_model *m = fixture_model(f, NULL);
    const sq_mat *const gate = &((const sq_llava *)m->net)->decoder.layers[0].gate;
    sq_panels one = {NULL, 1, D, SQ_PANEL_I8, SQ_BLOCK};
    uint8_t *const panel = aligned_alloc(SQ_PANEL_ALIGN, sq_panels_bytes(&one));
    float expected[D];
    for (uint32_t r = 0; r < ROWS; r++) {
        sq_panels_quantise(&one, floats + (size_t)r * D, panel);
        one.data = panel;
        sq_panels_row(&one, 0, expected);
        sq_mat_row(gate, r, row);
        assert_memory_equal(row, expected, sizeof expected);
    }
    squint_model_close(&m);
    free(b);
    free(floats);
    free(row);
    free(panel);
    fixture_free(f);
}

/* ---- Vectors ------------------------------------------------------------------------------- */

/* Norms are read as floats, whatever they are kept in: the model is that of these floats. */
static void vectors_are_read_as_floats(void **state)
{
    (void)state;
    static const uint32_t kept_in[] = {SQ_TENSOR_BF16, SQ_TENSOR_F16, SQ_TENSOR_Q8_0, SQ_TENSOR_Q6_K};
    for (size_t i = 0; i < SQ_COUNT(kept_in); i++) {
        const uint64_t ne[SQ_GGUF_MAX_DIMS] = {D, 1, 1, 1};
        uint8_t data[2 * D];
        float floats[D];
        size_t bytes;
        uint64_t seed = i;
        for (size_t j = 0; j < sizeof data; j++)
            data[j] = (uint8_t)random_u64(&seed);
        for (size_t j = 0; j < D; j++) /* about 1 as BF16, below 2 as F16; scales elsewhere */
            data[2 * j + 1] = kept_in[i] == SQ_TENSOR_BF16 ? 0x3f : 0x3c;
        assert_true(sq_tensor_bytes(kept_in[i], ne, &bytes) && bytes <= sizeof data);
        sq_tensor_floats(kept_in[i], data, floats, D);
        fixture *const f = fixture_decoder_of(&(fixture_shape){N_LAYERS, D, F, 4, 2});
        fixture_tensor(f, "output_norm.weight", 1, ne, SQ_TENSOR_F32, floats, sizeof floats);
        squint_model *m = fixture_model(f, NULL);
        float *const expected = logits_of(m);
        squint_model_close(&m);
        fixture_tensor(f, "output_norm.weight", 1, ne, kept_in[i], data, bytes);
        m = fixture_model(f, NULL);
        float *const got = logits_of(m);
        assert_memory_equal(got, expected, sizeof(float) * N * FIXTURE_VOCAB);
        squint_model_close(&m);
        fixture_free(f);
        free(expected);
        free(got);
    }
}

/* ---- What is told ---------------------------------------------------------------------------- */

typedef struct notes {
    char text[2048];
    unsigned n;
} notes;

static void on_note(void *user, const char *text)
{
    notes *const all = user;
    assert_null(strchr(text, '\n'));
    strncat(all->text, text, sizeof all->text - strlen(all->text) - 2);
    strcat(all->text, "\n");
    all->n++;
}

static void requantising_is_told(void **state)
{
    (void)state;
    fixture *blocks, *floats;
    notes all = {.n = 0};
    squint_model *m;
    squint_msg msg;
    const squint_model_options options = {.on_note = on_note, .note_user = &all};
    make_twins(&types[3], &blocks, &floats);
    size_t size;
    uint8_t *const b = random_blocks(&types[5], D * F, 1, &size);
    fixture_tensor(blocks, "blk.1.ffn_down.weight", 2, (const uint64_t[]){F, D}, SQ_TENSOR_Q6_K, b, size);
    assert_int_equal(fixture_open(&m, blocks, &options, &msg), SQUINT_OK);
    squint_model_close(&m);
    /* 1,187,840 and 131,072 weights: blocks of 256 in 144 and 210 bytes, panels of 32 in 34 */
    assert_string_equal(all.text,
                        "15 tensors of Q4_K, 0.6 MiB, requantised to int8 with a scale for each 32 inputs: 1.2 MiB\n"
                        "1 tensor of Q6_K, 0.1 MiB, requantised to int8 with a scale for each 32 inputs: 0.1 MiB\n");
    all = (notes){.n = 0};
    assert_int_equal(fixture_open(&m, floats, &options, &msg), SQUINT_OK);
    squint_model_close(&m);
    assert_int_equal(all.n, 0);
    free(b);
    fixture_free(blocks);
    fixture_free(floats);
}

/* ---- Hostile blocks --------------------------------------------------------------------------- */

/* Whatever the bytes, loading ends with a model or with a line; a scale that is no number has no panels. */
static void scales_that_are_no_numbers(void **state)
{
    (void)state;
    static const uint16_t bad[] = {0x7c00, 0xfc00, 0x7e00, 0xffff};
    for (size_t i = 0; i < 6; i++)
        for (size_t j = 0; j < SQ_COUNT(bad); j++) {
            if (types[i].exact) continue; /* their scales are copied; the logits will tell */
            fixture *blocks, *floats;
            squint_model *m;
            squint_msg msg = {""};
            make_twins(&types[i], &blocks, &floats);
            size_t size;
            uint8_t *const b = random_blocks(&types[i], D * F, 1, &size);
            memcpy(b + size - block_bytes(&types[i]) + types[i].scale, &bad[j], sizeof bad[j]);
            fixture_tensor(blocks, "blk.1.ffn_down.weight", 2, (const uint64_t[]){F, D}, types[i].type, b, size);
            assert_int_equal(fixture_open(&m, blocks, NULL, &msg), SQUINT_ERR_FORMAT);
            assert_non_null(strstr(msg.text, "tensor blk.1.ffn_down.weight at byte"));
            assert_non_null(strstr(msg.text, "NaN"));
            free(b);
            fixture_free(blocks);
            fixture_free(floats);
        }
}

/* ---- A pair as llama.cpp's converters make it ------------------------------------------------ */

/* Sums of a few hundred products in binary32 through four layers, against double precision. */
static const double FLOAT_BOUND = 1e-5;
/* Twelve products of activations of eight bits, 0.7 % each, through tower, projector and decoder: 2.4 %, with a margin
 * as above; requantised weights add 0.5 % a matrix, which such a sum hardly shows. */
static const double PAIR_BOUND = 0.045;

enum { MAX_IDS = 64 };

typedef struct golden_values {
    sq_gguf *file;
    uint32_t ids[MAX_IDS];
    uint32_t n_ids, n_vision, d, n_logits, n_vocab;
    const float *vision, *logits;
    const uint8_t *picture;
    uint32_t side;
} golden_values;

static golden_values read_golden(void)
{
    golden_values g = {.n_ids = 0};
    squint_msg msg;
    if (sq_gguf_open(&g.file, test_path("golden/foreign.golden.gguf"), NULL, &msg)) fail_msg("%s", msg.text);
    const sq_gguf_tensor *const ids_of = sq_gguf_find(g.file, "ids"), *const vision = sq_gguf_find(g.file, "vision"),
                                *const logits = sq_gguf_find(g.file, "logits"),
                                *const picture = sq_gguf_find(g.file, "picture");
    g.n_ids = (uint32_t)ids_of->ne[0];
    assert_true(g.n_ids <= MAX_IDS);
    memcpy(g.ids, ids_of->data, g.n_ids * sizeof *g.ids); /* -1 is SQ_IMAGE_TOKEN */
    g.d = (uint32_t)vision->ne[0];
    g.n_vision = (uint32_t)vision->ne[1];
    g.n_vocab = (uint32_t)logits->ne[0];
    g.n_logits = (uint32_t)logits->ne[1];
    g.vision = (const float *)(const void *)vision->data;
    g.logits = (const float *)(const void *)logits->data;
    g.picture = picture->data;
    g.side = (uint32_t)picture->ne[1];
    return g;
}

/* Relative errors of vision tokens and logits. */
static void errors_of(const squint_model *m, const golden_values *g, double *vision, double *logits)
{
    const sq_limits limits = {.max_rows = g->n_ids,
                              .max_tokens = g->n_ids,
                              .max_logits = g->n_logits,
                              .max_vision = g->n_vision,
                              .kv = SQ_KV_F32};
    squint_session *s;
    squint_msg msg;
    if (sq_session_open_limits(&s, m, &(squint_session_options){.threads = 1}, &limits, &msg) ||
        sq_session_picture(s, g->picture, g->side, g->side, 3 * g->side, &msg) || sq_session_encode(s, &msg) ||
        sq_session_forward(s, g->ids, g->n_ids, g->n_logits, &msg))
        fail_msg("%s", msg.text);
    assert_int_equal(s->n_vision, g->n_vision);
    *vision = sq_relative_rms(g->vision, s->vision, (size_t)g->n_vision * g->d);
    *logits = sq_relative_rms(g->logits, s->logits, (size_t)g->n_logits * g->n_vocab);
    squint_session_close(&s);
}

static const char *model_path(void) { return test_path("golden/foreign-model.gguf"); }
static const char *mmproj_path(void) { return test_path("golden/foreign-mmproj.gguf"); }

/* One file of all weights as F32. */
static fixture *floats_of_pair(void)
{
    sq_gguf *g;
    squint_msg msg;
    fixture *const f = fixture_read(model_path());
    if (sq_gguf_open_pair(&g, model_path(), mmproj_path(), NULL, &msg)) fail_msg("%s", msg.text);
    fixture_add(f, g, "");
    for (size_t i = 0; i < sq_gguf_n_tensors(g); i++) {
        const sq_gguf_tensor *const t = sq_gguf_tensor_at(g, i);
        const size_t n = (size_t)(t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3]);
        float *const floats = malloc(n * sizeof *floats);
        char name[64];
        snprintf(name, sizeof name, "%.*s", (int)t->name.len, t->name.s);
        sq_tensor_floats(t->type, t->data, floats, n);
        fixture_tensor(f, name, t->n_dims, t->ne, SQ_TENSOR_F32, floats, n * sizeof *floats);
        free(floats);
    }
    sq_gguf_close(&g);
    return f;
}

static void pair_of_llama_cpp(void **state)
{
    (void)state;
    golden_values g = read_golden();
    notes all = {.n = 0};
    squint_msg msg;
    squint_model *m;
    double vision, logits;
    const squint_model_options options = {.mmproj = mmproj_path(), .on_note = on_note, .note_user = &all};
    if (squint_model_open(&m, model_path(), &options, &msg)) fail_msg("%s", msg.text);
    errors_of(m, &g, &vision, &logits);
    if (!(vision < PAIR_BOUND && logits < PAIR_BOUND && logits > 1e-4))
        fail_msg("vision tokens %g, logits %g", vision, logits);
    assert_int_equal(all.n, 6); /* the tower's blocks, and five types */
    squint_model_close(&m);

    fixture *const f = floats_of_pair();
    m = fixture_model(f, NULL);
    errors_of(m, &g, &vision, &logits);
    if (!(vision < FLOAT_BOUND && logits < FLOAT_BOUND))
        fail_msg("as floats: vision tokens %g, logits %g", vision, logits);
    squint_model_close(&m);
    fixture_free(f);
    sq_gguf_close(&g.file);
}

/* Any byte of either half may be any other: a line or a model, no more. */
static void damaged_halves(void **state)
{
    (void)state;
    uint64_t seed = 3;
    size_t failed = 0;
    for (int i = 0; i < 120; i++) {
        size_t size;
        const bool second = i & 1;
        uint8_t *const bytes =
            read_test_file(second ? "golden/foreign-mmproj.gguf" : "golden/foreign-model.gguf", &size);
        const char *const path = temp_path(".gguf");
        const size_t head = second ? 3968 : 7968; /* where data begins: keys and names */
        if (i % 4 < 2)
            bytes[random_u64(&seed) % head] ^= (uint8_t)(1u << (random_u64(&seed) & 7));
        else
            size = random_u64(&seed) % size;
        FILE *const f = fopen(path, "wb");
        assert_int_equal(fwrite(bytes, 1, size, f), size);
        fclose(f);
        squint_model *m;
        squint_msg msg = {""};
        const squint_err err = squint_model_open(
            &m, second ? model_path() : path, &(squint_model_options){.mmproj = second ? path : mmproj_path()}, &msg);
        assert_true(!err || (msg.text[0] && !strchr(msg.text, '\n')));
        failed += err != SQUINT_OK;
        squint_model_close(&m);
        unlink(path);
        free(bytes);
    }
    assert_true(failed > 60 && failed < 120);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_are_close_and_logits_too),
        cmocka_unit_test(threads_requantise_alike),
        cmocka_unit_test(vectors_are_read_as_floats),
        cmocka_unit_test(requantising_is_told),
        cmocka_unit_test(scales_that_are_no_numbers),
        cmocka_unit_test(pair_of_llama_cpp),
        cmocka_unit_test(damaged_halves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
