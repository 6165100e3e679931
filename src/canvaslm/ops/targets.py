"""How tokens that somebody else chose fare at their places: their log-probabilities and ranks.

A rank is one more than the number of tokens whose logit is larger; so the likeliest has rank 1, and tokens of
equal logits share the best rank that one of them has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor

NO_TARGET = -1


class RunningTargets:
    """One token of each of T places (or none), over the tiles of the vocabulary as they come.

    The tokens' own logits are looked up first, tile by tile, so that they are the very numbers that the
    others are compared with.
    """

    def __init__(self, tokens: Sequence[int], tile: int, logits_of: Callable[[int], Tensor]) -> None:
        """tokens: T ids or NO_TARGET. logits_of: the processed logits [T, columns] from a token on, which
        must be a multiple of `tile`."""
        self.tokens = list(tokens)
        self.values: Tensor | None = None
        for start in sorted({token // tile * tile for token in self.tokens if token != NO_TARGET}):
            logits = logits_of(start)
            places = [i for i, token in enumerate(self.tokens) if start <= token < start + tile]
            if self.values is None:
                self.values = logits.new_full((len(self.tokens),), torch.inf)
            inside = torch.tensor([self.tokens[i] - start for i in places], device=logits.device)
            where = torch.tensor(places, device=logits.device)
            self.values[where] = logits[where, inside]
        self.above: Tensor | None = None

    def add(self, logits: Tensor) -> None:
        """Takes in the next tile's processed logits [T, columns]."""
        if self.values is not None:
            more = (logits > self.values[:, None]).sum(-1)
            self.above = more if self.above is None else self.above + more

    def finish(self, lse: Tensor) -> tuple[Tensor, Tensor]:
        """(log-probabilities fp32 [T], ranks int64 [T]), 0 both where there is no target. lse: [T], of all
        logits of a place."""
        if self.values is None or self.above is None:
            return torch.zeros_like(lse), torch.zeros_like(lse, dtype=torch.int64)
        wanted = torch.tensor([token != NO_TARGET for token in self.tokens], device=lse.device)
        return torch.where(wanted, self.values - lse, 0.0), torch.where(wanted, self.above + 1, 0)


def flat(targets: Sequence[Sequence[int]]) -> list[int]:
    """Of all rows, end to end."""
    return list(chain.from_iterable(targets))


__all__ = ["NO_TARGET", "RunningTargets", "flat"]
