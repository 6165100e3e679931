"""Tensors in and out of safetensors files, slice by slice, behind the checked header of `header.py`.

Data is read with plain reads straight into the parameter's memory, not through a memory map: a map
counts the file's pages as ours beside the weights, and kills the process (SIGBUS) when the file shrinks
under it. A conversion of dtype or device goes through one buffer of `SLICE_BYTES`, so that peak memory
is the weights plus one slice.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor

from ...errors import BadModelFile
from ...files import atomic
from .header import (
    ITEM_SIZE,
    SafetensorsHeader,
    SafetensorsInfo,
    check_name,
    read_header,
    shown,
)

SLICE_BYTES = 16 << 20
# Tensors up to this many elements (norms, scales, routers) are checked for NaN and Inf in
# full even when sampling.
ALWAYS_CHECKED = 1 << 20
_SAMPLE = 4096
_CHECKED_AT_ONCE = 1 << 18

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

Finite = Literal["all", "sampled", "none"]
OnBytes = Callable[[int], None]


class TensorFile:
    """One open safetensors file. Use it as a context manager."""

    def __init__(self, source: Path | SafetensorsHeader) -> None:
        if sys.byteorder != "little":
            raise BadModelFile("safetensors files are little-endian; this machine is not supported")
        self.header = source if isinstance(source, SafetensorsHeader) else read_header(source)
        self._file = self.header.path.open("rb", buffering=0)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def read_into(
        self, name: str, target: Tensor, *, finite: Finite = "all", on_bytes: OnBytes | None = None
    ) -> None:
        """Fills `target` (contiguous, any float dtype and device, the tensor's shape) from the file.

        Raises BadModelFile for NaN or Inf (see `Finite`; "sampled" looks at the head of every slice), for
        values that overflow a float16 target, and for a file that ended early.
        """
        info = self.header.tensors[name]
        flat = target.detach().view(-1)
        direct = flat.device.type == "cpu" and flat.dtype == DTYPES[info.dtype]
        if info.count <= ALWAYS_CHECKED and finite == "sampled":
            finite = "all"
        for start, count in _spans(info):
            part = flat[start : start + count]
            piece = self._fill(info, start, part if direct else self._staging(info, count, flat.device))
            _check_finite(info, start, piece, finite, part.dtype)
            if not direct:
                part.copy_(piece)
            if on_bytes is not None:
                on_bytes(count * ITEM_SIZE[info.dtype])

    def read(self, name: str) -> Tensor:
        """The tensor, in its stored dtype, on the CPU."""
        info = self.header.tensors[name]
        target = torch.empty(info.shape, dtype=_torch_dtype(info))
        self.read_into(name, target, finite="none")
        return target

    def slices(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """(first element, flat piece) over the tensor. A piece is valid until the next is asked for."""
        info = self.header.tensors[name]
        for start, count in _spans(info):
            yield start, self._fill(info, start, self._staging(info, count, torch.device("cpu")))

    def _staging(self, info: SafetensorsInfo, count: int, device: torch.device) -> Tensor:
        # Freed and asked for again with the same size each slice, the allocator hands out the same memory.
        return torch.empty(count, dtype=_torch_dtype(info), pin_memory=device.type == "cuda")

    def _fill(self, info: SafetensorsInfo, start: int, piece: Tensor) -> Tensor:
        offset = info.start + start * ITEM_SIZE[info.dtype]
        buffer = _bytes_of(piece)
        self._file.seek(offset)
        done = 0
        while done < len(buffer):
            got = self._file.readinto(buffer[done:])
            if not got:
                raise BadModelFile(
                    f"{info.path}: tensor {shown(info.name)}: the file ended at byte {offset + done}; "
                    "it changed while it was read, download it again"
                )
            done += got
        return piece


def load_file(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, by name, on the CPU. For small files: adapters, training state."""
    with TensorFile(path) as file:
        return {name: file.read(name) for name in file.header.tensors}


def save_file(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a safetensors file: to a temporary file beside it, flushed to disk, then renamed over `path`.

    `dtype` converts floating-point tensors on the way, slice by slice.
    """
    plan = [(name, tensor, _stored_dtype(name, tensor, dtype)) for name, tensor in tensors.items()]
    # Wide elements first keeps every tensor aligned to its element size.
    plan.sort(key=lambda item: (-item[2].itemsize, item[0]))
    with atomic(path) as file:
        file.write(_header_bytes(path, plan, metadata))
        for _, tensor, stored in plan:
            for piece in _pieces(tensor, stored):
                file.write(_bytes_of(piece))


def _bytes_of(piece: Tensor) -> memoryview:
    """The memory of a flat CPU tensor, writable, without a copy."""
    array: Any = piece.view(torch.uint8).numpy()
    return memoryview(array)


def _torch_dtype(info: SafetensorsInfo) -> torch.dtype:
    dtype = DTYPES.get(info.dtype)
    if dtype is None:
        raise BadModelFile(
            f"{info.path}: tensor {shown(info.name)}: dtype {info.dtype} is not read by canvaslm"
        )
    return dtype


def _spans(info: SafetensorsInfo) -> Iterator[tuple[int, int]]:
    """(first element, elements) of each slice."""
    step = max(1, SLICE_BYTES // ITEM_SIZE[info.dtype])
    for start in range(0, info.count, step):
        yield start, min(step, info.count - start)


def _check_finite(
    info: SafetensorsInfo, start: int, piece: Tensor, finite: Finite, target: torch.dtype
) -> None:
    if finite == "none" or not piece.is_floating_point():
        return
    if finite == "sampled":
        piece = piece[:_SAMPLE]
    narrow = target == torch.float16 and piece.dtype != torch.float16
    # In small parts: the comparison takes more memory than what it looks at.
    for first in range(0, piece.numel(), _CHECKED_AT_ONCE):
        part = piece[first : first + _CHECKED_AT_ONCE]
        values = part if part.element_size() > 1 else part.float()
        bad = ~torch.isfinite(values)
        if bad.any():
            _refuse_value(
                info,
                start + first,
                values,
                bad,
                "canvaslm does not run a model with such weights, download it again",
            )
        if narrow and (bad := values.abs() > torch.finfo(torch.float16).max).any():
            _refuse_value(
                info, start + first, values, bad, "which float16 cannot hold, load it as bfloat16 or float32"
            )


def _refuse_value(info: SafetensorsInfo, start: int, values: Tensor, bad: Tensor, remedy: str) -> None:
    at = int(bad.to(torch.uint8).argmax())
    offset = info.start + (start + at) * ITEM_SIZE[info.dtype]
    raise BadModelFile(
        f"{info.path}: tensor {shown(info.name)}: element {start + at} (byte {offset}) is "
        f"{float(values[at])}; {remedy}"
    )


def _stored_dtype(name: str, tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    stored = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    if stored not in _DTYPE_NAMES:
        raise BadModelFile(f"tensor {shown(name)}: dtype {stored} cannot be written to safetensors")
    return stored


def _header_bytes(
    path: Path, plan: list[tuple[str, Tensor, torch.dtype]], metadata: Mapping[str, str] | None
) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, tensor, stored in plan:
        check_name(path, name)
        end = offset + tensor.numel() * stored.itemsize
        entries[name] = {
            "dtype": _DTYPE_NAMES[stored],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    raw = json.dumps(entries, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def _pieces(tensor: Tensor, stored: torch.dtype) -> Iterator[Tensor]:
    """The tensor's elements as flat CPU pieces of the stored dtype, at most `SLICE_BYTES` each."""
    flat = tensor.detach().contiguous().view(-1)
    step = max(1, SLICE_BYTES // max(stored.itemsize, flat.element_size()))
    for start in range(0, flat.numel(), step):
        yield flat[start : start + step].to(device="cpu", dtype=stored)


__all__ = ["DTYPES", "SLICE_BYTES", "Finite", "TensorFile", "load_file", "save_file"]
