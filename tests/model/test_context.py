"""Contexts: what is appended stays in order, and attention sees just what the rules say."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from canvaslm.model import PlainContext, RowsContext
from canvaslm.model.config import ModelConfig
from canvaslm.model.context import attend_context
from tests.second_family import HoleConfig
from tests.tiny import tiny_config

SLIDING, FULL = 0, 1  # the tiny configuration's two layers
WINDOW = 8


def heads(config: ModelConfig, layer: int, length: int, rows: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Random queries, keys and values of a layer."""
    width = config.head_dim_of(layer)
    q = torch.randn(rows, config.num_heads, length, width)
    k, v = torch.randn(2, rows, config.kv_heads_of(layer), length, width)
    return q, k, v


@pytest.fixture(autouse=True)
def same_numbers_each_time() -> None:
    torch.manual_seed(8)


def cut_out(tensors: tuple[Tensor, Tensor, Tensor], row: slice, part: slice) -> tuple[Tensor, Tensor, Tensor]:
    """The same rows and tokens of queries, keys and values."""
    q, k, v = tensors
    return q[row, :, part], k[row, :, part], v[row, :, part]


def places(start: int, stop: int, rows: int = 1) -> Tensor:
    return torch.arange(start, stop).expand(rows, -1)


def by_hand(q: Tensor, keys: list[Tensor], values: list[Tensor]) -> list[float]:
    """One head's attention of one query [D] over keys and values [D], in Python's doubles."""
    scores = [sum(float(a) * float(b) for a, b in zip(q, k, strict=True)) for k in keys]
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    total = sum(weights)
    return [
        sum(weight * float(value[d]) for weight, value in zip(weights, values, strict=True)) / total
        for d in range(len(q))
    ]


