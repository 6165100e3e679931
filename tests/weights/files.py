"""Hand-made safetensors files, honest and not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def write(path: Path, header: Any, data: bytes = bytes(8), length: int | None = None) -> Path:
    """A file of this header (an object, or its raw bytes) and data; `length` lies about the header's."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path
