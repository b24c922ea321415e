/*
 * bench_model: whole models of random weights. Prefill and decoding of decoders; a tower in int8 next to itself in
 * float. SPDX-License-Identifier: MIT
 *
 * Prefill and tower stand next to the peak loop of the table's instructions, decoding next to a loop that only reads
 * memory. What is compared takes turns. The best turn of each layer counts, so that a disturbance costs a layer's turn
 * and not that of all; of decoding, the best token.
 */
#include "bench/common.h"
#include "models/llava.h"

#include "config.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if SQ_HAVE_OPENBLAS
#include <cblas.h>
#endif

enum { MAX_LAYERS = 512, READ_SLICES = 16, READ_TURNS = 8 };

static const char program[] = "bench_model";

typedef struct options {
    uint32_t tokens, decode, layers, mib, rounds, threads; /* layers: 0 for the shape's own */
    const char *shape, *isa, *type;
    const char *model, *f32, *pictures; /* a tower of a file, next to that of another */
    bool json;
} options;

typedef struct bench {
    const options *o;
    const sq_kernels *kernels;
    const bench_peaks *peaks;
    sq_pool *pool, *all; /* of the peak loop; of the reading loop */
    uint8_t *memory;
    size_t bytes;
} bench;

static void check(squint_err err, const squint_msg *msg)
{
    if (!err) return;
    fprintf(stderr, "%s: %s\n", program, msg->text);
    exit(1);
}

/* ---- The clock of layers ------------------------------------------------------------------- */

/* Milliseconds of each layer and of what follows the last: the best of all turns. */
typedef struct layer_clock {
    unsigned threads, n_layers;
    double since, best[MAX_LAYERS + 1];
} layer_clock;

static layer_clock new_clock(unsigned threads, unsigned n_layers)
{
    layer_clock clock = {.threads = threads, .n_layers = n_layers};
    for (unsigned i = 0; i <= MAX_LAYERS; i++)
        clock.best[i] = INFINITY;
    return clock;
}

static void note_layer(layer_clock *clock, unsigned layer)
{
    const double now = bench_ms(clock->threads);
    clock->best[layer] = fmin(clock->best[layer], now - clock->since);
    clock->since = now;
}

static bool on_layer(void *user, squint_stage stage, unsigned done, unsigned total)
{
    (void)stage, (void)total;
    note_layer(user, done - 1);
    return true;
}

static double sum_of(const layer_clock *clock)
{
    double sum = 0;
    for (unsigned i = 0; i <= clock->n_layers; i++)
        sum += clock->best[i];
    return sum;
}

static void start_clock(layer_clock *clock, squint_session *s)
{
    s->on_progress = on_layer;
    s->progress_user = clock;
    clock->since = bench_ms(clock->threads);
}

/* ---- Decoders ------------------------------------------------------------------------------ */

typedef struct decoder_shape {
    const char *name;
    uint32_t n_layers, d, f, n_heads, n_kv_heads, n_vocab;
} decoder_shape;

static const decoder_shape decoders[] = {
    {"1.1b", 22, 2048, 5632, 32, 4, 32000},
    {"7b", 4, 4096, 11008, 32, 32, 32000}, /* 4 of 32 layers: all alike */
    {"tiny", 2, 256, 688, 8, 2, 512},
};

static const struct {
    sq_panel_type type;
    uint32_t group;
} types[] = {{SQ_PANEL_I8, 0}, {SQ_PANEL_I4, 128}};

typedef struct decoder_rates {
    double prefill_ms, prefill_macs, peak; /* peak: 10^9 a second */
    double token_ms, token_bytes, read;
} decoder_rates;

