"""What the model is handed while it generates: contexts that read and fill the caches of sequences."""

from __future__ import annotations

from torch import Tensor

from .canvas_keys import CanvasKeys
from .kv import KVCache


class EncodeContext:
    """Lets one sequence's next tokens [1, L] see its cache and themselves, causally, and keeps them."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self._masks: dict[int | None, Tensor] = {}  # sliding layers share one, full layers another

    def append(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> None:
        self.cache.write(layer, k[0], v[0])

    def encode_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        self.append(layer, k, v, positions)
        return self.cache.encode(layer, q[0], self._masks)

    def denoise_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        raise NotImplementedError("an EncodeContext encodes; denoise with a DenoiseContext")


class DenoiseContext:
    """Lets one sequence's canvas [1, C] see its cache and itself."""

    def __init__(
        self,
        cache: KVCache,
        ahead: int = 0,
        own: CanvasKeys | None = None,
        places: Tensor | None = None,
    ) -> None:
        """`ahead`: how many tokens an EncodeContext writes in the same pass that the canvas stands behind.
        They are written before the canvas asks, layer by layer, and not counted in yet.

        `own`: where the canvas keeps its keys and values; `places` int64 [N] are then those that the pass
        computes, ascending (None: all of them), and the queries are theirs.
        """
        self.cache, self.ahead, self.own, self.places = cache, ahead, own, places

    def append(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> None:
        raise NotImplementedError("a DenoiseContext is read-only")

    def encode_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        raise NotImplementedError("a DenoiseContext denoises; encode with an EncodeContext")

    def denoise_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        if self.own is None:
            return self.cache.denoise(layer, q[0], k[0], v[0], self.ahead)
        self.own.put(layer, k[0], v[0], self.places)
        return self.cache.denoise_kept(layer, q[0], self.own, self.ahead)


__all__ = ["DenoiseContext", "EncodeContext"]
