"""Answers from a session's model, batched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from ..engine import Driver, Engine
from ..session import Session
from ..text.transcript import ReplyBuilder, Transcript
from ..types import Finished, Reply
from .answers import Answer, Conversation


class SessionAnswerer:
    """Answers with a session's model, `rows` at a time, in an engine of its own that remembers no prompts.

    Every answer has its own seed, so it does not depend on what else is in the batch.
    """

    def __init__(self, session: Session, rows: int = 32) -> None:
        self.session, self._rows = session, rows
        self.engine = Engine(session.engine.runner.model, max_rows=rows, prefix_memory=0)
        self._driver = Driver(self.engine, session.threads.in_use)

    def __call__(
        self, conversations: Sequence[Conversation], seeds: Sequence[int], **params: Any
    ) -> Iterator[tuple[int, Answer]]:
        """Raises the engine's error when a request fails: an eval with holes is none."""
        requests = (
            self.session.prepare(conversation, seed=seed, **params)
            for conversation, seed in zip(conversations, seeds, strict=True)
        )
        transcripts = [Transcript(self.session.tokenizer) for _ in conversations]
        answers = [ReplyBuilder() for _ in conversations]
        with closing(self._driver.events_of_many(requests, self._rows)) as events:
            for place, event in events:
                answers[place].add(transcripts[place].read(event))
                if isinstance(event, Finished):
                    yield place, _answer(answers[place].reply())


def _answer(reply: Reply) -> Answer:
    return Answer(reply.text, len(reply.tokens), tuple(canvas.steps for canvas in reply.canvases))


__all__ = ["SessionAnswerer"]
