"""Canvases of the length that a request asks for: as the oracle's, in any company, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from canvaslm.engine import Engine
from canvaslm.engine.reference import generate
from canvaslm.errors import PromptTooLong, UsageError
from canvaslm.model.diffusion_gemma import DiffusionGemma
from canvaslm.types import Committed, Draft, Event, Finished, Params, Request, Settled
from tests.engine.test_host_reads import counted_reads
from tests.second_family import hole_model
from tests.tiny import tiny_model

WHOLE = 64
LENGTHS = (16, 17, 32, WHOLE)
PARAMS = Params(max_new_tokens=70, max_denoising_steps=8, confidence_threshold=0.3, seed=0)


@pytest.fixture(scope="module")
def model() -> DiffusionGemma:
    kinds = ("sliding_attention", "sliding_attention", "full_attention")
    return tiny_model(canvas_length=WHOLE, sliding_window=24, num_layers=3, layer_types=kinds)


def request(index: int, length: int, **changes: Any) -> Request:
    params = replace(PARAMS, seed=index, canvas_length=length, max_new_tokens=(20, 40, 70)[index % 3])
    tokens = tuple((7 * index + 3 * i + i * i) % 60 + 2 for i in range(3 + 11 * (index % 5)))
    return Request(tokens, replace(params, **changes), (1, 5))


def drain(engine: Engine) -> list[Event]:
    events = []
    while engine.has_work:
        events += engine.step()
    return events


def tokens_of(events: list[Event], request_id: int) -> list[int]:
    return [t for e in events if isinstance(e, Committed) and e.request_id == request_id for t in e.tokens]


def alone(model: DiffusionGemma, one: Request, **options: Any) -> tuple[list[int], Finished]:
    engine = Engine(model, **options)
    events = engine.submit(one), drain(engine)
    end = events[1][-1]
    assert isinstance(end, Finished)
    return tokens_of(events[1], events[0]), end


@pytest.mark.parametrize("length", LENGTHS)
def test_any_length_equals_the_oracle(model: DiffusionGemma, length: int) -> None:
    for index in range(4):
        one = request(index, length)
        expected, reports = generate(model, one.tokens, one.params, one.eos_token_ids)
        found, end = alone(model, one)
        assert found == expected
        assert [(r.steps, r.places) for r in end.canvases] == [(r.steps, length) for r in reports]


def test_the_models_own_length_is_the_default(model: DiffusionGemma) -> None:
    for index in range(3):
        assert alone(model, request(index, 0))[0] == alone(model, request(index, WHOLE))[0]
    assert alone(model, request(2, 0))[0] != alone(model, request(2, 32))[0]


@pytest.mark.parametrize("options", [{}, {"mixed": False}, {"deterministic": True}])
def test_lengths_in_a_crowd_give_the_tokens_that_they_give_alone(
    model: DiffusionGemma, options: dict[str, Any]
) -> None:
    requests = [request(i, (0, *LENGTHS)[i % 5], settle_steps=2 * (i % 2)) for i in range(10)]
    engine, events, ids = Engine(model, max_rows=7, **options), [], []
    for one in requests:  # each joins while the others are at other steps
        ids.append(engine.submit(one))
        events += engine.step()
    events += drain(engine)
    for request_id, one in zip(ids, requests, strict=True):
        said = [e for e in events if e.request_id == request_id]
        assert _committed(said) == _committed(_events_alone(model, one))
    assert {e.report.places for e in events if isinstance(e, Committed)} == set(LENGTHS)


def _committed(events: list[Event]) -> list[int]:
    return [t for e in events if isinstance(e, Settled | Committed) for t in e.tokens]


def _events_alone(model: DiffusionGemma, one: Request) -> list[Event]:
    engine = Engine(model)
    engine.submit(one)
    return drain(engine)


def test_a_step_over_several_lengths_reads_once(model: DiffusionGemma) -> None:
    engine = Engine(model)
    for index, length in enumerate(LENGTHS):
        engine.submit(request(index, length, confidence_threshold=0.0, max_denoising_steps=30))
        with counted_reads() as reads:
            assert not engine.step()
        assert reads == ["tolist"]
    assert [s.progress.step for s in engine.scheduler.denoising()] == [4, 3, 2, 1]


def test_drafts_have_the_places_of_the_canvas(model: DiffusionGemma) -> None:
    one = replace(request(1, 16), drafts=True)
    drafts = [e for e in _events_alone(model, one) if isinstance(e, Draft)]
    assert drafts and all(len(d.tokens) == len(d.entropy) == 16 for d in drafts)


def test_given_places_are_counted_in_canvases_of_this_length(model: DiffusionGemma) -> None:
    given = {3: 40, 16: 41, 33: 42}
    one = replace(request(2, 16, max_new_tokens=48), given=given, eos_token_ids=())
    tokens, _ = alone(model, one)
    assert [tokens[place] for place in given] == [*given.values()]
    assert tokens == generate(model, one.tokens, one.params, (), given=given)[0]
    with pytest.raises(UsageError, match="given place 48 is outside the 48 places"):
        Engine(model).submit(replace(one, given={48: 7}))


def test_a_short_canvas_fits_where_the_models_does_not(model: DiffusionGemma) -> None:
    one = request(3, 0, max_new_tokens=16)
    room = len(one.tokens) + 20
    with pytest.raises(PromptTooLong, match="with a canvas of 64"):
        Engine(model, max_context=room).submit(one)
    short = replace(one, params=replace(one.params, canvas_length=16))
    engine = Engine(model, max_context=room)
    engine.submit(short)
    assert len(tokens_of(drain(engine), 0)) <= 16


@pytest.mark.parametrize("length", [1, 15, 65, 65_536])
def test_a_length_that_the_model_cannot_have_is_refused(model: DiffusionGemma, length: int) -> None:
    with pytest.raises(UsageError, match=f"canvas_length = {length} is out of range.*16 to 64") as caught:
        Engine(model).submit(request(0, length))
    assert caught.value.param == "canvas_length"


def test_a_model_that_commits_blocks_has_one_length(model: DiffusionGemma) -> None:
    engine = Engine(hole_model())
    engine.submit(request(0, engine.config.canvas_length))
    with pytest.raises(UsageError, match="canvases of 16 places and no others"):
        engine.submit(request(0, 32))
