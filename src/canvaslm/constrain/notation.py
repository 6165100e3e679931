"""How values are written: JSON, or the notation in which a model writes the arguments of a tool call.

A schema says which values there may be; a `Notation` says how each stands in the text, as an `Expression`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property

from .expression import (
    ANY_CHARACTER,
    EMPTY,
    Characters,
    Either,
    Expression,
    Members,
    Range,
    Repeat,
    Series,
    Text,
    characters,
    choice,
    marker,
    others,
    repeat,
    sequence,
    text,
)

NEVER: Expression = Either(())  # what nothing can be written for
_ESCAPED = {ord(char): escape for char, escape in zip('"\\\b\f\n\r\t', '"\\bfnrt', strict=True)}
_UNSAFE: tuple[Range, ...] = ((0, 31), (34, 34), (92, 92), (127, 127))
_HEX = characters([(48, 57), (65, 70), (97, 102)])
_BARE_KEY = re.compile(r"[^\s{}\[\],:\"<>|]+")
_BARE_START = characters([(65, 90), (95, 95), (97, 122)])
_BARE_REST = characters([(48, 57), (65, 90), (95, 95), (97, 122)])


@dataclass(frozen=True, eq=False)
class Notation:
    """The signs around values. `space` may stand inside brackets and behind `,`, `gap` behind `:`."""

    quote: Expression  # around a string
    escapes: bool  # whether a string's characters are escaped as in JSON
    bare_keys: bool  # whether a key that looks like a name stands without quotes
    space: Expression
    gap: Expression

    @cached_property
    def comma(self) -> Expression:
        """Between two members or items."""
        return sequence(",", self.space)

    def string(self, body: Expression) -> Expression:
        """A string whose characters are `body`, an expression over plain characters."""
        return sequence(self.quote, json_escaped(body) if self.escapes else body, self.quote)

    @cached_property
    def any_string(self) -> Expression:
        """Any string at all; in JSON with all its ways of escaping."""
        if not self.escapes:
            return self.string(repeat(ANY_CHARACTER))
        coded = sequence("\\u", choice(_not_surrogate(), sequence(_LETTER_D, _LOW_DIGIT)), _HEX, _HEX)
        return sequence(self.quote, repeat(choice(_plain_character(), coded)), self.quote)

    def key(self, name: str) -> Expression:
        """The key of this name."""
        if self.bare_keys and _BARE_KEY.fullmatch(name):
            return text(name)
        return self.string(text(name))

    @cached_property
    def any_key(self) -> Expression:
        """A key of any name."""
        return sequence(_BARE_START, repeat(_BARE_REST, 0, 63)) if self.bare_keys else self.any_string

    def member(self, key: Expression, value: Expression) -> Expression:
        """A key and its value."""
        return sequence(key, ":", self.gap, value)

    def brackets(self, begin: str, content: Expression, end: str) -> Expression:
        """What an object or array has between its brackets."""
        if isinstance(content, Series) and not content.parts:
            return sequence(begin, self.space, end)
        return sequence(begin, self.space, content, self.space, end)


def json_notation(space: Expression | None = None) -> Notation:
    """JSON. `space`: where white space may stand; by default a few spaces, or a line break and an indent."""
    if space is not None:
        return Notation(text('"'), True, False, space, space)
    blank = characters([(32, 32), (10, 10)])
    loose = choice(repeat(blank, 0, 2), sequence("\n", repeat(" ", 2, 8)))
    return Notation(text('"'), True, False, loose, repeat(blank, 0, 2))


def call_notation(quote: int) -> Notation:
    """Arguments of tool calls, `{key:<|"|>text<|"|>,n:3}`; `quote`: the symbol of the marker there."""
    return Notation(marker(quote), False, True, EMPTY, EMPTY)


def json_escaped(body: Expression) -> Expression:
    """What a JSON string writes for these characters: `"` and `\\` escaped, control characters by letters.

    A set loses the control characters that have no letter; where none is left it is `NEVER`.
    """
    match body:
        case Text(value):
            return text(json.dumps(value, ensure_ascii=False)[1:-1])
        case Characters(ranges):
            return _escaped_set(ranges)
        case Series(parts):
            return sequence(*map(json_escaped, parts))
        case Either(options):
            return choice(*map(json_escaped, options))
        case Repeat(inner, low, high, separator):
            between = None if separator is None else json_escaped(separator)
            return Repeat(json_escaped(inner), low, high, between)
        case Members(parts, required, separator):
            return Members(tuple(map(json_escaped, parts)), required, json_escaped(separator))
        case _:
            return body


def _escaped_set(ranges: tuple[Range, ...]) -> Expression:
    options: list[Expression] = []
    safe = [(low, high) for low, high in _overlap(ranges, others(_UNSAFE).ranges)]
    if safe:
        options.append(characters(safe))
    letters = [
        (ord(letter), ord(letter))
        for code, letter in _ESCAPED.items()
        if any(low <= code <= high for low, high in ranges)
    ]
    if letters:
        options.append(sequence("\\", characters(letters)))
    return choice(*options)


def _overlap(some: tuple[Range, ...], others_: tuple[Range, ...]) -> list[Range]:
    return [
        (max(low, begin), min(high, end))
        for low, high in some
        for begin, end in others_
        if max(low, begin) <= min(high, end)
    ]


_LETTER_D = characters([(68, 68), (100, 100)])
_LOW_DIGIT = characters([(48, 55)])


def _not_surrogate() -> Expression:
    """The first two of four digits that no half of a pair has, if it is not `d` they begin with."""
    return sequence(characters([(48, 57), (65, 67), (69, 70), (97, 99), (101, 102)]), _HEX)


def _plain_character() -> Expression:
    """A character as JSON writes it by itself, or with the shortest escape; `/` may be escaped too."""
    return choice(others(_UNSAFE), sequence("\\", characters([(ord(c), ord(c)) for c in '"\\/bfnrt'])))


__all__ = ["NEVER", "Notation", "call_notation", "json_escaped", "json_notation"]
