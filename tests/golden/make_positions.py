#!/usr/bin/env python3
"""Golden of tests/test_convert.py: a position table resampled by PyTorch as LLaVA-HR resamples CLIP's.

    python3 tests/golden/make_positions.py > tests/golden/positions.txt

A line: sides before and after, then the map of two channels after, row by row. Before, element m of the map (row, column,
channel) is sin(m * m + m) in binary32. PyTorch 1.13 and 2.15 differ by 1e-6.

SPDX-License-Identifier: MIT
"""

import torch

for before, after in ((4, 8), (24, 32), (6, 5), (1, 3)):
    m = torch.arange(before * before * 2, dtype=torch.float64)
    table = torch.sin(m * m + m).float().reshape(1, before, before, 2).permute(0, 3, 1, 2)
    out = torch.nn.functional.interpolate(table, size=(after, after), mode="bicubic", antialias=True,
                                          align_corners=False)
    values = out[0].permute(1, 2, 0).flatten().tolist()
    print(before, after, *(f"{v:.7g}" for v in values))
