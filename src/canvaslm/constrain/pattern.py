r"""Regular expressions as text, read into an `Expression`.

Literals, `.` (any character but a line break), sets, `\d \w \s` and their negations (of ASCII), `\n \r \t \f
\v \0 \xHH \uHHHH \UHHHHHHHH \u{H...}`, groups with and without names, alternatives, `* + ? {m} {m,} {,n}
{m,n}` (lazy ones match the same texts), `^` where an alternative of the whole begins and `$` where one ends.
What no finite automaton can do, and what depends on a flag, is refused with its place.
"""

from __future__ import annotations

import string
from dataclasses import dataclass

from ..errors import UsageError
from .expression import (
    LAST,
    SURROGATES,
    Expression,
    Range,
    characters,
    choice,
    others,
    repeat,
    sequence,
    text,
)

MAX_LENGTH, MAX_DEPTH, MAX_COUNT = 20_000, 100, 1_000_000

_DIGIT: tuple[Range, ...] = ((48, 57),)
_WORD: tuple[Range, ...] = ((48, 57), (65, 90), (95, 95), (97, 122))
_SPACE: tuple[Range, ...] = ((9, 13), (32, 32))
_CLASSES = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_LINE_ENDS: tuple[Range, ...] = ((10, 10), (13, 13), (0x85, 0x85), (0x2028, 0x2029))
_CONTROLS = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "0": 0, "a": 7}
_HEX = {"x": 2, "u": 4, "U": 8}
_ASSERTIONS = {
    "b": "a word boundary",
    "B": "no word boundary",
    "A": "an anchor",
    "Z": "an anchor",
    "z": "an anchor",
}
_GROUPS = {
    "?=": "a lookahead", "?!": "a lookahead", "?<=": "a lookbehind", "?<!": "a lookbehind",
    "?P=": "a backreference", "?>": "an atomic group", "?(": "a conditional group", "?#": "a comment",
}  # fmt: skip
_SPECIAL = frozenset("\\.[](){}*+?|^$")


@dataclass(frozen=True)
class Alternative:
    """One alternative of the whole expression, and whether `^` and `$` stand around it."""

    start: bool
    body: Expression
    end: bool


def parse(pattern: str, param: str = "regex") -> Expression:
    """The texts that match a pattern as a whole. Raises UsageError, on `param`, naming the place at fault."""
    return choice(*(alternative.body for alternative in alternatives(pattern, param)))


def alternatives(pattern: str, param: str = "regex", *, narrow: bool = False) -> tuple[Alternative, ...]:
    """The alternatives of a pattern, for whoever searches: without `^` and `$` it matches within a text.

    `narrow`: only what all dialects agree on: what negates a class is ASCII, `.` is no end of a line.
    """
    if len(pattern) > MAX_LENGTH:
        raise UsageError(
            f"the pattern has {len(pattern)} characters: {MAX_LENGTH} are the most, shorten it", param
        )
    return _Reader(pattern, param, narrow).whole()


