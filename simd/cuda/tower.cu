/*
 * tower: what the towers do beside matrix products and attention, to the bits of runtime/tower.c.
 * SPDX-License-Identifier: MIT
 *
 * Threads lie along the channels of a place, which come last in a map: what a warp reads and writes is in a row.
 */
#include "simd/cuda/rows.cuh"
#include "simd/tap.h"

#include <float.h>

enum { THREADS = 256 };

static uint32_t least_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* ---- Vectors ----------------------------------------------------------------------------- */

struct vector_args {
    float *x;
    const float *y;
    float scale;
    size_t n;
};

static uint32_t vector_blocks(size_t n) { return sq_ceil_div(n, THREADS); }
SQ_DEVICE size_t vector_at(void) { return (size_t)blockIdx.x * THREADS + threadIdx.x; }

static __global__ void relu_kernel(const vector_args a)
{
    const size_t i = vector_at();
    if (i < a.n) a.x[i] = a.x[i] > 0.0f ? a.x[i] : 0.0f;
}

void sq_cuda_relu(sq_stream *s, float *x, size_t n)
{
    const vector_args args = {x, NULL, 0.0f, n};
    if (n) SQ_LAUNCH(s, relu_kernel, vector_blocks(n), THREADS, args);
}

static __global__ void add_kernel(const vector_args a)
{
    const size_t i = vector_at();
    if (i < a.n) a.x[i] += a.scale * a.y[i];
}

void sq_cuda_add(sq_stream *s, float *x, const float *y, float scale, size_t n)
{
    const vector_args args = {x, y, scale, n};
    if (n) SQ_LAUNCH(s, add_kernel, vector_blocks(n), THREADS, args);
}

void sq_cuda_add_weights(sq_stream *s, float *x, const float *w, size_t n)
{
    sq_cuda_add(s, x, (const float *)sq_cuda_weights(s, w, n * sizeof *w), 1.0f, n);
}

struct means_args {
    const float *x;
    uint32_t n, d;
    float *out;
};

/* The order of the sum leaves a column to one thread. */
static __global__ void means_kernel(const means_args a)
{
    const uint32_t column = blockIdx.x * SQ_WARP + threadIdx.x;
    double sum = 0.0;
    if (column >= a.d) return;
    for (uint32_t i = 0; i < a.n; i++)
        sum += (double)a.x[(size_t)i * a.d + column];
    a.out[column] = (float)(sum / a.n);
}

void sq_cuda_means(sq_stream *s, const float *x, uint32_t n, uint32_t d, float *out)
{
    const means_args args = {x, n, d, out};
    if (d) SQ_LAUNCH(s, means_kernel, sq_ceil_div(d, SQ_WARP), SQ_WARP, args);
}

/* ---- Convolutions ------------------------------------------------------------------------ */

struct patch_args {
    sq_patches p; /* but its norm */
    sq_rows_in norm;
};

/* The place that a tap of this block's output place sees; false: outside of the map. */
SQ_DEVICE bool tap_place(const sq_patches *p, uint32_t tap, size_t *place)
{
    const uint32_t out_y = p->y0 + blockIdx.x / p->out_side, out_x = blockIdx.x % p->out_side;
    /* Above and left of the map the unsigned difference wraps far past its side. */
    const uint32_t y = out_y * p->stride + tap / p->kernel - p->pad;
    const uint32_t x = out_x * p->stride + tap % p->kernel - p->pad;
    *place = (size_t)y * p->side + x;
    return y < p->side && x < p->side;
}

static __global__ void __launch_bounds__(THREADS) patches_kernel(const patch_args a)
{
    const uint32_t n = a.p.kernel * a.p.kernel * a.p.channels;
    const size_t plane = (size_t)a.p.side * a.p.side;
    float *const out = a.p.out + (size_t)blockIdx.x * n;
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
        const uint32_t c = i % a.p.channels;
        size_t place;
        if (!tap_place(&a.p, i / a.p.channels, &place))
            out[i] = 0.0f;
        else
            out[i] = a.p.map[a.p.planar ? c * plane + place : place * a.p.channels + c];
    }
}

/* A warp has a tap. */
static __global__ void __launch_bounds__(THREADS) normed_patches_kernel(const patch_args a)
{
    const uint32_t taps = a.p.kernel * a.p.kernel, lane = threadIdx.x % SQ_WARP;
    for (uint32_t tap = threadIdx.x / SQ_WARP; tap < taps; tap += THREADS / SQ_WARP) {
        float *const out = a.p.out + ((size_t)blockIdx.x * taps + tap) * a.p.channels;
        size_t place;
        const bool within = tap_place(&a.p, tap, &place);
        const float *const x = a.p.map + (within ? place * a.p.channels : 0);
        sq_row_figures figures = {0.0f, 0.0f};
        if (within && sq_row_is_norm(a.norm.op)) figures = sq_row_figures_of(&a.norm, x);
        for (uint32_t i = lane; i < a.p.channels; i += SQ_WARP)
            out[i] = within ? sq_row_value(&a.norm, figures, x, i) : 0.0f;
    }
}

