/*
 * JSON lines by cJSON, from bytes that may be anything.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/base.h"
#include "tools/squint/cli.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Bytes of the character at s, or of as much of one as is there; *whole tells which. At least 1. */
static size_t next_character(const char *s, size_t n, bool *whole)
{
    const int length = sq_utf8_next(s, n);
    size_t have = 1;
    *whole = length > 0 && *s;
    if (length > 0) return (size_t)length;
    while (have < n && sq_utf8_next(s, have) < 0 && sq_utf8_next(s, have + 1) < 0)
        have++;
    return have;
}

size_t cli_clean_text(const char *text, size_t bytes, char *out)
{
    static const char replacement[] = "\xEF\xBF\xBD";
    size_t used = 0;
    for (size_t at = 0, n; at < bytes; at += n) {
        bool whole;
        n = next_character(text + at, bytes - at, &whole);
        memcpy(out + used, whole ? text + at : replacement, whole ? n : 3);
        used += whole ? n : 3;
    }
    out[used] = 0;
    return used;
}

cJSON *cli_json_text(const char *text, size_t bytes)
{
    char *clean = cli_alloc(3 * bytes + 1, 1);
    cli_clean_text(text, bytes, clean);
    cJSON *json = cJSON_CreateString(clean);
    free(clean);
    return json;
}

void cli_json_number(cJSON *object, const char *key, double value, int digits)
{
    const double unit = pow(10, digits);
    cJSON_AddNumberToObject(object, key, round(value * unit) / unit);
}

cJSON *cli_json_ids(const uint32_t *ids, size_t n)
{
    cJSON *array = cJSON_CreateArray();
    for (size_t i = 0; i < n; i++)
        cJSON_AddItemToArray(array, cJSON_CreateNumber(ids[i]));
    return array;
}

void cli_json_runner(cJSON *object, const squint_session *session, const squint_model *model)
{
    cJSON_AddStringToObject(object, "device", squint_model_device(model));
    cJSON_AddStringToObject(object, "isa", squint_model_isa(model));
    cJSON_AddNumberToObject(object, "threads", squint_session_threads(session));
}

void cli_json_line(FILE *f, cJSON *json)
{
    char *text = cJSON_PrintUnformatted(json);
    cJSON_Delete(json);
    if (!text) {
        cli_say("out of memory");
        exit(CLI_FAILED);
    }
    fputs(text, f);
    putc('\n', f);
    cJSON_free(text);
}
