"""`canvaslm train CONFIG.toml`: fine-tune a checkpoint, or train one from scratch."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..train.sft import Trainer

DRY_STEPS = 3
_DEMO = "demo"


def command(
    config: Annotated[Path, typer.Argument(help="The run's TOML file; docs/training.md lists its keys.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest checkpoint of the run's folder.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override one key, as in --set optim.lr=1e-4; repeatable."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print sizes, train a few steps, estimate the time, write nothing."),
    ] = False,
) -> None:
    """Train a model: full fine-tuning or from scratch, with checkpoints that resume exactly.

    CONFIG "demo" is the recipe of the demo model.

    Examples:
      canvaslm train demo --dry-run --set run.compile=false --set data.batch=4 --set data.micro_batch=4
      canvaslm train recipe.toml --set optim.lr=1e-4
      canvaslm train recipe.toml --resume
    """
    from ..train.settings import read_settings

    if str(config) == _DEMO and not config.exists():
        from ..demo.config import MODEL_FOLDER

        config = MODEL_FOLDER.parent / "recipe.toml"
    settings = read_settings(config, set_ or ())
    from ..errors import UsageError
    from ..files import check_output, check_output_folder
    from ..train.checkpoint import checkpoints
    from ..train.setup import make_trainer

    folder = Path(settings.run.folder)
    if not resume and not dry_run and checkpoints(folder):
        raise UsageError(
            f"{folder}: holds checkpoints already; pass --resume, or name another run.folder", param="resume"
        )
    if not dry_run:
        check_output_folder(folder, force=True, param="run.folder")
        check_output_folder(folder / "export", force=True, param="run.folder")
        if folder.is_dir():
            check_output(folder / "metrics.jsonl", force=True, param="run.folder")
    trainer = make_trainer(settings)
    if dry_run:
        _dry_run(trainer)
        return
    if resume and not trainer.resume():
        raise UsageError(f"{folder}: no checkpoint to resume from; run without --resume", param="resume")
    _train(trainer, folder)


def _train(trainer: Trainer, folder: Path) -> None:
    from ..train.report import Reporter, clock

    folder.mkdir(parents=True, exist_ok=True)
    with Reporter(folder / "metrics.jsonl") as reporter:
        reporter.say(sizes(trainer))
        reason = trainer.run(reporter)
        reporter.say(
            f"{reason} after {trainer.step} steps, {clock(trainer.seconds)}; model: {folder / 'export'}"
        )
    if reason.startswith("stopped"):
        raise typer.Exit(130)


def sizes(trainer: Trainer) -> str:
    """What is trained, in two lines."""
    every = sum(p.numel() for p in trainer.model.parameters())
    trained = sum(p.numel() for p in trainer.optimizers.named.values())
    data = trainer.settings.data
    first = f"{every:,} parameters, {trained:,} of them trained; canvas {trainer.model.config.canvas_length}"
    return f"{first}\n{data.batch} examples a step in micro-batches of {min(data.micro_batch, data.batch)}"


def _dry_run(trainer: Trainer) -> None:
    print(sizes(trainer))
    trainer.train_step()  # the first step compiles and allocates
    start, tokens = time.perf_counter(), 0
    for _ in range(DRY_STEPS):
        tokens += trainer.train_step()[1]
    seconds = (time.perf_counter() - start) / DRY_STEPS
    run, batch = trainer.settings.run, trainer.settings.data.batch
    print(
        f"{seconds:.2f} s a step, {batch / seconds:.1f} examples/s, "
        f"{tokens / DRY_STEPS / seconds:.0f} tokens/s"
    )
    by_steps = run.steps * seconds / 60 if run.steps else float("inf")
    minutes = min(by_steps, run.max_minutes or float("inf"))
    print(f"about {minutes:.1f} minutes, {minutes * 60 / seconds:.0f} steps in all", file=sys.stdout)


__all__ = ["command", "sizes"]
