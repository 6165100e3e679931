"""Root-mean-square normalisation, in fp32 whatever the input's dtype."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension, computed in fp32, returned in x's dtype.

    The weight multiplies as it is stored (no `1 + w`), as in transformers' `modeling_diffusion_gemma.py`.
    """
    scale = None if weight is None else weight.float()
    return F.rms_norm(x.float(), (x.shape[-1],), scale, eps).to(x.dtype)


class RMSNorm(nn.Module):
    """`rms_norm` with a learned weight [size]."""

    def __init__(
        self, size: int, eps: float, device: torch.device | None = None, dtype: torch.dtype | None = None
    ):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


__all__ = ["RMSNorm", "rms_norm"]
