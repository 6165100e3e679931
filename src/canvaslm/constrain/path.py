"""The most probable valid content of a canvas whose tokens keep their places (Viterbi, exact).

A path goes from place to place and from state to state. At each place it takes one of the model's most
probable tokens at its log-probability, or any edge of `Steps` at the place's floor: what the named tokens
leave of the probability, spread evenly over all others. Sums are of nats.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .steps import Ints, Steps
from .vocabulary import Vocabulary

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class CanvasReading:
    """What a canvas of P places says of its content: the k most probable tokens of each, best first."""

    tokens: Ints  # [P, k]
    logprobs: Floats  # [P, k], nats
    floor: Floats  # [P]: log-probability of any other token
    end: Floats  # [P]: of the answer's ending here
    rest: Floats  # [P]: of an end or padding here

    @classmethod
    def of(cls, tokens: Ints, logprobs: Floats, vocabulary: Vocabulary) -> CanvasReading:
        """From the most probable tokens and their log-probabilities."""
        logprobs = np.maximum(logprobs.astype(np.float64), -1e4)  # a forbidden token: no path shall be -inf
        left = np.clip(1 - np.exp(logprobs).sum(-1), 1e-12, 1)
        floor = np.minimum(np.log(left / max(1, vocabulary.size - tokens.shape[1])), logprobs[:, -1])
        ends = np.isin(tokens, vocabulary.ends)
        end = np.maximum(np.where(ends, logprobs, -np.inf).max(-1), floor)
        idle = np.where(ends | (tokens == vocabulary.pad), logprobs, -np.inf)
        return cls(tokens, logprobs, floor, end, np.maximum(idle.max(-1), floor))

    def tail(self, rest: Floats | None = None) -> Floats:
        """[P + 1]: sums of `rest`, or of another column, from each place to the last."""
        column = self.rest if rest is None else rest
        return np.append(np.cumsum(column[::-1])[::-1], 0.0)


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
        self._back: list[
            tuple[NDArray[np.int32], NDArray[np.int32]]
        ] = []  # per place and state the state before, and the token
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
        source, target, value, token = self._offers(place)
        score = np.full(len(self._score), -np.inf)
        np.maximum.at(score, target, value)
        left = self._places - place - 1 + self._room_after
        score[self._steps.distance + 1 > left] = -np.inf
        chosen = np.nonzero(value == score[target])[0][::-1]  # of equals the first: it is written last
        before, by = np.full((2, len(score)), -1, np.int32)
        before[target[chosen]], by[target[chosen]] = source[chosen], token[chosen]
        self._back.append((before, by))
        self._score = score

    def _offers(self, place: int) -> tuple[Ints, Ints, Floats, Ints]:
        """(source, target, score, token) of every way on from a state that is reached."""
        steps, reading, fixed = self._steps, self._reading, self._fixed.get(place)
        named = zip(reading.tokens[place].tolist(), reading.logprobs[place].tolist(), strict=True)
        parts: list[tuple[Ints, Ints, Floats, Ints]] = []
        for token, logprob in named if fixed is None else ((fixed, 0.0),):
            source, target = steps.walk(token)
            if len(source):
                parts.append((source, target, self._score[source] + logprob, np.full(len(source), token)))
        if fixed is None:
            value = self._score[steps.source] + reading.floor[place]
            parts.append((steps.source, steps.target, value, steps.token))
        if not parts:
            none = np.zeros(0, np.int64)
            return none, none, np.zeros(0), none
        source, target, value, tokens = (np.concatenate(column) for column in zip(*parts, strict=True))
        alive = value > -np.inf
        return source[alive], target[alive], value[alive], tokens[alive]

    def found(self) -> Path | None:
        """The best of all: ended at some place, or still under way behind the last."""
        last = int(self._score.argmax())
        ended = not (self._room_after > 0 and self._score[last] > self._best[0])
        score, place, state = self._best if ended else (float(self._score[last]), self._places, last)
        if score == -np.inf:
            return None
        tokens: list[int] = []
        here = state
        for before, by in self._back[:place][::-1]:
            tokens.append(int(by[here]))
            here = int(before[here])
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


__all__ = ["CanvasReading", "Floats", "Path", "best_path"]
