#!/usr/bin/env python3
"""
Training, in the order of the commands:

  vocab    SentencePiece model from all captions
  tower    the vision tower alone: what covers each cell of a drawn scene, Tiny-ImageNet's names, the words of a
           photo's captions
  features what the finished tower says of every picture, so that decoders can be trained without it
  caption  projector and decoder, with the tower or on its features, on drawn scenes and photos; --mode pmod or
           gamma-train trains a decoder that routes

Every run saves as it goes and goes on from its last save when started again with the same --out.

SPDX-License-Identifier: MIT
"""

import argparse
import math
import os
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import data
import routing
import scenes
from checkpoint import captioner_weights
from model import Captioner, Config, Tower, Trace, normalise

SAVE_EVERY_S = 180
WORDS = 1000
# What a cell of a drawn scene may show, nothing included: shape, colour, size.
CELL_CLASSES = tuple(len(c) + 1 for c in (scenes.SHAPES, scenes.COLOURS, scenes.SIZES))


class Run:
    """Steps of one optimiser, with schedule, clipping, log and saves."""

    def __init__(self, args, model, groups, config):
        self.args, self.model, self.config = args, model, config
        self.optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.02)
        for group in self.optimiser.param_groups:
            group["peak"] = group["lr"]
        self.step, self.saved, self.started = 0, time.time(), time.time()
        self.sums = {}
        if os.path.exists(args.out):
            state = torch.load(args.out, map_location="cpu")
            if "optimiser" not in state:
                print(f"{args.out} is finished")
                sys.exit()
            model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step = state["step"]
            print(f"going on at step {self.step}", flush=True)

    def rng(self):
        """Fresh and the same for this step in every run of this seed."""
        return np.random.default_rng([self.args.seed, self.step])

    def schedule(self):
        """Linear warm-up, then cosine to --final of the peak."""
        done = self.step / self.args.steps
        warm = min(1.0, (self.step + 1) / self.args.warmup)
        return warm * (self.args.final + (1 - self.args.final) * (1 + math.cos(math.pi * done)) / 2)

    def update(self, losses):
        """One step along the gradients that are there; losses are for the log."""
        for name, value in losses.items():
            self.sums.setdefault(name, []).append(value.item())
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * self.schedule()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        if self.step % self.args.log_every == 0:
            self.log()
        if time.time() - self.saved > SAVE_EVERY_S:
            self.save()

    def log(self):
        means = " ".join(f"{k} {np.mean(v):.4f}" for k, v in self.sums.items())
        print(f"step {self.step} {time.time() - self.started:.0f} s: {means}", flush=True)
        self.sums = {}

    def save(self, finished=False):
        """Replaces the file only when the new one is whole."""
        self.saved = time.time()
        state = {"model": self.model.state_dict(), "step": self.step, "config": self.config.to_dict()}
        if not finished:
            state["optimiser"] = self.optimiser.state_dict()
        torch.save(state, self.args.out + ".new")
        os.replace(self.args.out + ".new", self.args.out)


# --------------------------------------------------------------------- vocab

def vocab(args):
    _, photo_texts = data.load_photos(args.flickr, "train", 8)
    drawn = data.Scenes(args.scenes)
    lines = [t for texts in photo_texts for t in texts]
    lines += [drawn.caption(i) for i in range(min(len(drawn), 8000))]
    os.makedirs(os.path.dirname(os.path.abspath(args.out)), exist_ok=True)
    data.train_vocabulary(args.out, lines, args.size)


def part(state, prefix):
    """The weights of one module of a state dict."""
    return {k[len(prefix):]: v for k, v in state.items() if k.startswith(prefix)}


# --------------------------------------------------------------------- tower

