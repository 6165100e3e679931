"""The engine's promises: same tokens alone and in a crowd, one terminal event each, exact
lengths, reused context."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from canvaslm.engine import Driver, Engine
from canvaslm.engine.reference import generate
from canvaslm.errors import EngineFailure, PromptTooLong, UsageError
from canvaslm.model.diffusion_gemma import DiffusionGemma
from canvaslm.types import (
    Committed,
    Draft,
    Event,
    Failed,
    Finished,
    Params,
    Request,
)
from tests.tiny import tiny_model

PARAMS = Params(max_new_tokens=24, max_denoising_steps=12, confidence_threshold=0.3, seed=0)


@pytest.fixture(scope="module")
def model() -> DiffusionGemma:
    return tiny_model(
        canvas_length=16,
        sliding_window=24,
        num_layers=3,
        layer_types=("sliding_attention",) * 2 + ("full_attention",),
    )


def prompt(index: int, length: int) -> tuple[int, ...]:
    return tuple((7 * index + 3 * i + i * i) % 60 + 2 for i in range(length))


def request(index: int, **changes: Any) -> Request:
    params = replace(PARAMS, seed=index, max_new_tokens=(10, 24, 40)[index % 3], **changes)
    return Request(prompt(index, 3 + 11 * (index % 5)), params, (1, 5))


def tokens_of(events: list[Event], request_id: int) -> list[int]:
    return [t for e in events if isinstance(e, Committed) and e.request_id == request_id for t in e.tokens]


def drain(engine: Engine) -> list[Event]:
    events = []
    while engine.has_work:
        events += engine.step()
    return events


def alone(model: DiffusionGemma, one: Request) -> list[int]:
    engine = Engine(model)
    request_id = engine.submit(one)
    return tokens_of(drain(engine), request_id)


@pytest.mark.parametrize("neighbours", [0, 1, 15])
@pytest.mark.parametrize("late", [0, 1, 4])
def test_same_tokens_alone_and_in_a_crowd(model: DiffusionGemma, neighbours: int, late: int) -> None:
    mine = request(99)
    engine, events = Engine(model, max_rows=32), []
    for i in range(neighbours):
        engine.submit(request(i))
    for _ in range(late):
        events += engine.step()
    request_id = engine.submit(mine)
    for i in range(neighbours // 2):
        engine.submit(request(50 + i))
    events += drain(engine)
    assert tokens_of(events, request_id) == alone(model, mine)


def test_every_request_in_a_crowd_equals_the_oracle(model: DiffusionGemma) -> None:
    requests = [request(i) for i in range(9)]
    engine = Engine(model, max_rows=4)  # fewer rows than requests: some wait
    ids = [engine.submit(r) for r in requests]
    events = drain(engine)
    for request_id, one in zip(ids, requests, strict=True):
        expected, reports = generate(model, one.tokens, one.params, one.eos_token_ids)
        assert tokens_of(events, request_id) == expected
        (end,) = [e for e in events if isinstance(e, Finished) and e.request_id == request_id]
        assert [r.steps for r in end.canvases] == [r.steps for r in reports]


@pytest.mark.parametrize("length", [1, 15, 16, 17, 23, 24, 25, 49, 600])
def test_prompts_of_any_length_equal_the_oracle(model: DiffusionGemma, length: int) -> None:
    """600 tokens are encoded in two chunks and exceed the window many times over."""
    one = Request(prompt(1, length), PARAMS, (1,))
    assert alone(model, one) == generate(model, one.tokens, PARAMS, (1,))[0]


@pytest.mark.parametrize("wanted", [1, 15, 16, 17, 33])
def test_max_new_tokens_cuts_exactly(model: DiffusionGemma, wanted: int) -> None:
    engine = Engine(model)
    engine.submit(Request(prompt(1, 5), replace(PARAMS, max_new_tokens=wanted)))
    *rest, end = drain(engine)
    assert isinstance(end, Finished)
    assert (end.reason, end.usage.completion_tokens) == ("length", wanted)
    assert sum(len(e.tokens) for e in rest if isinstance(e, Committed)) == wanted


def test_an_eos_beyond_the_cut_does_not_count(model: DiffusionGemma) -> None:
    free = alone(model, Request(prompt(1, 5), replace(PARAMS, max_new_tokens=16)))
    late = next(i for i in range(15, 0, -1) if free[i] not in free[:i])
    engine = Engine(model)
    engine.submit(Request(prompt(1, 5), replace(PARAMS, max_new_tokens=late), (free[late],)))
    end = drain(engine)[-1]
    assert isinstance(end, Finished)
    assert end.reason == "length"


def test_one_terminal_event_each(model: DiffusionGemma) -> None:
    engine = Engine(model, max_rows=2)
    ids = [engine.submit(request(i)) for i in range(6)]
    engine.step()
    engine.cancel(ids[0])  # running
    engine.cancel(ids[5])  # waiting
    engine.cancel(12345)  # unknown: nothing happens
    ends = [e for e in drain(engine) if isinstance(e, Finished | Failed)]
    assert sorted(e.request_id for e in ends) == ids
    cancelled = {e.request_id for e in ends if isinstance(e, Finished) and e.reason == "cancelled"}
    assert cancelled == {ids[0], ids[5]}


def test_a_second_turn_reuses_the_first_and_changes_nothing(model: DiffusionGemma) -> None:
    engine = Engine(model)
    first = Request(prompt(1, 40), PARAMS)
    engine.submit(first)
    answer = [t for e in drain(engine) if isinstance(e, Committed) for t in e.tokens]
    second = Request((*first.tokens, *answer, 9, 8, 7), PARAMS)
    engine.submit(second)
    events = drain(engine)
    end = events[-1]
    assert isinstance(end, Finished)
    assert end.usage.cached_tokens >= 40
    assert tokens_of(events, end.request_id) == alone(model, second)


def test_the_prefix_cache_forgets_the_least_recently_used(model: DiffusionGemma) -> None:
    engine = Engine(model)
    engine.submit(request(1))
    drain(engine)
    one = engine.prefixes.bytes
    engine.submit(request(4))
    drain(engine)
    assert engine.prefixes.take((*request(1).tokens, 3)) is not None
    assert engine.prefixes.take((*request(4).tokens, 3)) is not None
    engine.prefixes.limit = engine.prefixes.bytes - one // 2
    engine.submit(request(6))
    drain(engine)
    assert engine.prefixes.bytes <= engine.prefixes.limit
    assert engine.prefixes.take((*request(1).tokens, 3)) is None
    assert engine.prefixes.take((*request(6).tokens, 3)) is not None


def test_drafts_come_only_when_asked_and_describe_the_canvas(model: DiffusionGemma) -> None:
    quiet = list(Driver(Engine(model)).events(request(1)))
    assert not any(isinstance(e, Draft) for e in quiet)
    events = list(Driver(Engine(model)).events(replace(request(1), drafts=True)))
    drafts = [e for e in events if isinstance(e, Draft)]
    reports = events[-1].canvases
    assert [(d.canvas, d.step) for d in drafts] == [
        (c, s + 1) for c, r in enumerate(reports) for s in range(r.steps)
    ]
    for d in drafts:
        assert len(d.tokens) == len(d.entropy) == len(d.accepted) == len(d.changed) == 16
        assert any(d.accepted)
    last = [d for d in drafts if d.canvas == 0][-1]
    committed = next(e for e in events if isinstance(e, Committed))
    assert last.tokens[: len(committed.tokens)] == committed.tokens


def test_closing_the_iterator_cancels(model: DiffusionGemma) -> None:
    engine = Engine(model)
    events = Driver(engine).events(replace(request(1), drafts=True))
    next(events)
    events.close()
    assert not engine.has_work


def test_given_places_never_change(model: DiffusionGemma) -> None:
    given = {0: 33, 7: 12, 15: 1}
    for event in Driver(Engine(model)).events(replace(request(2), given=given, drafts=True)):
        if isinstance(event, Draft) and event.canvas == 0:
            assert all(event.tokens[place] == token for place, token in given.items())


def test_temperature_zero_ignores_the_sample(model: DiffusionGemma) -> None:
    """At temperature 0 what is accepted is the argmax; the seed still draws the noise."""
    for event in Driver(Engine(model)).events(replace(request(3, temperature=0), drafts=True)):
        assert not isinstance(event, Failed)


def test_a_random_seed_is_reported_and_repeats(model: DiffusionGemma) -> None:
    engine = Engine(model)
    first = list(Driver(engine).events(replace(request(1), params=replace(PARAMS, seed=-1))))
    again = list(Driver(engine).events(replace(request(1), params=replace(PARAMS, seed=first[-1].seed))))
    assert tokens_of(first, 0) == tokens_of(again, 1)
    other = list(Driver(engine).events(replace(request(1), params=replace(PARAMS, seed=None))))
    assert other[-1].seed != first[-1].seed


def test_what_can_never_run_is_refused_at_once(model: DiffusionGemma) -> None:
    engine = Engine(model, max_context=64)
    with pytest.raises(PromptTooLong, match=r"50 tokens.*canvas of 16.*context of 64"):
        engine.submit(Request(prompt(1, 50), PARAMS))
    with pytest.raises(UsageError, match="empty"):
        engine.submit(Request((), PARAMS))
    with pytest.raises(UsageError, match="vocabulary of 64"):
        engine.submit(Request((64,), PARAMS))
    for place in (-1, 32):  # of the two canvases that 24 tokens need
        with pytest.raises(UsageError, match=f"given place {place} is outside the 32 places"):
            engine.submit(Request((3,), PARAMS, given={place: 3}))
    assert not engine.has_work


def test_an_answer_ends_where_the_context_does(model: DiffusionGemma) -> None:
    engine = Engine(model, max_context=64)
    engine.submit(Request(prompt(1, 30), replace(PARAMS, max_new_tokens=1000)))
    end = drain(engine)[-1]
    assert isinstance(end, Finished)
    assert (end.reason, end.usage.completion_tokens) == ("length", 32)


def test_a_failure_ends_its_requests_and_not_the_engine(
    model: DiffusionGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model)
    with monkeypatch.context() as patch:
        patch.setattr(engine.runner, "run", lambda _: 1 / 0)
        engine.submit(request(1))
        (failed,) = drain(engine)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, EngineFailure)
    assert "division by zero" in str(failed.error)
    engine.submit(request(1))
    assert isinstance(drain(engine)[-1], Finished)


@pytest.mark.parametrize("sampler", ["probability_threshold", "ancestral"])
def test_other_samplers_run_and_repeat(model: DiffusionGemma, sampler: str) -> None:
    one = request(6, sampler=sampler)
    tokens = alone(model, one)
    assert tokens == alone(model, one)
    assert tokens == generate(model, one.tokens, one.params, one.eos_token_ids)[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs(dtype: torch.dtype) -> None:
    end = list(Driver(Engine(tiny_model().to(dtype))).events(Request((3, 4, 5), PARAMS)))[-1]
    assert isinstance(end, Finished)
