/*
 * squint: captions images offline with vision-language models whose decoder layers skip the
 * vision tokens they don't need (Mixture of Depths: p-MoD, arXiv 2412.04449).
 * SPDX-License-Identifier: MIT
 *
 * The whole of it:
 *
 *     squint_model *model;
 *     squint_session *session;
 *     squint_result result;
 *     squint_msg msg;
 *
 *     if (squint_model_open(&model, "squint.gguf", NULL, &msg) != SQUINT_OK) { puts(msg.text); return 1; }
 *     if (squint_session_open(&session, model, NULL, &msg) == SQUINT_OK) {
 *         if (squint_caption_file(session, "cat.jpg", NULL, &result, &msg) == SQUINT_OK)
 *             puts(result.text);
 *         squint_session_close(&session);
 *     }
 *     squint_model_close(&model);
 *
 * One model serves any number of sessions on any number of threads; a session belongs to one thread
 * at a time. The library never prints, exits or aborts: every call that can fail returns a
 * squint_err and, where given a squint_msg, one sentence that names the file, key, tensor or option.
 * Structs of options are read as "zero is the default": clear them, then set what you want.
 */
#ifndef SQUINT_H
#define SQUINT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SQUINT_VERSION_MAJOR 0
#define SQUINT_VERSION_MINOR 1
#define SQUINT_VERSION_PATCH 0

#if defined(_WIN32)
#define SQUINT_API
#elif defined(__GNUC__)
#define SQUINT_API __attribute__((visibility("default")))
#else
#define SQUINT_API
#endif

#if defined(__GNUC__)
#define SQUINT_MUST_CHECK __attribute__((warn_unused_result))
#else
#define SQUINT_MUST_CHECK
#endif

/** What came of a call. */
typedef enum squint_err {
    SQUINT_OK = 0,
    SQUINT_ERR_ARGUMENT,    /* an argument or option is out of its range */
    SQUINT_ERR_IO,          /* a file cannot be opened, read or mapped */
    SQUINT_ERR_FORMAT,      /* a model file is damaged or contradicts itself */
    SQUINT_ERR_UNSUPPORTED, /* a model, image or CPU feature that this build does not know */
    SQUINT_ERR_IMAGE,       /* an image file is damaged or too large */
    SQUINT_ERR_NOMEM,       /* the allocator returned NULL */
    SQUINT_ERR_LIMIT,       /* the prompt does not fit the model's context */
    SQUINT_ERR_NUMERIC,     /* NaN or infinity where the model must not have one */
    SQUINT_ERR_CANCELLED,   /* squint_session_cancel() or a callback stopped it */
    SQUINT_ERR_DEVICE,      /* a device other than the CPU is not there, not in this build, or failed */
} squint_err;

/** A failure in words: one line without a newline, valid UTF-8, always terminated. */
typedef struct squint_msg {
    char text[512];
} squint_msg;

/**
 * Where all memory comes from. NULL functions mean malloc. A caption's token loop calls neither.
 * The model file is mapped, not allocated. stb_image takes its memory here too.
 */
typedef struct squint_allocator {
    void *(*alloc)(void *user, size_t size);             /* aligned for any C type, or NULL */
    void (*free)(void *user, void *memory, size_t size); /* size as given to alloc; memory is never NULL */
    void *user;
} squint_allocator;

typedef struct squint_model squint_model;     /* a loaded model: read-only, shared */
typedef struct squint_session squint_session; /* one image and the caption written for it */

typedef struct squint_model_options {
    squint_allocator allocator;
    const char *isa; /* kernels to use: "scalar", "avx2", ...; NULL: SQUINT_ISA, then the best here */
    /* How the layers of a Mixture-of-Depths model choose tokens: "pmod", "gamma-released", "gamma-released-mgm",
     * "gamma-train", "gamma-paper", "threshold", "dense"; its routers must be of that kind, any runs "dense". NULL: as
     * its file says. A model is as good as its training only in the mode that it was trained for. */
    const char *mode;
    /* The vision half of a model that is in two files, as llama.cpp has them: the model is then its language half.
     * NULL: it is one file, or does not see. Pictures are prepared as LLaVA does it, not as llama.cpp. */
    const char *mmproj;
    /* What runs the model: "cpu"; "cuda", a GPU of NVIDIA's, in builds that have it; "cpu:f32", "cuda:f32" and
     * "cuda:f16" with all weights expanded, which takes the memory: as a reference. NULL: "cpu". */
    const char *device;
    /* What is worth knowing of a model that opens, a line a call without a newline, in the calling thread: weights that
     * are requantised, for instance. NULL: not told. */
    void (*on_note)(void *user, const char *text);
    void *note_user;
} squint_model_options;

