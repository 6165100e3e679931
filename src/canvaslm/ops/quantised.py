"""Layers whose weights stay in their quantised format, in plain torch: unpacked a slice at a
time, where they are used.

They run anywhere, hold no second copy of a weight, and are differentiable in their inputs. `ops.cpu.layers`
has the fast ones with the same signatures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .formats.quant_tensor import QuantTensor
from .frozen import frozen_product


class QuantLinear(nn.Module):
    """`x @ weight.T` for a quantised weight [out_features, in_features]; x any float
    dtype, computed in fp32."""

    def __init__(self, weight: QuantTensor) -> None:
        super().__init__()
        self.weight = weight
        self.out_features, self.in_features = weight.shape

    def forward(self, x: Tensor) -> Tensor:
        return frozen_product(x, self.weight).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, {self.weight.format}"


class QuantExperts(nn.Module):
    """`ops.experts.experts` for quantised weights: gate_up [E, 2I, H], or gate and up apart
    [E, I, H]; down [E, H, I]."""

    def __init__(self, gate_up: tuple[QuantTensor, ...], down: QuantTensor) -> None:
        super().__init__()
        self.gate_up, self.down = gate_up, down

    def forward(self, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        out = torch.zeros(x.shape[0], self.down.shape[1], device=x.device)
        for expert in index.unique().tolist():
            rows, choice = (index == expert).nonzero(as_tuple=True)
            gate, up = self.gate_up_product(expert, x[rows]).chunk(2, dim=-1)
            hidden = F.gelu(gate, approximate="tanh") * up
            out.index_add_(0, rows, self.down_product(expert, hidden) * weights[rows, choice, None])
        return out.to(x.dtype)

    def gate_up_product(self, expert: int, x: Tensor) -> Tensor:
        """x [N, H] -> fp32 [N, 2I], of one expert."""
        return torch.cat([frozen_product(x, weight[expert]) for weight in self.gate_up], dim=-1)

    def down_product(self, expert: int, x: Tensor) -> Tensor:
        """x [N, I] -> fp32 [N, H], of one expert."""
        return frozen_product(x, self.down[expert])

    def extra_repr(self) -> str:
        formats = "+".join(weight.format for weight in (*self.gate_up, self.down))
        return f"{self.down.shape[0]} experts, {formats}"


class QuantVocabulary(nn.Module):
    """A quantised table [vocabulary, hidden]: embeds tokens, and serves `ops.predict` tile by tile.

    A subclass may bring a `predict_kernel` (hidden, head, embedding, options) ->
    Prediction for tables of its kind.
    """

    predict_kernel: ClassVar[Callable[..., Any] | None] = None

    def __init__(self, table: QuantTensor) -> None:
        super().__init__()
        self.table = table

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.table.shape
        return rows, columns

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def device(self) -> torch.device:
        return self.table.raw.device

    def forward(self, tokens: Tensor) -> Tensor:
        """Rows of token ids [...] as fp32 [..., hidden]."""
        raw = self.table.raw.view(self.table.row_count, -1)[tokens.flatten()]
        rows = QuantTensor(self.table.format, (tokens.numel(), self.shape[1]), raw)
        return rows.dequantise().view(*tokens.shape, -1)

    def tile(self, start: int, stop: int) -> Tensor:
        """Rows start..stop in fp32."""
        return self.table.rows(start, min(stop, self.table.row_count)).dequantise()


__all__ = ["QuantExperts", "QuantLinear", "QuantVocabulary"]
