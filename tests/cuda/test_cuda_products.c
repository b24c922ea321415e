/*
 * Products, rows, memory and failures of CUDA's verbs, on the emulated GPU. Where weights are panels the expected
 * floats are those of plain C, bit for bit. SPDX-License-Identifier: MIT
 */
#include "simd/device.h"
#include "simd/internal.h"
#include "tests/cuda/emulator.h"
#include "tests/support.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_MATS = 4 };

/* ---- A device ----------------------------------------------------------------------------- */

typedef struct gpu {
    const sq_device_ops *ops;
    sq_device *device;
    sq_stream *stream;
} gpu;

static gpu gpu_open(sq_precision precision)
{
    char why[256] = "";
    gpu g = {.ops = &sq_cuda_ops};
    if (!g.ops->open(&g.device, precision, why, sizeof why)) fail_msg("%s", why);
    if (!g.ops->stream_open(&g.stream, g.device, why, sizeof why)) fail_msg("%s", why);
    return g;
}

static void gpu_finish(const gpu *g)
{
    bool no_memory;
    char why[256] = "";
    if (!g->ops->finish(g->stream, &no_memory, why, sizeof why)) fail_msg("%s", why);
}

/* Nothing is left behind. */
static void gpu_close(gpu *g)
{
    g->ops->stream_close(g->stream);
    g->ops->close(g->device);
    assert_int_equal(emulator_used_pieces(), 0);
}

static void *gpu_copy(const gpu *g, const void *from, size_t bytes)
{
    void *const p = g->ops->alloc(g->device, bytes);
    assert_non_null(p);
    g->ops->write(g->stream, p, from, bytes);
    return p;
}

/* ---- Things to multiply ------------------------------------------------------------------- */

static uint64_t seed;

static uint32_t below(uint32_t n) { return (uint32_t)(random_u64(&seed) % n); }

static float *floats(size_t n, float size)
{
    float *const x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = random_f32(&seed) * size;
    return x;
}

/* Any bytes are weights, padding included; scales are halves or floats of all sizes, zeros and negative ones too. */
static uint8_t *panels(const sq_panels *w)
{
    const size_t each = sq_panel_bytes(w), weights = sq_panel_weight_bytes(w);
    uint8_t *const data = aligned_alloc(SQ_PANEL_ALIGN, sq_panels_bytes(w));
    for (size_t p = 0; p < sq_panel_count(w); p++) {
        uint8_t *const panel = data + p * each;
        for (size_t i = 0; i < weights; i++)
            panel[i] = (uint8_t)random_u64(&seed);
        for (size_t i = weights; i + 4 <= each; i += 4) {
            const float scale = ldexpf(random_f32(&seed), (int)below(24) - 20);
            const uint32_t half = sq_f32_to_f16(scale);
            uint32_t bits = half | (uint32_t)sq_f32_to_f16(below(8) ? -scale : 0.0f) << 16;
            if (!w->group) memcpy(&bits, &scale, sizeof bits);
            memcpy(panel + i, &bits, sizeof bits);
        }
    }
    return data;
}

/* Some of 0 to n - 1, each once, in any order. */
static uint32_t *some_rows(uint32_t m, uint32_t n)
{
    uint32_t *const rows = malloc(n * sizeof *rows);
    for (uint32_t i = 0; i < n; i++)
        rows[i] = i;
    for (uint32_t i = 0; i < m; i++) {
        const uint32_t j = i + below(n - i), t = rows[i];
        rows[i] = rows[j];
        rows[j] = t;
    }
    return rows;
}

/* Rows to read, of `n_x` that there are. */
typedef struct source {
    sq_rows_in in;
    uint32_t n_x;
    float *x, *weight, *bias;
    uint32_t *rows;
} source;

