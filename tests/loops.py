"""Looks at the inner loops of kernels as the compiler left them: a compiler that starts to spill sums or to move
registers about halves a kernel's speed, and no other test sees it.

    loops.py TABLE OBJDUMP SET=LIBRARY...

Each line of the table names a function, the instruction that its innermost loop is made of, how many there must be at
least, and how many register moves and uses of the stack may stand among them. Unrolled loops may have as many times
more of all. Sets without a library are left out.

SPDX-License-Identifier: MIT
"""

import re
import subprocess
import sys

NOISE = re.compile(r"^\{\w+\}\s+|\s+(?://|# ).*")  # {vex}, comments
INSTRUCTION = re.compile(r"\s*([0-9a-f]+):\s+(\S.*)")
BRANCH = re.compile(r"(?:b\.\w+|b|cbn?z|tbn?z|j\w+)\s+(?:\w+, )?(?:#\d+, )?([0-9a-f]+)\b")
MOVE = re.compile(
    r"(?:mov|orr)\s+(v\d+\.\w+), (v\d+\.\w+)(?:, \2)?$"  # ARM; ORR with the same register twice is a move
    r"|v?mov(?:dqa|dqu|aps|ups|apd|upd)\d*\s+%[xyz]mm\d+,%[xyz]mm\d+$"
)
STACK = re.compile(r"\[(?:sp|x29)\b|\(%rsp\b")


def instructions(objdump, library, function):
    """[(address, text)] of a function; AT&T's syntax for x86."""
    text = subprocess.run([objdump, "-d", "--no-show-raw-insn", library], check=True, stdout=subprocess.PIPE).stdout
    body = re.search(r"<%s>:\n(.*?)(?:\n\n|\Z)" % re.escape(function), text.decode(), re.S)
    if not body:
        sys.exit(f"{library}: no function {function}")
    found = [INSTRUCTION.match(line) for line in body.group(1).splitlines()]
    return [(int(m.group(1), 16), NOISE.sub("", m.group(2)).rstrip()) for m in found if m]


def inner_loops(objdump, library, function):
    """The instructions of each loop that holds no other loop, the branch back being the last."""
    code = instructions(objdump, library, function)
    index = {address: i for i, (address, _) in enumerate(code)}
    spans = []
    for end, (_, text) in enumerate(code):
        branch = BRANCH.match(text)
        start = index.get(int(branch.group(1), 16)) if branch else None
        if start is not None and start <= end:
            spans.append((start, end))
    inner = [s for s in spans if not any(s != t and s[0] <= t[0] and t[1] <= s[1] for t in spans)]
    return [[text for _, text in code[start : end + 1]] for start, end in inner]


def count(pattern, loop):
    return sum(1 for text in loop if re.match(pattern, text))


def read_table(path):
    """Rows of [set, function, instruction, least, moves, stack]."""
    with open(path, encoding="utf-8") as lines:
        rows = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    return [[*row[:3], *map(int, row[3:6])] for row in rows]


def faults(loops, instruction, least, moves, stack):
    loops = [loop for loop in loops if count(instruction + r"\b", loop) >= least]
    if not loops:
        yield f"no inner loop with {least} {instruction}"
    for loop in loops:
        times = count(instruction + r"\b", loop) // least
        found = count(MOVE, loop), sum(1 for text in loop if STACK.search(text))
        if found[0] > moves * times or found[1] > stack * times:
            yield f"{found[0]} moves and {found[1]} uses of the stack in\n    " + "\n    ".join(loop)


def main():
    table, objdump, *rest = sys.argv[1:]
    libraries = dict(argument.split("=", 1) for argument in rest)
    checked = bad = 0
    for name, function, *limits in read_table(table):
        if name not in libraries:
            continue
        checked += 1
        for fault in faults(inner_loops(objdump, libraries[name], function), *limits):
            bad += 1
            print(f"{name} {function}: {fault}")
    print(f"{checked} loops checked, {bad} faults")
    sys.exit(0 if checked and not bad else 1)


if __name__ == "__main__":
    main()
