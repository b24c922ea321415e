/*
 * test_kernels: every table of kernels that this CPU runs, one after the other, against plain double arithmetic
 * and, where simd.h promises equality to the last bit, against the C table.
 * SPDX-License-Identifier: MIT
 *
 * All operands end at an inaccessible page. Bounds are in units of FLT_EPSILON, twice the largest relative
 * error of one rounding: a bound that counts roundings has a factor of two to spare.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "simd/exp.h"
#include "simd/simd.h"
#include "tests/support.h"

static const sq_kernels *kernels; /* under test */
static const sq_kernels *plain_c;
static uint64_t seed = 1;

static uint32_t below(uint32_t n) { return (uint32_t)(random_u64(&seed) % n); }

static void *guarded(size_t n, size_t size) { return guarded_alloc(n * size, size); }

static float *random_floats(size_t n, float size)
{
    float *x = guarded(n, sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = size * random_f32(&seed);
    return x;
}

/* NaN compares false and so fails too. */
#define assert_near(got, want, bound)                                                                                  \
    do {                                                                                                               \
        if (!(fabs((double)(got) - (double)(want)) <= (double)(bound))) {                                              \
            fail_msg("%s: %.9g, not %.9g within %.3g", kernels->isa, (double)(got), (double)(want), (double)(bound));  \
        }                                                                                                              \
    } while (0)

/* ---- Activations ------------------------------------------------------------------------- */

static void acts_alloc(sq_acts *a, uint32_t m, uint32_t k, uint32_t group, uint32_t mr)
{
    *a = (sq_acts){.m = m, .k = k, .group = group, .mr = mr};
    const size_t tiles = sq_acts_tiles(a), scales = tiles * sq_acts_groups(a) * a->mr;
    const size_t q_bytes = tiles * sq_acts_k_pad(a) * a->mr;
    a->q = guarded_alloc(q_bytes, 64);
    a->scale = guarded(scales, sizeof *a->scale);
    a->sum = guarded(scales, sizeof *a->sum);
    memset(a->q, 0x55, q_bytes);
    memset(a->scale, 0x55, scales * sizeof *a->scale);
    memset(a->sum, 0x55, scales * sizeof *a->sum);
}

static void acts_free(sq_acts *a)
{
    guarded_free(a->q);
    guarded_free(a->scale);
    guarded_free(a->sum);
}

static int acts_q(const sq_acts *a, uint32_t row, uint32_t k)
{
    const size_t tile = row / a->mr, r = row % a->mr;
    return a->q[(tile * (sq_acts_k_pad(a) / 4) + k / 4) * a->mr * 4 + r * 4 + k % 4];
}

static size_t acts_at(const sq_acts *a, uint32_t row, uint32_t g)
{
    return ((size_t)(row / a->mr) * sq_acts_groups(a) + g) * a->mr + row % a->mr;
}

/* ---- Rows -------------------------------------------------------------------------------- */

static const sq_row_op ops[] = {SQ_ROW_COPY,   SQ_ROW_RMSNORM,   SQ_ROW_LAYERNORM,
                                SQ_ROW_SWIGLU, SQ_ROW_QUICKGELU, SQ_ROW_GELU};
static const uint32_t row_lengths[] = {1, 2, 7, 8, 9, 31, 32, 33, 40, 64, 129, 256, 300, 1031};

static void rows_in_alloc(sq_rows_in *in, sq_row_op op, uint32_t k)
{
    *in = (sq_rows_in){.k = k, .op = op, .eps = 1e-5f};
    if (op == SQ_ROW_RMSNORM || op == SQ_ROW_LAYERNORM) in->weight = random_floats(k, 2.0f);
    if (op == SQ_ROW_LAYERNORM) in->bias = random_floats(k, 1.0f);
}

static void rows_in_free(sq_rows_in *in)
{
    guarded_free((void *)in->weight);
    guarded_free((void *)in->bias);
}

/* The row in double, and for each element what its error may be. */
static void reference_row(const sq_rows_in *in, const float *x, double *y, double *bound)
{
    const uint32_t k = in->k;
    double sum = 0, sizes = 0, squares = 0;
    for (uint32_t i = 0; i < k; i++) {
        sum += x[i];
        sizes += fabs(x[i]);
    }
    const double mean = in->op == SQ_ROW_LAYERNORM ? sum / k : 0;
    for (uint32_t i = 0; i < k; i++)
        squares += (x[i] - mean) * (x[i] - mean);
    const double r = 1 / sqrt(squares / k + (double)in->eps);
    /* Each of the 32 partial sums takes k / 32 additions, and at the end 5 more join them. */
    const double chain = k / 32.0 + 6;
    for (uint32_t i = 0; i < k; i++) {
        const double v = x[i];
        switch (in->op) {
        case SQ_ROW_COPY:
            y[i] = v;
            bound[i] = 0;
            break;
        case SQ_ROW_RMSNORM:
            /* The sum's relative error is halved by the root; 6 roundings follow. */
            y[i] = v * r * in->weight[i];
            bound[i] = FLT_EPSILON * (chain / 2 + 6) * fabs(y[i]);
            break;
        case SQ_ROW_LAYERNORM: {
            /* As before, and the mean is wrong by up to chain roundings of mean |x|: each x - mean by as much. */
            const double shift = FLT_EPSILON * chain * sizes / k;
            y[i] = (v - mean) * r * in->weight[i] + in->bias[i];
            bound[i] = (shift * (1 + k * r * r * shift) + FLT_EPSILON * (chain + 8) * fabs(v - mean)) * r *
                           fabs((double)in->weight[i]) +
                       FLT_EPSILON * fabs(y[i]);
            break;
        }
        case SQ_ROW_SWIGLU:
        case SQ_ROW_QUICKGELU: {
            /* exp within 1.01 ULP of an argument that itself was rounded: a relative error of |sx| / 2 roundings.
             * exp(88) stands for what is larger: the result then is below |v * up| / 1.6e38. */
            const double sx = (in->op == SQ_ROW_SWIGLU ? 1.0 : (double)1.702f) * v;
            const double up = in->op == SQ_ROW_SWIGLU ? x[k + i] : 1.0;
            y[i] = v / (1 + exp(-sx)) * up;
            bound[i] = FLT_EPSILON * (6 + fabs(sx)) * fabs(y[i]) + FLT_MIN * fabs(v * up);
            break;
        }
        case SQ_ROW_GELU:
            /* 1 + erf cancels for negative x: erf is wrong by 1.25 ULP and by half an epsilon for its rounded
             * argument, and both stay as they are in the sum. */
            y[i] = v / 2 * (1 + erf(v * sqrt(0.5)));
            bound[i] = FLT_EPSILON * 2 * fabs(v);
            break;
        }
    }
}

static void rows_equal_double_arithmetic(void **state)
{
    (void)state;
    for (size_t o = 0; o < sizeof ops / sizeof *ops; o++) {
        for (size_t l = 0; l < sizeof row_lengths / sizeof *row_lengths; l++) {
            const uint32_t k = row_lengths[l];
            sq_rows_in in;
            rows_in_alloc(&in, ops[o], k);
            for (int size = 0; size < 3; size++) {
                float *x = random_floats(2 * k, (const float[]){1.0f, 20.0f, 200.0f}[size]);
                float *copy = in.op == SQ_ROW_SWIGLU ? x : x + k; /* other rows end with their k floats */
                float *y = guarded(k, sizeof *y);
                double want[2048], bound[2048];
                reference_row(&in, copy, want, bound);
                kernels->row(&in, copy, y);
                for (uint32_t i = 0; i < k; i++)
                    assert_near(y[i], want[i], bound[i]);
                guarded_free(x);
                guarded_free(y);
            }
            rows_in_free(&in);
        }
    }
}

static double ulps(float got, double want)
{
    const float near = fabsf((float)want);
    return fabs(got - want) / (nextafterf(near, INFINITY) - near);
}

/* What exp.h promises of its functions; a part of the floats that it speaks of. */
static void exp_and_erf_equal_double_arithmetic(void **state)
{
    (void)state;
    for (uint32_t bits = 0; bits < 0x42aeu << 16; bits += 7 * 1493) { /* 0 to 87 */
        float x;
        memcpy(&x, &bits, sizeof x);
        for (int sign = -1; sign <= 1; sign += 2) {
            const float v = (float)sign * x;
            assert_true(ulps(sq_exp(v), exp(v)) <= 1.01);
            if (x > FLT_MIN) assert_true(ulps(sq_erf(v), erf(v)) <= 1.25);
        }
    }
    assert_true(isnan(sq_exp(NAN)) && isnan(sq_erf(NAN)));
    assert_true(sq_exp(INFINITY) > 1e38f && sq_exp(-INFINITY) < 1e-37f);
    assert_true(sq_erf(INFINITY) == 1.0f && sq_erf(-INFINITY) == -1.0f);
}

/* All versions must agree to the last bit: models answer alike on all machines. */
static void rows_equal_plain_c(void **state)
{
    (void)state;
    for (size_t l = 0; l < sizeof row_lengths / sizeof *row_lengths; l++) {
        for (size_t o = 0; o < sizeof ops / sizeof *ops; o++) {
            const uint32_t k = row_lengths[l];
            sq_rows_in in;
            rows_in_alloc(&in, ops[o], k);
            float *x = random_floats(2 * k, 3.0f), *y = guarded(k, sizeof *y), *want = guarded(k, sizeof *want);
            for (uint32_t i = 0; i < 2 * k; i += 5) /* where exp is clamped, and erf is 1 */
                x[i] *= 100.0f;
            kernels->row(&in, x, y);
            plain_c->row(&in, x, want);
            assert_memory_equal(y, want, k * sizeof *y);
            guarded_free(x);
            guarded_free(y);
            guarded_free(want);
            rows_in_free(&in);
        }
    }
}

/* Row i of `a` is y, quantised as simd.h says. */
static void check_packed_row(const sq_acts *a, uint32_t row, const float *y)
{
    for (uint32_t g = 0; g < sq_acts_groups(a); g++) {
        const uint32_t k0 = g * a->group, end = a->k - k0 < a->group ? a->k : k0 + a->group;
        float most = 0;
        int sum = 0;
        for (uint32_t k = k0; k < end; k++)
            most = fmaxf(most, fabsf(y[k]));
        for (uint32_t k = k0; k < end; k++) {
            /* Nearest even of y * (127 / most), in float as everywhere; nearbyintf is the C library's. */
            const int want = most > 0 ? (int)nearbyintf(y[k] * (127.0f / most)) : 0;
            assert_int_equal(acts_q(a, row, k), want);
            sum += want;
        }
        assert_true(a->scale[acts_at(a, row, g)] == most / 127.0f);
        assert_int_equal(a->sum[acts_at(a, row, g)], sum);
    }
    for (uint32_t k = a->k; k < sq_acts_k_pad(a); k++)
        assert_int_equal(acts_q(a, row, k), 0);
}

static void check_empty_row(const sq_acts *a, uint32_t row)
{
    for (uint32_t k = 0; k < sq_acts_k_pad(a); k++)
        assert_int_equal(acts_q(a, row, k), 0);
    for (uint32_t g = 0; g < sq_acts_groups(a); g++) {
        assert_true(a->scale[acts_at(a, row, g)] == 0.0f);
        assert_int_equal(a->sum[acts_at(a, row, g)], 0);
    }
}

static void check_rows_pack(sq_row_op op, uint32_t m, uint32_t k, uint32_t group, bool gather)
{
    const uint32_t width = op == SQ_ROW_SWIGLU ? 2 * k : k, ldx = width + below(3), n_x = 2 * m + 1;
    float *x = random_floats((size_t)(n_x - 1) * ldx + width, 4.0f);
    float *scratch = guarded(k, sizeof *scratch), *y = guarded(k, sizeof *y);
    uint32_t *rows = guarded(m, sizeof *rows);
    for (uint32_t i = 0; i < m; i++)
        rows[i] = below(n_x);
    rows[m - 1] = n_x - 1; /* the last one ends at the guard page */
    sq_rows_in in;
    sq_acts a;
    rows_in_alloc(&in, op, k);
    in.x = x;
    in.ldx = ldx;
    in.rows = gather ? rows : NULL;
    acts_alloc(&a, m, k, group, kernels->mr);
    const uint32_t tiles = sq_acts_tiles(&a), first = below(tiles);
    kernels->rows_pack(&in, &a, first, tiles - first, scratch); /* in two parts, as threads will */
    if (first > 0) assert_int_equal(acts_q(&a, 0, 0), 0x55);
    kernels->rows_pack(&in, &a, 0, first, scratch);
    for (uint32_t i = 0; i < m; i++) {
        kernels->row(&in, x + (gather ? rows[i] : i) * ldx, y);
        check_packed_row(&a, i, y);
    }
    for (uint32_t i = m; i < tiles * a.mr; i++)
        check_empty_row(&a, i);
    acts_free(&a);
    rows_in_free(&in);
    guarded_free(x);
    guarded_free(scratch);
    guarded_free(y);
    guarded_free(rows);
}

static void rows_pack_gathers_and_quantises(void **state)
{
    (void)state;
    const uint32_t ks[] = {1, 5, 8, 31, 32, 33, 64, 100, 129, 256, 257, 300, 513}, groups[] = {32, 64, 128, 256};
    for (size_t o = 0; o < sizeof ops / sizeof *ops; o++) {
        for (size_t k = 0; k < sizeof ks / sizeof *ks; k++) {
            for (int g = 0; g < 4; g++)
                check_rows_pack(ops[o], 1 + below(2 * SQ_MR_MAX), ks[k], groups[g], below(2));
        }
    }
    for (uint32_t m = 1; m <= 2 * kernels->mr + 3; m++)
        check_rows_pack(SQ_ROW_RMSNORM, m, 40, 32, true);
}

/* One row of k floats, quantised with groups of 256. */
static void pack_one(sq_acts *a, const float *x, uint32_t k)
{
    float *scratch = guarded(k, sizeof *scratch);
    const sq_rows_in in = {.x = x, .ldx = k, .k = k, .op = SQ_ROW_COPY};
    acts_alloc(a, 1, k, 256, kernels->mr);
    kernels->rows_pack(&in, a, 0, 1, scratch);
    guarded_free(scratch);
}

static void ties_go_to_even(void **state)
{
    (void)state;
    const float x[] = {127, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 126.5f, -125.5f, 3};
    const int want[] = {127, 0, 2, 2, 0, -2, -2, 126, -126, 3};
    sq_acts a;
    pack_one(&a, x, 10);
    for (uint32_t k = 0; k < 10; k++)
        assert_int_equal(acts_q(&a, 0, k), want[k]);
    assert_true(a.scale[0] == 1.0f);
    acts_free(&a);
}

static void bad_activations_stay_in_range(void **state)
{
    (void)state;
    const float bad[] = {NAN, INFINITY, -INFINITY, FLT_MAX, -FLT_MAX, FLT_TRUE_MIN, -FLT_MIN, 1e-37f, 0.0f};
    for (int i = 0; i < 9; i++) {
        float x[70];
        sq_acts a;
        for (int j = 0; j < 70; j++)
            x[j] = bad[(i + j % (i + 1)) % 9];
        pack_one(&a, x, 70);
        int sum = 0;
        for (uint32_t k = 0; k < 70; k++) {
            assert_in_range(acts_q(&a, 0, k) + 127, 0, 254);
            sum += acts_q(&a, 0, k);
        }
        assert_int_equal(a.sum[0], sum);
        acts_free(&a);
    }
}

static void tiny_activations_are_zero(void **state)
{
    (void)state;
    float x[33] = {0};
    x[4] = FLT_MIN;
    sq_acts a;
    pack_one(&a, x, 33);
    check_empty_row(&a, 0);
    acts_free(&a);
}

/* ---- Matrix products --------------------------------------------------------------------- */

enum { FILL_RANDOM, FILL_ALL_ONES, FILL_ALL_ZEROS, FILL_STRIPES, FILLS };

/* Any byte is a weight. All ones (255 or 15) against activations of 127 is what makes int16 pairs saturate. */
static uint8_t weight_byte(int fill, size_t i)
{
    switch (fill) {
    case FILL_ALL_ONES:
        return 0xff;
    case FILL_ALL_ZEROS:
        return 0;
    case FILL_STRIPES:
        return i & 1 ? 0xff : 0;
    default:
        return (uint8_t)random_u64(&seed);
    }
}

static uint8_t *random_panels(sq_panels *w, int fill, bool unit_scales)
{
    const size_t weights = sq_panel_weight_bytes(w), bytes = sq_panel_bytes(w);
    uint8_t *data = guarded_alloc(sq_panels_bytes(w), SQ_PANEL_ALIGN);
    for (size_t p = 0; p < sq_panel_count(w); p++) {
        uint8_t *panel = data + p * bytes;
        for (size_t i = 0; i < weights; i++)
            panel[i] = weight_byte(fill, i);
        for (size_t at = weights; at < bytes; at += w->group ? 2 : 4) {
            const float scale = unit_scales ? 1.0f : 0.01f * random_f32(&seed);
            const uint16_t half = sq_f32_to_f16(scale);
            if (w->group) {
                memcpy(panel + at, &half, sizeof half);
            } else {
                memcpy(panel + at, &scale, sizeof scale);
            }
        }
    }
    w->data = data;
    return data;
}

/* Weight and scale of channel j, input k, straight from the drawing in quant.h. */
static int weight_at(const sq_panels *w, uint32_t j, uint32_t k)
{
    const uint8_t *panel = w->data + j / 16 * sq_panel_bytes(w);
    if (w->type == SQ_PANEL_I8) return panel[k / 4 * 64 + j % 16 * 4 + k % 4] - 128;
    const uint8_t byte = panel[k / 8 * 64 + j % 16 * 4 + k % 4];
    return (k % 8 < 4 ? byte & 15 : byte >> 4) - 8;
}

static double scale_at(const sq_panels *w, uint32_t j, uint32_t g)
{
    const uint8_t *scales = w->data + j / 16 * sq_panel_bytes(w) + sq_panel_weight_bytes(w);
    float f;
    uint16_t h;
    if (!w->group) {
        memcpy(&f, scales + j % 16 * 4, sizeof f);
        return f;
    }
    memcpy(&h, scales + (g * 16 + j % 16) * 2, sizeof h);
    return sq_f16_to_f32(h);
}

/* Row i times channel j in double (exact but for its own rounding), and the sum of the groups' sizes. */
static double reference_product(const sq_panels *w, const sq_acts *a, uint32_t i, uint32_t j, double *size)
{
    double v = 0;
    *size = 0;
    for (uint32_t g = 0; g < sq_acts_groups(a); g++) {
        const uint32_t end = (g + 1) * a->group < a->k ? (g + 1) * a->group : a->k;
        int64_t sum = 0;
        for (uint32_t k = g * a->group; k < end; k++)
            sum += acts_q(a, i, k) * weight_at(w, j, k);
        const double term = (double)a->scale[acts_at(a, i, g)] * scale_at(w, j, g) * (double)sum;
        v += term;
        *size += fabs(term);
    }
    return v;
}

typedef struct product {
    sq_panels w;
    sq_acts a, plain_a; /* the same rows, in plain C's tiles */
    sq_gemm_out out;
    uint8_t *data;
    float *c, *plain_c, *bias, *row_weight, *want, *bound;
    uint32_t *rows;
    size_t c_floats;
} product;

static void product_free(product *p)
{
    acts_free(&p->a);
    acts_free(&p->plain_a);
    guarded_free(p->data);
    guarded_free(p->c);
    guarded_free(p->plain_c);
    guarded_free(p->bias);
    guarded_free(p->row_weight);
    guarded_free(p->rows);
    free(p->want);
    free(p->bound);
}

/* Activations of `size`: with integers whose groups all hold a 127, scales are exactly 1. */
static void random_acts(product *p, uint32_t m, bool integers, bool extreme)
{
    const uint32_t k = p->w.k, group = sq_panels_act_group(&p->w);
    float *x = random_floats((size_t)m * k, 1.0f), *scratch = guarded(k, sizeof *scratch);
    for (uint32_t i = 0; i < m * k; i++) {
        if (extreme) x[i] = (i / 7 + i / k) & 1 ? 1.0f : -1.0f;
        if (extreme && i / k % 3 == 0) x[i] = i / k & 1 ? 1.0f : -1.0f; /* whole rows of one sign */
        if (integers) x[i] = i % k % group == 0 || extreme ? copysignf(127.0f, x[i]) : truncf(x[i] * 127.0f);
    }
    acts_alloc(&p->a, m, k, group, kernels->mr);
    acts_alloc(&p->plain_a, m, k, group, plain_c->mr);
    const sq_rows_in in = {.x = x, .ldx = k, .k = k, .op = SQ_ROW_COPY};
    kernels->rows_pack(&in, &p->a, 0, sq_acts_tiles(&p->a), scratch);
    plain_c->rows_pack(&in, &p->plain_a, 0, sq_acts_tiles(&p->plain_a), scratch);
    guarded_free(x);
    guarded_free(scratch);
}

/* Rows of c are shuffled, and one in two is used: with `rows` the others must stay as they are. */
static void random_out(product *p, uint32_t m, uint32_t n)
{
    const uint32_t n_c = 2 * m;
    p->out.ldc = n + below(3);
    p->c_floats = (n_c - 1) * p->out.ldc + n;
    p->out.c = p->c = random_floats(p->c_floats, 1.0f);
    p->plain_c = guarded(p->c_floats, sizeof *p->plain_c);
    memcpy(p->plain_c, p->c, p->c_floats * sizeof *p->c);
    p->rows = guarded(m, sizeof *p->rows);
    for (uint32_t i = 0; i < m; i++)
        p->rows[i] = 2 * i + below(2);
    for (uint32_t i = 0; i < m; i++) {
        const uint32_t j = below(m), t = p->rows[i];
        p->rows[i] = p->rows[j];
        p->rows[j] = t;
    }
    p->bias = random_floats(n, 1.0f);
    p->row_weight = random_floats(m, 1.0f);
    p->out.rows = below(2) ? p->rows : NULL;
    p->out.bias = below(2) ? p->bias : NULL;
    p->out.row_weight = below(2) ? p->row_weight : NULL;
    p->out.add = below(2);
    p->want = malloc(p->c_floats * sizeof *p->want);
    p->bound = calloc(p->c_floats, sizeof *p->bound);
    memcpy(p->want, p->c, p->c_floats * sizeof *p->want);
}

/*
 * Roundings on the way of a group's term: the two scales' product, the integer to float, their product, at most
 * one addition a group, and the channel's scale; then bias, row weight and add, each on a larger amount.
 */
static void expect(product *p, uint32_t i, uint32_t j)
{
    const sq_gemm_out *o = &p->out;
    const size_t at = (o->rows ? o->rows[i] : i) * o->ldc + j;
    const double roundings = 4 + sq_acts_groups(&p->a);
    const double weight = o->row_weight ? o->row_weight[i] : 1, bias = o->bias ? o->bias[j] : 0;
    double size;
    const double v = reference_product(&p->w, &p->a, i, j, &size);
    const double old = o->add ? p->c[at] : 0, t = weight * (v + bias);
    p->want[at] = (float)(old + t);
    p->bound[at] =
        (float)(FLT_EPSILON * (fabs(weight) * (roundings * size + 3 * (size + fabs(bias))) + 2 * fabs(old) + fabs(t)));
}

/* Near what double arithmetic gives, which judges plain C, and for every other table equal to plain C, -0 included. */
static void check_results(const product *p)
{
    for (size_t i = 0; i < p->c_floats; i++) {
        assert_near(p->c[i], p->want[i], p->bound[i]);
        if (memcmp(&p->c[i], &p->plain_c[i], sizeof *p->c) != 0)
            fail_msg("%s: %a, not %a as in plain C", kernels->isa, (double)p->c[i], (double)p->plain_c[i]);
    }
}

static void check_gemm(sq_panel_type type, uint32_t m, uint32_t n, uint32_t k, uint32_t group)
{
    product p = {.w = {.n = n, .k = k, .type = type, .group = group}};
    const int fill = below(2) ? FILL_RANDOM : (int)below(FILLS);
    p.data = random_panels(&p.w, fill, false);
    random_acts(&p, m, false, below(2));
    random_out(&p, m, n);
    const uint32_t panels = (uint32_t)sq_panel_count(&p.w), first = below(panels),
                   end = first + 1 + below(panels - first);
    for (uint32_t i = 0; i < m; i++) {
        for (uint32_t j = first * 16; j < end * 16 && j < n; j++)
            expect(&p, i, j);
    }
    sq_gemm_fn *gemm = sq_kernels_gemm(kernels, &p.w);
    const uint32_t split = first + below(end - first + 1);
    gemm(&p.w, split, end - split, &p.a, &p.out);
    gemm(&p.w, first, split - first, &p.a, &p.out);
    sq_gemm_out plain_out = p.out;
    plain_out.c = p.plain_c;
    sq_kernels_gemm(plain_c, &p.w)(&p.w, first, end - first, &p.plain_a, &plain_out);
    check_results(&p);
    product_free(&p);
}

static void gemm_at_every_edge(void **state)
{
    (void)state;
    const uint32_t ns[] = {1, 15, 16, 17, 33, 80}, ks[] = {1, 31, 32, 33, 40, 64, 129, 256, 257, 300};
    const uint32_t groups[] = {0, 32, 64, 128};
    for (uint32_t m = 1; m <= 2 * kernels->mr + 3; m++) {
        for (size_t n = 0; n < sizeof ns / sizeof *ns; n++) {
            const uint32_t k = ks[below(sizeof ks / sizeof *ks)], group = groups[below(4)];
            check_gemm(SQ_PANEL_I8, m, ns[n], k, group);
            check_gemm(SQ_PANEL_I4, m, ns[n], k, group);
        }
    }
    for (size_t k = 0; k < sizeof ks / sizeof *ks; k++) {
        for (int g = 0; g < 4; g++) {
            check_gemm(SQ_PANEL_I8, 1 + below(2 * kernels->mr), 33, ks[k], groups[g]);
            check_gemm(SQ_PANEL_I4, 1 + below(2 * kernels->mr), 33, ks[k], groups[g]);
        }
    }
    for (uint32_t n = 8; n <= 128; n += 8)
        check_gemm(SQ_PANEL_I8, 13, n, 640, 512); /* a group that is longer than a chunk of widened inputs */
    check_gemm(SQ_PANEL_I4, 13, 17, 640, 512);
    check_gemm(SQ_PANEL_I4, 3 * kernels->mr, 33, 2000, 96); /* chunks of unpacked inputs that groups do not fill */
    check_gemm(SQ_PANEL_I4, 3 * kernels->mr, 17, 2100, 2048);
}

/* Decoding reads many panels at once: every count of them, and what is left over. The guard page behind the weights
 * sees that nothing but prefetches goes beyond. */
static void few_rows_and_many_panels(void **state)
{
    (void)state;
    const uint32_t ks[] = {32, 40, 288, 520}, groups[] = {0, 32, 64, 128};
    for (uint32_t panels = 1; panels <= 26; panels++) {
        for (uint32_t i = 0; i < 8; i++) {
            const uint32_t m = i < 4 ? 1 : 1 + below(3), n = panels * 16 - below(16), k = ks[below(4)];
            check_gemm(SQ_PANEL_I8, m, n, k, groups[i % 4]);
            check_gemm(SQ_PANEL_I4, m, n, k, groups[i % 4]);
        }
    }
}

/* More rows than fit one block of the cache, which is bounded by bytes, 12 KiB a row, or by the number of rows. */
static void gemm_in_blocks_of_rows(void **state)
{
    (void)state;
    check_gemm(SQ_PANEL_I8, 50, 17, 12000, 0);
    check_gemm(SQ_PANEL_I4, 50, 17, 12000, 128);
    check_gemm(SQ_PANEL_I8, 370, 80, 600, 64);
    check_gemm(SQ_PANEL_I4, 370, 80, 1100, 64);
}

/*
 * With all scales 1 the result is an integer below 2^24, and so are all sums of groups: it must be exact. The
 * extremes reach what int16 cannot hold: 2 * 255 * 127 a pair, and 16 * 15 * 127 in eight steps.
 */
static void integers_are_exact(void **state)
{
    (void)state;
    const uint32_t ks[] = {4, 32, 64, 129, 256, 300}, groups[] = {0, 32, 128};
    for (int fill = 0; fill < FILLS; fill++) {
        for (size_t i = 0; i < sizeof ks / sizeof *ks * 3 * 2 * 2; i++) {
            const uint32_t m = 1 + below(2 * kernels->mr), n = 1 + below(40);
            product p = {.w = {.n = n, .k = ks[i / 12], .group = groups[i / 4 % 3], .type = i & 2 ? 1 : 2}};
            p.data = random_panels(&p.w, fill, true);
            random_acts(&p, m, true, i & 1);
            random_out(&p, m, n);
            const sq_gemm_out out = {.c = p.c, .ldc = p.out.ldc};
            sq_kernels_gemm(kernels, &p.w)(&p.w, 0, (uint32_t)sq_panel_count(&p.w), &p.a, &out);
            for (uint32_t r = 0; r < m; r++) {
                for (uint32_t j = 0; j < n; j++) {
                    double size;
                    assert_near(p.c[r * out.ldc + j], reference_product(&p.w, &p.a, r, j, &size), 0);
                }
            }
            product_free(&p);
        }
    }
}

/* The longest row that panels hold, at the extremes: 255 * 127 * 65536 just fits int32. */
/* Weights of a group of inputs that count nothing. */
static void clear_weights(product *p, uint32_t group, uint32_t size)
{
    const bool i4 = p->w.type == SQ_PANEL_I4;
    const size_t bytes = i4 ? SQ_PANEL_N / 2 : SQ_PANEL_N, begin = (size_t)group * size * bytes;
    const size_t end = begin + size * bytes, all = sq_panel_weight_bytes(&p->w);
    memset(p->data + begin, i4 ? 0x88 : 0x80, (end < all ? end : all) - begin);
}

/*
 * Rows as LLaMA's down projections see them, a few channels a thousand times the rest. The weights of the outliers'
 * groups are zero, so what is left of a product's error is half a step of the other groups' scales for each input, and
 * the rounding of the groups' sum. One scale a row would be wrong by 1000 / 127 / 2 for each.
 */
static void outliers_cost_only_their_group(void **state)
{
    (void)state;
    static const uint32_t outliers[] = {5, 700, 1023}, groups[] = {0, 256, 128, 64, 32};
    enum { K = 1100, N = SQ_PANEL_N, MOST_GROUPS = (K + 31) / 32 };
    for (size_t i = 0; i < sizeof groups / sizeof *groups * 2; i++) {
        product p = {.w = {.n = N, .k = K, .group = groups[i / 2], .type = i & 1 ? SQ_PANEL_I4 : SQ_PANEL_I8}};
        if (!sq_panels_valid(&p.w)) continue; /* int4 has groups */
        const uint32_t group = sq_panels_act_group(&p.w);
        float *x = random_floats(K, 1.0f), *scratch = guarded(K, sizeof *scratch), y[N];
        double step[MOST_GROUPS] = {0};
        p.data = random_panels(&p.w, FILL_RANDOM, false);
        for (size_t o = 0; o < sizeof outliers / sizeof *outliers; o++) {
            x[outliers[o]] = 1000.0f;
            clear_weights(&p, outliers[o] / group, group);
        }
        for (uint32_t k = 0; k < K; k++)
            step[k / group] = fmax(step[k / group], fabs((double)x[k]) / 127);
        acts_alloc(&p.a, 1, K, group, kernels->mr);
        const sq_rows_in in = {.x = x, .ldx = K, .k = K, .op = SQ_ROW_COPY};
        const sq_gemm_out out = {.c = y, .ldc = N};
        kernels->rows_pack(&in, &p.a, 0, 1, scratch);
        sq_kernels_gemm(kernels, &p.w)(&p.w, 0, 1, &p.a, &out);
        for (uint32_t j = 0; j < N; j++) {
            double want = 0, bound = 0;
            for (uint32_t k = 0; k < K; k++) {
                const double w = scale_at(&p.w, j, p.w.group ? k / p.w.group : 0) * weight_at(&p.w, j, k);
                want += w * x[k];
                bound += fabs(w) * (step[k / group] * 0.501 + FLT_EPSILON * (MOST_GROUPS + 4) * fabs((double)x[k]));
            }
            assert_near(y[j], want, bound);
        }
        guarded_free(x);
        guarded_free(scratch);
        product_free(&p);
    }
}

static void the_longest_row_does_not_overflow(void **state)
{
    (void)state;
    product p = {.w = {.n = 3, .k = SQ_MAX_K, .group = SQ_MAX_K, .type = SQ_PANEL_I8}};
    p.data = random_panels(&p.w, FILL_ALL_ONES, true);
    random_acts(&p, 3, true, true);
    random_out(&p, 3, 3);
    const sq_gemm_out out = {.c = p.c, .ldc = p.out.ldc};
    kernels->gemm_i8(&p.w, 0, 1, &p.a, &out);
    for (uint32_t i = 0; i < 3; i++) {
        double size;
        const double want = reference_product(&p.w, &p.a, i, 0, &size);
        assert_near(p.c[i * out.ldc], want, FLT_EPSILON * size);
    }
    product_free(&p);
}

static void no_rows_no_work(void **state)
{
    (void)state;
    product p = {.w = {.n = 16, .k = 32, .type = SQ_PANEL_I4}};
    p.data = random_panels(&p.w, FILL_RANDOM, false);
    const sq_acts a = {.m = 0, .k = 32, .group = 256, .mr = kernels->mr};
    const sq_gemm_out out = {0};
    kernels->gemm_i4(&p.w, 0, 1, &a, &out);
    kernels->gemm_i8(&p.w, 0, 0, &a, &out);
    guarded_free(p.data);
}

/* ---- Products of floats ------------------------------------------------------------------ */

/* Channels past n are not zero here: no kernel may let them through. */
static float *random_ordered(sq_mat *w)
{
    float *const ordered = random_floats((size_t)sq_round_up(w->n, SQ_PANEL_N) * w->k, 1.0f);
    w->ordered = ordered;
    return ordered;
}

/* One rounding a product with its sum, and three more on the way out; the sum is at most `size`. */
static void expect_floats(product *p, const sq_mat *w, const sq_float_rows *x, uint32_t i, uint32_t j)
{
    const sq_gemm_out *o = &p->out;
    const size_t at = (o->rows ? o->rows[i] : i) * o->ldc + j;
    const double weight = o->row_weight ? o->row_weight[i] : 1, bias = o->bias ? o->bias[j] : 0;
    double v = 0, size = 0;
    for (uint32_t k = 0; k < w->k; k++) {
        const double term = (double)x->x[i * x->ldx + k] * w->ordered[((size_t)j / 16 * w->k + k) * 16 + j % 16];
        v += term;
        size += fabs(term);
    }
    const double old = o->add ? p->c[at] : 0, t = weight * (v + bias);
    p->want[at] = (float)(old + t);
    p->bound[at] =
        (float)(FLT_EPSILON * (fabs(weight) * (w->k * size + 3 * (size + fabs(bias))) + 2 * fabs(old) + fabs(t)));
}

static void check_gemm_f32(uint32_t m, uint32_t n, uint32_t k)
{
    product p = {0};
    sq_mat w = {.n = n, .k = k};
    float *const ordered = random_ordered(&w);
    const size_t ldx = k + below(3);
    float *const x = random_floats((m - 1) * ldx + k, 1.0f);
    random_out(&p, m, n);
    const uint32_t panels = (n + 15) / 16, first = below(panels), end = first + 1 + below(panels - first);
    const uint32_t row0 = below(m), rows = m - row0, split = first + below(end - first + 1);
    const sq_float_rows in = {x, ldx, row0, rows};
    for (uint32_t i = row0; i < m; i++)
        for (uint32_t j = first * 16; j < end * 16 && j < n; j++)
            expect_floats(&p, &w, &in, i, j);
    kernels->gemm_f32(&w, split, end - split, &in, &p.out);
    kernels->gemm_f32(&w, first, split - first, &in, &p.out);
    sq_gemm_out plain_out = p.out;
    plain_out.c = p.plain_c;
    plain_c->gemm_f32(&w, first, end - first, &in, &plain_out);
    check_results(&p);
    product_free(&p);
    guarded_free(ordered);
    guarded_free(x);
}

/* Around the edges of tiles, of blocks of rows and of blocks of inputs. */
static void floats_add_up_in_one_order(void **state)
{
    (void)state;
    static const uint32_t rows[] = {1, 2, 5, 6, 7, 11, 12, 13, 47, 48, 49, 100},
                          outputs[] = {1, 15, 16, 17, 33, 50, 64}, inputs[] = {1, 2, 27, 255, 256, 257, 600};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (size_t j = 0; j < sizeof outputs / sizeof *outputs; j++)
            for (size_t l = 0; l < sizeof inputs / sizeof *inputs; l++)
                check_gemm_f32(rows[i], outputs[j], inputs[l]);
}

/* ---- Attention --------------------------------------------------------------------------- */

typedef struct attention {
    sq_attn a;
    float *q, *k, *v, *out; /* k and v as floats, exactly what the kernel reads */
    size_t ld;              /* of k and v */
    void *stored_k, *stored_v;
    size_t out_floats;
} attention;

static void store_row(sq_kv_type type, float *row, uint32_t hd, void *to)
{
    sq_block_q8_0 *blocks = to;
    uint16_t *half = to;
    float back[SQ_BLOCK];
    for (uint32_t d = 0; type == SQ_KV_F16 && d < hd; d++) {
        half[d] = sq_f32_to_f16(row[d]);
        row[d] = sq_f16_to_f32(half[d]);
    }
    if (type == SQ_KV_Q8) plain_c->to_q8(row, blocks, hd);
    for (uint32_t d = 0; type == SQ_KV_Q8 && d < hd; d++) {
        sq_dequantise_q8_0(&blocks[d / SQ_BLOCK], back, 1);
        row[d] = back[d % SQ_BLOCK];
    }
    if (type == SQ_KV_F32) memcpy(to, row, hd * sizeof *row);
}

/* Rows of x, rounded in place to what `type` keeps of them, as the kernel reads them. */
static void *store_rows(const attention *t, float *x)
{
    const sq_attn *a = &t->a;
    const size_t unit = sq_kv_unit_bytes(a->kv_type);
    const size_t n = (a->n_kv - 1) * a->ldkv + sq_kv_units(a->kv_type, a->head_dim);
    uint8_t *out = guarded_alloc(n * unit, unit);
    for (uint32_t j = 0; j < a->n_kv; j++)
        store_row(a->kv_type, x + j * t->ld, a->head_dim, out + j * a->ldkv * unit);
    return out;
}

static attention random_attention(uint32_t n_q, uint32_t n_kv, uint32_t hd, sq_kv_type type, bool causal, float size)
{
    const uint32_t ldq = hd + below(3), ldo = hd + below(3), ldkv = sq_kv_units(type, hd) + below(3);
    attention t = {.out_floats = (n_q - 1) * ldo + hd, .ld = hd + below(3)};
    t.q = random_floats((n_q - 1) * ldq + hd, size);
    t.k = random_floats((n_kv - 1) * t.ld + hd, size);
    t.v = random_floats((n_kv - 1) * t.ld + hd, 1.0f);
    t.out = random_floats(t.out_floats, 1.0f);
    t.a = (sq_attn){.q = t.q,
                    .ldq = ldq,
                    .ldkv = ldkv,
                    .kv_type = type,
                    .n_q = n_q,
                    .n_kv = n_kv,
                    .head_dim = hd,
                    .causal = causal,
                    .first_kv = n_kv > n_q ? n_kv - n_q : 0,
                    .scale = 1 / sqrtf((float)hd),
                    .out = t.out,
                    .ldo = ldo};
    t.a.k = t.stored_k = store_rows(&t, t.k);
    t.a.v = t.stored_v = store_rows(&t, t.v);
    return t;
}

/* Of attentions over floats. */
static void set_key(attention *t, uint32_t j, uint32_t d, float x)
{
    t->k[j * t->ld + d] = ((float *)t->stored_k)[j * t->a.ldkv + d] = x;
}
static void set_value(attention *t, uint32_t j, uint32_t d, float x)
{
    t->v[j * t->ld + d] = ((float *)t->stored_v)[j * t->a.ldkv + d] = x;
}

static void attention_free(attention *t)
{
    guarded_free(t->q);
    guarded_free(t->k);
    guarded_free(t->v);
    guarded_free(t->stored_k);
    guarded_free(t->stored_v);
    guarded_free(t->out);
}

/*
 * A score is a float sum of head_dim products, wrong by d = (head_dim + 2) roundings of sum |q k| at most. With all
 * scores wrong by d, weights are wrong by a factor of exp(2 d) at most. exp's argument s - max is rounded
 * (2 max|s| roundings), exp itself and the products cost a few more, each of the n weights is one addition in both
 * sums, and each block of 32 keys or more rescales both: n + n / 16 + 16. All of it counts against sum |p v|.
 */
static void check_query(const attention *t, uint32_t i)
{
    const sq_attn *a = &t->a;
    const float *q = t->q + i * a->ldq;
    const uint32_t n = a->causal && a->first_kv + i + 1 < a->n_kv ? a->first_kv + i + 1 : a->n_kv;
    double *s = malloc(n * sizeof *s), max = -INFINITY, sum = 0, largest = 0, worst = 0;
    for (uint32_t j = 0; j < n; j++) {
        double size = 0;
        s[j] = 0;
        for (uint32_t d = 0; d < a->head_dim; d++) {
            const double term = (double)q[d] * t->k[j * t->ld + d];
            s[j] += term * a->scale;
            size += fabs(term) * a->scale;
        }
        max = fmax(max, s[j]);
        largest = fmax(largest, fabs(s[j]));
        worst = fmax(worst, size);
    }
    for (uint32_t j = 0; j < n; j++)
        sum += s[j] = exp(s[j] - max);
    const double relative =
        expm1(2.0 * FLT_EPSILON * (a->head_dim + 2) * worst) + FLT_EPSILON * (2 * largest + n * 17 / 16.0 + 16);
    for (uint32_t d = 0; d < a->head_dim; d++) {
        double want = 0, size = 0;
        for (uint32_t j = 0; j < n; j++) {
            const double term = s[j] / sum * t->v[j * t->ld + d];
            want += term;
            size += fabs(term);
        }
        assert_near(a->out[i * a->ldo + d], want, relative * size + 1e-36);
    }
    free(s);
}

/* Within the bound, and equal to plain C (-0 may be 0: keys without weight add 0 to a sum in some versions); what lies
 * between rows stays. */
static void check_attention(attention *t)
{
    float *want = malloc(t->out_floats * sizeof *want);
    memcpy(want, t->out, t->out_floats * sizeof *want);
    kernels->attention(&t->a);
    for (uint32_t i = 0; i < t->a.n_q; i++)
        check_query(t, i);
    sq_attn same = t->a;
    same.out = want;
    plain_c->attention(&same);
    for (size_t i = 0; i < t->out_floats; i++)
        assert_true(t->out[i] == want[i]);
    free(want);
    attention_free(t);
}

static const sq_kv_type kv_types[] = {SQ_KV_F32, SQ_KV_F16, SQ_KV_Q8};

static void attention_of_every_shape(void **state)
{
    (void)state;
    const uint32_t dims[] = {1, 7, 8, 16, 20, 64, 72, 80, 128, 136, 256};
    const uint32_t n_qs[] = {1, 2, 3, 4, 5, 6, 7, 11, 13, 64, 97, 100}, n_kvs[] = {1, 3, 15, 16, 17, 63, 64, 65, 130};
    for (size_t d = 0; d < sizeof dims / sizeof *dims; d++) {
        for (size_t i = 0; i < sizeof n_qs / sizeof *n_qs; i++) {
            for (int variant = 0; variant < 6; variant++) {
                const uint32_t n_kv = n_kvs[below(sizeof n_kvs / sizeof *n_kvs)];
                attention t = random_attention(n_qs[i], n_kv, dims[d], kv_types[variant % 3], variant & 1, 2.0f);
                check_attention(&t);
            }
        }
    }
}

static void attention_of_every_length(void **state)
{
    (void)state;
    for (uint32_t n_kv = 1; n_kv <= 140; n_kv += 1 + n_kv / 20) {
        for (int variant = 0; variant < 12; variant++) {
            const sq_kv_type type = kv_types[variant % 3];
            attention t = random_attention(variant & 4 ? 1 : 9, n_kv, 16, type, variant & 1, 2.0f);
            check_attention(&t);
        }
    }
}

/* Scores of some hundreds, rising from key to key: every block moves the maximum, and early keys vanish. */
static void attention_moves_its_maximum(void **state)
{
    (void)state;
    for (uint32_t n_q = 1; n_q <= 7; n_q += 6) {
        attention t = random_attention(n_q, 200, 32, SQ_KV_F32, false, 1.0f);
        for (uint32_t i = 0; i < n_q; i++) {
            for (uint32_t d = 0; d < 32; d++)
                t.q[i * t.a.ldq + d] = 2.0f + 0.1f * random_f32(&seed);
        }
        for (uint32_t j = 0; j < 200; j++) {
            for (uint32_t d = 0; d < 32; d++)
                set_key(&t, j, d, 0.05f * (float)j);
        }
        check_attention(&t);
    }
}

/*
 * Two keys with scores x and 0 and values 1 and 0: the result is exp(x) / (1 + exp(x)). The score is x itself; one
 * rounding each of the sum, of its inverse and of the product, and three for exp (1.5 ULP): six of FLT_EPSILON / 2.
 */
static void weights_follow_exp(void **state)
{
    (void)state;
    for (uint32_t n_q = 1; n_q <= 7; n_q += 6) {
        attention t = random_attention(n_q, 2, 8, SQ_KV_F32, false, 1.0f);
        t.a.scale = 1.0f;
        for (uint32_t d = 0; d < 8; d++) {
            set_key(&t, 0, d, d ? 0.0f : 1.0f);
            set_key(&t, 1, d, 0.0f);
            set_value(&t, 0, d, 1.0f);
            set_value(&t, 1, d, 0.0f);
        }
        for (float x = 0.0f; x > -60.0f; x -= 0.00731f) {
            for (uint32_t q = 0; q < n_q; q++) {
                for (uint32_t d = 0; d < 8; d++)
                    t.q[q * t.a.ldq + d] = d ? 0.0f : x;
            }
            kernels->attention(&t.a);
            const double want = exp(x) / (1 + exp(x));
            assert_near(t.a.out[0], want, 3 * FLT_EPSILON * want);
        }
        attention_free(&t);
    }
}

/* Keys 0 to 64 score 0, one of them 95 more or less: what is 95 below has weight 0, not a denormal one. */
static void far_scores_have_no_weight(void **state)
{
    (void)state;
    const uint32_t odd[] = {0, 3, 63, 64};
    for (int i = 0; i < 4; i++) {
        for (int sign = -1; sign <= 1; sign += 2) {
            for (uint32_t n_q = 1; n_q <= 7; n_q += 6) {
                attention t = random_attention(n_q, 65, 8, SQ_KV_F32, false, 1.0f);
                for (uint32_t j = 0; j < 65; j++) {
                    const bool is_odd = j == odd[i];
                    for (uint32_t d = 0; d < 8; d++) {
                        set_key(&t, j, d, is_odd ? 95.0f * (float)sign : 0.0f);
                        set_value(&t, j, d, is_odd == (sign > 0) ? 0.0f : 1e30f);
                    }
                }
                for (uint32_t q = 0; q < n_q; q++) {
                    for (uint32_t d = 0; d < 8; d++)
                        t.q[q * t.a.ldq + d] = d ? 0.0f : 1 / t.a.scale;
                }
                kernels->attention(&t.a);
                for (uint32_t q = 0; q < n_q; q++)
                    assert_true(t.a.out[q * t.a.ldo] == 0.0f);
                attention_free(&t);
            }
        }
    }
}

static void equal_scores_give_the_mean(void **state)
{
    (void)state;
    attention t = random_attention(8, 100, 24, SQ_KV_F32, false, 1.0f);
    memset(t.q, 0, (7 * t.a.ldq + 24) * sizeof *t.q);
    check_attention(&t);
}

/* Infinite and undefined inputs: any result, no undefined behaviour. No queries: nothing at all. */
static void attention_survives_any_number(void **state)
{
    (void)state;
    const float bad[] = {NAN, INFINITY, -INFINITY, FLT_MAX};
    for (int i = 0; i < 4; i++) {
        for (uint32_t n_q = 1; n_q <= 7; n_q += 6) {
            attention t = random_attention(n_q, 70, 16, SQ_KV_F32, true, 1.0f);
            t.q[3] = bad[i];
            set_key(&t, 0, 5, bad[i]);
            set_value(&t, 0, 7, bad[i]);
            kernels->attention(&t.a);
            attention_free(&t);
        }
    }
    const sq_attn none = {.n_q = 0, .n_kv = 5, .head_dim = 8};
    kernels->attention(&none);
}

/* ---- Depthwise convolution ---------------------------------------------------------------- */

/* Each row of a map of its own memory, so that nothing beside it is read. Rows above and below the map are NULL. */
static void depthwise_alloc(sq_depthwise *d, uint32_t width, uint32_t channels, uint32_t first_row, uint32_t n_rows)
{
    *d = (sq_depthwise){.width = width, .channels = channels};
    d->w = random_floats((size_t)SQ_DEPTHWISE_TAPS * channels, 1.0f);
    d->bias = random_floats(channels, 1.0f);
    d->out = guarded((size_t)width * channels, sizeof *d->out);
    for (uint32_t ky = first_row; ky < first_row + n_rows; ky++)
        d->rows[ky] = random_floats((size_t)width * channels, 1.0f);
}

static void depthwise_free(sq_depthwise *d)
{
    guarded_free((void *)d->w);
    guarded_free((void *)d->bias);
    guarded_free(d->out);
    for (int ky = 0; ky < SQ_DEPTHWISE_SIDE; ky++)
        guarded_free((void *)d->rows[ky]);
}

/* 49 products, each with one rounding of a sum that is at most `size`. */
static void assert_depthwise(const sq_depthwise *d)
{
    const int64_t width = d->width, channels = d->channels;
    for (int64_t x = 0; x < width; x++)
        for (int64_t c = 0; c < channels; c++) {
            double want = d->bias[c], size = fabs(want);
            for (int64_t ky = 0; ky < SQ_DEPTHWISE_SIDE; ky++)
                for (int64_t at = x - 3; at <= x + 3; at++) {
                    if (!d->rows[ky] || at < 0 || at >= width) continue;
                    const double w = d->w[(ky * SQ_DEPTHWISE_SIDE + at - x + 3) * channels + c];
                    want += w * d->rows[ky][at * channels + c];
                    size += fabs(w * d->rows[ky][at * channels + c]);
                }
            assert_near(d->out[x * channels + c], want, FLT_EPSILON * 25 * size);
        }
}

static void depthwise_of_every_shape(void **state)
{
    (void)state;
    static const uint32_t widths[] = {1, 2, 3, 4, 6, 7, 8, 11, 12, 13, 14, 15, 23, 30},
                          channels[] = {1, 8, 16, 21, 64, 83};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++)
        for (size_t j = 0; j < sizeof channels / sizeof *channels; j++)
            for (uint32_t first = 0; first < 4; first++) {
                sq_depthwise d;
                depthwise_alloc(&d, widths[i], channels[j], first, SQ_DEPTHWISE_SIDE - (uint32_t)i % 4 - first);
                kernels->depthwise(&d);
                assert_depthwise(&d);
                const size_t n = (size_t)d.width * d.channels;
                float *const got = guarded(n, sizeof *got);
                memcpy(got, d.out, n * sizeof *got);
                plain_c->depthwise(&d);
                assert_memory_equal(got, d.out, n * sizeof *got);
                guarded_free(got);
                depthwise_free(&d);
            }
}