static source make_source(uint32_t m, uint32_t k, sq_row_op op, bool gather)
{
    source s = {.n_x = gather ? m + 3 : m};
    const size_t ldx = (op == SQ_ROW_SWIGLU ? 2 * (size_t)k : k) + below(5);
    s.x = floats(s.n_x * ldx, 4.0f);
    for (uint32_t i = 0; i < k && i < 40; i++)
        s.x[i] = 0.0f; /* a group of nothing, and another of next to it */
    for (uint32_t i = 0; i < k && s.n_x > 1; i++)
        s.x[ldx + i] *= i % 512 < 256 ? 1e-33f : 1e20f;
    s.weight = floats(k, 2.0f);
    s.bias = floats(k, 1.0f);
    s.rows = gather ? some_rows(m, s.n_x) : NULL;
    s.in = (sq_rows_in){s.x, ldx, s.rows, k, op, s.weight, s.bias, 1e-5f};
    return s;
}

static sq_rows_in upload_source(const gpu *g, const source *s)
{
    sq_rows_in in = s->in;
    in.x = gpu_copy(g, s->x, s->n_x * s->in.ldx * sizeof(float));
    if (s->rows) in.rows = gpu_copy(g, s->rows, s->n_x * sizeof *s->rows);
    return in;
}

static void free_source(const gpu *g, source *s, const sq_rows_in *there)
{
    g->ops->free(g->device, (void *)there->x);
    g->ops->free(g->device, (void *)there->rows);
    free(s->x);
    free(s->weight);
    free(s->bias);
    free(s->rows);
}

/* A matrix and what becomes of its product. */
typedef struct target {
    sq_mat w;
    sq_gemm_out out;
    uint32_t n_c; /* rows of c */
    float *c, *bias, *row_weight;
    uint32_t *rows;
} target;

static target make_target(uint32_t m, uint32_t n, uint32_t k, const sq_panels *type, unsigned flags)
{
    target t = {.w = {.n = n, .k = k}, .n_c = m + 2};
    if (type && !type->type) {
        t.w.ordered = floats((size_t)sq_round_up(n, SQ_PANEL_N) * k, 1.0f);
    } else if (type) {
        t.w.panels = *type;
        t.w.panels.n = n;
        t.w.panels.k = k;
        t.w.panels.data = panels(&t.w.panels);
    } else {
        t.w.f32 = floats((size_t)n * k, 1.0f);
    }
    const size_t ldc = n + flags % 3;
    t.c = floats(t.n_c * ldc, 8.0f);
    t.bias = flags & 4 ? floats(n, 8.0f) : NULL;
    t.row_weight = flags & 8 ? floats(m, 1.0f) : NULL;
    t.rows = flags & 16 ? some_rows(m, t.n_c) : NULL;
    t.out = (sq_gemm_out){t.c, ldc, t.bias, t.rows, t.row_weight, flags & 32};
    return t;
}

static size_t target_bytes(const target *t) { return t->n_c * t->out.ldc * sizeof(float); }

static sq_gemm_out upload_target(const gpu *g, const target *t, uint32_t m)
{
    sq_gemm_out out = t->out;
    out.c = gpu_copy(g, t->c, target_bytes(t));
    if (t->rows) out.rows = gpu_copy(g, t->rows, m * sizeof *t->rows);
    if (t->row_weight) out.row_weight = gpu_copy(g, t->row_weight, m * sizeof *t->row_weight);
    return out;
}

static void free_target(const gpu *g, target *t, const sq_gemm_out *there)
{
    g->ops->free(g->device, there->c);
    g->ops->free(g->device, (void *)there->rows);
    g->ops->free(g->device, (void *)there->row_weight);
    free((void *)t->w.f32);
    free((void *)t->w.ordered);
    free((void *)t->w.panels.data);
    free(t->c);
    free(t->bias);
    free(t->row_weight);
    free(t->rows);
}

/* ---- What plain C makes of them ------------------------------------------------------------ */

static void ordered_c(const sq_rows_in *in, uint32_t m, target *t)
{
    const uint32_t k = in->k;
    float *const x = malloc((size_t)m * k * sizeof *x);
    for (uint32_t i = 0; i < m; i++)
        sq_row_c(in, in->x + (in->rows ? in->rows[i] : i) * in->ldx, x + (size_t)i * k);
    const sq_float_rows rows = {x, k, 0, m};
    sq_gemm_f32_c(&t->w, 0, (t->w.n + SQ_PANEL_N - 1) / SQ_PANEL_N, &rows, &t->out);
    free(x);
}

