"""Questions with known answers, a line of JSON each:

    {"state": "...", "question": {"type": "predicate", "instructions": "..."}, "answer": true}

The question is as in `json_form`; the answer a value of a choice, true or false of a predicate, and of a
score the number of a level or its label.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from .json_form import question_of
from .questions import Question


@dataclass(frozen=True)
class LabelledQuestion:
    """`truth`: the number of the option that is right."""

    state: Any
    question: Question
    truth: int


def labelled_questions(text: str, name: str) -> list[LabelledQuestion]:
    """Those of a text's lines; empty ones are none. name: what the text is called in errors. Raises
    UsageError."""
    made = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                made.append(_read(line))
            except (UsageError, ValueError, RecursionError) as error:
                raise UsageError(f"{name}, line {number}: {error}", "file") from None
    return made


def _read(line: str) -> LabelledQuestion:
    data = json.loads(line)
    if not isinstance(data, dict) or "question" not in data or "answer" not in data:
        raise UsageError("should be an object with state, question and answer")
    _, question = question_of(data["question"])
    wanted, options = data["answer"], question.options
    for number, option in enumerate(options):
        same = type(wanted) is type(option.value) and wanted == option.value
        if same or (question.kind == "score" and wanted == option.text):
            return LabelledQuestion(data.get("state", ""), question, number)
    raise UsageError(f"the answer {wanted!r} is none of the question's options")


__all__ = ["LabelledQuestion", "labelled_questions"]
