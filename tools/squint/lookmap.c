/*
 * What was looked at, painted over the picture.
 * SPDX-License-Identifier: MIT
 *
 * A panel shows a frame: the picture, and what the tower saw of it, which may reach beyond (padding) or leave out parts
 * (a crop). Every pixel of a panel asks for the patches that lie over its centre, so patches need not be whole pixels.
 * Where a model has looked at the whole picture and at tiles of it, several do, and the pixel shows their mean.
 */
#include "runtime/image.h"
#include "tools/squint/cli.h"
#include "tools/squint/sight.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    BACKGROUND = 0xFF, /* white, all channels */
    OUTSIDE = 0x80,    /* grey around the picture */
    MOST_SWATCHES = 13,
    MOST_LINES = 4,
    PATCH_PIXELS = 7, /* at least, in the small maps, as long as four stand side by side */
};

static const canvas_colour INK = 0x202328FF, PALE = 0x6A707AFF;
static const double SKIPPED = 0.2; /* brightness of what a layer skipped */

/* What a panel shows. */
typedef enum panel_kind { PANEL_PICTURE, PANEL_SUM, PANEL_LAYER } panel_kind;

typedef struct panel {
    int x, y, w, h; /* on the canvas */
    panel_kind kind;
    unsigned layer;
} panel;

typedef struct painter {
    canvas *c;
    const sight *s;
    const uint8_t *rgb;
    double left, top, width, height; /* of the frame, in the picture's pixels */
    double mean;                     /* luminance of the picture */
    unsigned n_choosing;
    int text, gap; /* size of a letter's dot; space between things */
} painter;

/* ---- Geometry ------------------------------------------------------------------------------ */

int look_patch_at(const squint_grid *g, double x, double y)
{
    const double column = floor((x - g->x) / g->w * g->columns), row = floor((y - g->y) / g->h * g->rows);
    if (!(column >= 0 && column < g->columns && row >= 0 && row < g->rows)) return -1;
    return (int)row * (int)g->columns + (int)column;
}

static const squint_grid *grid_of(const sight *s, unsigned i) { return i ? &s->more[i - 1] : &s->grid; }

/* Vision tokens over a point: one of each grid that covers it. */
static unsigned tokens_at(const sight *s, double x, double y, unsigned tokens[1 + SIGHT_MOST_MORE])
{
    unsigned n = 0;
    for (unsigned i = 0; i <= s->n_more; i++) {
        const squint_grid *const g = grid_of(s, i);
        const int patch = look_patch_at(g, x, y);
        if (patch < 0) continue;
        const unsigned ends = i ? (unsigned)patch / g->columns * (g->row_tokens - g->columns) : 0;
        tokens[n++] = g->first - s->grid.first + (unsigned)patch + ends;
    }
    return n;
}

static double luminance(const uint8_t *p) { return (0.299 * p[0] + 0.587 * p[1] + 0.114 * p[2]) / 255; }

static double mean_luminance(const sight *s, const uint8_t *rgb)
{
    const size_t n = (size_t)s->grid.picture_w * s->grid.picture_h;
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += luminance(rgb + 3 * i);
    return sum / (double)n;
}

static void find_frame(painter *p)
{
    double right = p->s->grid.picture_w, bottom = p->s->grid.picture_h;
    for (unsigned i = 0; i <= p->s->n_more; i++) {
        const squint_grid *const g = grid_of(p->s, i);
        p->left = fmin(p->left, g->x);
        p->top = fmin(p->top, g->y);
        right = fmax(right, g->x + g->w);
        bottom = fmax(bottom, g->y + g->h);
    }
    p->width = right - p->left;
    p->height = bottom - p->top;
}

/* The largest panel with the frame's shape in this room. */
static panel fit_panel(const painter *p, int x, int y, int w, int h)
{
    const double scale = fmin(w / p->width, h / p->height);
    const int pw = (int)fmax(1, round(p->width * scale)), ph = (int)fmax(1, round(p->height * scale));
    return (panel){.x = x + (w - pw) / 2, .y = y, .w = pw, .h = ph};
}

