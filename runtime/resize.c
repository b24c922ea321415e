/*
 * Pillow's bicubic resize, to the last bit.
 * SPDX-License-Identifier: MIT
 *
 * An axis from `in` to `out` pixels: with scale = in / out and stretch = max(scale, 1), output o is the sum of the
 * inputs within 2 * stretch of (o + 0.5) * scale, weighted by Keys' cubic (a = -0.5) of their distance / stretch.
 * Weights are normalised in double, then rounded to 2^-22; a sum is rounded to uint8. Rows come first, then
 * columns of the rounded rows.
 *
 * Columns go through a ring of resized rows: windows only ever move down, so memory is one window, whatever the
 * picture's height. Borders are constant, so their weights need only a sum: window.rest.
 */
#include "runtime/resize.h"

#include "runtime/image.h"

#include <math.h>

enum {
    WEIGHT_BITS = 22,
    HALF = 1 << (WEIGHT_BITS - 1),
    ALIGN = 64,
};

/* Sums stay in int32: weights add up to 1 and their magnitudes to at most 1.4 (at a picture's edge, where a window
 * is cut off), and 1.4 * 255 * 2^22 < 2^31. */
typedef struct window {
    uint32_t first, n; /* of the pixels given */
    int32_t rest;      /* weight of the border */
} window;

typedef struct table {
    window *windows;  /* [axis.n] */
    int32_t *weights; /* [axis.n][widest] */
    uint32_t widest;
} table;

typedef struct work {
    table x, y;
    double *exact;       /* [widest of both] one window's weights before rounding */
    uint8_t *ring;       /* [y.widest][x.n][3] resized rows, row r in slot r % y.widest */
    uint8_t *border_row; /* [x.n][3] what the border's rows become */
    int32_t *sums;       /* [x.n][3] */
} work;