static void panels_c(const sq_rows_in *in, uint32_t m, target *t)
{
    const sq_panels *const w = &t->w.panels;
    if (t->w.ordered) {
        ordered_c(in, m, t);
        return;
    }
    sq_acts a = {.m = m, .k = in->k, .group = sq_panels_act_group(w), .mr = SQ_MR_C};
    const size_t rows = (size_t)sq_acts_tiles(&a) * a.mr, groups = sq_acts_groups(&a);
    a.q = malloc(rows * sq_acts_k_pad(&a));
    a.scale = malloc(rows * groups * sizeof *a.scale);
    a.sum = malloc(rows * groups * sizeof *a.sum);
    float *const scratch = malloc(in->k * sizeof *scratch);
    sq_rows_pack_c(in, &a, 0, sq_acts_tiles(&a), scratch);
    (w->type == SQ_PANEL_I4 ? sq_gemm_i4_c : sq_gemm_i8_c)(w, 0, (uint32_t)sq_panel_count(w), &a, &t->out);
    free(a.q);
    free(a.scale);
    free(a.sum);
    free(scratch);
}

/* In binary64; inputs and weights are rounded to binary16 when `half`. bound: of each value, in units of `unit`. */
static void floats_c(const sq_rows_in *in, uint32_t m, const target *t, bool half, double *out, double *bound)
{
    const uint32_t k = in->k, n = t->w.n;
    float *const y = malloc(k * sizeof *y), *const w = malloc(k * sizeof *w);
    for (uint32_t i = 0; i < m; i++) {
        sq_row_c(in, in->x + (in->rows ? in->rows[i] : i) * in->ldx, y);
        for (uint32_t j = 0; j < n; j++) {
            double v = 0.0, size = 0.0;
            if (t->w.f32)
                memcpy(w, t->w.f32 + (size_t)j * k, k * sizeof *w);
            else
                sq_panels_row(&t->w.panels, j, w);
            for (uint32_t l = 0; l < k; l++) {
                const double a = half ? sq_f16_to_f32(sq_f32_to_f16(y[l])) : y[l];
                const double b = half ? sq_f16_to_f32(sq_f32_to_f16(w[l])) : w[l];
                v += a * b;
                size += fabs(a * b);
            }
            const double c = t->c[(t->rows ? t->rows[i] : i) * t->out.ldc + j], bias = t->bias ? t->bias[j] : 0.0;
            const double weight = t->row_weight ? t->row_weight[i] : 1.0;
            out[(size_t)i * n + j] = weight * (v + bias) + (t->out.add ? c : 0.0);
            bound[(size_t)i * n + j] = fabs(weight) * (size + fabs(bias)) + fabs(c);
        }
    }
    free(y);
    free(w);
}

/* ---- Products to the bit ------------------------------------------------------------------- */

typedef struct matrix {
    uint32_t n;
    sq_panel_type type; /* 0: ordered floats */
    uint32_t group;
} matrix;

static void check_project(const gpu *g, uint32_t m, uint32_t k, sq_row_op op, bool gather, const matrix *mats,
                          unsigned n_mats, unsigned flags)
{
    target t[MAX_MATS];
    sq_gemm_out out[MAX_MATS];
    const sq_mat *w[MAX_MATS];
    source s = make_source(m, k, op, gather);
    const sq_rows_in in = upload_source(g, &s);
    for (unsigned i = 0; i < n_mats; i++) {
        const sq_panels type = {.type = mats[i].type, .group = mats[i].group};
        t[i] = make_target(m, mats[i].n, k, &type, flags >> i);
        out[i] = upload_target(g, &t[i], m);
        w[i] = &t[i].w;
    }
    g->ops->project(g->stream, &in, m, w, out, n_mats);
    for (unsigned i = 0; i < n_mats; i++) {
        float *const got = malloc(target_bytes(&t[i]));
        g->ops->read(g->stream, got, out[i].c, target_bytes(&t[i]));
        gpu_finish(g);
        panels_c(&s.in, m, &t[i]);
        for (size_t e = 0; e < target_bytes(&t[i]) / sizeof(float); e++)
            if (memcmp(&got[e], &t[i].c[e], sizeof(float)))
                fail_msg(
                    "m %u k %u op %d gather %d, matrix %u (n %u, type %u, group %u, flags %u): row %zu channel %zu "
                    "is %a and not %a",
                    m, k, op, gather, i, mats[i].n, mats[i].type, mats[i].group, flags >> i, e / t[i].out.ldc,
                    e % t[i].out.ldc, (double)got[e], (double)t[i].c[e]);
        free(got);
    }
    for (unsigned i = 0; i < n_mats; i++)
        free_target(g, &t[i], &out[i]);
    free_source(g, &s, &in);
}

