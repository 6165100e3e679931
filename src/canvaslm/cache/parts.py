"""The pieces that sequences share: spans of tokens, and whether a sequence can be
continued from some of them.

The context of a sequence is cut into spans of `block` tokens. Each span has two parts, one with the keys and
values of all full layers and one with those of all sliding layers, which a long sequence forgets. A part that
others may read is never written to again; it lives as long as a sequence or the prefix tree refers to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..model.config import ModelConfig
from .canvas_keys import CanvasKeys


class Part(Protocol):
    """Keys and values of some layers, of up to `block` consecutive tokens."""

    @property
    def nbytes(self) -> int:
        """Memory held."""


class NoLayers:
    """The part of no layers, for models that have full or sliding layers only."""

    nbytes = 0


NO_LAYERS = NoLayers()


@dataclass(frozen=True)
class SharedSpan:
    """The first `count` tokens of a block. sliding None: forgotten."""

    full: Part
    sliding: Part | None
    count: int


class Store(Protocol):
    """Keys and values of one sequence, addressed by position. q, k, v of one layer: [heads, L, D].

    What is written is there at once; only `KVCache` knows how many tokens count.
    """

    block: int

    @property
    def nbytes(self) -> int:
        """Memory held, shared parts included."""

    def write(self, layer: int, k: Tensor, v: Tensor, at: int) -> None:
        """Puts tokens at positions at, at + 1, ..., over what may be there."""

    def encode(self, layer: int, q: Tensor, at: int, masks: dict[int | None, Tensor]) -> Tensor:
        """Causal attention [1, L, heads * D] of queries at positions at, at + 1, ..., whose keys are written.

        masks: kept by the caller for all layers of one pass.
        """

    def denoise(self, layer: int, q: Tensor, k: Tensor, v: Tensor, at: int) -> Tensor:
        """Attention [1, L, heads * D] of a canvas that starts at position `at` over what
        is before it and itself."""

    def new_canvas_keys(self, places: int) -> CanvasKeys:
        """Where a canvas of so many places keeps its keys and values from step to step."""

    def denoise_kept(self, layer: int, q: Tensor, own: CanvasKeys, at: int) -> Tensor:
        """As `denoise`, of queries of some places of a canvas whose keys and values are in `own`."""

    def forget(self, before: int) -> None:
        """Sliding layers will not be asked for positions below `before` any more."""

    def has_sliding(self, index: int) -> bool:
        """Whether span `index` still has its sliding part."""

    def span(self, index: int, count: int, *, lasting: bool) -> SharedSpan:
        """The first `count` tokens of a span; `lasting` when it shall outlive this store."""

    def begin(self, spans: Sequence[SharedSpan], count: int, first_sliding: int) -> None:
        """Fills an empty store with `count` tokens; sliding layers get the spans from
        number `first_sliding` on."""

    def shared(self) -> Iterator[Part]:
        """The parts that this store reads and others may hold as well."""


def layer_kinds(config: ModelConfig) -> tuple[list[int], list[int]]:
    """Numbers of the full layers, and of the sliding ones."""
    kinds: tuple[list[int], list[int]] = ([], [])
    for layer in range(config.num_layers):
        kinds[config.is_sliding(layer)].append(layer)
    return kinds


def usable(has_sliding: Iterable[bool], count: int, block: int, reach: int) -> int:
    """The most tokens, at most `count`, after which a sequence can be continued.

    `reach` is how far sliding layers look back; has_sliding tells of each span whether
    it has what they look at.
    """
    there = list(has_sliding)
    while count > 0:
        needed = range(max(0, count - reach) // block, -(-count // block))
        gap = next((i for i in needed if not there[i]), None)
        if gap is None:
            return count
        count = gap * block
    return 0


__all__ = ["NO_LAYERS", "NoLayers", "Part", "SharedSpan", "Store", "layer_kinds", "usable"]