/* ---- Pixels -------------------------------------------------------------------------------- */

/* From black over violet and orange to a bright yellow: brighter is more, in any eye. */
static void heat(double share, double out[3])
{
    static const double stops[][3] = {{18, 14, 50}, {98, 26, 120}, {190, 50, 95}, {242, 120, 45}, {252, 240, 120}};
    enum { LAST = sizeof stops / sizeof *stops - 1 };
    const double at = fmin(fmax(share, 0), 1) * LAST;
    const int i = at < LAST ? (int)at : LAST - 1;
    for (int c = 0; c < 3; c++)
        out[c] = stops[i][c] + (at - i) * (stops[i + 1][c] - stops[i][c]);
}

static void shade(uint8_t *p, double factor)
{
    for (int c = 0; c < 3; c++)
        p[c] = (uint8_t)lround(p[c] * factor);
}

/* The colour of the legend, lighter and darker where the picture is lighter and darker than on the whole. */
static void paint_heat(uint8_t *p, double share, double mean)
{
    double colour[3];
    const double relief = 60 * (luminance(p) - mean);
    heat(share, colour);
    for (int c = 0; c < 3; c++)
        p[c] = (uint8_t)lround(fmin(fmax(colour[c] + relief, 0), 255));
}

/* Cropped away: grey, pale and striped, so that it is not taken for a dark patch. */
static void paint_unseen(uint8_t *p, int x, int y, int stripe)
{
    const double grey = 150 + 80 * luminance(p) - ((x + y) / stripe % 2 ? 24 : 0);
    p[0] = p[1] = p[2] = (uint8_t)lround(grey);
}

static void paint_pixel(const painter *p, const panel *at, int i, int j)
{
    uint8_t *const rgb = p->c->rgb + 3 * ((size_t)(at->y + j) * p->c->w + at->x + i);
    const double x = p->left + (i + 0.5) * p->width / at->w, y = p->top + (j + 0.5) * p->height / at->h;
    unsigned tokens[1 + SIGHT_MOST_MORE], kept = 0;
    const unsigned n = tokens_at(p->s, x, y, tokens), most = n * (at->kind == PANEL_SUM ? p->n_choosing : 1);
    for (unsigned t = 0; t < n; t++)
        kept += at->kind == PANEL_SUM ? sight_count(p->s, tokens[t]) : p->s->layers[at->layer].kept[tokens[t]];
    if (!n)
        paint_unseen(rgb, i, j, 3 * p->text);
    else if (at->kind == PANEL_SUM)
        paint_heat(rgb, (double)kept / most, p->mean);
    else if (kept < most)
        shade(rgb, SKIPPED + (1 - SKIPPED) * kept / most);
}

/* The picture where it lies in the panel, grey around it. */
static void place_picture(const painter *p, const panel *at)
{
    const squint_grid *const g = &p->s->grid;
    const squint_allocator a = sq_allocator_or_default(NULL);
    const int left = (int)lround(-p->left * at->w / p->width), top = (int)lround(-p->top * at->h / p->height);
    int w = (int)lround(g->picture_w * at->w / p->width), h = (int)lround(g->picture_h * at->h / p->height);
    w = w < 1 ? 1 : w > at->w - left ? at->w - left : w;
    h = h < 1 ? 1 : h > at->h - top ? at->h - top : h;
    canvas_fill(p->c, at->x, at->y, at->w, at->h, OUTSIDE * 0x01010100u | 0xFF);
    if (w < 1 || h < 1) return;
    squint_msg msg;
    uint8_t *const small = cli_alloc((size_t)w * (size_t)h, 3);
    if (sq_resize_bicubic(p->rgb, g->picture_w, g->picture_h, 3 * (size_t)g->picture_w, small, (uint32_t)w, (uint32_t)h,
                          &a, &msg)) {
        cli_say("%s", msg.text);
        exit(CLI_FAILED);
    }
    for (int y = 0; y < h; y++)
        memcpy(p->c->rgb + 3 * ((size_t)(at->y + top + y) * p->c->w + at->x + left), small + 3 * (size_t)y * w,
               3 * (size_t)w);
    free(small);
}

