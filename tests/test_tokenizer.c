/* The tokenizer against SentencePiece (golden/make_tokenizer.py) and against hand-made vocabularies.
 * SPDX-License-Identifier: MIT */
#include "runtime/tokenizer.h"
#include "tests/counting.h"
#include "tests/gguf_bytes.h"
#include "tests/support.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_CASE = 8192 };

#define SPACE "\xE2\x96\x81"

/* Ids of the text, through scratch and output that end at guard pages. */
static size_t encode(const sq_tokenizer *t, const char *text, size_t bytes, bool space, uint32_t *ids)
{
    char *exact = guarded_alloc(bytes, 1);
    void *scratch = guarded_alloc(sq_tokenizer_scratch(bytes), 1);
    uint32_t *out = guarded_alloc((bytes + 1) * sizeof *out, _Alignof(uint32_t));
    if (bytes) memcpy(exact, text, bytes);
    const size_t n = sq_tokenize(t, exact, bytes, space, scratch, out, bytes + 1);
    if (n != SIZE_MAX) memcpy(ids, out, n * sizeof *out);
    if (n && n != SIZE_MAX) assert_int_equal(sq_tokenize(t, exact, bytes, space, scratch, out, n - 1), SIZE_MAX);
    guarded_free(out);
    guarded_free(scratch);
    guarded_free(exact);
    return n;
}

static size_t decode(const sq_tokenizer *t, const uint32_t *ids, size_t n, char *out, size_t room)
{
    size_t used = 0;
    for (size_t i = 0; i < n; i++) {
        const size_t bytes = sq_detokenize(t, ids[i], out + used, room - used);
        assert_true(bytes <= sq_tokenizer_max_piece(t));
        used += bytes;
    }
    return used;
}

/* ---- SentencePiece ------------------------------------------------------------------------ */

/* "68656C" at *line to bytes, "-" to none; steps past it and the space behind. */
static size_t parse_hex(char **line, char *out)
{
    size_t n = 0;
    char *p = *line;
    for (; *p != ' ' && *p != '\n'; p += *p == '-' ? 1 : 2)
        if (*p != '-') {
            unsigned byte;
            assert_int_equal(sscanf(p, "%2x", &byte), 1);
            out[n++] = (char)byte;
        }
    *line = p + 1;
    return n;
}

static size_t parse_ids(char **line, uint32_t *ids)
{
    size_t n = 0;
    char *p = *line;
    if (*p == '-') p++;
    while (*p != ' ' && *p != '\n') {
        ids[n++] = (uint32_t)strtoul(p, &p, 10);
        if (*p == ',') p++;
    }
    *line = p + 1;
    return n;
}

typedef struct fixture {
    sq_gguf *g;
    sq_tokenizer *t;
    char *cases;
    size_t size;
} fixture;

static int open_fixture(void **state)
{
    static fixture f;
    squint_msg msg;
    if (sq_gguf_open(&f.g, test_path("golden/tokenizer.gguf"), NULL, &msg) ||
        sq_tokenizer_open(&f.t, f.g, NULL, &msg)) {
        fprintf(stderr, "%s\n", msg.text);
        return 1;
    }
    f.cases = (char *)read_test_file("golden/tokenizer.txt", &f.size);
    *state = &f;
    return 0;
}

static int close_fixture(void **state)
{
    fixture *f = *state;
    sq_tokenizer_close(&f->t);
    sq_gguf_close(&f->g);
    free(f->cases);
    return f->t || f->g;
}

static void encodes_like_sentencepiece(void **state)
{
    const fixture *f = *state;
    static char text[MAX_CASE];
    static uint32_t expected[MAX_CASE], ids[MAX_CASE];
    size_t n_cases = 0;
    for (char *line = f->cases; line < f->cases + f->size; line = strchr(line, '\n') + 1) {
        if (*line != 'e') continue;
        char *p = line + 2;
        const size_t bytes = parse_hex(&p, text);
        const size_t n = parse_ids(&p, expected);
        assert_int_equal(encode(f->t, text, bytes, true, ids), n);
        assert_memory_equal(ids, expected, n * sizeof *ids);
        n_cases++;
    }
    assert_int_equal(n_cases, 200);
}

