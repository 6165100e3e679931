"""Prometheus metrics of one application, in a registry of its own. Times in seconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..types import Committed, Event, Failed, Finished, Request

if TYPE_CHECKING:
    from ..session.adapters import Adapters

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_STEPS = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128, 256)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)


class ServerMetrics:
    """Counts what the engine's events tell. Safe to call from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter("requests", "Requests ended, by how", ["outcome"])
        self._empty = self._counter("empty_answers", "Answers without text and calls, whatever ended them")
        self._accepted = self._counter("requests_accepted", "Requests that the engine took")
        self._prompt_tokens = self._counter(
            "prompt_tokens", "Prompt tokens encoded, those remembered left out"
        )
        self._cached_tokens = self._counter("prompt_tokens_cached", "Prompt tokens that were remembered")
        self._prompt_seconds = self._counter("prompt_seconds", "Time spent encoding")
        self._tokens = self._counter("tokens_predicted", "Committed tokens")
        self._token_seconds = self._counter(
            "tokens_predicted_seconds", "Wall time of requests after their queueing"
        )
        self._canvases = self._counter("diffusion_canvases", "Canvases committed")
        self._steps = self._counter("diffusion_steps", "Denoise steps of committed canvases")
        self._reads = self._counter("causal_passes", "Passes that the causal reader took over canvases alone")
        self._per_canvas = self._histogram(
            "diffusion_steps_per_canvas", "Denoise steps that a canvas took", _STEPS
        )
        self._first_token = self._histogram(
            "time_to_first_token_seconds", "Until the first committed canvas", _SECONDS
        )
        self._first_draft = self._histogram("time_to_first_draft_seconds", "Until the first draft", _SECONDS)
        self._queued = self._histogram("request_queue_time_seconds", "Until a row was free", _SECONDS)
        self._whole = self._histogram("e2e_request_latency_seconds", "From submission to the end", _SECONDS)

    def _counter(self, name: str, text: str, labels: list[str] | None = None) -> Counter:
        return Counter(f"canvaslm_{name}", text, labels or [], registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"canvaslm_{name}", text, buckets=buckets, registry=self.registry)

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Adds a value that is looked up whenever the metrics are read."""
        Gauge(f"canvaslm_{name}", text, registry=self.registry).set_function(value)

    def adapters(self, found: Callable[[], Adapters | None]) -> None:
        """Adds what is known of adapters whenever the metrics are read; None while there is no model."""
        self.registry.register(AdapterMetrics(found))

    def accepted(self, request: Request) -> None:
        self._accepted.inc()

    def empty(self) -> None:
        """Counts an answer that its client gets nothing of."""
        self._empty.inc()

    def event(self, event: Event) -> None:
        """Counts an event."""
        if isinstance(event, Committed):
            self._canvases.inc()
            self._steps.inc(event.report.steps)
            self._reads.inc(event.report.reads)
            if event.report.stop != "causal":
                self._per_canvas.observe(event.report.steps)
        elif isinstance(event, Failed):
            self._requests.labels("failed").inc()
        elif isinstance(event, Finished):
            self._finished(event)

    def _finished(self, event: Finished) -> None:
        usage, timings = event.usage, event.timings
        self._requests.labels(event.reason).inc()
        self._prompt_tokens.inc(max(0, usage.prompt_tokens - usage.cached_tokens))
        self._cached_tokens.inc(usage.cached_tokens)
        self._prompt_seconds.inc(timings.encode)
        self._tokens.inc(usage.completion_tokens)
        self._token_seconds.inc(max(0.0, timings.total - timings.queued))
        self._queued.observe(timings.queued)
        self._whole.observe(timings.total)
        if timings.first_draft is not None:
            self._first_draft.observe(timings.first_draft)
        if timings.first_commit is not None:
            self._first_token.observe(timings.first_commit)

    def text(self) -> bytes:
        """What /metrics answers."""
        return generate_latest(self.registry)


class AdapterMetrics(Collector):
    """The shelf of a session's adapters. Only names that are on it become labels."""

    def __init__(self, found: Callable[[], Adapters | None]) -> None:
        self._found = found

    def collect(self) -> Iterator[Metric]:
        adapters = self._found()
        if adapters is None:
            return
        shelf, limit = adapters.shelf, adapters.limit
        gauges = (
            ("adapters_known", "Adapters that requests may name", len(shelf)),
            ("adapters_loaded", "Adapters in memory", sum(one.loaded for one in shelf)),
            ("adapter_bytes", "Bytes of adapters in memory", adapters.nbytes),
            ("adapter_bytes_limit", "Bytes that they may take", math.inf if limit is None else limit),
        )
        for name, text, value in gauges:
            yield GaugeMetricFamily(f"canvaslm_{name}", text, value)
        yield CounterMetricFamily("canvaslm_adapter_loads", "Adapters read from files", adapters.loads)
        yield CounterMetricFamily(
            "canvaslm_adapter_evictions", "Adapters dropped for others", adapters.evictions
        )
        asked = CounterMetricFamily(
            "canvaslm_adapter_requests", "Requests answered with an adapter", labels=["adapter"]
        )
        for one in shelf:
            asked.add_metric([one.name], one.requests)
        yield asked


__all__ = ["CONTENT_TYPE", "AdapterMetrics", "ServerMetrics"]
