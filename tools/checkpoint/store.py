"""The tensors of a checkpoint folder: which there are, and one at a time as floats.

safetensors checks a file and lists what is in it. The bytes are mapped here, since numpy has no bfloat16.

SPDX-License-Identifier: MIT
"""

import dataclasses
import json
import math
import pathlib
import struct

import numpy as np
import safetensors

from . import torchfile
from .broken import Broken
from .settings import read_json

TYPES = {"F16": np.float16, "BF16": np.uint16, "F32": np.float32, "F64": np.float64}  # BF16: as bits


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a file."""
    path: pathlib.Path
    name: str  # as the file has it
    dtype: str
    shape: tuple
    offset: int
    strides: tuple  # in bytes; None: rows one after another

    def broken(self, what):
        return Broken(f"{self.path}: tensor {self.name} {what}")

    def bits(self):
        """The elements as they lie in the file."""
        dtype = np.dtype(TYPES[self.dtype])
        if not math.prod(self.shape):
            return np.zeros(self.shape, dtype)
        strides = self.strides or np.zeros(self.shape, np.bool_).strides
        if self.strides is None:
            return np.memmap(self.path, dtype, "r", self.offset, self.shape)
        extent = sum((n - 1) * s for n, s in zip(self.shape, strides)) + dtype.itemsize
        flat = np.memmap(self.path, np.uint8, "r", self.offset, extent)
        return np.ndarray(self.shape, dtype, flat, 0, strides)

    def floats(self):
        """float32[shape], in memory of its own."""
        bits = self.bits()
        if self.dtype != "BF16":
            return np.array(bits, np.float32, order="C")
        wide = np.array(bits, np.uint32, order="C")
        wide <<= 16
        return wide.view(np.float32)


def read_safetensors(path):
    """[Stored] of one file."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            names = list(file.keys())
    except (safetensors.SafetensorError, OSError) as error:
        raise Broken(f"{path}: is damaged or cut off ({error}); download it again") from None
    with open(path, "rb") as file:
        n = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(n))
    return [Stored(path, name, header[name]["dtype"], tuple(header[name]["shape"]),
                   8 + n + header[name]["data_offsets"][0], None) for name in names]


def read_torch(path):
    return [Stored(path, name, dtype, shape, offset, strides)
            for name, dtype, shape, offset, strides in torchfile.read(path)]


READERS = (("model", "safetensors", read_safetensors), ("pytorch_model", "bin", read_torch))


def read_shards(folder, index, read):
    """The files that an index lists. Each tensor must be where the index says, and the index must say all."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise Broken(f"{index}: has no weight_map of tensors to files; download it again")
    found = {}
    for shard in sorted(set(weight_map.values())):
        path = folder / pathlib.PurePath(shard).name
        if not path.is_file():
            raise Broken(f"{path}: is not there, but {index.name} says it is a part; download it")
        for tensor in read(path):
            if weight_map.get(tensor.name) != shard:
                raise tensor.broken(f"is not in {index.name}, or said to be in another file; download both again")
            found[tensor.name] = tensor
    lost = sorted(set(weight_map) - set(found))
    if lost:
        raise Broken(f"{folder / weight_map[lost[0]]}: tensor {lost[0]} is missing, but {index.name} says it is "
                     "there; download both again")
    return found


def read_folder(folder):
    """{name: Stored} of all tensors in a checkpoint folder; safetensors if there are both kinds."""
    for stem, suffix, read in READERS:
        index, single = folder / f"{stem}.{suffix}.index.json", folder / f"{stem}.{suffix}"
        if index.is_file():
            return read_shards(folder, index, read)
        if single.is_file():
            return {tensor.name: tensor for tensor in read(single)}
    parts = sorted([*folder.glob("model-*.safetensors"), *folder.glob("pytorch_model-*.bin")])
    if parts:
        stem, suffix = parts[0].name.split("-")[0], parts[0].suffix
        raise Broken(f"{folder}: has parts like {parts[0].name}, but not {stem}{suffix}.index.json; download it")
    raise Broken(f"{folder}: has no model.safetensors and no pytorch_model.bin, whole or in parts; is this the folder "
                 "of a checkpoint?")
