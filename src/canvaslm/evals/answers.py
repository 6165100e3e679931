"""Answers to many questions at once: the one thing an eval needs a model for. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Conversation = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Answer:
    """`text` is the answer without thoughts and markers; `tokens` counts committed
    ids, `steps` one per canvas."""

    text: str
    tokens: int
    steps: tuple[int, ...]


class Answerer(Protocol):
    """Answers conversations in any order, as (place in the list, answer). `params`
    override sampling defaults."""

    def __call__(
        self, conversations: Sequence[Conversation], seeds: Sequence[int], **params: Any
    ) -> Iterator[tuple[int, Answer]]: ...


__all__ = ["Answer", "Answerer", "Conversation"]
