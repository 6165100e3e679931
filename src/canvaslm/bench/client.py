"""Chat completions of a server with an eye on the clock, one thread a request."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from ..client import Endpoint, Refused, events
from ..errors import CanvasError
from .samples import Sample

# What streams are asked for, best first: other servers may refuse a field they do not know.
_STREAM_OPTIONS: tuple[dict[str, bool], ...] = (
    {"include_usage": True, "include_diffusion": True},
    {"include_usage": True},
    {},
)


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


__all__ = ["Client", "Reading"]
