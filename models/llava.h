/*
 * LLaVA: a CLIP-like tower, an MLP projector, a LLaMA decoder, whose layers may route (p-MoD).
 * SPDX-License-Identifier: MIT
 *
 * This room's own header: what its files share.
 */
#ifndef SQ_LLAVA_H
#define SQ_LLAVA_H

#include "runtime/engine.h"
#include "runtime/tiles.h"

typedef struct sq_llava_state sq_llava_state;

enum { SQ_MAX_STEM = 4, SQ_MAX_PINPOINTS = 64, SQ_MAX_TILES = 64 };

/* ---- Shapes and weights ------------------------------------------------------------------ */

/* A convolution as a matrix: weight[out][kernel][kernel][in], so that a patch is contiguous channel by channel. */
typedef struct sq_conv {
    sq_mat w;          /* n = out, k = kernel * kernel * in */
    const float *bias; /* [out] or NULL */
    uint32_t in, kernel, stride, pad;
    uint32_t side; /* of the output map */
} sq_conv;

typedef struct sq_affine {
    const float *weight, *bias; /* [d]; weight NULL: absent */
} sq_affine;

typedef struct sq_linear {
    sq_mat w;
    const float *bias; /* [w.n] or NULL */
} sq_linear;

typedef struct sq_vit_layer {
    sq_affine ln1, ln2;
    sq_mat q, k, v, out, fc1, fc2;
    const float *q_b, *k_b, *v_b, *out_b, *fc1_b, *fc2_b;
} sq_vit_layer;

typedef struct sq_vit {
    uint32_t side;                    /* of the square that it sees, pixels */
    uint32_t d, f, n_heads, n_layers; /* n_layers: encoder layers executed */
    uint32_t n_patches, n_positions;  /* n_positions = n_patches + 1 with a class token */
    float eps;
    sq_row_op activation;
    uint32_t n_stem; /* 3x3 convolutions with ReLU before the patches; CLIP has none */
    sq_conv stem[SQ_MAX_STEM], patch;
    const float *class_embd;    /* [d] or NULL */
    const float *position_embd; /* [n_positions][d] */
    sq_affine pre_ln, post_ln;
    sq_vit_layer *layers;
} sq_vit;

typedef struct sq_projector {
    uint32_t hidden; /* rows of the first linear */
    sq_mat w0, w2;
    const float *b0, *b2;
} sq_projector;

/* ConvNeXt: see models/convnext.c. */
enum { SQ_SLOW_STAGES = 4, SQ_SLOW_STEM = 4, SQ_SLOW_STRIDE = 32 };

typedef struct sq_convnext_block {
    sq_affine dw, norm; /* dw.weight [49][channels] */
    sq_linear pw1, pw2;
} sq_convnext_block;

typedef struct sq_convnext_stage {
    uint32_t side, channels, depth;
    sq_conv conv;              /* from the map before, or from the picture */
    sq_affine norm;            /* of the map before; of the first stage, after the convolution */
    sq_convnext_block *blocks; /* [depth] */
} sq_convnext_stage;

typedef struct sq_convnext {
    uint32_t side;        /* of the picture, pixels */
    uint32_t band_places; /* of a map that a block's hidden map exists for at a time, at most */
    uint32_t band_floats; /* that this then has, at most */
    float eps;
    sq_convnext_stage stages[SQ_SLOW_STAGES];
} sq_convnext;

/* LLaVA-HR: see models/hr.c. */
enum { SQ_HR_GROUPS = 4 };

typedef struct sq_hr_adapter {
    sq_linear slow_conv, slow_proj, fast_proj, gate0, gate2; /* gates are floats */
    sq_affine fast_conv;                                     /* weight [49][d] */
} sq_hr_adapter;

typedef struct sq_hr {
    uint32_t ends[SQ_HR_GROUPS]; /* CLIP's blocks of each group: one past its last */
    bool has_adapters;
    sq_hr_adapter adapters[SQ_HR_GROUPS - 1]; /* after each group but the last */
    sq_linear out_fast, out_slow;
} sq_hr;

