/*
 * device: what a processor with memory of its own does for a model. One table of verbs; the CPU's versions of them are
 * the verbs of runtime/engine.h, and those of a device (simd/cuda/) give the same bits wherever the weights are panels.
 * SPDX-License-Identifier: MIT
 *
 * Memory. Pointers marked @device lie in the device's memory and are dereferenced by nobody else; pointers @host in the
 * program's. Pointers @weights are addresses of a model's weights in the program's memory, which never change while the
 * device is open: it copies each to its own memory when it first meets it, and knows the copy by this address.
 *
 * Order. The verbs of a stream happen one after another, some time after the call returned; read() and finish() wait.
 * What a call was given may change once it has returned. The first failure of a stream makes all later verbs do
 * nothing, and every finish() tells it: a session on it can only be closed.
 */
#ifndef SQ_DEVICE_H
#define SQ_DEVICE_H

#include "simd/simd.h"

typedef struct sq_device sq_device; /* a model's: what it uploaded. Any thread. */
typedef struct sq_stream sq_stream; /* a session's: one thread at a time */

/* What matrices are multiplied as. */
typedef enum sq_precision {
    SQ_PRECISION_FILE, /* panels in whole numbers, to the CPU's bits; floats in float32 */
    SQ_PRECISION_F32,  /* all in float32, panels expanded; never in TF32 */
    SQ_PRECISION_F16,  /* weights and inputs rounded to binary16, sums in float32 */
} sq_precision;

/* ---- Verbs of the decoder ---------------------------------------------------------------- */

/* Queries and keys of rows are rotated to their positions; keys and values go to the end of a layer's cache. Row i is
 * row (rows ? rows[i] : first + i) of the pass. */
typedef struct sq_kv_store {
    float *qkv; /* @device [m][ld] n_heads queries, n_kv_heads keys, as many values, head_dim each */
    size_t ld;
    uint32_t m, n_heads, n_kv_heads, head_dim;
    bool rope_half;
    const float *rope;    /* @device [positions][head_dim] cosines, then sines */
    const uint32_t *rows; /* @device [m] or NULL */
    uint32_t first;
    uint32_t position; /* of row 0 of the pass; when compressed, of row i = 0 */
    bool compressed;   /* positions are position + i, not position + row */
    void *k, *v;       /* @device [n_kv_heads][capacity][row of kv_type] */
    sq_kv_type kv_type;
    uint32_t n, capacity; /* entries that are there, and that there is room for */
} sq_kv_store;

/* ---- Verbs of routing: see models/mod_layer.c --------------------------------------------- */

typedef enum sq_norm_type { SQ_NORM_TANH, SQ_NORM_SIGMOID, SQ_NORM_SOFTMAX, SQ_NORM_NONE } sq_norm_type;

/* A routable row, while layers skip it. */
typedef struct sq_lag {
    float factor;        /* by which the row in memory is still to be multiplied */
    float dots[SQ_DOTS]; /* of the row in memory and layer l's router, at l % SQ_DOTS */
    uint32_t scored;     /* for the layers before this one dots is known */
} sq_lag;

/* One layer's choice among the targets of a pass, the rows with a score; all its other rows are kept. */
typedef struct sq_route {
    /* The pass */
    float *x; /* @device [n][d] the residual stream */
    uint32_t n, d, n_targets;
    const uint32_t *targets; /* @device [n_targets] rows, rising */
    const uint8_t *competes; /* @device [n_targets] or NULL for all: those with 0 are chosen before all others */
    sq_lag *lag;             /* @device [n_targets] */
    /*
     * Score: z = factor * dots[layer % SQ_DOTS] + bias. Of a target whose lag.scored <= layer the dots are taken first,
     * those with the routers of layers [layer, end), and divided by the row's rms when by_rms; scored becomes end.
     * weight = norm_scale * norm(z) + norm_bias.
     */
    uint32_t layer, end;
    const float *routers[SQ_DOTS]; /* @weights [d], of layer l at l % SQ_DOTS */
    float bias;
    bool by_rms;
    float eps;
    sq_norm_type norm;
    float norm_scale, norm_bias;
    /* Choose: the `best` largest scores, lower row first on ties, or those above `logit` (binary64). */
    bool by_threshold;
    uint32_t best;
    double logit;
    bool at_logit; /* a score that equals it passes */
    /*
     * Keep: chosen targets and all that are no targets, in order. A chosen row is multiplied by its factor, which
     * becomes 1, and must be scored again; with weigh_skipped a skipped one's factor takes its weight.
     */
    bool weigh_skipped;
    float *scores, *weights; /* @device [n_targets] out */
    uint32_t *kept;          /* @device [n] out: rows */
    float *kept_weight;      /* @device [n] out: weight of a target, 1 of another row */
} sq_route;

