"""Mini-Gemini's front end (arXiv 2403.18814): CLIP tokens ask a ConvNeXt's map for detail.

SPDX-License-Identifier: MIT
"""

import torch
import torch.nn.functional as F

from reference import clip, convnext


def resize(x, side):
    return F.interpolate(x.unsqueeze(0), size=(side, side), mode="bilinear", align_corners=False)[0]


def clip_images(pixels, config, side):
    """What CLIP sees of the prepared square [3][A][A]: blocks of grid x grid, row by row, and the whole."""
    grid = config.get("image_grid", 1)
    large = resize(pixels, grid * side)
    if grid == 1:
        return [large]
    starts = range(0, grid * side, side)
    blocks = [large[:, y:y + side, x:x + side] for y in starts for x in starts]
    return blocks + ([resize(large, side)] if config.get("image_global") else [])


def joined(maps):
    """All stages at the first one's size, channel after channel."""
    side = maps[0].shape[-1]
    return torch.cat([maps[0]] + [resize(m, side) for m in maps[1:]])


def mine(w, tokens, aux):
    """tokens [s*s][d], aux [channels][s*m][s*m]: each token attends its block of m x m places."""
    side = int(tokens.shape[0] ** 0.5)
    m = aux.shape[-1] // side
    places = aux.view(-1, side, m, side, m).permute(1, 3, 2, 4, 0).reshape(side * side, m * m, -1)

    def projected(name, x):
        return w.linear(f"vlm_uni_{name}_projector.1", w.norm(f"vlm_uni_{name}_projector.0", x, 1e-5))

    query, key, value = projected("query", tokens), projected("aux", places), projected("val", places)
    scores = torch.einsum("nd,njd->nj", query, key) / tokens.shape[1] ** 0.5
    return tokens + torch.einsum("nj,njd->nd", torch.nan_to_num(scores).softmax(-1), value)


def forward(w, clip_w, config, clip_config, pixels, note):
    """Pixels [3][A][A] to the tokens [n][d], the whole picture's first. `w`: under model."""
    grid, side = config.get("image_grid", 1), clip_config["image_size"]
    images = clip_images(pixels, config, side)
    aux = joined(convnext.forward(w.under("vision_tower_aux."), "vision_stem", "vision_stages", pixels, 1e-6, note))
    out = []
    for i, image in enumerate(images):
        note(f"pixels.{i}", image)
        tokens = clip.forward(clip_w, clip_config, image, config.get("mm_vision_select_layer", -2),
                              lambda stage, x, i=i: note(f"tower.{i}.{stage}", x))
        part = aux.shape[-1] // grid
        if i == grid * grid:
            block = resize(aux, part)
        else:
            y, x = i // grid * part, i % grid * part
            block = aux[:, y:y + part, x:x + part]
        out.append(mine(w, tokens, block))
        note(f"mined.{i}", out[-1])
    return torch.cat(out[grid * grid:] + out[:grid * grid])
