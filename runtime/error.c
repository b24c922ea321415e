/*
 * Failures in words, and the UTF-8 that they must be.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/base.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int sq_utf8_next(const char *s, size_t n)
{
    const uint8_t *u = (const uint8_t *)s;
    if (u[0] < 0x80) return 1;
    if (u[0] < 0xC2 || u[0] > 0xF4) return 0;
    const int length = u[0] < 0xE0 ? 2 : u[0] < 0xF0 ? 3 : 4;
    /* The second byte's range shuts out overlong forms, surrogates and what lies past U+10FFFF. */
    const uint8_t low = u[0] == 0xE0 ? 0xA0 : u[0] == 0xF0 ? 0x90 : 0x80;
    const uint8_t high = u[0] == 0xED ? 0x9F : u[0] == 0xF4 ? 0x8F : 0xBF;
    if (n > 1 && (u[1] < low || u[1] > high)) return 0;
    for (int i = 2; i < length && (size_t)i < n; i++)
        if ((u[i] & 0xC0) != 0x80) return 0;
    return (size_t)length <= n ? length : -1;
}

/* Characters that would break the line or change the terminal: C0, DEL, C1, U+2028 to U+202E. */
static bool is_control(const char *s, int length)
{
    const uint8_t *u = (const uint8_t *)s;
    if (length == 1) return u[0] < 0x20 || u[0] == 0x7F;
    if (length == 2) return u[0] == 0xC2 && u[1] < 0xA0;
    return length == 3 && u[0] == 0xE2 && u[1] == 0x80 && u[2] >= 0xA8 && u[2] <= 0xAE;
}

static void make_presentable(char *text)
{
    size_t left = strlen(text);
    while (left) {
        int length = sq_utf8_next(text, left);
        if (length < 1) {
            *text = '?';
            length = 1;
        } else if (is_control(text, length)) {
            memset(text, '?', (size_t)length);
        }
        text += length;
        left -= (size_t)length;
    }
}

/* Takes away the beginning of a character that did not fit. */
static void drop_partial_character(char *text)
{
    const size_t length = strlen(text);
    for (size_t back = 1; back <= 3 && back <= length; back++)
        if (sq_utf8_next(text + length - back, back) < 0) text[length - back] = '\0';
}

squint_err sq_fail(squint_msg *msg, squint_err err, const char *format, ...)
{
    if (!msg) return err;
    va_list args;
    va_start(args, format);
    const int length = vsnprintf(msg->text, sizeof msg->text, format, args);
    va_end(args);
    if (length < 0) msg->text[0] = '\0';
    if (length >= (int)sizeof msg->text) drop_partial_character(msg->text);
    make_presentable(msg->text);
    return err;
}

const char *sq_errno_text(int number, char *text, size_t size)
{
    if (strerror_r(number, text, size)) snprintf(text, size, "error %d", number);
    return text;
}
