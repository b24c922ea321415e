/*
 * gemm: the walk over panels, chunks and tiles that the ARM sets share; simd/gemm.c defines the results, to the
 * last bit.
 * SPDX-License-Identifier: MIT
 *
 *   for each batch of tiles                  (activations of a chunk stay in L1, those of the batch in L2)
 *     for each few panels
 *       for each chunk of 256 inputs
 *         for each panel: unpack the chunk, then multiply it with each tile of the batch
 *           for each group or part of one: integer sums; a finished group is added to the float sums
 */
#include "simd/arm/gemm.h"

enum { NR = SQ_PANEL_N, LINE = 64, PREFETCH = 1024 };

typedef struct job {
    const sq_arm_gemm *set;
    sq_arm_tile_fn *const *tile_fns;
    const sq_panels *w;
    const sq_acts *a;
    const sq_gemm_out *out;
    size_t panel_bytes, weight_bytes;
    uint32_t k_pad, n_groups;
} job;

/* What one batch of tiles and panels needs; slot (p, t) begins at row (p * set->tiles + t) * mr. */
typedef struct work {
    float v[SQ_ARM_SLOTS][NR];
    int32_t sum[SQ_ARM_SLOTS][NR];
    int8_t w[2 * SQ_ARM_HALF];
    int8_t a[SQ_ARM_PAIRED * SQ_ARM_CHUNK];
} work;

SQ_INLINE uint32_t rows_in(const job *j, uint32_t tile)
{
    const uint32_t left = j->a->m - tile * j->set->mr;
    return left < j->set->mr ? left : j->set->mr;
}

/* ---- Unpacking --------------------------------------------------------------------------- */

/* 8 inputs of 4 channels: low and high hold inputs k to k+3 and k+4 to k+7. Channels 0 and 1 lie in `out`. */
SQ_INLINE void put(sq_arm_order order, int8x16_t low, int8x16_t high, int8_t *out)
{
    if (order == SQ_ARM_WORDS) {
        vst1q_s8(out, low);
        vst1q_s8(out + 32, high);
    } else {
        const int32x4_t l = vreinterpretq_s32_s8(low), h = vreinterpretq_s32_s8(high);
        vst1q_s8(out, vreinterpretq_s8_s32(vzip1q_s32(l, h)));
        vst1q_s8(out + 16, vreinterpretq_s8_s32(vzip2q_s32(l, h)));
    }
}

/* k inputs of a panel, from the line of the first one on. */
SQ_INLINE void unpack_i8(const uint8_t *line, uint32_t k, sq_arm_order order, int8_t *out)
{
    const uint8x16_t sign = vdupq_n_u8(0x80);
    const int step = order == SQ_ARM_WORDS ? 16 : 32;
    for (; k; k -= 8, line += 2 * LINE, out += 64) {
        __builtin_prefetch(line + PREFETCH);
        __builtin_prefetch(line + PREFETCH + LINE);
        for (int i = 0; i < 4; i++) {
            const int8x16_t low = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(line + i * 16), sign));
            const int8x16_t high = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(line + LINE + i * 16), sign));
            put(order, low, high, out + i / 2 * SQ_ARM_HALF + i % 2 * step);
        }
    }
}

SQ_INLINE void unpack_i4(const uint8_t *line, uint32_t k, sq_arm_order order, int8_t *out)
{
    const uint8x16_t nibble = vdupq_n_u8(15);
    const int8x16_t zero = vdupq_n_s8(8);
    const int step = order == SQ_ARM_WORDS ? 16 : 32;
    for (; k; k -= 8, line += LINE, out += 64) {
        __builtin_prefetch(line + PREFETCH);
        for (int i = 0; i < 4; i++) {
            const uint8x16_t u = vld1q_u8(line + i * 16);
            const int8x16_t low = vsubq_s8(vreinterpretq_s8_u8(vandq_u8(u, nibble)), zero);
            const int8x16_t high = vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(u, 4)), zero);
            put(order, low, high, out + i / 2 * SQ_ARM_HALF + i % 2 * step);
        }
    }
}

