"""What goes beyond the reference: log-probabilities, early text, stopping at the EOS, memory budgets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from canvaslm.cache import KVCache
from canvaslm.engine import Driver, Engine
from canvaslm.engine.reference import generate
from canvaslm.errors import UsageError
from canvaslm.model.diffusion_gemma import DiffusionGemma
from canvaslm.types import (
    Committed,
    Draft,
    Event,
    Finished,
    Params,
    Request,
    Settled,
)
from tests.tiny import tiny_model

PARAMS = Params(max_new_tokens=40, max_denoising_steps=12, confidence_threshold=0.01, seed=4)
PROMPT = tuple(range(3, 20))


@pytest.fixture(scope="module")
def model() -> DiffusionGemma:
    return tiny_model(canvas_length=16)


def run(model: DiffusionGemma, request: Request, **options: Any) -> list[Event]:
    return list(Driver(Engine(model, **options)).events(request))


def tokens_of(events: list[Event]) -> list[int]:
    return [t for e in events if isinstance(e, Committed | Settled) for t in e.tokens]


def test_logprobs_are_those_of_the_committing_step(model: DiffusionGemma) -> None:
    events = run(model, Request(PROMPT, PARAMS, drafts=True, top_logprobs=3))
    committed = [e for e in events if isinstance(e, Committed)]
    assert committed
    for event in committed:
        assert len(event.logprobs) == len(event.tokens) == len(event.top_logprobs)
        for token, logprob, best in zip(event.tokens, event.logprobs, event.top_logprobs, strict=True):
            assert len(best) == 3
            assert best[0][0] == token  # the committed token is the argmax
            assert best[0][1] == pytest.approx(logprob, abs=1e-5)
            assert best[0][1] >= best[1][1] >= best[2][1]
            assert sum(torch.tensor([p for _, p in best]).exp()) <= 1 + 1e-5


def test_top_logprobs_of_a_vocabulary_beyond_one_tile() -> None:
    wide = tiny_model(vocab_size=9000)
    events = run(
        wide, Request(PROMPT, replace(PARAMS, max_new_tokens=8, max_denoising_steps=2), top_logprobs=5)
    )
    (event,) = [e for e in events if isinstance(e, Committed)]
    for best in event.top_logprobs:
        assert len({token for token, _ in best}) == 5


def test_without_asking_there_are_no_logprobs(model: DiffusionGemma) -> None:
    assert all(not e.logprobs for e in run(model, Request(PROMPT, PARAMS)) if isinstance(e, Committed))
    zero = run(model, Request(PROMPT, PARAMS, top_logprobs=0))
    assert all(e.logprobs and not e.top_logprobs for e in zero if isinstance(e, Committed))
    with pytest.raises(UsageError, match="top_logprobs"):
        Engine(model).submit(Request(PROMPT, PARAMS, top_logprobs=21))


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_what_was_sent_early_never_changes(model: DiffusionGemma, steps: int, seed: int) -> None:
    params = replace(PARAMS, settle_steps=steps, settle_entropy=0.3, seed=seed)
    sent: dict[int, list[int]] = {}
    events = run(model, Request(PROMPT, params, drafts=True))
    for event in events:
        if isinstance(event, Settled):
            sent.setdefault(event.canvas, []).extend(event.tokens)
        elif isinstance(event, Draft):
            early = sent.get(event.canvas, [])
            assert list(event.tokens[: len(early)]) == early
    assert len(tokens_of(events)) == 40
    assert events[-1].usage.completion_tokens == 40


def test_something_is_sent_early(model: DiffusionGemma) -> None:
    params = replace(PARAMS, settle_steps=1, settle_entropy=0.5)
    events = run(model, Request(PROMPT, params))
    assert any(isinstance(e, Settled) for e in events)


def test_stopping_at_the_eos_saves_steps_and_keeps_the_answer(model: DiffusionGemma) -> None:
    """Places after the EOS never settle by themselves here: the default rule waits for them in vain."""
    strict = replace(PARAMS, confidence_threshold=0.05)
    free, _ = generate(model, PROMPT, strict)
    eos = (free[1],)
    plain, aware = (
        run(model, Request(PROMPT, replace(strict, eos_aware_stopping=flag), eos))[-1]
        for flag in (False, True)
    )
    assert isinstance(plain, Finished)
    assert isinstance(aware, Finished)
    assert aware.canvases[0].steps <= plain.canvases[0].steps
    assert aware.reason == "stop"


def test_rows_one_at_a_time_give_the_same_tokens(model: DiffusionGemma) -> None:
    requests = [Request(PROMPT[i:], replace(PARAMS, seed=i)) for i in range(4)]
    results = []
    for deterministic in (False, True):
        engine = Engine(model, deterministic=deterministic)
        ids = [engine.submit(r) for r in requests]
        events = []
        while engine.has_work:
            events += engine.step()
        results.append([tokens_of([e for e in events if e.request_id == i]) for i in ids])
    assert results[0] == results[1]


def test_what_does_not_fit_in_memory_waits(model: DiffusionGemma) -> None:
    one = KVCache.estimate(model.config, len(PROMPT) + 48, torch.float32)
    engine = Engine(model, kv_memory=2 * one)
    ids = [engine.submit(Request(PROMPT, replace(PARAMS, seed=i))) for i in range(5)]
    finished, most = [], 0
    while engine.has_work:
        finished += [e.request_id for e in engine.step() if isinstance(e, Finished)]
        most = max(most, len(engine.scheduler.running))
    assert most == 2
    assert sorted(finished) == ids


def test_what_can_never_fit_is_refused_with_both_numbers(model: DiffusionGemma) -> None:
    engine = Engine(model, kv_memory=2**14)
    with pytest.raises(UsageError, match=r"MiB of keys and values, kv_memory is 0\.0 MiB"):
        engine.submit(Request(PROMPT, PARAMS))


def test_a_cache_takes_what_was_estimated(model: DiffusionGemma) -> None:
    engine = Engine(model)
    request_id = engine.submit(Request(PROMPT, PARAMS))
    engine.step()
    sequence = engine.scheduler.find(request_id)
    assert sequence is not None
    assert sequence.cache is not None
    assert 0 < sequence.cache.bytes <= sequence.kv_bytes


def test_a_running_neighbour_lends_its_prefix(model: DiffusionGemma) -> None:
    engine = Engine(model)
    engine.submit(Request(PROMPT, PARAMS))
    engine.step()
    late = Request((*PROMPT[:12], 60, 61), PARAMS)
    late_id = engine.submit(late)
    events = []
    while engine.has_work:
        events += engine.step()
    (end,) = [e for e in events if isinstance(e, Finished) and e.request_id == late_id]
    assert end.usage.cached_tokens == 12
    assert (
        tokens_of([e for e in events if e.request_id == late_id]) == generate(model, late.tokens, PARAMS)[0]
    )


def test_what_leaves_the_reference_equals_the_oracle_as_well(model: DiffusionGemma) -> None:
    """Stopping at the EOS and what is sent early, over many seeds and in a crowd."""
    requests, ends = [], set()
    for seed in range(48):
        params = replace(
            PARAMS,
            seed=seed,
            confidence_threshold=(0.05, 0.3)[seed % 2],
            eos_aware_stopping=seed % 3 > 0,
            settle_steps=(0, 1, 2)[seed // 3 % 3],
            settle_entropy=0.3,
        )
        requests.append(Request(PROMPT[seed % 7 :], params, ((), (21, 40), (5,))[seed // 2 % 3]))
    engine = Engine(model, max_rows=8)
    ids, events = [engine.submit(request) for request in requests], []
    while engine.has_work:
        events += engine.step()
    for request_id, one in zip(ids, requests, strict=True):
        mine = [e for e in events if e.request_id == request_id]
        tokens, reports = generate(model, one.tokens, one.params, one.eos_token_ids)
        assert tokens_of(mine) == tokens
        end = mine[-1]
        assert isinstance(end, Finished)
        assert [(r.steps, r.stop) for r in end.canvases] == [(r.steps, r.stop) for r in reports]
        assert [r.mean_entropy for r in end.canvases] == pytest.approx(
            [r.mean_entropy for r in reports], abs=1e-5
        )
        ends |= {r.stop for r in reports} | {end.reason}
    assert ends == {"converged", "max_steps", "stop", "length"}
    assert any(isinstance(e, Settled) for e in events)
    # Each option makes a difference that the oracle must know of.
    for option, off in (("eos_aware_stopping", False), ("settle_steps", 0)):
        without: Any = {option: off}
        using = [r for r in requests if getattr(r.params, option)]
        changed = [
            generate(model, r.tokens, r.params, r.eos_token_ids)
            != generate(model, r.tokens, replace(r.params, **without), r.eos_token_ids)
            for r in using
        ]
        assert any(changed), option
