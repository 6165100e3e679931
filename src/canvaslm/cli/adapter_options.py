"""Flags about adapters, in groups (see `options`)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from ..errors import UsageError

PANEL = "Adapters"


@dataclass(frozen=True)
class AdapterFiles:
    """Which adapters there are."""

    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter", metavar="[NAME=]ADAPTER", rich_help_panel=PANEL,
            help="A LoRA adapter: a folder as PEFT writes it, a .gguf file or a hub id; and the name it "
            "gets, its folder's without one. Several times for several.",
        ),
    ] = None  # fmt: skip

    def paths(self) -> dict[str, str]:
        """Folders, files and hub ids by names, in the order given. Raises UsageError for a name given twice,
        or none."""
        found: dict[str, str] = {}
        for text in self.adapter or ():
            name, path = _named(text)
            if name in found:
                raise UsageError(f"--adapter {text}: there is an adapter {name!r} already", "adapter")
            found[name] = path
        return found

    def loading(self) -> dict[str, Any]:
        """What `canvaslm.load` takes of it."""
        paths = self.paths()
        return {"adapters": paths} if paths else {}


@dataclass(frozen=True)
class Adapting(AdapterFiles):
    """Which adapters there are, of which the first is used."""

    adapter_scale: Annotated[
        float | None,
        typer.Option(
            "--adapter-scale", metavar="X", rich_help_panel=PANEL,
            help="A factor of the first adapter's scale: 0 is the model without it. Without it: 1.",
        ),
    ] = None  # fmt: skip

    def loading(self) -> dict[str, Any]:
        if self.adapter_scale is not None and not self.adapter:
            raise UsageError("--adapter-scale needs an --adapter", "adapter_scale")
        return super().loading()

    @property
    def scale(self) -> float:
        return 1.0 if self.adapter_scale is None else self.adapter_scale

    def chosen(self) -> dict[str, Any]:
        """The option `adapter` of answers, if there is one. Raises UsageError."""
        first = next(iter(self.paths()), None)
        return {} if first is None else {"adapter": [(first, self.scale)]}


def _named(text: str) -> tuple[str, str]:
    """`name=folder`, or a folder (or hub id) whose last part is the name."""
    from ..weights.adapters.find import adapter_name

    name, equals, path = text.partition("=")
    if not equals or os.sep in name:
        name, path = adapter_name(text), text
    if not name.strip() or not path.strip():
        raise UsageError(f"--adapter {text}: give a folder, as name=folder", "adapter")
    return name.strip(), path


__all__ = ["PANEL", "AdapterFiles", "Adapting"]
