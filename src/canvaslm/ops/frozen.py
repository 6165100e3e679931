"""Products with quantised weights that are not trained: what flows back to their inputs, and nothing else.

Nothing is kept for the way back but the weight itself, which is unpacked a slice at a time, once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .formats.quant_tensor import QuantTensor

# Values unpacked at once: 16 MiB in fp32.
SLICE_VALUES = 4 << 20


def slices(weight: QuantTensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of a matrix [out, in] a few at a time: which, and their values in fp32."""
    rows, columns = weight.shape
    step = max(1, SLICE_VALUES // columns)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        yield part, weight.rows(part.start, part.stop).dequantise()


class _Product(torch.autograd.Function):
    """x [..., in] fp32, weight [out, in] -> [..., out]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: QuantTensor) -> Tensor:
        ctx.weight = weight
        return torch.cat([F.linear(x, piece.to(x.dtype)) for _, piece in slices(weight)], dim=-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        back: Tensor | None = None
        for part, piece in slices(ctx.weight):
            its = grad[..., part] @ piece.to(grad.dtype)
            back = its if back is None else back.add_(its)
        assert back is not None
        return back, None


def frozen_product(x: Tensor, weight: QuantTensor) -> Tensor:
    """x [..., in] of any float, weight [out, in] -> fp32 [..., out] (fp64 stays); differentiable in x."""
    with torch.autocast(x.device.type, enabled=False):
        made: Tensor = _Product.apply(x if x.dtype == torch.float64 else x.float(), weight)
    return made


__all__ = ["SLICE_VALUES", "frozen_product", "slices"]
