/*
 * Pictures with captions that people wrote, listed in a JSONL file.
 * SPDX-License-Identifier: MIT
 */
#include "tools/squint/dataset.h"

#include "tools/squint/cli.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static char *copy_text(const char *text)
{
    const size_t bytes = strlen(text) + 1;
    return memcpy(cli_alloc(bytes, 1), text, bytes);
}

/* folder/name; names from the root stay. */
static char *join_path(const char *folder, size_t folder_bytes, const char *name)
{
    if (name[0] == '/' || !folder_bytes) return copy_text(name);
    const size_t bytes = folder_bytes + strlen(name) + 2;
    char *path = cli_alloc(bytes, 1);
    snprintf(path, bytes, "%.*s/%s", (int)folder_bytes, folder, name);
    return path;
}

static const char *string_of(const cJSON *line, const char *key)
{
    return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(line, key));
}

/* What is wrong with the line, or NULL. */
static const char *read_captions(const cJSON *line, sample *s)
{
    const cJSON *captions = cJSON_GetObjectItemCaseSensitive(line, "captions"), *c;
    if (!cJSON_IsArray(captions)) return "no array \"captions\"";
    s->captions = cli_alloc((size_t)cJSON_GetArraySize(captions), sizeof *s->captions);
    cJSON_ArrayForEach(c, captions)
    {
        if (!cJSON_IsString(c)) return "\"captions\" holds something other than strings";
        s->captions[s->n_captions++] = copy_text(c->valuestring);
    }
    return s->n_captions ? NULL : "\"captions\" is empty";
}

static void free_sample(sample *s)
{
    for (size_t i = 0; i < s->n_captions; i++)
        free(s->captions[i]);
    free(s->captions);
    free(s->file);
    free(s->path);
}

/* One line into the next sample, unless it is of another split. Returns what is wrong with it, or NULL. */
static const char *read_sample(dataset *d, const char *text, size_t bytes, const char *folder, size_t folder_bytes,
                               const char *split)
{
    cJSON *line = cJSON_ParseWithLength(text, bytes);
    const char *wrong = cJSON_IsObject(line) ? NULL : "not a JSON object";
    const char *file = string_of(line, "file"), *of_split = string_of(line, "split");
    const bool wanted = !split || (of_split && !strcmp(split, of_split));
    if (!wrong && wanted && !(file && *file)) wrong = "no string \"file\"";
    if (!wrong && wanted) {
        sample s = {.file = copy_text(file), .path = join_path(folder, folder_bytes, file)};
        wrong = read_captions(line, &s);
        d->samples = cli_grow(d->samples, d->n + 1, sizeof *d->samples);
        d->samples[d->n++] = s;
    }
    cJSON_Delete(line);
    return wrong;
}

static bool read_list(dataset *d, FILE *f, const char *path, const char *split, size_t limit)
{
    const char *slash = strrchr(path, '/'), *wrong = NULL;
    const size_t folder_bytes = slash ? (size_t)(slash - path) + (slash == path) : 0;
    char *line = NULL;
    size_t capacity = 0, length, number = 0;
    bool failed = false;
    while (!wrong && (!limit || d->n < limit) && cli_read_line(f, path, &line, &capacity, &length, &failed)) {
        number++;
        if (line[strspn(line, " \t\r")]) wrong = read_sample(d, line, length, path, folder_bytes, split);
    }
    free(line);
    if (wrong) cli_say("%s:%zu: %s", path, number, wrong);
    if (wrong || failed) return false;
    if (d->n) return true;
    cli_say("%s: no pictures%s%s", path, split ? " of split " : "", split ? split : "");
    return false;
}

bool dataset_read(dataset *d, const char *path, const char *split, size_t limit)
{
    struct stat st;
    *d = (dataset){0};
    const bool folder = !stat(path, &st) && S_ISDIR(st.st_mode);
    char *list = folder ? join_path(path, strlen(path), "captions.jsonl") : copy_text(path);
    FILE *f = fopen(list, "rb");
    bool good = f != NULL;
    if (good)
        good = read_list(d, f, list, split, limit);
    else
        cli_say("%s: %s", list, strerror(errno));
    if (f) fclose(f);
    d->list = list;
    if (!good) dataset_free(d);
    return good;
}

void dataset_free(dataset *d)
{
    for (size_t i = 0; i < d->n; i++)
        free_sample(&d->samples[i]);
    free(d->samples);
    free(d->list);
    *d = (dataset){0};
}
