"""Events by request id: several consumers of one engine, in any order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from canvaslm.engine import Driver, Engine
from canvaslm.errors import EngineFailure, UsageError
from canvaslm.types import Event, Failed, Finished, Params, Request

from ..tiny import tiny_model

PARAMS = Params(max_new_tokens=32, max_denoising_steps=3, seed=1)


def request(number: int) -> Request:
    return Request((3, 4, 5 + number), PARAMS)


def driver_of(rows: int = 4) -> Driver:
    return Driver(Engine(tiny_model(), max_rows=rows))


def tokens_of(events: list[Event]) -> list[tuple[int, ...]]:
    return [event.tokens for event in events if not isinstance(event, Finished | Failed)]


def test_two_readers_in_turn_lose_nothing() -> None:
    alone = [tokens_of(list(driver_of().events(request(n)))) for n in range(2)]
    driver = driver_of()
    readers = [driver.events(request(n)) for n in range(2)]
    found: list[list[Event]] = [[], []]
    for _ in range(100):
        for reader, events in zip(readers, found, strict=True):
            events += [event] if (event := next(reader, None)) is not None else []
    assert [tokens_of(events) for events in found] == alone
    assert all(isinstance(events[-1], Finished) for events in found)
    assert not driver.has_work


def test_one_reader_inside_another() -> None:
    driver = driver_of()
    inner: list[Event] = []
    outer = []
    for event in driver.events(request(0)):
        outer.append(event)
        inner = inner or list(driver.events(request(1)))
    assert isinstance(inner[-1], Finished) and isinstance(outer[-1], Finished)


def test_many_are_bounded_and_taken_as_needed() -> None:
    driver, taken = driver_of(), 0

    def endless() -> Iterator[Request]:
        nonlocal taken
        while True:
            taken += 1
            yield request(taken % 5)

    ended = []
    with closing(driver.events_of_many(endless(), 2)) as events:
        for number, event in events:
            scheduler = driver.engine.scheduler
            assert len(scheduler.running) + len(scheduler.waiting) <= 2
            ended += [number] if isinstance(event, Finished) else []
            assert taken <= len(ended) + 2
            if len(ended) == 6:
                break
    assert not driver.has_work


def test_a_refused_request_cancels_the_others() -> None:
    driver = driver_of()
    with pytest.raises(UsageError, match="empty"):
        list(driver.events_of_many([request(0), Request(())], 2))
    assert not driver.has_work


def test_a_step_that_raises_fails_all_and_the_next_go_on() -> None:
    driver = driver_of()
    step = driver.engine.step
    events = driver.events(request(0))

    def broken() -> list[Event]:
        raise MemoryError("gone")

    driver.engine.step = broken  # type: ignore[method-assign]
    (failed,) = list(events)
    assert isinstance(failed, Failed) and isinstance(failed.error, EngineFailure)
    assert isinstance(failed.error.__cause__, MemoryError)
    driver.engine.step = step  # type: ignore[method-assign]
    assert isinstance(list(driver.events(request(1)))[-1], Finished)


def test_a_second_driver_cannot_make_the_first_wait_for_ever() -> None:
    driver = driver_of()
    events = driver.events(request(0))
    list(Driver(driver.engine).events(request(1)))
    with pytest.raises(EngineFailure, match="another driver"):
        list(events)


def test_closing_ends_what_is_read_with_cancelled() -> None:
    driver = driver_of()
    events = driver.events(request(0))
    driver.step()
    driver.close()
    last = list(events)[-1]
    assert isinstance(last, Finished) and last.reason == "cancelled"
