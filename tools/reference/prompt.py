"""LLaVA's prompts as ids.

SPDX-License-Identifier: MIT
"""

IMAGE = -200  # stands for a picture's tokens

TEMPLATE = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
            "detailed, and polite answers to the user's questions. USER: <image>\n{} ASSISTANT:")  # vicuna_v1


def ids(encode, question):
    """Text before and after the picture is encoded apart; `encode` adds no BOS."""
    before, after = TEMPLATE.format(question).split("<image>")
    return [1, *encode(before), IMAGE, *encode(after)]
