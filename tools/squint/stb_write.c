/*
 * stb_image_write. It shifts bits out of an int on purpose: meson.build gives this file -fwrapv.
 * SPDX-License-Identifier: MIT
 */
#include "tools/squint/cli.h"

#include <stdlib.h>

/* It does not look at what malloc gives it; these end the program with a message instead. */
#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STBI_WRITE_NO_STDIO
#define STBIW_MALLOC(size)          cli_alloc(size, 1)
#define STBIW_REALLOC(memory, size) cli_grow(memory, size, 1)
#define STBIW_FREE(memory)          free(memory)
#define STBIW_ASSERT(x)             ((void)(x))
#include <stb_image_write.h>