/* All combinations of what changes a kernel's way: type, group against step, pair and batch, and rows against blocks
 * and tiles. Each call has a device of its own: matrices are known by their addresses, which malloc() uses again. */
static void test_shapes(void **state)
{
    (void)state;
    static const uint32_t ms[] = {1, 8, 9, 17, 33, 64, 65, 70, 130}, groups[] = {0, 32, 64, 96, 128, 256, 288, 512};
    static const uint32_t ks[] = {1, 32, 33, 64, 100, 256, 520, 1056}, ns[] = {1, 16, 17, 130, 400};
    unsigned count = 0;
    for (unsigned i = 0; i < sizeof ms / sizeof *ms; i++)
        for (unsigned j = 0; j < sizeof groups / sizeof *groups; j++)
            for (int i4 = 0; i4 < 2; i4++) {
                /* The others take turns: their numbers share no factor with those of the loops, or come from it. */
                const uint32_t k = ks[(count + count / 8) % 8], n = ns[count % 5];
                const matrix mat = {n, i4 ? SQ_PANEL_I4 : SQ_PANEL_I8, groups[j]};
                seed = count;
                gpu g = gpu_open(SQ_PRECISION_FILE);
                check_project(&g, ms[i], k, (sq_row_op)(count % 6), count % 3 == 0, &mat, 1, count * 7);
                gpu_close(&g);
                count++;
            }
}

/* Of several matrices some share activations, some a launch. */
static void test_several(void **state)
{
    (void)state;
    static const matrix mats[][MAX_MATS] = {
        {{48, SQ_PANEL_I8, 0}, {16, SQ_PANEL_I8, 0}, {33, SQ_PANEL_I8, 0}, {140, SQ_PANEL_I8, 256}},
        {{20, SQ_PANEL_I4, 32}, {40, SQ_PANEL_I8, 32}, {150, SQ_PANEL_I4, 32}, {16, SQ_PANEL_I8, 0}},
        {{70, 0, 0}, {130, 0, 0}, {16, SQ_PANEL_I4, 64}, {9, 0, 0}},
        {{17, SQ_PANEL_I8, 512}, {16, SQ_PANEL_I4, 64}, {16, SQ_PANEL_I4, 512}, {130, SQ_PANEL_I8, 64}},
    };
    for (unsigned i = 0; i < sizeof mats / sizeof *mats; i++)
        for (unsigned n = 2; n <= MAX_MATS; n++)
            for (uint32_t m = 2; m < 100; m += 45) {
                seed = i * 100 + n;
                gpu g = gpu_open(SQ_PRECISION_FILE);
                check_project(&g, m, 530, SQ_ROW_RMSNORM, n == 3, mats[i], n, 0x5a3c + n);
                gpu_close(&g);
            }
}

/* Floats in one order, whatever the precision: tiles and parts that end early, rows that are read as they lie. */
static void test_ordered(void **state)
{
    (void)state;
    static const uint32_t ms[] = {1, 64, 70}, ks[] = {1, 16, 49, 147}, ns[] = {1, 16, 64, 90};
    unsigned count = 0;
    for (unsigned i = 0; i < 3; i++)
        for (unsigned j = 0; j < 4; j++)
            for (unsigned l = 0; l < 4; l++, count++) {
                const matrix mat = {ns[l], 0, 0};
                seed = count;
                gpu g = gpu_open((sq_precision)(count % 3));
                check_project(&g, ms[i], ks[j], (sq_row_op)(count % 2 ? 0 : count / 2 % 6), count % 4 == 3, &mat, 1,
                              count * 3);
                gpu_close(&g);
            }
}

