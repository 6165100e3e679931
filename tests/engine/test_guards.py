"""The budget of a thought, answers that end too soon, answers that repeat themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from canvaslm.engine import Engine
from canvaslm.engine.reference import generate
from canvaslm.engine.thoughts import Reading
from canvaslm.errors import UsageError
from canvaslm.model.diffusion_gemma import DiffusionGemma
from canvaslm.types import Finished, Params, Projection, Readout, Request, TurnMarks
from tests.engine.scripts import Script, answer_of, scripted_engine
from tests.engine.test_canvas_length import drain, tokens_of
from tests.tiny import tiny_model

PLACES = 16
EOS, SPACE, NAME, OPEN, CLOSE = 1, 2, 58, 60, 61
A, B, T = 10, 11, 20  # of an answer; of a thought
MARKS = TurnMarks(OPEN, CLOSE, name=1, asked=True, blank=frozenset({0, EOS, SPACE, OPEN, CLOSE}))
PARAMS = Params(max_new_tokens=80, max_denoising_steps=4, seed=3)


@pytest.fixture(scope="module")
def model() -> DiffusionGemma:
    return tiny_model(canvas_length=PLACES, sliding_window=24)


def says(*canvases: Sequence[int]) -> Script:
    """A canvas after another; the last over and over."""
    return lambda done: canvases[min(done, len(canvases) - 1)]


def ask(*, marks: TurnMarks | None = MARKS, **changes: Any) -> Request:
    fields = {name: changes.pop(name) for name in ("given", "constraint", "top_logprobs") if name in changes}
    return Request((3, 4, 5), replace(PARAMS, **changes), (EOS,), marks=marks, **fields)


def kinds(end: Finished) -> list[str]:
    return [note.kind for note in end.notes]


THOUGHT = [OPEN, NAME, T]


@pytest.mark.parametrize("budget", [0, 1, 5, 13])
def test_a_thought_is_closed_at_its_place_and_the_answer_follows_on_the_same_canvas(
    model: DiffusionGemma, budget: int
) -> None:
    script = says([*THOUGHT, *[T] * (budget + 1), *[A] * (12 - budget), EOS])
    (said, *rest), end = answer_of(scripted_engine(model, [script]), ask(thinking_budget=budget))
    assert said[: budget + 3] == [OPEN, NAME, *[T] * budget, CLOSE]
    assert CLOSE not in said[budget + 3 :]
    assert kinds(end)[0] == "thinking_budget" and f"after {budget} tokens" in end.notes[0].text
    assert bool(rest) == (EOS not in said)


@pytest.mark.parametrize("budget", [14, 15, 20, 30, 35])
def test_the_marker_stands_on_the_canvas_where_the_budget_ends(model: DiffusionGemma, budget: int) -> None:
    script = says(THOUGHT, [T])
    canvases, end = answer_of(scripted_engine(model, [script]), ask(thinking_budget=budget))
    output = [token for canvas in canvases for token in canvas]
    assert output.index(CLOSE) == 2 + budget
    assert output[: 2 + budget] == [OPEN, NAME, *[T] * budget]
    assert all(len(canvas) == PLACES for canvas in canvases)  # every one stood whole
    assert kinds(end) == ["thinking_budget"]


def test_a_thought_that_is_over_before_its_budget_costs_the_rest_of_its_canvas(model: DiffusionGemma) -> None:
    script = says([*THOUGHT, T, CLOSE, A], [B, B, EOS])
    canvases, end = answer_of(scripted_engine(model, [script]), ask(thinking_budget=10))
    assert canvases == [[OPEN, NAME, T, T, CLOSE], [B, B, EOS]]
    assert (end.reason, kinds(end)) == ("stop", [])


def test_no_marker_is_pinned_where_the_budget_lies_on_a_later_canvas(model: DiffusionGemma) -> None:
    script = says([*THOUGHT, T, CLOSE, A, A, EOS])
    canvases, end = answer_of(scripted_engine(model, [script]), ask(thinking_budget=30))
    assert canvases == [[OPEN, NAME, T, T, CLOSE, A, A, EOS]] and not end.notes


def test_a_marker_that_closes_nothing_is_taken_away_and_the_canvas_done_again(model: DiffusionGemma) -> None:
    script = says([A], [B, B, EOS])
    canvases, end = answer_of(scripted_engine(model, [script]), ask(thinking_budget=5))
    assert canvases == [[], [B, B, EOS]]
    assert (end.usage.completion_tokens, kinds(end)) == (3, [])


def test_an_answer_without_a_thought_that_ends_before_the_marker_stands(model: DiffusionGemma) -> None:
    canvases, _ = answer_of(scripted_engine(model, [says([A, A, EOS])]), ask(thinking_budget=5))
    assert canvases == [[A, A, EOS]]


def test_a_thought_that_nobody_asked_for_is_cut_at_the_budget(model: DiffusionGemma) -> None:
    unasked = replace(MARKS, asked=False)
    script = says([A, A, *THOUGHT], [B, EOS])
    request = ask(marks=unasked, thinking_budget=4, top_logprobs=0)
    canvases, end = answer_of(scripted_engine(model, [script]), request)
    assert canvases == [[A, A, OPEN, NAME, T, T, T, T, CLOSE], [B, EOS]]
    assert kinds(end) == ["thinking_budget"]


def test_several_thoughts_share_one_budget(model: DiffusionGemma) -> None:
    script = says([*THOUGHT, T, CLOSE, A, OPEN, NAME, T], [B, EOS])
    canvases, _ = answer_of(
        scripted_engine(model, [script]), ask(marks=replace(MARKS, asked=False), thinking_budget=5)
    )
    assert canvases[0] == [*THOUGHT, T, CLOSE, A, OPEN, NAME, T, T, T, CLOSE]


def test_a_thought_that_the_prompt_opens_counts_from_there(model: DiffusionGemma) -> None:
    script = says([T])
    request = replace(ask(thinking_budget=4), tokens=(3, OPEN, CLOSE, OPEN, NAME))
    (said, *_), _ = answer_of(scripted_engine(model, [script]), request)
    assert said[:5] == [T, T, T, T, CLOSE]


def test_a_pinned_marker_is_given_like_any_other_place(model: DiffusionGemma) -> None:
    """The canvas is the oracle's with that place given, where what stands of it is all of it."""
    request = replace(ask(thinking_budget=4, max_new_tokens=PLACES), tokens=(3, OPEN, NAME))
    found, _ = answer_of(Engine(model), request)
    expected, _ = generate(model, request.tokens, request.params, (EOS,), given={4: CLOSE})
    first = expected.index(CLOSE)
    assert found[0] == (expected if first == 4 else expected[: first + 1])


