/*
 * gemm_avx2: int8 activations times int8 or int4 panels. simd/gemm.c defines the results, to the last bit.
 * SPDX-License-Identifier: MIT
 *
 * A tile is R <= 6 rows by one panel of 16 channels, two ymm of eight 32-bit channels each; 12 registers hold
 * the running sums, 2 the weights, 1 an activation word sent to all lanes, 1 a product. The code is
 * compiled once for each R, so a last tile of few rows costs few rows.
 *
 * int4: vpmaddubsw multiplies u4 by s8 and adds pairs; a pair is at most 2 * 15 * 127 = 3810, so 8 steps of 4
 * inputs (30480) fit int16, and one vpmaddwd by ones for 32 inputs widens them to int32.
 *
 * int8: the same instruction would saturate (2 * 255 * 127). Bytes are widened to int16 instead, where
 * vpmaddwd is exact: even bytes of a word by AND, odd ones by shift. The activations are widened beforehand,
 * 256 inputs at a time, in the same order, and used for PANELS panels.
 *
 * Cache: rows are taken in blocks whose activations stay in L2; within a block the panel is the outer loop.
 */
#include "simd/x86/avx2.h"

enum {
    MR = SQ_MR_AVX2,
    NR = SQ_PANEL_N,
    LINE = 64,
    PANELS = 4,           /* int8: panels that share the widened activations */
    CHUNK = 256,          /* int8: inputs widened at a time */
    PREFETCH = 1024,      /* bytes ahead in the panel */
    ROWS_BYTES = 1 << 18, /* activations of a block of rows */
};

/* In place and in this order: GCC 12 would regroup the sums, make all products first and spill them. */
SQ_INLINE void add_i16(__m256i *sum, __m256i v) { __asm__("vpaddw %1, %0, %0" : "+x"(*sum) : "x"(v)); }
SQ_INLINE void add_i32(__m256i *sum, __m256i v) { __asm__("vpaddd %1, %0, %0" : "+x"(*sum) : "x"(v)); }

/* ---- Shared: scales, groups, store ------------------------------------------------------- */

typedef struct job {
    const sq_panels *w;
    const sq_acts *a;
    const sq_gemm_out *out;
    size_t panel_bytes, weight_bytes;
    uint32_t k_pad, n_groups;
} job;

static job make_job(const sq_panels *w, const sq_acts *a, const sq_gemm_out *out)
{
    assert(a->k == w->k && a->group == sq_panels_act_group(w) && a->mr == MR);
    return (job){.w = w,
                 .a = a,
                 .out = out,
                 .panel_bytes = sq_panel_bytes(w),
                 .weight_bytes = sq_panel_weight_bytes(w),
                 .k_pad = sq_acts_k_pad(a),
                 .n_groups = sq_acts_groups(a)};
}

SQ_INLINE const int8_t *tile_q(const job *j, uint32_t tile) { return j->a->q + (size_t)tile * j->k_pad * MR; }

SQ_INLINE uint32_t rows_in(const job *j, uint32_t tile)
{
    const uint32_t left = j->a->m - tile * MR;
    return left < MR ? left : MR;
}

/* v += sa * sw * (sum - zero * S) for group g. */
SQ_INLINE void add_group(const job *j, const uint8_t *panel, uint32_t tile, uint32_t g, int zero,
                         const __m256i sum[][2], __m256 v[][2], uint32_t rows)
{
    const size_t at = ((size_t)tile * j->n_groups + g) * MR;
    const float *sa = j->a->scale + at;
    const int32_t *s = j->a->sum + at;
    __m256 sw[2] = {_mm256_set1_ps(1.0f), _mm256_set1_ps(1.0f)};
    if (j->w->group) {
        const __m128i *half = (const __m128i *)(panel + j->weight_bytes + (size_t)g * NR * sizeof(uint16_t));
        sw[0] = _mm256_cvtph_ps(_mm_load_si128(half));
        sw[1] = _mm256_cvtph_ps(_mm_load_si128(half + 1));
    }
    for (uint32_t r = 0; r < rows; r++) {
        const __m256i offset = _mm256_set1_epi32(zero * s[r]);
        const __m256 scale = _mm256_broadcast_ss(sa + r);
        for (int h = 0; h < 2; h++) {
            const __m256 i = _mm256_cvtepi32_ps(_mm256_sub_epi32(sum[r][h], offset));
            v[r][h] = _mm256_fmadd_ps(_mm256_mul_ps(scale, sw[h]), i, v[r][h]);
        }
    }
}

