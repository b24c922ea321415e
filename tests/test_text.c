/*
 * Text as it grows: whole characters, no white space at its ends, nothing of the text that ends an answer, however the
 * bytes come.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/text.h"
#include "tests/support.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MOST = 256 };

typedef struct heard {
    char text[MOST];
    size_t n;
    unsigned calls, stop_at;
} heard;

static bool hear(void *user, const char *text, size_t bytes)
{
    heard *const h = user;
    assert_true(bytes > 0 && h->n + bytes < MOST);
    memcpy(h->text + h->n, text, bytes);
    h->text[h->n += bytes] = '\0';
    return ++h->calls != h->stop_at;
}

typedef struct example {
    const char *stop, *bytes, *text;
    bool ended;
} example;

static const example examples[] = {
    {"</s>", "A cat.</s>", "A cat.", true},
    {"</s>", "A cat. </s>more</s>", "A cat.", true},
    {"</s>", "A cat </s", "A cat </s", false},
    {"</s>", "1 < 2 </p>", "1 < 2 </p>", false},
    {"</s>", "<</s>", "<", true},
    {"</s>", "</</s>", "</", true},
    {"</s>", "  </s>", "", true},
    {"</s>", " A  cat \n", "A  cat", false},
    {"###", "A dog\n###Human: ", "A dog", true},
    {"###", "A #1 ## dog", "A #1 ## dog", false},
    {"###", "A dog ##", "A dog ##", false},
    {"###", "####", "", true},
    {"###", "</s> is text here", "</s> is text here", false},
    {"", "A dog###</s>", "A dog###</s>", false},
    {"###", "\xC3\xA4###", "\xC3\xA4", true},
    {"###", "\xC3###", "\xEF\xBF\xBD", true},       /* cut off by the stop text */
    {"###", "a ##\xC3", "a ##\xEF\xBF\xBD", false}, /* cut off by the end */
};

/* Fed in pieces of n bytes. What was heard is the text, and never more than it. */
static void check(const example *e, size_t piece)
{
    char text[MOST] = "";
    heard h = {.stop_at = UINT32_MAX};
    sq_text t = {.text = text, .stop = e->stop, .on_text = hear, .user = &h};
    const size_t n = strlen(e->bytes);
    for (size_t i = 0; i < n && !t.ended; i += piece)
        sq_text_append(&t, e->bytes + i, n - i < piece ? n - i : piece);
    sq_text_finish(&t);
    assert_string_equal(text, e->text);
    assert_string_equal(h.text, e->text);
    assert_int_equal(t.ended, e->ended);
}

static void stop_texts_are_cut_off(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof examples / sizeof *examples; i++)
        for (size_t piece = 1; piece <= 24; piece++)
            check(&examples[i], piece);
}

/* As soon as it is sure, and no sooner. */
static void what_is_sure_is_told_at_once(void **state)
{
    (void)state;
    static const char *const pieces[] = {"A", " ", "#", "b", "##", "#", "c"};
    static const char *const told[] = {"A", "A", "A", "A #b", "A #b", "A #b", "A #b"};
    char text[MOST];
    heard h = {.stop_at = UINT32_MAX};
    sq_text t = {.text = text, .stop = "###", .on_text = hear, .user = &h};
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        sq_text_append(&t, pieces[i], strlen(pieces[i]));
        assert_string_equal(h.text, told[i]);
        assert_int_equal(t.ended, i >= 5);
    }
    sq_text_finish(&t);
    assert_string_equal(text, "A #b");
}

/* Who has said stop hears no more; the text goes on. */
static void a_listener_can_leave(void **state)
{
    (void)state;
    char text[MOST];
    heard h = {.stop_at = 2};
    sq_text t = {.text = text, .stop = "###", .on_text = hear, .user = &h};
    for (int i = 0; i < 5; i++)
        sq_text_append(&t, "x", 1);
    sq_text_finish(&t);
    assert_true(t.stopped);
    assert_string_equal(h.text, "xx");
    assert_string_equal(text, "xxxxx");
}

/* Any bytes at all, of an alphabet that likes to go wrong: valid UTF-8, what was heard, and without the stop text. */
static void any_bytes_become_text(void **state)
{
    (void)state;
    static const char alphabet[] = "##</s> \xC3\xA4\xF0\x9F\x98\x80\x80";
    uint64_t seed = 11;
    for (int round = 0; round < 5000; round++) {
        char text[MOST];
        heard h = {.stop_at = UINT32_MAX};
        sq_text t = {.text = text, .stop = round % 2 ? "###" : "</s>", .on_text = hear, .user = &h};
        for (int i = 0; i < 40; i++) {
            char bytes[3];
            const size_t n = 1 + random_u64(&seed) % 3;
            for (size_t b = 0; b < n; b++)
                bytes[b] = alphabet[random_u64(&seed) % sizeof alphabet]; /* its NUL too */
            if (t.len < MOST - 16) sq_text_append(&t, bytes, n);
        }
        sq_text_finish(&t);
        assert_null(strstr(text, t.stop));
        assert_string_equal(h.text, text);
        for (const char *p = text; *p;) {
            const int length = sq_utf8_next(p, strlen(p));
            assert_true(length > 0);
            p += length;
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stop_texts_are_cut_off),
        cmocka_unit_test(what_is_sure_is_told_at_once),
        cmocka_unit_test(a_listener_can_leave),
        cmocka_unit_test(any_bytes_become_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
