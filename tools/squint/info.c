/*
 * squint info: what is in a model file, and what its routing saves.
 * SPDX-License-Identifier: MIT
 */
#include "models/llava.h"
#include "runtime/tokenizer.h"
#include "tools/squint/cli.h"
#include "tools/squint/tensors.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_STEM = 16, MAX_LAYERS = 4096, MAX_KINDS = 32, MAX_PROMPT_IDS = 1024 };

/* Tensors of one type. */
typedef struct type_sum {
    char name[48];
    size_t n, bytes;
} type_sum;

typedef struct layer_facts {
    bool is_mod;
    float ratio;
    uint32_t rows; /* of the prompt with one image */
    double macs;
    double kv_bytes;
} layer_facts;

typedef struct model_facts {
    const sq_gguf *file;
    sq_str name, architecture, template_name, mod_type, mod_mode, mod_norm;
    float mod_scale, mod_bias, mod_skip;
    uint32_t n_layers, d, f, n_heads, n_kv_heads, n_ctx, n_pieces;
    uint32_t vision_layers, vision_d, image_size, patch_size;
    uint32_t n_vision, n_text; /* tokens of a prompt with one image, of the most tokens, and no words of the user's */
    uint32_t n_parts;          /* images for the tower that such an image becomes */
    uint32_t n_projected;      /* and its patches that become tokens */
    uint32_t n_spared;         /* its vision tokens that no layer skips */
    layer_facts *layers;       /* [n_layers] */
    uint64_t parameters[PART_COUNT];
    type_sum types[MAX_KINDS];
    size_t n_types;
    double weight_bytes[3];                   /* by sq_precision, in the memory of what runs the model */
    double vision_share, kv_share, mac_share; /* of a dense model's */
    double tower_macs;                        /* of one image, projector included */
    double macs, macs_dense;                  /* of the prefill */
    double kv_bytes, kv_bytes_dense;          /* after it */
    bool f32_kv;                              /* else f16 */
    /* What was asked of a device; NULL: nothing. */
    const char *device;
    size_t session_bytes, device_bytes; /* of a session with default options: the program's memory, the device's */
} model_facts;

static const char pinpoints_key[] = SQ_PINPOINTS_KEY;

/* ---- Reading ------------------------------------------------------------------------------- */

/* Bytes of a tensor that runs as it is stored, or as panels of its blocks. */
static double bytes_as_run(const tensor_view *v)
{
    const uint32_t type = v->tensor->type;
    if (v->is_panels) return (double)v->tensor->bytes;
    if (sq_tensor_is_floats(type)) return 4.0 * (double)v->elements;
    return (double)v->elements * ((type == SQ_TENSOR_Q4_0 ? 16 : 32) + 2) / 32;
}

static void add_weights(model_facts *m, const tensor_view *v)
{
    /* Rows of the embedding are looked up, by the program. */
    if (sq_str_eq(v->tensor->name, "token_embd.weight") && sq_gguf_find(m->file, "output.weight")) return;
    m->weight_bytes[SQ_PRECISION_FILE] += bytes_as_run(v);
    m->weight_bytes[SQ_PRECISION_F32] += 4.0 * (double)v->elements;
    m->weight_bytes[SQ_PRECISION_F16] += 2.0 * (double)v->elements;
}

static squint_err count_tensors(model_facts *m, squint_msg *msg)
{
    for (size_t i = 0; i < sq_gguf_n_tensors(m->file); i++) {
        tensor_view v;
        char type[sizeof m->types->name];
        const squint_err err = tensor_view_open(&v, m->file, sq_gguf_tensor_at(m->file, i), msg);
        if (err) return err;
        m->parameters[tensor_part(v.tensor->name)] += v.elements;
        add_weights(m, &v);
        tensor_type_text(&v, type, sizeof type);
        size_t at = 0;
        while (at < m->n_types && strcmp(m->types[at].name, type))
            at++;
        if (at == MAX_KINDS) continue; /* more group sizes than anyone mixes */
        if (at == m->n_types) memcpy(m->types[m->n_types++].name, type, sizeof type);
        m->types[at].n++;
        m->types[at].bytes += v.tensor->bytes;
    }
    return SQUINT_OK;
}

/* A number of the decoder's, under the key that its architecture's name begins. */
static squint_err get_shape(const model_facts *m, const char *what, uint32_t *out, squint_msg *msg)
{
    char key[192];
    snprintf(key, sizeof key, "%.*s.%s", (int)(m->architecture.len < 64 ? m->architecture.len : 64),
             m->architecture.s ? m->architecture.s : "", what);
    return sq_gguf_get_u32(m->file, key, false, out, msg);
}

