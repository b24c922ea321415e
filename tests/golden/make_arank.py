#!/usr/bin/env python3
"""
Makes arank.gguf: float32 matrices with numpy's rank of them, and the attention maps of the tiny model run dense, as
PyTorch computes them.

    matrix.NAME          [n][n]
    matrix.NAME.rank     numpy.linalg.matrix_rank, defaults
    ids                  of a sequence: BOS, -1 for each vision token, line break, caption
    map.L.H              [n][n] softmax of layer L's head H, lower triangle with a diagonal of 0
    ranks                [layers][heads][2] least and most that rounding can make of the maps' ranks

Singular values near the tolerance of a matrix lie at least 6 eps * sigma_max from it, more than LAPACK's rounding
moves them at these sizes. A map's may lie anywhere: the two ranks count those above tolerance + margin and above
tolerance - margin, the margin being 16 eps * sigma_max, for a softmax whose last bits are others.

SPDX-License-Identifier: MIT
"""

import os
import sys
import tempfile

import numpy as np
import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "tools", "train"))
import data  # noqa: E402
import gguf  # noqa: E402
import golden  # noqa: E402
from model import rotate  # noqa: E402

EPS = float(np.finfo(np.float32).eps)


# ---------------------------------------------------------------- matrices

def spectrum(rng, values):
    """A matrix of these singular values."""
    n = len(values)
    u, _ = np.linalg.qr(rng.standard_normal((n, n)))
    v, _ = np.linalg.qr(rng.standard_normal((n, n)))
    return ((u * values) @ v.T).astype(np.float32)


def is_clear(matrix):
    """Can rounding not make another rank of it?"""
    s = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    return not s[0] or not np.any(np.abs(s - s[0] * len(matrix) * EPS) < 6 * EPS * s[0])


def attention(rng, n, dim, sharpness):
    """Causal softmax of random queries and keys of few dimensions, the diagonal 0; the first draw that is clear."""
    matrix = softmax_map(rng, n, dim, sharpness)
    return matrix if is_clear(matrix) else attention(rng, n, dim, sharpness)


def softmax_map(rng, n, dim, sharpness):
    q, k = (torch.tensor(rng.standard_normal((n, dim)) * sharpness, dtype=torch.float32) for _ in range(2))
    scores = (q @ k.T).masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), float("-inf"))
    return scores.softmax(-1).tril(-1).numpy()


def near_tolerance(rng, n, above, below, margin):
    """So many singular values just above and just below the tolerance."""
    rest = np.geomspace(1, 1e-2, n - above - below)
    edge = n * EPS
    return spectrum(rng, np.concatenate([rest, np.full(above, edge * (1 + margin)), np.full(below, edge * (1 - margin))]))


def matrices():
    rng = np.random.default_rng(4)
    yield "zero7", np.zeros((7, 7), np.float32)
    yield "one1", np.zeros((1, 1), np.float32)
    yield "strict7", np.tril(rng.random((7, 7)), -1).astype(np.float32)
    yield "near7", near_tolerance(rng, 7, 1, 2, 0.9)
    yield "tiny7", near_tolerance(rng, 7, 2, 1, 0.9) * np.float32(1e-30)
    yield "low40", (rng.standard_normal((40, 5)) @ rng.standard_normal((5, 40))).astype(np.float32)
    yield "copies40", np.repeat(rng.standard_normal((8, 40)), 5, 0).astype(np.float32)
    yield "near40", near_tolerance(rng, 40, 3, 4, 0.25)
    yield "attention40", attention(rng, 40, 2, 2.0)
    yield "flat40", attention(rng, 40, 1, 0.01)
    yield "near101", near_tolerance(rng, 101, 5, 7, 0.1)
    yield "attention101", attention(rng, 101, 3, 4.0)


def checked_rank(name, matrix):
    assert is_clear(matrix), f"{name}: too close to the tolerance"
    rank = int(np.linalg.matrix_rank(matrix))
    assert rank == int(torch.linalg.matrix_rank(torch.from_numpy(matrix))), name
    return rank


# -------------------------------------------------------------- tiny model

def tiny_model():
    """The model of tiny-pmod.gguf, without its routing."""
    captions = list(golden.captions_to_learn(np.random.default_rng(golden.SEED), 500))
    vocabulary = golden.make_vocabulary(captions, golden.CONFIG.vocab)
    model = golden.make_model(golden.CONFIG)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "tiny.gguf")
        golden.export.export(model, vocabulary, path, "tiny-pmod")
        with open(path, "rb") as ours, open(os.path.join(HERE, "tiny-pmod.gguf"), "rb") as stored:
            assert ours.read() == stored.read(), "tiny-pmod.gguf holds another model"
    model.ratios = [None] * golden.CONFIG.layers
    return model, data.BOS, vocabulary.encode("\n") + vocabulary.encode(captions[0])


def attention_maps(model, bos, text):
    """ids and [layers][heads][n][n]."""
    maps = []

    def record(layer):
        attend = layer.attention

        def attention(x, cos, sin, mask):
            u, (b, n, _) = layer.attn_norm(x), x.shape
            q = rotate(layer.q(u).view(b, n, layer.heads, -1).transpose(1, 2), cos, sin)
            k = rotate(layer.k(u).view(b, n, layer.kv_heads, -1).transpose(1, 2), cos, sin)
            scores = q @ k.repeat_interleave(layer.heads // layer.kv_heads, 1).transpose(-1, -2) * q.shape[-1] ** -0.5
            maps.append((scores + mask).softmax(-1)[0].tril(-1).numpy())
            return attend(x, cos, sin, mask)
        layer.attention = attention

    for layer in model.layers:
        record(layer)
    shown = torch.from_numpy(golden.photos.stretch(golden.Image.fromarray(golden.picture()), model.config.image)[None].copy())
    vision = model.project(model.tower(golden.normalise(shown)))
    golden.run(model, vision, text)
    return [bos] + [-1] * vision.shape[1] + text, np.stack(maps)


def rank_bounds(matrix):
    s = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    edge, margin = s[0] * len(matrix) * EPS, s[0] * 16 * EPS
    low, high = int(np.sum(s > edge + margin)), int(np.sum(s > edge - margin))
    assert low <= np.linalg.matrix_rank(matrix) <= high
    return low, high


def main():
    torch.set_num_threads(1)
    tensors = []
    for name, matrix in matrices():
        tensors += [(f"matrix.{name}", matrix), (f"matrix.{name}.rank", np.array([checked_rank(name, matrix)], np.int32))]
        print(name, tensors[-1][1][0])
    with torch.no_grad():
        ids, maps = attention_maps(*tiny_model())
    bounds = np.array([[rank_bounds(m) for m in layer] for layer in maps], np.int32)
    print(bounds.tolist())
    tensors += [("ids", np.array(ids, np.int32)), ("ranks", bounds)]
    tensors += [(f"map.{layer}.{head}", maps[layer][head]) for layer, head in ((0, 0), (3, 1), (7, 3))]
    gguf.write(os.path.join(HERE, "arank.gguf"), [("general.architecture", gguf.STRING, "golden")], tensors)


if __name__ == "__main__":
    main()
