/*
 * The families of models that squint knows, as shapes: keys and tensors in the order in which tools/convert has them.
 * SPDX-License-Identifier: MIT
 *
 * Weights are random, and of such size that what flows through them neither dies nor grows without end: a product's
 * gain is what it makes of inputs of deviation 1. Norms come before each branch, so that gains add up, not multiply.
 *
 * gamma-MoD's router sees normed rows and has no bias, yet a threshold far below zero is to part them in halves, as it
 * does a trained model's. So one place of the residual stream is a mark: every token has the same there, no layer
 * writes to it, and the router makes of it what the others' random sum is compared with.
 */
#include "tools/squint/synth.h"

#include "tools/squint/cli.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

const char *const synth_family_words[] = {"llava15",  "llavanext",  "pmod15",    "pmodnext",
                                          "gamma-hr", "llava-hr-x", "gamma-mgm", NULL};
const char *const synth_shape_words[] = {"7b", "13b", "tiny", NULL};

enum { STAGES = 4, ADAPTERS = 3, MAX_LAYERS = 40, PATCH = 14 };

static const float MARK = 1.0f;          /* as large as the rest of a token on its way in */
static const float HALF_LOGIT = 2.6467f; /* half of the way from 0 to the logit of gamma's threshold, 0.005 */

/* ---- Shapes -------------------------------------------------------------------------------- */

typedef struct decoder_shape {
    uint32_t d, f, n_heads, n_layers, n_vocab;
} decoder_shape;

static const decoder_shape decoders[SYNTH_SHAPES] = {
    [SYNTH_7B] = {4096, 11008, 32, 32, 32000},
    [SYNTH_13B] = {5120, 13824, 40, 40, 32000},
    [SYNTH_TINY] = {64, 192, 4, 8, 1024},
};

typedef struct tower_shape {
    uint32_t d, f, n_heads, n_layers, side, projection; /* CLIP at its own size */
    uint32_t hr_side, mgm_side;                         /* of the squares that LLaVA-HR and Mini-Gemini see */
} tower_shape;

static const tower_shape large_tower = {1024, 4096, 16, 24, 336, 768, 1024, 1536};
static const tower_shape tiny_tower = {64, 128, 2, 4, 56, 32, 256, 256};

typedef struct slow_shape {
    uint32_t dims[STAGES], depths[STAGES];
    float eps;
} slow_shape;

static const slow_shape slow_large = {{192, 384, 768, 1536}, {3, 3, 27, 3}, 1e-6f};
static const slow_shape slow_xxl = {{384, 768, 1536, 3072}, {3, 4, 30, 3}, 1e-5f};
static const slow_shape slow_tiny = {{32, 64, 96, 128}, {1, 1, 2, 1}, 1e-6f};

/* What a family and a shape come to. */
typedef struct model {
    synth_family family;
    synth_shape shape;
    decoder_shape dec;
    tower_shape vit;
    slow_shape slow;
    uint32_t vit_run, vit_side; /* layers and pixels as executed */
    uint32_t n_vision;
    bool anyres, hr, mgm, pmod, gamma;
    bool is_mod[MAX_LAYERS];
    float ratio[MAX_LAYERS];
} model;

/* shiftedcos_decay_0.85_0.15 with factor 0.5, over as many layers as there are */
static void choose_pmod(model *m)
{
    const double pi = 3.14159265358979323846;
    for (uint32_t l = 0; l < m->dec.n_layers; l++) {
        const double share = cos(pi * l / (m->dec.n_layers - 1)) / 2 + 0.5;
        m->is_mod[l] = share <= 0.85;
        m->ratio[l] = m->is_mod[l] ? (float)fmax(share, 0.15) : 1.0f;
    }
}

/* arank_mod: all but the first three layers and the last */
static void choose_gamma(model *m)
{
    for (uint32_t l = 0; l < m->dec.n_layers; l++) {
        m->is_mod[l] = l >= 3 && l + 1 < m->dec.n_layers;
        m->ratio[l] = 1.0f;
    }
}

