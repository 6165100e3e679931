"""Answers to many questions at once: the one thing an eval needs a model for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ..engine import Engine
from ..errors import CanvasError
from ..types import Committed, Failed, Finished, Params, Request

Conversation = Sequence[dict[str, str]]


@dataclass(frozen=True)
class Answer:
    """`text` is the answer without thoughts and markers; `tokens` counts committed ids, `steps` one per canvas."""

    text: str
    tokens: int
    steps: tuple[int, ...]


class Answerer(Protocol):
    """Answers conversations in any order, as (place in the list, answer). `params` override sampling defaults."""

    def __call__(
        self, conversations: Sequence[Conversation], seeds: Sequence[int], **params: Any
    ) -> Iterator[tuple[int, Answer]]: ...


class EngineAnswerer:
    """Submits every conversation to an engine at once; the engine batches them.

    `encode` turns messages into prompt ids, `decode` committed ids into text. Every answer has its own seed, so it
    does not depend on the others in the batch.
    """

    def __init__(
        self,
        engine: Engine,
        encode: Callable[[Conversation], Sequence[int]],
        decode: Callable[[Sequence[int]], str],
        params: Params,
        eos_token_ids: Sequence[int],
    ) -> None:
        self.engine, self.encode, self.decode = engine, encode, decode
        self.params, self.eos_token_ids = params, tuple(eos_token_ids)

    def __call__(
        self, conversations: Sequence[Conversation], seeds: Sequence[int], **params: Any
    ) -> Iterator[tuple[int, Answer]]:
        """Raises the engine's error when a request fails: an eval with holes is none."""
        places: dict[int, int] = {}
        for place, (conversation, seed) in enumerate(zip(conversations, seeds, strict=True)):
            chosen = replace(self.params, seed=seed, **params)
            request = Request(tuple(self.encode(conversation)), chosen, self.eos_token_ids)
            places[self.engine.submit(request)] = place
        tokens: dict[int, list[int]] = {number: [] for number in places}
        while self.engine.has_work:
            for event in self.engine.step():
                if isinstance(event, Committed):
                    tokens[event.request_id] += event.tokens
                elif isinstance(event, Finished):
                    ids = tokens.pop(event.request_id)
                    steps = tuple(report.steps for report in event.canvases)
                    yield places[event.request_id], Answer(self.decode(ids), len(ids), steps)
                elif isinstance(event, Failed):
                    raise _failure(event)


def _failure(event: Failed) -> CanvasError:
    return event.error if isinstance(event.error, CanvasError) else CanvasError(str(event.error))


__all__ = ["Answer", "Answerer", "Conversation", "EngineAnswerer"]
