"""The eval `demo`: the demo model's tasks on items it was never trained on.

The items of a task are the same for every run with one seed, whatever model answers. Exact match decides, but
for Sudoku, where any full grid that obeys the rules and keeps the givens would (there is only one). The two
`infill` tasks have one set of items: all of an answer is given but for a hole of the right length, with the
question as the prompt, or with only the text before the hole.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..demo.filling import FILLING
from ..demo.tasks import TASKS, Example, Task
from .tasks import Drawn, EvalTask, drawn_items

MAX_NEW_TOKENS = 128

EVALUATED: Mapping[str, Task] = {
    **{name: task for name, task in TASKS.items() if task.evaluated},
    **FILLING,
}


def tasks() -> dict[str, EvalTask]:
    """The eval's tasks by name."""
    return {
        name: Drawn(task, name, MAX_NEW_TOKENS, _label(name), holes=name in FILLING)
        for name, task in EVALUATED.items()
    }


def heldout_items(task: Task, count: int, seed: int) -> list[Example]:
    """Up to `count` different held-out items of `task`; fewer only when its universe has no more."""
    return drawn_items(task, count, f"eval/{seed}/{_label(task.name)}")


def _label(name: str) -> str:
    return "infill" if name in FILLING else name


__all__ = ["EVALUATED", "MAX_NEW_TOKENS", "heldout_items", "tasks"]
