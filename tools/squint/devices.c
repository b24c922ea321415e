/*
 * Words for devices, and whether they are here.
 * SPDX-License-Identifier: MIT
 */
#include "tools/squint/devices.h"

#include "runtime/engine.h"
#include "tools/squint/cli.h"

#include <stdlib.h>
#include <string.h>

/* All tables of all CPUs: one that this CPU lacks is no unknown word. */
static const struct {
    const char *word, *isa;
} isas[] = {{"scalar", "scalar"},     {"avx2", "avx2"}, {"avxvnni", "avxvnni"}, {"avx512", "avx512"},
            {"avx512vnni", "avx512"}, {"neon", "neon"}, {"dotprod", "dotprod"}, {"i8mm", "i8mm"}};

static const struct {
    const char *word;
    bool cuda;
    sq_precision precision;
} words[] = {{"cpu", false, SQ_PRECISION_FILE},
             {"cpu:f32", false, SQ_PRECISION_F32},
             {"cuda", true, SQ_PRECISION_FILE},
             {"cuda:f32", true, SQ_PRECISION_F32},
             {"cuda:f16", true, SQ_PRECISION_F16}};

enum { N_ISAS = sizeof isas / sizeof *isas, N_WORDS = sizeof words / sizeof *words };

/* "cpu:avx2:f32" becomes "cpu:f32" and its ISA; other text stays as it is. */
static void take_isa(named_device *d, char *text)
{
    if (strncmp(text, "cpu:", 4)) return;
    const size_t n = strcspn(text + 4, ":");
    for (size_t i = 0; i < N_ISAS; i++) {
        if (strlen(isas[i].word) != n || strncmp(text + 4, isas[i].word, n)) continue;
        d->isa = isas[i].isa;
        memmove(text + 3, text + 4 + n, strlen(text + 4 + n) + 1);
        return;
    }
}

static bool read_one(named_device *d, const char *text, size_t length)
{
    char rest[sizeof d->name];
    if (length >= sizeof d->name) return false;
    *d = (named_device){.isa = NULL};
    memcpy(d->name, text, length);
    memcpy(rest, d->name, sizeof rest);
    take_isa(d, rest);
    for (size_t i = 0; i < N_WORDS; i++) {
        if (strcmp(rest, words[i].word)) continue;
        d->word = words[i].word;
        d->cuda = words[i].cuda;
        d->precision = words[i].precision;
        return true;
    }
    return false;
}

size_t devices_read(named_device **out, const char *list, char why[256])
{
    size_t n = 0;
    named_device *all = NULL;
    for (const char *at = list;; at++) {
        const size_t length = strcspn(at, ",");
        all = cli_grow(all, n + 1, sizeof *all);
        if (!read_one(&all[n++], at, length)) {
            snprintf(why, 256, "\"%.*s\" is no device: cpu[:ISA][:f32] or cuda[:f32|:f16]",
                     (int)(length < 64 ? length : 64), at);
            free(all);
            return *out = NULL, 0;
        }
        at += length;
        if (!*at) return *out = all, n;
    }
}

static squint_err find_isa(const named_device *d, squint_msg *msg)
{
    char here[128] = "";
    for (const char *const *name = sq_kernels_names(); *name; name++) {
        const size_t used = strlen(here);
        if (!strcmp(*name, d->isa)) return SQUINT_OK;
        snprintf(here + used, sizeof here - used, "%s%s", used ? ", " : "", *name);
    }
    return sq_fail(msg, SQUINT_ERR_UNSUPPORTED, "%s: this CPU has no %s; it runs %s", d->name, d->isa, here);
}

squint_err device_runs(const named_device *d, squint_msg *msg)
{
    squint_model probe = {0};
    if (d->isa) return find_isa(d, msg);
    const squint_err err = sq_device_choose(&probe, d->word, msg);
    sq_device_release(&probe);
    return err;
}
