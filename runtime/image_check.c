/*
 * Walks through JPEG, PNG, BMP and PNM files, and knows others by their first bytes.
 * SPDX-License-Identifier: MIT
 *
 * One file is read by one check; `pos` never passes `size`, and each length is compared with what is left before it
 * is used.
 */
#include "runtime/image_check.h"

#include "runtime/image.h"

#include <string.h>

typedef struct check {
    const uint8_t *data;
    size_t size, pos;
    sq_image_info *info;
    const char *name;
    squint_msg *msg;
} check;

static squint_err damaged(const check *c, const char *what)
{
    return sq_fail(c->msg, SQUINT_ERR_IMAGE, "%s is damaged: %s (at byte %zu)", c->name, what, c->pos);
}

static squint_err cut_off(const check *c)
{
    return sq_fail(c->msg, SQUINT_ERR_IMAGE, "%s is cut off: its %zu bytes end before the picture does", c->name,
                   c->size);
}

static squint_err unsupported(const check *c, const char *what)
{
    return sq_fail(c->msg, SQUINT_ERR_UNSUPPORTED, "%s is %s; convert it to a common JPEG or PNG", c->name, what);
}

static size_t left(const check *c) { return c->size - c->pos; }
static uint32_t be16(const uint8_t *p) { return (uint32_t)p[0] << 8 | p[1]; }
static uint32_t be32(const uint8_t *p) { return be16(p) << 16 | be16(p + 2); }
static uint32_t le16(const uint8_t *p) { return p[0] | (uint32_t)p[1] << 8; }
static uint32_t le32(const uint8_t *p) { return le16(p) | le16(p + 2) << 16; }

static squint_err set_size(const check *c, uint64_t w, uint64_t h)
{
    if (!w || !h) return damaged(c, "a side of its picture is 0 pixels");
    if (w > SQ_IMAGE_MAX_SIDE || h > SQ_IMAGE_MAX_SIDE || w * h > SQ_IMAGE_MAX_PIXELS)
        return sq_fail(c->msg, SQUINT_ERR_IMAGE,
                       "%s is %llux%llu pixels; at most %d a side and %d megapixels (2^20) are read", c->name,
                       (unsigned long long)w, (unsigned long long)h, SQ_IMAGE_MAX_SIDE, SQ_IMAGE_MAX_PIXELS >> 20);
    c->info->w = (uint32_t)w;
    c->info->h = (uint32_t)h;
    return SQUINT_OK;
}

/* ---- JPEG (ITU-T T.81) ---------------------------------------------------------------------- */

enum {
    JPEG_SOI = 0xD8,
    JPEG_EOI = 0xD9,
    JPEG_SOF0 = 0xC0,
    JPEG_SOF2 = 0xC2,
    JPEG_DHT = 0xC4,
    JPEG_EXTENSION = 0xC8, /* between the frame headers, and not one */
    JPEG_DAC = 0xCC,
    JPEG_SOF15 = 0xCF,
    JPEG_RST0 = 0xD0,
    JPEG_SOS = 0xDA,
    JPEG_TEM = 0x01,
};

/* A progressive file may go over its blocks as often as it likes. Honest ones do so some 10 times; this allows 42
 * times for 64 megapixels without subsampling, and more for all others. */
enum { JPEG_MAX_BLOCK_VISITS = 1 << 27 };

typedef struct jpeg {
    check *c;
    uint32_t n_components; /* 0 before the frame header */
    uint8_t id[4], h[4], v[4];
    unsigned seen;           /* components that a scan held, bit by bit */
    uint64_t blocks, visits; /* 8x8 blocks of the picture; the same times scans */
    uint64_t loose_bytes;    /* between segments: the scans' data */
} jpeg;

/* The next marker, after a scan's data (where FF is followed by 0) or padding; 0 at the end of the file. */
static uint8_t next_marker(check *c)
{
    while (left(c)) {
        if (c->data[c->pos++] != 0xFF) continue;
        while (left(c) && c->data[c->pos] == 0xFF)
            c->pos++;
        if (left(c) && c->data[c->pos++] != 0) return c->data[c->pos - 1];
    }
    return 0;
}

