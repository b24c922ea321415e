/*
 * LLaMA's decoder (arXiv 2302.13971) over a sequence of text and vision tokens.
 * SPDX-License-Identifier: MIT
 */
#include "models/llava.h"

#include <math.h>
#include <string.h>

static uint32_t q_width(const sq_decoder *net) { return net->n_heads * net->head_dim; }
static uint32_t kv_width(const sq_decoder *net) { return net->n_kv_heads * net->head_dim; }
static uint32_t qkv_width(const sq_decoder *net) { return q_width(net) + 2 * kv_width(net); }

/* ---- blocks of rows ---- */

/*
 * A layer runs its rows in blocks, each through attention and MLP before the next: causal attention asks of rows that
 * follow nothing, of those before only what is in the cache. Between layers all rows are needed, within one only a
 * block's. Weights are read once a block; it is large enough that this hides behind the products.
 *
 * No bit depends on how rows are shared out, as long as no block is so small that attention adds in another order.
 */
enum {
    BLOCK_ROWS = 336,
    BLOCK_STEP = 48, /* a multiple of the kernels' tiles */
    FEW_ROWS = 3,    /* attention takes another way with so few: they go with the rows before them */
    MOST_ROWS = BLOCK_ROWS + FEW_ROWS,
};
static_assert(BLOCK_ROWS % BLOCK_STEP == 0, "blocks of about equal size are not larger");

uint32_t sq_decoder_block_rows(uint32_t max_rows) { return max_rows < MOST_ROWS ? max_rows : MOST_ROWS; }

uint32_t sq_decoder_blocks(uint32_t m) { return (m + BLOCK_ROWS - 1) / BLOCK_ROWS; }

/* Of m rows: about equal blocks. */
static uint32_t block_of(uint32_t m)
{
    const uint32_t n_blocks = sq_decoder_blocks(m);
    return sq_round_up((m + n_blocks - 1) / n_blocks, BLOCK_STEP);
}

/* Rows of the next block, of those that are left. */
static uint32_t next_block(uint32_t block, uint32_t left) { return left <= block + FEW_ROWS ? left : block; }

/* ---- planning ---- */

static void plan_kv(squint_session *s, const sq_decoder *net, sq_llava_state *state, sq_memory *memory)
{
    sq_arena *const host = &memory->host, *const arena = &memory->device;
    for (uint32_t l = 0; l < net->n_layers; l++) {
        const uint32_t capacity = sq_mod_capacity(s, net, l);
        uint8_t *const k = sq_take_unset(arena, capacity, net->n_kv_heads * sq_llava_kv_bytes(s));
        uint8_t *const v = sq_take_unset(arena, capacity, net->n_kv_heads * sq_llava_kv_bytes(s));
        uint32_t *const at = sq_take(host, capacity, sizeof *at);
        if (host->base && !host->full) state->kv[l] = (sq_kv_layer){.k = k, .v = v, .at = at, .capacity = capacity};
    }
}

/* Frequencies in binary32, as the reference computes them. */
static void fill_rope(float *rope, uint32_t n_positions, const sq_decoder *net)
{
    const uint32_t half = net->head_dim / 2;
    for (uint32_t i = 0; i < half; i++) {
        const float frequency = 1.0f / powf(net->rope_base, (float)(2 * i) / (float)net->head_dim);
        for (uint32_t p = 0; p < n_positions; p++) {
            const float angle = (float)p * frequency;
            rope[(size_t)p * net->head_dim + i] = cosf(angle);
            rope[(size_t)p * net->head_dim + half + i] = sinf(angle);
        }
    }
}

void sq_decoder_plan_lasting(squint_session *s, const sq_decoder *net, sq_llava_state *state, sq_memory *memory)
{
    state->rope = sq_take_unset(&memory->device, s->limits.max_tokens, net->head_dim * sizeof(float));
    state->kv = sq_take(&memory->host, net->n_layers, sizeof *state->kv);
}

squint_err sq_decoder_prepare(squint_session *s, squint_msg *msg)
{
    const sq_decoder *const net = &sq_llava_of(s)->decoder;
    float *const rope = sq_llava_state_of(s)->rope;
    const size_t bytes = (size_t)s->limits.max_tokens * net->head_dim * sizeof *rope;
    float *const table = s->compute.ops ? sq_alloc(&s->alloc, bytes) : rope;
    if (!table) return sq_fail(msg, SQUINT_ERR_NOMEM, "no memory for %u positions", s->limits.max_tokens);
    fill_rope(table, s->limits.max_tokens, net);
    if (table == rope) return SQUINT_OK;
    sq_write(&s->compute, rope, table, bytes);
    sq_free(&s->alloc, table, bytes);
    return sq_finish(&s->compute, msg);
}