static const bench_column decoder_columns[] = {
    {"type", 10, BENCH_TEXT}, {"isa", 8, BENCH_TEXT}, {"model", 6, BENCH_TEXT},
    {"layers", 6, 0},         {"threads", 7, 0},      {"m", 5, 0},
    {"prefill_s", 9, 1},      {"gmacs", 8, 1},        {"peak_gmacs", 10, 1},
    {"of_peak", 7, 3},        {"decode_s", 8, 2},     {"gb_s", 6, 2},
    {"read_gb_s", 9, 2},      {"of_read", 7, 3},
};

static sq_synthetic decoder_of(const bench *b, const decoder_shape *shape, size_t type)
{
    return (sq_synthetic){.n_layers = b->o->layers ? b->o->layers : shape->n_layers,
                          .d = shape->d,
                          .f = shape->f,
                          .n_heads = shape->n_heads,
                          .n_kv_heads = shape->n_kv_heads,
                          .n_vocab = shape->n_vocab,
                          .n_ctx = b->o->tokens + b->o->decode,
                          .type = types[type].type,
                          .group = types[type].group};
}

static double matrix_bytes(const sq_synthetic *made, uint32_t n, uint32_t k)
{
    const sq_panels w = {.n = n, .k = k, .type = made->type, .group = made->group};
    return (double)sq_panels_bytes(&w);
}

/* Weights that a token reads. */
static double weight_bytes(const sq_synthetic *made)
{
    const uint32_t d = made->d, kv = d / made->n_heads * made->n_kv_heads;
    const double attention = 2 * matrix_bytes(made, d, d) + 2 * matrix_bytes(made, kv, d);
    const double mlp = 2 * matrix_bytes(made, made->f, d) + matrix_bytes(made, d, made->f);
    return made->n_layers * (attention + mlp) + matrix_bytes(made, made->n_vocab, d);
}

static void time_prefill(squint_session *s, const uint32_t *ids, uint32_t n, layer_clock *clock, decoder_rates *r)
{
    squint_msg msg;
    sq_session_reset(s);
    start_clock(clock, s);
    check(sq_session_forward(s, ids, n, 1, &msg), &msg);
    note_layer(clock, clock->n_layers);
    s->on_progress = NULL;
    r->prefill_macs = s->macs + (double)s->model->d * s->model->n_vocab;
}

/* Tokens after the prompt, each after turns of the reading loop. Wall's clock: memory does not wait for one thread. */
static void time_decode(const bench *b, squint_session *s, double weights, decoder_rates *r)
{
    const size_t slice = b->bytes / READ_SLICES;
    squint_msg msg;
    for (uint32_t i = 0; i < b->o->decode; i++) {
        for (uint32_t turn = 0; turn < READ_TURNS; turn++)
            bench_read_round(&r->read, b->memory + (i * READ_TURNS + turn) % READ_SLICES * slice, slice, b->all);
        const double start = sq_now_ms();
        check(sq_session_forward(s, &(uint32_t){i % s->model->n_vocab}, 1, 1, &msg), &msg);
        const double ms = sq_now_ms() - start;
        if (ms >= r->token_ms) continue;
        r->token_ms = ms;
        r->token_bytes = weights + (double)sq_session_kv_bytes(s);
    }
}

static decoder_rates measure_decoder(const bench *b, const sq_synthetic *made)
{
    const uint32_t n = b->o->tokens;
    const sq_limits limits = {.max_rows = n, .max_tokens = made->n_ctx, .max_logits = 1, .kv = SQ_KV_F16};
    const squint_model_options model_options = {.isa = b->o->isa};
    const squint_session_options session_options = {.threads = b->o->threads};
    squint_model *model;
    squint_session *session;
    squint_msg msg;
    check(sq_synthetic_open(&model, made, &model_options, &msg), &msg);
    check(sq_session_open_limits(&session, model, &session_options, &limits, &msg), &msg);
    uint32_t *const ids = bench_take(n * sizeof *ids);
    for (uint32_t i = 0; i < n; i++)
        ids[i] = i * 7 % made->n_vocab;
    layer_clock clock = new_clock(b->o->threads, made->n_layers);
    decoder_rates r = {.token_ms = INFINITY};
    for (uint32_t i = 0; i < b->o->rounds; i++) {
        bench_peak_round(&r.peak, made->type == SQ_PANEL_I4 ? b->peaks->i4 : b->peaks->i8, b->pool);
        time_prefill(session, ids, n, &clock, &r);
        time_decode(b, session, weight_bytes(made), &r);
    }
    r.prefill_ms = sum_of(&clock);
    free(ids);
    squint_session_close(&session);
    squint_model_close(&model);
    return r;
}

