"""What every request must pass before any route sees it: host, origin, key, content type, size.

Also the last stop on the way out: an exception that nobody worded becomes a plain 500, and every request is
one line of the access log, without its query, its body or its key.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import re
import time
import traceback
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import UsageError
from .incoming import Headers, Replayed, check_body, check_framing, for_routes, in_origin_form, shown
from .limits import Limits
from .problems import Problem, problem_of, unfinished
from .sending import json_bytes

LOOPBACK = ("localhost", "127.0.0.1", "::1")
PUBLIC = frozenset({"/", "/health", "/docs", "/openapi.json"})  # need no key
ANY_ADDRESS = "<ip>"  # in a list of hosts: every IP literal, which no foreign name server can point elsewhere

access = logging.getLogger("canvaslm.access")
log = logging.getLogger("canvaslm.server")
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]/@\s]+)(?::[0-9]{1,5})?")
_ADDRESS = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){3}|[0-9a-fA-F.]*:[0-9a-fA-F:.]+")
_DISCARD = 64 * 2**20  # bytes of a refused body that are read, so that the client gets to see the answer
_DISCARD_SECONDS = 2.0

Envelope = Callable[[Problem], MutableMapping[str, Any]]


@dataclass(frozen=True)
class Rules:
    """Who may ask. `hosts` without ports; "*" allows all. `keys` empty: no key is needed."""

    hosts: frozenset[str] = frozenset(LOOPBACK)
    origins: frozenset[str] = frozenset()
    keys: tuple[str, ...] = field(default=(), repr=False)
    public: frozenset[str] = PUBLIC

    @classmethod
    def of(cls, hosts: Iterable[str], origins: Iterable[str], api_key: str | Iterable[str] | None) -> Rules:
        """Raises UsageError for a key that is empty or cannot stand in a header."""
        keys = () if api_key is None else (api_key,) if isinstance(api_key, str) else tuple(api_key)
        if api_key is not None and (not keys or not all(k and k.isascii() and k.isprintable() for k in keys)):
            raise UsageError(
                "the API key is empty or has characters that a header cannot carry: write one key a line",
                "api_key",
            )
        if not all(" " not in key for key in keys):
            raise UsageError("an API key must not contain spaces", "api_key")
        return cls(
            frozenset(host.strip("[]").lower() for host in hosts),
            frozenset(origin.rstrip("/").lower() for origin in origins),
            keys,
        )

    def allows_host(self, host: str) -> bool:
        """Whether a Host header is one of ours."""
        match = _HOST.fullmatch(host)
        name = match[1].strip("[]").lower() if match else ""
        listed = name in self.hosts or (ANY_ADDRESS in self.hosts and _ADDRESS.fullmatch(name))
        return bool(match and ("*" in self.hosts or listed))

    def allows_origin(self, origin: str, host: str) -> bool:
        """Whether a page of this origin may ask: it is our own, or it is listed."""
        own = urlsplit(origin).netloc.lower() == host.lower() and origin.startswith(("http://", "https://"))
        return own or self.lists_origin(origin)

    def lists_origin(self, origin: str) -> bool:
        """Whether an origin gets CORS headers. `null` is what sandboxed pages and local files send."""
        return origin != "null" and ("*" in self.origins or origin.lower() in self.origins)

    def knows(self, given: Iterable[str]) -> bool:
        """Whether one of the keys given is ours. Takes the same time for every wrong one."""
        digests = [_digest(key) for key in self.keys]
        matches = [hmac.compare_digest(_digest(key), digest) for key in given for digest in digests]
        return any(matches)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class Guard:
    """ASGI middleware around the whole application.

    `envelope_of` gives the wording of errors for a path, `undeclared` whether bodies are read there that do
    not say that they are JSON.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        rules: Rules,
        limits: Limits,
        envelope_of: Callable[[str], Envelope],
        undeclared: Callable[[str], bool],
    ) -> None:
        self.app, self.rules, self.limits = app, rules, limits
        self.envelope_of, self.undeclared = envelope_of, undeclared
        self._held = 0  # bytes of bodies, all requests together

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        begin = time.perf_counter()
        outgoing = _Outgoing(send, self._extra_headers(scope), bodiless=scope["method"] == "HEAD")
        body: bytes | None = None
        try:
            self._check_host(scope)
            scope = in_origin_form(scope)
            if await self._admit(scope, outgoing):
                body = await self._body(scope, receive)
                await self.app(for_routes(scope), Replayed(body or b"", receive), outgoing)
        except Exception as error:
            await self._answer(scope, receive, outgoing, error, drain=body is None)
        except asyncio.CancelledError:  # a server that ends has waited long enough
            await self._answer(scope, receive, outgoing, unfinished(), drain=False)
            raise
        finally:
            self._held -= len(body or b"")
            _note(scope, outgoing.status, time.perf_counter() - begin)

    async def _admit(self, scope: Scope, send: Send) -> bool:
        """Checks all but the body. False for a preflight, which is then answered. Raises Problem."""
        headers = Headers(scope)
        host, origin = self._check_host(scope), headers.one("origin")
        check_framing(headers)
        self._check_origin(scope, headers, host, origin)
        if (
            scope["method"] == "OPTIONS"
            and origin is not None
            and headers.one("access-control-request-method")
        ):
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return False
        self._check_key(scope, headers)
        if scope["method"] == "POST":
            check_body(scope, undeclared=self.undeclared(scope["path"]))
        return True

    def _check_host(self, scope: Scope) -> str:
        """The request's host. Raises Problem if it is none of ours."""
        host = Headers(scope).one("host") or ""
        if not self.rules.allows_host(host):
            raise Problem(421, "this Host is not served here: see --allowed-hosts", code="host_not_allowed")
        return host

    def _check_origin(self, scope: Scope, headers: Headers, host: str, origin: str | None) -> None:
        """A browser says where a request comes from: `Origin`, or `Sec-Fetch-Site`
        where it sends no origin."""
        if origin is not None and not self.rules.allows_origin(origin, host):
            raise Problem(
                403, "pages of this origin may not ask: see --allowed-origins", code="origin_not_allowed"
            )
        foreign = headers.one("sec-fetch-site") in ("cross-site", "same-site")
        visit = scope["method"] in ("GET", "HEAD") and headers.one("sec-fetch-mode") == "navigate"
        if origin is None and foreign and not visit:
            raise Problem(403, "pages of other sites may not ask", code="origin_not_allowed")

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        if not self.rules.keys or scope["path"] in self.rules.public:
            return
        bearer = [v[7:].strip() for v in headers.all("authorization") if v[:7].lower() == "bearer "]
        if not self.rules.knows([*bearer, *headers.all("x-api-key")]):
            raise Problem(
                401,
                "a valid API key is needed, as `Authorization: Bearer KEY` or `x-api-key: KEY`",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body. Raises Problem (413, 408, 429), and gives up on a client that has gone."""
        length = Headers(scope).one("content-length")
        if length is not None and length.isdigit() and int(length) > self.limits.max_body:
            raise self._too_large()
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.limits.read_timeout):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Problem(499, "the client has gone")
                    more = message.get("more_body", False)
                    chunk = message.get("body", b"")
                    chunks.append(chunk)
                    size += len(chunk)
                    self._held += len(chunk)
                    if size > self.limits.max_body:
                        raise self._too_large()
                    if self._held > self.limits.max_bodies:
                        raise Problem(429, "too many large requests at once", headers={"retry-after": "1"})
        except BaseException as error:
            self._held -= size
            if isinstance(error, TimeoutError):
                raise Problem(408, f"the body did not arrive within {self.limits.read_timeout:g} s") from None
            raise
        return b"".join(chunks)

    def _too_large(self) -> Problem:
        return Problem(413, f"the body is larger than {self.limits.max_body} bytes", code="request_too_large")

    async def _answer(
        self, scope: Scope, receive: Receive, outgoing: _Outgoing, error: Exception, *, drain: bool
    ) -> None:
        """Answers with the error, or hangs up where an answer has begun."""
        problem = problem_of(error)
        if problem.status == 500:
            frames = "".join(traceback.format_tb(error.__traceback__)[-6:])
            log.error("%s in %s\n%s", type(error).__name__, shown(scope), frames)
        if outgoing.status is not None:
            return
        if (
            drain
            and scope["method"] in ("POST", "PUT", "PATCH", "DELETE")
            and not Headers(scope).one("expect")
        ):
            await _discard(receive)
        headers = [(b"content-type", b"application/json")]
        headers += [(k.encode(), v.encode()) for k, v in problem.headers.items()]
        content = json_bytes(self.envelope_of(scope["path"])(problem))
        headers.append((b"content-length", str(len(content)).encode()))
        await outgoing({"type": "http.response.start", "status": problem.status, "headers": headers})
        await outgoing({"type": "http.response.body", "body": content})

    def _extra_headers(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        extra = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
        headers = Headers(scope)
        origin = headers.one("origin")
        if origin is None or not self.rules.lists_origin(origin):
            return extra
        extra += [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin")]
        if scope["method"] == "OPTIONS":
            wanted = headers.one("access-control-request-headers") or ""
            extra += [
                (b"access-control-allow-methods", b"GET, POST"),
                (b"access-control-allow-headers", wanted.encode("latin-1")),
                (b"access-control-max-age", b"600"),
            ]
        return extra


class _Outgoing:
    """`send` that adds headers, remembers the status, and leaves out the body where HEAD asked."""

    def __init__(self, send: Send, extra: list[tuple[bytes, bytes]], *, bodiless: bool) -> None:
        self._send, self._extra, self._bodiless = send, extra, bodiless
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            present = {name.lower() for name, _ in message.get("headers", [])}
            own = [pair for pair in self._extra if pair[0] not in present]
            message = {**message, "headers": [*message.get("headers", []), *own]}
        elif self._bodiless and message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await self._send(message)


async def _discard(receive: Receive) -> None:
    """Reads and drops a body, within reason."""
    left = _DISCARD
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_SECONDS):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return


def _note(scope: Scope, status: int | None, seconds: float) -> None:
    client = (scope.get("client") or ("-", 0))[0]
    access.info("%s %s %s %.0f ms", client, shown(scope), status or "-", seconds * 1000)


__all__ = ["ANY_ADDRESS", "LOOPBACK", "PUBLIC", "Envelope", "Guard", "Rules"]
