"""How questions are read: the flags that `decide` and `calibrate` share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..options import DecideOptions

_READING = "Reading"


@dataclass(frozen=True)
class QuestionReading:
    """Options of `Session.decide`."""

    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            min=1,
            max=16,
            metavar="N",
            rich_help_panel=_READING,
            help="Draws of noise, averaged.",
        ),
    ] = None
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", min=1, max=8, metavar="N", rich_help_panel=_READING, help="Denoise steps of a canvas."
        ),
    ] = None
    permute: Annotated[
        int | None,
        typer.Option(
            "--permute", min=1, max=16, metavar="N", rich_help_panel=_READING,
            help="Orders of the options, averaged: against a liking for early ones.",
        ),
    ] = None  # fmt: skip
    joint: Annotated[
        bool,
        typer.Option(
            "--joint", rich_help_panel=_READING, help="Questions share canvases, and see each other."
        ),
    ] = False
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels", metavar="KIND", rich_help_panel=_READING,
            help="letters, or values: options are their own labels. Without it: as the model's decision.json "
            "says, or letters.",
        ),
    ] = None  # fmt: skip
    reader: Annotated[
        str | None,
        typer.Option(
            "--reader", metavar="WHO", rich_help_panel=_READING,
            help="canvas (a denoise step), or causal: the model as a causal language model.",
        ),
    ] = None  # fmt: skip
    instructions: Annotated[
        str | None,
        typer.Option(
            "--instructions", metavar="TEXT", rich_help_panel=_READING, help="What is said before the state."
        ),
    ] = None

    def chosen(self) -> DecideOptions:
        """Those that were given."""
        named = ("samples", "steps", "permute", "labels", "reader", "instructions")
        options: Any = {name: getattr(self, name) for name in named if getattr(self, name) is not None}
        if self.joint:
            options["joint"] = True
        made: DecideOptions = options
        return made


__all__ = ["QuestionReading"]
