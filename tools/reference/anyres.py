"""LLaVA-NeXT's tokens: the whole picture, then its tiles as one map without the padding, a newline after each row.

SPDX-License-Identifier: MIT
"""

import torch
import torch.nn.functional as F


def unpadded(grid, size):
    """grid [d][height][width] of a padded picture that was `size` (width, height): what is not padding."""
    (ow, oh), (h, w) = size, grid.shape[1:]
    if ow / oh > w / h:
        pad = (h - int(oh * (w / ow))) // 2
        return grid[:, pad:h - pad]
    pad = (w - int(ow * (h / oh))) // 2
    return grid[:, :, pad:w - pad]


def reduced(grid, most, side):
    """No more than about most * side * side places."""
    h, w = grid.shape[1:]
    times = (h * w / (most * side * side)) ** 0.5 if most else 1
    if times <= 1.01:
        return grid
    return F.interpolate(grid.unsqueeze(0), size=(int(h // times), int(w // times)), mode="bilinear")[0]


def tokens(features, grid, size, newline, most):
    """features [1 + tiles][side*side][d], grid (columns, rows) of tiles: the sequence [n][d]."""
    (columns, rows), d = grid, features.shape[-1]
    side = int(features.shape[1] ** 0.5)
    whole = features[1:].view(rows, columns, side, side, d).permute(4, 0, 2, 1, 3)
    whole = whole.reshape(d, rows * side, columns * side)
    whole = reduced(unpadded(whole, size), most, side)
    whole = torch.cat((whole, newline.view(d, 1, 1).expand(d, whole.shape[1], 1)), 2)
    return torch.cat((features[0], whole.flatten(1).t()))
