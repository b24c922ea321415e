/*
 * Ranks against numpy's, attention maps against PyTorch's (tests/golden/make_arank.py), and the command around them.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/engine.h"
#include "tests/command.h"
#include "tests/support.h"
#include "tools/squint/rank.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_N = 128, LAYERS = 8, HEADS = 4 };

static sq_gguf *golden;  /* arank.gguf */
static sq_gguf *picture; /* tiny-pmod.golden.gguf: a picture and its caption */
static char model[1024], image[1024], other_image[1024], caption[256];

/* ---- Golden values ------------------------------------------------------------------------- */

static const sq_gguf_tensor *find(const sq_gguf *g, const char *name)
{
    const sq_gguf_tensor *t = sq_gguf_find(g, name);
    if (!t) fail_msg("no tensor %s", name);
    return t;
}

static const int32_t *ints(const char *name) { return (const int32_t *)(const void *)find(golden, name)->data; }

/* Least and most that rounding can make of the ranks of a layer of the tiny model, over its heads. */
static void bounds_of(int layer, double *least, double *most)
{
    const int32_t *const bounds = ints("ranks") + layer * HEADS * 2;
    *least = *most = 0;
    for (int h = 0; h < HEADS; h++) {
        *least += bounds[2 * h];
        *most += bounds[2 * h + 1];
    }
}

/* ---- Ranks --------------------------------------------------------------------------------- */

static void need_lapack(void)
{
    if (!rank_available()) skip();
}

static void put_matrix(rank_memory *m, const float *rows, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < n; j++)
            m->map[j * n + i] = rows[i * n + j];
}

static void ranks_equal_numpys(void **state)
{
    (void)state;
    need_lapack();
    rank_memory m;
    int n_matrices = 0;
    rank_memory_open(&m, MAX_N);
    for (size_t i = 0; i < sq_gguf_n_tensors(golden); i++) {
        const sq_gguf_tensor *t = sq_gguf_tensor_at(golden, i);
        char name[80];
        if (t->name.len < 8 || strncmp(t->name.s, "matrix.", 7) || t->type != SQ_TENSOR_F32) continue;
        snprintf(name, sizeof name, "%.*s.rank", (int)t->name.len, t->name.s);
        put_matrix(&m, (const float *)(const void *)t->data, (uint32_t)t->ne[0]);
        const int rank = rank_of(&m, (uint32_t)t->ne[0]);
        if (rank != *ints(name)) fail_msg("%s is %d, not %d", name, rank, *ints(name));
        n_matrices++;
    }
    assert_int_equal(n_matrices, 12);
    rank_memory_close(&m);
}

static void a_matrix_that_is_not_finite_has_no_rank(void **state)
{
    (void)state;
    need_lapack();
    rank_memory m;
    rank_memory_open(&m, 5);
    for (int i = 0; i < 25; i++)
        m.map[i] = i == 7 ? NAN : 1;
    assert_int_equal(rank_of(&m, 5), -1);
    rank_memory_close(&m);
}

/* ---- Maps ---------------------------------------------------------------------------------- */

typedef struct maps {
    const squint_model *model;
    rank_memory memory;
    int n_compared, n_ranked;
} maps;

/* Weights are at most 1 and their scores agree to 1e-5 (test_tiny.c measures that of this model's values): so do they,
 * relatively. */
static void compare_map(const float *map, const sq_gguf_tensor *want, uint32_t n)
{
    const float *rows = (const float *)(const void *)want->data;
    assert_int_equal(want->ne[0], n);
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < n; j++)
            if (!(fabsf(map[j * n + i] - rows[i * n + j]) <= 2e-5f))
                fail_msg("map[%u][%u] is %.7g, not %.7g", i, j, (double)map[j * n + i], (double)rows[i * n + j]);
}

