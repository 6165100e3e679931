from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canvaslm.cli.canvas_view import (
    SHADES,
    Cell,
    FrameState,
    Line,
    Style,
    StyledText,
    cells_of,
    render,
    style_of,
)
from canvaslm.cli.glyphs import cell_width
from canvaslm.types import Draft

from .fake import END, FakeVocabulary


def _draft(vocabulary: FakeVocabulary, *texts: str | bytes, accepted: int = 0, canvas: int = 0) -> Draft:
    tokens = tuple(END if text == "<end>" else vocabulary.id_of(text) for text in texts)
    count = len(tokens)
    return Draft(
        0, canvas, 3, 8, 0.71, tokens,
        tuple(0.0 if i < accepted else 1.0 for i in range(count)),
        tuple(i < accepted for i in range(count)),
        tuple(i == count - 1 for i in range(count)),
    )  # fmt: skip


def _state(*texts: str | bytes, tail: str = "", accepted: int = 0) -> FrameState:
    vocabulary = FakeVocabulary()
    draft = _draft(vocabulary, *texts, accepted=accepted)
    return FrameState(tail=tail).drafted(draft, vocabulary, (END,), 0.0)


def _text(line: Line) -> str:
    return "".join(span.text for span in line)


def test_a_frame_is_the_canvas_and_a_status_line() -> None:
    lines = render(_state("Hello", " world", accepted=1), 80, 10)
    assert [_text(line) for line in lines] == [
        "Hello world",
        "━━━━╌╌╌╌╌╌╌╌ canvas 1 · step 3 of 8 · T 0.71 · mean entropy 0.50 · 1/2 accepted",
    ]


def test_settled_and_open_places_differ_without_colour() -> None:
    settled, opened, changed = (
        Cell("a", True, False, 0.0),
        Cell("b", False, False, 2.5),
        Cell("c", False, True, 0.5),
    )
    assert style_of(settled, color=False) == Style()
    assert style_of(opened, color=False) == Style(dim=True, italic=True)
    assert style_of(changed, color=False) == Style(dim=True, italic=True, underline=True)
    assert style_of(settled, color=True) == Style()
    assert style_of(opened, color=True) == Style(italic=True, shade=len(SHADES))


@pytest.mark.parametrize(("entropy", "shade"), [(0.0, 0), (0.02, 1), (0.3, 2), (0.9, 3), (1.5, 4), (9.0, 5)])
def test_entropy_is_the_shade(entropy: float, shade: int) -> None:
    assert style_of(Cell("a", True, False, entropy), color=True).shade == shade


def test_neighbours_of_one_style_are_one_span() -> None:
    line = render(_state("a", "b", "c", "d", accepted=3), 80, 10)[0]
    assert [span.text for span in line] == ["abc", "d"]


def test_places_after_the_end_are_dots_and_other_controls_are_named() -> None:
    assert _text(render(_state("a", "<end>", "<end>"), 80, 10)[0]) == "a··"
    vocabulary = FakeVocabulary()
    draft = _draft(vocabulary, "a", "<end>")
    assert [cell.text for cell in cells_of(draft, vocabulary, ends=())] == ["a", "<end>"]


def test_a_character_made_of_byte_tokens_appears_whole() -> None:
    cells = cells_of(_draft(v := FakeVocabulary(), b"\xe6\x97", b"\xa5", "x", b"\xe6"), v)
    assert [cell.text for cell in cells] == ["", "日", "x", "\ufffd"]


def test_escapes_from_the_model_are_shown_not_sent() -> None:
    assert _text(render(_state("\x1b[2J"), 80, 10)[0]) == "␛[2J"
    assert _text(render(FrameState(tail="\x1b[2J"), 80, 10)[0]) == "␛[2J"


def test_the_canvas_goes_on_where_the_committed_text_stopped() -> None:
    first, second, _ = render(_state(" is", " blue", tail="The sky"), 10, 10)
    assert (_text(first), _text(second)) == ("The sky is", "blue")
    assert first[0] == StyledText("The sky")


def test_the_status_line_gives_way_to_a_narrow_terminal() -> None:
    state = _state("a")
    assert _text(render(state, 30, 10)[-1]) == "━━━╌╌╌╌ canvas 1 · step 3 of 8"
    assert _text(render(state, 25, 10)[-1]) == "canvas 1 · step 3 of 8"
    assert _text(render(state, 8, 10)[-1]) == "canvas 1"
    assert _text(render(state, 80, 10, unicode=False)[-1]).startswith("####........ canvas 1 - step 3 of 8")


def test_elapsed_seconds_are_shown_when_it_takes_long() -> None:
    state = _state("a")
    assert state.status is not None
    slow = replace(state, status=replace(state.status, elapsed=44.0))
    assert _text(render(slow, 100, 10)[-1]).startswith("━━━━╌╌╌╌╌╌╌╌ canvas 1 · step 3 of 8 · 44 s")
    assert " s " not in _text(render(state, 100, 10)[-1])


def test_a_tall_canvas_is_cut_around_its_first_open_line() -> None:
    texts = [f"line{i}\n" for i in range(30)]
    top = [_text(line) for line in render(_state(*texts), 40, 8)]
    assert len(top) == 8
    assert top[0] == "line0"
    assert top[6] == "... 25 lines below"
    middle = [_text(line) for line in render(_state(*texts, accepted=15), 40, 8)]
    assert "line15" in middle
    assert (middle[0], middle[6]) == ("... 14 lines above", "... 12 lines below")
    end = [_text(line) for line in render(_state(*texts, accepted=30), 40, 8)]
    assert "line29" in end


def test_the_region_does_not_shrink_while_a_canvas_lasts() -> None:
    vocabulary = FakeVocabulary()
    tall = FrameState().drafted(_draft(vocabulary, "a\n", "b\n", "c"), vocabulary, (), 0.0).fitted(40)
    short = tall.drafted(_draft(vocabulary, "a", "b", "c"), vocabulary, (), 0.0)
    assert len(render(short, 40, 10)) == 4
    assert len(render(short.committed(0), 40, 10)) == 1
    assert len(render(short, 30, 10)) == 2  # a new width forgets


@settings(max_examples=200)
@given(
    st.lists(
        st.sampled_from(["a", " word", "\n", "日本語", "\x1b[1m", "👍🏽", "e\u0301", "y" * 50, "\t"]),
        max_size=60,
    ),
    st.text(alphabet="ab 日\n", max_size=60),
    st.integers(1, 100),
    st.integers(1, 30),
    st.integers(0, 60),
)
def test_a_frame_never_exceeds_the_terminal(
    texts: list[str], tail: str, width: int, height: int, accepted: int
) -> None:
    lines = render(_state(*texts, tail=tail, accepted=accepted), width, height)
    assert len(lines) <= max(height, 2)
    for line in lines:
        assert sum(cell_width(span.text) for span in line) <= max(width, 4)
        assert all("\n" not in span.text and "\x1b" not in span.text for span in line)


def test_a_state_is_not_changed_by_drawing() -> None:
    state = _state(*(f" word{i}" for i in range(40)))
    assert render(state, 30, 20) == render(state, 30, 20)
    fitted = state.fitted(30)
    assert render(fitted, 30, 20) == render(state, 30, 20)
    assert fitted.fitted(30) == fitted
