"""A vocabulary's tokens as a tree: tokens that begin alike share their way."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Level:
    """The tree's nodes that are so many symbols deep, N of them, and the T tokens that end there."""

    parent: Ints  # [N]: a node of the level above
    symbol: Ints  # [N]
    token: Ints  # [T]
    node: Ints  # [T]: where each of them ends


def tree_of(tokens: Sequence[bytes | tuple[int, ...]]) -> tuple[Level, ...]:
    """The levels of the tree of these runs of symbols; runs without any are no part of it.

    Above the first level is one node, number 0.
    """
    order = sorted((t for t, run in enumerate(tokens) if run), key=lambda token: tuple(tokens[token]))
    length = np.array([len(tokens[token]) for token in order], np.int64)
    symbols = np.fromiter(itertools.chain.from_iterable(tokens[token] for token in order), np.int64)
    begin = np.cumsum(length) - length
    names, node, levels = np.array(order, np.int64), np.zeros(len(order), np.int64), []
    for depth in range(int(length.max(initial=0))):
        deep = np.nonzero(length > depth)[0]
        parent, symbol = node[deep], symbols[begin[deep] + depth]
        new = np.ones(len(deep), bool)  # what is equal stands together: the runs are in order
        new[1:] = (parent[1:] != parent[:-1]) | (symbol[1:] != symbol[:-1])
        node[deep] = np.cumsum(new) - 1
        last = deep[length[deep] == depth + 1]
        levels.append(Level(parent[new], symbol[new], names[last], node[last]))
    return tuple(levels)


__all__ = ["Level", "tree_of"]
