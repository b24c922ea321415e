#!/usr/bin/env python3
"""tools/convert, on small checkpoints that hf_folder.py writes in the layout of the released ones.

    SQUINT_EXE=build/tools/squint/squint test_convert.py

SPDX-License-Identifier: MIT
"""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import pickle
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest
import unittest.mock

TESTS = pathlib.Path(__file__).resolve().parent
ROOT = TESTS.parent
CONVERT = ROOT / "tools" / "convert"
sys.dont_write_bytecode = True
sys.path[:0] = [str(TESTS), str(ROOT / "tools")]

try:
    import numpy as np
    import gguf
    import hf_folder as hf
    from checkpoint import command, decoder, families, recipe, store, tower, weights
except ImportError as missing:
    print(f"skipped: {missing}; tools/checkpoint/requirements.txt says what the converter needs")
    sys.exit(77)

SQUINT = os.environ.get("SQUINT_EXE")
PICTURE = TESTS / "golden" / "images" / "baseline-420.jpg"
ALL = hf.FAMILIES
HF = [family for family in ALL if family.endswith("-hf")]
ROUTED = [family for family in ALL if family.startswith("gamma")]
READ_TYPES = {0: np.float32, 1: np.float16}


def convert(folder, out, *options):
    """(status, what it said on standard error)"""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = command.main([str(folder), str(out), *map(str, options)])
    return status, said.getvalue()


class Case(unittest.TestCase):
    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.dir)

    def folder(self, family, name="m", **options):
        folder = self.dir / name
        hf.write_folder(family, folder, **options)
        return folder

    def converted(self, folder, kind="f32", *options):
        out = folder.with_name(f"{folder.name}-{kind}.gguf")
        status, said = convert(folder, out, "--type", kind, *options)
        self.assertEqual((status, said), (0, ""))
        return out

    def refused(self, folder, *words, options=("--type", "f16")):
        """One line, which holds the words, and no file."""
        out = self.dir / "none.gguf"
        before = sorted(self.dir.iterdir())
        status, said = convert(folder, out, *options)
        self.assertEqual(status, 1, said)
        self.assertEqual(said.count("\n"), 1, said)
        for word in words:
            self.assertIn(word, said)
        self.assertEqual(sorted(self.dir.iterdir()), before)


def edit_json(path, **changes):
    """None takes a key away."""
    values = json.loads(path.read_text())
    values.update(changes)
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def rewrite(folder, family, change, pickled=False, shards=None):
    """The folder's weights again, after change(tensors), which get (name, dtype, array)."""
    for old in [*folder.glob("model*"), *folder.glob("pytorch_model*")]:
        old.unlink()
    dtype = "f16" if family in HF or family == "llava15" else "bf16"
    tensors = hf.made(hf.tensors_of(family, pickled), 0, dtype, "hub" if family in HF else None)
    hf.write_weights(folder, change(tensors), pickled, shards or 2)


def edit_pickle(path, old, new):
    """What torch.save() pickled, changed in one place."""
    with hf.zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with hf.zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            assert not name.endswith("data.pkl") or old in data
            archive.writestr(name, data.replace(old, new, 1) if name.endswith("data.pkl") else data)


def replaced(name, make):
    def change(tensors):
        assert any(tensor[0] == name for tensor in tensors), name
        return [(n, *make(dtype, array)) if n == name else (n, dtype, array) for n, dtype, array in tensors]
    return change


def without(name):
    return lambda tensors: [tensor for tensor in tensors if tensor[0] != name]


def read_model(path):
    """({key: value}, {tensor: array or (type, bytes)})"""
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {}
    for t in reader.tensors:
        shape = tuple(int(n) for n in reversed(t.shape))
        kind = int(t.tensor_type)
        plain = np.asarray(t.data).view(READ_TYPES[kind]).reshape(shape) if kind in READ_TYPES else None
        tensors[t.name] = plain if plain is not None else (kind, np.asarray(t.data).tobytes())
    return keys, tensors


# --------------------------------------------------------------------- names
#
# From the tables of llama.cpp's converters and the papers' repositories: what a tensor of a checkpoint is called in a
# model file. "-": dropped. The first pattern that matches the whole name decides.

TOWER = r"(?:model\.vision_tower\.(?:fast_vision_tower\.)?vision_tower\.vision_model|vision_tower\.vision_model|" \
        r"vision_model)\."
