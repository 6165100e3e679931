"""Answers from a session's model, batched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

from ..engine import Driver, Engine
from ..options import AdapterOption
from ..session import Session
from ..text.transcript import ReplyBuilder, Transcript
from ..types import Finished, Reply
from .answers import Answer, Conversation, Pieces


class SessionAnswerer:
    """Answers with a session's model, `rows` at a time, in an engine of its own that remembers no prompts.

    Every answer has its own seed, so it does not depend on what else is in the batch.
    """

    def __init__(self, session: Session, rows: int = 32, adapter: AdapterOption = None) -> None:
        """adapter: as in `Session.generate`."""
        self.session, self._rows, self._adapter = session, rows, adapter
        self.engine = Engine(session.engine.runner.model, max_rows=rows, prefix_memory=0)
        self._driver = Driver(self.engine, session.threads.in_use)

    def __call__(
        self,
        conversations: Sequence[Conversation],
        seeds: Sequence[int],
        *,
        pieces: Sequence[Pieces] | None = None,
        structures: Sequence[Mapping[str, Any]] | None = None,
        **params: Any,
    ) -> Iterator[tuple[int, Answer]]:
        """Raises the engine's error when a request fails: an eval with holes is none."""
        alike = {**params, "adapter": self._adapter}
        given = [None] * len(seeds) if pieces is None else [self._given(each) for each in pieces]
        requests = (
            self.session.prepare(
                conversation,
                **{**alike, **structure, "seed": seed, "given": places},
            )
            for conversation, seed, places, structure in zip(
                conversations, seeds, given, structures or [{}] * len(seeds), strict=True
            )
        )
        transcripts = [Transcript(self.session.tokenizer) for _ in conversations]
        answers = [ReplyBuilder() for _ in conversations]
        with closing(self._driver.events_of_many(requests, self._rows)) as events:
            for place, event in events:
                answers[place].add(transcripts[place].read(event))
                if isinstance(event, Finished):
                    yield place, _answer(answers[place].reply())

    def _given(self, pieces: Pieces) -> dict[int, int]:
        """{place of the answer: token}: the given pieces, the turn's end behind the last, and the fill."""
        tokenizer, at = self.session.tokenizer, 0
        places: dict[int, int] = {}
        for text, known in pieces:
            tokens = tokenizer.encode(text)
            places |= {at + i: token for i, token in enumerate(tokens)} if known else {}
            at += len(tokens)
        end = tokenizer.marker_id(tokenizer.markers.turn_end)
        canvas, eos = self.session.engine.config.canvas_length, self.session.eos_token_ids[0]
        places[at] = eos if end is None else end
        return places | dict.fromkeys(range(at + 1, -(-(at + 1) // canvas) * canvas), eos)


def _answer(reply: Reply) -> Answer:
    canvases = reply.canvases
    steps, reads = tuple(canvas.steps for canvas in canvases), sum(canvas.reads for canvas in canvases)
    computed = sum(canvas.computed for canvas in canvases)
    return Answer(reply.text, len(reply.tokens), steps, reads, computed)


__all__ = ["SessionAnswerer"]
