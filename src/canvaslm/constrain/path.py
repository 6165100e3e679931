"""The most probable valid content of a canvas whose tokens keep their places (Viterbi, exact).

A path goes from place to place and from state to state. At each place it takes one of the model's most
probable tokens at its log-probability, or any edge of `Steps` at the place's floor: what the named tokens
leave of the probability, spread evenly over all others. Sums are of nats.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from .lattice import Reached, lattice_of, nowhere
from .reading import CanvasReading
from .steps import Steps


@dataclass(frozen=True)
class Path:
    """Tokens to commit, the end included if `ended`; per token its place, None where no place named it."""

    tokens: tuple[int, ...]
    places: tuple[int | None, ...]
    score: float
    ended: bool
    state: int  # where the next canvas goes on


def best_path(
    steps: Steps, reading: CanvasReading, state: int, room_after: int, given: Collection[tuple[int, int]] = ()
) -> Path | None:
    """The most probable path from `state` on that ends here, or can still end in `room_after` more tokens.

    `given`: (place, token) that are fixed; what has symbols is never left behind the end. None if nothing
    fits: the room is too small for `steps.distance`, or given tokens contradict.
    """
    fixed = dict(given)
    search = _Search(steps, reading, state, room_after, fixed)
    for place in range(len(reading.tokens)):
        search.close(place)
        search.advance(place)
    return search.found()


class _Search:
    """Scores of all states before a place, and how each was reached."""

    def __init__(
        self, steps: Steps, reading: CanvasReading, state: int, room_after: int, fixed: dict[int, int]
    ) -> None:
        self._steps, self._reading, self._room_after, self._fixed = steps, reading, room_after, fixed
        self._start, self._places = state, len(reading.tokens)
        self._score = np.full(steps.automaton.states + 1, -np.inf)
        self._score[state] = 0.0
        self._back: list[Reached] = []  # per place
        self._lattice = lattice_of(steps, reading)
        self._tail = reading.tail()
        self._best = (-np.inf, 0, state)  # score, place of the end, state there
        words = steps.vocabulary
        texts = [place for place, token in fixed.items() if len(words.token_bytes[token])]
        self._first_end = max(texts, default=-1) + 1

    def close(self, place: int) -> None:
        """Considers that the answer ends at this place."""
        token = self._fixed.get(place)
        if place < self._first_end or (token is not None and token not in self._steps.vocabulary.ends):
            return
        closing = np.where(self._steps.automaton.ends, self._score, -np.inf)
        state = int(closing.argmax())
        total = closing[state] + (self._reading.end[place] if token is None else 0.0) + self._tail[place + 1]
        if total > self._best[0]:
            self._best = (float(total), place, state)

    def advance(self, place: int) -> None:
        """Takes one token of this place on every path."""
        fixed, reached = self._fixed.get(place), nowhere(self._steps.automaton.states)
        if fixed is None:
            self._lattice.keep(place, self._score, reached)
            self._lattice.take(float(self._reading.floor[place]), self._score, reached)
        else:
            self._lattice.keep_token(fixed, 0.0, self._score, reached)
        left = self._places - place - 1 + self._room_after
        reached.best[self._steps.distance + 1 > left] = -np.inf
        self._back.append(reached)
        self._score = reached.best

    def found(self) -> Path | None:
        """The best of all: ended at some place, or still under way behind the last."""
        last = int(self._score.argmax())
        ended = not (self._room_after > 0 and self._score[last] > self._best[0])
        score, place, state = self._best if ended else (float(self._score[last]), self._places, last)
        if score == -np.inf:
            return None
        tokens: list[int] = []
        here = state
        for reached in self._back[:place][::-1]:
            tokens.append(int(reached.by[here]))
            here = int(reached.before[here])
        tokens.reverse()
        places = [p if self._names(p, token) else None for p, token in enumerate(tokens)]
        if ended:
            tokens.append(self._fixed.get(place, self._end(place)))
            places.append(place if self._names(place, tokens[-1]) else None)
        return Path(tuple(tokens), tuple(places), score, ended, state)

    def _names(self, place: int, token: int) -> bool:
        return place in self._fixed or token in self._reading.tokens[place]

    def _end(self, place: int) -> int:
        """The end that the place names first, else the usual one."""
        ends = self._steps.vocabulary.ends
        return next((t for t in self._reading.tokens[place].tolist() if t in ends), ends[0])


__all__ = ["Path", "best_path"]
