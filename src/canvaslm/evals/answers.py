"""Answers to many questions at once: the one thing an eval needs a model for. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Conversation = Sequence[Mapping[str, str]]
# An answer from left to right: (text, whether it is given). What is not given is a hole of so many tokens.
Pieces = Sequence[tuple[str, bool]]


@dataclass(frozen=True)
class Answer:
    """`text` is the answer without thoughts and markers; `tokens` counts committed ids, `steps` one per
    canvas; `reads` the passes that the causal reader took, `computed` the places of all steps (0: not
    told)."""

    text: str
    tokens: int
    steps: tuple[int, ...]
    reads: int = 0
    computed: int = 0


class Answerer(Protocol):
    """Answers conversations in any order, as (place in the list, answer). `params`
    override sampling defaults. `pieces`, one sequence a conversation: what is given of its answer, and what
    holes there are. `structures`: options of a session that say what each answer has to be."""

    def __call__(
        self,
        conversations: Sequence[Conversation],
        seeds: Sequence[int],
        *,
        pieces: Sequence[Pieces] | None = None,
        structures: Sequence[Mapping[str, Any]] | None = None,
        **params: Any,
    ) -> Iterator[tuple[int, Answer]]: ...


__all__ = ["Answer", "Answerer", "Conversation", "Pieces"]
