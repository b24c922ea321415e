/*
 * What tests share: memory that ends at a guard page, repeatable random numbers, files to read.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQ_TEST_SUPPORT_H
#define SQ_TEST_SUPPORT_H

#include <stddef.h>
#include <stdint.h>

/** `size` bytes that end right before an inaccessible page (start aligned down to `align` within it, so up to
 *  align-1 bytes may follow). Freed by guarded_free(). */
void *guarded_alloc(size_t size, size_t align);
void guarded_free(void *p);

/** splitmix64; state is the seed. */
uint64_t random_u64(uint64_t *state);
/** Uniform in [-1, 1). */
float random_f32(uint64_t *state);

/** Whole file at SQUINT_TEST_DIR/name; malloc'ed. Fails the test when it cannot be read. */
uint8_t *read_test_file(const char *name, size_t *size);
/** SQUINT_TEST_DIR/name, in a static buffer (four in rotation). */
const char *test_path(const char *name);
/** A fresh file name in the temporary directory; static buffer (four in rotation). */
const char *temp_path(const char *suffix);

#endif
