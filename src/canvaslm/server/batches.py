"""Many requests of one client: as many at a time as the engine has rows; more might never be let in.

batches = Batches(service, requests)
await batches.start()                   # raises before anything runs
async for index, event in batches: ...  # of all of them; raises what one failed with
batches.close()                         # cancels what still runs
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from ..types import Event, Failed, Finished, Request
from .bridge import RequestGroup
from .problems import Problem, unfinished

if TYPE_CHECKING:
    from .service import Service

_WAIT = 0.05  # seconds between two looks for free places, once an answer has begun


class Batches:
    """Requests in batches, one after the other, and their events as (index, event)."""

    def __init__(self, service: Service, requests: Sequence[Request]) -> None:
        rows = service.session.engine.scheduler.max_rows
        self._service = service
        self._waiting = deque(tuple(requests[i : i + rows]) for i in range(0, len(requests), rows))
        self._begun = self._size = 0  # requests before the batch that runs, and in it
        self._group: RequestGroup | None = None
        self._closed = False

    async def start(self, *, patient: bool = False) -> None:
        """Submits the first batch. Raises Problem (429) where there is no room, but if `patient`: an answer
        that has begun is not refused any more because others came."""
        if patient:
            await self._reserve(len(self._waiting[0]))
        else:
            self._service.bridge.reserve(len(self._waiting[0]))
        await self._launch()

    async def __aiter__(self) -> AsyncIterator[tuple[int, Event]]:
        while True:
            assert self._group is not None
            async for index, event in self._group:
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Finished) and event.reason == "cancelled":
                    raise unfinished()
                yield self._begun + index, event
            if not self._waiting:
                return
            await self._reserve(len(self._waiting[0]))
            await self._launch()

    def close(self) -> None:
        """Cancels what still runs."""
        self._closed = True
        if self._group is not None:
            self._group.close()

    async def _reserve(self, count: int) -> None:
        while True:
            try:
                self._service.bridge.reserve(count)
                return
            except Problem as problem:
                if problem.status != 429:
                    raise
            await asyncio.sleep(_WAIT)

    async def _launch(self) -> None:
        """Submits the next batch, whose places are reserved."""
        requests = self._waiting.popleft()
        if self._closed:
            self._service.bridge.release(len(requests))
            raise unfinished()
        self._begun += self._size
        self._size = len(requests)
        self._group = await self._service.bridge.launch(requests)


__all__ = ["Batches"]
