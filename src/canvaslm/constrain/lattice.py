"""One place of a canvas at a time: the scores of all states behind it, and how each was reached.

Two twins that agree in every bit: numpy, and the native kernels where they are there. Arrays over the states
[states + 1] are changed in place: `best` (nats; -inf: not reached), `before` and `by` (the state and the
token that led there). Of equal ways the first wins: tokens as the canvas names them, then edges.
"""

from __future__ import annotations

import itertools
from ctypes import CDLL
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ..ops.cpu import loader
from .reading import CanvasReading, Floats
from .steps import Ints, Steps

Backs = NDArray[np.int32]
PUT_IN = -3  # less the token: what `by` holds of one that was put in
LEAST = 1e-9  # nats by which something put in must make a state cheaper


@dataclass(frozen=True)
class Reached:
    """The states behind a place."""

    best: Floats
    before: Backs
    by: Backs


class PlainLattice:
    """In numpy."""

    def __init__(self, steps: Steps, reading: CanvasReading) -> None:
        self._steps, self._reading = steps, reading

    def keep(self, place: int, score: Floats, reached: Reached) -> None:
        """Takes one of the place's named tokens from every state."""
        tokens, logprobs = self._reading.tokens[place].tolist(), self._reading.logprobs[place].tolist()
        for token, logprob in zip(tokens, logprobs, strict=True):
            self.keep_token(token, logprob, score, reached)

    def keep_token(self, token: int, logprob: float, score: Floats, reached: Reached) -> None:
        """Takes this token from every state."""
        source, target = self._steps.walk(token)
        if len(source):
            _offer(source, target, score[source] + logprob, np.full(len(source), token), reached)

    def take(self, logprob: float, score: Floats, reached: Reached) -> None:
        """Takes one of the edges from every state."""
        steps = self._steps
        _offer(steps.source, steps.target, score[steps.source] + logprob, steps.token, reached)

    def insert(self, price: Floats, reached: Reached, changed: NDArray[np.bool_]) -> None:
        """Puts edges in, for their prices [E], as long as that makes a state cheaper.

        `changed`: the states to begin with; what is put in from others is in `reached` already.
        """
        steps, score = self._steps, reached.best
        todo = np.nonzero(changed)[0]
        while len(todo):
            edges = _edges_of(todo, steps.begin)
            value = score[steps.source[edges]] - price[edges]
            better = value > score[steps.target[edges]] + LEAST
            edges, value = edges[better], value[better]
            target = steps.target[edges]
            _offer(steps.source[edges], target, value, PUT_IN - steps.token[edges], reached)
            todo = np.unique(target)


class NativeLattice(PlainLattice):
    """On the native kernels."""

    def __init__(self, steps: Steps, reading: CanvasReading, library: CDLL) -> None:
        super().__init__(steps, reading)
        self._library, self._dead = library, steps.automaton.states
        symbols = [steps.vocabulary.token_bytes[token] for token in reading.tokens.ravel().tolist()]
        self._runs = np.fromiter(itertools.chain.from_iterable(symbols), np.int16)
        self._begin = np.zeros(len(symbols) + 1, np.int64)
        np.cumsum([len(run) for run in symbols], out=self._begin[1:])
        self._tokens = np.ascontiguousarray(reading.tokens, np.int64)
        self._logprobs = np.ascontiguousarray(reading.logprobs, np.float64)
        self._edges = [column.ctypes.data for column in (steps.source, steps.target, steps.token)]

    def keep(self, place: int, score: Floats, reached: Reached) -> None:
        count = self._tokens.shape[1]
        self._library.canvas_keep(
            self._steps.columns.ctypes.data, self._dead, count,
            self._tokens[place].ctypes.data, self._logprobs[place].ctypes.data,
            self._begin[place * count :].ctypes.data, self._runs.ctypes.data,
            score.ctypes.data, *_pointers(reached),
        )  # fmt: skip

    def take(self, logprob: float, score: Floats, reached: Reached) -> None:
        count = len(self._steps.source)
        self._library.canvas_take(count, *self._edges, logprob, score.ctypes.data, *_pointers(reached))

    def insert(self, price: Floats, reached: Reached, changed: NDArray[np.bool_]) -> None:
        self._library.canvas_insert(
            self._dead, self._steps.begin.ctypes.data, *self._edges[1:], price.ctypes.data, LEAST,
            *_pointers(reached), changed.ctypes.data,
        )  # fmt: skip


def lattice_of(steps: Steps, reading: CanvasReading) -> PlainLattice:
    """The faster twin that there is."""
    library = _library()
    return PlainLattice(steps, reading) if library is None else NativeLattice(steps, reading, library)


@cache
def _library() -> CDLL | None:
    """The native kernels, if they need not be compiled first: that takes longer than they would save."""
    return loader.library() if loader.ready() else None


def nowhere(states: int) -> Reached:
    """No state is reached."""
    return Reached(
        np.full(states + 1, -np.inf), np.full(states + 1, -1, np.int32), np.full(states + 1, -1, np.int32)
    )


def _pointers(reached: Reached) -> tuple[int, int, int]:
    return reached.best.ctypes.data, reached.before.ctypes.data, reached.by.ctypes.data


def _offer(source: Ints, target: Ints, value: Floats, token: Ints, reached: Reached) -> None:
    """Ways to states; only what is better than what is there counts."""
    better = value > reached.best[target]
    source, target, value, token = source[better], target[better], value[better], token[better]
    np.maximum.at(reached.best, target, value)
    chosen = np.nonzero(value == reached.best[target])[0][::-1]  # of equals the first: it is written last
    reached.before[target[chosen]], reached.by[target[chosen]] = source[chosen], token[chosen]


def _edges_of(states: Ints, begin: Ints) -> Ints:
    """The edges that lead out of some states, `begin` as in `Steps`."""
    first, count = begin[states], begin[states + 1] - begin[states]
    offset = np.repeat(np.cumsum(count) - count, count)
    edges: Ints = np.arange(len(offset)) - offset + np.repeat(first, count)
    return edges


__all__ = ["LEAST", "PUT_IN", "NativeLattice", "PlainLattice", "Reached", "lattice_of", "nowhere"]
