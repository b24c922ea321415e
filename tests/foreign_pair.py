#!/usr/bin/env python3
"""A small LLaVA model in two files, in the layout of llama.cpp: random weights, of any of its types.

    python3 tests/foreign_pair.py TYPE MODEL MMPROJ [--seed N]

TYPE is F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K or Q6_K, for all matrices that it can hold (llama.cpp
falls back likewise where rows are no whole blocks), or "mixed": each matrix another. Needs gguf and numpy.

The decoder: width 256, 4 heads of 16 (2 of keys), inner 64, 1 layer, 272 pieces; rows of W_q and W_k in llama.cpp's
order. The tower: CLIP of width 32, 2 heads, 28 x 28 pixels, patch 7; 3 blocks stored, of which 2 are counted and run.
"""
import argparse

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import quants

D, F, HEADS, KV_HEADS, HEAD_DIM, LAYERS, VOCAB = 256, 64, 4, 2, 16, 1, 272
VIT_D, VIT_F, VIT_HEADS, VIT_STORED, VIT_COUNTED, IMAGE, PATCH = 32, 64, 2, 3, 2, 28, 7
EPS, VIT_EPS, ROPE_BASE = 1e-5, 1e-5, 10000.0
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]

# The package does not quantise these: blocks of random bytes, with scales (and minima, so that the mean is 0) at these
# bytes that make weights of a root mean square of 1.
RANDOM_BLOCKS = {T.Q4_K: {0: 1 / 190, 2: 7.5 / 190}, T.Q5_K: {0: 1 / 377, 2: 15.5 / 377}, T.Q6_K: {208: 1 / 1369}}

MIXED = {"token_embd": T.Q4_K, "attn_q": T.Q4_K, "attn_k": T.Q5_K, "attn_v": T.Q6_K, "attn_output": T.Q5_0,
         "ffn_gate": T.Q4_K, "ffn_up": T.Q5_K, "ffn_down": T.Q5_1, "mm.2": T.Q4_K, "mm.0": T.Q4_1, "v.attn_q": T.Q8_0,
         "v.attn_k": T.Q8_0, "v.attn_v": T.F16, "v.attn_out": T.Q5_1, "v.ffn_down": T.Q4_0, "v.ffn_up": T.BF16}


