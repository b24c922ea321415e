/*
 * gemm_avx512: int8 activations times int8 or int4 panels with vpdpbusd (AVX-512 VNNI). simd/gemm.c defines the
 * results: integer sums are equal, and the float sum of the groups is in the same order, with fused multiply-adds.
 * SPDX-License-Identifier: MIT
 *
 * A tile is 12 rows by two panels of 16 channels: 24 of the 32 registers hold integer sums, two the weights of a step
 * of 4 inputs, one an activation word sent to all lanes. Sums begin at -zero * S, so the offset costs nothing. The
 * float sums of the groups stay in memory: there is no register left for them, and they are touched once a group.
 *
 * Cache: rows are taken in blocks, so that weights are fetched from far once for 144 rows; within a block two panels
 * are the outer loop; within those, k is taken in chunks whose weights stay in L1 for all tiles of the block, while the
 * next chunk is fetched. The activations of a block stream from L2: 48 bytes for 24 instructions.
 */
#include "simd/internal.h"
#include "simd/x86/avx512.h"

#include <assert.h>

enum {
    MR = SQ_MR_AVX512,
    NR = SQ_PANEL_N,
    COLS = 2, /* panels of a tile */
    LINE = 64,
    CHUNK = 512,  /* inputs: two panels of int8 take 16 KiB of L1 */
    TILES = 12,   /* of a block at most; their sums are on the stack */
    AHEAD = 1024, /* bytes to prefetch ahead where weights are used once only */
};

typedef struct job {
    const sq_panels *w;
    const sq_acts *a;
    const sq_gemm_out *out;
    size_t panel_bytes, weight_bytes;
    uint32_t k_pad, n_groups;
    int zero;
} job;

SQ_INLINE __m512i word(const int8_t *q)
{
    int32_t four;
    memcpy(&four, q, sizeof four);
    return _mm512_set1_epi32(four);
}

/* sum += k inputs: one line of each panel is 4 of them. */
SQ_INLINE void lines_i8(const uint8_t *const *line, const int8_t *q, uint32_t k, __m512i sum[][COLS], uint32_t rows,
                        uint32_t cols)
{
    const uint8_t *w[COLS] = {line[0], line[1]};
    for (; k; k -= 4, q += 4 * MR, w[0] += LINE, w[1] += LINE) {
        __m512i u[COLS];
        for (uint32_t c = 0; c < cols; c++) {
            u[c] = _mm512_load_si512(w[c]);
            if (rows <= 2) _mm_prefetch((const char *)w[c] + AHEAD, _MM_HINT_T0);
        }
        SQ_UNROLL
        for (uint32_t r = 0; r < rows; r++) {
            const __m512i a = word(q + r * 4);
            for (uint32_t c = 0; c < cols; c++)
                dot512(&sum[r][c], u[c], a);
        }
    }
}

/* The same: one line is 8 inputs, the first 4 in the low nibbles. */
SQ_INLINE void lines_i4(const uint8_t *const *line, const int8_t *q, uint32_t k, __m512i sum[][COLS], uint32_t rows,
                        uint32_t cols)
{
    const __m512i nibble = _mm512_set1_epi8(15);
    const uint8_t *w[COLS] = {line[0], line[1]};
    for (; k; k -= 8, q += 8 * MR, w[0] += LINE, w[1] += LINE) {
        __m512i low[COLS], high[COLS];
        for (uint32_t c = 0; c < cols; c++) {
            const __m512i both = _mm512_load_si512(w[c]);
            low[c] = _mm512_and_si512(both, nibble);
            high[c] = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
            if (rows <= 2) _mm_prefetch((const char *)w[c] + AHEAD, _MM_HINT_T0);
        }
        SQ_UNROLL
        for (uint32_t r = 0; r < rows; r++) {
            const __m512i a = word(q + r * 4);
            for (uint32_t c = 0; c < cols; c++)
                dot512(&sum[r][c], low[c], a);
        }
        SQ_UNROLL
        for (uint32_t r = 0; r < rows; r++) {
            const __m512i a = word(q + (MR + r) * 4);
            for (uint32_t c = 0; c < cols; c++)
                dot512(&sum[r][c], high[c], a);
        }
    }
}

/* v += sa * sw * sum for group g. */
SQ_INLINE void add_group(const job *j, const uint8_t *const *panel, const float *sa, uint32_t g,
                         const __m512i sum[][COLS], float v[][COLS][NR], uint32_t rows, uint32_t cols)
{
    const bool grouped = j->w->group;
    __m512 sw[COLS] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (uint32_t c = 0; c < cols && grouped; c++) {
        const void *half = panel[c] + j->weight_bytes + (size_t)g * NR * sizeof(uint16_t);
        sw[c] = _mm512_cvtph_ps(_mm256_load_si256(half));
    }
    __asm__ volatile("" : : : "memory"); /* or GCC keeps v in registers and the integer sums on the stack */
    SQ_UNROLL
    for (uint32_t r = 0; r < rows; r++) {
        const __m512 scale = _mm512_set1_ps(sa[r]);
        for (uint32_t c = 0; c < cols; c++) {
            const __m512 by = grouped ? _mm512_mul_ps(scale, sw[c]) : scale;
            const __m512 old = _mm512_load_ps(v[r][c]);
            _mm512_store_ps(v[r][c], _mm512_fmadd_ps(by, _mm512_cvtepi32_ps(sum[r][c]), old));
        }
    }
}

