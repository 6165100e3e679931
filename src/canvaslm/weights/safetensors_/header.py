"""The header of a safetensors file, read with suspicion: nothing in it is believed before it is checked.

Layout (https://github.com/huggingface/safetensors#format): 8 bytes little-endian header length, that many
bytes of JSON `{name: {dtype, shape, data_offsets: [begin, end]}}`, then the data, which the offsets must tile
exactly. Imports no torch, so that `canvaslm show` stays quick.
"""

from __future__ import annotations

import json
import re
import stat
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from ...errors import BadModelFile, NotFound

# The 26B model's header is 0.2 MB. Python needs up to about fifty times the JSON's size
# to hold a hostile one.
MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 200_000
MAX_RANK = 8

# Bytes per element of the types we can measure. Types below a byte are not read.
ITEM_SIZE = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/+-]{0,511}")
_FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class SafetensorsInfo:
    """One tensor of a file: `start` and `end` are byte offsets from the beginning of the file."""

    name: str
    dtype: str  # as safetensors writes it: "BF16", "F32", ...
    shape: tuple[int, ...]
    start: int
    end: int
    path: Path

    @property
    def count(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class SafetensorsHeader:
    """What a file holds. `tensors` is in the order of the data."""

    path: Path
    tensors: dict[str, SafetensorsInfo]
    metadata: dict[str, str] = field(default_factory=dict)


def read_header(path: Path) -> SafetensorsHeader:
    """Reads and checks the header of a safetensors file.

    Raises NotFound when there is no such file, BadModelFile naming the file, the
    tensor and the byte otherwise.
    """
    size = _regular_size(path)
    raw = _read_raw(path, size)
    entries = _parse(path, raw)
    metadata = _metadata(path, entries.pop("__metadata__", {}))
    if len(entries) > MAX_TENSORS:
        _refuse(path, f"the header lists {len(entries)} tensors; more than {MAX_TENSORS} are not read")
    base = 8 + len(raw)
    infos = [_tensor(path, name, entry, base, size) for name, entry in entries.items()]
    infos.sort(key=lambda info: (info.start, info.end))
    _check_tiling(path, infos, base, size)
    return SafetensorsHeader(path, {info.name: info for info in infos}, metadata)


def shown(name: object) -> str:
    """A name out of a file, safe to print: escaped and cut."""
    text = ascii(name)
    return text if len(text) <= 120 else text[:117] + "..."


def _refuse(path: Path, problem: str) -> NoReturn:
    raise BadModelFile(
        f"{path}: {problem}; the file is damaged or hostile, download it again from its source"
    )


def _regular_size(path: Path) -> int:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"{path}: there is no such file") from error
    except (OSError, ValueError) as error:
        raise BadModelFile(f"{shown(str(path))}: cannot be opened ({error})") from error
    if not stat.S_ISREG(status.st_mode):
        raise BadModelFile(f"{path}: is not a regular file; give a .safetensors file")
    return status.st_size


