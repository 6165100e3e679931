"""POST /v1/systemone: System One's questions about a state, with its own form of errors."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ...bodies import BodyRoute
from ...deciding import decide
from ...problems import Problem
from ...responses import errors
from ...sending import JsonAnswer, unless_gone
from ...service import Ready
from .schema import Misplaced, SystemOneAnswer, SystemOneError, SystemOneRequest, read_request, worded

router = APIRouter(route_class=BodyRoute, tags=["System One"])
INVALID = 422
_ERRORS = errors(401, 403, 404, 408, 413, 415, 421, INVALID, 429, 500, 503, model=SystemOneError)


@router.post("/v1/systemone", responses={200: {"model": SystemOneAnswer}, **_ERRORS})
async def system_one(body: SystemOneRequest, http: Request, service: Ready) -> Response:
    """Answers with probabilities, from one denoise step; no text."""
    model = service.adapters.name_of(body.model)
    asked = await service.work(read_request, body)
    found = await unless_gone(http, decide(service, asked))
    warnings = body.ignored()
    answer = worded(model, asked, found)
    return JsonAnswer({**answer, **({"warnings": warnings} if warnings else {})})


def envelope(problem: Problem) -> dict[str, Any]:
    """As FastAPI words what is wrong with a body: a list of places."""
    cause = problem.__cause__
    place = cause.place if isinstance(cause, Misplaced) else filter(None, (problem.param or "").split("."))
    kind = str(problem.code or problem.type)
    return {"detail": [{"loc": ["body", *place], "msg": str(problem), "type": kind}]}


__all__ = ["INVALID", "envelope", "router", "system_one"]
