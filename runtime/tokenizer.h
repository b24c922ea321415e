/*
 * LLaMA's SentencePiece BPE with byte fallback, prompt templates.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQ_TOKENIZER_H
#define SQ_TOKENIZER_H

#include "runtime/gguf.h"

typedef struct sq_tokenizer sq_tokenizer;

/**
 * Reads tokenizer.ggml.*; pieces point into the file, which must stay open. All 256 byte tokens and U+2581 must be
 * there. Of tokens with the same text the first counts.
 */
squint_err sq_tokenizer_open(sq_tokenizer **out, const sq_gguf *g, const squint_allocator *a, squint_msg *msg);
void sq_tokenizer_close(sq_tokenizer **t);

uint32_t sq_tokenizer_size(const sq_tokenizer *t);
uint32_t sq_tokenizer_bos(const sq_tokenizer *t);
uint32_t sq_tokenizer_eos(const sq_tokenizer *t);
uint32_t sq_tokenizer_unk(const sq_tokenizer *t);
bool sq_tokenizer_add_bos(const sq_tokenizer *t);
sq_str sq_tokenizer_piece(const sq_tokenizer *t, uint32_t id); /* raw, with U+2581 */

/** Bytes of scratch that encoding `bytes` of text needs. */
size_t sq_tokenizer_scratch(size_t bytes);

/**
 * Text to ids, as SentencePiece does it: a space is put in front (if the model says so and the text is not
 * empty), spaces become U+2581, the best-scored adjacent pair is merged until none is left (leftmost on ties),
 * what is no piece becomes its bytes. User-defined pieces are matched first, the longest at each place. Control and
 * unused pieces ("</s>") in the text are not recognised. No BOS is added. Text need not be valid UTF-8. O(n log n).
 *
 * @param scratch  sq_tokenizer_scratch(bytes) bytes
 * @param out      room for max_out ids; bytes + 1 is always enough
 * @return ids written, or SIZE_MAX when they do not fit or the text has more than 1 GiB
 */
size_t sq_tokenize(const sq_tokenizer *t, const char *text, size_t bytes, bool space_prefix, void *scratch,
                   uint32_t *out, size_t max_out);

/** Text of one id, appended at out: U+2581 becomes a space, byte pieces their byte, control and unknown pieces
 *  nothing. Returns bytes written, at most max_out. */
size_t sq_detokenize(const sq_tokenizer *t, uint32_t id, char *out, size_t max_out);
/** Longest that sq_detokenize() can write for any id. */
size_t sq_tokenizer_max_piece(const sq_tokenizer *t);

/* ---- Prompts ------------------------------------------------------------------------------- */

/* A place in the expanded prompt that an image fills. */
#define SQ_IMAGE_TOKEN UINT32_MAX

/**
 * Ids of a single-turn prompt with one image, SQ_IMAGE_TOKEN in its place (spec: tokenised in chunks
 * around the image, each with its own space prefix, BOS once in front).
 *
 *   "vicuna_v1", "llava_v1", "llava_v0"  system, roles and separators as LLaVA's conversation.py; the user's
 *                turn is "<image>\n" + prompt
 *   "plain"      BOS, the image, "\n", then the prompt as the beginning of the caption, a chunk of its own
 *
 * "v1" is another name of "vicuna_v1". Special tokens in the prompt are plain text.
 *
 * @param prompt   NULL: "Describe this image in one sentence." for chat templates, nothing for "plain"
 * @param scratch  sq_prompt_scratch(bytes of prompt) bytes or more
 * @param n_out    ids written
 * @return SQUINT_OK; _LIMIT when max_out or scratch_bytes is too small; _UNSUPPORTED for an unknown template;
 *         _ARGUMENT when the prompt itself says "<image>": there is one image, and squint places it
 */
squint_err sq_prompt_ids(const sq_tokenizer *t, sq_str template_name, const char *prompt, void *scratch,
                         size_t scratch_bytes, uint32_t *out, size_t max_out, size_t *n_out, squint_msg *msg);
bool sq_prompt_known(sq_str template_name);
#define SQ_PROMPT_TEMPLATES "vicuna_v1, llava_v1, llava_v0, plain"
/** Text that ends an answer in a known template, where LLaVA's scripts stop and cut: "###" or "</s>". */
const char *sq_prompt_stop(sq_str template_name);
/** Turns the one SQ_IMAGE_TOKEN among n ids into n_vision of them: there is room for n - 1 + n_vision. Returns its
 * place.
 */
size_t sq_prompt_expand(uint32_t *prompt, size_t n, size_t n_vision);
/** Upper bounds for a prompt of this many bytes under any template. */
size_t sq_prompt_max_ids(size_t prompt_bytes);
size_t sq_prompt_scratch(size_t prompt_bytes);

#endif
