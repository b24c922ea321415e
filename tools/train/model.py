"""The captioner: a ViT tower with a convolutional stem, a projector, and a LLaMA decoder that may route.

How it routes is told by one row of routing.MODES. Vision tokens stand at rows 1..n of every sequence, after BOS; text
follows.

SPDX-License-Identifier: MIT
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn

import routing

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass
class Config:
    """Shapes. Matrix inputs are multiples of 32, the block of the quantised formats."""
    image: int = 144
    patch: int = 16
    stem: tuple = (32, 64, 128)      # channels; each convolution has stride 2
    v_dim: int = 192
    v_mlp: int = 768
    v_heads: int = 6
    v_layers: int = 5
    dim: int = 192
    mlp: int = 512
    heads: int = 6
    kv_heads: int = 3
    layers: int = 8
    vocab: int = 2048
    theta: float = 10000.0
    eps: float = 1e-5
    context: int = 256
    mode: str = "dense"              # of routing.MODES
    schedule: str = routing.PRD      # p-MoD: which layers route and how much they keep
    factor: float = 0.5              # of the schedule
    norm: str = "tanh_0.2_1"         # p-MoD: what a score becomes before it weighs
    weigh_skipped: bool = True       # p-MoD's STRing: a skipped token too is multiplied by its weight
    routed: tuple = ()               # gates: the layers that have one
    shared_router: bool = True       # gates: one for all layers
    skip_ratio: float = 0.5          # of the tokens that compete for gamma's capacity
    protect_text: bool = True        # only the picture and what stands before it compete: masked routing learning
    prefill_threshold: float = 0.0   # 0: the mode's
    decode_threshold: float = 0.0
    decode_position: str = ""        # "": the mode's

    @property
    def grid(self):
        return self.image // self.patch

    @property
    def tokens(self):
        return self.grid ** 2

    @property
    def head_dim(self):
        return self.dim // self.heads

    def to_dict(self):
        return asdict(self)


def normalise(pixels):
    """uint8 [B,H,W,3] to the tower's input, float32 [B,3,H,W]."""
    mean = torch.tensor(CLIP_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(CLIP_STD).view(1, 3, 1, 1)
    return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std


# ---------------------------------------------------------------- the tower

class TowerLayer(nn.Module):
    """A pre-norm transformer layer with QuickGELU, as in CLIP."""

    def __init__(self, config):
        super().__init__()
        d = config.v_dim
        self.heads = config.v_heads
        self.ln1, self.ln2 = nn.LayerNorm(d, 1e-5), nn.LayerNorm(d, 1e-5)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.fc1, self.fc2 = nn.Linear(d, config.v_mlp), nn.Linear(config.v_mlp, d)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(self.ln1(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q * (d // self.heads) ** -0.5) @ k.transpose(-1, -2)
        mixed = scores.float().softmax(-1).to(v.dtype) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(b, n, d))
        h = self.fc1(self.ln2(x))
        return x + self.fc2(h * torch.sigmoid(1.702 * h))


class Tower(nn.Module):
    """Pixels [B,3,S,S] to tokens [B,n,v_dim]."""

    def __init__(self, config):
        super().__init__()
        channels = (3, *config.stem)
        self.stem = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b))
            for a, b in zip(channels, channels[1:]))
        kernel = config.patch // 2 ** len(config.stem)
        self.patch = nn.Conv2d(channels[-1], config.v_dim, kernel, kernel, bias=False)
        self.position = nn.Parameter(torch.randn(config.tokens, config.v_dim) * 0.02)
        self.layers = nn.ModuleList(TowerLayer(config) for _ in range(config.v_layers))
        self.post_ln = nn.LayerNorm(config.v_dim, 1e-5)

    def forward(self, pixels):
        x = pixels.contiguous(memory_format=torch.channels_last)
        for conv in self.stem:
            x = F.relu(conv(x))
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.post_ln(x)


# -------------------------------------------------------------- the decoder

class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