class TowerTasks(nn.Module):
    """A tower and the three heads that teach it."""

    def __init__(self, config, classes, words):
        super().__init__()
        self.tower = Tower(config)
        self.cells = nn.Linear(config.v_dim, sum(CELL_CLASSES))
        self.names = nn.Linear(config.v_dim, classes)
        self.words = nn.Linear(config.v_dim, words)

    def cell_loss(self, tokens, targets):
        parts = self.cells(tokens).float().split(CELL_CLASSES, -1)
        covered = targets[..., 0] > 0
        loss, right = 0.0, torch.ones_like(covered)
        weight = torch.where(covered, 3.0, 0.5)
        for i, part in enumerate(parts):
            each = F.cross_entropy(part.flatten(0, 1), targets[..., i].flatten(), reduction="none")
            loss = loss + (each * weight.flatten()).mean()
            right &= part.argmax(-1) == targets[..., i]
        return loss, right[covered].float().mean()


def tiles_batch(tiles, rng, count, side):
    """Random tiles, cropped, mirrored and enlarged to the model's input."""
    pick = rng.integers(0, len(tiles), count)
    part = normalise(torch.from_numpy(data.crop_and_flip(tiles[pick], 56, rng, rng.random(count) < 0.5)))
    return F.interpolate(part, (side, side), mode="bilinear", align_corners=False), pick


def tower(args):
    config = Config()
    drawn = data.Scenes(args.scenes)
    pictures, texts = data.load_photos(args.flickr, "train", data.PHOTO_SIDE)
    targets = data.word_targets(texts, data.content_words(texts, WORDS))
    tiles, labels, names = data.load_tiles(args.tiny, "train")
    torch.manual_seed(args.seed)
    model = TowerTasks(config, len(names), WORDS)
    if args.init:
        model.load_state_dict(part(torch.load(args.init, map_location="cpu")["model"], "heads."))
    run = Run(args, model, [{"params": model.parameters(), "lr": args.lr}], config)
    n_scenes, n_tiles, n_photos = args.batch
    while run.step < args.steps:
        rng = run.rng()
        index = np.sort(rng.integers(0, len(drawn), n_scenes))
        drawn_pixels = normalise(torch.from_numpy(data.jitter(drawn.pictures[index], rng)))
        tile_pixels, tile_pick = tiles_batch(tiles, rng, n_tiles, config.image)
        pick = rng.integers(0, len(pictures), n_photos)
        photo = data.crop_and_flip(pictures[pick], config.image, rng, rng.random(n_photos) < 0.5)
        photo_pixels = normalise(torch.from_numpy(data.jitter(photo, rng)))
        with torch.autocast("cpu", torch.bfloat16):
            tokens = model.tower(torch.cat((drawn_pixels, tile_pixels, photo_pixels)))
            a, b = n_scenes, n_scenes + n_tiles
            cell, right = model.cell_loss(tokens[:a], torch.from_numpy(drawn.cell_targets(index)))
            pooled = tokens.mean(1)
            name = F.cross_entropy(model.names(pooled[a:b]).float(), torch.from_numpy(labels[tile_pick]))
            word = F.binary_cross_entropy_with_logits(model.words(pooled[b:]).float(),
                                                      torch.from_numpy(targets[pick]))
        (cell + 0.3 * name + 30 * word).backward()
        run.update({"cell": cell, "right": right, "name": name, "word": word})
    run.save(finished=True)


# ------------------------------------------------------------------ features

@torch.no_grad()
def tower_tokens(model, pictures):
    """What the tower says of uint8 pictures [N,H,W,3], as float16 [N,n,v_dim]."""
    out = torch.empty(len(pictures), model.config.tokens, model.config.v_dim, dtype=torch.float16)
    for i in range(0, len(pictures), 64):
        with torch.autocast("cpu", torch.bfloat16):
            out[i:i + 64] = model.tower(normalise(torch.from_numpy(np.array(pictures[i:i + 64]))))
    return out


def features(args):
    model = Captioner(Config())
    model.tower.load_state_dict(part(torch.load(args.tower, map_location="cpu")["model"], "tower."))
    model.eval()
    pictures, _ = data.load_photos(args.flickr, "train", model.config.image)
    torch.save({"scenes": tower_tokens(model, data.Scenes(args.scenes).pictures),
                "photos": tower_tokens(model, pictures),
                "mirrored": tower_tokens(model, pictures[:, :, ::-1])}, args.out)


