/*
 * gemm_avx2: int8 activations times int8 or int4 panels. simd/gemm.c defines the results, to the last bit.
 * SPDX-License-Identifier: MIT
 *
 * A tile is R <= 6 rows by one panel of 16 channels, two ymm of eight 32-bit channels each; 12 registers hold
 * the running sums, 2 the weights, 1 an activation word sent to all lanes, 1 a product. The code is
 * compiled for several R, so a last tile of few rows costs few rows.
 *
 * Rows are taken in blocks of TILES tiles; within a block PANELS panels are the outer loop, then a chunk of inputs,
 * whose weights are unpacked once for all tiles and stay in L1, and then the tiles. Activations and float sums of a
 * block stream from L2; while a tile is multiplied, the next one's activations are fetched to L1 line by line (all at
 * once they are slower), and in the last chunk the lines of C that it will store.
 *
 * int4: vpmaddubsw multiplies u4 by s8 and adds pairs; a pair is at most 2 * 15 * 127 = 3810, so 8 steps of 4
 * inputs (30480) fit int16, and one vpmaddwd by ones for 32 inputs widens them to int32, added to sums in memory.
 * Unpacked weights have a byte an input. Uops of the vector units in 32 inputs, groups of 128: 96 vpmaddubsw, 84 vpaddw
 * (the first step needs none), 24 to widen: the 204 of the peak loop; and 9 for scales, so 96 % of it is the most.
 * All but the additions need port 0 or 1. Scales one after the other would leave the third port idle, so a group's are
 * applied row by row between the steps of the next group.
 *
 * int8: the same instruction would saturate (2 * 255 * 127). Bytes are widened to int16 instead, where vpmaddwd is
 * exact: even bytes of a word and odd ones, of the weights when they are unpacked, of a tile's activations once for all
 * panels.
 *
 * A single row, as in decoding, is bound by reading the weights. A core that reads one place at a time gets little more
 * than half of the bandwidth, so PANELS panels go along together.
 */
#include "simd/x86/avx2.h"

