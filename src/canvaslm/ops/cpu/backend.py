"""The CPU kernels' entries in the table of kernels (`ops.backend`)."""

from __future__ import annotations

from typing import Any

from .. import cpu
from ..formats.quant_tensor import QuantTensor
from ..kernel import Backend, Kernel
from .layers import RepackedExpertsLayer, RepackedLinear, RepackedMLP, RepackedVocabulary
from .repacked import dense_kind, repacked_kind

NAME = "cpu"  # also what the layers call their `backend`
# Kept bit for bit, or requantised to INT8 where that is faster.
KEPT = ("Q8_0", "Q6_K", "Q5_K", "Q5_0", "Q4_K", "Q4_0")
# Requantised to Q8_0 while loading.
REQUANTISED = ("Q5_1", "Q4_1", "IQ4_NL", "IQ4_XS", "Q3_K", "Q2_K")
FORMATS = frozenset((*KEPT, *REQUANTISED))


def _mlp_fits(gate: QuantTensor, up: QuantTensor, down: QuantTensor) -> bool:
    """Gate and up are one matrix for the kernel, and its inner activations are rounded 32 at a time."""
    return gate.format == up.format and down.shape[1] % 32 == 0


def _experts_fit(gate_up: tuple[QuantTensor, ...], down: QuantTensor) -> bool:
    return len({part.format for part in gate_up}) == 1 and down.shape[-1] % 32 == 0


def _entry(operation: Any, make: Any, label: Any, **options: Any) -> Kernel:
    return Kernel(NAME, operation, make, FORMATS, repacks=True, label=label, **options)


def _dense(format: str) -> str:
    return f"as {dense_kind(format)}"


BACKEND = Backend(
    NAME,
    device="cpu",
    kernels=(
        _entry("linear", RepackedLinear, _dense),
        _entry("gated_mlp", RepackedMLP, _dense, fits=_mlp_fits),
        _entry(
            "experts", RepackedExpertsLayer, lambda format: f"as {repacked_kind(format)}", fits=_experts_fit
        ),
        _entry("predict", RepackedVocabulary, _dense),
        Kernel(NAME, "attention", lambda: "blocks", FORMATS, label=lambda format: "int16 or int8"),
    ),
    # By way of the package: a test that switches the kernels off does so there.
    available=lambda: cpu.available(),
    summary=lambda: f"native kernels ({cpu.isa()}, {cpu.threads()} threads)",
)

__all__ = ["BACKEND", "FORMATS", "KEPT", "NAME", "REQUANTISED"]
