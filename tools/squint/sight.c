/*
 * The choices of a model's layers, taken from a session.
 * SPDX-License-Identifier: MIT
 */
#include "tools/squint/sight.h"

#include "tools/squint/cli.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PIECE = 1024 };

static char *clean(const char *text, size_t bytes)
{
    char *out = cli_alloc(3 * bytes + 1, 1);
    cli_clean_text(text, bytes, out);
    return out;
}

static squint_route route_of(const squint_session *s, unsigned layer)
{
    squint_route r;
    squint_msg msg;
    if (squint_session_route(s, layer, &r, &msg)) {
        cli_say("%s", msg.text);
        exit(CLI_FAILED);
    }
    return r;
}

static float *copy_floats(const float *from, size_t n)
{
    return memcpy(cli_alloc(n, sizeof *from), from, n * sizeof *from);
}

static unsigned count(const bool *set, unsigned n)
{
    unsigned sum = 0;
    for (unsigned i = 0; i < n; i++)
        sum += set[i];
    return sum;
}

static void add_word(sight *out, const squint_model *m, unsigned id, bool generated, unsigned place)
{
    char piece[PIECE];
    const size_t bytes = squint_model_token(m, id, piece, sizeof piece);
    out->words[out->n_words++] = (sight_word){.text = clean(piece, bytes),
                                              .id = id,
                                              .generated = generated,
                                              .ran = place < out->n_sequence,
                                              .place = place,
                                              .skipped = cli_alloc(out->n_layers, sizeof(bool)),
                                              .scores = cli_alloc(out->n_layers, sizeof(float))};
}

static void add_words(sight *out, const squint_model *m, const squint_result *r)
{
    out->words = cli_alloc((size_t)r->n_prompt_tokens + r->n_tokens, sizeof *out->words);
    for (unsigned i = 0; i < r->n_prompt_tokens; i++)
        if (r->prompt[i] != UINT32_MAX) add_word(out, m, r->prompt[i], false, i);
    for (unsigned i = 0; i < r->n_tokens; i++)
        add_word(out, m, r->tokens[i], true, r->n_prompt_tokens + i);
}

static void add_layer(sight *out, unsigned l, const squint_route *route)
{
    sight_layer *const layer = &out->layers[l];
    const unsigned first = out->grid.first;
    bool *const runs = cli_alloc(route->n_tokens, sizeof *runs);
    for (unsigned i = 0; i < route->n_kept; i++)
        runs[route->kept[i]] = true;
    *layer = (sight_layer){
        .chooses = route->chooses, .n_kept = out->n_vision, .kv_prompt = route->n_kept_prompt, .kv_end = route->n_kept};
    if (route->scores) {
        layer->scores = copy_floats(route->scores + first, out->n_vision);
        layer->weights = copy_floats(route->weights + first, out->n_vision);
        layer->kept = memcpy(cli_alloc(out->n_vision, sizeof *runs), runs + first, out->n_vision * sizeof *runs);
        layer->n_kept = count(layer->kept, out->n_vision);
    }
    for (unsigned i = 0; i < out->n_words; i++) {
        sight_word *const w = &out->words[i];
        w->skipped[l] = w->ran && !runs[w->place];
        w->scores[l] = w->ran && route->scores ? route->scores[w->place] : NAN;
    }
    free(runs);
}

static void add_grids(sight *out, const squint_result *r)
{
    for (unsigned i = 1; i < r->n_grids && out->n_more < SIGHT_MOST_MORE; i++)
        if (r->grids[i].columns && r->grids[i].rows) out->more[out->n_more++] = r->grids[i];
}

void sight_of_caption(sight *out, const squint_model *m, const squint_session *s, const squint_result *r,
                      const char *file, const char *model)
{
    const char *const mode = squint_model_mode(m), *const device = squint_model_device(m);
    *out = (sight){.file = clean(file, strlen(file)),
                   .caption = clean(r->text, strlen(r->text)),
                   .model = clean(model, strlen(model)),
                   .mode = clean(mode, strlen(mode)),
                   .device = clean(device, strlen(device)),
                   .grid = r->grid,
                   .n_vision = r->n_vision_tokens,
                   .n_layers = r->n_layers,
                   .n_prompt = r->n_prompt_tokens,
                   .n_sequence = route_of(s, 0).n_tokens};
    out->layers = cli_alloc(out->n_layers, sizeof *out->layers);
    add_grids(out, r);
    add_words(out, m, r);
    for (unsigned l = 0; l < out->n_layers; l++) {
        const squint_route route = route_of(s, l);
        add_layer(out, l, &route);
    }
}

void sight_free(sight *s)
{
    for (unsigned l = 0; s->layers && l < s->n_layers; l++) {
        free(s->layers[l].kept);
        free(s->layers[l].scores);
        free(s->layers[l].weights);
    }
    for (unsigned i = 0; s->words && i < s->n_words; i++) {
        free(s->words[i].text);
        free(s->words[i].skipped);
        free(s->words[i].scores);
    }
    free(s->layers);
    free(s->words);
    free(s->file);
    free(s->caption);
    free(s->model);
    free(s->mode);
    free(s->device);
    *s = (sight){0};
}

unsigned sight_choosing(const sight *s)
{
    unsigned n = 0;
    for (unsigned l = 0; l < s->n_layers; l++)
        n += s->layers[l].chooses;
    return n;
}

unsigned sight_count(const sight *s, unsigned token)
{
    unsigned n = 0;
    for (unsigned l = 0; l < s->n_layers; l++)
        n += s->layers[l].chooses && s->layers[l].kept[token];
    return n;
}

void sight_share(const sight *s, double *ran, double *of)
{
    *ran = *of = 0;
    for (unsigned l = 0; l < s->n_layers; l++) {
        if (!s->layers[l].chooses) continue;
        *ran += s->layers[l].n_kept;
        *of += s->n_vision;
    }
}
