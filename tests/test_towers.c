/*
 * The front ends with two towers: LLaVA-HR's and Mini-Gemini's, against PyTorch (tests/golden/make_towers.py).
 * SPDX-License-Identifier: MIT
 *
 * Both sides compute in float32 and differ in the order of their sums. Values are about 1, sums have up to 160 terms,
 * and some 30 such steps follow one another: 1e-6 of the largest value is what is measured, 1e-4 the bound; a wrong
 * weight, place or order of tokens moves them by 1e-2 and more.
 */
#include "models/llava.h"
#include "models/resample.h"
#include "simd/tap.h"
#include "tests/fixture.h"
#include "tests/support.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { D = 16, WIDE = 32, PATCH = 4, HR_LAYERS = 5, MGM_LAYERS = 2, MGM_SIDE = 12 };

static const uint32_t dims[] = {8, 16, 24, 40}, depths[] = {1, 1, 2, 1};

static sq_gguf *golden; /* what PyTorch found */

/* ---- towers whose weights follow from their names ---- */

static uint32_t hash_of(const char *name)
{
    uint32_t h = 0x811C9DC5u;
    for (; *name; name++)
        h = (h ^ (uint8_t)*name) * 0x01000193u;
    return h;
}

static void add_values(fixture *f, const char *name, uint32_t n_dims, const uint64_t *ne, double base, double scale)
{
    size_t n = 1;
    for (uint32_t i = 0; i < n_dims; i++)
        n *= ne[i];
    float *const v = malloc(n * sizeof *v);
    fixture_values(v, n, hash_of(name), base, scale);
    fixture_tensor(f, name, n_dims, ne, SQ_TENSOR_F32, v, n * sizeof *v);
    free(v);
}

static const char *join(const char *a, const char *b)
{
    static char names[8][64];
    static unsigned at;
    char name[sizeof *names];
    snprintf(name, sizeof name, "%s%s", a, b);
    return memcpy(names[at++ % 8], name, sizeof name);
}

static void add_bias(fixture *f, const char *name, uint64_t n) { add_values(f, join(name, ".bias"), 1, &n, 0, 0.2); }

static void add_norm(fixture *f, const char *name, uint64_t d)
{
    add_values(f, join(name, ".weight"), 1, &d, 1, 0.3);
    add_bias(f, name, d);
}

static void add_linear(fixture *f, const char *name, uint32_t k, uint32_t n)
{
    add_values(f, join(name, ".weight"), 2, (const uint64_t[]){k, n}, 0, 1.5 / sqrt(k));
    add_bias(f, name, n);
}

/* in 1: of each channel by itself */
static void add_conv(fixture *f, const char *name, uint32_t side, uint32_t in, uint32_t out)
{
    const double scale = 1.5 / sqrt((double)side * side * in);
    add_values(f, join(name, ".weight"), 4, (const uint64_t[]){side, side, in, out}, 0, scale);
    add_bias(f, name, out);
}

static void add_clip_block(fixture *f, uint32_t l)
{
    char at[32];
    snprintf(at, sizeof at, "v.blk.%u", l);
    add_norm(f, join(at, ".ln1"), D);
    add_norm(f, join(at, ".ln2"), D);
    add_linear(f, join(at, ".attn_q"), D, D);
    add_linear(f, join(at, ".attn_k"), D, D);
    add_linear(f, join(at, ".attn_v"), D, D);
    add_linear(f, join(at, ".attn_out"), D, D);
    add_linear(f, join(at, ".ffn_down"), D, WIDE);
    add_linear(f, join(at, ".ffn_up"), WIDE, D);
}

/* A decoder and a CLIP tower of `layers` blocks, as many as run. */
static fixture *clip_fixture(uint32_t side, uint32_t layers, bool class_token)
{
    fixture *f = fixture_decoder(1);
    const uint32_t patches = side / PATCH * (side / PATCH);
    fixture_bool(f, "clip.has_vision_encoder", true);
    fixture_u32(f, "clip.vision.image_size", side);
    fixture_u32(f, "clip.vision.patch_size", PATCH);
    fixture_u32(f, "clip.vision.embedding_length", D);
    fixture_u32(f, "clip.vision.feed_forward_length", WIDE);
    fixture_u32(f, "clip.vision.block_count", layers);
    fixture_u32(f, "clip.vision.attention.head_count", 2);
    fixture_f32(f, "clip.vision.attention.layer_norm_epsilon", 1e-5f);
    fixture_f32s(f, "clip.vision.image_mean", (const float[]){0.48145466f, 0.4578275f, 0.40821073f}, 3);
    fixture_f32s(f, "clip.vision.image_std", (const float[]){0.26862954f, 0.26130258f, 0.27577711f}, 3);
    add_conv(f, "v.patch_embd", PATCH, 3, D);
    fixture_drop(f, "v.patch_embd.bias");
    if (class_token) add_values(f, "v.class_embd", 1, (const uint64_t[]){D}, 0, 0.5);
    add_values(f, "v.position_embd.weight", 2, (const uint64_t[]){D, patches + class_token}, 0, 0.5);
    add_norm(f, "v.pre_ln", D);
    for (uint32_t l = 0; l < layers; l++)
        add_clip_block(f, l);
    add_linear(f, "mm.0", D, D);
    add_linear(f, "mm.2", D, D);
    return f;
}

static void add_slow_block(fixture *f, uint32_t stage, uint32_t i)
{
    char at[40];
    const uint32_t c = dims[stage];
    snprintf(at, sizeof at, "v.slow.stg.%u.blk.%u", stage, i);
    add_conv(f, join(at, ".dw"), 7, 1, c);
    add_norm(f, join(at, ".norm"), c);
    add_linear(f, join(at, ".pw1"), c, 4 * c);
    add_linear(f, join(at, ".pw2"), 4 * c, c);
}

static void add_slow_tower(fixture *f, uint32_t side)
{
    fixture_u32(f, "squint.vision.input_size", side);
    fixture_u32s(f, "squint.vision.slow.dims", dims, 4);
    fixture_u32s(f, "squint.vision.slow.depths", depths, 4);
    fixture_f32(f, "squint.vision.slow.ln_eps", 0.05f); /* so large that it shows */
    add_conv(f, "v.slow.stem.conv", 4, 3, dims[0]);
    add_norm(f, "v.slow.stem.norm", dims[0]);
    for (uint32_t s = 0; s < 4; s++) {
        char at[40];
        snprintf(at, sizeof at, "v.slow.stg.%u.down", s);
        if (s) add_norm(f, join(at, ".norm"), dims[s - 1]);
        if (s) add_conv(f, join(at, ".conv"), 2, dims[s - 1], dims[s]);
        for (uint32_t i = 0; i < depths[s]; i++)
            add_slow_block(f, s, i);
    }
}

