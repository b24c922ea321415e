/*
 * Differences of tables and sets, and their budgets.
 * SPDX-License-Identifier: MIT
 */
#include "tools/squint/stages.h"

#include "tools/squint/cli.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

void stage_refuse(stage *s, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(s->why, sizeof s->why, format, args);
    va_end(args);
    s->state = STAGE_PAST;
}

/* "56 x 56 x 3", slowest first as numpy has it. */
static const char *shape_text(const sq_gguf_tensor *t, char out[96])
{
    size_t used = 0;
    for (uint32_t i = t->n_dims; i-- && used < 80;)
        used += (size_t)snprintf(out + used, 96 - used, "%s%llu", used ? " x " : "", (unsigned long long)t->ne[i]);
    return out;
}

/* A table of one row may have any shape of so many numbers. */
static bool has_shape(stage *s, uint32_t type, uint32_t rows, uint32_t cols)
{
    const sq_gguf_tensor *const t = s->tensor;
    char shape[96];
    s->rows = rows;
    s->cols = cols;
    uint64_t rest = 1; /* of the file's bytes: no overflow */
    for (uint32_t i = 1; i < t->n_dims; i++)
        rest *= t->ne[i];
    if (t->type != type)
        stage_refuse(s, "the reference's type is %s, not %s", sq_tensor_type_name(t->type), sq_tensor_type_name(type));
    else if (rows == 1 ? rest * t->ne[0] != cols : t->n_dims != 2 || t->ne[0] != cols || t->ne[1] != rows)
        stage_refuse(s, "squint has %u x %u, the reference %s", rows, cols, shape_text(t, shape));
    return s->state != STAGE_PAST;
}

/* ---- tables ---- */

typedef struct sums {
    double difference, got, want, product, absolute;
} sums;

static double share(double difference, double whole) { return difference > 0 ? difference / whole : difference; }

static sums sums_of(stage *s, const float *got, const float *want, uint32_t n)
{
    sums r = {0};
    for (uint32_t i = 0; i < n; i++) {
        const double g = (double)got[i], w = (double)want[i], d = fabs(g - w);
        r.difference += d * d;
        r.got += g * g;
        r.want += w * w;
        r.product += g * w;
        r.absolute += d;
        if (isnan(d) || d > s->largest) s->largest = d; /* NaN stays */
    }
    const double drift = share(sqrt(r.difference), sqrt(r.want));
    if (isnan(drift) || drift > s->worst) s->worst = drift;
    return r;
}

static void judge_floats(stage *s, const stage_budgets *b)
{
    s->state = STAGE_WITHIN;
    if (s->kind == STAGE_EXACT && !(s->largest == 0))
        stage_refuse(s, "differs by %.3g; it is to be the same", s->largest);
    else if (s->kind == STAGE_LOGITS && !(s->largest <= (double)b->tolerance))
        stage_refuse(s, "differs by %.3g, budget %.3g", s->largest, (double)b->tolerance);
    else if (s->kind == STAGE_FLOATS && !(s->worst <= (double)b->drift))
        stage_refuse(s, "a row differs by %.3g of its length, budget %.3g", s->worst, (double)b->drift);
}

void stage_compare_floats(stage *s, const float *got, uint32_t rows, uint32_t cols, const stage_budgets *budgets)
{
    if (!has_shape(s, SQ_TENSOR_F32, rows, cols)) return;
    const float *const want = (const float *)(const void *)s->tensor->data;
    sums all = {0};
    for (uint32_t r = 0; r < rows; r++) {
        const sums row = sums_of(s, got + (size_t)r * cols, want + (size_t)r * cols, cols);
        all.difference += row.difference;
        all.got += row.got;
        all.want += row.want;
        all.product += row.product;
        all.absolute += row.absolute;
    }
    const double count = (double)rows * cols;
    s->mean = count > 0 ? all.absolute / count : 0;
    s->relative = share(sqrt(all.difference), sqrt(all.want));
    s->cosine = all.got > 0 && all.want > 0 ? all.product / sqrt(all.got * all.want) : 1;
    judge_floats(s, budgets);
}

