/*
 * A file without a name. SPDX-License-Identifier: MIT
 */
#include "tools/squint/spool.h"

#include "tools/squint/cli.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool fail(spool *s)
{
    if (!s->failed) cli_say("temporary file: %s (TMPDIR names its folder)", strerror(errno));
    s->failed = true;
    return false;
}

bool spool_open(spool *s)
{
    const char *const set = getenv("TMPDIR"), *const folder = set && *set ? set : "/tmp";
    char path[4096];
    *s = (spool){.fd = -1};
    errno = ENAMETOOLONG;
    if (snprintf(path, sizeof path, "%s/squint-XXXXXX", folder) >= (int)sizeof path) return fail(s);
    if ((s->fd = mkstemp(path)) < 0) return fail(s);
    unlink(path);
    return true;
}

uint64_t spool_put(spool *s, const void *data, size_t bytes)
{
    const uint64_t at = s->bytes;
    const char *from = data;
    while (bytes && !s->failed) {
        const ssize_t n = pwrite(s->fd, from, bytes, (off_t)s->bytes);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            fail(s);
            break;
        }
        from += n;
        bytes -= (size_t)n;
        s->bytes += (uint64_t)n;
    }
    return at;
}

bool spool_get(spool *s, uint64_t at, void *data, size_t bytes)
{
    char *to = data;
    while (bytes) {
        const ssize_t n = pread(s->fd, to, bytes, (off_t)at);
        if (n < 0 && errno == EINTR) continue;
        if (!n) errno = EIO;
        if (n <= 0) return fail(s);
        to += n;
        bytes -= (size_t)n;
        at += (uint64_t)n;
    }
    return true;
}

void spool_clear(spool *s)
{
    s->bytes = 0;
    if (ftruncate(s->fd, 0)) fail(s);
}

void spool_close(spool *s)
{
    if (s->fd >= 0) close(s->fd);
    s->fd = -1;
}
