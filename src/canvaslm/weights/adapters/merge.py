"""A model's files with an adapter's changes added to its weights, tensor by tensor.

The sum is made in fp32 and rounded to what the tensor is stored in; all others are copied as they are. Peak
memory is the adapter and one slice.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ...errors import BadModelFile, UsageError
from ...files import atomic, check_output_folder
from ...model.adapters import Adapter, Deltas, WeightDelta, check_adapter
from ...ops.formats.table import FORMATS
from ..folder import new_folder
from ..gguf.places import place_weights
from ..gguf.quantize import TensorReport, pack_gguf
from ..gguf.source import GGUFSource
from ..gguf.write import check_disk
from ..loading.plan import make_plan
from ..resolve import INDEX, Checkpoint
from ..safetensors_.file import TensorFile
from ..safetensors_.header import SafetensorsHeader, SafetensorsInfo, read_header
from .base import base_config
from .modules import modules_of
from .sides import one_side

# progress(tensor name, bytes written so far, bytes to write)
OnTensor = Callable[[str, int, int], None]

_COPY_BYTES = 16 << 20
# What lies beside weights and belongs to the model whatever its weights.
_CARRIED = (".json", ".jinja", ".txt", ".model")


def merge_adapter(
    adapter: Adapter,
    checkpoint: Checkpoint,
    out: Path,
    *,
    force: bool = False,
    progress: OnTensor | None = None,
) -> tuple[TensorReport, ...]:
    """Writes the model with the adapter merged in: a GGUF file to a GGUF file, each tensor packed in its own
    format again; safetensors to a folder. Returns what packing did to each tensor of a GGUF file.

    Raises UsageError where the adapter does not fit the model, its sides differ, a changed tensor is in a
    format that is not written, or `out` is there and `force` is false; BadModelFile for a bad model, or a sum
    that its type cannot hold; WriteFailed. Then nothing is left behind.
    """
    modules = modules_of(base_config(checkpoint))
    check_adapter(adapter, modules.shapes)
    changes = one_side(adapter, modules, "a merged model")
    by_weight = {modules.weight(name): change for name, change in changes.items()}
    if checkpoint.kind == "gguf":
        if out.suffix.lower() != ".gguf":
            raise UsageError(f"{out}: a GGUF model is merged into a file ending with .gguf", param="out")
        return _merge_gguf(by_weight, checkpoint, out, force, progress)
    if out.suffix.lower() == ".gguf":
        raise UsageError(
            f"{out}: a safetensors model is merged into a folder; `canvaslm convert` makes a GGUF of that",
            param="out",
        )
    _merge_folder(by_weight, checkpoint, out, force, progress)
    return ()


def change_rows(change: WeightDelta, start: int, stop: int) -> Tensor:
    """Rows [start, stop) of a change, fp32 [stop - start, in]; those of all experts count on."""
    if change.b.dim() == 2:
        return change.scale * (change.b[start:stop].float() @ change.a.float())
    each, parts = change.b.shape[1], []
    while start < stop:
        expert, first = divmod(start, each)
        last = min(each, first + stop - start)
        parts.append(change.scale * (change.b[expert, first:last].float() @ change.a[expert].float()))
        start += last - first
    return torch.cat(parts)


class _MergedSource:
    """A GGUF file whose tensors are read with their changes added."""

    def __init__(self, path: Path, by_weight: Mapping[str, WeightDelta], checkpoint: Checkpoint) -> None:
        self._base = GGUFSource(path)
        self.shapes, self.paths = self._base.shapes, self._base.paths
        self._changes: dict[str, WeightDelta] = {}
        places = place_weights(self._base.file, base_config(checkpoint))
        for weight, change in by_weight.items():
            names = places.sources[weight]
            for name, part in zip(names, _halves(change, len(names)), strict=True):
                self._changes[name] = part
        file = self._base.file
        kept = [key for key in ("general.file_type", "general.quantization_version") if key in file.metadata]
        self.metadata = self._base.metadata | {key: file.raw_value(key) for key in kept}
        self.formats = {name: info.format for name, info in file.tensors.items()}
        fixed = sorted({f for name in self._changes if not FORMATS[f := self.formats[name]].writable})
        if fixed:
            raise UsageError(
                f"{path}: has weights in {', '.join(fixed)}, which canvaslm reads but does not write; merge "
                "into another quantisation, or into BF16",
                param="model",
            )

    @property
    def stored_type(self) -> str:
        return self._base.stored_type

    def packed(self, name: str, format: str) -> Iterator[memoryview] | None:
        return None if name in self._changes else self._base.packed(name, format)

    def slices(self, name: str, rows: int) -> Iterator[Tensor]:
        start = 0
        for piece in self._base.slices(name, rows):
            yield piece + change_rows(self._changes[name], start, start + len(piece))
            start += len(piece)


def _halves(change: WeightDelta, count: int) -> list[WeightDelta]:
    """The change of each tensor that a weight is stored in: gate and up may lie apart."""
    return [WeightDelta(change.a, b, change.scale) for b in change.b.chunk(count, dim=-2)]


def _merge_gguf(
    by_weight: Mapping[str, WeightDelta],
    checkpoint: Checkpoint,
    out: Path,
    force: bool,
    progress: OnTensor | None,
) -> tuple[TensorReport, ...]:
    source = _MergedSource(checkpoint.files[0], by_weight, checkpoint)
    return pack_gguf(source, out, source.formats, source.stored_type, force=force, progress=progress).tensors


def _merge_folder(
    by_weight: Deltas, checkpoint: Checkpoint, out: Path, force: bool, progress: OnTensor | None
) -> None:
    check_output_folder(out, force=force)
    if out.exists() and out.samefile(checkpoint.folder):
        raise UsageError(f"{out}: is the model itself; name another folder", param="out")
    headers = [read_header(path) for path in checkpoint.files]
    plan = make_plan(checkpoint, headers, base_config(checkpoint))
    changes = {plan.weights[name].name: change for name, change in by_weight.items()}
    changes |= {info.name: by_weight[name] for info, name in plan.copies if name in by_weight}
    total = sum(info.nbytes for header in headers for info in header.tensors.values())
    out.parent.mkdir(parents=True, exist_ok=True)
    check_disk(out, total)
    done = 0

    def on_bytes(name: str, count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(name, done, total)

    with new_folder(out, force=force) as made:
        for header in headers:
            name = header.path.name if len(headers) > 1 else "model.safetensors"
            _write_merged(header, made / name, changes, on_bytes)
        for path in _carried(checkpoint):
            shutil.copyfile(path, made / path.name)


def _carried(checkpoint: Checkpoint) -> list[Path]:
    names = sorted(path.name for path in checkpoint.folder.iterdir() if path.suffix in _CARRIED)
    kept = [name for name in names if not name.startswith(("adapter_", "."))]
    if len(checkpoint.files) == 1:
        kept = [name for name in kept if name != INDEX]
    return [path for name in kept if (path := checkpoint.path(name)) is not None and path.is_file()]


def _write_merged(
    header: SafetensorsHeader,
    out: Path,
    changes: Mapping[str, WeightDelta],
    on_bytes: Callable[[str, int], None],
) -> None:
    """The file with the same header, and other bytes where weights change."""
    infos = sorted(header.tensors.values(), key=lambda info: (info.start, info.end))
    head = min((info.start for info in infos), default=header.path.stat().st_size)
    with TensorFile(header) as tensors, header.path.open("rb") as source, atomic(out) as target:
        for piece in _span(source, header.path, 0, head):
            target.write(piece)
        for info in infos:
            change = changes.get(info.name)
            pieces: Iterator[bytes | memoryview] = (
                _span(source, header.path, info.start, info.nbytes)
                if change is None
                else _summed(tensors, info, change)
            )
            for merged in pieces:
                target.write(merged)
                on_bytes(info.name, len(merged))


def _span(file: BinaryIO, path: Path, start: int, length: int) -> Iterator[bytes]:
    """Bytes of a file from `start` on, in pieces."""
    file.seek(start)
    while length > 0:
        piece = file.read(min(length, _COPY_BYTES))
        if not piece:
            raise BadModelFile(f"{path}: was cut short after it was opened; download it again")
        length -= len(piece)
        yield piece


def _summed(file: TensorFile, info: SafetensorsInfo, change: WeightDelta) -> Iterator[memoryview]:
    width = info.shape[-1]
    for start, piece in file.slices(info.name):
        first, stop = start // width, -(-(start + len(piece)) // width)
        rows = change_rows(change, first, stop).flatten()
        added = rows[start - first * width :][: len(piece)]
        merged = (piece.to(torch.promote_types(piece.dtype, torch.float32)) + added).to(piece.dtype)
        if not torch.isfinite(merged).all():
            raise BadModelFile(
                f"{info.path}: tensor {info.name}: holds NaN or infinite weights, or its sum with the "
                f"adapter is too large for {info.dtype}"
            )
        yield merged.view(torch.uint8).numpy().data


__all__ = ["change_rows", "merge_adapter"]
