"""Evals as they are run: every task's items at every point, one score for each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..demo.tasks import Example
from ..errors import UsageError
from .answers import Answer, Answerer
from .points import ONE_SHOT, REFINED, Point, Sweep, grid
from .programs import CAN_LIMIT
from .score import Score
from .standard import standard
from .tasks import EvalTask, find_tasks

MISSES_KEPT = 5
_SEED_STRIDE = 1_000_003  # seeds of one run's items, and of the next run's, do not meet

Tick = Callable[[str, str], None]


@dataclass(frozen=True)
class EvalOptions:
    """What to run. `tasks`: names as `find_tasks` takes them, none = the demo's.

    Without `sweeps` items are answered `refined`, and with `one_shot` in a single step as well. `steps`
    overrides max_denoising_steps of the refined mode; `sampling` holds further fields of `Params`, for all
    points. `table` names points that are compared, in place of sweeps. `structure`: only tasks whose answers
    have a form that can be said, with it and without. `seed` chooses items and noise; every item is answered
    under `seeds` different ones. `holes`: whether parts of answers can be given; `allow_code`: whether what
    models wrote may be run.
    """

    count: int = 500
    tasks: tuple[str, ...] = ()
    one_shot: bool = True
    seed: int = 0
    steps: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    structure: bool = False
    seeds: int = 1
    sweeps: tuple[Sweep, ...] = ()
    table: str = ""
    holes: bool = True
    allow_code: bool = False

    def chosen(self) -> list[EvalTask]:
        """The tasks to run. Raises UsageError for an unknown name, for a task that cannot be run so, and for
        counts that are not positive."""
        if self.count < 1:
            raise UsageError(f"-n {self.count}: at least one item a task is needed", "count")
        if self.seeds < 1:
            raise UsageError(f"--seeds {self.seeds}: at least one is needed", "seeds")
        found = find_tasks(self.tasks)
        fitting = [task for task in found.values() if self._obstacle(task) is None]
        for task in found.values():
            obstacle = self._obstacle(task)
            if obstacle and (task.name in self.tasks or not fitting):
                raise UsageError(f"{task.name}: {obstacle}", "tasks")
        return fitting

    def left_out(self) -> list[str]:
        """Names of tasks that their eval has and that cannot be run so."""
        return [task.name for task in find_tasks(self.tasks).values() if self._obstacle(task)]

    def _obstacle(self, task: EvalTask) -> str | None:
        """Why a task cannot be run."""
        if task.runs_code and not CAN_LIMIT:
            return (
                "its answers are programs, which are run on Linux and macOS alone: there they can be limited"
            )
        if task.runs_code and not self.allow_code:
            return (
                "its answers are programs, which are run to be judged: --allow-code runs them, in a process "
                "with limits that is no fortress; use a machine that you can lose"
            )
        if task.holes and not self.holes:
            return "parts of its answers are given, which chat completions cannot: leave out --url"
        if self.structure and not task.structured:
            return "its answers have no form that could be said: leave out --schema"
        return None

    @property
    def points(self) -> list[Point]:
        """What the items are answered with. Raises UsageError as `grid` and `standard` do."""
        if self.table and (self.sweeps or self.structure):
            other = "--sweep" if self.sweeps else "--schema"
            raise UsageError(f"--table and {other} both say what is compared: leave one out", "table")
        if self.table:
            return list(standard(self.table))
        if self.sweeps:
            plain = grid(self.sweeps)
            if self.steps is not None and "max_denoising_steps" in plain[0].params:
                raise UsageError("--steps and --sweep steps=... both say how many: leave one out", "steps")
        else:
            plain = [Point(REFINED), *[Point(ONE_SHOT, {"max_denoising_steps": 1})] * self.one_shot]
        return [p for point in plain for p in ((point, point.with_form()) if self.structure else (point,))]

    def points_of(self, task: EvalTask) -> list[Point]:
        """Those that a task can be answered at: causal decoding takes nothing that is given."""
        left_out = task.holes and bool(self.table)
        return [p for p in self.points if not (left_out and p.params.get("decoding") == "causal")]

    def params(self, point: Point) -> dict[str, Any]:
        """All fields of `Params` that hold at a point, but for the seed and what a task says."""
        steps = {} if self.steps is None else {"max_denoising_steps": self.steps}
        return {**self.sampling, **steps, **point.params}


class Evaluation:
    """A run of an eval: `scores` makes it, one task and point after the other."""

    def __init__(self, options: EvalOptions) -> None:
        self.options, self.points = options, options.points
        self.tasks = options.chosen()

    @cached_property
    def items(self) -> list[list[Example]]:
        """Those of each task; a task may have fewer than asked for."""
        return [task.items(self.options.count, self.options.seed) for task in self.tasks]

    @property
    def answers(self) -> int:
        """How many answers the whole run takes."""
        points = [len(self.options.points_of(task)) for task in self.tasks]
        return self.options.seeds * sum(map(math.prod, zip(map(len, self.items), points, strict=True)))

    def scores(self, answerer: Answerer, tick: Tick = lambda task, mode: None) -> Iterator[Score]:
        """The scores as they are done. `tick(task, point)` is called after every answer."""
        if (
            self.options.sweeps or self.options.table
        ):  # the first answer is slower than the rest, and points are compared
            for _ in self._answers(answerer, self.tasks[0], self.items[0][:1], self.points[0]):
                pass
        for task, items in zip(self.tasks, self.items, strict=True):
            for point in self.options.points_of(task):
                yield self._score(answerer, task, items, point, tick)

    def _score(
        self, answerer: Answerer, task: EvalTask, items: Sequence[Example], point: Point, tick: Tick
    ) -> Score:
        options, answers = self.options, list[tuple[int, Answer]]()
        begin = time.perf_counter()
        for place, answer in self._answers(answerer, task, items, point):
            answers.append((place, answer))
            tick(task.name, point.label)
        seconds = time.perf_counter() - begin  # what judging takes is not the model's time
        score = Score(
            task.name, point.label, point=point, seeds=options.seeds, seconds=seconds,
            valid=0 if options.structure else None,
        )  # fmt: skip
        for place, answer in answers:
            _judge(score, task, place, items[place], answer)
        return score

    def _answers(
        self, answerer: Answerer, task: EvalTask, items: Sequence[Example], point: Point
    ) -> Iterator[tuple[int, Answer]]:
        """(place of the item, answer), for every item under every seed."""
        options = self.options
        params = {"max_new_tokens": task.max_new_tokens, **options.params(point)}
        asked = list(items) * options.seeds
        seeds = [
            (options.seed + number) * _SEED_STRIDE + place
            for number in range(options.seeds)
            for place in range(len(items))
        ]
        extra: dict[str, Any] = {}
        if task.holes:
            extra["pieces"] = [item.pieces() for item in asked]
        if point.said:
            extra["structures"] = [task.structure(item) for item in asked]
        for place, answer in answerer([item.messages for item in asked], seeds, **extra, **params):
            yield place % len(items), answer


def _judge(score: Score, task: EvalTask, place: int, item: Example, answer: Answer) -> None:
    right = task.check(item, answer.text)
    score.add(place, answer, right)
    if score.valid is not None:
        score.valid += task.valid(item, answer.text)
    if not right and len(score.misses) < MISSES_KEPT:
        score.misses.append((item.messages[-1]["content"], item.answer, answer.text))


def evaluate(answerer: Answerer, options: EvalOptions, tick: Tick = lambda task, mode: None) -> list[Score]:
    """One score per task and point. `tick` is called after every answer."""
    return list(Evaluation(options).scores(answerer, tick))


__all__ = ["MISSES_KEPT", "EvalOptions", "Evaluation", "Tick", "evaluate"]
