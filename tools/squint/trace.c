/*
 * Traces: what a model looked at, as JSON.
 * SPDX-License-Identifier: MIT
 *
 *   {"squint_trace": 1, "images": [{
 *     "file", "model", "mode", "caption": strings; and "device", which ran it,
 *     "picture": {"width", "height"},                       pixels
 *     "grid": {"columns", "rows", "x", "y", "width", "height"},
 *                          where the vision tokens lie, row by row: in the picture's pixels from its upper left corner
 *     "grids": [{"first": of the vision tokens, "row_tokens": from a row to the next, and as in "grid"}],
 *                          of a picture that was looked at in parts too; grids[0] is "grid"
 *     "vision_tokens", "first_vision", "prompt_tokens", "sequence": numbers; the sequence is the prompt and the
 *                          generated tokens that were fed back
 *     "layers": [{"layer", "chooses", "n": vision tokens, "n_kept": of them,
 *                 "kv_prompt", "kv_end": entries of its KV cache after the prefill and at the end,
 *                 "kept": [rising], "scores": [n], "weights": [n]}],       of a layer that chooses
 *     "prompt", "tokens": [{"id", "text", "place": in the sequence or null, "skipped": [layers],
 *                           "scores": [a layer each]}]                     where routers score text
 *   }]}
 *
 * Scores and weights are binary32 with all their digits, null where there is none.
 */
#include "runtime/image.h"
#include "tools/squint/cli.h"
#include "tools/squint/sight.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* ---- Writing ------------------------------------------------------------------------------- */

/* Nothing that a page could take for markup, or JavaScript for the end of a line. */
static void print_text(FILE *f, const char *text)
{
    putc('"', f);
    for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
        const bool separator = c[0] == 0xE2 && c[1] == 0x80 && (c[2] | 1) == 0xA9; /* U+2028 and U+2029 */
        if (*c < 0x20 || *c == 0x7F || strchr("\"\\<>&'", *c))
            fprintf(f, "\\u%04x", *c);
        else if (separator)
            fprintf(f, "\\u%04x", 0x2028 + (c[2] & 1));
        else
            putc(*c, f);
        if (separator) c += 2;
    }
    putc('"', f);
}

static void print_field(FILE *f, const char *key, const char *text)
{
    fprintf(f, "\"%s\":", key);
    print_text(f, text);
    putc(',', f);
}

static void print_floats(FILE *f, const char *key, const float *v, unsigned n)
{
    fprintf(f, ",\"%s\":[", key);
    for (unsigned i = 0; i < n; i++) {
        if (i) putc(',', f);
        if (isfinite(v[i]))
            fprintf(f, "%.9g", (double)v[i]);
        else
            fputs("null", f);
    }
    putc(']', f);
}

static void print_set(FILE *f, const char *key, const bool *set, unsigned n)
{
    const char *comma = "";
    fprintf(f, ",\"%s\":[", key);
    for (unsigned i = 0; i < n; i++) {
        if (!set[i]) continue;
        fprintf(f, "%s%u", comma, i);
        comma = ",";
    }
    putc(']', f);
}

static void print_layer(FILE *f, const sight *s, unsigned l)
{
    const sight_layer *const layer = &s->layers[l];
    fprintf(f, "%s\n  {\"layer\":%u,\"chooses\":%s,\"n\":%u,\"n_kept\":%u,\"kv_prompt\":%u,\"kv_end\":%u", l ? "," : "",
            l, layer->chooses ? "true" : "false", s->n_vision, layer->n_kept, layer->kv_prompt, layer->kv_end);
    if (layer->chooses) {
        print_set(f, "kept", layer->kept, s->n_vision);
        print_floats(f, "scores", layer->scores, s->n_vision);
        print_floats(f, "weights", layer->weights, s->n_vision);
    }
    putc('}', f);
}

static bool has_scores(const sight *s, const sight_word *w)
{
    for (unsigned l = 0; l < s->n_layers; l++)
        if (!isnan(w->scores[l])) return true;
    return false;
}

static void print_words(FILE *f, const sight *s, bool generated)
{
    const char *comma = "";
    for (unsigned i = 0; i < s->n_words; i++) {
        const sight_word *const w = &s->words[i];
        if (w->generated != generated) continue;
        fprintf(f, "%s\n  {\"id\":%u,\"text\":", comma, w->id);
        print_text(f, w->text);
        if (w->ran)
            fprintf(f, ",\"place\":%u", w->place);
        else
            fputs(",\"place\":null", f);
        print_set(f, "skipped", w->skipped, s->n_layers);
        if (has_scores(s, w)) print_floats(f, "scores", w->scores, s->n_layers);
        putc('}', f);
        comma = ",";
    }
}