SLOW = r"model\.vision_tower\.slow_vision_tower\.vision_tower\."
AUX = r"model\.vision_tower_aux\.vision_"
TEXT = r"(?:language_model\.)?"
LAYER = TEXT + r"model\.layers\.(\d+)\.(?:decoder_layer\.)?"
NAMES = (
    (r".*inv_freq|.*position_ids|.*\.head\..*|text_model.*|.*post_layernorm.*|logit_scale|.*_projection\.weight", "-"),
    (TEXT + r"model\.embed_tokens\.weight", "token_embd.weight"),
    (TEXT + r"model\.norm\.weight", "output_norm.weight"),
    (TEXT + r"lm_head\.weight", "output.weight"),
    (LAYER + r"input_layernorm\.weight", r"blk.\1.attn_norm.weight"),
    (LAYER + r"post_attention_layernorm\.weight", r"blk.\1.ffn_norm.weight"),
    (LAYER + r"self_attn\.o_proj\.weight", r"blk.\1.attn_output.weight"),
    (LAYER + r"self_attn\.([qkv])_proj\.weight", r"blk.\1.attn_\2.weight"),
    (LAYER + r"mlp\.(gate|up|down)_proj\.weight", r"blk.\1.ffn_\2.weight"),
    (r"model\.layers\.(\d+)\.router\.router\.(weight|bias)", r"blk.\1.mod_router.\2"),
    (r"model\.layers\.\d+\.router\.weight", "mod_router.weight"),
    (TOWER + r"embeddings\.class_embedding", "v.class_embd"),
    (TOWER + r"embeddings\.patch_embedding\.weight", "v.patch_embd.weight"),
    (TOWER + r"embeddings\.position_embedding\.weight", "v.position_embd.weight"),
    (TOWER + r"pre_layrnorm\.(weight|bias)", r"v.pre_ln.\1"),
    (TOWER + r"encoder\.layers\.(\d+)\.layer_norm([12])\.(weight|bias)", r"v.blk.\1.ln\2.\3"),
    (TOWER + r"encoder\.layers\.(\d+)\.self_attn\.(q|k|v|out)_proj\.(weight|bias)", r"v.blk.\1.attn_\2.\3"),
    (TOWER + r"encoder\.layers\.(\d+)\.mlp\.fc1\.(weight|bias)", r"v.blk.\1.ffn_down.\2"),
    (TOWER + r"encoder\.layers\.(\d+)\.mlp\.fc2\.(weight|bias)", r"v.blk.\1.ffn_up.\2"),
    (r"model\.mm_projector\.([02])\.(weight|bias)", r"mm.\1.\2"),
    (r"multi_modal_projector\.linear_1\.(weight|bias)", r"mm.0.\1"),
    (r"multi_modal_projector\.linear_2\.(weight|bias)", r"mm.2.\1"),
    (r"(?:model\.)?image_newline", "model.image_newline"),
    (f"(?:{SLOW}|{AUX})" + r"stem\.0\.(weight|bias)", r"v.slow.stem.conv.\1"),
    (f"(?:{SLOW}|{AUX})" + r"stem\.1\.(weight|bias)", r"v.slow.stem.norm.\1"),
    (f"(?:{SLOW}|{AUX})" + r"stages\.(\d)\.downsample\.0\.(weight|bias)", r"v.slow.stg.\1.down.norm.\2"),
    (f"(?:{SLOW}|{AUX})" + r"stages\.(\d)\.downsample\.1\.(weight|bias)", r"v.slow.stg.\1.down.conv.\2"),
    (f"(?:{SLOW}|{AUX})" + r"stages\.(\d)\.blocks\.(\d+)\.conv_dw\.(weight|bias)", r"v.slow.stg.\1.blk.\2.dw.\3"),
    (f"(?:{SLOW}|{AUX})" + r"stages\.(\d)\.blocks\.(\d+)\.norm\.(weight|bias)", r"v.slow.stg.\1.blk.\2.norm.\3"),
    (f"(?:{SLOW}|{AUX})" + r"stages\.(\d)\.blocks\.(\d+)\.mlp\.fc([12])\.(weight|bias)",
     r"v.slow.stg.\1.blk.\2.pw\3.\4"),
    (f"(?:{SLOW}|{AUX})" + r"stages\.(\d)\.blocks\.(\d+)\.(?:gamma|weight)", r"v.slow.stg.\1.blk.\2.pw2.bias"),
    (r"model\.vision_tower\.align_stages_latent\.(\d)\.(\w+_(?:conv|proj)|gate\.[02])\.(weight|bias)",
     r"v.hr.\1.\2.\3"),
    (r"model\.vision_tower\.align_stages\.0\.(fast|slow)_proj\.(weight|bias)", r"v.hr.out.\1.\2"),
    (r"model\.vlm_uni_query_projector\.0\.(weight|bias)", r"mm.uni.q.norm.\1"),
    (r"model\.vlm_uni_query_projector\.1\.(weight|bias)", r"mm.uni.q.proj.\1"),
    (r"model\.vlm_uni_aux_projector\.0\.(weight|bias)", r"mm.uni.k.norm.\1"),
    (r"model\.vlm_uni_aux_projector\.1\.(weight|bias)", r"mm.uni.k.proj.\1"),
    (r"model\.vlm_uni_val_projector\.0\.(weight|bias)", r"mm.uni.v.norm.\1"),
    (r"model\.vlm_uni_val_projector\.1\.(weight|bias)", r"mm.uni.v.proj.\1"),
)


def expected_name(family, name):
    """LLaVA takes what CLIP's last layer but one makes; LLaVA-HR runs all layers, without a class token."""
    hr = "hr" in family
    last = re.fullmatch(TOWER + rf"encoder\.layers\.{hf.VIT_LAYERS - 1}\..*", name)
    if (last and not hr) or (hr and name.endswith("class_embedding")):
        return "-"
    return next(re.sub(pattern, to, name) for pattern, to in NAMES if re.fullmatch(pattern, name))


def clip_tensors(family):
    return hf.whole_clip() if family == "llava15" else []


def drawn(family, pickled=False):
    """{name: float32 or int64 array} as the checkpoint has them."""
    found = {}
    for name, dtype, array in hf.made(hf.tensors_of(family, pickled), 0, "bf16", "hub" if family in HF else None):
        found[name] = (array.astype(np.uint32) << 16).view(np.float32) if dtype == "bf16" else array
    for name, _, array in hf.made(clip_tensors(family), 0, "f32"):
        found[name] = array
    return found


class Ledger(Case):
    def test_every_tensor_is_used_or_dropped(self):
        for family in ALL:
            for pickled in (False, True):
                with self.subTest(family=family, pickled=pickled):
                    folder = self.folder(family, f"{family}-{pickled}", pickled=pickled)
                    ledger = self.dir / "ledger"
                    out = self.converted(folder, "f32", "--ledger", ledger)
                    fate = dict(line.split("\t") for line in ledger.read_text().splitlines())
                    there = [name for name, *_ in hf.tensors_of(family, pickled) + clip_tensors(family)]
                    self.assertEqual(sorted(fate), sorted(map(lambda n: hf.respelled(n, "hub"), there)))
                    for name, what in fate.items():
                        expected = expected_name(family, name)
                        self.assertEqual("-" if what.startswith("dropped: ") else what, expected, name)
                    made = {expected_name(family, name) for name in fate} - {"-"}
                    self.assertEqual(sorted(read_model(out)[1]), sorted(made))

    def test_printed(self):
        folder = self.folder("llava15")
        done = subprocess.run([sys.executable, CONVERT, folder, self.dir / "o.gguf", "-t", "f16", "-v"], check=True,
                              capture_output=True, text=True)
        self.assertIn("lm_head.weight\toutput.weight\n", done.stdout)
        self.assertIn(".rotary_emb.inv_freq\tdropped: ", done.stdout)
        self.assertEqual(done.stderr, "")

    def test_values(self):
        for family in ALL:
            with self.subTest(family=family):
                folder = self.folder(family, family, dtype="bf16")
                _, made = read_model(self.converted(folder))
                for name, source in drawn(family).items():
                    at = expected_name(family, name)
                    if at != "-" and not re.search(r"\.blocks\.\d+\.(gamma|weight)$|position_emb", name):
                        self.check_value(at, made[at], source, family, name)

    def check_value(self, at, found, source, family, name):
        if re.fullmatch(r"blk\.\d+\.attn_[qk]\.weight", at):
            source = source[interleaved_rows(hf.D, hf.HEADS)]
        if ".pw2." in at:
            block = name[:name.index("mlp.fc2")]
            weights_of = drawn(family)
            scale = weights_of.get(block + "gamma", weights_of.get(block + "weight"))
            source = source * (scale[:, None] if source.ndim == 2 else scale)
        self.assertEqual(found.tobytes(), source.tobytes(), at)

    def test_shapes_of_convolutions(self):
        _, made = read_model(self.converted(self.folder("gamma-hr")))
        self.assertEqual(made["v.slow.stg.1.blk.0.dw.weight"].shape, (hf.DIMS[1], 1, 7, 7))
        self.assertEqual(made["v.slow.stem.conv.weight"].shape, (hf.DIMS[0], 3, 4, 4))
        self.assertEqual(made["v.hr.0.slow_conv.weight"].shape, (hf.DIMS[3], hf.DIMS[3]))
        self.assertEqual(made["v.hr.0.slow_proj.weight"].shape, (hf.VIT_D, hf.DIMS[3]))
        self.assertEqual(made["mod_router.weight"].shape, (2, hf.D))