static uint64_t blocks_across(uint32_t pixels, uint32_t sampling, uint32_t most)
{
    const uint64_t samples = ((uint64_t)pixels * sampling + most - 1) / most;
    return (samples + 7) / 8;
}

static void count_blocks(jpeg *j)
{
    uint32_t h = 1, v = 1;
    for (uint32_t i = 0; i < j->n_components; i++) {
        if (j->h[i] > h) h = j->h[i];
        if (j->v[i] > v) v = j->v[i];
    }
    for (uint32_t i = 0; i < j->n_components; i++)
        j->blocks += blocks_across(j->c->info->w, j->h[i], h) * blocks_across(j->c->info->h, j->v[i], v);
}

static squint_err jpeg_frame(jpeg *j, uint8_t marker, const uint8_t *p, size_t n)
{
    check *c = j->c;
    if (marker > JPEG_SOF2) return unsupported(c, "a lossless, hierarchical or arithmetic-coded JPEG");
    if (j->n_components) return damaged(c, "a second frame header");
    if (n < 6 || n != 6 + 3 * (size_t)p[5]) return damaged(c, "a frame header of the wrong length");
    if (p[0] != 8) return unsupported(c, "a JPEG of more than 8 bits a channel");
    if (!be16(p + 1)) return unsupported(c, "a JPEG that tells its height late");
    if (p[5] != 1 && p[5] != 3 && p[5] != 4) return unsupported(c, "a JPEG of an unusual number of channels");
    const squint_err err = set_size(c, be16(p + 3), be16(p + 1));
    if (err) return err;
    j->n_components = p[5];
    for (uint32_t i = 0; i < j->n_components; i++) {
        const uint8_t *component = p + 6 + 3 * i;
        j->id[i] = component[0];
        j->h[i] = component[1] >> 4;
        j->v[i] = component[1] & 15;
        if (!j->h[i] || j->h[i] > 4 || !j->v[i] || j->v[i] > 4) return damaged(c, "a sampling factor out of range");
    }
    count_blocks(j);
    return SQUINT_OK;
}

/* Decoders keep 256 values a table; a longer list would be written past its end. */
static squint_err jpeg_huffman(const check *c, const uint8_t *p, size_t n)
{
    while (n) {
        if (n < 17) return damaged(c, "a Huffman table is cut off");
        size_t values = 0;
        for (int i = 1; i <= 16; i++)
            values += p[i];
        if (values > 256 || values > n - 17) return damaged(c, "a Huffman table is too long");
        p += 17 + values;
        n -= 17 + values;
    }
    return SQUINT_OK;
}

static squint_err jpeg_scan(jpeg *j, const uint8_t *p, size_t n)
{
    check *c = j->c;
    if (!j->n_components) return damaged(c, "a scan before the frame header");
    if (n < 4 || n != 4 + 2 * (size_t)p[0]) return damaged(c, "a scan header of the wrong length");
    for (uint32_t k = 0; k < p[0]; k++)
        for (uint32_t i = 0; i < j->n_components; i++)
            if (p[1 + 2 * k] == j->id[i]) j->seen |= 1u << i;
    j->visits += j->blocks;
    if (j->visits > JPEG_MAX_BLOCK_VISITS) return damaged(c, "it has far too many scans");
    return SQUINT_OK;
}

static squint_err jpeg_segment(jpeg *j, uint8_t marker)
{
    check *c = j->c;
    if (left(c) < 2) return cut_off(c);
    const size_t length = be16(c->data + c->pos);
    if (length < 2) return damaged(c, "a segment of the wrong length");
    if (length > left(c)) return cut_off(c);
    const uint8_t *p = c->data + c->pos + 2;
    c->pos += length;

    if (marker == JPEG_DHT) return jpeg_huffman(c, p, length - 2);
    if (marker == JPEG_SOS) return jpeg_scan(j, p, length - 2);
    if (marker >= JPEG_SOF0 && marker <= JPEG_SOF15 && marker != JPEG_EXTENSION && marker != JPEG_DAC)
        return jpeg_frame(j, marker, p, length - 2);
    return SQUINT_OK;
}

