/*
 * Image files: equal to Pillow where whole, one clear failure where not, and never more memory than they are worth.
 * SPDX-License-Identifier: MIT
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "runtime/image.h"
#include "tests/counting.h"
#include "tests/support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- The files of golden/images and what Pillow makes of them --------------------------------- */

typedef struct golden {
    const char *name; /* 0-terminated */
    uint32_t w, h, most;
    const uint8_t *rgb;
    uint8_t *file;
    size_t size;
} golden;

static golden images[96];
static size_t n_images;
static uint8_t *golden_pixels;

static uint32_t read_u32(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static const char *image_path(const golden *g)
{
    static char path[64];
    snprintf(path, sizeof path, "golden/images/%.31s", g->name);
    return path;
}

static int load_images(void **state)
{
    (void)state;
    size_t size;
    golden_pixels = read_test_file("golden/images.bin", &size);
    for (size_t at = 0; at < size; n_images++) {
        if (n_images == SQ_COUNT(images)) return -1;
        golden *g = &images[n_images];
        const uint8_t *p = golden_pixels + at;
        *g = (golden){(const char *)p, read_u32(p + 32), read_u32(p + 36), read_u32(p + 40), .rgb = p + 44};
        g->file = read_test_file(image_path(g), &g->size);
        at += 44 + 3 * (size_t)g->w * g->h;
    }
    return n_images < 50;
}

static int free_images(void **state)
{
    (void)state;
    for (size_t i = 0; i < n_images; i++)
        free(images[i].file);
    free(golden_pixels);
    return 0;
}

/* Decodes a copy that ends at a guard page, and checks that the books balance. */
static squint_err decode(sq_image *out, const uint8_t *data, size_t size, counting *books, squint_msg *msg)
{
    const squint_allocator a = counting_allocator(books);
    uint8_t *copy = guarded_alloc(size, 1);
    if (size) memcpy(copy, data, size);
    msg->text[0] = '\0';
    const squint_err err = sq_image_decode(out, "x.img", copy, size, &a, msg);
    guarded_free(copy);
    assert_int_equal(books->bytes, err ? 0 : out->bytes);
    assert_int_equal(books->live, err ? 0 : 1);
    assert_true(err || out->rgb);
    assert_true(!err || (!out->rgb && strstr(msg->text, "x.img")));
    return err;
}

static void release(sq_image *image, counting *books)
{
    const squint_allocator a = counting_allocator(books);
    sq_image_free(image, &a);
    assert_int_equal(books->live, 0);
}

static bool pixels_match(const golden *g, const sq_image *image)
{
    if (image->w != g->w || image->h != g->h) return false;
    const size_t n = 3 * (size_t)g->w * g->h;
    if (!g->most) return !memcmp(g->rgb, image->rgb, n);
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (uint64_t)abs((int)g->rgb[i] - (int)image->rgb[i]);
    return sum * 1000 <= (uint64_t)g->most * n;
}

static void decodes_as_pillow(void **state)
{
    (void)state;
    for (size_t i = 0; i < n_images; i++) {
        const golden *g = &images[i];
        counting books = {0};
        sq_image image;
        squint_msg msg;
        const squint_err err = decode(&image, g->file, g->size, &books, &msg);
        if (err) fail_msg("%s: %s", g->name, msg.text);
        if (!pixels_match(g, &image)) fail_msg("%s: pixels differ", g->name);
        release(&image, &books);
    }
}

static void bytes_after_the_end_do_not_matter(void **state)
{
    (void)state;
    for (size_t i = 0; i < n_images; i++) {
        const golden *g = &images[i];
        uint8_t *longer = malloc(g->size + 300);
        memcpy(longer, g->file, g->size);
        for (size_t k = 0; k < 300; k++)
            longer[g->size + k] = (uint8_t)(k * 7);
        counting books = {0};
        sq_image image;
        squint_msg msg;
        if (decode(&image, longer, g->size + 300, &books, &msg)) fail_msg("%s: %s", g->name, msg.text);
        if (!pixels_match(g, &image)) fail_msg("%s: pixels differ", g->name);
        release(&image, &books);
        free(longer);
    }
}

/* ---- Damage ------------------------------------------------------------------------------------ */

/* Only BMP may lose bytes: its last row's padding. */
static void every_cut_is_noticed(void **state)
{
    (void)state;
    for (size_t i = 0; i < n_images; i++) {
        const golden *g = &images[i];
        for (size_t size = 0; size < g->size; size++) {
            counting books = {0};
            sq_image image;
            squint_msg msg;
            const squint_err err = decode(&image, g->file, size, &books, &msg);
            if (!err) {
                if (!strstr(g->name, ".bmp") || g->size - size > 3 || !pixels_match(g, &image))
                    fail_msg("%s decodes from %zu of its %zu bytes", g->name, size, g->size);
                release(&image, &books);
            } else {
                assert_true(err == SQUINT_ERR_IMAGE || (err == SQUINT_ERR_UNSUPPORTED && size < 54));
            }
        }
    }
}

/* Whatever a small file says, it gets small memory: pixels need bits to be told. */
enum { MOST_FOR_A_SMALL_FILE = 16 << 20 };

static void try_damaged(const uint8_t *data, size_t size)
{
    counting books = {0};
    sq_image image;
    squint_msg msg;
    if (!decode(&image, data, size, &books, &msg)) release(&image, &books);
    assert_true(books.peak <= MOST_FOR_A_SMALL_FILE);
}

static void flipped_bits_do_no_harm(void **state)
{
    (void)state;
    uint64_t seed = 1;
    for (size_t i = 0; i < n_images; i++) {
        const golden *g = &images[i];
        uint8_t *copy = malloc(g->size);
        for (int k = 0; k < 200; k++) {
            memcpy(copy, g->file, g->size);
            for (int flips = 1 + k % 3; flips; flips--) {
                const uint64_t r = random_u64(&seed);
                copy[(r >> 8) % g->size] ^= (uint8_t)(1u << (r & 7));
            }
            try_damaged(copy, g->size);
        }
        free(copy);
    }
}

static uint32_t crc32_of(const uint8_t *p, size_t n)
{
    uint32_t crc = 0xFFFFFFFF;
    for (size_t i = 0; i < 8 * n; i++) {
        const uint32_t bit = (crc ^ (uint32_t)(p[i / 8] >> (i % 8))) & 1;
        crc = crc >> 1 ^ (bit ? 0xEDB88320 : 0);
    }
    return ~crc;
}

static void put_be32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (24 - 8 * i));
}

