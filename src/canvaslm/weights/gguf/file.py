"""A GGUF checkpoint, memory-mapped: one file, or the parts of a split one seen as a whole.

Opening reads headers only, and imports no torch. `tensor(name)` gives a view of the packed bytes
without copying them; kernels may compute on that view, and `release(name)` hands its pages back when
they have made their own copy.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import warnings
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

from ...errors import BadModelFile, NotFound
from ..safetensors_.header import shown
from .header import (
    Array,
    GGUFHeader,
    GGUFInfo,
    Value,
    map_file,
    parse_header,
)

if TYPE_CHECKING:
    import torch

    from ...ops.formats.quant_tensor import QuantTensor

__all__ = ["Array", "GGUFFile", "GGUFInfo", "Value", "part_paths"]

_SPLIT_NAME = re.compile(r"(?P<stem>.+)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf")


def part_paths(path: Path) -> list[Path]:
    """All parts of the checkpoint that `path` (any one of them) belongs to; just
    `path` when it is not split."""
    match = _SPLIT_NAME.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    if not 1 <= int(match["no"]) <= count <= 1000:
        raise BadModelFile(f"{path}: its name says part {int(match['no'])} of {count}")
    return [path.with_name(f"{match['stem']}-{no:05d}-of-{count:05d}.gguf") for no in range(1, count + 1)]


class GGUFFile:
    """An open checkpoint. Use it as a context manager, or let views of its tensors keep it mapped.

    `metadata` holds plain values and `Array`s; `tensors` the tensor table in file order, `headers` those of
    the parts. Raises NotFound for a missing file or part, BadModelFile for a broken one.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.paths = part_paths(Path(path))
        missing = [part.name for part in self.paths if not part.exists()]
        if missing and len(self.paths) > 1:
            raise NotFound(
                f"{path}: the checkpoint is split, and these parts are missing: {', '.join(missing)}"
            )
        self._maps: list[mmap.mmap] = []
        self.headers: list[GGUFHeader] = []
        for part in self.paths:
            self._maps.append(map_file(part))
            self.headers.append(parse_header(part, self._maps[-1]))
        self._bytes: list[torch.Tensor | None] = [None] * len(self._maps)
        self.metadata: dict[str, Value] = self.headers[0].metadata
        self.tensors: dict[str, GGUFInfo] = {}
        self._part_of: dict[str, int] = {}
        self._join()

    @property
    def path(self) -> Path:
        """The file, or the first of its parts."""
        return self.paths[0]

    @property
    def size(self) -> int:
        """Bytes of all parts together."""
        return sum(header.size for header in self.headers)

    @property
    def version(self) -> int:
        return self.headers[0].version

    def tensor(self, name: str) -> QuantTensor:
        """The packed tensor, a view of the mapped file: never write to it. Raises
        BadModelFile if there is none, or the file has been cut short since it was opened."""
        from ...ops.formats.quant_tensor import QuantTensor

        info = self.info(name)
        self._check_size(self._part_of[name])
        return QuantTensor(info.format, info.shape, self._part(self._part_of[name])[info.start : info.end])

    def info(self, name: str) -> GGUFInfo:
        if name not in self.tensors:
            raise BadModelFile(f"{self.path}: tensor {shown(name)} is missing")
        return self.tensors[name]

    def raw_value(self, key: str) -> bytes:
        """A key's value as it stands in the file, type included: what `GGUFWriter` takes."""
        self._check_size(0)
        start, end = self.headers[0].spans[key]
        return self._maps[0][start:end]

    def raw_tensor(self, name: str) -> bytes:
        """A copy of a tensor's packed bytes, without torch: for small tables."""
        info = self.info(name)
        self._check_size(self._part_of[name])
        return self._maps[self._part_of[name]][info.start : info.end]

    def release(self, name: str, *, start: int = 0, stop: int | None = None, cache: bool = False) -> None:
        """Drops the pages of a tensor's bytes [start, stop) from this process, and with
        `cache` from the system's too.

        Views stay valid: touched again, pages come back from the file.
        """
        info, part = self.info(name), self._part_of[name]
        end = info.end if stop is None else info.start + stop
        first = -(-(info.start + start) // mmap.PAGESIZE) * mmap.PAGESIZE
        length = end // mmap.PAGESIZE * mmap.PAGESIZE - first
        if length <= 0 or not hasattr(mmap, "MADV_DONTNEED"):
            return
        self._maps[part].madvise(mmap.MADV_DONTNEED, first, length)
        if cache and hasattr(os, "posix_fadvise"):
            with self.paths[part].open("rb") as file:
                os.posix_fadvise(file.fileno(), first, length, os.POSIX_FADV_DONTNEED)

    def will_need(self, name: str, start: int, length: int) -> None:
        """Has the system read `length` bytes from byte `start` of a tensor on, while others are worked on."""
        first = (self.info(name).start + start) // mmap.PAGESIZE * mmap.PAGESIZE
        part = self._part_of[name]
        length = min(length, self.headers[part].size - first)
        if length > 0 and hasattr(mmap, "MADV_WILLNEED"):
            self._maps[part].madvise(mmap.MADV_WILLNEED, first, length)

    def close(self) -> None:
        """Unmaps the file, unless views of its tensors are still alive: then the last of them does."""
        self._bytes = [None] * len(self._maps)
        for buffer in self._maps:
            with contextlib.suppress(BufferError):
                buffer.close()

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @overload
    def text(self, key: str) -> str: ...
    @overload
    def text(self, key: str, default: None) -> str | None: ...
    @overload
    def text(self, key: str, default: str) -> str: ...
    def text(self, key: str, default: str | None = "") -> str | None:
        """A string of the metadata. Raises BadModelFile for another type."""
        value = self.metadata.get(key, default)
        if value is not None and not isinstance(value, str):
            raise self._wrong(key, "a string", value)
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number of the metadata. Raises BadModelFile when it is missing (and no
        default given) or not one."""
        value = self._required(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, "a whole number", value)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number of the metadata. Raises as `integer`."""
        value = self._required(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
            raise self._wrong(key, "a finite number", value)
        return float(value)

    def array(self, key: str) -> Array | None:
        """An array of the metadata, or None. Raises BadModelFile for a value that is not an array."""
        value = self.metadata.get(key)
        if value is not None and not isinstance(value, Array):
            raise self._wrong(key, "an array", value)
        return value

    def per_layer(self, key: str, layers: int) -> list[Any]:
        """An array with one entry a layer; a plain number stands for all layers."""
        value = self.metadata.get(key)
        if not isinstance(value, Array):
            return [self.integer(key)] * layers
        if len(value) != layers:
            raise BadModelFile(f"{self.path}: key {key!r} has {len(value)} entries for {layers} layers")
        return list(value.numbers())

    def plain(self, prefix: str) -> dict[str, int | float | bool | str | list[Any]]:
        """All keys that begin with `prefix`, arrays decoded into lists. Raises
        BadModelFile for text not in UTF-8."""
        found: dict[str, int | float | bool | str | list[Any]] = {}
        for key, value in self.metadata.items():
            if key.startswith(prefix):
                found[key] = value.items() if isinstance(value, Array) else value
        return found

    def _required(self, key: str, default: Value | None) -> Value:
        value = self.metadata.get(key, default)
        if value is None:
            raise BadModelFile(f"{self.path}: key {shown(key)} is missing")
        return value

    def _wrong(self, key: str, expected: str, value: Value) -> BadModelFile:
        found = "an array" if isinstance(value, Array) else shown(value)
        return BadModelFile(f"{self.path}: key {shown(key)} should be {expected}, found {found}")

    def _check_size(self, part: int) -> None:
        """To touch pages of a map that the file has no longer kills the process (SIGBUS). A file replaced by
        a rename is another one: the one that is mapped keeps its bytes."""
        if self._maps[part].size() < self.headers[part].size:
            raise BadModelFile(f"{self.paths[part]}: was cut short after it was opened; download it again")

    def _join(self) -> None:
        _check_split(self.headers)
        for part, header in enumerate(self.headers):
            for name, info in header.tensors.items():
                if name in self.tensors:
                    raise BadModelFile(f"{header.path}: tensor {shown(name)} is in an earlier part too")
                self.tensors[name], self._part_of[name] = info, part

    def _part(self, part: int) -> torch.Tensor:
        import numpy as np
        import torch

        whole = self._bytes[part]
        if whole is None:
            with warnings.catch_warnings():
                # The map is read-only, and torch warns that tensors cannot say so.
                warnings.simplefilter("ignore", UserWarning)
                # By way of numpy, whose array keeps the map from being closed under its views.
                whole = torch.from_numpy(np.frombuffer(self._maps[part], np.uint8))
            self._bytes[part] = whole
        return whole


def _check_split(headers: list[GGUFHeader]) -> None:
    """That the parts say of themselves what their names say."""
    for index, header in enumerate(headers):
        count = header.metadata.get("split.count", len(headers))
        number = header.metadata.get("split.no", index)
        if count not in (len(headers), 0) or number != index:
            raise BadModelFile(
                f"{header.path}: says it is part {_one_up(number)} of {shown(count)}, "
                f"its name says {index + 1} of "
                f"{len(headers)}; parts must keep the names NAME-00001-of-0000N.gguf"
            )
    expected = headers[0].metadata.get("split.tensors.count")
    found = sum(len(header.tensors) for header in headers)
    if expected is not None and expected != found:
        raise BadModelFile(
            f"{headers[0].path}: the parts hold {found} tensors, {shown(expected)} were announced"
        )


def _one_up(number: Value) -> str:
    return str(number + 1) if isinstance(number, int) else shown(number)