static squint_err check_jpeg(check *c)
{
    jpeg j = {.c = c};
    c->pos = 2;
    for (;;) {
        const size_t start = c->pos;
        const uint8_t marker = next_marker(c);
        j.loose_bytes += c->pos - start;
        if (!marker) return cut_off(c);
        if (marker == JPEG_EOI) break;
        if (marker == JPEG_TEM || (marker >= JPEG_RST0 && marker <= JPEG_SOI)) continue;
        const squint_err err = jpeg_segment(&j, marker);
        if (err) return err;
    }
    if (!j.n_components || j.seen != (1u << j.n_components) - 1) return damaged(c, "a channel has no data");
    /* No code is shorter than a bit, and each block has one at least. */
    if (j.loose_bytes < j.blocks / 8) return damaged(c, "too little data for a picture of its size");
    return SQUINT_OK;
}

/* ---- PNG (ISO/IEC 15948) -------------------------------------------------------------------- */

enum {
    PNG_HEADER = 13,    /* bytes in IHDR */
    PNG_AROUND = 12,    /* bytes of a chunk besides its data: length, type, CRC */
    DEFLATE_MOST = 1032 /* bytes that one byte can stand for */
};

/* CRC-32 as in zlib, four bits at a time. */
static uint32_t crc32(const uint8_t *p, size_t n)
{
    static const uint32_t table[16] = {0x00000000, 0x1DB71064, 0x3B6E20C8, 0x26D930AC, 0x76DC4190, 0x6B6B51F4,
                                       0x4DB26158, 0x5005713C, 0xEDB88320, 0xF00F9344, 0xD6D6A3E8, 0xCB61B38C,
                                       0x9B64C2B0, 0x86D3D2D4, 0xA00AE278, 0xBDBDF21C};
    uint32_t crc = 0xFFFFFFFF;
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        crc = crc >> 4 ^ table[crc & 15];
        crc = crc >> 4 ^ table[crc & 15];
    }
    return ~crc;
}

/* Bytes of the picture before compression, interlacing aside; 0 for a type or depth that does not exist. */
static uint64_t png_raw_bytes(uint64_t w, uint64_t h, unsigned depth, unsigned type)
{
    static const uint8_t channels[7] = {1, 0, 3, 1, 2, 0, 4}; /* by type: grey, RGB, palette, grey + A, RGB + A */
    if (type >= SQ_COUNT(channels) || !depth || depth > 16 || (depth & (depth - 1))) return 0;
    return h * (1 + (w * channels[type] * depth + 7) / 8) * (channels[type] > 0);
}

static squint_err png_header(check *c, const uint8_t *p, size_t n, uint64_t *raw)
{
    if (*raw || n != PNG_HEADER) return damaged(c, "a header where none belongs");
    const squint_err err = set_size(c, be32(p), be32(p + 4));
    if (err) return err;
    *raw = png_raw_bytes(c->info->w, c->info->h, p[8], p[9]);
    return *raw ? SQUINT_OK : damaged(c, "no such colour type and depth");
}

static squint_err check_png(check *c)
{
    uint64_t raw = 0, packed = 0;
    for (c->pos = 8;;) {
        if (left(c) < PNG_AROUND) return cut_off(c);
        const uint8_t *chunk = c->data + c->pos, *type = chunk + 4, *p = chunk + 8;
        const size_t n = be32(chunk);
        if (n > left(c) - PNG_AROUND) return cut_off(c);
        if (!memcmp(type, "CgBI", 4)) return unsupported(c, "a PNG in Apple's private format");
        /* A capital first letter marks the chunks that make the picture. */
        if (!(type[0] & 0x20) && crc32(type, 4 + n) != be32(p + n)) return damaged(c, "a checksum is wrong");
        c->pos += PNG_AROUND + n;

        if (!memcmp(type, "IHDR", 4)) {
            const squint_err err = png_header(c, p, n, &raw);
            if (err) return err;
        } else if (!raw) {
            return damaged(c, "it does not begin with a header");
        }
        if (!memcmp(type, "IDAT", 4)) packed += n;
        if (!memcmp(type, "IEND", 4)) break;
    }
    if (packed < raw / DEFLATE_MOST) return damaged(c, "too little data for a picture of its size");
    return SQUINT_OK;
}

/* ---- BMP ------------------------------------------------------------------------------------ */

