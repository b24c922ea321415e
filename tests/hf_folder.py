#!/usr/bin/env python3
"""Writes a small checkpoint of random weights, laid out and named as the released ones are.

    hf_folder.py FAMILY OUT [--seed N] [--bin] [--shards N] [--dtype bf16|f16|f32]
                            [--spelling hub|nested|flat] [--transformers]

  llava15      LLaVA-1.5 as its authors publish it, its CLIP in a folder of its own inside OUT
  llava15-hf   the same model as transformers has it; llavanext-hf: LLaVA-NeXT
  pmod15       p-MoD on LLaVA-1.5; pmodnext: on LLaVA-NeXT
  gamma-hr     gamma-MoD on LLaVA-HR; llava-hr-x: the dense LLaVA-HR-X
  gamma-mgm    gamma-MoD on Mini-Gemini-HD

mm_vision_tower names the folder OUT/clip-vit-tiny-patch14-56, which has CLIP's config.json, and its weights only with
llava15.

Needs numpy alone. The same seed gives the same bytes everywhere. Weights are spread so that activations neither die
nor grow: p-MoD's scores differ, and gamma's probabilities lie on both sides of 0.005 and of 0.5.

SPDX-License-Identifier: MIT
"""

import argparse
import json
import math
import pathlib
import re
import struct
import zipfile
import zlib

import numpy as np