static void unpack(const job *j, uint32_t p, uint32_t k0, uint32_t k, int8_t *out)
{
    const uint8_t *panel = j->w->data + p * j->panel_bytes;
    const bool words = j->set->order == SQ_ARM_WORDS;
    if (j->w->type == SQ_PANEL_I8) {
        const uint8_t *line = panel + (size_t)k0 * NR;
        words ? unpack_i8(line, k, SQ_ARM_WORDS, out) : unpack_i8(line, k, SQ_ARM_PAIRS, out);
    } else {
        const uint8_t *line = panel + (size_t)k0 * (NR / 2);
        words ? unpack_i4(line, k, SQ_ARM_WORDS, out) : unpack_i4(line, k, SQ_ARM_PAIRS, out);
    }
}

/* k inputs of mr rows, from [k / 4][mr][4] to [k / 8][mr][8]; mr is a multiple of 4. */
static void pair_up(const int8_t *q, uint32_t k, uint32_t mr, int8_t *out)
{
    for (; k; k -= 8, q += 4 * mr) {
        for (uint32_t r = 0; r < mr; r += 4, q += 16, out += 32) {
            put(SQ_ARM_PAIRS, vld1q_s8(q), vld1q_s8(q + 4 * mr), out);
        }
    }
}

/* The activations of input k0 of a tile; of SQ_ARM_PAIRS, k inputs of it in buffer place t. */
static const int8_t *activations(const job *j, work *x, uint32_t tile, uint32_t t, uint32_t k0, uint32_t k, bool fill)
{
    const uint32_t mr = j->set->mr;
    const int8_t *q = j->a->q + ((size_t)tile * j->k_pad + k0) * mr;
    if (j->set->order == SQ_ARM_WORDS) return q;
    int8_t *pairs = x->a + (size_t)t * mr * SQ_ARM_CHUNK;
    if (fill) pair_up(q, k, mr, pairs);
    return pairs;
}

/* ---- Groups ------------------------------------------------------------------------------ */

/* v += sa * sw * sum for group g. */
static void add_group(const job *j, uint32_t p, uint32_t tile, uint32_t g, const int32_t (*sum)[NR], float (*v)[NR])
{
    const float *sa = j->a->scale + ((size_t)tile * j->n_groups + g) * j->set->mr;
    const uint32_t rows = rows_in(j, tile);
    float32x4_t sw[4];
    for (int i = 0; i < 4; i++) {
        sw[i] = vdupq_n_f32(1.0f);
        if (j->w->group) {
            const uint8_t *scales = j->w->data + p * j->panel_bytes + j->weight_bytes;
            const uint16_t *half = (const uint16_t *)(scales + (size_t)g * NR * sizeof *half);
            sw[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(half + i * 4)));
        }
    }
    for (uint32_t r = 0; r < rows; r++) {
        for (int i = 0; i < 4; i++) {
            const float32x4_t s = vcvtq_f32_s32(vld1q_s32(&sum[r][i * 4])), scale = vmulq_n_f32(sw[i], sa[r]);
            vst1q_f32(&v[r][i * 4], vfmaq_f32(vld1q_f32(&v[r][i * 4]), scale, s));
        }
    }
}

/* One tile by one panel, inputs k0 to k1, which may hold many groups or a part of one. */
static void multiply(const job *j, work *x, uint32_t slot, uint32_t p, uint32_t tile, const int8_t *a, uint32_t k0,
                     uint32_t k1)
{
    const uint32_t group = j->a->group;
    for (uint32_t k = k0; k < k1;) {
        const uint32_t g = k / group, begin = g * group, end = j->k_pad - begin < group ? j->k_pad : begin + group;
        const uint32_t stop = end < k1 ? end : k1, at = k - k0;
        sq_arm_tile_fn *tile_fn = j->tile_fns[rows_in(j, tile)];
        tile_fn(a + (size_t)at * j->set->mr, x->w + (size_t)at * 8, stop - k, k == begin, x->sum[slot]);
        if (stop == end) add_group(j, p, tile, g, (const int32_t(*)[NR])x->sum + slot, x->v + slot);
        k = stop;
    }
}

