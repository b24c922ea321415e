"""LLaMA's decoder (arXiv 2302.13971) whose layers may choose tokens: p-MoD (2412.04449), gamma-MoD (2410.13859).

Which tokens a layer chooses, and what they weigh, is told by tools/train/routing.py.

SPDX-License-Identifier: MIT
"""

import os
import re
import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "train"))
import routing  # pylint: disable=wrong-import-position

BEFORE = {"mod_llava_llama": 35}  # gamma's training: the rows before the picture that compete with it, if any


@dataclass
class Choice:
    """What routing.py wants to know of a configuration."""
    mode: str = "dense"
    norm: str = ""
    weigh_skipped: bool = True
    protect_text: bool = True
    skip_ratio: float = 0.5
    tokens: int = 0  # of the picture: with BOS, the region of gamma's training
    prefill_threshold: float = 0.0
    decode_threshold: float = 0.0
    decode_position: str = ""


@dataclass
class Rows:
    """A pass, as routing.py wants it: tensors [1][n]."""
    where: torch.Tensor   # position in the sequence
    vision: torch.Tensor  # may p-MoD skip it?
    first: bool
    generated: bool

    @property
    def real(self):
        return torch.ones_like(self.vision)


def pmod_ratios(config):
    """The released code divides by 31 whatever the number of layers."""
    return routing.scheduled(config["num_hidden_layers"], config["mod_target_layers"],
                             config["mod_router_factor"], last=31)


def choice_of(config, mode):
    """(Choice, per layer None or its ratio)"""
    layers = config["num_hidden_layers"]
    if "mod_target_layers" in config:
        return Choice(mode or "pmod", config["mod_weight_norm"]), pmod_ratios(config)
    routed = config.get("mod", {}).get("mod_layers_idx", [])
    own = "gamma-released-mgm" if config.get("model_type") == "mod_mgm" else "gamma-released"
    return Choice((mode or own) if routed else "dense"), [1.0 if l in routed else None for l in range(layers)]


class Decoder:
    """w: under what the embedding's name begins with; head: the output's weight."""

    def __init__(self, w, head, config, mode=None):
        self.w, self.head, self.config = w, head, config
        self.eps = config.get("rms_norm_eps", 1e-5)
        self.heads = config["num_attention_heads"]
        self.head_dim = config["hidden_size"] // self.heads
        self.choice, self.ratios = choice_of(config, mode)
        self.mode = routing.mode_of(self.choice)
        self.shared = next((n for n in sorted(w.found) if re.fullmatch(r".*layers\.\d+\.router\.weight", n)), None)
        self.cache = [None] * len(self.ratios)
        self.n = 0

    def lengths(self):
        return [0 if c is None else c[0].shape[1] for c in self.cache]

    def norm(self, name, x):
        return self.w[name] * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))

    def rotate(self, x, where):
        """x [heads][n][head_dim]; pairs are half a head apart."""
        half = torch.arange(0, self.head_dim, 2, dtype=x.dtype) / self.head_dim
        angles = torch.outer(where.to(x.dtype), 1.0 / self.config.get("rope_theta", 10000.0) ** half)
        (a, b), cos, sin = x.chunk(2, -1), angles.cos(), angles.sin()
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def attention(self, l, w, u, where):
        """Of normed rows u at these positions, to what the layer's cache holds and to each other."""
        q, k, v = (w.linear(f"self_attn.{p}_proj", u).view(len(u), -1, self.head_dim).transpose(0, 1) for p in "qkv")
        q, k = self.rotate(q, where), self.rotate(k, where)
        if self.cache[l] is not None:
            k, v = (torch.cat(pair, 1) for pair in zip(self.cache[l], (k, v)))
        self.cache[l] = (k, v)
        k, v = (t.repeat_interleave(self.heads // len(t), 0) for t in (k, v))
        scores = q @ k.transpose(1, 2) / self.head_dim ** 0.5
        n, past = len(u), k.shape[1] - len(u)
        scores = scores.masked_fill(torch.ones(n, past + n, dtype=torch.bool).triu(past + 1), float("-inf"))
        return w.linear("self_attn.o_proj", (scores.softmax(-1) @ v).transpose(0, 1).reshape(n, -1))

    def mlp(self, w, prefix, x):
        u = self.norm(f"{prefix}post_attention_layernorm.weight", x)
        return w.linear("mlp.down_proj", F.silu(w.linear("mlp.gate_proj", u)) * w.linear("mlp.up_proj", u))

    def scores(self, l, x, u):
        if not self.mode.gated:
            return self.w.linear(f"layers.{l}.router.router", x)[:, 0]
        own = f"layers.{l}.router.weight"
        gate = self.w[own] if own in self.w else self.w.found[self.shared]
        return u @ (gate[1] - gate[0])

    def layer(self, l, x, rows, note):
        inner = f"layers.{l}.decoder_layer."
        prefix = inner if inner + "input_layernorm.weight" in self.w else f"layers.{l}."
        w, where, mode = self.w.under(prefix), rows.where[0], self.mode
        u = self.norm(f"{prefix}input_layernorm.weight", x)
        if self.ratios[l] is None or mode is None or not (mode.gated or bool(rows.vision.any())):
            h = x + self.attention(l, w, u, where)
            return h + self.mlp(w, prefix, h)
        z = self.scores(l, x, u)
        scored = rows.real if mode.gated else rows.vision
        weight = routing.weights(self.choice, mode, z.unsqueeze(0), scored)[0]
        weight = torch.where(scored[0], weight, torch.ones_like(weight)).unsqueeze(1)
        run = routing.choose(self.choice, mode, self.ratios[l], z.unsqueeze(0), rows)[0].nonzero()[:, 0]
        note(f"blk.{l}.scores", z[scored[0]])
        note(f"blk.{l}.kept", run.int())
        out = x * weight if mode.weigh_skipped else x.clone()
        if not len(run):
            return out
        if mode.decode_local if rows.generated else mode.renumber:
            where = torch.arange(len(run)) + self.lengths()[l]
        else:
            where = where[run]
        attended = self.attention(l, w, u[run], where)
        h = x[run] + (weight[run] * attended if mode.weigh_attention else attended)
        out[run] = h + weight[run] * self.mlp(w, prefix, h)
        return out

    def embed(self, ids, vision):
        """Rows of a prompt; -200 stands for all of `vision`. Also the place of each vision token, -1 for text."""
        table, parts, place = self.w["embed_tokens.weight"], [], []
        for i in ids:
            parts.append(vision if i == -200 else table[i:i + 1])
            place += range(len(vision)) if i == -200 else [-1]
        return torch.cat(parts), torch.tensor(place)

    def set_region(self, n_vision):
        """The released code has it in numbers: 35 + 1024 for LLaVA-HR, 2880 for Mini-Gemini-HD."""
        self.choice.tokens = BEFORE.get(self.config.get("model_type"), 0) + n_vision - 1

    def run(self, x, target, note):
        """A pass over rows x behind what the caches hold; target [n]: may p-MoD skip a row? Hidden rows."""
        where = torch.arange(self.n, self.n + len(x)).unsqueeze(0)
        generated = len(x) == 1 and not bool(target.any())
        rows = Rows(where, target.unsqueeze(0), self.n == 0, generated)
        for l in range(len(self.ratios)):
            x = self.layer(l, x, rows, note)
            note(f"blk.{l}", x)
        self.n += len(x)
        return x

    def logits(self, x):
        return F.linear(self.norm("norm.weight", x), self.head)