/* Makes all checksums right again, so that damage reaches the decoder. */
static void mend_png(uint8_t *data, size_t size)
{
    for (size_t at = 8; size - at >= 12;) {
        const size_t n = (size_t)data[at] << 24 | (size_t)data[at + 1] << 16 | (size_t)data[at + 2] << 8 | data[at + 3];
        if (n > size - at - 12) return;
        put_be32(data + at + 8 + n, crc32_of(data + at + 4, 4 + n));
        at += 12 + n;
    }
}

static void damage_behind_right_checksums_does_no_harm(void **state)
{
    (void)state;
    uint64_t seed = 2;
    for (size_t i = 0; i < n_images; i++) {
        const golden *g = &images[i];
        if (!strstr(g->name, ".png")) continue;
        uint8_t *copy = malloc(g->size);
        for (int k = 0; k < 200; k++) {
            memcpy(copy, g->file, g->size);
            const uint64_t r = random_u64(&seed);
            copy[16 + (r >> 8) % (g->size - 16)] ^= (uint8_t)(1u << (r & 7));
            mend_png(copy, g->size);
            try_damaged(copy, g->size);
        }
        free(copy);
    }
}

/* A cut JPEG that someone closed with an end marker is whole to every decoder: it must be harmless, no more. */
static void closed_stumps_of_jpeg_do_no_harm(void **state)
{
    (void)state;
    for (size_t i = 0; i < n_images; i++) {
        const golden *g = &images[i];
        if (!strstr(g->name, ".jpg")) continue;
        uint8_t *copy = malloc(g->size + 2);
        for (size_t size = 2; size < g->size; size++) {
            memcpy(copy, g->file, size);
            memcpy(copy + size, "\xFF\xD9", 2);
            try_damaged(copy, size + 2);
        }
        free(copy);
    }
}