/* Products too small for a float leave -0, which stays -0 whatever is done past k. */
static void test_ordered_zero(void **state)
{
    (void)state;
    gpu g = gpu_open(SQ_PRECISION_FILE);
    const float x = 1e-30f, w[SQ_PANEL_N] = {-1e-30f};
    const sq_mat mat = {.n = 1, .k = 1, .ordered = w}, *const mats[] = {&mat};
    float c = 1.0f;
    const sq_rows_in in = {.x = gpu_copy(&g, &x, sizeof x), .ldx = 1, .k = 1, .op = SQ_ROW_COPY};
    const sq_gemm_out out = {.c = g.ops->alloc(g.device, sizeof c), .ldc = 1};
    g.ops->project(g.stream, &in, 1, mats, &out, 1);
    g.ops->read(g.stream, &c, out.c, sizeof c);
    gpu_finish(&g);
    assert_true(c == 0.0f && signbit(c));
    g.ops->free(g.device, (void *)in.x);
    g.ops->free(g.device, out.c);
    gpu_close(&g);
}

/* The largest whole numbers, of all signs: of a group that is made a float by a subtraction, and of the largest. */
static void test_extremes(void **state)
{
    (void)state;
    static const uint32_t groups[] = {256, 2048, SQ_MAX_K};
    for (unsigned i = 0; i < 3; i++)
        for (int i4 = 0; i4 < 2; i4++)
            for (int sign = -1; sign <= 1; sign += 2)
                for (uint32_t m = 1; m <= (i < 2 ? 33 : 1); m += 32) {
                    const uint32_t k = groups[i], n = 16;
                    gpu g = gpu_open(SQ_PRECISION_FILE);
                    sq_panels type = {.type = i4 ? SQ_PANEL_I4 : SQ_PANEL_I8, .group = groups[i]};
                    target t = make_target(m, n, k, &type, 0);
                    memset((void *)t.w.panels.data, 0, sq_panel_weight_bytes(&t.w.panels));
                    float *const x = malloc((size_t)m * k * sizeof *x);
                    for (size_t e = 0; e < (size_t)m * k; e++)
                        x[e] = (float)sign;
                    sq_rows_in in = {.x = x, .ldx = k, .k = k, .op = SQ_ROW_COPY};
                    sq_rows_in there = in;
                    there.x = gpu_copy(&g, x, (size_t)m * k * sizeof *x);
                    sq_gemm_out out = upload_target(&g, &t, m);
                    const sq_mat *const w = &t.w;
                    float *const got = malloc(target_bytes(&t));
                    g.ops->project(g.stream, &there, m, &w, &out, 1);
                    g.ops->read(g.stream, got, out.c, target_bytes(&t));
                    gpu_finish(&g);
                    panels_c(&in, m, &t);
                    assert_memory_equal(got, t.c, target_bytes(&t));
                    free(got);
                    free(x);
                    g.ops->free(g.device, (void *)there.x);
                    free_target(&g, &t, &out);
                    gpu_close(&g);
                }
}

/* ---- Products of floats -------------------------------------------------------------------- */

