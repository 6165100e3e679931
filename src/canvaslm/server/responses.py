"""How routes describe their answers in the OpenAPI schema."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = Field(None, description="The field at fault.")
    code: str | int | None = None


class ErrorEnvelope(BaseModel):
    """Every error, also of routes that do not exist, and inside a stream."""

    error: ErrorDetail


_MEANINGS = {
    400: "The request cannot work; `param` names the field at fault.",
    401: "A key is needed.",
    403: "OllamaBody by a page of another site.",
    404: "There is no such thing.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    421: "The Host header is not one of this server's.",
    422: "The request cannot work; `loc` is the place at fault.",
    429: "The queue is full; see `retry-after`.",
    500: "The server failed.",
    503: "The model is loading, or the server is shutting down.",
}


def errors(*statuses: int, model: type[BaseModel] = ErrorEnvelope) -> dict[int | str, dict[str, Any]]:
    """Entries for a route's `responses`."""
    return {status: {"model": model, "description": _MEANINGS[status]} for status in statuses}


ERRORS = errors(400, 401, 403, 404, 408, 413, 415, 421, 429, 500, 503)
READ_ERRORS = errors(401, 403, 421, 500, 503)


_TEXT = {"type": "string"}
_EVENT = {"type": "object", "properties": {"event": _TEXT, "data": _TEXT}, "required": ["data"]}


def streamed(model: type[BaseModel]) -> dict[str, Any]:
    """A 200 that is JSON, or server-sent events with `stream`."""
    return {
        "model": model,
        "description": "The answer; with `stream`, server-sent events.",
        "content": {"text/event-stream": {"itemSchema": _EVENT}},
    }


__all__ = ["ERRORS", "READ_ERRORS", "ErrorDetail", "ErrorEnvelope", "errors", "streamed"]