/* Mini-Gemini: see models/mgm.c. d_aux: channels of all stages. */
typedef struct sq_mgm {
    uint32_t grid, n_images; /* CLIP sees grid x grid parts of the picture, and maybe the whole */
    bool global;             /* it does */
    uint32_t m;              /* a token looks at m x m places of the map */
    sq_affine q_norm, v_norm;
    sq_affine plain; /* [d_aux] ones and zeros */
    sq_linear q, v;
    sq_mat keys;             /* [d_aux][d]: W_k transposed, times the norm's weights */
    const float *key_offset; /* [d] W_k times the norm's biases, and the layer's */
} sq_mgm;

/* ---- How routed layers run ---------------------------------------------------------------- */

/* What the router of a layer reads. */
typedef enum sq_score {
    SQ_SCORE_NONE,      /* all layers are dense */
    SQ_SCORE_HIDDEN,    /* vision tokens as they enter the layer; a pass without any is dense */
    SQ_SCORE_ATTN_NORM, /* every token, normed for attention; two outputs, of which the difference counts */
} sq_score;

/* Who may be skipped. */
typedef enum sq_target {
    SQ_TARGET_VISION,
    SQ_TARGET_VISION_HR, /* vision tokens past the first s->n_vision_base: those of tiles */
    SQ_TARGET_ALL
} sq_target;

/* Who stays in a pass of several tokens. */
typedef enum sq_select {
    SQ_SELECT_TOP_K,     /* the layer's ratio of the targets */
    SQ_SELECT_THRESHOLD, /* those above a probability */
    SQ_SELECT_CAPACITY,  /* all but a share of the vision tokens, or of the first `region` tokens of the sequence */
} sq_select;

/* What a token's weight multiplies. */
typedef enum sq_weight { SQ_WEIGHT_MLP_SKIP, SQ_WEIGHT_MLP, SQ_WEIGHT_ATTN_MLP } sq_weight;

/* RoPE positions of the tokens that a layer runs: those of the sequence, or on from the length of its cache. */
typedef enum sq_position { SQ_POSITION_ORIGINAL, SQ_POSITION_COMPRESSED } sq_position;
typedef enum sq_decode_position { SQ_DECODE_GLOBAL, SQ_DECODE_LOCAL } sq_decode_position;

/* A pass of one token of text: as any pass; runs from a probability on, else it leaves nothing in the cache; runs. */
typedef enum sq_decode { SQ_DECODE_DENSE, SQ_DECODE_THRESHOLD, SQ_DECODE_ALWAYS } sq_decode;

typedef struct sq_mode {
    const char *name;
    sq_score score;
    sq_target target;
    sq_select select;
    bool at_threshold; /* in a pass of several tokens the threshold itself passes */
    sq_weight weight;
    bool any_skip_weight; /* a file may leave skipped tokens unweighted */
    bool any_vision;      /* a file may spare the tokens that show the whole picture */
    sq_position position;
    sq_decode decode;
    sq_decode_position decode_position;
    bool any_decode_position; /* a file may choose */
    float prefill_threshold, decode_threshold;
    float skip_ratio; /* SQ_SELECT_CAPACITY: of the competing tokens */
    uint32_t region;  /* SQ_SELECT_CAPACITY of SQ_TARGET_ALL */
} sq_mode;

typedef struct sq_decoder_layer {
    const float *attn_norm, *ffn_norm; /* [d] */
    sq_mat q, k, v, o, gate, up, down;
    bool is_mod;           /* a ratio of 1 does not make a layer dense: kept tokens are weighted */
    float ratio;           /* SQ_SELECT_TOP_K: of the vision tokens that the layer runs */
    const float *router_w; /* [d], is_mod only; SQ_SCORE_ATTN_NORM: for rows divided by their rms */
    float router_b;
} sq_decoder_layer;

