"""Expressions: what a regular language is made of. Plain trees, for whoever writes a language down.

    sequence("call:", name, "{", repeat(field, 0, 3), "}")

Make them with the functions below: they take plain strings for text, and leave out what says nothing. A
string stands for itself, whatever characters it has: only a `Marker` is a marker, and no `Characters`
matches one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..errors import UsageError
from .vocabulary import BYTES, SYMBOLS

LAST = 0x10FFFF
SURROGATES = (0xD800, 0xDFFF)  # not characters: no UTF-8 has them

Range = tuple[int, int]  # of code points, or of bytes; both ends belong to it


@dataclass(frozen=True, eq=False)
class Text:
    """These very characters."""

    text: str


@dataclass(frozen=True, eq=False)
class Characters:
    """One character of a set: ranges of code points, ascending, apart and without surrogates."""

    ranges: tuple[Range, ...]


@dataclass(frozen=True, eq=False)
class Marker:
    """One control token that is a symbol of the language."""

    symbol: int


@dataclass(frozen=True, eq=False)
class Series:
    """One part after the other. No part: the empty text."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, eq=False)
class Either:
    """One of the options. No option: nothing at all, the empty language."""

    options: tuple[Expression, ...]


@dataclass(frozen=True, eq=False)
class Repeat:
    """`inner` from `low` to `high` times; high None: without limit. A separator stands between two."""

    inner: Expression
    low: int
    high: int | None
    separator: Expression | None = None


@dataclass(frozen=True, eq=False)
class Members:
    """Parts in order with a separator between those that are there; the ones not required may be left out."""

    parts: tuple[Expression, ...]
    required: tuple[bool, ...]
    separator: Expression


Expression = Text | Characters | Marker | Series | Either | Repeat | Members

EMPTY = Series(())


def text(value: str) -> Text:
    """A string as it stands. Raises UsageError for half of a surrogate pair, which no UTF-8 can write."""
    if any(SURROGATES[0] <= ord(char) <= SURROGATES[1] for char in value):
        raise UsageError(f"{value[:40]!r} has half of a surrogate pair, which no text can hold: leave it out")
    return Text(value)


def characters(ranges: Iterable[Range]) -> Characters:
    """A set from ranges in any order, overlaps allowed. Raises UsageError where no character is left."""
    found = tuple(_without_surrogates(_merged(ranges)))
    if not found:
        raise UsageError("this set of characters is empty: nothing can be written for it")
    return Characters(found)


def others(ranges: Iterable[Range]) -> Characters:
    """All characters but these."""
    gaps, begin = [], 0
    for low, high in _merged(ranges):
        if begin < low:
            gaps.append((begin, low - 1))
        begin = high + 1
    return characters([*gaps, (begin, LAST)] if begin <= LAST else gaps)


def marker(symbol: int) -> Marker:
    """A control token, by its symbol in `Vocabulary.markers`."""
    if not BYTES <= symbol < SYMBOLS:
        raise UsageError(f"markers are the symbols {BYTES} to {SYMBOLS - 1}, not {symbol}")
    return Marker(symbol)


def sequence(*parts: Expression | str) -> Expression:
    """One after the other; strings are text."""
    found: list[Expression] = []
    for part in map(_expression, parts):
        found.extend(part.parts if isinstance(part, Series) else (part,))
    return found[0] if len(found) == 1 else Series(tuple(found))


def choice(*options: Expression | str) -> Expression:
    """One of these; strings are text."""
    found: list[Expression] = []
    for option in map(_expression, options):
        found.extend(option.options if isinstance(option, Either) else (option,))
    return found[0] if len(found) == 1 else Either(tuple(found))


def repeat(inner: Expression | str, low: int = 0, high: int | None = None) -> Expression:
    """So many times; high None: without limit. Raises UsageError where `high` is below `low`."""
    if low < 0 or (high is not None and high < low):
        raise UsageError(f"cannot repeat from {low} to {high} times: give the smaller number first")
    if (low, high) == (1, 1):
        return _expression(inner)
    return EMPTY if high == 0 else Repeat(_expression(inner), low, high)


def optional(inner: Expression | str) -> Expression:
    """Once or not at all."""
    return repeat(inner, 0, 1)


def members(parts: Iterable[tuple[Expression | str, bool]], separator: Expression | str) -> Expression:
    """(part, whether it must be there) in order, with the separator between those that are there."""
    found = [(_expression(part), required) for part, required in parts]
    if not found:
        return EMPTY
    return Members(tuple(p for p, _ in found), tuple(r for _, r in found), _expression(separator))


def listed(item: Expression | str, separator: Expression | str, low: int, high: int | None) -> Expression:
    """From `low` to `high` items with the separator between them."""
    if low < 0 or (high is not None and high < low):
        raise UsageError(f"cannot list from {low} to {high} items: give the smaller number first")
    return EMPTY if high == 0 else Repeat(_expression(item), low, high, _expression(separator))


ANY_CHARACTER = Characters(((0, SURROGATES[0] - 1), (SURROGATES[1] + 1, LAST)))
ANY_TEXT = Repeat(ANY_CHARACTER, 0, None)  # any text at all, line breaks too, without a marker


def never(node: Expression) -> bool:
    """Whether nothing can be written for it, seen from its top: an `Either` without options."""
    return isinstance(node, Either) and not node.options


def _expression(value: Expression | str) -> Expression:
    return text(value) if isinstance(value, str) else value


def _merged(ranges: Iterable[Range]) -> Iterator[Range]:
    """Ascending, without overlaps and neighbours."""
    begin, end = -1, -2
    for low, high in sorted(itertools.chain(ranges, [(LAST + 2, LAST + 2)])):
        if low <= end + 1:
            end = max(end, high)
            continue
        if begin >= 0:
            yield begin, end
        begin, end = low, high


def _without_surrogates(ranges: Iterable[Range]) -> Iterator[Range]:
    first, last = SURROGATES
    for low, high in ranges:
        for begin, end in ((low, min(high, first - 1)), (max(low, last + 1), high)):
            if begin <= end:
                yield begin, end


__all__ = [
    "ANY_CHARACTER", "ANY_TEXT", "EMPTY", "LAST", "Characters", "Either", "Expression", "Marker", "Members",
    "Range", "Repeat", "Series", "Text", "characters", "choice", "listed", "marker", "members", "never",
    "optional", "others", "repeat", "sequence", "text",
]  # fmt: skip
