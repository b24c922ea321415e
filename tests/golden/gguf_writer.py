"""A GGUF v3 writer for goldens: keys and tensors in, one file out.

SPDX-License-Identifier: MIT
"""

import struct

U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
TENSOR_F32 = 0


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


def write(path, keys, tensors=(), alignment=32):
    """keys: [(name, kind, value)]; tensors: [(name, numpy float32 array)], rows first as in numpy."""
    head = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)))
    for name, kind, v in keys:
        head += string(name) + value(kind, v)
    data = bytearray()
    for name, array in tensors:
        head += string(name) + struct.pack("<I", array.ndim)
        head += b"".join(struct.pack("<Q", n) for n in reversed(array.shape))
        head += struct.pack("<IQ", TENSOR_F32, len(data))
        data += array.astype("<f4").tobytes()
        data += bytes(-len(data) % alignment)
    head += bytes(-len(head) % alignment) if tensors else b""
    with open(path, "wb") as f:
        f.write(head + data)
