#!/usr/bin/env python3
"""
Writes a small decoder of random weights, modes.gguf, none of whose layers routes, and what PyTorch makes of one prompt
and the words after it in every mode with it, modes.golden.gguf: for tests/test_modes.c. In a case all layers that its
schedule allows route, the first and the last too.

The golden file has a key "cases", an array of names, and vision [V][dim], prompt (ids; -1: the next vision token) and
words (ids, decoded one by one). Of each case CASE:
  CASE/...              keys and tensors that the model file lacks
  CASE.logits           of the prompt's last token and of each word: every EVERYth, [1+words][..]
  CASE.ran              bytes [layers][prompt]: which rows a layer runs
  CASE.decoded          bytes [layers][words]
  CASE.kv               [2][layers]: lengths of the caches after the prompt, and at the end

SPDX-License-Identifier: MIT
"""

import argparse
import os
from dataclasses import replace

import numpy as np
import torch

import export
import gguf
from golden import captions_to_learn, make_vocabulary, randomise
from model import Cache, Captioner, Config, Gate, Router, Trace
from routing import logit

SEED = 4
EVERY = 9  # logits kept
BASE = Config(image=32, patch=4, stem=(4,), v_dim=32, v_mlp=32, v_heads=1, v_layers=1, dim=32, mlp=64, heads=4,
              kv_heads=2, layers=5, vocab=288, context=128)
WORDS, TEXT = 20, 6
ALL = tuple(range(BASE.layers))
SCORE_MARGIN = 1e-3  # a hundred times what rounding can move

# Schedules are such that the first layer routes too, where a case does not say otherwise.
CASES = {
    "dense": {},
    "pmod": {"mode": "pmod", "factor": 0.3},
    "pmod-sigmoid": {"mode": "pmod", "norm": "sigmoid_0.5_0.75", "schedule": "shiftedlinear_decay_0.95_0.10",
                     "factor": 0.4},
    "pmod-softmax": {"mode": "pmod", "norm": "softmax_3_0.5", "schedule": "interleave"},
    "pmod-none": {"mode": "pmod", "norm": "none", "schedule": "deep_all_include_last", "factor": 0.4},
    "pmod-no-string": {"mode": "pmod", "factor": 0.3, "weigh_skipped": False},
    "gamma-released": {"mode": "gamma-released", "routed": ALL},
    "gamma-own": {"mode": "gamma-released", "routed": ALL, "shared_router": False},
    "gamma-released-mgm": {"mode": "gamma-released-mgm", "routed": ALL},
    "gamma-mgm-global": {"mode": "gamma-released-mgm", "routed": ALL, "decode_position": "global"},
    "gamma-train": {"mode": "gamma-train", "routed": ALL},
    "gamma-paper": {"mode": "gamma-paper", "routed": ALL, "skip_ratio": 0.34},
    "threshold": {"mode": "threshold", "routed": ALL},
}


# ------------------------------------------------------------------ the model

def randomise_router(module):
    """Scores of both signs; gates wide enough for some to be below 0.005."""
    if isinstance(module, Router):
        module.weight.data.normal_().mul_(0.3)
        module.bias.data.normal_().mul_(0.3)
    elif isinstance(module, Gate):
        module.weight.data.normal_().mul_(0.75)


def make_model(changes, weights):
    """A captioner with the decoder of `weights` and routers of its own."""
    model = Captioner(replace(BASE, **changes))
    torch.manual_seed(SEED + 1)
    model.apply(randomise_router)
    model.load_state_dict(weights, strict=False)
    return model.eval()


def base_model():
    torch.manual_seed(SEED)
    model = Captioner(BASE)
    model.apply(randomise)
    for tensor in model.parameters():
        tensor.data = tensor.data.half().float()  # the file has matrices in binary16
    return model.eval()


# ------------------------------------------------------------------- the runs

def margin(model, trace):
    """How near a score comes to what would change the choice."""
    nearest = np.inf
    for layer, z in trace.scores.items():
        z, ran, mode = z[0], trace.ran[layer][0], model.mode
        generated = len(z) == 1
        if generated and mode.decode == "threshold":
            nearest = min(nearest, float((z - logit(mode.decode_threshold)).abs().min()))
        elif mode.select == "threshold" and not generated:
            nearest = min(nearest, float((z - logit(mode.prefill_threshold)).abs().min()))
        elif not bool(ran.all()):
            n = BASE.tokens + 1
            kept = z[1:n][ran[1:n]]
            nearest = min(nearest, float((kept.min() - z[~ran].max()).abs())) if len(kept) else nearest
    return nearest


