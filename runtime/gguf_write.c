/*
 * Writing GGUF: keys and infos gather in memory, data streams into a temporary file.
 * SPDX-License-Identifier: MIT
 *
 * The finished file is read back through sq_gguf_open_memory() before it gets its name: what the reader
 * refuses (a key twice, a shape that cannot be) is never written, and is told in the reader's words.
 */
#include "runtime/gguf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { VERSION = 3, TEMP_NAMES = 100, TEMP_SUFFIX = 40 };

typedef struct buffer {
    uint8_t *bytes;
    size_t used, size;
} buffer;

struct sq_gguf_writer {
    squint_allocator allocator;
    char *path, *temp; /* each path_size bytes */
    size_t path_size;
    int fd;
    uint32_t alignment;
    uint64_t n_keys, n_tensors;
    buffer keys, infos; /* as the file will have them */
    buffer sizes;       /* size_t a tensor, its bytes of data */
    size_t next_tensor; /* whose data comes next */
    uint64_t offset;    /* of the next tensor to be declared */
    bool in_data;       /* keys and infos are written */
    squint_err err;     /* the first failure; all calls after it do nothing */
    squint_msg msg;
};

/* ---- Gathering ---------------------------------------------------------------------------- */

/* Keeps the first failure. */
#define FAIL(w, code, ...) ((w)->err = sq_fail(&(w)->msg, code, __VA_ARGS__))

static void out_of_memory(sq_gguf_writer *w) { FAIL(w, SQUINT_ERR_NOMEM, "%s: out of memory", w->path); }

static bool grow(sq_gguf_writer *w, buffer *b, size_t needed)
{
    size_t size = b->size ? b->size : 4096;
    while (size < needed)
        if (!sq_mul(size, 2, &size)) return false;
    uint8_t *bytes = sq_alloc(&w->allocator, size);
    if (!bytes) return false;
    if (b->used) memcpy(bytes, b->bytes, b->used);
    sq_free(&w->allocator, b->bytes, b->size);
    b->bytes = bytes;
    b->size = size;
    return true;
}

static void append(sq_gguf_writer *w, buffer *b, const void *data, size_t bytes)
{
    if (w->err || !bytes) return;
    size_t needed;
    if (!sq_add(b->used, bytes, &needed) || (needed > b->size && !grow(w, b, needed))) {
        out_of_memory(w);
        return;
    }
    memcpy(b->bytes + b->used, data, bytes);
    b->used = needed;
}

static void append_u32(sq_gguf_writer *w, buffer *b, uint32_t v) { append(w, b, &v, sizeof v); }
static void append_u64(sq_gguf_writer *w, buffer *b, uint64_t v) { append(w, b, &v, sizeof v); }

static void append_str(sq_gguf_writer *w, buffer *b, sq_str s)
{
    append_u64(w, b, s.len);
    append(w, b, s.s, s.len);
}

/* ---- Keys --------------------------------------------------------------------------------- */

static void begin_key(sq_gguf_writer *w, sq_str key, sq_gguf_type type)
{
    if (!w->err && w->in_data)
        FAIL(w, SQUINT_ERR_ARGUMENT, "%s: key \"%.*s\" comes after the first data", w->path, (int)key.len, key.s);
    append_str(w, &w->keys, key);
    append_u32(w, &w->keys, type);
    w->n_keys++;
}

static void put_scalar(sq_gguf_writer *w, const char *key, sq_gguf_type type, const void *value)
{
    begin_key(w, (sq_str){key, strlen(key)}, type);
    append(w, &w->keys, value, sq_gguf_type_bytes(type));
}

static void begin_array(sq_gguf_writer *w, const char *key, sq_gguf_type type, size_t n)
{
    begin_key(w, (sq_str){key, strlen(key)}, SQ_GGUF_ARRAY);
    append_u32(w, &w->keys, type);
    append_u64(w, &w->keys, n);
}