def encode(rng, shape, scale, kind):
    """Random weights as GGUFWriter takes them: floats, or bytes of blocks."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    if kind in RANDOM_BLOCKS:
        blocks = rng.integers(0, 256, (shape[0], shape[1] // block, size), dtype=np.uint8)
        for at, factor in RANDOM_BLOCKS[kind].items():
            halves = (scale * factor * rng.uniform(0.8, 1.2, blocks.shape[:2])).astype(np.float16)
            blocks[..., at:at + 2] = halves.view(np.uint8).reshape(*halves.shape, 2)
        return blocks.reshape(shape[0], -1)
    weights = (scale * rng.standard_normal(shape)).astype(np.float32)
    if kind == T.F32:
        return weights
    return weights.astype(np.float16) if kind == T.F16 else quants.quantize(weights, kind)


class Half:
    def __init__(self, path, arch, kinds, rng):
        self.out, self.kinds, self.rng = gguf.GGUFWriter(path, arch), kinds, rng

    def kind_of(self, name, inputs):
        short = name.split(".")[-2] if "blk" in name else name.removesuffix(".weight")
        kind = self.kinds if isinstance(self.kinds, T) else self.kinds["v." * name.startswith("v.") + short]
        if inputs % gguf.GGML_QUANT_SIZES[kind][0] == 0:
            return kind
        return T.Q8_0 if kind == T.Q6_K else T.Q5_1 if kind == T.Q5_K else T.Q5_0

    def matrix(self, name, outputs, inputs, scale=None):
        kind = self.kind_of(name, inputs)
        data = encode(self.rng, (outputs, inputs), scale or inputs ** -0.5, kind)
        self.out.add_tensor(name, data, raw_dtype=kind)

    def vector(self, name, n, mean, scale=0.1):
        self.out.add_tensor(name, (mean + scale * self.rng.standard_normal(n)).astype(np.float32))

    def linear(self, name, outputs, inputs):
        self.matrix(name + ".weight", outputs, inputs)
        self.vector(name + ".bias", outputs, 0)

    def norm(self, name, n):
        self.vector(name + ".weight", n, 1)
        self.vector(name + ".bias", n, 0)

    def close(self):
        self.out.write_header_to_file()
        self.out.write_kv_data_to_file()
        self.out.write_tensors_to_file()
        self.out.close()


def pieces():
    """<unk> <s> </s>, the space, letters, and the 256 bytes."""
    names = [b"<unk>", b"<s>", b"</s>", "\u2581".encode()] + [bytes([c]) for c in b"abcdefghijkl"]
    types = [2, 3, 3] + [1] * (len(names) - 3)
    return names + [b"<0x%02X>" % i for i in range(256)], types + [6] * 256


def write_model(path, kinds, seed):
    half = Half(path, "llama", kinds, np.random.default_rng(seed))
    out = half.out
    out.add_name("foreign pair")
    out.add_context_length(256)
    out.add_embedding_length(D)
    out.add_block_count(LAYERS)
    out.add_feed_forward_length(F)
    out.add_head_count(HEADS)
    out.add_head_count_kv(KV_HEADS)
    out.add_layer_norm_rms_eps(EPS)
    out.add_key_length(HEAD_DIM)
    out.add_value_length(HEAD_DIM)
    out.add_rope_dimension_count(HEAD_DIM)
    out.add_rope_freq_base(ROPE_BASE)
    out.add_vocab_size(VOCAB)
    names, types = pieces()
    out.add_tokenizer_model("llama")
    out.add_tokenizer_pre("default")
    out.add_token_list(names)
    out.add_token_scores([-float(i) for i in range(VOCAB)])
    out.add_token_types(types)
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)
    half.matrix("token_embd.weight", VOCAB, D, 0.1)
    half.vector("output_norm.weight", D, 1)
    for n in range(LAYERS):
        p = f"blk.{n}."
        half.vector(p + "attn_norm.weight", D, 1)
        half.matrix(p + "attn_q.weight", HEADS * HEAD_DIM, D)
        half.matrix(p + "attn_k.weight", KV_HEADS * HEAD_DIM, D)
        half.matrix(p + "attn_v.weight", KV_HEADS * HEAD_DIM, D)
        half.matrix(p + "attn_output.weight", D, HEADS * HEAD_DIM)
        half.vector(p + "ffn_norm.weight", D, 1)
        half.matrix(p + "ffn_gate.weight", F, D)
        half.matrix(p + "ffn_up.weight", F, D)
        half.matrix(p + "ffn_down.weight", D, F)
    half.close()


def write_mmproj(path, kinds, seed):
    half = Half(path, "clip", kinds, np.random.default_rng(seed + 1))
    out = half.out
    out.add_bool("clip.has_text_encoder", False)
    out.add_bool("clip.has_vision_encoder", True)
    out.add_bool("clip.has_llava_projector", True)
    out.add_file_type(1)
    out.add_name("tower of the foreign pair")
    out.add_description("image encoder for LLaVA")
    out.add_string("clip.projector_type", "mlp")
    sizes = {"image_size": IMAGE, "patch_size": PATCH, "embedding_length": VIT_D, "feed_forward_length": VIT_F,
             "projection_dim": 24, "attention.head_count": VIT_HEADS, "block_count": VIT_COUNTED}
    for key, value in sizes.items():
        out.add_uint32("clip.vision." + key, value)
    out.add_float32("clip.vision.attention.layer_norm_epsilon", VIT_EPS)
    out.add_array("clip.vision.image_mean", MEAN)
    out.add_array("clip.vision.image_std", STD)
    out.add_bool("clip.use_gelu", False)
    half.linear("mm.0", D, VIT_D)
    half.linear("mm.2", D, D)
    half.vector("v.class_embd", VIT_D, 0, 1)
    patches = 0.1 * half.rng.standard_normal((VIT_D, 3, PATCH, PATCH))
    out.add_tensor("v.patch_embd.weight", patches.astype(np.float16))  # always F16 there
    positions = half.rng.standard_normal((1 + (IMAGE // PATCH) ** 2, VIT_D))
    out.add_tensor("v.position_embd.weight", positions.astype(np.float16))
    half.norm("v.pre_ln", VIT_D)
    for n in range(VIT_STORED):
        p = f"v.blk.{n}."
        for name in "attn_k", "attn_v", "attn_q", "attn_out":
            half.linear(p + name, VIT_D, VIT_D)
        half.norm(p + "ln1", VIT_D)
        half.linear(p + "ffn_down", VIT_F, VIT_D)  # fc1, as the converter calls it
        half.linear(p + "ffn_up", VIT_D, VIT_F)
        half.norm(p + "ln2", VIT_D)
    half.close()


def write_pair(kind, model, mmproj, seed=1):
    kinds = MIXED if kind == "mixed" else T[kind]
    write_model(model, kinds, seed)
    write_mmproj(mmproj, kinds, seed)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("type")
    p.add_argument("model")
    p.add_argument("mmproj")
    p.add_argument("--seed", type=int, default=1)
    a = p.parse_args()
    write_pair(a.type, a.model, a.mmproj, a.seed)


if __name__ == "__main__":
    main()
