"""A client for OpenAI-compatible servers that looks at the clock: standard library
only, one thread a request."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from ..errors import CanvasError, NotFound, UsageError
from .samples import Sample

_ERROR_BYTES = 1 << 16
_LINE_BYTES = 1 << 24
# What streams are asked for, best first: other servers may refuse a field they do not know.
_STREAM_OPTIONS: tuple[dict[str, bool], ...] = (
    {"include_usage": True, "include_diffusion": True},
    {"include_usage": True},
    {},
)


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
        with closing(self._connect()) as connection:
            headers = {**self._headers(), "content-type": "application/json", "accept": "text/event-stream"}
            connection.request("POST", self.path + path, json.dumps(body).encode(), headers)
            response = connection.getresponse()
            if response.status != 200:
                raise Refused(response.status, _message(response.read(_ERROR_BYTES)))
            while line := response.readline(_LINE_BYTES):
                yield line

    def _headers(self) -> dict[str, str]:
        return {} if self.key is None else {"authorization": f"Bearer {self.key}"}

    def _connect(self, timeout: float | None = None) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self.scheme == "https" else http.client.HTTPConnection
        return kind(self.host, self.port, timeout=timeout or self.timeout)


def _message(body: bytes) -> str:
    """The words of an error in any of the usual envelopes."""
    text = body.decode("utf-8", "replace").strip()
    try:
        found = json.loads(text)
        error = found.get("error", found.get("detail"))
        text = str(error.get("message")) if isinstance(error, dict) else str(error or text)
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:300] or "no message"


def events(lines: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """The JSON objects of a stream of server-sent events, up to `[DONE]`. Raises
    CanvasError for anything else."""
    for line in lines:
        name, _, data = line.decode("utf-8", "replace").strip().partition(":")
        if name != "data":
            continue
        if data.strip() == "[DONE]":
            return
        try:
            event = json.loads(data)
        except ValueError as error:
            raise CanvasError(f"the stream holds what is no JSON: {data[:80]!r}") from error
        if not isinstance(event, dict):
            raise CanvasError(f"the stream holds what is no object: {data[:80]!r}")
        if event.get("error"):
            raise CanvasError(f"error in the stream: {_message(data.encode())}")
        yield event
    raise CanvasError("the stream broke off before [DONE]")


class Reading:
    """Takes in the events of one answer and their times (seconds since the request),
    and makes a sample of them."""

    def __init__(self) -> None:
        self._texts: list[float] = []
        self._commits: list[float] = []
        self._steps: list[float] = []
        self._draft: float | None = None
        self._usage: Mapping[str, Any] = {}
        self._timings: Mapping[str, Any] = {}
        self._finish: str | None = None

    def take(self, event: Mapping[str, Any], at: float) -> None:
        """Notes one event."""
        for choice in event.get("choices") or []:
            self._finish = choice.get("finish_reason") or self._finish
            if _has_text(choice.get("delta") or {}):
                self._texts.append(at)
        diffusion = event.get("diffusion")
        if isinstance(diffusion, dict):
            self._diffusion(diffusion, at)
        self._usage = event.get("usage") or self._usage
        self._timings = event.get("timings") or self._timings

    def _diffusion(self, told: Mapping[str, Any], at: float) -> None:
        if told.get("state") == "committed":
            self._commits.append(at)
            self._steps.append(float(told.get("step") or 0))
        elif self._draft is None:
            self._draft = at

    def sample(self, seconds: float) -> Sample:
        """What came, once all has come."""
        commits = self._commits or self._texts
        details = self._usage.get("prompt_tokens_details") or {}
        own = self._timings.get("diffusion") or {}
        queued = self._timings.get("queued_ms")
        return Sample(
            seconds=seconds,
            prompt_tokens=self._usage.get("prompt_tokens"),
            cached_tokens=details.get("cached_tokens", 0) if self._usage else None,
            completion_tokens=self._usage.get("completion_tokens"),
            queued=None if queued is None else queued / 1000,
            first_draft=self._draft,
            first_commit=min((*self._texts, *self._commits), default=None),
            gaps=tuple(b - a for a, b in pairwise(commits)),
            steps=tuple(self._steps) or _even_steps(own),
            ms_per_step=own.get("ms_per_step"),
            finish_reason=self._finish,
        )


def _has_text(delta: Mapping[str, Any]) -> bool:
    return any(delta.get(name) for name in ("content", "reasoning_content", "reasoning", "tool_calls"))


def _even_steps(told: Mapping[str, Any]) -> tuple[float, ...]:
    """Steps of each canvas where only their sum is told."""
    canvases, steps = told.get("n_blocks") or 0, told.get("n_steps") or 0
    return (steps / canvases,) * canvases if canvases else ()


@dataclass(frozen=True)
class Client:
    """Streams chat completions. `stream_options` are what this server accepts (`negotiated` finds out)."""

    endpoint: Endpoint
    model: str
    stream_options: Mapping[str, bool] = field(default_factory=lambda: _STREAM_OPTIONS[0])
    now: Callable[[], float] = time.perf_counter

    def negotiated(self, messages: list[dict[str, Any]]) -> Client:
        """A client that asks for all this server can tell. Costs a short answer or
        two. Raises CanvasError."""
        for options in _STREAM_OPTIONS:
            client = replace(self, stream_options=options)
            try:
                client._ask({"messages": messages, "max_tokens": 1})
                return client
            except Refused as refused:
                if refused.status not in (400, 422) or not options:
                    raise
        raise AssertionError("the last options are empty")

    def ask(self, body: Mapping[str, Any]) -> Sample:
        """One answer; a failure of any kind is a sample with an `error`."""
        begin = self.now()
        try:
            return self._ask(body)
        except (CanvasError, OSError, http.client.HTTPException) as error:
            return Sample(self.now() - begin, error=str(error) or type(error).__name__)

    def _ask(self, body: Mapping[str, Any]) -> Sample:
        extra = {"stream_options": dict(self.stream_options)} if self.stream_options else {}
        whole = {"model": self.model, **body, "stream": True, **extra}
        reading, begin = Reading(), self.now()
        for event in events(self.endpoint.lines("/v1/chat/completions", whole)):
            reading.take(event, self.now() - begin)
        return reading.sample(self.now() - begin)


def served_model(endpoint: Endpoint) -> str:
    """The id of the first model a server lists. Raises NotFound, UsageError."""
    try:
        status, body = endpoint.get("/v1/models")
    except (OSError, http.client.HTTPException) as error:
        raise NotFound(
            f"nothing answers at {endpoint} ({error}): start the server, or wait for it with --ready"
        ) from error
    if status in (401, 403):
        raise UsageError(f"{endpoint} wants another key: see --api-key-file", "api_key_file")
    try:
        return str(json.loads(body)["data"][0]["id"])
    except (ValueError, LookupError, TypeError) as error:
        raise NotFound(
            f"{endpoint}/v1/models names no model (HTTP {status}): give its name with -m"
        ) from error


__all__ = ["Client", "Endpoint", "Reading", "Refused", "events", "served_model"]
