"""The packed file beside a GGUF file: what it says of itself, and whether it can be believed. Torch-free.

`MODEL.gguf.packed` holds every weight that loading would otherwise repack, ready for the native kernels to
read where it lies. The container is safetensors: tensors of bytes, which start at multiples of 64, the
first at one of 4096. Its `__metadata__` has this format's version, the kernels' layout, the fingerprint of
the GGUF file it was made from, a digest of samples of its own data, and of each weight its kind and sizes
as "Q4_K 128x1408x2816".

It is data only, and optional: whatever does not fit is a reason not to use it, never an error.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import BadModelFile, NotFound
from ..safetensors_.header import SafetensorsHeader, read_header

if TYPE_CHECKING:
    from ..gguf.file import GGUFFile

SUFFIX = ".packed"
FORMAT = "1"
# To be raised whenever ops/cpu/csrc/layout.h changes how packed weights lie; a test holds the two together.
LAYOUT = "1"
ALIGN_DATA, ALIGN_TENSOR = 4096, 64
_BLOCK = 4096


class Unusable(Exception):
    """Why a packed file is not used: a clause whose subject is the file."""


def packed_path(model: Path) -> Path:
    """Where the packed file of a GGUF file lies; `model` is the first part of a split one."""
    return model.with_name(model.name + SUFFIX)


def described(kind: str, shape: tuple[int, ...]) -> str:
    """A weight's kind and sizes as the metadata give them: "Q4_K 128x1408x2816"."""
    return f"{kind} {'x'.join(map(str, shape))}"


def find_packed(file: GGUFFile) -> SafetensorsHeader | None:
    """The checked header of the packed file beside `file`, or None where there is none.

    Raises Unusable for one that is damaged, of another version, or made from other weights. Which weights it
    must hold the loader alone knows: `PackedMap` checks them.
    """
    path = packed_path(file.path)
    if not os.path.lexists(path):
        return None
    if path.resolve().parent != path.parent.resolve():
        raise Unusable("is a link that leads out of the model's folder")
    header = _header(path)
    said = header.metadata
    if said.get("format") != FORMAT or said.get("layout") != LAYOUT:
        raise Unusable("was written by another version of canvaslm")
    if said.get("source") != fingerprint(file):
        raise Unusable(f"was made from another {file.path.name}")
    if any(info.dtype != "U8" or info.start % ALIGN_TENSOR for info in header.tensors.values()):
        raise Unusable("is damaged (its tensors are not aligned bytes)")
    if said.get("data") != _data_digest(header):
        raise Unusable("is damaged (its data are not what was written)")
    return header


def unused_note(model: Path, problem: Unusable) -> str:
    """What to tell the user about a packed file that cannot be used."""
    return (
        f"{packed_path(model).name} {problem} and is not used; `canvaslm pack {model} --force` makes it anew"
    )


def fingerprint(file: GGUFFile) -> str:
    """Of a checkpoint's contents: sizes, headers, and 12 KiB of every tensor, so that
    copies have the same one.

    Raises Unusable where they cannot be read.
    """
    whole = hashlib.sha256()
    for path, header in zip(file.paths, file.headers, strict=True):
        whole.update(b"%d " % header.size)
        spans = [(0, header.data_start)]
        for info in sorted(header.tensors.values(), key=lambda info: info.start):
            spans += sampled(info.start, info.end)
        for piece in _read(path, spans):
            whole.update(piece)
    return whole.hexdigest()


def sampled(start: int, end: int) -> list[tuple[int, int]]:
    """What is looked at of bytes [start, end): a block at the start, in the middle and at the end."""
    size = min(_BLOCK, end - start)
    offsets = sorted({start, start + (end - start - size) // 2, end - size})
    return [(offset, offset + size) for offset in offsets]


def add_to_digest(digest: hashlib._Hash, name: str, kind: str, pieces: Iterable[bytes | memoryview]) -> None:
    """Takes one weight into the digest of a packed file's data: name, kind and sizes, and its samples."""
    digest.update(f"{name} {kind}\n".encode())
    for piece in pieces:
        digest.update(piece)


def _data_digest(header: SafetensorsHeader) -> str:
    digest = hashlib.sha256()
    for info in header.tensors.values():
        pieces = _read(header.path, sampled(info.start, info.end))
        add_to_digest(digest, info.name, header.metadata.get(info.name, ""), pieces)
    return digest.hexdigest()


def _header(path: Path) -> SafetensorsHeader:
    try:
        return read_header(path)
    except (BadModelFile, NotFound) as error:
        problem = str(error).removeprefix(f"{path}: ").partition(";")[0]
        raise Unusable(f"is damaged ({problem})") from error


def _read(path: Path, spans: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """Short stretches of a file. Raises Unusable where they cannot be read."""
    try:
        with path.open("rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):  # reading ahead would read most of the file
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for start, end in spans:
                file.seek(start)
                yield file.read(end - start)
    except OSError as error:
        raise Unusable(f"cannot be read ({error.strerror or error})") from error


__all__ = [
    "ALIGN_DATA",
    "ALIGN_TENSOR",
    "FORMAT",
    "LAYOUT",
    "SUFFIX",
    "Unusable",
    "add_to_digest",
    "described",
    "find_packed",
    "fingerprint",
    "packed_path",
    "sampled",
    "unused_note",
]
