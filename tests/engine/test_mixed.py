"""One pass a step: prompts, committed canvases and live canvases of all sequences go
through the layers together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from canvaslm.cache import DenoiseContext
from canvaslm.engine import Engine
from canvaslm.engine.reference import generate
from canvaslm.engine.scheduler import ENCODE_CHUNK
from canvaslm.model.diffusion_gemma import DiffusionGemma
from canvaslm.ops import cpu
from canvaslm.types import (
    Committed,
    Draft,
    Event,
    Failed,
    Finished,
    Params,
    Request,
)
from canvaslm.weights.gguf.load import load_quantised
from tests.tiny import tiny_model, write_tiny_gguf

S, F = "sliding_attention", "full_attention"
PARAMS = Params(max_new_tokens=48, max_denoising_steps=5, confidence_threshold=0.3, seed=0)


@pytest.fixture(scope="module")
def plain() -> DiffusionGemma:
    return scalars(tiny_model(canvas_length=16, sliding_window=24, num_layers=3, layer_types=(S, S, F)))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> DiffusionGemma:
    if not cpu.available():
        pytest.skip(f"no native kernels: {cpu.problem()}")
    sizes = {"vocab_size": 1024, "hidden_size": 256, "intermediate_size": 160, "moe_intermediate_size": 96}
    model = scalars(tiny_model(canvas_length=16, sliding_window=24, **sizes))
    path = write_tiny_gguf(model, tmp_path_factory.mktemp("packed") / "m.gguf", "Q4_K_M")
    loaded = load_quantised(path).model
    assert isinstance(loaded, DiffusionGemma)
    return loaded


@pytest.fixture(params=["plain", "packed"])
def model(request: pytest.FixtureRequest) -> DiffusionGemma:
    return request.getfixturevalue(request.param)


def scalars(model: DiffusionGemma) -> DiffusionGemma:
    """Encoder and decoder scalars apart, so that a token of the wrong kind shows."""
    for i, layer in enumerate(model.layers):
        layer.layer_scalar.fill_(0.9 + 0.05 * i)
        layer.encoder_layer_scalar.fill_(1.1 - 0.05 * i)
    return model


def prompt(index: int, length: int) -> tuple[int, ...]:
    return tuple((7 * index + 3 * i + i * i) % 60 + 2 for i in range(length))


def request(index: int, length: int, **changes: Any) -> Request:
    params = replace(PARAMS, seed=index, **changes)
    return Request(prompt(index, length), params, drafts=True, top_logprobs=2)


def crowd() -> list[Request]:
    """Prompts from one token to several chunks, canvases of two to seven steps: rows are
    soon in all phases at once."""
    lengths = (40, 1, 600, 13, 1100, 16, 90, 3, 25)
    return [request(i, n, max_denoising_steps=2 + i % 6) for i, n in enumerate(lengths)]


def play(engine: Engine, arrivals: dict[int, list[Request]]) -> dict[int, list[Event]]:
    """Events of each request, numbered in order of arrival; arrivals: step ->
    requests that come before it."""
    events: dict[int, list[Event]] = {}
    step = 0
    while engine.has_work or step <= max(arrivals):
        for one in arrivals.get(step, []):
            events[engine.submit(one)] = []
        for event in engine.step():
            events[event.request_id].append(event)
        step += 1
    return events


def facts(events: list[Event]) -> list[object]:
    """All that was computed, to the last bit: drafts with their entropies, commits with
    their log-probabilities."""
    return [
        (type(e), *(v for k, v in vars(e).items() if k not in ("request_id", "timings", "usage")))
        for e in events
    ]


def tokens_of(events: list[Event]) -> list[int]:
    return [t for e in events if isinstance(e, Committed) for t in e.tokens]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(tokens, encoded tokens) of each pass of any model."""
    seen: list[tuple[int, int]] = []
    forward = DiffusionGemma.forward

    def counting(self: DiffusionGemma, tokens: torch.Tensor, *rest: object, **how: object) -> torch.Tensor:
        seen.append((tokens.shape[1], rest[2]))  # type: ignore[arg-type]
        return forward(self, tokens, *rest, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(DiffusionGemma, "forward", counting)
    return seen


def test_a_mixed_pass_changes_no_bit(model: DiffusionGemma) -> None:
    """Requests come at different times, so that in most steps some rows encode while others denoise."""
    requests = crowd()
    arrivals = {0: requests[:3], 2: requests[3:5], 3: requests[5:6], 9: requests[6:]}
    mixed = play(Engine(model, prefix_memory=0), arrivals)
    apart = play(Engine(model, prefix_memory=0, mixed=False), arrivals)
    assert mixed.keys() == apart.keys()
    for number in mixed:
        assert facts(mixed[number]) == facts(apart[number])
        assert isinstance(mixed[number][-1], Finished)


@torch.inference_mode()
def test_what_is_encoded_is_the_same_to_the_last_bit(model: DiffusionGemma) -> None:
    """After a prompt and two commits, canvases see the same keys and values in every layer."""
    found: list[list[torch.Tensor]] = []
    for mixed in (True, False):
        engine, seen = Engine(model, mixed=mixed), []
        ids = [
            engine.submit(request(i, n, max_denoising_steps=2, confidence_threshold=0.0))
            for i, n in ((3, 30), (4, 9))
        ]
        for _ in range(5):
            engine.step()
        torch.manual_seed(0)
        for number in ids:
            sequence = engine.scheduler.find(number)
            assert sequence is not None
            assert sequence.cache is not None
            assert sequence.cache.length == len(sequence.request.tokens) + 32
            context = DenoiseContext(sequence.cache)
            for layer in range(len(model.layers)):
                width = model.config.head_dim_of(layer)
                q = torch.randn(1, 4, 16, width)
                k, v = torch.randn(2, 1, model.config.kv_heads_of(layer), 16, width)
                seen.append(context.denoise_attention(layer, q, k, v, torch.arange(16)[None]))
        found.append(seen)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("late", [0, 1, 2, 3, 5])
def test_same_bits_alone_and_among_rows_in_other_phases(
    model: DiffusionGemma, late: int, deterministic: bool
) -> None:
    mine = request(99, 21)
    (alone,) = play(Engine(model), {0: [mine]}).values()
    engine = Engine(model, deterministic=deterministic)
    others = crowd()
    events = play(engine, {0: others[:5], late: [*others[5:7], mine], late + 1: others[7:]} if late else {
        0: [mine, *others[:5]], 1: others[5:]
    })  # fmt: skip
    (number,) = [i for i, es in events.items() if es[-1].seed == 99]
    assert facts(events[number]) == facts(alone)


def test_a_step_is_one_pass(plain: DiffusionGemma, passes: list[tuple[int, int]]) -> None:
    engine = Engine(plain)
    for one in (request(0, 40), request(1, 25), request(2, 33, max_denoising_steps=2)):
        engine.submit(one)
    while engine.has_work:
        before = len(passes)
        engine.step()
        assert len(passes) - before == 1
    mixed = [(tokens, encoded) for tokens, encoded in passes if 0 < encoded < tokens]
    assert mixed[0] == (40 + 25 + 33 + 3 * 16, 40 + 25 + 33)  # prompts and first steps
    assert (16 + 3 * 16, 16) in mixed  # a commit and its next canvas among other canvases


def test_a_single_request_never_waits_for_a_pass_of_its_own(
    plain: DiffusionGemma, passes: list[tuple[int, int]]
) -> None:
    (events,) = play(Engine(plain), {0: [request(5, 100)]}).values()
    end = events[-1]
    assert isinstance(end, Finished)
    assert len(passes) == sum(report.steps for report in end.canvases)


@pytest.mark.parametrize("window", [2, 3, 8, 15, 16, 17, 24, 31, 32, 33, 64])
@pytest.mark.parametrize("length", [1, 7, 16, 31, 40])
def test_canvases_behind_a_commit_see_just_their_window(window: int, length: int) -> None:
    """Windows shorter and longer than a canvas, and ending on both sides of the border
    between cache and commit."""
    world = scalars(tiny_model(canvas_length=16, sliding_window=window))
    one = request(1, length, max_denoising_steps=3)
    (events,) = play(Engine(world), {0: [one]}).values()
    assert tokens_of(events) == generate(world, one.tokens, one.params)[0]
    (apart,) = play(Engine(world, mixed=False), {0: [one]}).values()
    assert facts(events) == facts(apart)


def test_sliding_layers_forget_and_still_serve_the_next_canvas() -> None:
    """A long answer: sliding layers drop tokens several times, each time between a
    commit and the next canvas."""
    world = scalars(tiny_model(canvas_length=16, sliding_window=8))
    one = request(7, 50, max_new_tokens=640, max_denoising_steps=1)
    (events,) = play(Engine(world), {0: [one]}).values()
    assert tokens_of(events) == generate(world, one.tokens, one.params)[0]


def test_live_canvases_step_on_while_a_long_prompt_is_encoded(
    plain: DiffusionGemma, passes: list[tuple[int, int]]
) -> None:
    engine = Engine(plain)
    quick = engine.submit(request(0, 20, max_new_tokens=16 * 6, max_denoising_steps=2))
    engine.step()
    long = engine.submit(request(1, 8 * ENCODE_CHUNK + 10))
    short = engine.submit(request(2, 10))
    order = []
    for _ in range(10):
        order.append([e.request_id for e in engine.step() if isinstance(e, Draft)])
        assert passes[-1][1] <= ENCODE_CHUNK + 16  # a chunk, and a commit
    assert all(quick in drafts for drafts in order)  # one step each, whoever else is there
    assert [long in drafts for drafts in order] == [False] * 8 + [True] * 2
    assert [short in drafts for drafts in order] == [False] * 8 + [True] * 2  # first come, first served


def test_what_is_left_of_the_budget_goes_to_the_next_that_fits(plain: DiffusionGemma) -> None:
    engine = Engine(plain)
    lengths = (300, 300, 200, 20, ENCODE_CHUNK)
    ids = [engine.submit(request(i, n)) for i, n in enumerate(lengths)]
    first: dict[int, int] = {}
    for step in range(3):
        for event in engine.step():
            first.setdefault(event.request_id, step)
    assert [first[i] for i in ids] == [0, 1, 0, 1, 2]


def test_no_prompt_waits_forever(plain: DiffusionGemma) -> None:
    """Short prompts keep coming; the large one in the middle still has its turn."""
    engine = Engine(plain, max_rows=6)
    arrivals = {step: [request(step, 300, max_denoising_steps=1, max_new_tokens=16)] for step in range(30)}
    arrivals[3].append(request(50, ENCODE_CHUNK, max_denoising_steps=1, max_new_tokens=16))
    events = play(engine, arrivals)
    assert len(events) == 31
    assert all(isinstance(es[-1], Finished) for es in events.values())


def fail_for(engine: Engine, wrong: Callable[[int], bool]) -> Callable[..., object]:
    run = engine.runner.run

    def broken(rows: list[object]) -> object:
        if any(wrong(row.sequence.id) for row in rows):  # type: ignore[attr-defined]
            raise ValueError("no memory for this row")
        return run(rows)  # type: ignore[arg-type]

    return broken


def test_only_the_row_that_cannot_run_fails(plain: DiffusionGemma, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(plain)
    requests = [request(i, 20 + i) for i in range(4)]
    monkeypatch.setattr(engine.runner, "run", fail_for(engine, lambda number: number == 2))
    events = play(engine, {0: requests[:2], 1: requests[2:]})
    assert isinstance(events[2][-1], Failed)
    for number in (0, 1, 3):
        (alone,) = play(Engine(plain), {0: [requests[number]]}).values()
        assert facts(events[number]) == facts(alone)


def test_a_failed_pass_leaves_every_row_as_it_was(
    plain: DiffusionGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails after all keys and values were written: the rows run again, one by
    one, with the same result."""
    engine, requests = Engine(plain), [request(i, 20 + i) for i in range(3)]
    predict = engine.runner._predict

    def broken(sequences: list[object], *rest: object) -> object:
        if len(sequences) > 1:
            raise MemoryError
        return predict(sequences, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(engine.runner, "_predict", broken)
    for number, events in play(engine, {0: requests}).items():
        (alone,) = play(Engine(plain), {0: [requests[number]]}).values()
        assert facts(events) == facts(alone)


def test_times_add_up(plain: DiffusionGemma) -> None:
    (events,) = play(Engine(plain), {0: [request(5, 100)]}).values()
    times = events[-1].timings
    assert 0 < times.encode < times.denoise
    assert times.encode + times.denoise <= times.total