/** What a session keeps keys and values in. */
typedef enum squint_kv {
    SQUINT_KV_AUTO = 0, /* F16, or F32 when the decoder's weights are F32 */
    SQUINT_KV_F16,
    SQUINT_KV_F32,
    SQUINT_KV_Q8, /* int8 with a binary16 scale for each 32: 17/32 of F16's bytes */
} squint_kv;

typedef struct squint_session_options {
    unsigned threads;    /* 0: one a core that this process may use; at most 256 */
    unsigned max_tokens; /* longest caption a session can write, in tokens; 0: 64 */
    unsigned max_prompt; /* longest prompt text, in bytes; 0: 256 */
    squint_kv kv;
    /* How much the routed layers keep, of the modes that have a say in it: pmod, gamma-train, gamma-paper. Where a
     * threshold decides ("gamma-released", "threshold"), and in a dense model, these two are refused.
     *
     * schedule, read while the session opens; NULL: the model's own. With s of layer l of L, c the model's
     * mod.schedule.factor or 0.5, and ratios from 0 to 1 as decimals:
     *   "cos:MAX:MIN"     s = cos(pi l / (L - 1)) / 2 + c; a layer keeps max(s, MIN) where s is at most MAX, else all
     *   "linear:MAX:MIN"  s = 0.5 - l / (L - 1) + c; the same
     *   "const:R"         each layer keeps R
     *   "list:R,R,..."    one ratio for each of the model's layers
     * Layers without a router keep all (in a list their ratio must be 1); routed ones that keep all still weigh.
     *
     * keep multiplies the ratios of either, none to more than 1; 0: 1, at most 1000.
     * pmod then runs trunc(n * ratio) of n vision tokens, the gammas all but floor(n * (1 - ratio)) of the n tokens
     * that compete. */
    const char *schedule;
    float keep;
    bool routes; /* keep every router's scores and weights for squint_session_route() */
} squint_session_options;

/** The stages of a caption, in their order. */
typedef enum squint_stage {
    SQUINT_STAGE_IMAGE,   /* decode, resize, normalise */
    SQUINT_STAGE_TOWER,   /* vision tower and projector */
    SQUINT_STAGE_PREFILL, /* decoder over image and prompt */
    SQUINT_STAGE_DECODE,  /* one token after another */
    SQUINT_STAGE_COUNT
} squint_stage;

/** What came of a caption's budget. */
typedef enum squint_budget {
    SQUINT_BUDGET_NONE = 0,  /* there was none */
    SQUINT_BUDGET_AMPLE,     /* the session's own schedule fitted in */
    SQUINT_BUDGET_CUT,       /* layers kept less */
    SQUINT_BUDGET_TOO_SMALL, /* too small even for keeping nothing: layers kept none of what they may skip */
} squint_budget;

/** What is foreseen of a caption with a budget, after the tower and before the prefill. */
typedef struct squint_forecast {
    squint_budget outcome;
    float keep;          /* by which the session's ratios are multiplied, from 0 to 1 */
    double spent_ms;     /* on image and tower */
    double predicted_ms; /* for the prefill */
} squint_forecast;

typedef struct squint_caption_options {
    const char *prompt; /* UTF-8; NULL: the model's own. A "plain" model continues it. */
    /* How prompt and image are put together: "vicuna_v1", "llava_v1", "llava_v0", "plain". NULL: as the model was
     * trained. A caption ends where the model's end token comes, or the text that ends an answer in this template
     * ("###" for llava_v0, else "</s>"), which is cut off. */
    const char *chat_template;
    unsigned max_tokens; /* 0: the session's */
    float temperature;   /* 0: greedy */
    unsigned top_k;      /* 0: all tokens */
    float top_p;         /* 0: off, else in (0, 1] */
    float min_p;         /* 0: off, else in (0, 1] */
    uint64_t seed;       /* of the sampler; the same seed gives the same text */
    /* 0: none. From the start of the call to the first token: the layers keep less than the session's ratios have it,
     * all of them multiplied by one factor, so that image, tower and prefill together take that long or a little less.
     * The factor is chosen when the tower is done, from times of the model's own layers (squint_session_measure()). */
    double budget_ms;
    /** With a budget: what is foreseen. */
    void (*on_forecast)(void *user, const squint_forecast *forecast);
    /** A piece of the caption, as soon as it is complete UTF-8. Return false to stop. */
    bool (*on_text)(void *user, const char *text, size_t bytes);
    /** Work done of a stage, in steps (layers or tokens). Return false to stop. */
    bool (*on_progress)(void *user, squint_stage stage, unsigned done, unsigned total);
    void *user; /* for the callbacks, which run in the calling thread */
} squint_caption_options;

