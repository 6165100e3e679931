"""Plain PyTorch as a backend: every operation on every format and device, the twin of all faster kernels."""

from __future__ import annotations

from typing import Any

from .formats.quant_tensor import QuantTensor
from .kernel import Backend, Kernel
from .quantised import QuantExperts, QuantLinear, QuantVocabulary

PLAIN = "torch"


def _linear(name: str, weight: QuantTensor, repacker: Any) -> QuantLinear:
    return QuantLinear(weight)


def _experts(name: str, gate_up: tuple[QuantTensor, ...], down: QuantTensor, repacker: Any) -> QuantExperts:
    return QuantExperts(gate_up, down)


def _vocabulary(name: str, table: QuantTensor, repacker: Any) -> QuantVocabulary:
    return QuantVocabulary(table)


BACKEND = Backend(
    PLAIN,
    device=None,
    kernels=(
        Kernel(PLAIN, "linear", _linear),
        Kernel(PLAIN, "experts", _experts),
        Kernel(PLAIN, "predict", _vocabulary),
        Kernel(PLAIN, "attention", lambda: "tensors"),
    ),
    available=lambda: True,
    summary=lambda: "plain PyTorch",
)

__all__ = ["BACKEND", "PLAIN"]