# ------------------------------------------------------------------- caption

class CaptionData:
    """Packed sequences of both worlds, with pictures."""

    def __init__(self, args, config):
        self.vocabulary = data.load_vocabulary(args.vocab)
        self.config = config
        self.start = self.vocabulary.encode("\n")
        self.drawn = data.Scenes(args.scenes)
        self.chance = self.drawn.chances(args.counts) if args.counts else None
        self.load_pictures(args)

    def load_pictures(self, args):
        self.pictures, self.texts = data.load_photos(args.flickr, "train", data.PHOTO_SIDE)

    def rows(self, captions):
        return data.pack(self.vocabulary.encode(captions), self.start, self.config.tokens + 1)

    def drawn_inputs(self, index, rng):
        return normalise(torch.from_numpy(data.jitter(self.drawn.pictures[index], rng)))

    def photo_inputs(self, pick, flip, rng):
        pixels = data.crop_and_flip(self.pictures[pick], self.config.image, rng, flip)
        return normalise(torch.from_numpy(data.jitter(pixels, rng)))

    def scenes_batch(self, rng, count):
        index = np.sort(rng.choice(len(self.drawn), count, p=self.chance))
        return index, self.drawn_inputs(index, rng), data.collate([self.rows([self.drawn.caption(i)]) for i in index])

    def photos_batch(self, rng, count):
        pick, flip = rng.integers(0, len(self.texts), count), rng.random(count) < 0.5
        rows = [self.rows([data.mirrored(t) if f else t for t in self.texts[i]]) for i, f in zip(pick, flip)]
        return self.photo_inputs(pick, flip, rng), data.collate(rows)


class FeatureData(CaptionData):
    """The same with the tower's tokens in place of pictures."""

    def load_pictures(self, args):
        self.features = torch.load(args.features, map_location="cpu")
        self.texts = data.load_texts(args.flickr, "train")

    def drawn_inputs(self, index, rng):
        return self.features["scenes"][index].float()

    def photo_inputs(self, pick, flip, rng):
        flip = torch.from_numpy(flip).view(-1, 1, 1)
        return torch.where(flip, self.features["mirrored"][pick], self.features["photos"][pick]).float()


def routing_loss(trace, real):
    """gamma's: how badly the gates foretell which rows run; the mean over rows, summed over layers."""
    return sum(F.binary_cross_entropy_with_logits(z[real], trace.ran[layer][real].float())
               for layer, z in trace.scores.items())


def caption_losses(model, tokens, sequence):
    """Mean cross-entropy of the caption tokens, from the tower's tokens; the routing loss of gates."""
    text, target, position, mask = sequence
    trace = Trace()
    hidden = model(model.project(tokens), text, position, mask, trace=trace)
    chosen = target >= 0
    words = F.cross_entropy(model.logits(hidden[chosen]).float(), target[chosen])
    if model.mode is None or not model.mode.gated:
        return words, None
    prefix = torch.ones(len(text), tokens.shape[1] + 1, dtype=torch.bool)
    return words, routing_loss(trace, torch.cat((prefix, position > 0), 1))


def load_teacher(args, config):
    """The tower and its heads as the tower command left them; the heads go on teaching the tower."""
    state = torch.load(args.tower, map_location="cpu")["model"]
    tasks = TowerTasks(config, state["names.bias"].numel(), state["words.bias"].numel())
    tasks.load_state_dict(state)
    return tasks


def start_weights(args, model):
    """Weights of an earlier captioner; routers that it has not are new. The tower comes from --tower."""
    if args.init:
        state = captioner_weights(torch.load(args.init, map_location="cpu"))
        missing, unexpected = model.load_state_dict(state, strict=False)
        strange = [k for k in missing if not k.startswith("routers.")] + unexpected
        if strange:
            raise SystemExit(f"{args.init}: not a captioner of these shapes: {strange[:3]}")


