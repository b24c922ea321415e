/*
 * test_quant: half floats, llama.cpp's blocks, weight panels.
 * SPDX-License-Identifier: MIT
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

#include "quant/quant.h"
#include "tests/support.h"

/* ---- Half floats ------------------------------------------------------------------------- */

/* The value that IEEE 754 gives a finite binary16. */
static double half_value(uint16_t h)
{
    const int exponent = h >> 10 & 31, mantissa = h & 1023;
    const double v = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
    return h & 0x8000 ? -v : v;
}

static void every_half_becomes_its_float(void **state)
{
    (void)state;
    for (unsigned h = 0; h < 65536; h++) {
        const float f = sq_f16_to_f32((uint16_t)h);
        if ((h & 0x7fff) > 0x7c00) {
            uint32_t bits;
            memcpy(&bits, &f, sizeof bits);
            assert_int_equal(bits, (h & 0x8000) << 16 | 0x7fc00000 | (h & 0x3ff) << 13); /* quiet, as F16C's */
        } else if ((h & 0x7fff) == 0x7c00) {
            assert_true(f == (h & 0x8000 ? -INFINITY : INFINITY));
        } else {
            assert_true((double)f == half_value((uint16_t)h));
            assert_int_equal(!!signbit(f), h >> 15);
        }
    }
}

static void every_half_comes_back(void **state)
{
    (void)state;
    for (unsigned h = 0; h < 65536; h++) {
        const uint16_t back = sq_f32_to_f16(sq_f16_to_f32((uint16_t)h));
        if ((h & 0x7fff) > 0x7c00) {
            assert_int_equal(back, h | 0x200); /* a NaN keeps sign and payload, and is quiet */
        } else {
            assert_int_equal(back, h);
        }
    }
}

/* The middle between two neighbours goes to the even one; a bit less or more to the nearer one. */
static void halves_round_to_nearest_even(void **state)
{
    (void)state;
    for (unsigned h = 0; h < 0x7bff; h++) {
        const float middle = (float)((half_value((uint16_t)h) + half_value((uint16_t)(h + 1))) / 2);
        assert_int_equal(sq_f32_to_f16(middle), h + (h & 1));
        assert_int_equal(sq_f32_to_f16(nextafterf(middle, 0.0f)), h);
        assert_int_equal(sq_f32_to_f16(nextafterf(middle, INFINITY)), h + 1);
        assert_int_equal(sq_f32_to_f16(-middle), 0x8000 | (h + (h & 1)));
    }
}

static void halves_overflow_to_infinity(void **state)
{
    (void)state;
    assert_int_equal(sq_f32_to_f16(65504.0f), 0x7bff);
    assert_int_equal(sq_f32_to_f16(nextafterf(65520.0f, 0.0f)), 0x7bff);
    assert_int_equal(sq_f32_to_f16(65520.0f), 0x7c00);
    assert_int_equal(sq_f32_to_f16(-FLT_MAX), 0xfc00);
    assert_int_equal(sq_f32_to_f16(INFINITY), 0x7c00);
    assert_int_equal(sq_f32_to_f16(FLT_TRUE_MIN), 0);
    assert_int_equal(sq_f32_to_f16(-FLT_MIN), 0x8000);
}

/* ---- Blocks ------------------------------------------------------------------------------ */

/* Element m of tensor t, scale 1, as the specification's weight generator makes it. */
static float generated(uint32_t t, uint32_t m)
{
    uint32_t h = m * 2654435761u + t * 2246822519u + 374761393u;
    h ^= h >> 15;
    h *= 2246822519u;
    h ^= h >> 13;
    return (float)(((double)h / 4294967296.0 - 0.5) * 2.0);
}

static void assert_hex(const void *bytes, size_t n, const char *hex)
{
    static const char digit[] = "0123456789abcdef";
    const uint8_t *b = bytes;
    assert_int_equal(strlen(hex), 2 * n);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(hex[2 * i], digit[b[i] >> 4]);
        assert_int_equal(hex[2 * i + 1], digit[b[i] & 15]);
    }
}

