"""LLaVA, p-MoD and gamma-MoD models in PyTorch, straight from Hugging Face folders: what squint is compared with.

Written to be read next to the papers' code, not to be fast: one sequence at a time, weights by the names that they have
in the checkpoint, no modules. What a function computes on its way it tells `note(stage, value)`; stages are named as in
a dump (tools/squint/compare.c).

SPDX-License-Identifier: MIT
"""
