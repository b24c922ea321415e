/*
 * gemm_avx2: int8 activations times int8 or int4 panels. simd/gemm.c defines the results, to the last bit.
 * SPDX-License-Identifier: MIT
 *
 * A tile is R <= 6 rows by one panel of 16 channels, two ymm of eight 32-bit channels each; 12 registers hold
 * the running sums, 2 the weights, 1 an activation word sent to all lanes, 1 a product. The code is
 * compiled for several R, so a last tile of few rows costs few rows.
 *
 * int4: vpmaddubsw multiplies u4 by s8 and adds pairs; a pair is at most 2 * 15 * 127 = 3810, so 8 steps of 4
 * inputs (30480) fit int16, and one vpmaddwd by ones for 32 inputs widens them to int32, added to sums in memory.
 * Rows are taken in blocks of TILES tiles; within a block the panel is the outer loop, then a chunk of inputs, which is
 * unpacked to a byte an input once for all tiles and stays in L1. The activations of a block stream from L2.
 *
 * Uops of the vector units in 32 inputs, groups of 128: 96 vpmaddubsw, 84 vpaddw (the first step needs none), 24 to
 * widen, 9 for scales: 213, where the peak loop has 192, so 90 % of it is the most.
 *
 * int8: the same instruction would saturate (2 * 255 * 127). Bytes are widened to int16 instead, where
 * vpmaddwd is exact: even bytes of a word by AND, odd ones by shift. The activations are widened beforehand,
 * 256 inputs at a time, in the same order, and used for PANELS panels. Rows are taken in blocks whose activations stay
 * in L2; within a block the panel is the outer loop.
 */
#include "simd/x86/avx2.h"

enum {
    MR = SQ_MR_AVX2,
    NR = SQ_PANEL_N,
    LINE = 64,
    PANELS = 4,           /* int8: panels that share the widened activations */
    CHUNK = 256,          /* int8: inputs widened at a time */
    CHUNK_I4 = 1024,      /* int4: inputs unpacked at a time */
    TILES = 24,           /* int4: of a block of rows */
    FETCH_Q = 8,          /* int4: lines of the next tile's activations; the rest comes by itself */
    PREFETCH = 1024,      /* bytes ahead in the panel */
    ROWS_BYTES = 1 << 18, /* int8: activations of a block of rows */
};

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

/* sum = -zero * S of a group; s: [MR] */
SQ_INLINE void begin_group(const int32_t *s, int zero, __m256i sum[][2], uint32_t rows)
{
    int32_t offset[MR];
    const __m128i by = _mm_set1_epi32(-zero);
    _mm_storeu_si128((__m128i *)offset, _mm_mullo_epi32(_mm_loadu_si128((const __m128i *)s), by));
    _mm_storel_epi64((__m128i *)(offset + 4), _mm_mullo_epi32(_mm_loadl_epi64((const __m128i *)(s + 4)), by));
    __asm__ volatile("" : : "r"(offset) : "memory"); /* or GCC takes them out of the register, a shuffle each */
    SQ_UNROLL
    for (uint32_t r = 0; r < rows; r++)
        sum[r][0] = sum[r][1] = _mm256_set1_epi32(offset[r]);
}

