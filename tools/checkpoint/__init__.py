"""Checkpoints as their authors publish them, made into squint's model files. See README.md.

SPDX-License-Identifier: MIT
"""
