"""Equal token ids are not equal context: another identity or content never shares keys and values."""

from __future__ import annotations

from dataclasses import replace

import pytest

from canvaslm.engine import Engine
from canvaslm.errors import UsageError
from canvaslm.model.diffusion_gemma import DiffusionGemma
from canvaslm.types import Event, Finished, Params, Request

PROMPT = tuple(5 + (7 * i) % 50 for i in range(300))
ONE = Request(PROMPT, Params(max_new_tokens=32, max_denoising_steps=2, seed=1))
OTHERS = [
    replace(ONE, identity="an adapter"),
    replace(ONE, content_keys={0: "a picture"}),
    replace(ONE, identity="an adapter", content_keys={0: "a picture"}),
    replace(ONE, identity="another adapter"),
    replace(ONE, content_keys={0: "another picture"}),
    replace(ONE, content_keys={0: "a picture", 290: "a picture"}),
]


def cached(events: list[Event], request_id: int) -> int:
    (end,) = [e for e in events if isinstance(e, Finished) and e.request_id == request_id]
    return end.usage.cached_tokens


def run(engine: Engine, one: Request) -> int:
    """How many of its tokens were remembered."""
    request_id, events = engine.submit(one), []
    while engine.has_work:
        events += engine.step()
    return cached(events, request_id)


def test_what_is_remembered_is_found_by_its_own_kind_alone(model: DiffusionGemma) -> None:
    """The model is the plain one and the packed one: both stores of keys and values."""
    engine = Engine(model)
    assert run(engine, ONE) == 0
    found = [run(engine, other) for other in OTHERS]
    assert found[:-1] == [0] * (len(OTHERS) - 1)
    assert found[-1] == 290  # as far as contents are equal
    assert [run(engine, one) for one in (ONE, *OTHERS)] == [299] * (1 + len(OTHERS))


@pytest.mark.parametrize("other", OTHERS[:-1])
def test_a_running_neighbour_of_another_kind_lends_nothing(model: DiffusionGemma, other: Request) -> None:
    engine = Engine(model, prefix_memory=0)
    engine.submit(other)
    events = engine.step()
    ids = [engine.submit(ONE), engine.submit(other)]
    while engine.has_work:
        events += engine.step()
    assert [cached(events, i) for i in ids] == [0, 299]


def test_the_next_turn_finds_the_picture_of_the_last(model: DiffusionGemma) -> None:
    """What was committed behind it continues the same tree."""
    engine = Engine(model)
    seen = replace(ONE, content_keys={7: "a picture"}, identity="an adapter")
    request_id, events = engine.submit(seen), []
    while engine.has_work:
        events += engine.step()
    answer = [t for e in events if e.request_id == request_id and hasattr(e, "report") for t in e.tokens]
    turn = replace(seen, tokens=(*PROMPT, *answer, 5, 6))
    assert run(engine, replace(turn, content_keys={7: "another"})) <= 7
    assert run(engine, turn) >= 300 + 16


def test_forgotten_identities_leave_nothing_behind(plain_model: DiffusionGemma) -> None:
    engine = Engine(plain_model, prefix_memory=0)
    for number in range(5):
        run(engine, replace(ONE, identity=f"adapter {number}"))
    assert not engine.prefixes._roots


@pytest.mark.parametrize("index", [-1, 300])
def test_a_content_key_belongs_to_a_token(plain_model: DiffusionGemma, index: int) -> None:
    with pytest.raises(UsageError, match="content key belongs to no token"):
        Engine(plain_model).submit(replace(ONE, content_keys={index: "a picture"}))