def _read_raw(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            start = file.read(8)
            _refuse_other_formats(path, start)
            if len(start) < 8:
                _refuse(path, f"is {size} bytes long, too short to be a safetensors file")
            length = int.from_bytes(start, "little")
            if length > MAX_HEADER_BYTES:
                _refuse(
                    path,
                    f"byte 0: the header length is {length}, more than the {MAX_HEADER_BYTES} bytes allowed",
                )
            if 8 + length > size:
                _refuse(path, f"byte 0: the header length is {length}, but the file has {size} bytes")
            raw = file.read(length)
    except OSError as error:
        raise BadModelFile(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(raw) != length:
        _refuse(path, f"byte {8 + len(raw)}: the file ended inside its header")
    return raw


def _refuse_other_formats(path: Path, start: bytes) -> None:
    """Names the usual mix-ups, which would otherwise read as an absurd header length."""
    if start.startswith(b"version "):
        raise BadModelFile(
            f"{path}: is a Git LFS pointer, not the weights themselves; run `git lfs pull` beside it"
        )
    # A header of 640 bytes, too, makes a file begin with 80 02; a pickle's first bytes are no such length.
    pickled = start.startswith(b"\x80\x02") and int.from_bytes(start, "little") > MAX_HEADER_BYTES
    if start.startswith(b"PK\x03\x04") or pickled:
        raise BadModelFile(
            f"{path}: is a pickle or zip archive under another name; canvaslm never loads pickle, "
            "ask for safetensors"
        )
    if start.startswith(b"GGUF"):
        raise BadModelFile(f"{path}: is a GGUF file under another name; rename it to end with .gguf")


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    if raw[:1] != b"{":
        _refuse(path, "byte 8: the header is not a JSON object")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            seen: set[str] = set()
            name = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            _refuse(path, f"the header (from byte 8) has the key {shown(name)} twice")
        return made

    try:
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        _refuse(path, f"byte {8 + error.start}: the header is not UTF-8")
    except json.JSONDecodeError as error:
        _refuse(path, f"byte {8 + error.pos}: the header is not JSON ({error.msg})")
    except (RecursionError, ValueError) as error:
        _refuse(path, f"byte 8: the header cannot be parsed ({type(error).__name__})")
    return entries  # type: ignore[no-any-return]  # the first byte is "{", so the top level is an object


def _metadata(path: Path, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        _refuse(path, "the header's __metadata__ is not an object of strings")
    return value


def check_name(path: Path, name: str) -> None:
    """Refuses names that no checkpoint uses but an attacker might, as `x.__class__` (CVE-2025-6107)."""
    plain = _NAME.fullmatch(name) and not any(
        not part or part.startswith("__") for part in name.replace("/", ".").replace(":", ".").split(".")
    )
    if not plain:
        _refuse(path, f"tensor {shown(name)}: that is not a name of a weight")


def _tensor(path: Path, name: str, entry: Any, base: int, size: int) -> SafetensorsInfo:
    check_name(path, name)
    where = f"tensor {shown(name)}"
    if not isinstance(entry, dict) or set(entry) != _FIELDS:
        _refuse(path, f"{where}: its entry should hold dtype, shape and data_offsets, nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZE:
        _refuse(path, f"{where}: unknown dtype {shown(dtype)} (known: {', '.join(ITEM_SIZE)})")
    if not _sizes(shape) or len(shape) > MAX_RANK:
        _refuse(path, f"{where}: bad shape {shown(shape)}")
    if not _sizes(offsets) or len(offsets) != 2:
        _refuse(path, f"{where}: bad data_offsets {shown(offsets)}")
    begin, end = offsets
    if begin > end:
        _refuse(path, f"{where}: data_offsets [{begin}, {end}] run backwards")
    if base + end > size:
        _refuse(
            path, f"{where}: its data ends at byte {base + end}, but the file has {size} bytes (truncated?)"
        )
    expected = prod(shape) * ITEM_SIZE[dtype]
    if expected != end - begin:
        _refuse(
            path,
            f"{where}: {dtype} of shape {shown(shape)} takes {shown(expected)} bytes, "
            f"data_offsets give {end - begin} from byte {base + begin}",
        )
    return SafetensorsInfo(name, dtype, tuple(shape), base + begin, base + end, path)


def _sizes(value: Any) -> bool:
    """Whether value is a list of whole numbers 0 .. 2^63 - 1 (True and 1.0 are not whole numbers here)."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_tiling(path: Path, infos: list[SafetensorsInfo], base: int, size: int) -> None:
    """The tensors must fill the data without gap or overlap: hidden bytes and shared ones are both
    refused."""
    cursor, previous = base, "the header"
    for info in infos:
        if info.start != cursor:
            what = "overlaps" if info.start < cursor else "leaves a gap after"
            _refuse(
                path,
                f"tensor {shown(info.name)}: starts at byte {info.start} and {what} {previous} (byte "
                f"{cursor})",
            )
        cursor, previous = info.end, shown(info.name)
    if cursor != size:
        _refuse(path, f"byte {cursor}: {size - cursor} bytes follow that belong to no tensor")


__all__ = [
    "ITEM_SIZE",
    "MAX_HEADER_BYTES",
    "MAX_TENSORS",
    "SafetensorsHeader",
    "SafetensorsInfo",
    "check_name",
    "read_header",
    "shown",
]
