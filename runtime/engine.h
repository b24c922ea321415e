/*
 * The engine's inside: models, sessions, the family table, and the verbs that models/ is written with.
 * SPDX-License-Identifier: MIT
 *
 * A family (models/) describes one kind of network: how to load it, what a session of it needs, how to
 * run it. The engine owns files, memory, threads, text and pictures, and knows families by their table.
 */
#ifndef SQ_ENGINE_H
#define SQ_ENGINE_H

#include "runtime/gguf.h"
#include "runtime/image.h"
#include "runtime/route.h"
#include "runtime/sample.h"
#include "runtime/tokenizer.h"
#include "simd/device.h"

/* ---- Weights ----------------------------------------------------------------------------- */

/** Row `row` as floats: out[k]. */
void sq_mat_row(const sq_mat *m, uint32_t row, float *out);
/** Expands panels into floats that the model owns, where the CPU is to multiply in float32: a device does that itself.
 *  false: no memory. */
bool sq_mat_suit(squint_model *m, sq_mat *w);

/* Memory that a model took while loading (repacked or expanded weights, tables), released with it. */
typedef struct sq_owned sq_owned;

/* What a model has only while it loads. */
typedef struct sq_loading sq_loading;

/** Tells squint_model_options.on_note a line, made as by sq_fail(). */
void sq_note(const squint_model *m, const char *format, ...) SQ_PRINTF(2, 3);

/** Zeroed, 64-byte aligned memory that lives as long as the model; NULL when there is none. */
void *sq_model_take(squint_model *m, size_t n, size_t size);

/**
 * Reads tensor `name` as a matrix of n outputs and k inputs: panels and F32 in place; F16 and BF16 expanded; Q8_0, Q4_0
 * and Q5_0 repacked into panels of group 32; other blocks requantised to int8 panels of group 32. More than two
 * dimensions count as [n][everything else].
 */
squint_err sq_load_mat(squint_model *m, const char *name, uint32_t n, uint32_t k, sq_mat *out, squint_msg *msg);
/** Reads a convolution of n outputs, [n][channels][taps] of F32 or F16, for products in one order: of a patch whose
 * inputs are [taps][channels]. */
squint_err sq_load_ordered(squint_model *m, const char *name, uint32_t n, uint32_t channels, uint32_t taps, sq_mat *out,
                           squint_msg *msg);
/** Reads a tensor of exactly n weights, of any type but panels, as floats; a missing one fails when required, else *out
 * is NULL. */
squint_err sq_load_vec(squint_model *m, const char *name, size_t n, bool required, const float **out, squint_msg *msg);
/** Opens what squint_model_options.device asks for, and closes it. */
squint_err sq_device_choose(squint_model *m, const char *asked, squint_msg *msg);
/** Runs a model on another's device, which must be open for as long: weights of both are there once. */
void sq_device_share(squint_model *m, const squint_model *other);
void sq_device_release(squint_model *m);
/** Fails for want of memory, with the file and the tensor. */
squint_err sq_tensor_no_memory(const squint_model *m, const char *name, squint_msg *msg);

enum { SQ_MAX_LAYERS = 512, SQ_MAX_GRIDS = 17 };

/* ---- Models ------------------------------------------------------------------------------ */

typedef struct sq_family sq_family;

struct squint_model {
    squint_allocator alloc;
    const sq_kernels *kernels;
    const sq_device_ops *device_ops; /* NULL: the CPU, with these kernels */
    sq_device *device;
    bool shares_device; /* another model's: it is not closed with this one */
    sq_precision precision;
    char device_name[96]; /* for squint_model_device() */
    const sq_family *family;
    sq_gguf *file;           /* NULL for a synthetic model */
    sq_tokenizer *tokenizer; /* NULL for a synthetic model */
    sq_owned *owned;
    sq_str template_name;
    const char *asked_mode; /* of squint_model_options, while loading; NULL: the file's */
    sq_loading *loading;    /* NULL when it is done */
    /* What every family tells the engine about itself. */
    uint32_t n_layers, n_vocab, n_ctx;
    uint32_t max_expanded;                  /* longest prompt with vision tokens; 0: n_ctx */
    uint32_t d;                             /* length of an embedding */
    uint32_t n_heads, n_kv_heads, head_dim; /* of the decoder's attention */
    uint32_t n_vision;                      /* vision tokens that a picture has at most; 0: no tower */
    uint32_t
        n_vision_base; /* and how many of the first in each show the whole of it, at low resolution where more follow */
    size_t pixel_floats;  /* that a picture's images for the tower are at most */
    const char *mode;     /* how routed layers run, by name */
    const char *own_mode; /* and how the file would have it */
    bool any_panels, any_floats; /* products with matrices of whole numbers, of floats, as they are stored */
    bool float_decoder;   /* decoder weights are F32, or run so: SQUINT_KV_AUTO means F32 */
    sq_image_rule image_rule;
    void *net; /* the family's own: shapes and weights */
};