static void see_heads(void *user, sq_trace_what what, int layer, const void *data, uint32_t rows, uint32_t cols)
{
    maps *m = user;
    const squint_model *net = m->model;
    const float *qkv = data;
    if (what != SQ_TRACE_QKV) return;
    assert_int_equal(cols, (net->n_heads + 2 * net->n_kv_heads) * net->head_dim);
    for (uint32_t h = 0; h < net->n_heads; h++) {
        char name[64];
        const uint32_t kv_head = h * net->n_kv_heads / net->n_heads;
        const rank_head head = {.q = qkv + h * net->head_dim,
                                .k = qkv + (net->n_heads + kv_head) * net->head_dim,
                                .ld = cols,
                                .n = rows,
                                .head_dim = net->head_dim,
                                .dot = net->kernels->dot};
        rank_map(&head, &m->memory);
        snprintf(name, sizeof name, "map.%d.%u", layer, h);
        const sq_gguf_tensor *want = sq_gguf_find(golden, name);
        if (want) compare_map(m->memory.map, want, rows);
        m->n_compared += want != NULL;
        if (!rank_available()) continue;
        const int rank = rank_of(&m->memory, rows);
        const int32_t *bounds = ints("ranks") + (layer * HEADS + (int)h) * 2;
        assert_true(rank >= bounds[0] && rank <= bounds[1]);
        m->n_ranked++;
    }
}

static void maps_are_pytorchs(void **state)
{
    (void)state;
    maps m = {0};
    squint_model *net;
    squint_session *s;
    squint_msg msg = {""};
    if (squint_model_open(&net, model, &(squint_model_options){.mode = "dense"}, &msg)) fail_msg("%s", msg.text);
    const sq_limits limits = {
        .max_rows = MAX_N, .max_tokens = MAX_N, .max_logits = 1, .max_vision = net->n_vision, .kv = SQ_KV_F32};
    if (sq_session_open_limits(&s, net, NULL, &limits, &msg)) fail_msg("%s", msg.text);
    const sq_gguf_tensor *const pixels = find(picture, "picture"), *const ids = find(golden, "ids");
    rank_memory_open(&m.memory, MAX_N);
    m.model = net;
    s->trace = see_heads;
    s->trace_user = &m;
    assert_int_equal(sq_session_picture(s, pixels->data, (uint32_t)pixels->ne[1], (uint32_t)pixels->ne[2],
                                        3 * (size_t)pixels->ne[1], NULL),
                     SQUINT_OK);
    assert_int_equal(sq_session_encode(s, NULL), SQUINT_OK);
    if (sq_session_forward(s, (const uint32_t *)(const void *)ids->data, (uint32_t)ids->ne[0], 1, &msg))
        fail_msg("%s", msg.text);
    assert_int_equal(m.n_compared, 3);
    assert_int_equal(m.n_ranked, rank_available() ? LAYERS * HEADS : 0);
    rank_memory_close(&m.memory);
    squint_session_close(&s);
    squint_model_close(&net);
}

/* ---- The command --------------------------------------------------------------------------- */

static void write_picture(const char *path, const uint8_t *rgb, unsigned w, unsigned h)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fprintf(f, "P6\n%u %u\n255\n", w, h);
    assert_int_equal(fwrite(rgb, 3, (size_t)w * h, f), (size_t)w * h);
    assert_int_equal(fclose(f), 0);
}

static const char *write_text(const char *text)
{
    const char *path = temp_path(".txt");
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
    return path;
}

static const cJSON *get(const cJSON *object, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    if (!item) fail_msg("no \"%s\"", key);
    return item;
}

static double number(const cJSON *object, const char *key) { return get(object, key)->valuedouble; }

/* Parses the output of a run that succeeded, and frees the run. */
static cJSON *parse(command_result *r, int status)
{
    if (r->status != status) fail_msg("exit %d, not %d; it said: %s", r->status, status, r->err);
    cJSON *json = cJSON_Parse(r->out);
    if (!json) fail_msg("not JSON: %s", r->out);
    command_result_free(r);
    return json;
}

static void assert_failed(command_result r, int status, const char *part)
{
    if (r.status != status || count_lines(r.err) != 1 || !strstr(r.err, part) || *r.out)
        fail_msg("exit %d, not %d; it said: %s%s", r.status, status, r.out, r.err);
    command_result_free(&r);
}

