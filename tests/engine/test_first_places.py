"""A first canvas that begins with fewer places, and has all of them if the draft does not end within."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import canvaslm
from canvaslm.demo.tasks import TASKS
from canvaslm.engine import Engine
from canvaslm.engine.reference import generate
from canvaslm.errors import UsageError
from canvaslm.evals.demo import heldout_items
from canvaslm.model.diffusion_gemma import DiffusionGemma
from canvaslm.types import Draft, Params, Request
from tests.engine.scripts import answer_of, scripted_engine
from tests.tiny import tiny_model

END = 7


@pytest.fixture(scope="module")
def model() -> DiffusionGemma:
    return tiny_model(seed=3, canvas_length=32)


def asked(seed: int = 0, **changes: Any) -> Request:
    params = {"max_new_tokens": 60, "max_denoising_steps": 6, "seed": seed, "first_places": 16, **changes}
    return Request(tuple(range(5, 18)), Params(**params), (END,), drafts=True)


def lengths(engine: Engine, request: Request) -> list[int]:
    """Places of the canvas after each step."""
    engine.submit(request)
    drafts = []
    while engine.has_work:
        drafts += [len(event.tokens) for event in engine.step() if isinstance(event, Draft)]
    return drafts


@pytest.mark.parametrize("at", [0, 11, 12, 15, 20])
def test_a_draft_must_end_before_the_last_quarter(model: DiffusionGemma, at: int) -> None:
    text = [20] * at + [END, 30]
    engine = scripted_engine(model, [lambda done: text])
    (first, *_), end = answer_of(engine, asked())
    assert first == text[: at + 1]
    assert end.canvases[0].places == (16 if at < 12 else 32)
    assert lengths(scripted_engine(model, [lambda done: text]), asked())[0] == 16


def test_an_outgrown_canvas_is_the_references(model: DiffusionGemma) -> None:
    outgrown = 0
    for seed in range(6):
        request = asked(seed)
        canvases, end = answer_of(Engine(model), request)
        tokens = [token for canvas in canvases for token in canvas]
        whole = replace(request.params, first_places=0)
        small = replace(whole, canvas_length=16)
        if end.canvases[0].places == 32:
            outgrown += 1
            wanted, reports = generate(model, request.tokens, whole, request.eos_token_ids)
            assert end.canvases[0].steps > reports[0].steps, "steps in vain are counted"
        else:
            wanted, _ = generate(model, request.tokens, small, request.eos_token_ids)
        assert tokens == wanted
    assert outgrown


def test_the_same_in_a_crowd(model: DiffusionGemma) -> None:
    crowd = [
        asked(seed, **how) for seed in range(3) for how in ({}, {"first_places": 0}, {"verify": "greedy"})
    ]
    engine = Engine(model)
    ids = [engine.submit(request) for request in crowd]
    found: dict[int, list[Any]] = {i: [] for i in ids}
    while engine.has_work:
        for event in engine.step():
            found[event.request_id].append(getattr(event, "tokens", None))
    for number, request in zip(ids, crowd, strict=True):
        engine = Engine(model)
        engine.submit(request)
        alone = []
        while engine.has_work:
            alone += [getattr(event, "tokens", None) for event in engine.step()]
        assert found[number] == alone


def test_given_places_want_the_whole_canvas(model: DiffusionGemma) -> None:
    assert set(lengths(Engine(model), replace(asked(), given={20: 5}))) == {32}
    assert lengths(Engine(model), asked(first_places=-1))[0] == 16
    assert set(lengths(Engine(model), asked(first_places=40))) == {32}


def test_too_few_places_are_refused(model: DiffusionGemma) -> None:
    with pytest.raises(UsageError, match="first_places = -2 is out of range"):
        Engine(model).submit(asked(first_places=-2))


def test_lean_answers_as_well_with_fewer_places() -> None:
    """Sorting and capitals, 40 items each: the places computed, and no answer lost beyond chance."""
    with canvaslm.load() as session:
        right, places = {"lean": 0, "": 0}, {"lean": 0, "": 0}
        for name in ("sort", "capitals"):
            items = heldout_items(TASKS[name], 40, 5)
            for preset in right:
                how: Any = {"preset": preset} if preset else {}
                for reply in session.generate_many([item.messages for item in items], seed=3, **how):
                    right[preset] += TASKS[name].check(items[reply.index], reply.text)
                    places[preset] += sum(canvas.steps * canvas.places for canvas in reply.canvases)
    assert right["lean"] >= right[""] - 4
    assert places["lean"] < 0.7 * places[""]
