"""What an eval asks: tasks, found by name. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from random import Random
from typing import Any, Protocol

from ..demo.tasks import Example, Task
from ..diffusion.params import nearest
from ..errors import UsageError

# Modules with `tasks() -> Mapping[str, EvalTask]`, imported when they are asked for.
EVALS: Mapping[str, str] = {
    "demo": "canvaslm.evals.demo",
    "lists": "canvaslm.evals.lists",
    "human-eval": "canvaslm.evals.human_eval",
    "reasoning-gym": "canvaslm.evals.reasoning_gym",
}
DEFAULT = "demo"
# A small universe may hold fewer items than asked for: give up after this many draws without a new one.
PATIENCE = 3000


class EvalTask(Protocol):
    """A set of questions and what decides whether an answer is right.

    `structured`: `structure` says of every item what form its answer has. `holes`: parts of the answers are
    given. `runs_code`: `check` runs what the model wrote. `max_new_tokens`: what an answer may have.
    """

    @property
    def name(self) -> str: ...

    @property
    def structured(self) -> bool: ...

    @property
    def holes(self) -> bool: ...

    @property
    def runs_code(self) -> bool: ...

    @property
    def max_new_tokens(self) -> int: ...

    def items(self, count: int, seed: int) -> list[Example]:
        """Up to `count` different items, the same for ever for one seed; fewer where there are no more."""
        ...

    def check(self, item: Example, text: str) -> bool: ...

    def structure(self, item: Example) -> dict[str, Any]: ...

    def valid(self, item: Example, text: str) -> bool: ...


@dataclass(frozen=True)
class Drawn:
    """A generator of the demo's kind as a task: its held-out items, drawn with the seed `label` makes."""

    task: Task
    name: str
    max_new_tokens: int
    label: str
    holes: bool = False
    runs_code: bool = False

    @property
    def structured(self) -> bool:
        return self.task.structured

    def items(self, count: int, seed: int) -> list[Example]:
        return drawn_items(self.task, count, f"eval/{seed}/{self.label}")

    def check(self, item: Example, text: str) -> bool:
        return self.task.check(item, text)

    def structure(self, item: Example) -> dict[str, Any]:
        return self.task.structure(item)

    def valid(self, item: Example, text: str) -> bool:
        return self.task.valid(item, text)


def drawn_items(task: Task, count: int, label: str) -> list[Example]:
    """Up to `count` different held-out items; fewer only when the task's universe has no more."""
    rng, barren = Random(label), 0
    found: dict[str, Example] = {}
    while len(found) < count and barren < PATIENCE:
        example = task.sample(rng, "heldout")
        barren = barren + 1 if example.key in found else 0
        found.setdefault(example.key, example)
    return list(found.values())


def find_tasks(names: Sequence[str]) -> dict[str, EvalTask]:
    """The tasks named, in order: an eval's name stands for all of its tasks, `eval:task` and a task of the
    demo by itself for one.

    Raises UsageError for a name that is none, and where an eval's package is not installed.
    """
    found: dict[str, EvalTask] = {}
    for name in names or (DEFAULT,):
        found |= {task.name: task for task in _named(name)}
    return found


def _named(name: str) -> list[EvalTask]:
    eval_name, colon, task = name.partition(":")
    if name in EVALS:
        return list(_tasks_of(name).values())
    if not colon:
        eval_name, task = DEFAULT, name
    if eval_name not in EVALS:
        raise UsageError(f"no eval is called {eval_name!r}; there are {', '.join(EVALS)}", "tasks")
    known = _tasks_of(eval_name)
    if task in known:
        return [known[task]]
    near = nearest(task, (*known, *(() if colon else EVALS)))
    meant = f": did you mean {near}?" if near else f"; {eval_name} has {', '.join(known)}"
    others = "" if colon or near else f". Other evals are {', '.join(n for n in EVALS if n != DEFAULT)}"
    raise UsageError(f"no {'task' if colon else 'eval or task'} is called {task!r}{meant}{others}", "tasks")


def _tasks_of(eval_name: str) -> Mapping[str, EvalTask]:
    tasks: Mapping[str, EvalTask] = import_module(EVALS[eval_name]).tasks()
    return tasks


__all__ = ["DEFAULT", "EVALS", "Drawn", "EvalTask", "drawn_items", "find_tasks"]
