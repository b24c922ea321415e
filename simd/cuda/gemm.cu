/*
 * gemm: int8 activations times int8 or int4 weights on the tensor cores, to the bits of simd/gemm.c.
 * SPDX-License-Identifier: MIT
 *
 *     v[i][j] = sum over groups g of  (sa[i][g] * sw[j][g]) * float(I),   I = sum over k in g of a[i][k] * q[j][k]
 *
 * I is exact in any order, and an mma adds 32 inputs to it. The groups of an element are added in rising order by the
 * one lane that has it, each by one fused multiply-add; so the work is cut along rows and channels, never along k.
 *
 * Two kernels: many rows share weights and activations in shared memory, a tile of both at a time; a few rows (a token
 * being written) stream the weights from memory to registers, each warp those of 8 channels, and find their activations
 * in L1. How both lie in memory, in the order that an mma's lanes want them, is told in gemm.cuh.
 *
 * Two savings in the arithmetic. An int4 weight is used as 16 times itself, the nibble in the high half of its byte:
 * one operation less for each four weights. And of groups up to 256 inputs |I| < 2^22 (|16 I| for int4, as 16 * 8 =
 * 128): I is added up on top of the bits of 1.5 * 2^23, whose last mantissa bit is 1, so that a subtraction makes it a
 * float; converting takes four times as long, or more. Larger groups are converted, rounding as C does.
 */
#include "simd/cuda/gemm.cuh"

enum {
    EXACT_GROUP = 256,       /* the largest group whose sums are made floats by a subtraction: 256 * 127 * 128 < 2^22 */
    WHOLE_ZERO = 0x4b400000, /* the bits of 1.5 * 2^23 */
};
#define WHOLE_ZERO_FLOAT 12582912.0f

/* A product of a launch: what the weights of all of them have in common is int8 or int4. */
struct product_mat {
    const void *weights, *scales;
    uint32_t n;
    uint32_t group_scales; /* 1: sw; 0: a scale a channel, multiplied in at the end */
    uint32_t end_block;    /* one past its last block of threads */
    sq_gemm_out out;
};

struct product_args {
    product_mat mat[SQ_MAX_MATS]; /* unused ones end where the last one does */
    const uint4 *q;
    const float *scale;
    uint32_t m;
    uint32_t n_pairs, n_steps; /* of 64 and of 32 inputs; after n_steps all is zero */
    uint32_t n_groups, group_steps;
    uint32_t m_tiles; /* gemm: along m */
    bool exact;       /* groups up to EXACT_GROUP */
};

/* The matrix of a block of threads, whose number becomes that among the matrix's. */
SQ_DEVICE const product_mat *mat_of(const product_args *a, uint32_t *block)
{
    uint32_t i = 0;
    while (i + 1 < SQ_MAX_MATS && *block >= a->mat[i].end_block)
        i++;
    if (i) *block -= a->mat[i - 1].end_block;
    return &a->mat[i];
}

/* ---- Weights ----------------------------------------------------------------------------- */

/* A lane's words of a pair as they lie; int4 fill two. */
template <bool I4> SQ_DEVICE uint4 load_weights(const void *weights, size_t at)
{
    if (!I4) return ((const uint4 *)weights)[at];
    const uint2 v = ((const uint2 *)weights)[at];
    return make_uint4(v.x, v.y, 0, 0);
}

/* And as an mma takes them, int4 times 16. */
template <bool I4> SQ_DEVICE uint4 expand(uint4 v)
{
    const uint32_t high = 0xf0f0f0f0u;
    return I4 ? make_uint4(v.x << 4 & high, v.x & high, v.y << 4 & high, v.y & high) : v;
}

/* The words of a step, 0 or 1. */
SQ_DEVICE uint32_t first_word(const uint4 &v, int step) { return step ? v.z : v.x; }
SQ_DEVICE uint32_t second_word(const uint4 &v, int step) { return step ? v.w : v.y; }

/* ---- Sums -------------------------------------------------------------------------------- */

