/*
 * Reading GGUF: a cursor that keeps its first failure, the checks, the getters.
 * SPDX-License-Identifier: MIT
 */
#define _DEFAULT_SOURCE /* madvise */
#include "runtime/gguf.h"

#include "runtime/index.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "GGUF data is used where it lies: little-endian machines only"
#endif

enum {
    MAX_KEY = 65535, /* bytes, by the format */
    MAX_NAME = 128,  /* bytes of a tensor's name; the format says 64 */
    MAX_ITEMS = 1 << 24,
    MIN_KEY_BYTES = 8 + 1 + 4 + 1,
    MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8,
    SHOWN = 160, /* bytes of a path or name in a message, so that the rest of it is read too */
};

struct sq_gguf {
    squint_allocator allocator;
    char *path;
    const char *shown_path; /* the end of path, for messages */
    const uint8_t *data;
    size_t size;
    bool mapped;
    uint64_t n_keys, n_tensors;
    size_t max_keys, max_tensors; /* there is room for */
    sq_gguf_kv *keys;
    sq_gguf_tensor *tensors;
    sq_index key_index, tensor_index;
    sq_gguf *vision; /* of a pair: the file whose keys and tensors of vision are in the tables; else NULL */
};

/* ---- Types -------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    size_t bytes; /* of a value; 0: it has a length of its own */
} value_types[SQ_GGUF_TYPE_COUNT] = {
    [SQ_GGUF_U8] = {"u8", 1},   [SQ_GGUF_I8] = {"i8", 1},       [SQ_GGUF_U16] = {"u16", 2},
    [SQ_GGUF_I16] = {"i16", 2}, [SQ_GGUF_U32] = {"u32", 4},     [SQ_GGUF_I32] = {"i32", 4},
    [SQ_GGUF_F32] = {"f32", 4}, [SQ_GGUF_BOOL] = {"bool", 1},   [SQ_GGUF_STRING] = {"string", 0},
    [SQ_GGUF_U64] = {"u64", 8}, [SQ_GGUF_ARRAY] = {"array", 0}, [SQ_GGUF_I64] = {"i64", 8},
    [SQ_GGUF_F64] = {"f64", 8},
};

size_t sq_gguf_type_bytes(sq_gguf_type type) { return value_types[type].bytes; }

/* ---- Cursor ------------------------------------------------------------------------------- */

typedef struct cursor {
    const uint8_t *data;
    size_t size;
    size_t pos; /* stays at the first read that failed */
    bool bad;
} cursor;

/* The next n bytes, or NULL when there are not that many. */
static const uint8_t *take(cursor *c, uint64_t n)
{
    if (c->bad || n > c->size - c->pos) {
        c->bad = true;
        return NULL;
    }
    const uint8_t *bytes = c->data + c->pos;
    c->pos += (size_t)n;
    return bytes;
}

static uint32_t take_u32(cursor *c)
{
    uint32_t v = 0;
    const uint8_t *bytes = take(c, sizeof v);
    if (bytes) memcpy(&v, bytes, sizeof v);
    return v;
}

static uint64_t take_u64(cursor *c)
{
    uint64_t v = 0;
    const uint8_t *bytes = take(c, sizeof v);
    if (bytes) memcpy(&v, bytes, sizeof v);
    return v;
}

static sq_str take_str(cursor *c)
{
    const uint64_t length = take_u64(c);
    const uint8_t *bytes = take(c, length);
    return bytes ? (sq_str){(const char *)bytes, (size_t)length} : (sq_str){"", 0};
}

/* ---- Checks ------------------------------------------------------------------------------- */

typedef struct parser {
    sq_gguf *g;
    cursor c;
    squint_msg *msg;
} parser;

#define SHOW(name) (int)((name).len < SHOWN ? (name).len : SHOWN), (name).s

static squint_err fail_at(const parser *p, squint_err err, size_t pos, const char *format, ...) SQ_PRINTF(4, 5);

static squint_err fail_at(const parser *p, squint_err err, size_t pos, const char *format, ...)
{
    char text[sizeof p->msg->text];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return sq_fail(p->msg, err, "%s: byte %zu: %s", p->g->shown_path, pos, text);
}

/* A file that can't be opened or read; there is no position yet. */
static squint_err fail_file(const sq_gguf *g, squint_err err, const char *what, squint_msg *msg)
{
    return sq_fail(msg, err, "%s: %s", g->shown_path, what);
}

static squint_err out_of_memory(const sq_gguf *g, squint_msg *msg)
{
    return fail_file(g, SQUINT_ERR_NOMEM, "out of memory for its table of contents", msg);
}

