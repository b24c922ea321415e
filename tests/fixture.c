/* SPDX-License-Identifier: MIT */
#include "tests/fixture.h"

#include "tests/support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_KEYS = 128, MAX_TENSORS = 512, MAX_NAME = 64 };

typedef struct item {
    char name[MAX_NAME];
    uint8_t *data; /* malloc'ed */
    size_t bytes;
} item;

typedef struct key_item {
    item i;
    sq_gguf_type type, elem_type; /* the same but for arrays */
    uint64_t count;
} key_item;

typedef struct tensor {
    item i;
    uint32_t n_dims, type;
    uint64_t ne[SQ_GGUF_MAX_DIMS];
} tensor;

struct fixture {
    fixture_shape shape;
    bool is_mod[64];
    float ratio[64];
    size_t n_keys, n_tensors;
    key_item keys[MAX_KEYS];
    tensor tensors[MAX_TENSORS];
};

static void *checked(void *p)
{
    if (!p) abort();
    return p;
}

static void fill(item *i, const char *name, const void *data, size_t bytes)
{
    uint8_t *copy = checked(malloc(bytes + 1));
    if (bytes) memcpy(copy, data, bytes);
    free(i->data);
    snprintf(i->name, sizeof i->name, "%s", name);
    i->data = copy;
    i->bytes = bytes;
}

static key_item *find_key(const fixture *f, const char *name)
{
    for (size_t i = 0; i < f->n_keys; i++)
        if (!strcmp(f->keys[i].i.name, name)) return (key_item *)&f->keys[i];
    return NULL;
}

static tensor *find_tensor(const fixture *f, const char *name)
{
    for (size_t i = 0; i < f->n_tensors; i++)
        if (!strcmp(f->tensors[i].i.name, name)) return (tensor *)&f->tensors[i];
    return NULL;
}

static tensor *need_tensor(const fixture *f, const char *name)
{
    tensor *t = find_tensor(f, name);
    if (t) return t;
    fprintf(stderr, "the fixture has no tensor %s\n", name);
    abort();
}

/* ---- keys ---- */

static void set_key(fixture *f, const char *name, sq_gguf_type type, sq_gguf_type elem_type, size_t count,
                    const void *data, size_t bytes)
{
    key_item *k = find_key(f, name);
    if (!k) {
        if (f->n_keys == MAX_KEYS) abort();
        k = &f->keys[f->n_keys++];
        *k = (key_item){0};
    }
    k->type = type;
    k->elem_type = elem_type;
    k->count = count;
    fill(&k->i, name, data, bytes);
}

static void set_array(fixture *f, const char *name, sq_gguf_type type, const void *data, size_t n)
{
    set_key(f, name, SQ_GGUF_ARRAY, type, n, data, n * sq_gguf_type_bytes(type));
}

void fixture_u32(fixture *f, const char *key, uint32_t v)
{
    set_key(f, key, SQ_GGUF_U32, SQ_GGUF_U32, 1, &v, sizeof v);
}
void fixture_f32(fixture *f, const char *key, float v) { set_key(f, key, SQ_GGUF_F32, SQ_GGUF_F32, 1, &v, sizeof v); }

void fixture_bool(fixture *f, const char *key, bool v)
{
    const uint8_t byte = v;
    set_key(f, key, SQ_GGUF_BOOL, SQ_GGUF_BOOL, 1, &byte, 1);
}

static size_t put_string(uint8_t *out, const char *s)
{
    const uint64_t n = strlen(s);
    memcpy(out, &n, sizeof n);
    memcpy(out + sizeof n, s, n);
    return sizeof n + n;
}

void fixture_str(fixture *f, const char *key, const char *v)
{
    uint8_t *data = checked(malloc(strlen(v) + 8));
    set_key(f, key, SQ_GGUF_STRING, SQ_GGUF_STRING, 1, data, put_string(data, v));
    free(data);
}