/* float(I) of what an mma's sum has become, from WHOLE_ZERO on when EXACT, else from 0. */
template <bool I4, bool EXACT> SQ_DEVICE float whole(int sum)
{
    if (!EXACT) return (float)(I4 ? sum / 16 : sum);
    const float f = sq_float_of_bits((uint32_t)sum);
    return I4 ? fmaf(f, 0.0625f, -WHOLE_ZERO_FLOAT / 16) : f - WHOLE_ZERO_FLOAT; /* both exact */
}

/* Adds a group's products to a lane's elements of a row, two channels. */
template <bool I4, bool EXACT> SQ_DEVICE void add_group(const int c[2], float sa, const float sw[2], float v[2])
{
    v[0] = fmaf(sa * sw[0], whole<I4, EXACT>(c[0]), v[0]);
    v[1] = fmaf(sa * sw[1], whole<I4, EXACT>(c[1]), v[1]);
}

SQ_DEVICE void set_sums(int c[4], int to)
{
    SQ_UNROLL
    for (int e = 0; e < 4; e++)
        c[e] = to;
}

/* ---- Store ------------------------------------------------------------------------------- */

/* Value v of row i and channel j; its scale comes last of all in a matrix that has one a channel. */
SQ_DEVICE void store(const product_mat *mat, uint32_t m, uint32_t i, uint32_t j, float v)
{
    if (i >= m || j >= mat->n) return;
    sq_store(&mat->out, i, j, mat->group_scales ? v : v * ((const float *)mat->scales)[j]);
}

/* A lane's two elements of the 8 rows from i and 8 channels from j. */
SQ_DEVICE void store_two(const product_mat *mat, uint32_t m, uint32_t i, uint32_t j, const float v[2])
{
    const uint32_t lane = threadIdx.x % SQ_WARP;
    store(mat, m, i + lane / 4, j + lane % 4 * 2, v[0]);
    store(mat, m, i + lane / 4, j + lane % 4 * 2 + 1, v[1]);
}

/* ---- Many rows --------------------------------------------------------------------------- */

/*
 * A block of threads makes a tile of 16 * HALF rows and 128 channels by 2 x 4 warps, each 8 * HALF rows and 32
 * channels; HALF is 8, or 4 with two blocks at once in a multiprocessor. A pair of steps of all its rows and channels
 * lies in shared memory while the next is on its way to registers: one barrier a pair. Shared memory: 36 KiB with HALF
 * 8, of 48 that every GPU has.
 */
enum {
    GEMM_THREADS = 256,
    WARPS_M = 2,
    WARPS_N = 4,
    N_BLOCKS = 4, /* of 8 channels, a warp's */
    TILE_N_BLOCKS = WARPS_N * N_BLOCKS,
    TILE_N = TILE_N_BLOCKS * SQ_ROW_BLOCK,
    AHEAD = 4, /* pairs by which L2 is told what weights come next: memory takes longer than a pair's products */
};

/* What a thread carries from memory to shared memory: of rows and channels each, some lanes' words of a pair, and a
 * scale of either step. */
template <int HALF> struct carried {
    enum { A = WARPS_M * HALF * SQ_WARP / GEMM_THREADS, B = TILE_N_BLOCKS * SQ_WARP / GEMM_THREADS };
    uint4 a[A], b[B];
    float sa, sw;
};

/* The scale of element `at` of a tile's 2 x `wide`: that of row row0 + at % wide and the group of step at / wide of the
 * pair; 0 past the last row. Of weights without group scales it is 1. */
SQ_DEVICE float activation_scale(const product_args *a, uint32_t pair, uint32_t row0, uint32_t at, uint32_t wide)
{
    const uint32_t step = pair * 2 + at / wide, row = row0 + at % wide;
    if (step >= a->n_steps || row >= (a->m + 7) / 8 * 8) return 0.0f;
    return a->scale[sq_scale_at(row, step / a->group_steps, a->n_groups)];
}

SQ_DEVICE float weight_scale(const product_args *a, const product_mat *mat, uint32_t pair, uint32_t row0, uint32_t at)
{
    const uint32_t step = pair * 2 + at / TILE_N, row = row0 + at % TILE_N;
    if (!mat->group_scales) return 1.0f;
    if (step >= a->n_steps || row >= mat->n) return 0.0f;
    return sq_half_to_float(((const uint16_t *)mat->scales)[sq_scale_at(row, step / a->group_steps, a->n_groups)]);
}

