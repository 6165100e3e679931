"""The flags of `canvaslm eval` that no other command has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from ..files import check_output

if TYPE_CHECKING:
    from ..evals.run import EvalOptions


@dataclass(frozen=True)
class Asked:
    """Which items are asked, how often, and with which parameters."""

    count: Annotated[int, typer.Option("-n", "--count", help="Items a task.")] = 500
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep",
            metavar="NAME=A,B,...",
            help="Answer the items with each of these values of a sampling parameter; several make a grid "
            "of 64 points at most, and the first one's values a curve.",
        ),
    ] = None
    table: Annotated[
        str,
        typer.Option(
            "--table",
            metavar="NAME",
            help="Compare settings that belong together with plain ones, answer by answer. verify: what the "
            "causal reader is worth (docs/verify.md); presets: all presets (docs/speed.md).",
        ),
    ] = ""
    seeds: Annotated[int, typer.Option("--seeds", help="Seeds that every item is answered under.")] = 1
    seed: Annotated[int, typer.Option("--seed", help="Chooses items and noise.")] = 0
    one_shot: Annotated[
        bool,
        typer.Option("--one-shot/--no-one-shot", help="Without --sweep: also measure a single denoise step."),
    ] = True
    steps: Annotated[
        int | None,
        typer.Option("--steps", help="Denoise steps at most, in place of the model's own default."),
    ] = None
    schema: Annotated[
        bool,
        typer.Option(
            "--schema",
            help="Only tasks whose answers have a form that can be said, with it and without it.",
        ),
    ] = False
    rows: Annotated[
        int,
        typer.Option(
            "--rows", "--concurrency", "-c", min=1, help="Answers worked on, or asked for, at once."
        ),
    ] = 32
    allow_code: Annotated[
        bool,
        typer.Option("--allow-code", help="Run the programs that the model writes, where a task needs it."),
    ] = False

    def options(self, tasks: str, sampling: dict[str, Any], *, holes: bool) -> EvalOptions:
        """What they say, `tasks` with commas between. Raises UsageError for a sweep that is none."""
        from ..evals.points import read_sweep
        from ..evals.run import EvalOptions

        return EvalOptions(
            count=self.count,
            tasks=tuple(part.strip() for part in tasks.split(",") if part.strip()),
            one_shot=self.one_shot,
            seed=self.seed,
            steps=self.steps,
            sampling=sampling,
            structure=self.schema,
            seeds=self.seeds,
            table=self.table,
            sweeps=tuple(read_sweep(text) for text in self.sweep or ()),
            holes=holes,
            allow_code=self.allow_code,
        )


@dataclass(frozen=True)
class ScoreFiles:
    """The files that are wanted besides the tables."""

    json: Annotated[Path | None, typer.Option("--json", help="Also write a JSON document to this file.")] = (
        None
    )
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Also draw the curves of a sweep into this SVG file.")
    ] = None

    def check(self, options: EvalOptions) -> None:
        """Raises UsageError for files that cannot be written, and for a picture of nothing."""
        if self.plot is not None and not any(len(sweep.values) > 1 for sweep in options.sweeps[:1]):
            raise UsageError("--plot draws the curve of a --sweep with several values: add one", "plot")
        for name, path in (("json", self.json), ("plot", self.plot)):
            if path is not None:
                check_output(path, force=True, param=name)


__all__ = ["Asked", "ScoreFiles"]