def interleaved_rows(n, heads):
    """llama.cpp's order: 0 4 1 5 2 6 3 7 | 8 12 ... for two heads of 8."""
    half = n // heads // 2
    return [head * 2 * half + j * half + i for head in range(heads) for i in range(half) for j in range(2)]


class Rows(Case):
    def test_example_of_the_format(self):
        self.assertEqual(interleaved_rows(16, 2), [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15])

    def test_positions(self):
        for line in (TESTS / "golden" / "positions.txt").read_text().splitlines():
            before, after, *values = line.split()
            before, after = int(before), int(after)
            m = np.arange(before * before * 2, dtype=np.float64)
            table = np.concatenate([np.full((1, 2), 9, np.float32),
                                    np.sin(m * m + m).astype(np.float32).reshape(-1, 2)])
            found = tower.resampled_positions(table, after).reshape(-1)
            # PyTorch's sums of up to 36 binary32 products of weights that add up to 1 (in size, to at most 1.6)
            np.testing.assert_allclose(found, np.array(values, np.float32), rtol=0, atol=3e-6)

    def test_positions_of_the_published_code(self):
        """CLIP's 24 x 24 rows as LLaVA-HR's 32 x 32; values are a hash of tensor 4300 and the element."""
        h = np.arange(577 * 2, dtype=np.uint32) * np.uint32(2654435761) + np.uint32(4300 * 2246822519 + 374761393
                                                                                  & 0xFFFFFFFF)
        h ^= h >> np.uint32(15)
        h *= np.uint32(2246822519)
        h ^= h >> np.uint32(13)
        table = ((h / 2 ** 32 - 0.5) * 2).astype(np.float32).reshape(577, 2)
        found = tower.resampled_positions(table, 32).reshape(1024, 2)
        for row, values in ((0, (-0.25702, 0.44332)), (1, (0.42457, -0.12711)), (32, (-0.61023, 0.33664)),
                            (1023, (1.13618, 0.35958))):
            np.testing.assert_allclose(found[row], values, rtol=0, atol=1e-5)
        self.assertAlmostEqual(float(np.abs(found).sum() + np.abs(table[0]).sum()), 804.557, delta=1e-3)

    def test_positions_in_the_file(self):
        _, made = read_model(self.converted(self.folder("gamma-hr")))
        table = drawn("gamma-hr")["model.vision_tower.fast_vision_tower.vision_tower.vision_model.embeddings."
                                  "position_embedding.weight"]
        expected = tower.resampled_positions(table, 8).reshape(64, hf.VIT_D)
        self.assertEqual(made["v.position_embd.weight"].tobytes(), expected.tobytes())


# ---------------------------------------------------------------------- keys

DECODER = {"general.architecture": "llama", "general.quantization_version": 2, "general.alignment": 64,
           "general.file_type": 0, "llama.context_length": 4096, "llama.embedding_length": 64,
           "llama.feed_forward_length": 128, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 4,
           "llama.rope.dimension_count": 16, "llama.rope.freq_base": 10000.0, "tokenizer.ggml.model": "llama",
           "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
           "tokenizer.ggml.padding_token_id": 0, "tokenizer.ggml.add_bos_token": True,
           "tokenizer.ggml.add_eos_token": False, "tokenizer.ggml.add_space_prefix": True,
           "squint.chat.template": "vicuna_v1", "clip.has_vision_encoder": True, "clip.has_text_encoder": False,
           "clip.has_llava_projector": True, "clip.projector_type": "mlp", "clip.use_gelu": False,
           "clip.vision.patch_size": 14, "clip.vision.embedding_length": 32, "clip.vision.feed_forward_length": 64,
           "clip.vision.attention.head_count": 2, "squint.vision.pad_color": [122, 116, 104], "squint.weights": "f32"}
PAD = {"squint.vision.type": "clip_pad", "squint.vision.layers_run": 3, "clip.vision.block_count": 3,
       "clip.vision.image_size": 56, "squint.vision.drop_class": "after", "squint.vision.input_size": None,
       "clip.vision.image_grid_pinpoints": None}
ANYRES = {**PAD, "squint.vision.type": "clip_anyres", "squint.vision.max_num_patches": 0,
          "clip.vision.image_grid_pinpoints": [56, 112, 112, 56, 112, 112, 168, 56, 56, 168],
          "clip.vision.mm_patch_merge_type": "spatial_unpad"}
DENSE = {"mod.type": None, "mod.version": None, "llama.block_count": 6, "llama.vocab_size": 320}
ROUTING = {"mod.version": 1, "mod.type": "pmod", "mod.mode": "pmod", "mod.norm.type": "tanh", "mod.norm.bias": 1.0,
           "mod.layer_is_mod": [False] * 8 + [True] * 4, "mod.router.input": "hidden", "mod.router.outputs": 1,
           "mod.router.shared": False, "mod.target": "vision_all", "mod.weight.apply": "mlp+skip",
           "mod.position": "original", "mod.prefill.select": "topk", "mod.decode.rule": "dense",
           "mod.decode.position": "global", "mod.schedule": "shiftedcos_decay_0.85_0.15", "mod.schedule.factor": 0.5,
           "llama.block_count": 12, "llama.vocab_size": 320}
SLOW_KEYS = {"squint.vision.slow.dims": list(hf.DIMS), "squint.vision.slow.depths": list(hf.DEPTHS)}
HR_KEYS = {"squint.vision.type": "llava_hr", "squint.vision.layers_run": 4, "clip.vision.block_count": 4,
           "clip.vision.image_size": 112, "squint.vision.input_size": 256, "squint.vision.drop_class": "before_pre_ln",
           "squint.vision.slow.groups": [1, 1, 1, 1], **SLOW_KEYS}
GATES = {"mod.version": 1, "mod.type": "gamma", "mod.layer_is_mod": [False, False, False, True, True, False],
         "mod.layer_ratio": [1.0] * 6, "mod.router.input": "attn_norm", "mod.router.outputs": 2,
         "mod.router.shared": True, "mod.target": "all", "mod.weight.apply": "mlp", "mod.position": "compressed",
         "mod.prefill.select": "threshold", "mod.decode.position": "local", "mod.capacity.skip_ratio": None,
         "squint.prompt.image_first": True, "llama.block_count": 6, "llama.vocab_size": 320, "mod.norm.type": None}
