/*
 * panels: weights on their way from the layout of quant/quant.h to those of the device: what gemm.cu multiplies, or
 * floats for cuBLAS. Some panels at a time go to the device as they lie, where a kernel moves them to their places.
 * SPDX-License-Identifier: MIT
 */
#include "simd/cuda/gemm.cuh"

enum { THREADS = 256, LINE = 64, AT_A_TIME = 32 << 20 /* bytes */ };

/* Some panels on the device and where they go. */
struct panels_args {
    const uint8_t *panels; /* as they lie in the program's memory, from panel0 on */
    size_t panel_bytes, weight_bytes;
    uint32_t panel0, n_panels, n, k, group;
    bool i4;
    uint32_t n_pairs, n_groups;
    void *weights, *scales; /* all of the matrix */
};

/* ---- Of a panel -------------------------------------------------------------------------- */

SQ_DEVICE uint32_t load_u32(const uint8_t *at)
{
    uint32_t v;
    memcpy(&v, at, sizeof v);
    return v;
}

/* Weights k to k + 3 of a channel, a signed byte each; 0 past the panel's end. k is a multiple of 4. */
SQ_DEVICE uint32_t four_weights(const panels_args *a, const uint8_t *panel, uint32_t k, uint32_t c)
{
    const size_t line = k / (a->i4 ? 8 : 4);
    if (line * LINE >= a->weight_bytes) return 0;
    const uint32_t u = load_u32(panel + line * LINE + c * 4);
    if (!a->i4) return u ^ 0x80808080u;
    /* A nibble n of 0 to 15 is weight n - 8: n + 0x78 in a byte, but for the highest bit */
    return ((u >> (k & 4) & 0x0f0f0f0fu) + 0x78787878u) ^ 0x80808080u;
}

SQ_DEVICE float scale_of(const panels_args *a, const uint8_t *panel, uint32_t g, uint32_t c)
{
    const uint8_t *const scales = panel + a->weight_bytes;
    if (!a->group) return sq_float_of_bits(load_u32(scales + c * 4));
    uint16_t bits;
    memcpy(&bits, scales + ((size_t)g * SQ_PANEL_N + c) * sizeof bits, sizeof bits);
    return sq_half_to_float(bits);
}

/* ---- Tiles ------------------------------------------------------------------------------- */

/* A thread has a lane's words of a pair. */
static __global__ void __launch_bounds__(THREADS) tiles_kernel(const panels_args a)
{
    const size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x, pair = i / SQ_WARP;
    const uint32_t lane = i % SQ_WARP, block = (uint32_t)(pair / a.n_pairs);
    if (block >= a.n_panels * (SQ_PANEL_N / SQ_ROW_BLOCK)) return;
    const uint8_t *const panel = a.panels + block / 2 * a.panel_bytes;
    const uint32_t c = block % 2 * SQ_ROW_BLOCK + lane / 4, k = (uint32_t)(pair % a.n_pairs) * SQ_PAIR + lane % 4 * 4;
    uint32_t words[4];
    for (int w = 0; w < 4; w++)
        words[w] = four_weights(&a, panel, k + 16 * w, c);
    const size_t to = (size_t)a.panel0 * (SQ_PANEL_N / SQ_ROW_BLOCK) * a.n_pairs * SQ_WARP + i;
    if (a.i4) {
        const uint32_t low = 0x0f0f0f0fu;
        ((uint2 *)a.weights)[to] =
            make_uint2((words[0] & low) | (words[1] & low) << 4, (words[2] & low) | (words[3] & low) << 4);
    } else {
        ((uint4 *)a.weights)[to] = make_uint4(words[0], words[1], words[2], words[3]);
    }
}