void sq_cuda_patches(sq_stream *s, const sq_patches *p)
{
    patch_args args;
    const uint32_t places = p->n_rows * p->out_side, n = p->kernel * p->kernel * p->channels;
    memset(&args, 0, sizeof args);
    args.p = *p;
    args.p.norm = NULL;
    if (p->norm) args.norm = sq_cuda_rows_in(s, p->norm);
    if (!places) return;
    if (p->norm)
        SQ_LAUNCH(s, normed_patches_kernel, places, THREADS, args);
    else
        SQ_LAUNCH(s, patches_kernel, places, least_u32(sq_round_up(n, SQ_WARP), THREADS), args);
}

/* Outputs side by side of a thread: a weight is loaded once for all of them, an input once for up to 7. */
enum { PIXELS = 8, REACH = SQ_DEPTHWISE_SIDE / 2, WINDOW = PIXELS + 2 * REACH, DEPTHWISE_THREADS = 64 };

/* Row y of the map from channel c on, as it counts. */
SQ_DEVICE const float *row_before(const sq_depthwise_map *d, uint32_t y, uint32_t c)
{
    const size_t row = (size_t)d->side * d->channels;
    return (y < d->y0 ? d->before + y % REACH * row : d->map + y * row) + c;
}

static __global__ void __launch_bounds__(DEPTHWISE_THREADS) depthwise_kernel(const sq_depthwise_map d)
{
    const uint32_t parts = (d.side + PIXELS - 1) / PIXELS, row = blockIdx.x / parts, x0 = blockIdx.x % parts * PIXELS;
    const uint32_t c = blockIdx.y * DEPTHWISE_THREADS + threadIdx.x;
    float sum[PIXELS], from[WINDOW];
    if (c >= d.channels) return;
    SQ_UNROLL
    for (int p = 0; p < PIXELS; p++)
        sum[p] = d.bias[c];
    for (uint32_t ky = 0; ky < SQ_DEPTHWISE_SIDE; ky++) {
        /* Before the map the unsigned differences wrap far past its side. */
        const uint32_t y = d.y0 + row + ky - REACH;
        if (y >= d.side) continue;
        const float *const map = row_before(&d, y, c);
        SQ_UNROLL
        for (uint32_t i = 0; i < WINDOW; i++)
            from[i] = x0 + i - REACH < d.side ? map[(size_t)(x0 + i - REACH) * d.channels] : 0.0f;
        SQ_UNROLL
        for (uint32_t kx = 0; kx < SQ_DEPTHWISE_SIDE; kx++) {
            const float w = d.w[(size_t)(ky * SQ_DEPTHWISE_SIDE + kx) * d.channels + c];
            SQ_UNROLL
            for (uint32_t p = 0; p < PIXELS; p++)
                if (x0 + p + kx - REACH < d.side) sum[p] = fmaf(w, from[p + kx], sum[p]);
        }
    }
    SQ_UNROLL
    for (uint32_t p = 0; p < PIXELS; p++)
        if (x0 + p < d.side) d.out[((size_t)row * d.side + x0 + p) * d.channels + c] = sum[p];
}

void sq_cuda_depthwise(sq_stream *s, const sq_depthwise_map *d)
{
    sq_depthwise_map args = *d;
    args.w = (const float *)sq_cuda_weights(s, d->w, (size_t)SQ_DEPTHWISE_TAPS * d->channels * sizeof *d->w);
    args.bias = (const float *)sq_cuda_weights(s, d->bias, d->channels * sizeof *d->bias);
    if (!d->n_rows) return;
    const dim3 grid(d->n_rows * sq_ceil_div(d->side, PIXELS), sq_ceil_div(d->channels, DEPTHWISE_THREADS));
    SQ_LAUNCH(s, depthwise_kernel, grid, DEPTHWISE_THREADS, args);
}

/* ---- Maps of another size ---------------------------------------------------------------- */

/* Four places of a map, and what lies between them. */
struct between {
    const float *a, *b, *c, *d;
    sq_tap x, y;
};

SQ_DEVICE between between_of(const float *map, uint32_t width, uint32_t channels, sq_tap x, sq_tap y)
{
    const float *const above = map + (size_t)y.low * width * channels;
    const float *const below = map + (size_t)y.high * width * channels;
    const size_t left = (size_t)x.low * channels, right = (size_t)x.high * channels;
    const between at = {above + left, above + right, below + left, below + right, x, y};
    return at;
}