static void print_grids(FILE *f, const sight *s)
{
    fputs("\n \"grids\":[", f);
    for (unsigned i = 0; i <= s->n_more; i++) {
        const squint_grid *const g = i ? &s->more[i - 1] : &s->grid;
        fprintf(f,
                "%s{\"first\":%u,\"row_tokens\":%u,\"columns\":%u,\"rows\":%u,\"x\":%.17g,\"y\":%.17g,"
                "\"width\":%.17g,\"height\":%.17g}",
                i ? "," : "", g->first - s->grid.first, i ? g->row_tokens : g->columns, g->columns, g->rows, g->x, g->y,
                g->w, g->h);
    }
    fputs("],", f);
}

void trace_print(FILE *f, const sight *s)
{
    const squint_grid *const g = &s->grid;
    putc('{', f);
    print_field(f, "file", s->file);
    print_field(f, "model", s->model);
    print_field(f, "mode", s->mode);
    if (s->device) print_field(f, "device", s->device);
    print_field(f, "caption", s->caption);
    fprintf(f, "\n \"picture\":{\"width\":%u,\"height\":%u},", g->picture_w, g->picture_h);
    fprintf(f, "\"grid\":{\"columns\":%u,\"rows\":%u,\"x\":%.17g,\"y\":%.17g,\"width\":%.17g,\"height\":%.17g},",
            g->columns, g->rows, g->x, g->y, g->w, g->h);
    if (s->n_more) print_grids(f, s);
    fprintf(f, "\n \"vision_tokens\":%u,\"first_vision\":%u,\"prompt_tokens\":%u,\"sequence\":%u,\n \"layers\":[",
            s->n_vision, g->first, s->n_prompt, s->n_sequence);
    for (unsigned l = 0; l < s->n_layers; l++)
        print_layer(f, s, l);
    fputs("],\n \"prompt\":[", f);
    print_words(f, s, false);
    fputs("],\n \"tokens\":[", f);
    print_words(f, s, true);
    fputs("]}", f);
}

static bool tell_io(const char *path)
{
    cli_say("%s cannot be written: %s", path, strerror(errno));
    return false;
}

bool trace_open(trace_file *t, const char *path)
{
    *t = (trace_file){.f = fopen(path, "wb"), .path = path};
    if (!t->f) return tell_io(path);
    fputs("{\"squint_trace\":1,\"images\":[", t->f);
    return true;
}

void trace_add(trace_file *t, const sight *s)
{
    fputs(t->n++ ? ",\n" : "\n", t->f);
    trace_print(t->f, s);
}

bool trace_close(trace_file *t)
{
    if (!t->f) return true;
    fputs("\n]}\n", t->f);
    const bool failed = fflush(t->f) || ferror(t->f);
    if (failed) tell_io(t->path);
    fclose(t->f);
    t->f = NULL;
    return !failed;
}

/* ---- Reading ------------------------------------------------------------------------------- */

enum {
    MOST_BYTES = 64 << 20,
    MOST_TEXT = 65536,
    MOST_SIDE = 256, /* patches */
    MOST_LAYERS = 512,
    MOST_TOKENS = 1 << 24,
    MOST_MEMORY = 1 << 28, /* that what was read may take: a short list can ask for much */
};

/* Keeps the first failure, after which everything reads as nothing. */
typedef struct reader {
    const char *path;
    unsigned image;
    bool failed;
    size_t taken; /* bytes */
} reader;

static void refuse(reader *r, const char *format, ...) CLI_PRINTF(2, 3);
static void refuse(reader *r, const char *format, ...)
{
    char text[512];
    va_list args;
    if (r->failed) return;
    r->failed = true;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    cli_say("%s: picture %u: %s", r->path, r->image, text);
}

/* NULL after a failure, and when there would be too much. n * size is far below SIZE_MAX. */
static void *take(reader *r, size_t n, size_t size)
{
    if (n * size > MOST_MEMORY - r->taken)
        refuse(r, "up to here the trace takes more than %d MiB; trace fewer pictures at a time", MOST_MEMORY >> 20);
    if (r->failed) return NULL;
    r->taken += n * size;
    return cli_alloc(n, size);
}

