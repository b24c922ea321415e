/*
 * Exact match, BLEU, CIDEr-D.
 * SPDX-License-Identifier: MIT
 *
 * Words and n-grams become numbers once, on their way in; a sentence is then its word ids and its
 * n-grams of all orders, sorted by id, with counts. Every score is a walk over such lists.
 */
#include "tools/squint/metrics.h"

#include "tools/squint/cli.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct gram {
    uint32_t id, count;
} gram;

typedef struct sentence {
    uint32_t *words;
    gram *grams; /* by rising id */
    size_t n_words, n_grams;
} sentence;

typedef struct image {
    sentence caption, *references;
    size_t n_references;
} image;

/* One n-gram of the corpus. */
typedef struct gram_info {
    uint32_t n, words[METRICS_ORDERS]; /* words past n are 0 */
    uint32_t n_images;                 /* images with a reference that has it */
    size_t last_image;                 /* the last one counted, from 1 */
} gram_info;

/* Open addressing, at most half full; slots hold index + 1. */
typedef struct hash {
    uint32_t *slots;
    size_t n_slots, n;
} hash;

struct metrics {
    char **words;
    gram_info *grams;
    hash word_index, gram_index;
    image *images;
    size_t n_images, n_exact;
    double matches[METRICS_ORDERS], guesses[METRICS_ORDERS]; /* BLEU's counts over the corpus */
    double caption_words, closest_words;
};

/* ---- Numbers for words and n-grams --------------------------------------------------------- */

/* FNV-1a, 64 bits. */
static uint64_t hash_bytes(const void *data, size_t n)
{
    const unsigned char *s = data;
    uint64_t h = 0xCBF29CE484222325u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ s[i]) * 0x100000001B3u;
    return h ^ (h >> 32);
}

/* Keeps the table at most half full: doubles it when the next entry would cross that, entries put in again. */
static void hash_grow(hash *h, uint64_t (*hash_of)(const metrics *, uint32_t), const metrics *m)
{
    if (2 * (h->n + 1) <= h->n_slots) return;
    free(h->slots);
    h->n_slots = h->n_slots ? 2 * h->n_slots : 1024;
    h->slots = cli_alloc(h->n_slots, sizeof *h->slots);
    for (uint32_t i = 0; i < h->n; i++) {
        size_t at = hash_of(m, i) & (h->n_slots - 1);
        while (h->slots[at])
            at = (at + 1) & (h->n_slots - 1);
        h->slots[at] = i + 1;
    }
}

static uint64_t word_hash(const metrics *m, uint32_t i) { return hash_bytes(m->words[i], strlen(m->words[i])); }

static uint64_t gram_hash(const metrics *m, uint32_t i)
{
    return hash_bytes(m->grams[i].words, sizeof m->grams[i].words) + m->grams[i].n;
}

/* Room for one more of an array that grows by doubling from 64. */
static void *room_for_one(void *array, size_t n, size_t size)
{
    return n == 0 ? cli_alloc(64, size) : n >= 64 && !(n & (n - 1)) ? cli_grow(array, 2 * n, size) : array;
}

static uint32_t word_id(metrics *m, const char *text, size_t n)
{
    hash *h = &m->word_index;
    hash_grow(h, word_hash, m);
    size_t at = hash_bytes(text, n) & (h->n_slots - 1);
    for (; h->slots[at]; at = (at + 1) & (h->n_slots - 1)) {
        const char *word = m->words[h->slots[at] - 1];
        if (!strncmp(word, text, n) && !word[n]) return h->slots[at] - 1;
    }
    m->words = room_for_one(m->words, h->n, sizeof *m->words);
    m->words[h->n] = cli_alloc(n + 1, 1);
    memcpy(m->words[h->n], text, n);
    return (h->slots[at] = (uint32_t)++h->n) - 1;
}

static uint32_t gram_id(metrics *m, const uint32_t *words, uint32_t n)
{
    hash *h = &m->gram_index;
    hash_grow(h, gram_hash, m);
    gram_info wanted = {.n = n};
    memcpy(wanted.words, words, n * sizeof *words);
    size_t at = (hash_bytes(wanted.words, sizeof wanted.words) + n) & (h->n_slots - 1);
    for (; h->slots[at]; at = (at + 1) & (h->n_slots - 1)) {
        const gram_info *g = &m->grams[h->slots[at] - 1];
        if (g->n == n && !memcmp(g->words, wanted.words, sizeof g->words)) return h->slots[at] - 1;
    }
    m->grams = room_for_one(m->grams, h->n, sizeof *m->grams);
    m->grams[h->n] = wanted;
    return (h->slots[at] = (uint32_t)++h->n) - 1;
}

