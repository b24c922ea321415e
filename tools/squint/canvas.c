/*
 * Drawing, letters and PNG files.
 * SPDX-License-Identifier: MIT
 */
#include "tools/squint/canvas.h"

#include "tools/squint/cli.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define STBI_WRITE_NO_STDIO
#include <stb_image_write.h>

/* ---- Pixels -------------------------------------------------------------------------------- */

void canvas_open(canvas *c, int w, int h, canvas_colour colour)
{
    *c = (canvas){.w = w, .h = h, .rgb = cli_alloc((size_t)w * h, 3)};
    canvas_fill(c, 0, 0, w, h, colour | 0xFF);
}

void canvas_close(canvas *c)
{
    free(c->rgb);
    *c = (canvas){0};
}

/* `share` of the pixel is covered. */
static void blend(canvas *c, int x, int y, canvas_colour colour, double share)
{
    const double a = share * (colour & 0xFF) / 255;
    uint8_t *p = c->rgb + 3 * ((size_t)y * c->w + x);
    for (int i = 0; i < 3; i++)
        p[i] = (uint8_t)lround(p[i] + a * ((int)(colour >> (24 - 8 * i) & 0xFF) - p[i]));
}

static int within(int x, int limit) { return x < 0 ? 0 : x > limit ? limit : x; }

void canvas_fill(canvas *c, int x, int y, int w, int h, canvas_colour colour)
{
    const int right = within(x + w, c->w), bottom = within(y + h, c->h);
    for (int j = within(y, c->h); j < bottom; j++)
        for (int i = within(x, c->w); i < right; i++)
            blend(c, i, j, colour, 1);
}

/* ---- Lines --------------------------------------------------------------------------------- */

static double clamp(double x, double low, double high) { return x < low ? low : x > high ? high : x; }

/* How much of a band of half width `half` lies in the pixel whose centre is `distance` from its middle. */
static double cover(double distance, double half)
{
    return clamp(half - fabs(distance) + 0.5, 0, clamp(2 * half, 0, 1));
}

void canvas_line(canvas *c, double x0, double y0, double x1, double y1, double width, canvas_colour colour)
{
    const double length = hypot(x1 - x0, y1 - y0), half = width / 2;
    const double ux = length > 0 ? (x1 - x0) / length : 1, uy = length > 0 ? (y1 - y0) / length : 0;
    const int left = within((int)floor(fmin(x0, x1) - half) - 1, c->w);
    const int right = within((int)ceil(fmax(x0, x1) + half) + 1, c->w);
    const int top = within((int)floor(fmin(y0, y1) - half) - 1, c->h);
    const int bottom = within((int)ceil(fmax(y0, y1) + half) + 1, c->h);
    for (int y = top; y < bottom; y++)
        for (int x = left; x < right; x++) {
            const double dx = x + 0.5 - (x0 + x1) / 2, dy = y + 0.5 - (y0 + y1) / 2;
            const double share = cover(dy * ux - dx * uy, half) * cover(dx * ux + dy * uy, length / 2);
            if (share > 0) blend(c, x, y, colour, share);
        }
}

/* ---- Letters ------------------------------------------------------------------------------- */

enum { GLYPH_W = 5, GLYPH_H = 9, BANK = 16, FIRST = ' ', UNKNOWN = 127 };

/* Sixteen letters side by side in a bank, in ASCII's order from space on; seven rows above the line and two below. The
 * last one stands for what is not here. */
