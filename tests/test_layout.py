#!/usr/bin/env python3
"""squint synth's files have the keys and tensors of converted checkpoints, in their order.

    SQUINT_EXE=build/tools/squint/squint test_layout.py

Numbers of layers differ between the two, so names are compared with their numbers left out.

SPDX-License-Identifier: MIT
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

TESTS = pathlib.Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path[:0] = [str(TESTS), str(TESTS.parent / "tools")]

try:
    import gguf
    from checkpoint import command
except ImportError as missing:
    print(f"skipped: {missing}; tools/checkpoint/requirements.txt says what the converter needs")
    sys.exit(77)

SQUINT = os.environ["SQUINT_EXE"]
FAMILIES = {"llava15": "llava15", "llavanext": "llavanext-hf", "pmod15": "pmod15", "pmodnext": "pmodnext",
            "gamma-hr": "gamma-hr", "llava-hr-x": "llava-hr-x", "gamma-mgm": "gamma-mgm"}
# Of transformers' folder of LLaVA-NeXT: it says no length of its own, and has its newline where it likes.
TYPES = ("q4",)


def shape_of(path):
    """(keys and their types, [(tensor's name without numbers, dimensions, type)] without repetitions)"""
    reader = gguf.GGUFReader(path)
    keys = [(name, [kind.name for kind in field.types]) for name, field in reader.fields.items()
            if not name.startswith("GGUF.")]
    tensors = [(re.sub(r"\d+", "N", tensor.name), len(tensor.shape), tensor.tensor_type.name)
               for tensor in reader.tensors]
    return keys, list(dict.fromkeys(tensors))


class Layout(unittest.TestCase):
    def check(self, family, checkpoint, kind, folder):
        converted, made = folder / "converted.gguf", folder / "made.gguf"
        ratio = ["--skip-ratio", "0.5"] if family.startswith("gamma") else []
        self.assertEqual(command.main([str(folder / checkpoint), str(converted), "--type", kind, *ratio]), 0)
        subprocess.run([SQUINT, "synth", "--family", family, "--shape", "tiny", "--type", kind, made], check=True)
        self.assertEqual(shape_of(converted), shape_of(made))

    def test_every_family(self):
        for family, checkpoint in FAMILIES.items():
            with tempfile.TemporaryDirectory() as name:
                folder = pathlib.Path(name)
                subprocess.run([sys.executable, TESTS / "hf_folder.py", checkpoint, folder / checkpoint], check=True)
                with self.subTest(family=family):
                    self.check(family, checkpoint, "f16" if family == "pmodnext" else "q4", folder)


if __name__ == "__main__":
    unittest.main()