static fixture *hr_fixture(uint32_t large, uint32_t small)
{
    fixture *f = clip_fixture(small, HR_LAYERS, false);
    fixture_str(f, "squint.vision.type", "llava_hr");
    fixture_str(f, "squint.vision.drop_class", "before_pre_ln");
    fixture_u32s(f, "squint.vision.slow.groups", (const uint32_t[]){1, 2, 1, 1}, 4);
    add_slow_tower(f, large);
    for (int i = 0; i < 3; i++) {
        char at[32];
        snprintf(at, sizeof at, "v.hr.%d", i);
        add_linear(f, join(at, ".slow_conv"), dims[3], dims[3]);
        add_linear(f, join(at, ".slow_proj"), dims[3], D);
        add_conv(f, join(at, ".fast_conv"), 7, 1, D);
        add_linear(f, join(at, ".fast_proj"), D, D);
        add_linear(f, join(at, ".gate.0"), 2 * D, D / 2);
        add_linear(f, join(at, ".gate.2"), D / 2, 1);
    }
    add_linear(f, "v.hr.out.fast", D, D);
    add_linear(f, "v.hr.out.slow", dims[3], D);
    return f;
}

static fixture *mgm_fixture(uint32_t large, uint32_t grid, bool global)
{
    const uint32_t d_aux = dims[0] + dims[1] + dims[2] + dims[3];
    fixture *f = clip_fixture(MGM_SIDE, MGM_LAYERS, true);
    fixture_str(f, "squint.vision.type", "mgm");
    fixture_u32(f, "squint.vision.grid", grid);
    fixture_bool(f, "squint.vision.global", global);
    add_slow_tower(f, large);
    add_norm(f, "mm.uni.q.norm", D);
    add_linear(f, "mm.uni.q.proj", D, D);
    add_norm(f, "mm.uni.k.norm", d_aux);
    add_linear(f, "mm.uni.k.proj", d_aux, D);
    add_norm(f, "mm.uni.v.norm", d_aux);
    add_linear(f, "mm.uni.v.proj", d_aux, D);
    return f;
}

/* ---- against PyTorch ---- */

typedef struct shape {
    const char *name; /* in the golden file */
    bool hr;
    uint32_t large, small; /* small: llava_hr */
    uint32_t grid;         /* mgm */
    bool global;
} shape;

static const shape shapes[] = {
    {"hr", true, 128, 16, 0, false}, {"hr-up", true, 64, 16, 0, false},     {"hr-down", true, 128, 8, 0, false},
    {"mgm", false, 192, 0, 2, true}, {"mgm-parts", false, 96, 0, 2, false}, {"mgm-one", false, 96, 0, 1, false},
};

static fixture *fixture_of(const shape *t)
{
    return t->hr ? hr_fixture(t->large, t->small) : mgm_fixture(t->large, t->grid, t->global);
}

typedef struct watch {
    const char *name;
    unsigned images, mined, compared;
} watch;

static void assert_close(const float *got, const float *want, size_t n, double bound, const char *what)
{
    double most = 1;
    for (size_t i = 0; i < n; i++) /* not fmax(): GCC 12 for ARM falls over it */
        most = fabs((double)want[i]) > most ? fabs((double)want[i]) : most;
    for (size_t i = 0; i < n; i++)
        if (!(fabs((double)got[i] - (double)want[i]) <= bound * most))
            fail_msg("%s: element %zu is %.8g, not %.8g", what, i, (double)got[i], (double)want[i]);
}

static void compare(watch *w, const char *part, unsigned i, const float *got, size_t n, double bound)
{
    char name[64];
    snprintf(name, sizeof name, i == UINT32_MAX ? "%s.%s" : "%s.%s.%u", w->name, part, i);
    const sq_gguf_tensor *const t = sq_gguf_find(golden, name);
    if (!t) return;
    assert_int_equal(n * sizeof *got, t->bytes);
    assert_close(got, (const float *)(const void *)t->data, n, bound, name);
    w->compared++;
}

static void note(void *user, sq_trace_what what, int layer, const void *data, uint32_t rows, uint32_t cols)
{
    static const double bound = 1e-4;
    watch *const w = user;
    const size_t n = (size_t)rows * cols;
    switch (what) {
    case SQ_TRACE_PIXELS: /* of values up to 1.7: four products of bilinear shares */
        compare(w, "pixels", w->images++, data, n, 1e-6);
        break;
    case SQ_TRACE_SLOW:
        compare(w, "slow", (unsigned)layer, data, n, bound);
        break;
    case SQ_TRACE_ADAPTER:
        compare(w, "adapter", (unsigned)layer, data, n, bound);
        break;
    case SQ_TRACE_TOWER:
        compare(w, "tower", UINT32_MAX, data, n, bound);
        break;
    case SQ_TRACE_MINED:
        compare(w, "mined", w->mined++, data, n, bound);
        break;
    case SQ_TRACE_PROJECTED:
        compare(w, "projected", UINT32_MAX, data, n, bound);
        break;
    default:
        break;
    }
}

static squint_session *open_session(const squint_model *m, unsigned threads)
{
    squint_session *s;
    squint_msg msg;
    if (squint_session_open(&s, m, &(squint_session_options){.threads = threads}, &msg)) fail_msg("%s", msg.text);
    fixture_values(s->pixels, m->pixel_floats, hash_of("pixels"), 0, 1.7);
    return s;
}

static void encode(squint_session *s)
{
    squint_msg msg;
    if (sq_session_encode(s, &msg)) fail_msg("%s", msg.text);
}

static unsigned golden_tensors(const char *name)
{
    unsigned n = 0;
    for (size_t i = 0; i < sq_gguf_n_tensors(golden); i++) {
        const sq_str t = sq_gguf_tensor_at(golden, i)->name;
        const size_t len = strlen(name);
        n += t.len > len && !memcmp(t.s, name, len) && t.s[len] == '.';
    }
    return n;
}

