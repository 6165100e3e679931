"""What the model is handed to remember keys and values in: the protocol, its plainest
implementation, rows end to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..ops.attention import attend
from .config import ModelConfig
from .masks import block_of, context_mask, encode_mask


class Context(Protocol):
    """Keeps the encoded tokens' keys and values, and knows who may see them.

    Shapes: q [B, heads, L, D]; k, v [B, kv_heads, L, D]; positions [B, L] int64, -1 for padding. Both
    attention methods return [B, L, heads * D].
    """

    def append(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> None:
        """Stores k and v."""

    def encode_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        """Stores k and v, then lets q see all that is stored, causally."""

    def denoise_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        """Lets a canvas see its context and itself; stores nothing."""


def attend_context(
    context: Context, layer: int, q: Tensor, k: Tensor, v: Tensor, positions: Tensor, encoded: int
) -> Tensor:
    """Attention where each row's first `encoded` tokens are being encoded and the others are its canvas.

    Encoding comes first: a canvas sees what its own context has stored in this very call.
    """
    if encoded == 0:
        return context.denoise_attention(layer, q, k, v, positions)
    if encoded == q.shape[2]:
        return context.encode_attention(layer, q, k, v, positions)
    old, new = slice(encoded), slice(encoded, None)
    first = context.encode_attention(layer, q[:, :, old], k[:, :, old], v[:, :, old], positions[:, old])
    second = context.denoise_attention(layer, q[:, :, new], k[:, :, new], v[:, :, new], positions[:, new])
    return torch.cat((first, second), dim=1)


class PlainContext:
    """A padded batch in plain tensors: differentiable and position-based, for training,
    tests and the reference.

    Since a canvas sees only keys before its first position, one may encode prompt and answer once and denoise
    any block of the answer against that: just what training needs.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.positions: dict[int, Tensor] = {}

    def append(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> None:
        if layer in self.keys:
            k = torch.cat((self.keys[layer], k), dim=2)
            v = torch.cat((self.values[layer], v), dim=2)
            positions = torch.cat((self.positions[layer], positions), dim=1)
        self.keys[layer], self.values[layer], self.positions[layer] = k, v, positions

    def encode_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        self.append(layer, k, v, positions)
        mask = encode_mask(
            positions, self.positions[layer], self.config.window_of(layer), block_of(self.config)
        )
        return attend(q, self.keys[layer], self.values[layer], mask)

    def denoise_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        if layer not in self.keys:
            return attend(q, k, v)
        seen = context_mask(positions[:, 0], self.positions[layer], self.config.window_of(layer))
        mask = torch.cat((seen, seen.new_ones(*seen.shape[:3], k.shape[2])), dim=-1)
        return attend(q, torch.cat((self.keys[layer], k), 2), torch.cat((self.values[layer], v), 2), mask)


Row = tuple[Context, int]


class RowsContext:
    """Rows of unequal lengths end to end in one row [1, T], each with a context of its own.

    Encoded rows come first, canvases after them. Every row's attention gets the tensors that it would get
    alone, so that no row sees another and none needs padding.
    """

    def __init__(self, encode: Sequence[Row], denoise: Sequence[Row]) -> None:
        """Pairs of a context [1, L] and L, in the order of the tokens."""
        self.encode, self.denoise = tuple(encode), tuple(denoise)

    def append(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> None:
        for context, part in _spans(self.encode):
            context.append(layer, k[:, :, part], v[:, :, part], positions[:, part])

    def encode_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        methods = ((context.encode_attention, part) for context, part in _spans(self.encode))
        return _join(methods, layer, q, k, v, positions)

    def denoise_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        methods = ((context.denoise_attention, part) for context, part in _spans(self.denoise))
        return _join(methods, layer, q, k, v, positions)


def _spans(rows: Sequence[Row]) -> Iterator[tuple[Context, slice]]:
    start = 0
    for context, length in rows:
        yield context, slice(start, start + length)
        start += length


def _join(
    methods: Iterator[tuple[Callable[..., Tensor], slice]],
    layer: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
) -> Tensor:
    seen = [
        method(layer, q[:, :, part], k[:, :, part], v[:, :, part], positions[:, part])
        for method, part in methods
    ]
    return seen[0] if len(seen) == 1 else torch.cat(seen, dim=1)


__all__ = ["Context", "PlainContext", "RowsContext", "attend_context"]
