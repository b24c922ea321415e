/*
 * Distributions over a vocabulary, their files, and how far they are apart.
 * SPDX-License-Identifier: MIT
 */
#include "tools/squint/logprobs.h"

#include "tools/squint/cli.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { HEADER = 64, ROW_HEAD = 20, VERSION = 1, STEPS = 65535 };

static const double RANGE = 24; /* nats below the largest */

/* ---- In memory ----------------------------------------------------------------------------- */

void logprobs_init(logprobs *p, uint32_t n_vocab)
{
    *p = (logprobs){.n_vocab = n_vocab, .log_p = cli_alloc(n_vocab, sizeof *p->log_p)};
}

void logprobs_free(logprobs *p) { free(p->log_p); }

static uint32_t largest(const float *v, uint32_t n)
{
    uint32_t at = 0;
    for (uint32_t i = 1; i < n; i++)
        if (v[i] > v[at]) at = i;
    return at;
}

/* log(sum(exp(v))) */
static double log_sum(const float *v, uint32_t n, double most)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += exp((double)v[i] - most);
    return log(sum) + most;
}

void logprobs_of_logits(logprobs *p, const float *logits, uint32_t token)
{
    p->token = token;
    p->top = largest(logits, p->n_vocab);
    const double all = log_sum(logits, p->n_vocab, (double)logits[p->top]);
    p->nll = all - (double)logits[token];
    for (uint32_t i = 0; i < p->n_vocab; i++)
        p->log_p[i] = (float)((double)logits[i] - all);
}

/* ---- Writing ------------------------------------------------------------------------------- */

static uint64_t row_bytes(uint32_t n_vocab) { return (ROW_HEAD + 2 * (uint64_t)n_vocab + 3) / 4 * 4; }

struct logprobs_writer {
    FILE *f;
    char *path, *temp;
    uint32_t n_vocab, ctx;
    uint64_t n_rows;
    uint8_t *row; /* [row_bytes] */
};

static void put_u32(uint8_t *at, uint32_t v) { memcpy(at, &v, sizeof v); }
static void put_f32(uint8_t *at, double v)
{
    const float single = (float)v;
    memcpy(at, &single, sizeof single);
}

static void put_header(logprobs_writer *w)
{
    uint8_t header[HEADER] = {'S', 'Q', 'L', 'P', VERSION};
    put_u32(header + 8, w->n_vocab);
    put_u32(header + 12, w->ctx);
    memcpy(header + 16, &w->n_rows, sizeof w->n_rows);
    fwrite(header, sizeof header, 1, w->f);
}

/* Renaming over a device or a folder would destroy it, or fail when all the work is done. */
static bool may_replace(const char *path)
{
    struct stat st;
    if (stat(path, &st) || S_ISREG(st.st_mode)) return true;
    cli_say("%s: is there, and not a regular file", path);
    return false;
}

logprobs_writer *logprobs_create(const char *path, uint32_t n_vocab, uint32_t ctx)
{
    if (!may_replace(path)) return NULL;
    const size_t room = strlen(path) + 32;
    logprobs_writer *const w = cli_alloc(1, sizeof *w);
    *w = (logprobs_writer){.n_vocab = n_vocab, .ctx = ctx, .path = cli_alloc(room, 1), .temp = cli_alloc(room, 1)};
    w->row = cli_alloc((size_t)row_bytes(n_vocab), 1);
    snprintf(w->path, room, "%s", path);
    snprintf(w->temp, room, "%s.%ld.tmp", path, (long)getpid());
    w->f = fopen(w->temp, "wbx");
    if (w->f) {
        put_header(w);
        return w;
    }
    cli_say("%s: %s", w->temp, strerror(errno));
    logprobs_close_writer(w, false);
    return NULL;
}

