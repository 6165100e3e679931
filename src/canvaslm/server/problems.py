"""Failures as HTTP knows them: a status, and what the error envelope of any dialect needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import (
    BadTemplate,
    CanvasError,
    NotFound,
    OutOfMemory,
    PromptTooLong,
    UsageError,
)

# status -> the word that OpenAI's clients know it by
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "server_error",
    503: "unavailable_error",
}


class Problem(CanvasError):
    """A request that is answered with an error. `code` is a short word, or a number as llama-server has
    it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = dict(headers or {})

    @property
    def type(self) -> str:
        """The error's kind, in OpenAI's words."""
        return TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")


def unsupported(param: str, message: str) -> Problem:
    """A field that is understood and cannot be served."""
    return Problem(400, message, param=param, code="unsupported_value")


def loading() -> Problem:
    """Worded as llama-server words it: clients wait on this text."""
    return Problem(503, "Loading model", code=503, headers={"retry-after": "1"})


def stopping() -> Problem:
    """The server is about to end."""
    return Problem(503, "the server is shutting down", code="shutting_down")


def unfinished() -> Problem:
    """What is said to those whose answers a server that ends did not finish in time."""
    return Problem(503, "the server is shutting down and ended this answer", code="shutting_down")


def busy(waiting: int) -> Problem:
    """The queue is full."""
    message = f"the server is busy: {waiting} requests are waiting already; try again"
    return Problem(429, message, code="queue_full", headers={"retry-after": "1"})


def problem_of(error: BaseException, names: Mapping[str, str] | None = None) -> Problem:
    """The problem that an exception is. `names` maps fields of `Params` to the client's names for them.

    What may hold something of other requests (an engine's failure) keeps its text to itself.
    """
    if isinstance(error, Problem):
        return error
    if isinstance(error, UsageError):
        code = "context_length_exceeded" if isinstance(error, PromptTooLong) else None
        return _renamed(str(error), error.param, code, names or {})
    if isinstance(error, BadTemplate):
        return Problem(400, str(error), param="messages", code="template_error")
    if isinstance(error, NotFound):
        return Problem(404, str(error), code="not_found")
    if isinstance(error, OutOfMemory | MemoryError):
        return Problem(503, "out of memory: shorten the request, or try again later", code="out_of_memory")
    return Problem(500, "the server failed while it worked on this request", code="internal_error")


def _renamed(message: str, param: str | None, code: str | None, names: Mapping[str, str]) -> Problem:
    if param is not None and param in names:
        for sign in (" =", ":"):
            message = message.replace(f"{param}{sign}", f"{names[param]}{sign}")
        param = names[param]
    return Problem(400, message, param=param, code=code)


def openai_envelope(problem: Problem) -> dict[str, Any]:
    """As OpenAI and llama-server word an error."""
    return {
        "error": {
            "message": str(problem),
            "type": problem.type,
            "param": problem.param,
            "code": problem.code,
        }
    }


__all__ = [
    "TYPES",
    "Problem",
    "busy",
    "loading",
    "openai_envelope",
    "problem_of",
    "stopping",
    "unfinished",
    "unsupported",
]
