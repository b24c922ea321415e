/*
 * JSON lines by cJSON, from bytes that may be anything.
 * SPDX-License-Identifier: MIT
 */
#include "tools/squint/cli.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Bytes of the well-formed UTF-8 character at s (RFC 3629, table 3-7 of Unicode); 0 when there is none. */
static size_t utf8_length(const unsigned char *s, size_t n)
{
    if (s[0] < 0x80) return 1;
    const size_t len = s[0] >= 0xF0 ? 4 : s[0] >= 0xE0 ? 3 : 2;
    if (s[0] < 0xC2 || s[0] > 0xF4 || len > n) return 0;
    for (size_t i = 1; i < len; i++)
        if ((s[i] & 0xC0) != 0x80) return 0;
    const unsigned second = s[1];
    if ((s[0] == 0xE0 && second < 0xA0) || (s[0] == 0xED && second > 0x9F)) return 0; /* overlong, surrogate */
    if ((s[0] == 0xF0 && second < 0x90) || (s[0] == 0xF4 && second > 0x8F)) return 0; /* overlong, past U+10FFFF */
    return len;
}

cJSON *cli_json_text(const char *text, size_t bytes)
{
    const unsigned char *s = (const unsigned char *)text;
    char *clean = cli_alloc(3 * bytes + 1, 1), *out = clean;
    for (size_t i = 0; i < bytes;) {
        const size_t len = s[i] ? utf8_length(s + i, bytes - i) : 0;
        memcpy(out, len ? text + i : "\xEF\xBF\xBD", len ? len : 3);
        out += len ? len : 3;
        i += len ? len : 1;
    }
    *out = 0;
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