static squint_err check_version(const parser *p, uint32_t version)
{
    if (version == 2 || version == 3) return SQUINT_OK;
    if (version && version << 8 == 0)
        return fail_at(p, SQUINT_ERR_UNSUPPORTED, 4,
                       "a big-endian GGUF file; convert it to little-endian (gguf_convert_endian.py)");
    return fail_at(p, SQUINT_ERR_UNSUPPORTED, 4, "GGUF version %lu; squint reads version 3: convert the model again",
                   (unsigned long)version);
}

static squint_err check_count(const parser *p, size_t pos, uint64_t count, size_t min_bytes, const char *what)
{
    const size_t left = p->c.size - p->c.pos;
    if (count <= left / min_bytes && count <= MAX_ITEMS) return SQUINT_OK;
    return fail_at(p, SQUINT_ERR_FORMAT, pos, "a count of %llu %s does not fit the %zu bytes that are left",
                   (unsigned long long)count, what, left);
}

static squint_err read_header(parser *p)
{
    sq_gguf *g = p->g;
    const uint8_t *magic = take(&p->c, 4);
    if (!magic || memcmp(magic, "GGUF", 4))
        return fail_at(p, SQUINT_ERR_FORMAT, 0, "not a GGUF file (it does not begin with \"GGUF\")");
    const uint32_t version = take_u32(&p->c);
    g->n_tensors = take_u64(&p->c);
    g->n_keys = take_u64(&p->c);
    if (p->c.bad) return fail_at(p, SQUINT_ERR_FORMAT, p->c.pos, "the file ends inside its header");
    squint_err err = check_version(p, version);
    if (!err) err = check_count(p, 8, g->n_tensors, MIN_TENSOR_BYTES, "tensors");
    if (!err) err = check_count(p, 16, g->n_keys, MIN_KEY_BYTES, "keys");
    return err;
}

/* A name that can be looked up and shown: not empty, not too long, without a zero byte. */
static bool is_name(sq_str s, size_t max) { return s.len && s.len <= max && !memchr(s.s, '\0', s.len); }

static bool all_bools(const uint8_t *bytes, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        if (bytes[i] > 1) return false;
    return true;
}

/* Steps over kv's elements, which are of elem_type; false when they don't fit the file. */
static bool skip_elements(cursor *c, const sq_gguf_kv *kv, sq_gguf_type type)
{
    const size_t bytes = value_types[type].bytes;
    if (bytes) return kv->count <= (c->size - c->pos) / bytes && take(c, kv->count * bytes);
    for (uint64_t i = 0; i < kv->count && !c->bad; i++)
        take_str(c);
    return !c->bad;
}

static squint_err read_array_head(parser *p, sq_gguf_kv *kv)
{
    const size_t pos = p->c.pos;
    const uint32_t type = take_u32(&p->c);
    kv->count = take_u64(&p->c);
    if (p->c.bad)
        return fail_at(p, SQUINT_ERR_FORMAT, p->c.pos, "key \"%.*s\": the file ends inside it", SHOW(kv->key));
    if (type == SQ_GGUF_ARRAY)
        return fail_at(p, SQUINT_ERR_UNSUPPORTED, pos, "key \"%.*s\": an array of arrays", SHOW(kv->key));
    if (type >= SQ_GGUF_TYPE_COUNT)
        return fail_at(p, SQUINT_ERR_FORMAT, pos, "key \"%.*s\": unknown element type %lu", SHOW(kv->key),
                       (unsigned long)type);
    kv->elem_type = (sq_gguf_type)type;
    return SQUINT_OK;
}

static squint_err read_value(parser *p, sq_gguf_kv *kv)
{
    kv->count = 1;
    kv->elem_type = kv->type;
    if (kv->type == SQ_GGUF_ARRAY) {
        const squint_err err = read_array_head(p, kv);
        if (err) return err;
    }
    const size_t pos = p->c.pos;
    kv->data = p->c.data + pos;
    if (!skip_elements(&p->c, kv, kv->elem_type))
        return fail_at(p, SQUINT_ERR_FORMAT, pos,
                       "key \"%.*s\": its value (%s, %llu long) goes past the end of the file", SHOW(kv->key),
                       value_types[kv->elem_type].name, (unsigned long long)kv->count);
    if (kv->elem_type == SQ_GGUF_BOOL && !all_bools(kv->data, kv->count))
        return fail_at(p, SQUINT_ERR_FORMAT, pos, "key \"%.*s\": a bool is neither 0 nor 1", SHOW(kv->key));
    return SQUINT_OK;
}

