"""Hand-made GGUF files, honest and not, put together without the code under test."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_CODES = {
    U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q",
    F64: "d",
}  # fmt: skip


def text(value: str | bytes, length: int | None = None) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def value(kind: int, content: Any) -> bytes:
    """A typed value; of an array, content is (item kind, items)."""
    return struct.pack("<I", kind) + _body(kind, content)


def _body(kind: int, content: Any) -> bytes:
    if kind == STRING:
        return text(content)
    if kind == ARRAY:
        item, items = content
        return struct.pack("<IQ", item, len(items)) + b"".join(_body(item, each) for each in items)
    return struct.pack("<" + _CODES[kind], content)


def tensor(name: str, dims: tuple[int, ...], kind: int, offset: int, rank: int | None = None) -> bytes:
    shape = struct.pack(f"<I{len(dims)}Q", len(dims) if rank is None else rank, *dims)
    return text(name) + shape + struct.pack("<IQ", kind, offset)


@dataclass
class Raw:
    """A file of given parts; counts and padding may lie."""

    keys: list[tuple[str | bytes, bytes]] = field(default_factory=list)
    tensors: list[bytes] = field(default_factory=list)
    data: bytes = b""
    magic: bytes = b"GGUF"
    version: int = 3
    key_count: int | None = None
    tensor_count: int | None = None
    alignment: int = 32

    def build(self) -> bytes:
        counts = (
            len(self.tensors) if self.tensor_count is None else self.tensor_count,
            len(self.keys) if self.key_count is None else self.key_count,
        )
        head = self.magic + struct.pack("<IQQ", self.version, *counts)
        head += b"".join(text(key) + content for key, content in self.keys) + b"".join(self.tensors)
        return head + bytes(-len(head) % self.alignment) + self.data

    def write(self, path: Path) -> Path:
        path.write_bytes(self.build())
        return path


def one_tensor(**changes: Any) -> Raw:
    """An honest file: one key, one F32 tensor of 4 x 2."""
    parts: dict[str, Any] = {
        "keys": [("general.architecture", value(STRING, "test"))],
        "tensors": [tensor("w", (4, 2), 0, 0)],
        "data": struct.pack("<8f", *range(8)),
    }
    return Raw(**{**parts, **changes})


__all__ = [
    "ARRAY", "BOOL", "F32", "F64", "I8", "I16", "I32", "I64", "STRING", "U8", "U16", "U32", "U64",
    "Raw", "one_tensor", "tensor", "text", "value",
]  # fmt: skip
