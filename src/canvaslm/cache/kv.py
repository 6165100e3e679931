"""Keys and values of one sequence.

Full layers keep every token. Sliding layers never look further back than `window - 1` tokens before a canvas,
so they keep that and some slack: the slack lets a later request branch off a little earlier (the next turn of
a chat, whose history drops the last answer's thoughts).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..model.config import ModelConfig
from .canvas_keys import CanvasKeys
from .parts import Part, SharedSpan, Store, usable
from .stores import STORES, slack, storage_type


class KVCache:
    """The encoded tokens of one sequence. `length` counts tokens, wherever sliding layers have dropped some.

    `expected` is how many tokens (canvas included) it is likely to hold. How they are kept is the matter of a
    `Store`: packed blocks for the native kernels, one tensor a layer for plain torch.
    """

    def __init__(
        self,
        config: ModelConfig,
        device: torch.device | str,
        dtype: torch.dtype,
        expected: int = 0,
        *,
        store: str = "tensors",
    ) -> None:
        """store: a name of `STORES`, with the model the attention that reads it.
        dtype: see `storage_type`."""
        self.config, self.length, self.store = config, 0, store
        self.device, self.dtype = torch.device(device), storage_type(dtype, store)
        self.reach, self.slack = config.sliding_window - 1, slack(config)
        self._store = self._new_store(expected)

    def _new_store(self, expected: int) -> Store:
        return STORES[self.store].new(self.config, self.device, self.dtype, expected)

    @staticmethod
    def estimate(config: ModelConfig, tokens: int, dtype: torch.dtype, *, store: str = "tensors") -> int:
        """Bytes that a cache of `tokens` tokens (canvas included) takes at most."""
        return STORES[store].estimate(config, tokens, storage_type(dtype, store))

    @staticmethod
    def estimate_canvas(config: ModelConfig, places: int, dtype: torch.dtype, *, store: str) -> int:
        """Bytes that `new_canvas_keys` take. dtype: of activations."""
        return STORES[store].estimate_canvas(config, places, dtype)

    @property
    def bytes(self) -> int:
        """Memory held, in bytes; what is shared with others counts in full."""
        return self._store.nbytes

    @property
    def block(self) -> int:
        """Tokens of a span, the unit of sharing."""
        return self._store.block

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Puts k, v [kv_heads, L, D] behind the encoded tokens, without counting them in yet."""
        self._store.write(layer, k, v, self.length)

    def encode(self, layer: int, q: Tensor, masks: dict[int | None, Tensor]) -> Tensor:
        """Causal attention [1, L, heads * D] of queries [heads, L, D] whose keys have just been written."""
        return self._store.encode(layer, q, self.length, masks)

    def denoise(self, layer: int, q: Tensor, k: Tensor, v: Tensor, ahead: int = 0) -> Tensor:
        """Attention [1, L, heads * D] of a canvas over the encoded tokens, `ahead`
        written ones, and itself."""
        return self._store.denoise(layer, q, k, v, self.length + ahead)

    def new_canvas_keys(self, places: int) -> CanvasKeys:
        """Where a canvas of so many places keeps its keys and values from step to step."""
        return self._store.new_canvas_keys(places)

    def denoise_kept(self, layer: int, q: Tensor, own: CanvasKeys, ahead: int = 0) -> Tensor:
        """As `denoise`, of queries of some places of a canvas whose keys and values are all in `own`."""
        return self._store.denoise_kept(layer, q, own, self.length + ahead)

    def advance(self, count: int) -> None:
        """Counts in `count` tokens that every layer has written, and lets sliding layers forget."""
        self.length += count
        self._store.forget(max(0, self.length - self.reach - self.slack))

    def usable(self, count: int) -> int:
        """How many of the first `count` tokens a branch can start from: fewer if
        sliding layers forgot too much."""
        count = min(count, self.length)
        return usable(map(self._store.has_sliding, range(self._spans(count))), count, self.block, self.reach)

    def has_sliding(self, index: int) -> bool:
        """Whether span `index` still has the keys of sliding layers."""
        return self._store.has_sliding(index)

    def span(self, index: int, *, lasting: bool = False) -> SharedSpan:
        """SharedSpan number `index` of the encoded tokens; `lasting` when it shall outlive this cache."""
        return self._store.span(index, min(self.block, self.length - index * self.block), lasting=lasting)

    def begin(self, spans: Sequence[SharedSpan], count: int) -> None:
        """Fills an empty cache with the first `count` tokens of spans, which must be `usable` so far."""
        assert self.length == 0, "only an empty cache can begin with what is remembered"
        first = max(0, count - self.reach - self.slack) // self.block
        first = max((i + 1 for i, span in enumerate(spans) if span.sliding is None), default=first)
        self._store.begin(spans[: self._spans(count)], count, first)
        self.length = count

    def shared(self) -> Iterator[Part]:
        """The parts that this cache reads and others may hold as well."""
        return self._store.shared()

    def close(self) -> None:
        """Lets go of everything."""
        self.length, self._store = 0, self._new_store(0)

    def _spans(self, count: int) -> int:
        return -(-count // self.block)


__all__ = ["KVCache"]
