"""The header of one GGUF file: metadata and tensor table, every number checked against the file's real size.

Nothing a header says is believed: counts, lengths, offsets, dimensions and types are compared with the bytes
there are before anything of that size is made, so a hostile file costs no more memory than it has bytes.
Arrays (a vocabulary of 262,144 strings) are stepped over while parsing and decoded when asked for. Every
refusal is a `BadModelFile` that names the file, the key or tensor, and the byte offset.

Format: ggml's `docs/gguf.md`, versions 2 and 3, little endian. Torch-free.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ...errors import BadModelFile, NotFound
from ...ops.formats.table import GGML_TYPE_NAMES, format_by_id
from ..safetensors_.header import shown

__all__ = ["Array", "GGUFHeader", "GGUFInfo", "Value", "map_file", "parse_header"]

# Far above any real file, low enough that a hostile one costs little.
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_NAME = 1 << 10
MAX_STRING = 16 << 20
MAX_ITEMS = 1 << 24

_STRING, _ARRAY, _BOOL = 8, 9, 7
# GGUF value type -> struct code and numpy dtype.
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRUCTS = {kind: struct.Struct(code) for kind, code in _SCALARS.items()}
_LENGTH = struct.Struct("<Q").unpack_from


@dataclass(frozen=True)
class Array:
    """An array of the metadata, still in the file: `count` items of GGUF type `kind` from byte `start` on."""

    where: str  # "file: key 'x'", for messages
    kind: int
    count: int
    start: int
    buffer: mmap.mmap

    def __len__(self) -> int:
        return self.count

    def items(self) -> list[Any]:
        """All items, whatever their type."""
        return self.strings() if self.kind == _STRING else list(self.numbers())

    def strings(self) -> list[str]:
        """Items of an array of strings. Raises BadModelFile when it is of numbers, or not UTF-8."""
        if self.kind != _STRING:
            raise BadModelFile(f"{self.where}: expected an array of strings")
        out, at, index = [], self.start, 0
        try:
            for index in range(self.count):  # noqa: B007  # the message needs the index
                end = at + 8 + _LENGTH(self.buffer, at)[0]
                out.append(self.buffer[at + 8 : end].decode())
                at = end
        except UnicodeDecodeError:
            raise BadModelFile(f"{self.where}: item {index} at byte {at + 8} is not UTF-8") from None
        return out

    def find(self, text: str) -> int | None:
        """The place of an item in an array of strings, or None; without decoding the others."""
        raw = text.encode()
        found = (
            self.buffer.find(len(raw).to_bytes(8, "little") + raw, self.start) if self.kind == _STRING else -1
        )
        at, length = self.start, _LENGTH
        for index in range(self.count if found >= 0 else 0):
            if at >= found:
                # Past it: the bytes were part of another item.
                return index if at == found else self._find_slowly(text)
            at += 8 + length(self.buffer, at)[0]
        return None

    def _find_slowly(self, text: str) -> int | None:
        strings = self.strings()
        return strings.index(text) if text in strings else None

    def numbers(self) -> list[int] | list[float] | list[bool]:
        """Items of an array of numbers or booleans. Raises BadModelFile when it is of strings."""
        if self.kind == _STRING:
            raise BadModelFile(f"{self.where}: expected an array of numbers")
        values = np.frombuffer(self.buffer, _SCALARS[self.kind], self.count, self.start)
        if self.kind == _BOOL:
            values = values != 0
        return values.tolist()  # type: ignore[no-any-return]


Value = int | float | bool | str | Array


@dataclass(frozen=True)
class GGUFInfo:
    """Where a tensor lies. `shape` in torch order (GGUF's reversed); `start` counts
    from the file's first byte."""

    name: str
    format: str
    shape: tuple[int, ...]
    start: int
    nbytes: int

    @property
    def end(self) -> int:
        return self.start + self.nbytes


@dataclass(frozen=True)
class GGUFHeader:
    """What the front of one file says, checked. `data_start` is where tensor data begins.

    `spans` are the bytes of each key's value, its type included, for copying it unchanged into another file.
    """

    path: Path
    version: int
    metadata: dict[str, Value]
    spans: dict[str, tuple[int, int]]
    tensors: dict[str, GGUFInfo]
    data_start: int
    size: int


def map_file(path: Path) -> mmap.mmap:
    """The file, mapped read-only. Raises NotFound, or BadModelFile for what is not a GGUF file at all."""
    if not path.exists():
        raise NotFound(f"{path}: no such file")
    if not path.is_file():
        raise BadModelFile(f"{path}: not a regular file")
    size = path.stat().st_size
    if size < 24:
        raise BadModelFile(f"{path}: {size} bytes are too few for a GGUF header (24); download it again")
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def parse_header(path: Path, buffer: mmap.mmap) -> GGUFHeader:
    """Reads and checks the header. Raises BadModelFile for anything broken, hostile or not supported."""
    cursor = _Cursor(path, buffer)
    version = _version(cursor)
    tensor_count, key_count = cursor.number(10, "tensor count"), cursor.number(10, "key count")
    # The smallest key-value pair takes 8 + 1 + 4 + 1 bytes, the smallest tensor entry 8 + 1 + 4 + 8 + 4 + 8.
    cursor.check_count("keys", int(key_count), MAX_KEYS, 14)
    cursor.check_count("tensors", int(tensor_count), MAX_TENSORS, 33)
    metadata, spans = _metadata(cursor, int(key_count))
    entries = [_tensor_entry(cursor) for _ in range(int(tensor_count))]
    alignment = _alignment(cursor, metadata)
    data_start = -(-cursor.at // alignment) * alignment
    tensors = _place(cursor, entries, data_start, alignment)
    return GGUFHeader(path, version, metadata, spans, tensors, data_start, len(buffer))


class _Cursor:
    """A position in the mapped file that refuses to run past its end."""

    def __init__(self, path: Path, buffer: mmap.mmap) -> None:
        self.path, self.buffer, self.size, self.at = path, buffer, len(buffer), 0

    def refuse(self, problem: str, at: int | None = None) -> NoReturn:
        raise BadModelFile(f"{self.path}: byte {self.at if at is None else at}: {problem}")

    def need(self, count: int, what: str) -> None:
        if count > self.size - self.at:
            self.refuse(
                f"{what} needs {count} bytes, the file has {self.size - self.at} left: truncated or lying; "
                "download it again"
            )

    def check_count(self, what: str, count: int, most: int, smallest: int) -> None:
        """Refuses a number of things that is absurd, or that the rest of the file cannot hold."""
        if count > most:
            self.refuse(f"{count} {what} is more than canvaslm accepts ({most})")
        self.need(count * smallest, f"a list of {count} {what}")

    def number(self, kind: int, what: str) -> int | float:
        code = _STRUCTS[kind]
        self.need(code.size, what)
        (value,) = code.unpack_from(self.buffer, self.at)
        self.at += code.size
        return value  # type: ignore[no-any-return]

    def text(self, what: str, most: int) -> str:
        start = self.at
        length = int(self.number(10, f"the length of {what}"))
        if length > most:
            self.refuse(f"{what} has a length of {length}; at most {most} is accepted", start)
        self.need(length, what)
        raw = self.buffer[self.at : self.at + length]
        self.at += length
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.refuse(f"{what} is not UTF-8", start)


def _version(cursor: _Cursor) -> int:
    magic, version = cursor.buffer[:4], int.from_bytes(cursor.buffer[4:8], "little")
    if magic != b"GGUF":
        cursor.refuse(f"not a GGUF file: it begins with {magic!r}")
    if version & 0xFFFF == 0 and version:
        cursor.refuse("a big-endian GGUF file; canvaslm reads little-endian ones", 4)
    if version not in (2, 3):
        cursor.refuse(f"GGUF version {version} is not supported (2 and 3 are)", 4)
    cursor.at = 8
    return version


def _metadata(cursor: _Cursor, count: int) -> tuple[dict[str, Value], dict[str, tuple[int, int]]]:
    metadata: dict[str, Value] = {}
    spans: dict[str, tuple[int, int]] = {}
    for index in range(count):
        start = cursor.at
        key = cursor.text(f"the name of key {index}", MAX_NAME)
        if key in metadata:
            cursor.refuse(f"key {shown(key)} appears twice", start)
        begin = cursor.at
        metadata[key] = _value(cursor, key)
        spans[key] = (begin, cursor.at)
    return metadata, spans


def _value(cursor: _Cursor, key: str) -> Value:
    what = f"key {shown(key)}"
    start = cursor.at
    kind = int(cursor.number(4, f"the type of {what}"))
    if kind == _STRING:
        return cursor.text(what, MAX_STRING)
    if kind == _ARRAY:
        return _array(cursor, what)
    if kind not in _SCALARS:
        cursor.refuse(f"{what} has the unknown value type {kind}", start)
    value = cursor.number(kind, what)
    return bool(value) if kind == _BOOL else value


def _array(cursor: _Cursor, what: str) -> Array:
    start = cursor.at
    kind = int(cursor.number(4, f"the item type of {what}"))
    count = int(cursor.number(10, f"the length of {what}"))
    if kind == _ARRAY:
        cursor.refuse(f"{what} is an array of arrays, which no model needs", start)
    if kind != _STRING and kind not in _SCALARS:
        cursor.refuse(f"{what} is an array of the unknown type {kind}", start)
    cursor.check_count(f"items of {what}", count, MAX_ITEMS, 8 if kind == _STRING else _STRUCTS[kind].size)
    array = Array(f"{cursor.path}: {what}", kind, count, cursor.at, cursor.buffer)
    if kind == _STRING:
        cursor.at = _skip_strings(cursor, what, count)
    else:
        cursor.at += count * _STRUCTS[kind].size
    return array


def _skip_strings(cursor: _Cursor, what: str, count: int) -> int:
    """The byte after `count` strings. One tight loop: a real vocabulary has 777,000 of them."""
    at, buffer, length = cursor.at, cursor.buffer, _LENGTH
    limit = cursor.size - 8
    for index in range(count):
        if at > limit:
            cursor.refuse(
                f"{what}: item {index} of {count} lies beyond the end of the file: truncated or lying", at
            )
        at += 8 + length(buffer, at)[0]
    if at > cursor.size:
        cursor.refuse(f"{what}: its last item runs beyond the end of the file: truncated or lying", at)
    return at


@dataclass(frozen=True)
class _Entry:
    name: str
    at: int
    dims: tuple[int, ...]
    type_id: int
    offset: int


def _tensor_entry(cursor: _Cursor) -> _Entry:
    at = cursor.at
    name = cursor.text("the name of a tensor", MAX_NAME)
    if not name:
        cursor.refuse("a tensor has no name", at)
    count = int(cursor.number(4, f"tensor {shown(name)}"))
    if not 1 <= count <= 4:
        cursor.refuse(f"tensor {shown(name)} has {count} dimensions; 1 to 4 are allowed", at)
    dims = tuple(int(cursor.number(10, f"tensor {shown(name)}")) for _ in range(count))
    type_id = int(cursor.number(4, f"tensor {shown(name)}"))
    return _Entry(name, at, dims, type_id, int(cursor.number(10, f"tensor {shown(name)}")))


def _alignment(cursor: _Cursor, metadata: dict[str, Value]) -> int:
    value = metadata.get("general.alignment", 32)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0 or value & (value - 1):
        shown_value = value if isinstance(value, int | float) else type(value).__name__
        cursor.refuse(f"key 'general.alignment' is {shown_value}; it must be a power of two")
    return value


def _place(cursor: _Cursor, entries: list[_Entry], base: int, alignment: int) -> dict[str, GGUFInfo]:
    """Checks every entry on its own, then that no two share a byte."""
    tensors: dict[str, GGUFInfo] = {}
    for entry in entries:
        if entry.name in tensors:
            cursor.refuse(f"tensor {shown(entry.name)} appears twice", entry.at)
        tensors[entry.name] = _tensor_info(cursor, entry, base, alignment)
    for before, after in _neighbours(tensors):
        if after.start < before.end:
            cursor.refuse(
                f"tensors {shown(before.name)} (bytes {before.start} to {before.end}) and "
                f"{shown(after.name)} "
                f"overlap: the file lies about one of them",
                after.start,
            )
    return tensors


def _neighbours(tensors: dict[str, GGUFInfo]) -> Iterator[tuple[GGUFInfo, GGUFInfo]]:
    ordered = sorted(tensors.values(), key=lambda info: info.start)
    return pairwise(ordered)


def _tensor_info(cursor: _Cursor, entry: _Entry, base: int, alignment: int) -> GGUFInfo:
    what, at = f"tensor {shown(entry.name)}", entry.at
    layout = format_by_id(entry.type_id)
    if layout is None:
        known = GGML_TYPE_NAMES.get(entry.type_id)
        name = f"{known} (ggml type {entry.type_id})" if known else f"the unknown ggml type {entry.type_id}"
        cursor.refuse(
            f"{what} is stored as {name}, which canvaslm does not read; use another quantisation", at
        )
    # Python's integers do not overflow; the file's size bounds what is accepted.
    if min(entry.dims) < 1:
        cursor.refuse(f"{what} has a dimension of zero: {list(entry.dims)}", at)
    if not layout.fits(entry.dims[0]):
        cursor.refuse(
            f"{what}: rows of {entry.dims[0]} values do not divide into {layout.name} blocks of "
            f"{layout.block}",
            at,
        )
    nbytes = math.prod(entry.dims) // layout.block * layout.size
    if entry.offset % alignment:
        cursor.refuse(
            f"{what} begins at offset {entry.offset}, not a multiple of the alignment {alignment}", at
        )
    start = base + entry.offset
    if start + nbytes > cursor.size:
        cursor.refuse(
            f"{what} of {nbytes} bytes at byte {start} ends beyond the file's {cursor.size} bytes: "
            "truncated or lying; "
            "download it again",
            at,
        )
    return GGUFInfo(entry.name, layout.name, entry.dims[::-1], start, nbytes)
