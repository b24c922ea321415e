/*
 * The decoder against golden logits of p-MoD's own classes (PyTorch, float32), and against its formulas in double
 * precision: what a routed layer keeps, skips and weights, what stays in its cache, which files it refuses.
 * SPDX-License-Identifier: MIT
 */
#include "models/llava.h"
#include "tests/fixture.h"
#include "tests/reference.h"
#include "tests/support.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_N = REFERENCE_MAX_TOKENS, MAX_LAYERS = REFERENCE_MAX_LAYERS, D = 16 };

#define V SQ_IMAGE_TOKEN

/* Goldens have five decimals; the engine and PyTorch add in different orders: 2e-5, and half a unit of the fifth. */
static const double LOGIT_BOUND = 2.5e-5;
static const double SUM_BOUND = 1e-3;

/* ---- sessions and what they show ---- */

typedef struct layer_record {
    uint32_t n_targets, n_kept;
    float z[MAX_N], w[MAX_N];
    uint32_t kept[MAX_N]; /* rows that the layer runs */
    double sum;           /* of |x| after the layer */
    float x[MAX_N * D];
} layer_record;

typedef struct record {
    double embedded;
    layer_record layers[MAX_LAYERS];
} record;

static double abs_sum(const float *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += fabs((double)x[i]);
    return sum;
}

static void note(void *user, sq_trace_what what, int layer, const void *data, uint32_t rows, uint32_t cols)
{
    record *const r = user;
    layer_record *const l = layer < 0 ? NULL : &r->layers[layer];
    const size_t n = (size_t)rows * cols;
    switch (what) {
    case SQ_TRACE_EMBEDDED:
        r->embedded = abs_sum(data, n);
        break;
    case SQ_TRACE_LAYER:
        l->sum = abs_sum(data, n);
        memcpy(l->x, data, n * sizeof(float));
        break;
    case SQ_TRACE_SCORES:
        l->n_targets = cols;
        memcpy(l->z, data, n * sizeof(float));
        break;
    case SQ_TRACE_WEIGHTS:
        memcpy(l->w, data, n * sizeof(float));
        break;
    case SQ_TRACE_KEPT:
        l->n_kept = cols;
        memcpy(l->kept, data, n * sizeof(uint32_t));
        break;
    default:
        break;
    }
}

static const sq_limits roomy = {.max_rows = 40, .max_tokens = 60, .max_logits = 40, .max_vision = 24, .kv = SQ_KV_F32};

static squint_session *open_session(const squint_model *m, unsigned threads)
{
    squint_session *s;
    squint_msg msg;
    if (sq_session_open_limits(&s, m, &(squint_session_options){.threads = threads}, &roomy, &msg))
        fail_msg("%s", msg.text);
    fixture_values(s->vision, (size_t)roomy.max_vision * D, 2000, 0, 1);
    return s;
}

static void forward(squint_session *s, const uint32_t *ids, uint32_t n, uint32_t n_logits)
{
    squint_msg msg;
    if (sq_session_forward(s, ids, n, n_logits, &msg)) fail_msg("%s", msg.text);
}

static void assert_near(double got, double expected, double bound, const char *what)
{
    if (!(fabs(got - expected) <= bound)) fail_msg("%s: %.7g, not %.7g (bound %g)", what, got, expected, bound);
}

static void assert_all_near(const float *got, const double *expected, size_t n, double bound, const char *what)
{
    for (size_t i = 0; i < n; i++)
        assert_near((double)got[i], expected[i], bound, what);
}

static uint32_t kv_length(const squint_session *s, uint32_t layer) { return sq_llava_state_of(s)->kv[layer].n; }

static void assert_kv(const squint_session *s, const uint32_t *expected)
{
    for (uint32_t l = 0; l < s->model->n_layers; l++)
        assert_int_equal(kv_length(s, l), expected[l]);
}

/* The routable rows among those that a layer runs. */
static void assert_kept(const record *r, uint32_t layer, const uint32_t *ids, const uint32_t *expected, uint32_t n)
{
    const layer_record *const l = &r->layers[layer];
    uint32_t found = 0;
    for (uint32_t i = 0; i < l->n_kept; i++) {
        if (ids[l->kept[i]] != V) continue;
        assert_true(found < n);
        assert_int_equal(l->kept[i], expected[found]);
        found++;
    }
    assert_int_equal(found, n);
}

static uint32_t argmax(const float *logits)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < FIXTURE_IDS; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

/* Of the pieces that the goldens know. */
static double logit_sum(const squint_session *s, uint32_t rows)
{
    double sum = 0;
    for (uint32_t i = 0; i < rows; i++)
        sum += abs_sum(s->logits + (size_t)i * FIXTURE_VOCAB, FIXTURE_IDS);
    return sum;
}

static float *logits_of(const squint_session *s, uint32_t row) { return s->logits + (size_t)row * FIXTURE_VOCAB; }

/* ---- P1 and P2 ---- */

static const uint32_t p1_ids[] = {1, 7, V, V, V, V, V, V, V, V, 3, 9};
static const uint32_t p2_ids[] = {1, 7, 4, V, V, V, V, V, V, V, V, V, V, V, V, 3, V, V, V, V, V, V, V, V, 9, 2};
enum { P1_N = SQ_COUNT(p1_ids), P2_N = SQ_COUNT(p2_ids) };

static fixture *p1_fixture(void)
{
    fixture *f = fixture_decoder(4);
    fixture_routing(f, (const bool[]){false, true, false, true}, (const float[]){1, 0.5f, 1, 0.5f});
    return f;
}

/* shiftedcos_decay_0.85_0.15, factor 0.5 */
static fixture *released(fixture *f)
{
    bool is_mod[32];
    float ratio[32];
    for (int l = 0; l < 32; l++) {
        const double s = cos(3.14159265358979323846 * l / 31) / 2 + 0.5;
        is_mod[l] = s <= 0.85;
        ratio[l] = is_mod[l] ? (float)fmax(s, 0.15) : 1.0f;
    }
    fixture_routing(f, is_mod, ratio);
    return f;
}

static fixture *p2_fixture(void) { return released(fixture_decoder(32)); }