static void check_shape(const shape *t, const char *isa)
{
    fixture *f = fixture_of(t);
    squint_model *m = fixture_model(f, isa);
    squint_session *s = open_session(m, 2);
    watch w = {.name = t->name};
    s->trace = note;
    s->trace_user = &w;
    encode(s);
    assert_int_equal(w.compared, golden_tensors(t->name));
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

static void test_golden(void **state)
{
    (void)state;
    for (const char *const *isa = sq_kernels_names(); *isa; isa++)
        for (size_t i = 0; i < SQ_COUNT(shapes); i++)
            check_shape(&shapes[i], *isa);
}

/* ---- numbers that the methods' own code gave ---- */

static void near(double got, double want, double bound)
{
    if (!(fabs(got - want) <= bound)) fail_msg("%.7g, not %.7g", got, want);
}

static void near_all(const float *got, const double *want, size_t n)
{
    for (size_t i = 0; i < n; i++)
        near((double)got[i], want[i], 2e-5);
}

static double abs_sum(const float *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += fabs((double)x[i]);
    return sum;
}

/* Weights of one width for another: tensors of the adapter's own numbers in a tower of 8 and 12 channels. */
enum { FAST = 8, SLOW = 12 };

static void set_linear(fixture *f, const char *name, uint32_t k, uint32_t n, uint32_t id, double scale,
                       double bias_scale)
{
    fixture_weights(f, join(name, ".weight"), k, n, id, 0, scale);
    fixture_weights(f, join(name, ".bias"), n, 0, id + 1, 0, bias_scale);
}

static fixture *adapter_fixture(uint32_t large)
{
    fixture *f = hr_fixture(large, 16);
    const uint64_t ne[] = {7, 7, 1, FAST};
    float w[FAST * 49];
    /* The towers run with weights of any width: what they give is replaced. */
    fixture_u32(f, "clip.vision.embedding_length", FAST);
    for (uint32_t l = 0; l < HR_LAYERS; l++) {
        static const char *const square[] = {"attn_q", "attn_k", "attn_v", "attn_out"};
        char at[32];
        snprintf(at, sizeof at, "v.blk.%u.", l);
        for (size_t i = 0; i < SQ_COUNT(square); i++)
            add_linear(f, join(at, square[i]), FAST, FAST);
        add_norm(f, join(at, "ln1"), FAST);
        add_norm(f, join(at, "ln2"), FAST);
        add_linear(f, join(at, "ffn_down"), FAST, WIDE);
        add_linear(f, join(at, "ffn_up"), WIDE, FAST);
    }
    add_conv(f, "v.patch_embd", PATCH, 3, FAST);
    add_values(f, "v.position_embd.weight", 2, (const uint64_t[]){FAST, 16}, 0, 0.5);
    add_norm(f, "v.pre_ln", FAST);
    add_linear(f, "mm.0", FAST, D);
    fixture_u32s(f, "squint.vision.slow.dims", (const uint32_t[]){8, 16, 24, SLOW}, 4);
    add_conv(f, "v.slow.stg.3.down.conv", 2, 24, SLOW);
    add_conv(f, "v.slow.stg.3.blk.0.dw", 7, 1, SLOW);
    add_norm(f, "v.slow.stg.3.blk.0.norm", SLOW);
    add_linear(f, "v.slow.stg.3.blk.0.pw1", SLOW, 4 * SLOW);
    add_linear(f, "v.slow.stg.3.blk.0.pw2", 4 * SLOW, SLOW);
    for (int i = 0; i < 3; i++) {
        char at[32];
        snprintf(at, sizeof at, "v.hr.%d.", i);
        set_linear(f, join(at, "slow_conv"), SLOW, SLOW, 4000, 0.25, 0.25);
        set_linear(f, join(at, "slow_proj"), SLOW, FAST, 4002, 0.25, 0.25);
        set_linear(f, join(at, "fast_proj"), FAST, FAST, 4006, 0.25, 0.25);
        set_linear(f, join(at, "gate.0"), 2 * FAST, 4, 4008, 0.25, 0.25);
        set_linear(f, join(at, "gate.2"), 4, 1, 4010, 0.25, 0.25);
        fixture_values(w, FAST * 49, 4004, 0, 0.25);
        fixture_tensor(f, join(at, "fast_conv.weight"), 4, ne, SQ_TENSOR_F32, w, sizeof w);
        fixture_weights(f, join(at, "fast_conv.bias"), FAST, 0, 4005, 0, 0.25);
    }
    set_linear(f, "v.hr.out.fast", FAST, FAST, 4200, 0.25, 0.25);
    set_linear(f, "v.hr.out.slow", SLOW, FAST, 4202, 0.25, 0.25);
    return f;
}

/* [SLOW][side][side] to places */
static void set_slow_map(squint_session *s, uint32_t id, uint32_t side)
{
    float map[SLOW * 16];
    fixture_values(map, SLOW * side * side, id, 0, 1);
    for (uint32_t i = 0; i < side * side; i++)
        for (uint32_t c = 0; c < SLOW; c++)
            sq_llava_state_of(s)->hr.map[i * SLOW + c] = map[c * side * side + i];
}

static void test_adapter(void **state)
{
    (void)state;
    static const double first[] = {0.32558, 0.32214, 0.47026, -0.13666, -1.1923, -0.13201, -0.11042, 0.04741};
    static const double last[] = {0.21385, -0.10634, 0.31048, -0.62608, -0.01781, 0.24874, 0.69445, -0.41739};
    static const double spread[] = {0.34285, 0.30571, 0.49976, -0.1532, -1.19048, -0.10636, -0.10965, 0.05675};
    static const double aligned[] = {0.05526, 0.9252, 1.0971, 0.27201, 0.11054, -0.02977, 0.47941, 0.31165};
    for (uint32_t side = 2; side <= 4; side += 2) {
        fixture *f = adapter_fixture(32 * side);
        squint_model *m = fixture_model(f, NULL);
        squint_session *s = open_session(m, 1);
        float *const y = sq_llava_state_of(s)->vit_x;
        fixture_values(y, 16 * FAST, 4100, 0, 1);
        set_slow_map(s, side == 4 ? 4101 : 4102, side);
        if (side == 4) {
            const float *const out = sq_hr_align(s);
            near_all(out, aligned, FAST);
            near(abs_sum(out, 16 * FAST), 41.8266, 1e-3);
        }
        sq_hr_adapt(s, side / 2);
        near_all(y, side == 4 ? first : spread, FAST);
        if (side == 4) near_all(y + 15 * FAST, last, FAST);
        near(abs_sum(y, 16 * FAST), side == 4 ? 66.102 : 65.8873, 1e-3);
        squint_session_close(&s);
        squint_model_close(&m);
        fixture_free(f);
    }
}

static void set_layer(fixture *f, const char *name, uint32_t k, uint32_t id)
{
    const char *const norm = join(name, ".norm");
    fixture_weights(f, join(norm, ".weight"), k, 0, id, 1, 0.1);
    fixture_weights(f, join(norm, ".bias"), k, 0, id + 1, 0, 0.1);
    set_linear(f, join(name, ".proj"), k, FAST, id + 2, 0.5, 0.1);
}

/* A loaded model of 8 and 12 channels, its mining put on weights of these widths. */
static fixture *mining_fixture(void)
{
    fixture *f = adapter_fixture(64);
    static const uint32_t narrow[] = {3, 3, 3, 3};
    fixture_str(f, "squint.vision.type", "mgm");
    fixture_u32(f, "squint.vision.grid", 2);
    fixture_u32s(f, "squint.vision.slow.dims", narrow, 4);
    add_conv(f, "v.slow.stem.conv", 4, 3, 3);
    add_norm(f, "v.slow.stem.norm", 3);
    for (uint32_t s = 0; s < 4; s++)
        for (uint32_t i = 0; i < depths[s]; i++) {
            char at[40];
            snprintf(at, sizeof at, "v.slow.stg.%u", s);
            if (s) add_norm(f, join(at, ".down.norm"), 3);
            if (s) add_conv(f, join(at, ".down.conv"), 2, 3, 3);
            snprintf(at, sizeof at, "v.slow.stg.%u.blk.%u", s, i);
            add_conv(f, join(at, ".dw"), 7, 1, 3);
            add_norm(f, join(at, ".norm"), 3);
            add_linear(f, join(at, ".pw1"), 3, 12);
            add_linear(f, join(at, ".pw2"), 12, 3);
        }
    set_layer(f, "mm.uni.q", FAST, 6010);
    set_layer(f, "mm.uni.k", SLOW, 6020);
    set_layer(f, "mm.uni.v", SLOW, 6030);
    return f;
}

/* One token's block of 2 x 2 places of a map [SLOW][4][4], normed. */
static void norm_block(const squint_session *s, const float *map, uint32_t token, float *z)
{
    const sq_mgm *const mgm = &sq_llava_of(s)->mgm;
    const sq_rows_in norm = sq_norm_rows(&mgm->plain, NULL, SLOW, 1e-5f);
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t y = token / 2 * 2 + i / 2, x = token % 2 * 2 + i % 2;
        float place[SLOW];
        for (uint32_t c = 0; c < SLOW; c++)
            place[c] = map[c * 16 + y * 4 + x];
        s->model->kernels->row(&norm, place, z + i * SLOW);
    }
}

