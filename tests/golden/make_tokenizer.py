#!/usr/bin/env python3
"""Makes tokenizer.gguf (a small vocabulary, no tensors) and tokenizer.txt, with SentencePiece.

The text to learn from is drawn from a small grammar, so nothing but this script
is needed.  The model is made as LLaMA's was: BPE, byte fallback, no
normalisation, a space in front, nothing trimmed; and with user-defined pieces,
which LLaMA's has not.

Lines of tokenizer.txt, texts in hex ("-" when empty):
  e TEXT IDS   what SentencePiece encodes TEXT to
  d IDS TEXT   what SentencePiece decodes IDS to
  p NAME PROMPT IDS   LLaVA's prompt template NAME around PROMPT ("default": none given), each text
               beside the image encoded on its own, and plain's prompt too; the image's place is -200

SPDX-License-Identifier: MIT
"""

import io
import os
import random
import sys

import sentencepiece

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.append(os.path.join(HERE, "../../tools/train"))
import gguf  # noqa: E402

USER_DEFINED = ["<cat>", "<cat>nip", "\u2581::\u2581"]

COLOURS = "red green blue yellow grey white black brown orange purple".split()
SIZES = "small large tiny round tall old young bright dark striped".split()
THINGS = ("cat dog horse bird house tree boat train car bicycle table chair cup plate window door river field "
          "mountain street garden kitchen keyboard person man woman child ball box triangle circle square").split()
PLACES = "on under beside behind near above below between inside left of,right of,in front of".split()
VERBS = "sits sleeps stands runs jumps looks waits lies floats drives walks plays".split()
EXTRA = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    "USER: What is in the picture? ASSISTANT: There is a small café near the river; it's closed.",
    "Describe this image in one sentence.\nHow many are there? 1, 2, 3, 4 or 50?",
    "naïve façade über Straße señor 日本 ねこ",
]


def grammar(rng, lines):
    for _ in range(lines):
        a, b = rng.sample(THINGS, 2)
        yield rng.choice([
            f"a {rng.choice(SIZES)} {rng.choice(COLOURS)} {a} {rng.choice(PLACES)} a {b}",
            f"The {a} {rng.choice(VERBS)} {rng.choice(PLACES)} the {rng.choice(COLOURS)} {b}.",
            f"two {a}s and {rng.randint(2, 99)} {b}s, all of them {rng.choice(COLOURS)}",
            f"There is a {rng.choice(SIZES)} {a} {rng.choice(PLACES)} the {b}'s {rng.choice(COLOURS)} side.",
        ])


def train(rng):
    text = list(grammar(rng, 3000)) + [line for text in EXTRA for line in text.split("\n")] * 20
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=model, model_type="bpe", vocab_size=640, byte_fallback=True,
        normalization_rule_name="identity", add_dummy_prefix=True, remove_extra_whitespaces=False,
        character_coverage=1.0, user_defined_symbols=USER_DEFINED, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
        num_threads=1, minloglevel=2)
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def piece_type(sp, i):
    if sp.is_unknown(i):
        return 2
    if sp.is_control(i):
        return 3
    if sp.id_to_piece(i) in USER_DEFINED:
        return 4
    return 6 if sp.is_byte(i) else 1


def write_vocabulary(sp):
    n = sp.get_piece_size()
    gguf.write(os.path.join(HERE, "tokenizer.gguf"), [
        ("general.architecture", gguf.STRING, "llama"),
        ("tokenizer.ggml.model", gguf.STRING, "llama"),
        ("tokenizer.ggml.pre", gguf.STRING, "default"),
        ("tokenizer.ggml.tokens", (gguf.ARRAY, gguf.STRING), [sp.id_to_piece(i) for i in range(n)]),
        ("tokenizer.ggml.scores", (gguf.ARRAY, gguf.F32), [sp.get_score(i) for i in range(n)]),
        ("tokenizer.ggml.token_type", (gguf.ARRAY, gguf.I32), [piece_type(sp, i) for i in range(n)]),
        ("tokenizer.ggml.bos_token_id", gguf.U32, 1),
        ("tokenizer.ggml.eos_token_id", gguf.U32, 2),
        ("tokenizer.ggml.unknown_token_id", gguf.U32, 0),
        ("tokenizer.ggml.add_bos_token", gguf.BOOL, True),
        ("tokenizer.ggml.add_space_prefix", gguf.BOOL, True),
    ])