def rope_table(config):
    """cos and sin [context, head_dim/2], frequencies in binary32."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32)
    inverse = 1.0 / (config.theta ** (half / config.head_dim))
    angles = torch.outer(torch.arange(config.context, dtype=torch.float32), inverse)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Rotate-half RoPE; x [B,h,n,hd], cos and sin [B or 1,1,n,hd/2]."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class DecoderLayer(nn.Module):
    """A LLaMA layer whose two branches are separate, so that a router can weigh the second."""

    def __init__(self, config):
        super().__init__()
        d, hd = config.dim, config.head_dim
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.attn_norm, self.mlp_norm = RMSNorm(d, config.eps), RMSNorm(d, config.eps)
        self.q = nn.Linear(d, config.heads * hd, bias=False)
        self.k = nn.Linear(d, config.kv_heads * hd, bias=False)
        self.v = nn.Linear(d, config.kv_heads * hd, bias=False)
        self.o = nn.Linear(config.heads * hd, d, bias=False)
        self.gate = nn.Linear(d, config.mlp, bias=False)
        self.up = nn.Linear(d, config.mlp, bias=False)
        self.down = nn.Linear(config.mlp, d, bias=False)

    def attention(self, u, cos, sin, mask, join=None):
        """
        The attention branch of normed rows u. mask [B,n,all] is added to the scores. join(k, v) puts the keys and
        values behind those that are cached and returns all.
        """
        b, n, _ = u.shape
        q = rotate(self.q(u).view(b, n, self.heads, -1).transpose(1, 2), cos, sin)
        k = rotate(self.k(u).view(b, n, self.kv_heads, -1).transpose(1, 2), cos, sin)
        v = self.v(u).view(b, n, self.kv_heads, -1).transpose(1, 2)
        if join is not None:
            k, v = join(k, v)
        repeat = self.heads // self.kv_heads
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        mixed = (scores.float() + mask.unsqueeze(1)).softmax(-1).to(v.dtype) @ v
        return self.o(mixed.transpose(1, 2).reshape(b, n, -1))

    def mlp(self, x):
        u = self.mlp_norm(x)
        return self.down(F.silu(self.gate(u)) * self.up(u))


class Router(nn.Module):
    """p-MoD's: one score a token, from the residual stream, in float32."""

    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim) * 1e-3)  # noise breaks the ties of a zero router
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return x.float() @ self.weight + self.bias


class Gate(nn.Module):
    """gamma-MoD's: the logit of running a token, from its normed row; a softmax of two is a sigmoid."""

    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter((torch.rand(2, dim) * 2 - 1) * dim ** -0.5)

    def forward(self, u):
        with torch.autocast("cpu", enabled=False):
            return u.float() @ (self.weight[1] - self.weight[0])


class Trace:
    """What a forward pass can be asked to write down, by layer: rows after it; scores [B,N], and which rows it ran."""

    def __init__(self):
        self.layers, self.scores, self.ran = [], {}, {}


class Cache:
    """Keys and values of one sequence, layer by layer, each with a length of its own."""

    def __init__(self, n_layers):
        self.n, self.keys, self.values = 0, [None] * n_layers, [None] * n_layers

    def length(self, layer):
        return 0 if self.keys[layer] is None else self.keys[layer].shape[2]

    def join(self, layer, k, v):
        if self.keys[layer] is not None:
            k, v = torch.cat((self.keys[layer], k), 2), torch.cat((self.values[layer], v), 2)
        self.keys[layer], self.values[layer] = k, v
        return k, v


@dataclass
class Rows:
    """The rows [B,N] of one pass."""
    where: torch.Tensor   # their positions in the sequence
    mask: torch.Tensor    # [B,N,N]: 0 where a row sees a row, else -inf
    vision: torch.Tensor  # bool: of the picture
    real: torch.Tensor    # bool: no padding
    first: bool           # nothing is cached yet

    @property
    def generated(self):
        return self.where.shape[1] == 1 and not bool(self.vision.any())


def pick(x, index):
    """Rows `index` [B,m] of x [B,N,...]."""
    return x.gather(1, index.view(*index.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:]))


def chosen_rows(chosen):
    """Rising indices [B,m] of the chosen rows, and which of the indices are meant [B,m]; None: all are."""
    counts = chosen.sum(1)
    m = int(counts.max())
    index = torch.sort((~chosen).byte(), dim=1, stable=True)[1][:, :m]
    return index, None if bool((counts == m).all()) else chosen.gather(1, index)


def picked_mask(mask, index, meant):
    """The mask [B,m,m] of the picked rows; a row that is not meant sees and is seen by itself alone."""
    part = pick(mask, index).gather(2, index.unsqueeze(1).expand(-1, index.shape[1], -1))
    if meant is None:
        return part
    alone = torch.eye(index.shape[1], dtype=torch.bool)
    both = meant.unsqueeze(1) & meant.unsqueeze(2)
    return part.masked_fill(~(both | alone), float("-inf")).masked_fill(~both & alone, 0)


