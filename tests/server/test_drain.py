"""The end of a drain: whoever still waits for an answer is told, in the words of the dialect."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from typing import Any

import httpx
import pytest

from canvaslm.server import create_app
from canvaslm.server.dialects.registry import envelope_of
from canvaslm.server.guard import Guard, Rules
from canvaslm.server.limits import Limits
from canvaslm.server.problems import unfinished

from ..waiting import HUNG, StepGate, wait_for
from .world import HELLO, program, request_bytes, request_head, serving, tiny_folder, tiny_session

ENDLESS = {"max_denoising_steps": 10_000, "confidence_threshold": 0.0}
LONG = {"max_tokens": 480, "messages": HELLO, **ENDLESS}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": LONG,
    "/v1/completions": {"prompt": "Hello", "max_tokens": 480, **ENDLESS},
    "/v1/responses": {"input": "Hello", "max_output_tokens": 480, **ENDLESS},
    "/v1/messages": LONG,
    "/api/chat": {"messages": HELLO, "options": {"num_predict": 480, **ENDLESS}},
    "/api/generate": {"prompt": "Hello", "options": {"num_predict": 480, **ENDLESS}},
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], bytes]:
    """What each client got, by path and whether it asked for a stream, of a program whose drain ended."""
    folder = tiny_folder(tmp_path_factory.mktemp("model") / "tiny-model")
    asked = [(path, streamed) for path in BODIES for streamed in (False, True)]
    with program(str(folder), "--drain-seconds", "0.5", "--max-rows", "4") as server:
        wait_for(lambda: httpx.get(f"{server.url}/health", timeout=HUNG).status_code == 200)
        connections = [server.connect() for _ in asked]
        for raw, (path, streamed) in zip(connections, asked, strict=True):
            raw.sendall(request_bytes({**BODIES[path], "stream": streamed}, path))
        uploading = server.connect()
        uploading.sendall(request_head("/v1/chat/completions", 1000) + b"{")
        counts = ("requests_processing", "requests_deferred")  # most are in the queue
        wait_for(lambda: sum(map(server.metric, counts)) == len(asked))
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        answers = {}
        for raw, which in zip([*connections, uploading], [*asked, ("upload", False)], strict=True):
            with raw:
                answers[which] = whole(raw)
        assert server.process.wait(HUNG) == 0
        assert any("answers that were not finished in 0.5 s: 12" in line for line in server.log)
    return answers


def whole(raw: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    return b"".join(iter(lambda: raw.recv(65536), b""))


@pytest.mark.parametrize("path", BODIES)
def test_a_whole_answer_becomes_a_503(told: dict[tuple[str, bool], bytes], path: str) -> None:
    head, _, body = told[path, False].partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503") and b"content-type: application/json" in head.lower()
    assert json.loads(body) == envelope_of(path)(unfinished())


@pytest.mark.parametrize("path", BODIES)
def test_a_stream_ends_with_an_error(told: dict[tuple[str, bool], bytes], path: str) -> None:
    head, _, body = told[path, True].partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200") and body.endswith(b"0\r\n\r\n")  # it was not broken off
    lines = [line for line in body.split(b"\n") if b"{" in line]
    last = json.loads(lines[-1].removeprefix(b"data: "))
    if path == "/v1/responses":
        assert last["type"] == "error" and last["code"] == "shutting_down"
    else:
        assert last == envelope_of(path)(unfinished())
    if path in ("/v1/responses", "/v1/messages"):
        assert b"event: error\n" in body
    assert b"[DONE]" not in body and b"message_stop" not in body and b'"done":true' not in body


def test_a_body_that_never_arrives_is_answered_too(told: dict[tuple[str, bool], bytes]) -> None:
    head, _, body = told["upload", False].partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503")
    assert json.loads(body)["error"]["code"] == "shutting_down"


def test_nobody_waits_for_the_step_that_runs() -> None:
    """An engine may stand in a long step: clients are told all the same, and it stops after that step."""
    session = tiny_session()
    gate = StepGate(session, free=2)
    with serving(session) as server:
        with (
            server.client() as client,
            client.stream("POST", "/v1/messages", json={**LONG, "stream": True}) as s,
        ):
            parts = s.iter_text()
            text = next(parts)
            gate.wait_held()
            bridge = server.app.state.service.bridge
            loop = next(iter(bridge._groups)).loop
            assert asyncio.run_coroutine_threadsafe(_ended(bridge), loop).result(HUNG) == 1
            text += "".join(parts)
            assert text.rstrip().endswith('"message":"the server is shutting down and ended this answer"}}')
            refused = client.post("/v1/chat/completions", json=LONG)
            assert refused.status_code == 503 and refused.json()["error"]["code"] == "shutting_down"
            gate.open()
        wait_for(lambda: bridge.reserved == 0)
    assert gate.steps == 3


async def _ended(bridge: Any) -> int:
    ended: int = bridge.end_answers()
    return ended


def test_under_any_server_a_cancelled_request_is_a_503() -> None:
    """What runs under uvicorn alone is cancelled when its patience ends."""
    sent: list[dict[str, Any]] = []
    begun = asyncio.Event()

    async def endless(*_: Any) -> None:
        begun.set()
        await asyncio.Event().wait()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    async def scene() -> None:
        guard = Guard(
            endless, rules=Rules(), limits=Limits(), envelope_of=envelope_of, undeclared=lambda path: False
        )
        scope = {"type": "http", "method": "GET", "path": "/api/tags", "headers": [(b"host", b"localhost")]}
        task = asyncio.ensure_future(guard(scope, receive, send))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scene())
    assert sent[0]["status"] == 503
    assert json.loads(sent[1]["body"]) == envelope_of("/api/tags")(unfinished())


def test_an_ended_server_takes_nothing_more() -> None:
    app = create_app(tiny_session())
    bridge = app.state.service.bridge
    assert bridge.end_answers() == 0 and bridge.closed