static squint_err read_names(model_facts *m, squint_msg *msg)
{
    squint_err err;
    if ((err = sq_gguf_get_str(m->file, "general.name", false, &m->name, msg))) return err;
    if ((err = sq_gguf_get_str(m->file, "general.architecture", false, &m->architecture, msg))) return err;
    return sq_gguf_get_str(m->file, "squint.chat.template", false, &m->template_name, msg);
}

static squint_err read_shapes(model_facts *m, squint_msg *msg)
{
    squint_err err;
    if ((err = get_shape(m, "block_count", &m->n_layers, msg))) return err;
    if ((err = get_shape(m, "embedding_length", &m->d, msg))) return err;
    if ((err = get_shape(m, "feed_forward_length", &m->f, msg))) return err;
    if ((err = get_shape(m, "context_length", &m->n_ctx, msg))) return err;
    if ((err = get_shape(m, "attention.head_count", &m->n_heads, msg))) return err;
    m->n_kv_heads = m->n_heads;
    if ((err = get_shape(m, "attention.head_count_kv", &m->n_kv_heads, msg))) return err;
    if (m->n_layers <= MAX_LAYERS) return SQUINT_OK;
    snprintf(msg->text, sizeof msg->text, "%.300s: %u layers; a model has at most %d", sq_gguf_path(m->file),
             m->n_layers, MAX_LAYERS);
    return SQUINT_ERR_FORMAT;
}

static bool has_word(const sq_gguf *g, const char *key, const char *word)
{
    sq_str s;
    return sq_gguf_find_key(g, key) && !sq_gguf_get_str(g, key, true, &s, NULL) && sq_str_eq(s, word);
}

/* As models/vision.c has it. */
static bool is_tiled(const sq_gguf *g)
{
    if (sq_gguf_find_key(g, "squint.vision.type")) return has_word(g, "squint.vision.type", "clip_anyres");
    const char *const aspect = "clip.vision.image_aspect_ratio";
    return sq_gguf_find_key(g, pinpoints_key) && (!sq_gguf_find_key(g, aspect) || has_word(g, aspect, "anyres"));
}

/* The image of the most tokens: the one whose canvas has them. */
static squint_err read_tiles(model_facts *m, squint_msg *msg)
{
    const sq_gguf_kv *const kv = sq_gguf_find_key(m->file, pinpoints_key);
    const uint32_t patches = m->n_vision;
    uint32_t sides[2 * SQ_MAX_PINPOINTS], unit = 0, shrink_to = 0;
    while (unit * unit < patches)
        unit++;
    if (!kv || !kv->count || kv->count % 2 || kv->count > SQ_COUNT(sides) || !m->image_size || unit * unit != patches)
        return SQUINT_OK; /* a file that does not load */
    squint_err err = sq_gguf_get_u32s(m->file, pinpoints_key, true, sides, kv->count, msg);
    if (!err) err = sq_gguf_get_u32(m->file, "squint.vision.max_num_patches", false, &shrink_to, msg);
    for (size_t i = 0; !err && i < kv->count; i += 2) {
        const sq_size canvas = {sides[i] / m->image_size, sides[i + 1] / m->image_size};
        if ((uint64_t)canvas.w * canvas.h > SQ_MAX_TILES) continue;
        const uint32_t tokens = patches + sq_tiles_most_tokens(&canvas, 1, unit, (double)shrink_to * patches);
        if (tokens <= m->n_vision) continue;
        m->n_vision = tokens;
        m->n_parts = 1 + canvas.w * canvas.h;
        m->n_projected = m->n_parts * patches;
        m->n_spared = has_word(m->file, "mod.target", "vision_hr") ? patches : 0;
    }
    return err;
}

/* Mini-Gemini: crops of the picture, and all of it. */
static squint_err read_crops(model_facts *m, squint_msg *msg)
{
    uint32_t grid = 1;
    bool whole = false;
    squint_err err = sq_gguf_get_u32(m->file, "squint.vision.grid", false, &grid, msg);
    if (!err) err = sq_gguf_get_bool(m->file, "squint.vision.global", false, &whole, msg);
    if (err || grid > SQ_MAX_TILES) return err;
    m->n_parts = grid * grid + whole;
    m->n_vision *= m->n_parts;
    m->n_projected = m->n_vision;
    return SQUINT_OK;
}

