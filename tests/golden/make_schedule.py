#!/usr/bin/env python3
"""Golden ratios and counts of tests/test_schedule.c, from p-MoD's formulas (arXiv 2412.04449) in Python and PyTorch.

    python3 tests/golden/make_schedule.py > tests/golden/schedule.txt

A line: schedule, factor, keep, layers, vision tokens; then for each layer the ratio's bits in binary32 and the number of
tokens kept. Counts are what PyTorch makes of a tensor of integers times a Python float: a product in binary32, truncated.
"""
import math

import numpy as np
import torch

CASES = [
    ("cos:0.85:0.15", 0.5, 1, 32, 576),
    ("cos:0.85:0.15", 0.5, 1, 32, 2880),
    ("cos:0.85:0.15", 0.5, 1, 32, 2365),  # layer 10: 1808, not 1807 as in binary64
    ("cos:0.85:0.15", 0.5, 1, 32, 5584),  # layer 9: 4501, not 4500
    ("linear:0.85:0.15", 0.5, 1, 32, 576),
    ("cos:0.85:0.15", 0.5, 1, 8, 81),
    ("cos:0.6:0", 0.25, 1, 24, 577),
    ("linear:1:0.05", 0.75, 1, 40, 1000),
    ("linear:0.5:0", 0.5, 1, 3, 101),  # 0.5 is not above the highest
    ("cos:0.9:0.1", 0.5, 1, 1, 100),
    ("const:0.29", 0.5, 1, 2, 100),  # 29, not 28
    ("const:0", 0.5, 1, 3, 100),
    ("list:1,0.5,0.25,.125,0", 0.5, 1, 5, 577),
    ("cos:0.85:0.15", 0.5, 0.5, 32, 576),
    ("linear:0.85:0.15", 0.5, 1.7, 32, 2880),
    ("const:0.3", 0.5, 0.7, 2, 1000),
    ("const:0.001", 0.5, 1000, 2, 4000),
]


def ratios(schedule, factor, layers):
    kind, *numbers = schedule.split(":")
    if kind == "list":
        return [float(r) for r in numbers[0].split(",")]
    if kind == "const":
        return [float(numbers[0])] * layers
    highest, lowest = map(float, numbers)
    last = max(layers - 1, 1)
    s = [(math.cos(math.pi * l / last) / 2 if kind == "cos" else 0.5 - l / last) + factor for l in range(layers)]
    return [max(v, lowest) if v <= highest else 1.0 for v in s]


for schedule, factor, keep, layers, n in CASES:
    line = f"{schedule} {factor} {keep} {layers} {n}"
    for ratio in ratios(schedule, factor, layers):
        kept = min(np.float32(1), np.float32(ratio) * np.float32(keep))
        line += f" {kept.view(np.uint32):08x} {min(n, int((torch.tensor(n) * float(kept)).trunc()))}"
    print(line)