/* ---- Small vectors ----------------------------------------------------------------------- */

static void dot_products(void **state)
{
    (void)state;
    for (size_t n = 0; n <= 67; n++) {
        float *x = random_floats(n, 1.0f), *y = random_floats(n, 1.0f);
        double want = 0, size = 0;
        for (size_t i = 0; i < n; i++) {
            want += (double)x[i] * y[i];
            size += fabs((double)x[i] * y[i]);
        }
        const float got = kernels->dot(x, y, n);
        assert_near(got, want, FLT_EPSILON * ((double)n / 8 + 5) * size);
        assert_true(got == plain_c->dot(x, y, n)); /* routes depend on it */
        guarded_free(x);
        guarded_free(y);
    }
}

/* Any number of rows against four vectors gives what dot gives; nothing but the answers is written. */
static void dot_products_of_rows(void **state)
{
    (void)state;
    enum { MOST = 5 };
    for (size_t n = 0; n <= 67; n++) {
        float *x[MOST], *y[SQ_DOTS];
        for (int i = 0; i < MOST; i++)
            x[i] = random_floats(n, 1.0f);
        for (int j = 0; j < SQ_DOTS; j++)
            y[j] = random_floats(n, 1.0f);
        for (uint32_t n_x = 0; n_x <= MOST; n_x++) {
            float(*out)[SQ_DOTS] = guarded(n_x, sizeof *out);
            kernels->dots((const float *const *)x, n_x, (const float *const *)y, n, out);
            for (uint32_t i = 0; i < n_x; i++)
                for (int j = 0; j < SQ_DOTS; j++)
                    assert_true(out[i][j] == plain_c->dot(x[i], y[j], n));
            guarded_free(out);
        }
        for (int i = 0; i < MOST; i++)
            guarded_free(x[i]);
        for (int j = 0; j < SQ_DOTS; j++)
            guarded_free(y[j]);
    }
}

