"""LLaMA's decoder, and the layers that p-MoD and gamma-MoD make of some of its own.

SPDX-License-Identifier: MIT
"""

import math
import re

import numpy as np

from .recipe import BOOL, BOOLS, F32, F32S, STRING, U32

SCHEDULE = re.compile(r"(\w+)_decay_(\d+\.\d+)_(\d+\.\d+)")
NORM = re.compile(r"(\w+)_(\d+\.\d+|\d+)_(-?\d+\.\d+|-?\d+)")
SCHEDULE_STEPS = 31  # in p-MoD's code, whatever the depth
SYSTEM_TOKENS = 35  # before the picture, as gamma-MoD's LLaVA-HR counts them


class Shape:
    """The decoder's sizes, from the keys of a LlamaConfig."""

    def __init__(self, config):
        self.config = config
        self.d, self.f = config.positive("hidden_size"), config.positive("intermediate_size")
        self.layers, self.heads = config.positive("num_hidden_layers"), config.positive("num_attention_heads")
        self.kv_heads = config.positive("num_key_value_heads", self.heads)
        self.head_dim = config.positive("head_dim", max(self.d // self.heads, 1))
        self.vocab = config.positive("vocab_size")
        self.context = config.positive("max_position_embeddings")
        self.eps, self.theta = config.get("rms_norm_eps", float), rope_theta(config)
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise config.broken("num_attention_heads", f"is {self.heads}, which does not go with the other sizes")
        config.only("hidden_act", str, "silu")
        config.only("attention_bias", bool, False)
        config.only("mlp_bias", bool, False)


def rope_theta(config):
    """Newer files have it in rope_parameters. Scaled positions squint does not know."""
    if config.has("rope_scaling"):
        raise config.broken("rope_scaling", "is set; squint runs only unscaled positions")
    if not config.has("rope_parameters"):
        return config.get("rope_theta", float, 10000.0)
    rope = config.section("rope_parameters")
    rope.only("rope_type", str, "default")
    return rope.get("rope_theta", float, 10000.0)


def keys(recipe, s):
    recipe.keys += [
        ("llama.context_length", U32, s.context),
        ("llama.embedding_length", U32, s.d),
        ("llama.block_count", U32, s.layers),
        ("llama.feed_forward_length", U32, s.f),
        ("llama.attention.head_count", U32, s.heads),
        ("llama.attention.head_count_kv", U32, s.kv_heads),
        ("llama.attention.layer_norm_rms_epsilon", F32, s.eps),
        ("llama.rope.dimension_count", U32, s.head_dim),
        ("llama.rope.freq_base", F32, s.theta),
        ("llama.vocab_size", U32, s.vocab),
    ]


def layer(recipe, s, n, source):
    name, q, kv = f"blk.{n}.", s.heads * s.head_dim, s.kv_heads * s.head_dim
    recipe.add(f"{name}attn_norm.weight", (s.d,), f"{source}input_layernorm.weight")
    for part, rows, k, more in (("q", q, s.d, {"heads": s.heads}), ("k", kv, s.d, {"heads": s.kv_heads}),
                                ("v", kv, s.d, {})):
        recipe.linear(f"{name}attn_{part}", rows, k, f"{source}self_attn.{part}_proj", False, **more)
    recipe.linear(f"{name}attn_output", s.d, q, f"{source}self_attn.o_proj", False)
    recipe.add(f"{name}ffn_norm.weight", (s.d,), f"{source}post_attention_layernorm.weight")
    recipe.linear(f"{name}ffn_gate", s.f, s.d, f"{source}mlp.gate_proj", False)
    recipe.linear(f"{name}ffn_up", s.f, s.d, f"{source}mlp.up_proj", False)
    recipe.linear(f"{name}ffn_down", s.d, s.f, f"{source}mlp.down_proj", False)


def parts(recipe, s, tensors, wrapped=()):
    """@param wrapped  layers whose tensors lie in a decoder_layer"""
    recipe.add("token_embd.weight", (s.vocab, s.d), "model.embed_tokens.weight")
    for n in range(s.layers):
        layer(recipe, s, n, f"model.layers.{n}." + ("decoder_layer." if n in wrapped else ""))
    recipe.add("output_norm.weight", (s.d,), "model.norm.weight")
    if "lm_head.weight" in tensors or not s.config.get("tie_word_embeddings", bool, False):
        recipe.linear("output", s.vocab, s.d, "lm_head", False)
    recipe.drops.append(("*.rotary_emb.inv_freq", "follows from rope_theta"))


# ---------------------------------------------------------------------- p-MoD

def ratios(config, layers):
    """The share of tokens that each layer keeps, None where it keeps all without a router."""
    text, factor = config.get("mod_target_layers", str), config.get("mod_router_factor", float)
    constant = {"deep_all": range(2, layers - 1), "deep_all_include_last": range(2, layers),
                "interleave": range(1, layers, 2)}
    if text in constant:
        return [factor if n in constant[text] else None for n in range(layers)]
    found = SCHEDULE.match(text)
    curves = {"shiftedcos": lambda n: math.cos(math.pi * n / SCHEDULE_STEPS) / 2 + factor,
              "shiftedlinear": lambda n: 0.5 - n / SCHEDULE_STEPS + factor}
    if not found or found[1] not in curves:
        raise config.broken("mod_target_layers", f'is "{text[:60]}"; known are shiftedcos_decay_A_B, '
                            "shiftedlinear_decay_A_B (A and B with a decimal point), deep_all, "
                            "deep_all_include_last and interleave")
    most, least = float(found[2]), float(found[3])
    shares = [curves[found[1]](n) for n in range(layers)]
    return [max(share, least) if share <= most else None for share in shares]


def check_ratios(config, shares):
    for n, share in enumerate(shares):
        if share is not None and not 0 <= np.float32(share) <= 1:
            raise config.broken("mod_router_factor", f"makes layer {n} keep {share:g} of its tokens, not from 0 to 1")
    listed = config.get("mod_target_layer_indices", list, None)
    routed = [n for n, share in enumerate(shares) if share is not None]
    if listed is not None and listed != routed:
        raise config.broken("mod_target_layer_indices", f"is {str(listed)[:60]}, but mod_target_layers makes {routed}; "
                            "one of them was changed")


def norm_keys(recipe, config):
    text = config.get("mod_weight_norm", str)
    found = NORM.match(text)
    kind, scale, bias = (found[1], float(found[2]), float(found[3])) if found else (text, 1.0, 1.0)
    if kind not in ("tanh", "sigmoid", "softmax", "none"):
        raise config.broken("mod_weight_norm", f'is "{text[:60]}"; known are tanh, sigmoid, softmax and none, as in '
                            "tanh_0.2_1")
    recipe.keys += [("mod.norm.type", STRING, kind), ("mod.norm.scale", F32, scale), ("mod.norm.bias", F32, bias)]


def target(config, anyres):
    """Without tiles all of a picture's tokens are alike."""
    word = config.get("mod_target_token_type", str, "vision_hr")
    if word not in ("vision_all", "vision_hr", "all"):
        raise config.broken("mod_target_token_type", f'is "{word[:60]}"; known are vision_all, vision_hr and all')
    return "vision_all" if word == "vision_hr" and not anyres else word


def pmod(recipe, s, anyres):
    """Keys and routers of p-MoD. Returns the layers that route."""
    config, shares = s.config, ratios(s.config, s.layers)
    check_ratios(config, shares)
    routed = [n for n, share in enumerate(shares) if share is not None]
    recipe.keys += [
        ("mod.version", U32, 1),
        ("mod.type", STRING, "pmod"),
        ("mod.mode", STRING, "pmod"),
        ("mod.layer_is_mod", BOOLS, [share is not None for share in shares]),
        ("mod.layer_ratio", F32S, [1.0 if share is None else share for share in shares]),
    ]
    norm_keys(recipe, config)
    recipe.keys += [
        ("mod.router.input", STRING, "hidden"),
        ("mod.router.outputs", U32, 1),
        ("mod.router.shared", BOOL, False),
        ("mod.target", STRING, target(config, anyres)),
        ("mod.weight.apply", STRING, "mlp+skip"),
        ("mod.position", STRING, "original"),
        ("mod.prefill.select", STRING, "topk"),
        ("mod.decode.rule", STRING, "dense"),
        ("mod.decode.position", STRING, "global"),
        ("mod.schedule", STRING, config.get("mod_target_layers", str)),
        ("mod.schedule.factor", F32, config.get("mod_router_factor", float)),
    ]
    bias = config.get("mod_bias_enabled", bool)
    for n in routed:
        recipe.linear(f"blk.{n}.mod_router", 1, s.d, f"model.layers.{n}.router.router", bias)
    return routed


# ------------------------------------------------------------------ gamma-MoD

def gamma_layers(config, layers):
    mod = config.section("mod")
    mod.only("mod_enable", bool, True)
    listed = mod.get("mod_layers_idx", list)
    if not listed or not all(type(n) is int and 0 <= n < layers for n in listed) or len(set(listed)) != len(listed):
        raise mod.broken("mod_layers_idx", f"is {str(listed)[:60]}, no list of layers from 0 to {layers - 1}")
    return sorted(listed)


def shared_router(recipe, s, routed, tensors):
    """One module in all layers: files list one copy of it, or one a layer, and all must be the same."""
    names = [f"model.layers.{n}.router.weight" for n in routed]
    copies = [name for name in names if name in tensors] or names[:1]
    recipe.add("mod_router.weight", (2, s.d), copies[0], equal=tuple(copies[1:]))


def gamma(recipe, s, tensors, mgm, n_vision, skip_ratio):
    """Keys and router of gamma-MoD, as released for LLaVA-HR or Mini-Gemini (`mgm`)."""
    routed = gamma_layers(s.config, s.layers)
    recipe.keys += [
        ("mod.version", U32, 1),
        ("mod.type", STRING, "gamma"),
        ("mod.mode", STRING, "gamma-released-mgm" if mgm else "gamma-released"),
        ("mod.layer_is_mod", BOOLS, [n in routed for n in range(s.layers)]),
        ("mod.layer_ratio", F32S, [1.0] * s.layers),
        ("mod.router.input", STRING, "attn_norm"),
        ("mod.router.outputs", U32, 2),
        ("mod.router.shared", BOOL, True),
        ("mod.target", STRING, "all"),
        ("mod.weight.apply", STRING, "mlp"),
        ("mod.position", STRING, "compressed"),
        ("mod.prefill.select", STRING, "threshold"),
        ("mod.prefill.threshold", F32, 0.005),
        ("mod.decode.rule", STRING, "always" if mgm else "threshold"),
        ("mod.decode.position", STRING, "local"),
        ("mod.capacity.region", U32, n_vision + (0 if mgm else SYSTEM_TOKENS)),
    ]
    if not mgm:
        recipe.key("mod.decode.threshold", F32, 0.5)
    if skip_ratio is not None:
        recipe.key("mod.capacity.skip_ratio", F32, skip_ratio)
    shared_router(recipe, s, routed, tensors)
