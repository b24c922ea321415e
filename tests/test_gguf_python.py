#!/usr/bin/env python3
"""The gguf Python package reads squint's files, and squint reads what it writes.

    SQUINT_EXE=.../squint python3 tests/test_gguf_python.py

Skips (77) where the package is missing.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

try:
    import gguf
    import numpy as np
    from gguf import GGMLQuantizationType as T
    from gguf import quants

    import foreign_pair
except ImportError as missing:
    print(f"skipped: {missing}; tools/checkpoint/requirements.txt names it")
    sys.exit(77)

SQUINT = os.environ["SQUINT_EXE"]
TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K", "mixed"]
KEPT = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_0"]  # whose weights loading does not change
TEXT = "abc de fgh ijkl a b c " * 40


def squint(*args):
    done = subprocess.run([SQUINT, *map(str, args)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def tensors_of(path):
    return {t.name: t for t in gguf.GGUFReader(path).tensors}


def floats_of(t):
    shape = [int(n) for n in reversed(t.shape)]
    return quants.dequantize(t.data, t.tensor_type).astype(np.float32, copy=False).reshape(shape)


class Pairs(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.model, self.mmproj, self.merged = (self.folder / f"{n}.gguf" for n in ("model", "mmproj", "merged"))

    def write(self, kind):
        foreign_pair.write_pair(kind, str(self.model), str(self.mmproj))

    def quantize(self, kind, path):
        out = self.folder / f"of-{kind}.gguf"
        args = ["--mmproj", self.mmproj] if path == self.model else []
        squint("quantize", "--type", kind, *args, path, out)
        return out

    def assert_same_floats(self, got, expected):
        self.assertEqual(sorted(got), sorted(expected))
        for name, t in expected.items():
            a, b = floats_of(got[name]), floats_of(t)
            self.assertEqual(a.shape, b.shape, name)
            self.assertTrue(np.array_equal(a.view(np.uint32), b.view(np.uint32)), name)

    def test_squint_reads_each_type(self):
        """Every weight of both halves is, to the bit, the float that the package makes of it."""
        for kind in TYPES:
            with self.subTest(kind):
                self.write(kind)
                expected = tensors_of(self.model) | tensors_of(self.mmproj)
                self.assert_same_floats(tensors_of(self.quantize("f32", self.model)), expected)

    def test_logits_are_those_of_the_floats(self):
        """The divergence from the same weights as F32. Logits that are off by e at random diverge by e^2 / 2. Here they
        have a standard deviation of 1.6; activations of eight bits, 0.7 % in each of nine products, are 2.1 % of that,
        and requantised weights add 0.5 % in each: together 0.04, and 0.0008. F16 and BF16 are expanded, and exact."""
        text = self.folder / "text.txt"
        text.write_text(TEXT, encoding="utf-8")
        for kind in TYPES:
            with self.subTest(kind):
                self.write(kind)
                of_floats = self.quantize("f32", self.model)
                squint("merge", self.model, self.mmproj, self.merged)
                done = squint("perplexity", "--json", "-c", 128, "-m", self.merged, "--versus", of_floats, text)
                found = json.loads(done.stdout)
                self.assertEqual("requantised" in done.stderr, kind not in KEPT)
                if kind in ("F32", "F16", "BF16"):
                    self.assertEqual(found["kl_max"], 0)
                else:
                    self.assertGreater(found["kl"], 1e-5)
                    self.assertLess(found["kl"], 0.002)

    def test_pair_speaks_as_merged(self):
        picture = pathlib.Path(__file__).parent / "golden" / "images" / "baseline-420.jpg"
        self.write("mixed")
        squint("merge", self.model, self.mmproj, self.merged)
        pair = squint("caption", "--json", "-m", self.model, "--mmproj", self.mmproj, picture)
        merged = squint("caption", "--json", "-m", self.merged, picture)
        self.assertEqual(json.loads(pair.stdout)["tokens"], json.loads(merged.stdout)["tokens"])
        self.assertIn("pictures are prepared as LLaVA does it", pair.stderr)
        expected = tensors_of(self.model) | tensors_of(self.mmproj)
        got = tensors_of(self.merged)
        self.assertEqual(list(got), list(expected))
        for name, t in expected.items():
            self.assertEqual((got[name].tensor_type, list(got[name].shape)), (t.tensor_type, list(t.shape)), name)
            self.assertTrue(np.array_equal(got[name].data, t.data), name)

    def test_package_reads_squints_files(self):
        """Names, shapes, types, and the floats that squint itself takes the blocks for."""
        of_type = {"f16": T.F16, "q8_0": T.Q8_0, "q4_0": T.Q4_0, "f32": T.F32}
        self.write("F32")
        original = tensors_of(self.model) | tensors_of(self.mmproj)
        for kind, decoder_type in of_type.items():
            with self.subTest(kind):
                path = self.quantize(kind, self.model)
                got = tensors_of(path)
                self.assertEqual(sorted(got), sorted(original))
                for name, t in original.items():
                    self.assertEqual(list(got[name].shape), list(t.shape), name)
                self.assertEqual(got["blk.0.ffn_up.weight"].tensor_type, decoder_type)
                self.assertEqual(got["token_embd.weight"].tensor_type, T.Q8_0 if kind == "q4_0" else decoder_type)
                self.assertEqual(got["v.blk.1.attn_q.weight"].tensor_type, T.Q8_0 if kind == "q4_0" else decoder_type)
                self.assertEqual(got["output_norm.weight"].tensor_type, T.F32)
                self.assertEqual(got["v.patch_embd.weight"].tensor_type, T.F32)
                reader = gguf.GGUFReader(path)
                self.assertEqual(reader.fields["general.architecture"].contents(), "llama")
                self.assertEqual(reader.fields["clip.projector_type"].contents(), "mlp")
                self.assertEqual(reader.fields["tokenizer.ggml.tokens"].contents(),
                                 gguf.GGUFReader(self.model).fields["tokenizer.ggml.tokens"].contents())
                again = self.folder / "again.gguf"
                squint("quantize", "--type", "f32", path, again)
                self.assert_same_floats(tensors_of(again), got)
                for name in ("blk.0.ffn_up.weight", "mm.2.weight"):
                    if got[name].tensor_type != T.F32:
                        made = quants.quantize(floats_of(original[name]), got[name].tensor_type)
                        self.assertEqual(made.tobytes(), got[name].data.tobytes(), name)


if __name__ == "__main__":
    unittest.main(verbosity=1)