enum {
    BMP_FILE_HEADER = 14,
    BMP_OLD_HEADER = 12, /* OS/2 1.x */
    BMP_INFO_HEADER = 40,
};

static bool is_bmp_depth(uint32_t bits)
{
    return bits == 1 || bits == 4 || bits == 8 || bits == 16 || bits == 24 || bits == 32;
}

static squint_err check_bmp(check *c)
{
    const uint8_t *p = c->data;
    if (c->size < BMP_FILE_HEADER + BMP_OLD_HEADER) return cut_off(c);
    const size_t pixels_at = le32(p + 10), header = le32(p + 14);
    const bool old = header == BMP_OLD_HEADER;
    if (!old && c->size < BMP_FILE_HEADER + BMP_INFO_HEADER) return cut_off(c);

    const uint64_t w = old ? le16(p + 18) : le32(p + 18);
    const uint64_t rows = old ? le16(p + 20) : le32(p + 22); /* two's complement: negative is top to bottom */
    const uint32_t bits = le16(p + (old ? 24 : 28)), packing = old ? 0 : le32(p + 30);
    if ((!old && header < BMP_INFO_HEADER) || !is_bmp_depth(bits) || packing > 3 || (old && bits < 24))
        return unsupported(c, "a BMP of a rare kind");
    if (packing == 1 || packing == 2) return unsupported(c, "a run-length coded BMP");
    const squint_err err = set_size(c, w, rows >> 31 ? (UINT64_C(1) << 32) - rows : rows);
    if (err) return err;

    const uint64_t row = w * bits / 8 + (w * bits % 8 > 0), step = (row + 3) / 4 * 4;
    if (pixels_at < BMP_FILE_HEADER + header) return damaged(c, "its pixels begin inside its header");
    /* The last row's padding is often left out. */
    if (pixels_at > c->size || c->size - pixels_at < step * (c->info->h - 1) + row) return cut_off(c);
    return SQUINT_OK;
}

/* ---- PNM (netpbm's P5 and P6) --------------------------------------------------------------- */

static bool is_space(uint8_t ch) { return ch == ' ' || (ch >= '\t' && ch <= '\r'); }

static void skip_space(check *c)
{
    bool comment = false;
    for (; left(c); c->pos++) {
        const uint8_t ch = c->data[c->pos];
        if (ch == '#')
            comment = true;
        else if (ch == '\n' || ch == '\r')
            comment = false;
        else if (!comment && !is_space(ch))
            return;
    }
}

/* A number and the one character after it; the pixels may begin right there. */
static bool read_number(check *c, uint32_t *out)
{
    skip_space(c);
    const size_t start = c->pos;
    uint32_t value = 0;
    for (; left(c) && c->data[c->pos] >= '0' && c->data[c->pos] <= '9'; c->pos++) {
        if (c->pos - start == 9) return false;
        value = 10 * value + (c->data[c->pos] - '0');
    }
    *out = value;
    return c->pos > start && left(c) && is_space(c->data[c->pos++]);
}

static squint_err check_pnm(check *c)
{
    sq_image_info *info = c->info;
    uint32_t w, h;
    c->pos = 2;
    if (!read_number(c, &w) || !read_number(c, &h) || !read_number(c, &info->max_value))
        return left(c) ? damaged(c, "a number is missing from its header") : cut_off(c);
    if (info->max_value < 1 || info->max_value > 65535) return damaged(c, "its largest value is not 1 to 65535");
    const squint_err err = set_size(c, w, h);
    if (err) return err;
    info->channels = c->data[1] == '6' ? 3 : 1;
    info->pixels_at = c->pos;
    const uint64_t sample = info->max_value > 255 ? 2 : 1;
    return left(c) < sample * info->channels * w * h ? cut_off(c) : SQUINT_OK;
}

/* ---- What is it? ---------------------------------------------------------------------------- */

typedef struct magic {
    const char *bytes;
    uint8_t at, n;
    const char *what;
} magic;

