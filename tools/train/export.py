#!/usr/bin/env python3
"""Writes a trained captioner as one GGUF file: tower, projector, decoder, routers and vocabulary.

SPDX-License-Identifier: MIT
"""

import argparse

import numpy as np
import torch

import data
import gguf
import routing
from checkpoint import load_captioner
from model import CLIP_MEAN, CLIP_STD

ALIGNMENT = 64  # of a cache line, and of squint's own weight formats
LICENSE = "research, non-commercial: trained on Flickr8k"
STRINGS, F32S, U32S, I32S, BOOLS = ((gguf.ARRAY, kind) for kind in
                                    (gguf.STRING, gguf.F32, gguf.U32, gguf.I32, gguf.BOOL))
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6


# ---------------------------------------------------------------------- keys

def general_keys(name, f16):
    return [
        ("general.architecture", gguf.STRING, "llama"),
        ("general.name", gguf.STRING, name),
        ("general.license", gguf.STRING, LICENSE),
        ("general.file_type", gguf.U32, int(f16)),
        ("general.alignment", gguf.U32, ALIGNMENT),
        ("general.quantization_version", gguf.U32, 2),
        ("squint.source", gguf.STRING, "trained from nothing by squint's tools/train"),
    ]


def decoder_keys(c):
    return [
        ("llama.context_length", gguf.U32, c.context),
        ("llama.embedding_length", gguf.U32, c.dim),
        ("llama.block_count", gguf.U32, c.layers),
        ("llama.feed_forward_length", gguf.U32, c.mlp),
        ("llama.attention.head_count", gguf.U32, c.heads),
        ("llama.attention.head_count_kv", gguf.U32, c.kv_heads),
        ("llama.attention.layer_norm_rms_epsilon", gguf.F32, c.eps),
        ("llama.rope.dimension_count", gguf.U32, c.head_dim),
        ("llama.rope.freq_base", gguf.F32, c.theta),
        ("llama.vocab_size", gguf.U32, c.vocab),
        ("squint.rope_layout", gguf.STRING, "half"),
        ("squint.chat.template", gguf.STRING, "plain"),
        ("squint.max_expanded_length", gguf.U32, c.context),
    ]


def tower_keys(c):
    return [
        ("clip.has_vision_encoder", gguf.BOOL, True),
        ("clip.has_text_encoder", gguf.BOOL, False),
        ("clip.has_llava_projector", gguf.BOOL, True),
        ("clip.projector_type", gguf.STRING, "mlp"),
        ("clip.use_gelu", gguf.BOOL, False),
        ("clip.vision.image_size", gguf.U32, c.image),
        ("clip.vision.patch_size", gguf.U32, c.patch),
        ("clip.vision.embedding_length", gguf.U32, c.v_dim),
        ("clip.vision.feed_forward_length", gguf.U32, c.v_mlp),
        ("clip.vision.block_count", gguf.U32, c.v_layers),
        ("clip.vision.projection_dim", gguf.U32, c.dim),
        ("clip.vision.attention.head_count", gguf.U32, c.v_heads),
        ("clip.vision.attention.layer_norm_epsilon", gguf.F32, 1e-5),
        ("clip.vision.image_mean", F32S, CLIP_MEAN),
        ("clip.vision.image_std", F32S, CLIP_STD),
        ("squint.vision.type", gguf.STRING, "clip_stretch"),
        ("squint.vision.layers_run", gguf.U32, c.v_layers),
        ("squint.vision.input_size", gguf.U32, c.image),
        ("squint.vision.post_ln", gguf.BOOL, True),
        ("squint.vision.stem.strides", U32S, [2] * len(c.stem)),
    ]


SELECTS = {"ratio": "topk", "threshold": "threshold", "capacity": "capacity"}
DECODES = {"prefill": "dense", "always": "always", "threshold": "threshold"}