D, F, HEADS, LAYERS, PMOD_LAYERS, VOCAB = 64, 128, 4, 6, 12, 320
VIT_D, VIT_F, VIT_HEADS, VIT_LAYERS, VIT_IMAGE, PATCH = 32, 64, 2, 4, 56, 14
DIMS, DEPTHS = (8, 16, 32, 64), (1, 1, 2, 1)
SIDE = 256  # LLaVA-HR's and Mini-Gemini's large picture
HF_ROWS = 384  # two tokens more than VOCAB, padded to a multiple of 64
PINPOINTS = [[w * VIT_IMAGE, h * VIT_IMAGE] for w, h in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
CLIP_FOLDER = "clip-vit-tiny-patch14-56"
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
FAMILIES = ("llava15", "llava15-hf", "llavanext-hf", "pmod15", "pmodnext", "gamma-hr", "llava-hr-x", "gamma-mgm")


def gamma_layers():
    return list(range(3, LAYERS - 1))


def pmod_layers():
    return [n for n in range(PMOD_LAYERS) if math.cos(math.pi * n / 31) / 2 + 0.5 <= 0.85]


# ------------------------------------------------------------------- tensors
#
# A tensor is (name, shape, how its weights are drawn): "norm", "bias", or the standard deviation of a matrix.

def linear(name, n, k, bias=True, gain=1.0):
    return [(f"{name}.weight", (n, k), gain / math.sqrt(k))] + ([(f"{name}.bias", (n,), "bias")] if bias else [])


def conv(name, n, k, side, bias=True):
    tensors = [(f"{name}.weight", (n, k, side, side), 1 / (side * math.sqrt(k)))]
    return tensors + ([(f"{name}.bias", (n,), "bias")] if bias else [])


def layer_norm(name, n):
    return [(f"{name}.weight", (n,), "norm"), (f"{name}.bias", (n,), "bias")]


def decoder_layer(prefix):
    tensors = []
    for part in "qkvo":
        tensors += linear(f"{prefix}self_attn.{part}_proj", D, D, False)
    for part, n, k in (("gate", F, D), ("up", F, D), ("down", D, F)):
        tensors += linear(f"{prefix}mlp.{part}_proj", n, k, False)
    return tensors + [(f"{prefix}{part}_layernorm.weight", (D,), "norm") for part in ("input", "post_attention")]


def decoder(layers=LAYERS, wrapped=(), rows=VOCAB):
    """LLaMA's tensors; p-MoD wraps the layers that it routes."""
    tensors = [("model.embed_tokens.weight", (rows, D), 1.0)]
    for n in range(layers):
        tensors += decoder_layer(f"model.layers.{n}." + ("decoder_layer." if n in wrapped else ""))
    return tensors + [("model.norm.weight", (D,), "norm"), *linear("lm_head", rows, D, False, 3.0)]


def inverse_frequencies(layers):
    return [(f"model.layers.{n}.self_attn.rotary_emb.inv_freq", (D // HEADS // 2,), "positive") for n in range(layers)]


def clip(prefix, position_ids=False):
    positions = (VIT_IMAGE // PATCH) ** 2 + 1
    tensors = [(f"{prefix}embeddings.class_embedding", (VIT_D,), 0.5),
               *conv(f"{prefix}embeddings.patch_embedding", VIT_D, 3, PATCH, False),
               (f"{prefix}embeddings.position_embedding.weight", (positions, VIT_D), 0.5)]
    if position_ids:
        tensors.append((f"{prefix}embeddings.position_ids", (1, positions), "ids"))
    tensors += layer_norm(f"{prefix}pre_layrnorm", VIT_D)
    for n in range(VIT_LAYERS):
        layer = f"{prefix}encoder.layers.{n}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            tensors += linear(f"{layer}self_attn.{part}", VIT_D, VIT_D)
        tensors += linear(f"{layer}mlp.fc1", VIT_F, VIT_D) + linear(f"{layer}mlp.fc2", VIT_D, VIT_F)
        tensors += layer_norm(f"{layer}layer_norm1", VIT_D) + layer_norm(f"{layer}layer_norm2", VIT_D)
    return tensors + layer_norm(f"{prefix}post_layernorm", VIT_D)


def whole_clip():
    """CLIP as OpenAI publishes it has a text model too; a tensor or two of it will do."""
    return (clip("vision_model.", True) + [("logit_scale", (), "positive")]
            + linear("visual_projection", 16, VIT_D, False) + linear("text_projection", 16, 16, False)
            + [("text_model.embeddings.token_embedding.weight", (8, 16), 1.0)])


def projector(name="model.mm_projector.0", second="model.mm_projector.2"):
    return linear(name, D, VIT_D) + linear(second, D, D)


def convnext(prefix, stem, stages, scale):
    """`scale` is what the repository calls the layer scale."""
    tensors = conv(f"{prefix}{stem}.0", DIMS[0], 3, 4) + layer_norm(f"{prefix}{stem}.1", DIMS[0])
    for i, (c, depth) in enumerate(zip(DIMS, DEPTHS)):
        stage = f"{prefix}{stages}.{i}."
        if i:
            tensors += layer_norm(f"{stage}downsample.0", DIMS[i - 1])
            tensors += conv(f"{stage}downsample.1", c, DIMS[i - 1], 2)
        for j in range(depth):
            block = f"{stage}blocks.{j}."
            tensors += conv(f"{block}conv_dw", c, 1, 7) + layer_norm(f"{block}norm", c)
            tensors += linear(f"{block}mlp.fc1", 4 * c, c) + linear(f"{block}mlp.fc2", c, 4 * c)
            tensors.append((f"{block}{scale}", (c,), "norm"))
    return tensors


def adapter(prefix):
    c = DIMS[-1]
    return (conv(f"{prefix}slow_conv", c, c, 1) + conv(f"{prefix}slow_proj", VIT_D, c, 1)
            + conv(f"{prefix}fast_conv", VIT_D, 1, 7) + conv(f"{prefix}fast_proj", VIT_D, VIT_D, 1)
            + linear(f"{prefix}gate.0", VIT_D // 2, 2 * VIT_D) + linear(f"{prefix}gate.2", 1, VIT_D // 2))


def hr_tower():
    tower = "model.vision_tower."
    slow = f"{tower}slow_vision_tower.vision_tower."
    tensors = clip(f"{tower}fast_vision_tower.vision_tower.vision_model.", True)
    tensors += convnext(slow, "stem", "stages", "weight")
    tensors += layer_norm(f"{slow}head.norm", DIMS[-1]) + linear(f"{slow}head.fc", 16, DIMS[-1])
    for k in range(3):
        tensors += adapter(f"{tower}align_stages_latent.{k}.")
    return (tensors + linear(f"{tower}align_stages.0.fast_proj", VIT_D, VIT_D)
            + linear(f"{tower}align_stages.0.slow_proj", VIT_D, DIMS[-1]))


def mgm_tower():
    tensors = clip("model.vision_tower.vision_tower.vision_model.")
    tensors += convnext("model.vision_tower_aux.", "vision_stem", "vision_stages", "gamma")
    for name, k in (("query", VIT_D), ("aux", sum(DIMS)), ("val", sum(DIMS))):
        tensors += layer_norm(f"model.vlm_uni_{name}_projector.0", k)
        tensors += linear(f"model.vlm_uni_{name}_projector.1", VIT_D, k)
    return tensors


def pmod_routers():
    return [t for n in pmod_layers() for t in linear(f"model.layers.{n}.router.router", 1, D, gain=0.5)]


def gamma_routers(every):
    """w1 - w0 of a normed row is to have a deviation of 6: ln(0.005 / 0.995) is -5.3."""
    layers = gamma_layers() if every else gamma_layers()[:1]
    return [(f"model.layers.{n}.router.weight", (2, D), 6 / math.sqrt(2 * D)) for n in layers]


def newline(name):
    return [(name, (D,), 1.0)]


def tensors_of(family, pickled):
    if family == "llava15":
        return decoder() + projector() + inverse_frequencies(LAYERS)
    if family in ("pmod15", "pmodnext"):
        tensors = decoder(PMOD_LAYERS, pmod_layers()) + pmod_routers() + projector()
        tensors += clip("model.vision_tower.vision_tower.vision_model.")
        return tensors + (newline("model.image_newline") if family == "pmodnext" else [])
    if family == "gamma-mgm":
        return decoder() + gamma_routers(pickled) + mgm_tower() + projector()
    if family in ("gamma-hr", "llava-hr-x"):
        routers = gamma_routers(pickled) if family == "gamma-hr" else []
        return decoder() + routers + hr_tower() + projector() + inverse_frequencies(LAYERS)
    tensors = [(f"language_model.{name}", *rest) for name, *rest in decoder(rows=HF_ROWS)]
    tensors += clip("vision_tower.vision_model.")
    tensors += projector("multi_modal_projector.linear_1", "multi_modal_projector.linear_2")
    return tensors + (newline("image_newline") if family == "llavanext-hf" else [])


def respelled(name, spelling):
    """A name on the hub as transformers spells it: since 4.52 in memory ("nested"), since 5 in files ("flat")."""
    if spelling == "flat":
        return name.replace("vision_tower.vision_model.", "vision_tower.")
    if spelling == "hub" or name == "language_model.lm_head.weight":
        return name if spelling == "hub" else "lm_head.weight"
    return "model." + name.replace("language_model.model.", "language_model.")


# ------------------------------------------------------------------- weights

def draw(seed, name, shape, kind):
    """Weights that depend on the seed and the tensor's name alone; integers for "ids"."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if kind == "ids":
        return np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
    values = rng.standard_normal(shape)
    if kind == "norm":
        values = 1 + 0.2 * values
    elif kind == "positive":
        values = np.abs(values) + 0.1
    else:
        values = values * (0.1 if kind == "bias" else kind)
    return values.astype(np.float32)


def to_bf16(x):
    """binary32 to bfloat16, nearest, ties to even, as bits."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def encoded(values, dtype):
    """(dtype of the file, array of its bits)"""
    if values.dtype == np.int64:
        return "i64", values
    if dtype == "bf16":
        return dtype, to_bf16(values).reshape(values.shape)
    return dtype, values.astype(np.float16 if dtype == "f16" else np.float32)


def shards_of(tensors, n):
    """[(name, dtype, array)] in at most n lists of about equal size."""
    total, done, shards = sum(t[2].nbytes for t in tensors), 0, [[]]
    for tensor in tensors:
        if done >= total * len(shards) / n:
            shards.append([])
        shards[-1].append(tensor)
        done += tensor[2].nbytes
    return shards


# --------------------------------------------------------------- containers

SAFETENSORS_TYPES = {"bf16": "BF16", "f16": "F16", "f32": "F32", "i64": "I64"}
TORCH_STORAGES = {"bf16": "BFloat16Storage", "f16": "HalfStorage", "f32": "FloatStorage", "i64": "LongStorage"}


def write_safetensors(path, tensors):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, dtype, array in tensors:
        header[name] = {"dtype": SAFETENSORS_TYPES[dtype], "shape": list(array.shape),
                        "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for _, _, a in tensors))


def pickled_int(v):
    return b"J" + struct.pack("<i", v)


def pickled_text(text):
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def pickled_tuple(items):
    return b"(" + b"".join(items) + b"t"


EMPTY_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def pickled_tensor(key, dtype, array):
    """What torch.save() pickles for a tensor whose storage is the archive's member data/KEY."""
    storage = pickled_tuple([pickled_text("storage"), f"ctorch\n{TORCH_STORAGES[dtype]}\n".encode(),
                             pickled_text(key), pickled_text("cpu"), pickled_int(array.size)])
    strides = [s // array.itemsize for s in array.strides]
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + pickled_tuple(
        [storage + b"Q", pickled_int(0), pickled_tuple(map(pickled_int, array.shape)),
         pickled_tuple(map(pickled_int, strides)), b"\x89", EMPTY_ORDERED_DICT]) + b"R"


def write_torch(path, tensors):
    """The zip archive that torch.save() writes for a state dict, without torch."""
    items = b"".join(pickled_text(name) + pickled_tensor(str(i), dtype, array)
                     for i, (name, dtype, array) in enumerate(tensors))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        def put(member, data):
            info = zipfile.ZipInfo(f"{path.stem}/{member}")
            header = archive.fp.tell() + 30 + len(info.filename) + 4
            padding = -header % 64  # torch's files have their data at multiples of 64
            info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
            archive.writestr(info, data)
        put("data.pkl", b"\x80\x02" + EMPTY_ORDERED_DICT + b"(" + items + b"u.")
        put("byteorder", b"little")
        for i, (_, _, array) in enumerate(tensors):
            put(f"data/{i}", array.tobytes())
        put("version", b"3\n")


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def write_weights(folder, tensors, pickled, n):
    stem, suffix, write = ("pytorch_model", "bin", write_torch) if pickled else ("model", "safetensors",
                                                                                 write_safetensors)
    shards = shards_of(tensors, n)
    if len(shards) == 1:
        write(folder / f"{stem}.{suffix}", tensors)
        return
    names = [f"{stem}-{i + 1:05}-of-{len(shards):05}.{suffix}" for i in range(len(shards))]
    for name, shard in zip(names, shards):
        write(folder / name, shard)
    weight_map = {tensor[0]: name for name, shard in zip(names, shards) for tensor in shard}
    write_json(folder / f"{stem}.{suffix}.index.json",
               {"metadata": {"total_size": sum(t[2].nbytes for t in tensors)}, "weight_map": weight_map})


# ----------------------------------------------------------------- tokenizer

TEXT = """A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed,
and polite answers to the user's questions. USER: What is in this picture? ASSISTANT: There are a cat and two dogs on
the grass near a house. USER: Describe this image in one sentence. ASSISTANT: The sun is setting over the old harbour
while the boats come in. How many people are there in the photo? What are they doing? They walk, sit and look around."""
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6


def merges(n):
    """The n pairs that byte pair encoding joins first in TEXT, ties in alphabetical order."""
    words = ["\u2581" + word for word in TEXT.split()]
    split, found = [list(word) for word in words], []
    while len(found) < n:
        counts = {}
        for word in split:
            for pair in zip(word, word[1:]):
                counts[pair] = counts.get(pair, 0) + 1
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        found.append("".join(best))
        for word in split:
            for i in range(len(word) - 1, 0, -1):
                if (word[i - 1], word[i]) == best:
                    word[i - 1:i + 1] = ["".join(best)]
    return found


def pieces():
    """[(text, score, type)], in LLaMA's order: controls, bytes, merges, characters."""
    text = "\u2581".join(["", *TEXT.split()])
    letters = sorted(set(text), key=lambda c: (-text.count(c), c))
    learnt = merges(VOCAB - 259 - len(letters)) + letters
    return ([("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
            + [(f"<0x{b:02X}>", 0.0, BYTE) for b in range(256)]
            + [(piece, -float(i), NORMAL) for i, piece in enumerate(learnt)])


def varint(v):
    v &= (1 << 64) - 1
    out = bytearray()
    while v > 127:
        out.append(v & 127 | 128)
        v >>= 7
    return bytes(out) + bytes([v])


def number(field, v):
    return varint(field << 3) + varint(v)


def blob(field, data):
    return varint(field << 3 | 2) + varint(len(data)) + data


def tokenizer_model():
    """SentencePiece's ModelProto: the pieces, how they were trained, how text is normalised."""
    body = b""
    for text, score, kind in pieces():
        piece = blob(1, text.encode()) + b"\x15" + struct.pack("<f", score)
        body += blob(1, piece + (b"" if kind == NORMAL else number(3, kind)))
    trainer = (number(3, 2) + number(4, VOCAB) + number(35, 1) + number(40, 0) + number(41, 1) + number(42, 2)
               + number(43, -1))  # BPE, size, byte fallback, unk, bos, eos, no pad
    normaliser = blob(1, b"identity") + blob(2, b"") + number(3, 1) + number(4, 0) + number(5, 1)
    return body + blob(2, trainer) + blob(3, normaliser)


def added_token(text):
    return {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
            "special": True}


def write_tokenizer(folder, length, added):
    (folder / "tokenizer.model").write_bytes(tokenizer_model())
    special = {i: added_token(text) for i, text in enumerate(["<unk>", "<s>", "</s>", *added])}
    ids = [0, 1, 2, *range(VOCAB, VOCAB + len(added))]
    write_json(folder / "tokenizer_config.json", {
        "add_bos_token": True, "add_eos_token": False,
        "added_tokens_decoder": {str(i): token for i, token in zip(ids, special.values())},
        "bos_token": "<s>", "clean_up_tokenization_spaces": False, "eos_token": "</s>", "legacy": False,
        "model_max_length": length, "pad_token": added[-1] if added else "<unk>", "padding_side": "right",
        "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>",
        "use_default_system_prompt": False})
    write_json(folder / "special_tokens_map.json", {
        "bos_token": added_token("<s>"), "eos_token": added_token("</s>"),
        "pad_token": added_token(added[-1]) if added else "<unk>", "unk_token": added_token("<unk>")})
    if added:
        write_json(folder / "added_tokens.json", {text: VOCAB + i for i, text in enumerate(added)})


# -------------------------------------------------------------------- config

def preprocessor(**more):
    return {"crop_size": {"height": VIT_IMAGE, "width": VIT_IMAGE}, "do_center_crop": True, "do_convert_rgb": True,
            "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": CLIP_MEAN,
            "image_processor_type": "CLIPImageProcessor", "image_std": CLIP_STD, "resample": 3,
            "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": VIT_IMAGE}, **more}


def clip_config():
    return {"attention_dropout": 0.0, "dropout": 0.0, "hidden_act": "quick_gelu", "hidden_size": VIT_D,
            "image_size": VIT_IMAGE, "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": VIT_F,
            "layer_norm_eps": 1e-05, "model_type": "clip_vision_model", "num_attention_heads": VIT_HEADS,
            "num_channels": 3, "num_hidden_layers": VIT_LAYERS, "patch_size": PATCH, "projection_dim": 16}


def llama_config(layers, **more):
    return {"hidden_size": D, "intermediate_size": F, "num_hidden_layers": layers, "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS, "rms_norm_eps": 1e-05, "max_position_embeddings": 4096,
            "hidden_act": "silu", "initializer_range": 0.02, "rope_scaling": None, "tie_word_embeddings": False,
            "pretraining_tp": 1, "use_cache": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **more}


def llava_config(model_type, architecture, layers, length, version, **more):
    return {"_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": [architecture], "model_type": model_type,
            **llama_config(layers, vocab_size=VOCAB), "freeze_mm_mlp_adapter": False, "image_aspect_ratio": "pad",
            "mm_hidden_size": VIT_D, "mm_projector_type": "mlp2x_gelu", "mm_use_im_patch_token": False,
            "mm_use_im_start_end": False, "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2,
            "mm_vision_tower": CLIP_FOLDER, "tokenizer_model_max_length": length, "tokenizer_padding_side": "right",
            "tune_mm_mlp_adapter": False, "use_mm_proj": True, "transformers_version": version, **more}


def pmod_config(anyres):
    more = {"rope_theta": 10000.0, "attention_bias": False, "attention_dropout": 0.0,
            "mm_patch_merge_type": "spatial_unpad" if anyres else "flat", "max_num_patches": None,
            "mod_target_layers": "shiftedcos_decay_0.85_0.15", "mod_target_layer_indices": pmod_layers(),
            "mod_router_factor": 0.5, "mod_target_token_type": "vision_all", "mod_weight_norm": "tanh_0.2_1",
            "mod_bias_enabled": True, "mod_special_init": True, "unfreeze_mm_vision_tower": True,
            "torch_dtype": "bfloat16"}
    if anyres:
        more.update(image_aspect_ratio="anyres", image_grid_pinpoints=PINPOINTS)
    return llava_config("pmod_llava_llama", "PmodLlavaLlamaForCausalLM", PMOD_LAYERS, 4096 if anyres else 2048,
                        "4.37.2", **more)


def gamma_config():
    return {"mod": {"mod_enable": True, "mod_mode": "arank_mod", "mod_layers_idx": gamma_layers(),
                    "capacity_factor": 0.5, "router_aux_loss_coef": 0.01}}


def hr_config(family):
    routed = family == "gamma-hr"
    slow = "convnext_large_mlp.clip_laion2b_ft_320" if routed else "convnext_xxlarge.clip_laion2b_soup"
    return llava_config("mod_llava_llama" if routed else "llava",
                        "MoDLLaVALlamaForCausalLM" if routed else "LlavaLlamaForCausalLM", LAYERS, 2496, "4.31.0",
                        is_multipath_encoder=True, freeze_vision=False, input_image_size=SIDE,
                        vision_tower_slow=slow, image_grid_pinpoints=None, torch_dtype="bfloat16",
                        **(gamma_config() if routed else {}))


def mgm_config():
    return llava_config("mod_mgm", "MoDMGMLlamaForCausalLM", LAYERS, 4096, "4.36.2", rope_theta=10000.0,
                        attention_bias=False, image_grid=2, image_global=True, image_size_aux=SIDE,
                        mm_hidden_size_aux=sum(DIMS), optimize_vision_tower=False, optimize_vision_tower_aux=False,
                        mm_vision_tower_aux="model_zoo/OpenAI/openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup",
                        torch_dtype="bfloat16", **gamma_config())


def hf_config(anyres):
    """As on the hub: what transformers holds to be the default is not written."""
    config = {"architectures": ["LlavaNextForConditionalGeneration" if anyres else "LlavaForConditionalGeneration"],
              "ignore_index": -100, "image_token_index": VOCAB, "model_type": "llava_next" if anyres else "llava",
              "pad_token_id": VOCAB + 1, "projector_hidden_act": "gelu",
              "text_config": {"_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"],
                              "model_type": "llama", "torch_dtype": "float16", "vocab_size": HF_ROWS,
                              "hidden_size": D, "intermediate_size": F, "num_hidden_layers": LAYERS,
                              "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "rms_norm_eps": 1e-05,
                              "max_position_embeddings": 4096},
              "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.38.0.dev0",
              "vision_config": {key: value for key, value in clip_config().items() if key not in (
                  "attention_dropout", "dropout", "hidden_act", "initializer_factor", "initializer_range",
                  "layer_norm_eps", "num_channels")},
              "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
              "image_seq_length": (VIT_IMAGE // PATCH) ** 2}
    if anyres:
        config.update(image_grid_pinpoints=PINPOINTS, use_image_newline_parameter=True)
    return config


def config_of(family):
    if family == "llava15":
        return llava_config("llava", "LlavaLlamaForCausalLM", LAYERS, 2048, "4.31.0", torch_dtype="float16")
    if family in ("pmod15", "pmodnext"):
        return pmod_config(family == "pmodnext")
    if family in ("gamma-hr", "llava-hr-x"):
        return hr_config(family)
    return mgm_config() if family == "gamma-mgm" else hf_config(family == "llavanext-hf")


def write_settings(folder, family):
    config = config_of(family)
    hf = family.endswith("-hf")
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {
        "_from_model_config": True, "bos_token_id": 1, "do_sample": True, "eos_token_id": 2, "max_length": 4096,
        "pad_token_id": VOCAB + 1 if hf else 0, "temperature": 0.9, "top_p": 0.6,
        "transformers_version": config["transformers_version"]})
    write_tokenizer(folder, config.get("tokenizer_model_max_length", 4096), ["<image>", "<pad>"] if hf else [])
    if hf:
        more = {"image_processor_type": "LlavaNextImageProcessor", "aspect_ratio_setting": "anyres", "do_pad": True,
                "image_grid_pinpoints": PINPOINTS} if family == "llavanext-hf" else {"processor_class":
                                                                                     "LlavaProcessor"}
        write_json(folder / "preprocessor_config.json", preprocessor(**more))


def write_clip(folder, seed, dtype, weights):
    """The folder that mm_vision_tower names. Only LLaVA-1.5 needs its weights: the others have tuned ones."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": 16, "logit_scale_init_value":
              2.6592, "text_config": {"model_type": "clip_text_model", "hidden_size": 16},
              "vision_config": clip_config()}
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", preprocessor())
    if weights:
        write_weights(folder, made(whole_clip(), seed, dtype), True, 1)


# ------------------------------------------------------------------- command

def drawn_as(name):
    """The copies of gamma-MoD's router are one router."""
    return re.sub(r"^model\.layers\.\d+\.router\.weight$", "model.layers.router.weight", name)


def made(tensors, seed, dtype, spelling=None):
    return [(respelled(name, spelling) if spelling else name, *encoded(draw(seed, drawn_as(name), shape, kind), dtype))
            for name, shape, kind in tensors]


def save_with_transformers(folder, family):
    """The same model once more, by the library that defines the layout."""
    import torch
    import transformers
    kind = getattr(transformers, config_of(family)["architectures"][0])
    model = kind.from_pretrained(folder, dtype=torch.float16)
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    model.save_pretrained(folder)


def write_folder(family, out, seed=0, pickled=False, shards=None, dtype=None, spelling="hub"):
    hf = family.endswith("-hf")
    dtype = dtype or ("f16" if hf or family == "llava15" else "bf16")
    shards = shards or (3 if family in ("pmod15", "pmodnext", "gamma-mgm") else 2)
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_settings(out, family)
    write_weights(out, made(tensors_of(family, pickled), seed, dtype, spelling if hf else None), pickled, shards)
    if not hf:
        write_clip(out / CLIP_FOLDER, seed, "f32", family == "llava15")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bin", action="store_true", help="pytorch_model.bin shards; gamma's with a router a layer")
    parser.add_argument("--shards", type=int)
    parser.add_argument("--dtype", choices=("bf16", "f16", "f32"), help="default: the released model's")
    parser.add_argument("--spelling", choices=("hub", "nested", "flat"), default="hub", help="of transformers' names")
    parser.add_argument("--transformers", action="store_true", help="llava*-hf: load and save it with transformers")
    args = parser.parse_args()
    write_folder(args.family, args.out, args.seed, args.bin, args.shards, args.dtype, args.spelling)
    if args.transformers:
        save_with_transformers(args.out, args.family)


if __name__ == "__main__":
    main()