/* 64 levels a channel: nobody sees it, and the file is a third smaller. */
static void coarsen(const painter *p, const panel *at)
{
    for (int j = 0; j < at->h; j++) {
        uint8_t *const row = p->c->rgb + 3 * ((size_t)(at->y + j) * p->c->w + at->x);
        for (int i = 0; i < 3 * at->w; i++)
            row[i] = (uint8_t)((row[i] & 0xFC) | row[i] >> 6);
    }
}

static void paint_panel(const painter *p, const panel *at)
{
    place_picture(p, at);
    for (int j = 0; j < at->h && at->kind != PANEL_PICTURE; j++)
        for (int i = 0; i < at->w; i++)
            paint_pixel(p, at, i, j);
    coarsen(p, at);
}

/* ---- Words --------------------------------------------------------------------------------- */

static int line_height(const painter *p, int scale) { return scale * CANVAS_LINE + p->gap / 4; }

/* As many bytes of the text as fit, up to a space if there is one. */
static size_t fit_text(const char *text, int scale, int width)
{
    char line[512];
    size_t n = strlen(text), most = sizeof line - 1, space = 0;
    if (n > most) n = most;
    snprintf(line, n + 1, "%s", text);
    while (n && canvas_text_width(scale, line) > width)
        line[--n] = 0;
    if (!text[n]) return n;
    for (size_t i = 0; i <= n; i++)
        if (text[i] == ' ') space = i;
    while (!space && n && ((unsigned char)text[n] & 0xC0) == 0x80)
        n--;
    return space ? space : n ? n : 1;
}

/* Text over as many lines as it takes, up to a few. Without a canvas it only measures. Returns where the next line
 * goes. */
static int put_lines(const painter *p, int x, int y, int width, int scale, canvas_colour colour, const char *text)
{
    for (int line = 0; line < MOST_LINES && *text; line++) {
        char part[513];
        const size_t n = fit_text(text, scale, width);
        snprintf(part, sizeof part, "%.*s", (int)n, text);
        if (p->c) canvas_text(p->c, x, y, scale, colour, part);
        y += line_height(p, scale);
        for (text += n; *text == ' ';)
            text++;
    }
    return y;
}

static void put_centred(const painter *p, int x, int y, int width, canvas_colour colour, const char *text)
{
    if (p->c) canvas_text(p->c, x + (width - canvas_text_width(p->text, text)) / 2, y, p->text, colour, text);
}

/* ---- The legend ---------------------------------------------------------------------------- */

static void fill_heat(const painter *p, int x, int y, int w, int h, double share)
{
    double colour[3];
    heat(share, colour);
    canvas_fill(p->c, x, y, w, h,
                (canvas_colour)lround(colour[0]) << 24 | (canvas_colour)lround(colour[1]) << 16 |
                    (canvas_colour)lround(colour[2]) << 8 | 0xFF);
}

static void put_number(const painter *p, int x, int y, int width, unsigned n)
{
    char text[16];
    snprintf(text, sizeof text, "%u", n);
    put_centred(p, x, y, width, INK, text);
}

