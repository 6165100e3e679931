"""Ranges of characters as ranges of bytes: exactly those characters, no more."""

from __future__ import annotations

import itertools
import random

import pytest

from canvaslm.constrain.expression import LAST, characters
from canvaslm.constrain.utf8 import byte_ranges


def written(low: int, high: int) -> list[bytes]:
    """Every run of bytes that is matched, each once for every time it is."""
    return [
        bytes(run)
        for begin, end in characters([(low, high)]).ranges
        for ranges in byte_ranges(begin, end)
        for run in itertools.product(*(range(first, last + 1) for first, last in ranges))
    ]


EDGES = (0, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, LAST)


@pytest.mark.parametrize("seed", range(60))
def test_a_range_is_its_characters(seed: int) -> None:
    rng = random.Random(seed)
    low = max(0, rng.choice([*EDGES, rng.randrange(LAST)]) - rng.randrange(400))
    high = min(LAST, low + rng.randrange(3000))
    wanted = [chr(c).encode() for c in range(low, high + 1) if not 0xD800 <= c <= 0xDFFF]
    assert sorted(written(low, high)) == sorted(wanted)


def test_all_characters_are_nine_runs() -> None:
    """Table 3-7 of the Unicode standard."""
    runs = [run for low, high in characters([(0, LAST)]).ranges for run in byte_ranges(low, high)]
    assert len(runs) == 9
    assert runs[0] == ((0, 0x7F),)
    assert runs[-1] == ((0xF4, 0xF4), (0x80, 0x8F), (0x80, 0xBF), (0x80, 0xBF))