static void scaled_vectors(void **state)
{
    (void)state;
    for (size_t n = 0; n <= 35; n++) {
        float *x = random_floats(n, 1.0f), *y = guarded(n, sizeof *y);
        memcpy(y, x, n * sizeof *x);
        kernels->scale(y, 0.7f, n);
        for (size_t i = 0; i < n; i++)
            assert_true(y[i] == x[i] * 0.7f);
        guarded_free(x);
        guarded_free(y);
    }
}

static void halves_round_as_in_quant(void **state)
{
    (void)state;
    for (size_t n = 0; n <= 35; n++) {
        float *x = guarded(n, sizeof *x);
        uint16_t *h = guarded(n, sizeof *h);
        for (int turn = 0; turn < 200; turn++) {
            for (size_t i = 0; i < n; i++) {
                const uint32_t bits = (uint32_t)random_u64(&seed);
                memcpy(&x[i], &bits, sizeof bits);
                if (turn & 1) x[i] = ldexpf(random_f32(&seed), (int)below(40) - 26); /* mostly in binary16's range */
            }
            kernels->to_f16(x, h, n);
            for (size_t i = 0; i < n; i++)
                assert_int_equal(h[i], sq_f32_to_f16(x[i]));
        }
        guarded_free(x);
        guarded_free(h);
    }
}

