/*
 * Names of the files that several pictures are painted to: no two alike, and none a picture's own.
 * SPDX-License-Identifier: MIT
 */
#include "tools/squint/cli.h"
#include "tools/squint/sight.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

enum { MOST_NAME = 4096 };

static bool ends_in(const char *text, const char *end)
{
    const size_t n = strlen(text), m = strlen(end);
    return n >= m && !strcasecmp(text + n - m, end);
}

static bool is_folder(const char *path)
{
    struct stat st;
    return !stat(path, &st) && S_ISDIR(st.st_mode);
}

/* The name without folder and ending. */
static void stem_of(const char *path, char *out, size_t size)
{
    const char *const slash = strrchr(path, '/'), *const name = slash ? slash + 1 : path;
    const char *const dot = strrchr(name, '.');
    const size_t n = dot && dot > name ? (size_t)(dot - name) : strlen(name);
    if (strcmp(path, "-"))
        snprintf(out, size, "%.*s", (int)(n < size ? n : size - 1), name);
    else
        snprintf(out, size, "stdin");
}

/* The pattern with `stem`, and for the second picture of this stem "-2", in the place of each %s. */
static char *fill(const char *pattern, const char *stem, unsigned number)
{
    char suffix[16] = "";
    if (number > 1) snprintf(suffix, sizeof suffix, "-%u", number);
    const size_t more = strlen(stem) + strlen(suffix);
    size_t places = 0;
    for (const char *p = pattern; (p = strstr(p, "%s")); p += 2)
        places++;
    char *const out = cli_alloc(strlen(pattern) + places * more + 1, 1), *to = out;
    for (const char *p = pattern; *p;) {
        if (strncmp(p, "%s", 2)) {
            *to++ = *p++;
        } else {
            to += sprintf(to, "%s%s", stem, suffix);
            p += 2;
        }
    }
    return out;
}

static bool is_taken(char *const *names, int n, const char *name)
{
    for (int i = 0; i < n; i++)
        if (!strcmp(names[i], name)) return true;
    return false;
}

static char *free_name(const char *pattern, const char *path, char *const *names, int n)
{
    char stem[MOST_NAME];
    stem_of(path, stem, sizeof stem);
    for (unsigned number = 1;; number++) {
        char *const name = fill(pattern, stem, number);
        if (!is_taken(names, n, name)) return name;
        free(name);
    }
}

static bool check_pattern(const char *option, const char *pattern, int n)
{
    if (!ends_in(pattern, ".png")) {
        cli_say("%s: \"%s\" is neither a folder nor a name that ends in .png", option, pattern);
        return false;
    }
    if (n == 1 || strstr(pattern, "%s")) return true;
    cli_say("%s: %d pictures and one file; let %%s stand for a picture's name (look-%%s.png), or name a folder", option,
            n);
    return false;
}

static bool check_names(const char *option, char *const *names, char *const *paths, int n)
{
    for (int i = 0; i < n; i++)
        if (!cli_spares(option, names[i], "one of the pictures", (const char *const *)paths, (size_t)n)) return false;
    return true;
}

void output_names_free(char **names, int n)
{
    for (int i = 0; names && i < n; i++)
        free(names[i]);
    free(names);
}

char **output_names(const char *option, const char *given, char *const *paths, int n)
{
    char pattern[MOST_NAME];
    const int length = snprintf(pattern, sizeof pattern, is_folder(given) ? "%s/%%s-look.png" : "%s", given);
    if (length >= MOST_NAME) {
        cli_say("%s: a name of more than %d bytes", option, MOST_NAME);
        return NULL;
    }
    if (!check_pattern(option, pattern, n)) return NULL;
    char **const names = cli_alloc((size_t)n, sizeof *names);
    for (int i = 0; i < n; i++)
        names[i] = free_name(pattern, paths[i], names, i);
    if (check_names(option, names, paths, n)) return names;
    output_names_free(names, n);
    return NULL;
}
