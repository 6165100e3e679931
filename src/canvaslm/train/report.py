"""What a run tells while it trains: a live bar on a terminal, plain lines elsewhere,
and JSON lines in a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from ..files import check_output, written_as


def digits(name: str) -> int:
    """Of a figure in a line."""
    return 3 if name in ("aux", "wrong", "accuracy") else 4


@dataclass(frozen=True)
class TrainingMetrics:
    """Means since the last report. Rates per second of wall time, times in seconds.

    figures: "loss" first, then the objective's others (losses in nats per place; wrong: share of supervised
    places whose most probable token is wrong, at random times t), "gradient", the norm before clipping, and
    "rate", the learning rate as a share of its peak.
    """

    step: int
    figures: dict[str, float]
    examples: int  # so far
    examples_per_second: float
    tokens_per_second: float
    seconds: float
    left: float

    def values(self) -> dict[str, float]:
        """All figures by name."""
        values = asdict(self)
        figures = values.pop("figures")
        return {"step": values.pop("step"), **figures, **values}


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def line(m: TrainingMetrics) -> str:
    """One line of figures."""
    rest = dict(m.figures)
    gradient, rate = rest.pop("gradient"), rest.pop("rate")
    told = "  ".join(f"{name} {value:.{digits(name)}f}" for name, value in rest.items())
    return (
        f"step {m.step}  {told}  grad {gradient:.2f}  lr x{rate:.3f}  {m.examples_per_second:.1f} ex/s  "
        f"{m.tokens_per_second:.0f} tok/s  {clock(m.seconds)} done, {clock(m.left)} left"
    )


class Reporter:
    """Writes metrics to `file` (JSON lines, appended) and to stderr; use as a context manager.

    Raises UsageError where `file` is something else than a file, WriteFailed where the disk is full.
    """

    def __init__(
        self,
        file: Path | None,
        stream: TextIO | None = None,
        log: Callable[[dict[str, float], int], None] | None = None,
    ) -> None:
        """log: takes the figures of a step besides."""
        self.stream, self.log = stream or sys.stderr, log
        self._path = file
        if file is not None:
            check_output(file, force=True, param="run.folder")
        # Unbuffered: a line that does not fit fails once, not again on closing.
        self._file = file.open("ab", buffering=0) if file else None
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Reporter:
        if self.stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=Console(file=self.stream))
            self._bar.start()
            self._task = self._bar.add_task("first step", total=1.0)
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._file is not None:
            self._file.close()

    def metrics(self, m: TrainingMetrics, progress: float) -> None:
        """Reports metrics; `progress` is the share of the run that is done."""
        if self._file is not None and self._path is not None:
            with written_as(self._path):
                self._file.write(json.dumps(m.values()).encode() + b"\n")
        if self.log is not None:
            self.log(m.values(), m.step)
        if self._bar is not None:
            loss, *others = list(m.figures.items())[:3]
            beside = ", ".join(f"{name} {value:.3f}" for name, value in others)
            text = f"step {m.step}  loss {loss[1]:.3f} ({beside})  "
            text += f"{m.tokens_per_second:.0f} tok/s  {clock(m.left)} left"
            self._bar.update(self._task, completed=progress, description=text)
        else:
            self.say(line(m))

    def say(self, text: str) -> None:
        """A line for the reader, above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=self.stream, flush=True)


__all__ = ["Reporter", "TrainingMetrics", "clock", "digits", "line"]
