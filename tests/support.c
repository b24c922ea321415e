/* SPDX-License-Identifier: MIT */
#define _DEFAULT_SOURCE
#include "tests/support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* The mapping's own start and length lie in its first 16 bytes. */
typedef struct guard {
    void *map;
    size_t size;
} guard;

static size_t page_size(void) { return (size_t)sysconf(_SC_PAGESIZE); }

void *guarded_alloc(size_t size, size_t align)
{
    const size_t page = page_size();
    const size_t body = (size + align + page - 1) / page * page;
    uint8_t *map = mmap(NULL, body + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) abort();
    if (mprotect(map + page + body, page, PROT_NONE)) abort();
    uint8_t *p = map + page + body - size;
    p -= (uintptr_t)p % align;
    *(guard *)((uintptr_t)p / page * page - page) = (guard){map, body + 2 * page};
    return p;
}

void guarded_free(void *p)
{
    if (!p) return;
    const size_t page = page_size();
    const guard g = *(guard *)((uintptr_t)p / page * page - page);
    munmap(g.map, g.size);
}

uint64_t random_u64(uint64_t *state)
{
    uint64_t z = (*state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

float random_f32(uint64_t *state) { return (float)(random_u64(state) >> 40) * 0x1p-23f - 1.0f; }

static char *next_buffer(void)
{
    static char buffers[4][1024];
    static unsigned turn;
    return buffers[turn++ % 4];
}

const char *test_path(const char *name)
{
    const char *dir = getenv("SQUINT_TEST_DIR");
    char *b = next_buffer();
    snprintf(b, 1024, "%s/%s", dir ? dir : "tests", name);
    return b;
}

const char *temp_path(const char *suffix)
{
    static unsigned count;
    const char *dir = getenv("TMPDIR");
    char *b = next_buffer();
    snprintf(b, 1024, "%s/squint-test-%ld-%u%s", dir ? dir : "/tmp", (long)getpid(), count++, suffix);
    return b;
}

uint8_t *read_test_file(const char *name, size_t *size)
{
    FILE *f = fopen(test_path(name), "rb");
    if (!f) {
        fprintf(stderr, "cannot open %s\n", test_path(name));
        abort();
    }
    fseek(f, 0, SEEK_END);
    *size = (size_t)ftell(f);
    rewind(f);
    uint8_t *data = malloc(*size ? *size : 1);
    if (!data || fread(data, 1, *size, f) != *size) abort();
    fclose(f);
    return data;
}