/* ---- Store ------------------------------------------------------------------------------- */

/* Channels j0 to j0 + 3 of row i, of which `left` exist. */
SQ_INLINE void store4(const sq_gemm_out *o, uint32_t i, uint32_t j0, int64_t left, float32x4_t v)
{
    float *c = o->c + (o->rows ? o->rows[i] : i) * o->ldc + j0;
    if (o->bias) v = vaddq_f32(v, load_first(o->bias + j0, left));
    if (o->row_weight) v = vmulq_n_f32(v, o->row_weight[i]);
    if (o->add) v = vaddq_f32(load_first(c, left), v);
    store_first(c, left, v);
}

static void store(const job *j, uint32_t p, uint32_t tile, const float (*v)[NR])
{
    const uint32_t j0 = p * NR, n = j->w->n - j0, rows = rows_in(j, tile);
    const float *channel = (const float *)(j->w->data + p * j->panel_bytes + j->weight_bytes);
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t c = 0; c < NR && c < n; c += 4) {
            const float32x4_t sum = vld1q_f32(&v[r][c]);
            const float32x4_t t = j->w->group ? sum : vmulq_f32(sum, vld1q_f32(channel + c));
            store4(j->out, tile * j->set->mr + r, j0 + c, (int64_t)n - c, t);
        }
    }
}

/* ---- The walk ---------------------------------------------------------------------------- */

static void batch(const job *j, work *x, uint32_t p0, uint32_t n_panels, uint32_t t0, uint32_t n_tiles)
{
    const uint32_t mr = j->set->mr, slots = n_panels * n_tiles;
    memset(x->v, 0, slots * mr * sizeof *x->v);
    for (uint32_t k0 = 0, k1; k0 < j->k_pad; k0 = k1) {
        k1 = j->k_pad - k0 < SQ_ARM_CHUNK ? j->k_pad : k0 + SQ_ARM_CHUNK;
        for (uint32_t s = 0; s < slots; s++) {
            const uint32_t p = p0 + s / n_tiles, t = s % n_tiles;
            if (t == 0) unpack(j, p, k0, k1 - k0, x->w);
            const int8_t *a = activations(j, x, t0 + t, t, k0, k1 - k0, p == p0);
            multiply(j, x, s * mr, p, t0 + t, a, k0, k1);
        }
    }
    for (uint32_t s = 0; s < slots; s++)
        store(j, p0 + s / n_tiles, t0 + s % n_tiles, (const float(*)[NR])x->v + s * mr);
}

void sq_arm_gemm_run(const sq_arm_gemm *set, const sq_panels *w, uint32_t panel0, uint32_t n_panels, const sq_acts *a,
                     const sq_gemm_out *out)
{
    assert(a->k == w->k && a->group == sq_panels_act_group(w) && a->mr == set->mr);
    const job j = {.set = set,
                   .tile_fns = w->type == SQ_PANEL_I8 ? set->i8 : set->i4,
                   .w = w,
                   .a = a,
                   .out = out,
                   .panel_bytes = sq_panel_bytes(w),
                   .weight_bytes = sq_panel_weight_bytes(w),
                   .k_pad = sq_acts_k_pad(a),
                   .n_groups = sq_acts_groups(a)};
    const uint32_t tiles = sq_acts_tiles(a), last = panel0 + n_panels;
    work x;
    for (uint32_t t = 0; t < tiles; t += set->tiles) {
        const uint32_t n_tiles = tiles - t < set->tiles ? tiles - t : set->tiles;
        for (uint32_t p = panel0; p < last; p += set->panels)
            batch(&j, &x, p, last - p < set->panels ? last - p : set->panels, t, n_tiles);
    }
}