typedef enum squint_finish {
    SQUINT_FINISH_STOP,   /* the model ended its caption */
    SQUINT_FINISH_LENGTH, /* max_tokens or the model's context is used up */
} squint_finish;

/** Where vision tokens lie: patches over a rectangle of the picture, row by row from its upper left corner. */
typedef struct squint_grid {
    unsigned first; /* place of the first in the prompt */
    unsigned columns, rows;
    unsigned
        row_tokens; /* from a row's first token to the next row's: columns, and 1 more where a token ends each row */
    unsigned picture_w, picture_h; /* pixels */
    /* The rectangle, in the picture's pixels from its upper left corner. It reaches beyond a picture that is padded for
     * the tower, and leaves out parts of one that is cropped. */
    double x, y, w, h;
} squint_grid;

/** A caption. Pointers belong to the session and hold until its next call. */
typedef struct squint_result {
    const char *text;       /* UTF-8, white space trimmed at both ends */
    const uint32_t *tokens; /* [n_tokens] the ids generated, without the end token */
    unsigned n_tokens;
    unsigned n_prompt_tokens; /* vision tokens included */
    unsigned n_vision_tokens;
    const uint32_t *prompt; /* [n_prompt_tokens] its ids; UINT32_MAX for a vision token */
    squint_grid grid;       /* of the first vision tokens, which show the whole picture: grids[0] */
    /* One after another, all vision tokens. A model that tiles a picture has a second grid, of high-resolution tokens:
     * rows 0 where it has none for a picture of this shape. */
    const squint_grid *grids; /* [n_grids] */
    unsigned n_grids;
    unsigned n_layers;
    const uint32_t *kept; /* [n_layers] vision tokens that each decoder layer ran */
    double kept_share;    /* of n_layers * n_vision_tokens, of which the layers ran these */
    squint_finish finish;
    double stage_ms[SQUINT_STAGE_COUNT];
    squint_forecast forecast;              /* with a budget: to be compared with stage_ms */
    size_t kv_bytes;                       /* of keys and values in use at the end, all layers */
    size_t kv_bytes_dense;                 /* the same with no token skipped */
    double tower_macs;                     /* multiply-adds of tower and projector, which skip nothing */
    double prefill_macs;                   /* multiply-adds of the decoder's layers as run, in the prefill */
    double prefill_macs_dense;             /* the same with no token skipped */
    double decode_macs, decode_macs_dense; /* and of the tokens that were generated and fed back */
} squint_result;

/** What a decoder layer did with the tokens of a caption. Pointers belong to the session and hold until its next call.
 */
typedef struct squint_route {
    bool chooses;           /* by a router; any other layer runs every token */
    unsigned n_tokens;      /* of the sequence: the prompt's, then the generated ones that were fed back, which the last
                             * one of a caption that became too long is not */
    unsigned n_kept;        /* tokens that the layer ran: the entries of its KV cache at the end */
    unsigned n_kept_prompt; /* the first of them, the prompt's: its entries after the prefill */
    const uint32_t *kept;   /* [n_kept] their places in the sequence, rising */
    double prefill_macs, decode_macs; /* the layer's part of squint_result's */
    size_t kv_bytes;                  /* likewise, at the end */
    /* [n_tokens] the router's score and what became of it, the token's weight; NaN for a token without. A gate of two
     * outputs has their difference as its score. NULL for a layer that does not choose, and without
     * squint_session_options.routes. */
    const float *scores, *weights;
} squint_route;

/** The library's version, "major.minor.patch"; static storage. */
SQUINT_API const char *squint_version(void);

/**
 * Maps a GGUF file and checks every key and tensor against the architecture that it names. Weights in
 * squint's own layouts are used where they lie; others are repacked here.
 *
 * @param out      on success a handle for squint_model_close(); on failure NULL, nothing to release
 * @param path     of one file with tower, projector, decoder and tokenizer
 * @param options  NULL for the defaults
 * @param msg      NULL, or where a failure is told in words
 * @return SQUINT_OK, _ARGUMENT, _IO, _FORMAT, _UNSUPPORTED, _NOMEM
 */
SQUINT_API SQUINT_MUST_CHECK squint_err squint_model_open(squint_model **out, const char *path,
                                                          const squint_model_options *options, squint_msg *msg);

/**
 * The same from memory, a flash image say. `data` must stay unchanged until the model is closed and
 * be 64-byte aligned for panels to be used in place.
 */
SQUINT_API SQUINT_MUST_CHECK squint_err squint_model_open_memory(squint_model **out, const void *data, size_t size,
                                                                 const squint_model_options *options, squint_msg *msg);

/** Releases a model and clears the pointer. All its sessions must be closed. NULL is fine. */
SQUINT_API void squint_model_close(squint_model **model);