/* ---- Sentences ----------------------------------------------------------------------------- */

/* The next word at *s, or 0 at the end; *s moves to its start. */
static size_t next_word(const char **s)
{
    size_t n = 0;
    while (isspace((unsigned char)**s))
        ++*s;
    while ((*s)[n] && !isspace((unsigned char)(*s)[n]))
        n++;
    return n;
}

size_t metrics_count_words(const char *text)
{
    size_t n = 0;
    for (size_t len; (len = next_word(&text)); text += len)
        n++;
    return n;
}

static int by_id(const void *a, const void *b)
{
    const uint32_t x = ((const gram *)a)->id, y = ((const gram *)b)->id;
    return x < y ? -1 : x > y;
}

/* Equal n-grams become one with a count. */
static void merge_grams(sentence *s)
{
    size_t n = 0;
    qsort(s->grams, s->n_grams, sizeof *s->grams, by_id);
    for (size_t i = 0; i < s->n_grams; i++)
        if (n && s->grams[n - 1].id == s->grams[i].id)
            s->grams[n - 1].count++;
        else
            s->grams[n++] = s->grams[i];
    s->n_grams = n;
}

static sentence read_sentence(metrics *m, const char *text)
{
    sentence s = {.n_words = metrics_count_words(text)};
    char *lower = cli_alloc(strlen(text) + 1, 1);
    for (size_t i = 0; text[i]; i++)
        lower[i] = (char)tolower((unsigned char)text[i]);
    s.words = cli_alloc(s.n_words, sizeof *s.words);
    s.grams = cli_alloc(s.n_words, METRICS_ORDERS * sizeof *s.grams);
    const char *at = lower;
    for (size_t i = 0; i < s.n_words; i++) {
        const size_t len = next_word(&at);
        s.words[i] = word_id(m, at, len);
        at += len;
    }
    for (uint32_t n = 1; n <= METRICS_ORDERS; n++)
        for (size_t i = 0; i + n <= s.n_words; i++)
            s.grams[s.n_grams++] = (gram){gram_id(m, s.words + i, n), 1};
    merge_grams(&s);
    free(lower);
    return s;
}

static void free_sentence(sentence *s)
{
    free(s->words);
    free(s->grams);
}

static uint32_t count_of(const sentence *s, uint32_t id)
{
    const gram key = {.id = id}, *found = bsearch(&key, s->grams, s->n_grams, sizeof key, by_id);
    return found ? found->count : 0;
}

/* ---- Exact match and BLEU ------------------------------------------------------------------ */

static bool same_words(const sentence *a, const sentence *b)
{
    return a->n_words == b->n_words && !memcmp(a->words, b->words, a->n_words * sizeof *a->words);
}

/* Length of the reference closest to the caption's; the shorter of two as close. */
static size_t closest_length(const image *im)
{
    const size_t n = im->caption.n_words;
    size_t best = im->references[0].n_words;
    for (size_t i = 1; i < im->n_references; i++) {
        const size_t r = im->references[i].n_words;
        const size_t d = r > n ? r - n : n - r, d_best = best > n ? best - n : n - best;
        if (d < d_best || (d == d_best && r < best)) best = r;
    }
    return best;
}

/* An n-gram of the caption counts as often as the reference that has most of it allows. */
static void count_matches(metrics *m, const image *im)
{
    for (size_t i = 0; i < im->caption.n_grams; i++) {
        const gram g = im->caption.grams[i];
        uint32_t most = 0;
        for (size_t r = 0; r < im->n_references; r++) {
            const uint32_t count = count_of(&im->references[r], g.id);
            if (count > most) most = count;
        }
        m->matches[m->grams[g.id].n - 1] += g.count < most ? g.count : most;
    }
    for (size_t n = 0; n < METRICS_ORDERS && n < im->caption.n_words; n++)
        m->guesses[n] += (double)(im->caption.n_words - n);
    m->caption_words += (double)im->caption.n_words;
    m->closest_words += (double)closest_length(im);
}

static void compute_bleu(const metrics *m, double *bleu)
{
    const double brevity =
        m->caption_words < m->closest_words ? exp(1 - m->closest_words / m->caption_words) : 1; /* exp(-inf) is 0 */
    double log_sum = 0;
    for (size_t n = 0; n < METRICS_ORDERS; n++) {
        if (m->matches[n] == 0) return; /* this order and all longer ones stay 0 */
        log_sum += log(m->matches[n] / m->guesses[n]);
        bleu[n] = brevity * exp(log_sum / (double)(n + 1));
    }
}