/* Blocks of a Q8 cache: equal to plain C's, which keep each number within half a step of d, d itself being rounded to
 * binary16, and fill up with zeros. */
static void caches_of_bytes(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= 100; n++) {
        const uint32_t blocks = sq_kv_units(SQ_KV_Q8, n);
        float *x = random_floats(n, n % 3 ? 3.0f : 0.01f), back[SQ_BLOCK];
        sq_block_q8_0 *got = guarded_alloc(blocks * sizeof *got, 2), *want = guarded_alloc(blocks * sizeof *want, 2);
        x[below(n)] *= 100.0f;
        kernels->to_q8(x, got, n);
        plain_c->to_q8(x, want, n);
        assert_memory_equal(got, want, blocks * sizeof *got);
        for (uint32_t i = 0; i < blocks * SQ_BLOCK; i++) {
            const sq_block_q8_0 *b = &got[i / SQ_BLOCK];
            sq_dequantise_q8_0(b, back, 1);
            /* A largest magnitude of 127 d (1 + 2^-11) is clamped to 127 d. */
            const double step = sq_f16_to_f32(b->d), v = i < n ? x[i] : 0;
            assert_near(back[i % SQ_BLOCK], v, i < n ? step * 0.5001 + fabs(v) * 0x1p-11 : 0);
        }
        guarded_free(x);
        guarded_free(got);
        guarded_free(want);
    }
    const float bad[] = {NAN, INFINITY, -INFINITY, FLT_MAX, 1e-30f, 0.0f};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        float x[SQ_BLOCK] = {1.0f, bad[i]};
        sq_block_q8_0 got, want;
        kernels->to_q8(x, &got, SQ_BLOCK);
        plain_c->to_q8(x, &want, SQ_BLOCK);
        assert_memory_equal(&got, &want, sizeof got);
        assert_true(isfinite(sq_f16_to_f32(got.d)));
    }
}

