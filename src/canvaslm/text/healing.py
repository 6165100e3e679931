"""Tool calls with small damage, read for what they evidently say.

Healed: braces, brackets and a last string that are not closed; one brace too many at the end; a comma before
a closing brace; strings without quotes, or with quotes of two kinds; a call without `call:` in front. What
could be read in two ways, or would have to be made up (a missing value), stays damaged: it is text. No
character of a key or a value is left out or changed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from ..types import ToolCall
from .toolcalls import MAX_DEPTH, QUOTE, Quote, as_number, as_word

_NAME = re.compile(r"\s*(?:call:)?\s*([^\s{}\[\]\"<>:,]{1,256})\s*\{")
_CLOSERS = {"{": "}", "[": "]"}
_SPACE = frozenset(" \t\r\n")
_BARE_ENDS = frozenset(',{}[]"')
_KEY_ENDS = _BARE_ENDS | {":"}
_MEMBER = re.compile(r"\s[\w.-]+:")
_QUOTES = ('"', QUOTE)


class _Damaged(ValueError):
    pass


def heal_call(pieces: Sequence[str | Quote], *, closed: bool) -> ToolCall | None:
    """The call that damaged text between the markers evidently means, `healed`; None where it means none.

    `closed`: the closing marker was there; without it an object of which nothing was written is none.
    """
    symbols = [s for piece in pieces for s in ((QUOTE,) if isinstance(piece, Quote) else piece)]
    start = "".join(s if len(s) == 1 else '"' for s in symbols[:600])
    match = _NAME.match(start)
    if match is None:
        return None
    cursor = _HealingCursor(symbols, match.end())
    try:
        arguments = cursor.object(0)
        cursor.end()
    except (_Damaged, ValueError):  # int() refuses more than 4300 digits
        return None
    return ToolCall(match[1], arguments, healed=True) if arguments or closed else None


class _HealingCursor:
    """A cursor over characters and quote markers; `_open` are the braces and brackets not closed yet."""

    def __init__(self, symbols: list[str], place: int) -> None:
        self._symbols, self._place = symbols, place
        self._open: list[str] = []

    def end(self) -> None:
        """Behind the call: closers too many, and nothing else."""
        if any(s not in _SPACE and s not in "}]" for s in self._symbols[self._place :]):
            raise _Damaged

    def object(self, depth: int) -> dict[str, Any]:
        """The members, the opening brace being read."""
        found: dict[str, Any] = {}
        self._open.append("{")
        while self._another(first=not found):
            key = self._key()
            self._skip()
            if self._next() != ":" or key in found:
                raise _Damaged
            self._place += 1
            found[key] = self._value(depth + 1)
        return found

    def _list(self, depth: int) -> list[Any]:
        found: list[Any] = []
        self._open.append("[")
        while self._another(first=not found):
            found.append(self._value(depth + 1))
        return found

    def _another(self, *, first: bool) -> bool:
        """Whether a member follows; reads the comma before it, or the closer. A closer of what is around this
        is left to that, and closes this as well; so does the end."""
        self._skip()
        if self._next() == "," and not first:
            self._place += 1
            self._skip()
        if self._next() in ("}", "]", ""):
            if self._next() == _CLOSERS[self._open[-1]]:
                self._place += 1
            elif self._next() and self._next() not in (_CLOSERS[brace] for brace in self._open):
                raise _Damaged
            self._open.pop()
            return False
        return True

    def _key(self) -> str:
        if self._next() in _QUOTES:
            return self._string()
        return self._bare(_KEY_ENDS)

    def _value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise _Damaged
        self._skip()
        start = self._next()
        if start in _CLOSERS:
            self._place += 1
            return self.object(depth) if start == "{" else self._list(depth)
        if start in _QUOTES:
            return self._after_string(self._string())
        text = self._bare(_BARE_ENDS)
        number = as_number(text)
        return number if number is not None else as_word(text)

    def _bare(self, ends: frozenset[str]) -> str:
        """Up to what a bare string cannot hold, without the spaces around it."""
        start = self._place
        while self._next() not in ends and self._next() not in ("", QUOTE):
            self._place += 1
        text = "".join(self._symbols[start : self._place]).strip(" \t\r\n")
        # A quote in the middle, or what may be the next key: where the value ends is unclear.
        if not text or self._next() in _QUOTES or _MEMBER.search(text):
            raise _Damaged
        return text

    def _string(self) -> str:
        """A quoted string up to the next quote, of its own kind if there is one, else of the other, else to
        the end: what then closes the braces around it does not belong to it."""
        own, start = self._next(), self._place + 1
        other = _QUOTES[own == _QUOTES[0]]
        end = next((e for e in (self._find(own, start), self._find(other, start)) if e >= 0), -1)
        if end < 0:
            self._place = self._end_of_open_string(start)
            return "".join(self._symbols[start : self._place])
        self._place = end + 1
        text = "".join(self._symbols[start:end])
        return _unescaped(text) if own == self._symbols[end] == '"' else text

    def _find(self, quote: str, start: int) -> int:
        """The next such quote from `start` on, -1 if there is none. Behind a backslash, `"` is none."""
        while True:
            try:
                start = self._symbols.index(quote, start)
            except ValueError:
                return -1
            if quote == QUOTE or not self._escaped(start):
                return start
            start += 1

    def _escaped(self, place: int) -> bool:
        count = 0
        while self._symbols[place - 1 - count] == "\\":
            count += 1
        return count % 2 == 1

    def _end_of_open_string(self, start: int) -> int:
        end = len(self._symbols)
        for brace in self._open:
            while end > start and self._symbols[end - 1] in _SPACE:
                end -= 1
            end -= end > start and self._symbols[end - 1] == _CLOSERS[brace]
        return end

    def _after_string(self, text: str) -> str:
        """The string, if what ends a value follows it: otherwise its quotes are not what they seem."""
        self._skip()
        if self._next() not in ("", ",", "}", "]"):
            raise _Damaged
        return text

    def _next(self) -> str:
        return self._symbols[self._place] if self._place < len(self._symbols) else ""

    def _skip(self) -> None:
        while self._next() in _SPACE:
            self._place += 1


def _unescaped(text: str) -> str:
    """What stood between two `"`: JSON's escapes are read, if all are JSON's."""
    try:
        return str(json.loads(f'"{text}"', strict=False))
    except ValueError:
        return text


__all__ = ["heal_call"]
