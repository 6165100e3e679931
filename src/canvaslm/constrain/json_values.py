"""JSON values in a notation: one that is known, any at all."""

from __future__ import annotations

import json
from typing import Any

from .expression import Expression, choice, listed, members, text
from .notation import Notation
from .schema_numbers import ANY_NUMBER

ANY_DEPTH = 2  # brackets within brackets: each level doubles the states


def any_value(notation: Notation, depth: int = ANY_DEPTH) -> Expression:
    """Any value, brackets within brackets to this depth."""
    options = [notation.any_string, ANY_NUMBER, text("true"), text("false"), text("null")]
    if depth > 0:
        inner = any_value(notation, depth - 1)
        member = notation.member(notation.any_key, inner)
        options.append(notation.brackets("[", listed(inner, notation.comma, 0, None), "]"))
        options.append(notation.brackets("{", listed(member, notation.comma, 0, None), "}"))
    return choice(*options)


def literal(notation: Notation, value: Any) -> Expression:
    """One JSON value as it is written. Its brackets must not nest deeper than Python's stack."""
    if isinstance(value, str):
        return notation.string(text(value))
    if isinstance(value, dict):
        parts = [(notation.member(notation.key(k), literal(notation, v)), True) for k, v in value.items()]
        return notation.brackets("{", members(parts, notation.comma), "}")
    if isinstance(value, list | tuple):
        items = [(literal(notation, item), True) for item in value]
        return notation.brackets("[", members(items, notation.comma), "]")
    return text(json.dumps(value))


__all__ = ["ANY_DEPTH", "any_value", "literal"]