typedef struct sq_decoder {
    uint32_t n_layers, d, f, n_heads, n_kv_heads, head_dim, n_vocab;
    float eps, rope_base;
    bool rope_half; /* pairs (i, i + head_dim/2); else (2i, 2i + 1), as llama.cpp's files have them */
    sq_mode mode;
    sq_norm_type norm;
    float norm_scale, norm_bias;
    sq_mat token_embd, output;
    const float *output_norm;
    sq_decoder_layer *layers;
} sq_decoder;

/* What stands between a picture and the decoder: squint.vision.type. */
typedef enum sq_vision_kind {
    SQ_VISION_NONE,
    SQ_VISION_CLIP,   /* one square of the picture, as m->image_rule has it: clip_pad, clip_crop, clip_stretch */
    SQ_VISION_ANYRES, /* the whole picture, then tiles of it: clip_anyres */
    SQ_VISION_HR,     /* llava_hr */
    SQ_VISION_MGM,    /* mgm */
} sq_vision_kind;

typedef struct sq_anyres {
    uint32_t n_pinpoints;
    sq_size pinpoints[SQ_MAX_PINPOINTS]; /* canvases of tiles, pixels */
    uint32_t max_num_patches; /* tiles' worth of tokens that the high-resolution map is shrunk to; 0: it is not */
    const float *newline;     /* [d] */
} sq_anyres;

typedef struct sq_llava {
    sq_decoder decoder;
    sq_vision_kind vision_kind;
    sq_vit vit;
    sq_convnext slow; /* llava_hr and mgm */
    sq_hr hr;
    sq_mgm mgm;
    sq_projector projector;
    sq_anyres anyres;
} sq_llava;

/* What the products of a session can need at most. */
typedef struct sq_needs {
    uint32_t max_m, max_k, min_group;
    bool any_f32; /* of rows that must be made first */
} sq_needs;

/* What a kind does; models/vision.c has one of each. */
typedef struct sq_front {
    /** Reads what is its own, the tower being loaded. NULL: nothing is. */
    squint_err (*load)(squint_model *m, sq_llava *net, squint_msg *msg);
    /** Fills in m->n_vision, n_vision_base and pixel_floats. */
    void (*describe)(squint_model *m);
    /** sq_family.picture. */
    squint_err (*picture)(squint_session *s, const uint8_t *rgb, uint32_t w, uint32_t h, size_t stride,
                          squint_msg *msg);
    /** What the products that are its own need. NULL: nothing. */
    void (*needs)(const sq_llava *net, sq_needs *needs);
    /** Buffers, sq_vit_plan()'s included, which the decoder's lie over. */
    void (*plan)(squint_session *s, const sq_llava *net, sq_llava_state *state, sq_memory *memory);
    /** Runs of the towers' steps, for progress. */
    uint32_t (*steps)(const squint_session *s);
    /** s->pixels to s->n_vision rows of s->vision. */
    squint_err (*encode)(squint_session *s, squint_msg *msg);
    /** Multiply-adds of its towers and projector, for the picture at hand. */
    double (*macs)(const squint_session *s);
} sq_front;

/* ---- What a session keeps ----------------------------------------------------------------- */

/* Keys and values of one layer: [n_kv_heads][capacity][head_dim] of the session's kv type, and as much again. */
typedef struct sq_kv_layer {
    uint8_t *k, *v;
    uint32_t *at;         /* [capacity] the entries' places in the sequence, rising */
    uint32_t n, capacity; /* entries, of this layer alone */
} sq_kv_layer;

typedef struct sq_convnext_state {
    float *picture; /* @device, as all of these; [3][side][side], NULL on the CPU */
    float *rows;    /* a band of a map, convolved */
    float *hidden;  /* the same four times as wide, or inputs of a convolution */
    float *saved;   /* 3 rows as they were before a block changed them, row y at y % 3 */
} sq_convnext_state;

