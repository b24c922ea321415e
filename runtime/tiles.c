/*
 * Pictures in tiles.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/tiles.h"

#include <math.h>

/* ---- Geometry ------------------------------------------------------------------------------- */

size_t sq_tiles_choose(const sq_size *canvases, size_t n, uint32_t w, uint32_t h)
{
    const uint64_t pixels = (uint64_t)w * h;
    uint64_t most = 0, least_waste = UINT64_MAX;
    size_t best = 0;
    for (size_t i = 0; i < n; i++) {
        const double scale = fmin((double)canvases[i].w / w, (double)canvases[i].h / h);
        const uint64_t shown = (uint64_t)(w * scale) * (uint64_t)(h * scale);
        const uint64_t effective = shown < pixels ? shown : pixels;
        const uint64_t waste = (uint64_t)canvases[i].w * canvases[i].h - effective;
        if (effective < most || (effective == most && waste >= least_waste)) continue;
        most = effective;
        least_waste = waste;
        best = i;
    }
    return best;
}

static uint32_t least(double a, uint32_t b) { return a < b ? (uint32_t)a : b; }

sq_tiles sq_tiles_lay(sq_size canvas, uint32_t tile_side, uint32_t w, uint32_t h)
{
    const double across = (double)canvas.w / w, down = (double)canvas.h / h;
    sq_tiles t = {.columns = canvas.w / tile_side, .rows = canvas.h / tile_side, .fit = canvas};
    if (across < down)
        t.fit.h = least(ceil(h * across), canvas.h);
    else
        t.fit.w = least(ceil(w * down), canvas.w);
    t.x = (canvas.w - t.fit.w) / 2;
    t.y = (canvas.h - t.fit.h) / 2;
    return t;
}

sq_kept_map sq_tiles_unpad(uint32_t columns, uint32_t rows, uint32_t w, uint32_t h)
{
    sq_kept_map kept = {.columns = columns, .rows = rows};
    if ((double)w / h > (double)columns / rows) {
        const uint32_t shown = (uint32_t)(h * ((double)columns / w));
        kept.y = (rows - shown) / 2;
        kept.rows = rows - 2 * kept.y; /* an odd row of padding stays */
    } else {
        const uint32_t shown = (uint32_t)(w * ((double)rows / h));
        kept.x = (columns - shown) / 2;
        kept.columns = columns - 2 * kept.x;
    }
    return kept;
}

/* Python's a // b for a >= 0, b > 0: of the exact quotient. At least 1 here: a map cannot shrink to nothing. */
static uint32_t floor_quotient(double a, double b)
{
    const double quotient = rint((a - fmod(a, b)) / b);
    return quotient < 1 ? 1 : (uint32_t)quotient;
}

sq_size sq_tiles_shrink(uint32_t columns, uint32_t rows, double most)
{
    const double times = most > 0 ? sqrt((double)columns * rows / most) : 0;
    if (!(times > 1.01)) return (sq_size){columns, rows};
    return (sq_size){floor_quotient(columns, times), floor_quotient(rows, times)};
}

static uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

static uint32_t shrunk_tokens(uint32_t columns, uint32_t rows, double most)
{
    const sq_size map = sq_tiles_shrink(columns, rows, most);
    return map.h * (map.w + 1);
}

/* Unpadding takes as many columns from either side, or rows. All are tried: of two maps the smaller may be the one that
 * is not shrunk. */
uint32_t sq_tiles_most_tokens(const sq_size *canvases, size_t n, uint32_t unit, double most)
{
    uint32_t tokens = 0;
    for (size_t i = 0; i < n; i++) {
        const sq_size map = {canvases[i].w * unit, canvases[i].h * unit};
        for (uint32_t columns = map.w % 2; columns <= map.w; columns += 2)
            tokens = larger(tokens, shrunk_tokens(columns, map.h, most));
        for (uint32_t rows = map.h % 2; rows < map.h; rows += 2)
            tokens = larger(tokens, shrunk_tokens(map.w, rows, most));
    }
    return tokens;
}

/* ---- Pixels --------------------------------------------------------------------------------- */

/* One tile off a canvas that holds a picture of `fit` at t->x, t->y. */
static void cut_tile(const sq_tiles *t, const uint8_t *fitted, uint32_t column, uint32_t row, uint32_t size,
                     const float values[3][256], float *out)
{
    const size_t n = (size_t)size * size;
    for (uint32_t i = 0; i < size; i++) {
        /* Left of and above the picture the unsigned difference wraps far past its sides. */
        const uint32_t y = row * size + i - t->y;
        for (uint32_t j = 0; j < size; j++) {
            static const uint8_t black[3];
            const uint32_t x = column * size + j - t->x;
            const bool inside = x < t->fit.w && y < t->fit.h;
            const uint8_t *const pixel = inside ? fitted + 3 * ((size_t)y * t->fit.w + x) : black;
            for (size_t c = 0; c < 3; c++)
                out[c * n + (size_t)i * size + j] = values[c][pixel[c]];
        }
    }
}

static squint_err cut_tiles(const uint8_t *rgb, uint32_t w, uint32_t h, size_t stride, const sq_image_rule *rule,
                            const sq_tiles *t, float *out, const squint_allocator *a, squint_msg *msg)
{
    const size_t bytes = 3 * (size_t)t->fit.w * t->fit.h;
    uint8_t *const fitted = sq_alloc(a, bytes);
    if (!fitted) return sq_fail(msg, SQUINT_ERR_NOMEM, "no memory to resize an image: %zu bytes", bytes);
    const squint_err err = sq_resize_bicubic(rgb, w, h, stride, fitted, t->fit.w, t->fit.h, a, msg);
    float values[3][256];
    sq_image_values(rule, values);
    for (uint32_t i = 0; !err && i < t->rows * t->columns; i++)
        cut_tile(t, fitted, i % t->columns, i / t->columns, rule->size, values,
                 out + (size_t)i * 3 * rule->size * rule->size);
    sq_free(a, fitted, bytes);
    return err;
}

squint_err sq_tiles_prepare(const uint8_t *rgb, uint32_t w, uint32_t h, size_t stride, const sq_image_rule *rule,
                            const sq_tiles *tiles, float *out, const squint_allocator *a, squint_msg *msg)
{
    sq_image_rule whole = *rule;
    whole.fit = SQ_FIT_STRETCH;
    const squint_err err = sq_image_prepare(rgb, w, h, stride, &whole, out, a, msg);
    if (err) return err;
    return cut_tiles(rgb, w, h, stride, rule, tiles, out + 3 * (size_t)rule->size * rule->size, a, msg);
}
