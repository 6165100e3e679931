"""Experts for training: tokens sorted by expert, one product per expert, differentiable and compilable.

`experts_dense` does E/K times the arithmetic; the loop in `experts_grouped` reads counts back and
breaks a compiled graph. Here all shapes are static, the counts stay inside an opaque operator, and the
gathers are permutations, whose gradient is the inverse permutation instead of a scatter-add. Measured
(Zen 4, one thread, bf16, 8 experts of 64, top 2, hidden 128, 6144 tokens): forward and backward 20 ms
against 58 ms of the dense way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Row counts of products are rounded up to a multiple of this. oneDNN generates code for every new shape,
# which costs more than the product itself; rounding leaves it a few dozen shapes to know.
ROUND = 64


@torch.library.custom_op("canvaslm::grouped_linear", mutates_args=())
def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """x [N, I] sorted by group, weight [E, O, I], ends [E] int64: rows [ends[e-1],
    ends[e]) times weight[e]^T."""
    total = x.shape[0]
    out = x.new_empty(total, weight.shape[1])
    for group, (start, end) in enumerate(_spans(ends)):
        stop = start + _rounded(end - start)
        if stop <= total:  # rows beyond `end` are overwritten by the groups they belong to
            torch.mm(x[start:stop], weight[group].t(), out=out[start:stop])
        else:
            first = max(0, total - (stop - start))
            out[start:end] = torch.mm(x[first:total], weight[group].t())[start - first : end - first]
    return out


@torch.library.custom_op("canvaslm::grouped_outer", mutates_args=())
def grouped_outer(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    """left [N, O], right [N, I] sorted by group: per group left^T right, [E, O, I]; zeros for empty
    groups."""
    out = left.new_zeros(ends.shape[0], left.shape[1], right.shape[1])
    for group, (start, end) in enumerate(_spans(ends)):
        if end > start:
            torch.mm(_padded(left, start, end).t(), _padded(right, start, end), out=out[group])
    return out


def _spans(ends: Tensor) -> list[tuple[int, int]]:
    stops = ends.tolist()
    return list(zip([0, *stops[:-1]], stops, strict=True))


def _rounded(count: int) -> int:
    return -(-count // ROUND) * ROUND


def _padded(x: Tensor, start: int, end: int) -> Tensor:
    """Rows of a group, followed by zero rows up to a rounded count."""
    block = x.new_empty(_rounded(end - start), x.shape[1])
    block[: end - start] = x[start:end]
    block[end - start :] = 0
    return block


@grouped_linear.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@grouped_outer.register_fake
def _(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    return left.new_empty(ends.shape[0], left.shape[1], right.shape[1])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
    x, weight, ends = ctx.saved_tensors
    grad = grad.contiguous()
    back = grouped_linear(grad, weight.transpose(1, 2).contiguous(), ends)
    return back, grouped_outer(grad, x, ends) if ctx.needs_input_grad[1] else None, None


grouped_linear.register_autograd(_backward, setup_context=_keep)


class _Permute(torch.autograd.Function):
    """x[order] for a permutation `order` whose inverse is known."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x[order]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grad[inverse], None, None


def experts_sorted(x: Tensor, index: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The same function as `canvaslm.ops.experts.experts`, for training. Honours autocast.

    x [T, H]; index [T, K] int64; weights [T, K]; gate_up [E, 2I, H]; down [E, H, I]; returns [T, H].
    """
    count, top = index.shape
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    chosen = index.flatten()
    order = chosen.argsort(stable=True)
    inverse = order.argsort()
    groups = torch.arange(gate_up.shape[0], device=x.device)
    ends = (chosen[:, None] == groups).sum(0).cumsum(0)
    copies = x.to(dtype)[:, None].expand(count, top, -1).reshape(count * top, -1)
    gate, up = grouped_linear(_Permute.apply(copies, order, inverse), gate_up.to(dtype), ends).chunk(
        2, dim=-1
    )
    inner = (F.gelu(gate, approximate="tanh") * up).contiguous()
    out = _Permute.apply(grouped_linear(inner, down.to(dtype), ends), inverse, order)
    return (out.view(count, top, -1) * weights[..., None].to(dtype)).sum(1).to(x.dtype)


__all__ = ["ROUND", "experts_sorted", "grouped_linear", "grouped_outer"]
