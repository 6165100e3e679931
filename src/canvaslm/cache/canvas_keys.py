"""The keys and values of a canvas's own places, kept from step to step: a step need not make them all anew.

What is kept of a place depends on nothing but the state that it was computed from: a pass that fails half way
and is made again writes the same once more, and never touches what it does not compute.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..model.config import ModelConfig


class CanvasKeys(Protocol):
    """Keys and values of one canvas, layer by layer, as the attention of a `Store` reads them."""

    def put(self, layer: int, k: Tensor, v: Tensor, places: Tensor | None) -> None:
        """Takes k, v [kv_heads, N, D] of N places, int64 [N] ascending; None: of all, in order. The first
        time a layer is given all."""


class PlainCanvasKeys:
    """In tensors [kv_heads, C, D] of the activations' type, for attention in plain torch."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    @staticmethod
    def estimate(config: ModelConfig, places: int, size: int) -> int:
        """Bytes of so many places. size: bytes of a component."""
        widths = (config.kv_heads_of(i) * config.head_dim_of(i) for i in range(config.num_layers))
        return 2 * places * size * sum(widths)

    def put(self, layer: int, k: Tensor, v: Tensor, places: Tensor | None) -> None:
        """See CanvasKeys."""
        if places is None:
            # A copy: what a pass hands over is part of larger tensors, of all its rows.
            self.layers[layer] = k.clone(), v.clone()
            return
        for kept, new in zip(self.layers[layer], (k, v), strict=True):
            kept.index_copy_(1, places, new)


__all__ = ["CanvasKeys", "PlainCanvasKeys"]
