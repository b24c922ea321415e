/*
 * select: the k largest of n scores, in plain C. Defines the result of all versions.
 * SPDX-License-Identifier: MIT
 *
 * Scores become integers of the same order; the k-th largest is found by halving the range that it must lie in. Each
 * step counts the keys above the middle: a loop without branches, which compilers turn into vectors. Scores that
 * differ are told apart in some 15 steps, and whatever the scores are, 32 suffice.
 */
#include "simd/internal.h"

#include <string.h>

enum {
    LEAST_KEY = -2139095041, /* of -inf */
    INF_KEY = 0x7f800000,
};

/* Adding 0 makes 0 of -0. Negative floats rise as their magnitude falls. */
static int32_t key_of(float z)
{
    const float canonical = z + 0.0f;
    int32_t bits;
    memcpy(&bits, &canonical, sizeof bits);
    return bits ^ ((bits >> 31) & INT32_MAX);
}

static bool make_keys(const float *z, uint32_t n, int32_t *keys)
{
    uint32_t nans = 0;
    for (uint32_t i = 0; i < n; i++) {
        nans |= z[i] != z[i];
        keys[i] = key_of(z[i]);
    }
    return !nans;
}

static uint32_t count_from(const int32_t *keys, uint32_t n, int32_t least)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < n; i++)
        count += keys[i] >= least;
    return count;
}

/*
 * The k-th largest key, or one between it and the next below; 1 <= k < n.
 * @param ties  how many keys that equal it are among the k largest; n when that is all of them
 */
static int32_t threshold(const int32_t *keys, uint32_t n, uint32_t k, uint32_t *ties)
{
    int64_t low = LEAST_KEY, high = (int64_t)INF_KEY + 1; /* k keys or more are >= low, fewer are >= high */
    uint32_t above = 0;                                   /* keys >= high */
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        const uint32_t count = count_from(keys, n, (int32_t)middle);
        if (count == k) {
            *ties = n;
            return (int32_t)middle;
        }
        if (count > k) {
            low = middle;
        } else {
            high = middle;
            above = count;
        }
    }
    *ties = k - above;
    return (int32_t)low;
}

uint32_t sq_select_c(const float *z, uint32_t n, uint32_t k, int32_t *keys, uint32_t *kept)
{
    if (!make_keys(z, n, keys)) {
        uint32_t nan = 0;
        while (z[nan] == z[nan])
            nan++;
        return nan;
    }
    uint32_t ties = n;
    const int32_t least = k && k < n ? threshold(keys, n, k, &ties) : LEAST_KEY;
    for (uint32_t i = 0, m = 0; m < k; i++) { /* ends by itself: k keys pass; guesses of branches would cost more */
        const uint32_t tie = (keys[i] == least) & (ties > 0);
        kept[m] = i;
        m += (keys[i] > least) | tie;
        ties -= tie;
    }
    return n;
}
