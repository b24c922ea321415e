"""What models see of a picture, with Pillow and numpy as their processors do it.

SPDX-License-Identifier: MIT
"""

import math

import numpy as np
import torch
from PIL import Image

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
GREY = (122, 116, 104)  # the mean, as bytes


def normalise(image):
    """[3][height][width]"""
    values = (np.asarray(image) * (1 / 255)).astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(((values - MEAN) / STD).transpose(2, 0, 1)))


def padded(image):
    """On a grey square of its longer side, in the middle: LLaVA's expand2square."""
    w, h = image.size
    side = max(w, h)
    canvas = Image.new("RGB", (side, side), GREY)
    canvas.paste(image, ((side - w) // 2, (side - h) // 2))
    return canvas


def resized(image, size):
    """
    Columns, then rows, as in every Pillow up to 12.0. Version 13 takes rows first where a picture loses more of its
    height than of its width, and rounds otherwise for that.
    """
    return image.resize((size[0], image.height), Image.BICUBIC).resize(size, Image.BICUBIC)


def rows_first():
    """Is this a Pillow that can take rows first?"""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 40, 3)).astype(np.uint8))
    return bool((np.asarray(noise.resize((56, 56), Image.BICUBIC)) != np.asarray(resized(noise, (56, 56)))).any())


def square(image, side):
    return resized(image, (side, side))


def cropped(image, side):
    """CLIP: the shorter side to `side`, then the middle of the longer."""
    w, h = image.size
    size = (side, int(side * h / w)) if w <= h else (int(side * w / h), side)
    image = resized(image, size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return image.crop((left, top, left + side, top + side))


# ------------------------------------------------------------------- anyres

def best_resolution(size, pinpoints):
    """The (width, height) of `pinpoints` that keeps most of the picture, and of those wastes least."""
    ow, oh = size
    best, best_effective, least_waste = None, 0, math.inf
    for w, h in pinpoints:
        scale = min(w / ow, h / oh)
        effective = min(int(ow * scale) * int(oh * scale), ow * oh)
        waste = w * h - effective
        if effective > best_effective or (effective == best_effective and waste < least_waste):
            best, best_effective, least_waste = (w, h), effective, waste
    return best


def fitted(image, size):
    """As large as it fits, in the middle of black."""
    (ow, oh), (w, h) = image.size, size
    sw, sh = w / ow, h / oh
    nw, nh = (w, min(math.ceil(oh * sw), h)) if sw < sh else (min(math.ceil(ow * sh), w), h)
    canvas = Image.new("RGB", size, (0, 0, 0))
    canvas.paste(resized(image, (nw, nh)), ((w - nw) // 2, (h - nh) // 2))
    return canvas


def tiles(image, side):
    """Rows of squares, from the upper left."""
    w, h = image.size
    return [image.crop((x, y, x + side, y + side)) for y in range(0, h, side) for x in range(0, w, side)]


def anyres(image, pinpoints, side):
    """The whole picture stretched, then its tiles [1 + n][3][side][side]; and the grid (columns, rows)."""
    size = best_resolution(image.size, pinpoints)
    images = [square(image, side), *tiles(fitted(image, size), side)]
    return torch.stack([normalise(i) for i in images]), (size[0] // side, size[1] // side)
