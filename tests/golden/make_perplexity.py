#!/usr/bin/env python3
"""Golden perplexities and divergences of tests/test_perplexity.c: the tiny model in numpy, in double precision.

    python3 tests/golden/make_perplexity.py tests/golden > tests/golden/perplexity.json

Needs gguf and numpy. The decoder of tiny-pmod.gguf runs over perplexity.txt; without a picture p-MoD's layers are
dense. The other model has the same matrices as Q4_0 keeps them. What is counted is written down here a second time:
tokens in chunks of 64, of which BOS replaces the first, and of which those after number 32, counted from 0, are scored.
"""
import json
import sys

import gguf
import numpy as np
from gguf import quants

CTX = 64
SHARES = [0.05, 0.5, 0.95, 0.99, 0.999]


def field(reader, key):
    return reader.fields[key].contents()


class Tokenizer:
    """SentencePiece's BPE: merge the adjacent pair of the best score, the leftmost of equals."""

    def __init__(self, reader):
        self.pieces = {p: i for i, p in enumerate(field(reader, "tokenizer.ggml.tokens"))}
        self.scores = field(reader, "tokenizer.ggml.scores")

    def merge(self, parts):
        best = None
        for i in range(len(parts) - 1):
            piece = self.pieces.get(parts[i] + parts[i + 1])
            if piece is not None and (best is None or self.scores[piece] > best[0]):
                best = self.scores[piece], i
        if best is None:
            return False
        parts[best[1]:best[1] + 2] = ["".join(parts[best[1]:best[1] + 2])]
        return True

    def encode(self, text):
        parts = list(("\u2581" + text.replace(" ", "\u2581")))
        while self.merge(parts):
            pass
        ids = []
        for part in parts:
            known = self.pieces.get(part)
            ids += [known] if known is not None else [self.pieces[f"<0x{b:02X}>"] for b in part.encode()]
        return ids


class Decoder:
    def __init__(self, reader, keep):
        self.w = {}
        for t in reader.tensors:
            w = np.array(t.data, np.float32).reshape([int(n) for n in reversed(t.shape)])
            self.w[t.name] = keep(t.name, w).astype(np.float64)
        attention, rope = "llama.attention.", "llama.rope."
        self.layers = field(reader, "llama.block_count")
        self.heads, self.kv_heads = field(reader, attention + "head_count"), field(reader, attention + "head_count_kv")
        self.eps = field(reader, attention + "layer_norm_rms_epsilon")
        self.base, self.head_dim = field(reader, rope + "freq_base"), field(reader, rope + "dimension_count")
        assert field(reader, "squint.rope_layout") == "half"

    def norm(self, x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps) * self.w[name]

    def heads_of(self, x, name, n, rotate):
        x = (x @ self.w[name].T).reshape(len(x), n, self.head_dim)
        if rotate:
            half = self.head_dim // 2
            angle = np.arange(len(x))[:, None] * self.base ** (-np.arange(half) / half)
            cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
            a, b = x[..., :half], x[..., half:]
            x = np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
        return np.repeat(x, self.heads // n, 1).transpose(1, 0, 2)

    def layer(self, x, p):
        h = self.norm(x, p + "attn_norm.weight")
        q = self.heads_of(h, p + "attn_q.weight", self.heads, True)
        k = self.heads_of(h, p + "attn_k.weight", self.kv_heads, True)
        v = self.heads_of(h, p + "attn_v.weight", self.kv_heads, False)
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(self.head_dim) + np.triu(np.full((len(x), len(x)), -np.inf), 1)
        share = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (share / share.sum(-1, keepdims=True)) @ v
        x = x + mixed.transpose(1, 0, 2).reshape(len(x), -1) @ self.w[p + "attn_output.weight"].T
        h = self.norm(x, p + "ffn_norm.weight")
        gate = h @ self.w[p + "ffn_gate.weight"].T
        up = h @ self.w[p + "ffn_up.weight"].T
        return x + (gate / (1 + np.exp(-gate)) * up) @ self.w[p + "ffn_down.weight"].T

    def log_p(self, ids):
        x = self.w["token_embd.weight"][ids]
        for n in range(self.layers):
            x = self.layer(x, f"blk.{n}.")
        logits = self.norm(x, "output_norm.weight") @ self.w.get("output.weight", self.w["token_embd.weight"]).T
        most = logits.max(-1, keepdims=True)
        return logits - most - np.log(np.exp(logits - most).sum(-1, keepdims=True))


def as_q4_0(name, w):
    if w.ndim < 2 or "router" in name or w.shape[-1] % 32:
        return w
    kind = gguf.GGMLQuantizationType.Q4_0
    return quants.dequantize(quants.quantize(w, kind), kind)


def mean_and_error(v):
    return float(v.mean()), float(v.std() / np.sqrt(len(v) - 1))


def main():
    folder = sys.argv[1]
    reader = gguf.GGUFReader(folder + "/tiny-pmod.gguf")
    with open(folder + "/perplexity.txt", encoding="utf-8") as f:
        ids = [1] + Tokenizer(reader).encode(f.read())
    models = [Decoder(reader, lambda name, w: w), Decoder(reader, as_q4_0)]
    nll, rows = [[], []], [[], []]
    for start in range(0, len(ids) - CTX + 1, CTX):
        chunk = [1] + ids[start + 1:start + CTX]
        for m in range(2):
            log_p = models[m].log_p(chunk)
            for at in range(CTX // 2, CTX - 1):
                nll[m].append(-log_p[at, chunk[at + 1]])
                rows[m].append(log_p[at])
    nll, rows = np.array(nll), np.array(rows)
    kl = (np.exp(rows[0]) * (rows[0] - rows[1])).sum(-1)
    means = [mean_and_error(n) for n in nll]
    log_ratio, kl_mean = mean_and_error(nll[1] - nll[0]), mean_and_error(kl)
    json.dump({
        "ids": len(ids), "tokens": len(kl),
        "perplexity": float(np.exp(means[0][0])), "perplexity_error": float(np.exp(means[0][0]) * means[0][1]),
        "other_perplexity": float(np.exp(means[1][0])), "other_error": float(np.exp(means[1][0]) * means[1][1]),
        "log_ratio": log_ratio[0], "log_ratio_error": log_ratio[1], "kl": kl_mean[0], "kl_error": kl_mean[1],
        "kl_max": float(kl.max()), "kl_quantiles": [float(q) for q in np.quantile(kl, SHARES)],
        "same_top": float((rows[0].argmax(-1) == rows[1].argmax(-1)).mean()),
    }, sys.stdout, indent=1)
    print()
    gaps = np.sort(rows, -1)
    print("smallest gap between the likeliest two:", (gaps[..., -1] - gaps[..., -2]).min(), file=sys.stderr)


if __name__ == "__main__":
    main()
