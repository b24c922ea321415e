/*
 * Prompts of one turn around one image.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/tokenizer.h"

#include <string.h>

/*
 * Before, the image, after_image, the user's prompt, after. LLaVA's conversation.py: with two separators
 * the system text and the user's turn end in a space, and the answer begins after "ASSISTANT:" without
 * one; with a single separator that stands between all parts.
 */
typedef struct form {
    const char *name;
    const char *before, *after_image, *after;
    const char *prompt; /* when the caller has none */
    const char *stop;   /* text that ends an answer, as the end token does */
    bool continued;     /* the prompt begins the answer: a text of its own, after everything else */
} form;

#define SYSTEM(who)                                                                                                    \
    "A chat between a curious " who " and an artificial intelligence assistant. The assistant gives helpful, "         \
    "detailed, and polite answers to the " who "'s questions."
#define DESCRIBE "Describe this image in one sentence."

static const form forms[] = {
    {"vicuna_v1", SYSTEM("user") " USER: ", "\n", " ASSISTANT:", DESCRIBE, "</s>", false},
    {"v1", SYSTEM("user") " USER: ", "\n", " ASSISTANT:", DESCRIBE, "</s>", false},
    {"llava_v1", SYSTEM("human") " USER: ", "\n", " ASSISTANT:", DESCRIBE, "</s>", false},
    {"llava_v0", SYSTEM("human") "###Human: ", "\n", "###Assistant:", DESCRIBE, "###", false},
    {"plain", "", "\n", "", "", "</s>", true},
};

enum { MAX_FIXED = 256 }; /* bytes of `before`, and of all that is after the image but the caller's prompt */

static_assert(sizeof SYSTEM("human") "###Human: " <= MAX_FIXED, "the longest text before an image");
static_assert(sizeof "\n" DESCRIBE "###Assistant:" <= MAX_FIXED, "the longest text after it");

static const form *find_form(sq_str name)
{
    for (size_t i = 0; i < SQ_COUNT(forms); i++)
        if (sq_str_eq(name, forms[i].name)) return &forms[i];
    return NULL;
}

bool sq_prompt_known(sq_str template_name) { return find_form(template_name) != NULL; }

const char *sq_prompt_stop(sq_str template_name) { return find_form(template_name)->stop; }

size_t sq_prompt_max_ids(size_t prompt_bytes)
{
    /* BOS, image, a token a byte, and one more for the space in front of each of three texts */
    size_t ids;
    return sq_add(prompt_bytes, 2 + 2 * MAX_FIXED + 3, &ids) ? ids : SIZE_MAX;
}

size_t sq_prompt_scratch(size_t prompt_bytes)
{
    size_t text, total;
    if (!sq_add(prompt_bytes, MAX_FIXED, &text) || !sq_add(text, sq_tokenizer_scratch(text), &total)) return SIZE_MAX;
    return total;
}

/* Ids being collected. `failed` stays set once they do not fit. */
typedef struct ids {
    const sq_tokenizer *t;
    void *scratch;
    uint32_t *out;
    size_t n, max;
    bool failed;
} ids;

static void add_id(ids *s, uint32_t id)
{
    s->failed = s->failed || s->n == s->max;
    if (!s->failed) s->out[s->n++] = id;
}

static void add_text(ids *s, const char *text, size_t bytes)
{
    if (s->failed) return;
    const size_t n = sq_tokenize(s->t, text, bytes, true, s->scratch, s->out + s->n, s->max - s->n);
    s->failed = n == SIZE_MAX;
    if (!s->failed) s->n += n;
}

static size_t join(char *out, const char *a, const char *b, const char *c)
{
    const size_t na = strlen(a), nb = strlen(b), nc = strlen(c);
    memcpy(out, a, na);
    memcpy(out + na, b, nb);
    memcpy(out + na + nb, c, nc);
    return na + nb + nc;
}

squint_err sq_prompt_ids(const sq_tokenizer *t, sq_str template_name, const char *prompt, void *scratch,
                         size_t scratch_bytes, uint32_t *out, size_t max_out, size_t *n_out, squint_msg *msg)
{
    const form *f = find_form(template_name);
    if (!f)
        return sq_fail(msg, SQUINT_ERR_UNSUPPORTED, "prompt template \"%.*s\" is not one of " SQ_PROMPT_TEMPLATES,
                       template_name.len < 64 ? (int)template_name.len : 64, template_name.s);
    const size_t prompt_bytes = prompt ? strlen(prompt) : 0;
    if (scratch_bytes < sq_prompt_scratch(prompt_bytes))
        return sq_fail(msg, SQUINT_ERR_LIMIT, "the prompt's %zu bytes are more than this session takes", prompt_bytes);
    if (prompt && (strstr(prompt, "<image>") || strstr(prompt, "<image-placeholder>")))
        return sq_fail(msg, SQUINT_ERR_ARGUMENT,
                       "the prompt holds an image mark: leave it out, the image is put in front of the prompt");

    char *text = scratch;
    ids s = {t, text + MAX_FIXED + prompt_bytes, out, 0, max_out, false};
    if (sq_tokenizer_add_bos(t)) add_id(&s, sq_tokenizer_bos(t));
    add_text(&s, f->before, strlen(f->before));
    add_id(&s, SQ_IMAGE_TOKEN);
    if (!prompt) prompt = f->prompt;
    add_text(&s, text, join(text, f->after_image, f->continued ? "" : prompt, f->after));
    if (f->continued) add_text(&s, prompt, strlen(prompt));
    if (s.failed) return sq_fail(msg, SQUINT_ERR_LIMIT, "the prompt is longer than %zu tokens", max_out);
    *n_out = s.n;
    return SQUINT_OK;
}

size_t sq_prompt_expand(uint32_t *prompt, size_t n, size_t n_vision)
{
    size_t image = 0;
    while (prompt[image] != SQ_IMAGE_TOKEN)
        image++;
    memmove(prompt + image + n_vision, prompt + image + 1, (n - image - 1) * sizeof *prompt);
    for (size_t i = 0; i < n_vision; i++)
        prompt[image + i] = SQ_IMAGE_TOKEN;
    return image;
}
