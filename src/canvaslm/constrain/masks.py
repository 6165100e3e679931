"""Which tokens each place of a canvas may take, if a text of a regular language shall stand there.

Forward alone: from the states in which the text may be before a place to all in which it may be behind it,
and of these only such as the room then suffices for. So every token of every valid canvas is allowed, and a
canvas whose tokens are all allowed may be invalid still: a place does not know what the others took. After
`EXACT` places the states are taken to be all that are in reach at all: that allows more, never less.

A set of states is walked through the tree of the vocabulary, symbol by symbol, as one: what is said from
many states costs what it costs from one, and what was found is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .automaton import FAR
from .steps import Steps
from .vocabulary import SYMBOLS

EXACT = 16  # places
MOST_WORK = 4_000_000  # states of all sets that one walk may follow by a symbol: else it says nothing
_WAY = 256  # what a set counts as besides its states, each time
_MEMORY = 32 << 20  # bytes of walks that one constraint may keep

States = NDArray[np.int32]  # ascending


@dataclass(frozen=True)
class _Walk:
    """What may follow a set of states."""

    need: NDArray[np.uint16]  # [V]: tokens to the nearest end behind each token, _NEVER where it cannot be
    states: States  # all behind any token


_NEVER = 65_535


class Masks:
    """The masks of one constraint. Not thread-safe: what was found is kept."""

    def __init__(self, steps: Steps) -> None:
        self._steps, words = steps, steps.vocabulary
        self._need = np.minimum(steps.distance, _NEVER).astype(np.uint16)
        self._ends = np.zeros(words.size, bool)
        self._ends[list(words.ends)] = True
        self._behind = self._ends.copy()
        self._behind[words.pad] = True
        self._sets = _Sets(steps.automaton.next)
        self._known: dict[bytes, _Walk | None] = {}

    def along(self, state: int, given: Sequence[int | None], room: int) -> tuple[bytes | None, ...]:
        """Per place the tokens that it may take; None: any.

        given: per place its token, where it is fixed. room: tokens that may be written, the end included.
        Places behind what contradicts the language or the room, or where too much may stand to be told, are
        free.
        """
        states, over = np.array([state], np.int32), False
        found: list[bytes | None] = []
        for place, token in enumerate(given):
            left = room - place - 1
            ending = left >= 0 and bool(self._steps.automaton.ends[states].any())
            if token is None:
                walk = self._walk(states)
                if walk is None:
                    break
                may = walk.need < max(left, 0)
                may = may | self._behind if over else may | self._ends if ending else may
                found.append(np.packbits(may, bitorder="little").tobytes() if may.any() else None)
                over = over or ending
                states = walk.states if place < EXACT else states
            else:
                found.append(None)
                ends = bool(self._ends[token])
                over = (ending and ends) or (over and bool(self._behind[token]))
                states = self._by(states, token)
            if place + 1 == EXACT or (place >= EXACT and token is not None):
                states = self._reach(states)
        return (*found, *[None] * (len(given) - len(found)))

    def _by(self, states: States, token: int) -> States:
        """Where a token leads to."""
        source, target = self._steps.walk(token)
        return np.unique(target[np.isin(source, states)]).astype(np.int32)

    def _reach(self, states: States) -> States:
        """These, and all that any tokens lead to from them."""
        steps, seen = self._steps, np.zeros(self._steps.automaton.states + 1, bool)
        seen[states] = True
        while True:
            before = int(seen.sum())
            seen[steps.target[seen[steps.source]]] = True
            if int(seen.sum()) == before:
                return np.nonzero(seen)[0].astype(np.int32)

    def _walk(self, states: States) -> _Walk | None:
        """What may follow; None where that would take too long to say."""
        key = states.tobytes()
        if key not in self._known:
            if len(self._known) * self._ends.size * 2 > _MEMORY:
                self._known.clear()
            found = self._walked(states)
            if found is None:  # whether there is an answer must not hang on what was kept from before
                self._sets = _Sets(self._steps.automaton.next)
                found = self._walked(states)
            self._known[key] = found
        return self._known[key]

    def _walked(self, states: States) -> _Walk | None:
        words, sets = self._steps.vocabulary, self._sets
        behind = np.zeros(words.size, np.int32)  # per token the set that it leads to
        nodes = np.array([sets.number(states)], np.int32)
        for level in words.tree:
            above = nodes[level.parent]
            alive = np.nonzero(above)[0]
            nodes = np.zeros(len(above), np.int32)
            nodes[alive] = sets.step(above[alive], level.symbol[alive])
            if sets.work > MOST_WORK:
                return None
            if not len(alive):
                break
            behind[level.token] = nodes[level.node]
        need = np.full(len(sets.states), _NEVER, np.uint16)
        reached = np.zeros(self._steps.automaton.states + 1, bool)
        for number in np.nonzero(np.bincount(behind))[0].tolist():
            need[number] = self._need[sets.states[number]].min(initial=_NEVER)
            reached[sets.states[number]] = True
        reached &= self._steps.distance < FAR
        return _Walk(need[behind], np.nonzero(reached)[0].astype(np.int32))


class _Sets:
    """Sets of states by numbers, 0 the empty one, and where each leads by each symbol, as far as asked."""

    def __init__(self, following: NDArray[np.int32]) -> None:
        self._following, self._dead = following, len(following) - 1
        self.states: list[States] = []
        self.work = 0
        self._numbers: dict[bytes, int] = {}
        self._table = np.full((16, SYMBOLS), -1, np.int32)
        self._table[self.number(np.zeros(0, np.int32))] = 0

    def number(self, states: States) -> int:
        key = states.tobytes()
        if key not in self._numbers:
            self._numbers[key] = len(self.states)
            self.states.append(states)
            if len(self.states) > len(self._table):
                self._table = np.concatenate((self._table, np.full_like(self._table, -1)))
        return self._numbers[key]

    def step(self, sets: NDArray[np.int32], symbols: NDArray[np.int64]) -> NDArray[np.int32]:
        """Where sets [N] get to by symbols [N]; stops short where there are too many."""
        found = self._table[sets, symbols]
        missing = np.nonzero(found < 0)[0]
        if not len(missing):
            return found
        for pair in np.unique(sets[missing].astype(np.int64) * SYMBOLS + symbols[missing]).tolist():
            number, symbol = divmod(pair, SYMBOLS)
            target = np.unique(self._following[self.states[number], symbol])
            made = self.number(target[target < self._dead])
            self._table[number, symbol] = made
            self.work += len(self.states[number]) + _WAY
            if self.work > MOST_WORK:
                break
        filled: NDArray[np.int32] = np.maximum(self._table[sets, symbols], 0)
        return filled


__all__ = ["EXACT", "MOST_WORK", "Masks"]