template <bool I4, int HALF>
SQ_DEVICE void carry(const product_args *a, const product_mat *mat, uint32_t row0, uint32_t channel0, uint32_t pair,
                     carried<HALF> *out)
{
    const uint32_t t = threadIdx.x, lane = t % SQ_WARP;
    const uint4 none = make_uint4(0, 0, 0, 0);
    SQ_UNROLL
    for (int i = 0; i < carried<HALF>::A; i++) {
        const uint32_t block = row0 / SQ_ROW_BLOCK + (t + i * GEMM_THREADS) / SQ_WARP;
        out->a[i] = block * SQ_ROW_BLOCK < a->m ? a->q[((size_t)block * a->n_pairs + pair) * SQ_WARP + lane] : none;
    }
    SQ_UNROLL
    for (int i = 0; i < carried<HALF>::B; i++) {
        const uint32_t block = channel0 / SQ_ROW_BLOCK + (t + i * GEMM_THREADS) / SQ_WARP;
        const size_t at = ((size_t)block * a->n_pairs + pair) * SQ_WARP + lane;
        const bool there = block * SQ_ROW_BLOCK < mat->n;
        out->b[i] = there ? load_weights<I4>(mat->weights, at) : none;
        if (there && pair + AHEAD < a->n_pairs)
            sq_prefetch((const uint8_t *)mat->weights + (at + AHEAD * SQ_WARP) * (I4 ? sizeof(uint2) : sizeof(uint4)));
    }
    const uint32_t rows = WARPS_M * HALF * SQ_ROW_BLOCK;
    static_assert(2 * WARPS_M * HALF * SQ_ROW_BLOCK <= GEMM_THREADS && 2 * TILE_N == GEMM_THREADS, "a scale of each");
    out->sa = t < 2 * rows ? activation_scale(a, pair, row0, t, rows) : 0.0f;
    out->sw = weight_scale(a, mat, pair, channel0, t);
}

/* After `step` the group of its inputs is complete. Steps past n_steps belong to none. */
SQ_DEVICE bool ends_group(const product_args *a, uint32_t step)
{
    return step < a->n_steps && (step + 1 == a->n_steps || (step + 1) % a->group_steps == 0);
}

/* The group that ends in 16 rows and a warp's channels. */
template <bool I4, bool EXACT>
SQ_DEVICE void add_groups(int c[N_BLOCKS][4], float sa0, float sa1, const float *sw, float v[N_BLOCKS][4])
{
    SQ_UNROLL
    for (int j = 0; j < N_BLOCKS; j++) {
        add_group<I4, EXACT>(c[j], sa0, sw + j * SQ_ROW_BLOCK, v[j]);
        add_group<I4, EXACT>(c[j] + 2, sa1, sw + j * SQ_ROW_BLOCK, v[j] + 2);
        set_sums(c[j], EXACT ? WHOLE_ZERO : 0);
    }
}

