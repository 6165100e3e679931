"""JSON from key=value pairs: words become strings, numbers and true/false stay bare."""

from __future__ import annotations

import json
from random import Random

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

    def draw(self, rng: Random) -> Example:
        pairs = {key: value_of(key, rng) for key in rng.sample(KEYS, rng.randint(2, 4))}
        written = [
            f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in pairs.items()
        ]
        prompt = rng.choice(PROMPTS).format(", ".join(written))
        return ask(self.name, prompt, json.dumps(pairs), " ".join(sorted(written)))


__all__ = ["KEYS", "JsonPairs", "value_of"]
