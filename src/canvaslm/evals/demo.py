"""`canvaslm eval demo`: the demo model's tasks on items it was never trained on, refined and in one shot.

The items of a task are the same for every run with one seed, whatever model answers. Exact match decides, but
for Sudoku, where any full grid that obeys the rules and keeps the givens would (there is only one). The two
`infill` tasks have one set of items: all of an answer is given but for a hole of the right length, with the
question as the prompt, or with only the text before the hole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from ..demo.filling import FILLING
from ..demo.tasks import TASKS, Example, Task
from ..errors import UsageError
from .answers import Answerer
from .score import Score

REFINED, ONE_SHOT = "refined", "one shot"
SAID = ", schema"  # of a mode: the answer has to have the form that the task says
MAX_NEW_TOKENS = 128
MISSES_KEPT = 5
# A small universe may hold fewer items than asked for: give up after this many draws without a new one.
PATIENCE = 3000

EVALUATED: Mapping[str, Task] = {
    **{name: task for name, task in TASKS.items() if task.evaluated},
    **FILLING,
}

Tick = Callable[[str, str], None]


@dataclass(frozen=True)
class EvalOptions:
    """What to run. `tasks` empty = all. `steps` overrides max_denoising_steps of the refined mode; `sampling`
    holds further fields of `Params`, for both modes. `structure`: only tasks whose answers have a form that
    can be said, in each mode with it and without.
    """

    count: int = 500
    tasks: tuple[str, ...] = ()
    one_shot: bool = True
    seed: int = 0
    steps: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    structure: bool = False

    def chosen(self) -> list[Task]:
        """The tasks to run. Raises UsageError for an unknown name or a count that is not positive."""
        known = {name: task for name, task in EVALUATED.items() if task.structured or not self.structure}
        unknown = [name for name in self.tasks if name not in known]
        if unknown:
            raise UsageError(f"no task is called {unknown[0]!r}; there are {', '.join(known)}", "tasks")
        if self.count < 1:
            raise UsageError(f"-n {self.count}: at least one item a task is needed", "count")
        return [known[name] for name in self.tasks or known]

    @property
    def modes(self) -> tuple[str, ...]:
        plain = (REFINED, ONE_SHOT) if self.one_shot else (REFINED,)
        return tuple(m for mode in plain for m in (mode, mode + SAID)) if self.structure else plain


def heldout_items(task: Task, count: int, seed: int) -> list[Example]:
    """Up to `count` different held-out items of `task`; fewer only when its universe has no more."""
    name = "infill" if task.name in FILLING else task.name
    rng, barren = Random(f"eval/{seed}/{name}"), 0
    found: dict[str, Example] = {}
    while len(found) < count and barren < PATIENCE:
        example = task.sample(rng, "heldout")
        barren = barren + 1 if example.key in found else 0
        found.setdefault(example.key, example)
    return list(found.values())


def evaluate(answerer: Answerer, options: EvalOptions, tick: Tick = lambda task, mode: None) -> list[Score]:
    """One score per task and mode. `tick` is called after every answer."""
    scores = []
    for task in options.chosen():
        items = heldout_items(task, options.count, options.seed)
        for mode in options.modes:
            scores.append(_score(answerer, task, items, mode, options, partial(tick, task.name, mode)))
    return scores


def _score(
    answerer: Answerer,
    task: Task,
    items: Sequence[Example],
    mode: str,
    options: EvalOptions,
    tick: Callable[[], None],
) -> Score:
    score = Score(task.name, mode, valid=0 if options.structure else None)
    seeds = [options.seed * 1_000_003 + place for place in range(len(items))]
    params = {**options.sampling, "max_new_tokens": MAX_NEW_TOKENS}
    steps = 1 if mode.startswith(ONE_SHOT) else options.steps
    if steps is not None:
        params["max_denoising_steps"] = steps
    questions = [item.messages for item in items]
    if items and items[0].holes:
        params["pieces"] = [item.pieces() for item in items]
    if mode.endswith(SAID):
        params["structures"] = [task.structure(item) for item in items]
    for place, answer in answerer(questions, seeds, **params):
        item = items[place]
        right = task.check(item, answer.text)
        score.add(answer, right)
        if score.valid is not None:
            score.valid += task.valid(item, answer.text)
        if not right and len(score.misses) < MISSES_KEPT:
            score.misses.append((item.messages[-1]["content"], item.answer, answer.text))
        tick()
    return score


__all__ = [
    "EVALUATED", "MAX_NEW_TOKENS", "ONE_SHOT", "REFINED", "SAID", "EvalOptions", "evaluate", "heldout_items",
]  # fmt: skip