static squint_err read_vision(model_facts *m, squint_msg *msg)
{
    squint_err err;
    if ((err = sq_gguf_get_u32(m->file, "clip.vision.block_count", false, &m->vision_layers, msg))) return err;
    if ((err = sq_gguf_get_u32(m->file, "clip.vision.embedding_length", false, &m->vision_d, msg))) return err;
    if ((err = sq_gguf_get_u32(m->file, "clip.vision.image_size", false, &m->image_size, msg))) return err;
    if ((err = sq_gguf_get_u32(m->file, "clip.vision.patch_size", false, &m->patch_size, msg))) return err;
    const sq_gguf_tensor *positions = sq_gguf_find(m->file, "v.position_embd.weight");
    if (positions) m->n_vision = (uint32_t)positions->ne[1] - !!sq_gguf_find(m->file, "v.class_embd");
    m->n_parts = 1;
    m->n_projected = m->n_vision;
    if (is_tiled(m->file) && m->n_vision) return read_tiles(m, msg);
    return has_word(m->file, "squint.vision.type", "mgm") ? read_crops(m, msg) : SQUINT_OK;
}

static bool keeps_ratios(const model_facts *m) { return sq_str_eq(m->mod_type, "pmod"); }

static bool keeps_a_share(const model_facts *m) { return sq_str_eq(m->mod_mode, "gamma-paper"); }

/* Elsewhere the scores decide how many tokens a layer keeps. */
static bool has_counts(const model_facts *m)
{
    return !m->mod_type.len || keeps_ratios(m) || keeps_a_share(m) || sq_str_eq(m->mod_mode, "dense");
}

static squint_err read_routing(model_facts *m, squint_msg *msg)
{
    float *ratios = cli_alloc(m->n_layers, sizeof *ratios);
    for (uint32_t l = 0; l < m->n_layers; l++)
        ratios[l] = 1;
    bool *is_mod = cli_alloc(m->n_layers, sizeof *is_mod);
    squint_err err = sq_gguf_get_str(m->file, "mod.type", false, &m->mod_type, msg);
    if (!err && m->mod_type.len) {
        m->mod_mode = m->mod_type;
        err = sq_gguf_get_bools(m->file, "mod.layer_is_mod", true, is_mod, m->n_layers, msg);
        if (!err) err = sq_gguf_get_f32s(m->file, "mod.layer_ratio", keeps_ratios(m), ratios, m->n_layers, msg);
        if (!err) err = sq_gguf_get_str(m->file, "mod.mode", false, &m->mod_mode, msg);
        if (!err) err = sq_gguf_get_str(m->file, "mod.norm.type", false, &m->mod_norm, msg);
        if (!err) err = sq_gguf_get_f32(m->file, "mod.norm.scale", false, &m->mod_scale, msg);
        if (!err) err = sq_gguf_get_f32(m->file, "mod.norm.bias", false, &m->mod_bias, msg);
        if (!err) err = sq_gguf_get_f32(m->file, "mod.capacity.skip_ratio", false, &m->mod_skip, msg);
    }
    m->layers = cli_alloc(m->n_layers, sizeof *m->layers);
    for (uint32_t l = 0; l < m->n_layers; l++) {
        const bool routed = is_mod[l] && !sq_str_eq(m->mod_mode, "dense");
        m->layers[l] = (layer_facts){.is_mod = routed, .ratio = routed ? ratios[l] : 1};
    }
    free(ratios);
    free(is_mod);
    return err;
}

/* What a prompt has beside the image: the template's words, BOS included. */
static squint_err read_prompt(model_facts *m, squint_msg *msg)
{
    sq_tokenizer *t = NULL;
    const squint_allocator a = sq_allocator_or_default(NULL);
    const size_t scratch_bytes = sq_prompt_scratch(0);
    uint32_t ids[MAX_PROMPT_IDS];
    size_t n = 0;
    if (!sq_gguf_find_key(m->file, "tokenizer.ggml.tokens")) return SQUINT_OK;
    squint_err err = sq_tokenizer_open(&t, m->file, &a, msg);
    if (err) return err;
    m->n_pieces = sq_tokenizer_size(t);
    if (!m->template_name.len) m->template_name = (sq_str){"vicuna_v1", 9};
    void *scratch = cli_alloc(scratch_bytes, 1);
    err = sq_prompt_ids(t, m->template_name, NULL, scratch, scratch_bytes, ids, MAX_PROMPT_IDS, &n, msg);
    free(scratch);
    sq_tokenizer_close(&t);
    m->n_text = n ? (uint32_t)n - 1 : 0;
    return err;
}

/* ---- What an image costs ------------------------------------------------------------------- */

static double elements_of(const sq_gguf *g, const char *name)
{
    const sq_gguf_tensor *t = sq_gguf_find(g, name);
    tensor_view v;
    squint_msg msg;
    return t && !tensor_view_open(&v, g, t, &msg) ? (double)v.elements : 0;
}

