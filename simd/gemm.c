/*
 * gemm: int8 activations times int8 or int4 weight panels, in plain C. Defines the result of all versions.
 * SPDX-License-Identifier: MIT
 *
 *     v[i][j] = sum over groups g of  (sa[i][g] * sw[j][g]) * float(I)
 *     I       = sum over k in g of a[i][k] * (u[j][k] - zero)
 *             = sum over k in g of a[i][k] * u[j][k]  -  zero * S[i][g]
 *
 * I is exact: |I| <= 255 * 127 * SQ_MAX_K < 2^31. Groups are added in rising order, from 0 on, each by one fused
 * multiply-add. Weights with one scale a channel leave sw out of the sum and multiply it in at the end. Nothing else is
 * fused. So every version gives the same bits: the next layer's roundings and the router's choice would make more of a
 * difference in the last one.
 */
#include "simd/internal.h"

#include <math.h>
#include <string.h>

enum { MR = SQ_MR_C, NR = SQ_PANEL_N, LINE = 64 };

/* Adds the products of the k inputs in one 64-byte line; q points at the tile's bytes of the line's first input. */
typedef void line_fn(const uint8_t *line, const int8_t *q, int32_t sum[MR][NR]);

static void add_products(const uint8_t u[NR * 4], const int8_t *q, int32_t sum[MR][NR])
{
    for (int r = 0; r < MR; r++) {
        const int8_t *a = q + r * 4;
        for (int c = 0; c < NR; c++) {
            const uint8_t *b = u + c * 4;
            sum[r][c] += a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3];
        }
    }
}

static void line_i8(const uint8_t *line, const int8_t *q, int32_t sum[MR][NR]) { add_products(line, q, sum); }

static void line_i4(const uint8_t *line, const int8_t *q, int32_t sum[MR][NR])
{
    uint8_t low[LINE], high[LINE];
    for (int i = 0; i < LINE; i++) {
        low[i] = line[i] & 15;
        high[i] = line[i] >> 4;
    }
    add_products(low, q, sum);
    add_products(high, q + MR * 4, sum);
}

/* What differs between the weight types. */
typedef struct kind {
    line_fn *line;
    uint32_t k_line; /* inputs in a line */
    int32_t zero;
} kind;

static const kind kind_i8 = {line_i8, 4, 128}, kind_i4 = {line_i4, 8, 8};

/* Of group g; 1 for now when the channels have one scale each. */
static void group_scales(const sq_panels *w, const uint8_t *scales, uint32_t g, float sw[NR])
{
    for (uint32_t c = 0; c < NR; c++) {
        uint16_t bits = 0x3c00;
        if (w->group) memcpy(&bits, scales + (g * NR + c) * sizeof bits, sizeof bits);
        sw[c] = sq_f16_to_f32(bits);
    }
}

static void product(const kind *t, const sq_panels *w, const uint8_t *panel, const sq_acts *a, uint32_t tile,
                    float v[MR][NR])
{
    const uint32_t k_pad = sq_acts_k_pad(a), n_groups = sq_acts_groups(a);
    const int8_t *q = a->q + (size_t)tile * k_pad * MR;
    const uint8_t *scales = panel + sq_panel_weight_bytes(w);
    memset(v, 0, sizeof(float[MR][NR]));
    for (uint32_t g = 0; g < n_groups; g++) {
        const uint32_t k0 = g * a->group, end = k_pad - k0 < a->group ? k_pad : k0 + a->group;
        const size_t row0 = ((size_t)tile * n_groups + g) * MR;
        int32_t sum[MR][NR] = {{0}};
        float sw[NR];
        for (uint32_t k = k0; k < end; k += t->k_line) {
            t->line(panel + (size_t)(k / t->k_line) * LINE, q + (size_t)k * MR, sum);
        }
        group_scales(w, scales, g, sw);
        for (int r = 0; r < MR; r++) {
            const int32_t offset = t->zero * a->sum[row0 + r];
            for (int c = 0; c < NR; c++)
                v[r][c] = fmaf(a->scale[row0 + r] * sw[c], (float)(sum[r][c] - offset), v[r][c]);
        }
    }
    if (w->group) return;
    float channel[NR];
    memcpy(channel, scales, sizeof channel);
    for (int r = 0; r < MR; r++) {
        for (int c = 0; c < NR; c++)
            v[r][c] *= channel[c];
    }
}

static void store(const sq_gemm_out *o, uint32_t i, uint32_t j0, uint32_t n, const float *v)
{
    float *c = o->c + (o->rows ? o->rows[i] : i) * o->ldc + j0;
    for (uint32_t j = 0; j < n; j++) {
        float t = v[j];
        if (o->bias) t += o->bias[j0 + j];
        if (o->row_weight) t *= o->row_weight[i];
        c[j] = o->add ? c[j] + t : t;
    }
}

static void gemm(const kind *t, const sq_panels *w, uint32_t panel0, uint32_t n_panels, const sq_acts *a,
                 const sq_gemm_out *out)
{
    const size_t bytes = sq_panel_bytes(w);
    assert(a->k == w->k && a->group == sq_panels_act_group(w) && a->mr == MR);
    for (uint32_t p = panel0; p < panel0 + n_panels; p++) {
        const uint32_t j0 = p * NR, n = w->n - j0 < NR ? w->n - j0 : NR;
        for (uint32_t tile = 0; tile < sq_acts_tiles(a); tile++) {
            float v[MR][NR];
            product(t, w, w->data + p * bytes, a, tile, v);
            for (uint32_t i = tile * MR, r = 0; r < MR && i < a->m; r++, i++)
                store(out, i, j0, n, v[r]);
        }
    }
}

void sq_gemm_i8_c(const sq_panels *w, uint32_t panel0, uint32_t n_panels, const sq_acts *a, const sq_gemm_out *out)
{
    gemm(&kind_i8, w, panel0, n_panels, a, out);
}

void sq_gemm_i4_c(const sq_panels *w, uint32_t panel0, uint32_t n_panels, const sq_acts *a, const sq_gemm_out *out)
{
    gemm(&kind_i4, w, panel0, n_panels, a, out);
}
