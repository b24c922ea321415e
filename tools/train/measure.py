#!/usr/bin/env python3
"""
Measures a checkpoint with PyTorch, to watch a training: how surprised it is by the captions of a folder, and how many
of its own are right. For final numbers export it and run `squint eval`, which is faster and measures more.

SPDX-License-Identifier: MIT
"""

import argparse
import itertools
import json
import os

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import data
import photos
from checkpoint import load_captioner
from model import normalise

MAX_WORDS = 48  # tokens of a written caption


def read_folder(folder, side, limit):
    """Pictures [N,side,side,3] uint8 and their captions, from a folder with a captions.jsonl."""
    pictures, captions = [], []
    with open(os.path.join(folder, "captions.jsonl"), encoding="utf-8") as lines:
        for line in itertools.islice(lines, limit):
            row = json.loads(line)
            image = Image.open(os.path.join(folder, row["file"])).convert("RGB")
            pictures.append(photos.stretch(image, side))
            captions.append(row["captions"])
    return np.stack(pictures), captions


def surprise(model, vision, captions, vocabulary):
    """Sum of -log p of all captions' tokens, ends included, and their number."""
    rows = [data.pack(vocabulary.encode(texts), vocabulary.encode("\n"), vision.shape[1] + 1) for texts in captions]
    text, target, position, mask = data.collate(rows)
    chosen = target >= 0
    logits = model.logits(model(vision, text, position, mask)[chosen])
    return F.cross_entropy(logits, target[chosen], reduction="sum").item(), int(chosen.sum())


def write(model, vision, vocabulary):
    """A greedy caption for each picture."""
    b, first = len(vision), vision.shape[1] + 1
    text = torch.tensor([vocabulary.encode("\n")] * b)
    start, ended = text.shape[1], torch.zeros(b, dtype=torch.bool)
    while not ended.all() and text.shape[1] < start + MAX_WORDS:
        t = text.shape[1]
        position = (first + torch.arange(t)).expand(b, -1)
        mask = torch.ones(b, t, t, dtype=torch.bool).tril()
        word = model.logits(model(vision, text, position, mask)[:, -1]).argmax(-1)
        text = torch.cat((text, word.unsqueeze(1)), 1)
        ended |= word == data.EOS
    written = (row[start:] for row in text.tolist())
    return [vocabulary.decode(row[:row.index(data.EOS)] if data.EOS in row else row) for row in written]


def measure(model, vocabulary, pictures, captions, batch):
    """(nats a token, part of the written captions that are one of the picture's)."""
    nll, tokens, right = 0.0, 0, 0
    for i in range(0, len(pictures), batch):
        texts = captions[i:i + batch]
        vision = model.vision_tokens(normalise(torch.from_numpy(pictures[i:i + batch])))
        loss, count = surprise(model, vision, texts, vocabulary)
        nll, tokens = nll + loss, tokens + count
        right += sum(w in t for w, t in zip(write(model, vision, vocabulary), texts))
    return nll / tokens, right / len(pictures)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\nSPDX", maxsplit=1)[0])
    parser.add_argument("checkpoint", help="of train.py caption, finished or not")
    parser.add_argument("--vocab", required=True, help="prefix given to train.py vocab --out")
    parser.add_argument("--data", required=True, help="folder with captions.jsonl and its pictures")
    parser.add_argument("--limit", type=int, default=200, help="first pictures only; default %(default)s")
    parser.add_argument("--shuffle", action="store_true", help="show each caption's picture to the next caption")
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_captioner(args.checkpoint)
    pictures, captions = read_folder(args.data, model.config.image, args.limit)
    if args.shuffle:
        pictures = np.roll(pictures, 1, axis=0)
    with torch.no_grad():
        nll, right = measure(model, data.load_vocabulary(args.vocab), pictures, captions, args.batch)
    print(f"{len(pictures)} pictures{', shuffled' if args.shuffle else ''}: NLL {nll:.4f} a token, "
          f"exact match {100 * right:.2f} %")


if __name__ == "__main__":
    main()