/* The MLP begins when attention is done: they share memory. */
static void plan_block(const sq_decoder *net, sq_llava_state *state, sq_arena *arena, uint32_t rows)
{
    const size_t start = arena->used;
    state->qkv = sq_take_unset(arena, rows, qkv_width(net) * sizeof(float));
    state->attn = sq_take_unset(arena, rows, q_width(net) * sizeof(float));
    const size_t attention_end = arena->used;
    sq_arena_overlay(arena, start);
    state->mlp = sq_take_unset(arena, rows, (size_t)net->f * 2 * sizeof(float));
    if (arena->used < attention_end) arena->used = attention_end;
}

void sq_decoder_plan(squint_session *s, const sq_decoder *net, sq_llava_state *state, sq_memory *memory)
{
    const uint32_t rows = s->limits.max_rows;
    plan_kv(s, net, state, memory);
    state->x = sq_take_unset(&memory->device, rows, net->d * sizeof(float));
    plan_block(net, state, &memory->device, sq_decoder_block_rows(rows));
    sq_mod_plan(s, net, state, memory);
}

/* ---- one layer ---- */

/* Keys and values of a run's rows become entries of the layer's cache. */
static void store_kv(const sq_pass *p, const sq_kv_layer *kv, const sq_run *run)
{
    const sq_decoder *const net = p->net;
    const sq_kv_store store = {.qkv = p->state->qkv,
                               .ld = qkv_width(net),
                               .m = run->m,
                               .n_heads = net->n_heads,
                               .n_kv_heads = net->n_kv_heads,
                               .head_dim = net->head_dim,
                               .rope_half = net->rope_half,
                               .rope = p->state->rope,
                               .rows = run->rows,
                               .first = run->first,
                               .position = run->compressed ? kv->n : p->s->n_past,
                               .compressed = run->compressed,
                               .k = kv->k,
                               .v = kv->v,
                               .kv_type = p->s->limits.kv,
                               .n = kv->n,
                               .capacity = kv->capacity};
    sq_store_kv(&p->s->compute, &store);
    for (uint32_t i = 0; i < run->m; i++)
        kv->at[kv->n + i] = p->s->n_past + (run->host_rows ? run->host_rows[i] : run->first + i);
}

void sq_decoder_attend(const sq_pass *p, const sq_kv_layer *kv, uint32_t m)
{
    const sq_decoder *const net = p->net;
    const sq_heads heads = {
        .attn = {.q = p->state->qkv,
                 .ldq = qkv_width(net),
                 .k = kv->k,
                 .v = kv->v,
                 .ldkv = sq_kv_units(p->s->limits.kv, net->head_dim),
                 .kv_type = p->s->limits.kv,
                 .n_q = m,
                 .n_kv = kv->n + m,
                 .head_dim = net->head_dim,
                 .causal = true,
                 .first_kv = kv->n,
                 .scale = 1.0f / sqrtf((float)net->head_dim),
                 .out = p->state->attn,
                 .ldo = q_width(net)},
        .n_heads = net->n_heads,
        .n_kv_heads = net->n_kv_heads,
        .kv_head_bytes = kv->capacity * sq_llava_kv_bytes(p->s),
    };
    sq_attend(&p->s->compute, &heads);
}

/* x[rows] += weight * W_o attention(norm(x[rows])) */
static void attention_branch(const sq_pass *p, const sq_decoder_layer *w, sq_kv_layer *kv, const sq_run *run)
{
    const sq_decoder *const net = p->net;
    sq_llava_state *const state = p->state;
    sq_compute *const compute = &p->s->compute;
    const size_t ld = qkv_width(net);
    float *const x = state->x + (size_t)run->first * net->d;
    const sq_rows_in in = {.x = x,
                           .ldx = net->d,
                           .rows = run->rows,
                           .k = net->d,
                           .op = SQ_ROW_RMSNORM,
                           .weight = w->attn_norm,
                           .eps = net->eps};
    const sq_gemm_out qkv[] = {{.c = state->qkv, .ldc = ld},
                               {.c = state->qkv + q_width(net), .ldc = ld},
                               {.c = state->qkv + q_width(net) + kv_width(net), .ldc = ld}};
    sq_project(compute, &in, run->m, (const sq_mat *const[]){&w->q, &w->k, &w->v}, qkv, 3);

    store_kv(p, kv, run);
    sq_trace_floats(p->s, SQ_TRACE_QKV, (int)(w - net->layers), state->qkv, run->m, (uint32_t)ld);
    sq_decoder_attend(p, kv, run->m);
    kv->n += run->m;

    const sq_rows_in heads = {.x = state->attn, .ldx = q_width(net), .k = q_width(net), .op = SQ_ROW_COPY};
    const sq_gemm_out residual = {
        .c = x, .ldc = net->d, .rows = run->rows, .row_weight = run->attn_weight, .add = true};
    sq_project(compute, &heads, run->m, (const sq_mat *const[]){&w->o}, &residual, 1);
}

