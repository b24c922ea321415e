/*
 * Verbs of the towers: CUDA's on the emulated GPU against the CPU's, bit for bit.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/engine.h"
#include "tests/cuda/emulator.h"
#include "tests/support.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { ROUNDS = 48, MOST_PARTS = 16, MOST_WEIGHTS = 512 };

/* Both sides, and what a round took on the GPU. */
static sq_compute cpu, gpu;
static sq_device *device;
static void *parts[MOST_PARTS];
static unsigned n_parts;
/* A device knows weights by their address: they stay to the end. */
static float *weights[MOST_WEIGHTS];
static unsigned n_weights;
static uint64_t seed;

/* ---- numbers ---- */

static uint32_t below(uint32_t n) { return (uint32_t)(random_u64(&seed) % n); }
static uint32_t from_to(uint32_t low, uint32_t high) { return low + below(high - low + 1); }

/* Some zeros of both signs among them. */
static float *floats(size_t n)
{
    float *const x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = below(16) ? ldexpf(random_f32(&seed), (int)below(8) - 3) : below(2) ? -0.0f : 0.0f;
    return x;
}

static float *weight_floats(size_t n)
{
    assert_true(n_weights < MOST_WEIGHTS);
    return weights[n_weights++] = floats(n);
}

static void *there(const void *from, size_t bytes)
{
    assert_true(n_parts < MOST_PARTS);
    void *const p = parts[n_parts++] = gpu.ops->alloc(device, bytes);
    assert_non_null(p);
    if (from) sq_write(&gpu, p, from, bytes);
    return p;
}

static float *floats_there(const float *x, size_t n) { return there(x, n * sizeof *x); }

static void assert_same(const float *want, const float *got_there, size_t n, const char *what)
{
    float *const got = malloc(n * sizeof *got);
    squint_msg msg;
    sq_read(&gpu, got, got_there, n * sizeof *got);
    if (sq_finish(&gpu, &msg)) fail_msg("%s: %s", what, msg.text);
    for (size_t i = 0; i < n; i++)
        if (memcmp(want + i, got + i, sizeof *got) && !(isnan(want[i]) && isnan(got[i])))
            fail_msg("%s: number %zu of %zu is %a, not %a", what, i, n, (double)got[i], (double)want[i]);
    free(got);
}

static void end_round(void)
{
    while (n_parts)
        gpu.ops->free(device, parts[--n_parts]);
}

/* ---- the GPU ---- */

static int open_both(void **state)
{
    (void)state;
    char why[256];
    const squint_allocator a = sq_allocator_or_default(NULL);
    seed = 20;
    gpu.ops = &sq_cuda_ops;
    assert_true(gpu.ops->open(&device, SQ_PRECISION_FILE, why, sizeof why));
    assert_true(gpu.ops->stream_open(&gpu.stream, device, why, sizeof why));
    cpu.kernels = sq_kernels_get("scalar");
    return sq_pool_open(&cpu.pool, 1, &a, NULL);
}

static int close_both(void **state)
{
    (void)state;
    end_round();
    sq_pool_close(&cpu.pool);
    gpu.ops->stream_close(gpu.stream);
    gpu.ops->close(device);
    assert_int_equal(emulator_used_pieces(), 0);
    while (n_weights)
        free(weights[--n_weights]);
    emulator_set_order(EMULATOR_FORWARD, 0);
    return 0;
}

/* Kernels see threads and blocks in another order each round. */
static void begin_round(unsigned round)
{
    static const emulator_order orders[] = {EMULATOR_FORWARD, EMULATOR_REVERSE, EMULATOR_SHUFFLED};
    emulator_set_order(orders[round % 3], round);
}

/* ---- vectors ---- */

static void test_vectors(void **state)
{
    (void)state;
    static const size_t sizes[] = {1, 2, 255, 256, 257, 16384, 40001};
    for (unsigned i = 0; i < SQ_COUNT(sizes); i++) {
        begin_round(i);
        const size_t n = sizes[i];
        float *const x = floats(n), *const y = floats(n), *const w = weight_floats(n);
        x[n / 2] = i % 2 ? NAN : -INFINITY;
        float *const x_there = floats_there(x, n), *const y_there = floats_there(y, n);
        const float scale = random_f32(&seed);
        sq_relu(&cpu, x, n);
        sq_relu(&gpu, x_there, n);
        assert_same(x, x_there, n, "relu");
        sq_add_scaled(&cpu, x, y, scale, n);
        sq_add_scaled(&gpu, x_there, y_there, scale, n);
        assert_same(x, x_there, n, "add");
        sq_add_weights(&cpu, x, w, n);
        sq_add_weights(&gpu, x_there, w, n);
        assert_same(x, x_there, n, "add_weights");
        end_round();
        free(x);
        free(y);
    }
}

