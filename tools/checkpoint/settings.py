"""config.json and its like: values of the type that is needed, or a line that says which key to mend.

SPDX-License-Identifier: MIT
"""

import json

from .broken import Broken

REQUIRED = object()

HINTS = {
    "image_size_aux": "Mini-Gemini-HD has 1536, Mini-Gemini 768: write down what the model was trained with",
    "mod_layers_idx": "it lists the layers that route; the released 7B models have 3 to 30, 13B 3 to 38",
}
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", list: "a list",
         dict: "an object"}


def read_json(path):
    """The object in a JSON file."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise Broken(f"{path}: is not there; download it from where the checkpoint came from") from None
    except (OSError, ValueError, RecursionError) as error:
        raise Broken(f"{path}: cannot be read as JSON ({error}); download it again") from None
    if not isinstance(values, dict):
        raise Broken(f"{path}: is JSON, but no object; download it again")
    return values


class Settings:
    """An object of a JSON file. `prefix` names it in messages when it is not the whole file."""

    def __init__(self, path, values, prefix="", defaults=None):
        self.path, self.values, self.prefix, self.defaults = path, values, prefix, defaults or {}

    def broken(self, key, what):
        return Broken(f"{self.path}: key {self.prefix}{key} {what}")

    def has(self, key):
        return self.values.get(key) is not None

    def get(self, key, kind, default=REQUIRED):
        """null counts as absent. `defaults` are of a library that leaves out what equals them."""
        value = self.values.get(key)
        if value is None:
            value = self.defaults.get(key)
        if value is None:
            if default is not REQUIRED:
                return default
            hint = HINTS.get(key, "take the whole config.json of the checkpoint")
            raise self.broken(key, f"is missing: {hint}")
        number = kind in (int, float) and not isinstance(value, bool)
        if not isinstance(value, (int, float) if kind is float else kind) or (kind in (int, float) and not number):
            raise self.broken(key, f"is {json.dumps(value)[:60]} where {KINDS[kind]} is needed")
        return value

    def positive(self, key, default=REQUIRED):
        value = self.get(key, int, default)
        if not 0 < value < 1 << 24:
            raise self.broken(key, f"is {value}, and cannot be")
        return value

    def only(self, key, kind, value, default=REQUIRED):
        """A key that decides over arithmetic: squint knows one value."""
        found = self.get(key, kind, value if default is REQUIRED else default)
        if found != value:
            raise self.broken(key, f"is {json.dumps(found)}; squint runs only {json.dumps(value)}")

    def section(self, key, defaults=None):
        return Settings(self.path, self.get(key, dict), f"{self.prefix}{key}.", defaults)


def load(path, defaults=None):
    return Settings(path, read_json(path), defaults=defaults)
