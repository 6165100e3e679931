"""Attention of queries over keys and values, grouped heads, softmax scale 1."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax(q k^T) v with scale 1.0: DiffusionGemma normalises queries and keys
    instead of dividing by sqrt(d).

    q [B, heads, L, D]; k, v [B, kv_heads, N, D], heads a multiple of kv_heads; mask bool, True = may see,
    broadcastable to [B, heads, L, N]. A query that may see nothing gives NaN: callers let padding see
    something. Returns [B, L, heads * D].
    """
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0, enable_gqa=grouped)
    return out.transpose(1, 2).flatten(2)


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds x [..., D] to int8 with one scale a row: (int8 [..., D], fp32 [..., 1]), x about their product.

    The largest component of a row becomes 127; a row of zeros has scale 0.
    """
    wide = x.float()
    peak = wide.abs().amax(-1, keepdim=True)
    up = torch.where(peak > 0, 127 / peak, 0.0)
    return (wide * up).round().clamp(-127, 127).to(torch.int8), peak / 127


def dequantise_rows(whole: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """What `quantise_rows` rounded to, in `dtype`."""
    return (whole * scale).to(dtype)


__all__ = ["attend", "dequantise_rows", "quantise_rows"]
