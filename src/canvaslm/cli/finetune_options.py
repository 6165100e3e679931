"""Flags of `canvaslm finetune`, in groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import typer

from ..errors import UsageError

_DATA, _ADAPTER, _OBJECTIVE, _RUN, _WATCH = "Data", "Adapter", "Objective", "Run", "Watching"
_KINDS = ("sft", "dpo")


@dataclass(frozen=True)
class DataFlags:
    """What is learned from."""

    data: Annotated[
        str,
        typer.Option(
            "--data", metavar="DATA", rich_help_panel=_DATA,
            help="JSONL, JSON, CSV or Parquet; a folder with train and valid files; or hf:name.",
        ),
    ] = ""  # fmt: skip
    valid: Annotated[
        str,
        typer.Option(
            "--valid", metavar="DATA", rich_help_panel=_DATA,
            help="What is held out: another file, or a share, as 5%. Without it: a folder's valid files.",
        ),
    ] = ""  # fmt: skip
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--columns", metavar="OURS=THEIRS", rich_help_panel=_DATA,
            help="What a column is called in the data, as --columns prompt=question; may be repeated.",
        ),
    ] = None  # fmt: skip
    every_turn: Annotated[
        bool,
        typer.Option(
            "--every-turn", rich_help_panel=_DATA,
            help="Train every turn of the assistant, each as an example, not the last alone.",
        ),
    ] = False  # fmt: skip
    thinking: Annotated[
        str,
        typer.Option(
            "--thinking", metavar="MODE", rich_help_panel=_DATA,
            help="keep or drop: what becomes of the data's reasoning.",
        ),
    ] = "keep"  # fmt: skip
    max_length: Annotated[
        int,
        typer.Option(
            "--max-length", metavar="N", min=2, rich_help_panel=_DATA,
            help="Tokens of prompt and answer; longer answers are cut.",
        ),
    ] = 2048  # fmt: skip

    def renamed(self) -> Mapping[str, str]:
        """{our name: theirs}. Raises UsageError."""
        found = {}
        for text in self.columns or ():
            ours, equals, theirs = text.partition("=")
            if not (ours and equals and theirs):
                raise UsageError(f"--columns {text}: expected OURS=THEIRS, as prompt=question", "columns")
            found[ours] = theirs
        return found


@dataclass(frozen=True)
class AdapterFlags:
    """What is trained."""

    rank: Annotated[
        int, typer.Option("--rank", min=1, metavar="N", rich_help_panel=_ADAPTER, help="Rank of each change.")
    ] = 16
    alpha: Annotated[
        float,
        typer.Option(
            "--alpha", metavar="X", rich_help_panel=_ADAPTER, help="Changes are scaled by alpha / rank."
        ),
    ] = 32.0
    rslora: Annotated[
        bool, typer.Option("--rslora", rich_help_panel=_ADAPTER, help="Scale by alpha / sqrt(rank).")
    ] = False
    targets: Annotated[
        str,
        typer.Option(
            "--targets", metavar="NAMES", rich_help_panel=_ADAPTER,
            help="Of attention, mlp, experts, router, self_conditioning; with commas between.",
        ),
    ] = "attention,mlp"  # fmt: skip
    phases: Annotated[
        str,
        typer.Option(
            "--phases", metavar="NAME", rich_help_panel=_ADAPTER,
            help="both, or denoise: canvases alone; the encoder stays the base's, at half the cost.",
        ),
    ] = "both"  # fmt: skip


@dataclass(frozen=True)
class ObjectiveFlags:
    """What is learned of the data."""

    objective: Annotated[
        str,
        typer.Option(
            "--objective", metavar="NAME", rich_help_panel=_OBJECTIVE,
            help="sft: to write the answers. dpo: to prefer the answers chosen to those rejected.",
        ),
    ] = "sft"  # fmt: skip
    beta: Annotated[
        float | None,
        typer.Option(
            "--beta", metavar="X", rich_help_panel=_OBJECTIVE,
            help="Of dpo: the higher, the sooner a preference is enough (0.1).",
        ),
    ] = None  # fmt: skip
    sft_weight: Annotated[
        float | None,
        typer.Option(
            "--sft-weight", metavar="X", rich_help_panel=_OBJECTIVE,
            help="Of dpo: weight of the loss of writing the chosen answer (0).",
        ),
    ] = None  # fmt: skip

    @property
    def preferences(self) -> bool:
        """Whether pairs of answers are trained on."""
        return self.objective == "dpo"

    def section(self) -> dict[str, str | float]:
        """Of the run's settings. Raises UsageError for an objective that there is not, and for flags of
        another."""
        if self.objective not in _KINDS:
            raise UsageError(f"--objective {self.objective}: {' or '.join(_KINDS)}", param="objective")
        given = {"beta": self.beta, "sft_weight": self.sft_weight}
        found = {name: value for name, value in given.items() if value is not None}
        if found and not self.preferences:
            flag = next(iter(found)).replace("_", "-")
            raise UsageError(f"--{flag} is a setting of --objective dpo", param=flag)
        return {"kind": self.objective, **found}


@dataclass(frozen=True)
class RunFlags:
    """How it is trained."""

    lr: Annotated[
        float, typer.Option("--lr", metavar="X", rich_help_panel=_RUN, help="Peak of the learning rate.")
    ] = 1.5e-4
    epochs: Annotated[
        float | None,
        typer.Option("--epochs", metavar="X", rich_help_panel=_RUN, help="Passes over the data (3)."),
    ] = None
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", min=1, rich_help_panel=_RUN, help="Or: steps.")
    ] = None
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", metavar="X", rich_help_panel=_RUN, help="Or: an end by the clock."),
    ] = None
    batch: Annotated[
        int,
        typer.Option("--batch", metavar="N", min=1, rich_help_panel=_RUN, help="Examples (or pairs) a step."),
    ] = 8
    micro_batch: Annotated[
        int | None,
        typer.Option(
            "--micro-batch", metavar="N", min=1, rich_help_panel=_RUN,
            help="Examples at once; gradients of a batch are added up. Without it: all of a step.",
        ),
    ] = None  # fmt: skip
    recompute: Annotated[
        bool,
        typer.Option(
            "--recompute", rich_help_panel=_RUN,
            help="Layers keep their inputs alone: a third more time, a fraction of the activations.",
        ),
    ] = False  # fmt: skip
    checkpoint_every: Annotated[
        int,
        typer.Option(
            "--checkpoint-every", metavar="N", min=0, rich_help_panel=_RUN,
            help="Steps between checkpoints, beside those of every five minutes; 0: these alone.",
        ),
    ] = 0  # fmt: skip
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", rich_help_panel=_RUN, help="Fixes all that is drawn.")
    ] = 0
    autocast: Annotated[
        str,
        typer.Option("--autocast", metavar="NAME", rich_help_panel=_RUN, help="none or bf16, for products."),
    ] = "none"


@dataclass(frozen=True)
class WatchFlags:
    """What is told while it trains."""

    eval_every: Annotated[
        int | None,
        typer.Option(
            "--eval-every", metavar="N", min=1, rich_help_panel=_WATCH,
            help="Steps between two measurements of what is held out. Without it: ten in the run.",
        ),
    ] = None  # fmt: skip
    patience: Annotated[
        int,
        typer.Option(
            "--patience", metavar="N", min=0, rich_help_panel=_WATCH,
            help="End after so many measurements without a better one; 0: never.",
        ),
    ] = 0  # fmt: skip
    samples: Annotated[
        int,
        typer.Option(
            "--samples", metavar="N", min=0, rich_help_panel=_WATCH,
            help="Held-out prompts that are answered at each measurement, to be looked at.",
        ),
    ] = 0  # fmt: skip
    report: Annotated[
        str,
        typer.Option(
            "--report",
            metavar="NAMES",
            rich_help_panel=_WATCH,
            help="tensorboard, wandb, trackio.",
        ),
    ] = ""
    log_every: Annotated[
        int,
        typer.Option("--log-every", metavar="N", min=1, rich_help_panel=_WATCH, help="Steps between lines."),
    ] = 10


__all__ = ["AdapterFlags", "DataFlags", "ObjectiveFlags", "RunFlags", "WatchFlags"]