def mode_keys(c, mode):
    """A row of routing.MODES in the file's words."""
    weight = "attn+mlp" if mode.weigh_attention else "mlp+skip" if mode.weigh_skipped else "mlp"
    keys = [
        ("mod.router.input", gguf.STRING, "attn_norm" if mode.gated else "hidden"),
        ("mod.router.outputs", gguf.U32, 2 if mode.gated else 1),
        ("mod.router.shared", gguf.BOOL, mode.gated and c.shared_router),
        ("mod.target", gguf.STRING, "vision_all" if mode.competes == "vision" else "all"),
        ("mod.weight.apply", gguf.STRING, weight),
        ("mod.position", gguf.STRING, "compressed" if mode.renumber else "original"),
        ("mod.prefill.select", gguf.STRING, SELECTS[mode.select]),
        ("mod.decode.rule", gguf.STRING, DECODES[mode.decode]),
        ("mod.decode.position", gguf.STRING, "local" if mode.decode_local else "global"),
    ]
    if mode.select == "threshold":
        keys.append(("mod.prefill.threshold", gguf.F32, mode.prefill_threshold))
    if mode.decode == "threshold":
        keys.append(("mod.decode.threshold", gguf.F32, mode.decode_threshold))
    return keys


def norm_keys(c):
    kind, scale, bias = routing.parse_norm(c.norm)
    return [
        ("mod.norm.type", gguf.STRING, kind),
        ("mod.norm.scale", gguf.F32, scale),
        ("mod.norm.bias", gguf.F32, bias),
    ]


def schedule_keys(c):
    return [("mod.schedule", gguf.STRING, c.schedule), ("mod.schedule.factor", gguf.F32, c.factor)]


def capacity_keys(c):
    """In every file of gates, so that it can be run as it was trained."""
    return [("mod.capacity.skip_ratio", gguf.F32, c.skip_ratio), ("mod.capacity.region", gguf.U32, routing.region(c))]


def routing_keys(model):
    c, mode = model.config, model.mode
    kind = "threshold" if c.mode == "threshold" else "gamma" if mode.gated else "pmod"
    keys = [
        ("mod.version", gguf.U32, 1),
        ("mod.type", gguf.STRING, kind),
        ("mod.mode", gguf.STRING, c.mode),
        ("mod.layer_is_mod", BOOLS, [r is not None for r in model.ratios]),
        ("mod.layer_ratio", F32S, [1.0 if r is None else r for r in model.ratios]),
    ]
    if mode.gated:
        return keys + mode_keys(c, mode) + capacity_keys(c)
    return keys + norm_keys(c) + mode_keys(c, mode) + schedule_keys(c)


def piece_type(vocabulary, i):
    if vocabulary.is_unknown(i):
        return UNKNOWN
    if vocabulary.is_control(i):
        return CONTROL
    return BYTE if vocabulary.is_byte(i) else NORMAL


def vocabulary_keys(vocabulary):
    ids = range(vocabulary.get_piece_size())
    return [
        ("tokenizer.ggml.model", gguf.STRING, "llama"),
        ("tokenizer.ggml.pre", gguf.STRING, "default"),
        ("tokenizer.ggml.tokens", STRINGS, [vocabulary.id_to_piece(i) for i in ids]),
        ("tokenizer.ggml.scores", F32S, [vocabulary.get_score(i) for i in ids]),
        ("tokenizer.ggml.token_type", I32S, [piece_type(vocabulary, i) for i in ids]),
        ("tokenizer.ggml.bos_token_id", gguf.U32, data.BOS),
        ("tokenizer.ggml.eos_token_id", gguf.U32, data.EOS),
        ("tokenizer.ggml.unknown_token_id", gguf.U32, vocabulary.unk_id()),
        ("tokenizer.ggml.padding_token_id", gguf.U32, vocabulary.unk_id()),
        ("tokenizer.ggml.add_bos_token", gguf.BOOL, True),
        ("tokenizer.ggml.add_eos_token", gguf.BOOL, False),
        ("tokenizer.ggml.add_space_prefix", gguf.BOOL, True),
    ]


# ------------------------------------------------------------------- tensors

def both(name, module):
    return [(name + ".weight", module.weight), (name + ".bias", module.bias)]


def folded(conv, norm):
    """Weight and bias of a convolution that does what conv and then norm do, computed in binary64."""
    gain = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    bias = norm.bias.double() - norm.running_mean.double() * gain
    return conv.weight.double() * gain.view(-1, 1, 1, 1), bias


def tower_layer(name, layer):
    tensors = both(name + "ln1", layer.ln1) + both(name + "ln2", layer.ln2)
    for part, weight, bias in zip("qkv", layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3)):
        tensors += [(f"{name}attn_{part}.weight", weight), (f"{name}attn_{part}.bias", bias)]
    tensors += both(name + "attn_out", layer.out)
    # llama.cpp's names for a tower: what widens is called down
    return tensors + both(name + "ffn_down", layer.fc1) + both(name + "ffn_up", layer.fc2)


