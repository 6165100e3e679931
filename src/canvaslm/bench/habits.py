"""How many passes answers take, by preset and by how much of a canvas they fill, counted on a model's tasks.

The file that ships was made by `benchmarks/habits.py` from the demo model's held-out tasks. Another model has
other habits: the script writes its file, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..errors import NotFound, UsageError

# Answers are counted together that fill a canvas up to these shares; longer ones have several canvases.
SHARES = (0.125, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Habit:
    """The mean of `answers` answers under a preset.

    fill: of a canvas, by the answer's tokens; above 1 for several canvases. steps: denoise steps. places: of
    a canvas, computed in a step. reads: passes of the causal reader over a canvas's draft. commits: canvases
    that were encoded for another to follow.
    """

    preset: str
    answers: int
    fill: float
    steps: float
    places: float
    reads: float
    commits: float


def read_habits(path: Path | None = None) -> list[Habit]:
    """Those of a file, or those that ship. Raises NotFound, and UsageError for what is no such file."""
    try:
        source: Any = files(__package__).joinpath("habits.json") if path is None else path
        found = json.loads(source.read_text(encoding="utf-8"))
        habits = [Habit(**one) for one in found["habits"]]
        if not habits or not all(h.fill > 0 and 0 <= h.places <= 1 for h in habits):
            raise ValueError("no habits, or impossible ones")
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such file") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(
            f"{path}: not a file of habits ({error}): make one with benchmarks/habits.py", "habits"
        ) from error
    return habits


def as_document(habits: Sequence[Habit], made: Mapping[str, Any]) -> str:
    """The file. made: how they were counted."""
    rows = [
        {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(h).items()}
        for h in habits
    ]
    return json.dumps({**made, "habits": rows}, indent=1) + "\n"


def habit_of(habits: Sequence[Habit], preset: str, fill: float) -> Habit:
    """That of answers which fill so much of a canvas: of those counted the nearest in ratio. Where these have
    several canvases, passes go with the length."""
    mine = [habit for habit in habits if habit.preset == preset]
    if not mine:
        known = ", ".join(dict.fromkeys(habit.preset for habit in habits))
        raise UsageError(f"the preset {preset} has no habits: known are {known}", "habits")
    nearest = min(mine, key=lambda habit: max(habit.fill / fill, fill / habit.fill))
    if nearest.fill <= 1:
        return nearest
    times = fill / nearest.fill
    return replace(
        nearest, fill=fill, steps=nearest.steps * times, reads=nearest.reads * times,
        commits=nearest.commits * times if fill > 1 else 0.0,
    )  # fmt: skip


__all__ = ["SHARES", "Habit", "as_document", "habit_of", "read_habits"]