void stage_compare_ints(stage *s, const int32_t *got, uint32_t rows, uint32_t cols)
{
    if (!has_shape(s, SQ_TENSOR_I32, rows, cols)) return;
    const int32_t *const want = (const int32_t *)(const void *)s->tensor->data;
    size_t n = 0, first = 0;
    for (size_t i = (size_t)rows * cols; i--;)
        if (got[i] != want[i]) {
            n++;
            first = i;
        }
    s->state = STAGE_WITHIN;
    if (n)
        stage_refuse(s, "%zu of %zu differ; the first is number %zu: %d, the reference's %d", n, (size_t)rows * cols,
                     first, got[first], want[first]);
}

/* ---- sets ---- */

/* The scores between which the reference cut, when the best are run. */
typedef struct cut {
    double lowest_run, highest_skipped;
} cut;

static cut cut_of(const stage_contest *contest, const bool *run)
{
    cut c = {INFINITY, -INFINITY};
    for (uint32_t i = 0; i < contest->n; i++) {
        const double z = contest->score[i];
        if (run[i] && z < c.lowest_run) c.lowest_run = z;
        if (!run[i] && z > c.highest_skipped) c.highest_skipped = z;
    }
    return c;
}

static double gap_of(const stage_contest *contest, const cut *c, uint32_t at, bool theirs)
{
    const double z = contest->score[at];
    if (isnan(z)) return INFINITY;
    if (!isnan(contest->threshold)) return fabs(z - contest->threshold);
    return fabs(theirs ? z - c->highest_skipped : c->lowest_run - z);
}

static void judge_sets(stage *s, const bool *ours, const bool *theirs, const stage_contest *contest, double ties)
{
    const cut c = cut_of(contest, theirs);
    for (uint32_t i = 0; i < contest->n; i++) {
        s->n_both += ours[i] && theirs[i];
        s->n_either += ours[i] || theirs[i];
        if (ours[i] == theirs[i]) continue;
        const stage_other other = {i, theirs[i], gap_of(contest, &c, i, theirs[i])};
        if (other.gap > s->farthest) s->farthest = other.gap;
        if (other.gap <= ties) {
            s->n_ties++;
            if (other.gap > s->widest) s->widest = other.gap;
        }
        if (s->n_others < STAGE_SHOWN) s->others[s->n_others] = other;
        s->n_others++;
    }
    s->state = STAGE_WITHIN;
    if (s->n_others > s->n_ties)
        stage_refuse(s, "%u positions differ, %u of them by ties of up to %.3g", s->n_others, s->n_ties, ties);
}

void stage_compare_sets(stage *s, const uint32_t *got, uint32_t n, const stage_contest *contest,
                        const stage_budgets *budgets)
{
    const sq_gguf_tensor *const t = s->tensor;
    s->rows = 1;
    s->cols = n;
    if (t->type != SQ_TENSOR_I32 || t->n_dims > 1 || t->ne[0] > contest->n) {
        stage_refuse(s, "the reference's is not a list of up to %u I32 positions", contest->n);
        return;
    }
    const int32_t *const want = (const int32_t *)(const void *)t->data;
    bool *const ours = cli_alloc(contest->n, sizeof *ours), *const theirs = cli_alloc(contest->n, sizeof *theirs);
    for (uint32_t i = 0; i < n; i++)
        ours[got[i]] = true;
    for (uint64_t i = 0; i < t->ne[0] && s->state != STAGE_PAST; i++)
        if (want[i] < 0 || (uint32_t)want[i] >= contest->n)
            stage_refuse(s, "the reference's has position %d in a sequence of %u", want[i], contest->n);
        else
            theirs[want[i]] = true;
    if (s->state != STAGE_PAST) judge_sets(s, ours, theirs, contest, (double)budgets->ties);
    free(ours);
    free(theirs);
}

/* ---- verdicts ---- */

