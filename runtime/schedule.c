/*
 * Schedules: how much each layer keeps, spelled out by a caller.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/schedule.h"

#include "runtime/gguf.h"

#include <math.h>
#include <string.h>

enum { MAX_DIGITS = 15 }; /* as many are exact in binary64, and so is their power of ten */

static squint_err refuse(const char *text, squint_msg *msg)
{
    return sq_fail(msg, SQUINT_ERR_ARGUMENT,
                   "schedule: \"%.64s\" is not cos:MAX:MIN, linear:MAX:MIN, const:R or list:R,R,... of numbers from 0 "
                   "to 1",
                   text);
}

/* A decimal from 0 to 1, without sign or exponent, whatever the locale. The quotient of two exact numbers is the
 * binary64 nearest to it. */
static bool read_number(const char **at, double *out)
{
    double digits = 0, unit = 1;
    unsigned n = 0;
    bool point = false;
    const char *c = *at;
    for (; (*c >= '0' && *c <= '9') || (*c == '.' && !point); c++) {
        if (*c == '.') {
            point = true;
            continue;
        }
        digits = 10 * digits + (*c - '0');
        unit *= point ? 10 : 1;
        n++;
    }
    *at = c;
    *out = digits / unit;
    return n && n <= MAX_DIGITS && *out <= 1;
}

/* Of "N:N" or "N,N,...": how many numbers there are, 0 when something is none; the first `room` of them in out. */
static size_t read_numbers(const char *at, char between, double *out, size_t room)
{
    for (size_t n = 0;; at++) {
        double number;
        if (!read_number(&at, &number)) return 0;
        if (n < room) out[n] = number;
        n++;
        if (!*at) return n;
        if (*at != between) return 0;
    }
}

static squint_err read_list(const char *text, const char *at, uint32_t n_layers, double *ratio, squint_msg *msg)
{
    const size_t n = read_numbers(at, ',', ratio, n_layers);
    if (!n) return refuse(text, msg);
    if (n == n_layers) return SQUINT_OK;
    return sq_fail(msg, SQUINT_ERR_ARGUMENT, "schedule: a list of %zu ratios, but the model has %u layers", n,
                   n_layers);
}

static void decay(bool cosine, double highest, double lowest, double factor, uint32_t n_layers, double *ratio)
{
    const double pi = 3.14159265358979323846, last = n_layers > 1 ? n_layers - 1 : 1;
    for (uint32_t l = 0; l < n_layers; l++) {
        const double s = (cosine ? cos(pi * l / last) / 2 : 0.5 - l / last) + factor;
        ratio[l] = s <= highest ? fmax(s, lowest) : 1.0;
    }
}

squint_err sq_schedule_ratios(const char *text, double factor, uint32_t n_layers, double *ratio, squint_msg *msg)
{
    const char *const colon = strchr(text, ':');
    if (!colon) return refuse(text, msg);
    const sq_str name = {text, (size_t)(colon - text)};
    const bool cosine = sq_str_eq(name, "cos");
    double numbers[2];
    if (sq_str_eq(name, "list")) return read_list(text, colon + 1, n_layers, ratio, msg);
    const size_t n = read_numbers(colon + 1, ':', numbers, 2);
    if (n == 1 && sq_str_eq(name, "const")) {
        for (uint32_t l = 0; l < n_layers; l++)
            ratio[l] = numbers[0];
        return SQUINT_OK;
    }
    if (n != 2 || !(cosine || sq_str_eq(name, "linear"))) return refuse(text, msg);
    if (numbers[1] > numbers[0])
        return sq_fail(msg, SQUINT_ERR_ARGUMENT, "schedule: \"%.64s\": its lowest ratio is above its highest", text);
    decay(cosine, numbers[0], numbers[1], factor, n_layers, ratio);
    return SQUINT_OK;
}
