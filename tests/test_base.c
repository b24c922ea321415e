/* Failures in words, UTF-8, memory, the arena. SPDX-License-Identifier: MIT */
#include "runtime/base.h"
#include "tests/counting.h"
#include "tests/support.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- UTF-8 -------------------------------------------------------------------------------- */

/* By the table of RFC 3629; surrogates are not asked for. */
static int encode(uint32_t code, char *out)
{
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    const int length = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (int i = length - 1; i > 0; i--, code >>= 6)
        out[i] = (char)(0x80 | (code & 0x3F));
    out[0] = (char)((0xF00 >> length & 0xFF) | code);
    return length;
}

static void utf8_accepts_every_character(void **state)
{
    (void)state;
    for (uint32_t code = 0; code <= 0x10FFFF; code++) {
        if (code >= 0xD800 && code < 0xE000) continue;
        char s[8] = "       ";
        const int length = encode(code, s);
        assert_int_equal(sq_utf8_next(s, sizeof s), length);
        assert_int_equal(sq_utf8_next(s, (size_t)length), length);
        for (int n = 1; n < length; n++)
            assert_int_equal(sq_utf8_next(s, (size_t)n), -1);
    }
}

/* Together with the test above: as many sequences are accepted as there are characters, so no others. */
static void utf8_accepts_nothing_else(void **state)
{
    (void)state;
    size_t count[5] = {0};
    for (uint32_t v = 0; v < 1u << 24; v++) {
        const char s[3] = {(char)(v >> 16), (char)(v >> 8), (char)v};
        const int length = sq_utf8_next(s, 3);
        if (length >= 0) count[length]++;
    }
    assert_int_equal(count[1], 0x80u << 16);
    assert_int_equal(count[2], (0x800u - 0x80) << 8);
    assert_int_equal(count[3], 0x10000u - 0x800 - 0x800);
    assert_int_equal(count[4], 0);

    /* Of four bytes the last two are tried at the ends of their range and one past them. */
    static const uint8_t ends[] = {0x7F, 0x80, 0xBF, 0xC0};
    size_t n = 0;
    for (uint32_t v = 0; v < 1u << 20; v++) {
        const char s[4] = {(char)(v >> 12), (char)(v >> 4), (char)ends[v & 3], (char)ends[v >> 2 & 3]};
        n += sq_utf8_next(s, 4) == 4;
    }
    assert_int_equal(n, 0x100000 / 0x1000 * 4);
}

/* ---- Failures ----------------------------------------------------------------------------- */

static void fail_returns_code_and_text(void **state)
{
    (void)state;
    squint_msg msg;
    assert_int_equal(sq_fail(&msg, SQUINT_ERR_IO, "%s: %d", "a.gguf", 7), SQUINT_ERR_IO);
    assert_string_equal(msg.text, "a.gguf: 7");
    assert_int_equal(sq_fail(NULL, SQUINT_ERR_LIMIT, "%s", "unheard"), SQUINT_ERR_LIMIT);
}

static void fail_replaces_what_is_no_text(void **state)
{
    (void)state;
    static const struct {
        const char *in, *out;
    } cases[] = {
        {"two\nlines\r\n", "two?lines??"},
        {"\x1B[31mred\x7F\b", "?[31mred??"},
        {"caf\xC3\xA9 \xE7\x8C\xAB \xF0\x9F\x98\x80", "caf\xC3\xA9 \xE7\x8C\xAB \xF0\x9F\x98\x80"},
        {"\x80\xFF\xC0\xAF\xED\xA0\x80", "???????"},
        {"\xC2\x85 \xE2\x80\xA8 \xE2\x80\xAE", "?? ??? ???"},
        {"\xC2\xA0\xE2\x80\xA7\xE2\x80\xAF", "\xC2\xA0\xE2\x80\xA7\xE2\x80\xAF"},
        {"cut \xE7\x8C", "cut ??"},
    };
    for (size_t i = 0; i < SQ_COUNT(cases); i++) {
        squint_msg msg;
        (void)!sq_fail(&msg, SQUINT_ERR_FORMAT, "%s", cases[i].in);
        assert_string_equal(msg.text, cases[i].out);
    }
}

