"""Doubt: how far what the causal reader says of the tokens speaks against an answer.

Levels go by a token's causal log-probability. They were chosen by how often such tokens of the demo model are
wrong (docs/doubt.md), and say nothing of what is right in the world.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ..types import Committed, Event, Finished, Settled, TokenLogprob, TokenRead

# Nats: a token is of level 1, 2 or 3 if its causal log-probability is below so many of these.
LEVELS = (-0.5, -1.0, -2.0)


def doubt_level(causal: float | None) -> int:
    """0 for a token that is likely enough, or was not read; 3 for the least likely."""
    return 0 if causal is None else sum(causal < limit for limit in LEVELS)


def mean_causal(reads: Sequence[TokenRead]) -> float:
    """The mean causal log-probability of an answer's tokens in nats, by which answers to one question are
    ranked; 0 of none."""
    return sum(read.logprob for read in reads) / len(reads) if reads else 0.0


class DoubtText:
    """Says of the text of one answer, as it comes, how doubtful each part is."""

    def __init__(self) -> None:
        self._ahead: deque[list[int]] = deque()  # [bytes, level] of tokens whose text has not come yet

    def feed(self, event: Event) -> list[tuple[str, int]]:
        """The event's text in parts, each as long as may be, with its level. A character made of several
        tokens has the highest of theirs."""
        if not isinstance(event, Settled | Committed | Finished):
            return []
        self._ahead.extend([len(t.data), doubt_level(t.causal)] for t in _with_bytes(event.token_logprobs))
        parts: list[tuple[str, int]] = []
        for char in event.text:
            level = self._take(len(char.encode("utf-8", "replace")))
            if parts and parts[-1][1] == level:
                parts[-1] = (parts[-1][0] + char, level)
            else:
                parts.append((char, level))
        return parts

    def _take(self, count: int) -> int:
        """The highest level among so many bytes."""
        level = 0
        while count and self._ahead:
            first = self._ahead[0]
            taken = min(count, first[0])
            count, first[0], level = count - taken, first[0] - taken, max(level, first[1])
            if not first[0]:
                self._ahead.popleft()
        return level


def _with_bytes(tokens: Sequence[TokenLogprob]) -> list[TokenLogprob]:
    return [token for token in tokens if token.data]


__all__ = ["LEVELS", "DoubtText", "doubt_level", "mean_causal"]
