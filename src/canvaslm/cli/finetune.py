"""`canvaslm finetune`: from a table of chats to an adapter."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from .finetune_options import AdapterFlags, DataFlags, ObjectiveFlags, RunFlags, WatchFlags
from .options import grouped

if TYPE_CHECKING:
    from ..session import Session
    from ..train.finetune import FineTuning, TuningData
    from ..train.report import Reporter
    from ..train.settings import Settings

_EPOCHS = 3.0
_MEASUREMENTS = 10  # of a run, where nobody says how often
_SHOWN = 3
_WIDTH = 400  # characters of an example that are shown


@grouped
def command(
    data: DataFlags,
    adapter: AdapterFlags,
    objective: ObjectiveFlags,
    run: RunFlags,
    watch: WatchFlags,
    out: Annotated[Path, typer.Option("--out", "-o", help="The run's folder; the adapter is OUT/adapter.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="MODEL", help="What is tuned. Without it: the demo model."),
    ] = None,
    device: Annotated[str, typer.Option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1 ...")] = "cpu",
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="TYPE",
            help="float32 or bfloat16: unpacks the base. Without it: as stored.",
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", "-t", min=1, metavar="N", help="CPU threads. Without it: all.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from OUT's newest checkpoint.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show examples, sizes and the time it takes; write nothing."),
    ] = False,
) -> None:
    """Train an adapter (LoRA) on chats: JSONL to a folder that `--adapter`, PEFT and `canvaslm serve` load.

    Columns tell the form: messages; conversations; instruction, output; prompt, completion; question, answer.
    For --objective dpo they are prompt, chosen, rejected: the model comes to prefer the answers chosen.
    Ctrl-C finishes the step and writes a checkpoint; --resume goes on from it, to the same bits.

    Examples:
      canvaslm finetune --data chats.jsonl --out runs/mine --dry-run
      canvaslm finetune --data chats.jsonl --valid 5% --out runs/mine --epochs 2
      canvaslm finetune -m org/name --data hf:org/data --out runs/mine --rank 8 --targets attention,experts
      canvaslm finetune --data chats.jsonl --out runs/mine --resume
      canvaslm finetune --data pairs.jsonl --valid 5% --out runs/mine --objective dpo --lr 5e-5
    """
    aim = objective.section()
    _check(data, out, resume=resume, dry_run=dry_run, preferences=objective.preferences)
    import torch

    torch.set_num_threads(threads or os.cpu_count() or 1)
    session, name = _open(model, device, dtype)
    made = _data(data, session, preferences=objective.preferences)
    settings = _settings(adapter, aim, run, watch, out, device, len(made.train), data, name)
    tuning = _tuning(session, made, settings, out, name, watch)
    _show(made, session)
    for text in [*tuning.plan(), *([tuning.pace()] if dry_run else [])]:
        print(text, file=sys.stderr)
    if not dry_run:
        _train(tuning, resume=resume)


def _train(tuning: FineTuning, *, resume: bool) -> None:
    from ..train.report import clock

    reason = tuning.run(resume=resume)
    print(f"adapter: {tuning.out / 'adapter'}  ({clock(tuning.trainer.seconds)})", file=sys.stderr)
    if reason.startswith("stopped"):
        print("the same command with --resume goes on from the checkpoint", file=sys.stderr)
        raise typer.Exit(130)


def _check(data: DataFlags, out: Path, *, resume: bool, dry_run: bool, preferences: bool) -> None:
    """Refuses before anything is loaded."""
    from ..files import check_output_folder

    if not data.data:
        raise UsageError("--data is missing: a table of chats, as --data chats.jsonl", param="data")
    if data.thinking not in ("keep", "drop"):
        raise UsageError(f"--thinking {data.thinking}: keep or drop", param="thinking")
    if data.every_turn and preferences:
        raise UsageError("--every-turn: --objective dpo compares last turns alone", param="every-turn")
    data.renamed()
    if dry_run:
        return
    if not resume and any((out / "checkpoints").glob("step-*/state.json")):
        raise UsageError(
            f"{out}: holds a run already; pass --resume to go on, or name another folder", param="out"
        )
    check_output_folder(out, force=True)


def _open(model: str | None, device: str, dtype: str | None) -> tuple[Session, str]:
    """A quantised base stays quantised, in layers through which gradients flow."""
    from ..ops import backend
    from .loading import progress_line

    with progress_line(model or "the demo model") as progress:
        from ..session import load

        with backend.differentiable():
            session = load(model, device=device, dtype=dtype, progress=progress)
    return session, model or "demo"


def _data(flags: DataFlags, session: Session, *, preferences: bool) -> TuningData:
    from ..train.finetune import DataChoice, read_data
    from ..train.formats import Renderer

    tokenizer = session.tokenizer
    turn_end = tokenizer.marker_id(tokenizer.markers.turn_end)
    if turn_end is None:
        raise UsageError(
            f"the model's tokenizer has no {tokenizer.markers.turn_end}, which closes a turn", param="model"
        )
    renderer = Renderer(
        tokenizer, session.template, turn_end, flags.thinking == "keep", every_turn=flags.every_turn
    )
    choice = DataChoice(flags.data, flags.valid, flags.renamed(), flags.max_length, preferences)
    return read_data(choice, renderer)


def _settings(
    adapter: AdapterFlags, aim: Mapping[str, str | float], run: RunFlags, watch: WatchFlags, out: Path,
    device: str, examples: int, data: DataFlags, name: str,
) -> Settings:  # fmt: skip
    from ..train.finetune import steps_of
    from ..train.settings import settings_from_dict

    given = [flag for flag in (run.epochs, run.steps, run.minutes) if flag is not None]
    if len(given) > 1:
        raise UsageError("name one of --epochs, --steps and --minutes", param="epochs")
    for what, value in (("epochs", run.epochs), ("minutes", run.minutes)):
        if value is not None and not value > 0:
            raise UsageError(f"--{what} {value:g}: should be above 0", param=what)
    steps = run.steps or (0 if run.minutes else steps_of(examples, run.batch, run.epochs or _EPOCHS))
    return settings_from_dict(
        {
            "run": {
                "folder": str(out / "checkpoints"), "seed": run.seed, "steps": steps,
                "max_minutes": float(run.minutes or 0), "checkpoint_every": run.checkpoint_every,
                "log_every": watch.log_every, "device": device,
                "autocast": run.autocast, "recompute": run.recompute,
            },
            "model": {"base": name},
            "objective": aim,
            "data": {
                "files": [data.data], "batch": run.batch,
                "micro_batch": min(run.micro_batch or run.batch, run.batch), 
                "max_length": data.max_length, "length_multiple": 16,
            },
            "optim": {"lr": run.lr, "warmup": min(25, max(1, steps // 10)) if steps else 10},
            "lora": {
                "rank": adapter.rank, "alpha": adapter.alpha, "rslora": adapter.rslora,
                "phases": adapter.phases,
                "targets": [part.strip() for part in adapter.targets.split(",") if part.strip()],
            },
        }
    )  # fmt: skip


def _tuning(
    session: Session, made: TuningData, settings: Settings, out: Path, name: str, watch: WatchFlags
) -> FineTuning:
    from ..train.finetune import FineTuning

    tuning = FineTuning.of(session.engine.runner.model, made, settings, out, name)
    tuning.report = tuple(part.strip() for part in watch.report.split(",") if part.strip())
    tuning.every = watch.eval_every or max(1, settings.run.steps // _MEASUREMENTS or 25)
    tuning.patience = watch.patience
    if watch.samples:
        tuning.samples = _sampler(session, tuning, watch.samples)
    return tuning


def _sampler(session: Session, tuning: FineTuning, count: int) -> Callable[[Reporter], None]:
    """Shows what the model answers to held-out prompts (or, without any, to those it learns from)."""
    from ..train.lora import Lora
    from ..types import AdapterUse, Committed, Params, Request

    prompts = (tuning.data.valid or tuning.data.train)[:count]

    def show(reporter: Reporter) -> None:
        with tuning.trainer.shipped() as lora:
            assert isinstance(lora, Lora)
            use = AdapterUse(lora.adapter().to(tuning.trainer.model.device))
        for one in prompts:
            params = Params(seed=0, max_new_tokens=session.engine.config.canvas_length)
            request = Request(one.prompt, params, session.eos_token_ids, adapters=(use,))
            events = session.driver.events(request)
            tokens = [t for event in events if isinstance(event, Committed) for t in event.tokens]
            asked = session.tokenizer.decode(one.prompt).strip().splitlines()[-2:]
            reporter.say(f"  sample: {' / '.join(asked)} -> {session.tokenizer.decode(tokens)!r}")

    return show


def _show(made: TuningData, session: Session) -> None:
    """A few examples, what is trained in colour or between brackets, of two answers the better one first."""
    from ..train.finetune import shown

    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    begin, end = ("\x1b[32m", "\x1b[0m") if colour else ("[[", "]]")
    print(f"examples, what is trained {'in green' if colour else 'between [[ and ]]'}:", file=sys.stderr)
    for one in shown(made.train, session.tokenizer, _SHOWN):
        print(f"  {_cut(one.prompt)}{begin}{_cut(one.answer)}{end}".replace("\n", "\\n"), file=sys.stderr)
        if one.rejected is not None:
            worse = f"    rather than {begin}{_cut(one.rejected)}{end}"
            print(worse.replace("\n", "\\n"), file=sys.stderr)


def _cut(text: str) -> str:
    half = _WIDTH // 2
    return text if len(text) <= _WIDTH else f"{text[:half]} ... {text[-half:]}"


__all__ = ["command"]