static void fail_cuts_between_characters(void **state)
{
    (void)state;
    enum { ROOM = sizeof((squint_msg *)0)->text - 1 };
    for (size_t lead = ROOM - 6; lead <= ROOM + 1; lead++) {
        char text[ROOM + 16];
        memset(text, 'x', sizeof text);
        memcpy(text + lead, "\xF0\x9F\x98\x80!", 6);
        squint_msg msg;
        (void)!sq_fail(&msg, SQUINT_ERR_FORMAT, "%s", text);
        const size_t whole = lead + 5 <= ROOM ? lead + 5 : lead + 4 <= ROOM ? lead + 4 : lead < ROOM ? lead : ROOM;
        assert_int_equal(strlen(msg.text), whole);
        assert_memory_equal(msg.text, text, whole);
    }
}

static void errno_has_words(void **state)
{
    (void)state;
    char text[64];
    assert_string_equal(sq_errno_text(ENOENT, text, sizeof text), "No such file or directory");
    assert_true(strlen(sq_errno_text(123456, text, sizeof text)) > 0);
}

/* ---- Memory ------------------------------------------------------------------------------- */

static void sizes_are_checked(void **state)
{
    (void)state;
    size_t r = 7;
    assert_true(sq_mul(SIZE_MAX / 3, 3, &r));
    assert_int_equal(r, SIZE_MAX / 3 * 3);
    assert_false(sq_mul(SIZE_MAX / 3 + 1, 3, &r));
    assert_false(sq_mul(SIZE_MAX, SIZE_MAX, &r));
    assert_true(sq_mul(SIZE_MAX, 0, &r));
    assert_int_equal(r, 0);
    assert_true(sq_add(SIZE_MAX - 3, 3, &r));
    assert_int_equal(r, SIZE_MAX);
    assert_false(sq_add(SIZE_MAX - 3, 4, &r));
}

static void allocator_defaults_to_malloc(void **state)
{
    (void)state;
    counting c = {0};
    const squint_allocator mine = counting_allocator(&c);
    const squint_allocator half = {.alloc = mine.alloc, .user = &c};
    squint_allocator used[] = {sq_allocator_or_default(NULL), sq_allocator_or_default(&half),
                               sq_allocator_or_default(&mine)};
    for (size_t i = 0; i < SQ_COUNT(used); i++) {
        void *nothing = sq_alloc(&used[i], 0), *p = sq_alloc(&used[i], 100);
        assert_non_null(nothing);
        assert_non_null(p);
        memset(p, 1, 100);
        assert_int_equal(c.live, i == 2 ? 2 : 0);
        sq_free(&used[i], p, 100);
        sq_free(&used[i], nothing, 0);
        sq_free(&used[i], NULL, 5);
    }
    assert_int_equal(c.live, 0);
}

/* ---- Arena -------------------------------------------------------------------------------- */

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
enum { ASAN = 1 };
#else
enum { ASAN = 0 };
#define __asan_address_is_poisoned(p)        ((void)(p), 1)
#define ASAN_UNPOISON_MEMORY_REGION(p, size) ((void)(p), (void)(size))
#endif

/* The mapping may come back for another use, and its poison with it. */
static void free_block(uint8_t *block, size_t size)
{
    ASAN_UNPOISON_MEMORY_REGION(block, size);
    guarded_free(block);
}

typedef struct parts {
    uint8_t *a;
    double *b;
    uint8_t *none;
    uint32_t *c;
} parts;

static parts plan(sq_arena *arena)
{
    return (parts){
        .a = sq_take(arena, 1, 1),
        .b = sq_take(arena, 100, sizeof(double)),
        .none = sq_take(arena, 0, 8),
        .c = sq_take(arena, 16, sizeof(uint32_t)),
    };
}

