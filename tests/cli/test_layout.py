from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from canvaslm.cli.glyphs import cell_width
from canvaslm.cli.layout import Layout, lay_out, pieces

TOKENS = st.lists(
    st.sampled_from(["a", " the", " longer", "\n", "日本", "", "ing", " 👍", "x" * 30, "e\u0301", "  "])
)


def _layout(texts: list[str], width: int, breaks: frozenset[int] = frozenset()) -> Layout:
    return lay_out(pieces(enumerate(texts), width), width, breaks)


def _lines(layout: Layout) -> list[str]:
    return ["".join(piece.text for piece in row) for row in layout.rows]


def _row_of(layout: Layout) -> dict[int, int]:
    return {piece.place: number for number, row in enumerate(layout.rows) for piece in row}


def test_words_are_kept_whole_and_lose_the_space_at_a_line_start() -> None:
    assert _lines(_layout(["One", " two", " thr", "ee", " four"], 10)) == ["One two", "three four"]


def test_newlines_end_lines_and_keep_the_space_that_follows() -> None:
    assert _lines(_layout(["a\n", " b", "\n\n", "c"], 10)) == ["a", " b", "", "c"]


def test_what_is_wider_than_the_terminal_is_cut() -> None:
    assert _lines(_layout(["x" * 25], 10)) == ["x" * 10, "x" * 10, "x" * 5]
    assert _lines(_layout(["日" * 5], 5)) == ["日日", "日日", "日"]


@settings(max_examples=300)
@given(TOKENS, st.integers(4, 40))
def test_no_line_is_too_wide_and_no_text_is_lost(texts: list[str], width: int) -> None:
    layout = _layout(texts, width)
    assert all(cell_width(line) <= width for line in _lines(layout))
    solid = "".join("".join(_lines(layout)).split())
    assert solid == "".join("".join(texts).split())


@settings(max_examples=300)
@given(TOKENS, TOKENS, st.integers(4, 40))
def test_laying_out_again_changes_nothing(before: list[str], texts: list[str], width: int) -> None:
    kept = _layout(before, width).breaks
    layout = _layout(texts, width, kept)
    assert _layout(texts, width, layout.breaks) == layout


def test_a_narrower_token_moves_nothing_to_another_line() -> None:
    texts = [f" word{i}" for i in range(30)]
    first = _layout(texts, 40)
    changed = texts.copy()
    changed[2] = " w"
    assert _row_of(_layout(changed, 40, first.breaks)) == _row_of(first)
    assert _row_of(_layout(changed, 40)) != _row_of(first)  # as it would be without memory


def test_a_wider_token_moves_lines_only_until_a_kept_break() -> None:
    texts = [f" word{i}" for i in range(30)]
    first = _layout(texts, 40)
    changed = texts.copy()
    changed[2] = " words" + "s" * 8
    rows, before = _row_of(_layout(changed, 40, first.breaks)), _row_of(first)
    assert rows[29] - before[29] <= 1
    assert [rows[place] for place in range(3)] == [0, 0, 0]


def test_a_line_that_became_too_empty_is_wrapped_anew() -> None:
    texts = [f" word{i}" for i in range(12)]
    first = _layout(texts, 40)
    second_line = min(place for place in first.breaks)
    emptied = ["" if place < second_line - 1 else text for place, text in enumerate(texts)]
    assert _row_of(_layout(emptied, 40, first.breaks))[second_line] == 0