static squint_err read_key(parser *p, uint64_t number, sq_gguf_kv *kv)
{
    kv->file_pos = p->c.pos;
    kv->key = take_str(&p->c);
    if (p->c.bad)
        return fail_at(p, SQUINT_ERR_FORMAT, kv->file_pos, "the name of key %llu goes past the end of the file",
                       (unsigned long long)number);
    if (!is_name(kv->key, MAX_KEY))
        return fail_at(p, SQUINT_ERR_FORMAT, kv->file_pos,
                       "the name of key %llu, \"%.*s\", is not 1 to %d bytes of text", (unsigned long long)number,
                       SHOW(kv->key), MAX_KEY);
    const uint32_t type = take_u32(&p->c);
    if (p->c.bad)
        return fail_at(p, SQUINT_ERR_FORMAT, p->c.pos, "key \"%.*s\": the file ends before its type", SHOW(kv->key));
    if (type >= SQ_GGUF_TYPE_COUNT)
        return fail_at(p, SQUINT_ERR_FORMAT, kv->file_pos, "key \"%.*s\": unknown value type %lu", SHOW(kv->key),
                       (unsigned long)type);
    kv->type = (sq_gguf_type)type;
    return read_value(p, kv);
}

static squint_err read_keys(parser *p)
{
    sq_gguf *g = p->g;
    g->max_keys = (size_t)g->n_keys;
    g->keys = sq_alloc(&g->allocator, g->max_keys * sizeof *g->keys);
    if (!g->keys) return out_of_memory(g, p->msg);
    for (uint64_t i = 0; i < g->n_keys; i++) {
        const squint_err err = read_key(p, i, &g->keys[i]);
        if (err) return err;
    }
    if (!sq_index_build(&g->key_index, g->keys, sizeof *g->keys, (size_t)g->n_keys, &g->allocator))
        return out_of_memory(g, p->msg);
    const size_t again = sq_index_duplicate(&g->key_index);
    if (again == SIZE_MAX) return SQUINT_OK;
    return fail_at(p, SQUINT_ERR_FORMAT, g->keys[again].file_pos, "key \"%.*s\" is there twice",
                   SHOW(g->keys[again].key));
}

static squint_err read_shape(parser *p, sq_gguf_tensor *t)
{
    const size_t pos = p->c.pos;
    t->n_dims = take_u32(&p->c);
    if (!p->c.bad && (t->n_dims < 1 || t->n_dims > SQ_GGUF_MAX_DIMS))
        return fail_at(p, SQUINT_ERR_FORMAT, pos, "tensor \"%.*s\": %lu dimensions; 1 to 4 are possible", SHOW(t->name),
                       (unsigned long)t->n_dims);
    for (unsigned i = 0; i < SQ_GGUF_MAX_DIMS; i++) {
        t->ne[i] = i < t->n_dims ? take_u64(&p->c) : 1;
        if (!p->c.bad && (t->ne[i] < 1 || t->ne[i] > UINT32_MAX))
            return fail_at(p, SQUINT_ERR_FORMAT, pos, "tensor \"%.*s\": dimension %u is %llu", SHOW(t->name), i,
                           (unsigned long long)t->ne[i]);
    }
    return SQUINT_OK;
}

static squint_err check_bytes(const parser *p, size_t pos, sq_gguf_tensor *t)
{
    if (!sq_tensor_type_known(t->type))
        return fail_at(
            p, SQUINT_ERR_UNSUPPORTED, pos,
            "tensor \"%.*s\": type %lu is unknown here; take a file of F16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, "
            "Q5_K or Q6_K",
            SHOW(t->name), (unsigned long)t->type);
    if (!sq_tensor_bytes(t->type, t->ne, &t->bytes))
        return fail_at(p, SQUINT_ERR_FORMAT, pos, "tensor \"%.*s\": no %s tensor can be %llu x %llu x %llu x %llu",
                       SHOW(t->name), sq_tensor_type_name(t->type), (unsigned long long)t->ne[0],
                       (unsigned long long)t->ne[1], (unsigned long long)t->ne[2], (unsigned long long)t->ne[3]);
    return SQUINT_OK;
}

/* All but the data's place, which is not known before the last tensor info. */
static squint_err read_tensor(parser *p, uint64_t number, sq_gguf_tensor *t, uint64_t *offset)
{
    const size_t pos = p->c.pos;
    t->name = take_str(&p->c);
    if (p->c.bad)
        return fail_at(p, SQUINT_ERR_FORMAT, pos, "the name of tensor %llu goes past the end of the file",
                       (unsigned long long)number);
    if (!is_name(t->name, MAX_NAME))
        return fail_at(p, SQUINT_ERR_FORMAT, pos, "the name of tensor %llu, \"%.*s\", is not 1 to %d bytes of text",
                       (unsigned long long)number, SHOW(t->name), MAX_NAME);
    const squint_err err = read_shape(p, t);
    if (err) return err;
    t->type = take_u32(&p->c);
    *offset = take_u64(&p->c);
    if (p->c.bad)
        return fail_at(p, SQUINT_ERR_FORMAT, p->c.pos, "tensor \"%.*s\": the file ends inside its description",
                       SHOW(t->name));
    t->file_pos = pos;
    return check_bytes(p, pos, t);
}

