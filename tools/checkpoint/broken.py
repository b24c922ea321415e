"""What is wrong with a checkpoint, in a line that says what to do.

SPDX-License-Identifier: MIT
"""


class Broken(Exception):
    """The checkpoint cannot be converted."""
