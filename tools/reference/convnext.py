"""ConvNeXt (arXiv 2201.03545) without its head.

SPDX-License-Identifier: MIT
"""

import torch.nn.functional as F

from reference.clip import silent


def channel_norm(w, name, x, eps):
    """LayerNorm over the channels of a map [channels][height][width]."""
    return w.norm(name, x.permute(1, 2, 0), eps).permute(2, 0, 1)


def block(w, x, eps):
    scale = w.get("gamma") if "gamma" in w else w["weight"]
    hidden = w.conv("conv_dw", x, padding=3, groups=x.shape[0]).permute(1, 2, 0)
    hidden = w.linear("mlp.fc2", F.gelu(w.linear("mlp.fc1", w.norm("norm", hidden, eps))))
    return x + (scale * hidden).permute(2, 0, 1)


def forward(w, stem, stages, pixels, eps, note=silent):
    """The maps [channels][height][width] after each of four stages; `stem` and `stages` are prefixes."""
    x = channel_norm(w, f"{stem}.1", w.conv(f"{stem}.0", pixels, stride=4), eps)
    maps = []
    for i in range(4):
        stage = w.under(f"{stages}.{i}.")
        if i:
            x = stage.conv("downsample.1", channel_norm(stage, "downsample.0", x, eps), stride=2)
        depth = 0
        while f"blocks.{depth}.conv_dw.weight" in stage:
            x = block(stage.under(f"blocks.{depth}."), x, eps)
            depth += 1
        note(f"slow.stage.{i}", x.flatten(1).t())
        maps.append(x)
    return maps
