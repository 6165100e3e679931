"""What the causal reader says of text that is given, as callers see it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..types import Timings, TokenRead, Usage

if TYPE_CHECKING:
    from .tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenScore:
    """A token of a given text: its id, its text and bytes, and what the model says of it, given all that
    stands before: its log-probability in nats at temperature 1, its rank (1: the likeliest), the entropy of
    the place in nats. The three are None of a token that nothing stands before."""

    id: int
    text: str
    data: bytes
    logprob: float | None
    rank: int | None
    entropy: float | None


@dataclass(frozen=True)
class Scored:
    """A given text with its log-probability, token by token. `usage` counts the text with its prompt.

    >>> scored = session.score("capital of France", "Paris")
    >>> scored.logprob == sum(token.logprob for token in scored.tokens)
    True
    """

    text: str
    tokens: tuple[TokenScore, ...]
    usage: Usage
    timings: Timings

    @property
    def logprob(self) -> float:
        """The log-probability of the whole text, in nats: the sum of those of its tokens."""
        return sum(self._known())

    @property
    def mean(self) -> float:
        """The mean of the tokens' log-probabilities, in nats; NaN without any."""
        count = len(list(self._known()))
        return self.logprob / count if count else math.nan

    @property
    def perplexity(self) -> float:
        """exp(-mean); infinite for a text that cannot come."""
        try:
            return math.exp(-self.mean)
        except OverflowError:
            return math.inf

    def _known(self) -> Iterator[float]:
        return (token.logprob for token in self.tokens if token.logprob is not None)


def token_scores(
    tokenizer: Tokenizer, tokens: Sequence[int], reads: Iterable[TokenRead | None]
) -> tuple[TokenScore, ...]:
    """Tokens with what is said of each."""
    made = []
    for token, read in zip(tokens, reads, strict=True):
        data = tokenizer.token_bytes(token)
        said = (None, None, None) if read is None else (read.logprob, read.rank, read.entropy)
        made.append(TokenScore(token, data.decode("utf-8", "replace"), data, *said))
    return tuple(made)


__all__ = ["Scored", "TokenScore", "token_scores"]
