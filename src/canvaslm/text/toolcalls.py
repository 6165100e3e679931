"""The notation of tool calls: `call:name{key:value,...}`, its strings quoted by the marker `<|"|>`.

Source: Gemma 4's chat template, which writes calls and results this way. Values are quoted strings, numbers,
`true`, `false`, `null`, objects and lists. Read more widely than the template writes: keys may be quoted,
JSON strings and `None` are understood, spaces are ignored.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..types import ToolCall

MAX_DEPTH = 64
QUOTE = '<|"|>'
_NAME = re.compile(r"\s*call:([^\s{}\"<>]{1,256})\s*")
_KEY = re.compile(r"[^\s{}\[\],:\"]+")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?(?![\w.])")
_WORD = re.compile(r"[A-Za-z]+")
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None, "None": None}
_SPACE = re.compile(r"\s*")


def tool_names(tools: Sequence[Mapping[str, Any]] | None) -> frozenset[str]:
    """The names of OpenAI-style definitions; what is malformed in them has none."""
    functions = [tool.get("function") for tool in tools or () if isinstance(tool, Mapping)]
    names = [function.get("name") for function in functions if isinstance(function, Mapping)]
    return frozenset(name for name in names if isinstance(name, str))


class Quote:
    """The marker `<|"|>` between pieces of text."""


class _Malformed(ValueError):
    pass


def parse_call(pieces: Sequence[str | Quote]) -> ToolCall | None:
    """The call that stands between `<|tool_call>` and `<tool_call|>`, None where it is malformed."""
    text = ""
    quotes: set[int] = set()
    for piece in pieces:
        if isinstance(piece, Quote):
            quotes.add(len(text))
            text += '"'
        else:
            text += piece
    match = _NAME.match(text)
    if match is None:
        return None
    try:
        reader = _CallCursor(text, quotes, match.end())
        arguments = reader.object(0)
        reader.end()
    except (_Malformed, ValueError):  # int() refuses more than 4300 digits
        return None
    return ToolCall(match[1], arguments)


class _CallCursor:
    """A cursor over the text; `quotes` are the places where a `"` is the quote marker."""

    def __init__(self, text: str, quotes: set[int], place: int) -> None:
        self._text = text
        self._quotes = quotes
        self._place = place

    def end(self) -> None:
        self._skip()
        if self._place != len(self._text):
            raise _Malformed

    def object(self, depth: int) -> dict[str, Any]:
        self._expect("{")
        found: dict[str, Any] = {}
        if self._take("}"):
            return found
        while True:
            key = self._key()
            self._expect(":")
            found[key] = self._value(depth + 1)
            if self._take("}"):
                return found
            self._expect(",")

    def _list(self, depth: int) -> list[Any]:
        self._expect("[")
        found: list[Any] = []
        if self._take("]"):
            return found
        while True:
            found.append(self._value(depth + 1))
            if self._take("]"):
                return found
            self._expect(",")

    def _value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise _Malformed
        self._skip()
        start = self._text[self._place : self._place + 1]
        if start == "{":
            return self.object(depth)
        if start == "[":
            return self._list(depth)
        if start == '"':
            return self._string()
        return self._number_or_word()

    def _number_or_word(self) -> Any:
        if match := _NUMBER.match(self._text, self._place):
            self._place = match.end()
            return _number(match)
        match = _WORD.match(self._text, self._place)
        if match is None or match[0] not in _WORDS:
            raise _Malformed
        self._place = match.end()
        return _WORDS[match[0]]

    def _key(self) -> str:
        self._skip()
        if self._text[self._place : self._place + 1] == '"':
            return self._string()
        match = _KEY.match(self._text, self._place)
        if match is None:
            raise _Malformed
        self._place = match.end()
        return match[0]

    def _string(self) -> str:
        return self._marked_string() if self._place in self._quotes else self._json_string()

    def _marked_string(self) -> str:
        """Everything up to the next quote marker, as it stands: there are no escapes."""
        end = self._place + 1
        while end not in self._quotes:
            end = self._text.find('"', end + 1) if self._text[end : end + 1] != '"' else end + 1
            if not 0 <= end < len(self._text):
                raise _Malformed
        found = self._text[self._place + 1 : end]
        self._place = end + 1
        return found

    def _json_string(self) -> str:
        try:
            found, end = json.JSONDecoder().raw_decode(self._text, self._place)
        except ValueError:
            raise _Malformed from None
        if not self._quotes.isdisjoint(range(self._place, end)):
            raise _Malformed
        self._place = end
        return str(found)

    def _skip(self) -> None:
        match = _SPACE.match(self._text, self._place)
        self._place = match.end() if match else self._place

    def _take(self, char: str) -> bool:
        self._skip()
        if self._text[self._place : self._place + 1] != char or self._place in self._quotes:
            return False
        self._place += 1
        return True

    def _expect(self, char: str) -> None:
        if not self._take(char):
            raise _Malformed


def _number(match: re.Match[str]) -> int | float:
    if not (match[1] or match[2]):
        return int(match[0])
    value = float(match[0])
    if math.isinf(value):  # no JSON has it
        raise _Malformed
    return value


def as_number(text: str) -> int | float | None:
    """The number that `text` is and nothing else; None where it is none that JSON has."""
    match = _NUMBER.fullmatch(text)
    try:
        return None if match is None else _number(match)
    except ValueError:  # too large
        return None


def as_word(text: str) -> Any:
    """`true`, `false` or `null` as values; any other text as it is."""
    return _WORDS.get(text, text)


__all__ = ["MAX_DEPTH", "QUOTE", "Quote", "as_number", "as_word", "parse_call", "tool_names"]