SQ_DEVICE float between_value(const between *at, uint32_t i)
{
    return sq_lerp(at->x, at->y, at->a[i], at->b[i], at->c[i], at->d[i]);
}

SQ_DEVICE float mean_of_block(const sq_resize_map *r, uint32_t y, uint32_t x, uint32_t i)
{
    const uint32_t ratio = r->width / r->out_width;
    float sum = 0.0f;
    for (uint32_t t = 0; t < ratio * ratio; t++)
        sum += r->map[((size_t)(y * ratio + t / ratio) * r->width + x * ratio + t % ratio) * r->channels + i];
    return sum * (1.0f / (float)(ratio * ratio));
}

static __global__ void __launch_bounds__(THREADS) resize_kernel(const sq_resize_map r)
{
    const uint32_t y = blockIdx.x / r.out_width, x = blockIdx.x % r.out_width;
    const bool corners = r.by == SQ_RESIZE_CORNERS;
    const between at = between_of(r.map, r.width, r.channels, sq_bilinear_tap(x, r.width, r.out_width, corners),
                                  sq_bilinear_tap(y, r.height, r.out_height, corners));
    float *const out = r.out + ((size_t)y * r.out_row + x) * r.channels;
    for (uint32_t i = threadIdx.x; i < r.channels; i += THREADS)
        out[i] = r.by == SQ_RESIZE_MEANS ? mean_of_block(&r, y, x, i) : between_value(&at, i);
}

void sq_cuda_resize(sq_stream *s, const sq_resize_map *r)
{
    const sq_resize_map args = *r;
    if (r->out_width && r->out_height) SQ_LAUNCH(s, resize_kernel, r->out_width * r->out_height, THREADS, args);
}

/* ---- Mining ------------------------------------------------------------------------------ */

/* Some tokens at a time: their places first, as the C version has them, then what the tokens find there. */
struct mine_args {
    sq_mine m; /* but its norm */
    sq_rows_in norm;
    uint32_t first; /* token */
    float scale;
    float *z; /* [tokens of this time][m * m][norm.k] */
};

enum { TOKENS_PER_SM = 4 };                 /* at a time, */
static const size_t MINE_BYTES = 256 << 20; /* with places of so much at most */

/* A thread's channels of place (y, x) of the joined map: z = v, or z += share * v. */
SQ_DEVICE void join_place(const sq_mine *m, uint32_t y, uint32_t x, bool add, float share, float *z)
{
    uint32_t base = 0;
    for (int i = 0; i < SQ_MINE_MAPS; i++) {
        const sq_tap tx = sq_bilinear_tap(x, m->sides[i], m->sides[0], false);
        const sq_tap ty = sq_bilinear_tap(y, m->sides[i], m->sides[0], false);
        const between at = between_of(m->maps[i], m->sides[i], m->channels[i], tx, ty);
        /* The channels of all maps are dealt to the threads as those of one: each has its own at every place. */
        const uint32_t dealt = base % THREADS, first = (threadIdx.x + THREADS - dealt) % THREADS;
        for (uint32_t c = first; c < m->channels[i]; c += THREADS) {
            const float v = i ? between_value(&at, c) : at.a[c];
            z[base + c] = add ? z[base + c] + share * v : v;
        }
        base += m->channels[i];
    }
}

static __global__ void __launch_bounds__(THREADS) places_kernel(const mine_args a)
{
    __shared__ sq_row_figures shared;
    const sq_mine *const m = &a.m;
    const uint32_t places = m->m * m->m, token = a.first + blockIdx.x / places, i = blockIdx.x % places;
    const uint32_t y = m->y + token / m->tokens * m->m + i / m->m, x = m->x + token % m->tokens * m->m + i % m->m;
    const uint32_t n = m->shrink;
    float *const z = a.z + (size_t)blockIdx.x * a.norm.k;
    if (n > 1) {
        for (uint32_t c = threadIdx.x; c < a.norm.k; c += THREADS)
            z[c] = 0.0f;
        for (uint32_t t = 0; t < n * n; t++)
            join_place(m, y * n + t / n, x * n + t % n, true, 1.0f / (float)(n * n), z);
    } else {
        join_place(m, y, x, false, 1.0f, z);
    }
    __syncthreads();
    if (threadIdx.x < SQ_WARP) {
        const sq_row_figures figures = sq_row_figures_of(&a.norm, z);
        if (threadIdx.x == 0) shared = figures;
    }
    __syncthreads();
    for (uint32_t c = threadIdx.x; c < a.norm.k; c += THREADS)
        z[c] = sq_row_value(&a.norm, shared, z, c);
}

