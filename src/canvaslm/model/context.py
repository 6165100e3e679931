"""What the model is handed to remember keys and values in: the protocol, and its plainest implementation."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..ops.attention import attend
from .config import ModelConfig
from .masks import context_mask, encode_mask


class Context(Protocol):
    """Keeps the encoded tokens' keys and values, and knows who may see them.

    Shapes: q [B, heads, L, D]; k, v [B, kv_heads, L, D]; positions [B, L] int64, -1 for padding. Both attention
    methods return [B, L, heads * D].
    """

    def append(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> None:
        """Stores k and v."""

    def encode_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        """Stores k and v, then lets q see all that is stored, causally."""

    def denoise_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        """Lets a canvas see its context and itself; stores nothing."""


class PlainContext:
    """A padded batch in plain tensors: differentiable and position-based, for training, tests and the reference.

    Since a canvas sees only keys before its first position, one may encode prompt and answer once and denoise any
    block of the answer against that: just what training needs.
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
        mask = encode_mask(positions, self.positions[layer], self.config.window_of(layer))
        return attend(q, self.keys[layer], self.values[layer], mask)

    def denoise_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        if layer not in self.keys:
            return attend(q, k, v)
        seen = context_mask(positions[:, 0], self.positions[layer], self.config.window_of(layer))
        mask = torch.cat((seen, seen.new_ones(*seen.shape[:3], k.shape[2])), dim=-1)
        return attend(q, torch.cat((self.keys[layer], k), 2), torch.cat((self.values[layer], v), 2), mask)


__all__ = ["Context", "PlainContext"]
