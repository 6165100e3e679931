"""The kernels on tensors: checked arguments, one call into the library each.

All take and return fp32 CPU tensors. Weights are `RepackedMatrix` and `RepackedExperts`
(ops/cpu/repacked.py); the error bounds hold against the same weights dequantised to fp32: activations are
rounded to int8 with one scale per 256 inputs (about 0.7 % of a product's norm for gaussian inputs, 2-3 % for
heavy-tailed ones), everything else is fp32. A row's result depends neither on the other rows of the batch nor
on the number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .loader import library
from .repacked import RepackedExperts, RepackedMatrix, RowTable


def check(name: str, x: Tensor, shape: tuple[int | None, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """x, contiguous. ValueError naming it unless it is on the CPU, of this dtype and shape (None: any
    size)."""
    # Written for speed: a pass over one token comes here a thousand times.
    has = x.shape
    wrong = len(has) != len(shape) or x.dtype is not dtype or not x.is_cpu
    if not wrong and has != shape:
        for wanted, size in zip(shape, has, strict=True):
            if wanted is not None and wanted != size:
                wrong = True
    if wrong:
        sizes = ", ".join("any" if s is None else str(s) for s in shape)
        raise ValueError(
            f"{name}: expected {dtype} [{sizes}] on the CPU, got {x.dtype} {list(x.shape)} on {x.device}"
        )
    return x if x.is_contiguous() else x.detach().contiguous()


def pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def matmul(weight: RepackedMatrix, x: Tensor, out: Tensor | None = None) -> Tensor:
    """x [M, k] @ weight.T -> [M, n]."""
    x = check("x", x, (None, weight.k))
    if out is None:
        out = torch.empty(x.shape[0], weight.n)
    elif out.shape != (x.shape[0], weight.n) or out.dtype != torch.float32 or not out.is_contiguous():
        raise ValueError(f"out: expected contiguous fp32 [{x.shape[0]}, {weight.n}]")
    if len(x):
        library().canvas_matmul(
            weight.code, weight.data, weight.n, weight.k, x.data_ptr(), weight.k, len(x), out.data_ptr(),
            weight.n
        )  # fmt: skip
    return out


def matmul_back(weight: RepackedMatrix, grad: Tensor) -> Tensor:
    """grad [M, n] @ weight -> [M, k]: what flows back through `matmul`. fp32 on exact weights."""
    grad = check("grad", grad, (None, weight.n))
    out = torch.empty(grad.shape[0], weight.k)
    if len(grad):
        library().canvas_matmul_back(
            weight.code, weight.data, weight.n, weight.k, grad.data_ptr(), weight.n, len(grad),
            out.data_ptr(), weight.k,
        )  # fmt: skip
    return out


def experts(
    x: Tensor, index: Tensor, weights: Tensor, gate_up: RepackedExperts, down: RepackedExperts
) -> Tensor:
    """Sum over each token's experts of weight * down(gelu(gate x) * up x), as `ops.experts.experts`.

    x [T, H]; index [T, K] int64; weights [T, K]; gate_up [E, 2I, H] (gate rows first), down [E, H', I]; I in
    multiples of 32. Returns [T, H']. The inner activations are rounded to int8 too: about 1.2 % in all.
    """
    inner = down.k
    if gate_up.n != 2 * inner or inner % 32 or gate_up.experts != down.experts:
        raise ValueError(
            f"experts [{gate_up.experts}, {gate_up.n}, {gate_up.k}] and [{down.experts}, {down.n}, "
            f"{down.k}] do not fit "
            "(need [E, 2I, H] and [E, H, I] with I a multiple of 32)"
        )
    x = check("x", x, (None, gate_up.k))
    top = index.shape[-1]
    index = check("index", index, (len(x), top), torch.int64)
    weights = check("weights", weights, (len(x), top))
    out = torch.empty(len(x), down.n)
    if len(x) == 0:
        return out
    status = library().canvas_experts(
        gate_up.code, gate_up.data, down.code, down.data, down.experts, inner, down.n, gate_up.k,
        x.data_ptr(), len(x), index.data_ptr(), weights.data_ptr(), top, out.data_ptr(),
    )  # fmt: skip
    if status:
        raise ValueError(
            f"index: expert ids must lie in 0..{down.experts - 1}, "
            f"found {int(index.min())}..{int(index.max())}"
        )
    return out


def gated_mlp(x: Tensor, gate_up: RepackedExperts, down: RepackedExperts) -> Tensor:
    """down(gelu(gate x) * up x) for x [T, H]: one expert that takes every token."""
    if gate_up.experts != 1:
        raise ValueError(f"a gated MLP has one expert, not {gate_up.experts}")
    index = torch.zeros(len(x), 1, dtype=torch.int64)
    return experts(x, index, torch.ones(len(x), 1), gate_up, down)


def gather(table: RowTable, ids: Tensor) -> Tensor:
    """Rows ids [...] int64 of a table, as fp32 [..., columns]; exact."""
    flat = check("ids", ids.reshape(-1), (None,), torch.int64)
    if len(flat) and not (int(flat.min()) >= 0 and int(flat.max()) < table.rows):
        raise ValueError(f"ids: must lie in 0..{table.rows - 1}, found {int(flat.min())}..{int(flat.max())}")
    out = torch.empty(len(flat), table.columns)
    library().canvas_gather(
        table.type_id, table.raw.data_ptr(), table.columns, flat.data_ptr(), len(flat), out.data_ptr()
    )
    return out.view(*ids.shape, table.columns)


__all__ = ["check", "experts", "gated_mlp", "gather", "matmul", "matmul_back", "pointer"]
