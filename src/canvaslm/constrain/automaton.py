"""Finite automata over symbols: an expression as a table that says where each state goes by each symbol.

Two steps. The expression becomes a graph whose edges carry ranges of symbols or nothing (Thompson); then sets
of its nodes become states. Nothing is built for tokens: these are walked, symbol by symbol.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .expression import (
    Characters,
    Either,
    Expression,
    Marker,
    Members,
    Range,
    Repeat,
    Series,
    Text,
)
from .utf8 import byte_ranges
from .vocabulary import SYMBOLS

MAX_STATES = 20_000  # fewer than 16 bits count: the kernels' tables have these
MAX_STEPS = 12_000_000  # nodes and edges looked at: about 2 s where each state has many
_MAX_NODES = 5 * MAX_STATES
FAR = 1 << 30  # distance of a state from which no end is in reach

Edge = tuple[int, int, int]  # first symbol, last symbol, node


class TooLarge(UsageError):
    """The language needs more states, or more steps to build, than is allowed."""


@dataclass(frozen=True, eq=False)
class Automaton:
    """A deterministic automaton without traps: from every state an end is in reach.

    State `states` is dead: nothing leads out of it.
    """

    start: int
    next: NDArray[np.int32]  # [states + 1, SYMBOLS]
    ends: NDArray[np.bool_]  # [states + 1]

    @property
    def states(self) -> int:
        """How many there are, and the number of the dead one."""
        return len(self.next) - 1

    def after(self, state: int, symbols: Iterable[int]) -> int:
        """Where a state gets to by these."""
        for symbol in symbols:
            state = int(self.next[state, symbol])
        return state

    def accepts(self, symbols: Iterable[int]) -> bool:
        """Whether they are a whole text of the language."""
        return bool(self.ends[self.after(self.start, symbols)])


def compile_expression(
    expression: Expression,
    param: str | None = None,
    *,
    most_states: int = MAX_STATES,
    most_steps: int = MAX_STEPS,
) -> Automaton:
    """Builds the automaton of an expression.

    Raises TooLarge, on `param`, beyond the limits, and UsageError where the language is empty.
    """
    work = _BuildSteps(most_steps)
    try:
        graph = _Graph(expression, work)
        rows, ends = _Subsets(graph, most_states, work).explore()
    except _LimitReached as limit:
        raise TooLarge(
            f"what is asked for is too large to guarantee: it needs more than {limit}; "
            "shorten it, or lower the counts of its repetitions",
            param,
        ) from None
    return _without_traps(_table(rows), np.array([*ends, False]), param)


class _LimitReached(Exception):
    pass


class _BuildSteps:
    """Steps that building may still take: counted, so that what is too large is so on every machine."""

    def __init__(self, most: int) -> None:
        self._most = self._left = most

    def spend(self, steps: int) -> None:
        """Raises _LimitReached where so many are not left."""
        self._left -= steps
        if self._left < 0:
            raise _LimitReached(f"{self._most:,} steps to build")


class _Graph:
    """Nodes joined by edges that carry ranges of symbols, or nothing."""

    def __init__(self, expression: Expression, work: _BuildSteps) -> None:
        self.edges: list[list[Edge]] = []
        self.free: list[list[int]] = []
        self.first, self.last = self._node(), self._node()
        # A stack, not recursion: an expression may be deeper than Python's own stack.
        self._todo: list[tuple[Expression, int, int]] = [(expression, self.first, self.last)]
        while self._todo:
            work.spend(1)
            self._wire(*self._todo.pop())

    def _node(self) -> int:
        if len(self.edges) >= _MAX_NODES:
            raise _LimitReached(f"{_MAX_NODES} nodes of a graph")
        self.edges.append([])
        self.free.append([])
        return len(self.edges) - 1

    def _wire(self, part: Expression, begin: int, end: int) -> None:
        """Lays the ways from one node to the other that a part of the expression is."""
        match part:
            case Text(text):
                self._run(text.encode(), begin, end)
            case Characters(ranges):
                self._characters(ranges, begin, end)
            case Marker(symbol):
                self.edges[begin].append((symbol, symbol, end))
            case Series(parts):
                self._series(parts, begin, end)
            case Either(options):
                self._todo.extend((option, begin, end) for option in options)
            case Repeat():
                self._repeat(part, begin, end)
            case Members():
                self._members(part, begin, end)

    def _run(self, symbols: bytes, begin: int, end: int) -> None:
        for symbol in symbols[:-1]:
            here = self._node()
            self.edges[begin].append((symbol, symbol, here))
            begin = here
        if symbols:
            self.edges[begin].append((symbols[-1], symbols[-1], end))
        else:
            self.free[begin].append(end)

    def _characters(self, ranges: tuple[Range, ...], begin: int, end: int) -> None:
        """What follows a first byte is shared by all first bytes that it follows."""
        nodes: dict[tuple[Range, ...], int] = {(): end}
        for run in _byte_runs(ranges):
            for index in range(len(run), 0, -1):
                low, high = run[index - 1]
                if index == 1:
                    self.edges[begin].append((low, high, nodes[run[1:]]))
                elif run[index - 1 :] not in nodes:
                    node = nodes[run[index - 1 :]] = self._node()
                    self.edges[node].append((low, high, nodes[run[index:]]))

    def _series(self, parts: tuple[Expression, ...], begin: int, end: int) -> None:
        for part in parts[:-1]:
            here = self._node()
            self._todo.append((part, begin, here))
            begin = here
        if parts:
            self._todo.append((parts[-1], begin, end))
        else:
            self.free[begin].append(end)

    def _repeat(self, part: Repeat, begin: int, end: int) -> None:
        """A chain of copies; without limit, the last of them is run through again and again."""
        if part.low == 0:
            self.free[begin].append(end)
        copies = max(part.low, 1) if part.high is None else part.high
        into = begin
        for index in range(copies):
            if index or part.high is None:  # a node that others lead to as well
                into = self._node()
                self._join(part.separator if index else None, begin, into)
            after = self._node()
            self._todo.append((part.inner, into, after))
            if index + 1 >= part.low:
                self.free[after].append(end)
            begin = after
        if part.high is None:
            self._join(part.separator, begin, into)

    def _join(self, part: Expression | None, begin: int, end: int) -> None:
        if part is None:
            self.free[begin].append(end)
        else:
            self._todo.append((part, begin, end))

    def _members(self, members: Members, begin: int, end: int) -> None:
        """Two rows of nodes, before anything is there and after: so each part stands in the graph once."""
        bare, some = self._node(), self._node()
        self.free[begin].append(bare)
        for part, required in zip(members.parts, members.required, strict=True):
            into, then_bare, then_some = self._node(), self._node(), self._node()
            self.free[bare].append(into)
            self._todo.append((members.separator, some, into))
            self._todo.append((part, into, then_some))
            if not required:
                self.free[bare].append(then_bare)
                self.free[some].append(then_some)
            bare, some = then_bare, then_some
        self.free[bare].append(end)
        self.free[some].append(end)


@lru_cache(maxsize=256)
def _byte_runs(ranges: tuple[Range, ...]) -> tuple[tuple[Range, ...], ...]:
    return tuple(run for low, high in ranges for run in byte_ranges(low, high))


class _Subsets:
    """Sets of nodes as states, found from the first on."""

    def __init__(self, graph: _Graph, most: int, work: _BuildSteps) -> None:
        self._graph, self._most, self._work = graph, most, work
        self._ids: dict[frozenset[int], int] = {}
        self._cores: dict[frozenset[int], int] = {}  # before the free edges are followed
        self._sets: list[frozenset[int]] = []

    def explore(self) -> tuple[list[list[Edge]], list[bool]]:
        """Per state its edges to other states, apart and ascending, and whether it is an end."""
        rows: list[list[Edge]] = []
        self._state(frozenset((self._graph.first,)))
        while len(rows) < len(self._sets):
            nodes = self._sets[len(rows)]
            edges = [edge for node in nodes for edge in self._graph.edges[node]]
            self._work.spend(len(nodes) + len(edges))
            rows.append([(low, high, self._state(core)) for low, high, core in _split(edges)])
        return rows, [self._graph.last in nodes for nodes in self._sets]

    def _state(self, core: frozenset[int]) -> int:
        if core not in self._cores:
            nodes = self._closure(core)
            if nodes not in self._ids:
                if len(self._sets) >= self._most:
                    raise _LimitReached(f"{self._most} states")
                self._ids[nodes] = len(self._sets)
                self._sets.append(nodes)
            self._cores[core] = self._ids[nodes]
        return self._cores[core]

    def _closure(self, core: frozenset[int]) -> frozenset[int]:
        """Only the nodes that have edges of their own, or are the last: others tell no states apart."""
        found, todo = set(core), list(core)
        while todo:
            for node in self._graph.free[todo.pop()]:
                if node not in found:
                    found.add(node)
                    todo.append(node)
        self._work.spend(len(found))
        edges, last = self._graph.edges, self._graph.last
        return frozenset(node for node in found if edges[node] or node == last)


def _split(edges: Sequence[Edge]) -> Iterator[tuple[int, int, frozenset[int]]]:
    """Overlapping ranges as ranges that are apart, each with all nodes that its symbols lead to."""
    if len(edges) == 1:
        yield edges[0][0], edges[0][1], frozenset((edges[0][2],))
        return
    cuts = sorted({low for low, _, _ in edges} | {high + 1 for _, high, _ in edges})
    index = {cut: i for i, cut in enumerate(cuts)}
    found: list[list[int]] = [[] for _ in cuts]
    for low, high, node in edges:
        for i in range(index[low], index[high + 1]):
            found[i].append(node)
    for i, nodes in enumerate(found):
        if nodes:
            yield cuts[i], cuts[i + 1] - 1, frozenset(nodes)


def _table(rows: Sequence[Sequence[Edge]]) -> NDArray[np.int32]:
    found = np.full((len(rows) + 1, SYMBOLS), len(rows), np.int32)
    for state, edges in enumerate(rows):
        for low, high, target in edges:
            found[state, low : high + 1] = target
    return found


def _without_traps(table: NDArray[np.int32], ends: NDArray[np.bool_], param: str | None) -> Automaton:
    """Ways into states from which no end is in reach become dead, and such states go."""
    dead = len(table) - 1
    source, target = state_pairs(table)
    alive = distances(ends, source, target, np.ones(len(source), np.int64)) < FAR
    if not alive[0]:
        raise UsageError("nothing at all satisfies this: leave out what contradicts", param)
    if alive[:dead].all():
        return Automaton(0, _frozen(table), _frozen(ends))
    kept = np.nonzero(alive)[0]
    number = np.full(dead + 1, len(kept), np.int32)
    number[kept] = np.arange(len(kept), dtype=np.int32)
    rows = np.append(kept, dead)
    return Automaton(0, _frozen(number[table[rows]]), _frozen(ends[rows]))


def state_pairs(table: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(sources, targets) of all pairs of states that some symbol joins, by source and then target."""
    dead = len(table) - 1
    state, symbol = np.nonzero(table[:dead] < dead)
    pairs = np.unique(state.astype(np.int64) * (dead + 1) + table[state, symbol])
    return pairs // (dead + 1), pairs % (dead + 1)


