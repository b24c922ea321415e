/* SPDX-License-Identifier: MIT */
#include "tests/counting.h"

#include <stdio.h>
#include <stdlib.h>

/* In front of each block; keeps it aligned for any type. */
typedef union head {
    size_t size;
    max_align_t align;
} head;

static void *counting_alloc(void *user, size_t size)
{
    counting *c = user;
    c->calls++;
    if (size == 0 || (c->fail_at && c->calls >= c->fail_at)) return NULL;
    head *h = size > SIZE_MAX - sizeof *h ? NULL : malloc(sizeof *h + size);
    if (!h) return NULL;
    h->size = size;
    c->live++;
    c->bytes += size;
    if (c->bytes > c->peak) c->peak = c->bytes;
    return h + 1;
}

static void counting_free(void *user, void *memory, size_t size)
{
    counting *c = user;
    head *h = (head *)memory - 1;
    if (h->size != size) {
        fprintf(stderr, "a block of %zu bytes is given back as one of %zu\n", h->size, size);
        abort();
    }
    c->live--;
    c->bytes -= size;
    free(h);
}

squint_allocator counting_allocator(counting *c) { return (squint_allocator){counting_alloc, counting_free, c}; }
