"""Random JSON schemas of the kinds that people send."""

from __future__ import annotations

import random
from typing import Any

NAMES = ["a", "name", "ключ", "with space", 'q"uote', "new\nline", "x" * 20, "$ref", "0", "", "a/b~c"]
VALUES = ["a", "b c", "ü", '"q"', "line\nbreak", 1, 2.5, None, True, "x" * 30, [1, 2], {"a": 1}, [], {}, -0.5]
PATTERNS = [
    "^[0-9]{3}-[0-9]{4}$", "^(a|b)*c$", "^[A-Z][a-z]+$", "^\\d{2,6}$", "^x[0-9a-f]{8}$", "b+",
    "^[^\\s\"]+$", "\\W", "^a|b$", "^.{2,4}$", "[^\\x00-\\x1f]$", "^[\\\\\"\\n/]+$", "^\\S+ \\D+$",
]  # fmt: skip
FORMATS = ["date", "time", "date-time", "uuid", "email", "ipv4", "ipv6", "hostname", "uri"]
NODE = {
    "type": "object",
    "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
    "required": ["v", "next"],
    "additionalProperties": False,
}
PLAIN = ["type", "enum", "const", "pattern", "format", "integer", "number", "length", "types", "any"]
NESTED = ["object"] * 3 + ["array"] * 2 + ["anyOf", "oneOf", "map", "tuple", "ref", "all"]


def schema(r: random.Random) -> dict[str, Any]:
    """An object or array at the top; references to a linked list within."""
    made = _schema(r, 0)
    if made.get("type") not in ("object", "array"):
        made = {"type": "object", "properties": {"x": made}, "required": ["x"]}
    return {**made, "$defs": {"node": NODE}}


def _schema(r: random.Random, depth: int) -> dict[str, Any]:
    kind = r.choice(PLAIN + (NESTED if depth < 3 else []))
    return _nested(r, kind, depth + 1) if kind in NESTED else _plain(r, kind)


def _plain(r: random.Random, kind: str) -> dict[str, Any]:
    low = r.randint(-50, 50)
    match kind:
        case "type":
            return {"type": r.choice(["string", "integer", "number", "boolean", "null"]), "title": "T"}
        case "enum":
            return {"enum": r.sample(VALUES, r.randint(1, 5))}
        case "const":
            return {"const": r.choice(VALUES)}
        case "pattern":
            return {"type": "string", "pattern": r.choice(PATTERNS)}
        case "format":
            return {"type": "string", "format": r.choice(FORMATS)}
        case "integer":
            bounds = {"minimum": low, "exclusiveMaximum": low + r.randint(1, 5000)}
            return {"type": "integer", **dict(r.sample(list(bounds.items()), r.randint(1, 2)))}
        case "number":
            decimals: dict[str, float] = {
                "exclusiveMinimum": low / 8,
                "maximum": low / 8 + r.randint(1, 300) / 100,
            }
            return {"type": "number", **dict(r.sample(list(decimals.items()), r.randint(1, 2)))}
        case "length":
            least = r.randint(0, 6)
            return {"type": "string", "minLength": least, "maxLength": least + r.randint(0, 8)}
        case "types":
            return {
                "type": r.sample(["string", "integer", "null", "boolean"], 2),
                "minLength": 2,
                "maximum": 9,
            }
    return {}


def _nested(r: random.Random, kind: str, depth: int) -> dict[str, Any]:
    match kind:
        case "object":
            names, share = r.sample(NAMES, r.randint(1, 5)), r.choice([0, 0.8])
            return {
                "type": "object",
                "properties": {name: _schema(r, depth) for name in names},
                "required": [name for name in names if r.random() < share],
                **r.choice([{}, {"additionalProperties": False}, {"minProperties": 0}]),
            }
        case "map":
            return {
                "type": "object",
                "additionalProperties": _schema(r, depth),
                "maxProperties": r.randint(0, 4),
            }
        case "array":
            low = r.randint(0, 3)
            return {
                "type": "array",
                "items": _schema(r, depth),
                "minItems": low,
                "maxItems": low + r.randint(0, 3),
            }
        case "tuple":
            items = [_schema(r, depth) for _ in range(r.randint(1, 3))]
            rest = r.choice([False, {"type": "integer"}])
            return {
                "type": "array",
                "prefixItems": items,
                "items": rest,
                "minItems": r.randint(0, len(items)),
            }
        case "anyOf":
            return {"anyOf": [_schema(r, depth) for _ in range(r.randint(2, 3))]}
        case "oneOf":
            tagged = [_tagged(r, tag, depth) for tag in r.sample(["one", "two", "three"], 2)]
            return {"oneOf": [*tagged, {"type": "null"}]}
        case "all":
            return {"allOf": [_tagged(r, "tag", depth), {"required": ["value"]}], "description": "both"}
    return {"$ref": "#/$defs/node"}


def _tagged(r: random.Random, tag: str, depth: int) -> dict[str, Any]:
    properties = {"kind": {"const": tag}, "value": _schema(r, depth)}
    return {"type": "object", "properties": properties, "required": ["kind"]}


__all__ = ["FORMATS", "NODE", "PATTERNS", "schema"]