/* ---- Sessions ----------------------------------------------------------------------------- */

typedef struct sq_limits {
    uint32_t max_rows;   /* tokens of one forward pass, vision tokens included */
    uint32_t max_tokens; /* of a whole sequence */
    uint32_t max_logits; /* rows of logits one forward pass can be asked for */
    uint32_t max_vision; /* vision tokens of a sequence; text may take max_tokens - max_vision */
    sq_kv_type kv;
} sq_limits;

/* What is going on inside, for tests, `squint compare` and `squint eval`. `layer` is -1 where none is meant.
 * data is float [rows][cols] unless the name says otherwise. */
typedef enum sq_trace_what {
    SQ_TRACE_TOWER,     /* tower output */
    SQ_TRACE_PROJECTED, /* vision tokens as the decoder gets them */
    SQ_TRACE_EMBEDDED,  /* the sequence before layer 0 */
    SQ_TRACE_LAYER,     /* the sequence after a layer */
    SQ_TRACE_SCORES,    /* router logits of the tokens that have one, one row: p-MoD's vision tokens, gamma's all */
    SQ_TRACE_KEPT,      /* uint32 positions in this pass that the layer runs, one row */
    SQ_TRACE_WEIGHTS,   /* weights of the same tokens, one row */
    SQ_TRACE_QKV,       /* heads of the rows that a layer runs: queries and keys, rotated, then values; some rows at
                           a time, in their order */
    /* Of a front end with several images each of the first three, and the tower's output, comes once an image. */
    SQ_TRACE_PIXELS,      /* what CLIP sees, one row: [3][side][side] */
    SQ_TRACE_PATCHES,     /* CLIP's sequence before block 0 */
    SQ_TRACE_TOWER_LAYER, /* and after block `layer` */
    SQ_TRACE_SLOW,        /* the convolutional tower's map after stage `layer`, a row a place */
    SQ_TRACE_ADAPTER,     /* the sequence after adapter `layer` */
    SQ_TRACE_MINED,       /* an image's tokens with what they took from the convolutional tower's map */
    SQ_TRACE_LOGITS,      /* those that were asked for */
} sq_trace_what;
typedef void sq_trace_fn(void *user, sq_trace_what what, int layer, const void *data, uint32_t rows, uint32_t cols);

/* What verbs work with: kernels, threads and buffers of matrix products, or a device. */
typedef struct sq_compute {
    const sq_kernels *kernels;
    sq_pool *pool;
    const sq_device_ops *ops; /* NULL: the CPU */
    sq_stream *stream;
    sq_acts acts;    /* big enough for the largest product of the session */
    float *rows_f32; /* [max_m][max_k], only when a weight is F32 */
    float *scratch;  /* [n_threads][scratch_floats] */
    size_t scratch_floats;
    bool no_trace; /* there was no memory to tell a trace what a device has */
} sq_compute;

/* Milliseconds of a pass, of each block of a layer's rows, of its rows, and of their attention's queries times keys:
 * what this machine takes with the session's threads. scale is what came of earlier predictions. */
typedef struct sq_cost {
    double pass_ms, layer_ms, row_ms, pair_ms, scale;
} sq_cost;

struct squint_session {
    const squint_model *model;
    squint_allocator alloc;
    squint_session_options options;
    sq_limits limits;
    sq_memory memory;
    void *block; /* its memory as allocated, but for a device's */
    size_t block_bytes;
    void *device_block;
    sq_pool *pool;
    sq_compute compute;
    void *state;                /* the family's own */
    sq_cost cost;               /* all 0: not measured */
    float keep;                 /* of this sequence, from 0 to 1: multiplies what the ratios keep */
    float ratio[SQ_MAX_LAYERS]; /* [n_layers] by which layers choose, as options.keep and .schedule have it */
    atomic_bool cancel;

