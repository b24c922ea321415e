/*
 * The tower and the projector: against golden values (PyTorch, float32), and in all their variants against the formulas
 * in double precision.
 * SPDX-License-Identifier: MIT
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

#include <cmocka.h>

enum { D = 16, F = 32, HEADS = 2, MAX_STRIDES = 4 };

/* Goldens have five decimals; orders of addition differ: 2e-5, and half a unit of the fifth. */
static const double GOLDEN_BOUND = 2.5e-5;
static const double SUM_BOUND = 1e-3;
/* Values about 1 through 3 layers and a projector in binary32; a wrong rule changes them by 1e-2 and more. */
static const double REFERENCE_BOUND = 2e-5;

static void assert_near(double got, double expected, double bound, const char *what)
{
    if (!(fabs(got - expected) <= bound)) fail_msg("%s: %.7g, not %.7g (bound %g)", what, got, expected, bound);
}

/* ---- what a tower gives ---- */

typedef struct output {
    uint32_t n;
    float *tower;     /* [n][D] */
    float *projected; /* [n][D] */
} output;

static void note(void *user, sq_trace_what what, int layer, const void *data, uint32_t rows, uint32_t cols)
{
    output *const out = user;
    (void)layer;
    if (what != SQ_TRACE_TOWER && what != SQ_TRACE_PROJECTED) return;
    float *const copy = malloc((size_t)rows * cols * sizeof *copy);
    memcpy(copy, data, (size_t)rows * cols * sizeof *copy);
    assert_int_equal(cols, D);
    out->n = rows;
    *(what == SQ_TRACE_TOWER ? &out->tower : &out->projected) = copy;
}

static void output_free(output *out)
{
    free(out->tower);
    free(out->projected);
}

static squint_session *open_session(const squint_model *m, unsigned threads)
{
    squint_session *s;
    squint_msg msg;
    if (squint_session_open(&s, m, &(squint_session_options){.threads = threads}, &msg)) fail_msg("%s", msg.text);
    fixture_values(s->pixels, (size_t)3 * m->image_rule.size * m->image_rule.size, 5000, 0, 1);
    return s;
}

static output run_tower(const fixture *f, const char *isa, unsigned threads)
{
    squint_msg msg;
    output out = {0};
    squint_model *m = fixture_model(f, isa);
    squint_session *s = open_session(m, threads);
    s->trace = note;
    s->trace_user = &out;
    if (sq_session_encode(s, &msg)) fail_msg("%s", msg.text);
    assert_int_equal(out.n, m->n_vision);
    assert_memory_equal(s->vision, out.projected, (size_t)out.n * D * sizeof(float));
    squint_session_close(&s);
    squint_model_close(&m);
    return out;
}

static fixture *tower_fixture(void)
{
    fixture *f = fixture_decoder(1);
    fixture_tower(f);
    return f;
}

static double abs_sum(const float *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += fabs((double)x[i]);
    return sum;
}

static void check_golden(const fixture *f, const char *isa)
{
    static const double patch0[] = {-0.64525, -0.67545, 1.0082,   -0.01534, 0.64839, -0.29999, -0.50398, 1.78047,
                                    0.94143,  0.26274,  -0.71692, -0.66276, 1.81917, 1.23752,  -2.33227, -1.14645};
    static const double patch8[] = {-0.94787, 1.82222, -0.3468, -1.26277};
    static const double projected0[] = {-0.48986, 0.2474, 0.18057, 0.06637};
    output out = run_tower(f, isa, 1);
    assert_int_equal(out.n, 9);
    for (int i = 0; i < 16; i++)
        assert_near((double)out.tower[i], patch0[i], GOLDEN_BOUND, "patch 0");
    for (int i = 0; i < 4; i++)
        assert_near((double)out.tower[8 * D + i], patch8[i], GOLDEN_BOUND, "patch 8");
    assert_near(abs_sum(out.tower, 9 * D), 129.5202, SUM_BOUND, "tower");
    for (int i = 0; i < 4; i++)
        assert_near((double)out.projected[i], projected0[i], GOLDEN_BOUND, "projected 0");
    assert_near(abs_sum(out.projected, 9 * D), 21.8483, SUM_BOUND, "projector");
    output_free(&out);
}

