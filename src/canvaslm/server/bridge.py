"""Between asyncio and the engine: one thread steps the engine and alone touches it; requests go in through a
queue, events come out through `loop.call_soon_threadsafe`.

A `RequestGroup` is what one client asked for: one or more requests and a buffer of their events. Its size is
bounded by the answers' own: drafts that nobody has read are overwritten by newer ones, so that a client that
never reads costs neither memory nor time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..types import (
    Committed,
    Draft,
    Event,
    Failed,
    Finished,
    Request,
)
from .problems import Problem, busy, loading, stopping, unfinished

if TYPE_CHECKING:
    from ..engine import Driver, Engine
    from ..session import Session

T = TypeVar("T")
# Gets the engine's driver, or None when its thread has ended.
Command = Callable[["Driver | None"], object]
log = logging.getLogger("canvaslm.server")
_BACKLOG = 8  # unread events from which on a committed canvas displaces its draft


class Observer(Protocol):
    """Is told of every event, on the engine's thread."""

    def accepted(self, request: Request) -> None: ...

    def event(self, event: Event) -> None: ...


class RequestGroup:
    """Requests submitted together, and their events as an asynchronous iterator of (index, event).

    It ends after every request's terminal event. `aclose` cancels what still runs. Belongs to one event loop.
    """

    def __init__(self, bridge: Bridge, requests: Sequence[Request]) -> None:
        self.requests = tuple(requests)
        self.loop = asyncio.get_running_loop()
        self.ids: list[int] = []  # the engine's; written by its thread
        self.stopped: set[int] = (
            set()
        )  # requests whose end was found in their text; read by the engine's thread
        self._bridge = bridge
        self._open = set(range(len(requests)))
        self._buffer: deque[list[Any]] = deque()  # [index, event], or [index, None] for what was displaced
        self._drafts: dict[int, list[Any]] = {}
        self._news = asyncio.Event()

    def put(self, index: int, event: Event) -> None:
        """Buffers an event. On the group's loop."""
        draft = self._drafts.get(index)
        if isinstance(event, Draft):
            if draft is not None:
                draft[1] = event
                self._news.set()
                return
            self._drafts[index] = slot = [index, event]
            self._buffer.append(slot)
        else:
            if draft is not None and len(self._buffer) > _BACKLOG:
                draft[1] = None
            self._drafts.pop(index, None)
            self._buffer.append([index, event])
        if isinstance(event, Finished | Failed):
            self._open.discard(index)
        self._news.set()

    def __aiter__(self) -> RequestGroup:
        return self

    async def __anext__(self) -> tuple[int, Event]:
        while True:
            while self._buffer:
                index, event = slot = self._buffer.popleft()
                if self._drafts.get(index) is slot:
                    del self._drafts[index]
                if event is not None:
                    return index, event
            if not self._open:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()

    def cancel(self, index: int, *, stopped: bool = False) -> None:
        """Ends one request; its Finished event still comes. `stopped`: its answer is
        complete, so it says "stop"."""
        if stopped:
            self.stopped.add(index)
        if index in self._open:
            self._bridge.post(lambda driver: driver.cancel(self.ids[index]) if driver and self.ids else None)

    def fail(self, error: Exception) -> None:
        """Ends what runs with an error for whoever reads it, now and not with the engine's next step."""
        for index in tuple(self._open):
            self.cancel(index)
            self.put(index, Failed(-1, error))

    def close(self) -> None:
        """Cancels what runs and drops what is buffered."""
        for index in tuple(self._open):
            self.cancel(index)
        self._buffer.clear()
        self._drafts.clear()

    @property
    def unfinished(self) -> int:
        """Requests without a terminal event."""
        return len(self._open)

    @property
    def backlog(self) -> int:
        """Events buffered."""
        return len(self._buffer)


