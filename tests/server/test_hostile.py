"""Bodies that are large, wrong or both: whatever comes, the event loop does no work that grows with it.

Counted are calls made on the event loop's thread, the threads that read bodies, and bytes; never seconds.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from canvaslm.server import bodies, create_app
from canvaslm.server.limits import INLINE_BODY
from canvaslm.server.problems import Problem

from ..waiting import HUNG
from .hostile import CHAT, LARGEST, corpus, filled
from .world import HELLO, tiny_session

SIZE = 2 * INLINE_BODY
CALLS = 10_000  # on the event loop, with two of /health: 4000 to 6500, whatever the size
BYTES_PER_BYTE = 32  # a list of empty objects takes 25
CORPUS = corpus(SIZE)


async def ask(app: Any, path: str, body: bytes | None) -> tuple[int, Any]:
    """Status and content of the answer to a POST, or to a GET without a body."""
    sent: list[Any] = []
    messages = iter([{"type": "http.request", "body": body or b""}])

    async def receive() -> Any:
        for message in messages:
            return message
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {
        "type": "http", "http_version": "1.1", "method": "GET" if body is None else "POST", "path": path,
        "raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "http", "headers": headers,
        "server": ("localhost", 80), "client": ("127.0.0.1", 1), "asgi": {"version": "3.0"},
    }  # fmt: skip
    await asyncio.wait_for(app(scope, receive, send), HUNG)
    content = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], content


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Any, asyncio.AbstractEventLoop]]:
    """An application that is ready, and its loop, which runs while a test asks."""
    app = create_app(tiny_session())
    with asyncio.Runner() as runner:
        lifespan = app.router.lifespan_context(app)
        runner.run(lifespan.__aenter__())

        async def ready() -> None:
            while (await ask(app, "/health", None))[0] == 503:
                await asyncio.sleep(0.01)

        runner.run(ready())
        yield app, runner.get_loop()
        runner.run(lifespan.__aexit__(None, None, None))


@pytest.mark.parametrize("name", CORPUS)
def test_the_event_loop_does_no_more_for_a_large_body(
    world: tuple[Any, asyncio.AbstractEventLoop], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, loop = world
    path, body = CORPUS[name]
    readers: list[int] = []
    validated = bodies._validated

    def noted(*arguments: Any) -> Any:
        readers.append(threading.get_ident())
        return validated(*arguments)

    monkeypatch.setattr(bodies, "_validated", noted)
    calls = 0

    def note(_: Any, event: str, __: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    async def scene() -> tuple[int, bytes, list[int]]:
        asked = asyncio.ensure_future(ask(app, path, body))
        await asyncio.sleep(0)
        healthy = [(await ask(app, "/health", None))[0]]
        status, content = await asked
        return status, content, [*healthy, (await ask(app, "/health", None))[0]]

    sys.setprofile(note)
    try:
        status, content, healthy = loop.run_until_complete(scene())
    finally:
        sys.setprofile(None)
    assert healthy == [200, 200]
    assert status in (200, 400, 404), content[:300]
    assert status == 200 or len(content) < 1000  # a name is cut, not repeated whole
    assert len(readers) == 1 and readers[0] != threading.get_ident()
    assert calls < CALLS


@pytest.mark.parametrize("name", [name for name in CORPUS if name.startswith(("messages", "unknown"))])
def test_reading_takes_no_more_memory_than_is_stated(name: str) -> None:
    body = CORPUS[name][1]
    tracemalloc.start()
    try:
        bodies.read(body)
    except Problem:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < BYTES_PER_BYTE * len(body)


@pytest.mark.parametrize("item", ["[]", "{}", "1", "[{},1]"])
def test_the_largest_body_is_refused_before_it_is_parsed(item: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_DECODER", None)
    with pytest.raises(Problem, match="more than"):
        bodies.read(filled(b'{"x":[', item.encode(), b"]}", LARGEST))


# -- every field of every route ------------------------------------------------------------------------------

ODD: list[Any] = [
    None, True, -1, 0, 2**63, 10**400, 1.5, -1e300, "", "x", "\ud800", "\0", "x" * 5000, [], [None], [[]],
    [{}], [1] * 200, ["x"] * 200, {}, {"type": None}, {"type": "x", "x": [{}]}, [{"role": "user"}],
]  # fmt: skip
BASE: dict[str, dict[str, Any]] = {
    "messages": {"messages": HELLO},
    "prompt": {"prompt": "x"},
    "input": {"input": "x"},
    "tokens": {"tokens": [5]},
    "content": {"content": "x"},
}


def fuzzed(schema: dict[str, Any]) -> list[tuple[str, bytes]]:
    """An odd value in each field of each route's body, the rest of which is right."""
    made = []
    for path, methods in schema["paths"].items():
        body = methods.get("post", {}).get("requestBody")
        if body is None:
            continue
        shape = body["content"]["application/json"]["schema"]
        listed = shape.get("type") == "array"
        model = (shape["items"] if listed else shape)["$ref"].rsplit("/", 1)[1]
        fields = schema["components"]["schemas"][model]["properties"]
        base: dict[str, Any] = {"max_tokens": 2, "max_output_tokens": 2, "options": {"num_predict": 2}}
        for name in fields:
            base |= BASE.get(name, {})
        base = {name: value for name, value in base.items() if name in fields}
        for name in fields:
            items = ({**base, name: odd} for odd in ODD)
            made += [(path, json.dumps([item] if listed else item).encode()) for item in items]
    return made


@pytest.mark.parametrize("part", range(4))
def test_odd_values_of_every_field_are_answered(
    world: tuple[Any, asyncio.AbstractEventLoop], part: int
) -> None:
    app, loop = world
    every = fuzzed(app.openapi())
    assert len(every) > 5000 and len({path for path, _ in every}) >= 10
    for path, body in Random(part).sample(every, 30):
        status, content = loop.run_until_complete(ask(app, path, body))
        wrong = 422 if path == "/v1/systemone" else 400  # what its clients know
        # Adapters are loaded only where a folder of them was named.
        allowed = (403,) if path.endswith("_lora_adapter") else ()
        assert status in (200, wrong, 404, *allowed), (path, body[:300], content[:300])
    assert loop.run_until_complete(ask(app, CHAT, json.dumps({"messages": HELLO}).encode()))[0] == 200
