"""From a GGUF file to a model in memory: its large weights kept quantised, or all of them dequantised.

With native kernels quantised weights are mapped from the packed file beside the model, if there is one;
otherwise every quantised matrix is repacked while loading, and the file's pages are given back as it goes:
file and repacked copy are never both in memory. Without them the weights stay in the mapped file and are
dequantised a slice at a time where they are used: slow, but the model runs in the memory it takes on disk.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ...errors import OutOfMemory
from ...model.config import ModelConfig
from ...model.protocol import Model
from ...ops import backend
from ...ops.cpu import backend as cpu
from ...ops.cpu.repacker import Repacker
from ...ops.formats.quant_tensor import FORMATS
from ...ops.plain import PLAIN
from ..loading.empty import empty_model
from ..loading.loaded import Loaded, Progress
from ..loading.memory import available_memory, gigabytes
from ..loading.read_ahead import read_ahead
from ..packed.file import Unusable, find_packed, packed_path, unused_note
from ..packed.map import PackedMap
from ..resolve import Checkpoint
from .dequantised import load_dequantised
from .fields import read_gguf_config, read_gguf_generation
from .file import GGUFFile
from .fill import FileRepacker, Filler, RepackPlan, table_names
from .places import Places, place_weights

CPU = torch.device("cpu")
# File and repacked copy both stay in memory where that leaves so much for everything else.
_SPARE = 4 << 30
# Bytes from which on repacking takes long enough to mention how it is spared.
_LARGE = 2 * 10**9


def load_gguf(
    source: Checkpoint | str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
    progress: Progress | None = None,
) -> Loaded:
    """Loads a model; with a `dtype`, or on a GPU without kernels for its formats, with
    all weights dequantised.

    `dtype` None on a CPU keeps quantised weights quantised and the rest in fp32 (`load_quantised`); an
    unquantised file becomes float32 below 10^9 parameters, else bfloat16. Peak memory is the weights plus a
    slice. Raises NotFound, BadModelFile (one error lists every tensor missing, left over or of the wrong
    shape; another names the first with NaN or infinities), OutOfMemory before reading.
    """
    path, target = source.files[0] if isinstance(source, Checkpoint) else Path(source), torch.device(device)
    with GGUFFile(path) as file:
        if dtype is None and _keeps_quantised(file, target):
            return load_quantised(source, device=target, progress=progress)
        config = read_gguf_config(file)
        places = place_weights(file, config)
        model, notes = load_dequantised(file, config, places, target, dtype, progress)
        generation = read_gguf_generation(file)
    return Loaded(model.eval(), config, generation, None, [*places.notes, *notes])


def load_quantised(
    source: Checkpoint | str | Path,
    *,
    device: torch.device = CPU,
    progress: Progress | None = None,
) -> Loaded:
    """Loads a quantised GGUF file, keeping matrices quantised; the rest is fp32.

    Peak memory: the repacked weights plus a stretch of the file. With a packed file beside it (`packed_file`)
    the weights are mapped from there. Raises as `load_gguf` does.
    """
    path = source.files[0] if isinstance(source, Checkpoint) else Path(source)
    file = GGUFFile(path)  # stays open: the embedding is read from it
    config = read_gguf_config(file)
    places = place_weights(file, config)
    notes = list(places.notes)
    repacks = backend.repacks(device, _quantised_formats(file))
    model = _mapped(file, config, places, progress, notes) if repacks and device == CPU else None
    mapped = model is not None
    if model is None:
        model = _filled(file, config, places, device, progress, repacks)
    if backend.may_fuse():
        model.fuse()
    notes.append(_note(file, device, mapped))
    return Loaded(model.eval(), config, read_gguf_generation(file), None, notes)


def _quantised_formats(file: GGUFFile) -> set[str]:
    return {info.format for info in file.tensors.values() if FORMATS[info.format].block > 1}


def _keeps_quantised(file: GGUFFile, device: torch.device) -> bool:
    """On a CPU whatever is quantised; elsewhere what a backend has kernels for."""
    formats = _quantised_formats(file)
    return bool(formats) and (device.type == "cpu" or backend.backend_of(device, formats).name != PLAIN)


def _mapped(
    file: GGUFFile, config: ModelConfig, places: Places, progress: Progress | None, notes: list[str]
) -> Model | None:
    """The model on the packed file beside `file`; None when there is none, or, with a
    note, none that can be used."""
    try:
        header = find_packed(file)
        if header is None:
            return None
        weights = PackedMap(header)
        model = empty_model(config, file.path)
        fill = Filler(file, places, model, CPU, weights)
        fill.matrices()
        weights.check_complete()
    except Unusable as problem:
        notes.append(unused_note(file.path, problem))
        return None
    tables = [file.tensor(name).raw for name in table_names(places)]
    _check_memory(file, CPU, weights.weights.numel() + sum(table.numel() for table in tables))
    fill.floats()
    read_ahead([*tables, weights.weights], progress)
    return model


def _filled(
    file: GGUFFile,
    config: ModelConfig,
    places: Places,
    device: torch.device,
    progress: Progress | None,
    repacks: bool,
) -> Model:
    """The model with its weights repacked here, or where the file has them."""
    stored = sum(info.nbytes for info in file.tensors.values())
    needed = _repacked_bytes(file, config, places, device) if repacks else stored
    _check_memory(file, device, needed)
    free = available_memory(str(device))
    drop = free is None or free < needed + stored + _SPARE
    model = empty_model(config, file.path)
    repacker = FileRepacker(file, drop, table_names(places)) if repacks else Repacker()
    fill = Filler(file, places, model, device, repacker, progress)
    fill.matrices()
    fill.floats()
    return model


def weights_in_memory(file: GGUFFile, config: ModelConfig, device: torch.device = CPU) -> int:
    """Bytes that the weights of a file of this model take once it is loaded. Reads its header only."""
    if backend.repacks(device, _quantised_formats(file)):
        return _repacked_bytes(file, config, place_weights(file, config), device)
    return sum(info.nbytes for info in file.tensors.values())


def _repacked_bytes(file: GGUFFile, config: ModelConfig, places: Places, device: torch.device) -> int:
    """What repacking will take; with the vocabulary's rows, which stay in the file's pages."""
    plan = RepackPlan()
    fill = Filler(file, places, empty_model(config, file.path), device, plan)
    fill.matrices()
    return plan.nbytes + sum(file.info(name).nbytes for name in table_names(places))


def _note(file: GGUFFile, device: torch.device, mapped: bool) -> str:
    used = backend.backend_of(device, _quantised_formats(file))
    if used.name == PLAIN:
        return "quantised weights run in plain PyTorch: slow; install a C++ compiler for the native kernels"
    how = f"quantised weights run on {used.summary()}"
    if mapped:
        return f"{how}, mapped from {packed_path(file.path).name}"
    if file.size > _LARGE and used.name == cpu.NAME:
        return f"{how}; `canvaslm pack {file.path}` makes it open faster"
    return how


def _check_memory(file: GGUFFile, device: torch.device, needed: int) -> None:
    free = available_memory(str(device))
    if free is not None and needed > free:
        raise OutOfMemory(
            f"{file.path}: the weights need {gigabytes(needed)}, but only {gigabytes(free)} are free; "
            "close other programs, or take a smaller model"
        )


__all__ = ["load_gguf", "load_quantised", "weights_in_memory"]
