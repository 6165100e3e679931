"""How PEFT lays out the adapters of all of a layer's experts in one pair of matrices.

`lora_A` [E * r, in] is expert-major (row e * r + i), `lora_B` [out, r * E] rank-major (column i * E + e). Up
to version 0.18 PEFT takes the parameter's second dimension for the inputs: in and out change places, and the
product is the change transposed. Which it is shows in the shapes, but where in = out.
"""

from __future__ import annotations

from torch import Tensor

from .modules import DOWN, GATE_UP, Shape

NEW, OLD = "new", "old"  # the layouts from PEFT 0.19 on, and before


def readings(a: Tensor, b: Tensor, shapes: dict[str, Shape]) -> set[tuple[str, str]]:
    """What a pair may be by its shape: (GATE_UP or DOWN, layout), none, one or more. `shapes` [E, out, in] of
    the parameters it may be of."""
    found = set()
    for part, (_, out, inner) in shapes.items():
        if (a.shape[1], b.shape[0]) == (inner, out):
            found.add((part, NEW))
        if (a.shape[1], b.shape[0]) == (out, inner):
            found.add((part, OLD))
    return found


def unpack(a: Tensor, b: Tensor, count: int, layout: str) -> tuple[Tensor, Tensor]:
    """lora_A, lora_B of a file -> a [E, r, in], b [E, out, r]."""
    rank = a.shape[0] // count
    each_a = a.reshape(count, rank, a.shape[1])
    each_b = b.reshape(b.shape[0], rank, count).permute(2, 0, 1)
    if layout == OLD:
        each_a, each_b = each_b.transpose(1, 2), each_a.transpose(1, 2)
    return each_a.contiguous(), each_b.contiguous()


def pack(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """a [E, r, in], b [E, out, r] -> lora_A, lora_B in the layout of PEFT 0.19."""
    return a.flatten(0, 1).contiguous(), b.permute(1, 2, 0).flatten(1).contiguous()


__all__ = ["DOWN", "GATE_UP", "NEW", "OLD", "pack", "readings", "unpack"]
