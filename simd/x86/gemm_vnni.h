/*
 * gemm_vnni: int8 activations times int8 or int4 panels with vpdpbusd, for vectors of 8 or 16 channels. simd/gemm.c
 * defines the results, to the last bit.
 * SPDX-License-Identifier: MIT
 *
 * A tile is MR rows by two vectors, which are two panels (512 bits) or the halves of one (256 bits). Its integer sums
 * fill most registers; two more hold the weights of a step of 4 inputs, one an activation word sent to all lanes. Sums
 * begin at -zero * S, so the offset costs nothing. The float sums of the groups stay in memory: there is no register
 * left for them, and they are touched once a group.
 *
 * Cache: rows are taken in blocks, so that weights are fetched from far once for all of them; within a block the
 * vectors are the outer loop; within those, k is taken in chunks whose weights stay in L1 for all tiles of the block,
 * while the next chunk is fetched. The activations of a block stream from L2: while a tile is multiplied, the next
 * one's are fetched to L1 line by line, and in the last chunk the lines of C that it will store. int4 weights of a
 * chunk are unpacked once, into lines like int8's, unless the rows are too few to make up for it.
 *
 * A single row, as in decoding, is bound by reading the weights. A core that reads one or two places at a time gets
 * half to three quarters of the bandwidth, so WIDE vectors of as many panels go along together.
 *
 * Who includes this file has defined MR, LANES, ROWS_A_WORD, the types ivec and fvec (LANES int32 and float), and the
 * functions of one vector that are used below.
 */
#include "simd/internal.h"

#include <assert.h>

enum {
    NR = SQ_PANEL_N,
    VECS = 2,                   /* vectors of a tile */
    PANELS = VECS * LANES / NR, /* panels of a tile */
    LINE = 64,
    CHUNK = 512, /* inputs: two panels of int8 take 16 KiB of L1 */
    BLOCK_ROWS = 360,
    TILES = BLOCK_ROWS / MR, /* of a block at most; their sums are on the stack */
    AHEAD = 4096,            /* bytes to prefetch ahead where weights are used once only: the next page */
    WIDE = 8,                /* vectors of a single row */
    WIDE_AHEAD = 1024,       /* the same for them */
};

typedef struct job {
    const sq_panels *w;
    const sq_acts *a;
    const sq_gemm_out *out;
    size_t panel_bytes, weight_bytes;
    uint32_t k_pad, n_groups;
    int zero;
} job;

/* The vectors of a tile: where their next line, their first row of scales and their first channel are. */
typedef struct columns {
    const uint8_t *line[WIDE], *scales[WIDE];
    uint32_t channel[WIDE];
} columns;

/* A run of inputs of one tile. */
typedef struct span {
    uint32_t tile, k0, k1, group0; /* group0 begins at k0 */
    const int32_t *start;          /* [groups][MR] what the integer sums begin at */
    ptrdiff_t ahead;               /* from its activations to those needed next */
} span;

typedef float tile_sums[MR][VECS][LANES];

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* Activations of a tile from input k on. */
SQ_INLINE const int8_t *tile_q(const job *j, uint32_t tile, uint32_t k)
{
    return j->a->q + ((size_t)tile * j->k_pad + k) * MR;
}

/* ---- One tile ---------------------------------------------------------------------------- */

SQ_INLINE ivec word(const int8_t *q)
{
    int32_t four;
    memcpy(&four, q, sizeof four);
    return all_i32(four);
}

/* sum += u times the word of row r; of ROWS_A_WORD rows one has it in a register. */
SQ_INLINE void dot_row(ivec sum[VECS], const ivec u[VECS], const int8_t *q, uint32_t r, uint32_t vecs)
{
    const ivec a = word(q);
    for (uint32_t c = 0; c < vecs; c++) {
        if (r % ROWS_A_WORD)
            dot_memory(&sum[c], u[c], q);
        else
            dot(&sum[c], u[c], a);
    }
}