static const magic other_files[] = {
    {"GIF8", 0, 4, "a GIF file"},
    {"WEBP", 8, 4, "a WebP file"},
    {"ftypheic", 4, 8, "a HEIC file"},
    {"ftypheix", 4, 8, "a HEIC file"},
    {"ftypheim", 4, 8, "a HEIC file"},
    {"ftypheis", 4, 8, "a HEIC file"},
    {"ftyphevc", 4, 8, "a HEIC file"},
    {"ftypmif1", 4, 8, "a HEIF file"},
    {"ftypmsf1", 4, 8, "a HEIF file"},
    {"ftypavif", 4, 8, "an AVIF file"},
    {"ftypavis", 4, 8, "an AVIF file"},
    {"ftyp", 4, 4, "a video"},
    {"II*\0", 0, 4, "a TIFF or camera raw file"},
    {"MM\0*", 0, 4, "a TIFF or camera raw file"},
    {"II+\0", 0, 4, "a BigTIFF file"},
    {"MM\0+", 0, 4, "a BigTIFF file"},
    {"\0\0\0\x0CJXL ", 0, 8, "a JPEG XL file"},
    {"\xFF\x0A", 0, 2, "a JPEG XL file"},
    {"\0\0\0\x0CjP  ", 0, 8, "a JPEG 2000 file"},
    {"\xFF\x4F\xFF\x51", 0, 4, "a JPEG 2000 file"},
    {"\0\0\1\0", 0, 4, "an icon file"},
    {"8BPS", 0, 4, "a Photoshop file"},
    {"qoif", 0, 4, "a QOI file"},
    {"\x76\x2F\x31\x01", 0, 4, "an OpenEXR file"},
    {"#?RADIANCE", 0, 10, "a Radiance HDR file"},
    {"DDS ", 0, 4, "a DDS file"},
    {"%PDF", 0, 4, "a PDF file"},
    {"<svg", 0, 4, "an SVG file"},
    {"<?xml", 0, 5, "an XML or SVG file"},
};

static bool starts(const check *c, const char *bytes, size_t at, size_t n)
{
    return c->size >= at + n && !memcmp(c->data + at, bytes, n);
}

static bool is_pnm(const check *c, char digit)
{
    return c->size >= 3 && c->data[0] == 'P' && c->data[1] == digit && (is_space(c->data[2]) || c->data[2] == '#');
}

static bool is_text(const check *c)
{
    for (size_t i = 0; i < c->size && i < 256; i++)
        if (c->data[i] == 0x7F || (c->data[i] < 0x20 && !is_space(c->data[i]))) return false;
    return true;
}

static squint_err name_other(const check *c)
{
    for (size_t i = 0; i < SQ_COUNT(other_files); i++)
        if (starts(c, other_files[i].bytes, other_files[i].at, other_files[i].n))
            return unsupported(c, other_files[i].what);
    if (is_pnm(c, '1') || is_pnm(c, '2') || is_pnm(c, '3') || is_pnm(c, '4') || is_pnm(c, '7'))
        return unsupported(c, "a PNM file of a kind other than P5 and P6");
    return sq_fail(c->msg, SQUINT_ERR_UNSUPPORTED, "%s is %s; squint reads JPEG, PNG, BMP and PNM", c->name,
                   starts(c, "GGUF", 0, 4) ? "a model, not an image"
                   : is_text(c)            ? "text, not an image"
                                           : "not an image file known here");
}

squint_err sq_image_check(sq_image_info *out, const char *name, const uint8_t *data, size_t size, squint_msg *msg)
{
    check c = {.data = data, .size = size, .info = out, .name = name, .msg = msg};
    *out = (sq_image_info){0};
    if (!size) return sq_fail(msg, SQUINT_ERR_IMAGE, "%s is empty", name);
    if (starts(&c, "\xFF\xD8\xFF", 0, 3)) {
        out->kind = SQ_IMAGE_JPEG;
        return check_jpeg(&c);
    }
    if (starts(&c, "\x89PNG\r\n\x1A\n", 0, 8)) {
        out->kind = SQ_IMAGE_PNG;
        return check_png(&c);
    }
    if (starts(&c, "BM", 0, 2)) {
        out->kind = SQ_IMAGE_BMP;
        return check_bmp(&c);
    }
    if (is_pnm(&c, '5') || is_pnm(&c, '6')) {
        out->kind = SQ_IMAGE_PNM;
        return check_pnm(&c);
    }
    return name_other(&c);
}
