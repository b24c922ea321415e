#!/usr/bin/env python3
# What the CLIP front ends make of pictures, as LLaVA computes it: pixels of pad, crop, stretch and anyres, and anyres'
# grids and tokens of 200 sizes. Writes pictures.txt and grids.txt. Needs Pillow and numpy. With --check, transformers'
# own processors must give the same (CLIPImageProcessor, LlavaNextImageProcessor on Pillow, unpad_image).
# SPDX-License-Identifier: MIT
#
# Pillow resizes across first, as it did when the models were trained (9.4); 13 resizes some portraits down first, which
# rounds otherwise, by up to 7 of 255. Two calls, one a direction, give the same in all versions.
import argparse
import math
import pathlib
import random

import numpy as np
from PIL import Image

SIZE, UNIT = 336, 24
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
PAD = (122, 116, 104)
PINPOINTS = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]  # width, height
KINDS = ('pad', 'crop', 'stretch', 'anyres')
PICTURES = [(1, 1), (3, 2), (2, 3), (100, 100), (336, 336), (337, 336), (301, 300), (300, 301), (500, 300), (300, 500),
            (640, 480), (480, 640), (672, 672), (1000, 300), (500, 2000), (1000, 1), (1, 1000), (30000, 1), (9000, 40),
            (40, 9000), (3264, 2448), (6000, 4000)]
# What vision.md's table says, from LLaVA's own functions.
TABLE = {(336, 336): 1176, (224, 224): 1176, (100, 100): 1176, (1, 1): 1176, (640, 480): 2340, (800, 600): 2340,
         (1024, 768): 2340, (480, 640): 2352, (672, 672): 2928, (1000, 1000): 2928, (1920, 1080): 1948,
         (1080, 1920): 1968, (2000, 500): 1890, (1000, 300): 2182, (500, 2000): 1944, (337, 336): 1176,
         (3000, 200): 868, (1000, 1): 576}


