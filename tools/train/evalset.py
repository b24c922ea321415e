#!/usr/bin/env python3
"""Writes the photos of one split of the flickr8k pack and their captions as a folder for `squint eval`.

SPDX-License-Identifier: MIT
"""

import argparse
import json
import os
import tarfile

import data


def write(pack, split, out):
    """JPEG files as they are, and captions.jsonl in the order of their names. Returns how many."""
    captions = data.read_captions(pack, split)
    os.makedirs(out, exist_ok=True)
    with tarfile.open(os.path.join(pack, split + ".tar")) as archive, \
            open(os.path.join(out, "captions.jsonl"), "w", encoding="utf-8") as lines:
        members = {os.path.basename(m.name): m for m in archive.getmembers() if m.isfile()}
        for name in sorted(captions):
            with open(os.path.join(out, name), "wb") as picture:
                picture.write(archive.extractfile(members[name]).read())
            lines.write(json.dumps({"file": name, "captions": captions[name]}) + "\n")
    return len(captions)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("pack", help="folder of the flickr8k pack")
    parser.add_argument("out", help="folder to write")
    parser.add_argument("--split", default="val", help="default: val")
    args = parser.parse_args()
    print(write(args.pack, args.split, args.out), "photos")


if __name__ == "__main__":
    main()