typedef struct sq_hr_state {
    float *map;          /* @device of all the slow tower's stages, one after another */
    float *small;        /* [3][vit.side][vit.side] */
    float *inner;        /* @device [places][slow channels] */
    float *tokens;       /* @device [places][vit.d] */
    float *matched;      /* @device [n_patches][vit.d]: the same, where they are more or fewer */
    float *means;        /* [2 vit.d] */
    float *device_means; /* @device the same */
    float *gate;         /* [2][width of the widest gate] */
} sq_hr_state;

typedef struct sq_mgm_state {
    float *tokens;               /* @device [n_images][n_patches][vit.d] */
    float *large;                /* [3][grid * vit.side][grid * vit.side] */
    float *image;                /* [3][vit.side][vit.side] */
    float *maps[SQ_SLOW_STAGES]; /* @device of the slow tower's stages */
    float *queries;              /* @device [n_patches][vit.d] */
    float *asked;                /* @device [n_patches][d_aux] what a token looks for, then what it found */
    float *scratch;              /* a part for each worker: sq_mine_scratch() */
} sq_mgm_state;

struct sq_llava_state {
    /* decoder */
    float *x;            /* @device [max_rows][d], the residual stream; so are the next four */
    float *qkv;          /* [block][(n_heads + 2 n_kv_heads) * head_dim] of a block of rows, see decoder.c */
    float *attn;         /* [block][n_heads * head_dim] */
    float *mlp;          /* [block][2 f]: gate, then up; shares memory with qkv and attn */
    float *rope;         /* [max_tokens][head_dim]: cosines, then sines */
    sq_kv_layer *kv;     /* [n_layers] */
    uint32_t pooled_end; /* place after the last token on which the choice of others depended: no rewinding before it */
    /* routing, of one pass; [max] is sq_max_targets() */
    uint32_t *targets;       /* [max] rows of tokens with a score, rising */
    uint8_t *competes;       /* [max] may this token be skipped, where others are protected? */
    float *scores, *weights; /* [max] of a layer */
    sq_lag *lag;             /* [max] */
    sq_route_host host;
    sq_route route; /* the same arrays @device, and those of the rows that a layer runs */
    /* tower */
    float *image;    /* @device, as all of these; [3][vit.side][vit.side], NULL on the CPU */
    float *map[2];   /* feature maps of the stem, height x width x channels */
    float *patches;  /* rows of a convolution's input */
    float *vit_x;    /* [n_positions][vit.d] */
    float *vit_qkv;  /* [n_positions][3 vit.d and some]: queries, keys, values */
    float *vit_attn; /* [n_positions][vit.d] */
    float *vit_mlp;  /* [n_positions][vit.f] or [n_patches][projector.hidden] */
    sq_convnext_state slow;
    sq_hr_state hr;
    sq_mgm_state mgm;
    uint32_t step; /* of n_steps: blocks done, of all images */
    uint32_t n_steps;
    /* anyres */
    sq_tiles tiles;                    /* of the picture at hand; rows 0: it has none */
    sq_kept_map kept_map;              /* of their feature map */
    sq_size tile_tokens;               /* that this becomes: columns without the newline's, and rows */
    uint32_t *from, *to;               /* [vit.n_patches] patches of a tile and the rows that they become */
    uint32_t *device_from, *device_to; /* @device the same */
    float *tile_map;                   /* @device [kept_map][d], where it is to be shrunk */
};

/* ---- Parts ---------------------------------------------------------------------------------- */

/* A pass over the decoder. */
typedef struct sq_pass {
    squint_session *s;
    const sq_decoder *net;
    sq_llava_state *state;
    const uint32_t *ids; /* [n] */
    uint32_t n;          /* rows of x */
    uint32_t n_vision;
    uint32_t n_targets; /* rows with a score; 0 makes every layer dense */
} sq_pass;

/* The rows that a layer runs. */
typedef struct sq_run {
    uint32_t m;
    uint32_t first;            /* of m rows in a row, when they are not listed */
    const uint32_t *rows;      /* @device [m] rising, or NULL */
    const uint32_t *host_rows; /* [m] the same */
    const float *mlp_weight;   /* @device [m] or NULL for 1 */
    const float *attn_weight;
    bool compressed; /* positions go on from the length of the layer's cache, not of the sequence */
} sq_run;

