#!/usr/bin/env python3
"""The tokenizer against sentencepiece: a vocabulary of LLaMA's size and making, 10,000 lines of mixed text.

    SQUINT_EXE=build/tools/squint/squint test_spm.py

The text to learn from is made up here, of words by syllables in several scripts, code and numbers.

SPDX-License-Identifier: MIT
"""

import io
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.dont_write_bytecode = True
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tools" / "train")]

try:
    import sentencepiece
    import gguf
    from checkpoint import recipe, vocabulary
except ImportError as missing:
    print(f"skipped: {missing}; tools/checkpoint/requirements.txt says what this test needs")
    sys.exit(77)

SQUINT = os.environ["SQUINT_EXE"]
PIECES, LINES = 32000, 10000

# ---------------------------------------------------------------- made-up words

CONSONANTS = {
    "latin": "b c d f g h j k l m n p r s t v w z br ch cl cr dr fl fr gl gr pl pr qu sh sl sp st str th tr".split(),
    "cyrillic": list("бвгджзклмнпрстфхцчш") + ["ст", "пр", "тр"],
    "greek": list("βγδζθκλμνξπρστφχψ"),
    "armenian": list("բգդզթժլխծկհձղճմյնշչպջռսվտրցփք"),
}
VOWELS = {"latin": "a e i o u ai ea ee ou y é ö ü".split(), "cyrillic": list("аеёиоуыэюя"),
          "greek": list("αεηιουωάέίό"), "armenian": list("աեէըիոօ")}
# scripts without spaces, or written in letters that need no vowels: ranges of characters
RANGES = {"hebrew": (0x5D0, 0x5EA), "arabic": (0x627, 0x64A), "devanagari": (0x905, 0x939), "thai": (0xE01, 0xE2E),
          "hiragana": (0x3041, 0x3096), "katakana": (0x30A1, 0x30FA), "hangul": (0xAC00, 0xAE00),
          "chinese": (0x4E00, 0x5200)}
CODE = ["int {a}({b} *{c}) {{ return {c}->{a}[{n}]; }}", "for (size_t {c} = 0; {c} < {n}; {c}++)",
        "def {a}(self, {b}=None):", "    self.{a}.{b}({c!r})", "<{a} {b}=\"{c}\">{n}</{a}>",
        "https://{a}.{b}/{c}?{a}={n}", "#define {a} 0x{n:08x}", "\tif ({a} != {b} && !{c}) {{",
        "{{\"{a}\": [{n}, {n}.5e-{n}], \"{b}\": null}}", "$ {a} --{b}={c} | {b} -{c[0]} > /{a}/{b}"]


def syllable(rng, script):
    return rng.choice(CONSONANTS[script]) + rng.choice(VOWELS[script])


def word(rng, script):
    if script in RANGES:
        first, last = RANGES[script]
        # low numbers are more frequent, as in a text
        return "".join(chr(first + int((last - first + 1) * rng.random() ** 2)) for _ in range(rng.randint(1, 6)))
    text = "".join(syllable(rng, script) for _ in range(rng.randint(1, 4)))
    return text.capitalize() if rng.random() < 0.1 else text


def code(rng):
    words = {key: word(rng, "latin") for key in "abc"}
    return rng.choice(CODE).format(n=rng.randint(0, 9999), **words)


def sentence(rng, lexicon):
    words = lexicon[rng.choice(list(lexicon))]
    n = len(words)
    chosen = [words[int(n * rng.random() ** 3)] for _ in range(rng.randint(3, 14))]
    return " ".join(chosen) + rng.choice([".", "?", "!", ", ", "…", ""])


def training_text(rng, lexicon):
    for _ in range(8000):
        yield code(rng) if rng.random() < 0.15 else sentence(rng, lexicon)
        if rng.random() < 0.1:
            yield f"{rng.randint(0, 10 ** 9)} {rng.random():.6f} {rng.randint(1, 31)}.{rng.randint(1, 12)}.2026"