static void arena_hands_out_what_it_planned(void **state)
{
    (void)state;
    sq_arena arena = {0};
    const parts planned = plan(&arena);
    assert_null(planned.a);
    assert_null(planned.c);
    assert_false(arena.full);
    assert_true(arena.used >= 1 + 800 + 64);

    const size_t size = arena.used;
    uint8_t *block = guarded_alloc(size, 64);
    memset(block, 0xAA, size);
    arena = (sq_arena){.base = block, .size = size};
    const parts p = plan(&arena);
    assert_false(arena.full);
    assert_int_equal(arena.used, size);
    assert_ptr_equal(p.a, block);
    assert_true((uint8_t *)p.b >= p.a + 1 && (uint8_t *)p.c >= (uint8_t *)(p.b + 100));
    assert_true((uint8_t *)(p.c + 16) <= block + size);
    assert_int_equal((uintptr_t)p.b % 64 + (uintptr_t)p.c % 64, 0);
    assert_int_equal(*p.a, 0);
    for (int i = 0; i < 100; i++)
        assert_true(p.b[i] == 0.0);
    memset(p.c, 0xFF, 64);

    arena.used = 0; /* handed out once more, as between two captions */
    assert_int_equal(plan(&arena).c[15], 0);
    free_block(block, size);
}

static void arena_says_when_it_is_full(void **state)
{
    (void)state;
    uint8_t *block = guarded_alloc(512, 64);
    sq_arena arena = {.base = block, .size = 512};
    assert_non_null(sq_take(&arena, 1, 384));
    assert_null(sq_take(&arena, 1, 384));
    assert_true(arena.full);
    assert_null(sq_take(&arena, 1, 1)); /* stays full, though this would fit */
    free_block(block, 512);

    static const size_t too_much[][2] = {{SIZE_MAX / 2, 3}, {SIZE_MAX, 1}, {SIZE_MAX - 63, 1}, {1, SIZE_MAX - 64}};
    for (size_t i = 0; i < SQ_COUNT(too_much); i++) {
        arena = (sq_arena){0};
        sq_take(&arena, 1, 1);
        assert_null(sq_take(&arena, too_much[i][0], too_much[i][1]));
        assert_true(arena.full);
    }
}

static void arena_parts_may_share_memory(void **state)
{
    (void)state;
    uint8_t *block = guarded_alloc(1024, 64);
    sq_arena arena = {.base = block, .size = 1024};
    sq_take(&arena, 1, 100);
    const size_t used = arena.used;
    const uint8_t *first = sq_take(&arena, 1, 100);
    sq_arena_overlay(&arena, used);
    const uint8_t *second = sq_take(&arena, 1, 50);
    assert_true(ASAN ? second >= first + 100 : second == first);
    free_block(block, 1024);
}

static void arena_gaps_are_watched(void **state)
{
    (void)state;
    if (!ASAN) skip();
    uint8_t *block = guarded_alloc(1024, 64);
    sq_arena arena = {.base = block, .size = 1024};
    const uint8_t *a = sq_take(&arena, 1, 64), *b = sq_take(&arena, 1, 10);
    assert_true(!__asan_address_is_poisoned(a + 63) && __asan_address_is_poisoned(a + 64));
    assert_true(__asan_address_is_poisoned(b - 1) && !__asan_address_is_poisoned(b + 9));
    assert_true(__asan_address_is_poisoned(b + 10));
    free_block(block, 1024);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(utf8_accepts_every_character),
        cmocka_unit_test(utf8_accepts_nothing_else),
        cmocka_unit_test(fail_returns_code_and_text),
        cmocka_unit_test(fail_replaces_what_is_no_text),
        cmocka_unit_test(fail_cuts_between_characters),
        cmocka_unit_test(errno_has_words),
        cmocka_unit_test(sizes_are_checked),
        cmocka_unit_test(allocator_defaults_to_malloc),
        cmocka_unit_test(arena_hands_out_what_it_planned),
        cmocka_unit_test(arena_says_when_it_is_full),
        cmocka_unit_test(arena_parts_may_share_memory),
        cmocka_unit_test(arena_gaps_are_watched),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
