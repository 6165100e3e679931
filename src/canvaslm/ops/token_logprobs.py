"""What a model says of chosen tokens at chosen places: exact log-probabilities at temperature 1.

`ops.predict` names a place's best tokens under the temperature of a step. Whoever compares a few tokens of
his own choice needs these, however improbable, under the model's own distribution: logit - logsumexp, with
the soft-cap and nothing else. Only the places asked for are computed, tile by tile of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .predict import GEMM_TILE, Table

# Fewer rows are filled up to these: below 16 the matrix library picks other kernels, whose sums differ in the
# last bit.
SMALLEST = 16
# Places computed at once where the head's product is made whole: 1 MiB each at 262,144 columns.
PLACES = 64


def token_logprobs(
    hidden: Tensor, head: Table, tokens: Tensor, *, softcap: float = 0.0, forbidden: int | None = None
) -> Tensor:
    """Nats, fp64 [N, W], of tokens int64 [N, W] at N places whose states are hidden [N, H].

    head [V, H] as in `predict`; softcap 0: none; forbidden: a token that has no probability anywhere (a
    mask). What is said of a place depends on no other. Nothing is read from the device.
    """
    count = len(hidden)
    # Every piece has as many places as the next: the last is filled up with the first.
    size = min(PLACES, max(count, SMALLEST))
    rows = torch.arange(-(-count // size) * size, device=hidden.device) % count
    parts = [_of_places(hidden[piece], head, tokens[piece], softcap, forbidden) for piece in rows.split(size)]
    return torch.cat(parts)[:count]


def _of_places(hidden: Tensor, head: Table, tokens: Tensor, softcap: float, forbidden: int | None) -> Tensor:
    picked = torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device)
    total = torch.full(tokens.shape[:1], -torch.inf, dtype=torch.float64, device=tokens.device)
    for start, logits in _tiles(hidden, head):
        logits = logits.float()
        if softcap:
            logits = torch.tanh(logits / softcap) * softcap
        wide, width = logits.double(), logits.shape[1]
        if forbidden is not None and start <= forbidden < start + width:
            wide[:, forbidden - start] = -torch.inf
        here = (tokens >= start) & (tokens < start + width)
        picked = torch.where(here, wide.gather(1, (tokens - start).clamp(0, width - 1)), picked)
        total = torch.logaddexp(total, wide.logsumexp(-1))
    return picked - total[:, None]


def _tiles(hidden: Tensor, head: Table) -> Iterator[tuple[int, Tensor]]:
    """(first token, logits before the soft-cap [N, tokens]), from the first token to the last."""
    product: Any = getattr(head, "product", None)
    whole = None if product is None else product(hidden)
    for start in range(0, head.shape[0], GEMM_TILE):
        if whole is not None:
            yield start, whole[:, start : start + GEMM_TILE]
        elif isinstance(head, Tensor):
            yield start, F.linear(hidden, head[start : start + GEMM_TILE])
        else:
            yield start, F.linear(hidden.float(), head.tile(start, start + GEMM_TILE))


__all__ = ["token_logprobs"]
