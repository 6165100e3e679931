"""What single places may take, and drafts that canvases begin with."""

from __future__ import annotations

from contextlib import closing

import pytest

from canvaslm.diffusion import start_canvas
from canvaslm.engine import Driver, Engine
from canvaslm.errors import UsageError
from canvaslm.types import Committed, Failed, Params, Request

from ..tiny import tiny_model

PROMPT = (2, 7, 9)


def _answer(engine: Engine, request: Request) -> list[int]:
    tokens: list[int] = []
    with closing(Driver(engine).events(request)) as events:
        for event in events:
            assert not isinstance(event, Failed), event
            tokens += event.tokens if isinstance(event, Committed) else ()
    return tokens


def _bits(*tokens: int) -> bytes:
    return sum(1 << token for token in tokens).to_bytes(8, "little")


@pytest.mark.parametrize("seed", range(5))
def test_places_take_only_what_is_allowed_there(seed: int) -> None:
    engine = Engine(tiny_model())
    params = Params(max_new_tokens=20, seed=seed, max_denoising_steps=6)
    allowed = {0: _bits(5), 3: _bits(11, 13), 9: _bits(17), 19: _bits(63, 1)}
    tokens = _answer(engine, Request(PROMPT, params, allowed=allowed))
    assert tokens[0] == 5 and tokens[3] in (11, 13) and tokens[9] == 17 and tokens[19] in (63, 1)
    free = _answer(engine, Request(PROMPT, params))
    assert free != tokens and len(free) == len(tokens) == 20


def test_other_rows_keep_their_tokens() -> None:
    params = Params(max_new_tokens=16, seed=3, max_denoising_steps=6)
    alone = _answer(Engine(tiny_model()), Request(PROMPT, params))
    both: dict[int, list[int]] = {0: [], 1: []}
    requests = [Request(PROMPT, params), Request(PROMPT, params, allowed={2: _bits(5)})]
    for index, event in Driver(Engine(tiny_model())).events_of_many(requests, 2):
        both[index] += event.tokens if isinstance(event, Committed) else ()
    assert both[0] == alone and both[1][2] == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"allowed": {0: b""}}, "names no token, or one outside the vocabulary of 64"),
        ({"allowed": {0: b"\0" * 8 + b"\1"}}, "outside the vocabulary of 64"),
        ({"allowed": {99: b"\1"}}, "the given place 99 is outside"),
        ({"draft": {0: 64}}, "a token id is outside the vocabulary"),
        ({"draft_noise": -0.1}, r"draft_noise = -0.1 is out of range"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Engine(tiny_model()).submit(Request(PROMPT, Params(max_new_tokens=8), **changes))  # type: ignore[arg-type]


def test_a_canvas_begins_with_its_draft_but_for_a_share() -> None:
    draft = dict.fromkeys(range(512), 70)
    whole = start_canvas(1, 0, 512, 64, draft=draft)
    assert set(whole.tokens[0].tolist()) == {70} and not whole.frozen.any()
    tokens = start_canvas(1, 0, 512, 64, draft=draft, draft_noise=0.8).tokens[0]
    kept = int((tokens == 70).sum())
    assert 70 < kept < 135  # 102 of 512 on average, six standard deviations of 9 around
    noise = start_canvas(1, 0, 512, 64).tokens[0]
    assert (tokens[tokens != 70] == noise[tokens != 70]).all()
    other = start_canvas(1, 1, 512, 64, draft=draft, draft_noise=0.8).tokens[0]
    assert ((other == 70) != (tokens == 70)).any()
    assert (start_canvas(1, 0, 512, 64, draft=draft, draft_noise=1.0).tokens[0] == noise).all()