def tower_tensors(tower):
    tensors = []
    for i, (conv, norm) in enumerate(tower.stem):
        weight, bias = folded(conv, norm)
        tensors += [(f"v.stem.{i}.weight", weight), (f"v.stem.{i}.bias", bias)]
    tensors += [("v.patch_embd.weight", tower.patch.weight), ("v.position_embd.weight", tower.position)]
    for i, layer in enumerate(tower.layers):
        tensors += tower_layer(f"v.blk.{i}.", layer)
    return tensors + both("v.post_ln", tower.post_ln)


def decoder_layer(name, layer):
    parts = {"attn_norm": layer.attn_norm, "attn_q": layer.q, "attn_k": layer.k, "attn_v": layer.v,
             "attn_output": layer.o, "ffn_norm": layer.mlp_norm, "ffn_gate": layer.gate, "ffn_up": layer.up,
             "ffn_down": layer.down}
    return [(f"{name}{part}.weight", module.weight) for part, module in parts.items()]


def router_tensors(model, layer):
    """The router of this layer, or the "shared" one, if there is such a one."""
    if layer not in model.routers:
        return []
    router, name = model.routers[layer], "mod_router" if layer == "shared" else f"blk.{layer}.mod_router"
    if model.mode.gated:
        return [(name + ".weight", router.weight)]
    return [(name + ".weight", router.weight.unsqueeze(0)), (name + ".bias", router.bias)]


def decoder_tensors(model):
    tensors = [("token_embd.weight", model.embed.weight)]  # and the output: they are tied
    for i, layer in enumerate(model.layers):
        tensors += decoder_layer(f"blk.{i}.", layer) + router_tensors(model, str(i))
    return tensors + router_tensors(model, "shared") + [("output_norm.weight", model.norm.weight)]


def all_tensors(model):
    return (tower_tensors(model.tower) + both("mm.0", model.project1) + both("mm.2", model.project2)
            + decoder_tensors(model))


def as_array(name, tensor, f16):
    """Matrices may be binary16. A rounded router keeps other tokens, and what is small stays exact."""
    half = f16 and tensor.dim() == 2 and "router" not in name and "position" not in name
    return tensor.detach().numpy().astype(np.float16 if half else np.float32)


# ------------------------------------------------------------------- command

def check_vocabulary(model, vocabulary):
    if vocabulary.get_piece_size() != model.config.vocab:
        raise SystemExit(f"{vocabulary.get_piece_size()} pieces in the vocabulary, {model.config.vocab} in the model")


def export(model, vocabulary, path, name, f16=False):
    """Writes the model to path."""
    check_vocabulary(model, vocabulary)
    keys = general_keys(name, f16) + decoder_keys(model.config) + tower_keys(model.config)
    if model.mode is not None:
        keys += routing_keys(model)
    tensors = [(tensor_name, as_array(tensor_name, t, f16)) for tensor_name, t in all_tensors(model)]
    gguf.write(path, keys + vocabulary_keys(vocabulary), tensors)


def export_decoder(model, vocabulary, path, name):
    """A dense decoder alone, matrices in binary16."""
    check_vocabulary(model, vocabulary)
    tensors = [(tensor_name, as_array(tensor_name, t, True)) for tensor_name, t in decoder_tensors(model)]
    gguf.write(path, general_keys(name, True) + decoder_keys(model.config) + vocabulary_keys(vocabulary), tensors)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("checkpoint", help="of train.py caption, finished or not")
    parser.add_argument("--vocab", required=True, help="prefix given to train.py vocab --out")
    parser.add_argument("--out", required=True, help="GGUF file to write")
    parser.add_argument("--name", help="general.name (default: squint-caption-MODE)")
    parser.add_argument("--mode", choices=routing.MODES, help="that the file names; default: as it was trained")
    parser.add_argument("--f16", action="store_true", help="matrices in binary16")
    args = parser.parse_args()
    model = load_captioner(args.checkpoint)
    if args.mode:
        model.config.mode = args.mode
        model.mode = routing.mode_of(model.config)
    name = args.name or "squint-caption-" + model.config.mode
    export(model, data.load_vocabulary(args.vocab), args.out, name, args.f16)


if __name__ == "__main__":
    main()