static void decodes_like_sentencepiece(void **state)
{
    const fixture *f = *state;
    static char expected[MAX_CASE], text[MAX_CASE];
    static uint32_t ids[MAX_CASE];
    size_t n_cases = 0;
    for (char *line = f->cases; line < f->cases + f->size; line = strchr(line, '\n') + 1) {
        if (*line != 'd') continue;
        char *p = line + 2;
        const size_t n = parse_ids(&p, ids);
        const size_t bytes = parse_hex(&p, expected);
        size_t used = decode(f->t, ids, n, text, sizeof text);
        /* SentencePiece takes the space away that stands in front of the first piece of text. */
        const size_t skip = used && text[0] == ' ';
        assert_int_equal(used - skip, bytes);
        assert_memory_equal(text + skip, expected, bytes);
        n_cases++;
    }
    assert_true(n_cases > 200);
}

static void text_survives_a_round_trip(void **state)
{
    const fixture *f = *state;
    uint64_t seed = 5;
    for (int round = 0; round < 300; round++) {
        char text[64], back[256];
        uint32_t ids[65];
        const size_t bytes = random_u64(&seed) % sizeof text;
        for (size_t i = 0; i < bytes; i++)
            text[i] = (char)random_u64(&seed);
        const size_t n = encode(f->t, text, bytes, false, ids);
        assert_true(n <= bytes);
        assert_int_equal(decode(f->t, ids, n, back, sizeof back), bytes);
        assert_memory_equal(back, text, bytes);
    }
}

static void invalid_utf8_becomes_bytes(void **state)
{
    const fixture *f = *state;
    const char text[] = "\xFF"
                        "a\xE2\x96\xC3";
    uint32_t ids[8];
    assert_int_equal(encode(f->t, text, 5, false, ids), 5);
    static const char *pieces[] = {"<0xFF>", "a", "<0xE2>", "<0x96>", "<0xC3>"};
    for (int i = 0; i < 5; i++)
        assert_true(sq_str_eq(sq_tokenizer_piece(f->t, ids[i]), pieces[i]));
}

static void special_tokens_have_no_text(void **state)
{
    const fixture *f = *state;
    char text[8];
    assert_int_equal(sq_tokenizer_size(f->t), 640);
    assert_int_equal(sq_tokenizer_unk(f->t), 0);
    assert_int_equal(sq_tokenizer_bos(f->t), 1);
    assert_int_equal(sq_tokenizer_eos(f->t), 2);
    assert_true(sq_tokenizer_add_bos(f->t));
    for (uint32_t id = 0; id < 3; id++)
        assert_int_equal(sq_detokenize(f->t, id, text, sizeof text), 0);
    assert_int_equal(sq_detokenize(f->t, 640, text, sizeof text), 0);
    assert_int_equal(sq_detokenize(f->t, UINT32_MAX, text, sizeof text), 0);
}

static void long_text_is_refused(void **state)
{
    const fixture *f = *state;
    assert_int_equal(sq_tokenize(f->t, "", UINT32_MAX / 2, true, NULL, NULL, 0), SIZE_MAX);
    assert_int_equal(sq_tokenizer_scratch(SIZE_MAX), SIZE_MAX);
    assert_int_equal(sq_tokenizer_scratch(SIZE_MAX / 50), SIZE_MAX);
}

/* ---- Hand-made vocabularies --------------------------------------------------------------- */

typedef struct piece {
    const char *text;
    float score;
    int32_t type;
} piece;

enum { N_FIXED = 3 + 256 + 1, MAX_EXTRA = 16 };

typedef struct vocabulary {
    piece extra[MAX_EXTRA]; /* behind <unk> <s> </s>, the bytes and the space: ids from N_FIXED */
    const char *model;
    uint32_t bos;
    int omit; /* of the parts below one that is left out, or damaged */
    bool no_prefix;
} vocabulary;

enum {
    ALL,
    NO_MODEL,
    NO_TOKENS,
    NO_SCORES,
    NO_TYPES,
    SHORT_SCORES,
    F64_SCORES,
    NO_BYTE,
    TWO_BYTES,
    BAD_BYTE,
    NO_SPACE
};

static uint32_t n_extra(const vocabulary *v)
{
    uint32_t n = 0;
    while (n < MAX_EXTRA && v->extra[n].type)
        n++;
    return n;
}

