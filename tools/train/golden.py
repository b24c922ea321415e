#!/usr/bin/env python3
"""
Writes a tiny model of random weights, tiny-pmod.gguf, and what PyTorch makes of a picture and a caption with it,
tiny-pmod.golden.gguf. The model goes the way of a trained one, so export.py is tested too.

Tensors of the golden file, beside what their names say (V vision tokens, T text tokens after BOS and them):
  picture              bytes [height][width][3]
  pixels               float [3][side][side], what the tower gets
  tower, projected     [V][...]
  ids                  of the sequence: BOS, -1 for each vision token, the line break, the caption
  layer.N              the sequence after layer N, [1+V+T][dim]
  layer.N.scores       [V], and .kept: rows of the sequence that the layer runs; routed layers only
  logits               [T][vocabulary]
  prompt.logits, .kv   after BOS, image, line break: the last row's logits; entries of each layer's cache
  greedy.ids, .kv      the caption that the model would write; caches after its last token
  greedy.logits        after each of its first tokens
  text.ids, .logits    BOS and the caption without a picture; logits of the caption's rows

SPDX-License-Identifier: MIT
"""

import argparse
import os
import tempfile

import numpy as np
import torch
from PIL import Image
from torch import nn

import data
import export
import gguf
import photos
from model import Captioner, Config, DecoderLayer, RMSNorm, Router, Trace, normalise
from routing import kept_count

SEED = 38
CONFIG = Config(image=48, patch=8, stem=(8, 16), v_dim=32, v_mlp=128, v_heads=2, v_layers=2, dim=32, mlp=96, heads=4,
                kv_heads=2, layers=8, vocab=320, context=128, mode="pmod")
WIDTH, HEIGHT = 61, 47
GREEDY, GREEDY_LOGITS = 12, 3
SIZES, COLOURS = "small large tiny huge".split(), "red green blue yellow purple orange white black".split()
SHAPES, RELATIONS = "circle square triangle star cross ring".split(), "left of,right of,above,below".split(",")
SCORE_MARGIN, LOGIT_MARGIN = 1e-3, 1e-2  # hundreds of times what rounding can move


# ------------------------------------------------------------------ the model

def captions_to_learn(rng, count):
    """Captions of a grammar of their own, so that the vocabulary stays what it is."""
    def thing():
        return f"a {rng.choice(SIZES)} {rng.choice(COLOURS)} {rng.choice(SHAPES)}"
    for _ in range(count):
        yield f"{thing()} {rng.choice(RELATIONS)} {thing()}"


def make_vocabulary(captions, size):
    with tempfile.TemporaryDirectory() as folder:
        prefix = os.path.join(folder, "tiny")
        data.train_vocabulary(prefix, captions, size)
        return data.load_vocabulary(prefix)


def spread(tensor, mean, deviation):
    with torch.no_grad():
        tensor.normal_().mul_(deviation).add_(mean)


def randomise(module):
    """Weights with which every part of the model makes a difference."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        spread(module.weight, 0, module.weight[0].numel() ** -0.5)
        if module.bias is not None:
            spread(module.bias, 0, 0.1)
    elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
        spread(module.weight, 1, 0.2)
        spread(module.bias, 0, 0.2)
    elif isinstance(module, RMSNorm):
        spread(module.weight, 1, 0.2)
    elif isinstance(module, nn.Embedding):
        spread(module.weight, 0, 0.15)  # small beside the layers, or each token would name itself next
    elif isinstance(module, Router):
        spread(module.weight, 0, 0.3)
        spread(module.bias, 0, 0.3)
    elif isinstance(module, DecoderLayer):
        module.o.weight.data *= 1.5
        module.down.weight.data *= 1.5
    if isinstance(module, nn.BatchNorm2d):
        spread(module.running_mean, 0, 0.3)
        module.running_var.uniform_(0.5, 2)


def make_model(config):
    torch.manual_seed(SEED)
    model = Captioner(config)
    model.apply(randomise)
    spread(model.tower.position.data, 0, 0.5)
    return model.eval()


# ------------------------------------------------------------------- the runs

def picture():
    """Every value from its place, by a formula."""
    y, x, c = np.mgrid[0:HEIGHT, 0:WIDTH, 0:3]
    return ((37 * x + 91 * y + 53 * c + 11 * x * y) % 256).astype(np.uint8)


def run(model, vision, text):
    """Logits of the text's rows [T][vocab], and a trace."""
    trace, n = Trace(), len(text)
    positions = torch.arange(n).unsqueeze(0) + vision.shape[1] + 1
    mask = torch.ones(1, n, n, dtype=torch.bool).tril()
    hidden = model(vision, torch.tensor([text]), positions, mask, trace=trace)
    return model.logits(hidden)[0], trace