static uint8_t to_byte(int32_t sum)
{
    const int32_t v = sum >> WEIGHT_BITS;
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

static double cubic(double x)
{
    const double a = -0.5;
    x = fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
    return 0.0;
}

static double support_of(const sq_axis *axis)
{
    const double scale = (double)axis->in / axis->out;
    return 2.0 * (scale < 1.0 ? 1.0 : scale);
}

static uint32_t widest_of(const sq_axis *axis)
{
    if (axis->in == axis->out) return 1;
    const double most = ceil(support_of(axis)) * 2.0 + 1.0;
    return most < axis->in ? (uint32_t)most : axis->in;
}

static void plan_table(table *t, const sq_axis *axis, sq_arena *arena)
{
    t->widest = widest_of(axis);
    t->windows = sq_take(arena, axis->n, sizeof *t->windows);
    size_t row;
    if (!sq_mul(t->widest, sizeof *t->weights, &row))
        arena->full = true;
    else
        t->weights = sq_take(arena, axis->n, row);
}

static void plan(work *w, const sq_axis *x, const sq_axis *y, sq_arena *arena)
{
    plan_table(&w->x, x, arena);
    plan_table(&w->y, y, arena);
    w->exact = sq_take(arena, w->x.widest > w->y.widest ? w->x.widest : w->y.widest, sizeof *w->exact);
    w->ring = sq_take(arena, w->y.widest, 3 * (size_t)x->n);
    w->border_row = sq_take(arena, x->n, 3);
    w->sums = sq_take(arena, x->n, 3 * sizeof *w->sums);
}

/* The window of output o over all of axis->in: its start, its length, and normalised weights in `exact`. */
static uint32_t weigh(const sq_axis *axis, uint32_t o, double *exact, uint32_t *start)
{
    const double scale = (double)axis->in / axis->out;
    const double support = support_of(axis), squeeze = 1.0 / (support / 2.0);
    const double centre = (o + 0.5) * scale;
    const int64_t low = (int64_t)(centre - support + 0.5), high = (int64_t)(centre + support + 0.5);
    *start = low < 0 ? 0 : (uint32_t)low;
    const uint32_t end = high > axis->in ? axis->in : (uint32_t)high, n = end - *start;

    double sum = 0.0;
    for (uint32_t k = 0; k < n; k++)
        sum += exact[k] = cubic(((double)k + *start - centre + 0.5) * squeeze);
    for (uint32_t k = 0; k < n; k++)
        if (sum != 0.0) exact[k] /= sum;
    return n;
}

static int32_t round_weight(double weight)
{
    const double scaled = weight * (1 << WEIGHT_BITS);
    return (int32_t)(scaled < 0.0 ? scaled - 0.5 : scaled + 0.5);
}

/* Rounds a window's weights and parts pixels from border: the pixels are at most one run within it. */
static window cut_window(const sq_axis *axis, const double *exact, uint32_t start, uint32_t n, int32_t *weights)
{
    window w = {0};
    for (uint32_t k = 0; k < n; k++) {
        const uint32_t position = start + k;
        if (position < axis->border || position - axis->border >= axis->pixels) {
            w.rest += round_weight(exact[k]);
            continue;
        }
        if (!w.n) w.first = position - axis->border;
        weights[w.n++] = round_weight(exact[k]);
    }
    return w;
}

static void fill_table(table *t, const sq_axis *axis, double *exact)
{
    for (uint32_t i = 0; i < axis->n; i++) {
        uint32_t start = axis->first + i, n = 1;
        exact[0] = 1.0; /* an axis that keeps its length is copied */
        if (axis->in != axis->out) n = weigh(axis, start, exact, &start);
        t->windows[i] = cut_window(axis, exact, start, n, t->weights + (size_t)i * t->widest);
    }
}

static void resize_row(const table *t, uint32_t n, const uint8_t *row, const uint8_t border[3], uint8_t *out)
{
    for (uint32_t i = 0; i < n; i++) {
        const window w = t->windows[i];
        const int32_t *q = t->weights + (size_t)i * t->widest;
        const uint8_t *p = row + 3 * (size_t)w.first;
        int32_t r = HALF + w.rest * border[0], g = HALF + w.rest * border[1], b = HALF + w.rest * border[2];
        for (uint32_t k = 0; k < w.n; k++, p += 3) {
            r += q[k] * p[0];
            g += q[k] * p[1];
            b += q[k] * p[2];
        }
        *out++ = to_byte(r);
        *out++ = to_byte(g);
        *out++ = to_byte(b);
    }
}

/* A row of border only, resized. Its weights need not sum to exactly 2^22, hence not simply the colour. */
static void resize_border(const table *t, uint32_t n, const uint8_t border[3], uint8_t *out)
{
    for (uint32_t i = 0; i < n; i++) {
        int32_t sum = t->windows[i].rest;
        for (uint32_t k = 0; k < t->windows[i].n; k++)
            sum += t->weights[(size_t)i * t->widest + k];
        for (int c = 0; c < 3; c++)
            *out++ = to_byte(HALF + sum * border[c]);
    }
}

static void blend_rows(const work *k, uint32_t i, size_t row_bytes, uint8_t *out)
{
    const window w = k->y.windows[i];
    const int32_t *weights = k->y.weights + (size_t)i * k->y.widest;
    int32_t *sums = k->sums;
    for (size_t j = 0; j < row_bytes; j++)
        sums[j] = HALF + w.rest * k->border_row[j];
    for (uint32_t r = 0; r < w.n; r++) {
        const uint8_t *row = k->ring + (w.first + r) % k->y.widest * row_bytes;
        const int32_t q = weights[r];
        for (size_t j = 0; j < row_bytes; j++)
            sums[j] += q * row[j];
    }
    for (size_t j = 0; j < row_bytes; j++)
        out[j] = to_byte(sums[j]);
}

static void resample(const uint8_t *src, size_t stride, const sq_axis *x, const sq_axis *y, const uint8_t border[3],
                     work *k, uint8_t *dst)
{
    const size_t row_bytes = 3 * (size_t)x->n;
    fill_table(&k->x, x, k->exact);
    fill_table(&k->y, y, k->exact);
    resize_border(&k->x, x->n, border, k->border_row);
    uint32_t next = 0; /* rows before it are in the ring or no longer needed */
    for (uint32_t i = 0; i < y->n; i++) {
        const window w = k->y.windows[i];
        if (next < w.first) next = w.first;
        for (; next < w.first + w.n; next++)
            resize_row(&k->x, x->n, src + next * stride, border, k->ring + next % k->y.widest * row_bytes);
        blend_rows(k, i, row_bytes, dst + i * row_bytes);
    }
}

squint_err sq_resample(const uint8_t *src, size_t stride, const sq_axis *x, const sq_axis *y, const uint8_t border[3],
                       uint8_t *dst, const squint_allocator *a, squint_msg *msg)
{
    work w = {0};
    sq_arena arena = {0};
    plan(&w, x, y, &arena);
    size_t bytes;
    if (arena.full || !sq_add(arena.used, ALIGN, &bytes))
        return sq_fail(msg, SQUINT_ERR_NOMEM, "a resize from %ux%u to %ux%u does not fit in memory", x->in, y->in,
                       x->out, y->out);
    uint8_t *memory = sq_alloc(a, bytes);
    if (!memory) return sq_fail(msg, SQUINT_ERR_NOMEM, "no memory for a resize: %zu bytes", bytes);

    arena = (sq_arena){.base = memory + (ALIGN - (uintptr_t)memory % ALIGN) % ALIGN, .size = arena.used};
    plan(&w, x, y, &arena);
    resample(src, stride, x, y, border, &w, dst);
    sq_free(a, memory, bytes);
    return SQUINT_OK;
}

squint_err sq_resize_bicubic(const uint8_t *src, uint32_t w, uint32_t h, size_t stride, uint8_t *dst, uint32_t dw,
                             uint32_t dh, const squint_allocator *a, squint_msg *msg)
{
    const uint32_t sides[4] = {w, h, dw, dh};
    for (size_t i = 0; i < SQ_COUNT(sides); i++)
        if (sides[i] < 1 || sides[i] > SQ_IMAGE_MAX_SIDE)
            return sq_fail(msg, SQUINT_ERR_ARGUMENT, "a picture of %ux%u cannot become one of %ux%u: sides are 1 to %d",
                           w, h, dw, dh, SQ_IMAGE_MAX_SIDE);
    if (stride / 3 < w)
        return sq_fail(msg, SQUINT_ERR_ARGUMENT, "a stride of %zu bytes is less than 3 * %u", stride, w);
    const sq_axis x = {.in = w, .out = dw, .pixels = w, .n = dw}, y = {.in = h, .out = dh, .pixels = h, .n = dh};
    static const uint8_t no_border[3];
    return sq_resample(src, stride, &x, &y, no_border, dst, a, msg);
}
