"""Requests as routes are to see them, whatever form the client chose; and what is read of their heads."""

from __future__ import annotations

import re
from urllib.parse import unquote

from starlette.requests import Request
from starlette.routing import Match
from starlette.types import Message, Receive, Scope

from .problems import Problem

JSON = "application/json"
# What clients that declare nothing and `curl -d` send. A page could send it too, but tells where it is from.
_UNDECLARED = ("", "application/x-www-form-urlencoded")
_FROM_PAGES = re.compile(rb"origin|sec-fetch-.*")
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_METHOD_SHOWN = 16  # characters; no method that anybody serves is longer
_PATH_SHOWN = 200


class Headers:
    """A request's headers by lower-case name."""

    def __init__(self, scope: Scope) -> None:
        self._raw = scope["headers"]

    def all(self, name: str) -> list[str]:
        return [value.decode("latin-1") for key, value in self._raw if key.lower() == name.encode()]

    def one(self, name: str) -> str | None:
        """The value, None without one; of several, all in one, which no check accepts."""
        values = self.all(name)
        return ", ".join(values) if values else None


def in_origin_form(scope: Scope) -> Scope:
    """The request with a path for its target where that was a whole URL, as clients of proxies write it.

    The URL's host then stands in place of the header's, as RFC 9112 has it.
    """
    match = _ABSOLUTE.fullmatch(scope.get("raw_path") or b"")
    if match is None:
        return scope
    host, raw_path = match[1], match[2] or b"/"
    headers = [(b"host", host), *(pair for pair in scope["headers"] if pair[0].lower() != b"host")]
    return {**scope, "headers": headers, "raw_path": raw_path, "path": unquote(raw_path.decode("latin-1"))}


def for_routes(scope: Scope) -> Scope:
    """The request as routes take it: HEAD as the GET whose body is left out, and a body as the JSON that
    `check_body` found it to be."""
    if scope["method"] == "HEAD":
        return {**scope, "method": "GET"}
    if scope["method"] != "POST":
        return scope
    others = [pair for pair in scope["headers"] if pair[0].lower() != b"content-type"]
    return {**scope, "headers": [*others, (b"content-type", JSON.encode())]}


def check_framing(headers: Headers) -> None:
    """A body whose length is told in two ways ends in two places: whoever stands between may see another
    request in the rest. Raises Problem, after which the connection is closed."""
    if headers.all("transfer-encoding") and headers.all("content-length"):
        raise Problem(
            400,
            "Content-Length and Transfer-Encoding exclude each other: send one",
            code="ambiguous_length",
            headers={"connection": "close"},
        )


def check_body(scope: Scope, *, undeclared: bool) -> None:
    """Only JSON: a page of another site can send a form or plain text without asking, but not this.

    `undeclared`: bodies without a type and with curl's are read too, unless a browser sends them.
    """
    headers = Headers(scope)
    kind = (headers.one("content-type") or "").partition(";")[0].strip().lower()
    taken = undeclared and kind in _UNDECLARED and not _is_from_page(scope)
    if kind != JSON and not taken:
        raise Problem(415, f"the content type must be {JSON}", code="unsupported_media_type")
    if (headers.one("content-encoding") or "identity").lower() != "identity":
        raise Problem(415, "compressed bodies are not read", code="unsupported_media_type")


def _is_from_page(scope: Scope) -> bool:
    """Browsers send `Origin` with every POST, and most of them what it is fetched for."""
    return any(_FROM_PAGES.fullmatch(name.lower()) for name, _ in scope["headers"])


def methods_of(request: Request) -> str:
    """What a path takes, as the header `allow` has it."""
    routes = request.app.router.routes

    def takes(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in routes)

    found = [method for method in _METHODS if takes(method)]
    return ", ".join([*found, *(["HEAD"] if "GET" in found else [])])


def shown(scope: Scope) -> str:
    """Method and path in one short printable line, without the query."""
    raw = scope.get("raw_path") or scope["path"].encode("utf-8", "replace")
    path = _cut(raw.partition(b"?")[0].decode("ascii", "backslashreplace"), _PATH_SHOWN)
    return f"{_cut(scope['method'], _METHOD_SHOWN)} {path}"


def _cut(text: str, length: int) -> str:
    kept = text if len(text) <= length else text[:length] + "..."
    return "".join(c if c.isprintable() else "?" for c in kept)


class Replayed:
    """`receive` for the application: the body that was read, then what the client does."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


__all__ = [
    "Headers",
    "Replayed",
    "check_body",
    "check_framing",
    "for_routes",
    "in_origin_form",
    "methods_of",
    "shown",
]