    /* The picture at hand; without one yet, as if it had no more tokens than any */
    float *pixels;                   /* [model->pixel_floats] images for the tower, each [3][side][side] */
    uint32_t n_vision;               /* its tokens */
    uint32_t n_vision_base;          /* the first of them, those that are no high-resolution tokens */
    squint_grid grids[SQ_MAX_GRIDS]; /* [n_grids] where they lie, counted from its first token */
    unsigned n_grids;

    float *vision;           /* @device [max_vision][d]: written by encode, read by forward */
    float *logits;           /* [max_logits][n_vocab] */
    float *device_logits;    /* @device their mirror */
    uint32_t n_past;         /* tokens in the caches; the next one's position */
    uint32_t n_routed;       /* vision tokens in the caches */
    bool broken;             /* a pass failed half-way: only a reset helps */
    uint32_t *kept;          /* [n_layers] vision tokens run by each layer in the last routed pass */
    float *scores, *weights; /* [n_layers][max_tokens] what routers said, NaN where nothing; NULL unless asked for */
    double macs, macs_dense; /* of the decoder since sq_session_reset() */

    sq_trace_fn *trace;
    void *trace_user;
    uint32_t trace_mute; /* 1 << sq_trace_what: what the trace is not told */
    bool (*on_progress)(void *user, squint_stage stage, unsigned done, unsigned total);
    void *progress_user;

    /* Captioning (caption.c) */
    uint32_t *ids;    /* [max_rows] the prompt */
    uint32_t n_ids;   /* of the prompt of the caption that the sequence is, else 0 */
    uint32_t *tokens; /* [max_tokens of a caption] */
    char *text;       /* the caption, terminated when it is finished */
    char *piece;      /* of one token */
    size_t piece_bytes;
    void *token_scratch;
    size_t token_scratch_bytes;
    sq_candidate *candidates; /* [n_vocab] */
};

/** A session with limits of one's own; squint_session_open() derives them from the options. */
squint_err sq_session_open_limits(squint_session **out, const squint_model *model,
                                  const squint_session_options *options, const sq_limits *limits, squint_msg *msg);
/** What a session of this model keeps keys and values in when `asked` for. */
sq_kv_type sq_kv_of(const squint_model *m, squint_kv asked);
/** Forgets the sequence. */
void sq_session_reset(squint_session *s);
/** Pixels to s->n_vision vision tokens: s->pixels must be filled. Forgets the sequence: towers work where its caches
 *  are. */
squint_err sq_session_encode(squint_session *s, squint_msg *msg);
/**
 * Appends n tokens to the sequence and runs them: prefill, append and decode are all this. SQ_IMAGE_TOKEN takes
 * the next row of s->vision. A pass with image tokens must be the first to have any: routing may pool all vision
 * tokens. p-MoD runs a pass without them dense; gamma-MoD routes every pass, one of a single text token by the rule of
 * generation.
 *
 * @param n_logits  logits of the last n_logits tokens are left in s->logits, row 0 the earliest
 * @return SQUINT_OK; _LIMIT, _ARGUMENT: nothing was done; _NUMERIC, _CANCELLED: the sequence must be reset
 */
squint_err sq_session_forward(squint_session *s, const uint32_t *ids, uint32_t n, uint32_t n_logits, squint_msg *msg);
/** Takes the last tokens off the sequence, down to n_past. Tokens that were routed together stay: vision tokens. */
squint_err sq_session_rewind(squint_session *s, uint32_t n_past, squint_msg *msg);
/** Bytes of keys and values in use, all layers. */
size_t sq_session_kv_bytes(const squint_session *s);
/** What they would be if no layer had skipped a token. */
size_t sq_session_kv_bytes_dense(const squint_session *s);
/** Fits a picture into s->pixels by the model's rule, and says how many tokens it has and where they lie.
 *  @return _LIMIT when they are more than the session's limits allow */
squint_err sq_session_picture(squint_session *s, const uint8_t *rgb, uint32_t w, uint32_t h, size_t stride,
                              squint_msg *msg);
/** true when a callback or squint_session_cancel() wants to stop. */
bool sq_session_stopped(squint_session *s, squint_stage stage, unsigned done, unsigned total);

/* ---- Verbs --------------------------------------------------------------------------------- */

/*
 * Verbs work on memory marked @device (simd/device.h), which is the program's own where the CPU does them. What a verb
 * of a device did is there for the next verb, and for the program after sq_read() or sq_finish(); so are its failures.
 */
