#!/usr/bin/env python3
"""Golden values of tests/test_foreign.c: the mixed pair of tests/foreign_pair.py, and what it computes in numpy.

    python3 tests/golden/make_foreign.py tests/golden

writes foreign-model.gguf, foreign-mmproj.gguf and foreign.golden.gguf: a picture of the tower's own size, ids of a
prompt with -1 for its vision tokens, the vision tokens, and logits of the last positions. All in double precision, from
weights as the gguf package reads them. Needs gguf and numpy.
"""
import math
import pathlib
import sys

import gguf
import numpy as np
from gguf import quants

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import foreign_pair as pair  # noqa: E402

N_LOGITS = 6
TEXT = [9, 4, 11, 20, 7, 15, 200, 33]


class Weights:
    def __init__(self, path):
        self.w = {}
        for t in gguf.GGUFReader(path).tensors:
            shape = [int(n) for n in reversed(t.shape)]
            self.w[t.name] = quants.dequantize(t.data, t.tensor_type).astype(np.float64).reshape(shape)

    def linear(self, x, name):
        return x @ self.w[name + ".weight"].T + self.w[name + ".bias"]

    def layer_norm(self, x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + pair.VIT_EPS)
        return x * self.w[name + ".weight"] + self.w[name + ".bias"]

    def rms_norm(self, x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + pair.EPS) * self.w[name + ".weight"]


def attend(q, k, v, causal):
    """[heads][n][dim]"""
    scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
    if causal:
        scores = scores + np.triu(np.full(scores.shape[1:], -np.inf), 1)
    share = np.exp(scores - scores.max(-1, keepdims=True))
    return ((share / share.sum(-1, keepdims=True)) @ v).transpose(1, 0, 2).reshape(q.shape[1], -1)


def split(x, heads):
    return x.reshape(len(x), heads, -1).transpose(1, 0, 2)


def tower(m, picture):
    """CLIP without its last block and norms after it, then LLaVA's projector."""
    x = (picture / 255.0 - pair.MEAN) / pair.STD
    side, p = pair.IMAGE // pair.PATCH, pair.PATCH
    x = x.reshape(side, p, side, p, 3).transpose(0, 2, 4, 1, 3).reshape(side * side, -1)
    x = x @ m.w["v.patch_embd.weight"].reshape(pair.VIT_D, -1).T
    x = np.concatenate([m.w["v.class_embd"][None], x]) + m.w["v.position_embd.weight"]
    x = m.layer_norm(x, "v.pre_ln")
    for n in range(pair.VIT_COUNTED):
        b = f"v.blk.{n}."
        h = m.layer_norm(x, b + "ln1")
        q, k, v = (split(m.linear(h, b + "attn_" + c), pair.VIT_HEADS) for c in "qkv")
        x = x + m.linear(attend(q, k, v, False), b + "attn_out")
        h = m.linear(m.layer_norm(x, b + "ln2"), b + "ffn_down")
        x = x + m.linear(h / (1 + np.exp(-1.702 * h)), b + "ffn_up")
    h = m.linear(x[1:], "mm.0")
    return m.linear(h * 0.5 * (1 + np.vectorize(math.erf)(h / math.sqrt(2))), "mm.2")


def rotate(x):
    """Pairs of neighbours, as rows in llama.cpp's order have them."""
    angle = np.arange(x.shape[1])[:, None] * pair.ROPE_BASE ** (-np.arange(pair.HEAD_DIM // 2) * 2 / pair.HEAD_DIM)
    cos, sin = np.cos(angle), np.sin(angle)
    out = np.empty_like(x)
    out[..., 0::2] = x[..., 0::2] * cos - x[..., 1::2] * sin
    out[..., 1::2] = x[..., 1::2] * cos + x[..., 0::2] * sin
    return out


def decoder(m, x):
    times = pair.HEADS // pair.KV_HEADS
    for n in range(pair.LAYERS):
        b = f"blk.{n}."
        h = m.rms_norm(x, b + "attn_norm")
        q = rotate(split(h @ m.w[b + "attn_q.weight"].T, pair.HEADS))
        k = np.repeat(rotate(split(h @ m.w[b + "attn_k.weight"].T, pair.KV_HEADS)), times, 0)
        v = np.repeat(split(h @ m.w[b + "attn_v.weight"].T, pair.KV_HEADS), times, 0)
        x = x + attend(q, k, v, True) @ m.w[b + "attn_output.weight"].T
        h = m.rms_norm(x, b + "ffn_norm")
        gate = h @ m.w[b + "ffn_gate.weight"].T
        x = x + gate / (1 + np.exp(-gate)) * (h @ m.w[b + "ffn_up.weight"].T) @ m.w[b + "ffn_down.weight"].T
    return m.rms_norm(x, "output_norm") @ m.w["token_embd.weight"].T


def main():
    folder = pathlib.Path(sys.argv[1])
    model, mmproj = str(folder / "foreign-model.gguf"), str(folder / "foreign-mmproj.gguf")
    pair.write_pair("mixed", model, mmproj)
    llm = Weights(model)
    picture = np.random.default_rng(3).integers(0, 256, (pair.IMAGE, pair.IMAGE, 3), dtype=np.uint8)
    vision = tower(Weights(mmproj), picture.astype(np.float64))
    ids = np.array([1] + [-1] * len(vision) + TEXT, dtype=np.int32)
    embd = llm.w["token_embd.weight"][np.maximum(ids, 0)]
    embd[ids < 0] = vision
    out = gguf.GGUFWriter(str(folder / "foreign.golden.gguf"), "golden")
    out.add_tensor("picture", picture.view(np.int8))
    out.add_tensor("ids", ids)
    out.add_tensor("vision", vision.astype(np.float32))
    out.add_tensor("logits", decoder(llm, embd)[-N_LOGITS:].astype(np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


if __name__ == "__main__":
    main()