static void check_floats(sq_precision precision, uint32_t m, uint32_t n, uint32_t k, const sq_panels *type,
                         sq_row_op op, bool gather, unsigned flags)
{
    const bool half = precision == SQ_PRECISION_F16;
    gpu g = gpu_open(precision);
    source s = make_source(m, k, op, gather);
    for (uint32_t i = 0; i < s.n_x * s.in.ldx; i++)
        s.x[i] = random_f32(&seed) * 4.0f; /* halves have no room for the largest */
    const sq_rows_in in = upload_source(&g, &s);
    target t = make_target(m, n, k, type, flags);
    const sq_gemm_out out = upload_target(&g, &t, m);
    const sq_mat *const w = &t.w;
    double *const expected = malloc((size_t)m * n * sizeof(double)), *const size =
                                                                         malloc((size_t)m * n * sizeof(double));
    float *const got = malloc(target_bytes(&t));
    g.ops->project(g.stream, &in, m, &w, &out, 1);
    g.ops->read(g.stream, got, out.c, target_bytes(&t));
    gpu_finish(&g);
    floats_c(&s.in, m, &t, half, expected, size);
    for (uint32_t i = 0; i < m; i++)
        for (uint32_t j = 0; j < n; j++) {
            /* k + 3 roundings, each of half an ulp of no more than what has the magnitudes added. */
            const double v = got[(t.rows ? t.rows[i] : i) * t.out.ldc + j], e = expected[(size_t)i * n + j];
            if (!(fabs(v - e) <= size[(size_t)i * n + j] * (k + 3) * 0x1p-24))
                fail_msg("precision %d m %u n %u k %u op %d flags %u: row %u channel %u is %g and not %g", precision, m,
                         n, k, op, flags, i, j, v, e);
        }
    free(got);
    free(expected);
    free(size);
    free_target(&g, &t, &out);
    free_source(&g, &s, &in);
    gpu_close(&g);
}

static void test_floats(void **state)
{
    (void)state;
    static const sq_panels i8 = {.type = SQ_PANEL_I8, .group = 0}, i4 = {.type = SQ_PANEL_I4, .group = 32},
                           i8_32 = {.type = SQ_PANEL_I8, .group = 64};
    const sq_panels *const types[] = {NULL, &i8, &i4, &i8_32};
    unsigned count = 0;
    for (int precision = SQ_PRECISION_FILE; precision <= SQ_PRECISION_F16; precision++)
        for (unsigned type = 0; type < 4; type++) {
            if (precision == SQ_PRECISION_FILE && type) continue;
            for (unsigned i = 0; i < 6; i++, count++) {
                static const uint32_t ms[] = {1, 7, 20}, ns[] = {1, 33}, ks[] = {5, 64, 131};
                seed = count;
                check_floats((sq_precision)precision, ms[count % 3], ns[count % 2], ks[count / 2 % 3], types[type],
                             (sq_row_op)i, count % 4 == 1, count * 5);
            }
        }
}

/* So many channels that products wait for their store a few rows at a time. */
static void test_floats_in_parts(void **state)
{
    (void)state;
    seed = 1;
    check_floats(SQ_PRECISION_F32, 5, 6000000, 1, NULL, SQ_ROW_COPY, false, 4);
}

/* ---- Rows ---------------------------------------------------------------------------------- */

static void test_rows(void **state)
{
    (void)state;
    static const uint32_t ks[] = {1, 31, 32, 257, 1100, 5000};
    gpu g = gpu_open(SQ_PRECISION_FILE);
    for (int op = SQ_ROW_COPY; op <= SQ_ROW_GELU; op++)
        for (unsigned i = 0; i < sizeof ks / sizeof *ks; i++)
            for (int in_place = 0; in_place < 2; in_place++) {
                const uint32_t m = 3, k = ks[i];
                seed = i;
                source s = make_source(m, k, (sq_row_op)op, !in_place && i % 2);
                const sq_rows_in in = upload_source(&g, &s);
                const size_t ldo = in_place ? s.in.ldx : k + 1, bytes = m * ldo * sizeof(float);
                float *const out = in_place ? (float *)in.x : g.ops->alloc(g.device, bytes);
                float *const got = malloc(bytes), *const expected = malloc(k * sizeof *expected);
                g.ops->rows(g.stream, &in, m, out, ldo);
                g.ops->read(g.stream, got, out, bytes);
                gpu_finish(&g);
                for (uint32_t r = 0; r < m; r++) {
                    sq_row_c(&s.in, s.x + (s.rows ? s.rows[r] : r) * s.in.ldx, expected);
                    assert_memory_equal(got + r * ldo, expected, k * sizeof(float));
                }
                free(got);
                free(expected);
                if (!in_place) g.ops->free(g.device, out);
                free_source(&g, &s, &in);
                gpu_close(&g); /* weights of the next one may lie where this one's were */
                g = gpu_open(SQ_PRECISION_FILE);
            }
    gpu_close(&g);
}

