#!/usr/bin/env python3
# Makes resize.bin and cat.rgb: what Pillow makes of pictures, and LLaVA's and CLIP's steps of them.
# Needs Debian's python3-pil, python3-numpy, python3-skimage, python3-torch. SPDX-License-Identifier: MIT
#
# cat.rgb: 96x64 pixels RGB of skimage's cat (CC0).
# resize.bin, little endian: records of ten u32, a u64 and bytes:
#     source   0 waves, 1 noise (formulas, below), 2 cat.rgb
#     fit      0 plain resize, 1 stretch, 2 pad, 3 crop
#     w, h     of the source, its upper left part
#     dw, dh   of the result
#     pad      colour, red in the lowest byte
#     n        bytes that follow the record, or 0
#     0, 0
#     hash     FNV-1a of the result: bytes, or for fits float32 after normalising, [3][dh][dw]
#     bytes    the result before normalising, [dh][dw][3]
import os
import struct

import numpy as np
import skimage.data
import torch
from PIL import Image

HERE = os.path.dirname(os.path.abspath(__file__))
MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]
GREY = (122, 116, 104)
WAVES, NOISE, CAT = range(3)
PLAIN, STRETCH, PAD, CROP = range(4)
FULL = 4096  # results up to this size are kept whole: where a hash says "wrong", they say where


def source(kind, w, h, cat):
    y, x, c = np.mgrid[0:h, 0:w, 0:3].astype(np.uint32)
    if kind == WAVES:
        return ((37 * x + 91 * y + 53 * c + 11 * x * y) % 256).astype(np.uint8)
    if kind == NOISE:
        return ((((x * 73856093) ^ (y * 19349663) ^ (c * 83492791)) * np.uint32(2654435761)) >> 24).astype(np.uint8)
    return np.ascontiguousarray(cat[:h, :w])


def fnv(data):
    hash = 0xCBF29CE484222325
    for byte in data:
        hash = (hash ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return hash


def square(image, colour):
    """LLaVA-1.5's expand2square."""
    w, h = image.size
    if w == h:
        return image
    side = max(w, h)
    canvas = Image.new("RGB", (side, side), colour)
    canvas.paste(image, (0, (w - h) // 2) if w > h else ((h - w) // 2, 0))
    return canvas


def cropped(image, size):
    """CLIP's processor: the short side to size, then the centre."""
    w, h = image.size
    short, long = min(w, h), max(w, h)
    new_long = int(size * long / short)
    image = image.resize((size, new_long) if w <= h else (new_long, size), Image.BICUBIC)
    w, h = image.size
    top, left = (h - size) // 2, (w - size) // 2
    return image.crop((left, top, left + size, top + size))


def normalised(pixels):
    """As CLIP's processor does, in NumPy, and as in training, in PyTorch."""
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    numpy = ((pixels * 0.00392156862745098).astype(np.float32) - mean) / std
    tensor = (torch.from_numpy(pixels).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    assert numpy.dtype == np.float32 and np.array_equal(numpy, tensor.numpy())
    return numpy.transpose(2, 0, 1).copy()


def record(cat, kind, fit, w, h, dw, dh, colour=(0, 0, 0)):
    image = Image.fromarray(source(kind, w, h, cat))
    if fit in (PLAIN, STRETCH):
        image = image.resize((dw, dh), Image.BICUBIC)
    elif fit == PAD:
        image = square(image, colour).resize((dw, dh), Image.BICUBIC)
    else:
        image = cropped(image, dw)
    pixels = np.array(image)
    assert pixels.shape == (dh, dw, 3)
    hashed = pixels if fit == PLAIN else normalised(pixels)
    kept = pixels.tobytes() if pixels.size <= FULL else b""
    packed_colour = colour[0] | colour[1] << 8 | colour[2] << 16
    return struct.pack("<10IQ", kind, fit, w, h, dw, dh, packed_colour, len(kept), 0, 0, fnv(hashed.tobytes())) + kept


def main():
    cat = np.ascontiguousarray(skimage.data.cat()[90:154, 120:216])
    with open(os.path.join(HERE, "cat.rgb"), "wb") as f:
        f.write(cat.tobytes())

    plain = [
        (CAT, 96, 64, 24, 24), (CAT, 96, 64, 37, 23), (CAT, 96, 64, 150, 100), (CAT, 96, 64, 96, 64),
        (CAT, 96, 64, 96, 20), (CAT, 96, 64, 20, 64), (CAT, 96, 64, 1, 1), (CAT, 96, 64, 1, 64), (CAT, 31, 17, 33, 16),
        (WAVES, 1, 1, 1, 1), (WAVES, 1, 1, 40, 30), (WAVES, 1, 50, 9, 9), (WAVES, 50, 1, 9, 9), (WAVES, 1, 9, 20, 50),
        (WAVES, 2, 2, 3, 3), (WAVES, 3, 2, 2, 3), (WAVES, 40, 30, 1, 1), (WAVES, 2, 900, 144, 144),
        (WAVES, 900, 3, 144, 144), (WAVES, 640, 480, 144, 144), (WAVES, 333, 500, 336, 336),
        (WAVES, 144, 144, 143, 145),
        (NOISE, 500, 300, 144, 144), (NOISE, 100, 100, 336, 336), (NOISE, 1000, 700, 32, 32), (NOISE, 3000, 2, 20, 20),
        (NOISE, 2, 3000, 20, 20), (NOISE, 32768, 1, 16, 1), (NOISE, 1, 32768, 1, 16), (NOISE, 7, 5, 200, 3),
        (NOISE, 64, 48, 64, 30), (NOISE, 64, 48, 30, 48),
    ]
    fits = [(STRETCH, 24), (PAD, 24), (CROP, 24)]
    shapes = [(CAT, 96, 64), (CAT, 64, 64), (CAT, 24, 24), (CAT, 24, 17), (CAT, 5, 24), (CAT, 20, 11), (CAT, 11, 64),
              (NOISE, 1, 1), (NOISE, 1, 300), (NOISE, 300, 1), (NOISE, 500, 300), (NOISE, 301, 300), (NOISE, 300, 301)]
    records = [record(cat, kind, PLAIN, *sides) for kind, *sides in plain]
    for fit, size in fits:
        records += [record(cat, kind, fit, w, h, size, size, GREY) for kind, w, h in shapes]
    # Black, white and primary borders sharpen the cubic's overshoot; F1 to F3 are LLaVA-1.5's own size.
    for colour in ((0, 0, 0), (255, 255, 255), (255, 0, 128)):
        records += [record(cat, NOISE, PAD, w, h, 19, 19, colour) for w, h in ((30, 13), (13, 30), (6, 3), (40, 39))]
    records += [record(cat, WAVES, PAD, w, h, 336, 336, GREY) for w, h in ((500, 300), (301, 300), (336, 336))]
    records += [record(cat, WAVES, CROP, w, h, 336, 336) for w, h in ((500, 300), (336, 336), (400, 401))]
    with open(os.path.join(HERE, "resize.bin"), "wb") as f:
        f.write(b"".join(records))


if __name__ == "__main__":
    main()
