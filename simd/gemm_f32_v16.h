/*
 * gemm_f32_v16: gemm_f32.c, 16 output channels at a time and with its bits. Who includes this has defined v16, and how
 * many sums its registers hold: ROWS of x by 16 * PANELS channels.
 * SPDX-License-Identifier: MIT
 *
 * Inputs come in blocks of BLOCK_K, of which the weights of PANELS panels stay in L1 while BLOCK_ROWS rows pass; sums
 * wait in memory from one block to the next, where nothing rounds them.
 */
#include "simd/internal.h"

enum { BLOCK_K = 256, BLOCK_ROWS = 48, NR = SQ_PANEL_N };

/* Sums of rows x[0 .. ROWS) and `panels` panels of `step` floats each, over n_k inputs. */
SQ_INLINE void add_tile(const float *const x[ROWS], const float *w, size_t step, uint32_t n_k, int panels,
                        float (*sum)[PANELS * NR])
{
    v16 s[ROWS][PANELS];
    SQ_UNROLL
    for (int r = 0; r < ROWS; r++) {
        SQ_UNROLL
        for (int p = 0; p < panels; p++)
            s[r][p] = v_load(sum[r] + p * NR);
    }
    for (uint32_t k = 0; k < n_k; k++) {
        v16 b[PANELS];
        SQ_UNROLL
        for (int p = 0; p < panels; p++)
            b[p] = v_load(w + p * step + (size_t)k * NR);
        SQ_UNROLL
        for (int r = 0; r < ROWS; r++) {
            const v16 a = v_all(x[r][k]);
            SQ_UNROLL
            for (int p = 0; p < panels; p++)
                s[r][p] = v_fma(a, b[p], s[r][p]);
        }
    }
    SQ_UNROLL
    for (int r = 0; r < ROWS; r++) {
        SQ_UNROLL
        for (int p = 0; p < panels; p++)
            v_store(sum[r] + p * NR, s[r][p]);
    }
}

/* n <= 16 channels from j0 on of row i. */
static void store_row(const sq_gemm_out *out, uint32_t i, uint32_t j0, int64_t n, const float *sum)
{
    float *const c = out->c + (out->rows ? out->rows[i] : i) * out->ldc + j0;
    v16 v = v_load(sum);
    if (out->bias) v = v_add(v, v_load_first(out->bias + j0, n));
    if (out->row_weight) v = v_mul(v, v_all(out->row_weight[i]));
    if (out->add) v = v_add(v_load_first(c, n), v);
    v_store_first(c, n, v);
}

/* The rows of a tile; those past `end` are the last one again. */
SQ_INLINE void point_rows(const sq_float_rows *x, uint32_t i, uint32_t end, uint32_t k, const float *rows[ROWS])
{
    for (uint32_t r = 0; r < ROWS; r++)
        rows[r] = x->x + (i + r < end ? i + r : end - 1) * x->ldx + k;
}

/* Rows [i, end), BLOCK_ROWS at most, and `panels` panels from panel0 on. */
SQ_INLINE void run_block(const sq_mat *w, uint32_t panel0, int panels, const sq_float_rows *x, uint32_t i, uint32_t end,
                         const sq_gemm_out *out)
{
    static_assert(BLOCK_ROWS % ROWS == 0, "blocks are whole tiles");
    float sum[BLOCK_ROWS][PANELS * NR];
    const size_t step = (size_t)w->k * NR;
    const float *const weights = w->ordered + panel0 * step;
    for (uint32_t r = 0; r < BLOCK_ROWS; r++)
        for (int p = 0; p < PANELS; p++)
            v_store(sum[r] + p * NR, v_all(0.0f));
    for (uint32_t k = 0; k < w->k; k += BLOCK_K) {
        const uint32_t n_k = w->k - k < BLOCK_K ? w->k - k : BLOCK_K;
        for (uint32_t first = i; first < end; first += ROWS) {
            const float *rows[ROWS];
            point_rows(x, first, end, k, rows);
            add_tile(rows, weights + (size_t)k * NR, step, n_k, panels, sum + (first - i));
        }
    }
    for (uint32_t row = i; row < end; row++)
        for (int p = 0; p < panels; p++) {
            const uint32_t j0 = (panel0 + (uint32_t)p) * NR;
            store_row(out, row, j0, (int64_t)w->n - j0 < NR ? (int64_t)w->n - j0 : NR, sum[row - i] + p * NR);
        }
}

static void gemm_f32(const sq_mat *w, uint32_t panel0, uint32_t n_panels, const sq_float_rows *x,
                     const sq_gemm_out *out)
{
    const uint32_t end = x->row0 + x->m, end_panel = panel0 + n_panels;
    for (uint32_t i = x->row0; i < end; i += BLOCK_ROWS) {
        const uint32_t end_row = end - i < BLOCK_ROWS ? end : i + BLOCK_ROWS;
        uint32_t p = panel0;
        for (; p + PANELS <= end_panel; p += PANELS)
            run_block(w, p, PANELS, x, i, end_row, out);
        for (; p < end_panel; p++)
            run_block(w, p, 1, x, i, end_row, out);
    }
}
