"""Figures of a run for trackers of experiments, by name: tensorboard, wandb, trackio."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..errors import UsageError

Log = Callable[[dict[str, float], int], None]
TRACKERS = ("tensorboard", "wandb", "trackio")


def trackers(names: Iterable[str], folder: Path, settings: dict[str, Any]) -> Log:
    """What logs figures of a step to all of them; none: to nobody. Raises UsageError for an unknown name, and
    for one whose package is not installed."""
    logs = [_tracker(name, folder, settings) for name in names]

    def log(values: dict[str, float], step: int) -> None:
        for one in logs:
            one(values, step)

    return log


def _tracker(name: str, folder: Path, settings: dict[str, Any]) -> Log:
    if name not in TRACKERS:
        raise UsageError(f"report: {name!r} is not one of {', '.join(TRACKERS)}", param="report")
    try:
        package: Any = importlib.import_module("torch.utils.tensorboard" if name == "tensorboard" else name)
    except ImportError as error:
        raise UsageError(f"report: {name} is not installed; pip install {name}", param="report") from error
    if name == "tensorboard":
        writer = package.SummaryWriter(str(folder / "tensorboard"))

        def add(values: dict[str, float], step: int) -> None:
            for key, value in values.items():
                writer.add_scalar(key, value, step)
            writer.flush()

        return add
    run = package.init(project="canvaslm", name=folder.name, config=settings)
    logger = run if name == "wandb" else package
    return lambda values, step: logger.log(values, step=step)


__all__ = ["TRACKERS", "Log", "trackers"]