class _Reader:
    def __init__(self, pattern: str, param: str, narrow: bool) -> None:
        self._text, self._param, self._narrow, self._place = pattern, param, narrow, 0

    def whole(self) -> tuple[Alternative, ...]:
        found = [self._alternative()]
        while self._take("|"):
            found.append(self._alternative())
        if self._place < len(self._text):
            raise self._error("this `)` closes nothing", "write \\) for the character")
        return tuple(found)

    def _alternative(self) -> Alternative:
        start = self._take("^")
        body = self._series(0)
        return Alternative(start, body, self._take("$"))

    def _series(self, depth: int) -> Expression:
        parts = []
        while self._place < len(self._text) and self._peek() not in "|)":
            if self._peek() == "$":
                if depth or self._text[self._place + 1 : self._place + 2] not in ("", "|"):
                    raise self._error("`$` stands before the end", "whole texts match anyway; write \\$")
                break
            parts.append(self._quantified(self._item(depth)))
        return sequence(*parts)

    def _item(self, depth: int) -> Expression:
        begin, char = self._place, self._next()
        if char == "(":
            return self._group(depth + 1, begin)
        if char == "[":
            return self._set(begin)
        if char == ".":
            return others(_LINE_ENDS if self._narrow else [(10, 10)])
        if char == "\\":
            found = self._escape(begin, within_set=False)
            return text(chr(found)) if isinstance(found, int) else characters(found)
        if char in "*+?":
            raise self._error(f"nothing stands before `{char}` to repeat", f"write \\{char}", begin)
        if char == "^":
            raise self._error("`^` stands behind the start", "whole texts match anyway; write \\^", begin)
        if SURROGATES[0] <= ord(char) <= SURROGATES[1]:
            raise self._error("half of a surrogate pair is no character", "leave it out", begin)
        return text(char)

    def _group(self, depth: int, begin: int) -> Expression:
        if depth > MAX_DEPTH:
            raise self._error(f"groups nest deeper than {MAX_DEPTH}", "flatten them", begin)
        if self._peek() == "?":
            self._group_kind(begin)
        options = [self._series(depth)]
        while self._take("|"):
            options.append(self._series(depth))
        if not self._take(")"):
            raise self._error("this group is never closed", "add `)`, or write \\( for the character", begin)
        return choice(*options)

    def _group_kind(self, begin: int) -> None:
        for opening, name in _GROUPS.items():
            if self._text.startswith(opening, self._place):
                raise self._error(f"{name} is not regular", "say what may stand there instead", begin)
        if self._take("?:"):
            return
        if self._take("?P<") or self._take("?<"):
            end = self._text.find(">", self._place)
            if end < 0 or not self._text[self._place : end].isidentifier():
                raise self._error("the group's name is not closed or no name", "write (?P<name>...)", begin)
            self._place = end + 1
            return
        raise self._error("flags are not supported", "write out what they mean, as [aA]", begin)

    def _quantified(self, item: Expression) -> Expression:
        begin, bounds = self._place, self._bounds()
        if bounds is None:
            return item
        self._take("?")
        low, high = bounds
        if self._peek() == "+":
            raise self._error("possessive repetition is not regular", "leave out the second `+`")
        if self._peek() in ("*", "?") or self._bounds() is not None:
            raise self._error("a repetition is repeated", "put the inner one into (?:...)", begin)
        if max(low, high or 0) > MAX_COUNT:
            raise self._error(f"more than {MAX_COUNT} repetitions", "repeat less often", begin)
        if high is not None and high < low:
            raise self._error(f"it cannot repeat from {low} to {high} times", "swap the numbers", begin)
        return repeat(item, low, high)

    def _bounds(self) -> tuple[int, int | None] | None:
        for char, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(char):
                return bounds
        if self._peek() != "{":
            return None
        end = self._text.find("}", self._place)
        low, comma, high = self._text[self._place + 1 : max(end, self._place + 1)].partition(",")
        numbers = [n for n in (low, high) if n]
        if end < 0 or not numbers or not all(n.isascii() and n.isdigit() and len(n) < 10 for n in numbers):
            return None  # the character itself, as everywhere
        self._place = end + 1
        if not comma:
            return int(low), int(low)
        return int(low or 0), int(high) if high else None

    def _set(self, begin: int) -> Expression:
        negated = self._take("^")
        ranges: list[Range] = []
        first, classes = True, False
        while first or self._peek() != "]":
            if self._place >= len(self._text):
                raise self._error(
                    "this set is never closed", "add `]`, or write \\[ for the character", begin
                )
            if self._text.startswith("[:", self._place):
                raise self._error("named classes are not supported", "write [a-z] and the like")
            item_at = self._place
            ranges += self._set_item()
            classes |= self._text[item_at : item_at + 2].lower() in ("\\d", "\\w", "\\s")
            first = False
        self._place += 1
        try:
            return others([*ranges, *self._beyond(classes)]) if negated else characters(ranges)
        except UsageError as error:
            raise self._error(str(error), "add a character", begin) from None

    def _beyond(self, classes: bool) -> tuple[Range, ...]:
        """What a negation of classes leaves out too: what dialects see differently beyond ASCII."""
        return ((128, LAST),) if self._narrow and classes else ()

    def _set_item(self) -> tuple[Range, ...]:
        begin, low = self._place, self._set_character()
        dash = self._peek() == "-" and self._text[self._place + 1 : self._place + 2] not in ("", "]")
        if not dash:
            return ((low, low),) if isinstance(low, int) else low
        self._place += 1
        high = self._set_character()
        if not isinstance(low, int) or not isinstance(high, int):
            raise self._error("a range ends in a class", "write \\- for the character", begin)
        if high < low:
            raise self._error("this range runs backwards", "swap its ends", begin)
        return ((low, high),)

    def _set_character(self) -> int | tuple[Range, ...]:
        begin, char = self._place, self._next()
        return self._escape(begin, within_set=True) if char == "\\" else ord(char)

    def _escape(self, begin: int, *, within_set: bool) -> int | tuple[Range, ...]:
        """A code point, or a class's ranges."""
        char = self._next()
        if char.lower() in _CLASSES:
            ranges = _CLASSES[char.lower()]
            return ranges if char.islower() else others([*ranges, *self._beyond(True)]).ranges
        if char in _HEX:
            return self._code_point(char, begin)
        if char == "b" and within_set:
            return 8
        if char in _CONTROLS:
            return _CONTROLS[char]
        if char in _ASSERTIONS:
            raise self._error(f"{_ASSERTIONS[char]} (\\{char}) is not supported", "leave it out", begin)
        if char.isdigit() or char == "k":
            raise self._error("a backreference is not regular", "write out what it repeats", begin)
        if char in "pP":
            raise self._error("Unicode classes are not supported", "name ranges: [a-zà-öø-ÿ]", begin)
        if char.isascii() and char.isalpha():
            raise self._error(f"\\{char} is no escape", f"write {char} for the character", begin)
        return ord(char)

    def _code_point(self, kind: str, begin: int) -> int:
        found = self._hexadecimal(kind, begin)
        if kind == "u" and 0xD800 <= found <= 0xDBFF and self._take("\\u"):
            low = self._hexadecimal("u", begin)
            if 0xDC00 <= low <= 0xDFFF:  # one character beyond 0xFFFF, written as a pair
                return 0x10000 + ((found & 0x3FF) << 10 | low & 0x3FF)
        if SURROGATES[0] <= found <= SURROGATES[1]:
            raise self._error("half of a surrogate pair is no character", "write both halves", begin)
        return found

    def _hexadecimal(self, kind: str, begin: int) -> int:
        if kind == "u" and self._take("{"):
            digits, closed, _ = self._text[self._place : self._place + 9].partition("}")
            self._place += len(digits) + 1
        else:
            digits = self._text[self._place : self._place + _HEX[kind]]
            closed = "}" if len(digits) == _HEX[kind] else ""
            self._place += len(digits)
        valid = closed and digits and all(digit in string.hexdigits for digit in digits)
        found = int(digits, 16) if valid else LAST + 1
        if found > LAST:
            raise self._error(f"\\{kind} names no character", "hexadecimal digits follow it", begin)
        return found

    def _peek(self) -> str:
        return self._text[self._place : self._place + 1]

    def _next(self) -> str:
        if self._place >= len(self._text):
            raise self._error("the pattern ends too early", "finish it")
        self._place += 1
        return self._text[self._place - 1]

    def _take(self, wanted: str) -> bool:
        if not self._text.startswith(wanted, self._place):
            return False
        self._place += len(wanted)
        return True

    def _error(self, what: str, remedy: str, place: int | None = None) -> UsageError:
        at = self._place if place is None else place
        where = f"pattern, character {at + 1} ({self._text[at : at + 12]!r})"
        return UsageError(f"{where}: {what}; {remedy}", self._param)


def escaped(value: str) -> str:
    """A pattern that matches just this text."""
    return "".join(f"\\{char}" if char in _SPECIAL else char for char in value)


__all__ = ["MAX_COUNT", "MAX_DEPTH", "MAX_LENGTH", "Alternative", "alternatives", "escaped", "parse"]