static void check_p1_prefill(squint_session *s, const record *r)
{
    static const double sums[] = {101.9348, 104.7332, 109.3056, 110.2325};
    static const double z1[] = {-0.0706, -0.17793, -0.01451, -0.16647, 0.08469, 0.11011, -0.06758, -0.11675};
    static const double w1[] = {0.985903, 0.964785, 0.997099, 0.967010, 1.016898, 1.021933, 0.986504, 0.976756};
    static const double z3[] = {0.05576, 0.10759, 0.09039, -0.0535, 0.00159, -0.2878, -0.12702, -0.12018};
    static const double last[] = {0.52874,  0.77091,  1.25986, 0.49135, 0.15701, -1.18383, -0.59805, -0.35008,
                                  -0.23793, -0.12602, 0.59748, 1.04952, 0.81238, 0.4677,   -0.29393, 0.03363};
    static const double second[] = {0.23673, -0.65334, -0.58048, 0.14963};
    assert_near(r->embedded, 97.2816, SUM_BOUND, "input");
    for (int l = 0; l < 4; l++)
        assert_near(r->layers[l].sum, sums[l], SUM_BOUND, "a layer's sum");
    assert_all_near(r->layers[1].z, z1, 8, LOGIT_BOUND, "layer 1 z");
    assert_all_near(r->layers[1].w, w1, 8, LOGIT_BOUND, "layer 1 w");
    assert_all_near(r->layers[3].z, z3, 8, LOGIT_BOUND, "layer 3 z");
    assert_kept(r, 1, p1_ids, (const uint32_t[]){4, 6, 7, 8}, 4);
    assert_kept(r, 3, p1_ids, (const uint32_t[]){2, 3, 4, 6}, 4);
    assert_kv(s, (const uint32_t[]){12, 8, 12, 8});
    assert_int_equal(s->kept[0], 8);
    assert_int_equal(s->kept[1], 4);
    assert_all_near(logits_of(s, 11), last, 16, LOGIT_BOUND, "logits[11]");
    assert_all_near(logits_of(s, 2), second, 4, LOGIT_BOUND, "logits[2]");
    assert_near(logit_sum(s, P1_N), 89.4516, SUM_BOUND, "logits");
}

static void check_p1_decode(squint_session *s)
{
    static const double first[] = {0.56068, 0.6051, 0.38044, 0.67163};
    static const double second[] = {0.42131, -0.3853, 0.65946, 0.04926};
    forward(s, (const uint32_t[]){5}, 1, 1);
    assert_all_near(s->logits, first, 4, LOGIT_BOUND, "decode 5");
    assert_int_equal(argmax(s->logits), 3);
    assert_kv(s, (const uint32_t[]){13, 9, 13, 9});
    forward(s, (const uint32_t[]){8}, 1, 1);
    assert_all_near(s->logits, second, 4, LOGIT_BOUND, "decode 8");
    assert_int_equal(argmax(s->logits), 12);
    assert_kv(s, (const uint32_t[]){14, 10, 14, 10});
    assert_int_equal(s->kept[1], 4); /* text that follows is not counted */
}

static void check_p1_text(squint_session *s)
{
    static const uint32_t text[] = {1, 7, 3, 9};
    static const double last[] = {0.1273,   0.53038,  1.35251, 0.33273, -0.07867, -0.99552, -0.58926, -0.0603,
                                  -0.45616, -0.06215, 0.79821, 0.58654, 1.06424,  0.83405,  0.05772,  0.32438};
    sq_session_reset(s);
    forward(s, text, 4, 1);
    assert_all_near(s->logits, last, 16, LOGIT_BOUND, "text only");
    assert_kv(s, (const uint32_t[]){4, 4, 4, 4});
}

static void check_p1(const fixture *f, const char *isa)
{
    squint_model *m = fixture_model(f, isa);
    squint_session *s = open_session(m, 2);
    record r = {0};
    s->trace = note;
    s->trace_user = &r;
    forward(s, p1_ids, P1_N, P1_N);
    check_p1_prefill(s, &r);
    check_p1_decode(s);
    check_p1_text(s);
    squint_session_close(&s);
    squint_model_close(&m);
}

static void check_p2(const fixture *f, const char *isa)
{
    static const double after[][2] = {{0, 216.4597}, {7, 279.6192}, {8, 290.948}, {15, 326.3014}, {31, 389.6893}};
    static const uint32_t kept[][18] = {{8, 16, 3, 4, 5, 6, 7, 8, 10, 12, 13, 16, 17, 18, 19, 20, 21, 22},
                                        {9, 16, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 17, 18, 19, 22, 23},
                                        {10, 15, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 19, 20, 21, 23},
                                        {11, 14, 4, 5, 7, 8, 9, 10, 12, 13, 16, 17, 18, 20, 22, 23},
                                        {30, 3, 7, 8, 16},
                                        {31, 3, 18, 19, 20}};
    uint32_t kv[] = {26, 26, 26, 26, 26, 26, 26, 26, 22, 22, 21, 20, 19, 18, 17, 16,
                     15, 14, 13, 12, 11, 10, 9,  9,  9,  9,  9,  9,  9,  9,  9,  9};
    static const double last[] = {-0.51815, -0.82883, -1.54834, -0.5663,  -0.13631, 0.35012, 0.2154,   -0.10163,
                                  -0.04474, -0.79636, -1.21484, -0.72934, -0.43364, 0.76969, -0.57691, 0.4073};
    static const double second[] = {-0.21713, -0.04622, -0.15759, -0.28381};
    static const double decode[][4] = {{-0.27605, -0.90061, -1.16767, 0.33224},
                                       {0.09232, -0.45219, -0.58918, -0.63993}};
    static const uint32_t next[] = {5, 8};
    squint_model *m = fixture_model(f, isa);
    squint_session *s = open_session(m, 1);
    record *r = calloc(1, sizeof *r);
    s->trace = note;
    s->trace_user = r;
    forward(s, p2_ids, P2_N, P2_N);
    assert_near(r->embedded, 210.0671, SUM_BOUND, "input");
    for (size_t i = 0; i < SQ_COUNT(after); i++)
        assert_near(r->layers[(int)after[i][0]].sum, after[i][1], SUM_BOUND, "a layer's sum");
    for (size_t i = 0; i < SQ_COUNT(kept); i++)
        assert_kept(r, kept[i][0], p2_ids, kept[i] + 2, kept[i][1]);
    assert_kv(s, kv);
    assert_all_near(logits_of(s, 25), last, 16, LOGIT_BOUND, "logits[25]");
    assert_all_near(logits_of(s, 2), second, 4, LOGIT_BOUND, "logits[2]");
    assert_near(logit_sum(s, P2_N), 190.7814, SUM_BOUND, "logits");
    for (int i = 0; i < 2; i++) {
        forward(s, &next[i], 1, 1);
        assert_all_near(s->logits, decode[i], 4, LOGIT_BOUND, "decode");
        assert_int_equal(argmax(s->logits), 13);
        for (int l = 0; l < 32; l++)
            kv[l]++;
        assert_kv(s, kv);
    }
    free(r);
    squint_session_close(&s);
    squint_model_close(&m);
}

static void test_p1(void **state)
{
    (void)state;
    fixture *f = p1_fixture();
    for (const char *const *isa = sq_kernels_names(); *isa; isa++)
        check_p1(f, *isa);
    fixture_interleave(f);
    for (const char *const *isa = sq_kernels_names(); *isa; isa++)
        check_p1(f, *isa);
    fixture_drop(f, "squint.rope_layout"); /* interleaved is what a file without the key has */
    check_p1(f, NULL);
    fixture_free(f);
}