/* Bytes made by gguf-py 0.10 (golden case H7). */
static void blocks_equal_ggml(void **state)
{
    (void)state;
    float x[SQ_BLOCK], y[SQ_BLOCK];
    sq_block_q8_0 q8;
    sq_block_q4_0 q4;
    assert_true(generated(0, 0) == -0.015526237f && generated(0, 3) == -0.23657453f);
    for (uint32_t i = 0; i < SQ_BLOCK; i++)
        x[i] = generated(3000, i);
    sq_quantise_q4_0(x, &q4, 1);
    sq_quantise_q8_0(x, &q8, 1);
    assert_hex(&q4, sizeof q4, "c22fa266cec9f08b0fd430ce90595ff9f75b");
    assert_hex(&q8, sizeof q8, "d21fa5e46410812e71c18862810a7713e92920d93c3b6906874bb23b0bd6d27273d0");
    sq_dequantise_q4_0(&q4, y, 1);
    assert_float_equal(y[0], -0.7272949f, 1e-7f);
    sq_dequantise_q8_0(&q8, y, 1);
    assert_float_equal(y[0], -0.6949692f, 1e-7f);
}

static void block_order_is_by_halves(void **state)
{
    (void)state;
    sq_block_q4_0 b = {.d = 0x3c00}; /* 1.0 */
    float y[SQ_BLOCK];
    for (int j = 0; j < SQ_BLOCK / 2; j++)
        b.q[j] = (uint8_t)(j | (15 - j) << 4);
    sq_dequantise_q4_0(&b, y, 1);
    for (int j = 0; j < SQ_BLOCK / 2; j++) {
        assert_true(y[j] == (float)(j - 8) && y[j + SQ_BLOCK / 2] == (float)(7 - j));
    }
}

static void zero_blocks(void **state)
{
    (void)state;
    const float x[2 * SQ_BLOCK] = {0};
    float y[2 * SQ_BLOCK];
    sq_block_q8_0 q8[2];
    sq_block_q4_0 q4[2];
    sq_quantise_q8_0(x, q8, 2);
    sq_quantise_q4_0(x, q4, 2);
    for (int b = 0; b < 2; b++) {
        assert_int_equal(q8[b].d, 0);
        assert_int_equal(q4[b].d & 0x7fff, 0);
        for (int j = 0; j < SQ_BLOCK; j++)
            assert_int_equal(q8[b].q[j], 0);
        for (int j = 0; j < SQ_BLOCK / 2; j++)
            assert_int_equal(q4[b].q[j], 0x88);
    }
    sq_dequantise_q4_0(q4, y, 2);
    for (int j = 0; j < 2 * SQ_BLOCK; j++)
        assert_true(y[j] == 0.0f);
}

static void first_of_a_tie_decides_the_sign(void **state)
{
    (void)state;
    float x[SQ_BLOCK] = {0};
    sq_block_q4_0 b;
    x[3] = 1.0f;
    x[9] = -1.0f;
    sq_quantise_q4_0(x, &b, 1);
    assert_true(sq_f16_to_f32(b.d) == -0.125f);
    x[3] = -1.0f;
    x[9] = 1.0f;
    sq_quantise_q4_0(x, &b, 1);
    assert_true(sq_f16_to_f32(b.d) == 0.125f);
}

/* Ties of x / d go away from zero: d is 1 here. */
static void q8_0_rounds_half_away(void **state)
{
    (void)state;
    float x[SQ_BLOCK] = {127.0f, 0.5f, -0.5f, 1.5f, -2.5f, 2.49f};
    sq_block_q8_0 b;
    sq_quantise_q8_0(x, &b, 1);
    const int8_t want[] = {127, 1, -1, 2, -3, 2};
    assert_memory_equal(b.q, want, sizeof want);
}

/* Bad numbers give some block, and no undefined behaviour (the sanitizers watch). */
static void blocks_survive_any_number(void **state)
{
    (void)state;
    const float bad[] = {NAN, INFINITY, -INFINITY, FLT_MAX, -FLT_MAX, FLT_TRUE_MIN, -FLT_TRUE_MIN, 0.0f};
    float x[SQ_BLOCK];
    sq_block_q8_0 q8;
    sq_block_q4_0 q4;
    for (int i = 0; i < 8; i++) {
        for (int j = 0; j < SQ_BLOCK; j++)
            x[j] = bad[(i + j % (i + 1)) % 8];
        sq_quantise_q8_0(x, &q8, 1);
        sq_quantise_q4_0(x, &q4, 1);
        for (int j = 0; j < SQ_BLOCK; j++)
            assert_true(q8.q[j] >= -127);
    }
}

