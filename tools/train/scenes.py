#!/usr/bin/env python3
"""Drawn scenes: pictures of simple objects with one canonical caption each.

Every scene follows from (seed, split, index) alone, so a set can be rendered
by any number of workers and made again later.  Training draws from the split
"train", evaluation from the split "eval"; the two never share a random state.

Commands:
  render    write a training set (arrays for data.py)
  evalset   write PNG files and captions.jsonl for measuring

SPDX-License-Identifier: MIT
"""

import argparse
import json
import math
import multiprocessing
import os

import numpy as np
from PIL import Image, ImageDraw

import photos

SIDE = 144
GRID = 9
CELL = SIDE // GRID
SPLITS = {"train": 0, "eval": 1}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = ("small", "large")
COLOURS = {
    "red": (215, 30, 35),
    "green": (35, 160, 55),
    "blue": (40, 75, 225),
    "yellow": (242, 220, 40),
    "purple": (140, 45, 170),
    "orange": (248, 130, 20),
    "white": (246, 246, 246),
    "black": (16, 16, 16),
}
COLOUR_NAMES = tuple(COLOURS)
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "middle", "right")
COUNT_WEIGHTS = (0.28, 0.28, 0.22, 0.22)
FIELDS = ("shape", "colour", "size", "x", "y", "diameter")
MAX_OBJECTS = 4

SUPERSAMPLE = 4
MIN_CONTRAST = 100.0
EDGE = 3
OBJECT_GAP = 4
SPREAD = 15
DOMINANCE = 22


# ---------------------------------------------------------------- captions

def noun(obj):
    """The phrase for one object, for example "a small red circle"."""
    return f"a {SIZES[obj['size']]} {COLOUR_NAMES[obj['colour']]} {SHAPES[obj['shape']]}"