/* Two products and a sum: three roundings of at most |u| + |v|. */
static void rotations(void **state)
{
    (void)state;
    const uint32_t dims[] = {2, 4, 6, 8, 12, 16, 32, 40, 64, 80, 128};
    for (size_t l = 0; l < sizeof dims / sizeof *dims; l++) {
        for (int half = 0; half < 2; half++) {
            const uint32_t n = dims[l], pairs = n / 2;
            float *x = random_floats(n, 1.0f), *y = guarded(n, sizeof *y), *z = guarded(n, sizeof *z);
            float *cs = guarded(n, sizeof *cs);
            for (uint32_t i = 0; i < pairs; i++) {
                cs[i] = cosf((float)i + 0.3f);
                cs[pairs + i] = sinf((float)i + 0.3f);
            }
            memcpy(y, x, n * sizeof *x);
            memcpy(z, x, n * sizeof *x);
            kernels->rope(y, cs, n, half);
            plain_c->rope(z, cs, n, half);
            assert_memory_equal(y, z, n * sizeof *y);
            for (uint32_t i = 0; i < pairs; i++) {
                const uint32_t a = half ? i : 2 * i, b = half ? i + pairs : 2 * i + 1;
                const double c = cs[i], s = cs[pairs + i], bound = 1.5 * FLT_EPSILON * (fabs(x[a]) + fabs(x[b]));
                assert_near(y[a], x[a] * c - x[b] * s, bound);
                assert_near(y[b], x[a] * s + x[b] * c, bound);
            }
            guarded_free(x);
            guarded_free(y);
            guarded_free(z);
            guarded_free(cs);
        }
    }
}

