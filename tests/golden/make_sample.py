#!/usr/bin/env python3
"""Makes sample.txt: tokens drawn by a plain Python sampler with numpy's exp.

Logit i of n is ((i * 2654435761) mod 2^32) / 2^32 * 12 - 6, as float32.  Candidates are drawn from in rising order
of probability when top-k or top-p sorts them (the higher id first among equals), else in the order of their ids.

Lines: seed temperature top_k top_p min_p n IDS

SPDX-License-Identifier: MIT
"""

import os

import numpy as np

MASK = (1 << 64) - 1
HERE = os.path.dirname(os.path.abspath(__file__))


def splitmix64(state):
    while True:
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        yield z ^ (z >> 31)


def rotate_left(v, bits):
    return ((v << bits) | (v >> (64 - bits))) & MASK


def xoshiro256starstar(s):
    while True:
        yield (rotate_left(s[1] * 5 & MASK, 7) * 9) & MASK
        t = s[1] << 17 & MASK
        s[2] ^= s[0]
        s[3] ^= s[1]
        s[1] ^= s[2]
        s[0] ^= s[3]
        s[2] ^= t
        s[3] = rotate_left(s[3], 45)


def candidates(logits, temperature, top_k, top_p, min_p):
    """Ids and weights that a token is drawn from."""
    x = logits.astype(np.float64)
    weights = np.exp((x - x.max()) / np.float64(np.float32(temperature))).astype(np.float32).astype(np.float64)
    ids = np.arange(len(logits))
    if top_k or top_p:
        ids = np.lexsort((ids, -x))
        ids = ids[:top_k] if top_k else ids
        if top_p:
            sums = np.cumsum(weights[ids])
            ids = ids[:np.searchsorted(sums, np.float64(np.float32(top_p)) * sums[-1]) + 1]
    ids = ids[weights[ids] >= np.float32(min_p)]
    return ids[::-1] if top_k or top_p else ids


def draws(seed, temperature, top_k, top_p, min_p, n, count):
    i = np.arange(n, dtype=np.uint64)
    logits = (((i * 2654435761) % 2**32) / 2**32 * 12 - 6).astype(np.float32)
    x = logits.astype(np.float64)
    weights = np.exp((x - x.max()) / np.float64(np.float32(temperature))).astype(np.float32).astype(np.float64)
    ids = candidates(logits, temperature, top_k, top_p, min_p)
    sums = np.cumsum(weights[ids])
    seeds = splitmix64(seed)
    random = xoshiro256starstar([next(seeds) for _ in range(4)])
    for _ in range(count):
        target = (next(random) >> 11) * 2.0**-53 * sums[-1]
        yield int(ids[np.searchsorted(sums, target, side="right")])


def main():
    with open(os.path.join(HERE, "sample.txt"), "w") as f:
        for case in [(1, 1.0, 0, 0, 0, 100), (0, 0.7, 0, 0, 0, 1000), (2, 0.7, 40, 0, 0, 1000),
                     (3, 1.5, 0, 0.9, 0, 1000), (4, 1.0, 0, 0, 0.2, 1000), (5, 0.9, 50, 0.6, 0.05, 32000),
                     (2**64 - 1, 2.0, 3, 0, 0, 32000), (6, 0.2, 0, 0.95, 0.1, 32000), (7, 100.0, 0, 0, 0, 32000),
                     (8, 0.01, 5, 0.5, 0.5, 10), (9, 8.0, 20, 0.8, 0, 7)]:
            f.write(" ".join(map(str, case)) + " " + ",".join(map(str, draws(*case, 24))) + "\n")


if __name__ == "__main__":
    main()
