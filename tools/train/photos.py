"""Reading photos from folders and tar files.

SPDX-License-Identifier: MIT
"""

import io
import os
import tarfile

import numpy as np
from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm")
BACKDROPS = 2000
SAMPLES = ("astronaut", "chelsea", "coffee", "rocket", "immunohistochemistry", "hubble_deep_field")


def picture_members(archive):
    """The pictures of a tar file, sorted by name."""
    return sorted((m for m in archive.getmembers() if m.name.lower().endswith(SUFFIXES)), key=lambda m: m.name)


def read_all(path):
    """Yield (name, RGB image) for each picture of a folder or tar, sorted by name."""
    if os.path.isdir(path):
        for name in sorted(os.listdir(path)):
            if name.lower().endswith(SUFFIXES):
                yield name, Image.open(os.path.join(path, name)).convert("RGB")
        return
    with tarfile.open(path) as archive:
        for member in picture_members(archive):
            data = archive.extractfile(member).read()
            yield os.path.basename(member.name), Image.open(io.BytesIO(data)).convert("RGB")


def names(path):
    """The names of a tar's pictures, as read_all() has them."""
    with tarfile.open(path) as archive:
        return [os.path.basename(m.name) for m in picture_members(archive)]


def stretch(image, side):
    """The picture stretched to a square with Pillow's bicubic filter, as uint8 HWC."""
    return np.asarray(image.resize((side, side), Image.BICUBIC))


def load_backdrops(path):
    """Up to BACKDROPS pictures as uint8 arrays; scikit-image's own without a path."""
    if path is None:
        from skimage import data
        return [np.ascontiguousarray(getattr(data, name)()[..., :3]) for name in SAMPLES]
    pictures = []
    for _, image in read_all(path):
        pictures.append(np.asarray(image))
        if len(pictures) == BACKDROPS:
            break
    if not pictures:
        raise SystemExit(f"{path}: no pictures in it; give a folder or a .tar of {', '.join(SUFFIXES)} files")
    return pictures
