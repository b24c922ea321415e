/*
 * The plot of squint arank: a bar a layer, in the colour of what is suggested for it.
 * SPDX-License-Identifier: MIT
 */
#include "tools/squint/arank.h"
#include "tools/squint/canvas.h"
#include "tools/squint/cli.h"

#include <math.h>

enum { WIDTH = 1000, HEIGHT = 560, LEFT = 90, RIGHT = 30, TOP = 130, BOTTOM = 80, SCALE = 2, DASH = 8 };
enum { PLOT_W = WIDTH - LEFT - RIGHT, PLOT_H = HEIGHT - TOP - BOTTOM, BASE = TOP + PLOT_H };

static const canvas_colour WHITE = 0xFFFFFFFF, INK = 0x202124FF, GREY = 0x5F6368FF, GRID = 0xE3E5E8FF,
                           DENSE = 0x4C78A8FF, MOD = 0xF2A33CFF, LIMIT = 0xC5221FFF;

typedef struct plot {
    canvas c;
    const arank_result *r;
    double top, step; /* of the ranks' axis */
} plot;

/* 1, 2 or 5 times a power of ten, the least that needs at most `most` steps. */
static double nice_step(double range, int most)
{
    static const double factors[] = {1, 2, 5, 10};
    const double raw = range / most, unit = pow(10, floor(log10(raw)));
    int i = 0;
    while (factors[i] * unit < raw * 0.999)
        i++;
    return factors[i] * unit;
}

static int y_of(const plot *p, double rank) { return BASE - (int)lround(rank / p->top * PLOT_H); }

static double slot(const plot *p) { return (double)PLOT_W / p->r->n_layers; }

static int x_of(const plot *p, double layer) { return LEFT + (int)lround(layer * slot(p)); }

/* How far the text stands to the left of x: 0 begins there, 1 is centred, 2 ends there. */
static void write_at(plot *p, int x, int y, int scale, int halves, canvas_colour colour, const char *text)
{
    canvas_text(&p->c, x - halves * canvas_text_width(scale, text) / 2, y, scale, colour, text);
}

/* Of one sample, or beside narrow bars, there are none. */
static bool has_ranges(const plot *p) { return p->r->n_samples > 1 && slot(p) >= 10; }

static void draw_axes(plot *p)
{
    char text[32];
    for (int i = 0; i * p->step <= p->top * 1.0001; i++) {
        const int y = y_of(p, i * p->step);
        canvas_fill(&p->c, LEFT, y, PLOT_W, 1, i ? GRID : INK);
        snprintf(text, sizeof text, "%g", i * p->step);
        write_at(p, LEFT - 10, y - SCALE * CANVAS_CAP / 2, SCALE, 2, GREY, text);
    }
    const int room = 4 * CANVAS_ADVANCE * SCALE, every = (int)nice_step(room > slot(p) ? room / slot(p) : 1, 1);
    for (uint32_t l = 0; l < p->r->n_layers; l += (uint32_t)every) {
        snprintf(text, sizeof text, "%u", l);
        write_at(p, x_of(p, l + 0.5), BASE + 12, SCALE, 1, GREY, text);
    }
    write_at(p, LEFT + PLOT_W / 2, BASE + 44, SCALE, 1, INK, "layer");
    if (has_ranges(p)) write_at(p, LEFT + PLOT_W, BASE + 44, SCALE, 2, GREY, "I lowest to highest sample");
    write_at(p, 14, TOP - 28, SCALE, 0, INK, "mean rank");
}

/* From the lowest to the highest sample. */
static void draw_range(plot *p, const arank_layer *layer, int x, int half)
{
    const int high = y_of(p, layer->highest), low = y_of(p, layer->lowest);
    if (low - high < 3) return;
    canvas_fill(&p->c, x, high, 2, low - high, INK);
    canvas_fill(&p->c, x - half, high, 2 * half + 2, 2, INK);
    canvas_fill(&p->c, x - half, low - 2, 2 * half + 2, 2, INK);
}

static void draw_bars(plot *p)
{
    for (uint32_t l = 0; l < p->r->n_layers; l++) {
        const arank_layer *layer = &p->r->layers[l];
        const int left = x_of(p, l + 0.14), right = x_of(p, l + 0.86), width = right > left ? right - left : 1;
        const int y = y_of(p, layer->rank);
        canvas_fill(&p->c, left, y, width, BASE - y, layer->mod ? MOD : DENSE);
        if (has_ranges(p)) draw_range(p, layer, left + width / 2 - 1, width / 8 + 1);
    }
}

static void draw_threshold(plot *p)
{
    const int y = y_of(p, p->r->threshold);
    for (int x = LEFT; x < LEFT + PLOT_W; x += DASH + DASH / 2)
        canvas_fill(&p->c, x, y - 1, x + DASH < LEFT + PLOT_W ? DASH : LEFT + PLOT_W - x, 2, LIMIT);
}

/* A word of the legend with its mark, `h` pixels high; returns where the next one to the left ends. */
static int draw_key(plot *p, int x, int h, canvas_colour colour, const char *text)
{
    x -= canvas_text_width(SCALE, text);
    canvas_text(&p->c, x, TOP - 28, SCALE, INK, text);
    canvas_fill(&p->c, x - 22, TOP - 28 + (14 - h) / 2, 14, h, colour);
    return x - 46;
}

static void draw_words(plot *p)
{
    const arank_result *r = p->r;
    char text[256];
    canvas_text(&p->c, 14, 16, SCALE + 1, INK, "ARank: rank of attention maps");
    snprintf(text, sizeof text, "%.30s: %zu sample%s of %.*f tokens, %u heads", r->model, r->n_samples,
             r->n_samples == 1 ? "" : "s", r->tokens == floor(r->tokens) ? 0 : 1, r->tokens, r->n_heads);
    canvas_text(&p->c, 14, 54, SCALE, GREY, text);
    snprintf(text, sizeof text, "%.1f, %s", r->threshold, r->rule);
    int x = draw_key(p, LEFT + PLOT_W, 2, LIMIT, text);
    x = draw_key(p, x, 14, MOD, "may skip tokens");
    draw_key(p, x, 14, DENSE, "stays dense");
}

bool arank_plot(const arank_result *r, const char *path)
{
    plot p = {.r = r};
    double most = r->threshold;
    for (uint32_t l = 0; l < r->n_layers; l++)
        most = fmax(most, r->layers[l].highest);
    p.step = nice_step(fmax(most, 1), 8);
    p.top = p.step * ceil(fmax(most, 1) / p.step);
    canvas_open(&p.c, WIDTH, HEIGHT, WHITE);
    draw_axes(&p);
    draw_bars(&p);
    draw_threshold(&p);
    draw_words(&p);
    const bool saved = canvas_save_png(&p.c, path);
    canvas_close(&p.c);
    return saved;
}
