"""Writes GGUF files as a stream: header first from a plan, then each tensor's bytes as they come.

The file grows under a temporary name beside its final one and is renamed when every planned byte is there, so
a crash, a full disk or Ctrl-C never leaves a half-written model under the name the user gave.

Format: ggml's `docs/gguf.md`, version 3, little endian, alignment 32.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from ...errors import UsageError
from ...files import atomic, check_output
from ...ops.formats.table import FORMATS
from ..loading.memory import gigabytes

__all__ = [
    "ALIGNMENT",
    "GGUFWriter",
    "PlannedTensor",
    "bools",
    "check_disk",
    "check_target",
    "f32",
    "f32s",
    "flag",
    "header_bytes",
    "i32s",
    "planned_size",
    "string",
    "strings",
    "u32",
]

ALIGNMENT = 32


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written: GGUF name, shape in torch order, format."""

    name: str
    shape: tuple[int, ...]
    format: str

    @property
    def nbytes(self) -> int:
        return FORMATS[self.format].tensor_bytes(self.shape)


# Encoders of metadata values: the value's type, then the value, as the file holds them.


def u32(value: int) -> bytes:
    return struct.pack("<II", 4, value)


def f32(value: float) -> bytes:
    return struct.pack("<If", 6, value)


def flag(value: bool) -> bytes:
    return struct.pack("<IB", 7, value)


def string(value: str) -> bytes:
    return struct.pack("<I", 8) + _text(value)


def strings(values: Sequence[str]) -> bytes:
    return _array(8, len(values)) + b"".join(map(_text, values))


def i32s(values: Sequence[int]) -> bytes:
    return _array(5, len(values)) + np.asarray(values, "<i4").tobytes()


def f32s(values: Sequence[float]) -> bytes:
    return _array(6, len(values)) + np.asarray(values, "<f4").tobytes()


def bools(values: Sequence[bool]) -> bytes:
    return _array(7, len(values)) + bytes(map(bool, values))


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _array(kind: int, count: int) -> bytes:
    return struct.pack("<IIQ", 9, kind, count)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def header_bytes(metadata: Mapping[str, bytes], tensors: Sequence[PlannedTensor]) -> bytes:
    """Everything before the tensor data, padded to the alignment."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_text(key), value]
    offset = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]
        parts.append(_text(tensor.name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
        parts.append(struct.pack("<IQ", FORMATS[tensor.format].type_id, offset))
        offset += _aligned(tensor.nbytes)
    raw = b"".join(parts)
    return raw + bytes(_aligned(len(raw)) - len(raw))


def planned_size(metadata: Mapping[str, bytes], tensors: Sequence[PlannedTensor]) -> int:
    """Bytes of the file that such a plan makes."""
    return len(header_bytes(metadata, tensors)) + sum(_aligned(tensor.nbytes) for tensor in tensors)


def check_target(path: Path, size: int, *, force: bool, sources: Iterable[Path] = ()) -> None:
    """Raises UsageError as `files.check_output` does, and where `size` bytes do not fit."""
    check_output(path, force=force, sources=sources)
    check_disk(path, size)


def check_disk(path: Path, size: int) -> None:
    """Raises UsageError when `size` bytes do not fit beside `path`."""
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise UsageError(
            f"{path}: would take {gigabytes(size)}, and only {gigabytes(free)} are free on that disk",
            param="out",
        )


class GGUFWriter:
    """Use as a context manager: `write` the bytes of each planned tensor in order; the
    file appears at the end.

    Raises UsageError before writing anything as `check_target` does, WriteFailed as `files.atomic` does;
    ValueError when the bytes written are not those planned (a bug in the caller).
    """

    def __init__(
        self,
        path: Path,
        metadata: Mapping[str, bytes],
        tensors: Sequence[PlannedTensor],
        *,
        force: bool = False,
        sources: Iterable[Path] = (),
    ) -> None:
        self.path, self.tensors = path, list(tensors)
        self.size = planned_size(metadata, tensors)
        check_target(path, self.size, force=force, sources=sources)
        self._head = header_bytes(metadata, tensors)
        self._index, self._left = 0, self.tensors[0].nbytes if self.tensors else 0

    def __enter__(self) -> GGUFWriter:
        with ExitStack() as stack:
            self._file = stack.enter_context(atomic(self.path))
            self._file.write(self._head)
            self._opened = stack.pop_all()
        return self

    def write(self, piece: bytes | memoryview) -> None:
        """The next bytes of the tensor in turn; the writer pads between tensors. A piece never spans two."""
        view = memoryview(piece).cast("B")
        if self._index >= len(self.tensors) or len(view) > self._left:
            raise ValueError(f"{self.path}: more bytes than planned for tensor number {self._index}")
        self._file.write(view)
        self._left -= len(view)
        if self._left == 0:
            self._next()

    def _next(self) -> None:
        nbytes = self.tensors[self._index].nbytes
        self._file.write(bytes(_aligned(nbytes) - nbytes))
        self._index += 1
        if self._index < len(self.tensors):
            self._left = self.tensors[self._index].nbytes

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._opened.__exit__(kind, error, trace)
            return
        with self._opened:
            if self._index != len(self.tensors):
                raise ValueError(f"{self.path}: tensor {self.tensors[self._index].name} is incomplete")
