"""From a safetensors checkpoint to a model in memory, each weight read straight into its place."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from ...errors import BadConfig, BadModelFile, OutOfMemory, UsageError
from ...model.config import ModelConfig
from ...model.protocol import Model
from ...model.registry import family_of
from ..loading.empty import meta_model
from ..loading.loaded import DTYPE_WORDS, SMALL_MODEL, Loaded, Progress
from ..loading.memory import available_memory, gigabytes
from ..loading.plan import ReadPlan, make_plan
from ..resolve import Checkpoint, read_config
from .file import DTYPES, SLICE_BYTES, Finite, TensorFile
from .header import SafetensorsHeader, SafetensorsInfo, read_header

# Up to this many parameters, every value is checked for NaN and Inf; above, small tensors and
# a sample of the others.
FULLY_CHECKED = 10**8


def load_safetensors(
    checkpoint: Checkpoint,
    *,
    device: torch.device,
    dtype: torch.dtype | str | None = None,
    progress: Progress | None = None,
    check_finite: bool | None = None,
) -> Loaded:
    """Loads the model of a folder or a file; arguments and errors are those of `load_model`."""
    config = read_config(checkpoint)
    headers = [read_header(path) for path in checkpoint.files]
    model = _without_memory(config)
    plan = make_plan(checkpoint, headers, config)
    count = sum(tensor.numel() for tensor in model.state_dict().values())
    chosen = _dtype(dtype, headers, device, count)
    _check_memory(checkpoint, count * chosen.itemsize, chosen, device)
    model = _materialise(checkpoint, model.to(chosen), device)
    _read(plan, headers, model, _finite(check_finite, count), progress)
    generation = checkpoint.read_json("generation_config.json") or {}
    return Loaded(model.eval(), config, generation, checkpoint.folder, plan.notes)


def _without_memory(config: ModelConfig) -> Model:
    """The model on torch's meta device: shapes without storage."""
    try:
        return meta_model(config)
    except RuntimeError as error:
        raise BadConfig(f"config.json: the sizes give tensors that no machine holds ({error})") from error


def stored_dtype(headers: list[SafetensorsHeader]) -> torch.dtype:
    """The floating-point type that most bytes of the weights have."""
    sizes: Counter[str] = Counter()
    for header in headers:
        for info in header.tensors.values():
            sizes[info.dtype] += info.nbytes
    known = [name for name, _ in sizes.most_common() if DTYPES.get(name) in DTYPE_WORDS.values()]
    return DTYPES[known[0]] if known else torch.float32


def _dtype(
    wanted: torch.dtype | str | None, headers: list[SafetensorsHeader], device: torch.device, count: int
) -> torch.dtype:
    if isinstance(wanted, torch.dtype):
        chosen = wanted
    elif wanted is not None and wanted != "auto":
        if wanted not in DTYPE_WORDS:
            raise UsageError(
                f"dtype {wanted!r} is not known; use float32, bfloat16 or float16", param="dtype"
            )
        chosen = DTYPE_WORDS[wanted]
    elif device.type == "cpu" and count < SMALL_MODEL:
        chosen = torch.float32
    else:
        chosen = stored_dtype(headers)
    if not chosen.is_floating_point or chosen.itemsize < 2:
        raise UsageError(f"dtype {chosen}: weights run in float32, bfloat16 or float16", param="dtype")
    return chosen


def _finite(check: bool | None, count: int) -> Finite:
    if check is None:
        return "all" if count < FULLY_CHECKED else "sampled"
    return "all" if check else "none"


def _check_memory(checkpoint: Checkpoint, weights: int, dtype: torch.dtype, device: torch.device) -> None:
    needed, free = weights + SLICE_BYTES, available_memory(str(device))
    if free is None or needed <= free:
        return
    name = str(dtype).removeprefix("torch.")
    raise OutOfMemory(
        f"{checkpoint.source}: the weights need {gigabytes(needed)} in {name}, "
        f"but only {gigabytes(free)} are free on "
        f"{device}; close other programs, or take a smaller dtype or a quantised file"
    )


def _materialise(checkpoint: Checkpoint, model: Model, device: torch.device) -> Model:
    try:
        return model.to_empty(device=device)
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
            raise
        raise OutOfMemory(
            f"{checkpoint.source}: {device} refused the memory for the weights ({str(error).splitlines()[0]})"
        ) from error


@torch.no_grad()
def _read(
    plan: ReadPlan,
    headers: list[SafetensorsHeader],
    model: Model,
    finite: Finite,
    progress: Progress | None,
) -> None:
    untied, head = not model.config.tie_word_embeddings, family_of(model.config).names.head
    targets = model.state_dict(keep_vars=True)
    total, done = sum(info.nbytes for info in plan.weights.values()), 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    with ExitStack() as stack:
        files = {header.path: stack.enter_context(TensorFile(header)) for header in headers}
        # In the order of the data, so that a disk reads forward.
        for name, info in sorted(plan.weights.items(), key=lambda item: (item[1].path, item[1].start)):
            files[info.path].read_into(info.name, targets[name], finite=finite, on_bytes=on_bytes)
        for info, name in plan.copies:
            stored = plan.weights[name]
            if info is not stored:
                _check_copy(files, info, stored, head, whole=untied or finite == "all")
    for name, other in plan.stand_ins.items():
        targets[name].copy_(targets[other])


def _check_copy(
    files: dict[Path, TensorFile], copy: SafetensorsInfo, stored: SafetensorsInfo, head: str, whole: bool
) -> None:
    """A weight stored twice must be one weight. Compares every slice, or the first alone."""
    if copy.dtype != stored.dtype:
        equal = torch.equal(_float(files, copy), _float(files, stored))
    else:
        equal = True
        pairs = zip(files[copy.path].slices(copy.name), files[stored.path].slices(stored.name), strict=True)
        for (_, a), (_, b) in pairs:
            equal = torch.equal(a.view(torch.uint8), b.view(torch.uint8))
            if not equal or not whole:
                break
    if equal:
        return
    if copy.name == head:
        why = (
            "tie_word_embeddings in config.json says they are one; set it to false if the head is really "
            "separate"
        )
    else:
        why = (
            "this checkpoint has an encoder of its own (tie_word_embeddings: false undoes that tie too), "
            "while canvaslm runs one stack of layers for both phases"
        )
    raise BadModelFile(f"{copy.path}: {copy.name} differs from {stored.name}; {why}")


def _float(files: dict[Path, TensorFile], info: SafetensorsInfo) -> Tensor:
    return files[info.path].read(info.name).float()


__all__ = ["load_safetensors", "stored_dtype"]
