"""JSON from key=value pairs: words become strings, numbers and true/false stay bare."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from .base import Example, Task, ask
from .words import (
    ANIMALS,
    CITIES,
    COLORS,
    FRUITS,
    JOBS,
    PEOPLE,
    THINGS,
)

PROMPTS = ("JSON: {}", "To JSON: {}", "Make JSON from {}", "Convert to JSON: {}")
WORD_KEYS = {
    "name": PEOPLE,
    "city": CITIES,
    "color": COLORS,
    "animal": ANIMALS,
    "fruit": FRUITS,
    "job": JOBS,
    "item": THINGS,
}
NUMBER_KEYS = ("age", "size", "count", "price", "id", "level")
FLAG_KEYS = ("open", "new", "ready")
_TYPES = {str: "string", int: "integer", bool: "boolean"}
KEYS = (*WORD_KEYS, *NUMBER_KEYS, *FLAG_KEYS)


def value_of(key: str, rng: Random) -> str | int | bool:
    """A value of the type that `key` has."""
    if key in WORD_KEYS:
        return rng.choice(WORD_KEYS[key])
    if key in NUMBER_KEYS:
        return rng.randrange(10 ** rng.randint(1, 3))
    return rng.random() < 0.5


class JsonPairs(Task):
    """Two to four pairs; the answer has them in the prompt's order, spaced as `json.dumps` does."""

    name = "json"
    thought = "Words get quotes, numbers do not."
    structured = True

    def draw(self, rng: Random) -> Example:
        pairs = {key: value_of(key, rng) for key in rng.sample(KEYS, rng.randint(2, 4))}
        written = [
            f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in pairs.items()
        ]
        prompt = rng.choice(PROMPTS).format(", ".join(written))
        return ask(self.name, prompt, json.dumps(pairs), " ".join(sorted(written)))

    def structure(self, example: Example) -> dict[str, Any]:
        pairs = json.loads(example.answer)
        return {
            "schema": {
                "type": "object",
                "properties": {key: {"type": _TYPES[type(value)]} for key, value in pairs.items()},
                "required": list(pairs),
                "additionalProperties": False,
            }
        }

    def valid(self, example: Example, text: str) -> bool:
        try:
            said = json.loads(text)
        except ValueError:
            return False
        wanted = json.loads(example.answer)
        return isinstance(said, dict) and _kinds(said) == _kinds(wanted)


def _kinds(pairs: dict[str, Any]) -> dict[str, type]:
    return {key: type(value) for key, value in pairs.items()}


__all__ = ["KEYS", "JsonPairs", "value_of"]