/* ---- Memory -------------------------------------------------------------------------------- */

/* Writes of all sizes, whose sources change at once, come one after another to where they belong. */
static void test_memory(void **state)
{
    (void)state;
    enum { SIZE = 3 << 20, WRITES = 60 };
    gpu g = gpu_open(SQ_PRECISION_FILE);
    uint8_t *const image = calloc(1, SIZE), *const from = malloc(SIZE), *const got = malloc(SIZE);
    uint8_t *const there = gpu_copy(&g, image, SIZE), *const copy = g.ops->alloc(g.device, SIZE);
    seed = 5;
    for (int i = 0; i < WRITES; i++) {
        const size_t bytes = i == 20   ? SIZE
                             : i == 30 ? 0
                             : i == 40 ? 1 << 20
                                       : below(200000),
                     at = below((uint32_t)(SIZE - bytes + 1));
        memset(from, i + 1, bytes);
        memset(image + at, i + 1, bytes);
        g.ops->write(g.stream, there + at, from, bytes);
        memset(from, 0xee, bytes);
    }
    g.ops->copy(g.stream, copy, there, SIZE);
    g.ops->read(g.stream, got, copy, SIZE);
    gpu_finish(&g);
    assert_memory_equal(got, image, SIZE);
    assert_int_equal((uintptr_t)there % 256, 0);
    g.ops->free(g.device, there);
    g.ops->free(g.device, copy);
    g.ops->free(g.device, NULL);
    free(image);
    free(from);
    free(got);
    gpu_close(&g);
}

/* More matrices than the table has room for at first; each goes to the device once, and two streams share it. */
static void test_weights_once(void **state)
{
    (void)state;
    enum { N = 700, K = 32 };
    gpu g = gpu_open(SQ_PRECISION_FILE);
    gpu other = g;
    char why[256];
    assert_true(g.ops->stream_open(&other.stream, g.device, why, sizeof why));
    float *const weights = floats((size_t)N * K, 1.0f), x[K], expected[K], got[K];
    float *const there = g.ops->alloc(g.device, sizeof x), *const out = g.ops->alloc(g.device, sizeof x);
    memset(x, 0, sizeof x);
    x[3] = 2.0f;
    g.ops->write(g.stream, there, x, sizeof x);
    gpu_finish(&g);
    size_t pieces = 0;
    for (int round = 0; round < 2; round++) {
        for (uint32_t i = 0; i < N; i++) {
            const gpu *const one = (i + (unsigned)round) % 2 ? &g : &other;
            sq_rows_in in = {.x = there, .ldx = K, .k = K, .op = SQ_ROW_RMSNORM, .weight = weights + i * K};
            one->ops->rows(one->stream, &in, 1, out, K);
            one->ops->read(one->stream, got, out, sizeof got);
            in.x = x;
            sq_row_c(&in, x, expected);
            assert_memory_equal(got, expected, sizeof got);
        }
        if (!round) pieces = emulator_used_pieces();
    }
    assert_int_equal(emulator_used_pieces(), pieces);
    g.ops->free(g.device, there);
    g.ops->free(g.device, out);
    g.ops->stream_close(other.stream);
    free(weights);
    gpu_close(&g);
}

/* ---- Failures ------------------------------------------------------------------------------ */

static void test_no_gpu(void **state)
{
    (void)state;
    const sq_device_ops *const ops = &sq_cuda_ops;
    sq_device *d = (sq_device *)1;
    char why[256] = "";
    emulator_set_gpus(0);
    assert_false(ops->open(&d, SQ_PRECISION_FILE, why, sizeof why));
    assert_null(d);
    assert_string_equal(why, "no GPU was found");
    emulator_set_gpus(1);
}