/* models/decoder.c */
/** Tables that last as long as the session; then caches, and what one pass needs. */
void sq_decoder_plan_lasting(squint_session *s, const sq_decoder *net, sq_llava_state *state, sq_memory *memory);
void sq_decoder_plan(squint_session *s, const sq_decoder *net, sq_llava_state *state, sq_memory *memory);
/** Fills in the lasting tables. */
squint_err sq_decoder_prepare(squint_session *s, squint_msg *msg);
squint_err sq_decoder_forward(squint_session *s, const uint32_t *ids, uint32_t n, uint32_t n_logits, squint_msg *msg);
/** Multiply-adds of a layer over m rows with n_past entries in its cache, attention counted causally. */
double sq_decoder_layer_macs(const sq_decoder *net, double m, double n_past);
/** A dense layer over some rows: attention among them and what the layer's cache holds, then the MLP. */
void sq_decoder_layer_run(const sq_pass *p, uint32_t layer, const sq_run *run);
/** Rows that one of its matrix products has at most. */
uint32_t sq_decoder_block_rows(uint32_t max_rows);
/** In how many blocks it runs m rows, about: each reads all of its weights. */
uint32_t sq_decoder_blocks(uint32_t m);
/** Its attention: m queries of a block, in state->qkv, over as many keys and the kv->n before them. */
void sq_decoder_attend(const sq_pass *p, const sq_kv_layer *kv, uint32_t m);
/** Of the pass's last n_logits rows. */
void sq_decoder_logits(const sq_pass *p, uint32_t n_logits);

/* models/modes.c */
/** NULL when there is none of this name. */
const sq_mode *sq_mode_named(sq_str name);
/** Reads mod.* and the routers, for m->asked_mode or the file's; attn_norm of the layers is loaded. Without mod.type
 *  there must be no routers. */
squint_err sq_modes_load(squint_model *m, sq_decoder *net, squint_msg *msg);

/* models/keep.c */
/** squint_session_options.keep and .schedule: ratios of the vision tokens that SQ_SELECT_TOP_K keeps, or of those that
 *  SQ_SELECT_CAPACITY skips. */
squint_err sq_keep_schedule(squint_session *s, squint_msg *msg);
/** Fails, naming the option, in modes that have no ratios. */
squint_err sq_keep_check(const squint_model *m, const char *option, squint_msg *msg);
/** s->ratio[layer], what it keeps multiplied by `keep`. */
float sq_keep_ratio(const squint_session *s, uint32_t layer, float keep);

/* models/cost.c */
/** Fills in s->cost. The caches must be empty; the session is to be reset. */
squint_err sq_cost_measure(squint_session *s, squint_msg *msg);
double sq_cost_predict_ms(const squint_session *s, uint32_t n, uint32_t n_vision, float keep);

/* models/mod_layer.c */
/** Tokens of a pass that can have a score. */
uint32_t sq_max_targets(const sq_limits *limits, const sq_decoder *net);
/** Buffers of a pass. */
void sq_mod_plan(squint_session *s, const sq_decoder *net, sq_llava_state *state, sq_memory *memory);
/** Entries that a layer's cache can come to hold. */
uint32_t sq_mod_capacity(const squint_session *s, const sq_decoder *net, uint32_t layer);
/** Rows that a layer runs in the first pass of a sequence, in modes that have ratios. */
uint32_t sq_mod_rows(const squint_session *s, uint32_t layer, uint32_t n, uint32_t n_vision, float keep);
/** Lists the rows that have a score in this pass, and notes how far they are chosen together. */
void sq_mod_begin(sq_pass *p);
squint_err sq_mod_layer_run(const sq_pass *p, uint32_t layer, squint_msg *msg);
/** Multiplies the rows from first_row on by the factors they lag behind: before anything but sq_mod_layer_run() reads
 * them. */
