/*
 * The progress bar: one line on stderr, rewritten in place, on terminals only.
 * SPDX-License-Identifier: MIT
 */
#include "tools/squint/cli.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CELLS = 30 };

static bool enabled;
static int drawn = -1; /* cells of the bar on the screen; -1: none is there */
static char drawn_label[64];

void cli_bar_enable(void)
{
    const char *term = getenv("TERM");
    enabled = isatty(STDERR_FILENO) && term && strcmp(term, "dumb");
}

void cli_bar(const char *label, double fraction)
{
    static const char full[] = "##############################", empty[] = "..............................";
    if (!enabled) return;
    const int cells = fraction <= 0 ? 0 : fraction >= 1 ? CELLS : (int)(fraction * CELLS);
    if (cells == drawn && !strcmp(label, drawn_label)) return;
    fprintf(stderr, "\r[%.*s%.*s] %s\033[K", cells, full, CELLS - cells, empty, label);
    fflush(stderr);
    drawn = cells;
    snprintf(drawn_label, sizeof drawn_label, "%s", label);
}

void cli_bar_clear(void)
{
    if (drawn < 0) return;
    fputs("\r\033[K", stderr);
    fflush(stderr);
    drawn = -1;
}