/* PyTorch's picture and caption, as a user would give them. */
static void a_sample_has_pytorchs_ranks(void **state)
{
    (void)state;
    need_lapack();
    const char *prompts = write_text(caption);
    command_result r = RUN("arank", "-m", model, image, "--prompts", prompts, "--json", "--threads", "2");
    assert_non_null(strstr(r.err, "runs dense"));
    assert_non_null(strstr(r.err, "pmod"));
    cJSON *json = parse(&r, 0);
    const cJSON *layers = get(json, "layer"), *sample = cJSON_GetArrayItem(get(json, "sample"), 0);
    assert_int_equal(cJSON_GetArraySize(layers), LAYERS);
    assert_int_equal(cJSON_GetArraySize(get(json, "sample")), 1);
    assert_true(number(sample, "tokens") == find(golden, "ids")->ne[0]);
    assert_string_equal(get(sample, "prompt")->valuestring, caption);
    for (int l = 0; l < LAYERS; l++) {
        double least, most;
        const double rank = number(cJSON_GetArrayItem(layers, l), "rank");
        bounds_of(l, &least, &most);
        assert_true(rank * HEADS >= least && rank * HEADS <= most);
        assert_true(rank == cJSON_GetArrayItem(get(sample, "rank"), l)->valuedouble);
    }
    cJSON_Delete(json);
    remove(prompts);
}

static void assert_sample(const cJSON *json, int i, const char *file, const char *prompt)
{
    const cJSON *sample = cJSON_GetArrayItem(get(json, "sample"), i);
    assert_string_equal(get(sample, "file")->valuestring, file);
    assert_string_equal(get(sample, "prompt")->valuestring, prompt);
}

/* The shorter list begins again; a layer's rank is the mean of its samples'. */
static void images_and_prompts_go_in_pairs(void **state)
{
    (void)state;
    need_lapack();
    const char *three = write_text("a large red\r\n\na small green circle\na");
    command_result r = RUN("arank", "-m", model, image, other_image, "--prompts", three, "--json", "-q");
    assert_string_equal(r.err, "");
    cJSON *json = parse(&r, 0);
    assert_int_equal(cJSON_GetArraySize(get(json, "sample")), 3);
    assert_sample(json, 0, image, "a large red");
    assert_sample(json, 1, other_image, "a small green circle");
    assert_sample(json, 2, image, "a");
    double tokens = 0;
    for (int l = 0; l < LAYERS; l++) {
        const cJSON *layer = cJSON_GetArrayItem(get(json, "layer"), l), *sample;
        double sum = 0, low = 1e9, high = 0;
        cJSON_ArrayForEach(sample, get(json, "sample"))
        {
            const double rank = cJSON_GetArrayItem(get(sample, "rank"), l)->valuedouble;
            sum += rank;
            low = fmin(low, rank);
            high = fmax(high, rank);
            if (!l) tokens += number(sample, "tokens");
        }
        assert_true(fabs(number(layer, "rank") - sum / 3) < 1e-3);
        assert_true(number(layer, "lowest") == low && number(layer, "highest") == high && low > 1);
    }
    assert_true(fabs(number(json, "tokens") - tokens / 3) < 1e-3);
    cJSON_Delete(json);
    remove(three);

    const char *one = write_text("a\n");
    r = RUN("arank", "-m", model, image, other_image, image, "--prompts", one, "--json", "-q");
    json = parse(&r, 0);
    assert_int_equal(cJSON_GetArraySize(get(json, "sample")), 3);
    assert_sample(json, 1, other_image, "a");
    assert_sample(json, 2, image, "a");
    cJSON_Delete(json);
    remove(one);
}