/* sum += k inputs: one line is 4 of them. */
SQ_INLINE void lines_i8(const uint8_t *const *line, const int8_t *q, ptrdiff_t ahead, uint32_t k, ivec sum[][VECS],
                        uint32_t rows, uint32_t vecs)
{
    const uint8_t *w[VECS] = {line[0], line[1]};
    for (; k; k -= 4, q += 4 * MR, w[0] += LINE, w[1] += LINE) {
        ivec u[VECS];
        if (rows > 2) _mm_prefetch((const char *)q + ahead, _MM_HINT_T0);
        for (uint32_t c = 0; c < vecs; c++) {
            u[c] = load_i(w[c]);
            if (rows <= 2) _mm_prefetch((const char *)w[c] + AHEAD, _MM_HINT_T0);
        }
        SQ_UNROLL
        for (uint32_t r = 0; r < rows; r++)
            dot_row(sum[r], u, q + r * 4, r, vecs);
    }
}

/* The same: one line is 8 inputs, the first 4 in the low nibbles. */
SQ_INLINE void lines_i4(const uint8_t *const *line, const int8_t *q, uint32_t k, ivec sum[][VECS], uint32_t rows,
                        uint32_t vecs)
{
    const uint8_t *w[VECS] = {line[0], line[1]};
    for (; k; k -= 8, q += 8 * MR, w[0] += LINE, w[1] += LINE) {
        ivec low[VECS], high[VECS];
        for (uint32_t c = 0; c < vecs; c++) {
            low[c] = low_nibbles(load_i(w[c]));
            if (rows <= 2) _mm_prefetch((const char *)w[c] + AHEAD, _MM_HINT_T0);
        }
        SQ_UNROLL
        for (uint32_t r = 0; r < rows; r++)
            dot_row(sum[r], low, q + r * 4, r, vecs);
        for (uint32_t c = 0; c < vecs; c++)
            high[c] = low_nibbles(shift_right_4(load_i(w[c])));
        SQ_UNROLL
        for (uint32_t r = 0; r < rows; r++)
            dot_row(sum[r], high, q + (MR + r) * 4, r, vecs);
    }
}

/* v += sa * sw * sum for group g. */
SQ_INLINE void add_group(const job *j, const columns *at, const float *sa, uint32_t g, const ivec sum[][VECS],
                         tile_sums v, uint32_t rows, uint32_t vecs)
{
    const bool grouped = j->w->group;
    fvec sw[VECS] = {all_f32(1.0f), all_f32(1.0f)};
    for (uint32_t c = 0; c < vecs && grouped; c++)
        sw[c] = load_halves(at->scales[c] + (size_t)g * NR * sizeof(uint16_t));
    /* Or GCC keeps v in registers and the integer sums on the stack, and an address for each row. */
    __asm__ volatile("" : "+r"(sa) : : "memory");
    SQ_UNROLL
    for (uint32_t r = 0; r < rows; r++) {
        const fvec scale = all_f32(sa[r]);
        for (uint32_t c = 0; c < vecs; c++) {
            const fvec by = grouped ? multiply(scale, sw[c]) : scale;
            store_f(v[r][c], multiply_add(by, to_float(sum[r][c]), load_f(v[r][c])));
        }
    }
}

/* v += the inputs of a span; at->line is where their weights are. */
SQ_INLINE void tile_chunk(const job *j, bool i4, const columns *at, const span *in, tile_sums v, uint32_t rows,
                          uint32_t vecs)
{
    const uint32_t group = j->a->group, input_bytes = i4 ? NR / 2 : NR;
    const int8_t *q = tile_q(j, in->tile, in->k0);
    const float *sa = j->a->scale + ((size_t)in->tile * j->n_groups + in->group0) * MR;
    const int32_t *start = in->start;
    const uint8_t *line[VECS] = {at->line[0], at->line[1]};
    for (uint32_t g = in->group0, k = in->k0; k < in->k1; g++, start += MR, sa += MR) {
        const uint32_t n = min_u32(group, in->k1 - k);
        ivec sum[MR][VECS];
        SQ_UNROLL
        for (uint32_t r = 0; r < rows; r++)
            sum[r][0] = sum[r][1] = all_i32(start[r]);
        if (i4)
            lines_i4(line, q, n, sum, rows, vecs);
        else
            lines_i8(line, q, in->ahead, n, sum, rows, vecs);
        add_group(j, at, sa, g, sum, v, rows, vecs);
        k += n;
        q += (size_t)n * MR;
        line[0] += (size_t)n * input_bytes;
        line[1] += (size_t)n * input_bytes;
    }
}

