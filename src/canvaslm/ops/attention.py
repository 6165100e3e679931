"""Attention of queries over keys and values, grouped heads, softmax scale 1."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax(q k^T) v with scale 1.0: DiffusionGemma normalises queries and keys instead of dividing by sqrt(d).

    q [B, heads, L, D]; k, v [B, kv_heads, N, D], heads a multiple of kv_heads; mask bool, True = may see,
    broadcastable to [B, heads, L, N]. A query that may see nothing gives NaN: callers let padding see something.
    Returns [B, L, heads * D].
    """
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0, enable_gqa=grouped)
    return out.transpose(1, 2).flatten(2)


def attend_natively(
    q: Tensor,
    segments: Sequence[tuple[Tensor, Tensor]],
    *,
    causal: bool = False,
    first_query: int = 0,
    window: int | None = None,
) -> Tensor:
    """`attend` for one sequence on the native kernel: q [heads, L, D] fp32, (k, v) pairs [kv_heads, N, D] one after the
    other, fp32 or bf16. Query i sees keys up to number first_query + i if causal. Returns [1, L, heads * D].
    """
    from .native.attention import attention

    return attention(q, segments, causal=causal, first_query=first_query, window=window)[None]


__all__ = ["attend", "attend_natively"]
