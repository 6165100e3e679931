"""A checkpoint as a folder in the making: complete before any of it stands under the name it was given."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..files import check_output, check_output_folder, written_as
from .resolve import INDEX

_OFTEN = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


@contextmanager
def new_folder(out: Path, *, force: bool) -> Iterator[Path]:
    """`with new_folder(out, force=...) as made`: a folder beside `out` whose files move there when the block
    has succeeded, and which is removed when it has not. Weights of an earlier model go, other files stay.

    Raises UsageError as `files.check_output_folder`, and as `files.check_output` of each file to be replaced;
    WriteFailed, naming `out`, where the disk is full.
    """
    check_output_folder(out, force=force)
    if out.is_dir():  # before the work; `_move` looks again
        for path in (*(out / name for name in _OFTEN), *_weights(out)):
            check_output(path, force=True)
    with written_as(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name[:50]}.") as name:
            yield Path(name)
            _move(Path(name), out)


def _weights(folder: Path) -> list[Path]:
    """The weights and their index in a folder, by name."""
    return [
        path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.name == INDEX or (path.name.startswith("model") and path.suffix == ".safetensors")
    ]


def _move(made: Path, out: Path) -> None:
    """Puts the finished files in place and takes away weights of an earlier model that no longer belong."""
    out.mkdir(exist_ok=True)
    names = sorted(path.name for path in made.iterdir())
    for path in (*(out / name for name in names), *_weights(out)):
        check_output(path, force=True)
    for path in _weights(out):
        if path.name not in names:
            path.unlink()
    for name in names:
        (made / name).replace(out / name)


__all__ = ["new_folder"]