void sq_gguf_put_u32(sq_gguf_writer *w, const char *key, uint32_t v) { put_scalar(w, key, SQ_GGUF_U32, &v); }

void sq_gguf_put_f32(sq_gguf_writer *w, const char *key, float v) { put_scalar(w, key, SQ_GGUF_F32, &v); }

void sq_gguf_put_bool(sq_gguf_writer *w, const char *key, bool v)
{
    const uint8_t byte = v;
    put_scalar(w, key, SQ_GGUF_BOOL, &byte);
}

void sq_gguf_put_str(sq_gguf_writer *w, const char *key, sq_str v)
{
    begin_key(w, (sq_str){key, strlen(key)}, SQ_GGUF_STRING);
    append_str(w, &w->keys, v);
}

void sq_gguf_put_f32s(sq_gguf_writer *w, const char *key, const float *v, size_t n)
{
    begin_array(w, key, SQ_GGUF_F32, n);
    for (size_t i = 0; i < n; i++)
        append(w, &w->keys, &v[i], sizeof v[i]);
}

void sq_gguf_put_bools(sq_gguf_writer *w, const char *key, const bool *v, size_t n)
{
    begin_array(w, key, SQ_GGUF_BOOL, n);
    for (size_t i = 0; i < n; i++) {
        const uint8_t byte = v[i];
        append(w, &w->keys, &byte, 1);
    }
}

void sq_gguf_put_strs(sq_gguf_writer *w, const char *key, const sq_str *v, size_t n)
{
    begin_array(w, key, SQ_GGUF_STRING, n);
    for (size_t i = 0; i < n; i++)
        append_str(w, &w->keys, v[i]);
}

static size_t value_bytes(const sq_gguf_kv *kv)
{
    const size_t each = sq_gguf_type_bytes(kv->elem_type);
    if (each) return each * (size_t)kv->count;
    const uint8_t *at = kv->data;
    for (uint64_t i = 0; i < kv->count; i++)
        sq_gguf_next_str(&at);
    return (size_t)(at - kv->data);
}

void sq_gguf_put_kv(sq_gguf_writer *w, const sq_gguf_kv *kv)
{
    if (sq_str_eq(kv->key, "general.alignment")) return;
    begin_key(w, kv->key, kv->type);
    if (kv->type == SQ_GGUF_ARRAY) {
        append_u32(w, &w->keys, kv->elem_type);
        append_u64(w, &w->keys, kv->count);
    }
    append(w, &w->keys, kv->data, value_bytes(kv));
}

/* ---- Tensors ------------------------------------------------------------------------------ */

static uint64_t padding(const sq_gguf_writer *w, uint64_t pos) { return (0 - pos) & (w->alignment - 1); }

static bool shape_bytes(uint32_t n_dims, const uint64_t *ne, uint32_t type, size_t *bytes)
{
    uint64_t shape[SQ_GGUF_MAX_DIMS] = {1, 1, 1, 1};
    if (n_dims < 1 || n_dims > SQ_GGUF_MAX_DIMS) return false;
    memcpy(shape, ne, n_dims * sizeof *ne);
    return sq_tensor_bytes(type, shape, bytes);
}

void sq_gguf_put_tensor(sq_gguf_writer *w, sq_str name, uint32_t n_dims, const uint64_t *ne, uint32_t type)
{
    size_t bytes = 0;
    if (!w->err && w->in_data)
        FAIL(w, SQUINT_ERR_ARGUMENT, "%s: tensor \"%.*s\" comes after the first data", w->path, (int)name.len, name.s);
    if (!w->err && !shape_bytes(n_dims, ne, type, &bytes))
        FAIL(w, SQUINT_ERR_ARGUMENT, "%s: tensor \"%.*s\": no %s tensor has this shape", w->path, (int)name.len, name.s,
             sq_tensor_type_name(type));
    if (w->err) return;
    append_str(w, &w->infos, name);
    append_u32(w, &w->infos, n_dims);
    for (uint32_t i = 0; i < n_dims; i++)
        append_u64(w, &w->infos, ne[i]);
    append_u32(w, &w->infos, type);
    append_u64(w, &w->infos, w->offset);
    append(w, &w->sizes, &bytes, sizeof bytes);
    w->offset += bytes + padding(w, bytes);
    w->n_tensors++;
}

