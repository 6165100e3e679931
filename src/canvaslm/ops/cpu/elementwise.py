"""The small steps between products, each one pass over its rows: norms, rotary
embedding, residuals, routing."""

from __future__ import annotations

import torch
from torch import Tensor

from .loader import library
from .products import check, pointer
from .repacked import RepackedMatrix


def rms_norm(
    x: Tensor, weight: Tensor | None, eps: float, *, residual: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """(residual + x / sqrt(mean(x^2) + eps) * weight) * scale over the last dimension;
    twin: `ops.norm.rms_norm`.

    x [..., H] fp32; weight [H] or None; residual like x or None.
    """
    width = x.shape[-1]
    flat = check("x", x.reshape(-1, width), (None, width))
    weight = None if weight is None else check("weight", weight, (width,))
    residual = None if residual is None else check("residual", residual, tuple(x.shape))
    out = torch.empty(x.shape)
    library().canvas_rms_norm(
        pointer(flat), pointer(weight), pointer(residual), scale, eps, len(flat), width, pointer(out)
    )
    return out


def join_feed_forward(
    dense: Tensor,
    dense_weight: Tensor,
    routed: Tensor,
    routed_weight: Tensor,
    weight: Tensor,
    residual: Tensor,
    scale: float,
    eps: float,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """The end of a layer: (residual + norm(norm(dense) + norm(routed))) * scale. All [..., H], weights [H].

    Written to and returned in `out`, if given.
    """
    width, shape = dense.shape[-1], tuple(dense.shape)
    tensors = [
        check("dense", dense, shape), check("dense_weight", dense_weight, (width,)),
        check("routed", routed, shape), check("routed_weight", routed_weight, (width,)),
        check("weight", weight, (width,)), check("residual", residual, shape),
    ]  # fmt: skip
    if out is None:
        out = torch.empty(shape)
    elif check("out", out, shape).data_ptr() != out.data_ptr():
        raise ValueError("out: must be contiguous")
    rows = dense.numel() // width
    library().canvas_join(*(pointer(t) for t in tensors), scale, eps, rows, width, pointer(out))
    return out


def norm_rope(
    x: Tensor, weight: Tensor | None, eps: float, table: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """In place, head by head: RMS norm (weight [D] or None), then rotation. x [L, heads, D] fp32, returned.

    table: (cos, sin), each [L, D / 2], of the rotate-half layout (the first half of `rotary_table`'s
    columns: its second half repeats them); None: no rotation. x may be a view of a wider row (token
    stride free), heads adjacent.
    """
    if x.dim() != 3 or x.dtype != torch.float32 or x.device.type != "cpu":
        raise ValueError(f"x: expected fp32 [L, heads, D] on the CPU, got {x.dtype} {list(x.shape)}")
    tokens, heads, width = x.shape
    if x.stride(2) != 1 or (heads > 1 and x.stride(1) != width):
        raise ValueError("x: heads and their components must be contiguous")
    weight = None if weight is None else check("weight", weight, (width,))
    cos = sin = None
    if table is not None:
        if width % 2:
            raise ValueError(f"x: rotation needs an even head width, not {width}")
        cos, sin = (check("table", t, (tokens, width // 2)) for t in table)
    library().canvas_norm_rope(
        pointer(x), pointer(weight), pointer(cos), pointer(sin), eps, tokens, heads, width, x.stride(0)
    )
    return x


def route(
    x: Tensor, scale: Tensor, proj: RepackedMatrix, per_expert: Tensor | None, top: int, eps: float
) -> tuple[Tensor, Tensor]:
    """Routes tokens x [T, H]: (index [T, top] int64, weights [T, top] fp32), likeliest expert first.

    Logits are (rms(x) * scale) @ proj.T with proj [E, H] repacked F32 or BF16 and scale [H]
    holding hidden^-0.5; weights are the softmax's values of the chosen experts, renormalised to
    sum 1, times per_expert [E].
    """
    if not 1 <= top <= proj.n:
        raise ValueError(f"top: must lie in 1..{proj.n}, not {top}")
    if proj.kind not in ("F32", "BF16"):
        raise ValueError(f"proj: the router stays in float, not {proj.kind}")
    x = check("x", x, (None, proj.k))
    scale = check("scale", scale, (proj.k,))
    per_expert = None if per_expert is None else check("per_expert", per_expert, (proj.n,))
    index, weights = torch.empty(len(x), top, dtype=torch.int64), torch.empty(len(x), top)
    library().canvas_route(
        pointer(x), pointer(scale), proj.code, proj.data, proj.n, proj.k, pointer(per_expert), len(x), top,
        eps,
        pointer(index), pointer(weights),
    )  # fmt: skip
    return index, weights


__all__ = ["join_feed_forward", "norm_rope", "rms_norm", "route"]