/* A thread has a scale; the file's bits, also where they are no number. */
static __global__ void __launch_bounds__(THREADS) scales_kernel(const panels_args a)
{
    const size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    const uint32_t rows = a.group ? a.n_groups : 1;
    const uint32_t c = i % SQ_PANEL_N, g = (uint32_t)(i / SQ_PANEL_N % rows);
    const size_t p = i / SQ_PANEL_N / rows;
    if (p >= a.n_panels) return;
    const uint8_t *const scales = a.panels + p * a.panel_bytes + a.weight_bytes;
    const uint32_t channel = (uint32_t)(a.panel0 + p) * SQ_PANEL_N + c;
    if (a.group)
        memcpy((uint16_t *)a.scales + sq_scale_at(channel, g, a.n_groups), scales + ((size_t)g * SQ_PANEL_N + c) * 2,
               2);
    else
        memcpy((float *)a.scales + channel, scales + (size_t)c * 4, 4);
}

/* ---- Floats ------------------------------------------------------------------------------ */

/* A thread has a weight: the float that sq_panels_row() makes of it, or its binary16. */
template <bool HALF> static __global__ void __launch_bounds__(THREADS) floats_kernel(const panels_args a)
{
    const size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    const uint32_t k = (uint32_t)(i % a.k);
    const size_t row = i / a.k, channel = (size_t)a.panel0 * SQ_PANEL_N + row;
    if (row >= (size_t)a.n_panels * SQ_PANEL_N || channel >= a.n) return;
    const uint8_t *const panel = a.panels + row / SQ_PANEL_N * a.panel_bytes;
    const uint32_t c = (uint32_t)(row % SQ_PANEL_N);
    const int q = (int8_t)(four_weights(&a, panel, k & ~3u, c) >> (k % 4 * 8));
    const float w = (float)q * scale_of(&a, panel, a.group ? k / a.group : 0, c);
    if (HALF)
        ((uint16_t *)a.weights)[channel * a.k + k] = sq_float_to_half(w);
    else
        ((float *)a.weights)[channel * a.k + k] = w;
}

struct halves_args {
    const float *from;
    uint16_t *to;
    size_t n;
};

static __global__ void __launch_bounds__(THREADS) halves_kernel(const halves_args a)
{
    const size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < a.n) a.to[i] = sq_float_to_half(a.from[i]);
}

/* ---- Copies ------------------------------------------------------------------------------ */

/* Threads for n things are at most 2^26 here, those of AT_A_TIME bytes of nibbles. */
static uint32_t blocks_for(size_t n) { return sq_ceil_div(n, THREADS); }

static panels_args args_of(const sq_panels *w)
{
    panels_args a;
    memset(&a, 0, sizeof a);
    a.panel_bytes = sq_panel_bytes(w);
    a.weight_bytes = sq_panel_weight_bytes(w);
    a.n = w->n;
    a.k = w->k;
    a.group = w->group;
    a.i4 = w->type == SQ_PANEL_I4;
    a.n_pairs = sq_pairs(w->k);
    a.n_groups = sq_groups(w->k, sq_panels_act_group(w));
    return a;
}

typedef void part_fn(sq_stream *uploader, const panels_args *a);

/* Sends all panels of w to the device, some at a time, and runs `part` on each time's. */
static void for_panels(sq_stream *uploader, const sq_panels *w, panels_args *a, part_fn *part)
{
    const uint32_t count = (uint32_t)sq_panel_count(w), each = (uint32_t)(AT_A_TIME / a->panel_bytes);
    uint8_t *const memory = (uint8_t *)sq_cuda_scratch(uploader, SQ_SLOT_PANELS, AT_A_TIME);
    if (!memory) return;
    a->panels = memory;
    for (a->panel0 = 0; a->panel0 < count; a->panel0 += each) {
        a->n_panels = count - a->panel0 < each ? count - a->panel0 : each;
        sq_cuda_write(uploader, memory, w->data + a->panel0 * a->panel_bytes, a->n_panels * a->panel_bytes);
        part(uploader, a);
    }
}

static size_t tiles_bytes(const sq_panels *w)
{
    const size_t bytes = sq_panel_count(w) * SQ_PANEL_N * sq_pairs(w->k) * SQ_PAIR;
    return w->type == SQ_PANEL_I4 ? bytes / 2 : bytes; /* a multiple of 256 */
}