KEYS = {
    "llava15": {**PAD, **DENSE, "squint.max_expanded_length": 2048},
    "llava15-hf": {**PAD, **DENSE, "squint.vision.type": "clip_crop", "llama.vocab_size": 384,
                   "squint.max_expanded_length": 0},
    "llavanext-hf": {**ANYRES, **DENSE, "llama.vocab_size": 384,
                     # the same pairs, but height first
                     "clip.vision.image_grid_pinpoints": [112, 56, 56, 112, 112, 112, 56, 168, 168, 56]},
    "pmod15": {**PAD, **ROUTING, "squint.max_expanded_length": 2048},
    "pmodnext": {**ANYRES, **ROUTING, "squint.max_expanded_length": 4096},
    "gamma-hr": {**HR_KEYS, **GATES, "mod.mode": "gamma-released", "mod.decode.rule": "threshold",
                 "mod.decode.threshold": 0.5, "mod.capacity.region": 35 + 64},
    "llava-hr-x": {**HR_KEYS, **DENSE},
    "gamma-mgm": {**GATES, **SLOW_KEYS, "squint.vision.type": "mgm", "squint.vision.layers_run": 3,
                  "clip.vision.image_size": 56, "squint.vision.input_size": 256, "squint.vision.grid": 2,
                  "squint.vision.global": True, "squint.vision.drop_class": "after",
                  "mod.mode": "gamma-released-mgm", "mod.decode.rule": "always", "mod.decode.threshold": None,
                  "mod.capacity.region": 80},
}
NUMBERS = {"llama.attention.layer_norm_rms_epsilon": 1e-5, "clip.vision.attention.layer_norm_epsilon": 1e-5}


class Keys(Case):
    def test_of_each_family(self):
        for family in ALL:
            with self.subTest(family=family):
                found, _ = read_model(self.converted(self.folder(family, family)))
                for key, value in {**DECODER, **KEYS[family]}.items():
                    self.assertEqual(found.get(key), value, key)
                for key, value in NUMBERS.items():
                    self.assertEqual(found[key], float(np.float32(value)), key)
                self.assertEqual(found["general.name"], family)

    def test_ratios(self):
        found, _ = read_model(self.converted(self.folder("pmod15")))
        ratios = np.array(found["mod.layer_ratio"], np.float32)
        # what the official class computes for layers 8 to 11
        expected = np.array([1] * 8 + [0.8444834595378433, 0.8060529912738315, 0.7644820051634813, 0.7201970757788172],
                            np.float32)
        self.assertEqual(ratios.tolist(), expected.tolist())
        self.assertEqual(np.float32(found["mod.norm.scale"]), np.float32(0.2))

    def test_schedules(self):
        """p-MoD's own code, run: which layers route, and the shares of some."""
        def ratios(text, factor, layers=32):
            return decoder.ratios(families.settings.Settings("c", {"mod_target_layers": text,
                                                                   "mod_router_factor": factor}), layers)

        def routed(shares):
            return [n for n, share in enumerate(shares) if share is not None]
        released = ratios("shiftedcos_decay_0.85_0.15", 0.5)
        self.assertEqual(routed(released), list(range(8, 32)))
        self.assertAlmostEqual(released[8], 0.8444834595378433, delta=1e-15)
        self.assertAlmostEqual(released[23], 0.155517, delta=1e-6)
        self.assertEqual(released[24:], [0.15] * 8)
        self.assertAlmostEqual(sum(share or 1 for share in released) / 32, 0.5375, delta=1e-12)
        self.assertEqual(ratios("shiftedcos_decay_0.85_0.15", 0.3)[0], 0.8)
        self.assertEqual(routed(ratios("shiftedcos_decay_1.0_0.15", 0.5)), list(range(32)))
        self.assertAlmostEqual(ratios("shiftedcos_decay_0.85_0.15", 0.5, 24)[23], 0.155517, delta=1e-6)
        linear = ratios("shiftedlinear_decay_0.85_0.15", 0.5)
        self.assertEqual(routed(linear), list(range(5, 32)))
        np.testing.assert_allclose([linear[5], linear[26], linear[27]], [0.8387097, 0.1612903, 0.15], atol=5e-8)
        self.assertEqual(ratios("interleave", 0.5, 4), [None, 0.5, None, 0.5])
        self.assertEqual(routed(ratios("deep_all", 0.5)), list(range(2, 31)))
        self.assertEqual(routed(ratios("deep_all_include_last", 0.5)), list(range(2, 32)))

    def test_weight_norms(self):
        folder = self.folder("pmod15")
        for text, kind, scale, bias in (("sigmoid_1_-0.5", "sigmoid", 1, -0.5), ("tanh", "tanh", 1, 1),
                                        ("tanh_0.2_1_and more", "tanh", 0.2, 1), ("none_2_0", "none", 2, 0)):
            edit_json(folder / "config.json", mod_weight_norm=text)
            found, _ = read_model(self.converted(folder))
            self.assertEqual([found["mod.norm.type"], found["mod.norm.scale"], found["mod.norm.bias"]],
                             [kind, float(np.float32(scale)), bias])

    def test_targets(self):
        """Without tiles all of a picture's tokens are alike; the high-resolution ones are the default."""
        for family, word, target in (("pmod15", "vision_hr", "vision_all"), ("pmodnext", "vision_hr", "vision_hr"),
                                     ("pmodnext", None, "vision_hr"), ("pmod15", "all", "all")):
            folder = self.folder(family, f"{family}-{word}")
            edit_json(folder / "config.json", mod_target_token_type=word)
            self.assertEqual(read_model(self.converted(folder))[0]["mod.target"], target)

    def test_layers_run(self):
        for layer, run in ((-1, 4), (-3, 2), (2, 2)):
            folder = self.folder("llava15", f"l{layer}")
            edit_json(folder / "config.json", mm_vision_select_layer=layer)
            found, tensors = read_model(self.converted(folder))
            self.assertEqual(found["squint.vision.layers_run"], run)
            self.assertEqual(sum(name.endswith("ln1.bias") for name in tensors), run)

    def test_thresholds(self):
        for family, slow_eps in (("gamma-hr", 1e-6), ("gamma-mgm", 1e-6), ("llava-hr-x", 1e-5)):
            found, _ = read_model(self.converted(self.folder(family, family), "f32", "--skip-ratio", "0.34"))
            self.assertEqual(np.float32(found["squint.vision.slow.ln_eps"]), np.float32(slow_eps))
            if family in ROUTED:
                self.assertEqual(np.float32(found["mod.prefill.threshold"]), np.float32(0.005))
                self.assertEqual(np.float32(found["mod.capacity.skip_ratio"]), np.float32(0.34))

    def test_vocabulary(self):
        plain, _ = read_model(self.converted(self.folder("llava15", "a")))
        padded, _ = read_model(self.converted(self.folder("llava15-hf", "b")))
        types = [2, 3, 3] + [6] * 256 + [1] * 61
        self.assertEqual(plain["tokenizer.ggml.token_type"], types)
        self.assertEqual(plain["tokenizer.ggml.tokens"], [text for text, _, _ in hf.pieces()])
        self.assertEqual(plain["tokenizer.ggml.scores"], [score for _, score, _ in hf.pieces()])
        self.assertEqual(padded["tokenizer.ggml.tokens"][:322], plain["tokenizer.ggml.tokens"] + ["<image>", "<pad>"])
        self.assertEqual(padded["tokenizer.ggml.token_type"], types + [3, 3] + [5] * 62)
        self.assertEqual(len(set(padded["tokenizer.ggml.tokens"])), 384)

    def test_picture_rules(self):
        for family, changes, rule in (
                ("llava15", {"image_aspect_ratio": "square"}, "clip_crop"),
                ("llava15", {"image_aspect_ratio": None}, "clip_crop")):
            folder = self.folder(family, f"{family}-{rule}-{len(changes)}")
            edit_json(folder / "config.json", **changes)
            self.assertEqual(read_model(self.converted(folder))[0]["squint.vision.type"], rule)
        for changes, rule in (({"do_pad": True}, "clip_pad"), ({"do_center_crop": False}, "clip_stretch")):
            folder = self.folder("llava15-hf", rule)
            edit_json(folder / "preprocessor_config.json", **changes)
            self.assertEqual(read_model(self.converted(folder))[0]["squint.vision.type"], rule)

    def test_tower_known_by_its_name(self):
        config = families.settings.Settings("c", {"mm_vision_tower": "openai/clip-vit-large-patch14-336"})
        clip = tower.original_clip(self.dir, config, None)
        self.assertEqual((clip.d, clip.f, clip.layers, clip.heads, clip.image, clip.patch, clip.eps),
                         (1024, 4096, 24, 16, 336, 14, 1e-5))

    def test_published_in_the_cache(self):
        snapshot = self.dir / "models--MCG-NJU--p-MoD-LLaVA-v1.5-7B" / "snapshots" / "0a1b2c"
        hf.write_folder("pmod15", snapshot)
        found, _ = read_model(self.converted(snapshot))
        self.assertEqual(found["squint.source"], "MCG-NJU/p-MoD-LLaVA-v1.5-7B at 0a1b2c")
        self.assertEqual(found["general.name"], "p-MoD-LLaVA-v1.5-7B")


