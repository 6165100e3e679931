"""What a denoise step says about each place of its canvases: made by `ops.predict`, read by samplers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import UsageError

_TENSORS = (
    "sampled", "argmax", "entropy", "logprob", "soft", "top_tokens", "top_logprobs", "target_logprob",
    "target_rank", "impossible",
)  # fmt: skip


@dataclass(frozen=True)
class Prediction:
    """What one denoise step says about each place. All [..., C]; O(places), never O(vocabulary).

    The top tokens are of the whole distribution, whatever a top-k samples from. Where fewer than k are
    allowed, what is left over is token 0 with a log-probability of -inf.
    """

    sampled: Tensor  # int64
    argmax: Tensor  # int64
    entropy: Tensor  # nats, fp32, of the temperature-scaled distribution (or of what a top-k keeps of it)
    logprob: Tensor  # of the argmax token under that distribution, whole, fp32
    soft: Tensor | None  # [..., C, H], expected embedding times sqrt(H), in the embedding's dtype
    top_tokens: Tensor | None = None  # [..., C, k] int64, the k most probable tokens, best first
    top_logprobs: Tensor | None = None  # [..., C, k] fp32
    target_logprob: Tensor | None = None  # [..., C] fp32, of a token that the caller named, of all tokens
    target_rank: Tensor | None = None  # [..., C] int64: 1 for the likeliest
    impossible: Tensor | None = None  # bool: places where no token is allowed; None: nothing was restricted
    named: tuple[int, ...] = ()  # of each row: how many of the top tokens it asked for

    def row(self, index: int) -> Prediction:
        """One row's, with as many top tokens as it asked for."""
        one = Prediction(*(None if x is None else x[index] for x in self._fields()))  # type: ignore[arg-type]
        if one.top_tokens is None or one.top_logprobs is None or not self.named:
            return one
        count = self.named[index]
        if not count:
            return replace(one, top_tokens=None, top_logprobs=None)
        return replace(
            one, top_tokens=one.top_tokens[..., :count], top_logprobs=one.top_logprobs[..., :count]
        )

    def check(self) -> None:
        """Raises UsageError when no token is allowed somewhere, naming the first such row and place."""
        if self.impossible is None or not bool(self.impossible.any()):
            return
        row, place = self.impossible.nonzero()[0].tolist()
        raise UsageError(
            f"row {row}, place {place}: every token is forbidden there; allow one, "
            "or take back a bias of -inf"
        )

    @classmethod
    def gathered(cls, parts: Sequence[Prediction], order: Sequence[int]) -> Prediction:
        """One prediction of the rows of several; row i of them laid end to end becomes row order[i]."""
        back = torch.tensor(order, device=parts[0].sampled.device).argsort()
        flags = []
        if any(part.impossible is not None for part in parts):
            none = [torch.zeros_like(part.sampled, dtype=torch.bool) for part in parts]
            flags = [n if p.impossible is None else p.impossible for n, p in zip(none, parts, strict=True)]
        columns = (tuple(getattr(part, name) for part in parts) for name in _TENSORS[:-1])
        joined = (None if c[0] is None else torch.cat(c)[back] for c in columns)
        return cls(*joined, impossible=torch.cat(flags)[back] if flags else None)  # type: ignore[arg-type, misc]

    def _fields(self) -> tuple[Tensor | None, ...]:
        return tuple(getattr(self, name) for name in _TENSORS)


__all__ = ["Prediction"]