static void run_decoder(const bench *b, const decoder_shape *shape, size_t type)
{
    const sq_synthetic made = decoder_of(b, shape, type);
    const decoder_rates r = measure_decoder(b, &made);
    const double gmacs = r.prefill_macs * 1e-6 / r.prefill_ms, gb_s = r.token_bytes * 1e-6 / r.token_ms;
    const sq_panels w = {.type = made.type, .group = made.group};
    char name[16];
    const bench_cell cells[] = {
        {.text = bench_type_name(&w, name)},
        {.text = b->kernels->isa},
        {.text = shape->name},
        {.number = made.n_layers},
        {.number = b->o->threads},
        {.number = b->o->tokens},
        {.number = b->o->tokens * 1e3 / r.prefill_ms},
        {.number = gmacs},
        {.number = bench_known(r.peak)},
        {.number = bench_ratio(gmacs, r.peak)},
        {.number = 1e3 / r.token_ms},
        {.number = gb_s},
        {.number = r.read},
        {.number = bench_ratio(gb_s, r.read)},
    };
    static_assert(SQ_COUNT(cells) == SQ_COUNT(decoder_columns), "a cell a column");
    bench_row(decoder_columns, cells, SQ_COUNT(decoder_columns), b->o->json);
}

/* ---- Towers -------------------------------------------------------------------------------- */

typedef struct tower_shape {
    const char *name;
    sq_synthetic_tower tower;
} tower_shape;

static const tower_shape towers[] = {
    /* CLIP ViT-L/14-336 as LLaVA runs it: 23 layers of 24 */
    {"clip-l", {.image = 336, .patch = 14, .n_layers = 23, .d = 1024, .f = 4096, .n_heads = 16}},
    {"tiny", {.image = 56, .patch = 14, .n_layers = 2, .d = 64, .f = 128, .n_heads = 2}},
};

static const bench_column tower_columns[] = {
    {"type", 10, BENCH_TEXT},
    {"isa", 8, BENCH_TEXT},
    {"model", 6, BENCH_TEXT},
    {"layers", 6, 0},
    {"threads", 7, 0},
    {"m", 5, 0},
    {"ms", 8, 1},
    {"gmacs", 8, 1},
    {"peak_gmacs", 10, 1},
    {"of_peak", 7, 3},
    {"f32_ms", 8, 1},
    {"f32_blas", 10, BENCH_TEXT},
    {"f32_of_int8", 11, 2},
    {"cosine_least", 12, 6},
    {"cosine_mean", 11, 6},
};

/* A tower of one kind of weights, and what it said last. */
typedef struct tower_run {
    squint_model *model;
    squint_session *session;
    layer_clock clock;
    float *out; /* [n][d] */
    uint32_t n, d;
} tower_run;

static const sq_vit *vit_of(const tower_run *t) { return &((const sq_llava *)t->model->net)->vit; }

/* The tower ends here; the projector follows. */
static void on_trace(void *user, sq_trace_what what, int layer, const void *data, uint32_t rows, uint32_t cols)
{
    (void)layer;
    tower_run *const t = user;
    if (what != SQ_TRACE_TOWER) return;
    note_layer(&t->clock, t->clock.n_layers);
    memcpy(t->out, data, (size_t)rows * cols * sizeof *t->out);
}

