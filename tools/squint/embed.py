#!/usr/bin/env python3
"""Turns a text file into the initialiser of a C array, terminated: embed.py IN OUT. SPDX-License-Identifier: MIT"""

import sys

data = open(sys.argv[1], encoding="ascii").read().encode() + b"\0"  # above 127 a char may be negative
with open(sys.argv[2], "w", encoding="ascii") as out:
    for at in range(0, len(data), 20):
        out.write("".join(f"{byte}," for byte in data[at:at + 20]) + "\n")