/* ---- One function for each number of rows ------------------------------------------------ */

typedef void tile_fn(const job *j, const columns *at, const span *in, tile_sums v);

#define TILE(type, is_i4, rows, vecs)                                                                                  \
    static void type##_##rows##x##vecs(const job *j, const columns *at, const span *in, tile_sums v)                   \
    {                                                                                                                  \
        tile_chunk(j, is_i4, at, in, v, rows, vecs);                                                                   \
    }

/* The kernels of one type: [vectors - 1][rows rounded up to even, halved]. A row too many is a row of zeros that
 * nothing stores. */
typedef tile_fn *const kernels[VECS][MR / 2 + 1];

static uint32_t rows_in(const job *j, uint32_t tile) { return min_u32(MR, j->a->m - tile * MR); }

/* ---- Store ------------------------------------------------------------------------------- */

static float *row_of_c(const sq_gemm_out *o, uint32_t i) { return o->c + (o->rows ? o->rows[i] : i) * o->ldc; }

/* The store of sq_gemm_out: row i, channels j0 .. j0 + LANES - 1, of which n exist. */
static void store_row(const sq_gemm_out *o, uint32_t i, uint32_t j0, uint32_t n, fvec v)
{
    float *const c = row_of_c(o, i) + j0;
    if (o->bias) v = add(v, load_first(o->bias + j0, n));
    if (o->row_weight) v = multiply(all_f32(o->row_weight[i]), v);
    if (o->add) v = add(load_first(c, n), v);
    store_first(c, n, v);
}

/* Row i of vector c, times the scales of the channels. */
static void store_vector(const job *j, const columns *at, uint32_t c, uint32_t i, fvec sum)
{
    const uint32_t channel = at->channel[c];
    if (channel >= j->w->n) return;
    if (!j->w->group) sum = multiply(sum, load_f((const float *)(const void *)at->scales[c]));
    store_row(j->out, i, channel, min_u32(LANES, j->w->n - channel), sum);
}

static void store_tile(const job *j, const columns *at, uint32_t vecs, uint32_t tile, tile_sums v)
{
    const uint32_t rows = rows_in(j, tile);
    for (uint32_t c = 0; c < vecs; c++) {
        for (uint32_t r = 0; r < rows; r++)
            store_vector(j, at, c, tile * MR + r, load_f(v[r][c]));
    }
}

/* The lines of C that store_tile() will write, into L1. */
static void fetch_c(const job *j, const columns *at, uint32_t vecs, uint32_t tile)
{
    for (uint32_t r = 0; r < rows_in(j, tile); r++) {
        const float *c = row_of_c(j->out, tile * MR + r);
        for (uint32_t v = 0; v < vecs; v += NR / LANES)
            _mm_prefetch((const char *)(c + at->channel[v]), _MM_HINT_T0);
    }
}

/* Panels p .. p + n - 1 as vectors; what is not there is panel p once more, and not used. */
static columns columns_of(const job *j, uint32_t p, uint32_t n)
{
    columns at;
    for (uint32_t c = 0; c < WIDE; c++) {
        const uint32_t i = c * LANES / NR, lane = c * LANES % NR, in_panel = i < n ? p + i : p;
        const uint8_t *panel = j->w->data + in_panel * j->panel_bytes;
        at.line[c] = panel + lane * 4;
        at.scales[c] = panel + j->weight_bytes + lane * (j->w->group ? sizeof(uint16_t) : sizeof(float));
        at.channel[c] = in_panel * NR + lane;
    }
    return at;
}

/* ---- A single row ------------------------------------------------------------------------ */

SQ_INLINE void fetch_ahead(const uint8_t *line, uint32_t c)
{
    if (c * LANES % NR == 0) _mm_prefetch((const char *)line + WIDE_AHEAD, _MM_HINT_T0);
}

/* sum += k inputs; past: bytes from at->line. */
SQ_INLINE void row_i8(const columns *at, size_t past, const int8_t *q, uint32_t k, ivec sum[WIDE], uint32_t vecs)
{
    for (; k; k -= 4, q += 4 * MR, past += LINE) {
        const ivec a = word(q);
        SQ_UNROLL
        for (uint32_t c = 0; c < vecs; c++) {
            fetch_ahead(at->line[c] + past, c);
            dot(&sum[c], load_i(at->line[c] + past), a);
        }
    }
}