static uint32_t square(uint32_t side) { return side * side; }

/* -2 of CLIP's hidden states, but of LLaVA-HR all layers, at 14/32 of the square's size. */
static void choose_tower(model *m)
{
    const bool tiny = m->shape == SYNTH_TINY;
    m->vit = tiny ? tiny_tower : large_tower;
    m->slow = tiny ? slow_tiny : m->family == SYNTH_LLAVA_HR_X ? slow_xxl : slow_large;
    m->vit_run = m->hr ? m->vit.n_layers : m->vit.n_layers - 1;
    m->vit_side = m->hr ? m->vit.hr_side / 32 * PATCH : m->vit.side;
    m->n_vision = square(m->vit_side / PATCH) * (m->mgm ? 5 : 1);
}

static model model_of(synth_family family, synth_shape shape)
{
    model m = {.family = family, .shape = shape, .dec = decoders[shape]};
    m.anyres = family == SYNTH_LLAVANEXT || family == SYNTH_PMODNEXT;
    m.hr = family == SYNTH_GAMMA_HR || family == SYNTH_LLAVA_HR_X;
    m.mgm = family == SYNTH_GAMMA_MGM;
    m.pmod = family == SYNTH_PMOD15 || family == SYNTH_PMODNEXT;
    m.gamma = family == SYNTH_GAMMA_HR || family == SYNTH_GAMMA_MGM;
    choose_tower(&m);
    if (m.pmod) choose_pmod(&m);
    if (m.gamma) choose_gamma(&m);
    return m;
}

/* ---- Tensors ------------------------------------------------------------------------------- */

typedef struct list {
    synth_tensor *all;
    size_t n, room;
} list;

static synth_tensor *add(list *l, const char *name, const char *part)
{
    if (l->n == l->room) l->all = cli_grow(l->all, l->room = l->room ? 2 * l->room : 256, sizeof *l->all);
    synth_tensor *const t = &l->all[l->n++];
    *t = (synth_tensor){.n_dims = 1, .ne = {1, 1, 1, 1}};
    snprintf(t->name, sizeof t->name, "%s%s", name, part);
    return t;
}

static synth_tensor *vector(list *l, const char *name, const char *part, uint32_t n, float mean, float deviation)
{
    synth_tensor *const t = add(l, name, part);
    t->ne[0] = n;
    t->mean = mean;
    t->deviation = deviation;
    return t;
}

static synth_tensor *matrix(list *l, const char *name, const char *part, uint32_t n, uint32_t k, float gain)
{
    synth_tensor *const t = add(l, name, part);
    t->n_dims = 2;
    t->ne[0] = k;
    t->ne[1] = n;
    t->deviation = gain / sqrtf((float)k);
    return t;
}

static synth_tensor *bias(list *l, const char *name, uint32_t n) { return vector(l, name, ".bias", n, 0, 0.05f); }

static void linear(list *l, const char *name, uint32_t n, uint32_t k, float gain)
{
    matrix(l, name, ".weight", n, k, gain);
    bias(l, name, n);
}

static void norm(list *l, const char *name, uint32_t n)
{
    vector(l, name, ".weight", n, 1, 0.05f);
    bias(l, name, n);
}

/* side x side taps of k channels; 1 of its own in a depthwise one */
static void conv(list *l, const char *name, uint32_t n, uint32_t k, uint32_t side, float gain, bool with_bias)
{
    synth_tensor *const t = add(l, name, ".weight");
    *t = (synth_tensor){.n_dims = 4, .ne = {side, side, k, n}};
    snprintf(t->name, sizeof t->name, "%s.weight", name);
    t->deviation = gain / sqrtf((float)(side * side * k));
    if (with_bias) bias(l, name, n);
}