static tower_run begin_tower(squint_model *model, squint_session *session)
{
    tower_run t = {.model = model, .session = session};
    t.n = vit_of(&t)->n_patches;
    t.d = vit_of(&t)->d;
    t.clock = new_clock(squint_session_threads(session), vit_of(&t)->n_layers);
    t.out = bench_take((size_t)t.n * t.d * sizeof *t.out);
    return t;
}

static tower_run make_tower(const bench *b, sq_synthetic_tower tower, bool f32)
{
    tower.f32 = f32;
    if (b->o->layers) tower.n_layers = b->o->layers;
    const uint32_t side = tower.image / tower.patch;
    const sq_synthetic made = {.n_layers = 1, /* the least that a model has */
                               .d = 64,
                               .f = 64,
                               .n_heads = 1,
                               .n_kv_heads = 1,
                               .n_vocab = 16,
                               .n_ctx = side * side + 1,
                               .type = SQ_PANEL_I8,
                               .tower = &tower};
    const sq_limits limits = {
        .max_rows = 1, .max_tokens = made.n_ctx, .max_logits = 1, .max_vision = side * side, .kv = SQ_KV_F16};
    const squint_model_options model_options = {.isa = b->o->isa};
    const squint_session_options session_options = {.threads = b->o->threads};
    squint_model *model;
    squint_session *session;
    squint_msg msg;
    check(sq_synthetic_open(&model, &made, &model_options, &msg), &msg);
    check(sq_session_open_limits(&session, model, &session_options, &limits, &msg), &msg);
    bench_fill_floats(session->pixels, (size_t)3 * tower.image * tower.image);
    return begin_tower(model, session);
}

static tower_run read_tower(const bench *b, const char *path)
{
    const squint_model_options model_options = {.isa = b->o->isa};
    const squint_session_options session_options = {.threads = b->o->threads};
    squint_model *model;
    squint_session *session;
    squint_msg msg;
    check(squint_model_open(&model, path, &model_options, &msg), &msg);
    if (!model->n_vision) bench_misuse(program, "model", path, "a model with a tower");
    check(squint_session_open(&session, model, &session_options, &msg), &msg);
    return begin_tower(model, session);
}

static void close_tower(tower_run *t)
{
    free(t->out);
    squint_session_close(&t->session);
    squint_model_close(&t->model);
}

static void time_tower(tower_run *t)
{
    squint_msg msg;
    t->session->trace = on_trace;
    t->session->trace_user = t;
    start_clock(&t->clock, t->session);
    check(sq_session_encode(t->session, &msg), &msg);
}

static double cosine(const float *a, const float *b, uint32_t n)
{
    double ab = 0, aa = 0, bb = 0;
    for (uint32_t i = 0; i < n; i++) {
        ab += (double)a[i] * b[i];
        aa += (double)a[i] * a[i];
        bb += (double)b[i] * b[i];
    }
    return ab / sqrt(aa * bb);
}

/* Two towers in turn. */
typedef struct tower_pair {
    const char *name;
    tower_run i8, f32;
    double peak;
    double least, sum; /* cosines of n tokens */
    size_t n;
} tower_pair;

static void time_pair(const bench *b, tower_pair *p)
{
    for (uint32_t i = 0; i < b->o->rounds; i++) {
        bench_peak_round(&p->peak, b->peaks->i8, b->pool);
        time_tower(&p->i8);
        time_tower(&p->f32);
    }
    for (size_t i = 0, d = p->i8.d; i < p->i8.n; i++) {
        const double c = cosine(p->i8.out + i * d, p->f32.out + i * d, p->i8.d);
        p->least = fmin(p->least, c);
        p->sum += c;
    }
    p->n += p->i8.n;
}

static double conv_macs(const sq_conv *c) { return (double)c->side * c->side * c->w.n * c->w.k; }

