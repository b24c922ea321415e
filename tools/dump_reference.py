#!/usr/bin/env python3
"""
Runs a checkpoint folder as Hugging Face has it on a picture and writes what every stage of the network gave, for
`squint compare`. LLaVA-1.5 and LLaVA-NeXT in transformers' layout are run by transformers; all others, and these with
--own, by the modules in tools/reference. Everything is computed in binary32.

SPDX-License-Identifier: MIT
"""

import argparse
import fnmatch
import os
import sys

try:
    import numpy as np
    import torch
    from PIL import Image
except ImportError as missing:
    sys.exit(f"dump_reference: {missing.name} is missing: pip install torch numpy Pillow sentencepiece gguf")

from reference import by_transformers, model, pictures, prompt
from reference.folder import read_json

QUESTION = "Describe this image in one sentence."  # squint's, when none is given


def need(name):
    """A library that only some runs need."""
    try:
        return __import__(name)
    except ImportError:
        sys.exit(f"dump_reference: {name} is missing: pip install {name}")


def encoder(folder):
    path = os.path.join(folder, "tokenizer.model")
    if not os.path.exists(path):
        sys.exit(f"dump_reference: {path} is missing: ids are made with the checkpoint's SentencePiece model")
    return need("sentencepiece").SentencePieceProcessor(model_file=path).encode


class Stages(dict):
    """Values by stage, those of the stages that are wanted."""

    def __init__(self, patterns):
        super().__init__()
        self.patterns = patterns.split(",")

    def note(self, name, value):
        if not any(fnmatch.fnmatchcase(name, p) for p in self.patterns):
            return
        value = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        self[name] = np.ascontiguousarray(value, np.int32 if value.dtype.kind == "i" else np.float32)


def run(reference, image, ids, args):
    """The stages of a picture and a prompt, and of --decode tokens, each the likeliest so far."""
    stages = Stages(args.stages)
    stages.note("ids", np.array(ids, np.int32))
    with torch.no_grad():
        vision, base = reference.see(image, stages.note)
        n = len(ids) - 1 + len(vision)
        row = reference.prefill(ids, vision, base, min(args.logits, n), stages.note)[-1]
        tokens, rows, lengths = [], [], []
        for _ in range(args.decode):
            tokens.append(int(row.argmax()))
            row = reference.append(tokens[-1])
            rows.append(row)
            lengths.append(reference.decoder.lengths())
    if tokens:
        stages.note("decode.ids", np.array(tokens, np.int32))
        stages.note("decode.logits", torch.stack(rows))
        stages.note("decode.kv", np.array(lengths, np.int32))
    return stages


def write(path, source, question, image, stages):
    gguf = need("gguf")
    writer = gguf.GGUFWriter(path, "squint-dump")
    writer.add_uint32("squint.dump.version", 1)
    writer.add_string("squint.dump.source", source)
    writer.add_string("squint.dump.prompt", question)
    writer.add_tensor("picture", np.ascontiguousarray(image).view(np.int8))
    for name, value in stages.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def compare(ours, theirs):
    """The largest difference of two runs over the stages that both have, in parts of the stage's largest value."""
    worst = 0.0
    for name in sorted(ours.keys() & theirs.keys()):
        a, b = ours[name].astype(np.float64), theirs[name].astype(np.float64)
        if a.shape != b.shape:
            sys.exit(f"dump_reference: {name}: {a.shape} by tools/reference, {b.shape} by transformers")
        difference = float(np.abs(a - b).max(initial=0))
        worst = max(worst, difference / max(float(np.abs(b).max(initial=0)), 1e-30))
        print(f"{name:20} {str(a.shape):18} largest difference {difference:.3g}")
    print(f"largest difference of all stages, relative: {worst:.3g}; logits: "
          f"{float(np.abs(ours['logits'] - theirs['logits']).max()):.3g}")
    return worst


def references(args, image):
    """(how the first is called, the references to run: one, or two that are to agree)"""
    config = read_json(args.folder, "config.json")
    dtype = torch.float64 if args.double else torch.float32
    own = lambda: model.Model(args.folder, dtype, args.mode)
    if args.own or not model.is_hf(config):
        return "tools/reference", [own()]
    if image.height > image.width and pictures.rows_first():
        print("dump_reference: this Pillow resizes pictures that are higher than wide otherwise than squint and all "
              "versions before 13: pixels may differ; pip install 'pillow<13'", file=sys.stderr)
    theirs = by_transformers.Model(args.folder, need("transformers"))
    return theirs.name, [theirs, own()] if args.check else [theirs]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\nSPDX", maxsplit=1)[0])
    parser.add_argument("folder", help="config.json, weights and tokenizer.model")
    parser.add_argument("picture")
    parser.add_argument("out", help="GGUF file to write")
    parser.add_argument("--prompt", default=QUESTION, help="default: %(default)s")
    parser.add_argument("--decode", type=int, default=4, help="tokens to generate; default %(default)s")
    parser.add_argument("--logits", type=int, default=1, help="last rows of the prompt to write; default %(default)s")
    parser.add_argument("--stages", default="*", help="names, with * and ?, separated by commas; default all")
    parser.add_argument("--mode", help="of tools/train/routing.py; default the checkpoint's")
    parser.add_argument("--own", action="store_true", help="transformers' layouts by tools/reference too")
    parser.add_argument("--double", action="store_true", help="tools/reference in binary64: what rounding takes away")
    parser.add_argument("--check", action="store_true", help="transformers' layouts: compare both references")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    image = Image.open(args.picture).convert("RGB")
    ids = prompt.ids(encoder(args.folder), args.prompt)
    name, models = references(args, image)
    runs = [run(m, image, ids, args) for m in models]
    write(args.out, name, args.prompt, image, runs[0])
    if len(runs) > 1 and compare(runs[1], runs[0]) > 1e-4:
        sys.exit("dump_reference: tools/reference does not agree with transformers")


if __name__ == "__main__":
    main()