/* v += inputs [k0, k1) of one tile; k0 begins a group. */
SQ_INLINE void tile_chunk(const job *j, bool i4, const uint8_t *const *panel, uint32_t tile, uint32_t k0, uint32_t k1,
                          float v[][COLS][NR], uint32_t rows, uint32_t cols)
{
    const uint32_t group = j->a->group, line_bytes = i4 ? NR / 2 : NR;
    const int8_t *q = j->a->q + (size_t)tile * j->k_pad * MR;
    for (uint32_t g = k0 / group, k = k0; k < k1; g++) {
        const uint32_t n = k1 - k < group ? k1 - k : group;
        const size_t at = ((size_t)tile * j->n_groups + g) * MR;
        const uint8_t *const line[COLS] = {panel[0] + (size_t)k * line_bytes, panel[1] + (size_t)k * line_bytes};
        __m512i sum[MR][COLS];
        SQ_UNROLL
        for (uint32_t r = 0; r < rows; r++)
            sum[r][0] = sum[r][1] = _mm512_set1_epi32(-j->zero * j->a->sum[at + r]);
        if (i4)
            lines_i4(line, q + (size_t)k * MR, n, sum, rows, cols);
        else
            lines_i8(line, q + (size_t)k * MR, n, sum, rows, cols);
        add_group(j, panel, j->a->scale + at, g, sum, v, rows, cols);
        k += n;
    }
}

/* ---- One function for each number of rows ------------------------------------------------ */

typedef void tile_fn(const job *j, const uint8_t *const *panel, uint32_t tile, uint32_t k0, uint32_t k1,
                     float v[][COLS][NR]);

#define TILE(type, is_i4, rows, cols)                                                                                  \
    static void type##_##rows##x##cols(const job *j, const uint8_t *const *panel, uint32_t tile, uint32_t k0,          \
                                       uint32_t k1, float v[][COLS][NR])                                               \
    {                                                                                                                  \
        tile_chunk(j, is_i4, panel, tile, k0, k1, v, rows, cols);                                                      \
    }
#define TILES_OF(type, is_i4, cols)                                                                                    \
    TILE(type, is_i4, 1, cols)                                                                                         \
    TILE(type, is_i4, 2, cols)                                                                                         \
    TILE(type, is_i4, 4, cols)                                                                                         \
    TILE(type, is_i4, 6, cols)                                                                                         \
    TILE(type, is_i4, 8, cols)                                                                                         \
    TILE(type, is_i4, 10, cols)                                                                                        \
    TILE(type, is_i4, 12, cols)

TILES_OF(i8, false, 1)
TILES_OF(i8, false, 2)
TILES_OF(i4, true, 1)
TILES_OF(i4, true, 2)

/* By rows rounded up to even, then halved: a row too many is a row of zeros that nothing stores. */
#define ROW_OF(type, cols)                                                                                             \
    {                                                                                                                  \
        type##_1x##cols, type##_2x##cols, type##_4x##cols, type##_6x##cols, type##_8x##cols, type##_10x##cols,         \
            type##_12x##cols                                                                                           \
    }

static tile_fn *const tiles_i8[COLS][MR / 2 + 1] = {ROW_OF(i8, 1), ROW_OF(i8, 2)};
static tile_fn *const tiles_i4[COLS][MR / 2 + 1] = {ROW_OF(i4, 1), ROW_OF(i4, 2)};

static uint32_t rows_in(const job *j, uint32_t tile)
{
    const uint32_t left = j->a->m - tile * MR;
    return left < MR ? left : MR;
}

static tile_fn *tile_for(tile_fn *const tiles[COLS][MR / 2 + 1], uint32_t rows, uint32_t cols)
{
    return tiles[cols - 1][rows == 1 ? 0 : (rows + 1) / 2];
}

/* ---- Store ------------------------------------------------------------------------------- */

/* The store of sq_gemm_out: row i, channels j0 .. j0 + 15, of which `mask` exist. */
static void store_row(const sq_gemm_out *o, uint32_t i, uint32_t j0, __mmask16 mask, __m512 v)
{
    float *c = o->c + (o->rows ? o->rows[i] : i) * o->ldc + j0;
    if (o->bias) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, o->bias + j0));
    if (o->row_weight) v = _mm512_mul_ps(_mm512_set1_ps(o->row_weight[i]), v);
    if (o->add) v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, c), v);
    _mm512_mask_storeu_ps(c, mask, v);
}

