/*
 * A temporary file that nobody else sees: tables written one after another, and read again.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQUINT_SPOOL_H
#define SQUINT_SPOOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct spool {
    int fd;
    uint64_t bytes;
    bool failed; /* told already; it writes nothing more */
} spool;

/** In $TMPDIR, or /tmp. It has no name when this returns. false, with a message, when there is no such file. */
bool spool_open(spool *s);
/** Appends, and says where it begins; a failure is told once. */
uint64_t spool_put(spool *s, const void *data, size_t bytes);
/** false, with a message, when it cannot be read. */
bool spool_get(spool *s, uint64_t at, void *data, size_t bytes);
/** Forgets all tables. */
void spool_clear(spool *s);
void spool_close(spool *s);

#endif