/* A swatch for each count, or a band from none to all. */
static int put_legend(const painter *p, int x, int y, int width)
{
    const int n = (int)p->n_choosing, height = 5 * p->text + p->gap / 2;
    char text[96];
    snprintf(text, sizeof text, "how many of %d layers kept a patch%s", n,
             p->s->n_more ? ", on average over those that lie there" : "");
    y = put_lines(p, x, y, width, p->text, INK, text);
    if (!p->c) return y + height + p->gap / 2 + line_height(p, p->text);
    const bool swatches = n < MOST_SWATCHES;
    const int parts = swatches ? n + 1 : width, below = y + height + p->gap / 2;
    for (int i = 0; i < parts; i++) {
        const int from = i * width / parts, to = (i + 1) * width / parts;
        fill_heat(p, x + from, y, to - from - swatches, height, (double)i / (parts - 1));
        if (swatches) put_number(p, x + from, below, to - from, (unsigned)i);
    }
    for (int i = 0; i < 3 && !swatches; i++)
        put_number(p, x + i * (width - 6 * CANVAS_ADVANCE * p->text) / 2, below, 6 * CANVAS_ADVANCE * p->text,
                   p->n_choosing * (unsigned)i / 2);
    return below + line_height(p, p->text);
}

/* ---- The sheet ----------------------------------------------------------------------------- */

static int put_head(const painter *p, int y, int width)
{
    char text[512];
    double ran, of;
    sight_share(p->s, &ran, &of);
    y = put_lines(p, p->gap, y, width - 2 * p->gap, 2 * p->text, INK, *p->s->caption ? p->s->caption : "(no caption)");
    snprintf(text, sizeof text, "%u of %u layers chose what to look at: %.0f %% of their vision tokens", p->n_choosing,
             p->s->n_layers, 100 * ran / of);
    return put_lines(p, p->gap, y, width - 2 * p->gap, p->text, PALE, text) + p->gap / 2;
}

static int put_panel(const painter *p, panel at, panel_kind kind, unsigned layer)
{
    at.kind = kind;
    at.layer = layer;
    if (p->c) paint_panel(p, &at);
    return at.y + at.h;
}

/* "layer 5: 15 of 81", on two lines where it is too long for one. */
static int put_label(const painter *p, int x, int y, int width, unsigned layer, bool one_line)
{
    char name[32], counts[64];
    snprintf(name, sizeof name, one_line ? "layer %u: %u of %u" : "layer %u", layer, p->s->layers[layer].n_kept,
             p->s->n_vision);
    snprintf(counts, sizeof counts, "%u of %u", p->s->layers[layer].n_kept, p->s->n_vision);
    put_centred(p, x, y, width, INK, name);
    if (one_line) return y + line_height(p, p->text);
    put_centred(p, x, y + line_height(p, p->text), width, INK, counts);
    return y + 2 * line_height(p, p->text);
}

static int label_width(const painter *p, const char *format)
{
    char text[64];
    snprintf(text, sizeof text, "%s%u of %u", format, p->s->n_vision, p->s->n_vision);
    return canvas_text_width(p->text, text);
}

static unsigned most_columns(const sight *s)
{
    unsigned most = 0;
    for (unsigned i = 0; i <= s->n_more; i++)
        if (grid_of(s, i)->columns > most) most = grid_of(s, i)->columns;
    return most;
}

/* A small map of each layer that chooses, in rows as even as can be. */
static int put_strip(const painter *p, int y, int width)
{
    const int n = (int)p->n_choosing, inner = width - p->gap;
    const int label = (int)fmax(label_width(p, ""), canvas_text_width(p->text, "layer 99"));
    const int least = (int)fmax(label, fmin(PATCH_PIXELS * most_columns(p->s), width / 4));
    const int most = (int)fmax(1, inner / (least + p->gap)), rows = (n + most - 1) / most;
    const int columns = (n + rows - 1) / rows, cell = (int)fmin(inner / columns - p->gap, width / 3);
    const bool one_line = label_width(p, "layer 99: ") <= cell;
    int column = 0, bottom = y;
    for (unsigned l = 0; l < p->s->n_layers; l++) {
        if (!p->s->layers[l].chooses) continue;
        const int x = p->gap + column * (cell + p->gap);
        bottom = put_panel(p, fit_panel(p, x, y, cell, 2 * cell), PANEL_LAYER, l) + p->gap / 2;
        bottom = put_label(p, x, bottom, cell, l, one_line);
        if (++column < columns) continue;
        column = 0;
        y = bottom + p->gap / 2;
    }
    return bottom;
}