/* hidden_states[-2] of three layers: two run. */
static void test_golden(void **state)
{
    (void)state;
    fixture *f = tower_fixture();
    for (const char *const *isa = sq_kernels_names(); *isa; isa++)
        check_golden(f, *isa);
    fixture_free(f);
}

/* What a trace heard, in order. */
typedef struct stages {
    const squint_session *s;
    uint32_t n, logits;
    float last[10 * D]; /* the sequence after the block heard last */
} stages;

static void hear_stages(void *user, sq_trace_what what, int layer, const void *data, uint32_t rows, uint32_t cols)
{
    static const struct {
        sq_trace_what what;
        int layer;
        uint32_t rows, cols;
    } expected[] = {{SQ_TRACE_PIXELS, -1, 1, 432},    {SQ_TRACE_PATCHES, -1, 10, D}, {SQ_TRACE_TOWER_LAYER, 0, 10, D},
                    {SQ_TRACE_TOWER_LAYER, 1, 10, D}, {SQ_TRACE_TOWER, -1, 9, D},    {SQ_TRACE_PROJECTED, -1, 9, D}};
    stages *const st = user;
    if (what == SQ_TRACE_LOGITS) {
        assert_ptr_equal(data, st->s->logits);
        assert_int_equal(rows, 2);
        assert_int_equal(cols, st->s->model->n_vocab);
        st->logits++;
    }
    if (st->n == SQ_COUNT(expected)) return;
    assert_int_equal(what, expected[st->n].what);
    assert_int_equal(layer, expected[st->n].layer);
    assert_int_equal(rows, expected[st->n].rows);
    assert_int_equal(cols, expected[st->n].cols);
    if (what == SQ_TRACE_PIXELS) assert_memory_equal(data, st->s->pixels, 432 * sizeof(float));
    if (what == SQ_TRACE_TOWER_LAYER) memcpy(st->last, data, sizeof st->last);
    if (what == SQ_TRACE_TOWER) assert_memory_equal(data, st->last + D, 9 * D * sizeof(float)); /* no class token */
    st->n++;
}

