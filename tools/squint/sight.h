/*
 * What a model looked at in one picture: the choices of its layers, as `squint caption` finds them and a trace keeps
 * them, and what is made of them: traces, pictures, pages.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQUINT_SIGHT_H
#define SQUINT_SIGHT_H

#include "runtime/squint.h"
#include "tools/squint/canvas.h"

#include <stdio.h>

typedef struct sight_layer {
    bool chooses;    /* by a router; else it keeps everything */
    unsigned n_kept; /* vision tokens that it ran */
    /* [n_vision]; NULL when the layer does not choose. NaN: none */
    bool *kept;
    float *scores, *weights;
    unsigned kv_prompt, kv_end; /* entries of its KV cache after the prefill and at the end */
} sight_layer;

/* A token of text. */
typedef struct sight_word {
    char *text; /* UTF-8; empty for control tokens */
    unsigned id;
    bool generated; /* else of the prompt */
    bool ran;       /* false: generated, and not fed back to the model */
    unsigned place; /* in the sequence, if it ran */
    bool *skipped;  /* [n_layers] */
    float *scores;  /* [n_layers], NaN: none */
} sight_word;

enum { SIGHT_MOST_MORE = 16 };

typedef struct sight {
    char *file, *caption, *model, *mode; /* UTF-8 */
    char *device;                        /* the same; NULL: not told */
    squint_grid grid;                    /* of the first vision tokens */
    squint_grid more[SIGHT_MOST_MORE];   /* [n_more] of others, over tiles or parts of the picture; none is empty */
    unsigned n_more;
    unsigned n_vision, n_layers, n_words, n_prompt, n_sequence;
    sight_layer *layers;
    sight_word *words; /* in the order of the sequence */
} sight;

/** How a session made the caption of a picture. The session has squint_session_options.routes.
 *  @param file, model  as they are to be named */
void sight_of_caption(sight *out, const squint_model *m, const squint_session *s, const squint_result *r,
                      const char *file, const char *model);
void sight_free(sight *s);

unsigned sight_choosing(const sight *s); /* layers that choose */
/** How many of these kept a vision token. */
unsigned sight_count(const sight *s, unsigned token);
/** Vision tokens run by layers that choose, of how many: their share is what was looked at. */
void sight_share(const sight *s, double *ran, double *of);

/* ---- Traces (trace.c) ------------------------------------------------------------------------ */

/* A trace is one JSON document, written a picture at a time. */
typedef struct trace_file {
    FILE *f;
    const char *path;
    unsigned n;
} trace_file;

/** false, with a message, when the file cannot be written. */
bool trace_open(trace_file *t, const char *path);
void trace_add(trace_file *t, const sight *s);
/** Ends the document; the same. A file that was not opened is fine. */
bool trace_close(trace_file *t);
/** The object of one picture, without "<", so that it can stand in a page. */
void trace_print(FILE *f, const sight *s);

/**
 * Reads a trace, a file that may hold anything. false, with a message that names the place, when it is not one.
 * @param out, n  the pictures, at least one, for trace_free()
 */
bool trace_read(const char *path, sight **out, size_t *n);
void trace_free(sight *all, size_t n);

/* ---- Pictures (lookmap.c) -------------------------------------------------------------------- */

enum { LOOK_ALL = -2, LOOK_SUM = -1, LOOK_MIN_WIDTH = 320, LOOK_MAX_WIDTH = 4096, LOOK_WIDTH = 960 };

/** "all", "sum" or a layer's number as LOOK_ALL, LOOK_SUM or that number. */
bool look_parse(const char *text, int *what);
/** false, with a message, when there is nothing to paint: nobody chooses, or not this layer. */
bool look_check(const sight *s, int what, const char *name);

/**
 * Paints what was kept over the picture. With LOOK_ALL: the picture, the sum of all layers, and a map of each.
 * @param rgb    the picture, grid.picture_w x grid.picture_h, rows without gaps
 * @param width  of the canvas, pixels
 */
void look_paint(canvas *out, const sight *s, const uint8_t *rgb, int what, unsigned width);

/* Where a point of a picture lies: the patch over it, counted row by row, or -1. x and y in the picture's pixels. */
int look_patch_at(const squint_grid *g, double x, double y);

/* ---- Names (outputs.c) ----------------------------------------------------------------------- */

/**
 * Names of PNG files for n pictures: in `given` %s stands for a picture's name without folder and ending, with "-2",
 * "-3" ... for others of that name; a folder gets NAME-look.png for each.
 * @param option  for messages
 * @return [n] names for output_names_free(); NULL, with a message, when they cannot be told apart, are no PNG files, or
 *         one of the pictures would be overwritten
 */
char **output_names(const char *option, const char *given, char *const *paths, int n);
void output_names_free(char **names, int n);

/* ---- Pages (page.c) -------------------------------------------------------------------------- */

/** A page of its own with a picture for each sight. @param rgb  [n] as for look_paint(), NULL: without the picture.
 *  false, with a message, when it cannot be written. */
bool page_write(const char *path, const sight *all, const uint8_t *const *rgb, size_t n);

#endif
