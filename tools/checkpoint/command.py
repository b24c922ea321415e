"""tools/convert: the command.

SPDX-License-Identifier: MIT
"""

import argparse
import pathlib
import signal
import sys

from . import families, output, recipe, weights
from .broken import Broken

DESCRIPTION = """Makes one squint model file of a checkpoint folder as Hugging Face has it: config.json,
tokenizer.model and the weights, as safetensors or pytorch_model.bin."""

EPILOG = """
types
  type   decoder         embedding, output   vision    norms, biases, routers
  f32    F32             F32                 F32       F32
  f16    F16             F16                 F16       F32
  q8_0   Q8_0            Q8_0                Q8_0      F32
  q4_0   Q4_0            Q8_0                Q8_0      F32
  q8     int8, channels  int8, channels      as left   F32
  q4     int4, groups    int8, channels      as left   F32
Take q4 to caption pictures, q8 to stay nearer to the original, f32 to compare with it. q8 and q4 are squint's own and
the fastest; others repack while loading. Any file is what "squint quantize" makes of the f32 conversion.

checkpoints
  LLaVA-1.5, LLaVA-NeXT (Vicuna)      the authors' and transformers' (llava-hf) layouts
  p-MoD on both                       MCG-NJU/p-MoD-LLaVA-v1.5-7B, MCG-NJU/p-MoD-LLaVA-NeXT-7B
  gamma-MoD LLaVA-HR, Mini-Gemini-HD  YaxinLuo/Gamma-MoD-*
  LLaVA-HR, LLaVA-HR-X                dense

examples
  tools/convert ~/models/p-MoD-LLaVA-v1.5-7B p-mod.gguf --type q4
  squint caption -m p-mod.gguf photo.jpg
  tools/convert ~/models/llava-v1.5-7b llava.gguf --type q4 --vision-tower ~/models/clip-vit-large-patch14-336
"""


class Progress:
    """A bar on standard error, when that is a terminal."""

    WIDTH = 40

    def __init__(self):
        self.on, self.shown = sys.stderr.isatty(), -1

    def __call__(self, share):
        percent = int(100 * share)
        if not self.on or percent == self.shown:
            return
        self.shown = percent
        full = self.WIDTH * percent // 100
        print(f"\rconverting [{'#' * full}{'.' * (self.WIDTH - full)}] {percent:3}%", end="", file=sys.stderr)
        sys.stderr.flush()

    def clear(self):
        if self.on and self.shown >= 0:
            print("\r" + " " * (self.WIDTH + 20) + "\r", end="", file=sys.stderr)
            sys.stderr.flush()


def share(text):
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return value


def parse(arguments):
    parser = argparse.ArgumentParser(prog="tools/convert", description=DESCRIPTION, epilog=EPILOG,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", type=pathlib.Path, help="of the checkpoint")
    parser.add_argument("out", metavar="OUT.gguf", type=pathlib.Path, help="file to write")
    parser.add_argument("-t", "--type", required=True, choices=weights.POLICIES, help="of the weights: see below")
    parser.add_argument("--vision", metavar="TYPE", choices=weights.POLICIES,
                        help="keep tower and projector as this type has them (default: as --type)")
    parser.add_argument("-g", "--group", type=int, default=64, choices=(32, 64, 128, 256),
                        help="weights that share a scale in q4 (default: 64)")
    parser.add_argument("--vision-tower", metavar="FOLDER", type=pathlib.Path,
                        help="of openai/clip-vit-large-patch14-336, when the checkpoint has only its name")
    parser.add_argument("--skip-ratio", metavar="R", type=share,
                        help="gamma-MoD: share of tokens skipped in training, which modes gamma-train and gamma-paper "
                             "need and no checkpoint says (0.34 or 0.5, as in its name)")
    parser.add_argument("--name", help="of the model (default: the folder's)")
    parser.add_argument("--ledger", metavar="FILE", type=pathlib.Path,
                        help="write down what becomes of each tensor of the checkpoint")
    parser.add_argument("-v", "--verbose", action="store_true", help="print that too")
    return parser.parse_args(arguments)


def ledger_text(fate, tensors):
    return "".join(f"{tensors[name].name}\t{what}\n" for name, what in fate.items())


def inputs_of(source):
    """Files that a conversion reads, or might."""
    folders = {source.folder, source.vision_tower or source.folder, *(t.path.parent for t in source.tensors.values())}
    return [path for folder in folders for path in folder.rglob("*")]


def check_outputs(args, inputs):
    if args.ledger and args.ledger.resolve() == args.out.resolve():
        raise Broken(f"{args.out}: cannot be both the model and the ledger; choose another name for one")
    for path in (args.out, args.ledger):
        if path:
            output.check_place(path, inputs)


def convert(args):
    source = families.open_folder(args.folder, args.vision_tower, args.skip_ratio)
    made = families.recipe_of(source, args.name)
    fate = recipe.ledger(made, source.tensors, source.layout.spelt, args.folder)
    text = ledger_text(fate, source.tensors)
    check_outputs(args, inputs_of(source))
    progress = Progress()
    try:
        size = output.write(args.out, made, source.tensors, args.type, args.vision or args.type, args.group, progress)
    finally:
        progress.clear()
    if args.ledger:
        args.ledger.write_text(text, "utf-8")
    if args.verbose:
        print(text, end="")
    dropped = sum(what.startswith("dropped") for what in fate.values())
    print(f"{args.out}: {made.family}, {len(made.parts)} tensors, {size / 1e6:.1f} MB, from {len(fate)} of the "
          f"checkpoint, {dropped} of them dropped")


def stop(*_):
    raise KeyboardInterrupt


def main(arguments=None):
    """Returns the exit status: 0, 1 when the checkpoint or a file is at fault, 130 when interrupted."""
    args = parse(arguments)
    signal.signal(signal.SIGTERM, stop)
    try:
        convert(args)
    except Broken as error:
        print(f"convert: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"convert: {error.filename or args.out}: {error.strerror or error}", file=sys.stderr)
        return 1
    except MemoryError:
        print("convert: not enough memory for the largest tensor as float32", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("convert: interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0
