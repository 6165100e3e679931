"""Products with repacked weights that are not trained: the fast twin of `ops.frozen`.

Activations are rounded to int8 on the way forward, and what flows back takes no notice of that (a
straight-through estimate, Bengio et al. 2013, arXiv:1308.3432): it is multiplied with the exact weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import products
from .repacked import RepackedMatrix


class _NativeProduct(torch.autograd.Function):
    """x [M, k] fp32, weight [n, k] -> [M, n]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: RepackedMatrix) -> Tensor:
        ctx.weight = weight
        return products.matmul(weight, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return products.matmul_back(ctx.weight, grad.contiguous()), None


def flows(*tensors: Tensor) -> bool:
    """Whether anything has to flow back to one of these."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def repacked_product(weight: RepackedMatrix, x: Tensor) -> Tensor:
    """x [M, k] @ weight.T -> fp32 [M, n]. Differentiable in x."""
    if not flows(x):
        return products.matmul(weight, x)
    made: Tensor = _NativeProduct.apply(x.float(), weight)
    return made


__all__ = ["flows", "repacked_product"]