/* ---- Selection --------------------------------------------------------------------------- */

enum { SELECT_MAX = 3000 };

static const float *select_scores;

static int by_score(const void *a, const void *b)
{
    const uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    if (select_scores[i] != select_scores[j]) return select_scores[i] > select_scores[j] ? -1 : 1;
    return i < j ? -1 : 1;
}

static int by_index(const void *a, const void *b)
{
    const uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    return (i > j) - (i < j);
}

/* The k first of a sort. */
static void check_select_k(const float *z, uint32_t n, uint32_t k, const uint32_t *order, int32_t *keys)
{
    uint32_t want[SELECT_MAX], *kept = guarded(k, sizeof *kept);
    memcpy(want, order, k * sizeof *want);
    qsort(want, k, sizeof *want, by_index);
    assert_int_equal(kernels->select(z, n, k, keys, kept), n);
    assert_memory_equal(kept, want, k * sizeof *want);
    guarded_free(kept);
}

static void check_select(const float *z, uint32_t n, uint32_t step)
{
    uint32_t order[SELECT_MAX];
    int32_t *keys = guarded(n, sizeof *keys);
    for (uint32_t i = 0; i < n; i++)
        order[i] = i;
    select_scores = z;
    qsort(order, n, sizeof *order, by_score);
    for (uint32_t k = 0; k < n; k += step)
        check_select_k(z, n, k, order, keys);
    if (n) check_select_k(z, n, n - 1, order, keys);
    check_select_k(z, n, n, order, keys);
    guarded_free(keys);
}

