"""A model file from a recipe: keys, then one tensor at a time.

Keys and tensors come in the order in which `squint quantize` would have them, and the file is byte for byte what it
makes of the float32 conversion. The file has its name only when it is whole.

SPDX-License-Identifier: MIT
"""

import os

import gguf
import numpy as np

from . import weights
from .broken import Broken
from .recipe import STRING, U32

BLOCK_TYPES = {"q8_0": gguf.GGMLQuantizationType.Q8_0, "q4_0": gguf.GGMLQuantizationType.Q4_0}
KINDS = {kind: gguf.GGUFValueType[kind.upper()] for kind in ("uint32", "int32", "uint8", "float32", "bool", "string")}
F16_MOST = 65504


class Plan:
    """How a part of a recipe lies in the file."""

    def __init__(self, part, policy, vision, group):
        self.part, self.group = part, group
        self.format = weights.format_of(part.name, part.shape, policy, vision)
        self.bytes = weights.stored_bytes(self.format, part.shape, group)


def interleaved(w, heads):
    """Rows of W_q or W_k in llama.cpp's order: row 2i + j of a head is row j * head_dim / 2 + i."""
    return w.reshape(heads, 2, -1, w.shape[-1]).swapaxes(1, 2).reshape(w.shape)


def check_floats(plan, source, w):
    """NaN fails both comparisons."""
    most = np.finfo(np.float32).max if plan.format == "f32" else F16_MOST
    if w.size and not (w.max() <= most and w.min() >= -most):
        raise source.broken("holds NaN, infinity or more than F16 can" if plan.format != "f32" else
                            "holds NaN or infinity; download it again")


def check_equal(part, tensors):
    first = tensors[part.sources[0][0]]
    for name in part.equal:
        if tensors[name].shape != first.shape or not np.array_equal(tensors[name].bits(), first.bits()):
            raise tensors[name].broken(f"differs from {first.name}, but one router serves all layers; is this file "
                                       "of one checkpoint?")


def made(plan, tensors, to_half):
    """The part's float32 weights, as the file is to have them."""
    part = plan.part
    sources = [tensors[name] for name, _ in part.sources]
    check_equal(part, tensors)
    w = np.ascontiguousarray(part.make([source.floats() for source in sources]), np.float32).reshape(part.shape)
    check_floats(plan, sources[0], w)
    return interleaved(w, part.heads) if part.heads and not to_half else w


def file_keys(recipe, policy, vision, to_half):
    """In `squint quantize`'s order: alignment, the model's keys, what the weights are."""
    keys = [("general.alignment", U32, weights.ALIGN), *recipe.keys]
    number = weights.POLICIES[policy][1] if vision == policy else None
    if number is not None:
        keys.append(("general.file_type", U32, number))
    keys.append(("squint.weights", STRING, policy))
    return keys + ([("squint.rope_layout", STRING, "half")] if to_half else [])


def add_keys(writer, keys):
    writer.kv_data[0].clear()  # of the architecture, which is a key of ours
    for name, kind, value in keys:
        if isinstance(kind, list):
            writer.add_key_value(name, value, gguf.GGUFValueType.ARRAY, KINDS[kind[0]])
        else:
            writer.add_key_value(name, value, KINDS[kind])
    writer.data_alignment = weights.ALIGN


def declare(writer, plan):
    if plan.format in weights.PANELS:
        writer.add_tensor_info(plan.part.name, (plan.bytes,), np.dtype(np.int8), plan.bytes)
    else:
        dtype = np.dtype(np.float16 if plan.format == "f16" else np.float32)
        writer.add_tensor_info(plan.part.name, plan.part.shape, dtype, plan.bytes, BLOCK_TYPES.get(plan.format))


def write_parts(writer, plans, tensors, to_half, progress):
    done, total = 0, sum(plan.bytes for plan in plans)
    for plan in plans:
        progress(done / total)
        w = made(plan, tensors, to_half)
        data = weights.encoded(w, plan.format, plan.group)
        if data.nbytes != plan.bytes:
            raise AssertionError(f"{plan.part.name}: {data.nbytes} bytes for {plan.bytes}")
        writer.write_tensor_data(data.reshape(-1))
        done += plan.bytes
    progress(1.0)


def write_file(path, recipe, tensors, plans, policy, vision, progress):
    to_half = weights.POLICIES[policy][0][weights.DECODER] in weights.PANELS
    writer = gguf.GGUFWriter(path, "llama")
    try:
        add_keys(writer, file_keys(recipe, policy, vision, to_half))
        for plan in plans:
            declare(writer, plan)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        write_parts(writer, plans, tensors, to_half, progress)
        writer.flush()
        os.fsync(writer.fout[0].fileno())
    finally:
        writer.close()


def check_place(path, inputs):
    """May a file be written there? Not over one of the inputs."""
    if path.exists() and not path.is_file():
        raise Broken(f"{path}: is there, and not a regular file")
    if path.exists() and any(os.path.samefile(path, source) for source in inputs if source.exists()):
        raise Broken(f"{path}: is a file of the checkpoint; choose another name")
    if not path.parent.is_dir():
        raise Broken(f"{path.parent}: is no folder to write to; make it first")


def write(path, recipe, tensors, policy, vision, group, progress):
    """Returns the bytes of all tensors."""
    plans = [Plan(part, policy, vision, group) for part in recipe.parts]
    for plan in plans:
        if plan.format in weights.PANELS and (plan.part.shape[0] > weights.MAX_DIM or
                                              plan.part.shape[1] > weights.MAX_K):
            raise Broken(f"tensor {plan.part.name} is too large for panels; convert to f16")
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write_file(temporary, recipe, tensors, plans, policy, vision, progress)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return sum(plan.bytes for plan in plans)
