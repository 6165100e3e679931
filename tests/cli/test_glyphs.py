from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canvaslm.cli.glyphs import cell_width, clusters, cut, visible

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ntext", "plain\ntext"),
        ("\x1b[31mred", "␛[31mred"),
        ("\x07\x7f\r", "␇␡␍"),
        ("\x9b31m", "\\x9b31m"),
        ("a\u202eb\u2066\ufeff\u200b", "a\\u202eb\\u2066\\ufeff\\u200b"),
        ("\u2028", "\\u2028"),
        ("\U000e0041", "\\U000e0041"),
        ("\ud800", "\ufffd"),
        ("a\tb", "a    b"),
        ("\u00a0\u3000", "\u00a0\u3000"),
        (FAMILY, FAMILY),
        ("日本語 é", "日本語 é"),
    ],
)
def test_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_tabs_can_stay() -> None:
    assert visible("a\tb\x1b", tabs=False) == "a\tb␛"


@given(st.text())
def test_visible_text_holds_no_controls_and_is_stable(text: str) -> None:
    shown = visible(text)
    assert not any((ord(c) < 32 and c != "\n") or 0x7F <= ord(c) < 0xA0 for c in shown)
    assert visible(shown) == shown
    shown.encode()


@pytest.mark.parametrize(
    ("text", "cells"),
    [
        ("abc", [1, 1, 1]),
        ("日本", [2, 2]),
        ("e\u0301x", [1, 1]),
        (FAMILY, [2]),
        ("\u2764\ufe0f", [2]),
        ("\U0001f44d\U0001f3fd", [2]),
        ("\U0001f1eb\U0001f1f7\U0001f1e9\U0001f1ea", [2, 2]),
        ("\u0301", [0]),
    ],
)
def test_clusters(text: str, cells: list[int]) -> None:
    assert [cluster.cells for cluster in clusters(text)] == cells


@given(st.text(alphabet="aé日e\u0301👍 \u200d"), st.integers(0, 12))
def test_cut_fits_and_takes_all_it_can(text: str, width: int) -> None:
    kept = cut(text, width)
    assert text.startswith(kept)
    assert cell_width(kept) <= width
    if kept != text:
        following = clusters(text)[len(clusters(kept))]
        assert cell_width(kept) + following.cells > width


def test_a_wide_character_is_not_halved() -> None:
    assert cut("日本", 3) == "日"