/* A convolution of 3 x 3 with a border of one pixel makes maps of `side`. */
static double stem_macs(const model_facts *m)
{
    static const char key[] = "squint.vision.stem.strides";
    uint32_t strides[MAX_STEM] = {0}, side = m->image_size;
    const sq_gguf_kv *const kv = sq_gguf_find_key(m->file, key);
    double macs = 0;
    if (!kv || kv->count > MAX_STEM || sq_gguf_get_u32s(m->file, key, true, strides, kv->count, NULL)) return 0;
    for (uint32_t i = 0; i < kv->count && strides[i] && side; i++) {
        char name[32];
        snprintf(name, sizeof name, "v.stem.%u.weight", i);
        side = (side - 1) / strides[i] + 1;
        macs += (double)side * side * elements_of(m->file, name);
    }
    return macs;
}

static bool begins(sq_str name, const char *with)
{
    return name.len >= strlen(with) && !memcmp(name.s, with, strlen(with));
}

static bool contains(sq_str name, const char *part)
{
    const size_t n = strlen(part);
    for (size_t i = 0; i + n <= name.len; i++)
        if (!memcmp(name.s + i, part, n)) return true;
    return false;
}

/* Places that a weight of the second tower, or of what joins the towers, is multiplied with. */
static double places_of(const model_facts *m, sq_str name, double side)
{
    const double patches = (double)m->n_vision / m->n_parts;
    if (contains(name, ".norm.") || contains(name, ".bias")) return 0;
    if (begins(name, "v.slow.stem.")) return side / 4 * side / 4;
    if (begins(name, "v.slow.stg.") && name.len > 11) {
        const double map = side / (4 << ((name.s[11] - '0') & 3));
        return map * map;
    }
    if (begins(name, "v.hr.")) {
        if (contains(name, ".gate.")) return 1;
        return contains(name, "slow") ? side / 32 * side / 32 : patches;
    }
    return begins(name, "mm.uni.") ? m->n_vision : 0;
}

/* LLaVA-HR's and Mini-Gemini's. */
static squint_err second_tower_macs(const model_facts *m, double *macs, squint_msg *msg)
{
    uint32_t side = m->image_size, grid = 1;
    squint_err err = sq_gguf_get_u32(m->file, "squint.vision.input_size", false, &side, msg);
    if (!err) err = sq_gguf_get_u32(m->file, "squint.vision.grid", false, &grid, msg);
    *macs = 0;
    for (size_t i = 0; !err && i < sq_gguf_n_tensors(m->file); i++) {
        tensor_view v;
        err = tensor_view_open(&v, m->file, sq_gguf_tensor_at(m->file, i), msg);
        if (!err) *macs += (double)v.elements * places_of(m, v.tensor->name, side);
    }
    const sq_gguf_tensor *const keys = sq_gguf_find(m->file, "mm.uni.k.norm.weight");
    /* Each token has as many places of the second tower's largest map as any, and weighs them twice. */
    if (!err && keys) *macs += 2.0 * (double)keys->ne[0] * side / 4 * side / 4 * m->n_parts / (grid * grid);
    return err;
}

static squint_err estimate_tower(model_facts *m, squint_msg *msg)
{
    uint32_t f = 0, layers = 0;
    double second = 0;
    squint_err err = sq_gguf_get_u32(m->file, "clip.vision.feed_forward_length", false, &f, msg);
    if (!err) err = sq_vit_layers_run(m->file, m->vision_layers, &layers, msg);
    const sq_gguf_tensor *const positions = sq_gguf_find(m->file, "v.position_embd.weight");
    if (err || !positions || !m->n_vision) return err;
    const double n = (double)positions->ne[1], d = m->vision_d, patches = n - !!sq_gguf_find(m->file, "v.class_embd");
    const double image = stem_macs(m) + patches * elements_of(m->file, "v.patch_embd.weight") +
                         layers * (n * d * (4 * d + 2.0 * f) + 2 * n * n * d);
    const double token = elements_of(m->file, "mm.0.weight") + elements_of(m->file, "mm.2.weight");
    if ((err = second_tower_macs(m, &second, msg))) return err;
    m->tower_macs = m->n_parts * image + m->n_projected * token + second;
    return SQUINT_OK;
}

static double kv_width(const model_facts *m) { return m->n_heads ? (double)m->d * m->n_kv_heads / m->n_heads : 0; }

/* Multiply-adds of a layer over m rows, attention counted causally, as the engine counts them. */
static double layer_macs(const model_facts *m, double rows)
{
    return rows * m->d * (2.0 * m->d + 2 * kv_width(m) + 3.0 * m->f) + rows * (rows + 1) * m->d;
}