/* Each stage is told once, in order and in its shape, and logits when they are there. */
static void test_stages_are_told(void **state)
{
    (void)state;
    fixture *f = tower_fixture();
    squint_model *m = fixture_model(f, NULL);
    const sq_limits limits = {.max_rows = 11, .max_tokens = 12, .max_logits = 2, .max_vision = 9, .kv = SQ_KV_F32};
    uint32_t ids[11] = {1, [10] = 2};
    squint_session *s;
    squint_msg msg = {""};
    for (int i = 1; i < 10; i++)
        ids[i] = SQ_IMAGE_TOKEN;
    if (sq_session_open_limits(&s, m, &(squint_session_options){.threads = 1}, &limits, &msg)) fail_msg("%s", msg.text);
    fixture_values(s->pixels, 432, 5000, 0, 1);
    stages st = {.s = s};
    s->trace = hear_stages;
    s->trace_user = &st;
    assert_int_equal(sq_session_encode(s, &msg), SQUINT_OK);
    assert_int_equal(st.n, 6);
    assert_int_equal(st.logits, 0);
    assert_int_equal(sq_session_forward(s, ids, 11, 2, &msg), SQUINT_OK);
    assert_int_equal(st.logits, 1);
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

/* fc1 is "ffn_down" in llama.cpp's files and "ffn_up" in others: its shape tells. */
static void test_names_of_the_mlp(void **state)
{
    (void)state;
    fixture *f = tower_fixture();
    for (int l = 0; l < 3; l++) {
        static const char *const parts[] = {"weight", "bias"};
        for (int p = 0; p < 2; p++) {
            char down[64], up[64];
            snprintf(down, sizeof down, "v.blk.%d.ffn_down.%s", l, parts[p]);
            snprintf(up, sizeof up, "v.blk.%d.ffn_up.%s", l, parts[p]);
            fixture_rename(f, down, "aside");
            fixture_rename(f, up, down);
            fixture_rename(f, "aside", up);
        }
    }
    check_golden(f, NULL);
    fixture_free(f);
}

/* ---- the formulas ---- */

/* A variant of the tower, as the reference reads it. */
typedef struct variant {
    uint32_t side, patch, layers;
    uint32_t strides[MAX_STRIDES], n_stem;
    bool class_token, pre_ln, post_ln, gelu;
} variant;

static const variant clip = {.side = 12, .patch = 4, .layers = 2, .class_token = true, .pre_ln = true};

typedef struct map {
    uint32_t side, channels;
    double *v; /* [channels][side][side] */
} map;

static double *zeros(size_t n)
{
    double *p = calloc(n, sizeof *p);
    if (!p) abort();
    return p;
}

/* A convolution as PyTorch defines it, one output at a time. */
static map convolve(map in, const float *w, const float *bias, uint32_t out_channels, uint32_t kernel, uint32_t stride,
                    uint32_t pad)
{
    map out = {(in.side + 2 * pad - kernel) / stride + 1, out_channels, NULL};
    out.v = zeros((size_t)out_channels * out.side * out.side);
    for (uint32_t o = 0; o < out_channels; o++)
        for (uint32_t y = 0; y < out.side; y++)
            for (uint32_t x = 0; x < out.side; x++) {
                double sum = bias ? bias[o] : 0;
                for (uint32_t c = 0; c < in.channels; c++)
                    for (uint32_t ky = 0; ky < kernel; ky++)
                        for (uint32_t kx = 0; kx < kernel; kx++) {
                            const int iy = (int)(y * stride + ky) - (int)pad, ix = (int)(x * stride + kx) - (int)pad;
                            if (iy < 0 || ix < 0 || iy >= (int)in.side || ix >= (int)in.side) continue;
                            sum += (double)w[((o * in.channels + c) * kernel + ky) * kernel + kx] *
                                   in.v[((size_t)c * in.side + (uint32_t)iy) * in.side + (uint32_t)ix];
                        }
                out.v[((size_t)o * out.side + y) * out.side + x] = sum;
            }
    free(in.v);
    return out;
}

static const float *floats(const fixture *f, const char *format, uint32_t i)
{
    char name[64];
    snprintf(name, sizeof name, format, i);
    return fixture_floats(f, name);
}

static void layer_norm(double *x, const float *w, const float *b, double *y)
{
    double mean = 0, var = 0;
    for (int i = 0; i < D; i++)
        mean += x[i] / D;
    for (int i = 0; i < D; i++)
        var += (x[i] - mean) * (x[i] - mean) / D;
    for (int i = 0; i < D; i++)
        y[i] = (x[i] - mean) / sqrt(var + 1e-5) * w[i] + b[i];
}

static void linear(const float *w, const float *b, const double *x, uint32_t n, uint32_t k, double *y)
{
    for (uint32_t i = 0; i < n; i++) {
        y[i] = b[i];
        for (uint32_t j = 0; j < k; j++)
            y[i] += (double)w[i * k + j] * x[j];
    }
}

static double gelu(double x) { return x / 2 * (1 + erf(x / sqrt(2))); }
static double quick_gelu(double x) { return x / (1 + exp(-1.702 * x)); }

static void attend(const double *q, const double *k, const double *v, uint32_t n, uint32_t row, double *out)
{
    enum { HEAD = D / HEADS };
    for (uint32_t h = 0; h < HEADS; h++) {
        double total = 0, sums[HEAD] = {0};
        for (uint32_t j = 0; j < n; j++) {
            double score = 0;
            for (uint32_t i = 0; i < HEAD; i++)
                score += q[row * D + h * HEAD + i] * k[j * D + h * HEAD + i];
            const double p = exp(score / sqrt(HEAD));
            total += p;
            for (uint32_t i = 0; i < HEAD; i++)
                sums[i] += p * v[j * D + h * HEAD + i];
        }
        for (uint32_t i = 0; i < HEAD; i++)
            out[h * HEAD + i] = sums[i] / total;
    }
}

static void run_layer(const fixture *f, const variant *t, uint32_t l, double *x, uint32_t n)
{
    double *q = zeros(n * D), *k = zeros(n * D), *v = zeros(n * D), u[D], hidden[F];
    for (uint32_t i = 0; i < n; i++) {
        layer_norm(x + i * D, floats(f, "v.blk.%u.ln1.weight", l), floats(f, "v.blk.%u.ln1.bias", l), u);
        linear(floats(f, "v.blk.%u.attn_q.weight", l), floats(f, "v.blk.%u.attn_q.bias", l), u, D, D, q + i * D);
        linear(floats(f, "v.blk.%u.attn_k.weight", l), floats(f, "v.blk.%u.attn_k.bias", l), u, D, D, k + i * D);
        linear(floats(f, "v.blk.%u.attn_v.weight", l), floats(f, "v.blk.%u.attn_v.bias", l), u, D, D, v + i * D);
    }
    for (uint32_t i = 0; i < n; i++) {
        double out[D];
        attend(q, k, v, n, i, u);
        linear(floats(f, "v.blk.%u.attn_out.weight", l), floats(f, "v.blk.%u.attn_out.bias", l), u, D, D, out);
        for (int j = 0; j < D; j++)
            x[i * D + j] += out[j];
        layer_norm(x + i * D, floats(f, "v.blk.%u.ln2.weight", l), floats(f, "v.blk.%u.ln2.bias", l), u);
        linear(floats(f, "v.blk.%u.ffn_down.weight", l), floats(f, "v.blk.%u.ffn_down.bias", l), u, F, D, hidden);
        for (int j = 0; j < F; j++)
            hidden[j] = t->gelu ? gelu(hidden[j]) : quick_gelu(hidden[j]);
        linear(floats(f, "v.blk.%u.ffn_up.weight", l), floats(f, "v.blk.%u.ffn_up.bias", l), hidden, D, F, out);
        for (int j = 0; j < D; j++)
            x[i * D + j] += out[j];
    }
    free(q);
    free(k);
    free(v);
}

/* Pixels to the sequence before the first layer. */
static double *embed(const fixture *f, const variant *t, uint32_t *n)
{
    const size_t count = (size_t)3 * t->side * t->side;
    float *pixels = malloc(count * sizeof *pixels);
    map m = {t->side, 3, zeros(count)};
    fixture_values(pixels, count, 5000, 0, 1);
    for (size_t i = 0; i < count; i++)
        m.v[i] = pixels[i];
    free(pixels);
    uint32_t kernel = t->patch;
    for (uint32_t i = 0; i < t->n_stem; i++) {
        m = convolve(m, floats(f, "v.stem.%u.weight", i), floats(f, "v.stem.%u.bias", i), 4 + 2 * i, 3, t->strides[i],
                     1);
        for (size_t j = 0; j < (size_t)m.channels * m.side * m.side; j++)
            m.v[j] = fmax(m.v[j], 0);
        kernel /= t->strides[i];
    }
    const float *const bias = fixture_has(f, "v.patch_embd.bias") ? fixture_floats(f, "v.patch_embd.bias") : NULL;
    m = convolve(m, fixture_floats(f, "v.patch_embd.weight"), bias, D, kernel, kernel, 0);
    const uint32_t first = t->class_token, patches = m.side * m.side;
    double *x = zeros((size_t)(first + patches) * D);
    for (int j = 0; j < D && first; j++)
        x[j] = fixture_floats(f, "v.class_embd")[j];
    for (uint32_t i = 0; i < patches; i++)
        for (uint32_t j = 0; j < D; j++)
            x[(first + i) * D + j] = m.v[(size_t)j * patches + i];
    free(m.v);
    *n = first + patches;
    for (uint32_t i = 0; i < *n * D; i++)
        x[i] += fixture_floats(f, "v.position_embd.weight")[i];
    return x;
}

static void norm_rows(const fixture *f, const char *name, double *x, uint32_t n)
{
    char weight[64], bias[64];
    snprintf(weight, sizeof weight, "%s.weight", name);
    snprintf(bias, sizeof bias, "%s.bias", name);
    for (uint32_t i = 0; i < n; i++)
        layer_norm(x + i * D, fixture_floats(f, weight), fixture_floats(f, bias), x + i * D);
}

static void check_variant(const fixture *f, const variant *t, unsigned threads)
{
    uint32_t n;
    double *x = embed(f, t, &n), hidden[D], projected[D];
    if (t->pre_ln) norm_rows(f, "v.pre_ln", x, n);
    for (uint32_t l = 0; l < t->layers; l++)
        run_layer(f, t, l, x, n);
    if (t->post_ln) norm_rows(f, "v.post_ln", x, n);
    output out = run_tower(f, NULL, threads);
    assert_int_equal(out.n, n - t->class_token);
    for (uint32_t i = 0; i < out.n; i++) {
        const double *const row = x + (i + t->class_token) * D;
        for (uint32_t j = 0; j < D; j++)
            assert_near((double)out.tower[i * D + j], row[j], REFERENCE_BOUND, "tower");
        linear(fixture_floats(f, "mm.0.weight"), fixture_floats(f, "mm.0.bias"), row, D, D, hidden);
        for (int j = 0; j < D; j++)
            hidden[j] = gelu(hidden[j]);
        linear(fixture_floats(f, "mm.2.weight"), fixture_floats(f, "mm.2.bias"), hidden, D, D, projected);
        for (uint32_t j = 0; j < D; j++)
            assert_near((double)out.projected[i * D + j], projected[j], REFERENCE_BOUND, "projected");
    }
    free(x);
    output_free(&out);
}

static void add_norm(fixture *f, const char *name, uint32_t id)
{
    char full[64];
    snprintf(full, sizeof full, "%s.weight", name);
    fixture_weights(f, full, D, 0, id, 1, 0.1);
    snprintf(full, sizeof full, "%s.bias", name);
    fixture_weights(f, full, D, 0, id + 1, 0, 0.1);
}

static void test_layers_run(void **state)
{
    (void)state;
    fixture *f = tower_fixture();
    variant t = clip;
    for (t.layers = 1; t.layers <= 3; t.layers++) {
        fixture_u32(f, "squint.vision.layers_run", t.layers);
        check_variant(f, &t, 1);
    }
    fixture_drop(f, "squint.vision.layers_run"); /* all that the file counts */
    fixture_u32(f, "clip.vision.block_count", 2);
    t.layers = 2;
    check_variant(f, &t, 1);
    fixture_free(f);
}

static void test_norms_and_activations(void **state)
{
    (void)state;
    fixture *f = tower_fixture();
    variant t = clip;
    add_norm(f, "v.post_ln", 5006);
    check_variant(f, &t, 1); /* stored, and not asked for */
    fixture_bool(f, "squint.vision.post_ln", true);
    t.post_ln = true;
    check_variant(f, &t, 1);
    fixture_bool(f, "clip.use_gelu", true);
    t.gelu = true;
    check_variant(f, &t, 1);
    fixture_drop(f, "v.pre_ln.weight");
    fixture_drop(f, "v.pre_ln.bias");
    t.pre_ln = false;
    check_variant(f, &t, 1);
    fixture_free(f);
}

static void test_without_class_token(void **state)
{
    (void)state;
    fixture *f = tower_fixture();
    variant t = clip;
    t.class_token = false;
    fixture_drop(f, "v.class_embd");
    fixture_weights(f, "v.position_embd.weight", D, 9, 5003, 0, 0.5);
    check_variant(f, &t, 1);
    fixture_weights(f, "v.patch_embd.bias", D, 0, 5007, 0, 0.3);
    check_variant(f, &t, 2);
    fixture_free(f);
}

/* More patches than a block of attention and a tile of a float product hold. */
static void test_many_patches(void **state)
{
    (void)state;
    fixture *f = tower_fixture();
    variant t = clip;
    t.side = 72;
    fixture_u32(f, "clip.vision.image_size", 72);
    fixture_weights(f, "v.position_embd.weight", D, 325, 5003, 0, 0.5);
    check_variant(f, &t, 1);
    check_variant(f, &t, 2);
    fixture_free(f);
}

static void add_conv(fixture *f, const char *name, uint32_t in, uint32_t out, uint32_t kernel, uint32_t id)
{
    const size_t n = (size_t)in * out * kernel * kernel;
    char full[64];
    float *w = malloc(n * sizeof *w);
    fixture_values(w, n, id, 0, 0.25);
    snprintf(full, sizeof full, "%s.weight", name);
    fixture_tensor(f, full, 4, (const uint64_t[]){kernel, kernel, in, out}, SQ_TENSOR_F32, w, n * sizeof *w);
    snprintf(full, sizeof full, "%s.bias", name);
    fixture_weights(f, full, out, 0, id + 1, 0, 0.1);
    free(w);
}

/* 3 x 3 convolutions with ReLU before the patches, of 4, 6, 8, 10 channels. */
static void test_stems(void **state)
{
    (void)state;
    static const struct {
        uint32_t n, strides[MAX_STRIDES], product;
    } stems[] = {{1, {1}, 1}, {1, {2}, 2}, {2, {2, 2}, 4}, {3, {2, 1, 2}, 4}, {4, {1, 2, 1, 1}, 2}, {1, {4}, 4}};
    for (size_t i = 0; i < SQ_COUNT(stems); i++) {
        fixture *f = tower_fixture();
        variant t = clip;
        t.n_stem = stems[i].n;
        memcpy(t.strides, stems[i].strides, sizeof t.strides);
        fixture_u32s(f, "squint.vision.stem.strides", stems[i].strides, stems[i].n);
        uint32_t channels = 3;
        for (uint32_t c = 0; c < t.n_stem; c++) {
            char name[32];
            snprintf(name, sizeof name, "v.stem.%u", c);
            add_conv(f, name, channels, 4 + 2 * c, 3, 5020 + 2 * c);
            channels = 4 + 2 * c;
        }
        add_conv(f, "v.patch_embd", channels, D, 4 / stems[i].product, 5002);
        check_variant(f, &t, 1 + (unsigned)i % 2);
        fixture_free(f);
    }
}

static void test_threads_give_the_same_bits(void **state)
{
    (void)state;
    fixture *f = tower_fixture();
    output one = run_tower(f, NULL, 1);
    for (unsigned threads = 2; threads <= 3; threads++) {
        output more = run_tower(f, NULL, threads);
        assert_memory_equal(one.projected, more.projected, 9 * D * sizeof(float));
        output_free(&more);
    }
    output_free(&one);
    fixture_free(f);
}

/* ---- pictures ---- */

static void test_fits(void **state)
{
    (void)state;
    static const struct {
        const char *name; /* NULL: no key */
        sq_fit fit;
    } fits[] = {
        {NULL, SQ_FIT_PAD}, {"clip_pad", SQ_FIT_PAD}, {"clip_crop", SQ_FIT_CROP}, {"clip_stretch", SQ_FIT_STRETCH}};
    uint8_t rgb[20 * 9 * 3];
    uint64_t seed = 3;
    for (size_t i = 0; i < sizeof rgb; i++)
        rgb[i] = (uint8_t)random_u64(&seed);
    const squint_allocator a = sq_allocator_or_default(NULL);
    for (size_t i = 0; i < SQ_COUNT(fits); i++) {
        fixture *f = tower_fixture();
        if (fits[i].name) fixture_str(f, "squint.vision.type", fits[i].name);
        fixture_u32s(f, "squint.vision.pad_color", (const uint32_t[]){1, 2, 255}, 3);
        squint_model *m = fixture_model(f, NULL);
        const sq_image_rule rule = {.fit = fits[i].fit,
                                    .size = 12,
                                    .pad_color = {1, 2, 255},
                                    .mean = {0.48145466f, 0.4578275f, 0.40821073f},
                                    .std = {0.26862954f, 0.26130258f, 0.27577711f}};
        float expected[3 * 12 * 12];
        assert_int_equal(sq_image_prepare(rgb, 20, 9, 60, &rule, expected, &a, NULL), SQUINT_OK);
        squint_session *s = open_session(m, 1);
        assert_int_equal(sq_session_picture(s, rgb, 20, 9, 60, NULL), SQUINT_OK);
        assert_memory_equal(s->pixels, expected, sizeof expected);
        squint_session_close(&s);
        squint_model_close(&m);
        fixture_free(f);
    }
}

/* ---- failures ---- */

static bool stop_after_one(void *user, squint_stage stage, unsigned done, unsigned total)
{
    (void)user;
    assert_int_equal(stage, SQUINT_STAGE_TOWER);
    assert_int_equal(total, 2);
    return done < 1;
}

static void test_cancel(void **state)
{
    (void)state;
    fixture *f = tower_fixture();
    squint_model *m = fixture_model(f, NULL);
    squint_session *s = open_session(m, 1);
    s->on_progress = stop_after_one;
    assert_int_equal(sq_session_encode(s, NULL), SQUINT_ERR_CANCELLED);
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

static void test_no_tower(void **state)
{
    (void)state;
    const uint8_t pixel[3] = {0};
    fixture *f = fixture_decoder(1);
    squint_model *m = fixture_model(f, NULL);
    squint_session *s;
    squint_msg msg;
    assert_int_equal(squint_session_open(&s, m, &(squint_session_options){.threads = 1}, &msg), SQUINT_OK);
    assert_int_equal(sq_session_encode(s, &msg), SQUINT_ERR_UNSUPPORTED);
    assert_int_equal(sq_session_picture(s, pixel, 1, 1, 3, &msg), SQUINT_ERR_UNSUPPORTED);
    assert_non_null(strstr(msg.text, "tower"));
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

static void assert_refused(const fixture *f, squint_err err, const char *word)
{
    squint_model *m;
    squint_msg msg;
    const squint_err got = fixture_open(&m, f, NULL, &msg);
    if (got != err) fail_msg("%s: error %d, not %d (%s)", word, got, err, got ? msg.text : "it opened");
    if (!strstr(msg.text, word) || !strstr(msg.text, ".gguf")) fail_msg("\"%s\" does not name %s", msg.text, word);
}

static void test_what_must_be_there(void **state)
{
    (void)state;
    static const char *const names[] = {"clip.vision.image_size",
                                        "clip.vision.patch_size",
                                        "clip.vision.embedding_length",
                                        "clip.vision.feed_forward_length",
                                        "clip.vision.block_count",
                                        "clip.vision.attention.head_count",
                                        "clip.vision.attention.layer_norm_epsilon",
                                        "clip.vision.image_mean",
                                        "clip.vision.image_std",
                                        "v.patch_embd.weight",
                                        "v.position_embd.weight",
                                        "v.pre_ln.bias",
                                        "v.blk.0.ln1.weight",
                                        "v.blk.1.ln2.bias",
                                        "v.blk.1.attn_q.weight",
                                        "v.blk.0.attn_out.bias",
                                        "v.blk.0.ffn_down.weight",
                                        "v.blk.0.ffn_up.weight",
                                        "v.blk.1.ffn_up.bias",
                                        "mm.0.weight",
                                        "mm.0.bias",
                                        "mm.2.weight",
                                        "mm.2.bias"};
    for (size_t i = 0; i < SQ_COUNT(names); i++) {
        fixture *f = tower_fixture();
        fixture_drop(f, names[i]);
        assert_refused(f, SQUINT_ERR_FORMAT, names[i]);
        fixture_free(f);
    }
}

static void test_values_out_of_range(void **state)
{
    (void)state;
    static const struct {
        const char *key;
        uint32_t value;
    } ints[] = {{"clip.vision.image_size", 0},           {"clip.vision.image_size", 5000},
                {"clip.vision.patch_size", 0},           {"clip.vision.patch_size", 5},
                {"clip.vision.patch_size", 24},          {"clip.vision.embedding_length", 0},
                {"clip.vision.feed_forward_length", 0},  {"clip.vision.attention.head_count", 0},
                {"clip.vision.attention.head_count", 3}, {"squint.vision.layers_run", 0},
                {"squint.vision.layers_run", 1000},      {"llama.context_length", 9}};
    for (size_t i = 0; i < SQ_COUNT(ints); i++) {
        fixture *f = tower_fixture();
        fixture_u32(f, ints[i].key, ints[i].value);
        assert_refused(f, SQUINT_ERR_FORMAT, ints[i].key);
        fixture_free(f);
    }
    fixture *f = tower_fixture();
    fixture_u32(f, "squint.vision.layers_run", 4); /* of 3 */
    assert_refused(f, SQUINT_ERR_FORMAT, "v.blk.3.");
    fixture_u32(f, "squint.vision.layers_run", 2);
    fixture_f32(f, "clip.vision.attention.layer_norm_epsilon", 0);
    assert_refused(f, SQUINT_ERR_FORMAT, "clip.vision.attention.layer_norm_epsilon");
    fixture_f32(f, "clip.vision.attention.layer_norm_epsilon", 1e-5f);
    fixture_f32s(f, "clip.vision.image_std", (const float[]){0.2f, 0, 0.2f}, 3);
    assert_refused(f, SQUINT_ERR_FORMAT, "clip.vision.image_std");
    fixture_f32s(f, "clip.vision.image_std", (const float[]){0.2f, 0.2f}, 2);
    assert_refused(f, SQUINT_ERR_FORMAT, "clip.vision.image_std");
    fixture_f32s(f, "clip.vision.image_std", (const float[]){0.2f, 0.2f, 0.2f}, 3);
    fixture_u32s(f, "squint.vision.pad_color", (const uint32_t[]){1, 2, 256}, 3);
    assert_refused(f, SQUINT_ERR_FORMAT, "squint.vision.pad_color");
    fixture_drop(f, "squint.vision.pad_color");
    fixture_str(f, "squint.vision.type", "clip_tiled");
    assert_refused(f, SQUINT_ERR_UNSUPPORTED, "squint.vision.type");
    fixture_free(f);
}

static void test_wrong_stems(void **state)
{
    (void)state;
    static const char key[] = "squint.vision.stem.strides";
    fixture *f = tower_fixture();
    fixture_u32s(f, key, (const uint32_t[]){1, 1, 1, 1, 1}, 5);
    assert_refused(f, SQUINT_ERR_FORMAT, key);
    fixture_u32s(f, key, (const uint32_t[]){0}, 1);
    assert_refused(f, SQUINT_ERR_FORMAT, key);
    fixture_u32s(f, key, (const uint32_t[]){3}, 1); /* does not divide the patch */
    assert_refused(f, SQUINT_ERR_FORMAT, key);
    fixture_u32s(f, key, (const uint32_t[]){2}, 1);
    assert_refused(f, SQUINT_ERR_FORMAT, "v.stem.0.weight");
    add_conv(f, "v.stem.0", 4, 4, 3, 5020); /* of a picture with four channels */
    assert_refused(f, SQUINT_ERR_FORMAT, "v.stem.0.weight");
    add_conv(f, "v.stem.0", 3, 4, 3, 5020);
    assert_refused(f, SQUINT_ERR_FORMAT, "v.patch_embd.weight"); /* still for 3 channels and kernels of 4 */
    fixture_free(f);
}

/* 1540 * 1540 * 1811 inputs are 304 in 32 bits: a patch of 17 GB for a matrix that looks small. */
static void test_inputs_that_overflow(void **state)
{
    (void)state;
    fixture *f = tower_fixture();
    fixture_u32(f, "clip.vision.image_size", 1540);
    fixture_u32(f, "clip.vision.patch_size", 1540);
    fixture_u32s(f, "squint.vision.stem.strides", (const uint32_t[]){1}, 1);
    add_conv(f, "v.stem.0", 3, 1811, 3, 5020);
    fixture_weights(f, "v.patch_embd.weight", 304, D, 5002, 0, 0.25);
    fixture_weights(f, "v.position_embd.weight", D, 2, 5003, 0, 0.5);
    assert_refused(f, SQUINT_ERR_UNSUPPORTED, "v.patch_embd.weight");
    fixture_free(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_stages_are_told),
        cmocka_unit_test(test_names_of_the_mlp),
        cmocka_unit_test(test_layers_run),
        cmocka_unit_test(test_norms_and_activations),
        cmocka_unit_test(test_without_class_token),
        cmocka_unit_test(test_many_patches),
        cmocka_unit_test(test_stems),
        cmocka_unit_test(test_threads_give_the_same_bits),
        cmocka_unit_test(test_fits),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_no_tower),
        cmocka_unit_test(test_what_must_be_there),
        cmocka_unit_test(test_values_out_of_range),
        cmocka_unit_test(test_wrong_stems),
        cmocka_unit_test(test_inputs_that_overflow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