class Spellings(Case):
    def test_one_file_of_all_layouts(self):
        for family in ("llava15-hf", "llavanext-hf"):
            files = set()
            for i, options in enumerate(({}, {"spelling": "nested"}, {"spelling": "flat"}, {"shards": 1},
                                         {"shards": 5}, {"pickled": True})):
                files.add(self.converted(self.folder(family, f"{family}{i}", **options), "f16",
                                         "--name", "x").read_bytes().replace(f"{family}{i}".encode(), b""))
            self.assertEqual(len(files), 1)

    def test_rope_parameters(self):
        folder = self.folder("llava15-hf")
        text = json.loads((folder / "config.json").read_text())["text_config"]
        text["rope_parameters"] = {"rope_theta": 500.0, "rope_type": "default"}
        edit_json(folder / "config.json", text_config=text)
        self.assertEqual(read_model(self.converted(folder))[0]["llama.rope.freq_base"], 500.0)

    def test_gamma_is_named_two_ways(self):
        folder = self.folder("gamma-mgm", "a")
        expected = self.converted(folder, "f32", "--name", "x").read_bytes()
        rewrite(folder, "gamma-mgm", lambda tensors: [
            (re.sub(r"(vision_stages.*)\.gamma$", r"\1.weight", name), *rest) for name, *rest in tensors])
        self.assertEqual(self.converted(folder, "f32", "--name", "x").read_bytes(), expected)


# --------------------------------------------------------- added and removed

class AddedOrRemoved(Case):
    def test_each_tensor_removed_is_missed_by_name(self):
        for family in ALL:
            source = families.open_folder(self.folder(family, family))
            fate = self.fate_of(source)
            for name in source.tensors:
                if fate[name].startswith("dropped"):
                    continue
                rest = {n: t for n, t in source.tensors.items() if n != name}
                with self.assertRaises(command.Broken) as caught:
                    self.fate_of(dataclasses.replace(source, tensors=rest))
                self.assertIn(f"tensor {source.layout.spelt(name)} is missing", str(caught.exception))

    def setUp(self):
        super().setUp()
        patch = unittest.mock.patch.object(families.vocabulary, "keys")  # the tokens are of no matter here, and slow
        patch.start()
        self.addCleanup(patch.stop)

    @staticmethod
    def fate_of(source):
        return recipe.ledger(families.recipe_of(source), source.tensors, source.layout.spelt, source.folder)

    def test_through_the_command(self):
        for family, gone in (("llava15", "model.layers.5.mlp.up_proj.weight"),
                             ("llava15-hf", "language_model.model.layers.2.self_attn.k_proj.weight"),
                             ("llavanext-hf", "image_newline"),
                             ("pmod15", "model.layers.9.router.router.bias"),
                             ("pmodnext", "model.image_newline"),
                             ("gamma-hr", "model.layers.3.router.weight"),
                             ("llava-hr-x", "model.vision_tower.align_stages_latent.2.gate.0.bias"),
                             ("gamma-mgm", "model.vlm_uni_val_projector.1.weight")):
            with self.subTest(family=family):
                folder = self.folder(family, family)
                rewrite(folder, family, without(gone))
                self.refused(folder, f"tensor {gone} is missing", "download")
                rewrite(folder, family, lambda tensors: tensors + [
                    ("model.layers.0.self_attn.q_proj.lora_A", "f16", np.zeros((2, 2), np.float16))])
                self.refused(folder, "tensor model.layers.0.self_attn.q_proj.lora_A is none of")

    def test_router_of_a_dense_layer(self):
        folder = self.folder("gamma-hr")
        rewrite(folder, "gamma-hr", lambda tensors: tensors + [
            ("model.layers.1.router.weight", *tensors[-1][1:])])
        self.refused(folder, "tensor model.layers.1.router.weight is none of")

    def test_two_names_of_one_tensor(self):
        folder = self.folder("llava15-hf")
        rewrite(folder, "llava15-hf", lambda tensors: tensors + [
            ("lm_head.weight", *next(rest for name, *rest in tensors if name == "language_model.lm_head.weight"))])
        self.refused(folder, "lm_head.weight is there twice")