/* The store of sq_gemm_out, half a panel: channels j0 .. j0 + 7, of which `left` exist. */
SQ_INLINE void store_half(const sq_gemm_out *o, uint32_t i, uint32_t j0, int64_t left, __m256 v)
{
    float *c = o->c + (o->rows ? o->rows[i] : i) * o->ldc + j0;
    const __m256i mask = first_lanes(left);
    if (o->bias) v = _mm256_add_ps(v, _mm256_maskload_ps(o->bias + j0, mask));
    if (o->row_weight) v = _mm256_mul_ps(_mm256_broadcast_ss(o->row_weight + i), v);
    if (o->add) v = _mm256_add_ps(_mm256_maskload_ps(c, mask), v);
    _mm256_maskstore_ps(c, mask, v);
}

static void store(const job *j, uint32_t p, uint32_t tile, const __m256 v[][2], uint32_t rows)
{
    const uint32_t j0 = p * NR, n = j->w->n - j0;
    const float *channel = (const float *)(j->w->data + p * j->panel_bytes + j->weight_bytes);
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t h = 0; h < 2 && h * 8 < n; h++) {
            const __m256 t = j->w->group ? v[r][h] : _mm256_mul_ps(v[r][h], _mm256_load_ps(channel + h * 8));
            store_half(j->out, tile * MR + r, j0 + h * 8, (int64_t)n - h * 8, t);
        }
    }
}

/* Tiles in a block of rows; a last block of few tiles is shared out over the others. */
static uint32_t tiles_a_block(const job *j)
{
    const uint32_t tiles = sq_acts_tiles(j->a), fit = ROWS_BYTES / (j->k_pad * MR), most = fit ? fit : 1;
    const uint32_t blocks = (tiles + most - 1) / most;
    return (tiles + blocks - 1) / blocks;
}

/* ---- int4 -------------------------------------------------------------------------------- */

/* acc += u4 * s8, one step of 4 inputs */
SQ_INLINE void step_i4(__m256i w0, __m256i w1, const int8_t *q, __m256i acc[][2], uint32_t rows)
{
    for (uint32_t r = 0; r < rows; r++) {
        int32_t word;
        memcpy(&word, q + r * 4, sizeof word);
        const __m256i a = _mm256_set1_epi32(word);
        add_i16(&acc[r][0], _mm256_maddubs_epi16(w0, a));
        add_i16(&acc[r][1], _mm256_maddubs_epi16(w1, a));
    }
}

/* sum += 32 inputs: 4 lines of weights */
SQ_INLINE void block_i4(const uint8_t *lines, const int8_t *q, __m256i sum[][2], uint32_t rows)
{
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i acc[MR][2];
    for (uint32_t r = 0; r < rows; r++)
        acc[r][0] = acc[r][1] = _mm256_setzero_si256();
    for (int l = 0; l < 4; l++, lines += LINE, q += 8 * MR) {
        const __m256i *w = (const __m256i *)lines;
        _mm_prefetch((const char *)lines + PREFETCH, _MM_HINT_T0);
        step_i4(low_nibbles8(w[0]), low_nibbles8(w[1]), q, acc, rows);
        step_i4(low_nibbles8(_mm256_srli_epi16(w[0], 4)), low_nibbles8(_mm256_srli_epi16(w[1], 4)), q + 4 * MR, acc,
                rows);
    }
    for (uint32_t r = 0; r < rows; r++) {
        for (int h = 0; h < 2; h++)
            sum[r][h] = _mm256_add_epi32(sum[r][h], _mm256_madd_epi16(acc[r][h], ones));
    }
}

