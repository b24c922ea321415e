#!/usr/bin/env python3
# Makes towers.gguf: what PyTorch finds in the front ends of LLaVA-HR and Mini-Gemini, with small towers whose weights
# follow from their names (fixture_values() of a hash of the name). test_towers.c builds the same towers.
# Needs torch, numpy, gguf, Pillow. SPDX-License-Identifier: MIT
#
# Tensors of case C (see CASES), F32:
#     C.pixels.I      [3][side][side]   what CLIP sees as its image I
#     C.slow.S        [places][channels] ConvNeXt's map after stage S, where a case keeps it
#     C.adapter.K     [tokens][d]       after adapter K
#     C.tower         [tokens][d]       LLaVA-HR: before the projector
#     C.mined.I       [tokens][d]       Mini-Gemini: image I's tokens and what they found
#     C.projected     [tokens][d]       all tokens, in the decoder's order
# And of pictures (PICTURES): P.hash I32 [2], FNV-1a of float32 [3][side][side] as prepared, low word first.
import os

import gguf
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

HERE = os.path.dirname(os.path.abspath(__file__))
D, WIDE, HEADS, PATCH = 16, 32, 2, 4
DIMS, DEPTHS, SLOW_EPS = (8, 16, 24, 40), (1, 1, 2, 1), 0.05

# name, sides of the large and of CLIP's picture, maps to keep
HR_CASES = (("hr", 128, 16, (3,)), ("hr-up", 64, 16, (0, 1, 2, 3)), ("hr-down", 128, 8, ()))
HR_GROUPS = (1, 2, 1, 1)
# name, side of the large picture, grid, global
MGM_CASES = (("mgm", 192, 2, True), ("mgm-parts", 96, 2, False), ("mgm-one", 96, 1, False))
MGM_SIDE, MGM_LAYERS = 12, 2

# name, width, height, side of the prepared square
PICTURES = (("portrait", 480, 640, 1024), ("landscape", 1200, 500, 1536), ("tiny", 3, 2, 768), ("one", 1, 1, 1024),
            ("huge", 4000, 2600, 1024), ("same", 1024, 1024, 1024))


# ---- weights ----

def fnv32(name):
    h = 0x811C9DC5
    for byte in name.encode():
        h = (h ^ byte) * 0x01000193 & 0xFFFFFFFF
    return h


def values(shape, ident, base=0.0, scale=1.0):
    """The generator of the golden logits: a hash of the tensor's number and the element's."""
    m = np.arange(int(np.prod(shape)), dtype=np.uint32)
    h = m * np.uint32(2654435761) + np.uint32(ident * 2246822519 + 374761393 & 0xFFFFFFFF)
    h ^= h >> np.uint32(15)
    h *= np.uint32(2246822519)
    h ^= h >> np.uint32(13)
    v = base + (h.astype(np.float64) / 2 ** 32 - 0.5) * 2 * scale
    return torch.from_numpy(v.astype(np.float32).reshape(shape))


def named(name, shape, base=0.0, scale=1.0):
    return values(shape, fnv32(name), base, scale)


def matrix(name, n, *inputs):
    return named(name + ".weight", (n,) + inputs, 0.0, 1.5 / np.prod(inputs) ** 0.5)


def bias(name, n):
    return named(name + ".bias", (n,), 0.0, 0.2)


def linear(name, n, x):
    return F.linear(x, matrix(name, n, x.shape[-1]), bias(name, n))


def norm(name, x, eps):
    d = x.shape[-1]
    return F.layer_norm(x, (d,), named(name + ".weight", (d,), 1.0, 0.3), bias(name, d), eps)


def conv(name, n, x, side):
    return F.conv2d(x[None], matrix(name, n, x.shape[0], side, side), bias(name, n), stride=side)[0]


def depthwise(name, x):
    c = x.shape[0]
    return F.conv2d(x[None], matrix(name, c, 1, 7, 7), bias(name, c), padding=3, groups=c)[0]


# ---- maps [channels][side][side] and tokens [n][d] ----

def tokens(x):
    return x.flatten(1).T.contiguous()


def map_of(x):
    side = round(x.shape[0] ** 0.5)
    return x.T.reshape(-1, side, side)


def bilinear(x, side, align):
    return F.interpolate(x[None], size=(side, side), mode="bilinear", align_corners=align)[0]


# ---- towers ----

def convnext(x, note):
    maps = []
    for s, (dim, depth) in enumerate(zip(DIMS, DEPTHS)):
        if s == 0:
            x = conv("v.slow.stem.conv", dim, x, 4)
            x = map_of(norm("v.slow.stem.norm", tokens(x), SLOW_EPS))
        else:
            at = f"v.slow.stg.{s}.down"
            x = conv(f"{at}.conv", dim, map_of(norm(f"{at}.norm", tokens(x), SLOW_EPS)), 2)
        for b in range(depth):
            at = f"v.slow.stg.{s}.blk.{b}"
            hidden = norm(f"{at}.norm", tokens(depthwise(f"{at}.dw", x)), SLOW_EPS)
            hidden = F.gelu(linear(f"{at}.pw1", 4 * dim, hidden))
            x = x + map_of(linear(f"{at}.pw2", dim, hidden))
        note(f"slow.{s}", tokens(x))
        maps.append(x)
    return maps


