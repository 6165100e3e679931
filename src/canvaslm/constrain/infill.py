"""How long holes are: what a model says after one denoise step, with only the text before them known.

Every place has a distribution then. A length is right if the places behind it say what the text behind the
hole says, and those behind that the end of the turn: all lengths are scored from the one step, as the best
path over the canvas. Where the best ones are close, the canvases are denoised, and judged once more by what
the model says of *all* places (a hole's own places, or entropies, tell nothing).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .holes import TokenTemplate, Window

Floats = NDArray[np.float64]
Named = Sequence[
    tuple[int, float]
]  # the most probable tokens of a place: (token, log-probability), best first


@dataclass(frozen=True)
class Lengths:
    """Tokens of each hole of a window, and how well the canvas says so: nats, over all its places."""

    lengths: tuple[int, ...]
    score: float


class PlaceLogprobs:
    """Log-probabilities in nats of C places, of which the best tokens are named; what is left is shared by
    all others."""

    def __init__(self, named: Sequence[Named], vocabulary: int) -> None:
        self.best = np.array([place[0][1] for place in named])
        self._named = [dict(place) for place in named]
        rest = np.array([1 - sum(np.exp(value) for _, value in place) for place in named])
        others = np.array([max(1, vocabulary - len(place)) for place in named])
        self._floor = np.minimum(np.log(np.maximum(rest, 1e-6) / others), [place[-1][1] for place in named])

    def __len__(self) -> int:
        return len(self.best)

    def of(self, place: int, token: int) -> float:
        """The log-probability of a token at a place."""
        return self._named[place].get(token, float(self._floor[place]))

    def of_any(self, tokens: Iterable[int]) -> Floats:
        """Per place that of the likeliest of these tokens."""
        wanted = tuple(tokens)
        return np.array([max(self.of(place, token) for token in wanted) for place in range(len(self))])

    def of_text(self, text: Sequence[int], start: int) -> float:
        """Of a text that begins at a place, as far as the canvas goes."""
        return sum(self.of(start + i, token) for i, token in enumerate(text[: len(self) - start]))

    def mean(self, tokens: Mapping[int, int]) -> float:
        """The mean over places of the log-probability of what stands there."""
        return sum(self.of(place, token) for place, token in tokens.items()) / max(1, len(tokens))


def lengths_by_score(
    template: TokenTemplate, shown: Window, reading: PlaceLogprobs, ends: Sequence[int], anchor: int
) -> list[Lengths]:
    """The lengths that a window's holes may have, best first: one for each length of the first hole.

    The canvas begins with the text before the first hole. ends: tokens that stand behind a whole text.
    anchor: places of the last text that must be on the canvas if there are so many.
    """
    count = shown.last - shown.first
    spans = [_hole_scores(template, shown, shown.first + i, reading) for i in range(count)]
    behind = _last_text(shown, reading, ends, anchor)
    following: list[NDArray[np.int64]] = []  # of each hole but the first: where it ends, by where it begins
    for i in reversed(range(count)):
        total = spans[i] + behind  # [start, end]
        if i == 0:
            return _ranked(total[shown.left], shown, following)
        following.insert(0, total.argmax(1))
        behind = _shifted(total.max(1), shown.texts[i - 1], reading)
    return []


def _hole_scores(template: TokenTemplate, shown: Window, index: int, reading: PlaceLogprobs) -> Floats:
    """[C + 1, C + 1]: the score of a hole from one place to another, -inf where it may not be so long."""
    hole, places = template.holes[index], len(reading)
    sums = np.concatenate(([0.0], np.cumsum(reading.best)))
    scores = sums[None, :] - sums[:, None]
    length = np.arange(places + 1)[None, :] - np.arange(places + 1)[:, None]
    most = places if hole.most is None else hole.most
    scores[(length < hole.least) | (length > most)] = -np.inf
    return scores


def _last_text(shown: Window, reading: PlaceLogprobs, ends: Sequence[int], anchor: int) -> Floats:
    """[C + 1]: the score of all that stands behind the last hole, by where that ends."""
    places, text = len(reading), shown.texts[-1]
    tail = reading.of_any(ends) if shown.closes else reading.best
    rest = np.concatenate((np.cumsum(tail[::-1])[::-1], [0.0]))
    needed = len(text) + 1 if shown.closes else min(anchor, len(text))
    scores = np.full(places + 1, -np.inf)
    for start in range(places - needed + 1):
        scores[start] = reading.of_text(text, start) + rest[min(start + len(text), places)]
    return scores


def _shifted(behind: Floats, text: Sequence[int], reading: PlaceLogprobs) -> Floats:
    """[C + 1]: the score of a text and what stands behind it, by where the text begins."""
    places = len(reading)
    scores = np.full(places + 1, -np.inf)
    for start in range(places - len(text) + 1):
        if np.isfinite(behind[start + len(text)]):
            scores[start] = reading.of_text(text, start) + behind[start + len(text)]
    return scores


def _ranked(scores: Floats, shown: Window, following: Sequence[NDArray[np.int64]]) -> list[Lengths]:
    made: list[Lengths] = []
    for end in np.argsort(-scores, kind="stable"):
        if not np.isfinite(scores[end]):
            break
        lengths, place = [int(end) - shown.left], int(end)
        for number, ends in enumerate(following):
            place += len(shown.texts[number])
            lengths.append(int(ends[place]) - place)
            place = int(ends[place])
        made.append(Lengths(tuple(lengths), float(scores[end])))
    return made


def close(ranked: Sequence[Lengths], margin: float, most: int) -> list[Lengths]:
    """Those within `margin` nats of the best, at most so many."""
    return [each for each in ranked[:most] if each.score >= ranked[0].score - margin]


__all__ = ["Lengths", "Named", "PlaceLogprobs", "close", "lengths_by_score"]