enum {
    MR = SQ_MR_AVX2,
    NR = SQ_PANEL_N,
    LINE = 64,
    PANELS = 4,
    CHUNK_I8 = 256,               /* inputs; the unpacked weights of all panels take 32 KiB */
    CHUNK_I4 = 512,               /* the same */
    GROUPS = CHUNK_I4 / SQ_BLOCK, /* of a chunk at most */
    TILES = 60,                   /* of a block at most; their sums, 90 KiB, are on the stack */
    PREFETCH = 1024,              /* bytes ahead in a panel whose weights are used once only */
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

/* Inputs [k, k + n) of a tile and of some panels: whole groups, or what is left of the last. */
typedef struct piece {
    uint32_t tile, k, n, panel, panels;
    const uint8_t *line;                /* the weights of the first panel */
    size_t stride;                      /* from panel to panel */
    const float (*scales)[GROUPS * NR]; /* of each panel's groups */
    const int8_t *ahead;                /* activations that will be needed next */
} piece;

/* The float sums of a tile and one panel. */
typedef __m256 sums[MR][2];

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

SQ_INLINE uint32_t rows_in(const job *j, uint32_t tile) { return min_u32(j->a->m - tile * MR, MR); }

/* v += sa * sw * sum of a row and a group; sw: [NR] */
SQ_INLINE void add_row(float sa, const float *sw, const __m256i sum[2], __m256 v[2])
{
    const __m256 scale = _mm256_set1_ps(sa);
    for (int h = 0; h < 2; h++) {
        const __m256 by = _mm256_mul_ps(scale, _mm256_load_ps(sw + h * 8));
        v[h] = _mm256_fmadd_ps(by, _mm256_cvtepi32_ps(sum[h]), v[h]);
    }
}

/* The same of all rows; sa: [MR] */
SQ_INLINE void add_group(const float *sa, const float *sw, const __m256i sum[][2], __m256 v[][2], uint32_t rows)
{
    SQ_UNROLL
    for (uint32_t r = 0; r < rows; r++)
        add_row(sa[r], sw, sum[r], v[r]);
}

/* Scales of n groups of panel p from group g on; 1 when its channels have one each. */
static void read_scales(const job *j, uint32_t p, uint32_t g, uint32_t n, float *out)
{
    const uint8_t *const scales = j->w->data + p * j->panel_bytes + j->weight_bytes;
    const __m128i *const halves = (const __m128i *)scales + 2 * g;
    for (uint32_t i = 0; i < 2 * n; i++)
        _mm256_store_ps(out + i * 8, j->w->group ? _mm256_cvtph_ps(_mm_load_si128(halves + i)) : _mm256_set1_ps(1));
}

/* The store of sq_gemm_out, half a panel: channels j0 .. j0 + 7, of which `left` exist, of row i; c: their place */
SQ_INLINE void store_half(const sq_gemm_out *o, uint32_t i, float *c, uint32_t j0, int64_t left, __m256 v)
{
    const __m256i mask = first_lanes(left);
    if (o->bias) v = _mm256_add_ps(v, _mm256_maskload_ps(o->bias + j0, mask));
    if (o->row_weight) v = _mm256_mul_ps(_mm256_broadcast_ss(o->row_weight + i), v);
    if (o->add) v = _mm256_add_ps(_mm256_maskload_ps(c, mask), v);
    _mm256_maskstore_ps(c, mask, v);
}

SQ_INLINE float *row_of_c(const sq_gemm_out *o, uint32_t i) { return o->c + (o->rows ? o->rows[i] : i) * o->ldc; }

static void store(const job *j, uint32_t p, uint32_t tile, const __m256 v[][2])
{
    const uint32_t rows = rows_in(j, tile);
    const uint32_t j0 = p * NR, n = j->w->n - j0;
    const float *channel = (const float *)(j->w->data + p * j->panel_bytes + j->weight_bytes);
    const bool plain = n >= NR && j->w->group && !j->out->bias && !j->out->row_weight && !j->out->add;
    for (uint32_t r = 0; r < rows; r++) {
        const uint32_t i = tile * MR + r;
        float *const c = row_of_c(j->out, i) + j0;
        if (plain) {
            _mm256_storeu_ps(c, v[r][0]);
            _mm256_storeu_ps(c + 8, v[r][1]);
            continue;
        }
        for (uint32_t h = 0; h < 2 && h * 8 < n; h++) {
            const __m256 t = j->w->group ? v[r][h] : _mm256_mul_ps(v[r][h], _mm256_load_ps(channel + h * 8));
            store_half(j->out, i, c + h * 8, j0 + h * 8, (int64_t)n - h * 8, t);
        }
    }
}

/* The two parts of packed weights: inputs 0 .. 3 and 4 .. 7 as bytes (int4), or even and odd ones as words. */
SQ_INLINE __m256i low_part(__m256i v, bool i4)
{
    return i4 ? low_nibbles8(v) : _mm256_and_si256(v, _mm256_set1_epi16(255));
}

SQ_INLINE __m256i high_part(__m256i v, bool i4)
{
    return i4 ? low_nibbles8(_mm256_srli_epi16(v, 4)) : _mm256_srli_epi16(v, 8);
}

/* A line becomes two: its low parts, its high parts. */
static void unpack(const uint8_t *line, uint32_t lines, bool i4, uint8_t *out)
{
    for (; lines; lines--, line += LINE, out += (size_t)2 * LINE) {
        for (uint32_t h = 0; h < LINE; h += 32) {
            const __m256i v = _mm256_load_si256((const __m256i *)(line + h));
            _mm256_store_si256((__m256i *)(out + h), low_part(v, i4));
            _mm256_store_si256((__m256i *)(out + LINE + h), high_part(v, i4));
        }
    }
}

/* 4 activations, or 2 widened ones, sent to all lanes */
SQ_INLINE __m256i word(const void *a)
{
    int32_t bits;
    memcpy(&bits, a, sizeof bits);
    return _mm256_set1_epi32(bits);
}

/* ---- int4 -------------------------------------------------------------------------------- */

/* acc += u4 * s8, one step of 4 inputs; the first sets acc. */
SQ_INLINE void step_i4(__m256i w0, __m256i w1, const int8_t *q, bool first, __m256i acc[][2], uint32_t rows)
{
    SQ_UNROLL
    for (uint32_t r = 0; r < rows; r++) {
        const __m256i a = word(q + r * 4);
        if (first) {
            acc[r][0] = _mm256_maddubs_epi16(w0, a);
            acc[r][1] = _mm256_maddubs_epi16(w1, a);
        } else {
            add_i16(&acc[r][0], _mm256_maddubs_epi16(w0, a));
            add_i16(&acc[r][1], _mm256_maddubs_epi16(w1, a));
        }
    }
}

/* A group whose sums are complete, to be added to v. */
typedef struct ending {
    const float *sa, *sw; /* [MR], [NR] */
    __m256 (*v)[2];
} ending;

/* acc = 32 inputs: 8 lines of bytes or 4 of nibbles. Between the steps the rows of the group that ended before (end, or
 * NULL) are added from sum. */
SQ_INLINE void block_i4(const uint8_t *line, bool unpacked, const int8_t *q, const ending *end, const __m256i sum[][2],
                        __m256i acc[][2], uint32_t rows)
{
    SQ_UNROLL
    for (uint32_t s = 0; s < 8; s++, q += 4 * MR) {
        const __m256i *w = (const __m256i *)(line + (unpacked ? s : s / 2) * LINE);
        if (unpacked) {
            step_i4(w[0], w[1], q, s == 0, acc, rows);
        } else if (s % 2 == 0) {
            _mm_prefetch((const char *)w + PREFETCH, _MM_HINT_T0);
            step_i4(low_part(w[0], true), low_part(w[1], true), q, s == 0, acc, rows);
        } else {
            step_i4(high_part(w[0], true), high_part(w[1], true), q, false, acc, rows);
        }
        if (end && s < rows) add_row(end->sa[s], end->sw, sum[s], end->v[s]);
    }
}

/* The pairs of int16 added to int32. The ones are a memory operand, as in low_nibbles8(). */
SQ_INLINE __m256i add_pairs(__m256i v)
{
    static const uint64_t ones[4]
        __attribute__((aligned(32))) = {0x0001000100010001, 0x0001000100010001, 0x0001000100010001, 0x0001000100010001};
    __asm__("vpmaddwd %1, %0, %0" : "+x"(v) : "m"(ones));
    return v;
}

/* sum = -8 * S + acc of a group's first 32 inputs; offset: -8 * S */
SQ_INLINE void begin_sums(const int32_t *offset, const __m256i acc[][2], __m256i sum[][2], uint32_t rows)
{
    SQ_UNROLL
    for (uint32_t r = 0; r < rows; r++) {
        const __m256i o = _mm256_set1_epi32(offset[r]);
        sum[r][0] = _mm256_add_epi32(add_pairs(acc[r][0]), o);
        sum[r][1] = _mm256_add_epi32(add_pairs(acc[r][1]), o);
    }
}

SQ_INLINE void add_sums(const __m256i acc[][2], __m256i sum[][2], uint32_t rows)
{
    SQ_UNROLL
    for (uint32_t r = 0; r < rows; r++) {
        sum[r][0] = _mm256_add_epi32(add_pairs(acc[r][0]), sum[r][0]);
        sum[r][1] = _mm256_add_epi32(add_pairs(acc[r][1]), sum[r][1]);
    }
}

/* v += a piece. Sums of 32 inputs fill the registers; those of the group are in memory. */
SQ_INLINE void tile_i4(const job *j, const piece *x, bool unpacked, sums v[], uint32_t rows)
{
    static const float zeros[NR] __attribute__((aligned(32))) = {0};
    const size_t step = (size_t)LINE * (unpacked ? 8 : 4), ahead_step = 32 * MR / x->panels;
    const uint32_t group = j->a->group;
    const size_t row0 = ((size_t)x->tile * j->n_groups + x->k / group) * MR;
    const int8_t *ahead = x->ahead;
    int32_t offset[GROUPS * MR];
    __m256i acc[MR][2], sum[MR][2] = {0};
    __m256 nothing[MR][2] = {0};
    ending end = {zeros, zeros, nothing};
    for (uint32_t i = 0; i < (x->n + group - 1) / group * MR; i++)
        offset[i] = -8 * j->a->sum[row0 + i];
    for (uint32_t i = 0; i < x->panels; i++) {
        const uint8_t *line = x->line + i * x->stride;
        const int8_t *q = tile_q(j, x->tile) + (size_t)x->k * MR;
        const float *sa = j->a->scale + row0, *sw = x->scales[i];
        const int32_t *o = offset;
        for (uint32_t left = x->n, n; left; left -= n, sa += MR, o += MR, sw += NR) {
            n = min_u32(left, group);
            const uint8_t *const stop = line + n / 32 * step;
            __asm__ volatile("" : : "r"(sum) : "memory"); /* or GCC copies it at the end of a group, */
            _mm_prefetch((const char *)ahead, _MM_HINT_T0);
            block_i4(line, unpacked, q, &end, (const __m256i(*)[2])sum, acc, rows);
            begin_sums(o, (const __m256i(*)[2])acc, sum, rows);
            ahead += ahead_step;
            line += step;
            q += 32 * MR;
            while (line != stop) {
                __asm__ volatile("" : : "r"(sum) : "memory"); /* or keeps it in registers and spills acc */
                _mm_prefetch((const char *)ahead, _MM_HINT_T0);
                block_i4(line, unpacked, q, NULL, NULL, acc, rows);
                add_sums((const __m256i(*)[2])acc, sum, rows);
                ahead += ahead_step;
                line += step;
                q += 32 * MR;
            }
            end = (ending){sa, sw, v[i]};
        }
    }
    add_group(end.sa, end.sw, (const __m256i(*)[2])sum, end.v, rows);
}

/* ---- int8 -------------------------------------------------------------------------------- */

/* sum = -128 * S of a group; s: [MR] */
SQ_INLINE void begin_group(const int32_t *s, __m256i sum[][2], uint32_t rows)
{
    int32_t offset[MR];
    const __m128i by = _mm_set1_epi32(-128);
    _mm_storeu_si128((__m128i *)offset, _mm_mullo_epi32(_mm_loadu_si128((const __m128i *)s), by));
    _mm_storel_epi64((__m128i *)(offset + 4), _mm_mullo_epi32(_mm_loadl_epi64((const __m128i *)(s + 4)), by));
    __asm__ volatile("" : : "r"(offset) : "memory"); /* or GCC takes them out of the register, a shuffle each */
    SQ_UNROLL
    for (uint32_t r = 0; r < rows; r++)
        sum[r][0] = sum[r][1] = _mm256_set1_epi32(offset[r]);
}

/* Words a0 a1 a2 a3 of int8 become a0 a2 a1 a3 of int16: n words, a multiple of 4. */
static void widen(const int8_t *q, int16_t *out, size_t n)
{
    const __m128i even_odd = _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
    for (size_t i = 0; i < n; i += 4) {
        const __m128i words = _mm_load_si128((const __m128i *)(q + i * 4));
        _mm256_store_si256((__m256i *)(out + i * 4), _mm256_cvtepi8_epi16(_mm_shuffle_epi8(words, even_odd)));
    }
}

/* sum += k inputs, each packed line 4 of them; a: [k / 4][MR][2 even, 2 odd] */
SQ_INLINE void lines_i8(const uint8_t *line, bool unpacked, const int16_t *a, uint32_t k, __m256i sum[][2],
                        uint32_t rows)
{
    SQ_UNROLL
    for (uint32_t r = 0; r < rows; r++)
        __asm__("" : "+x"(sum[r][0]), "+x"(sum[r][1])); /* or GCC moves sums about within the loop */
    for (; k; k -= 4, line += unpacked ? 2 * LINE : LINE, a += MR * 4) {
        const __m256i *w = (const __m256i *)line;
        if (!unpacked) _mm_prefetch((const char *)line + PREFETCH, _MM_HINT_T0);
        SQ_UNROLL
        for (uint32_t part = 0; part < 2; part++) {
            __m256i u[2];
            for (uint32_t h = 0; h < 2; h++)
                u[h] = unpacked ? w[2 * part + h] : part ? high_part(w[h], false) : low_part(w[h], false);
            SQ_UNROLL
            for (uint32_t r = 0; r < rows; r++) {
                const __m256i b = word(a + r * 4 + part * 2);
                add_i32(&sum[r][0], _mm256_madd_epi16(u[0], b));
                add_i32(&sum[r][1], _mm256_madd_epi16(u[1], b));
            }
        }
    }
}

/* v += a piece of at most CHUNK_I8 inputs, or of one group; the sums of a longer one are in memory meanwhile. */
SQ_INLINE void tile_i8(const job *j, const piece *x, bool unpacked, sums v[], uint32_t rows)
{
    int16_t a[CHUNK_I8 * MR] __attribute__((aligned(32)));
    __m256i total[PANELS][MR][2];
    const int8_t *q = tile_q(j, x->tile) + (size_t)x->k * MR;
    const int8_t *ahead = x->ahead;
    const size_t input_bytes = unpacked ? 2 * NR : NR;
    const uint32_t group0 = x->k / j->a->group;
    for (uint32_t done = 0, step; done < x->n; done += step) {
        step = min_u32(x->n - done, CHUNK_I8);
        widen(q + (size_t)done * MR, a, (size_t)step / 4 * MR);
        for (uint32_t i = 0; i < x->panels; i++) {
            const uint8_t *const line = x->line + i * x->stride + done * input_bytes;
            for (uint32_t l = 0; l < step * MR / x->panels; l += LINE)
                _mm_prefetch((const char *)ahead + l, _MM_HINT_T0);
            ahead += step * MR / x->panels;
            for (uint32_t k = 0, n; k < step; k += n) {
                const uint32_t g = k / j->a->group;
                const size_t row0 = ((size_t)x->tile * j->n_groups + group0 + g) * MR;
                __m256i sum[MR][2];
                n = min_u32(step - k, j->a->group);
                if (done)
                    memcpy(sum, total[i], sizeof sum);
                else
                    begin_group(j->a->sum + row0, sum, rows);
                lines_i8(line + k * input_bytes, unpacked, a + (size_t)k * MR, n, sum, rows);
                if (done + step < x->n)
                    memcpy(total[i], sum, sizeof sum);
                else
                    add_group(j->a->scale + row0, x->scales[i] + (size_t)g * NR, (const __m256i(*)[2])sum, v[i], rows);
            }
        }
    }
}

/* ---- A single row ------------------------------------------------------------------------ */

/* sum += w * a of a packed line's vector; a: what its low and its high part are multiplied by */
SQ_INLINE void dot_line(__m256i *sum, const uint8_t *w, bool i4, const __m256i a[2])
{
    const __m256i v = _mm256_load_si256((const __m256i *)w);
    if (i4) {
        __m256i pairs = _mm256_maddubs_epi16(low_part(v, true), a[0]);
        add_i16(&pairs, _mm256_maddubs_epi16(high_part(v, true), a[1]));
        add_i32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    } else {
        add_i32(sum, _mm256_madd_epi16(low_part(v, false), a[0]));
        add_i32(sum, _mm256_madd_epi16(high_part(v, false), a[1]));
    }
}

/* sum += k inputs of the row; past: bytes from the panels' beginnings */
SQ_INLINE void row_lines(const uint8_t *const line[], size_t past, bool i4, const int8_t *q, uint32_t k,
                         __m256i sum[][2], uint32_t panels)
{
    const uint32_t step = i4 ? 8 : 4;
    for (; k; k -= step, q += step * MR, past += LINE) {
        const __m256i first = word(q);
        const __m256i bytes[2] = {first, i4 ? word(q + 4 * MR) : first};
        const __m256i words[2] = {_mm256_srai_epi16(_mm256_slli_epi16(first, 8), 8), _mm256_srai_epi16(first, 8)};
        SQ_UNROLL
        for (uint32_t i = 0; i < panels; i++) {
            _mm_prefetch((const char *)line[i] + past + PREFETCH, _MM_HINT_T0);
            dot_line(&sum[i][0], line[i] + past, i4, i4 ? bytes : words);
            dot_line(&sum[i][1], line[i] + past + LINE / 2, i4, i4 ? bytes : words);
        }
    }
}

SQ_INLINE void row_product(const job *j, bool i4, uint32_t p, uint32_t panels)
{
    const uint8_t *line[PANELS];
    __m256 v[PANELS][1][2];
    SQ_UNROLL
    for (uint32_t i = 0; i < panels; i++) {
        line[i] = j->w->data + (p + i) * j->panel_bytes;
        v[i][0][0] = v[i][0][1] = _mm256_setzero_ps();
    }
    for (uint32_t g = 0, k = 0, n; k < j->k_pad; g++, k += n) {
        const __m256i start = _mm256_set1_epi32((i4 ? -8 : -128) * j->a->sum[g * MR]);
        __m256i sum[PANELS][2];
        n = min_u32(j->a->group, j->k_pad - k);
        SQ_UNROLL
        for (uint32_t i = 0; i < panels; i++)
            sum[i][0] = sum[i][1] = start;
        row_lines(line, (size_t)k * NR / (i4 ? 2 : 1), i4, j->a->q + (size_t)k * MR, n, sum, panels);
        SQ_UNROLL
        for (uint32_t i = 0; i < panels; i++) {
            float scales[NR] __attribute__((aligned(32)));
            read_scales(j, p + i, g, 1, scales);
            add_row(j->a->scale[g * MR], scales, sum[i], v[i][0]);
        }
    }
    for (uint32_t i = 0; i < panels; i++)
        store(j, p + i, 0, (const __m256(*)[2])v[i]);
}

/* ---- One function for each number of rows ------------------------------------------------ */

typedef void tile_fn(const job *j, const piece *x, sums v[]);
typedef void row_fn(const job *j, uint32_t p);

#define TILE(name, function, unpacked, rows)                                                                           \
    static void tile_##name##_##rows(const job *j, const piece *x, sums v[]) { function(j, x, unpacked, v, rows); }
#define ROW(type, is_i4, panels)                                                                                       \
    static void type##_row_##panels(const job *j, uint32_t p) { row_product(j, is_i4, p, panels); }

TILE(i8, tile_i8, false, 2)
TILE(i8, tile_i8, false, 4)
TILE(i8, tile_i8, false, 6)
TILE(words, tile_i8, true, 2)
TILE(words, tile_i8, true, 4)
TILE(words, tile_i8, true, 6)
TILE(i4, tile_i4, false, 2)
TILE(i4, tile_i4, false, 4)
TILE(i4, tile_i4, false, 6)
TILE(bytes, tile_i4, true, 2)
TILE(bytes, tile_i4, true, 4)
TILE(bytes, tile_i4, true, 6)
ROW(i8, false, 1)
ROW(i8, false, 2)
ROW(i8, false, 4)
ROW(i4, true, 1)
ROW(i4, true, 2)
ROW(i4, true, 4)

/* The functions of one type. Tiles are of 2, 4 and 6 rows: one too many is a row of zeros that nothing stores. */
typedef struct method {
    tile_fn *tiles[2][MR / 2]; /* of packed weights, of unpacked ones */
    row_fn *rows[3];           /* of PANELS panels, of half as many, of one */
    bool i4;
    uint32_t input_bytes, chunk; /* of a packed panel; inputs */
} method;

static const method int8 = {{{tile_i8_2, tile_i8_4, tile_i8_6}, {tile_words_2, tile_words_4, tile_words_6}},
                            {i8_row_4, i8_row_2, i8_row_1},
                            false,
                            NR,
                            CHUNK_I8};
static const method int4 = {{{tile_i4_2, tile_i4_4, tile_i4_6}, {tile_bytes_2, tile_bytes_4, tile_bytes_6}},
                            {i4_row_4, i4_row_2, i4_row_1},
                            true,
                            NR / 2,
                            CHUNK_I4};

/* ---- Blocks of rows ---------------------------------------------------------------------- */

/* While tile t of n is multiplied: the n-th part of the following weights, into L2. Past a panel lies another, or
 * nothing is lost. */
static void fetch_weights(const job *j, const uint8_t *next, uint32_t panels, size_t lines, uint32_t t, uint32_t n)
{
    for (uint32_t i = 0; i < panels; i++, next += j->panel_bytes) {
        for (size_t l = lines * t / n; l < lines * (t + 1) / n; l++)
            _mm_prefetch((const char *)next + l * LINE, _MM_HINT_T1);
    }
}

/* The lines of C that a tile will store, into L1. */
static void fetch_c(const job *j, const piece *x)
{
    for (uint32_t r = 0; r < rows_in(j, x->tile); r++) {
        const float *c = row_of_c(j->out, x->tile * MR + r) + (size_t)x->panel * NR;
        for (uint32_t i = 0; i < x->panels; i++)
            _mm_prefetch((const char *)(c + (size_t)i * NR), _MM_HINT_T0);
    }
}

/* Panels [p, p + panels) for the tiles [t0, t0 + n). */
static void block(const job *j, const method *how, uint32_t p, uint32_t panels, uint32_t t0, uint32_t n)
{
    sums v[TILES * PANELS];
    uint8_t weights[PANELS][CHUNK_I4 * NR] __attribute__((aligned(LINE)));
    float scales[PANELS][GROUPS * NR] __attribute__((aligned(LINE)));
    static_assert(CHUNK_I4 == 2 * CHUNK_I8, "an input of int8 takes two bytes of weights");
    const uint32_t group = j->a->group, chunk = group < how->chunk ? how->chunk / group * group : group;
    const bool unpacks = n > 2 && chunk <= how->chunk; /* fewer tiles do not make up for it */
    piece x = {.panel = p,
               .panels = panels,
               .stride = unpacks ? sizeof *weights : j->panel_bytes,
               .scales = (const float(*)[GROUPS * NR]) scales};
    memset(v, 0, (size_t)n * panels * sizeof *v);
    for (bool last = false; !last; x.k += x.n) {
        const uint8_t *const line = j->w->data + p * j->panel_bytes + (size_t)x.k * how->input_bytes;
        x.n = min_u32(j->k_pad - x.k, chunk);
        x.line = unpacks ? weights[0] : line;
        last = x.k + x.n == j->k_pad;
        const uint32_t lines = x.n * how->input_bytes / LINE;
        for (uint32_t i = 0; i < panels; i++) {
            if (unpacks) unpack(line + i * j->panel_bytes, lines, how->i4, weights[i]);
            read_scales(j, p + i, x.k / group, (x.n + group - 1) / group, scales[i]);
        }
        for (uint32_t t = 0; t < n; t++) {
            x.tile = t0 + t;
            x.ahead = t + 1 < n ? tile_q(j, x.tile + 1) + (size_t)x.k * MR : tile_q(j, t0) + (size_t)(x.k + x.n) * MR;
            if (unpacks) fetch_weights(j, line + (size_t)lines * LINE, panels, lines, t, n);
            if (last) fetch_c(j, &x);
            how->tiles[unpacks][(rows_in(j, x.tile) - 1) / 2](j, &x, v + (size_t)t * panels);
            for (uint32_t i = 0; last && i < panels; i++)
                store(j, p + i, x.tile, (const __m256(*)[2])v[t * panels + i]);
        }
    }
}

static void single_row(const job *j, const method *how, uint32_t p, uint32_t last)
{
    while (p < last) {
        uint32_t n = PANELS;
        row_fn *const *row = how->rows;
        for (; n > last - p; n /= 2)
            row++;
        (*row)(j, p);
        p += n;
    }
}

/* A last block of few tiles is shared out over the others. */
static uint32_t tiles_a_block(uint32_t tiles)
{
    const uint32_t blocks = (tiles + TILES - 1) / TILES;
    return blocks ? (tiles + blocks - 1) / blocks : 1;
}

static void gemm(const method *how, const sq_panels *w, uint32_t panel0, uint32_t n_panels, const sq_acts *a,
                 const sq_gemm_out *out)
{
    const job j = make_job(w, a, out);
    const uint32_t tiles = sq_acts_tiles(a), n = tiles_a_block(tiles), last = panel0 + n_panels;
    if (a->m == 1) single_row(&j, how, panel0, last);
    for (uint32_t t0 = 0; t0 < tiles && a->m > 1; t0 += n) {
        for (uint32_t p = panel0; p < last; p += PANELS)
            block(&j, how, p, min_u32(last - p, PANELS), t0, min_u32(tiles - t0, n));
    }
}

void sq_gemm_i8_avx2(const sq_panels *w, uint32_t panel0, uint32_t n_panels, const sq_acts *a, const sq_gemm_out *out)
{
    gemm(&int8, w, panel0, n_panels, a, out);
}

void sq_gemm_i4_avx2(const sq_panels *w, uint32_t panel0, uint32_t n_panels, const sq_acts *a, const sq_gemm_out *out)
{
    gemm(&int4, w, panel0, n_panels, a, out);
}
