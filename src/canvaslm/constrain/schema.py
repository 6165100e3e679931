"""JSON Schema to an expression: every text of it is a document that validates.

It is a subset. Keys come in the schema's order, only named ones where some are named; white space is bounded;
what refers to itself nests a few times. What an automaton cannot say is `Unsupported`, never ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any

from .expression import EMPTY, Expression, choice, listed, members, never, optional, repeat, sequence, text
from .json_values import ANY_DEPTH, any_value, literal
from .notation import NEVER, Notation, json_notation
from .schema_document import NOTES, Schema, SchemaDocument, Unsupported, identity, merged, step
from .schema_values import CHECKS, number_of, string_of

REFERENCES = 4  # how often one `$ref` is followed within itself
MAX_NESTING, MAX_PARTS, MAX_ITEMS = 100, 20_000, 1000

_Seen = Mapping[str, int]

_KEYWORDS = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
    "boolean": set(),
    "null": set(),
    "object": {
        "properties", "required", "additionalProperties", "patternProperties", "propertyNames",
        "minProperties", "maxProperties", "unevaluatedProperties", "dependentRequired",
        "dependentSchemas", "dependencies",
    },
    "array": {
        "items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems", "contains",
        "minContains", "maxContains", "unevaluatedItems",
    },
}  # fmt: skip
_NOT_REGULAR = {"not", "if", "then", "else", "$dynamicRef", "$recursiveRef"}
_BEYOND = {
    "dependentRequired", "dependentSchemas", "dependencies", "contains", "minContains", "maxContains",
}  # fmt: skip


def compile_schema(
    document: str | Schema, notation: Notation | None = None, param: str = "schema"
) -> Expression:
    """The documents of a schema, written in a notation (JSON).

    Raises Unsupported for what is beyond an automaton, and UsageError for what is no schema, is too large,
    refers elsewhere or allows no document; both on `param`, with the JSON pointer of the part at fault.
    """
    compiler = _Compiler(SchemaDocument(document, param), notation or json_notation())
    return compiler.whole()


@dataclass
class _Compiler:
    document: SchemaDocument
    notation: Notation
    parts: int = 0
    nesting: int = 0
    known: dict[tuple[str, frozenset[tuple[str, int]]], Expression] = field(default_factory=dict)
    why: str = ""  # the first reason why something cannot be written

    def whole(self) -> Expression:
        found = self.of(self.document.root, "#", {})
        if never(found):
            raise self.document.error(
                "#", f"no finite document satisfies this: {self.why or 'it allows nothing'}"
            )
        return found

    def of(self, schema: Any, pointer: str, seen: _Seen) -> Expression:
        """The expression of a schema; NEVER where it allows nothing, or nothing within the depth."""
        self.parts += 1
        if self.parts > MAX_PARTS or self.nesting >= MAX_NESTING:
            raise self.document.unsupported(pointer, "its references unfold to too much for an automaton")
        self.nesting += 1
        try:
            schema = self.document.part(schema, pointer)
            if isinstance(schema, bool):
                return any_value(self.notation) if schema else self.nothing(pointer, "false allows no value")
            conditions = {key: value for key, value in schema.items() if key not in NOTES}
            return self._of(conditions, pointer, seen)
        finally:
            self.nesting -= 1

    def _of(self, schema: dict[str, Any], pointer: str, seen: _Seen) -> Expression:
        for key in schema:
            if key in _NOT_REGULAR or key in _BEYOND:
                raise self.document.unsupported(step(pointer, key), f"{key!r} is not supported")
        if "$ref" in schema:
            return self._reference(schema, pointer, seen)
        if "allOf" in schema:
            return self._all(schema, pointer, seen)
        if "const" in schema or "enum" in schema:
            return self._values(schema, pointer)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return self._any(schema, key, pointer, seen)
        return self._typed(schema, pointer, seen)

    def nothing(self, pointer: str, why: str) -> Expression:
        """That nothing can be written here."""
        self.why = self.why or f"at {pointer}, {why}"
        return NEVER

    def _reference(self, schema: dict[str, Any], pointer: str, seen: _Seen) -> Expression:
        reference, at = schema["$ref"], step(pointer, "$ref")
        target = self.document.target(reference, at)
        if seen.get(reference, 0) >= REFERENCES:
            return self.nothing(at, f"{reference} needs itself, again and again")
        seen = {**seen, reference: seen.get(reference, 0) + 1}
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        if rest:
            return self.of({"allOf": [target, rest]}, pointer, seen)
        key = (reference, frozenset(seen.items()))
        if key not in self.known:
            self.known[key] = self.of(target, reference, seen)
        return self.known[key]

    def _all(self, schema: dict[str, Any], pointer: str, seen: _Seen) -> Expression:
        rest = {key: value for key, value in schema.items() if key != "allOf"}
        parts: list[tuple[Mapping[str, Any], str]] = [(rest, pointer)]
        for index, part in enumerate(self._list(schema["allOf"], step(pointer, "allOf"))):
            at = step(pointer, "allOf", index)
            while isinstance(part, dict) and "$ref" in part:
                reference = part["$ref"]
                target = self.document.target(reference, at)
                if seen.get(reference, 0) >= REFERENCES:
                    return self.nothing(at, f"{reference} needs itself, again and again")
                seen = {**seen, reference: seen.get(reference, 0) + 1}
                parts.append(({key: value for key, value in part.items() if key != "$ref"}, at))
                part, at = target, reference
            part = self.document.part(part, at)
            if part is False:
                return self.nothing(at, "false allows no value")
            parts.append((part if isinstance(part, dict) else {}, at))
        return self.of(merged(self.document, parts), pointer, seen)

    def _values(self, schema: dict[str, Any], pointer: str) -> Expression:
        others = schema.keys() & set().union(*_KEYWORDS.values(), {"anyOf", "oneOf"})
        if others:
            raise self.document.unsupported(step(pointer, min(others)), "it stands beside const or enum")
        values = self._list(schema["enum"], step(pointer, "enum")) if "enum" in schema else [schema["const"]]
        if "const" in schema:
            values = [v for v in values if identity(v) == identity(schema["const"])][:1]
        types = self._types(schema, pointer)
        fitting = [v for v in values if types is None or any(CHECKS[name](v) for name in types)]
        if not fitting:
            return self.nothing(pointer, "no value is left")
        unique = {identity(value): value for value in reversed(fitting)}
        return choice(*(literal(self.notation, value) for value in reversed(unique.values())))

    def _any(self, schema: dict[str, Any], key: str, pointer: str, seen: _Seen) -> Expression:
        options = self._list(schema[key], step(pointer, key))
        rest = {name: value for name, value in schema.items() if name != key}
        if key == "oneOf":
            self._check_apart(options, step(pointer, key))
        found = []
        for index, option in enumerate(options):
            whole = {"allOf": [rest, option]} if rest else option
            found.append(self.of(whole, step(pointer, key, index), seen))
        found = [option for option in found if not never(option)]
        return choice(*found) if found else NEVER

    def _check_apart(self, options: list[Any], pointer: str) -> None:
        """Of `oneOf`: no value may satisfy two. Known by type, by values, or by a member's values."""
        if len(options) > 100:
            raise self.document.unsupported(pointer, "more than 100 options of oneOf")
        told = [self._told_apart_by(self._followed(option, pointer), pointer) for option in options]
        for one, other in combinations(told, 2):
            if not any(key in other and one[key].isdisjoint(other[key]) for key in one):
                raise self.document.unsupported(
                    pointer,
                    "the options of oneOf may overlap: write anyOf, or give each its own constant",
                )

    def _followed(self, option: Any, pointer: str) -> dict[str, Any]:
        """An option with what its `$ref` names, to look at."""
        found = _mapping(option)
        for _ in range(REFERENCES):
            if "$ref" in found:
                rest = {key: value for key, value in found.items() if key != "$ref"}
                found = {**_mapping(self.document.target(found["$ref"], pointer)), **rest}
        return found

    def _told_apart_by(self, option: dict[str, Any], pointer: str) -> dict[str, set[str]]:
        """What an option's values have in common, by what they are looked at for."""
        found = dict[str, set[str]]()
        types = self._types(option, pointer)
        if types is not None:
            found["type"] = {"number" if name == "integer" else name for name in types}
        values = _constants(option)
        if values is not None:
            found["value"] = values
        required = option.get("required", [])
        if found.get("type") == {"object"} and isinstance(required, list):
            for name, member in _mapping(option.get("properties")).items():
                constants = _constants(_mapping(member))
                if constants is not None and name in required:
                    found[f"member {name}"] = constants
        return found

    def _types(self, schema: Mapping[str, Any], pointer: str) -> list[str] | None:
        if "type" not in schema:
            return None
        names = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        if not isinstance(names, list) or not all(isinstance(n, str) and n in _KEYWORDS for n in names):
            known = ", ".join(_KEYWORDS)
            raise self.document.error(step(pointer, "type"), f"the type must be among {known}")
        return names

    def _typed(self, schema: dict[str, Any], pointer: str, seen: _Seen) -> Expression:
        types = self._types(schema, pointer)
        if types is None:
            types = [name for name, keys in _KEYWORDS.items() if name != "integer" and keys & schema.keys()]
            if not types:
                return any_value(self.notation)
        makers: dict[str, Callable[[], Expression]] = {
            "string": partial(string_of, self, schema, pointer),
            "integer": partial(number_of, self, schema, pointer, whole=True),
            "number": partial(number_of, self, schema, pointer, whole=False),
            "boolean": lambda: choice("true", "false"),
            "null": lambda: text("null"),
            "object": lambda: self._object(schema, pointer, seen),
            "array": lambda: self._array(schema, pointer, seen),
        }
        found = [option for name in dict.fromkeys(types) if not never(option := makers[name]())]
        return choice(*found) if found else self.nothing(pointer, "no type is left")

    def _object(self, schema: dict[str, Any], pointer: str, seen: _Seen) -> Expression:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, dict):
            raise self.document.error(step(pointer, "properties"), "an object must stand here")
        required = self._list(required, step(pointer, "required"))
        names = list(dict.fromkeys([*properties, *required]))
        if not names:
            return self._map(schema, pointer, seen)
        for key in ("patternProperties", "propertyNames"):
            if key in schema:
                raise self.document.unsupported(step(pointer, key), f"{key!r} beside named properties")
        self._check_count(schema, len(required), len(names), pointer)
        parts: list[tuple[Expression | str, bool]] = []
        for name in names:
            value = self._member(schema, name, pointer, seen)
            if not never(value):
                parts.append((self.notation.member(self.notation.key(name), value), name in required))
            elif name in required:
                return self.nothing(step(pointer, "properties", name), "what is required cannot be written")
        return self.notation.brackets("{", members(parts, self.notation.comma), "}")

    def _member(self, schema: dict[str, Any], name: Any, pointer: str, seen: _Seen) -> Expression:
        if not isinstance(name, str):
            raise self.document.error(step(pointer, "required"), "names must be strings")
        if name in schema.get("properties", {}):
            return self.of(schema["properties"][name], step(pointer, "properties", name), seen)
        return self.of(self._additional(schema), step(pointer, "additionalProperties"), seen)

    def _additional(self, schema: dict[str, Any]) -> Any:
        return schema.get("additionalProperties", schema.get("unevaluatedProperties", True))

    def _check_count(self, schema: dict[str, Any], least: int, most: int, pointer: str) -> None:
        if self.count(schema, "minProperties", pointer, 0) > least:
            raise self.document.unsupported(step(pointer, "minProperties"), "more than are required")
        if self.count(schema, "maxProperties", pointer, most) < most:
            raise self.document.unsupported(step(pointer, "maxProperties"), "fewer than are named")

    def _map(self, schema: dict[str, Any], pointer: str, seen: _Seen) -> Expression:
        """An object whose keys have no names."""
        if self.count(schema, "minProperties", pointer, 0) > 0:
            raise self.document.unsupported(step(pointer, "minProperties"), "without names of properties")
        most = self.count(schema, "maxProperties", pointer, -1)
        key, value = self.notation.any_key, self._additional(schema)
        if "propertyNames" in schema:
            names = schema["propertyNames"]
            if (
                not isinstance(names, dict)
                or names.keys() - NOTES - {"pattern", "type"}
                or "pattern" not in names
            ):
                raise self.document.unsupported(step(pointer, "propertyNames"), "only a pattern is supported")
            key = string_of(self, {"pattern": names["pattern"]}, step(pointer, "propertyNames"))
        if "patternProperties" in schema:
            patterns = _mapping(schema["patternProperties"])
            if len(patterns) != 1 or "propertyNames" in schema:
                raise self.document.unsupported(step(pointer, "patternProperties"), "more than one pattern")
            ((pattern, value),) = patterns.items()
            key = string_of(self, {"pattern": pattern}, step(pointer, "patternProperties"))
        if value is True and pointer == "#":  # all there is: there is room for another level
            content = any_value(self.notation, ANY_DEPTH + 1)
        else:
            content = NEVER if value is False else self.of(value, step(pointer, "additionalProperties"), seen)
        if never(content) or never(key):
            return self.notation.brackets("{", EMPTY, "}")
        member = self.notation.member(key, content)
        return self.notation.brackets(
            "{", listed(member, self.notation.comma, 0, None if most < 0 else most), "}"
        )

    def _array(self, schema: dict[str, Any], pointer: str, seen: _Seen) -> Expression:
        low, high = self.count(schema, "minItems", pointer, 0), self.count(schema, "maxItems", pointer, -1)
        if max(low, high) > MAX_ITEMS:
            raise self.document.unsupported(pointer, f"more than {MAX_ITEMS} items")
        if schema.get("uniqueItems") is True and not 0 <= high <= 1:
            raise self.document.unsupported(step(pointer, "uniqueItems"), "items that differ are not regular")
        first, rest = schema.get("prefixItems", []), schema.get("items", schema.get("unevaluatedItems", True))
        if isinstance(rest, list):  # as it was written before 2020
            first, rest = rest, schema.get("additionalItems", True)
        most = None if high < 0 else high
        if most is not None and low > most:
            return self.nothing(pointer, "minItems is above maxItems")
        items = []
        for index, item in enumerate(self._list(first, step(pointer, "prefixItems"))[:most]):
            items.append(self.of(item, step(pointer, "prefixItems", index), seen))
        return self._items(items, rest, (low, most), pointer, seen)

    def _items(
        self, items: list[Expression], rest: Any, count: tuple[int, int | None], pointer: str, seen: _Seen
    ) -> Expression:
        low, most = count
        stop = next((i for i, item in enumerate(items) if never(item)), None)
        other = NEVER
        if stop is None and rest is not False and (most is None or most > len(items)):
            other = self.of(rest, step(pointer, "items"), seen)
        items = items[:stop]
        if never(other):
            if low > len(items):
                return self.nothing(pointer, f"{low} items are asked for and {len(items)} allowed")
            tail: Expression = EMPTY
        else:
            more = None if most is None else most - len(items)
            tail = self._others(other, max(0, low - len(items)), more, bool(items))
        comma = self.notation.comma
        for index in range(len(items) - 1, -1, -1):
            found = sequence(*([comma] if index else []), items[index], tail)
            tail = found if index < low else optional(found)
        return self.notation.brackets("[", tail, "]")

    def _others(self, item: Expression, low: int, high: int | None, behind: bool) -> Expression:
        comma = self.notation.comma
        if behind:
            return repeat(sequence(comma, item), low, high)
        return listed(item, comma, low, high)

    def count(self, schema: Mapping[str, Any], key: str, pointer: str, default: int) -> int:
        """A keyword that is a whole number, 0 or more."""
        value = schema.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
            raise self.document.error(step(pointer, key), "a whole number must stand here")
        if value < 0 and key in schema:
            raise self.document.error(step(pointer, key), "a number of 0 or more must stand here")
        return int(value)

    def _list(self, value: Any, pointer: str) -> list[Any]:
        if not isinstance(value, list | tuple):
            raise self.document.error(pointer, "a list must stand here")
        return list(value)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _constants(schema: Mapping[str, Any]) -> set[str] | None:
    if "const" in schema:
        return {identity(schema["const"])}
    values = schema.get("enum")
    return set(map(identity, values)) if isinstance(values, list) else None


__all__ = ["Unsupported", "compile_schema"]