/* What shape of scores, in rising order of how many are equal. */
static float score_at(int shape, uint32_t i)
{
    static const float odd[] = {0.0f, -0.0f, INFINITY, -INFINITY, 0x1p-149f, -0x1p-149f, FLT_MAX, -FLT_MAX, 1.0f};
    uint32_t bits;
    float any;
    switch (shape) {
    case 0: /* any number at all */
        bits = (uint32_t)random_u64(&seed);
        memcpy(&any, &bits, sizeof any);
        return isnan(any) ? 0.0f : any;
    case 1:
        return random_f32(&seed);
    case 2:
        return (float)i;
    case 3:
        return -(float)i;
    case 4:
        return odd[below(sizeof odd / sizeof *odd)];
    case 5:
        return below(2) ? 0.0f : -0.0f;
    case 6:
        return 1.0f + FLT_EPSILON * (float)below(3); /* next to one another */
    default:
        return -3.0f;
    }
}

static void selection_equals_a_sort(void **state)
{
    (void)state;
    static const uint32_t lengths[] = {576, 2880};
    for (int shape = 0; shape <= 7; shape++) {
        for (uint32_t n = 0; n <= 40; n++) {
            float *z = guarded(n, sizeof *z);
            for (uint32_t i = 0; i < n; i++)
                z[i] = score_at(shape, i);
            check_select(z, n, 1);
            guarded_free(z);
        }
        for (int l = 0; l < 2; l++) {
            float *z = guarded(lengths[l], sizeof *z);
            for (uint32_t i = 0; i < lengths[l]; i++)
                z[i] = score_at(shape, i);
            check_select(z, lengths[l], lengths[l] / 6 + 1);
            guarded_free(z);
        }
    }
}