static piece piece_at(const vocabulary *v, uint32_t id)
{
    static char byte[8];
    static const char *special[] = {"<unk>", "<s>", "</s>"};
    if (id < 3) return (piece){special[id], 0, id ? 3 : 2};
    if (id < 3 + 256) {
        snprintf(byte, sizeof byte, "<0x%02X>", id - 3);
        if (id == 100 && v->omit == TWO_BYTES) strcpy(byte, "<0x00>");
        if (id == 100 && v->omit == BAD_BYTE) strcpy(byte, "<0x0g>");
        return (piece){byte, 0, id == 100 && v->omit == NO_BYTE ? 5 : 6};
    }
    if (id == N_FIXED - 1) return (piece){SPACE, -100, v->omit == NO_SPACE ? 3 : 1};
    return v->extra[id - N_FIXED];
}

static void put_vocabulary(blob *b, const vocabulary *v)
{
    const uint32_t n = N_FIXED + n_extra(v);
    const uint32_t omitted = v->omit >= NO_MODEL && v->omit <= NO_TYPES;
    put_header(b, 0, 6 - omitted);
    if (v->omit != NO_MODEL) {
        put_key(b, "tokenizer.ggml.model", SQ_GGUF_STRING);
        put_str(b, v->model ? v->model : "llama");
    }
    if (v->omit != NO_TOKENS) put_array(b, "tokenizer.ggml.tokens", SQ_GGUF_STRING, n);
    for (uint32_t id = 0; id < n && v->omit != NO_TOKENS; id++)
        put_str(b, piece_at(v, id).text);
    const uint32_t n_scores = v->omit == SHORT_SCORES ? n - 1 : n;
    if (v->omit != NO_SCORES)
        put_array(b, "tokenizer.ggml.scores", v->omit == F64_SCORES ? SQ_GGUF_I32 : SQ_GGUF_F32, n_scores);
    for (uint32_t id = 0; id < n_scores && v->omit != NO_SCORES; id++)
        put_f32(b, piece_at(v, id).score);
    if (v->omit != NO_TYPES) put_array(b, "tokenizer.ggml.token_type", SQ_GGUF_I32, n);
    for (uint32_t id = 0; id < n && v->omit != NO_TYPES; id++)
        put_u32(b, (uint32_t)piece_at(v, id).type);
    put_key(b, "tokenizer.ggml.bos_token_id", SQ_GGUF_U32);
    put_u32(b, v->bos);
    put_key(b, "tokenizer.ggml.add_space_prefix", SQ_GGUF_BOOL);
    put_u8(b, !v->no_prefix);
}

static squint_err open_vocabulary(const vocabulary *v, const squint_allocator *a, sq_gguf **g, void **copy,
                                  sq_tokenizer **t, squint_msg *msg)
{
    blob b = {0};
    put_vocabulary(&b, v);
    assert_int_equal(open_guarded(g, &b, copy, msg), SQUINT_OK);
    blob_free(&b);
    return sq_tokenizer_open(t, *g, a, msg);
}

static void expect_ids(const vocabulary *v, const char *text, const uint32_t *expected, size_t n)
{
    sq_gguf *g;
    sq_tokenizer *t;
    void *copy;
    squint_msg msg;
    uint32_t ids[256];
    assert_int_equal(open_vocabulary(v, NULL, &g, &copy, &t, &msg), SQUINT_OK);
    assert_int_equal(encode(t, text, strlen(text), true, ids), n);
    assert_memory_equal(ids, expected, n * sizeof *ids);
    sq_tokenizer_close(&t);
    sq_gguf_close(&g);
    guarded_free(copy);
}