SQ_INLINE void row_i4(const columns *at, size_t past, const int8_t *q, uint32_t k, ivec sum[WIDE], uint32_t vecs)
{
    for (; k; k -= 8, q += 8 * MR, past += LINE) {
        const ivec a = word(q), b = word(q + 4 * MR);
        SQ_UNROLL
        for (uint32_t c = 0; c < vecs; c++) {
            const ivec both = load_i(at->line[c] + past);
            fetch_ahead(at->line[c] + past, c);
            dot(&sum[c], low_nibbles(both), a);
            dot(&sum[c], low_nibbles(shift_right_4(both)), b);
        }
    }
}

/* Row 0 of the panels of `vecs` vectors, from p on. */
SQ_INLINE void row_product(const job *j, bool i4, uint32_t p, uint32_t vecs)
{
    const columns at = columns_of(j, p, vecs * LANES / NR);
    const uint32_t group = j->a->group, input_bytes = i4 ? NR / 2 : NR;
    const bool grouped = j->w->group;
    fvec v[WIDE];
    SQ_UNROLL
    for (uint32_t c = 0; c < vecs; c++)
        v[c] = all_f32(0.0f);
    for (uint32_t g = 0, k = 0; k < j->k_pad; g++) {
        const uint32_t n = min_u32(group, j->k_pad - k);
        const fvec scale = all_f32(j->a->scale[g * MR]);
        ivec sum[WIDE];
        SQ_UNROLL
        for (uint32_t c = 0; c < vecs; c++)
            sum[c] = all_i32(-j->zero * j->a->sum[g * MR]);
        if (i4)
            row_i4(&at, (size_t)k * input_bytes, j->a->q + (size_t)k * MR, n, sum, vecs);
        else
            row_i8(&at, (size_t)k * input_bytes, j->a->q + (size_t)k * MR, n, sum, vecs);
        SQ_UNROLL
        for (uint32_t c = 0; c < vecs; c++) {
            const uint8_t *sw = at.scales[c] + (size_t)g * NR * sizeof(uint16_t);
            v[c] = multiply_add(grouped ? multiply(scale, load_halves(sw)) : scale, to_float(sum[c]), v[c]);
        }
        k += n;
    }
    SQ_UNROLL
    for (uint32_t c = 0; c < vecs; c++)
        store_vector(j, &at, c, 0, v[c]);
}

typedef void row_fn(const job *j, uint32_t p);

#define ROW(type, is_i4, vecs)                                                                                         \
    static void type##_row_##vecs(const job *j, uint32_t p) { row_product(j, is_i4, p, vecs); }

/* ---- Blocks ------------------------------------------------------------------------------ */

/* Fetches lines of each panel into L2; past the panel nothing is lost. */
static void fetch(const columns *at, uint32_t vecs, size_t past, uint32_t lines)
{
    for (uint32_t c = 0; c < vecs; c += NR / LANES) {
        const char *line = (const char *)at->line[c] + past;
        for (uint32_t l = 0; l < lines; l++, line += LINE)
            _mm_prefetch(line, _MM_HINT_T1);
    }
}

/* What the integer sums of groups [g0, g0 + n) of a tile begin at. */
static void begin_sums(const job *j, uint32_t tile, uint32_t g0, uint32_t n, int32_t *start)
{
    const int32_t *sum = j->a->sum + ((size_t)tile * j->n_groups + g0) * MR;
    for (uint32_t i = 0; i < n * MR; i++)
        start[i] = -j->zero * sum[i];
}

/* Weights of a chunk of int4 as lines of 4 inputs, one byte each. */
typedef uint8_t unpacked[PANELS][CHUNK * NR];

/* Inputs [k, k + n) of the panels. to: where lines are read from then. */
static void unpack(const columns *at, uint32_t vecs, uint32_t k, uint32_t n, unpacked bytes, columns *to)
{
    for (uint32_t c = 0; c < vecs; c++) {
        uint8_t *out = bytes[c * LANES / NR] + c * LANES % NR * 4;
        const uint8_t *line = at->line[c] + (size_t)k * (NR / 2);
        to->line[c] = out;
        for (uint32_t i = 0; i < n; i += 8, line += LINE, out += (size_t)2 * LINE) {
            const ivec both = load_i(line);
            store_i(out, low_nibbles(both));
            store_i(out + LINE, low_nibbles(shift_right_4(both)));
        }
    }
}

