"""CLIP's vision tower and LLaVA's projector.

SPDX-License-Identifier: MIT
"""

import torch
import torch.nn.functional as F


def silent(_stage, _value):
    pass


def embed(w, pixels):
    """Patches [n][d], without class token and positions."""
    kernel = w["embeddings.patch_embedding.weight"]
    return F.conv2d(pixels.unsqueeze(0), kernel, stride=kernel.shape[-1])[0].flatten(1).t()


def attention(w, x, heads):
    n, d = x.shape
    q = w.linear("q_proj", x) * (d // heads) ** -0.5
    q, k, v = (t.view(n, heads, -1).transpose(0, 1) for t in (q, w.linear("k_proj", x), w.linear("v_proj", x)))
    mixed = (q @ k.transpose(1, 2)).softmax(-1) @ v
    return w.linear("out_proj", mixed.transpose(0, 1).reshape(n, d))


def block(w, x, config):
    eps = config.get("layer_norm_eps", 1e-5)
    x = x + attention(w.under("self_attn."), w.norm("layer_norm1", x, eps), config["num_attention_heads"])
    hidden = w.linear("mlp.fc1", w.norm("layer_norm2", x, eps))
    return x + w.linear("mlp.fc2", hidden * torch.sigmoid(1.702 * hidden))


def forward(w, config, pixels, select, note=silent):
    """The patches [n][d] of hidden_states[select]: 0 is before the first block, -2 before the last."""
    x = torch.cat((w["embeddings.class_embedding"].view(1, -1), embed(w, pixels)))
    x = x + w["embeddings.position_embedding.weight"]
    x = w.norm("pre_layrnorm", x, config.get("layer_norm_eps", 1e-5))
    note("embd", x)
    blocks = config["num_hidden_layers"]
    for i in range(select if select >= 0 else blocks + 1 + select):
        x = block(w.under(f"encoder.layers.{i}."), x, config)
        note(f"blk.{i}", x)
    note("out", x[1:])
    return x[1:]


def project(w, names, x):
    """Linear layers with GELU between."""
    for i, name in enumerate(names):
        x = w.linear(name, F.gelu(x) if i else x)
    return x
