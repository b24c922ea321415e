/*
 * test_mmproj: models in two files, as llama.cpp has them.
 * SPDX-License-Identifier: MIT
 */
#include "models/llava.h"
#include "tests/fixture.h"
#include "tests/support.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

typedef struct halves {
    fixture *model, *vision;
    char model_path[256], vision_path[256];
} halves;

static fixture *whole_model(void)
{
    fixture *const f = fixture_decoder(2);
    fixture_tower(f);
    fixture_interleave(f);
    return f;
}

static halves split(fixture *f)
{
    halves h = {.model = fixture_copy(f)};
    h.vision = fixture_split(h.model);
    return h;
}

static void write_halves(halves *h)
{
    snprintf(h->model_path, sizeof h->model_path, "%s", temp_path("-model.gguf"));
    snprintf(h->vision_path, sizeof h->vision_path, "%s", temp_path("-mmproj.gguf"));
    fixture_write(h->model, h->model_path);
    fixture_write(h->vision, h->vision_path);
}

static void free_halves(halves *h)
{
    unlink(h->model_path);
    unlink(h->vision_path);
    fixture_free(h->model);
    fixture_free(h->vision);
}

typedef struct notes {
    char text[1024];
    unsigned n;
} notes;

static void on_note(void *user, const char *text)
{
    notes *const all = user;
    snprintf(all->text, sizeof all->text, "%s", text);
    all->n++;
}

static squint_err open_paths(squint_model **m, const char *model, const char *mmproj, notes *all, squint_msg *msg)
{
    const squint_model_options options = {.mmproj = mmproj, .on_note = on_note, .note_user = all};
    msg->text[0] = 0;
    *all = (notes){.n = 0};
    return squint_model_open(m, model, &options, msg);
}

static void caption(const squint_model *m, uint32_t tokens[8])
{
    uint8_t rgb[20 * 10 * 3];
    squint_session *s;
    squint_result r;
    squint_msg msg;
    for (size_t i = 0; i < sizeof rgb; i++)
        rgb[i] = (uint8_t)(i * 11);
    if (squint_session_open(&s, m, &(squint_session_options){.threads = 1, .max_tokens = 8}, &msg) ||
        squint_caption_rgb(s, rgb, 20, 10, 60, NULL, &r, &msg))
        fail_msg("%s", msg.text);
    assert_int_equal(r.n_vision_tokens, 9);
    memset(tokens, 0xFF, 8 * sizeof *tokens);
    memcpy(tokens, r.tokens, r.n_tokens * sizeof *tokens);
    squint_session_close(&s);
}

static void two_files_are_one_model(void **state)
{
    (void)state;
    fixture *const f = whole_model();
    halves h = split(f);
    notes all;
    squint_msg msg;
    squint_model *one = fixture_model(f, NULL), *two;
    uint32_t expected[8], got[8];
    write_halves(&h);
    if (open_paths(&two, h.model_path, h.vision_path, &all, &msg)) fail_msg("%s", msg.text);
    caption(one, expected);
    caption(two, got);
    assert_memory_equal(got, expected, sizeof got);
    assert_int_equal(all.n, 1);
    assert_non_null(strstr(all.text, h.vision_path));
    assert_non_null(strstr(all.text, "2 of 3 blocks run; pictures are prepared as LLaVA does it"));
    squint_model_close(&one);
    squint_model_close(&two);

    /* and from memory */
    size_t size;
    uint8_t *const bytes = fixture_bytes(h.model, &size);
    assert_int_equal(
        squint_model_open_memory(&two, bytes, size, &(squint_model_options){.mmproj = h.vision_path}, &msg), SQUINT_OK);
    caption(two, got);
    assert_memory_equal(got, expected, sizeof got);
    squint_model_close(&two);
    free(bytes);
    free_halves(&h);
    fixture_free(f);
}

/* ---- How many blocks run --------------------------------------------------------------------- */

static void assert_blocks_run(fixture *f, uint32_t expected)
{
    halves h = split(f);
    notes all;
    squint_msg msg;
    squint_model *m;
    write_halves(&h);
    if (open_paths(&m, h.model_path, h.vision_path, &all, &msg)) fail_msg("%s", msg.text);
    assert_int_equal(((const sq_llava *)m->net)->vit.n_layers, expected);
    squint_model_close(&m);
    free_halves(&h);
}

