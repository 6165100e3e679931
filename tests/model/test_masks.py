"""Who sees whom: the masks against the rules written out pair by pair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from canvaslm.model.masks import block_of, context_mask, encode_mask
from tests.second_family import HoleConfig
from tests.tiny import tiny_config

# Positions as a padded batch has them: -1 anywhere, and in no order that a mask could lean on.
POSITIONS = st.lists(st.integers(-1, 12), min_size=1, max_size=10)
WINDOWS = st.none() | st.integers(1, 13)
BLOCKS = st.integers(1, 7)
Rule = Callable[[int, int], bool]  # (position of a query, position of a key) -> whether they meet


def table(queries: list[int], keys: list[int], rule: Rule) -> list[list[bool]]:
    return [[rule(q, k) for k in keys] for q in queries]


def encoded(
    queries: list[int], keys: list[int], window: int | None, block: int | None = None
) -> list[list[bool]]:
    mask = encode_mask(torch.tensor([queries]), torch.tensor([keys]), window, block)
    assert mask.shape == (1, 1, len(queries), len(keys))
    return mask[0, 0].tolist()


def seen_by_canvas(first: int, keys: list[int], window: int | None) -> list[bool]:
    mask = context_mask(torch.tensor([first]), torch.tensor([keys]), window)
    assert mask.shape == (1, 1, 1, len(keys))
    return mask[0, 0, 0].tolist()


@settings(max_examples=200, deadline=None)
@given(POSITIONS, POSITIONS, WINDOWS)
def test_encoding_is_causal(queries: list[int], keys: list[int], window: int | None) -> None:
    def rule(q: int, k: int) -> bool:
        if q < 0:
            return True
        return k in range(0 if window is None else max(0, q - window + 1), q + 1)

    assert encoded(queries, keys, window) == table(queries, keys, rule)


@settings(max_examples=200, deadline=None)
@given(POSITIONS, POSITIONS, WINDOWS, BLOCKS)
def test_a_block_sees_all_of_itself_and_what_is_before(
    queries: list[int], keys: list[int], window: int | None, block: int
) -> None:
    def rule(q: int, k: int) -> bool:
        start = q - q % block
        first = 0 if window is None else max(0, start - window + 1)
        return q < 0 or k in range(first, start + block)

    assert encoded(queries, keys, window, block) == table(queries, keys, rule)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 12), POSITIONS, WINDOWS)
def test_every_place_of_a_canvas_sees_the_same_context(
    first: int, keys: list[int], window: int | None
) -> None:
    visible = range(0 if window is None else max(0, first - window + 1), first)
    assert seen_by_canvas(first, keys, window) == [k in visible for k in keys]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 3), BLOCKS, WINDOWS)
def test_a_committed_block_sees_what_its_canvas_saw(number: int, block: int, window: int | None) -> None:
    """Where a commit looks both ways, encoding a canvas gives each token just the neighbours that it had
    while it was denoised."""
    first, keys = number * block, list(range((number + 2) * block))
    own = range(first, first + block)
    canvas = [here or k in own for k, here in enumerate(seen_by_canvas(first, keys, window))]
    assert encoded(list(own), keys, window, block) == [canvas] * block


@given(st.integers(1, 12), WINDOWS)
def test_blocks_of_one_token_are_causal(length: int, window: int | None) -> None:
    places = list(range(length))
    assert encoded(places, places, window, 1) == encoded(places, places, window)


def test_the_window_counts_the_token_itself() -> None:
    """Spelled out: a window of three is oneself and two before; a canvas at 5 sees two before it."""
    assert encoded([0, 2, 5], list(range(6)), 3) == [
        [True, False, False, False, False, False],
        [True, True, True, False, False, False],
        [False, False, False, True, True, True],
    ]
    assert seen_by_canvas(5, list(range(8)), 3) == [False, False, False, True, True, False, False, False]
    assert not any(seen_by_canvas(5, list(range(8)), 1))


def test_rows_of_a_batch_have_their_own_positions() -> None:
    queries, keys = torch.tensor([[0, 1], [-1, 0]]), torch.tensor([[0, 1], [-1, 0]])
    assert encode_mask(queries, keys, None)[:, 0].tolist() == [
        [[True, False], [True, True]],
        [[True, True], [False, True]],  # padding looks at anything, and nothing looks at padding
    ]
    assert context_mask(torch.tensor([1, 2]), keys, None)[:, 0, 0].tolist() == [[True, False], [False, True]]


@settings(max_examples=100, deadline=None)
@given(POSITIONS, WINDOWS, st.none() | BLOCKS)
def test_no_query_of_the_keys_themselves_sees_nothing(
    positions: list[int], window: int | None, block: int | None
) -> None:
    """A softmax over nothing would be NaN: every token sees itself at least, padding too."""
    for i, row in enumerate(encoded(positions, positions, window, block)):
        assert row[i]


@pytest.mark.parametrize("length", [8, 16])
def test_only_families_that_commit_in_blocks_have_them(length: int) -> None:
    assert block_of(tiny_config(canvas_length=length)) is None
    assert block_of(replace(HoleConfig(), canvas_length=length)) == length
