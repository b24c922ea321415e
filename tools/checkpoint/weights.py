"""The number formats of a model file, byte for byte as quant/ makes them: binary16, llama.cpp's blocks, panels.

Arithmetic is binary32 in the order of the C code, a step a ufunc; comparisons are written so that NaN falls where it
falls there. Rows go through in pieces that stay in the cache, and the pieces through threads.

SPDX-License-Identifier: MIT
"""

import concurrent.futures
import fnmatch
import math
import os

import numpy as np

F4, F2 = np.float32, np.float16
BLOCK, PANEL_N, PANEL_K, ALIGN = 32, 16, 32, 64
MAX_DIM, MAX_K = 1 << 24, 1 << 16
TINY = np.finfo(F4).tiny
PIECE = 1 << 16  # elements that a thread takes at a time

DECODER, EMBEDDING, VISION, EXACT = range(4)

# The first pattern that matches decides, as in tools/squint/quantize.c.
CLASSES = (
    ("*mod_router*", EXACT),
    ("v.patch_embd*", EXACT),
    ("v.stem*", EXACT),
    ("v.position_embd*", EXACT),
    ("v.class_embd", EXACT),
    ("v.hr.*.gate.*", EXACT),
    ("token_embd.weight", EMBEDDING),
    ("output.weight", EMBEDDING),
    ("blk.*.weight", DECODER),
    ("v.*.weight", VISION),
    ("mm.*.weight", VISION),
)

# type: (decoder, embedding, vision, exact), general.file_type
POLICIES = {
    "f32": (("f32", "f32", "f32", "f32"), 0),
    "f16": (("f16", "f16", "f16", "f32"), 1),
    "q8_0": (("q8_0", "q8_0", "q8_0", "f32"), 7),
    "q4_0": (("q4_0", "q8_0", "q8_0", "f32"), 2),
    "q8": (("i8", "i8", "i8", "f32"), None),
    "q4": (("i4", "i8", "i8", "f32"), None),
}
PANELS = ("i8", "i4")


def class_of(name, shape):
    if len(shape) != 2:
        return EXACT
    return next((kind for pattern, kind in CLASSES if fnmatch.fnmatchcase(name, pattern)), EXACT)


def format_of(name, shape, policy, vision):
    """The format of a tensor: f32, f16, q8_0, q4_0, i8 or i4."""
    kind = class_of(name, shape)
    wanted = POLICIES[vision if kind == VISION else policy][0][kind]
    return "f16" if wanted in ("q8_0", "q4_0") and shape[-1] % BLOCK else wanted


