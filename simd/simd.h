/*
 * simd: kernels and their choice at run time. The only room with intrinsics.
 * SPDX-License-Identifier: MIT
 *
 * A kernel computes any part of its output that it is asked for, allocates nothing, starts no
 * thread and keeps no state. The C version of each (simd/NAME.c) defines the result, the order of
 * float additions included; a version for an instruction set (simd/x86/NAME_avx2.c) gives the same
 * bits. A route or a rounding of activations that hangs by a hair thus falls alike on all machines.
 */
#ifndef SQ_SIMD_H
#define SQ_SIMD_H

#include "quant/quant.h"

/* ---- Weights ----------------------------------------------------------------------------- */

/* W[n][k]: floats in rows; or floats for products in one order on every machine, as convolutions are; or panels. */
typedef struct sq_mat {
    uint32_t n, k;
    const float *f32;     /* [n][k] or NULL */
    const float *ordered; /* [ceil(n / 16)][k][16], channels past n zero, or NULL */
    sq_panels panels;
} sq_mat;

/* ---- Activations ------------------------------------------------------------------------ */

enum { SQ_MR_MAX = 16 };

/*
 * Rows of activations as the GEMM kernels read them. `m` rows are cut into tiles of `mr` rows (the
 * kernel table says how many); a tile is
 *
 *   q      [k_pad / 4][mr][4]  int8 in [-127, 127]
 *   scale  [n_groups][mr]      float, max|x| / 127 of the row's group (0 when all are below 2^-100)
 *   sum    [n_groups][mr]      int32, sum of the group's q
 *
 * with k_pad = k rounded up to 32 and n_groups = ceil(k / group). Rows past m and inputs past k
 * are zero, scale included.
 */
typedef struct sq_acts {
    int8_t *q;    /* [m_tiles][k_pad / 4][mr][4], 64-byte aligned */
    float *scale; /* [m_tiles][n_groups][mr] */
    int32_t *sum; /* [m_tiles][n_groups][mr] */
    uint32_t m, k, group, mr;
} sq_acts;

static inline uint32_t sq_acts_tiles(const sq_acts *a) { return (a->m + a->mr - 1) / a->mr; }
static inline uint32_t sq_acts_k_pad(const sq_acts *a) { return sq_round_up(a->k, SQ_PANEL_K); }
static inline uint32_t sq_acts_groups(const sq_acts *a) { return (a->k + a->group - 1) / a->group; }

/* ---- Rows: what happens to a row on its way into a matrix product ------------------------ */

typedef enum sq_row_op {
    SQ_ROW_COPY,      /* y = x */
    SQ_ROW_RMSNORM,   /* y = w * x / sqrt(mean(x^2) + eps), arXiv 1910.07467 */
    SQ_ROW_LAYERNORM, /* y = w * (x - mean) / sqrt(var + eps) + b, arXiv 1607.06450 */
    SQ_ROW_SWIGLU,    /* y[j] = silu(x[j]) * x[k + j]: the row holds gate, then up; arXiv 2002.05202 */
    SQ_ROW_QUICKGELU, /* y = x * sigmoid(1.702 x) */
    SQ_ROW_GELU,      /* y = x / 2 * (1 + erf(x / sqrt(2))) */
} sq_row_op;

/* The rows to read: row i of the result is row rows[i] (or i when rows is NULL) of x. This is the
 * gather of a routed layer: rows that are not listed are never read. */
typedef struct sq_rows_in {
    const float *x;       /* [*][ldx] */
    size_t ldx;           /* floats from one row to the next */
    const uint32_t *rows; /* [m] or NULL */
    uint32_t k;           /* length of a result row (SWIGLU reads 2 * k) */
    sq_row_op op;
    const float *weight; /* [k], norms only */
    const float *bias;   /* [k], layer norm only */
    float eps;
} sq_rows_in;

/* y[k] = op(x), one row. */
typedef void sq_row_fn(const sq_rows_in *in, const float *x, float *y);

/**
 * Gather, op, quantise and pack tiles [tile0, tile0 + n_tiles) of `out` in one pass.
 * @param scratch  out->k floats, this thread's own
 */
typedef void sq_rows_pack_fn(const sq_rows_in *in, sq_acts *out, uint32_t tile0, uint32_t n_tiles, float *scratch);

/* ---- GEMM -------------------------------------------------------------------------------- */