class Bridge:
    """The engine thread. `source` is a session, or a callable that loads one, which the thread then calls.

    States: loading, ready, failed (loading or the thread itself raised `failure`), closed.
    """

    def __init__(
        self, source: Session | Callable[[], Session], *, max_queue: int, observer: Observer
    ) -> None:
        self._source = source
        self._max_queue = max_queue
        self._observer = observer
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loaded: Session | None = None
        self._groups: weakref.WeakSet[RequestGroup] = weakref.WeakSet()
        self.failure: BaseException | None = None
        self.closed = self._ended = False
        self.reserved = 0  # requests from the moment they are let in until their terminal event
        self.running = self.waiting = 0  # as the engine counts them, after its last step

    # -- for the event loop ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the thread; a second call does nothing."""
        with self._lock:
            if self._thread is None and not self.closed:
                self._thread = threading.Thread(target=self._live, name="canvaslm-engine", daemon=True)
                self._thread.start()

    @property
    def session(self) -> Session:
        """The session. Raises Problem (503) while it loads, when that or the engine's
        thread failed, and during shutdown."""
        if self.closed or self.failure is not None:
            raise self._refusal()
        if self._loaded is None:
            self.start()
            raise loading()
        return self._loaded

    def _refusal(self) -> Problem:
        """Why nothing is taken any more."""
        if self.closed or self.failure is None:
            return stopping()
        if self._loaded is None:
            return Problem(503, "the model could not be loaded", code="load_failed")
        cause = type(self.failure).__name__
        return Problem(503, f"the engine has stopped ({cause}): restart the server", code="engine_failed")

    def reserve(self, count: int) -> None:
        """Takes `count` places among running and waiting requests. Raises Problem
        (429) if they are not there."""
        rows = self.session.engine.scheduler.max_rows
        with self._lock:
            if self.reserved + count > rows + self._max_queue:
                raise busy(max(0, self.reserved - rows))
            self.reserved += count

    def release(self, count: int) -> None:
        """Gives places back."""
        with self._lock:
            self.reserved -= count

    async def launch(self, requests: Sequence[Request]) -> RequestGroup:
        """Submits requests whose places are reserved. Raises what the engine refuses.

        The places are free again after the terminal events, or at once where nothing was submitted.
        """
        group = RequestGroup(self, requests)
        self._groups.add(group)
        try:
            await self._on_thread(
                lambda driver: self._submit(driver, group), lambda: self.release(len(requests))
            )
        except asyncio.CancelledError:
            group.close()  # the thread submits it all the same, and then sees this
            raise
        return group

    async def on_engine_thread(self, question: Callable[[Engine], T]) -> T:
        """What a function says of the engine, run on its thread between two steps."""
        return await self._on_thread(lambda driver: question(driver.engine))

    async def _on_thread(
        self, question: Callable[[Driver], T], refused: Callable[[], None] = lambda: None
    ) -> T:
        """What a function says of the driver; where the thread has ended, `refused` is called instead."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def run(driver: Driver | None) -> None:
            try:
                if driver is None:
                    refused()
                    raise self._refusal()
                result = question(driver)
            except BaseException as error:
                _call(loop, _settle, answer, None, error)
            else:
                _call(loop, _settle, answer, result, None)

        self.post(run)
        return await answer

    def post(self, command: Command) -> None:
        """Has a function run on the engine's thread; without effect once that has ended."""
        with self._lock:
            if not self._ended:
                self._commands.put(command)
                return
        command(None)

    def end_answers(self) -> int:
        """Ends what clients still wait for with a Problem (503), and takes nothing
        more; how many requests that were. On the event loop."""
        self.closed = True
        ended = 0
        for group in list(self._groups):
            ended += group.unfinished
            group.fail(unfinished())
        return ended

    async def close(self, seconds: float = 10.0) -> None:
        """Cancels what runs and ends the thread, waiting for it no longer than given."""
        self.closed = True
        self._commands.put(None)
        if self._thread is not None and self._loaded is not None:  # loading cannot be interrupted
            await asyncio.to_thread(self._thread.join, seconds)

    # -- the engine's thread ---------------------------------------------------------------------------------

    def _live(self) -> None:
        try:
            self._loaded = self._source() if callable(self._source) else self._source
        except BaseException as error:
            self.failure = error
            log.error("the model could not be loaded: %s", type(error).__name__)
            self._end()
            return
        driver = self._loaded.driver
        try:
            self._work(driver)
        except BaseException as error:  # nobody else would tell those who wait
            self.failure = error
            log.error("the engine's thread has ended: %s", type(error).__name__)
            driver.abandon(error)
        self.running = self.waiting = 0
        self._end()

    def _work(self, driver: Driver) -> None:
        """Steps the engine until it is time to end."""
        scheduler = driver.engine.scheduler
        while self._obey(driver):
            if driver.has_work:
                driver.step()
            self.running, self.waiting = len(scheduler.running), len(scheduler.waiting)
        driver.close()

    def _end(self) -> None:
        """Answers what is still in the queue; from now on, `post` does so itself."""
        with self._lock:
            self._ended = True
        with contextlib.suppress(queue.Empty):
            while True:
                command = self._commands.get_nowait()
                if command is not None:
                    command(None)

    def _obey(self, driver: Driver) -> bool:
        """Runs what was posted, waiting for something if there is no other work;
        False once it is time to end."""
        wait = not driver.has_work
        while True:
            try:
                command = self._commands.get(block=wait)
            except queue.Empty:
                return True
            if command is None:
                return False
            wait = False
            try:
                command(driver)
            except Exception as error:
                log.error("a command to the engine failed: %s", type(error).__name__)

    def _submit(self, driver: Driver, group: RequestGroup) -> None:
        """Submits all or nothing; where nothing, the places that were reserved are given back."""
        try:
            _ = self.session
            for index, request in enumerate(group.requests):
                group.ids.append(driver.submit(request, self._receiver(group, index)))
        except BaseException:
            for request_id in group.ids:
                driver.drop(request_id)
            group.ids.clear()
            self.release(len(group.requests))
            raise
        for request in group.requests:
            self._observer.accepted(request)

    def _receiver(self, group: RequestGroup, index: int) -> Callable[[Event], None]:
        """What takes the events of one request of a group to the group's loop."""

        def receive(event: Event) -> None:
            if isinstance(event, Finished) and event.reason == "cancelled" and index in group.stopped:
                event = replace(event, reason="stop")
            if isinstance(event, Finished | Failed):
                self.release(1)
            try:
                self._observer.event(event)
            except Exception as error:  # who counts must not keep clients from their answers
                log.error("an event could not be counted: %s", type(error).__name__)
            if not _call(group.loop, group.put, index, event) and isinstance(event, Committed | Draft):
                self.post(lambda driver: driver.cancel(event.request_id) if driver else None)

        return receive


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: Any) -> bool:
    """Runs a function on a loop; False if the loop is gone."""
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:
        return False
    return True


def _settle(answer: asyncio.Future[T], result: Any, error: BaseException | None) -> None:
    if answer.done():  # nobody waits any more
        return
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)


__all__ = ["Bridge", "Observer", "RequestGroup"]
