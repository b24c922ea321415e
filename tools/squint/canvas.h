/*
 * A picture to draw on: rectangles, lines and words, saved as PNG.
 * SPDX-License-Identifier: MIT
 *
 * Pixels are RGB, rows from the top; x grows to the right and y downwards, and pixel (0, 0) covers the square from
 * there to (1, 1). Whatever lies outside is left out. Colours are 0xRRGGBBAA; alpha FF covers, 00 does nothing.
 */
#ifndef SQUINT_CANVAS_H
#define SQUINT_CANVAS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint32_t canvas_colour;

typedef struct canvas {
    int w, h;
    uint8_t *rgb; /* [h][w][3] */
} canvas;

enum {
    CANVAS_ADVANCE = 6, /* from one letter to the next, to be multiplied by the scale */
    CANVAS_CAP = 7,     /* height of a capital */
    CANVAS_LINE = 11,   /* from one line of text to the next */
};

/** Takes w * h pixels of one colour, its alpha ignored; w and h at least 1. Ends the program when there is no memory.
 */
void canvas_open(canvas *c, int w, int h, canvas_colour colour);
void canvas_close(canvas *c);

void canvas_fill(canvas *c, int x, int y, int w, int h, canvas_colour colour);
/** A line with square ends, smoothed. Pixel centres lie at .5. */
void canvas_line(canvas *c, double x0, double y0, double x1, double y1, double width, canvas_colour colour);

/** One line of text, its capitals' upper left corner at (x, y), each dot of a letter scale x scale pixels. The letters
 *  are ASCII's; any other character of UTF-8 is a box. */
void canvas_text(canvas *c, int x, int y, int scale, canvas_colour colour, const char *text);
/** Pixels from the left of the first letter to the right of the last. */
int canvas_text_width(int scale, const char *text);

/** Writes a PNG; false, with a message that names the path, when that fails. */
bool canvas_save_png(const canvas *c, const char *path);
/** A JPEG of this quality (1 to 100), handed over in pieces. */
void canvas_encode_jpeg(const canvas *c, int quality, void (*write)(void *to, void *data, int size), void *to);

#endif
