/*
 * Choosing the next token. Integer and IEEE operations only: a seed gives the same text on every machine.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/sample.h"

#include <math.h>
#include <string.h>

/* ---- Random numbers ----------------------------------------------------------------------- */

void sq_sampler_seed(sq_sampler *s, uint64_t seed)
{
    for (unsigned i = 0; i < SQ_COUNT(s->state); i++) {
        uint64_t z = (seed += 0x9E3779B97F4A7C15u);
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        s->state[i] = z ^ (z >> 31);
    }
}

static uint64_t rotate_left(uint64_t v, unsigned bits) { return v << bits | v >> (64 - bits); }

/* xoshiro256** of Blackman and Vigna, "Scrambled linear pseudorandom number generators" (2021). */
static uint64_t next_u64(uint64_t s[4])
{
    const uint64_t result = rotate_left(s[1] * 5, 7) * 9;
    const uint64_t t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate_left(s[3], 45);
    return result;
}

/* Uniform in [0, 1), 53 bits. */
static double next_unit(uint64_t s[4]) { return (double)(next_u64(s) >> 11) * 0x1p-53; }

/* ---- Weights ------------------------------------------------------------------------------ */

/*
 * e^x for x <= 0. libm's exp differs in its last bit from one system to the next; this one only adds and
 * multiplies doubles:  x = k ln 2 + r, |r| <= 0.35, and 14 terms of e^r leave r^14/14! < 5e-18 out.
 */
static double exp_of_negative(double x)
{
    static const double inverse_factorial[] = {
        1.0,         1.0 / 2,      1.0 / 6,       1.0 / 24,       1.0 / 120,       1.0 / 720,         1.0 / 5040,
        1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800.0};
    if (x < -104.0) return 0.0; /* so it would be as a float */
    const double k = floor(x * 0x1.71547652b82fep0 + 0.5);
    const double r = (x - k * 0x1.62e42fee00000p-1) - k * 0x1.a39ef35793c76p-33; /* ln 2 in two parts */
    double sum = 0.0;
    for (size_t i = SQ_COUNT(inverse_factorial); i-- > 0;)
        sum = sum * r + inverse_factorial[i];
    return ldexp(1.0 + sum * r, (int)k);
}

typedef struct selection {
    sq_candidate *c;
    uint32_t n;      /* usable candidates, all in c[0..n) */
    uint32_t n_heap; /* the first of them are a heap, the best on top; behind it the best taken out, rising */
    double best;     /* largest logit */
    double temperature;
} selection;

/* Probability before normalisation: 1 for the best token. */
static float weight(const selection *s, float logit)
{
    return (float)exp_of_negative(((double)logit - s->best) / s->temperature);
}

/* ---- The best first ----------------------------------------------------------------------- */

static bool goes_before(sq_candidate a, sq_candidate b) { return a.p > b.p || (a.p == b.p && a.id < b.id); }

static void sift_down(sq_candidate *heap, uint32_t n, uint32_t i)
{
    const sq_candidate moving = heap[i];
    for (uint32_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && goes_before(heap[child + 1], heap[child])) child++;
        if (!goes_before(heap[child], moving)) break;
        heap[i] = heap[child];
    }
    heap[i] = moving;
}

static void make_heap(selection *s)
{
    for (uint32_t i = s->n / 2; i-- > 0;)
        sift_down(s->c, s->n, i);
    s->n_heap = s->n;
}

/* Moves the best candidate of the heap to its end: the one of rank r comes to c[n - 1 - r]. */
static void take_best(selection *s)
{
    const sq_candidate best = s->c[0];
    s->c[0] = s->c[--s->n_heap];
    if (s->n_heap) sift_down(s->c, s->n_heap, 0);
    s->c[s->n_heap] = best;
}

/* ---- Cutting ------------------------------------------------------------------------------ */

/* Candidates without min_p's, order kept; weights in place of logits. */
static void keep_likely(selection *s, float min_p)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < s->n; i++) {
        const float p = weight(s, s->c[i].p);
        if (p >= min_p) s->c[kept++] = (sq_candidate){p, s->c[i].id};
    }
    s->n = kept;
}

/* top-k, top-p and min-p each keep the first so many by rank. On return c[0..n) are these, with weights. */
static void keep_best(selection *s, uint32_t top_k, float top_p, float min_p)
{
    const uint32_t most = top_k && top_k < s->n ? top_k : s->n;
    make_heap(s);
    double total = 0;
    for (uint32_t rank = 0; top_k && rank < most; rank++) {
        take_best(s);
        total += (double)weight(s, s->c[s->n_heap].p);
    }
    for (uint32_t i = 0; !top_k && i < s->n; i++)
        total += (double)weight(s, s->c[i].p);

    const double enough = top_p > 0 ? (double)top_p * total : INFINITY;
    double sum = 0;
    uint32_t kept = 0;
    for (; kept < most && sum < enough; kept++) {
        if (!top_k) take_best(s);
        sq_candidate *c = &s->c[s->n - 1 - kept];
        c->p = weight(s, c->p);
        if (c->p < min_p) break;
        sum += (double)c->p;
    }
    memmove(s->c, s->c + (s->n - kept), kept * sizeof *s->c);
    s->n = kept;
}

static uint32_t draw(const selection *s, uint64_t state[4])
{
    double total = 0;
    for (uint32_t i = 0; i < s->n; i++)
        total += (double)s->c[i].p;
    /* u < 1 keeps u * total below the last sum, which is added up in the same order as total. */
    const double target = next_unit(state) * total;
    double sum = 0;
    uint32_t i = 0;
    while (i + 1 < s->n && (sum += (double)s->c[i].p) <= target)
        i++;
    return s->c[i].id;
}

/* ---- Choosing ----------------------------------------------------------------------------- */

static uint32_t largest(const float *logits, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (logits[i] > logits[best] || (isnan(logits[best]) && !isnan(logits[i]))) best = i;
    return best;
}

uint32_t sq_sample(sq_sampler *s, const float *logits, uint32_t n, sq_candidate *scratch)
{
    const uint32_t best = largest(logits, n);
    /* Without a finite best logit there is no distribution to draw from. */
    if (!(s->temperature > 0) || !isfinite(logits[best])) return best;

    selection chosen = {scratch, 0, 0, (double)logits[best], (double)s->temperature};
    for (uint32_t i = 0; i < n; i++)
        if (!isnan(logits[i])) scratch[chosen.n++] = (sq_candidate){logits[i], i};
    if (s->top_k || s->top_p > 0)
        keep_best(&chosen, s->top_k, s->top_p, s->min_p);
    else
        keep_likely(&chosen, s->min_p);
    return draw(&chosen, s->state);
}
