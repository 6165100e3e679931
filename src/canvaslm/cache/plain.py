"""Keys and values in one tensor per layer, for attention in plain torch.

A sequence's keys lie side by side, because `scaled_dot_product_attention` wants them so: reading shared
blocks in place would gather the whole context again in every layer of every step, where filling the buffer
from shared spans copies it once a request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.config import ModelConfig
from ..model.masks import block_of, encode_mask
from ..ops.attention import attend, dequantise_rows, quantise_rows
from .canvas_keys import CanvasKeys, PlainCanvasKeys
from .parts import NO_LAYERS, Part, SharedSpan, layer_kinds

Rows = tuple[
    Tensor, ...
]  # keys and values [kv_heads, N, D], and with int8 the scales of both [kv_heads, N, 1]


@dataclass(frozen=True, eq=False)
class PlainPart:
    """Tensors of some layers, over the same tokens."""

    layers: dict[int, Rows]

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for rows in self.layers.values() for t in rows)


class _Layer:
    """One layer's buffers [kv_heads, capacity, *]; slot 0 holds the token at position `start`."""

    def __init__(self, buffers: Rows, expected: int) -> None:
        self.buffers, self.start, self.expected = buffers, 0, expected

    def reserve(self, slots: int, used: int) -> None:
        """Makes room for `slots` tokens, keeping the first `used`."""
        held = self.buffers[0].shape[1]
        if slots <= held:
            return
        capacity = self.expected if slots <= self.expected else max(slots, 2 * held)
        new = tuple(b.new_empty(b.shape[0], capacity, b.shape[2]) for b in self.buffers)
        for mine, old in zip(new, self.buffers, strict=True):
            mine[:, :used] = old[:, :used]
        self.buffers = new

    def put(self, rows: Rows, at: int) -> None:
        """Rows of tokens from position `at` on."""
        slot, count = at - self.start, rows[0].shape[1]
        self.reserve(slot + count, slot)
        for buffer, new in zip(self.buffers, rows, strict=True):
            buffer[:, slot : slot + count] = new

    def rows(self, start: int, stop: int) -> Rows:
        """Views of positions start .. stop - 1."""
        return tuple(b[:, start - self.start : stop - self.start] for b in self.buffers)

    def drop(self, before: int) -> None:
        for buffer in self.buffers:
            kept = buffer.shape[1] - (before - self.start)
            buffer[:, :kept] = buffer[:, -kept:].clone()
        self.start = before