static void mine_one(squint_session *s, const float *map, uint32_t token, float *x)
{
    const sq_mgm *const mgm = &sq_llava_of(s)->mgm;
    float query[FAST], z[4 * SLOW], asked[SLOW];
    const sq_rows_in in = sq_norm_rows(&mgm->q_norm, x, FAST, 1e-5f);
    const sq_rows_in queries = {.x = query, .ldx = FAST, .k = FAST, .op = SQ_ROW_COPY};
    const sq_rows_in found = {.x = asked, .ldx = SLOW, .k = SLOW, .op = SQ_ROW_COPY};
    const sq_rows_in norm = {.k = SLOW};
    const sq_mine mine = {.norm = &norm,
                          .d = FAST,
                          .key_offset = mgm->key_offset,
                          .weight = mgm->v_norm.weight,
                          .bias = mgm->v_norm.bias};
    norm_block(s, map, token, z);
    sq_run_linear(s, &mgm->q, &in, 1, query, false);
    sq_run_linear(s, &(sq_linear){.w = mgm->keys}, &queries, 1, asked, false);
    sq_mine_look(&mine, s->model->kernels, query, z, 4, asked);
    sq_run_linear(s, &mgm->v, &found, 1, x, true);
}

static void test_mining(void **state)
{
    (void)state;
    static const double first[] = {1.25206, 0.16357, -0.6743, 0.30994, -2.04031, 1.76796, -0.38827, -1.03133};
    static const double last[] = {0.29698, 0.65496, 1.18157, 1.22402, -0.27752, -1.00073, -0.58744, 0.74536};
    fixture *f = mining_fixture();
    squint_model *m = fixture_model(f, NULL);
    squint_session *s = open_session(m, 1);
    float x[4 * FAST], map[SLOW * 16];
    fixture_values(x, 4 * FAST, 6000, 0, 1);
    fixture_values(map, SLOW * 16, 6001, 0, 1);
    for (uint32_t token = 0; token < 4; token++)
        mine_one(s, map, token, x + token * FAST);
    near_all(x, first, FAST);
    near_all(x + 3 * FAST, last, FAST);
    near(abs_sum(x, 4 * FAST), 23.5263, 1e-3);
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

/* Scores that are no numbers count as 0, infinite ones as the largest number: torch.nan_to_num(). Infinity times 0 is
 * no number, times 1 it is itself; the second channel tells which places were looked at. */
static void test_scores_that_are_no_numbers(void **state)
{
    (void)state;
    static const struct {
        float asked, first, second; /* what is looked for, and how much of it is in two places */
        double share;               /* of the second place */
    } cases[] = {{INFINITY, 0, 1, 1},    {-INFINITY, 0, 1, 0}, {INFINITY, 0, 0, 0.5}, {INFINITY, 1, 1, 0.5},
                 {-INFINITY, 1, 1, 0.5}, {INFINITY, -1, 1, 1}, {INFINITY, -1, 0, 1},  {1, 0, 1, 0.73105858}};
    const sq_rows_in norm = {.k = 2};
    const sq_mine mine = {.norm = &norm,
                          .d = 1,
                          .key_offset = (const float[]){0},
                          .weight = (const float[]){1, 1},
                          .bias = (const float[]){0, 0}};
    for (size_t i = 0; i < SQ_COUNT(cases); i++) {
        const float z[] = {cases[i].first, 10, cases[i].second, 20};
        float asked[] = {cases[i].asked, 0};
        sq_mine_look(&mine, sq_kernels_get("scalar"), (const float[]){1}, z, 2, asked);
        near((double)asked[1], 10 + 10 * cases[i].share, 1e-5);
    }
}

/* ---- what must not change anything ---- */

static float *projected(const fixture *f, unsigned threads, uint32_t band_places, size_t *n)
{
    squint_model *m = fixture_model(f, NULL);
    if (band_places) ((sq_llava *)m->net)->slow.band_places = band_places;
    squint_session *s = open_session(m, threads);
    encode(s);
    *n = (size_t)s->n_vision * m->d;
    float *const out = malloc(*n * sizeof *out);
    memcpy(out, s->vision, *n * sizeof *out);
    squint_session_close(&s);
    squint_model_close(&m);
    return out;
}

/* The matrices of the slow tower, the adapters and the mining. */
static void encode_matrices(fixture *f, const shape *t, fixture_type type, bool back)
{
    static const char *const hr[] = {"slow_conv", "slow_proj", "fast_proj"}, *const uni[] = {"q", "k", "v"};
    char name[64];
    for (uint32_t s = 0; s < 4; s++)
        for (uint32_t i = 0; i < depths[s]; i++)
            for (int p = 1; p <= 2; p++) {
                snprintf(name, sizeof name, "v.slow.stg.%u.blk.%u.pw%d.weight", s, i, p);
                fixture_encode(f, name, type, back);
            }
    for (uint32_t i = 0; t->hr && i < 3; i++)
        for (size_t p = 0; p < SQ_COUNT(hr); p++) {
            snprintf(name, sizeof name, "v.hr.%u.%s.weight", i, hr[p]);
            fixture_encode(f, name, type, back);
        }
    if (t->hr) fixture_encode(f, "v.hr.out.fast.weight", type, back);
    if (t->hr) fixture_encode(f, "v.hr.out.slow.weight", type, back);
    for (size_t p = 0; !t->hr && p < SQ_COUNT(uni); p++) {
        snprintf(name, sizeof name, "mm.uni.%s.proj.weight", uni[p]);
        fixture_encode(f, name, type, back);
    }
}

static const fixture_type int8 = {SQ_TENSOR_I8, SQ_PANEL_I8, 0}, int4 = {SQ_TENSOR_I8, SQ_PANEL_I4, 32};

static void test_threads_give_the_same_bits(void **state)
{
    (void)state;
    for (size_t i = 0; i < SQ_COUNT(shapes); i++)
        for (int quantised = 0; quantised < 2; quantised++) {
            fixture *f = fixture_of(&shapes[i]);
            size_t n, same;
            if (quantised) encode_matrices(f, &shapes[i], int8, false);
            float *const one = projected(f, 1, 0, &n);
            for (unsigned threads = 2; threads <= 3; threads++) {
                float *const more = projected(f, threads, 0, &same);
                assert_int_equal(n, same);
                assert_memory_equal(one, more, n * sizeof *one);
                free(more);
            }
            free(one);
            fixture_free(f);
        }
}

/* A block runs in bands of any height, of one row too: fewer than the convolution looks back. Only products of floats
 * may add in another order. */
static void test_bands_give_the_same(void **state)
{
    (void)state;
    static const uint32_t places[] = {1, 32, 70, 100, 150, 4096};
    const shape *const t = &shapes[0];
    for (int quantised = 0; quantised < 2; quantised++) {
        fixture *f = fixture_of(t);
        size_t n;
        if (quantised) encode_matrices(f, t, int8, false);
        float *const whole = projected(f, 1, 1 << 20, &n);
        for (size_t i = 0; i < SQ_COUNT(places); i++) {
            float *const banded = projected(f, 2, places[i], &n);
            assert_close(banded, whole, n, quantised ? 1e-3 : 1e-5, "bands");
            free(banded);
        }
        free(whole);
        fixture_free(f);
    }
}

/* Relative to what the floats give that the types stand for, what is left is the error of int8 activations: 8 bits of a
 * row's largest, a few percent through some 20 products. A wrong scale or row makes it 1. */
static void test_other_types(void **state)
{
    (void)state;
    static const struct {
        fixture_type type;
        double bound;
    } types[] = {
        {{SQ_TENSOR_F16, 0, 0}, 1e-4}, {{SQ_TENSOR_I8, SQ_PANEL_I8, 0}, 0.05}, {{SQ_TENSOR_I8, SQ_PANEL_I4, 32}, 0.05}};
    for (size_t i = 0; i < SQ_COUNT(shapes); i++)
        for (size_t j = 0; j < SQ_COUNT(types); j++) {
            fixture *f = fixture_of(&shapes[i]), *g = fixture_copy(f);
            size_t n;
            double off = 0, size = 0;
            encode_matrices(f, &shapes[i], types[j].type, false);
            encode_matrices(g, &shapes[i], types[j].type, true);
            float *const got = projected(f, 2, 0, &n), *const want = projected(g, 2, 0, &n);
            for (size_t k = 0; k < n; k++) {
                off += ((double)got[k] - want[k]) * ((double)got[k] - want[k]);
                size += (double)want[k] * want[k];
            }
            if (!(sqrt(off / size) <= types[j].bound))
                fail_msg("%s, type %zu: off by %g", shapes[i].name, j, sqrt(off / size));
            free(got);
            free(want);
            fixture_free(f);
            fixture_free(g);
        }
}

/* A convolution in F16, and as the floats that this stands for. */
static void halve(fixture *half, fixture *same, const char *name, const uint64_t ne[4])
{
    const size_t n = ne[0] * ne[1] * ne[2] * ne[3];
    uint16_t *const h = malloc(n * sizeof *h);
    float *const v = fixture_floats(same, name);
    for (size_t i = 0; i < n; i++) {
        h[i] = sq_f32_to_f16(v[i]);
        v[i] = sq_f16_to_f32(h[i]);
    }
    fixture_tensor(half, name, 4, ne, SQ_TENSOR_F16, h, n * sizeof *h);
    free(h);
}

static void test_half_convolutions(void **state)
{
    (void)state;
    fixture *half = hr_fixture(64, 16), *same = fixture_copy(half);
    size_t n;
    halve(half, same, "v.patch_embd.weight", (const uint64_t[]){PATCH, PATCH, 3, D});
    halve(half, same, "v.slow.stem.conv.weight", (const uint64_t[]){4, 4, 3, dims[0]});
    halve(half, same, "v.slow.stg.2.down.conv.weight", (const uint64_t[]){2, 2, dims[1], dims[2]});
    halve(half, same, "v.slow.stg.1.blk.0.dw.weight", (const uint64_t[]){7, 7, 1, dims[1]});
    halve(half, same, "v.hr.1.fast_conv.weight", (const uint64_t[]){7, 7, 1, D});
    float *const got = projected(half, 1, 0, &n), *const want = projected(same, 1, 0, &n);
    assert_memory_equal(got, want, n * sizeof *got);
    free(got);
    free(want);
    fixture_free(half);
    fixture_free(same);
}

/* Without adapters, as where the slow tower was not trained, the slow map counts at the end alone. */
static void test_no_adapters(void **state)
{
    (void)state;
    static const char *const parts[] = {"slow_conv", "slow_proj", "fast_conv", "fast_proj", "gate.0", "gate.2"};
    fixture *f = hr_fixture(64, 16), *g = fixture_copy(f);
    size_t n;
    for (int i = 0; i < 3; i++) {
        char name[64];
        for (size_t p = 0; p < SQ_COUNT(parts); p++) {
            snprintf(name, sizeof name, "v.hr.%d.%s.weight", i, parts[p]);
            fixture_drop(f, name);
            snprintf(name, sizeof name, "v.hr.%d.%s.bias", i, parts[p]);
            fixture_drop(f, name);
            /* An adapter that lets nothing in and refines nothing is none. */
            if (!strcmp(parts[p], "gate.2") || !strcmp(parts[p], "fast_proj")) {
                memset(fixture_floats(g, name), 0, (parts[p][0] == 'g' ? 1 : D) * sizeof(float));
                snprintf(name, sizeof name, "v.hr.%d.%s.weight", i, parts[p]);
                memset(fixture_floats(g, name), 0, (parts[p][0] == 'g' ? D / 2 : D * D) * sizeof(float));
            }
        }
    }
    float *const none = projected(f, 1, 0, &n), *const idle = projected(g, 1, 0, &n);
    assert_close(none, idle, n, 1e-6, "no adapters");
    free(none);
    free(idle);
    fixture_free(f);
    fixture_free(g);
}

/* ---- resampling ---- */

static void test_means_of_blocks(void **state)
{
    (void)state;
    float in[16], out[4];
    sq_compute c = {.kernels = sq_kernels_get("scalar")};
    const squint_allocator a = sq_allocator_or_default(NULL);
    assert_int_equal(sq_pool_open(&c.pool, 1, &a, NULL), SQUINT_OK);
    for (int i = 0; i < 16; i++)
        in[i] = (float)(i * i);
    assert_ptr_equal(sq_match_tokens(&c, in, 4, out, 4, 1), in);
    assert_ptr_equal(sq_match_tokens(&c, in, 4, out, 2, 1), out);
    for (int i = 0; i < 4; i++) {
        const int at = i / 2 * 8 + i % 2 * 2;
        near((double)out[i], (in[at] + in[at + 1] + in[at + 4] + in[at + 5]) / 4.0, 1e-5);
    }
    sq_pool_close(&c.pool);
}

static void test_taps(void **state)
{
    (void)state;
    static const struct {
        uint32_t at, in, out;
        bool align;
        double where;
    } taps[] = {{0, 5, 9, true, 0},    {8, 5, 9, true, 4},     {3, 5, 9, true, 1.5},   {0, 7, 1, true, 0},
                {0, 2, 4, false, 0},   {1, 2, 4, false, 0.25}, {3, 2, 4, false, 1.25}, {0, 4, 2, false, 0.5},
                {1, 4, 2, false, 2.5}, {2, 6, 4, false, 3.25}, {0, 1, 8, false, 0},    {7, 1, 8, false, 0.4375}};
    for (size_t i = 0; i < SQ_COUNT(taps); i++) {
        const sq_tap t = sq_bilinear_tap(taps[i].at, taps[i].in, taps[i].out, taps[i].align);
        near(t.low + (double)t.high_share, taps[i].where, 1e-6);
        assert_in_range(t.high, t.low, taps[i].in - 1);
        assert_true(t.high == t.low + 1 || t.high == taps[i].in - 1);
    }
}

/* ---- pictures ---- */

/* FNV-1a of 32-bit words. */
static uint64_t hash_words(const float *x, size_t n)
{
    uint64_t h = 0xCBF29CE484222325u;
    for (size_t i = 0; i < n; i++) {
        uint32_t word;
        memcpy(&word, x + i, sizeof word);
        h = (h ^ word) * 0x100000001B3u;
    }
    return h;
}

static void check_picture(const char *name, uint32_t w, uint32_t h, uint32_t side, bool hr)
{
    fixture *f = hr ? hr_fixture(side, 16) : mgm_fixture(side, 2, true);
    squint_model *m = fixture_model(f, NULL);
    squint_session *s = open_session(m, 1);
    uint8_t *const rgb = malloc((size_t)3 * w * h);
    squint_msg msg;
    uint32_t want[2];
    for (uint32_t y = 0; y < h; y++)
        for (uint32_t x = 0; x < w; x++)
            for (uint32_t c = 0; c < 3; c++)
                rgb[((size_t)y * w + x) * 3 + c] = (uint8_t)(37 * x + 91 * y + 53 * c + 11 * x * y);
    if (sq_session_picture(s, rgb, w, h, 3 * (size_t)w, &msg)) fail_msg("%s", msg.text);
    assert_int_equal(m->pixel_floats, 3 * (size_t)side * side);
    memcpy(want, sq_gguf_find(golden, join("picture.", name))->data, sizeof want);
    if (hash_words(s->pixels, m->pixel_floats) != ((uint64_t)want[1] << 32 | want[0]))
        fail_msg("%s: %u x %u pixels in %u x %u are not Pillow's", name, w, h, side, side);
    free(rgb);
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

static void test_pictures(void **state)
{
    (void)state;
    check_picture("portrait", 480, 640, 1024, true);
    check_picture("landscape", 1200, 500, 1536, true);
    check_picture("tiny", 3, 2, 768, false);
    check_picture("one", 1, 1, 1024, true);
    check_picture("huge", 4000, 2600, 1024, true);
    check_picture("same", 1024, 1024, 1024, true);
}

/* Tokens of the whole picture first, then those of its quarters, row by row; 30 x 20 pixels are padded to 30 x 30. */
static void test_grids(void **state)
{
    (void)state;
    uint8_t rgb[30 * 20 * 3] = {0};
    fixture *f = mgm_fixture(192, 2, true);
    squint_model *m = fixture_model(f, NULL);
    squint_session *s = open_session(m, 1);
    assert_int_equal(sq_session_picture(s, rgb, 30, 20, 90, NULL), SQUINT_OK);
    assert_int_equal(s->n_vision, 45);
    assert_int_equal(s->n_vision_base, 45);
    assert_int_equal(s->n_grids, 5);
    for (unsigned i = 0; i < 5; i++) {
        const squint_grid *const g = &s->grids[i];
        const double part = i ? 15 : 30;
        assert_int_equal(g->first, 9 * i);
        assert_int_equal(g->rows, 3);
        near(g->x, i ? (i - 1) % 2 * part : 0, 1e-9);
        near(g->y, (i ? (i - 1) / 2 * part : 0) - 5, 1e-9);
        near(g->w, part, 1e-9);
        near(g->h, part, 1e-9);
    }
    squint_session_close(&s);
    squint_model_close(&m);
    fixture_free(f);
}

/* ---- progress and cost ---- */

typedef struct progress {
    unsigned seen, total, stop_at;
} progress;

static bool advance(void *user, squint_stage stage, unsigned done, unsigned total)
{
    progress *const p = user;
    assert_int_equal(stage, SQUINT_STAGE_TOWER);
    assert_int_equal(done, ++p->seen);
    p->total = total;
    return done != p->stop_at;
}

static void test_progress_and_cancel(void **state)
{
    (void)state;
    for (size_t i = 0; i < SQ_COUNT(shapes); i++) {
        const shape *const t = &shapes[i];
        const unsigned images = t->grid * t->grid + t->global;
        const unsigned total = 5 + (t->hr ? HR_LAYERS : images * (MGM_LAYERS + 1));
        fixture *f = fixture_of(t);
        squint_model *m = fixture_model(f, NULL);
        squint_session *s = open_session(m, 1);
        s->on_progress = advance;
        for (unsigned stop = 0; stop <= total; stop++) {
            progress p = {.stop_at = stop};
            s->progress_user = &p;
            atomic_store(&s->cancel, false);
            assert_int_equal(sq_session_encode(s, NULL), stop ? SQUINT_ERR_CANCELLED : SQUINT_OK);
            assert_int_equal(p.seen, stop ? stop : total);
            assert_int_equal(p.total, total);
        }
        squint_session_close(&s);
        squint_model_close(&m);
        fixture_free(f);
    }
}

/* Towers work where the caches of the sequence are: encoding ends it, and what follows is as if it had not been. */
static void test_encoding_ends_the_sequence(void **state)
{
    (void)state;
    const uint32_t text[] = {1, 5, 7, 9}, prompt[] = {1, SQ_IMAGE_TOKEN, SQ_IMAGE_TOKEN, 4};
    fixture *f = hr_fixture(64, 16);
    squint_model *m = fixture_model(f, NULL);
    squint_session *used = open_session(m, 1), *fresh = open_session(m, 1);
    assert_int_equal(sq_session_forward(used, text, 4, 1, NULL), SQUINT_OK);
    encode(used);
    assert_int_equal(used->n_past, 0);
    assert_int_equal(sq_session_kv_bytes(used), 0);
    encode(fresh);
    assert_int_equal(sq_session_forward(used, prompt, 4, 1, NULL), SQUINT_OK);
    assert_int_equal(sq_session_forward(fresh, prompt, 4, 1, NULL), SQUINT_OK);
    assert_memory_equal(used->logits, fresh->logits, m->n_vocab * sizeof *used->logits);
    squint_session_close(&used);
    squint_session_close(&fresh);
    squint_model_close(&m);
    fixture_free(f);
}

/* ConvNeXt by the count of its weights and places. */
static double slow_macs(uint32_t side)
{
    double macs = 0;
    for (uint32_t s = 0; s < 4; s++) {
        const double places = (double)(side / 4 >> s) * (side / 4 >> s), c = dims[s];
        macs += places * (c * (s ? 4 * dims[s - 1] : 48) + depths[s] * (49 * c + 8 * c * c));
    }
    return macs;
}

static double clip_macs(uint32_t side, uint32_t layers, uint32_t extra)
{
    const double patches = side / PATCH * (side / PATCH), n = patches + extra;
    return patches * PATCH * PATCH * 3 * D + layers * (n * D * (4 * D + 2 * WIDE) + 2 * n * n * D);
}

static void test_macs(void **state)
{
    (void)state;
    for (size_t i = 0; i < SQ_COUNT(shapes); i++) {
        const shape *const t = &shapes[i];
        fixture *f = fixture_of(t);
        squint_model *m = fixture_model(f, NULL);
        squint_session *s = open_session(m, 1);
        const double d = D, slow = dims[3], d_aux = 88, places = (t->large / 32) * (t->large / 32);
        const double n = s->n_vision, m2 = t->grid ? pow(t->large / 4.0 / t->grid / 3, 2) : 0;
        const double adapter = places * (slow * slow + slow * d) + n * d * (49 + d) + 2 * d * d / 2 + d / 2;
        double want = slow_macs(t->large) + 2 * n * d * d; /* projector */
        if (t->hr)
            want += clip_macs(t->small, HR_LAYERS, 0) + 3 * adapter + n * d * d + places * slow * d;
        else
            want += n / 9 * clip_macs(MGM_SIDE, MGM_LAYERS, 1) + n * (d * d + 2 * d * d_aux + 2 * m2 * d_aux);
        near(m->family->tower_macs(s) / want, 1, 1e-12);
        squint_session_close(&s);
        squint_model_close(&m);
        fixture_free(f);
    }
}

/* ---- hostile files ---- */

static void assert_refused(fixture *f, const char *word)
{
    squint_model *m;
    squint_msg msg;
    const squint_err got = fixture_open(&m, f, NULL, &msg);
    if (!got) fail_msg("%s: it opened", word);
    if (!strstr(msg.text, word) || !strstr(msg.text, ".gguf")) fail_msg("\"%s\" does not name %s", msg.text, word);
    fixture_free(f);
}

static void test_what_must_be_there(void **state)
{
    (void)state;
    static const char *const hr[] = {
        "v.hr.0.slow_conv.weight",     "v.hr.1.slow_proj.bias",          "v.hr.2.fast_conv.weight",
        "v.hr.0.fast_conv.bias",       "v.hr.1.fast_proj.weight",        "v.hr.2.gate.0.weight",
        "v.hr.0.gate.0.bias",          "v.hr.1.gate.2.weight",           "v.hr.out.fast.weight",
        "v.hr.out.slow.bias",          "squint.vision.slow.groups",      "squint.vision.input_size",
        "squint.vision.slow.dims",     "squint.vision.slow.depths",      "squint.vision.slow.ln_eps",
        "v.slow.stem.conv.weight",     "v.slow.stem.conv.bias",          "v.slow.stem.norm.weight",
        "v.slow.stg.1.down.norm.bias", "v.slow.stg.3.down.conv.weight",  "v.slow.stg.2.blk.1.dw.weight",
        "v.slow.stg.0.blk.0.dw.bias",  "v.slow.stg.1.blk.0.norm.weight", "v.slow.stg.2.blk.0.pw1.weight",
        "v.slow.stg.3.blk.0.pw2.bias"};
    static const char *const mgm[] = {"mm.uni.q.norm.weight",        "mm.uni.q.proj.weight",    "mm.uni.k.norm.bias",
                                      "mm.uni.k.proj.bias",          "mm.uni.v.norm.weight",    "mm.uni.v.proj.weight",
                                      "v.slow.stg.0.blk.0.pw1.bias", "squint.vision.input_size"};
    for (size_t i = 0; i < SQ_COUNT(hr); i++) {
        fixture *f = hr_fixture(64, 16);
        fixture_drop(f, hr[i]);
        assert_refused(f, hr[i]);
    }
    for (size_t i = 0; i < SQ_COUNT(mgm); i++) {
        fixture *f = mgm_fixture(96, 1, false);
        fixture_drop(f, mgm[i]);
        assert_refused(f, mgm[i]);
    }
}

static void test_wrong_keys(void **state)
{
    (void)state;
    static const struct {
        const char *key;
        bool hr;
        uint32_t n, v[5]; /* n 0: a number */
    } keys[] = {
        {"squint.vision.input_size", true, 0, {0}},
        {"squint.vision.input_size", true, 0, {100}},
        {"squint.vision.input_size", true, 0, {4128}},
        {"squint.vision.input_size", true, 0, {160}},   /* 5 x 5 places for 4 x 4 patches */
        {"squint.vision.input_size", false, 0, {128}},  /* 32 x 32 places for 3 x 3 patches */
        {"squint.vision.input_size", false, 0, {3072}}, /* blocks of 256 x 256 */
        {"squint.vision.grid", false, 0, {0}},
        {"squint.vision.grid", false, 0, {3}},
        {"squint.vision.slow.dims", true, 3, {8, 16, 24}},
        {"squint.vision.slow.dims", true, 5, {8, 16, 24, 40, 40}},
        {"squint.vision.slow.dims", true, 4, {8, 0, 24, 40}},
        {"squint.vision.slow.dims", true, 4, {8, 16, 65, 40}},
        {"squint.vision.slow.dims", true, 4, {16385, 16, 24, 40}},
        {"squint.vision.slow.dims", true, 4, {0xFFFFFFFFu, 16, 24, 40}},
        {"squint.vision.slow.depths", true, 4, {1, 1, 0, 1}},
        {"squint.vision.slow.depths", true, 4, {1, 1, 257, 1}},
        {"squint.vision.slow.groups", true, 4, {1, 2, 1, 2}},
        {"squint.vision.slow.groups", true, 4, {1, 2, 1, 0}},
        {"squint.vision.slow.groups", true, 4, {1, 1, 1, 1}},
        {"squint.vision.slow.groups", true, 4, {0xFFFFFFFFu, 2, 2, 2}},
        {"squint.vision.slow.groups", true, 3, {1, 2, 2}},
    };
    for (size_t i = 0; i < SQ_COUNT(keys); i++) {
        fixture *f = keys[i].hr ? hr_fixture(64, 16) : mgm_fixture(96, 1, false);
        if (keys[i].n)
            fixture_u32s(f, keys[i].key, keys[i].v, keys[i].n);
        else
            fixture_u32(f, keys[i].key, keys[i].v[0]);
        assert_refused(f, keys[i].key);
    }
    fixture *f = hr_fixture(64, 16);
    fixture_f32(f, "squint.vision.slow.ln_eps", 0);
    assert_refused(f, "squint.vision.slow.ln_eps");
    f = hr_fixture(64, 16);
    fixture_str(f, "squint.vision.drop_class", "after");
    assert_refused(f, "squint.vision.drop_class");
    f = hr_fixture(64, 16);
    fixture_bool(f, "squint.vision.post_ln", true);
    add_norm(f, "v.post_ln", D);
    assert_refused(f, "squint.vision.post_ln");
    f = hr_fixture(64, 16);
    fixture_u32s(f, "squint.vision.slow.depths", (const uint32_t[]){1, 1, 3, 1}, 4); /* a block more than there is */
    assert_refused(f, "v.slow.stg.2.blk.2.");
}

static void test_wrong_tensors(void **state)
{
    (void)state;
    static const char *const gates[] = {"v.hr.1.gate.0.weight", "v.hr.2.gate.2.weight"};
    for (size_t i = 0; i < SQ_COUNT(gates); i++) {
        fixture *f = hr_fixture(64, 16);
        fixture_encode(f, gates[i], int8, false);
        assert_refused(f, gates[i]);
    }
    fixture *f = hr_fixture(64, 16);
    add_values(f, "v.slow.stg.2.blk.1.gamma", 1, (const uint64_t[]){24}, 1, 0.1);
    assert_refused(f, "v.slow.stg.2.blk.1.gamma");
    f = hr_fixture(64, 16);
    add_values(f, "v.class_embd", 1, (const uint64_t[]){D}, 0, 0.5);
    add_values(f, "v.position_embd.weight", 2, (const uint64_t[]){D, 17}, 0, 0.5);
    assert_refused(f, "v.class_embd");
    f = hr_fixture(64, 16);
    add_values(f, "v.slow.stg.2.blk.1.dw.weight", 4, (const uint64_t[]){5, 5, 1, 24}, 0, 0.1);
    assert_refused(f, "v.slow.stg.2.blk.1.dw.weight");
    f = hr_fixture(64, 16);
    add_values(f, "v.slow.stg.0.blk.0.pw1.weight", 2, (const uint64_t[]){8, 24}, 0, 0.1);
    assert_refused(f, "v.slow.stg.0.blk.0.pw1.weight");
    f = hr_fixture(64, 16);
    fixture_weights(f, "v.slow.stg.1.down.conv.weight", 32, 16, 1, 0, 0.1);
    fixture_encode(f, "v.slow.stg.1.down.conv.weight", int4, false);
    assert_refused(f, "v.slow.stg.1.down.conv.weight");
    f = mgm_fixture(96, 1, false);
    add_values(f, "mm.uni.v.proj.weight", 2, (const uint64_t[]){88, 8}, 0, 0.1);
    assert_refused(f, "mm.uni.v.proj.weight");
}

static int open_golden(void **state)
{
    (void)state;
    const squint_allocator a = sq_allocator_or_default(NULL);
    return sq_gguf_open(&golden, test_path("golden/towers.gguf"), &a, NULL);
}

static int close_golden(void **state)
{
    (void)state;
    sq_gguf_close(&golden);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_adapter),
        cmocka_unit_test(test_mining),
        cmocka_unit_test(test_scores_that_are_no_numbers),
        cmocka_unit_test(test_threads_give_the_same_bits),
        cmocka_unit_test(test_bands_give_the_same),
        cmocka_unit_test(test_other_types),
        cmocka_unit_test(test_half_convolutions),
        cmocka_unit_test(test_no_adapters),
        cmocka_unit_test(test_means_of_blocks),
        cmocka_unit_test(test_taps),
        cmocka_unit_test(test_pictures),
        cmocka_unit_test(test_grids),
        cmocka_unit_test(test_progress_and_cancel),
        cmocka_unit_test(test_encoding_ends_the_sequence),
        cmocka_unit_test(test_macs),
        cmocka_unit_test(test_what_must_be_there),
        cmocka_unit_test(test_wrong_keys),
        cmocka_unit_test(test_wrong_tensors),
    };
    return cmocka_run_group_tests(tests, open_golden, close_golden);
}
