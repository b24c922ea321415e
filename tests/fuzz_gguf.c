/*
 * libFuzzer target: opens bytes as a model file and reads all that the checks let through.
 * SPDX-License-Identifier: MIT
 *
 *     CC=clang meson setup build-fuzz -Dfuzz=true -Db_sanitize=address,undefined -Db_lundef=false \
 *         -Dc_args=-fsanitize=fuzzer-no-link
 *     ninja -C build-fuzz tests/fuzz_gguf && build-fuzz/tests/fuzz_gguf -max_len=65536 CORPUS
 */
#include "runtime/tokenizer.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile uint8_t sink; /* keeps the reads */

static void read_all(const uint8_t *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        sink = data[i];
}

static void walk_keys(const sq_gguf *g)
{
    for (size_t i = 0; i < sq_gguf_n_keys(g); i++) {
        const sq_gguf_kv *kv = sq_gguf_key(g, i);
        const uint8_t *at = kv->data;
        read_all(kv->data, sq_gguf_type_bytes(kv->elem_type) * (size_t)kv->count);
        for (uint64_t j = 0; kv->elem_type == SQ_GGUF_STRING && j < kv->count; j++) {
            const sq_str s = sq_gguf_next_str(&at);
            read_all((const uint8_t *)s.s, s.len);
        }
    }
}

static void walk_tensors(const sq_gguf *g)
{
    squint_msg msg;
    for (size_t i = 0; i < sq_gguf_n_tensors(g); i++) {
        const sq_gguf_tensor *t = sq_gguf_tensor_at(g, i);
        sq_panels w;
        read_all(t->data, t->bytes);
        if (sq_tensor_panels(g, t, &w, &msg) == SQUINT_OK) read_all(w.data, sq_panels_bytes(&w));
    }
}

static void use_tokenizer(const sq_gguf *g)
{
    static const char text[] = "USER: a  \xF0\x9F\x98\x80 </s>\n\xFF";
    sq_tokenizer *t;
    squint_msg msg;
    uint32_t ids[sizeof text];
    char out[64];
    if (sq_tokenizer_open(&t, g, NULL, &msg)) return;
    void *scratch = malloc(sq_tokenizer_scratch(sizeof text));
    const size_t n = scratch ? sq_tokenize(t, text, sizeof text - 1, true, scratch, ids, sizeof text) : 0;
    if (n == SIZE_MAX) abort();
    for (size_t i = 0; i < n; i++)
        read_all((const uint8_t *)out, sq_detokenize(t, ids[i], out, sizeof out));
    free(scratch);
    sq_tokenizer_close(&t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    sq_gguf *g;
    squint_msg msg;
    if (sq_gguf_open_memory(&g, "fuzz.gguf", data, size, NULL, &msg)) return 0;
    walk_keys(g);
    walk_tensors(g);
    use_tokenizer(g);
    sq_gguf_close(&g);
    return 0;
}
