/*
 * The account of a caption's work, by stages and layers.
 * SPDX-License-Identifier: MIT
 */
#include "tools/squint/work.h"

/* A caption just made has a route for each of its layers. */
static squint_route route_of(const squint_session *session, unsigned layer)
{
    squint_route route;
    if (squint_session_route(session, layer, &route, NULL)) route = (squint_route){0};
    return route;
}

/* ---- As JSON ------------------------------------------------------------------------------- */

static cJSON *layer_json(const squint_route *route, unsigned vision)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "vision_tokens", vision);
    cJSON_AddNumberToObject(json, "prompt_tokens", route->n_kept_prompt);
    cJSON_AddNumberToObject(json, "generated_tokens", route->n_kept - route->n_kept_prompt);
    cJSON_AddNumberToObject(json, "prefill_macs", route->prefill_macs);
    cJSON_AddNumberToObject(json, "decode_macs", route->decode_macs);
    cJSON_AddNumberToObject(json, "kv_bytes", (double)route->kv_bytes);
    return json;
}

cJSON *work_json(const squint_session *session, const squint_result *r)
{
    cJSON *json = cJSON_CreateObject(), *layers = cJSON_CreateArray();
    cJSON_AddNumberToObject(json, "tower_macs", r->tower_macs);
    cJSON_AddNumberToObject(json, "prefill_macs", r->prefill_macs);
    cJSON_AddNumberToObject(json, "prefill_macs_skipped", r->prefill_macs_dense - r->prefill_macs);
    cJSON_AddNumberToObject(json, "decode_macs", r->decode_macs);
    cJSON_AddNumberToObject(json, "decode_macs_skipped", r->decode_macs_dense - r->decode_macs);
    cJSON_AddNumberToObject(json, "kv_bytes", (double)r->kv_bytes);
    cJSON_AddNumberToObject(json, "kv_bytes_skipped", (double)(r->kv_bytes_dense - r->kv_bytes));
    for (unsigned l = 0; l < r->n_layers; l++) {
        const squint_route route = route_of(session, l);
        cJSON_AddItemToArray(layers, layer_json(&route, r->kept[l]));
    }
    cJSON_AddItemToObject(json, "layer", layers);
    return json;
}

/* ---- As text ------------------------------------------------------------------------------- */

static double percent(double part, double whole) { return whole > 0 ? 100 * part / whole : 100; }

static void print_stage(const char *name, double ms, double done, double dense)
{
    char text[2][32];
    fprintf(stderr, "  %-10s %8.1f ms", name, ms);
    if (done > 0) fprintf(stderr, " %15s", cli_short_count(done, text[0]));
    if (dense > 0) fprintf(stderr, " %9s   %5.1f %%", cli_short_count(dense - done, text[1]), percent(done, dense));
    putc('\n', stderr);
}

/* The bar is of the prompt's tokens. */
static void print_layer(const squint_result *r, unsigned l, const squint_route *route)
{
    enum { CELLS = 20 };
    static const char full[] = "####################", empty[] = "....................";
    char text[2][32];
    const int cells = (int)((2 * CELLS * route->n_kept_prompt + r->n_prompt_tokens) / (2 * r->n_prompt_tokens));
    fprintf(stderr, "  %5u  %.*s%.*s %7u %7u %10u %15s %11s\n", l, cells, full, CELLS - cells, empty, r->kept[l],
            route->n_kept_prompt, route->n_kept - route->n_kept_prompt,
            cli_short_count(route->prefill_macs + route->decode_macs, text[0]),
            cli_short_bytes((double)route->kv_bytes, text[1]));
}

void work_print(const squint_session *session, const squint_result *r, const char *picture)
{
    char text[2][32];
    cli_say("%s: %u vision and %u text tokens, %u tokens written", picture, r->n_vision_tokens,
            r->n_prompt_tokens - r->n_vision_tokens, r->n_tokens);
    fprintf(stderr, "  stage             time   multiply-adds   skipped   of dense\n");
    print_stage("image", r->stage_ms[SQUINT_STAGE_IMAGE], 0, 0);
    print_stage("tower", r->stage_ms[SQUINT_STAGE_TOWER], r->tower_macs, 0);
    print_stage("prefill", r->stage_ms[SQUINT_STAGE_PREFILL], r->prefill_macs, r->prefill_macs_dense);
    print_stage("decode", r->stage_ms[SQUINT_STAGE_DECODE], r->decode_macs, r->decode_macs_dense);
    fprintf(stderr, "  layer  tokens run:          vision  prompt  generated   multiply-adds          KV\n");
    for (unsigned l = 0; l < r->n_layers; l++) {
        const squint_route route = route_of(session, l);
        print_layer(r, l, &route);
    }
    fprintf(stderr, "  keys and values: %s of a dense model's %s, %.1f %%\n",
            cli_short_bytes((double)r->kv_bytes, text[0]), cli_short_bytes((double)r->kv_bytes_dense, text[1]),
            percent((double)r->kv_bytes, (double)r->kv_bytes_dense));
}