static const cJSON *field(reader *r, const cJSON *object, const char *where, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    if (!item) refuse(r, "%s%s is missing", where, key);
    return item;
}

static bool fits(const cJSON *item, double low, double high, bool whole)
{
    const double v = cJSON_IsNumber(item) ? item->valuedouble : NAN;
    return v >= low && v <= high && (!whole || v == floor(v));
}

static double read_number(reader *r, const cJSON *object, const char *where, const char *key, double low, double high,
                          bool whole)
{
    const cJSON *const item = field(r, object, where, key);
    if (!r->failed && !fits(item, low, high, whole))
        refuse(r, "%s%s is not a %snumber from %.10g to %.10g", where, key, whole ? "whole " : "", low, high);
    return r->failed ? low : item->valuedouble;
}

static unsigned read_whole(reader *r, const cJSON *object, const char *where, const char *key, unsigned low,
                           unsigned high)
{
    return (unsigned)read_number(r, object, where, key, low, high, true);
}

static char *read_text(reader *r, const cJSON *object, const char *where, const char *key)
{
    const cJSON *item = field(r, object, where, key);
    const size_t n = cJSON_IsString(item) ? strlen(item->valuestring) : SIZE_MAX;
    if (n > MOST_TEXT) refuse(r, "%s%s is not a text of up to %d bytes", where, key, MOST_TEXT);
    char *const out = take(r, 3 * (n < MOST_TEXT ? n : MOST_TEXT) + 1, 1);
    if (out) cli_clean_text(item->valuestring, n, out);
    return out;
}

/* An array of lowest to highest entries; its first one. */
static const cJSON *read_array(reader *r, const cJSON *object, const char *where, const char *key, unsigned lowest,
                               unsigned highest, unsigned *n)
{
    const cJSON *array = field(r, object, where, key);
    const int size = cJSON_IsArray(array) ? cJSON_GetArraySize(array) : -1;
    *n = 0;
    if (r->failed) return NULL;
    if (size < 0 || (unsigned)size < lowest || (unsigned)size > highest) {
        refuse(r, "%s%s is not a list of %u to %u entries", where, key, lowest, highest);
        return NULL;
    }
    *n = (unsigned)size;
    return array->child;
}

/* Rising numbers below n, as a set. */
static bool *read_set(reader *r, const cJSON *object, const char *where, const char *key, unsigned n, unsigned *count)
{
    const cJSON *item = read_array(r, object, where, key, 0, n, count);
    bool *const set = take(r, n, sizeof *set);
    double low = 0;
    for (unsigned i = 0; item && !r->failed; item = item->next, i++) {
        if (!fits(item, low, (double)n - 1, true)) {
            refuse(r, "%s%s[%u] is not a whole number from %.0f to %u", where, key, i, low, n - 1);
        } else {
            set[(unsigned)item->valuedouble] = true;
            low = item->valuedouble + 1;
        }
    }
    return set;
}

static float *read_floats(reader *r, const cJSON *object, const char *where, const char *key, unsigned n)
{
    unsigned count;
    const cJSON *item = read_array(r, object, where, key, n, n, &count);
    float *const out = take(r, n, sizeof *out);
    for (unsigned i = 0; item && !r->failed; item = item->next, i++) {
        if (!cJSON_IsNull(item) && !fits(item, -(double)FLT_MAX, (double)FLT_MAX, false))
            refuse(r, "%s%s[%u] is neither a number of 32 bits nor null", where, key, i);
        else
            out[i] = cJSON_IsNull(item) ? NAN : (float)item->valuedouble;
    }
    return out;
}

static void read_rectangle(reader *r, const cJSON *grid, const char *where, squint_grid *g)
{
    static const double far = 4.0 * SQ_IMAGE_MAX_SIDE, least = 1e-3;
    g->columns = read_whole(r, grid, where, "columns", 1, MOST_SIDE);
    g->rows = read_whole(r, grid, where, "rows", 1, MOST_SIDE);
    g->x = read_number(r, grid, where, "x", -far, far, false);
    g->y = read_number(r, grid, where, "y", -far, far, false);
    g->w = read_number(r, grid, where, "width", least, far, false);
    g->h = read_number(r, grid, where, "height", least, far, false);
}

