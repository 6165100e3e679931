"""What can be asked: a predicate, a choice, a score.

    predicate("The customer asks for a refund.")
    choice("Tone?", {"angry": "raises the voice", "calm": None})
    score("How urgent?", ["can wait", "today", "now"])

A question has no name: what it is called changes no answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..errors import UsageError

QuestionKind = Literal["predicate", "choice", "score"]
KINDS: tuple[QuestionKind, ...] = get_args(QuestionKind)
# How many options one may have; the most that any kind may.
FEWEST_OPTIONS, MOST_OPTIONS = 1, 255
MOST_QUESTIONS = 400


@dataclass(frozen=True)
class QuestionOption:
    """One answer that is allowed: what is handed back, how it reads, and what is said about it."""

    value: Any
    text: str
    description: str = ""


@dataclass(frozen=True)
class Question:
    """`options` are in the caller's order; a predicate's are true and false, a score's its levels from the
    lowest."""

    kind: QuestionKind
    instructions: str
    options: tuple[QuestionOption, ...]

    def __post_init__(self) -> None:
        """Raises UsageError for what cannot be asked."""
        if not isinstance(self.instructions, str):
            raise UsageError(
                f"instructions should be a text, found {type(self.instructions).__name__}", "instructions"
            )
        field = {"predicate": "options", "choice": "choices", "score": "levels"}[self.kind]
        if not FEWEST_OPTIONS <= len(self.options) <= MOST_OPTIONS:
            raise UsageError(
                f"{field} has {len(self.options)} entries: give {FEWEST_OPTIONS} to {MOST_OPTIONS}", field
            )
        if self.kind == "choice":
            kinds = [(type(option.value), option.value) for option in self.options]
            twice = next((value for i, value in enumerate(kinds) if value in kinds[:i]), None)
            if twice is not None:
                raise UsageError(f"{field} has {twice[1]!r} twice: each must differ", field)


def predicate(instructions: str, true: str | None = None, false: str | None = None) -> Question:
    """Whether something holds; `true` and `false` say what is meant by either.

    >>> canvaslm.predicate("The customer asks for a refund.").kind
    'predicate'
    """
    options = (QuestionOption(True, "true", true or ""), QuestionOption(False, "false", false or ""))
    return Question("predicate", instructions, options)


def choice(instructions: str, choices: Mapping[Any, str | None] | Iterable[Any]) -> Question:
    """Which of several values: texts, numbers, true and false, none. A mapping describes them.

    >>> [option.text for option in canvaslm.choice("Tone?", ["angry", True]).options]
    ['angry', 'true']
    """
    if isinstance(choices, str | bytes) or not isinstance(choices, Iterable):
        raise UsageError(f"choices should be a list of values, found {type(choices).__name__}", "choices")
    described = choices if isinstance(choices, Mapping) else {}
    options = (QuestionOption(v, value_text(v), described.get(v) or "") for v in choices)
    return Question("choice", instructions, tuple(options))


def score(instructions: str, levels: Mapping[str, str | None] | Iterable[str]) -> Question:
    """Which of several levels, the lowest first. A mapping describes them.

    >>> [option.value for option in canvaslm.score("How urgent?", ["can wait", "today"]).options]
    [0, 1]
    """
    if isinstance(levels, str | bytes) or not isinstance(levels, Iterable):
        raise UsageError(f"levels should be a list of texts, found {type(levels).__name__}", "levels")
    described = levels if isinstance(levels, Mapping) else {}
    options = []
    for number, level in enumerate(levels):
        if not isinstance(level, str):
            raise UsageError(f"level {number} should be a text, found {type(level).__name__}", "levels")
        options.append(QuestionOption(number, level, described.get(level) or ""))
    return Question("score", instructions, tuple(options))


def value_text(value: Any) -> str:
    """How a value reads: as in JSON, texts without quotes. Raises UsageError for what is no plain value."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    raise UsageError(
        f"a choice should be a text, a number, true, false or null, found {type(value).__name__}", "choices"
    )


__all__ = [
    "FEWEST_OPTIONS", "KINDS", "MOST_OPTIONS", "MOST_QUESTIONS", "Question", "QuestionKind", "QuestionOption",
    "choice", "predicate", "score", "value_text",
]  # fmt: skip
