/*
 * What kind of image file this is, how large its picture is, and whether the file is whole.
 * SPDX-License-Identifier: MIT
 *
 * Decoders are lenient: they fill what is missing with grey or with whatever memory held. A caption of such a picture
 * would be a lie, so the file's structure is checked before a decoder sees it. Nothing is allocated.
 */
#ifndef SQ_IMAGE_CHECK_H
#define SQ_IMAGE_CHECK_H

#include "runtime/base.h"

typedef enum sq_image_kind {
    SQ_IMAGE_JPEG,
    SQ_IMAGE_PNG,
    SQ_IMAGE_BMP,
    SQ_IMAGE_PNM,
} sq_image_kind;

typedef struct sq_image_info {
    sq_image_kind kind;
    uint32_t w, h;
    /* PNM only: */
    uint32_t channels;  /* 1 or 3 */
    uint32_t max_value; /* 1 to 65535; over 255 samples are 2 bytes, high byte first */
    size_t pixels_at;
} sq_image_info;

/**
 * Walks the file's structure to its end: sizes within SQ_IMAGE_MAX_*, every part complete, checksums of PNG right, at
 * least as much data as the smallest encoding of that many pixels takes.
 * @param name  for messages
 * @return SQUINT_OK; _IMAGE: damaged, cut off or too large; _UNSUPPORTED: another kind of file, which msg names
 */
squint_err sq_image_check(sq_image_info *out, const char *name, const uint8_t *data, size_t size, squint_msg *msg);

#endif