void fixture_u32s(fixture *f, const char *key, const uint32_t *v, size_t n) { set_array(f, key, SQ_GGUF_U32, v, n); }
void fixture_f32s(fixture *f, const char *key, const float *v, size_t n) { set_array(f, key, SQ_GGUF_F32, v, n); }

void fixture_bools(fixture *f, const char *key, const bool *v, size_t n)
{
    static_assert(sizeof *v == 1, "bools are bytes in GGUF");
    set_array(f, key, SQ_GGUF_BOOL, v, n);
}

/* ---- tensors ---- */

void fixture_values(float *out, size_t n, uint32_t id, double base, double scale)
{
    for (size_t m = 0; m < n; m++) {
        uint32_t h = (uint32_t)m * 2654435761u + id * 2246822519u + 374761393u;
        h ^= h >> 15;
        h *= 2246822519u;
        h ^= h >> 13;
        out[m] = (float)(base + (h / 4294967296.0 - 0.5) * 2 * scale);
    }
}

void fixture_tensor(fixture *f, const char *name, uint32_t n_dims, const uint64_t *ne, uint32_t type, const void *data,
                    size_t bytes)
{
    tensor *t = find_tensor(f, name);
    if (!t) {
        if (f->n_tensors == MAX_TENSORS) abort();
        t = &f->tensors[f->n_tensors++];
        *t = (tensor){0};
    }
    t->n_dims = n_dims;
    t->type = type;
    for (uint32_t i = 0; i < SQ_GGUF_MAX_DIMS; i++)
        t->ne[i] = i < n_dims ? ne[i] : 1;
    fill(&t->i, name, data, bytes);
}

void fixture_weights(fixture *f, const char *name, uint32_t n_in, uint32_t n_out, uint32_t id, double base,
                     double scale)
{
    const size_t n = (size_t)n_in * (n_out ? n_out : 1);
    float *v = checked(malloc(n * sizeof *v));
    fixture_values(v, n, id, base, scale);
    fixture_tensor(f, name, n_out ? 2 : 1, (const uint64_t[]){n_in, n_out}, SQ_TENSOR_F32, v, n * sizeof *v);
    free(v);
}

void fixture_rename(fixture *f, const char *from, const char *to)
{
    snprintf(need_tensor(f, from)->i.name, MAX_NAME, "%s", to);
}

void fixture_rename_key(fixture *f, const char *from, const char *to)
{
    key_item *const k = find_key(f, from);
    if (!k) abort();
    snprintf(k->i.name, MAX_NAME, "%s", to);
}

void fixture_duplicate(fixture *f, const char *from, const char *to)
{
    const tensor *const t = need_tensor(f, from);
    fixture_tensor(f, to, t->n_dims, t->ne, t->type, t->i.data, t->i.bytes);
}

void fixture_drop(fixture *f, const char *name)
{
    key_item *k = find_key(f, name);
    if (k) {
        free(k->i.data);
        *k = f->keys[--f->n_keys];
        return;
    }
    tensor *t = need_tensor(f, name);
    free(t->i.data);
    *t = f->tensors[--f->n_tensors];
}

float *fixture_floats(const fixture *f, const char *name)
{
    tensor *t = need_tensor(f, name);
    if (t->type != SQ_TENSOR_F32) abort();
    return (float *)(void *)t->i.data;
}

bool fixture_has(const fixture *f, const char *name) { return find_key(f, name) || find_tensor(f, name); }
void fixture_swap_ids(fixture *f, uint32_t a, uint32_t b)
{
    static const char *const mats[] = {"token_embd.weight", "output.weight"};
    const size_t d = f->shape.d;
    for (size_t m = 0; m < SQ_COUNT(mats); m++) {
        float *const w = fixture_floats(f, mats[m]);
        for (size_t i = 0; i < d; i++) {
            const float kept = w[a * d + i];
            w[a * d + i] = w[b * d + i];
            w[b * d + i] = kept;
        }
    }
}

const fixture_shape *fixture_shape_of(const fixture *f) { return &f->shape; }
bool fixture_is_mod(const fixture *f, uint32_t layer) { return f->is_mod[layer]; }
float fixture_ratio(const fixture *f, uint32_t layer) { return f->ratio[layer]; }