/* ---- CIDEr-D ------------------------------------------------------------------------------- */

/* Weight of one occurrence: log(images / images that have it). */
static double rarity(const metrics *m, uint32_t id)
{
    const uint32_t n = m->grams[id].n_images;
    return log((double)m->n_images) - log(n ? n : 1);
}

static void add_norms(const metrics *m, const sentence *s, double *norms)
{
    for (size_t i = 0; i < s->n_grams; i++) {
        const double v = s->grams[i].count * rarity(m, s->grams[i].id);
        norms[m->grams[s->grams[i].id].n - 1] += v * v;
    }
}

/* Mean over the orders of the clipped cosine, damped by the difference in length. */
static double similarity(const metrics *m, const sentence *c, const sentence *r)
{
    double dot[METRICS_ORDERS] = {0}, c_norm[METRICS_ORDERS] = {0}, r_norm[METRICS_ORDERS] = {0}, sum = 0;
    add_norms(m, c, c_norm);
    add_norms(m, r, r_norm);
    for (size_t i = 0; i < c->n_grams; i++) {
        const uint32_t id = c->grams[i].id, in_c = c->grams[i].count, in_r = count_of(r, id);
        const double w = rarity(m, id);
        dot[m->grams[id].n - 1] += (in_c < in_r ? in_c : in_r) * w * in_r * w;
    }
    for (size_t n = 0; n < METRICS_ORDERS; n++)
        if (c_norm[n] > 0 && r_norm[n] > 0) sum += dot[n] / sqrt(c_norm[n] * r_norm[n]);
    /* coco-caption measures length in bigrams, which differs from words only for the empty sentence */
    const double c_len = c->n_words ? (double)c->n_words - 1 : 0, r_len = r->n_words ? (double)r->n_words - 1 : 0;
    const double sigma = 6, difference = c_len - r_len;
    return sum / METRICS_ORDERS * exp(-difference * difference / (2 * sigma * sigma));
}

static double compute_cider(const metrics *m)
{
    double sum = 0;
    for (size_t i = 0; i < m->n_images; i++) {
        const image *im = &m->images[i];
        double of_image = 0;
        for (size_t r = 0; r < im->n_references; r++)
            of_image += similarity(m, &im->caption, &im->references[r]);
        sum += of_image / (double)im->n_references;
    }
    return 10 * sum / (double)m->n_images;
}

/* ---- The whole ----------------------------------------------------------------------------- */

metrics *metrics_new(void) { return cli_alloc(1, sizeof(metrics)); }

void metrics_free(metrics *m)
{
    if (!m) return;
    for (size_t i = 0; i < m->n_images; i++) {
        for (size_t r = 0; r < m->images[i].n_references; r++)
            free_sentence(&m->images[i].references[r]);
        free(m->images[i].references);
        free_sentence(&m->images[i].caption);
    }
    for (size_t i = 0; i < m->word_index.n; i++)
        free(m->words[i]);
    free(m->images);
    free(m->words);
    free(m->grams);
    free(m->word_index.slots);
    free(m->gram_index.slots);
    free(m);
}

/* Documents are images: an n-gram counts once, however many of an image's references have it. */
static void count_images(metrics *m, const sentence *s)
{
    for (size_t i = 0; i < s->n_grams; i++) {
        gram_info *g = &m->grams[s->grams[i].id];
        if (g->last_image == m->n_images) continue;
        g->last_image = m->n_images;
        g->n_images++;
    }
}

void metrics_add(metrics *m, const char *caption, const char *const *references, size_t n)
{
    if (!n) return;
    m->images = room_for_one(m->images, m->n_images, sizeof *m->images);
    image *im = &m->images[m->n_images++];
    *im = (image){.caption = read_sentence(m, caption), .n_references = n};
    im->references = cli_alloc(n, sizeof *im->references);
    bool exact = false;
    for (size_t i = 0; i < n; i++) {
        im->references[i] = read_sentence(m, references[i]);
        count_images(m, &im->references[i]);
        exact = exact || same_words(&im->caption, &im->references[i]);
    }
    m->n_exact += exact;
    count_matches(m, im);
}

metrics_scores metrics_compute(const metrics *m)
{
    metrics_scores scores = {.n_images = m->n_images};
    if (!m->n_images) return scores;
    scores.exact = (double)m->n_exact / (double)m->n_images;
    compute_bleu(m, scores.bleu);
    scores.cider = compute_cider(m);
    return scores;
}
