#!/usr/bin/env python3
"""Writes metrics.json: captions, references, and the scores of the reference implementation.

Needs pycocoevalcap (PyPI); only its scorers in Python are used, on words that white space parts.

    python3 make_metrics.py > metrics.json
"""

import contextlib
import json
import random
import sys

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider

NOUNS = ["cat", "dog", "boat", "child", "red car", "tree", "two dogs", "man in a hat", "kite"]
VERBS = ["sits on", "runs past", "looks at", "is near", "jumps over", "stands beside"]
PLACES = ["the grass", "a beach", "a street", "the snow", "a wooden fence", "a river", "the the wall"]


def sentence(rng):
    words = f"a {rng.choice(NOUNS)} {rng.choice(VERBS)} {rng.choice(PLACES)}"
    if rng.random() < 0.3:
        words += f" and a {rng.choice(NOUNS)} {rng.choice(VERBS)} {rng.choice(PLACES)}"
    return words


def caption_for(rng, references, kind):
    words = rng.choice(references).split()
    if kind == "close":  # a reference with a word or two changed, now and then whole
        for _ in range(rng.randrange(3)):
            words[rng.randrange(len(words))] = rng.choice(["a", "the", "dog", "zebra"])
        return " ".join(words)
    if kind == "short":  # shorter than all references: brevity penalty
        return " ".join(words[: rng.randrange(1, 6)])
    return sentence(rng)


def make_case(name, seed, images, kind, most_references):
    rng = random.Random(seed)
    data = []
    for _ in range(images):
        references = [sentence(rng) for _ in range(rng.randint(1, most_references))]
        data.append({"caption": caption_for(rng, references, kind), "references": references})
    ids = range(images)
    references = {i: data[i]["references"] for i in ids}
    captions = {i: [data[i]["caption"]] for i in ids}
    with contextlib.redirect_stdout(sys.stderr):
        bleu, _ = Bleu(4).compute_score(references, captions, verbose=0)
        cider, _ = Cider().compute_score(references, captions)
    exact = sum(captions[i][0] in references[i] for i in ids) / images
    return {"name": name, "images": data, "exact": exact, "bleu": [float(b) for b in bleu], "cider": float(cider)}


cases = [
    make_case("close", 1, 40, "close", 5),
    make_case("short", 2, 25, "short", 4),
    make_case("other", 3, 30, "other", 3),
    make_case("one reference", 4, 20, "close", 1),
    make_case("one image", 5, 1, "close", 3),
]
json.dump(cases, sys.stdout, indent=0)
print()
