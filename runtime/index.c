/*
 * A sorted index over names: merge sort, binary search.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/index.h"

#include <string.h>

static sq_str name_of(const sq_index *index, uint32_t item)
{
    sq_str name;
    memcpy(&name, index->items + item * index->stride, sizeof name);
    return name;
}

static uint64_t head_of(sq_str name)
{
    uint64_t head = 0;
    for (size_t i = 0; i < 8; i++)
        head = head << 8 | (i < name.len ? (uint8_t)name.s[i] : 0);
    return head;
}

static int compare_names(sq_str a, sq_str b)
{
    const int order = memcmp(a.s, b.s, a.len < b.len ? a.len : b.len);
    return order ? order : (a.len > b.len) - (a.len < b.len);
}

static int compare(const sq_index *index, const sq_index_entry *e, uint64_t head, sq_str name)
{
    if (e->head != head) return e->head < head ? -1 : 1;
    return compare_names(name_of(index, e->item), name);
}

static bool in_order(const sq_index *index, const sq_index_entry *a, const sq_index_entry *b)
{
    return compare(index, a, b->head, name_of(index, b->item)) <= 0;
}

/* Merges from[0, half) and from[half, n) into to; equal names keep the order they came in. */
static void merge(const sq_index *index, const sq_index_entry *from, size_t half, size_t n, sq_index_entry *to)
{
    size_t left = 0, right = half;
    for (size_t i = 0; i < n; i++) {
        const bool take_left = right == n || (left < half && in_order(index, &from[left], &from[right]));
        to[i] = from[take_left ? left++ : right++];
    }
}

/* Sorts entries with `other` as room for a copy. Returns where the result lies, one of the two. */
static sq_index_entry *sort(const sq_index *index, sq_index_entry *entries, sq_index_entry *other)
{
    for (size_t run = 1; run < index->n; run *= 2) {
        for (size_t start = 0; start < index->n; start += 2 * run) {
            const size_t left = index->n - start;
            merge(index, entries + start, run < left ? run : left, 2 * run < left ? 2 * run : left, other + start);
        }
        sq_index_entry *sorted = other;
        other = entries;
        entries = sorted;
    }
    return entries;
}

bool sq_index_build(sq_index *index, const void *items, size_t stride, size_t n, const squint_allocator *a)
{
    size_t bytes;
    if (!sq_mul(n, sizeof(sq_index_entry), &bytes)) return false;
    sq_index_entry *entries = sq_alloc(a, bytes), *other = sq_alloc(a, bytes);
    if (!entries || !other) {
        sq_free(a, entries, bytes);
        sq_free(a, other, bytes);
        return false;
    }
    *index = (sq_index){items, stride, n, NULL};
    for (size_t i = 0; i < n; i++)
        entries[i] = (sq_index_entry){head_of(name_of(index, (uint32_t)i)), (uint32_t)i};
    index->entries = sort(index, entries, other);
    sq_free(a, index->entries == entries ? other : entries, bytes);
    return true;
}

void sq_index_free(sq_index *index, const squint_allocator *a)
{
    sq_free(a, index->entries, index->n * sizeof *index->entries);
    index->entries = NULL;
}

size_t sq_index_find(const sq_index *index, sq_str name)
{
    const uint64_t head = head_of(name);
    size_t low = 0, high = index->n;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (compare(index, &index->entries[middle], head, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    const bool found = low < index->n && compare(index, &index->entries[low], head, name) == 0;
    return found ? index->entries[low].item : SIZE_MAX;
}

size_t sq_index_duplicate(const sq_index *index)
{
    for (size_t i = 1; i < index->n; i++) {
        const sq_index_entry *e = &index->entries[i];
        if (compare(index, e - 1, e->head, name_of(index, e->item)) == 0) return e->item;
    }
    return SIZE_MAX;
}
