"""Runs a benchmark for one round and checks that it prints rows with rates or times above 0, and refuses what it does not
know.

SPDX-License-Identifier: MIT
"""

import json
import os
import shlex
import subprocess
import sys


def main():
    command = shlex.split(os.environ.get("MESON_EXE_WRAPPER", "")) + sys.argv[1:]
    output = subprocess.run([*command, "--rounds", "1", "--json"], check=True, stdout=subprocess.PIPE).stdout
    rows = [json.loads(line) for line in output.splitlines()]
    assert rows, "no rows"
    for row in rows:
        assert row["layer_ms" if "layer_ms" in row else "gmacs"] > 0, row
        assert "routing_ms" not in row or 0 < row["routing_ms"] < row["layer_ms"], row
        assert row.get("peak_gmacs") is None or row["peak_gmacs"] > 0, row
        assert {"type", "isa", "threads"} <= row.keys(), row
    table = subprocess.run([*command, "--rounds", "1"], check=True, stdout=subprocess.PIPE).stdout
    lines = [line for line in table.splitlines() if not line.startswith(b"type ")]
    assert len(lines) == len(rows) < len(table.splitlines()), "headings, and a line a row"
    for wrong in (["--rounds", "0"], ["--rounds", "1x"], ["--isa", "sse9"], ["more"], ["--nothing"]):
        refused = subprocess.run([*command, *wrong], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert refused.returncode == 2 and refused.stderr and not refused.stdout, wrong


main()
