"""Connections that say nothing, or never finish saying it."""

from __future__ import annotations

import socket
import threading
import time

import pytest
import uvicorn

from canvaslm.server import create_app
from canvaslm.server.protocol import TimedProtocol

from ..waiting import HUNG, wait_for
from .world import HELLO, request_bytes, tiny_session


class Hasty(TimedProtocol):
    head_seconds = 0.5


@pytest.mark.parametrize("begin", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: "])
def test_slow_heads_are_cut_off_and_slow_answers_are_not(begin: bytes) -> None:
    config = uvicorn.Config(
        create_app(tiny_session()), http=Hasty, lifespan="on", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    address = listener.getsockname()
    start = time.monotonic()  # the server's clock for a head starts later, with its connection
    try:
        with (
            socket.create_connection(address, timeout=HUNG) as slow,
            socket.create_connection(address, timeout=HUNG) as fair,
        ):
            fair.sendall(request_bytes({"messages": HELLO, "max_tokens": 400, "confidence_threshold": 0.0}))
            slow.sendall(begin)
            assert slow.recv(1000) == b""
            assert time.monotonic() - start > 0.3
            assert fair.recv(1000).startswith(b"HTTP/1.1 200")
    finally:
        server.should_exit = True
        thread.join(20)
