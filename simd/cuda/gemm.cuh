/*
 * gemm: what the products share, and how whole numbers lie for the integer products of gemm.cu: weights (panels.cu) and
 * activations (rows.cu) alike. SPDX-License-Identifier: MIT
 *
 * Rows (of activations) or output channels (of weights) are cut into blocks of 8, their inputs into pairs of steps of
 * 32, one step being what an mma takes. A block's pair is what the 32 lanes of a warp hold in four words each: lane
 * 4 * r + t has of row r, in word w, inputs 16w + 4t to 16w + 4t + 3 of the pair's 64. So a warp loads a pair as it
 * lies, 16 bytes a lane, and words 0 and 1 are its part of the first step's mma, 2 and 3 of the second's.
 *
 *   int8   [blocks][pairs][32] uint4
 *   int4   [blocks][pairs][32] uint2: the low nibbles of a word's bytes are those of word 2w, the high ones of 2w + 1
 *
 * Numbers are signed, -8 to 7 in int4; inputs past k are 0. Scales lie in blocks too, so that a warp finds those of
 * successive groups side by side: [blocks][n_groups][8], float32 of activations, binary16 of weights. Weights of one
 * scale a channel have [channels] float32.
 */
#ifndef SQ_CUDA_GEMM_CUH
#define SQ_CUDA_GEMM_CUH

#include "simd/cuda/cuda.cuh"

enum { SQ_ROW_BLOCK = 8, SQ_STEP = 32, SQ_PAIR = 64 };
static_assert(SQ_STEP == (int)SQ_PANEL_K && (int)SQ_PANEL_N % SQ_ROW_BLOCK == 0, "a step is what k is padded to");

static inline __host__ __device__ uint32_t sq_pairs(uint32_t k) { return (k + SQ_PAIR - 1) / SQ_PAIR; }
static inline __host__ __device__ uint32_t sq_groups(uint32_t k, uint32_t group) { return (k + group - 1) / group; }

/* The word, of all words of int8 blocks, that holds inputs k to k + 3 of a row; k is a multiple of 4. */
static inline __host__ __device__ size_t sq_word_at(uint32_t row, uint32_t k, uint32_t n_pairs)
{
    const uint32_t lane = row % SQ_ROW_BLOCK * 4 + k / 4 % 4, word = k % SQ_PAIR / 16;
    return (((size_t)(row / SQ_ROW_BLOCK) * n_pairs + k / SQ_PAIR) * SQ_WARP + lane) * 4 + word;
}

static inline __host__ __device__ size_t sq_scale_at(uint32_t row, uint32_t g, uint32_t n_groups)
{
    return ((size_t)(row / SQ_ROW_BLOCK) * n_groups + g) * SQ_ROW_BLOCK + row % SQ_ROW_BLOCK;
}

/* ---- Weights ----------------------------------------------------------------------------- */

/* A matrix on the device. */
typedef struct sq_tiles {
    const void *weights;
    const void *scales;
} sq_tiles;

/** The device's copy of panels, made when it is first asked for. False: the stream has failed. */
bool sq_cuda_tiles(sq_stream *s, const sq_panels *w, sq_tiles *out);

/** The device's copy of a matrix in SQ_FORM_F32 or SQ_FORM_F16; NULL: the stream has failed. */
const void *sq_cuda_floats(sq_stream *s, const sq_mat *w, sq_form form);

/* ---- Rows -------------------------------------------------------------------------------- */

/* Quantised rows on the device. */
typedef struct sq_cuda_acts {
    uint32_t *q;  /* blocks of 8 rows, zero past m */
    float *scale; /* likewise */
    uint32_t m, k, group;
} sq_cuda_acts;

/** Gathers rows, applies the op and quantises, to the bits of sq_rows_pack_c(). False: the stream has failed. */
bool sq_cuda_rows_pack(sq_stream *s, const sq_rows_in *in, uint32_t m, uint32_t group, sq_cuda_acts *out);

/* Rows as a product of floats reads them. */
typedef struct sq_cuda_floats_in {
    const void *x; /* float, or binary16 */
    size_t ldx;
    uint32_t k;
} sq_cuda_floats_in;

/** Gathers rows and applies the op, unless they can be read as they lie. False: the stream has failed. */
bool sq_cuda_rows_floats(sq_stream *s, const sq_rows_in *in, uint32_t m, bool half, sq_cuda_floats_in *out);

/* ---- Products ---------------------------------------------------------------------------- */

enum { SQ_MAX_MATS = 4 };

/* Some of the matrices of a call, which read the same rows. */
typedef struct sq_products {
    const sq_mat *w[SQ_MAX_MATS];
    sq_gemm_out out[SQ_MAX_MATS]; /* all @device */
    unsigned n;
} sq_products;

/** blas.cu: floats, or all but ordered floats where the device's precision is no file's. */
void sq_cuda_project_floats(sq_stream *s, const sq_rows_in *in, uint32_t m, const sq_products *p);
/** gemm_f32.cu */
void sq_cuda_project_ordered(sq_stream *s, const sq_rows_in *in, uint32_t m, const sq_products *p);

/* Value v of row i and channel j of a product. */
SQ_DEVICE void sq_store(const sq_gemm_out *o, uint32_t i, uint32_t j, float v)
{
    float *const c = o->c + (size_t)(o->rows ? o->rows[i] : i) * o->ldc + j;
    if (o->bias) v += o->bias[j];
    if (o->row_weight) v *= o->row_weight[i];
    *c = o->add ? *c + v : v;
}

#endif