class CaptionTasks(nn.Module):
    """A captioner and the heads that keep teaching its tower; with features the tower is only carried along."""

    def __init__(self, args, config):
        super().__init__()
        self.captioner = Captioner(config)
        start_weights(args, self.captioner)
        teacher = load_teacher(args, config)
        self.captioner.tower = teacher.tower
        self.frozen = args.features is not None
        self.heads = None if self.frozen else teacher

    def parameter_groups(self, lr, tower_rate):
        """The tower learns slower, or not at all."""
        tower = list(self.captioner.tower.parameters())
        ids = {id(p) for p in tower}
        groups = [{"params": [p for p in self.parameters() if id(p) not in ids], "lr": lr}]
        return groups if self.frozen else groups + [{"params": tower, "lr": lr * tower_rate}]

    def losses(self, batches, rng, n_scenes, n_photos):
        """Losses by name. Batches bring pictures, or tokens when the tower is frozen."""
        index, drawn, drawn_text = batches.scenes_batch(rng, n_scenes)
        photos, photo_text = batches.photos_batch(rng, n_photos)
        tokens = torch.cat((drawn, photos))
        if not self.frozen:
            tokens = self.captioner.tower(tokens)
        drawn_loss, drawn_routing = caption_losses(self.captioner, tokens[:n_scenes], drawn_text)
        photo_loss, photo_routing = caption_losses(self.captioner, tokens[n_scenes:], photo_text)
        out = {"scenes": drawn_loss, "photos": photo_loss}
        if drawn_routing is not None:
            out["routing"] = drawn_routing + photo_routing
        if self.heads is not None:
            targets = torch.from_numpy(batches.drawn.cell_targets(index))
            out["cells"], out["right"] = self.heads.cell_loss(tokens[:n_scenes], targets)
        return out


def routing_config(args):
    """Shapes of the captioner that the switches ask for."""
    if (args.mode == "gamma-train") != bool(args.routed):
        raise SystemExit("--routed: the layers that route, with --mode gamma-train")
    return Config(mode=args.mode, schedule=args.schedule, factor=args.factor, norm=args.norm,
                  weigh_skipped=not args.no_string, routed=tuple(args.routed), shared_router=not args.own_routers,
                  skip_ratio=args.skip_ratio, protect_text=not args.no_mask)


def caption(args):
    config = routing_config(args)
    torch.manual_seed(args.seed)
    model = CaptionTasks(args, config)
    if args.compile:
        model.captioner.compile(dynamic=True)  # texts have all lengths
    run = Run(args, model, model.parameter_groups(args.lr, args.tower_rate), config)
    batches = (FeatureData if args.features else CaptionData)(args, config)
    while run.step < args.steps:
        with torch.autocast("cpu", torch.bfloat16):
            losses = model.losses(batches, run.rng(), *args.batch)
        weights = {"scenes": args.scene_weight, "right": 0.0, "routing": args.aux}
        sum(weights.get(name, 1.0) * loss for name, loss in losses.items()).backward()
        run.update(losses)
    run.save(finished=True)


# ---------------------------------------------------------------------- main