static squint_err read_alignment(const parser *p, uint32_t *alignment)
{
    *alignment = 32;
    const squint_err err = sq_gguf_get_u32(p->g, "general.alignment", false, alignment, p->msg);
    if (err) return err;
    if (*alignment >= 8 && *alignment <= 65536 && !(*alignment & (*alignment - 1))) return SQUINT_OK;
    return sq_fail(p->msg, SQUINT_ERR_FORMAT,
                   "%s: key \"general.alignment\": %lu is not a power of two from 8 to 65536", p->g->shown_path,
                   (unsigned long)*alignment);
}

/* Data lies in the order of the infos, so that one look at the tensor before shows any overlap. */
static squint_err place_tensor(const parser *p, sq_gguf_tensor *t, uint64_t offset, uint32_t alignment, size_t start,
                               size_t *end)
{
    const size_t room = p->g->size - start;
    if (offset % alignment)
        return fail_at(p, SQUINT_ERR_FORMAT, t->file_pos, "tensor \"%.*s\": offset %llu is not a multiple of %lu",
                       SHOW(t->name), (unsigned long long)offset, (unsigned long)alignment);
    if (offset > room || t->bytes > room - (size_t)offset)
        return fail_at(p, SQUINT_ERR_FORMAT, t->file_pos,
                       "tensor \"%.*s\": its %zu bytes at offset %llu go past the end of the file", SHOW(t->name),
                       t->bytes, (unsigned long long)offset);
    if (offset < *end)
        return fail_at(p, SQUINT_ERR_FORMAT, t->file_pos, "tensor \"%.*s\": its data begins inside the tensor before",
                       SHOW(t->name));
    *end = (size_t)offset + t->bytes;
    t->file_pos = start + (size_t)offset;
    t->data = p->g->data + t->file_pos;
    return SQUINT_OK;
}

/* `offsets`: room for one a tensor. */
static squint_err read_tensor_infos(parser *p, uint64_t *offsets)
{
    sq_gguf *g = p->g;
    uint32_t alignment;
    squint_err err = read_alignment(p, &alignment);
    if (err) return err;
    for (uint64_t i = 0; !err && i < g->n_tensors; i++)
        err = read_tensor(p, i, &g->tensors[i], &offsets[i]);
    const size_t padding = (alignment - p->c.pos % alignment) % alignment;
    if (!err && g->n_tensors && !take(&p->c, padding))
        err = fail_at(p, SQUINT_ERR_FORMAT, p->c.pos, "the file ends before its tensor data");
    size_t end = 0;
    for (uint64_t i = 0; !err && i < g->n_tensors; i++)
        err = place_tensor(p, &g->tensors[i], offsets[i], alignment, p->c.pos, &end);
    return err;
}

static squint_err read_tensors(parser *p)
{
    sq_gguf *g = p->g;
    const size_t n = (size_t)g->n_tensors;
    g->max_tensors = n;
    g->tensors = sq_alloc(&g->allocator, n * sizeof *g->tensors);
    uint64_t *offsets = sq_alloc(&g->allocator, n * sizeof *offsets);
    squint_err err = SQUINT_ERR_NOMEM;
    if (g->tensors && offsets) err = read_tensor_infos(p, offsets);
    sq_free(&g->allocator, offsets, n * sizeof *offsets);
    if (!err && !sq_index_build(&g->tensor_index, g->tensors, sizeof *g->tensors, n, &g->allocator))
        err = SQUINT_ERR_NOMEM;
    if (err == SQUINT_ERR_NOMEM) return out_of_memory(g, p->msg);
    if (err) return err;
    const size_t again = sq_index_duplicate(&g->tensor_index);
    if (again == SIZE_MAX) return SQUINT_OK;
    return fail_at(p, SQUINT_ERR_FORMAT, g->tensors[again].file_pos, "tensor \"%.*s\" is there twice",
                   SHOW(g->tensors[again].name));
}

/* ---- Opening ------------------------------------------------------------------------------ */

static squint_err parse(sq_gguf *g, squint_msg *msg)
{
    parser p = {g, {g->data, g->size, 0, false}, msg};
    squint_err err = read_header(&p);
    if (!err) err = read_keys(&p);
    if (!err) err = read_tensors(&p);
    return err;
}

