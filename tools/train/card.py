#!/usr/bin/env python3
"""The model card's tables, measured: runs `squint eval` for each model and prints Markdown.

SPDX-License-Identifier: MIT
"""

import argparse
import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

ROWS = ("exact match", "NLL per token", "NLL, photos shuffled", "BLEU-4", "CIDEr-D", "KV cache, bytes",
        "multiply-adds of the prefill", "prefill, ms")


def evaluate(squint, model, data, *extra):
    """What `squint eval --json` says."""
    command = [squint, "eval", "-m", model, "--data", data, "--json", *extra]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def column(args, model):
    """All figures of one model, in the order of ROWS."""
    threads = ["--threads", str(args.threads)]
    drawn = evaluate(args.squint, model, args.scenes, *threads)
    photos = evaluate(args.squint, model, args.photos, *threads)
    shuffled = evaluate(args.squint, model, args.photos, "--shuffle", "--nll", *threads)
    return (f"{100 * drawn['exact']:.2f} %", f"{photos['nll_token']:.4f}", f"{shuffled['nll_token']:.4f}",
            f"{photos['bleu4']:.4f}", f"{photos['cider']:.4f}", f"{photos['kv_bytes']:.0f}",
            f"{photos['macs'] / 1e6:.1f} M", f"{photos['ms']['prefill']:.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--squint", required=True, help="the squint command")
    parser.add_argument("--scenes", required=True, help="folder written by scenes.py evalset")
    parser.add_argument("--photos", required=True, help="folder written by evalset.py")
    parser.add_argument("--threads", type=int, default=1, help="of each squint")
    parser.add_argument("--jobs", type=int, default=1, help="models measured at the same time")
    parser.add_argument("models", nargs="+", metavar="NAME=FILE", help="a column's name and its model")
    args = parser.parse_args()
    named = [m.split("=", 1) for m in args.models]
    with ThreadPoolExecutor(args.jobs) as pool:
        columns = list(pool.map(lambda pair: column(args, pair[1]), named))
    print("| | " + " | ".join(name for name, _ in named) + " |")
    print("|---" * (len(named) + 1) + "|")
    for i, row in enumerate(ROWS):
        print(f"| {row} | " + " | ".join(c[i] for c in columns) + " |")


if __name__ == "__main__":
    main()
