"""Keeps markers in other people's text from becoming control tokens, through any template.

Before rendering, the characters that markers are made of (`<`, `|`, `>` ...) are replaced in all text from
outside, one for one, by rare symbols that occur nowhere in the input. Whatever the template does then (trim,
split, join, take apart), a marker that stands in its output was written by the template itself, entirely.
After the output is cut at those markers, the replacement is undone. Because it maps one character to one that
is printable and neither space nor letter, templates treat harmless text exactly as without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..errors import UsageError
from .markers import Special

MAX_DEPTH = 64
_ALWAYS = "<|>"
# Yijing hexagrams, Braille and domino tiles; were they all in use, private characters,
# which `repr` spells out.
_RARE = (range(0x4DC0, 0x4E00), range(0x2800, 0x2900), range(0x1F030, 0x1F094))
_PRIVATE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


def usable_specials(specials: Iterable[str]) -> list[str]:
    """Those specials that escaping protects: the ones that begin or end with a sign, no letter or digit."""
    return sorted({s for s in specials if _signs(s)}, key=lambda s: (-len(s), s))


def _signs(special: str) -> set[str]:
    """The characters of a special that are to be escaped in text."""
    ends = {c for c in special[:1] + special[-1:] if not c.isalnum() and not c.isspace() and c != "_"}
    return ends | (set(special) & set(_ALWAYS))


class Escaper:
    """The replacement for one rendering.

    `avoid` is everything that will be hidden or rendered: the replacing characters are chosen outside of it.
    """

    def __init__(self, specials: Iterable[str], avoid: Any) -> None:
        signs: set[str] = set(_ALWAYS)
        for special in specials:
            signs |= _signs(special)
        used: set[str] = set()
        for text in _strings(avoid, 0):
            used.update(text)
        stand_ins = _free_characters(used)
        try:
            pairs = [(sign, next(stand_ins)) for sign in sorted(signs & used)]
        except StopIteration:
            raise UsageError(
                "the messages use every symbol that could stand in for another", param="messages"
            ) from None
        self._hide = str.maketrans(dict(pairs))
        self._show = str.maketrans({stand_in: sign for sign, stand_in in pairs})

    def hide(self, value: Any) -> Any:
        """A copy of plain data whose strings, keys too, have their signs replaced."""
        return _translated(value, self._hide)

    def show(self, value: Any) -> Any:
        """Undoes `hide`, in a string or in plain data."""
        return _translated(value, self._show)


def _translated(value: Any, table: dict[int, str]) -> Any:
    if isinstance(value, str):
        return str(value).translate(table) if table else str(value)
    if isinstance(value, Mapping):
        return {_translated(k, table): _translated(v, table) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(_translated(v, table) for v in value)
    return [_translated(v, table) for v in value] if isinstance(value, list) else value


def _strings(value: Any, depth: int) -> Iterator[str]:
    """All strings in plain data. Raises UsageError on other objects and on too deep nesting."""
    if depth > MAX_DEPTH:
        raise UsageError(f"messages or tools are nested more than {MAX_DEPTH} deep", param="messages")
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key, depth + 1)
            yield from _strings(item, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item, depth + 1)
    elif value is not None and not isinstance(value, (bool, int, float)):
        raise UsageError(f"messages and tools are plain data, not {type(value).__name__}", param="messages")


def _free_characters(used: set[str]) -> Iterator[str]:
    for block in (*_RARE, *_PRIVATE):
        for code in block:
            if chr(code) not in used:
                yield chr(code)


def cut(rendered: str, specials: Iterable[str]) -> list[str]:
    """Cuts a rendering at its special tokens, which become `Special`; the longest
    wins where several match."""
    pattern = "|".join(re.escape(s) for s in sorted(specials, key=len, reverse=True))
    if not pattern:
        return [rendered] if rendered else []
    pieces: list[str] = []
    end = 0
    for match in re.finditer(pattern, rendered):
        pieces += [rendered[end : match.start()], Special(match[0])]
        end = match.end()
    return [p for p in (*pieces, rendered[end:]) if p]


__all__ = ["MAX_DEPTH", "Escaper", "cut", "usable_specials"]
