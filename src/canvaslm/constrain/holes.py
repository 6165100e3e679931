"""A text with holes as tokens, and the part of it that one canvas shows.

A text is given, hole, given, hole ... given. Holes are filled from left to right, several at once where they
stand on one canvas, and one over several canvases where its text is longer. What stands before a canvas is
context; what comes after it is not seen by its holes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import UsageError

# Places of the text behind a hole that its canvas shows at least, if there are so many: by these its length
# is found.
ANCHOR = 4
# Canvases whose places a hole with text behind it may have: beyond, it is cut.
HOLE_CANVASES = 4

TokenBits = bytes  # of a place: token t is allowed if bit t % 8 of byte t // 8 is set


@dataclass(frozen=True)
class Seam:
    """Tokens of a given text at a hole's edge that belong to the hole: `count` of them, where a token stands
    that has their bytes and more. `tokens`: those that do."""

    count: int
    tokens: TokenBits


@dataclass(frozen=True)
class TokenHole:
    """A hole in tokens. `before` and `behind`: seams it may have with the text before and behind it, each of
    another count; `joined` has, by two counts, the tokens that are both at once. `between`: what other places
    may take.
    """

    most: int | None = None  # tokens that are its own; None: as many as the canvas has
    wish: int | None = None  # places kept free for it, None: a quarter of the canvas
    between: TokenBits | None = None
    before: tuple[Seam, ...] = ()
    behind: tuple[Seam, ...] = ()
    joined: Mapping[tuple[int, int], TokenBits] = field(default_factory=dict)

    @property
    def deepest(self) -> int:
        """Tokens of the text before that may belong to it."""
        return max((seam.count for seam in self.before), default=0)

    def allowed(self, span: HoleSpan) -> dict[int, TokenBits]:
        """What its places may take where it stands."""
        made: dict[int, TokenBits] = {}
        if self.between is not None:
            made = dict.fromkeys(range(span.start, span.stop), self.between)
        if span.before and span.behind and span.length == 1:
            made[span.start] = self.joined[span.before, span.behind]
            return made
        if span.before:
            made[span.start] = _seam(self.before, span.before)
        if span.behind:
            made[span.stop - 1] = _seam(self.behind, span.behind)
        return made


@dataclass(frozen=True)
class HoleSpan:
    """Where a hole stands on a canvas, and how many tokens of the texts around it belong to it."""

    start: int
    stop: int
    before: int = 0
    behind: int = 0

    @property
    def length(self) -> int:
        return self.stop - self.start

    @property
    def own(self) -> int:
        """Its tokens that are not partly of a text beside it."""
        return self.length - bool(self.before) - bool(self.behind)


def _seam(seams: tuple[Seam, ...], count: int) -> TokenBits:
    return next(seam.tokens for seam in seams if seam.count == count)


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


def window(template: TokenTemplate, index: int, before: int, places: int, *, alone: bool = False) -> Window:
    """What the canvas of `places` shows that fills hole `index`, behind `before` tokens of text that may
    stand on it.

    The holes get the places they may take at most (a quarter of the canvas where nothing is said, or more
    than it has), then the text behind them, up to a quarter of the canvas, then the text before, then the
    rest of that behind. alone: no other hole.
    """
    if template.is_open(index):
        return Window(_left_of_open(before, places), index, index + 1, ((),), False, True, places)
    last = index + 1
    used = _wish(template.holes[index], places)
    while last < len(template.holes) and not (alone or template.is_open(last)):
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


def longest(template: TokenTemplate, index: int, places: int) -> int:
    """Tokens that a hole with text behind it may have, over all its canvases."""
    return HOLE_CANVASES * places - min(ANCHOR, len(template.given[index + 1]))


def check_holes(template: TokenTemplate, places: int) -> None:
    """Raises UsageError for a hole with text behind it that is to have more tokens than it may."""
    for index, hole in enumerate(template.holes):
        limit = longest(template, index, places)
        if not template.is_open(index) and hole.wish is not None and hole.wish > limit:
            raise UsageError(
                f"hole {index + 1} may have {hole.wish} tokens, but with text behind it it has at most "
                f"{limit}, as {HOLE_CANVASES} canvases of {places} hold: lower its max, or leave out the "
                "text behind it",
                "template",
            )


def _wish(hole: TokenHole, places: int) -> int:
    """Places kept free for a hole on one canvas."""
    quarter = places // 4
    return quarter if hole.wish is None or hole.wish > places - ANCHOR else hole.wish


def _left_of_open(before: int, places: int) -> int:
    """Whole canvases of the text before are context, as when the model writes it all."""
    return before % places


@dataclass(frozen=True)
class PlacedHoles:
    """Where everything stands on a canvas once its holes have their places."""

    given: dict[int, int]  # place -> token
    allowed: dict[int, TokenBits]  # place -> the tokens it may take
    spans: tuple[HoleSpan, ...]


def lay_out(
    template: TokenTemplate, shown: Window, left: Sequence[int], spans: Sequence[HoleSpan], end: int
) -> PlacedHoles:
    """A window with its holes at these places. left: the tokens before the first hole.

    end: the token behind a text that is whole. Of a text that does not fit, the start stands there.
    """
    given = dict(enumerate(left[: spans[0].start]))
    allowed: dict[int, TokenBits] = {}
    for number, (span, text) in enumerate(zip(spans, shown.texts, strict=True)):
        allowed |= template.holes[shown.first + number].allowed(span)
        taken = spans[number + 1].before if number + 1 < len(spans) else 0
        given |= dict(enumerate(text[span.behind : len(text) - taken], span.stop))
    if shown.closes:
        given[spans[-1].stop + len(shown.texts[-1]) - spans[-1].behind] = end
    on_canvas = {p: t for p, t in given.items() if p < shown.places}
    return PlacedHoles(on_canvas, {p: b for p, b in allowed.items() if p < shown.places}, tuple(spans))


__all__ = [
    "ANCHOR",
    "HOLE_CANVASES",
    "HoleSpan",
    "PlacedHoles",
    "Seam",
    "TokenBits",
    "TokenHole",
    "TokenTemplate",
    "Window",
    "check_holes",
    "lay_out",
    "longest",
    "window",
]
