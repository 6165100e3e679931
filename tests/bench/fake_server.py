"""A small OpenAI-compatible server on a thread: what it streams, refuses and how long it takes are given."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ..waiting import HUNG, wait_for


def chunk(text: str = "", finish: str | None = None, **extra: Any) -> dict[str, Any]:
    delta = {"content": text} if text else {}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **extra}


def usage(tokens: int, prompt: int = 5, cached: int = 0) -> dict[str, Any]:
    details = {"prompt_tokens_details": {"cached_tokens": cached}}
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": tokens, **details}}


PLAIN: tuple[Any, ...] = (chunk("Hello"), chunk(" there"), chunk(finish="stop"), usage(2), "[DONE]")


@dataclass
class Fake:
    """`script`: objects or strings to stream, functions are states to wait
    for; `knows`: stream options it takes. `whole`: status and content for a body that wants no stream."""

    script: tuple[Any, ...] = PLAIN
    knows: frozenset[str] = frozenset({"include_usage", "include_diffusion"})
    whole: Callable[[dict[str, Any]], tuple[int, Any]] | None = None
    key: str | None = None
    status: int = 200
    health: list[int] = field(default_factory=lambda: [200])  # answers in turn, the last one for ever
    models: Any = field(default_factory=lambda: {"data": [{"id": "fake-1"}]})
    bodies: list[dict[str, Any]] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    url: str = ""


class _Handler(BaseHTTPRequestHandler):
    fake: Fake
    lock = threading.Lock()

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/health":
            health = self.fake.health
            self._answer(health.pop(0) if len(health) > 1 else health[0], {})
        elif self.path == "/v1/models" and self._let_in():
            self._answer(200, self.fake.models)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.fake.bodies.append(body)
        stray = set(body.get("stream_options", {})) - self.fake.knows
        if not self._let_in():
            return
        if stray:
            self._answer(400, {"error": {"message": f"unknown stream option {min(stray)}"}})
        elif self.fake.whole is not None and not body.get("stream"):
            self._answer(*self.fake.whole(body))
        elif self.fake.status != 200:
            self._answer(self.fake.status, {"error": {"message": "no\nluck"}})
        else:
            self._stream()

    def _let_in(self) -> bool:
        if self.fake.key is None or self.headers.get("authorization") == f"Bearer {self.fake.key}":
            return True
        self._answer(401, {"error": {"message": "a key is needed"}})
        return False

    def _stream(self) -> None:
        fake = self.fake
        with self.lock:
            fake.in_flight += 1
            fake.most_in_flight = max(fake.most_in_flight, fake.in_flight)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for place, part in enumerate(fake.script, 1):
            if callable(part):
                wait_for(part)
                continue
            data = part if isinstance(part, str) else json.dumps(part)
            if place == len(fake.script):  # before the client knows that it has all, and asks again
                with self.lock:
                    fake.in_flight -= 1
            self.wfile.write(f": comment\n\ndata: {data}\n\n".encode())

    def _answer(self, status: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextlib.contextmanager
def faking(**options: Any) -> Iterator[Fake]:
    """The server while the block runs."""
    fake = Fake(**options)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": fake}))
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join(HUNG)


__all__ = ["PLAIN", "Fake", "chunk", "faking", "usage"]