static void add_blocks(fixture *f, uint32_t n)
{
    static const char *const parts[] = {"ln1", "attn_q", "attn_k", "attn_v", "attn_out", "ln2", "ffn_down", "ffn_up"};
    static const char *const kinds[] = {"weight", "bias"};
    for (uint32_t l = 3; l < n; l++)
        for (size_t i = 0; i < 2 * SQ_COUNT(parts); i++) {
            char from[64], to[64];
            snprintf(from, sizeof from, "v.blk.1.%s.%s", parts[i / 2], kinds[i % 2]);
            snprintf(to, sizeof to, "v.blk.%u.%s.%s", l, parts[i / 2], kinds[i % 2]);
            fixture_duplicate(f, from, to);
        }
}

/* LLaVA runs 23 of CLIP-L's blocks. Converters count them as 23 with 23 or 24 in the file, count all 24, or name the
 * state: in all of these cases llama.cpp itself may run one less. */
static void blocks_that_run(void **state)
{
    (void)state;
    fixture *const f = whole_model();
    fixture_drop(f, "squint.vision.layers_run");
    assert_blocks_run(f, 3); /* counted and stored: 3 */
    fixture_u32(f, "clip.vision.block_count", 2);
    assert_blocks_run(f, 2); /* one more is stored */
    fixture_u32(f, "clip.vision.block_count", 3);
    fixture_u32s(f, "clip.vision.feature_layer", (const uint32_t[]){2}, 1);
    assert_blocks_run(f, 2);
    fixture_drop(f, "clip.vision.feature_layer");
    add_blocks(f, 24);
    fixture_u32(f, "clip.vision.block_count", 23);
    assert_blocks_run(f, 23);
    fixture_u32(f, "clip.vision.block_count", 24);
    assert_blocks_run(f, 23);
    fixture_u32s(f, "clip.vision.feature_layer", (const uint32_t[]){22}, 1);
    assert_blocks_run(f, 22);
    fixture_u32(f, "squint.vision.layers_run", 24);
    assert_blocks_run(f, 24);
    fixture_free(f);
}

/* fc1 may be called down or up: its shape tells. */
static void names_of_the_mlp(void **state)
{
    (void)state;
    fixture *const f = whole_model();
    squint_model *m = fixture_model(f, NULL);
    uint32_t expected[8], got[8];
    caption(m, expected);
    squint_model_close(&m);
    for (unsigned l = 0; l < 3; l++) {
        static const char *const kinds[] = {"weight", "bias"};
        for (int i = 0; i < 2; i++) {
            char down[64], up[64];
            snprintf(down, sizeof down, "v.blk.%u.ffn_down.%s", l, kinds[i]);
            snprintf(up, sizeof up, "v.blk.%u.ffn_up.%s", l, kinds[i]);
            fixture_rename(f, down, "held");
            fixture_rename(f, up, down);
            fixture_rename(f, "held", up);
        }
    }
    halves h = split(f);
    notes all;
    squint_msg msg;
    write_halves(&h);
    if (open_paths(&m, h.model_path, h.vision_path, &all, &msg)) fail_msg("%s", msg.text);
    caption(m, got);
    assert_memory_equal(got, expected, sizeof got);
    squint_model_close(&m);
    free_halves(&h);
    fixture_free(f);
}

/* A vision half of LLaVA-NeXT's says so in its keys, and has the newline's embedding. */
static void tiles_of_a_vision_half(void **state)
{
    (void)state;
    fixture *const f = whole_model();
    fixture_u32s(f, "clip.vision.image_grid_pinpoints", (const uint32_t[]){12, 24, 24, 12, 24, 24}, 6);
    fixture_str(f, "clip.vision.mm_patch_merge_type", "spatial_unpad");
    fixture_weights(f, "model.image_newline", 16, 0, 9000, 0, 1);
    halves h = split(f);
    notes all;
    squint_msg msg;
    squint_model *m;
    write_halves(&h);
    assert_true(fixture_has(h.vision, "model.image_newline"));
    assert_false(fixture_has(h.model, "model.image_newline"));
    if (open_paths(&m, h.model_path, h.vision_path, &all, &msg)) fail_msg("%s", msg.text);
    assert_int_equal(m->n_vision, 9 + 6 * 6 + 6); /* the whole picture, four tiles, a newline a row */
    squint_model_close(&m);
    free_halves(&h);
    fixture_free(f);
}

/* ---- What does not belong together ------------------------------------------------------------ */

