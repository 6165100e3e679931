"""The eval `reasoning-gym`: about a hundred generators of puzzles with their own checkers, from the package
of that name.

An answer is right if its checker gives it full marks. Some checkers evaluate what the model wrote as Python:
these are found by their source, and run as `programs` are.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from ..demo.tasks import Example
from ..errors import UsageError
from .programs import runs_well
from .tasks import EvalTask

NAME = "reasoning-gym"
_ASKS = "Put your final answer, and nothing else, between <answer> and </answer>."
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_EVALUATES = re.compile(r"\b(?:eval|exec|parse_expr|sympify)\(")
_FULL = 1 - 1e-9
_NO_TASKS = ("composite",)  # is made of others, which have to be said


class GymTask:
    """One generator. Items are the first of the dataset that a seed makes."""

    structured = holes = False
    max_new_tokens = 1024

    def __init__(self, dataset: str, *, runs_code: bool) -> None:
        self.dataset, self.name, self.runs_code = dataset, f"{NAME}:{dataset}", runs_code
        self._made: Any = None
        self._making = ""

    def items(self, count: int, seed: int) -> list[Example]:
        self._making = f"create_dataset({self.dataset!r}, size={count}, seed={seed})"
        self._made = _package().create_dataset(self.dataset, size=count, seed=seed)
        found: dict[str, Example] = {}
        for place in range(count):
            entry = self._made[place]
            prompt = f"{entry['question'].strip()}\n\n{_ASKS}"
            turns = ({"role": "user", "content": prompt},)
            found.setdefault(prompt, Example(turns, str(entry["answer"] or ""), self.name, str(place)))
        return list(found.values())

    def check(self, item: Example, text: str) -> bool:
        """Whether the dataset's own checker gives full marks. Of items that this task made last."""
        answer, place = read_answer(text), int(item.key)
        if self.runs_code:
            made = f"from reasoning_gym import create_dataset\ndata = {self._making}\nentry = data[{place}]"
            return runs_well(f"assert data.score_answer({answer!r}, entry) >= {_FULL}", made)
        try:
            return bool(self._made.score_answer(answer, self._made[place]) >= _FULL)
        except Exception:  # a checker that breaks on an answer has not found it right
            return False

    def structure(self, item: Example) -> dict[str, Any]:
        return {}

    def valid(self, item: Example, text: str) -> bool:
        return True


def read_answer(text: str) -> str:
    """What stands between the last two marks; all, where there are none."""
    found = _ANSWER.findall(text)
    return str(found[-1] if found else text).strip()


def _package() -> Any:
    try:
        import reasoning_gym
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{NAME} needs the package {error.name}: pip install 'canvaslm[evals]'", "tasks"
        ) from error
    return reasoning_gym


def tasks() -> dict[str, EvalTask]:
    """Every generator by its name. Raises UsageError where the package is not installed."""
    known: Mapping[str, Any] = _package().factory.DATASETS
    return {
        name: GymTask(name, runs_code=bool(_EVALUATES.search(_source(kind))))
        for name, (kind, _) in sorted(known.items())
        if name not in _NO_TASKS
    }


def _source(kind: type) -> str:
    module = inspect.getmodule(kind)
    return inspect.getsource(module) if module else ""


__all__ = ["NAME", "GymTask", "read_answer", "tasks"]