static int put_names(const painter *p, int y, int width)
{
    char text[256];
    const char *const slash = strrchr(p->s->file, '/'); /* where it lies is nobody's business */
    y = put_lines(p, p->gap, y, width, p->text, INK, slash ? slash + 1 : p->s->file);
    snprintf(text, sizeof text, "%.80s, %.32s", p->s->model, p->s->mode);
    return put_lines(p, p->gap, y, width, p->text, PALE, text);
}

static int put_all(const painter *p, int y, int width)
{
    const int half = (width - 3 * p->gap) / 2, right = half + 2 * p->gap;
    const panel left = fit_panel(p, p->gap, y, half, 2 * half), sum = fit_panel(p, right, y, half, 2 * half);
    const int bottom = put_panel(p, left, PANEL_PICTURE, 0) + p->gap / 2;
    put_panel(p, sum, PANEL_SUM, 0);
    const int names = put_names(p, bottom, half), legend = put_legend(p, right, bottom, half);
    y = (names > legend ? names : legend) + p->gap / 2;
    y = put_lines(p, p->gap, y, width - 2 * p->gap, p->text, INK,
                  p->s->n_more ? "layer by layer: bright where all patches were kept, dark where none was"
                               : "layer by layer: bright patches were kept, dark ones skipped");
    return put_strip(p, y, width);
}

static int put_one(const painter *p, int y, int width, int what)
{
    const int inner = width - 2 * p->gap;
    const panel at = fit_panel(p, p->gap, y, inner, 2 * inner);
    if (what == LOOK_SUM) return put_legend(p, p->gap, put_panel(p, at, PANEL_SUM, 0) + p->gap / 2, inner);
    y = put_panel(p, at, PANEL_LAYER, (unsigned)what) + p->gap / 2;
    return put_label(p, p->gap, y, inner, (unsigned)what, true);
}

/* Height of the sheet: drawn if there is a canvas. */
static int put_sheet(const painter *p, int what, int width)
{
    const int y = put_head(p, p->gap, width);
    return (what == LOOK_ALL ? put_all(p, y, width) : put_one(p, y, width, what)) + p->gap;
}

bool look_parse(const char *text, int *what)
{
    uint64_t layer;
    *what = !strcmp(text, "all") ? LOOK_ALL : LOOK_SUM;
    if (*what == LOOK_ALL || !strcmp(text, "sum")) return true;
    if (!cli_number(text, 0, 511, &layer)) return false;
    *what = (int)layer;
    return true;
}

bool look_check(const sight *s, int what, const char *name)
{
    if (!sight_choosing(s)) {
        cli_say("%s: no layer of %s chooses in mode %s: all looked at the whole picture, there is nothing to paint",
                name, s->model, s->mode);
        return false;
    }
    if (what < 0) return true;
    if ((unsigned)what < s->n_layers && s->layers[what].chooses) return true;
    if ((unsigned)what < s->n_layers)
        cli_say("%s: layer %d does not choose: it looked at the whole picture", name, what);
    else
        cli_say("%s: there is no layer %d; the model has %u, counted from 0", name, what, s->n_layers);
    return false;
}

void look_paint(canvas *out, const sight *s, const uint8_t *rgb, int what, unsigned width)
{
    painter p = {.s = s, .rgb = rgb, .n_choosing = sight_choosing(s), .text = width < 720 ? 1 : (int)width / 480};
    p.gap = 8 * p.text;
    p.mean = mean_luminance(s, rgb);
    find_frame(&p);
    const int height = put_sheet(&p, what, (int)width);
    canvas_open(out, (int)width, height, BACKGROUND * 0x01010100u | 0xFF);
    p.c = out;
    put_sheet(&p, what, (int)width);
}
