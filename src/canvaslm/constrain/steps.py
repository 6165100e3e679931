"""An automaton's edges in tokens: what can be written from each state whatever the model says.

One byte's token for every pair of states that are joined, and of longer tokens those that spell what must
follow: the text of a key, a word of an enumeration. So every state's way to an end is known in tokens, and
what a constraint puts in is written in whole words, as the model would.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .automaton import FAR, Automaton, distances
from .vocabulary import BYTES, Vocabulary

MAX_BRANCHES, MAX_WORD = 8, 24  # ways out of a state that are spelled out, symbols of one token
BACKSLASH = 0x5C
_MEMORY, _ENTRY = 4 << 20, 400  # bytes of walks that one constraint may keep; of an entry without its arrays

Ints = NDArray[np.int64]
_Edge = tuple[int, int, int, int]  # source, target, token, symbols


@dataclass(frozen=True, eq=False)
class Steps:
    """The edges of `automaton` in the tokens of `vocabulary`, E of them, by their sources."""

    automaton: Automaton
    vocabulary: Vocabulary
    source: Ints  # [E]
    target: Ints  # [E]
    token: Ints  # [E]
    length: Ints  # [E]: symbols of the token
    escape: NDArray[np.bool_]  # [E]: whether it is a backslash
    distance: Ints  # [states + 1]: tokens to the nearest end, without the one that ends the answer
    _walks: dict[int, tuple[Ints, Ints]] = field(default_factory=dict, repr=False)
    _walks_size: list[int] = field(default_factory=lambda: [0], repr=False)  # bytes

    @classmethod
    def of(cls, automaton: Automaton, vocabulary: Vocabulary) -> Steps:
        """Finds the edges. A state that only symbols without a token lead out of has distance FAR."""
        edges = sorted({*_singles(automaton, vocabulary), *_words(automaton, vocabulary)})
        source, target, token, length = np.array(edges, np.int64).reshape(-1, 4).T.copy()
        escape = token == vocabulary.byte_ids[BACKSLASH]
        far = distances(automaton.ends, source, target, np.ones(len(source), np.int64))
        return cls(automaton, vocabulary, source, target, token, length, escape, far)

    @cached_property
    def begin(self) -> Ints:
        """[states + 2]: where each state's edges begin."""
        return np.searchsorted(self.source, np.arange(self.automaton.states + 2))

    @cached_property
    def columns(self) -> NDArray[np.uint16]:
        """[SYMBOLS, states + 1]: the automaton's table by symbols."""
        return np.ascontiguousarray(self.automaton.next.T, np.uint16)

    def walk(self, token: int) -> tuple[Ints, Ints]:
        """(sources, targets): the states that a token leads out of, ascending, and where to."""
        found = self._walks.get(token)
        if found is None:
            found = self._walked(token)
            self._walks_size[0] += found[0].nbytes + found[1].nbytes + _ENTRY
            if self._walks_size[0] > _MEMORY:
                self._walks.clear()
                self._walks_size[0] = 0
            self._walks[token] = found
        return found

    def _walked(self, token: int) -> tuple[Ints, Ints]:
        dead, symbols = self.automaton.states, self.vocabulary.token_bytes[token]
        source = np.arange(dead if symbols else 0)
        target = source
        for symbol in symbols:
            target = self.automaton.next[target, symbol].astype(np.int64)
            alive = target < dead
            source, target = source[alive], target[alive]
        return source, target


def _singles(automaton: Automaton, vocabulary: Vocabulary) -> Iterator[_Edge]:
    """For each pair of states one symbol that joins them and has a token; the backslash only if need be."""
    dead, usable = automaton.states, vocabulary.byte_ids >= 0
    source, symbol = np.nonzero((automaton.next[:dead] < dead) & usable)
    target = automaton.next[source, symbol].astype(np.int64)
    order = np.lexsort((symbol, symbol == BACKSLASH, target, source))
    source, target, symbol = source[order], target[order], symbol[order]
    first = np.ones(len(source), bool)
    first[1:] = (source[1:] != source[:-1]) | (target[1:] != target[:-1])
    token = vocabulary.byte_ids[symbol[first]]
    for edge in zip(source[first].tolist(), target[first].tolist(), token.tolist(), strict=True):
        yield (*edge, 1)


def _words(automaton: Automaton, vocabulary: Vocabulary) -> Iterator[_Edge]:
    """Tokens of several bytes along ways on which, behind the first byte, nothing else may follow."""
    dead, table = automaton.states, automaton.next[:, :BYTES]
    ways = (table < dead).sum(1)
    only = np.where(ways == 1, (table < dead).argmax(1), -1).tolist()
    after = table[np.arange(dead + 1), np.maximum(only, 0)].tolist()
    ids = vocabulary.ids
    for state in np.nonzero((ways > 0) & (ways <= MAX_BRANCHES))[0].tolist():
        for first in np.nonzero(table[state] < dead)[0].tolist():
            spelled, here = bytes((first,)), int(table[state, first])
            while only[here] >= 0 and len(spelled) < MAX_WORD:
                spelled += bytes((only[here],))
                here = after[here]
                if spelled in ids:
                    yield state, here, ids[spelled], len(spelled)


__all__ = ["BACKSLASH", "FAR", "MAX_BRANCHES", "MAX_WORD", "Ints", "Steps"]
