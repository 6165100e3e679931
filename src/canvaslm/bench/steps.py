"""The time of a denoise step and of encoding, with an engine that does nothing else.

The prompt is random tokens, stopping is off and nothing is remembered, so every run does the same work. First
the engine runs as it is; then, on the same canvases, once more with the parts watched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from ..engine import Engine
from ..errors import CanvasError
from ..model import Model
from ..types import Failed, Params, Request
from .arithmetic import PARTS, denoise_macs, encode_macs, weight_bytes
from .commits import CommitTimes, measure_commits
from .engines import fresh
from .machine import Ceilings
from .parts import (
    DENOISE,
    ENCODE,
    Instrument,
    Seconds,
    clock_of,
    is_denoising,
)
from .summary import median

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Took:
    """Seconds of one engine step: its encoding, its denoise pass (0 where nothing was
    ready), and these by part."""

    encode: float
    denoise: float
    parts: dict[str, Seconds] = field(default_factory=dict)


class Stepper:
    """`rows` canvases of one engine, each behind `context` random tokens, that never converge.

    `limit`: denoise steps it will be asked for. Raises UsageError (PromptTooLong) for a context
    the model has no room for.
    """

    def __init__(
        self, engine: Engine, context: int, *, rows: int, limit: int, params: Params | None = None
    ) -> None:
        # Passes of their own, so that each can be timed, and all prompts at once, so that
        # canvases start together.
        self.engine, config = fresh(engine, rows=rows, mixed=False), engine.config
        self.engine.scheduler.budget *= rows
        self.context, self.rows = context, rows
        self._now = clock_of(self.engine.runner.device)
        self._encoding = 0.0
        self._time_encoding()
        chosen = replace(
            params or Params(),
            max_new_tokens=config.canvas_length,
            max_denoising_steps=limit + 1,  # the last step makes no soft embedding: it is never reached
            confidence_threshold=0.0,
            settle_steps=0,
        )
        for row in range(rows):
            random = Random(f"bench/{row}/{context}")
            tokens = tuple(random.randrange(config.vocab_size) for _ in range(context))
            self.engine.submit(Request(tokens, replace(chosen, seed=row)))

    def step(self, watch: Instrument | None = None) -> Took:
        """One engine step. Raises what made a row fail."""
        self._encoding = 0.0
        if watch is not None:
            watch.clock.begin()
        begin = self._now()
        events = self.engine.step()
        whole = self._now() - begin
        parts = watch.clock.end() if watch is not None else {}
        for event in events:
            if isinstance(event, Failed):
                raise event.error if isinstance(event.error, CanvasError) else CanvasError(str(event.error))
        ready = self.engine.scheduler.denoising()
        return Took(self._encoding, whole - self._encoding if ready else 0.0, parts)

    def start(self, watch: Instrument | None = None) -> Took:
        """Encodes all prompts; the first denoise step, which follows at once, is in it.
        Parts are those of encoding."""
        encode, parts = 0.0, dict.fromkeys(PARTS, 0.0)
        while True:
            took = self.step(watch)
            encode += took.encode
            for name, seconds in took.parts.get(ENCODE, {}).items():
                parts[name] += seconds
            if took.denoise:
                return Took(encode, took.denoise, {ENCODE: parts} if watch is not None else {})

    def _time_encoding(self) -> None:
        run = self.engine.runner.run

        def timed(rows: list[Any]) -> Any:
            if is_denoising(rows):
                return run(rows)
            begin = self._now()
            try:
                return run(rows)
            finally:
                self._encoding += self._now() - begin

        self.engine.runner.run = timed  # type: ignore[method-assign]


@dataclass(frozen=True)
class StepTimes:
    """Measured at one context length and one number of rows. Seconds; `steps` without the first."""

    context: int
    rows: int
    prefill: float
    first: float
    steps: tuple[float, ...]
    parts: Seconds  # of the median step among those that were watched
    watched: tuple[float, ...]
    prefill_parts: Seconds
    notes: tuple[str, ...] = ()
    commits: CommitTimes | None = None


def measure_steps(
    engine: Engine,
    context: int,
    *,
    rows: int = 1,
    steps: int = 4,
    params: Params | None = None,
    parts: bool = True,
    tell: Tell = lambda text: None,
) -> StepTimes:
    """Encodes, takes a first step and `steps` more; with `parts`, as many steps between them
    and the encoding watched."""
    where = f"context {context}" if rows == 1 else f"context {context}, {rows} rows"
    tell(f"{where}: encoding")
    stepper = Stepper(engine, context, rows=rows, limit=2 * steps + 1, params=params)
    started = stepper.start()
    watch = Instrument(stepper.engine)
    plain: list[float] = []
    watched: list[Seconds] = []
    for number in range(1, steps + 1):  # one without, one with hooks: both meet the same neighbours
        tell(f"{where}: step {number} of {steps}")
        plain.append(stepper.step().denoise)
        if parts:
            with watch:
                watched.append(stepper.step(watch).parts[DENOISE])
    if not parts:
        return StepTimes(context, rows, started.encode, started.denoise, tuple(plain), {}, (), {})
    tell(f"{where}: encoding, by part")
    again = Stepper(engine, context, rows=rows, limit=1, params=params)
    with Instrument(again.engine) as watch_encoding:
        encoded = again.start(watch_encoding).parts[ENCODE]
    commits = measure_commits(engine, context, pairs=steps, tell=tell) if rows == 1 else None
    watched.sort(key=lambda found: sum(found.values()))
    return StepTimes(
        context, rows, started.encode, started.denoise, tuple(plain), watched[(len(watched) - 1) // 2],
        tuple(sum(found.values()) for found in watched), encoded, tuple(watch.notes),
        commits,
    )  # fmt: skip


def warm_up(engine: Engine) -> None:
    """A short prompt and two steps: what is allocated once, is allocated then."""
    stepper = Stepper(engine, 16, rows=1, limit=2)
    stepper.start()
    stepper.step()


def step_report(model: Model, times: StepTimes, ceilings: Ceilings | None = None) -> dict[str, Any]:
    """Plain data of one measurement; rates in 10^9 multiply-accumulates and bytes a second."""
    config, rows = model.config, times.rows
    macs = {name: rows * work for name, work in denoise_macs(config, times.context).items()}
    read = weight_bytes(model, rows * config.canvas_length)
    typical = median(times.steps)
    encode = {name: rows * work for name, work in encode_macs(config, 0, times.context).items()}
    return {
        "context": times.context,
        "rows": rows,
        "prefill": {
            "seconds": times.prefill,
            "tokens_per_second": rows * times.context / times.prefill if times.prefill > 0 else None,
            **_whole(times.prefill, sum(encode.values()), None, ceilings),
            "parts": _parts(times.prefill_parts, encode, None, ceilings),
        },
        "first_step_ms": 1000 * times.first,
        "step_ms": 1000 * typical,
        "steps_ms": [1000 * seconds for seconds in times.steps],
        "watched_ms": [1000 * seconds for seconds in times.watched],
        "commit": times.commits.to_dict(typical) if times.commits else None,
        **_whole(typical, sum(macs.values()), sum(read.values()), ceilings),
        "parts": _parts(times.parts, macs, read, ceilings),
    }


def _parts(
    seconds: Seconds, macs: dict[str, int], read: dict[str, int] | None, ceilings: Ceilings | None
) -> dict[str, Any]:
    whole = sum(seconds.values()) or 1.0
    return {
        name: {
            "ms": 1000 * took,
            "share": took / whole,
            **_whole(took, macs[name], None if read is None else read[name], ceilings),
        }
        for name, took in seconds.items()
    }


def _whole(seconds: float, macs: int, read: int | None, ceilings: Ceilings | None) -> dict[str, Any]:
    """Work, its rate, and the shares of the machine's ceilings; None where there is no work or no ceiling."""
    rate = macs / seconds / 1e9 if macs and seconds > 0 else None
    flow = read / seconds / 1e9 if read and seconds > 0 else None
    return {
        "gmac": macs / 1e9,
        "gmac_per_second": rate,
        "arithmetic_share": _share(rate, ceilings.gmac_per_second if ceilings else None),
        "weights_gb": None if read is None else read / 1e9,
        "gb_per_second": flow,
        "bandwidth_share": _share(flow, ceilings.gb_per_second if ceilings else None),
    }


def _share(rate: float | None, ceiling: float | None) -> float | None:
    return None if rate is None or not ceiling else rate / ceiling


def contexts_that_fit(engine: Engine, wanted: Sequence[int]) -> list[int]:
    """Those that leave room for a canvas."""
    return [n for n in wanted if n + engine.config.canvas_length <= engine.max_context]


__all__ = [
    "StepTimes",
    "Stepper",
    "Tell",
    "Took",
    "contexts_that_fit",
    "measure_steps",
    "step_report",
    "warm_up",
]
