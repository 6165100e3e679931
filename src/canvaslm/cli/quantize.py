"""`canvaslm quantize IN OUT TYPE`: a GGUF file of fewer bits, and what that changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..weights.gguf.quantize import TensorReport, Written

# A model of no more tensors than this is listed whole without --all.
_LISTED = 60


def command(
    model: Annotated[str, typer.Argument(metavar="IN", help="A .gguf file, a folder, or a hub id.")],
    out: Annotated[Path, typer.Argument(help="The .gguf file to write.")],
    type: Annotated[str, typer.Argument(help="BF16, F16, Q8_0, Q6_K, Q5_K_M, Q4_K_M or Q4_0.")],
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it is there.")] = False,
    every: Annotated[bool, typer.Option("--all", help="List every tensor, not kinds of tensors.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Pack a model's weights into fewer bits, and report the error of every tensor.

    Examples:
      canvaslm quantize demo demo-q8.gguf Q8_0
      canvaslm quantize org/name model.gguf Q4_K_M
    """
    write_and_report(model, out, type.upper(), force=force, every=every, json=json)


def write_and_report(
    model: str, out: Path, kind: str | None, *, force: bool, every: bool, json: bool
) -> None:
    """Writes the GGUF file with a progress bar and prints what became of the
    tensors. `kind` None: as stored."""
    from ..errors import UsageError
    from ..weights.gguf.quantize import FILE_TYPES, write_gguf
    from ..weights.gguf.source import open_source

    if kind is not None and kind not in FILE_TYPES:
        raise UsageError(f"type {kind!r} is not written; known: {', '.join(FILE_TYPES)}", param="type")
    source = open_source(model)
    with progress_bar("packing") as progress:
        written = write_gguf(source, out, kind or source.stored_type, force=force, progress=progress)
    notes = [*source.notes, *_notes(source.stored_type, written)]
    if json:
        _print_json(written, notes)
    else:
        _print_table(written, notes, every)


@contextmanager
def progress_bar(word: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error, for `progress(tensor name, bytes done, bytes in all)`."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(word),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=None)

        def report(name: str, done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total, description=name)

        yield report


def _notes(stored: str, written: Written) -> list[str]:
    from ..ops.formats.table import FORMATS

    if FORMATS[stored].block > 1 and any(t.error > 0 for t in written.tensors):
        return [
            f"the source was quantised ({stored}) already: its errors add to those shown; "
            "start from BF16 if you can"
        ]
    return []


def _print_json(written: Written, notes: list[str]) -> None:
    import json

    tensors = [
        {"name": t.name, "shape": t.shape, "format": t.format, "bytes": t.nbytes, "relative_rmse": t.error}
        for t in written.tensors
    ]
    document = {
        "out": str(written.path),
        "type": written.kind,
        "bytes": written.size,
        "bits_per_weight": written.bits_per_weight,
        "relative_rmse": written.error,
        "tensors": tensors,
        "notes": notes,
    }
    print(json.dumps(document, indent=2))


def _print_table(written: Written, notes: list[str], every: bool) -> None:
    import sys

    from rich.console import Console
    from rich.table import Table

    from ..weights.loading.memory import gigabytes

    each = every or len(written.tensors) <= _LISTED
    table = Table("tensor", "format", "size", "error", "" if each else "worst", box=None)
    for group in [[t] for t in written.tensors] if each else _groups(written):
        table.add_row(*_row(group, each))
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    console.print(
        f"{written.path}: {written.kind}, {gigabytes(written.size)}, "
        f"{written.bits_per_weight:.2f} bits a weight, "
        f"relative error {written.error:.3%}",
        highlight=False,
    )
    for note in notes:
        console.print(f"note: {note}", highlight=False)


def _groups(written: Written) -> list[list[TensorReport]]:
    """Tensors of one name and format in all layers together."""
    groups: dict[tuple[str, str], list[TensorReport]] = {}
    for tensor in written.tensors:
        groups.setdefault((_kind(tensor), tensor.format), []).append(tensor)
    return list(groups.values())


def _kind(tensor: TensorReport) -> str:
    """The name without the layer's number."""
    parts = tensor.name.split(".", 2)
    return f"blk.*.{parts[2]}" if parts[0] == "blk" else tensor.name


def _row(group: list[TensorReport], each: bool) -> tuple[str, ...]:
    from ..weights.loading.memory import gigabytes

    first, worst = group[0], max(group, key=lambda t: t.error)
    mean = sum(t.error for t in group) / len(group)
    size = gigabytes(sum(t.nbytes for t in group))
    name = first.name if len(group) == 1 else f"{_kind(first)} x {len(group)}"
    return name, first.format, size, f"{mean:.3%}", "" if each else f"{worst.error:.3%}"


__all__ = ["command", "progress_bar", "write_and_report"]