def patches(pixels):
    kernel = matrix("v.patch_embd", D, 3, PATCH, PATCH)
    return tokens(F.conv2d(pixels[None], kernel, stride=PATCH)[0])


def clip_block(i, x):
    at = f"v.blk.{i}"
    u = norm(f"{at}.ln1", x, 1e-5)
    q, k, v = (linear(f"{at}.attn_{c}", D, u).view(-1, HEADS, D // HEADS).transpose(0, 1) for c in "qkv")
    weights = torch.softmax(q @ k.transpose(1, 2) * (D // HEADS) ** -0.5, -1)
    x = x + linear(f"{at}.attn_out", D, (weights @ v).transpose(0, 1).reshape(-1, D))
    hidden = linear(f"{at}.ffn_down", WIDE, norm(f"{at}.ln2", x, 1e-5))
    return x + linear(f"{at}.ffn_up", D, hidden * torch.sigmoid(1.702 * hidden))


def positions(n):
    return named("v.position_embd.weight", (n, D), 0.0, 0.5)


def project(x):
    return linear("mm.2", D, F.gelu(linear("mm.0", D, x)))


# ---- LLaVA-HR ----

def match(x, n):
    if x.shape[0] == n:
        return x
    side = round(n ** 0.5)
    if x.shape[0] < n:
        return tokens(bilinear(map_of(x), side, True))
    return tokens(F.avg_pool2d(map_of(x)[None], round((x.shape[0] // n) ** 0.5))[0])


def adapter(y, z, layers):
    """layers: functions of slow_conv, slow_proj, fast_conv, fast_proj, gate.0, gate.2."""
    slow_conv, slow_proj, fast_conv, fast_proj, gate0, gate2 = layers
    slow = match(slow_proj(F.gelu(slow_conv(z))), y.shape[0])
    fast = y + fast_proj(F.gelu(tokens(fast_conv(map_of(y)))))
    gate = gate2(F.gelu(gate0(torch.cat((fast, slow), 1).mean(0))))
    return fast + torch.tanh(gate) * slow


def hr(large, side, note):
    z = tokens(convnext(large, note)[-1])
    small = bilinear(large, side, True)
    note("pixels.0", small)
    y = patches(small)
    y = norm("v.pre_ln", y + positions(y.shape[0]), 1e-5)
    layer = 0
    for g, depth in enumerate(HR_GROUPS):
        for _ in range(depth):
            y = clip_block(layer, y)
            layer += 1
        if g == len(HR_GROUPS) - 1:
            break
        at = f"v.hr.{g}"
        y = adapter(y, z, (lambda x: linear(f"{at}.slow_conv", DIMS[-1], x), lambda x: linear(f"{at}.slow_proj", D, x),
                           lambda x: depthwise(f"{at}.fast_conv", x), lambda x: linear(f"{at}.fast_proj", D, x),
                           lambda x: linear(f"{at}.gate.0", D // 2, x), lambda x: linear(f"{at}.gate.2", 1, x)))
        note(f"adapter.{g}", y)
    y = linear("v.hr.out.fast", D, y) + match(linear("v.hr.out.slow", D, z), y.shape[0])
    note("tower", y)
    note("projected", project(y))


# ---- Mini-Gemini ----

def clip(pixels):
    x = torch.cat((named("v.class_embd", (1, D), 0.0, 0.5), patches(pixels)))
    x = norm("v.pre_ln", x + positions(x.shape[0]), 1e-5)
    for i in range(MGM_LAYERS):
        x = clip_block(i, x)
    return x[1:]


def mine(x, aux, query, key, value, d):
    """x [s * s][d]; aux [channels][s * m][s * m]."""
    side = round(x.shape[0] ** 0.5)
    m = aux.shape[-1] // side
    blocks = F.unfold(aux[None], m, stride=m)[0].view(aux.shape[0], m * m, side * side).permute(2, 1, 0)
    scores = (key(blocks) @ query(x)[:, :, None])[:, :, 0] / d ** 0.5
    return x + (torch.nan_to_num(scores).softmax(-1)[:, None] @ value(blocks))[:, 0]


def mgm(large, grid, whole, note):
    maps = convnext(large, lambda _name, _x: None)
    aux = torch.cat([bilinear(m, maps[0].shape[-1], False) for m in maps])
    x = bilinear(large, MGM_SIDE * grid, False)
    side, part = MGM_SIDE, aux.shape[-1] // grid
    images = [(x[:, r * side:(r + 1) * side, c * side:(c + 1) * side],
               aux[:, r * part:(r + 1) * part, c * part:(c + 1) * part]) for r in range(grid) for c in range(grid)]
    if whole:
        images.append((bilinear(x, side, False), bilinear(aux, part, False)))

    def layer(name):
        return lambda t: linear(f"mm.uni.{name}.proj", D, norm(f"mm.uni.{name}.norm", t, 1e-5))

    found = []
    for i, (pixels, block) in enumerate(images):
        note(f"pixels.{i}", pixels)
        found.append(mine(clip(pixels), block, layer("q"), layer("k"), layer("v"), D))
        note(f"mined.{i}", found[-1])
    note("projected", project(torch.cat(found[-1:] + found[:-1] if whole else found)))


# ---- numbers that the methods' own code gave ----

def near(got, want, bound=2e-5):
    assert np.abs(got.numpy() - np.array(want)).max() < bound, (got, want)


def check_adapter():
    def param(i, *shape):
        return values(shape, i, 0.0, 0.25)

    def dense(i, n, k):
        return lambda x: F.linear(x, param(i, n, k), param(i + 1, n))

    layers = (dense(4000, 12, 12), dense(4002, 8, 12),
              lambda x: F.conv2d(x[None], param(4004, 8, 1, 7, 7), param(4005, 8), padding=3, groups=8)[0],
              dense(4006, 8, 8), dense(4008, 4, 16), dense(4010, 1, 4))
    y, z = values((16, 8), 4100), values((12, 4, 4), 4101)
    out = adapter(y, tokens(z), layers)
    near(out[0], [0.32558, 0.32214, 0.47026, -0.13666, -1.1923, -0.13201, -0.11042, 0.04741])
    near(out[15], [0.21385, -0.10634, 0.31048, -0.62608, -0.01781, 0.24874, 0.69445, -0.41739])
    near(out.abs().sum(), 66.102, 1e-3)
    out = adapter(y, tokens(values((12, 2, 2), 4102)), layers)
    near(out[0], [0.34285, 0.30571, 0.49976, -0.1532, -1.19048, -0.10636, -0.10965, 0.05675])
    near(out.abs().sum(), 65.8873, 1e-3)
    out = dense(4200, 8, 8)(y) + dense(4202, 8, 12)(tokens(z))
    near(out[0], [0.05526, 0.9252, 1.0971, 0.27201, 0.11054, -0.02977, 0.47941, 0.31165])
    near(out.abs().sum(), 41.8266, 1e-3)


def check_mining():
    def layer(i, k):
        w, b = values((k,), i, 1.0, 0.1), values((k,), i + 1, 0.0, 0.1)
        return lambda x: F.linear(F.layer_norm(x, (k,), w, b), values((8, k), i + 2, 0.0, 0.5),
                                  values((8,), i + 3, 0.0, 0.1))

    x, aux = values((4, 8), 6000), values((12, 4, 4), 6001)
    out = mine(x, aux, layer(6010, 8), layer(6020, 12), layer(6030, 12), 8)
    near(out[0], [1.25206, 0.16357, -0.6743, 0.30994, -2.04031, 1.76796, -0.38827, -1.03133])
    near(out[3], [0.29698, 0.65496, 1.18157, 1.22402, -0.27752, -1.00073, -0.58744, 0.74536])
    near(out.abs().sum(), 23.5263, 1e-3)


# ---- pictures ----

def picture(w, h):
    y, x, c = np.mgrid[0:h, 0:w, 0:3].astype(np.uint32)
    return ((37 * x + 91 * y + 53 * c + 11 * x * y) % 256).astype(np.uint8)


def prepared(rgb, side):
    """Pad to a square, resize, normalise as CLIP's processor does."""
    image = Image.fromarray(rgb)
    w, h = image.size
    if w != h:
        square = Image.new("RGB", (max(w, h), max(w, h)), (122, 116, 104))
        square.paste(image, ((h - w) // 2, 0) if w < h else (0, (w - h) // 2))
        image = square
    x = (np.asarray(image.resize((side, side), Image.BICUBIC)) * 0.00392156862745098).astype(np.float32)
    mean = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
    std = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
    return np.ascontiguousarray(((x - mean) / std).transpose(2, 0, 1))


def fnv64(data):
    """Of 32-bit words rather than bytes: a prepared square has millions."""
    h = 0xCBF29CE484222325
    for word in data.view(np.uint32).ravel().tolist():
        h = (h ^ word) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


def main():
    torch.set_num_threads(1)
    check_adapter()
    check_mining()
    out = gguf.GGUFWriter(os.path.join(HERE, "towers.gguf"), "towers")

    def note(case, name, x):
        out.add_tensor(f"{case}.{name}", np.ascontiguousarray(x.numpy()))

    for case, side, small, kept in HR_CASES:
        skipped = {f"slow.{s}" for s in range(4) if s not in kept}
        hr(values((3, side, side), fnv32("pixels"), 0.0, 1.7), small,
           lambda name, x: None if name in skipped else note(case, name, x))
    for case, side, grid, whole in MGM_CASES:
        mgm(values((3, side, side), fnv32("pixels"), 0.0, 1.7), grid, whole, lambda name, x: note(case, name, x))
    for name, w, h, side in PICTURES:
        h64 = fnv64(prepared(picture(w, h), side))
        out.add_tensor(f"picture.{name}", np.array([h64 & 0xFFFFFFFF, h64 >> 32], np.uint32).view(np.int32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


if __name__ == "__main__":
    main()
