"""Answers from a session's model, batched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..engine import Engine
from ..errors import CanvasError
from ..session import Session, Transcript
from ..types import Committed, Failed, Finished
from .answers import Answer, Conversation


@dataclass
class _Pending:
    """A request on its way: its place in the list, what turns its events into text, what came so far."""

    place: int
    transcript: Transcript
    text: str = ""
    tokens: int = 0
    steps: list[int] = field(default_factory=list)


class SessionAnswerer:
    """Answers with a session's model, `rows` at a time, in an engine of its own that remembers no prompts.

    Every answer has its own seed, so it does not depend on what else is in the batch.
    """

    def __init__(self, session: Session, rows: int = 32) -> None:
        self.session = session
        self.engine = Engine(session.engine.runner.model, max_rows=rows, prefix_memory=0)

    def __call__(
        self, conversations: Sequence[Conversation], seeds: Sequence[int], **params: Any
    ) -> Iterator[tuple[int, Answer]]:
        """Raises the engine's error when a request fails: an eval with holes is none."""
        pending: dict[int, _Pending] = {}
        for place, (conversation, seed) in enumerate(zip(conversations, seeds, strict=True)):
            request = self.session.prepare(conversation, seed=seed, **params)
            pending[self.engine.submit(request)] = _Pending(place, Transcript(self.session.tokenizer))
        while pending:
            for event in self.engine.step():
                if isinstance(event, Failed):
                    raise (
                        event.error if isinstance(event.error, CanvasError) else CanvasError(str(event.error))
                    )
                if isinstance(event, Committed | Finished):
                    answer = _read(pending[event.request_id], event)
                    if answer is not None:
                        yield pending.pop(event.request_id).place, answer


def _read(pending: _Pending, event: Committed | Finished) -> Answer | None:
    """Notes an event; the answer when it is the last one."""
    read = pending.transcript.read(event)
    assert isinstance(read, Committed | Finished)
    pending.text += read.text
    if isinstance(read, Finished):
        return Answer(pending.text, pending.tokens, tuple(pending.steps))
    pending.tokens += len(read.tokens)
    pending.steps.append(read.report.steps)
    return None


__all__ = ["SessionAnswerer"]