@pytest.mark.parametrize("settle", [0, 1])
def test_nothing_that_was_sent_is_taken_back(model: DiffusionGemma, settle: int) -> None:
    """Random models think, close and end as it comes: what was sent is what the answer has, and within its
    budget."""
    closed = 0
    for seed in range(40):
        marks = replace(MARKS, open=7 + seed % 9, close=20 + seed % 11, asked=seed % 3 > 0, blank=frozenset())
        params = {"seed": seed, "settle_steps": settle, "settle_entropy": 3.0, "max_denoising_steps": 6}
        budget = (0, 3, 9, 20)[seed % 4]
        request = ask(marks=marks, thinking_budget=budget, **params)
        canvases, end = answer_of(Engine(model), request)
        output = [token for canvas in canvases for token in canvas]
        assert len(output) == end.usage.completion_tokens <= 80
        reading = Reading.of_prompt(request.tokens, marks).after_all(output, marks)
        assert reading.used <= budget
        closed += "thinking_budget" in kinds(end)
    assert closed > 3


@pytest.mark.parametrize("neighbours", [1, 6])
def test_budgets_in_a_crowd(model: DiffusionGemma, neighbours: int) -> None:
    marks = replace(MARKS, open=9, close=22)
    requests = [
        ask(marks=marks, thinking_budget=3 * i, seed=i, canvas_length=(16, 0)[i % 2], settle_steps=i % 2)
        for i in range(neighbours + 1)
    ]
    engine = Engine(model)
    ids = [engine.submit(one) for one in requests]
    events = drain(engine)
    for request_id, one in zip(ids, requests, strict=True):
        single = Engine(model)
        single.submit(one)
        assert tokens_of(events, request_id) == tokens_of(drain(single), 0)


class Whatever:
    """A constraint that leaves canvases as they are."""

    top = 0

    def start(self) -> None:
        return None

    def project(self, state: None, readout: Readout) -> Projection:
        return Projection(readout.tokens, tuple(range(len(readout.tokens))))


@pytest.mark.parametrize("other", [{"given": {3: A}}, {"constraint": Whatever()}, {"marks": None}])
def test_given_text_and_constraints_are_not_interfered_with(
    model: DiffusionGemma, other: dict[str, Any]
) -> None:
    script = says([*THOUGHT, T, T, T, T, EOS])
    canvases, end = answer_of(scripted_engine(model, [script]), ask(thinking_budget=2, **other))
    assert CLOSE not in canvases[0] and len(canvases) == 1 and not end.notes


@pytest.mark.parametrize("marks", [TurnMarks(open=3), TurnMarks(64, 3), TurnMarks(3, -1)])
def test_markers_that_are_none_are_refused(model: DiffusionGemma, marks: TurnMarks) -> None:
    with pytest.raises(UsageError, match="marker"):
        Engine(model).submit(ask(marks=marks))
