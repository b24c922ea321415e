/*
 * A page that shows what was looked at: one file, which fetches nothing.
 * SPDX-License-Identifier: MIT
 *
 * look.html is the page, with marks where the title and the data go. Of a picture it gets a smaller JPEG, encoded anew:
 * neither EXIF nor folders leave the machine with it. Data is JSON in which no "<" is left, and the page puts text into
 * elements as text only.
 */
#include "runtime/image.h"
#include "tools/squint/cli.h"
#include "tools/squint/sight.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_SIDE = 960, QUALITY = 85 };

static const char page[] = {
#include "look_page.inc"
};

/* ---- Pictures ------------------------------------------------------------------------------ */

typedef struct bytes {
    uint8_t *data;
    size_t n, room;
} bytes;

static void collect(void *to, void *data, int size)
{
    bytes *const b = to;
    while (b->room - b->n < (size_t)size)
        b->data = cli_grow(b->data, b->room = 2 * b->room + 4096, 1);
    memcpy(b->data + b->n, data, (size_t)size);
    b->n += (size_t)size;
}

static void print_base64(FILE *f, const bytes *b)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < b->n; i += 3) {
        const size_t left = b->n - i;
        const unsigned v = (unsigned)b->data[i] << 16 | (left > 1 ? (unsigned)b->data[i + 1] << 8 : 0) |
                           (left > 2 ? b->data[i + 2] : 0);
        putc(digits[v >> 18], f);
        putc(digits[v >> 12 & 63], f);
        putc(left > 1 ? digits[v >> 6 & 63] : '=', f);
        putc(left > 2 ? digits[v & 63] : '=', f);
    }
}

static canvas shrink(const squint_grid *g, const uint8_t *rgb)
{
    const unsigned longest = g->picture_w > g->picture_h ? g->picture_w : g->picture_h;
    const double scale = longest > MOST_SIDE ? (double)MOST_SIDE / longest : 1;
    const int w = (int)(g->picture_w * scale), h = (int)(g->picture_h * scale);
    const squint_allocator a = sq_allocator_or_default(NULL);
    squint_msg msg;
    canvas c;
    canvas_open(&c, w > 0 ? w : 1, h > 0 ? h : 1, 0);
    const squint_err err = sq_resize_bicubic(rgb, g->picture_w, g->picture_h, 3 * (size_t)g->picture_w, c.rgb,
                                             (uint32_t)c.w, (uint32_t)c.h, &a, &msg);
    if (err) exit(cli_fail(err, &msg));
    return c;
}

static void print_picture(FILE *f, const squint_grid *g, const uint8_t *rgb)
{
    bytes jpeg = {0};
    canvas c = shrink(g, rgb);
    canvas_encode_jpeg(&c, QUALITY, collect, &jpeg);
    fputs("\"data:image/jpeg;base64,", f);
    print_base64(f, &jpeg);
    putc('"', f);
    free(jpeg.data);
    canvas_close(&c);
}

/* ---- The page ------------------------------------------------------------------------------ */

static void print_escaped(FILE *f, const char *text)
{
    for (; *text; text++) {
        if (strchr("<>&\"'", *text))
            fprintf(f, "&#%d;", *text);
        else
            putc((unsigned char)*text < 0x20 ? ' ' : *text, f);
    }
}

static void print_data(FILE *f, const sight *all, const uint8_t *const *rgb, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        sight s = all[i];
        char *const slash = strrchr(s.file, '/');
        if (slash) s.file = slash + 1;
        fputs(i ? ",\n{\"src\":" : "[{\"src\":", f);
        if (rgb[i])
            print_picture(f, &s.grid, rgb[i]);
        else
            fputs("null", f);
        fputs(",\"sight\":", f);
        trace_print(f, &s);
        putc('}', f);
    }
    putc(']', f);
}

/* The page up to a mark; what follows the mark. */
static const char *print_until(FILE *f, const char *from, const char *mark)
{
    const char *const at = strstr(from, mark);
    fwrite(from, 1, (size_t)(at - from), f);
    return at + strlen(mark);
}

bool page_write(const char *path, const sight *all, const uint8_t *const *rgb, size_t n)
{
    FILE *const f = fopen(path, "wb");
    if (f) {
        const char *rest = print_until(f, page, "@TITLE@");
        print_escaped(f, *all->caption ? all->caption : "squint look");
        rest = print_until(f, rest, "@DATA@");
        print_data(f, all, rgb, n);
        fputs(rest, f);
    }
    const bool failed = !f || fflush(f) || ferror(f);
    if (failed) cli_say("%s cannot be written: %s", path, strerror(errno));
    if (f) fclose(f);
    return !failed;
}
