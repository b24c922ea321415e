#!/usr/bin/env python3
"""
Compares squint with PyTorch on whole sequences: the logits of every position and the tokens that routed layers run.
Pictures should be PNG: JPEG decoders round differently. A file of quantised weights can be compared too, with a wider
--bound.

SPDX-License-Identifier: MIT
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import torch
from PIL import Image

import data
import photos
import routing
from checkpoint import load_captioner
from model import Trace, normalise

MAGIC = 0x53514C47
TIE = 1e-5  # scores that are closer may be ranked either way


def dump(squint, model, folder, limit, path):
    """Lets squint write its logits to path."""
    subprocess.run([squint, "eval", "-m", model, "--data", folder, "--limit", str(limit), "--nll", "--threads", "1",
                    "--dump-logits", path], check=True)


def read_dump(path):
    """Yields (kept positions of each layer, logits [positions][vocabulary])."""
    words = np.fromfile(path, "<u4")
    at = 0
    while at < len(words):
        magic, n, n_vocab, n_layers = words[at:at + 4].tolist()
        if magic != MAGIC:
            raise SystemExit(f"{path}: no record at byte {4 * at}")
        at, kept = at + 4, []
        for _ in range(n_layers):
            count = int(words[at])
            kept.append(words[at + 1:at + 1 + count])
            at += 1 + count
        yield kept, words[at:at + n * n_vocab].view("<f4").reshape(n, n_vocab)
        at += n * n_vocab


def run(model, picture, text):
    """Logits of all positions, and the trace."""
    vision, trace, n = model.vision_tokens(normalise(torch.from_numpy(picture[None].copy()))), Trace(), len(text)
    position = (torch.arange(n) + vision.shape[1] + 1).unsqueeze(0)
    model(vision, torch.tensor([text]), position, torch.ones(1, n, n, dtype=torch.bool).tril(), trace=trace)
    return model.logits(model.norm(trace.layers[-1]))[0].numpy(), trace


def other_tokens(trace, kept, n):
    """Tokens that only one of squint and PyTorch runs, in all layers. Of the n vision tokens, ties aside."""
    count = 0
    for index, z in trace.scores.items():
        ran, z = trace.ran[index][0].numpy(), z[0].numpy()
        theirs = np.zeros_like(ran)
        theirs[kept[index]] = True
        vision = np.arange(len(z)) - 1 < n
        vision[0] = False
        low = z[vision & ran].min(initial=np.inf)
        high = z[vision & ~ran].max(initial=-np.inf)
        tie = vision & np.where(ran, z - high <= TIE, low - z <= TIE)
        count += int(((ran != theirs) & ~tie).sum())
    return count


def samples(folder):
    """Yields (file, first caption)."""
    with open(os.path.join(folder, "captions.jsonl"), encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            yield os.path.join(folder, row["file"]), row["captions"][0]


def compare(args, model, vocabulary, records):
    """(pictures, largest logit, largest difference, positions with another best token, other tokens kept)."""
    n, size, worst, flips, others = 0, 0.0, 0.0, 0, 0
    for (path, caption), (kept, theirs) in zip(samples(args.data), records):
        picture = photos.stretch(Image.open(path).convert("RGB"), model.config.image)
        logits, trace = run(model, picture, vocabulary.encode("\n") + vocabulary.encode(caption))
        if logits.shape != theirs.shape:
            raise SystemExit(f"{path}: {theirs.shape} logits, not {logits.shape}")
        n, size = n + 1, max(size, float(np.abs(logits).max()))
        worst = max(worst, float(np.abs(logits - theirs).max()))
        flips += int((logits.argmax(-1) != theirs.argmax(-1)).sum())
        others += other_tokens(trace, kept, model.config.tokens)
    return n, size, worst, flips, others


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\nSPDX", maxsplit=1)[0])
    parser.add_argument("checkpoint", help="of train.py caption")
    parser.add_argument("model", help="the GGUF file that export.py made of it")
    parser.add_argument("--vocab", required=True, help="prefix given to train.py vocab --out")
    parser.add_argument("--squint", required=True, help="the squint program")
    parser.add_argument("--data", required=True, help="folder with captions.jsonl and its pictures")
    parser.add_argument("--mode", choices=routing.MODES, help="given to export.py; default: as it was trained")
    parser.add_argument("--limit", type=int, default=50, help="first pictures only; default %(default)s")
    parser.add_argument("--bound", type=float, default=1e-3, help="fail when logits differ more; default %(default)s")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, vocabulary = load_captioner(args.checkpoint), data.load_vocabulary(args.vocab)
    if args.mode:
        model.config.mode = args.mode
        model.mode = routing.mode_of(model.config)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = os.path.join(folder, "logits")
        dump(args.squint, args.model, args.data, args.limit, path)
        n, size, worst, flips, others = compare(args, model, vocabulary, read_dump(path))
    print(f"{n} pictures, logits up to {size:.3g}: largest difference {worst:.3g}, another best token at {flips} "
          f"positions, {others} tokens run by one alone")
    sys.exit(n == 0 or worst > args.bound or others > 0)


if __name__ == "__main__":
    main()
