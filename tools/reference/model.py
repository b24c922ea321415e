"""Whole models: picture and ids in, stages out.

SPDX-License-Identifier: MIT
"""

import os

import torch

from reference import anyres, clip, hr, mgm, pictures
from reference.clip import silent
from reference.decoder import Decoder
from reference.folder import Weights, read_json, tensors

CONVNEXT_EPS = {"xxlarge": 1e-5, "large": 1e-6}


def is_hf(config):
    """transformers' own layout?"""
    return "text_config" in config


def decoder_config(config):
    """What transformers does not write is LLaMA's default."""
    return config["text_config"] if is_hf(config) else config


class Model:
    def __init__(self, folder, dtype=torch.float32, mode=None):
        self.config, self.dtype, self.folder = read_json(folder, "config.json"), dtype, folder
        w = Weights(tensors(folder, dtype))
        names = ("model.", "language_model.model.", "model.language_model.")
        head = w.where("", "language_model.", has="lm_head.weight")["lm_head.weight"]
        self.decoder = Decoder(w.where(*names, has="embed_tokens.weight"), head, decoder_config(self.config), mode)
        self.w = w
        self.front = self.kind()
        self.clip_config = self.config["vision_config"] if is_hf(self.config) else self.tower_config()
        self.clip = None if self.front == "hr" else self.clip_weights()

    def kind(self):
        config = self.config
        if config.get("is_multipath_encoder"):
            return "hr"
        if "image_size_aux" in config:
            return "mgm"
        if config.get("image_aspect_ratio") == "anyres" or config["model_type"] == "llava_next":
            return "anyres"
        return "crop" if is_hf(config) or config.get("image_aspect_ratio") != "pad" else "pad"

    def tower_config(self):
        config = read_json(self.folder, self.config["mm_vision_tower"], "config.json")
        return config.get("vision_config", config)

    def clip_weights(self):
        has = "embeddings.patch_embedding.weight"
        inside = ("model.vision_tower.vision_tower.vision_model.", "model.vision_tower.vision_tower.",
                  "vision_tower.vision_model.", "vision_tower.", "model.vision_tower.vision_model.",
                  "model.vision_tower.")
        if any(p + has in self.w for p in inside):
            return self.w.where(*inside, has=has)
        own = tensors(os.path.join(self.folder, self.config["mm_vision_tower"]), self.dtype)
        return Weights(own).where("vision_model.", "", has=has)

    def project(self, x):
        hf = ("multi_modal_projector.linear_1", "multi_modal_projector.linear_2")
        for prefix in ("", "model."):
            if prefix + hf[0] + ".weight" in self.w:
                return clip.project(self.w.under(prefix), hf, x)
        return clip.project(self.w.under("model.mm_projector."), ("0", "2"), x)

    def slow_eps(self):
        slow = self.config["vision_tower_slow"]
        return next(eps for name, eps in CONVNEXT_EPS.items() if name in slow)

    def see_tiles(self, image, note):
        side = self.clip_config["image_size"]
        pinpoints = self.config["image_grid_pinpoints"]
        if is_hf(self.config):
            pinpoints = [(w, h) for h, w in pinpoints]
        images, grid = pictures.anyres(image, pinpoints, side)
        features = torch.stack([self.see_one(x, i, note) for i, x in enumerate(images)])
        newline = self.w.where("model.", "", has="image_newline")["image_newline"]
        return anyres.tokens(self.project(features), grid, image.size, newline, self.config.get("max_num_patches"))

    def see_one(self, pixels, i, note):
        select = self.config.get("mm_vision_select_layer", self.config.get("vision_feature_layer", -2))
        note(f"pixels.{i}", pixels)
        return clip.forward(self.clip, self.clip_config, pixels.to(self.dtype), select,
                            lambda stage, x: note(f"tower.{i}.{stage}", x))

    def see(self, image, note=silent):
        """Rows [n][d] as the decoder gets them, and how many of them are of the whole picture."""
        config = self.config
        base = (self.clip_config["image_size"] // self.clip_config["patch_size"]) ** 2
        if self.front == "anyres":
            rows = self.see_tiles(image, note)
        elif self.front in ("hr", "mgm"):
            side = config["input_image_size"] if self.front == "hr" else config["image_size_aux"]
            pixels = pictures.normalise(pictures.square(pictures.padded(image), side))
            note("pixels", pixels)
            pixels = pixels.to(self.dtype)
            if self.front == "hr":
                x = hr.forward(self.w.under("model.vision_tower."), config, self.clip_config, pixels,
                               self.slow_eps(), note)
            else:
                x = mgm.forward(self.w.under("model."), self.clip, config, self.clip_config, pixels, note)
            rows = self.project(x)
        else:
            side = self.clip_config["image_size"]
            crop = self.front == "crop"
            shown = pictures.cropped(image, side) if crop else pictures.square(pictures.padded(image), side)
            rows = self.project(self.see_one(pictures.normalise(shown), 0, note))
        note("projected", rows)
        return rows, base if self.front == "anyres" else len(rows)

    def target(self, place, base):
        """May p-MoD skip a row? place: of a vision token, -1 for text."""
        kind = self.config.get("mod_target_token_type", "vision_hr") if "mod_target_layers" in self.config else ""
        if kind == "all":
            return torch.ones_like(place, dtype=torch.bool)
        return place >= (base if kind == "vision_hr" and self.front == "anyres" else 0)

    def prefill(self, ids, vision, base, n_logits, note=silent):
        """Logits of the last rows of a prompt."""
        x, place = self.decoder.embed(ids, vision)
        note("embd", x)
        self.decoder.set_region(len(vision))
        x = self.decoder.run(x, self.target(place, base), note)
        logits = self.decoder.logits(x[-n_logits:])
        note("logits", logits)
        return logits

    def append(self, token):
        """Logits [V] after one more token."""
        x = self.decoder.w["embed_tokens.weight"][token:token + 1]
        return self.decoder.logits(self.decoder.run(x, torch.zeros(1, dtype=torch.bool), silent))[0]
