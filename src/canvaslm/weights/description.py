"""What is known of a checkpoint without its weights; readers of each kind fill it (see `describe`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..model.config import ModelConfig
    from ..model.names import Part


@dataclass(frozen=True)
class TokenizerSummary:
    """`kind` as the file calls it (BPE, Unigram); `special` counts the markers; `template`
    is the template's origin.

    `source` is where the vocabulary was read from.
    """

    kind: str
    vocabulary: int
    special: int
    template: str | None
    source: str = "tokenizer.json"


@dataclass(frozen=True)
class Description:
    """A checkpoint without its weights. Sizes in bytes, counts in parameters."""

    source: str
    kind: str  # "folder", "file" or "gguf"
    files: tuple[tuple[str, int], ...]  # (name, size) of the weight files
    config: ModelConfig
    parts: dict[Part, int]  # parameters of each part; their sum is the model
    stored: dict[str, int]  # bytes in the files by stored type ("BF16", "Q4_K", ...), the vision tower's too
    tokenizer: TokenizerSummary | None
    generation: dict[
        str, Any
    ]  # what generation_config.json or a GGUF file's metadata sets, by the former's names
    vision_parameters: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        return sum(self.parts.values())

    @property
    def active_parameters(self) -> int:
        """Parameters that take part in one token's pass: only the routed experts of each layer."""
        experts = self.parts.get("experts", 0)
        active, count = self.config.active_experts()
        return self.parameters - experts + experts * active // count

    def weight_bytes(self, bits: float) -> int:
        """Memory of the weights at `bits` per parameter, vision tower left out."""
        return int(self.parameters * bits / 8)

    def context_bytes(self, tokens: int, width: int) -> int:
        """Memory of the keys and values of `tokens` tokens at `width` bytes each: sliding
        layers stop at their window."""
        total = 0
        for i in range(self.config.num_layers):
            window = self.config.window_of(i)
            kept = tokens if window is None else min(tokens, window)
            total += kept * 2 * self.config.kv_heads_of(i) * self.config.head_dim_of(i)
        return total * width


def bytes_by_type(tensors: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Bytes of each stored type, the one with most first, from (type, bytes) of tensors."""
    stored: Counter[str] = Counter()
    for kind, nbytes in tensors:
        stored[kind] += nbytes
    return dict(stored.most_common())


def count_parts(config: ModelConfig) -> dict[Part, int]:
    """Parameters of each part of a model, largest first."""
    from ..model.registry import family_of

    parts: Counter[Part] = Counter()
    names = family_of(config).names
    for name, shape in names.weight_shapes(config).items():
        parts[names.part_of(name)] += prod(shape)
    return dict(parts.most_common())


__all__ = ["Description", "TokenizerSummary", "bytes_by_type", "count_parts"]
