#!/usr/bin/env python3
"""Draws what each layer of a model looks at: the picture once a layer, skipped vision tokens darkened.

    tools/lookmap.py --squint build/tools/squint/squint --out map.png samples/drawn-1.png samples/cat.jpg

Needs python3-pil. SPDX-License-Identifier: MIT
"""

import argparse
import json
import os
import shutil
import struct
import subprocess
import tempfile

from PIL import Image, ImageDraw

MAGIC = 0x53514C47
SIDE = 144
GAP = 6
HEADER = 16
DARK = 0.18


def caption(args, path):
    """The model's caption and the number of its vision tokens."""
    command = [args.squint, "caption", "-q", "--json", *model_option(args), path]
    said = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return said["caption"], said["vision_tokens"]


def model_option(args):
    return ["-m", args.model] if args.model else []


def kept_positions(args, path, text):
    """Per layer the positions that it runs, from a pass over the picture and its caption."""
    with tempfile.TemporaryDirectory() as folder:
        listing, dump = os.path.join(folder, "captions.jsonl"), os.path.join(folder, "dump")
        with open(listing, "w", encoding="utf-8") as lines:
            lines.write(json.dumps({"file": "picture", "captions": [text]}) + "\n")
        shutil.copy(path, os.path.join(folder, "picture"))
        subprocess.run([args.squint, "eval", *model_option(args), "--data", listing, "--nll", "--dump-logits", dump],
                       check=True, stdout=subprocess.DEVNULL)
        with open(dump, "rb") as record:
            magic, _, _, layers = struct.unpack("<4I", record.read(16))
            if magic != MAGIC:
                raise SystemExit("squint eval --dump-logits wrote something else than logits")
            kept = []
            for _ in range(layers):
                count, = struct.unpack("<I", record.read(4))
                kept.append(set(struct.unpack(f"<{count}I", record.read(4 * count))))
    return kept


def darken(picture, kept, grid):
    """The picture with the cells of skipped tokens dark; BOS stands before token 0."""
    dark = Image.eval(picture, lambda v: int(v * DARK))
    mask = Image.new("L", (grid, grid))
    mask.putdata([255 if cell + 1 in kept else 0 for cell in range(grid * grid)])
    return Image.composite(picture, dark, mask.resize(picture.size, Image.NEAREST))


def row(args, path):
    """One picture's strip: as it is, then layer by layer; and its caption."""
    text, tokens = caption(args, path)
    picture = Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.BICUBIC)
    kept = kept_positions(args, path, text)
    return text, [picture] + [darken(picture, layer, round(tokens ** 0.5)) for layer in kept], kept, tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--squint", required=True, help="the squint command")
    parser.add_argument("--model", help="GGUF file (default: squint's own)")
    parser.add_argument("--out", required=True, help="PNG file to write")
    parser.add_argument("pictures", nargs="+")
    args = parser.parse_args()

    rows = [row(args, path) for path in args.pictures]
    step = SIDE + GAP
    sheet = Image.new("RGB", (step * len(rows[0][1]) - GAP, (step + HEADER) * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for y, (text, pictures, kept, tokens) in enumerate(rows):
        top = y * (step + HEADER)
        draw.text((0, top + 2), text, "black")
        for x, picture in enumerate(pictures):
            sheet.paste(picture, (x * step, top + HEADER))
            if x:
                count = sum(1 <= p <= tokens for p in kept[x - 1])
                draw.text((x * step + 4, top + HEADER + 2), f"layer {x - 1}: {count}", "white", stroke_width=1,
                          stroke_fill="black")
    sheet.save(args.out, optimize=True)


if __name__ == "__main__":
    main()
