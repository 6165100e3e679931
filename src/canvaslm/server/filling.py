"""Texts with holes over the bridge: a plan's rounds, worded as the events of one choice.

    plan = await service.work(...)                # made on a worker thread
    answers = await FillAnswers.start(service, plan)
    async for part in answers: ...                # drafts, the hole's text, the end: as of `Answers`

A round is some requests that run together; the next is known when they have ended.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..types import CanvasReport, Committed, Draft, Filled, Finished, Note, Request
from .batches import Batches
from .choices import ChoiceEvent, as_warnings
from .problems import unfinished

if TYPE_CHECKING:
    from ..session.filling import FillPlan
    from ..session.rounds import Outcome, Round
    from .service import Service


class FillAnswers:
    """One choice: the text of the only hole, or, `whole`, all of the text."""

    def __init__(self, service: Service, plan: FillPlan, whole: bool, model: str) -> None:
        """model: its name."""
        self.model = model
        self.requests: tuple[Request, ...] = ()
        self.empty: set[int] = set()
        self._service, self._plan, self._whole = service, plan, whole
        self._rounds = plan.rounds()
        self._outcomes: list[Outcome] = []
        self._batches: Batches | None = None  # of the round that runs
        self._notes: tuple[Note, ...] = ()
        self._closed = False

    @classmethod
    async def start(cls, service: Service, plan: FillPlan, *, whole: bool, model: str) -> FillAnswers:
        """Submits the first round. Raises Problem or CanvasError with nothing running."""
        answers = cls(service, plan, whole, model)
        asked = await service.work(next, answers._rounds)
        await answers._begin(asked, patient=False)
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
                asked = await self._service.work(_following, self._rounds, self._outcomes)
                if isinstance(asked, Filled):
                    break
                await self._begin(asked, patient=True)
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
        if self._batches is not None:
            self._batches.close()

    async def _drafts(self) -> AsyncGenerator[ChoiceEvent, None]:
        """Runs a round to its end; drafts of its first request are shown."""
        assert self._batches is not None
        async for index, event in self._batches:
            if not isinstance(event, Draft):
                self._outcomes[index].add(event)
            elif index == 0:
                holes = self._plan.draft_holes(event)
                text = self._plan.whole(holes) if self._whole else holes[0]
                yield ChoiceEvent(0, replace(event, text=text))

    async def _begin(self, asked: Round, *, patient: bool) -> None:
        """Submits a round."""
        from ..session.rounds import Outcome

        self._outcomes = [Outcome() for _ in asked.requests]
        self._batches = Batches(self._service, asked.requests)
        if self._closed:
            raise unfinished()
        await self._batches.start(patient=patient)

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
