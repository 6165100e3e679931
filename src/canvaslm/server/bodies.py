"""Request bodies from bytes to a schema, at a cost that follows from `limits` and not from what is sent.

Before JSON is parsed, what stands outside its strings is counted: one body of 8 MB could hold two million
lists, which take seconds and hundreds of megabytes to build, and no other thread of Python runs meanwhile.
Large bodies are counted, parsed and validated on a worker thread, so that the event loop keeps turning.

    router = APIRouter(route_class=BodyRoute)  # each dialect's
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from itertools import accumulate
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from .limits import INLINE_BODY, MAX_CONTAINERS, MAX_DEPTH, MAX_VALUES
from .problems import Problem
from .service import service_of

_SLICE = 64 * 2**10  # bytes that are looked at before other threads may run
_BRACKETS = b"[]{}"
_NO_BRACKETS = bytes(set(range(256)) - set(_BRACKETS))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class BodyRoute(APIRoute):
    """A route whose body is read by `read`, on a worker thread where it is large."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()
        if self.body_field is None:
            return answer
        validate = self.body_field.validate

        async def handler(request: Request) -> Response:
            body = await request.body()
            if len(body) > INLINE_BODY:
                made = await service_of(request).work(_validated, body, validate)
            elif body:
                made = _validated(body, validate)
            else:
                return await answer(request)  # FastAPI words what is missing
            request._json = made  # what FastAPI takes for the parsed body; an instance is valid as it is
            return await answer(request)

        return handler


def _validated(body: bytes, validate: Callable[..., tuple[Any, list[Any]]]) -> Any:
    """The schema's instance. Raises Problem, RequestValidationError."""
    value, errors = validate(read(body), {}, loc=("body",))
    if errors:
        raise RequestValidationError(errors)
    return value


def read(body: bytes) -> Any:
    """The value of a JSON text in UTF-8. Of keys that are there twice the last counts; NaN and Infinity are
    no JSON. Raises Problem (400)."""
    body = body.removeprefix(_BYTE_ORDER_MARK)
    _check(body)
    try:
        return _DECODER.decode(body.decode())
    except (ValueError, RecursionError):  # JSONDecodeError, UnicodeDecodeError, numbers of 4300 digits
        raise no_json() from None


def no_json() -> Problem:
    """Whatever is wrong with the JSON: what is sent is not repeated."""
    message = f"the body is not valid JSON of at most {MAX_DEPTH} levels of lists and objects"
    return Problem(400, message, code="invalid_json")


def _no_constant(name: str) -> None:
    raise ValueError(name)


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _check(body: bytes) -> None:
    """Raises Problem for more values, lists and objects, or levels of them, than are read."""
    if body.count(b",") <= MAX_VALUES and body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return  # so many in all, those in strings included
    values = containers = depth = 0
    inside = False
    if b"\\" in body:  # so that each quote left begins or ends a string
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    for begin in range(0, len(body), _SLICE):
        parts = body[begin : begin + _SLICE].split(b'"')
        outside = b"".join(parts[inside::2])
        inside ^= len(parts) % 2 == 0
        brackets = outside.translate(None, _NO_BRACKETS)
        opened = brackets.count(b"[") + brackets.count(b"{")
        containers += opened
        values += outside.count(b",") + opened
        if containers > MAX_CONTAINERS:
            raise _too_much(f"more than {MAX_CONTAINERS} lists and objects")
        if values > MAX_VALUES:
            raise _too_much(f"more than {MAX_VALUES} values")
        if len(brackets) > 3 * MAX_CONTAINERS:
            raise no_json()  # far more are closed than opened
        levels = list(accumulate(map(_STEPS.__getitem__, brackets), initial=depth))
        if max(levels) > MAX_DEPTH:
            raise no_json()
        depth = levels[-1]


def _too_much(what: str) -> Problem:
    return Problem(400, f"the body has {what}: send less at once", code="invalid_value")


__all__ = ["BodyRoute", "no_json", "read"]