template <bool I4, int HALF>
static __global__ void __launch_bounds__(GEMM_THREADS, 8 / HALF) gemm_kernel(const product_args a)
{
    enum { M_BLOCKS = WARPS_M * HALF, ROWS = M_BLOCKS * SQ_ROW_BLOCK, PAIRED = HALF / 2 };
    __shared__ uint4 shared_a[2][M_BLOCKS][SQ_WARP], shared_b[2][TILE_N_BLOCKS][SQ_WARP];
    __shared__ float shared_sa[2][2 * ROWS], shared_sw[2][2 * TILE_N];

    uint32_t block = blockIdx.x;
    const product_mat *const mat = mat_of(&a, &block);
    const uint32_t row0 = block % a.m_tiles * ROWS, channel0 = block / a.m_tiles * TILE_N;
    const uint32_t t = threadIdx.x, lane = t % SQ_WARP;
    const uint32_t warp_m = t / SQ_WARP % WARPS_M * HALF, warp_n = t / SQ_WARP / WARPS_M * N_BLOCKS; /* in blocks */

    int c[PAIRED][N_BLOCKS][4];
    float v[PAIRED][N_BLOCKS][4];
    SQ_UNROLL
    for (int i = 0; i < PAIRED * N_BLOCKS; i++) {
        set_sums(c[i / N_BLOCKS][i % N_BLOCKS], a.exact ? WHOLE_ZERO : 0);
        SQ_UNROLL
        for (int e = 0; e < 4; e++)
            v[i / N_BLOCKS][i % N_BLOCKS][e] = 0.0f;
    }

    carried<HALF> next;
    carry<I4, HALF>(&a, mat, row0, channel0, 0, &next);
    for (uint32_t pair = 0; pair < a.n_pairs; pair++) {
        const uint32_t now = pair % 2;
        /* Of this half everybody was done before the last barrier. */
        SQ_UNROLL
        for (int i = 0; i < carried<HALF>::A; i++)
            shared_a[now][(t + i * GEMM_THREADS) / SQ_WARP][lane] = next.a[i];
        SQ_UNROLL
        for (int i = 0; i < carried<HALF>::B; i++)
            shared_b[now][(t + i * GEMM_THREADS) / SQ_WARP][lane] = expand<I4>(next.b[i]);
        if (t < 2 * ROWS) shared_sa[now][t] = next.sa;
        shared_sw[now][t] = next.sw;
        __syncthreads();
        if (pair + 1 < a.n_pairs) carry<I4, HALF>(&a, mat, row0, channel0, pair + 1, &next);

        uint4 b[N_BLOCKS];
        SQ_UNROLL
        for (int j = 0; j < N_BLOCKS; j++)
            b[j] = shared_b[now][warp_n + j][lane];
        SQ_UNROLL
        for (int i = 0; i < PAIRED; i++) {
            const uint4 low = shared_a[now][warp_m + 2 * i][lane], high = shared_a[now][warp_m + 2 * i + 1][lane];
            SQ_UNROLL
            for (int step = 0; step < 2; step++) {
                const uint32_t rows[4] = {first_word(low, step), first_word(high, step), second_word(low, step),
                                          second_word(high, step)};
                SQ_UNROLL
                for (int j = 0; j < N_BLOCKS; j++) {
                    const uint32_t channels[2] = {first_word(b[j], step), second_word(b[j], step)};
                    sq_mma_s8(c[i][j], rows, channels);
                }
                if (!ends_group(&a, pair * 2 + step)) continue;
                const float *const sa = &shared_sa[now][step * ROWS + (warp_m + 2 * i) * SQ_ROW_BLOCK + lane / 4];
                const float *const sw = &shared_sw[now][step * TILE_N + warp_n * SQ_ROW_BLOCK + lane % 4 * 2];
                if (a.exact)
                    add_groups<I4, true>(c[i], sa[0], sa[SQ_ROW_BLOCK], sw, v[i]);
                else
                    add_groups<I4, false>(c[i], sa[0], sa[SQ_ROW_BLOCK], sw, v[i]);
            }
        }
    }
    SQ_UNROLL
    for (int i = 0; i < PAIRED * N_BLOCKS; i++) {
        const float *const e = v[i / N_BLOCKS][i % N_BLOCKS];
        const uint32_t row = row0 + (warp_m + i / N_BLOCKS * 2) * SQ_ROW_BLOCK;
        const uint32_t channel = channel0 + (warp_n + i % N_BLOCKS) * SQ_ROW_BLOCK;
        store_two(mat, a.m, row, channel, e);
        store_two(mat, a.m, row + SQ_ROW_BLOCK, channel, e + 2);
    }
}

/* ---- Few rows ---------------------------------------------------------------------------- */

/*
 * A warp has 8 channels and all rows, in blocks of 8: 1, 2, 4 or 8. It asks for a batch of pairs of steps at a time,
 * one batch ahead, 4 KiB of weights, so that a few warps a multiprocessor keep the memory busy; of 64 rows, whose time
 * goes into loading activations from L1, half as much.
 */
enum { FEW_THREADS = 64, FEW_CHANNELS = FEW_THREADS / SQ_WARP * SQ_ROW_BLOCK, FEW_ROWS = 64 };

template <int PAIRS> struct batch {
    uint4 words[PAIRS];
    uint32_t scales[2 * PAIRS]; /* of the group of each step, two channels as binary16 */
};

