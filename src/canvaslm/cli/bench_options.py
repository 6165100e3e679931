"""The flags of `canvaslm bench` that no other command has, in the groups that its help shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from .server_address import SERVER, Address

_LOAD, _STEP = "Load", "Steps"


@dataclass(frozen=True)
class Requests:
    """Answers under load: of what, how many at once, how often."""

    prompts: Annotated[
        list[Path] | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            rich_help_panel=_LOAD,
            help="Text with one prompt a line, or JSONL with prompt or messages; may be repeated. "
            "Without it: tasks of the demo model, or a few general prompts.",
        ),
    ] = None
    concurrency: Annotated[
        str,
        typer.Option(
            "--concurrency",
            "-c",
            metavar="N,...",
            rich_help_panel=_LOAD,
            help="Requests in flight; several numbers with commas between for one run each.",
        ),
    ] = "1"
    repeats: Annotated[
        int,
        typer.Option(
            "--repeats",
            min=1,
            metavar="N",
            rich_help_panel=_LOAD,
            help="Times each prompt is asked, always with another seed.",
        ),
    ] = 1
    warmup: Annotated[
        int,
        typer.Option(
            "--warmup",
            min=0,
            metavar="N",
            rich_help_panel=_LOAD,
            help="Requests before each run that do not count.",
        ),
    ] = 2
    max_rows: Annotated[
        int,
        typer.Option(
            "--max-rows",
            min=1,
            metavar="N",
            rich_help_panel=_LOAD,
            help="Answers worked on at once (in process); the others queue.",
        ),
    ] = 16
    prefix_cache: Annotated[
        bool,
        typer.Option(
            "--prefix-cache/--no-prefix-cache",
            rich_help_panel=_LOAD,
            help="Remember prompts between requests (in process). Off, so that a repeat costs what it costs.",
        ),
    ] = False


@dataclass(frozen=True)
class StepFlags:
    """Steps part by part, at which context lengths and numbers of rows."""

    step: Annotated[
        bool,
        typer.Option(
            "--step",
            rich_help_panel=_STEP,
            help="Measure denoise steps part by part instead; --steps says how many.",
        ),
    ] = False
    context: Annotated[
        str | None,
        typer.Option(
            "--context",
            metavar="N,...",
            rich_help_panel=_STEP,
            help="Context lengths in tokens. Without it: 128,512.",
        ),
    ] = None
    rows: Annotated[
        str | None,
        typer.Option(
            "--rows",
            metavar="N,...",
            rich_help_panel=_STEP,
            help="Measure a step at these numbers of rows, at the first context length.",
        ),
    ] = None

    answer: Annotated[
        str | None,
        typer.Option(
            "--answer",
            metavar="N,...",
            rich_help_panel=_STEP,
            help="Seconds that answers of these many tokens take by preset: what passes cost here, times how "
            "many answers of that length took.",
        ),
    ] = None
    habits: Annotated[
        Path | None,
        typer.Option(
            "--habits",
            metavar="FILE",
            rich_help_panel=_STEP,
            help="With --answer: how many passes answers take, as benchmarks/habits.py writes it. Without "
            "it: what the demo model's answers took.",
        ),
    ] = None

    @property
    def wanted(self) -> bool:
        """Whether steps are to be measured instead of answers."""
        return self.step or self.rows is not None


@dataclass(frozen=True)
class Remote(Address):
    """A server to measure: where it is, and whether it is waited for or started."""

    ready: Annotated[
        bool,
        typer.Option(
            "--ready", rich_help_panel=SERVER, help="Wait until the server is ready, and report the seconds."
        ),
    ] = False
    start: Annotated[
        str | None,
        typer.Option(
            "--start",
            metavar="COMMAND",
            rich_help_panel=SERVER,
            help="Start the server with this command, and stop it in the end; "
            "reports its time to be ready and its memory.",
        ),
    ] = None
    ready_timeout: Annotated[
        float,
        typer.Option(
            "--ready-timeout",
            min=0.1,
            metavar="SECONDS",
            rich_help_panel=SERVER,
            help="How long to wait for a server.",
        ),
    ] = 600.0


@dataclass(frozen=True)
class Output:
    """What is written, or read again."""

    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            "--compare",
            metavar="A.json B.json",
            help="Print the ratios of two documents, and measure nothing.",
        ),
    ] = None
    json: Annotated[
        str | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Also write a JSON document; - is standard output, without the table then.",
        ),
    ] = None
    probes: Annotated[
        bool,
        typer.Option(
            "--probes/--no-probes", help="Measure what the machine can do, and report shares of it."
        ),
    ] = True


def numbers(flag: str, text: str) -> tuple[int, ...]:
    """`1,4,16` as numbers from 1 on. Raises UsageError naming the flag."""
    try:
        found = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise UsageError(
            f"{flag} {text}: should be whole numbers from 1 on, with commas between", flag.strip("-")
        )
    return found


__all__ = ["Output", "Remote", "Requests", "StepFlags", "numbers"]
