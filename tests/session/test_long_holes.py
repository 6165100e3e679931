"""Holes over several canvases: a model that knows the text, the demo model, and limits that are told."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import canvaslm
from canvaslm.demo.holes import edges
from canvaslm.session import Session, filling
from canvaslm.session.filling import FillPlan
from canvaslm.session.rounds import Outcome, Round
from canvaslm.session.template import Hole, Template
from canvaslm.types import CanvasReport, Filled, Finished, Request, Timings, Usage

from .test_infill import ANY_TEXT

ASKED = "Count from 11 to 50"
COUNTED = " ".join(map(str, range(11, 51)))
LONG = " ".join(map(str, range(11, 81)))


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with canvaslm.load() as loaded:
        yield loaded


class Knowing:
    """Stands for an engine whose model knows what the whole text is, and is sure of it at the first step."""

    def __init__(self, session: Session, prompt: int, text: str) -> None:
        self._session, self._prompt = session, prompt
        self._text = session.tokenizer.encode(text)
        self.rounds: list[Round] = []

    def fill(self, plan: FillPlan) -> Filled:
        rounds = plan.rounds()
        asked = next(rounds)
        while True:
            self.rounds.append(asked)
            try:
                asked = rounds.send([self._answer(request) for request in asked.requests])
            except StopIteration as end:
                filled: Filled = end.value
                return filled

    def _answer(self, request: Request) -> Outcome:
        start = len(request.tokens) - self._prompt
        known = [self._token(start + place) for place in range(request.params.max_new_tokens)]
        tokens = [request.given.get(place, token) for place, token in enumerate(known)]
        named = [((token, math.log(0.99)), (0, math.log(0.001))) for token in known]
        end = Finished(0, "length", Usage(), Timings(), 0, (CanvasReport(1, "converged", 0.0, len(tokens)),))
        return Outcome(tokens=tokens, named=list(named), end=end)

    def _token(self, index: int) -> int:
        return self._text[index] if index < len(self._text) else self._session.eos_token_ids[0]


def _known(session: Session, template: Template, text: str, **options: Any) -> tuple[Filled, Knowing]:
    plan = session.plan_fill(template, {"instruction": ASKED, "seed": 0, **options})  # type: ignore[typeddict-item]
    knowing = Knowing(session, len(session.prepare(ASKED).tokens), text)
    return knowing.fill(plan), knowing


# -- a model that knows ----------------------------------------------------------------------------------


@pytest.mark.parametrize("canvas_length", [16, 24, 64])
@pytest.mark.parametrize("numbers", [(0, 20), (2, 20), (8, 20), (30, 44)])
def test_a_hole_ends_on_the_canvas_that_comes_to_the_text_behind_it(
    session: Session, canvas_length: int, numbers: tuple[int, int]
) -> None:
    words = LONG.split(" ")
    before, behind = "".join(f"{w} " for w in words[: numbers[0]]), " " + " ".join(words[numbers[1] :])
    template = Template((before, behind), (Hole(),))
    filled, _ = _known(session, template, LONG, canvas_length=canvas_length)
    assert filled.text == LONG and filled.holes == (LONG[len(before) : len(LONG) - len(behind)],)
    assert (filled.finish_reason, filled.notes) == ("stop", ())
    tokens = len(session.tokenizer.encode(filled.holes[0]))
    assert filled.usage.completion_tokens == tokens
    assert len(filled.canvases) > 1 or tokens < canvas_length


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_several_holes_of_any_length(session: Session, data: st.DataObject) -> None:
    places = [place for place in edges(LONG) if LONG[place : place + 1] == " "]
    cuts = sorted(data.draw(st.sets(st.sampled_from(places), min_size=2, max_size=6)))
    cuts = cuts[: len(cuts) // 2 * 2]
    length = data.draw(st.sampled_from([24, 32, 64]))
    bounds = [0, *cuts, len(LONG)]
    texts = [LONG[a:b] for a, b in pairwise(bounds)]
    template = Template(tuple(texts[::2]), (Hole(),) * (len(cuts) // 2))
    filled, _ = _known(session, template, LONG, canvas_length=length, max_new_tokens=400)
    for given_text, hole in zip(template.given[1:], filled.holes, strict=True):
        assert given_text in filled.text and hole
    most = 4 * length - 4
    if all(len(session.tokenizer.encode(text)) <= most for text in texts[1::2]):
        assert filled.text == LONG and not filled.notes


@pytest.mark.parametrize("most", [1, 20, 40, 60])
def test_a_hole_that_is_cut_has_all_its_tokens_and_is_told(session: Session, most: int) -> None:
    words = LONG.split(" ")
    template = Template((words[0], " " + " ".join(words[-4:])), (Hole(most=most),))
    filled, _ = _known(session, template, LONG, canvas_length=24)
    wanted = session.tokenizer.decode(session.tokenizer.encode(LONG[len(words[0]) :])[:most])
    assert filled.text == words[0] + wanted + template.given[1] and filled.holes == (wanted,)
    assert filled.finish_reason == "length" and filled.usage.completion_tokens == most
    (note,) = filled.notes
    assert note.kind == "hole_cut" and f"hole 1 is cut at its limit of {most} tokens: its max" in note.text


def test_without_a_max_the_limit_is_that_of_four_canvases(session: Session) -> None:
    words = LONG.split(" ")
    template = Template((words[0], " " + " ".join(words[-4:])), (Hole(),))
    filled, _ = _known(session, template, LONG, canvas_length=16)
    assert filled.finish_reason == "length" and filled.usage.completion_tokens == 60
    assert "60 tokens: with text behind it it may have no more" in filled.notes[0].text


def test_a_stop_string_ends_a_hole_that_would_go_on(session: Session) -> None:
    words = LONG.split(" ")
    template = Template((words[0], " " + " ".join(words[-4:])), (Hole(),))
    filled, _ = _known(session, template, LONG, canvas_length=24, stop=" 15")
    assert filled.holes == (" 12 13 14",) and filled.finish_reason == "stop"
    assert filled.text == f"11 12 13 14{template.given[1]}" and len(filled.canvases) == 1


def test_a_draft_goes_on_with_its_hole(session: Session) -> None:
    words = LONG.split(" ")
    guess = "".join(f" {word}" for word in words[1:20])
    template = Template((words[0], " " + " ".join(words[20:])), (Hole(),))
    filled, knowing = _known(session, template, LONG, canvas_length=24, draft=guess)
    assert filled.text == LONG
    starts = [(len(r.tokens), r.draft) for round in knowing.rounds for r in round.requests if r.draft]
    assert len(starts) > 1
    wanted = session.tokenizer.encode(LONG)
    prompt = len(session.prepare(ASKED).tokens)
    for start, draft in starts:
        assert all(wanted[start - prompt + place] == token for place, token in draft.items())


def test_canvases_of_one_hole_have_seeds_of_their_own(session: Session) -> None:
    words = LONG.split(" ")
    template = Template((words[0], " " + " ".join(words[30:])), (Hole(),))
    filled, knowing = _known(session, template, LONG, canvas_length=24, seed=2**63 - 1)
    whole = {r.requests[0].params.seed or 0 for r in knowing.rounds if r.layouts}
    assert len(filled.canvases) == len(whole) > 2 and max(whole) == 2**63 - 1


# -- the demo model --------------------------------------------------------------------------------------


def test_the_demo_model_goes_on_to_the_text_behind(session: Session) -> None:
    for canvas_length in (64, 32):
        filled = session.infill("11 12 13", " 49 50", instruction=ASKED, seed=0, canvas_length=canvas_length)
        assert filled.text == COUNTED and filled.finish_reason == "stop"
        assert len(filled.canvases) > 1
        assert filled.usage.completion_tokens > canvas_length


def test_drafts_of_a_hole_that_goes_on_hold_the_whole_text(session: Session) -> None:
    events = list(session.stream_fill("11 12 13<hole> 49 50", instruction=ASKED, seed=0))
    texts = [event.text for event in events]
    assert all(text.startswith("11 12 13") and text.endswith(" 49 50") for text in texts)
    assert texts[-1] == COUNTED and any(len(text) > 2 * len(COUNTED) // 3 for text in texts[:-1])


def test_more_than_a_canvas_may_be_asked_for(session: Session) -> None:
    filled = session.fill("11 12 13<hole max=120> 49 50", instruction=ASKED, seed=0)
    assert filled.text == COUNTED and not filled.notes
    short = session.fill("def triple(<hole max=120> * 3", instruction="Write a function triple that "
                         "multiplies x by 3.", seed=0)  # fmt: skip
    assert short.text == "def triple(x):\n    return x * 3"


@settings(max_examples=12, deadline=None)
@given(st.lists(ANY_TEXT, min_size=2, max_size=3), st.integers(0, 2**40), st.sampled_from([1, 30, 50]))
def test_given_text_comes_back_byte_for_byte_whatever_goes_on(
    session: Session, texts: list[str], seed: int, most: int
) -> None:
    template = Template((*texts, "."), (Hole(most=most),) * len(texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filling, "MISFIT", -1.0)  # nothing ever fits: holes go on as far as they may
        filled = session.fill(template, seed=seed, max_denoising_steps=1, canvas_length=16)
    assert filled.text.encode() == template.whole(filled.holes).encode()
    assert filled.finish_reason == ("length" if filled.notes else "stop")
