/*
 * squint tokenize: text to a model's tokens and back.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/tokenizer.h"
#include "tools/squint/cli.h"

#include <stdlib.h>
#include <string.h>

typedef struct tokenize_job {
    const sq_tokenizer *tokenizer;
    bool pieces, decode, json;
} tokenize_job;

/* ---- Output -------------------------------------------------------------------------------- */

static cJSON *piece_json(const tokenize_job *job, uint32_t id)
{
    const sq_str piece = sq_tokenizer_piece(job->tokenizer, id);
    return cli_json_text(piece.s, piece.len);
}

static void print_json(const tokenize_job *job, const char *text, size_t bytes, const uint32_t *ids, size_t n)
{
    cJSON *json = cJSON_CreateObject(), *pieces = cJSON_CreateArray();
    for (size_t i = 0; i < n; i++)
        cJSON_AddItemToArray(pieces, piece_json(job, ids[i]));
    cJSON_AddItemToObject(json, "text", cli_json_text(text, bytes));
    cJSON_AddItemToObject(json, "ids", cli_json_ids(ids, n));
    cJSON_AddItemToObject(json, "pieces", pieces);
    cli_json_line(stdout, json);
}

static void print_ids(const tokenize_job *job, const uint32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const sq_str piece = sq_tokenizer_piece(job->tokenizer, ids[i]);
        if (job->pieces)
            printf("%u\t%.*s\n", ids[i], (int)piece.len, piece.s);
        else
            printf(i ? " %u" : "%u", ids[i]);
    }
    putchar('\n');
}

/* ---- One line ------------------------------------------------------------------------------ */

static bool encode(const tokenize_job *job, const char *text, size_t bytes)
{
    void *scratch = cli_alloc(sq_tokenizer_scratch(bytes), 1);
    const size_t room = bytes + 4;
    uint32_t *ids = cli_alloc(room, sizeof *ids);
    const size_t n = sq_tokenize(job->tokenizer, text, bytes, true, scratch, ids, room);
    if (n == SIZE_MAX)
        cli_say("a line of %zu bytes does not fit the tokenizer", bytes);
    else if (job->json)
        print_json(job, text, bytes, ids, n);
    else
        print_ids(job, ids, n);
    free(ids);
    free(scratch);
    return n != SIZE_MAX;
}

/* The next id of a list that spaces or commas part; false at its end, or with *bad set to what is none. */
static bool next_id(const tokenize_job *job, char **at, uint32_t *id, const char **bad)
{
    static const char parts[] = " \t,[]\r";
    uint64_t v;
    *at += strspn(*at, parts);
    if (!**at) return false;
    char *word = *at;
    *at += strcspn(*at, parts);
    if (**at) *(*at)++ = 0;
    if (!cli_number(word, 0, sq_tokenizer_size(job->tokenizer) - 1, &v)) return *bad = word, false;
    *id = (uint32_t)v;
    return true;
}

static bool decode(const tokenize_job *job, const char *line, size_t bytes)
{
    const size_t max_piece = sq_tokenizer_max_piece(job->tokenizer);
    char *copy = cli_alloc(bytes + 1, 1), *at = memcpy(copy, line, bytes);
    uint32_t *ids = cli_alloc(bytes / 2 + 1, sizeof *ids); /* an id and its space take two bytes */
    char *text = cli_alloc(bytes / 2 + 1, max_piece);
    const char *bad = NULL;
    size_t n = 0, used = 0;
    while (next_id(job, &at, &ids[n], &bad)) {
        used += sq_detokenize(job->tokenizer, ids[n], text + used, max_piece);
        n++;
    }
    const size_t skip = used && text[0] == ' '; /* the space that encoding puts in front */
    if (bad)
        cli_say("--decode: \"%s\" is not a number from 0 to %u", bad, sq_tokenizer_size(job->tokenizer) - 1);
    else if (job->json)
        print_json(job, text + skip, used - skip, ids, n);
    else {
        fwrite(text + skip, 1, used - skip, stdout);
        putchar('\n');
    }
    free(copy);
    free(ids);
    free(text);
    return !bad;
}

static bool do_line(const tokenize_job *job, const char *line, size_t bytes)
{
    return job->decode ? decode(job, line, bytes) : encode(job, line, bytes);
}

/* ---- The command --------------------------------------------------------------------------- */

/* The operands as one text, as echo does. */
static bool do_operands(const tokenize_job *job, char **words, int n)
{
    size_t bytes = 1;
    for (int i = 0; i < n; i++)
        bytes += strlen(words[i]) + 1;
    char *text = cli_alloc(bytes, 1);
    size_t used = 0;
    for (int i = 0; i < n; i++)
        used += (size_t)snprintf(text + used, bytes - used, i ? " %s" : "%s", words[i]);
    const bool good = do_line(job, text, used);
    free(text);
    return good;
}

static bool do_stdin(const tokenize_job *job)
{
    char *line = NULL;
    size_t capacity = 0, length;
    bool failed, good = true;
    while (good && cli_read_line(stdin, "standard input", &line, &capacity, &length, &failed))
        good = do_line(job, line, length);
    free(line);
    return good && !failed;
}

static int tokenize(tokenize_job *job, const char *model, char **words, int n)
{
    sq_gguf *g = NULL;
    sq_tokenizer *tokenizer = NULL;
    squint_msg msg;
    squint_err err = sq_gguf_open(&g, model, NULL, &msg);
    if (!err) err = sq_tokenizer_open(&tokenizer, g, NULL, &msg);
    int status = err ? cli_fail(err, &msg) : CLI_DONE;
    job->tokenizer = tokenizer;
    if (!err && !(n ? do_operands(job, words, n) : do_stdin(job))) status = CLI_FAILED;
    if (!cli_flush()) status = CLI_FAILED;
    sq_tokenizer_close(&tokenizer);
    sq_gguf_close(&g);
    return status;
}

static int run(const cli_command *self, int argc, char **argv)
{
    const char *model = NULL;
    tokenize_job job = {0};
    const cli_option options[] = {
        CLI_ROW_MODEL(&model),
        CLI_ROW_FLAG('p', "pieces", &job.pieces, "a line a token: id, tab, piece; an empty line after each text"),
        CLI_ROW_FLAG('d', "decode", &job.decode, "ids to text instead"),
        CLI_ROW_FLAG(0, "json", &job.json, "a JSON object a line: text, ids, pieces"),
        CLI_ROW_END,
    };
    int first, status;
    if (!cli_parse(self, options, argc, argv, &first, &status)) return status;
    if (!(model = cli_model_path(model))) return CLI_MISUSED;
    return tokenize(&job, model, argv + first, argc - first);
}

const cli_command tokenize_command = {
    .name = "tokenize",
    .operands = "[TEXT]",
    .summary = "text to a model's tokens, and back",
    .details = "Prints the token ids of TEXT, or of each line of standard input, without the begin token.\n"
               "With --decode, TEXT is ids, and their text is printed.",
    .run = run,
};