static squint_err map_descriptor(sq_gguf *g, int fd, squint_msg *msg)
{
    char why[128];
    struct stat st;
    if (fstat(fd, &st)) return fail_file(g, SQUINT_ERR_IO, sq_errno_text(errno, why, sizeof why), msg);
    if (!S_ISREG(st.st_mode)) return fail_file(g, SQUINT_ERR_IO, "not a regular file", msg);
    if (!st.st_size) return fail_file(g, SQUINT_ERR_FORMAT, "the file is empty", msg);
    if ((uintmax_t)st.st_size > SIZE_MAX)
        return fail_file(g, SQUINT_ERR_UNSUPPORTED, "too large for this machine's addresses", msg);
    void *data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) return fail_file(g, SQUINT_ERR_IO, sq_errno_text(errno, why, sizeof why), msg);
    g->data = data;
    g->size = (size_t)st.st_size;
    g->mapped = true;
    return SQUINT_OK;
}

static squint_err map_file(sq_gguf *g, squint_msg *msg)
{
    char why[128];
    /* O_NONBLOCK: opening a pipe nobody writes to must fail like any other pipe, not wait. */
    const int fd = open(g->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return fail_file(g, SQUINT_ERR_IO, sq_errno_text(errno, why, sizeof why), msg);
    const squint_err err = map_descriptor(g, fd, msg);
    close(fd);
    return err;
}

static sq_gguf *new_gguf(const char *path, const squint_allocator *a)
{
    const squint_allocator allocator = sq_allocator_or_default(a);
    const size_t length = strlen(path);
    sq_gguf *g = sq_alloc(&allocator, sizeof *g);
    if (!g) return NULL;
    *g = (sq_gguf){.allocator = allocator, .path = sq_alloc(&allocator, length + 1)};
    if (!g->path) {
        sq_free(&allocator, g, sizeof *g);
        return NULL;
    }
    memcpy(g->path, path, length + 1);
    g->shown_path = g->path + (length > SHOWN ? length - SHOWN : 0);
    return g;
}

/* data NULL: the file at path. */
static squint_err open_any(sq_gguf **out, const char *path, const void *data, size_t size, const squint_allocator *a,
                           squint_msg *msg)
{
    *out = NULL;
    sq_gguf *g = new_gguf(path, a);
    if (!g) return sq_fail(msg, SQUINT_ERR_NOMEM, "%s: out of memory", path);
    g->data = data;
    g->size = size;
    squint_err err = data ? SQUINT_OK : map_file(g, msg);
    if (!err) err = parse(g, msg);
    if (err)
        sq_gguf_close(&g);
    else
        *out = g;
    return err;
}

squint_err sq_gguf_open(sq_gguf **out, const char *path, const squint_allocator *a, squint_msg *msg)
{
    return open_any(out, path, NULL, 0, a, msg);
}

squint_err sq_gguf_open_memory(sq_gguf **out, const char *name, const void *data, size_t size,
                               const squint_allocator *a, squint_msg *msg)
{
    return open_any(out, name, data ? data : "", data ? size : 0, a, msg);
}

void sq_gguf_close(sq_gguf **pg)
{
    sq_gguf *g = *pg;
    if (!g) return;
    const squint_allocator a = g->allocator;
    sq_gguf_close(&g->vision);
    sq_index_free(&g->key_index, &a);
    sq_index_free(&g->tensor_index, &a);
    sq_free(&a, g->keys, g->max_keys * sizeof *g->keys);
    sq_free(&a, g->tensors, g->max_tensors * sizeof *g->tensors);
    if (g->mapped) munmap((void *)g->data, g->size);
    sq_free(&a, g->path, strlen(g->path) + 1);
    sq_free(&a, g, sizeof *g);
    *pg = NULL;
}

/* Whole pages only: what shares one with the tensor may be in use. */
void sq_gguf_forget(const sq_gguf *g, const sq_gguf_tensor *t)
{
#if defined(MADV_DONTNEED)
    const sq_gguf *const in = g->vision && sq_gguf_is_vision(t->name) ? g->vision : g;
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), start = ((uintptr_t)t->data + page - 1) / page * page;
    const uintptr_t end = ((uintptr_t)t->data + t->bytes) / page * page;
    if (in->mapped && start < end) madvise((void *)start, end - start, MADV_DONTNEED);
#else
    (void)g;
    (void)t;
#endif
}

/* ---- Pairs -------------------------------------------------------------------------------- */

static bool begins(sq_str s, const char *prefix)
{
    const size_t n = strlen(prefix);
    return s.len >= n && !memcmp(s.s, prefix, n);
}

bool sq_gguf_is_vision(sq_str name)
{
    return begins(name, "clip.") || begins(name, "squint.vision.") || begins(name, "v.") || begins(name, "mm.") ||
           sq_str_eq(name, "model.image_newline");
}

/* Tables of both files: of the second what is of vision, of the first all else. */
typedef struct joined {
    sq_gguf_kv *keys;
    sq_gguf_tensor *tensors;
    size_t n_keys, n_tensors, max_keys, max_tensors;
    sq_index key_index, tensor_index;
} joined;

