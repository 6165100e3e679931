"""OpenAI-compatible servers over HTTP: where they are, what they list, what they answer. Standard library
only, no torch; who measures a server and who scores its answers share this."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from .errors import CanvasError, NotFound, UsageError

_ERROR_BYTES = 1 << 16
_LINE_BYTES = 1 << 24
# Our parameter names -> those of the OpenAI API; the rest are extra fields with our names.
_NAMES = {"max_new_tokens": "max_tokens"}


class Refused(CanvasError):
    """The server answered with an error status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status = status


@dataclass(frozen=True)
class Endpoint:
    """Where a server is, and how to get in. `timeout`: seconds without a byte after
    which a request has failed."""

    scheme: str
    host: str
    port: int | None
    path: str = ""
    key: str | None = field(default=None, repr=False)
    timeout: float = 600.0

    @classmethod
    def parse(cls, url: str, key: str | None = None, timeout: float = 600.0) -> Endpoint:
        """From `http://host:port`, with or without `/v1` behind it. Raises UsageError."""
        try:
            parts = urlsplit(url if "//" in url else f"http://{url}")
            port, host = parts.port, parts.hostname
        except ValueError as error:
            raise UsageError(f"--url {url}: {error}", "url") from error
        if parts.scheme not in ("http", "https") or not host or parts.query or parts.username:
            raise UsageError(f"--url {url}: should look like http://127.0.0.1:8080", "url")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise UsageError("the API key holds characters that no HTTP header can", "api_key_file")
        path = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.scheme, host, port, path, key, timeout)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}{'' if self.port is None else f':{self.port}'}{self.path}"

    def get(self, path: str, timeout: float | None = None) -> tuple[int, bytes]:
        """Status and body. Raises OSError or http.client.HTTPException where there is no answer."""
        with closing(self._connect(timeout)) as connection:
            connection.request("GET", self.path + path, headers=self._headers())
            response = connection.getresponse()
            return response.status, response.read(_LINE_BYTES)

    def lines(self, path: str, body: Mapping[str, Any]) -> Iterator[bytes]:
        """The lines that a POST is answered with, as they come. Raises Refused, OSError, HTTPException."""
        with self._posted(path, body, "text/event-stream") as response:
            while line := response.readline(_LINE_BYTES):
                yield line

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The object that a POST is answered with. Raises Refused, CanvasError, OSError, HTTPException."""
        with self._posted(path, body, "application/json") as response:
            text = response.read(_LINE_BYTES)
        return _object(text, "the answer is")

    @contextmanager
    def _posted(self, path: str, body: Mapping[str, Any], accept: str) -> Iterator[http.client.HTTPResponse]:
        with closing(self._connect()) as connection:
            headers = {**self._headers(), "content-type": "application/json", "accept": accept}
            connection.request("POST", self.path + path, json.dumps(body).encode(), headers)
            response = connection.getresponse()
            if response.status != 200:
                raise Refused(response.status, error_message(response.read(_ERROR_BYTES)))
            yield response

    def _headers(self) -> dict[str, str]:
        return {} if self.key is None else {"authorization": f"Bearer {self.key}"}

    def _connect(self, timeout: float | None = None) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self.scheme == "https" else http.client.HTTPConnection
        return kind(self.host, self.port, timeout=timeout or self.timeout)


def error_message(body: bytes) -> str:
    """The words of an error in any of the usual envelopes."""
    text = body.decode("utf-8", "replace").strip()
    try:
        found = json.loads(text)
        error = found.get("error", found.get("detail"))
        text = str(error.get("message")) if isinstance(error, dict) else str(error or text)
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:300] or "no message"


def _object(text: str | bytes, what: str) -> dict[str, Any]:
    """The JSON object that a text is. what: begins the error, a CanvasError, of one that is none."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise CanvasError(f"{what} no JSON: {text[:80]!r}") from error
    if not isinstance(found, dict):
        raise CanvasError(f"{what} no object: {text[:80]!r}")
    return found


def events(lines: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """The JSON objects of a stream of server-sent events, up to `[DONE]`. Raises
    CanvasError for anything else."""
    for line in lines:
        name, _, data = line.decode("utf-8", "replace").strip().partition(":")
        if name != "data":
            continue
        if data.strip() == "[DONE]":
            return
        event = _object(data, "the stream holds what is")
        if event.get("error"):
            raise CanvasError(f"error in the stream: {error_message(data.encode())}")
        yield event
    raise CanvasError("the stream broke off before [DONE]")


def fields_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """A body's fields for `preset` and fields of `Params`."""
    return {_NAMES.get(name, name): value for name, value in params.items()}


def served_model(endpoint: Endpoint) -> str:
    """The id of the first model a server lists. Raises NotFound, UsageError."""
    try:
        status, body = endpoint.get("/v1/models")
    except (OSError, http.client.HTTPException) as error:
        raise NotFound(
            f"nothing answers at {endpoint} ({error}): start the server, or give another --url"
        ) from error
    if status in (401, 403):
        raise UsageError(f"{endpoint} wants another key: see --api-key-file", "api_key_file")
    try:
        return str(json.loads(body)["data"][0]["id"])
    except (ValueError, LookupError, TypeError) as error:
        raise NotFound(
            f"{endpoint}/v1/models names no model (HTTP {status}): give its name with -m"
        ) from error


__all__ = ["Endpoint", "Refused", "error_message", "events", "fields_of", "served_model"]
