/*
 * Rules, texts and the worst of many stages.
 * SPDX-License-Identifier: MIT
 */
#include "tools/squint/parity.h"

#include "tools/squint/cli.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- Rules --------------------------------------------------------------------------------- */

parity_numbers parity_numbers_of(const named_device *d, bool panels, bool floats)
{
    if (d->precision == SQ_PRECISION_F32) return (parity_numbers){.cuda = d->cuda, .f32 = true};
    if (d->precision == SQ_PRECISION_F16) return (parity_numbers){.cuda = d->cuda, .f16 = true};
    return (parity_numbers){.cuda = d->cuda, .whole = panels, .f32 = floats};
}

parity_rule parity_rule_of(const parity_numbers *reference, const parity_numbers *device)
{
    if (reference->f16 || device->f16 || reference->whole != device->whole) return PARITY_TOLD;
    if (reference->cuda == device->cuda && reference->f32 == device->f32) return PARITY_BITS;
    if (!reference->f32 && !device->f32) return PARITY_BITS;
    return reference->whole ? PARITY_TOLD : PARITY_NEAR;
}

/* No score is so near the cut that it may fall on either side. */
stage_budgets parity_budgets(parity_rule rule, const stage_budgets *given)
{
    return rule == PARITY_BITS ? (stage_budgets){.ties = -1} : *given;
}

/* ---- Texts --------------------------------------------------------------------------------- */

void parity_say(parity_text *t, const float *logits, uint32_t n_vocab)
{
    uint32_t best = 0;
    float next = -INFINITY;
    for (uint32_t i = 1; i < n_vocab; i++) {
        if (logits[i] > logits[best]) {
            next = logits[best];
            best = i;
        } else if (logits[i] > next) {
            next = logits[i];
        }
    }
    t->id = cli_grow(t->id, t->n + 1, sizeof *t->id);
    t->lead = cli_grow(t->lead, t->n + 1, sizeof *t->lead);
    t->id[t->n] = best;
    t->lead[t->n++] = (double)logits[best] - (double)next;
}

void parity_text_free(parity_text *t)
{
    free(t->id);
    free(t->lead);
    *t = (parity_text){.n = 0};
}

size_t parity_text_same(const parity_text *a, const parity_text *b)
{
    size_t i = 0;
    while (i < a->n && i < b->n && a->id[i] == b->id[i])
        i++;
    return i;
}

/* ---- Sums ---------------------------------------------------------------------------------- */

/* NaN is the largest of all. */
static void raise_to(double *most, double v)
{
    if (isnan(v) || v > *most) *most = v;
}

/* Is a's worst worse than what there is? */
static bool is_worse(const parity_worst *w, const stage *s)
{
    if (!w->n) return true;
    if (s->kind == STAGE_SET) return s->n_others > w->at.n_others;
    return isnan(s->worst) ? !isnan(w->at.worst) : s->worst > w->at.worst;
}

static bool is_same(const stage *s)
{
    if (s->kind == STAGE_SET) return !s->n_others;
    return s->state == STAGE_WITHIN && s->largest == 0;
}

void parity_add(parity_sum *sum, parity_group group, const stage *s, size_t picture)
{
    parity_worst *const w = &sum->groups[group];
    if (is_worse(w, s)) {
        w->at = *s;
        w->picture = picture;
    }
    if (!w->n) w->cosine = INFINITY;
    w->n++;
    w->n_same += is_same(s);
    raise_to(&w->largest, s->largest);
    raise_to(&w->relative, s->relative);
    raise_to(&w->row, s->worst);
    if (s->cosine < w->cosine) w->cosine = s->cosine;
    w->n_both += s->n_both;
    w->n_either += s->n_either;
    w->n_others += s->n_others;
    w->n_ties += s->n_ties;
    raise_to(&w->farthest, s->farthest);
    sum->n_stages++;
    if (s->state != STAGE_PAST || sum->first.state == STAGE_PAST) return;
    sum->first = *s;
    sum->first_picture = picture;
}

static const char *const titles[PARITY_GROUPS] = {
    [PARITY_PIXELS] = "pixels",
    [PARITY_PATCHES] = "patches",
    [PARITY_TOWER_LAYERS] = "tower layers",
    [PARITY_TOWER] = "tower",
    [PARITY_SLOW] = "slow tower",
    [PARITY_ADAPTERS] = "adapters",
    [PARITY_MINED] = "mined",
    [PARITY_PROJECTED] = "projected",
    [PARITY_EMBEDDED] = "embedded",
    [PARITY_LAYERS] = "layers",
    [PARITY_SCORES] = "scores",
    [PARITY_WEIGHTS] = "weights",
    [PARITY_KEPT] = "kept",
    [PARITY_LOGITS] = "logits",
    [PARITY_DECODED] = "decode logits",
    [PARITY_COUNTS] = "decode caches",
};

/* "0" says more than "0.00e+00". */
static const char *short_number(double v, char out[24])
{
    snprintf(out, 24, v == 0 ? "0" : "%.2e", v);
    return out;
}

static void print_place(const parity_sum *sum, const parity_worst *w)
{
    printf("%s", w->at.name);
    if (sum->n_pictures > 1) printf(" of #%zu", w->picture + 1);
}

static void print_floats(const parity_sum *sum, const parity_worst *w)
{
    char largest[24], relative[24], row[24];
    printf(" %9s %9s %9s %10.7f", short_number(w->largest, largest), short_number(w->relative, relative),
           short_number(w->row, row), w->cosine);
    if (w->n_same == w->n) return;
    printf("  ");
    print_place(sum, w);
}

static void print_sets(const parity_sum *sum, const parity_worst *w)
{
    printf(" %llu of %llu positions in both", (unsigned long long)w->n_both, (unsigned long long)w->n_either);
    if (!w->n_others) return;
    printf("\n    %llu in one alone, %llu of them by ties, the farthest %.2g from the cut; most in ",
           (unsigned long long)w->n_others, (unsigned long long)w->n_ties, w->farthest);
    print_place(sum, w);
}

static void print_group(const parity_sum *sum, parity_group group)
{
    const parity_worst *const w = &sum->groups[group];
    if (!w->n) return;
    printf("%-13s %6zu %6zu", titles[group], w->n, w->n_same);
    if (group == PARITY_KEPT)
        print_sets(sum, w);
    else if (isfinite(w->cosine))
        print_floats(sum, w);
    printf("\n");
}

static void print_texts(const parity_sum *sum)
{
    printf("%-13s %6zu %6zu %zu tokens", "texts", sum->n_pictures, sum->n_same_texts, sum->n_tokens);
    if (sum->n_same_texts < sum->n_pictures)
        printf("\n    #%zu differs from token %zu on: \"%s\", %.2g before the next, not \"%s\", %.2g before it",
               sum->text_picture + 1, sum->text_at, sum->pieces[1], sum->leads[1], sum->pieces[0], sum->leads[0]);
    printf("\n");
}

void parity_print(const parity_sum *sum)
{
    printf("%-13s %6s %6s %9s %9s %9s %10s  %s\n", "group", "stages", "same", "largest", "relative", "worst row",
           "cosine", "worst");
    for (parity_group g = 0; g < PARITY_GROUPS; g++)
        print_group(sum, g);
    print_texts(sum);
}