/* ---- Into the file ------------------------------------------------------------------------ */

static void fail_errno(sq_gguf_writer *w)
{
    char why[128];
    FAIL(w, SQUINT_ERR_IO, "%s: cannot be written: %s", w->path, sq_errno_text(errno, why, sizeof why));
}

static void write_all(sq_gguf_writer *w, const void *data, size_t bytes)
{
    const uint8_t *at = data;
    while (!w->err && bytes) {
        const ssize_t n = write(w->fd, at, bytes);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            fail_errno(w);
            return;
        }
        at += n;
        bytes -= (size_t)n;
    }
}

static void write_padding(sq_gguf_writer *w, uint64_t pos)
{
    static const uint8_t zeros[4096];
    for (uint64_t left = padding(w, pos); !w->err && left;) {
        const size_t n = left < sizeof zeros ? (size_t)left : sizeof zeros;
        write_all(w, zeros, n);
        left -= n;
    }
}

static void write_header(sq_gguf_writer *w)
{
    uint8_t head[24] = {'G', 'G', 'U', 'F', VERSION};
    memcpy(head + 8, &w->n_tensors, 8);
    memcpy(head + 16, &w->n_keys, 8);
    write_all(w, head, sizeof head);
    write_all(w, w->keys.bytes, w->keys.used);
    write_all(w, w->infos.bytes, w->infos.used);
    if (w->n_tensors) write_padding(w, sizeof head + w->keys.used + w->infos.used);
    w->in_data = true;
}

void sq_gguf_put_data(sq_gguf_writer *w, const void *data, size_t bytes)
{
    if (!w->err && !w->in_data) write_header(w);
    if (w->err) return;
    size_t expected;
    if (w->next_tensor == w->n_tensors) {
        FAIL(w, SQUINT_ERR_ARGUMENT, "%s: data for more than the %llu tensors declared", w->path,
             (unsigned long long)w->n_tensors);
        return;
    }
    memcpy(&expected, w->sizes.bytes + w->next_tensor * sizeof expected, sizeof expected);
    if (bytes != expected) {
        FAIL(w, SQUINT_ERR_ARGUMENT, "%s: %zu bytes of data for tensor %zu, which has %zu", w->path, bytes,
             w->next_tensor, expected);
        return;
    }
    write_all(w, data, bytes);
    write_padding(w, bytes);
    w->next_tensor++;
}

/* ---- Beginning and end -------------------------------------------------------------------- */

/* Renaming over a device or a directory would destroy or fail; both are told before anything is written. */
static bool may_replace(sq_gguf_writer *w)
{
    struct stat st;
    if (stat(w->path, &st) || S_ISREG(st.st_mode)) return true;
    FAIL(w, SQUINT_ERR_IO, "%s: is there, and not a regular file", w->path);
    return false;
}

