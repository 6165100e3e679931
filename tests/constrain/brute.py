"""The same optima by trying everything: small automata, few places."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

import numpy as np

from canvaslm.constrain.automaton import Automaton, compile_expression
from canvaslm.constrain.edit import Prices
from canvaslm.constrain.pattern import parse
from canvaslm.constrain.reading import CanvasReading
from canvaslm.constrain.steps import Steps
from canvaslm.constrain.vocabulary import Vocabulary

PATTERNS = [
    "a*", "(ab|ba)+", "a{2,3}b?", "[ab]*c", "(abc|ab)*", "a?b?c?", "(a|bc){1,2}", "abcab", "(aab)+|c",
    "[abc]{2}",
    "a.b", "(?:ab){1,3}c", "\\\\[ab]\\\\", "(ca)*b",
]  # fmt: skip


def reading(
    rng: np.random.Generator, vocabulary: Vocabulary, places: int, k: int, tokens: list[int] | None = None
) -> CanvasReading:
    """Random most probable tokens, an end or padding among them now and then."""
    pool = np.array(tokens if tokens is not None else range(vocabulary.size))
    named = np.stack([rng.choice(pool, k, replace=False) for _ in range(places)])
    logprobs = -np.sort(rng.random((places, k)), axis=1) * rng.choice([0.5, 2, 8]) - np.log(k) - 0.05
    return CanvasReading.of(named, logprobs, vocabulary)


def automaton(rng: random.Random) -> Automaton:
    return compile_expression(parse(rng.choice(PATTERNS)))


def best_score(
    steps: Steps, reading: CanvasReading, state: int, room_after: int, given: Mapping[int, int]
) -> float:
    """Of `best_path`: every sequence of tokens of the vocabulary, cut where no state is left."""
    words, automaton = steps.vocabulary, steps.automaton
    ending = [end in words.ends for end in range(words.size)]
    places = len(reading.tokens)
    tail = reading.tail()

    def price(place: int, token: int) -> float:
        if place in given:
            return 0.0 if given[place] == token else -np.inf
        named = np.nonzero(reading.tokens[place] == token)[0]
        return float(reading.logprobs[place, named[0]] if len(named) else reading.floor[place])

    def go(place: int, state: int, score: float) -> Iterator[float]:
        later = any(len(words.token_bytes[t]) for p, t in given.items() if p >= place)
        if place == places:
            yield score if room_after > 0 and steps.distance[state] + 1 <= room_after else -np.inf
            return
        if automaton.ends[state] and not later and (place not in given or ending[given[place]]):
            yield score + (0.0 if place in given else reading.end[place]) + tail[place + 1]
        for token in range(words.size):
            symbols = words.token_bytes[token]
            after = automaton.after(state, symbols) if symbols else automaton.states
            if after < automaton.states and price(place, token) > -np.inf:
                yield from go(place + 1, after, score + price(place, token))

    return max(go(0, state, 0.0), default=-np.inf)


def edit_score(steps: Steps, reading: CanvasReading, state: int, prices: Prices) -> tuple[float, float]:
    """Of `best_edit`: (ended, under way), by relaxing every edge of the lattice until nothing changes."""
    places, automaton = len(reading.tokens), steps.automaton
    edges = []
    for layer in range(places + 1):
        for s, t, token, length in zip(steps.source, steps.target, steps.token, steps.length, strict=True):
            slash = steps.vocabulary.token_bytes[token] == b"\\"
            cost = (prices.backslash if slash else prices.insert * length) + prices.token
            edges.append(((layer, int(s)), (layer, int(t)), -cost))
        for s in range(automaton.states if layer < places else 0):
            edges.append(((layer, s), (layer + 1, s), -prices.drop))
            for token, logprob in zip(reading.tokens[layer].tolist(), reading.logprobs[layer], strict=True):
                after = automaton.after(s, steps.vocabulary.token_bytes[token])
                if steps.vocabulary.token_bytes[token] and after < automaton.states:
                    edges.append(((layer, s), (layer + 1, after), float(logprob)))
    score = {(0, state): 0.0}
    changed = True
    while changed:
        changed = False
        for begin, end, value in edges:
            found = score.get(begin, -np.inf) + value
            if found > score.get(end, -np.inf) + 1e-9:
                score[end], changed = found, True
    tail = reading.tail(np.maximum(reading.rest, -prices.drop))
    closing = [reading.end[i] + tail[i + 1] if i < places else -prices.drop for i in range(places + 1)]
    ended = [v + closing[layer] for (layer, s), v in score.items() if automaton.ends[s]]
    under_way = [v for (layer, _), v in score.items() if layer == places]
    return max(ended, default=-np.inf), max(under_way, default=-np.inf)


__all__ = ["PATTERNS", "automaton", "best_score", "edit_score", "reading"]
