"""A JSON schema as it was sent: checked for size and depth before anything walks it, its references found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from ..errors import UsageError

MAX_BYTES, MAX_DEPTH, MAX_VALUES = 65_536, 64, 20_000

Schema = bool | Mapping[str, Any]

# Keywords that are no conditions.
NOTES = frozenset((
    "title", "description", "default", "examples", "example", "$schema", "$id", "$comment", "$anchor",
    "$defs", "definitions", "deprecated", "readOnly", "writeOnly", "contentMediaType", "contentEncoding", 
    "contentSchema", "$vocabulary",
))  # fmt: skip


class Unsupported(UsageError):
    """A schema that is well-formed, and that an automaton does not say: another engine may."""


class SchemaDocument:
    """A whole schema and its parts by their JSON pointers."""

    def __init__(self, document: str | Schema, param: str) -> None:
        self.param = param
        self.root = self._checked(document)

    def error(self, pointer: str, what: str) -> UsageError:
        """That a part cannot work."""
        return UsageError(f"schema, at {pointer or '#'}: {what}", self.param)

    def unsupported(self, pointer: str, what: str) -> Unsupported:
        """That a part is beyond what an automaton says."""
        return Unsupported(f"schema, at {pointer or '#'}: {what}", self.param)

    def target(self, reference: Any, pointer: str) -> Any:
        """What a `$ref` names. Raises UsageError for what is not in this document."""
        if not isinstance(reference, str):
            raise self.error(pointer, "$ref must be a string such as '#/$defs/name'")
        if not reference.startswith("#"):
            raise self.error(pointer, f"$ref {reference[:80]!r} is elsewhere: copy what it names into $defs")
        if reference != "#" and not reference.startswith("#/"):
            raise self.unsupported(pointer, f"$ref {reference[:80]!r} names an anchor: write '#/$defs/name'")
        found: Any = self.root
        for part in reference.split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            try:
                found = found[int(key)] if isinstance(found, list) else found[key]
            except (KeyError, IndexError, TypeError, ValueError):
                raise self.error(pointer, f"$ref {reference[:80]!r} names nothing in this schema") from None
        return found

    def part(self, value: Any, pointer: str) -> Schema:
        """A value where a schema must stand."""
        if not isinstance(value, bool | dict):
            raise self.error(pointer, "an object (or true, false) must stand here")
        return value

    def _checked(self, document: str | Schema) -> Schema:
        if isinstance(document, str):
            self._check_size(len(document.encode("utf-8", "replace")))
            try:
                document = json.loads(document)
            except (ValueError, RecursionError):
                raise UsageError("the schema is no JSON: check its brackets and quotes", self.param) from None
        self._check_depth(document)
        try:
            written = json.dumps(document, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UsageError(f"the schema holds what JSON cannot write: {error}", self.param) from None
        self._check_size(len(written))
        return self.part(document, "#")

    def _check_size(self, size: int) -> None:
        if size > MAX_BYTES:
            raise UsageError(f"the schema has {size} bytes: {MAX_BYTES} are the most, shorten it", self.param)

    def _check_depth(self, document: Any) -> None:
        """Level by level, so that no depth is too much for the check itself."""
        level: list[Any] = [document]
        depth = values = 0
        while level:
            depth, values = depth + 1, values + len(level)
            if depth > MAX_DEPTH:
                raise UsageError(f"the schema nests deeper than {MAX_DEPTH} levels: flatten it", self.param)
            if values > MAX_VALUES:
                raise UsageError(f"the schema has more than {MAX_VALUES} values: shorten it", self.param)
            inner: list[Any] = []
            for value in level:
                if isinstance(value, dict):
                    inner.extend(value.values())
                elif isinstance(value, list | tuple):
                    inner.extend(value)
            level = inner


def identity(value: Any) -> str:
    """Equal for what JSON Schema calls equal: 1 is 1.0, and neither is true."""
    plain = json.loads(json.dumps(value), parse_float=_whole_if_it_is)
    return json.dumps(plain, sort_keys=True)


def _whole_if_it_is(written: str) -> int | float:
    value = float(written)
    return int(value) if value.is_integer() else value


def step(pointer: str, *keys: str | int) -> str:
    """The pointer of a part within a part."""
    return "/".join([pointer, *(str(key).replace("~", "~0").replace("/", "~1") for key in keys)])


def merged(document: SchemaDocument, parts: Sequence[tuple[Mapping[str, Any], str]]) -> dict[str, Any]:
    """One schema that says what all of them say. Raises Unsupported where their keywords do not combine.

    Each part comes with its pointer.
    """
    conditions = [({k: v for k, v in part.items() if k not in NOTES}, at) for part, at in parts]
    conditions = [(part, at) for part, at in conditions if part]
    closed = [at for part, at in conditions if part.get("additionalProperties", True) is not True]
    shaped = [at for part, at in conditions if part.get("properties")]
    if closed and len({*closed, *shaped}) > 1:
        raise document.unsupported(closed[0], "additionalProperties beside properties of another schema")
    found: dict[str, Any] = {}
    for part, at in conditions:
        for key, value in part.items():
            if key not in found or identity(found[key]) == identity(value):
                found[key] = value
            else:
                found[key] = _both(document, key, found[key], value, at)
    return found


def _both(document: SchemaDocument, key: str, one: Any, other: Any, pointer: str) -> Any:
    """One keyword's value that says what two say."""
    try:
        match key:
            case "properties":
                shared = {name: {"allOf": [one[name], other[name]]} for name in one.keys() & other.keys()}
                return {**one, **other, **shared}
            case "required":
                return list(dict.fromkeys([*one, *other]))
            case "minimum" | "exclusiveMinimum" | "minLength" | "minItems" | "minProperties":
                return max(one, other)
            case "maximum" | "exclusiveMaximum" | "maxLength" | "maxItems" | "maxProperties":
                return min(one, other)
            case "items":
                return {"allOf": [one, other]}
            case "allOf":
                return [*one, *other]
            case "type":
                return _both_types(one, other)
            case "enum":
                allowed = set(map(identity, other))
                return [value for value in one if identity(value) in allowed]
    except (TypeError, AttributeError):
        raise document.error(step(pointer, key), "this is not of the kind that the keyword takes") from None
    raise document.unsupported(step(pointer, key), f"{key!r} stands twice, with different values")


def _both_types(one: Any, other: Any) -> list[str]:
    first = [one] if isinstance(one, str) else list(one)
    second = [other] if isinstance(other, str) else list(other)
    whole = {"integer"} if "number" in first or "number" in second else set()
    both = [name for name in first if name in second]
    return both + [name for name in dict.fromkeys([*first, *second]) if name in whole and name not in both]


__all__ = [
    "MAX_BYTES", "MAX_DEPTH", "MAX_VALUES", "NOTES", "Schema", "SchemaDocument", "Unsupported", "identity",
    "merged", "step",
]  # fmt: skip