/* spec 3.4: the product in binary32 */
static uint32_t kept_of(const model_facts *m, const layer_facts *layer)
{
    const float n = (float)m->n_vision, share = layer->ratio * (n - (float)m->n_spared), skipped = m->mod_skip * n;
    if (layer->is_mod && keeps_a_share(m) && m->mod_skip >= 0 && m->mod_skip <= 1)
        return m->n_vision - (uint32_t)skipped;
    return layer->ratio >= 0 && layer->ratio < 1 ? m->n_spared + (uint32_t)share : m->n_vision;
}

static void estimate(model_facts *m)
{
    const sq_gguf_tensor *q = sq_gguf_find(m->file, "blk.0.attn_q.weight");
    m->f32_kv = q && (q->type == SQ_TENSOR_F32 || q->type == SQ_TENSOR_F16); /* F16 is expanded */
    const double dense_rows = (double)m->n_vision + m->n_text, entry = 2 * kv_width(m) * (m->f32_kv ? 4 : 2);
    double vision = 0;
    for (uint32_t l = 0; l < m->n_layers; l++) {
        layer_facts *const layer = &m->layers[l];
        const uint32_t kept = kept_of(m, layer);
        layer->rows = kept + m->n_text;
        layer->macs = layer_macs(m, layer->rows);
        layer->kv_bytes = layer->rows * entry;
        vision += kept;
        m->macs += layer->macs;
        m->kv_bytes += layer->kv_bytes;
    }
    if (!m->n_layers || !m->n_vision || !m->d) return;
    m->macs_dense = m->n_layers * layer_macs(m, dense_rows);
    m->kv_bytes_dense = m->n_layers * dense_rows * entry;
    m->vision_share = vision / m->n_layers / m->n_vision;
    m->kv_share = m->kv_bytes / m->kv_bytes_dense;
    m->mac_share = m->macs / m->macs_dense;
}

static squint_err read_facts(model_facts *m, const sq_gguf *file, squint_msg *msg)
{
    squint_err err;
    m->file = file;
    if ((err = read_names(m, msg))) return err;
    if ((err = read_shapes(m, msg))) return err;
    if ((err = read_vision(m, msg))) return err;
    if ((err = read_routing(m, msg))) return err;
    if ((err = read_prompt(m, msg))) return err;
    if ((err = count_tensors(m, msg))) return err;
    estimate(m);
    return estimate_tower(m, msg);
}

/* ---- As text ------------------------------------------------------------------------------- */

/* Text of a file on a terminal: no control characters. */
static void put_str(sq_str s, const char *otherwise)
{
    if (!s.len) fputs(otherwise, stdout);
    for (size_t i = 0; i < s.len; i++)
        putchar((unsigned char)s.s[i] < 0x20 || s.s[i] == 0x7F ? '?' : s.s[i]);
}

static void print_parameters(const model_facts *m)
{
    char text[32];
    double total = 0;
    printf("parameters    ");
    for (int part = 0; part < PART_COUNT; part++) {
        total += (double)m->parameters[part];
        printf("%s %s, ", part_names[part], cli_short_count((double)m->parameters[part], text));
    }
    printf("together %s\n", cli_short_count(total, text));
}

static void print_types(const model_facts *m)
{
    char text[32];
    for (size_t i = 0; i < m->n_types; i++)
        printf("%s%zu tensors of %s, %s\n", i ? "              " : "tensors       ", m->types[i].n, m->types[i].name,
               cli_short_bytes((double)m->types[i].bytes, text));
}

static void print_memory(const model_facts *m)
{
    char text[3][32];
    printf("in memory     weights %s; with --device NAME:f16 %s, :f32 %s\n",
           cli_short_bytes(m->weight_bytes[SQ_PRECISION_FILE], text[0]),
           cli_short_bytes(m->weight_bytes[SQ_PRECISION_F16], text[1]),
           cli_short_bytes(m->weight_bytes[SQ_PRECISION_F32], text[2]));
    if (!m->device) return;
    printf("on            %s: a session takes %s", m->device, cli_short_bytes((double)m->session_bytes, text[0]));
    if (m->device_bytes) printf(" here and %s there", cli_short_bytes((double)m->device_bytes, text[1]));
    putchar('\n');
}