def texts(rng):
    yield from ["", " ", "  ", "   ", "a", "\n", "\n\n", "\t", " a", "a ", "  a  ", "a  b   c    d", "\r\n", "\u2581",
                "\u2581\u2581a\u2581", "\u00a0", "\u200b", "\ufeff", "\u0001\u007f", "A", "<s>", "</s>", "<unk>",
                "<0x41>", "<0x0A>", "<image>", "<cat>", "<cat>nip", "<cat>ni", "a<cat>b", "<<cat>>", " <cat> <cat>nip ",
                "a :: b", "a ::  b", "::", " :: :: ", "cat", "cats", "concatenate", "Cat CAT cAt", "don't", "'s's's"]
    yield from ["é", "e\u0301", "naïve café", "Ünïcödé", "ß", "日本", "日本語のねこ", "ねこねこねこ", "Привет, мир",
                "مرحبا", "שלום", "नमस्ते", "한국어", "ไทย", "\U0001f600", "a\U0001f600b", "\U0001f469\u200d\U0001f680",
                "\U0001f1e9\U0001f1ea", "\u0915\u094d\u0937", "\U00010348", "\U0010ffff", "\ud7ff\ue000", "ﬁ", "½ ² №",
                "x\u0000y"]
    yield from ["a" * n for n in (2, 3, 7, 64, 300)] + ["ab" * 60, "the" * 50, " " * 40, "\n" * 9, "a b " * 40]
    yield from ["the " * 60, "cat" * 33 + "dog" * 33, "é" * 30, "\U0001f600" * 12, "1234567890" * 5, "0.001, -1e-9"]
    yield from EXTRA + ["\n".join(EXTRA), "  ".join(EXTRA)]
    alphabet = "etaoin shrdlu  cmfwyp.,'\nTAéß日\U0001f600<>:"
    for i in range(60):
        yield "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 40)))
    yield from grammar(rng, 50)


HUMAN = ("A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
         "detailed, and polite answers to the human's questions.")
USER = HUMAN.replace("human", "user")
TEMPLATES = {
    "vicuna_v1": USER + " USER: <image>\n{} ASSISTANT:",
    "v1": USER + " USER: <image>\n{} ASSISTANT:",
    "llava_v1": HUMAN + " USER: <image>\n{} ASSISTANT:",
    "llava_v0": HUMAN + "###Human: <image>\n{}###Assistant:",
    "plain": "<image>\n",
}


def prompts(sp):
    for name, form in TEMPLATES.items():
        default = "" if name == "plain" else "Describe this image in one sentence."
        for prompt in [None, "", "What is this?", "  two\nlines </s> ", "caf\u00e9 \U0001f600"]:
            before, after = form.format(default if prompt is None else prompt).split("<image>")
            ids = [1] + sp.encode(before) + [-200] + sum(map(sp.encode, after.split("<answer>")), [])
            if name == "plain" and prompt:  # the beginning of the caption, a text of its own
                ids += sp.encode(prompt)
            shown = "default" if prompt is None else hexed(prompt)
            yield f"p {name} {shown} {','.join(map(str, ids))}\n"


def hexed(text):
    return text.encode("utf-8").hex() or "-"


def main():
    rng = random.Random(1)
    sp = train(rng)
    write_vocabulary(sp)
    cases = [text for text in texts(rng)]
    with open(os.path.join(HERE, "tokenizer.txt"), "w") as f:
        for text in cases:
            f.write(f"e {hexed(text)} {','.join(map(str, sp.encode(text))) or '-'}\n")
        normal = [i for i in range(sp.get_piece_size()) if piece_type(sp, i) in (1, 3, 4)]
        for ids in [sp.encode(t) for t in cases if t] + [rng.choices(normal, k=20) for _ in range(20)]:
            f.write(f"d {','.join(map(str, ids))} {hexed(sp.decode(ids))}\n")
        f.writelines(prompts(sp))
    print(sp.get_piece_size(), "pieces,", len(cases), "texts")


if __name__ == "__main__":
    main()