static void create_temp(sq_gguf_writer *w)
{
    for (unsigned i = 0; i < TEMP_NAMES && w->fd < 0; i++) {
        snprintf(w->temp, w->path_size, "%s.%ld-%u.tmp", w->path, (long)getpid(), i);
        w->fd = open(w->temp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (w->fd < 0 && errno != EEXIST) break;
    }
    if (w->fd < 0) fail_errno(w);
}

static void release(sq_gguf_writer *w)
{
    const squint_allocator a = w->allocator;
    if (w->fd >= 0) {
        close(w->fd);
        unlink(w->temp);
    }
    sq_free(&a, w->keys.bytes, w->keys.size);
    sq_free(&a, w->infos.bytes, w->infos.size);
    sq_free(&a, w->sizes.bytes, w->sizes.size);
    sq_free(&a, w->path, w->path_size);
    sq_free(&a, w->temp, w->path_size);
    sq_free(&a, w, sizeof *w);
}

static bool set_paths(sq_gguf_writer *w, const char *path)
{
    w->path_size = strlen(path) + TEMP_SUFFIX;
    w->path = sq_alloc(&w->allocator, w->path_size);
    w->temp = sq_alloc(&w->allocator, w->path_size);
    if (!w->path || !w->temp) return false;
    memcpy(w->path, path, strlen(path) + 1);
    return true;
}

squint_err sq_gguf_write_begin(sq_gguf_writer **out, const char *path, uint32_t alignment, const squint_allocator *a,
                               squint_msg *msg)
{
    *out = NULL;
    const squint_allocator allocator = sq_allocator_or_default(a);
    if (alignment < 8 || alignment > 65536 || (alignment & (alignment - 1)))
        return sq_fail(msg, SQUINT_ERR_ARGUMENT, "%s: an alignment of %lu; a power of two from 8 to 65536 is needed",
                       path, (unsigned long)alignment);
    sq_gguf_writer *w = sq_alloc(&allocator, sizeof *w);
    if (!w) return sq_fail(msg, SQUINT_ERR_NOMEM, "%s: out of memory", path);
    *w = (sq_gguf_writer){.allocator = allocator, .fd = -1, .alignment = alignment};
    if (!set_paths(w, path)) {
        release(w);
        return sq_fail(msg, SQUINT_ERR_NOMEM, "%s: out of memory", path);
    }
    if (may_replace(w)) create_temp(w);
    if (w->err) {
        if (msg) *msg = w->msg;
        const squint_err err = w->err;
        release(w);
        return err;
    }
    sq_gguf_put_u32(w, "general.alignment", alignment);
    *out = w;
    return SQUINT_OK;
}

/* What the reader says to the file as it is now. */
static void read_back(sq_gguf_writer *w)
{
    struct stat st;
    if (fstat(w->fd, &st)) {
        fail_errno(w);
        return;
    }
    void *data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, w->fd, 0);
    if (data == MAP_FAILED) {
        fail_errno(w);
        return;
    }
    sq_gguf *g;
    w->err = sq_gguf_open_memory(&g, w->path, data, (size_t)st.st_size, &w->allocator, &w->msg);
    sq_gguf_close(&g);
    munmap(data, (size_t)st.st_size);
}

/* Makes the new name last through a power cut. Not every file system can; the file is whole in any case. */
static void sync_directory(sq_gguf_writer *w)
{
    char *slash = strrchr(w->temp, '/');
    if (slash) slash[slash == w->temp] = '\0';
    const int fd = open(slash ? w->temp : ".", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    fsync(fd);
    close(fd);
}

static void move_into_place(sq_gguf_writer *w)
{
    if (fsync(w->fd) || rename(w->temp, w->path)) {
        fail_errno(w);
        return;
    }
    close(w->fd);
    w->fd = -1;
    sync_directory(w);
}

squint_err sq_gguf_write_end(sq_gguf_writer **pw, squint_msg *msg)
{
    sq_gguf_writer *w = *pw;
    if (!w->err && !w->in_data) write_header(w);
    if (!w->err && w->next_tensor < w->n_tensors)
        FAIL(w, SQUINT_ERR_ARGUMENT, "%s: data for %zu of %llu tensors only", w->path, w->next_tensor,
             (unsigned long long)w->n_tensors);
    if (!w->err) read_back(w);
    if (!w->err) move_into_place(w);
    const squint_err err = w->err;
    if (err && msg) *msg = w->msg;
    release(w);
    *pw = NULL;
    return err;
}

void sq_gguf_write_abort(sq_gguf_writer **pw)
{
    if (*pw) release(*pw);
    *pw = NULL;
}