static double tower_macs(const sq_vit *t)
{
    const double rows = t->n_positions, d = t->d, f = t->f;
    double sum = conv_macs(&t->patch) + t->n_layers * (rows * d * (4 * d + 2 * f) + 2 * rows * rows * d);
    for (uint32_t i = 0; i < t->n_stem; i++)
        sum += conv_macs(&t->stem[i]);
    return sum;
}

/* The kernels that float products run on: OpenBLAS chooses them itself, or by OPENBLAS_CORETYPE. */
static const char *blas_name(void)
{
#if SQ_HAVE_OPENBLAS
    return openblas_get_corename();
#else
    return "none";
#endif
}

static void end_pair(const bench *b, tower_pair *p)
{
    const double ms = sum_of(&p->i8.clock), f32_ms = sum_of(&p->f32.clock);
    const double gmacs = tower_macs(vit_of(&p->i8)) * 1e-6 / ms;
    const bench_cell cells[] = {
        {.text = "int8"},
        {.text = b->kernels->isa},
        {.text = p->name},
        {.number = p->i8.clock.n_layers},
        {.number = b->o->threads},
        {.number = p->i8.n},
        {.number = ms},
        {.number = gmacs},
        {.number = bench_known(p->peak)},
        {.number = bench_ratio(gmacs, p->peak)},
        {.number = f32_ms},
        {.text = blas_name()},
        {.number = bench_ratio(f32_ms, ms)},
        {.number = p->least},
        {.number = p->sum / (double)p->n},
    };
    static_assert(SQ_COUNT(cells) == SQ_COUNT(tower_columns), "a cell a column");
    bench_row(tower_columns, cells, SQ_COUNT(tower_columns), b->o->json);
    close_tower(&p->f32);
    close_tower(&p->i8);
}

static void run_tower(const bench *b, const tower_shape *shape)
{
    tower_pair p = {.name = shape->name, .least = 1};
    p.i8 = make_tower(b, shape->tower, false);
    p.f32 = make_tower(b, shape->tower, true);
    time_pair(b, &p);
    end_pair(b, &p);
}

/* ---- Towers of files ----------------------------------------------------------------------- */

static void show(const tower_run *t, const sq_image *image)
{
    squint_msg msg;
    check(sq_session_picture(t->session, image->rgb, image->w, image->h, (size_t)image->w * 3, &msg), &msg);
}

static void run_picture(const bench *b, const char *path, tower_pair *p)
{
    const squint_allocator alloc = sq_allocator_or_default(NULL);
    sq_image image;
    squint_msg msg;
    check(sq_image_read(&image, path, &alloc, &msg), &msg);
    show(&p->i8, &image);
    show(&p->f32, &image);
    sq_image_free(&image, &alloc);
    time_pair(b, p);
}

/* Both towers on every picture of a folder, in which nothing else lies but what starts with a dot. */
static void run_files(const bench *b)
{
    tower_pair p = {.name = "file", .least = 1};
    p.i8 = read_tower(b, b->o->model);
    p.f32 = read_tower(b, b->o->f32);
    if (p.i8.n != p.f32.n || p.i8.d != p.f32.d)
        bench_misuse(program, "float", b->o->f32, "a model with the same tower");
    DIR *const folder = opendir(b->o->pictures);
    if (!folder) bench_misuse(program, "pictures", b->o->pictures, "a folder");
    for (const struct dirent *e; (e = readdir(folder));) {
        char path[4096];
        if (e->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "%s/%s", b->o->pictures, e->d_name);
        run_picture(b, path, &p);
    }
    closedir(folder);
    if (!p.n) bench_misuse(program, "pictures", b->o->pictures, "a folder with pictures");
    bench_head(tower_columns, SQ_COUNT(tower_columns), b->o->json);
    end_pair(b, &p);
}

/* ---- All models ---------------------------------------------------------------------------- */

static bool wants_shape(const options *o, const char *name) { return !o->shape || !strcmp(o->shape, name); }

