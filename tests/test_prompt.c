/* Prompt templates against SentencePiece on their literal text (golden/make_tokenizer.py).
 * SPDX-License-Identifier: MIT */
#include "runtime/tokenizer.h"
#include "tests/support.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

typedef struct fixture {
    sq_gguf *g;
    sq_tokenizer *t;
} fixture;

static int open_fixture(void **state)
{
    static fixture f;
    squint_msg msg;
    *state = &f;
    return sq_gguf_open(&f.g, test_path("golden/tokenizer.gguf"), NULL, &msg) ||
           sq_tokenizer_open(&f.t, f.g, NULL, &msg);
}

static int close_fixture(void **state)
{
    fixture *f = *state;
    sq_tokenizer_close(&f->t);
    sq_gguf_close(&f->g);
    return 0;
}

static sq_str str(const char *s) { return (sq_str){s, strlen(s)}; }

/* Through scratch and ids of the promised sizes that end at guard pages. ids: sq_prompt_max_ids() of them. */
static squint_err make(const fixture *f, const char *name, const char *prompt, uint32_t *ids, size_t *n,
                       squint_msg *msg)
{
    const size_t bytes = prompt ? strlen(prompt) : 0, max = sq_prompt_max_ids(bytes);
    void *scratch = guarded_alloc(sq_prompt_scratch(bytes), 1);
    uint32_t *out = guarded_alloc(max * sizeof *out, _Alignof(uint32_t));
    const squint_err err = sq_prompt_ids(f->t, str(name), prompt, scratch, sq_prompt_scratch(bytes), out, max, n, msg);
    if (!err) memcpy(ids, out, *n * sizeof *out);
    guarded_free(out);
    guarded_free(scratch);
    return err;
}

static void parse_prompt(const char *hex, char *prompt)
{
    for (; *hex != '-' && *hex; hex += 2) {
        unsigned byte;
        assert_int_equal(sscanf(hex, "%2x", &byte), 1);
        *prompt++ = (char)byte;
    }
    *prompt = '\0';
}

static void templates_give_the_reference_ids(void **state)
{
    const fixture *f = *state;
    size_t size, n_cases = 0;
    char *cases = (char *)read_test_file("golden/tokenizer.txt", &size);
    for (char *line = cases; line < cases + size; line = strchr(line, '\n') + 1) {
        char name[16], hex[256], prompt[128];
        int ids_at;
        if (*line != 'p') continue;
        assert_int_equal(sscanf(line, "p %15s %255s %n", name, hex, &ids_at), 2);
        const bool is_default = !strcmp(hex, "default");
        if (!is_default) parse_prompt(hex, prompt);
        uint32_t ids[1024];
        size_t n = 0;
        squint_msg msg;
        assert_int_equal(make(f, name, is_default ? NULL : prompt, ids, &n, &msg), SQUINT_OK);
        char *p = line + ids_at;
        for (size_t i = 0; i < n; i++, p++) {
            const long id = strtol(p, &p, 10);
            assert_int_equal(ids[i], id == -200 ? SQ_IMAGE_TOKEN : (uint32_t)id);
            assert_int_equal(*p, i + 1 < n ? ',' : '\n');
        }
        n_cases++;
    }
    assert_int_equal(n_cases, 25);
    free(cases);
}

static void templates_read_as_they_should(void **state)
{
    const fixture *f = *state;
    uint32_t ids[1024];
    char text[1024];
    size_t n, used = 0;
    squint_msg msg;
    assert_int_equal(make(f, "vicuna_v1", "Why?", ids, &n, &msg), SQUINT_OK);
    assert_int_equal(ids[0], 1);
    for (size_t i = 1; i < n; i++) {
        if (ids[i] == SQ_IMAGE_TOKEN) text[used++] = '@';
        used += sq_detokenize(f->t, ids[i], text + used, sizeof text - used);
    }
    text[used] = '\0';
    /* each side of the image begins with the tokenizer's own space */
    assert_string_equal(text, " A chat between a curious user and an artificial intelligence assistant. The assistant "
                              "gives helpful, detailed, and polite answers to the user's questions. USER: @ \nWhy? "
                              "ASSISTANT:");
}

static void unknown_templates_are_refused(void **state)
{
    const fixture *f = *state;
    uint32_t ids[1024];
    size_t n;
    squint_msg msg;
    static const char *unknown[] = {"", "vicuna", "vicuna_v1 ", "VICUNA_V1", "chatml"};
    for (size_t i = 0; i < SQ_COUNT(unknown); i++) {
        assert_false(sq_prompt_known(str(unknown[i])));
        assert_int_equal(make(f, unknown[i], "x", ids, &n, &msg), SQUINT_ERR_UNSUPPORTED);
    }
    assert_non_null(strstr(msg.text, "\"chatml\""));
    assert_true(sq_prompt_known(str("plain")));
}