static void no_change(halves *h) { (void)h; }
static void another_architecture(halves *h) { fixture_str(h->model, "general.architecture", "qwen2"); }
static void a_gemma_projector(halves *h) { fixture_str(h->vision, "clip.projector_type", "gemma3"); }
static void a_mobile_projector(halves *h) { fixture_str(h->vision, "clip.projector_type", "ldpv2"); }
static void a_newer_key(halves *h) { fixture_str(h->vision, "clip.vision.projector_type", "pixtral"); }
static void a_projector_with_norms(halves *h) { fixture_weights(h->vision, "mm.3.weight", 16, 0, 1, 1, 0); }
static void no_tower(halves *h) { fixture_bool(h->vision, "clip.has_vision_encoder", false); }
static void only_audio(halves *h)
{
    fixture_rename_key(h->vision, "clip.has_vision_encoder", "clip.has_audio_encoder");
}
static void silu(halves *h) { fixture_bool(h->vision, "clip.use_silu", true); }
static void another_width(halves *h) { fixture_weights(h->vision, "mm.2.weight", 16, 24, 1, 0, 1); }
static void no_projector(halves *h) { fixture_drop(h->vision, "mm.2.weight"); }
static void no_patch_size(halves *h) { fixture_drop(h->vision, "clip.vision.patch_size"); }
static void a_text_patch_size(halves *h) { fixture_str(h->vision, "clip.vision.patch_size", "four"); }
static void an_odd_patch_size(halves *h) { fixture_u32(h->vision, "clip.vision.patch_size", 5); }
static void no_patches(halves *h) { fixture_drop(h->vision, "v.patch_embd.weight"); }
static void two_states(halves *h)
{
    fixture_drop(h->vision, "squint.vision.layers_run");
    fixture_u32s(h->vision, "clip.vision.feature_layer", (const uint32_t[]){1, 2}, 2);
}
static void a_block_too_few(halves *h) { fixture_u32(h->vision, "squint.vision.layers_run", 4); }
static void a_tower_of_its_own(halves *h) { fixture_tower(h->model); }

static void halves_that_do_not_fit(void **state)
{
    (void)state;
    enum { MODEL, VISION, NEITHER };
    static const struct {
        void (*change)(halves *h);
        int model, vision; /* which file is given as which */
        squint_err err;
        const char *said;
        int named; /* the file that the message must begin with, "mmproj: " left out */
    } cases[] = {
        {no_change, VISION, MODEL, SQUINT_ERR_ARGUMENT, "the other way round", MODEL},
        {no_change, MODEL, MODEL, SQUINT_ERR_ARGUMENT, "\"llama\" where \"clip\" is needed", MODEL},
        {no_change, VISION, VISION, SQUINT_ERR_ARGUMENT, "are both vision halves", VISION},
        {no_change, MODEL, NEITHER, SQUINT_ERR_IO, "/no/such.gguf: No such file", NEITHER},
        {another_architecture, MODEL, VISION, SQUINT_ERR_UNSUPPORTED, "\"qwen2\"", MODEL},
        {a_gemma_projector, MODEL, VISION, SQUINT_ERR_UNSUPPORTED, "clip.projector_type: \"gemma3\"", VISION},
        {a_mobile_projector, MODEL, VISION, SQUINT_ERR_UNSUPPORTED, "clip.projector_type: \"ldpv2\"", VISION},
        {a_newer_key, MODEL, VISION, SQUINT_ERR_UNSUPPORTED, "clip.vision.projector_type: \"pixtral\"", VISION},
        {a_projector_with_norms, MODEL, VISION, SQUINT_ERR_UNSUPPORTED, "mm.3.weight", VISION},
        {no_tower, MODEL, VISION, SQUINT_ERR_UNSUPPORTED, "clip.has_vision_encoder", VISION},
        {only_audio, MODEL, VISION, SQUINT_ERR_UNSUPPORTED, "clip.has_vision_encoder", VISION},
        {silu, MODEL, VISION, SQUINT_ERR_UNSUPPORTED, "clip.use_silu", VISION},
        {another_width, MODEL, VISION, SQUINT_ERR_ARGUMENT, "vision tokens of 24 values", VISION},
        {no_projector, MODEL, VISION, SQUINT_ERR_FORMAT, "tensor mm.2.weight is missing", VISION},
        {no_patch_size, MODEL, VISION, SQUINT_ERR_FORMAT, "key \"clip.vision.patch_size\" is missing", VISION},
        {a_text_patch_size, MODEL, VISION, SQUINT_ERR_FORMAT, "key \"clip.vision.patch_size\" holds string", VISION},
        {an_odd_patch_size, MODEL, VISION, SQUINT_ERR_FORMAT, "key clip.vision.patch_size: 5", VISION},
        {no_patches, MODEL, VISION, SQUINT_ERR_FORMAT, "tensor v.patch_embd.weight is missing", VISION},
        {two_states, MODEL, VISION, SQUINT_ERR_FORMAT, "\"clip.vision.feature_layer\" is an array of 2", VISION},
        {a_block_too_few, MODEL, VISION, SQUINT_ERR_FORMAT, "tensor v.blk.3.ln1.weight is missing", VISION},
        {a_tower_of_its_own, MODEL, VISION, SQUINT_ERR_ARGUMENT, "has a tower of its own", MODEL},
    };
    fixture *const f = whole_model();
    for (size_t i = 0; i < SQ_COUNT(cases); i++) {
        halves h = split(f);
        cases[i].change(&h);
        write_halves(&h);
        const char *const paths[] = {h.model_path, h.vision_path, "/no/such.gguf"};
        notes all;
        squint_msg msg;
        squint_model *m;
        const squint_err err = open_paths(&m, paths[cases[i].model], paths[cases[i].vision], &all, &msg);
        const char *const text = strncmp(msg.text, "mmproj: ", 8) ? msg.text : msg.text + 8, *const path =
                                                                                                 paths[cases[i].named];
        if (err != cases[i].err || !strstr(msg.text, cases[i].said) || strncmp(text, path, strlen(path)))
            fail_msg("case %zu: %d, \"%s\"", i, (int)err, msg.text);
        assert_null(m);
        free_halves(&h);
    }
    fixture_free(f);
}

