"""Going on with a run that was stopped or killed: what of its settings may have changed, and files that ran
ahead of the checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..files import write_text
from .settings import Settings, settings_to_dict

# What may change without a word: where and how a run computes, and what it tells.
_FREE = {
    "run.folder", "run.log_every", "run.checkpoint_every", "run.checkpoint_minutes", "run.keep",
    "run.threads", "run.device", "run.recompute", "run.max_minutes",
}  # fmt: skip
# What the trained tensors mean.
_FIXED = ("lora.", "objective.kind")
_DIGEST = "data.options.digest"


def data_digest(keys: Iterable[str], examples: int) -> str:
    """Of the conversations that are trained on, in their order: 16 hex digits."""
    return hashlib.blake2b(f"{examples} {' '.join(keys)}".encode(), digest_size=8).hexdigest()


def check_resumed(checkpoint: Path, settings: Settings) -> list[str]:
    """What is told of settings that differ from those that a checkpoint was written with.

    Raises UsageError where the adapter would be another: its rank, scale, targets or phases, its objective.
    """
    try:
        written = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # loading says what is wrong with it
    before, now = dict(_flat(written)), dict(_flat(settings_to_dict(settings)))
    changed = [name for name in now if name in before and before[name] != now[name] and name not in _FREE]
    fixed = [name for name in changed if name.startswith(_FIXED)]
    if fixed:
        told = ", ".join(f"{name} {_shown(before[name])} (now {_shown(now[name])})" for name in fixed)
        raise UsageError(
            f"{checkpoint}: was trained with {told}; pass what the run began with, or name another --out",
            param="resume",
        )
    notes = [
        f"note: {name} was {_shown(before[name])}, and is {_shown(now[name])} from here on"
        for name in changed
        if name != _DIGEST
    ]
    if _DIGEST in changed:
        notes.append("note: the data are not those that the run began with; what comes is drawn from the new")
    return notes


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def trim_metrics(file: Path, step: int) -> None:
    """Removes the lines of steps behind `step`, which are made again, and one that a kill cut short."""
    if not file.is_file():
        return
    kept = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            behind = json.loads(line)["step"] > step
        except (ValueError, KeyError, TypeError):
            continue
        if not behind:
            kept.append(line + "\n")
    write_text(file, "".join(kept))


__all__ = ["check_resumed", "data_digest", "trim_metrics"]
