"""Answers under load in this process: an engine kept at a number of requests in
flight until all are answered.

Prompts become token ids before the clock starts, and tokens no text: this measures the engine,
`remote` what a client sees.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from ..engine import Driver, Engine
from ..session import Session
from ..types import Committed, Event, Failed, Finished, Request
from .arithmetic import denoise_macs, encode_macs, weight_bytes
from .engines import fresh
from .machine import Ceilings
from .plan import LoadOptions, Tick
from .prompts import Prompt
from .samples import Sample, summarise


@dataclass
class EngineWork:
    """What an engine did: passes, multiply-accumulates and bytes of weights read."""

    denoise_passes: int = 0
    rows: int = 0
    macs: int = 0
    weight_bytes: int = 0

    def report(self, seconds: float, ceilings: Ceilings | None) -> dict[str, Any]:
        """Plain data, with rates and shares over `seconds` of wall time. Encoding
        counts as arithmetic only."""
        rate, flow = self.macs / seconds / 1e9, self.weight_bytes / seconds / 1e9
        return {
            "denoise_passes": self.denoise_passes,
            "rows_per_pass": self.rows / self.denoise_passes if self.denoise_passes else None,
            "gmac_per_second": rate,
            "arithmetic_share": rate / ceilings.gmac_per_second if ceilings else None,
            "gb_per_second": flow,
            "bandwidth_share": flow / ceilings.gb_per_second if ceilings and ceilings.gb_per_second else None,
        }


class Counting:
    """Counts the work of an engine's runner from here on."""

    def __init__(self, engine: Engine) -> None:
        self.work = EngineWork()
        self._config, self._model = engine.config, engine.runner.model
        self._bytes: dict[int, int] = {}
        self._macs: dict[int, int] = {}
        self._run = engine.runner.run
        engine.runner.run = self._count  # type: ignore[method-assign]

    def _count(self, rows: list[Any]) -> Any:
        lengths = [row.sequence.cache.length for row in rows]
        made = self._run(rows)
        for row, length in zip(rows, lengths, strict=True):
            if row.count:
                self.work.macs += sum(encode_macs(self._config, length, row.count).values())
            if row.denoise:
                self.work.macs += self._step(length + row.count)
        if denoised := sum(row.denoise for row in rows):
            self.work.denoise_passes += 1
            self.work.rows += denoised
            self.work.weight_bytes += self._read(denoised)
        return made

    def _read(self, rows: int) -> int:
        if rows not in self._bytes:
            places = rows * self._config.canvas_length
            self._bytes[rows] = sum(weight_bytes(self._model, places).values())
        return self._bytes[rows]

    def _step(self, context: int) -> int:
        if context not in self._macs:
            self._macs[context] = sum(denoise_macs(self._config, context).values())
        return self._macs[context]


@dataclass
class _RunningRequest:
    """A request on its way: when it was submitted, when its canvases were committed."""

    submitted: float
    commits: list[float] = field(default_factory=list)


def drive(
    engine: Engine, requests: Sequence[Request], concurrency: int, tick: Tick
) -> tuple[list[Sample], float]:
    """Keeps `concurrency` requests in flight until all are done: (samples in the order of
    their ends, wall seconds)."""
    running: dict[int, _RunningRequest] = {}
    samples: list[Sample] = []

    def timed() -> Iterator[Request]:
        for number, request in enumerate(requests):
            running[number] = _RunningRequest(time.perf_counter())
            yield request

    begin = time.perf_counter()
    for number, event in Driver(engine).events_of_many(timed(), concurrency):
        sample = _note(running[number], event, time.perf_counter())
        if sample is not None:
            del running[number]
            samples.append(sample)
            tick(1)
    return samples, time.perf_counter() - begin


def _note(running: _RunningRequest, event: Event, now: float) -> Sample | None:
    """Notes an event; the sample when it is the last one."""
    if isinstance(event, Committed):
        running.commits.append(now)
    if isinstance(event, Failed):
        return Sample(now - running.submitted, error=str(event.error))
    if not isinstance(event, Finished):
        return None
    steps = [float(report.steps) for report in event.canvases]
    times, usage = event.timings, event.usage
    return Sample(
        seconds=now - running.submitted,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
        queued=times.queued,
        first_draft=times.first_draft,
        first_commit=times.first_commit,
        gaps=tuple(b - a for a, b in pairwise(running.commits)),
        steps=tuple(steps),
        ms_per_step=1000 * times.denoise / sum(steps) if steps else None,
        finish_reason=event.reason,
    )


def measure_load(
    session: Session, prompts: Sequence[Prompt], options: LoadOptions, tick: Tick = lambda count: None
) -> list[tuple[dict[str, Any], EngineWork]]:
    """One (summary, work) for each concurrency, each with a fresh engine. Raises
    UsageError for wrong parameters."""
    requests = prepare(session, prompts, options)
    found = []
    for concurrency in options.concurrency:
        engine = fresh(session.engine, rows=options.max_rows, prefix_cache=options.prefix_cache)
        warm = [requests[i % len(requests)] for i in range(options.warmup)]
        drive(engine, warm, concurrency, tick)
        counting = Counting(engine)
        samples, wall = drive(engine, requests, concurrency, tick)
        found.append(({"concurrency": concurrency, **summarise(samples, wall)}, counting.work))
    return found


def prepare(session: Session, prompts: Sequence[Prompt], options: LoadOptions) -> list[Request]:
    """The engine's requests."""
    return [session.prepare(prompt.messages, **params) for prompt, params in options.rounds(prompts)]


__all__ = ["Counting", "EngineWork", "drive", "measure_load", "prepare"]
