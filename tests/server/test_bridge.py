"""Between asyncio and the engine: queues, disconnects, slow and silent clients, failures, shutdown."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from typing import Any

import httpx
import pytest

from canvaslm.server.bridge import Bridge, RequestGroup
from canvaslm.server.metrics import ServerMetrics
from canvaslm.server.problems import Problem
from canvaslm.types import (
    CanvasReport,
    Committed,
    Draft,
    Finished,
    Params,
    Request,
    Timings,
    Usage,
)

from ..waiting import HUNG, StepGate, wait_for
from .world import (
    HELLO,
    Running,
    leave_during_a_step,
    paced,
    request_bytes,
    request_head,
    serving,
    tiny_session,
)

CHAT = "/v1/chat/completions"
LONG = {"messages": HELLO, "seed": 1, "max_tokens": 480, "confidence_threshold": 0.0}


def idle(server: Running) -> bool:
    return server.app.state.service.bridge.reserved == 0


# -- flights by themselves -----------------------------------------------------------------------------------


def draft(step: int) -> Draft:
    return Draft(0, 0, step, 9, 1.0, (1,), (0.0,), (True,), (True,))


def committed(canvas: int) -> Committed:
    return Committed(0, canvas, (1,), CanvasReport(1, "converged", 0.0))


FINISHED = Finished(0, "stop", Usage(), Timings(), 0, ())


def flight_of(count: int = 1) -> RequestGroup:
    bridge = Bridge(tiny_session, max_queue=1, observer=ServerMetrics())
    return RequestGroup(bridge, [Request((1,))] * count)


async def drain(group: RequestGroup) -> list[Any]:
    return [event async for _, event in group]


def test_unread_drafts_are_overwritten() -> None:
    async def scene() -> list[Any]:
        group = flight_of()
        for step in range(1, 1000):
            group.put(0, draft(step))
            assert group.backlog == 1
        group.put(0, committed(0))
        group.put(0, FINISHED)
        return await drain(group)

    assert asyncio.run(scene()) == [draft(999), committed(0), FINISHED]


def test_a_long_backlog_holds_no_drafts() -> None:
    async def scene() -> list[Any]:
        group = flight_of()
        for canvas in range(50):
            group.put(0, draft(1))
            group.put(0, committed(canvas))
        group.put(0, FINISHED)
        return await drain(group)

    events = asyncio.run(scene())
    assert [e.canvas for e in events if isinstance(e, Committed)] == list(range(50))
    assert sum(isinstance(e, Draft) for e in events) < 10


def test_drafts_of_one_answer_do_not_displace_anothers() -> None:
    async def scene() -> list[tuple[int, int]]:
        group = flight_of(2)
        for step in (1, 2, 3):
            group.put(0, draft(step))
            group.put(1, draft(step + 10))
        group.put(0, FINISHED)
        group.put(1, FINISHED)
        return [(index, event.step) async for index, event in group if isinstance(event, Draft)]

    assert asyncio.run(scene()) == [(0, 3), (1, 13)]


def test_a_bridge_without_a_server() -> None:
    async def scene() -> None:
        metrics = ServerMetrics()
        bridge = Bridge(lambda: tiny_session(), max_queue=2, observer=metrics)
        with pytest.raises(Problem) as loading:
            bridge.reserve(1)
        assert loading.value.status == 503
        while bridge.reserved == 0:
            try:
                bridge.reserve(2)
            except Problem:
                await asyncio.sleep(0.01)
        params = Params(max_new_tokens=8, seed=1)
        group = await bridge.launch([Request((5, 6), params), Request((5, 7), params)])
        events = [event async for _, event in group]
        assert sum(isinstance(event, Finished) for event in events) == 2
        assert bridge.reserved == 0
        assert await bridge.on_engine_thread(lambda engine: engine.has_work) is False
        await bridge.close()
        with pytest.raises(Problem) as closed:
            await bridge.on_engine_thread(lambda engine: None)
        assert closed.value.status == 503

    asyncio.run(scene())


def test_all_of_a_flight_is_refused_or_none() -> None:
    async def scene() -> None:
        bridge = Bridge(tiny_session(), max_queue=8, observer=ServerMetrics())
        bridge.start()
        while bridge.reserved == 0:
            try:
                bridge.reserve(2)
            except Problem:
                await asyncio.sleep(0.01)
        with pytest.raises(Exception, match="vocabulary"):
            await bridge.launch([Request((5,)), Request((10**6,))])
        assert bridge.reserved == 0
        await asyncio.sleep(0.05)
        assert bridge.running == 0
        await bridge.close()

    asyncio.run(scene())


# -- with a server -------------------------------------------------------------------------------------------


def test_the_engine_is_touched_by_one_thread_alone() -> None:
    session = tiny_session()
    threads: set[int] = set()
    for name in ("step", "submit", "cancel"):
        original = getattr(session.engine, name)

        def noted(*arguments: Any, original: Any = original) -> Any:
            threads.add(threading.get_ident())
            return original(*arguments)

        setattr(session.engine, name, noted)
    with serving(session) as server, server.client() as client:
        with client.stream("POST", CHAT, json={**LONG, "stream": True}) as response:
            next(response.iter_bytes())
        client.post(CHAT, json={"messages": HELLO, "n": 3, "stop": "e"})
        client.get("/slots")
    assert len(threads) == 1 and threading.get_ident() not in threads


@pytest.mark.parametrize(
    "body", [LONG, {**LONG, "stream": True}, {**LONG, "stream": True, "diffusing": True, "n": 2}]
)
def test_a_client_that_leaves_ends_its_request_within_a_step(body: dict[str, Any]) -> None:
    session = tiny_session()
    gate = StepGate(session, free=2)
    with serving(session) as server:
        leave_during_a_step(server, gate, request_bytes(body), seen=b"", orders=body.get("n", 1))
        wait_for(lambda: idle(server))
        assert gate.steps == 3  # the one in progress was the last; 60 canvases would have 360
        wait_for(lambda: server.metric("requests_total") == body.get("n", 1))
        assert 'outcome="cancelled"' in httpx.get(f"{server.url}/metrics", timeout=HUNG).text


def test_a_client_that_never_reads_stalls_nobody() -> None:
    with serving(tiny_session(), write_timeout=1.0) as server, server.client() as client:
        alone = client.post(CHAT, json={"messages": HELLO, "seed": 2}).json()["choices"]
        silent = []
        for _ in range(4):
            raw = socket.socket()
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.connect(("127.0.0.1", server.port))
            raw.sendall(
                request_bytes({**LONG, "stream": True, "n": 2, "stream_options": {"include_diffusion": True}})
            )
            silent.append(raw)
        for _ in range(5):
            assert client.post(CHAT, json={"messages": HELLO, "seed": 2}).json()["choices"] == alone
        wait_for(lambda: idle(server))
        for raw in silent:
            raw.close()


def test_a_full_queue_is_429_and_recovers() -> None:
    with serving(paced(0.02, max_rows=1), max_queue=2) as server, server.client() as client:
        held = [server.connect() for _ in range(3)]
        for raw in held:
            raw.sendall(request_bytes({**LONG, "stream": True}))
        wait_for(lambda: server.app.state.service.bridge.reserved == 3)
        for body in ({"messages": HELLO}, {"messages": HELLO, "stream": True}, {"messages": HELLO, "n": 2}):
            response = client.post(CHAT, json=body)
            assert response.status_code == 429
            assert response.headers["retry-after"] == "1"
            assert response.json()["error"]["type"] == "rate_limit_error"
        assert client.post(CHAT, json={"messages": HELLO, "n": 4}).status_code == 400  # can never fit
        assert server.metric("requests_processing") == 1 and server.metric("requests_deferred") == 2
        for raw in held:
            raw.close()
        wait_for(lambda: idle(server))
        assert client.post(CHAT, json={"messages": HELLO, "seed": 1}).status_code == 200


def test_loading_is_503_and_then_over() -> None:
    gate = threading.Event()

    def load() -> Any:
        gate.wait(HUNG)
        return tiny_session()

    with serving(load) as server, server.client() as client:
        for method, path in (
            ("GET", "/health"),
            ("GET", "/v1/models"),
            ("POST", CHAT),
            ("POST", "/tokenize"),
        ):
            response = client.request(method, path, json={"messages": HELLO, "content": "x"})
            assert response.status_code == 503
            error = response.json()["error"]
            assert (error["message"], error["type"], error["code"]) == (
                "Loading model",
                "unavailable_error",
                503,
            )
        assert client.get("/metrics").status_code == 200
        gate.set()
        wait_for(lambda: client.get("/health").status_code == 200)
        assert client.get("/health").json() == {"status": "ok"}


def test_a_model_that_cannot_be_loaded() -> None:
    def load() -> Any:
        raise RuntimeError("secret path")

    with serving(load) as server, server.client() as client:
        wait_for(lambda: server.app.state.service.bridge.failure)
        response = client.get("/health")
        assert response.status_code == 503 and "secret" not in response.text


def test_a_failing_step_fails_its_requests_and_no_others() -> None:
    session = tiny_session()
    step = session.engine.step
    broken = threading.Event()

    def sometimes() -> Any:
        if broken.is_set():
            broken.clear()
            raise MemoryError("of another's prompt")
        return step()

    session.engine.step = sometimes  # type: ignore[method-assign]
    with serving(session) as server, server.client() as client:
        alone = client.post(CHAT, json={"messages": HELLO, "seed": 2}).json()["choices"]
        broken.set()
        response = client.post(CHAT, json={"messages": HELLO, "seed": 2})
        assert response.status_code == 500 and "prompt" not in response.text
        assert client.post(CHAT, json={"messages": HELLO, "seed": 2}).json()["choices"] == alone
        assert idle(server)
        assert server.metric("requests_total") == server.metric("requests_accepted_total") == 3


def test_an_error_inside_a_stream_is_an_error_object() -> None:
    session = tiny_session()
    run = session.engine.runner.run
    calls = []

    def breaks(rows: Any) -> Any:
        calls.append(1)
        if len(calls) > 8:
            raise RuntimeError("inner detail")
        return run(rows)

    session.engine.runner.run = breaks  # type: ignore[method-assign]
    with serving(session) as server, server.client() as client:
        response = client.post(CHAT, json={**LONG, "stream": True})
        assert response.status_code == 200
        last = json.loads(response.text.strip().split("\n\n")[-1].removeprefix("data: "))
        assert last["error"]["type"] == "server_error" and "inner" not in response.text
        assert '"content"' in response.text


def test_silence_is_broken() -> None:
    with serving(paced(0.3), keep_alive=0.1) as server, server.client() as client:
        body = {"messages": HELLO, "seed": 1, "max_tokens": 8, "stream": True}
        text = client.post(CHAT, json=body).text
        assert text.count(": still here\n\n") >= 3 and text.endswith("data: [DONE]\n\n")


def test_a_large_body_is_413_without_being_kept() -> None:
    with serving(tiny_session(), max_body=10_000) as server, server.client() as client:
        big = {"messages": [{"role": "user", "content": "x" * 20_000}]}
        assert client.post(CHAT, json=big).status_code == 413

        def chunks() -> Any:
            for _ in range(1000):
                yield b" " * 1000

        response = client.post(CHAT, content=chunks(), headers={"content-type": "application/json"})
        assert response.status_code == 413 and response.json()["error"]["type"] == "request_too_large"
        with server.connect() as raw:
            head = (
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            )
            raw.sendall(head + b"Expect: 100-continue\r\nContent-Length: 1073741824\r\n\r\n")
            assert raw.recv(200).split()[1] == b"413"


def test_a_slow_body_is_408() -> None:
    with serving(tiny_session(), read_timeout=0.3) as server, server.connect() as raw:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        raw.sendall(head + b'Content-Length: 1000\r\n\r\n{"messages"')
        assert raw.recv(200).split()[1] == b"408"


def test_bodies_are_bounded_all_together() -> None:
    with (
        serving(tiny_session(), max_body=1000, max_bodies=2500, read_timeout=HUNG) as server,
        server.client() as client,
    ):
        head = request_head(CHAT, 999)
        held = [server.connect() for _ in range(3)]
        for raw in held:
            raw.sendall(head + b" " * 800)
        body = {"messages": [{"role": "user", "content": "x" * 500}]}
        wait_for(lambda: client.post(CHAT, json=body).status_code == 429)  # once the others have arrived
        for raw in held:
            raw.close()
        wait_for(lambda: client.post(CHAT, json=body).status_code in (200, 400))


def test_shutdown_ends_what_runs() -> None:
    with serving(paced(0.05)) as server:
        raw = server.connect()
        raw.sendall(request_bytes({**LONG, "stream": True}))
        wait_for(lambda: server.app.state.service.bridge.running)
    bridge = server.app.state.service.bridge
    assert bridge.closed and bridge.reserved == 0
    raw.close()


def test_answers_are_the_same_in_a_crowd() -> None:
    """Neither neighbours nor what was computed before shows in an answer."""
    with serving(tiny_session(max_rows=4)) as server:
        bodies = [
            {"messages": [{"role": "user", "content": f"Question {i % 5} " * (1 + i % 3)}], "seed": i % 7}
            for i in range(12)
        ]
        with server.client() as client:
            alone = [client.post(CHAT, json=body).json()["choices"] for body in bodies]

        async def crowd() -> list[Any]:
            async with httpx.AsyncClient(base_url=server.url, timeout=HUNG) as client:
                answers = await asyncio.gather(*(client.post(CHAT, json=body) for body in bodies))
            return [answer.json()["choices"] for answer in answers]

        assert asyncio.run(crowd()) == alone
