"""The valid text nearest to what a canvas says: places are kept or left out, and tokens are put between.

A path that keeps every token at its place ruins all that follows where a key is longer or shorter than the
model's. The text that leaves a canvas need not keep places; this aligns it with the language, exactly, at
these prices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .lattice import PUT_IN, lattice_of, nowhere
from .path import Path
from .reading import CanvasReading, Floats
from .steps import Steps
from .vocabulary import Vocabulary

_START, _DROPPED = -1, -2
_TRIMMED = 4  # of each place's first tokens


@dataclass(frozen=True)
class Prices:
    """Nats, as chosen on the demo's json task.

    A backslash put in is dear, else strings swallow structure by escaping its quotes.
    """

    drop: float = 4.0  # a place that is left out
    insert: float = 2.0  # a byte that is put in
    backslash: float = 12.0
    trim: float = 1.0  # white space that is left out: a place of nothing else, or around what is kept
    token: float = 1 / 1024  # each token put in, so that of equals the one in few tokens wins


def best_edit(
    steps: Steps, reading: CanvasReading, state: int, room: int, prices: Prices | None = None
) -> Path | None:
    """The best alignment from `state` on: ended on this canvas, or under way behind its last place.

    It may have more or fewer tokens than places. None where that does not fit: it has more tokens than
    `room`, or could not end in what is left, or says nothing and has not ended.
    """
    prices = prices or Prices()
    search = _Alignment(steps, with_trimmed(reading, steps.vocabulary, prices.trim), state, prices)
    for layer in range(len(reading.tokens) + 1):
        if layer:
            search.advance(layer - 1)
        search.insert()
        search.close(layer)
    return search.found(room)


def with_trimmed(reading: CanvasReading, vocabulary: Vocabulary, price: float) -> CanvasReading:
    """Names besides each place's first tokens what they say without white space around it: `"` for ` "`.

    Else a habit of spaces that the language forbids would cost the quotes that are in one token with them.
    """
    first = reading.tokens[:, :_TRIMMED]
    known = {token: _trimmed(token, vocabulary) for token in np.unique(first).tolist()}
    tokens = np.array([[known[token] for token in row] for row in first.tolist()], np.int64)
    logprobs = reading.logprobs[:, :_TRIMMED] - price
    return replace(
        reading,
        tokens=np.concatenate([reading.tokens, tokens], 1),
        logprobs=np.concatenate([reading.logprobs, logprobs], 1),
    )


def _drop_prices(reading: CanvasReading, vocabulary: Vocabulary, prices: Prices) -> Floats:
    """[P]: for each place to be left out; what is nothing but white space is cheap."""
    blank = [vocabulary.token_bytes[token] for token in reading.tokens[:, 0].tolist()]
    cheap = [isinstance(symbols, bytes) and symbols.isspace() for symbols in blank]
    return np.where(cheap, min(prices.trim, prices.drop), prices.drop)


def _trimmed(token: int, vocabulary: Vocabulary) -> int:
    """The padding, which says nothing, where there is no such token."""
    symbols = vocabulary.token_bytes[token]
    if not isinstance(symbols, bytes) or symbols == symbols.strip():
        return vocabulary.pad
    return vocabulary.ids.get(symbols.strip(), vocabulary.pad)


class _Alignment:
    """Scores of all states behind a number of places, a layer; and how each was reached.

    `by` holds the token that leads there from the layer before, _DROPPED where the place was left out, or
    `PUT_IN - token` for one put in on the same layer.
    """

    def __init__(self, steps: Steps, reading: CanvasReading, state: int, prices: Prices) -> None:
        self._steps, self._reading, self._prices = steps, reading, prices
        self._price = np.where(steps.escape, prices.backslash, prices.insert * steps.length) + prices.token
        self._drop = _drop_prices(reading, steps.vocabulary, prices)
        self._tail = reading.tail(np.maximum(reading.rest, -self._drop))
        self._lattice = lattice_of(steps, reading)
        self._layers = [nowhere(steps.automaton.states)]
        self._score = self._layers[0].best
        self._score[state] = 0.0
        self._best = (-np.inf, 0, state)

    def advance(self, place: int) -> None:
        """Keeps one of the place's tokens, or leaves the place out."""
        reached = nowhere(self._steps.automaton.states)
        np.subtract(self._score, self._drop[place], out=reached.best)
        live = np.nonzero(self._score > -np.inf)[0]
        reached.before[live], reached.by[live] = live, _DROPPED
        self._lattice.keep(place, self._score, reached)
        self._layers.append(reached)
        self._score = reached.best

    def insert(self) -> None:
        """Puts tokens in. What was dropped to is done: all on that way was put in before the place."""
        reached = self._layers[-1]
        changed = reached.by >= 0 if len(self._layers) > 1 else reached.best > -np.inf
        self._lattice.insert(self._price, reached, changed)

    def close(self, layer: int) -> None:
        """Considers that the answer ends before the place of this number."""
        closing = np.where(self._steps.automaton.ends, self._score, -np.inf)
        state = int(closing.argmax())
        if layer < len(self._reading.tokens):
            end = self._reading.end[layer] + self._tail[layer + 1]
        else:
            end = -self._prices.drop
        if closing[state] + end > self._best[0]:
            self._best = (float(closing[state] + end), layer, state)

    def found(self, room: int) -> Path | None:
        """The better of ended and under way that fits."""
        reach = np.where(self._steps.distance + 1 < room, self._score, -np.inf)
        last = int(reach.argmax())
        under_way = (float(reach[last]), len(self._layers) - 1, last)
        candidates = [(self._best, True), (under_way, False)]
        for (score, layer, state), ended in sorted(candidates, key=lambda c: -c[0][0]):
            if score > -np.inf:
                tokens, places = self._traced(layer, state)
                if ended:
                    self._end(layer, tokens, places)
                need = 0 if ended else int(self._steps.distance[state]) + 1
                if tokens and len(tokens) + need <= room:
                    return Path(tuple(tokens), tuple(places), score, ended, state)
        return None

    def _end(self, layer: int, tokens: list[int], places: list[int | None]) -> None:
        """Puts the end behind: the one that its place names first, else the usual one."""
        ends = self._steps.vocabulary.ends
        named = self._reading.tokens[layer].tolist() if layer < len(self._reading.tokens) else []
        end = next((token for token in named if token in ends), None)
        tokens.append(ends[0] if end is None else end)
        places.append(None if end is None else layer)

    def _traced(self, layer: int, state: int) -> tuple[list[int], list[int | None]]:
        tokens: list[int] = []
        places: list[int | None] = []
        while True:
            reached = self._layers[layer]
            before, by = int(reached.before[state]), int(reached.by[state])
            if by == _START:
                return tokens[::-1], places[::-1]
            if by <= PUT_IN:
                tokens.append(PUT_IN - by)
                places.append(None)
            else:
                layer -= 1
                if by != _DROPPED:
                    tokens.append(by)
                    places.append(layer)
            state = before


__all__ = ["Prices", "best_edit"]