static const char *named(char out[32], const char *format, ...) CLI_PRINTF(2, 3);
static const char *named(char out[32], const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(out, 32, format, args);
    va_end(args);
    return out;
}

static void clip_layer(list *l, const tower_shape *v, uint32_t layer)
{
    char name[32];
    norm(l, named(name, "v.blk.%u.ln1", layer), v->d);
    linear(l, named(name, "v.blk.%u.attn_q", layer), v->d, v->d, 1.25f);
    linear(l, named(name, "v.blk.%u.attn_k", layer), v->d, v->d, 1.25f);
    linear(l, named(name, "v.blk.%u.attn_v", layer), v->d, v->d, 1.0f);
    linear(l, named(name, "v.blk.%u.attn_out", layer), v->d, v->d, 0.5f);
    norm(l, named(name, "v.blk.%u.ln2", layer), v->d);
    /* llama.cpp's names: what widens is called down */
    linear(l, named(name, "v.blk.%u.ffn_down", layer), v->f, v->d, 1.0f);
    linear(l, named(name, "v.blk.%u.ffn_up", layer), v->d, v->f, 0.3f);
}

static void clip(list *l, const model *m)
{
    const tower_shape *const v = &m->vit;
    const uint32_t patches = square(m->vit_side / PATCH);
    if (!m->hr) vector(l, "v.class_embd", "", v->d, 0, 0.5f);
    synth_tensor *const positions = matrix(l, "v.position_embd.weight", "", m->hr ? patches : patches + 1, v->d, 1);
    positions->deviation = 2.0f; /* what tells one token from another must not drown in what all see */
    conv(l, "v.patch_embd", v->d, 3, PATCH, 1.0f, false);
    norm(l, "v.pre_ln", v->d);
    for (uint32_t i = 0; i < m->vit_run; i++)
        clip_layer(l, v, i);
}

static void slow_block(list *l, uint32_t stage, uint32_t block, uint32_t c)
{
    char base[32], name[32];
    named(base, "v.slow.stg.%u.blk.%u", stage, block);
    conv(l, named(name, "%s.dw", base), c, 1, 7, 1.0f, true);
    norm(l, named(name, "%s.norm", base), c);
    linear(l, named(name, "%s.pw1", base), 4 * c, c, 1.0f);
    linear(l, named(name, "%s.pw2", base), c, 4 * c, 0.4f); /* with the layer's scale */
}

static void slow(list *l, const slow_shape *s)
{
    char name[32];
    conv(l, "v.slow.stem.conv", s->dims[0], 3, 4, 1.0f, true);
    norm(l, "v.slow.stem.norm", s->dims[0]);
    for (uint32_t i = 0; i < STAGES; i++) {
        if (i) {
            norm(l, named(name, "v.slow.stg.%u.down.norm", i), s->dims[i - 1]);
            conv(l, named(name, "v.slow.stg.%u.down.conv", i), s->dims[i], s->dims[i - 1], 2, 1.0f, true);
        }
        for (uint32_t j = 0; j < s->depths[i]; j++)
            slow_block(l, i, j, s->dims[i]);
    }
}

static void adapter(list *l, uint32_t k, uint32_t d, uint32_t c)
{
    char name[32];
    linear(l, named(name, "v.hr.%u.slow_conv", k), c, c, 0.5f);
    linear(l, named(name, "v.hr.%u.slow_proj", k), d, c, 0.5f);
    conv(l, named(name, "v.hr.%u.fast_conv", k), d, 1, 7, 1.0f, true);
    linear(l, named(name, "v.hr.%u.fast_proj", k), d, d, 0.5f);
    linear(l, named(name, "v.hr.%u.gate.0", k), d / 2, 2 * d, 1.0f);
    linear(l, named(name, "v.hr.%u.gate.2", k), 1, d / 2, 1.0f);
}

