"""uvicorn with limits on time: on how long a client may take to say what it wants, and on how long a server
that ends waits for its answers."""

from __future__ import annotations

import asyncio
import logging
import math
import socket

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .bridge import Bridge

log = logging.getLogger("canvaslm.server")


class TimedProtocol(H11Protocol):
    """Hangs up on connections that have been open, or idle in the middle of a request's
    head, for `head_seconds`.

    uvicorn limits how long a connection may stay idle after an answer, but not before the first request.
    """

    head_seconds = 30.0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Starts the clock where no request is being answered and it does not run yet; stops it otherwise."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.head_seconds, self._give_up)

    def _give_up(self) -> None:
        self._deadline = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class DrainingServer(uvicorn.Server):
    """Told to end, it lets answers be finished for `drain_seconds`. Then it ends those that are not.

    Each ends with an error as its dialect words it; uvicorn itself would break off streams and send a plain
    500 for the rest.
    """

    last_words = 5.0  # seconds for those errors to get out, before uvicorn cancels whatever still runs

    def __init__(self, config: uvicorn.Config, bridge: Bridge, drain_seconds: float) -> None:
        config.timeout_graceful_shutdown = math.ceil(drain_seconds + self.last_words)
        super().__init__(config)
        self._bridge, self._drain_seconds = bridge, drain_seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.ensure_future(self._end_answers())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _end_answers(self) -> None:
        await asyncio.sleep(self._drain_seconds)
        if ended := self._bridge.end_answers():
            log.warning("answers that were not finished in %g s: %d", self._drain_seconds, ended)


__all__ = ["DrainingServer", "TimedProtocol"]
