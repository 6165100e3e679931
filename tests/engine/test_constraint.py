"""Constraints: a canvas commits fewer or more tokens than it has places, and hands on a state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from canvaslm.diffusion import RowParams, advance, progress, start_canvas
from canvaslm.engine import Driver, Engine
from canvaslm.engine.reference import generate, predict_plainly
from canvaslm.errors import EngineFailure
from canvaslm.model import PlainContext
from canvaslm.model.diffusion_gemma import DiffusionGemma
from canvaslm.types import (
    Committed,
    Constraint,
    Draft,
    Event,
    Failed,
    Finished,
    Params,
    Projection,
    Readout,
    Request,
)
from tests.tiny import tiny_model

PLACES, PROMPT = 16, tuple(range(3, 20))
PARAMS = Params(max_new_tokens=60, max_denoising_steps=6, confidence_threshold=0.02, seed=4)


@pytest.fixture(scope="module")
def model() -> DiffusionGemma:
    return tiny_model(canvas_length=PLACES, sliding_window=24)


@dataclass(frozen=True)
class Keep:
    """Drops the places whose token `drops` names, and puts `adds` behind each canvas; counts canvases."""

    drops: frozenset[int] = frozenset()
    adds: tuple[int, ...] = ()
    canvases: int = 1000
    top: int = 0
    shortest: int = 1

    def start(self) -> int:
        return 0

    def project(self, state: int, readout: Readout) -> Projection:
        if not readout.tokens:  # no canvas will follow: nothing to add
            return Projection((), (), state)
        assert len(readout.tokens) == len(readout.given) == PLACES
        kept = [(token, place) for place, token in enumerate(readout.tokens) if token not in self.drops]
        tokens = (*(token for token, _ in kept), *self.adds)
        places = (*(place for _, place in kept), *(None for _ in self.adds))
        return Projection(tokens, places, state + 1, ended=state + 1 == self.canvases)


def run(model: DiffusionGemma, constraint: Constraint | None, **changes: Any) -> list[Event]:
    return list(
        Driver(Engine(model)).events(
            Request(PROMPT, **{"params": PARAMS, "constraint": constraint, **changes})
        )
    )


def commits(events: Sequence[Event]) -> list[tuple[int, ...]]:
    return [e.tokens for e in events if isinstance(e, Committed)]


def by_hand(model: DiffusionGemma, constraint: Constraint, params: Params) -> list[tuple[int, ...]]:
    """What each canvas commits, written out: the context is encoded anew for every canvas."""
    context, state, row = list(PROMPT), constraint.start(), RowParams.of(params)
    found: list[tuple[int, ...]] = []
    while sum(map(len, found)) < params.max_new_tokens:
        memory = PlainContext(model.config)
        model.encode(torch.tensor([context]), torch.arange(len(context))[None], memory)
        canvas = start_canvas(params.seed or 0, len(found), PLACES, model.config.vocab_size)
        positions, step, stop = len(context) + torch.arange(PLACES)[None], 0, None
        while stop is None:
            hidden = model.denoise(canvas.tokens, positions, memory, canvas.soft)[0]
            prediction = predict_plainly(model, hidden, params, canvas, step)
            canvas = advance(canvas, prediction, row, model.config.vocab_size)
            step, stop = progress(canvas)[0].step, progress(canvas)[0].stop
        room = params.max_new_tokens - sum(map(len, found))
        draft = tuple(canvas.argmax[0].tolist())
        projection = constraint.project(state, Readout(draft, (False,) * PLACES, (), (), room))
        state = projection.state
        found.append(projection.tokens[:room])
        context += found[-1]
    return found


@torch.no_grad()
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "constraint",
    [Keep(frozenset(range(0, 64, 3))), Keep(adds=(7, 9, 11)), Keep(frozenset(range(20)), (30,) * 25)],
)
def test_what_is_committed_is_encoded(model: DiffusionGemma, constraint: Keep, seed: int) -> None:
    """Fewer tokens than places, more, and another number each time: positions follow what was committed."""
    params = replace(PARAMS, seed=seed)
    events = run(model, constraint, params=params)
    found = commits(events)
    assert found == by_hand(model, constraint, params)
    assert any(len(tokens) != PLACES for tokens in found[:-1])
    end = events[-1]
    assert isinstance(end, Finished)
    assert (end.reason, end.usage.completion_tokens) == ("length", 60)
    assert len(end.canvases) == len(found)


def test_a_constraint_that_changes_nothing_changes_nothing(model: DiffusionGemma) -> None:
    """But nothing is sent early under one."""
    early = replace(PARAMS, settle_steps=1, settle_entropy=1e6)
    events = run(model, Keep(), params=early)
    assert [e for e in events if not isinstance(e, Committed | Finished)] == []
    assert [t for tokens in commits(events) for t in tokens] == generate(model, PROMPT, PARAMS)[0]


def test_it_is_the_same_alone_and_in_a_crowd(model: DiffusionGemma) -> None:
    constraints = [None, Keep(frozenset(range(0, 64, 2))), Keep(adds=(5,)), Keep(frozenset({9}), (6, 7))]
    requests = [Request(PROMPT[i:], replace(PARAMS, seed=i), constraint=c) for i, c in enumerate(constraints)]
    engine, events = Engine(model), []
    ids = [engine.submit(request) for request in requests]
    while engine.has_work:
        events += engine.step()
    for request_id, request in zip(ids, requests, strict=True):
        alone = commits(list(Driver(Engine(model)).events(request)))
        assert commits([e for e in events if e.request_id == request_id]) == alone


def test_its_state_ends_the_answer(model: DiffusionGemma) -> None:
    events = run(model, Keep(adds=(7,), canvases=2))
    end = events[-1]
    assert isinstance(end, Finished)
    assert (end.reason, end.usage.completion_tokens) == ("stop", 2 * (PLACES + 1))


def test_an_end_beyond_the_room_is_no_end(model: DiffusionGemma) -> None:
    events = run(model, Keep(adds=(7,) * 100, canvases=1))
    end = events[-1]
    assert isinstance(end, Finished)
    assert (end.reason, end.usage.completion_tokens) == ("length", 60)


def test_an_eos_that_it_puts_in_ends_the_answer(model: DiffusionGemma) -> None:
    eos = 63
    events = run(model, Keep(frozenset({eos}), (eos, 5)), eos_token_ids=(eos,))
    assert len(commits(events)) == 1
    assert commits(events)[0][-1] == eos
    assert isinstance(events[-1], Finished)
    assert events[-1].reason == "stop"


def test_log_probabilities_follow_their_tokens(model: DiffusionGemma) -> None:
    drops = frozenset(range(0, 64, 3))
    params = replace(PARAMS, max_new_tokens=16)
    (plain,) = [e for e in run(model, None, params=params, top_logprobs=2) if isinstance(e, Committed)]
    first = next(
        e for e in run(model, Keep(drops, (30,)), params=params, top_logprobs=2) if isinstance(e, Committed)
    )
    left = [i for i, token in enumerate(plain.tokens) if token not in drops]
    assert first.tokens == (*(plain.tokens[i] for i in left), 30)
    assert first.logprobs == (*(plain.logprobs[i] for i in left), 0.0)
    assert first.top_logprobs == (*(plain.top_logprobs[i] for i in left), ((30, 0.0),))


@dataclass(frozen=True)
class SecondBest(Keep):
    """Commits the second most probable token of every place, and looks at what it is shown."""

    top: int = 3
    shortest: int = 1

    def project(self, state: int, readout: Readout) -> Projection:
        assert readout.room == 60 - PLACES * state
        assert readout.given == tuple(place == 2 and state == 1 for place in range(PLACES))
        for place, (token, best, values) in enumerate(
            zip(readout.tokens, readout.top_tokens, readout.top_logprobs, strict=True)
        ):
            assert len(best) == len(values) == 3
            assert token == best[0] or readout.given[place]
            assert list(values) == sorted(values, reverse=True)
        return Projection(tuple(b[1] for b in readout.top_tokens), tuple(range(PLACES)), state + 1)


def test_it_reads_the_most_probable_tokens_and_may_take_them(model: DiffusionGemma) -> None:
    events = run(model, SecondBest(), given={PLACES + 2: 33}, top_logprobs=0)
    assert [len(tokens) for tokens in commits(events)] == [PLACES, PLACES, PLACES, 12]
    for event in events:
        if isinstance(event, Committed):
            assert not event.top_logprobs
            assert all(value < -0.1 for value in event.logprobs)


def test_what_leaves_nothing_fails_and_says_so(model: DiffusionGemma) -> None:
    (failed,) = run(model, Keep(frozenset(range(64))))
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, EngineFailure)
    assert "left nothing of canvas 0" in str(failed.error)
    ended = run(model, Keep(frozenset(range(64)), canvases=1))
    assert isinstance(ended[-1], Finished)
    assert (ended[-1].reason, ended[-1].usage.completion_tokens) == ("stop", 0)


def test_an_error_in_a_constraint_ends_its_request_alone(model: DiffusionGemma) -> None:
    @dataclass(frozen=True)
    class Broken(Keep):
        def project(self, state: int, readout: Readout) -> Projection:
            raise ValueError("no such rule")

    engine, events = Engine(model), []
    ids = [engine.submit(Request(PROMPT, PARAMS, constraint=c)) for c in (Broken(), None)]
    while engine.has_work:
        events += engine.step()
    (failed,) = [e for e in events if isinstance(e, Failed)]
    assert failed.request_id == ids[0]
    assert isinstance(events[-1], Finished)
    assert events[-1].usage.completion_tokens == 60


def test_a_long_addition_ends_where_the_context_does(model: DiffusionGemma) -> None:
    """What is put in counts: the context is never exceeded, and a canvas that does not fit is not begun."""
    engine = Engine(model, max_context=64)
    params = replace(PARAMS, max_new_tokens=1000)
    *_, end = Driver(engine).events(Request(PROMPT, params, constraint=Keep(adds=(5,) * 5)))
    assert isinstance(end, Finished)
    assert (end.reason, end.usage.completion_tokens) == ("length", 2 * 16)


def test_places_are_given_on_any_canvas(model: DiffusionGemma) -> None:
    given = {1: 33, PLACES: 34, 2 * PLACES + 5: 35}
    events = run(model, None, given=given, drafts=True)
    for draft in (e for e in events if isinstance(e, Draft)):
        first = draft.canvas * PLACES
        here = {place - first: token for place, token in given.items() if 0 <= place - first < PLACES}
        assert all(draft.tokens[place] == token for place, token in here.items())
        assert all(draft.entropy[place] == 0 for place in here)
    assert [t for tokens in commits(events) for t in tokens] == generate(model, PROMPT, PARAMS, given=given)[
        0
    ]