static void mining(list *l, const char *part, uint32_t d, uint32_t k, float gain)
{
    char name[32];
    norm(l, named(name, "mm.uni.%s.norm", part), k);
    linear(l, named(name, "mm.uni.%s.proj", part), d, k, gain);
}

static void front_end(list *l, const model *m)
{
    const uint32_t *const dims = m->slow.dims, d = m->vit.d;
    clip(l, m);
    if (m->hr || m->mgm) slow(l, &m->slow);
    for (uint32_t k = 0; m->hr && k < ADAPTERS; k++)
        adapter(l, k, d, dims[STAGES - 1]);
    if (m->hr) {
        linear(l, "v.hr.out.fast", d, d, 0.5f);
        linear(l, "v.hr.out.slow", d, dims[STAGES - 1], 0.25f);
    }
    if (m->mgm) {
        const uint32_t all = dims[0] + dims[1] + dims[2] + dims[3];
        mining(l, "q", d, d, 1.25f);
        mining(l, "k", d, all, 1.25f);
        mining(l, "v", d, all, 0.5f);
    }
}

static void with_mark(synth_tensor *t, float mark)
{
    t->marks = true;
    t->mark = mark;
}

/* Vision tokens of about the size of words. */
static void projector(list *l, const model *m)
{
    const uint32_t d = m->dec.d;
    linear(l, "mm.0", d, m->vit.d, 0.7f);
    matrix(l, "mm.2", ".weight", d, d, 1.0f)->silent = true;
    with_mark(bias(l, "mm.2", d), MARK);
    if (m->anyres) with_mark(vector(l, "model.image_newline", "", d, 0, 1.0f), MARK);
}

/* The deviation of the residual stream before a layer, about: each layer adds to its square. */
static float stream(uint32_t layer) { return sqrtf(1 + 0.5f * (float)layer); }

static void decoder_layer(list *l, const model *m, uint32_t n)
{
    const uint32_t d = m->dec.d, f = m->dec.f;
    char base[32];
    named(base, "blk.%u.", n);
    synth_tensor *const into = vector(l, base, "attn_norm.weight", d, 1, 0.05f);
    into->signs = m->gamma && m->is_mod[n]; /* so that what all tokens share is another score in each layer */
    with_mark(into, stream(n));
    matrix(l, base, "attn_q.weight", d, d, 1.25f);
    matrix(l, base, "attn_k.weight", d, d, 1.25f);
    matrix(l, base, "attn_v.weight", d, d, 1.0f);
    matrix(l, base, "attn_output.weight", d, d, 1.0f)->silent = true;
    vector(l, base, "ffn_norm.weight", d, 1, 0.05f);
    matrix(l, base, "ffn_gate.weight", f, d, 1.0f);
    matrix(l, base, "ffn_up.weight", f, d, 1.0f);
    matrix(l, base, "ffn_down.weight", d, f, 1.0f)->silent = true;
}

/* gamma: of the two rows the difference counts. */
static void routers(list *l, const model *m)
{
    const uint32_t d = m->dec.d;
    char name[32];
    for (uint32_t n = 0; m->pmod && n < m->dec.n_layers; n++) {
        if (!m->is_mod[n]) continue;
        matrix(l, named(name, "blk.%u.mod_router", n), ".weight", 1, d, 1.0f);
        vector(l, name, ".bias", 1, 0, 0.05f);
    }
    if (!m->gamma) return;
    synth_tensor *const router = matrix(l, "mod_router", ".weight", 2, d, 2.5f);
    with_mark(router, HALF_LOGIT);
    router->opposed = true;
}

synth_tensor *synth_tensors(synth_family family, synth_shape shape, size_t *n)
{
    const model m = model_of(family, shape);
    list l = {0};
    front_end(&l, &m);
    projector(&l, &m);
    routers(&l, &m);
    with_mark(matrix(&l, "token_embd", ".weight", m.dec.n_vocab, m.dec.d, sqrtf((float)m.dec.d)), MARK);
    for (uint32_t i = 0; i < m.dec.n_layers; i++)
        decoder_layer(&l, &m, i);
    vector(&l, "output_norm", ".weight", m.dec.d, 1, 0.05f);
    matrix(&l, "output", ".weight", m.dec.n_vocab, m.dec.d, 2.0f);
    *n = l.n;
    return l.all;
}