void sq_mod_settle(const sq_pass *p, uint32_t first_row);

/* models/parts.c */
/** Fails: a key of tower or projector is not `need`, "from 1 to 4". */
squint_err sq_vision_bad_key(const squint_model *m, const char *key, uint32_t value, const char *need, squint_msg *msg);
/** NAME.weight and NAME.bias. */
squint_err sq_load_affine(squint_model *m, const char *name, uint32_t d, bool required, sq_affine *out,
                          squint_msg *msg);
squint_err sq_load_linear(squint_model *m, const char *name, uint32_t n, uint32_t k, sq_linear *out, squint_msg *msg);
/** conv->in and kernel are known; a bias need not be there. */
squint_err sq_load_conv(squint_model *m, const char *name, uint32_t out, sq_conv *conv, squint_msg *msg);
/** 7x7 taps a channel, as sq_depthwise wants them. */
squint_err sq_load_depthwise(squint_model *m, const char *name, uint32_t channels, sq_affine *out, squint_msg *msg);
/** Rows of d floats at x through a layer norm. */
sq_rows_in sq_norm_rows(const sq_affine *norm, const float *x, uint32_t d, float eps);
/** out[m][l->w.n] = the layer of m rows, or += */
void sq_run_linear(squint_session *s, const sq_linear *l, const sq_rows_in *in, uint32_t m, float *out, bool add);
double sq_linear_macs(const sq_linear *l, double rows);
/** Products of `rows` rows with w; not for floats that are read as they lie. */
void sq_need(sq_needs *needs, const sq_mat *w, uint32_t rows);

/* models/convnext.c */
/** For pictures of side x side pixels, a key's value: a multiple of SQ_SLOW_STRIDE. */
squint_err sq_convnext_load(squint_model *m, uint32_t side, sq_convnext *net, squint_msg *msg);
void sq_convnext_needs(const sq_convnext *net, sq_needs *needs);
size_t sq_convnext_map_floats(const sq_convnext *net, uint32_t stage);
/** Buffers of a run, the maps excepted. */
void sq_convnext_plan(const sq_convnext *net, sq_convnext_state *state, sq_memory *memory);
/**
 * A picture to the maps after each stage, [side][side][channels]. All maps may be one, which then has room for the
 * largest and ends as the last.
 * @param pixels  [3][net->side][net->side]
 */
squint_err sq_convnext_forward(squint_session *s, const sq_convnext *net, const sq_convnext_state *state,
                               const float *pixels, float *const maps[SQ_SLOW_STAGES], squint_msg *msg);
uint32_t sq_convnext_steps(const sq_convnext *net);
double sq_convnext_macs(const sq_convnext *net);

/* models/hr.c */
extern const sq_front sq_front_hr;
/** Adapter i over CLIP's tokens, state->vit_x, and the slow map, state->hr.map. */
void sq_hr_adapt(squint_session *s, uint32_t i);
/** Both of them as the projector's input, [n_patches][vit.d]. */
const float *sq_hr_align(squint_session *s);

/* models/mgm.c */
extern const sq_front sq_front_mgm;

/* models/vit.c */
squint_err sq_vit_load(squint_model *m, sq_vit *vit, squint_msg *msg);
/** How many blocks of the tower in this file run, which says that it has so many. */
squint_err sq_vit_layers_run(const sq_gguf *g, uint32_t counted, uint32_t *out, squint_msg *msg);
void sq_vit_plan(squint_session *s, const sq_llava *net, sq_llava_state *state, sq_memory *memory);
/** One image, [3][side][side], through the tower: the next three, one after another. */
squint_err sq_vit_forward(squint_session *s, const float *pixels, squint_msg *msg);
/** An image to the sequence before block 0, state->vit_x. */
void sq_vit_embed(squint_session *s, const float *pixels);
/** Blocks [first, end), in place. */
squint_err sq_vit_blocks(squint_session *s, uint32_t first, uint32_t end, squint_msg *msg);
/** What follows the last block. */
void sq_vit_finish(squint_session *s);
/** The patches' rows, [n_patches][d], in state->vit_x: class token left out. */
float *sq_vit_patches(const squint_session *s);
/** Multiply-adds of an image. */
double sq_vit_macs(const sq_vit *vit);