def distances(
    ends: NDArray[np.bool_],
    source: NDArray[np.int64],
    target: NDArray[np.int64],
    length: NDArray[np.int64],
) -> NDArray[np.int64]:
    """[states + 1]: the shortest way from each to an end, by edges of lengths of 1 or more; FAR: none."""
    order = np.argsort(target, kind="stable")
    sources, lengths = source[order].tolist(), length[order].tolist()
    begin = np.searchsorted(target[order], np.arange(len(ends) + 1)).tolist()
    found = [0 if end else FAR for end in ends.tolist()]
    layers: dict[int, list[int]] = {0: [state for state, end in enumerate(ends.tolist()) if end]}
    while layers:
        distance = min(layers)
        for state in layers.pop(distance):
            if found[state] < distance:
                continue
            for i in range(begin[state], begin[state + 1]):
                if distance + lengths[i] < found[sources[i]]:
                    found[sources[i]] = distance + lengths[i]
                    layers.setdefault(distance + lengths[i], []).append(sources[i])
    return np.array(found, np.int64)


_Array = TypeVar("_Array", bound=NDArray[np.generic])


def _frozen(array: _Array) -> _Array:
    array.setflags(write=False)
    return array


__all__ = [
    "FAR",
    "MAX_STATES",
    "MAX_STEPS",
    "Automaton",
    "TooLarge",
    "compile_expression",
    "distances",
    "state_pairs",
]