@pytest.mark.parametrize("layer", [SLIDING, FULL])
def test_encoding_and_denoising_against_a_loop(layer: int) -> None:
    """Eleven tokens are encoded and three denoised behind them: each head's sum, written out."""
    config, before, own = tiny_config(), 11, 3
    context, width = PlainContext(config), config.head_dim_of(layer)
    q, k, v = heads(config, layer, before + own)
    found = attend_context(context, layer, q, k, v, places(0, before + own), before)
    assert found.shape == (1, before + own, config.num_heads * width)
    shared = config.num_heads // config.kv_heads_of(layer)
    for i in range(before + own):
        stop, first = (i + 1, i + 1 - WINDOW) if i < before else (before + own, before - (WINDOW - 1))
        seen = range(max(0, first if layer == SLIDING else 0), stop)
        for head in range(config.num_heads):
            keys, values = ([t[0, head // shared, j] for j in seen] for t in (k, v))
            mine = found[0, i, head * width : (head + 1) * width].tolist()
            assert mine == pytest.approx(by_hand(q[0, head, i], keys, values), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("layer", [SLIDING, FULL])
@pytest.mark.parametrize("cuts", [[1] * 20, [7, 13], [19, 1], [2, 8, 10]])
def test_encoding_in_chunks_is_encoding_at_once(layer: int, cuts: list[int]) -> None:
    config = tiny_config()
    q, k, v = heads(config, layer, 20)
    whole, chunked = PlainContext(config), PlainContext(config)
    expected = whole.encode_attention(layer, q, k, v, places(0, 20))
    at, parts = 0, []
    for count in cuts:
        part = slice(at, at + count)
        parts.append(
            chunked.encode_attention(
                layer, q[:, :, part], k[:, :, part], v[:, :, part], places(at, at + count)
            )
        )
        at += count
    assert torch.allclose(torch.cat(parts, 1), expected, atol=1e-5)
    assert torch.equal(chunked.keys[layer], k) and torch.equal(chunked.values[layer], v)
    assert torch.equal(chunked.positions[layer], places(0, 20))


def test_blocks_encoded_one_by_one_are_those_encoded_at_once() -> None:
    """A family that commits in blocks: a cut between blocks changes nothing; one inside a block does."""
    config = HoleConfig(canvas_length=4)
    q, k, v = heads(config, 0, 12)
    expected = PlainContext(config).encode_attention(0, q, k, v, places(0, 12))

    def cut(*ends: int) -> Tensor:
        context, at, parts = PlainContext(config), 0, []
        for end in ends:
            chunk = cut_out((q, k, v), slice(None), slice(at, end))
            parts.append(context.encode_attention(0, *chunk, places(at, end)))
            at = end
        return torch.cat(parts, 1)

    assert torch.allclose(cut(4, 8, 12), expected, atol=1e-5)
    assert torch.allclose(cut(8, 12), expected, atol=1e-5)
    assert not torch.allclose(cut(6, 12), expected, atol=1e-3)


@pytest.mark.parametrize("layer", [SLIDING, FULL])
def test_denoising_stores_nothing_and_is_the_same_each_time(layer: int) -> None:
    config = tiny_config()
    context = PlainContext(config)
    _, k, v = heads(config, layer, 9)
    context.append(layer, k, v, places(0, 9))
    held = context.keys[layer].clone(), context.values[layer].clone(), context.positions[layer].clone()
    canvas = heads(config, layer, 8)
    first, second = (context.denoise_attention(layer, *canvas, places(9, 17)) for _ in range(2))
    assert torch.equal(first, second)
    for now, before in zip((context.keys, context.values, context.positions), held, strict=True):
        assert torch.equal(now[layer], before)


def test_without_a_context_a_canvas_sees_itself_alone() -> None:
    """As in unconditional sampling: with one place, attention is its own value."""
    config = tiny_config()
    q, k, v = heads(config, FULL, 1)
    found = PlainContext(config).denoise_attention(FULL, q, k, v, places(0, 1))
    shared = config.num_heads // config.kv_heads_of(FULL)
    assert torch.allclose(found, v.repeat_interleave(shared, 1).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("layer", [SLIDING, FULL])
def test_padding_on_the_left_changes_no_row(layer: int) -> None:
    """Rows of 3 and 9 tokens in one batch: each sees what it sees alone, whatever lies in the padding."""
    config, lengths, canvas = tiny_config(), (3, 9), 4
    width = max(lengths)
    q, k, v = heads(config, layer, width, rows=2)
    positions = torch.stack([torch.arange(width) - (width - n) for n in lengths]).clamp(min=-1)
    own = heads(config, layer, canvas, rows=2)
    ends = torch.tensor(lengths)[:, None] + torch.arange(canvas)
    together = PlainContext(config)
    encoded = together.encode_attention(layer, q, k, v, positions)
    denoised = together.denoise_attention(layer, *own, ends)
    for row, length in enumerate(lengths):
        alone, real = PlainContext(config), slice(width - length, None)
        its = slice(row, row + 1)
        mine = cut_out((q, k, v), its, real)
        assert torch.allclose(
            encoded[row, real], alone.encode_attention(layer, *mine, places(0, length))[0], atol=1e-5
        )
        canvas_alone = alone.denoise_attention(layer, *cut_out(own, its, slice(None)), ends[its])
        assert torch.allclose(denoised[row], canvas_alone[0], atol=1e-5)
    assert encoded.isfinite().all() and denoised.isfinite().all()


class Recorder:
    """A context that notes what it is asked, and answers with the positions."""

    def __init__(self, name: str, calls: list[tuple[str, str, int, list[int]]]) -> None:
        self.name, self.calls = name, calls

    def append(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> None:
        self.calls.append((self.name, "append", layer, positions[0].tolist()))

    def encode_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        return self._answer("encode", layer, q, k, v, positions)

    def denoise_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        return self._answer("denoise", layer, q, k, v, positions)

    def _answer(self, kind: str, layer: int, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        assert q.shape[2] == k.shape[2] == v.shape[2] == positions.shape[1]
        # The tokens carry their numbers: a part of q goes with the same part of everything else.
        assert q[0, 0, :, 0].tolist() == k[0, 0, :, 0].tolist() == v[0, 0, :, 0].tolist()
        self.calls.append((self.name, kind, layer, positions[0].tolist()))
        return q[:, 0]


def numbered(length: int) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.arange(float(length))[None, None, :, None]
    return x, x, x


@pytest.mark.parametrize(
    ("encoded", "kinds"), [(0, ["denoise"]), (5, ["encode"]), (2, ["encode", "denoise"])]
)
def test_each_token_is_encoded_or_denoised_and_encoding_comes_first(encoded: int, kinds: list[str]) -> None:
    calls: list[tuple[str, str, int, list[int]]] = []
    found = attend_context(Recorder("a", calls), 3, *numbered(5), places(10, 15), encoded)
    assert [kind for _, kind, _, _ in calls] == kinds
    assert [position for *_, positions in calls for position in positions] == list(range(10, 15))
    assert found[0, :, 0].tolist() == [0, 1, 2, 3, 4]


def test_rows_end_to_end_go_to_their_own_contexts_in_order() -> None:
    calls: list[tuple[str, str, int, list[int]]] = []
    a, b, c = (Recorder(name, calls) for name in "abc")
    rows = RowsContext([(a, 2), (b, 3)], [(c, 1), (a, 2)])
    positions = torch.tensor([[0, 1, 7, 8, 9, 4, 2, 3]])
    found = attend_context(rows, 1, *numbered(8), positions, 5)
    assert calls == [
        ("a", "encode", 1, [0, 1]), ("b", "encode", 1, [7, 8, 9]),
        ("c", "denoise", 1, [4]), ("a", "denoise", 1, [2, 3]),
    ]  # fmt: skip
    assert found[0, :, 0].tolist() == list(range(8))


def test_appending_rows_stores_each_ones_part() -> None:
    calls: list[tuple[str, str, int, list[int]]] = []
    a, b = (Recorder(name, calls) for name in "ab")
    _, k, v = numbered(5)
    RowsContext([(a, 4), (b, 1)], []).append(2, k, v, torch.tensor([[0, 1, 2, 3, 9]]))
    assert calls == [("a", "append", 2, [0, 1, 2, 3]), ("b", "append", 2, [9])]