/* ---- The view -------------------------------------------------------------------------------- */

/* What the halves hold beside their own is not there: the vision half's name, tensors of a decoder, ... */
static void each_half_has_its_own(void **state)
{
    (void)state;
    fixture *const f = whole_model();
    halves h = split(f);
    sq_gguf *g;
    squint_msg msg;
    fixture_str(h.model, "general.name", "a model");
    fixture_str(h.vision, "general.name", "a tower");
    fixture_str(h.vision, "llama.of_the_tower", "");
    fixture_weights(h.vision, "blk.7.attn_q.weight", 8, 8, 1, 0, 1);
    write_halves(&h);
    if (sq_gguf_open_pair(&g, h.model_path, h.vision_path, NULL, &msg)) fail_msg("%s", msg.text);
    sq_str name;
    assert_int_equal(sq_gguf_get_str(g, "general.name", true, &name, &msg), SQUINT_OK);
    assert_true(sq_str_eq(name, "a model"));
    assert_int_equal(sq_gguf_get_str(g, "general.architecture", true, &name, &msg), SQUINT_OK);
    assert_true(sq_str_eq(name, "llama"));
    assert_null(sq_gguf_find_key(g, "llama.of_the_tower"));
    assert_null(sq_gguf_find(g, "blk.7.attn_q.weight"));
    assert_non_null(sq_gguf_find(g, "blk.1.attn_q.weight"));
    assert_non_null(sq_gguf_find(g, "v.blk.1.attn_q.weight"));
    assert_string_equal(sq_gguf_path(g), h.model_path);
    assert_string_equal(sq_gguf_path_of(g, "v.blk.1.attn_q.weight"), h.vision_path);
    assert_string_equal(sq_gguf_path_of(g, "blk.1.attn_q.weight"), h.model_path);
    for (size_t i = 0; i < sq_gguf_n_tensors(g); i++) {
        char text[64] = "";
        const sq_str t = sq_gguf_tensor_at(g, i)->name;
        memcpy(text, t.s, t.len);
        assert_ptr_equal(sq_gguf_find(g, text), sq_gguf_tensor_at(g, i));
        assert_true(fixture_has(f, text));
    }
    sq_gguf_close(&g);
    free_halves(&h);
    fixture_free(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_files_are_one_model), cmocka_unit_test(blocks_that_run),
        cmocka_unit_test(names_of_the_mlp),        cmocka_unit_test(halves_that_do_not_fit),
        cmocka_unit_test(each_half_has_its_own),   cmocka_unit_test(tiles_of_a_vision_half),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
