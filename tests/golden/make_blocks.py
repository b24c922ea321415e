#!/usr/bin/env python3
"""Golden floats of tests/test_blocks.c: blocks of llama.cpp's types, and what the gguf Python package makes of them.

    python3 tests/golden/make_blocks.py tests/golden/blocks.gguf

Needs gguf (0.19 made the stored file) and numpy. Half of the blocks of a type that the package can quantise are
quantised weights; all others are random bytes, whose scales take the values below in turn: zeros, subnormals, the
largest, negative ones, ordinary ones. Each type has two tensors: TYPE, and its floats as TYPE.f32.
"""
import sys

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import quants

SCALES = np.array([0.0, -0.0, 2**-24, -(2**-24), 2**-15, 6e-5, -7e-3, 0.011, 1.0, -3.5, 65504.0, -65504.0],
                  dtype=np.float16).view(np.uint16)
# Where a block keeps its binary16 scales, in bytes.
PLACES = {T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208]}


def random_blocks(rng, kind, n):
    blocks = rng.integers(0, 256, (n, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    for number, at in enumerate(PLACES[kind]):
        chosen = np.roll(SCALES, 5 * number)[np.arange(n) % len(SCALES)]
        blocks[:, at:at + 2] = chosen.astype("<u2").view(np.uint8).reshape(n, 2)
    return blocks


def blocks_of(rng, kind):
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    n = 24 if block == 32 else 16
    blocks = random_blocks(rng, kind, n)
    try:
        made = quants.quantize(rng.standard_normal((n, block)).astype(np.float32), kind)
    except NotImplementedError:
        return blocks
    return np.concatenate([blocks, made])


def bf16(rng):
    """Every exponent, some with every sign; NaN left out, as its payload is nobody's business."""
    bits = np.concatenate([np.arange(0, 65536, 37), rng.integers(0, 65536, 800)]).astype(np.uint16)
    return bits[(bits & 0x7FFF) <= 0x7F80][:2048]


def main():
    rng = np.random.default_rng(5)
    w = gguf.GGUFWriter(sys.argv[1], "blocks")
    for kind in PLACES:
        blocks = blocks_of(rng, kind)
        w.add_tensor(kind.name, blocks, raw_dtype=kind)
        w.add_tensor(kind.name + ".f32", quants.dequantize(blocks, kind).astype(np.float32))
    bits = bf16(rng)
    w.add_tensor("BF16", bits.view(np.uint8), raw_dtype=T.BF16)
    w.add_tensor("BF16.f32", quants.dequantize(bits.view(np.uint8), T.BF16).view(np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


if __name__ == "__main__":
    main()
