/*
 * squint merge: one file of a model's two.
 * SPDX-License-Identifier: MIT
 *
 * Keys and tensors are copied as they are, from the mappings to the new file: memory is not taken for them.
 */
#include "runtime/gguf.h"
#include "tools/squint/cli.h"

#include <stdlib.h>

static squint_err put_tensors(const sq_gguf *pair, sq_gguf_writer *out)
{
    const size_t n = sq_gguf_n_tensors(pair);
    for (size_t i = 0; i < n; i++) {
        const sq_gguf_tensor *const t = sq_gguf_tensor_at(pair, i);
        sq_gguf_put_tensor(out, t->name, t->n_dims, t->ne, t->type);
    }
    for (size_t i = 0; i < n; i++) {
        const sq_gguf_tensor *const t = sq_gguf_tensor_at(pair, i);
        cli_bar("merging", (double)i / (double)n);
        if (cli_interrupted()) return SQUINT_ERR_CANCELLED;
        sq_gguf_put_data(out, t->data, t->bytes);
    }
    return SQUINT_OK;
}

static squint_err write_pair(const sq_gguf *pair, const char *path, squint_msg *msg)
{
    sq_gguf_writer *out;
    squint_err err = sq_gguf_write_begin(&out, path, SQ_PANEL_ALIGN, NULL, msg);
    if (err) return err;
    for (size_t i = 0; i < sq_gguf_n_keys(pair); i++)
        sq_gguf_put_kv(out, sq_gguf_key(pair, i));
    err = put_tensors(pair, out);
    cli_bar_clear();
    if (!err) return sq_gguf_write_end(&out, msg);
    sq_gguf_write_abort(&out);
    return err;
}

static int merge(const char *model, const char *mmproj, const char *path)
{
    sq_gguf *pair;
    squint_msg msg = {""};
    cli_bar_enable();
    cli_watch_interrupts(NULL);
    squint_err err = sq_gguf_open_pair(&pair, model, mmproj, NULL, &msg);
    if (!err) err = write_pair(pair, path, &msg);
    cli_unwatch_interrupts();
    sq_gguf_close(&pair);
    return err ? cli_fail(err, &msg) : CLI_DONE;
}

static int run(const cli_command *self, int argc, char **argv)
{
    const cli_option options[] = {CLI_ROW_END};
    int first, status;
    if (!cli_parse(self, options, argc, argv, &first, &status)) return status;
    if (argc - first != 3) return cli_misuse(self, "merge: name the model, its vision half, and the file to write");
    if (!cli_spares("merge", argv[first + 2], "one of the halves", (const char *const *)argv + first, 2))
        return CLI_MISUSED;
    return merge(argv[first], argv[first + 1], argv[first + 2]);
}

const cli_command merge_command = {
    .name = "merge",
    .operands = "MODEL MMPROJ OUT",
    .summary = "make one file of a language model and its vision half",
    .details = "Reads the two files that llama.cpp has for a LLaVA model, checks that they belong together, and\n"
               "writes one of both: keys and tensors as they are. squint caption says the same with OUT as with\n"
               "-m MODEL --mmproj MMPROJ. squint quantize --mmproj does this and makes the weights smaller.",
    .run = run,
};
