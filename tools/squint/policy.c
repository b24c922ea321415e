/*
 * Precision of tensors: who gets what, and the bytes that this takes.
 * SPDX-License-Identifier: MIT
 */
#include "tools/squint/policy.h"

#include "tools/squint/tensors.h"

const char *const tensor_class_names[CLASS_COUNT] = {"decoder", "embedding", "vision", "exact"};

/* clang-format off */

/* The first pattern that matches decides. A tensor of other than two dimensions is always exact: norms and biases. */
static const struct {
    const char *pattern;
    tensor_class class;
} class_rules[] = {
    {"*mod_router*",      CLASS_EXACT},     /* a rounded score keeps other tokens */
    {"v.patch_embd*",     CLASS_EXACT},     /* convolutions run in float */
    {"v.stem*",           CLASS_EXACT},
    {"v.position_embd*",  CLASS_EXACT},
    {"v.class_embd",      CLASS_EXACT},
    {"v.hr.*.gate.*",     CLASS_EXACT},     /* a number for the whole picture hangs on it */
    {"token_embd.weight", CLASS_EMBEDDING},
    {"output.weight",     CLASS_EMBEDDING},
    {"blk.*.weight",      CLASS_DECODER},
    {"v.*.weight",        CLASS_TOWER},
    {"mm.*.weight",       CLASS_TOWER},
};

/* Embeddings, read a row a token, stay at 8 bits; so does what sees. */
const weight_policy weight_policies[WEIGHT_POLICIES] = {
    /*        decoder      embedding    vision       exact */
    {"q8",   {WEIGHT_I8,   WEIGHT_I8,   WEIGHT_I8,   WEIGHT_F32}, NO_FILE_TYPE},
    {"q4",   {WEIGHT_I4,   WEIGHT_I8,   WEIGHT_I8,   WEIGHT_F32}, NO_FILE_TYPE},
    {"q8_0", {WEIGHT_Q8_0, WEIGHT_Q8_0, WEIGHT_Q8_0, WEIGHT_F32}, 7},
    {"q4_0", {WEIGHT_Q4_0, WEIGHT_Q8_0, WEIGHT_Q8_0, WEIGHT_F32}, 2},
    {"f16",  {WEIGHT_F16,  WEIGHT_F16,  WEIGHT_F16,  WEIGHT_F32}, 1},
    {"f32",  {WEIGHT_F32,  WEIGHT_F32,  WEIGHT_F32,  WEIGHT_F32}, 0},
};

/* clang-format on */

const char *const weight_policy_words[] = {"q8", "q4", "q8_0", "q4_0", "f16", "f32", NULL};
static_assert(SQ_COUNT(weight_policy_words) == WEIGHT_POLICIES + 1, "a word for each policy");

tensor_class tensor_class_of(sq_str name, uint32_t n_dims)
{
    if (n_dims != 2) return CLASS_EXACT;
    for (size_t i = 0; i < SQ_COUNT(class_rules); i++)
        if (name_matches(name, class_rules[i].pattern)) return class_rules[i].class;
    return CLASS_EXACT;
}

bool weight_is_panels(weight_type type) { return type == WEIGHT_I8 || type == WEIGHT_I4; }
bool stored_is_panels(const stored_tensor *s) { return weight_is_panels(s->type); }

uint32_t stored_gguf_type(const stored_tensor *s)
{
    static const uint32_t types[] = {
        [WEIGHT_F32] = SQ_TENSOR_F32,   [WEIGHT_F16] = SQ_TENSOR_F16, [WEIGHT_Q8_0] = SQ_TENSOR_Q8_0,
        [WEIGHT_Q4_0] = SQ_TENSOR_Q4_0, [WEIGHT_I8] = SQ_TENSOR_I8,   [WEIGHT_I4] = SQ_TENSOR_I8};
    return types[s->type];
}

bool stored_plan(stored_tensor *s, weight_type wanted, const uint64_t ne[SQ_GGUF_MAX_DIMS], uint32_t group)
{
    *s = (stored_tensor){.type = wanted, .k = ne[0], .n = ne[1] * ne[2] * ne[3]};
    if ((s->type == WEIGHT_Q8_0 || s->type == WEIGHT_Q4_0) && s->k % SQ_BLOCK) s->type = WEIGHT_F16;
    if (!stored_is_panels(s)) return sq_tensor_bytes(stored_gguf_type(s), ne, &s->bytes);
    const bool i4 = s->type == WEIGHT_I4;
    s->panels = (sq_panels){NULL, (uint32_t)s->n, (uint32_t)s->k, i4 ? SQ_PANEL_I4 : SQ_PANEL_I8, i4 ? group : 0};
    if (s->n > SQ_MAX_DIM || s->k > SQ_MAX_K || !sq_panels_valid(&s->panels)) return false;
    s->bytes = sizeof(sq_panel_header) + sq_panels_bytes(&s->panels);
    return true;
}

void stored_declare(const stored_tensor *s, sq_gguf_writer *w, sq_str name, uint32_t n_dims, const uint64_t *ne)
{
    const uint64_t panel_bytes[] = {s->bytes};
    if (stored_is_panels(s))
        sq_gguf_put_tensor(w, name, 1, panel_bytes, SQ_TENSOR_I8);
    else
        sq_gguf_put_tensor(w, name, n_dims, ne, stored_gguf_type(s));
}

void stored_put_header(const stored_tensor *s, uint8_t *out)
{
    *(sq_panel_header *)(void *)out = (sq_panel_header){.magic = {'S', 'Q', 'P', 'N'},
                                                        .version = 1,
                                                        .type = (uint32_t)s->panels.type,
                                                        .n = s->panels.n,
                                                        .k = s->panels.k,
                                                        .group = s->panels.group};
}
