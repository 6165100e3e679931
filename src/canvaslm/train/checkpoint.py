"""Checkpoints of a run: folders `step-00001234` of safetensors and JSON, never pickle, never half-written.

A folder holds `model.safetensors` (fp32, our parameter names), `optimizer.safetensors`, `average.safetensors`
when weights are averaged, and `state.json` (step, seconds trained, settings). Random states need no saving:
every draw is keyed by (seed, step, micro-batch).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BadModelFile, NotFound
from ..files import write_text, written_as
from ..weights.safetensors_.file import load_file, save_file
from .optim import Average, Optimizers

PREFIX = "step-"


@dataclass(frozen=True)
class RunProgress:
    """How far a run is: steps done, seconds spent training, and the settings it runs with."""

    step: int
    seconds: float
    settings: dict[str, Any]


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizers: Optimizers,
    average: Average | None,
    progress: RunProgress,
    keep: int = 2,
) -> Path:
    """Writes `folder/step-N` under another name, renames it, and removes all but the newest `keep`.

    Raises WriteFailed where the disk is full; then earlier checkpoints are as they were, and nothing else is
    left.
    """
    target = folder / f"{PREFIX}{progress.step:08d}"
    made = folder / f".{target.name}.part"
    try:
        with written_as(target):
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir(parents=True)
            _write(made, model, optimizers, average, progress)
            _exchange(made, target)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def _write(
    made: Path, model: nn.Module, optimizers: Optimizers, average: Average | None, progress: RunProgress
) -> None:
    _save(made / "model.safetensors", model.state_dict())
    _save(made / "optimizer.safetensors", optimizers.state())
    if average is not None:
        _save(made / "average.safetensors", average.tensors)
    state = {**vars(progress), "average_count": average.count if average else 0, "torch": torch.__version__}
    write_text(made / "state.json", json.dumps(state, indent=2) + "\n")


def _exchange(made: Path, target: Path) -> None:
    """Renames `made` to `target`; a checkpoint of the same step is removed only when the new one is there."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    replaced = target.is_dir() and not target.is_symlink()
    if replaced:
        target.rename(old)
    try:
        made.rename(target)
    except OSError:
        if replaced:
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if (path / "state.json").is_file())


def load_checkpoint(
    path: Path, model: nn.Module, optimizers: Optimizers, average: Average | None
) -> RunProgress:
    """Puts a checkpoint's tensors back. Raises NotFound, or BadModelFile when it is not of
    this model and optimiser."""
    if not (path / "state.json").is_file():
        raise NotFound(f"{path}: no checkpoint there (a folder with state.json)")
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        model.load_state_dict(load_file(path / "model.safetensors"))
        optimizers.load_state(load_file(path / "optimizer.safetensors"))
        if average is not None:
            tensors = load_file(path / "average.safetensors")
            average.tensors = {name: tensors[name] for name in average.tensors}
            average.count = state["average_count"]
        return RunProgress(state["step"], state["seconds"], state["settings"])
    except (KeyError, RuntimeError, FileNotFoundError, json.JSONDecodeError) as error:
        raise BadModelFile(
            f"{path}: does not fit this model and optimiser ({str(error).splitlines()[0]}); "
            "resume with the settings it was written with"
        ) from error


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file(path, {name: value.detach().cpu().contiguous() for name, value in tensors.items()})


__all__ = ["RunProgress", "checkpoints", "load_checkpoint", "save_checkpoint"]