static void expect_failure(const gpu *g, bool no_memory, const char *words)
{
    bool none;
    char why[256] = "";
    for (int i = 0; i < 2; i++) { /* it stays */
        assert_false(g->ops->finish(g->stream, &none, why, sizeof why));
        assert_int_equal(none, no_memory);
        if (!strstr(why, words)) fail_msg("\"%s\" has no \"%s\"", why, words);
    }
}

/* Each allocation of a product in turn fails. The stream tells it, reads zeros from then on, and the device goes on
 * working for others. */
static void test_no_memory(void **state)
{
    (void)state;
    const sq_panels type = {.type = SQ_PANEL_I8, .group = 32};
    for (unsigned precision = 0; precision < 3; precision++) {
        bool failed = true;
        for (unsigned nth = 1; failed; nth++) {
            const uint32_t m = 5, n = 20, k = 40;
            bool none;
            char why[256] = "";
            float got[2] = {1.0f, 1.0f};
            gpu g = gpu_open((sq_precision)precision);
            source s = make_source(m, k, SQ_ROW_LAYERNORM, false);
            const sq_rows_in in = upload_source(&g, &s);
            target t = make_target(m, n, k, &type, 4);
            const sq_gemm_out out = upload_target(&g, &t, m);
            const sq_mat *const w = &t.w;
            gpu_finish(&g);
            emulator_fail(EMULATOR_FAIL_MALLOC, nth);
            g.ops->project(g.stream, &in, m, &w, &out, 1);
            emulator_fail(EMULATOR_FAIL_MALLOC, 0);
            g.ops->read(g.stream, got, out.c, sizeof got);
            failed = !g.ops->finish(g.stream, &none, why, sizeof why);
            if (failed) {
                expect_failure(&g, true, "the GPU's memory is full");
                assert_true(got[0] == 0.0f && got[1] == 0.0f);
                g.ops->stream_close(g.stream);
                assert_true(g.ops->stream_open(&g.stream, g.device, why, sizeof why));
                g.ops->project(g.stream, &in, m, &w, &out, 1);
                gpu_finish(&g);
            } else {
                assert_true(nth > 3);
            }
            free_target(&g, &t, &out);
            free_source(&g, &s, &in);
            gpu_close(&g);
        }
    }
}

static void test_no_stream(void **state)
{
    (void)state;
    const sq_device_ops *const ops = &sq_cuda_ops;
    sq_device *d = NULL;
    char why[256] = "";
    emulator_fail(EMULATOR_FAIL_STREAM, 1);
    assert_false(ops->open(&d, SQ_PRECISION_FILE, why, sizeof why));
    assert_null(d);
    assert_non_null(strstr(why, "opening a stream: "));
    gpu g = gpu_open(SQ_PRECISION_F32);
    emulator_fail(EMULATOR_FAIL_PINNED, 1);
    float x = 1.0f, *const there = g.ops->alloc(g.device, sizeof x);
    g.ops->write(g.stream, there, &x, sizeof x);
    expect_failure(&g, true, "pinned memory");
    g.ops->free(g.device, there);
    gpu_close(&g);
}

static void test_no_launch(void **state)
{
    (void)state;
    gpu g = gpu_open(SQ_PRECISION_FILE);
    float x[4] = {1.0f, 2.0f, 3.0f, 4.0f};
    float *const there = gpu_copy(&g, x, sizeof x);
    const sq_rows_in in = {.x = there, .ldx = 4, .k = 4, .op = SQ_ROW_GELU};
    gpu_finish(&g);
    emulator_fail(EMULATOR_FAIL_LAUNCH, 1);
    g.ops->rows(g.stream, &in, 1, there, 4);
    g.ops->read(g.stream, x, there, sizeof x);
    expect_failure(&g, false, "");
    assert_true(x[0] == 0.0f);
    emulator_fail(EMULATOR_FAIL_LAUNCH, 0);
    g.ops->free(g.device, there);
    gpu_close(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_several),
        cmocka_unit_test(test_ordered),
        cmocka_unit_test(test_ordered_zero),
        cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_floats),
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_floats_in_parts),
        cmocka_unit_test(test_no_gpu),
        cmocka_unit_test(test_weights_once),
        cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_no_stream),
        cmocka_unit_test(test_no_launch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
