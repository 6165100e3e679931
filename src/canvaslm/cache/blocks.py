"""Keys and values in blocks that the native attention kernel reads as they lie:
quantised once, shared in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..model.config import ModelConfig
from ..model.masks import block_of
from ..ops.cpu.attention import BLOCK, KeyBlocks, append_blocks, attention, block_bytes
from ..ops.cpu.memory import MemoryBlock
from .canvas_keys import CanvasKeys
from .parts import NO_LAYERS, NoLayers, Part, SharedSpan, layer_kinds

Held = MemoryBlock | NoLayers


class _Group:
    """The blocks of all layers of one kind: block i holds tokens 256 i .. 256 i + 255 of each."""

    def __init__(self, config: ModelConfig, layers: list[int], dtype: torch.dtype) -> None:
        self.offsets: dict[int, int] = {}
        self.nbytes = 0  # of one block
        for layer in layers:
            self.offsets[layer] = self.nbytes
            self.nbytes += block_bytes(dtype, config.kv_heads_of(layer), config.head_dim_of(layer))
        self.blocks: list[Held | None] = []  # None: forgotten
        self._addresses: npt.NDArray[np.uint64] = np.zeros(8, np.uint64)

    def append(self, block: Held | None) -> None:
        if len(self.blocks) == len(self._addresses):
            self._addresses = np.concatenate((self._addresses, np.zeros_like(self._addresses)))
        self._addresses[len(self.blocks)] = block.address if isinstance(block, MemoryBlock) else 0
        self.blocks.append(block)

    def reserve(self, tokens: int) -> None:
        while BLOCK * len(self.blocks) < tokens:
            self.append(MemoryBlock(self.nbytes))

    def held_at(self, index: int) -> Held | None:
        """Block number `index`; where there are no layers nothing is written and nothing forgotten."""
        return self.blocks[index] if self.offsets else NO_LAYERS

    def table(self, layer: int, first: int, stop: int) -> npt.NDArray[np.uint64]:
        """Addresses of the layer's blocks first .. stop - 1."""
        assert all(block is not None for block in self.blocks[first:stop]), "a forgotten block is needed"
        return self._addresses[first:stop] + np.uint64(self.offsets[layer])

    def forget(self, before: int) -> None:
        for i in range(min(before // BLOCK, len(self.blocks)) - 1, -1, -1):
            if self.blocks[i] is None:
                break
            self.blocks[i] = None

    def held(self) -> Iterator[Held]:
        return (block for block in self.blocks if block is not None)


class BlockStore:
    """A `Store` of int16 or int8 with a scale per token and head; fp32 in and out, CPU only.

    Blocks below the last are never written to again, so others may read them; the last
    one is this store's own.
    """

    block = BLOCK

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        self.config, self.dtype = config, dtype
        self._full, self._sliding = (_Group(config, layers, dtype) for layers in layer_kinds(config))

    @staticmethod
    def estimate(config: ModelConfig, dtype: torch.dtype, full: int, sliding: int) -> int:
        """Bytes when full layers hold `full` tokens, and sliding ones `sliding` that
        may begin inside a block."""
        sizes = [_Group(config, layers, dtype).nbytes for layers in layer_kinds(config)]
        blocks = -(-full // BLOCK)
        return sizes[0] * blocks + sizes[1] * min(blocks, -(-sliding // BLOCK) + 1)

    @property
    def nbytes(self) -> int:
        return sum(block.nbytes for group in (self._full, self._sliding) for block in group.held())

    def write(self, layer: int, k: Tensor, v: Tensor, at: int) -> None:
        group, end = self._group(layer), at + k.shape[1]
        group.reserve(end)
        first = at // BLOCK
        append_blocks(k, v, self.dtype, group.table(layer, first, -(-end // BLOCK)), at - first * BLOCK)

    def encode(self, layer: int, q: Tensor, at: int, masks: dict[int | None, Tensor]) -> Tensor:
        block = block_of(self.config)
        if block is not None:
            starts = range(0, q.shape[1], block)
            parts = [self._encode_block(layer, q[:, i : i + block], at + i) for i in starts]
            return torch.cat(parts, dim=1)
        keys, first = self._seen(layer, at, at + q.shape[1])
        return attention(q, keys, first_query=at - first, window=self.config.window_of(layer))[None]

    def _encode_block(self, layer: int, q: Tensor, at: int) -> Tensor:
        """A block of tokens, whose keys are written, sees all of itself and what comes before."""
        return attention(q, self._seen(layer, at, at + q.shape[1])[0])[None]

    def denoise(self, layer: int, q: Tensor, k: Tensor, v: Tensor, at: int) -> Tensor:
        return attention(q, self._seen(layer, at, at)[0], (k, v))[None]

    def new_canvas_keys(self, places: int) -> PackedCanvasKeys:
        return PackedCanvasKeys(self.config, places)

    def denoise_kept(self, layer: int, q: Tensor, own: CanvasKeys, at: int) -> Tensor:
        assert isinstance(own, PackedCanvasKeys)
        return attention(q, self._seen(layer, at, at)[0], own.of(layer))[None]

    def forget(self, before: int) -> None:
        self._sliding.forget(before)

    def has_sliding(self, index: int) -> bool:
        return self._sliding.held_at(index) is not None

    def span(self, index: int, count: int, *, lasting: bool) -> SharedSpan:
        full = self._full.held_at(index)
        assert full is not None
        return SharedSpan(full, self._sliding.held_at(index), count)

    def begin(self, spans: Sequence[SharedSpan], count: int, first_sliding: int) -> None:
        """Shares whole blocks, and copies the last one if it will be written to."""
        for i, span in enumerate(spans):
            whole, sliding = count >= (i + 1) * BLOCK, span.sliding if i >= first_sliding else None
            self._full.append(_own(span.full, whole))
            self._sliding.append(None if sliding is None else _own(sliding, whole))

    def shared(self) -> Iterator[Part]:
        yield from self._full.held()
        yield from self._sliding.held()

    def _group(self, layer: int) -> _Group:
        return self._sliding if self.config.is_sliding(layer) else self._full

    def _seen(self, layer: int, at: int, stop: int) -> tuple[KeyBlocks, int]:
        """Keys before `stop` that tokens from position `at` on may see, and the
        position of their first block."""
        window = self.config.window_of(layer)
        start = 0 if window is None else max(0, at - (window - 1))
        first = start // BLOCK
        table = self._group(layer).table(layer, first, -(-stop // BLOCK))
        heads, width = self.config.kv_heads_of(layer), self.config.head_dim_of(layer)
        begin = first * BLOCK
        return KeyBlocks(table, self.dtype, heads, width, start - begin, stop - begin, self), begin


class PackedCanvasKeys:
    """In blocks as the native attention packs a canvas's keys and values: 16 bits, a scale each."""

    def __init__(self, config: ModelConfig, places: int) -> None:
        self.config, self.places = config, places
        self._groups = tuple(_Group(config, layers, torch.int16) for layers in layer_kinds(config))

    @staticmethod
    def estimate(config: ModelConfig, places: int) -> int:
        """Bytes of so many places."""
        sizes = (_Group(config, layers, torch.int16).nbytes for layers in layer_kinds(config))
        return sum(sizes) * -(-places // BLOCK)

    def put(self, layer: int, k: Tensor, v: Tensor, places: Tensor | None) -> None:
        """See CanvasKeys."""
        append_blocks(k, v, torch.int16, self.of(layer).table, 0, places)

    def of(self, layer: int) -> KeyBlocks:
        """All places of a layer."""
        group = self._groups[self.config.is_sliding(layer)]
        group.reserve(self.places)
        heads, width = self.config.kv_heads_of(layer), self.config.head_dim_of(layer)
        table = group.table(layer, 0, len(group.blocks))
        return KeyBlocks(table, torch.int16, heads, width, 0, self.places, self)


def _own(part: Part, whole: bool) -> Held:
    assert isinstance(part, MemoryBlock | NoLayers)
    return part if whole or isinstance(part, NoLayers) else part.copy()


__all__ = ["BlockStore", "PackedCanvasKeys"]
