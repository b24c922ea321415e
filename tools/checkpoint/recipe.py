"""What a model file is made of: keys, and parts that say which tensors of a checkpoint they come from.

SPDX-License-Identifier: MIT
"""

import dataclasses
import fnmatch
from typing import Callable

from .broken import Broken

U32, I32, U8, F32, BOOL, STRING = "uint32", "int32", "uint8", "float32", "bool", "string"
STRINGS, U32S, I32S, U8S, F32S, BOOLS = ([kind] for kind in (STRING, U32, I32, U8, F32, BOOL))


def first(arrays):
    return arrays[0]


@dataclasses.dataclass(frozen=True)
class Part:
    """A tensor of the model file. `make` takes the sources as float32; its result is brought into `shape`."""
    name: str
    shape: tuple  # rows first
    sources: tuple  # of (name, shape)
    make: Callable = first
    heads: int = 0  # of W_q and W_k, whose rows float files have in llama.cpp's order
    equal: tuple = ()  # copies of the only source, which must not differ from it


@dataclasses.dataclass
class Recipe:
    """keys: (name, kind, value). drops: (pattern, why) of tensors that do nothing in this model."""
    family: str
    keys: list = dataclasses.field(default_factory=list)
    parts: list = dataclasses.field(default_factory=list)
    drops: list = dataclasses.field(default_factory=list)

    def add(self, name, shape, source, source_shape=None, **more):
        self.parts.append(Part(name, tuple(shape), ((source, tuple(source_shape or shape)),), **more))

    def linear(self, name, n, k, source, bias=True, source_shape=None, **more):
        self.add(f"{name}.weight", (n, k), f"{source}.weight", source_shape, **more)
        if bias:
            self.add(f"{name}.bias", (n,), f"{source}.bias")

    def scaled(self, name, n, k, source, scale, make):
        """A linear layer whose rows `make` multiplies by a vector."""
        vector = (scale, (n,))
        self.parts.append(Part(f"{name}.weight", (n, k), ((f"{source}.weight", (n, k)), vector), make))
        self.parts.append(Part(f"{name}.bias", (n,), ((f"{source}.bias", (n,)), vector), make))

    def conv1(self, name, n, k, source):
        """A 1x1 convolution, which is a matrix."""
        self.linear(name, n, k, source, source_shape=(n, k, 1, 1))

    def conv(self, name, n, k, side, source, bias=True):
        self.add(f"{name}.weight", (n, k, side, side), f"{source}.weight")
        if bias:
            self.add(f"{name}.bias", (n,), f"{source}.bias")

    def norm(self, name, n, source):
        self.add(f"{name}.weight", (n,), f"{source}.weight")
        self.add(f"{name}.bias", (n,), f"{source}.bias")

    def key(self, name, kind, value):
        self.keys.append((name, kind, value))


# -------------------------------------------------------------------- ledger

FLOATS = ("BF16", "F16", "F32", "F64")


def check_source(tensor, shape):
    if tensor.shape != shape:
        raise tensor.broken(f"has shape {list(tensor.shape)} where config.json makes it {list(shape)}; are the two of "
                            "one checkpoint?")
    if tensor.dtype not in FLOATS:
        raise tensor.broken(f"holds {tensor.dtype} where {', '.join(FLOATS[:-1])} or {FLOATS[-1]} is needed; take the "
                            "checkpoint that is not quantised")


def missing(recipe, name, places):
    return Broken(f"{places}: tensor {name} is missing, which {recipe.family} needs; download the checkpoint again, "
                  "or see whether config.json belongs to it")


def reason(recipe, name):
    return next((why for pattern, why in recipe.drops if fnmatch.fnmatchcase(name, pattern)), None)


def ledger(recipe, tensors, spelt, place):
    """{common name: what becomes of it}. Fails when a tensor is missing, of another shape, or of no use known here."""
    fate = {}
    for part in recipe.parts:
        for name, shape in part.sources:
            if name not in tensors:
                raise missing(recipe, spelt(name), place)
            check_source(tensors[name], shape)
        for name in [source for source, _ in part.sources] + list(part.equal):
            fate[name] = part.name
    for name, tensor in tensors.items():
        why = reason(recipe, name)
        if name not in fate and why is None:
            raise tensor.broken(f"is none of {recipe.family}'s: squint does not know what it does, and does not leave "
                                "it out silently")
        fate.setdefault(name, f"dropped: {why}")
    return fate
