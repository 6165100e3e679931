"""Answers without certain texts: all else may be said, thoughts and tool calls included.

The automaton is that of Aho and Corasick (1975), "Efficient string matching", without the states in which a
word is complete.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from ..errors import UsageError
from .automaton import Automaton
from .regular import Regular
from .steps import Steps
from .vocabulary import BYTES, SYMBOLS, Vocabulary

MAX_WORDS, MAX_BYTES = 256, 4096


def without(words: Sequence[str], vocabulary: Vocabulary) -> Regular:
    """Answers in which none of these texts stands, not even within a word or from one canvas to the next.

    Raises UsageError for an empty text, and beyond MAX_WORDS texts of MAX_BYTES bytes together.
    """
    data = [word.encode("utf-8", "replace") for word in dict.fromkeys(words)]
    if not data or not all(data):
        raise UsageError("bad_words needs texts of one character at least", "bad_words")
    size = sum(map(len, data))
    if len(data) > MAX_WORDS or size > MAX_BYTES:
        raise UsageError(
            f"bad_words has {len(data)} texts of {size} bytes: {MAX_WORDS} of {MAX_BYTES} are the most",
            "bad_words",
        )
    return Regular(Steps.of(_automaton(data), vocabulary))


def _automaton(words: Sequence[bytes]) -> Automaton:
    """A state for every beginning of a word: the longest that the text so far ends with."""
    ways, complete = _trie(words)
    following = np.zeros((len(ways), BYTES), np.int64)
    shorter = [0] * len(ways)  # of each state, the longest other beginning that it ends with
    order = deque([0])
    while order:
        state = order.popleft()
        if state:
            following[state] = following[shorter[state]]
            complete[state] |= complete[shorter[state]]
        for byte, longer in ways[state].items():
            shorter[longer] = int(following[state, byte]) if state else 0
            following[state, byte] = longer
            order.append(longer)
    return _without_complete(following, np.array(complete))


def _trie(words: Sequence[bytes]) -> tuple[list[dict[int, int]], list[bool]]:
    """Each beginning's next bytes, and whether it is a whole word."""
    ways: list[dict[int, int]] = [{}]
    complete = [False]
    for word in words:
        state = 0
        for byte in word:
            if byte not in ways[state]:
                ways[state][byte] = len(ways)
                ways.append({})
                complete.append(False)
            state = ways[state][byte]
        complete[state] = True
    return ways, complete


def _without_complete(following: np.ndarray, complete: np.ndarray) -> Automaton:
    """The automaton of the other states: all are ends, and a marker leads back to the first."""
    left = np.flatnonzero(~complete)
    number = np.full(len(complete), len(left))
    number[left] = np.arange(len(left))
    table = np.full((len(left) + 1, SYMBOLS), len(left), np.int32)
    table[:-1, :BYTES] = number[following[left]]
    table[:-1, BYTES:] = 0
    ends = np.ones(len(left) + 1, np.bool_)
    ends[-1] = False
    return Automaton(0, table, ends)


__all__ = ["MAX_BYTES", "MAX_WORDS", "without"]
