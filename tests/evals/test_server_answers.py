"""Answers from servers: one that is made up, and ours."""

from __future__ import annotations

import threading
from threading import Event
from typing import Any

import pytest

from canvaslm.client import Endpoint
from canvaslm.errors import CanvasError, UsageError
from canvaslm.evals.answers import Answer
from canvaslm.evals.points import read_sweep
from canvaslm.evals.run import EvalOptions, evaluate
from canvaslm.evals.server_answers import ServerAnswerer

from ..bench.fake_server import faking
from ..server.world import serving, tiny_session
from ..waiting import HUNG, wait_for

ASKED = [[{"role": "user", "content": str(i)}] for i in range(6)]
SEEDS = list(range(6))


def said(body: dict[str, Any], **more: Any) -> tuple[int, Any]:
    text = f"{body['messages'][-1]['content']} of {body['seed']}"
    return 200, {"choices": [{"message": {"content": text}}], **more}


def ask(url: str, concurrency: int = 3, sleep: Any = None, **options: Any) -> list[tuple[int, Answer]]:
    answerer = ServerAnswerer(Endpoint.parse(url), "m", concurrency, sleep or (lambda seconds: None))
    return sorted(answerer(ASKED, SEEDS, **options), key=lambda found: found[0])


def test_bodies_have_seeds_parameters_and_forms() -> None:
    told = {"n_blocks": 2, "n_steps": 5, "n_reads": 2}
    usage = {"usage": {"completion_tokens": 7}, "timings": {"diffusion": told}}
    with faking(whole=lambda body: said(body, **usage)) as fake:
        forms = [{"schema": {"type": "object"}}, *[{"regex": "a+"}] * 5]
        found = ask(fake.url, max_new_tokens=9, max_denoising_steps=4, structures=forms)
    assert found == [(i, Answer(f"{i} of {i}", 7, (3, 2), 2)) for i in range(6)]
    bodies = sorted(fake.bodies, key=lambda body: body["seed"])
    assert bodies[0] == {
        "model": "m", "messages": ASKED[0], "max_tokens": 9, "max_denoising_steps": 4, "seed": 0,
        "structured_outputs": {"json": {"type": "object"}},
    }  # fmt: skip
    assert bodies[1]["structured_outputs"] == {"regex": "a+"}


def test_a_server_need_not_tell_of_tokens_and_steps() -> None:
    with faking(whole=said) as fake:
        assert ask(fake.url)[2] == (2, Answer("2 of 2", 0, ()))
    with faking(whole=lambda body: (200, {"choices": [{"message": {"content": None}}]})) as fake:
        assert ask(fake.url)[0] == (0, Answer("", 0, ()))


def test_a_busy_server_is_asked_again_and_not_for_ever() -> None:
    refusals, waited = [429, 503], list[float]()
    busy = lambda body: (refusals.pop(), {}) if refusals else said(body)  # noqa: E731
    with faking(whole=busy) as fake:
        assert len(ask(fake.url, 1, waited.append)) == 6
    assert waited == [1.0, 2.0]
    with (
        faking(whole=lambda body: (503, {"error": "busy"})) as fake,
        pytest.raises(CanvasError, match="busy"),
    ):
        ask(fake.url)


def test_what_goes_wrong_is_told() -> None:
    with faking(whole=lambda body: (400, {"error": {"message": "no such field: top_k"}})) as fake:
        with pytest.raises(UsageError, match="no such field: top_k"):
            ask(fake.url)
        with pytest.raises(UsageError, match="cannot be given"):
            ask(fake.url, pieces=[[("a", True)]] * 6)
    with (
        faking(whole=lambda body: (500, {"error": "oh"})) as fake,
        pytest.raises(CanvasError, match="HTTP 500"),
    ):
        ask(fake.url)
    with (
        faking(whole=lambda body: (200, {"choices": []})) as fake,
        pytest.raises(CanvasError, match="no message"),
    ):
        ask(fake.url)
    with pytest.raises(CanvasError, match="does not answer"):
        ask(fake.url)


def test_an_eval_that_is_stopped_waits_for_no_answer() -> None:
    """Two requests under way, one of them answered, when it is stopped: no thread keeps the program."""
    gate, asked = Event(), list[int]()

    def slow(body: dict[str, Any]) -> tuple[int, Any]:
        asked.append(body["seed"])
        if body["seed"] > 0:
            gate.wait(HUNG)
        return said(body)

    with faking(whole=slow) as fake:
        answers = ServerAnswerer(Endpoint.parse(fake.url), "m", 2)(ASKED, SEEDS)
        assert next(answers)[0] == 0
        wait_for(lambda: len(asked) == 3)
        answers.close()  # type: ignore[attr-defined]
        under_way = [thread for thread in threading.enumerate() if "_work" in thread.name]
        assert under_way and all(thread.daemon for thread in under_way)
        gate.set()
        wait_for(lambda: all("_work" not in thread.name for thread in threading.enumerate()))
    assert sorted(asked) == [0, 1, 2], "the others were dropped"


def test_our_server_takes_every_field_and_tells_of_steps() -> None:
    options = EvalOptions(
        count=2, tasks=("lists:copy", "demo"), seeds=2, holes=False, structure=False, sampling={"top_k": 5},
        sweeps=(read_sweep("steps=1,3"), read_sweep("eos_aware_stopping=on")),
    )  # fmt: skip
    assert options.left_out() == ["infill", "infill_bare"]
    options = EvalOptions(count=2, tasks=("lists:copy",), seeds=2, holes=False, sweeps=options.sweeps)
    with serving(tiny_session()) as server:
        one, three = evaluate(ServerAnswerer(Endpoint.parse(server.url), "tiny"), options)
    assert one.steps_per_canvas == 1.0
    assert 1.0 < three.steps_per_canvas <= 3.0
    assert one.tokens > 0
    with pytest.raises(UsageError, match="infill: parts of its answers are given"):
        EvalOptions(tasks=("infill",), holes=False).chosen()


def test_our_server_gives_the_answers_of_a_session() -> None:
    from canvaslm.evals.session_answers import SessionAnswerer

    session = tiny_session()
    asked: dict[str, Any] = {"max_new_tokens": 20, "max_denoising_steps": 2}
    with serving(session) as server:
        over_http = dict(ServerAnswerer(Endpoint.parse(server.url), "tiny")(ASKED, SEEDS, **asked))
    here = dict(SessionAnswerer(tiny_session(), rows=3)(ASKED, SEEDS, **asked))
    for place in range(len(ASKED)):
        assert over_http[place].text == here[place].text
        assert over_http[place].tokens == here[place].tokens
        assert sum(over_http[place].steps) == sum(here[place].steps)