SQ_INLINE void tile_i4(const job *j, uint32_t p, uint32_t tile, uint32_t rows)
{
    const uint8_t *panel = j->w->data + p * j->panel_bytes;
    const int8_t *q = tile_q(j, tile);
    __m256 v[MR][2];
    for (uint32_t r = 0; r < rows; r++)
        v[r][0] = v[r][1] = _mm256_setzero_ps();
    for (uint32_t g = 0, k = 0; g < j->n_groups; g++) {
        const uint32_t end = j->k_pad - k < j->a->group ? j->k_pad : k + j->a->group;
        __m256i sum[MR][2];
        for (uint32_t r = 0; r < rows; r++)
            sum[r][0] = sum[r][1] = _mm256_setzero_si256();
        for (; k < end; k += 32)
            block_i4(panel + (size_t)k * (NR / 2), q + (size_t)k * MR, sum, rows);
        add_group(j, panel, tile, g, 8, sum, v, rows);
    }
    store(j, p, tile, v, rows);
}

/* ---- int8 -------------------------------------------------------------------------------- */

/* Words a0 a1 a2 a3 of int8 become a0 a2 a1 a3 of int16: n words, a multiple of 4. */
static void widen(const int8_t *q, int16_t *out, size_t n)
{
    const __m128i even_odd = _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
    for (size_t i = 0; i < n; i += 4) {
        const __m128i words = _mm_load_si128((const __m128i *)(q + i * 4));
        _mm256_store_si256((__m256i *)(out + i * 4), _mm256_cvtepi8_epi16(_mm_shuffle_epi8(words, even_odd)));
    }
}

SQ_INLINE __m256i pair(const int16_t *a)
{
    int32_t word;
    memcpy(&word, a, sizeof word);
    return _mm256_set1_epi32(word);
}

/* sum += k inputs, each line 4 of them; a: [k / 4][MR][2 even, 2 odd] */
SQ_INLINE void lines_i8(const uint8_t *line, const int16_t *a, uint32_t k, __m256i total[][2], uint32_t rows)
{
    const __m256i low = _mm256_set1_epi16(255);
    __m256i sum[MR][2];
    for (uint32_t r = 0; r < rows; r++) {
        sum[r][0] = total[r][0];
        sum[r][1] = total[r][1];
    }
    for (; k; k -= 4, line += LINE, a += MR * 4) {
        const __m256i *w = (const __m256i *)line;
        _mm_prefetch((const char *)line + PREFETCH, _MM_HINT_T0);
        const __m256i e0 = _mm256_and_si256(w[0], low), e1 = _mm256_and_si256(w[1], low);
        for (uint32_t r = 0; r < rows; r++) {
            const __m256i b = pair(a + r * 4);
            add_i32(&sum[r][0], _mm256_madd_epi16(e0, b));
            add_i32(&sum[r][1], _mm256_madd_epi16(e1, b));
        }
        const __m256i o0 = _mm256_srli_epi16(w[0], 8), o1 = _mm256_srli_epi16(w[1], 8);
        for (uint32_t r = 0; r < rows; r++) {
            const __m256i b = pair(a + r * 4 + 2);
            add_i32(&sum[r][0], _mm256_madd_epi16(o0, b));
            add_i32(&sum[r][1], _mm256_madd_epi16(o1, b));
        }
    }
    for (uint32_t r = 0; r < rows; r++) {
        total[r][0] = sum[r][0];
        total[r][1] = sum[r][1];
    }
}