enum { LANES = 8 }; /* that add up a dot product, as simd/vector.c does */

/* By groups of LANES lanes, each of a product of its own; all lanes of a group get it. */
SQ_DEVICE float dot(const float *x, const float *y, uint32_t n)
{
    float sum = 0.0f;
    for (uint32_t i = threadIdx.x % LANES; i < n; i += LANES)
        sum += x[i] * y[i];
    for (int apart = LANES / 2; apart; apart /= 2)
        sum += __shfl_xor_sync(SQ_ALL_LANES, sum, apart);
    return sum;
}

/* torch.nan_to_num() */
SQ_DEVICE float finite(float v) { return v != v ? 0.0f : v > FLT_MAX ? FLT_MAX : v < -FLT_MAX ? -FLT_MAX : v; }

/* Scores of n places become their shares. By all threads of the block. */
SQ_DEVICE void softmax(float *scores, uint32_t n, float *shared)
{
    if (threadIdx.x < SQ_WARP) {
        float most = scores[0];
        for (uint32_t i = threadIdx.x; i < n; i += SQ_WARP)
            most = scores[i] > most ? scores[i] : most;
        most = sq_warp_max(most);
        if (threadIdx.x == 0) *shared = most;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n; i += THREADS)
        scores[i] = sq_exp(scores[i] - *shared);
    __syncthreads();
    if (threadIdx.x == 0) {
        float sum = 0.0f;
        for (uint32_t i = 0; i < n; i++)
            sum += scores[i];
        *shared = sum;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n; i += THREADS)
        scores[i] /= *shared;
    __syncthreads();
}

static __global__ void __launch_bounds__(THREADS) look_kernel(const mine_args a)
{
    __shared__ float scores[SQ_MINE_BLOCK * SQ_MINE_BLOCK], shared;
    const uint32_t n = a.m.m * a.m.m, k = a.norm.k, token = a.first + blockIdx.x, group = threadIdx.x / LANES;
    const float *const z = a.z + (size_t)blockIdx.x * n * k, *const query = a.m.queries + (size_t)token * a.m.d;
    float *const asked = a.m.asked + (size_t)token * k;
    const float offset = dot(query, a.m.key_offset, a.m.d);
    for (uint32_t i0 = group / (SQ_WARP / LANES) * (SQ_WARP / LANES); i0 < n; i0 += THREADS / LANES) {
        const uint32_t i = i0 + group % (SQ_WARP / LANES); /* past n a group works along, for the warp's sake */
        const float product = dot(asked, z + (size_t)(i < n ? i : i0) * k, k);
        if (i < n && threadIdx.x % LANES == 0) scores[i] = finite((product + offset) * a.scale);
    }
    __syncthreads();
    softmax(scores, n, &shared);
    for (uint32_t c = threadIdx.x; c < k; c += THREADS) {
        float sum = 0.0f;
        for (uint32_t i = 0; i < n; i++)
            sum += scores[i] * z[(size_t)i * k + c];
        asked[c] = sum * a.m.weight[c] + a.m.bias[c];
    }
}

void sq_cuda_mine(sq_stream *s, const sq_mine *m)
{
    const uint32_t places = m->m * m->m, k = m->norm->k, n = m->tokens * m->tokens;
    const size_t bytes = (size_t)places * k * sizeof(float); /* of a token */
    const uint32_t most = least_u32((uint32_t)(MINE_BYTES / bytes), TOKENS_PER_SM * s->device->n_sms);
    const uint32_t at_once = most < 1 ? 1 : least_u32(most, n);
    mine_args args;
    memset(&args, 0, sizeof args);
    args.m = *m;
    args.m.norm = NULL;
    args.m.key_offset = (const float *)sq_cuda_weights(s, m->key_offset, m->d * sizeof(float));
    args.m.weight = (const float *)sq_cuda_weights(s, m->weight, k * sizeof(float));
    args.m.bias = (const float *)sq_cuda_weights(s, m->bias, k * sizeof(float));
    args.norm = sq_cuda_rows_in(s, m->norm);
    args.scale = 1.0f / sqrtf((float)m->d);
    args.z = (float *)sq_cuda_scratch(s, SQ_SLOT_TOWER, at_once * bytes);
    for (; args.first < n; args.first += at_once) {
        const uint32_t tokens = least_u32(at_once, n - args.first);
        SQ_LAUNCH(s, places_kernel, tokens * places, THREADS, args);
        SQ_LAUNCH(s, look_kernel, tokens, THREADS, args);
    }
}