static void store_tile(const job *j, const uint8_t *panel, uint32_t p, uint32_t col, uint32_t tile, uint32_t rows,
                       float v[][COLS][NR])
{
    const uint32_t j0 = p * NR, n = j->w->n - j0;
    const __mmask16 mask = (__mmask16)(n < NR ? (1u << n) - 1 : 0xffff);
    __m512 channel = _mm512_set1_ps(1.0f);
    if (!j->w->group) channel = _mm512_load_ps(panel + j->weight_bytes);
    for (uint32_t r = 0; r < rows; r++) {
        const __m512 sum = _mm512_load_ps(v[r][col]);
        store_row(j->out, tile * MR + r, j0, mask, j->w->group ? sum : _mm512_mul_ps(sum, channel));
    }
}

/* ---- Blocks ------------------------------------------------------------------------------ */

/* Fetches part i of n of the next chunk's weights into L2. */
static void fetch_next(const job *j, const uint8_t *const *panel, uint32_t cols, uint32_t k0, uint32_t k1, uint32_t i,
                       uint32_t n)
{
    const size_t bytes = j->weight_bytes / j->k_pad * (k1 - k0), from = j->weight_bytes / j->k_pad * k1;
    const size_t first = bytes / LINE * i / n * LINE, last = bytes / LINE * (i + 1) / n * LINE;
    for (uint32_t c = 0; c < cols; c++) {
        for (size_t at = first; at < last; at += LINE)
            _mm_prefetch((const char *)panel[c] + from + at, _MM_HINT_T1);
    }
}

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* Panels p .. p + cols - 1 for the tiles [t0, t1). */
static void block_columns(const job *j, tile_fn *const tiles[COLS][MR / 2 + 1], uint32_t p, uint32_t cols, uint32_t t0,
                          uint32_t t1)
{
    float v[TILES][MR][COLS][NR] __attribute__((aligned(64)));
    const uint8_t *panel[COLS];
    const uint32_t n = t1 - t0, group = j->a->group;
    const uint32_t chunk = n < 3 ? j->k_pad : group < CHUNK ? CHUNK / group * group : group;
    for (uint32_t c = 0; c < COLS; c++)
        panel[c] = j->w->data + (p + (c < cols ? c : 0)) * j->panel_bytes;
    memset(v, 0, n * sizeof *v);
    for (uint32_t k = 0; k < j->k_pad; k += chunk) {
        const uint32_t end = k + min_u32(chunk, j->k_pad - k);
        for (uint32_t t = 0; t < n; t++) {
            if (n >= 3) fetch_next(j, panel, cols, k, end, t, n);
            tile_for(tiles, rows_in(j, t0 + t), cols)(j, panel, t0 + t, k, end, v[t]);
        }
    }
    for (uint32_t t = 0; t < n; t++) {
        for (uint32_t c = 0; c < cols; c++)
            store_tile(j, panel[c], p + c, c, t0 + t, rows_in(j, t0 + t), v[t]);
    }
}

/* A last block of few tiles is shared out over the others. */
static uint32_t tiles_a_block(uint32_t tiles)
{
    const uint32_t blocks = (tiles + TILES - 1) / TILES;
    return (tiles + blocks - 1) / blocks;
}

static void gemm(const job *j, tile_fn *const tiles[COLS][MR / 2 + 1], uint32_t panel0, uint32_t n_panels)
{
    const uint32_t n_tiles = sq_acts_tiles(j->a), last = panel0 + n_panels;
    const uint32_t block = n_tiles ? tiles_a_block(n_tiles) : 1;
    for (uint32_t t0 = 0; t0 < n_tiles; t0 += block) {
        const uint32_t t1 = t0 + min_u32(block, n_tiles - t0);
        for (uint32_t p = panel0; p < last; p += COLS)
            block_columns(j, tiles, p, min_u32(COLS, last - p), t0, t1);
    }
}

static job make_job(const sq_panels *w, const sq_acts *a, const sq_gemm_out *out, int zero)
{
    assert(a->k == w->k && a->group == sq_panels_act_group(w) && a->mr == MR);
    return (job){.w = w,
                 .a = a,
                 .out = out,
                 .panel_bytes = sq_panel_bytes(w),
                 .weight_bytes = sq_panel_weight_bytes(w),
                 .k_pad = sq_acts_k_pad(a),
                 .n_groups = sq_acts_groups(a),
                 .zero = zero};
}

void sq_gemm_i8_avx512(const sq_panels *w, uint32_t panel0, uint32_t n_panels, const sq_acts *a, const sq_gemm_out *out)
{
    const job j = make_job(w, a, out, 128);
    gemm(&j, tiles_i8, panel0, n_panels);
}

void sq_gemm_i4_avx512(const sq_panels *w, uint32_t panel0, uint32_t n_panels, const sq_acts *a, const sq_gemm_out *out)
{
    const job j = make_job(w, a, out, 8);
    gemm(&j, tiles_i4, panel0, n_panels);
}