static void test_p2(void **state)
{
    (void)state;
    fixture *f = p2_fixture();
    for (const char *const *isa = sq_kernels_names(); *isa; isa++)
        check_p2(f, *isa);
    fixture_interleave(f);
    check_p2(f, NULL);
    fixture_free(f);
}

/* ---- against the formulas ---- */

/* The values here are below 10 and pass through 4 layers in binary32: about 1e-6 relative, ten times that as the
 * bound. A rule broken changes them by 1e-2 and more. */
static const double REFERENCE_BOUND = 2e-5;

/* Logits, rows run and cache lengths of a whole prompt. */
static void check_against_reference(const fixture *f, const uint32_t *ids, uint32_t n)
{
    squint_model *m = fixture_model(f, NULL);
    squint_session *s = open_session(m, 1);
    record *r = calloc(1, sizeof *r);
    reference expected;
    s->trace = note;
    s->trace_user = r;
    forward(s, ids, n, n);
    reference_run(&expected, f, ids, n, s->vision);
    assert_kv(s, expected.n_kv);
    for (uint32_t l = 0; l < m->n_layers; l++) {
        uint32_t found = 0;
        if (!r->layers[l].n_targets) continue; /* a dense layer tells no choice */
        for (uint32_t i = 0; i < n; i++)
            if (expected.runs[l][i]) assert_int_equal(r->layers[l].kept[found++], i);
        assert_int_equal(found, r->layers[l].n_kept);
    }
    for (uint32_t i = 0; i < n * D; i++)
        assert_near((double)r->layers[m->n_layers - 1].x[i], expected.x[i], REFERENCE_BOUND, "x after the last layer");
    for (uint32_t i = 0; i < n * FIXTURE_VOCAB; i++)
        assert_near((double)s->logits[i], expected.logits[i], REFERENCE_BOUND, "logits");
    reference_free(&expected);
    free(r);
    squint_session_close(&s);
    squint_model_close(&m);
}

static fixture *routed(uint32_t n_layers, float ratio)
{
    bool is_mod[MAX_LAYERS];
    float ratios[MAX_LAYERS];
    fixture *f = fixture_decoder(n_layers);
    for (uint32_t l = 0; l < n_layers; l++) {
        is_mod[l] = true;
        ratios[l] = ratio;
    }
    fixture_routing(f, is_mod, ratios);
    return f;
}

/* All layers routed, layer 0 too, from nothing kept to all: of one image, of two with text between, of images at
 * the end and at the start, of a single vision token (which no ratio below 1 keeps), and of images alone. */
static void test_all_ratios(void **state)
{
    (void)state;
    static const float ratios[] = {0, 0.15f, 0.5f, 0.8f, 0.85f, 1};
    static const struct {
        uint32_t n, ids[16];
    } prompts[] = {{12, {1, 7, V, V, V, V, V, V, V, V, 3, 9}},
                   {16, {1, 7, 4, V, V, V, V, V, 3, V, V, V, V, V, V, 9}},
                   {9, {V, V, V, V, 5, 6, 7, 8, 9}},
                   {8, {1, 3, V, V, V, V, V, V}},
                   {3, {1, V, 3}},
                   {5, {V, V, V, V, V}}};
    for (size_t i = 0; i < SQ_COUNT(ratios); i++) {
        fixture *f = routed(4, ratios[i]);
        for (size_t j = 0; j < SQ_COUNT(prompts); j++)
            check_against_reference(f, prompts[j].ids, prompts[j].n);
        fixture_free(f);
    }
}

/* Scores so low that tanh is saturated and all weights are 0.8: the scores still choose. */
static void test_saturated_scores(void **state)
{
    (void)state;
    const float bias = -30;
    fixture *f = p1_fixture();
    fixture_tensor(f, "blk.1.mod_router.bias", 1, (const uint64_t[]){1}, SQ_TENSOR_F32, &bias, sizeof bias);
    fixture_tensor(f, "blk.3.mod_router.bias", 1, (const uint64_t[]){1}, SQ_TENSOR_F32, &bias, sizeof bias);
    check_against_reference(f, p1_ids, P1_N);
    fixture_free(f);
}

/* No image: dense in every layer, with the same bits as a model without routers. */
static void test_text_is_dense(void **state)
{
    (void)state;
    static const uint32_t text[] = {1, 7, 3, 9, 4};
    fixture *with = routed(3, 0.5f), *without = fixture_decoder(3);
    squint_model *m[] = {fixture_model(with, NULL), fixture_model(without, NULL)};
    squint_session *s[] = {open_session(m[0], 1), open_session(m[1], 1)};
    record r = {0};
    s[0]->trace = note;
    s[0]->trace_user = &r;
    for (int i = 0; i < 2; i++)
        forward(s[i], text, 5, 5);
    assert_memory_equal(s[0]->logits, s[1]->logits, 5 * FIXTURE_VOCAB * sizeof(float));
    assert_kv(s[0], (const uint32_t[]){5, 5, 5});
    assert_int_equal(r.layers[1].n_targets, 0);
    for (int i = 0; i < 2; i++) {
        squint_session_close(&s[i]);
        squint_model_close(&m[i]);
    }
    fixture_free(with);
    fixture_free(without);
}

/* Ratio 1 keeps all and still weights them: between dense and routed logits lies more than rounding. */
static void test_ratio_one_is_weighted(void **state)
{
    (void)state;
    fixture *f[] = {routed(4, 1), fixture_decoder(4)};
    float logits[2][FIXTURE_VOCAB];
    for (int i = 0; i < 2; i++) {
        squint_model *m = fixture_model(f[i], NULL);
        squint_session *s = open_session(m, 1);
        forward(s, p1_ids, P1_N, 1);
        assert_kv(s, (const uint32_t[]){12, 12, 12, 12});
        memcpy(logits[i], s->logits, sizeof logits[i]);
        squint_session_close(&s);
        squint_model_close(&m);
        fixture_free(f[i]);
    }
    double largest = 0;
    for (int i = 0; i < FIXTURE_VOCAB; i++) { /* with fmax GCC 12 for ARM fails of an internal error */
        const double apart = fabs((double)logits[0][i] - (double)logits[1][i]);
        largest = apart > largest ? apart : largest;
    }
    assert_true(largest > 1e-3);
}

