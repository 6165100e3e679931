"""From a GGUF file to a model in memory: its large weights kept quantised, or all of them dequantised.

With native kernels quantised weights are mapped from the packed file beside the model, if there is one; otherwise every
quantised matrix is repacked while loading, and the file's pages are given back as it goes: file and repacked copy are
never both in memory. Without them the weights stay in the mapped file and are dequantised a slice at a time where they
are used: slow, but the model runs in the memory it takes on disk.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ...errors import OutOfMemory
from ...model.config import ModelConfig
from ...model.diffusion_gemma.fused import FusedNorm, FusedSelfConditioning, FusedTextLayer, can_fuse
from ...model.diffusion_gemma.text import SelfConditioning, TextLayer
from ...model.protocol import Model
from ...ops import cpu
from ...ops.cpu.repacker import Repacker
from ...ops.formats.quant_tensor import FORMATS
from ...ops.norm import RMSNorm
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
from .fill import FileRepacker, Filler, RepackPlan
from .places import Places, place_weights

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
    """Loads a model; with a `dtype`, or on a GPU, with all weights dequantised to floating point.

    `dtype` None on a CPU keeps quantised weights quantised and the rest in fp32 (`load_quantised`); an unquantised file
    becomes float32 below 10^9 parameters, else bfloat16. Peak memory is the weights plus a slice.
    Raises NotFound, BadModelFile (one error lists every tensor missing, left over or of the wrong shape; another names
    the first with NaN or infinities), OutOfMemory before reading.
    """
    path = source.files[0] if isinstance(source, Checkpoint) else Path(source)
    with GGUFFile(path) as file:
        if dtype is None and torch.device(device).type == "cpu" and is_quantised(file):
            return load_quantised(source, progress=progress)
        config = read_gguf_config(file)
        places = place_weights(file, config)
        model, notes = load_dequantised(file, config, places, torch.device(device), dtype, progress)
        generation = read_gguf_generation(file)
    return Loaded(model.eval(), config, generation, None, [*places.notes, *notes])


def is_quantised(file: GGUFFile) -> bool:
    """Whether any tensor is in a block format."""
    return any(FORMATS[info.format].block > 1 for info in file.tensors.values())


def load_quantised(source: Checkpoint | str | Path, *, progress: Progress | None = None) -> Loaded:
    """Loads a quantised GGUF file onto the CPU, keeping matrices quantised; the rest is fp32.

    Peak memory: the packed weights plus a stretch of the file. With a packed file beside it (`packed_file`) the weights
    are mapped from there. Raises as `load_gguf` does.
    """
    path = source.files[0] if isinstance(source, Checkpoint) else Path(source)
    file = GGUFFile(path)  # stays open: the embedding is read from it
    config = read_gguf_config(file)
    places = place_weights(file, config)
    notes = list(places.notes)
    model = _mapped(file, config, places, progress, notes) if cpu.available() else None
    mapped = model is not None
    if model is None:
        model = _packed(file, config, places, progress)
    _fuse_layers(model)
    notes.append(_note(file, mapped))
    return Loaded(model.eval(), config, read_gguf_generation(file), None, notes)


def _mapped(
    file: GGUFFile, config: ModelConfig, places: Places, progress: Progress | None, notes: list[str]
) -> Model | None:
    """The model on the packed file beside `file`; None when there is none, or, with a note, none that can be used."""
    try:
        header = find_packed(file)
        if header is None:
            return None
        weights = PackedMap(header)
        model = empty_model(config, file.path)
        fill = Filler(file, places, model, True, weights)
        fill.matrices()
        weights.check_complete()
    except Unusable as problem:
        notes.append(unused_note(file.path, problem))
        return None
    tables = [file.tensor(name).raw for name in fill.tables()]
    _check_memory(file, weights.weights.numel() + sum(table.numel() for table in tables))
    fill.floats()
    read_ahead([*tables, weights.weights], progress)
    return model


def _packed(file: GGUFFile, config: ModelConfig, places: Places, progress: Progress | None) -> Model:
    """The model with its weights packed here, or where the file has them without native kernels."""
    fast = cpu.available()
    stored = sum(info.nbytes for info in file.tensors.values())
    needed = _packed_bytes(file, config, places) if fast else stored
    _check_memory(file, needed)
    free = available_memory("cpu")
    drop = free is None or free < needed + stored + _SPARE
    model = empty_model(config, file.path)
    fill = Filler(file, places, model, fast, FileRepacker(file, drop) if fast else Repacker(), progress)
    fill.matrices()
    fill.floats()
    return model


def _packed_bytes(file: GGUFFile, config: ModelConfig, places: Places) -> int:
    """What packing will take; with the vocabulary's rows, which stay in the file's pages."""
    plan = RepackPlan()
    fill = Filler(file, places, empty_model(config, file.path), True, plan)
    fill.matrices()
    return plan.nbytes + sum(file.info(name).nbytes for name in fill.tables())


def _note(file: GGUFFile, mapped: bool) -> str:
    if not cpu.available():
        return "quantised weights run in plain PyTorch: slow; install a C++ compiler for the native kernels"
    how = f"quantised weights run on native kernels ({cpu.isa()}, {cpu.threads()} threads)"
    if mapped:
        return f"{how}, mapped from {packed_path(file.path).name}"
    if file.size > _LARGE:
        return f"{how}; `canvaslm pack {file.path}` makes it open faster"
    return how


def _fuse_layers(model: Model) -> None:
    """Puts native twins in the place of all layers that are packed throughout, and of what stands around them."""
    if not cpu.available():
        return
    for i, layer in enumerate(model.layers):
        if isinstance(layer, TextLayer) and can_fuse(layer):
            model.layers[i] = FusedTextLayer(layer)
    assert isinstance(model.norm, RMSNorm) and isinstance(model.self_conditioning, SelfConditioning)
    model.add_module("norm", FusedNorm(model.norm))
    if model.self_conditioning.fused is not None:
        model.add_module("self_conditioning", FusedSelfConditioning(model.self_conditioning))


def _check_memory(file: GGUFFile, needed: int) -> None:
    free = available_memory("cpu")
    if free is not None and needed > free:
        raise OutOfMemory(
            f"{file.path}: the weights need {gigabytes(needed)}, but only {gigabytes(free)} are free; "
            "close other programs, or take a smaller model"
        )


__all__ = ["is_quantised", "load_gguf", "load_quantised"]
