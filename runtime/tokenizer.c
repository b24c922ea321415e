/*
 * LLaMA's tokenizer: SentencePiece BPE with byte fallback, over pieces that stay in the file.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/tokenizer.h"

#include "runtime/index.h"

#include <math.h>
#include <string.h>

/* tokenizer.ggml.token_type, as llama.cpp numbers it */
enum piece_type { NORMAL = 1, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE };

enum {
    MAX_PIECES = 1 << 24,
    MAX_USER_PIECE = 256, /* bytes; every length up to the longest is tried at every character */
    SPACE_BYTES = 3,
};

static const char space_piece[] = "\xE2\x96\x81"; /* U+2581 */

#define NO_ID     UINT32_MAX
#define NO_SYMBOL UINT32_MAX

struct sq_tokenizer {
    squint_allocator allocator;
    uint32_t n;
    uint32_t bos, eos, unk;
    bool add_bos, space_prefix;
    sq_str *pieces;        /* [n] */
    uint8_t *types;        /* [n] */
    const uint8_t *scores; /* [n] floats in the file, unaligned */
    sq_index index;        /* over pieces */
    uint32_t byte_ids[256];
    size_t max_user_piece; /* bytes; 0 without user-defined pieces */
    size_t max_text;       /* bytes */
};

/* ---- Opening ------------------------------------------------------------------------------ */

static squint_err bad_tokens(const sq_gguf *g, squint_err err, const char *what, squint_msg *msg)
{
    return sq_fail(msg, err, "%s: key \"tokenizer.ggml.tokens\": %s", sq_gguf_path(g), what);
}

/* The array `key` of `type`, as long as there are pieces (n 0: sets the number). */
static squint_err find_array(const sq_gguf *g, const char *key, sq_gguf_type type, const char *wanted, uint32_t n,
                             const sq_gguf_kv **out, squint_msg *msg)
{
    const sq_gguf_kv *kv = *out = sq_gguf_find_key(g, key);
    if (!kv) return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: key \"%s\" is missing", sq_gguf_path(g), key);
    if (kv->type != SQ_GGUF_ARRAY || kv->elem_type != type || !kv->count || kv->count > MAX_PIECES)
        return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: key \"%s\" is not an array of 1 to %d %s", sq_gguf_path(g), key,
                       MAX_PIECES, wanted);
    if (n && kv->count != n)
        return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: key \"%s\" has %lu elements for %lu tokens", sq_gguf_path(g), key,
                       (unsigned long)kv->count, (unsigned long)n);
    return SQUINT_OK;
}

static squint_err read_model(const sq_gguf *g, squint_msg *msg)
{
    sq_str model;
    const squint_err err = sq_gguf_get_str(g, "tokenizer.ggml.model", true, &model, msg);
    if (err || sq_str_eq(model, "llama")) return err;
    return sq_fail(
        msg, SQUINT_ERR_UNSUPPORTED,
        "%s: key \"tokenizer.ggml.model\": \"%.*s\" is not \"llama\" (SentencePiece BPE), the only one known",
        sq_gguf_path(g), model.len < 64 ? (int)model.len : 64, model.s);
}

static squint_err read_id(const sq_tokenizer *t, const sq_gguf *g, const char *key, uint32_t *id, squint_msg *msg)
{
    const squint_err err = sq_gguf_get_u32(g, key, false, id, msg);
    if (err || *id < t->n) return err;
    return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: key \"%s\": %lu is not one of %lu tokens", sq_gguf_path(g), key,
                   (unsigned long)*id, (unsigned long)t->n);
}

