"""The budget of a thought, answers that end too soon, answers that repeat themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from canvaslm.engine import Engine
from canvaslm.engine.reference import generate
from canvaslm.engine.thoughts import TurnState
from canvaslm.errors import UsageError
from canvaslm.model.diffusion_gemma import DiffusionGemma
from canvaslm.types import Finished, Params, Projection, Readout, Request, TokenRules, TurnMarks
from tests.engine.scripts import Script, answer_of, scripted_engine
from tests.engine.test_canvas_length import drain, tokens_of
from tests.tiny import tiny_model

PLACES = 16
EOS, SPACE, NAME, OPEN, CLOSE = 1, 2, 58, 60, 61
A, B, T = 10, 11, 20  # of an answer; of a thought
MARKS = TurnMarks(OPEN, CLOSE, name=1, blank=frozenset({0, EOS, SPACE, OPEN, CLOSE}))
PARAMS = Params(max_new_tokens=80, max_denoising_steps=4, seed=3)


@pytest.fixture(scope="module")
def model() -> DiffusionGemma:
    return tiny_model(canvas_length=PLACES, sliding_window=24)


def says(*canvases: Sequence[int]) -> Script:
    """A canvas after another; the last over and over."""
    return lambda done: canvases[min(done, len(canvases) - 1)]


def ask(*, marks: TurnMarks | None = MARKS, **changes: Any) -> Request:
    fields = {
        name: changes.pop(name)
        for name in ("given", "constraint", "top_logprobs", "rules")
        if name in changes
    }
    return Request((3, 4, 5), replace(PARAMS, **changes), (EOS,), marks=marks, **fields)


def kinds(end: Finished) -> list[str]:
    return [note.kind for note in end.notes]


THOUGHT = [OPEN, NAME, T]


@pytest.mark.parametrize("budget", [0, 1, 5, 11])
def test_a_thought_is_closed_at_its_place_and_the_answer_follows_on_the_same_canvas(
    model: DiffusionGemma, budget: int
) -> None:
    """The canvas that went beyond the budget is done again with the marker in its place."""
    script = says([*THOUGHT, *[T] * (budget + 1), *[A] * (11 - budget), EOS])
    canvases, end = answer_of(scripted_engine(model, [script]), ask(thinking_budget=budget))
    assert canvases[0] == []
    said = canvases[1]
    assert said[: budget + 3] == [OPEN, NAME, *[T] * budget, CLOSE]
    assert len(said) == PLACES and said[-1] == EOS and CLOSE not in said[budget + 3 :]
    assert [note.text for note in end.notes] == [f"the thought was closed after {budget} tokens"]
    assert kinds(end) == ["thinking_budget"] and len(canvases) == 2


@pytest.mark.parametrize("budget", [13, 14, 15, 20, 30, 35])
def test_the_marker_stands_on_the_canvas_where_the_budget_ends(model: DiffusionGemma, budget: int) -> None:
    script = says(THOUGHT, *([THOUGHT] if budget == 13 else []), [T])
    canvases, end = answer_of(scripted_engine(model, [script]), ask(thinking_budget=budget))
    output = [token for canvas in canvases for token in canvas]
    assert output.index(CLOSE) == 2 + budget
    assert output[: 2 + budget] == [OPEN, NAME, *[T] * budget]
    again = [canvas for canvas in canvases if not canvas]
    assert len(again) == (budget != 14 and budget != 30)  # spent as a canvas begins: pinned at once
    assert all(len(canvas) == PLACES for canvas in canvases if canvas)
    assert kinds(end) == ["thinking_budget"]


@pytest.mark.parametrize("budget", [2, 10, 30, -1])
def test_a_thought_within_its_budget_is_not_touched(model: DiffusionGemma, budget: int) -> None:
    script = says([*THOUGHT, T, CLOSE, A, A, EOS])
    canvases, end = answer_of(scripted_engine(model, [script]), ask(thinking_budget=budget))
    assert canvases == [[OPEN, NAME, T, T, CLOSE, A, A, EOS]] and not end.notes


def test_a_thought_that_ends_before_the_pinned_marker_costs_the_rest_of_its_canvas(
    model: DiffusionGemma,
) -> None:
    script = says([*THOUGHT], [*THOUGHT, T, CLOSE, A], [B, B, EOS])
    canvases, end = answer_of(scripted_engine(model, [script]), ask(thinking_budget=10))
    assert canvases == [[], [OPEN, NAME, T, T, CLOSE], [B, B, EOS]]
    assert (end.reason, kinds(end)) == ("stop", [])


def test_a_marker_that_closes_nothing_is_taken_away_and_no_other_pinned(model: DiffusionGemma) -> None:
    script = says([*THOUGHT], [A], [A, *THOUGHT], [B, EOS])
    canvases, end = answer_of(scripted_engine(model, [script]), ask(thinking_budget=5))
    assert canvases == [[], [], [A, OPEN, NAME, T, T, T, T, T, CLOSE], [B, EOS]]
    assert kinds(end) == ["thinking_budget"]


def test_an_answer_that_ends_before_the_pinned_marker_stands(model: DiffusionGemma) -> None:
    canvases, end = answer_of(scripted_engine(model, [says(THOUGHT, [A, A, EOS])]), ask(thinking_budget=5))
    assert canvases == [[], [A, A, EOS]] and not end.notes


def test_what_was_sent_of_a_thought_beyond_its_budget_stands(model: DiffusionGemma) -> None:
    script = says([A, A, *THOUGHT], [B, EOS])
    request = ask(
        thinking_budget=4, top_logprobs=0, settle_steps=1, max_denoising_steps=6, stability_threshold=3
    )
    canvases, end = answer_of(scripted_engine(model, [script]), request)
    assert canvases == [[A, A, OPEN, NAME, T, T, T, T, CLOSE], [B, EOS]]
    assert kinds(end) == ["thinking_budget"]


def test_several_thoughts_share_one_budget(model: DiffusionGemma) -> None:
    script = says([*THOUGHT, T, CLOSE, A, OPEN, NAME, T], [*THOUGHT, T, CLOSE], [OPEN, NAME, T])
    canvases, _ = answer_of(scripted_engine(model, [script]), ask(thinking_budget=5))
    assert canvases[:3] == [[], [*THOUGHT, T, CLOSE], []]
    assert canvases[3][:6] == [OPEN, NAME, T, T, T, CLOSE]


def test_a_thought_that_the_prompt_opens_counts_from_there(model: DiffusionGemma) -> None:
    request = replace(ask(thinking_budget=4), tokens=(3, OPEN, CLOSE, OPEN, NAME))
    canvases, _ = answer_of(scripted_engine(model, [says([T])]), request)
    assert canvases[0] == [] and canvases[1][:5] == [T, T, T, T, CLOSE]


def test_markers_that_open_nothing_new_count_as_thought(model: DiffusionGemma) -> None:
    canvases, _ = answer_of(scripted_engine(model, [says([OPEN])]), ask(thinking_budget=4))
    assert canvases[1][:7] == [OPEN] * 6 + [CLOSE]


def test_a_pinned_marker_is_given_like_any_other_place(model: DiffusionGemma) -> None:
    """The oracle with that place given says the same, as far as the canvas stands."""
    request = replace(ask(thinking_budget=0, max_new_tokens=PLACES, retry_empty=False), tokens=(3, OPEN))
    found, _ = answer_of(Engine(model), request)
    expected, _ = generate(model, request.tokens, request.params, (EOS,), given={0: CLOSE})
    assert found == [expected] and expected[0] == CLOSE


@pytest.mark.parametrize("settle", [0, 1])
def test_nothing_that_was_sent_is_taken_back(model: DiffusionGemma, settle: int) -> None:
    """Random models think, close and end as it comes: what was sent is what the answer has, and within its
    budget."""
    closed = 0
    for seed in range(40):
        marks = replace(MARKS, open=7 + seed % 9, close=20 + seed % 11, blank=frozenset())
        params = {"seed": seed, "settle_steps": settle, "settle_entropy": 3.0, "max_denoising_steps": 6}
        budget = (0, 3, 9, 20)[seed % 4]
        request = ask(marks=marks, thinking_budget=budget, **params)
        canvases, end = answer_of(Engine(model), request)
        output = [token for canvas in canvases for token in canvas]
        assert len(output) == end.usage.completion_tokens <= 80
        turn = TurnState.of_prompt(request.tokens, marks).after_all(output, marks)
        assert turn.used <= budget
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

    top, shortest = 0, 1

    def start(self) -> None:
        return None

    def project(self, state: None, readout: Readout) -> Projection:
        return Projection(readout.tokens, tuple(range(len(readout.tokens))))


@pytest.mark.parametrize("other", [{"given": {3: A}}, {"marks": None}])
def test_given_text_is_not_interfered_with(model: DiffusionGemma, other: dict[str, Any]) -> None:
    script = says([*THOUGHT, T, T, T, T, EOS])
    canvases, end = answer_of(scripted_engine(model, [script]), ask(thinking_budget=2, **other))
    assert CLOSE not in canvases[0] and len(canvases) == 1 and not end.notes


def test_a_constraint_sees_a_thought_within_its_budget(model: DiffusionGemma) -> None:
    """Its own canvas is done again with the marker given; what it then makes of it is its business."""
    script = says([*THOUGHT, T, T, T, T, EOS])
    canvases, end = answer_of(scripted_engine(model, [script]), ask(thinking_budget=2, constraint=Whatever()))
    assert canvases == [[], [*THOUGHT, T, CLOSE, T, T, EOS]] and kinds(end) == ["thinking_budget"]
    canvases, end = answer_of(scripted_engine(model, [says([EOS])]), ask(constraint=Whatever()))
    assert canvases == [[EOS]] and not end.notes


class Wordy(Whatever):
    """A constraint that makes thoughts longer where none of their places is given."""

    def project(self, state: None, readout: Readout) -> Projection:
        longer = () if any(readout.given) else (T, T, T)
        tokens = (*readout.tokens[:2], *longer, *readout.tokens[2:])
        return Projection(tokens, (None,) * len(tokens))


def test_a_constraint_cannot_lengthen_a_thought_beyond_its_budget(model: DiffusionGemma) -> None:
    script = says([*THOUGHT, T, CLOSE, A, A, EOS])
    request = ask(thinking_budget=3, constraint=Wordy())
    canvases, end = answer_of(scripted_engine(model, [script]), request)
    assert canvases == [[], [*THOUGHT, T, CLOSE, CLOSE, A, EOS]] and not end.notes


class Thoughtless(Whatever):
    """A constraint that knows no thoughts, and refuses given places that it cannot have."""

    def project(self, state: None, readout: Readout) -> Projection:
        if any(readout.given):
            raise UsageError("the given places contradict what is guaranteed", "given")
        return Projection((B, EOS), (None, None), ended=True)


def test_a_constraint_that_cannot_have_the_marker_gets_a_canvas_without(model: DiffusionGemma) -> None:
    request = ask(thinking_budget=2, constraint=Thoughtless())
    canvases, end = answer_of(scripted_engine(model, [says([*THOUGHT, T, T, T, EOS])]), request)
    assert canvases == [[], [], [B, EOS]] and (end.reason, end.notes) == ("stop", ())


@pytest.mark.parametrize("marks", [TurnMarks(open=3), TurnMarks(64, 3), TurnMarks(3, -1)])
def test_markers_that_are_none_are_refused(model: DiffusionGemma, marks: TurnMarks) -> None:
    with pytest.raises(UsageError, match="marker"):
        Engine(model).submit(ask(marks=marks))


# A model that wants to end at every place.
ENDS = TokenRules(biases=((EOS, 1000.0),))


@pytest.mark.parametrize("settle", [0, 1])
@pytest.mark.parametrize("seed", range(5))
def test_an_empty_answer_goes_on_with_a_token_that_says_something(
    model: DiffusionGemma, seed: int, settle: int
) -> None:
    request = ask(rules=ENDS, seed=seed, settle_steps=settle)
    canvases, end = answer_of(Engine(model), request)
    assert canvases[0] == [] and len(canvases) == 2
    said, last = canvases[1]
    assert said not in MARKS.blank and last == EOS
    assert (end.reason, kinds(end), end.usage.completion_tokens) == ("stop", ["empty_retried"], 2)
    assert answer_of(Engine(model), request)[0] == canvases


def test_an_answer_of_nothing_but_blanks_is_empty(model: DiffusionGemma) -> None:
    script = says([SPACE, SPACE, EOS], [A, EOS])
    canvases, end = answer_of(scripted_engine(model, [script]), ask())
    assert canvases == [[SPACE, SPACE], [A, EOS]] and kinds(end) == ["empty_retried"]


@pytest.mark.parametrize("thought", [[*THOUGHT, CLOSE, EOS], [*THOUGHT, CLOSE, SPACE, EOS], [*THOUGHT, EOS]])
def test_an_answer_that_is_empty_after_its_thought_goes_on_behind_it(
    model: DiffusionGemma, thought: list[int]
) -> None:
    """A thought that was never closed is closed."""
    canvases, end = answer_of(scripted_engine(model, [says(thought, [A, EOS])]), ask(top_logprobs=0))
    stood = thought[:-1] if CLOSE in thought else [*thought[:-1], CLOSE]
    assert canvases == [stood, [A, EOS]] and kinds(end) == ["empty_retried"]


def test_the_real_thing_after_a_thought(model: DiffusionGemma) -> None:
    request = replace(ask(rules=ENDS, thinking_budget=0), tokens=(3, 4, OPEN))
    canvases, end = answer_of(Engine(model), request)
    assert canvases[0] == [CLOSE] and len(canvases) == 2
    assert canvases[1][0] not in MARKS.blank and canvases[1][1:] == [EOS]
    assert kinds(end) == ["empty_retried"]


def test_it_happens_once(model: DiffusionGemma) -> None:
    canvases, end = answer_of(scripted_engine(model, [says([EOS])]), ask())
    assert (canvases, end.reason) == ([[], [EOS]], "stop")


@pytest.mark.parametrize(
    "changes", [{"retry_empty": False}, {"given": {0: EOS}}, {"marks": None}, {"max_new_tokens": 1}]
)
def test_an_empty_answer_stands_where_it_must(model: DiffusionGemma, changes: dict[str, Any]) -> None:
    canvases, end = answer_of(scripted_engine(model, [says([EOS])]), ask(**changes))
    assert (canvases, end.reason, end.notes) == ([[EOS]], "stop", ())


def test_what_says_nothing_comes_where_nothing_else_may(model: DiffusionGemma) -> None:
    """Rules that leave blanks alone are obeyed; the retry forbids the end, and no more."""
    only = TokenRules(allowed=(SPACE,), biases=((EOS, 1000.0),))
    canvases, end = answer_of(Engine(model), ask(rules=only))
    assert canvases == [[SPACE], [SPACE, EOS]] and kinds(end) == ["empty_retried"]
    never = TokenRules(biases=tuple((token, -float("inf")) for token in range(64) if token not in (0, EOS)))
    canvases, end = answer_of(Engine(model), ask(rules=replace(never, biases=(*never.biases, (EOS, 1000.0)))))
    assert canvases == [[], [EOS]] and kinds(end) == ["empty_retried"]


@pytest.mark.parametrize("least", [1, 15, 16, 17, 40])
def test_the_least_tokens_are_counted_over_canvases_that_stand_in_part(
    model: DiffusionGemma, least: int
) -> None:
    for length in (16, 0):
        request = ask(rules=ENDS, min_new_tokens=least, canvas_length=length)
        canvases, end = answer_of(Engine(model), request)
        output = [token for canvas in canvases for token in canvas]
        assert output.index(EOS) == least == len(output) - 1 and end.reason == "stop"


def test_the_least_tokens_count_the_thought(model: DiffusionGemma) -> None:
    request = replace(ask(rules=ENDS, thinking_budget=3, min_new_tokens=20), tokens=(3, 4, OPEN))
    canvases, end = answer_of(Engine(model), request)
    output = [token for canvas in canvases for token in canvas]
    assert output.index(EOS) >= 20 and end.reason == "stop"
