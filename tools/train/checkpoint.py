"""Captioners from the checkpoints that train.py writes.

SPDX-License-Identifier: MIT
"""

import torch

from model import Captioner, Config

PREFIX = "captioner."


def captioner_weights(checkpoint):
    """The weights of the captioner alone in a checkpoint of the caption command."""
    return {k[len(PREFIX):]: v for k, v in checkpoint["model"].items() if k.startswith(PREFIX)}


def load_captioner(path):
    """A captioner in evaluation mode, of a run that is done or not."""
    checkpoint = torch.load(path, map_location="cpu")
    weights = captioner_weights(checkpoint)
    if not weights:
        raise SystemExit(f"{path}: holds no captioner")
    model = Captioner(Config(**checkpoint["config"]))
    model.load_state_dict(weights)
    return model.eval()