/** The device's stream, where the model is on one. */
squint_err sq_compute_open(sq_compute *c, const squint_model *m, squint_msg *msg);
void sq_compute_close(sq_compute *c);
void sq_write(sq_compute *c, void *to /* @device */, const void *from, size_t bytes);
void sq_read(sq_compute *c, void *to, const void *from /* @device */, size_t bytes);
void sq_copy(sq_compute *c, void *to /* @device */, const void *from /* @device */, size_t bytes);
/** Waits for all verbs. SQUINT_OK, _NOMEM, _DEVICE */
squint_err sq_finish(sq_compute *c, squint_msg *msg);
/** out[i] = op(row i of in), i < m; all @device but in->weight and in->bias, which are the model's. */
void sq_rows(sq_compute *c, const sq_rows_in *in, uint32_t m, float *out, size_t ldo);
void sq_store_kv(sq_compute *c, const sq_kv_store *store);

/* Of the towers; see simd/device.h. */
/** n floats of the program's memory for verbs to read: on the CPU where they lie, else written to `to`. */
const float *sq_upload(sq_compute *c, float *to /* @device */, const float *from, size_t n);
void sq_gather_patches(sq_compute *c, const sq_patches *p);
void sq_convolve_depthwise(sq_compute *c, const sq_depthwise_map *d);
void sq_resize(sq_compute *c, const sq_resize_map *r);
void sq_column_means(sq_compute *c, const float *x, uint32_t n, uint32_t d, float *out);
void sq_relu(sq_compute *c, float *x, size_t n);
/** x[i] += scale * y[i] */
void sq_add_scaled(sq_compute *c, float *x, const float *y, float scale, size_t n);
/** x[i] += w[i], which are the model's. */
void sq_add_weights(sq_compute *c, float *x, const float *w, size_t n);

/** Floats of scratch that a thread needs for blocks of m x m places of d floats. */
size_t sq_mine_scratch(uint32_t m, uint32_t d);
/** @param scratch  of the CPU, [n_threads] such parts in the program's memory */
void sq_mine_tokens(sq_compute *c, const sq_mine *m, float *scratch);
/** One token on the CPU: what it finds in n normed places.
 *  @param query, z, asked  [m->d], [n][m->norm->k], [m->norm->k] */
void sq_mine_look(const sq_mine *m, const sq_kernels *kernels, const float *query, const float *z, uint32_t n,
                  float *asked);

/* What sq_route_layer() needs of the program's memory. */
typedef struct sq_route_host {
    uint32_t *kept;            /* [n] out: sq_route.kept */
    uint32_t *listed, *chosen; /* [n_targets] scratch, of the CPU, as the next two */
    int32_t *keys;
    float *ranks;
} sq_route_host;

/** Routes a layer's targets, and says how many rows it is to run. Waits. Fails on a score that is NaN: then nothing was
 *  chosen. */
squint_err sq_route_layer(sq_compute *c, const sq_route *r, const sq_route_host *host, uint32_t *n_kept,
                          squint_msg *msg);
/** Multiplies the targets from row first_row on by the factors they lag behind: before anything but sq_route_layer()
 *  reads them. Of `r`, what it says of the pass. */
void sq_route_settle(sq_compute *c, const sq_route *r, const sq_route_host *host, uint32_t first_row);

/** Plans the buffers of sq_project() for products of up to max_m rows, max_k inputs, activation groups of min_group
 *  or more. Float products of rows that are read as they lie need no buffer and are not limited. Run twice like
 *  all planning (sq_arena). */
void sq_compute_plan(sq_compute *c, sq_arena *arena, unsigned n_threads, uint32_t max_m, uint32_t max_k,
                     uint32_t min_group, bool any_f32);

/**
 * out[i] = op(rows) W[i]^T for up to 4 matrices that read the same rows: gather, op and quantise once, then one
 * job over the panels of all of them. in->k must be every W[i]'s k. Rows that `in` does not list are never read.
 */
void sq_project(sq_compute *c, const sq_rows_in *in, uint32_t m, const sq_mat *const *w, const sq_gemm_out *out,
                unsigned n_mats);

/** Panels that a thread takes at a time: enough chunks for threads to even out, each long enough to be worth its
 *  counter, and a power of two, for kernels that read several panels at once. */
uint32_t sq_panels_per_chunk(uint32_t panels, unsigned threads);

void sq_attend(sq_compute *c, const sq_heads *heads);

