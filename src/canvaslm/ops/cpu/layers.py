"""Layers whose weights are repacked for the native kernels; signatures as in
`ops.quantised`, their plain twin.

Activations are rounded to int8 on the way in (one scale per row and 256 inputs): see docs/formats.md
for what that costs. CPU only; inputs and outputs are fp32. Each asks a `Repacker` for its weights under
its own name in the model. Where gradients flow to an input, the fused calls are taken apart
(`ops.cpu.frozen`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..formats.quant_tensor import QuantTensor
from ..lora import adapted_experts
from ..quantised import QuantVocabulary
from . import products
from .frozen import flows, repacked_product
from .head import SoftTable
from .predict import predict_repacked
from .repacked import RepackedExperts, RowTable, dense_kind
from .repacker import Repacker


class RepackedLinear(nn.Module):
    """`QuantLinear` on native kernels."""

    backend = "cpu"

    def __init__(self, name: str, weight: QuantTensor, repacker: Repacker) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.format = weight.format
        self.weight = repacker.matrix(name, weight, dense_kind(weight.format))

    def forward(self, x: Tensor) -> Tensor:
        out = repacked_product(self.weight, x.reshape(-1, self.in_features))
        return out.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, {self.weight.kind}"


class _Gated(nn.Module):
    """What experts and gated MLPs share: their two products one by one, for what comes between them."""

    gate_up: RepackedExperts
    down: RepackedExperts

    def gate_up_product(self, expert: int, x: Tensor) -> Tensor:
        """x [N, H] -> [N, 2I], of one expert."""
        return repacked_product(self.gate_up.expert(expert), x)

    def down_product(self, expert: int, x: Tensor) -> Tensor:
        """x [N, I] -> [N, H], of one expert."""
        return repacked_product(self.down.expert(expert), x)


class RepackedExpertsLayer(_Gated):
    """`QuantExperts` on native kernels: one call a layer."""

    backend = "cpu"

    def __init__(
        self, name: str, gate_up: tuple[QuantTensor, ...], down: QuantTensor, repacker: Repacker
    ) -> None:
        super().__init__()
        self.gate_up = repacker.stacked(f"{name}.gate_up", gate_up)
        self.down = repacker.stacked(f"{name}.down", (down,))

    def forward(self, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        if flows(x, weights):
            return adapted_experts(x, index, weights, self.gate_up_product, self.down_product, (), ())
        return products.experts(x, index, weights, self.gate_up, self.down)

    def extra_repr(self) -> str:
        return f"{self.down.experts} experts, {self.gate_up.kind}+{self.down.kind}"


class RepackedMLP(_Gated):
    """down(gelu(gate x) * up x) in one call."""

    backend = "cpu"

    def __init__(
        self, name: str, gate: QuantTensor, up: QuantTensor, down: QuantTensor, repacker: Repacker
    ) -> None:
        super().__init__()
        both = (_stack(gate), _stack(up))
        self.gate_up = repacker.stacked(f"{name}.gate_up", both, dense_kind(gate.format))
        self.down = repacker.stacked(f"{name}.down", (_stack(down),), dense_kind(down.format))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.gate_up.k)
        if flows(x):
            gate, up = self.gate_up_product(0, rows).chunk(2, dim=-1)
            return self.down_product(0, F.gelu(gate, approximate="tanh") * up).view_as(x)
        return products.gated_mlp(rows, self.gate_up, self.down).view_as(x)

    def extra_repr(self) -> str:
        return f"{self.gate_up.kind}+{self.down.kind}"


class RepackedVocabulary(QuantVocabulary):
    """`QuantVocabulary` on native kernels: rows stay as the file has them, the head is repacked."""

    predict_kernel = staticmethod(predict_repacked)

    def __init__(self, name: str, table: QuantTensor, repacker: Repacker) -> None:
        super().__init__(table)
        self.rows = RowTable(table.format, table.raw, *self.shape)
        self.head = repacker.matrix(f"{name}.head", table, dense_kind(table.format))
        self.soft_table = SoftTable.build(
            self.rows, lambda kind: repacker.transposed(f"{name}.soft", self.rows, kind)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return products.gather(self.rows, tokens)

    def tile(self, start: int, stop: int) -> Tensor:
        """Rows start..stop in fp32."""
        return products.gather(self.rows, torch.arange(start, min(stop, self.shape[0])))

    def product(self, hidden: Tensor) -> Tensor:
        """Logits [N, vocabulary] of states [N, hidden], by the matrix that predictions are made with."""
        return products.matmul(self.head, hidden.float())


def _stack(weight: QuantTensor) -> QuantTensor:
    return QuantTensor(weight.format, (1, *weight.shape), weight.raw)


__all__ = ["RepackedExpertsLayer", "RepackedLinear", "RepackedMLP", "RepackedVocabulary"]