static void damaged_checksums_are_noticed(void **state)
{
    (void)state;
    for (size_t i = 0; i < n_images; i++) {
        const golden *g = &images[i];
        if (!strstr(g->name, ".png")) continue;
        uint8_t *copy = malloc(g->size);
        memcpy(copy, g->file, g->size);
        copy[g->size - 20] ^= 1; /* inside the compressed data */
        counting books = {0};
        sq_image image;
        squint_msg msg;
        assert_int_equal(decode(&image, copy, g->size, &books, &msg), SQUINT_ERR_IMAGE);
        assert_non_null(strstr(msg.text, "checksum"));
        free(copy);
    }
}

static void no_memory_is_an_error_and_no_leak(void **state)
{
    (void)state;
    for (size_t i = 0; i < n_images; i++) {
        const golden *g = &images[i];
        counting books = {0};
        sq_image image;
        squint_msg msg;
        assert_int_equal(decode(&image, g->file, g->size, &books, &msg), SQUINT_OK);
        release(&image, &books);
        const size_t calls = books.calls;
        assert_true(calls > 0);
        for (size_t at = 1; at <= calls; at++) {
            books = (counting){.fail_at = at};
            assert_int_equal(decode(&image, g->file, g->size, &books, &msg), SQUINT_ERR_NOMEM);
        }
    }
}

/* ---- Headers that lie -------------------------------------------------------------------------- */

/* A failure that comes before any memory is taken, in words that hold `part`. */
static void expect_refused(const uint8_t *data, size_t size, squint_err want, const char *part)
{
    counting books = {0};
    sq_image image;
    squint_msg msg;
    assert_int_equal(decode(&image, data, size, &books, &msg), want);
    if (!strstr(msg.text, part)) fail_msg("'%s' lacks '%s'", msg.text, part);
    assert_int_equal(books.calls, 0);
}

static size_t make_png(uint8_t *out, uint32_t w, uint32_t h, const uint8_t *data, size_t n)
{
    static const uint8_t head[] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n', 0, 0, 0, 13, 'I', 'H', 'D', 'R'};
    memset(out, 0, 57 + n);
    memcpy(out, head, sizeof head);
    put_be32(out + 16, w);
    put_be32(out + 20, h);
    memcpy(out + 24, "\x08\x02", 2);
    put_be32(out + 33, (uint32_t)n);
    memcpy(out + 37, "IDAT", 4);
    if (n) memcpy(out + 41, data, n);
    memcpy(out + 41 + n + 8, "IEND", 4);
    mend_png(out, 57 + n);
    return 57 + n;
}

static size_t make_bmp(uint8_t *out, uint32_t w, uint32_t h)
{
    memset(out, 0, 54);
    memcpy(out, "BM", 2);
    out[10] = 54;
    out[14] = 40;
    for (int i = 0; i < 4; i++)
        out[18 + i] = (uint8_t)(w >> 8 * i);
    for (int i = 0; i < 4; i++)
        out[22 + i] = (uint8_t)(h >> 8 * i);
    out[26] = 1;
    out[28] = 24;
    return 54;
}

/* Grey, one scan of two bytes. */
static size_t make_jpeg(uint8_t *out, uint32_t w, uint32_t h)
{
    static const uint8_t file[] = {0xFF, 0xD8, 0xFF, 0xC0, 0, 11, 8, 0, 0,  0, 0,    1,    1,    0x11, 0,
                                   0xFF, 0xDA, 0,    8,    1, 1,  0, 0, 63, 0, 0x12, 0x34, 0xFF, 0xD9};
    memcpy(out, file, sizeof file);
    out[7] = (uint8_t)(h >> 8);
    out[8] = (uint8_t)h;
    out[9] = (uint8_t)(w >> 8);
    out[10] = (uint8_t)w;
    return sizeof file;
}

static size_t make_pnm(uint8_t *out, uint32_t w, uint32_t h)
{
    return (size_t)sprintf((char *)out, "P6\n%u %u\n255\n", w, h);
}

