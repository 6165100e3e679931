"""What a finished canvas says of its content, as numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .steps import Ints
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


__all__ = ["CanvasReading", "Floats"]
