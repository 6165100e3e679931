"""JSON schemas drawn at random, canvases of a model that knows nothing, and judges of what comes of both."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import numpy as np

from canvaslm.constrain.vocabulary import Vocabulary
from canvaslm.types import Constraint, Readout

NAMES = ("a", "name", "ключ", "with space", 'q"uote', "new\nline", "x" * 20, "$ref", "0", "")
VALUES = ("a", "b c", "ü", '"q"', "line\nbreak", 1, 2.5, None, True, "x" * 30, [1, 2], {"a": 1})
PATTERNS = (r"^[0-9]{3}-[0-9]{4}$", r"^(a|b)*c$", r"^[A-Z][a-z]+$", r"^\d{2,6}$", r"^x[0-9a-f]{8}$")
FORMATS = ("date", "time", "date-time", "uuid", "email", "ipv4", "ipv6")
TYPES = ("string", "integer", "number", "boolean", "null")
NODE = {  # refers to itself
    "type": "object",
    "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
    "required": ["v", "next"],
    "additionalProperties": False,
}
DEEPEST = 3
TOP = 16  # tokens of each place that a canvas tells of


def whole(seed: int) -> dict[str, Any]:
    """A schema of an object or an array, with the definition that its parts may refer to."""
    drawn = _drawn(random.Random(seed), 0)
    if drawn.get("type") not in ("object", "array"):
        drawn = {
            "type": "object",
            "properties": {"x": drawn},
            "required": ["x"],
            "additionalProperties": False,
        }
    return {**drawn, "$defs": {"node": NODE}}


def _drawn(dice: random.Random, depth: int) -> dict[str, Any]:
    leaves = (_plain, _enum, _pattern, _format, _range, _length)
    nodes = (_object, _object, _object, _array, _array, _any_of, _map, _tuple, _reference)
    kind = dice.choice((*leaves, *nodes) if depth < DEEPEST else leaves)
    return kind(dice, depth + 1)


def _plain(dice: random.Random, depth: int) -> dict[str, Any]:
    return {"type": dice.choice(TYPES)}


def _enum(dice: random.Random, depth: int) -> dict[str, Any]:
    return {"enum": dice.sample(VALUES, dice.randint(1, 5))}


def _pattern(dice: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "string", "pattern": dice.choice(PATTERNS)}


def _format(dice: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "string", "format": dice.choice(FORMATS)}


def _range(dice: random.Random, depth: int) -> dict[str, Any]:
    return dice.choice(
        [
            {"type": "integer", "minimum": dice.randint(-50, 50), "maximum": dice.randint(51, 9999)},
            {"type": "integer", "minimum": 100},
            {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            {"type": "integer", "multipleOf": 5},
        ]
    )


def _length(dice: random.Random, depth: int) -> dict[str, Any]:
    low = dice.randint(0, 12)
    return {"type": "string", "minLength": low, "maxLength": low + dice.randint(0, 10)}


def _object(dice: random.Random, depth: int) -> dict[str, Any]:
    names, share = dice.sample(NAMES, dice.randint(1, 5)), dice.choice([0, 0.8])
    return {
        "type": "object",
        "properties": {name: _drawn(dice, depth) for name in names},
        "required": [name for name in names if dice.random() < share],
        "additionalProperties": False,
    }


def _map(dice: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": _drawn(dice, depth)}


def _array(dice: random.Random, depth: int) -> dict[str, Any]:
    low = dice.randint(0, 3)
    return {
        "type": "array",
        "items": _drawn(dice, depth),
        "minItems": low,
        "maxItems": low + dice.randint(0, 3),
    }


def _tuple(dice: random.Random, depth: int) -> dict[str, Any]:
    items = [_drawn(dice, depth) for _ in range(dice.randint(1, 3))]
    return {"type": "array", "prefixItems": items, "items": False, "minItems": 1}


def _any_of(dice: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [_drawn(dice, depth) for _ in range(dice.randint(2, 3))]}


def _reference(dice: random.Random, depth: int) -> dict[str, Any]:
    return {"$ref": "#/$defs/node"}


def noise(seed: int, places: int, size: int, room: int) -> Readout:
    """A canvas at random: at each place 16 different tokens of `size`, flat, sharp or in between."""
    dice = np.random.default_rng(seed)
    tokens = np.stack([dice.choice(size, TOP, replace=False) for _ in range(places)])
    spread = dice.choice([1, 8, 25])
    logprobs = -np.sort(dice.random((places, TOP)), axis=1) * spread - 0.05
    logprobs -= np.log(np.maximum(1.0, np.exp(logprobs).sum(-1, keepdims=True)))
    return Readout(
        tuple(tokens[:, 0].tolist()),
        (False,) * places,
        tuple(map(tuple, tokens.tolist())),
        tuple(map(tuple, logprobs.tolist())),
        room,
    )


def answer(constraint: Constraint, seed: int, words: Vocabulary, places: int, budget: int) -> tuple[int, ...]:
    """The tokens that canvases of noise commit under a constraint, as the engine takes them.

    Fails where a canvas commits nothing, more than there is room for, or ends without an end token.
    """
    committed: tuple[int, ...] = ()
    state, index = constraint.start(), 0
    while True:
        room = budget - len(committed)
        projection = constraint.project(state, noise(1000 * seed + index, places, words.size, room))
        assert projection.tokens or projection.ended
        assert len(projection.tokens) == len(projection.places) <= room
        came = [place for place in projection.places if place is not None]
        assert came == sorted(set(came)), "each place once and in order"
        committed, state, index = (*committed, *projection.tokens), projection.state, index + 1
        if projection.ended:
            assert committed[-1] in words.ends
            return committed


def check_json(text: bytes, schema: Any) -> Any:
    """The value of a JSON text that `jsonschema` accepts. Raises what json or jsonschema raise."""
    value = json.loads(text.decode("utf-8"))
    jsonschema.Draft202012Validator(schema).validate(value)
    return value


__all__ = ["answer", "check_json", "noise", "whole"]