static void read_grid(reader *r, const cJSON *json, squint_grid *g)
{
    const cJSON *const picture = field(r, json, "", "picture");
    g->picture_w = read_whole(r, picture, "picture.", "width", 1, SQ_IMAGE_MAX_SIDE);
    g->picture_h = read_whole(r, picture, "picture.", "height", 1, SQ_IMAGE_MAX_SIDE);
    if ((uint64_t)g->picture_w * g->picture_h > SQ_IMAGE_MAX_PIXELS)
        refuse(r, "picture: more than %d megapixels", SQ_IMAGE_MAX_PIXELS >> 20);
    read_rectangle(r, field(r, json, "", "grid"), "grid.", g);
}

/* Those after "grid", of n_vision tokens; sight.grid.first is known. */
static void read_more(reader *r, const cJSON *json, sight *s)
{
    unsigned n;
    const cJSON *item = read_array(r, json, "", "grids", 1, 1 + SIGHT_MOST_MORE, &n);
    for (item = item ? item->next : NULL; item && !r->failed; item = item->next) {
        squint_grid *const g = &s->more[s->n_more];
        char where[32];
        snprintf(where, sizeof where, "grids[%u].", ++s->n_more);
        *g = s->grid;
        read_rectangle(r, item, where, g);
        g->row_tokens = read_whole(r, item, where, "row_tokens", g->columns, g->columns + 1);
        g->first = read_whole(r, item, where, "first", 0, s->n_vision);
        if (!r->failed && g->rows * g->row_tokens > s->n_vision - g->first)
            refuse(r, "%sfirst: its %u tokens are more than there are", where, g->rows * g->row_tokens);
        g->first += s->grid.first;
    }
}

static void read_layer(reader *r, const cJSON *json, sight *s, unsigned l)
{
    char where[32];
    sight_layer *const layer = &s->layers[l];
    snprintf(where, sizeof where, "layers[%u].", l);
    const cJSON *chooses = field(r, json, where, "chooses");
    if (chooses && !cJSON_IsBool(chooses)) refuse(r, "%schooses is neither true nor false", where);
    layer->chooses = cJSON_IsTrue(chooses);
    read_whole(r, json, where, "layer", l, l);
    layer->n_kept = read_whole(r, json, where, "n_kept", 0, s->n_vision);
    layer->kv_prompt = read_whole(r, json, where, "kv_prompt", 0, s->n_prompt);
    layer->kv_end = read_whole(r, json, where, "kv_end", layer->kv_prompt, s->n_sequence);
    if (r->failed) return;
    if (!layer->chooses && layer->n_kept != s->n_vision)
        refuse(r, "%sn_kept: a layer that does not choose keeps all", where);
    if (!layer->chooses) return;
    unsigned n_kept;
    layer->kept = read_set(r, json, where, "kept", s->n_vision, &n_kept);
    if (n_kept != layer->n_kept) refuse(r, "%skept has %u entries, n_kept is %u", where, n_kept, layer->n_kept);
    layer->scores = read_floats(r, json, where, "scores", s->n_vision);
    layer->weights = read_floats(r, json, where, "weights", s->n_vision);
}

static void read_word(reader *r, const cJSON *json, sight *s, bool generated, const char *key, unsigned index)
{
    char where[32];
    unsigned n_skipped;
    snprintf(where, sizeof where, "%s[%u].", key, index);
    const cJSON *const place = field(r, json, where, "place");
    if (r->failed) return;
    sight_word *const w = &s->words[s->n_words++];
    *w = (sight_word){.generated = generated, .ran = !cJSON_IsNull(place)};
    if (w->ran || !generated) w->place = read_whole(r, json, where, "place", 0, s->n_sequence - 1);
    w->id = read_whole(r, json, where, "id", 0, UINT32_MAX - 1);
    w->text = read_text(r, json, where, "text");
    w->skipped = read_set(r, json, where, "skipped", s->n_layers, &n_skipped);
    if (cJSON_GetObjectItemCaseSensitive(json, "scores")) {
        w->scores = read_floats(r, json, where, "scores", s->n_layers);
        return;
    }
    w->scores = take(r, s->n_layers, sizeof *w->scores);
    for (unsigned l = 0; w->scores && l < s->n_layers; l++)
        w->scores[l] = NAN;
}

static void read_words(reader *r, const cJSON *json, sight *s)
{
    unsigned n_prompt, n_tokens;
    const cJSON *const prompt = read_array(r, json, "", "prompt", 0, s->n_prompt, &n_prompt);
    const cJSON *const tokens = read_array(r, json, "", "tokens", 0, MOST_TOKENS, &n_tokens);
    s->words = take(r, (size_t)n_prompt + n_tokens, sizeof *s->words);
    unsigned i = 0;
    for (const cJSON *item = prompt; item && !r->failed; item = item->next)
        read_word(r, item, s, false, "prompt", i++);
    i = 0;
    for (const cJSON *item = tokens; item && !r->failed; item = item->next)
        read_word(r, item, s, true, "tokens", i++);
}