static void join_tables(joined *j, const sq_gguf *g, bool vision)
{
    for (uint64_t i = 0; i < g->n_keys; i++)
        if (sq_gguf_is_vision(g->keys[i].key) == vision) j->keys[j->n_keys++] = g->keys[i];
    for (uint64_t i = 0; i < g->n_tensors; i++)
        if (sq_gguf_is_vision(g->tensors[i].name) == vision) j->tensors[j->n_tensors++] = g->tensors[i];
}

static void free_joined(joined *j, const squint_allocator *a)
{
    sq_index_free(&j->key_index, a);
    sq_index_free(&j->tensor_index, a);
    sq_free(a, j->keys, j->max_keys * sizeof *j->keys);
    sq_free(a, j->tensors, j->max_tensors * sizeof *j->tensors);
}

/* No name is there twice: each file's are its own, and vision's come from one of them. */
static bool join(joined *j, const sq_gguf *g, const sq_gguf *vision)
{
    const squint_allocator *const a = &g->allocator;
    j->max_keys = (size_t)(g->n_keys + vision->n_keys);
    j->max_tensors = (size_t)(g->n_tensors + vision->n_tensors);
    j->keys = sq_alloc(a, j->max_keys * sizeof *j->keys);
    j->tensors = sq_alloc(a, j->max_tensors * sizeof *j->tensors);
    if (!j->keys || !j->tensors) return false;
    join_tables(j, g, false);
    join_tables(j, vision, true);
    return sq_index_build(&j->key_index, j->keys, sizeof *j->keys, j->n_keys, a) &&
           sq_index_build(&j->tensor_index, j->tensors, sizeof *j->tensors, j->n_tensors, a);
}

squint_err sq_gguf_join(sq_gguf *g, sq_gguf **vision, squint_msg *msg)
{
    joined j = {0};
    const squint_allocator *const a = &g->allocator;
    if (!join(&j, g, *vision)) {
        free_joined(&j, a);
        return out_of_memory(g, msg);
    }
    joined old = {.keys = g->keys,
                  .tensors = g->tensors,
                  .max_keys = g->max_keys,
                  .max_tensors = g->max_tensors,
                  .key_index = g->key_index,
                  .tensor_index = g->tensor_index};
    free_joined(&old, a);
    g->keys = j.keys;
    g->tensors = j.tensors;
    g->n_keys = j.n_keys;
    g->n_tensors = j.n_tensors;
    g->max_keys = j.max_keys;
    g->max_tensors = j.max_tensors;
    g->key_index = j.key_index;
    g->tensor_index = j.tensor_index;
    g->vision = *vision;
    *vision = NULL;
    return SQUINT_OK;
}

const sq_gguf *sq_gguf_vision(const sq_gguf *g) { return g->vision; }

static const char *shown_path_of(const sq_gguf *g, sq_str name)
{
    return g->vision && sq_gguf_is_vision(name) ? g->vision->shown_path : g->shown_path;
}

/* ---- Looking things up ------------------------------------------------------------------- */

const char *sq_gguf_path(const sq_gguf *g) { return g->path; }

const char *sq_gguf_path_of(const sq_gguf *g, const char *name)
{
    return g->vision && sq_gguf_is_vision((sq_str){name, strlen(name)}) ? g->vision->path : g->path;
}

size_t sq_gguf_size(const sq_gguf *g) { return g->size; }
size_t sq_gguf_n_keys(const sq_gguf *g) { return (size_t)g->n_keys; }
const sq_gguf_kv *sq_gguf_key(const sq_gguf *g, size_t i) { return &g->keys[i]; }
size_t sq_gguf_n_tensors(const sq_gguf *g) { return (size_t)g->n_tensors; }
const sq_gguf_tensor *sq_gguf_tensor_at(const sq_gguf *g, size_t i) { return &g->tensors[i]; }

const sq_gguf_kv *sq_gguf_find_key(const sq_gguf *g, const char *key)
{
    const size_t i = sq_index_find(&g->key_index, (sq_str){key, strlen(key)});
    return i == SIZE_MAX ? NULL : &g->keys[i];
}

const sq_gguf_tensor *sq_gguf_find(const sq_gguf *g, const char *name)
{
    const size_t i = sq_index_find(&g->tensor_index, (sq_str){name, strlen(name)});
    return i == SIZE_MAX ? NULL : &g->tensors[i];
}

bool sq_str_eq(sq_str a, const char *b) { return strlen(b) == a.len && !memcmp(a.s, b, a.len); }

sq_str sq_gguf_next_str(const uint8_t **at)
{
    uint64_t length;
    memcpy(&length, *at, sizeof length);
    const sq_str s = {(const char *)*at + sizeof length, (size_t)length};
    *at += sizeof length + s.len;
    return s;
}

