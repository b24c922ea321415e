/*
 * stb_image behind one function, with a budget for its memory.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQ_STB_H
#define SQ_STB_H

#include "runtime/image.h"

typedef enum sq_stb_result {
    SQ_STB_OK,
    SQ_STB_DAMAGED,
    SQ_STB_BUDGET, /* more memory than `budget` was asked for */
    SQ_STB_NOMEM,  /* the allocator returned NULL */
} sq_stb_result;

/**
 * Decodes a JPEG, PNG or BMP to RGB. All memory comes from `a`, cleared, and never more than `budget` bytes at a
 * time. The library neither prints nor aborts, and changes nothing that another thread can see.
 * @param out  on success to be freed by sq_image_free(); else untouched
 */
sq_stb_result sq_stb_decode(sq_image *out, const void *data, size_t size, size_t budget, const squint_allocator *a);

#endif