/* Layers below the threshold are suggested, the first and the last never. */
static void assert_suggestion(const cJSON *json, int at_least)
{
    const double threshold = number(json, "threshold");
    const cJSON *next = get(json, "mod_layers")->child;
    int n = 0;
    for (int l = 0; l < LAYERS; l++) {
        const cJSON *layer = cJSON_GetArrayItem(get(json, "layer"), l);
        const bool mod = cJSON_IsTrue(get(layer, "mod"));
        assert_int_equal(mod, l > 0 && l + 1 < LAYERS && number(layer, "rank") < threshold);
        assert_true(fabs(number(layer, "share") * number(json, "tokens") - number(layer, "rank")) < 1e-3);
        if (!mod) continue;
        assert_int_equal(next ? next->valueint : -1, l);
        next = next->next;
        n++;
    }
    assert_null(next);
    assert_true(n >= at_least);
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void low_ranks_are_suggested(void **state)
{
    (void)state;
    need_lapack();
    command_result r = RUN("arank", "-m", model, image, "--json", "--threshold", "1");
    cJSON *json = parse(&r, 0);
    const double tokens = number(json, "tokens");
    assert_true(number(json, "threshold") == tokens);
    assert_suggestion(json, LAYERS - 2);
    cJSON_Delete(json);

    r = RUN("arank", "-m", model, image, "--json");
    json = parse(&r, 0);
    assert_true(fabs(number(json, "threshold") - 0.1 * tokens) < 1e-3);
    assert_suggestion(json, 0);
    cJSON_Delete(json);

    r = RUN("arank", "-m", model, image, "--json", "--percentile", "10");
    json = parse(&r, 0);
    double ranks[LAYERS];
    for (int l = 0; l < LAYERS; l++)
        ranks[l] = number(cJSON_GetArrayItem(get(json, "layer"), l), "rank");
    qsort(ranks, LAYERS, sizeof *ranks, by_value);
    assert_true(ranks[1] - ranks[0] > 0.1); /* a tenth of the way from the least to the most of 8 values: place 0.7 */
    assert_true(fabs(number(json, "threshold") - (0.3 * ranks[0] + 0.7 * ranks[1])) < 1e-3);
    assert_suggestion(json, 0);
    cJSON_Delete(json);
}

static void the_table_names_layers_and_choice(void **state)
{
    (void)state;
    need_lapack();
    command_result r = RUN("arank", "-m", model, image, other_image, "--threshold", "1");
    assert_int_equal(r.status, 0);
    assert_non_null(strstr(r.out, "2 samples of "));
    assert_non_null(strstr(r.out, "MoD layers: 1,2,3,4,5,6\n"));
    assert_non_null(strstr(r.out, "dense, always\n"));
    assert_non_null(strstr(r.err, "64 attention maps"));
    assert_int_equal(count_lines(r.out), 3 + LAYERS + 2);
    command_result_free(&r);
    r = RUN("arank", "-m", model, image, "--threshold", "0", "-q");
    assert_non_null(strstr(r.out, "MoD layers: none\n"));
    assert_string_equal(r.err, "");
    command_result_free(&r);
}

static int pixels_of(const sq_image *png, uint32_t colour)
{
    int n = 0;
    for (uint32_t i = 0; i < png->w * png->h; i++)
        n += ((uint32_t)png->rgb[3 * i] << 16 | (uint32_t)png->rgb[3 * i + 1] << 8 | png->rgb[3 * i + 2]) == colour;
    return n;
}

static void the_plot_shows_the_choice(void **state)
{
    (void)state;
    need_lapack();
    const squint_allocator a = sq_allocator_or_default(NULL);
    const char *path = temp_path(".png");
    for (int all = 0; all < 2; all++) {
        command_result r = RUN("arank", "-m", model, image, "--threshold", all ? "1" : "0.5", "--plot", path, "-q");
        sq_image png;
        assert_int_equal(r.status, 0);
        assert_int_equal(sq_image_read(&png, path, &a, NULL), SQUINT_OK);
        assert_true(png.w == 1000 && png.h == 560);
        const int dense = pixels_of(&png, 0x4C78A8), mod = pixels_of(&png, 0xF2A33C), limit = pixels_of(&png, 0xC5221F);
        assert_true(dense > 20000 && limit > 500);
        assert_true(all ? mod > 2 * dense : mod < 1000); /* six layers of eight, or the key alone */
        sq_image_free(&png, &a);
        command_result_free(&r);
    }
    remove(path);
    assert_failed(RUN("arank", "-m", model, image, "--json", "--plot", "/nowhere/at/all.png", "-q", "--threads", "x"),
                  2, "--threads");
    command_result r = RUN("arank", "-m", model, image, "--plot", "/nowhere/at/all.png", "-q");
    assert_int_equal(r.status, 1);
    assert_non_null(strstr(r.err, "/nowhere/at/all.png: cannot be written"));
    assert_non_null(strstr(r.out, "MoD layers"));
    command_result_free(&r);
}

static void threads_do_not_matter(void **state)
{
    (void)state;
    need_lapack();
    command_result one = RUN("arank", "-m", model, image, other_image, "--json", "--threads", "1");
    command_result three = RUN("arank", "-m", model, image, other_image, "--json", "--threads", "3");
    assert_int_equal(one.status, 0);
    assert_string_equal(one.out, three.out);
    command_result_free(&one);
    command_result_free(&three);
}

static void failures_are_told(void **state)
{
    (void)state;
    assert_failed(RUN("arank", "-m", model), 2, "which images?");
    assert_failed(RUN("arank", "-m", model, image, "--threshold", "0.1", "--percentile", "3"), 2, "not both");
    assert_failed(RUN("arank", "-m", model, image, "--threshold", "1.5"), 2, "--threshold");
    if (!rank_available()) {
        assert_failed(RUN("arank", "-m", model, image), 1, "OpenBLAS");
        return;
    }
    const char *blank = write_text("\n\r\n\n");
    assert_failed(RUN("arank", "-m", model, image, "--prompts", blank), 1, "has no prompts");
    assert_failed(RUN("arank", "-m", model, image, "--prompts", "/nowhere/at/all"), 1, "/nowhere/at/all");
    remove(blank);
    char words[1024] = "";
    for (int i = 0; i < 150; i++)
        strcat(words, "red ");
    const char *longest = write_text(words);
    assert_failed(RUN("arank", "-m", model, image, "--prompts", longest, "-q"), 1, "the model takes 128");
    remove(longest);
    assert_failed(RUN("arank", "-m", model, "/nowhere/at/all.jpg", "-q"), 1, "/nowhere/at/all.jpg");
    command_result r = RUN("arank", "-m", model, "/nowhere/at/all.jpg", image, "--json", "-q"); /* the others go on */
    cJSON *json = parse(&r, 1);
    const cJSON *sample = cJSON_GetArrayItem(get(json, "sample"), 0), *layer = get(json, "layer")->child;
    assert_int_equal(cJSON_GetArraySize(get(json, "sample")), 1);
    assert_true(number(layer, "rank") == get(sample, "rank")->child->valuedouble);
    cJSON_Delete(json);
}

static int open_golden(void **state)
{
    (void)state;
    sq_str text;
    if (sq_gguf_open(&golden, test_path("golden/arank.gguf"), NULL, NULL)) return 1;
    if (sq_gguf_open(&picture, test_path("golden/tiny-pmod.golden.gguf"), NULL, NULL)) return 1;
    if (sq_gguf_get_str(picture, "caption", true, &text, NULL)) return 1;
    snprintf(caption, sizeof caption, "%.*s", (int)text.len, text.s);
    snprintf(model, sizeof model, "%s", test_path("golden/tiny-pmod.gguf"));
    snprintf(image, sizeof image, "%s", temp_path(".ppm"));
    snprintf(other_image, sizeof other_image, "%s", test_path("golden/images/baseline-420.jpg"));
    const sq_gguf_tensor *const pixels = find(picture, "picture");
    write_picture(image, pixels->data, (unsigned)pixels->ne[1], (unsigned)pixels->ne[2]);
    return 0;
}

static int close_golden(void **state)
{
    (void)state;
    remove(image);
    sq_gguf_close(&golden);
    sq_gguf_close(&picture);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranks_equal_numpys),
        cmocka_unit_test(a_matrix_that_is_not_finite_has_no_rank),
        cmocka_unit_test(maps_are_pytorchs),
        cmocka_unit_test(a_sample_has_pytorchs_ranks),
        cmocka_unit_test(images_and_prompts_go_in_pairs),
        cmocka_unit_test(low_ranks_are_suggested),
        cmocka_unit_test(the_table_names_layers_and_choice),
        cmocka_unit_test(the_plot_shows_the_choice),
        cmocka_unit_test(threads_do_not_matter),
        cmocka_unit_test(failures_are_told),
    };
    return cmocka_run_group_tests(tests, open_golden, close_golden);
}
