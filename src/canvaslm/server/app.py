"""The application: bridge, service, guard and dialects put together."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from ..errors import CanvasError
from .adapters import ServedAdapters
from .bridge import Bridge
from .dialects import registry
from .guard import LOOPBACK, Guard, Rules
from .incoming import methods_of
from .limits import Limits
from .metrics import ServerMetrics
from .problems import Problem, problem_of
from .reference import PAGE_POLICY, page
from .sending import JsonAnswer
from .service import Service

if TYPE_CHECKING:
    from ..session import Session
    from ..session.adapters import Adapters

_ABOUT = "A block-diffusion language model behind the interfaces that its clients know."
_CONVERSATIONS = ("messages", "input")  # clients shorten these when told that the context is exceeded
# Where clients of retrieval look for what this model cannot give.
_EMBEDDINGS = frozenset({"/v1/embeddings", "/embeddings", "/embedding", "/api/embed", "/api/embeddings"})
_NO_EMBEDDINGS = (
    "there are no embeddings here: this model has no trained embedding of texts, and a mean of its states is "
    "none; ask a server of an embedding model, as /docs says under Embeddings"
)
_NO_TELEMETRY: Any = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}


def create_app(
    session: Session | Callable[[], Session],
    *,
    api_key: str | Iterable[str] | None = None,
    allowed_hosts: Iterable[str] = LOOPBACK,
    allowed_origins: Iterable[str] = (),
    any_model: bool = False,
    adapter_folder: str | os.PathLike[str] | None = None,
    **limits: Any,
) -> FastAPI:
    """An ASGI application that serves a session, to many clients at once.

    `session` may be a callable that loads one: the application answers 503 until it returns. From now on the
    session belongs to the application's engine thread. `api_key`: one, or several of which each will do;
    None asks for none. `allowed_hosts` are names that the Host header may have, without port ("*": any;
    "<ip>": any IP address); `allowed_origins` pages that may ask from a browser, as "https://example.org"
    ("*": any). A `model` that is neither the model nor one of its adapters is 404, unless `any_model`;
    adapters may be loaded from below `adapter_folder` by whoever may ask. `limits` are fields of
    `canvaslm.server.limits.Limits`: max_body, max_queue, max_n, read_timeout, write_timeout ...

    The application's state has `service`, and that the `bridge` with the engine thread. Raises UsageError.

    >>> app = canvaslm.create_app(canvaslm.load, api_key="secret")
    >>> # uvicorn.run(app, port=8080)
    """
    given = Limits(**limits)
    metrics = ServerMetrics()
    bridge = Bridge(session, max_queue=given.max_queue, observer=metrics)
    folder = None if adapter_folder is None else Path(adapter_folder)
    adapters = ServedAdapters(bridge, folder=folder, any_model=any_model)
    service = Service(bridge, given, metrics, adapters)
    _gauges(metrics, bridge)
    app = _application(service)
    rules = Rules.of(allowed_hosts, allowed_origins, api_key)
    app.add_middleware(
        Guard,
        rules=rules,
        limits=given,
        envelope_of=registry.envelope_of,
        undeclared=registry.takes_undeclared,
    )
    for dialect in registry.DIALECTS:
        for router in dialect.routers:
            app.include_router(router)
    return app


def _application(service: Service) -> FastAPI:
    from ..version import __version__

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.bridge.start()
        yield
        await service.bridge.close()
        service.close()

    app = FastAPI(
        title="canvaslm",
        description=_ABOUT,
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=_NO_TELEMETRY,
    )
    app.state.service = service
    app.add_exception_handler(CanvasError, _on_error)
    app.add_exception_handler(HTTPException, _on_error)
    app.add_exception_handler(RequestValidationError, _on_error)
    app.openapi = _schema_of(app)  # type: ignore[method-assign]
    app.add_api_route("/docs", _docs, include_in_schema=False)
    return app


def _gauges(metrics: ServerMetrics, bridge: Bridge) -> None:
    metrics.gauge("requests_processing", "Requests that run", lambda: bridge.running)
    metrics.gauge("requests_deferred", "Requests that wait", lambda: max(0, bridge.reserved - bridge.running))
    metrics.adapters(lambda: _adapters_of(bridge))


def _adapters_of(bridge: Bridge) -> Adapters | None:
    try:
        return bridge.session.adapters
    except Problem:  # none yet
        return None


async def _docs(request: Request) -> Response:
    """A page that needs nothing from elsewhere."""
    return HTMLResponse(page(request.app.openapi()), headers={"content-security-policy": PAGE_POLICY})


async def _on_error(request: Request, error: Exception) -> Response:
    problem = _http_problem(error)
    if problem.status == 404 and request.url.path in _EMBEDDINGS:
        problem = Problem(404, _NO_EMBEDDINGS, code="not_found")
    if problem.status == 500:
        raise error  # the guard logs it
    if problem.status == 405:  # what raised it knows one of the path's routes
        problem.headers = {"allow": methods_of(request)}
    content = registry.envelope_of(request.url.path)(problem)
    status = registry.status_of(request.url.path, problem)
    return JsonAnswer(content, status, headers=problem.headers)


def _http_problem(error: Exception) -> Problem:
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        words = {404: "there is nothing at this path", 405: "this path does not take that method"}
        text = words.get(error.status_code, str(error.detail))
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        return Problem(error.status_code, text, code=code, headers=dict(error.headers or {}))
    return problem_of(error)


def _invalid(error: RequestValidationError) -> Problem:
    """The first thing that is wrong with a body. What the client sent is not repeated."""
    errors = error.errors()
    # Where a field takes a text or a list, there is an error for each: of a list too long, that it is no text
    # would be no help.
    first = next((one for one in errors if one["type"] == "too_long"), errors[0])
    place = [str(part) for part in first["loc"][1:] if not _is_variant(part)]
    param = ".".join(place)[:200] or None
    if first["type"] == "too_long" and param in _CONVERSATIONS:
        text = f"{param}: {first['ctx']['max_length']} at most; the prompt is too long: shorten it"
        return Problem(400, text, param=param, code="context_length_exceeded")
    return Problem(400, f"{param or 'the body'}: {first['msg']}", param=param, code="invalid_value")


def _is_variant(part: Any) -> bool:
    """Pydantic names the member of a union that it tried; that is no field of the client's."""
    return isinstance(part, str) and (part in ("str", "int", "float", "bool") or "[" in part)


def _schema_of(app: FastAPI) -> Callable[[], dict[str, Any]]:
    original = app.openapi

    def schema() -> dict[str, Any]:
        if app.openapi_schema is None:
            _finish_schema(original())
        assert app.openapi_schema is not None
        return app.openapi_schema

    return schema


def _finish_schema(made: dict[str, Any]) -> None:
    """What is wrong with a body is a 400 here, not FastAPI's 422; keys go in either of two headers."""
    for operations in made["paths"].values():
        for operation in operations.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                operation["responses"].pop("422")
    components = made.setdefault("components", {})
    for name in ("HTTPValidationError", "ValidationError"):
        components.get("schemas", {}).pop(name, None)
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    made["security"] = [{}, {"bearer": []}, {"key": []}]


__all__ = ["create_app"]
