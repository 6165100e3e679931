"""The kinds of `Store`, by the names that the table of kernels gives them (operation
"attention" in `ops.backend`).

A backend with an attention of its own adds its store here, under a name of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..errors import UsageError
from ..model.config import ModelConfig
from .blocks import BlockStore, PackedCanvasKeys
from .canvas_keys import PlainCanvasKeys
from .parts import Store
from .plain import PlainStore

# Tokens that may be written before any are counted in: a chunk of a prompt.
_LONGEST_WRITE = 512
# Tokens of a span where stores may choose: short enough to share, long enough to be few.
_SPAN = 256


@dataclass(frozen=True)
class StoreKind:
    """How keys and values may be stored.

    stored_type: what they are stored in when a type is asked for; raises UsageError for what cannot be.
    new: (config, device, stored type, tokens expected) -> an empty store. estimate: (config, tokens,
    stored type) -> bytes at most. estimate_canvas: the same of a canvas's own keys and values, from the
    activations' type.
    """

    stored_type: Callable[[torch.dtype], torch.dtype]
    new: Callable[[ModelConfig, torch.device, torch.dtype, int], Store]
    estimate: Callable[[ModelConfig, int, torch.dtype], int]
    estimate_canvas: Callable[[ModelConfig, int, torch.dtype], int]


def storage_type(dtype: torch.dtype, store: str = "tensors") -> torch.dtype:
    """What keys and values are kept in when `dtype` is asked for. Raises UsageError for what cannot be.

    Plain torch ("tensors") keeps the type itself, int8 with a scale per token and head. The native kernel
    ("blocks") computes in 16-bit whole numbers with such scales, so it keeps those whatever floating-point
    type is asked for, or int8.
    """
    return STORES[store].stored_type(dtype)


def slack(config: ModelConfig) -> int:
    """Tokens a sliding layer keeps beyond what the next canvas sees."""
    return max(config.sliding_window, 4 * config.canvas_length)


def _type_in_tensors(dtype: torch.dtype) -> torch.dtype:
    if dtype is not torch.int8 and not dtype.is_floating_point:
        raise UsageError(
            f"keys and values cannot be kept in {dtype} here: choose float32, bfloat16 or int8", "kv_type"
        )
    return dtype


def _new_tensors(config: ModelConfig, device: torch.device, dtype: torch.dtype, expected: int) -> Store:
    span = min(_SPAN, 4 * config.canvas_length)
    return PlainStore(config, device, dtype, _slots(config, expected), span, slack(config))


def _estimate_tensors(config: ModelConfig, tokens: int, dtype: torch.dtype) -> int:
    return PlainStore.estimate(config, dtype, _slots(config, tokens))


def _slots(config: ModelConfig, tokens: int) -> list[int]:
    """Tokens each layer has to hold at most, of a sequence of `tokens`, when they lie in one piece."""
    sliding = min(tokens, config.sliding_window + 3 * slack(config) + config.canvas_length)
    return [sliding if config.is_sliding(i) else tokens for i in range(config.num_layers)]


def _type_in_blocks(dtype: torch.dtype) -> torch.dtype:
    return torch.int8 if dtype is torch.int8 else torch.int16


def _new_blocks(config: ModelConfig, device: torch.device, dtype: torch.dtype, expected: int) -> Store:
    return BlockStore(config, dtype)


def _estimate_blocks(config: ModelConfig, tokens: int, dtype: torch.dtype) -> int:
    # Short chunks are padded to 16 tokens, which may reach beyond a very short canvas.
    padded = tokens + max(0, 16 - config.canvas_length)
    longest = max(_LONGEST_WRITE, config.canvas_length)
    return BlockStore.estimate(
        config, dtype, padded, min(padded, config.sliding_window + slack(config) + longest)
    )


def _canvas_in_tensors(config: ModelConfig, places: int, dtype: torch.dtype) -> int:
    return PlainCanvasKeys.estimate(config, places, dtype.itemsize)


def _canvas_in_blocks(config: ModelConfig, places: int, dtype: torch.dtype) -> int:
    return PackedCanvasKeys.estimate(config, places)


STORES: dict[str, StoreKind] = {
    "tensors": StoreKind(_type_in_tensors, _new_tensors, _estimate_tensors, _canvas_in_tensors),
    "blocks": StoreKind(_type_in_blocks, _new_blocks, _estimate_blocks, _canvas_in_blocks),
}

__all__ = ["STORES", "StoreKind", "slack", "storage_type"]
