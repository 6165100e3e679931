"""Failures put into the middle of a step: whoever waits is told in the dialect, others get their answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from canvaslm.server.dialects.registry import envelope_of
from canvaslm.server.problems import problem_of
from canvaslm.session import Session

from ..waiting import HUNG, wait_for
from .world import HELLO, Running, serving, tiny_session

CHAT = "/v1/chat/completions"
ASKED: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": HELLO, "seed": 2}),
    ("/v1/completions", {"prompt": "Hello", "seed": 2}),
    ("/v1/responses", {"input": "Hello", "seed": 2}),
    ("/v1/messages", {"messages": HELLO, "max_tokens": 24, "seed": 2}),
    ("/api/chat", {"messages": HELLO, "options": {"seed": 2}}),
]
EVERYBODY = [(path, {**body, "stream": streamed}) for path, body in ASKED for streamed in (False, True)]
FAILED, NO_MEMORY = problem_of(RuntimeError()), problem_of(MemoryError())
SECRET = "secret of another request"

# Where a step may fail: the parts of an engine that it goes through, in their order.
POINTS: dict[str, Callable[[Session], tuple[Any, str]]] = {
    "admission": lambda s: (s.engine.scheduler, "admit"),
    "rows": lambda s: (s.engine.scheduler, "rows"),
    "cache": lambda s: (s.engine.prefixes, "_new"),
    "remembered": lambda s: (s.engine.prefixes, "take"),
    "pass": lambda s: (s.engine.runner, "run"),
    "report": lambda s: (s.engine, "_report"),
    "commit": lambda s: (s.engine, "_commit"),
    "release": lambda s: (s.engine.prefixes, "put"),
    "events": lambda s: (s.engine, "take_events"),
}


class Failpoint:
    """Raises in place of a part of the engine, while it is armed; waits for `together` requests first."""

    def __init__(self, owner: Any, name: str, error: BaseException) -> None:
        self.hits = 0
        self.armed = threading.Event()
        self._error, self._part = error, getattr(owner, name)
        setattr(owner, name, self._run)

    def _run(self, *arguments: Any, **options: Any) -> Any:
        if self.armed.is_set():
            self.hits += 1
            raise self._error
        return self._part(*arguments, **options)


def told(path: str, response: httpx.Response, streamed: bool) -> dict[str, Any]:
    """The error that a client got, without what a sequence of events adds to it."""
    if not streamed:
        answer: dict[str, Any] = response.json()
        return answer
    lines = [line for line in response.text.split("\n") if '{"' in line]
    last: dict[str, Any] = json.loads(lines[-1].removeprefix("data: "))
    if path == "/v1/responses" and last["type"] == "error":
        kinds = {problem.code: problem.type for problem in (FAILED, NO_MEMORY)}
        last["type"] = kinds[last["code"]]
        return {"error": {name: last[name] for name in ("message", "type", "param", "code")}}
    return last


def ask(server: Running, asked: tuple[str, dict[str, Any]]) -> httpx.Response:
    with server.client() as client:
        return client.post(asked[0], json=asked[1])


def answer_of(server: Running) -> Any:
    return ask(server, (CHAT, {"messages": HELLO, "seed": 2})).json()["choices"]


def idle(server: Running) -> bool:
    return bool(server.app.state.service.bridge.reserved == 0)


@pytest.mark.parametrize("error", [RuntimeError(SECRET), MemoryError(SECRET)], ids=["fault", "memory"])
@pytest.mark.parametrize("point", POINTS)
def test_a_fault_in_a_step_is_told_to_all_and_the_next_are_answered(point: str, error: Exception) -> None:
    session = tiny_session(max_rows=4)  # some run and some wait
    failpoint = Failpoint(*POINTS[point](session), error)
    with serving(session) as server:
        right = answer_of(server)
        failpoint.armed.set()
        with ThreadPoolExecutor(len(EVERYBODY)) as pool:
            answers = list(pool.map(lambda asked: ask(server, asked), EVERYBODY))
        assert failpoint.hits
        for (path, body), response in zip(EVERYBODY, answers, strict=True):
            assert SECRET not in response.text and "MemoryError" not in response.text
            assert response.status_code in ((200, 500, 503) if body["stream"] else (500, 503)), response.text
            error_of_it = told(path, response, body["stream"])
            expected = [envelope_of(path)(problem) for problem in (FAILED, NO_MEMORY)]
            assert error_of_it in expected, (path, error_of_it)
        failpoint.armed.clear()
        wait_for(lambda: idle(server))
        assert httpx.get(f"{server.url}/health", timeout=HUNG).status_code == 200
        assert answer_of(server) == right
        assert not session.engine.scheduler.running and not session.engine.scheduler.waiting


@pytest.mark.parametrize("point", ["cache", "pass"])
def test_no_memory_for_one_fails_that_one_alone(point: str) -> None:
    """The one whose prompt is the longest; its neighbours run in the same passes."""
    session = tiny_session(max_rows=8, prefix_memory=0)
    engine, refused = session.engine, []
    part: Any = engine.runner.new_cache if point == "cache" else engine.runner.run

    def scarce(asked: Any) -> Any:
        length = asked if point == "cache" else max(len(row.sequence.request.tokens) for row in asked)
        if length > 150:
            refused.append(length)
            raise MemoryError(SECRET)
        return part(asked)

    with serving(session) as server:
        right = answer_of(server)
        places = (
            [(engine.runner, "new_cache"), (engine.prefixes, "_new")]
            if point == "cache"
            else [(engine.runner, "run")]
        )
        for owner, name in places:
            setattr(owner, name, scarce)
        large = (CHAT, {"messages": [{"role": "user", "content": "word " * 200}], "seed": 2})
        small = (CHAT, {"messages": HELLO, "seed": 2})
        with ThreadPoolExecutor(8) as pool:
            first, *others = pool.map(lambda asked: ask(server, asked), [large, *[small] * 7])
        assert refused and first.status_code == 503
        assert first.json()["error"]["code"] == "out_of_memory" and SECRET not in first.text
        assert [other.json()["choices"] for other in others] == [right] * 7
        assert idle(server) and answer_of(server) == right


class Dies(BaseException):
    """What no handler of exceptions catches, as extensions raise it when they panic."""


@pytest.mark.parametrize("point", ["pass", "events"])
def test_a_thread_that_dies_leaves_nobody_waiting(point: str) -> None:
    session = tiny_session(max_rows=4)
    failpoint = Failpoint(*POINTS[point](session), Dies(SECRET))
    with serving(session) as server:
        assert answer_of(server)
        failpoint.armed.set()
        with ThreadPoolExecutor(len(EVERYBODY)) as pool:
            answers = list(pool.map(lambda asked: ask(server, asked), EVERYBODY))
        for (path, body), response in zip(EVERYBODY, answers, strict=True):
            assert SECRET not in response.text
            if response.status_code == 503:  # it came when the thread was gone
                assert "the engine has stopped (Dies)" in response.text
            else:
                assert told(path, response, body["stream"]) == envelope_of(path)(FAILED)
        health = httpx.get(f"{server.url}/health", timeout=HUNG)
        assert health.status_code == 503
        assert health.json()["error"]["code"] == "engine_failed"
        assert health.json()["error"]["message"] == "the engine has stopped (Dies): restart the server"
        assert ask(server, EVERYBODY[0]).status_code == 503
        slots = httpx.get(f"{server.url}/slots", timeout=HUNG)
        assert slots.status_code == 503 and "stopped" in slots.text
        assert idle(server)


def test_metrics_that_fail_keep_nobody_from_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    session = tiny_session()
    with serving(session) as server:
        right = answer_of(server)

        def broken(event: Any) -> None:
            raise RuntimeError(SECRET)

        monkeypatch.setattr(server.app.state.service.metrics, "event", broken)
        assert answer_of(server) == right and idle(server)