/* ---- Words --------------------------------------------------------------------------------- */

enum { BYTES = 256, FIRST_PIECE = 3 + BYTES, PIECE_ROOM = 16 };
enum { NORMAL = 1, UNKNOWN = 2, CONTROL = 3, BYTE = 6 }; /* tokenizer.ggml.token_type */

static const char SPACE[] = "\xE2\x96\x81"; /* U+2581, a space in SentencePiece's pieces */

/* Syllable i of 100. */
static size_t put_syllable(char *out, uint32_t i)
{
    out[0] = "bdfghjklmnprstvwzcqx"[i / 5 % 20];
    out[1] = "aeiou"[i % 5];
    return 2;
}

/* Words by their number, of one syllable, of two and of three, inside words and at their beginnings. All differ. */
static void word(uint32_t i, char out[PIECE_ROOM])
{
    enum { SYLLABLES = 100 };
    uint32_t n_syllables = 1, words = SYLLABLES;
    size_t n = 0;
    for (; i >= 2 * words; n_syllables++, words *= SYLLABLES)
        i -= 2 * words;
    if (i >= words) {
        memcpy(out, SPACE, sizeof SPACE - 1);
        n = sizeof SPACE - 1;
        i -= words;
    }
    for (; n_syllables; n_syllables--, i /= SYLLABLES)
        n += put_syllable(out + n, i % SYLLABLES);
    out[n] = '\0';
}

/* Of prompts: that these are as long as with a trained vocabulary. */
static const char *const prompt_words[] = {
    "A",    "chat", "between",   "curious", "user",    "human",    "and",      "an",       "artificial", "intelligence",
    "The",  "the",  "assistant", "gives",   "helpful", "detailed", "polite",   "answers",  "to",         "questions",
    "USER", "in",   "Describe",  "this",    "image",   "one",      "sentence", "ASSISTANT"};

typedef struct vocabulary {
    uint32_t n, used, n_known; /* pieces to be, so far, and those that others may not equal */
    char (*text)[PIECE_ROOM];
    sq_str *tokens;
    float *scores;
    int32_t *types;
} vocabulary;

static void add_piece(vocabulary *v, const char *text, float score, int32_t type)
{
    const uint32_t i = v->used++;
    snprintf(v->text[i], PIECE_ROOM, "%s", text);
    v->tokens[i] = (sq_str){v->text[i], strlen(v->text[i])};
    v->scores[i] = score;
    v->types[i] = type;
}

/* Pieces that come earlier are merged first. */
static void add_normal(vocabulary *v, const char *text)
{
    for (uint32_t i = FIRST_PIECE; i < v->n_known; i++)
        if (!strcmp(v->text[i], text)) return;
    if (v->used < v->n) add_piece(v, text, (float)FIRST_PIECE - (float)v->used, NORMAL);
}

static void add_bytes(vocabulary *v)
{
    char text[PIECE_ROOM];
    add_piece(v, "<unk>", 0, UNKNOWN);
    add_piece(v, "<s>", 0, CONTROL);
    add_piece(v, "</s>", 0, CONTROL);
    for (unsigned i = 0; i < BYTES; i++) {
        snprintf(text, sizeof text, "<0x%02X>", i);
        add_piece(v, text, 0, BYTE);
    }
}

/* Each with all of its beginnings, by which merging comes to it. */
static void add_prompt_words(vocabulary *v)
{
    char text[PIECE_ROOM];
    for (size_t i = 0; i < SQ_COUNT(prompt_words); i++)
        for (int n = 1; n <= (int)strlen(prompt_words[i]); n++) {
            snprintf(text, sizeof text, "%s%.*s", SPACE, n, prompt_words[i]);
            add_normal(v, text);
            v->n_known = v->used;
        }
}

