/*
 * From an image file to the floats that a vision tower takes.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/image.h"

#include "runtime/image_check.h"
#include "runtime/resize.h"
#include "runtime/stb.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- Decode --------------------------------------------------------------------------------- */

/*
 * What decoding may take. The largest honest case is an interlaced PNG of 16 bits RGBA: 16 bytes a pixel inflated
 * (the buffer doubles), 8 for the picture, 4 for one pass. Compressed data is copied up to three times while its buffer
 * grows. JPEG works in blocks of up to 32 pixels square: hence the borders. Nothing gets more than 1 GiB; only the
 * very largest pictures of 16 bits would.
 */
static size_t budget_for(const sq_image_info *info, size_t size)
{
    const uint64_t most = UINT64_C(1) << 30, fixed = 1 << 20;
    const uint64_t pixels = ((uint64_t)info->w + 32) * ((uint64_t)info->h + 32);
    const uint64_t bytes = fixed + 4 * (uint64_t)size + 32 * pixels;
    return (size_t)(bytes < most ? bytes : most);
}

static squint_err decode_stb(sq_image *out, const sq_image_info *info, const char *name, const void *data, size_t size,
                             const squint_allocator *a, squint_msg *msg)
{
    const size_t budget = budget_for(info, size);
    switch (sq_stb_decode(out, data, size, budget, a)) {
    case SQ_STB_OK:
        if (out->w == info->w && out->h == info->h) return SQUINT_OK;
        sq_image_free(out, a);
        return sq_fail(msg, SQUINT_ERR_IMAGE, "%s is damaged: it contradicts itself about its size", name);
    case SQ_STB_BUDGET:
        return sq_fail(msg, SQUINT_ERR_IMAGE, "%s is damaged or too large: decoding it takes more than %zu MiB", name,
                       budget >> 20);
    case SQ_STB_NOMEM:
        return sq_fail(msg, SQUINT_ERR_NOMEM, "no memory to decode %s", name);
    case SQ_STB_DAMAGED:
        break;
    }
    return sq_fail(msg, SQUINT_ERR_IMAGE, "%s does not decode: it is damaged or of a rare kind", name);
}

/* As Pillow scales samples: in double, ties to even. */
static uint8_t pnm_sample(const uint8_t *p, uint32_t max_value)
{
    const uint32_t v = max_value > 255 ? (uint32_t)p[0] << 8 | p[1] : p[0];
    const double scaled = rint((double)v / max_value * 255.0);
    return (uint8_t)(scaled < 255.0 ? scaled : 255.0);
}

static squint_err decode_pnm(sq_image *out, const sq_image_info *info, const char *name, const uint8_t *data,
                             const squint_allocator *a, squint_msg *msg)
{
    const size_t n = (size_t)info->w * info->h, width = info->max_value > 255 ? 2 : 1;
    uint8_t *rgb = sq_alloc(a, 3 * n);
    if (!rgb) return sq_fail(msg, SQUINT_ERR_NOMEM, "no memory to decode %s", name);
    *out = (sq_image){.rgb = rgb, .w = info->w, .h = info->h, .bytes = 3 * n};
    const uint8_t *p = data + info->pixels_at;
    for (size_t i = 0; i < n; i++, p += width * info->channels)
        for (uint32_t c = 0; c < 3; c++)
            *rgb++ = pnm_sample(p + (info->channels == 3 ? width * c : 0), info->max_value);
    return SQUINT_OK;
}

squint_err sq_image_decode(sq_image *out, const char *name, const void *data, size_t size, const squint_allocator *a,
                           squint_msg *msg)
{
    *out = (sq_image){0};
    sq_image_info info;
    const squint_err err = sq_image_check(&info, name, data, size, msg);
    if (err) return err;
    if (info.kind == SQ_IMAGE_PNM) return decode_pnm(out, &info, name, data, a, msg);
    return decode_stb(out, &info, name, data, size, a, msg);
}

void sq_image_free(sq_image *image, const squint_allocator *a)
{
    sq_free(a, image->rgb, image->bytes);
    *image = (sq_image){0};
}

/* ---- Files ---------------------------------------------------------------------------------- */

enum { FILE_MOST = 256 << 20 };

static squint_err io_failure(const char *path, const char *what, int error, squint_msg *msg)
{
    char why[128];
    return sq_fail(msg, SQUINT_ERR_IO, "%s cannot be %s: %s", path, what, sq_errno_text(error, why, sizeof why));
}

static squint_err file_size(int fd, const char *path, size_t *size, squint_msg *msg)
{
    struct stat st;
    if (fstat(fd, &st)) return io_failure(path, "read", errno, msg);
    if (S_ISDIR(st.st_mode)) return sq_fail(msg, SQUINT_ERR_IO, "%s is a directory, not an image file", path);
    if (!S_ISREG(st.st_mode)) return sq_fail(msg, SQUINT_ERR_IO, "%s is a pipe or device, not an image file", path);
    if (!st.st_size) return sq_fail(msg, SQUINT_ERR_IO, "%s is empty", path);
    if (st.st_size > FILE_MOST)
        return sq_fail(msg, SQUINT_ERR_IO, "%s is larger than the %d MiB that an image file may be", path,
                       FILE_MOST >> 20);
    *size = (size_t)st.st_size;
    return SQUINT_OK;
}