#define EXPECT(v, text, ...)                                                                                           \
    expect_ids(v, text, (const uint32_t[]){__VA_ARGS__}, sizeof((const uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t))

enum { X = N_FIXED, BYTES = 3, UNDERLINE = N_FIXED - 1 };

static void ties_go_left(void **state)
{
    (void)state;
    const vocabulary v = {.no_prefix = true, .extra = {{"a", -9, 1}, {"aa", -1, 1}, {"aaa", -2, 1}, {"ba", -1, 1}}};
    EXPECT(&v, "aa", X + 1);
    EXPECT(&v, "aaa", X + 2);
    EXPECT(&v, "aaaa", X + 1, X + 1); /* "aa" twice, left first; "aaa" scores less */
    EXPECT(&v, "aaaaa", X + 1, X + 2);
    EXPECT(&v, "baa", X + 3, X); /* b is no piece of its own, but ba is */
    EXPECT(&v, "b", BYTES + 'b');
}

static void best_score_goes_first(void **state)
{
    (void)state;
    const vocabulary v = {
        .no_prefix = true,
        .extra = {{"a", -9, 1}, {"b", -9, 1}, {"c", -9, 1}, {"ab", -2, 1}, {"bc", -1, 1}, {"abc", -3, 1}}};
    EXPECT(&v, "abc", X + 5);
    EXPECT(&v, "ab", X + 3);
    EXPECT(&v, "abbc", X + 3, X + 4);
    const vocabulary without = {.no_prefix = true,
                                .extra = {{"a", -9, 1}, {"b", -9, 1}, {"c", -9, 1}, {"ab", -2, 1}, {"bc", -1, 1}}};
    EXPECT(&without, "abc", X, X + 4);
}

static void only_normal_pieces_are_merged(void **state)
{
    (void)state;
    const vocabulary v = {.no_prefix = true,
                          .extra = {{"a", -1, 1}, {"b", -1, 1}, {"ab", -1, 3}, {"ba", -1, 5}, {"bb", INFINITY, 1}}};
    EXPECT(&v, "ab", X, X + 1);
    EXPECT(&v, "ba", X + 1, X);
    EXPECT(&v, "abba", X, X + 4, X);
    EXPECT(&v, "</s>", BYTES + '<', BYTES + '/', BYTES + 's', BYTES + '>');
    EXPECT(&v, "<0x41>", BYTES + '<', BYTES + '0', BYTES + 'x', BYTES + '4', BYTES + '1', BYTES + '>');
}

static void user_defined_pieces_come_first(void **state)
{
    (void)state;
    const vocabulary v = {
        .no_prefix = true,
        .extra = {{"a", -1, 1}, {"b", -1, 1}, {"ab", -1, 1}, {"bab", 0, 4}, {"ba", 0, 4}, {"aba", -1, 1}}};
    EXPECT(&v, "ab", X + 2);
    EXPECT(&v, "bab", X + 3);
    EXPECT(&v, "babab", X + 3, X + 2);
    EXPECT(&v, "aba", X, X + 4); /* though "aba" is a piece */
    EXPECT(&v, "b", X + 1);
}

static void first_of_equal_pieces_counts(void **state)
{
    (void)state;
    const vocabulary v = {.no_prefix = true, .extra = {{"b", -1, 1}, {"a", -1, 1}, {"a", 5, 1}, {"a", 9, 1}}};
    EXPECT(&v, "a", X + 1);
}

static void space_goes_in_front(void **state)
{
    (void)state;
    const vocabulary with = {.extra = {{"a", -1, 1}, {SPACE "a", -1, 1}}};
    const vocabulary without = {.no_prefix = true, .extra = {{"a", -1, 1}, {SPACE "a", -1, 1}}};
    EXPECT(&with, "a", X + 1);
    EXPECT(&with, " a", UNDERLINE, X + 1);
    EXPECT(&without, "a", X);
    EXPECT(&without, " a", X + 1);
    EXPECT(&with, " ", UNDERLINE, UNDERLINE);
    expect_ids(&with, "", NULL, 0);
}

static void expect_refused(const vocabulary *v, squint_err err, const char *said)
{
    sq_gguf *g;
    sq_tokenizer *t;
    void *copy;
    squint_msg msg;
    assert_int_equal(open_vocabulary(v, NULL, &g, &copy, &t, &msg), err);
    assert_null(t);
    assert_non_null(strstr(msg.text, "test.gguf"));
    if (!strstr(msg.text, said)) fail_msg("\"%s\" does not say \"%s\"", msg.text, said);
    sq_gguf_close(&g);
    guarded_free(copy);
}

static void bad_vocabularies_are_refused(void **state)
{
    (void)state;
    char long_piece[300];
    memset(long_piece, 'x', sizeof long_piece - 1);
    long_piece[sizeof long_piece - 1] = '\0';
    const struct {
        vocabulary v;
        squint_err err;
        const char *said;
    } cases[] = {
        {{.model = "gpt2"}, SQUINT_ERR_UNSUPPORTED, "\"gpt2\""},
        {{.omit = NO_MODEL}, SQUINT_ERR_FORMAT, "tokenizer.ggml.model"},
        {{.omit = NO_TOKENS}, SQUINT_ERR_FORMAT, "tokenizer.ggml.tokens"},
        {{.omit = NO_SCORES}, SQUINT_ERR_FORMAT, "tokenizer.ggml.scores"},
        {{.omit = NO_TYPES}, SQUINT_ERR_FORMAT, "tokenizer.ggml.token_type"},
        {{.omit = SHORT_SCORES}, SQUINT_ERR_FORMAT, "259 elements for 260"},
        {{.omit = F64_SCORES}, SQUINT_ERR_FORMAT, "tokenizer.ggml.scores"},
        {{.omit = NO_BYTE}, SQUINT_ERR_UNSUPPORTED, "no byte tokens"},
        {{.omit = TWO_BYTES}, SQUINT_ERR_FORMAT, "byte token"},
        {{.omit = BAD_BYTE}, SQUINT_ERR_FORMAT, "byte token"},
        {{.omit = NO_SPACE}, SQUINT_ERR_UNSUPPORTED, "U+2581"},
        {{.bos = N_FIXED}, SQUINT_ERR_FORMAT, "tokenizer.ggml.bos_token_id"},
        {{.extra = {{"a", 0, 7}}}, SQUINT_ERR_FORMAT, "token 260 has type 7"},
        {{.extra = {{"a", 0, -1}}}, SQUINT_ERR_FORMAT, "token 260 has type -1"},
        {{.extra = {{"a", NAN, 1}}}, SQUINT_ERR_FORMAT, "token 260 has no number"},
        {{.extra = {{long_piece, 0, 4}}}, SQUINT_ERR_UNSUPPORTED, "user-defined"},
    };
    for (size_t i = 0; i < SQ_COUNT(cases); i++)
        expect_refused(&cases[i].v, cases[i].err, cases[i].said);
}

static void every_failed_allocation_is_told(void **state)
{
    (void)state;
    const vocabulary v = {.extra = {{"a", -1, 1}}};
    squint_err err = SQUINT_ERR_NOMEM;
    size_t attempts = 0;
    while (err == SQUINT_ERR_NOMEM) {
        counting c = {.fail_at = ++attempts};
        const squint_allocator a = counting_allocator(&c);
        sq_gguf *g;
        sq_tokenizer *t;
        void *copy;
        squint_msg msg;
        err = open_vocabulary(&v, &a, &g, &copy, &t, &msg);
        assert_int_equal(err, t ? SQUINT_OK : SQUINT_ERR_NOMEM);
        sq_tokenizer_close(&t);
        assert_int_equal(c.live, 0);
        sq_gguf_close(&g);
        guarded_free(copy);
    }
    assert_int_equal(err, SQUINT_OK);
    assert_true(attempts > 4);
}

int main(void)
{
    const struct CMUnitTest golden[] = {
        cmocka_unit_test(encodes_like_sentencepiece),  cmocka_unit_test(decodes_like_sentencepiece),
        cmocka_unit_test(text_survives_a_round_trip),  cmocka_unit_test(invalid_utf8_becomes_bytes),
        cmocka_unit_test(special_tokens_have_no_text), cmocka_unit_test(long_text_is_refused),
    };
    const struct CMUnitTest hand_made[] = {
        cmocka_unit_test(ties_go_left),
        cmocka_unit_test(best_score_goes_first),
        cmocka_unit_test(only_normal_pieces_are_merged),
        cmocka_unit_test(user_defined_pieces_come_first),
        cmocka_unit_test(first_of_equal_pieces_counts),
        cmocka_unit_test(space_goes_in_front),
        cmocka_unit_test(bad_vocabularies_are_refused),
        cmocka_unit_test(every_failed_allocation_is_told),
    };
    const int failed = cmocka_run_group_tests(golden, open_fixture, close_fixture);
    return failed + cmocka_run_group_tests(hand_made, NULL, NULL);
}