/* ---- the decoder ---- */

/* Ids 3 to 15 are the space and letters; bytes follow. A space comes before "a" and "b" in pieces of their own. */
static const char *const pieces[FIXTURE_IDS] = {"<unk>",
                                                "<s>",
                                                "</s>",
                                                "\xE2\x96\x81",
                                                "a",
                                                "b",
                                                "c",
                                                "d",
                                                "e",
                                                "\xE2\x96\x81"
                                                "a",
                                                "\xE2\x96\x81"
                                                "b",
                                                "ab",
                                                "cd",
                                                "\xC3\xA9",
                                                "\xE2\x82\xAC",
                                                "."};

static void add_tokenizer(fixture *f)
{
    uint8_t strings[FIXTURE_VOCAB * 16];
    float scores[FIXTURE_VOCAB];
    int32_t types[FIXTURE_VOCAB];
    size_t used = 0;
    for (int id = 0; id < FIXTURE_VOCAB; id++) {
        char byte[8];
        snprintf(byte, sizeof byte, "<0x%02X>", (unsigned)(id - FIXTURE_IDS) & 0xFF);
        used += put_string(strings + used, id < FIXTURE_IDS ? pieces[id] : byte);
        scores[id] = (float)-id;
        types[id] = id == 0 ? 2 : id < 3 ? 3 : id < FIXTURE_IDS ? 1 : 6;
    }
    fixture_str(f, "tokenizer.ggml.model", "llama");
    set_key(f, "tokenizer.ggml.tokens", SQ_GGUF_ARRAY, SQ_GGUF_STRING, FIXTURE_VOCAB, strings, used);
    fixture_f32s(f, "tokenizer.ggml.scores", scores, FIXTURE_VOCAB);
    set_array(f, "tokenizer.ggml.token_type", SQ_GGUF_I32, types, FIXTURE_VOCAB);
}

static void add_layer(fixture *f, uint32_t l)
{
    const fixture_shape *s = &f->shape;
    const uint32_t kv = s->d / s->n_heads * s->n_kv_heads;
    const struct {
        const char *name;
        uint32_t id, n_in, n_out;
    } mats[] = {{"attn_q", 1, s->d, s->d},      {"attn_k", 2, s->d, kv},     {"attn_v", 3, s->d, kv},
                {"attn_output", 4, s->d, s->d}, {"ffn_gate", 6, s->d, s->f}, {"ffn_up", 7, s->d, s->f},
                {"ffn_down", 8, s->f, s->d}};
    char name[MAX_NAME];
    snprintf(name, sizeof name, "blk.%u.attn_norm.weight", l);
    fixture_weights(f, name, s->d, 0, 16 * l, 1, 0.1);
    snprintf(name, sizeof name, "blk.%u.ffn_norm.weight", l);
    fixture_weights(f, name, s->d, 0, 16 * l + 5, 1, 0.1);
    for (size_t i = 0; i < SQ_COUNT(mats); i++) {
        snprintf(name, sizeof name, "blk.%u.%s.weight", l, mats[i].name);
        fixture_weights(f, name, mats[i].n_in, mats[i].n_out, 16 * l + mats[i].id, 0, 0.25);
    }
}

