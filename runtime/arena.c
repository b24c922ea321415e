/*
 * Memory: the caller's allocator, checked sizes, the arena.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/base.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__)
#define ARENA_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ARENA_ASAN 1
#endif
#endif

#ifdef ARENA_ASAN
#include <sanitizer/asan_interface.h>
enum { ARENA_GAP = 64, ARENA_ANYTHING = 0xFF };
#else
enum { ARENA_GAP = 0, ARENA_ANYTHING = -1 };
#define ASAN_POISON_MEMORY_REGION(start, size)   ((void)(start), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(start, size) ((void)(start), (void)(size))
#endif

static void *malloc_alloc(void *user, size_t size)
{
    (void)user;
    return malloc(size);
}

static void malloc_free(void *user, void *memory, size_t size)
{
    (void)user;
    (void)size;
    free(memory);
}

squint_allocator sq_allocator_or_default(const squint_allocator *a)
{
    if (a && a->alloc && a->free) return *a;
    return (squint_allocator){malloc_alloc, malloc_free, NULL};
}

/* An allocator may answer NULL to 0 bytes, and NULL means failure here. */
static size_t at_least_one(size_t size) { return size ? size : 1; }

void *sq_alloc(const squint_allocator *a, size_t size) { return a->alloc(a->user, at_least_one(size)); }

void sq_free(const squint_allocator *a, void *memory, size_t size)
{
    if (memory) a->free(a->user, memory, at_least_one(size));
}

bool sq_mul(size_t a, size_t b, size_t *out)
{
    if (b && a > SIZE_MAX / b) return false;
    *out = a * b;
    return true;
}

bool sq_add(size_t a, size_t b, size_t *out)
{
    if (a > SIZE_MAX - b) return false;
    *out = a + b;
    return true;
}

/* @param content  a byte to fill it with, or -1 */
static void *take(sq_arena *arena, size_t n, size_t size, int content)
{
    size_t bytes, end;
    if (!sq_mul(n, size, &bytes) || !sq_add(arena->used, bytes, &end) ||
        !sq_add(end, ARENA_GAP + SQ_ARENA_ALIGN - 1, &end)) {
        arena->full = true;
        return NULL;
    }
    end = end / SQ_ARENA_ALIGN * SQ_ARENA_ALIGN;
    if (arena->base && end > arena->size) arena->full = true;
    if (arena->full) return NULL;

    uint8_t *part = arena->base ? arena->base + arena->used : NULL;
    if (part && !arena->remote) {
        ASAN_UNPOISON_MEMORY_REGION(part, bytes);
        if (content >= 0) memset(part, content, bytes);
        ASAN_POISON_MEMORY_REGION(part + bytes, end - arena->used - bytes);
    }
    arena->used = end;
    return part;
}

void *sq_take(sq_arena *arena, size_t n, size_t size)
{
    assert(!arena->remote);
    return take(arena, n, size, 0);
}

void *sq_take_unset(sq_arena *arena, size_t n, size_t size) { return take(arena, n, size, ARENA_ANYTHING); }

void *sq_take_mirror(sq_memory *memory, void *part, size_t n, size_t size)
{
    return memory->device.remote ? sq_take_unset(&memory->device, n, size) : part;
}

sq_arena *sq_beside(sq_memory *memory) { return memory->device.remote ? &memory->host : &memory->device; }

void sq_arena_overlay(sq_arena *arena, size_t used)
{
    if (!ARENA_GAP) arena->used = used;
}
