"""A GGUF v3 writer: keys and tensors in, one file out.

SPDX-License-Identifier: MIT
"""

import struct

import numpy as np

U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
TENSOR_TYPES = {"float32": 0, "float16": 1, "int8": 24, "int32": 26}


def string(text):
    data = text if isinstance(text, bytes) else text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


SCALARS = {
    U32: lambda v: struct.pack("<I", v),
    I32: lambda v: struct.pack("<i", v),
    F32: lambda v: struct.pack("<f", v),
    BOOL: lambda v: struct.pack("<B", bool(v)),
    STRING: string,
}


def value(kind, v):
    if isinstance(kind, tuple):  # (ARRAY, kind of element)
        data = b"".join(SCALARS[kind[1]](x) for x in v)
        return struct.pack("<IIQ", ARRAY, kind[1], len(v)) + data
    return struct.pack("<I", kind) + SCALARS[kind](v)


def write(path, keys, tensors=()):
    """
    keys: [(name, kind, value)]; "general.alignment" among them is heeded. tensors: [(name, numpy array)] of a type
    in TENSOR_TYPES, rows first as in numpy.
    """
    alignment = {name: v for name, _, v in keys}.get("general.alignment", 32)
    head = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)))
    for name, kind, v in keys:
        head += string(name) + value(kind, v)
    data = bytearray()
    for name, array in tensors:
        head += string(name) + struct.pack("<I", array.ndim)
        head += b"".join(struct.pack("<Q", n) for n in reversed(array.shape))
        head += struct.pack("<IQ", TENSOR_TYPES[array.dtype.name], len(data))
        data += np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
        data += bytes(-len(data) % alignment)
    head += bytes(-len(head) % alignment) if tensors else b""
    with open(path, "wb") as f:
        f.write(head + data)