fixture *fixture_decoder_of(const fixture_shape *s)
{
    fixture *f = checked(calloc(1, sizeof *f));
    f->shape = *s;
    fixture_str(f, "general.architecture", "llama");
    fixture_u32(f, "llama.context_length", 4096);
    fixture_u32(f, "llama.embedding_length", s->d);
    fixture_u32(f, "llama.block_count", s->n_layers);
    fixture_u32(f, "llama.feed_forward_length", s->f);
    fixture_u32(f, "llama.attention.head_count", s->n_heads);
    fixture_u32(f, "llama.attention.head_count_kv", s->n_kv_heads);
    fixture_f32(f, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    fixture_u32(f, "llama.rope.dimension_count", s->d / s->n_heads);
    fixture_f32(f, "llama.rope.freq_base", 10000.0f);
    fixture_u32(f, "llama.vocab_size", FIXTURE_VOCAB);
    fixture_str(f, "squint.rope_layout", "half");
    fixture_str(f, "squint.chat.template", "plain");
    add_tokenizer(f);
    fixture_weights(f, "token_embd.weight", s->d, FIXTURE_VOCAB, 1000, 0, 1);
    fixture_weights(f, "output_norm.weight", s->d, 0, 1001, 1, 0.1);
    fixture_weights(f, "output.weight", s->d, FIXTURE_VOCAB, 1002, 0, 0.25);
    for (uint32_t l = 0; l < s->n_layers; l++)
        add_layer(f, l);
    return f;
}

fixture *fixture_decoder(uint32_t n_layers)
{
    return fixture_decoder_of(&(fixture_shape){.n_layers = n_layers, .d = 16, .f = 24, .n_heads = 4, .n_kv_heads = 2});
}

void fixture_routing(fixture *f, const bool *is_mod, const float *ratio)
{
    const uint32_t n = f->shape.n_layers;
    fixture_u32(f, "mod.version", 1);
    fixture_str(f, "mod.type", "pmod");
    fixture_str(f, "mod.mode", "pmod");
    fixture_bools(f, "mod.layer_is_mod", is_mod, n);
    fixture_f32s(f, "mod.layer_ratio", ratio, n);
    fixture_str(f, "mod.norm.type", "tanh");
    fixture_f32(f, "mod.norm.scale", 0.2f);
    fixture_f32(f, "mod.norm.bias", 1.0f);
    fixture_str(f, "mod.router.input", "hidden");
    fixture_u32(f, "mod.router.outputs", 1);
    fixture_bool(f, "mod.router.shared", false);
    fixture_str(f, "mod.target", "vision_all");
    fixture_str(f, "mod.weight.apply", "mlp+skip");
    fixture_str(f, "mod.position", "original");
    fixture_str(f, "mod.prefill.select", "topk");
    fixture_str(f, "mod.decode.rule", "dense");
    fixture_str(f, "mod.decode.position", "global");
    for (uint32_t l = 0; l < n; l++) {
        char name[MAX_NAME];
        f->is_mod[l] = is_mod[l];
        f->ratio[l] = ratio[l];
        if (!is_mod[l]) continue;
        snprintf(name, sizeof name, "blk.%u.mod_router.weight", l);
        fixture_weights(f, name, f->shape.d, 1, 16 * l + 9, 0, 0.1);
        snprintf(name, sizeof name, "blk.%u.mod_router.bias", l);
        fixture_weights(f, name, 1, 0, 16 * l + 10, 0, 0.05);
    }
}

void fixture_gates(fixture *f, const char *mode, const bool *is_mod)
{
    float ratio[64];
    for (uint32_t l = 0; l < f->shape.n_layers; l++)
        ratio[l] = 1;
    fixture_u32(f, "mod.version", 1);
    fixture_str(f, "mod.type", strcmp(mode, "threshold") ? "gamma" : "threshold");
    fixture_str(f, "mod.mode", mode);
    fixture_bools(f, "mod.layer_is_mod", is_mod, f->shape.n_layers);
    fixture_f32s(f, "mod.layer_ratio", ratio, f->shape.n_layers);
    fixture_str(f, "mod.router.input", "attn_norm");
    fixture_u32(f, "mod.router.outputs", 2);
    fixture_bool(f, "mod.router.shared", true);
    fixture_weights(f, "mod_router.weight", f->shape.d, 2, 1003, 0, 2);
}

/* New row 2i + j of each head is old row j * (head_dim / 2) + i. */
static void interleave_rows(fixture *f, const char *name)
{
    const uint32_t d = f->shape.d, head_dim = d / f->shape.n_heads;
    tensor *t = need_tensor(f, name);
    const size_t row = d * sizeof(float);
    uint8_t *old = checked(malloc(t->i.bytes));
    memcpy(old, t->i.data, t->i.bytes);
    for (uint32_t n = 0; n < t->ne[1]; n++) {
        const uint32_t head = n / head_dim, i = n % head_dim / 2, j = n % 2;
        memcpy(t->i.data + n * row, old + (head * head_dim + j * (head_dim / 2) + i) * row, row);
    }
    free(old);
}

void fixture_interleave(fixture *f)
{
    for (uint32_t l = 0; l < f->shape.n_layers; l++) {
        char name[MAX_NAME];
        snprintf(name, sizeof name, "blk.%u.attn_q.weight", l);
        interleave_rows(f, name);
        snprintf(name, sizeof name, "blk.%u.attn_k.weight", l);
        interleave_rows(f, name);
    }
    fixture_str(f, "squint.rope_layout", "interleaved");
}

/* ---- the tower ---- */

enum { VIT_D = 16, VIT_F = 32, VIT_LAYERS = 3, VIT_IMAGE = 12, VIT_PATCH = 4, VIT_POSITIONS = 10 };

static void add_affine(fixture *f, const char *name, uint32_t id)
{
    char full[MAX_NAME + sizeof ".weight"];
    snprintf(full, sizeof full, "%s.weight", name);
    fixture_weights(f, full, VIT_D, 0, id, 1, 0.1);
    snprintf(full, sizeof full, "%s.bias", name);
    fixture_weights(f, full, VIT_D, 0, id + 1, 0, 0.1);
}

static void add_linear(fixture *f, const char *name, uint32_t n_in, uint32_t n_out, uint32_t id)
{
    char full[MAX_NAME + sizeof ".weight"];
    snprintf(full, sizeof full, "%s.weight", name);
    fixture_weights(f, full, n_in, n_out, id, 0, 0.25);
    snprintf(full, sizeof full, "%s.bias", name);
    fixture_weights(f, full, n_out, 0, id + 1, 0, 0.1);
}

static void add_vit_layer(fixture *f, uint32_t l)
{
    static const struct {
        const char *name;
        uint32_t id, n_in, n_out; /* n_in 0: a layer norm */
    } parts[] = {{"ln1", 0, 0, 0},
                 {"attn_q", 2, VIT_D, VIT_D},
                 {"attn_k", 4, VIT_D, VIT_D},
                 {"attn_v", 6, VIT_D, VIT_D},
                 {"attn_out", 8, VIT_D, VIT_D},
                 {"ln2", 10, 0, 0},
                 {"ffn_down", 12, VIT_D, VIT_F}, /* fc1 is called down in these files */
                 {"ffn_up", 14, VIT_F, VIT_D}};
    for (size_t i = 0; i < SQ_COUNT(parts); i++) {
        char name[MAX_NAME];
        const uint32_t id = 5100 + 20 * l + parts[i].id;
        snprintf(name, sizeof name, "v.blk.%u.%s", l, parts[i].name);
        if (parts[i].n_in)
            add_linear(f, name, parts[i].n_in, parts[i].n_out, id);
        else
            add_affine(f, name, id);
    }
}

void fixture_tower(fixture *f)
{
    static const float mean[] = {0.48145466f, 0.4578275f, 0.40821073f}, std[] = {0.26862954f, 0.26130258f, 0.27577711f};
    float patch[VIT_D * 3 * VIT_PATCH * VIT_PATCH];
    fixture_bool(f, "clip.has_vision_encoder", true);
    fixture_u32(f, "clip.vision.image_size", VIT_IMAGE);
    fixture_u32(f, "clip.vision.patch_size", VIT_PATCH);
    fixture_u32(f, "clip.vision.embedding_length", VIT_D);
    fixture_u32(f, "clip.vision.feed_forward_length", VIT_F);
    fixture_u32(f, "clip.vision.block_count", VIT_LAYERS);
    fixture_u32(f, "clip.vision.attention.head_count", 2);
    fixture_f32(f, "clip.vision.attention.layer_norm_epsilon", 1e-5f);
    fixture_f32s(f, "clip.vision.image_mean", mean, 3);
    fixture_f32s(f, "clip.vision.image_std", std, 3);
    fixture_u32(f, "squint.vision.layers_run", 2);
    fixture_values(patch, SQ_COUNT(patch), 5002, 0, 0.25);
    fixture_tensor(f, "v.patch_embd.weight", 4, (const uint64_t[]){VIT_PATCH, VIT_PATCH, 3, VIT_D}, SQ_TENSOR_F32,
                   patch, sizeof patch);
    fixture_weights(f, "v.class_embd", VIT_D, 0, 5001, 0, 0.5);
    fixture_weights(f, "v.position_embd.weight", VIT_D, VIT_POSITIONS, 5003, 0, 0.5);
    add_affine(f, "v.pre_ln", 5004);
    for (uint32_t l = 0; l < VIT_LAYERS; l++)
        add_vit_layer(f, l);
    add_linear(f, "mm.0", VIT_D, f->shape.d, 5200);
    add_linear(f, "mm.2", f->shape.d, f->shape.d, 5202);
}

static bool is_vision(const item *i) { return sq_gguf_is_vision((sq_str){i->name, strlen(i->name)}); }

fixture *fixture_split(fixture *f)
{
    fixture *const vision = checked(calloc(1, sizeof *vision));
    size_t n_keys = 0, n_tensors = 0;
    vision->shape = f->shape;
    for (size_t i = 0; i < f->n_keys; i++)
        if (is_vision(&f->keys[i].i))
            vision->keys[vision->n_keys++] = f->keys[i];
        else
            f->keys[n_keys++] = f->keys[i];
    for (size_t i = 0; i < f->n_tensors; i++)
        if (is_vision(&f->tensors[i].i))
            vision->tensors[vision->n_tensors++] = f->tensors[i];
        else
            f->tensors[n_tensors++] = f->tensors[i];
    f->n_keys = n_keys;
    f->n_tensors = n_tensors;
    fixture_str(vision, "general.architecture", "clip");
    fixture_bool(vision, "clip.has_text_encoder", false);
    fixture_bool(vision, "clip.has_llava_projector", true);
    fixture_str(vision, "clip.projector_type", "mlp");
    fixture_bool(vision, "clip.use_gelu", false);
    return vision;
}

/* ---- other types ---- */

static void decode_panels(const sq_panels *w, float *out)
{
    for (uint32_t row = 0; row < w->n; row++)
        sq_panels_row(w, row, out + (size_t)row * w->k);
}

static size_t encode_panels(const float *src, uint32_t n, uint32_t k, fixture_type type, uint8_t **out, float *back)
{
    sq_panels w = {.n = n, .k = k, .type = type.panels, .group = type.group};
    const size_t bytes = sq_panels_bytes(&w);
    uint8_t *panels = checked(aligned_alloc(SQ_PANEL_ALIGN, bytes));
    sq_panels_quantise(&w, src, panels);
    w.data = panels;
    decode_panels(&w, back);
    const sq_panel_header header = {"SQPN", 1, (uint32_t)type.panels, n, k, type.group, {0}};
    *out = checked(malloc(sizeof header + bytes));
    memcpy(*out, &header, sizeof header);
    memcpy(*out + sizeof header, panels, bytes);
    free(panels);
    return sizeof header + bytes;
}

/* Bytes of the encoded matrix, and in `back` the values that they stand for. */
static size_t encode(const float *src, uint32_t n, uint32_t k, fixture_type type, uint8_t **out, float *back)
{
    const size_t count = (size_t)n * k, blocks = count / SQ_BLOCK;
    if (type.tensor == SQ_TENSOR_I8) return encode_panels(src, n, k, type, out, back);
    *out = checked(malloc(count * sizeof(float)));
    switch (type.tensor) {
    case SQ_TENSOR_F16:
        for (size_t i = 0; i < count; i++) {
            ((uint16_t *)(void *)*out)[i] = sq_f32_to_f16(src[i]);
            back[i] = sq_f16_to_f32(((uint16_t *)(void *)*out)[i]);
        }
        return count * sizeof(uint16_t);
    case SQ_TENSOR_Q8_0:
        sq_quantise_q8_0(src, (sq_block_q8_0 *)(void *)*out, blocks);
        sq_dequantise_q8_0((sq_block_q8_0 *)(void *)*out, back, blocks);
        return blocks * sizeof(sq_block_q8_0);
    case SQ_TENSOR_Q4_0:
        sq_quantise_q4_0(src, (sq_block_q4_0 *)(void *)*out, blocks);
        sq_dequantise_q4_0((sq_block_q4_0 *)(void *)*out, back, blocks);
        return blocks * sizeof(sq_block_q4_0);
    default:
        memcpy(*out, src, count * sizeof *src);
        memcpy(back, src, count * sizeof *src);
        return count * sizeof *src;
    }
}

void fixture_encode(fixture *f, const char *name, fixture_type type, bool back)
{
    const tensor t = *need_tensor(f, name);
    const uint32_t k = (uint32_t)t.ne[0], n = (uint32_t)t.ne[1];
    float *kept = checked(malloc((size_t)n * k * sizeof *kept));
    uint8_t *encoded;
    const size_t bytes = encode(fixture_floats(f, name), n, k, type, &encoded, kept);
    const bool flat = type.tensor == SQ_TENSOR_I8;
    if (back)
        fixture_tensor(f, name, 2, t.ne, SQ_TENSOR_F32, kept, (size_t)n * k * sizeof *kept);
    else
        fixture_tensor(f, name, flat ? 1 : 2, flat ? &(uint64_t){bytes} : t.ne, type.tensor, encoded, bytes);
    free(encoded);
    free(kept);
}

void fixture_encode_decoder(fixture *f, fixture_type type, bool back)
{
    static const char *const names[] = {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"};
    for (uint32_t l = 0; l < f->shape.n_layers; l++)
        for (size_t i = 0; i < SQ_COUNT(names); i++) {
            char name[MAX_NAME];
            snprintf(name, sizeof name, "blk.%u.%s.weight", l, names[i]);
            fixture_encode(f, name, type, back);
        }
    fixture_encode(f, "token_embd.weight", type, back);
    if (fixture_has(f, "output.weight")) fixture_encode(f, "output.weight", type, back);
}

/* ---- files ---- */

/* The name without the prefix, in a static buffer; NULL: it has another. */
static const char *name_after(sq_str name, const char *prefix)
{
    static char rest[MAX_NAME];
    const size_t n = strlen(prefix);
    if (name.len < n || memcmp(name.s, prefix, n)) return NULL;
    snprintf(rest, sizeof rest, "%.*s", (int)(name.len - n), name.s + n);
    return rest;
}

static void add_halves(fixture *f, const char *name, const sq_gguf_tensor *t)
{
    const size_t n = t->bytes / sizeof(uint16_t);
    float *const values = checked(malloc(n * sizeof *values));
    for (size_t i = 0; i < n; i++)
        values[i] = sq_f16_to_f32(((const uint16_t *)(const void *)t->data)[i]);
    fixture_tensor(f, name, t->n_dims, t->ne, SQ_TENSOR_F32, values, n * sizeof *values);
    free(values);
}

void fixture_add(fixture *f, const sq_gguf *g, const char *prefix)
{
    for (size_t i = 0; i < sq_gguf_n_keys(g); i++) {
        const sq_gguf_kv *const kv = sq_gguf_key(g, i);
        const char *const name = name_after(kv->key, prefix);
        if (!name) continue;
        size_t bytes = kv->count * sq_gguf_type_bytes(kv->elem_type);
        if (kv->elem_type == SQ_GGUF_STRING) {
            const uint8_t *end = kv->data;
            for (uint64_t s = 0; s < kv->count; s++)
                sq_gguf_next_str(&end);
            bytes = (size_t)(end - kv->data);
        }
        set_key(f, name, kv->type, kv->elem_type, kv->count, kv->data, bytes);
    }
    for (size_t i = 0; i < sq_gguf_n_tensors(g); i++) {
        const sq_gguf_tensor *const t = sq_gguf_tensor_at(g, i);
        const char *const name = name_after(t->name, prefix);
        if (!name) continue;
        if (t->type == SQ_TENSOR_F16)
            add_halves(f, name, t);
        else
            fixture_tensor(f, name, t->n_dims, t->ne, t->type, t->data, t->bytes);
    }
}

fixture *fixture_read(const char *path)
{
    sq_gguf *g;
    squint_msg msg;
    if (sq_gguf_open(&g, path, NULL, &msg)) {
        fprintf(stderr, "%s\n", msg.text);
        abort();
    }
    fixture *f = checked(calloc(1, sizeof *f));
    fixture_add(f, g, "");
    if (sq_gguf_get_u32(g, "llama.block_count", true, &f->shape.n_layers, &msg)) abort();
    if (sq_gguf_get_u32(g, "llama.embedding_length", true, &f->shape.d, &msg)) abort();
    sq_gguf_close(&g);
    return f;
}

fixture *fixture_copy(const fixture *f)
{
    fixture *copy = checked(malloc(sizeof *copy));
    *copy = *f;
    for (size_t i = 0; i < copy->n_keys; i++) {
        copy->keys[i].i.data = NULL;
        fill(&copy->keys[i].i, f->keys[i].i.name, f->keys[i].i.data, f->keys[i].i.bytes);
    }
    for (size_t i = 0; i < copy->n_tensors; i++) {
        copy->tensors[i].i.data = NULL;
        fill(&copy->tensors[i].i, f->tensors[i].i.name, f->tensors[i].i.data, f->tensors[i].i.bytes);
    }
    return copy;
}

void fixture_free(fixture *f)
{
    for (size_t i = 0; i < f->n_keys; i++)
        free(f->keys[i].i.data);
    for (size_t i = 0; i < f->n_tensors; i++)
        free(f->tensors[i].i.data);
    free(f);
}

static sq_str str_of(const char *s) { return (sq_str){s, strlen(s)}; }

void fixture_write(const fixture *f, const char *path)
{
    squint_msg msg;
    sq_gguf_writer *w;
    if (sq_gguf_write_begin(&w, path, 64, NULL, &msg)) goto fail;
    for (size_t i = 0; i < f->n_keys; i++) {
        const key_item *k = &f->keys[i];
        sq_gguf_put_kv(w, &(sq_gguf_kv){str_of(k->i.name), k->type, k->elem_type, k->count, k->i.data, 0});
    }
    for (size_t i = 0; i < f->n_tensors; i++) {
        const tensor *t = &f->tensors[i];
        sq_gguf_put_tensor(w, str_of(t->i.name), t->n_dims, t->ne, t->type);
    }
    for (size_t i = 0; i < f->n_tensors; i++)
        sq_gguf_put_data(w, f->tensors[i].i.data, f->tensors[i].i.bytes);
    if (!sq_gguf_write_end(&w, &msg)) return;
fail:
    fprintf(stderr, "the fixture cannot be written: %s\n", msg.text);
    abort();
}

squint_err fixture_open(squint_model **out, const fixture *f, const squint_model_options *options, squint_msg *msg)
{
    const char *path = temp_path(".gguf");
    fixture_write(f, path);
    const squint_err err = squint_model_open(out, path, options, msg);
    unlink(path);
    return err;
}

squint_model *fixture_model(const fixture *f, const char *isa)
{
    squint_model *m;
    squint_msg msg;
    if (!fixture_open(&m, f, &(squint_model_options){.isa = isa}, &msg)) return m;
    fprintf(stderr, "the fixture does not open: %s\n", msg.text);
    abort();
}

uint8_t *fixture_bytes(const fixture *f, size_t *size)
{
    const char *path = temp_path(".gguf");
    fixture_write(f, path);
    FILE *file = checked(fopen(path, "rb"));
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    uint8_t *data = checked(malloc(*size));
    if (fread(data, 1, *size, file) != *size) abort();
    fclose(file);
    unlink(path);
    return data;
}
