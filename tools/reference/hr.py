"""LLaVA-HR's front end (arXiv 2403.03003): CLIP on a small picture, ConvNeXt on a large one, adapters between.

SPDX-License-Identifier: MIT
"""

import torch
import torch.nn.functional as F

from reference import clip, convnext


def small_side(config, clip_config):
    """Of what CLIP sees: as many patches as the slow tower has places, or more."""
    return max(int(config["input_image_size"] / 32 * clip_config["patch_size"]), clip_config["image_size"])


def positions(w, side):
    """CLIP's table of patches, resampled to side x side; the class token's row is gone."""
    table = w["embeddings.position_embedding.weight"][1:]
    old = int(table.shape[0] ** 0.5)
    if old == side:
        return table
    grid = table.view(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False, antialias=True)
    return grid[0].flatten(1).t()


def as_map(tokens):
    side = int(tokens.shape[0] ** 0.5)
    return tokens.t().reshape(-1, side, side)


def match(slow, n):
    """Slow tokens as many as the fast ones are."""
    if slow.shape[0] == n:
        return slow
    grid, side = as_map(slow).unsqueeze(0), int(n ** 0.5)
    if slow.shape[0] < n:
        grid = F.interpolate(grid, size=(side, side), mode="bilinear", align_corners=True)
    else:
        grid = F.avg_pool2d(grid, grid.shape[-1] // side)
    return grid[0].flatten(1).t()


def adapter(w, y, z):
    """Fast tokens y [n][d] with what a gate lets in of the slow map z."""
    slow = w.conv("slow_proj", F.gelu(w.conv("slow_conv", z))).flatten(1).t()
    slow = match(slow, y.shape[0])
    fast = w.conv("fast_conv", as_map(y), padding=3, groups=y.shape[1])
    fast = y + w.conv("fast_proj", F.gelu(fast)).flatten(1).t()
    mean = torch.cat((fast, slow), 1).mean(0)
    gate = w.linear("gate.2", F.gelu(w.linear("gate.0", mean)))
    return fast + torch.tanh(gate) * slow


def forward(w, config, clip_config, pixels, eps, note):
    """Pixels [3][R][R] to the tokens [n][d]. `w`: under model.vision_tower."""
    fast = w.where("fast_vision_tower.vision_tower.vision_model.", "fast_vision_tower.vision_tower.",
                   has="embeddings.patch_embedding.weight")
    z = convnext.forward(w.under("slow_vision_tower.vision_tower."), "stem", "stages", pixels, eps, note)[-1]
    side = small_side(config, clip_config)
    small = F.interpolate(pixels.unsqueeze(0), size=(side, side), mode="bilinear", align_corners=True)[0]
    note("pixels.0", small)
    y = clip.embed(fast, small)
    y = fast.norm("pre_layrnorm", y + positions(fast, int(y.shape[0] ** 0.5)), clip_config.get("layer_norm_eps", 1e-5))
    note("tower.0.embd", y)
    blocks = clip_config["num_hidden_layers"]
    for i in range(blocks):
        y = clip.block(fast.under(f"encoder.layers.{i}."), y, clip_config)
        note(f"tower.0.blk.{i}", y)
        group, rest = divmod(i + 1, blocks // 4)
        if not rest and i + 1 < blocks and "align_stages_latent.0.slow_conv.weight" in w:
            y = adapter(w.under(f"align_stages_latent.{group - 1}."), y, z)
            note(f"adapter.{group - 1}", y)
    last = w.under("align_stages.0.")
    out = last.linear("fast_proj", y) + match(last.linear("slow_proj", z.flatten(1).t()), y.shape[0])
    note("tower.0.out", out)
    return out