static bool is_shape(const char *name)
{
    bool is = false;
    for (size_t i = 0; i < SQ_COUNT(decoders); i++)
        is |= !strcmp(name, decoders[i].name);
    for (size_t i = 0; i < SQ_COUNT(towers); i++)
        is |= !strcmp(name, towers[i].name);
    return is;
}

static void run_decoders(const bench *b)
{
    bool any = false;
    for (size_t i = 0; i < SQ_COUNT(decoders); i++)
        for (size_t type = 0; type < SQ_COUNT(types); type++) {
            if (!wants_shape(b->o, decoders[i].name) || !bench_wants_type(b->o->type, types[type].type)) continue;
            if (!any) bench_head(decoder_columns, SQ_COUNT(decoder_columns), b->o->json);
            any = true;
            run_decoder(b, &decoders[i], type);
        }
}

static void run_towers(const bench *b)
{
    bool any = false;
    for (size_t i = 0; i < SQ_COUNT(towers); i++) {
        if (!wants_shape(b->o, towers[i].name) || !bench_wants_type(b->o->type, SQ_PANEL_I8)) continue;
        if (!any) bench_head(tower_columns, SQ_COUNT(tower_columns), b->o->json);
        any = true;
        run_tower(b, &towers[i]);
    }
}

static options parse(int argc, char **argv)
{
    options o = {.tokens = 512, .decode = 4, .mib = 256, .rounds = 7, .threads = 1};
    const bench_option table[] = {
        {"shape", "1.1b, 7b (4 of its layers), clip-l or tiny (default: all)", .text = &o.shape},
        {"layers", "layers of each (default: the shape's own)", .number = &o.layers, .least = 1, .most = MAX_LAYERS},
        {"tokens", "of the prompt (512)", .number = &o.tokens, .least = 1, .most = 16384},
        {"decode", "tokens after it (4)", .number = &o.decode, .least = 1, .most = 16384},
        {"type", "weights, int8 or int4 (default: both)", .text = &o.type},
        {"mib", "MiB for the reading loop: several times the last cache (256)", .number = &o.mib, .least = 4,
         .most = 1 << 16},
        {"model", "a file with a quantised tower, instead of made models", .text = &o.model},
        {"float", "and one with the same tower in float", .text = &o.f32},
        {"pictures", "and a folder of pictures for both", .text = &o.pictures},
        {"isa", "one table only (default: the best)", .text = &o.isa},
        {"threads", "threads of the models (1); the reading loop takes all", .number = &o.threads, .least = 1,
         .most = 256},
        {"rounds", "the best of so many counts (7)", .number = &o.rounds, .least = 1, .most = 1000},
        {"json", "one JSON object a row", .flag = &o.json},
        {0},
    };
    bench_parse(program, table, argc, argv);
    bench_check_isa(program, o.isa);
    bench_check_type(program, o.type);
    if (!o.model != !o.f32 || !o.model != !o.pictures) {
        fprintf(stderr, "%s: --model, --float and --pictures go together\n", program);
        exit(2);
    }
    if (o.shape && !is_shape(o.shape)) bench_misuse(program, "shape", o.shape, "1.1b, 7b, clip-l or tiny");
    return o;
}

int main(int argc, char **argv)
{
    const options o = parse(argc, argv);
    bench b = {.o = &o, .kernels = sq_kernels_get(o.isa), .bytes = (size_t)o.mib << 20};
    b.peaks = bench_peaks_of(b.kernels->isa);
    b.pool = bench_pool(o.threads);
    b.all = bench_pool(sq_cpu_count());
    b.memory = bench_take(b.bytes);
    bench_fill(b.memory, b.bytes);
    if (o.model) {
        run_files(&b);
    } else {
        run_decoders(&b);
        run_towers(&b);
    }
    free(b.memory);
    sq_pool_close(&b.all);
    sq_pool_close(&b.pool);
    return 0;
}
