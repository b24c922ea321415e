/*
 * Text as it grows.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/text.h"

#include <string.h>

static bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

/* Bytes of the text's longest end that is a beginning of the stop text. */
static size_t stop_begun(const sq_text *t)
{
    size_t n = strlen(t->stop);
    while (n && (n > t->len || memcmp(t->text + t->len - n, t->stop, n) != 0))
        n--;
    return n;
}

static void append(sq_text *t, const char *bytes, size_t n)
{
    if (t->ended || (!t->len && n == 1 && is_space(*bytes))) return;
    memcpy(t->text + t->len, bytes, n);
    t->len += n;
    t->ended = *t->stop && stop_begun(t) == strlen(t->stop);
    if (t->ended) t->len -= strlen(t->stop);
}

static void append_replacement(sq_text *t)
{
    append(t, "\xEF\xBF\xBD", 3);
    t->n_open = 0;
}

/* A NUL would end the text: it is replaced too. */
static void append_byte(sq_text *t, char c)
{
    t->open[t->n_open++] = c;
    const int length = c ? sq_utf8_next(t->open, t->n_open) : 0;
    if (length > 0) {
        append(t, t->open, (size_t)length);
        t->n_open = 0;
    } else if (length == 0) {
        const bool alone = t->n_open == 1;
        append_replacement(t);
        if (!alone) append_byte(t, c); /* it broke a sequence off, and may begin another */
    }
}

/* Everything up to the last character that is not white space. @param held  bytes at the end that may yet go */
static void send(sq_text *t, size_t held)
{
    size_t end = t->len - held;
    while (end > t->sent && is_space(t->text[end - 1]))
        end--;
    if (end <= t->sent) return;
    if (!t->stopped && t->on_text) t->stopped = !t->on_text(t->user, t->text + t->sent, end - t->sent);
    t->sent = end;
}

void sq_text_append(sq_text *t, const char *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++)
        append_byte(t, bytes[i]);
    send(t, stop_begun(t));
}

void sq_text_finish(sq_text *t)
{
    if (t->n_open) append_replacement(t);
    send(t, 0);
    t->len = t->sent;
    t->text[t->len] = '\0';
}