static size_t scales_bytes(const sq_panels *w)
{
    const size_t channels = sq_panel_count(w) * SQ_PANEL_N;
    return w->group ? channels * sq_groups(w->k, w->group) * sizeof(uint16_t) : channels * sizeof(float);
}

static void tiles_part(sq_stream *uploader, const panels_args *a)
{
    const size_t channels = (size_t)a->n_panels * SQ_PANEL_N;
    const panels_args args = *a;
    SQ_LAUNCH(uploader, tiles_kernel, blocks_for(channels / SQ_ROW_BLOCK * a->n_pairs * SQ_WARP), THREADS, args);
    SQ_LAUNCH(uploader, scales_kernel, blocks_for(channels * (a->group ? a->n_groups : 1)), THREADS, args);
}

static void fill_tiles(sq_stream *uploader, const void *ctx, void *copy)
{
    const sq_panels *const w = (const sq_panels *)ctx;
    panels_args a = args_of(w);
    a.weights = copy;
    a.scales = (uint8_t *)copy + tiles_bytes(w);
    for_panels(uploader, w, &a, tiles_part);
}

bool sq_cuda_tiles(sq_stream *s, const sq_panels *w, sq_tiles *out)
{
    const size_t bytes = tiles_bytes(w);
    out->weights = sq_cuda_upload(s, w->data, SQ_FORM_TILES, bytes + scales_bytes(w), fill_tiles, w);
    out->scales = (const uint8_t *)out->weights + bytes;
    return out->weights;
}

static void f32_part(sq_stream *uploader, const panels_args *a)
{
    const panels_args args = *a;
    SQ_LAUNCH(uploader, floats_kernel<false>, blocks_for((size_t)a->n_panels * SQ_PANEL_N * a->k), THREADS, args);
}

static void f16_part(sq_stream *uploader, const panels_args *a)
{
    const panels_args args = *a;
    SQ_LAUNCH(uploader, floats_kernel<true>, blocks_for((size_t)a->n_panels * SQ_PANEL_N * a->k), THREADS, args);
}

static void fill_expanded(sq_stream *uploader, const sq_panels *w, void *copy, part_fn *part)
{
    panels_args a = args_of(w);
    a.weights = copy;
    for_panels(uploader, w, &a, part);
}

static void fill_f32(sq_stream *uploader, const void *ctx, void *copy)
{
    fill_expanded(uploader, &((const sq_mat *)ctx)->panels, copy, f32_part);
}

static void fill_f16(sq_stream *uploader, const void *ctx, void *copy)
{
    const sq_mat *const w = (const sq_mat *)ctx;
    if (!w->f32) {
        fill_expanded(uploader, &w->panels, copy, f16_part);
        return;
    }
    const size_t n = (size_t)w->n * w->k, each = AT_A_TIME / sizeof(float);
    float *const memory = (float *)sq_cuda_scratch(uploader, SQ_SLOT_PANELS, AT_A_TIME);
    if (!memory) return;
    for (size_t i = 0; i < n; i += each) {
        const halves_args args = {memory, (uint16_t *)copy + i, n - i < each ? n - i : each};
        sq_cuda_write(uploader, memory, w->f32 + i, args.n * sizeof(float));
        SQ_LAUNCH(uploader, halves_kernel, blocks_for(args.n), THREADS, args);
    }
}

const void *sq_cuda_floats(sq_stream *s, const sq_mat *w, sq_form form)
{
    const size_t n = (size_t)w->n * w->k;
    const void *const host = w->f32 ? (const void *)w->f32 : w->panels.data;
    if (form == SQ_FORM_F16) return sq_cuda_upload(s, host, form, n * sizeof(uint16_t), fill_f16, w);
    if (w->f32) return sq_cuda_weights(s, host, n * sizeof(float));
    return sq_cuda_upload(s, host, form, n * sizeof(float), fill_f32, w);
}