def cache_lengths(model, n_vision, n_text):
    return np.array([1 + n_text + (n_vision if r is None else kept_count(n_vision, r)) for r in model.ratios], np.int32)


def greedy(model, vision, start):
    """Ids, and the logits that the first came from, then those after each."""
    ids, rows = [], []
    while len(ids) <= GREEDY:
        row = run(model, vision, start + ids)[0][-1]
        best = row.topk(2)
        assert best[0][0] - best[0][1] > LOGIT_MARGIN, "two tokens are too close; take another seed"
        rows.append(row.numpy())
        ids.append(int(best[1][0]))
    assert len(set(ids)) > 4, "a caption of one word; take another seed"
    return ids[:GREEDY], np.stack(rows)


def sequence_tensors(model, vision, text):
    """The whole sequence, layer by layer."""
    logits, trace = run(model, vision, text)
    n, tensors = vision.shape[1], [("logits", logits)]
    ids = [data.BOS] + [-1] * n + text
    tensors.append(("ids", np.array(ids, np.int32)))
    for index, rows in enumerate(trace.layers):
        tensors.append((f"layer.{index}", rows[0]))
        if index not in trace.scores:
            continue
        scores, ran = trace.scores[index][0, 1:n + 1], trace.ran[index][0]
        kept = scores[ran[1:n + 1]]
        assert kept.min() - scores[~ran[1:n + 1]].max() > SCORE_MARGIN, "scores are too close; take another seed"
        tensors += [(f"layer.{index}.scores", scores), (f"layer.{index}.kept", ran.nonzero()[:, 0].int())]
    return tensors


def golden_tensors(model, vocabulary, caption):
    shown = picture()
    pixels = normalise(torch.from_numpy(photos.stretch(Image.fromarray(shown), model.config.image)[None].copy()))
    tower = model.tower(pixels)
    vision = model.project(tower)
    start, words, n = vocabulary.encode("\n"), vocabulary.encode(caption), vision.shape[1]
    ids, rows = greedy(model, vision, start)
    return [
        ("picture", shown.view(np.int8)), ("pixels", pixels[0]), ("tower", tower[0]), ("projected", vision[0]),
        *sequence_tensors(model, vision, start + words),
        ("prompt.logits", rows[0]), ("prompt.kv", cache_lengths(model, n, len(start))),
        ("greedy.ids", np.array(ids, np.int32)), ("greedy.kv", cache_lengths(model, n, len(start) + GREEDY)),
        ("greedy.logits", rows[1:1 + GREEDY_LOGITS]),
        ("text.ids", np.array([data.BOS] + words, np.int32)), ("text.logits", run(model, vision[:, :0], words)[0]),
    ]


def main():
    parser = argparse.ArgumentParser(description="Writes tiny-pmod.gguf and tiny-pmod.golden.gguf.")
    parser.add_argument("out", help="folder to write to")
    args = parser.parse_args()
    torch.set_num_threads(1)
    captions = list(captions_to_learn(np.random.default_rng(SEED), 500))
    vocabulary = make_vocabulary(captions, CONFIG.vocab)
    model = make_model(CONFIG)
    export.export(model, vocabulary, os.path.join(args.out, "tiny-pmod.gguf"), "tiny-pmod")
    with torch.no_grad():
        tensors = golden_tensors(model, vocabulary, captions[0])
    keys = [("general.architecture", gguf.STRING, "golden"), ("caption", gguf.STRING, captions[0])]
    gguf.write(os.path.join(args.out, "tiny-pmod.golden.gguf"), keys, [(name, np.asarray(t)) for name, t in tensors])


if __name__ == "__main__":
    main()
