"""POST /v1/decisions: questions about an input, and a probability for every answer that is allowed.

A body with `state` is one of System One's (see `..systemone`), whose clients use this path too: it is
answered in their form, its errors as all of this path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from ....decisions.json_form import questions_of, state_of
from ....decisions.questions import MOST_QUESTIONS
from ...bodies import BodyRoute
from ...deciding import DecideFields, DecidingRequest, decide, diagnosed
from ...problems import Problem, problem_of
from ...responses import ERRORS
from ...sending import JsonAnswer, unless_gone
from ...service import Ready
from ..systemone.schema import SystemOneRequest, read_request, worded

if TYPE_CHECKING:
    from ....decisions.answers import Decision

router = APIRouter(route_class=BodyRoute, tags=["OpenAI"])


class DecisionsRequest(DecideFields):
    """1 to 400 questions about an input."""

    model: str | None = None
    input: str | list[Any] | None = Field(
        None, description="A text, or messages, function calls and their outputs, in order."
    )
    questions: list[Any] | dict[str, Any] | None = Field(
        None,
        description=f"1 to {MOST_QUESTIONS} of type predicate, choice (2 to 255 `choices`) or score (2 to 10 "
        "`levels`), each with `instructions` and maybe a `name`.",
    )
    instructions: str | None = Field(None, description="Said before the input.")


class DecisionsUsage(BaseModel):
    """Tokens; the input counts once, however many questions there are."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class DecisionsAnswer(BaseModel):
    """Answers in the order of the questions; `diagnostics` too."""

    model: str
    answers: list[dict[str, Any]]
    usage: DecisionsUsage
    diagnostics: list[dict[str, Any]]


@router.post("/v1/decisions", responses={200: {"model": DecisionsAnswer}, **ERRORS})
async def decisions(body: DecisionsRequest, http: Request, service: Ready) -> Response:
    """Answers with probabilities, from one denoise step; no text. A body with `state` is System One's."""
    model = service.adapters.name_of(body.model)
    if "state" in (body.model_extra or {}):
        theirs = SystemOneRequest.model_construct(**{**body.model_dump(exclude_unset=True)})
        asked = await service.work(read_request, theirs)
        found = await unless_gone(http, decide(service, asked))
        return JsonAnswer(worded(model, asked, found))
    names, request = await service.work(_read, body)
    found = await unless_gone(http, decide(service, request))
    tokens, cached = found.usage.prompt_tokens, found.usage.cached_tokens
    warnings = body.ignored()
    return JsonAnswer(
        {
            "model": model,
            "answers": [_answer(name, one) for name, one in zip(names, found, strict=True)],
            "usage": {
                "input_tokens": tokens,
                "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
                "output_tokens": 0,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": tokens,
            },
            "diagnostics": [diagnosed(one) for one in found],
            **({"warnings": warnings} if warnings else {}),
        }
    )


def _read(body: DecisionsRequest) -> tuple[list[str | None], DecidingRequest]:
    """(names of the questions, the request). Raises Problem."""
    for name in ("input", "questions"):
        if getattr(body, name) is None:
            raise Problem(400, f"{name}: Field required", param=name, code="missing_required_parameter")
    try:
        state = state_of(body.input)
        names, questions = questions_of(body.questions)
    except Exception as error:
        raise problem_of(error) from error
    options = body.chosen()
    options["instructions"] = body.instructions
    return names, DecidingRequest(state, questions, options, "input", body.model)


def _answer(name: str | None, decision: Decision) -> dict[str, Any]:
    made: dict[str, Any] = {"type": decision.kind, "name": name}
    if decision.kind == "predicate":
        return {**made, "probability": decision.probability}
    if decision.kind == "choice":
        shares = zip(decision.values, decision.probabilities, strict=True)
        return {
            **made,
            "choice": decision.best,
            "confidence": decision.sureness,
            "probabilities": [{"value": value, "probability": share} for value, share in shares],
        }
    levels = zip(decision.values, decision.texts, decision.probabilities, strict=True)
    return {
        **made,
        "score": decision.score,
        "confidence": decision.sureness,
        "probabilities": [
            {"value": value, "label": label, "probability": share} for value, label, share in levels
        ],
    }


__all__ = ["DecisionsAnswer", "DecisionsRequest", "DecisionsUsage", "router"]