static void print_layers(const model_facts *m)
{
    char macs[32], kv[32];
    printf("\n  layer  ratio   vision tokens  multiply-adds  keys and values\n");
    for (uint32_t l = 0; l < m->n_layers; l++) {
        const layer_facts *const layer = &m->layers[l];
        char ratio[32] = "dense";
        if (layer->is_mod) snprintf(ratio, sizeof ratio, "%.4f", (double)(layer->rows - m->n_text) / m->n_vision);
        if (layer->is_mod && keeps_ratios(m)) snprintf(ratio, sizeof ratio, "%.4f", (double)layer->ratio);
        printf("  %5u  %-6s  %6u of %-4u  %13s  %15s\n", l, ratio, layer->rows - m->n_text, m->n_vision,
               cli_short_count(layer->macs, macs), cli_short_bytes(layer->kv_bytes, kv));
    }
}

static void print_routing(const model_facts *m)
{
    uint32_t n_mod = 0;
    for (uint32_t l = 0; l < m->n_layers; l++)
        n_mod += m->layers[l].is_mod;
    printf("routing       ");
    put_str(m->mod_mode, "");
    printf(", %u of %u layers", n_mod, m->n_layers);
    if (keeps_ratios(m)) {
        printf(", weight %g ", (double)m->mod_scale);
        put_str(m->mod_norm, "none");
        printf("(score) + %g", (double)m->mod_bias);
    }
    puts(has_counts(m) ? "" : "; the scores decide how many tokens these keep");
    if (has_counts(m) && m->n_vision) print_layers(m);
}

static bool has_tiles(const model_facts *m) { return m->n_parts > 1 && is_tiled(m->file); }

static void print_cost(const model_facts *m)
{
    char done[32], dense[32];
    const char *const most = has_counts(m) ? "" : "at most ";
    if (!m->macs_dense) return;
    printf("\n%s and %u tokens of text take, keys and values as %s:\n",
           has_tiles(m) ? "An image of the most tokens" : "One image", m->n_text, m->f32_kv ? "f32" : "f16");
    printf("  tower                  %s multiply-adds\n", cli_short_count(m->tower_macs, done));
    printf("  prefill                %s%s", most, cli_short_count(m->macs, done));
    if (m->mac_share < 1) printf(" of a dense model's %s", cli_short_count(m->macs_dense, dense));
    printf(" multiply-adds");
    if (m->mac_share < 1) printf(", %.1f %%", 100 * m->mac_share);
    printf("\n  keys and values        %s%s", most, cli_short_bytes(m->kv_bytes, done));
    if (m->kv_share < 1) printf(" of %s, %.1f %%", cli_short_bytes(m->kv_bytes_dense, dense), 100 * m->kv_share);
    printf("\n  vision tokens          %s%.1f %% a layer\n", most, 100 * m->vision_share);
}

static void print_text(const model_facts *m)
{
    char text[32];
    printf("name          ");
    put_str(m->name, "(none)");
    printf("\nfile          %s, %s\n", sq_gguf_path(m->file), cli_short_bytes((double)sq_gguf_size(m->file), text));
    const sq_gguf *const vision = sq_gguf_vision(m->file);
    if (vision)
        printf("mmproj        %s, %s\n", sq_gguf_path(vision), cli_short_bytes((double)sq_gguf_size(vision), text));
    printf("architecture  ");
    put_str(m->architecture, "(none)");
    printf("\ndecoder       %u layers, width %u, inner %u, %u heads (%u of keys), context %u\n", m->n_layers, m->d,
           m->f, m->n_heads, m->n_kv_heads, m->n_ctx);
    if (m->vision_layers)
        printf("tower         %u layers, width %u, image %u x %u, patch %u: %s%u vision tokens\n", m->vision_layers,
               m->vision_d, m->image_size, m->image_size, m->patch_size, has_tiles(m) ? "at most " : "", m->n_vision);
    if (m->n_parts > 1)
        printf("pictures      as %s%u images, one after another\n", has_tiles(m) ? "up to " : "", m->n_parts);
    printf("tokenizer     %u pieces, template ", m->n_pieces);
    put_str(m->template_name, "(none)");
    putchar('\n');
    print_parameters(m);
    print_types(m);
    print_memory(m);
    if (m->mod_type.len) print_routing(m);
    print_cost(m);
}

static squint_err print_tensors(const sq_gguf *g, squint_msg *msg)
{
    for (size_t i = 0; i < sq_gguf_n_tensors(g); i++) {
        tensor_view v;
        char type[48], shape[96];
        const squint_err err = tensor_view_open(&v, g, sq_gguf_tensor_at(g, i), msg);
        if (err) return err;
        tensor_type_text(&v, type, sizeof type);
        tensor_shape_text(&v, shape, sizeof shape);
        printf("%-24s %-22s %10zu bytes at %-10zu ", type, shape, v.tensor->bytes, v.tensor->file_pos);
        put_str(v.tensor->name, "");
        putchar('\n');
    }
    return SQUINT_OK;
}

/* ---- As JSON ------------------------------------------------------------------------------- */