/* Walks over the groups of successive steps. */
typedef struct group_walk {
    uint32_t g, left; /* steps of group g that are still to come */
} group_walk;

SQ_DEVICE void walk_on(const product_args *a, group_walk *w)
{
    if (--w->left) return;
    w->left = a->group_steps;
    w->g++;
}

template <bool I4, int PAIRS>
SQ_DEVICE void fetch(const product_args *a, const product_mat *mat, uint32_t block, uint32_t pair0, group_walk *walk,
                     batch<PAIRS> *out)
{
    const uint32_t lane = threadIdx.x % SQ_WARP;
    SQ_UNROLL
    for (int p = 0; p < PAIRS; p++) {
        const size_t at = ((size_t)block * a->n_pairs + pair0 + p) * SQ_WARP + lane;
        out->words[p] = pair0 + p < a->n_pairs ? load_weights<I4>(mat->weights, at) : make_uint4(0, 0, 0, 0);
    }
    if (!mat->group_scales) return;
    const uint16_t *const scales = (const uint16_t *)mat->scales + sq_scale_at(block * SQ_ROW_BLOCK, 0, a->n_groups);
    SQ_UNROLL
    for (int s = 0; s < 2 * PAIRS; s++) {
        const uint16_t *const at = scales + walk->g * SQ_ROW_BLOCK + lane % 4 * 2;
        out->scales[s] = pair0 * 2 + s < a->n_steps ? *(const uint32_t *)at : 0;
        walk_on(a, walk);
    }
}

/* The group that ends in all rows and a warp's channels; `scales` is the two channels'. */
template <bool I4, bool EXACT, int ROW_BLOCKS>
SQ_DEVICE void add_few(const product_args *a, const product_mat *mat, uint32_t g, uint32_t scales,
                       int c[(ROW_BLOCKS + 1) / 2][4], float v[(ROW_BLOCKS + 1) / 2][4])
{
    const uint32_t r = threadIdx.x % SQ_WARP / 4;
    float sw[2] = {1.0f, 1.0f};
    if (mat->group_scales) {
        sw[0] = sq_half_to_float((uint16_t)scales);
        sw[1] = sq_half_to_float((uint16_t)(scales >> 16));
    }
    SQ_UNROLL
    for (int i = 0; i < ROW_BLOCKS; i++) {
        const uint32_t row = i * SQ_ROW_BLOCK + r;
        const float sa = (uint32_t)i * SQ_ROW_BLOCK < a->m ? a->scale[sq_scale_at(row, g, a->n_groups)] : 0.0f;
        add_group<I4, EXACT>(c[i / 2] + i % 2 * 2, sa, sw, v[i / 2] + i % 2 * 2);
    }
    SQ_UNROLL
    for (int i = 0; i < (ROW_BLOCKS + 1) / 2; i++)
        set_sums(c[i], EXACT ? WHOLE_ZERO : 0);
}