class PlainStore:
    """A `Store` of tensors in a floating-point type, or of int8 with a scale per token and head."""

    def __init__(
        self,
        config: ModelConfig,
        device: torch.device,
        dtype: torch.dtype,
        slots: list[int],
        block: int,
        slack: int,
    ) -> None:
        """slots: tokens each layer is likely to hold at most. slack: tokens that sliding
        layers forget at a time."""
        self.config, self.dtype, self.block, self.slack = config, dtype, block, slack
        self.layers = [_Layer(_empty(config, i, device, dtype), count) for i, count in enumerate(slots)]
        self._full, self._sliding = layer_kinds(config)

    @staticmethod
    def estimate(config: ModelConfig, dtype: torch.dtype, slots: list[int]) -> int:
        """Bytes when layer i holds slots[i] tokens."""
        rows = (_empty(config, i, torch.device("meta"), dtype) for i in range(config.num_layers))
        each = (sum(t.shape[0] * t.shape[2] * t.element_size() for t in tensors) for tensors in rows)
        return sum(n * size for n, size in zip(slots, each, strict=True))

    @property
    def nbytes(self) -> int:
        return sum(b.numel() * b.element_size() for layer in self.layers for b in layer.buffers)

    def write(self, layer: int, k: Tensor, v: Tensor, at: int) -> None:
        if self.dtype is torch.int8:
            (whole_k, scale_k), (whole_v, scale_v) = quantise_rows(k), quantise_rows(v)
            self.layers[layer].put((whole_k, whole_v, scale_k, scale_v), at)
        else:
            self.layers[layer].put((k, v), at)

    def encode(self, layer: int, q: Tensor, at: int, masks: dict[int | None, Tensor]) -> Tensor:
        first, stop, window = self._first(layer, at), at + q.shape[1], self.config.window_of(layer)
        keys, values = self._read(layer, first, stop, q.dtype)
        if window not in masks:
            positions = torch.arange(first, stop, device=q.device)[None]
            masks[window] = encode_mask(positions[:, at - first :], positions, window, block_of(self.config))
        return attend(q[None], keys[None], values[None], masks[window])

    def denoise(self, layer: int, q: Tensor, k: Tensor, v: Tensor, at: int) -> Tensor:
        first = self._first(layer, at)
        if self.dtype is torch.int8:  # what is not kept need not be rounded
            keys, values = self._read(layer, first, at, q.dtype)
            keys, values = torch.cat((keys, k), 1), torch.cat((values, v), 1)
        else:
            # The canvas's keys go into the slots behind the context, uncounted: one buffer,
            # no copy of the context.
            self.write(layer, k, v, at)
            keys, values = self._read(layer, first, at + k.shape[1], q.dtype)
        return attend(q[None], keys[None], values[None])

    def new_canvas_keys(self, places: int) -> PlainCanvasKeys:
        return PlainCanvasKeys()

    def denoise_kept(self, layer: int, q: Tensor, own: CanvasKeys, at: int) -> Tensor:
        assert isinstance(own, PlainCanvasKeys)
        return self.denoise(layer, q, *own.layers[layer], at)

    def forget(self, before: int) -> None:
        before -= before % self.block  # so that spans are whole or gone
        for i in self._sliding:
            if before - self.layers[i].start > self.slack:
                self.layers[i].drop(before)

    def has_sliding(self, index: int) -> bool:
        return all(self.layers[i].start <= index * self.block for i in self._sliding)

    def span(self, index: int, count: int, *, lasting: bool) -> SharedSpan:
        """Views of the buffers, or copies."""
        start = index * self.block
        full = self._part(self._full, start, count, lasting)
        return SharedSpan(
            full, self._part(self._sliding, start, count, lasting) if self.has_sliding(index) else None, count
        )

    def begin(self, spans: Sequence[SharedSpan], count: int, first_sliding: int) -> None:
        for i in self._sliding:
            self.layers[i].start = first_sliding * self.block
        for index, span in enumerate(spans):
            at = index * self.block
            for part in (span.full, span.sliding if index >= first_sliding else None):
                if isinstance(part, PlainPart):
                    for i, rows in part.layers.items():
                        self.layers[i].put(tuple(t[:, : count - at] for t in rows), at)

    def shared(self) -> Iterator[Part]:
        return iter(())

    def _part(self, layers: list[int], start: int, count: int, lasting: bool) -> Part:
        if not layers:
            return NO_LAYERS
        rows = {i: self.layers[i].rows(start, start + count) for i in layers}
        return PlainPart({i: tuple(t.clone() for t in r) for i, r in rows.items()} if lasting else rows)

    def _first(self, layer: int, at: int) -> int:
        """The first position that a token at `at` sees."""
        window = self.config.window_of(layer)
        return 0 if window is None else max(0, at - (window - 1))

    def _read(self, layer: int, start: int, stop: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        k, v, *scales = self.layers[layer].rows(start, stop)
        if scales:
            return dequantise_rows(k, scales[0], dtype), dequantise_rows(v, scales[1], dtype)
        return k.to(dtype), v.to(dtype)


def _empty(config: ModelConfig, layer: int, device: torch.device, dtype: torch.dtype) -> Rows:
    heads, width = config.kv_heads_of(layer), config.head_dim_of(layer)
    rows = tuple(torch.empty(heads, 0, width, device=device, dtype=dtype) for _ in range(2))
    if dtype is torch.int8:
        rows += tuple(torch.empty(heads, 0, 1, device=device) for _ in range(2))
    return rows


__all__ = ["PlainPart", "PlainStore"]