static void test_means(void **state)
{
    (void)state;
    for (unsigned i = 0; i < ROUNDS; i++) {
        begin_round(i);
        const uint32_t n = from_to(1, 70), d = from_to(1, 200);
        float *const x = floats((size_t)n * d), *const means = floats(d), *const out = floats_there(NULL, d);
        sq_column_means(&cpu, x, n, d, means);
        sq_column_means(&gpu, floats_there(x, (size_t)n * d), n, d, out);
        assert_same(means, out, d, "means");
        end_round();
        free(x);
        free(means);
    }
}

/* ---- convolutions ---- */

static sq_rows_in norm_of(uint32_t k, float *weight_and_bias)
{
    static const sq_row_op ops[] = {SQ_ROW_LAYERNORM, SQ_ROW_RMSNORM, SQ_ROW_GELU};
    return (sq_rows_in){.k = k,
                        .ldx = k,
                        .op = ops[below(SQ_COUNT(ops))],
                        .weight = weight_and_bias,
                        .bias = weight_and_bias + k,
                        .eps = 1e-5f};
}

static void test_patches(void **state)
{
    (void)state;
    for (unsigned i = 0; i < ROUNDS; i++) {
        begin_round(i);
        sq_patches p = {.channels = from_to(1, 40), .kernel = from_to(1, 5), .stride = from_to(1, 4), .pad = below(3)};
        p.planar = i % 3 == 0;
        p.side = p.kernel + below(12);
        p.out_side = (p.side + 2 * p.pad - p.kernel) / p.stride + 1;
        p.y0 = below(p.out_side);
        p.n_rows = from_to(1, p.out_side - p.y0);
        const size_t n_map = (size_t)p.side * p.side * p.channels;
        const size_t n_out = (size_t)p.n_rows * p.out_side * p.kernel * p.kernel * p.channels;
        float *const map = floats(n_map), *const out = floats(n_out),
                     *const affine = weight_floats(2 * (size_t)p.channels);
        const sq_rows_in norm = norm_of(p.channels, affine);
        p.norm = i % 3 == 1 ? &norm : NULL;
        sq_patches q = p;
        p.map = map;
        p.out = out;
        q.map = floats_there(map, n_map);
        q.out = floats_there(NULL, n_out);
        sq_gather_patches(&cpu, &p);
        sq_gather_patches(&gpu, &q);
        assert_same(out, q.out, n_out, "patches");
        end_round();
        free(map);
        free(out);
    }
}

static void test_depthwise(void **state)
{
    (void)state;
    for (unsigned i = 0; i < ROUNDS; i++) {
        begin_round(i);
        sq_depthwise_map d = {.side = from_to(1, 20), .channels = from_to(1, 80)};
        d.y0 = i % 2 ? below(d.side) : 0;
        d.n_rows = from_to(1, d.side - d.y0);
        const size_t row = (size_t)d.side * d.channels;
        float *const map = floats(d.side * row), *const before = floats(3 * row), *const out = floats(d.n_rows * row);
        float *const w = weight_floats((size_t)SQ_DEPTHWISE_TAPS * d.channels), *const bias = weight_floats(d.channels);
        w[0] = INFINITY; /* which times a zero beside the map would be NaN */
        d.w = w;
        d.bias = bias;
        sq_depthwise_map e = d;
        d.map = map;
        d.before = before;
        d.out = out;
        e.map = floats_there(map, d.side * row);
        e.before = d.y0 ? floats_there(before, 3 * row) : NULL;
        e.out = floats_there(NULL, d.n_rows * row);
        sq_convolve_depthwise(&cpu, &d);
        sq_convolve_depthwise(&gpu, &e);
        assert_same(out, e.out, d.n_rows * row, "depthwise");
        end_round();
        free(map);
        free(before);
        free(out);
    }
}

/* ---- maps of another size ---- */

static void test_resize(void **state)
{
    (void)state;
    static const sq_resize_by ways[] = {SQ_RESIZE_EDGES, SQ_RESIZE_CORNERS, SQ_RESIZE_MEANS};
    for (unsigned i = 0; i < ROUNDS; i++) {
        begin_round(i / 3);
        sq_resize_map r = {
            .by = ways[i % 3], .channels = from_to(1, 300), .out_width = from_to(1, 9), .out_height = from_to(1, 9)};
        const uint32_t ratio = from_to(1, 3);
        r.width = r.by == SQ_RESIZE_MEANS ? ratio * r.out_width : from_to(1, 9);
        r.height = r.by == SQ_RESIZE_MEANS ? ratio * r.out_height : from_to(1, 9);
        r.out_row = r.out_width + below(2);
        const size_t n_map = (size_t)r.width * r.height * r.channels;
        const size_t n_out = (size_t)r.out_row * r.out_height * r.channels;
        float *const map = floats(n_map), *const out = floats(n_out);
        sq_resize_map q = r;
        r.map = map;
        r.out = out;
        q.map = floats_there(map, n_map);
        q.out = floats_there(out, n_out); /* what lies between rows stays */
        sq_resize(&cpu, &r);
        sq_resize(&gpu, &q);
        assert_same(out, q.out, n_out, "resize");
        end_round();
        free(map);
        free(out);
    }
}