static const char *const font[6][GLYPH_H] = {
    {
        "     |  #  | # # | # # |  #  |##  #| ##  |  #  |   # | #   |     |     |     |     |     |    #",
        "     |  #  | # # | # # | ####|##  #|#  # |  #  |  #  |  #  |  #  |  #  |     |     |     |    #",
        "     |  #  | # # |#####|# #  |   # |# #  |  #  | #   |   # |# # #|  #  |     |     |     |   # ",
        "     |  #  |     | # # | ### |  #  | #   |     | #   |   # | ### |#####|     |#####|     |  #  ",
        "     |  #  |     |#####|  # #| #   |# # #|     | #   |   # |# # #|  #  |     |     |     | #   ",
        "     |     |     | # # |#### |#  ##|#  # |     |  #  |  #  |  #  |  #  |  ## |     | ##  |#    ",
        "     |  #  |     | # # |  #  |#  ##| ## #|     |   # | #   |     |     |  ## |     | ##  |#    ",
        "     |     |     |     |     |     |     |     |     |     |     |     |  #  |     |     |     ",
        "     |     |     |     |     |     |     |     |     |     |     |     | #   |     |     |     ",
    },
    {
        " ### |  #  | ### | ### |   # |#####|  ## |#####| ### | ### |     |     |   # |     | #   | ### ",
        "#   #| ##  |#   #|#   #|  ## |#    | #   |    #|#   #|#   #|  #  |  ## |  #  |     |  #  |#   #",
        "#  ##|# #  |    #|    #| # # |#### |#    |   # |#   #|#   #|  #  |  ## | #   |#####|   # |    #",
        "# # #|  #  |  ## |  ## |#  # |    #|#### |   # | ### | ####|     |     |#    |     |    #|   # ",
        "##  #|  #  | #   |    #|#####|    #|#   #|  #  |#   #|    #|     |     | #   |#####|   # |  #  ",
        "#   #|  #  |#    |#   #|   # |#   #|#   #|  #  |#   #|   # |  #  |  ## |  #  |     |  #  |     ",
        " ### |#####|#####| ### |   # | ### | ### |  #  | ### | ##  |  #  |  ## |   # |     | #   |  #  ",
        "     |     |     |     |     |     |     |     |     |     |     |  #  |     |     |     |     ",
        "     |     |     |     |     |     |     |     |     |     |     | #   |     |     |     |     ",
    },
    {
        " ### |  #  |#### | ### |###  |#####|#####| ### |#   #| ### |  ###|#   #|#    |#   #|#   #| ### ",
        "#   #| # # |#   #|#   #|#  # |#    |#    |#   #|#   #|  #  |   # |#  # |#    |## ##|##  #|#   #",
        "# ###|#   #|#   #|#    |#   #|#    |#    |#    |#   #|  #  |   # |# #  |#    |# # #|# # #|#   #",
        "# # #|#   #|#### |#    |#   #|#### |#### |#  ##|#####|  #  |   # |##   |#    |# # #|# # #|#   #",
        "# ###|#####|#   #|#    |#   #|#    |#    |#   #|#   #|  #  |   # |# #  |#    |#   #|#  ##|#   #",
        "#    |#   #|#   #|#   #|#  # |#    |#    |#   #|#   #|  #  |#  # |#  # |#    |#   #|#   #|#   #",
        " ####|#   #|#### | ### |###  |#####|#    | ####|#   #| ### | ##  |#   #|#####|#   #|#   #| ### ",
        "     |     |     |     |     |     |     |     |     |     |     |     |     |     |     |     ",
        "     |     |     |     |     |     |     |     |     |     |     |     |     |     |     |     ",
    },
    {
        "#### | ### |#### | ####|#####|#   #|#   #|#   #|#   #|#   #|#####| ### |#    | ### |  #  |     ",
        "#   #|#   #|#   #|#    |  #  |#   #|#   #|#   #|#   #|#   #|    #| #   |#    |   # | # # |     ",
        "#   #|#   #|#   #|#    |  #  |#   #|#   #|#   #| # # | # # |   # | #   | #   |   # |#   #|     ",
        "#### |#   #|#### | ### |  #  |#   #| # # |# # #|  #  |  #  |  #  | #   |  #  |   # |     |     ",
        "#    |# # #|# #  |    #|  #  |#   #| # # |# # #| # # |  #  | #   | #   |   # |   # |     |     ",
        "#    |#  # |#  # |    #|  #  |#   #| # # |## ##|#   #|  #  |#    | #   |    #|   # |     |     ",
        "#    | ## #|#   #|#### |  #  | ### |  #  |#   #|#   #|  #  |#####| ### |    #| ### |     |     ",
        "     |     |     |     |     |     |     |     |     |     |     |     |     |     |     |#####",
        "     |     |     |     |     |     |     |     |     |     |     |     |     |     |     |     ",
    },
    {
        " #   |     |#    |     |    #|     |  ## |     |#    |  #  |   # |#    | ##  |     |     |     ",
        "  #  |     |#    |     |    #|     | #   |     |#    |     |     |#    |  #  |     |     |     ",
        "   # | ### |#### | ####| ####| ### | #   | ####|#### | ##  |  ## |#  # |  #  |## # |#### | ### ",
        "     |    #|#   #|#    |#   #|#   #|#### |#   #|#   #|  #  |   # |# #  |  #  |# # #|#   #|#   #",
        "     | ####|#   #|#    |#   #|#####| #   |#   #|#   #|  #  |   # |##   |  #  |# # #|#   #|#   #",
        "     |#   #|#   #|#    |#   #|#    | #   |#   #|#   #|  #  |   # |# #  |  #  |# # #|#   #|#   #",
        "     | ####|#### | ####| ####| ### | #   | ####|#   #| ### |   # |#  # |   ##|# # #|#   #| ### ",
        "     |     |     |     |     |     |     |    #|     |     |#  # |     |     |     |     |     ",
        "     |     |     |     |     |     |     | ### |     |     | ##  |     |     |     |     |     ",
    },
    {
        "     |     |     |     | #   |     |     |     |     |     |     |   # |  #  | #   |     |#####",
        "     |     |     |     | #   |     |     |     |     |     |     |  #  |  #  |  #  |     |#   #",
        "#### | ####|# ## | ####|#### |#   #|#   #|#   #|#   #|#   #|#####|  #  |  #  |  #  | #  #|#   #",
        "#   #|#   #|##   |#    | #   |#   #|#   #|#   #| # # |#   #|   # | #   |  #  |   # |# ## |#   #",
        "#   #|#   #|#    | ### | #   |#   #|#   #|# # #|  #  |#   #|  #  |  #  |  #  |  #  |     |#   #",
        "#   #|#   #|#    |    #| #   |#   #| # # |# # #| # # |#   #| #   |  #  |  #  |  #  |     |#   #",
        "#### | ####|#    |#### |  ## | ####|  #  | # # |#   #| ####|#####|   # |  #  | #   |     |#####",
        "#    |    #|     |     |     |     |     |     |     |    #|     |     |  #  |     |     |     ",
        "#    |    #|     |     |     |     |     |     |     | ### |     |     |  #  |     |     |     ",
    },
};