/* ---- Verbs of the towers ------------------------------------------------------------------ */

/* Maps are [side][side][channels] floats: a place is a row of a matrix product. */

/*
 * Rows [y0, y0 + n_rows) of a convolution's input: for each place of the output map its kernel x kernel x channels
 * inputs, zeros outside the map.
 */
typedef struct sq_patches {
    const float *map; /* @device */
    bool planar;      /* it is [channels][side][side] */
    uint32_t side, channels, kernel, stride, pad;
    uint32_t out_side;      /* of the output map */
    uint32_t y0, n_rows;    /* of the output map */
    const sq_rows_in *norm; /* each place goes through it first; NULL, as of a planar map: as it lies */
    float *out;             /* @device [n_rows * out_side][kernel * kernel * channels] */
} sq_patches;

/* Rows [y0, y0 + n_rows) of a 7x7 convolution of each channel by itself: see sq_depthwise. */
typedef struct sq_depthwise_map {
    const float *map; /* @device */
    const float
        *before; /* @device [3][side][channels] row y at y % 3: what rows above y0 are to count as; not for y0 0 */
    uint32_t side, channels;
    const float *w, *bias; /* @weights [49][channels], [channels] */
    uint32_t y0, n_rows;
    float *out; /* @device [n_rows][side][channels], not within the map */
} sq_depthwise_map;

/* How the places of a map become more or fewer: see simd/tap.h. */
typedef enum sq_resize_by {
    SQ_RESIZE_EDGES,   /* bilinear, the outer edges of both maps at the same place */
    SQ_RESIZE_CORNERS, /* bilinear, the middles of the outermost places at the same place */
    SQ_RESIZE_MEANS,   /* means of blocks; out's sides divide the map's by the same number */
} sq_resize_by;

typedef struct sq_resize_map {
    sq_resize_by by;
    const float *map; /* @device [height][width][channels] */
    uint32_t width, height, channels;
    uint32_t out_width, out_height;
    uint32_t out_row; /* places from one row of `out` to the next */
    float *out;       /* @device [out_height][out_row][channels], of each row the first out_width */
} sq_resize_map;

/*
 * Tokens look for detail in places of a map that joins the channels of several, each enlarged to the first one's size
 * by SQ_RESIZE_EDGES. Each of tokens x tokens sees a block of m x m places of its own:
 *
 *     z_j = norm(place j),  score_j = (asked . z_j + query . key_offset) / sqrt(d)
 *     asked = weight * sum_j softmax_j(score) z_j + bias
 *
 * A score that is NaN counts as 0, an infinite one as the largest number: torch.nan_to_num(). The exponentials are
 * added in rising order of j, and so are the places.
 */
enum { SQ_MINE_MAPS = 4, SQ_MINE_BLOCK = 32 };
typedef struct sq_mine {
    const float *maps[SQ_MINE_MAPS]; /* @device */
    uint32_t sides[SQ_MINE_MAPS], channels[SQ_MINE_MAPS];
    uint32_t shrink;        /* a place is the mean of shrink x shrink of the joined map */
    uint32_t x, y;          /* such a place: the upper left one of the first token's block */
    uint32_t tokens, m;     /* m <= SQ_MINE_BLOCK */
    const sq_rows_in *norm; /* k: channels of all maps */
    uint32_t d;
    const float *queries;       /* @device [tokens * tokens][d] */
    const float *key_offset;    /* @weights [d] */
    const float *weight, *bias; /* @weights [norm->k] */
    float *asked;               /* @device [tokens * tokens][norm->k] in and out */
} sq_mine;