static void image_marks_are_refused(void **state)
{
    const fixture *f = *state;
    uint32_t ids[1024];
    size_t n;
    squint_msg msg;
    assert_int_equal(make(f, "vicuna_v1", "What is <image>?", ids, &n, &msg), SQUINT_ERR_ARGUMENT);
    assert_int_equal(make(f, "plain", "<image-placeholder>", ids, &n, &msg), SQUINT_ERR_ARGUMENT);
    assert_int_equal(make(f, "plain", "<image >", ids, &n, &msg), SQUINT_OK);
}

static void too_little_room_is_told(void **state)
{
    const fixture *f = *state;
    uint32_t ids[1024];
    size_t n, again;
    squint_msg msg;
    assert_int_equal(make(f, "llava_v1", "Why?", ids, &n, &msg), SQUINT_OK);
    const size_t bytes = sq_prompt_scratch(4);
    void *scratch = malloc(bytes);
    for (size_t room = 0; room < n; room++)
        assert_int_equal(sq_prompt_ids(f->t, str("llava_v1"), "Why?", scratch, bytes, ids, room, &again, &msg),
                         SQUINT_ERR_LIMIT);
    assert_int_equal(sq_prompt_ids(f->t, str("llava_v1"), "Why?", scratch, bytes, ids, n, &again, &msg), SQUINT_OK);
    assert_int_equal(again, n);
    assert_int_equal(sq_prompt_ids(f->t, str("llava_v1"), "Why?", scratch, bytes - 1, ids, n, &again, &msg),
                     SQUINT_ERR_LIMIT);
    free(scratch);
    assert_int_equal(sq_prompt_max_ids(SIZE_MAX), SIZE_MAX);
    assert_int_equal(sq_prompt_scratch(SIZE_MAX), SIZE_MAX);
}

/* What no piece covers takes a token a byte: the bound on ids must hold there too. */
static void bounds_hold_for_the_worst_prompt(void **state)
{
    const fixture *f = *state;
    char prompt[257];
    uint32_t ids[1024];
    size_t n;
    squint_msg msg;
    memset(prompt, '\x01', sizeof prompt - 1);
    prompt[sizeof prompt - 1] = '\0';
    static const char *names[] = {"vicuna_v1", "v1", "llava_v1", "llava_v0", "plain"};
    for (size_t i = 0; i < SQ_COUNT(names); i++) {
        assert_int_equal(make(f, names[i], prompt, ids, &n, &msg), SQUINT_OK);
        assert_true(n >= sizeof prompt);
    }
}

/* The golden vocabulary with "add_bos_token" false. */
static void bos_is_left_out_when_the_model_says_so(void **state)
{
    const fixture *f = *state;
    const char *path = temp_path(".gguf");
    sq_gguf_writer *w;
    fixture no_bos;
    uint32_t with[1024], without[1024];
    size_t n_with, n_without;
    squint_msg msg;
    assert_int_equal(sq_gguf_write_begin(&w, path, 32, NULL, &msg), SQUINT_OK);
    for (size_t i = 0; i < sq_gguf_n_keys(f->g); i++)
        if (!sq_str_eq(sq_gguf_key(f->g, i)->key, "tokenizer.ggml.add_bos_token"))
            sq_gguf_put_kv(w, sq_gguf_key(f->g, i));
    sq_gguf_put_bool(w, "tokenizer.ggml.add_bos_token", false);
    assert_int_equal(sq_gguf_write_end(&w, &msg), SQUINT_OK);
    assert_int_equal(sq_gguf_open(&no_bos.g, path, NULL, &msg), SQUINT_OK);
    assert_int_equal(sq_tokenizer_open(&no_bos.t, no_bos.g, NULL, &msg), SQUINT_OK);

    assert_int_equal(make(f, "llava_v1", "Why?", with, &n_with, &msg), SQUINT_OK);
    assert_int_equal(make(&no_bos, "llava_v1", "Why?", without, &n_without, &msg), SQUINT_OK);
    assert_int_equal(n_with, n_without + 1);
    assert_memory_equal(with + 1, without, n_without * sizeof *without);
    sq_tokenizer_close(&no_bos.t);
    sq_gguf_close(&no_bos.g);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(templates_give_the_reference_ids),
        cmocka_unit_test(templates_read_as_they_should),
        cmocka_unit_test(unknown_templates_are_refused),
        cmocka_unit_test(image_marks_are_refused),
        cmocka_unit_test(too_little_room_is_told),
        cmocka_unit_test(bounds_hold_for_the_worst_prompt),
        cmocka_unit_test(bos_is_left_out_when_the_model_says_so),
    };
    return cmocka_run_group_tests(tests, open_fixture, close_fixture);
}
