"""How a decoder routes: p-MoD (arXiv 2412.04449), gamma-MoD (2410.13859), MoDification (2410.14268), as a table.

SPDX-License-Identifier: MIT
"""

import math
import re
from dataclasses import dataclass, replace

import torch

PRD = "shiftedcos_decay_0.85_0.15"  # p-MoD's progressive ratio decay, as released


@dataclass(frozen=True)
class Mode:
    """A row of the table."""
    gated: bool                  # the score is a gate's, of the normed row; else a router's, of the residual stream
    competes: str                # who may be skipped: "vision", "all", or a "region": the picture and what is before
    select: str                  # who stays: a "ratio" of the best, all but a "capacity", those above a "threshold"
    weigh_skipped: bool = False  # the weight, always on the MLP branch of what is run, is on skipped rows too
    weigh_attention: bool = False
    renumber: bool = False       # rows that a layer runs get positions without gaps
    decode: str = "prefill"      # a generated token is run by the rule of the prompt, "always", or above a "threshold"
    decode_local: bool = False   # at the length of the layer's own cache
    at_threshold: bool = False   # >= in place of >, for prompts; generation always has >=
    prefill_threshold: float = 0.0
    decode_threshold: float = 0.0


MODES = {
    "dense": None,
    "pmod": Mode(False, "vision", "ratio", weigh_skipped=True),
    "gamma-released": Mode(True, "all", "threshold", renumber=True, decode="threshold", decode_local=True,
                           prefill_threshold=0.005, decode_threshold=0.5),
    "gamma-released-mgm": Mode(True, "all", "threshold", renumber=True, decode="always", decode_local=True,
                               prefill_threshold=0.005),
    "gamma-train": Mode(True, "region", "capacity", renumber=True, decode="threshold", decode_local=True,
                        decode_threshold=0.5),
    "gamma-paper": Mode(True, "vision", "capacity", renumber=True, decode="always", decode_local=True),
    "threshold": Mode(True, "all", "threshold", weigh_attention=True, decode="threshold", at_threshold=True,
                      prefill_threshold=0.5, decode_threshold=0.5),
}


def mode_of(config):
    """The configuration's row, with what it says otherwise; None: dense."""
    mode = MODES[config.mode]
    if mode is None:
        return None
    thresholds = ("prefill_threshold", "decode_threshold")
    changes = {name: getattr(config, name) for name in thresholds if getattr(config, name)}
    if config.decode_position:
        changes["decode_local"] = config.decode_position == "local"
    if not config.protect_text and mode.competes == "region":
        changes["competes"] = "all"
    return replace(mode, weigh_skipped=mode.weigh_skipped and config.weigh_skipped, **changes)


# ----------------------------------------------------------------- schedules

def scheduled(layers, schedule, factor, last=None):
    """
    Per layer the part of the vision tokens that it keeps, None where it does not route. A decay ends at layer `last`;
    None: the last one.
    """
    whole = {"deep_all": range(2, layers - 1), "deep_all_include_last": range(2, layers),
             "interleave": range(1, layers, 2)}
    if schedule in whole:
        return [factor if l in whole[schedule] else None for l in range(layers)]
    match = re.match(r"(\w+)_decay_(\d+\.\d+)_(\d+\.\d+)", schedule)
    last = last or max(layers - 1, 1)
    shapes = {"shiftedcos": lambda l: math.cos(math.pi * l / last) / 2 + factor,
              "shiftedlinear": lambda l: 0.5 - l / last + factor}
    if not match or match.group(1) not in shapes:
        raise ValueError(f"{schedule}: no schedule")
    shape, top, low = shapes[match.group(1)], float(match.group(2)), float(match.group(3))
    return [max(shape(l), low) if shape(l) <= top else None for l in range(layers)]


def ratios(config):
    """Per layer None: it does not route; else the part that it keeps, 1 where no schedule says."""
    mode = MODES[config.mode]
    if mode is None:
        return [None] * config.layers
    if mode.gated:
        return [1.0 if l in config.routed else None for l in range(config.layers)]
    return scheduled(config.layers, config.schedule, config.factor)


# ------------------------------------------------------------------- weights

def parse_norm(text):
    """(type, scale, bias) of p-MoD's `mod_weight_norm`."""
    match = re.match(r"(\w+)_(\d+\.\d+|\d+)_(-?\d+\.\d+|-?\d+)", text)
    return (match.group(1), float(match.group(2)), float(match.group(3))) if match else (text, 1.0, 1.0)


def weights(config, mode, z, scored):
    """What scores z [B,N] weigh; those of rows without a score mean nothing."""
    if mode.gated:
        return torch.sigmoid(z)
    kind, scale, bias = parse_norm(config.norm)
    kinds = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "none": lambda x: x,
             "softmax": lambda x: x.masked_fill(~scored, float("-inf")).softmax(-1) if bool(scored.any()) else x}
    return scale * kinds[kind](z) + bias


# ----------------------------------------------------------------- selection

def kept_count(n, ratio):
    """trunc(float32(n) * float32(ratio)), the product in binary32."""
    return int(torch.tensor(float(n)) * torch.tensor(ratio, dtype=torch.float32))


def logit(p):
    return math.log(p / (1 - p))


def passes(z, threshold, at):
    return z >= logit(threshold) if at else z > logit(threshold)


def region(config):
    """BOS and the picture: the rows that compete in gamma's training."""
    return config.tokens + 1


def competing(config, mode, rows):
    """Rows [B,N] that may be skipped when there is not room for all."""
    if mode.competes == "vision":
        return rows.vision
    if mode.competes == "all":
        return rows.real
    n = rows.where.shape[1]
    inside = torch.arange(n).expand(rows.where.shape) < region(config)
    return inside if rows.first and n > region(config) else torch.zeros_like(inside)


def best(z, compete, keep):
    """bool [B,N]: the keep[b] best of those that compete; the lower index wins a tie."""
    order = torch.sort(z.masked_fill(~compete, float("-inf")), dim=-1, descending=True, stable=True)[1]
    place = torch.argsort(order, -1)
    return compete & (place < torch.tensor(keep).unsqueeze(1))


def choose(config, mode, ratio, z, rows):
    """bool [B,N]: the rows that a layer runs."""
    if rows.generated and mode.decode == "always":
        return torch.ones_like(rows.real)
    if rows.generated and mode.decode == "threshold":
        return passes(z, mode.decode_threshold, True)
    if mode.select == "threshold":
        return passes(z, mode.prefill_threshold, mode.at_threshold)
    compete = competing(config, mode, rows)
    counts = compete.sum(1).tolist()
    if mode.select == "ratio":
        keep = [kept_count(n, ratio) for n in counts]
    else:
        keep = [n - math.floor(n * config.skip_ratio) for n in counts]
    return ~compete | best(z, compete, keep)
