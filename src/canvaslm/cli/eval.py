"""`canvaslm eval demo`: how many held-out items a model gets right, and in how many steps."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..files import check_output
from .options import Truncation, grouped
from .output import log

if TYPE_CHECKING:
    from ..evals.score import Score


@grouped
def command(
    name: Annotated[str, typer.Argument(help="The eval to run; there is one, demo.")] = "demo",
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="A folder, a file or a hub id; the demo model without it."),
    ] = None,
    count: Annotated[int, typer.Option("-n", "--count", help="Items a task.")] = 500,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", help="Names with commas between, as in sudoku,sort; all without it."),
    ] = None,
    one_shot: Annotated[
        bool, typer.Option("--one-shot/--no-one-shot", help="Also measure a single denoise step.")
    ] = True,
    steps: Annotated[
        int | None,
        typer.Option("--steps", help="Denoise steps at most, in place of the model's own default."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Chooses items and noise.")] = 0,
    json: Annotated[
        Path | None, typer.Option("--json", help="Also write a JSON document to this file.")
    ] = None,
    schema: Annotated[
        bool,
        typer.Option(
            "--schema",
            help="Only tasks whose answers have a form that can be said, with it and without it.",
        ),
    ] = False,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Answers worked on at once.")] = 32,
    truncation: Truncation = Truncation(),
) -> None:
    """Measure a model on an eval: exact match, steps per canvas, tokens per step,
    one shot against refined.

    Examples:
      canvaslm eval -n 20 --tasks sudoku,sort --json scores.json
      canvaslm eval demo -m model.gguf
      canvaslm eval demo --schema -n 200
    """
    from ..evals import find_eval

    found = find_eval(name)
    names = tuple(part.strip() for part in tasks.split(",") if part.strip()) if tasks else ()
    options = found.EvalOptions(count, names, one_shot, seed, steps, truncation.chosen(), schema)
    options.chosen()  # an unknown name is an error before a model is loaded
    if json is not None:
        check_output(json, force=True, param="json")

    from ..evals.session_answers import SessionAnswerer
    from ..session import load

    session = load(model)
    for note in session.notes:
        log(f"note: {note}")
    scores = _run(found, SessionAnswerer(session, rows), options)
    settings = {"model": session.name, **asdict(options), "sampling_defaults": asdict(session.params)}
    _report(scores, name, settings, json)


def _run(found: Any, answerer: Any, options: Any) -> list[Score]:
    """The scores, with a progress bar on standard error while they are made."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=len(options.chosen()) * len(options.modes) * options.count)

        def tick(task: str, mode: str) -> None:
            progress.update(bar, advance=1, description=f"{task}, {mode}")

        scores: list[Score] = found.evaluate(answerer, options, tick)
        return scores


def _report(scores: list[Score], name: str, settings: dict[str, Any], json: Path | None) -> None:
    from rich.console import Console

    from ..evals.report import document, table, write

    # Piped, a table is not squeezed to the 80 columns that rich assumes.
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table(scores, f"canvaslm eval {name}: {settings['model']}, seed {settings['seed']}"))
    if json is not None:
        write(json, document(name, scores, settings))
        print(f"written to {json}", file=sys.stderr)


__all__ = ["command"]