/* The kernels of one type, and those of int8 for weights that are unpacked. */
typedef struct method {
    const kernels *packed, *bytes;
    row_fn *const *rows; /* of WIDE vectors, of half as many, and so on down to a panel */
    int zero;
    uint32_t input_bytes; /* of a panel */
} method;

/* Panels p .. p + n_panels - 1 for the tiles [t0, t0 + n). */
static void block_columns(const job *j, const method *how, uint32_t p, uint32_t n_panels, uint32_t t0, uint32_t n)
{
    float v[TILES][MR][VECS][LANES] __attribute__((aligned(64)));
    unpacked bytes __attribute__((aligned(64)));
    int32_t start[TILES][MR * CHUNK / SQ_PANEL_K];
    const columns at = columns_of(j, p, n_panels);
    columns next = at;
    const uint32_t group = j->a->group, vecs = n_panels * NR / LANES;
    const uint32_t chunk = group < CHUNK ? CHUNK / group * group : group, lines = chunk * how->input_bytes / LINE;
    const bool few = n < 3; /* weights are used too few times to be kept */
    const bool unpacks = !few && how->packed != how->bytes && chunk <= CHUNK;
    const kernels *tiles = unpacks ? how->bytes : how->packed;
    memset(v, 0, n * sizeof *v);
    for (span in = {.k0 = 0}; in.k0 < j->k_pad; in.k0 = in.k1) {
        in.k1 = in.k0 + min_u32(chunk, j->k_pad - in.k0);
        in.group0 = in.k0 / group;
        for (uint32_t c = 0; c < VECS && !unpacks; c++)
            next.line[c] = at.line[c] + (size_t)in.k0 * how->input_bytes;
        if (unpacks) unpack(&at, vecs, in.k0, in.k1 - in.k0, bytes, &next);
        for (uint32_t t = 0; t < n; t++)
            begin_sums(j, t0 + t, in.group0, (in.k1 - in.k0 + group - 1) / group, start[t]);
        for (uint32_t t = 0; t < n; t++) {
            const uint32_t rows = rows_in(j, t0 + t);
            in.tile = t0 + t;
            in.start = start[t];
            in.ahead = tile_q(j, t + 1 < n ? in.tile + 1 : t0, t + 1 < n ? in.k0 : in.k1) - tile_q(j, in.tile, in.k0);
            if (!few) fetch(&at, vecs, (size_t)in.k1 * how->input_bytes + t * lines / n * LINE, lines / n + 1);
            if (in.k1 == j->k_pad) fetch_c(j, &at, vecs, in.tile);
            (*tiles)[vecs - 1][rows == 1 ? 0 : (rows + 1) / 2](j, &next, &in, v[t]);
            if (in.k1 == j->k_pad) store_tile(j, &at, vecs, in.tile, v[t]);
        }
    }
}

static void single_row(const job *j, const method *how, uint32_t p, uint32_t last)
{
    while (p < last) {
        uint32_t n = WIDE * LANES / NR;
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
    return (tiles + blocks - 1) / blocks;
}

static void gemm(const method *how, const sq_panels *w, uint32_t panel0, uint32_t n_panels, const sq_acts *a,
                 const sq_gemm_out *out)
{
    const job j = {w,        a, out, sq_panel_bytes(w), sq_panel_weight_bytes(w), sq_acts_k_pad(a), sq_acts_groups(a),
                   how->zero};
    const uint32_t n_tiles = sq_acts_tiles(a), last = panel0 + n_panels;
    const uint32_t block = n_tiles ? tiles_a_block(n_tiles) : 1;
    assert(a->k == w->k && a->group == sq_panels_act_group(w) && a->mr == MR);
    if (a->m == 1) single_row(&j, how, panel0, last);
    for (uint32_t t0 = 0; t0 < n_tiles && a->m > 1; t0 += block) {
        for (uint32_t p = panel0; p < last; p += PANELS)
            block_columns(&j, how, p, min_u32(PANELS, last - p), t0, min_u32(block, n_tiles - t0));
    }
}
