"""Cross-entropy over a large vocabulary, tile by tile: the logits never exist whole, and are made once more
on the way back. For frozen heads: nothing flows to the head's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

# Columns of logits at once.
TILE = 4096
# A head [V, H], or a function that gives its rows start .. stop in fp32.
Rows = Tensor | Callable[[int, int], Tensor]


def _tiles(rows: Rows, vocabulary: int, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, vocabulary, TILE):
        stop = min(start + TILE, vocabulary)
        yield start, (rows[start:stop] if isinstance(rows, Tensor) else rows(start, stop)).to(dtype)


def _capped(hidden: Tensor, piece: Tensor, cap: float) -> Tensor:
    raw = hidden @ piece.T
    return torch.tanh(raw / cap) * cap if cap else raw


def _statistics(
    hidden: Tensor, rows: Rows, vocabulary: int, cap: float, targets: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each state: log-sum-exp of its logits, the likeliest token, and the target's logit (0 without)."""
    peak = hidden.new_full((len(hidden),), -torch.inf)
    mass, wanted = torch.zeros_like(peak), torch.zeros_like(peak)
    best = torch.zeros_like(peak, dtype=torch.int64)
    for start, piece in _tiles(rows, vocabulary, hidden.dtype):
        logits = _capped(hidden, piece, cap)
        top, at = logits.max(-1)
        best = torch.where(top > peak, at + start, best)
        higher = torch.maximum(peak, top)
        mass = mass * (peak - higher).exp() + (logits - higher[:, None]).exp().sum(-1)
        peak = higher
        if targets is not None:
            inside = (targets >= start) & (targets < start + len(piece))
            place = (targets - start).clamp(0, len(piece) - 1)
            wanted = torch.where(inside, logits.gather(1, place[:, None])[:, 0], wanted)
    return peak + mass.log(), best, wanted


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, rows: Rows, vocabulary: int, cap: float, ignore: int
    ) -> tuple[Tensor, Tensor]:
        lse, best, wanted = _statistics(hidden, rows, vocabulary, cap, targets)
        ctx.save_for_backward(hidden, targets, lse)
        ctx.rows, ctx.vocabulary, ctx.cap, ctx.ignore = rows, vocabulary, cap, ignore
        ctx.mark_non_differentiable(best)
        return torch.where(targets == ignore, 0.0, lse - wanted), best

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, targets, lse = ctx.saved_tensors
        grad = torch.where(targets == ctx.ignore, 0.0, grad)
        back = torch.zeros_like(hidden)
        for start, piece in _tiles(ctx.rows, ctx.vocabulary, hidden.dtype):
            logits = _capped(hidden, piece, ctx.cap)
            change = (logits - lse[:, None]).exp()
            inside = (targets >= start) & (targets < start + len(piece))
            at = inside.nonzero()[:, 0]
            change[at, targets[at] - start] -= 1
            if ctx.cap:
                change *= 1 - (logits / ctx.cap) ** 2
            back += (change * grad[:, None]) @ piece
        return back, None, None, None, None, None


def head_loss(
    hidden: Tensor, targets: Tensor, rows: Rows, vocabulary: int, *, cap: float, ignore: int
) -> tuple[Tensor, Tensor]:
    """(cross-entropy [N] in fp32, 0 where the target is `ignore`; the likeliest token [N]).

    hidden [N, H], computed in fp32, or in fp64 if it is that; targets [N] int64; `rows`: the head
    [vocabulary, H] or what unpacks a part of it; logits are cap * tanh(z / cap), cap 0: as they are.
    Differentiable in hidden.
    """
    # In fp32 under autocast, too: the way back, which knows no autocast, makes the very same logits.
    with torch.autocast(hidden.device.type, enabled=False):
        states = hidden if hidden.dtype == torch.float64 else hidden.float()
        found: tuple[Tensor, Tensor] = _HeadLoss.apply(states, targets, rows, vocabulary, cap, ignore)
    return found


__all__ = ["TILE", "Rows", "head_loss"]