static bool dot(int letter, int x, int y)
{
    if (x < 0 || x >= GLYPH_W || y < 0 || y >= GLYPH_H) return false;
    const int at = letter - FIRST;
    return font[at / BANK][y][at % BANK * (GLYPH_W + 1) + x] == '#';
}

/* Is there ink at this point of the letter, in dots? Dots that touch at their corners only are joined there by half a
 * diagonal, so that slopes are no stairs. */
static bool ink(int letter, double u, double v)
{
    const int x = (int)floor(u), y = (int)floor(v);
    if (dot(letter, x, y)) return true;
    const double right = u - x, down = v - y;
    const int dx = right < 0.5 ? -1 : 1, dy = down < 0.5 ? -1 : 1;
    if (fmin(right, 1 - right) + fmin(down, 1 - down) >= 0.5) return false;
    return dot(letter, x + dx, y) && dot(letter, x, y + dy) && !dot(letter, x + dx, y + dy);
}

/* Share of a pixel that has ink, by 4 x 4 points in it. */
static double ink_share(int letter, int scale, int x, int y)
{
    int n = 0;
    for (int i = 0; i < 16; i++)
        n += ink(letter, (x + (i % 4 + 0.5) / 4) / scale, (y + (i / 4 + 0.5) / 4) / scale);
    return n / 16.0;
}

static void draw_letter(canvas *c, int x, int y, int scale, canvas_colour colour, int letter)
{
    /* a dot more on each side, for the diagonals */
    for (int j = -scale; j < (GLYPH_H + 1) * scale; j++)
        for (int i = -scale; i < (GLYPH_W + 1) * scale; i++) {
            if (x + i < 0 || x + i >= c->w || y + j < 0 || y + j >= c->h) continue;
            const double share = ink_share(letter, scale, i, j);
            if (share > 0) blend(c, x + i, y + j, colour, share);
        }
}

static bool begins_character(char byte) { return (byte & 0xC0) != 0x80; }

void canvas_text(canvas *c, int x, int y, int scale, canvas_colour colour, const char *text)
{
    for (; *text; text++) {
        if (!begins_character(*text)) continue;
        draw_letter(c, x, y, scale, colour, *text >= FIRST && *text < UNKNOWN ? *text : UNKNOWN);
        x += CANVAS_ADVANCE * scale;
    }
}

int canvas_text_width(int scale, const char *text)
{
    int n = 0;
    for (; *text; text++)
        n += begins_character(*text);
    return n ? (n * CANVAS_ADVANCE - (CANVAS_ADVANCE - GLYPH_W)) * scale : 0;
}

/* ---- Files --------------------------------------------------------------------------------- */

enum { MOST_PIXELS = 1 << 28 }; /* stb_image_write counts bytes as int */

static void write_bytes(void *file, void *data, int size) { fwrite(data, 1, (size_t)size, file); }

bool canvas_save_png(const canvas *c, const char *path)
{
    errno = 0;
    FILE *f = fopen(path, "wb");
    bool saved = f && (int64_t)c->w * c->h <= MOST_PIXELS &&
                 stbi_write_png_to_func(write_bytes, f, c->w, c->h, 3, c->rgb, 3 * c->w) && !ferror(f);
    if (f && fclose(f)) saved = false;
    if (!saved) cli_say("%s: cannot be written: %s", path, errno ? strerror(errno) : "too large for a PNG");
    return saved;
}

void canvas_encode_jpeg(const canvas *c, int quality, void (*write)(void *to, void *data, int size), void *to)
{
    stbi_write_jpg_to_func(write, to, c->w, c->h, 3, c->rgb, quality);
}