static void add_str(cJSON *object, const char *key, sq_str s)
{
    if (s.len) cJSON_AddItemToObject(object, key, cli_json_text(s.s, s.len));
}

static cJSON *layers_json(const model_facts *m)
{
    cJSON *array = cJSON_CreateArray();
    for (uint32_t l = 0; l < m->n_layers; l++) {
        cJSON *layer = cJSON_CreateObject();
        cJSON_AddBoolToObject(layer, "mod", m->layers[l].is_mod);
        cli_json_number(layer, "ratio", (double)m->layers[l].ratio, 6);
        cJSON_AddNumberToObject(layer, "vision_tokens", m->layers[l].rows - m->n_text);
        if (has_counts(m)) cJSON_AddNumberToObject(layer, "macs", m->layers[l].macs);
        if (has_counts(m)) cJSON_AddNumberToObject(layer, "kv_bytes", m->layers[l].kv_bytes);
        cJSON_AddItemToArray(array, layer);
    }
    return array;
}

static cJSON *types_json(const model_facts *m)
{
    cJSON *array = cJSON_CreateArray();
    for (size_t i = 0; i < m->n_types; i++) {
        cJSON *type = cJSON_CreateObject();
        cJSON_AddStringToObject(type, "type", m->types[i].name);
        cJSON_AddNumberToObject(type, "tensors", (double)m->types[i].n);
        cJSON_AddNumberToObject(type, "bytes", (double)m->types[i].bytes);
        cJSON_AddItemToArray(array, type);
    }
    return array;
}

static cJSON *memory_json(const model_facts *m)
{
    cJSON *json = cJSON_CreateObject();
    cli_json_number(json, "file", m->weight_bytes[SQ_PRECISION_FILE], 0);
    cli_json_number(json, "f32", m->weight_bytes[SQ_PRECISION_F32], 0);
    cli_json_number(json, "f16", m->weight_bytes[SQ_PRECISION_F16], 0);
    return json;
}

static cJSON *tensors_json(const sq_gguf *g, squint_err *err, squint_msg *msg)
{
    cJSON *array = cJSON_CreateArray();
    for (size_t i = 0; !*err && i < sq_gguf_n_tensors(g); i++) {
        tensor_view v;
        char type[48];
        if ((*err = tensor_view_open(&v, g, sq_gguf_tensor_at(g, i), msg))) break;
        tensor_type_text(&v, type, sizeof type);
        cJSON *tensor = cJSON_CreateObject(), *shape = cJSON_CreateArray();
        add_str(tensor, "name", v.tensor->name);
        cJSON_AddStringToObject(tensor, "type", type);
        for (uint32_t d = 0; d < v.n_dims; d++)
            cJSON_AddItemToArray(shape, cJSON_CreateNumber((double)v.ne[d]));
        cJSON_AddItemToObject(tensor, "shape", shape);
        cJSON_AddNumberToObject(tensor, "bytes", (double)v.tensor->bytes);
        cJSON_AddNumberToObject(tensor, "at", (double)v.tensor->file_pos);
        cJSON_AddItemToArray(array, tensor);
    }
    return array;
}

