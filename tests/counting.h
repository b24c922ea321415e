/*
 * An allocator that keeps the books, and fails when told to.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQ_TEST_COUNTING_H
#define SQ_TEST_COUNTING_H

#include "runtime/base.h"

typedef struct counting {
    size_t live;    /* blocks not given back */
    size_t bytes;   /* in them */
    size_t peak;    /* most bytes at a time */
    size_t calls;   /* of alloc */
    size_t fail_at; /* this call of alloc (from 1) and all after it return NULL; 0: none */
} counting;

/** Aborts when a block comes back with another size. The counting must outlive what it allocates. */
squint_allocator counting_allocator(counting *c);

#endif