/* ---- The table ---------------------------------------------------------------------------- */

typedef struct sq_device_ops {
    const char *name; /* "cuda" */

    /**
     * @param why  what went wrong, a clause without the device's name: "no GPU was found"
     * @return false: nothing to close
     */
    bool (*open)(sq_device **out, sq_precision precision, char *why, size_t why_size);
    void (*close)(sq_device *d);
    /** Its maker's name for it, "NVIDIA H200"; lives as long as the device. */
    const char *(*label)(const sq_device *d);

    bool (*stream_open)(sq_stream **out, sq_device *d, char *why, size_t why_size);
    void (*stream_close)(sq_stream *s);
    /** Waits. false: the first failure since the last finish(), in words; *no_memory: it was for want of the device's.
     */
    bool (*finish)(sq_stream *s, bool *no_memory, char *why, size_t why_size);

    /** 256-byte aligned, holding anything; NULL when there is no more. */
    void *(*alloc)(sq_device *d, size_t bytes);
    void (*free)(sq_device *d, void *memory); /* NULL is fine; no stream may be using it */
    void (*write)(sq_stream *s, void *to /* @device */, const void *from /* @host */, size_t bytes);
    void (*read)(sq_stream *s, void *to /* @host */, const void *from /* @device */, size_t bytes);
    void (*copy)(sq_stream *s, void *to /* @device */, const void *from /* @device */, size_t bytes);

    /** sq_project(): in->x, in->rows, out->c, out->rows and out->row_weight @device; in->weight, in->bias, out->bias
     * and the matrices @weights. */
    void (*project)(sq_stream *s, const sq_rows_in *in, uint32_t m, const sq_mat *const *w, const sq_gemm_out *out,
                    unsigned n_mats);
    /** out[i] = op(row i), i < m. `out` may be in->x where every row is written to where it was read. */
    void (*rows)(sq_stream *s, const sq_rows_in *in, uint32_t m, float *out, size_t ldo);
    /** sq_attend(): all pointers @device. */
    void (*attend)(sq_stream *s, const sq_heads *heads);
    void (*store_kv)(sq_stream *s, const sq_kv_store *store);
    /**
     * Waits. Rows that the layer runs.
     * @param kept  @host [n] the same rows as r->kept
     * @param nan   @host r->n_targets, or the index of the first target whose score is NaN: then nothing was chosen
     */
    uint32_t (*route)(sq_stream *s, const sq_route *r, uint32_t *kept, uint32_t *nan);
    /** Multiplies the targets from row first_row on by their factors, which become 1; they must be scored again. */
    void (*settle)(sq_stream *s, const sq_route *r, uint32_t first_row);

    void (*patches)(sq_stream *s, const sq_patches *p);
    void (*depthwise)(sq_stream *s, const sq_depthwise_map *d);
    void (*resize)(sq_stream *s, const sq_resize_map *r);
    void (*mine)(sq_stream *s, const sq_mine *m);
    /** out[j] = the mean of x[i][j], i < n, added in this order in binary64; x [n][d] and out [d] @device. */
    void (*means)(sq_stream *s, const float *x, uint32_t n, uint32_t d, float *out);
    void (*relu)(sq_stream *s, float *x, size_t n);
    /** x[i] += scale * y[i]; y @device. */
    void (*add)(sq_stream *s, float *x, const float *y, float scale, size_t n);
    /** x[i] += w[i]; w @weights. */
    void (*add_weights)(sq_stream *s, float *x, const float *w, size_t n);
} sq_device_ops;

extern const sq_device_ops sq_cuda_ops; /* simd/cuda/, in builds that have it */

/** NULL: there is no such device in this build; `known` tells one that has been left out from one that does not exist.
 */
const sq_device_ops *sq_device_named(const char *name, bool *known);

#endif