def common(sub, steps, lr, batch):
    sub.add_argument("--scenes", required=True, help="folder written by scenes.py render")
    sub.add_argument("--flickr", required=True, help="folder of the flickr8k pack")
    sub.add_argument("--out", required=True, help="checkpoint to write and to go on from")
    sub.add_argument("--seed", type=int, default=1)
    sub.add_argument("--threads", type=int, default=os.cpu_count())
    sub.add_argument("--steps", type=int, default=steps)
    sub.add_argument("--lr", type=float, default=lr)
    sub.add_argument("--warmup", type=int, default=100, help="steps")
    sub.add_argument("--final", type=float, default=0.05, help="last learning rate, as a part of --lr")
    sub.add_argument("--log-every", type=int, default=25, help="steps")
    sub.add_argument("--batch", type=int, nargs=len(batch), default=batch,
                     help="drawn scenes, (tiles,) photos a step; default %(default)s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    sub = commands.add_parser("vocab", help="train the vocabulary")
    sub.add_argument("--scenes", required=True, help="folder written by scenes.py render")
    sub.add_argument("--flickr", required=True, help="folder of the flickr8k pack")
    sub.add_argument("--out", required=True, help="prefix of the .model and .vocab files")
    sub.add_argument("--size", type=int, default=Config().vocab)
    sub.set_defaults(run=vocab, threads=1)

    sub = commands.add_parser("tower", help="train the vision tower")
    common(sub, 3000, 1.5e-3, [24, 16, 24])
    sub.add_argument("--tiny", required=True, help="folder of the tiny-imagenet pack")
    sub.add_argument("--init", help="checkpoint of the caption command whose tower and heads to go on with")
    sub.set_defaults(run=tower)

    sub = commands.add_parser("features", help="write what a finished tower says of every picture")
    sub.add_argument("--scenes", required=True, help="folder written by scenes.py render")
    sub.add_argument("--flickr", required=True, help="folder of the flickr8k pack")
    sub.add_argument("--tower", required=True, help="checkpoint of the tower command")
    sub.add_argument("--out", required=True, help="file to write, 31 KB a picture")
    sub.add_argument("--threads", type=int, default=os.cpu_count())
    sub.set_defaults(run=features)

    sub = commands.add_parser("caption", help="train the captioner")
    common(sub, 2000, 1e-3, [24, 12])
    sub.add_argument("--vocab", required=True, help="prefix given to vocab --out")
    sub.add_argument("--tower", required=True, help="checkpoint of the tower command; its heads go on teaching")
    sub.add_argument("--features", help="file of the features command for this tower, which then stays as it is")
    sub.add_argument("--init", help="checkpoint of a captioner to start from, dense or not")
    sub.add_argument("--tower-rate", type=float, default=0.3, help="learning rate of the tower, as a part of --lr")
    sub.add_argument("--counts", type=float, nargs=scenes.MAX_OBJECTS, metavar="PART",
                     help="parts of scenes with one, two, .. objects; default: as they were rendered")
    sub.add_argument("--scene-weight", type=float, default=1.0,
                     help="of the scenes' loss next to the photos', which is noisier and stays larger")
    sub.add_argument("--compile", action="store_true",
                     help="let PyTorch 2 and a C++ compiler fuse the decoder: minutes at first, then faster steps")
    sub.add_argument("--mode", choices=("dense", "pmod", "gamma-train"), default="dense",
                     help="how the decoder routes; default: it does not")
    part = sub.add_argument_group("p-MoD")
    part.add_argument("--schedule", default=routing.PRD,
                      help="layers and ratios: shiftedcos_decay_MAX_MIN, shiftedlinear_decay_MAX_MIN; deep_all, "
                      "deep_all_include_last or interleave, of one ratio; default %(default)s")
    part.add_argument("--factor", type=float, default=0.5,
                      help="of the schedule, or the one ratio; default %(default)s")
    part.add_argument("--norm", default="tanh_0.2_1",
                      help="weight of a score: tanh, sigmoid, softmax or none, _SCALE_BIAS; default %(default)s")
    part.add_argument("--no-string", action="store_true", help="skipped tokens stay as they are")
    part = sub.add_argument_group("gamma-MoD")
    part.add_argument("--routed", type=int, nargs="+", default=(), metavar="LAYER", help="layers that route")
    part.add_argument("--skip-ratio", type=float, default=0.5,
                      help="of the tokens that compete, how many a layer skips; default %(default)s")
    part.add_argument("--aux", type=float, default=0.01, help="weight of the routing loss; default %(default)s")
    part.add_argument("--own-routers", action="store_true", help="a router a layer, not one for all")
    part.add_argument("--no-mask", action="store_true", help="text competes too")
    sub.set_defaults(run=caption)

    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.run(args)


if __name__ == "__main__":
    main()