/*
 * What a product does with value v of row i and output channel j, in the store of the kernel:
 *
 *   t = row_weight[i] * (v + bias[j])                       (no row_weight: 1; no bias: 0)
 *   c[row][j] = add ? c[row][j] + t : t,   row = rows ? rows[i] : i
 *
 * With `rows` and `add` this is the scatter and the residual of a routed layer.
 */
typedef struct sq_gemm_out {
    float *c;
    size_t ldc;              /* floats from one row of c to the next */
    const float *bias;       /* [n] or NULL */
    const uint32_t *rows;    /* [m] or NULL */
    const float *row_weight; /* [m] or NULL */
    bool add;
} sq_gemm_out;

/**
 * out = A W^T for all rows of `a` and the output channels of panels [panel0, panel0 + n_panels).
 * a->k == w->k, a->group == sq_panels_act_group(w), a->mr is this table's mr. All tables give the same bits.
 */
typedef void sq_gemm_fn(const sq_panels *w, uint32_t panel0, uint32_t n_panels, const sq_acts *a,
                        const sq_gemm_out *out);

/* Rows [row0, row0 + m) of x. */
typedef struct sq_float_rows {
    const float *x; /* [*][ldx] */
    size_t ldx;
    uint32_t row0, m;
} sq_float_rows;

/** The same of w->ordered and floats, for these rows: row i of the result is that of row i of x. All tables give the
 * same bits. */
typedef void sq_gemm_f32_fn(const sq_mat *w, uint32_t panel0, uint32_t n_panels, const sq_float_rows *x,
                            const sq_gemm_out *out);

/* ---- Attention --------------------------------------------------------------------------- */

/* What keys and values are kept in. Q8: blocks of 32 elements; a row's last one is filled up with zeros. */
typedef enum sq_kv_type { SQ_KV_F32 = 0, SQ_KV_F16 = 1, SQ_KV_Q8 = 2 } sq_kv_type;

/* Units (floats, halves, blocks) of a row, and bytes of a unit. */
static inline uint32_t sq_kv_units(sq_kv_type type, uint32_t head_dim)
{
    return type == SQ_KV_Q8 ? (head_dim + SQ_BLOCK - 1) / SQ_BLOCK : head_dim;
}
static inline size_t sq_kv_unit_bytes(sq_kv_type type)
{
    return type == SQ_KV_Q8 ? sizeof(sq_block_q8_0) : type == SQ_KV_F16 ? sizeof(uint16_t) : sizeof(float);
}

/*
 * One query head over one KV head. Query row i (i < n_q) attends keys [0, first_kv + i] when
 * causal, else all n_kv; softmax in float32 with the running maximum (arXiv 2205.14135).
 *
 *   out[i] = sum_j softmax_j(scale * q[i].k[j]) v[j]
 *
 * Rows of q, k, v and out may lie anywhere and apart (ld*); out must not overlap the inputs. Prefill (4 queries
 * and more) takes up to 192 KiB of stack.
 */
typedef struct sq_attn {
    const float *q; /* [n_q][ldq], head_dim used */
    size_t ldq;
    const void *k, *v; /* [n_kv][ldkv] units of kv_type */
    size_t ldkv;
    sq_kv_type kv_type;
    uint32_t n_q, n_kv, head_dim; /* head_dim <= 256 */
    bool causal;
    uint32_t first_kv; /* causal: keys before the first query of this call, itself not counted */
    float scale;
    float *out; /* [n_q][ldo] */
    size_t ldo;
} sq_attn;

typedef void sq_attn_fn(const sq_attn *a);

/* Attention of all heads: query head h reads KV head h * n_kv_heads / n_heads. */
typedef struct sq_heads {
    sq_attn attn; /* of head 0: q, k, v, out at their first element */
    uint32_t n_heads, n_kv_heads;
    size_t kv_head_bytes; /* from one KV head to the next, in k and in v */
} sq_heads;               /* query and output heads lie head_dim floats apart in a row */

/* Queries that one call of an sq_attn_fn gets of so many; the last call what is left. Bits hang by it: few are summed up
 * in another order. */
static inline uint32_t sq_heads_rows(uint32_t n_q)
{
    enum { MOST = 192, TILE = 12 }; /* a multiple of the CPU kernels' tiles */
    const uint32_t n = n_q ? n_q : 1, calls = (n + MOST - 1) / MOST;
    return sq_round_up((n + calls - 1) / calls, TILE);
}

