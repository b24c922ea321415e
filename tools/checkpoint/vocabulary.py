"""tokenizer.model and the tokens added to it, as tokenizer.ggml keys.

SPDX-License-Identifier: MIT
"""

import sentencepiece

from .broken import Broken
from .recipe import BOOL, F32S, I32S, STRING, STRINGS, U32
from .settings import Settings, read_json

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
ADDED_SCORE = -1000.0
ROW_MULTIPLE = 64  # to which some checkpoints pad the embedding


def read_model(path):
    if not path.is_file():
        raise Broken(f"{path}: is not there; download it; squint reads SentencePiece's file, not "
                     "tokenizer.json")
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise Broken(f"{path}: is no SentencePiece model ({str(error)[:80]}); download it again") from None
    if sum(model.is_byte(i) for i in range(model.get_piece_size())) != 256:
        raise Broken(f"{path}: is not LLaMA's vocabulary: it has no 256 byte pieces; take the checkpoint's own")
    return model


def piece_type(model, i):
    for kind, is_kind in ((UNKNOWN, model.is_unknown), (CONTROL, model.is_control), (UNUSED, model.is_unused),
                          (BYTE, model.is_byte)):
        if is_kind(i):
            return kind
    return NORMAL


def added_tokens(folder, n):
    """{id: (text, is it a control)} of tokens behind the n of the model."""
    found = {}
    plain = folder / "added_tokens.json"
    if plain.is_file():
        for text, i in read_json(plain).items():
            if not isinstance(i, int):
                raise Broken(f"{plain}: token {text[:40]!r} has no number; download it again")
            found[i] = (text, True)
    config = folder / "tokenizer_config.json"
    if config.is_file():
        tokens = read_json(config).get("added_tokens_decoder") or {}
        for i, token in tokens.items():
            if not i.isdigit() or not isinstance(token, dict) or not isinstance(token.get("content"), str):
                raise Broken(f"{config}: key added_tokens_decoder.{i[:20]} is no token; download it again")
            found[int(i)] = (token["content"], bool(token.get("special")))
    return {i: token for i, token in sorted(found.items()) if i >= n}


def pad_tokens(tokens, rows, path, config):
    """Rows of the embedding that no token has, which some libraries add to make a round number."""
    known = len(tokens)
    if known == rows:
        return
    if known > rows or rows % ROW_MULTIPLE or rows - known >= ROW_MULTIPLE:
        raise Broken(f"{path}: makes {known} tokens, but {config.path} says {rows} (key {config.prefix}vocab_size); "
                     "take both, and added_tokens.json if there is one, from the checkpoint")
    tokens += [(f"[PAD{i}]", ADDED_SCORE, UNUSED) for i in range(known, rows)]


def all_tokens(folder, rows, config):
    """[(text, score, type)]"""
    path = folder / "tokenizer.model"
    model = read_model(path)
    n = model.get_piece_size()
    tokens = [(model.id_to_piece(i), model.get_score(i), piece_type(model, i)) for i in range(n)]
    for i, (text, control) in added_tokens(folder, n).items():
        if i != len(tokens):
            raise Broken(f"{folder}: added token {text[:40]!r} has number {i}, but {len(tokens)} is the next; take "
                         "added_tokens.json and tokenizer_config.json from the checkpoint")
        tokens.append((text, ADDED_SCORE, CONTROL if control else USER_DEFINED))
    pad_tokens(tokens, rows, path, config)
    return model, tokens


def keys(recipe, folder, rows, config):
    """@param config  Settings with vocab_size, to be named when the two do not agree"""
    model, tokens = all_tokens(folder, rows, config)
    path = folder / "tokenizer_config.json"
    settings = Settings(path, read_json(path) if path.is_file() else {})
    pad = model.pad_id() if model.pad_id() >= 0 else model.unk_id()
    dummy_prefix = model.encode("a", out_type=str)[0].startswith("\u2581")
    recipe.keys += [
        ("tokenizer.ggml.model", STRING, "llama"),
        ("tokenizer.ggml.pre", STRING, "default"),
        ("tokenizer.ggml.tokens", STRINGS, [text for text, _, _ in tokens]),
        ("tokenizer.ggml.scores", F32S, [score for _, score, _ in tokens]),
        ("tokenizer.ggml.token_type", I32S, [kind for _, _, kind in tokens]),
        ("tokenizer.ggml.bos_token_id", U32, model.bos_id()),
        ("tokenizer.ggml.eos_token_id", U32, model.eos_id()),
        ("tokenizer.ggml.unknown_token_id", U32, model.unk_id()),
        ("tokenizer.ggml.padding_token_id", U32, pad),
        ("tokenizer.ggml.add_bos_token", BOOL, settings.get("add_bos_token", bool, True)),
        ("tokenizer.ggml.add_eos_token", BOOL, settings.get("add_eos_token", bool, False)),
        ("tokenizer.ggml.add_space_prefix", BOOL, dummy_prefix),
    ]