static squint_err read_all(int fd, const char *path, uint8_t *data, size_t size, squint_msg *msg)
{
    for (size_t done = 0; done < size;) {
        const ssize_t n = read(fd, data + done, size - done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return io_failure(path, "read", errno, msg);
        if (!n) return sq_fail(msg, SQUINT_ERR_IO, "%s became shorter while it was read", path);
        done += (size_t)n;
    }
    return SQUINT_OK;
}

static squint_err read_and_decode(sq_image *out, int fd, const char *path, const squint_allocator *a, squint_msg *msg)
{
    size_t size = 0;
    squint_err err = file_size(fd, path, &size, msg);
    if (err) return err;
    uint8_t *data = sq_alloc(a, size);
    if (!data) return sq_fail(msg, SQUINT_ERR_NOMEM, "no memory to read %s: %zu bytes", path, size);
    err = read_all(fd, path, data, size, msg);
    if (!err) err = sq_image_decode(out, path, data, size, a, msg);
    sq_free(a, data, size);
    return err;
}

squint_err sq_image_read(sq_image *out, const char *path, const squint_allocator *a, squint_msg *msg)
{
    *out = (sq_image){0};
    /* Without O_NONBLOCK a named pipe would wait here for a writer. */
    const int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) return io_failure(path, "opened", errno, msg);
    const squint_err err = read_and_decode(out, fd, path, a, msg);
    close(fd);
    return err;
}

/* ---- Fit and normalise ---------------------------------------------------------------------- */

/* One side of the picture in the square, and its other side. */
static sq_axis fit_axis(sq_fit fit, uint32_t size, uint32_t side, uint32_t other)
{
    sq_axis axis = {.in = side, .out = size, .pixels = side, .n = size};
    if (fit == SQ_FIT_PAD && other > side) {
        axis.in = other;
        axis.border = (other - side) / 2;
    }
    if (fit == SQ_FIT_CROP && other < side) {
        axis.out = (uint32_t)((uint64_t)size * side / other); /* below 2^30 */
        axis.first = (axis.out - size) / 2;
    }
    return axis;
}

void sq_image_values(const sq_image_rule *rule, float values[3][256])
{
    for (size_t c = 0; c < 3; c++)
        for (int v = 0; v < 256; v++)
            values[c][v] = ((float)v / 255.0f - rule->mean[c]) / rule->std[c];
}

static void normalise(const uint8_t *rgb, const sq_image_rule *rule, float *out)
{
    const size_t n = (size_t)rule->size * rule->size;
    float values[3][256];
    sq_image_values(rule, values);
    for (size_t c = 0; c < 3; c++)
        for (size_t i = 0; i < n; i++)
            out[c * n + i] = values[c][rgb[3 * i + c]];
}

static squint_err check_rule(uint32_t w, uint32_t h, size_t stride, const sq_image_rule *rule, squint_msg *msg)
{
    if (w < 1 || h < 1 || w > SQ_IMAGE_MAX_SIDE || h > SQ_IMAGE_MAX_SIDE)
        return sq_fail(msg, SQUINT_ERR_ARGUMENT, "a picture of %ux%u pixels: sides are 1 to %d", w, h,
                       SQ_IMAGE_MAX_SIDE);
    if (stride / 3 < w)
        return sq_fail(msg, SQUINT_ERR_ARGUMENT, "a stride of %zu bytes is less than 3 * %u", stride, w);
    if (rule->size < 1 || rule->size > SQ_IMAGE_MAX_SIDE)
        return sq_fail(msg, SQUINT_ERR_ARGUMENT, "an input square of %u pixels: 1 to %d are possible", rule->size,
                       SQ_IMAGE_MAX_SIDE);
    for (int c = 0; c < 3; c++)
        if (!isfinite(rule->mean[c]) || !isfinite(rule->std[c]) || !(rule->std[c] > 0.0f))
            return sq_fail(msg, SQUINT_ERR_ARGUMENT, "image mean %g and deviation %g: finite and above 0, please",
                           (double)rule->mean[c], (double)rule->std[c]);
    return SQUINT_OK;
}

squint_err sq_image_prepare(const uint8_t *rgb, uint32_t w, uint32_t h, size_t stride, const sq_image_rule *rule,
                            float *out, const squint_allocator *a, squint_msg *msg)
{
    squint_err err = check_rule(w, h, stride, rule, msg);
    if (err) return err;
    const sq_axis x = fit_axis(rule->fit, rule->size, w, h), y = fit_axis(rule->fit, rule->size, h, w);
    const size_t bytes = 3 * (size_t)rule->size * rule->size; /* at most 3 * 2^30 */
    uint8_t *square = sq_alloc(a, bytes);
    if (!square) return sq_fail(msg, SQUINT_ERR_NOMEM, "no memory to resize an image: %zu bytes", bytes);
    err = sq_resample(rgb, stride, &x, &y, rule->pad_color, square, a, msg);
    if (!err) normalise(square, rule, out);
    sq_free(a, square, bytes);
    return err;
}

static void axis_view(const sq_axis *axis, double *start, double *length)
{
    const double scale = (double)axis->in / axis->out;
    *start = axis->first * scale - axis->border;
    *length = axis->n * scale;
}

void sq_image_view(const sq_image_rule *rule, uint32_t w, uint32_t h, double *x, double *y, double *view_w,
                   double *view_h)
{
    const sq_axis across = fit_axis(rule->fit, rule->size, w, h), down = fit_axis(rule->fit, rule->size, h, w);
    axis_view(&across, x, view_w);
    axis_view(&down, y, view_h);
}
