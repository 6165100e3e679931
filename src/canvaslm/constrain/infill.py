"""How long holes are: what a model says after one denoise step, with only the text before them known.

Every place has a distribution then. A length is right if the places behind it say what the text behind the
hole says, and those behind that the end of the turn: all lengths are scored from the one step, as the best
path over the canvas. Where the best ones are close, the canvases are denoised, and judged once more by what
the model says of *all* places (a hole's own places, or entropies, tell nothing). Where no length comes
near to what the places say themselves, the hole goes on beyond the canvas.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .holes import HoleSpan, Seam, TokenBits, TokenHole, TokenTemplate, Window

Floats = NDArray[np.float64]
Named = Sequence[
    tuple[int, float]
]  # the most probable tokens of a place: (token, log-probability), best first


@dataclass(frozen=True)
class Lengths:
    """Where the holes of a window stand, and how well the canvas says so: nats, over all its places."""

    spans: tuple[HoleSpan, ...]
    score: float


class PlaceLogprobs:
    """Log-probabilities in nats of C places, of which the best tokens are named; what is left is shared by
    all others."""

    def __init__(self, named: Sequence[Named], vocabulary: int) -> None:
        self.best = np.array([place[0][1] for place in named])
        self._named = [dict(place) for place in named]
        self._allowed: dict[TokenBits, Floats] = {}
        self._columns: dict[int, Floats] = {}
        rest = np.array([1 - sum(np.exp(value) for _, value in place) for place in named])
        others = np.array([max(1, vocabulary - len(place)) for place in named])
        self._floor = np.minimum(np.log(np.maximum(rest, 1e-6) / others), [place[-1][1] for place in named])

    def __len__(self) -> int:
        return len(self.best)

    def of(self, place: int, token: int) -> float:
        """The log-probability of a token at a place."""
        return self._named[place].get(token, float(self._floor[place]))

    def of_allowed(self, tokens: TokenBits) -> Floats:
        """Per place that of the likeliest token whose bit is set, what is left where none is named."""
        known = self._allowed.get(tokens)
        if known is None:
            best = [
                max((v for t, v in place.items() if _is_set(tokens, t)), default=floor)
                for place, floor in zip(self._named, self._floor, strict=True)
            ]
            known = self._allowed[tokens] = np.array(best)
        return known

    def of_any(self, tokens: Iterable[int]) -> Floats:
        """Per place that of the likeliest of these tokens."""
        wanted = tuple(tokens)
        return np.array([max(self.of(place, token) for token in wanted) for place in range(len(self))])

    def of_text(self, text: Sequence[int]) -> Floats:
        """[C + 1]: of a text, as far as the canvas goes, by the place where it begins."""
        scores = np.zeros(len(self) + 1)
        for i, token in enumerate(text[: len(self)]):
            scores[: len(self) - i] += self._column(token)[i:]
        return scores

    def _column(self, token: int) -> Floats:
        """Of a token, by place."""
        known = self._columns.get(token)
        if known is None:
            pairs = zip(self._named, self._floor, strict=True)
            known = self._columns[token] = np.array([place.get(token, floor) for place, floor in pairs])
        return known

    def mean(self, tokens: Mapping[int, int]) -> float:
        """The mean over places of the log-probability of what stands there."""
        return sum(self.of(place, token) for place, token in tokens.items()) / max(1, len(tokens))


def left_seam(hole: TokenHole, text: Sequence[int], reading: PlaceLogprobs) -> int:
    """How many tokens of a text, which stands at the first places, belong to the hole behind it.

    At the place of each of its last tokens, as far as seams go: is a token that goes on beyond the text
    likelier than the text's own?
    """
    for seam in sorted(hole.before, key=lambda seam: -seam.count):
        place = len(text) - seam.count
        if place < 0:
            continue
        beyond = reading.of_allowed(seam.tokens)[place]
        if beyond > reading.of(place, text[place]):
            return seam.count
    return 0


def lengths_by_score(
    template: TokenTemplate,
    shown: Window,
    reading: PlaceLogprobs,
    ends: Sequence[int],
    anchor: int,
    before: int = 0,
) -> list[Lengths]:
    """The places that a window's holes may have, best first: one for each length of the first hole.

    The canvas begins with the text before the first hole, of which `before` tokens belong to that. ends:
    tokens that stand behind a whole text. anchor: places of the last text that must be on the canvas if there
    are so many.
    """
    following: list[_BySeam] = []  # of each hole
    for i in reversed(range(shown.last - shown.first)):
        hole, text = template.holes[shown.first + i], shown.texts[i]
        behind = [
            _between(text, count, following[0], reading)
            if following
            else _last_text(shown, text[count:], reading, ends, anchor)
            for count in _counts(hole.behind)
        ]
        seams = _counts(hole.before) if i else [before]
        following.insert(0, {count: _choices(hole, reading, behind, count) for count in seams})
    return _ranked(following, shown, reading, before)


def _counts(seams: Sequence[Seam]) -> list[int]:
    """Of tokens of a text that may belong to a hole."""
    return [0, *(seam.count for seam in seams)]


@dataclass(frozen=True)
class _Choices:
    """Of one hole, by where it begins and ends [C + 1, C + 1]: the score of all from there on, and how many
    tokens behind it belong to it then."""

    scores: Floats
    behind: NDArray[np.int64]
    best: Floats  # [C + 1], of the scores, by where it begins


_BySeam = Mapping[int, _Choices]  # by how many tokens of the text before it belong to the hole


def _choices(hole: TokenHole, reading: PlaceLogprobs, behind: Sequence[Floats], before: int) -> _Choices:
    """behind: for each of `_counts`, the score of what stands behind the hole, by where it ends."""
    counts = _counts(hole.behind)
    scores = [
        _hole_scores(hole, reading, before, count) + rest[None, :]
        for count, rest in zip(counts, behind, strict=True)
    ]
    chosen = np.argmax(scores, axis=0)
    best: Floats = np.max(scores, axis=0)
    return _Choices(best, np.array(counts)[chosen], best.max(1))


def _hole_scores(hole: TokenHole, reading: PlaceLogprobs, before: int, behind: int) -> Floats:
    """[C + 1, C + 1]: the score of a hole from one place to another, -inf where it may not be so long."""
    places = len(reading)
    sums = np.concatenate(([0.0], np.cumsum(reading.best)))
    scores = sums[None, :] - sums[:, None]
    length = np.arange(places + 1)[None, :] - np.arange(places + 1)[:, None]
    edges = bool(before) + bool(behind)
    most = places if hole.most is None else hole.most + edges
    if before:
        scores[:-1] += (_of_seam(hole.before, before, reading) - reading.best)[:, None]
    if behind:
        scores[:, 1:] += (_of_seam(hole.behind, behind, reading) - reading.best)[None, :]
    scores[(length < edges) | (length > most)] = -np.inf
    if edges == 2 and (before, behind) in hole.joined:
        one = np.arange(places)
        scores[one, one + 1] = reading.of_allowed(hole.joined[before, behind])
    return scores


def _of_seam(seams: Sequence[Seam], count: int, reading: PlaceLogprobs) -> Floats:
    return next(reading.of_allowed(seam.tokens) for seam in seams if seam.count == count)


def _last_text(
    shown: Window, text: Sequence[int], reading: PlaceLogprobs, ends: Sequence[int], anchor: int
) -> Floats:
    """[C + 1]: the score of all that stands behind the last hole, by where that ends."""
    places = len(reading)
    tail = reading.of_any(ends) if shown.closes else reading.best
    rest = np.concatenate((np.cumsum(tail[::-1])[::-1], [0.0]))
    needed = len(text) + 1 if shown.closes else min(anchor, len(text))
    scores = np.full(places + 1, -np.inf)
    starts = np.arange(places - needed + 1)
    scores[starts] = reading.of_text(text)[starts] + rest[np.minimum(starts + len(text), places)]
    return scores


def _between(text: Sequence[int], count: int, following: _BySeam, reading: PlaceLogprobs) -> Floats:
    """[C + 1]: the score of a text without its first `count` tokens, and of all behind it, by where it
    begins."""
    seams = [before for before in following if count + before <= len(text)]
    parts = (text[count : len(text) - before] for before in seams)
    shifted = [
        _shifted(following[before].best, part, reading) for before, part in zip(seams, parts, strict=True)
    ]
    return np.asarray(np.max(shifted, axis=0))


def _shifted(behind: Floats, text: Sequence[int], reading: PlaceLogprobs) -> Floats:
    """[C + 1]: the score of a text and what stands behind it, by where the text begins."""
    places = len(reading)
    scores = np.full(places + 1, -np.inf)
    starts = np.arange(max(0, places - len(text) + 1))
    scores[starts] = reading.of_text(text)[starts] + behind[starts + len(text)]
    return scores


def _ranked(choices: Sequence[_BySeam], shown: Window, reading: PlaceLogprobs, before: int) -> list[Lengths]:
    made: list[Lengths] = []
    start = shown.left - before
    first = choices[0][before].scores[start]
    for end in np.argsort(-first, kind="stable"):
        if not np.isfinite(first[end]):
            break
        spans = [HoleSpan(start, int(end), before, int(choices[0][before].behind[start, end]))]
        for text, choice in zip(shown.texts, choices[1:], strict=False):
            spans.append(_next_span(text, spans[-1], choice, reading))
        made.append(Lengths(tuple(spans), float(first[end])))
    return made


def _next_span(text: Sequence[int], last: HoleSpan, following: _BySeam, reading: PlaceLogprobs) -> HoleSpan:
    """Where the hole behind a text stands best, once the one before it has its place."""
    best, span = -np.inf, last
    for before, choice in following.items():
        part = text[last.behind : len(text) - before]
        start = last.stop + len(part)
        if last.behind + before > len(text) or start >= len(choice.best):
            continue
        score = sum(reading.of(last.stop + i, token) for i, token in enumerate(part)) + choice.best[start]
        if score > best:
            stop = int(choice.scores[start].argmax())
            best, span = score, HoleSpan(start, stop, before, int(choice.behind[start, stop]))
    return span


def overshot(
    written: Sequence[int], shown: Window, reading: PlaceLogprobs, ends: Sequence[int], anchor: int
) -> tuple[int, float]:
    """Whether a hole had its end on the canvas before, too near to that one's end to be seen: how many of the
    last tokens written are the start of the text behind it, which then goes on at the hole's start on this
    canvas; and how well the places say so, as scores of lengths. (0, -inf) where it is not so."""
    text, found = shown.texts[0], (0, -np.inf)
    for count in range(1, min(len(text), len(written)) + 1):
        rest = text[count:]
        if tuple(written[-count:]) != text[:count] or not (rest or shown.closes):
            continue
        score = float(_last_text(shown, rest, reading, ends, anchor)[shown.left])
        found = max(found, (count, score), key=lambda each: each[1])
    return found


def misfit(lengths: Lengths, shown: Window, reading: PlaceLogprobs) -> float:
    """How much less likely given text is where it would stand than what its places say themselves: nats a
    place, of all that is given behind the first hole, or of the last text alone if that fits worse."""
    first, last = lengths.spans[0], lengths.spans[-1]
    text = shown.texts[-1][last.behind :]
    stop = min(len(reading), last.stop + len(text))
    places = range(last.stop, stop)
    missing = sum(reading.best[place] - reading.of(place, text[place - last.stop]) for place in places)
    end = len(reading) if shown.closes else stop
    given = end - first.start - sum(span.length for span in lengths.spans)
    whole = float(reading.best[first.start :].sum()) - lengths.score
    return max(whole / max(1, given), float(missing) / max(1, len(places)))


def close(ranked: Sequence[Lengths], margin: float, most: int) -> list[Lengths]:
    """Those within `margin` nats of the best, at most so many."""
    return [each for each in ranked[:most] if each.score >= ranked[0].score - margin]


def _is_set(bits: TokenBits, token: int) -> bool:
    return token // 8 < len(bits) and bool(bits[token // 8] >> token % 8 & 1)


__all__ = [
    "Lengths",
    "Named",
    "PlaceLogprobs",
    "close",
    "left_seam",
    "lengths_by_score",
    "misfit",
]