void logprobs_put(logprobs_writer *w, const logprobs *p)
{
    const double high = (double)p->log_p[p->top];
    float least = p->log_p[p->top];
    for (uint32_t i = 0; i < w->n_vocab; i++)
        if (p->log_p[i] < least) least = p->log_p[i];
    const double range = high - (double)least;
    const double step = fmin(range, RANGE) / STEPS;
    put_u32(w->row, p->token);
    put_u32(w->row + 4, p->top);
    put_f32(w->row + 8, p->nll);
    put_f32(w->row + 12, high);
    put_f32(w->row + 16, step);
    for (uint32_t i = 0; i < w->n_vocab; i++) {
        const double below = step > 0 ? (high - (double)p->log_p[i]) / step + 0.5 : 0;
        const uint16_t steps = below < STEPS ? (uint16_t)below : STEPS;
        memcpy(w->row + ROW_HEAD + 2 * (size_t)i, &steps, sizeof steps);
    }
    fwrite(w->row, (size_t)row_bytes(w->n_vocab), 1, w->f);
    w->n_rows++;
}

static bool finish(logprobs_writer *w)
{
    if (!fseek(w->f, 0, SEEK_SET)) put_header(w);
    const bool written = !ferror(w->f);
    const bool closed = !fclose(w->f);
    w->f = NULL;
    if (written && closed && !rename(w->temp, w->path)) return true;
    cli_say("%s: cannot be written: %s", w->path, strerror(errno));
    unlink(w->temp);
    return false;
}

bool logprobs_close_writer(logprobs_writer *w, bool keep)
{
    if (!w) return true;
    const bool good = keep ? finish(w) : true;
    if (w->f) {
        fclose(w->f);
        unlink(w->temp);
    }
    free(w->path);
    free(w->temp);
    free(w->row);
    free(w);
    return good;
}

/* ---- Reading ------------------------------------------------------------------------------- */

struct logprobs_reader {
    FILE *f;
    const char *path; /* the caller's */
    uint64_t next;    /* row */
    uint8_t *row;
};

static uint32_t get_u32(const uint8_t *at)
{
    uint32_t v;
    memcpy(&v, at, sizeof v);
    return v;
}

static double get_f32(const uint8_t *at)
{
    float v;
    memcpy(&v, at, sizeof v);
    return (double)v;
}

/* What is wrong with the header of a file of this size, or NULL. */
static const char *header_fault(const uint8_t *header, uint64_t size, uint32_t n_vocab, uint32_t ctx, uint64_t n_rows)
{
    uint64_t rows;
    memcpy(&rows, header + 16, sizeof rows);
    if (memcmp(header, "SQLP", 4)) return "is not a file that squint perplexity --save-logits wrote";
    if (get_u32(header + 4) != VERSION) return "is of another version of squint";
    if (get_u32(header + 8) != n_vocab) return "is of a model with another vocabulary";
    if (get_u32(header + 12) != ctx) return "was made with another --ctx, or of pictures where this is text";
    if (rows != n_rows) return "has another number of rows than this text: take the same text, --chunks and --limit";
    if (rows != (size - HEADER) / row_bytes(n_vocab) || (size - HEADER) % row_bytes(n_vocab))
        return "is cut short or damaged";
    return NULL;
}

logprobs_reader *logprobs_open(const char *path, uint32_t n_vocab, uint32_t ctx, uint64_t n_rows)
{
    uint8_t header[HEADER];
    struct stat st;
    logprobs_reader *const r = cli_alloc(1, sizeof *r);
    *r = (logprobs_reader){.f = fopen(path, "rb"), .path = path, .row = cli_alloc((size_t)row_bytes(n_vocab), 1)};
    const char *fault = NULL;
    if (!r->f || fstat(fileno(r->f), &st))
        fault = strerror(errno);
    else if (!S_ISREG(st.st_mode) || st.st_size < HEADER || !fread(header, sizeof header, 1, r->f))
        fault = "is not a file that squint perplexity --save-logits wrote";
    else
        fault = header_fault(header, (uint64_t)st.st_size, n_vocab, ctx, n_rows);
    if (!fault) return r;
    cli_say("%s: %s", path, fault);
    logprobs_close_reader(r);
    return NULL;
}