/* ---- Families ------------------------------------------------------------------------------ */

struct sq_family {
    const char *name;
    /** Does this file hold a network of this family? Looks at keys only. */
    bool (*matches)(const sq_gguf *g);
    /** Reads shapes and weights into m->net and fills in what the engine wants to know. */
    squint_err (*load)(squint_model *m, squint_msg *msg);
    /** Fills in s->ratio of s->options: it decides how long a cache can become. */
    squint_err (*schedule)(squint_session *s, squint_msg *msg);
    /** Times a few layers, in up to a quarter of a second, into s->cost; the sequence is lost. Fails where no layer's
     *  work can be chosen. */
    squint_err (*measure)(squint_session *s, squint_msg *msg);
    /** What a first pass of n tokens, n_vision of them vision, will take with this s->keep. Never falls with it. */
    double (*predict_ms)(const squint_session *s, uint32_t n, uint32_t n_vision, float keep);
    /** Plans s->state, s->compute and what else a session of these limits needs. Runs twice (sq_arena). */
    void (*plan)(squint_session *s, sq_memory *memory);
    /** Fills in the tables of s->state that stay as they are. */
    squint_err (*prepare)(squint_session *s, squint_msg *msg);
    void (*reset)(squint_session *s);
    /** Fills in s->pixels and what is said there of the picture. Sides and stride are checked. */
    squint_err (*picture)(squint_session *s, const uint8_t *rgb, uint32_t w, uint32_t h, size_t stride,
                          squint_msg *msg);
    squint_err (*encode)(squint_session *s, squint_msg *msg);
    /** The contract of sq_session_forward(); arguments are checked, n_past is advanced by the engine. */
    squint_err (*forward)(squint_session *s, const uint32_t *ids, uint32_t n, uint32_t n_logits, squint_msg *msg);
    squint_err (*rewind)(squint_session *s, uint32_t n_past, squint_msg *msg);
    /** Does this layer choose tokens, as the model runs? */
    bool (*chooses)(const squint_model *m, uint32_t layer);
    /** Places in the sequence of the entries of a layer's cache, rising. */
    const uint32_t *(*kv_places)(const squint_session *s, uint32_t layer, uint32_t *n);
    size_t (*kv_entry_bytes)(const squint_session *s); /* keys and values of a token in a layer */
    /** Multiply-adds of a decoder layer over so many rows, that many being in its cache before: any way to split them
     *  into passes has the same sum. */
    double (*layer_macs)(const squint_model *m, double rows, double n_past);
    double (*tower_macs)(const squint_session *s); /* of the picture at hand, projector included; 0 without a tower */
};

/** All families, NULL at the end; defined in models/families.c. */
extern const sq_family *const sq_families[];

/* ---- Made models --------------------------------------------------------------------------- */

/* A CLIP tower (class token, quickgelu, norm before layer 0) and a projector of random weights. The floats are the same
 * whether they are kept or quantised to int8 panels of a scale a channel, so that both can be compared. */
typedef struct sq_synthetic_tower {
    uint32_t image, patch; /* sides in pixels; patch divides image */
    uint32_t n_layers, d, f, n_heads;
    bool f32; /* keeps the floats */
} sq_synthetic_tower;

/* A decoder of random weights, for measuring; models/synthetic.c. */
typedef struct sq_synthetic {
    uint32_t n_layers, d, f, n_heads, n_kv_heads, n_vocab, n_ctx;
    sq_panel_type type;
    uint32_t group;
    const bool *layer_is_mod;        /* [n_layers] */
    const float *layer_ratio;        /* [n_layers] */
    const sq_synthetic_tower *tower; /* NULL: none */
} sq_synthetic;
squint_err sq_synthetic_open(squint_model **out, const sq_synthetic *shape, const squint_model_options *options,
                             squint_msg *msg);

/* How a made decoder routes. A made model is "pmod"; gates have no bias, so that those that a threshold decides on keep
 * about a half here because the threshold is taken to be the middle of their scores. */
typedef struct sq_synthetic_mode {
    const char *name;
    float skip_ratio; /* gamma-train and gamma-paper */
    uint32_t region;  /* gamma-train */
} sq_synthetic_mode;

/** A model of the same weights, which must stay open as long, that runs in another mode. */
squint_err sq_synthetic_variant(squint_model **out, const squint_model *made, const sq_synthetic_mode *mode,
                                squint_msg *msg);

#endif