template <bool I4, int ROW_BLOCKS>
static __global__ void __launch_bounds__(FEW_THREADS) few_kernel(const product_args a)
{
    enum { PAIRED = (ROW_BLOCKS + 1) / 2, PAIRS = (I4 ? 16 : 8) / (ROW_BLOCKS > 4 ? 2 : 1) };
    uint32_t first = blockIdx.x;
    const product_mat *const mat = mat_of(&a, &first);
    const uint32_t lane = threadIdx.x % SQ_WARP, block = first * (FEW_THREADS / SQ_WARP) + threadIdx.x / SQ_WARP;

    int c[PAIRED][4];
    float v[PAIRED][4];
    SQ_UNROLL
    for (int i = 0; i < PAIRED; i++) {
        set_sums(c[i], a.exact ? WHOLE_ZERO : 0);
        SQ_UNROLL
        for (int e = 0; e < 4; e++)
            v[i][e] = 0.0f;
    }

    group_walk ahead = {0, a.group_steps}, here = ahead;
    batch<PAIRS> now, next;
    fetch<I4, PAIRS>(&a, mat, block, 0, &ahead, &next);
    for (uint32_t pair0 = 0; pair0 < a.n_pairs; pair0 += PAIRS) {
        now = next;
        if (pair0 + PAIRS < a.n_pairs) fetch<I4, PAIRS>(&a, mat, block, pair0 + PAIRS, &ahead, &next);
        SQ_UNROLL
        for (int p = 0; p < PAIRS; p++) {
            const uint32_t pair = pair0 + p;
            if (pair >= a.n_pairs) continue;
            const uint4 b = expand<I4>(now.words[p]);
            uint4 rows[2 * PAIRED];
            SQ_UNROLL
            for (int i = 0; i < 2 * PAIRED; i++) {
                const bool there = i < ROW_BLOCKS && (uint32_t)i * SQ_ROW_BLOCK < a.m;
                rows[i] = there ? a.q[((size_t)i * a.n_pairs + pair) * SQ_WARP + lane] : make_uint4(0, 0, 0, 0);
            }
            SQ_UNROLL
            for (int step = 0; step < 2; step++) {
                const uint32_t channels[2] = {first_word(b, step), second_word(b, step)};
                SQ_UNROLL
                for (int i = 0; i < PAIRED; i++) {
                    const uint32_t both[4] = {first_word(rows[2 * i], step), first_word(rows[2 * i + 1], step),
                                              second_word(rows[2 * i], step), second_word(rows[2 * i + 1], step)};
                    sq_mma_s8(c[i], both, channels);
                }
                const uint32_t at = pair * 2 + step;
                if (at < a.n_steps && (at + 1 == a.n_steps || here.left == 1)) {
                    if (a.exact)
                        add_few<I4, true, ROW_BLOCKS>(&a, mat, here.g, now.scales[2 * p + step], c, v);
                    else
                        add_few<I4, false, ROW_BLOCKS>(&a, mat, here.g, now.scales[2 * p + step], c, v);
                }
                walk_on(&a, &here);
            }
        }
    }
    SQ_UNROLL
    for (int i = 0; i < ROW_BLOCKS; i++)
        store_two(mat, a.m, i * SQ_ROW_BLOCK, block * SQ_ROW_BLOCK, v[i / 2] + i % 2 * 2);
}

/* ---- Products ---------------------------------------------------------------------------- */

static bool fill_mat(sq_stream *s, const sq_panels *w, const sq_gemm_out *out, product_mat *mat)
{
    sq_tiles tiles;
    if (!sq_cuda_tiles(s, w, &tiles)) return false;
    mat->weights = tiles.weights;
    mat->scales = tiles.scales;
    mat->n = w->n;
    mat->group_scales = w->group != 0;
    mat->out = *out;
    return true;
}

/* Blocks of threads are numbered from the first matrix on, in tiles of m_tiles x `wide` channels. A tile has 16
 * elements or more, of an output that fits in memory, so that 2^31 are never reached; but who knows what memory will
 * be. */
static uint32_t number_blocks(sq_stream *s, product_args *args, unsigned n_mats, uint32_t wide)
{
    uint64_t blocks = 0;
    for (unsigned i = 0; i < SQ_MAX_MATS; i++) {
        if (i < n_mats) blocks += (uint64_t)args->m_tiles * sq_ceil_div(args->mat[i].n, wide);
        if (blocks > INT32_MAX) sq_cuda_fail(s, false, "a product has too many tiles");
        args->mat[i].end_block = (uint32_t)blocks;
    }
    return (uint32_t)blocks;
}

template <bool I4> static void launch_few(sq_stream *s, product_args *args, unsigned n_mats)
{
    args->m_tiles = 1;
    const uint32_t blocks = number_blocks(s, args, n_mats, FEW_CHANNELS);
    if (args->m <= SQ_ROW_BLOCK)
        SQ_LAUNCH(s, (few_kernel<I4, 1>), blocks, FEW_THREADS, *args);
    else if (args->m <= 2 * SQ_ROW_BLOCK)
        SQ_LAUNCH(s, (few_kernel<I4, 2>), blocks, FEW_THREADS, *args);
    else if (args->m <= 4 * SQ_ROW_BLOCK)
        SQ_LAUNCH(s, (few_kernel<I4, 4>), blocks, FEW_THREADS, *args);
    else
        SQ_LAUNCH(s, (few_kernel<I4, 8>), blocks, FEW_THREADS, *args);
}