def place(obj):
    """The place words of a lone object."""
    row, column = int(obj["y"] * 3 // SIDE), int(obj["x"] * 3 // SIDE)
    if row == column == 1:
        return "in the middle"
    if row == 1:
        return f"in the middle {COLUMNS[column]}"
    return f"in the {ROWS[row]} {COLUMNS[column]}"


def relation(a, b):
    """Where a stands, seen from b."""
    dx, dy = a["x"] - b["x"], a["y"] - b["y"]
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def caption(objects):
    """The one right caption of a scene: objects are named in the palette's order."""
    ordered = sorted(objects, key=lambda o: o["colour"])
    if len(ordered) == 1:
        return f"{noun(ordered[0])} {place(ordered[0])}"
    if len(ordered) == 2:
        return f"{noun(ordered[0])} {relation(*ordered)} {noun(ordered[1])}"
    return ", ".join(map(noun, ordered[:-1])) + " and " + noun(ordered[-1])


# ------------------------------------------------------------------ layout

def draw_diameter(rng, size, count):
    """A diameter in pixels; small and large are far apart."""
    if size == 0:
        return rng.uniform(17, 22)
    return rng.uniform(38, 52) if count < 3 else rng.uniform(34, 44)


def lone_centre(rng, diameter):
    """A centre well inside one of the nine places."""
    margin = diameter / 2 + EDGE
    centre = []
    for third in rng.integers(0, 3, 2):
        low, high = ((margin, 38), (58, 86), (106, SIDE - margin))[third]
        centre.append(rng.uniform(low, high))
    return centre


def unambiguous(objects):
    """Whether nothing overlaps, lists are spread out, and relation words have one reading."""
    for i, a in enumerate(objects):
        for b in objects[:i]:
            dx, dy = abs(a["x"] - b["x"]), abs(a["y"] - b["y"])
            if max(dx, dy) < (a["diameter"] + b["diameter"]) / 2 + OBJECT_GAP:
                return False
            if len(objects) == 2 and abs(dx - dy) < DOMINANCE:
                return False
            if len(objects) > 2 and dx < SPREAD:
                return False
    return True


def draw_objects(rng):
    """Objects without colours: shape, size, diameter and centre."""
    count = 1 + int(rng.choice(MAX_OBJECTS, p=COUNT_WEIGHTS))
    while True:
        objects = []
        for _ in range(count):
            size = int(rng.integers(len(SIZES)))
            diameter = draw_diameter(rng, size, count)
            margin = diameter / 2 + EDGE
            x, y = rng.uniform(margin, SIDE - margin, 2)
            if count == 1:
                x, y = lone_centre(rng, diameter)
            objects.append({"shape": int(rng.integers(len(SHAPES))), "size": size,
                            "x": float(x), "y": float(y), "diameter": float(diameter)})
        if unambiguous(objects):
            return objects


# ----------------------------------------------------------------- drawing

def star_points(centre, radius, turn):
    """The ten corners of a five-pointed star."""
    points = []
    for i in range(10):
        r = radius if i % 2 == 0 else radius * 0.42
        angle = turn - math.pi / 2 + i * math.pi / 5
        points.append((centre[0] + r * math.cos(angle), centre[1] + r * math.sin(angle)))
    return points


def polygon_points(centre, radius, corners, turn):
    """The corners of a regular polygon, the first one upwards."""
    angles = (turn - math.pi / 2 + i * 2 * math.pi / corners for i in range(corners))
    return [(centre[0] + radius * math.cos(a), centre[1] + radius * math.sin(a)) for a in angles]


def cross_points(centre, radius, turn):
    """The twelve corners of an upright cross."""
    arm = radius * 0.34
    corners = [(-arm, -radius), (arm, -radius), (arm, -arm), (radius, -arm), (radius, arm),
               (arm, arm), (arm, radius), (-arm, radius), (-arm, arm), (-radius, arm),
               (-radius, -arm), (-arm, -arm)]
    c, s = math.cos(turn), math.sin(turn)
    return [(centre[0] + x * c - y * s, centre[1] + x * s + y * c) for x, y in corners]


def object_mask(obj, turn):
    """The antialiased coverage (0..1) of an object over the whole picture."""
    scale = SUPERSAMPLE
    image = Image.new("L", (SIDE * scale, SIDE * scale))
    draw = ImageDraw.Draw(image)
    radius = obj["diameter"] / 2 * scale
    centre = (obj["x"] * scale, obj["y"] * scale)
    box = (centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius)
    name = SHAPES[obj["shape"]]
    if name in ("circle", "ring"):
        draw.ellipse(box, fill=255)
    if name == "ring":
        inner = radius * 0.5
        draw.ellipse((centre[0] - inner, centre[1] - inner,
                      centre[0] + inner, centre[1] + inner), fill=0)
    elif name == "square":
        draw.polygon(polygon_points(centre, radius * 1.2, 4, math.pi / 4 + turn), fill=255)
    elif name == "triangle":
        low = (centre[0], centre[1] + radius * 0.2)
        draw.polygon(polygon_points(low, radius * 1.15, 3, turn), fill=255)
    elif name == "star":
        draw.polygon(star_points(centre, radius * 1.08, turn), fill=255)
    elif name == "cross":
        draw.polygon(cross_points(centre, radius, turn), fill=255)
    return np.asarray(image.reduce(scale), np.float32) / 255


def muted(rng):
    """A greyish colour."""
    return rng.uniform(50, 205) + rng.uniform(-30, 30, 3)


def textured(rng):
    """Stripes, checks, dots, noise or a gradient between two muted colours."""
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    first = muted(rng)
    second = np.clip(first + rng.uniform(12, 40) * rng.choice([-1, 1]) + rng.uniform(-12, 12, 3),
                     40, 215)
    kind = rng.integers(5)
    angle, period = rng.uniform(0, math.pi), rng.uniform(6, 28)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    if kind == 0:
        mix = (along % period < period / 2).astype(np.float32)
    elif kind == 1:
        mix = ((along // period + across // period) % 2).astype(np.float32)
    elif kind == 2:
        mix = (np.hypot(along % period - period / 2, across % period - period / 2)
               < period * 0.28).astype(np.float32)
    elif kind == 3:
        coarse = int(rng.integers(8, 73))
        noise = Image.fromarray(rng.integers(0, 256, (coarse, coarse), dtype=np.uint8))
        mix = np.asarray(noise.resize((SIDE, SIDE), Image.BILINEAR), np.float32) / 255
    else:
        mix = (along - along.min()) / (along.max() - along.min())
    return first + mix[..., None] * (second - first)


def photographic(rng, backdrop):
    """A random crop of a photo, mirrored or not, with its contrast faded."""
    picture = backdrop[int(rng.integers(len(backdrop)))]
    height, width = picture.shape[:2]
    crop = int(rng.integers(min(height, width) // 2, min(height, width) + 1))
    top, left = int(rng.integers(height - crop + 1)), int(rng.integers(width - crop + 1))
    part = Image.fromarray(picture[top:top + crop, left:left + crop])
    part = np.asarray(part.resize((SIDE, SIDE), Image.BICUBIC), np.float32)
    if rng.random() < 0.5:
        part = part[:, ::-1]
    mean = part.mean((0, 1))
    return np.clip(mean, 60, 195) + (part - mean) * rng.uniform(0.25, 0.6)


def background(rng, backdrop):
    """A plain, textured or photographic backdrop as floats."""
    kind = rng.random()
    if kind < 0.3:
        return np.broadcast_to(muted(rng), (SIDE, SIDE, 3)).astype(np.float32)
    if kind < 0.6:
        return textured(rng).astype(np.float32)
    return photographic(rng, backdrop).astype(np.float32)


def choose_colour(rng, mask, canvas, taken):
    """A colour index and value, none of those taken, that stand out from what lies below and around."""
    rows, columns = np.nonzero(mask > 0.05)
    near = canvas[max(rows.min() - 3, 0):rows.max() + 4, max(columns.min() - 3, 0):columns.max() + 4]
    local = near.mean((0, 1))
    for index in rng.permutation([i for i in range(len(COLOUR_NAMES)) if i not in taken]):
        value = np.array(COLOURS[COLOUR_NAMES[index]], np.float32)
        if np.linalg.norm(value - local) >= MIN_CONTRAST:
            return int(index), np.clip(value + rng.uniform(-9, 9, 3), 0, 255)
    raise AssertionError("no colour stands out; the palette spans the colour cube")


def cover_cells(masks):
    """For each grid cell, 1 + the index of the object that covers it, or 0."""
    cells = np.zeros(GRID * GRID, np.uint8)
    best = np.full(GRID * GRID, 0.12 * CELL * CELL)
    for index, mask in enumerate(masks):
        area = mask.reshape(GRID, CELL, GRID, CELL).sum((1, 3)).reshape(-1)
        area[area.argmax()] += 0.12 * CELL * CELL
        cells[area > best] = index + 1
        best = np.maximum(best, area)
    return cells


def scene(seed, split, index, backdrop):
    """One scene: (uint8 picture, objects, covered cells)."""
    rng = np.random.default_rng([seed, SPLITS[split], index])
    canvas = background(rng, backdrop)
    objects = draw_objects(rng)
    masks, taken = [], set()
    picture = canvas.copy()
    for obj in objects:
        mask = object_mask(obj, rng.uniform(-0.16, 0.16))
        obj["colour"], value = choose_colour(rng, mask, canvas, taken)
        taken.add(obj["colour"])
        shade = 1 + rng.uniform(-0.1, 0.1) * (np.mgrid[0:SIDE, 0:SIDE][0] - obj["y"]) / SIDE
        picture += mask[..., None] * (value * shade[..., None] - picture)
        masks.append(mask)
    picture = (picture - 128) * rng.uniform(0.92, 1.04) + 128 + rng.uniform(-8, 8)
    picture += rng.normal(0, 1, picture.shape) * rng.uniform(0, 4)
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8), objects, cover_cells(masks)


# ---------------------------------------------------------------- commands

_WORKER = {}


def _start_worker(seed, split, backdrop):
    _WORKER.update(seed=seed, split=split, backdrop=backdrop)


def _work(index):
    return scene(_WORKER["seed"], _WORKER["split"], index, _WORKER["backdrop"])


def scenes(seed, split, count, backdrop_path, workers):
    """Yield `count` scenes in order, drawn by `workers` processes."""
    backdrop = photos.load_backdrops(backdrop_path)
    with multiprocessing.Pool(workers, _start_worker, (seed, split, backdrop)) as pool:
        yield from pool.imap(_work, range(count), chunksize=64)


def objects_row(objects):
    """Objects as a fixed-size array; unused rows hold -1."""
    row = np.full((MAX_OBJECTS, len(FIELDS)), -1, np.float32)
    for i, obj in enumerate(objects):
        row[i] = [obj[field] for field in FIELDS]
    return row


def row_objects(row):
    """The inverse of objects_row."""
    return [{field: (int(v) if field in ("shape", "colour", "size") else float(v))
             for field, v in zip(FIELDS, line)} for line in row if line[0] >= 0]


def render(args):
    """Write pictures, objects and cells of the training split as .npy files."""
    os.makedirs(args.out, exist_ok=True)
    pictures = np.lib.format.open_memmap(os.path.join(args.out, "pictures.npy"), "w+",
                                         np.uint8, (args.count, SIDE, SIDE, 3))
    rows, cells = [], []
    for i, (picture, objects, covered) in enumerate(
            scenes(args.seed, "train", args.count, args.photos, args.workers)):
        pictures[i] = picture
        rows.append(objects_row(objects))
        cells.append(covered)
    pictures.flush()
    np.save(os.path.join(args.out, "objects.npy"), np.stack(rows))
    np.save(os.path.join(args.out, "cells.npy"), np.stack(cells))


def evalset(args):
    """Write PNG files and captions.jsonl of the evaluation split."""
    os.makedirs(args.out, exist_ok=True)
    with open(os.path.join(args.out, "captions.jsonl"), "w", encoding="utf-8") as lines:
        for i, (picture, objects, _) in enumerate(
                scenes(args.seed, "eval", args.count, args.photos, args.workers)):
            name = f"scene-{i:05d}.png"
            Image.fromarray(picture).save(os.path.join(args.out, name))
            lines.write(json.dumps({"file": name, "captions": [caption(objects)]}) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run, count, text in (
            ("render", render, 64000, "write a training set (.npy files)"),
            ("evalset", evalset, 2000, "write PNG files and captions.jsonl")):
        sub = commands.add_parser(name, help=text)
        sub.add_argument("out", help="folder to write")
        sub.add_argument("--count", type=int, default=count, help="number of scenes")
        sub.add_argument("--seed", type=int, default=1, help="random seed")
        sub.add_argument("--photos", help="folder or .tar of photos for backgrounds "
                                          "(default: scikit-image's own pictures)")
        sub.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
        sub.set_defaults(run=run)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