/* ---- Getters ------------------------------------------------------------------------------ */

/* True when the value is an integer; *negative values are given as their two's complement. */
static bool read_integer(sq_gguf_type type, const uint8_t *data, uint64_t *value, bool *negative)
{
    uint64_t raw = 0;
    const size_t bytes = value_types[type].bytes;
    const bool is_signed = type == SQ_GGUF_I8 || type == SQ_GGUF_I16 || type == SQ_GGUF_I32 || type == SQ_GGUF_I64;
    if (!is_signed && type != SQ_GGUF_U8 && type != SQ_GGUF_U16 && type != SQ_GGUF_U32 && type != SQ_GGUF_U64)
        return false;
    memcpy(&raw, data, bytes);
    *negative = is_signed && raw >> (8 * bytes - 1);
    if (*negative && bytes < 8) raw |= UINT64_MAX << (8 * bytes);
    *value = raw;
    return true;
}

static bool read_u32(sq_gguf_type type, const uint8_t *data, void *out)
{
    uint64_t value;
    bool negative;
    if (!read_integer(type, data, &value, &negative) || negative || value > UINT32_MAX) return false;
    *(uint32_t *)out = (uint32_t)value;
    return true;
}

static bool read_bool(sq_gguf_type type, const uint8_t *data, void *out)
{
    if (type == SQ_GGUF_BOOL) type = SQ_GGUF_U8;
    uint32_t value;
    if (!read_u32(type, data, &value) || value > 1) return false;
    *(bool *)out = value == 1;
    return true;
}

static bool read_f32(sq_gguf_type type, const uint8_t *data, void *out)
{
    float single = 0;
    double value = 0;
    uint64_t integer;
    bool negative;
    if (type == SQ_GGUF_F32) {
        memcpy(&single, data, sizeof single);
        value = (double)single;
    } else if (type == SQ_GGUF_F64) {
        memcpy(&value, data, sizeof value);
    } else if (read_integer(type, data, &integer, &negative)) {
        value = negative ? -(double)(0 - integer) : (double)integer;
    } else {
        return false;
    }
    *(float *)out = (float)value;
    return isfinite(*(float *)out);
}

/* How one element becomes one of *out; false when it can't. */
typedef struct conversion {
    bool (*read)(sq_gguf_type type, const uint8_t *data, void *out);
    size_t out_bytes;
    const char *wanted;
} conversion;

static const conversion to_u32 = {read_u32, sizeof(uint32_t), "an integer from 0 to 4294967295"};
static const conversion to_f32 = {read_f32, sizeof(float), "a finite number"};
static const conversion to_bool = {read_bool, sizeof(bool), "a bool"};

static squint_err missing(const sq_gguf *g, const char *key, bool required, squint_msg *msg)
{
    if (!required) return SQUINT_OK;
    return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: key \"%s\" is missing", shown_path_of(g, (sq_str){key, strlen(key)}),
                   key);
}

static squint_err unfit(const sq_gguf *g, const sq_gguf_kv *kv, const char *wanted, squint_msg *msg)
{
    const bool array = kv->type == SQ_GGUF_ARRAY;
    return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: byte %zu: key \"%.*s\" holds %s%s where %s is needed",
                   shown_path_of(g, kv->key), kv->file_pos, SHOW(kv->key), array ? "an array of " : "",
                   value_types[kv->elem_type].name, wanted);
}

static squint_err get(const sq_gguf *g, const char *key, bool required, const conversion *to, void *out,
                      squint_msg *msg)
{
    const sq_gguf_kv *kv = sq_gguf_find_key(g, key);
    if (!kv) return missing(g, key, required, msg);
    if (kv->type == SQ_GGUF_ARRAY || !to->read(kv->type, kv->data, out)) return unfit(g, kv, to->wanted, msg);
    return SQUINT_OK;
}

static squint_err get_array(const sq_gguf *g, const char *key, bool required, const conversion *to, void *out, size_t n,
                            squint_msg *msg)
{
    const sq_gguf_kv *kv = sq_gguf_find_key(g, key);
    if (!kv) return missing(g, key, required, msg);
    if (kv->type != SQ_GGUF_ARRAY || kv->count != n)
        return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: byte %zu: key \"%s\" is %s of %llu where an array of %zu is needed",
                       shown_path_of(g, kv->key), kv->file_pos, key,
                       kv->type == SQ_GGUF_ARRAY ? "an array" : "no array but one", (unsigned long long)kv->count, n);
    const size_t bytes = value_types[kv->elem_type].bytes;
    for (size_t i = 0; i < n; i++)
        if (!to->read(kv->elem_type, kv->data + i * bytes, (uint8_t *)out + i * to->out_bytes))
            return unfit(g, kv, to->wanted, msg);
    return SQUINT_OK;
}