static vocabulary make_vocabulary(uint32_t n)
{
    vocabulary v = {.n = n,
                    .text = cli_alloc(n, sizeof *v.text),
                    .tokens = cli_alloc(n, sizeof *v.tokens),
                    .scores = cli_alloc(n, sizeof *v.scores),
                    .types = cli_alloc(n, sizeof *v.types)};
    char text[PIECE_ROOM];
    add_bytes(&v);
    add_normal(&v, SPACE);
    for (char c = '!'; c <= '~'; c++)
        add_normal(&v, (char[]){c, 0});
    add_prompt_words(&v);
    for (uint32_t i = 0; v.used < n; i++) {
        word(i, text);
        add_normal(&v, text);
    }
    return v;
}

/* ---- Keys ---------------------------------------------------------------------------------- */

static void put_text(sq_gguf_writer *w, const char *key, const char *text)
{
    sq_gguf_put_str(w, key, (sq_str){text, strlen(text)});
}

/* Numbers of `type` as they lie in memory, which is little-endian. */
static void put_array(sq_gguf_writer *w, const char *key, sq_gguf_type type, const void *values, size_t n)
{
    const sq_gguf_kv kv = {
        .key = {key, strlen(key)}, .type = SQ_GGUF_ARRAY, .elem_type = type, .count = n, .data = values};
    sq_gguf_put_kv(w, &kv);
}

static void put_vocabulary(sq_gguf_writer *w, uint32_t n)
{
    const vocabulary v = make_vocabulary(n);
    put_text(w, "tokenizer.ggml.model", "llama");
    put_text(w, "tokenizer.ggml.pre", "default");
    sq_gguf_put_strs(w, "tokenizer.ggml.tokens", v.tokens, n);
    sq_gguf_put_f32s(w, "tokenizer.ggml.scores", v.scores, n);
    put_array(w, "tokenizer.ggml.token_type", SQ_GGUF_I32, v.types, n);
    sq_gguf_put_u32(w, "tokenizer.ggml.bos_token_id", 1);
    sq_gguf_put_u32(w, "tokenizer.ggml.eos_token_id", 2);
    sq_gguf_put_u32(w, "tokenizer.ggml.unknown_token_id", 0);
    sq_gguf_put_u32(w, "tokenizer.ggml.padding_token_id", 0);
    sq_gguf_put_bool(w, "tokenizer.ggml.add_bos_token", true);
    sq_gguf_put_bool(w, "tokenizer.ggml.add_eos_token", false);
    sq_gguf_put_bool(w, "tokenizer.ggml.add_space_prefix", true);
    free(v.text);
    free(v.tokens);
    free(v.scores);
    free(v.types);
}

static void put_general(sq_gguf_writer *w, const model *m, uint64_t seed)
{
    char text[96];
    put_text(w, "general.architecture", "llama");
    snprintf(text, sizeof text, "%s-%s-random", synth_family_words[m->family], synth_shape_words[m->shape]);
    put_text(w, "general.name", text);
    sq_gguf_put_u32(w, "general.quantization_version", 2);
    snprintf(text, sizeof text, "random weights of squint synth, seed %llu", (unsigned long long)seed);
    put_text(w, "squint.source", text);
}

