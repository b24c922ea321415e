"""The captioner: a ViT tower with a convolutional stem, a projector, and a LLaMA decoder that may route (p-MoD).

Vision tokens stand at rows 1..n of every sequence, after BOS; text follows. All layers see rectangular batches:
with the same number of vision tokens in each picture, a routed layer keeps the same number of rows.

SPDX-License-Identifier: MIT
"""

import math
from dataclasses import asdict, dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

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
    mod: bool = False
    schedule: tuple = (0.85, 0.15, 0.5)  # max, min, factor of shiftedcos
    norm_scale: float = 0.2
    norm_bias: float = 1.0

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


def retention(config):
    """Per layer: the fraction of vision tokens it runs, or None for a dense layer (PRD, shiftedcos)."""
    top, low, factor = config.schedule
    ratios = []
    for layer in range(config.layers):
        s = math.cos(math.pi * layer / max(config.layers - 1, 1)) / 2 + factor
        ratios.append(max(s, low) if config.mod and s <= top else None)
    return ratios


def kept_count(n, ratio):
    """trunc(float32(n) * float32(ratio)), the product in binary32."""
    return int(torch.tensor(float(n)) * torch.tensor(ratio, dtype=torch.float32))


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

    def attention(self, x, cos, sin, mask):
        """The attention branch. mask [B,1,n,n] is added to the scores."""
        b, n, _ = x.shape
        u = self.attn_norm(x)
        q = rotate(self.q(u).view(b, n, self.heads, -1).transpose(1, 2), cos, sin)
        k = rotate(self.k(u).view(b, n, self.kv_heads, -1).transpose(1, 2), cos, sin)
        v = self.v(u).view(b, n, self.kv_heads, -1).transpose(1, 2)
        repeat = self.heads // self.kv_heads
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        mixed = (scores.float() + mask).softmax(-1).to(v.dtype) @ v
        return self.o(mixed.transpose(1, 2).reshape(b, n, -1))

    def mlp(self, x):
        u = self.mlp_norm(x)
        return self.down(F.silu(self.gate(u)) * self.up(u))


class Router(nn.Module):
    """One score a token, from the residual stream, in float32."""

    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim) * 1e-3)  # noise breaks the ties of a zero router
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return x.float() @ self.weight + self.bias


class Trace:
    """What a forward pass can be asked to write down."""

    def __init__(self):
        self.layers, self.scores, self.kept = [], {}, {}


def keep_best(scores, k):
    """Rising indices of the k best [B,k]; the lower index wins a tie."""
    order = torch.sort(scores, dim=-1, descending=True, stable=True)[1]
    return order[:, :k].sort(-1)[0]


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
        self.ratios = retention(config)
        self.routers = nn.ModuleDict({str(l): Router(config.dim)
                                      for l, r in enumerate(self.ratios) if r is not None})
        cos, sin = rope_table(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.apply(self._init)

    def _init(self, module):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features ** -0.5 * 0.8)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.05)

    def project(self, tokens):
        """The tower's tokens to the decoder's input rows [B,n,dim]."""
        return self.project2(F.gelu(self.project1(tokens)))

    def vision_tokens(self, pixels):
        """Pixels to the decoder's input rows [B,n,dim]."""
        return self.project(self.tower(pixels))

    def forward(self, vision, text, positions, mask, bos=1, trace=None):
        """
        vision [B,n,dim], text ids [B,T], positions of the text [B,T], mask [B,T,T] bool: which text rows a text
        row sees besides BOS and the picture. Returns the hidden rows of the text, after the last norm.
        """
        b, n, _ = vision.shape
        start = self.embed(torch.full((b, 1), bos, dtype=torch.long))
        x = torch.cat((start, vision.float(), self.embed(text)), 1)
        where = torch.cat((torch.arange(n + 1).expand(b, -1), positions), 1)
        full = self._mask(n + 1, mask)
        for index, layer in enumerate(self.layers):
            ratio = self.ratios[index]
            if ratio is None:
                x = self._dense(layer, x, where, full)
            else:
                x = self._routed(index, layer, x, where, mask, n, kept_count(n, ratio), trace)
            if trace is not None:
                trace.layers.append(x)
        return self.norm(x[:, n + 1:])

    @staticmethod
    def _mask(prefix, text):
        """[B,1,N,N] of 0 and -inf: the prefix is causal, text sees the prefix and what `text` allows."""
        b, t, _ = text.shape
        allowed = torch.zeros(b, prefix + t, prefix + t, dtype=torch.bool)
        allowed[:, :prefix, :prefix] = torch.ones(prefix, prefix, dtype=torch.bool).tril()
        allowed[:, prefix:, :prefix] = True
        allowed[:, prefix:, prefix:] = text
        return torch.zeros(allowed.shape).masked_fill_(~allowed, float("-inf")).unsqueeze(1)

    def _rope(self, where):
        return self.cos[where].unsqueeze(1), self.sin[where].unsqueeze(1)

    def _dense(self, layer, x, where, mask):
        h = x + layer.attention(x, *self._rope(where), mask)
        return h + layer.mlp(h)

    def _routed(self, index, layer, x, where, text_mask, n, k, trace):
        b, _, d = x.shape
        start, vision, text = x[:, :1], x[:, 1:n + 1], x[:, n + 1:]
        z = self.routers[str(index)](vision)
        w = self.config.norm_scale * torch.tanh(z) + self.config.norm_bias
        kept = keep_best(z.detach(), k)
        if trace is not None:
            trace.scores[index], trace.kept[index] = z, kept
        rows = kept.unsqueeze(-1).expand(-1, -1, d)
        run = torch.cat((start, vision.gather(1, rows), text), 1)
        at = torch.cat((where[:, :1], where[:, 1:n + 1].gather(1, kept), where[:, n + 1:]), 1)
        weight = torch.cat((torch.ones(b, 1), w.gather(1, kept), torch.ones(b, text.shape[1])), 1)
        h = run + layer.attention(run, *self._rope(at), self._mask(k + 1, text_mask))
        run = h + weight.unsqueeze(-1) * layer.mlp(h)
        skipped = vision * w.unsqueeze(-1)
        return torch.cat((run[:, :1], skipped.scatter(1, rows, run[:, 1:k + 1]), run[:, k + 1:]), 1)

    def logits(self, hidden):
        """Tied to the embedding."""
        return hidden @ self.embed.weight.t()
