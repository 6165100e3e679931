"""System One's bodies: a state, questions by id, answers by id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from ....decisions.json_form import data_text
from ....decisions.prompt import state_text
from ....decisions.questions import Question, QuestionOption
from ....errors import UsageError
from ...deciding import DecideFields, DecidingRequest, diagnosed
from ...problems import problem_of

if TYPE_CHECKING:
    from ....decisions.answers import Decision, Decisions

MOST_ASKED, MOST_CRITERIA, MOST_SCORE_LEVELS = 64, 255, 10


class SystemOneRequest(DecideFields):
    """1 to 64 questions about a state."""

    model: str | None = None
    state: Any = Field(None, description="A text, an object or a list.")
    questions: Any = Field(
        None,
        description="By id: `type` noul, choice (1 to 255 `criteria`, by name) or score (1 to 10 `criteria`, "
        "lowest first), and `instructions`.",
    )
    instructions: str | None = Field(None, description="Said before the state.")
    assets: dict[str, Any] | None = Field(
        None, description="Refused unless empty: this model reads no images."
    )


class SystemOneUsage(BaseModel):
    """Tokens; the state counts once."""

    input_tokens: int
    output_tokens: int


class SystemOneAnswer(BaseModel):
    """Answers by id; `diagnostics` too."""

    model: str
    answers: dict[str, dict[str, Any]]
    usage: SystemOneUsage
    diagnostics: dict[str, dict[str, Any]]


class InvalidValue(BaseModel):
    """One thing that is wrong with a body, and where."""

    loc: list[str | int]
    msg: str
    type: str


class SystemOneError(BaseModel):
    """Every error at this path."""

    detail: list[InvalidValue]


class Misplaced(UsageError):
    """Something wrong at a place of the body, given by its parts: an id may hold dots."""

    def __init__(self, message: str, *place: str | int) -> None:
        super().__init__(message, ".".join(map(str, place)))
        self.place = place


def read_request(body: SystemOneRequest) -> DecidingRequest:
    """Raises Problem, caused by a `Misplaced`."""
    try:
        return _read(body)
    except UsageError as error:
        raise problem_of(error) from error


def _read(body: SystemOneRequest) -> DecidingRequest:
    said = body.model_dump(exclude_unset=True)
    if said.get("state") is None:
        raise Misplaced("Field required", "state")
    if not isinstance(said["state"], str | dict | list):
        raise Misplaced("should be a text, an object or a list", "state")
    if said.get("assets"):
        raise Misplaced("this model reads no images: describe them in words", "assets")
    asked = said.get("questions")
    if not isinstance(asked, Mapping):
        raise Misplaced("should be an object of questions by id", "questions")
    if not 1 <= len(asked) <= MOST_ASKED:
        raise Misplaced(f"has {len(asked)} questions: ask 1 to {MOST_ASKED}", "questions")
    questions = {name: _question(data, "questions", name) for name, data in asked.items()}
    options = body.chosen()
    options["instructions"] = said.get("instructions")
    return DecidingRequest(state_text(said["state"]), questions, options, model=said.get("model"))


def _question(data: Any, *place: str | int) -> Question:
    if not isinstance(data, Mapping):
        raise Misplaced("should be an object", *place)
    kind, criteria = data.get("type"), data.get("criteria")
    told = _text(data.get("instructions"), *place, "instructions")
    if kind == "noul":
        return Question("predicate", told, _truth(criteria, *place, kind, "criteria"))
    if kind == "choice":
        return Question(kind, told, _choices(criteria, *place, kind, "criteria"))
    if kind == "score":
        return Question(kind, told, _levels(criteria, *place, kind, "criteria"))
    if kind == "box":
        raise Misplaced("box questions are about images, which this model does not read", *place, "type")
    raise Misplaced("should be noul, choice or score", *place, "type")


def _truth(criteria: Any, *place: str | int) -> tuple[QuestionOption, ...]:
    if criteria is not None and not isinstance(criteria, Mapping):
        raise Misplaced('should be an object with "true" and "false"', *place)
    said = criteria or {}
    return (
        QuestionOption(True, "true", _text(said.get("true"), *place, "true")),
        QuestionOption(False, "false", _text(said.get("false"), *place, "false")),
    )


def _choices(criteria: Any, *place: str | int) -> tuple[QuestionOption, ...]:
    if not isinstance(criteria, Mapping) or not 1 <= len(criteria) <= MOST_CRITERIA:
        raise Misplaced(f"should be an object of 1 to {MOST_CRITERIA} choices", *place)
    return tuple(QuestionOption(name, name, _text(said, *place, name)) for name, said in criteria.items())


def _levels(criteria: Any, *place: str | int) -> tuple[QuestionOption, ...]:
    if not isinstance(criteria, list) or not 1 <= len(criteria) <= MOST_SCORE_LEVELS:
        raise Misplaced(f"should be a list of 1 to {MOST_SCORE_LEVELS} levels", *place)
    for number, said in enumerate(criteria):
        if said is None:
            raise Misplaced("should be a text, an object or a list", *place, number)
    return tuple(QuestionOption(n, _text(said, *place, n)) for n, said in enumerate(criteria))


def _text(value: Any, *place: str | int) -> str:
    """A text as it is, an object or a list as JSON, nothing as nothing."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict | list):
        raise Misplaced("should be a text, an object or a list", *place)
    try:
        return data_text(value, "the value")
    except UsageError as error:
        raise Misplaced(str(error), *place) from None


def worded(model: str, asked: DecidingRequest, found: Decisions) -> dict[str, Any]:
    """The whole answer."""
    names = list(asked.questions) if isinstance(asked.questions, Mapping) else []
    return {
        "model": model,
        "answers": {name: _answer(one) for name, one in zip(names, found, strict=True)},
        "usage": {"input_tokens": found.usage.prompt_tokens, "output_tokens": 0},
        "diagnostics": {name: diagnosed(one) for name, one in zip(names, found, strict=True)},
    }


def _answer(decision: Decision) -> dict[str, Any]:
    if decision.kind == "predicate":
        return {"type": "noul", "noul": decision.probability}
    if decision.kind == "choice":
        return {
            "type": "choice",
            "choice": decision.best,
            "confidence": decision.confidence,
            "probabilities": dict(zip(decision.values, decision.probabilities, strict=True)),
        }
    numbers = [str(value) for value in decision.values]
    return {
        "type": "score",
        "score": decision.score,
        "confidence": decision.confidence,
        "legend": dict(zip(numbers, decision.texts, strict=True)),
        "probabilities": dict(zip(numbers, decision.probabilities, strict=True)),
    }


__all__ = [
    "InvalidValue", "Misplaced", "SystemOneAnswer", "SystemOneError", "SystemOneRequest", "SystemOneUsage",
    "read_request", "worded",
]  # fmt: skip