/* One tile of rows by n <= PANELS panels. */
SQ_INLINE void tile_i8(const job *j, uint32_t p, uint32_t n, uint32_t tile, uint32_t rows)
{
    const int8_t *q = tile_q(j, tile);
    int16_t a[CHUNK * MR] __attribute__((aligned(32)));
    __m256 v[PANELS][MR][2];
    __m256i sum[PANELS][MR][2];
    memset(v, 0, sizeof v);
    for (uint32_t g = 0, k = 0; g < j->n_groups; g++) {
        const uint32_t end = j->k_pad - k < j->a->group ? j->k_pad : k + j->a->group;
        memset(sum, 0, sizeof sum);
        for (uint32_t step; k < end; k += step) {
            step = end - k < CHUNK ? end - k : CHUNK;
            widen(q + (size_t)k * MR, a, (size_t)step / 4 * MR);
            for (uint32_t i = 0; i < n; i++) {
                lines_i8(j->w->data + (p + i) * j->panel_bytes + (size_t)k * NR, a, step, sum[i], rows);
            }
        }
        for (uint32_t i = 0; i < n; i++) {
            add_group(j, j->w->data + (p + i) * j->panel_bytes, tile, g, 128, sum[i], v[i], rows);
        }
    }
    for (uint32_t i = 0; i < n; i++)
        store(j, p + i, tile, v[i], rows);
}

/* ---- One function for each number of rows ------------------------------------------------ */

typedef void tile_fn(const job *j, uint32_t p, uint32_t n, uint32_t tile);

#define TILE_I4(rows)                                                                                                  \
    static void tile_i4_##rows(const job *j, uint32_t p, uint32_t n, uint32_t tile)                                    \
    {                                                                                                                  \
        for (uint32_t i = 0; i < n; i++)                                                                               \
            tile_i4(j, p + i, tile, rows);                                                                             \
    }
#define TILE_I8(rows)                                                                                                  \
    static void tile_i8_##rows(const job *j, uint32_t p, uint32_t n, uint32_t tile) { tile_i8(j, p, n, tile, rows); }

TILE_I4(1)
TILE_I4(2)
TILE_I4(3)
TILE_I4(4)
TILE_I4(5) TILE_I4(6) TILE_I8(1) TILE_I8(2) TILE_I8(3) TILE_I8(4) TILE_I8(5) TILE_I8(6)

    static tile_fn *const tiles_i4[MR + 1] = {NULL, tile_i4_1, tile_i4_2, tile_i4_3, tile_i4_4, tile_i4_5, tile_i4_6};
static tile_fn *const tiles_i8[MR + 1] = {NULL, tile_i8_1, tile_i8_2, tile_i8_3, tile_i8_4, tile_i8_5, tile_i8_6};

static void gemm(const job *j, tile_fn *const *tiles, uint32_t panel0, uint32_t n_panels, uint32_t n_step)
{
    const uint32_t n_tiles = sq_acts_tiles(j->a), last = panel0 + n_panels;
    const uint32_t block = n_tiles ? tiles_a_block(j) : 1;
    for (uint32_t t0 = 0; t0 < n_tiles; t0 += block) {
        const uint32_t t1 = n_tiles - t0 < block ? n_tiles : t0 + block;
        for (uint32_t p = panel0; p < last; p += n_step) {
            const uint32_t n = last - p < n_step ? last - p : n_step;
            for (uint32_t t = t0; t < t1; t++)
                tiles[rows_in(j, t)](j, p, n, t);
        }
    }
}

void sq_gemm_i8_avx2(const sq_panels *w, uint32_t panel0, uint32_t n_panels, const sq_acts *a, const sq_gemm_out *out)
{
    const job j = make_job(w, a, out);
    gemm(&j, tiles_i8, panel0, n_panels, PANELS);
}

void sq_gemm_i4_avx2(const sq_panels *w, uint32_t panel0, uint32_t n_panels, const sq_acts *a, const sq_gemm_out *out)
{
    const job j = make_job(w, a, out);
    gemm(&j, tiles_i4, panel0, n_panels, 1);
}
