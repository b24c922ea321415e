"""A checkpoint folder: config.json, and tensors by name from safetensors or .bin files.

SPDX-License-Identifier: MIT
"""

import glob
import json
import os

import numpy as np
import torch

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "F64": np.float64, "I64": np.int64}


def read_json(*path):
    with open(os.path.join(*path), encoding="utf-8") as f:
        return json.load(f)


def as_float(array, dtype):
    """BF16 is the upper half of a binary32."""
    if dtype == "BF16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return torch.from_numpy(np.array(array))


def read_safetensors(path):
    """Yields (name, tensor)."""
    with open(path, "rb") as f:
        size = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(size))
    data = np.memmap(path, np.uint8, "r", 8 + size)
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            array = data[begin:end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
            yield name, as_float(array, entry["dtype"])


def read_bin(path):
    """Old PyTorch has no weights_only."""
    modern = "weights_only" in torch.load.__code__.co_varnames
    yield from torch.load(path, map_location="cpu", **({"weights_only": True} if modern else {})).items()


def tensors(folder, dtype):
    """All floating tensors of a folder."""
    found = {}
    for pattern, read in (("*.safetensors", read_safetensors), ("pytorch_model*.bin", read_bin)):
        for path in sorted(glob.glob(os.path.join(glob.escape(folder), pattern))):
            found.update((name, t.to(dtype)) for name, t in read(path) if t.is_floating_point())
        if found:
            return found
    raise SystemExit(f"{folder}: neither safetensors nor pytorch_model*.bin files")


class Weights:
    """Tensors under a prefix."""

    def __init__(self, found, prefix=""):
        self.found, self.prefix = found, prefix

    def __getitem__(self, name):
        return self.found[self.prefix + name]

    def __contains__(self, name):
        return self.prefix + name in self.found

    def under(self, prefix):
        return Weights(self.found, self.prefix + prefix)

    def where(self, *prefixes, has):
        """Under the one of these prefixes that has this tensor."""
        for prefix in prefixes:
            if prefix + has in self:
                return self.under(prefix)
        raise SystemExit(f"the checkpoint has no {' or '.join(self.prefix + p + has for p in prefixes)}")

    def linear(self, name, x):
        return torch.nn.functional.linear(x, self[name + ".weight"], self.get(name + ".bias"))

    def get(self, name):
        return self[name] if name in self else None

    def norm(self, name, x, eps):
        """LayerNorm over the last dimension."""
        return torch.nn.functional.layer_norm(x, x.shape[-1:], self[name + ".weight"], self[name + ".bias"], eps)

    def conv(self, name, x, **options):
        """x [channels][height][width]."""
        weight = self[name + ".weight"]
        return torch.nn.functional.conv2d(x.unsqueeze(0), weight, self.get(name + ".bias"), **options)[0]
