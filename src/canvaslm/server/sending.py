"""Answers on the wire: JSON, server-sent events, NDJSON, and noticing that the client has gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .limits import Limits
from .problems import Problem, problem_of

T = TypeVar("T")
log = logging.getLogger("canvaslm.server")


def json_bytes(value: Any) -> bytes:
    """Compact JSON. Lone surrogates, which JSON may carry and UTF-8 may not, become question marks."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def sse(value: Any, event: str | None = None) -> bytes:
    """One server-sent event."""
    name = f"event: {event}\n".encode() if event else b""
    return name + b"data: " + json_bytes(value) + b"\n\n"


class JsonAnswer(Response):
    """A JSON response."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json_bytes(content)


class Stream(Response):
    """A response made of chunks as they come. Calls `close` when it ends, however it ends.

    A client that disconnects ends it at once; one that takes nothing for `write_timeout` is given up. `pulse`
    is sent when there has been nothing else for `keep_alive`.
    """

    def __init__(
        self,
        chunks: AsyncIterator[bytes],
        close: Callable[[], None],
        *,
        limits: Limits,
        media_type: str = "text/event-stream",
        pulse: bytes = b": still here\n\n",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(headers={"x-accel-buffering": "no", **(headers or {})}, media_type=media_type)
        del self.headers["content-length"]
        self._chunks, self._close, self._limits, self._pulse = chunks, close, limits, pulse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.ensure_future(self._send_all(send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._close()
            await _end(work)
            await _end(gone)
        if not work.cancelled():
            work.result()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for chunk in _with_pulse(self._chunks, self._limits.keep_alive, self._pulse):
            try:
                async with asyncio.timeout(self._limits.write_timeout):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            except TimeoutError:
                return  # the connection is closed with the answer unfinished
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def wording_errors(
    chunks: AsyncIterator[bytes], word: Callable[[Problem], bytes]
) -> AsyncIterator[bytes]:
    """The chunks; an exception among them becomes a last chunk, since the status has been sent long ago."""
    try:
        async for chunk in chunks:
            yield chunk
    except Exception as error:
        problem = problem_of(error)
        if problem.status == 500:
            log.error(
                "%s in a stream\n%s",
                type(error).__name__,
                "".join(traceback.format_tb(error.__traceback__)[-6:]),
            )
        yield word(problem)


async def _with_pulse(chunks: AsyncIterator[bytes], seconds: float, pulse: bytes) -> AsyncIterator[bytes]:
    """The chunks, and a sign of life where there is none for some seconds."""
    step: asyncio.Future[bytes] | None = None
    try:
        while True:
            step = step or asyncio.ensure_future(_next(chunks))
            done, _ = await asyncio.wait({step}, timeout=seconds)
            if not done:
                yield pulse
                continue
            try:
                chunk = step.result()
            except StopAsyncIteration:
                return
            step = None
            yield chunk
    finally:
        if step is not None:
            await _end(step)


async def _next(chunks: AsyncIterator[bytes]) -> bytes:
    return await chunks.__anext__()


async def _end(task: asyncio.Future[Any]) -> None:
    """Cancels a task and waits until it has ended; what it raises is its own affair."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await task


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of work, which is cancelled when the client disconnects. Raises Problem
    then, for the log alone."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Problem(499, "the client has gone")
        return task.result()
    finally:
        await _end(gone)
        if not task.done():
            await _end(task)


__all__ = ["JsonAnswer", "Stream", "json_bytes", "sse", "unless_gone", "wording_errors"]
