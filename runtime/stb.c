/*
 * stb_image, compiled for JPEG, PNG and BMP only, and made safe for files from anywhere.
 * SPDX-License-Identifier: MIT
 *
 * stb_image takes memory through macros that carry no context, so the heap in use stands in a thread-local
 * pointer during a call: nothing is shared between threads, and nothing stays behind. The heap knows all its
 * blocks, so what stb_image forgets on its error paths is released too. Blocks are cleared, because stb_image reads
 * tables that a damaged file never filled.
 *
 * meson.build gives this file -fwrapv and zeroed locals for the same reason. PNM is read by image.c: stb_image
 * ignores a PNM's largest value and accepts one that is cut off.
 */
#include "runtime/stb.h"

#include "config.h"

#include <limits.h>
#include <string.h>

typedef union block {
    struct {
        union block *next, **link; /* link: what points here */
        size_t size;               /* of the pixels after this header */
    } at;
    max_align_t align;
} block;

typedef struct heap {
    const squint_allocator *a;
    block *blocks;
    size_t left; /* of the budget, headers included */
    sq_stb_result failure;
} heap;

static _Thread_local heap *current;

static void *heap_fail(heap *h, sq_stb_result failure)
{
    h->failure = failure;
    return NULL;
}

static void *heap_alloc(size_t size)
{
    heap *h = current;
    if (h->left < sizeof(block) || size > h->left - sizeof(block)) return heap_fail(h, SQ_STB_BUDGET);
    block *b = sq_alloc(h->a, sizeof *b + size);
    if (!b) return heap_fail(h, SQ_STB_NOMEM);
    memset(b, 0, sizeof *b + size);
    b->at.size = size;
    b->at.next = h->blocks;
    b->at.link = &h->blocks;
    if (b->at.next) b->at.next->at.link = &b->at.next;
    h->blocks = b;
    h->left -= sizeof *b + size;
    return b + 1;
}

static void unlink_block(heap *h, block *b)
{
    *b->at.link = b->at.next;
    if (b->at.next) b->at.next->at.link = b->at.link;
    h->left += sizeof *b + b->at.size;
}

static void heap_free(void *memory)
{
    if (!memory) return;
    block *b = (block *)memory - 1;
    unlink_block(current, b);
    sq_free(current->a, b, sizeof *b + b->at.size);
}

static void *heap_realloc(void *memory, size_t size)
{
    void *moved = heap_alloc(size);
    if (!moved || !memory) return moved;
    const size_t old = ((block *)memory - 1)->at.size;
    memcpy(moved, memory, old < size ? old : size);
    heap_free(memory);
    return moved;
}

#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_JPEG
#define STBI_ONLY_PNG
#define STBI_ONLY_BMP
#define STBI_NO_STDIO
#define STBI_NO_HDR
#define STBI_NO_LINEAR
#define STBI_NO_FAILURE_STRINGS    /* one of them is a static buffer */
#define STBI_MAX_DIMENSIONS        SQ_IMAGE_MAX_SIDE
#define STBI_MALLOC(size)          heap_alloc(size)
#define STBI_REALLOC(memory, size) heap_realloc(memory, size)
#define STBI_FREE(memory)          heap_free(memory)
#define STBI_ASSERT(x)             ((void)(x))
#if SQ_ARCH_AARCH64
#define STBI_NEON
#endif

/* Told at the end of the file about what is declared in there, so it stays off. */
#pragma GCC diagnostic ignored "-Wunused-function"
#include <stb_image.h>

/* The pixels move to the start of their block, which then is the image's. */
static void keep_pixels(sq_image *out, heap *h, uint8_t *rgb, int width, int height)
{
    block *b = (block *)(void *)rgb - 1;
    unlink_block(h, b);
    const size_t pixels = b->at.size, bytes = sizeof *b + pixels;
    memmove(b, rgb, pixels);
    *out = (sq_image){.rgb = (uint8_t *)b, .w = (uint32_t)width, .h = (uint32_t)height, .bytes = bytes};
}

sq_stb_result sq_stb_decode(sq_image *out, const void *data, size_t size, size_t budget, const squint_allocator *a)
{
    if (size > INT_MAX) return SQ_STB_DAMAGED;
    heap h = {.a = a, .left = budget, .failure = SQ_STB_DAMAGED};
    heap *const outer = current; /* an allocator may decode an image itself */
    current = &h;
    int width, height, channels;
    uint8_t *rgb = stbi_load_from_memory(data, (int)size, &width, &height, &channels, 3);
    if (rgb) keep_pixels(out, &h, rgb, width, height);
    while (h.blocks)
        heap_free(h.blocks + 1);
    current = outer;
    return rgb ? SQ_STB_OK : h.failure;
}