static void put_clip(sq_gguf_writer *w, const model *m)
{
    static const float mean[] = {0.48145466f, 0.4578275f, 0.40821073f}, std[] = {0.26862954f, 0.26130258f, 0.27577711f};
    static const uint8_t pad[] = {122, 116, 104};
    sq_gguf_put_bool(w, "clip.has_vision_encoder", true);
    sq_gguf_put_bool(w, "clip.has_text_encoder", false);
    sq_gguf_put_bool(w, "clip.has_llava_projector", true);
    put_text(w, "clip.projector_type", "mlp");
    sq_gguf_put_bool(w, "clip.use_gelu", false);
    sq_gguf_put_u32(w, "clip.vision.image_size", m->vit_side);
    sq_gguf_put_u32(w, "clip.vision.patch_size", PATCH);
    sq_gguf_put_u32(w, "clip.vision.embedding_length", m->vit.d);
    sq_gguf_put_u32(w, "clip.vision.feed_forward_length", m->vit.f);
    sq_gguf_put_u32(w, "clip.vision.projection_dim", m->vit.projection);
    sq_gguf_put_u32(w, "clip.vision.block_count", m->vit_run);
    sq_gguf_put_u32(w, "clip.vision.attention.head_count", m->vit.n_heads);
    sq_gguf_put_f32(w, "clip.vision.attention.layer_norm_epsilon", 1e-5f);
    sq_gguf_put_f32s(w, "clip.vision.image_mean", mean, 3);
    sq_gguf_put_f32s(w, "clip.vision.image_std", std, 3);
    put_text(w, "squint.vision.type", m->anyres ? "clip_anyres" : m->hr ? "llava_hr" : m->mgm ? "mgm" : "clip_pad");
    sq_gguf_put_u32(w, "squint.vision.layers_run", m->vit_run);
    put_text(w, "squint.vision.drop_class", m->hr ? "before_pre_ln" : "after");
    put_array(w, "squint.vision.pad_color", SQ_GGUF_U8, pad, 3);
}

static void put_anyres(sq_gguf_writer *w, const model *m)
{
    int32_t sides[] = {1, 2, 2, 1, 2, 2, 3, 1, 1, 3};
    for (size_t i = 0; i < SQ_COUNT(sides); i++)
        sides[i] *= (int32_t)m->vit.side;
    put_array(w, "clip.vision.image_grid_pinpoints", SQ_GGUF_I32, sides, SQ_COUNT(sides));
    sq_gguf_put_u32(w, "clip.vision.image_crop_resolution", m->vit.side);
    put_text(w, "clip.vision.image_aspect_ratio", "anyres");
    put_text(w, "clip.vision.mm_patch_merge_type", "spatial_unpad");
    sq_gguf_put_u32(w, "squint.vision.max_num_patches", 0);
}

static void put_two_towers(sq_gguf_writer *w, const model *m)
{
    const uint32_t group = m->vit.n_layers / (ADAPTERS + 1), groups[] = {group, group, group, group};
    sq_gguf_put_u32(w, "squint.vision.input_size", m->hr ? m->vit.hr_side : m->vit.mgm_side);
    if (m->hr) put_array(w, "squint.vision.slow.groups", SQ_GGUF_U32, groups, SQ_COUNT(groups));
    if (m->mgm) {
        sq_gguf_put_u32(w, "squint.vision.grid", 2);
        sq_gguf_put_bool(w, "squint.vision.global", true);
    }
    put_array(w, "squint.vision.slow.dims", SQ_GGUF_U32, m->slow.dims, STAGES);
    put_array(w, "squint.vision.slow.depths", SQ_GGUF_U32, m->slow.depths, STAGES);
    sq_gguf_put_f32(w, "squint.vision.slow.ln_eps", m->slow.eps);
}