def picture(w, h):
    """A slope and a fine pattern, in integers."""
    x, y, c = np.meshgrid(np.arange(w, dtype=np.uint32), np.arange(h, dtype=np.uint32), np.arange(3, dtype=np.uint32),
                          indexing='ij')
    fine = (37 * x + 91 * y + 53 * c + 11 * x * y) & 255
    return Image.fromarray((x * 80 // w + y * 47 // h + (fine >> 1)).astype(np.uint8).transpose(1, 0, 2), 'RGB')


def normalise(image):
    values = (np.asarray(image, np.float64) * 0.00392156862745098).astype(np.float32)
    return ((values - MEAN) / STD).transpose(2, 0, 1)


def resize(image, size, resample=Image.BICUBIC, call=Image.Image.resize):
    return call(call(image, (size[0], image.height), resample), size, resample)


def expand2square(image):
    side = max(image.size)
    square = Image.new('RGB', (side, side), PAD)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def pad(image):
    return resize(expand2square(image), (SIZE, SIZE))


def crop(image):
    w, h = image.size
    short, long = min(w, h), max(w, h)
    other = int(SIZE * long / short)
    image = resize(image, (SIZE, other) if w <= h else (other, SIZE))
    left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
    return image.crop((left, top, left + SIZE, top + SIZE))


def stretch(image):
    return resize(image, (SIZE, SIZE))


def choose(w, h):
    best, most, waste = None, 0, math.inf
    for a, b in PINPOINTS:
        scale = min(a / w, b / h)
        effective = min(int(w * scale) * int(h * scale), w * h)
        if effective > most or (effective == most and a * b - effective < waste):
            best, most, waste = (a, b), effective, a * b - effective
    return best


def tiles(image):
    w, h = image.size
    a, b = choose(w, h)
    across, down = a / w, b / h
    fit = (a, min(math.ceil(h * across), b)) if across < down else (min(math.ceil(w * down), a), b)
    canvas = Image.new('RGB', (a, b))
    canvas.paste(resize(image, fit), ((a - fit[0]) // 2, (b - fit[1]) // 2))
    return [canvas.crop((x, y, x + SIZE, y + SIZE)) for y in range(0, b, SIZE) for x in range(0, a, SIZE)]


def kept(w, h):
    """Columns and rows of the tiles' map without its padding."""
    a, b = (side // SIZE * UNIT for side in choose(w, h))
    if w / h > a / b:
        gap = (b - int(h * (a / w))) // 2
        return a, b - 2 * gap
    gap = (a - int(w * (b / h))) // 2
    return a - 2 * gap, b


def shrunk(columns, rows, most):
    if not most or not columns * rows:
        return columns, rows
    times = math.sqrt(rows * columns / (most * UNIT ** 2))
    return (int(columns // times), int(rows // times)) if times > 1.01 else (columns, rows)


def tokens(columns, rows):
    return UNIT * UNIT + rows * (columns + 1)


def images(kind, image):
    if kind == 'anyres':
        return np.stack([normalise(i) for i in [stretch(image)] + tiles(image)])
    return normalise({'pad': pad, 'crop': crop, 'stretch': stretch}[kind](image))[None]


def fnv(floats):
    """FNV-1a, 64 bits, of the floats' 32 bits each."""
    h = 0xCBF29CE484222325
    for word in np.ascontiguousarray(floats, np.float32).view(np.uint32).ravel().tolist():
        h = (h ^ word) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


def can(kind, w, h):
    """Pillow resizes before it crops: a very long picture would need gigabytes."""
    return kind != 'crop' or max(w, h) <= 300 * min(w, h)


def sizes():
    """The table's, and as many more as make 200: of every order and shape."""
    rng = random.Random(7)
    out = list(TABLE) + [(30000, 1), (1, 30000), (32768, 32768), (2, 1), (1, 2), (9000, 40)]
    while len(out) < 200:
        long, aspect = math.exp(rng.uniform(0, math.log(9000))), math.exp(rng.uniform(0, 1.6))
        size = max(1, round(long)), max(1, round(long / aspect))
        if (size := size if rng.random() < 0.5 else size[::-1]) not in out:
            out.append(size)
    return out


def check(made):
    import torch
    from transformers.image_processing_utils import select_best_resolution
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
    from transformers.models.llava_next.modeling_llava_next import unpad_image
    clip = CLIPImageProcessorPil(size={'shortest_edge': SIZE}, crop_size={'height': SIZE, 'width': SIZE})
    next_ = LlavaNextImageProcessorPil(size={'shortest_edge': SIZE}, crop_size={'height': SIZE, 'width': SIZE},
                                       image_grid_pinpoints=[[h, w] for w, h in PINPOINTS])
    n = 0
    Image.Image.resize = lambda self, size, resample=Image.BICUBIC, *_, **__: resize(self, size, resample)
    for (kind, w, h), pixels in made.items():
        image = picture(w, h)
        if kind == 'stretch' or min(w, h) == 1:
            continue  # CLIP's processor has no such mode; and takes one row of pixels for a picture of one channel
        if kind == 'pad':
            image = expand2square(image)
        theirs = (next_ if kind == 'anyres' else clip)(image, return_tensors='np')['pixel_values']
        assert np.array_equal(theirs.reshape(pixels.shape).view(np.uint32), pixels.view(np.uint32)), (kind, w, h)
        n += 1
    for w, h in sizes():
        b, a = select_best_resolution((h, w), [(y, x) for x, y in PINPOINTS])
        assert (a, b) == choose(w, h), (w, h)
        theirs = unpad_image(torch.zeros(1, b // 14, a // 14), (h, w)).shape[:0:-1]
        assert tuple(theirs) == kept(w, h), (w, h, theirs)
    print(f'{n} pictures and {len(sizes())} grids as transformers has them')


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--check', action='store_true')
    asked = parser.parse_args()
    here = pathlib.Path(__file__).parent
    made = {(kind, w, h): images(kind, picture(w, h)) for w, h in PICTURES for kind in KINDS if can(kind, w, h)}
    with open(here / 'pictures.txt', 'w') as f:
        f.write('# kind, width, height, images, FNV-1a of all floats, four of them at i * (n - 1) / 3: make_pictures.py\n')
        for (kind, w, h), pixels in made.items():
            flat = pixels.ravel()
            some = ' '.join(f'{flat[i * (flat.size - 1) // 3]:.9g}' for i in range(4))
            f.write(f'{kind} {w} {h} {len(pixels)} {fnv(pixels):016x} {some}\n')
    assert all(tokens(*kept(*size)) == n for size, n in TABLE.items())
    with open(here / 'grids.txt', 'w') as f:
        f.write('# width, height, canvas, columns and rows kept, tokens; columns, rows, tokens with max_num_patches 1, 3\n')
        for size in sizes():
            cells = [shrunk(*kept(*size), most) for most in (0, 1, 3)]
            f.write(' '.join(map(str, [*size, *choose(*size)] + [n for c in cells for n in (*c, tokens(*c))])) + '\n')
    if asked.check:
        check(made)


main()
