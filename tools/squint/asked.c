/*
 * Prompts and pictures for commands that run passes of their own.
 * SPDX-License-Identifier: MIT
 */
#include "tools/squint/asked.h"

#include "tools/squint/cli.h"

#include <stdlib.h>
#include <string.h>

squint_err asked_prompt(const squint_model *m, const char *text, uint32_t **ids, uint32_t *n, squint_msg *msg)
{
    const size_t bytes = text ? strlen(text) : 0;
    const size_t max_ids = sq_prompt_max_ids(bytes), scratch_bytes = sq_prompt_scratch(bytes);
    void *const scratch = cli_alloc(scratch_bytes, 1);
    size_t count = 0;
    *ids = cli_alloc(max_ids, sizeof **ids);
    const squint_err err =
        sq_prompt_ids(m->tokenizer, m->template_name, text, scratch, scratch_bytes, *ids, max_ids, &count, msg);
    free(scratch);
    *n = (uint32_t)count;
    return err;
}

uint32_t asked_limit(const squint_model *m)
{
    return m->max_expanded && m->max_expanded < m->n_ctx ? m->max_expanded : m->n_ctx;
}

squint_err asked_picture(squint_session *s, const char *path, squint_msg *msg)
{
    const squint_allocator a = sq_allocator_or_default(NULL);
    sq_image image = {0};
    squint_err err = sq_image_read(&image, path, &a, msg);
    if (err) return err;
    err = sq_session_picture(s, image.rgb, image.w, image.h, 3 * (size_t)image.w, msg);
    sq_image_free(&image, &a);
    return err;
}

squint_err asked_token(squint_session *s, uint32_t id, float *logits, int32_t *kv, squint_msg *msg)
{
    const squint_model *const m = s->model;
    const squint_err err = sq_session_forward(s, &id, 1, 1, msg);
    if (err) return err;
    memcpy(logits, s->logits, m->n_vocab * sizeof *logits);
    for (uint32_t l = 0; l < m->n_layers; l++) {
        uint32_t entries;
        m->family->kv_places(s, l, &entries);
        kv[l] = (int32_t)entries;
    }
    return SQUINT_OK;
}