static squint_err read_settings(sq_tokenizer *t, const sq_gguf *g, squint_msg *msg)
{
    t->unk = 0;
    t->bos = 1;
    t->eos = 2;
    t->add_bos = t->space_prefix = true;
    squint_err err = read_id(t, g, "tokenizer.ggml.bos_token_id", &t->bos, msg);
    if (!err) err = read_id(t, g, "tokenizer.ggml.eos_token_id", &t->eos, msg);
    if (!err) err = read_id(t, g, "tokenizer.ggml.unknown_token_id", &t->unk, msg);
    if (!err) err = sq_gguf_get_bool(g, "tokenizer.ggml.add_bos_token", false, &t->add_bos, msg);
    if (!err) err = sq_gguf_get_bool(g, "tokenizer.ggml.add_space_prefix", false, &t->space_prefix, msg);
    return err;
}

static float score_of(const sq_tokenizer *t, uint32_t id)
{
    float score;
    memcpy(&score, t->scores + id * sizeof score, sizeof score);
    return score;
}

static squint_err read_types(sq_tokenizer *t, const sq_gguf *g, const sq_gguf_kv *types, squint_msg *msg)
{
    for (uint32_t id = 0; id < t->n; id++) {
        int32_t type;
        memcpy(&type, types->data + id * sizeof type, sizeof type);
        if (type < NORMAL || type > BYTE)
            return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: key \"tokenizer.ggml.token_type\": token %lu has type %ld",
                           sq_gguf_path(g), (unsigned long)id, (long)type);
        if (isnan(score_of(t, id)))
            return sq_fail(msg, SQUINT_ERR_FORMAT, "%s: key \"tokenizer.ggml.scores\": token %lu has no number",
                           sq_gguf_path(g), (unsigned long)id);
        t->types[id] = (uint8_t)type;
    }
    return SQUINT_OK;
}

/* "<0x0A>" to 10; -1 for anything else. */
static int byte_of(sq_str piece)
{
    static const char digits[] = "0123456789ABCDEF";
    if (piece.len != 6 || memcmp(piece.s, "<0x", 3) || piece.s[5] != '>') return -1;
    const char *high = memchr(digits, piece.s[3], 16), *low = memchr(digits, piece.s[4], 16);
    return high && low ? (int)((high - digits) * 16 + (low - digits)) : -1;
}

static squint_err read_byte_pieces(sq_tokenizer *t, const sq_gguf *g, squint_msg *msg)
{
    for (unsigned byte = 0; byte < 256; byte++)
        t->byte_ids[byte] = NO_ID;
    for (uint32_t id = 0; id < t->n; id++) {
        if (t->types[id] != BYTE) continue;
        const int byte = byte_of(t->pieces[id]);
        if (byte < 0 || t->byte_ids[byte] != NO_ID)
            return bad_tokens(g, SQUINT_ERR_FORMAT, "a byte token is not of the form <0x0A>, or there twice", msg);
        t->byte_ids[byte] = id;
    }
    for (unsigned byte = 0; byte < 256; byte++)
        if (t->byte_ids[byte] == NO_ID)
            return bad_tokens(g, SQUINT_ERR_UNSUPPORTED, "no byte tokens <0x00> to <0xFF>; they are needed", msg);
    return SQUINT_OK;
}

static squint_err measure_pieces(sq_tokenizer *t, const sq_gguf *g, squint_msg *msg)
{
    t->max_text = 1;
    for (uint32_t id = 0; id < t->n; id++) {
        const size_t length = t->pieces[id].len;
        if (length > t->max_text) t->max_text = length;
        if (t->types[id] == USER_DEFINED && length > t->max_user_piece) t->max_user_piece = length;
    }
    if (t->max_user_piece <= MAX_USER_PIECE) return SQUINT_OK;
    return bad_tokens(g, SQUINT_ERR_UNSUPPORTED, "a user-defined token is longer than 256 bytes", msg);
}

static uint32_t find_piece(const sq_tokenizer *t, const char *text, size_t bytes, enum piece_type type)
{
    const size_t id = sq_index_find(&t->index, (sq_str){text, bytes});
    return id != SIZE_MAX && t->types[id] == type ? (uint32_t)id : NO_ID;
}