/* ---- Depthwise convolution ---------------------------------------------------------------- */

enum { SQ_DEPTHWISE_SIDE = 7, SQ_DEPTHWISE_TAPS = SQ_DEPTHWISE_SIDE * SQ_DEPTHWISE_SIDE };

/*
 * One row of a 7x7 convolution of each channel by itself, with zeros around the map:
 *
 *   out[x][c] = bias[c] + sum over ky, kx of w[7 ky + kx][c] * rows[ky][x + kx - 3][c]
 *
 * each product added with one rounding, row after row; those outside the map are left out.
 */
typedef struct sq_depthwise {
    const float *rows[SQ_DEPTHWISE_SIDE]; /* [width][channels] each; NULL: above or below the map */
    const float *w;                       /* [49][channels] */
    const float *bias;                    /* [channels] */
    uint32_t width, channels;
    float *out; /* [width][channels], none of the rows */
} sq_depthwise;

typedef void sq_depthwise_fn(const sq_depthwise *d);

/* ---- Small vectors ----------------------------------------------------------------------- */

/* sum x[i] * y[i] */
typedef float sq_dot_fn(const float *x, const float *y, size_t n);
/* out[i][j] = dot(x[i], y[j]) to the last bit, for n_x rows of n floats: the scores that the routers of several layers
 * give a row of the residual stream, which is read once. */
enum { SQ_DOTS = 4 };
typedef void sq_dots_fn(const float *const *x, uint32_t n_x, const float *const y[SQ_DOTS], size_t n,
                        float (*out)[SQ_DOTS]);
/* x[i] *= s: the reweighting of skipped rows. */
typedef void sq_scale_fn(float *x, float s, size_t n);
/* dst[i] = (binary16) src[i] */
typedef void sq_to_f16_fn(const float *src, uint16_t *dst, size_t n);
/* ceil(n / 32) blocks, elements past n zero: d = max|src| / 127 in binary16, at most 65504; q = src / d, nearest, ties
 * to even, within [-127, 127]. Unlike llama.cpp's Q8_0 of weights, elements are divided by d as it is stored. */
typedef void sq_to_q8_fn(const float *src, sq_block_q8_0 *dst, size_t n);

/**
 * The k largest of z[0..n), lower index first on ties (-0 equals 0), as indices in rising order; k <= n.
 * @param keys  n int32, scratch
 * @param kept  [k] out
 * @return n, or the index of the first NaN: then nothing was chosen
 */
typedef uint32_t sq_select_fn(const float *z, uint32_t n, uint32_t k, int32_t *keys, uint32_t *kept);

/* Rotates one head in place (arXiv 2104.09864). cos_sin: [head_dim/2] cosines, then as many sines.
 * half: pairs (i, i + head_dim/2), else pairs (2i, 2i + 1), as llama.cpp stores W_q and W_k. */
typedef void sq_rope_fn(float *x, const float *cos_sin, uint32_t head_dim, bool half);

/* ---- The table --------------------------------------------------------------------------- */

typedef struct sq_kernels {
    const char *isa; /* "scalar", "avx2", "avxvnni", "avx512", "neon", "dotprod", "i8mm" */
    uint32_t mr;     /* rows of an activation tile, for all gemm kernels of the table */
    sq_gemm_fn *gemm_i8, *gemm_i4;
    sq_gemm_f32_fn *gemm_f32;
    sq_rows_pack_fn *rows_pack;
    sq_row_fn *row;
    sq_attn_fn *attention;
    sq_depthwise_fn *depthwise;
    sq_dot_fn *dot;
    sq_dots_fn *dots;
    sq_scale_fn *scale;
    sq_to_f16_fn *to_f16;
    sq_to_q8_fn *to_q8;
    sq_rope_fn *rope;
    sq_select_fn *select;
} sq_kernels;

/** The table called `isa`, the best this CPU runs when NULL or "auto"; NULL when unknown or not runnable here. */
const sq_kernels *sq_kernels_get(const char *isa);
/** Names that sq_kernels_get() accepts on this CPU, worst first, NULL at the end. */
const char *const *sq_kernels_names(void);

/** gemm_i8 or gemm_i4, as the weights need. */
static inline sq_gemm_fn *sq_kernels_gemm(const sq_kernels *k, const sq_panels *w)
{
    return w->type == SQ_PANEL_I4 ? k->gemm_i4 : k->gemm_i8;
}

#endif
