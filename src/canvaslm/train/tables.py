"""Rows of a data file, with the place that each came from: JSONL, JSON, CSV, Parquet, folders of these, and
datasets of the hub."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import NotFound, UsageError

_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
# What a split may be called, as file names begin.
_SPLITS = {"train": ("train",), "valid": ("valid", "validation", "val", "dev"), "test": ("test",)}
_HUB = "hf:"
_LONGEST_CELL = 1 << 30  # characters; the csv module's own limit, 128 KiB, is less than a long chat


@dataclass(frozen=True)
class TableRow:
    """One row, and where it stands, for messages: `chats.jsonl:12`."""

    where: str
    values: dict[str, Any]


def read_table(source: str | Path, *, split: str = "train") -> Iterator[TableRow]:
    """The rows of a file; of the files of a folder whose names begin like the split; or of a dataset of the
    hub, `hf:name` or `hf:name:split`.

    Raises NotFound where nothing is there, UsageError with file and line for what cannot be read.
    """
    name = str(source)
    if name.startswith(_HUB):
        yield from _hub(name.removeprefix(_HUB), split)
        return
    path = Path(source)
    if path.is_dir():
        for file in files_of(path, split):
            yield from _file(file)
    else:
        yield from _file(path)


def files_of(folder: Path, split: str) -> list[Path]:
    """Data files of one split in a folder. Raises NotFound without any."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _ENDINGS)
    found = [file for file in files if file.stem.lower().startswith(_SPLITS[split])]
    if not found:
        there = ", ".join(file.name for file in files[:8]) or "no data files"
        raise NotFound(
            f"data: {folder} has no file whose name begins with {' or '.join(_SPLITS[split])} and ends in "
            f"{', '.join(_ENDINGS)}; there is: {there}"
        )
    return found


def has_split(source: str | Path, split: str) -> bool:
    """Whether a folder has files of a split."""
    path = Path(source)
    if str(source).startswith(_HUB) or not path.is_dir():
        return False
    try:
        return bool(files_of(path, split))
    except NotFound:
        return False


def _file(path: Path) -> Iterator[TableRow]:
    if not path.is_file():
        raise NotFound(f"data: {path}: no such file")
    kind = path.suffix.lower()
    if kind not in _ENDINGS:
        raise UsageError(f"data: {path}: should end in one of {', '.join(_ENDINGS)}", param="data")
    if kind == ".parquet":
        yield from _parquet(path)
        return
    try:
        reader = {".json": _json, ".csv": _csv}.get(kind, _jsonl)
        yield from reader(path)
    except OSError as error:
        raise UsageError(f"data: {path}: cannot be read ({error.strerror})", param="data") from error


def _jsonl(path: Path) -> Iterator[TableRow]:
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            where = f"{path}:{number}"
            line = _text(raw, where, first=number == 1)
            if line.strip():
                yield TableRow(where, _object(_parsed(line, where), where))


def _json(path: Path) -> Iterator[TableRow]:
    found = _parsed(_whole(path), str(path))
    if isinstance(found, dict):
        lists = [value for value in found.values() if isinstance(value, list)]
        if len(lists) == 1:
            found = lists[0]
    if not isinstance(found, list):
        raise UsageError(
            f'data: {path}: should be a list of objects, or an object with one list, as {{"data": [...]}}',
            param="data",
        )
    for index, value in enumerate(found):
        where = f"{path}[{index}]"
        yield TableRow(where, _object(value, where))


def _csv(path: Path) -> Iterator[TableRow]:
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.DictReader(io.StringIO(_whole(path), newline=""), restkey="")
    try:
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if "" in row or None in row.values():
                raise UsageError(
                    f"data: {where}: has not as many cells as the first line has names", param="data"
                )
            yield TableRow(where, row)
    except csv.Error as error:
        raise UsageError(f"data: {path}:{reader.line_num + 1}: not CSV: {error}", param="data") from error


def _whole(path: Path) -> str:
    """A file's text. Raises UsageError with the line that is no UTF-8."""
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n")
        return _text(raw.split(b"\n")[line], f"{path}:{line + 1}", first=not line)


def _text(raw: bytes, where: str, *, first: bool) -> str:
    """A line's text; a mark of byte order, as editors on Windows write, is skipped."""
    try:
        return raw.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"data: {where}: not UTF-8 at byte {error.start} of the line (0x{raw[error.start]:02x}); save "
            "the file as UTF-8",
            param="data",
        ) from error


def _parquet(path: Path) -> Iterator[TableRow]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(
            f"data: {path}: Parquet files need pyarrow; pip install 'canvaslm[finetune]'", param="data"
        ) from error
    try:
        table = pyarrow.parquet.ParquetFile(path)
        start = 0
        for batch in table.iter_batches(1024):
            for index, values in enumerate(batch.to_pylist(), start):
                yield TableRow(f"{path}[{index}]", values)
            start += len(batch)
    except (OSError, pyarrow.ArrowException) as error:
        raise UsageError(f"data: {path}: not a Parquet file ({error})", param="data") from error


def _hub(name: str, split: str) -> Iterator[TableRow]:
    name, _, named = name.partition(":")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UsageError(
            f"data: hf:{name}: needs the datasets package; pip install 'canvaslm[finetune]'", param="data"
        ) from error
    try:
        rows = load_dataset(name, split=named or split)
    except Exception as error:  # it raises a dozen kinds, of its own and of what it stands on
        raise NotFound(f"data: hf:{name}: cannot be loaded ({str(error).splitlines()[0]})") from error
    for index, values in enumerate(rows):
        yield TableRow(f"hf:{name}[{index}]", dict(values))


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise UsageError(f"data: {where}: is nested too deeply", param="data") from error
    except json.JSONDecodeError as error:
        at = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise UsageError(f"data: {where}: not JSON at {at}: {error.msg}", param="data") from error


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(
            f"data: {where}: should be an object with columns, found {type(value).__name__}", param="data"
        )
    return value


__all__ = ["TableRow", "files_of", "has_split", "read_table"]