static cJSON *facts_json(const model_facts *m)
{
    cJSON *json = cJSON_CreateObject(), *parameters = cJSON_CreateObject();
    const char *path = sq_gguf_path(m->file);
    const sq_gguf *const vision = sq_gguf_vision(m->file);
    const struct {
        const char *key;
        uint32_t value;
    } numbers[] = {
        {"layers", m->n_layers},
        {"width", m->d},
        {"inner", m->f},
        {"heads", m->n_heads},
        {"kv_heads", m->n_kv_heads},
        {"context", m->n_ctx},
        {"pieces", m->n_pieces},
        {"vision_layers", m->vision_layers},
        {"vision_width", m->vision_d},
        {"image_size", m->image_size},
        {"patch_size", m->patch_size},
        {"vision_tokens", m->n_vision},
        {"text_tokens", m->n_text},
    };
    add_str(json, "name", m->name);
    cJSON_AddItemToObject(json, "file", cli_json_text(path, strlen(path)));
    cJSON_AddNumberToObject(json, "bytes", (double)sq_gguf_size(m->file));
    if (vision)
        cJSON_AddItemToObject(json, "mmproj", cli_json_text(sq_gguf_path(vision), strlen(sq_gguf_path(vision))));
    add_str(json, "architecture", m->architecture);
    add_str(json, "template", m->template_name);
    for (size_t i = 0; i < SQ_COUNT(numbers); i++)
        cJSON_AddNumberToObject(json, numbers[i].key, numbers[i].value);
    for (int part = 0; part < PART_COUNT; part++)
        cJSON_AddNumberToObject(parameters, part_names[part], (double)m->parameters[part]);
    cJSON_AddItemToObject(json, "parameters", parameters);
    cJSON_AddItemToObject(json, "types", types_json(m));
    cJSON_AddItemToObject(json, "weight_bytes", memory_json(m));
    if (m->device) {
        cJSON_AddStringToObject(json, "device", m->device);
        cJSON_AddNumberToObject(json, "session_bytes", (double)m->session_bytes);
        cJSON_AddNumberToObject(json, "session_device_bytes", (double)m->device_bytes);
    }
    add_str(json, "mod_type", m->mod_type);
    add_str(json, "mod_mode", m->mod_mode);
    cJSON_AddItemToObject(json, "layer", layers_json(m));
    cJSON_AddNumberToObject(json, "tower_macs", m->tower_macs);
    cJSON_AddNumberToObject(json, "macs_dense", m->macs_dense);
    cJSON_AddStringToObject(json, "kv", m->f32_kv ? "f32" : "f16");
    cJSON_AddNumberToObject(json, "kv_bytes_dense", m->kv_bytes_dense);
    if (!has_counts(m)) return json;
    cJSON_AddNumberToObject(json, "macs", m->macs);
    cJSON_AddNumberToObject(json, "kv_bytes", m->kv_bytes);
    cli_json_number(json, "vision_share", m->vision_share, 6);
    cli_json_number(json, "kv_share", m->kv_share, 6);
    cli_json_number(json, "mac_share", m->mac_share, 6);
    return json;
}

/* ---- The command --------------------------------------------------------------------------- */

static squint_err print_info(const sq_gguf *g, const squint_model *model, bool tensors, bool json, squint_msg *msg)
{
    model_facts m = {0};
    squint_err err = read_facts(&m, g, msg);
    if (model) {
        m.device = squint_model_device(model);
        m.session_bytes = squint_session_bytes(model, NULL);
        m.device_bytes = squint_session_device_bytes(model, NULL);
    }
    if (!err && json) {
        cJSON *facts = facts_json(&m);
        if (tensors) cJSON_AddItemToObject(facts, "tensors", tensors_json(g, &err, msg));
        if (err)
            cJSON_Delete(facts);
        else
            cli_json_line(stdout, facts);
    } else if (!err && tensors) {
        err = print_tensors(g, msg);
    } else if (!err) {
        print_text(&m);
    }
    free(m.layers);
    return err;
}

static int run(const cli_command *self, int argc, char **argv)
{
    bool tensors = false, json = false;
    squint_model_options model_options = {.on_note = cli_note};
    const cli_option options[] = {
        CLI_ROW_MMPROJ(&model_options.mmproj),
        CLI_ROW_TEXT(0, "device", &model_options.device, "NAME",
                     "open the model on it, and tell what memory a session takes: cpu, cpu:f32, cuda, cuda:f32, "
                     "cuda:f16 (default: the model is not opened)"),
        CLI_ROW_FLAG('t', "tensors", &tensors, "list the tensors: type, shape as a matrix, place, name"),
        CLI_ROW_FLAG(0, "json", &json, "one JSON object instead"),
        CLI_ROW_END,
    };
    int first, status;
    if (!cli_parse(self, options, argc, argv, &first, &status)) return status;
    if (argc - first > 1) return cli_misuse(self, "info: one model at a time");
    const char *path = cli_model_path(first < argc ? argv[first] : NULL);
    if (!path) return CLI_MISUSED;
    sq_gguf *g = NULL;
    squint_model *model = NULL;
    squint_msg msg;
    squint_err err = sq_gguf_open_pair(&g, path, model_options.mmproj, NULL, &msg);
    if (!err && model_options.device) err = squint_model_open(&model, path, &model_options, &msg);
    if (!err) err = print_info(g, model, tensors, json, &msg);
    squint_model_close(&model);
    sq_gguf_close(&g);
    if (err) return cli_fail(err, &msg);
    return cli_flush() ? CLI_DONE : CLI_FAILED;
}

const cli_command info_command = {
    .name = "info",
    .operands = "[MODEL]",
    .summary = "tell what is in a model file",
    .details = "Prints shapes, parameters, types of tensors, how many vision tokens each layer runs, and what one\n"
               "image takes: multiply-adds of tower and prefill, bytes of keys and values, and a dense model's.\n"
               "A device's memory takes the weights once and a session's own for each picture at a time; what a\n"
               "prefill needs meanwhile comes on top, a few hundred MiB for a large model.\n"
               "Without MODEL: the one that caption uses.",
    .run = run,
};
