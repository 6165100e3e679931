"""Attention of the native kernels over packed keys, against a softmax written out in fp64."""

from __future__ import annotations

import ctypes
import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from canvaslm.ops import cpu
from canvaslm.ops.attention import dequantise_rows, quantise_rows

from .test_products import error

if TYPE_CHECKING:
    from canvaslm.ops.cpu.attention import KeyBlocks

pytestmark = pytest.mark.skipif(not cpu.available(), reason=f"no native kernels: {cpu.problem()}")

BOUNDS = {torch.int16: 1e-3, torch.int8: 2e-2}
SHAPES = [(4, 2, 33, 300, 256), (4, 1, 20, 100, 512), (2, 2, 7, 5, 32), (4, 2, 64, 700, 40), (1, 1, 1, 1, 2)]


def reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """q [heads, L, D]; k, v [kv_heads, N, D]; mask [L, N] or None -> [L, heads * D]."""
    repeat = q.shape[0] // k.shape[0]
    k, v = (t.double().repeat_interleave(repeat, 0) for t in (k, v))
    scores = q.double() @ k.transpose(1, 2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1).nan_to_num(0) @ v).transpose(0, 1).flatten(1)


def tensors(
    heads: int, kv_heads: int, length: int, keys: int, width: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(heads, length, width, generator=g)
    k = torch.randn(kv_heads, keys, width, generator=g) * 3 / width**0.5
    return q, k, torch.randn(kv_heads, keys, width, generator=g)


class Blocks:
    """Blocks of one layer, full of bytes that must not matter."""

    def __init__(self, kv_heads: int, width: int, dtype: torch.dtype, tokens: int) -> None:
        from canvaslm.ops.cpu.attention import BLOCK, block_bytes
        from canvaslm.ops.cpu.memory import MemoryBlock

        self.kv_heads, self.width, self.dtype = kv_heads, width, dtype
        size = block_bytes(dtype, kv_heads, width)
        self.pieces = [MemoryBlock(size) for _ in range(-(-tokens // BLOCK))]
        for piece in self.pieces:
            ctypes.memset(piece.address, 0xFF, size)  # NaN as a scale
        self.table = np.array([piece.address for piece in self.pieces], np.uint64)

    def write(
        self, k: torch.Tensor, v: torch.Tensor, first: int = 0, places: torch.Tensor | None = None
    ) -> Blocks:
        from canvaslm.ops.cpu.attention import append_blocks

        append_blocks(k, v, self.dtype, self.table, first, places)
        return self

    def seen(self, start: int, stop: int) -> KeyBlocks:
        from canvaslm.ops.cpu.attention import KeyBlocks

        return KeyBlocks(self.table, self.dtype, self.kv_heads, self.width, start, stop, self)

    def raw(self) -> list[bytes]:
        return [ctypes.string_at(piece.address, piece.nbytes) for piece in self.pieces]


def packed(k: torch.Tensor, v: torch.Tensor, dtype: torch.dtype = torch.int16) -> Blocks:
    return Blocks(k.shape[0], k.shape[2], dtype, k.shape[1]).write(k, v)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int8])
@pytest.mark.parametrize(("heads", "kv_heads", "length", "keys", "width"), SHAPES)
def test_context_matches_fp64(
    isa: str, heads: int, kv_heads: int, length: int, keys: int, width: int, dtype: torch.dtype
) -> None:
    from canvaslm.ops.cpu.attention import attention

    q, k, v = tensors(heads, kv_heads, length, keys, width)
    got = attention(q, packed(k, v, dtype).seen(0, keys))
    assert error(got, reference(q, k, v)) < BOUNDS[dtype]


@pytest.mark.parametrize(("heads", "kv_heads", "length", "keys", "width"), SHAPES)
def test_keys_of_its_own_match_fp64(
    isa: str, heads: int, kv_heads: int, length: int, keys: int, width: int
) -> None:
    from canvaslm.ops.cpu.attention import attention

    q, k, v = tensors(heads, kv_heads, length, keys, width)
    assert error(attention(q, own=(k, v)), reference(q, k, v)) < 1e-3


@pytest.mark.parametrize(("start", "stop"), [(0, 133), (70, 133), (256, 300), (255, 300), (0, 256)])
def test_context_and_canvas_are_one_sequence_in_any_stride(isa: str, start: int, stop: int) -> None:
    from canvaslm.ops.cpu.attention import attention

    q, k, v = tensors(4, 2, 20, 400, 64)
    by_token = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in (q, k, v)]
    context = Blocks(2, 64, torch.int16, stop).write(by_token[1][:, :stop], by_token[2][:, :stop])
    got = attention(by_token[0], context.seen(start, stop), (by_token[1][:, 300:], by_token[2][:, 300:]))
    kept = torch.cat((torch.arange(start, stop), torch.arange(300, 400)))
    assert error(got, reference(q, k[:, kept], v[:, kept])) < 1e-3


@pytest.mark.parametrize("window", [None, 1, 50, 300])
@pytest.mark.parametrize("dtype", [torch.int16, torch.int8])
def test_causal_and_sliding_masks(isa: str, window: int | None, dtype: torch.dtype) -> None:
    from canvaslm.ops.cpu.attention import attention

    first = 210
    q, k, v = tensors(2, 1, 330, 540, 32)
    at, key = torch.arange(330)[:, None] + first, torch.arange(540)[None]
    mask = (key <= at) & (key > at - (window or 10_000))
    got = attention(q, packed(k, v, dtype).seen(0, 540), first_query=first, window=window)
    assert error(got, reference(q, k, v, mask)) < BOUNDS[dtype]


@pytest.mark.parametrize("spread", [1.0, 0.1])
def test_heavy_tails_and_sharp_or_flat_scores_stay_accurate(isa: str, spread: float) -> None:
    """One value in a thousand is a hundred times larger, one token is an outlier, one key is zero."""
    from canvaslm.ops.cpu.attention import attention

    q, k, v = tensors(2, 1, 50, 600, 64)
    q, k, v = q * 10 * spread, k.clone(), v.clone()
    v[torch.rand(v.shape, generator=torch.Generator().manual_seed(1)) < 1e-3] *= 100
    v[:, 17, 3], v[:, 18], k[:, 5] = 500.0, 0.0, 0.0
    assert error(attention(q, packed(k, v).seen(0, 600)), reference(q, k, v)) < 1e-3


def test_int8_is_what_its_twin_rounds_to(isa: str) -> None:
    from canvaslm.ops.cpu.attention import attention

    q, k, v = tensors(4, 2, 40, 400, 64)
    rounded = [dequantise_rows(*quantise_rows(t), torch.float32) for t in (k, v)]
    got = attention(q, packed(k, v, torch.int8).seen(0, 400))
    assert error(got, reference(q, *rounded)) < 1e-3
    assert 2e-3 < error(reference(q, *rounded), reference(q, k, v)) < 2e-2


@pytest.mark.parametrize("dtype", [torch.int16, torch.int8])
@pytest.mark.parametrize("cuts", [[600], [1, 255, 256, 88], [37] * 16 + [8], [511, 89]])
def test_tokens_are_packed_alike_however_they_are_cut(isa: str, cuts: list[int], dtype: torch.dtype) -> None:
    """Written in pieces, the last ones over places that held others before: byte for byte the same."""
    from canvaslm.ops.cpu.attention import attention

    q, k, v = tensors(4, 2, 600, 600, 40)
    whole, pieces = packed(k, v, dtype), Blocks(2, 40, dtype, 600)
    at, rows = 0, []
    for count in cuts:
        part = slice(at, at + count)
        padded = min(600, at + count + 15)
        pieces.write(-k[:, at:padded], -v[:, at:padded], at)  # padding that the next piece writes over
        pieces.write(k[:, part], v[:, part], at)
        rows.append(attention(q[:, part], pieces.seen(0, at + count), first_query=at, window=300))
        at += count
    assert pieces.raw() == whole.raw()
    assert torch.equal(torch.cat(rows), attention(q, whole.seen(0, 600), first_query=0, window=300))


@pytest.mark.parametrize("dtype", [torch.int16, torch.int8])
@pytest.mark.parametrize("first", [0, 3])
def test_some_places_are_written_beside_others(isa: str, dtype: torch.dtype, first: int) -> None:
    """Byte for byte as if all had been written at once, pairs and runs across blocks included."""
    _, k, v = tensors(4, 2, 1, 520, 40)
    whole, some = Blocks(2, 40, dtype, 523).write(k, v, first), Blocks(2, 40, dtype, 523).write(-k, -v, first)
    chosen = torch.rand(520, generator=torch.Generator().manual_seed(1)) < 0.5
    chosen[[0, 60, 61, 62, 63, 64, 65, 255, 256, 519]] = True
    for part in (chosen, ~chosen, torch.zeros_like(chosen)):
        (places,) = part.nonzero(as_tuple=True)
        some.write(k[:, places], v[:, places], first, places)
    assert some.raw() == whole.raw()
    with pytest.raises(ValueError, match="expected 2 ascending"):
        some.write(k[:, :2], v[:, :2], 0, torch.tensor([4, 4]))
    with pytest.raises(ValueError, match="outside 3 blocks"):
        some.write(k[:, :2], v[:, :2], first, torch.tensor([4, 768]))


@pytest.mark.parametrize(("heads", "kv_heads", "length", "keys", "width"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.int16, torch.int8])
def test_own_keys_may_lie_packed(
    isa: str, dtype: torch.dtype, heads: int, kv_heads: int, length: int, keys: int, width: int
) -> None:
    """The same bits as packing them in the call; some of the queries get the bits that they get among all."""
    from canvaslm.ops.cpu.attention import attention

    q, k, v = tensors(heads, kv_heads, length, 2 * keys, width)
    context, own = packed(k[:, :keys], v[:, :keys], dtype).seen(0, keys), (k[:, keys:], v[:, keys:])
    kept = packed(*own).seen(0, keys)
    whole = attention(q, context, own)
    assert torch.equal(attention(q, context, kept), whole)
    assert torch.equal(attention(q[:, ::3], context, kept), whole[::3])
    assert torch.equal(attention(q, own=kept), attention(q, own=own))


@pytest.mark.parametrize("dtype", [torch.int16, torch.int8])
def test_nothing_depends_on_keys_that_may_not_be_seen(isa: str, dtype: torch.dtype) -> None:
    from canvaslm.ops.cpu.attention import attention

    q, k, v = tensors(2, 1, 40, 560, 64)
    before = packed(k, v, dtype)
    causal = attention(q, before.seen(0, 560), first_query=290)
    canvas = attention(q, before.seen(150, 331), (k[:, :70], v[:, :70]))
    changed = (
        packed(k, v, dtype)
        .write(k[:, :229] * 1e3, v[:, :229] * 1e6, 331)
        .write(k[:, :150] * 50, v[:, :150] * 99)
    )
    assert torch.equal(canvas, attention(q, changed.seen(150, 331), (k[:, :70], v[:, :70])))
    later = packed(k, v, dtype).write(k[:, :229] * 1e3, v[:, :229] * 1e6, 331)
    assert torch.equal(causal, attention(q, later.seen(0, 560), first_query=290))


def test_blocks_too_unlikely_to_matter_are_left_out_row_by_row(isa: str) -> None:
    """Even rows look at the first block only, odd ones at the second; the third is
    next to nothing for both."""
    from canvaslm.ops.cpu.attention import attention

    q, k, v = tensors(2, 1, 48, 700, 64)
    k = k * 0.1
    k[:, :256, 0], k[:, 256:512, 1], k[:, 512:, :2] = 6.0, 6.0, -6.0
    q[:, 0::2, 0], q[:, 0::2, 1], q[:, 1::2, 0], q[:, 1::2, 1] = 6.0, 0.0, 0.0, 6.0
    context = packed(k, v).seen(0, 700)
    got = attention(q, context)
    assert error(got, reference(q, k, v)) < 1e-3
    assert torch.equal(got[3:40:2], attention(q[:, 3:40:2], context))


def test_blocks_may_lie_anywhere(isa: str) -> None:
    from canvaslm.ops.cpu.attention import attention

    q, k, v = tensors(2, 1, 40, 700, 64)
    straight, turned = Blocks(1, 64, torch.int16, 700), Blocks(1, 64, torch.int16, 700)
    turned.table = turned.table[::-1]  # a view with a stride of its own
    assert torch.equal(*(attention(q, blocks.write(k, v).seen(0, 700)) for blocks in (straight, turned)))


def test_nothing_to_see_gives_zeros() -> None:
    from canvaslm.ops.cpu.attention import attention

    q, k, v = tensors(2, 1, 3, 4, 32)
    assert torch.equal(attention(q, own=(k[:, :0], v[:, :0])), torch.zeros(3, 64))
    assert torch.equal(attention(q, packed(k, v).seen(2, 2)), torch.zeros(3, 64))


def test_a_query_depends_on_no_other() -> None:
    from canvaslm.ops.cpu.attention import attention

    q, k, v = tensors(4, 2, 100, 300, 64)
    context = packed(k[:, :270], v[:, :270]).seen(3, 270)
    own = (k[:, 270:], v[:, 270:])
    whole, before = attention(q, context, own), cpu.threads()
    try:
        for threads in (1, 3):
            cpu.set_threads(threads)
            assert torch.equal(attention(q[:, 31:40], context, own), whole[31:40])
    finally:
        cpu.set_threads(before)


def test_wrong_shapes_are_named() -> None:
    from canvaslm.ops.cpu.attention import attention

    q, k, v = tensors(4, 2, 3, 4, 32)
    context = packed(k, v)
    with pytest.raises(ValueError, match="k, v: expected"):
        attention(q, own=(k, v[:, :3]))
    with pytest.raises(ValueError, match="3 query heads"):
        attention(q[:3], own=(k, v))
    with pytest.raises(ValueError, match="q: expected"):
        attention(q.half(), own=(k, v))
    with pytest.raises(ValueError, match="outside 1 blocks"):
        attention(q, context.seen(0, 257))
    with pytest.raises(ValueError, match="outside 1 blocks"):
        context.write(k, v, 253)
    with pytest.raises(ValueError, match="own: expected int16"):
        attention(q, own=packed(k, v, torch.int8).seen(0, 4))
    with pytest.raises(ValueError, match="257 lie outside 1 blocks"):
        attention(q, own=context.seen(0, 257))
    with pytest.raises(ValueError, match="width 32 cannot meet"):
        attention(q[..., :16], context.seen(0, 4))


def test_memory_is_given_back_with_the_last_piece() -> None:
    from canvaslm.ops.cpu import memory

    for size in (64, 100_000, 5_300_000):
        before = memory.held()
        pieces = [memory.MemoryBlock(size) for _ in range(5)]
        assert len({piece.address for piece in pieces}) == 5
        assert all(piece.address % 64 == 0 for piece in pieces)
        spans = sorted((piece.address, piece.address + piece.nbytes) for piece in pieces)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
        ctypes.memset(pieces[0].address, 7, size)
        copy = pieces[0].copy()
        assert ctypes.string_at(copy.address, size) == b"\x07" * size
        grown = memory.held() - before
        assert grown >= 6 * size or grown % (2 << 20) < 2 << 20
        del pieces[1:]
        assert memory.held() > before
        del pieces, copy
        assert memory.held() == before
