"""Attention over a context and a canvas without joining them, softmax scale 1; twin: `ops.attention.attend`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from .calls import pointer
from .loader import library

_p, _i, _l = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}


class _Segment(ctypes.Structure):
    _fields_ = (
        ("k", _p), ("v", _p), ("dtype", _i), ("count", _i),
        ("k_token", _l), ("k_head", _l), ("v_token", _l), ("v_head", _l),
    )  # fmt: skip


class _AttentionCall(ctypes.Structure):
    _fields_ = (
        ("q", _p), ("q_token", _l), ("q_head", _l), ("tokens", _i), ("heads", _i), ("kv_heads", _i), ("width", _i),
        ("segments", ctypes.POINTER(_Segment)), ("segment_count", _i), ("first_query", _i), ("causal", _i),
        ("window", _i), ("out", _p), ("out_token", _l), ("out_head", _l),
    )  # fmt: skip


def attention(
    q: Tensor,
    segments: Sequence[tuple[Tensor, Tensor]],
    *,
    causal: bool = False,
    first_query: int = 0,
    window: int | None = None,
) -> Tensor:
    """Softmax(q k^T) v for one sequence: q [heads, L, D] fp32 -> [L, heads * D] fp32.

    segments: (k, v) pairs [kv_heads, N, D], fp32 or bf16, seen one after the other (a context, then a canvas); any of
    the tensors may be strided views whose last dimension is contiguous. Without `causal` every query sees every key;
    with it, query i sees keys up to number first_query + i (counted over all segments), and the last `window` of those
    when a window is given. A query that sees nothing gives zeros. Products are int16, relative error about 5e-4.
    """
    if q.dim() != 3 or q.dtype != torch.float32 or q.stride(-1) != 1 or q.device.type != "cpu":
        raise ValueError(f"q: expected fp32 [heads, L, D] on the CPU, got {q.dtype} {list(q.shape)}")
    heads, tokens, width = q.shape
    parts = [_segment(k, v, width) for k, v in segments if k.shape[1]]
    kv_heads = {k.shape[0] for k, _ in segments}
    if len(kv_heads) != 1 or heads % next(iter(kv_heads)):
        raise ValueError(f"{heads} query heads cannot share key-value heads {sorted(kv_heads)}")
    if first_query < 0 or (window is not None and window < 1):
        raise ValueError(f"first_query {first_query} and window {window}: must be >= 0 and >= 1")
    out = torch.zeros(tokens, heads * width) if not parts else torch.empty(tokens, heads * width)
    if not parts or not tokens:
        return out
    array = (_Segment * len(parts))(*parts)
    call = _AttentionCall(
        pointer(q), q.stride(1), q.stride(0), tokens, heads, next(iter(kv_heads)), width, array, len(parts),
        first_query, int(causal), window or 0, pointer(out), heads * width, width,
    )  # fmt: skip
    library().canvas_attention(ctypes.byref(call))
    return out


def _segment(k: Tensor, v: Tensor, width: int) -> _Segment:
    fits = k.dim() == 3 and k.shape == v.shape and k.shape[-1] == width and k.dtype == v.dtype
    if not fits or k.dtype not in _DTYPES or k.stride(-1) != 1 or v.stride(-1) != 1 or k.device.type != "cpu":
        raise ValueError(
            f"k, v: expected fp32 or bf16 [kv_heads, N, {width}] on the CPU, "
            f"got {k.dtype} {list(k.shape)} and {v.dtype} {list(v.shape)}"
        )
    strides = (k.stride(1), k.stride(0), v.stride(1), v.stride(0))
    return _Segment(pointer(k), pointer(v), _DTYPES[k.dtype], k.shape[1], *strides)


__all__ = ["attention"]