def round_up(n, step):
    return -(-n // step) * step


def panel_bytes(k, kind, group):
    weights = round_up(k, PANEL_K) * PANEL_N // (2 if kind == "i4" else 1)
    scales = PANEL_N * (2 * -(-k // group) if group else 4)
    return round_up(weights + scales, ALIGN)


def stored_bytes(kind, shape, group):
    n = math.prod(shape)
    if kind in PANELS:
        return ALIGN + -(-shape[0] // PANEL_N) * panel_bytes(shape[1], kind, group if kind == "i4" else 0)
    return {"f32": 4 * n, "f16": 2 * n, "q8_0": n // BLOCK * 34, "q4_0": n // BLOCK * 18}[kind]


# -------------------------------------------------------------------- rounding

def clamp(v, low, high):
    """NaN becomes `low`."""
    return np.where(v > F4(low), np.where(v < F4(high), v, F4(high)), F4(low))


def round_away(v):
    """Nearest, halves away from zero, without the double rounding of adding a half."""
    whole = np.trunc(v)
    return np.where(np.abs(v - whole) >= F4(0.5), whole + np.copysign(F4(1), v), whole)


def reciprocal(d):
    return np.divide(F4(1), d, out=np.zeros_like(d), where=d != 0)


def reciprocal_normal(scale):
    """Too small a scale has no finite inverse."""
    return np.divide(F4(1), scale, out=np.zeros_like(scale), where=np.abs(scale) >= TINY)


# ---------------------------------------------------------------- llama.cpp's

def blocks_q8_0(w):
    x = w.reshape(-1, BLOCK)
    d = np.abs(x).max(1) / F4(127)
    out = np.empty((len(x), 34), np.uint8)
    out[:, :2] = d.astype(F2)[:, None].view(np.uint8)
    q = clamp(round_away(x * reciprocal(d)[:, None]), -127, 127)
    out[:, 2:] = q.astype(np.int8).view(np.uint8)
    return out


def blocks_q4_0(w):
    x = w.reshape(-1, BLOCK)
    most = np.abs(x).argmax(1)  # the first of equals
    largest = np.take_along_axis(x, most[:, None], 1)[:, 0]
    d = np.where(largest != 0, largest, F4(0)) / F4(-8)
    q = clamp(x * reciprocal(d)[:, None] + F4(8.5), 0, 15).astype(np.uint8)
    out = np.empty((len(x), 18), np.uint8)
    out[:, :2] = d.astype(F2)[:, None].view(np.uint8)
    out[:, 2:] = q[:, :16] | q[:, 16:] << 4
    return out


# --------------------------------------------------------------------- panels

def padded(w, k):
    """Rows to a multiple of 16, columns to k, with zeros."""
    n = round_up(len(w), PANEL_N)
    if w.shape == (n, k):
        return w
    out = np.zeros((n, k), F4)
    out[:len(w), :w.shape[1]] = w
    return out


def panels(weights, scales):
    """Bytes of whole panels: weights and scales of each as uint8[panels][...], and zeros up to the line."""
    parts = [part.reshape(len(part), -1) for part in (weights, scales)]
    used = sum(part.shape[1] for part in parts)
    tail = np.zeros((len(weights), round_up(used, ALIGN) - used), np.uint8)
    return np.concatenate([*parts, tail], 1)


def panels_i8(w, _):
    """A scale a row. A line of 64 bytes is 16 rows of 4 weights."""
    scale = np.abs(w).max(1) / F4(127)
    inverse = reciprocal_normal(scale)
    q = round_away(clamp(w * inverse[:, None], -127, 127)).astype(np.int16) + 128
    k = round_up(w.shape[1], PANEL_K)
    full = np.full((round_up(len(w), PANEL_N), k), 128, np.uint8)
    full[:len(w), :w.shape[1]] = q
    scales = np.zeros(len(full), F4)
    scales[:len(w)] = np.where(inverse != 0, scale, F4(0))
    lines = full.reshape(-1, PANEL_N, k // 4, 4).transpose(0, 2, 1, 3)
    return panels(lines, scales.reshape(-1, PANEL_N).view(np.uint8))


MAGIC = F4(12582912)  # 1.5 * 2^23: adding it and taking it away leaves no bits behind the point


def round_i4(v, out=None):
    """Nearest int4, ties to even; in place when out is v."""
    out = np.minimum(np.maximum(v, F4(-8), out=out), F4(7), out=out)
    out += MAGIC
    out -= MAGIC
    return out


def half_scale(scale):
    """As the file will hold it. It cannot overflow: weights are at most 65504."""
    return scale.astype(F2).astype(F4)


def error_i4(x, scale, work):
    """Squared error of each group of x[groups][n / 8][8]: 8 sums over the steps in order, then a tree of them."""
    inverse = reciprocal_normal(scale)[:, None, None]
    d = np.multiply(x, inverse, out=work)
    round_i4(d, d)
    d *= scale[:, None, None]
    np.subtract(x, d, out=d)
    d *= d
    total = d[:, 0].copy()
    for step in range(1, d.shape[1]):
        total += d[:, step]
    pairs = total[:, 0::2] + total[:, 1::2]
    return (pairs[:, 0] + pairs[:, 1]) + (pairs[:, 2] + pairs[:, 3])


def refit_i4(x, scale):
    """The least squares' scale for the weights as `scale` rounds them; sums run over the group in order."""
    flat = x.reshape(len(x), -1)
    q = round_i4(flat * reciprocal_normal(scale)[:, None])
    xq, qq = np.zeros(len(x), F4), np.zeros(len(x), F4)
    products, squares = (flat * q).T.copy(), (q * q).T.copy()
    for product, square in zip(products, squares):
        xq += product
        qq += square
    return np.divide(xq, qq, out=scale.copy(), where=qq > 0)


def best_scale_i4(x):
    """Of each group of x[groups][n / 8][8]."""
    most = np.abs(x).max((1, 2))
    best, least, work = np.zeros(len(x), F4), np.full(len(x), np.inf, F4), np.empty_like(x)
    for i in range(24):
        divisor = F4(5.75) + F4(0.25) * F4(i // 2)
        scale = half_scale((most if i & 1 else -most) / divisor)
        error = error_i4(x, scale, work)
        better = error < least
        best, least = np.where(better, scale, best), np.where(better, error, least)
    refit = half_scale(refit_i4(x, best))
    return np.where(error_i4(x, refit, work) < least, refit, best)


def panels_i4(w, group):
    """A scale a group of a row. A line is 16 rows of 8 weights: k + j in low nibbles, k + 4 + j in high ones."""
    k, n_groups = round_up(w.shape[1], PANEL_K), -(-w.shape[1] // group)
    x = padded(w, n_groups * group)  # zeros change no sum
    n = len(x)
    x = x.reshape(n * n_groups, group // 8, 8)
    scale = best_scale_i4(x)
    inverse = reciprocal_normal(scale)
    q = round_i4(x * inverse[:, None, None]).astype(np.int8).reshape(n, -1)[:, :k] + np.int8(8)
    q = q.astype(np.uint8).reshape(-1, PANEL_N, k // 8, 2, 4)
    lines = (q[:, :, :, 0] | q[:, :, :, 1] << 4).transpose(0, 2, 1, 3)
    stored = np.where(inverse != 0, scale, F4(0)).astype(F2).reshape(-1, PANEL_N, n_groups)
    return panels(lines, np.ascontiguousarray(stored.transpose(0, 2, 1)).view(np.uint8))


def panel_header(kind, shape, group):
    fields = np.zeros(16, np.uint32)
    fields[0] = int.from_bytes(b"SQPN", "little")
    fields[1:6] = 1, 2 if kind == "i4" else 1, shape[0], shape[1], group
    return fields.view(np.uint8)


# --------------------------------------------------------------------- tensors

def in_pieces(encode, w, out_rows, step):
    """encode() of `step` rows at a time, in threads, into out_rows(first, last)."""
    def work(at):
        with np.errstate(all="ignore"):
            out_rows(at, min(at + step, len(w)))[...] = encode(w[at:at + step])
    if len(w) <= step:
        work(0)
        return
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(work, range(0, len(w), step)):
            pass


def panel_tensor(w, kind, group):
    group = group if kind == "i4" else 0
    encode = panels_i4 if kind == "i4" else panels_i8
    out = np.empty(stored_bytes(kind, w.shape, group), np.uint8)
    out[:ALIGN] = panel_header(kind, w.shape, group)
    body = out[ALIGN:].reshape(-1, panel_bytes(w.shape[1], kind, group))
    step = round_up(max(PIECE // w.shape[1], 1), PANEL_N)
    in_pieces(lambda rows: encode(rows, group), w, lambda a, b: body[a // PANEL_N:-(-b // PANEL_N)], step)
    return out


def block_tensor(w, kind):
    size, encode = {"q8_0": (34, blocks_q8_0), "q4_0": (18, blocks_q4_0)}[kind]
    each = w.shape[1] // BLOCK
    out = np.empty((len(w) * each, size), np.uint8)
    in_pieces(encode, w, lambda a, b: out[a * each:b * each], max(PIECE // w.shape[1], 1))
    return out


def encoded(w, kind, group):
    """The bytes of float32 weights in a format, as an array."""
    if kind in PANELS:
        return panel_tensor(w, kind, group)
    if kind == "f32":
        return w
    return w.astype(F2) if kind == "f16" else block_tensor(w, kind)