squint_err sq_gguf_get_u32(const sq_gguf *g, const char *key, bool required, uint32_t *out, squint_msg *msg)
{
    return get(g, key, required, &to_u32, out, msg);
}

squint_err sq_gguf_get_f32(const sq_gguf *g, const char *key, bool required, float *out, squint_msg *msg)
{
    return get(g, key, required, &to_f32, out, msg);
}

squint_err sq_gguf_get_bool(const sq_gguf *g, const char *key, bool required, bool *out, squint_msg *msg)
{
    return get(g, key, required, &to_bool, out, msg);
}

squint_err sq_gguf_get_str(const sq_gguf *g, const char *key, bool required, sq_str *out, squint_msg *msg)
{
    const sq_gguf_kv *kv = sq_gguf_find_key(g, key);
    if (!kv) return missing(g, key, required, msg);
    if (kv->type != SQ_GGUF_STRING) return unfit(g, kv, "a string", msg);
    const uint8_t *at = kv->data;
    *out = sq_gguf_next_str(&at);
    return SQUINT_OK;
}

squint_err sq_gguf_get_f32s(const sq_gguf *g, const char *key, bool required, float *out, size_t n, squint_msg *msg)
{
    return get_array(g, key, required, &to_f32, out, n, msg);
}

squint_err sq_gguf_get_u32s(const sq_gguf *g, const char *key, bool required, uint32_t *out, size_t n, squint_msg *msg)
{
    return get_array(g, key, required, &to_u32, out, n, msg);
}

squint_err sq_gguf_get_bools(const sq_gguf *g, const char *key, bool required, bool *out, size_t n, squint_msg *msg)
{
    return get_array(g, key, required, &to_bool, out, n, msg);
}

/* ---- Panels ------------------------------------------------------------------------------- */

static bool read_panel_header(const sq_gguf_tensor *t, sq_panel_header *h)
{
    if (t->type != SQ_TENSOR_I8 || t->n_dims != 1 || t->bytes < sizeof *h) return false;
    memcpy(h, t->data, sizeof *h);
    return !memcmp(h->magic, "SQPN", 4);
}

bool sq_tensor_is_panels(const sq_gguf_tensor *t)
{
    sq_panel_header h;
    return read_panel_header(t, &h);
}

static squint_err bad_panels(const sq_gguf *g, const sq_gguf_tensor *t, squint_err err, const char *what,
                             squint_msg *msg)
{
    return sq_fail(msg, err, "%s: byte %zu: tensor \"%.*s\": %s", shown_path_of(g, t->name), t->file_pos, SHOW(t->name),
                   what);
}

static bool zeros(const uint32_t *v, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (v[i]) return false;
    return true;
}

/* The size is bounded before it is computed, as it may not fit a size_t of 32 bits. */
static bool panels_fill(const sq_panels *w, size_t bytes)
{
    const uint64_t weights = (uint64_t)w->n * w->k / (w->type == SQ_PANEL_I4 ? 2 : 1);
    return weights <= bytes && sq_panels_bytes(w) == bytes;
}

squint_err sq_tensor_panels(const sq_gguf *g, const sq_gguf_tensor *t, sq_panels *w, squint_msg *msg)
{
    sq_panel_header h;
    if (!read_panel_header(t, &h)) return bad_panels(g, t, SQUINT_ERR_FORMAT, "does not hold panels", msg);
    if (h.version != 1)
        return bad_panels(g, t, SQUINT_ERR_UNSUPPORTED, "panels of another version; quantise the model again", msg);
    if ((h.type != SQ_PANEL_I8 && h.type != SQ_PANEL_I4) || !zeros(h.zero, SQ_COUNT(h.zero)))
        return bad_panels(g, t, SQUINT_ERR_FORMAT, "panels of an unknown type, or fields that must be zero are not",
                          msg);
    const sq_panels panels = {t->data + sizeof h, h.n, h.k, (sq_panel_type)h.type, h.group};
    if (!sq_panels_valid(&panels) || !panels_fill(&panels, t->bytes - sizeof h)) {
        char what[128];
        snprintf(what, sizeof what, "%lu x %lu in groups of %lu does not make panels of %zu bytes", (unsigned long)h.n,
                 (unsigned long)h.k, (unsigned long)h.group, t->bytes - sizeof h);
        return bad_panels(g, t, SQUINT_ERR_FORMAT, what, msg);
    }
    if (t->file_pos % SQ_PANEL_ALIGN)
        return bad_panels(g, t, SQUINT_ERR_FORMAT, "panels need \"general.alignment\" 64; quantise the model again",
                          msg);
    *w = panels;
    return SQUINT_OK;
}
