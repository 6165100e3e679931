"""How a question is put to the model.

    <state>

    Question: How urgent?
    A: can wait
    B: today
    Answer with the letter of one option only.

Where options are their own labels, there is no list: the state, a blank line, the instructions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..errors import UsageError
from .questions import Question, QuestionOption

BETWEEN = "\n\n"
_UNSAID = {"predicate": "Is this so?", "choice": "Which option fits?", "score": "Which level fits?"}


def state_text(state: Any) -> str:
    """A state as the model reads it: a text as it is, anything else as JSON. Raises UsageError for what is no
    plain data."""
    if isinstance(state, str):
        return state
    try:
        return json.dumps(state, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"state should be a text or plain data that JSON has: {error}", "state") from None


def listed(question: Question, order: Sequence[int], labels: Sequence[str]) -> str:
    """A question with its options in an order, each with its label."""
    asked = f"Question: {question.instructions or _UNSAID[question.kind]}"
    options = (_line(label, question.options[i]) for label, i in zip(labels, order, strict=True))
    return "\n".join([asked, *options])


def single(question: Question, order: Sequence[int], labels: Sequence[str]) -> str:
    """The end of a prompt that asks one question."""
    letters = "letter" if len(labels[0]) == 1 else "letters"
    return f"{listed(question, order, labels)}\nAnswer with the {letters} of one option only."


def joined(questions: Sequence[str]) -> str:
    """The end of a prompt that asks several questions, each as `listed`, to be answered on one canvas."""
    numbered = (f"{number}. {asked}" for number, asked in enumerate(questions, 1))
    told = "Answer each question on a line of its own: its number, a colon, the letter of one option only."
    return BETWEEN.join([*numbered, told])


def _line(label: str, option: QuestionOption) -> str:
    described = f" - {option.description}" if option.description else ""
    return f"{label}: {option.text}{described}"


__all__ = ["BETWEEN", "joined", "listed", "single", "state_text"]