/* x[rows] += weight * MLP(norm(x[rows])) */
static void mlp_branch(const sq_pass *p, const sq_decoder_layer *w, const sq_run *run)
{
    const sq_decoder *const net = p->net;
    sq_llava_state *const state = p->state;
    sq_compute *const compute = &p->s->compute;
    const size_t ld = (size_t)net->f * 2;
    float *const x = state->x + (size_t)run->first * net->d;
    const sq_rows_in in = {.x = x,
                           .ldx = net->d,
                           .rows = run->rows,
                           .k = net->d,
                           .op = SQ_ROW_RMSNORM,
                           .weight = w->ffn_norm,
                           .eps = net->eps};
    const sq_gemm_out gate_up[] = {{.c = state->mlp, .ldc = ld}, {.c = state->mlp + net->f, .ldc = ld}};
    sq_project(compute, &in, run->m, (const sq_mat *const[]){&w->gate, &w->up}, gate_up, 2);

    const sq_rows_in hidden = {.x = state->mlp, .ldx = ld, .k = net->f, .op = SQ_ROW_SWIGLU};
    const sq_gemm_out residual = {.c = x, .ldc = net->d, .rows = run->rows, .row_weight = run->mlp_weight, .add = true};
    sq_project(compute, &hidden, run->m, (const sq_mat *const[]){&w->down}, &residual, 1);
}

double sq_decoder_layer_macs(const sq_decoder *net, double m, double n_past)
{
    const double per_row = (double)net->d * (2.0 * q_width(net) + 2.0 * kv_width(net) + 3.0 * net->f);
    const double keys = m * n_past + m * (m + 1) / 2;
    return m * per_row + 2 * keys * q_width(net);
}

/* Rows first .. first + m - 1 of a run. */
static sq_run part_of(const sq_run *run, uint32_t first, uint32_t m)
{
    return (sq_run){.m = m,
                    .first = run->rows ? 0 : run->first + first,
                    .rows = run->rows ? run->rows + first : NULL,
                    .host_rows = run->host_rows ? run->host_rows + first : NULL,
                    .mlp_weight = run->mlp_weight ? run->mlp_weight + first : NULL,
                    .attn_weight = run->attn_weight ? run->attn_weight + first : NULL,
                    .compressed = run->compressed};
}

void sq_decoder_layer_run(const sq_pass *p, uint32_t layer, const sq_run *run)
{
    const sq_decoder_layer *const w = &p->net->layers[layer];
    sq_kv_layer *const kv = &p->state->kv[layer];
    const uint32_t block = run->m ? block_of(run->m) : 0;
    p->s->macs += sq_decoder_layer_macs(p->net, run->m, kv->n);
    for (uint32_t first = 0, m; first < run->m; first += m) {
        m = next_block(block, run->m - first);
        const sq_run part = part_of(run, first, m);
        attention_branch(p, w, kv, &part);
        mlp_branch(p, w, &part);
    }
}

/* ---- a pass ---- */

/* Words one after another, pictures' tokens as many at a time as there are side by side. */
static squint_err embed(sq_pass *p, squint_msg *msg)
{
    const uint32_t d = p->net->d;
    const size_t bytes = d * sizeof(float);
    squint_session *const s = p->s;
    float *const word = s->compute.ops ? sq_alloc(&s->alloc, bytes) : NULL;
    if (s->compute.ops && !word) return sq_fail(msg, SQUINT_ERR_NOMEM, "no memory for a token's embedding");
    for (uint32_t i = 0, end; i < p->n; i = end) {
        float *const x = p->state->x + (size_t)i * d;
        for (end = i; end < p->n && p->ids[end] == SQ_IMAGE_TOKEN; end++) {
        }
        if (end > i) {
            sq_copy(&s->compute, x, s->vision + (size_t)p->n_vision * d, (end - i) * bytes);
            p->n_vision += end - i;
            continue;
        }
        sq_mat_row(&p->net->token_embd, p->ids[i], word ? word : x);
        if (word) sq_write(&s->compute, x, word, bytes);
        end = i + 1;
    }
    sq_free(&s->alloc, word, bytes);
    return SQUINT_OK;
}

