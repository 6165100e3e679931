"""Texts with holes over the bridge: a plan's rounds, worded as the events of one choice.

    plan = await service.work(...)                # made on a worker thread
    answers = await FillAnswers.start(service, plan)
    async for part in answers: ...                # drafts, the hole's text, the end: as of `Answers`

A round is some requests that run together; the next is known when they have ended.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..types import CanvasReport, Committed, Draft, Failed, Filled, Finished, Note, Request
from .bridge import RequestGroup
from .choices import ChoiceEvent, as_warnings
from .problems import Problem, unfinished

if TYPE_CHECKING:
    from ..session.filling import FillPlan
    from ..session.rounds import Outcome, Round
    from .service import Service

_WAIT = 0.05  # seconds between two looks for free places, once an answer has begun


class FillAnswers:
    """One choice: the text of the only hole, or, `whole`, all of the text."""

    def __init__(self, service: Service, plan: FillPlan, whole: bool) -> None:
        self.requests: tuple[Request, ...] = ()
        self.empty: set[int] = set()
        self._service, self._plan, self._whole = service, plan, whole
        self._rounds = plan.rounds()
        self._outcomes: list[Outcome] = []
        self._batches: deque[tuple[Request, ...]] = deque()  # of the round, those that have not begun
        self._begun = self._size = 0  # requests of the round before the batch that runs, and in it
        self._group: RequestGroup | None = None
        self._notes: tuple[Note, ...] = ()
        self._closed = False

    @classmethod
    async def start(cls, service: Service, plan: FillPlan, *, whole: bool) -> FillAnswers:
        """Submits the first round. Raises Problem or CanvasError with nothing running."""
        answers = cls(service, plan, whole)
        asked = await service.work(next, answers._rounds)
        answers._take(asked)
        service.bridge.reserve(len(answers._batches[0]))
        await answers._launch()
        answers.requests = asked.requests[:1]
        return answers

    @property
    def seed(self) -> int:
        return self._plan.seed

    async def __aiter__(self) -> AsyncIterator[ChoiceEvent]:
        try:
            while True:
                async with aclosing(self._drafts()) as drafts:
                    async for draft in drafts:
                        yield draft
                if not self._batches:
                    asked = await self._service.work(_following, self._rounds, self._outcomes)
                    if isinstance(asked, Filled):
                        break
                    self._take(asked)
                await self._reserve(len(self._batches[0]))
                await self._launch()
            for event in self._end(asked):
                yield ChoiceEvent(0, event)
        finally:
            self.close()

    def warnings(self, told: Sequence[dict[str, str]], choice: int | None = None) -> dict[str, Any]:
        """The field `warnings` of an answer, or nothing: what is told anyway, and which holes were cut. That
        nothing is missing is an answer, too."""
        made = [*told, *as_warnings(self._notes)]
        return {"warnings": made} if made else {}

    def stop_string(self, choice: int = 0) -> str | None:
        """What ended the answer is not told: stop strings end holes."""
        return None

    def close(self) -> None:
        """Cancels what still runs."""
        self._closed = True
        if self._group is not None:
            self._group.close()

    async def _drafts(self) -> AsyncGenerator[ChoiceEvent, None]:
        """Runs a batch to its end; drafts of a round's first request are shown."""
        assert self._group is not None
        async for index, event in self._group:
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finished) and event.reason == "cancelled":
                raise unfinished()
            if not isinstance(event, Draft):
                self._outcomes[self._begun + index].add(event)
            elif self._begun + index == 0:
                holes = self._plan.draft_holes(event)
                text = self._plan.whole(holes) if self._whole else holes[0]
                yield ChoiceEvent(0, replace(event, text=text))

    def _take(self, asked: Round) -> None:
        """A new round, in batches of no more requests than the engine has rows: more may never be let in."""
        from ..session.rounds import Outcome

        rows, requests = self._service.session.engine.scheduler.max_rows, asked.requests
        self._outcomes = [Outcome() for _ in requests]
        self._batches = deque(requests[i : i + rows] for i in range(0, len(requests), rows))
        self._begun = self._size = 0

    async def _reserve(self, count: int) -> None:
        """Waits for places: an answer that has begun is not refused any more because others came."""
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
        requests = self._batches.popleft()
        if self._closed:
            self._service.bridge.release(len(requests))
            raise unfinished()
        self._begun += self._size
        self._size = len(requests)
        self._group = await self._service.bridge.launch(requests)

    def _end(self, filled: Filled) -> list[Committed | Finished]:
        last = filled.canvases[-1] if filled.canvases else CanvasReport(0, "converged", 0.0)
        text = filled.text if self._whole else filled.holes[0]
        self._notes = filled.notes
        return [
            Committed(-1, max(0, len(filled.canvases) - 1), (), last, text),
            Finished(
                -1, filled.finish_reason, filled.usage, filled.timings, filled.seed, filled.canvases,
                notes=filled.notes,
            ),
        ]  # fmt: skip


def _following(rounds: Any, outcomes: list[Outcome]) -> Round | Filled:
    """The next round, or what came of the last. StopIteration cannot pass through a future."""
    try:
        asked: Round = rounds.send(outcomes)
    except StopIteration as end:
        filled: Filled = end.value
        return filled
    return asked


__all__ = ["FillAnswers"]
