"""The k largest logits of each place: which they are, and the softmax over them alone, in plain torch.

Of equal logits the lower token id is the larger one, so that every place keeps exactly k whatever the
ties. A token is drawn as `ops.predict` says, over the tokens that were kept: a tile's score is the
log-sum-exp of those in it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def largest(logits: Tensor, k: int) -> Tensor:
    """Mask [..., n] of the k largest of logits [..., n]; ties go to the lower index. Needs 0 < k <= n."""
    least = logits.topk(k, dim=-1).values[..., -1:]
    above, level = logits > least, logits == least
    room = k - above.sum(-1, keepdim=True)
    return above | (level & (level.cumsum(-1) <= room))


def _select(chosen: Tensor, count: int, *columns: Tensor) -> tuple[Tensor, ...]:
    """What is chosen, in its order, of each of `columns` [T, n]; chosen has `count` in
    every row, so [T, count].

    As indexing with the mask would, whose result's size is unknown to the host until the device is asked.
    """
    place = torch.where(
        chosen, chosen.cumsum(-1) - 1, count
    )  # what is not chosen goes to a column that is cut off
    return tuple(
        c.new_empty(len(c), count + 1).scatter_(1, place, c)[:, :count].contiguous() for c in columns
    )


def keep_top(logits: Tensor, k: int) -> Tensor:
    """Logits [..., V] with all but the k largest set to -inf: the readable twin. k =
    0, or k >= V, keeps all."""
    if not 0 < k < logits.shape[-1]:
        return logits
    return logits.masked_fill(~largest(logits, k), -torch.inf)


class RunningTopK:
    """The `count` largest logits of T places among the tiles seen so far, in order of token ids.

    values fp32 and tokens int64 [T, n], n <= count.
    """

    def __init__(self, places: int, count: int, device: torch.device) -> None:
        self.count = count
        self.values = torch.empty(places, 0, device=device)
        self.tokens = torch.empty(places, 0, dtype=torch.int64, device=device)

    def add(self, logits: Tensor, start: int) -> None:
        """Takes in the logits [T, columns] of the tokens from `start` on; tiles come in order."""
        tokens = torch.arange(start, start + logits.shape[1], device=logits.device).expand_as(logits)
        values, tokens = torch.cat((self.values, logits), -1), torch.cat((self.tokens, tokens), -1)
        if values.shape[1] > self.count:
            values, tokens = _select(largest(values, self.count), self.count, values, tokens)
        self.values, self.tokens = values, tokens

    def best(self, count: int) -> tuple[Tensor, Tensor]:
        """(tokens, logits) [T, count] of the largest, best first; token 0 in place of
        forbidden ones, of logit -inf."""
        values, order = self.values.sort(dim=-1, descending=True, stable=True)
        values, tokens = values[:, :count], self.tokens.gather(-1, order[:, :count])
        return tokens.masked_fill(values == -torch.inf, 0), values

    def softmax(self, rows: slice, k: int) -> TopKSoftmax:
        """The softmax over the k largest of some places, of those kept here."""
        values, tokens = self.values[rows], self.tokens[rows]
        if k < values.shape[1]:
            values, tokens = _select(largest(values, k), k, values, tokens)
        return TopKSoftmax(values, tokens)


class TopKSoftmax:
    """The softmax over few tokens of each of T places: logits [T, k], and token ids [T, k] ascending.

    All rows have the same k: a sum's last bit depends on how many there are, and must not
    on other rows of a batch.
    """

    def __init__(self, logits: Tensor, tokens: Tensor) -> None:
        self.tokens = tokens
        peak = logits.max(-1, keepdim=True).values.clamp(min=-3e38)  # finite where everything is forbidden
        self.mass = torch.exp(logits - peak)
        total = self.mass.sum(-1, keepdim=True)
        self.probabilities = self.mass / total
        # 0 * inf: a token that is forbidden adds nothing to the entropy.
        surprise = (peak + total.log() - logits).clamp(max=1e30)
        self.entropy = (self.probabilities * surprise).sum(-1).clamp(min=0)

    def tile(self, start: int, columns: int) -> Tensor:
        """Probabilities [T, columns] of the tokens from `start` on."""
        inside = (self.tokens >= start) & (self.tokens < start + columns)
        where = (self.tokens - start).clamp(0, columns - 1)
        whole = torch.zeros(len(self.tokens), columns, device=self.tokens.device)
        return whole.scatter_add_(1, where, self.probabilities.where(inside, 0))


__all__ = ["RunningTopK", "TopKSoftmax", "keep_top", "largest"]
