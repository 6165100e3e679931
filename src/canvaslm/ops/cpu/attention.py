"""Attention over keys and values that were quantised once, softmax scale 1; twin: `ops.attention.attend`.

A block holds 256 consecutive tokens of one layer (csrc/kv.h). Its memory belongs to the caller (see
`memory`); here a layer's blocks are a table of addresses. A place is a token's number counted from
the first block of a table.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .loader import library
from .products import pointer
from .structures import AppendCall, AttentionCall, FreshKeyValues

BLOCK = 256
# What a component of a key or value may be quantised to; the numbers are those of kv.h.
KINDS = {torch.int16: 0, torch.int8: 1}


@dataclass(frozen=True)
class KeyBlocks:
    """Keys and values of one layer: places start .. stop of the blocks at `table` (uint64 addresses)."""

    table: np.ndarray
    dtype: torch.dtype  # int16 or int8
    kv_heads: int
    width: int
    start: int
    stop: int
    owner: object = None  # what keeps the blocks' memory alive


def block_bytes(dtype: torch.dtype, kv_heads: int, width: int) -> int:
    """Bytes of a block of one layer: 2 * kv_heads * 256 components of `width` (rounded up
    to 32), and their scales."""
    return int(library().canvas_block_bytes(KINDS[dtype], kv_heads, width))


def append_blocks(
    k: Tensor, v: Tensor, dtype: torch.dtype, table: np.ndarray, first: int, places: Tensor | None = None
) -> None:
    """Puts k, v [kv_heads, L, D] fp32 into the blocks at `table`, token i at place first + i, or first +
    places[i] (integers [L], ascending, none twice); twin: `quantise_rows`.

    Every key and value has a scale of its own: what a token is quantised to depends on no other. int8 rounds
    to 127 steps either side of zero, int16 to about 2^15. Raises ValueError when the blocks do not reach.
    """
    fresh = _fresh(k, v, k.shape[-1])
    where = None if places is None else _ascending(places, fresh.count)
    end = first + (fresh.count if where is None or not len(where) else int(where[-1]) + 1)
    if first < 0 or end > BLOCK * len(table):
        raise ValueError(f"places {first} .. {end} lie outside {len(table)} blocks of {BLOCK}")
    table = _checked(table)
    call = AppendCall(fresh, k.shape[0], k.shape[-1], KINDS[dtype], table.ctypes.data, first, pointer(where))
    library().canvas_append(ctypes.byref(call))


def _ascending(places: Tensor, count: int) -> Tensor:
    """int32, as the kernel reads them."""
    where = places.to(torch.int32).contiguous()
    if where.shape != (count,) or (count and int(where[0]) < 0) or bool((where.diff() <= 0).any()):
        raise ValueError(f"places: expected {count} ascending numbers, got {places.tolist()}")
    return where


def attention(
    q: Tensor,
    keys: KeyBlocks | None = None,
    own: tuple[Tensor, Tensor] | KeyBlocks | None = None,
    *,
    first_query: int | None = None,
    window: int | None = None,
) -> Tensor:
    """Softmax(q k^T) v for one sequence: q [heads, L, D] fp32 -> [L, heads * D] fp32.

    Every query sees places start .. stop of `keys`, and all of `own` = (k, v) [kv_heads, N, D] fp32 (strided
    views whose last dimension is contiguous will do), or what such have been packed to: places 0 .. stop of
    int16 blocks, with the same result. With `first_query` it is causal: query i sees places up
    to first_query + i, the last `window` of them when a window is given, and there are no `own` keys. A query
    that sees nothing gives zeros. Products are 16 bits wide: relative error about 5e-4, with int8 keys about
    1 %. A query's result depends only on what it sees and on how that lies in blocks of 256. Raises
    ValueError naming what does not fit.
    """
    if q.dim() != 3 or q.dtype != torch.float32 or q.stride(-1) != 1 or q.device.type != "cpu":
        raise ValueError(f"q: expected fp32 [heads, L, D] on the CPU, got {q.dtype} {list(q.shape)}")
    heads, tokens, width = q.shape
    fresh, own_table = _own(own, width)
    own_heads = None if own is None else own.kv_heads if isinstance(own, KeyBlocks) else own[0].shape[0]
    kv_heads = keys.kv_heads if keys is not None else own_heads or 0
    _check_heads(heads, width, kv_heads, keys, own_heads)
    if (first_query is not None and (own is not None or first_query < 0)) or (
        window is not None and window < 1
    ):
        raise ValueError(
            f"first_query {first_query}, window {window}: at least 0 and 1, and no keys of their own"
        )
    out = torch.empty(tokens, heads * width)
    if not tokens:
        return out
    table = None if keys is None else _checked(keys.table)
    call = AttentionCall(
        pointer(q), q.stride(1), q.stride(0), tokens, heads, kv_heads, width,
        None if table is None else table.ctypes.data,
        0 if keys is None else KINDS[keys.dtype],
        0 if keys is None else keys.start,
        0 if keys is None else keys.stop,
        fresh, None if own_table is None else own_table.ctypes.data,
        first_query or 0, int(first_query is not None), window or 0, pointer(out), heads * width,
        width,
    )  # fmt: skip
    library().canvas_attention(ctypes.byref(call))
    return out


def _own(
    own: tuple[Tensor, Tensor] | KeyBlocks | None, width: int
) -> tuple[FreshKeyValues, np.ndarray | None]:
    """A call's own keys and values as the kernel reads them, with the table of blocks where they are packed.

    Raises ValueError naming what does not fit.
    """
    if own is None:
        return FreshKeyValues(), None
    if not isinstance(own, KeyBlocks):
        return _fresh(*own, width), None
    if own.dtype is not torch.int16 or own.width != width or own.start:
        raise ValueError(
            f"own: expected int16 blocks of width {width} from place 0 on, "
            f"got {own.dtype} of {own.width} from {own.start} on"
        )
    if not 0 <= own.stop <= BLOCK * len(own.table):
        raise ValueError(f"own: places 0 .. {own.stop} lie outside {len(own.table)} blocks of {BLOCK}")
    return FreshKeyValues(count=own.stop), _checked(own.table)


def _check_heads(
    heads: int, width: int, kv_heads: int, keys: KeyBlocks | None, own_heads: int | None
) -> None:
    if kv_heads < 1 or heads % kv_heads or own_heads not in (None, kv_heads):
        raise ValueError(f"{heads} query heads cannot share {kv_heads} key-value heads")
    if keys is None:
        return
    if keys.width != width:
        raise ValueError(f"keys of width {keys.width} cannot meet queries of width {width}")
    if not 0 <= keys.start <= keys.stop <= BLOCK * len(keys.table):
        raise ValueError(
            f"places {keys.start} .. {keys.stop} lie outside {len(keys.table)} blocks of {BLOCK}"
        )


def _checked(table: np.ndarray) -> np.ndarray:
    if table.dtype != np.uint64 or table.ndim != 1:
        raise ValueError(
            f"blocks: expected a table of uint64 addresses, got {table.dtype} {list(table.shape)}"
        )
    return np.ascontiguousarray(table)


def _fresh(k: Tensor, v: Tensor, width: int) -> FreshKeyValues:
    fits = (
        k.dim() == 3 and k.shape == v.shape and k.shape[-1] == width and k.dtype == v.dtype == torch.float32
    )
    if not fits or k.stride(-1) != 1 or v.stride(-1) != 1 or k.device.type != "cpu":
        raise ValueError(
            f"k, v: expected fp32 [kv_heads, N, {width}] on the CPU, "
            f"got {k.dtype} {list(k.shape)} and {v.dtype} {list(v.shape)}"
        )
    strides = k.stride(1), k.stride(0), v.stride(1), v.stride(0)
    return FreshKeyValues(pointer(k), pointer(v), *strides, k.shape[1])


__all__ = ["BLOCK", "KINDS", "KeyBlocks", "append_blocks", "attention", "block_bytes"]
