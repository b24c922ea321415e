#!/usr/bin/env python3
"""
The model card's tables, measured: runs `squint eval` for each model and prints Markdown. With --rows each model is a row,
for many models: FILE:MODE runs FILE in another mode than it names.

SPDX-License-Identifier: MIT
"""

import argparse
import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

ROWS = ("exact match", "NLL per token", "NLL, photos shuffled", "BLEU-4", "CIDEr-D", "KV cache, bytes",
        "multiply-adds of the prefill", "prefill, ms")
SHORT_ROWS = ("model", "exact match", "NLL", "BLEU-4", "CIDEr-D", "kept", "multiply-adds", "prefill, ms", "KV bytes")


def evaluate(args, model, data, limit, *extra):
    """What `squint eval --json` says. model: FILE or FILE:MODE."""
    path, _, mode = model.partition(":")
    command = [args.squint, "eval", "-m", path, "--data", data, "--json", "--threads", str(args.threads),
               "--limit", str(limit), *(["--mode", mode] if mode else []), *extra]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def measure(args, model):
    """What `squint eval` says of the scenes, and of the photos."""
    return evaluate(args, model, args.scenes, args.limit_scenes), evaluate(args, model, args.photos, args.limit_photos)


def row(args, name, model):
    """All figures of one model, in the order of SHORT_ROWS."""
    drawn, photos = measure(args, model)
    return (name, f"{100 * drawn['exact']:.1f} %", f"{photos['nll_token']:.3f}", f"{photos['bleu4']:.4f}",
            f"{photos['cider']:.4f}", f"{100 * photos['kv_bytes'] / photos['kv_bytes_dense']:.1f} %",
            f"{photos['macs'] / 1e6:.1f} M", f"{photos['ms']['prefill']:.2f}", f"{photos['kv_bytes']:.0f}")


def column(args, model):
    """All figures of one model, in the order of ROWS."""
    drawn, photos = measure(args, model)
    shuffled = evaluate(args, model, args.photos, args.limit_photos, "--shuffle", "--nll")
    return (f"{100 * drawn['exact']:.2f} %", f"{photos['nll_token']:.4f}", f"{shuffled['nll_token']:.4f}",
            f"{photos['bleu4']:.4f}", f"{photos['cider']:.4f}", f"{photos['kv_bytes']:.0f}",
            f"{photos['macs'] / 1e6:.1f} M", f"{photos['ms']['prefill']:.2f}")


def print_table(titles, lines):
    print("| " + " | ".join(titles) + " |")
    print("|---" * len(titles) + "|")
    for line in lines:
        print("| " + " | ".join(line) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\nSPDX", maxsplit=1)[0])
    parser.add_argument("--squint", required=True, help="the squint command")
    parser.add_argument("--scenes", required=True, help="folder written by scenes.py evalset")
    parser.add_argument("--photos", required=True, help="folder written by evalset.py")
    parser.add_argument("--threads", type=int, default=1, help="of each squint")
    parser.add_argument("--jobs", type=int, default=1, help="models measured at the same time")
    parser.add_argument("--rows", action="store_true", help="a model a row, without the shuffled photos")
    parser.add_argument("--limit-scenes", type=int, default=0, help="first scenes only")
    parser.add_argument("--limit-photos", type=int, default=0, help="first photos only")
    parser.add_argument("models", nargs="+", metavar="NAME=FILE", help="a column's name and its model")
    args = parser.parse_args()
    named = [m.split("=", 1) for m in args.models]
    with ThreadPoolExecutor(args.jobs) as pool:
        if args.rows:
            print_table(SHORT_ROWS, pool.map(lambda pair: row(args, *pair), named))
            return
        columns = list(pool.map(lambda pair: column(args, pair[1]), named))
    print_table(("", *(name for name, _ in named)), [(title, *(c[i] for c in columns)) for i, title in enumerate(ROWS)])


if __name__ == "__main__":
    main()
