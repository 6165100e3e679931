"""Writes the packed file of a GGUF file: a weight at a time, under a temporary name until it is complete.

The loader's own code decides what is packed and how: it is run once with a packer that only notes what is
asked for, so that the header can be written, and once with one that packs into a buffer and writes it out.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from ...errors import BadModelFile, UsageError
from ...files import atomic
from ...model.config import ModelConfig
from ...ops import cpu
from ...ops.cpu.repacked import BorrowedMemory, RepackedExperts, RepackedMatrix, repacked_bytes
from ...ops.cpu.repacker import Repacker
from ..gguf.fields import read_gguf_config
from ..gguf.file import GGUFFile
from ..gguf.fill import FileRepacker, Filler, RepackPlan, table_names
from ..gguf.places import Places, place_weights
from ..gguf.write import check_target
from ..loading.empty import empty_model
from .file import (
    ALIGN_DATA,
    FORMAT,
    LAYOUT,
    Unusable,
    add_to_digest,
    fingerprint,
    packed_path,
    sampled,
)

# progress(weight, bytes written, bytes in all)
Report = Callable[[str, int, int], None]
_PIECE = 64 << 20


@dataclass(frozen=True)
class WrittenPacked:
    """A packed file of `model` (the first part of a split one): its size, and the number of weights in it."""

    model: Path
    path: Path
    size: int
    weights: int


def write_packed(
    model: Path, out: Path | None = None, *, force: bool = False, progress: Report | None = None
) -> WrittenPacked:
    """Packs a GGUF file for this machine's kernels, into `out` or beside it, where loading finds it.

    Peak memory: the largest weight, packed, and a stretch of the file. Raises UsageError without native
    kernels, for a file without quantised weights, for a target that is taken (unless `force`) or cannot be
    written, and where the disk is too full; NotFound and BadModelFile as loading does.
    """
    if not cpu.available():
        raise UsageError(f"packing needs the native kernels. {' '.join(cpu.notes()) or cpu.problem()}")
    with GGUFFile(model) as file:
        path = packed_path(file.path) if out is None else out
        config = read_gguf_config(file)
        places = place_weights(file, config)
        plan = RepackPlan()
        _fill(file, config, places, plan)
        if not plan.weights:
            raise UsageError(
                f"{model}: holds no quantised weights, nothing in it would be packed", param="model"
            )
        source = _fingerprint(file)
        head = _header(plan, source, "0" * 64)
        size = len(head) + plan.nbytes
        _check_writable(path)
        check_target(path, size, force=force, sources=file.paths)
        with atomic(path) as stream:
            stream.write(head)
            writer = _Writer(file, table_names(places), plan, stream, progress)
            _fill(file, config, places, writer)
            stream.seek(0)
            stream.write(_header(plan, source, writer.digest.hexdigest()))
    return WrittenPacked(file.path, path, size, len(plan.weights))


def _fill(file: GGUFFile, config: ModelConfig, places: Places, repacker: Repacker) -> None:
    Filler(file, places, empty_model(config, file.path), torch.device("cpu"), repacker).matrices()


def _fingerprint(file: GGUFFile) -> str:
    try:
        return fingerprint(file)
    except Unusable as problem:
        raise BadModelFile(f"{file.path}: {problem}") from problem


def _check_writable(path: Path) -> None:
    if path.parent.is_dir() and not os.access(path.parent, os.W_OK):
        raise UsageError(
            f"{path.parent}: cannot be written to. Loading looks beside the model, by the name it is given: "
            "link the "
            "model into a folder of yours and pack the link, or write elsewhere with -o",
            param="out",
        )


def _header(plan: RepackPlan, source: str, data: str) -> bytes:
    """Of the whole file; its length does not depend on the two digests."""
    said = {"format": FORMAT, "layout": LAYOUT, "source": source, "data": data}
    entries: dict[str, object] = {
        "__metadata__": said | {name: kind for name, (kind, _) in plan.weights.items()}
    }
    offset = 0
    for name, (_, nbytes) in plan.weights.items():
        span = [offset, offset + nbytes]
        entries[name] = {"dtype": "U8", "shape": [nbytes], "data_offsets": span}
        offset += nbytes
    raw = json.dumps(entries, separators=(",", ":")).encode()
    raw += b" " * (-(8 + len(raw)) % ALIGN_DATA)
    return len(raw).to_bytes(8, "little") + raw


class _Writer(FileRepacker):
    """Packs each weight into one buffer, and writes that out."""

    def __init__(
        self,
        file: GGUFFile,
        tables: frozenset[str],
        plan: RepackPlan,
        stream: IO[bytes],
        progress: Report | None,
    ) -> None:
        super().__init__(file, drop=True, tables=tables)
        largest = max(nbytes for _, nbytes in plan.weights.values())
        self._buffer = torch.empty(largest, dtype=torch.uint8)
        self._plan, self._stream, self._progress = plan, stream, progress
        self._done, self._total = 0, plan.nbytes
        self.digest = hashlib.sha256()

    def memory(self, name: str, kind: str, shape: tuple[int, ...]) -> BorrowedMemory:
        return BorrowedMemory(self._buffer.data_ptr(), repacked_bytes(kind, shape), self._buffer)

    def finish(self, name: str, made: RepackedMatrix | RepackedExperts, repack: Callable[[], None]) -> None:
        repack()
        buffer: Any = self._buffer.numpy()
        whole = memoryview(buffer)[: made.nbytes]
        pieces = (whole[start:stop] for start, stop in sampled(0, made.nbytes))
        add_to_digest(self.digest, name, self._plan.weights[name][0], pieces)
        for start in range(0, made.nbytes, _PIECE):
            piece = whole[start : start + _PIECE]
            self._stream.write(piece)
            self._done += len(piece)
            if self._progress is not None:
                self._progress(name, self._done, self._total)


__all__ = ["Report", "WrittenPacked", "write_packed"]