class Captioner(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.tower = Tower(config)
        self.project1 = nn.Linear(config.v_dim, config.dim)
        self.project2 = nn.Linear(config.dim, config.dim)
        self.embed = nn.Embedding(config.vocab, config.dim)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, config.eps)
        self.mode = routing.mode_of(config)
        self.ratios = routing.ratios(config)
        self.routers = nn.ModuleDict(self._make_routers())
        cos, sin = rope_table(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.apply(self._init)

    def _make_routers(self):
        dim, routed = self.config.dim, [str(l) for l, r in enumerate(self.ratios) if r is not None]
        if self.mode is None or not routed:
            return {}
        if not self.mode.gated:
            return {l: Router(dim) for l in routed}
        return {"shared": Gate(dim)} if self.config.shared_router else {l: Gate(dim) for l in routed}

    def _init(self, module):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features ** -0.5 * 0.8)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.05)

    def router(self, layer):
        """The router of a routed layer, else None."""
        if self.ratios[layer] is None:
            return None
        return self.routers[str(layer) if str(layer) in self.routers else "shared"]

    def project(self, tokens):
        """The tower's tokens to the decoder's input rows [B,n,dim]."""
        return self.project2(F.gelu(self.project1(tokens)))

    def vision_tokens(self, pixels):
        """Pixels to the decoder's input rows [B,n,dim]."""
        return self.project(self.tower(pixels))

    def forward(self, vision, text, positions, mask, bos=1, cache=None, trace=None):
        """
        vision [B,n,dim], text ids [B,T], positions of the text [B,T] (0: padding), mask [B,T,T] bool: which text rows a
        text row sees besides BOS and the picture. Returns the hidden rows of the text, after the last norm.
        """
        b, n, _ = vision.shape
        start = self.embed(torch.full((b, 1), bos, dtype=torch.long))
        x = torch.cat((start, vision.float(), self.embed(text)), 1)
        where = torch.cat((torch.arange(n + 1).expand(b, -1), positions), 1)
        at = torch.arange(where.shape[1]).expand(b, -1)
        rows = Rows(where, self._mask(n + 1, mask), (at > 0) & (at <= n), (at <= n) | (where > 0), True)
        return self.norm(self._run(x, rows, cache, trace)[:, n + 1:])

    def append(self, text, cache, trace=None):
        """Runs ids [T] behind what the cache holds, one being the next of a generation. Hidden rows [T,dim]."""
        n = len(text)
        where = torch.arange(cache.n, cache.n + n).unsqueeze(0)
        mask = torch.full((1, n, n), float("-inf")).triu(1)
        real = torch.ones(1, n, dtype=torch.bool)
        rows = Rows(where, mask, ~real, real, cache.n == 0)
        return self.norm(self._run(self.embed(torch.tensor([text])), rows, cache, trace))[0]

    def _run(self, x, rows, cache, trace):
        for index in range(len(self.layers)):
            x = self._layer(index, x, rows, cache, trace)
            if trace is not None:
                trace.layers.append(x)
        if cache is not None:
            cache.n += x.shape[1]
        return x

    @staticmethod
    def _mask(prefix, text):
        """[B,N,N] of 0 and -inf: the prefix is causal, text sees the prefix and what `text` allows."""
        b, t, _ = text.shape
        allowed = torch.zeros(b, prefix + t, prefix + t, dtype=torch.bool)
        allowed[:, :prefix, :prefix] = torch.ones(prefix, prefix, dtype=torch.bool).tril()
        allowed[:, prefix:, :prefix] = True
        allowed[:, prefix:, prefix:] = text
        return torch.zeros(allowed.shape).masked_fill_(~allowed, float("-inf"))

    def _attend(self, index, u, where, mask, cache):
        """Attention of normed rows at these positions, and to what the cache holds."""
        cos, sin = self.cos[where].unsqueeze(1), self.sin[where].unsqueeze(1)
        if cache is None:
            return self.layers[index].attention(u, cos, sin, mask)
        mask = F.pad(mask, (cache.length(index), 0))
        return self.layers[index].attention(u, cos, sin, mask, lambda k, v: cache.join(index, k, v))

    def _layer(self, index, x, rows, cache, trace):
        layer, router, mode = self.layers[index], self.router(index), self.mode
        u = layer.attn_norm(x)
        if router is None:
            h = x + self._attend(index, u, rows.where, rows.mask, cache)
            return h + layer.mlp(h)
        z = router(u if mode.gated else x)
        scored = rows.real if mode.gated else rows.vision
        weight = torch.where(scored, routing.weights(self.config, mode, z, scored), torch.ones(()))
        chosen = routing.choose(self.config, mode, self.ratios[index], z.detach(), rows)
        if trace is not None:
            trace.scores[index], trace.ran[index] = z, chosen
        skipped = x * weight.unsqueeze(-1) if mode.weigh_skipped else x
        run, meant = chosen_rows(chosen)
        if run.shape[1] == 0:
            return skipped
        mask = picked_mask(rows.mask, run, meant)
        where = pick(rows.where, run)
        if mode.decode_local if rows.generated else mode.renumber:
            where = (mask == 0).sum(-1) - 1 + (cache.length(index) if cache else 0)
        w = pick(weight, run).unsqueeze(-1)
        part = pick(x, run)
        attended = self._attend(index, pick(u, run), where, mask, cache)
        h = part + (w * attended if mode.weigh_attention else attended)
        part = h + w * layer.mlp(h)
        if meant is not None:
            part = torch.where(meant.unsqueeze(-1), part, pick(skipped, run))
        return skipped.scatter(1, run.unsqueeze(-1).expand_as(part), part)

    def logits(self, hidden):
        """Tied to the embedding."""
        return hidden @ self.embed.weight.t()