/* models/vision.c */
/** Tower, projector and what else squint.vision.type asks for, if the file has a tower. */
squint_err sq_vision_load(squint_model *m, sq_llava *net, squint_msg *msg);
/** Tells the engine of tokens and pixels; net->vision_kind and the tower are known. */
void sq_vision_describe(squint_model *m);
/** What the front end's own products need, CLIP's and the projector's excepted. */
void sq_vision_needs(const sq_llava *net, sq_needs *needs);
void sq_vision_plan(squint_session *s, const sq_llava *net, sq_llava_state *state, sq_memory *memory);
squint_err sq_vision_picture(squint_session *s, const uint8_t *rgb, uint32_t w, uint32_t h, size_t stride,
                             squint_msg *msg);
squint_err sq_vision_encode(squint_session *s, squint_msg *msg);
double sq_vision_macs(const squint_session *s);
/** A step of n_steps is done: SQUINT_ERR_CANCELLED when somebody wants to stop. */
squint_err sq_vision_step(squint_session *s, squint_msg *msg);
/** One grid over what the tower's square shows of a w x h picture, its tokens from `first` on. */
squint_grid sq_vision_square(const squint_model *m, uint32_t w, uint32_t h, uint32_t first);

/* models/anyres.c */
extern const sq_front sq_front_anyres;
#define SQ_PINPOINTS_KEY "clip.vision.image_grid_pinpoints"
/** Fails when a file that llama.cpp's converter made joins its tiles in another way. */
squint_err sq_anyres_check_merge(const squint_model *m, squint_msg *msg);

/* models/projector.c */
/** Multiply-adds over so many rows. */
double sq_projector_macs(const sq_projector *p, double rows);
squint_err sq_projector_load(squint_model *m, uint32_t d_in, uint32_t d_out, sq_projector *p, squint_msg *msg);
/** n rows of the tower's width at x, those listed in `from`, become the rows of `out` listed in `to`; NULL: as they
 * lie. n is at most vit.n_patches. */
void sq_projector_forward(squint_session *s, const float *x, const uint32_t *from, uint32_t n, float *out,
                          const uint32_t *to);

/* models/synthetic.c and models/llava.c */
extern const sq_family sq_family_llava;
/** Fills in what the engine wants to know of a decoder. */
void sq_llava_describe(squint_model *m);
/** A key from lowest to highest. */
squint_err sq_llava_read_u32(const squint_model *m, const char *key, bool required, uint32_t lowest, uint32_t highest,
                             uint32_t *out, squint_msg *msg);

/** For messages: the file that tower and projector are in. */
static inline const char *sq_vision_path(const squint_model *m) { return sq_gguf_path_of(m->file, "clip."); }

static inline const sq_llava *sq_llava_of(const squint_session *s) { return s->model->net; }
static inline sq_llava_state *sq_llava_state_of(const squint_session *s) { return s->state; }
/** Bytes of one head's key, or value, of one token in this session's caches. */
size_t sq_llava_kv_bytes(const squint_session *s);

static inline bool sq_traces(const squint_session *s, sq_trace_what what)
{
    return s->trace && !(s->trace_mute >> what & 1);
}

static inline void sq_trace(const squint_session *s, sq_trace_what what, int layer, const void *data, uint32_t rows,
                            uint32_t cols)
{
    if (sq_traces(s, what)) s->trace(s->trace_user, what, layer, data, rows, cols);
}

/** The same of floats @device. */
void sq_trace_floats(squint_session *s, sq_trace_what what, int layer, const float *data, uint32_t rows, uint32_t cols);

#endif