static squint_err read_pieces(sq_tokenizer *t, const sq_gguf *g, const sq_gguf_kv *tokens, const sq_gguf_kv *types,
                              squint_msg *msg)
{
    t->pieces = sq_alloc(&t->allocator, t->n * sizeof *t->pieces);
    t->types = sq_alloc(&t->allocator, t->n);
    if (!t->pieces || !t->types) return bad_tokens(g, SQUINT_ERR_NOMEM, "out of memory", msg);
    const uint8_t *at = tokens->data;
    for (uint32_t id = 0; id < t->n; id++)
        t->pieces[id] = sq_gguf_next_str(&at);
    squint_err err = read_types(t, g, types, msg);
    if (!err) err = read_byte_pieces(t, g, msg);
    if (!err) err = measure_pieces(t, g, msg);
    if (err) return err;
    if (!sq_index_build(&t->index, t->pieces, sizeof *t->pieces, t->n, &t->allocator))
        return bad_tokens(g, SQUINT_ERR_NOMEM, "out of memory", msg);
    if (find_piece(t, space_piece, SPACE_BYTES, NORMAL) == NO_ID)
        return bad_tokens(g, SQUINT_ERR_UNSUPPORTED, "no normal token U+2581, the space", msg);
    return SQUINT_OK;
}

static squint_err read_tokenizer(sq_tokenizer *t, const sq_gguf *g, squint_msg *msg)
{
    const sq_gguf_kv *tokens, *scores, *types;
    squint_err err = read_model(g, msg);
    if (!err) err = find_array(g, "tokenizer.ggml.tokens", SQ_GGUF_STRING, "strings", 0, &tokens, msg);
    if (err) return err;
    t->n = (uint32_t)tokens->count;
    err = find_array(g, "tokenizer.ggml.scores", SQ_GGUF_F32, "f32", t->n, &scores, msg);
    if (!err) err = find_array(g, "tokenizer.ggml.token_type", SQ_GGUF_I32, "i32", t->n, &types, msg);
    if (!err) err = read_settings(t, g, msg);
    if (err) return err;
    t->scores = scores->data;
    return read_pieces(t, g, tokens, types, msg);
}

squint_err sq_tokenizer_open(sq_tokenizer **out, const sq_gguf *g, const squint_allocator *a, squint_msg *msg)
{
    *out = NULL;
    const squint_allocator allocator = sq_allocator_or_default(a);
    sq_tokenizer *t = sq_alloc(&allocator, sizeof *t);
    if (!t) return bad_tokens(g, SQUINT_ERR_NOMEM, "out of memory", msg);
    *t = (sq_tokenizer){.allocator = allocator};
    const squint_err err = read_tokenizer(t, g, msg);
    if (err)
        sq_tokenizer_close(&t);
    else
        *out = t;
    return err;
}

void sq_tokenizer_close(sq_tokenizer **pt)
{
    sq_tokenizer *t = *pt;
    if (!t) return;
    const squint_allocator a = t->allocator;
    sq_index_free(&t->index, &a);
    sq_free(&a, t->pieces, t->n * sizeof *t->pieces);
    sq_free(&a, t->types, t->n);
    sq_free(&a, t, sizeof *t);
    *pt = NULL;
}

uint32_t sq_tokenizer_size(const sq_tokenizer *t) { return t->n; }
uint32_t sq_tokenizer_bos(const sq_tokenizer *t) { return t->bos; }
uint32_t sq_tokenizer_eos(const sq_tokenizer *t) { return t->eos; }
uint32_t sq_tokenizer_unk(const sq_tokenizer *t) { return t->unk; }
bool sq_tokenizer_add_bos(const sq_tokenizer *t) { return t->add_bos; }
sq_str sq_tokenizer_piece(const sq_tokenizer *t, uint32_t id) { return t->pieces[id]; }
size_t sq_tokenizer_max_piece(const sq_tokenizer *t) { return t->max_text; }

