#!/usr/bin/env python3
"""
Makes checkpoints/: of every family of checkpoints a small model as tools/convert makes it, and what PyTorch finds in it
(tools/dump_reference.py; transformers for its own layouts). Pictures follow from a formula. With --check nothing is
written: what is there must be what today's scripts make.

    FAMILY.gguf         a folder of tests/hf_folder.py at a quarter of its width, in f32
    FAMILY.dump.gguf    a wide picture
    FAMILY.tall.dump.gguf, FAMILY.flat.dump.gguf
                        others, where the picture's shape decides how it is cut up

SPDX-License-Identifier: MIT
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

try:
    import gguf
    import numpy as np
    import safetensors  # pylint: disable=unused-import
    import sentencepiece  # pylint: disable=unused-import
    import torch  # pylint: disable=unused-import
    from PIL import Image
except ImportError as missing:
    print(f"skipped: {missing.name} is missing: pip install torch safetensors sentencepiece gguf numpy Pillow")
    sys.exit(77)

HERE = pathlib.Path(__file__).resolve().parent
TESTS, TOOLS = HERE.parent, HERE.parent.parent / "tools"
sys.path[:0] = [str(TESTS), str(TOOLS)]
import dump_reference  # pylint: disable=wrong-import-position
import hf_folder  # pylint: disable=wrong-import-position

WIDTHS = {"D": 16, "F": 32, "HEADS": 2, "VIT_D": 16, "VIT_F": 32, "VIT_HEADS": 2, "DIMS": (4, 8, 16, 32)}
SEED = 7
# What a picture is called, its sides, and the families that are shown it; none: all. The second is one that every
# Pillow resizes alike (rows_first() in tools/reference/pictures.py); of the last only the thumbnail's tokens are kept.
PICTURES = (("", (75, 50), ()), (".tall", (22, 50), ("llavanext-hf",)), (".tall", (60, 170), ("pmodnext",)),
            (".flat", (300, 1), ("pmodnext",)))
STAGES = ("ids,pixels.0,tower.*,slow.stage.[123],adapter.*,mined.*,projected,blk.0,blk.*.scores,blk.*.kept,logits,"
          "decode.*")
LARGEST = 400_000  # bytes of a file
# Any PyTorch's, next to squint's: in so narrow models a row may nearly cancel, and in float32 either is then up to 9e-5 of
# its length from float64.
DRIFT = "2e-4"


def picture(w, h):
    y, x = np.mgrid[0:h, 0:w]
    return np.stack([(37 * x + 91 * y + 53 * c + 11 * x * y) % 256 for c in range(3)], -1).astype(np.uint8)


def stages_of(family, suffix):
    """LLaVA-HR's pictures are large, and its tower's first stage shows them; of the decoder also the last layer."""
    if suffix == ".flat":
        return "ids,tower.*.out,projected,logits"
    last = (hf_folder.PMOD_LAYERS if family.startswith("pmod") else hf_folder.LAYERS) - 1
    return (STAGES.replace("pixels.0,", "") if "-hr" in family else STAGES) + f",blk.{last}"


def has_transformers():
    try:
        import transformers  # pylint: disable=unused-import,import-outside-toplevel
        return True
    except ImportError:
        return False


def make(family, out):
    """Writes the family's files."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = os.path.join(folder, family)
        hf_folder.write_folder(family, checkpoint, SEED)
        subprocess.run([sys.executable, TOOLS / "convert", checkpoint, out / f"{family}.gguf", "--type", "f32",
                        "--name", family], check=True, stdout=subprocess.DEVNULL)
        for suffix, size, families in PICTURES:
            if families and family not in families:
                continue
            shown = os.path.join(folder, "picture.png")
            Image.fromarray(picture(*size)).save(shown)
            dump_reference.main([checkpoint, shown, str(out / f"{family}{suffix}.dump.gguf"), "--stages",
                                 stages_of(family, suffix), "--decode", "6", "--logits", "4"])
    for path in out.glob(f"{family}.*gguf"):
        if path.stat().st_size > LARGEST:
            sys.exit(f"{path}: {path.stat().st_size} bytes")


# ------------------------------------------------------------------ --check

def contents(path):
    """(keys, tensors) of a file."""
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    return keys, {t.name: np.array(t.data).reshape(t.shape[::-1]) for t in reader.tensors}


def differences(old, new):
    """Lines. Sums may be taken in another order by another PyTorch (1.13 and 2.15 differ by 1.2e-5); who it is, is no
    matter."""
    (old_keys, old_tensors), (new_keys, new_tensors) = contents(old), contents(new)
    for name in sorted(old_keys.keys() | new_keys.keys()):
        if name != "squint.dump.source" and old_keys.get(name) != new_keys.get(name):
            yield f"key {name}"
    if list(old_tensors) != list(new_tensors):
        yield "other tensors, or in another order"
    for name in old_tensors.keys() & new_tensors.keys():
        a, b = old_tensors[name], new_tensors[name]
        bound = 4e-5 * max(float(np.abs(a).max(initial=0)), 1) if a.dtype == np.float32 else 0
        if a.dtype != b.dtype or a.shape != b.shape:
            yield f"tensor {name}: {b.dtype} {b.shape}, stored {a.dtype} {a.shape}"
        elif float(np.abs(a.astype(np.float64) - b).max(initial=0)) > bound:
            yield f"tensor {name}: other values"


def check(family, squint):
    """Number of complaints about the stored files of a family, and about what squint makes of new ones."""
    found = 0
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder)
        make(family, out)
        for path in sorted(out.glob(f"{family}.*gguf")):
            for line in differences(HERE / "checkpoints" / path.name, path):
                print(f"{path.name}: {line}")
                found += 1
        for dump in sorted(out.glob(f"{family}.*dump.gguf")):
            result = subprocess.run([squint, "compare", "-m", out / f"{family}.gguf", "--ref", dump, "--drift", DRIFT],
                                    check=False, capture_output=True, text=True)
            print(f"{dump.name}: {(result.stdout or result.stderr).splitlines()[-1]}")
            found += result.returncode != 0
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("families", nargs="*", default=hf_folder.FAMILIES, help="default all")
    parser.add_argument("--check", metavar="SQUINT", help="the squint program; write nothing")
    args = parser.parse_args()
    for name, value in WIDTHS.items():
        setattr(hf_folder, name, value)
    families = [f for f in args.families if has_transformers() or not f.endswith("-hf")]
    if len(families) < len(args.families):
        print("transformers is missing (pip install transformers): its own layouts are skipped")
    if args.check:
        sys.exit(sum(check(family, args.check) for family in families) > 0)
    for family in families:
        make(family, HERE / "checkpoints")


if __name__ == "__main__":
    main()
