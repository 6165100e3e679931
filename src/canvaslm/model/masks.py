"""Who may see whom, as functions of positions alone. -1 marks padding.

Encoding is causal; a sliding layer sees the last `window` tokens, itself included. A canvas sees its
whole self, and of the context everything before its first position; in sliding layers only the last
`window - 1` tokens, *the same for every place of the canvas* (transformers' sliding cache holds just
these; checked against it in tests).
"""

from __future__ import annotations

from torch import Tensor

from .config import ModelConfig


def encode_mask(queries: Tensor, keys: Tensor, window: int | None, block: int | None = None) -> Tensor:
    """Bool [B, 1, L, N] for query positions [B, L] and key positions [B, N]. Padding queries see everything.

    With `block`, the context is cut into blocks of so many tokens: a token sees all of
    its own, as a canvas would.
    """
    q, k = queries[:, :, None], keys[:, None, :]
    if block is not None:
        seen = (k >= 0) & (k // block <= q // block)
        if window is not None:
            seen = seen & (k >= q // block * block - (window - 1))
        return (seen | (q < 0)).unsqueeze(1)
    seen = (k >= 0) & (k <= q)
    if window is not None:
        seen = seen & (q - k < window)
    return (seen | (q < 0)).unsqueeze(1)


def context_mask(first: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Bool [B, 1, 1, N]: which context keys [B, N] a canvas that starts at positions `first` [B] sees."""
    start = first[:, None]
    seen = (keys >= 0) & (keys < start)
    if window is not None:
        seen = seen & (keys >= start - (window - 1))
    return seen[:, None, None, :]


def block_of(config: ModelConfig) -> int | None:
    """The length of the blocks whose tokens see each other when they are encoded; None
    where encoding is causal."""
    return config.canvas_length if config.facts.commit_attention == "block" else None


__all__ = ["block_of", "context_mask", "encode_mask"]