def ran_rows(model, trace, n):
    """bytes [layers][n]; a layer without a router runs all."""
    every = torch.ones(1, n, dtype=torch.bool)
    return np.concatenate([trace.ran.get(l, every).numpy() for l in range(model.config.layers)]).astype(np.int8)


def lengths(model, cache):
    return [cache.length(l) for l in range(model.config.layers)]


def run(model, vision, prompt, words):
    """Tensors of a case, and the margin of its choices."""
    cache, trace, t = Cache(model.config.layers), Trace(), len(prompt)
    positions = (vision.shape[1] + 1 + torch.arange(t)).unsqueeze(0)
    mask = torch.ones(1, t, t, dtype=torch.bool).tril()
    hidden = model(vision, torch.tensor([prompt]), positions, mask, cache=cache, trace=trace)
    rows, near = [model.logits(hidden[0, -1])], margin(model, trace)
    ran, kv, decoded = ran_rows(model, trace, vision.shape[1] + 1 + t), [lengths(model, cache)], []
    for word in words:
        trace = Trace()
        rows.append(model.logits(model.append([word], cache, trace)[0]))
        decoded.append(ran_rows(model, trace, 1))
        near = min(near, margin(model, trace))
    kv.append(lengths(model, cache))
    tensors = {"logits": torch.stack(rows).numpy()[:, ::EVERY], "ran": ran, "decoded": np.concatenate(decoded, 1),
               "kv": np.array(kv, np.int32)}
    return tensors, near


def check(name, model, tensors, near):
    """A case is worth something only if tokens are run and skipped, and not by a hair."""
    ran, decoded = tensors["ran"], tensors["decoded"]
    print(f"{name:20} margin {near:8.2g}  kept {ran.sum(1).tolist()} of {ran.shape[1]}, "
          f"decoded {decoded.sum(1).tolist()}, logits up to {np.abs(tensors['logits']).max():.3g}")
    assert near > SCORE_MARGIN, "scores are too close; take another seed"
    if model.mode is None:
        return
    routed = [l for l, r in enumerate(model.ratios) if r is not None]
    assert all(0 < ran[l].sum() < ran.shape[1] for l in routed), "a layer that chooses nothing; take another seed"
    if model.mode.decode == "threshold":
        assert all(0 < decoded[l].sum() < WORDS for l in routed), "a layer that chooses nothing; take another seed"


def main():
    parser = argparse.ArgumentParser(description="Writes modes.gguf and modes.golden.gguf.")
    parser.add_argument("out", help="folder to write to")
    args = parser.parse_args()
    torch.set_num_threads(1)
    vocabulary = make_vocabulary(list(captions_to_learn(np.random.default_rng(SEED), 500)), BASE.vocab)
    base = base_model()
    vision = torch.randn(1, BASE.tokens, BASE.dim).half().float()
    ids = np.random.default_rng(SEED).integers(3, BASE.vocab, TEXT + WORDS).tolist()
    prompt, words = ids[:TEXT], ids[TEXT:]
    keys = [("general.architecture", gguf.STRING, "golden"), ("cases", export.STRINGS, list(CASES))]
    tensors = [("vision", vision[0].numpy()), ("words", np.array(words, np.int32)),
               ("prompt", np.array([1] + [-1] * BASE.tokens + prompt, np.int32))]
    for name, changes in CASES.items():
        model = make_model(changes, base.state_dict())
        with torch.no_grad():
            results, near = run(model, vision, prompt, words)
        check(name, model, results, near)
        if model.mode is not None:
            keys += [(f"{name}/{key}", kind, value) for key, kind, value in export.routing_keys(model)]
        routers = [t for layer in model.routers for t in export.router_tensors(model, layer)]
        tensors += [(f"{name}/{key}", t.detach().numpy()) for key, t in routers]
        tensors += [(f"{name}.{key}", t) for key, t in results.items()]
    gguf.write(os.path.join(args.out, "modes.golden.gguf"), keys, [(n, np.ascontiguousarray(t)) for n, t in tensors])
    export.export_decoder(base, vocabulary, os.path.join(args.out, "modes.gguf"), "modes")


if __name__ == "__main__":
    main()