static void impossible_sizes_are_refused_before_memory(void **state)
{
    (void)state;
    /* The products of some wrap around to something small in 32 bits. */
    static const uint32_t sides[][2] = {{30000, 30000},           {32769, 1},      {1, 32769},
                                        {65536, 65536},           {65537, 65535},  {32768, 2049},
                                        {0x80000000, 2},          {2, 0x80000000}, {0xFFFFFFFF, 0x80000001},
                                        {0x55555556, 0x55555556}, {16384, 4097}};
    uint8_t file[128];
    for (size_t i = 0; i < SQ_COUNT(sides); i++) {
        const uint32_t w = sides[i][0], h = sides[i][1];
        expect_refused(file, make_png(file, w, h, NULL, 0), SQUINT_ERR_IMAGE, "pixels; at most");
        expect_refused(file, make_bmp(file, w, h), SQUINT_ERR_IMAGE, "pixels; at most");
        if (w < 100000 && h < 100000) expect_refused(file, make_pnm(file, w, h), SQUINT_ERR_IMAGE, "pixels; at most");
        if (w < 65536 && h < 65536) expect_refused(file, make_jpeg(file, w, h), SQUINT_ERR_IMAGE, "pixels; at most");
    }
    expect_refused((const uint8_t *)"P5 4294967297 1 255 x", 21, SQUINT_ERR_IMAGE, "damaged");
    for (uint32_t k = 1; k < 4; k++) { /* no side, or one, or the other */
        const uint32_t w = k & 1 ? 0 : 5, h = k & 2 ? 0 : 5;
        expect_refused(file, make_png(file, w, h, NULL, 0), SQUINT_ERR_IMAGE, "0 pixels");
        expect_refused(file, make_bmp(file, w, h), SQUINT_ERR_IMAGE, "0 pixels");
        expect_refused(file, make_pnm(file, w, h), SQUINT_ERR_IMAGE, "0 pixels");
    }
    expect_refused(file, make_jpeg(file, 0, 5), SQUINT_ERR_IMAGE, "0 pixels");
    expect_refused(file, make_jpeg(file, 5, 0), SQUINT_ERR_UNSUPPORTED, "height late");
}

static void large_pictures_need_large_files(void **state)
{
    (void)state;
    uint8_t file[256];
    const uint8_t idat[64] = {0x78, 0x9C};
    expect_refused(file, make_png(file, 8192, 8192, idat, sizeof idat), SQUINT_ERR_IMAGE, "too little data");
    expect_refused(file, make_jpeg(file, 8192, 8192), SQUINT_ERR_IMAGE, "too little data");
    expect_refused(file, make_bmp(file, 8192, 8192), SQUINT_ERR_IMAGE, "cut off");
    expect_refused(file, make_pnm(file, 8192, 8192), SQUINT_ERR_IMAGE, "cut off");
}

static void put_bits(uint8_t *out, size_t *at, uint32_t bits, int n)
{
    for (int i = 0; i < n; i++, ++*at)
        out[*at / 8] |= (uint8_t)((bits >> i & 1) << (*at % 8));
}

/* 10x10 pixels whose 100 KB of data inflate to 15 MB: a zero, then 258 more in 13 bits, over and over. */
static void an_inflating_png_keeps_to_its_budget(void **state)
{
    (void)state;
    enum { BYTES = 100 << 10, RUNS = BYTES * 8 / 13 - 8 };
    uint8_t *data = calloc(BYTES, 1), *file = malloc(BYTES + 57);
    memcpy(data, "\x78\x9C", 2);
    size_t at = 16;
    put_bits(data, &at, 3, 3);    /* last block, fixed codes */
    put_bits(data, &at, 0x0C, 8); /* literal 0: 00110000, sent from the left */
    for (size_t i = 0; i < RUNS; i++) {
        put_bits(data, &at, 0xA3, 8); /* 285, length 258: 11000101 */
        put_bits(data, &at, 0, 5);    /* distance 1 */
    }
    const size_t size = make_png(file, 10, 10, data, BYTES);
    counting books = {0};
    sq_image image;
    squint_msg msg;
    assert_int_equal(decode(&image, file, size, &books, &msg), SQUINT_ERR_IMAGE);
    assert_non_null(strstr(msg.text, "takes more than"));
    assert_true(books.peak <= (1 << 20) + 4 * size + 32 * 42 * 42);
    free(data);
    free(file);
}

/* ---- JPEG's structure -------------------------------------------------------------------------- */

typedef struct bytes {
    uint8_t data[8192];
    size_t n;
} bytes;