/* v += sa * sw * sum of a group; sw: [NR] halves, or NULL: 1 */
SQ_INLINE void add_group(const float *sa, const uint16_t *sw, const __m256i sum[][2], __m256 v[][2], uint32_t rows)
{
    __m256 s[2];
    if (sw) {
        s[0] = _mm256_cvtph_ps(_mm_load_si128((const __m128i *)sw));
        s[1] = _mm256_cvtph_ps(_mm_load_si128((const __m128i *)sw + 1));
    }
    SQ_UNROLL
    for (uint32_t r = 0; r < rows; r++) {
        const __m256 scale = _mm256_broadcast_ss(sa + r);
        for (int h = 0; h < 2; h++) {
            const __m256 by = sw ? _mm256_mul_ps(scale, s[h]) : scale;
            v[r][h] = _mm256_fmadd_ps(by, _mm256_cvtepi32_ps(sum[r][h]), v[r][h]);
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

/* Of group g of panel p; NULL when its channels have one scale each. */
SQ_INLINE const uint16_t *group_scales(const job *j, uint32_t p, uint32_t g)
{
    const uint8_t *scales = j->w->data + p * j->panel_bytes + j->weight_bytes;
    return j->w->group ? (const uint16_t *)(const void *)scales + (size_t)g * NR : NULL;
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

/* ---- int4 -------------------------------------------------------------------------------- */

/* Inputs of a panel and a tile: whole groups, or what is left of the last. */
typedef struct piece {
    const uint8_t *line;
    const int8_t *q;
    const uint16_t *sw; /* NULL: a scale a channel */
    const float *sa;
    const int32_t *s;
    uint32_t k, group;
} piece;

/* acc += u4 * s8, one step of 4 inputs; the first sets acc. */
SQ_INLINE void step_i4(__m256i w0, __m256i w1, const int8_t *q, bool first, __m256i acc[][2], uint32_t rows)
{
    SQ_UNROLL
    for (uint32_t r = 0; r < rows; r++) {
        int32_t word;
        memcpy(&word, q + r * 4, sizeof word);
        const __m256i a = _mm256_set1_epi32(word);
        if (first) {
            acc[r][0] = _mm256_maddubs_epi16(w0, a);
            acc[r][1] = _mm256_maddubs_epi16(w1, a);
        } else {
            add_i16(&acc[r][0], _mm256_maddubs_epi16(w0, a));
            add_i16(&acc[r][1], _mm256_maddubs_epi16(w1, a));
        }
    }
}

/* acc = 32 inputs: 8 lines of bytes or 4 of nibbles. */
SQ_INLINE void block_i4(const uint8_t *line, bool bytes, const int8_t *q, __m256i acc[][2], uint32_t rows)
{
    SQ_UNROLL
    for (uint32_t s = 0; s < 8; s += 2, q += 8 * MR) {
        const __m256i *w = (const __m256i *)(line + s * (bytes ? LINE : LINE / 2));
        if (bytes) {
            step_i4(w[0], w[1], q, s == 0, acc, rows);
            step_i4(w[2], w[3], q + 4 * MR, false, acc, rows);
        } else {
            _mm_prefetch((const char *)w + PREFETCH, _MM_HINT_T0);
            step_i4(low_nibbles8(w[0]), low_nibbles8(w[1]), q, s == 0, acc, rows);
            step_i4(low_nibbles8(_mm256_srli_epi16(w[0], 4)), low_nibbles8(_mm256_srli_epi16(w[1], 4)), q + 4 * MR,
                    false, acc, rows);
        }
    }
}

/* out = sum + acc, whose int16 pairs are added to int32. The ones are a memory operand, as in low_nibbles8(). */
SQ_INLINE void add_sums(const __m256i acc[][2], const __m256i sum[][2], __m256i out[][2], uint32_t rows)
{
    static const uint64_t ones[4]
        __attribute__((aligned(32))) = {0x0001000100010001, 0x0001000100010001, 0x0001000100010001, 0x0001000100010001};
    for (uint32_t r = 0; r < rows; r++) {
        for (int h = 0; h < 2; h++) {
            __m256i wide = acc[r][h];
            __asm__("vpmaddwd %1, %0, %0" : "+x"(wide) : "m"(ones));
            out[r][h] = _mm256_add_epi32(wide, sum[r][h]);
        }
    }
}

/* v += a piece. Sums of 32 inputs fill the registers; those of the group are in memory. */
SQ_INLINE void tile_i4(const piece *x, bool bytes, __m256 v[][2], uint32_t rows)
{
    const size_t step = (size_t)LINE * (bytes ? 8 : 4);
    const uint8_t *line = x->line;
    const int8_t *q = x->q;
    const uint16_t *sw = x->sw;
    const float *sa = x->sa;
    const int32_t *s = x->s;
    for (uint32_t left = x->k, n; left; left -= n, sa += MR, s += MR) {
        n = left < x->group ? left : x->group;
        const uint8_t *const end = line + n / 32 * step;
        __m256i acc[MR][2], sum[MR][2];
        begin_group(s, 8, sum, rows);
        for (;;) {
            __asm__ volatile("" : : "r"(sum) : "memory"); /* or GCC keeps it in registers and spills acc */
            block_i4(line, bytes, q, acc, rows);
            line += step;
            q += 32 * MR;
            if (line == end) break;
            add_sums((const __m256i(*)[2])acc, (const __m256i(*)[2])sum, sum, rows);
        }
        add_sums((const __m256i(*)[2])acc, (const __m256i(*)[2])sum, acc, rows);
        if (sw) {
            add_group(sa, sw, (const __m256i(*)[2])acc, v, rows);
            sw += NR;
        } else {
            add_group(sa, NULL, (const __m256i(*)[2])acc, v, rows);
        }
    }
}

typedef void tile_i4_fn(const piece *x, __m256 v[][2]);

#define TILE_I4(name, bytes, rows)                                                                                     \
    static void tile_##name##_##rows(const piece *x, __m256 v[][2]) { tile_i4(x, bytes, v, rows); }

TILE_I4(i4, false, 1)
TILE_I4(i4, false, 2)
TILE_I4(i4, false, 4)
TILE_I4(i4, false, 6)
TILE_I4(bytes, true, 1)
TILE_I4(bytes, true, 2)
TILE_I4(bytes, true, 4)
TILE_I4(bytes, true, 6)

/* [unpacked][rows rounded up to even, halved]. A row too many is a row of zeros that nothing stores. */
static tile_i4_fn *const tiles_i4[2][MR / 2 + 1] = {{tile_i4_1, tile_i4_2, tile_i4_4, tile_i4_6},
                                                    {tile_bytes_1, tile_bytes_2, tile_bytes_4, tile_bytes_6}};

/* k inputs of a panel, as lines of 4 of them. */
static const uint8_t *unpack(const uint8_t *line, uint32_t k, uint8_t *out)
{
    for (uint32_t i = 0; i < k; i += 8, line += LINE) {
        for (int h = 0; h < LINE; h += 32) {
            const __m256i both = _mm256_load_si256((const __m256i *)(line + h));
            __m256i *to = (__m256i *)(out + (size_t)i / 4 * LINE + h);
            _mm256_store_si256(to, low_nibbles8(both));
            _mm256_store_si256(to + 2, low_nibbles8(_mm256_srli_epi16(both, 4)));
        }
    }
    return out;
}

/* Inputs [k, k + n) of panel p, whose weights are at `line`, and of a tile; k begins a group. */
static piece piece_of(const job *j, uint32_t p, const uint8_t *line, uint32_t tile, uint32_t k, uint32_t n)
{
    const uint32_t g = k / j->a->group;
    const size_t row0 = ((size_t)tile * j->n_groups + g) * MR;
    return (piece){.line = line,
                   .q = tile_q(j, tile) + (size_t)k * MR,
                   .sw = group_scales(j, p, g),
                   .sa = j->a->scale + row0,
                   .s = j->a->sum + row0,
                   .k = n,
                   .group = j->a->group};
}

/* While tile t of [t0, t0 + n) is multiplied: where the next one begins, into L1, and the n-th part of `next`, the
 * following chunk of weights, into L2. Past the panel lies another, or nothing is lost. */
static void fetch(const job *j, uint32_t t0, uint32_t t, uint32_t n, uint32_t k, const uint8_t *next, size_t lines)
{
    const int8_t *q = tile_q(j, t0 + t + 1) + (size_t)k * MR;
    for (uint32_t l = 0; l < FETCH_Q && t + 1 < n; l++)
        _mm_prefetch((const char *)q + (size_t)l * LINE, _MM_HINT_T0);
    for (size_t l = lines * t / n; l < lines * (t + 1) / n; l++)
        _mm_prefetch((const char *)next + l * LINE, _MM_HINT_T1);
}

/* Panel p for the tiles [t0, t0 + n). */
static void panel_i4(const job *j, uint32_t p, uint32_t t0, uint32_t n)
{
    __m256 v[TILES][MR][2];
    uint8_t bytes[CHUNK_I4 * NR] __attribute__((aligned(LINE)));
    const uint8_t *panel = j->w->data + p * j->panel_bytes;
    const uint32_t group = j->a->group;
    const bool unpacks = n > 2 && group <= CHUNK_I4; /* fewer tiles do not make up for it */
    const uint32_t chunk = unpacks ? CHUNK_I4 / group * group : j->k_pad;
    memset(v, 0, n * sizeof *v);
    for (uint32_t k = 0, step; k < j->k_pad; k += step) {
        const uint8_t *line = panel + (size_t)k * (NR / 2);
        step = j->k_pad - k < chunk ? j->k_pad - k : chunk;
        const uint8_t *const next = line + (size_t)step * (NR / 2);
        if (unpacks) line = unpack(line, step, bytes);
        for (uint32_t t = 0; t < n; t++) {
            const uint32_t rows = rows_in(j, t0 + t);
            if (unpacks) fetch(j, t0, t, n, k, next, step / 8);
            const piece x = piece_of(j, p, line, t0 + t, k, step);
            tiles_i4[unpacks][rows == 1 ? 0 : (rows + 1) / 2](&x, v[t]);
            if (k + step == j->k_pad) store(j, p, t0 + t, (const __m256(*)[2])v[t], rows);
        }
    }
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
        const size_t row0 = ((size_t)tile * j->n_groups + g) * MR;
        for (uint32_t i = 0; i < n; i++)
            begin_group(j->a->sum + row0, 128, sum[i], rows);
        for (uint32_t step; k < end; k += step) {
            step = end - k < CHUNK ? end - k : CHUNK;
            widen(q + (size_t)k * MR, a, (size_t)step / 4 * MR);
            for (uint32_t i = 0; i < n; i++) {
                lines_i8(j->w->data + (p + i) * j->panel_bytes + (size_t)k * NR, a, step, sum[i], rows);
            }
        }
        for (uint32_t i = 0; i < n; i++) {
            add_group(j->a->scale + row0, group_scales(j, p + i, g), (const __m256i(*)[2])sum[i], v[i], rows);
        }
    }
    for (uint32_t i = 0; i < n; i++)
        store(j, p + i, tile, (const __m256(*)[2])v[i], rows);
}

typedef void tile_i8_fn(const job *j, uint32_t p, uint32_t n, uint32_t tile);

#define TILE_I8(rows)                                                                                                  \
    static void tile_i8_##rows(const job *j, uint32_t p, uint32_t n, uint32_t tile) { tile_i8(j, p, n, tile, rows); }

TILE_I8(1)
TILE_I8(2)
TILE_I8(3)
TILE_I8(4)
TILE_I8(5)
TILE_I8(6)

static tile_i8_fn *const tiles_i8[MR + 1] = {NULL, tile_i8_1, tile_i8_2, tile_i8_3, tile_i8_4, tile_i8_5, tile_i8_6};

/* ---- Blocks of rows ---------------------------------------------------------------------- */

/* Tiles in a block of at most `most`; a last block of few tiles is shared out over the others. */
static uint32_t tiles_a_block(uint32_t tiles, uint32_t most)
{
    const uint32_t blocks = (tiles + most - 1) / most;
    return blocks ? (tiles + blocks - 1) / blocks : 1;
}

void sq_gemm_i8_avx2(const sq_panels *w, uint32_t panel0, uint32_t n_panels, const sq_acts *a, const sq_gemm_out *out)
{
    const job j = make_job(w, a, out);
    const uint32_t fit = ROWS_BYTES / (j.k_pad * MR), tiles = sq_acts_tiles(a), last = panel0 + n_panels;
    const uint32_t block = tiles_a_block(tiles, fit ? fit : 1);
    for (uint32_t t0 = 0; t0 < tiles; t0 += block) {
        for (uint32_t p = panel0; p < last; p += PANELS) {
            const uint32_t n = last - p < PANELS ? last - p : PANELS;
            for (uint32_t t = t0; t < t0 + block && t < tiles; t++)
                tiles_i8[rows_in(&j, t)](&j, p, n, t);
        }
    }
}

void sq_gemm_i4_avx2(const sq_panels *w, uint32_t panel0, uint32_t n_panels, const sq_acts *a, const sq_gemm_out *out)
{
    const job j = make_job(w, a, out);
    const uint32_t tiles = sq_acts_tiles(a), block = tiles_a_block(tiles, TILES);
    for (uint32_t t0 = 0; t0 < tiles; t0 += block) {
        for (uint32_t p = panel0; p < panel0 + n_panels; p++)
            panel_i4(&j, p, t0, tiles - t0 < block ? tiles - t0 : block);
    }
}
