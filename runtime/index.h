/*
 * Finding items by the names that a file gave them.
 * SPDX-License-Identifier: MIT
 *
 * A sorted index rather than a hash: O(log n) however hostile the names are.
 */
#ifndef SQ_INDEX_H
#define SQ_INDEX_H

#include "runtime/gguf.h"

typedef struct sq_index_entry {
    uint64_t head; /* first 8 bytes of the name, big-endian, zeros behind: decides most comparisons */
    uint32_t item;
} sq_index_entry;

typedef struct sq_index {
    const uint8_t *items; /* each begins with its name, an sq_str */
    size_t stride;
    size_t n;
    sq_index_entry *entries; /* [n] by name, then by item number */
} sq_index;

/** Indexes n < 2^32 items of `stride` bytes; they and their names must stay. False when out of memory. */
bool sq_index_build(sq_index *index, const void *items, size_t stride, size_t n, const squint_allocator *a);
void sq_index_free(sq_index *index, const squint_allocator *a);
/** Number of the first item of this name; SIZE_MAX when there is none. */
size_t sq_index_find(const sq_index *index, sq_str name);
/** Number of an item that has the name of an earlier one; SIZE_MAX when all are different. */
size_t sq_index_duplicate(const sq_index *index);

#endif
