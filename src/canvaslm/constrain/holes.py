"""A text with holes as tokens, and the part of it that one canvas shows.

A text is given, hole, given, hole ... given. Holes are filled from left to right, several at once where they
stand on one canvas. What stands before a canvas is context; what comes after it is not seen by its holes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from ..errors import UsageError

# Places of the text behind a hole that its canvas shows at least, if there are so many: by these its length
# is found.
ANCHOR = 4

TokenBits = bytes  # of a place: token t is allowed if bit t % 8 of byte t // 8 is set


@dataclass(frozen=True)
class TokenHole:
    """A hole in tokens: those of its edges, which were given but belong to it, included.

    Its first and its last place take only tokens with the bytes of its edges; None where there are none, or
    in `between`, of the others, where every token may stand.
    """

    least: int
    most: int | None = None  # None: as many as the canvas has
    wish: int | None = None  # places kept free for it, None: a quarter of the canvas
    first: TokenBits | None = None
    last: TokenBits | None = None
    between: TokenBits | None = None


@dataclass(frozen=True)
class TokenTemplate:
    """A text with holes: `given[i]` stands before `holes[i]`, the last behind the last hole.

    `open`: nothing stands behind the last hole, which ends where the model ends the answer.
    """

    given: tuple[tuple[int, ...], ...]
    holes: tuple[TokenHole, ...]
    open: bool

    def is_open(self, index: int) -> bool:
        """Whether hole number `index` ends with the answer, not before a text."""
        return self.open and index == len(self.holes) - 1


@dataclass(frozen=True)
class Window:
    """One canvas's view: the last `left` tokens before hole `first`, holes `first` to `last` (not included),
    the texts between them, and the text behind the last, as far as it fits.

    `closes`: with that text the whole text ends, and an end of turn stands behind it. `open`: its one hole
    ends with the answer.
    """

    left: int
    first: int
    last: int
    texts: tuple[tuple[int, ...], ...]  # behind each hole
    closes: bool
    open: bool
    places: int


def window(template: TokenTemplate, index: int, before: int, places: int) -> Window:
    """What the canvas of `places` shows that fills hole `index`, behind `before` tokens of text.

    The holes get the places they may take at most (a quarter of the canvas where nothing is said), then the
    text behind them, up to a quarter of the canvas, then the text before, then the rest of that behind.
    Raises UsageError where a hole may take more places than there are.
    """
    _check_hole(template, index, places)
    if template.is_open(index):
        return Window(_left_of_open(before, places), index, index + 1, ((),), False, True, places)
    last = index + 1
    used = _wish(template.holes[index], places)
    while last < len(template.holes) and not template.is_open(last):
        more = len(template.given[last]) + _wish(template.holes[last], places)
        if used + more + min(places // 4, len(template.given[last + 1]) + 1) > places:
            break
        used, last = used + more, last + 1
    behind = template.given[last]
    final = last == len(template.holes)
    wanted = len(behind) + final
    right = min(wanted, places // 4, places - used)
    left = min(before, places - used - right)
    right = min(wanted, places - used - left)
    shown = behind[: min(right, len(behind))]
    closes = final and right == wanted
    texts = (*template.given[index + 1 : last], shown)
    return Window(left, index, last, texts, closes, False, places)


def _check_hole(template: TokenTemplate, index: int, places: int) -> None:
    hole = template.holes[index]
    if template.is_open(index):
        return
    limit = places - min(ANCHOR, len(template.given[index + 1]))
    wanted = max(hole.least, hole.wish or 0)
    if wanted > limit:
        raise UsageError(
            f"hole {index + 1} may have {wanted - hole.least} tokens, but with text behind it it has at most "
            f"{limit - hole.least}, since both stand on one canvas of {places}: "
            "lower its max, or leave out the text behind it",
            "template",
        )


def _wish(hole: TokenHole, places: int) -> int:
    """Places kept free for a hole."""
    return max(hole.least, places // 4 if hole.wish is None else hole.wish)


def _left_of_open(before: int, places: int) -> int:
    """Whole canvases of the text before are context, as when the model writes it all."""
    return before % places


@dataclass(frozen=True)
class PlacedHoles:
    """Where everything stands on a canvas once its holes have lengths."""

    given: dict[int, int]  # place -> token
    allowed: dict[int, TokenBits]  # place -> the tokens it may take
    spans: tuple[tuple[int, int], ...]  # first place of each hole, and the one behind it


def lay_out(
    template: TokenTemplate, shown: Window, left: Sequence[int], lengths: Sequence[int], end: int
) -> PlacedHoles:
    """Places for the holes of a window with these lengths. left: the tokens before the first hole.

    end: the token behind a text that is whole. Of a text that does not fit, the start stands there.
    """
    given = dict(enumerate(left))
    allowed: dict[int, TokenBits] = {}
    spans: list[tuple[int, int]] = []
    place = len(left)
    for number, (length, text) in enumerate(zip(lengths, shown.texts, strict=True)):
        hole = template.holes[shown.first + number]
        spans.append((place, place + length))
        allowed |= _edges(hole, place, place + length)
        place += length
        given |= dict(enumerate(text, place))
        place += len(text)
    if shown.closes:
        given[place] = end
    on_canvas = {p: t for p, t in given.items() if p < shown.places}
    return PlacedHoles(on_canvas, {p: b for p, b in allowed.items() if p < shown.places}, tuple(spans))


def _edges(hole: TokenHole, start: int, stop: int) -> dict[int, TokenBits]:
    made: dict[int, TokenBits] = {}
    if hole.between is not None:
        made = dict.fromkeys(range(start, stop), hole.between)
    if hole.first is not None and start < stop:
        made[start] = hole.first
    if hole.last is not None and start < stop:
        made[stop - 1] = hole.last
    return made


def starts(template: TokenTemplate) -> tuple[int, ...]:
    """Given tokens before each hole, those of holes not counted."""
    return tuple(accumulate(map(len, template.given)))[: len(template.holes)]


__all__ = [
    "ANCHOR",
    "PlacedHoles",
    "TokenBits",
    "TokenHole",
    "TokenTemplate",
    "Window",
    "lay_out",
    "starts",
    "window",
]