void stage_settle(stage *s, const stage **tied, bool judge)
{
    if (s->state == STAGE_PAST && *tied && s != *tied) {
        s->state = STAGE_OPEN;
        snprintf(s->why, sizeof s->why, "not judged: ties made %s another set", (*tied)->name);
    }
    if (s->state == STAGE_PAST && !judge && s->kind != STAGE_EXACT) s->state = STAGE_OPEN;
    if (s->kind == STAGE_SET && s->state == STAGE_WITHIN && s->n_others && !*tied) *tied = s;
}

void stage_print_head(void)
{
    printf("%-18s %14s %9s %9s %9s %9s %10s\n", "stage", "rows x columns", "largest", "mean", "relative", "worst row",
           "cosine");
}

static void print_set(const stage *s)
{
    enum { LAST_COLUMN = 80 }; /* in which another position may begin */
    uint32_t i = 0;
    int column = printf("%-18s %6u of %-6u %s", s->name, s->n_both, s->n_either, s->n_others ? "differ:" : "the same");
    for (; i < s->n_others && i < STAGE_SHOWN && column < LAST_COLUMN; i++)
        column += printf(" %c%u (%.2g)", s->others[i].theirs ? '-' : '+', s->others[i].at, s->others[i].gap);
    if (i < s->n_others) printf(" ...");
}

void stage_print(const stage *s)
{
    char size[32];
    snprintf(size, sizeof size, "%u x %u", s->rows, s->cols);
    if (isnan(s->cosine) && s->kind != STAGE_SET)
        printf("%-18s %14s%s", s->name, s->rows ? size : "", s->state == STAGE_WITHIN ? " the same" : "");
    else if (s->kind == STAGE_SET)
        print_set(s);
    else
        printf("%-18s %14s %9.2e %9.2e %9.2e %9.2e %10.7f", s->name, size, s->largest, s->mean, s->relative, s->worst,
               s->cosine);
}

static void add_number(cJSON *json, const char *key, double v)
{
    if (isfinite(v))
        cJSON_AddNumberToObject(json, key, v);
    else
        cJSON_AddNullToObject(json, key);
}

static void add_others(cJSON *json, const stage *s)
{
    cJSON *const others = cJSON_AddArrayToObject(json, "others");
    for (uint32_t i = 0; i < s->n_others && i < STAGE_SHOWN; i++) {
        cJSON *const other = cJSON_CreateObject();
        cJSON_AddNumberToObject(other, "position", s->others[i].at);
        cJSON_AddBoolToObject(other, "reference", s->others[i].theirs);
        add_number(other, "gap", s->others[i].gap);
        cJSON_AddItemToArray(others, other);
    }
}

cJSON *stage_json(const stage *s)
{
    static const char *const states[] = {
        [STAGE_UNSEEN] = "past", [STAGE_WITHIN] = "within", [STAGE_PAST] = "past", [STAGE_OPEN] = "open"};
    cJSON *const json = cJSON_CreateObject();
    cJSON_AddItemToObject(json, "stage", cli_json_text(s->name, strlen(s->name)));
    cJSON_AddStringToObject(json, "state", states[s->state]);
    cJSON_AddNumberToObject(json, "rows", s->rows);
    cJSON_AddNumberToObject(json, "cols", s->cols);
    if (s->kind == STAGE_SET) {
        cJSON_AddNumberToObject(json, "both", s->n_both);
        cJSON_AddNumberToObject(json, "either", s->n_either);
        cJSON_AddNumberToObject(json, "ties", s->n_ties);
        add_number(json, "farthest", s->farthest);
        add_others(json, s);
    } else if (!isnan(s->cosine)) {
        add_number(json, "largest", s->largest);
        add_number(json, "mean", s->mean);
        add_number(json, "relative", s->relative);
        add_number(json, "worst_row", s->worst);
        add_number(json, "cosine", s->cosine);
    }
    if (*s->why) cJSON_AddStringToObject(json, "why", s->why);
    return json;
}