/* ---- Panels: sizes and layout ------------------------------------------------------------ */

static void panel_sizes(void **state)
{
    (void)state;
    /* 40 inputs are padded to 64. int8: 64 * 16 bytes of weights, 64 of float scales. */
    const sq_panels a = {.n = 33, .k = 40, .type = SQ_PANEL_I8, .group = 0};
    assert_int_equal(sq_panel_weight_bytes(&a), 1024);
    assert_int_equal(sq_panel_bytes(&a), 1088);
    assert_int_equal(sq_panel_count(&a), 3);
    assert_int_equal(sq_panels_bytes(&a), 3264);
    /* int4, 300 -> 320 inputs: 2560 bytes, 3 rows of 32 bytes of half scales, up to a line. */
    const sq_panels b = {.n = 16, .k = 300, .type = SQ_PANEL_I4, .group = 128};
    assert_int_equal(sq_panel_weight_bytes(&b), 2560);
    assert_int_equal(sq_panel_bytes(&b), 2560 + 128);
    assert_int_equal(sq_panels_act_group(&a), 256);
    assert_int_equal(sq_panels_act_group(&b), 128);
}

static void impossible_shapes_are_refused(void **state)
{
    (void)state;
    const sq_panels good = {.n = 1, .k = 1, .type = SQ_PANEL_I4, .group = 32};
    assert_true(sq_panels_valid(&good));
    const sq_panels bad[] = {
        {.n = 0, .k = 1, .type = SQ_PANEL_I4},
        {.n = 1, .k = 0, .type = SQ_PANEL_I4},
        {.n = SQ_MAX_DIM + 1, .k = 1, .type = SQ_PANEL_I4},
        {.n = 1, .k = SQ_MAX_K + 1, .type = SQ_PANEL_I4},
        {.n = 1, .k = 1, .type = SQ_PANEL_I4, .group = 33},
        {.n = 1, .k = 1, .type = SQ_PANEL_I4, .group = 48},
        {.n = 1, .k = 1, .type = SQ_PANEL_I4, .group = 1u << 31},
        {.n = 1, .k = 1, .type = (sq_panel_type)0},
        {.n = 1, .k = 1, .type = (sq_panel_type)3},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(sq_panels_valid(&bad[i]));
}

/* A matrix whose quantised values are known beforehand: integers, each row and group with its extreme. */
static int known_weight(const sq_panels *w, uint32_t row, uint32_t k)
{
    const int least = w->type == SQ_PANEL_I8 ? -127 : -8, span = w->type == SQ_PANEL_I8 ? 255 : 16;
    const uint32_t in_group = w->group ? k % w->group : k;
    return in_group == 0 ? least : least + (int)((row * 7 + k * 5) % (uint32_t)span);
}

static float *known_matrix(const sq_panels *w)
{
    float *x = malloc((size_t)w->n * w->k * sizeof *x);
    for (uint32_t i = 0; i < w->n; i++) {
        for (uint32_t k = 0; k < w->k; k++)
            x[(size_t)i * w->k + k] = (float)known_weight(w, i, k);
    }
    return x;
}

static uint8_t *quantised(sq_panels *w, const float *x)
{
    uint8_t *data = guarded_alloc(sq_panels_bytes(w), SQ_PANEL_ALIGN);
    sq_panels_quantise(w, x, data);
    w->data = data;
    return data;
}

/* The bytes where quant.h says they are, padding and scales included. */
static void check_layout(sq_panels w)
{
    float *x = known_matrix(&w);
    uint8_t *data = quantised(&w, x);
    const uint32_t k_pad = sq_round_up(w.k, 32);
    for (uint32_t row = 0; row < sq_round_up(w.n, 16); row++) {
        const uint8_t *panel = data + row / 16 * sq_panel_bytes(&w);
        for (uint32_t k = 0; k < k_pad; k++) {
            const int q = row < w.n && k < w.k ? known_weight(&w, row, k) : 0;
            if (w.type == SQ_PANEL_I8) {
                assert_int_equal(panel[k / 4 * 64 + row % 16 * 4 + k % 4], q + 128);
            } else {
                const uint8_t byte = panel[k / 8 * 64 + row % 16 * 4 + k % 4];
                assert_int_equal(k % 8 < 4 ? byte & 15 : byte >> 4, q + 8);
            }
        }
        const float scale = row < w.n ? 1.0f : 0.0f;
        if (w.group) {
            for (uint32_t g = 0; g < (w.k + w.group - 1) / w.group; g++) {
                uint16_t bits;
                memcpy(&bits, panel + sq_panel_weight_bytes(&w) + (g * 16 + row % 16) * 2, 2);
                assert_int_equal(bits, sq_f32_to_f16(scale));
            }
        } else {
            float f;
            memcpy(&f, panel + sq_panel_weight_bytes(&w) + row % 16 * 4, 4);
            assert_true(f == scale);
        }
    }
    guarded_free(data);
    free(x);
}

static void panels_lie_as_drawn(void **state)
{
    (void)state;
    const uint32_t groups[] = {0, 32, 64, 128}, ks[] = {32, 40, 64, 129, 256};
    for (int g = 0; g < 4; g++) {
        for (int k = 0; k < 5; k++) {
            check_layout((sq_panels){.n = 19, .k = ks[k], .type = SQ_PANEL_I8, .group = groups[g]});
            check_layout((sq_panels){.n = 19, .k = ks[k], .type = SQ_PANEL_I4, .group = groups[g]});
        }
    }
}

static void rows_come_back(void **state)
{
    (void)state;
    for (int type = SQ_PANEL_I8; type <= SQ_PANEL_I4; type++) {
        for (uint32_t group = 0; group <= 64; group += 32) {
            sq_panels w = {.n = 21, .k = 100, .type = (sq_panel_type)type, .group = group};
            float *x = known_matrix(&w), *y = guarded_alloc(w.k * sizeof *y, 4);
            uint8_t *data = quantised(&w, x);
            for (uint32_t row = 0; row < w.n; row++) {
                sq_panels_row(&w, row, y);
                assert_memory_equal(y, x + row * w.k, w.k * sizeof *y);
            }
            guarded_free(data);
            guarded_free(y);
            free(x);
        }
    }
}

/* ---- Panels: quality --------------------------------------------------------------------- */

/* Sum of 12 uniform numbers: nearly normal, as weights are. */
static float normal(uint64_t *seed)
{
    float s = 0;
    for (int i = 0; i < 12; i++)
        s += random_f32(seed);
    return s / 2;
}

static float *normal_matrix(uint32_t n, uint32_t k)
{
    uint64_t seed = 7;
    float *x = malloc((size_t)n * k * sizeof *x);
    for (size_t i = 0; i < (size_t)n * k; i++)
        x[i] = 0.02f * normal(&seed);
    return x;
}

/* Halves go away from zero, and their neighbours where they are nearer: the scale is 1. */
static void int8_rounds_half_away(void **state)
{
    (void)state;
    static const struct {
        float weight;
        int q;
    } cases[] = {{127, 127},        {0.5f, 1},         {-0.5f, -1},     {1.5f, 2},  {-2.5f, -3},
                 {126.5f, 127},     {-126.5f, -127},   {0.0f, 0},       {-0.0f, 0}, {0.49999997f, 0},
                 {-0.49999997f, 0}, {126.49999f, 126}, {2.4999998f, 2}, {1e-30f, 0}};
    enum { K = 32 };
    sq_panels w = {NULL, 1, K, SQ_PANEL_I8, K};
    float x[K] = {0}, back[K];
    uint8_t *const out = guarded_alloc(sq_panels_bytes(&w), SQ_PANEL_ALIGN);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        x[i] = cases[i].weight;
    sq_panels_quantise(&w, x, out);
    w.data = out;
    sq_panels_row(&w, 0, back);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_true(back[i] == (float)cases[i].q);
    /* A scale of 1.4 * 2^-24 is kept as 2^-24: the largest weight, 178 of them, is cut off. */
    for (int i = 0; i < K; i++)
        x[i] = i ? 0x1p-24f : -1.4f * 127 * 0x1p-24f;
    sq_panels_quantise(&w, x, out);
    sq_panels_row(&w, 0, back);
    assert_true(back[0] == -127 * 0x1p-24f && back[1] == 0x1p-24f);
    guarded_free(out);
}

/* Half a step of the scale as stored: max / 127, which binary16 makes at most 2^-11 larger or smaller, so that
 * the largest weight may also be cut by 127 * 2^-11 of a step. */
static void int8_error_is_half_a_step(void **state)
{
    (void)state;
    for (uint32_t group = 0; group <= 128; group += 64) {
        sq_panels w = {.n = 5, .k = 300, .type = SQ_PANEL_I8, .group = group};
        float *x = normal_matrix(w.n, w.k), *y = malloc(w.k * sizeof *y);
        uint8_t *data = quantised(&w, x);
        for (uint32_t row = 0; row < w.n; row++) {
            sq_panels_row(&w, row, y);
            float most = 0;
            for (uint32_t k = 0; k < w.k; k++)
                most = fmaxf(most, fabsf(x[row * w.k + k]));
            for (uint32_t k = 0; k < w.k; k++) {
                assert_true(fabsf(y[k] - x[row * w.k + k]) <= most / 127.0f * 0.501f * (1 + 0x1p-10f));
            }
        }
        guarded_free(data);
        free(x);
        free(y);
    }
}

/* Squared error of a row under max / divisor, the scale rounded as the panel does. */
static double naive_error(const sq_panels *w, const float *x, float divisor)
{
    const uint32_t group = w->group ? w->group : w->k;
    double sum = 0;
    for (uint32_t k0 = 0; k0 < w->k; k0 += group) {
        const uint32_t n = w->k - k0 < group ? w->k - k0 : group;
        float most = 0;
        for (uint32_t i = 0; i < n; i++)
            most = fabsf(x[k0 + i]) > fabsf(most) ? x[k0 + i] : most;
        float scale = most / divisor;
        if (w->group) scale = sq_f16_to_f32(sq_f32_to_f16(scale));
        for (uint32_t i = 0; i < n; i++) {
            const double q = fmin(7, fmax(-8, rint((double)x[k0 + i] / scale)));
            sum += pow(x[k0 + i] - q * scale, 2);
        }
    }
    return sum;
}

/* The search contains the plain choices max / 7, max / 8 and max / -8, so no row may be worse than under any of
 * them; the search adds up in float, hence 1e-5. Over normal weights it gains about a tenth. */
static void int4_error_beats_plain_scales(void **state)
{
    (void)state;
    const float divisors[] = {-8, 8, -7, 7};
    for (uint32_t group = 0; group <= 128; group += 32) {
        sq_panels w = {.n = 40, .k = 256, .type = SQ_PANEL_I4, .group = group};
        float *x = normal_matrix(w.n, w.k), *y = malloc(w.k * sizeof *y);
        uint8_t *data = quantised(&w, x);
        double ours = 0, plain = 0;
        for (uint32_t row = 0; row < w.n; row++) {
            const float *xr = x + row * w.k;
            double error = 0;
            sq_panels_row(&w, row, y);
            for (uint32_t k = 0; k < w.k; k++)
                error += pow((double)y[k] - xr[k], 2);
            for (int d = 0; d < 4; d++)
                assert_true(error <= naive_error(&w, xr, divisors[d]) * (1 + 1e-5));
            ours += error;
            plain += naive_error(&w, xr, -8);
        }
        assert_true(ours < 0.95 * plain);
        guarded_free(data);
        free(x);
        free(y);
    }
}

static void quantiser_survives_any_number(void **state)
{
    (void)state;
    const float bad[] = {NAN, INFINITY, -INFINITY, FLT_MAX, -FLT_MAX, FLT_TRUE_MIN, 1e-30f, 0.0f};
    for (int type = SQ_PANEL_I8; type <= SQ_PANEL_I4; type++) {
        for (uint32_t group = 0; group <= 32; group += 32) {
            sq_panels w = {.n = 8, .k = 64, .type = (sq_panel_type)type, .group = group};
            float x[8 * 64], y[64];
            for (int i = 0; i < 8 * 64; i++)
                x[i] = bad[(i / 64 + i % 64 % (i / 64 + 1)) % 8];
            for (int i = 0; i < 64; i++)
                x[i] = 0.0f;
            uint8_t *data = quantised(&w, x);
            sq_panels_row(&w, 0, y);
            for (int k = 0; k < 64; k++)
                assert_true(y[k] == 0.0f);
            for (uint32_t row = 1; row < w.n; row++)
                sq_panels_row(&w, row, y);
            guarded_free(data);
        }
    }
}

/* ---- Panels: repacking ------------------------------------------------------------------- */

static void repack_q8_0_loses_nothing(void **state)
{
    (void)state;
    enum { N = 18, K = 96, BLOCKS = N * K / SQ_BLOCK };
    sq_block_q8_0 b[BLOCKS];
    float want[N * K], got[K];
    uint64_t seed = 1;
    for (int i = 0; i < BLOCKS; i++) {
        b[i].d = (uint16_t)(random_u64(&seed) % 0x7c00 | (i & 1) << 15); /* any finite scale */
        for (int j = 0; j < SQ_BLOCK; j++)
            b[i].q[j] = (int8_t)random_u64(&seed);
    }
    b[0].q[5] = -128; /* foreign files may hold it */
    sq_dequantise_q8_0(b, want, BLOCKS);
    sq_panels w = {.n = N, .k = K, .type = SQ_PANEL_I8, .group = SQ_BLOCK};
    uint8_t *data = guarded_alloc(sq_panels_bytes(&w), SQ_PANEL_ALIGN);
    sq_panels_from_q8_0(&w, b, data);
    w.data = data;
    for (uint32_t row = 0; row < N; row++) {
        sq_panels_row(&w, row, got);
        assert_memory_equal(got, want + row * K, sizeof got);
    }
    guarded_free(data);
}

static void repack_q4_0_loses_nothing(void **state)
{
    (void)state;
    enum { N = 18, K = 96, BLOCKS = N * K / SQ_BLOCK };
    sq_block_q4_0 b[BLOCKS];
    float want[N * K], got[K];
    uint64_t seed = 2;
    for (int i = 0; i < BLOCKS; i++) {
        b[i].d = (uint16_t)(random_u64(&seed) % 0x7c00 | (i & 1) << 15);
        for (int j = 0; j < SQ_BLOCK / 2; j++)
            b[i].q[j] = (uint8_t)random_u64(&seed);
    }
    sq_dequantise_q4_0(b, want, BLOCKS);
    sq_panels w = {.n = N, .k = K, .type = SQ_PANEL_I4, .group = SQ_BLOCK};
    uint8_t *data = guarded_alloc(sq_panels_bytes(&w), SQ_PANEL_ALIGN);
    sq_panels_from_q4_0(&w, b, data);
    w.data = data;
    for (uint32_t row = 0; row < N; row++) {
        sq_panels_row(&w, row, got);
        assert_memory_equal(got, want + row * K, sizeof got);
    }
    guarded_free(data);
}

/* ---- Error measure ----------------------------------------------------------------------- */

static void relative_rms(void **state)
{
    (void)state;
    const float a[] = {3, 4}, b[] = {3, 3}, zero[] = {0, 0};
    assert_true(fabs(sq_relative_rms(a, b, 2) - 0.2) < 1e-12);
    assert_true(sq_relative_rms(a, a, 2) == 0.0);
    assert_true(sq_relative_rms(zero, zero, 2) == 0.0);
    assert_true(isinf(sq_relative_rms(zero, a, 2)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_half_becomes_its_float),
        cmocka_unit_test(every_half_comes_back),
        cmocka_unit_test(halves_round_to_nearest_even),
        cmocka_unit_test(halves_overflow_to_infinity),
        cmocka_unit_test(blocks_equal_ggml),
        cmocka_unit_test(block_order_is_by_halves),
        cmocka_unit_test(zero_blocks),
        cmocka_unit_test(first_of_a_tie_decides_the_sign),
        cmocka_unit_test(q8_0_rounds_half_away),
        cmocka_unit_test(blocks_survive_any_number),
        cmocka_unit_test(panel_sizes),
        cmocka_unit_test(impossible_shapes_are_refused),
        cmocka_unit_test(panels_lie_as_drawn),
        cmocka_unit_test(rows_come_back),
        cmocka_unit_test(int8_rounds_half_away),
        cmocka_unit_test(int8_error_is_half_a_step),
        cmocka_unit_test(int4_error_beats_plain_scales),
        cmocka_unit_test(quantiser_survives_any_number),
        cmocka_unit_test(repack_q8_0_loses_nothing),
        cmocka_unit_test(repack_q4_0_loses_nothing),
        cmocka_unit_test(relative_rms),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
