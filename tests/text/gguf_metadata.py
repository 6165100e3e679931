"""Reads a GGUF file's metadata in one go; trusts the file, as tests may. (`gguf.GGUFReader` takes 20 s.)"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def read_metadata(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    place = 24
    found: dict[str, Any] = {}

    def scalar(code: str) -> Any:
        nonlocal place
        (value,) = struct.unpack_from("<" + code, data, place)
        place += struct.calcsize(code)
        return value

    def string() -> str:
        nonlocal place
        size = scalar("Q")
        place += size
        return data[place - size : place].decode()

    def value(kind: int) -> Any:
        if kind == 8:
            return string()
        if kind == 9:
            inner, count = scalar("I"), scalar("Q")
            return [value(inner) for _ in range(count)]
        return scalar(_FORMATS[kind])

    for _ in range(struct.unpack_from("<Q", data, 16)[0]):
        key = string()
        found[key] = value(scalar("I"))
    return found