# ------------------------------------------------------------ broken folders

class Broken(Case):
    def test_parts(self):
        folder = self.folder("pmod15")
        shutil.copytree(folder, self.dir / "b")
        (folder / "model-00002-of-00003.safetensors").unlink()
        self.refused(folder, "model-00002-of-00003.safetensors", "download it")
        folder = self.dir / "b"
        (folder / "model.safetensors.index.json").unlink()
        self.refused(folder, "model.safetensors.index.json", "download it")
        for part in folder.glob("*.safetensors"):
            part.unlink()
        self.refused(folder, "no model.safetensors and no pytorch_model.bin")
        self.refused(self.dir / "nowhere", "config.json: is not there")

    def test_index(self):
        name = "model.layers.3.mlp.up_proj.weight"
        folder = self.folder("pmod15")
        index = folder / "model.safetensors.index.json"
        whole = json.loads(index.read_text())["weight_map"]
        edit_json(index, weight_map={n: file for n, file in whole.items() if n != name})
        self.refused(folder, f"tensor {name} is not in model.safetensors.index.json", "download")
        edit_json(index, weight_map={**whole, "model.layers.77.x": whole[name]})
        self.refused(folder, "tensor model.layers.77.x is missing", "download")
        edit_json(index, weight_map={**whole, name: next(f for f in whole.values() if f != whole[name])})
        self.refused(folder, f"tensor {name}", "another file")
        edit_json(index, weight_map=None)
        self.refused(folder, "no weight_map")
        index.write_text("{")
        self.refused(folder, "cannot be read as JSON")

    def test_shapes_and_types(self):
        folder, name = self.folder("pmod15"), "model.layers.3.mlp.up_proj.weight"
        rewrite(folder, "pmod15", replaced(name, lambda dtype, array: (dtype, array[:-1])))
        self.refused(folder, f"tensor {name}", "[127, 64]", "[128, 64]")
        rewrite(folder, "pmod15", replaced(name, lambda dtype, array: ("i64", array.astype(np.int64))))
        self.refused(folder, f"tensor {name}", "holds I64", "not quantised")
        hf.SAFETENSORS_TYPES["u8"] = "U8"
        self.addCleanup(hf.SAFETENSORS_TYPES.pop, "u8")
        rewrite(folder, "pmod15", replaced(name, lambda dtype, array: ("u8", array.astype(np.uint8))))
        self.refused(folder, f"tensor {name}", "holds U8")

    def test_config(self):
        folder = self.folder("pmodnext")
        config, good = folder / "config.json", (folder / "config.json").read_text()
        for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps",
                    "vocab_size", "max_position_embeddings", "mm_vision_tower", "mm_projector_type",
                    "mm_vision_select_layer", "image_grid_pinpoints", "mod_target_layers", "mod_router_factor",
                    "mod_weight_norm", "mod_bias_enabled", "model_type"):
            edit_json(config, **{key: None})
            self.refused(folder, f"key {key} is missing")
            config.write_text(good)
        for changes, words in (
                ({"hidden_size": "64"}, ["key hidden_size", "a whole number"]),
                ({"hidden_size": 0}, ["key hidden_size is 0"]),
                ({"hidden_act": "gelu"}, ["key hidden_act", "silu"]),
                ({"rope_scaling": {"type": "linear", "factor": 2.0}}, ["key rope_scaling"]),
                ({"model_type": "mpt"}, ["key model_type", '"mpt"', "mod_llava_llama"]),
                ({"mm_projector_type": "linear"}, ["key mm_projector_type", "mlp2x_gelu"]),
                ({"mm_vision_select_layer": -9}, ["key mm_vision_select_layer", "4 layers"]),
                ({"mm_vision_select_feature": "cls_patch"}, ["key mm_vision_select_feature"]),
                ({"mm_patch_merge_type": "flat"}, ["key mm_patch_merge_type", "spatial_unpad"]),
                ({"image_aspect_ratio": "anyres_max_9"}, ["key image_aspect_ratio", "anyres_max_9"]),
                ({"image_grid_pinpoints": [[57, 56]]}, ["key image_grid_pinpoints", "multiples of 56"]),
                ({"image_grid_pinpoints": "(1x1),(2x2)"}, ["key image_grid_pinpoints", "a list"]),
                ({"mod_target_layers": "cosine_decay_0.85_0.15"}, ["key mod_target_layers", "shiftedcos_decay_A_B"]),
                ({"mod_target_layers": "shiftedcos_decay_1_0.15"}, ["key mod_target_layers", "decimal point"]),
                ({"mod_target_layer_indices": [8, 9, 10]}, ["key mod_target_layer_indices", "[8, 9, 10, 11]"]),
                ({"mod_target_layers": "deep_all", "mod_router_factor": 1.5, "mod_target_layer_indices": None},
                 ["key mod_router_factor", "layer 2"]),
                ({"mod_weight_norm": "tanh_2_1_0"}, ["key mod_weight_norm", "tanh_2_1_0"]),
                ({"mod_target_token_type": "text"}, ["key mod_target_token_type"]),
                ({"mm_vision_tower": "google/siglip"}, ["key mm_vision_tower", "--vision-tower"]),
                ({"vocab_size": 321}, ["tokenizer.model", "320", "321", "vocab_size"])):
            with self.subTest(changes=changes):
                edit_json(config, **changes)
                self.refused(folder, *words)
                config.write_text(good)
        config.write_text("[]")
        self.refused(folder, "no object")

    def test_config_of_gamma(self):
        folder = self.folder("gamma-mgm")
        config, good = folder / "config.json", (folder / "config.json").read_text()
        for changes, words in (
                ({"image_size_aux": None}, ["key image_size_aux is missing", "1536"]),
                ({"image_size_aux": 250}, ["key image_size_aux", "multiple of 32"]),
                ({"image_grid": 3}, ["key image_grid"]),
                ({"image_aspect_ratio": "square"}, ["key image_aspect_ratio", '"pad"']),
                ({"image_aspect_ratio": None}, ["key image_aspect_ratio", '"pad"']),
                ({"mod": None}, ["key mod is missing"]),
                ({"mod": {"mod_enable": False}}, ["key mod.mod_enable"]),
                ({"mod": {"mod_enable": True}}, ["key mod.mod_layers_idx is missing"]),
                ({"mod": {"mod_enable": True, "mod_layers_idx": [3, 6]}}, ["key mod.mod_layers_idx", "from 0 to 5"])):
            with self.subTest(changes=changes):
                edit_json(config, **changes)
                self.refused(folder, *words)
                config.write_text(good)
        folder = self.folder("gamma-hr", "hr")
        edit_json(folder / "config.json", vision_tower_slow="resnet50")
        self.refused(folder, "key vision_tower_slow", "convnext_xxlarge")

    def test_config_of_transformers(self):
        folder = self.folder("llavanext-hf")
        config, good = folder / "config.json", json.loads((folder / "config.json").read_text())
        for section, changes, words in (
                ("text_config", {"model_type": "mistral"}, ["key text_config.model_type", "mistral"]),
                ("text_config", {"vocab_size": 448}, ["tokenizer.model", "322", "448"]),
                ("vision_config", {"hidden_act": "gelu"}, ["key vision_config.hidden_act"]),
                ("vision_config", {"num_hidden_layers": 3}, ["is none of"])):
            with self.subTest(changes=changes):
                edit_json(config, **{section: {**good[section], **changes}})
                self.refused(folder, *words)
                config.write_text(json.dumps(good))
        rule = folder / "preprocessor_config.json"
        for changes, words in (({"resample": 2}, ["key resample is 2"]),
                               ({"size": {"height": 64, "width": 56}}, ["key size", "56"])):
            edit_json(rule, **changes)
            self.refused(folder, *words)
            edit_json(rule, resample=3, size={"shortest_edge": 56})
        edit_json(config, vision_feature_layer=[-2, -5])
        self.refused(folder, "key vision_feature_layer", "a whole number")

    def test_files_cut_off(self):
        folder = self.folder("pmod15")
        part = folder / "model-00001-of-00003.safetensors"
        whole = part.read_bytes()
        for cut in (0, 7, 100, len(whole) - 1):
            part.write_bytes(whole[:cut])
            self.refused(folder, part.name, "damaged or cut off", "download it again")
        part.write_bytes(struct.pack("<Q", 1 << 62) + whole[8:])
        self.refused(folder, part.name, "damaged or cut off")

    def test_tokenizer(self):
        folder = self.folder("pmod15")
        (folder / "tokenizer.model").write_bytes(b"no model")
        self.refused(folder, "tokenizer.model", "download it again")
        (folder / "tokenizer.model").unlink()
        self.refused(folder, "tokenizer.model", "is not there")
        folder = self.folder("llava15-hf", "hf")
        edit_json(folder / "added_tokens.json", **{"<image>": 330})
        edit_json(folder / "tokenizer_config.json", added_tokens_decoder={})
        self.refused(folder, "added token", "321")

    def test_router_copies(self):
        folder = self.folder("gamma-hr", pickled=True)
        rewrite(folder, "gamma-hr", replaced("model.layers.4.router.weight", lambda dtype, a: (dtype, a ^ 1)), True)
        self.refused(folder, "model.layers.4.router.weight differs from model.layers.3.router.weight")

    def test_numbers(self):
        folder, name = self.folder("llava15-hf"), "vision_tower.vision_model.encoder.layers.2.mlp.fc2.weight"
        for number in (np.nan, np.inf, -np.inf):
            def make(_, array, number=number):
                array = array.copy()
                array[3, 5] = number
                return "f16", array
            rewrite(folder, "llava15-hf", replaced(name, make))
            for kind in ("f32", "f16", "q4"):
                self.refused(folder, f"tensor {name}", "NaN", options=("--type", kind))
        rewrite(folder, "llava15-hf", replaced(name, lambda _, a: ("f32", np.full(a.shape, 70000, np.float32))))
        self.refused(folder, f"tensor {name}", "more than F16 can")
        self.assertEqual(convert(folder, self.dir / "o.gguf", "--type", "f32")[0], 0)

    def test_pickles(self):
        class Evil:
            def __reduce__(self):
                return os.system, (f"touch {self_dir}/evil",)
        self_dir = self.dir
        folder = self.folder("gamma-hr", pickled=True, shards=1)
        part = folder / "pytorch_model.bin"
        whole = part.read_bytes()
        for what, words in ((Evil(), ["is no state dict", "system"]), ([1, 2], ["is no state dict", "list"]),
                            ({"model": {"a": 1}}, ["is no state dict", "'model'"]),
                            ({"a": 1}, ["is no state dict"])):
            with hf.zipfile.ZipFile(part, "w") as archive:
                archive.writestr("x/data.pkl", pickle.dumps(what, 2))
            self.refused(folder, part.name, *words)
        self.assertFalse((self.dir / "evil").exists())
        part.write_bytes(pickle.dumps([119547037146038801333356, 1001, {}], 2))
        self.refused(folder, part.name, "PyTorch 1.6", "torch.save")
        for cut in (len(whole) // 2, len(whole) - 5, 0):
            part.write_bytes(whole[:cut])
            self.refused(folder, part.name, "damaged")
        for old, new, word in ((hf.pickled_int(hf.VOCAB), hf.pickled_int(1 << 28), "outside its storage"),
                               (hf.pickled_text("0"), hf.pickled_text("z"), "data/z")):
            part.write_bytes(whole)
            edit_pickle(part, old, new)
            self.refused(folder, part.name, word)

    def test_strides(self):
        """A transposed tensor, as torch.save() keeps it."""
        folder, name = self.folder("gamma-hr", pickled=True), "model.layers.2.mlp.up_proj.weight"
        expected = self.converted(folder, "f32").read_bytes()
        rewrite(folder, "gamma-hr", replaced(name, lambda dtype, a: (dtype, Transposed(a))), True)
        self.assertEqual(self.converted(folder, "f32").read_bytes(), expected)

    def test_no_tower(self):
        folder = self.folder("llava15")
        clip = shutil.move(folder / hf.CLIP_FOLDER, self.dir / "clip")
        self.refused(folder, "has no vision tower", f"download {hf.CLIP_FOLDER}", "--vision-tower")
        self.converted(folder, "f16", "--vision-tower", clip)

    def test_places(self):
        folder = self.folder("llava15")
        before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
        self.assertIn(folder / hf.CLIP_FOLDER / "config.json", before)
        for path in before:
            status, said = convert(folder, path, "--type", "f16")
            self.assertEqual((status, said.count("\n")), (1, 1))
            self.assertIn("choose another name", said)
        status, said = convert(folder, self.dir / "o.gguf", "--type", "f16", "--ledger", folder / "config.json")
        self.assertEqual((status, said.count("\n")), (1, 1))
        status, said = convert(folder, self.dir / "o.gguf", "--type", "f16", "--ledger", self.dir / "." / "o.gguf")
        self.assertEqual((status, said.count("\n")), (1, 1))
        self.assertIn("both the model and the ledger", said)
        self.assertEqual({path: path.read_bytes() for path in before}, before)
        for path, word in ((self.dir / "no" / "o.gguf", "no folder to write to"), (self.dir, "not a regular file")):
            status, said = convert(folder, path, "--type", "f16")
            self.assertEqual((status, said.count("\n")), (1, 1))
            self.assertIn(word, said)

    def test_whole_or_not_at_all(self):
        folder, out = self.folder("llava15-hf"), self.dir / "o.gguf"
        out.write_bytes(b"what was there")
        rewrite(folder, "llava15-hf", replaced("language_model.lm_head.weight",
                                               lambda _, a: ("f16", np.full_like(a, np.nan))))
        self.assertEqual(convert(folder, out, "--type", "f16")[0], 1)
        self.assertEqual(out.read_bytes(), b"what was there")
        self.assertEqual(sorted(path.name for path in self.dir.iterdir()), ["m", "o.gguf"])

    def test_interrupted(self):
        def interrupt(*_):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        encoded, weights.encoded = weights.encoded, interrupt
        self.addCleanup(setattr, weights, "encoded", encoded)
        self.addCleanup(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        status, said = convert(self.folder("llava15"), self.dir / "o.gguf", "--type", "f16")
        self.assertEqual((status, said), (130, "convert: interrupted; nothing was written\n"))
        self.assertEqual([path.name for path in self.dir.iterdir()], ["m"])


class Transposed:
    """An array whose rows lie as columns in memory, for hf_folder.write_torch()."""

    def __init__(self, array):
        self.memory = np.ascontiguousarray(array.T)
        self.shape, self.itemsize, self.size, self.nbytes = array.shape, array.itemsize, array.size, array.nbytes
        self.strides = self.memory.strides[::-1]

    def tobytes(self):
        return self.memory.tobytes()


# ---------------------------------------------------- with the command itself

TYPES = (["q8"], ["q4"], ["q4", "--group", "32"], ["q4", "--group", "128"], ["q4", "--group", "256"], ["q8_0"],
         ["q4_0"], ["f16"], ["q4", "--vision", "f16"], ["q4_0", "--vision", "q8"], ["f32"])


@unittest.skipUnless(SQUINT, "SQUINT_EXE is not set")
class Squint(Case):
    def run_squint(self, *arguments):
        return subprocess.run([SQUINT, *map(str, arguments)], capture_output=True, text=True, check=False)

    def test_same_bytes_as_quantize(self):
        for family in ALL:
            folder = self.folder(family, family)
            plain = self.converted(folder)
            for options in TYPES if family in ("gamma-hr", "pmodnext") else TYPES[:2]:
                with self.subTest(family=family, options=options):
                    expected = self.dir / "quantised.gguf"
                    done = self.run_squint("quantize", "--type", *options, plain, expected)
                    self.assertEqual(done.returncode, 0, done.stderr)
                    found = self.dir / "converted.gguf"
                    self.assertEqual(convert(folder, found, "--type", *options), (0, ""))
                    self.assertTrue(found.read_bytes() == expected.read_bytes())

    def test_same_numbers_as_quantize(self):
        """Rows that rounding is hard on: zeros, subnormals, ties, equal extremes, widths that fill no group."""
        rng = np.random.default_rng(5)
        for k in (32, 64, 96, 200, 416):
            w = rng.standard_normal((37, k)).astype(np.float32) * np.exp(rng.standard_normal((37, 1)) * 4)
            w = w.astype(np.float32)
            w[0], w[1] = 0, -0.0
            w[2] *= 1e-42 / np.abs(w[2]).max()
            w[3] = np.float32(1e-38) * rng.standard_normal(k)
            w[4] = rng.integers(-254, 255, k) / np.float32(2)  # halves, once divided by 127
            w[4, :3] = 127, np.nextafter(np.float32(0.5), np.float32(0)), -1.5
            w[5] = np.where(rng.integers(0, 2, k), 3, -3)
            w[6] = 65504 * np.sign(w[6])
            w[7] = rng.integers(-16, 16, k) / np.float32(2)
            w[8, 1:] *= 1e-6
            w[9, :8] = 0
            w[10] = 1e-7
            plain, out = self.dir / "plain.gguf", self.dir / "out.gguf"
            writer = gguf.GGUFWriter(plain, "llama")
            writer.add_head_count(1)
            writer.add_tensor("blk.0.ffn_up.weight", w)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            for options, kind, group in ((["q8"], "i8", 0), (["q4"], "i4", 64), (["q4", "--group", "32"], "i4", 32),
                                         (["q4", "--group", "256"], "i4", 256), (["f16"], "f16", 0),
                                         (["q8_0"], "q8_0", 0), (["q4_0"], "q4_0", 0)):
                if kind in ("q8_0", "q4_0") and k % 32:
                    continue
                with self.subTest(k=k, options=options):
                    done = self.run_squint("quantize", "--type", *options, plain, out)
                    self.assertEqual(done.returncode, 0, done.stderr)
                    (tensor,) = gguf.GGUFReader(out).tensors
                    found = weights.encoded(w, kind, group)
                    self.assertEqual(np.asarray(tensor.data).tobytes(), found.tobytes())

    def test_models_run(self):
        for family in ALL:
            with self.subTest(family=family):
                model = self.converted(self.folder(family, family), "q8")
                info = self.run_squint("info", model)
                self.assertEqual((info.returncode, info.stderr), (0, ""))
                self.assertIn(family, info.stdout)
                caption = self.run_squint("caption", "-m", model, "-n", 4, PICTURE)
                self.assertEqual(caption.returncode, 0, caption.stderr)


class Command(Case):
    def test_help(self):
        done = subprocess.run([sys.executable, CONVERT, "--help"], capture_output=True, text=True, check=True)
        for word in ("FOLDER", "--vision-tower", "--skip-ratio", "--ledger", "examples"):
            self.assertIn(word, done.stdout)

    def test_bar(self):
        """On a terminal; it is gone at the end."""
        terminal, end = os.openpty()
        done = subprocess.run([sys.executable, CONVERT, self.folder("llava15"), self.dir / "o.gguf", "-t", "f16"],
                              check=True, stdout=subprocess.PIPE, stderr=end)
        os.close(end)
        shown = os.read(terminal, 1 << 16).decode()
        os.close(terminal)
        self.assertRegex(shown, r"\A(\rconverting \[#*\.*\] +\d+%)+\r +\r\Z")
        self.assertIn("100%", shown)
        self.assertIn(b"114 tensors", done.stdout)

    def test_as_a_program(self):
        done = subprocess.run([sys.executable, CONVERT, self.dir, self.dir / "o.gguf", "-t", "f16"],
                              capture_output=True, text=True, check=False)
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertRegex(done.stderr, r"\Aconvert: \S+config\.json: is not there; [^\n]*\n\Z")


if __name__ == "__main__":
    unittest.main()
