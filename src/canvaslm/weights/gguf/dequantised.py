"""From a GGUF file to a model in memory whose every weight is dequantised to floating point."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...errors import BadModelFile, OutOfMemory
from ...model.config import ModelConfig
from ...model.protocol import Model
from ...ops.formats.quant_tensor import FORMATS, QuantTensor, dequantise
from ..loading.empty import empty_model
from ..loading.loaded import DTYPE_WORDS, SMALL_MODEL, Progress
from ..loading.memory import available_memory, gigabytes
from .file import GGUFFile
from .places import Places

__all__ = ["dequantise_into", "load_dequantised"]

_SLICE_VALUES = 4 << 20


def load_dequantised(
    file: GGUFFile,
    config: ModelConfig,
    places: Places,
    device: torch.device,
    dtype: torch.dtype | str | None,
    progress: Progress | None,
) -> tuple[Model, list[str]]:
    """The model and what to tell of it; arguments and errors are those of `load_gguf`."""
    model = empty_model(config, file.path)
    chosen = _dtype(dtype, device, model)
    _check_memory(file, model, chosen, str(device))
    model = model.to(chosen).to_empty(device=device)
    _fill(file, places, model, progress)
    return model, _format_notes(file, chosen)


def _dtype(wanted: torch.dtype | str | None, device: torch.device, model: Model) -> torch.dtype:
    if isinstance(wanted, torch.dtype):
        return wanted
    if wanted is not None and wanted in DTYPE_WORDS:
        return DTYPE_WORDS[wanted]
    small = sum(tensor.numel() for tensor in model.state_dict().values()) < SMALL_MODEL
    return torch.float32 if small and device.type == "cpu" else torch.bfloat16


def _check_memory(file: GGUFFile, model: Model, dtype: torch.dtype, device: str) -> None:
    needed = sum(tensor.numel() for tensor in model.state_dict().values()) * dtype.itemsize
    free = available_memory(device)
    if free is not None and needed > free:
        raise OutOfMemory(
            f"{file.path}: unpacked to {str(dtype).removeprefix('torch.')} the weights need "
            f"{gigabytes(needed)}, but only "
            f"{gigabytes(free)} are free on {device}; close other programs, or take a smaller model or dtype"
        )


@torch.no_grad()
def _fill(file: GGUFFile, places: Places, model: Model, progress: Progress | None) -> None:
    targets = model.state_dict(keep_vars=True)
    total = sum(file.info(name).nbytes for names in places.sources.values() for name in names)
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    for ours, names in places.sources.items():
        target = targets[ours].detach()
        parts = [target] if len(names) == 1 else target.chunk(2, dim=1)
        for name, part in zip(names, parts, strict=True):
            dequantise_into(file, name, part, on_bytes)
    for name, other in places.stand_ins.items():
        targets[name].copy_(targets[other])


def dequantise_into(file: GGUFFile, name: str, target: Tensor, on_bytes: Callable[[int], None]) -> None:
    """Unpacks by rows into a tensor of any dtype, device and stride of its first dimension."""
    packed = file.tensor(name)
    step = max(1, _SLICE_VALUES // packed.shape[-1])
    whole = target.is_contiguous()
    pairs = [(packed, target)] if whole else [(packed[i], target[i]) for i in range(len(target))]
    for piece, part in pairs:
        rows = part.view(-1, packed.shape[-1])
        for start in range(0, len(rows), step):
            stop = min(len(rows), start + step)
            _unpack_rows(file, name, piece.rows(start, stop), rows[start:stop])
            on_bytes((stop - start) * packed.row_bytes)
    file.release(name)


def _unpack_rows(file: GGUFFile, name: str, piece: QuantTensor, target: Tensor) -> None:
    if target.device.type == "cpu":
        values = dequantise(piece.format, piece.raw, piece.shape, out=target)
    else:
        values = piece.dequantise(target.dtype)
        target.copy_(values)
    # The sum is finite if all values are, but for overflow: then look at each.
    if not torch.isfinite(values.sum(dtype=torch.float32)) and not torch.isfinite(values).all():
        raise BadModelFile(f"{file.path}: tensor {name} holds NaN or infinite weights; download it again")


def _format_notes(file: GGUFFile, dtype: torch.dtype) -> list[str]:
    packed = sorted({info.format for info in file.tensors.values() if FORMATS[info.format].block > 1})
    if not packed:
        return []
    return [f"weights in {', '.join(packed)} were unpacked to {str(dtype).removeprefix('torch.')}"]
