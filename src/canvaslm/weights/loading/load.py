"""From a checkpoint to a model in memory, each weight read straight into its place.

Nothing in a checkpoint runs: no pickle, and `auto_map` or any other name of code in a config is ignored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import BadConfig, BadModelFile, OutOfMemory, UsageError
from ...model.config import ModelConfig
from ...model.diffusion_gemma.model import DiffusionGemma
from ..generation import sampling_defaults, stop_tokens
from ..names import HEAD
from ..resolve import Checkpoint, read_config, resolve
from ..safetensors_.file import DTYPES, SLICE_BYTES, Finite, TensorFile
from ..safetensors_.header import Header, TensorInfo, read_header
from .empty import meta_model
from .memory import available_memory, gigabytes
from .plan import Plan, make_plan

# progress(bytes read so far, bytes to read)
Progress = Callable[[int, int], None]

# Below this many parameters a CPU computes in fp32 whatever the file holds: it is exact and, on most CPUs, faster.
SMALL_MODEL = 10**9
# Up to this many, every value is checked for NaN and Inf; above, small tensors and a sample of the others.
FULLY_CHECKED = 10**8

DTYPE_WORDS = {
    "float32": torch.float32, "fp32": torch.float32, "f32": torch.float32,
    "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
    "float16": torch.float16, "fp16": torch.float16, "f16": torch.float16,
}  # fmt: skip


@dataclass
class Loaded:
    """A model ready to run, in eval mode. `generation` is generation_config.json's content, {} without one."""

    model: DiffusionGemma
    config: ModelConfig
    generation: dict[str, Any]
    folder: Path | None
    notes: list[str] = field(default_factory=list)


def load_model(
    source: str | Path | Checkpoint | None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
    progress: Progress | None = None,
    check_finite: bool | None = None,
) -> Loaded:
    """Loads a model from whatever `resolve` takes.

    `dtype` None: on a CPU float32 for models below 10^9 parameters, otherwise the type most of the checkpoint's bytes
    have. `check_finite` None: every value below 10^8 parameters, above all small tensors and a sample of the large.
    Peak memory is the weights plus one slice of 16 MiB.

    Raises NotFound, Offline, BadConfig, BadModelFile (one error lists every tensor that is missing, left over or of the
    wrong shape or dtype; another names the first with NaN or Inf), OutOfMemory with both numbers before reading,
    UsageError for an impossible device or dtype.
    """
    checkpoint = source if isinstance(source, Checkpoint) else resolve(source)
    target = _device(device)
    if checkpoint.kind == "gguf":
        return _load_gguf(checkpoint, target, dtype, progress)
    config = read_config(checkpoint)
    headers = [read_header(path) for path in checkpoint.files]
    model = _without_memory(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    plan = make_plan(checkpoint, headers, shapes)
    count = sum(tensor.numel() for tensor in model.state_dict().values())
    chosen = _dtype(dtype, headers, target, count)
    _check_memory(checkpoint, count * chosen.itemsize, chosen, target)
    model = _materialise(checkpoint, model.to(chosen), target)
    _read(plan, headers, model, _finite(check_finite, count), progress, untied=not config.tie_word_embeddings)
    generation = checkpoint.read_json("generation_config.json") or {}
    return Loaded(model.eval(), config, generation, checkpoint.folder, plan.notes)


def _without_memory(config: ModelConfig) -> DiffusionGemma:
    """The model on torch's meta device: shapes without storage."""
    try:
        return meta_model(config)
    except RuntimeError as error:
        raise BadConfig(f"config.json: the sizes give tensors that no machine holds ({error})") from error


def stored_dtype(headers: list[Header]) -> torch.dtype:
    """The floating-point type that most bytes of the weights have."""
    sizes: Counter[str] = Counter()
    for header in headers:
        for info in header.tensors.values():
            sizes[info.dtype] += info.nbytes
    known = [name for name, _ in sizes.most_common() if DTYPES.get(name) in DTYPE_WORDS.values()]
    return DTYPES[known[0]] if known else torch.float32


def _load_gguf(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype | str | None, progress: Progress | None
) -> Loaded:
    from ..gguf.load import load_gguf

    return load_gguf(checkpoint, device=device, dtype=dtype, progress=progress)


def _device(device: str | torch.device) -> torch.device:
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise UsageError(
            f"device {device!r} is not known; use cpu, cuda or cuda:N", param="device"
        ) from error
    if target.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda: torch sees no CUDA GPU here; use --device cpu", param="device")
    return target


def _dtype(
    wanted: torch.dtype | str | None, headers: list[Header], device: torch.device, count: int
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
        f"{checkpoint.source}: the weights need {gigabytes(needed)} in {name}, but only {gigabytes(free)} are free on "
        f"{device}; close other programs, or take a smaller dtype or a quantised file"
    )


def _materialise(checkpoint: Checkpoint, model: DiffusionGemma, device: torch.device) -> DiffusionGemma:
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
    plan: Plan,
    headers: list[Header],
    model: DiffusionGemma,
    finite: Finite,
    progress: Progress | None,
    untied: bool,
) -> None:
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
                _check_copy(files, info, stored, whole=untied or finite == "all")
    for name in plan.shared_scalars:
        targets[name].copy_(targets[name.replace("encoder_layer_scalar", "layer_scalar")])


def _check_copy(files: dict[Path, TensorFile], copy: TensorInfo, stored: TensorInfo, whole: bool) -> None:
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
    if copy.name == HEAD:
        why = "tie_word_embeddings in config.json says they are one; set it to false if the head is really separate"
    else:
        why = (
            "this checkpoint has an encoder of its own (tie_word_embeddings: false undoes that tie too), "
            "while canvaslm runs one stack of layers for both phases"
        )
    raise BadModelFile(f"{copy.path}: {copy.name} differs from {stored.name}; {why}")


def _float(files: dict[Path, TensorFile], info: TensorInfo) -> Tensor:
    return files[info.path].read(info.name).float()


__all__ = [
    "Loaded",
    "Progress",
    "load_model",
    "read_config",
    "sampling_defaults",
    "stop_tokens",
    "stored_dtype",
]