void sq_decoder_logits(const sq_pass *p, uint32_t n_logits)
{
    const sq_decoder *const net = p->net;
    sq_mod_settle(p, p->n - n_logits);
    const sq_rows_in in = {.x = p->state->x + (size_t)(p->n - n_logits) * net->d,
                           .ldx = net->d,
                           .k = net->d,
                           .op = SQ_ROW_RMSNORM,
                           .weight = net->output_norm,
                           .eps = net->eps};
    const sq_gemm_out out = {.c = p->s->device_logits, .ldc = net->n_vocab};
    sq_project(&p->s->compute, &in, n_logits, (const sq_mat *const[]){&net->output}, &out, 1);
    sq_read(&p->s->compute, p->s->logits, p->s->device_logits, (size_t)n_logits * net->n_vocab * sizeof(float));
    sq_trace(p->s, SQ_TRACE_LOGITS, -1, p->s->logits, n_logits, net->n_vocab);
}

static void run_dense(const sq_pass *p, uint32_t layer)
{
    p->s->kept[layer] += p->n_vision;
    sq_mod_settle(p, 0);
    sq_decoder_layer_run(p, layer, &(sq_run){.m = p->n});
}

/* The sequence as if all rows were multiplied by their factors. To do that in place would change the last bits of the
 * layers that follow: a pass must not depend on who is watching. */
static squint_err trace_layer(const sq_pass *p, uint32_t layer, squint_msg *msg)
{
    squint_session *const s = p->s;
    sq_llava_state *const state = p->state;
    const size_t d = p->net->d, bytes = p->n * d * sizeof(float);
    if (!sq_traces(s, SQ_TRACE_LAYER)) return SQUINT_OK;
    float *const rows = sq_alloc(&s->alloc, bytes);
    if (!rows) return sq_fail(msg, SQUINT_ERR_NOMEM, "no memory to trace %u tokens", p->n);
    sq_read(&s->compute, rows, state->x, bytes);
    sq_read(&s->compute, state->lag, state->route.lag, p->n_targets * sizeof *state->lag);
    for (uint32_t i = 0; i < p->n_targets; i++)
        s->model->kernels->scale(rows + state->targets[i] * d, state->lag[i].factor, d);
    sq_trace(s, SQ_TRACE_LAYER, (int)layer, rows, p->n, p->net->d);
    sq_free(&s->alloc, rows, bytes);
    return SQUINT_OK;
}

squint_err sq_decoder_forward(squint_session *s, const uint32_t *ids, uint32_t n, uint32_t n_logits, squint_msg *msg)
{
    const sq_decoder *const net = &sq_llava_of(s)->decoder;
    sq_pass p = {.s = s, .net = net, .state = sq_llava_state_of(s), .ids = ids, .n = n};
    const squint_stage stage = n == 1 ? SQUINT_STAGE_DECODE : SQUINT_STAGE_PREFILL;
    const squint_err unembedded = embed(&p, msg);
    if (unembedded) return unembedded;
    sq_mod_begin(&p);
    sq_trace_floats(s, SQ_TRACE_EMBEDDED, -1, p.state->x, n, net->d);
    for (uint32_t l = 0; l < net->n_layers; l++) {
        squint_err err = SQUINT_OK;
        s->macs_dense += sq_decoder_layer_macs(net, n, s->n_past);
        if (p.n_targets && net->layers[l].is_mod)
            err = sq_mod_layer_run(&p, l, msg);
        else
            run_dense(&p, l);
        if (!err) err = trace_layer(&p, l, msg);
        if (err) return err;
        if (stage == SQUINT_STAGE_PREFILL && sq_session_stopped(s, stage, l + 1, net->n_layers))
            return sq_fail(msg, SQUINT_ERR_CANCELLED, "cancelled");
    }
    if (n_logits) sq_decoder_logits(&p, n_logits);
    return SQUINT_OK;
}
