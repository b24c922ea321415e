"""Data for training: drawn scenes, Flickr8k, Tiny-ImageNet names; the vocabulary; packed sequences.

SPDX-License-Identifier: MIT
"""

import collections
import json
import os

import numpy as np
import sentencepiece
import torch
from PIL import Image

import photos
import scenes

STOP = set("a an the in on of with and is are at to his her its their while by from for it as into up down out over "
           "that this who which there he she they be has have wearing".split())
PHOTO_SIDE = 160  # photos are stored a little larger than the model's input, to crop from
BOS, EOS = 1, 2


def read_captions(folder, split):
    """{file: [captions]} of a pack's split, in the file's order."""
    pairs = {}
    with open(os.path.join(folder, "captions.jsonl"), encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row["split"] == split:
                pairs[row["file"]] = row["captions"]
    return pairs


def load_photos(folder, split, side, limit=None):
    """Pictures [N,side,side,3] uint8, stretched, and their captions."""
    captions = read_captions(folder, split)
    pictures, texts = [], []
    for name, image in photos.read_all(os.path.join(folder, split + ".tar")):
        pictures.append(photos.stretch(image, side))
        texts.append(captions[name])
        if limit and len(pictures) == limit:
            break
    return np.stack(pictures), texts


def load_texts(folder, split):
    """The captions of load_photos() alone."""
    captions = read_captions(folder, split)
    return [captions[name] for name in photos.names(os.path.join(folder, split + ".tar"))]


def load_tiles(folder, split):
    """Tiny-ImageNet: tiles [N,64,64,3], class index [N], class names."""
    rows = {}
    with open(os.path.join(folder, "captions.jsonl"), encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            rows[row["file"]] = row
    names = sorted({row["captions"][0] for row in rows.values()})
    index = {name: i for i, name in enumerate(names)}
    tiles, labels = [], []
    for name, image in photos.read_all(os.path.join(folder, split + ".tar")):
        row, sheet = rows[name], np.asarray(image)
        for k in range(row["tiles"]):
            y, x = k // row["cols"] * row["tile"], k % row["cols"] * row["tile"]
            tiles.append(sheet[y:y + row["tile"], x:x + row["tile"]])
            labels.append(index[row["captions"][0]])
    return np.stack(tiles), np.array(labels), names


class Scenes:
    """A rendered training set of drawn scenes, mapped from disk."""

    def __init__(self, folder):
        self.pictures = np.load(os.path.join(folder, "pictures.npy"), mmap_mode="r")
        self.objects = np.load(os.path.join(folder, "objects.npy"))
        self.cells = np.load(os.path.join(folder, "cells.npy"))

    def __len__(self):
        return len(self.objects)

    def caption(self, i):
        return scenes.caption(scenes.row_objects(self.objects[i]))

    def chances(self, counts):
        """How likely each scene is to be drawn [N], for scenes of one, two, .. objects to have these parts."""
        n_objects = (self.objects[..., 0] >= 0).sum(1)
        chance = np.array([0, *counts])[n_objects] / np.bincount(n_objects)[n_objects]
        return chance / chance.sum()

    def cell_targets(self, index):
        """[B, cells, 3]: shape, colour and size of the object that covers a cell; 0: none."""
        first = self.objects[index][..., :3].astype(np.int64) + 1          # [B, objects, 3]
        padded = np.concatenate([np.zeros_like(first[:, :1]), first], 1)
        return np.take_along_axis(padded, self.cells[index].astype(np.int64)[..., None], 1)


# ---------------------------------------------------------------- vocabulary

def train_vocabulary(path, captions, size):
    """A LLaMA-like SentencePiece model: BPE, byte fallback, no normalisation."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions), model_prefix=path, vocab_size=size, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", add_dummy_prefix=True,
        remove_extra_whitespaces=False, character_coverage=1.0, unk_id=0, bos_id=1, eos_id=2, pad_id=-1)


def load_vocabulary(path):
    return sentencepiece.SentencePieceProcessor(model_file=path + ".model")


def content_words(captions, count):
    """The most frequent words that name something."""
    seen = collections.Counter(w for texts in captions for w in set(" ".join(texts).split()) if w not in STOP)
    return [w for w, _ in seen.most_common(count)]


def word_targets(captions, words):
    """[N, words] of 0 and 1: does any caption of the picture use the word?"""
    index = {w: i for i, w in enumerate(words)}
    out = np.zeros((len(captions), len(words)), np.float32)
    for row, texts in zip(out, captions):
        for w in set(" ".join(texts).split()) & index.keys():
            row[index[w]] = 1
    return out


# ------------------------------------------------------------------ pictures

def crop_and_flip(pictures, side, rng, flip):
    """Random crops of side x side; flip [B] bool mirrors."""
    out = np.empty((len(pictures), side, side, 3), np.uint8)
    slack = pictures.shape[1] - side
    for i, picture in enumerate(pictures):
        y, x = rng.integers(0, slack + 1, 2) if slack else (0, 0)
        part = picture[y:y + side, x:x + side]
        out[i] = part[:, ::-1] if flip[i] else part
    return out


def jitter(pictures, rng):
    """Small changes of brightness and contrast, on uint8 [B,H,W,3]."""
    gain = rng.uniform(0.85, 1.15, (len(pictures), 1, 1, 1)).astype(np.float32)
    shift = rng.uniform(-18, 18, (len(pictures), 1, 1, 1)).astype(np.float32)
    return np.clip((pictures - 128.0) * gain + 128 + shift, 0, 255).astype(np.uint8)


def mirrored(text):
    """A caption of the mirrored photo."""
    swap = {"left": "right", "right": "left"}
    return " ".join(swap.get(w, w) for w in text.split(" "))


# ----------------------------------------------------------------- sequences

def pack(captions, start, first):
    """
    Several captions of one picture as one sequence that shares the picture.

    captions: a list of lists of ids. start: ids between picture and caption. first: position of start[0].
    Returns (text, target, position, owner): target -1 means no loss; owner 0 is shared, i+1 is caption i. The rows of
    `start` come first; its last row predicts the first token of every caption, so each caption brings a copy.
    """
    shared = len(start) - 1
    text, target, owner = list(start[:-1]), [-1] * shared, [0] * shared
    position = list(range(first, first + shared))
    for i, ids in enumerate(captions):
        row = [start[-1], *ids]
        text += row
        target += [*ids, EOS]
        position += range(first + shared, first + shared + len(row))
        owner += [i + 1] * len(row)
    return text, target, position, owner


def collate(rows):
    """Packed rows to tensors: text, target, position [B,T], mask [B,T,T]."""
    longest = max(len(r[0]) for r in rows)

    def padded(column, fill):
        return torch.tensor([r[column] + [fill] * (longest - len(r[column])) for r in rows])

    text, target, position = padded(0, 0), padded(1, -1), padded(2, 0)
    owner = padded(3, -1)
    same = (owner.unsqueeze(2) == owner.unsqueeze(1)) | (owner.unsqueeze(1) == 0)
    mask = same & torch.ones(longest, longest, dtype=torch.bool).tril()
    return text, target, position, mask
