"""Filling holes: what was given comes back byte for byte, whatever the text, and options do what they say."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import canvaslm
from canvaslm.errors import PromptTooLong, UsageError
from canvaslm.session import Session
from canvaslm.session.template import Hole, Template, escape, parse
from canvaslm.types import Draft, Filled

ASKED = "Write a function triple that multiplies x by 3."
WHOLE = "def triple(x):\n    return x * 3"
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.lists(
    st.sampled_from(
        [
            "<hole>",
            "\\",
            "<turn|>",
            "<eos>",
            "<|channel>",
            "<0x0A>",
            "ret",
            "urn ",
            "▁",
            "é",
            "e\u0301",
            "😀",
            "\n",
        ]
    ),
    max_size=8,
).map("".join)


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with canvaslm.load() as loaded:
        yield loaded


# -- given text ------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(ANY_TEXT, min_size=2, max_size=4), st.integers(0, 2**40))
def test_given_text_comes_back_byte_for_byte(session: Session, texts: list[str], seed: int) -> None:
    template = Template(tuple(texts), (Hole(most=3),) * (len(texts) - 1))
    filled = session.fill(template, seed=seed, max_denoising_steps=1)
    assert filled.text.encode() == template.whole(filled.holes).encode()
    at = 0
    for text, hole in zip(texts, (*filled.holes, ""), strict=True):
        assert filled.text[at : at + len(text)] == text
        at += len(text) + len(hole)
    assert at == len(filled.text)


@settings(max_examples=200, deadline=None)
@given(st.lists(ANY_TEXT, min_size=2, max_size=4), st.integers(1, 99))
def test_a_template_reads_back_as_it_was_written(texts: list[str], most: int) -> None:
    template = Template(tuple(texts), (Hole(most=most), *[Hole()] * (len(texts) - 2)))
    assert parse(template.written) == template


def test_what_looks_like_a_hole_or_a_marker_stays_text(session: Session) -> None:
    filled = session.fill(r"a \<hole> b <turn|><hole max=2> c<eos>", seed=0)
    assert filled.text == f"a <hole> b <turn|>{filled.holes[0]} c<eos>"
    assert parse(escape("<hole>") + "<hole>").given == ("<hole>", "")


@pytest.mark.parametrize("cut", range(len(WHOLE) + 1))
def test_a_hole_anywhere_in_an_answer(session: Session, cut: int) -> None:
    prefix, suffix = WHOLE[:cut], WHOLE[cut + 6 :]
    filled = session.infill(prefix, suffix, instruction=ASKED, seed=cut)
    assert filled.text == prefix + filled.holes[0] + suffix
    assert filled.finish_reason == "stop"


def test_holes_are_filled_with_what_belongs_there(session: Session) -> None:
    filled = session.infill("def triple(x):\n    return", instruction=ASKED, seed=0)
    assert filled.text == WHOLE
    filled = session.infill("def triple(", " * 3", instruction=ASKED, seed=0)
    assert filled.text == WHOLE
    filled = session.fill("def <hole>(<hole>):\n    return x * <hole>", instruction=ASKED, seed=0)
    assert filled.text == WHOLE and filled.holes == ("triple", "x", "3")


def test_several_holes_share_a_canvas(session: Session) -> None:
    filled = session.fill("def <hole>(<hole>):\n    return <hole> * 3", instruction=ASKED, seed=0)
    assert filled.text == WHOLE and len(filled.canvases) == 1


def test_the_same_seed_gives_the_same_text(session: Session) -> None:
    one, two = (session.infill("3 ", " 9", seed=5) for _ in range(2))
    assert one.holes == two.holes and one.seed == two.seed == 5
    assert 0 <= session.infill("3 ", " 9").seed < 2**32


def test_an_edit_changes_only_its_spans(session: Session) -> None:
    text = WHOLE.replace("3", "99")
    spans = [(text.index("99"), len(text))]
    edited = session.edit(text, spans, ASKED, seed=0)
    assert edited.text == WHOLE
    with pytest.raises(UsageError, match="not in order, or outside"):
        session.edit(text, [(4, 9), (2, 3)], ASKED)


def test_usage_counts_given_text_with_the_prompt(session: Session) -> None:
    alone = session.prepare(ASKED, seed=0)
    filled = session.infill("def triple(x):\n    return", "\n", instruction=ASKED, seed=0)
    assert filled.usage.prompt_tokens > len(alone.tokens)
    assert filled.usage.completion_tokens > 0 and filled.timings.total > 0


# -- longer than a canvas --------------------------------------------------------------------------------


def test_text_longer_than_a_canvas_on_both_sides(session: Session) -> None:
    numbers = [str(n) for n in range(100)]
    prefix, suffix = " ".join(numbers[:48]) + " ", " " + " ".join(numbers[52:])
    filled = session.infill(prefix, suffix, instruction="Count from 0 to 99", seed=0)
    assert filled.text == prefix + filled.holes[0] + suffix
    assert filled.usage.prompt_tokens > 2 * session.engine.config.canvas_length


def test_a_hole_at_the_end_may_take_several_canvases(session: Session) -> None:
    filled = session.infill("11 12 13", instruction="Count from 11 to 50", seed=0)
    assert len(filled.canvases) > 1
    assert filled.text.startswith("11 12 13 14 15 16 17 ")
    assert filled.usage.completion_tokens > session.engine.config.canvas_length


def test_a_hole_that_ends_by_its_limit_says_so(session: Session) -> None:
    filled = session.infill("11 12 13", instruction="Count from 11 to 50", max_new_tokens=4, seed=0)
    assert filled.finish_reason == "length" and 0 < filled.usage.completion_tokens <= 5


def test_holes_that_cannot_be_are_refused_with_both_numbers(session: Session) -> None:
    with pytest.raises(
        UsageError, match=r"hole 2 may have 500 tokens.* at most 252, as 4 canvases of 64 hold"
    ):
        session.fill("a<hole> b <hole max=500> c d e f")
    with pytest.raises(UsageError, match="0 holes"):
        session.fill("nothing to fill")
    with pytest.raises(UsageError, match="hole 1 has max=0"):
        session.fill("a<hole max=0>")
    with pytest.raises(UsageError, match="half a surrogate pair at character 1"):
        session.infill("a\ud800")
    with pytest.raises(UsageError, match="unknown option 'sufix'"):
        session.infill("a", sufix="b")  # type: ignore[call-arg]
    with pytest.raises(PromptTooLong):
        session.infill("a " * 10_000, "b")


def test_a_shorter_canvas_does_as_well(session: Session) -> None:
    for canvas_length in (48, 32):
        filled = session.infill("def triple(", " * 3", instruction=ASKED, seed=0, canvas_length=canvas_length)
        assert filled.text == WHOLE


# -- options ---------------------------------------------------------------------------------------------


def test_a_stop_string_ends_a_hole(session: Session) -> None:
    filled = session.infill("11 12 13", instruction="Count from 11 to 50", stop=" 17", seed=0)
    assert filled.text == "11 12 13 14 15 16"


def test_a_draft_that_is_right_stays(session: Session) -> None:
    for noise in (0.0, 0.8):
        filled = session.infill(
            "def triple(", " * 3", instruction=ASKED, draft="x):\n    return x", draft_noise=noise, seed=1
        )
        assert filled.text == WHOLE
    with pytest.raises(UsageError, match="draft has 2 texts for 1 holes"):
        session.infill("a", "b", draft=["c", "d"])
    with pytest.raises(UsageError, match=r"draft_noise = 1.5 is out of range"):
        session.infill("a", "b", draft="c", draft_noise=1.5)


def test_drafts_hold_the_whole_text(session: Session) -> None:
    *drafts, last = session.stream_fill("def <hole>(x):\n    return x * <hole>", instruction=ASKED, seed=0)
    assert isinstance(last, Filled) and last.text == WHOLE
    assert drafts and all(isinstance(d, Draft) for d in drafts)
    assert all("(x):\n    return x * " in d.text for d in drafts)