/* Tiles of 64 rows take half the time of those of 128, and waste less of the last multiprocessors' and rows'. */
template <bool I4> static void launch_gemm(sq_stream *s, product_args *args, unsigned n_mats)
{
    const uint32_t sms = s->device->n_sms;
    args->m_tiles = sq_ceil_div(args->m, 64);
    const uint32_t small = number_blocks(s, args, n_mats, TILE_N);
    const product_args small_args = *args;
    args->m_tiles = sq_ceil_div(args->m, 128);
    const uint32_t large = number_blocks(s, args, n_mats, TILE_N);
    if (sq_ceil_div(small, sms) < 2 * sq_ceil_div(large, sms))
        SQ_LAUNCH(s, (gemm_kernel<I4, 4>), small, GEMM_THREADS, small_args);
    else
        SQ_LAUNCH(s, (gemm_kernel<I4, 8>), large, GEMM_THREADS, *args);
}

/* Those of a type. */
static void multiply_type(sq_stream *s, const sq_products *p, sq_panel_type type, product_args *args)
{
    unsigned n = 0;
    for (unsigned i = 0; i < p->n; i++)
        if (p->w[i]->panels.type == type && !fill_mat(s, &p->w[i]->panels, &p->out[i], &args->mat[n++])) return;
    if (!n) return;
    const bool few = args->m <= FEW_ROWS;
    if (type == SQ_PANEL_I4)
        few ? launch_few<true>(s, args, n) : launch_gemm<true>(s, args, n);
    else
        few ? launch_few<false>(s, args, n) : launch_gemm<false>(s, args, n);
}

static void project_panels(sq_stream *s, const sq_rows_in *in, uint32_t m, const sq_products *p)
{
    sq_cuda_acts acts;
    product_args args;
    const uint32_t group = sq_panels_act_group(&p->w[0]->panels);
    if (!sq_cuda_rows_pack(s, in, m, group, &acts)) return;
    memset(&args, 0, sizeof args);
    args.q = (const uint4 *)acts.q;
    args.scale = acts.scale;
    args.m = m;
    args.n_pairs = sq_pairs(in->k);
    args.n_steps = sq_ceil_div(in->k, SQ_STEP);
    args.n_groups = sq_groups(in->k, group);
    args.group_steps = group / SQ_STEP;
    args.exact = group <= EXACT_GROUP;
    multiply_type(s, p, SQ_PANEL_I8, &args);
    multiply_type(s, p, SQ_PANEL_I4, &args);
}

/* How a matrix is multiplied, and so what it reads. */
typedef void project_fn(sq_stream *s, const sq_rows_in *in, uint32_t m, const sq_products *p);

static project_fn *way_of(const sq_stream *s, const sq_mat *w)
{
    if (w->ordered) return sq_cuda_project_ordered;
    return w->f32 || s->device->precision != SQ_PRECISION_FILE ? sq_cuda_project_floats : project_panels;
}

static bool same_rows(const sq_stream *s, const sq_mat *a, const sq_mat *b)
{
    project_fn *const way = way_of(s, a);
    if (way != way_of(s, b)) return false;
    return way != project_panels || sq_panels_act_group(&a->panels) == sq_panels_act_group(&b->panels);
}

void sq_cuda_project(sq_stream *s, const sq_rows_in *in, uint32_t m, const sq_mat *const *w, const sq_gemm_out *out,
                     unsigned n_mats)
{
    bool done[SQ_MAX_MATS] = {false};
    assert(n_mats <= SQ_MAX_MATS);
    if (!m) return;
    for (unsigned i = 0; i < n_mats; i++) {
        sq_products p;
        p.n = 0;
        for (unsigned j = i; j < n_mats; j++) {
            if (done[j] || !same_rows(s, w[i], w[j])) continue;
            done[j] = true;
            p.w[p.n] = w[j];
            p.out[p.n] = out[j];
            if (out[j].bias) p.out[p.n].bias = (const float *)sq_cuda_weights(s, out[j].bias, w[j]->n * sizeof(float));
            p.n++;
        }
        if (p.n) way_of(s, w[i])(s, in, m, &p);
    }
}
