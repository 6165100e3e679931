"""Places that are sure are left out of further steps, with the keys, values and guess that they have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import canvaslm
from canvaslm.cache import DenoiseContext, EncodeContext, KVCache
from canvaslm.demo.tasks import TASKS
from canvaslm.engine import Engine
from canvaslm.engine.reference import generate
from canvaslm.errors import UsageError
from canvaslm.evals.demo import heldout_items
from canvaslm.model import Model, RowsContext
from canvaslm.ops import cpu
from canvaslm.types import Failed, Finished, Params, Request
from canvaslm.weights.gguf.load import load_quantised
from tests.tiny import tiny_model, write_tiny_gguf

from .kept_oracle import keep_generate

PLACES, END = 32, 7


@pytest.fixture(scope="module")
def plain() -> Model:
    return tiny_model(seed=3, canvas_length=PLACES)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Model:
    if not cpu.available():
        pytest.skip(f"no native kernels: {cpu.problem()}")
    sizes = {"vocab_size": 1024, "hidden_size": 256, "intermediate_size": 160, "moe_intermediate_size": 96}
    world = tiny_model(seed=3, canvas_length=PLACES, **sizes)
    path = write_tiny_gguf(world, tmp_path_factory.mktemp("packed") / "m.gguf", "Q4_K_M")
    return load_quantised(path).model


@pytest.fixture(params=["plain", "native"])
def model(request: pytest.FixtureRequest) -> Model:
    return request.getfixturevalue(request.param)


def asked(
    seed: int = 0, given: dict[int, int] | None = None, top: int | None = None, **changes: Any
) -> Request:
    """keep_entropy far above what is good for answers: a random model is seldom sure."""
    params = {"max_new_tokens": PLACES, "max_denoising_steps": 9, "seed": seed, "keep_steps": 2}
    prompt = tuple(range(5, 18 + seed % 3))
    return Request(
        prompt, Params(**{**params, "keep_entropy": 2.5, **changes}), (END,), given=given or {},
        top_logprobs=top, drafts=True,
    )  # fmt: skip


def run(model: Model, requests: list[Request], **options: Any) -> list[list[Any]]:
    """The events of each."""
    engine = Engine(model, **options)
    ids = [engine.submit(request) for request in requests]
    found: dict[int, list[Any]] = {i: [] for i in ids}
    while engine.has_work:
        for event in engine.step():
            found[event.request_id].append(event)
    return [found[i] for i in ids]


def said(events: list[Any]) -> list[Any]:
    """All that was said of an answer, step after step, but for times and the number of the request."""
    return [
        (e.canvases, e.usage.completion_tokens) if isinstance(e, Finished) else replace(e, request_id=0)
        for e in events
    ]


@pytest.mark.parametrize("seed", range(6))
def test_what_the_oracle_writes(plain: Model, seed: int) -> None:
    """Tokens and the number of places computed, with and without given ones, as plain loops have them."""
    for given in ({}, {2: 9, 20: 11}):
        request = asked(seed, given, max_new_tokens=PLACES)
        *_, end = run(plain, [request])[0]
        (report,) = end.canvases
        wanted, counts = keep_generate(plain, request.tokens, request.params, (END,), plain.fewest, given)
        drafts = run(plain, [request])[0][:-2]
        assert list(drafts[-1].tokens) == wanted
        assert report.steps == len(counts) and report.computed == sum(counts) < report.steps * PLACES


def test_without_it_the_answer_is_the_references(plain: Model) -> None:
    """Off, or with an entropy that no place is below."""
    for changes in ({"keep_steps": 0}, {"keep_entropy": 0.0}):
        request = asked(1, **changes)
        wanted, reports = generate(
            plain, request.tokens, replace(request.params, keep_steps=0), request.eos_token_ids
        )
        *_, committed, end = run(plain, [request])[0]
        assert list(committed.tokens) == wanted
        assert [(c.steps, c.stop, c.computed) for c in end.canvases] == [
            (c.steps, c.stop, c.computed) for c in reports
        ]


def crowd() -> list[Request]:
    ways: list[dict[str, Any]] = [
        {}, {"keep_steps": 0}, {"keep_steps": 3}, {"top": 3}, {"given": {3: 9}},
        {"max_new_tokens": 3 * PLACES},
        {"first_places": 16, "stability_threshold": 0}, {"verify": "greedy", "verify_steps": 4},
        {"settle_steps": 2, "settle_entropy": 2.5}, {"sampler": "ancestral"}, {"canvas_length": 24},
        {"top_k": 5, "top_k_tail_correction": True},
    ]  # fmt: skip
    return [asked(seed, **how) for seed, how in enumerate(ways)]


def test_alone_as_in_a_crowd(model: Model) -> None:
    """Every draft, entropy and log-probability to the bit, whoever else there is and however many fit."""
    requests = crowd()
    alone = [said(run(model, [request])[0]) for request in requests]
    computed = [sum(c.computed for c in events[-1][0]) for events in alone]
    whole = [sum(c.steps * c.places for c in events[-1][0]) for events in alone]
    assert sum(a < b for a, b in zip(computed, whole, strict=True)) >= 8
    assert [said(events) for events in run(model, requests)] == alone
    assert [said(events) for events in run(model, requests, max_rows=3)] == alone
    assert [said(events) for events in run(model, requests, mixed=False)] == alone


def test_a_pass_that_failed_is_made_again_whole(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that breaks off in the last layer has changed nothing that the next one reads."""
    requests = [asked(seed) for seed in range(3)]
    wanted = [said(events) for events in run(model, requests)]
    engine, broken = Engine(model), 0
    forward = model.layers[-1].forward

    def breaking(x: Any, *others: Any, **how: Any) -> Any:
        nonlocal broken
        made = forward(x, *others, **how)
        if x.shape[1] > PLACES:  # more than one row
            broken += 1
            raise RuntimeError("broken")
        return made

    monkeypatch.setattr(model.layers[-1], "forward", breaking)
    ids = [engine.submit(request) for request in requests]
    found: dict[int, list[Any]] = {i: [] for i in ids}
    while engine.has_work:
        for event in engine.step():
            assert not isinstance(event, Failed)
            found[event.request_id].append(event)
    assert broken > 2
    assert [said(found[i]) for i in ids] == wanted