/* ---- mining ---- */

typedef struct mining {
    sq_mine m;
    sq_rows_in norm;
    float *maps[SQ_MINE_MAPS], *queries, *asked;
} mining;

/* Tokens that look at part of a map, a corner included; some but the first ask for what is not finite. */
static mining make_mining(uint32_t tokens, uint32_t m, uint32_t shrink)
{
    mining t = {.m = {.tokens = tokens, .m = m, .shrink = shrink, .d = from_to(1, 40)}};
    const uint32_t step = 1u << (SQ_MINE_MAPS - 1), seen = tokens * m, x = below(4), y = below(4);
    uint32_t k = 0;
    t.m.sides[0] = sq_round_up((seen + (x > y ? x : y)) * shrink, step);
    t.m.x = x;
    t.m.y = y;
    for (uint32_t i = 0; i < SQ_MINE_MAPS; i++) {
        t.m.sides[i] = t.m.sides[0] >> i;
        t.m.channels[i] = from_to(1, 12) * (i == 2 ? 30 : 1);
        k += t.m.channels[i];
        t.m.maps[i] = t.maps[i] = floats((size_t)t.m.sides[i] * t.m.sides[i] * t.m.channels[i]);
    }
    const size_t n = (size_t)tokens * tokens;
    const float *const affine = weight_floats(2 * (size_t)k), *const found = weight_floats(2 * (size_t)k);
    t.norm = (sq_rows_in){.k = k, .ldx = k, .op = SQ_ROW_LAYERNORM, .weight = affine, .bias = affine + k, .eps = 1e-5f};
    t.m.queries = t.queries = floats(n * t.m.d);
    t.m.asked = t.asked = floats(n * k);
    t.m.key_offset = weight_floats(t.m.d);
    t.m.weight = found;
    t.m.bias = found + k;
    for (size_t i = 0; i < n * k; i++)
        t.asked[i] *= 0x1p-5f; /* so that several places count */
    for (size_t i = k; i < n * k; i += 1 + below(3 * k))
        t.asked[i] = below(2) ? INFINITY : -INFINITY;
    return t;
}

static void free_mining(mining *t)
{
    for (int i = 0; i < SQ_MINE_MAPS; i++)
        free(t->maps[i]);
    free(t->queries);
    free(t->asked);
}

static void check_mining(uint32_t tokens, uint32_t m, uint32_t shrink)
{
    mining t = make_mining(tokens, m, shrink);
    const size_t n = (size_t)tokens * tokens, k = t.norm.k;
    float *const scratch = malloc(sq_mine_scratch(m, t.norm.k) * sizeof *scratch);
    sq_mine q = t.m;
    for (int i = 0; i < SQ_MINE_MAPS; i++)
        q.maps[i] = floats_there(t.maps[i], (size_t)q.sides[i] * q.sides[i] * q.channels[i]);
    q.norm = t.m.norm = &t.norm;
    q.queries = floats_there(t.queries, n * q.d);
    q.asked = floats_there(t.asked, n * k);
    sq_mine_tokens(&gpu, &q, NULL);
    sq_mine_tokens(&cpu, &t.m, scratch);
    assert_same(t.asked, q.asked, n * k, "mine");
    end_round();
    free(scratch);
    free_mining(&t);
}

static void test_mining(void **state)
{
    (void)state;
    for (unsigned i = 0; i < ROUNDS / 4; i++) {
        begin_round(i);
        check_mining(from_to(1, 3), from_to(1, 4), from_to(1, 3));
    }
    check_mining(5, 2, 1); /* more tokens than are mined at a time */
    for (unsigned i = 0; i < 4; i++)
        check_mining(1, 9, 1); /* more places than threads look at at a time */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vectors),   cmocka_unit_test(test_means),  cmocka_unit_test(test_patches),
        cmocka_unit_test(test_depthwise), cmocka_unit_test(test_resize), cmocka_unit_test(test_mining),
    };
    return cmocka_run_group_tests(tests, open_both, close_both);
}