/* The first NaN is told, whatever k is and whichever bits it has. */
static void selection_finds_nan(void **state)
{
    (void)state;
    static const uint32_t nans[] = {0x7fc00000, 0xffc00000, 0x7f800001, 0xff800001, 0x7fffffff, 0xffffffff};
    int32_t keys[40];
    uint32_t kept[40];
    for (uint32_t n = 1; n <= 40; n++) {
        float z[40];
        for (uint32_t i = 0; i < n; i++)
            z[i] = random_f32(&seed);
        const uint32_t at = below(n);
        memcpy(&z[at], &nans[n % 6], sizeof *z);
        memcpy(&z[at + below(n - at)], &nans[below(6)], sizeof *z);
        assert_int_equal(kernels->select(z, n, below(n + 1), keys, kept), at);
    }
}

/* ---- Choice ------------------------------------------------------------------------------ */

static void tables_are_chosen_by_name(void **state)
{
    (void)state;
    const char *const *names = sq_kernels_names();
    assert_string_equal(names[0], "scalar");
    const char *best = NULL;
    for (; *names; names++) {
        best = *names;
        assert_non_null(sq_kernels_get(best));
        assert_string_equal(sq_kernels_get(best)->isa, best);
        assert_in_range(sq_kernels_get(best)->mr, 1, SQ_MR_MAX);
    }
    assert_ptr_equal(sq_kernels_get(NULL), sq_kernels_get(best));
    assert_ptr_equal(sq_kernels_get("auto"), sq_kernels_get(best));
    assert_null(sq_kernels_get("sse9"));
    assert_null(sq_kernels_get(""));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_equal_double_arithmetic),
        cmocka_unit_test(exp_and_erf_equal_double_arithmetic),
        cmocka_unit_test(rows_equal_plain_c),
        cmocka_unit_test(rows_pack_gathers_and_quantises),
        cmocka_unit_test(ties_go_to_even),
        cmocka_unit_test(bad_activations_stay_in_range),
        cmocka_unit_test(tiny_activations_are_zero),
        cmocka_unit_test(gemm_at_every_edge),
        cmocka_unit_test(few_rows_and_many_panels),
        cmocka_unit_test(gemm_in_blocks_of_rows),
        cmocka_unit_test(integers_are_exact),
        cmocka_unit_test(outliers_cost_only_their_group),
        cmocka_unit_test(the_longest_row_does_not_overflow),
        cmocka_unit_test(no_rows_no_work),
        cmocka_unit_test(floats_add_up_in_one_order),
        cmocka_unit_test(attention_of_every_shape),
        cmocka_unit_test(attention_of_every_length),
        cmocka_unit_test(attention_moves_its_maximum),
        cmocka_unit_test(weights_follow_exp),
        cmocka_unit_test(far_scores_have_no_weight),
        cmocka_unit_test(equal_scores_give_the_mean),
        cmocka_unit_test(attention_survives_any_number),
        cmocka_unit_test(depthwise_of_every_shape),
        cmocka_unit_test(dot_products),
        cmocka_unit_test(dot_products_of_rows),
        cmocka_unit_test(scaled_vectors),
        cmocka_unit_test(halves_round_as_in_quant),
        cmocka_unit_test(caches_of_bytes),
        cmocka_unit_test(rotations),
        cmocka_unit_test(selection_equals_a_sort),
        cmocka_unit_test(selection_finds_nan),
        cmocka_unit_test(tables_are_chosen_by_name),
    };
    int failed = 0;
    plain_c = sq_kernels_get("scalar");
    for (const char *const *name = sq_kernels_names(); *name; name++) {
        kernels = sq_kernels_get(*name);
        failed += cmocka_run_group_tests_name(*name, tests, NULL, NULL);
    }
    return failed;
}