static void add(bytes *b, const void *data, size_t n)
{
    assert_true(b->n + n <= sizeof b->data);
    memcpy(b->data + b->n, data, n);
    b->n += n;
}

#define ADD(b, literal) add(b, literal, sizeof(literal) - 1)
#define JPEG_FRAME      "\xFF\xC0\0\x11\x08\0\x08\0\x08\x03\x01\x11\0\x02\x11\0\x03\x11\0"

static void broken_jpegs_are_told_apart(void **state)
{
    (void)state;
    static const struct {
        const char *data;
        size_t n;
        squint_err err;
        const char *part;
    } cases[] = {
#define CASE(literal, err, part) {literal, sizeof(literal) - 1, err, part}
        CASE("\xFF\xD8\xFF\xE0", SQUINT_ERR_IMAGE, "cut off"),
        CASE("\xFF\xD8\xFF\xE0\0\x01", SQUINT_ERR_IMAGE, "segment"),
        CASE("\xFF\xD8\xFF\xE0\0\x10JFIF", SQUINT_ERR_IMAGE, "cut off"),
        CASE("\xFF\xD8\xFF\xD9", SQUINT_ERR_IMAGE, "no data"),
        CASE("\xFF\xD8" JPEG_FRAME "\xFF\xD9", SQUINT_ERR_IMAGE, "no data"),
        CASE("\xFF\xD8" JPEG_FRAME JPEG_FRAME, SQUINT_ERR_IMAGE, "second frame"),
        CASE("\xFF\xD8\xFF\xC0\0\x08\x08\0\x08\0\x08\x03", SQUINT_ERR_IMAGE, "wrong length"),
        CASE("\xFF\xD8\xFF\xC0\0\x0B\x08\0\x08\0\x08\x01\x01\x15\0", SQUINT_ERR_IMAGE, "sampling"),
        CASE("\xFF\xD8\xFF\xC0\0\x0B\x08\0\x08\0\x08\x01\x01\x01\0", SQUINT_ERR_IMAGE, "sampling"),
        CASE("\xFF\xD8\xFF\xC0\0\x0B\x0C\0\x08\0\x08\x01\x01\x11\0", SQUINT_ERR_UNSUPPORTED, "8 bits"),
        CASE("\xFF\xD8\xFF\xC0\0\x0E\x08\0\x08\0\x08\x02\x01\x11\0\x02\x11\0", SQUINT_ERR_UNSUPPORTED, "channels"),
        CASE("\xFF\xD8\xFF\xC3\0\x0B\x08\0\x08\0\x08\x01\x01\x11\0", SQUINT_ERR_UNSUPPORTED, "lossless"),
        CASE("\xFF\xD8\xFF\xC9\0\x0B\x08\0\x08\0\x08\x01\x01\x11\0", SQUINT_ERR_UNSUPPORTED, "arithmetic"),
        CASE("\xFF\xD8\xFF\xDA\0\x08\x01\x01\0\0\x3F\0", SQUINT_ERR_IMAGE, "before the frame"),
        CASE("\xFF\xD8" JPEG_FRAME "\xFF\xDA\0\x08\x02\x01\0\0\x3F\0", SQUINT_ERR_IMAGE, "scan header"),
        /* Only one channel of three has a scan. */
        CASE("\xFF\xD8" JPEG_FRAME "\xFF\xDA\0\x08\x01\x01\0\0\x3F\0abc\xFF\xD9", SQUINT_ERR_IMAGE, "no data"),
        /* No end; an end that is stuffed; an end inside a segment. */
        CASE("\xFF\xD8" JPEG_FRAME "\xFF\xDA\0\x08\x01\x01\0\0\x3F\0abc", SQUINT_ERR_IMAGE, "cut off"),
        CASE("\xFF\xD8" JPEG_FRAME "\xFF\xDA\0\x08\x01\x01\0\0\x3F\0a\xFF", SQUINT_ERR_IMAGE, "cut off"),
        CASE("\xFF\xD8" JPEG_FRAME "\xFF\xDA\0\x08\x01\x01\0\0\x3F\0a\xFF\0\xD9", SQUINT_ERR_IMAGE, "cut off"),
        CASE("\xFF\xD8" JPEG_FRAME "\xFF\xDA\0\x08\x01\x01\0\0\x3F\0a\xFF\xFE\0\x04\xFF\xD9", SQUINT_ERR_IMAGE,
             "cut off"),
        CASE("\xFF\xD8\xFF\xC4\0\x05\0\0\0", SQUINT_ERR_IMAGE, "Huffman"),
#undef CASE
    };
    for (size_t i = 0; i < SQ_COUNT(cases); i++)
        expect_refused((const uint8_t *)cases[i].data, cases[i].n, cases[i].err, cases[i].part);
}