@torch.inference_mode()
def test_a_step_of_equal_inputs_gives_the_kept_rows_bits(model: Model) -> None:
    """What is computed beside kept keys and values is what a step of all places computes."""
    g = torch.Generator().manual_seed(0)
    prompt, canvas = (torch.randint(10, 60, (n,), generator=g) for n in (40, PLACES))
    soft = torch.randn(PLACES, model.config.hidden_size, generator=g)
    cache = KVCache(model.config, "cpu", torch.float32, store=model.store)
    context = RowsContext([(EncodeContext(cache), len(prompt))], [])
    model.encode(prompt[None], torch.arange(len(prompt))[None], context)
    cache.advance(len(prompt))
    own, positions = cache.new_canvas_keys(PLACES), len(prompt) + torch.arange(PLACES)

    def step(places: torch.Tensor | None) -> torch.Tensor:
        which = torch.arange(PLACES) if places is None else places
        seen = RowsContext([], [(DenoiseContext(cache, 0, own, places), len(which))])
        return model.denoise(canvas[which][None], positions[which][None], seen, soft[which][None])[0]

    whole = step(None)
    without = RowsContext([], [(DenoiseContext(cache), PLACES)])
    assert torch.equal(model.denoise(canvas[None], positions[None], without, soft[None])[0], whole)
    for count in (max(16, model.fewest), 23, model.fewest):
        places = torch.randperm(PLACES, generator=g)[:count].sort().values
        assert torch.equal(step(places), whole[places])


@torch.inference_mode()
def test_native_is_what_plain_is(native: Model, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The kernels' own rounding apart, beside kept keys of another state."""
    g = torch.Generator().manual_seed(1)
    from canvaslm.ops.attention import attend

    config = native.config
    heads, width = config.kv_heads_of(0), config.head_dim_of(0)
    old, new = (torch.randn(2, heads, PLACES, width, generator=g) for _ in range(2))
    q = torch.randn(config.num_heads, 9, width, generator=g)
    places = torch.tensor([0, 1, 4, 5, 6, 11, 30, 31])
    outputs = []
    for store in ("tensors", "blocks"):
        cache = KVCache(config, "cpu", torch.float32, store=store)
        own = cache.new_canvas_keys(PLACES)
        own.put(0, old[0], old[1], None)
        own.put(0, new[0][:, places], new[1][:, places], places)
        outputs.append(cache.denoise_kept(0, q, own))
    merged = old.index_copy(2, places, new[:, :, places])
    wanted = attend(q[None], merged[0][None], merged[1][None])
    assert torch.equal(outputs[0], wanted)
    assert float((outputs[1] - wanted).abs().max()) < 5e-3 * float(wanted.abs().max())


def test_the_memory_of_a_canvas_is_counted(model: Model) -> None:
    engine = Engine(model)
    numbers = [engine.submit(asked(keep_steps=steps)) for steps in (0, 2)]
    without, kept = (engine.scheduler.find(i).kv_bytes for i in numbers)
    assert kept > without
    engine = Engine(model, kv_memory=without)
    engine.submit(asked(keep_steps=0))
    with pytest.raises(UsageError, match="MiB of keys and values"):
        engine.submit(asked(keep_steps=2))


def test_every_place_is_computed_where_all_are_asked_about(model: Model) -> None:
    request = replace(asked(), watched={0: (9, 10)})
    *_, end = run(model, [request])[0]
    assert all(canvas.computed == canvas.steps * canvas.places for canvas in end.canvases)


def test_the_demo_answers_as_well_with_fewer_places() -> None:
    """Sorting and long answers: fewer places computed, and no answer lost beyond chance."""
    with canvaslm.load() as session:
        for name, count, share in (("sort", 40, 0.95), ("long", 8, 0.7)):
            items = heldout_items(TASKS[name], count, 11)
            right, computed = [0, 0], [0, 0]
            for way, how in enumerate(({}, {"keep_steps": 2})):
                found = session.generate_many([i.messages for i in items], seed=3, **how)  # type: ignore[arg-type]
                for reply in found:
                    right[way] += TASKS[name].check(items[reply.index], reply.text)
                    computed[way] += sum(canvas.computed for canvas in reply.canvases)
            assert right[1] >= right[0] - 2, name
            assert computed[1] < share * computed[0], name
