/*
 * What the tensors of a model file are for, and what they hold.
 * SPDX-License-Identifier: MIT
 */
#include "tools/squint/tensors.h"

#include <fnmatch.h>
#include <stdio.h>
#include <string.h>

const char *const part_names[PART_COUNT] = {"tower", "projector", "decoder", "routers"};

bool name_matches(sq_str name, const char *pattern)
{
    char text[256]; /* longer names match nothing: none of ours is that long */
    if (name.len >= sizeof text) return false;
    memcpy(text, name.s, name.len);
    text[name.len] = 0;
    return !fnmatch(pattern, text, 0);
}

model_part tensor_part(sq_str name)
{
    static const struct {
        const char *pattern;
        model_part part;
    } rules[] = {
        {"*mod_router*", PART_ROUTERS},
        {"v.*", PART_TOWER},
        {"mm.*", PART_PROJECTOR},
        {"model.image_newline", PART_PROJECTOR},
    };
    for (size_t i = 0; i < SQ_COUNT(rules); i++)
        if (name_matches(name, rules[i].pattern)) return rules[i].part;
    return PART_DECODER;
}

squint_err tensor_view_open(tensor_view *v, const sq_gguf *g, const sq_gguf_tensor *t, squint_msg *msg)
{
    *v = (tensor_view){.tensor = t, .n_dims = t->n_dims, .is_panels = sq_tensor_is_panels(t), .elements = 1};
    memcpy(v->ne, t->ne, sizeof v->ne);
    if (v->is_panels) {
        const squint_err err = sq_tensor_panels(g, t, &v->panels, msg);
        if (err) return err;
        v->n_dims = 2;
        v->ne[0] = v->panels.k;
        v->ne[1] = v->panels.n;
    }
    for (uint32_t i = 0; i < v->n_dims; i++)
        v->elements *= v->ne[i]; /* cannot overflow: the reader has checked the tensor's bytes */
    return SQUINT_OK;
}

void tensor_type_text(const tensor_view *v, char *out, size_t size)
{
    if (!v->is_panels)
        snprintf(out, size, "%s", sq_tensor_type_name(v->tensor->type));
    else if (v->panels.group)
        snprintf(out, size, "int%d panels, group %u", v->panels.type == SQ_PANEL_I4 ? 4 : 8, v->panels.group);
    else
        snprintf(out, size, "int%d panels", v->panels.type == SQ_PANEL_I4 ? 4 : 8);
}

void tensor_shape_text(const tensor_view *v, char *out, size_t size)
{
    size_t used = 0;
    for (uint32_t i = 0; i < v->n_dims && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%llu", i ? ", " : "[", (unsigned long long)v->ne[i]);
    if (used < size) snprintf(out + used, size - used, "%s", v->n_dims ? "]" : "[]");
}