static void put_decoder(sq_gguf_writer *w, const decoder_shape *d)
{
    sq_gguf_put_u32(w, "llama.context_length", 4096);
    sq_gguf_put_u32(w, "llama.embedding_length", d->d);
    sq_gguf_put_u32(w, "llama.block_count", d->n_layers);
    sq_gguf_put_u32(w, "llama.feed_forward_length", d->f);
    sq_gguf_put_u32(w, "llama.attention.head_count", d->n_heads);
    sq_gguf_put_u32(w, "llama.attention.head_count_kv", d->n_heads);
    sq_gguf_put_f32(w, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    sq_gguf_put_u32(w, "llama.rope.dimension_count", d->d / d->n_heads);
    sq_gguf_put_f32(w, "llama.rope.freq_base", 10000.0f);
    sq_gguf_put_u32(w, "llama.vocab_size", d->n_vocab);
}

static void put_layers(sq_gguf_writer *w, const model *m, const char *type, const char *mode)
{
    sq_gguf_put_u32(w, "mod.version", 1);
    put_text(w, "mod.type", type);
    put_text(w, "mod.mode", mode);
    sq_gguf_put_bools(w, "mod.layer_is_mod", m->is_mod, m->dec.n_layers);
    sq_gguf_put_f32s(w, "mod.layer_ratio", m->ratio, m->dec.n_layers);
}

static void put_pmod(sq_gguf_writer *w, const model *m)
{
    put_layers(w, m, "pmod", "pmod");
    put_text(w, "mod.norm.type", "tanh");
    sq_gguf_put_f32(w, "mod.norm.scale", 0.2f);
    sq_gguf_put_f32(w, "mod.norm.bias", 1.0f);
    put_text(w, "mod.router.input", "hidden");
    sq_gguf_put_u32(w, "mod.router.outputs", 1);
    sq_gguf_put_bool(w, "mod.router.shared", false);
    put_text(w, "mod.target", "vision_all");
    put_text(w, "mod.weight.apply", "mlp+skip");
    put_text(w, "mod.position", "original");
    put_text(w, "mod.prefill.select", "topk");
    put_text(w, "mod.decode.rule", "dense");
    put_text(w, "mod.decode.position", "global");
    put_text(w, "mod.schedule", "shiftedcos_decay_0.85_0.15");
    sq_gguf_put_f32(w, "mod.schedule.factor", 0.5f);
}

static void put_gamma(sq_gguf_writer *w, const model *m)
{
    enum { SYSTEM_TOKENS = 35 };
    put_layers(w, m, "gamma", m->mgm ? "gamma-released-mgm" : "gamma-released");
    put_text(w, "mod.router.input", "attn_norm");
    sq_gguf_put_u32(w, "mod.router.outputs", 2);
    sq_gguf_put_bool(w, "mod.router.shared", true);
    put_text(w, "mod.target", "all");
    put_text(w, "mod.weight.apply", "mlp");
    put_text(w, "mod.position", "compressed");
    put_text(w, "mod.prefill.select", "threshold");
    sq_gguf_put_f32(w, "mod.prefill.threshold", 0.005f);
    put_text(w, "mod.decode.rule", m->mgm ? "always" : "threshold");
    put_text(w, "mod.decode.position", "local");
    sq_gguf_put_u32(w, "mod.capacity.region", m->n_vision + (m->mgm ? 0 : SYSTEM_TOKENS));
    if (!m->mgm) sq_gguf_put_f32(w, "mod.decode.threshold", 0.5f);
    sq_gguf_put_f32(w, "mod.capacity.skip_ratio", 0.5f);
    sq_gguf_put_bool(w, "squint.prompt.image_first", true);
}

void synth_put_keys(sq_gguf_writer *w, synth_family family, synth_shape shape, uint64_t seed)
{
    const model m = model_of(family, shape);
    put_general(w, &m, seed);
    put_clip(w, &m);
    if (m.anyres) put_anyres(w, &m);
    if (m.hr || m.mgm) put_two_towers(w, &m);
    put_decoder(w, &m.dec);
    if (m.pmod) put_pmod(w, &m);
    if (m.gamma) put_gamma(w, &m);
    put_text(w, "squint.chat.template", "vicuna_v1");
    sq_gguf_put_u32(w, "squint.max_expanded_length", m.anyres || m.mgm ? 4096 : 2048);
    put_vocabulary(w, m.dec.n_vocab);
}
