/*
 * Images: decode, resize as Pillow does, fit, normalise.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQ_IMAGE_H
#define SQ_IMAGE_H

#include "runtime/base.h"

enum {
    SQ_IMAGE_MAX_SIDE = 32768,
    SQ_IMAGE_MAX_PIXELS = 64 << 20,
};

/* RGB, 3 bytes a pixel, rows top to bottom without gaps. */
typedef struct sq_image {
    uint8_t *rgb;
    uint32_t w, h;
    size_t bytes; /* as allocated */
} sq_image;

/**
 * Decodes JPEG, PNG, BMP or PNM (P5, P6). Grey becomes RGB, alpha is dropped, 16 bits become 8, no EXIF rotation.
 * Size and structure are checked to the file's end before anything is allocated: a file that is cut off is an error.
 * All memory comes from `a`, at most 1 MiB + 4 * size + 32 bytes a pixel and never more than 1 GiB.
 * @param name  used in messages: the file's path, or "standard input"
 * @param out   on success for sq_image_free(); on failure empty
 * @return SQUINT_OK; _IMAGE: damaged or too large; _UNSUPPORTED: another kind of file; _NOMEM; sq_image_read(): _IO
 */
squint_err sq_image_decode(sq_image *out, const char *name, const void *data, size_t size, const squint_allocator *a,
                           squint_msg *msg);
/** Reads a regular file whole (at most 256 MiB) and decodes it. */
squint_err sq_image_read(sq_image *out, const char *path, const squint_allocator *a, squint_msg *msg);
void sq_image_free(sq_image *image, const squint_allocator *a);

/**
 * Bicubic, equal to Pillow's Image.resize(size, BICUBIC) on RGB to the last bit: antialiased, horizontal pass
 * first, rounded to uint8 between the passes.
 * @param src  stride bytes a row
 * @param dst  [dh][dw][3]
 */
squint_err sq_resize_bicubic(const uint8_t *src, uint32_t w, uint32_t h, size_t stride, uint8_t *dst, uint32_t dw,
                             uint32_t dh, const squint_allocator *a, squint_msg *msg);

/* How a picture of any shape becomes the tower's square. */
typedef enum sq_fit {
    SQ_FIT_STRETCH, /* resize to the square, aspect ignored */
    SQ_FIT_PAD,     /* centre on a square of pad_color, then resize (LLaVA-1.5's expand2square) */
    SQ_FIT_CROP,    /* short side to the size, long side int(size * long / short), centre crop (CLIP) */
} sq_fit;

typedef struct sq_image_rule {
    sq_fit fit;
    uint32_t size; /* of the square, pixels */
    uint8_t pad_color[3];
    float mean[3], std[3];
} sq_image_rule;

/**
 * Fit, then (u8 / 255 - mean) / std, each step rounded to float32: equal to the last bit to PyTorch and to CLIP's
 * processor. Needs memory for the square and a few of its rows, whatever the picture's shape.
 * @param out  [3][size][size]
 */
squint_err sq_image_prepare(const uint8_t *rgb, uint32_t w, uint32_t h, size_t stride, const sq_image_rule *rule,
                            float *out, const squint_allocator *a, squint_msg *msg);

/** What normalising makes of the 256 values of each channel. */
void sq_image_values(const sq_image_rule *rule, float values[3][256]);

/** The part of a w x h picture that the square shows, in the picture's pixels from its upper left corner: beyond them
 *  where it is padded, less than them where it is cropped. */
void sq_image_view(const sq_image_rule *rule, uint32_t w, uint32_t h, double *x, double *y, double *view_w,
                   double *view_h);

#endif