/** Name of the kernels in use ("avx2"); static storage. */
SQUINT_API const char *squint_model_isa(const squint_model *model);

/** What runs the model: "cpu", "cpu:f32", "cuda (NVIDIA H200)", "cuda:f16 (NVIDIA H200)". Lives as long as the model. */
SQUINT_API const char *squint_model_device(const squint_model *model);

/** The mode that runs, "dense" for a model without routers; and the one that the file names. Static storage. */
SQUINT_API const char *squint_model_mode(const squint_model *model);
SQUINT_API const char *squint_model_own_mode(const squint_model *model);

/** Bytes that a session with these options takes from the allocator, without taking them. 0 when the
 *  options are out of range. */
SQUINT_API size_t squint_session_bytes(const squint_model *model, const squint_session_options *options);

/** And the bytes that it takes of a device's memory; what the device's products need comes on top, and the weights,
 *  once for all sessions of a model. 0 on the CPU, and when the options are not valid. */
SQUINT_API size_t squint_session_device_bytes(const squint_model *model, const squint_session_options *options);

/**
 * @param out  on success a handle for squint_session_close(); on failure NULL
 * @return SQUINT_OK, _ARGUMENT, _NOMEM
 */
SQUINT_API SQUINT_MUST_CHECK squint_err squint_session_open(squint_session **out, const squint_model *model,
                                                            const squint_session_options *options, squint_msg *msg);

/** Ends a session's threads, releases it and clears the pointer. NULL is fine. */
SQUINT_API void squint_session_close(squint_session **session);

/** Threads that a session works with. */
SQUINT_API unsigned squint_session_threads(const squint_session *session);

/**
 * Times the layers of the model with the session's threads and kernels, for budgets. Takes up to some 0.3 s; longer
 * where a layer takes longer than 0.1 s for 24 tokens. The first caption with a budget does it before its clock starts,
 * if nobody has. Done again, it forgets what captions have taught since.
 *
 * @return SQUINT_OK; _ARGUMENT: no layer of the model, or of this mode, can be told to keep less; _NOMEM, _CANCELLED
 */
SQUINT_API SQUINT_MUST_CHECK squint_err squint_session_measure(squint_session *session, squint_msg *msg);

/** Stops the caption in the making with SQUINT_ERR_CANCELLED. From any thread or a signal handler. */
SQUINT_API void squint_session_cancel(squint_session *session);

/**
 * Captions an image file: JPEG, PNG, BMP or PNM, at most 64 megapixels. Converted to RGB, alpha dropped, no
 * EXIF rotation.
 *
 * @param options  NULL: greedy, the model's own prompt
 * @param result   filled on success, and on _CANCELLED with what there is
 * @return SQUINT_OK, _ARGUMENT, _IO, _IMAGE, _UNSUPPORTED, _NOMEM, _LIMIT, _NUMERIC, _CANCELLED
 */
SQUINT_API SQUINT_MUST_CHECK squint_err squint_caption_file(squint_session *session, const char *path,
                                                            const squint_caption_options *options,
                                                            squint_result *result, squint_msg *msg);

/** The same for an encoded image in memory. */
SQUINT_API SQUINT_MUST_CHECK squint_err squint_caption_memory(squint_session *session, const void *data, size_t size,
                                                              const squint_caption_options *options,
                                                              squint_result *result, squint_msg *msg);

/**
 * The same for pixels: rows top to bottom, 3 bytes RGB a pixel.
 * @param stride  bytes from one row to the next, at least 3 * width
 */
SQUINT_API SQUINT_MUST_CHECK squint_err squint_caption_rgb(squint_session *session, const uint8_t *rgb, unsigned width,
                                                           unsigned height, size_t stride,
                                                           const squint_caption_options *options, squint_result *result,
                                                           squint_msg *msg);

/**
 * How a layer, counted from 0, treated the tokens of the session's last caption. Takes no time to speak of: the tokens
 * kept are read off the layer's KV cache.
 * @param out  what squint_route says; empty on failure
 * @return SQUINT_OK; _ARGUMENT: no such layer, or no caption that came through its prefill
 */
SQUINT_API SQUINT_MUST_CHECK squint_err squint_session_route(const squint_session *session, unsigned layer,
                                                             squint_route *out, squint_msg *msg);

/**
 * Text of one token of a prompt or a caption, as much of it as `size` bytes hold, not terminated. It may be part of a
 * UTF-8 character, a space that begins a word, or nothing (control tokens, ids that the model does not have).
 * @return bytes written
 */
SQUINT_API size_t squint_model_token(const squint_model *model, uint32_t id, char *out, size_t size);

#ifdef __cplusplus
}
#endif

#endif