static const char *decode_row(const uint8_t *row, uint32_t token, logprobs *p)
{
    const double high = get_f32(row + 12), step = get_f32(row + 16);
    p->token = get_u32(row);
    p->top = get_u32(row + 4);
    p->nll = get_f32(row + 8);
    if (p->token != token) return "is of another token: take the same text and tokenizer";
    if (p->top >= p->n_vocab || !(p->nll >= 0 && p->nll < 1e6) || !(high <= 0 && high > -1e3) ||
        !(step >= 0 && step <= RANGE / STEPS * 1.001))
        return "is damaged";
    for (uint32_t i = 0; i < p->n_vocab; i++) {
        uint16_t steps;
        memcpy(&steps, row + ROW_HEAD + 2 * (size_t)i, sizeof steps);
        p->log_p[i] = (float)(high - steps * step);
    }
    const double all = log_sum(p->log_p, p->n_vocab, high);
    if (!(fabs(all) < 0.01)) return "is damaged: its probabilities do not add up to 1";
    for (uint32_t i = 0; i < p->n_vocab; i++)
        p->log_p[i] = (float)((double)p->log_p[i] - all);
    return NULL;
}

bool logprobs_get(logprobs_reader *r, uint32_t token, logprobs *p)
{
    const char *fault = "cannot be read";
    if (fread(r->row, (size_t)row_bytes(p->n_vocab), 1, r->f)) fault = decode_row(r->row, token, p);
    if (fault) cli_say("%s: row %llu %s", r->path, (unsigned long long)r->next, fault);
    r->next++;
    return !fault;
}

void logprobs_close_reader(logprobs_reader *r)
{
    if (!r) return;
    if (r->f) fclose(r->f);
    free(r->row);
    free(r);
}

/* ---- Divergence ---------------------------------------------------------------------------- */

const double divergence_shares[DIVERGENCE_QUANTILES] = {0.05, 0.5, 0.95, 0.99, 0.999};

void divergence_add(divergence *d, const logprobs *reference, const logprobs *model)
{
    double kl = 0;
    for (uint32_t i = 0; i < reference->n_vocab; i++) {
        const double log_p = (double)reference->log_p[i];
        kl += exp(log_p) * (log_p - (double)model->log_p[i]);
    }
    kl = fmax(kl, 0); /* it never is negative but by rounding */
    const double change = model->nll - reference->nll;
    if (d->n == d->room) d->kl = cli_grow(d->kl, d->room = d->room ? 2 * d->room : 1024, sizeof *d->kl);
    d->kl[d->n++] = (float)kl;
    d->n_same_top += reference->top == model->top;
    d->kl_sum += kl;
    d->kl_squares += kl * kl;
    d->change_sum += change;
    d->change_squares += change * change;
    d->reference_nll += reference->nll;
}

static int compare_floats(const void *a, const void *b)
{
    float x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

void divergence_quantiles(divergence *d, double out[DIVERGENCE_QUANTILES])
{
    qsort(d->kl, d->n, sizeof *d->kl, compare_floats);
    for (int i = 0; i < DIVERGENCE_QUANTILES; i++) {
        const double place = divergence_shares[i] * (double)(d->n - 1);
        const size_t below = (size_t)place, above = below + 1 < d->n ? below + 1 : below;
        out[i] = (double)d->kl[below] + (place - (double)below) * ((double)d->kl[above] - (double)d->kl[below]);
    }
}

void divergence_free(divergence *d) { free(d->kl); }

double mean_error(double sum, double squares, size_t n)
{
    if (n < 2) return 0;
    const double mean = sum / (double)n, variance = squares / (double)n - mean * mean;
    return variance > 0 ? sqrt(variance / (double)(n - 1)) : 0;
}