static void read_sight(reader *r, const cJSON *json, sight *s)
{
    s->file = read_text(r, json, "", "file");
    s->model = read_text(r, json, "", "model");
    s->mode = read_text(r, json, "", "mode");
    if (cJSON_GetObjectItemCaseSensitive(json, "device")) s->device = read_text(r, json, "", "device");
    s->caption = read_text(r, json, "", "caption");
    read_grid(r, json, &s->grid);
    s->grid.row_tokens = s->grid.columns;
    const unsigned least = s->grid.columns * s->grid.rows;
    const bool has_more = cJSON_GetObjectItemCaseSensitive(json, "grids") != NULL;
    s->n_vision = read_whole(r, json, "", "vision_tokens", least, has_more ? MOST_TOKENS : least);
    s->n_prompt = read_whole(r, json, "", "prompt_tokens", s->n_vision, MOST_TOKENS);
    s->grid.first = read_whole(r, json, "", "first_vision", 0, s->n_prompt - s->n_vision);
    if (has_more) read_more(r, json, s);
    s->n_sequence = read_whole(r, json, "", "sequence", s->n_prompt, MOST_TOKENS);
    const cJSON *item = read_array(r, json, "", "layers", 1, MOST_LAYERS, &s->n_layers);
    s->layers = take(r, s->n_layers, sizeof *s->layers);
    for (unsigned l = 0; item && !r->failed; item = item->next)
        read_layer(r, item, s, l++);
    read_words(r, json, s);
}

void trace_free(sight *all, size_t n)
{
    for (size_t i = 0; i < n; i++)
        sight_free(&all[i]);
    free(all);
}

static char *read_file(const char *path, size_t *size)
{
    FILE *f = fopen(path, "rb");
    size_t room = 1 << 16, n = 0, got;
    char *text = cli_alloc(room, 1);
    while (f && n <= MOST_BYTES && (got = fread(text + n, 1, room - n, f)) > 0)
        if ((n += got) == room) text = cli_grow(text, room *= 2, 1);
    const bool failed = !f || ferror(f);
    if (failed) cli_say("%s cannot be read: %s", path, strerror(errno));
    if (!failed && n > MOST_BYTES)
        cli_say("%s is larger than the %d MiB that a trace may be; trace fewer pictures at a time", path,
                MOST_BYTES >> 20);
    if (f) fclose(f);
    *size = n;
    if (!failed && n <= MOST_BYTES) return text;
    free(text);
    return NULL;
}

static cJSON *parse_file(const char *path)
{
    size_t size;
    char *const text = read_file(path, &size);
    if (!text) return NULL;
    const char *end = NULL;
    cJSON *const json = cJSON_ParseWithLengthOpts(text, size, &end, false);
    if (!json) cli_say("%s is not JSON: byte %zu", path, end ? (size_t)(end - text) : 0);
    free(text);
    return json;
}

bool trace_read(const char *path, sight **out, size_t *n)
{
    cJSON *const json = parse_file(path);
    if (!json) return false;
    const cJSON *const version = cJSON_GetObjectItemCaseSensitive(json, "squint_trace");
    const cJSON *const images = cJSON_GetObjectItemCaseSensitive(json, "images");
    const int size = cJSON_IsArray(images) ? cJSON_GetArraySize(images) : 0;
    reader r = {.path = path};
    *n = 0;
    *out = cli_alloc((size_t)size, sizeof **out);
    if (!cJSON_IsNumber(version) || version->valuedouble != 1 || !cJSON_IsArray(images)) {
        cli_say("%s is not a trace of this squint: no \"squint_trace\": 1 with \"images\"", path);
        r.failed = true;
    } else if (!size) {
        cli_say("%s has no picture", path);
        r.failed = true;
    }
    for (const cJSON *item = size ? images->child : NULL; item && !r.failed; item = item->next) {
        r.image = (unsigned)*n + 1;
        read_sight(&r, item, &(*out)[(*n)++]);
    }
    cJSON_Delete(json);
    if (!r.failed) return true;
    trace_free(*out, *n);
    *out = NULL;
    *n = 0;
    return false;
}