static void an_overlong_huffman_table_is_refused(void **state)
{
    (void)state;
    bytes b = {0};
    ADD(&b, "\xFF\xD8\xFF\xC4\x02\x13\0"); /* 512 values, all of them there */
    const uint8_t counts[16] = {[14] = 255, [15] = 255, [0] = 2};
    add(&b, counts, sizeof counts);
    const uint8_t values[512] = {0};
    add(&b, values, sizeof values);
    ADD(&b, JPEG_FRAME "\xFF\xDA\0\x08\x01\x01\0\0\x3F\0abc\xFF\xD9");
    expect_refused(b.data, b.n, SQUINT_ERR_IMAGE, "Huffman table is too long");
}

/* 64 megapixels, gone over again and again by scans of a few bytes each. */
static void endless_scans_are_refused(void **state)
{
    (void)state;
    bytes b = {0};
    ADD(&b, "\xFF\xD8\xFF\xC2\0\x0B\x08\x20\0\x20\0\x01\x01\x11\0");
    for (int i = 0; i < 200; i++)
        ADD(&b, "\xFF\xDA\0\x08\x01\x01\0\0\0\0abc");
    ADD(&b, "\xFF\xD9");
    expect_refused(b.data, b.n, SQUINT_ERR_IMAGE, "far too many scans");
}

/* Tables that no segment ever filled: the decoder reads them, and must not crash. */
static void jpeg_without_tables_does_no_harm(void **state)
{
    (void)state;
    bytes b = {0};
    ADD(&b, "\xFF\xD8" JPEG_FRAME "\xFF\xDA\0\x0C\x03\x01\0\x02\x11\x03\x22\0\x3F\0abcdefghijklmnop\xFF\xD9");
    try_damaged(b.data, b.n);
    b.data[3] = 0xC2; /* progressive */
    try_damaged(b.data, b.n);
}

/* ---- Other files ------------------------------------------------------------------------------- */

static void other_files_are_named(void **state)
{
    (void)state;
    static const struct {
        const char *data;
        size_t n;
        const char *part;
    } cases[] = {
#define CASE(literal, part) {literal, sizeof(literal) - 1, part}
        CASE("RIFF\x24\0\0\0WEBPVP8 ", "x.img is a WebP file; convert it to a common JPEG or PNG"),
        CASE("GIF89a\1\0\1\0", "a GIF file; convert"),
        CASE("\0\0\0\x18"
             "ftypheic\0\0\0\0",
             "a HEIC file; convert"),
        CASE("\0\0\0\x18"
             "ftypmif1\0\0\0\0",
             "a HEIF file; convert"),
        CASE("\0\0\0\x1C"
             "ftypavif\0\0\0\0",
             "an AVIF file; convert"),
        CASE("\0\0\0\x1C"
             "ftypisom\0\0\0\0",
             "a video"),
        CASE("II*\0\x08\0\0\0", "a TIFF"),
        CASE("MM\0*\0\0\0\x08", "a TIFF"),
        CASE("\0\0\0\x0CJXL \r\n\x87\n", "a JPEG XL file"),
        CASE("\0\0\0\x0CjP  \r\n\x87\n", "a JPEG 2000 file"),
        CASE("%PDF-1.7", "a PDF file"),
        CASE("<svg xmlns=\"http://www.w3.org/2000/svg\">", "an SVG file"),
        CASE("P3\n1 1\n255\n1 2 3\n", "PNM file of a kind other"),
        CASE("GGUF\3\0\0\0", "a model, not an image"),
        CASE("Dear diary,\nno picture today.\n", "text, not an image"),
        CASE("\xEF\xBB\xBFna\xC3\xAFve", "text, not an image"),
        CASE("\1\2\3\4\5\6\7\x08", "not an image file known here"),
        CASE("BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\x08\0\0\0\x08\0\0\0\1\0\x08\0\1\0\0\0\0\0\0\0\0\0\0\0\0\0"
             "\0\0\0\0\0\0\0\0\0\0\0\0\0",
             "run-length"),
        CASE("BM\0\0\0\0\0\0\0\0\x1A\0\0\0\x0C\0\0\0\x01\0\x01\0\x01\0\x08\0", "BMP of a rare kind"),
        CASE("\x89PNG\r\n\x1A\n\0\0\0\0CgBI\0\0\0\0", "Apple"),
#undef CASE
    };
    for (size_t i = 0; i < SQ_COUNT(cases); i++)
        expect_refused((const uint8_t *)cases[i].data, cases[i].n, SQUINT_ERR_UNSUPPORTED, cases[i].part);
    expect_refused((const uint8_t *)"", 0, SQUINT_ERR_IMAGE, "empty");
}