/* A skipped token is its weight times itself: one rounded product, nothing else. */
static void test_skipped_is_scaled(void **state)
{
    (void)state;
    fixture *f = p1_fixture();
    squint_model *m = fixture_model(f, NULL);
    squint_session *s = open_session(m, 1);
    record r = {0};
    s->trace = note;
    s->trace_user = &r;
    forward(s, p1_ids, P1_N, 1);
    static const uint32_t skipped[] = {2, 3, 5, 9};
    for (size_t i = 0; i < SQ_COUNT(skipped); i++)
        for (uint32_t j = 0; j < D; j++) {
            const float before = r.layers[0].x[skipped[i] * D + j], w = r.layers[1].w[skipped[i] - 2];
            assert_true(r.layers[1].x[skipped[i] * D + j] == before * w);
        }
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

/* Rows wait for their factors through many layers, a dense one among them, and a trace shows them multiplied: who
 * watches gets the same bits. What is muted is not told. */
static void test_traces_change_nothing(void **state)
{
    (void)state;
    enum { N_LAYERS = 12 };
    bool is_mod[N_LAYERS];
    float ratio[N_LAYERS], logits[3][P2_N * FIXTURE_VOCAB];
    for (int l = 0; l < N_LAYERS; l++) {
        is_mod[l] = l != 7;
        ratio[l] = l == 7 ? 1 : 0.25f;
    }
    fixture *f = fixture_decoder(N_LAYERS);
    fixture_routing(f, is_mod, ratio);
    check_against_reference(f, p2_ids, P2_N);
    squint_model *m = fixture_model(f, NULL);
    for (int i = 0; i < 3; i++) {
        squint_session *s = open_session(m, 1);
        record *r = calloc(1, sizeof *r);
        s->trace = i ? note : NULL;
        s->trace_user = r;
        s->trace_mute = i == 2 ? 1u << SQ_TRACE_LAYER : 0;
        forward(s, p2_ids, P2_N, P2_N);
        memcpy(logits[i], s->logits, sizeof logits[i]);
        assert_true((r->layers[5].sum > 0) == (i == 1));
        assert_int_equal(r->layers[5].n_kept, i ? P2_N - 20 + 5 : 0);
        free(r);
        squint_session_close(&s);
    }
    assert_memory_equal(logits[0], logits[1], sizeof logits[0]);
    assert_memory_equal(logits[0], logits[2], sizeof logits[0]);
    squint_model_close(&m);
    fixture_free(f);
}

/* Logits of a row that layers skipped are those of the row times its weights. The norm before them hides a weight's
 * size but not its sign: here all weights are below 0. */
static void test_logits_of_skipped_rows(void **state)
{
    (void)state;
    fixture *f = routed(3, 0.25f);
    fixture_f32(f, "mod.norm.bias", -1);
    squint_model *m = fixture_model(f, NULL);
    squint_session *s = open_session(m, 1);
    record *r = calloc(1, sizeof *r);
    s->trace = note;
    s->trace_user = r;
    forward(s, p1_ids, P1_N, P1_N);
    const float *const norm = fixture_floats(f, "output_norm.weight"), *const w = fixture_floats(f, "output.weight");
    for (uint32_t i = 0; i < P1_N; i++) {
        const float *const x = r->layers[2].x + (size_t)i * D;
        double sum = 0, logit = 0;
        for (uint32_t j = 0; j < D; j++) {
            sum += (double)x[j] * x[j];
            logit += (double)w[j] * norm[j] * x[j];
        }
        assert_near((double)logits_of(s, i)[0], logit / sqrt(sum / D + 1e-5), REFERENCE_BOUND, "the logit of a row");
    }
    free(r);
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

/* Three vision tokens under the released schedule: 3, then 2, 1 and 0 of them run. */
static void test_few_vision_tokens(void **state)
{
    (void)state;
    static const uint32_t ids[] = {1, 7, V, V, V, 3, 9, 5};
    fixture *f = p2_fixture();
    squint_model *m = fixture_model(f, NULL);
    squint_session *s = open_session(m, 1);
    forward(s, ids, SQ_COUNT(ids), 1);
    for (uint32_t l = 0; l < 32; l++) {
        const uint32_t kept = l < 8 ? 3 : l < 13 ? 2 : l < 19 ? 1 : 0;
        assert_int_equal(s->kept[l], kept);
        assert_int_equal(kv_length(s, l), 5 + kept);
    }
    squint_session_close(&s);
    squint_model_close(&m);
    check_against_reference(f, ids, SQ_COUNT(ids));
    fixture_free(f);
}

/* Functions of mod.norm.*: what the file says is what weights the tokens. */
static void test_norms_of_files(void **state)
{
    (void)state;
    static const char *const types[] = {"tanh", "sigmoid", "softmax", "none"};
    fixture *f = p1_fixture();
    fixture_f32(f, "mod.norm.scale", 0.5f);
    fixture_f32(f, "mod.norm.bias", 0.25f);
    for (size_t t = 0; t < SQ_COUNT(types); t++) {
        fixture_str(f, "mod.norm.type", types[t]);
        squint_model *m = fixture_model(f, NULL);
        squint_session *s = open_session(m, 1);
        record r = {0};
        s->trace = note;
        s->trace_user = &r;
        forward(s, p1_ids, P1_N, 1);
        double sum = 0;
        for (int i = 0; i < 8; i++)
            sum += exp((double)r.layers[1].z[i]);
        for (int i = 0; i < 8; i++) {
            const double z = (double)r.layers[1].z[i];
            const double g[] = {tanh(z), 1 / (1 + exp(-z)), exp(z) / sum, z};
            assert_near((double)r.layers[1].w[i], 0.5 * g[t] + 0.25, 1e-6, types[t]); /* a few roundings of 1 */
        }
        squint_session_close(&s);
        squint_model_close(&m);
    }
    fixture_free(f);
}

/* ---- passes ---- */

/* Text after the last image: appended in one pass, in several, or part of the prompt, it gives the same logits. */
static void test_text_after_the_image(void **state)
{
    (void)state;
    static const uint32_t whole[] = {1, 7, V, V, V, V, V, V, V, V, 3, 9, 5, 8};
    static const double after5[] = {0.56068, 0.6051, 0.38044, 0.67163}, after8[] = {0.42131, -0.3853, 0.65946, 0.04926};
    fixture *f = p1_fixture();
    squint_model *m = fixture_model(f, NULL);
    squint_session *s = open_session(m, 1);
    forward(s, whole, 14, 2);
    assert_kv(s, (const uint32_t[]){14, 10, 14, 10});
    assert_all_near(logits_of(s, 0), after5, 4, LOGIT_BOUND, "position 12 of a prompt");
    assert_all_near(logits_of(s, 1), after8, 4, LOGIT_BOUND, "position 13 of a prompt");

    sq_session_reset(s);
    forward(s, whole, 10, 1);
    forward(s, whole + 10, 4, 2);
    assert_kv(s, (const uint32_t[]){14, 10, 14, 10});
    assert_all_near(logits_of(s, 0), after5, 4, LOGIT_BOUND, "position 12, appended");
    assert_all_near(logits_of(s, 1), after8, 4, LOGIT_BOUND, "position 13, appended");
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

/* The first image may follow text that is cached: text rows do not depend on what is routed. */
static void test_text_before_the_image(void **state)
{
    (void)state;
    fixture *f = p1_fixture();
    squint_model *m = fixture_model(f, NULL);
    squint_session *s = open_session(m, 1);
    forward(s, p1_ids, 2, 0);
    forward(s, p1_ids + 2, P1_N - 2, 1);
    static const double last[] = {0.52874, 0.77091, 1.25986, 0.49135};
    assert_all_near(s->logits, last, 4, LOGIT_BOUND, "image after cached text");
    assert_kv(s, (const uint32_t[]){12, 8, 12, 8});
    assert_int_equal(sq_session_rewind(s, 9, NULL), SQUINT_ERR_ARGUMENT);
    assert_int_equal(sq_session_rewind(s, 10, NULL), SQUINT_OK);
    assert_kv(s, (const uint32_t[]){10, 6, 10, 6});
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

/* A later image would change what earlier ones keep: refused, and nothing is done. */
static void test_second_image_pass_is_refused(void **state)
{
    (void)state;
    fixture *f = p1_fixture();
    squint_model *m = fixture_model(f, NULL);
    squint_session *s = open_session(m, 1);
    squint_msg msg;
    forward(s, p1_ids, P1_N, 1);
    assert_int_equal(sq_session_forward(s, (const uint32_t[]){V}, 1, 1, &msg), SQUINT_ERR_ARGUMENT);
    assert_non_null(strstr(msg.text, "one pass"));
    assert_int_equal(s->n_past, P1_N);
    check_p1_decode(s);
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

static void test_rewind(void **state)
{
    (void)state;
    static const uint32_t other[] = {4, 4, 6};
    fixture *f = p1_fixture();
    squint_model *m = fixture_model(f, NULL);
    squint_session *s = open_session(m, 1);
    squint_msg msg;
    forward(s, p1_ids, P1_N, 1);
    forward(s, other, 3, 1);
    assert_int_equal(sq_session_rewind(s, P1_N, &msg), SQUINT_OK);
    assert_kv(s, (const uint32_t[]){12, 8, 12, 8});
    check_p1_decode(s);
    assert_int_equal(sq_session_rewind(s, P1_N + 3, &msg), SQUINT_ERR_ARGUMENT);
    assert_int_equal(sq_session_rewind(s, 9, &msg), SQUINT_ERR_ARGUMENT);
    assert_int_equal(sq_session_rewind(s, 10, &msg), SQUINT_OK); /* just after the last vision token */
    forward(s, p1_ids + 10, 2, 1);
    check_p1_decode(s);
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

static bool stop_at_layer_2(void *user, squint_stage stage, unsigned done, unsigned total)
{
    (void)user;
    (void)total;
    return stage != SQUINT_STAGE_PREFILL || done < 2;
}

/* What fails half way leaves a session that works again after a reset. */
static void test_session_after_failures(void **state)
{
    (void)state;
    fixture *f = p1_fixture();
    squint_model *m = fixture_model(f, NULL);
    squint_session *s = open_session(m, 1);
    squint_msg msg;
    record r = {0};

    s->on_progress = stop_at_layer_2;
    assert_int_equal(sq_session_forward(s, p1_ids, P1_N, 1, &msg), SQUINT_ERR_CANCELLED);
    s->on_progress = NULL;
    atomic_store(&s->cancel, false);
    assert_int_equal(sq_session_forward(s, p1_ids, 1, 1, &msg), SQUINT_ERR_ARGUMENT);
    assert_int_equal(sq_session_rewind(s, 0, &msg), SQUINT_ERR_ARGUMENT);
    sq_session_reset(s);

    const float good = s->vision[3 * D + 5];
    s->vision[3 * D + 5] = NAN;
    assert_int_equal(sq_session_forward(s, p1_ids, P1_N, 1, &msg), SQUINT_ERR_NUMERIC);
    assert_non_null(strstr(msg.text, "is NaN"));
    sq_session_reset(s);

    s->vision[3 * D + 5] = good;
    s->trace = note;
    s->trace_user = &r;
    forward(s, p1_ids, P1_N, P1_N);
    check_p1_prefill(s, &r);
    check_p1_decode(s);
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

static void test_limits(void **state)
{
    (void)state;
    static const sq_limits tight = {
        .max_rows = 12, .max_tokens = 14, .max_logits = 2, .max_vision = 8, .kv = SQ_KV_F32};
    static const uint32_t many[] = {1, V, V, V, V, V, V, V, V, V};
    fixture *f = p1_fixture();
    squint_model *m = fixture_model(f, NULL);
    squint_session *s;
    squint_msg msg;
    assert_int_equal(sq_session_open_limits(&s, m, NULL, &tight, &msg), SQUINT_OK);
    fixture_values(s->vision, 8 * D, 2000, 0, 1);
    assert_int_equal(sq_session_forward(s, many, 10, 1, &msg), SQUINT_ERR_LIMIT); /* nine vision tokens */
    assert_int_equal(sq_session_forward(s, p1_ids, 0, 0, &msg), SQUINT_ERR_LIMIT);
    assert_int_equal(sq_session_forward(s, p1_ids, 12, 3, &msg), SQUINT_ERR_LIMIT);
    assert_int_equal(sq_session_forward(s, p2_ids, 13, 1, &msg), SQUINT_ERR_LIMIT);
    assert_int_equal(sq_session_forward(s, (const uint32_t[]){1, FIXTURE_VOCAB}, 2, 1, &msg), SQUINT_ERR_ARGUMENT);
    assert_non_null(strstr(msg.text, "272"));
    forward(s, p1_ids, 12, 1);
    forward(s, (const uint32_t[]){5}, 1, 1);
    forward(s, (const uint32_t[]){8}, 1, 1);
    static const double after8[] = {0.42131, -0.3853, 0.65946, 0.04926};
    assert_all_near(s->logits, after8, 4, LOGIT_BOUND, "the last token that fits");
    assert_int_equal(sq_session_forward(s, (const uint32_t[]){8}, 1, 1, &msg), SQUINT_ERR_LIMIT);
    assert_int_equal(s->n_past, 14);
    sq_session_reset(s); /* text alone may take no vision token's place */
    assert_int_equal(sq_session_forward(s, (const uint32_t[]){1, 3, 3, 3, 3, 3, 3}, 7, 1, &msg), SQUINT_ERR_LIMIT);
    forward(s, (const uint32_t[]){1, 3, 3, 3, 3, 3}, 6, 1);
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

static void test_threads_give_the_same_bits(void **state)
{
    (void)state;
    fixture *f = p2_fixture();
    squint_model *m = fixture_model(f, NULL);
    float *first = malloc(P2_N * FIXTURE_VOCAB * sizeof *first);
    for (unsigned threads = 1; threads <= 3; threads++) {
        squint_session *s = open_session(m, threads);
        forward(s, p2_ids, P2_N, P2_N);
        if (threads == 1) memcpy(first, s->logits, P2_N * FIXTURE_VOCAB * sizeof *first);
        assert_memory_equal(first, s->logits, P2_N * FIXTURE_VOCAB * sizeof *first);
        squint_session_close(&s);
    }
    free(first);
    squint_model_close(&m);
    fixture_free(f);
}

/* Logits of the P1 case with a cache of `kv`, whose rounding may move them by `bound`, and its bytes: 12 + 8 + 12 + 8
 * entries of two heads of keys and of values. */
static void check_cache(sq_kv_type kv, double bound, size_t head_bytes)
{
    sq_limits limits = roomy;
    limits.kv = kv;
    fixture *f = p1_fixture();
    squint_model *m = fixture_model(f, NULL);
    squint_session *s;
    assert_int_equal(sq_session_open_limits(&s, m, NULL, &limits, NULL), SQUINT_OK);
    fixture_values(s->vision, 24 * D, 2000, 0, 1);
    forward(s, p1_ids, P1_N, 1);
    static const double last[] = {0.52874, 0.77091, 1.25986, 0.49135};
    assert_all_near(s->logits, last, 4, bound, "cache");
    squint_session *f32 = open_session(m, 1);
    forward(f32, p1_ids, P1_N, 1);
    assert_memory_not_equal(s->logits, f32->logits, 4 * sizeof(float));
    squint_session_close(&f32);
    assert_int_equal(sq_session_kv_bytes(s), (12 + 8 + 12 + 8) * 2 * 2 * head_bytes);
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

/* Binary16 rounds values of about 1 by 2^-11, int8 in blocks by 2^-8: eight times as much. */
static void test_f16_cache(void **state)
{
    (void)state;
    check_cache(SQ_KV_F16, 3e-3, 4 * 2);
}

static void test_q8_cache(void **state)
{
    (void)state;
    check_cache(SQ_KV_Q8, 8 * 3e-3, sizeof(sq_block_q8_0));
}

/* 576 vision and 64 text tokens under the released schedule: no layer's cache has room for more than it can hold. */
static void test_cache_capacity(void **state)
{
    (void)state;
    static const uint32_t expected[] = {640, 640, 640, 640, 640, 640, 640, 640, 550, 528, 504, 478, 452, 424, 395, 366,
                                        337, 308, 279, 251, 225, 199, 175, 153, 150, 150, 150, 150, 150, 150, 150, 150};
    static const sq_limits limits = {
        .max_rows = 1, .max_tokens = 640, .max_logits = 1, .max_vision = 576, .kv = SQ_KV_F16};
    fixture *f = p2_fixture();
    squint_model *m = fixture_model(f, NULL);
    squint_session *s;
    uint32_t sum = 0;
    assert_int_equal(sq_session_open_limits(&s, m, NULL, &limits, NULL), SQUINT_OK);
    for (uint32_t l = 0; l < 32; l++) {
        assert_int_equal(sq_llava_state_of(s)->kv[l].capacity, expected[l]);
        sum += sq_llava_state_of(s)->kv[l].capacity;
    }
    assert_int_equal(sum, 11944);
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

/* LLaVA-NeXT's 2880 vision tokens run through it. The paper says that a cache shrinks to 53.75 %, the mean of the
 * ratios; as a count of tokens is a whole number, 49,528 of 92,160 entries for vision are 8 less. */
static void test_next_cache(void **state)
{
    (void)state;
    enum { N = 2880 + 64, ENTRY = 2 * 16 * 2 };
    static const uint32_t expected[] = {2944, 2944, 2944, 2944, 2944, 2944, 2944, 2944, 2496, 2385, 2265,
                                        2138, 2004, 1864, 1722, 1576, 1431, 1285, 1143, 1003, 869,  742,
                                        622,  511,  496,  496,  496,  496,  496,  496,  496,  496};
    static const sq_limits limits = {
        .max_rows = N, .max_tokens = N, .max_logits = 1, .max_vision = 2880, .kv = SQ_KV_F16};
    static uint32_t ids[N];
    fixture *f = released(fixture_decoder_of(&(fixture_shape){32, 16, 16, 1, 1}));
    squint_model *m = fixture_model(f, NULL);
    squint_session *s;
    for (uint32_t i = 0; i < N; i++)
        ids[i] = i < 34 ? 1 + i % 9 : i < 34 + 2880 ? V : 5;
    assert_int_equal(sq_session_open_limits(&s, m, NULL, &limits, NULL), SQUINT_OK);
    for (uint32_t l = 0; l < 32; l++)
        assert_int_equal(sq_llava_state_of(s)->kv[l].capacity, expected[l]);
#if !defined(__aarch64__) /* a minute of an emulator's time */
    fixture_values(s->vision, (size_t)2880 * D, 2000, 0, 1);
    forward(s, ids, N, 1);
    for (uint32_t l = 0; l < 32; l++) {
        assert_int_equal(kv_length(s, l), expected[l]);
        assert_int_equal(s->kept[l], expected[l] - 64);
    }
    const size_t text = (size_t)32 * 64 * ENTRY;
    assert_int_equal(sq_session_kv_bytes(s), (size_t)51576 * ENTRY);
    assert_int_equal(sq_session_kv_bytes(s) - text, (size_t)49528 * ENTRY);
    assert_int_equal(sq_session_kv_bytes_dense(s), (size_t)94208 * ENTRY);
    assert_near((double)(sq_session_kv_bytes(s) - text) / (double)(sq_session_kv_bytes_dense(s) - text), 0.5375,
                24.0 / 92160,
                "what is left of the vision entries"); /* a routed layer loses less than one to rounding */
#else
    (void)ids;
#endif
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

/* 20 vision tokens through a cache of exactly the size that they need, to the last entry. */
static void test_exact_capacity(void **state)
{
    (void)state;
    static const sq_limits limits = {
        .max_rows = P2_N, .max_tokens = P2_N, .max_logits = 1, .max_vision = 20, .kv = SQ_KV_F32};
    fixture *f = p2_fixture();
    squint_model *m = fixture_model(f, NULL);
    squint_session *s;
    assert_int_equal(sq_session_open_limits(&s, m, NULL, &limits, NULL), SQUINT_OK);
    fixture_values(s->vision, 20 * D, 2000, 0, 1);
    forward(s, p2_ids, P2_N, 1);
    static const double last[] = {-0.51815, -0.82883, -1.54834, -0.5663};
    assert_all_near(s->logits, last, 4, LOGIT_BOUND, "a full cache");
    for (uint32_t l = 0; l < 32; l++)
        assert_int_equal(kv_length(s, l), sq_llava_state_of(s)->kv[l].capacity);
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

/* Multiply-adds by the formula: m (4 matrices of attention, 3 of the MLP), and 2 a key and query dimension. */
static void test_macs(void **state)
{
    (void)state;
    fixture *f = p1_fixture();
    squint_model *m = fixture_model(f, NULL);
    squint_session *s = open_session(m, 1);
    forward(s, p1_ids, P1_N, 1);
    const double row = 16.0 * 16 * 2 + 16.0 * 8 * 2 + 3.0 * 16 * 24;
    const double dense = 12 * row + 2.0 * 16 * (12 * 13 / 2), mod = 8 * row + 2.0 * 16 * (8 * 9 / 2);
    assert_true(s->macs_dense == 4 * dense);
    assert_true(s->macs == 2 * dense + 2 * mod);
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

/* ---- files ---- */

/* Opening fails with this error and a message that says this word. */
static void assert_refused(const fixture *f, squint_err err, const char *word)
{
    squint_model *m;
    squint_msg msg;
    const squint_err got = fixture_open(&m, f, NULL, &msg);
    if (got != err) fail_msg("%s: error %d, not %d (%s)", word, got, err, got ? msg.text : "it opened");
    assert_null(m);
    if (!strstr(msg.text, word) || !strstr(msg.text, ".gguf"))
        fail_msg("\"%s\" does not name %s and the file", msg.text, word);
}

static void test_keys_that_must_be(void **state)
{
    (void)state;
    static const char *const names[] = {"llama.context_length",
                                        "llama.embedding_length",
                                        "llama.block_count",
                                        "llama.feed_forward_length",
                                        "llama.attention.head_count",
                                        "llama.attention.layer_norm_rms_epsilon",
                                        "mod.version",
                                        "mod.layer_is_mod",
                                        "mod.layer_ratio",
                                        "mod.norm.type",
                                        "mod.norm.scale",
                                        "mod.norm.bias",
                                        "tokenizer.ggml.model",
                                        "tokenizer.ggml.scores",
                                        "tokenizer.ggml.token_type",
                                        "blk.1.mod_router.weight",
                                        "blk.2.attn_q.weight",
                                        "blk.3.ffn_down.weight",
                                        "blk.0.attn_norm.weight",
                                        "output_norm.weight",
                                        "token_embd.weight"};
    for (size_t i = 0; i < SQ_COUNT(names); i++) {
        fixture *f = p1_fixture();
        fixture_drop(f, names[i]);
        assert_refused(f, SQUINT_ERR_FORMAT, names[i]);
        fixture_free(f);
    }
}

/* And what may be left out changes nothing. */
static void test_keys_that_may_be_absent(void **state)
{
    (void)state;
    static const char *const names[] = {"llama.vocab_size",     "llama.rope.dimension_count",
                                        "llama.rope.freq_base", "mod.mode",
                                        "mod.router.input",     "mod.router.outputs",
                                        "mod.router.shared",    "mod.target",
                                        "mod.weight.apply",     "mod.position",
                                        "mod.prefill.select",   "mod.decode.rule",
                                        "mod.decode.position"};
    fixture *f = p1_fixture();
    for (size_t i = 0; i < SQ_COUNT(names); i++)
        fixture_drop(f, names[i]);
    check_p1(f, NULL);
    fixture_free(f);
}

static void test_words_that_mean_another_method(void **state)
{
    (void)state;
    static const struct {
        const char *key, *value;
    } words[] = {{"mod.type", "gamma"},
                 {"mod.mode", "gamma-released"},
                 {"mod.router.input", "attn_norm"},
                 {"mod.weight.apply", "attn+mlp"},
                 {"mod.position", "compressed"},
                 {"mod.prefill.select", "threshold"},
                 {"mod.decode.rule", "always"},
                 {"mod.decode.position", "local"},
                 {"mod.target", "all"},
                 {"llama.rope.scaling.type", "linear"},
                 {"general.architecture", "gpt2"},
                 {"squint.chat.template", "alpaca"}};
    for (size_t i = 0; i < SQ_COUNT(words); i++) {
        fixture *f = p1_fixture();
        fixture_str(f, words[i].key, words[i].value);
        assert_refused(f, SQUINT_ERR_UNSUPPORTED, words[i].key);
        fixture_free(f);
    }
}

static void test_values_out_of_range(void **state)
{
    (void)state;
    static const struct {
        const char *key;
        float value;
    } floats[] = {{"llama.attention.layer_norm_rms_epsilon", 0}, {"llama.rope.freq_base", -1}};
    static const struct {
        const char *key;
        uint32_t value;
    } ints[] = {{"mod.version", 2},
                {"mod.version", 0},
                {"mod.router.outputs", 2},
                {"llama.attention.head_count", 0},
                {"llama.attention.head_count_kv", 3},
                {"llama.attention.head_count_kv", 8},
                {"llama.block_count", 0},
                {"llama.block_count", 100000},
                {"llama.context_length", 0},
                {"llama.rope.dimension_count", 3},
                {"llama.vocab_size", 0}};
    for (size_t i = 0; i < SQ_COUNT(floats); i++) {
        fixture *f = p1_fixture();
        fixture_f32(f, floats[i].key, floats[i].value);
        assert_refused(f, SQUINT_ERR_FORMAT, floats[i].key);
        fixture_free(f);
    }
    for (size_t i = 0; i < SQ_COUNT(ints); i++) {
        fixture *f = p1_fixture();
        fixture_u32(f, ints[i].key, ints[i].value);
        assert_refused(f, SQUINT_ERR_FORMAT, ints[i].key);
        fixture_free(f);
    }
    static const char *const enumerations[] = {"mod.norm.type", "squint.rope_layout"};
    for (size_t i = 0; i < SQ_COUNT(enumerations); i++) {
        fixture *f = p1_fixture();
        fixture_str(f, enumerations[i], "tanh_2");
        assert_refused(f, SQUINT_ERR_FORMAT, enumerations[i]);
        fixture_free(f);
    }
}

static void test_ratios_of_files(void **state)
{
    (void)state;
    static const float wrong[] = {-0.1f, 1.1f, NAN, INFINITY};
    fixture *f = p1_fixture();
    for (size_t i = 0; i < SQ_COUNT(wrong); i++) {
        fixture_f32s(f, "mod.layer_ratio", (const float[]){1, 0.5f, 1, wrong[i]}, 4);
        assert_refused(f, SQUINT_ERR_FORMAT, "mod.layer_ratio");
    }
    fixture_f32s(f, "mod.layer_ratio", (const float[]){1, 0.5f, 1}, 3);
    assert_refused(f, SQUINT_ERR_FORMAT, "mod.layer_ratio");
    fixture_f32s(f, "mod.layer_ratio", (const float[]){1, 0.5f, 1, 0.5f}, 4);
    fixture_bools(f, "mod.layer_is_mod", (const bool[]){0, 1, 0, 1, 1}, 5);
    assert_refused(f, SQUINT_ERR_FORMAT, "mod.layer_is_mod");
    fixture_free(f);
}

static void test_routers_of_files(void **state)
{
    (void)state;
    uint16_t half[D] = {0};
    float wide[2 * D] = {0};
    fixture *f = p1_fixture();
    fixture_tensor(f, "blk.1.mod_router.weight", 2, (const uint64_t[]){D, 1}, SQ_TENSOR_F16, half, sizeof half);
    assert_refused(f, SQUINT_ERR_FORMAT, "blk.1.mod_router.weight"); /* only F32 */
    fixture_tensor(f, "blk.1.mod_router.weight", 2, (const uint64_t[]){D, 2}, SQ_TENSOR_F32, wide, sizeof wide);
    assert_refused(f, SQUINT_ERR_FORMAT, "blk.1.mod_router.weight");
    fixture_weights(f, "blk.1.mod_router.weight", D, 1, 25, 0, 0.1);
    fixture_weights(f, "blk.2.mod_router.weight", D, 1, 41, 0, 0.1); /* layer 2 is dense */
    assert_refused(f, SQUINT_ERR_FORMAT, "blk.2.mod_router.weight");
    fixture_drop(f, "blk.2.mod_router.weight");
    fixture_weights(f, "blk.2.mod_router.bias", 1, 0, 42, 0, 0.1);
    assert_refused(f, SQUINT_ERR_FORMAT, "blk.2.mod_router");
    fixture_free(f);

    f = p1_fixture();
    fixture_bool(f, "mod.router.shared", true);
    assert_refused(f, SQUINT_ERR_UNSUPPORTED, "mod.router.shared");
    fixture_free(f);
}

/* Routers without bias are allowed, and equal to ones with a bias of 0. */
static void test_router_without_bias(void **state)
{
    (void)state;
    const float zero = 0;
    fixture *f = p1_fixture();
    for (int layer = 1; layer <= 3; layer += 2) {
        char name[32];
        snprintf(name, sizeof name, "blk.%d.mod_router.bias", layer);
        fixture_tensor(f, name, 1, (const uint64_t[]){1}, SQ_TENSOR_F32, &zero, sizeof zero);
    }
    check_against_reference(f, p1_ids, P1_N);
    squint_model *m[2] = {fixture_model(f, NULL)};
    fixture_drop(f, "blk.1.mod_router.bias");
    fixture_drop(f, "blk.3.mod_router.bias");
    m[1] = fixture_model(f, NULL);
    float logits[2][FIXTURE_VOCAB];
    for (int i = 0; i < 2; i++) {
        squint_session *s = open_session(m[i], 1);
        forward(s, p1_ids, P1_N, 1);
        memcpy(logits[i], s->logits, sizeof logits[i]);
        squint_session_close(&s);
        squint_model_close(&m[i]);
    }
    assert_memory_equal(logits[0], logits[1], sizeof logits[0]);
    fixture_free(f);
}

/* A file without mod.* is a dense LLaMA. */
static void test_dense_file(void **state)
{
    (void)state;
    fixture *f = fixture_decoder(3);
    check_against_reference(f, p1_ids, P1_N);
    fixture_weights(f, "blk.1.mod_router.weight", D, 1, 25, 0, 0.1);
    assert_refused(f, SQUINT_ERR_FORMAT, "blk.1.mod_router.weight"); /* it would run otherwise than trained */
    fixture_drop(f, "blk.1.mod_router.weight");
    fixture_drop(f, "output.weight"); /* tied to the embedding */
    squint_model *m = fixture_model(f, NULL);
    squint_session *s = open_session(m, 1);
    forward(s, p1_ids, P1_N, 1);
    assert_kv(s, (const uint32_t[]){12, 12, 12});
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_tensor(f, "output.weight", 2, (const uint64_t[]){D, FIXTURE_VOCAB}, SQ_TENSOR_F32,
                   fixture_floats(f, "token_embd.weight"), D * FIXTURE_VOCAB * sizeof(float));
    check_against_reference(f, p1_ids, P1_N);
    fixture_free(f);
}

static void test_shapes_of_tensors(void **state)
{
    (void)state;
    static const char *const names[] = {"blk.1.attn_k.weight", "blk.0.ffn_up.weight", "blk.3.ffn_down.weight",
                                        "token_embd.weight", "output.weight"};
    for (size_t i = 0; i < SQ_COUNT(names); i++) {
        fixture *f = p1_fixture();
        fixture_weights(f, names[i], 16, 17, 1, 0, 0.25);
        assert_refused(f, SQUINT_ERR_FORMAT, names[i]);
        fixture_free(f);
    }
    fixture *f = p1_fixture();
    fixture_weights(f, "blk.1.ffn_norm.weight", 15, 0, 1, 0, 0.25);
    assert_refused(f, SQUINT_ERR_FORMAT, "blk.1.ffn_norm.weight");
    fixture_free(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_p1),
        cmocka_unit_test(test_p2),
        cmocka_unit_test(test_all_ratios),
        cmocka_unit_test(test_saturated_scores),
        cmocka_unit_test(test_text_is_dense),
        cmocka_unit_test(test_ratio_one_is_weighted),
        cmocka_unit_test(test_skipped_is_scaled),
        cmocka_unit_test(test_traces_change_nothing),
        cmocka_unit_test(test_logits_of_skipped_rows),
        cmocka_unit_test(test_few_vision_tokens),
        cmocka_unit_test(test_norms_of_files),
        cmocka_unit_test(test_text_after_the_image),
        cmocka_unit_test(test_text_before_the_image),
        cmocka_unit_test(test_second_image_pass_is_refused),
        cmocka_unit_test(test_rewind),
        cmocka_unit_test(test_session_after_failures),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_threads_give_the_same_bits),
        cmocka_unit_test(test_f16_cache),
        cmocka_unit_test(test_q8_cache),
        cmocka_unit_test(test_cache_capacity),
        cmocka_unit_test(test_next_cache),
        cmocka_unit_test(test_exact_capacity),
        cmocka_unit_test(test_macs),
        cmocka_unit_test(test_keys_that_must_be),
        cmocka_unit_test(test_keys_that_may_be_absent),
        cmocka_unit_test(test_words_that_mean_another_method),
        cmocka_unit_test(test_values_out_of_range),
        cmocka_unit_test(test_ratios_of_files),
        cmocka_unit_test(test_routers_of_files),
        cmocka_unit_test(test_router_without_bias),
        cmocka_unit_test(test_dense_file),
        cmocka_unit_test(test_shapes_of_tensors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