/* ---- Text to ids -------------------------------------------------------------------------- */

/* A stretch of text that is, so far, one token. Merged ones are taken out of the list and have length 0. */
typedef struct symbol {
    uint32_t pos, len;
    uint32_t prev, next; /* NO_SYMBOL at the ends */
    uint32_t id;         /* NO_ID: becomes bytes */
} symbol;

/* Two neighbours that make a piece. Out of date when one of them has changed since: then len is not theirs. */
typedef struct pair {
    float score;
    uint32_t left, right;
    uint32_t len;
    uint32_t id;
} pair;

typedef struct work {
    const sq_tokenizer *t;
    symbol *symbols;
    pair *heap; /* the best on top; each merge takes one and adds two at most: 2 * n_symbols is room enough */
    char *text;
    uint32_t n_symbols, n_pairs, n_bytes;
} work;

size_t sq_tokenizer_scratch(size_t bytes)
{
    /* Each byte is a symbol at most, and three bytes when it is a space; one more for the space in front. */
    size_t total, count;
    if (sq_add(bytes, 1, &count) && sq_mul(count, sizeof(symbol) + 2 * sizeof(pair) + SPACE_BYTES, &total) &&
        sq_add(total, _Alignof(symbol), &total))
        return total;
    return SIZE_MAX;
}

static work carve(const sq_tokenizer *t, void *scratch, size_t bytes)
{
    uint8_t *at = scratch;
    at += (_Alignof(symbol) - (uintptr_t)at % _Alignof(symbol)) % _Alignof(symbol);
    symbol *symbols = (symbol *)(void *)at;
    pair *heap = (pair *)(void *)(symbols + bytes + 1);
    return (work){.t = t, .symbols = symbols, .heap = heap, .text = (char *)(heap + 2 * (bytes + 1))};
}

static void put_space(work *w)
{
    memcpy(w->text + w->n_bytes, space_piece, SPACE_BYTES);
    w->n_bytes += SPACE_BYTES;
}

static void normalise(work *w, const char *text, size_t bytes, bool space_prefix)
{
    if (bytes && space_prefix && w->t->space_prefix) put_space(w);
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] == ' ')
            put_space(w);
        else
            w->text[w->n_bytes++] = text[i];
    }
}

/* The longest user-defined piece that the text goes on with. */
static uint32_t match_user_piece(const work *w, uint32_t pos, uint32_t *len)
{
    const uint32_t left = w->n_bytes - pos;
    uint32_t try_len = w->t->max_user_piece < left ? (uint32_t)w->t->max_user_piece : left;
    for (; try_len; try_len--) {
        const uint32_t id = find_piece(w->t, w->text + pos, try_len, USER_DEFINED);
        if (id == NO_ID) continue;
        *len = try_len;
        return id;
    }
    return NO_ID;
}

static void split(work *w)
{
    for (uint32_t pos = 0; pos < w->n_bytes;) {
        const uint32_t i = w->n_symbols++;
        uint32_t len = 0;
        uint32_t id = match_user_piece(w, pos, &len);
        if (id == NO_ID) {
            const int character = sq_utf8_next(w->text + pos, w->n_bytes - pos);
            len = character > 0 ? (uint32_t)character : 1; /* what is no UTF-8 goes byte by byte */
            id = find_piece(w->t, w->text + pos, len, NORMAL);
        }
        w->symbols[i] = (symbol){pos, len, i ? i - 1 : NO_SYMBOL, i + 1, id};
        pos += len;
    }
    if (w->n_symbols) w->symbols[w->n_symbols - 1].next = NO_SYMBOL;
}

static bool goes_before(const pair *a, const pair *b)
{
    return a->score > b->score || (a->score == b->score && a->left < b->left);
}

static void push_pair(work *w, pair p)
{
    uint32_t i = w->n_pairs++;
    for (; i && goes_before(&p, &w->heap[(i - 1) / 2]); i = (i - 1) / 2)
        w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = p;
}

