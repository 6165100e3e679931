"""Steps an engine for all who wait for it, and hands every event to whom it belongs.

    driver = Driver(engine)
    with closing(driver.events(request)) as events: # several of them may be read in any order, also nested
        for event in events: ...

Generate, stream, the server, evals and bench are all loops around `Driver.step`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext

from ..errors import EngineFailure
from ..types import Event, Failed, Finished, Request
from .engine import Engine

Receiver = Callable[[Event], object]
log = logging.getLogger("canvaslm.engine")


class Driver:
    """Routes an engine's events by request id. Every submitted request ends in one terminal event.

    Not thread-safe: one thread submits, steps and cancels. `around` makes a context in which each step runs.
    """

    def __init__(
        self, engine: Engine, around: Callable[[], AbstractContextManager[object]] = nullcontext
    ) -> None:
        self.engine = engine
        self._around = around
        self._receivers: dict[int, Receiver] = {}

    @property
    def has_work(self) -> bool:
        """Whether a step has anything to do."""
        return self.engine.has_work

    def submit(self, request: Request, receive: Receiver) -> int:
        """Queues a request, whose events `receive` will be called with; its id. Raises
        UsageError as the engine."""
        request_id = self.engine.submit(request)
        self._receivers[request_id] = receive
        return request_id

    def cancel(self, request_id: int) -> None:
        """Ends a request now; its Finished event comes with the next step."""
        self.engine.cancel(request_id)

    def drop(self, request_id: int) -> None:
        """Ends a request, if it still runs, whose events nobody wants any more."""
        if self._receivers.pop(request_id, None) is not None:
            self.engine.cancel(request_id)
            self._hand_out(self.engine.take_events())

    def step(self) -> None:
        """One step of the engine. If it raises, which it should not, everything that runs has failed."""
        try:
            with self._around():
                events = self.engine.step()
        except Exception as error:
            log.error("the engine failed: %s", type(error).__name__)
            events = self._all_fail(error)
        self._hand_out(events)

    def step_for(self, request_id: int) -> None:
        """A step for somebody who waits for a request's events. Raises EngineFailure if none can come."""
        if not self.engine.has_work:
            raise EngineFailure(f"request {request_id} runs no more: its events were taken by another driver")
        self.step()

    def events(self, request: Request) -> RequestEvents:
        """Submits a request; an iterator of its events, which steps the engine while it has none to give."""
        return RequestEvents(self, request)

    def events_of_many(
        self, requests: Iterable[Request], in_flight: int
    ) -> Generator[tuple[int, Event], None, None]:
        """(number of the request, event) of many requests as they come, `in_flight`
        of them running at a time.

        `requests` may be endless: the next is asked for when one has ended. Closing it cancels what runs.
        """
        waiting: deque[tuple[int, Event]] = deque()
        running: dict[int, int] = {}  # number -> the engine's id
        source = enumerate(requests)
        try:
            while True:
                while len(running) < in_flight and (taken := next(source, None)) is not None:
                    number, request = taken
                    running[number] = self.submit(request, _numbered(number, waiting))
                if not running:
                    return
                while not waiting:
                    self.step_for(next(iter(running.values())))
                while waiting:
                    number, event = waiting.popleft()
                    if isinstance(event, Finished | Failed):
                        del running[number]
                    yield number, event
        finally:
            for request_id in running.values():
                self.drop(request_id)

    def close(self) -> None:
        """Cancels everything that runs; whoever reads it still gets its last events."""
        for request_id in list(self._receivers):
            self.engine.cancel(request_id)
        self._hand_out(self.engine.take_events())

    def abandon(self, error: BaseException) -> None:
        """Everything that runs has failed: what steps the engine cannot go on."""
        for event in self._all_fail(error):
            try:
                self._hand_out([event])
            except Exception as another:  # the others are to hear of it all the same
                log.error("a failure could not be told: %s", type(another).__name__)

    def _hand_out(self, events: Iterable[Event]) -> None:
        for event in events:
            receive = self._receivers.get(event.request_id)
            if isinstance(event, Finished | Failed):
                self._receivers.pop(event.request_id, None)
            if receive is not None:
                receive(event)

    def _all_fail(self, error: BaseException) -> list[Event]:
        """Nothing that runs can be trusted any more."""
        failed: list[Event] = []
        for request_id in list(self._receivers):
            known = EngineFailure(f"{type(error).__name__}: {error}")
            known.__cause__ = error
            failed.append(Failed(request_id, known))
            try:
                self.engine.cancel(request_id)
            except Exception:  # its state may be as broken as the rest: it has failed all the same
                continue
        return failed


class RequestEvents(Iterator[Event]):
    """The events of one request. Closing it cancels the request."""

    def __init__(self, driver: Driver, request: Request) -> None:
        self._driver = driver
        self._waiting: deque[Event] = deque()
        self.id = driver.submit(request, self._waiting.append)
        self._ended = False

    def __next__(self) -> Event:
        if self._ended:
            raise StopIteration
        while not self._waiting:
            self._driver.step_for(self.id)
        event = self._waiting.popleft()
        self._ended = isinstance(event, Finished | Failed)
        return event

    def cancel(self) -> None:
        """Ends the request now; its Finished event still comes."""
        self._driver.cancel(self.id)

    def close(self) -> None:
        """Ends the request and drops what nobody has read."""
        self._driver.drop(self.id)
        self._waiting.clear()
        self._ended = True


def _numbered(number: int, waiting: deque[tuple[int, Event]]) -> Receiver:
    return lambda event: waiting.append((number, event))


__all__ = ["Driver", "Receiver", "RequestEvents"]