def train(rng, lexicon):
    """With the settings that LLaMA's tokenizer.model tells of itself."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=training_text(rng, lexicon), model_writer=model, model_type="bpe", vocab_size=PIECES,
        byte_fallback=True, split_digits=True, allow_whitespace_only_pieces=True, character_coverage=0.99995,
        normalization_rule_name="identity", add_dummy_prefix=True, remove_extra_whitespaces=False,
        unk_surface=" \u2047 ", unk_id=0, bos_id=1, eos_id=2, pad_id=-1, num_threads=os.cpu_count(), minloglevel=2)
    return model.getvalue()


# ----------------------------------------------------------------------- lines

EMOJI = ["🙂", "😀😀", "👍\U0001f3fd", "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
         "\U0001f3f3\ufe0f\u200d\U0001f308", "\U0001f1e9\U0001f1ea", "\U0001f1ef\U0001f1f5\U0001f1f0\U0001f1f7",
         "1\ufe0f\u20e3", "\U0001f9d1\U0001f3ff\u200d\U0001f680", "❤\ufe0f", "\U0001fae0", "\U0001f9ff",
         "\U0001f3f4\U000e0067\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f"]
RARE = ["\u00a0", "\u200b", "\u200d", "\u2028", "\u3000", "\ufeff", "\ufffd", "\ufffe", "\uffff", "\ue000",
        "\U0010ffff", "\U0001d11e", "\U00020000", "\u0007", "\u001b[0m", "\u007f", "\u0085", "\x00", "\r", "\v", "\f",
        "\u202e", "\u0378", "\U000e0001", "\ud7ff", "\ufb01", "\u1e9b\u0323", "\u2126", "\uff21", "\u0130", "ß", "ſ"]
MARKS = ["e\u0301", "a\u0308\u0304", "n\u0303\u0303\u0303", "\u0915\u093c", "\u0e01\u0e49", "Z\u0351\u036b\u0343",
         "\u0301"]
LITERAL = ["\u2581", "\u2581\u2581a", "<s>", "</s>", "<unk>", "<0x41>", "<0x0A>", "<image>", " \u2047 ", "[PAD]",
           "\u2047"]
SPACES = [" ", "  ", "   ", " " * 7, " " * 16, " " * 33, "\t", "\t\t", " \t ", "\u2581 "]


def mixed(rng, lexicon):
    kinds = [lambda: sentence(rng, lexicon), lambda: code(rng), lambda: rng.choice(EMOJI), lambda: rng.choice(RARE),
             lambda: rng.choice(MARKS), lambda: rng.choice(LITERAL), lambda: rng.choice(SPACES),
             lambda: str(rng.randint(0, 10 ** rng.randint(1, 12))),
             lambda: chr(rng.choice((rng.randint(1, 9), rng.randint(11, 0xD7FF), rng.randint(0xE000, 0x10FFFF)))),
             lambda: "".join(map(chr, rng.choices(range(33, 127), k=rng.randint(1, 12)))),
             lambda: word(rng, rng.choice([*CONSONANTS, *RANGES])) * rng.randint(1, 3)]
    glue = rng.choice(["", " ", "  ", "\t"])
    return glue.join(rng.choice(kinds)() for _ in range(rng.randint(1, 9)))


def lines_to_try(rng, lexicon):
    lines = ["", " ", "  ", "\t", "\u2581", "a", " a", "a ", "  a  b  ", *EMOJI, *RARE, *MARKS, *LITERAL, *SPACES]
    lines += [" " * n for n in range(60)] + ["a" * n for n in range(60)] + ["0" * n for n in range(30)]
    while len(lines) < LINES:
        lines.append(mixed(rng, lexicon))
    assert len(lines) == LINES and not any("\n" in line for line in lines)
    return lines


# ---------------------------------------------------------------------- squint

KINDS = {recipe.U32: gguf.U32, recipe.I32: gguf.I32, recipe.F32: gguf.F32, recipe.BOOL: gguf.BOOL,
         recipe.STRING: gguf.STRING}


def write_vocabulary(folder, path):
    """What tools/convert makes of folder/tokenizer.model."""
    made = recipe.Recipe("")
    vocabulary.keys(made, folder, PIECES, None)
    gguf.write(path, [(name, (gguf.ARRAY, KINDS[kind[0]]) if isinstance(kind, list) else KINDS[kind], value)
                      for name, kind, value in made.keys])


def tokenize(model, data, *options):
    done = subprocess.run([SQUINT, "tokenize", "-m", model, *options], input=data, capture_output=True, check=True)
    assert done.stdout.endswith(b"\n") and not done.stderr
    return done.stdout[:-1].split(b"\n")


class SentencePiece(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.TemporaryDirectory()
        folder, rng = pathlib.Path(cls.dir.name), random.Random(1)
        lexicon = {script: [word(rng, script) for _ in range(800)] for script in [*CONSONANTS, *RANGES]}
        start = time.time()
        (folder / "tokenizer.model").write_bytes(train(rng, lexicon))
        print(f"{PIECES} pieces trained in {time.time() - start:.0f} s")
        cls.reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        cls.model = folder / "vocabulary.gguf"
        write_vocabulary(folder, cls.model)
        cls.lines = lines_to_try(rng, lexicon)
        cls.ids = cls.reference.encode(cls.lines)

    @classmethod
    def tearDownClass(cls):
        cls.dir.cleanup()

    def test_encode(self):
        found = tokenize(self.model, "".join(line + "\n" for line in self.lines).encode())
        self.assertEqual(len(found), LINES)
        for line, expected, ids in zip(self.lines, self.ids, found):
            self.assertEqual(list(map(int, ids.split())), expected, ascii(line))

    def test_decode(self):
        """As sentencepiece, which for text that was encoded is the text itself."""
        found = tokenize(self.model, "".join(" ".join(map(str, ids)) + "\n" for ids in self.ids).encode(), "--decode")
        self.assertEqual(len(found), LINES)
        for line, ids, text in zip(self.lines, self.ids, found):
            self.assertEqual(text.decode(), self.reference.decode(ids), ascii(line))
            if "\u2581" not in line:
                self.assertEqual(text.decode(), line)

    def test_what_is_tried(self):
        """Nearly all of the vocabulary's kinds of pieces, and the bytes."""
        used = {i for ids in self.ids for i in ids}
        self.assertGreater(len(used), 8000)
        self.assertGreater(sum(self.reference.is_byte(i) for i in used), 100)


if __name__ == "__main__":
    unittest.main()