static pair pop_pair(work *w)
{
    const pair top = w->heap[0], last = w->heap[--w->n_pairs];
    uint32_t i = 0;
    for (uint32_t child; (child = 2 * i + 1) < w->n_pairs; i = child) {
        if (child + 1 < w->n_pairs && goes_before(&w->heap[child + 1], &w->heap[child])) child++;
        if (!goes_before(&w->heap[child], &last)) break;
        w->heap[i] = w->heap[child];
    }
    w->heap[i] = last;
    return top;
}

static bool is_user_defined(const work *w, const symbol *s)
{
    return s->id != NO_ID && w->t->types[s->id] == USER_DEFINED;
}

static void consider(work *w, uint32_t left, uint32_t right)
{
    if (left == NO_SYMBOL || right == NO_SYMBOL) return;
    const symbol *l = &w->symbols[left], *r = &w->symbols[right];
    if (is_user_defined(w, l) || is_user_defined(w, r)) return;
    const uint32_t len = l->len + r->len;
    const uint32_t id = find_piece(w->t, w->text + l->pos, len, NORMAL);
    if (id != NO_ID) push_pair(w, (pair){score_of(w->t, id), left, right, len, id});
}

static void merge(work *w, const pair *p)
{
    symbol *l = &w->symbols[p->left], *r = &w->symbols[p->right];
    if (!l->len || !r->len || l->len + r->len != p->len) return;
    l->len = p->len;
    l->id = p->id;
    l->next = r->next;
    r->len = 0;
    if (l->next != NO_SYMBOL) w->symbols[l->next].prev = p->left;
    consider(w, l->prev, p->left);
    consider(w, p->left, l->next);
}

static size_t write_ids(const work *w, uint32_t *out, size_t max_out)
{
    size_t n = 0;
    for (uint32_t i = w->n_symbols ? 0 : NO_SYMBOL; i != NO_SYMBOL; i = w->symbols[i].next) {
        const symbol *s = &w->symbols[i];
        const size_t count = s->id == NO_ID ? s->len : 1;
        if (count > max_out - n) return SIZE_MAX;
        for (uint32_t j = 0; j < count; j++)
            out[n++] = s->id == NO_ID ? w->t->byte_ids[(uint8_t)w->text[s->pos + j]] : s->id;
    }
    return n;
}

size_t sq_tokenize(const sq_tokenizer *t, const char *text, size_t bytes, bool space_prefix, void *scratch,
                   uint32_t *out, size_t max_out)
{
    if (bytes >= UINT32_MAX / 4) return SIZE_MAX; /* positions have 32 bits */
    work w = carve(t, scratch, bytes);
    normalise(&w, text, bytes, space_prefix);
    split(&w);
    for (uint32_t i = 1; i < w.n_symbols; i++)
        consider(&w, i - 1, i);
    while (w.n_pairs) {
        const pair best = pop_pair(&w);
        merge(&w, &best);
    }
    return write_ids(&w, out, max_out);
}

/* ---- Ids to text -------------------------------------------------------------------------- */

size_t sq_detokenize(const sq_tokenizer *t, uint32_t id, char *out, size_t max_out)
{
    if (id >= t->n || !max_out) return 0;
    const sq_str piece = t->pieces[id];
    if (t->types[id] == BYTE) {
        *out = (char)byte_of(piece);
        return 1;
    }
    if (t->types[id] != NORMAL && t->types[id] != USER_DEFINED) return 0;
    size_t n = 0;
    for (size_t i = 0; i < piece.len && n < max_out; n++) {
        const bool space = piece.len - i >= SPACE_BYTES && !memcmp(piece.s + i, space_piece, SPACE_BYTES);
        out[n] = space ? ' ' : piece.s[i];
        i += space ? SPACE_BYTES : 1;
    }
    return n;
}