/* ---- Paths ------------------------------------------------------------------------------------- */

static void expect_unreadable(const char *path, const char *part)
{
    counting books = {0};
    const squint_allocator a = counting_allocator(&books);
    sq_image image;
    squint_msg msg;
    assert_int_equal(sq_image_read(&image, path, &a, &msg), SQUINT_ERR_IO);
    assert_non_null(strstr(msg.text, path));
    if (!strstr(msg.text, part)) fail_msg("'%s' lacks '%s'", msg.text, part);
    assert_null(image.rgb);
    assert_int_equal(books.calls, 0);
}

static void only_regular_files_are_read(void **state)
{
    (void)state;
    expect_unreadable("/nowhere/cat.jpg", "cannot be opened");
    expect_unreadable("/", "is a directory");
    expect_unreadable("/dev/null", "pipe or device");

    const char *path = temp_path(".jpg");
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fclose(f);
    expect_unreadable(path, "is empty");
    assert_int_equal(truncate(path, (off_t)(256 << 20) + 1), 0);
    expect_unreadable(path, "larger than");
    unlink(path);
    assert_int_equal(mkfifo(path, 0600), 0);
    expect_unreadable(path, "pipe or device"); /* at once, though nobody writes */
    unlink(path);
}

static void files_are_read_whole(void **state)
{
    (void)state;
    for (size_t i = 0; i < n_images; i++) {
        counting books = {0};
        const squint_allocator a = counting_allocator(&books);
        sq_image image;
        squint_msg msg;
        assert_int_equal(sq_image_read(&image, test_path(image_path(&images[i])), &a, &msg), SQUINT_OK);
        assert_true(pixels_match(&images[i], &image));
        release(&image, &books);

        books = (counting){.fail_at = 1}; /* the file's own buffer */
        assert_int_equal(sq_image_read(&image, test_path(image_path(&images[i])), &a, &msg), SQUINT_ERR_NOMEM);
        assert_int_equal(books.live, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decodes_as_pillow),
        cmocka_unit_test(bytes_after_the_end_do_not_matter),
        cmocka_unit_test(every_cut_is_noticed),
        cmocka_unit_test(flipped_bits_do_no_harm),
        cmocka_unit_test(damage_behind_right_checksums_does_no_harm),
        cmocka_unit_test(closed_stumps_of_jpeg_do_no_harm),
        cmocka_unit_test(damaged_checksums_are_noticed),
        cmocka_unit_test(no_memory_is_an_error_and_no_leak),
        cmocka_unit_test(impossible_sizes_are_refused_before_memory),
        cmocka_unit_test(large_pictures_need_large_files),
        cmocka_unit_test(an_inflating_png_keeps_to_its_budget),
        cmocka_unit_test(broken_jpegs_are_told_apart),
        cmocka_unit_test(an_overlong_huffman_table_is_refused),
        cmocka_unit_test(endless_scans_are_refused),
        cmocka_unit_test(jpeg_without_tables_does_no_harm),
        cmocka_unit_test(other_files_are_named),
        cmocka_unit_test(only_regular_files_are_read),
        cmocka_unit_test(files_are_read_whole),
    };
    return cmocka_run_group_tests(tests, load_images, free_images);
}
